r"""The assumptions on draggers, measured on gradients; against what random directions would give.

Assumption 4.4 of [Wang2024] has draggers orthogonal to the benign gradients, and c times as long.
In many dimensions everything is nearly orthogonal, so a cosine says little by itself: it is held
against the same number of *random directions with the spectrum of these gradients*, normal with
their second moments. Lengths are held against a mask whose entries are shuffled.

All of it is measured on vectors whose inner products are those of the gradients: a square root of
their Gram matrix, at most N + 1 coordinates. Source: the theory page, sections 2 and 11.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike

from mbsim import plots, statistics
from mbsim._shared import tables
from mbsim._shared.arrays import Array, Mask, one_blas_thread, ratio
from mbsim._shared.meant import answering
from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim._shared.values import value
from mbsim.errors import InvalidArgument, as_numbers, check_integer, check_number, divisors, shown
from mbsim.gradients.gram import Gram, are_snapshots
from mbsim.problems.lengths import norms_of
from mbsim.statistics import Interval
from mbsim.verdicts import Refusal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AlongTraining", "DraggerCheck", "Measured", "Parts", "check_assumptions", "parts_of"]


# Resamplings, sets of random directions, and orders of the examples for c(b) in each.
_REPLICATES, _NULLS, _ORDERS = 32, 32, 4
# A guess needs this much evidence for two groups of lengths over one (BIC), medians so many times
# apart, and at most this share of draggers; and turns of the iteration.
_EVIDENCE, _APART, _MOST, _TURNS = 10.0, 2.0, 0.5, 500


@value
class Parts:
    """What A3 and A4 speak of, measured on examples; see :func:`parts_of`.

    Attributes:
        target_norm: the length of the target.
        is_dragger: 1 for a dragger and 0 for a benign example, ``[steps · B]``.
        noise_along: of every benign example less the target, the component along the target.
        noise_length: its length.
        noise_cosine: the largest |cosine| of it and a dragger, of 200 of each.
        dragger_cosine: |cosine| of every dragger and the target.
        dragger_length: its length across the target.
        pair_cosine: of every step with two draggers or more, the mean cosine, across the target, of
            the first and another.
    """

    target_norm: float
    is_dragger: Array
    noise_along: Array
    noise_length: Array
    noise_cosine: float
    dragger_cosine: Array
    dragger_length: Array
    pair_cosine: Array


def parts_of(examples: Array, is_dragger: Mask, target: Array) -> Parts:
    """Split examples into noise and draggers and measure both, against a target gradient.

    Args:
        examples: gradients, ``[steps, B, d]``.
        is_dragger: which of them are draggers, ``[steps, B]``.
        target: the gradient that benign examples have on average, ``[d]``.

    >>> examples = np.array([[[1.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 3.0, 4.0]]])
    >>> found = parts_of(examples, np.array([[False, False, True]]), np.array([1.0, 0.0, 0.0]))
    >>> found.noise_along, found.dragger_length
    (array([ 0.5, -0.5]), array([5.]))
    """
    norm = float(norms_of(target[None])[0])
    direction = target / norm if norm else np.eye(target.size)[0]
    noise, draggers = examples[~is_dragger] - target, examples[is_dragger]
    along = np.einsum("ij,j->i", draggers, direction)
    across = draggers - np.multiply.outer(along, direction)
    lengths = norms_of(across)
    some = [ratio(x[:200], norms_of(x[:200])[:, None]) for x in (draggers, noise)]
    return Parts(
        target_norm=norm,
        is_dragger=is_dragger.ravel().astype(float),
        noise_along=np.einsum("ij,j->i", noise, direction),
        noise_length=norms_of(noise),
        noise_cosine=float(np.abs(np.einsum("ik,jk->ij", *some)).max(initial=0.0)),
        dragger_cosine=ratio(np.abs(along), norms_of(draggers)),
        dragger_length=lengths,
        pair_cosine=_pair_cosines(ratio(across, lengths[:, None]), is_dragger),
    )


def _pair_cosines(unit: Array, is_dragger: Mask) -> Array:
    """For each step with two draggers or more, the mean cosine of the first with the others."""
    counts = is_dragger.sum(axis=1)
    firsts = np.cumsum(counts) - counts  # where the draggers of each step begin
    counts, firsts = counts[counts > 0], firsts[counts > 0]
    if not counts.size:
        return np.zeros(0)
    cosines = np.einsum("ij,ij->i", unit, np.repeat(unit[firsts], counts, axis=0))
    others = np.add.reduceat(cosines, firsts) - cosines[firsts]
    found: Array = others[counts > 1] / (counts[counts > 1] - 1)
    return found


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number that the assumption speaks of.

    Attributes:
        name: its name, one word; `what`: in words.
        interval: the estimate, with its interval over examples.
        null: what random directions (for lengths: a shuffled mask) give: their mean, and the
            interval that one set of them falls in.
    """

    name: str
    what: str
    interval: Interval
    null: Interval

    @property
    def told_apart(self) -> bool:
        """Whether the interval and that of the null do not meet."""
        return self.interval.low > self.null.high or self.interval.high < self.null.low


