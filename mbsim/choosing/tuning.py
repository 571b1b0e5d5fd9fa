"""``step_size="tuned"``: the step size at which the drift's certificate is smallest.

It lies here, below the theory and the simulation, so that neither needs to know the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.random import Generator, SeedSequence

from mbsim._shared.meant import answering
from mbsim._shared.seeds import seed_sequence
from mbsim.errors import InvalidArgument, check_integer, check_number, shown
from mbsim.methods import Method
from mbsim.problems.finite import FiniteProblem
from mbsim.problems.problem import Problem
from mbsim.simulation import run
from mbsim.simulation.run import Run

if TYPE_CHECKING:
    from mbsim.gradients.measured import MeasuredProblem

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
    problem: Problem | FiniteProblem | MeasuredProblem,
    method: Method,
    *,
    batch_size: int,
    step_size: float | str,
    steps: int,
    rng: int | SeedSequence = 0,
) -> float:
    """η for a method: the number itself, or the tuned one (for SGD that of Theorem 1).

    Where the drift has to be sampled for it, that is from the seed `rng` as it is.
    """
    checked = check_step_size(step_size)
    if not isinstance(checked, str):
        return checked
    steps = check_integer("steps", steps, minimum=1)
    from mbsim.drifts.drift import drift  # not needed, and not light, for a number

    one: Any = problem  # what has no drift is refused
    return drift(one, method, batch_size=batch_size, rng=rng).tuned_step_size(steps=steps)


@answering
def simulate(
    problem: Problem | FiniteProblem | MeasuredProblem,
    method: Method,
    *,
    batch_size: int,
    step_size: float | str,
    steps: int,
    replicates: int,
    rng: int | SeedSequence | Generator,
    record_every: int = 1,
    engine: str = "auto",
    threads: int | None = None,
) -> Run:
    """Run w ← w − η u from the problem's start, in independent replicates; η may be tuned.

    Args:
        problem: what is optimised, and with which noise and draggers; or examples that come back,
            a :class:`mbsim.FiniteProblem` (for a number η); or a :class:`mbsim.MeasuredProblem`,
            of which :mod:`mbsim.gradients.replay` says what is run (`engine` and `threads` mean
            nothing there).
        method: how a mini-batch becomes an update u; :class:`~mbsim.SGD` or
            :class:`~mbsim.MicroBatchClipping`.
        batch_size: B, examples per step.
        step_size: η > 0; or "tuned": where the certificate of the drift is smallest for this T (for
            SGD, the tuned step size of Theorem 1, sharper form).
        steps: T ≥ 1.
        replicates: how many independent runs.
        rng: the seed: an int, a SeedSequence or a Generator (which is advanced, once). Where the
            drift has to be sampled to tune the step size, it is from this seed too, as in
            :func:`mbsim.sweet_spot`.
        record_every: as in :func:`mbsim.simulation.run.simulate`, as are the rest.
        engine: "exact_law", "reference", or "auto" for the first wherever it applies.
        threads: how many threads; as many as there are processors if None.

    Returns:
        A :class:`~mbsim.Run`; its `step_size` is the number.

    Raises:
        InvalidArgument: for arguments that break a rule, and where no step size is best.
        KeyboardInterrupt: on Ctrl-C, promptly, with no thread left running.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.LogCosh(16), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=8, start=np.full(16, 2.0))
    >>> run = mbsim.simulate(problem, mbsim.SGD(), batch_size=64, step_size="tuned", steps=500,
    ...                      replicates=32, rng=0)
    >>> round(run.step_size, 3)
    0.37
    """
    if isinstance(step_size, str):
        rng = seed_sequence(rng)
        step_size = step_size_for(
            problem, method, batch_size=batch_size, step_size=step_size, steps=steps, rng=rng
        )
    asked: dict[str, Any] = {
        "batch_size": batch_size,
        "step_size": step_size,
        "steps": steps,
        "replicates": replicates,
        "rng": rng,
        "record_every": record_every,
    }
    if not isinstance(problem, Problem):
        from mbsim.gradients import measured, replay

        if isinstance(problem, measured.MeasuredProblem):
            return replay.replay(problem, method, **asked)
    return run.simulate(problem, method, **asked, engine=engine, threads=threads)
