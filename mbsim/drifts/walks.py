r"""The squared length of a sum of k independent uniform directions, as a quantile function.

The draggers of a micro-batch add up to such a sum, S_k. In N dimensions

.. math:: |S_{k+1}|^2 = |S_k|^2 + 2\,|S_k|\,C + 1,

with C the cosine of a fresh uniform direction, independent of S_k. A law of |S_k|² is carried from
k to k + 1 as the means of its bins, which are cut at quantiles, close at both ends, where minima
are made; C by its Gauss nodes. Means and variances, k and 2k(k − 1)/N, are kept exactly. Source:
the theory page, sections 7 and 9.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special

from mbsim._shared.arrays import Array

__all__ = ["line_walk", "squared_length"]

_BINS, _COSINES = 512, 32
# Where bins are cut, as probabilities.
_CUTS: Array = np.square(np.sin(np.arange(_BINS + 1) * (math.pi / (2 * _BINS))))
_WEIGHTS = np.diff(_CUTS)
# From here on the shape of the law goes to that of a gamma variable as 1/k.
_MOST_STEPS = 128


def squared_length(dimensions: int, k: int, share: Array) -> Array:
    """|S_k|² at some of its quantiles.

    Args:
        dimensions: N ≥ 2.
        k: at least 2.
        share: probabilities strictly between 0 and 1.

    >>> squared_length(3, 2, np.array([0.25, 0.5]))                 # |S_2|² is uniform on [0, 4]
    array([1., 2.])
    """
    edges = _edges(dimensions, k)
    bin_ = np.searchsorted(_CUTS, share, side="right") - 1
    inside = (share - _CUTS[bin_]) / _WEIGHTS[bin_]
    return edges[bin_] + inside * (edges[bin_ + 1] - edges[bin_])


def line_walk(k: int) -> tuple[Array, Array]:
    """In one dimension directions are ±1: |S_k| = |k − 2 Binomial(k, ½)|, values and weights.

    >>> line_walk(3)
    (array([9., 1.]), array([0.25, 0.75]))
    """
    ups = np.arange(k // 2 + 1)
    log_ways = special.gammaln(k + 1) - special.gammaln(ups + 1) - special.gammaln(k - ups + 1)
    weights = np.exp(log_ways - k * math.log(2)) * np.where(2 * ups == k, 1, 2)
    return np.square(k - 2.0 * ups), weights / weights.sum()


@lru_cache(maxsize=4096)
def _edges(dimensions: int, k: int) -> Array:
    """|S_k|² at the cuts."""
    if k == 2:
        half = (dimensions - 1) / 2
        return np.asarray(4 * special.betaincinv(half, half, _CUTS))
    means = _means(dimensions, k)
    between = (means[1:] + means[:-1]) / 2
    first, last = max(0.0, 2 * means[0] - between[0]), min(2 * means[-1] - between[-1], k**2)
    return np.concatenate([[first], between, [last]])


@lru_cache(maxsize=4096)
def _means(dimensions: int, k: int) -> Array:
    """The means of |S_k|² over the bins."""
    if k == 2:
        # The density of a cosine, (1 − c²)^(half − 1) over its integral, has an integral times c.
        half = (dimensions - 1) / 2
        cosine = _edges(dimensions, 2) / 2 - 1
        log_size = math.lgamma(half + 0.5) - math.lgamma(half + 1) - math.log(4 * math.pi) / 2
        moment = -math.exp(log_size) * np.maximum(1 - np.square(cosine), 0) ** half
        return np.asarray(np.maximum(2 + 2 * np.diff(moment) / _WEIGHTS, 0))
    if k > _MOST_STEPS:
        limit = special.gammaincinv(dimensions / 2, (_CUTS[1:] + _CUTS[:-1]) / 2)
        limit = (limit - dimensions / 2) / math.sqrt(dimensions / 2)
        last = (_means(dimensions, _MOST_STEPS) - _MOST_STEPS) / _deviation(dimensions, _MOST_STEPS)
        return _with_moments(limit + (last - limit) * (_MOST_STEPS / k), dimensions, k)
    before = _means(dimensions, k - 1)
    cosine, weights = _cosine_rule(dimensions)
    after = (before[:, None] + 2 * np.sqrt(before)[:, None] * cosine + 1).ravel()
    mass = (_WEIGHTS[:, None] * weights).ravel()
    order = np.argsort(after)
    below = np.append(0.0, np.cumsum(mass[order]))
    moment = np.append(0.0, np.cumsum((mass * after)[order]))
    return _with_moments(
        np.diff(np.interp(_CUTS * below[-1], below, moment)) / _WEIGHTS, dimensions, k
    )


def _deviation(dimensions: int, k: int) -> float:
    """The standard deviation of |S_k|²."""
    return math.sqrt(2 * k * (k - 1) / dimensions)


def _with_moments(means: Array, dimensions: int, k: int) -> Array:
    """The means of bins, moved and stretched to the mean and the variance that they should have."""
    centred = means - _WEIGHTS @ means
    stretch = _deviation(dimensions, k) / math.sqrt(_WEIGHTS @ np.square(centred))
    return np.asarray(np.maximum(k + stretch * centred, 0))


@lru_cache(maxsize=64)
def _cosine_rule(dimensions: int) -> tuple[Array, Array]:
    """Gauss nodes of the cosine of a uniform direction, of density ∝ (1 − c²)^((N−3)/2).

    From its three-term recurrence (Golub and Welsch, 1969).
    """
    i, order = np.arange(1, _COSINES), dimensions / 2 - 1
    squares = i * (i + 2 * order - 1) / np.maximum(4 * (i + order) * (i + order - 1), 1e-300)
    if order == 0:
        squares[0] = 0.5  # Chebyshev: the limit of 0/0
    nodes, vectors = np.linalg.eigh(np.diag(np.sqrt(squares), -1), UPLO="L")
    return nodes, np.square(vectors[0])
