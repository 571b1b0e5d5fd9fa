r"""Algorithm 1 on an array of NumPy's, in blocks: in float64 or wider, with little memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsim.errors import InvalidArgument

# Means held at a time (1 MiB in float64), and the fewest columns of them, to read memory in order.
_BLOCK, _COLUMNS = 2**17, 2**14


def measured_norms(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.floating]]:
    """‖X_j‖ for x ``[steps, m, b, d]``, not finite where an example is not, ``[steps, m]``.

    Beside them x again, or the means X in its place, ``[steps, m, 1, d]``, if they are few. The
    type of the norms is float64, or extended precision where the squares of float64 would not do.
    """
    parts, norms = _measured(x, np.promote_types(x.dtype, np.float64))
    if not _plain(norms).all() and x.dtype.kind in "fiu":
        # Which norms are not what they seem: NaN and a true 0 are. (An unsigned −x would wrap.)
        most, least = x.max(axis=(-1, -2)), x.min(axis=(-1, -2))
        size = np.maximum(most.astype(norms.dtype), -least.astype(norms.dtype))
        if (np.isfinite(size) & (size > 0) & ~_plain(norms)).any():
            if np.finfo(np.longdouble).maxexp <= np.finfo(norms.dtype).maxexp:
                raise InvalidArgument(
                    f"gradients of size {size[np.isfinite(size)].max()!s} are beyond what this "
                    "platform's floating point can clip safely; scale them into [1e-70, 1e70]"
                )
            return _measured(x, np.dtype(np.longdouble))
    return parts, norms


def _plain(norms: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Norms whose squares and ratios are far from the ends of their type."""
    limit = np.ldexp(norms.dtype.type(1), np.finfo(norms.dtype).maxexp // 4)
    return (norms > 1 / limit) & (norms < limit)


def _measured(x: NDArray[Any], kind: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.floating]]:
    steps, m, b, d = x.shape
    squares = np.zeros((steps, m), kind)
    few = b > 1 and 16 * kind.itemsize * steps * m * d <= x.nbytes
    means = np.empty((steps, m, 1, d), kind) if few else x
    with np.errstate(all="ignore"):  # what is not finite is seen by the caller
        for step, columns, groups in _blocks(x.shape):
            for group in groups:
                block = _means(x[step, group, :, columns], kind)
                squares[step, group] += np.einsum("smd,smd->sm", block, block)
                if few:
                    means[step, group, 0, columns] = block
    return means, np.sqrt(squares)


def average(
    x: NDArray[Any], factors: NDArray[np.floating], kept: NDArray[np.bool_], out: NDArray[Any]
) -> None:
    """(1/m) Σ_j s_j X_j over the micro-batches that are kept, for x ``[steps, m, b, d]``."""
    kind = np.promote_types(factors.dtype, np.float64)
    with np.errstate(all="ignore"):  # the caller looks whether the result is finite
        for step, columns, groups in _blocks(x.shape):
            total = np.zeros((), kind)
            for group in groups:
                block = _means(x[step, group, :, columns], kind)
                weights = factors[step, group]
                if not kept[group].all():
                    block, weights = block[:, kept[group]], weights[:, kept[group]]
                total = total + (weights[:, None] @ block)[:, 0]
            out[step, columns] = total / kept.sum()


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Steps, columns, and groups of micro-batches that together are all of them."""
    steps, m, _, d = shape
    columns = min(d, max(_COLUMNS, _BLOCK // m))
    rows, at_once = min(m, _BLOCK // columns), max(1, _BLOCK // (m * d))
    groups = [slice(j, j + rows) for j in range(0, m, rows)]
    for i in range(0, steps, at_once):
        for c in range(0, d, columns):
            yield slice(i, i + at_once), slice(c, c + columns), groups


def _means(examples: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """``[steps, m, b, d]`` to ``[steps, m, d]``, added up in `kind` without a copy in it."""
    b = examples.shape[2]
    if b == 1:
        return examples[:, :, 0].astype(kind, copy=False)
    means: NDArray[Any] = np.add.reduce(examples, axis=2, dtype=kind)
    means /= b
    return means
