"""``compare``: several methods on one problem, with differences and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from numpy.random import Generator, SeedSequence

from mbsim import plots, statistics
from mbsim._shared import tables
from mbsim._shared.meant import answering
from mbsim._shared.progress import watched
from mbsim._shared.seeds import child, seed_sequence
from mbsim._shared.values import value
from mbsim.choosing.tuning import step_size_for
from mbsim.errors import InvalidArgument, check_integer, shown
from mbsim.methods import Method
from mbsim.problems.finite import FiniteProblem, check_any_problem
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting
from mbsim.simulation.run import Run, choose_engine, run_setting
from mbsim.statistics import Interval

__all__ = ["MethodComparison", "compare"]


@value
class MethodComparison:
    """Runs of several methods on one problem.

    Attributes:
        runs: one :class:`~mbsim.Run` per method, in the order given.
        paired: whether the methods saw the same examples (the reference engine draws them, so
            differences are taken replicate by replicate), or only examples of the same law.
    """

    runs: tuple[Run, ...]
    paired: bool

    def difference(
        self, one: int = 1, other: int = 0, *, false_positive_rate: float = 0.01
    ) -> Interval:
        """(1/T) Σ ‖∇L‖² of method number `one` minus that of number `other`, with its interval.

        Raises:
            InvalidArgument: if a number names no method.
        """
        a, b = (self._run(name, index) for name, index in (("one", one), ("other", other)))
        return statistics.difference(
            a.mean_grad_norm_sq,
            b.mean_grad_norm_sq,
            false_positive_rate=false_positive_rate,
            paired=self.paired,
        )

    def _run(self, name: str, index: int) -> Run:
        if check_integer(name, index, minimum=0) >= len(self.runs):
            raise InvalidArgument(
                f"{name}={index} must name one of the {len(self.runs)} methods, 0 to "
                f"{len(self.runs) - 1}"
            )
        return self.runs[index]

    def plot(
        self, ax: plots.Axes | None = None, *, quantity: str = "grad_norm_sq", **style: Any
    ) -> plots.Axes:
        """Every run's mean over replicates against the step, with 99 % bands: :meth:`Run.plot`."""
        with plots.on(ax) as axes:
            for run in self.runs:
                run.plot(axes, quantity=quantity, **style)
        return axes

    def __str__(self) -> str:
        how = "paired: the same examples" if self.paired else "unpaired: examples of the same law"
        rows = [("method", "mean ‖∇L‖² over the run", "minus the first")]
        step_sizes = {run.step_size for run in self.runs}
        for number, run in enumerate(self.runs):
            gone = int(run.diverged.sum())
            mean = (
                f"none: {gone} of {run.replicates} replicates diverged"
                if gone
                else str(statistics.mean(run.mean_grad_norm_sq, false_positive_rate=0.01))
            )
            compared = number and not gone and not self.runs[0].diverged.any()
            against = str(self.difference(number, 0)) if compared else ""
            tuned = f", η = {run.step_size:.3g}" if len(step_sizes) > 1 else ""
            rows.append((f"{run.method}{tuned}", mean, against))
        return "\n".join([f"Comparison ({how}; 99 % intervals)", *tables.as_text(rows)])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """What it found as plain data: for each method the mean, and the first one's taken off."""
        rows = []
        for number, run in enumerate(self.runs):
            mean = statistics.mean(run.mean_grad_norm_sq, false_positive_rate=0.01)
            against = self.difference(number, 0) if number else statistics.exactly(0.0)
            rows.append(
                {
                    "method": str(run.method),
                    "step_size": run.step_size,
                    "replicates": run.replicates,
                    "diverged": int(run.diverged.sum()),
                    "mean_grad_norm_sq": mean.estimate,
                    "interval": [mean.low, mean.high],
                    "minus_the_first": against.estimate,
                    "minus_the_first_interval": [against.low, against.high],
                }
            )
        return {"paired": self.paired, "rows": rows}


@answering
def compare(
    problem: Problem | FiniteProblem,
    methods: Sequence[Method],
    *,
    batch_size: int,
    step_size: float | str,
    steps: int,
    replicates: int,
    rng: int | SeedSequence | Generator,
    record_every: int = 1,
    engine: str = "auto",
    threads: int | None = None,
) -> MethodComparison:
    """Simulate several methods on one problem, from one seed.

    With ``engine="reference"`` every method sees the same examples and differences are paired,
    which makes their intervals narrow. The exact-law engine has no examples to share: each method
    gets a stream of its own, and differences are those of independent samples.

    Args:
        problem: the problem, also a :class:`~mbsim.FiniteProblem`.
        methods: at least two.
        batch_size: B.
        step_size: η, the same for every method; or "tuned", for each its own.
        steps: T.
        replicates: at least 2.
        rng: as in :func:`mbsim.simulate`.
        record_every: as in :func:`mbsim.simulate`.
        engine: as in :func:`mbsim.simulate`.
        threads: as in :func:`mbsim.simulate`.

    Raises:
        InvalidArgument: as :func:`mbsim.simulate`, and for fewer than two methods or replicates.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(loss=mbsim.losses.Quadratic(np.ones(8)),
    ...     noise=mbsim.noise.Gaussian(sigma=1.0), benign_dim=4, start=np.full(8, 0.1),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0))
    >>> both = mbsim.compare(problem, [mbsim.SGD(), mbsim.MicroBatchClipping(4)], batch_size=64,
    ...     step_size=0.1, steps=500, replicates=32, rng=0, engine="reference")
    >>> both.paired, both.difference().high < 0          # clipping is ahead here
    (True, True)
    """
    check_any_problem(problem)
    if not isinstance(methods, Sequence) or len(methods) < 2:
        raise InvalidArgument(f"methods={shown(methods)} must be a list of at least two methods")
    check_integer("replicates", replicates, minimum=2)
    seed, engine = seed_sequence(rng), choose_engine(problem, engine)
    paired = engine == "reference"
    runs = []
    for number, method in enumerate(watched(methods, "comparing")):
        η = step_size_for(
            problem, method, batch_size=batch_size, step_size=step_size, steps=steps, rng=seed
        )
        of = Setting(cast(Problem, problem), method, batch_size, η, steps)  # or a FiniteProblem
        own = seed if paired else child(seed, number)
        how = {"record_every": record_every, "engine": engine, "threads": threads}
        runs.append(run_setting(of, replicates=replicates, rng=own, **how))
    return MethodComparison(runs=tuple(runs), paired=paired)
