"""``simulate``: many replicates of one method on one problem, and the Run that comes of it."""

from __future__ import annotations

import json
import math
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim import clipping, plots, statistics
from mbsim._shared import records, tables
from mbsim._shared.arrays import Array, Integers, Mask
from mbsim._shared.meant import answering
from mbsim._shared.memory import free_memory
from mbsim._shared.processes import processors
from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim._shared.values import value
from mbsim._shared.version import __version__
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_finite,
    check_integer,
    check_number,
    shown,
)
from mbsim.methods import SGD, Method, MicroBatchClipping, check_method
from mbsim.problems import draggers, losses, noise
from mbsim.problems.finite import FiniteProblem, check_any_problem
from mbsim.problems.lengths import unit_of
from mbsim.problems.losses import Held
from mbsim.problems.problem import Problem, check_problem
from mbsim.problems.setting import Setting
from mbsim.simulation.exact_law import ExactLaw, Replicates, twins_of
from mbsim.simulation.reference import Reference

if TYPE_CHECKING:
    import xarray

__all__ = ["Run", "choose_engine", "draw_updates", "run_setting", "simulate"]

_ENGINES: dict[str, type[Reference | ExactLaw]] = {"reference": Reference, "exact_law": ExactLaw}
# What a run on measured gradients names as its engine; it is made elsewhere, and has no `problem`.
_REPLAY = "gram"
records.register(
    *(
        getattr(room, name)
        for room in (clipping, losses, noise)
        for name in room.__all__
        if is_dataclass(getattr(room, name))
    ),
    *(SGD, MicroBatchClipping, draggers.Draggers, Problem, FiniteProblem),
)

# The version of the law that numbers are drawn from: another one when a seed gives other numbers.
LAW = 1
# A replicate has diverged when its gap to the minimum is this many times that of the start.
DIVERGED = 1e6


# The arrays of a run beside its steps: of which type, and what each of their axes counts.
_ARRAYS: dict[str, tuple[type, tuple[str, ...]]] = {
    "grad_norm_sq": (np.float64, ("replicate", "step")),
    "loss": (np.float64, ("replicate", "step")),
    "final_w": (np.float64, ("replicate", "coordinate")),
    "mean_grad_norm_sq": (np.float64, ("replicate",)),
    "diverged_at": (np.int64, ("replicate",)),
    "stalled_at": (np.int64, ("replicate",)),
}
_FORMAT = "mbsim run 2"
# What is recorded at steps, and its symbol.
_RECORDED = {"grad_norm_sq": "‖∇L(w_t)‖²", "loss": "loss L(w_t)"}


