r"""Softmax regression on real images, trained with every clipping rule and micro-batch size.

The model has one weight vector w_k per class and the loss −log p_y with p = softmax(W x). Its
gradient for one example is an outer product,

.. math:: g_i = r_i x_i^\top, \qquad r_i = p_i - \mathrm{onehot}(y_i),

so that ⟨g_i, g_i'⟩ = ⟨r_i, r_i'⟩⟨x_i, x_i'⟩ (the theory page, section 10): the norm of a
micro-batch is a sum over its block of that Gram matrix, and the update Σ_i (s_{j(i)}/B) r_i x_iᵀ is
one matrix product. No per-example gradient is ever formed.

Draggers are played by *canaries*, as in the paper: training examples that are random images with
random labels. Everything is vectorised over *splits*: each has its own training, validation and
test images, canaries and order of mini-batches, and is an experiment of its own.

Source: canaries as a surrogate for draggers from [Wang2024]; the rest is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY
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
    "DraggerGeometry",
    "Splits",
    "Training",
    "TunedAccuracy",
    "accuracy_by_micro_batch_size",
    "digits_splits",
    "dragger_geometry",
    "per_example_gradients",
    "train",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_HELD_OUT = 450  # images of the 1797 for validation, and as many for testing: a quarter each
_BRIGHTEST = 16  # the digits' pixels are 0 to 16


@value
class Splits:
    """Training, validation and test examples of S independent splits of one data set.

    Args:
        train_inputs: float64 ``[S, N, D]``; the last column is 1 (the bias).
        train_labels: integers ``[S, N]`` from 0 to ``classes`` − 1.
        canary: bool ``[S, N]``: which training examples are canaries.
        validation_inputs, validation_labels: ``[S, V, D]`` and ``[S, V]``, without canaries.
        test_inputs, test_labels: likewise.
        classes: the number of classes K.
    """

    _: KW_ONLY
    train_inputs: Array
    train_labels: Integers
    canary: Flags
    validation_inputs: Array
    validation_labels: Integers
    test_inputs: Array
    test_labels: Integers
    classes: int

    def __post_init__(self) -> None:
        set_field(self, "classes", check_integer("classes", self.classes, minimum=2))
        for part in ("train", "validation", "test"):
            inputs = check_array(f"{part}_inputs", getattr(self, f"{part}_inputs"), ndim=3)
            check_finite(f"{part}_inputs", inputs)
            set_field(self, f"{part}_inputs", inputs)
            self._check_same(f"{part}_inputs", inputs.shape[::2], self.train_inputs.shape[::2])
            labels = check_array(f"{part}_labels", getattr(self, f"{part}_labels"))
            self._check_same(f"{part}_labels", labels.shape, inputs.shape[:2])
            if not np.isin(labels, range(self.classes)).all():
                raise InvalidArgument(
                    f"{part}_labels must be integers from 0 to classes - 1 = {self.classes - 1}"
                )
            set_field(self, f"{part}_labels", labels.astype(np.int64))
        canary = np.asarray(self.canary, dtype=bool)
        self._check_same("canary", canary.shape, self.train_labels.shape)
        set_field(self, "canary", canary)

    @staticmethod
    def _check_same(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            raise InvalidArgument(f"{name} has axes of length {shape}; they must be {wanted}")

    @property
    def count(self) -> int:
        """S, the number of splits."""
        return len(self.train_inputs)

    def __repr__(self) -> str:
        splits, train, dim = self.train_inputs.shape
        canaries = int(self.canary.sum()) // splits
        return (
            f"Splits({splits} splits; {train} training examples, {canaries} of them canaries; "
            f"{self.validation_labels.shape[1]} validation and {self.test_labels.shape[1]} test "
            f"examples; {dim} inputs, {self.classes} classes)"
        )


def digits_splits(
    splits: int = 20,
    *,
    canary_fraction: float = 0.09,
    canary_scale: float = 5.0,
    rng: int | SeedSequence | Generator,
) -> Splits:
    """Random splits of scikit-learn's digits (1797 images of 8 × 8), with canaries in training.

    Pixels are scaled to [0, 1] and a 1 is appended. Each split shuffles the images into 897 for
    training, 450 for validation and 450 for testing, and then adds canaries to the training
    images. A canary is a random image, every pixel uniform on [0, `canary_scale`], with a label
    uniform over the ten classes; its bias input is 1 like everybody's. At scale 1 it is as bright
    as a digit can be; "large" is a scale well above 1.

    Split i depends on `rng` and i alone: more splits leave the old ones as they are, and a
    `canary_fraction` of 0 gives the same images without the canaries.

    Splits are independent draws *given the 1797 images*, so the spread over them speaks about
    these images. For images not seen, splits overlap: Nadeau and Bengio (2003) multiply the
    variance of a mean over S splits by 1 + S·(test/training images).

    Args:
        splits: the number of splits S.
        canary_fraction: the share of canaries among the training examples, in [0, 1).
        canary_scale: the brightest pixel a canary can have; a digit's is 1.
        rng: seed, SeedSequence or Generator.

    Returns:
        The :class:`Splits`.

    Raises:
        InvalidArgument: for numbers outside these limits.
        ImportError: without scikit-learn.

    >>> digits_splits(3, rng=0)
    Splits(3 splits; 986 training examples, 89 of them canaries; 450 validation and 450 test \
examples; 65 inputs, 10 classes)
    """
    splits = check_integer("splits", splits, minimum=1)
    fraction = check_number("canary_fraction", canary_fraction, minimum=0, below=1)
    scale = check_number("canary_scale", canary_scale, above=0)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError(
            "digits_splits needs scikit-learn: pip install 'microbatch-clipping[data]'",
            name="sklearn",
        ) from None
    pixels, digits = load_digits(return_X_y=True)
    images = np.column_stack([pixels / _BRIGHTEST, np.ones(len(pixels))])
    clean = len(images) - 2 * _HELD_OUT
    canaries = round(clean * fraction / (1 - fraction))

    shuffles, brightness, labels = [], [], []
    for stream in _streams(rng, "data", splits):
        shuffles.append(stream.permutation(len(images)))
        brightness.append(stream.random((canaries, pixels.shape[1])))
        labels.append(stream.integers(10, size=canaries))
    train, validation, test = np.split(np.array(shuffles), [clean, clean + _HELD_OUT], axis=1)
    bias = np.ones((splits, canaries, 1))
    random_images = np.concatenate([scale * np.array(brightness), bias], axis=2)
    is_canary = np.arange(clean + canaries) >= clean
    return Splits(
        train_inputs=np.concatenate([images[train], random_images], axis=1),
        train_labels=np.concatenate([digits[train], np.array(labels, dtype=np.int64)], axis=1),
        canary=np.broadcast_to(is_canary, (splits, len(is_canary))),
        validation_inputs=images[validation],
        validation_labels=digits[validation],
        test_inputs=images[test],
        test_labels=digits[test],
        classes=10,
    )


@value
class Training:
    """What became of S trainings, for every step size tried.

    Arrays have the axes ``[S, *C, R]``: split, the axes of `step_size` (none for a single number),
    record.

    Attributes:
        method, batch_size, step_size: as given; `step_size` as float64 ``[*C]``.
        steps: int64 ``[R]``, the steps after which accuracy and loss were recorded.
        validation_accuracy, test_accuracy: shares of examples whose largest logit is the label's.
        validation_loss, test_loss: mean of −log p_y, in nats.
        weights: the final W, float64 ``[S, *C, K, D]``.
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
    diverged_at: Integers

    @property
    def diverged(self) -> Flags:
        """Bool ``[S, *C]``: which trainings diverged."""
        return self.diverged_at >= 0

    def __repr__(self) -> str:
        return (
            f"Training({self.method}, batch_size={self.batch_size}, {self.steps[-1]} steps, "
            f"{len(self.weights)} splits, {self.step_size.size} step sizes, "
            f"{int(self.diverged.sum())} diverged)"
        )


