"""Where a run with a constant step size stops: how that depends on the step size, and on b.

A *floor* is the level at which it stops: the root mean square of ‖∇L‖ over the last third of the
run. It is not the bias, of which it is only the limit for small step sizes (theory page, 5.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import SeedSequence

from mbsim import plots, statistics
from mbsim._shared.arrays import Array
from mbsim.methods import MicroBatchClipping
from mbsim.problems.setting import Setting
from mbsim.simulation.run import run_setting
from mbsim.study.claim import BATCH, RATE, Claim, Details, Found, Points, Study, draw_curves, points
from mbsim.study.half_square import LAWS, NONE, STRONG, half_square
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BIAS_NEEDS_SKEW",
    "BIAS_STAYS",
    "SWEET_SPOT",
    "draw_trajectories",
    "drawn_trajectories",
    "floor_sq",
    "inside_against_ends",
    "trajectories",
]


def floor_sq(setting: Setting, *, replicates: int, rng: SeedSequence) -> Array:
    """The squared floor of every replicate: mean ‖∇L‖² over the last third of a run."""
    every = max(1, setting.steps // 600)
    run = run_setting(setting, replicates=replicates, rng=rng, record_every=every)
    squared: Array = run.grad_norm_sq[:, run.steps >= 2 * setting.steps / 3].mean(axis=1)
    return squared


def floor_points(floors_sq: Mapping[Any, Array]) -> Points:
    """Squared floors by x as a curve of floors: roots of mean squares."""
    rows = points(floors_sq, floors_sq.values())
    return [{k: v if k == "x" else math.sqrt(max(0.0, v)) for k, v in row.items()} for row in rows]


def inside_against_ends(floors_sq: Mapping[int, Array]) -> tuple[int, list[Comparison]]:
    """The best interior b, and its floor over those at both ends, claimed to be below 1.

    It is chosen on one half of the replicates and compared on the other.
    """
    first, *interior, last = floors_sq
    inside = min(interior, key=lambda b: float(floors_sq[b][::2].mean()))
    comparisons = []
    for end in (first, last):
        what = f"floor at b = {inside} over floor at b = {end}"
        tested = floors_sq[inside][1::2], floors_sq[end][1::2]
        over = statistics.ratio(*tested, false_positive_rate=RATE, power=0.5)
        comparisons.append(Comparison(what=what, measured=over, relation="below", limit=1.0))
    return inside, comparisons


# ------------------------------------------------------------- bias-stays and bias-needs-skew


def _floor_ratios(
    study: Study, claim: str, noise: str, expected: dict[int, tuple[str, float]]
) -> Found:
    """floor(η/4)/floor(η), with four times the steps, held against a limit for each b."""
    step_size, time = 0.16 if study.quick else 0.04, 40
    problem, seeds = half_square(LAWS[noise], STRONG), study.seeds(claim)
    comparisons, floors = [], {}
    for b, (relation, limit) in expected.items():
        name = "SGD" if b == BATCH else f"clipping, b = {b}"
        floors_sq = {}
        for eta in (step_size / 4, step_size):
            setting = Setting(problem, MicroBatchClipping(b), BATCH, eta, round(time / eta))
            floors_sq[eta] = floor_sq(setting, replicates=study.replicates, rng=next(seeds))
        floors[name] = floor_points(floors_sq)
        what = f"floor(η/4)/floor(η) of {name}, η = {step_size:g}"
        ratio = statistics.ratio(*floors_sq.values(), false_positive_rate=RATE, power=0.5)
        comparisons.append(Comparison(what=what, measured=ratio, relation=relation, limit=limit))
    return comparisons, {"floors": floors}


def _bias_stays(study: Study) -> Found:
    """More than 0.8 of clipping's floor is left, and less than 0.6 of SGD's, which falls as √η."""
    limits = {4: ("above", 0.8), BATCH: ("below", 0.6)}
    return _floor_ratios(study, "bias-stays", "skewed", limits)


def _bias_needs_skew(study: Study, noise: str = "symmetric") -> Found:
    """Clipping's own floor falls so, if the noise is symmetric."""
    return _floor_ratios(study, "bias-needs-skew", noise, {4: ("below", 0.6)})


BIAS_STAYS = Claim(  # its control is the next claim
    name="bias-stays",
    statement=(
        "With noise skewed against the gradient clipping has a bias that a smaller step size does "
        "not remove, and SGD has none."
    ),
    source="[Wang2024] Theorem 4.2; theory page, sections 5 and 6",
    run=_bias_stays,
    seconds=1,
)

BIAS_NEEDS_SKEW = Claim(
    name="bias-needs-skew",
    statement=(
        "With Gaussian noise clipping has no bias: its floor falls with the step size as SGD's."
    ),
    source="ours, not the paper's: theory page, section 6",
    run=_bias_needs_skew,
    controls={"skewed noise": {"noise": "skewed"}},
    seconds=1,
)


