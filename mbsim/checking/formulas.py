"""A formula of a user's own, held against simulation on problems of every kind the model has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from mbsim._shared.meant import answering
from mbsim._shared.progress import watched
from mbsim._shared.seeds import child
from mbsim.checking.check import NEAR, Examination
from mbsim.checking.excess import RESOLVED, excess_on_run, over_all, slack
from mbsim.checking.family import drawn, setting_of
from mbsim.drifts.drift import drift
from mbsim.errors import InvalidArgument, check_integer, shown
from mbsim.problems.setting import Setting
from mbsim.simulation.run import run_setting
from mbsim.theory.bound import Bound, Condition, formula_bound
from mbsim.theory.parser import parse_formula
from mbsim.theory.quantities import SETTINGS
from mbsim.verdicts import INCONCLUSIVE, REFUTED, SUPPORTED, Verdict

__all__ = ["check_bound"]

_KINDS = {"upper": "upper bound", "lower": "lower bound", "estimate": "estimate"}
# Replicates of a problem; where they leave it open more are drawn anew, as many as should decide,
# but not more numbers than this; so often in all.
_REPLICATES, _MOST_DRAWN, _LOOKS = 128, 2**27, 3
# How often the number of problems is doubled at most; no doubling follows one in which the formula
# came nearer to being broken by no more than this share.
_DOUBLINGS, _NO_NEARER = 2, 0.05


@answering
def check_bound(
    formula: str,
    *,
    kind: str = "upper",
    method: str | None = None,
    largest_step: str | None = None,
    problems: int = 24,
    rng: int = 0,
) -> Verdict:
    """Hold a formula of your own for (1/T) Σ E‖∇L(w_t)‖² against simulation on many problems.

    The problems are those of :func:`mbsim.checking.family.drawn`: every quantity varies,
    and in turn every part of what a run does (start, noise, draggers alone and together, long
    steps, small batches) outweighs the others, so that what a formula gets wrong can show. After
    the first `problems`, as many again are drawn, every other one close to that in which the
    formula is nearest to being broken; and twice as many once more, if it came nearer by that.

    Args:
        formula: such as ``"2*Delta/(eta*T) + eta*L*sigma**2/B"``, in the letters of the paper or in
            code names (:func:`mbsim.theory.parse_formula` lists them, and refuses all else). If it
            has no step size in it, each problem runs with its tuned one.
        kind: "upper", "lower" or "estimate" (right to a tenth).
        method: what it is about, "SGD" or "clipping" (Algorithm 1); clipping if the formula has a
            micro-batch size in it, SGD if not, unless told.
        largest_step: a formula for the largest step size that your bound allows, such as
            ``"1/(2*L)"``; problems with a larger one are left out.
        problems: how many to begin with, with 128 replicates each; at most four times as many are
            drawn.
        rng: the seed, an integer.

    Returns:
        A Verdict that rests on the problem in which the formula is nearest to being broken: refuted
        where the left side surely exceeds the right side by 5 %, supported where it surely does
        not. Its rate of error holds for all problems that might have been drawn. Its `power` says
        what would have been seen: by which factor the right side could have been smaller (larger,
        for a lower bound) and the formula still stand, also where each quantity is small and where
        it is large. Its details have a row for every problem, and the power in numbers.

    Raises:
        InvalidArgument: for formulas that are refused, and for arguments that break a rule.

    >>> check_bound("Delta/(eta*T) + eta*L*sigma**2/(2*B)", problems=4).status  # knows no draggers
    'refuted'
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidArgument(f"kind={shown(kind)} must be one of {', '.join(_KINDS)}")
    problems = check_integer("problems", problems, minimum=1)
    seed = check_integer("rng", rng, minimum=0)
    bound = formula_bound(formula, kind=_KINDS[kind])
    tuned = "step_size" not in bound.names
    if largest_step is not None:
        longest = Condition(
            name="step_size",
            comparison="<=",
            limit=parse_formula(largest_step),
            sentence="so it was entered",
        )
        bound = replace(bound, conditions=(longest,))
    about = "clipping" if "micro_batch_size" in bound.names else "SGD"
    about = about if method is None else method
    if about not in ("both", "SGD", "clipping"):
        raise InvalidArgument(f"method={shown(method)} must be 'both', 'SGD' or 'clipping'")

    held, stable = _search(bound, about, problems, seed, tuned=tuned)
    worst = over_all(held, looks=_LOOKS * problems * 2**_DOUBLINGS)
    steps = "each problem with its tuned step size" if tuned else "step sizes of the family"
    power = {**_power(held, bound.kind), "stable": stable}
    return Verdict(
        claim="check-bound",
        statement=f"{bound}, for {about}, on {len(held)} problems, {steps}",
        comparisons=(worst,) if worst else (),
        not_applicable="" if worst else f"it applies to no problem: {held[0].not_applicable}",
        seed=seed,
        power=_in_words(power, bound.kind) if worst and worst.status != REFUTED else "",
        details={"rows": [one.details["row"] for one in held], **slack(held), "power": power},
    )