def train(
    data: Splits,
    method: Method,
    *,
    step_size: ArrayLike,
    steps: int,
    batch_size: int = 64,
    record_every: int | Sequence[int] | None = None,
    rng: int | SeedSequence | Generator,
) -> Training:
    """Train softmax regression from W = 0 with a constant step size, on every split at once.

    W ← W − η u with u = (1/m) Σ_j s_j X_j, the update of :func:`mbsim.clipping.update`. An epoch
    is a fresh shuffle of the training examples, cut into mini-batches of B; the few left over
    wait for the next epoch. The same `rng` gives the same mini-batches for every method and step
    size, so comparisons between them are paired; split i depends on `rng` and i alone.

    Args:
        data: the splits.
        method: :class:`mbsim.SGD` or :class:`mbsim.MicroBatchClipping`.
        step_size: η > 0, a number or an array; all step sizes share one pass over the data.
        steps: T ≥ 1, the number of updates.
        batch_size: B.
        record_every: steps between records of accuracy and loss (a record costs about as much as
            six steps), or the steps themselves, ascending; only after the last if not given.
        rng: seed, SeedSequence or Generator.

    Returns:
        The :class:`Training`.

    Raises:
        InvalidArgument: for numbers outside their limits, a b that does not divide B, and a B
            larger than the training set.

    >>> import mbsim
    >>> run = train(digits_splits(2, rng=0), mbsim.SGD(), step_size=[0.5, 1.0], steps=30, rng=0)
    >>> run.test_accuracy.shape, bool((run.test_accuracy > 0.6).all())
    ((2, 2, 1), True)
    """
    if not isinstance(data, Splits):
        raise InvalidArgument(f"data={shown(data)} must be Splits, such as digits_splits(rng=0)")
    rule, m = check_method(method).rule, method.micro_batches(batch_size)
    batch_size = check_integer("batch_size", batch_size, minimum=1)
    step_size = check_array("step_size", step_size)
    check_finite("step_size", step_size)
    if step_size.min() <= 0:
        raise InvalidArgument(f"step_size={shown(float(step_size.min()))} must be above 0")
    steps = check_integer("steps", steps, minimum=1)
    records = _records(steps if record_every is None else record_every, steps)
    splits, examples, dim = data.train_inputs.shape
    if batch_size > examples:
        raise InvalidArgument(
            f"batch_size={batch_size} must be at most the number of training examples, {examples}"
        )
    split, rates = np.arange(splits)[:, None], step_size.ravel()
    weights = np.zeros((splits, data.classes, rates.size, dim))
    diverged_at = np.full((splits, rates.size), -1)
    batches = _mini_batches(examples, batch_size, _streams(rng, "order", splits))
    scores = []
    with (
        one_blas_thread(),
        np.errstate(over="ignore", invalid="ignore"),  # divergence is an outcome, and recorded
        progress(steps, f"training, {method}") as bar,
    ):
        for step, batch in zip(range(1, steps + 1), batches, strict=False):
            inputs, labels = data.train_inputs[split, batch], data.train_labels[split, batch]
            finite = _step(weights, inputs, labels, rule=rule, micro_batches=m, rates=rates)
            diverged_at[~finite & (diverged_at < 0)] = step
            if step in records:
                scores.append(_record(data, weights, diverged_at, step))
            bar.update(step)
    weights.swapaxes(1, 2)[diverged_at >= 0] = np.nan
    axes = (splits, *step_size.shape)
    curves = np.moveaxis(np.array(scores), 0, -1).reshape(4, *axes, len(records))
    return Training(
        method=method,
        batch_size=batch_size,
        step_size=step_size,
        steps=np.array(records),
        validation_accuracy=curves[0],
        validation_loss=curves[1],
        test_accuracy=curves[2],
        test_loss=curves[3],
        weights=weights.swapaxes(1, 2).reshape(*axes, data.classes, dim),
        diverged_at=diverged_at.reshape(axes),
    )


