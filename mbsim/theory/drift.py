r"""The drift of a step: gradient norm r to progress A(r) and second moment M(r).

With g the gradient, r = ‖g‖, e = g/r and u the update of one step,

.. math:: A(r) = E\langle u, e\rangle, \qquad M(r) = E\|u\|^2 .

They decide what a run does: by smoothness E L(w − ηu) ≤ L(w) − η(r A(r) − (ηL/2) M(r)). A
:class:`Drift` gives both at every r, each with the error that it has: from a closed form, by
deterministic quadrature (:mod:`mbsim.theory.micro_batch_law`), or from sampled micro-batches
(:mod:`mbsim.theory.pools`), in this order of preference. The price does not depend on the
dimension. Source: the theory page, sections 6 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike, NDArray

from mbsim._values import value
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, Rule, SmallestNorm, UnitNorm
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_finite,
    check_integer,
    check_number,
    divisors,
    shown,
)
from mbsim.methods import Method, MicroBatchClipping, check_method
from mbsim.problems.losses import LogCosh
from mbsim.problems.noise import Gaussian, NoiseLaw
from mbsim.problems.problem import Problem
from mbsim.statistics import Interval
from mbsim.theory.layer_cake import from_tails, step_of_lengths
from mbsim.theory.micro_batch_law import MicroBatchLaw, has_quadrature
from mbsim.theory.norm_laws import LEVELS, Resolution
from mbsim.theory.pools import Pools, seed_sequence

if TYPE_CHECKING:
    from mbsim.theory.bounds import Bound
    from mbsim.theory.certificate import Certificate, Refusal

__all__ = ["Drift", "DriftValues", "Source", "Tail", "drift", "drifts"]

Array = NDArray[np.float64]


@value
class DriftValues:
    """A(r) and M(r) at some gradient norms, and how far they can be trusted.

    All fields are of the shape of `grad_norm`.

    Attributes:
        grad_norm: r.
        progress: A(r); `second_moment`: M(r).
        progress_standard_error, second_moment_standard_error: of a sample; 0 where there is none.
        covariance: of the two estimates; 0 where there is no sample.
        progress_numerical_error, second_moment_numerical_error: how far two resolutions of a
            quadrature lie apart, the finer of which is given; 0 for a closed form or a sample.
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
        """f = r A − λ M with λ = ηL/2; its standard error; and its numerical error.

        Args:
            half_step: λ.
        """
        r = self.grad_norm
        variance = (
            np.square(r * self.progress_standard_error)
            + np.square(half_step * self.second_moment_standard_error)
            - 2 * r * half_step * self.covariance
        )
        numerical = r * self.progress_numerical_error
        numerical = numerical + half_step * self.second_moment_numerical_error
        f: Array = r * self.progress - half_step * self.second_moment
        return f, np.sqrt(np.maximum(variance, 0)), numerical


@dataclass(frozen=True, kw_only=True)
class Tail:
    r"""What is proven of A(r) and M(r) for large r.

    For r ≥ R ≥ `start`, |A(r) − A₁ r| ≤ κ and |M(r) − M₁ r²| ≤ 2 √M₁ r κ + κ² + μ, with
    κ = `distance` + `slope`/R.

    Attributes:
        values: A and M of the problem without noise at r = 1: A₁ and M₁.
        distance, slope: what κ is made of; `constant`: μ.
    """

    values: DriftValues
    distance: float
    slope: float
    constant: float = 0.0

    def kappa(self, start: float) -> float:
        """κ for r ≥ `start`."""
        return self.distance + (self.slope / start if self.slope else 0.0)


