"""A stated family of problems, drawn from a seed: what bounds are held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim.errors import InvalidArgument, check_integer, divisors, shown
from mbsim.methods import SGD, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import LogCosh, Quadratic, Ripple
from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw, StudentT, TwoPoint
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting

__all__ = ["DIM", "family", "log_uniform"]

DIM = 16


def _noise(number: int, sigma: float) -> NoiseLaw:
    laws: tuple[NoiseLaw, ...] = (
        Gaussian(sigma=sigma),
        TwoPoint(sigma=sigma, rare=0.05),
        TwoPoint(sigma=sigma, rare=0.5),
        TwoPoint(sigma=sigma, rare=0.1, isotropic_share=0.5),
        Exponential(sigma=sigma),
        StudentT(sigma=sigma, df=5.0),
    )
    return laws[number % len(laws)]


def _loss(draw: Generator) -> Any:
    smoothness = log_uniform(draw, 0.2, 5)
    kind = int(draw.integers(6))
    if kind < 4:
        return Quadratic(smoothness * (np.geomspace(0.1, 1, DIM) if kind == 3 else np.ones(DIM)))
    return LogCosh(DIM) if kind == 4 else Ripple(DIM, amplitude=0.3)


def family(count: int, *, rng: int = 0, method: str = "both", tilt: float = 0.0) -> list[Setting]:
    """The problems that bounds are held against: `count` of them, drawn from the seed.

    Every quantity that a bound can contain varies, so that a formula with a wrong power of one is
    found out: d = 16, n from 2 to 12, σ in [0.1, 10]; every seventh without draggers, the others
    with p in [0.01, 0.3] and c in [0.5, 30], a third of them coherent (γ = 0.3); six noise laws;
    ½L‖w‖² half of the time, else a quadratic of spread spectrum (both with L in [0.2, 5]), log cosh
    or ripples; B = 16 or 64; every fourth case SGD, the others clipping with b a divisor of B; ηL
    in [0.01, 0.1]; ηLT in [5, 15]; a start where ‖∇L‖/σ is in [0.03, 3] or so.

    Args:
        count: how many.
        rng: the seed, an integer.
        method: "both", or "SGD" or "clipping" for that alone.
        tilt: of the draggers, for negative controls.
    """
    if method not in ("both", "SGD", "clipping"):
        raise InvalidArgument(f"method={shown(method)} must be 'both', 'SGD' or 'clipping'")
    seed = check_integer("rng", rng, minimum=0)
    draw = np.random.default_rng(SeedSequence(seed, spawn_key=tuple(b"family")))
    return [_case(i, draw, method, tilt) for i in range(check_integer("count", count, minimum=1))]


def _case(number: int, draw: Generator, method: str, tilt: float) -> Setting:
    p, c = log_uniform(draw, 0.01, 0.3), log_uniform(draw, 0.5, 30)
    coherence = 0.3 if number % 3 == 2 else 0.0
    sigma, loss = log_uniform(draw, 0.1, 10), _loss(draw)
    start = np.full(DIM, sigma / loss.smoothness * log_uniform(draw, 0.03, 3) / math.sqrt(DIM))
    batch = int(draw.choice([16, 64]))
    b = int(draw.choice(divisors(batch)))
    step_size, time = log_uniform(draw, 0.01, 0.1), log_uniform(draw, 5, 15)
    sgd = number % 4 == 3 if method == "both" else method == "SGD"
    return Setting(
        problem=Problem(
            loss=loss,
            noise=_noise(number, sigma),
            benign_dim=int(draw.integers(2, 13)),
            start=start,
            draggers=Draggers(
                probability=0.0 if number % 7 == 3 else p,
                norm_ratio=c,
                coherence=coherence,
                tilt=tilt,
            ),
        ),
        method=SGD() if sgd else MicroBatchClipping(b),
        batch_size=batch,
        step_size=step_size / loss.smoothness,
        steps=round(time / step_size),
    )


def log_uniform(draw: Generator, low: float, high: float) -> float:
    """A number between `low` and `high` whose logarithm is uniform."""
    return float(np.exp(draw.uniform(math.log(low), math.log(high))))
