"""One bound held against many runs: by how much its left side is on the wrong side, and where most.

The *excess* of a bound on one problem is left side over right side, minus 1; of a lower bound its
negative. A bound holds where its excess surely lies below 5 %: some bounds are equalities but for a
fraction of a percent, and an excess of so much would be seen. An estimate is good if it is right to
a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mbsim.checking.check import NEAR, Examination
from mbsim.drifts.certificate import Certificate
from mbsim.statistics import Interval, interval_of
from mbsim.theory.bound import Bound
from mbsim.verdicts import REFUTED, Comparison, Refusal, Verdict

__all__ = [
    "EACH",
    "RESOLVED",
    "excess",
    "excess_on_run",
    "over_all",
    "shifted",
    "slack",
]

# The rate of one comparison, of which there are some hundreds; the excess that would be seen.
EACH, RESOLVED = 1e-6, 0.05


def excess(name: str, problem: int, measured: Interval, kind: str = "", **details: Any) -> Verdict:
    """A bound, called `name`, on one problem: its excess held against what would be seen."""
    what = f"{name}: excess of the left side in problem {problem}"
    relation, limit = ("within", (-NEAR, NEAR)) if kind == "estimate" else ("below", RESOLVED)
    comparison = Comparison(what=what, measured=measured, relation=relation, limit=limit)
    return Verdict(
        claim=name,
        statement=f"{name} holds in problem {problem}",
        comparisons=(comparison,),
        seed=problem,
        details={"problem": problem, **details},
    )


def excess_on_run(
    examination: Examination,
    bound: Bound | Certificate | Refusal,
    name: str,
    *,
    gate: bool = True,
    factor: float = 1.0,
) -> Verdict:
    """The excess of a bound, its right side multiplied by `factor`, on a run.

    `details` has both sides, the slack (right side over left side) and whether it is vacuous.
    """
    verdict = examination.verdict(bound, gate=gate, false_positive_rate=EACH)
    if not verdict.comparisons:
        return replace(verdict, claim=name)
    assert not isinstance(bound, Refusal)
    left, right = verdict.comparisons[0].measured, factor * verdict.details["right"]
    # Over the size of the right side, which need not be positive if a user wrote it.
    scale = 1 / (abs(right) or left.estimate or 1.0)
    sign = -1.0 if bound.kind == "lower bound" else 1.0
    return excess(
        name,
        examination.rng,
        shifted(left, sign * scale, -sign * right * scale),
        bound.kind,
        slack=right / left.estimate if left.estimate else math.inf,
        vacuous=verdict.details["vacuous"],
        left=left.estimate,
        right=right,
    )


def shifted(interval: Interval, factor: float, shift: float) -> Interval:
    """The interval of factor × quantity + shift."""
    low, high = sorted((factor * interval.low + shift, factor * interval.high + shift))
    estimate, error = factor * interval.estimate + shift, abs(factor) * interval.standard_error
    return interval_of(estimate, error, interval.df, interval.false_positive_rate, (low, high))


def over_all(held: Sequence[Verdict], *, looks: int = 0) -> Comparison | None:
    """The comparison on which a bound stands or falls: where it is nearest to being broken.

    That is in the problem with the largest upper limit; if the bound is surely broken in some, in
    the one in which it most surely is. Of an estimate it is the one farthest off.

    Args:
        held: the bound on one problem each.
        looks: how many intervals there might have been; two for each problem, unless told.
    """
    broken = [one for one in held if one.status == REFUTED]

    def closeness(one: Verdict) -> float:
        (comparison,) = one.comparisons
        measured = comparison.measured
        if comparison.relation == "within":
            return abs(measured.estimate)
        return measured.low if broken else measured.high

    applied = [one for one in held if one.comparisons]
    if not applied:
        return None
    (comparison,) = max(broken or applied, key=closeness).comparisons
    what = f"{comparison.what}, the nearest of {len(applied)}"
    rate = EACH * (looks or 2 * len(applied))  # that any of them misses
    return replace(
        comparison, what=what, measured=replace(comparison.measured, false_positive_rate=rate)
    )


def slack(held: Sequence[Verdict]) -> dict[str, Any]:
    """How many problems a bound applied to, and its slack over them, as plain data."""
    slacks = [x for one in held if math.isfinite(x := one.details.get("slack", math.nan))]
    applied = sum(bool(one.comparisons) for one in held)
    return {
        "applied": applied,
        "not_applicable": len(held) - applied,
        "vacuous": sum(one.details.get("vacuous", False) for one in held),
        "slack_median": float(np.median(slacks)) if slacks else None,
        "slack_least": min(slacks, default=None),
        "slack_most": max(slacks, default=None),
        "slacks": slacks,
    }
