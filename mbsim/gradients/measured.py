r"""A problem made of measured gradients: its drift, with errors over partitions and examples.

Given gradients g_1 … g_N of N examples at one w and a target g, an estimate of the gradient of what
is to be lowered: deviations d_i = g_i − g are kept as they are, and the length of the target is set
to r. An example is then r ĝ + d_I with ĝ = g/‖g‖, and a micro-batch S of b

.. math:: X_S = \bar g_S + s\,\hat g, \qquad
   \|X_S\|^2 = \|\bar g_S\|^2 + 2 s \langle \bar g_S, \hat g\rangle + s^2, \qquad s = r - \|g\| ,

so A(r) and M(r) need the Gram matrix and the products with the target alone. Right for deviations
that do not depend on the fit; where they change in training, gradients of several stages tell more.

Source: the theory page, section 11.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike

from mbsim._shared.arrays import Array, Integers, one_blas_thread
from mbsim._shared.meant import answering
from mbsim._shared.progress import watched
from mbsim._shared.seeds import child, seed_sequence, stream
from mbsim._shared.values import value
from mbsim.clipping import Rule, rank_of
from mbsim.drifts.drift import Drift
from mbsim.drifts.sources import DriftValues, Tail, regressed
from mbsim.errors import InvalidArgument, check_array, check_integer, check_number, shown
from mbsim.gradients.gram import Gram, products_of
from mbsim.methods import Method, check_method

__all__ = ["MeasuredProblem", "MeasuredSource"]

GEOMETRIC_MEDIAN, MEAN, GIVEN = "geometric-median", "mean", "given"
# The geometric median is one of means of so many examples, and of at least so many means.
_EIGHT, _FEWEST = 8, 3
# Turns of Weiszfeld's iteration at most, the change of the weights that ends it, and the shortest
# distance in units of the points' size: a point itself has none.
_TURNS, _STILL, _NEAREST = 10_000, 1e-12, 1e-9
# Examples are resampled so often.
_REPLICATES = 32
# Of a block of partitions: micro-batches, and products of examples; the fewest and most steps; the
# fewest epochs, whose means standard errors come from; the most steps of one.
_MICRO_BATCHES, _PRODUCTS, _FEWEST_STEPS, _MOST_STEPS = 2**16, 2**26, 64, 1024
_FEWEST_EPOCHS, _LONGEST_EPOCH = 16, 256
# Products of micro-batches that are held (256 MiB).
_HELD = 2**25
# Squares of longer gradients leave no room in floating point.
_LARGEST = 1e150
# With this share of the error over examples, the error over partitions is small enough.
_SHARE = 0.25
_LAW = (
    "the law of a step depends on the parameters through the gradient norm alone: deviations from "
    "the target stay as they were measured. Unless told, the initial gap is that of ½L‖w‖²"
)
# Gradients are the same if the square of their distance is this share of those of their lengths.
_SAME = 1e-14


@answering
@value
class MeasuredProblem:
    """Gradients of examples and a target, as a problem: :func:`mbsim.drift` gives its drift.

    Args:
        gradients: a :class:`~mbsim.gradients.gram.Gram`, or what one is made from.
        target: the gradient of what is to be lowered. An array, best the mean gradient of examples
            that are held out (of a Gram it must be part already: ``Gram(G, target=...)``);
            "geometric-median", of the means of random eights of these examples, which a few that
            pull away do not move far; or "mean", of these examples, for which SGD is unbiased, so
            that the advice is SGD by construction. Unless told it is that of the Gram if there is
            one, else the geometric median.
        replacement: whether the examples of a batch are drawn with replacement. Unless told they
            are not: an epoch is a random order of all examples, cut into batches.
        smoothness: L. Left at 1, a step size stands for ηL, and a gap for L times it.
        rng: what the eights and the resampled examples are drawn from.

    Attributes:
        gram: the Gram matrix; `target`: its name, "given", "geometric-median" or "mean".
        target_products: ⟨g_i, g⟩, ``[N]``; `target_norm`: ‖g‖, the r at which it was measured.
        replacement, smoothness: as given.

    Raises:
        InvalidArgument: for a target that does not fit, is 0 or points against every gradient, and
            for gradients that are all the same.

    Source: the theory page, section 11.

    >>> import mbsim
    >>> rng = np.random.default_rng(0)
    >>> gradients = 0.5 + rng.standard_normal((200, 16))       # a mean of length 2, and noise
    >>> gradients[::20] = 20 * rng.standard_normal((10, 16))    # and one in 20 pulls anywhere
    >>> measured = MeasuredProblem(gradients, target=np.full(16, 0.5))
    >>> measured
    MeasuredProblem(200 examples, target given, of length 2)
    >>> sgd = mbsim.drift(measured, mbsim.SGD(), batch_size=20)
    >>> clip = mbsim.drift(measured, mbsim.MicroBatchClipping(2), batch_size=20)
    >>> found = clip.at(2.0)
    >>> bool(sgd.floor(step_size=0.1) > clip.floor(step_size=0.1))
    True
    """

    gram: Gram
    target: str
    target_products: Array
    target_norm: float
    replacement: bool
    smoothness: float
    _seed: SeedSequence = field(compare=False, repr=False)

    def __init__(
        self,
        gradients: Any,
        *,
        target: Any = None,
        replacement: bool = False,
        smoothness: float = 1.0,
        rng: int | SeedSequence | Generator = 0,
    ) -> None:
        if not isinstance(replacement, (bool, np.bool_)):
            raise InvalidArgument(f"replacement={shown(replacement)} must be True or False")
        seed = seed_sequence(rng)
        gram, name = _gram_and_target(gradients, target)
        if name == MEAN:
            warnings.warn(
                "target='mean' is the mean of these gradients, for which SGD is unbiased: advice "
                "is then SGD by construction; give the mean gradient of held-out examples, or "
                "take 'geometric-median'",
                stacklevel=2,
            )
        _check_different(gram)
        if name == GIVEN:
            products, norm = gram.target_products, gram.target_norm
        else:
            rows = stream(seed, "eights").permutation(gram.examples)
            with one_blas_thread():
                products, norm = _own_target(gram.matrix, name, rows)
        assert products is not None
        assert norm is not None
        vars(self).update(
            gram=gram,
            target=name,
            target_products=products,
            target_norm=norm,
            replacement=bool(replacement),
            smoothness=check_number("smoothness", smoothness, above=0),
            _seed=seed,
        )
        _check_target(self)

    @property
    def examples(self) -> int:
        """N."""
        return self.gram.examples

    @property
    def initial_gap(self) -> float:
        """Δ = ‖g‖²/(2L): that of ½L‖w‖² where its gradient is as long as the target."""
        return self.target_norm**2 / (2 * self.smoothness)

    @property
    def initial_grad_norm(self) -> float:
        """‖g‖."""
        return self.target_norm

    def drift(
        self,
        method: Method,
        *,
        batch_size: int,
        rng: int | SeedSequence | Generator = 0,
        relative_error: float = 1e-3,
        draws: int = 2**20,
    ) -> Drift:
        """A(r) and M(r) of a method on these gradients: :func:`mbsim.drift` calls this.

        Without clipping they are written down; else they are means over random partitions of the
        examples. Errors hold what partitions leave open and what another sample of examples would
        change: examples are resampled, with the target where it is made of them, and
        :meth:`MeasuredSource.errors` has the two apart. That a given target is itself an estimate
        is not in them.

        Args:
            method: the method, with its micro-batch size.
            batch_size: B, at most N (without replacement).
            rng: what partitions are drawn from. Methods of the same batch size share their batches
                where they have the same.
            relative_error: what values aim at. Errors over examples are what they are.
            draws: the most micro-batches for one value.
        """
        method = check_method(method)
        batch = check_integer("batch_size", batch_size, minimum=1)
        m = method.micro_batches(batch)
        if batch > self.examples and not self.replacement:
            raise InvalidArgument(
                f"batch_size={batch} must be at most the number of examples, {self.examples}, or "
                "batches drawn with replacement=True"
            )
        aim = check_number("relative_error", relative_error, above=0, below=1)
        most = check_integer("draws", draws, minimum=1)
        source = MeasuredSource(self, method, batch, most, seed_sequence(rng))
        spread = float(np.std(self.target_products)) / self.target_norm
        noise = math.sqrt(self._pool.deviation(1, self.target_norm))
        return Drift(
            source=source,
            smoothness=self.smoothness,
            initial_gap=self.initial_gap,
            tail=source.tail(),
            largest_grad_norm=math.inf,
            relative_error=aim,
            scale=max(spread, 1e-3 * noise) / math.sqrt(batch // m),
            noise_size=noise,
            settings={
                "initial_gap": self.initial_gap,
                "smoothness": self.smoothness,
                "batch_size": batch,
                "micro_batch_size": batch // m,
                "examples": self.examples,
                "target": self.target,
                "method": str(method),
            },
            law=_LAW,
        )

    @cached_property
    def _pool(self) -> _Pool:
        """What is known of the examples as they are."""
        uniform = np.ones((1, self.examples))
        along = self.target_products[None] / self.target_norm
        return _pools(self.gram.matrix, uniform, along, replacement=self.replacement)[0]

    @cached_property
    def _replicates(self) -> list[_Replicate]:
        """Examples resampled, each time with the target of their own."""
        n, matrix = self.examples, self.gram.matrix
        found = []
        with one_blas_thread():
            for number in watched(range(_REPLICATES), "resampling examples"):
                rows = stream(self._seed, "examples", number).integers(n, size=n)
                products, norm = self.target_products, self.target_norm
                if self.target != GIVEN:
                    products, norm = _own_target(matrix, self.target, rows)
                found.append((rows, products / norm if norm else 0 * products, norm))
        rows, along, norms = (np.array(part) for part in zip(*found, strict=True))
        counts = np.stack([np.bincount(one, minlength=n) for one in rows]).astype(np.float64)
        pools = _pools(matrix, counts, along, replacement=self.replacement)
        return [
            _Replicate(*parts) for parts in zip(rows, along, norms.tolist(), pools, strict=True)
        ]

    def __repr__(self) -> str:
        how = ", batches with replacement" if self.replacement else ""
        return (
            f"MeasuredProblem({self.examples} examples, target {self.target}, of length "
            f"{self.target_norm:.4g}{how})"
        )


class _Pool(NamedTuple):
    """Means over examples: of ⟨g, ĝ⟩, of ‖g‖², and of ⟨g, g'⟩ for two of one micro-batch."""

    along: float
    square: float
    product: float

    def squared(self, size: int) -> float:
        """E‖ḡ_S‖² for `size` examples."""
        return self.square / size + (1 - 1 / size) * self.product

    def deviation(self, size: int, target_norm: float) -> float:
        """E‖ḡ_S − g‖²."""
        found = self.squared(size) - 2 * target_norm * self.along + target_norm**2
        return max(found, 0.0)


