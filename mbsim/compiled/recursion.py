"""The drift's recursion of the squared gradient norm, compiled."""

from __future__ import annotations

import math

from numba import float64, int64

from mbsim.compiled.jit import REALS, compiled

__all__ = ["descend"]


@compiled(float64(float64, float64, int64, float64, float64, REALS, REALS))
def descend(square, e, steps, first, gap, rates, moments):
    """r² after so many steps of r² ← r² − 2e r A(r) + e² M(r).

    A(r)/r and M(r) are given at ln r = `first`, `first` + `gap`, …, as themselves and as logarithms
    of M; between them they are interpolated, beyond them A/r stays and M/r² or M.
    """
    last = rates.size - 1
    for _ in range(steps):
        if not 0 < square < 1e300:
            break
        place = (0.5 * math.log(square) - first) / gap
        entry = min(max(int(place), 0), last - 1)
        share = min(max(place - entry, 0.0), 1.0)
        rate = rates[entry] + share * (rates[entry + 1] - rates[entry])
        moment = math.exp(moments[entry] + share * (moments[entry + 1] - moments[entry]))
        if place > last:
            moment *= math.exp(2 * gap * (place - last))
        square = square * (1 - 2 * e * rate) + e * e * moment
        square = max(square, 1e-300)
    return square
