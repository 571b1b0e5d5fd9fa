"""The claim that every bound holds, and how far above the simulation each of them lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mbsim import plots
from mbsim.study.bounds_hold import WRONG, bounds_hold
from mbsim.study.claim import Claim, Details, Found, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BOUNDS_HOLD"]


def _hold(study: Study, wrong: str = "") -> Found:
    verdict = bounds_hold(quick=study.quick, rng=study.rng, wrong=wrong)
    return verdict.comparisons, dict(verdict.details)


def _draw(figure: Figure, details: Details) -> None:
    """How far above the simulation each bound lies: a dot for every problem."""
    figure.set_size_inches(7.0, 4.4)
    axes = figure.subplots()
    slacks = {
        name.replace(" (sharper)", ""): bound["slacks"]
        for name, bound in details[""]["bounds"].items()
        if bound["slacks"] and "(plain)" not in name
    }
    order = sorted(slacks, key=lambda name: float(np.median(slacks[name])), reverse=True)
    plots.dots(axes, {name: slacks[name] for name in order})
    axes.axvline(1, color="0.4", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("right side over simulated left side (bar: median)")
    axes.set_title(f"Bounds held against {details['']['problems']} problems")


BOUNDS_HOLD = Claim(
    name="bounds-hold",
    statement="Every bound holds on every problem where its assumptions are measured to hold.",
    source="theory page, sections 4 to 8",
    run=_hold,
    controls={wrong: {"wrong": wrong} for wrong in WRONG},
    figure="bounds",
    draw=_draw,
)
