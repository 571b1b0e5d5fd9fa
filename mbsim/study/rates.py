"""How fast: SGD keeps its rate with draggers, and clipping is ahead of it up to a horizon."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mbsim import plots, statistics
from mbsim._shared.arrays import Array
from mbsim.methods import SGD, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.setting import Setting
from mbsim.simulation.run import run_setting
from mbsim.study.claim import BATCH, RATE, Claim, Details, Found, Points, Study, draw_curves, points
from mbsim.study.half_square import LAWS, NONE, STRONG, half_square
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CLIPPING_AHEAD_EARLY", "SGD_SAME_RATE"]

# ---------------------------------------------------------------------------- sgd-same-rate


def _tuned_sgd(study: Study, draggers: Draggers) -> dict[int, Array]:
    """Mean ‖g‖² of every replicate of SGD at each horizon, its step size tuned by Theorem 1."""
    seeds = study.seeds(f"tuned SGD {draggers}")
    problem = half_square(LAWS["symmetric"], draggers, grad_norm=0.5)
    p, c = draggers.probability, draggers.norm_ratio
    k_sigma = (1 - p + p * c**2) / BATCH
    found = {}
    for horizon in (2**k for k in range(9, 13 if study.quick else 14)):
        step_size = math.sqrt(2 * problem.initial_gap / (k_sigma * horizon))
        setting = Setting(problem, SGD(), BATCH, step_size, horizon)
        found[horizon] = run_setting(
            setting, replicates=study.replicates, rng=next(seeds), record_every=horizon
        ).mean_grad_norm_sq
    return found


def _same_rate(study: Study, tilt: float = 0.0) -> Found:
    r"""With η tuned for T by Theorem 1, η = √(2Δ/(L K_σ σ² T)), ‖∇L‖² falls as T^{−1/2}.

    Its mean over a run does so with draggers and without. The ratio of the two is the theorem's,
    √(q + pc²)/q. Both are claims of equality, tested as equivalences: slopes within 0.05 of −½,
    the ratio within 10 % of the prediction. `tilt` makes the draggers lean along the gradient:
    with a negative tilt SGD has a bias, and no rate at all.
    """
    p, c = STRONG.probability, STRONG.norm_ratio
    leaning = Draggers(probability=p, norm_ratio=c, tilt=tilt)
    means = {"without": study.once(_tuned_sgd, NONE), "with": study.once(_tuned_sgd, leaning)}
    comparisons = []
    for name, found in means.items():
        what = f"slope of mean ‖g‖² in T {name} draggers"
        samples = list(found.values())
        slope = statistics.log_log_slope(list(found), samples, false_positive_rate=RATE)
        limits = (-0.55, -0.45)
        comparisons.append(Comparison(what=what, measured=slope, relation="within", limit=limits))
    last = max(means["with"])
    what = f"constant with draggers over without, at T = {last}"
    ratio = statistics.ratio(means["with"][last], means["without"][last], false_positive_rate=RATE)
    predicted = math.sqrt(1 - p + p * c**2) / (1 - p)
    limits = (0.9 * predicted, 1.1 * predicted)
    comparisons.append(Comparison(what=what, measured=ratio, relation="within", limit=limits))
    curves = {
        f"SGD {name} draggers": points(found, found.values()) for name, found in means.items()
    }
    return comparisons, {"predicted_ratio": predicted, "curves": curves}


def _draw_rate(figure: Figure, details: Details) -> None:
    axes, curves = figure.subplots(), details[""]["curves"]
    draw_curves(axes, curves)
    clean = curves["SGD without draggers"]
    x = np.array([p["x"] for p in clean])
    last = clean[-1]["y"] * np.sqrt(x[-1] / x)
    axes.plot(x, last, color="0.4", linewidth=0.8, linestyle=":", label="T^(−1/2)")
    predicted = details[""]["predicted_ratio"]
    axes.plot(
        x, predicted * last, color="0.4", linewidth=0.8, linestyle="--",
        label=f"T^(−1/2), {predicted:.2f} times as high (predicted)",
    )  # fmt: skip
    _horizons_axes(axes, clean)
    axes.set(
        xlabel="steps T, step size tuned for T", title="SGD keeps its rate, with a larger constant"
    )
    axes.legend()


def _horizons_axes(axes: Axes, curve: Points) -> None:
    axes.set(xscale="log", yscale="log", xlim=(0.9 * curve[0]["x"], 1.1 * curve[-1]["x"]))
    for axis in (axes.xaxis, axes.yaxis):
        plots.plain_numbers(axis)
    axes.set_ylabel("mean of ‖∇L‖² over the run")


SGD_SAME_RATE = Claim(
    name="sgd-same-rate",
    statement="SGD with draggers keeps SGD's rate 1/√T, with a constant larger as predicted.",
    source="[Wang2024] Theorem 4.1; theory page, section 4",
    run=_same_rate,
    controls={"draggers tilted against the gradient": {"tilt": -0.1}},
    figure="sgd_rate",
    draw=_draw_rate,
    seconds=2,
)

# ---------------------------------------------------------------------- clipping-ahead-early


def _ahead_early(study: Study, draggers: Draggers = STRONG) -> Found:
    r"""At every horizon T each method runs with its best step size of a grid.

    That is chosen on one half of the replicates, and the means of ‖∇L‖² over the T steps are
    compared on the other half. The noise is skewed, so clipping (b = 4) has a bias. The horizon is
    found as an interval: the last T at which clipping is ahead beyond chance, and the first after
    it at which SGD is. Without draggers clipping should not be ahead at all.
    """
    quick = study.quick
    last = 700 if quick else 2000
    horizons = np.unique(np.geomspace(20, last, 10 if quick else 16).astype(int))
    step_sizes = [0.02 * 2**k for k in range(0, 7, 2 if quick else 1)]
    problem = half_square(LAWS["skewed"], draggers, grad_norm=1.4)
    seeds, tuned = study.seeds("clipping-ahead-early"), {}
    for name, method in (("SGD", SGD()), ("clipping, b = 4", MicroBatchClipping(4))):
        means = []  # [step sizes][replicates, horizons]
        for step_size in step_sizes:
            setting = Setting(problem, method, BATCH, step_size, last)
            run = run_setting(setting, replicates=study.replicates, rng=next(seeds))
            sums = run.grad_norm_sq[:, :-1].cumsum(axis=1)
            means.append(sums[:, horizons - 1] / horizons)
        best = np.argmin([m[::2].mean(axis=0) for m in means], axis=0)
        tuned[name] = [means[best[i]][1::2, i] for i in range(horizons.size)]
    ratios = [
        statistics.ratio(clip, sgd, false_positive_rate=RATE / horizons.size)
        for clip, sgd in zip(tuned["clipping, b = 4"], tuned["SGD"], strict=True)
    ]
    ahead = [int(t) for t, r in zip(horizons, ratios, strict=True) if r.high < 1]
    behind = [int(t) for t, r in zip(horizons, ratios, strict=True) if r.low > 1]
    after = [t for t in behind if not ahead or t > ahead[-1]]
    comparisons = []
    for end, relation in ((0, "below"), (-1, "above")):
        what = f"clipping over SGD, mean ‖g‖² at T = {horizons[end]}"
        over = ratios[end]
        comparisons.append(Comparison(what=what, measured=over, relation=relation, limit=1.0))
    return comparisons, {
        "horizon": [ahead[-1] if ahead else None, after[0] if after else None],
        "curves": {name: points(map(int, horizons), m) for name, m in tuned.items()},
    }


def _draw_horizon(figure: Figure, details: Details) -> None:
    axes, curves = figure.subplots(), details[""]["curves"]
    draw_curves(axes, curves)
    ahead, behind = details[""]["horizon"]
    if ahead and behind:
        axes.axvspan(ahead, behind, color="0.85", zorder=0)
        axes.annotate(
            f"horizon between {ahead} and {behind}",
            (ahead, 1.0),
            xycoords=("data", "axes fraction"),
            ha="right",
            va="top",
            xytext=(-4, -2),
            textcoords="offset points",
            fontsize=8,
        )
    _horizons_axes(axes, curves["SGD"])
    axes.set(
        xlabel="steps T, each with its best step size", title="Clipping is ahead up to a horizon"
    )
    axes.legend(loc="lower left")


CLIPPING_AHEAD_EARLY = Claim(
    name="clipping-ahead-early",
    statement=(
        "With strong draggers and skewed noise clipping is ahead of SGD up to a horizon, and "
        "behind after it."
    ),
    source="[Wang2024] Theorems 4.1, 4.2 and Table 1; theory page, 5.6",
    run=_ahead_early,
    controls={"no draggers": {"draggers": NONE}},
    figure="horizon",
    draw=_draw_horizon,
    seconds=3,
)
