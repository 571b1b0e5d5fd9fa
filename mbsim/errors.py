"""The one exception users see for bad input, and the few checks that raise it.

Every message is one line that names the argument, shows its value, states the rule it breaks and,
where there is one, the remedy.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["InvalidArgument"]


class InvalidArgument(ValueError):
    """An argument breaks a rule; the message names the argument, its value and the rule.

    >>> import mbsim
    >>> mbsim.Draggers(probability=-0.1, norm_ratio=10)
    Traceback (most recent call last):
        ...
    mbsim.errors.InvalidArgument: probability=-0.1 must be at least 0 and at most 1
    """


def shown(value: Any) -> str:
    """A value as it appears in a message: one line, short, NumPy scalars without their type."""
    if isinstance(value, np.generic):
        value = value.item()
    text = f"array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


# Integers beyond this are not exact as floats, and no size of anything here.
_MOST = 2**53


def check_integer(name: str, value: Any, *, minimum: int) -> int:
    """`value` as an int, at least `minimum` and at most 2⁵³; 1e3 is one, a bool is not."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))
    if isinstance(value, (float, np.floating)):
        whole = float(value).is_integer()
    if not whole or int(value) < minimum:
        raise InvalidArgument(f"{name}={shown(value)} must be an integer of at least {minimum}")
    if int(value) > _MOST:
        raise InvalidArgument(f"{name}={shown(value)} must be at most 2**53")
    return int(value)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> float:
    """`value` as a finite float within the limits given (`above` and `below` exclude their end)."""
    limits = [
        (words, within, limit)
        for words, within, limit in (
            ("above", operator.gt, above),
            ("at least", operator.ge, minimum),
            ("below", operator.lt, below),
            ("at most", operator.le, maximum),
        )
        if limit is not None
    ]
    rule = " and ".join(f"{words} {limit:g}" for words, _, limit in limits) or "a finite number"
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise InvalidArgument(f"{name}={shown(value)} must be a number, {rule}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        raise InvalidArgument(f"{name}={shown(value)} must be finite")
    if not all(within(number, limit) for _, within, limit in limits):
        raise InvalidArgument(f"{name}={shown(value)} must be {rule}")
    return number


def as_numbers(name: str, value: ArrayLike) -> NDArray[Any]:
    """`value` as an array of integers or floats, of whatever type, that is not empty."""
    try:
        array = np.asarray(value)
        # bfloat16 and its kind are of kind V, and known by their names.
        number = array.dtype.kind in "iuf" or (
            array.dtype.kind == "V" and "float" in array.dtype.name
        )
        if not number or np.ma.isMaskedArray(value):
            raise TypeError
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name}={shown(value)} must be an array of real numbers") from None
    if array.size == 0:
        raise InvalidArgument(f"{name} has shape {array.shape} and must not be empty")
    return array


def check_array(
    name: str, value: ArrayLike, *, ndim: int | None = None, finite: bool = False
) -> NDArray[np.float64]:
    """`value` as a float64 array that is not empty, of `ndim` axes, and `finite` if it must be."""
    array = as_numbers(name, value)
    if ndim is not None and array.ndim != ndim:
        raise InvalidArgument(f"{name} has shape {array.shape} and must have {ndim} axes")
    with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes infinite
        array = array.astype(np.float64)
    if finite:
        check_finite(name, array)
    return array


def check_finite(name: str, array: NDArray[np.floating]) -> None:
    """Refuse NaN and infinity, saying how many there are and where the first is."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InvalidArgument(
            f"{name} must be finite; {int(bad.sum())} of its {bad.size} values are not, "
            f"the first at {first}: {float(array[first])}"
        )


def divisors(number: int) -> list[int]:
    """The divisors of `number`, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return low + [number // k for k in reversed(low) if k * k != number]


def check_divides(micro_batch_size: Any, batch_size: Any) -> int:
    """The number of micro-batches m = B/b; b must divide B."""
    total = check_integer("batch_size", batch_size, minimum=1)
    size = check_integer("micro_batch_size", micro_batch_size, minimum=1)
    if total % size:
        rule = f"micro_batch_size={size} must divide batch_size={total}"
        raise InvalidArgument(rule + _divisors_near(size, total))
    return total // size


def _divisors_near(size: int, total: int) -> str:
    """The divisors of `total` in words: all if they are few, else those around `size`."""
    if total > 10**10:  # too long a search for a message
        return ""
    found = divisors(total)
    if len(found) <= 16:
        return f"; its divisors are {', '.join(map(str, found))}"
    place = sum(divisor < size for divisor in found)
    near = found[max(0, place - 4) : place + 4]
    return f"; its divisors near that are {', '.join(map(str, near))}"
