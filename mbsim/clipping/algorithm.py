"""Algorithm 1 on arrays and trees of them: NumPy's in blocks, any other's where they are."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsim._shared.meant import answering
from mbsim.clipping.blocks import average, measured_norms
from mbsim.clipping.rules import Rule, SmallestNorm, check_rule_argument, namespace
from mbsim.errors import (
    InvalidArgument,
    as_numbers,
    check_array,
    check_divides,
    check_finite,
    shown,
)

__all__ = ["apply", "update"]


def apply(
    micro_batch_gradients: Any,
    rule: Rule | None = None,
    *,
    weights: Any = None,
    nonfinite: str = "raise",
) -> Any:
    r"""Algorithm 1 from micro-batch gradients: u = (1/m) Σ_j s_j X_j.

    Args:
        micro_batch_gradients: X, real numbers of shape ``[..., m, d]``; leading axes are
            independent steps. Of NumPy, PyTorch, JAX (also under jit), or another library that
            keeps to the array API. Or a tree of them, as ``{"weight": …, "bias": …}``: dicts,
            lists and tuples, in any order, of blocks ``[m, …]`` of any further axes; a norm is
            then over all blocks together, and there are no leading axes. A gradient that is a
            matrix must be such a block, as in ``[x]``, for an array ``[m, out, in]`` is taken for m
            steps of `out` micro-batches.
        rule: the clipping rule; :class:`SmallestNorm` if none is given.
        weights: n_j ≥ 0, the sizes of the micro-batches, ``[m]`` or ``[..., m]``, where they are
            not equal (a ragged last one, or tokens): u = Σ_j n_j s_j X_j / Σ_j n_j. A micro-batch
            of weight 0 is not there: the rule does not see it.
        nonfinite: ``"raise"`` refuses NaN and infinity; ``"drop"`` leaves the micro-batches that
            hold one out of the step: the rule and the mean see only the rest.

    Returns:
        The update u of shape ``[..., d]`` or the tree of updates, in the units, the floating type
        (float64 for integers), the library and on the device of the gradients. For NumPy it is
        right wherever it is representable, also for gradients of size 1e200 or 1e-200 and for half
        precision: sums are taken in float64 or wider; elsewhere in float32 or wider, from
        scaled squares, so that norms do not overflow. Where JAX traces, no value is known: nothing
        is refused, and what is not finite makes the update so.

    Raises:
        InvalidArgument: for gradients that are not numbers, lack axes or are not finite, for
            weights that are negative, not finite or all 0, and for a step in which no micro-batch
            is left.

    Source: [Wang2024] Algorithm 1.

    >>> apply([[3.0, 4.0], [0.0, 10.0]])          # norms 5 and 10: the second is halved
    array([1.5, 4.5])
    >>> apply({"a": np.array([[3.0], [0.0]]), "b": np.array([4.0, 10.0])}, weights=[3, 1])
    {'a': array([2.25]), 'b': array(4.25)}
    """
    return _clipped(
        "micro_batch_gradients", "micro-batch", micro_batch_gradients, 1, rule, weights, nonfinite
    )


@answering
def update(
    per_example_gradients: Any,
    micro_batch_size: int,
    rule: Rule | None = None,
    *,
    weights: Any = None,
    nonfinite: str = "raise",
) -> Any:
    """Algorithm 1 from per-example gradients, in contiguous micro-batches of b.

    Micro-batch j holds the examples j·b … (j+1)·b − 1; shuffle the examples first if their order
    means something.

    Args:
        per_example_gradients: real numbers of shape ``[..., B, d]``; leading axes are independent
            steps. Or a tree of blocks ``[B, …]``, as in :func:`apply`: so the gradients of a layer,
            ``[B, out, in]``, go in as ``[x]`` or ``{"weight": x}``. By themselves they are B steps
            of `out` examples; where B = out the answer has the shape of the layer all the same, and
            a warning says so.
        micro_batch_size: b; it must divide B.
        rule: the clipping rule; :class:`SmallestNorm` if none is given.
        weights: n_j, as in :func:`apply`; or of each example, ``[B]`` or ``[..., B]``: then X_j is
            the weighted mean and n_j the sum of them. So a ragged last micro-batch may be filled up
            with zeros of weight 0.
        nonfinite: as in :func:`apply`.

    Returns:
        The update u of shape ``[..., d]``, as in :func:`apply`. For an array of NumPy's without
        weights, memory beyond it and the input stays under a tenth of a large input.

    Raises:
        InvalidArgument: as :func:`apply`, and for a b that does not divide B.

    Source: [Wang2024] Algorithm 1.

    >>> update([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 1.0]], micro_batch_size=2)
    array([0.5, 0.5])
    >>> layer = np.array([[[2.0], [0.0]], [[4.0], [0.0]], [[0.0], [1.0]], [[0.0], [0.0]]])
    >>> update([layer], 2, weights=[1, 1, 1, 0])[0].round(3).tolist()
    [[0.667], [0.333]]
    """
    return _clipped(
        "per_example_gradients",
        "example",
        per_example_gradients,
        micro_batch_size,
        rule,
        weights,
        nonfinite,
    )


def _clipped(
    name: str, unit: str, gradients: Any, size: Any, rule: Rule | None, weights: Any, nonfinite: Any
) -> Any:
    """Algorithm 1 from `gradients` ``[..., B, d]`` or a tree, in micro-batches of `size`."""
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    if not isinstance(nonfinite, str) or nonfinite not in ("raise", "drop"):
        raise InvalidArgument(f"nonfinite={shown(nonfinite)} must be 'raise' or 'drop'")
    blocks: list[Any] = []
    tree = _is_tree(gradients)
    map_tree(lambda leaf: blocks.append(_block(name, leaf)), gradients, tree)
    if len(libraries := {namespace(x).__name__ for x in blocks}) > 1:
        listed = " and ".join(sorted(libraries))
        raise InvalidArgument(f"{name} must be arrays of one library, and has those of {listed}")
    leading, examples = _axes(name, unit, [tuple(x.shape) for x in blocks], tree)
    if leading and unit == "example":
        _say_if_a_layer(blocks[0].shape)
    m = check_divides(size, examples)
    split, rest = (math.prod(leading), m, examples // m), 1 + len(leading)
    parts = [x.reshape(*split, math.prod(x.shape[rest:])) for x in blocks]
    sizes = None if weights is None else _sizes(weights, leading, m, examples)
    if tree or sizes is not None or not isinstance(blocks[0], np.ndarray):
        updates = _of_any(name, parts, rule, sizes, nonfinite, leading)
    else:
        updates = [_of_numpy(name, parts[0], rule, nonfinite, leading)]
    shapes = [(*leading, *x.shape[rest:]) for x in blocks]
    found = (u.reshape(shape) for u, shape in zip(updates, shapes, strict=True))
    return map_tree(lambda _: next(found), gradients, tree)


# ---------------------------------------------------------------------------- trees and shapes


def _say_if_a_layer(shape: tuple[int, ...]) -> None:
    """Warn where an array may be the gradients of a layer, and the answer would not show it.

    Of ``[B, out, in]`` the answer is ``[B, in]``: its shape gives it away, unless B = out.
    """
    if shape[:-2] == shape[1:-1] and shape[0] > 1:
        warnings.warn(
            f"per_example_gradients of shape {tuple(shape)} are taken for {shape[0]} steps of "
            f"{shape[-2]} examples; {shape[0]} examples' gradients of a layer go in as {{'w': x}}",
            stacklevel=5,  # beyond update and what answers for it
        )


def _is_tree(content: Any) -> bool:
    """A mapping; or a list or a tuple that holds one, or an array of two axes or more."""
    if isinstance(content, (list, tuple)):
        return any(_is_tree(one) or getattr(one, "ndim", 0) > 1 for one in content)
    return isinstance(content, Mapping)


def map_tree(function: Callable[[Any], Any], content: Any, inside: bool = True) -> Any:
    """The tree with ``function(array)`` in the place of every array; None stays."""
    if inside and isinstance(content, Mapping):
        pairs = {key: map_tree(function, one) for key, one in content.items()}
        return pairs if isinstance(content, dict) else type(content)(pairs)  # type: ignore[call-arg]
    if inside and isinstance(content, (list, tuple)):
        parts = [map_tree(function, one) for one in content]
        return type(content)(*parts) if hasattr(content, "_fields") else type(content)(parts)
    return None if inside and content is None else function(content)


def _block(name: str, content: Any) -> Any:
    """An array: of NumPy, or of another library that keeps to the array API."""
    if isinstance(content, (list, tuple)) and any(hasattr(one, "ndim") for one in content[:1]):
        content = namespace(content[0]).stack(list(content))  # rows
    if isinstance(content, (np.ndarray, np.generic, list, tuple, float, int)):
        return as_numbers(name, content)
    from array_api_compat import is_array_api_obj

    if not is_array_api_obj(content):
        return as_numbers(name, content)
    if not namespace(content).isdtype(content.dtype, "real floating"):
        raise InvalidArgument(f"{name} has the type {content.dtype} and must hold real floats")
    if getattr(content, "is_sparse", False):
        raise InvalidArgument(f"{name} is sparse and must be dense, as its to_dense() is")
    if 0 in content.shape:
        raise InvalidArgument(f"{name} has shape {tuple(content.shape)} and must not be empty")
    return content


def _axes(
    name: str, unit: str, shapes: list[tuple[int, ...]], tree: bool
) -> tuple[tuple[int, ...], int]:
    """The leading axes, and the number of examples (or micro-batches)."""
    if not shapes:
        raise InvalidArgument(f"{name} must hold at least one array")
    if not tree:
        if len(shapes[0]) < 2:
            raise InvalidArgument(
                f"{name} has shape {shapes[0]} and must have at least two axes, "
                f"[..., {unit}, coordinate]"
            )
        return shapes[0][:-2], shapes[0][-2]
    if len({shape[:1] for shape in shapes}) > 1 or not shapes[0]:
        listed = ", ".join(map(str, shapes))
        raise InvalidArgument(
            f"{name} has blocks of shapes {listed}, whose first axis must be one, of every {unit}"
        )
    return (), shapes[0][0]


def _traced(array: Any) -> bool:
    """Whether JAX is tracing: the array has no values yet."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def _sizes(weights: Any, leading: tuple[int, ...], m: int, examples: int) -> Any:
    """The weights as shares of the largest of a step, ``[steps, m, 1 or b]``; None if all are one.

    Equal weights are none, so that they give Algorithm 1 to the bit.
    """
    if not _traced(weights):
        weights = weights.tolist() if hasattr(weights, "tolist") else weights
        weights = check_array("weights", weights)
        check_finite("weights", weights)
    shape, whole = tuple(weights.shape), (m, examples)
    if shape not in {(*lead, n) for lead in ((), leading) for n in whole}:
        each = f"the {m} micro-batches" + f" or of the {examples} examples" * (m < examples)
        raise InvalidArgument(f"weights has shape {shape} and must have one for each of {each}")
    xp = namespace(weights)
    sizes = xp.broadcast_to(weights, (*leading, shape[-1])).reshape(math.prod(leading), m, -1)
    most = xp.max(sizes, axis=(1, 2), keepdims=True)
    if not _traced(weights):
        if (sizes < 0).any() or not most.all():
            rule = "must be at least 0" + ", and not all 0" * (not (sizes < 0).any())
            raise InvalidArgument(f"weights={shown(weights.tolist())} {rule}")
        if (sizes == most[0]).all():
            return None
    return sizes / most


