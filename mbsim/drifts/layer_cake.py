r"""One step's progress and second moment from the law of a single micro-batch (layer cake).

A threshold Q that is one of the norms, the (K+1)-th smallest of m, is above t when at most K
norms are not; and min(x, Q) = ∫ 1{t < x, t < Q} dt. Micro-batches are independent (given the
direction h that draggers share), so with P_K(n, t) = P(Bin(n, 1 − S(t)) ≤ K), exactly,

.. math::

   A &= \int G \, P_K(m-1) \, dt, \qquad E\min(x, Q)^2 = \int 2t\, S\, P_K(m-1) \, dt, \\
   M &= \tfrac1m E\min(x, Q)^2 + (1 - \tfrac1m) \cdot 2 \int \Big[
        G\,\big(t\,G\, P_K(m-2) + G^{\le} P_{K-1}(m-2)\big) + \text{the same with } H \Big] dt,

where S(t) = P(x > t), G(t) = E[⟨X, e⟩/x; x > t], G^≤(t) = E[⟨X, e⟩; x ≤ t], and H, H^≤ are the same
along h. The last integral is E⟨e_1, e_2⟩ min(x_1, Q) min(x_2, Q): of the two levels s ≤ t that
come in, the micro-batch with the lower may be among the K that are not above t. K = 0 is the
smallest norm, and the theory page's section 7.

The same from a sample, without bias: a subset of m of N micro-batches, drawn without replacement,
has its (K+1)-th smallest norm at the i-th place of the sorted sample with the probability
C(i−1, K) C(N−i, m−1−K)/C(N, m), and given that its other members are uniform among those below and
those above. So the mean over all subsets, a U-statistic, is a sum over i of prefix and suffix sums;
putting the sample in the place of the law instead would have a bias of about m²/2N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mbsim.drifts.micro_batch_law import Tails

__all__ = [
    "Pool",
    "from_factors",
    "from_own_factors",
    "from_pool",
    "from_tails",
    "step_of_lengths",
]

Array = NDArray[np.float64]


def from_tails(tails: Tails, m: int, rank: int) -> tuple[float, float]:
    """A and M where the threshold is the norm of `rank` K (0 is the smallest) among m.

    Args:
        tails: S, G and H, fine enough for S^(m−1).
        m: the number of micro-batches.
        rank: K, from 0 to m − 1.

    Returns:
        A and M, in the units of the tails.
    """
    below = 1 - tails.survival
    at_most = _binomial_cdf(rank, m - 1, below)
    # Sums of products, not "@": BLAS would wake its threads for so little.
    progress = (tails.dt * tails.along * at_most).sum()
    second = (tails.dt * 2 * tails.t * tails.survival * at_most).sum() / m
    if m > 1:
        above, one_below = _binomial_cdf(rank, m - 2, below), _binomial_cdf(rank - 1, m - 2, below)
        pairs = np.zeros_like(tails.t)
        for cosine, sunk in (
            (tails.along, tails.along_below),
            (tails.shared, tails.shared_below),
        ):
            pairs += cosine * (tails.t * cosine * above + sunk * one_below)
        second += (1 - 1 / m) * 2 * (tails.dt * pairs).sum()
    return float(progress), float(second)


def _binomial_cdf(most: int, count: int, probability: Array) -> Array:
    """P(Bin(count, probability) ≤ most)."""
    if most < 0:
        return np.zeros_like(probability)
    if most >= count:
        return np.ones_like(probability)
    cdf: Array = (1 - probability) ** count if most == 0 else special.bdtr(most, count, probability)
    return cdf


def step_of_lengths(along: float, shared: float, square: float, m: int) -> tuple[float, float]:
    """A and M of a rule that gives X the length ℓ(x), whatever the other norms are.

    A = E ℓ cos(X, e) and M = E ℓ²/m + (1 − 1/m)(A² + (E ℓ cos(X, h))²), by independence.

    >>> step_of_lengths(along=0.5, shared=0.0, square=1.0, m=4)
    (0.5, 0.4375)
    """
    return along, square / m + (1 - 1 / m) * (along**2 + shared**2)


@dataclass(frozen=True, eq=False)
class Pool:
    """Independent micro-batches, as scalars: ``[pools, N]``.

    Attributes:
        along: ⟨X, e⟩; `shared`: ⟨X, h⟩; `norms`: ‖X‖.
    """

    along: Array
    shared: Array
    norms: Array


def from_pool(pool: Pool, m: int, rank: int) -> tuple[Array, Array]:
    """Unbiased estimates of A and M, one for each pool, where the threshold has rank K among m.

    Args:
        pool: at least m micro-batches in each.
        m: the number of micro-batches of a step.
        rank: K.
    """
    size = pool.norms.shape[1]
    weights, first, last = _place_weights(size, m, rank)
    order = _lowest(pool.norms, last)
    x = np.take_along_axis(pool.norms, order, axis=1)
    weights, here = weights[first:last], x[:, first:]
    # So many are below the i-th smallest and above it, and so many of them in the subset.
    places = np.arange(first, last)
    below, above = np.maximum(places, 1), np.maximum(size - 1 - places, 1)
    sunk, clipped = rank, m - 1 - rank
    second = here**2 * (clipped + 1)
    if sunk:
        second += sunk * _before(np.square(x), first) / below
    progress = np.zeros_like(here)
    for component in (pool.along, pool.shared):
        if not component.any():
            continue
        whole = np.divide(component, pool.norms, out=np.zeros_like(component), where=pool.norms > 0)
        cosines = np.take_along_axis(whole, order, axis=1)
        mine = cosines[:, first:] * here
        # Sums of the cosines above and of their squares; of the components below likewise.
        up = whole.sum(axis=1, keepdims=True) - _before(cosines, first) - cosines[:, first:]
        up_sq = np.square(whole).sum(axis=1, keepdims=True)
        up_sq = up_sq - _before(np.square(cosines), first) - np.square(cosines[:, first:])
        down, down_sq = np.zeros_like(here), np.zeros_like(here)
        if sunk:
            sorted_component = np.take_along_axis(component, order, axis=1)
            down = _before(sorted_component, first)
            down_sq = _before(np.square(sorted_component), first)
        total = sunk * down / below + mine + clipped * here * up / above
        if component is pool.along:
            progress = total / m
        # Twice the products of two different kinds, and the pairs of one kind.
        second += 2 * (sunk * down / below) * (mine + clipped * here * up / above)
        second += 2 * mine * clipped * here * up / above
        second += sunk * (sunk - 1) * (down**2 - down_sq) / (below * np.maximum(below - 1, 1))
        second += (
            clipped * (clipped - 1) * here**2 * (up**2 - up_sq) / (above * np.maximum(above - 1, 1))
        )
    return (progress * weights).sum(axis=1), (second * weights).sum(axis=1) / m**2


def _before(values: Array, first: int) -> Array:
    """The sum of what stands before each place from `first` on."""
    return (np.cumsum(values, axis=1) - values)[:, first:]


def _lowest(norms: Array, count: int) -> NDArray[np.int64]:
    """The indices of the `count` smallest norms of each pool, ascending."""
    if count > norms.shape[1] // 2:
        return np.argsort(norms, axis=1)[:, :count]
    lowest = np.argpartition(norms, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(norms, lowest, axis=1), axis=1)
    return np.take_along_axis(lowest, order, axis=1)


def _place_weights(size: int, m: int, rank: int) -> tuple[Array, int, int]:
    """The probability of each place of the threshold, and where it is not negligible."""
    place = np.arange(size)
    below, above = _log_choose(place, rank), _log_choose(size - 1 - place, m - 1 - rank)
    weights = np.exp(below + above - _log_choose(np.array(size), m))
    held = np.flatnonzero(weights > 1e-17)
    return weights, int(held[0]), int(held[-1]) + 1


def _log_choose(total: NDArray[np.int64], chosen: int) -> Array:
    possible = total >= chosen
    safe = np.maximum(total, chosen)
    ways = (
        special.gammaln(safe + 1) - special.gammaln(chosen + 1) - special.gammaln(safe - chosen + 1)
    )
    found: Array = np.where(possible, ways, -np.inf)
    return found


def from_own_factors(pool: Pool, factors: Array, m: int) -> tuple[Array, Array]:
    """A and M of a rule whose factor depends on the micro-batch's own norm alone, without bias.

    Args:
        pool: at least two micro-batches in each.
        factors: the factor of each, ``[pools, N]``.
        m: the number of micro-batches of a step.
    """
    size = pool.norms.shape[1]
    second = np.square(factors * pool.norms).mean(axis=1) / m
    for component in (pool.along, pool.shared):
        clipped = factors * component
        pairs = np.square(clipped.sum(axis=1)) - np.square(clipped).sum(axis=1)
        second += (1 - 1 / m) * pairs / (size * (size - 1))
    return (factors * pool.along).mean(axis=1), second


def from_factors(pool: Pool, factors: Array, m: int) -> tuple[Array, Array]:
    """A and M of any rule, one for each pool, from steps of m consecutive micro-batches.

    Args:
        pool: micro-batches; N is a multiple of m.
        factors: the rule's factor of each micro-batch, ``[pools, N]``.
        m: the number of micro-batches of a step.
    """
    pools = pool.norms.shape[0]

    def per_step(values: Array) -> Array:
        return values.reshape(pools, -1, m).sum(axis=-1)

    second = per_step(np.square(factors * pool.norms))
    for component in (pool.along, pool.shared):
        clipped = factors * component
        second += np.square(per_step(clipped)) - per_step(np.square(clipped))
    progress = per_step(factors * pool.along) / m
    return progress.mean(axis=1), second.mean(axis=1) / m**2
