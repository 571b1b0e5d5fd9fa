"""``simulate``: many replicates of one method on one problem, and the Run that comes of it."""

from __future__ import annotations

import json
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from mbsim import clipping
from mbsim._shared import records
from mbsim._shared.progress import Progress, progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim._shared.values import value
from mbsim.clipping import Rule
from mbsim.errors import InvalidArgument, check_array, check_integer, check_number, shown
from mbsim.methods import SGD, Method, MicroBatchClipping, check_method
from mbsim.problems import draggers, losses, noise
from mbsim.problems.problem import Problem
from mbsim.simulation import exact_law, reference

if TYPE_CHECKING:
    import xarray

__all__ = ["Run", "choose_engine", "draw_updates", "simulate"]

Array = NDArray[np.float64]
ENGINES = ("auto", "reference", "exact_law")
records.register(
    *(
        getattr(room, name)
        for room in (clipping, losses, noise)
        for name in room.__all__
        if is_dataclass(getattr(room, name))
    ),
    *(SGD, MicroBatchClipping, draggers.Draggers, Problem),
)

# A replicate has diverged when its gap to the minimum is this many times that of the start.
_DIVERGED = 1e6


class _Engine(Protocol):
    width: int

    def update(self, gradient: Array) -> tuple[Array, NDArray[np.bool_] | None]: ...