@dataclass(frozen=True, kw_only=True)
class DraggerCheck:
    """How far some examples are draggers; see :func:`check_assumptions`.

    Attributes:
        examples: N; `draggers`: how many of them were held to be draggers.
        guessed: whether they were told by their lengths, for want of a mask.
        probability: the share of draggers, p, with its interval.
        measured: the numbers, each a :class:`Measured`; by name with ``found["tilt"]``.
        norm_ratios: c(b) for every b: measured on random micro-batches, and its law in the model.
    """

    examples: int
    draggers: int
    guessed: bool
    probability: Interval
    measured: tuple[Measured, ...]
    norm_ratios: dict[int, tuple[Interval, float]]

    def __getitem__(self, name: str) -> Measured:
        for one in self.measured:
            if one.name == name:
                return one
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain data."""
        return {
            "examples": self.examples,
            "draggers": self.draggers,
            "guessed": self.guessed,
            "probability": _plain(self.probability),
            "measured": {
                one.name: {
                    **_plain(one.interval),
                    "null": _plain(one.null),
                    "told_apart": one.told_apart,
                }
                for one in self.measured
            },
            "norm_ratios": {
                str(b): {**_plain(found), "law": law}
                for b, (found, law) in self.norm_ratios.items()
            },
        }

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Every number with its interval, and in grey what random directions give.

        Norm ratios c(b) of micro-batches stand below, in grey their law in the model.

        Args:
            ax: where to draw; a new figure unless told.
            **style: properties of the measured points, such as ``color``.
        """
        rows = [(textwrap.fill(one.what, 36), one.interval, one.null) for one in self.measured]
        rows += [
            (f"norm ratio c({b})", found, statistics.exactly(law))
            for b, (found, law) in self.norm_ratios.items()
        ]
        measured, null = (
            [(name, x.estimate, x.low, x.high) for name, *both in rows for x in both[i : i + 1]]
            for i in (0, 1)
        )
        with plots.on(ax) as axes:
            if ax is None:
                figure: Any = axes.get_figure(root=True)
                figure.set_size_inches(7.5, 0.36 * len(rows) + 1.4)  # a line or two for each
            grey = {"color": "0.5", "label": "null, or the model's law"}
            plots.intervals(axes, null, number=1, shift=-0.18, **grey)
            plots.intervals(axes, measured, shift=0.18, **{"label": "measured", **style})
            axes.set_xscale("symlog", linthresh=1)
            axes.axvline(0, color="0.3", linewidth=0.8)
            rates = {interval.false_positive_rate for _, interval, _ in rows}
            sure = ", ".join(f"{100 * (1 - rate):.10g} %" for rate in sorted(rates))
            axes.set(
                xlabel=f"cosines and ratios, {sure} interval", title=textwrap.fill(self._title, 60)
            )
            axes.legend(loc="lower left")
        return axes

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for one in self.measured:
            apart = "told apart" if one.told_apart else "as the null"
            yield one.what, _short(one.interval), _short(one.null), apart
        for b, (found, law) in self.norm_ratios.items():
            yield f"norm ratio c({b})", _short(found), f"law {law:.4g}", ""

    @property
    def _title(self) -> str:
        how = "told by their lengths" if self.guessed else "by the mask"
        which = f"{self.draggers} draggers among {self.examples} examples ({how})"
        sure = f"{100 * (1 - self.probability.false_positive_rate):.10g} %"
        return f"{which}: p = {_short(self.probability)} (± half of the {sure} interval)"

    def __str__(self) -> str:
        rows = [("", "measured", "null", ""), *self._rows()]
        lines = tables.as_text(rows, most=(36,))
        return "\n".join([*textwrap.wrap(self._title, 80), *(f"  {line}" for line in lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tables.as_html(self._rows(), head=("", "measured", "null", ""), caption=self._title)


@dataclass(frozen=True, kw_only=True)
class AlongTraining:
    """What draggers are like at several moments of training; see :func:`check_assumptions`.

    Attributes:
        checks: a :class:`DraggerCheck` for each, in order, or the reason why there is none.
    """

    checks: tuple[DraggerCheck | Refusal, ...]

    def __getitem__(self, name: str) -> tuple[Interval | Refusal, ...]:
        """One number along training: "probability", or the name of one that is measured."""
        return tuple(
            one
            if isinstance(one, Refusal)
            else one.probability
            if name == "probability"
            else one[name].interval
            for one in self.checks
        )

    def to_dict(self) -> dict[str, Any]:
        """The checks as plain data."""
        plain = [str(one) if isinstance(one, Refusal) else one.to_dict() for one in self.checks]
        return {"checks": plain}

    def plot(self, ax: Axes | None = None, *, quantity: str = "norm_ratio", **style: Any) -> Axes:
        """One number along training, with its interval; × where a snapshot has none.

        Args:
            ax: where to draw; a new figure unless told.
            quantity: "probability", or the name of a number that is measured, such as "tilt".
            **style: properties of the line, such as ``color`` or ``label``.

        Raises:
            InvalidArgument: for a number that no snapshot has.
        """
        known = {"probability": "share of draggers p"}
        for one in self.checks:
            known |= {} if isinstance(one, Refusal) else {m.name: m.what for m in one.measured}
        if quantity not in known:
            raise InvalidArgument(f"quantity={shown(quantity)} must be one of {', '.join(known)}")
        found = dict(enumerate(self[quantity], start=1))
        there = {at: one for at, one in found.items() if isinstance(one, Interval)}
        ends = [one.low for one in there.values()], [one.high for one in there.values()]
        with plots.on(ax) as axes:
            look = {"label": known[quantity], **style}
            plots.curve(axes, list(there), [one.estimate for one in there.values()], ends, **look)
            none = [at for at in found if at not in there]
            foot = axes.get_xaxis_transform()
            axes.plot(none, [0.02] * len(none), "x", color="0.4", transform=foot, gid="no value")
            axes.set_xticks(list(found))
            rates = sorted({one.false_positive_rate for one in there.values()})
            sure = ", ".join(f"{100 * (1 - rate):.10g} %" for rate in rates)
            axes.set(xlabel="snapshot along training", ylabel=f"{known[quantity]}, {sure} interval")
        return axes

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for number, one in enumerate(self.checks, start=1):
            if isinstance(one, Refusal):
                yield (str(number), str(one), *[""] * (len(_MOVES) - 1))
            else:
                found = (self[name][number - 1] for name in _MOVES)
                yield (str(number), *(_short(x) for x in found if isinstance(x, Interval)))

    def __str__(self) -> str:
        rows = [_ALONG, *self._rows()]
        title = "Draggers along training, ± half of the interval over examples"
        return "\n".join([title, *(f"  {row}" for row in tables.as_text(rows, align=">"))])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tables.as_html(self._rows(), head=_ALONG, caption="Draggers along training")


# What is shown of a check along training, and under which heads.
_MOVES = ("probability", "norm_ratio", "tilt", "skewness")
_ALONG = ("snapshot", "p", "norm ratio c", "tilt", "skewness")


@answering
def check_assumptions(
    gradients: Any,
    *,
    is_dragger: ArrayLike | None = None,
    batch_size: int = 64,
    rng: int | SeedSequence | Generator = 0,
    false_positive_rate: float = 0.01,
) -> DraggerCheck | AlongTraining | Refusal:
    """Measure assumption 4.4 on gradients: angles and lengths of draggers, beside a null.

    Args:
        gradients: what :class:`~mbsim.Gram` takes, or one; or a list of such snapshots of the same
            examples along training.
        is_dragger: bool ``[N]``: which examples are held to be draggers. Without it they are told
            by their lengths, where these fall into two groups.
        batch_size: B, of whose divisors c(b) is measured.
        rng: the seed.
        false_positive_rate: of each interval.

    Returns:
        A :class:`DraggerCheck`. Its numbers: ``tilt``, the mean cosine of a dragger and the mean
        benign gradient (that of the model is 0); ``cosine``, the mean of its size; ``pair_cosine``,
        the mean size for a dragger and a benign example; ``coherence``, the mean cosine of two
        draggers; ``energy_90`` and ``energy_99``, the share of the draggers' squared lengths
        within the principal directions that hold 90 and 99 % of the benign ones' (which are kept
        when draggers are resampled); ``norm_ratio``, c, of root mean squares; ``norm_spread``, the
        coefficient of variation of draggers' lengths; ``skewness``, the skewness of the benign
        noise along the mean benign gradient, which biases clipping (its null has random signs).
        Or, without a mask, a :class:`~mbsim.verdicts.Refusal` to guess. For a list of snapshots an
        :class:`AlongTraining`, of which ``found["norm_ratio"]`` is c along training.

    Raises:
        InvalidArgument: for a mask of the wrong length or all of one value.

    >>> rng = np.random.default_rng(0)
    >>> gradients = 0.5 + rng.standard_normal((300, 40))
    >>> gradients[:30] = 20 * rng.standard_normal((30, 40))
    >>> found = check_assumptions(gradients, is_dragger=np.arange(300) < 30)
    >>> found["norm_ratio"].told_apart, found["tilt"].told_apart
    (True, False)
    >>> check_assumptions(gradients).draggers                     # told by their lengths
    30
    >>> print(check_assumptions(gradients[30:]))
    no estimate of p and c: lengths do not fall into two groups; give is_dragger
    """
    batch = check_integer("batch_size", batch_size, minimum=1)
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    seed = seed_sequence(rng)
    if not are_snapshots(gradients):
        return _check(gradients, is_dragger, batch, rate, seed)
    if not gradients:
        raise InvalidArgument("gradients=[] must have a snapshot")
    return AlongTraining(
        checks=tuple(_check(one, is_dragger, batch, rate, seed) for one in gradients)
    )


def _check(
    gradients: Any, is_dragger: ArrayLike | None, batch: int, rate: float, seed: SeedSequence
) -> DraggerCheck | Refusal:
    """The check of one snapshot."""
    gram = gradients if isinstance(gradients, Gram) else Gram(gradients)
    lengths = np.sqrt(np.maximum(np.diagonal(gram.matrix), 0.0))
    mask = _two_groups(lengths) if is_dragger is None else _mask(is_dragger, gram.examples)
    if mask is None:
        return Refusal(
            "lengths do not fall into two groups; give is_dragger", of="estimate of p and c"
        )
    with one_blas_thread(), progress(_REPLICATES, "measuring draggers") as bar:
        vectors = _square_root(gram.matrix)
        benign, draggers = vectors[~mask], vectors[mask]
        spans = _spans(benign)
        found = _numbers(benign, draggers, spans)
        sizes = divisors(batch)
        ratios = {b: _micro_batch_ratio(benign, draggers, b, stream(seed, "orders")) for b in sizes}
        resampled, others = [], []
        for number in range(_REPLICATES):
            rng_ = stream(seed, "examples", number)
            some, few = (x[rng_.integers(len(x), size=len(x))] for x in (benign, draggers))
            resampled.append(_numbers(some, few, spans))
            others.append([_micro_batch_ratio(some, few, b, rng_) for b in sizes])
            bar.update(number + 1)
        nulls = _nulls(vectors, mask, spans, seed)

    def interval(estimate: float, sample: Any, *, wide: bool = False) -> Interval:
        """By the spread of a sample; that which one of its members falls in if it is `wide`."""
        spread = np.asarray(sample)
        middle = float(spread.mean()) if wide else estimate
        error = float(spread.std(ddof=1))
        return statistics.from_error(middle, error, len(spread) - 1, false_positive_rate=rate)

    share = float(mask.mean())
    return DraggerCheck(
        examples=gram.examples,
        draggers=int(mask.sum()),
        guessed=is_dragger is None,
        probability=statistics.from_error(
            share,
            math.sqrt(share * (1 - share) / mask.size),
            mask.size - 1,
            false_positive_rate=rate,
        ),
        measured=tuple(
            Measured(
                name=name,
                what=what,
                interval=interval(found[name], [one[name] for one in resampled]),
                null=interval(0.0, [one[name] for one in nulls], wide=True),
            )
            for name, what in _WHAT.items()
        ),
        norm_ratios={
            b: (interval(ratios[b][0], [one[i][0] for one in others]), ratios[b][1])
            for i, b in enumerate(sizes)
        },
    )


_WHAT = {
    "tilt": "cosine of a dragger and the mean benign gradient",
    "cosine": "its size",
    "pair_cosine": "size of the cosine of a dragger and a benign example",
    "coherence": "cosine of two draggers",
    "energy_90": "energy of draggers where 90 % of the benign is",
    "energy_99": "energy of draggers where 99 % of the benign is",
    "norm_ratio": "norm ratio c",
    "norm_spread": "coefficient of variation of draggers' lengths",
    "skewness": "skewness of the benign along their mean",
}


def _mask(is_dragger: ArrayLike, examples: int) -> Mask:
    given = np.asarray(is_dragger)
    if given.dtype != bool:
        given = as_numbers("is_dragger", is_dragger)
    if given.shape != (examples,):
        raise InvalidArgument(
            f"is_dragger has shape {given.shape} and must have one entry for each of {examples} "
            "examples"
        )
    if not np.isin(given, (0, 1)).all():
        raise InvalidArgument(f"is_dragger={shown(is_dragger)} must be of True and False")
    mask = given.astype(bool)
    if mask.all() or not mask.any():
        raise InvalidArgument(
            f"is_dragger must have True and False among its entries; all {examples} are "
            f"{bool(mask[0])}"
        )
    if min(mask.sum(), examples - mask.sum()) < 2:
        raise InvalidArgument("is_dragger must have at least two draggers and two others")
    return mask


def _square_root(matrix: Array) -> Array:
    """Vectors ``[N, N]`` with these inner products, their coordinates principal directions."""
    size, axes = np.linalg.eigh(matrix)
    found: Array = axes * np.sqrt(np.maximum(size, 0.0))
    return found


def _spans(benign: Array) -> dict[str, Array]:
    """Orthonormal directions that hold 90 and 99 % of the benign examples' squared lengths."""
    _, size, axes = np.linalg.svd(benign, full_matrices=False)
    held = np.cumsum(np.square(size)) / np.square(size).sum()
    return {
        f"energy_{share}": axes[: int(np.searchsorted(held, share / 100)) + 1] for share in (90, 99)
    }


def _numbers(benign: Array, draggers: Array, spans: dict[str, Array]) -> dict[str, float]:
    """All that is measured."""
    every = np.concatenate([benign, draggers])[None]
    mask = (np.arange(every.shape[1]) >= len(benign))[None]
    mean = benign.mean(axis=0)
    parts = parts_of(every, mask, mean)
    norm, lengths = parts.target_norm, norms_of(draggers)
    unit, others = (ratio(x, norms_of(x)[:, None]) for x in (draggers, benign))
    count = len(unit)
    total = float(np.square(unit.sum(axis=0)).sum())
    energy = float(np.square(lengths).sum())
    return {
        "tilt": float((unit @ mean).mean() / norm) if norm else 0.0,
        "cosine": float(parts.dragger_cosine.mean()),
        "pair_cosine": float(np.abs(unit @ others.T).mean()),
        "coherence": (total - count) / (count * (count - 1)),
        **{
            name: float(np.square(draggers @ axes.T).sum() / energy) for name, axes in spans.items()
        },
        **_of_lengths(lengths, norms_of(benign)),
        "skewness": _skewness(parts.noise_along),
    }


def _of_lengths(draggers: Array, benign: Array) -> dict[str, float]:
    """What lengths alone say."""
    squares = [float(np.square(lengths).mean()) for lengths in (draggers, benign)]
    return {
        "norm_ratio": math.sqrt(squares[0] / squares[1]),
        "norm_spread": float(draggers.std() / draggers.mean()),
    }


def _skewness(x: Array) -> float:
    """The third moment over the 3/2-th power of the second, both about 0."""
    second = float(np.square(x).mean())
    return float((x**3).mean()) / second**1.5 if second else 0.0


def _nulls(
    vectors: Array, mask: Mask, spans: dict[str, Array], seed: SeedSequence
) -> list[dict[str, float]]:
    """The numbers for random directions in the place of draggers, and for shuffled lengths."""
    benign, count, lengths = vectors[~mask], int(mask.sum()), norms_of(vectors)
    spread = np.sqrt(np.square(vectors).mean(axis=0))  # principal directions are uncorrelated
    mean = benign.mean(axis=0)
    along = ratio((benign - mean) @ mean, norms_of(mean[None]))
    found = []
    for number in range(_NULLS):
        rng = stream(seed, "null", number)
        random = spread * rng.standard_normal((count, spread.size))
        shuffled = rng.permutation(mask)
        signs = rng.choice([-1.0, 1.0], size=along.size)
        found.append(
            _numbers(benign, random, spans)
            | _of_lengths(lengths[shuffled], lengths[~shuffled])
            | {"skewness": _skewness(signs * along)}
        )
    return found


def _micro_batch_ratio(
    benign: Array, draggers: Array, b: int, rng: Generator
) -> tuple[float, float]:
    """c(b) on random micro-batches that have both kinds, and what Lemma 1 makes of c(1).

    Root mean squares of the draggers' and of the benign part of a micro-batch's mean.
    """
    every = np.concatenate([benign, draggers])
    is_dragger = np.arange(len(every)) >= len(benign)
    squares = [float(np.square(part).sum(axis=1).mean()) for part in (benign, draggers)]
    products = [_mean_product(part) for part in (benign, draggers)]
    if b == 1:
        c = math.sqrt(squares[1] / squares[0])
        return c, c
    measured, law = np.zeros(2), np.zeros(2)
    for _ in range(_ORDERS):
        order = rng.permutation(len(every))[: len(every) // b * b].reshape(-1, b)
        k = is_dragger[order].sum(axis=1)
        order = order[(k > 0) & (k < b)]
        if not len(order):
            continue
        k = is_dragger[order].sum(axis=1)
        for i, flags in enumerate((~is_dragger, is_dragger)):
            part = np.einsum("jbd,jb->jd", every[order], flags[order].astype(float))
            n = b - k if i == 0 else k
            measured[i] += np.square(part).sum()
            law[i] += (n * squares[i] + n * (n - 1) * products[i]).sum()
    if not measured.all():
        return math.nan, math.nan
    return math.sqrt(measured[1] / measured[0]), math.sqrt(max(law[1], 0.0) / law[0])


def _mean_product(vectors: Array) -> float:
    """The mean inner product of two of them."""
    n = len(vectors)
    total = float(np.square(vectors.sum(axis=0)).sum() - np.square(vectors).sum())
    return total / (n * (n - 1))


def _two_groups(lengths: Array) -> Mask | None:
    """Which lengths are of the longer group, if their logarithms fall into two normal ones."""
    x = np.log(lengths[lengths > 0])
    if x.size < 16 or not x.std() > 0:
        return None
    cut = np.quantile(x, 0.9)
    weight = np.array([0.9, 0.1])
    centre = np.array([x[x <= cut].mean(), x.max()])
    spread = np.full(2, x.std())
    least = 1e-3 * x.std()

    def densities() -> Array:
        z = (x[:, None] - centre) / spread
        found: Array = weight * np.exp(-np.square(z) / 2) / (spread * math.sqrt(2 * math.pi))
        return np.maximum(found, 1e-300)

    for _ in range(_TURNS):
        share = densities()
        share /= share.sum(axis=1, keepdims=True)
        count = np.maximum(share.sum(axis=0), 1e-9)
        weight, centre = count / x.size, share.T @ x / count
        spread = np.sqrt((share * np.square(x[:, None] - centre)).sum(axis=0) / count)
        spread = np.maximum(spread, least)
    two = float(np.log(densities().sum(axis=1)).sum())
    one = -x.size * (math.log(x.std()) + (1 + math.log(2 * math.pi)) / 2)
    longer = int(centre.argmax())
    apart = math.exp(abs(centre[1] - centre[0])) > _APART
    evident = 2 * (two - one) - 3 * math.log(x.size) > 2 * _EVIDENCE
    if not (apart and evident and weight[longer] < _MOST):
        return None
    found = np.zeros(lengths.size, dtype=bool)
    share = densities()
    found[lengths > 0] = (share[:, longer] > share[:, 1 - longer]) & (x > centre[1 - longer])
    return found if 2 <= found.sum() <= found.size - 2 else None


def _short(interval: Interval) -> str:
    """An interval that is as wide on both sides, in few columns."""
    return f"{interval.estimate:.3g} ± {(interval.high - interval.low) / 2:.2g}"


def _plain(interval: Interval) -> dict[str, Any]:
    return {"estimate": interval.estimate, "interval": [interval.low, interval.high]}
