r"""A bound held against a run: the simulated left side against the right side, as a Verdict.

The assumptions are measured on the run first (:mod:`mbsim.checking.assumptions`); where one is
measured false, or a condition on the step size does not hold, the bound says nothing about the run
and the verdict is *not applicable*. What the right side needs besides the settings of the run, such
as λ of the theory page's 5.3, is measured on sampled steps at the gradient norms that the run
visited, and taken on the safe side (:mod:`mbsim.drifts.steps`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mbsim import statistics
from mbsim._shared.arrays import Array
from mbsim.checking import assumptions
from mbsim.drifts.certificate import Certificate
from mbsim.drifts.steps import (
    StepQuantities,
    StepSample,
    measured_values,
    norms_near_atoms,
    step_sample,
)
from mbsim.errors import InvalidArgument, check_integer, check_number, shown
from mbsim.problems.setting import Setting
from mbsim.simulation.run import Run
from mbsim.statistics import Interval
from mbsim.theory.bound import Bound, Subject
from mbsim.theory.formula import as_text
from mbsim.theory.quantities import QUANTITIES
from mbsim.verdicts import Comparison, Refusal, Verdict

__all__ = ["NEAR", "Examination", "check", "settings_of"]

# An estimate claims no inequality; it is good if it is right to a tenth.
NEAR = 0.1
# At how many gradient norms, over those visited, and on how many micro-batches things are measured.
_NORMS, _DRAWS = 24, 2**14


def settings_of(run: Any) -> dict[str, Any]:
    """What a run fixes, by code name where there is one: most bounds need no more."""
    problem = assumptions.problem_of(run)
    setting = Setting(problem, run.method, run.batch_size, run.step_size, int(run.steps[-1]))
    longest = math.sqrt(np.nanmax(run.grad_norm_sq))
    return setting.quantities() | {"largest_grad_norm": longest}


def check(
    bound: Bound | Certificate | Refusal,
    run: Any,
    *,
    gate: bool = True,
    false_positive_rate: float = 1e-3,
    rng: int = 0,
    **known: float,
) -> Verdict:
    """Hold a bound against a run: its simulated left side against the right side.

    The assumptions are measured on the run first (smoothness along its path, the noise's mean and
    variance, the draggers' share, length and angles); the settings come from the run; what is
    left, such as the alignment λ, is measured on sampled steps at the gradient norms that the run
    visited, and taken on the safe side.

    Args:
        bound: a bound of :mod:`mbsim.theory`, or a certificate (or its refusal, which says why).
        run: a :class:`~mbsim.Run`; for a weighted average with every step recorded.
        gate: whether a broken assumption or condition ends the matter as "not applicable".
            Negative controls run with the gate off.
        false_positive_rate: the probability of a wrong decision.
        rng: the seed of what is measured, an integer.
        **known: quantities that you know better than a measurement, by code name.

    Returns:
        A :class:`~mbsim.Verdict`: an upper bound is supported if the run's mean lies below it
        beyond chance. Its `details` have the values, the slack (right side over left side) and
        whether the bound is vacuous: no lower than the squared gradient norm at the start.

    Raises:
        InvalidArgument: for bounds that are not about a run, runs that do not know their problem,
            and unknown names.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(8)), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=4, start=np.full(8, 0.5))
    >>> run = mbsim.simulate(problem, mbsim.SGD(), batch_size=64, step_size=0.05, steps=200,
    ...                      replicates=64, rng=0)
    >>> mbsim.check(mbsim.theory.sgd_bound(), run).status
    'supported'
    """
    seed = check_integer("rng", rng, minimum=0)
    if not isinstance(bound, (Bound, Certificate, Refusal)):
        how = "a bound such as mbsim.theory.sgd_bound(), or a certificate"
        if isinstance(bound, str):
            how += "; mbsim.theory.formula_bound makes one from text"
        elif isinstance(bound, Run):
            how += "; it goes first, and the run second"
        raise InvalidArgument(f"bound={shown(bound)} must be {how}")
    return Examination(run=run, rng=seed).verdict(
        bound, gate=gate, false_positive_rate=false_positive_rate, known=known
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Examination:
    """One run, against which many bounds can be held: what is measured is measured once.

    Args:
        run: the run.
        rng: the seed of what is measured.
    """

    run: Any
    rng: int = 0

    def verdict(
        self,
        bound: Bound | Certificate | Refusal,
        *,
        gate: bool = True,
        false_positive_rate: float = 1e-3,
        known: Mapping[str, float] | None = None,
    ) -> Verdict:
        """A bound held against the run; see :func:`check`."""
        rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
        if isinstance(bound, Refusal):
            return self._not_applicable(bound.of, f"there is a {bound.of}", str(bound))
        given = self._given(bound, known or {})
        values: dict[str, float] | Refusal | None = self._refusal(bound, gate=gate)
        if values is None:
            values = self._values(bound, given, rate / 2, gate=gate)
        if isinstance(values, Refusal):
            return self._not_applicable(bound.name, str(bound), values.reason)
        right = float(bound.evaluate(**values))
        left = replace(self._left(bound, rate / 2), false_positive_rate=rate)
        least = self.run.problem.initial_grad_norm**2
        return Verdict(
            claim=bound.name,
            statement=str(bound),
            comparisons=(_comparison(bound, left, right),),
            seed=self.run.seed,
            details={
                "values": values,
                "right": right,
                "slack": right / (left.estimate or math.nan),
                "vacuous": bound.kind == "upper bound" and right >= least,
            },
        )

    def _not_applicable(self, claim: str, statement: str, why: str) -> Verdict:
        return Verdict(
            claim=claim,
            statement=statement,
            comparisons=(),
            seed=self.run.seed,
            not_applicable=why,
        )

    # ------------------------------------------------------------------ does it apply?

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The quantities that the run fixes."""
        return settings_of(self.run)

    @cached_property
    def measured_false(self) -> list[str]:
        """Which of A1 to A4 are measured false on the run."""
        measured = assumptions.measure_assumptions(self.run, rng=self.rng)
        return [f"measured false: {c}" for c in measured if c.status == "refuted"]

    def _refusal(self, bound: Bound | Certificate, *, gate: bool) -> Refusal | None:
        """Why the bound says nothing about the run, if so."""
        fixed = bound.settings if isinstance(bound, Certificate) else {}
        if isinstance(bound, Bound) and bound.subject not in (
            Subject.GRADIENT,
            Subject.WEIGHTED_GRADIENT,
        ):
            raise InvalidArgument(
                f"bound={bound.name!r} is about {bound.subject.sentence}, which a run does not "
                "show; only bounds on averages of E‖∇L(w_t)‖² can be held against one"
            )
        if bound.kind == "limit":
            return Refusal("a limit for small steps and long horizons says nothing about one run")
        broken = [
            f"the bound is for {name} = {shown(value)}, and the run has {shown(found)}"
            for name, value in fixed.items()
            if not _same(name, value, found := self.settings.get(name))
        ]
        if gate and not broken:
            others = (assumptions.broken_assumption(x, self.run) for x in bound.assumptions)
            broken = [sentence for sentence in others if sentence] or self.measured_false
        return Refusal("; ".join(broken)) if broken else None

    # ------------------------------------------------------------------ right side, left side

    @cached_property
    def _visited(self) -> Array:
        """Gradient norms from the least to the largest that the run visited."""
        squares, steps = self.run.grad_norm_sq, self.run.steps
        if steps.size != steps[-1] + 1:
            raise InvalidArgument(
                "run must have every step recorded (record_every=1) for a bound with quantities "
                "that are measured at the gradient norms it visited"
            )
        squares = squares[np.isfinite(squares) & (squares > 0)]
        if not squares.size:
            raise InvalidArgument("the run has no gradient that is not 0")
        ends = math.sqrt(squares.min()), math.sqrt(squares.max())
        atoms = norms_near_atoms(self.run.problem, int(self.settings["micro_batch_size"]))
        inside = atoms[(atoms > ends[0]) & (atoms < ends[1])]
        return np.union1d(np.geomspace(*ends, _NORMS), inside)

    @cached_property
    def sample(self) -> StepSample:
        """Steps of the run's method, sampled anew."""
        size, batch = int(self.settings["micro_batch_size"]), self.run.batch_size
        return step_sample(self.run.problem, size, batch_size=batch, rng=self.rng, draws=_DRAWS)

    @cached_property
    def _quantities(self) -> StepQuantities:
        return self.sample.at(self._visited)

    def _weights(self, tail: float = 0.5) -> Array:
        """ω_t = E min(τ, 3r/4)/r along the run: ``[replicates, T]``; lower limits of them."""
        squares = self.run.grad_norm_sq[:, :-1]
        with np.errstate(divide="ignore"):
            places = np.log(squares) / 2
        weight = self._quantities.weight.low(tail)
        found: Array = np.interp(places, np.log(self._visited), weight)
        return np.where(squares > 0, found, 0.0)

    def _given(self, bound: Bound | Certificate, known: Mapping[str, float]) -> dict[str, float]:
        """Numbers given by hand: of quantities that the bound has and the run does not fix."""
        open_names = [name for name in bound.names if name not in self.settings]
        for name in known:
            if name not in open_names:
                which = f"of {', '.join(open_names)}" if open_names else "of none"
                raise InvalidArgument(
                    f"{name}={shown(known[name])} cannot be given: {bound.name} takes numbers by "
                    f"hand {which}, the run fixes the others"
                )
        return {name: float(QUANTITIES[name].checked(number)) for name, number in known.items()}

    def _values(
        self, bound: Bound | Certificate, given: Mapping[str, float], rate: float, *, gate: bool
    ) -> dict[str, float] | Refusal:
        """What the bound is evaluated with: given by hand, fixed by the run, or measured."""
        settings = {**self.settings, **given}
        if any(name not in settings for name in bound.names):
            try:
                measured = measured_values(
                    bound.names, self.sample, self._quantities, false_positive_rate=rate
                )
            except InvalidArgument as reason:
                return Refusal(f"it needs quantities that cannot be measured: {reason}")
            if "mean_weight" in measured:  # along the run, not at its worst
                weights = self._weights(tail=rate / 2).mean(axis=1)
                lower = statistics.mean(weights, false_positive_rate=rate).low
                measured["mean_weight"] = max(0.0, lower)
            settings = measured | settings
        values = {name: settings[name] for name in bound.names}
        for name, number in values.items():
            if number == 0 and QUANTITIES[name].above == 0:
                return Refusal(f"vacuous: {name} is not told from 0")
            try:
                QUANTITIES[name].checked(number)
            except InvalidArgument as reason:  # such as p = 1
                return Refusal(str(reason))
        if gate and not bound.holds(**values):
            sentences = [f"{as_text(x.relation)}, for else {x.sentence}" for x in bound.conditions]
            return Refusal(f"a condition does not hold: {'; '.join(sentences)}")
        return values

    def _left(self, bound: Bound | Certificate, rate: float) -> Interval:
        """The simulated left side."""
        if isinstance(bound, Certificate) or bound.subject is Subject.GRADIENT:
            return statistics.mean(self.run.mean_grad_norm_sq, false_positive_rate=rate)
        weights = self._weights()
        above = (weights * self.run.grad_norm_sq[:, :-1]).mean(axis=1)
        below = weights.mean(axis=1)
        ratio = above.mean() / below.mean()
        # The ratio of two means, linearised: what one replicate adds to it.
        linear = ratio + (above - ratio * below) / below.mean()
        return statistics.mean(linear, false_positive_rate=rate)


def _same(name: str, value: Any, found: Any) -> bool:
    """Whether a setting of the run is the one that the bound is for."""
    if isinstance(value, str) or found is None:
        return bool(value == found)
    if name == "largest_grad_norm":
        return bool(found <= value)
    return math.isclose(value, found, rel_tol=1e-9, abs_tol=0.0)


def _comparison(bound: Bound | Certificate, left: Interval, right: float) -> Comparison:
    subject = bound.subject if isinstance(bound, Bound) else Subject.GRADIENT
    what = subject.sentence
    if bound.kind == "estimate":
        near = (right - NEAR * abs(right), right + NEAR * abs(right))
        return Comparison(what=what, measured=left, relation="within", limit=near)
    relation = {"upper bound": "below", "lower bound": "above"}[bound.kind]
    return Comparison(what=what, measured=left, relation=relation, limit=right)
