"""Compiled twins: what a rule, a law or a loss says of how it is to be compiled.

A class may say ``compiled``, a pair of a function compiled by Numba and its numbers: what the
function does is what the class's own method does, for one step and one replicate. Classes of the
library have one; see ``docs/extending.md`` for one of your own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsim._shared.values import declared
from mbsim.errors import InvalidArgument, shown

__all__ = ["Twin", "twin_of"]

Twin = tuple[Any, NDArray[np.float64]]


def twin_of(name: str, instance: object) -> Twin | None:
    """The compiled twin of the argument `name`, "loss", "noise" or "rule"; None if it has none.

    Raises:
        InvalidArgument: if what the class says is no pair of a function that can be compiled so
            and of its numbers.

    >>> import mbsim
    >>> function, numbers = twin_of("rule", mbsim.clipping.FixedNorm(2.0))
    >>> function.__name__, numbers
    ('fixed', array([2.]))
    """
    said = declared(instance, "compiled")
    if said is None:
        return None
    from mbsim.compiled import jit

    try:
        function, numbers = said
        array = np.array(numbers, np.float64).ravel()  # never locked
        if not np.isfinite(array).all():
            raise ValueError(f"the numbers {shown(numbers)} are not all finite")
        kinds = {"loss": jit.LOSS, "noise": jit.LAW, "rule": jit.RULE}
        return jit.for_signature(function, kinds[name]), array
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidArgument(
            f"{name}={shown(instance)} must say compiled=(function, numbers), a function of Numba "
            f"with the arguments of the page on extending, and finite numbers: {reason}"
        ) from error