def per_example_gradients(weights: ArrayLike, inputs: ArrayLike, labels: ArrayLike) -> Array:
    """The gradients of −log p_y at W, one for each example.

    Args:
        weights: W, ``[K, D]``, such as one of :attr:`Training.weights`.
        inputs: ``[N, D]``.
        labels: ``[N]``, from 0 to K − 1.

    Returns:
        float64 ``[N, K·D]``.

    >>> per_example_gradients(np.zeros((2, 1)), [[1.0], [2.0]], [0, 1])
    array([[-0.5,  0.5],
           [ 1. , -1. ]])
    """
    given = np.asarray(inputs, dtype=np.float64)
    w = np.asarray(weights, dtype=np.float64)[None, :, None]
    residuals = _residuals(w, given[None], np.asarray(labels)[None])[0, :, 0]
    found: Array = (residuals.T[:, :, None] * given[:, None]).reshape(len(given), -1)
    return found


def _records(every: int | Sequence[int], steps: int) -> list[int]:
    """The steps after which there is a record; the last is one."""
    if isinstance(every, Sequence) and not isinstance(every, str):
        listed = [check_integer("record_every", step, minimum=1) for step in every]
        if listed != sorted({step for step in listed if step <= steps}):
            raise InvalidArgument(
                f"record_every={shown(every)} must ascend and be at most steps={steps}"
            )
        return listed if listed[-1:] == [steps] else [*listed, steps]
    every = check_integer("record_every", every, minimum=1)
    return [*range(every, steps, every), steps]


