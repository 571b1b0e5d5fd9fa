r"""Softmax regression, and a network of one tanh layer, trained with every rule and every b.

Per-example gradients are outer products in each layer: of what comes back to it, s_i, and what goes
in, v_i. So no gradient of an example is ever formed (the theory page, section 10): a micro-batch S
has Σ_{i∈S} s_i v_iᵀ / b in a layer, and the update is one more such sum. The steps are those of
:mod:`mbsim.compiled.softmax`, on which the estimator for scikit-learn rests too.

Only training examples are ever contaminated: what is held out says what one wants to be good at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike, NDArray

from mbsim import plots, statistics
from mbsim._shared import tables
from mbsim._shared.arrays import one_blas_thread
from mbsim._shared.progress import progress
from mbsim._shared.seeds import child, seed_sequence
from mbsim._shared.values import set_field, value
from mbsim.clipping import Rule, SmallestNorm, check_rule_argument
from mbsim.compiled.twins import twin_of
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_divides,
    check_finite,
    check_integer,
    check_number,
    shown,
)
from mbsim.methods import Method, MicroBatchClipping, check_method
from mbsim.simulation.run import DIVERGED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BySize",
    "Contamination",
    "Seen",
    "Split",
    "Training",
    "Tuned",
    "by_micro_batch_size",
    "look_at",
    "per_example_gradients",
    "split_of",
    "splits_by",
    "train",
    "tuned",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_FAR = 5.0  # standard deviations of a feature that canaries and outlying inputs have
_PARTS = ("train", "validation", "test")
# Step sizes are looked for among these powers of two, and at so many records along training.
_LEAST, _MOST, _RECORDS = -14, 14, 15


# ------------------------------------------------------------------------------ data


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
    ) -> Flags:
        """Contaminate standardised inputs and labels, in place; which examples were touched."""
        draw = rng if isinstance(rng, Generator) else np.random.default_rng(rng)
        touched: Flags = draw.random(labels.size) < (self.share if self.kind != "none" else 0.0)
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
    touched: Flags
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


# ------------------------------------------------------------------------------ training


@value
class Training:
    """What became of a training, for every order of the examples and every step size tried.

    Arrays have the axes ``[S, *C, R]``: order, the axes of `step_size` (none for a number), record.

    Attributes:
        method, batch_size, step_size: as given; `step_size` as float64 ``[*C]``.
        steps: int64 ``[R]``, the steps after which accuracy and loss were recorded.
        validation_accuracy, test_accuracy: shares of examples whose largest logit is the label's.
        validation_loss, test_loss: mean of −log p_y, in nats.
        weights: the final W, float64 ``[S, *C, K, D]``; with hidden units ``[S, *C, K, H + 1]``.
        hidden_weights: the hidden layer's, ``[S, *C, H, D]``; H = 0 for softmax regression.
        diverged_at: int64 ``[S, *C]``: the step at which a training was found to have diverged
            (a micro-batch norm that is not finite; at a record, a loss that is not finite or 1e6
            times the starting loss), −1 if it never was. From there on its records, and its final
            weights, are NaN; it is never left out.
    """

    _: KW_ONLY
    method: Method
    batch_size: int
    step_size: Array
    steps: Integers
    validation_accuracy: Array
    validation_loss: Array
    test_accuracy: Array
    test_loss: Array
    weights: Array
    hidden_weights: Array
    diverged_at: Integers

    @property
    def diverged(self) -> Flags:
        """Bool ``[S, *C]``: which trainings diverged."""
        return self.diverged_at >= 0

    def __repr__(self) -> str:
        return (
            f"Training({self.method}, batch_size={self.batch_size}, {self.steps[-1]} steps, "
            f"{len(self.weights)} orders, {self.step_size.size} step sizes, "
            f"{int(self.diverged.sum())} diverged)"
        )


def train(
    data: Split,
    method: Method,
    *,
    step_size: ArrayLike,
    steps: int,
    batch_size: int = 64,
    hidden: int = 0,
    adam: bool = False,
    decay: float = 0.0,
    by: str = "norms",
    record_every: int | Sequence[int] | None = None,
    orders: int = 1,
    rng: int | SeedSequence | Generator,
) -> Training:
    """Train from W = 0 with a constant step size, in one or several orders of the examples.

    W ← W − η u with u = (1/m) Σ_j s_j X_j, the update of :func:`mbsim.clipping.update`. An epoch
    is a fresh shuffle of the training examples, cut into mini-batches of B; the few left over
    wait for the next epoch. The same `rng` gives the same mini-batches (and the same weights of the
    hidden layer at the start) for every method and step size, so that comparisons between them are
    paired; order i depends on `rng` and i alone.

    Args:
        data: the split.
        method: :class:`mbsim.SGD` or :class:`mbsim.MicroBatchClipping`.
        step_size: η > 0, a number or an array.
        steps: T ≥ 1, the number of updates.
        batch_size: B.
        hidden: H, the units of a hidden layer of tanh, with N(0, 1/D) at the start; 0: none.
        adam: whether u is handed to Adam (Kingma and Ba, 2015) in place of SGD's step.
        decay: λ of the weight decay, W ← W − η(u + λW).
        by: what the factors are made of: the "norms" of micro-batches, or their mean "losses"; or
            u is the "coordinate median" or "geometric median" of the X_j, and the rule counts for
            nothing.
        record_every: steps between records of accuracy and loss, or the steps themselves,
            ascending; only after the last if not given.
        orders: S, how many orders of the examples.
        rng: seed, SeedSequence or Generator.

    Returns:
        The :class:`Training`.

    Raises:
        InvalidArgument: for numbers outside their limits, a b that does not divide B, and a B
            larger than the training set.

    >>> import mbsim
    >>> x = np.random.default_rng(0).standard_normal((300, 4))
    >>> rows = np.split(np.arange(300), [200, 250])
    >>> data = split_of(x, x[:, 0] > 0, rows, Contamination("wrong labels", 0.1))
    >>> run = train(data, mbsim.SGD(), step_size=[0.5, 1.0], steps=30, rng=0)
    >>> run.test_accuracy.shape, bool((run.test_accuracy > 0.8).all())
    ((1, 2, 1), True)
    """
    if not isinstance(data, Split):
        raise InvalidArgument(f"data={shown(data)} must be a Split, such as split_of makes")
    size = batch_size // check_method(method).micro_batches(batch_size)
    step_size = check_array("step_size", step_size)
    check_finite("step_size", step_size)
    if step_size.min() <= 0:
        raise InvalidArgument(f"step_size={shown(float(step_size.min()))} must be above 0")
    steps = check_integer("steps", steps, minimum=1)
    records = _records(steps if record_every is None else record_every, steps)
    if batch_size > len(data.train_labels):
        raise InvalidArgument(
            f"batch_size={batch_size} must be at most the number of training examples, "
            f"{len(data.train_labels)}"
        )
    model = _Model(
        data,
        method.rule,
        size,
        check_integer("hidden", hidden, minimum=0),
        adam,
        check_number("decay", decay, minimum=0),
        by,
    )
    orders, seed = check_integer("orders", orders, minimum=1), seed_sequence(rng)
    runs = []
    with one_blas_thread(), progress(orders * step_size.size, f"training, {method}") as bar:
        for order in range(orders):
            batches = _mini_batches(len(data.train_labels), batch_size, steps, seed, order)
            start = np.random.default_rng(child(seed, "start", order))
            inner = start.standard_normal((model.hidden, model.dim)) / np.sqrt(model.dim)
            for eta in step_size.ravel():
                runs.append(model.run(inner, batches, float(eta), records))
                bar.update(len(runs))
    axes = (orders, *step_size.shape)
    curves, outer, inner, diverged_at = (np.array(list(part)) for part in zip(*runs, strict=True))
    curves = np.moveaxis(curves, 1, 0).reshape(4, *axes, len(records))
    return Training(
        method=method,
        batch_size=batch_size,
        step_size=step_size,
        steps=np.array(records),
        validation_accuracy=curves[0],
        validation_loss=curves[1],
        test_accuracy=curves[2],
        test_loss=curves[3],
        weights=outer.reshape(*axes, *outer.shape[1:]),
        hidden_weights=inner.reshape(*axes, *inner.shape[1:]),
        diverged_at=diverged_at.reshape(axes),
    )


class _Model:
    """What every training of one method on one split has in common."""

    def __init__(
        self, data: Split, rule: Rule, size: int, hidden: int, adam: bool, decay: float, by: str
    ) -> None:
        from mbsim.compiled import softmax

        if by not in softmax.BY:
            raise InvalidArgument(f"by={shown(by)} must be one of {', '.join(softmax.BY)}")
        self.rule, self.twin, self.size, self.hidden = rule, twin_of("rule", rule), size, hidden
        self.adam, self.decay, self.by = adam, decay, softmax.BY[by]
        # Compiled code takes arrays that are not locked.
        self.inputs, self.labels = data.train_inputs.copy(), data.train_labels.copy()
        self.dim, self.classes = self.inputs.shape[1], data.classes
        self.held = np.concatenate([data.validation_inputs, data.test_inputs])
        self.held_labels = np.concatenate([data.validation_labels, data.test_labels])
        self.cut = len(data.validation_labels)

    def run(
        self, start: Array, batches: Integers, step_size: float, records: list[int]
    ) -> tuple[Array, Array, Array, int]:
        """Records ``[4, R]``, the weights of both layers, and when it diverged."""
        inner, width = start.copy(), self.hidden + 1 if self.hidden else self.dim
        outer = np.zeros((self.classes, width))
        inners = np.full((len(records), *inner.shape), np.nan)
        outers = np.full((len(records), *outer.shape), np.nan)
        moments = [np.zeros_like(layer) for layer in (inner, inner, outer, outer)]
        stops = np.array(records)
        forward = self._by_compiled if self.twin else self._by_rule
        failed = forward(inner, outer, moments, batches, step_size, stops, inners, outers) + 1
        curves = self._scores(inners, outers)
        # At W = 0 every loss is log K. A comparison with NaN is false, so it is caught too.
        unsound = np.flatnonzero(~(curves[1] <= DIVERGED * np.log(self.classes)))
        if not unsound.size:
            return curves, outer, inner, -1
        curves[:, unsound[0] :] = np.nan
        outer[:], inner[:] = np.nan, np.nan
        seen = int(stops[unsound[0]])
        return curves, outer, inner, min(failed, seen) if failed else seen

    def _by_compiled(
        self,
        inner: Array,
        outer: Array,
        moments: list[Array],
        batches: Integers,
        step_size: float,
        stops: Integers,
        inners: Array,
        outers: Array,
    ) -> int:
        from mbsim.compiled import softmax

        assert self.twin is not None
        return int(
            softmax.steps(
                *self.twin, self.by, inner, outer, *moments, self.inputs, self.labels, batches,
                self.size, step_size, self.decay, self.adam, stops, inners, outers,
            )
        )  # fmt: skip

    def _by_rule(
        self,
        inner: Array,
        outer: Array,
        moments: list[Array],
        batches: Integers,
        step_size: float,
        stops: Integers,
        inners: Array,
        outers: Array,
    ) -> int:
        """The same with a rule of a user's own, which is not compiled."""
        from mbsim.compiled import softmax

        room = np.empty_like(inner), np.empty_like(outer)
        places = {int(stop): number for number, stop in enumerate(stops)}
        for step, rows in enumerate(batches):
            x, labels = self.inputs[rows], self.labels[rows]
            seen, between = _seen(inner, outer, x, labels, self.size)
            if not np.isfinite(seen.norms).all():
                return step
            look = seen.norms if self.by == softmax.BY["norms"] else seen.losses
            scales = np.asarray(self.rule.factors(look), np.float64) / len(rows)
            softmax.gather(self.size, x, between, seen.signals, scales, *room)
            time = step + 1 if self.adam else 0
            softmax.move(inner, room[0], step_size, self.decay, time, *moments[:2])
            softmax.move(outer, room[1], step_size, self.decay, time, *moments[2:])
            if step + 1 in places:
                inners[places[step + 1]], outers[places[step + 1]] = inner, outer
        return -1

    def _scores(self, inners: Array, outers: Array) -> Array:
        """Validation accuracy and loss, test accuracy and loss, ``[4, R]``; NaN of what is NaN."""
        with np.errstate(all="ignore"):  # divergence is an outcome
            if self.hidden:
                each = zip(inners, outers, strict=True)
                logits = np.array([outer @ _between(inner, self.held).T for inner, outer in each])
            else:  # one product for all
                flat = outers.reshape(-1, self.dim) @ self.held.T
                logits = flat.reshape(len(outers), self.classes, -1)
            top = logits.max(axis=1, keepdims=True)
            of_label = logits[:, self.held_labels, np.arange(self.held_labels.size)] - top[:, 0]
            hits = logits.argmax(axis=1) == self.held_labels
            logits -= top
            losses = np.log(np.exp(logits, out=logits).sum(axis=1)) - of_label
        parts = slice(None, self.cut), slice(self.cut, None)
        return np.array(
            [x.mean(axis=1) for part in parts for x in (hits[:, part], losses[:, part])]
        )