class _Replicate(NamedTuple):
    """A resampling: the examples, their ⟨g, ĝ⟩ (of all N), ‖g‖, and their means."""

    rows: Integers
    along: Array
    target_norm: float
    pool: _Pool


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps on gradients at any r.

    Attributes:
        matrix: K; `members`: ``[steps, m, b]``.
        along: ⟨ḡ_S, ĝ⟩, ``[steps, m]``; `squares`: ‖ḡ_S‖²; `target_norm`: ‖g‖, ``[steps]``.
        products: ⟨ḡ_S, ḡ_S'⟩, ``[steps, m, m]``; None where they are too many to keep.
    """

    matrix: Array
    members: Integers
    along: Array
    squares: Array
    target_norm: Array
    products: Array | None

    @classmethod
    def of(cls, matrix: Array, members: Integers, along: Array, target_norm: Array) -> _Steps:
        """Steps whose micro-batches and their ⟨ḡ_S, ĝ⟩ are given."""
        steps, m, b = members.shape
        if steps * m * m <= _HELD:
            products = products_of(matrix, members)
            squares = np.einsum("sjj->sj", products).copy()
            return cls(matrix, members, along, squares, target_norm, products)
        squares = products_of(matrix, members.reshape(steps * m, 1, b)).reshape(steps, m)
        return cls(matrix, members, along, squares, target_norm, None)

    def moments(self, grad_norm: float, rule: Rule) -> Array:
        """⟨u, ĝ⟩ and ‖u‖² of every step, ``[2, steps]``."""
        shift = grad_norm - self.target_norm
        along = self.along + shift[:, None]
        squares = self.squares + shift[:, None] * (self.along + along)
        factors = rule.factors(np.sqrt(np.maximum(squares, 0.0))) / along.shape[1]
        progress = (factors * along).sum(axis=1)
        total, own = factors.sum(axis=1), (factors * self.along).sum(axis=1)
        second = self._squared(factors) + shift * total * (2 * own + shift * total)
        return np.stack([progress, np.maximum(second, 0.0)])

    def _squared(self, factors: Array) -> Array:
        """‖Σ_j φ_j ḡ_j‖² of every step."""
        if self.products is not None:
            mixed = np.matmul(self.products, factors[:, :, None])[:, :, 0]
            return (mixed * factors).sum(axis=1)
        steps, m, b = self.members.shape
        weights = np.zeros((steps, len(self.matrix)))
        step = np.repeat(np.arange(steps), m * b)
        np.add.at(weights, (step, self.members.ravel()), np.repeat(factors / b, b, axis=1).ravel())
        return ((weights @ self.matrix) * weights).sum(axis=1)


class MeasuredSource:
    """Where the drift of a :class:`MeasuredProblem` comes from; :meth:`MeasuredProblem.drift`.

    Args:
        measured: the problem.
        method: the method; `batch`: B; `draws`: the most micro-batches for one value; `seed`: what
            partitions are drawn from.

    >>> import mbsim
    >>> gradients = np.random.default_rng(0).standard_normal((64, 4)) + 1
    >>> measured = MeasuredProblem(gradients, target=np.ones(4))
    >>> clip = mbsim.drift(measured, mbsim.MicroBatchClipping(2), batch_size=16)
    >>> partitions, examples = clip.source.errors(2.0)      # of A and of M
    >>> bool((partitions < examples).all())
    True
    """

    def __init__(
        self,
        measured: MeasuredProblem,
        method: Method,
        batch: int,
        draws: int,
        seed: SeedSequence,
    ) -> None:
        m = method.micro_batches(batch)
        self.measured, self.rule, self.m, self.b = measured, method.rule, m, batch // m
        self.unclipped = rank_of(self.rule, m) == m - 1
        # An epoch: what a random order of the examples has room for.
        self._per_epoch = max(1, min(measured.examples // batch, _LONGEST_EPOCH))
        steps = min(_MICRO_BATCHES // m, _PRODUCTS // batch**2, _MOST_STEPS)
        steps = max(steps, _FEWEST_STEPS)
        self._epochs = max(_FEWEST_EPOCHS, -(-steps // self._per_epoch))
        steps = self._epochs * self._per_epoch
        self._most = max(1, min(draws // (steps * m), _HELD // (steps * m * m)))
        self._seed = child(seed, "partitions")
        self._blocks: list[_Steps] = []

    def values(self, grad_norm: Array, relative_error: float | None) -> DriftValues:
        """A and M at gradient norms ``[points]``; see :class:`~mbsim.drifts.sources.Source`."""
        if grad_norm.max(initial=0.0) > _LARGEST:
            raise InvalidArgument(
                f"grad_norm={shown(float(grad_norm.max()))} must be at most {_LARGEST:g} for "
                "measured gradients"
            )
        norms = watched(grad_norm.tolist(), "drift, measured")
        found = [self._one(r, relative_error) for r in norms]
        drift = np.array([mean for mean, *_ in found]).reshape(-1, 2).T
        variance = np.array([a + b for _, a, b, _ in found]).reshape(-1, 2, 2)
        standard = np.sqrt(np.einsum("pii->ip", variance))
        df = np.array([_joint_df(a, b, own) for _, a, b, own in found]).reshape(-1)
        # Every squared norm is off by this share, for gradients that were projected.
        share = self.measured.gram.relative_error
        numerical = share * np.stack([np.sqrt(drift[1]), 2 * drift[1]])
        return DriftValues.of(
            "measured", grad_norm, drift, numerical, relative_error, standard, variance[:, 0, 1], df
        )

    def errors(self, grad_norm: ArrayLike) -> tuple[Array, Array]:
        """Standard errors of A and M, over partitions and over examples: ``[2, ...]`` each.

        Args:
            grad_norm: r ≥ 0, a number or an array of any shape.
        """
        r = check_array("grad_norm", grad_norm, finite=True)
        found = [self._one(one, None) for one in r.ravel().tolist()]
        errors = [[np.sqrt(np.diag(part)) for part in parts] for _, *parts, _ in found]
        partitions, examples = np.moveaxis(np.array(errors), 0, -1).reshape(2, 2, *r.shape)
        return partitions, examples

    def tail(self) -> Tail | None:
        """What is known for large r, where all micro-batches become alike; for ranks only.

        The argument is that of :func:`mbsim.drifts.sources.tail_of`, with d̄_S in the place of the
        noise.
        """
        if rank_of(self.rule, self.m) is None:
            return None
        one, pool, norm = np.ones(1), self.measured._pool, self.measured.target_norm
        values = DriftValues.of("closed form", one, np.ones((2, 1)), np.zeros((2, 1)), None)
        if not self.unclipped:
            distance = math.sqrt(pool.deviation(self.b, norm))
            return Tail(values=values, distance=(1 + math.sqrt(self.m)) * distance, slope=0.0)
        # Above 0, for a floor without an error would leave out that of another sample of examples.
        spread = pool.deviation(self.b * self.m, norm)
        distance = max(abs(pool.along - norm), 1e-9 * math.sqrt(spread))
        return Tail(
            values=values, distance=distance, slope=0.0, constant=max(spread - distance**2, 0.0)
        )

    def _one(self, r: float, aim: float | None) -> tuple[Array, Array, Array, float]:
        """A and M; the covariances over partitions and over examples; df of the former."""
        measured = self.measured
        if self.unclipped:
            own = np.array(self._closed(measured._pool, r - measured.target_norm))
            every = measured._replicates
            moments = np.array([self._closed(one.pool, r - one.target_norm) for one in every])
            return own, np.zeros((2, 2)), np.cov(moments.T), math.inf
        with one_blas_thread():
            means = self._resampled.moments(r, self.rule).reshape(2, _REPLICATES, -1).mean(axis=2)
            examples = np.cov(means)
            rows = np.zeros((0, 4))
            for number in range(1 if aim is None else self._most):
                rows = np.concatenate([rows, self._rows(number, r)])
                mean, covariance, df = regressed(rows)
                enough = np.maximum(
                    (aim or 0.0) * np.abs(mean), _SHARE * np.sqrt(np.diag(examples))
                )
                if (np.sqrt(np.diag(covariance)) <= enough).all():
                    break
        return mean, covariance, examples, df

    def _closed(self, pool: _Pool, shift: float) -> tuple[float, float]:
        """A and M without clipping, at r = ‖g‖ + `shift`."""
        second = pool.squared(self.b * self.m) + shift * (2 * pool.along + shift)
        return pool.along + shift, max(second, 0.0)

    def _rows(self, number: int, r: float) -> Array:
        """Means over epochs of ⟨u, ĝ⟩, ‖u‖² and two numbers whose expectations are 0."""
        while len(self._blocks) <= number:
            self._blocks.append(self._partitions(len(self._blocks)))
        block, pool = self._blocks[number], self.measured._pool
        controls = np.stack([block.along.mean(axis=1), block.squares.mean(axis=1)])
        known = np.array([[pool.along], [pool.squared(self.b)]])
        parts = np.concatenate([block.moments(r, self.rule), controls - known])
        rows = parts.reshape(4, self._epochs, -1).mean(axis=2).T
        # What is 0 but for rounding controls nothing.
        size = np.array([[math.sqrt(pool.square), pool.square]])
        rows[:, 2:][np.abs(rows[:, 2:]) < 1e-12 * size] = 0.0
        return rows

    def _partitions(self, number: int) -> _Steps:
        """A block of epochs, each from a stream of its own."""
        measured = self.measured
        n, count = measured.examples, self._per_epoch * self.m * self.b
        epochs = range(number * self._epochs, (number + 1) * self._epochs)
        places = [self._places(stream(self._seed, epoch), n, count) for epoch in epochs]
        members = np.array(places).reshape(-1, self.m, self.b)
        along = (measured.target_products / measured.target_norm)[members].mean(axis=2)
        norm = np.full(len(members), measured.target_norm)
        return _Steps.of(measured.gram.matrix, members, along, norm)

    @cached_property
    def _resampled(self) -> _Steps:
        """Steps on each resampling of the examples.

        One epoch of them: every example then counts alike, and what a partition adds to the spread
        is small. Drawn with replacement they do not, and there are four times as many.
        """
        replicates = self.measured._replicates
        n, per_epoch = self.measured.examples, self._per_epoch
        steps = 4 * per_epoch if self.measured.replacement else per_epoch
        steps = max(1, min(steps, _HELD // (len(replicates) * self.m**2)))
        members, along = [], []
        for number, one in enumerate(replicates):
            rng = stream(self._seed, "resampled", number)
            places = self._places(rng, n, steps * self.m * self.b)
            members.append(one.rows[places].reshape(steps, self.m, self.b))
            along.append(one.along[members[-1]].mean(axis=2))
        norm = np.repeat([one.target_norm for one in replicates], steps)
        joined = np.concatenate(members), np.concatenate(along)
        return _Steps.of(self.measured.gram.matrix, *joined, norm)

    def _places(self, rng: Generator, examples: int, count: int) -> Integers:
        """The examples of one epoch's batches."""
        if self.measured.replacement:
            return rng.integers(examples, size=count)
        return rng.permutation(examples)[:count]


