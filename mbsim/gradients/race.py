"""Which micro-batch size, by training: successive halving over b, rule and step size.

Everybody starts, with the same seed, and after a few steps the worst are dropped; those left train
on from where they stopped. The losses of the race are held-out losses, and its budget is counted in
training runs. In the end two are left, SGD at its best step size always among them.

Source: successive halving from Jamieson and Talwalkar (AISTATS 2016). scikit-learn's search starts
every training anew, for it clones its estimators; the race itself is short. Two things are ours. A
candidate brings along the next smaller step size of its kind, for large step sizes get ahead early
and fall behind late. And how fast the field shrinks is fitted to the budget.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim import plots, statistics
from mbsim._shared import tables
from mbsim._shared.arrays import Array
from mbsim._shared.meant import answering
from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence
from mbsim._shared.values import set_field
from mbsim.clipping import NoClipping, Rule, SmallestNorm, check_rule_argument
from mbsim.errors import (
    InvalidArgument,
    as_numbers,
    check_divides,
    check_integer,
    check_number,
    divisors,
    shown,
)
from mbsim.methods import MicroBatchClipping
from mbsim.statistics import Interval
from mbsim.verdicts import Answer

__all__ = ["Candidate", "Race", "Rung", "grid", "race"]

# `train` as the race calls it.
Train = Callable[..., tuple[Any, Any]]

# Each rung keeps about so many of the last; the false-positive rate of an interval; and numbers
# that have none are tied within 1 %.
_KEPT, _RATE, _TIED = 0.7, 0.01, 1.01
# Of the nine step sizes: their ratio, and how many lie below the middle.
_RATIO, _BELOW, _STEP_SIZES = 2.0, 4, 9
# Step sizes are looked for from 4⁻¹² to 4¹².
_FARTHEST = 12


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is raced: a micro-batch size, a clipping rule and a step size.

    >>> print(Candidate(micro_batch_size=4, step_size=0.1))
    b = 4, η = 0.1, SmallestNorm()
    """

    micro_batch_size: int
    step_size: float
    rule: Rule = SmallestNorm()  # noqa: RUF009 - a frozen dataclass without fields

    def __post_init__(self) -> None:
        size = check_integer("micro_batch_size", self.micro_batch_size, minimum=1)
        set_field(self, "micro_batch_size", size)
        set_field(self, "step_size", check_number("step_size", self.step_size, above=0))
        check_rule_argument(self.rule)

    @property
    def method(self) -> MicroBatchClipping:
        """The same as a method, without the step size."""
        return MicroBatchClipping(self.micro_batch_size, rule=self.rule)

    def __str__(self) -> str:
        return f"b = {self.micro_batch_size}, η = {self.step_size:.3g}, {self.rule}"


def grid(
    batch_size: int,
    *,
    sizes: Iterable[int] | None = None,
    step_size: float = 1.0,
    rules: Sequence[Rule] = (SmallestNorm(),),
) -> list[Candidate]:
    """Candidates: every b, with every rule, at nine step sizes that double.

    Args:
        batch_size: B.
        sizes: the micro-batch sizes, all divisors of B unless told.
        step_size: the fifth of the nine step sizes: they go from a sixteenth of it to 16 times it.
        rules: the clipping rules.

    Raises:
        InvalidArgument: for a b that does not divide B, and numbers outside their limits.

    >>> found = grid(64, sizes=[1, 64])
    >>> len(found), found[0].step_size, found[-1].step_size
    (18, 0.0625, 16.0)
    """
    listed = divisors(check_integer("batch_size", batch_size, minimum=1))
    middle = check_number("step_size", step_size, above=0)
    listed = listed if sizes is None else list(sizes)
    for size in listed:
        check_divides(size, batch_size)
    return [
        Candidate(micro_batch_size=b, step_size=middle * _RATIO ** (k - _BELOW), rule=rule)
        for b in listed
        for rule in rules
        for k in range(_STEP_SIZES)
    ]


@dataclass(frozen=True)
class Rung:
    """One stop of a race.

    Attributes:
        steps: after how many steps of training.
        losses: (candidate, its held-out loss) of all that came so far, the lowest first; infinite
            where training diverged.

    >>> Rung(10, ((Candidate(micro_batch_size=4, step_size=0.1), 0.5),)).best(4)
    0.5
    """

    steps: int
    losses: tuple[tuple[Candidate, float], ...]

    def best(self, micro_batch_size: int) -> float:
        """The lowest loss of this b; infinite if none of it is left."""
        of_b = (loss for one, loss in self.losses if one.micro_batch_size == micro_batch_size)
        return next(of_b, math.inf)