class Seen(NamedTuple):
    """What a step sees of examples at some weights.

    Attributes:
        norms: ‖X_j‖ of each micro-batch, ``[m]``; `losses`: their mean losses.
        signals: what comes back to the layers, ``[n, H + K]``: first to the hidden units; the last
            K are the residuals softmax(z) − onehot(y).
    """

    norms: Array
    losses: Array
    signals: Array


def look_at(
    weights: ArrayLike,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    hidden_weights: ArrayLike | None = None,
    size: int = 1,
) -> Seen:
    """Norms and losses of examples, or of micro-batches of `size` in their order.

    Args:
        weights: ``[K, D]``, such as one of :attr:`Training.weights`.
        inputs: ``[n, D]``.
        labels: ``[n]``, from 0 to K − 1.
        hidden_weights: ``[H, D]``, where there is a hidden layer.
        size: b.

    >>> look_at(np.zeros((2, 1)), [[1.0], [2.0]], [0, 1]).norms.round(3)
    array([0.707, 1.414])
    """
    x, outer = np.array(inputs, dtype=np.float64), np.array(weights, dtype=np.float64)
    hidden = np.empty((0, x.shape[1])) if hidden_weights is None else hidden_weights
    inner = np.array(hidden, dtype=np.float64)
    return _seen(inner, outer, x, np.array(labels, dtype=np.int64), size)[0]


