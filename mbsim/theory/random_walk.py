r"""The squared length of a sum of k independent uniform directions, as Gauss rules.

The draggers of a micro-batch add up to such a sum, S_k. In N dimensions

.. math:: |S_{k+1}|^2 = |S_k|^2 + 2\,|S_k|\,C + 1,

with C the cosine of a fresh uniform direction, independent of S_k. A polynomial of degree d in
the left side has, given S_k, an expectation that is a polynomial of degree d in |S_k|² (odd powers
of C vanish); so from a q-point Gauss rule of |S_k|² and one of C comes, exactly, the q-point Gauss
rule of |S_{k+1}|²: every rule here is exact for polynomials of degree below 2q. Source: the theory
page, section 9, in the place of whose random cosines stand their Gauss nodes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = ["MOST_POINTS", "Rule", "gauss_rule", "squared_length_rules"]

Array = NDArray[np.float64]
Rule: TypeAlias = tuple[Array, Array]  # nodes, and weights that add up to 1

# The recursion carries rules of this size; smaller ones are read off it.
MOST_POINTS = 24


def squared_length_rules(dimensions: int, most: int, points: int = MOST_POINTS) -> list[Rule]:
    """Gauss rules of |S_k|² for k = 0, …, `most`, in `dimensions` ≥ 1 dimensions.

    Args:
        dimensions: N, the dimension that the directions are uniform in.
        most: the largest k.
        points: how many nodes each rule has (fewer where |S_k|² takes fewer values), at most 24.

    >>> nodes, weights = squared_length_rules(dimensions=3, most=5, points=8)[5]
    >>> round(float(weights @ nodes), 12), round(float(weights @ (nodes - 5) ** 2), 12)  # 2k(k-1)/N
    (5.0, 13.333333333333)
    """
    # Ascending, so that each finds the one before it in the cache.
    return [_squared_length_rule(dimensions, k, points) for k in range(most + 1)]


@lru_cache(maxsize=4096)
def _squared_length_rule(dimensions: int, k: int, points: int) -> Rule:
    if k < 2:
        return np.full(1, float(k)), np.ones(1)
    if dimensions == 1:
        return _walk_on_a_line(k)
    diagonal, off_diagonal_sq = _squared_length_recurrence(dimensions, k)
    nodes, weights = gauss_rule(diagonal[:points], off_diagonal_sq[: points - 1])
    return np.maximum(k + _spread(dimensions, k) * nodes, 0), weights


@lru_cache(maxsize=4096)
def _squared_length_recurrence(dimensions: int, k: int) -> tuple[Array, Array]:
    """The recurrence coefficients of (|S_k|² − k)/spread."""
    nodes, weights = _squared_length_rule(dimensions, k - 1, MOST_POINTS)
    cosine, cosine_weights = _cosine_rule(dimensions)
    after = nodes[:, None] + 2 * np.sqrt(nodes)[:, None] * cosine + 1
    joint = weights[:, None] * cosine_weights
    return _recurrence((after.ravel() - k) / _spread(dimensions, k), joint.ravel())


def _spread(dimensions: int, k: int) -> float:
    """About the standard deviation of |S_k|², whose variance is 2k(k − 1)/N."""
    return k / math.sqrt(dimensions)


@lru_cache(maxsize=64)
def _cosine_rule(dimensions: int) -> Rule:
    """The cosine of a uniform direction in N ≥ 2 dimensions: density ∝ (1 − c²)^((N−3)/2)."""
    i, order = np.arange(1, MOST_POINTS), dimensions / 2 - 1
    with np.errstate(invalid="ignore"):
        off_sq = i * (i + 2 * order - 1) / (4 * (i + order) * (i + order - 1))
    if order == 0:
        off_sq[0] = 0.5  # Chebyshev: the limit of 0/0
    return gauss_rule(np.zeros(MOST_POINTS), off_sq)


def gauss_rule(diagonal: Array, off_diagonal_sq: Array) -> Rule:
    """Nodes and weights from three-term recurrence coefficients (Golub and Welsch, 1969)."""
    jacobi = np.diag(diagonal)
    below = np.arange(1, diagonal.size)
    jacobi[below, below - 1] = np.sqrt(off_diagonal_sq)  # eigh reads the lower triangle alone
    nodes, vectors = np.linalg.eigh(jacobi)
    return nodes, np.square(vectors[0])


def _recurrence(nodes: Array, weights: Array) -> tuple[Array, Array]:
    """Recurrence coefficients of a discrete law with many more than 24 nodes (Stieltjes)."""
    diagonal, off_sq = np.empty(MOST_POINTS), np.empty(MOST_POINTS - 1)
    before, now, norm = np.zeros_like(nodes), np.sqrt(weights), 0.0
    for i in range(MOST_POINTS):
        diagonal[i] = (nodes * now) @ now
        if i < MOST_POINTS - 1:
            after = (nodes - diagonal[i]) * now - norm * before
            off_sq[i] = after @ after
            norm = math.sqrt(off_sq[i])
            before, now = now, after / norm
    return diagonal, off_sq


def _walk_on_a_line(k: int) -> Rule:
    """In one dimension directions are ±1: |S_k| = |k − 2 Binomial(k, ½)|, no Gauss rule needed."""
    ups = np.arange(k // 2 + 1)
    log_ways = special.gammaln(k + 1) - special.gammaln(ups + 1) - special.gammaln(k - ups + 1)
    weights = np.exp(log_ways - k * math.log(2)) * np.where(2 * ups == k, 1, 2)
    return np.square(k - 2.0 * ups), weights
