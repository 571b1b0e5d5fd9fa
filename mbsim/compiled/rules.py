"""Clipping rules, compiled: norms of one step in, factors out. See :mod:`mbsim.clipping`."""

from __future__ import annotations

import numpy as np

from mbsim.compiled.jit import helper

__all__ = ["fixed", "none", "ranked", "smallest", "trimmed", "unit"]

_TINY = float(np.finfo(np.float64).tiny)


def none(norms, parameters, factors):
    """Every factor is 1."""
    for j in range(norms.size):
        factors[j] = 1


def smallest(norms, parameters, factors):
    """ρ/x_j."""
    least = norms[0]
    for j in range(1, norms.size):
        least = min(least, norms[j])
    for j in range(norms.size):
        factors[j] = least / norms[j] if norms[j] > 0 else 0.0


def fixed(norms, parameters, factors):
    """min(1, C/x_j), the parameter being C."""
    for j in range(norms.size):
        factors[j] = parameters[0] / norms[j] if norms[j] > parameters[0] else 1.0


@helper
def _of_rank(norms, rank, room):
    """The norm of a rank, 0 the smallest, by Hoare's selection (1961) in `room`."""
    for j in range(norms.size):
        room[j] = norms[j]
    low, high = 0, norms.size - 1
    while low < high:
        pivot = room[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while room[i] < pivot:
                i += 1
            while pivot < room[j]:
                j -= 1
            if i <= j:
                room[i], room[j] = room[j], room[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            low = high = rank
    return room[rank]


def ranked(norms, parameters, factors):
    """min(1, Q/x_j), Q the norm whose rank is the parameter's share of m − 1, rounded down."""
    rank = int(np.floor(parameters[0] * (norms.size - 1)))
    threshold = _of_rank(norms, rank, factors)
    for j in range(norms.size):
        factors[j] = threshold / norms[j] if norms[j] > threshold else 1.0


def trimmed(norms, parameters, factors):
    """m/k for the k shortest, the parameter being the share of the others; ties share."""
    m = norms.size
    kept = max(1, m - int(np.floor(parameters[0] * m)))
    last = _of_rank(norms, kept - 1, factors)
    places, tied = kept, 0
    for j in range(m):
        places -= norms[j] < last
        tied += norms[j] == last
    for j in range(m):
        factors[j] = m / kept if norms[j] < last else 0.0
        if norms[j] == last:
            factors[j] = places / tied * (m / kept)


def unit(norms, parameters, factors):
    """1/(x_j + ε), the parameter being ε; 0 where that is below the least normal number."""
    for j in range(norms.size):
        shifted = norms[j] + parameters[0]
        factors[j] = 1 / shifted if shifted >= _TINY else 0.0
