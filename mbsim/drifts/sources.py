r"""Where the numbers A(r) and M(r) of a drift come from, and what errors they have.

Three sources, in order of preference: a closed form where nothing is clipped; the layer cake over
the law of a micro-batch; sampled steps. All of them have the same one method, ``values``, so a
drift measured by other means is one class more. A or M beyond the largest float is infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from mbsim._shared.arrays import Array, Mask
from mbsim._shared.progress import watched
from mbsim._shared.seeds import stream
from mbsim._shared.values import value
from mbsim.clipping import looks_at_own_norm, rank_of
from mbsim.drifts.law import MicroBatchLaw
from mbsim.drifts.layer_cake import of_lengths, of_rank
from mbsim.drifts.steps import StepSample, clipped_lengths
from mbsim.errors import InvalidArgument
from mbsim.problems.noise import Gaussian, facts_of
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting

__all__ = ["DriftValues", "Source", "Tail", "regressed", "source_of", "tail_of"]

# Points of the law of a micro-batch: for a quick answer, more for a small aim, and the most. The
# shortest of many is a matter of few of the points, so that more micro-batches ask for more.
_QUICK, _MORE, _MOST = 2**15, 4, 2**19
_CROWD = 256
# The numerical error is so many times the spread over parts, and this share of the natural sizes √M
# and M of A and M, for parts can agree by chance.
_TIMES, _BY_CHANCE = 4.0, 2e-5
_LARGEST = np.finfo(float).max
# Groups of steps whose means a standard error comes from, and the fewest where steps are large;
# micro-batches of a block, and the most of a step, for memory; the most examples drawn for a value.
_GROUPS, _FEWEST_GROUPS, _BLOCK, _CROWDED, _EXAMPLES = 64, 8, 2**16, 2**18, 2**25
# The most micro-batches that are looked at in one call, all gradient norms together: a second or
# two; and at how many gradient norms curves are free to look, however many these are.
_LOOKS, _FEWEST_NORMS = 2**24, 16


@value
class DriftValues:
    """A(r) and M(r) at some gradient norms, and how far they can be trusted.

    All fields have the shape of `grad_norm`.

    Attributes:
        grad_norm: r.
        progress: A(r); `second_moment`: M(r).
        progress_standard_error: of A, from a sample; 0 where there is none.
        second_moment_standard_error: of M; `covariance`: of the two estimates.
        progress_numerical_error: of A, where it is integrated: four times the spread over
            independent parts of the points, and 2e-5 √M; 0 for a closed form or a sample.
        second_moment_numerical_error: of M; four times the spread, and 2e-5 M.
        df: degrees of freedom of the standard errors; infinite where there is no sample.
        method: "closed form", "quadrature", "sample", or "measured" on gradients.
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
    delivered: Mask

    @classmethod
    def of(
        cls,
        method: str,
        grad_norm: Array,
        drift: Array,
        numerical: Array,
        aim: float | None,
        standard: Array | None = None,
        covariance: Array | None = None,
        df: Array | None = None,
    ) -> DriftValues:
        """Values from A and M and their errors, ``[2, points]`` each."""
        if standard is None:
            standard = np.zeros_like(drift)
        with np.errstate(invalid="ignore"):  # of an infinite M
            within = np.less_equal(standard + numerical, (aim or 0.0) * np.abs(drift))
        return cls(
            grad_norm=grad_norm,
            progress=drift[0],
            second_moment=drift[1],
            progress_standard_error=standard[0],
            second_moment_standard_error=standard[1],
            covariance=np.zeros_like(grad_norm) if covariance is None else covariance,
            progress_numerical_error=numerical[0],
            second_moment_numerical_error=numerical[1],
            df=np.full_like(grad_norm, math.inf) if df is None else df,
            method=np.full(grad_norm.shape, method),
            delivered=np.logical_and(within[0], within[1]),
        )

    def descent(self, half_step: float) -> tuple[Array, Array, Array]:
        """f = r A − λ M for λ = `half_step` = ηL/2, its standard error and its numerical error."""
        r = self.grad_norm
        with np.errstate(over="ignore", invalid="ignore"):
            f = r * self.progress
            standard = r * self.progress_standard_error
            numerical = r * self.progress_numerical_error
            if not half_step:  # 0 times an infinite M is no number
                return f, standard, numerical
            other = half_step * self.second_moment_standard_error
            variance = standard**2 + other**2 - 2 * r * half_step * self.covariance
            both = np.sqrt(np.maximum(variance, 0))
            return (
                f - half_step * self.second_moment,
                # It is at most the sum of the two, which is said where squares are too large.
                np.where(np.isfinite(both), both, standard + other),
                numerical + half_step * self.second_moment_numerical_error,
            )


