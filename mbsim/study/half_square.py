"""½‖w‖², on which the claims are made, and where its runs stop.

The bounds are nearly tight there. A *floor* is the level at which a run with a constant step size
stops: the root mean square of ‖∇L‖ over the last third of the run. It is not the bias, of which it
is only the limit for small step sizes (theory page, 5.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from mbsim import statistics
from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import Quadratic
from mbsim.problems.noise import Gaussian, NoiseLaw, TwoPoint
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting
from mbsim.study.claim import RATE, Array, Points, points, simulated
from mbsim.verdicts import Comparison

__all__ = [
    "LAWS",
    "NONE",
    "STRONG",
    "floor_points",
    "floor_sq",
    "half_square",
    "inside_against_ends",
]

DIM = 16
LAWS: dict[str, NoiseLaw] = {
    "skewed": TwoPoint(sigma=1.0, rare=0.05),
    "symmetric": Gaussian(sigma=1.0),
}
STRONG = Draggers(probability=0.05, norm_ratio=20.0)
NONE = Draggers(probability=0.0, norm_ratio=0.0)


def half_square(
    noise: NoiseLaw, draggers: Draggers, *, grad_norm: float = 0.2, benign_dim: int = 8
) -> Problem:
    """½‖w‖² in 16 dimensions, started where ‖∇L‖ is `grad_norm`."""
    return Problem(
        loss=Quadratic(np.ones(DIM)),
        noise=noise,
        draggers=draggers,
        benign_dim=benign_dim,
        start=np.full(DIM, grad_norm / math.sqrt(DIM)),
    )


def floor_sq(setting: Setting, *, replicates: int, rng: SeedSequence) -> Array:
    """The squared floor of every replicate: mean ‖∇L‖² over the last third of a run."""
    every = max(1, setting.steps // 600)
    run = simulated(setting, replicates=replicates, rng=rng, record_every=every)
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