def _search(
    bound: Bound, about: str, first: int, seed: int, *, tuned: bool
) -> tuple[list[Verdict], bool]:
    """The formula on each problem drawn; and whether the last ones brought it no nearer."""
    numbers: list[dict[str, float]] = []
    held: list[Verdict] = []
    rounds = [first * 2**doubling for doubling in range(_DOUBLINGS + 1)]
    seen, stable = 0.0, False
    for number in watched(range(rounds[-1]), "holding the formula against simulation"):
        closest = _tightest(held) if number >= first and number % 2 else None
        near = numbers[closest.details["row"]["problem"]] if closest else None
        numbers.append(drawn(number, rng=seed, near=near))
        sgd = about == "SGD" or (about == "both" and number % 4 == 3)
        setting = setting_of(numbers[-1], sgd=sgd)
        decided = any(one.status == REFUTED for one in held)
        held.append(_held(bound, setting, number, seed, tuned=tuned, decided=decided))
        if number + 1 in rounds and (worst := over_all(held)):
            before, seen = seen, _factor(held, bound.kind)
            stable = number >= first and abs(seen - before) <= _NO_NEARER * before
            if worst.status == REFUTED or (stable and worst.status == SUPPORTED):
                break
    return held, stable


def _held(
    bound: Bound, setting: Setting, number: int, seed: int, *, tuned: bool, decided: bool
) -> Verdict:
    """The formula on one problem; `details` has the problem as a row of plain data.

    If it is `decided` elsewhere, it may stay open here.
    """
    quantities: dict[str, Any] = setting.quantities()
    try:
        bound.evaluate(**bound.picked(quantities))
        if tuned:
            one_step = drift(setting.problem, setting.method, batch_size=setting.batch_size)
            tuned_step = one_step.tuned_step_size(steps=setting.steps)
            setting = replace(setting, step_size=tuned_step)
        replicates = _REPLICATES
        for look in range(_LOOKS):
            rng = child(SeedSequence(seed), "family runs", number, look)
            run = run_setting(setting, replicates=replicates, rng=rng)
            one = excess_on_run(Examination(run=run, rng=number), bound, bound.name)
            if one.status != INCONCLUSIVE or decided:
                break
            replicates = _enough(one, setting, replicates)
    except InvalidArgument as reason:  # the formula is not finite there, or no step size is best
        one = Verdict(
            claim=bound.name,
            statement=str(bound),
            comparisons=(),
            seed=number,
            not_applicable=str(reason),
        )
    quantities = setting.quantities()  # with the step size that it ran with
    row = {
        "problem": number,
        "loss": str(setting.problem.loss),
        "noise": quantities["noise"],
        "method": quantities["method"],
        "d": setting.problem.dimension,
        **{quantity.symbol.name: quantities[quantity.name] for quantity in SETTINGS},
        "left": one.details.get("left", math.nan),
        "right": one.details.get("right", math.nan),
        "why_not": one.not_applicable,
    }
    return replace(one, details={**one.details, "row": row})


def _enough(one: Verdict, setting: Setting, replicates: int) -> int:
    """Replicates that should decide where so many left it open.

    As many as make the interval 0.6 times as long as its distance from the limit, taken between
    5 % (a bound that is an equality) and 10 % (for the first estimate may be off).
    """
    (comparison,) = one.comparisons
    limits = comparison.limit if isinstance(comparison.limit, tuple) else (comparison.limit,)
    measured = comparison.measured
    room = min(abs(measured.estimate - limit) for limit in limits)
    allowed = 0.6 * min(max(room, RESOLVED), 2 * RESOLVED)
    wanted = ((measured.high - measured.low) / 2 / allowed) ** 2
    numbers = setting.steps * (setting.problem.dimension + setting.micro_batches)
    most = _MOST_DRAWN // numbers
    return max(4 * _REPLICATES, min(math.ceil(wanted * replicates), most))


def _tightest(held: Sequence[Verdict]) -> Verdict | None:
    """Where the formula surely has least room."""
    applied = (one for one in held if one.comparisons)
    return max(applied, key=lambda one: one.comparisons[0].measured.low, default=None)


def _factor(held: Sequence[Verdict], kind: str) -> float:
    """The factor by which the right side could be multiplied and just be refuted somewhere.

    The largest one; of a lower bound the smallest. If it applies nowhere, 0 or infinity.
    """
    tightest = _tightest(held)
    if tightest is None:
        return math.inf if kind == "lower bound" else 0.0
    least = tightest.comparisons[0].measured.low
    if kind == "lower bound":
        return (1 - least) / (1 - RESOLVED)
    return max(0.0, (1 + least) / (1 + (NEAR if kind == "estimate" else RESOLVED)))


def _power(held: Sequence[Verdict], kind: str) -> dict[str, Any]:
    """What would have been seen, over all problems and where each quantity is small or large."""
    applied = [one for one in held if one.comparisons]
    found: dict[str, dict[str, Any]] = {}
    for letter in ("d", *(quantity.symbol.name for quantity in SETTINGS)):
        values = [one.details["row"][letter] for one in applied]
        middle = float(np.median(np.unique(values))) if values else math.nan
        small = [one for one, x in zip(applied, values, strict=True) if x <= middle]
        large = [one for one, x in zip(applied, values, strict=True) if x > middle]
        if small and large:
            found[letter] = {
                "range": [min(values), max(values)],
                "factor_where_small": _factor(small, kind),
                "factor_where_large": _factor(large, kind),
            }
    return {"factor": _factor(held, kind), "by_quantity": found}


def _in_words(power: dict[str, Any], kind: str) -> str:
    halves = [
        (found[f"factor_where_{half}"], f"{letter} is {half}")
        for letter, found in power["by_quantity"].items()
        for half in ("small", "large")
    ]
    least, where = (max if kind == "lower bound" else min)(halves, default=(math.nan, ""))
    text = f"a right side {power['factor']:.3g} times as large would have been refuted"
    if where:
        text += f" (where {where}, one {least:.3g} times as large)"
    if power["stable"]:
        return f"{text}; more problems brought it no nearer"
    return f"{text}; the last problems brought it nearer still, and no more are drawn"
