"""Verdicts: what comes of holding a claim or a bound against numbers.

A verdict is never typed in. It is made of comparisons, each an estimate with an interval held
against a limit, and its status follows from where the intervals lie.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mbsim import plots
from mbsim._shared import tables
from mbsim._shared.values import set_field
from mbsim.errors import InvalidArgument, shown
from mbsim.statistics import Interval

__all__ = ["Answer", "Comparison", "Refusal", "Verdict"]

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measured quantity held against a limit.

    Attributes:
        what: what was measured, in words.
        measured: the estimate and its interval.
        relation: "below", "above", or "within" (for an equivalence: between `limit[0]` and
            `limit[1]`).
        limit: a number, or for "within" two.

    >>> from mbsim import statistics
    >>> measured = statistics.mean([1.0, 1.1, 0.9, 1.0], false_positive_rate=0.01)
    >>> Comparison(what="height", measured=measured, relation="below", limit=2.0).status
    'supported'
    """

    what: str
    measured: Interval
    relation: str
    limit: float | tuple[float, float]

    def __post_init__(self) -> None:
        pair = isinstance(self.limit, tuple)
        if self.relation not in ("below", "above", "within") or pair != (self.relation == "within"):
            raise InvalidArgument(
                f"relation={shown(self.relation)} must be 'below' or 'above' with one limit, or "
                "'within' with two"
            )
        low, high = self._limits
        if low > high:  # a NaN limit is left to end inconclusive
            raise InvalidArgument(f"limit={shown(self.limit)} must be two numbers that ascend")

    @property
    def _limits(self) -> tuple[float, float]:
        if isinstance(self.limit, tuple):
            return self.limit
        return (-math.inf, self.limit) if self.relation == "below" else (self.limit, math.inf)

    @property
    def status(self) -> str:
        """Supported or refuted when the whole interval lies on one side, else inconclusive."""
        low, high = self._limits
        if low < self.measured.low and self.measured.high < high:
            return SUPPORTED
        if self.measured.high < low or self.measured.low > high:
            return REFUTED
        return INCONCLUSIVE

    def __str__(self) -> str:
        limit = (
            f"{self.limit[0]:.4g} to {self.limit[1]:.4g}"
            if isinstance(self.limit, tuple)
            else f"{self.limit:.4g}"
        )
        return f"{self.what}: {self.measured}, claimed {self.relation} {limit}: {self.status}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim, the comparisons it rests on, and the status that follows from them.

    Attributes:
        claim: its short name.
        statement: what is claimed, in a sentence.
        comparisons: every one must be supported for the claim to be; one that is refuted
            refutes it.
        seed: what the randomness came from.
        not_applicable: why the claim does not apply (an assumption was measured false), or "".
        power: what would have been seen, in words, or "".
        details: further numbers, as plain data.

    >>> from mbsim import statistics
    >>> measured = statistics.mean([1.0, 1.1, 0.9, 1.0], false_positive_rate=0.01)
    >>> tall = Comparison(what="height", measured=measured, relation="above", limit=2.0)
    >>> print(Verdict(claim="tall", statement="It is tall.", comparisons=(tall,), seed=0))
    tall: refuted
      It is tall.
      height: 1 [0.7615, 1.238], claimed above 2: refuted
    """

    claim: str
    statement: str
    comparisons: tuple[Comparison, ...]
    seed: Any
    not_applicable: str = ""
    power: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.comparisons and not self.not_applicable:
            raise InvalidArgument(f"claim={shown(self.claim)} must rest on at least one comparison")
        set_field(self, "details", MappingProxyType(dict(self.details)))

    def __getstate__(self) -> dict[str, Any]:  # a view of a dictionary cannot be pickled
        return {**vars(self), "details": dict(self.details)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, details=MappingProxyType(state["details"]))

    @property
    def status(self) -> str:
        """*supported*, *refuted*, *inconclusive* or *not applicable*."""
        if self.not_applicable:
            return NOT_APPLICABLE
        found = {comparison.status for comparison in self.comparisons}
        return next(s for s in (REFUTED, INCONCLUSIVE, SUPPORTED) if s in found)

    @property
    def deciding(self) -> Comparison | None:
        """The comparison that decided: the first of those that share the verdict's status."""
        return next((c for c in self.comparisons if c.status == self.status), None)

    @property
    def false_positive_rate(self) -> float:
        """A bound on the probability of a wrong decision: the rates of the comparisons, added."""
        return sum(c.measured.false_positive_rate for c in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain data, numbers in full."""
        return {
            "claim": self.claim,
            "status": self.status,
            "statement": self.statement,
            "not_applicable": self.not_applicable,
            "false_positive_rate": self.false_positive_rate,
            "comparisons": [
                {
                    "what": c.what,
                    **c.measured.to_dict(),
                    "relation": c.relation,
                    "limit": list(c.limit) if isinstance(c.limit, tuple) else c.limit,
                    "ratio": _ratio(c),
                    "detectable": c.measured.detectable,
                    "status": c.status,
                }
                for c in self.comparisons
            ],
            **({"power": self.power} if self.power else {}),
            "seed": self.seed,
            "details": dict(self.details),
        }

    def plot(self, ax: plots.Axes | None = None, **style: Any) -> plots.Axes:
        """Every comparison: the estimate with its interval, and shaded the side that is claimed.

        So a bound held against a run draws itself: ``mbsim.check(bound, run).plot()``. The axis is
        logarithmic where all numbers are positive.

        Args:
            ax: where to draw; a new figure unless told.
            **style: properties of the points, such as ``color``.
        """
        with plots.on(ax) as axes:
            rows = [
                (
                    textwrap.fill(f"{c.what}: {c.status}", 36),
                    c.measured.estimate,
                    c.measured.low,
                    c.measured.high,
                )
                for c in self.comparisons
            ]
            ends = [x for c, row in zip(self.comparisons, rows, strict=True)
                    for x in (*row[1:], *c._limits) if math.isfinite(x)]  # fmt: skip
            if ends and min(ends) > 0:
                axes.set_xscale("log")
                axes.set_xlim(min(ends) / 1.5, max(ends) * 1.5)
                if max(ends) < 100 * min(ends):
                    plots.plain_numbers(axes.xaxis)
            elif ends:
                room = 0.1 * (max(ends) - min(ends)) or 1.0
                axes.set_xlim(min(ends) - room, max(ends) + room)
            left, right = axes.get_xlim()
            for row, comparison in enumerate(self.comparisons):
                low, high = comparison._limits
                side = max(low, left), min(high, right)
                axes.barh(row, side[1] - side[0], 0.7, side[0], color="0.88", zorder=0)
                for end in (low, high):
                    axes.plot([end] * 2, [row - 0.35, row + 0.35], color="0.3", linewidth=1.2)
            plots.intervals(axes, rows, **style)
            rates = sorted({c.measured.false_positive_rate for c in self.comparisons})
            sure = ", ".join(f"{100 * (1 - rate):.10g} %" for rate in rates)
            axes.set_xlabel(f"measured, {sure} interval; shaded: as claimed")
            axes.set_title(f"{self.claim}: {self.status}")
            if self.not_applicable:
                axes.set_xlabel(textwrap.fill(self.not_applicable, 60))
        return axes

    def __str__(self) -> str:
        rows = [self.statement]
        if self.not_applicable:
            rows.append(self.not_applicable)
        else:
            rows += [*map(str, self.comparisons), *([f"power: {self.power}"] if self.power else [])]
        lines = (line for row in rows for line in tables.as_text([(row,)]))
        return "\n".join([f"{self.claim}: {self.status}", *(f"  {line}" for line in lines)])

    __repr__ = __str__


@dataclass(frozen=True)
class Refusal:
    """Why there is no number: what is returned in its place. It is false in a condition.

    Attributes:
        reason: why, in words; `of`: what there is none of.

    >>> refused = Refusal("the step size is too large", of="certificate")
    >>> bool(refused), str(refused)
    (False, 'no certificate: the step size is too large')
    >>> refused.value
    Traceback (most recent call last):
        ...
    AttributeError: no certificate: the step size is too large; so there is no 'value'
    """

    reason: str
    of: str = "number"

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("reason", "of"):  # what copies and pickles ask for
            raise AttributeError(name)
        raise AttributeError(f"{self}; so there is no {name!r}")

    def __str__(self) -> str:
        return f"no {self.of}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Which micro-batch size, and what it is worth: what every adviser answers, in one form.

    Attributes:
        question: what was asked, in a sentence: which b ends lowest, after how many steps, with
            which step sizes, on what.
        batch_size: B.
        micro_batch_size: the best b; B where clipping does not help.
        tied: every b that cannot be told from the best.
        gain: what SGD ends at over what the best b ends at, with its interval: above 1, clipping
            helps by that factor.
        step_size: η of the best b; `sgd_step_size`: that of SGD.
        reason: why, in words.
        rests_on: what the answer rests on: data, runs, assumptions.

    >>> from mbsim import statistics
    >>> print(Answer(
    ...     question="which b ends lowest after 100 steps?", batch_size=64, micro_batch_size=4,
    ...     tied=(4, 8), gain=statistics.exactly(1.5), step_size=0.1, sgd_step_size=0.05,
    ...     reason="draggers", rests_on="one problem"))
    which b ends lowest after 100 steps?
      b = 4 of B = 64, tied with 8: SGD ends 1.5 [1.5, 1.5] times as high
      step size   0.1 (SGD: 0.05)
      reason      draggers
      rests on    one problem
    """

    question: str
    batch_size: int
    micro_batch_size: int
    tied: tuple[int, ...]
    gain: Interval
    step_size: float
    sgd_step_size: float
    reason: str
    rests_on: str

    @property
    def clips(self) -> bool:
        """Whether the answer is to clip: the best b is below B, and SGD's b = B is not tied."""
        return self.micro_batch_size < self.batch_size and self.batch_size not in self.tied

    @property
    def advice(self) -> str:
        """The first line of the answer."""
        others = [str(b) for b in self.tied if b != self.micro_batch_size]
        tied = f", tied with {', '.join(others)}" if others else ""
        if self.clips:
            which = f"b = {self.micro_batch_size} of B = {self.batch_size}"
            return f"{which}{tied}: SGD ends {self.gain} times as high"
        if self.micro_batch_size == self.batch_size:
            return f"do not clip: SGD (b = B = {self.batch_size}) ends lowest{tied}"
        which = f"b = {self.micro_batch_size} is not told from SGD"
        return f"do not clip: {which} ({self.gain} times as high){tied}"

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data."""
        gain = self.gain.to_dict()
        return {**vars(self), "tied": list(self.tied), "gain": gain, "clips": self.clips}

    def __str__(self) -> str:
        rows = {
            "step size": f"{self.step_size:.3g} (SGD: {self.sgd_step_size:.3g})",
            "reason": self.reason,
            "rests on": self.rests_on,
        }
        lines = [*tables.as_text([(self.advice,)]),
                 *tables.as_text(list(rows.items()), least=(11,), gap=" ")]  # fmt: skip
        question = tables.as_text([(self.question,)], width=80)
        return "\n".join([*question, *(f"  {line}" for line in lines)])


def _ratio(comparison: Comparison) -> float | None:
    """Estimate over limit (over the middle of two)."""
    limit = comparison.limit
    middle = sum(limit) / 2 if isinstance(limit, tuple) else limit
    return comparison.measured.estimate / middle if middle else None
