r"""Do the bounds hold? Every bound, and a user's own, against simulation on a family of problems.

The family (:mod:`mbsim.checking.family`) is drawn from the seed alone. A bound is held against a
problem only where its assumptions are measured to hold; what it needs besides the settings of a run
is measured and taken on the safe side (:mod:`mbsim.checking.check`).
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from mbsim import statistics
from mbsim.checking.family import DIM, family
from mbsim.choosing.tuning import simulate, step_size_for
from mbsim.errors import InvalidArgument, check_integer, shown
from mbsim.methods import SGD, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import Quadratic
from mbsim.problems.noise import Gaussian, NoiseLaw, TwoPoint
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting
from mbsim.simulation.run import Run, draw_updates
from mbsim.statistics import Interval
from mbsim.verdicts import Comparison, Verdict

__all__ = ["bounds_hold", "check_bound"]

# The rate of one comparison, of which a claim makes some hundreds; updates drawn for each bound on
# a step.
_EACH, _UPDATES = 1e-6, 2**11
# Some bounds are equalities but for a fraction of a percent; an excess of so much would be seen.
# An estimate is good if it is right to a tenth.
_RESOLVED, _NEAR = 0.05, 0.1
# Where the replicates leave a side open, so many times as many are drawn anew, and decide.
_MORE = 16

WRONG = ("half the certificate", "5.1 without λ₀", "k-sum for λ", "tilted draggers")


def bounds_hold(*, quick: bool = False, rng: int = 0, wrong: str = "") -> Verdict:
    """Every bound holds on every problem of a family where its assumptions are measured to hold.

    60 problems are simulated with 128 replicates each (quick: 12 with 64). Bounds on runs, the
    certificate among them, are held against the simulated mean of ‖∇L‖² over the run (Theorem 2:
    its weighted mean); bounds on a step against simulated updates at gradient norms that the run
    visits. No left side may exceed its right side by 5 % (for progress: of r): some bounds are
    equalities but for a fraction of a percent. Where the replicates cannot tell, 16 times as many
    are drawn anew, and decide.

    For each bound the verdict shows the problem in which it is nearest to being broken; `details`
    has the slack, right side over left side, in the median and at its ends, and how often a bound
    was vacuous or did not apply.

    `wrong` breaks something on purpose (a control): "half the certificate" (on ½L‖w‖²), "5.1
    without λ₀", "k-sum for λ" (the estimate of λ taken for a lower bound), "tilted draggers" (the
    assumptions' gate off).

    Source: theory page, sections 4 to 8.
    """
    if wrong and wrong not in WRONG:
        raise InvalidArgument(f"wrong={shown(wrong)} must be one of {', '.join(WRONG)}")
    seed = check_integer("rng", rng, minimum=0)
    count, replicates = (12, 64) if quick else (60, 128)
    own_runs = wrong if wrong != "half the certificate" else ""
    found: dict[str, list[_Held]] = defaultdict(list)
    for number, (case, run) in enumerate(_runs(count, replicates, seed, own_runs)):
        held = list(_held(case, run, number, wrong))
        if not wrong and any(one.open for one in held):
            again = _run(case, number, seed, _MORE * replicates, second=True)
            better = _held(case, again, number, wrong)
            held = [new if old.open else old for old, new in zip(held, better, strict=True)]
        for one in held:
            found[one.bound].append(one)
    nearest = (_nearest(name, held) for name, held in found.items())
    return Verdict(
        claim="bounds-hold",
        statement="Every bound holds on every problem where its assumptions are measured to hold.",
        comparisons=tuple(comparison for comparison in nearest if comparison is not None),
        seed=seed,
        details={
            "problems": number + 1,
            "bounds": {name: _slack(held) for name, held in found.items()},
        },
    )


@dataclass(frozen=True, kw_only=True)
class _Held:
    """One bound held against one problem.

    `excess` is how far the left side lies on the wrong side of the right side: left/right − 1, or
    for progress, which can be negative, the difference over r. It is None where the bound does not
    apply. `slack` is right/left, where that makes sense.
    """

    bound: str
    problem: int
    excess: Interval | None = None
    slack: float = math.nan
    vacuous: bool = False
    left: float = math.nan
    right: float = math.nan
    why_not: str = ""

    @property
    def open(self) -> bool:
        """Whether too few replicates leave open on which side the left side lies."""
        return self.excess is not None and self.excess.low <= _RESOLVED <= self.excess.high


def _nearest(name: str, held: list[_Held], kind: str = "upper bound") -> Comparison | None:
    """The problem in which a bound is nearest to being broken, of all that it applies to."""
    found = [(x.excess, x.problem) for x in held if x.excess is not None]
    if not found:
        return None
    rate = 2 * _EACH * len(found)  # that any of them misses, in either run
    if kind == "estimate":  # wrong on either side, and surely wrong first
        excess, problem = max(
            found, key=lambda pair: (_least_size(pair[0]) > _NEAR, abs(pair[0].estimate))
        )
        excess = replace(excess, false_positive_rate=rate)
        what = f"{name}: left side over right side, minus 1, in problem {problem}"
        off = f"{what}, the farthest off of {len(found)}"
        return Comparison(what=off, measured=excess, relation="within", limit=(-_NEAR, _NEAR))
    # The largest upper limit; if any is surely broken, the one that most surely is.
    broken = [pair for pair in found if pair[0].low > _RESOLVED]
    excess, problem = max(broken or found, key=lambda pair: pair[0].low if broken else pair[0].high)
    what = f"{name}: excess of the left side in problem {problem}, the nearest of {len(found)}"
    excess = replace(excess, false_positive_rate=rate)
    return Comparison(what=what, measured=excess, relation="below", limit=_RESOLVED)


def _least_size(interval: Interval) -> float:
    """How far from 0 the whole interval lies."""
    return max(interval.low, -interval.high, 0.0)


def _slack(held: list[_Held]) -> dict[str, Any]:
    slacks = [x.slack for x in held if math.isfinite(x.slack)]
    applied = sum(x.excess is not None for x in held)
    return {
        "applied": applied,
        "not_applicable": len(held) - applied,
        "vacuous": sum(x.vacuous for x in held),
        "slack_median": float(np.median(slacks)) if slacks else None,
        "slack_least": min(slacks, default=None),
        "slack_most": max(slacks, default=None),
        "slacks": slacks,
    }


def _held(case: Setting, run: Run, number: int, wrong: str) -> Iterator[_Held]:
    """Every bound held against one run; of a control, what it breaks."""
    from mbsim.checking.check import Examination
    from mbsim.theory import sgd_bound

    examination = Examination(run=run, rng=number)
    if wrong == "tilted draggers":
        bound = sgd_bound("sharper")
        yield _on_run(examination, bound, f"{bound.name} (sharper)", number, gate=False)
    elif wrong == "half the certificate":
        if case.half_square:
            yield from _certified(case, examination, number, factor=0.5)
    elif wrong:
        yield from _on_steps(case, examination, number, wrong)
    else:
        for name, bound in _rate_bounds(case):
            yield _on_run(examination, bound, name, number)
        yield from _certified(case, examination, number)
        yield from _on_steps(case, examination, number)


def _rate_bounds(case: Setting) -> list[tuple[str, Any]]:
    from mbsim import theory as bounds

    if isinstance(case.method, SGD):
        makers: list[tuple[Any, dict[str, Any]]] = [
            (bounds.sgd_bound, {}),
            (bounds.clean_sgd_bound, {}),
        ]
    else:
        makers = [(bounds.clipping_bound, {"damped": x}) for x in (True, False)]
        for averaging in ({}, {"averaging": True}):
            makers.append((bounds.clipping_concentrated_bound, averaging))
            for part in ("unimodal", "independent"):
                makers.append((bounds.symmetric_bound, {"part": part, **averaging}))
    found = []
    for make, options in makers:
        for form in ("plain", "sharper"):
            bound = make(form=form, **options)
            more = ", averaging" if "averaging" in options else ""
            found.append((f"{bound.name}{more} ({form})", bound))
    return found


def _on_run(
    examination: Any, bound: Any, name: str, number: int, *, gate: bool = True, factor: float = 1.0
) -> _Held:
    verdict = examination.verdict(bound, gate=gate, false_positive_rate=_EACH)
    if not verdict.comparisons:
        return _Held(bound=name, problem=number, why_not=verdict.not_applicable)
    left, right = verdict.comparisons[0].measured, factor * verdict.details["right"]
    # Over the size of the right side, which need not be positive if a user wrote it.
    scale = 1 / (abs(right) or left.estimate or 1.0)
    sign = -1.0 if bound.kind == "lower bound" else 1.0
    return _Held(
        bound=name,
        problem=number,
        excess=_shifted(left, sign * scale, -sign * right * scale),
        slack=right / left.estimate if left.estimate else math.inf,
        vacuous=verdict.details["vacuous"],
        left=left.estimate,
        right=right,
    )


def _shifted(interval: Interval, factor: float, shift: float) -> Interval:
    """The interval of factor × quantity + shift."""
    low, high = sorted((factor * interval.low + shift, factor * interval.high + shift))
    return replace(
        interval,
        estimate=factor * interval.estimate + shift,
        low=low,
        high=high,
        standard_error=abs(factor) * interval.standard_error,
    )


def _certified(
    case: Setting, examination: Any, number: int, *, factor: float = 1.0
) -> Iterator[_Held]:
    """The certificate of the exact drift."""
    from mbsim.drifts.drift import drift

    # Few draws: where A and M are sampled, a looser certificate, soon found.
    one = drift(case.problem, case.method, batch_size=case.batch_size, rng=number, draws=2**16)
    bound = one.certify(step_size=case.step_size, steps=case.steps)
    name = f"certificate, {'½L‖w‖²' if case.half_square else 'other losses'}"
    if bound:
        yield _on_run(examination, bound, name, number, factor=factor)
    else:
        yield _Held(bound=name, problem=number, why_not=str(bound))


def _on_steps(case: Setting, examination: Any, number: int, wrong: str = "") -> Iterator[_Held]:
    """The bounds on one step, against simulated updates at gradient norms that the run visits."""
    if case.method.micro_batches(case.batch_size) == 1 or examination.measured_false:
        return
    if wrong == "k-sum for λ":
        yield _k_sum(examination, number)
        return
    for r in (case.problem.initial_grad_norm, math.sqrt(np.median(examination.run.grad_norm_sq))):
        yield from _on_step(case, examination, float(r), number, wrong)


def _k_sum(examination: Any, number: int) -> _Held:
    """The estimate of λ taken for a lower bound on it, at a small gradient."""
    from mbsim.theory import alignment_estimate

    estimate, settings = alignment_estimate(), examination.settings
    right = float(estimate.evaluate(**{name: settings[name] for name in estimate.names}))
    left = examination.sample.at(1e-3 * settings["sigma"]).alignment
    interval = statistics.from_error(
        float(left.mean), float(left.standard_error), left.df, false_positive_rate=_EACH
    )
    return _Held(bound="k-sum for λ", problem=number, excess=_shifted(interval, -1.0, right))


def _on_step(case: Setting, examination: Any, r: float, number: int, wrong: str) -> Iterator[_Held]:
    found, sample = examination.sample.at(r), examination.sample
    values = examination.settings | {
        "grad_norm": r,
        "aligned_share": max(0.0, float(found.aligned_share.low(_EACH))),
        "alignment": max(1e-12, float(found.alignment.low(_EACH))),
        "mean_cosine": min(1.0, float(found.mean_cosine.high(_EACH))),
        "norm_spread": sample.problem.noise.sigma / math.sqrt(sample.micro_batch_size),
        "sigma_along": sample.sigma_along,
    }
    # A bound on progress is linear in the threshold v, which is known up to an error.
    ends = [
        values | {"capped_threshold": r * float(limit(_EACH))}
        for limit in (found.weight.low, found.weight.high)
    ]
    axis = np.eye(DIM)[0]
    updates = draw_updates(
        case.problem,
        case.method,
        r * axis,
        batch_size=case.batch_size,
        replicates=_UPDATES,
        rng=SeedSequence(examination.rng, spawn_key=tuple(b"updates")),
    )
    along, squared = updates @ axis, np.square(updates).sum(axis=1)
    for name, bound in _step_bounds(wrong, coherent=case.problem.draggers.coherence > 0):
        rights = [float(bound.evaluate(**{x: end[x] for x in bound.names})) for end in ends]
        if bound.kind == "lower bound":
            excess = statistics.mean((min(rights) - along) / r, false_positive_rate=_EACH)
            yield _Held(bound=name, problem=number, excess=excess)
        else:
            measured = statistics.mean(squared / max(rights), false_positive_rate=_EACH)
            excess, slack = _shifted(measured, 1.0, -1.0), 1 / measured.estimate
            yield _Held(bound=name, problem=number, excess=excess, slack=slack)


def _step_bounds(wrong: str, *, coherent: bool) -> list[tuple[str, Any]]:
    from mbsim import theory as bounds

    drift_bound = bounds.clipping_drift_bound()
    if wrong:  # 5.1 without λ₀
        return [
            (
                wrong,
                replace(drift_bound, expression=drift_bound.expression.subs(bounds.theorems.λ0, 1)),
            )
        ]
    found = [
        (drift_bound.name, drift_bound),
        (f"{drift_bound.name}, aligned", bounds.clipping_drift_bound("aligned")),
    ]
    others = [bounds.clipping_concentrated_drift_bound(), bounds.second_moment_bound()]
    if not coherent:
        others.append(bounds.second_moment_bound(averaging=True))
    return found + [(bound.name, bound) for bound in others]


# ---------------------------------------------------------------------------- a user's bound

_KINDS = {"upper": "upper bound", "lower": "lower bound", "estimate": "estimate"}


def check_bound(
    formula: str,
    *,
    kind: str = "upper",
    method: str | None = None,
    largest_step: str | None = None,
    problems: int = 24,
    rng: int = 0,
) -> Verdict:
    """Hold a formula of your own for (1/T) Σ E‖∇L(w_t)‖² against simulation on the stated family.

    Args:
        formula: such as ``"2*Delta/(eta*T) + eta*L*sigma**2/B"``, in the letters of the paper or in
            code names (:func:`mbsim.theory.parse_formula` lists them, and refuses all else). If it
            has no step size in it, each problem runs with its tuned one.
        kind: "upper", "lower" or "estimate" (right to a tenth).
        method: what it is about, "SGD" or "clipping" (Algorithm 1); clipping if the formula has a
            micro-batch size in it, SGD if not, unless told.
        largest_step: a formula for the largest step size that your bound allows, such as
            ``"1/(2*L)"``; problems with a larger one are left out.
        problems: how many of the family (:func:`mbsim.checking.family.family`), with 128
            replicates each.
        rng: the seed, an integer.

    Returns:
        A Verdict that rests on the problem in which the formula is nearest to being broken: refuted
        where the left side surely exceeds the right side by 5 %, supported where it surely does
        not. Its details have a row for every problem.

    Raises:
        InvalidArgument: for formulas that are refused, and for arguments that break a rule.

    >>> check_bound("Delta/(eta*T) + eta*L*sigma**2/(2*B)", problems=4).status  # knows no draggers
    'refuted'
    """
    from mbsim.theory import formula_bound

    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidArgument(f"kind={shown(kind)} must be one of {', '.join(_KINDS)}")
    check_integer("problems", problems, minimum=1)
    bound = formula_bound(formula, kind=_KINDS[kind])
    if largest_step is not None:
        bound = replace(bound, conditions=(_step_at_most(largest_step),))
    about = "clipping" if "micro_batch_size" in bound.names else "SGD"
    about = about if method is None else method
    cases = family(problems, rng=rng, method=about)
    tuned = "step_size" not in formula_bound(formula).names
    rows, held = [], []
    for number, case in enumerate(_tuned(case) if tuned else case for case in cases):
        one = _of_user(bound, _run(case, number, rng, 128), number)
        if one.open:
            again = _run(case, number, rng, _MORE * 128, second=True)
            one = _of_user(bound, again, number)
        held.append(one)
        rows.append(_row(case, one))
    nearest = _nearest(formula, held, bound.kind)
    steps = "each problem with its tuned step size" if tuned else "step sizes of the family"
    return Verdict(
        claim="check-bound",
        statement=f"{bound}, for {about}, on {problems} problems, {steps}",
        comparisons=(nearest,) if nearest else (),
        not_applicable="" if nearest else f"it applies to no problem: {held[0].why_not}",
        seed=rng,
        details={"rows": rows, **_slack(held)},
    )


def _step_at_most(formula: str) -> Any:
    from mbsim.theory import Condition, parse_formula

    return Condition(
        name="step_size",
        comparison="<=",
        limit=parse_formula(formula),
        sentence="so it was entered",
    )


def _tuned(case: Setting) -> Setting:
    step_size = step_size_for(
        case.problem,
        case.method,
        batch_size=case.batch_size,
        step_size="tuned",
        steps=case.steps,
    )
    return replace(case, step_size=step_size)


def _of_user(bound: Any, run: Run, number: int) -> _Held:
    from mbsim.checking.check import Examination

    try:
        return _on_run(Examination(run=run, rng=number), bound, bound.name, number)
    except InvalidArgument as reason:  # the formula is not finite there
        return _Held(bound=bound.name, problem=number, why_not=str(reason))


def _row(case: Setting, held: _Held) -> dict[str, Any]:
    """One problem as plain data."""
    problem = case.problem
    return {
        "problem": held.problem,
        "loss": str(problem.loss),
        "noise": str(problem.noise),
        "p": problem.draggers.probability,
        "c": problem.draggers.norm_ratio,
        "gamma": problem.draggers.coherence,
        "method": str(case.method),
        "B": case.batch_size,
        "eta": case.step_size,
        "T": case.steps,
        "left": held.left,
        "right": held.right,
        "why_not": held.why_not,
    }


# ---------------------------------------------------------------------------- the runs


def _where_it_shows(wrong: str) -> Setting | None:
    """A case in which a wrong bound on a step is broken: the family's seldom are extreme enough."""
    settings: dict[str, tuple[NoiseLaw, float, float, int]] = {
        "5.1 without λ₀": (Gaussian(sigma=1.0), 0.2, 20.0, 8),
        "k-sum for λ": (TwoPoint(sigma=1.0, rare=0.05), 0.05, 3.0, 32),
    }
    if wrong not in settings:
        return None
    noise, p, c, b = settings[wrong]
    problem = Problem(
        loss=Quadratic(np.ones(DIM)),
        noise=noise,
        benign_dim=8,
        start=np.full(DIM, 1 / math.sqrt(DIM)),
        draggers=Draggers(probability=p, norm_ratio=c),
    )
    return Setting(
        problem=problem, method=MicroBatchClipping(b), batch_size=64, step_size=0.05, steps=200
    )


@functools.lru_cache(maxsize=4)  # a control reads the runs of the claim
def _runs(count: int, replicates: int, rng: int, wrong: str) -> tuple[tuple[Setting, Run], ...]:
    """The cases with their runs: of the family, or the one that a control is about."""
    special = _where_it_shows(wrong)
    tilted = wrong == "tilted draggers"
    method, tilt = ("SGD", -0.1) if tilted else ("both", 0.0)
    cases = (
        [special] if special else family(12 if tilted else count, rng=rng, method=method, tilt=tilt)
    )
    return tuple((case, _run(case, i, rng, replicates)) for i, case in enumerate(cases))


def _run(case: Setting, number: int, rng: int, replicates: int, *, second: bool = False) -> Run:
    """A case simulated; a second time from a stream of its own."""
    return simulate(
        case.problem,
        case.method,
        batch_size=case.batch_size,
        step_size=case.step_size,
        steps=case.steps,
        replicates=replicates,
        rng=SeedSequence(rng, spawn_key=(*b"family runs", number, int(second))),
    )
