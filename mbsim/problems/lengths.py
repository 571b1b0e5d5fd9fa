"""Euclidean norms that neither overflow nor vanish where a square would.

The plain arithmetic of squares is kept wherever it will do. Where it will not, numbers are divided
by a power of two, which is exact: no digit of the others changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_plain", "norms_of", "not_plain", "unit_of"]

Array = NDArray[np.float64]

# Sizes whose squares, and squares of those, are far from the ends of float64.
_LEAST, _MOST = 2.0**-200, 2.0**200


def is_plain(sizes: Array) -> bool:
    """Whether all sizes can be squared twice; not so for 0, NaN and infinity."""
    return not sizes.size or bool(sizes.min() > _LEAST and sizes.max() < _MOST)


def not_plain(sizes: Array) -> NDArray[np.bool_]:
    """Where :func:`is_plain` does not hold."""
    return ~((sizes > _LEAST) & (sizes < _MOST))


def unit_of(sizes: Array) -> Array:
    """The power of two next to each size, to be divided by; 1 for 0, NaN and infinity."""
    exponents = np.clip(np.frexp(sizes)[1], -1021, 1023)
    return np.where(np.isfinite(sizes) & (sizes > 0), np.ldexp(1.0, exponents), 1.0)


def norms_of(vectors: Array) -> Array:
    """‖·‖ over the last axis.

    >>> norms_of(np.array([[3.0, 4.0], [3e200, 4e200], [0.0, 0.0]]))
    array([5.e+000, 5.e+200, 0.e+000])
    """
    with np.errstate(over="ignore"):
        norms: Array = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    if is_plain(norms):
        return norms
    unit = unit_of(np.abs(vectors).max(axis=-1, initial=0))
    scaled = vectors / unit[..., None]
    return unit * np.sqrt(np.einsum("...i,...i->...", scaled, scaled))