# ---------------------------------------------------------------------------- any array


def _of_any(
    name: str,
    parts: list[Any],
    rule: Rule,
    sizes: Any,
    nonfinite: str,
    leading: tuple[int, ...],
) -> list[Any]:
    """The updates ``[steps, d]`` from blocks ``[steps, m, b, d]`` of the same micro-batches."""
    means = [_means(x, sizes) for x in parts]
    norms = global_norms(means, axis=-1)
    counts = None if sizes is None else _like(norms, sizes.sum(axis=2))
    if any(map(_traced, [norms, counts])):
        updates = _combined(rule, means, norms, counts)
    else:
        xp = namespace(norms)
        there = np.ones(norms.shape, bool) if sizes is None else sizes.any(axis=2)
        finite = np.array(xp.isfinite(norms).tolist())
        if nonfinite == "raise" and not (finite | ~there).all():
            step, j = np.argwhere(~finite & there)[0]
            place = (*map(int, np.unravel_index(step, leading)), int(j)) if leading else int(j)
            raise InvalidArgument(f"{name} must be finite; micro-batch {place} is not")
        kept = finite & there
        _check_left(name, kept, leading)
        if kept.all():
            updates = _combined(rule, means, norms, counts)
        else:
            rows = []
            for step, row in enumerate(kept):
                some = [_picked(x, step, row) for x in [*means, norms, counts]]
                rows.append(_combined(rule, some[:-2], some[-2], some[-1]))
            updates = [xp.concat(blocks, axis=0) for blocks in zip(*rows, strict=True)]
        if not all(bool(xp.all(xp.isfinite(u))) for u in updates):
            raise InvalidArgument(f"the update of rule={shown(rule)} must be finite")
    return [_cast(u, x) for u, x in zip(updates, parts, strict=True)]