@dataclass(frozen=True, kw_only=True)
class Race:
    """What :func:`race` found.

    Attributes:
        answer: which b, and what it is worth, as every adviser answers.
        candidate: the winner, with its rule and step size.
        regret_bound: the winner's loss is at most so many times the lowest of those that were raced
            to the end, by the upper ends of intervals; infinite where runs have no interval. Who
            was dropped before, and how far behind, is in `rungs`.
        rungs: every stop.
        cost, budget: in training runs.

    >>> won = Candidate(micro_batch_size=4, step_size=0.1)
    >>> def train(candidate, *, steps, seed, state=None):
    ...     return 1 + abs(candidate.micro_batch_size - 4) / steps, None
    >>> found = race(train, [won], batch_size=8, steps=100)
    >>> found.micro_batch_size, found.cost
    (4, 2.0)
    """

    answer: Answer
    candidate: Candidate
    regret_bound: float
    rungs: tuple[Rung, ...]
    cost: float
    budget: float

    @property
    def micro_batch_size(self) -> int:
        """The b of the answer."""
        return self.answer.micro_batch_size

    @property
    def tied(self) -> tuple[int, ...]:
        """Every b that was raced to the end and cannot be told from the best."""
        return self.answer.tied

    def to_dict(self) -> dict[str, Any]:
        """The race as plain data."""
        return {
            "answer": self.answer.to_dict(),
            "candidate": _plain(self.candidate),
            "regret_bound": self.regret_bound,
            "cost": self.cost,
            "budget": self.budget,
            "rungs": [
                {
                    "steps": rung.steps,
                    "losses": [{**_plain(one), "loss": loss} for one, loss in rung.losses],
                }
                for rung in self.rungs
            ],
        }

    def _rows(self) -> list[tuple[str, ...]]:
        batch_size = self.answer.batch_size
        return [
            (
                str(rung.steps),
                str(len(rung.losses)),
                str(rung.losses[0][0]),
                f"{rung.losses[0][1]:.4g}",
                f"{rung.best(batch_size):.4g}",
            )
            for rung in self.rungs
        ]

    def __str__(self) -> str:
        cost = f"  cost        {self.cost:.3g} training runs of {self.budget:g}"
        bound = f"; at most {self.regret_bound:.4g} times the lowest of those raced to the end"
        table = tables.as_text([_HEAD, *self._rows()], align=">><>>")
        return "\n".join([str(self.answer), cost + bound, *table])

    def _repr_html_(self) -> str:
        return tables.as_html(self._rows(), head=_HEAD, caption=self.answer.advice)

    def plot(self, ax: plots.Axes | None = None, **style: Any) -> plots.Axes:
        """The lowest held-out loss of every b against steps, as far as it was raced.

        Args:
            ax: where to draw; a new figure unless told.
            **style: properties of the lines, such as ``linewidth``.
        """
        sizes = sorted({one.micro_batch_size for one, _ in self.rungs[0].losses})
        with plots.on(ax) as axes:
            for number, b in enumerate(sizes):
                points = [(rung.steps, rung.best(b)) for rung in self.rungs]
                points = [(steps, loss) for steps, loss in points if math.isfinite(loss)]
                if points:
                    look = {"number": number, "label": f"b = {b}", **style}
                    plots.curve(axes, *zip(*points, strict=True), **look)
            axes.set_xscale("log")
            axes.set(xlabel="steps", ylabel="held-out loss, lowest of each b (no interval)")
            axes.set_title(textwrap.fill(self.answer.advice, 60))
            plots.name_lines(axes)
        return axes


_HEAD = ("steps", "raced", "leader", "its loss", "SGD's")


def _plain(one: Candidate) -> dict[str, Any]:
    return {
        "micro_batch_size": one.micro_batch_size,
        "step_size": one.step_size,
        "rule": repr(one.rule),
    }


