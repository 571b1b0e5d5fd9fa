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
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mbsim import clipping
from mbsim.extra.torch import MicroBatchClipper, clipped_backward

B = 64


class Block(nn.Module):
    """Attention and a network, each after a layer norm."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        parts = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in parts)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.feed(x)


class Transformer(nn.Module):
    """Of 64 words, three blocks, and the next word at each of 48 places."""

    def __init__(self, d: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(64, d), nn.Embedding(48, d)
        self.blocks = nn.Sequential(*[Block(d) for _ in range(3)])
        self.head = nn.Linear(d, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        places = torch.arange(x.shape[1]).repeat(len(x), 1)
        return self.head(self.blocks(self.words(x) + self.places(places)))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


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
        Transformer(), torch.randint(64, (B, 48)), torch.randint(64, (B, 48)),
    ),
    "conv net": lambda: (convolutions(), torch.randn(B, 3, 32, 32), torch.randint(10, (B,))),
}  # fmt: skip


def per_example(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    losses = functional.cross_entropy(output.flatten(0, -2), y.flatten(), reduction="none")
    return losses.view(len(y), -1).mean(1)


# ---------------------------------------------------------------------------- the ways


def plain(model, x, y, b):  # noqa: ARG001
    per_example(model(x), y).mean().backward()


def parts(model, x, y, b):
    for i in range(0, len(x), b):
        yield per_example(model(x[i : i + b]), y[i : i + b]).mean()


def accumulation(model, x, y, b):
    for loss in parts(model, x, y, b):
        (loss * b / len(x)).backward()


def clipper(model, x, y, b, two_passes=False):
    clip = MicroBatchClipper(
        model.parameters(), rule=clipping.QuantileNorm(0.5) if two_passes else None
    )
    for step in [clip.measure, clip.add] if two_passes else [clip.add]:
        for loss in parts(model, x, y, b):
            loss.backward()
            step(weight=b)
    clip.finish()


def two_passes(model, x, y, b):
    clipper(model, x, y, b, two_passes=True)


def stored(model, x, y, b):
    params = [*model.parameters()]
    rows = [torch.autograd.grad(loss, params) for loss in parts(model, x, y, b)]
    norms = [sum(one.square().sum() for one in row).sqrt() for row in rows]
    for i, p in enumerate(params):
        p.grad = torch.zeros_like(p)
        for row, norm in zip(rows, norms, strict=True):
            p.grad.add_(row[i], alpha=float(min(norms) / norm / len(rows)))


def with_vmap(model, x, y, b):
    fixed = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values, x, y):
        return per_example(functional_call(model, values, x), y).mean()

    m = len(x) // b
    rows = vmap(grad(loss), (None, 0, 0))(fixed, x.unflatten(0, (m, b)), y.unflatten(0, (m, b)))
    norms = sum(torch.linalg.vector_norm(one.flatten(1), dim=1) ** 2 for one in rows.values())
    factors = (norms.min() / norms).sqrt() / m
    for name, p in model.named_parameters():
        p.grad = torch.tensordot(factors, rows[name], 1)


def one_pass(model, x, y, b):
    clipped_backward(per_example(model(x), y), model, micro_batch_size=b)


WAYS = {
    "plain": plain, "accumulation": accumulation, "clipper": clipper, "two passes": two_passes,
    "stored": stored, "vmap": with_vmap, "clipped_backward": one_pass,
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

    for step in (plain, way):
        seconds(step)
    return median(seconds(way) / seconds(plain) for _ in range(turns))


# ---------------------------------------------------------------------------- memory


class Counted(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, object] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        given = {s._cdata for s in _storages((args, kwargs or {}))}
        for storage in _storages(found):
            if storage._cdata not in self.known and storage._cdata not in given:
                self._count(storage)
        return found

    def _count(self, storage):
        size, key = storage.nbytes(), storage._cdata
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_, self=self, size=size, key=key):
            self.now -= size
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, gone)


def _storages(tree):
    if isinstance(tree, torch.Tensor):
        yield tree.untyped_storage()
    elif isinstance(tree, (tuple, list)):
        for one in tree:
            yield from _storages(one)
    elif isinstance(tree, dict):
        yield from _storages(tuple(tree.values()))


def peak_bytes(way, model, x, y, b) -> int:
    """The most bytes of tensors at once, in a step after a first one."""
    for _ in range(2):  # the first time looks at the layers
        model.zero_grad(set_to_none=True)
        with Counted() as counted:
            way(model, x, y, b)
    return counted.peak


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
        gradient = sum(p.numel() * p.element_size() for p in model.parameters())
        base = peak_bytes(plain, model, x, y, B)
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