def _check_left(name: str, kept: NDArray[np.bool_], leading: tuple[int, ...]) -> None:
    """Something must be left in every step."""
    if not kept.any(axis=1).all():
        step = tuple(map(int, np.unravel_index(kept.any(axis=1).argmin(), leading)))
        raise InvalidArgument(
            f"{name} leaves no finite micro-batch in step {step}, so nonfinite='drop' "
            "has nothing to average"
        )


def _picked(array: Any, step: int, kept: NDArray[np.bool_]) -> Any:
    """Some micro-batches of one step, ``[1, kept, …]``."""
    if array is None:
        return None
    xp = namespace(array)
    return xp.stack([array[step, int(j), ...] for j in np.flatnonzero(kept)])[None, ...]


def _means(x: Any, sizes: Any) -> Any:
    """X ``[steps, m, d]`` from ``[steps, m, b, d]``, in float32 or wider; NumPy's in float64."""
    xp, b = namespace(x), x.shape[2]
    least = np.float64 if xp is np else xp.float32
    wide = xp.astype(x, xp.result_type(x.dtype, least), copy=False)
    if b == 1:
        return wide[:, :, 0, :]
    if sizes is None or sizes.shape[2] == 1:
        return xp.sum(wide / b, axis=2)  # no sum of finite numbers overflows
    total = sizes.sum(axis=2)[..., None]
    own = namespace(sizes)
    shares = sizes / own.where(total > 0, total, 1.0)
    return xp.sum(wide * _like(wide, shares)[..., None], axis=2)


