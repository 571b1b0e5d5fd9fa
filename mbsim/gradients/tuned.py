"""Training with step size and stopping time tuned on validation examples, for every b."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike, NDArray

from mbsim import plots, statistics
from mbsim._shared import tables
from mbsim._shared.arrays import Array, Integers
from mbsim._shared.progress import progress
from mbsim._shared.seeds import child, seed_sequence
from mbsim._shared.values import value
from mbsim.clipping import Rule, SmallestNorm, check_rule_argument
from mbsim.errors import InvalidArgument, check_divides, shown
from mbsim.gradients.splits import Split
from mbsim.gradients.training import train
from mbsim.methods import Method, MicroBatchClipping

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BySize", "Tuned", "by_micro_batch_size", "tuned"]


# Step sizes are looked for among these powers of two, and at so many records along training.
_LEAST, _MOST, _RECORDS = -14, 14, 15


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
    train: Callable[..., Any] = train,
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
        train: what trains, :func:`mbsim.gradients.training.train` or its like elsewhere.
        **options: others of it.

    >>> import mbsim
    >>> from mbsim.gradients.splits import split_of
    >>> x = np.random.default_rng(0).standard_normal((300, 4))
    >>> data = split_of(x, x[:, 0] > 0, np.split(np.arange(300), [200, 250]))
    >>> found = tuned(data, mbsim.SGD(), steps=60, rng=0)
    >>> found.test_accuracy > 0.9, found.stop <= 60
    (True, True)
    """
    every = max(1, steps // _RECORDS)
    tried: dict[int, Any] = {}

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


def _at(run: Any, record: int) -> tuple[float, float, float]:
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

    >>> from mbsim.gradients.splits import split_of
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