class Source(Protocol):
    """Where a drift comes from."""

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        """A and M at gradient norms ``[points]``; None asks for what is quick."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A(r) and M(r) of a problem, a method and a batch size.

    Made by :func:`drift`.

    Attributes:
        source: what gives the values; smoothness: L; initial_gap: Δ, for certificates.
        tail: what is proven for large r; None where the update does not grow in proportion to r.
        largest_grad_norm: no gradient of the loss is longer; infinite where there is no limit.
        relative_error: what :meth:`at` aims at.
        scale: a gradient norm below which A and M change little.
        noise_size: a gradient norm beyond which noise matters little: σ.
        description: problem, method and batch size, as plain data.
    """

    source: Source
    smoothness: float
    initial_gap: float
    tail: Tail | None
    largest_grad_norm: float
    relative_error: float
    scale: float
    noise_size: float
    description: Mapping[str, Any] = field(default_factory=dict)

    def at(self, grad_norm: ArrayLike, *, relative_error: float | None = None) -> DriftValues:
        """A(r) and M(r) with their errors.

        Args:
            grad_norm: r ≥ 0, a number or an array of any shape.
            relative_error: what to aim at, for both; that of the drift unless told. Of a sample it
                is the standard error that is held against it.

        Returns:
            The values; where `delivered` is False the error is larger than asked for. That is so
            near a root of A, for one.

        Raises:
            InvalidArgument: for gradient norms that are negative, not finite or no numbers.
        """
        r = check_array("grad_norm", grad_norm)
        check_finite("grad_norm", r)
        if r.min() < 0:
            raise InvalidArgument(f"grad_norm={shown(grad_norm)} must be at least 0")
        aim = self.relative_error
        if relative_error is not None:
            aim = check_number("relative_error", relative_error, above=0, below=1)
        found = self.source.values(r.ravel(), aim)
        return DriftValues(**{name: array.reshape(r.shape) for name, array in vars(found).items()})

    def progress(self, grad_norm: ArrayLike) -> Any:
        """A(r) = E⟨u, e⟩: a float for a number, an array for an array; see :meth:`at`."""
        return self.at(grad_norm).progress[()]

    def second_moment(self, grad_norm: ArrayLike) -> Any:
        """M(r) = E‖u‖²: a float for a number, an array for an array; see :meth:`at`."""
        return self.at(grad_norm).second_moment[()]

    def floor(self, *, step_size: float) -> float:
        r"""The level at which a run with this step size stops: the largest root of r A = (ηL/2) M.

        Above it a step is expected to lower the loss; for ½L‖w‖² the root of the mean squared
        gradient norm settles there. Theory page, section 7.

        Args:
            step_size: η > 0.

        Returns:
            The gradient norm; 0 if every step lowers the loss, and infinity if, for large gradients,
            no step does. :meth:`floor_interval` gives it with its error.
        """
        return self.floor_interval(step_size=step_size).estimate

    def floor_interval(self, *, step_size: float, false_positive_rate: float = 1e-6) -> Interval:
        """The floor with an interval that holds the errors of A and M.

        Args:
            step_size: η > 0.
            false_positive_rate: the probability that the interval misses the floor, where A and M
                are sampled.
        """
        from mbsim.theory.certificate import floor_interval

        return floor_interval(self, step_size=step_size, false_positive_rate=false_positive_rate)

    def certificate(
        self,
        *,
        step_size: float,
        steps: int,
        initial_gap: float | None = None,
        largest_grad_norm: float | None = None,
        false_positive_rate: float = 1e-6,
    ) -> Certificate | Refusal:
        """The best bound that the drift proves on (1/T) Σ E‖∇L(w_t)‖², with what it rests on.

        As :meth:`certify`, but with the numbers behind the bound, and without SymPy.
        """
        from mbsim.theory.certificate import certificate

        return certificate(
            self,
            step_size=step_size,
            steps=steps,
            initial_gap=initial_gap,
            largest_grad_norm=largest_grad_norm,
            false_positive_rate=false_positive_rate,
        )

    def certify(
        self,
        *,
        step_size: float,
        steps: int,
        initial_gap: float | None = None,
        largest_grad_norm: float | None = None,
        false_positive_rate: float = 1e-6,
    ) -> Bound | Refusal:
        """The best bound that the drift proves on (1/T) Σ_{t<T} E‖∇L(w_t)‖².

        Args:
            step_size: η > 0; `steps`: T ≥ 1.
            initial_gap: Δ = L(w₀) − L*; that of the problem unless told.
            largest_grad_norm: a limit that no gradient exceeds; that of the loss, if it has one,
                unless told.
            false_positive_rate: the probability, where A and M are sampled, that an error in them
                makes the bound too small.

        Returns:
            A :class:`~mbsim.theory.bounds.Bound` with a value and nothing left to fill in; or a
            :class:`~mbsim.theory.certificate.Refusal`, which is false and says why.

        Raises:
            InvalidArgument: for arguments that break a rule.
        """
        found = self.certificate(
            step_size=step_size,
            steps=steps,
            initial_gap=initial_gap,
            largest_grad_norm=largest_grad_norm,
            false_positive_rate=false_positive_rate,
        )
        return found.to_bound() if found else found


