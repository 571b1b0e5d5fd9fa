"""``step_size="tuned"``: the step size at which the drift's certificate is smallest.

It lies here, below the theory and the simulation, so that neither needs to know the other.
"""

from __future__ import annotations

import functools
from typing import Any

from numpy.random import SeedSequence

from mbsim.errors import InvalidArgument, check_integer, check_number, shown
from mbsim.methods import Method
from mbsim.problems.problem import Problem
from mbsim.simulation import run
from mbsim.simulation.run import Run

__all__ = ["check_step_size", "simulate", "step_size_for"]

TUNED = "tuned"


def check_step_size(step_size: Any) -> float | str:
    """`step_size` if it is a number above 0 or "tuned"."""
    if isinstance(step_size, str):
        if step_size != TUNED:
            raise InvalidArgument(f"step_size={shown(step_size)} must be a number or {TUNED!r}")
        return step_size
    return check_number("step_size", step_size, above=0)


def step_size_for(
    problem: Problem,
    method: Method,
    *,
    batch_size: int,
    step_size: float | str,
    steps: int,
    rng: int | SeedSequence = 0,
) -> float:
    """η for a method: the number itself, or the tuned one (for SGD that of Theorem 1)."""
    checked = check_step_size(step_size)
    if not isinstance(checked, str):
        return checked
    steps = check_integer("steps", steps, minimum=1)
    run.check_problem(problem)
    from mbsim.drifts.drift import drift  # not needed, and not light, for a number

    return drift(problem, method, batch_size=batch_size, rng=rng).tuned_step_size(steps=steps)


@functools.wraps(run.simulate)
def simulate(problem: Problem, method: Method, **settings: Any) -> Run:
    """As the function that does the work, but for ``step_size="tuned"``."""
    if isinstance(settings.get("step_size"), str):
        named = {name: settings.get(name) for name in ("batch_size", "step_size", "steps")}
        settings["step_size"] = step_size_for(problem, method, **named)  # type: ignore[arg-type]
    return run.simulate(problem, method, **settings)
