r"""Independent sampled steps: progress and second moment, and what the theorems ask besides.

A step at gradient norm r has m micro-batches; micro-batch j has a share α_j of benign examples, a
benign part Y_j, a dragger part D_j, a norm x_j and, across the gradient, a length h_j with h_j² =
‖Y_j‖² − ⟨Y_j, e⟩² + ‖D_j‖². With τ = min_{i≠j} x_i (infinite for m = 1) and ρ = min_i x_i:

.. math::
   \omega(r) &= \tfrac1r \mathbb E\min(\tau, \tfrac34 r), \qquad
   a(r) = \mathbb E[\cos\varphi_j;\ x_j \ge \tfrac34 r], \qquad
   \cos\varphi_j = \|Y_j\|/x_j, \\
   \lambda(r) &= \mathbb E\Big[\cos\varphi_j \min_i
      \min\big(1, \sqrt{\alpha_i^2 + \|D_i\|^2/r^2}\big)\Big], \qquad
   \bar\lambda(r) = \mathbb E\cos\varphi_j, \\
   q_*(r) &= \mathbb E[\alpha \text{ of the shortest micro-batch}], \qquad
   \Lambda(r) = \mathbb E\Big[\alpha_j \frac{\min_i h_i}{h_j}
      \Big(1 + \frac{\alpha_j^2 (v_{k_j} + r^2/3)}{h_j^2}\Big)^{-3/2}\Big],

with v_k the variance, given k draggers, of the mean noise along the gradient. A micro-batch is
drawn as a few scalars that do not depend on r (:mod:`mbsim.problems.micro_batches`), so one sample
serves every r, and curves over r are smooth. Source: the theory page, sections 5.1 to 5.3 and 6.

Where the law of a micro-batch is known the drift is integrated from it (:mod:`mbsim.drifts.law`),
and sampled steps are a witness that shares no formula with it; else the drift is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike

from mbsim._shared.arrays import Array, ratio
from mbsim._shared.seeds import seed_sequence, stream
from mbsim._shared.values import value
from mbsim.clipping import Rule, rank_of
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_divides,
    check_integer,
    check_number,
    shown,
)
from mbsim.problems.micro_batches import MicroBatches, draw_micro_batches
from mbsim.problems.noise import facts_of, why_no_means
from mbsim.problems.problem import Problem, check_problem
from mbsim.statistics import t_quantile

__all__ = [
    "Estimates",
    "StepQuantities",
    "StepSample",
    "measured_values",
    "norms_near_atoms",
    "step_sample",
]

# The β of min(τ, βr): that of the theorems in mbsim.theory.
_CAP = 0.75
# Fewer steps than this say little about their own spread; and the most micro-batches in memory.
_FEWEST_STEPS, _MOST_DRAWS = 64, 2**25
# How often micro-batches of draggers alone are drawn anew where there should be none.
_MOST_REDRAWS = 100
# The most atoms that are looked at.
_MOST_ATOMS = 16
# Norms beyond this are as good as infinite to a rule.
_LONG = 1e300
# How often the upper limit on σ_e of a noise law that is not known here may be too small.
_UNKNOWN_LAW = 1e-9


@value
class Estimates:
    """One quantity at some gradient norms: means over independent steps, with standard errors.

    Attributes:
        mean: the estimates, of the shape of the gradient norms.
        standard_error: their standard errors.
        df: degrees of freedom of the standard errors, the number of steps minus 1.
    """

    mean: Array
    standard_error: Array
    df: int

    def low(self, tail: float) -> Array:
        """Lower limits: each is above the truth with probability `tail` (Student)."""
        return self.mean - t_quantile(self.df, tail) * self.standard_error

    def high(self, tail: float) -> Array:
        """Upper limits: each is below the truth with probability `tail` (Student)."""
        return self.mean + t_quantile(self.df, tail) * self.standard_error


@value
class StepQuantities:
    """What the theorems ask about a step, at some gradient norms (see the head of the module).

    Attributes:
        grad_norm: r, any shape; that of the estimates too.
        weight: ω = v/r, with v the `capped_threshold` of the bounds.
        aligned_share: a.
        alignment: λ; `mean_cosine`: λ̄.
        shortest_benign_share: q*.
        progress_rate: Λ. Where noise along the gradient is symmetric and, given k, independent of
            the rest, A(r) ≥ Λ r; for other noise it is a number without such a meaning.
        progress: A(r); `second_moment`: M(r), of the smallest norm.
    """

    grad_norm: Array
    weight: Estimates
    aligned_share: Estimates
    alignment: Estimates
    mean_cosine: Estimates
    shortest_benign_share: Estimates
    progress_rate: Estimates
    progress: Estimates
    second_moment: Estimates


@value
class StepSample:
    """Independent steps of Algorithm 1, as scalars; made by :func:`step_sample`.

    Attributes:
        problem: the problem; `micro_batch_size`: b.
        drawn: the micro-batches, ``[steps, m]``.
    """

    problem: Problem
    micro_batch_size: int
    drawn: MicroBatches

    @classmethod
    def of(
        cls,
        problem: Problem,
        micro_batch_size: int,
        shape: tuple[int, int],
        rng: Generator,
        *,
        without_empty: bool = False,
    ) -> StepSample:
        """Steps drawn from `rng`; `without_empty`, given that no micro-batch is draggers alone."""
        drawn = draw_micro_batches(problem, micro_batch_size, shape, rng)
        for _ in range(_MOST_REDRAWS if without_empty else 0):
            empty = drawn.benign == 0
            if not empty.any():
                break
            again = draw_micro_batches(problem, micro_batch_size, (int(empty.sum()),), rng)
            for name, array in vars(drawn).items():
                array[empty] = vars(again)[name]
        return cls(problem, micro_batch_size, drawn)

    @property
    def steps(self) -> int:
        """How many steps were drawn."""
        return int(self.drawn.benign.shape[0])

    @property
    def sigma_along(self) -> float:
        """σ_e, the standard deviation of one example's noise along the gradient.

        It follows from the noise laws of the library. Of any other law it is an upper limit, σ or
        Student's at 1e-9, whichever is less; Λ falls as σ_e grows, so that is its safe side.
        """
        noise, n = self.problem.noise, self.problem.benign_dim
        share = facts_of(noise).isotropic_share
        if share is not None:
            return float(noise.sigma * math.sqrt(1 - share + share / n))
        benign = 1 - self.problem.draggers.probability
        if benign == 0:
            return float(noise.sigma)
        # E[(α⟨ñ, e⟩)²] = E[α] σ_e²/b, since α² σ_e²/(b − k) = α σ_e²/b.
        squares = np.square(self.drawn.noise).mean(axis=1) * (self.micro_batch_size / benign)
        mean, error = _summary(squares)
        limit = Estimates(mean, error, squares.size - 1).high(_UNKNOWN_LAW)
        return min(float(noise.sigma), math.sqrt(float(limit)))

    def at(self, grad_norm: ArrayLike) -> StepQuantities:
        """The quantities at some gradient norms, all from the same steps.

        Args:
            grad_norm: r > 0, a number or an array of any shape. Memory does not grow with it.

        Returns:
            Means over the steps, after averaging over the micro-batches of a step, and their
            standard errors.

        Raises:
            InvalidArgument: for gradient norms that are not above 0, not finite or no numbers.
        """
        r = check_array("grad_norm", grad_norm, finite=True)
        if r.min() <= 0:
            raise InvalidArgument(f"grad_norm={shown(grad_norm)} must be above 0")
        found = [_summary(self._quantities(one)) for one in r.ravel().tolist()]
        names = [field.name for field in fields(StepQuantities)][1:]
        means, errors = np.moveaxis(np.array(found), 0, -1).reshape(2, len(names), *r.shape)
        estimates = {
            name: Estimates(mean, error, self.steps - 1)
            for name, mean, error in zip(names, means, errors, strict=True)
        }
        return StepQuantities(grad_norm=r, **estimates)

    def _at(self, grad_norm: float) -> _Parts:
        """The micro-batches at one gradient norm."""
        sigma, draggers, drawn = self.problem.noise.sigma, self.problem.draggers, self.drawn
        # In a unit in which no square of r and σ overflows or vanishes.
        unit = max(grad_norm, sigma) or 1.0
        r = grad_norm / unit
        length = draggers.length(r, sigma / unit)
        across = drawn.across / unit
        along = drawn.benign * r + drawn.noise / unit
        if draggers.tilt:
            along += (1 - drawn.benign) * (draggers.along * length)
        shared, own = drawn.shared * length, drawn.own * length
        h = np.hypot(across, np.hypot(shared, own))
        norm = np.hypot(along, h)
        return _Parts(unit, r, length, along, across, shared, own, h, norm)

    def moments(self, grad_norm: float, rule: Rule) -> tuple[Array, float]:
        """⟨u, e⟩ and E‖u‖² given the scalars of every step, and the unit of u that they are in.

        Besides two controls, whose expectations are 0: the mean of ⟨X, e⟩ and the share of benign
        examples, less what they are on average.

        Args:
            grad_norm: r ≥ 0.
            rule: the clipping rule.

        Returns:
            ``[4, steps]``, and the unit.
        """
        x, draggers = self._at(grad_norm), self.problem.draggers
        if rank_of(rule, x.norm.shape[1]) is not None:  # of any unit
            unit, factors = x.unit, rule.factors(x.norm)
        else:
            lengths, unit = clipped_lengths(rule, x.norm * x.unit)
            factors = ratio(lengths, x.norm)
        progress, second = _moments(x, factors)
        benign = 1 - draggers.probability
        expected = benign * x.r + (1 - benign) * draggers.along * x.length
        controls = x.along.mean(axis=1) - expected, self.drawn.benign.mean(axis=1) - benign
        return np.stack([progress, second, *controls]), unit

    def _quantities(self, grad_norm: float) -> Array:
        """Every quantity of every step, ``[8, steps]`` in the order of :class:`StepQuantities`."""
        x, alpha = self._at(grad_norm), self.drawn.benign
        dragger = np.hypot(x.shared, x.own)
        cosine = ratio(np.hypot(x.along, x.across), x.norm)
        shortest, next_one = _two_smallest(x.norm)
        floor = np.minimum(np.hypot(alpha * x.r, dragger).min(axis=1), x.r) / x.r
        variance = alpha * ((self.sigma_along / x.unit) ** 2 / self.micro_batch_size)
        spread = x.h**2 + variance + np.square(alpha * x.r) / 3
        rate = alpha * x.h.min(axis=1, keepdims=True) * ratio(x.h**2, spread**1.5)
        progress, second = _moments(x, ratio(shortest[:, None], x.norm))
        return np.stack(
            [
                _CAP * _mean_capped(shortest, next_one, _CAP * x.r, x.norm.shape[1]),
                (cosine * (x.norm >= _CAP * x.r)).mean(axis=1),
                cosine.mean(axis=1) * floor,
                cosine.mean(axis=1),
                np.take_along_axis(alpha, x.norm.argmin(axis=1, keepdims=True), axis=1)[:, 0],
                rate.mean(axis=1),
                progress * x.unit,
                second * x.unit**2,
            ]
        )


class _Parts(NamedTuple):
    """Micro-batches at one gradient norm, ``[steps, m]`` each, in units of `unit`.

    `length` is that of a dragger. `along` e and `across` it, along h (`shared`) and across it in
    the draggers' frame (`own`); `h` is all but `along`, and `norm` is ‖X‖.
    """

    unit: float
    r: float
    length: float
    along: Array
    across: Array
    shared: Array
    own: Array
    h: Array
    norm: Array


def clipped_lengths(rule: Rule, norms: Array) -> tuple[Array, float]:
    """The lengths that a rule leaves of norms, in the unit of the longest, and that unit."""
    norms = np.minimum(norms, _LONG)
    lengths = norms * rule.factors(norms)
    unit = float(lengths.max()) or 1.0
    return lengths / unit, unit


def _moments(x: _Parts, factors: Array) -> tuple[Array, Array]:
    """⟨u, e⟩ and E‖u‖² given the scalars: what is across e and across h points anywhere."""
    factors = factors / factors.shape[1]
    progress = (factors * x.along).sum(axis=1)
    second = np.square(progress) + np.square((factors * x.shared).sum(axis=1))
    second += (np.square(factors * x.across) + np.square(factors * x.own)).sum(axis=1)
    return progress, second


def _two_smallest(x: Array) -> tuple[Array, Array]:
    """The smallest norm of each step and the one after it, infinite where there is none."""
    if x.shape[1] == 1:
        return x[:, 0], np.full(len(x), math.inf)
    two = np.partition(x, 1, axis=1)
    return two[:, 0], two[:, 1]


def _mean_capped(shortest: Array, next_one: Array, cap: float, m: int) -> Array:
    """The mean over j of min(τ_j, cap)/cap: τ is ρ, but for the shortest micro-batch itself."""
    of_most, of_one = (np.minimum(norm, cap) / cap for norm in (shortest, next_one))
    return (of_most * (m - 1) + of_one) / m


def _summary(values: Array) -> Array:
    """Mean and standard error along the last axis."""
    error = values.std(axis=-1, ddof=1) / math.sqrt(values.shape[-1])
    return np.stack([values.mean(axis=-1), error])


def step_sample(
    problem: Problem,
    micro_batch_size: int,
    *,
    batch_size: int,
    rng: int | SeedSequence | Generator = 0,
    draws: int = 2**18,
) -> StepSample:
    r"""Draw independent steps of Algorithm 1, from which :meth:`StepSample.at` measures.

    Args:
        problem: noise, draggers and dimensions; the loss plays no part.
        micro_batch_size: b; it divides `batch_size`.
        batch_size: B.
        rng: what is drawn from.
        draws: about how many micro-batches to draw, at 40 bytes each; at least 64 steps are drawn.

    Returns:
        A :class:`StepSample`.

    Raises:
        InvalidArgument: for arguments that break a rule; for noise that draws whole vectors, whose
            parts along the gradient and across it are not known; and for draggers with a tilt,
            which no theorem allows.

    Source: the theory page, sections 2 and 9.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(32)), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=16, start=np.ones(32))
    >>> steps = step_sample(problem, 8, batch_size=64)
    >>> found = steps.at([0.1, 1.0, 10.0])
    >>> found.alignment.mean.round(2), found.weight.mean.round(2)
    (array([0.71, 0.74, 0.77]), array([0.75, 0.75, 0.75]))
    """
    check_problem(problem)
    m = check_divides(micro_batch_size, batch_size)
    draws = check_integer("draws", draws, minimum=1)
    if reason := why_no_means(problem.noise, "a step sample"):
        raise InvalidArgument(reason)
    if tilt := problem.draggers.tilt:
        raise InvalidArgument(
            f"draggers.tilt={shown(tilt)} must be 0, for the theorems that need this sample "
            "allow no tilt; to see what one would say all the same, take draggers without it"
        )
    generator = stream(seed_sequence(rng))
    shape = (max(_FEWEST_STEPS, draws // m), m)
    if shape[0] * m > _MOST_DRAWS:
        raise InvalidArgument(
            f"batch_size={batch_size} with micro_batch_size={micro_batch_size} and draws={draws} "
            f"would draw {shape[0] * m:,} micro-batches, and at most {_MOST_DRAWS:,} are drawn"
        )
    return StepSample.of(problem, int(micro_batch_size), shape, generator)


def norms_near_atoms(problem: Problem, micro_batch_size: int) -> Array:
    """Gradient norms at which a clean micro-batch can cancel exactly, and some close to them.

    Two-point noise without an isotropic share takes few values; where its mean over a micro-batch
    can be −r, norms are 0 with some probability, and ω and the like dip. Empty for other noise.
    """
    facts, noise = facts_of(problem.noise), problem.noise
    law = facts.along(micro_batch_size) if facts.along and facts.isotropic_share == 0 else None
    if law is None or callable(law) or noise.sigma == 0:
        return np.zeros(0)
    atoms = np.unique(-noise.sigma / micro_batch_size * law[0])
    atoms = atoms[atoms > 0]
    return np.unique(np.multiply.outer(atoms[-_MOST_ATOMS:], [0.97, 0.995, 1.0, 1.005, 1.03]))


# Quantities that must be at most what they are at every r visited; of mean_cosine the bounds want
# what is at least its values.
_AT_MOST = ("mean_weight", "alignment", "shortest_benign_share", "progress_rate")


def measured_values(
    names: Iterable[str],
    sample: StepSample,
    grad_norms: ArrayLike | StepQuantities,
    *,
    false_positive_rate: float,
) -> dict[str, float]:
    r"""What rate bounds ask about the steps of a run, each number on its safe side.

    A theorem wants numbers that hold at every r that a run visits. Taken here is the worst over
    `grad_norms` of confidence limits: the smallest lower limit of the weight, of λ, q* and Λ, in
    which right sides fall; the largest upper limit of λ̄, in which they rise. ς̄ and σ_e are closed:
    σ/√b, for Gaussian noise σ/√(bn) (theory page, section 5.3), and :attr:`StepSample.sigma_along`.

    Limits are Student's, with Bonferroni's correction over gradient norms and quantities. They
    are approximate for quantities that seldom leave one value: of what has not been seen in any
    step they know nothing. Between the gradient norms nothing is proven; take them close.

    Args:
        names: code names, such as those of a bound; of these, those meant for a whole run are
            measured. Quantities at one r (grad_norm, capped_threshold, aligned_share) are not: see
            :meth:`StepSample.at`.
        sample: the steps; they should not be those of the run itself.
        grad_norms: gradient norms that stand for what the run visits; or what the sample gave
            there already, so that many bounds can share it.
        false_positive_rate: the probability that any of the sampled numbers is on the wrong side.

    Returns:
        Code name to number, for :meth:`~mbsim.theory.Bound.evaluate`. A number of 0 says
        that its lower limit is not above 0: no bound can be evaluated there, it is vacuous.

    Raises:
        InvalidArgument: for arguments that break a rule.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(32)), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=16, start=np.ones(32))
    >>> steps = step_sample(problem, 8, batch_size=64)
    >>> names = mbsim.theory.symmetric_bound("unimodal").names
    >>> found = measured_values(names, steps, np.geomspace(0.1, 10, 5), false_positive_rate=1e-6)
    >>> {name: round(number, 2) for name, number in found.items()}
    {'shortest_benign_share': 1.0}
    """
    names = list(names)
    if not isinstance(sample, StepSample):
        raise InvalidArgument(f"sample={shown(sample)} must be what step_sample gives")
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    found = grad_norms if isinstance(grad_norms, StepQuantities) else sample.at(grad_norms)
    sampled = [name for name in names if name in _AT_MOST or name == "mean_cosine"]
    tail = rate / max(1, len(sampled) * found.grad_norm.size)
    values: dict[str, float] = {}
    for name in sampled:
        if name in _AT_MOST:
            estimates = found.weight if name == "mean_weight" else getattr(found, name)
            values[name] = max(0.0, float(estimates.low(tail).min()))
        else:
            values[name] = min(1.0, float(found.mean_cosine.high(tail).max()))
    if "norm_spread" in names:
        spread = sample.problem.noise.sigma / math.sqrt(sample.micro_batch_size)
        if facts_of(sample.problem.noise).gaussian:
            spread /= math.sqrt(sample.problem.benign_dim)
        values["norm_spread"] = spread
    if "sigma_along" in names:
        values["sigma_along"] = sample.sigma_along
    return values
