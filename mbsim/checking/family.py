"""Stated families of problems, drawn from a seed: what bounds and formulas are held against.

:func:`family` is of moderate problems, as a user might have them. :func:`drawn` is for formulas
whose faults are not known beforehand: it goes to the ends of every quantity, and lets each part of
what a run does outweigh the others in turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim._shared.seeds import child, stream
from mbsim.errors import InvalidArgument, check_integer, divisors, shown
from mbsim.methods import SGD, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import LogCosh, Quadratic, Ripple
from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw, StudentT, TwoPoint
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting

__all__ = ["DIM", "PARTS", "drawn", "family", "log_uniform", "setting_of"]

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


def _loss(kind: int, smoothness: float, dim: int) -> Any:
    """½L‖w‖² four times in six, once of them with a spread spectrum; log cosh; ripples."""
    if kind < 4:
        return Quadratic(smoothness * (np.geomspace(0.1, 1, dim) if kind == 3 else np.ones(dim)))
    return LogCosh(dim) if kind == 4 else Ripple(dim, amplitude=0.3)


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
    draw = np.random.default_rng(child(SeedSequence(seed), "family"))
    return [_case(i, draw, method, tilt) for i in range(check_integer("count", count, minimum=1))]


def _case(number: int, draw: Generator, method: str, tilt: float) -> Setting:
    p, c = log_uniform(draw, 0.01, 0.3), log_uniform(draw, 0.5, 30)
    coherence = 0.3 if number % 3 == 2 else 0.0
    sigma, smoothness = log_uniform(draw, 0.1, 10), log_uniform(draw, 0.2, 5)
    loss = _loss(int(draw.integers(6)), smoothness, DIM)
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


# ---------------------------------------------------------------------------- for formulas

_Range = tuple[float, float]

# Of every problem, unless its part says otherwise: between which ends a quantity is drawn, its
# logarithm uniform. `pace` is ηL, `time` ηLTq, `start` ‖∇L‖/σ at the start.
_RANGES: dict[str, _Range] = {
    "smoothness": (0.1, 10),
    "sigma": (0.1, 10),
    "probability": (0.01, 0.3),
    "norm_ratio": (0.5, 30),
    "start": (0.03, 30),
    "pace": (0.02, 0.1),
    "time": (3, 12),
}
#: The parts of what a run does, each with the ranges in which it outweighs the others.
PARTS: dict[str, dict[str, _Range]] = {
    "the start": {"start": (30, 300), "time": (2, 4)},
    "noise": {"probability": (0, 0), "start": (0.01, 0.03), "time": (8, 16)},
    "draggers alone": {
        "probability": (0.01, 0.05),
        "norm_ratio": (10, 60),
        "coherence": (0, 0),
        "start": (0.01, 0.03),
    },
    "draggers together": {
        "probability": (0.1, 0.3),
        "norm_ratio": (5, 30),
        "coherence": (0.2, 1),
        "batch_size": (64, 64),
        "pace": (0.05, 0.3),
        "start": (0.01, 0.03),
    },
    "mostly draggers": {"probability": (0.5, 0.8), "norm_ratio": (0.3, 3), "time": (2, 6)},
    "long steps": {
        "pace": (0.2, 0.8),
        "probability": (0.02, 0.6),
        "norm_ratio": (0.3, 60),
        "time": (8, 16),
    },
    "small batches": {
        "batch_size": (1, 2),
        "probability": (0.2, 0.6),
        "norm_ratio": (0.3, 3),
        "start": (0.01, 3),
        "pace": (0.2, 0.6),
        "time": (8, 16),
    },
    "nothing": {},
}


def drawn(number: int, *, rng: int, near: Mapping[str, float] | None = None) -> dict[str, float]:
    """The numbers of one problem, of which :func:`setting_of` makes a setting.

    Every quantity of the model varies: L and σ in [0.1, 10], p in [0, 0.8], c in [0.3, 60], γ in
    [0, 1], B of 1, 2, 8 and 64, b from 1 to B, ηL in [0.02, 0.8], ηLTq in [2, 16], a start where
    ‖∇L‖/σ is in [0.01, 300], d of 16 and 32, n from 1 to d − 3, six noise laws, four kinds of
    losses. In turn, by `number`, one part of :data:`PARTS` outweighs the others: each is met in any
    eight problems running, with b = 1, b = B and b between them in any 24.

    Args:
        number: which problem; it has a stream of its own.
        rng: the seed, an integer.
        near: the numbers of another problem, of which about half are taken over.
    """
    draw = stream(SeedSequence(rng), "formulas", number)
    ranges = _RANGES | list(PARTS.values())[number % len(PARTS)]
    dim = int(draw.choice([16, 32]))
    found = {
        "loss": int(draw.integers(6)),
        "noise": number % 6,
        "dim": dim,
        "benign_dim": int(draw.integers(1, dim - 2)),
        "coherence": float(draw.choice([0.0, 0.3, 1.0])),
        "batch_size": int(draw.choice([1, 2, 8, 64])),
        "split": (0.0, draw.uniform(), 1.0)[number // len(PARTS) % 3],
        **{name: log_uniform(draw, *ends) for name, ends in ranges.items()},
    }
    if near:
        found |= {name: near[name] for name in found if draw.random() < 0.5}
    return found


def setting_of(numbers: Mapping[str, float], *, sgd: bool) -> Setting:
    """The problem and the method that :func:`drawn` numbers stand for.

    Where c is so large that a step of SGD may do more harm than good at a large gradient, it is
    taken smaller: there few replicates make up the mean, and no number of them shows it. (In the
    notation of the theory page, section 4, ηL K_g is kept at 0.6 q, where SGD stands 2 q.)
    """
    dim, batch = int(numbers["dim"]), round(numbers["batch_size"])
    loss = _loss(int(numbers["loss"]), numbers["smoothness"], dim)
    p, gamma, sigma, pace = (
        numbers[name] for name in ("probability", "coherence", "sigma", "pace")
    )
    spare = 0.6 * (1 - p) / pace - (1 - p) ** 2 - p * (1 - p) / batch
    chi = p / batch + gamma * p**2 * (1 - 1 / batch)
    most = math.sqrt(max(spare, 0) / chi) if chi else math.inf
    sizes = divisors(batch)
    b = sizes[min(int(numbers["split"] * len(sizes)), len(sizes) - 1)]
    grad_norm = sigma * numbers["start"] / math.sqrt(dim)
    return Setting(
        problem=Problem(
            loss=loss,
            noise=_noise(int(numbers["noise"]), sigma),
            benign_dim=min(int(numbers["benign_dim"]), dim - 3),
            start=np.full(dim, grad_norm / loss.smoothness),
            draggers=Draggers(
                probability=p, norm_ratio=min(numbers["norm_ratio"], most), coherence=gamma
            ),
        ),
        method=SGD() if sgd else MicroBatchClipping(b),
        batch_size=batch,
        step_size=pace / loss.smoothness,
        steps=math.ceil(numbers["time"] / (pace * (1 - p))),
    )


def log_uniform(draw: Generator, low: float, high: float) -> float:
    """A number between `low` and `high` whose logarithm is uniform."""
    if low == high:
        return float(low)
    return float(np.exp(draw.uniform(math.log(low), math.log(high))))
