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
from numpy.typing import NDArray
from scipy import special

from mbsim._shared.arrays import ratio
from mbsim.drifts.law import Points

__all__ = ["of_lengths", "of_rank"]

Array = NDArray[np.float64]


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
    ends = np.append(0.0, x)
    t, dt = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    survival = np.minimum(_beyond(weight), 1)
    at_most, slope = _binomial_cdf(rank, m - 1, survival)
    # Where at_most is 0 nothing comes of the longest norms, whose squares may be infinite.
    dt = np.where(at_most > 0, dt, 0.0)
    cosine = ratio(points.along, x)
    along = _beyond(weight * cosine)
    progress = (dt * along * at_most).sum()
    influence = cosine * np.cumsum(dt * at_most) + np.cumsum(dt * along * slope)
    second = (dt * 2 * t * survival * at_most).sum() / m
    second_influence = np.cumsum(dt * 2 * t * (at_most + survival * slope)) / m
    if m > 1:
        above, below = (
            _binomial_cdf(rank, m - 2, survival),
            _binomial_cdf(rank - 1, m - 2, survival),
        )
        for part in (points.along, points.shared):
            if part.any():
                pairs, more = _pairs(points, part, t, dt, above, below)
                second += (1 - 1 / m) * 2 * pairs
                second_influence += (1 - 1 / m) * 2 * more
    errors = [points.error_of_mean(values) for values in (influence, second_influence)]
    return np.array([progress, second]), np.array(errors)


def _pairs(
    points: Points,
    part: Array,
    t: Array,
    dt: Array,
    above: tuple[Array, Array],
    below: tuple[Array, Array],
) -> tuple[float, Array]:
    """One of the two terms of the last integral, G or H, and the influence of every point on it."""
    x, weight = points.norm, points.weight
    cosine = ratio(part, x)
    beyond = _beyond(weight * cosine)
    sunk = np.cumsum(weight * part) - weight * part
    pairs = (dt * beyond * (t * beyond * above[0] + sunk * below[0])).sum()
    influence = cosine * np.cumsum(dt * (2 * t * beyond * above[0] + sunk * below[0]))
    influence += np.cumsum(dt * beyond * (t * beyond * above[1] + sunk * below[1]))
    later = dt * beyond * below[0]
    influence += part * (_beyond(later) - later)
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
    total: Array = np.cumsum(values[::-1])[::-1]
    return total


def _binomial_cdf(most: int, count: int, survival: Array) -> tuple[Array, Array]:
    """P(Bin(count, 1 − S) ≤ most), and its derivative in S."""
    if most < 0 or count < 0:
        return np.zeros_like(survival), np.zeros_like(survival)
    if most >= count:
        return np.ones_like(survival), np.zeros_like(survival)
    if most == 0:
        power = survival ** (count - 1)
        return power * survival, count * power
    below = 1 - survival
    cdf: Array = special.bdtr(most, count, below)
    log_pmf = special.xlogy(most, below) + special.xlogy(count - 1 - most, survival)
    log_pmf -= special.betaln(most + 1, count - most)
    return cdf, np.exp(log_pmf)
