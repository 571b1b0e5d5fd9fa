"""What Algorithm 1 costs in PyTorch: time and peak memory of each way to it, against a plain step.

    python benchmarks/drop_ins.py            # time, then memory
    python benchmarks/drop_ins.py memory     # memory alone: the same bytes on every machine

Ways, on one network and one transformer, for several micro-batch sizes b of B = 64:

- plain: the mean loss of all B, one backward pass;
- accumulation: the same gradient from m = B/b micro-batches, not clipped;
- clipper: `MicroBatchClipper` in that loop; with two passes: `measure` before;
- stored: the m gradients are kept, and clipped at the end;
- vmap: the same from `torch.func.vmap` of `grad`, all at once;
- clipped_backward: from the losses of one forward pass;
- Opacus: its ghost clipping, b = 1, to a fixed threshold (where it is installed).

Times are medians of the ratios to a plain step that ran right before. Bytes are of the tensors that
are alive, beyond the model and the data, which what an operation takes inside is no part of.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median

import torch
from torch import nn

from mbsim.study.torch_memory import WAYS, gradient_bytes, network, peak_bytes, per_example
from mbsim.study.torch_training import Transformer

B = 64


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]]] = {
    "network": lambda: (network(), torch.randn(B, 784), torch.randint(10, (B,))),
    "transformer": lambda: (
        Transformer(64, 48, 128, 4, 3), torch.randint(64, (B, 48)), torch.randint(64, (B, 48)),
    ),
    "conv net": lambda: (convolutions(), torch.randn(B, 3, 32, 32), torch.randint(10, (B,))),
}  # fmt: skip


def opacus_way(model):
    """Its ghost clipping, as a step that takes what the others take; None if it is not there."""
    try:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
    except ImportError:
        return None
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
    )

    def step(_, x, y, b):  # noqa: ARG001
        losses = per_example(wrapped(x), y)
        losses.mean().backward(retain_graph=True)
        factors = wrapped.get_clipping_coef()
        wrapped.zero_grad()
        wrapped.disable_hooks()
        (losses * factors).mean().backward()
        wrapped.enable_hooks()

    return step


# ---------------------------------------------------------------------------- time


def ratios(way, model, x, y, b, turns):
    """The time of a way over that of a plain step, in turns."""

    def seconds(step):
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        step(model, x, y, b)
        return time.process_time() - start

    for step in (WAYS["plain"], way):
        seconds(step)
    return median(seconds(way) / seconds(WAYS["plain"]) for _ in range(turns))


# ---------------------------------------------------------------------------- memory


@contextmanager
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def memory(sizes=(1, 2, 8, 32, 64)):
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model, x, y = make()
        gradient, base = gradient_bytes(model), peak_bytes(WAYS["plain"], model, x, y, B)
        print(f"\n{name}: a gradient is {gradient / 1e6:.2f} MB, a plain step {base / 1e6:.2f} MB")
        print("| MB |" + "".join(f" b = {b} |" for b in sizes))
        for way, step in WAYS.items():
            if way != "plain":
                peaks = [peak_bytes(step, model, x, y, b) for b in sizes]
                print(f"| {way} |" + "".join(f" {peak / 1e6:.2f} |" for peak in peaks))


def speed(sizes=(1, 2, 8, 32, 64), turns=9):
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model, x, y = make()
        print(f"\n{name}, CPU time over that of a plain step\n| |" +
              "".join(f" b = {b} |" for b in sizes))  # fmt: skip
        for way in ("clipped_backward", "clipper", "accumulation"):
            found = [
                ratios(WAYS[way], model, x, y, b, turns if way == "clipped_backward" else 3)
                for b in sizes
            ]
            print(f"| {way} |" + "".join(f" {ratio:.2f} |" for ratio in found))
        if ghost := opacus_way(model):
            print(f"| Opacus | {ratios(ghost, model, x, y, 1, turns):.2f} |")


if __name__ == "__main__":
    with _one_thread():
        if sys.argv[1:] != ["memory"]:
            speed()
        memory()
