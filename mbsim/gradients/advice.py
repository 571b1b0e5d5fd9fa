r"""Which micro-batch size for these gradients: predicted, with errors and the reason.

Training is replayed in the Gram matrix (:mod:`mbsim.gradients.replay`) from w = w₀, where the
gradient is the target, for T steps: every rule, b and step size on the same batches, so that they
differ in nothing else and one product of matrices serves all. Of each b the step size that ends
lowest counts, so the curvature L is not needed: it is e = ηL that is tried.

The errors are those over examples: training is replayed on resampled examples too, the same for all
b, and two b are compared on each. Not in them is that the replay is a model: deviations from the
target stay as they were measured, and all directions have one curvature.

Source: the theory page, section 11.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim import plots, statistics
from mbsim._shared import tables
from mbsim._shared.arrays import Array
from mbsim._shared.meant import answering
from mbsim._shared.progress import progress, watched
from mbsim._shared.seeds import child, seed_sequence
from mbsim.clipping import QuantileNorm, Rule, SmallestNorm, UnitNorm
from mbsim.errors import InvalidArgument, check_integer, divisors, shown
from mbsim.gradients.gram import Gram, are_snapshots
from mbsim.gradients.measured import GEOMETRIC_MEDIAN, MEAN, MeasuredProblem
from mbsim.gradients.replay import Together
from mbsim.simulation.run import DIVERGED
from mbsim.statistics import Interval
from mbsim.verdicts import Answer, Refusal

__all__ = ["TARGETS", "Advice", "AdviceRow", "Prediction", "Replayed", "advise", "noise_scale"]

# Targets that have a name.
TARGETS = (GEOMETRIC_MEDIAN, MEAN)


# The first is the one that is advised on.
_RULES = (SmallestNorm(), QuantileNorm(0.5), UnitNorm())
# Ties at this false-positive rate, all b together; and whatever is within 1 %. Where the lowest is
# above this share of where all began, nothing goes down.
_RATE, _TIED, _STUCK = 0.01, 1.01, 0.99
# Batches for the law at the start; resamplings of the examples.
_BATCHES, _REPLICATES = 32, 10
# Of the squared norm at the start: what is lower has converged.
_TINY = 1e-24
# Step sizes fall by quarters to 1/(5 T) of the largest, then by a half or a double; the least
# cosine of u with the target that is reckoned with.
_LEAST, _LITTLE = 5, 0.01
# The share of the squared deviations that the longest tenth must have to be called draggers.
_HEAVY = 0.5
_KINDS = "an array, a Gram, a MeasuredProblem, the path of an .npy file, or a list of these"


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """What is predicted for one rule and one micro-batch size.

    Attributes:
        rule: the rule; `micro_batch_size`: b.
        progress: A over that of SGD, where the gradients were measured; 1 for SGD.
        second_moment: M over that of SGD, likewise.
        clipped: the share of micro-batches that are scaled down more than another of their step.
        step_size: η at which the run ends lowest; ηL where no smoothness was told.
        final_grad_norm: where that ends.
    """

    rule: str
    micro_batch_size: int
    progress: float
    second_moment: float
    clipped: float
    step_size: float
    final_grad_norm: float


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which micro-batch size for measured gradients, and what it rests on; see :func:`advise`.

    Attributes:
        answer: the :class:`~mbsim.verdicts.Answer`, for the smallest norm.
        steps: T.
        curve: the predicted final gradient norm for every b, with its interval over examples.
        rows: an :class:`AdviceRow` for every b with the smallest norm, and with other rules.
        noise_scale: of the (last) gradients; see :func:`noise_scale`.
        snapshots: of each, in the order given: ‖g‖, and the best b and those tied with it by it
            alone.
    """

    answer: Answer
    steps: int
    curve: dict[int, Interval]
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

    def shortlist(self, count: int = 2) -> tuple[int, ...]:
        """The b that are predicted to end lowest: what is worth a :func:`~mbsim.race`."""
        count = check_integer("count", count, minimum=1)
        return tuple(sorted(self.curve, key=lambda b: self.curve[b].estimate)[:count])

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
            "curve": {str(b): level.to_dict() for b, level in self.curve.items()},
            "rows": [vars(row) for row in self.rows],
            "noise_scale": str(scale) if isinstance(scale, Refusal) else scale.to_dict(),
            "snapshots": [
                {"target_norm": norm, "micro_batch_size": b, "tied": list(tied)}
                for norm, b, tied in self.snapshots
            ],
            "disagree": self.disagree,
        }

    def _cells(self) -> list[tuple[str, ...]]:
        found = []
        for row in self.rows:
            b, first = row.micro_batch_size, row.rule == self.rows[0].rule
            mark = "best" if b == self.micro_batch_size else "tied" if b in self.tied else ""
            numbers = (row.progress, row.second_moment, row.clipped, row.step_size)
            cells = (f"{number:.3g}" for number in (*numbers, row.final_grad_norm))
            level = self.curve[b]
            more = (f"{level.low:.3g} to {level.high:.3g}", mark) if first else ("", "")
            found.append((row.rule, str(b), *cells, *more))
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
        cells = self._cells()
        head, *rows = tables.as_text(
            [(*_HEAD[1:-1], ""), *(cell[1:] for cell in cells)], align=">.....>"
        )
        lines = [line for note in self._notes() for line in tables.as_text([(note,)])]
        lines.append(head)
        for number, (cell, row) in enumerate(zip(cells, rows, strict=True)):
            if number == 0 or cell[0] != cells[number - 1][0]:
                lines.append(cell[0])  # the rule, above its rows
            lines.append(row)
        return "\n".join([str(self.answer), *(f"  {line}" for line in lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = ". ".join([self.answer.question, self.answer.advice, self.reason, *self._notes()])
        return tables.as_html(self._cells(), head=_HEAD, caption=title)

    def plot(self, ax: plots.Axes | None = None, **style: Any) -> plots.Axes:
        """The predicted final gradient norm over b, a curve for each rule.

        Args:
            ax: where to draw; a new figure unless told.
            **style: properties of the lines, such as ``linewidth``.
        """
        with plots.on(ax) as axes:
            for number, rule in enumerate(dict.fromkeys(row.rule for row in self.rows)):
                rows = [row for row in self.rows if row.rule == rule]
                levels = self.curve.values()
                ends = [level.low for level in levels], [level.high for level in levels]
                plots.curve(
                    axes,
                    [row.micro_batch_size for row in rows],
                    [row.final_grad_norm for row in rows],
                    None if number else ends,
                    **{"number": number, "label": rule, **style},
                )
            rate = next(iter(self.curve.values())).false_positive_rate
            plots.sizes_axis(axes, list(self.curve))
            axes.set_yscale("log")
            plots.plain_numbers(axes.yaxis)
            axes.set_ylabel(
                f"‖∇L‖ predicted after {self.steps} steps, {100 * (1 - rate):.10g} % interval"
            )
            axes.set_title(textwrap.fill(self.answer.advice, 60))
            plots.name_lines(axes)
        return axes


_HEAD = (
    "rule", "b", "progress", "moment", "clipped", "step size", "ends at", "interval", "mark",
)  # fmt: skip


@answering
def advise(
    gradients: Any,
    *,
    batch_size: int = 64,
    target: Any = None,
    steps: int = 300,
    rng: int | SeedSequence | Generator = 0,
) -> Advice:
    """Which micro-batch size for these gradients: the b that is predicted to end lowest.

    Training is replayed for every divisor b of the batch size, at the constant step size that is
    best for it. What ends low is the norm of the gradient of what the target stands for. Take two
    snapshots along a run of SGD, at a quarter of it and at its end: canaries show early, wrong
    labels late. Where the model can be trained, :meth:`Advice.shortlist` is what to race.

    Args:
        gradients: per-example gradients: what :class:`~mbsim.Gram` takes (an array ``[N, d]``, the
            path of an ``.npy`` file), a Gram, or a :class:`~mbsim.MeasuredProblem`; or a list of
            such snapshots along training. Each predicts where training ends, and the advice is on
            the geometric mean; it says too whether they disagree.
        batch_size: B, at least 2 and at most N.
        target: as for :class:`~mbsim.MeasuredProblem`: best the mean gradient of held-out examples;
            unless told the geometric median of the means of eights. With "mean" the advice is SGD
            by construction. For a list of snapshots a list of arrays, one for each.
        steps: T, of the training that is asked about; the price is in proportion to it.
        rng: the seed of partitions and resampled examples.

    Returns:
        An :class:`Advice`. Ties are told at a false-positive rate of 0.01, all b together, with
        the errors over examples; that the prediction is one of a model is not in them.

    Raises:
        InvalidArgument: for gradients and targets that :class:`~mbsim.MeasuredProblem` refuses, and
            fewer examples than a batch.

    >>> rng = np.random.default_rng(0)
    >>> gradients = 0.2 + rng.standard_normal((400, 16))           # of length 0.8, and noise
    >>> gradients[::10] = -1.5 + 4 * rng.standard_normal((40, 16))  # one in ten pulls away
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
    every = tuple(Replayed.of(one, batch, horizon, seed) for one in measured)
    found = Prediction(every)
    alone = [(one.measured.target_norm, *Prediction((one,)).best()) for one in every]
    return Advice(
        answer=_answer(found, horizon),
        steps=horizon,
        curve={b: found.interval(i) for i, b in enumerate(found.sizes)},
        rows=tuple(found.rows()),
        noise_scale=noise_scale(measured[-1].gram),
        snapshots=tuple(
            (norm, found.sizes[best], tuple(found.sizes[i] for i in tied))
            for norm, best, tied in alone
        ),
    )


# ---------------------------------------------------------------------------- what is given


def _snapshots(gradients: Any, target: Any, seed: SeedSequence) -> list[MeasuredProblem]:
    """The problems, each with its target."""
    if not are_snapshots(gradients):
        return [_problem(gradients, target, seed)]
    if not gradients:
        raise InvalidArgument(f"gradients=[] must be {_KINDS}")
    targets = target if isinstance(target, (list, tuple)) else [target] * len(gradients)
    if len(targets) != len(gradients):
        raise InvalidArgument(
            f"target has {len(targets)} arrays and must have one for each of {len(gradients)} "
            "snapshots"
        )
    if target is not None and targets is not target and not isinstance(target, str):
        raise InvalidArgument("target must be a list, with an array for each snapshot")
    return [_problem(one, goal, seed) for one, goal in zip(gradients, targets, strict=True)]


def _problem(gradients: Any, target: Any, seed: SeedSequence) -> MeasuredProblem:
    if not isinstance(gradients, MeasuredProblem):
        return MeasuredProblem(gradients, target=target, rng=seed)
    if target is not None:
        raise InvalidArgument(
            f"target={shown(target)} must be left out: a MeasuredProblem has its own"
        )
    return gradients


# ---------------------------------------------------------------------------- the prediction


@dataclass(frozen=True, kw_only=True, eq=False)
class Replayed:
    """Where replayed runs end, from one snapshot.

    Attributes:
        measured: the snapshot; `batch`: B; `steps`: T; `rules`: the rules; `sizes`: every b.
        seed: what batches are drawn from.
        law: A, M and the share of clipped micro-batches at r = ‖g‖, ``[3, rules, sizes]``.
        step_sizes: the best ηL, ``[rules, sizes]``; `levels`: ‖v_T‖ with it.

    >>> gradients = np.random.default_rng(0).standard_normal((64, 4)) + 1
    >>> measured = MeasuredProblem(gradients, target=np.ones(4))
    >>> found = Replayed.of(measured, 16, 100, SeedSequence(0), rules=(SmallestNorm(),))
    >>> found.levels.shape, bool((found.levels < 2).all())
    ((1, 5), True)
    """

    measured: MeasuredProblem
    batch: int
    steps: int
    rules: tuple[Rule, ...]
    sizes: tuple[int, ...]
    seed: SeedSequence
    law: Array
    step_sizes: Array
    levels: Array

    @classmethod
    def of(
        cls,
        measured: MeasuredProblem,
        batch: int,
        steps: int,
        seed: SeedSequence,
        *,
        rules: tuple[Rule, ...] = _RULES,
    ) -> Replayed:
        """Replay training, with every rule and b at the step size that ends lowest."""
        sizes, norm = tuple(divisors(batch)), measured.target_norm
        rows, along = np.arange(measured.examples), measured.target_products / norm
        whole = _together(measured, rows, along, norm, batch, rules, child(seed, "batches"))
        law = whole.law(_BATCHES)
        with progress(2, "replaying training") as bar:
            # What can descend at the start, or would if all of u were progress; then twice that.
            first, second = law[:2]
            moving = np.where(second > 0, second, 1.0)  # what stands still does so at any step size
            largest = 4 * norm * np.maximum(first / moving, _LITTLE / np.sqrt(moving))
            coarse = 0.25 ** np.arange(math.ceil(math.log(_LEAST * steps, 4)) + 1)
            best, levels = _lowest(whole, largest[..., None] * coarse, steps)
            bar.update(1)
            best, levels = _lowest(whole, best[..., None] * [0.5, 2.0], steps, (best, levels))
        return cls(
            measured=measured,
            batch=batch,
            steps=steps,
            rules=rules,
            sizes=sizes,
            seed=seed,
            law=law,
            step_sizes=best,
            levels=_root(levels, norm),
        )

    @cached_property
    def resampled(self) -> Array:
        """``[replicates, sizes]``: ‖v_T‖ on resampled examples, first rule, same step sizes."""
        found: list[Array] = []
        every = self.measured._replicates[:_REPLICATES]
        for one in watched(every, "replaying training on resampled examples"):
            key = child(self.seed, "batches", len(found))
            where = (one.rows, one.along, one.target_norm, self.batch)
            drawn = _together(self.measured, *where, self.rules[:1], key)
            found.append(drawn.ends(self.step_sizes[:1, :, None], self.steps)[0, :, 0])
        return _root(np.array(found), self.measured.target_norm)


def _together(
    measured: MeasuredProblem,
    rows: Any,
    along: Array,
    norm: float,
    batch: int,
    rules: tuple[Rule, ...],
    seed: SeedSequence,
) -> Together:
    """The replay of some examples; `along` has ⟨g, ĝ⟩ of all, and `norm` is ‖g‖."""
    along = along[rows] * norm
    matrix = measured.gram.matrix[np.ix_(rows, rows)]
    return Together(
        deviations=matrix - along[:, None] - along + norm**2,
        along=along - norm**2,
        target_norm=norm,
        batch=batch,
        sizes=tuple(divisors(batch)),
        rules=rules,
        replacement=measured.replacement,
        seed=seed,
    )


def _root(squares: Array, norm: float) -> Array:
    """Levels, within what has a logarithm; what has diverged is as high as where that is said."""
    return np.sqrt(np.clip(squares, _TINY * norm**2, DIVERGED * norm**2))


@dataclass(frozen=True, eq=False)
class Prediction:
    """What snapshots say together: of levels and step sizes the geometric mean.

    Attributes:
        parts: each snapshot's.

    >>> gradients = np.random.default_rng(0).standard_normal((64, 4)) + 1
    >>> measured = MeasuredProblem(gradients, target=np.ones(4))
    >>> one = Replayed.of(measured, 16, 100, SeedSequence(0))
    >>> bool(np.allclose(Prediction((one, one)).levels, Prediction((one,)).levels))
    True
    """

    parts: tuple[Replayed, ...]

    @property
    def last(self) -> Replayed:
        """That of the last snapshot."""
        return self.parts[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every b."""
        return self.last.sizes

    def _mean(self, name: str) -> Array:
        return np.exp(np.mean([np.log(getattr(one, name)) for one in self.parts], axis=0))

    @cached_property
    def levels(self) -> Array:
        """‖v_T‖, ``[rules, sizes]``."""
        return self._mean("levels")

    @cached_property
    def step_sizes(self) -> Array:
        """ηL, ``[rules, sizes]``."""
        return self._mean("step_sizes")

    @cached_property
    def resampled(self) -> Array:
        """The levels of resampled examples, first rule, ``[replicates, sizes]``."""
        return self._mean("resampled")

    @property
    def start(self) -> float:
        """‖g‖."""
        return math.exp(
            sum(math.log(one.measured.target_norm) for one in self.parts) / len(self.parts)
        )

    def interval(self, above: int, below: int | None = None, rate: float = _RATE) -> Interval:
        """The level of a b with the first rule, or its quotient by another's, by logarithms."""
        levels, samples = np.log(self.levels[0]), np.log(self.resampled)
        middle, each = levels[above], samples[:, above]
        if below is not None:
            middle, each = middle - levels[below], each - samples[:, below]
        error, df = float(each.std(ddof=1)), each.size - 1
        found = statistics.from_error(float(middle), error, df, false_positive_rate=rate)
        estimate, low, high = (math.exp(x) for x in (middle, found.low, found.high))
        return statistics.interval_of(estimate, estimate * error, df, rate, (low, high))

    def best(self) -> tuple[int, tuple[int, ...]]:
        """For the first rule, the place of the lowest b, and of all that are not told from it."""
        count = len(self.sizes)
        best = int(self.levels[0].argmin())
        quotients = [self.interval(i, best, _RATE / (count - 1)) for i in range(count)]
        tied = (i for i, q in enumerate(quotients) if q.low <= 1 or q.estimate < _TIED)
        return best, tuple(tied)

    def rows(self) -> Iterator[AdviceRow]:
        """What is said of every rule and b."""
        last = self.last
        sgd = last.law[:, 0, -1]
        for k, rule in enumerate(last.rules):
            for i, b in enumerate(self.sizes):
                progress, second, clipped = last.law[:, k, i].tolist()
                yield AdviceRow(
                    rule=str(rule).removesuffix("()"),
                    micro_batch_size=b,
                    progress=float(progress / sgd[0]) if sgd[0] else math.inf,
                    second_moment=float(second / sgd[1]) if sgd[1] else math.inf,
                    clipped=clipped,
                    step_size=float(self.step_sizes[k, i]) / last.measured.smoothness,
                    final_grad_norm=float(self.levels[k, i]),
                )


def _lowest(
    whole: Together, tried: Array, steps: int, known: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """For every rule and b the step size that ends lowest, and how low; 0 where all diverge."""
    ends = whole.ends(tried, steps)
    tried = np.where(np.isinf(ends), 0.0, tried)
    if known is not None:
        tried, ends = (
            np.concatenate([a, b[..., None]], axis=2)
            for a, b in zip((tried, ends), known, strict=True)
        )
    chosen = ends.argmin(axis=2)[..., None]
    best, levels = (np.take_along_axis(a, chosen, axis=2)[..., 0] for a in (tried, ends))
    return best, levels


# ---------------------------------------------------------------------------- the answer


def _answer(found: Prediction, steps: int) -> Answer:
    """The answer for the smallest norm."""
    last, sizes = found.last, found.sizes
    smoothness = last.measured.smoothness
    best, tied = found.best()
    sgd = len(sizes) - 1
    gain = statistics.exactly(1.0) if best == sgd else found.interval(sgd, best, _RATE / sgd)
    return Answer(
        question=f"Which b ends at the lowest gradient norm after {steps} steps, each at its own "
        "best step size, on these gradients?",
        batch_size=last.batch,
        micro_batch_size=sizes[best],
        tied=tuple(sizes[i] for i in tied),
        gain=gain,
        step_size=float(found.step_sizes[0, best]) / smoothness,
        sgd_step_size=float(found.step_sizes[0, sgd]) / smoothness,
        reason=_reason(found, best, tied, gain),
        rests_on=_rests_on(last.measured, len(found.parts)),
    )


def _reason(found: Prediction, best: int, tied: tuple[int, ...], gain: Interval) -> str:
    """Why, in words."""
    measured, sizes, sgd = found.last.measured, found.sizes, len(found.sizes) - 1
    own = measured.target == MEAN
    why = "the target is the mean of these gradients, for which SGD is unbiased; " if own else ""
    if found.levels[0, best] > _STUCK * found.start:
        return f"{why}no b goes down: steps along these gradients leave the target as long as it is"
    if best == sgd:
        other = int(found.levels[0, :sgd].argmin())
        rise = found.interval(other, sgd)
        return f"{why}clipping does not help: b = {sizes[other]} ends {rise} times as high as SGD"
    if sgd in tied:
        return (
            f"{why}the data cannot tell: by {measured.examples} examples SGD ends between "
            f"{gain.low:.3g} and {gain.high:.3g} times as high as b = {sizes[best]}"
        )
    return why + _cause(found, best)


def _cause(found: Prediction, best: int) -> str:
    """What it is that clipping takes away."""
    b, measured = found.sizes[best], found.last.measured
    matrix, along = measured.gram.matrix, measured.target_products
    # Where SGD stops without noise: as far from the target as the mean of the examples.
    rest = math.sqrt(max(float(matrix.mean() - 2 * along.mean()) + measured.target_norm**2, 0.0))
    if rest > found.last.levels[0, -1] / 2:
        share = float(along.mean()) / measured.target_norm**2
        return (
            f"draggers that lean one way: the mean of the examples is {rest:.3g} off the target, "
            f"with {share:.0%} of its length along it, and SGD stops no closer, however small its "
            f"steps; b = {b} is pulled less"
        )
    heavy = _heavy(measured)
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


def _rests_on(measured: MeasuredProblem, snapshots: int) -> str:
    off = measured.gram.relative_error
    projected = f"; projected gradients, norms to {off:.2g}" if off else ""
    which = f" in each of {snapshots} snapshots" if snapshots > 1 else ", one snapshot"
    return (
        f"{measured.examples} examples{which}, target {measured.target} of length "
        f"{measured.target_norm:.3g}{projected}; training replayed with deviations as measured and "
        f"one curvature; ties at a false-positive rate of {_RATE:g}, errors over examples"
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
    1.025 [0.9299, 1.143]
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
    ends, rate = (1 / one.high, high), one.false_positive_rate
    return statistics.interval_of(1 / found, error / found**2, one.df, rate, ends)
