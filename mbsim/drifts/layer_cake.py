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
smallest norm. Source: the theory page, section 7.

How far A and M are off follows from the *influence* of a point, the derivative in its weight, whose
mean over independent parts of the points varies as A and M do.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from mbsim._shared.arrays import Array, ratio
from mbsim.drifts.law import Points

__all__ = ["of_lengths", "of_rank"]

# A share of A and M that is as good as 0, and a probability that is so whatever comes with it.
_NEGLIGIBLE, _NOTHING = 1e-25, 1e-280


def of_rank(points: Points, m: int, rank: int) -> tuple[Array, Array]:
    """A and M where the threshold is the norm of `rank` K among m, 0 the smallest; their errors.

    Args:
        points: the law of a micro-batch.
        m: the number of micro-batches.
        rank: K, from 0 to m − 1.

    Returns:
        A and M, ``[2]``, in the units of the points; and their standard errors.
    """
    x, weight = points.norm, points.weight
    survival = np.minimum(_beyond(weight), 1)
    seen = _seen(x, survival, m, rank)
    survival, ends = survival[:seen], np.append(0.0, x[:seen])
    t, dt = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    (at_most, slope), *of_pairs = _binomial_cdfs(rank, m, survival)
    # Where at_most is 0 nothing comes of the longest norms, whose squares may be infinite.
    dt = np.where(at_most > 0, dt, 0.0)
    cosine = ratio(points.along, x)
    beyond = _beyond(weight * cosine)[:seen]
    level = dt * at_most
    progress = (level * beyond).sum()
    influence = cosine * _running(level, x.size) + _running(dt * beyond * slope, x.size)
    second = (2 * t * survival * level).sum() / m
    second_influence = _running(2 * t * (level + dt * survival * slope), x.size) / m
    for part in (points.along, points.shared):
        if m > 1 and part.any():
            if part is points.shared:
                cosine = ratio(part, x)
                beyond = _beyond(weight * cosine)[:seen]
            pairs, more = _pairs(weight, part, cosine, beyond, t, dt, *of_pairs)
            second += (1 - 1 / m) * 2 * pairs
            second_influence += (1 - 1 / m) * 2 * more
    errors = [points.error_of_mean(values) for values in (influence, second_influence)]
    return np.array([progress, second]), np.array(errors)


def _seen(x: Array, survival: Array, m: int, rank: int) -> int:
    """So many points, the shortest, are all that a threshold comes to.

    Of those beyond, A and M have less than a share _NEGLIGIBLE, however long they are.
    """
    if rank >= m - 1:
        return x.size
    usual = min(int(np.searchsorted(-survival, (rank + 1) / m - 1)), x.size - 1)
    with np.errstate(over="ignore"):
        share = _NEGLIGIBLE / m * float(np.square(x[usual] / x[-1])) if x[-1] > 0 else 0.0
    # The S at which P(Bin(m − 1, 1 − S) ≤ K) is so small; powers of less would be slow, too.
    least = float(special.betaincinv(m - 1 - rank, rank + 1, max(share, _NOTHING)))
    return int(np.searchsorted(-survival, -least))


def _pairs(
    weight: Array,
    part: Array,
    cosine: Array,
    beyond: Array,
    t: Array,
    dt: Array,
    above: tuple[Array, Array],
    below: tuple[Array, Array],
) -> tuple[float, Array]:
    """One of the two terms of the last integral, G or H, and the influence of every point on it."""
    size, seen = part.size, t.size
    level = dt * t * beyond * above[0]
    pairs, slope = (level * beyond).sum(), dt * t * np.square(beyond) * above[1]
    if not below[0].any():
        return float(pairs), cosine * _running(2 * level, size) + _running(slope, size)
    sunk = (np.cumsum(weight * part) - weight * part)[:seen]
    later = dt * beyond * below[0]
    pairs += (later * sunk).sum()
    slope += dt * beyond * sunk * below[1]
    influence = cosine * _running(2 * level + dt * sunk * below[0], size) + _running(slope, size)
    influence[:seen] += part[:seen] * (_beyond(later) - later)
    return float(pairs), influence


def of_lengths(points: Points, lengths: Array, m: int) -> tuple[Array, Array]:
    """A and M of a rule that gives X the length ℓ(x), whatever the other norms are; their errors.

    A = E ℓ cos(X, e) and M = E ℓ²/m + (1 − 1/m)(A² + (E ℓ cos(X, h))²), by independence.

    Args:
        points: the law of a micro-batch.
        lengths: ℓ of every point.
        m: the number of micro-batches.
    """
    x, weight = points.norm, points.weight
    over = ratio(lengths, x)
    along, shared = over * points.along, over * points.shared
    means = (weight * along).sum(), (weight * shared).sum()
    second = (weight * np.square(lengths)).sum() / m + (1 - 1 / m) * (means[0] ** 2 + means[1] ** 2)
    influence = np.square(lengths) / m + (1 - 1 / m) * 2 * (means[0] * along + means[1] * shared)
    errors = [points.error_of_mean(values) for values in (along, influence)]
    return np.array([means[0], second]), np.array(errors)


def _beyond(values: Array) -> Array:
    """The sum of what stands at each place and after it."""
    return np.cumsum(values[::-1])[::-1]


def _running(values: Array, size: int) -> Array:
    """The sum of what stands at each place and before it; `size` places, nothing at the last."""
    total = np.empty(size)
    np.cumsum(values, out=total[: values.size])
    total[values.size :] = total[values.size - 1] if values.size else 0.0
    return total


def _binomial_cdfs(rank: int, m: int, survival: Array) -> list[tuple[Array, Array]]:
    """P_K(m − 1), P_K(m − 2) and P_{K−1}(m − 2) at some S, each with its derivative in S.

    With B = P(Bin(m − 2, 1 − S) = K) the second is P_K(m − 1) + (1 − S) B and the third P_K(m − 1)
    − S B; their derivatives are (m − 1) B, (m − 2 − K) B/S and K B/(1 − S).
    """
    ones, zeros = np.ones_like(survival), np.zeros_like(survival)
    if rank >= m - 1:
        return [(ones, zeros)] * 3
    if rank == 0:
        power = survival ** (m - 2)
        third = zeros, zeros
        return [(power * survival, (m - 1) * power), (power, (m - 2) * power / survival), third]
    below = 1 - survival
    # B/(1 − S)
    logs = special.xlogy(rank - 1, below) + special.xlogy(m - 2 - rank, survival)
    share = np.exp(logs - special.betaln(m - 1 - rank, rank + 1)) / (m - 1)
    chance = share * below
    # It costs more than all the rest, and is 1 where few micro-batches are short.
    first, less = ones.copy(), below > special.betaincinv(rank + 1, m - 1 - rank, 1e-17)
    first[less] = special.betainc(m - 1 - rank, rank + 1, survival[less])
    return [
        (first, (m - 1) * chance),
        (first + below * chance, (m - 2 - rank) * chance / survival),
        (np.maximum(first - survival * chance, 0), rank * share),
    ]
