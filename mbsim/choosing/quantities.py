r"""What a bound is evaluated with: what a problem fixes, what is given, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim._shared import tables
from mbsim._shared.meant import answering
from mbsim.drifts.drift import drift
from mbsim.drifts.steps import measured_values, norms_near_atoms, step_sample
from mbsim.errors import InvalidArgument, check_divides
from mbsim.methods import MicroBatchClipping
from mbsim.problems.problem import Problem, check_problem
from mbsim.statistics import t_quantile

__all__ = ["Quantities", "quantities"]

# How often any of the measured numbers may be on the wrong side.
_RATE = 1e-3
_HEAD = ("quantity", "", "value", "where from; what it is")


@dataclass(frozen=True)
class Quantities(Mapping[str, float]):
    """Numbers by code name, which bounds and Table 1 take; it prints what each is and where from.

    Attributes:
        numbers: by code name.
        sources: for each, where it comes from, in words.
        why_not: what could not be measured, and why, or "".
    """

    numbers: dict[str, float]
    sources: dict[str, str]
    why_not: str = ""

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def to_dict(self) -> dict[str, Any]:
        """It as plain data."""
        return {
            name: {"value": number, "from": self.sources[name]}
            for name, number in self.numbers.items()
        }

    def _rows(self) -> list[tuple[str, ...]]:
        from mbsim.theory.quantities import QUANTITIES, letter_of

        return [
            (
                name,
                letter_of(name),
                f"{self.numbers[name]:.4g}",
                f"{self.sources[name]}; {QUANTITIES[name].meaning}",
            )
            for name in QUANTITIES
            if name in self.numbers
        ]

    def __str__(self) -> str:
        lines = tables.as_text([_HEAD, *self._rows()], align="<<.")
        lost = tables.as_text([("not measured:", self.why_not)] if self.why_not else [], gap=" ")
        return "\n".join([*lines, *lost])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tables.as_html(self._rows(), head=_HEAD)


@answering
def quantities(
    problem: Problem,
    *,
    batch_size: int,
    micro_batch_size: int,
    step_size: float | None = None,
    steps: int | None = None,
    rng: int | SeedSequence | Generator = 0,
) -> Quantities:
    """All that bounds ask for of a problem and a micro-batch size, those that need measuring too.

    λ, λ̄, q* and ω are measured on sampled steps, and Λ is that of the drift, at gradient norms from
    far below the noise to √(2LΔ), which no run exceeds while its loss is below the start's. Each is
    the worst of them, on its safe side (99.9 %). Along one run they are better: :func:`mbsim.check`
    takes them there.

    Args:
        problem: a problem.
        batch_size: B.
        micro_batch_size: b, which divides B.
        step_size: η, for bounds at one step size.
        steps: T.
        rng: the seed of the sampled steps.

    Returns:
        A mapping, for :meth:`mbsim.theory.Bound.evaluate` and
        :meth:`mbsim.theory.Table.evaluate`. Where nothing can be measured (draggers with a tilt,
        noise that draws whole vectors) it says why.

    Raises:
        InvalidArgument: for arguments that break a rule.

    Source: the theory page, sections 5 and 6.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(32)), noise=mbsim.noise.Gaussian(1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20), benign_dim=16,
    ...     start=np.ones(32))
    >>> known = quantities(problem, batch_size=64, micro_batch_size=8, step_size=0.01, steps=1000)
    >>> bound = mbsim.theory.clipping_bound()
    >>> round(known["mean_weight"], 1), bound.evaluate(known) > bound.bias.evaluate(known) > 0
    (0.7, True)
    >>> all(row["bound"] for row in mbsim.theory.table1().evaluate(known)[:6])
    True
    """
    from mbsim.theory.quantities import MEASURED, QUANTITIES

    fixed = check_problem(problem).quantities()
    given: dict[str, Any] = {
        "step_size": step_size,
        "steps": steps,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
    }
    check_divides(micro_batch_size, batch_size)
    given = {n: QUANTITIES[n].checked(x).item() for n, x in given.items() if x is not None}
    measured, why_not = {}, ""
    try:
        measured = measured_anywhere(
            MEASURED,
            problem,
            int(micro_batch_size),
            batch_size=int(batch_size),
            rng=rng,
            largest=math.sqrt(2 * problem.smoothness * problem.initial_gap),
        )
    except InvalidArgument as reason:
        why_not = str(reason)
    vacuous = [name for name, x in measured.items() if x == 0 == QUANTITIES[name].above]
    if vacuous:
        measured = {name: x for name, x in measured.items() if name not in vacuous}
        why_not = f"{', '.join(vacuous)}, not told from 0 at some gradient norm"
    sources = {
        **dict.fromkeys(fixed, "the problem"),
        **dict.fromkeys(given, "given"),
        **dict.fromkeys(measured, "measured"),
    }
    return Quantities({**fixed, **given, **measured}, sources, why_not)


def measured_anywhere(
    names: Collection[str],
    problem: Problem,
    micro_batch_size: int,
    *,
    batch_size: int,
    rng: int | SeedSequence | Generator,
    largest: float = 0.0,
) -> dict[str, float]:
    """What bounds ask about steps, at its worst over gradient norms: all, or up to the largest."""
    sample = step_sample(problem, micro_batch_size, batch_size=batch_size, rng=rng, draws=2**13)
    # They are functions of r/σ that level off at both ends.
    sigma = problem.noise.sigma or 1.0
    low, high = 1e-2 * sigma / math.sqrt(micro_batch_size), largest or 1e2 * sigma
    norms = np.geomspace(min(low, high / 10), high, 16)
    near = norms_near_atoms(problem, micro_batch_size)
    norms = np.union1d(norms, near[near < high] if largest else near)
    found = measured_values(
        [name for name in names if name != "progress_rate"],
        sample,
        norms,
        false_positive_rate=_RATE,
    )
    if "progress_rate" in names:  # the drift knows A itself, where a sample knows a part of it
        method = MicroBatchClipping(micro_batch_size)
        at = drift(problem, method, batch_size=batch_size, rng=rng).at(norms)
        tail = _RATE / norms.size
        quantile = [t_quantile(df, tail) if math.isfinite(df) else 0.0 for df in at.df]
        reach = np.array(quantile) * at.progress_standard_error + at.progress_numerical_error
        found["progress_rate"] = max(0.0, float(((at.progress - reach) / norms).min()))
    return found