# ------------------------------------------------------------------------------- sweet-spot


def _floors_sq(study: Study, noise: str, draggers: bool) -> tuple[float, dict[int, Array]]:
    """The step size, and the squared floors of every replicate for each b."""
    step_size, steps = (0.02, 1000) if study.quick else (0.01, 3000)
    problem = half_square(LAWS[noise], STRONG if draggers else NONE)
    seeds = study.seeds(f"sweet-spot {noise} {draggers}")
    found: dict[int, Array] = {}
    for b in study.sizes:
        study.tell(len(found) / len(study.sizes))
        setting = Setting(problem, MicroBatchClipping(b), BATCH, step_size, steps)
        found[b] = floor_sq(setting, replicates=study.replicates, rng=next(seeds))
    return step_size, found


def _lower_inside(
    study: Study, noise: str = "skewed", draggers: bool = True, shuffled: bool = False
) -> Found:
    """The floor at the best interior b lies below those at b = 1 and at b = B.

    With symmetric noise the bias that punishes a small b is gone; without draggers there is nothing
    for clipping to remove; shuffled, in each replicate, among the micro-batch sizes, all floors
    have one mean.
    """
    step_size, floors_sq = study.once(_floors_sq, noise, draggers)
    if shuffled:
        table = np.stack(list(floors_sq.values()), axis=1)  # [replicates, sizes]
        table = np.random.default_rng([study.rng, 1]).permuted(table, axis=1)
        floors_sq = dict(zip(floors_sq, table.T, strict=True))
    best, comparisons = inside_against_ends(floors_sq)
    return comparisons, {
        "micro_batch_size": best,
        "step_size": step_size,
        "floors": floor_points(floors_sq),
    }


def _draw_floors(figure: Figure, details: Details) -> None:
    axes = figure.subplots()
    labels = {
        "skewed noise, draggers": "",
        "symmetric noise, draggers": "symmetric noise",
        "skewed noise, no draggers": "no draggers",
    }
    draw_curves(axes, {label: details[name]["floors"] for label, name in labels.items()})
    axes.set_yscale("log")
    plots.sizes_axis(axes, [int(p["x"]) for p in details[""]["floors"]])
    title = "Where a run stops, against the micro-batch size"
    axes.set(ylabel="floor: root mean square of ‖∇L‖", title=title)
    axes.legend()


SWEET_SPOT = Claim(
    name="sweet-spot",
    statement="An interior micro-batch size has a lower floor than b = 1 and than b = B.",
    source="[Wang2024] Theorem 4.2; theory page, 5.5 and section 6",
    run=_lower_inside,
    controls={
        "symmetric noise": {"noise": "symmetric"},
        "no draggers": {"draggers": False},
        "labels of b shuffled": {"shuffled": True},
    },
    figure="floor",
    draw=_draw_floors,
    seconds=6,
)

# ------------------------------------------------------------------ trajectories: a figure only


def trajectories(study: Study) -> dict[str, Any]:
    """Mean ‖g‖² against the step for SGD and several b, with skewed and symmetric noise: no claim.

    Returns:
        Plain data: for each noise and each method a curve of points with 99 % intervals.
    """
    step_size, steps = 0.02, 600 if study.quick else 2000
    seeds = study.seeds("trajectories")
    shown_steps = np.unique(np.geomspace(1, steps, 60).astype(int))
    curves: dict[str, Any] = {"step_size": step_size, "batch_size": BATCH}
    for name, noise in LAWS.items():
        problem = half_square(noise, STRONG, grad_norm=1.4)
        curves[name] = {}
        for b in (1, 4, 16, BATCH):
            setting = Setting(problem, MicroBatchClipping(b), BATCH, step_size, steps)
            run = run_setting(setting, replicates=study.replicates, rng=next(seeds))
            label = "SGD" if b == BATCH else f"b = {b}"
            recorded = run.grad_norm_sq[:, shown_steps]
            curves[name][label] = points(map(int, shown_steps), recorded.T)
    return curves


def draw_trajectories(figure: Figure, curves: dict[str, Any]) -> None:
    """Draw what :func:`trajectories` returned."""
    figure.set_size_inches(8.0, 3.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, LAWS, strict=True):
        draw_curves(axes, curves[name], band=True)
        axes.set(xscale="log", yscale="log", xlabel="step T")
        axes.set_title(f"{name} noise, η = {curves['step_size']:g}")
    panels[0].set_ylabel("mean ‖∇L(w_T)‖²")
    panels[0].legend()


def drawn_trajectories(
    study: Study, tell: Callable[[float], None]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What :func:`trajectories` returns, and its pictures."""
    curves = trajectories(replace(study, tell=tell))
    return curves, plots.pictures("trajectories", draw_trajectories, curves)
