"""What Algorithm 1 takes in memory, by every way to it, as b varies: counted in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mbsim import plots, statistics
from mbsim.study.claim import BATCH, Claim, Details, Found, Study
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MEMORY"]

_SIZES, _HIDDEN = (1, 2, 4, 8, 16, 32), 256
_SHOWN = {
    "stored": "all m gradients stored",
    "clipper": "MicroBatchClipper",
    "accumulation": "accumulation, not clipped",
    "clipped_backward": "clipped_backward",
}
# How far bytes may be from a formula that leaves out factors, norms and activations, in gradients;
# and what a gradient by one backward pass may take of a plain step's memory.
_NEAR, _PASS = 0.1, 1.5


def _peaks(study: Study) -> dict[str, list[float]]:
    """The most bytes at once by way and b, in units of one gradient."""
    import torch

    from mbsim.study import torch_memory as counted
    from mbsim.study.torch_training import one_thread

    with one_thread(study.rng):  # claims run in processes of their own
        model = counted.network(_HIDDEN)
        x, y = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))
        one = counted.gradient_bytes(model)
        return {
            name: [counted.peak_bytes(counted.WAYS[name], model, x, y, b) / one for b in _SIZES]
            for name in ("plain", *_SHOWN)
        }


def _memory(study: Study, way: str = "clipper") -> Found:
    """Peak memory of a step on a network, beyond the model and the data, in gradients.

    Of a way that is claimed to take two gradients (what is accumulated, and the gradient of the
    micro-batch at hand) at every b; of `clipped_backward` over a plain step. Bytes are counted and
    not sampled: their intervals have no width.
    """
    peaks = study.once(_peaks)
    comparisons = [
        Comparison(
            what=f"peak memory in gradients, b = {b}",
            measured=statistics.exactly(peak),
            relation="within",
            limit=(2 - _NEAR, 2 + _NEAR),
        )
        for b, peak in zip(_SIZES, peaks[way], strict=True)
    ]
    over = [a / b for a, b in zip(peaks["clipped_backward"], peaks["plain"], strict=True)]
    comparisons.append(
        Comparison(
            what="clipped_backward over a plain step, the worst b",
            measured=statistics.exactly(max(over)),
            relation="below",
            limit=_PASS,
        )
    )
    return comparisons, {"sizes": list(_SIZES), "peaks": peaks}


def _draw(figure: Figure, details: Details) -> None:
    """Peak memory against b: one line for each way, dotted where a formula says it should be."""
    axes: Any = figure.subplots()
    sizes, peaks = details[""]["sizes"], details[""]["peaks"]
    for way, label in _SHOWN.items():
        plots.curve(axes, sizes, peaks[way], label=label)
    axes.plot(sizes, [BATCH / b + 1 for b in sizes], "k:", label="m + 1; 2; 1")
    for level in (1, 2):
        axes.plot(sizes, [level] * len(sizes), "k:")
    plots.sizes_axis(axes, sizes)
    axes.set_yscale("log", base=2)
    plots.plain_numbers(axes.yaxis)
    axes.set(
        ylabel="peak memory, gradients",
        title=f"What a step takes beyond the model, B = {BATCH}",
    )
    axes.legend(fontsize=7)


MEMORY = Claim(
    name="memory",
    statement=(
        "Micro-batch clipping holds two gradients at once whatever the micro-batch size, and by "
        "one forward pass takes at most half as much memory again as a plain step."
    ),
    source="[Wang2024] its third open question; the accumulator is ours",
    run=_memory,
    controls={"all micro-batches' gradients stored": {"way": "stored"}},
    figure="memory",
    draw=_draw,
    needs="torch",
    seconds=2.0,
)
