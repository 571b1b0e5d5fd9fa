"""A formula of a user's own, held against simulation on problems of every kind the model has."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sympy

from mbsim._shared.progress import progress
from mbsim.checking.check import NEAR
from mbsim.checking.excess import RESOLVED, excess_on_run, hold, nearest, over_all, simulated, slack
from mbsim.checking.family import drawn, setting_of
from mbsim.choosing.tuning import step_size_for
from mbsim.errors import InvalidArgument, check_integer, shown
from mbsim.problems.setting import Setting
from mbsim.theory.bound import Bound, Condition, formula_bound
from mbsim.theory.parser import parse_formula
from mbsim.theory.quantities import QUANTITIES, SETTINGS
from mbsim.verdicts import REFUTED, Verdict

__all__ = ["check_bound"]

_KINDS = {"upper": "upper bound", "lower": "lower bound", "estimate": "estimate"}
_REPLICATES = 128
# How often the number of problems is doubled at most; no doubling follows one in which the formula
# came nearer to being broken by no more than this share.
_DOUBLINGS, _NO_NEARER = 2, 0.05


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
    first = check_integer("problems", problems, minimum=1)
    seed = check_integer("rng", rng, minimum=0)
    bound = formula_bound(formula, kind=_KINDS[kind])
    tuned = "step_size" not in bound.names
    if largest_step is not None:
        limit = sympy.LessThan(QUANTITIES["step_size"].symbol, parse_formula(largest_step))
        bound = replace(
            bound, conditions=(Condition(relation=limit, sentence="so it was entered"),)
        )
    about = "clipping" if "micro_batch_size" in bound.names else "SGD"
    about = about if method is None else method
    if about not in ("both", "SGD", "clipping"):
        raise InvalidArgument(f"method={shown(method)} must be 'both', 'SGD' or 'clipping'")

    numbers: list[dict[str, float]] = []
    held: list[Verdict] = []
    most, seen, stable = first * 2**_DOUBLINGS, 0.0, False
    with progress(most, "holding the formula against simulation") as bar:
        for number in range(most):
            worst = nearest(held) if number >= first and number % 2 else None
            near = numbers[worst.details["problem"]] if worst else None
            numbers.append(drawn(number, rng=seed, near=near))
            sgd = about == "SGD" or (about == "both" and number % 4 == 3)
            setting = setting_of(numbers[-1], sgd=sgd)
            held.append(_held(bound, setting, number, seed, tuned=tuned))
            bar.update(number + 1)
            if number + 1 in (first, 2 * first, most):
                before, seen = seen, _seen(held, bound.kind)
                stable = number >= first and abs(seen - before) <= _NO_NEARER * before
                if stable or any(one.status == REFUTED for one in held):
                    break
    decisive = over_all(held, looks=most)
    steps = "each problem with its tuned step size" if tuned else "step sizes of the family"
    power = _power(held, bound.kind, stable=stable)
    return Verdict(
        claim="check-bound",
        statement=f"{bound}, for {about}, on {len(held)} problems, {steps}",
        comparisons=(decisive,) if decisive else (),
        not_applicable="" if decisive else f"it applies to no problem: {held[0].not_applicable}",
        seed=seed,
        power=_in_words(power, bound.kind, len(held))
        if decisive and decisive.status != REFUTED
        else "",
        details={"rows": [one.details["row"] for one in held], **slack(held), "power": power},
    )


def _held(bound: Bound, setting: Setting, number: int, seed: int, *, tuned: bool) -> Verdict:
    """The formula on one problem; `details` has the problem as a row of plain data."""
    try:
        if tuned:
            step_size = step_size_for(
                setting.problem,
                setting.method,
                batch_size=setting.batch_size,
                step_size="tuned",
                steps=setting.steps,
            )
            setting = replace(setting, step_size=step_size)
        again = functools.partial(simulated, setting, number, seed, second=True)
        run = simulated(setting, number, seed, _REPLICATES)
        (one,) = hold(run, number, lambda x: [excess_on_run(x, bound, bound.name)], again)
    except InvalidArgument as reason:  # no step size is best, or the formula is not finite there
        one = Verdict(
            claim=bound.name,
            statement=str(bound),
            comparisons=(),
            seed=number,
            not_applicable=str(reason),
        )
    quantities = setting.quantities()
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


def _seen(held: Sequence[Verdict], kind: str) -> float:
    """The factor by which the right side could be multiplied and just be refuted somewhere.

    The largest one, of a lower bound the smallest; if the bound applies nowhere, 0 or infinity.
    """
    measured = [one.comparisons[0].measured for one in held if one.comparisons]
    if kind == "lower bound":
        return min(((1 - x.low) / (1 - RESOLVED) for x in measured), default=math.inf)
    tolerance = NEAR if kind == "estimate" else RESOLVED
    return max([0.0, *((1 + x.low) / (1 + tolerance) for x in measured)])


def _power(held: Sequence[Verdict], kind: str, *, stable: bool) -> dict[str, Any]:
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
                "factor_where_small": _seen(small, kind),
                "factor_where_large": _seen(large, kind),
            }
    return {"factor": _seen(held, kind), "stable": stable, "by_quantity": found}


def _in_words(power: dict[str, Any], kind: str, problems: int) -> str:
    halves = [
        (found[f"factor_where_{half}"], f"{letter} is {half}")
        for letter, found in power["by_quantity"].items()
        for half in ("small", "large")
    ]
    least, where = (max if kind == "lower bound" else min)(halves, default=(math.nan, ""))
    text = f"a right side {power['factor']:.3g} times as large would have been refuted"
    if where:
        text += f", where {where} one {least:.3g} times as large"
    if power["stable"]:
        return f"{text}; more problems brought it no nearer"
    return f"{text}; {problems} problems are the most drawn, and the last brought it nearer still"