# ---------------------------------------------------------------------------- making one


def drift(
    problem: Problem,
    method: Method,
    *,
    batch_size: int,
    rng: int | SeedSequence | Generator = 0,
    relative_error: float = 1e-3,
    draws: int = 2**20,
) -> Drift:
    r"""The drift of one step: A(r) = E⟨u, e⟩ and M(r) = E‖u‖² for every gradient norm r.

    Without clipping, and with one micro-batch, A and M are written down (theory page, section 4).
    For the smallest norm, a quantile of the norms, a fixed threshold and the unit norm they follow
    from the law of a single micro-batch (section 7), which is integrated numerically for Gaussian,
    two-point and exponential noise, and sampled for others. Any other rule is sampled step by step.

    Args:
        problem: noise, draggers and dimensions; its loss gives L and Δ.
        method: the method, with its micro-batch size.
        batch_size: B.
        rng: what samples are drawn from, where there are any.
        relative_error: what values aim at (:meth:`Drift.at` says when they miss it).
        draws: the most micro-batches sampled for one value.

    Returns:
        A :class:`Drift`.

    Raises:
        InvalidArgument: for arguments that break a rule, and for noise that draws whole vectors:
            its law along the gradient and across it is not known.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(64)), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=32, start=np.ones(64))
    >>> sgd = drift(problem, mbsim.SGD(), batch_size=64)
    >>> sgd.progress([0.5, 1.0]), round(sgd.second_moment(1.0), 12)         # q r, and K_g + K_σ
    (array([0.475, 0.95 ]), 1.543125)
    >>> clip = drift(problem, mbsim.MicroBatchClipping(8), batch_size=64)
    >>> clip.at(1.0).method.item(), round(clip.progress(1.0), 4), round(clip.second_moment(1.0), 4)
    ('quadrature', 0.6918, 0.5406)
    """
    if not isinstance(problem, Problem):
        raise InvalidArgument(f"problem={shown(problem)} must be a mbsim.Problem")
    method = check_method(method)
    batch = check_integer("batch_size", batch_size, minimum=1)
    m = method.micro_batches(batch)
    if not isinstance(problem.noise, NoiseLaw):
        raise InvalidArgument(
            f"noise={shown(problem.noise)} draws whole vectors (it has no mean_of), and a drift "
            "needs the law of the mean of ν examples along the gradient and across it"
        )
    aim = check_number("relative_error", relative_error, above=0, below=1)
    most = check_integer("draws", draws, minimum=1)
    make = _Maker(rule=method.rule, batch=batch, m=m, most=most, seed=seed_sequence(rng))
    return Drift(
        source=make.source(problem),
        smoothness=problem.smoothness,
        initial_gap=problem.initial_gap,
        tail=make.tail(problem),
        largest_grad_norm=_largest_grad_norm(problem.loss),
        relative_error=aim,
        scale=problem.noise.sigma / math.sqrt(problem.benign_dim * (batch // m)),
        noise_size=problem.noise.sigma,
        description={"method": str(method), "batch_size": batch, "problem": str(problem)},
    )


def drifts(
    problem: Problem,
    *,
    batch_size: int,
    rule: Rule = SmallestNorm(),
    rng: int | SeedSequence | Generator = 0,
    relative_error: float = 1e-3,
    draws: int = 2**20,
) -> dict[int, Drift]:
    """The drift for every micro-batch size: the divisors of the batch size, each with its own.

    Args:
        problem: as for :func:`drift`, as are all others but
        rule: the clipping rule.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(8)), noise=mbsim.noise.TwoPoint(rare=0.1),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0), benign_dim=4,
    ...     start=np.ones(8))
    >>> {b: round(one.progress(0.1), 3) for b, one in drifts(problem, batch_size=4).items()}
    {1: -0.141, 2: -0.035, 4: 0.095}
    """
    seed = seed_sequence(rng)
    return {
        b: drift(
            problem,
            MicroBatchClipping(b, rule=rule),
            batch_size=batch_size,
            rng=seed,
            relative_error=relative_error,
            draws=draws,
        )
        for b in divisors(check_integer("batch_size", batch_size, minimum=1))
    }


def _largest_grad_norm(loss: Any) -> float:
    """A limit on ‖∇L‖, if the loss is known to have one."""
    if isinstance(loss, LogCosh):
        return math.sqrt(loss.dim)
    return math.inf


@dataclass(frozen=True)
class _Maker:
    """What sources and tails are made from."""

    rule: Rule
    batch: int
    m: int
    most: int
    seed: SeedSequence

    @property
    def rank(self) -> int | None:
        """The rank of the norm that is the threshold (0 for the smallest), if it is one of them."""
        if isinstance(self.rule, SmallestNorm):
            return 0
        if isinstance(self.rule, QuantileNorm):
            return int(np.quantile(np.arange(self.m), self.rule.q, method="lower"))
        return None

    @property
    def clips_nothing(self) -> bool:
        """Whether every factor is 1: no clipping, one micro-batch, or the largest norm as threshold."""
        return isinstance(self.rule, NoClipping) or self.rank == self.m - 1

    def source(self, problem: Problem) -> Source:
        """The best source for a problem."""
        if self.clips_nothing:
            return _ClosedForm(problem, self.batch)
        pools = _Sampled(
            Pools(problem, self.batch // self.m, self.m, self.rule, self.rank, self.seed), self.most
        )
        lengths = isinstance(self.rule, (FixedNorm, UnitNorm))
        if (self.rank is None and not lengths) or not has_quadrature(problem.noise):
            return pools
        law = MicroBatchLaw(problem, self.batch // self.m)
        if law.costly:
            return pools
        return _Quadrature(law=law, rule=self.rule, rank=self.rank, m=self.m, otherwise=pools)

    def tail(self, problem: Problem) -> Tail | None:
        r"""For large r the noise is lost: A and M against those without noise.

        Draw a step at r with the noise and, from the same numbers, one without it. A micro-batch
        moves by ΔX = αñ + (ℓ(r) − cr) D/ℓ, ℓ(r) − cr ≤ cσ²/(2r) being what noise adds to a
        dragger's length, so √E‖ΔX‖² ≤ κ₀ = σ√(q/b) + cσ²/(2r) √E‖D/ℓ‖². The rule maps X_j to its
        projection on the ball of radius Q, the threshold. A projection on a ball moves by no more
        than its argument, plus the change of the radius; and a norm of fixed rank by no more than
        the largest ‖ΔX_i‖. So ‖Δu‖ ≤ (1/m) Σ‖ΔX_j‖ + max‖ΔX_i‖, √E‖Δu‖² ≤ κ = (1 + √m) κ₀, and
        |A − A₁r| ≤ κ, |M − M₁r²| ≤ E‖Δu‖(2‖u₁‖ + ‖Δu‖) ≤ 2√M₁ r κ + κ².

        Without clipping A = A₁r and M = M₁r² + K_σσ² exactly.
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


# ---------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class _ClosedForm:
    r"""The mean gradient of the batch, nothing clipped (theory page, section 4).

    A = q r + p T and M = (1/B) E‖x‖² + (1 − 1/B) E⟨x, x'⟩ for two examples x and x', with
    E‖x‖² = q (r² + σ²) + p (ℓ² + T²), E⟨x, x'⟩ = A² + γ p² ℓ², ℓ = c √(r² + σ²) a dragger's length
    and T its component along the gradient (0 without tilt).
    """

    problem: Problem
    batch: int

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        """A and M."""
        draggers, sigma = self.problem.draggers, self.problem.noise.sigma
        p = draggers.probability
        length = draggers.length(grad_norm, sigma)
        tilted = draggers.along * length
        progress = (1 - p) * grad_norm + p * tilted
        square = (1 - p) * (grad_norm**2 + sigma**2) + p * (length**2 + tilted**2)
        product = progress**2 + draggers.coherence * (p * length) ** 2
        second = square / self.batch + (1 - 1 / self.batch) * product
        zero = np.zeros_like(grad_norm)
        return _values(grad_norm, progress, second, zero, zero, "closed form", 0.0)


@dataclass(frozen=True)
class _Quadrature:
    """The layer cake over a law that is integrated; a sample where that does not resolve it."""

    law: MicroBatchLaw
    rule: Rule
    rank: int | None
    m: int
    otherwise: _Sampled

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        """A and M, at two resolutions, or three where these lie too far apart."""
        found = np.array([self._one(float(r), relative_error) for r in grad_norm]).reshape(-1, 4)
        progress, second, progress_error, second_error = found.T
        values = _values(
            grad_norm, progress, second, progress_error, second_error, "quadrature", relative_error
        )
        if relative_error is None:
            return values
        natural = np.sqrt(np.abs(second))
        poor = (progress_error > relative_error * natural) | (second_error > relative_error * second)
        if not poor.any():
            return values
        sampled = self.otherwise.values(grad_norm[poor], relative_error)
        merged = {name: array.copy() for name, array in vars(values).items()}
        for name, array in vars(sampled).items():
            merged[name][poor] = array
        return DriftValues(**merged)

    def _one(self, r: float, relative_error: float | None) -> tuple[float, float, float, float]:
        scale = math.hypot(r, self.law.problem.noise.sigma)
        if scale == 0:
            return 0.0, 0.0, 0.0, 0.0
        coarse = self._at_level(r, scale, LEVELS[0])
        for level in LEVELS[1:]:
            fine = self._at_level(r, scale, level)
            errors = abs(fine[0] - coarse[0]), abs(fine[1] - coarse[1])
            aim = 1.0 if relative_error is None else relative_error
            if errors[0] <= aim * abs(fine[0]) and errors[1] <= aim * fine[1]:
                break
            coarse = fine
        return *fine, *errors

    def _at_level(self, r: float, scale: float, level: Resolution) -> tuple[float, float]:
        """A and M at one resolution."""
        share = min(r / scale, 1.0)
        if self.rank is not None:
            tails = self.law.tails(share, level, self.m - 1)
            progress, second = from_tails(tails, self.m, self.rank)
            return progress * scale, second * scale**2
        length, unit, breaks = _length_of(self.rule, scale)
        means = self.law.means(share, level, length, breaks)
        progress, second = step_of_lengths(*means, self.m)
        return progress * unit, second * unit**2


def _length_of(
    rule: Rule, scale: float
) -> tuple[Callable[[Array], Array], float, tuple[float, ...]]:
    """s(x) x for x in units of `scale`, the unit that it comes in, and where it is not smooth."""
    if isinstance(rule, FixedNorm):
        threshold = rule.threshold / scale
        return (lambda x: np.minimum(x, threshold)), scale, (threshold,)
    epsilon = rule.epsilon / scale if isinstance(rule, UnitNorm) else 0.0

    def length(x: Array) -> Array:
        return np.divide(x, x + epsilon, out=np.zeros_like(x), where=x > 0)

    return length, 1.0, tuple(epsilon * 2.0 ** np.arange(-2, 12)) if epsilon else ()


@dataclass(frozen=True)
class _Sampled:
    """Estimates from pools of micro-batches."""

    pools: Pools
    most: int

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        """A and M with standard errors."""
        quick = relative_error is None
        found = [
            self.pools.estimate(float(r), 1.0 if quick else relative_error, 1 if quick else self.most)
            for r in grad_norm
        ]
        covariance = np.array([one.covariance for one in found]).reshape(-1, 2, 2)
        mean = np.array([one.mean for one in found]).reshape(-1, 2)
        zero = np.zeros_like(grad_norm)
        values = _values(grad_norm, mean[:, 0], mean[:, 1], zero, zero, "pools", relative_error)
        errors = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        aim = 0.0 if quick else relative_error
        return DriftValues(
            **(
                vars(values)
                | {
                    "progress_standard_error": errors[:, 0],
                    "second_moment_standard_error": errors[:, 1],
                    "covariance": covariance[:, 0, 1],
                    "df": np.array([float(one.df) for one in found]),
                    "delivered": (errors <= aim * np.abs(mean)).all(axis=1),
                }
            )
        )


def _values(
    grad_norm: Array,
    progress: Array,
    second_moment: Array,
    progress_error: Array,
    second_error: Array,
    method: str,
    relative_error: float | None,
) -> DriftValues:
    zero = np.zeros_like(grad_norm)
    aim = relative_error or 0.0
    within = (progress_error <= aim * np.abs(progress)) & (second_error <= aim * second_moment)
    return DriftValues(
        grad_norm=grad_norm,
        progress=progress,
        second_moment=second_moment,
        progress_standard_error=zero,
        second_moment_standard_error=zero,
        covariance=zero,
        progress_numerical_error=progress_error,
        second_moment_numerical_error=second_error,
        df=np.full_like(grad_norm, math.inf),
        method=np.full(grad_norm.shape, method),
        delivered=within,
    )
