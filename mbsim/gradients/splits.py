"""Splits of labelled examples for training, contaminated or not.

Only training examples are ever contaminated: what is held out says what one wants to be good at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike

from mbsim._shared.arrays import Array, Integers, Mask
from mbsim._shared.seeds import child, seed_sequence
from mbsim._shared.values import set_field, value
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_finite,
    check_integer,
    check_number,
    shown,
)

__all__ = ["Contamination", "Split", "split_of", "splits_by"]


_FAR = 5.0  # standard deviations of a feature that canaries and outlying inputs have
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Contamination:
    """What is wrong with a share of the training examples, each at random.

    Args:
        kind: "none"; "wrong labels": another label, uniform over the others; "outlying inputs":
            normal noise of five standard deviations is added to every feature; "canaries", the
            paper's surrogate of draggers: such noise in place of the features, and a random label.
        share: the probability of each example, in [0, 1).

    >>> inputs, labels = np.zeros((1000, 2)), np.zeros(1000, dtype=np.int64)
    >>> touched = Contamination("wrong labels", 0.1).apply(inputs, labels, 3, rng=0)
    >>> int(touched.sum()), bool((labels[touched] > 0).all()), str(Contamination("canaries", 0.1))
    (89, True, '10 % canaries')
    """

    kind: str = "none"
    share: float = 0.0

    def __post_init__(self) -> None:
        known = ("none", "wrong labels", "outlying inputs", "canaries")
        if self.kind not in known:
            raise InvalidArgument(f"kind={shown(self.kind)} must be one of {', '.join(known)}")
        set_field(self, "share", check_number("share", self.share, minimum=0, below=1))

    def apply(
        self,
        inputs: Array,
        labels: Integers,
        classes: int,
        rng: int | SeedSequence | Generator,
    ) -> Mask:
        """Contaminate standardised inputs and labels, in place; which examples were touched."""
        draw = rng if isinstance(rng, Generator) else np.random.default_rng(rng)
        touched: Mask = draw.random(labels.size) < (self.share if self.kind != "none" else 0.0)
        if self.kind in ("none", "wrong labels"):
            other = draw.integers(1, classes, labels.size)
            labels[touched] = ((labels + other) % classes)[touched]
            return touched
        noise = _FAR * draw.standard_normal(inputs.shape)[touched]
        if self.kind == "canaries":
            inputs[touched], labels[touched] = noise, draw.integers(classes, size=touched.sum())
        else:
            inputs[touched] += noise
        return touched

    def __str__(self) -> str:
        return "clean" if not self.share else f"{100 * self.share:g} % {self.kind}"


@value
class Split:
    """Training, validation and test examples of one split of a data set.

    Args:
        train_inputs: float64 ``[N, D]``; the last column is 1 (the bias).
        train_labels: integers ``[N]`` from 0 to ``classes`` − 1.
        touched: bool ``[N]``: which training examples are contaminated.
        validation_inputs, validation_labels: ``[V, D]`` and ``[V]``.
        test_inputs, test_labels: likewise.
        classes: the number of classes K.
    """

    _: KW_ONLY
    train_inputs: Array
    train_labels: Integers
    touched: Mask
    validation_inputs: Array
    validation_labels: Integers
    test_inputs: Array
    test_labels: Integers
    classes: int

    def __post_init__(self) -> None:
        set_field(self, "classes", check_integer("classes", self.classes, minimum=2))
        for part in _PARTS:
            inputs = check_array(f"{part}_inputs", getattr(self, f"{part}_inputs"), ndim=2)
            check_finite(f"{part}_inputs", inputs)
            set_field(self, f"{part}_inputs", inputs)
            self._check_same(f"{part}_inputs", inputs.shape[1:], self.train_inputs.shape[1:])
            labels = check_array(f"{part}_labels", getattr(self, f"{part}_labels"))
            self._check_same(f"{part}_labels", labels.shape, inputs.shape[:1])
            if not np.isin(labels, range(self.classes)).all():
                raise InvalidArgument(
                    f"{part}_labels must be integers from 0 to classes - 1 = {self.classes - 1}"
                )
            set_field(self, f"{part}_labels", labels.astype(np.int64))
        touched = np.asarray(self.touched, dtype=bool)
        self._check_same("touched", touched.shape, self.train_labels.shape)
        set_field(self, "touched", touched)

    @staticmethod
    def _check_same(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            raise InvalidArgument(f"{name} has axes of length {shape}; they must be {wanted}")

    def keep(self, chosen: ArrayLike) -> Split:
        """The same with some of the training examples alone, such as ``~split.touched``."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "_"}
        some = np.asarray(chosen, dtype=bool)
        for name in ("train_inputs", "train_labels", "touched"):
            fields[name] = fields[name][some]
        return Split(**fields)

    def __repr__(self) -> str:
        train, dim = self.train_inputs.shape
        return (
            f"Split({train} training examples, {int(self.touched.sum())} of them contaminated; "
            f"{len(self.validation_labels)} validation and {len(self.test_labels)} test examples; "
            f"{dim} inputs, {self.classes} classes)"
        )