def global_norms(blocks: list[Any], *, axis: int | None) -> Any:
    """√ of the sum of squares of all blocks along an axis (None is all of them).

    In units of the largest, whose square would leave the range of float32 beyond 1e19; and with a
    derivative of 0 at 0.
    """
    xp = namespace(blocks[0])
    size = functools.reduce(xp.maximum, [xp.max(xp.abs(x), axis=axis) for x in blocks])
    usual = xp.isfinite(size) & (size > 0)
    size = xp.where(usual, size, 1.0)
    unit = size if axis is None else size[..., None]
    square = sum(xp.sum(xp.square(x / unit), axis=axis) for x in blocks)
    return xp.where(square == 0, 0.0, size * xp.sqrt(xp.where(square == 0, 1.0, square)))


def _combined(rule: Rule, means: list[Any], norms: Any, counts: Any) -> list[Any]:
    """Σ n_j s_j X_j / Σ n_j of every block."""
    xp, factors = namespace(norms), _factors(rule, norms)
    if counts is None:
        shares = factors / norms.shape[-1]
    else:
        shares = factors * (counts / xp.sum(counts, axis=-1, keepdims=True))
    return [xp.sum(shares[..., None] * x, axis=1) for x in means]


def _like(array: Any, numbers: Any) -> Any:
    """Numbers as an array of the library, the type and the device of another."""
    from array_api_compat import is_jax_array

    if is_jax_array(array):
        return namespace(array).asarray(numbers, dtype=array.dtype)
    return namespace(array).asarray(numbers, dtype=array.dtype, device=array.device)


def _cast(found: Any, given: Any) -> Any:
    """In the floating type of what was given; float64 for integers."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        return found
    return namespace(given).astype(found, given.dtype, copy=False)


def _factors(rule: Rule, norms: Any) -> Any:
    factors = rule.factors(norms)
    if isinstance(norms, np.ndarray):
        factors = np.asarray(factors)
    if tuple(factors.shape) != tuple(norms.shape):
        raise InvalidArgument(
            f"rule={shown(rule)} returned factors of shape {tuple(factors.shape)} for norms of "
            f"shape {tuple(norms.shape)}; they must be the same"
        )
    return factors


# ---------------------------------------------------------------------------- NumPy


def _of_numpy(
    name: str, x: NDArray[Any], rule: Rule, nonfinite: str, leading: tuple[int, ...]
) -> NDArray[np.floating]:
    """The updates ``[steps, d]`` of an array ``[steps, m, b, d]``, in blocks."""
    _, m, b, dim = x.shape
    parts, norms = measured_norms(x)
    out = np.empty((len(parts), dim), np.float64 if x.dtype.kind in "iu" else x.dtype)
    finite = np.isfinite(norms)
    if finite.all():
        factors = _factors(rule, norms.reshape(*leading, m))
        average(parts, factors.reshape(-1, m), np.ones(m, bool), out)
    elif nonfinite == "raise":
        check_finite(name, x.reshape(*leading, m * b, dim))
    else:
        _check_left(name, finite, leading)
        for step, kept in enumerate(finite):
            factors = np.zeros((1, m), norms.dtype)
            factors[:, kept] = _factors(rule, norms[step, kept])
            average(parts[step : step + 1], factors, kept, out[step : step + 1])
    check_finite(f"the update of rule={shown(rule)}", out)
    return out