def _joint_df(partitions: Array, examples: Array, own: float) -> float:
    """Degrees of freedom of a sum of two variances (Satterthwaite), the fewer of A's and M's."""
    a, b = np.diag(partitions), np.diag(examples)
    total = np.square(a + b)
    parts = np.square(a) / own + np.square(b) / (_REPLICATES - 1)
    found = np.divide(total, parts, out=np.full(2, math.inf), where=parts > 0)
    return float(found.min())


# ---------------------------------------------------------------------------- targets


def _gram_and_target(gradients: Any, target: Any) -> tuple[Gram, str]:
    """The Gram matrix, with a target that is an array; and the name of the target."""
    named = target is None or (isinstance(target, str) and target in (GEOMETRIC_MEDIAN, MEAN))
    if isinstance(target, str) and not named:
        raise InvalidArgument(
            f"target={shown(target)} must be an array, '{GEOMETRIC_MEDIAN}' or '{MEAN}'; a file is "
            "given as a pathlib.Path"
        )
    if not isinstance(gradients, Gram):
        gram = Gram(gradients, target=None if named else target)
    elif named:
        gram = gradients
    else:
        raise InvalidArgument(
            "target must be part of the pass over the gradients: Gram(gradients, target=target); a "
            "Gram has no coordinates left to compare it with"
        )
    if target is not None:
        return gram, str(target) if named else GIVEN
    return gram, GEOMETRIC_MEDIAN if gram.target_norm is None else GIVEN


