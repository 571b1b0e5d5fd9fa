"""Sums over arrays, compiled: in a fixed order, and not each addition waiting for the last."""

from __future__ import annotations

from mbsim.compiled.jit import helper

__all__ = ["dot"]


@helper
def dot(one, other, start, stop):
    """⟨one, other⟩ over some places, as eight sums."""
    a = b = c = d = e = f = g = h = 0.0
    last = stop - (stop - start) % 8
    for i in range(start, last, 8):
        a += one[i] * other[i]
        b += one[i + 1] * other[i + 1]
        c += one[i + 2] * other[i + 2]
        d += one[i + 3] * other[i + 3]
        e += one[i + 4] * other[i + 4]
        f += one[i + 5] * other[i + 5]
        g += one[i + 6] * other[i + 6]
        h += one[i + 7] * other[i + 7]
    for i in range(last, stop):
        a += one[i] * other[i]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))
