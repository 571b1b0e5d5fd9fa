"""Draggers that point against the gradient, on ½‖w‖²: levels by theorem, estimate, simulation.

Noise, dimensions and step sizes are such that the level at which a run stops is that of the drift:
the step size adds a few percent to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mbsim import plots, statistics, theory
from mbsim._shared.arrays import Array
from mbsim.drifts.drift import drift
from mbsim.methods import SGD, Method, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting
from mbsim.study.claim import BATCH, RATE, Claim, Details, Found, Study, of_mean
from mbsim.study.floors import floor_points, floor_sq
from mbsim.study.half_square import half_square
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BEST_B", "CLIPPING_ENDS_LOWER", "TILT_STOPS_SGD"]

_DIM = 32  # of the benign frame
_GAUSSIAN, _SHARE = Gaussian(sigma=1.0), 0.8
_SKEWED = Exponential(sigma=1.0, isotropic_share=_SHARE)
_SKEW = 2 * (1 - _SHARE) ** 1.5  # E[⟨ξ, e⟩‖ξ‖²]/σ³ of it


def _problem(noise: NoiseLaw, p: float, against: float, ratio: float) -> Problem:
    """Draggers of whole length `ratio` √(r² + σ²) and cosine −`against` with the gradient."""
    across = ratio * math.sqrt(1 - against**2)
    draggers = Draggers(probability=p, norm_ratio=across, tilt=-against)
    return half_square(noise, draggers, grad_norm=0.5, benign_dim=_DIM, dimension=_DIM + 16)


def _quantities(p: float, against: float, ratio: float) -> dict[str, float]:
    """What the theorems take."""
    return {
        "probability": p,
        "tilt_against": abs(against),
        "sigma": 1.0,
        "coherence": 0.0,
        "norm_ratio": ratio * math.sqrt(1 - against**2),
        "benign_dim": _DIM,
        "batch_size": BATCH,
    }


def _stops(study: Study, problem: Problem, method: Method, step_size: float, name: str) -> Array:
    """Squared floors of the replicates, after 15 time constants of unit curvature."""
    steps = round((12 if study.quick else 15) / step_size)
    setting = Setting(problem, method, BATCH, step_size, steps)
    return floor_sq(setting, replicates=study.replicates // 4, rng=study.seed("tilt", name))


# ------------------------------------------------------------------------------ tilt-stops-sgd


def _stops_sgd(study: Study, against: float = 0.3) -> Found:
    """At two step sizes SGD's floor is between 0.97 and 1.2 times the level of Theorem 7."""
    p, t, ratio = 0.1, 0.3, 3.0
    level = theory.tilted_level("SGD")
    at = level.evaluate(**level.picked(_quantities(p, t, ratio)))
    comparisons, floors = [], {}
    for eta in (0.04, 0.01):
        problem = _problem(_GAUSSIAN, p, against, ratio)
        floors[eta] = _stops(study, problem, SGD(), eta, f"SGD {against} {eta}")
        what = f"squared floor of SGD over the squared level, η = {eta:g}"
        comparisons.append(of_mean(what, floors[eta] / at**2, "within", (0.97**2, 1.2**2)))
    return comparisons, {"level": at, "floors": floor_points(floors)}


TILT_STOPS_SGD = Claim(
    name="tilt-stops-sgd",
    statement=(
        "Draggers that point against the gradient stop SGD at a level that a smaller step size "
        "does not lower."
    ),
    source="ours: theory page, section 12.1",
    run=_stops_sgd,
    controls={"no tilt": {"against": 0.0}, "tilt of the other sign": {"against": -0.3}},
    seconds=0.1,
)


# ------------------------------------------------------------------------ clipping-ends-lower

_RATIOS = (2.0, 4.0, 8.0)


def _ends_lower(study: Study, against: float = 0.4, b: int = 1) -> Found:
    """SGD's floor over that of clipping is 0.8 to 1.15 times c̄, and clipping's below its bound.

    b = 1, p = 0.05, Gaussian noise; the bound is the level of Theorem 8, with a tenth for η.
    """
    p, t, eta = 0.05, 0.4, 0.01
    comparisons: list[Comparison] = []
    measured: list[float] = []
    bounds: list[float] = []
    for ratio in _RATIOS:
        problem = _problem(_GAUSSIAN, p, against, ratio)
        methods: dict[str, Method] = {"SGD": SGD(), "clipping": MicroBatchClipping(b)}
        found = {
            name: _stops(study, problem, method, eta, f"{name} {against} {ratio} {b}")
            for name, method in methods.items()
        }
        over = statistics.ratio(
            found["SGD"], found["clipping"], false_positive_rate=RATE, power=0.5
        )
        limit = (0.8 * ratio, 1.15 * ratio)
        what = f"SGD's floor over clipping's, c̄ = {ratio:g}"
        comparisons.append(Comparison(what=what, measured=over, relation="within", limit=limit))
        level = theory.tilted_level("clipping")
        values = _quantities(p, t, ratio) | {"micro_batch_size": 1}
        bound = float(level.evaluate(**level.picked(values)))
        what = f"clipping's squared floor over its squared bound, c̄ = {ratio:g}"
        comparisons.append(of_mean(what, found["clipping"] / bound**2, "below", 1.1**2))
        measured.append(over.estimate)
        bounds.append(bound)
    return comparisons, {"ratios": list(_RATIOS), "measured": measured, "bound": bounds}