class Source(Protocol):
    """Where a drift comes from."""

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        """A and M at gradient norms ``[points]``.

        Args:
            grad_norm: r.
            relative_error: what to aim at; None asks for what is quick, and smooth in r.
        """
        ...


def source_of(setting: Setting, draws: int, seed: SeedSequence) -> Source:
    """The best source for a problem, a method and a batch size.

    Args:
        setting: these.
        draws: the most micro-batches to sample for one value.
        seed: what they are drawn from.
    """
    rule, m = setting.method.rule, setting.micro_batches
    if rank_of(rule, m) == m - 1:  # every factor is 1
        return _ClosedForm(setting.problem, setting.batch_size)
    layered = rank_of(rule, m) is not None or looks_at_own_norm(rule)
    if layered and facts_of(setting.problem.noise).integrated:
        return _Integrated(setting)
    return _Sampled(setting, draws, seed)


# ---------------------------------------------------------------------------- large gradients


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


def tail_of(setting: Setting, draws: int, seed: SeedSequence) -> Tail | None:
    r"""For large r the noise is lost: A and M against those without noise.

    Draw a step at r with the noise and, from the same numbers, one without it. A micro-batch moves
    by ΔX = αñ + (ℓ(r) − cr) D/ℓ, ℓ(r) − cr ≤ cσ²/(2r) being what noise adds to a dragger's length;
    so √E‖ΔX‖² ≤ κ₀ = σ√(q/b) + cσ²/(2r) √E‖D/ℓ‖². The rule maps X_j to its projection on the ball
    of radius Q, the threshold. A projection on a ball moves by no more than its argument, plus the
    change of the radius; and a norm of fixed rank by no more than the largest ‖ΔX_i‖. So ‖Δu‖ ≤
    (1/m) Σ‖ΔX_j‖ + max‖ΔX_i‖, √E‖Δu‖² ≤ κ = (1 + √m) κ₀, and |A − A₁r| ≤ κ,
    |M − M₁r²| ≤ E‖Δu‖(2‖u₁‖ + ‖Δu‖) ≤ 2√M₁ r κ + κ².

    Without clipping A = A₁r and M = M₁r² + K_σσ² exactly (with tilt, κ = κ₀ for b = B).

    Returns:
        None where the update does not grow in proportion to r.
    """
    problem, batch, m = setting.problem, setting.batch_size, setting.micro_batches
    rank = rank_of(setting.method.rule, m)
    if rank is None:
        return None
    sigma, draggers = problem.noise.sigma, problem.draggers
    quiet = replace(setting, problem=replace(problem, noise=Gaussian(sigma=0.0)))
    unclipped = rank == m - 1
    values = source_of(quiet, draws, seed).values(np.ones(1), None)
    if unclipped and not draggers.tilt:
        rest = _ClosedForm(problem, batch).values(np.zeros(1), None).second_moment[0]
        return Tail(values=values, distance=0.0, slope=0.0, constant=float(rest))
    b, more = (batch, 1.0) if unclipped else (batch // m, 1 + math.sqrt(m))
    p, gamma = draggers.probability, draggers.coherence
    across = math.sqrt(p / b + gamma * p**2 * (1 - 1 / b))
    along = abs(draggers.along) * math.sqrt(p**2 + p * (1 - p) / b)
    with np.errstate(over="ignore"):
        longer = float(draggers.norm_ratio * np.square(np.float64(sigma)) / 2 * (across + along))
    return Tail(values=values, distance=more * sigma * math.sqrt((1 - p) / b), slope=more * longer)


# ---------------------------------------------------------------------------- the three sources


@np.errstate(over="ignore")
def _out_of_units(drift: Array, unit: Any) -> Array:
    """A and M, ``[2, …]``, from their units."""
    return np.stack([drift[0] * unit, drift[1] * unit * unit])


@dataclass(frozen=True)
class _ClosedForm:
    r"""The mean gradient of the batch, nothing clipped (theory page, section 4).

    A = q r + p T and M = (1/B) E‖x‖² + (1 − 1/B) E⟨x, x'⟩ for two examples x and x', with
    E‖x‖² = q (r² + σ²) + p (ℓ² + T²), E⟨x, x'⟩ = A² + γ p² ℓ², ℓ = c √(r² + σ²) a dragger's length
    and T its component along the gradient (0 without tilt).
    """

    problem: Problem
    batch: int

    @np.errstate(over="ignore")
    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        draggers, p = self.problem.draggers, self.problem.draggers.probability
        # In units in which no square of r and σ overflows.
        unit = np.maximum(grad_norm, self.problem.noise.sigma)
        unit[unit == 0] = 1.0
        r, sigma = grad_norm / unit, self.problem.noise.sigma / unit
        length = draggers.length(r, sigma) if p else np.zeros_like(r)
        tilted = draggers.along * length
        progress = (1 - p) * r + p * tilted
        square = (1 - p) * (r**2 + sigma**2) + p * (length**2 + tilted**2)
        product = progress**2
        if draggers.coherence:
            product = product + draggers.coherence * (p * length) ** 2
        second = square / self.batch
        if self.batch > 1:  # 0 times an infinite product is no number
            second = second + (1 - 1 / self.batch) * product
        drift = _out_of_units(np.stack([progress, second]), unit)
        return DriftValues.of("closed form", grad_norm, drift, np.zeros_like(drift), relative_error)


class _Integrated:
    """The layer cake over the law of a micro-batch, whose points serve every gradient norm."""

    def __init__(self, setting: Setting) -> None:
        self.problem, self.rule = setting.problem, setting.method.rule
        self.b, self.m = setting.micro_batch_size, setting.micro_batches
        facts, tilt = facts_of(self.problem.noise), self.problem.draggers.tilt
        self._symmetric = (facts.unimodal or facts.independent) and not tilt
        self._laws: dict[int, MicroBatchLaw] = {}

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        found = [self._one(r, relative_error) for r in watched(grad_norm.tolist(), "drift")]
        drift, errors = np.array(found).reshape(-1, 2, 2).transpose(1, 2, 0).copy()
        return DriftValues.of("quadrature", grad_norm, drift, errors, relative_error)

    def _one(self, r: float, aim: float | None) -> Array:
        """A and M, and their errors: from more points until these are within the aim."""
        size = _QUICK * (2 if self.m >= _CROWD else 1)
        while True:
            drift, error = self._from(r, size)
            size *= _MORE
            exact = not error.any()
            if aim is None or exact or (error <= aim * np.abs(drift)).all() or size > _MOST:
                return np.stack([drift, error])

    @np.errstate(over="ignore", invalid="ignore")
    def _from(self, r: float, size: int) -> tuple[Array, Array]:
        """A and M from so many points, and their errors."""
        sigma = self.problem.noise.sigma
        unit = max(r, sigma) or 1.0
        if size not in self._laws:
            self._laws[size] = MicroBatchLaw(self.problem, self.b, size)
        points = self._laws[size].at(r / unit, sigma / unit)
        rank = rank_of(self.rule, self.m)
        if rank is not None:
            drift, spread = of_rank(points, self.m, rank)
        else:
            lengths, unit = clipped_lengths(self.rule, points.norm * unit)
            drift, spread = of_lengths(points, lengths, self.m)
        natural = np.stack([np.sqrt(np.abs(drift[1])), np.abs(drift[1])])
        if r == 0 and self._symmetric:
            drift[0] = spread[0] = 0.0
        error = _TIMES * spread + np.where(spread > 0, _BY_CHANCE, 0.0) * natural
        drift, error = _out_of_units(drift, unit), _out_of_units(error, unit)
        return drift, np.where(np.isfinite(drift), np.minimum(error, _LARGEST), 0.0)


class _Sampled:
    """Means over sampled steps, in blocks that are drawn when they are first needed.

    Nothing that is drawn depends on r, so one sample serves every gradient norm, and curves over r
    are smooth. Asked for more gradient norms at once it looks at fewer draws for each. The mean of
    ⟨X, e⟩ and the share of benign examples, whose expectations are known, serve as control
    variates: that removes the noise that would swamp A(r) at small r.
    """

    def __init__(self, setting: Setting, draws: int, seed: SeedSequence) -> None:
        b, m = setting.micro_batch_size, setting.micro_batches
        if m > _CROWDED:
            raise InvalidArgument(
                f"batch_size={b * m} with micro_batch_size={b} makes {m:,} micro-batches a step, "
                f"and at most {_CROWDED:,} are sampled"
            )
        self.problem, self.rule = setting.problem, setting.method.rule
        self.b, self.m, self.seed = b, m, seed
        self._groups = max(_FEWEST_GROUPS, min(_GROUPS, _BLOCK // m))
        wanted = min(_BLOCK, _EXAMPLES // (16 * b)) // (self._groups * m)
        self._steps = self._groups * max(1, wanted)
        self._most = max(1, min(draws, _EXAMPLES // b) // (self._steps * m))
        self.most_norms = max(_FEWEST_NORMS, _LOOKS // (self._steps * m))
        self._blocks: list[StepSample] = []
        # Without a length, an example is 0, and a micro-batch of such examples stops the smallest
        # norm: that none is there has a known probability, and steps are drawn given that.
        self._stops = rank_of(self.rule, m) == 0 and self.problem.draggers.norm_ratio == 0

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        drift, standard = np.zeros((2, 2, grad_norm.size))
        covariance, df = np.zeros((2, grad_norm.size))
        blocks = 1
        if relative_error is not None and grad_norm.size:
            within = _LOOKS // (self._steps * self.m * grad_norm.size)
            blocks = min(self._most, max(1, within))
        for i, r in enumerate(watched(grad_norm.tolist(), "drift, sampled")):
            found = self._one(r, relative_error or 0.0, blocks)
            drift[:, i], standard[:, i], covariance[i], df[i] = found
        none = np.zeros_like(drift)
        return DriftValues.of(
            "sample", grad_norm, drift, none, relative_error, standard, covariance, df
        )

    @np.errstate(over="ignore", invalid="ignore")
    def _one(self, r: float, aim: float, blocks: int) -> tuple[Array, Array, float, int]:
        """A and M, their standard errors, the covariance of these, its df.

        From so many blocks as the aim asks for, and at most so many as are given.
        """
        rows, unit = np.zeros((0, 4)), 0.0
        for number in range(blocks):
            moments, own = self._block(number).moments(r, self.rule)
            unit = unit or own
            moments[:2] *= np.array([[own / unit], [(own / unit) ** 2]])
            groups = moments.reshape(4, self._groups, -1).mean(axis=2).T
            rows = np.concatenate([rows, groups])
            mean, covariance, df = regressed(rows)
            standard = np.sqrt(np.diag(covariance))
            if (standard <= aim * np.abs(mean)).all():
                break
        p_empty = self.problem.draggers.probability**self.b if self._stops else 0.0
        chance = (1 - p_empty) ** self.m
        mean, standard = (_out_of_units(part * chance, unit) for part in (mean, standard))
        # What is infinite is so without an error.
        finite = np.isfinite(mean)
        standard = np.where(finite, np.minimum(standard, _LARGEST), 0.0)
        both = covariance[0, 1] * chance**2 * unit * unit * unit
        return mean, standard, float(both) if finite.all() else 0.0, df

    def _block(self, number: int) -> StepSample:
        while len(self._blocks) <= number:
            rng = stream(self.seed, len(self._blocks))
            shape = (self._steps, self.m)
            sample = StepSample.of(self.problem, self.b, shape, rng, without_empty=self._stops)
            self._blocks.append(sample)
        return self._blocks[number]


def regressed(rows: Array) -> tuple[Array, Array, int]:
    """Means of A and M at the expectations of the controls, by regression over groups of steps."""
    targets, controls = rows[:, :2], rows[:, 2:]
    controls = controls[:, np.ptp(controls, axis=0) > 0]
    design = np.concatenate([np.ones((len(rows), 1)), controls], axis=1)
    design /= np.abs(design).max(axis=0)
    size = np.abs(targets).max(axis=0)
    infinite = ~np.isfinite(size)
    unit = np.where((size > 0) & ~infinite, size, 1.0)
    targets = np.where(infinite, 0.0, targets / unit)
    coefficients, *_ = np.linalg.lstsq(design, targets)
    rest = targets - design @ coefficients
    df = len(rows) - design.shape[1]
    # The variance of the intercept: a little more than 1/groups, for controls are not balanced.
    leverage = np.linalg.pinv(design.T @ design)[0, 0]
    covariance = leverage * (rest.T @ rest) / df * np.multiply.outer(unit, unit)
    return np.where(infinite, size, coefficients[0] * unit), covariance, df