# Inside, weights are [S, K, C, D] and residuals [S, K, C, B] (split, class, step size, input or
# example): classes and step sizes together are the rows of one matrix, so that logits, norms and
# updates are one matrix product per split each, and sums over classes run along contiguous memory.
#
# What limits the speed: with B = 64, D = 65, K = 10 and 8 step sizes a split's step takes 115 µs
# (one core, AVX-512). Its four products are 2.5 MFLOP: 68 µs of the 115 as called, 31 µs at the
# best rate seen on that core (80 GFLOP/s). The other 47 µs are some ten passes over the residuals,
# 5,120 numbers, among them exp. So it is within 4 times of what the arithmetic alone allows, and
# the rest is memory traffic between NumPy calls, which only a fused kernel would save.
#
# What makes the results the same to the bit however many splits run together: every product is one
# BLAS call per split, of a shape that does not depend on S, on one thread; every sum runs within a
# split in a fixed order; every other operation is element by element.


def _step(
    weights: Array, inputs: Array, labels: Integers, *, rule: Rule, micro_batches: int, rates: Array
) -> Flags:
    """One update of all weights, in place; returns which had finite norms, bool ``[S, C]``."""
    batch_size = labels.shape[1]
    residuals = _residuals(weights, inputs, labels)
    norms = _micro_batch_norms(residuals, inputs, micro_batches)
    finite = np.asarray(np.isfinite(norms).all(axis=-1))
    # A rule's contract covers finite norms only. What has diverged stays NaN: 0 times NaN is NaN.
    factors = rule.factors(np.where(finite[..., None], norms, 0.0))
    per_example = np.repeat(factors, batch_size // micro_batches, axis=-1)
    residuals *= (per_example * (rates[:, None] / batch_size))[:, None]
    rows = _rows(weights)
    rows -= _rows(residuals) @ inputs
    return finite


def _logits(weights: Array, inputs: Array) -> Array:
    """W x, ``[S, K, C, ·]``."""
    products = _rows(weights) @ inputs.swapaxes(1, 2)
    return products.reshape(*weights.shape[:3], -1)


def _residuals(weights: Array, inputs: Array, labels: Integers) -> Array:
    """The residuals r = softmax(W x) − onehot(y), ``[S, K, C, B]``.

    The label's entry is −Σ of the others, not p_y − 1, which would lose its digits as p_y → 1:
    the smallest norm looks at exactly these examples.
    """
    p = _logits(weights, inputs)
    p -= p.max(axis=1, keepdims=True)
    np.exp(p, out=p)
    total = p.sum(axis=1, keepdims=True)
    label = (np.arange(len(p))[:, None], labels, slice(None), np.arange(labels.shape[1]))
    p[label] = 0.0
    p[label] = -p.sum(axis=1).swapaxes(1, 2)
    p /= total
    return p


def _micro_batch_norms(residuals: Array, inputs: Array, micro_batches: int) -> Array:
    """‖X_j‖ = (1/b) √(Σ_{i,i' in j} ⟨r_i, r_i'⟩⟨x_i, x_i'⟩), ``[S, C, m]``.

    Rounding can leave a sum of nearly 0 below it; the norm is then 0.
    """
    splits, _, candidates, batch_size = residuals.shape
    size = batch_size // micro_batches
    if size == 1:
        squares = np.einsum("sbd,sbd->sb", inputs, inputs)
        weighted = residuals * squares[:, None, None]
    else:
        gram = inputs @ inputs.swapaxes(1, 2)
        gram *= np.eye(micro_batches).repeat(size, axis=0).repeat(size, axis=1)  # same micro-batch
        weighted = (_rows(residuals) @ gram).reshape(residuals.shape)
    per_example = np.einsum("skcb,skcb->scb", residuals, weighted)
    sums = per_example.reshape(splits, candidates, micro_batches, size).sum(axis=-1)
    return np.sqrt(np.maximum(sums, 0.0)) / size


def _rows(array: Array) -> Array:
    """``[S, K, C, ·]`` as matrices of K·C rows, without a copy."""
    return array.reshape(array.shape[0], -1, array.shape[-1])


def _record(data: Splits, weights: Array, diverged_at: Integers, step: int) -> Array:
    """Validation accuracy and loss, test accuracy and loss, ``[4, S, C]``; notes divergence."""
    scores = np.array(
        [
            *_accuracy_and_loss(weights, data.validation_inputs, data.validation_labels),
            *_accuracy_and_loss(weights, data.test_inputs, data.test_labels),
        ]
    )
    # At W = 0 every loss is log K. A comparison with NaN is false, so this catches NaN as well.
    sound = scores[1] <= DIVERGED * np.log(data.classes)
    diverged_at[~sound & (diverged_at < 0)] = step
    return np.where(diverged_at < 0, scores, np.nan)


def _accuracy_and_loss(weights: Array, inputs: Array, labels: Integers) -> tuple[Array, Array]:
    logits = _logits(weights, inputs)
    hits = logits.argmax(axis=1) == labels[:, None]
    logits -= logits.max(axis=1, keepdims=True)
    of_label = np.take_along_axis(logits, labels[:, None, None], axis=1)[:, 0]
    losses = np.log(np.exp(logits).sum(axis=1)) - of_label
    return hits.mean(axis=-1), losses.mean(axis=-1)


def _mini_batches(examples: int, batch_size: int, streams: list[Generator]) -> Iterator[Integers]:
    """Indices of the training examples of one mini-batch after another, ``[S, B]``, for ever."""
    whole = examples - examples % batch_size
    while True:
        order = np.array([stream.permutation(examples) for stream in streams])
        for start in range(0, whole, batch_size):
            yield order[:, start : start + batch_size]


def _streams(rng: Any, purpose: str, splits: int) -> list[Generator]:
    """One generator per split, from the seed, the purpose and the number of the split alone."""
    root = child(seed_sequence(rng), int.from_bytes(purpose.encode()))
    return [np.random.default_rng(child(root, split)) for split in range(splits)]


@value
class TunedAccuracy:
    """Test accuracy for each micro-batch size, the step size tuned on validation images.

    In every split, and for every b, the step size with the best validation accuracy is taken (the
    smallest of those that tie), and its test accuracy is reported. So each split is a complete
    experiment: nothing that it reports has seen its test images, and nothing passes between
    splits, which share images. Test accuracies at other step sizes are not kept.

    Attributes:
        sizes: int64 ``[b]``, the micro-batch sizes.
        step_sizes: float64 ``[C]``, the grid, ascending.
        validation_accuracy: float64 ``[b, S, C]``; NaN where training diverged.
        chosen: int64 ``[b, S]``, the index in `step_sizes` of the step size taken.
        test_accuracy: float64 ``[b, S]`` at that step size.
        rule, batch_size, steps: as given.
    """

    _: KW_ONLY
    sizes: Integers
    step_sizes: Array
    validation_accuracy: Array
    chosen: Integers
    test_accuracy: Array
    rule: Rule
    batch_size: int
    steps: int

    @property
    def mean_validation_accuracy(self) -> Array:
        """Float64 ``[b, C]``: the validation curve, a diverged training counted as 0."""
        return np.nan_to_num(self.validation_accuracy, nan=0.0).mean(axis=1)

    @property
    def at_edge(self) -> Flags:
        """Bool ``[b]``: whether the mean validation curve is highest at an end of the grid.

        Then the best step size may lie outside it, and this b may be shown worse than it is.
        """
        best = self.mean_validation_accuracy.argmax(axis=1)
        return (best == 0) | (best == len(self.step_sizes) - 1)

    @property
    def edge_share(self) -> Array:
        """Float64 ``[b]``: the share of the splits that took a step size at an end of the grid."""
        ends = (self.chosen == 0) | (self.chosen == len(self.step_sizes) - 1)
        return ends.mean(axis=1)

    @property
    def warning(self) -> str:
        """What a reader must be told before the numbers; empty if there is nothing."""
        if not self.at_edge.any():
            return ""
        listed = ", ".join(str(size) for size in self.sizes[self.at_edge])
        return (
            f"best step size at an end of the grid {self.step_sizes[0]:g} to "
            f"{self.step_sizes[-1]:g} for b = {listed}: widen step_sizes"
        )

    def difference(self, size: int, other: int) -> Array:
        """Test accuracy with micro-batches of `size` minus that of `other`, split by split.

        Returns:
            Float64 ``[S]``: same images, same canaries, same mini-batches in both.
        """
        return self.test_accuracy[self._row(size)] - self.test_accuracy[self._row(other)]

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Mean test accuracy over b, with its 99 % interval over splits where there are several.

        Args:
            ax: where to draw; a new figure unless told.
            **style: properties of the line, such as ``color`` or ``label``.
        """
        means = self.test_accuracy.mean(axis=1)
        interval, sure = None, "one split: no interval"
        if self.test_accuracy.shape[1] > 1:
            found = [statistics.mean(row, false_positive_rate=0.01) for row in self.test_accuracy]
            interval, sure = ([x.low for x in found], [x.high for x in found]), "99 % interval"
        with plots.on(ax) as axes:
            look = {"label": str(self.rule), **style}
            plots.curve(axes, self.sizes, means, interval, **look)
            plots.sizes_axis(axes, self.sizes.tolist())
            axes.set(ylabel=f"test accuracy, share; {sure}", title=self.warning)
            plots.name_lines(axes)
        return axes

    def _row(self, size: int) -> int:
        found = np.flatnonzero(self.sizes == size)
        if not len(found):
            listed = ", ".join(map(str, self.sizes))
            raise InvalidArgument(f"size={shown(size)} must be one of the sizes tried: {listed}")
        return int(found[0])

    def __repr__(self) -> str:
        splits = self.test_accuracy.shape[1]
        title = (
            f"TunedAccuracy({splits} splits, {self.rule}, batch_size={self.batch_size}, "
            f"{self.steps} steps)"
        )
        rows = [("b", "test accuracy ± standard error", "median step size")]
        middle = np.median(self.step_sizes[self.chosen], axis=1)
        for size, accuracy, step_size in zip(self.sizes, self.test_accuracy, middle, strict=True):
            error = accuracy.std(ddof=1) / np.sqrt(splits) if splits > 1 else np.nan
            rows.append((str(size), f"{accuracy.mean():.4f} ± {error:.4f}", f"{step_size:g}"))
        lines = tables.as_text(rows, align="><>", least=(5,), gap="   ")
        return "\n".join([title, *lines, *filter(None, [self.warning])])


def accuracy_by_micro_batch_size(
    data: Splits,
    sizes: ArrayLike,
    step_sizes: ArrayLike,
    *,
    steps: int,
    rule: Rule | None = None,
    batch_size: int = 64,
    rng: int | SeedSequence | Generator,
) -> TunedAccuracy:
    """Test accuracy for each micro-batch size, with the step size tuned for each.

    Every b sees the same mini-batches. With the smallest-norm rule, b = B is SGD.

    Args:
        data: the splits.
        sizes: the micro-batch sizes b, divisors of B, ascending.
        step_sizes: the grid of step sizes, ascending, at least three. Make it wide enough for
            every b; :attr:`TunedAccuracy.warning` says when it was not.
        steps: T ≥ 1, the number of updates.
        rule: the clipping rule; the smallest norm (Algorithm 1 of [Wang2024]) unless told.
        batch_size: B.
        rng: seed, SeedSequence or Generator.

    Returns:
        The :class:`TunedAccuracy`.

    Raises:
        InvalidArgument: as :func:`train`, and for sizes or step sizes that do not ascend.

    >>> data = digits_splits(2, rng=0)
    >>> table = accuracy_by_micro_batch_size(data, [8, 64], [0.1, 1, 10], steps=30, rng=0)
    >>> table.test_accuracy.shape, table.difference(8, 64).shape
    ((2, 2), (2,))
    """
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    grid = check_array("step_sizes", step_sizes, ndim=1)
    listed = np.asarray(sizes).ravel().tolist()
    for name, values, least in (("sizes", listed, 1), ("step_sizes", grid.tolist(), 3)):
        if len(values) < least or values != sorted(set(values)):
            raise InvalidArgument(f"{name}={shown(values)} must ascend and have at least {least}")
    for size in listed:
        check_divides(size, batch_size)
    seed = seed_sequence(rng)  # once, so that a Generator too gives every b the same mini-batches
    runs = []
    with progress(len(listed), "training") as bar:
        for done, size in enumerate(listed):
            bar.update(done, f"training, b = {size}")
            method = MicroBatchClipping(size, rule=rule)
            runs.append(
                train(data, method, step_size=grid, steps=steps, batch_size=batch_size, rng=seed)
            )
    validation = np.array([run.validation_accuracy[..., -1] for run in runs])
    test = np.array([run.test_accuracy[..., -1] for run in runs])
    chosen = np.nan_to_num(validation, nan=-1.0).argmax(axis=-1)
    return TunedAccuracy(
        sizes=np.array(listed),
        step_sizes=grid,
        validation_accuracy=validation,
        chosen=chosen,
        test_accuracy=np.take_along_axis(test, chosen[..., None], axis=-1)[..., 0],
        rule=rule,
        batch_size=batch_size,
        steps=steps,
    )


class DraggerGeometry(NamedTuple):
    """How far some examples are draggers in the sense of assumption 4.4.

    Attributes:
        cosine_mean, cosine_sd: of the cosines between each dragger's gradient and the mean benign
            gradient; orthogonal draggers have 0 and 0.
        energy_in_span: the share of Σ‖dragger gradient‖² that lies in the span of the benign
            gradients; orthogonal draggers have 0. A random direction has a share of `span_rank`
            over the dimension of the space that all gradients live in.
        span_rank: the numerical rank of that span.
        norm_ratio: the paper's c, root-mean-square norm of the draggers' gradients over that of
            the benign ones.
    """

    cosine_mean: float
    cosine_sd: float
    energy_in_span: float
    span_rank: int
    norm_ratio: float


def dragger_geometry(gradients: ArrayLike, is_dragger: ArrayLike) -> DraggerGeometry:
    """Measure assumption 4.4 (the theory page, sections 2 and 10) on given gradients.

    Args:
        gradients: one gradient for each example, ``[N, d]``.
        is_dragger: bool ``[N]``: which examples are held to be draggers.

    Returns:
        The :class:`DraggerGeometry`.

    Raises:
        InvalidArgument: for gradients that are not finite, a mask of another length, and a mask
            without draggers or without others.

    >>> found = dragger_geometry([[1, 0, 0], [1, 1, 0], [0, 0, 3]], [False, False, True])
    >>> found.span_rank, round(found.norm_ratio**2, 12)
    (2, 6.0)
    """
    g = check_array("gradients", gradients, ndim=2)
    check_finite("gradients", g)
    mask = np.asarray(is_dragger, dtype=bool)
    if mask.shape != g.shape[:1] or not mask.any() or mask.all():
        raise InvalidArgument(
            f"is_dragger must have one entry for each of the {len(g)} gradients, True and False "
            "among them"
        )
    benign, draggers = g[~mask], g[mask]
    mean, lengths = benign.mean(axis=0), np.linalg.norm(draggers, axis=1)
    cosines = draggers @ mean / (lengths * np.linalg.norm(mean))
    _, spread, basis = np.linalg.svd(benign, full_matrices=False)
    # NumPy's rule for the numerical rank: what rounding alone could produce is not counted.
    basis = basis[spread > spread[0] * max(benign.shape) * np.finfo(np.float64).eps]
    share = np.square(draggers @ basis.T).sum() / np.square(lengths).sum()
    ratio = np.sqrt(np.square(lengths).mean() / np.square(benign).sum(axis=1).mean())
    return DraggerGeometry(
        float(cosines.mean()), float(cosines.std()), float(share), len(basis), float(ratio)
    )