@answering
def race(
    train: Train,
    candidates: Iterable[Candidate] | Iterable[int] | None = None,
    *,
    batch_size: int,
    steps: int,
    budget: float = 10.0,
    rng: int | SeedSequence | Generator = 0,
) -> Race:
    """Which b, rule and step size have the lowest held-out loss after T steps, by training them.

    ``train(candidate, *, steps, seed, state=None)`` returns ``(losses, state)``. It trains
    `candidate`, which has ``micro_batch_size``, ``rule`` and ``step_size``, up to step number
    `steps`: from the beginning if `state` is None, else from where the call that returned `state`
    stopped, at a smaller number of steps. So nothing is trained twice. `seed`, an integer, is the
    same for every candidate: let start and order of examples follow from it, and the race is
    paired. `losses` is the held-out loss of every held-out example, an array, or their mean, a
    number at least 0; not finite where training diverged. With arrays the answer has intervals
    (over held-out examples, given this seed), and from half of the training on whoever is told
    from the leader is dropped at once. What `state` is, and whether it is kept in memory, is up to
    `train`: a fitted estimator, a model with its optimiser, a path.

    Args:
        train: as above.
        candidates: :class:`Candidate`, for example from :func:`grid`; or micro-batch sizes, at nine
            step sizes around one that short runs of SGD find. All divisors of B if left out. SGD is
            added where it is missing.
        batch_size: B.
        steps: T.
        budget: what may be spent, in training runs of T steps; a fraction of a run counts as that.
        rng: seed, SeedSequence or Generator.

    Returns:
        The :class:`Race`.

    Raises:
        InvalidArgument: for numbers outside their limits, a b that does not divide B, no or equal
            candidates, a `budget` that is too small to race them, and a `train` that returns
            something else. What `train` itself raises comes through, with the candidate named.

    A loop of one's own, the mean of normal vectors by SGD; docs/extending.md has an estimator with
    ``partial_fit`` and a loop of PyTorch:

    >>> import mbsim
    >>> import numpy as np
    >>> target = np.random.default_rng(0).standard_normal((200, 4))
    >>> def train(candidate, *, steps, seed, state=None):
    ...     w, done = (np.full(4, 3.0), 0) if state is None else state
    ...     for step in range(done, steps):
    ...         batch = target[np.random.default_rng([seed, step]).integers(100, size=16)]
    ...         update = mbsim.clipping.update(w - batch, candidate.micro_batch_size)
    ...         w = w - candidate.step_size * update
    ...     return 0.5 * ((w - target[100:]) ** 2).sum(axis=1), (w, steps)
    >>> found = mbsim.race(train, batch_size=16, steps=40, budget=8)
    >>> found.cost <= 8, found.answer.clips
    (True, False)
    """
    if not callable(train):
        raise InvalidArgument(
            f"train={shown(train)} must be a function(candidate, *, steps, seed, state=None)"
        )
    batch_size = check_integer("batch_size", batch_size, minimum=1)
    steps = check_integer("steps", steps, minimum=1)
    budget = check_number("budget", budget, above=0)
    seed = int(seed_sequence(rng).generate_state(1, np.uint32)[0])
    field = _Field(train, batch_size, steps, seed)
    listed = _listed(candidates, field)
    plan = schedule(len(listed), budget - field.cost, steps)
    rungs, kept = [], listed
    with progress(len(plan), "racing") as bar:
        for number, (count, until) in enumerate(plan):
            bar.update(number, f"racing {len(kept)} to step {until}")
            ranked = field.run(kept[:], until)
            rungs.append(Rung(until, tuple((one, field.loss(one)) for one in ranked)))
            if number + 1 < len(plan):
                kept = _survivors(field, ranked, min(plan[number + 1][0], count), until)
    return _found(field, rungs, budget)


def schedule(count: int, budget: float, steps: int) -> list[tuple[int, int]]:
    """Rungs (how many are raced, up to which step), down to two, that together cost the budget.

    With n_k candidates in rung k, it gets a share of the steps in proportion to n_k^(a − 1), and
    costs n_k^a in proportion: a = 0 is successive halving as published, where each rung costs
    the same; the budget decides a.

    >>> schedule(9, 4.0, 100)
    [(9, 8), (7, 18), (5, 31), (4, 48), (3, 69), (2, 100)]
    """
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(max(2, min(sizes[-1] - 1, math.ceil(_KEPT * sizes[-1]))))
    raced, low, high = np.array(sizes, dtype=np.float64), -8.0, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        if _cost(_plan(raced, middle, steps), steps) <= budget:
            low = middle
        else:
            high = middle
    plan = _plan(raced, low, steps)
    if (cost := _cost(plan, steps)) > budget:
        raise InvalidArgument(
            f"budget={shown(budget)} must be at least {cost:.3g} training runs for {count} "
            f"candidates of {steps} steps; or race fewer"
        )
    return plan


def _plan(raced: Array, exponent: float, steps: int) -> list[tuple[int, int]]:
    shares = (raced / raced[-1]) ** (exponent - 1)
    stops = np.rint(steps * np.cumsum(shares) / shares.sum()).astype(int)
    stops[-1] = steps
    # The first has a step at least; of rungs that stop at the same step the largest is raced.
    found: dict[int, int] = {}
    for size, stop in zip(raced.astype(int).tolist(), np.maximum(stops, 1).tolist(), strict=True):
        found.setdefault(stop, size)
    return [(size, stop) for stop, size in found.items()]