@value
class Run:
    """What came of one simulation; nothing in it can be changed.

    Arrays have one row per replicate; recorded arrays one column per entry of `steps`.

    Attributes:
        problem: the :class:`~mbsim.Problem` or :class:`~mbsim.FiniteProblem` (None in a loaded run
            whose problem held classes that are not mbsim's own; `provenance` describes it).
        method: the method (None likewise).
        batch_size: B.
        step_size: η.
        engine: "reference" or "exact_law".
        seed: entropy and spawn key of the seed sequence; ``simulate`` with a seed sequence of
            this content gives this run again, to the bit.
        steps: int64[records], the steps recorded: 0, every `record_every`-th, and T.
        grad_norm_sq: float64[replicates, records], ‖∇L(w_t)‖²; infinite where that is beyond the
            largest float.
        loss: float64[replicates, records], L(w_t).
        final_w: float64[replicates, d], w_T.
        mean_grad_norm_sq: float64[replicates], (1/T) Σ_{t<T} ‖∇L(w_t)‖² over every step,
            whatever is recorded.
        diverged_at: int64[replicates], the step at which a replicate diverged (its loss was not
            finite, or 10⁶ times the start's above the minimum), or −1. From then on its values
            are NaN, as is its mean: it counts in every summary and is never dropped.
        stalled_at: int64[replicates], the first step at which a micro-batch norm was 0 while
            clipping to the smallest, so that the step stood still, or −1.
        recipe: problem and method as plain data, and the versions that made the run.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(loss=mbsim.losses.Quadratic(np.ones(4)),
    ...     noise=mbsim.noise.Gaussian(sigma=1.0), benign_dim=4, start=np.ones(4))
    >>> run = mbsim.simulate(problem, mbsim.SGD(), batch_size=8, step_size=0.1, steps=100,
    ...                      replicates=64, rng=0)
    >>> run.mean("grad_norm_sq").shape, run.diverged.any()
    ((101,), np.False_)
    """

    problem: Problem | FiniteProblem | None
    method: Method | None
    batch_size: int
    step_size: float
    engine: str
    seed: tuple[int, tuple[int, ...]]
    steps: Integers
    grad_norm_sq: Array
    loss: Array
    final_w: Array
    mean_grad_norm_sq: Array
    diverged_at: Integers
    stalled_at: Integers
    recipe: dict[str, Any]

    def __post_init__(self) -> None:
        for content in vars(self).values():
            if isinstance(content, np.ndarray):
                content.setflags(write=False)

    @property
    def replicates(self) -> int:
        """The number of replicates."""
        return int(self.diverged_at.size)

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the run, as plain data: problem, method, settings, engine, seed, versions."""
        return {
            **self.recipe,
            "batch_size": self.batch_size,
            "step_size": self.step_size,
            "steps": int(self.steps[-1]),
            "replicates": self.replicates,
            "record_every": int(self.steps[1]),
            "engine": self.engine,
            "seed": records.describe(self.seed),
        }

    @property
    def diverged(self) -> Mask:
        """bool[replicates]: which replicates diverged."""
        return self.diverged_at >= 0

    @property
    def stalled(self) -> Mask:
        """bool[replicates]: which replicates stood still for at least one step."""
        return self.stalled_at >= 0

    def mean(self, name: str) -> Any:
        """The mean over all replicates of a field such as ``"grad_norm_sq"``, ``"loss"``.

        A diverged replicate is not dropped, so from its divergence on the mean is NaN.
        """
        field, unit = self._in_units(name)
        return unit * field.mean(axis=0)

    def standard_error(self, name: str) -> Any:
        """The standard error of :meth:`mean`; NaN for a single replicate."""
        field, unit = self._in_units(name)
        if self.replicates == 1:
            return np.full(field.shape[1:], math.nan)[()]
        with np.errstate(invalid="ignore"):  # infinite squares have no spread
            return unit * (field.std(axis=0, ddof=1) / math.sqrt(self.replicates))

    def _in_units(self, name: str) -> tuple[Array, Array]:
        """A field over a power of two, in which sums of squares cannot overflow; and that power."""
        names = ("grad_norm_sq", "loss", "mean_grad_norm_sq", "final_w")
        if name not in names:
            raise InvalidArgument(f"name={shown(name)} must be one of {', '.join(names)}")
        field: Array = getattr(self, name)
        unit = unit_of(np.abs(field).max(axis=0))
        return field / unit, unit

    def plot(
        self, ax: plots.Axes | None = None, *, quantity: str = "grad_norm_sq", **style: Any
    ) -> plots.Axes:
        """The mean over replicates against the step, with its 99 % interval as a band.

        Args:
            ax: where to draw; a new figure unless told. Runs drawn on the same Axes get colours
                and names of their own.
            quantity: "grad_norm_sq" or "loss".
            **style: properties of the line, such as ``color`` or ``label``.

        Raises:
            InvalidArgument: for another quantity.
        """
        if quantity not in _RECORDED:
            raise InvalidArgument(
                f"quantity={shown(quantity)} must be one of {', '.join(_RECORDED)}"
            )
        mean, error = self.mean(quantity), self.standard_error(quantity)
        named, interval = f"mean of {self.replicates} replicates, 99 % interval", None
        if self.replicates > 1:
            reach = statistics.t_quantile(self.replicates - 1, 0.005) * error
            interval = mean - reach, mean + reach
        else:
            named = "one replicate, no interval"
        label = str(self.method)
        if self.diverged.any():
            label += f", {self.diverged.sum()} of {self.replicates} diverged"
        with plots.on(ax) as axes:
            plots.curve(axes, self.steps, mean, interval, band=True, **{"label": label, **style})
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(0, None)
            if np.nanmin(mean) > 0:
                axes.set_yscale("log")
            axes.set(xlabel="step t", ylabel=f"{_RECORDED[quantity]}\n{named}")
            plots.name_lines(axes)
        return axes

    def to_xarray(self) -> xarray.Dataset:
        """The run as a labelled :class:`xarray.Dataset` (needs xarray, in the extra ``labels``)."""
        import xarray

        return xarray.Dataset(
            {name: (axes, getattr(self, name)) for name, (_, axes) in _ARRAYS.items()},
            coords={"step": self.steps, "replicate": np.arange(self.replicates)},
            attrs={"provenance": json.dumps(self.provenance)},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one ``.npz`` file, whole or not at all, without pickles.

        A regular file at `path` is replaced, through a link too, and keeps its mode.

        Raises:
            InvalidArgument: if no file can be written there; then nothing has changed.
        """
        plain = {name: getattr(self, name) for name in ("batch_size", "step_size", "engine")}
        plain |= {"seed": records.describe(self.seed), **self.recipe}
        arrays = {name: getattr(self, name) for name in ("steps", *_ARRAYS)}
        records.save(path, _FORMAT, plain, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run written by :meth:`save`, and check that it is what a run can be.

        Raises:
            InvalidArgument: if there is no such file, or it holds no run, saying why.
        """
        return records.load(path, "Run.save", _FORMAT, _from_file)

    def _lines(self) -> list[tuple[str, str]]:
        mean, error = self.mean("mean_grad_norm_sq"), self.standard_error("mean_grad_norm_sq")
        last, last_error = self.mean("grad_norm_sq")[-1], self.standard_error("grad_norm_sq")[-1]
        lines = [
            ("method", str(self.method)),
            ("batch size", f"{self.batch_size}, step size {self.step_size:g}"),
            ("replicates", f"{self.replicates}, {self.steps[-1]} steps, engine {self.engine}"),
            ("mean ‖g‖²", f"{self._said(mean, error)} over the run"),
            ("last ‖g‖²", self._said(last, last_error)),
        ]
        for what, which in (("diverged", self.diverged), ("stalled", self.stalled)):
            if which.any():
                lines.append((what, f"{which.sum()} of {self.replicates} replicates"))
        return lines

    def _said(self, mean: float, error: float) -> str:
        if math.isnan(mean):
            return "no number, as replicates diverged,"
        spread = f"± {error:.2g} (standard error)" if self.replicates > 1 else "in one replicate"
        return f"{mean:.4g} {spread}"

    def __str__(self) -> str:
        lines = tables.as_text(self._lines(), least=(11,), gap=" ")
        return "\n".join(["Run", *(f"  {line}" for line in lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tables.as_html(self._lines(), caption="mbsim run")


# ---------------------------------------------------------------------------- files


def _from_file(plain: dict[str, Any], arrays: dict[str, Any]) -> Run:
    """The run that was saved, if that is what plain data and arrays describe."""
    names = {"batch_size", "step_size", "engine", "seed", "problem", "method", "versions"}
    if plain.keys() != names or arrays.keys() != {"steps", *_ARRAYS}:
        raise InvalidArgument("it must hold the fields of a run and no others")
    recipe = {name: plain.pop(name) for name in ("problem", "method", "versions")}
    problem, method = (records.rebuild(recipe[name]) for name in ("problem", "method"))
    check_integer("batch_size", plain["batch_size"], minimum=1)
    plain["step_size"] = check_number("step_size", plain["step_size"], above=0)
    engine, seed, versions = plain["engine"], plain["seed"], recipe["versions"]
    known = (*_ENGINES, _REPLAY)
    if not isinstance(engine, str) or engine not in known:
        raise InvalidArgument(f"engine={shown(engine)} must be one of {', '.join(known)}")
    if problem is not None:
        choose_engine(check_any_problem(problem), engine)
    if method is not None:
        check_method(method).micro_batches(plain["batch_size"])
    entropy, key = seed if isinstance(seed, list) and len(seed) == 2 else (None, None)
    words = entropy if isinstance(entropy, list) else [entropy]
    if not isinstance(key, list) or any(type(w) is not int or w < 0 for w in [*words, *key]):
        raise InvalidArgument(
            f"seed={shown(seed)} must be entropy and a spawn key, integers of at least 0"
        )
    plain["seed"] = entropy, tuple(key)
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise InvalidArgument(f"versions={shown(versions)} must be texts by name")
    sizes = {
        "replicate": arrays["diverged_at"].size,
        "step": arrays["steps"].size,
        "coordinate": problem.dimension if problem else int(arrays["final_w"].shape[-1]),
    }
    for name, (kind, axes) in {"steps": (np.int64, ("step",)), **_ARRAYS}.items():
        array, shape = arrays[name], tuple(sizes[axis] for axis in axes)
        if array.dtype != kind or array.shape != shape or not array.size:
            raise InvalidArgument(
                f"{name} is {array.dtype} of shape {array.shape} and must be {np.dtype(kind)}, "
                f"not empty, with axes {', '.join(axes)} of shape {shape}"
            )
    run = Run(problem=problem, method=method, recipe=recipe, **plain, **arrays)
    _check_numbers(run)
    return run


def _check_numbers(run: Run) -> None:
    """Steps as they are recorded, and NaN where a replicate has diverged and nowhere else."""
    steps, last = run.steps, check_integer("steps[-1]", run.steps[-1], minimum=1)
    inside = ((steps >= 0) & (steps <= last)).all()  # so that differences cannot overflow
    gaps = np.diff(steps)
    if not inside or steps[0] or (gaps[:-1] != gaps[0]).any() or not 0 < gaps[-1] <= gaps[0]:
        raise InvalidArgument(
            f"steps={shown(steps.tolist())} must be 0, every so many steps, and the last"
        )
    for name, most in (("diverged_at", last), ("stalled_at", last - 1)):
        array = getattr(run, name)
        if array.min() < -1 or array.max() > most:
            raise InvalidArgument(
                f"{name} goes from {array.min()} to {array.max()} and must be a step of the run, "
                "or -1"
            )
    gone = run.diverged[:, None]
    late = gone & (steps >= run.diverged_at[:, None])
    for name, dead in (
        ("loss", late),
        ("grad_norm_sq", late),
        ("final_w", gone),
        ("mean_grad_norm_sq", run.diverged),
    ):
        array = getattr(run, name)
        wrong = ~np.isnan(array) & dead
        if run.problem is not None:  # a loss of one's own may give anything
            wrong |= np.isnan(array) & ~dead
            wrong |= np.isinf(array) if name in ("loss", "final_w") else array < 0
        if wrong.any():
            raise InvalidArgument(
                f"{name} must be NaN once a replicate has diverged, and before that a number, "
                "squares of norms at least 0"
            )


# ---------------------------------------------------------------------------- checks


def choose_engine(problem: Problem | FiniteProblem, engine: str = "auto") -> str:
    """The engine that serves `problem`: "exact_law" wherever it applies, unless told otherwise.

    Raises:
        InvalidArgument: for an unknown name, or "exact_law" where it does not apply, saying why.

    >>> import mbsim, numpy as np
    >>> choose_engine(mbsim.Problem(loss=mbsim.losses.LogCosh(4), noise=mbsim.noise.Gaussian(),
    ...                             benign_dim=4, start=np.ones(4)))
    'exact_law'
    """
    if not isinstance(engine, str) or engine not in ("auto", *_ENGINES):
        raise InvalidArgument(f"engine={shown(engine)} must be one of auto, {', '.join(_ENGINES)}")
    if engine == "auto":
        return "reference" if ExactLaw.why_not(problem) else "exact_law"
    if reason := _ENGINES[engine].why_not(problem):
        raise InvalidArgument(f"engine={engine!r} does not apply: {reason}")
    return engine


# ---------------------------------------------------------------------------- simulate


def simulate(
    problem: Problem | FiniteProblem,
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
    first: int = 0,
) -> Run:
    r"""Run w ← w − η u for `steps` steps from the problem's start, in independent replicates.

    Args:
        problem: what is optimised, and with which noise and draggers; or with which examples, a
            :class:`~mbsim.FiniteProblem`, which the reference engine alone serves.
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
        first: the number of the first replicate: those before it, which are another call's, are
            not run, or only where they share a stream with it.

    Returns:
        A :class:`Run`. Beyond its arrays, memory stays under 1 GiB. How much the arrays take
        stands beside the progress; what would not fit is refused.

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
    problem, method = check_any_problem(problem), check_method(method)
    batch_size = check_integer("batch_size", batch_size, minimum=1)
    sizes: Any = problem, batch_size, method.micro_batches(batch_size)
    if isinstance(problem, FiniteProblem):
        problem.draws(*sizes[1:])  # which is refused where it cannot be
    steps = check_integer("steps", steps, minimum=1)
    every = check_integer("record_every", record_every, minimum=1)
    replicates = check_integer("replicates", replicates, minimum=1)
    engine = choose_engine(problem, engine)
    _check_room(replicates, steps, every, problem.dimension)
    step_size = check_number("step_size", step_size, above=0)
    seed, kind = seed_sequence(rng), _ENGINES[engine]
    width = kind.lane_width(*sizes)
    spare = check_integer("first", first, minimum=0) % width  # a lane is drawn whole
    threads = processors() if threads is None else check_integer("threads", threads, minimum=1)
    plan = _Plan(
        # Of examples that come back a setting is asked for nothing that is a Problem's alone.
        setting=Setting(cast(Problem, problem), method, batch_size, step_size, steps),
        replicates=spare + replicates,
        seed=seed,
        recorded=recorded_steps(steps, every),
        engine=kind,
        width=width,
        first_lane=first // width,
        threads=min(threads, max(1, _MEMORY // kind.block_bytes(*sizes))),
    )
    counts = {"replicate": plan.replicates, "step": plan.recorded.size}
    counts["coordinate"] = problem.dimension
    out: dict[str, Any] = {
        name: np.full([counts[axis] for axis in axes], -1, dtype)
        for name, (dtype, axes) in _ARRAYS.items()
    }
    _in_threads(plan, out)
    return Run(
        problem=problem,
        engine=engine,
        steps=plan.recorded,
        **made(problem, method, batch_size, step_size, seed),
        **{name: array[spare:] for name, array in out.items()},
    )


def recorded_steps(steps: int, every: int) -> Integers:
    """The steps at which something is recorded: 0, every so many, and the last."""
    return np.unique(np.append(np.arange(0, steps + 1, every), steps))


def made(
    problem: Any, method: Method, batch_size: int, step_size: float, seed: SeedSequence
) -> dict[str, Any]:
    """What a :class:`Run` says of how it was made."""
    entropy: Any = np.asarray(seed.entropy).tolist()
    return {
        "method": method,
        "batch_size": batch_size,
        "step_size": step_size,
        "seed": (entropy, tuple(map(int, seed.spawn_key))),
        "recipe": {
            "problem": records.describe(problem),
            "method": records.describe(method),
            "versions": {
                "mbsim": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
    }


def run_setting(
    setting: Setting, *, replicates: int, rng: int | SeedSequence | Generator, **how: Any
) -> Run:
    """A run of `setting`: :func:`simulate` with what it says, and `how` as that has it.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(loss=mbsim.losses.LogCosh(4), noise=mbsim.noise.Gaussian(),
    ...                         benign_dim=4, start=np.ones(4))
    >>> setting = Setting(problem, mbsim.SGD(), 8, step_size=0.1, steps=20)
    >>> run_setting(setting, replicates=2, rng=0).grad_norm_sq.shape
    (2, 21)
    """
    return simulate(
        setting.problem,
        setting.method,
        batch_size=setting.batch_size,
        step_size=setting.step_size,
        steps=setting.steps,
        replicates=replicates,
        rng=rng,
        **how,
    )


@answering
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
            or whose square is not finite; and where an update is beyond the largest float.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(loss=mbsim.losses.LogCosh(4), noise=mbsim.noise.Gaussian(),
    ...                         benign_dim=4, start=np.ones(4))
    >>> draw_updates(problem, mbsim.SGD(), np.ones(4), batch_size=8, replicates=10, rng=0).shape
    (10, 4)
    """
    problem, gradient = check_problem(problem), check_array("gradient", gradient, ndim=1)
    with np.errstate(over="ignore"):
        fits = gradient.size == problem.dimension and np.isfinite(np.square(gradient).sum())
    if not fits:
        raise InvalidArgument(
            f"gradient={shown(gradient)} must have {problem.dimension} coordinates and a finite "
            "square"
        )
    # One step of length 1 from 0, on a loss that has this gradient.
    held = replace(problem, loss=Held(gradient), start=np.zeros(gradient.size))
    step = Setting(held, method, batch_size, step_size=1.0, steps=1)
    run = run_setting(step, replicates=replicates, rng=rng, engine=engine)
    check_finite("an update at this gradient", run.final_w)
    return 0 - run.final_w


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Checked arguments of one simulation, and what follows from them."""

    setting: Setting
    replicates: int
    seed: SeedSequence
    recorded: Integers
    engine: type[Reference | ExactLaw]
    width: int
    first_lane: int
    threads: int


# What all threads together may take beyond the arrays returned.
_MEMORY = 9 * 2**30 // 10
# Replicate-steps that make a call worth its while, and coordinates of a block (1 MiB).
_WORTH = 2**17
# Results of which the size is said beforehand.
_LARGE = 2**28


def _check_room(replicates: int, steps: int, every: int, dimension: int) -> None:
    size = 8 * replicates * (2 * (steps // every + 2) + dimension + 3)
    if size > (free := free_memory()):
        raise InvalidArgument(
            f"replicates={replicates} with steps={steps} recorded every {every} would return "
            f"{_gib(size)}, and must fit into what is free of memory, {_gib(free)}; take a larger "
            "record_every"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _in_threads(plan: _Plan, out: dict[str, Any]) -> None:
    """Fill `out`, a block of replicates at a time."""
    stop, done = threading.Event(), {}
    setting, replicates = plan.setting, plan.replicates
    problem, steps = setting.problem, setting.steps
    with np.errstate(over="ignore"):
        limit = problem.loss.minimum + _divergence_gap(problem)
    parts = twins_of(setting) if plan.engine is ExactLaw else None
    if parts:
        compiled = Replicates(setting, parts, limit, plan.seed, plan.first_lane * plan.width)
        # Long enough to be worth a call, short enough for all threads to have one; whole lanes.
        block = max(1, min(_WORTH // steps, _WORTH // problem.dimension) // plan.width)
        block = min(block * plan.width, -(-replicates // plan.threads))
    else:
        block = plan.width
    blocks = [range(i, min(i + block, replicates)) for i in range(0, replicates, block)]
    waiting = iter(blocks)

    def advance() -> None:
        for rows in waiting:  # each thread takes the next
            if stop.is_set():
                break

            def tell(taken: int, rows: range = rows) -> None:
                done[rows] = taken * len(rows)

            with np.errstate(all="ignore"):  # divergence overflows; it is looked for and recorded
                if parts:
                    every = int(plan.recorded[1])
                    compiled.advance(rows, every, out, stop.is_set, tell)
                else:
                    _run_lane(plan, out, rows, limit, stop, tell)

    size = sum(array.nbytes for array in out.values())
    text = f"simulating ({_gib(size)} of results)" if size > _LARGE else "simulating"
    with (
        progress(replicates * steps, text) as bar,
        ThreadPoolExecutor(plan.threads, thread_name_prefix="mbsim") as pool,
    ):
        try:
            pending = {pool.submit(advance) for _ in range(min(plan.threads, len(blocks)))}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when="FIRST_EXCEPTION")
                bar.update(sum(done.values()))
                for job in finished:
                    job.result()
        finally:  # also on Ctrl-C: every block sees the event within one step
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _run_lane(
    plan: _Plan,
    out: dict[str, Any],
    rows: range,
    limit: float,
    stop: threading.Event,
    tell: Callable[[int], None],
) -> None:
    """Advance the replicates of a lane from start to end, and write their rows of `out`."""
    problem, steps = plan.setting.problem, plan.setting.steps
    lane = plan.first_lane + rows.start // plan.width
    loss, engine = problem.loss, plan.engine(plan.setting, stream(plan.seed, lane))
    here, kept = slice(rows.start, rows.stop), len(rows)
    # Replicates lie side by side in memory: all arithmetic is in long rows, whatever d is.
    w = np.repeat(problem.start[:, None], engine.width, axis=1).T
    total = np.zeros(engine.width)
    diverged_at, stalled_at = np.full(engine.width, -1), np.full(engine.width, -1)
    record = 0
    for step in range(steps + 1):
        gradient, values = loss.gradient(w), loss.value(w)
        blown = ~(values <= limit) | (diverged_at >= 0)
        if blown.any():
            diverged_at[blown & (diverged_at < 0)] = step
            w[blown] = gradient[blown] = values[blown] = total[blown] = np.nan
        grad_norm_sq = np.einsum("...i,...i->...", gradient, gradient)
        if plan.recorded[record] == step:
            out["grad_norm_sq"][here, record] = grad_norm_sq[:kept]
            out["loss"][here, record] = values[:kept]
            record += 1
        if step == steps or stop.is_set():
            break
        total += grad_norm_sq
        update, stalled = engine.update(gradient, w)
        update *= plan.setting.step_size
        w -= update
        stalled_at[stalled & (stalled_at < 0)] = step
        tell(step + 1)
    out["final_w"][here] = w[:kept]
    out["mean_grad_norm_sq"][here] = total[:kept] / steps
    out["diverged_at"][here] = diverged_at[:kept]
    out["stalled_at"][here] = stalled_at[:kept]


def _divergence_gap(problem: Problem | FiniteProblem) -> float:
    """10⁶ times the start's gap; from next to the minimum, 10⁶ times what noise alone can make.

    A start's gap far below that of the noise is nothing to go by: every run exceeds it. Examples
    that come back have their losses at the start to go by.
    """
    if isinstance(problem, FiniteProblem):
        squares = problem.curvatures * np.square(problem.start - problem.centres)
        return DIVERGED * (float(squares.sum(axis=1).max()) / 2 or 1.0)
    c, sigma = np.float64(problem.draggers.norm_ratio), np.float64(problem.noise.sigma)
    gap, noise_gap = problem.initial_gap, sigma**2 / (2 * problem.smoothness)
    if gap < noise_gap / 1000:
        gap = (1 + c**2) * noise_gap  # ∞ where it overflows
    return float(min(DIVERGED * gap, np.finfo(np.float64).max))