CLIPPING_ENDS_LOWER = Claim(
    name="clipping-ends-lower",
    statement=(
        "With tilted draggers and Gaussian noise clipping at b = 1 ends below SGD, by nearly the "
        "factor by which draggers are longer."
    ),
    source="ours: theory page, section 12.2",
    run=_ends_lower,
    controls={
        "no tilt": {"against": 0.0},
        "tilt of the other sign": {"against": -0.4},
        "b = B": {"b": BATCH},
    },
    seconds=1.5,
)


# ----------------------------------------------------------------- best-b-from-tilt-and-skew

_GRID = tuple((p, t) for p in (0.02, 0.1, 0.25) for t in (0.15, 0.3))


def _grid_floors(study: Study) -> dict[tuple[float, float], dict[int, Array]]:
    grid = _GRID[2:4] if study.quick else _GRID
    found: dict[tuple[float, float], dict[int, Array]] = {}
    for p, t in grid:
        study.tell(len(found) / len(grid))
        problem = _problem(_SKEWED, p, t, 3.0)
        found[p, t] = {
            b: _stops(study, problem, MicroBatchClipping(b), 0.02, f"grid {p} {t} {b}")
            for b in study.sizes
        }
    return found


def _estimated(p: float, t: float, sizes: list[int], skew: float = _SKEW) -> Array:
    estimate = theory.tilted_level_estimate()
    values = _quantities(p, t, 3.0) | {"noise_skew": skew, "micro_batch_size": sizes}
    return np.asarray(estimate.evaluate(**estimate.picked(values)))


def _best_b(study: Study, part: str = "both") -> Found:
    """The floor at the estimate's best b is at most 1.15 times the lowest, in every cell.

    Skewed noise, c̄ = 3, p and t on a grid. The lowest is chosen on one half of the replicates; both
    are compared on the other. `part` leaves the estimate its "tilt" or its "skew" alone, or takes
    the "worst" b of both.
    """
    floors = study.once(_grid_floors)
    comparisons, rows = [], []
    for (p, t), found in floors.items():
        sizes = list(found)
        levels = _estimated(
            p, t if part != "skew" else 0.0, sizes, _SKEW if part != "tilt" else 0.0
        )
        chosen = sizes[int(levels.argmax() if part == "worst" else levels.argmin())]
        lowest = min(sizes, key=lambda b: float(found[b][::2].mean()))
        over = statistics.ratio(
            found[chosen][1::2], found[lowest][1::2], false_positive_rate=RATE, power=0.5
        )
        what = f"floor at the estimate's b = {chosen} over the lowest, p = {p:g}, t = {t:g}"
        comparisons.append(Comparison(what=what, measured=over, relation="below", limit=1.15))
        rows.append(
            {
                "p": p,
                "t": t,
                "estimated b": chosen,
                "simulated b": lowest,
                "floors": floor_points(found),
                "estimate": levels.tolist(),
                "drift": _drift_levels(p, t, sizes) if part == "both" else [],
            }
        )
    return comparisons, {"cells": rows, "model": _model_best() if part == "both" else {}}


def _drift_levels(p: float, t: float, sizes: list[int]) -> list[float]:
    problem = _problem(_SKEWED, p, t, 3.0)
    found = [
        drift(problem, MicroBatchClipping(b), batch_size=BATCH, relative_error=1e-3) for b in sizes
    ]
    return [float(one.floor(step_size=0.02)) for one in found]


def _model_best() -> dict[str, Any]:
    """The best b of the estimate, over p, for figures."""
    shares = np.geomspace(0.01, 0.35, 12)
    best = {
        f"t = {t:g}": [
            float(2.0 ** np.argmin(_estimated(float(p), t, [2**i for i in range(7)])))
            for p in shares
        ]
        for t in (0.15, 0.3, 0.5)
    }
    return {"p": shares.tolist(), **best}


def _draw(figure: Figure, details: Details) -> None:
    """Level against b for several t: simulated (points) and by the exact drift (lines)."""
    cells: list[Mapping[str, Any]] = details[""]["cells"]
    shares = sorted({cell["p"] for cell in cells})
    figure.set_size_inches(2.9 * max(2, len(shares)), 3.2)
    panels = np.atleast_1d(figure.subplots(1, len(shares), sharey=True))
    for axes, p in zip(panels, shares, strict=True):
        here = [cell for cell in cells if cell["p"] == p]
        for number, cell in enumerate(here):
            x = [row["x"] for row in cell["floors"]]
            colour = plots.COLOURS[number]
            y = [row["y"] for row in cell["floors"]]
            axes.plot(x, y, "os"[number], color=colour, label=f"t = {cell['t']:g}, simulated")
            axes.plot(x, cell["drift"], "-", color=colour, label="exact drift")
            axes.plot(x, cell["estimate"], ":", color=colour, label="tilt + skew")
        axes.set_yscale("log")
        plots.sizes_axis(axes, [int(row["x"]) for row in here[0]["floors"]])
        axes.set_title(f"{100 * p:g} % draggers against $g$")
    panels[0].set_ylabel("‖∇L‖ where a run stops")
    panels[-1].legend(fontsize=7)


BEST_B = Claim(
    name="best-b-from-tilt-and-skew",
    statement=(
        "Where noise is skewed and draggers are tilted, the b at which a tilt term that rises and "
        "a skew term that falls add up to the least ends within 15 % of the lowest floor."
    ),
    source="ours: theory page, section 12.5",
    run=_best_b,
    controls={
        "tilt alone": {"part": "tilt"},
        "skew alone": {"part": "skew"},
        "the worst b": {"part": "worst"},
    },
    figure="tilt",
    draw=_draw,
    seconds=3.5,
)