def _cost(plan: list[tuple[int, int]], steps: int) -> float:
    before = [0, *(stop for _, stop in plan)]
    return sum(n * (stop - last) for (n, stop), last in zip(plan, before, strict=False)) / steps


class _Field:
    """Who is in the race: losses, states and what was spent."""

    def __init__(self, train: Train, batch_size: int, steps: int, seed: int) -> None:
        self.train, self.batch_size, self.steps, self.seed = train, batch_size, steps, seed
        self.taken = 0  # steps, of all trainings
        self.size: int | None = None
        self._state: dict[Candidate, tuple[Any, int]] = {}
        self._losses: dict[Candidate, Array] = {}

    @property
    def cost(self) -> float:
        """In training runs."""
        return self.taken / self.steps

    def run(self, kept: list[Candidate], until: int) -> list[Candidate]:
        """Train everybody on to step `until`; who has diverged has, and costs nothing. Ranked."""
        for one in set(self._state) - set(kept):
            del self._state[one]
        for one in kept:
            state, done = self._state.get(one, (None, 0))
            if done and not math.isfinite(self.loss(one)):
                continue
            self._losses[one], state = self.call(one, until, state)
            self._state[one] = state, until
            self.taken += until - done
        return sorted(kept, key=self.loss)

    def call(self, one: Candidate, until: int, state: Any) -> tuple[Array, Any]:
        try:
            returned = self.train(one, steps=until, seed=self.seed, state=state)
        except Exception as error:
            error.add_note(f"raised by train for {one}, steps={until}")
            raise
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise InvalidArgument(
                f"train returned {shown(returned)} for {one}; it must be (losses, state)"
            )
        losses = as_numbers(f"losses of train for {one}", returned[0]).astype(np.float64).ravel()
        self.size = self.size or losses.size
        if losses.size != self.size:
            raise InvalidArgument(
                f"train returned {losses.size} losses for {one} and {self.size} before; they must "
                "be of the same held-out examples"
            )
        if losses.min() < 0:
            raise InvalidArgument(
                f"train returned a loss of {losses.min():.4g} for {one}; it must be at least 0"
            )
        return losses, returned[1]

    def loss(self, one: Candidate) -> float:
        """The mean held-out loss, infinite where it is not finite."""
        mean = float(self._losses[one].mean())
        return mean if math.isfinite(mean) else math.inf

    def is_sgd(self, one: Candidate) -> bool:
        whole = one.micro_batch_size == self.batch_size
        return isinstance(one.rule, NoClipping) or (whole and isinstance(one.rule, SmallestNorm))

    def size_of(self, one: Candidate) -> int:
        """Its b; B for SGD, whatever it is written as."""
        return self.batch_size if self.is_sgd(one) else one.micro_batch_size

    def ratio(self, above: Candidate, below: Candidate) -> Interval:
        """Mean loss over mean loss, with the interval over the examples, which are the same."""
        top, bottom = self.loss(above), self.loss(below)
        if above == below:
            return statistics.exactly(1.0)
        if not (0 < top < math.inf and 0 < bottom < math.inf):
            return statistics.exactly(_quotient(top, bottom))
        if self.size == 1:
            return statistics.interval_of(top / bottom, math.inf, 1.0, _RATE, (0.0, math.inf))
        ratios = self._losses[above] / top - self._losses[below] / bottom
        logs = statistics.mean(ratios, false_positive_rate=_RATE)
        ratio = top / bottom
        ends = ratio * math.exp(logs.low), ratio * math.exp(logs.high)
        return statistics.interval_of(ratio, ratio * logs.standard_error, logs.df, _RATE, ends)


def _quotient(top: float, bottom: float) -> float:
    """top/bottom of what may be 0 or infinite: equal ones are equal."""
    if top == bottom:
        return 1.0
    return math.inf if bottom == 0 or top == math.inf else top / bottom