def _seen(inner: Array, outer: Array, x: Array, labels: Integers, size: int) -> tuple[Seen, Array]:
    """What a step sees, and what comes in to the outer layer."""
    from mbsim.compiled import softmax

    n, m = len(x), -(-len(x) // size)
    between = np.empty((n, outer.shape[1])) if len(inner) else x
    found = Seen(np.empty(m), np.empty(m), np.empty((n, len(inner) + len(outer))))
    softmax.look(inner, outer, labels, size, x, between, found.signals, found.norms, found.losses)
    return found, between


def _between(inner: Array, inputs: Array) -> Array:
    """What comes in to the outer layer: the inputs, or the hidden units and a 1."""
    if not len(inner):
        return inputs
    return np.column_stack([np.tanh(inputs @ inner.T), np.ones(len(inputs))])


def per_example_gradients(
    weights: ArrayLike,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    hidden_weights: ArrayLike | None = None,
) -> Array:
    """The gradients of −log p_y, one for each example; arguments are those of :func:`look_at`.

    Returns:
        float64 ``[n, K·D]``; with a hidden layer ``[n, H·D + K·(H + 1)]``, its own first.

    >>> per_example_gradients(np.zeros((2, 1)), [[1.0], [2.0]], [0, 1])
    array([[-0.5,  0.5],
           [ 1. , -1. ]])
    """
    x = np.asarray(inputs, dtype=np.float64)
    signals = look_at(weights, x, labels, hidden_weights=hidden_weights).signals
    inner = np.empty((0, x.shape[1])) if hidden_weights is None else np.asarray(hidden_weights)
    layers = ((signals[:, : len(inner)], x), (signals[:, len(inner) :], _between(inner, x)))
    return np.column_stack(
        [(s[:, :, None] * v[:, None]).reshape(len(x), -1) for s, v in layers if s.shape[1]]
    )


def _records(every: int | Sequence[int], steps: int) -> list[int]:
    """The steps after which there is a record; the last is one."""
    if isinstance(every, Sequence) and not isinstance(every, str):
        listed = [check_integer("record_every", step, minimum=1) for step in every]
        if listed != sorted({step for step in listed if step <= steps}):
            raise InvalidArgument(
                f"record_every={shown(every)} must ascend, and end at most at steps={steps}"
            )
    else:
        listed = list(range(check_integer("record_every", every, minimum=1), steps + 1, every))
    return sorted({*listed, steps})


def _mini_batches(
    examples: int, batch_size: int, steps: int, seed: SeedSequence, order: int
) -> Integers:
    """The rows of one mini-batch after another, ``[steps, B]``."""
    stream = np.random.default_rng(child(child(seed, int.from_bytes(b"order")), order))
    each = examples // batch_size
    epochs = [
        stream.permutation(examples)[: each * batch_size].reshape(each, batch_size)
        for _ in range(-(-steps // each))
    ]
    return np.concatenate(epochs)[:steps]


# ------------------------------------------------------------------------------ tuning


class Tuned(NamedTuple):
    """One method at the step size, and the stopping time, with the least validation loss.

    Attributes:
        step_size, stop: η, and after how many steps.
        validation_loss, test_loss, test_accuracy: there.
        end: validation loss, test loss and test accuracy after all steps, at the step size tried
            that is best for that.
        steps: int64 ``[R]``; `curve`: the test loss at `step_size` after so many steps.
    """

    step_size: float
    stop: int
    validation_loss: float
    test_loss: float
    test_accuracy: float
    end: tuple[float, float, float]
    steps: Integers
    curve: Array


def tuned(
    data: Split,
    method: Method,
    *,
    steps: int,
    start: float = 1.0,
    rng: int | SeedSequence,
    **options: Any,
) -> Tuned:
    """Train with the step size and the stopping time tuned on the validation examples.

    The step size is a power of two. Beginning at `start` it goes downhill by factors of four, and
    in the end by two. Nothing reported has seen the test examples.

    Args:
        data: the split.
        method: as for :func:`train`.
        steps: the most steps; there are 15 records.
        start: a step size to begin at.
        rng: seed or SeedSequence.
        **options: others of :func:`train`.

    >>> import mbsim
    >>> x = np.random.default_rng(0).standard_normal((300, 4))
    >>> data = split_of(x, x[:, 0] > 0, np.split(np.arange(300), [200, 250]))
    >>> found = tuned(data, mbsim.SGD(), steps=60, rng=0)
    >>> found.test_accuracy > 0.9, found.stop <= 60
    (True, True)
    """
    every = max(1, steps // _RECORDS)
    tried: dict[int, Training] = {}

    def loss(k: int) -> float:
        if k not in tried:
            tried[k] = train(
                data, method, step_size=2.0**k, steps=steps, record_every=every, rng=rng, **options
            )
        return float(np.nan_to_num(tried[k].validation_loss, nan=np.inf).min())

    at = int(np.clip(np.rint(np.log2(start)), _LEAST, _MOST))
    for stride in (2, 1):
        while True:
            near = [k for k in (at, at - stride, at + stride) if _LEAST <= k <= _MOST]
            best = min(near, key=loss)
            if best == at:
                break
            at = best
    chosen = tried[at]
    stop = int(np.nan_to_num(chosen.validation_loss[0], nan=np.inf).argmin())
    last = min(tried, key=lambda k: (np.nan_to_num(tried[k].validation_loss[0, -1], nan=np.inf), k))
    return Tuned(
        2.0**at,
        int(chosen.steps[stop]),
        *_at(chosen, stop),
        _at(tried[last], -1),
        chosen.steps,
        chosen.test_loss[0],
    )


def _at(run: Training, record: int) -> tuple[float, float, float]:
    found = (run.validation_loss, run.test_loss, run.test_accuracy)
    one, two, three = (float(values[0, record]) for values in found)
    return one, two, three


@value
class BySize:
    """Held-out loss and accuracy for each micro-batch size, each tuned on its validation examples.

    Every split is a complete experiment: nothing that it reports has seen its test examples.

    Attributes:
        sizes: int64 ``[b]``, the micro-batch sizes.
        test_loss, test_accuracy: float64 ``[b, S]``, of every split.
        step_size, stop: ``[b, S]``: the step size taken, and after how many steps.
        rule, batch_size: as given.
    """

    _: KW_ONLY
    sizes: Integers
    test_loss: Array
    test_accuracy: Array
    step_size: Array
    stop: Integers
    rule: Rule
    batch_size: int

    @property
    def best(self) -> int:
        """The b with the least mean log of the test loss."""
        return int(self.sizes[np.log(self.test_loss).mean(axis=1).argmin()])

    def difference(self, size: int, other: int, what: str = "test_loss") -> Array:
        """What is measured with micro-batches of `size` minus that of `other`, split by split.

        Returns:
            Float64 ``[S]``: same examples, same mini-batches in both.
        """
        values = getattr(self, what)
        return values[self._row(size)] - values[self._row(other)]

    def plot(self, ax: Axes | None = None, what: str = "test_loss", **style: Any) -> Axes:
        """The mean over splits against b, with its 99 % interval where there are several.

        Args:
            ax: where to draw; a new figure unless told.
            what: "test_loss" or "test_accuracy".
            **style: properties of the line, such as ``color`` or ``label``.
        """
        values = getattr(self, what)
        interval, sure = None, "one split: no interval"
        if values.shape[1] > 1:
            found = [statistics.mean(row, false_positive_rate=0.01) for row in values]
            interval, sure = ([x.low for x in found], [x.high for x in found]), "99 % interval"
        with plots.on(ax) as axes:
            plots.curve(
                axes,
                self.sizes,
                values.mean(axis=1),
                interval,
                **{"label": str(self.rule), **style},
            )
            plots.sizes_axis(axes, self.sizes.tolist())
            axes.set(ylabel=f"{what.replace('_', ' ')}; {sure}")
            plots.name_lines(axes)
        return axes

    def _row(self, size: int) -> int:
        found = np.flatnonzero(self.sizes == size)
        if not len(found):
            listed = ", ".join(map(str, self.sizes))
            raise InvalidArgument(f"size={shown(size)} must be one of the sizes tried: {listed}")
        return int(found[0])

    def __repr__(self) -> str:
        splits = self.test_loss.shape[1]
        title = f"BySize({splits} splits, {self.rule}, batch_size={self.batch_size})"
        rows = [("b", "test loss ± standard error", "test accuracy", "median step size")]
        for size, loss, accuracy, steps in zip(
            self.sizes, self.test_loss, self.test_accuracy, self.step_size, strict=True
        ):
            error = loss.std(ddof=1) / np.sqrt(splits) if splits > 1 else np.nan
            text = f"{loss.mean():.4f} ± {error:.4f}"
            rows.append((str(size), text, f"{accuracy.mean():.4f}", f"{np.median(steps):g}"))
        return "\n".join([title, *tables.as_text(rows, align="><>>", least=(5,), gap="   ")])


def by_micro_batch_size(
    splits: Split | Sequence[Split],
    sizes: ArrayLike,
    *,
    steps: int,
    rule: Rule | None = None,
    batch_size: int = 64,
    rng: int | SeedSequence | Generator,
    **options: Any,
) -> BySize:
    """Held-out loss and accuracy for each micro-batch size, step size and stopping time tuned.

    Every b sees the same mini-batches. With the smallest-norm rule, b = B is SGD.

    Args:
        splits: one split or several.
        sizes: the micro-batch sizes b, divisors of B, ascending.
        steps: T ≥ 1, the most updates.
        rule: the clipping rule; the smallest norm (Algorithm 1 of [Wang2024]) unless told.
        batch_size: B.
        rng: seed, SeedSequence or Generator.
        **options: of :func:`train`, such as ``hidden=64``.

    Returns:
        The :class:`BySize`.

    Raises:
        InvalidArgument: as :func:`train`, and for sizes that do not ascend.

    >>> x = np.random.default_rng(0).standard_normal((300, 4))
    >>> data = split_of(x, x[:, 0] > 0, np.split(np.arange(300), [200, 250]))
    >>> by_micro_batch_size(data, [8, 64], steps=30, rng=0).difference(8, 64).shape
    (1,)
    """
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    listed = np.asarray(sizes).ravel().tolist()
    if not listed or listed != sorted(set(listed)):
        raise InvalidArgument(f"sizes={shown(listed)} must ascend and have at least 1")
    for size in listed:
        check_divides(size, batch_size)
    seed = seed_sequence(rng)  # once, so that a Generator too gives every b the same mini-batches
    several = [splits] if isinstance(splits, Split) else list(splits)
    found: list[list[Tuned]] = []
    with progress(len(listed) * len(several), "training") as bar:
        for size in listed:
            method = MicroBatchClipping(size, rule=rule)
            found.append([])
            for number, split in enumerate(several):
                bar.update((len(found) - 1) * len(several) + number, f"training, b = {size}")
                start = found[-2][number].step_size if len(found) > 1 else 1.0
                one = child(seed, number)
                found[-1].append(
                    tuned(split, method, steps=steps, start=start, batch_size=batch_size, rng=one,
                          **options)
                )  # fmt: skip

    def all_of(name: str) -> NDArray[Any]:
        return np.array([[getattr(one, name) for one in row] for row in found])

    return BySize(
        sizes=np.array(listed),
        test_loss=all_of("test_loss"),
        test_accuracy=all_of("test_accuracy"),
        step_size=all_of("step_size"),
        stop=all_of("stop"),
        rule=rule,
        batch_size=batch_size,
    )
