r"""Examples that come back: N of them, each with a loss of its own, and perhaps a domain.

Elsewhere every example is new. Here mini-batches are drawn from N examples, so that a dragger is
met again and again and what it asks for does not average out. The loss of example i is a bowl,

.. math:: \ell_i(w) = \frac12 \sum_k \lambda_{ik} (w_k - a_{ik})^2,

so that its gradient is explicit, at any w. With one centre for all every example has gradient 0
there (interpolation); with a centre for each domain the domains disagree. Source: the theory page,
section 13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from mbsim._shared.arrays import Array, Integers, Mask
from mbsim._shared.values import set_field, value
from mbsim.errors import (
    InvalidArgument,
    as_numbers,
    check_array,
    check_divides,
    shown,
)
from mbsim.problems.losses import Quadratic
from mbsim.problems.problem import Problem, check_problem

__all__ = ["ARRANGEMENTS", "Draws", "FiniteDraws", "FiniteProblem", "arranged", "check_domains"]

# How the examples of a mini-batch become micro-batches.
ARRANGEMENTS = ("mixed", "by domain", "stratified")


@value
class FiniteProblem:
    r"""N examples with explicit gradients λ_i (w − a_i), which come back.

    A mini-batch is B different examples, drawn anew at each step. "mixed": from all of them, in
    random order. "by domain": as many of each domain as its share of the N, and each micro-batch of
    one domain, in ascending order of domains (a single one, as SGD has it, of all). "stratified":
    as many of each domain in every micro-batch.

    Args:
        centres: a_i, ``[N, d]``.
        curvatures: λ_i ≥ 0, whatever broadcasts to ``[N, d]``.
        start: w₀, ``[d]``.
        is_dragger: bool ``[N]``: which examples are none of those whose mean loss is wanted; none
            if left out.
        domains: integers ``[N]``, which domain each example is of; one for all if left out.
        micro_batches: one of "mixed", "by domain", "stratified".

    Raises:
        InvalidArgument: for arrays that do not fit, curvatures below 0, examples that are all
            draggers, and domains of which there is only one where micro-batches are made by them.

    >>> problem = FiniteProblem(
    ...     centres=[[0.0], [0.0], [4.0], [4.0]], start=[2.0], domains=[0, 0, 1, 1])
    >>> problem.domain_losses(np.array([1.0])), problem.loss.minimum
    (array([0.5, 4.5]), 2.0)
    >>> problem.gradients(np.array([1.0])).ravel()
    array([ 1.,  1., -3., -3.])
    """

    _: KW_ONLY
    centres: Any
    curvatures: Any = 1.0
    start: Any
    is_dragger: Any = None
    domains: Any = None
    micro_batches: str = "mixed"

    def __post_init__(self) -> None:
        centres = check_array("centres", self.centres, ndim=2, finite=True)
        start = check_array("start", self.start, ndim=1, finite=True)
        count, dim = centres.shape
        if start.size != dim:
            raise InvalidArgument(f"start has {start.size} coordinates and must have {dim}")
        curvatures = check_array("curvatures", self.curvatures, finite=True)
        try:
            curvatures = np.broadcast_to(curvatures, centres.shape)
        except ValueError:
            raise InvalidArgument(
                f"curvatures has shape {curvatures.shape} and must broadcast to {centres.shape}"
            ) from None
        if curvatures.min() < 0:
            raise InvalidArgument(
                f"curvatures go down to {curvatures.min():g} and must be at least 0"
            )
        if not isinstance(self.micro_batches, str) or self.micro_batches not in ARRANGEMENTS:
            raise InvalidArgument(
                f"micro_batches={shown(self.micro_batches)} must be one of "
                f"{', '.join(ARRANGEMENTS)}"
            )
        domains = np.zeros(count, np.int64) if self.domains is None else self.domains
        alone = self.micro_batches == "mixed"
        fields = {
            "centres": centres,
            "start": start,
            "curvatures": curvatures,
            "is_dragger": _flags(self.is_dragger, count),
            "domains": check_domains(domains, count, least=1 if alone else 2),
        }
        for name, array in fields.items():
            set_field(self, name, array)
        benign = np.bincount(self.domains[~self.is_dragger], minlength=int(self.domains.max()) + 1)
        if not benign.all():
            raise InvalidArgument(
                f"is_dragger leaves domain {benign.argmin()} no benign example and must leave one"
            )
        if not curvatures[~self.is_dragger].any():
            raise InvalidArgument("curvatures must be above 0 for a benign example")

    @property
    def examples(self) -> int:
        """N."""
        return len(self.centres)

    @property
    def dimension(self) -> int:
        """d, the number of parameters."""
        return int(self.start.size)

    @property
    def loss(self) -> Mean:
        """The mean loss of the benign examples, which a run records."""
        benign = ~self.is_dragger
        weights, centres = self.curvatures[benign], self.centres[benign]
        total = weights.sum(axis=0)
        middle = np.divide(
            (weights * centres).sum(axis=0), total, out=np.zeros_like(total), where=total > 0
        )
        least = 0.5 * float((weights * np.square(centres - middle)).sum(axis=1).mean())
        return Mean(Quadratic(total / benign.sum()), middle, least)

    @property
    def smoothness(self) -> float:
        """L of the mean loss."""
        return self.loss.smoothness

    @property
    def initial_gap(self) -> float:
        """Δ = L(w₀) − L*."""
        return float(self.loss.value(self.start) - self.loss.minimum)

    def gradients(self, w: ArrayLike) -> Array:
        """The gradient of every example at w ``[d]``: ``[N, d]``."""
        found: Array = self.curvatures * (np.asarray(w, np.float64) - self.centres)
        return found

    def domain_losses(self, w: ArrayLike) -> Array:
        """The mean loss of the benign examples of each domain: w ``[..., d]`` to ``[..., D]``."""
        w, found = np.asarray(w, np.float64)[..., None, :], []
        for domain in range(int(self.domains.max()) + 1):
            of = (self.domains == domain) & ~self.is_dragger
            losses = (self.curvatures[of] * np.square(w - self.centres[of])).sum(axis=-1) / 2
            found.append(losses.mean(axis=-1))
        return np.stack(found, axis=-1)

    def groups(self, batch_size: int, micro_batch_size: int) -> tuple[int, ...]:
        """The domain of each micro-batch where they are made "by domain".

        It is what :class:`mbsim.clipping.WithinGroups` takes.

        Raises:
            InvalidArgument: where they are not, and for sizes that do not fit.
        """
        if self.micro_batches != "by domain":
            raise InvalidArgument(
                f"micro_batches={shown(self.micro_batches)} must be 'by domain' to have groups"
            )
        draw = self.draws(batch_size, check_divides(micro_batch_size, batch_size))
        rows = draw(1, np.random.default_rng(0))
        return tuple(self.domains[rows[0, :, 0]].tolist())

    def draws(self, batch_size: int, micro_batches: int) -> Draws:
        """What draws mini-batches; see :func:`arranged`."""
        return arranged(
            self.domains, batch_size, micro_batches, micro_batches_are=self.micro_batches
        )

    def __str__(self) -> str:
        domains, draggers = np.unique(self.domains).size, int(self.is_dragger.sum())
        lines = {
            "examples": f"{self.examples} that come back, {draggers} of them draggers",
            "dimension": f"{self.dimension}",
            "domains": f"{domains}; micro-batches {self.micro_batches}",
            "initial gap": f"{self.initial_gap:.4g}, least loss {self.loss.minimum:.4g}",
        }
        return "\n".join(["FiniteProblem", *(f"  {k:<12} {v}" for k, v in lines.items())])

    __repr__ = __str__


@value
class Mean:
    """A quadratic around a centre, and a least value: a :class:`~mbsim.problems.losses.Loss`."""

    around: Quadratic
    centre: Any
    minimum: float

    @property
    def dim(self) -> int:
        """The number of parameters."""
        return self.around.dim

    @property
    def smoothness(self) -> float:
        """The largest curvature."""
        return self.around.smoothness

    def value(self, w: Array) -> Array:
        """½ Σ Λ_k (w_k − c_k)² and the least."""
        return self.around.value(w - self.centre) + self.minimum

    def gradient(self, w: Array) -> Array:
        """Λ (w − c)."""
        return self.around.gradient(w - self.centre)


def check_any_problem(problem: Any) -> Problem | FiniteProblem:
    """`problem` itself if it is one of either kind."""
    return problem if isinstance(problem, FiniteProblem) else check_problem(problem)


def _flags(mask: Any, count: int) -> Mask:
    flags = np.zeros(count, np.bool_) if mask is None else np.asarray(mask)
    if flags.shape != (count,) or flags.dtype != np.bool_:
        raise InvalidArgument(
            f"is_dragger={shown(mask)} must be an array of bools, one for each of {count} examples"
        )
    return flags


def check_domains(domains: Any, count: int, *, least: int = 2) -> Integers:
    """`domains` as integers 0, 1, …, one for each example, every number taken.

    >>> check_domains([0, 1, 3], 3)
    Traceback (most recent call last):
        ...
    mbsim.errors.InvalidArgument: domains must be 0 to 3, each with an example; 2 has none
    """
    found = as_numbers("domains", domains)
    if found.shape != (count,):
        raise InvalidArgument(
            f"domains has shape {found.shape} and must have one number for each of {count} examples"
        )
    if found.dtype.kind not in "iu" or found.min() < 0:
        raise InvalidArgument(f"domains={shown(domains)} must be integers of at least 0")
    sizes = np.bincount(found.astype(np.int64))
    if not sizes.all():
        raise InvalidArgument(
            f"domains must be 0 to {sizes.size - 1}, each with an example; {sizes.argmin()} has "
            "none"
        )
    if sizes.size < least:
        raise InvalidArgument(f"domains has the one domain 0 and must have at least {least}")
    return found.astype(np.int64)


# ---------------------------------------------------------------------------- mini-batches

# How many mini-batches to rows of examples, ``[width, m, b]``.
Draws = Callable[[int, Generator], Integers]


def arranged(
    domains: Integers, batch_size: int, micro_batches: int, *, micro_batches_are: str = "mixed"
) -> Draws:
    """A function of (width, rng) that draws the rows of mini-batches: ``[width, m, b]``.

    Args:
        domains: the domain of each of the N examples, ``[N]``.
        batch_size: B, at most N.
        micro_batches: m.
        micro_batches_are: as of :class:`FiniteProblem`.

    Raises:
        InvalidArgument: for a batch larger than N, and where the shares of the domains do not
            make whole numbers of examples or micro-batches.

    >>> draw = arranged(np.array([0, 0, 0, 0, 1, 1]), 6, 3, micro_batches_are="by domain")
    >>> draw(1, np.random.default_rng(0)).shape
    (1, 3, 2)
    """
    count, b = domains.size, batch_size // micro_batches
    if batch_size > count:
        raise InvalidArgument(
            f"batch_size={batch_size} must be at most the {count} examples that there are"
        )
    if micro_batches_are == "mixed":
        return lambda width, rng: _some(count, batch_size, width, rng).reshape(width, -1, b)
    members = [np.flatnonzero(domains == d) for d in range(int(domains.max()) + 1)]
    alone = micro_batches_are == "by domain" and micro_batches > 1
    for number, rows in enumerate(members):
        if batch_size * rows.size % (count * (b if alone else micro_batches)):
            rule = f"a multiple of b={b}" if alone else f"a multiple of m={micro_batches}"
            raise InvalidArgument(
                f"domains: {number} has {batch_size * rows.size / count:g} of the {batch_size} "
                f"examples of a batch, which must be {rule} with micro-batches {micro_batches_are}"
            )

    def draw(width: int, rng: Generator) -> Integers:
        parts = [
            rows[_some(rows.size, batch_size * rows.size // count, width, rng)] for rows in members
        ]
        if micro_batches_are == "stratified":
            parts = [part.reshape(width, micro_batches, -1) for part in parts]
        return np.concatenate(parts, axis=-1).reshape(width, micro_batches, b)

    return draw


def _some(count: int, size: int, width: int, rng: Generator) -> Integers:
    """`size` different numbers below `count` in random order, ``[width, size]``."""
    keys = rng.random((width, count))
    if size < count:  # the first `size` of a whole sort, for less
        rows = np.argpartition(keys, size - 1, axis=1)[:, :size]
        return np.take_along_axis(rows, np.take_along_axis(keys, rows, 1).argsort(axis=1), 1)
    return keys.argsort(axis=1)


class FiniteDraws:
    """Draws steps for some replicates at once, from one stream; see :class:`VectorDraws`."""

    def __init__(
        self, *, problem: FiniteProblem, batch_size: int, m: int, width: int, rng: Generator
    ) -> None:
        self.problem, self.width, self.rng = problem, width, rng
        self._draw = problem.draws(batch_size, m)
        self._alike = bool((problem.curvatures == problem.curvatures[0]).all())

    def at(self, gradient: Array, w: Array) -> tuple[Array, Mask]:  # noqa: ARG002
        """X_j at w ``[width, d]``: ``[width, m, d]``; and which examples are draggers."""
        rows = self._draw(self.width, self.rng)
        centres, curvatures = self.problem.centres, self.problem.curvatures
        if self._alike:  # means of centres are then all that is needed
            means = curvatures[0] * (w[:, None, :] - centres[rows].mean(axis=2))
        else:
            means = (curvatures[rows] * (w[:, None, None, :] - centres[rows])).mean(axis=2)
        return means, self.problem.is_dragger[rows.reshape(self.width, -1)]
