"""Text that ships with Python, cut into windows: what a character-level transformer is tried on.

It is the documentation that ``help()`` shows, in lower case; other Python versions have other text,
and so other numbers. An example is a window of characters, and its labels are those that follow.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import ArrayLike

from mbsim._shared.arrays import Integers, Mask
from mbsim._shared.seeds import stream
from mbsim.gradients.splits import Contamination

__all__ = ["LENGTH", "Windows", "characters", "windows"]

LENGTH = 16
_PARTS = {"train": 2048, "validation": 512, "test": 512}


class Windows(NamedTuple):
    """Training, validation and test examples, named as those of a split of a table.

    Attributes:
        train_inputs, train_labels: codes of characters ``[N, LENGTH]``, and of those that follow.
        touched: bool ``[N]``: which are contaminated.
        validation_inputs, validation_labels, test_inputs, test_labels: likewise.
        classes: how many characters there are.
    """

    train_inputs: Integers
    train_labels: Integers
    touched: Mask
    validation_inputs: Integers
    validation_labels: Integers
    test_inputs: Integers
    test_labels: Integers
    classes: int

    def keep(self, chosen: ArrayLike) -> Windows:
        """The same with some of the training examples alone, such as ``~touched``."""
        some = np.asarray(chosen, dtype=bool)
        return self._replace(
            train_inputs=self.train_inputs[some],
            train_labels=self.train_labels[some],
            touched=self.touched[some],
        )


@lru_cache(maxsize=1)
def characters() -> Integers:
    """The text, as numbers from 0.

    >>> codes = characters()
    >>> len(codes) > 300_000, 40 < int(codes.max()) < 200
    (True, True)
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).lower()
    return np.unique([*text], return_inverse=True)[1].astype(np.int64)


def windows(contamination: Contamination, *, rng: SeedSequence, held_out: bool = False) -> Windows:
    """Windows drawn without overlap, the training part contaminated.

    A wrong label is here a window's: everything that follows is drawn anew, uniformly over the
    other characters. In an outlier what comes in is drawn so, in a canary both.

    Args:
        contamination: of the training examples.
        rng: the seed; which windows depends on it alone.
        held_out: whether what is held out is contaminated too.

    >>> some = windows(Contamination("wrong labels", 0.25), rng=SeedSequence(0))
    >>> some.train_inputs.shape, int(some.touched.sum())
    ((2048, 16), 522)
    """
    codes = characters()
    classes = int(codes.max()) + 1
    rows = codes[: (len(codes) - 1) // LENGTH * LENGTH].reshape(-1, LENGTH)
    after = codes[1 : rows.size + 1].reshape(-1, LENGTH)
    order = stream(rng, "windows").permutation(len(rows))
    ends = np.cumsum(list(_PARTS.values()))
    found: dict[str, Integers] = {}
    touched = np.zeros(0, dtype=bool)
    for part, chosen in zip(_PARTS, np.split(order[: ends[-1]], ends[:-1]), strict=True):
        inputs, labels = rows[chosen], after[chosen]
        if part == "train" or held_out:
            draw = stream(rng, part, str(contamination))
            bad = draw.random(len(chosen)) < contamination.share
            other = [(x + draw.integers(1, classes, x.shape)) % classes for x in (inputs, labels)]
            if contamination.kind in ("outlying inputs", "canaries"):
                inputs[bad] = other[0][bad]
            if contamination.kind in ("wrong labels", "canaries"):
                labels[bad] = other[1][bad]
            touched = bad if part == "train" else touched
        found |= {f"{part}_inputs": inputs, f"{part}_labels": labels}
    return Windows(**found, touched=touched, classes=classes)
