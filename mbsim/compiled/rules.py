"""Clipping rules, compiled: norms of one step in, factors out. See :mod:`mbsim.clipping`."""

from __future__ import annotations

import numpy as np

__all__ = ["fixed", "none", "ranked", "smallest", "unit"]

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


def ranked(norms, parameters, factors):
    """min(1, Q/x_j), Q the norm whose rank is the parameter's share of m − 1, rounded down.

    Found by Hoare's selection (1961) in the room for the factors.
    """
    for j in range(norms.size):
        factors[j] = norms[j]
    rank = int(np.floor(parameters[0] * (norms.size - 1)))
    low, high = 0, norms.size - 1
    while low < high:
        pivot = factors[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while factors[i] < pivot:
                i += 1
            while pivot < factors[j]:
                j -= 1
            if i <= j:
                factors[i], factors[j] = factors[j], factors[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            low = high = rank
    threshold = factors[rank]
    for j in range(norms.size):
        factors[j] = threshold / norms[j] if norms[j] > threshold else 1.0


def unit(norms, parameters, factors):
    """1/(x_j + ε), the parameter being ε; 0 where that is below the least normal number."""
    for j in range(norms.size):
        shifted = norms[j] + parameters[0]
        factors[j] = 1 / shifted if shifted >= _TINY else 0.0
