r"""Where the numbers A(r) and M(r) of a drift come from, and what errors they have.

Three sources, in order of preference: a closed form where nothing is clipped; the layer cake over
the integrated law of a micro-batch; the layer cake over sampled micro-batches. All of them have
the same one method, ``values``, so a drift measured by other means is one class more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from mbsim._shared.values import value
from mbsim.clipping import FixedNorm, Rule, UnitNorm, looks_at_own_norm, rank_of
from mbsim.drifts.layer_cake import from_tails, step_of_lengths
from mbsim.drifts.micro_batch_law import MicroBatchLaw, has_quadrature
from mbsim.drifts.norm_laws import LEVELS, Resolution
from mbsim.drifts.pools import Pools
from mbsim.problems.noise import Gaussian
from mbsim.problems.problem import Problem

__all__ = ["Descends", "DriftValues", "Source", "Step", "Tail"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Two resolutions may agree by chance. In 556 random problems the finer was wrong by more than twice
# their difference only where it was right to 1e-5 of the natural sizes √M and M of A and M; that
# much is added to the difference, unless rounding is all that lies between the two.
_TWICE, _BY_CHANCE, _ROUNDING = 2.0, 1e-5, 1e-11
# A quadrature whose error is below this share of A's and M's natural sizes is not worth a sample.
_GOOD = 3e-4


@value
class DriftValues:
    """A(r) and M(r) at some gradient norms, and how far they can be trusted.

    All fields have the shape of `grad_norm`.

    Attributes:
        grad_norm: r.
        progress: A(r); `second_moment`: M(r).
        progress_standard_error: of A, from a sample; 0 where there is none.
        second_moment_standard_error: of M; `covariance`: of the two estimates.
        progress_numerical_error: of A, from two resolutions of a quadrature, the finer of which is
            given: twice their difference, and 1e-5 √M; 0 for a closed form or a sample.
        second_moment_numerical_error: of M; twice the difference, and 1e-5 M.
        df: degrees of freedom of the standard errors; infinite where there is no sample.
        method: "closed form", "quadrature" or "pools".
        delivered: whether both errors are within the relative error that was asked for.
    """

    grad_norm: Array
    progress: Array
    second_moment: Array
    progress_standard_error: Array
    second_moment_standard_error: Array
    covariance: Array
    progress_numerical_error: Array
    second_moment_numerical_error: Array
    df: Array
    method: NDArray[np.str_]
    delivered: NDArray[np.bool_]

    def descent(self, half_step: float) -> tuple[Array, Array, Array]:
        """f = r A − λ M for λ = `half_step` = ηL/2, its standard error and its numerical error."""
        r = self.grad_norm
        f = r * self.progress - half_step * self.second_moment
        variance = np.square(r * self.progress_standard_error)
        variance += np.square(half_step * self.second_moment_standard_error)
        variance -= 2 * r * half_step * self.covariance
        numerical = r * self.progress_numerical_error
        numerical = numerical + half_step * self.second_moment_numerical_error
        return f, np.sqrt(np.maximum(variance, 0)), numerical


class Source(Protocol):
    """Where a drift comes from."""

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        """A and M at gradient norms ``[points]``.

        Args:
            grad_norm: r.
            relative_error: what to aim at; None asks for what is quick.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Tail:
    r"""What is proven of A(r) and M(r) for large r.

    For r ≥ R, |A(r) − A₁ r| ≤ κ and M(r) ≤ M₁ r² + 2 √M₁ r κ + κ² + μ, with
    κ = `distance` + `slope`/R.

    Attributes:
        values: A and M of the problem without noise at r = 1: A₁ and M₁.
        distance: of κ; `slope`: of κ; `constant`: μ.
    """

    values: DriftValues
    distance: float
    slope: float
    constant: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether A = A₁ r and M = M₁ r² + μ for every r."""
        return self.distance == self.slope == 0

    def kappa(self, start: float) -> float:
        """κ for r ≥ R = `start`."""
        return self.distance + (self.slope / start if self.slope else 0.0)


class Descends(Protocol):
    """What floors, certificates and tuned step sizes ask of a drift; see Drift for the meanings."""

    @property
    def source(self) -> Source:
        """Where A and M come from."""
        ...

    @property
    def smoothness(self) -> float:
        """L."""
        ...

    @property
    def initial_gap(self) -> float:
        """Δ."""
        ...

    @property
    def tail(self) -> Tail | None:
        """What is proven for large r."""
        ...

    @property
    def largest_grad_norm(self) -> float:
        """No gradient is longer."""
        ...

    @property
    def scale(self) -> float:
        """A gradient norm below which A and M change little."""
        ...

    @property
    def noise_size(self) -> float:
        """σ."""
        ...

    @property
    def settings(self) -> Mapping[str, float | str]:
        """What it is the drift of, by code name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a method: what sources and tails are made from.

    Attributes:
        rule: the clipping rule.
        batch: B; `m`: the number of micro-batches.
        draws: the most micro-batches to sample for one value; `seed`: what they are drawn from.
    """

    rule: Rule
    batch: int
    m: int
    draws: int
    seed: SeedSequence

    @property
    def rank(self) -> int | None:
        """The rank of the norm that is the threshold (0 for the smallest), if it is one of them."""
        return rank_of(self.rule, self.m)

    @property
    def clips_nothing(self) -> bool:
        """Whether every factor is 1: no clipping, one micro-batch, or the largest norm allowed."""
        return self.rank == self.m - 1

    def source(self, problem: Problem) -> Source:
        """The best source for a problem."""
        if self.clips_nothing:
            return _ClosedForm(problem, self.batch)
        b = self.batch // self.m
        sampled = _Sampled(
            Pools(problem, b, self.m, self.rule, self.rank, self.seed), most=self.draws
        )
        layered = self.rank is not None or looks_at_own_norm(self.rule)
        if not layered or not has_quadrature(problem.noise):
            return sampled
        law = MicroBatchLaw(problem, b)
        if law.costly(0 if self.rank is None else self.m - 1):
            return sampled
        return _Quadrature(law=law, step=self, otherwise=sampled)

    def tail(self, problem: Problem) -> Tail | None:
        r"""For large r the noise is lost: A and M against those without noise.

        Draw a step at r with the noise and, from the same numbers, one without it. A micro-batch
        moves by ΔX = αñ + (ℓ(r) − cr) D/ℓ, ℓ(r) − cr ≤ cσ²/(2r) being what noise adds to a
        dragger's length; so √E‖ΔX‖² ≤ κ₀ = σ√(q/b) + cσ²/(2r) √E‖D/ℓ‖². The rule maps X_j to its
        projection on the ball of radius Q, the threshold. A projection on a ball moves by no more
        than its argument, plus the change of the radius; and a norm of fixed rank by no more than
        the largest ‖ΔX_i‖. So ‖Δu‖ ≤ (1/m) Σ‖ΔX_j‖ + max‖ΔX_i‖, √E‖Δu‖² ≤ κ = (1 + √m) κ₀, and
        |A − A₁r| ≤ κ, |M − M₁r²| ≤ E‖Δu‖(2‖u₁‖ + ‖Δu‖) ≤ 2√M₁ r κ + κ².

        Without clipping A = A₁r and M = M₁r² + K_σσ² exactly (with tilt, κ = κ₀ for b = B).

        Returns:
            None where the update does not grow in proportion to r.
        """
        if self.rank is None and not self.clips_nothing:
            return None
        sigma, draggers = problem.noise.sigma, problem.draggers
        quiet = Problem(
            loss=problem.loss,
            noise=Gaussian(sigma=0.0),
            draggers=draggers,
            benign_dim=problem.benign_dim,
            start=problem.start,
        )
        values = self.source(quiet).values(np.ones(1), None)
        if self.clips_nothing and not draggers.tilt:
            rest = self.source(problem).values(np.zeros(1), None).second_moment[0]
            return Tail(values=values, distance=0.0, slope=0.0, constant=float(rest))
        b, more = self.batch // self.m, 1 + math.sqrt(self.m)
        if self.clips_nothing:
            b, more = self.batch, 1.0
        p, gamma = draggers.probability, draggers.coherence
        across = math.sqrt(p / b + gamma * p**2 * (1 - 1 / b))
        along = abs(draggers.along) * math.sqrt(p**2 + p * (1 - p) / b)
        return Tail(
            values=values,
            distance=more * sigma * math.sqrt((1 - p) / b),
            slope=more * draggers.norm_ratio * sigma**2 / 2 * (across + along),
        )


# ---------------------------------------------------------------------------- the three sources


@dataclass(frozen=True)
class _ClosedForm:
    r"""The mean gradient of the batch, nothing clipped (theory page, section 4).

    A = q r + p T and M = (1/B) E‖x‖² + (1 − 1/B) E⟨x, x'⟩ for two examples x and x', with
    E‖x‖² = q (r² + σ²) + p (ℓ² + T²), E⟨x, x'⟩ = A² + γ p² ℓ², ℓ = c √(r² + σ²) a dragger's length
    and T its component along the gradient (0 without tilt).
    """

    problem: Problem
    batch: int

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:  # noqa: ARG002
        draggers, sigma = self.problem.draggers, self.problem.noise.sigma
        p = draggers.probability
        length = draggers.length(grad_norm, sigma)
        tilted = draggers.along * length
        progress = (1 - p) * grad_norm + p * tilted
        square = (1 - p) * (grad_norm**2 + sigma**2) + p * (length**2 + tilted**2)
        product = progress**2 + draggers.coherence * (p * length) ** 2
        second = square / self.batch + (1 - 1 / self.batch) * product
        exact = np.zeros((2, grad_norm.size))
        return _values("closed form", grad_norm, np.stack([progress, second]), exact, 0.0)


@dataclass(frozen=True)
class _Quadrature:
    """The layer cake over a law that is integrated; a sample where that does not resolve it."""

    law: MicroBatchLaw
    step: Step
    otherwise: _Sampled

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        found = [self._one(r, relative_error) for r in grad_norm.tolist()]
        drift, errors = np.array(found).reshape(-1, 2, 2).transpose(1, 2, 0)
        values = _values("quadrature", grad_norm, drift, errors, relative_error or 0.0)
        if relative_error is None:
            return values
        # A sample is tried where the quadrature misses its aim by far, and taken if it is better.
        natural = _natural_size(drift)
        poor: Mask = np.logical_or.reduce(errors > max(relative_error, _GOOD) * natural)
        if not poor.any():
            return values
        sampled = self.otherwise.values(grad_norm[poor], relative_error)
        standard = [sampled.progress_standard_error, sampled.second_moment_standard_error]
        share = (np.array(standard) / natural[:, poor]).max(axis=0)
        better: Mask = np.less(share, (errors / natural)[:, poor].max(axis=0))
        return _merged(values, sampled, poor, better)

    def _one(self, r: float, relative_error: float | None) -> tuple[Array, Array]:
        """A and M at two resolutions, or three if these lie too far apart; and their errors."""
        scale = math.hypot(r, self.law.problem.noise.sigma)
        if scale == 0:
            return np.zeros(2), np.zeros(2)
        coarse = self._at_level(r, scale, LEVELS[0])
        for level in LEVELS[1:]:
            fine = self._at_level(r, scale, level)
            error = _numerical_error(fine, coarse)
            if relative_error is None or (error <= relative_error * np.abs(fine)).all():
                break
            coarse = fine
        return fine, error

    def _at_level(self, r: float, scale: float, level: Resolution) -> Array:
        m, sigma = self.step.m, self.law.problem.noise.sigma
        if self.step.rank is not None:
            tails = self.law.tails(r / scale, sigma / scale, level, m - 1)
            return np.array(from_tails(tails, m, self.step.rank)) * [scale, scale**2]
        length, unit, breaks = _length_of(self.step.rule, scale)
        means = self.law.means(r / scale, sigma / scale, level, length, breaks)
        return np.array(step_of_lengths(*means, m)) * [unit, unit**2]


def _natural_size(drift: Array) -> Array:
    """√M and M, which A and M are measured by."""
    return np.stack([np.sqrt(np.abs(drift[1])), np.abs(drift[1])])


def _numerical_error(fine: Array, coarse: Array) -> Array:
    """What two resolutions of A and M say about the error of the finer."""
    gap, natural = np.abs(fine - coarse), _natural_size(fine)
    error: Array = np.where(
        gap > _ROUNDING * natural, _TWICE * gap + _BY_CHANCE * natural, _TWICE * gap
    )
    return error


def _length_of(
    rule: Rule, scale: float
) -> tuple[Callable[[Array], Array], float, tuple[float, ...]]:
    """s(x) x for x in units of `scale`, the unit that it comes in, and where panels must end."""
    if isinstance(rule, FixedNorm):
        threshold = rule.threshold / scale
        return (lambda x: np.minimum(x, threshold)), scale, (threshold,)
    epsilon = rule.epsilon / scale if isinstance(rule, UnitNorm) else 0.0

    def length(x: Array) -> Array:
        return np.divide(x, x + epsilon, out=np.zeros_like(x), where=x > 0)

    # x/(x + ε) is smooth on no smaller scale than x or ε.
    return length, 1.0, tuple(epsilon * 2.0 ** np.arange(-2, 12)) if epsilon else ()


def _merged(values: DriftValues, others: DriftValues, where: Mask, better: Mask) -> DriftValues:
    """The values, with some of the others (which are for the places `where`) in their place."""
    chosen = where.copy()
    chosen[where] = better
    merged = {}
    for name, array in vars(values).items():
        merged[name] = array.copy()
        merged[name][chosen] = vars(others)[name][better]
    return DriftValues(**merged)


@dataclass(frozen=True)
class _Sampled:
    """Estimates from pools of micro-batches."""

    pools: Pools
    most: int

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        aim, most = (math.inf, 1) if relative_error is None else (relative_error, self.most)
        found = [self.pools.estimate(r, aim, most) for r in grad_norm.tolist()]
        mean = np.array([one.mean for one in found]).reshape(-1, 2).T
        covariance = np.array([one.covariance for one in found]).reshape(-1, 2, 2)
        errors = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
        aim = (relative_error or 0.0) * np.abs(mean)
        within: Mask = (errors[0] <= aim[0]) & (errors[1] <= aim[1])
        values = _values("pools", grad_norm, mean, np.zeros_like(mean), 0.0)
        sampled = {
            "progress_standard_error": errors[0],
            "second_moment_standard_error": errors[1],
            "covariance": covariance[:, 0, 1],
            "df": np.array([float(one.df) for one in found]),
            "delivered": within,
        }
        return DriftValues(**(vars(values) | sampled))


def _values(
    method: str, grad_norm: Array, drift: Array, errors: Array, relative_error: float
) -> DriftValues:
    """Values that are not sampled, from A and M and their numerical errors, ``[2, points]``."""
    zero, aim = np.zeros_like(grad_norm), relative_error * np.abs(drift)
    return DriftValues(
        grad_norm=grad_norm,
        progress=drift[0],
        second_moment=drift[1],
        progress_standard_error=zero,
        second_moment_standard_error=zero,
        covariance=zero,
        progress_numerical_error=errors[0],
        second_moment_numerical_error=errors[1],
        df=np.full_like(grad_norm, math.inf),
        method=np.full(grad_norm.shape, method),
        delivered=(errors[0] <= aim[0]) & (errors[1] <= aim[1]),
    )
