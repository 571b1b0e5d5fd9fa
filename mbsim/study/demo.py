"""``mbsim demo``: in a few seconds, what micro-batch clipping does and when it does not help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from mbsim import statistics
from mbsim._shared.progress import progress
from mbsim.choosing.compare import MethodComparison, compare
from mbsim.methods import SGD, Method, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw
from mbsim.study.half_square import half_square

__all__ = ["FOOT", "HEAD", "cases", "drawn", "told"]

_WIDE, _HIGH = 60, 12


HEAD = """Mini-batches of 64 examples in micro-batches of 8, clipped to the shortest.
In brackets: 99 % intervals over 64 runs of each method.
"""
FOOT = "Does it help you? mbsim advise, on your gradients. To try more: mbsim explore."


def cases() -> Iterator[tuple[str, MethodComparison]]:
    """SGD beside clipping, where it helps and where it does not."""
    methods: list[Method] = [SGD(), MicroBatchClipping(8)]
    known: dict[str, tuple[NoiseLaw, Draggers]] = {
        "1 in 20 examples is a dragger, 20 times as long; symmetric noise": (
            Gaussian(sigma=1.0),
            Draggers(probability=0.05, norm_ratio=20.0),
        ),
        "no draggers; noise that is skewed against the gradient": (
            Exponential(sigma=1.0),
            Draggers(probability=0.0, norm_ratio=0.0),
        ),
    }
    with progress(len(known), "simulating") as bar:
        for number, (what, (noise, draggers)) in enumerate(known.items()):
            bar.update(number)
            problem = half_square(noise, draggers, dimension=64, benign_dim=32, grad_norm=1.0)
            yield (
                what,
                compare(
                    problem, methods, batch_size=64, step_size=0.05, steps=400, replicates=64, rng=0
                ),
            )


def told(what: str, both: MethodComparison, *, picture: bool) -> str:
    """A case in words, and in a picture."""
    lines = [f"{what}:"]
    if picture:
        curves = {str(run.method): run.mean("grad_norm_sq") for run in both.runs}
        lines += drawn(curves, "mean squared gradient norm")
    return "\n".join([*lines, f"  {_outcome(both)}\n"])


def _outcome(both: MethodComparison) -> str:
    sgd, clipping = (run.grad_norm_sq[:, -1] for run in both.runs)
    gain = statistics.ratio(sgd, clipping, false_positive_rate=0.01)
    does = "helps" if gain.low > 1 else "does not help" if gain.high < 1 else "makes no difference"
    return f"SGD ends {gain} times as high: clipping {does}."


def drawn(curves: Mapping[str, NDArray[np.float64]], what: str) -> list[str]:
    """Curves over equally spaced steps, drawn in text; heights are logarithmic.

    >>> curves = {"SGD": np.array([1.0, 0.1]), "other": np.ones(2)}
    >>> print(*drawn(curves, "height")[:2], sep=chr(10))
    height: S SGD, o other
          1 |SSSSSSSSSSSSSSSSSSSSSSSSSSSSSSoooooooooooooooooooooooooooooo
    """
    values = {name: np.log10(curve) for name, curve in curves.items()}
    low = min(float(curve.min()) for curve in values.values())
    high = max(float(curve.max()) for curve in values.values())
    rows = [[" "] * _WIDE for _ in range(_HIGH)]
    for name, curve in reversed(values.items()):
        for column in range(_WIDE):
            y = curve[round(column * (curve.size - 1) / (_WIDE - 1))]
            rows[round((high - y) / ((high - low) or 1.0) * (_HIGH - 1))][column] = name[0]
    names = ", ".join(f"{name[0]} {name}" for name in curves)
    lines = [f"{what}: {names}"]
    for number, row in enumerate(rows):
        height = 10 ** (high - (high - low) * number / (_HIGH - 1))
        lines.append(f"{height:>7.2g} |{''.join(row)}".rstrip())
    last = max(curve.size for curve in curves.values()) - 1
    return [*lines, " " * 8 + "+" + "-" * _WIDE, f"{'0':>10}{f'step {last}':>{_WIDE - 1}}"]
