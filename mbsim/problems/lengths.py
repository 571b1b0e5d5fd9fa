"""Euclidean norms that neither overflow nor vanish where a square would.

The plain arithmetic of squares is kept wherever it will do. Where it will not, numbers are divided
by a power of two, which is exact: no digit of the others changes.
"""

from __future__ import annotations

import numpy as np

from mbsim._shared.arrays import Array

__all__ = ["norms_of", "unit_of"]

# Sizes whose squares, and squares of those, are far from the ends of float64.
_LEAST, _MOST = 2.0**-200, 2.0**200


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
    if not norms.size or (norms.min() > _LEAST and norms.max() < _MOST):
        return norms
    unit = unit_of(np.abs(vectors).max(axis=-1, initial=0))
    scaled = vectors / unit[..., None]
    return unit * np.sqrt(np.einsum("...i,...i->...", scaled, scaled))
