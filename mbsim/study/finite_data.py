r"""Examples that come back: what draggers are worth clipping for, early and late in training.

Simulated, draggers of a :class:`~mbsim.problems.finite.FiniteProblem`; and examples with wrong
labels, a quarter, in softmax regression on tables (B = 64, b = 2). Training has two halves;
"switched on late" is SGD and then clipping, "switched off" the other way round. The step size of
every schedule is the one with the lowest validation loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mbsim import plots
from mbsim._shared.arrays import Array, Integers
from mbsim._shared.seeds import stream
from mbsim.clipping import NoClipping, SmallestNorm
from mbsim.gradients.training import look_at
from mbsim.problems.finite import FiniteDraws, FiniteProblem, arranged
from mbsim.problems.lengths import norms_of
from mbsim.study import tables
from mbsim.study.claim import BATCH, Claim, Details, Found, Study, of_mean
from mbsim.study.descents import Data, descend, losses, parts
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HELPFULNESS_CHANGES", "SCHEDULES", "TABLES", "persistent_draggers"]

# All of at most 600 weights, but for those of trials: segment, spambase, satimage, vehicle and
# wdbc, which is breast-cancer.
TABLES = (
    "phoneme", "texture", "penbased", "australian", "ionosphere", "heart", "banana", "bands",
    "breast", "bupa", "chess", "contraceptive", "crx", "german", "hayes-roth", "housevotes", "iris",
    "led7digit", "magic", "mammographic", "marketing", "monk-2", "mushroom", "pima", "ring",
    "saheart", "sonar", "tae", "tic-tac-toe", "titanic", "twonorm", "vowel", "wine", "wisconsin",
)  # fmt: skip
_WRONG, _SIZE = "25 % wrong labels", 2
# Whether each half of training is clipped.
SCHEDULES = {
    "SGD": (False, False),
    "clipping": (True, True),
    "switched on late": (False, True),
    "switched off": (True, False),
}
_HALF, _STEP_SIZES, _EARLY = 150, (0.03, 0.2, 1.0), 20  # steps, step sizes, "early"

# ------------------------------------------------------------------------------ simulated

_COUNT, _SHARE, _LONG, _DIM = 256, 0.1, 5.0, 16  # N, p, a dragger's length, d


def persistent_draggers(count: int = _COUNT) -> FiniteProblem:
    """Bowls of unit curvature around 0 with spread 1, and a tenth of them 5 away in directions
    drawn once: what draggers ask for is the same again and again.

    >>> problem = persistent_draggers()
    >>> problem.examples, int(problem.is_dragger.sum())
    (256, 25)
    """
    draw, draggers = np.random.default_rng(0), int(_SHARE * count)
    centres = draw.standard_normal((count, _DIM)) / math.sqrt(_DIM)
    centres[draggers:] -= centres[draggers:].mean(axis=0)
    away = draw.standard_normal((draggers, _DIM))
    centres[:draggers] = _LONG * away / norms_of(away)[:, None]
    start = np.zeros(_DIM)
    start[0] = 8.0
    return FiniteProblem(centres=centres, start=start, is_dragger=np.arange(count) < draggers)


def _simulated(study: Study) -> dict[str, list[list[float]]]:
    """Mean squared gradient norms every ten steps, by schedule, and their squared end by replicate.

    The replicates of a schedule see the same examples as those of the others.
    """
    problem, replicates, eta = persistent_draggers(), 16, 0.05
    found: dict[str, list[list[float]]] = {}
    for name, halves in SCHEDULES.items():
        rng = stream(study.seed("draggers that come back"))
        w = np.tile(problem.start, (replicates, 1))
        path = []
        draws = FiniteDraws(problem=problem, batch_size=BATCH, m=BATCH, width=replicates, rng=rng)
        for step in range(2 * _HALF + 1):
            square = np.square(problem.loss.gradient(w)).sum(axis=1)
            if step % 10 == 0:
                path.append(float(square.mean()))
            examples, _ = draws.at(w, w)
            clipped = halves[min(step // _HALF, 1)]
            factors = (SmallestNorm() if clipped else NoClipping()).factors(norms_of(examples))
            w = w - eta * np.einsum("rj,rji->ri", factors, examples) / BATCH
        found[name] = [path, square.tolist()]
    return found


# ------------------------------------------------------------------------------ on tables


def _scheduled(study: Study, table: str, right: bool) -> dict[str, Any]:
    """Held-out losses by schedule, and c of the examples with wrong labels along SGD."""
    seed = study.seed("schedules on tables", table)
    x, y = study.once(_loaded, table)
    half = [min(1000, len(y) // 2)]
    domains = np.zeros(len(y), np.int64)
    data = parts(x, y, domains, half, contamination=_WRONG, rng=seed)
    touched = data.touched
    if right:
        data = parts(x, y, domains, half, rng=seed)
    draw = arranged(data.train.domains, BATCH, 1)
    rows = draw(2 * _HALF, stream(seed, "rows")).reshape(2, _HALF, -1)
    weights = np.zeros((data.classes, data.train.inputs.shape[1]))
    best: dict[str, tuple[float, float]] = {}
    for step_size in _STEP_SIZES:
        middle = {clips: _half(data, weights, rows[0], clips, step_size) for clips in _BOTH}
        for name, (first, second) in SCHEDULES.items():
            end = _half(data, middle[first], rows[1], second, step_size)
            validation, test = (float(losses(end, p)[0][0]) for p in (data.validation, data.test))
            if name not in best or validation < best[name][0]:
                best[name] = validation, test
    ratios, w = [], weights
    for steps in (rows[0, :_EARLY], rows[0, _EARLY:], rows[1]):
        w = _half(data, w, steps, False, 0.1)
        ratios.append(_norm_ratio(data, w, touched))
    return {"losses": {name: test for name, (_, test) in best.items()}, "ratios": ratios}


_BOTH = (False, True)


def _loaded(study: Study, table: str) -> tuple[Array, Integers]:  # noqa: ARG001
    return tables.load(table)


def _half(data: Data, weights: Array, rows: Integers, clips: bool, step_size: float) -> Array:
    """Weights after some mini-batches, clipped or not."""
    if not clips:
        return descend(weights, data.train, rows[:, None, :], NoClipping(), step_size)
    split = rows.reshape(len(rows), -1, _SIZE)
    return descend(weights, data.train, split, SmallestNorm(), step_size)


def _norm_ratio(data: Data, weights: Array, touched: Any) -> float:
    """c: root mean squares of gradients, of those touched over the others."""
    inputs, labels, _ = data.train
    squares = np.square(look_at(weights, inputs, labels).norms)
    return math.sqrt(squares[touched].mean() / squares[~touched].mean())


def _all(study: Study, right: bool) -> dict[str, dict[str, Any]]:
    """By table; with the labels right on some."""
    names = TABLES[: 5 if study.quick else 8 if right else None]
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        study.tell(number / len(names))
        found[name] = _scheduled(study, name, right)
    return found


# ------------------------------------------------------------------------- helpfulness-changes


def _changes(study: Study, right: bool = False, exchanged: bool = False) -> Found:
    """c rises, and clipping the second half of training is worth all of it, the first nothing.

    Means over tables of logarithms: of c at the end over c after 20 steps; of the held-out loss
    with clipping switched on late over that with clipping switched off, and over that of clipping
    throughout (at most 1.1). Simulated: SGD ends at 0.9 to 1.2 times the level p‖mean dragger‖,
    and late clipping at most at half of it.
    """
    found = study.once(_all, right)
    on, off = "switched on late", "switched off"
    if exchanged:
        on, off = off, on

    def mean(what: str, over: Any, relation: str, limit: float) -> Comparison:
        return of_mean(what, [over(record) for record in found.values()], relation, limit)

    def ratio(one: str, other: str) -> Any:
        return lambda record: math.log(record["losses"][one] / record["losses"][other])

    def risen(record: dict[str, Any]) -> float:
        return math.log(record["ratios"][-1] / record["ratios"][0])

    simulated, problem = study.once(_simulated), persistent_draggers()
    away = problem.centres[problem.is_dragger].sum(axis=0) / problem.examples
    level = float(np.linalg.norm(away))
    ends = {name: np.sqrt(end) / level for name, (_, end) in simulated.items()}
    comparisons = [
        mean("log of c at the end over c after 20 steps", risen, "above", 0.0),
        mean(f"log of the loss, {on} over {off}", ratio(on, off), "below", 0.0),
        mean(
            f"log of the loss, {on} over throughout", ratio(on, "clipping"), "below", math.log(1.1)
        ),
        of_mean(
            "simulated: where SGD ends, over p times the mean dragger",
            ends["SGD"],
            "within",
            (0.9, 1.2),
        ),
        of_mean(f"simulated: where it ends {on}, over the same", ends[on], "below", 0.5),
    ]
    paths = {name: path for name, (path, _) in simulated.items()}
    return comparisons, {"tables": found, "paths": paths, "level": level}


def _draw(figure: Figure, details: Details) -> None:
    """Simulated paths; on tables what each schedule is worth; and c along training."""
    found = details[""]
    figure.set_size_inches(10.0, 3.4)
    left, middle, right = figure.subplots(1, 3)
    for name, path in found["paths"].items():
        steps = 10 * np.arange(len(path))
        plots.curve(left, steps, np.sqrt(path), label=name, band=True, interval=None)
    left.axhline(found["level"], color="0.5", linewidth=0.8)
    left.axvline(_HALF, color="0.5", linewidth=0.8, linestyle=":")
    left.set(yscale="log", xlabel="step t", ylabel="‖∇L‖", title="Simulated, draggers come back")
    left.legend(fontsize=7)
    records = list(found["tables"].values())
    plots.dots(
        middle,
        {
            name: [record["losses"][name] / record["losses"]["SGD"] for record in records]
            for name in list(SCHEDULES)[:0:-1]
        },
    )
    middle.axvline(1, color="0.3", linewidth=0.8)
    middle.set(
        xlabel="held-out loss over SGD's", title=f"{len(records)} tables, a quarter of labels wrong"
    )
    ratios = np.array([record["ratios"] for record in records])
    at = [_EARLY, _HALF, 2 * _HALF]
    right.plot(at, ratios.T, color=plots.COLOURS[0], alpha=0.25, linewidth=0.8)
    plots.curve(right, at, np.exp(np.log(ratios).mean(axis=0)), number=1, label="geometric mean")
    right.set(
        xlabel="step t of SGD", ylabel="norm ratio c", title="Wrong labels grow longer as SGD fits"
    )
    right.legend(fontsize=7)


HELPFULNESS_CHANGES = Claim(
    name="helpfulness-changes",
    statement=(
        "Examples with wrong labels grow longer, relative to the others, as a model fits; clipping "
        "the second half of training does what clipping throughout does, the first half nothing."
    ),
    source="ours: theory page, section 13.1; the tables are scikit-learn's and KEEL's",
    run=_changes,
    controls={"labels put right": {"right": True}, "halves exchanged": {"exchanged": True}},
    figure="helpfulness",
    draw=_draw,
    seconds=3,
)