def _listed(candidates: Any, field: _Field) -> list[Candidate]:
    """The candidates as a list that SGD is in; where there are none yet, around a step size."""
    source = divisors(field.batch_size) if candidates is None else candidates
    if not isinstance(source, Iterable) or isinstance(source, str):
        raise InvalidArgument(f"candidates={shown(source)} must be Candidates or integers")
    given: list[Any] = list(source)
    if not given:
        raise InvalidArgument("candidates=[] must have at least one")
    sizes = [one.micro_batch_size if isinstance(one, Candidate) else one for one in given]
    for size in sizes:
        check_divides(size, field.batch_size)
    if not all(isinstance(one, Candidate) for one in given):
        if any(isinstance(one, Candidate) for one in given):
            raise InvalidArgument("candidates must be all Candidates or all integers")
        sizes = sorted({*sizes, field.batch_size})
        given = grid(field.batch_size, sizes=sizes, step_size=_middle(field))
    if len(set(given)) < len(given):
        twice = next(one for one in given if given.count(one) > 1)
        raise InvalidArgument(f"candidates must differ; ({twice}) is there more than once")
    if not any(map(field.is_sgd, given)):
        etas = sorted({one.step_size for one in given})
        given += [Candidate(micro_batch_size=field.batch_size, step_size=eta) for eta in etas]
    return given


def _middle(field: _Field) -> float:
    """A step size to lay nine around: half the best of SGD in short runs, 4 times apart.

    Half, for what is ahead early is too large later.
    """
    short, tried = max(1, field.steps // 50), {}

    def loss(power: int) -> float:
        if power not in tried:
            one = Candidate(micro_batch_size=field.batch_size, step_size=4.0**power)
            losses, _ = field.call(one, short, None)
            field.taken += short
            tried[power] = float(losses.mean())
        return tried[power] if math.isfinite(tried[power]) else math.inf

    # Ever smaller steps change ever less: those must be worth it. What diverged is worse than all.
    power = 0
    for sign, worth in ((1, 1.0), (-1, 0.99)):
        while abs(power) < _FARTHEST and (
            loss(power + sign) < worth * loss(power) or (sign < 0 and loss(power) == math.inf)
        ):
            power += sign
    return 4.0**power / 2


def _survivors(field: _Field, ranked: list[Candidate], count: int, until: int) -> list[Candidate]:
    """Who goes on: the best, each with the next smaller step size of its kind, and SGD's best."""
    leader, late = ranked[0], 2 * until >= field.steps
    if late and field.size != 1:
        ranked = [one for one in ranked if one == leader or not field.ratio(one, leader).low > 1]
    listed: dict[Candidate, None] = {}
    for one in ranked:
        kin = [
            other
            for other in ranked
            if other.micro_batch_size == one.micro_batch_size
            and other.rule == one.rule
            and other.step_size < one.step_size
        ]
        listed[one] = None
        if kin:
            listed[max(kin, key=lambda other: other.step_size)] = None
    kept = list(listed)[:count]
    if not any(map(field.is_sgd, kept)):
        everybody = sorted(field._state, key=field.loss)
        kept = [*kept[: count - 1], next(one for one in everybody if field.is_sgd(one))]
    return kept


def _found(field: _Field, rungs: list[Rung], budget: float) -> Race:
    finalists = [one for one, _ in rungs[-1].losses]
    sgd = next(one for one in finalists if field.is_sgd(one))
    # Of equal losses SGD's is the best: it is the simpler.
    best = min(finalists, key=lambda one: (field.loss(one), not field.is_sgd(one)))
    if field.loss(best) == math.inf:
        best = sgd
    against = {one: field.ratio(one, best) for one in finalists}
    tied = {
        field.size_of(one)
        for one, ratio in against.items()
        if (ratio.estimate <= _TIED if field.size == 1 else ratio.low <= 1)
    }
    answer = Answer(
        question=(
            f"which b and step size have the lowest held-out loss after {field.steps} steps of "
            "training?"
        ),
        batch_size=field.batch_size,
        micro_batch_size=field.size_of(best),
        tied=tuple(sorted(tied)),
        gain=against[sgd],
        step_size=best.step_size,
        sgd_step_size=sgd.step_size,
        reason=_reason(field, best),
        rests_on=_rests_on(field, rungs),
    )
    others = [field.ratio(best, one).high for one in finalists]
    return Race(
        answer=answer,
        candidate=best,
        regret_bound=max(1.0, *others),
        rungs=tuple(rungs),
        cost=field.cost,
        budget=budget,
    )


def _reason(field: _Field, best: Candidate) -> str:
    if field.loss(best) == math.inf:
        return "every training that was raced to the end diverged: race smaller step sizes"
    return f"training says so, with {best.rule}: held-out loss {field.loss(best):.4g}"


def _rests_on(field: _Field, rungs: list[Rung]) -> str:
    spread = (
        "one loss for each run, so no interval"
        if field.size == 1
        else f"intervals over {field.size} held-out examples"
    )
    raced, ended = len(rungs[0].losses), len(rungs[-1].losses)
    return f"{raced} trainings of one seed, {ended} of them to the end; {spread}"
