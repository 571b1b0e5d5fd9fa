"""Do races and advice find the best micro-batch size on real tables, and better than a guess?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.random import SeedSequence

from mbsim import plots, statistics
from mbsim._shared.arrays import Array, Integers
from mbsim.clipping import SmallestNorm
from mbsim.errors import divisors
from mbsim.gradients import training
from mbsim.gradients.advice import Prediction, Replayed
from mbsim.gradients.gram import Gram
from mbsim.gradients.measured import MeasuredProblem
from mbsim.gradients.race import Candidate, race, schedule
from mbsim.gradients.splits import Split
from mbsim.methods import SGD, MicroBatchClipping
from mbsim.study import tables
from mbsim.study.claim import BATCH, RATE, Claim, Details, Found, Study
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ADVISOR_AGREES"]


_STEPS, _ORDERS = 300, 3
# Training runs that a race may spend: of every b, and of what advice leaves of them.
_BUDGET, _NARROW_BUDGET, _SHORTLIST = 10.0, 4.0, 2
# Where advice looks at gradients: a quarter along and at the end of a run of SGD.
_SNAPSHOTS = (75, 300)
_SIZES = divisors(BATCH)
_STEP_SIZES = np.geomspace(1 / 64, 16, 9)
# None of them was looked at when the race was made.
_TABLES = (
    "digits", "wine", "segment", "ionosphere", "breast-cancer", "satimage", "spambase", "vowel",
    "penbased", "sonar", "phoneme", "ring", "twonorm", "pima", "heart", "australian",
)  # fmt: skip
# How many b are in a race, and its budget; of a shortlist SGD may be one or not.
_RACES = ((len(_SIZES), _BUDGET), (_SHORTLIST, _NARROW_BUDGET), (_SHORTLIST + 1, _NARROW_BUDGET))
_QUICK = ("wine", "ionosphere", "heart"), ("clean", "25 % wrong labels", "canaries")
_SHARES = {"clean": 0.0, "25 % wrong labels": 0.25}  # of the others it is a tenth
_NAIVE = ("SGD", "b = 1", "b = 1/p")
# What regrets are claimed to be below: in the median, and in nine settings of ten.
_LIMITS = {"race": (1.01, 1.06), "narrowed race": (1.01, 1.06), "advice": (1.05, 1.3)}


class _Trained(NamedTuple):
    """What became of every b and step size on one table with one contamination.

    Attributes:
        table, contamination: which.
        stops: the steps after which the losses of the race were recorded.
        seen: held-out losses of the race's order, ``[b, step size, stop]``; NaN: diverged.
        predicted: where each b ends by the advice for a target, ``[b]``.
        truth: those of the other orders, their mean, at the end, ``[b, step size]``; and the same
            on test examples, which nobody has seen.
    """

    table: str
    contamination: str
    stops: list[int]
    seen: Array
    predicted: dict[str, Array]
    truth: Array
    test: Array


def _agrees(study: Study, shuffled: bool = False, target: str = "held-out") -> Found:
    """Regrets of the race, of the race that advice narrows, and of advice.

    Softmax regression, B = 64, 300 steps, nine step sizes, every divisor of B. The race, which has
    ten training runs, sees one order of the examples. Everything is trained to the end in two other
    orders, and the regret of a choice is its held-out loss there over the lowest of all b and step
    sizes. The race answers for its step size as well; its rivals ("always SGD", "b = 1", "b = 1/p",
    p the share that was contaminated) are given the best one. The race is claimed to be ahead of
    each of them in the mean of the logarithm, tables being the unit, as settings share their rows.

    Advice looks at the gradients at two points of a run of SGD, at its best step size, and names a
    b alone; it is given the best step size for it. The race that it narrows has the two b that it
    puts first, and SGD, at nine step sizes, and four training runs.

    Shuffled, the runs and the advice carry the labels of other b. The details have the regrets on
    test examples too, that of the b of races alone, the step size set right, and that of training
    everything once, in the order that the race sees: 63 training runs.
    """
    trained = study.once(_exhaustive)
    draw = np.random.default_rng(study.seed("labels of b"))
    choices: dict[str, list[tuple[int, int | None]]] = {}
    costs: dict[str, list[float]] = {}
    for one in trained:
        labels = draw.permutation(len(_SIZES)) if shuffled else np.arange(len(_SIZES))
        chosen, cost = _choices(one, labels, target)
        for name, choice in chosen.items():
            choices.setdefault(name, []).append(choice)
        for name, spent in cost.items():
            costs.setdefault(name, []).append(spent)
    regrets = {
        name: [_regret(one.truth, *at) for one, at in zip(trained, made, strict=True)]
        for name, made in choices.items()
    }
    for name in costs:
        pairs = list(zip(trained, choices[name], strict=True))
        regrets[f"{name}, test loss"] = [_regret(one.test, *at) for one, at in pairs]
        regrets[f"{name}, b alone"] = [_regret(one.truth, b, None) for one, (b, _) in pairs]
    return _comparisons(trained, regrets), {
        "settings": [[one.table, one.contamination] for one in trained],
        "micro_batch_size": {
            name: [_SIZES[b] for b, _ in choices[name]] for name in ("race", "advice")
        },
        "cost": {name: float(np.mean(spent)) for name, spent in costs.items()},
        "regret": {name: _summary(values) for name, values in regrets.items()},
        "every_regret": regrets,
    }


def _regret(losses: Array, b: int, eta: int | None) -> float:
    """The loss of a choice over the lowest; at the best step size of b if it names none."""
    return float((losses[b].min() if eta is None else losses[b, eta]) / losses.min())


def _choices(
    one: _Trained, labels: Integers, target: str
) -> tuple[dict[str, tuple[int, int | None]], dict[str, float]]:
    """What everybody chooses (the numbers of b and of the step size), and what races spent."""
    every = range(len(_SIZES))
    raced, cost = _raced(one, labels, every, _BUDGET)
    first = np.argsort(one.predicted[target][labels], kind="stable").tolist()
    few = sorted({*first[:_SHORTLIST], every[-1]})
    narrowed, less = _raced(one, labels, few, _NARROW_BUDGET)
    p = max(_SHARES.get(one.contamination, 0.1), 1 / BATCH)
    guess = min(every, key=lambda b: abs(math.log(p * _SIZES[b])))
    last = np.nan_to_num(one.seen[labels, :, -1], nan=np.inf)
    b, eta = np.unravel_index(last.argmin(), last.shape)
    found: dict[str, tuple[int, int | None]] = {
        "race": raced,
        "narrowed race": narrowed,
        "advice": (first[0], None),
        **dict(zip(_NAIVE, ((every[-1], None), (0, None), (guess, None)), strict=True)),
        "everything, one order": (int(b), int(eta)),
    }
    return found, {"race": cost, "narrowed race": less}


def _summary(values: list[float]) -> dict[str, float]:
    middle, most = np.quantile(values, [0.5, 0.9])
    return {"median": float(middle), "90 %": float(most), "worst": float(max(values))}


def _comparisons(trained: list[_Trained], regrets: dict[str, list[float]]) -> list[Comparison]:
    found, mine = [], regrets["race"]
    for name, limits in _LIMITS.items():
        for words, q, limit in zip(("median", "90 % point"), (0.5, 0.9), limits, strict=True):
            what = f"{words} of the regret of the {name} over {len(mine)} settings"
            measured = statistics.quantile(regrets[name], q, false_positive_rate=RATE)
            found.append(Comparison(what=what, measured=measured, relation="below", limit=limit))
    names = sorted({one.table for one in trained})
    for rival in _NAIVE:
        more = np.log(np.array(regrets[rival]) / mine)
        by_table = [more[[one.table == name for one in trained]].mean() for name in names]
        what = f"mean log regret of '{rival}' minus that of the race, by table"
        measured = statistics.mean(by_table, false_positive_rate=RATE)
        found.append(Comparison(what=what, measured=measured, relation="above", limit=0.0))
    return found


def _exhaustive(study: Study) -> list[_Trained]:
    """Every b at every step size, on every table and contamination, in three orders."""
    stops = sorted({stop for sizes, budget in _RACES for stop in _stops(sizes, budget)})
    names, kinds = _QUICK if study.quick else (_TABLES, tuple(tables.CONTAMINATIONS))
    found: list[_Trained] = []
    for table in names:
        for contamination in kinds:
            study.tell(len(found) / (len(names) * len(kinds)))
            seed = study.seed("tables")
            data = tables.split(table, contamination, rng=seed)
            runs = [
                training.train(
                    data,
                    MicroBatchClipping(b),
                    step_size=_STEP_SIZES,
                    steps=_STEPS,
                    batch_size=BATCH,
                    record_every=stops,
                    orders=_ORDERS,
                    rng=seed,
                )
                for b in _SIZES
            ]
            held_out = np.array([run.validation_loss for run in runs])
            ends = [held_out[:, 1:, :, -1], np.array([run.test_loss[1:, :, -1] for run in runs])]
            truth, test = (np.nan_to_num(end, nan=np.inf).mean(axis=1) for end in ends)
            seen = held_out[:, 0]
            eta = _STEP_SIZES[np.nanargmin(seen[-1, :, -1])]
            predicted = _predicted(data, eta, seed)
            found.append(_Trained(table, contamination, stops, seen, predicted, truth, test))
    return found


def _stops(sizes: int, budget: float) -> list[int]:
    """After how many steps a race of so many b has its rungs."""
    return [stop for _, stop in schedule(sizes * len(_STEP_SIZES), budget, _STEPS)]


def _predicted(data: Split, step_size: float, seed: SeedSequence) -> dict[str, Array]:
    """Where each b ends by the advice for both targets, from gradients along a run of SGD."""
    parts: dict[str, list[Replayed]] = {"held-out": [], "mean": []}
    for steps in _SNAPSHOTS:
        sgd = training.train(
            data, SGD(), step_size=step_size, steps=steps, batch_size=BATCH, rng=seed
        )
        rows, others = (
            training.per_example_gradients(sgd.weights[0], inputs, labels)
            for inputs, labels in (
                (data.train_inputs, data.train_labels),
                (data.validation_inputs, data.validation_labels),
            )
        )
        for name, target in (("held-out", others.mean(axis=0)), ("mean", rows.mean(axis=0))):
            with warnings.catch_warnings():  # that some tables have rows twice
                warnings.simplefilter("ignore")
                measured = MeasuredProblem(Gram(rows, target=target))
            one = Replayed.of(measured, BATCH, _STEPS, seed, rules=(SmallestNorm(),))
            parts[name].append(one)
    return {name: Prediction(tuple(found)).levels[0] for name, found in parts.items()}


def _raced(
    one: _Trained, labels: Integers, sizes: Sequence[int], budget: float
) -> tuple[tuple[int, int], float]:
    """What a race of some b chooses (the numbers of b and of the step size), and what it spent.

    Its trainings are looked up: they were done, with one seed, for all b and step sizes at once.
    """
    places = {
        Candidate(micro_batch_size=_SIZES[b], step_size=float(step_size)): (b, eta)
        for b in sizes
        for eta, step_size in enumerate(_STEP_SIZES)
    }

    def train(candidate: Candidate, *, steps: int, seed: int, state: Any) -> tuple[float, Any]:  # noqa: ARG001
        b, eta = places[candidate]
        return float(one.seen[labels[b], eta, one.stops.index(steps)]), state

    found = race(train, list(places), batch_size=BATCH, steps=_STEPS, budget=budget)
    return places[found.candidate], found.cost


def _draw(figure: Figure, details: Details) -> None:
    """Held-out loss at what was chosen over the lowest: a dot for every setting."""
    axes = figure.subplots()
    every = details[""]["every_regret"]
    rows = {name: every[name] for name in reversed((*_LIMITS, *_NAIVE))}
    plots.dots(axes, rows, numbers=[2 if name in _NAIVE else 0 for name in rows])
    axes.set_xscale("log")
    plots.plain_numbers(axes.xaxis)
    what = "held-out loss at the chosen b over the lowest (bar: median)"
    axes.set(xlabel=what, title=f"What a choice costs, on {len(every['race'])} real settings")


ADVISOR_AGREES = Claim(
    name="advisor-agrees",
    statement=(
        "On real tables a race of ten training runs finds micro-batch size and step size to 1 % "
        "of held-out loss in the median and to 6 % in nine settings of ten, and so does one of "
        "four that advice narrows; it is ahead of SGD, of b = 1 and of b = 1/p. Advice alone finds "
        "the micro-batch size to 5 % and 30 %."
    ),
    source="this project's own; the tables are scikit-learn's and KEEL's",
    run=_agrees,
    controls={
        "labels of b shuffled": {"shuffled": True},
        "advice for the training mean": {"target": "mean"},
    },
    figure="advisers",
    draw=_draw,
    seconds=80,
)