@value
class Run:
    """What came of one simulation; nothing in it can be changed.

    Arrays have one row per replicate; recorded arrays one column per entry of `steps`.

    Attributes:
        problem: the :class:`~mbsim.Problem` (None in a loaded run whose problem held classes that
            are not mbsim's own; `provenance` describes it).
        method: the method (None likewise).
        batch_size: B.
        step_size: η.
        engine: "reference" or "exact_law".
        seed: entropy and spawn key of the seed sequence; ``simulate`` with a seed sequence of
            this content gives this run again, to the bit.
        steps: int64[records], the steps recorded: 0, every `record_every`-th, and T.
        grad_norm_sq: float64[replicates, records], ‖∇L(w_t)‖².
        loss: float64[replicates, records], L(w_t).
        final_w: float64[replicates, d], w_T.
        mean_grad_norm_sq: float64[replicates], (1/T) Σ_{t<T} ‖∇L(w_t)‖² over every step,
            whatever is recorded.
        diverged_at: int64[replicates], the step at which a replicate diverged (its loss was not
            finite, or 10⁶ times the start's above the minimum), or −1. From then on its values
            are NaN, as is its mean: it counts in every summary and is never dropped.
        stalled_at: int64[replicates], the first step at which a micro-batch norm was 0 while
            clipping to the smallest, so that the step stood still, or −1.
        provenance: what made the run, as plain data: problem, method, engine, seed, versions.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(loss=mbsim.losses.Quadratic(np.ones(4)),
    ...     noise=mbsim.noise.Gaussian(sigma=1.0), benign_dim=4, start=np.ones(4))
    >>> run = mbsim.simulate(problem, mbsim.SGD(), batch_size=8, step_size=0.1, steps=100,
    ...                      replicates=64, rng=0)
    >>> run.mean("grad_norm_sq").shape, run.diverged.any()
    ((101,), np.False_)
    """

    problem: Problem | None
    method: Method | None
    batch_size: int
    step_size: float
    engine: str
    seed: tuple[int, tuple[int, ...]]
    steps: NDArray[np.int64]
    grad_norm_sq: Array
    loss: Array
    final_w: Array
    mean_grad_norm_sq: Array
    diverged_at: NDArray[np.int64]
    stalled_at: NDArray[np.int64]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        for content in vars(self).values():
            if isinstance(content, np.ndarray):
                content.setflags(write=False)

    @property
    def replicates(self) -> int:
        """The number of replicates."""
        return int(self.diverged_at.size)

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """bool[replicates]: which replicates diverged."""
        return self.diverged_at >= 0

    @property
    def stalled(self) -> NDArray[np.bool_]:
        """bool[replicates]: which replicates stood still for at least one step."""
        return self.stalled_at >= 0

    def mean(self, name: str) -> Any:
        """The mean over all replicates of a field such as ``"grad_norm_sq"``, ``"loss"``.

        A diverged replicate is not dropped, so from its divergence on the mean is NaN.
        """
        return self._field(name).mean(axis=0)

    def standard_error(self, name: str) -> Any:
        """The standard error of :meth:`mean`; NaN for a single replicate."""
        if self.replicates == 1:
            return np.full(self._field(name).shape[1:], math.nan)[()]
        return self._field(name).std(axis=0, ddof=1) / math.sqrt(self.replicates)

    def _field(self, name: str) -> Array:
        names = ("grad_norm_sq", "loss", "mean_grad_norm_sq", "final_w")
        if name not in names:
            raise InvalidArgument(f"name={shown(name)} must be one of {', '.join(names)}")
        field: Array = getattr(self, name)
        return field

    def to_xarray(self) -> xarray.Dataset:
        """The run as a labelled :class:`xarray.Dataset` (needs xarray, in the extra ``labels``)."""
        import xarray

        return xarray.Dataset(
            {
                "grad_norm_sq": (("replicate", "step"), self.grad_norm_sq),
                "loss": (("replicate", "step"), self.loss),
                "final_w": (("replicate", "coordinate"), self.final_w),
                "mean_grad_norm_sq": ("replicate", self.mean_grad_norm_sq),
                "diverged_at": ("replicate", self.diverged_at),
                "stalled_at": ("replicate", self.stalled_at),
            },
            coords={"step": self.steps, "replicate": np.arange(self.replicates)},
            attrs={"provenance": json.dumps(self.provenance)},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one ``.npz`` file, whole or not at all, without pickles."""
        records.save(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run written by :meth:`save`.

        Raises:
            InvalidArgument: if the file is not one.
        """
        return cls(**records.load(Path(path), cls))

    def _lines(self) -> list[tuple[str, str]]:
        mean, error = self.mean("mean_grad_norm_sq"), self.standard_error("mean_grad_norm_sq")
        last, last_error = self.mean("grad_norm_sq")[-1], self.standard_error("grad_norm_sq")[-1]
        lines = [
            ("method", str(self.method)),
            ("batch size", f"{self.batch_size}, step size {self.step_size:g}"),
            ("replicates", f"{self.replicates}, {self.steps[-1]} steps, engine {self.engine}"),
            ("mean ‖g‖²", f"{mean:.4g} ± {error:.2g} over the run"),
            ("last ‖g‖²", f"{last:.4g} ± {last_error:.2g}"),
        ]
        for what, which in (("diverged", self.diverged), ("stalled", self.stalled)):
            if which.any():
                lines.append((what, f"{which.sum()} of {self.replicates} replicates"))
        return lines

    def __str__(self) -> str:
        return "Run\n" + "\n".join(f"  {name:<11} {text}" for name, text in self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import html

        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._lines()
        )
        return f"<table><caption>mbsim run (mean ± standard error)</caption>{rows}</table>"


# ---------------------------------------------------------------------------- checks


def choose_engine(problem: Problem, engine: str = "auto") -> str:
    """The engine that serves `problem`: "exact_law" wherever it applies, unless told otherwise.

    Raises:
        InvalidArgument: for an unknown name, or "exact_law" where it does not apply, saying why.

    >>> import mbsim, numpy as np
    >>> choose_engine(mbsim.Problem(loss=mbsim.losses.LogCosh(4), noise=mbsim.noise.Gaussian(),
    ...                             benign_dim=4, start=np.ones(4)))
    'exact_law'
    """
    if not isinstance(engine, str) or engine not in ENGINES:
        raise InvalidArgument(f"engine={shown(engine)} must be one of {', '.join(ENGINES)}")
    reason = exact_law.why_not(problem)
    if engine == "exact_law" and reason:
        raise InvalidArgument(f"engine='exact_law' does not apply: {reason}")
    if engine == "auto":
        return "reference" if reason else "exact_law"
    return engine


def check_problem(problem: Any) -> Problem:
    """`problem` itself if it is one."""
    if not isinstance(problem, Problem):
        raise InvalidArgument(f"problem={shown(problem)} must be a mbsim.Problem")
    return problem


def _lane_width(engine: str, problem: Problem, batch_size: int, micro_batches: int) -> int:
    if engine == "reference":
        return reference.lane_width(problem, batch_size)
    return exact_law.lane_width(problem, micro_batches)


def _build(
    engine: str, problem: Problem, rule: Rule, batch: int, m: int, streams: list[Generator]
) -> _Engine:
    build = reference.Reference if engine == "reference" else exact_law.ExactLaw
    return build(problem, rule, batch, m, streams)


# ---------------------------------------------------------------------------- simulate


def simulate(
    problem: Problem,
    method: Method,
    *,
    batch_size: int,
    step_size: float,
    steps: int,
    replicates: int,
    rng: int | SeedSequence | Generator,
    record_every: int = 1,
    engine: str = "auto",
    threads: int | None = None,
) -> Run:
    r"""Run w ← w − η u for `steps` steps from the problem's start, in independent replicates.

    Args:
        problem: what is optimised, and with which noise and draggers.
        method: how a mini-batch becomes an update u; :class:`~mbsim.SGD` or
            :class:`~mbsim.MicroBatchClipping`.
        batch_size: B, examples per step.
        step_size: η > 0.
        steps: T ≥ 1.
        replicates: how many independent runs.
        rng: the seed: an int, a SeedSequence or a Generator (which is advanced). More replicates
            or more threads never change the numbers of a replicate.
        record_every: record ‖g‖² and the loss at every so many steps; 0 and T always are.
        engine: "exact_law" draws the law of a step in scalars, "reference" draws every example;
            "auto" takes the first wherever it applies.
        threads: how many threads; as many as there are processors if None.

    Returns:
        A :class:`Run`. Beyond its arrays, memory stays under 1 GiB.

    Raises:
        InvalidArgument: for arguments that break a rule. Divergence raises nothing: it is
            recorded in the Run.
        KeyboardInterrupt: on Ctrl-C, promptly, with no thread left running.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.LogCosh(16), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=8, start=np.full(16, 2.0))
    >>> settings = dict(batch_size=64, step_size=0.1, steps=500, replicates=32, record_every=100)
    >>> clip = mbsim.simulate(problem, mbsim.MicroBatchClipping(8), rng=0, **settings)
    >>> sgd = mbsim.simulate(problem, mbsim.SGD(), rng=1, **settings)
    >>> bool(clip.mean("grad_norm_sq")[-1] < sgd.mean("grad_norm_sq")[-1])  # a lower floor
    True
    """
    plan = _plan(
        problem, method, batch_size, step_size, steps, replicates, rng, record_every, engine
    )
    workers = min(_check_threads(threads), max(1, _MEMORY // plan.block_bytes))
    n_lanes = -(-plan.replicates // plan.width)
    fewest, most = plan.lanes_together
    block = max(fewest, min(most, n_lanes // workers))
    blocks = [range(i, min(i + block, n_lanes)) for i in range(0, n_lanes, block)]

    out = _Arrays.empty(plan)
    _in_threads(plan, out, blocks, workers)
    return Run(
        problem=problem,
        method=method,
        batch_size=plan.batch_size,
        step_size=plan.step_size,
        engine=plan.engine,
        seed=_seed_content(plan.seed),
        steps=plan.recorded,
        **vars(out),
        provenance=records.provenance(
            problem=problem,
            method=method,
            batch_size=plan.batch_size,
            step_size=plan.step_size,
            steps=plan.steps,
            replicates=plan.replicates,
            record_every=record_every,
            engine=plan.engine,
            seed=_seed_content(plan.seed),
        ),
    )


def draw_updates(
    problem: Problem,
    method: Method,
    gradient: Array,
    *,
    batch_size: int,
    replicates: int,
    rng: int | SeedSequence | Generator,
    engine: str = "auto",
) -> Array:
    """Independent draws of the update u of one step, at a point whose gradient is given.

    Args:
        problem: its loss is not used beyond its dimension.
        method: the method.
        gradient: g, shape ``[d]``.
        batch_size: B.
        replicates: how many draws.
        rng: as in :func:`simulate`.
        engine: as in :func:`simulate`.

    Returns:
        u, float64 of shape ``[replicates, d]``.

    Raises:
        InvalidArgument: as in :func:`simulate`, and for a gradient that does not fit the problem
            or whose square is not finite.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(loss=mbsim.losses.LogCosh(4), noise=mbsim.noise.Gaussian(),
    ...                         benign_dim=4, start=np.ones(4))
    >>> draw_updates(problem, mbsim.SGD(), np.ones(4), batch_size=8, replicates=10, rng=0).shape
    (10, 4)
    """
    plan = _plan(problem, method, batch_size, 1.0, 1, replicates, rng, 1, engine)
    gradient = check_array("gradient", gradient, ndim=1)
    with np.errstate(over="ignore"):
        fits = gradient.size == problem.dimension and np.isfinite(np.square(gradient).sum())
    if not fits:
        raise InvalidArgument(
            f"gradient={shown(gradient)} must have {problem.dimension} coordinates and a finite "
            "square"
        )
    out = np.empty((replicates, problem.dimension))
    at = np.tile(gradient, (plan.width, 1))
    for first in range(0, plan.replicates, plan.width):
        engine_of_lane = plan.build([first // plan.width])
        rows = out[first : first + plan.width]
        rows[:] = engine_of_lane.update(at)[0][: len(rows)]
    return out


@dataclass(frozen=True)
class _Plan:
    """Checked arguments of one simulation, and what follows from them."""

    problem: Problem
    rule: Rule
    batch_size: int
    micro_batches: int
    step_size: float
    steps: int
    replicates: int
    seed: SeedSequence
    recorded: NDArray[np.int64]
    engine: str
    width: int
    lanes_together: tuple[int, int]
    block_bytes: int

    def build(self, lanes: list[int]) -> _Engine:
        """The engine for some lanes, each with its own stream."""
        streams = [stream(self.seed, lane) for lane in lanes]
        return _build(
            self.engine, self.problem, self.rule, self.batch_size, self.micro_batches, streams
        )


def _plan(
    problem: Any,
    method: Any,
    batch_size: Any,
    step_size: Any,
    steps: Any,
    replicates: Any,
    rng: Any,
    record_every: Any,
    engine: Any,
) -> _Plan:
    problem, method = check_problem(problem), check_method(method)
    batch_size = check_integer("batch_size", batch_size, minimum=1)
    micro_batches = method.micro_batches(batch_size)
    steps = check_integer("steps", steps, minimum=1)
    every = check_integer("record_every", record_every, minimum=1)
    replicates = check_integer("replicates", replicates, minimum=1)
    engine = choose_engine(problem, engine)
    _check_returned(problem, replicates, steps, every)
    return _Plan(
        problem=problem,
        rule=method.rule,
        batch_size=batch_size,
        micro_batches=micro_batches,
        step_size=check_number("step_size", step_size, above=0),
        steps=steps,
        replicates=replicates,
        seed=seed_sequence(rng),
        recorded=np.unique(np.append(np.arange(0, steps + 1, every), steps)),
        engine=engine,
        width=_lane_width(engine, problem, batch_size, micro_batches),
        lanes_together=(
            (1, 1) if engine == "reference" else exact_law.lanes_together(problem, micro_batches)
        ),
        block_bytes=(
            reference.block_bytes(problem, batch_size)
            if engine == "reference"
            else exact_law.block_bytes(problem, micro_batches)
        ),
    )


# What all threads together may take beyond the arrays returned; and the most of those, 16 GiB.
_MEMORY = 9 * 2**30 // 10
_MOST_RETURNED = 2**31


def _check_returned(problem: Problem, replicates: int, steps: int, every: int) -> None:
    numbers = replicates * (2 * (steps // every + 2) + problem.dimension + 3)
    if numbers > _MOST_RETURNED:
        raise InvalidArgument(
            f"replicates={replicates} with steps={steps} recorded every {every} would return "
            f"{numbers:,} numbers, and must return at most {_MOST_RETURNED:,}"
        )


def _check_threads(threads: Any) -> int:
    if threads is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    return check_integer("threads", threads, minimum=1)


def _seed_content(seed: SeedSequence) -> tuple[Any, tuple[int, ...]]:
    entropy = seed.entropy
    plain = (
        [int(word) for word in entropy]
        if isinstance(entropy, (list, tuple, np.ndarray))
        else entropy
    )
    return plain, tuple(int(k) for k in seed.spawn_key)


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a run, filled block by block."""

    grad_norm_sq: Array
    loss: Array
    final_w: Array
    mean_grad_norm_sq: Array
    diverged_at: NDArray[np.int64]
    stalled_at: NDArray[np.int64]

    @classmethod
    def empty(cls, plan: _Plan) -> _Arrays:
        records = (plan.replicates, plan.recorded.size)
        return cls(
            grad_norm_sq=np.empty(records),
            loss=np.empty(records),
            final_w=np.empty((plan.replicates, plan.problem.dimension)),
            mean_grad_norm_sq=np.empty(plan.replicates),
            diverged_at=np.full(plan.replicates, -1),
            stalled_at=np.full(plan.replicates, -1),
        )


def _in_threads(plan: _Plan, out: _Arrays, blocks: list[range], workers: int) -> None:
    stop, done = threading.Event(), [0] * len(blocks)
    total = sum(len(lanes) for lanes in blocks) * plan.steps
    with (
        progress(total, "simulating") as bar,
        ThreadPoolExecutor(min(workers, len(blocks)), thread_name_prefix="mbsim") as pool,
    ):
        try:
            jobs = [
                pool.submit(_run_block, plan, out, lanes, stop, done, i)
                for i, lanes in enumerate(blocks)
            ]
            _wait(jobs, bar, done)
        finally:  # also on Ctrl-C: every block sees the event within one step
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _wait(jobs: list[Any], bar: Progress, done: list[int]) -> None:
    pending = set(jobs)
    while pending:
        finished, pending = wait(pending, timeout=0.2, return_when="FIRST_EXCEPTION")
        bar.update(sum(done))
        for job in finished:
            job.result()


def _run_block(
    plan: _Plan, out: _Arrays, lanes: range, stop: threading.Event, done: list[int], number: int
) -> None:
    """Advance the replicates of some lanes from start to end, and write their rows of `out`."""
    with np.errstate(all="ignore"):  # divergence overflows; it is looked for and recorded
        problem, loss = plan.problem, plan.problem.loss
        engine = plan.build(list(lanes))
        rows = slice(lanes.start * plan.width, min(lanes.stop * plan.width, plan.replicates))
        kept = rows.stop - rows.start
        replicates = len(lanes) * plan.width
        # Replicates lie side by side in memory: all arithmetic is in long rows, whatever d is.
        w = np.repeat(problem.start[:, None], replicates, axis=1).T
        total = np.zeros(replicates)
        diverged_at, stalled_at = np.full(replicates, -1), np.full(replicates, -1)
        limit = problem.loss.minimum + _divergence_gap(problem)
        record = 0
        for step in range(plan.steps + 1):
            gradient, values = loss.gradient(w), loss.value(w)
            if not (values <= limit).all():
                blown = ~(values <= limit) & (diverged_at < 0)
                diverged_at[blown] = step
                w[blown] = gradient[blown] = values[blown] = total[blown] = np.nan
            grad_norm_sq = np.einsum("...i,...i->...", gradient, gradient)
            if plan.recorded[record] == step:
                out.grad_norm_sq[rows, record] = grad_norm_sq[:kept]
                out.loss[rows, record] = values[:kept]
                record += 1
            if step == plan.steps or stop.is_set():
                break
            total += grad_norm_sq
            update, stalled = engine.update(gradient)
            update *= plan.step_size
            w -= update
            if stalled is not None:
                stalled_at[stalled & (stalled_at < 0)] = step
            done[number] = (step + 1) * len(lanes)
        out.final_w[rows] = w[:kept]
        out.mean_grad_norm_sq[rows] = total[:kept] / plan.steps
        out.diverged_at[rows] = diverged_at[:kept]
        out.stalled_at[rows] = stalled_at[:kept]


def _divergence_gap(problem: Problem) -> float:
    """10⁶ times the start's gap; from next to the minimum, 10⁶ times what noise alone can make.

    A start's gap far below that of the noise is nothing to go by: every run exceeds it.
    """
    c, sigma = np.float64(problem.draggers.norm_ratio), np.float64(problem.noise.sigma)
    gap, noise_gap = problem.initial_gap, sigma**2 / (2 * problem.smoothness)
    if gap < noise_gap / 1000:
        gap = (1 + c**2) * noise_gap  # ∞ where it overflows
    return float(min(_DIVERGED * gap, np.finfo(np.float64).max))
