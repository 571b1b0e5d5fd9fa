"""Where random numbers come from: a caller's `rng`, and streams keyed by what they are for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import SFC64, Generator, SeedSequence
from numpy.typing import NDArray

from mbsim.errors import InvalidArgument, shown

__all__ = ["SFC64_STATE", "child", "seed_sequence", "states", "stream"]

# The state of an SFC64 generator as compiled code holds it.
SFC64_STATE = np.dtype([("a", "u8"), ("b", "u8"), ("c", "u8"), ("counter", "u8")])


def seed_sequence(rng: Any) -> SeedSequence:
    """The seed sequence that `rng` stands for; a Generator is advanced, the others are not."""
    if isinstance(rng, SeedSequence):
        return rng
    if isinstance(rng, Generator):
        return SeedSequence([int(word) for word in rng.integers(2**32, size=8)])
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0:
        return SeedSequence(int(rng))
    raise InvalidArgument(
        f"rng={shown(rng)} must be an integer of at least 0, a numpy SeedSequence or a numpy "
        "Generator"
    )


def child(seed: SeedSequence, *key: int | str) -> SeedSequence:
    """A seed of its own for each key, whatever else is drawn: numbers, or a word for a purpose.

    >>> child(SeedSequence(1), "noise", 3).spawn_key
    (110, 111, 105, 115, 101, 3)
    """
    words = [part.encode() if isinstance(part, str) else (part,) for part in key]
    own = (number for word in words for number in word)
    return SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *own))


def stream(seed: SeedSequence, *key: int | str) -> Generator:
    """The generator of :func:`child`: SFC64, the quickest of NumPy's."""
    return Generator(SFC64(child(seed, *key) if key else seed))


def states(rng: Generator, count: int) -> NDArray[Any]:
    """The states of independent streams for compiled code, from 192 random bits each.

    >>> states(np.random.default_rng(0), 3).shape
    (3,)
    """
    found = np.zeros(count, SFC64_STATE)
    found["a"], found["b"], found["c"] = rng.integers(2**64, size=(3, count), dtype=np.uint64)
    found["counter"] = 1
    return found
