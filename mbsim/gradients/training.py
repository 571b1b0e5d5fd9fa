r"""Softmax regression, and a network of one tanh layer, trained with every rule and every b.

Per-example gradients are outer products in each layer: of what comes back to it, s_i, and what goes
in, v_i. So no gradient of an example is ever formed (the theory page, section 10): a micro-batch S
has Σ_{i∈S} s_i v_iᵀ / b in a layer, and the update is one more such sum. The steps are those of
:mod:`mbsim.compiled.softmax`, on which the estimator for scikit-learn rests too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike

from mbsim import plots, statistics
from mbsim._shared.arrays import Array, Integers, Mask, one_blas_thread
from mbsim._shared.progress import progress
from mbsim._shared.seeds import child, seed_sequence
from mbsim._shared.values import value
from mbsim.clipping import Rule
from mbsim.compiled.twins import twin_of
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_finite,
    check_integer,
    check_number,
    shown,
)
from mbsim.gradients.splits import Split
from mbsim.methods import Method, check_method
from mbsim.simulation.run import DIVERGED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RECORDED = ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss")

__all__ = ["Seen", "Training", "look_at", "per_example_gradients", "train"]


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
    def diverged(self) -> Mask:
        """Bool ``[S, *C]``: which trainings diverged."""
        return self.diverged_at >= 0

    def plot(self, ax: Axes | None = None, *, quantity: str = "test_loss", **style: Any) -> Axes:
        """The mean over orders against the step, a line for each step size; 99 % intervals.

        Args:
            ax: where to draw; a new figure unless told.
            quantity: "validation_accuracy", "validation_loss", "test_accuracy" or "test_loss".
            **style: properties of the lines, such as ``color`` or ``label``.

        Raises:
            InvalidArgument: for another quantity.
        """
        if quantity not in _RECORDED:
            raise InvalidArgument(
                f"quantity={shown(quantity)} must be one of {', '.join(_RECORDED)}"
            )
        orders, records = len(self.weights), self.steps.size
        values = getattr(self, quantity).reshape(orders, -1, records)
        sure = f"mean of {orders} orders, 99 % interval" if orders > 1 else "one order, no interval"
        with plots.on(ax) as axes:
            for eta, rows in zip(self.step_size.ravel(), values.swapaxes(0, 1), strict=True):
                mean, interval = rows.mean(axis=0), None
                if orders > 1:
                    reach = statistics.t_quantile(orders - 1, 0.005) * rows.std(axis=0, ddof=1)
                    interval = mean - reach / orders**0.5, mean + reach / orders**0.5
                name = str(self.method)
                name += f", step size {eta:g}" if self.step_size.size > 1 else ""
                name += ", diverged" if np.isnan(mean).any() else ""
                plots.curve(axes, self.steps, mean, interval, **{"label": name, **style})
            axes.set(xlabel="step t", ylabel=f"{quantity.replace('_', ' ')}\n{sure}")
            plots.name_lines(axes)
        return axes

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
    >>> from mbsim.gradients.splits import Contamination, split_of
    >>> x = np.random.default_rng(0).standard_normal((300, 4))
    >>> rows = np.split(np.arange(300), [200, 250])
    >>> data = split_of(x, x[:, 0] > 0, rows, Contamination("wrong labels", 0.1))
    >>> run = train(data, mbsim.SGD(), step_size=[0.5, 1.0], steps=30, rng=0)
    >>> run.test_accuracy.shape, bool((run.test_accuracy > 0.8).all())
    ((1, 2, 1), True)
    """
    if not isinstance(data, Split):
        raise InvalidArgument(f"data={shown(data)} must be a Split, such as split_of makes")
    batch_size = check_integer("batch_size", batch_size, minimum=1)
    size = batch_size // check_method(method).micro_batches(batch_size)
    step_size = check_array("step_size", step_size)
    check_finite("step_size", step_size)
    if step_size.min() <= 0:
        raise InvalidArgument(f"step_size={shown(float(step_size.min()))} must be above 0")
    steps = check_integer("steps", steps, minimum=1)
    records = records_at(steps if record_every is None else record_every, steps)
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
            batches = mini_batches(len(data.train_labels), batch_size, steps, seed, order)
            inner = start_of(model.hidden, model.dim, seed, order)
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
        from mbsim.compiled import softmax

        inner, width = start.copy(), self.hidden + 1 if self.hidden else self.dim
        outer = np.zeros((self.classes, width))
        inners = np.full((len(records), *inner.shape), np.nan)
        outers = np.full((len(records), *outer.shape), np.nan)
        moments = [np.zeros_like(layer) for layer in (inner, inner, outer, outer)]
        stops = np.array(records)
        if self.twin:
            failed = 1 + softmax.steps(
                *self.twin, self.by, inner, outer, *moments, self.inputs, self.labels, batches,
                self.size, step_size, self.decay, self.adam, stops, inners, outers,
            )  # fmt: skip
        else:
            given = (inner, outer, moments, batches, step_size, stops, inners, outers)
            failed = 1 + self._by_rule(*given)
        curves = self._scores(inners, outers)
        # At W = 0 every loss is log K. A comparison with NaN is false, so it is caught too.
        unsound = np.flatnonzero(~(curves[1] <= DIVERGED * np.log(self.classes)))
        if not unsound.size:
            return curves, outer, inner, -1
        curves[:, unsound[0] :] = np.nan
        outer[:], inner[:] = np.nan, np.nan
        seen = int(stops[unsound[0]])
        return curves, outer, inner, min(failed, seen) if failed else seen

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


def records_at(every: int | Sequence[int], steps: int) -> list[int]:
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


def start_of(hidden: int, dim: int, seed: SeedSequence, order: int) -> Array:
    """The weights of the hidden layer before the first step, ``[H, D]``."""
    draw = np.random.default_rng(child(seed, "start", order))
    return draw.standard_normal((hidden, dim)) / np.sqrt(dim)


def mini_batches(
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
