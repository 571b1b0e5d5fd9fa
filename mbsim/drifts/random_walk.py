r"""The squared length of a sum of k independent uniform directions: its law, without sampling.

The draggers of a micro-batch add up to such a sum, S_k. In N dimensions

.. math:: |S_{k+1}|^2 = |S_k|^2 + 2\,|S_k|\,C + 1,

with C the cosine of a fresh uniform direction, independent of S_k. A polynomial of degree d in
the left side has, given S_k, an expectation that is a polynomial of degree d in |S_k|² (odd powers
of C vanish); so from a q-point Gauss rule of |S_k|² and one of C comes, exactly, the q-point Gauss
rule of |S_{k+1}|²: every rule here is exact for polynomials of degree below 2q.

The characteristic function follows from a rule as far as the rule can follow its oscillation.
Further out serves the expansion of the density in Laguerre polynomials times the gamma density
that it tends to for large k (shape N/2, mean k): its coefficients are expectations of polynomials,
exact by the rule, and its Fourier transform is written down. Source: the theory page, section 9,
whose random cosines are replaced by their Gauss nodes.

Where nothing else spreads a norm its law must itself be resolved, tails, kinks and poles of the
density and all. There |S_k|² is *binned*: its range is cut at quantiles, close at both ends, and
every bin is replaced by its mean (:func:`binned`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = [
    "MOST_POINTS",
    "Rule",
    "SquaredLength",
    "binned",
    "gauss_rule",
    "powers",
    "squared_lengths",
    "transforms",
]

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Rule: TypeAlias = tuple[Array, Array]  # nodes, and weights that add up to 1

# The recursion carries rules of this size; smaller ones are read off it.
MOST_POINTS = 24
# How far a rule follows the characteristic function: in standard deviations where the law is
# nearly Gaussian (measured against rules of 150 points), and surely this phase per point.
_REACH = {16: 4.2, MOST_POINTS: 5.5}
_PHASE = 1.6
# Where a rule reaches so many standard deviations by its phase, the expansion is not needed.
_FAR = 9.0
# Binned laws are carried from k to k + 1 in so many bins, with so many cosines. Against the exact
# law in 3 dimensions the mean of the smallest of m lengths is then right to (m/512)² (m ≤ 64).
_BINS, _COSINES = 1024, 64
# In so many dimensions |S_k|² is so nearly Gaussian that its rule reaches far enough.
_NEARLY_GAUSSIAN = 10_000


@dataclass(frozen=True, eq=False)
class SquaredLength:
    """The law of |S_k|².

    Attributes:
        k: how many directions; `dimensions`: N.
        rule: its Gauss rule.
        expansion: E L_j(|S_k|²/β), j = 0, 1, …, with β = 2k/N and L_j the Laguerre polynomials of
            index N/2 − 1; empty where the rule serves alone.
    """

    k: int
    dimensions: int
    rule: Rule
    expansion: Array

    @property
    def deviation(self) -> float:
        """The standard deviation of |S_k|²."""
        return math.sqrt(2 * self.k * (self.k - 1) / self.dimensions)

    def band(self, decay: float) -> float:
        """The frequency beyond which |φ| is below e^-decay, or φ is not known."""
        if self.rule[0].size == 1 or self.dimensions == 1:
            return math.inf
        if self.expansion.size:
            exponent = min(4 * decay / self.dimensions, 100.0)
            return math.sqrt(math.expm1(exponent)) * self.dimensions / (2 * self.k)
        points = self.rule[0].size
        reach = min(math.sqrt(2 * decay), _REACH.get(points, 0.0)) / self.deviation
        return max(reach, _phase_reach(self.k, points))


def _phase_reach(k: int, points: int) -> float:
    """The frequency that a rule surely follows, for |S_k|² lies within k²/2 of the middle."""
    return 2 * _PHASE * points / k**2


def transforms(
    lengths: Sequence[SquaredLength], step: float, count: int, decay: float = 32.0
) -> Complex:
    """E exp(iω|S_k|²) at ω = 0, step, …: ``[count, lengths]``.

    It is 0 where its size is known to be below e^-decay, and where it is not known.

    >>> law = squared_lengths(dimensions=3, most=2)[2]         # |S_2|² is uniform on [0, 4]
    >>> transforms([law], step=np.pi / 4, count=2)[:, 0].round(9)
    array([1.+0.j        , 0.+0.63661977j])
    """
    found = np.empty((count, len(lengths)), dtype=np.complex128)
    expanded = [i for i, law in enumerate(lengths) if law.expansion.size]
    if expanded:
        found[:, expanded] = _expanded([lengths[i] for i in expanded], step, count)
    for i, law in enumerate(lengths):
        if not law.expansion.size:
            nodes, weights = law.rule
            # Not "@": BLAS would wake its threads for so little.
            found[:, i] = np.einsum("ij,j->i", powers(nodes, step, count), weights)
        if step * (count - 1) > law.band(decay):
            found[int(law.band(decay) / step) + 1 :, i] = 0
    return found


def _expanded(lengths: Sequence[SquaredLength], step: float, count: int) -> Complex:
    """The transforms of Laguerre expansions: (1 − iβω)^(−N/2) Σ_j E L_j (1 − 1/(1 − iβω))^j."""
    shape = lengths[0].dimensions / 2
    order = np.argsort([-law.expansion.size for law in lengths])
    laws = [lengths[i] for i in order]  # the longest expansions first
    sizes = np.array([law.expansion.size for law in laws])
    k = np.array([law.k for law in laws])
    scaled = 1 - 1j * (step / shape) * np.multiply.outer(k, np.arange(count))
    ratio = 1 - 1 / scaled
    total = np.zeros_like(scaled)
    for j in range(sizes[0] - 1, -1, -1):
        there = np.count_nonzero(sizes > j)
        total[:there] *= ratio[:there]
        total[:there] += np.array([[law.expansion[j]] for law in laws[:there]])
    total *= np.exp(-shape * np.log(scaled))
    found = np.empty_like(total)
    found[order] = total
    return found.T


def powers(phases: Array, step: float, count: int) -> Complex:
    """exp(i j step phases) for j = 0, …, count − 1: ``[count, phases]``."""
    block = 16
    small = np.exp(1j * step * np.multiply.outer(np.arange(block), phases))
    large = np.exp(1j * step * block * np.multiply.outer(np.arange(-(-count // block)), phases))
    return (large[:, None] * small).reshape(-1, phases.size)[:count]


def squared_lengths(dimensions: int, most: int, points: int = MOST_POINTS) -> list[SquaredLength]:
    """The laws of |S_k|² for k = 0, …, `most`, in `dimensions` ≥ 1 dimensions.

    Args:
        dimensions: N, the dimension that the directions are uniform in.
        most: the largest k.
        points: how many nodes each rule has (fewer where |S_k|² takes fewer values), at most 24.

    >>> nodes, weights = squared_lengths(dimensions=3, most=5, points=8)[5].rule
    >>> round(float(weights @ nodes), 12), round(float(weights @ (nodes - 5) ** 2), 12)  # 2k(k-1)/N
    (5.0, 13.333333333333)
    """
    # Ascending, so that each finds the one before it in the cache.
    return [_squared_length(dimensions, k, points) for k in range(most + 1)]


@lru_cache(maxsize=4096)
def _squared_length(dimensions: int, k: int, points: int) -> SquaredLength:
    rule = _rule(dimensions, k, points)
    expansion = np.zeros(0)
    if k > 2 and 1 < dimensions <= _NEARLY_GAUSSIAN:
        deviation = math.sqrt(2 * k * (k - 1) / dimensions)
        if _phase_reach(k, points) * deviation < _FAR:
            expansion = _expansion(dimensions, k)
    return SquaredLength(k=k, dimensions=dimensions, rule=rule, expansion=expansion)


@lru_cache(maxsize=4096)
def _rule(dimensions: int, k: int, points: int) -> Rule:
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
    nodes, weights = _rule(dimensions, k - 1, MOST_POINTS)
    cosine, cosine_weights = _cosine_rule(dimensions, MOST_POINTS)
    after = nodes[:, None] + 2 * np.sqrt(nodes)[:, None] * cosine + 1
    joint = weights[:, None] * cosine_weights
    return _recurrence((after.ravel() - k) / _spread(dimensions, k), joint.ravel())


def _spread(dimensions: int, k: int) -> float:
    """About the standard deviation of |S_k|²."""
    return k / math.sqrt(dimensions)


@lru_cache(maxsize=64)
def _cosine_rule(dimensions: int, points: int) -> Rule:
    """The cosine of a uniform direction in N ≥ 2 dimensions: density ∝ (1 − c²)^((N−3)/2)."""
    i, order = np.arange(1, points), dimensions / 2 - 1
    with np.errstate(invalid="ignore"):
        off_sq = i * (i + 2 * order - 1) / (4 * (i + order) * (i + order - 1))
    if order == 0:
        off_sq[0] = 0.5  # Chebyshev: the limit of 0/0
    return gauss_rule(np.zeros(points), off_sq)


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


def _quantiles(bins: int) -> Array:
    """Where bins are cut, as probabilities: sin²(πi/2n), close where minima and maxima are made."""
    cuts: Array = np.square(np.sin(np.arange(bins + 1) * (math.pi / (2 * bins))))
    return cuts


def binned(dimensions: int, k: int, bins: int) -> Rule:
    """|S_k|² by the means of its bins; by its values where they are few.

    What is smooth in |S_k|² has an error that falls with the square of `bins`, whatever the density
    of |S_k|² looks like.

    >>> nodes, weights = binned(dimensions=3, k=2, bins=4)     # |S_2|² is uniform on [0, 4]
    >>> nodes.round(3), weights.round(3)
    (array([0.293, 1.293, 2.707, 3.707]), array([0.146, 0.354, 0.354, 0.146]))
    """
    if k < 2 or dimensions == 1:
        return _rule(dimensions, k, MOST_POINTS)
    for i in range(2, k):
        _binned(dimensions, i)  # ascending, so that each finds the one before it in the cache
    return _in_bins(*_binned(dimensions, k), bins)


@lru_cache(maxsize=1024)
def _binned(dimensions: int, k: int) -> Rule:
    if k == 2:
        cosine, weights = _binned_cosine(dimensions)
        return np.maximum(2 + 2 * cosine, 0), weights
    nodes, weights = _binned(dimensions, k - 1)
    # Gauss nodes keep the variance, and 1024 different lengths blur them.
    cosine, cosine_weights = _cosine_rule(dimensions, _COSINES)
    after = nodes[:, None] + 2 * np.sqrt(nodes)[:, None] * cosine + 1
    nodes, weights = _in_bins(after.ravel(), (weights[:, None] * cosine_weights).ravel(), _BINS)
    return np.maximum(nodes, 0), weights


def _in_bins(nodes: Array, weights: Array, bins: int) -> Rule:
    """The means of the bins of a discrete law, whose atoms are shared among bins."""
    order = np.argsort(nodes)
    mass = np.append(0.0, np.cumsum(weights[order]))
    moment = np.append(0.0, np.cumsum((weights * nodes)[order]))
    cuts = _quantiles(bins)
    return np.diff(np.interp(cuts * mass[-1], mass, moment)) / np.diff(cuts), np.diff(cuts)


def _binned_cosine(dimensions: int) -> Rule:
    """The cosine of a uniform direction in N ≥ 2 dimensions, whose density has an integral."""
    cuts, half = _quantiles(_BINS), (dimensions - 1) / 2
    cosine = 2 * special.betaincinv(half, half, cuts) - 1
    log_size = math.lgamma(half + 0.5) - math.lgamma(half + 1) - math.log(4 * math.pi) / 2
    moment = -math.exp(log_size) * (1 - np.square(cosine)) ** half
    return np.diff(moment) / np.diff(cuts), np.diff(cuts)


def _walk_on_a_line(k: int) -> Rule:
    """In one dimension directions are ±1: |S_k| = |k − 2 Binomial(k, ½)|, no Gauss rule needed."""
    ups = np.arange(k // 2 + 1)
    log_ways = special.gammaln(k + 1) - special.gammaln(ups + 1) - special.gammaln(k - ups + 1)
    weights = np.exp(log_ways - k * math.log(2)) * np.where(2 * ups == k, 1, 2)
    return np.square(k - 2.0 * ups), weights


@lru_cache(maxsize=4096)
def _expansion(dimensions: int, k: int) -> Array:
    """E L_j(|S_k|²/β) for j below twice the points of the rule, without negligible last ones."""
    nodes, weights = _rule(dimensions, k, MOST_POINTS)
    x, index = nodes * (dimensions / (2 * k)), dimensions / 2 - 1
    before, now = np.zeros_like(x), np.ones_like(x)
    expansion, log_size = np.empty((2, 2 * MOST_POINTS))
    for j in range(2 * MOST_POINTS):
        expansion[j] = weights @ now
        before, now = now, ((2 * j + 1 + index - x) * now - (j + index) * before) / (j + 1)
        # In the mean square of the gamma law, L_j has the size √(Γ(j + N/2)/(j! Γ(N/2))).
        log_size[j] = math.lgamma(j + index + 1) - math.lgamma(j + 1) - math.lgamma(index + 1)
    relative = np.abs(expansion) * np.exp(-log_size / 2)
    return expansion[: int(np.flatnonzero(relative > 1e-8)[-1]) + 1]