def _own_target(matrix: Array, name: str, rows: Integers) -> tuple[Array, float]:
    """⟨g_i, g⟩ for all examples, and ‖g‖, of a target made of some of them (with repetition)."""
    n = len(matrix)
    if name == MEAN:
        weights = np.bincount(rows, np.full(rows.size, 1 / rows.size), minlength=n)
    else:
        groups = rows.size // _EIGHT
        if groups < _FEWEST:
            raise InvalidArgument(
                f"target='{GEOMETRIC_MEDIAN}' is one of means of {_EIGHT} examples and needs at "
                f"least {_FEWEST * _EIGHT} of them; there are {rows.size}"
            )
        eights = rows[: groups * _EIGHT].reshape(groups, _EIGHT)
        sums, products = np.zeros((groups, n)), np.zeros((groups, groups))
        for one in eights.T:  # one at a time, for memory
            sums += matrix[one]
        for one in eights.T:
            products += sums[:, one] / _EIGHT**2
        rows, share = eights.ravel(), np.repeat(geometric_median(products) / _EIGHT, _EIGHT)
        weights = np.bincount(rows, share, minlength=n)
    products = matrix @ weights
    return products, math.sqrt(max(float(weights @ products), 0.0))


def geometric_median(products: Array) -> Array:
    """The weights of points, of which the inner products are given, in their geometric median.

    Weiszfeld's iteration: weights in proportion to one over the distances.

    >>> geometric_median(np.array([[0.0, 0, 0], [0, 1, 9], [0, 9, 81]])).round(6)   # 0, 1 and 9
    array([0., 1., 0.])
    """
    count = len(products)
    weights = np.full(count, 1 / count)
    squares = np.diagonal(products)
    least = _NEAREST**2 * (float(squares.max()) or 1.0)
    for _ in range(_TURNS):
        mixed = products @ weights
        distance = np.sqrt(np.maximum(squares - 2 * mixed + weights @ mixed, least))
        new = 1 / distance
        new /= new.sum()
        change = float(np.abs(new - weights).sum())
        weights = new
        if change <= _STILL:
            break
    return weights