def split_of(
    inputs: ArrayLike,
    labels: ArrayLike,
    rows: Sequence[ArrayLike],
    contamination: Contamination | None = None,
    *,
    rng: int | SeedSequence | Generator = 0,
    held_out: bool = False,
) -> Split:
    """One split: standardised, contaminated, and with a column of ones.

    Features have mean 0 and variance 1 over the training part before it is contaminated; those that
    are constant there are 0.

    Args:
        inputs: ``[N, D]``.
        labels: ``[N]``, of any kind; at least two classes.
        rows: the indices of the training, validation and test examples.
        contamination: of the training examples; None for none.
        rng: what is drawn for it.
        held_out: whether validation and test examples are contaminated too: for a control.

    Raises:
        InvalidArgument: for labels of one class, and what :class:`Split` says.

    >>> x, y = np.arange(12.0).reshape(6, 2), [0, 1, 0, 1, 0, 1]
    >>> split_of(x, y, ([0, 1], [2, 3], [4, 5]))
    Split(2 training examples, 0 of them contaminated; 2 validation and 2 test examples; 3 inputs, \
2 classes)
    """
    x, given = check_array("inputs", inputs, ndim=2), np.asarray(labels)
    names, codes = np.unique(given, return_inverse=True)
    if names.size < 2:
        raise InvalidArgument("labels must be of at least two classes, and are of one")
    train = np.asarray(rows[0])
    centre, spread = x[train].mean(axis=0), x[train].std(axis=0)
    constant = spread <= 1e-9 * np.abs(centre)
    x = np.where(constant, 0.0, (x - centre) / np.where(constant, 1.0, spread))
    draw = rng if isinstance(rng, Generator) else np.random.default_rng(rng)
    what = contamination or Contamination()
    parts: dict[str, Any] = {}
    for part, where in zip(_PARTS, rows, strict=True):
        some, said = x[np.asarray(where)], codes[np.asarray(where)].astype(np.int64)
        if part == "train" or held_out:
            touched = what.apply(some, said, names.size, draw)
            parts.setdefault("touched", touched)
        parts[f"{part}_inputs"] = np.column_stack([some, np.ones(len(some))])
        parts[f"{part}_labels"] = said
    return Split(**parts, classes=names.size)


def splits_by(
    splitter: Any,
    inputs: ArrayLike,
    labels: ArrayLike,
    contamination: Contamination | None = None,
    *,
    rng: int | SeedSequence | Generator = 0,
    held_out: bool = False,
) -> Iterator[Split]:
    """The splits of a splitter of scikit-learn, such as ``StratifiedShuffleSplit(10)``.

    What it holds out is for testing; a third of the rest, at random, is for validation.

    Args:
        splitter: an object with ``split(inputs, labels)``, as scikit-learn's have.
        inputs: as for :func:`split_of`.
        labels: likewise.
        contamination: likewise.
        rng: the seed of what is drawn beside. Split i depends on it and i alone.
        held_out: as for :func:`split_of`.

    Raises:
        InvalidArgument: for more splits than examples, and as :func:`split_of`.

    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import StratifiedShuffleSplit
    >>> x, y = load_wine(return_X_y=True)
    >>> wrong = Contamination("wrong labels", 0.1)
    >>> for split in splits_by(StratifiedShuffleSplit(2, random_state=0), x, y, wrong):
    ...     print(len(split.train_labels), len(split.validation_labels), len(split.test_labels))
    107 53 18
    107 53 18
    """
    x, y, seed = check_array("inputs", inputs, ndim=2), np.asarray(labels), seed_sequence(rng)
    if (count := splitter.get_n_splits(x, y)) > len(x):
        raise InvalidArgument(
            f"splitter has {count} splits and must have at most one for each of {len(x)} examples"
        )
    if np.unique(y).size < 2:  # before scikit-learn says so in its own words
        raise InvalidArgument("labels must be of at least two classes, and are of one")
    for number, (rest, test) in enumerate(splitter.split(x, y)):
        draw = np.random.default_rng(child(seed, "split", number))
        order = draw.permutation(rest)
        rows = (order[len(order) // 3 :], order[: len(order) // 3], test)
        yield split_of(x, y, rows, contamination, rng=draw, held_out=held_out)
