"""The ways to Algorithm 1 in PyTorch, and the bytes of tensors that each holds at once.

Each way is a step: ``way(model, x, y, b)`` leaves a gradient in ``.grad``. Bytes are those of the
storages that operations make, while they are alive, beyond the model and the data; what a single
operation takes inside is no part of them. They are the same on every machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mbsim import clipping
from mbsim.extra.torch import MicroBatchClipper, clipped_backward

__all__ = ["WAYS", "Counted", "gradient_bytes", "network", "peak_bytes", "per_example"]

Way = Callable[[Any, torch.Tensor, torch.Tensor, int], None]


def network(hidden: int = 512) -> Any:
    """784 inputs, two layers of so many, ten classes."""
    return nn.Sequential(
        nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, 10),
    )  # fmt: skip


def per_example(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The loss of every example."""
    losses = functional.cross_entropy(output.flatten(0, -2), y.flatten(), reduction="none")
    return losses.view(len(y), -1).mean(1)


def _plain(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> None:  # noqa: ARG001
    per_example(model(x), y).mean().backward()


def _parts(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> Iterator[torch.Tensor]:
    for i in range(0, len(x), b):
        yield per_example(model(x[i : i + b]), y[i : i + b]).mean()


def _accumulation(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> None:
    for loss in _parts(model, x, y, b):
        (loss * b / len(x)).backward()


def _clipper(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> None:
    clipper = MicroBatchClipper(model.parameters())
    for loss in _parts(model, x, y, b):
        loss.backward()
        clipper.add(weight=b)
    clipper.finish()


def _two_passes(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> None:
    clipper = MicroBatchClipper(model.parameters(), rule=clipping.QuantileNorm(0.5))
    for step in (clipper.measure, clipper.add):
        for loss in _parts(model, x, y, b):
            loss.backward()
            step(weight=b)
    clipper.finish()


def _stored(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> None:
    params = [*model.parameters()]
    rows = [torch.autograd.grad(loss, params) for loss in _parts(model, x, y, b)]
    norms = [sum(one.square().sum() for one in row).sqrt() for row in rows]
    for i, p in enumerate(params):
        p.grad = torch.zeros_like(p)
        for row, norm in zip(rows, norms, strict=True):
            p.grad.add_(row[i], alpha=float(min(norms) / norm / len(rows)))


def _vmap(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> None:
    fixed = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return per_example(functional_call(model, values, x), y).mean()

    m = len(x) // b
    rows = vmap(grad(loss), (None, 0, 0))(fixed, x.unflatten(0, (m, b)), y.unflatten(0, (m, b)))
    squares: Any = sum(
        torch.linalg.vector_norm(one.flatten(1), dim=1) ** 2 for one in rows.values()
    )
    factors = (squares.min() / squares).sqrt() / m
    for name, p in model.named_parameters():
        p.grad = torch.tensordot(factors, rows[name], 1)


def _clipped_backward(model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> None:
    clipped_backward(per_example(model(x), y), model, micro_batch_size=b)


WAYS: dict[str, Way] = {
    "plain": _plain,
    "accumulation": _accumulation,
    "clipper": _clipper,
    "two passes": _two_passes,
    "stored": _stored,
    "vmap": _vmap,
    "clipped_backward": _clipped_backward,
}


class Counted(TorchDispatchMode):  # type: ignore[misc]  # Any where PyTorch is not installed
    """Counts the bytes of the storages that operations make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, object] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        given = {s._cdata for s in _storages((args, kwargs or {}))}
        for storage in _storages(found):
            if storage._cdata not in self.known and storage._cdata not in given:
                self._count(storage)
        return found

    def _count(self, storage: Any) -> None:
        size, key = storage.nbytes(), storage._cdata
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: object) -> None:
            self.now -= size
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, gone)


def _storages(tree: Any) -> Iterator[Any]:
    if isinstance(tree, torch.Tensor):
        yield tree.untyped_storage()
    elif isinstance(tree, (tuple, list)):
        for one in tree:
            yield from _storages(one)
    elif isinstance(tree, dict):
        yield from _storages(tuple(tree.values()))


def peak_bytes(way: Way, model: Any, x: torch.Tensor, y: torch.Tensor, b: int) -> int:
    """The most bytes of tensors at once, in a step after a first one."""
    way(model, x, y, len(x))  # the first time looks at the layers
    model.zero_grad(set_to_none=True)
    with Counted() as counted:
        way(model, x, y, b)
    model.zero_grad(set_to_none=True)
    return counted.peak


def gradient_bytes(model: Any) -> int:
    """P: what one gradient takes."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