def _pools(matrix: Array, counts: Array, along: Array, *, replacement: bool) -> list[_Pool]:
    """Means over examples that count so often, ``[R, N]``, with their ⟨g, ĝ⟩, ``[R, N]``."""
    n = len(matrix)
    square = counts @ np.diagonal(matrix) / n
    with one_blas_thread():
        product = ((counts @ matrix) * counts).sum(axis=1) / n**2
    if not replacement and n > 1:
        product = (n * product - square) / (n - 1)
    means = (counts * along).sum(axis=1) / n
    return [
        _Pool(*one) for one in zip(means.tolist(), square.tolist(), product.tolist(), strict=True)
    ]


# ---------------------------------------------------------------------------- checks


def _check_different(gram: Gram) -> None:
    """Refuse gradients that are all the same; say where some that are not 0 are."""
    n = gram.examples
    if n == 1:
        raise InvalidArgument("gradients has 1 example and must have at least 2")
    first, count = None, 0
    for i, j in _same(gram.matrix):
        first, count = first or (i, j), count + 1
    if first is None:
        return
    if count == n * (n - 1) // 2:
        raise InvalidArgument(f"gradients must not all be the same; all {n} rows are")
    warnings.warn(
        f"gradients has equal rows, such as {first[0]} and {first[1]} ({count} such pairs); errors "
        "over examples take them for examples of their own",
        stacklevel=3,
    )


def _same(matrix: Array) -> Iterator[tuple[int, int]]:
    """Pairs of rows that are equal and not 0."""
    squares = np.diagonal(matrix)
    for i in range(len(matrix) - 1):
        others = squares[i + 1 :]
        distance = squares[i] + others - 2 * matrix[i, i + 1 :]
        for j in np.flatnonzero(distance < _SAME * (squares[i] + others)).tolist():
            yield i, i + 1 + j


def _check_target(measured: MeasuredProblem) -> None:
    """Refuse a target of no length, and one that points against every gradient."""
    longest = math.sqrt(float(np.diagonal(measured.gram.matrix).max()))
    if not measured.target_norm > 1e-12 * longest:
        raise InvalidArgument(
            f"target={measured.target!r} has length {measured.target_norm:.3g} and must be longer "
            "than 0: these gradients leave no direction in which to go"
        )
    if measured.target_products.max() <= 0:
        raise InvalidArgument(
            f"target={measured.target!r} must point along one gradient at least, and its product "
            f"with each of {measured.examples} is negative or 0: is its sign reversed?"
        )
