"""½‖w‖², on which the claims are made: the bounds are nearly tight there."""

from __future__ import annotations

import math

import numpy as np

from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import Quadratic
from mbsim.problems.noise import Gaussian, NoiseLaw, TwoPoint
from mbsim.problems.problem import Problem

__all__ = ["LAWS", "NONE", "STRONG", "half_square"]

LAWS: dict[str, NoiseLaw] = {
    "skewed": TwoPoint(sigma=1.0, rare=0.05),
    "symmetric": Gaussian(sigma=1.0),
}
STRONG = Draggers(probability=0.05, norm_ratio=20.0)
NONE = Draggers(probability=0.0, norm_ratio=0.0)


def half_square(
    noise: NoiseLaw,
    draggers: Draggers,
    *,
    grad_norm: float = 0.2,
    benign_dim: int = 8,
    dimension: int = 16,
) -> Problem:
    """½‖w‖², started where ‖∇L‖ is `grad_norm`."""
    return Problem(
        loss=Quadratic(np.ones(dimension)),
        noise=noise,
        draggers=draggers,
        benign_dim=benign_dim,
        start=np.full(dimension, grad_norm / math.sqrt(dimension)),
    )
