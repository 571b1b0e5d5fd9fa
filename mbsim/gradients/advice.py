r"""Which micro-batch size for these gradients: predicted, with errors and the reason.

The law of a step on measured gradients (:mod:`mbsim.gradients.measured`) says how far a run comes:

.. math:: r^2 \leftarrow r^2 - 2 e r A(r) + e^2 M(r), \qquad e = \eta L ,

from r = ‖g‖ of the first snapshot, T times, for the step size e that ends lowest. Every b has an e
of its own, so L is not needed. The map of r is written down on a grid and composed with itself, so
that the price grows with log T. With several snapshots A and M at r are those of the two that were
measured nearest to it, weighted by log r.

The errors are those over examples: the 32 resamplings of the examples are the same for all b, so
that two b are compared on each. Source: the theory page, section 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray
from scipy import interpolate

from mbsim import statistics
from mbsim._shared import tables
from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence
from mbsim.clipping import QuantileNorm, SmallestNorm, UnitNorm
from mbsim.errors import InvalidArgument, check_integer, divisors, shown
from mbsim.gradients.gram import Gram
from mbsim.gradients.measured import MEAN, MeasuredProblem, MeasuredSource
from mbsim.methods import MicroBatchClipping
from mbsim.statistics import Interval
from mbsim.verdicts import Answer, Refusal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Advice", "AdviceRow", "advise", "noise_scale"]

Array = NDArray[np.float64]

# The first is the one that is advised on.
_RULES = (SmallestNorm(), QuantileNorm(0.5), UnitNorm())
# Ties at this false-positive rate, all b together; and whatever is within 1 %.
_RATE, _TIED = 0.01, 1.01
# Gradient norms at which A and M are asked for lie at such distances in asinh(r/r₀), those of the
# map's grid at such; and the grid ends at so many times the longest target.
_SPACING, _FINE, _TOP = 0.5, 0.01, 2.0
# Step sizes fall by halves to 1/(20 T) of the largest that can descend; then quarters of halves.
_LEAST = 20
# The share of the squared deviations that the longest tenth must have to be called draggers.
_HEAVY = 0.5
_KINDS = "an array, a Gram, a MeasuredProblem, the path of an .npy file, or a list of these"


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """What is predicted for one rule and one micro-batch size.

    Attributes:
        rule: the rule; `micro_batch_size`: b.
        progress: A over that of SGD, where the (first) gradients were measured; 1 for SGD.
        second_moment: M over that of SGD, likewise.
        clipped: the share of micro-batches that are scaled down more than another of their step.
        step_size: η at which the run ends lowest; ηL where no smoothness was told.
        final_grad_norm: where that ends, with its error over examples.
    """

    rule: str
    micro_batch_size: int
    progress: float
    second_moment: float
    clipped: float
    step_size: float
    final_grad_norm: Interval


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which micro-batch size for measured gradients, and what it rests on; see :func:`advise`.

    Attributes:
        answer: the :class:`~mbsim.verdicts.Answer`, for the smallest norm.
        steps: T.
        rows: an :class:`AdviceRow` for every rule and b.
        noise_scale: of the (first) gradients; see :func:`noise_scale`.
        snapshots: of each, in the order given: ‖g‖, the best b, and those tied with it, had it
            been the only one.
    """

    answer: Answer
    steps: int
    rows: tuple[AdviceRow, ...]
    noise_scale: Interval | Refusal
    snapshots: tuple[tuple[float, int, tuple[int, ...]], ...]

    @property
    def micro_batch_size(self) -> int:
        """The best b; B where clipping does not help."""
        return self.answer.micro_batch_size

    @property
    def tied(self) -> tuple[int, ...]:
        """Every b that cannot be told from the best."""
        return self.answer.tied

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.answer.reason

    @property
    def curve(self) -> dict[int, Interval]:
        """The predicted final gradient norm for every b, with the smallest norm."""
        first = self.rows[0].rule
        return {r.micro_batch_size: r.final_grad_norm for r in self.rows if r.rule == first}

    @property
    def disagree(self) -> bool:
        """Whether some b is ruled out by one snapshot and the only ones left by another."""
        left = set(self.answer.tied).union(*(tied for _, _, tied in self.snapshots))
        for _, _, tied in self.snapshots:
            left &= set(tied)
        return not left

    def to_dict(self) -> dict[str, Any]:
        """The advice as plain data."""
        scale = self.noise_scale
        return {
            "answer": self.answer.to_dict(),
            "steps": self.steps,
            "rows": [
                {**vars(row), "final_grad_norm": _plain(row.final_grad_norm)} for row in self.rows
            ],
            "noise_scale": str(scale) if isinstance(scale, Refusal) else _plain(scale),
            "snapshots": [
                {"target_norm": norm, "micro_batch_size": b, "tied": list(tied)}
                for norm, b, tied in self.snapshots
            ],
            "disagree": self.disagree,
        }

    def _cells(self) -> list[tuple[str, ...]]:
        best, tied, first = self.micro_batch_size, self.tied, self.rows[0].rule
        found = []
        for row in self.rows:
            b, level = row.micro_batch_size, row.final_grad_norm
            mark = "" if row.rule != first else "best" if b == best else "tied" if b in tied else ""
            numbers = (row.progress, row.second_moment, row.clipped, row.step_size, level.estimate)
            cells = (f"{number:.3g}" for number in numbers)
            found.append((row.rule, str(b), *cells, f"{level.low:.3g} to {level.high:.3g}", mark))
        return found

    def _notes(self) -> list[str]:
        scale = self.noise_scale
        notes = [str(scale) if isinstance(scale, Refusal) else f"noise scale {scale} examples"]
        if len(self.snapshots) > 1:
            each = ", ".join(f"b = {b} at {norm:.3g}" for norm, b, _ in self.snapshots)
            what = "disagree" if self.disagree else "do not contradict each other"
            notes.append(f"the snapshots {what}: {each}")
        return notes

    def __str__(self) -> str:
        head = _HEAD[:-1] + ("",)
        rows = tables.as_text([head, *self._cells()], align="<>>>>>>>")
        return "\n".join([str(self.answer), *(f"  {row}" for row in [*self._notes(), *rows])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = ". ".join([self.answer.question, self.answer.advice, self.reason, *self._notes()])
        return tables.as_html(self._cells(), head=_HEAD, caption=title)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The predicted final gradient norm over b with its intervals, a curve for each rule."""
        from mbsim import plots

        with plots.style():
            if ax is None:
                from matplotlib.figure import Figure

                ax = Figure().subplots()
            for number, rule in enumerate(dict.fromkeys(row.rule for row in self.rows)):
                rows = [row for row in self.rows if row.rule == rule]
                levels = [row.final_grad_norm for row in rows]
                plots.curve(
                    ax,
                    [row.micro_batch_size for row in rows],
                    [level.estimate for level in levels],
                    ([level.low for level in levels], [level.high for level in levels]),
                    number=number,
                    label=rule,
                )
            plots.sizes_axis(ax, list(self.curve))
            ax.set_yscale("log")
            plots.plain_numbers(ax.yaxis)
            ax.set_ylabel(f"predicted gradient norm after {self.steps} steps")
            ax.set_title(self.answer.advice)
            ax.legend()
        return ax


_HEAD = (
    "rule", "b", "progress", "moment", "clipped", "step size", "ends at", "interval", "mark",
)  # fmt: skip


def advise(
    gradients: Any,
    *,
    batch_size: int = 64,
    target: Any = None,
    steps: int = 1000,
    rng: int | SeedSequence | Generator = 0,
) -> Advice:
    """Which micro-batch size for these gradients: the b that is predicted to end lowest.

    Every divisor b of the batch size runs at the constant step size that is best for it, on the
    drift of the measured gradients. What ends low is the norm of the gradient of what the target
    stands for.

    Args:
        gradients: per-example gradients: what :class:`~mbsim.Gram` takes (an array ``[N, d]``, the
            path of an ``.npy`` file), a Gram, or a :class:`~mbsim.MeasuredProblem`; or a list of
            such snapshots along training, from its start.
        batch_size: B, at least 2 and at most N.
        target: as for :class:`~mbsim.MeasuredProblem`: best the mean gradient of held-out examples;
            unless told the geometric median of the means of eights. With "mean" the advice is SGD
            by construction. For a list of snapshots a list of arrays, one for each.
        steps: T, of the training that is asked about.
        rng: the seed of partitions and resampled examples.

    Returns:
        An :class:`Advice`. Ties are told at a false-positive rate of 0.01, all b together, with
        the errors over examples; that the prediction is one of a model is not in them.

    Raises:
        InvalidArgument: for gradients and targets that :class:`~mbsim.MeasuredProblem` refuses, and
            fewer examples than a batch.

    >>> rng = np.random.default_rng(0)
    >>> gradients = 0.2 + rng.standard_normal((400, 16))            # a mean of length 0.8, and noise
    >>> gradients[::10] = -1.5 + 4 * rng.standard_normal((40, 16))  # one in ten pulls the other way
    >>> advice = advise(gradients, batch_size=16, target=np.full(16, 0.2), steps=300)
    >>> advice.answer.clips, advice.micro_batch_size < 16
    (True, True)
    """
    batch = check_integer("batch_size", batch_size, minimum=2)
    horizon = check_integer("steps", steps, minimum=1)
    seed = seed_sequence(rng)
    measured = _snapshots(gradients, target, seed)
    for one in measured:
        if one.examples < batch:
            raise InvalidArgument(
                f"batch_size={batch} must be at most the number of examples, {one.examples}; give "
                "more gradients, or take a smaller batch_size"
            )
    laws = _Laws.of(measured, batch, seed)
    levels = laws.levels(horizon, laws.start)
    answer = _answer(laws, levels, horizon)
    alone = []
    for k, one in enumerate(measured):
        found = levels if len(measured) == 1 else laws.only(k).levels(horizon, laws.start)
        best, tied = found.best(len(laws.sizes))
        alone.append((one.target_norm, laws.sizes[best], tuple(laws.sizes[i] for i in tied)))
    return Advice(
        answer=answer,
        steps=horizon,
        rows=tuple(laws.rows(levels)),
        noise_scale=noise_scale(measured[0].gram),
        snapshots=tuple(alone),
    )


# ---------------------------------------------------------------------------- what is given


def _snapshots(gradients: Any, target: Any, seed: SeedSequence) -> list[MeasuredProblem]:
    """The problems, each with its target."""
    several = isinstance(gradients, (list, tuple)) and not _is_matrix(gradients)
    if not several:
        return [_problem(gradients, target, seed)]
    if not gradients:
        raise InvalidArgument(f"gradients=[] must be {_KINDS}")
    targets = target if isinstance(target, (list, tuple)) else [target] * len(gradients)
    if len(targets) != len(gradients):
        raise InvalidArgument(
            f"target has {len(targets)} arrays and must have one for each of {len(gradients)} "
            "snapshots"
        )
    if target is not None and not isinstance(target, (list, tuple, str)):
        raise InvalidArgument("target must be a list, with an array for each snapshot")
    return [_problem(one, goal, seed) for one, goal in zip(gradients, targets, strict=True)]


def _is_matrix(given: Any) -> bool:
    """Whether a list is the numbers of one array."""
    return bool(given) and all(
        isinstance(row, (list, tuple)) and all(np.isscalar(x) for x in row) for row in given
    )


def _problem(gradients: Any, target: Any, seed: SeedSequence) -> MeasuredProblem:
    if not isinstance(gradients, MeasuredProblem):
        return MeasuredProblem(gradients, target=target, rng=seed)
    if target is not None:
        raise InvalidArgument(
            f"target={shown(target)} must be left out: a MeasuredProblem has its own"
        )
    return gradients


# ---------------------------------------------------------------------------- the prediction


@dataclass(frozen=True, kw_only=True)
class _Levels:
    """Where runs end: for every rule and b, in the order of the rows.

    Attributes:
        step_sizes: ηL, ``[rows]``; `levels`: r_T; `resampled`: of each resampling of the examples,
            at the same step sizes, ``[rows, replicates]``.
    """

    step_sizes: Array
    levels: Array
    resampled: Array

    def interval(self, above: int, below: int | None = None, rate: float = _RATE) -> Interval:
        """r_T of a row, or its quotient by another's, from the spread of logarithms."""
        logs, spread = np.log(self.levels), np.log(self.resampled)
        middle = logs[above] - (0.0 if below is None else logs[below])
        each = spread[above] - (0.0 if below is None else spread[below])
        error, df = float(each.std(ddof=1)), each.size - 1
        found = statistics.from_error(float(middle), error, df, false_positive_rate=rate)
        estimate, low, high = (math.exp(x) for x in (middle, found.low, found.high))
        return replace(
            found, estimate=estimate, low=low, high=high, standard_error=estimate * error
        )

    def best(self, count: int) -> tuple[int, list[int]]:
        """Of the first `count` rows, the lowest, and all that are not told from it."""
        best = int(self.levels[:count].argmin())
        rate = _RATE / (count - 1)
        quotients = [self.interval(i, best, rate) for i in range(count)]
        tied = [i for i, q in enumerate(quotients) if q.low <= 1 or q.estimate < _TIED]
        return best, tied


@dataclass(frozen=True, kw_only=True)
class _Laws:
    """A and M for every rule and b on a grid of r.

    Attributes:
        measured: the snapshots; `batch`: B; `sizes`: every b.
        sources: of the first snapshot, one for each row.
        grid: r, ``[points]``, at even distances in asinh(r/`scale`).
        moments: A and M, ``[snapshots, rows, 2, points]``; `resampled`: of each resampling,
            ``[snapshots, rows, replicates, 2, points]``.
    """

    measured: list[MeasuredProblem]
    batch: int
    sizes: list[int]
    sources: list[MeasuredSource]
    grid: Array
    scale: float
    moments: Array
    resampled: Array

    @classmethod
    def of(cls, measured: list[MeasuredProblem], batch: int, seed: SeedSequence) -> _Laws:
        """Ask the drifts of all snapshots."""
        sizes = divisors(batch)
        longest = max(one.target_norm for one in measured)
        # Below it A and M of the whole batch change little.
        spread = min(float(np.std(one.target_products)) / one.target_norm for one in measured)
        scale = min(max(spread / math.sqrt(batch), 1e-4 * longest), longest)
        end = math.asinh(_TOP * longest / scale)
        nodes = np.linspace(0.0, end, max(6, math.ceil(end / _SPACING) + 1))
        fine = np.linspace(0.0, end, max(32, math.ceil(end / _FINE) + 1))
        found, first = [], []
        with progress(len(measured) * len(sizes), "drift for every b") as bar:
            for number, one in enumerate(measured):
                rows: dict[tuple[int, int], tuple[MeasuredSource, Any]] = {}
                for j, b in enumerate(sizes):
                    source = one.drift(MicroBatchClipping(b), batch_size=batch, rng=seed).source
                    assert isinstance(source, MeasuredSource)
                    for i, rule in enumerate(_RULES):
                        source = source.with_rule(rule)
                        rows[i, j] = source, source.resampled(scale * np.sinh(nodes))
                    bar.update(number * len(sizes) + j + 1)
                ordered = [rows[key] for key in sorted(rows)]
                first = first or [source for source, _ in ordered]
                found.append([values for _, values in ordered])
        means = np.array([[one for one, _ in rows] for rows in found])
        others = np.array([[each for _, each in rows] for rows in found])
        return cls(
            measured=measured,
            batch=batch,
            sizes=sizes,
            sources=first,
            grid=scale * np.sinh(fine),
            scale=scale,
            moments=_interpolated(nodes, means, fine),
            resampled=_interpolated(nodes, others, fine),
        )

    @property
    def start(self) -> float:
        """r₀."""
        return self.measured[0].target_norm

    def only(self, k: int) -> _Laws:
        """The law of one snapshot."""
        some = slice(k, k + 1)
        return replace(
            self,
            measured=self.measured[some],
            moments=self.moments[some],
            resampled=self.resampled[some],
        )

    @property
    def _weights(self) -> Array:
        """How much each snapshot counts at each r of the grid, ``[snapshots, points]``."""
        at = np.log([one.target_norm for one in self.measured])
        order = np.argsort(at, kind="stable")
        # Two of one length share it evenly.
        places = at[order] + 1e-9 * np.arange(at.size)
        r = np.log(np.maximum(self.grid, 1e-300))
        hats = [np.interp(r, places, np.eye(at.size)[np.argmax(order == k)]) for k in range(at.size)]
        return np.array(hats)

    def rest(self, row: int) -> float:
        """The largest r up to r₀ at which a row makes no progress: where it stops without noise."""
        along = np.einsum("sp,sp->p", self._weights, self.moments[:, row, 0])
        stuck = self.grid[(along <= 0) & (self.grid <= self.start)]
        return float(stuck.max(initial=0.0))

    def levels(self, steps: int, start: float) -> _Levels:
        """Where every row ends, at its best step size; and its resamplings at the same."""
        weights = self._weights
        moments = np.einsum("sp,srmp->rmp", weights, self.moments)
        resampled = np.einsum("sp,srkmp->rkmp", weights, self.resampled)
        progress_, second = moments[:, None, 0], moments[:, None, 1]
        within = (self.grid > 0) & (self.grid <= start)
        quotient = 2 * self.grid * moments[:, 0] / np.maximum(moments[:, 1], 1e-300)
        largest = np.maximum(quotient[:, within].max(axis=1), 1e-12)
        halves = np.arange(math.ceil(math.log2(_LEAST * steps)) + 1)
        tried = largest[:, None] * 0.5**halves
        rows = np.arange(len(tried))
        for quarters in (None, np.arange(-3, 4) / 4):
            if quarters is not None:
                tried = best[:, None] * 2.0**quarters
            ends = self._ends(progress_, second, tried, steps, start)
            chosen = ends.argmin(axis=1)
            best, levels = tried[rows, chosen], ends[rows, chosen]
        others = self._ends(
            resampled[:, :, 0], resampled[:, :, 1], best[:, None], steps, start
        )
        return _Levels(step_sizes=best, levels=levels, resampled=others)

    def _ends(self, along: Array, second: Array, e: Array, steps: int, start: float) -> Array:
        """r_T for A and M ``[rows, columns or 1, points]`` and e ``[rows, columns or 1]``."""
        r, last = self.grid, self.grid.size - 1
        per = last / math.asinh(r[-1] / self.scale)

        def place(squared: Array) -> Array:
            norm = np.sqrt(np.maximum(squared, 0.0))
            return np.minimum(np.arcsinh(norm / self.scale) * per, last)

        e = e[..., None]
        one = place(np.square(r) - 2 * e * r * along + np.square(e) * second)
        at = np.full((*one.shape[:-1], 1), math.asinh(start / self.scale) * per)
        while steps:
            if steps & 1:
                at = _between(one, at)
            steps >>= 1
            if steps:
                one = _between(one, one)
        ends: Array = np.maximum(self.scale * np.sinh(at[..., 0] / per), 1e-9 * start)
        return ends

    def rows(self, levels: _Levels) -> list[AdviceRow]:
        """What is said of every rule and b."""
        now = np.array([np.interp(self.start, self.grid, m) for m in self._flat()])
        now = now.reshape(-1, 2)
        sgd = now[len(self.sizes) - 1]
        found = []
        for i, source in enumerate(self.sources):
            factors = source.factors(self.start)
            clipped = (factors < factors.max(axis=1, keepdims=True)).mean()
            found.append(
                AdviceRow(
                    rule=str(source.rule).removesuffix("()"),
                    micro_batch_size=source.b,
                    progress=float(now[i, 0] / sgd[0]) if sgd[0] else math.inf,
                    second_moment=float(now[i, 1] / sgd[1]) if sgd[1] else math.inf,
                    clipped=float(clipped),
                    step_size=float(levels.step_sizes[i]) / self.measured[0].smoothness,
                    final_grad_norm=levels.interval(i),
                )
            )
        return found

    def _flat(self) -> Array:
        return self.moments[0].reshape(-1, self.grid.size)


def _interpolated(nodes: Array, moments: Array, places: Array) -> Array:
    """A and M, the last axis but one, between nodes; M is A² at least."""
    found: Array = interpolate.CubicSpline(nodes, moments, axis=-1)(places)
    found[..., 1, :] = np.maximum(found[..., 1, :], np.square(found[..., 0, :]))
    return found


def _between(values: Array, at: Array) -> Array:
    """Values ``[..., points]`` at places ``[..., n]`` between 0 and points − 1, linearly."""
    low = np.minimum(at.astype(np.int64), values.shape[-1] - 2)
    share = at - low
    below = np.take_along_axis(values, low, axis=-1)
    above = np.take_along_axis(values, low + 1, axis=-1)
    found: Array = below + share * (above - below)
    return found


# ---------------------------------------------------------------------------- the answer


def _answer(laws: _Laws, levels: _Levels, steps: int) -> Answer:
    """The answer for the smallest norm."""
    sizes, smoothness = laws.sizes, laws.measured[0].smoothness
    best, tied = levels.best(len(sizes))
    sgd = len(sizes) - 1
    gain = statistics.exactly(1.0) if best == sgd else levels.interval(sgd, best)
    return Answer(
        question=f"Which b ends at the lowest gradient norm after {steps} steps, each at its own "
        "best step size, on these gradients?",
        batch_size=laws.batch,
        micro_batch_size=sizes[best],
        tied=tuple(sizes[i] for i in tied),
        gain=gain,
        step_size=float(levels.step_sizes[best]) / smoothness,
        sgd_step_size=float(levels.step_sizes[sgd]) / smoothness,
        reason=_reason(laws, levels, best, tied, gain),
        rests_on=_rests_on(laws.measured),
    )


def _reason(laws: _Laws, levels: _Levels, best: int, tied: list[int], gain: Interval) -> str:
    """Why, in words."""
    sizes, sgd, examples = laws.sizes, len(laws.sizes) - 1, laws.measured[0].examples
    if levels.levels[best] > 0.99 * laws.start:
        return "no b goes down: a step along these gradients makes no progress along the target"
    if best == sgd:
        next_b = int(levels.levels[:sgd].argmin())
        rise = levels.interval(next_b, sgd)
        own = laws.measured[0].target == MEAN
        why = "the target is the mean of these gradients, for which SGD is unbiased; " if own else ""
        return f"{why}clipping does not help: b = {sizes[next_b]} ends {rise} times as high as SGD"
    if sgd in tied:
        return (
            f"the data cannot tell: by {examples} examples SGD ends between {gain.low:.3g} and "
            f"{gain.high:.3g} times as high as b = {sizes[best]}"
        )
    return _cause(laws, levels, best)


def _cause(laws: _Laws, levels: _Levels, best: int) -> str:
    """What it is that clipping takes away."""
    b, sgd = laws.sizes[best], len(laws.sizes) - 1
    rest, rest_sgd = (laws.rest(i) for i in (best, sgd))
    if rest_sgd > levels.levels[sgd] / 2:
        return (
            "tilted draggers: the examples pull against the target, and even without noise SGD "
            f"stops at {rest_sgd:.3g}, b = {b} at {rest:.3g}"
        )
    heavy = _heavy(laws.measured[0])
    if heavy > _HEAVY:
        return (
            f"draggers: a tenth of the examples have {heavy:.0%} of the squared deviations, and "
            f"b = {b} cuts them down"
        )
    return f"noise: b = {b} cuts it down more than it costs in progress"


def _heavy(measured: MeasuredProblem) -> float:
    """The share of Σ‖g_i − g‖² that the tenth with the longest deviations has."""
    squares = np.diagonal(measured.gram.matrix) - 2 * measured.target_products
    squares = np.sort(np.maximum(squares + measured.target_norm**2, 0.0))
    return float(squares[-math.ceil(squares.size / 10) :].sum() / squares.sum())


def _rests_on(measured: list[MeasuredProblem]) -> str:
    examples = "/".join(dict.fromkeys(str(one.examples) for one in measured))
    snapshots = "one snapshot" if len(measured) == 1 else f"{len(measured)} snapshots"
    lengths = ", ".join(f"{one.target_norm:.3g}" for one in measured)
    names = "/".join(dict.fromkeys(one.target for one in measured))
    off = max(one.gram.relative_error for one in measured)
    projected = f"; projected gradients, norms to {off:.2g}" if off else ""
    return (
        f"{examples} examples, {snapshots}, target {names} of length {lengths}{projected}; "
        "deviations stay as measured, one curvature; ties at a false-positive rate of "
        f"{_RATE:g}, errors over examples"
    )


def noise_scale(gram: Gram, *, false_positive_rate: float = 0.01) -> Interval | Refusal:
    r"""The gradient noise scale tr Σ/‖G‖², in examples: where larger batches stop to pay.

    Both are estimated without bias from the examples,

    .. math:: \|G\|^2 \approx \frac{N \|\bar g\|^2 - \overline{\|g\|^2}}{N - 1}, \qquad
        \operatorname{tr}\Sigma \approx \frac{N}{N - 1}\big(\overline{\|g\|^2} - \|\bar g\|^2\big),

    and the interval is the jackknife's for the quotient ‖G‖²/tr Σ, turned over: where that reaches
    0 there is no upper end. Source: McCandlish, Kaplan, Amodei et al., An Empirical Model of
    Large-Batch Training, 2018 (arXiv 1812.06162), the simple noise scale.

    Args:
        gram: the Gram matrix of the examples' gradients.
        false_positive_rate: the probability that the interval misses it.

    Returns:
        An :class:`~mbsim.statistics.Interval`; or a :class:`~mbsim.verdicts.Refusal`, for one
        example, and where the estimate of ‖G‖² is not above 0.

    >>> gradients = 1 + np.random.default_rng(0).standard_normal((400, 10))
    >>> print(noise_scale(Gram(gradients)))                 # 10/10
    0.9897 [0.8842, 1.124]
    """
    n, matrix = gram.examples, gram.matrix
    of = "noise scale"
    if n < 2:
        return Refusal("with one micro-batch only there is no spread to estimate noise from", of=of)
    squares, sums = np.diagonal(matrix), matrix.sum(axis=1)

    def inverse(count: Any, square: Any, total: Any) -> Any:
        """‖G‖²/tr Σ from N, Σ‖g‖² and ‖Σg‖²."""
        mean = total / count**2
        noise = (square / count - mean) * count / (count - 1)
        return (mean * count - square / count) / (count - 1) / noise

    square, total = float(squares.sum()), float(sums.sum())
    found = inverse(n, square, total)
    if not found > 0:
        return Refusal(
            f"the mean gradient is not told from 0 by {n} examples (the estimate of its squared "
            f"length is {found:.2g} of the noise)",
            of=of,
        )
    if n < 3:
        return Refusal("two examples give it no interval", of=of)
    each = inverse(n - 1, square - squares, total - 2 * sums + squares)
    error = math.sqrt((n - 1) / n * float(np.square(each - each.mean()).sum()))
    one = statistics.from_error(found, error, n - 1, false_positive_rate=false_positive_rate)
    high = 1 / one.low if one.low > 0 else math.inf
    return replace(one, estimate=1 / found, low=1 / one.high, high=high, standard_error=error / found**2)


def _plain(interval: Interval) -> dict[str, Any]:
    return {"estimate": interval.estimate, "interval": [interval.low, interval.high]}
