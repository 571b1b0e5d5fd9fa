r"""The law of one micro-batch, as weighted points.

Given k draggers among b examples, the mean gradient X has a component a along e, one along h, and
isotropic parts across both (theory page, section 2), so that

.. math:: \|X\|^2 = a^2 + s^2 \chi^2_{n-1} + \delta^2 + \kappa |S_k|^2,

with |S_k|² the squared length of a sum of k uniform directions (:mod:`mbsim.drifts.walks`), and s²
itself random for Student's noise (:mod:`mbsim.problems.mixtures`). What is discrete in it (k, the
lattice of two-point noise, directions on a line) is listed with its exact weights. What is
continuous is integrated by scrambled Sobol points, pushed through quantile functions; χ² is sampled
more densely where it is small, for rules look at short norms. Nothing of it depends on r, so that
curves over r are smooth. Source: the theory page, sections 7 and 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import interpolate, special

from mbsim._shared.arrays import Array, Integers
from mbsim.drifts.walks import line_walk, squared_length
from mbsim.problems.noise import facts_of, likely_binomial
from mbsim.problems.problem import Problem

__all__ = ["PARTS", "MicroBatchLaw", "Points"]

# Consecutive parts of the Sobol sequence, whose spread says how far their mean may be off.
PARTS = 8
# A lattice of more values than this is not listed but taken by its quantiles.
_MOST_LISTED = 2**9
# What is less likely than this is left out.
_NEGLIGIBLE = 1e-11
# Draggers that are longer, in units of the gradient and its noise, are as long as this: their
# squares would leave the range of floats.
_LONGEST = 1e150
# Coordinates of a Sobol point: which stratum; of the noise what is along e (of Student's, which is
# not, its variance), its Gaussian part there and its length across e; the walk of the draggers.
_STRATUM, _ALONG, _GAUSSIAN, _ACROSS, _WALK = range(5)


@dataclass(frozen=True, eq=False)
class Points:
    """Weighted micro-batches: ``[points]`` each.

    Attributes:
        along: ⟨X, e⟩; `shared`: ⟨X, h⟩; `norm`: ‖X‖, ascending.
        weight: the probabilities, which add up to 1.
        part: which of PARTS a point is of; −1 for what is exact.
        part_weight: its probability if its part stands for the whole.
    """

    along: Array
    shared: Array
    norm: Array
    weight: Array
    part: Integers
    part_weight: Array

    def error_of_mean(self, values: Array) -> float:
        """The standard error of the weighted mean of `values`, from the spread over the parts.

        It is on the large side: together the points are more even than their parts.
        """
        means = np.bincount(self.part + 1, self.part_weight * values, PARTS + 1)[1:]
        return float(means.std(ddof=1)) / math.sqrt(PARTS)


# Standard normal quantiles at which those of a chi-square are tabulated.
_PLACES = np.linspace(-10.5, 7.5, 721)


@lru_cache(maxsize=16)
def _log_chi_square(df: int) -> interpolate.CubicSpline:
    return interpolate.CubicSpline(
        _PLACES, np.log(2 * special.gammaincinv(df / 2, special.ndtr(_PLACES)))
    )


def _chi_square(df: int, share: Array) -> Array:
    """χ²_df at some of its quantiles, to 1e-8: a logarithm is smooth in normal quantiles."""
    return np.asarray(np.exp(_log_chi_square(df)(special.ndtri(share))))


@lru_cache(maxsize=4)
def _sobol_points(size: int) -> tuple[Integers, Array]:
    """The part of every point, and the points, ``[5, size]``, in the order of their stratum.

    Every law draws on the same ones.
    """
    from scipy.stats import qmc  # half a second, which not every drift needs

    u = qmc.Sobol(5, rng=np.random.default_rng(0)).random(size)
    order = np.argsort(u[:, _STRATUM])
    return order * PARTS // size, np.clip(u[order].T, 1e-12, 1 - 1e-12)


class MicroBatchLaw:
    """The law of the mean of b examples, for every gradient norm.

    Args:
        problem: its noise must say how it is (``facts.integrated``).
        micro_batch_size: b.
        size: about how many points.

    >>> import mbsim
    >>> problem = mbsim.Problem(loss=mbsim.losses.Quadratic(np.ones(4)),
    ...     noise=mbsim.noise.TwoPoint(sigma=0.8, rare=0.5), benign_dim=1, start=np.ones(4))
    >>> points = MicroBatchLaw(problem, 1, 2**10).at(0.6, 0.8)      # |0.6 ± 0.8|
    >>> points.norm.round(12), points.weight, points.part
    (array([0.2, 1.4]), array([0.5, 0.5]), array([-1, -1]))
    """

    def __init__(self, problem: Problem, micro_batch_size: int, size: int) -> None:
        self.problem, self.b, self.size = problem, micro_batch_size, size
        draggers, facts = problem.draggers, facts_of(problem.noise)
        self._walk_dim = problem.dragger_dim - (draggers.coherence > 0)
        self._walks = bool(draggers.dimensions_needed) and draggers.coherence < 1
        # The shares of σ² that are isotropic, and along e alone; without noise there is neither.
        noisy = float(problem.noise.sigma > 0)
        self._isotropic = noisy * (facts.isotropic_share or 0.0)
        self._along_share = noisy - self._isotropic

    def at(self, grad_norm: float, sigma: float) -> Points:
        """The points at ‖g‖ = `grad_norm`.

        Args:
            grad_norm: r, in the unit that makes the larger of r and σ about 1.
            sigma: σ, in this unit.
        """
        benign, noise, across_sq, shared, dragger, *others = self._scalars
        draggers = self.problem.draggers
        length = min(draggers.length(grad_norm, sigma), _LONGEST)
        along = benign * grad_norm + sigma * noise
        if draggers.tilt:
            along += (1 - benign) * (draggers.along * length)
        norm = np.square(along)
        norm += sigma**2 * across_sq
        norm += np.square(length * dragger)
        np.sqrt(norm, out=norm)
        order = np.argsort(norm)
        shared = length * shared if draggers.coherence else np.zeros_like(norm)
        return Points(*(np.take(x, order) for x in (along, shared, norm, *others)))

    @cached_property
    def _scalars(self) -> tuple[Any, ...]:
        """What does not depend on r: ``[points]`` each.

        α = 1 − k/b; α times the noise along e, and the square of what it is across e, for σ = 1;
        the parts along h and in all of the draggers' frame, for draggers of length 1; and the last
        three of :class:`Points`, for norms that are not sorted.
        """
        k, lattice, walk, weight = self._strata()
        smooth = np.isnan(lattice) | np.isnan(walk) | ((self._isotropic > 0) & (k < self.b))
        exact, _ = self._made(k[~smooth], lattice[~smooth], walk[~smooth], None)
        none = np.full(np.count_nonzero(~smooth), -1)
        found = [(*exact, weight[~smooth], none, weight[~smooth])]
        if smooth.any():
            found.append(self._sobol(k[smooth], lattice[smooth], walk[smooth], weight[smooth]))
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def _strata(self) -> Array:
        """k, the noise along e, |S_k|² and the weight of every stratum; NaN for what is smooth."""
        found = [np.zeros((4, 0))]
        counts = likely_binomial(self.b, self.problem.draggers.probability)
        for k, likely in zip(*counts, strict=True):
            (along, weights), (walk, walk_weights) = (
                self._along(self.b - int(k)),
                self._walk(int(k)),
            )
            every = np.empty((4, along.size, walk.size))
            every[0], every[1], every[2] = k, along[:, None], walk
            every[3] = likely * np.multiply.outer(weights, walk_weights)
            found.append(every[:, every[3] > _NEGLIGIBLE])
        strata = np.concatenate(found, axis=1)
        strata[3] /= strata[3].sum()
        return strata

    def _along(self, benign: int) -> tuple[Array, Array]:
        """The lattice of the sum of some examples' noise along e; NaN where it is smooth."""
        if benign == 0 or self._along_share == 0:
            return np.zeros(1), np.ones(1)
        law = self._along_law(benign)
        return (np.full(1, np.nan), np.ones(1)) if callable(law) else law

    def _along_law(self, benign: int) -> Any:
        """The law of that sum, a lattice or a quantile function; this for a long lattice, too."""
        along = facts_of(self.problem.noise).along
        assert along is not None
        law = along(benign)
        if callable(law) or law[0].size <= _MOST_LISTED:
            return law
        values, below = law[0], np.cumsum(law[1])
        return lambda share: values[np.minimum(np.searchsorted(below, share), values.size - 1)]

    def _walk(self, k: int) -> tuple[Array, Array]:
        """|S_k|² where it takes few values; NaN where it is smooth."""
        if k < 2 or not self._walks:
            return np.full(1, float(k > 0 and self._walks)), np.ones(1)
        return line_walk(k) if self._walk_dim == 1 else (np.full(1, np.nan), np.ones(1))

    def _sobol(self, k: Array, along: Array, walk: Array, weight: Array) -> tuple[Any, ...]:
        """Points of strata in which something is smooth: so many as the root of their weight."""
        # Every Gaussian number along e comes with both signs.
        signs = 2 if self._isotropic > 0 else 1
        share = np.cumsum(np.sqrt(weight))
        ends = np.round(self.size / signs * share / share[-1]).astype(np.int64)
        ends = np.maximum.accumulate(ends - np.arange(k.size)) + np.arange(k.size)  # one at least
        ends = np.maximum(ends, np.arange(1, k.size + 1))
        stratum = np.searchsorted(ends, np.arange(ends[-1]), side="right")
        size = 2 ** math.ceil(math.log2(max(ends[-1], PARTS)))
        part, u = (every[..., : ends[-1]].copy() for every in _sobol_points(size))
        # In the place of u its square: short lengths are more frequent, and weigh less for it.
        spread = self._isotropic > 0 and self.problem.benign_dim > 1
        own = np.where(spread & (k[stratum] < self.b), 2 * u[_ACROSS], 1.0)
        u[_ACROSS] = np.square(u[_ACROSS])
        of_stratum, cell = weight[stratum] * own, stratum * PARTS + part
        part_weight = of_stratum / np.bincount(cell, own, k.size * PARTS)[cell]
        part_weight *= weight.sum() / np.bincount(part, part_weight, PARTS)[part]
        weights = of_stratum / np.bincount(stratum, own)[stratum]
        made, gaussian = self._made(k[stratum], along[stratum], walk[stratum], u)
        found = [*made, weights / signs, part, part_weight / signs]
        if signs == 1:
            return tuple(found)
        noise = np.concatenate([made[1] + gaussian, made[1] - gaussian])
        doubled = [np.tile(array, 2) for array in found]
        return doubled[0], noise, *doubled[2:]

    def _made(self, k: Array, along: Array, walk: Array, u: Any) -> tuple[tuple[Array, ...], Array]:
        """The first five of the scalars, from strata and uniform coordinates.

        The noise along e is without its Gaussian part, which comes after them.
        """
        n, b, gamma = self.problem.benign_dim, self.b, self.problem.draggers.coherence
        along, walk = along.copy(), walk.copy()
        # k ascends: each count is a stretch, and all stretches together are looked at once.
        counts, starts = np.unique(k, return_index=True)
        stops = [*starts[1:], k.size]
        stretches = [
            (int(count), slice(*ends)) for count, *ends in zip(counts, starts, stops, strict=False)
        ]
        for count, own in stretches:
            here = np.isnan(along[own])
            if here.any():
                along[own][here] = self._along_law(b - count)(u[_ALONG, own][here])
            here = np.isnan(walk[own])
            if here.any():
                walk[own][here] = squared_length(self._walk_dim, count, u[_WALK, own][here])
        noise, gaussian, across_sq = np.zeros((3, k.size))
        noise += math.sqrt(self._along_share) * along / b
        variance = self._isotropic * (b - k) / n
        if variance.any():
            if mixed := facts_of(self.problem.noise).variance:
                for count, own in stretches:
                    if count < b:  # nothing else of such a law is along e: its coordinate is free
                        variance[own] *= mixed(b - count)(u[_ALONG, own]) / (b - count)
            gaussian = np.sqrt(variance) / b * special.ndtri(u[_GAUSSIAN])
            if n > 1:
                across_sq = variance / b**2 * _chi_square(n - 1, u[_ACROSS])
        shared = k / b * math.sqrt(gamma)
        dragger = np.sqrt(np.square(shared) + (1 - gamma) / b**2 * walk)
        return ((b - k) / b, noise, across_sq, shared, dragger), gaussian
