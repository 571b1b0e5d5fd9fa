"""Training in PyTorch with :func:`~mbsim.extra.torch.clipped_backward`, as the studies need it.

A network of one tanh layer on tables, the same as :func:`mbsim.gradients.training.train` has, and a
character-level transformer on text; the clipped gradient is handed to SGD, with or without
momentum, or to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import nn
from torch.nn import functional

from mbsim._shared.arrays import Array, Integers
from mbsim._shared.seeds import stream
from mbsim.clipping import NoClipping, SmallestNorm
from mbsim.extra.torch import clipped_backward
from mbsim.gradients.splits import Split
from mbsim.gradients.training import mini_batches, records_at, start_of
from mbsim.methods import Method
from mbsim.simulation.run import DIVERGED
from mbsim.study.text import LENGTH, Windows
from mbsim.study.torch_memory import per_example

__all__ = ["OPTIMIZERS", "Trained", "Transformer", "one_thread", "train"]

# Those of PyTorch, with its own values for what is not said.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "AdamW": torch.optim.AdamW,
}
_HIDDEN = 64


class Block(nn.Module):  # type: ignore[misc]  # Any where PyTorch is not installed
    """Causal attention and a network, each after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.parts = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, L, width]`` to the same."""
        parts = self.parts(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.feed(x)


class Transformer(nn.Module):  # type: ignore[misc]
    """Of `classes` characters, the next one at each of `length` places."""

    def __init__(
        self, classes: int, length: int, width: int = 32, heads: int = 2, blocks: int = 1
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(classes, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, L, classes]`` of codes ``[n, L]``."""
        places = torch.arange(x.shape[1]).repeat(len(x), 1)
        return self.head(self.blocks(self.words(x) + self.places(places)))


@contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """PyTorch with one thread, which gives the same bits everywhere, and seeded; put back after."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


class Trained(NamedTuple):
    """What is recorded along one training; as :class:`mbsim.gradients.training.Training`.

    Attributes:
        steps: ``[R]``.
        validation_loss, validation_accuracy, test_loss, test_accuracy: ``[1, R]``; NaN from where
            the loss is no longer finite, or 1e6 times that of guessing.
    """

    steps: Integers
    validation_loss: Array
    validation_accuracy: Array
    test_loss: Array
    test_accuracy: Array


def train(
    data: Split | Windows,
    method: Method,
    *,
    optimizer: str,
    step_size: float,
    steps: int,
    record_every: int,
    rng: SeedSequence,
    batch_size: int = 64,
) -> Trained:
    """Train a network on a table, or a transformer on text.

    The start depends on `rng` alone, and so do mini-batches: those, and the network's start, are
    those of :func:`mbsim.gradients.training.train`.

    Args:
        data: a split of a table, or windows of text.
        method: which b, and the rule.
        optimizer: one of ``OPTIMIZERS``.
        step_size: its learning rate.
        steps: T.
        record_every: steps between records; there is one at the end too.
        rng: the seed.
        batch_size: B.
    """
    with one_thread(int(stream(rng, "torch").integers(2**32))):
        model = _model(data, rng)
        numbers = next(model.parameters()).dtype if isinstance(data, Split) else torch.long
        x, y = torch.tensor(data.train_inputs, dtype=numbers), torch.tensor(data.train_labels)
        held = [
            (torch.tensor(inputs, dtype=numbers), torch.tensor(labels))
            for inputs, labels in (
                (data.validation_inputs, data.validation_labels),
                (data.test_inputs, data.test_labels),
            )
        ]
        mover = OPTIMIZERS[optimizer](model.parameters(), lr=step_size)
        stops = records_at(record_every, steps)
        records = np.full((4, 1, len(stops)), np.nan)
        batches = mini_batches(len(y), batch_size, steps, rng, 0)
        size = batch_size // (m := method.micro_batches(batch_size))
        plain = isinstance(method.rule, NoClipping) or (m == 1 and method.rule == SmallestNorm())
        for step, rows in enumerate(torch.tensor(batches), start=1):
            losses = per_example(model(x[rows]), y[rows])
            if not losses.max() <= DIVERGED * np.log(data.classes):
                break
            mover.zero_grad()
            if plain:  # every factor is 1
                losses.mean().backward()
            else:
                clipped_backward(losses, model, size, rule=method.rule)
            mover.step()
            if step in stops:
                records[:, 0, stops.index(step)] = [v for one in held for v in _score(model, *one)]
    return Trained(np.array(stops), *records)


def _model(data: Split | Windows, rng: SeedSequence) -> Any:
    if isinstance(data, Windows):
        return Transformer(data.classes, LENGTH)
    dim = data.train_inputs.shape[1]
    model = nn.Sequential(
        nn.Linear(dim, _HIDDEN, bias=False), nn.Tanh(), nn.Linear(_HIDDEN, data.classes)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(start_of(_HIDDEN, dim, rng, 0)))
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
    return model


def _score(model: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """The mean loss, and the share of labels that have the largest logit."""
    with torch.no_grad():
        output = model(x)
        hits = (output.argmax(-1) == y).double().mean()
        return float(per_example(output, y).mean()), float(hits)
