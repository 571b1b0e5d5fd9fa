r"""Hypothesis strategies: problems, methods, settings of bounds and gradients, for property tests.

Every function returns a strategy. What it draws is valid by construction: it can be handed to
:func:`mbsim.simulate`, :func:`mbsim.drifts.drift.drift`, :meth:`Bound.evaluate
<mbsim.theory.Bound.evaluate>` or :func:`mbsim.clipping.apply` as it is, nothing is filtered
away, and failures shrink towards what is simplest to read: few dimensions, one example, unit
scale, no draggers. Parts may be fixed: wherever an argument takes a part, it takes a value, a
strategy for it, or None for the default.

>>> import mbsim
>>> from hypothesis import given
>>> @given(gradients=gradient_batches(), rule=rules(kinds=[mbsim.clipping.SmallestNorm]))
... def check(gradients, rule):
...     update = mbsim.clipping.apply(gradients, rule)
...     shortest = np.linalg.norm(gradients, axis=1).min()
...     assert np.linalg.norm(update) <= shortest * (1 + 1e-12)
>>> check()

It needs Hypothesis, which the extra ``testing`` brings. A page on it: docs/strategies.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mbsim._shared.extras import needed

with needed("mbsim.extra.hypothesis", "Hypothesis", extra="testing", name="hypothesis"):
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays
    from hypothesis.strategies import DrawFn, SearchStrategy

from mbsim._shared.arrays import Array, Mask
from mbsim.clipping import (
    FixedNorm,
    NoClipping,
    QuantileNorm,
    Rule,
    SmallestNorm,
    TrimmedNorm,
    UnitNorm,
)
from mbsim.errors import InvalidArgument, check_integer, check_number, divisors, shown
from mbsim.methods import SGD, Method, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import LogCosh, Loss, Quadratic, Ripple
from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw, StudentT, TwoPoint
from mbsim.problems.problem import Problem

if TYPE_CHECKING:
    from mbsim.theory import Formula

__all__ = [
    "LabelledGradients",
    "batch_sizes",
    "benign_and_draggers",
    "bound_values",
    "draggers",
    "gradient_batches",
    "losses",
    "methods",
    "micro_batch_sizes",
    "noises",
    "problems",
    "rules",
]

T = TypeVar("T")
#: A part that may be fixed: a value, a strategy, or None for the default.
Part: TypeAlias = T | SearchStrategy[T] | None

# Hypothesis shrinks a float to the simplest integer in its range: here to 1.
_SCALES = st.floats(1 / 16, 16)
_PROBABILITIES = st.just(0.0) | st.floats(1 / 1024, 1 / 2)
_NORM_RATIOS = st.just(0.0) | st.floats(1 / 16, 100)
_SHARES = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, allow_subnormal=False)  # often an end
_COORDINATES = st.floats(-8, 8, allow_subnormal=False)
_WITHIN_1 = st.floats(-1, 1, allow_subnormal=False)
_SIGNS = st.sampled_from([1.0, -1.0])


def _drawn_from(part: Part[T], default: SearchStrategy[T]) -> SearchStrategy[T]:
    """What a part is drawn from."""
    if part is None:
        return default
    return part if isinstance(part, SearchStrategy) else st.just(part)


def _count(name: str, part: Part[int], most: int) -> SearchStrategy[int]:
    """A count from 1 to `most` unless told; one that is a value is checked at once."""
    if part is not None and not isinstance(part, SearchStrategy):
        part = check_integer(name, part, minimum=1)
    return _drawn_from(part, st.integers(1, most))


def _chosen(name: str, asked: Iterable[type], known: Iterable[type]) -> tuple[type, ...]:
    """The kinds that are asked for, in the order in which they are simple."""
    asked = list(asked) if isinstance(asked, Iterable) else [asked]
    strangers = [kind for kind in asked if kind not in known]
    if strangers or not asked:
        listed = ", ".join(kind.__name__ for kind in known)
        raise InvalidArgument(f"{name}={shown(asked)} must be some of {listed}")
    return tuple(kind for kind in known if kind in asked)


# Making a strategy costs many times as much as drawing from it: those that depend on a size are
# kept.
@lru_cache(maxsize=1024)
def _array(
    dtype: type, shape: int | tuple[int, int], elements: SearchStrategy[Any], *, alike: bool = False
) -> SearchStrategy[NDArray[Any]]:
    """Arrays of these elements, every one drawn by itself unless they may be `alike`."""
    return arrays(dtype, shape, elements=elements, fill=None if alike else st.nothing())


# ------------------------------------------------------------------------- problems


_LOSSES = (Quadratic, LogCosh, Ripple)


@lru_cache(maxsize=1024)
def _losses(dim: int, kinds: tuple[type, ...]) -> SearchStrategy[Loss]:
    """Quadratics have flat, geometric and arbitrary spectra, below a largest eigenvalue."""
    flat = st.just(np.ones(dim))
    spread = st.integers(1, 6).map(lambda decades: np.geomspace(10.0**-decades, 1, dim))
    some = st.tuples(_array(float, dim, _SHARES, alike=True), st.integers(0, dim - 1))
    any_shares = some.map(lambda pair: np.where(np.arange(dim) == pair[1], 1.0, pair[0]))
    shares = st.tuples(flat | spread | any_shares, _SCALES)
    made: dict[type, SearchStrategy[Loss]] = {
        Quadratic: shares.map(lambda pair: Quadratic(pair[1] * pair[0])),
        LogCosh: st.just(LogCosh(dim)),
        Ripple: _SHARES.map(lambda share: Ripple(dim, 4 * share)),
    }
    return st.one_of([made[kind] for kind in kinds])


def losses(
    *, dim: Part[int] = None, kinds: Iterable[type] = (Quadratic, LogCosh, Ripple)
) -> SearchStrategy[Loss]:
    """The package's losses: quadratics of every kind of spectrum, log cosh, ripples.

    Args:
        dim: the number of parameters; 1 to 8 unless told.
        kinds: which classes to draw from.

    Returns:
        A strategy; it shrinks to ½‖w‖² in one dimension. Ripples are convex for some draws and
        not for others.

    Raises:
        InvalidArgument: for dimensions below 1 and classes that it does not know.

    >>> from hypothesis import find
    >>> find(losses(dim=3, kinds=[Quadratic]), lambda loss: loss.smoothness > 2)
    Quadratic(eigenvalues=array([3., 3., 3.]))
    """
    chosen = _chosen("kinds", kinds, _LOSSES)
    return _count("dim", dim, 8).flatmap(lambda d: _losses(d, chosen))


# Shares π of the rare value at which two-point noise is skewed.
_ALL_BUT_HALF = st.floats(1 / 64, 31 / 64)
_ALL_BUT_HALF |= _ALL_BUT_HALF.map(lambda share: 1 - share)

# For every law: what its arguments besides sigma are drawn from, symmetric and skewed.
_NOISES: dict[type, dict[bool, dict[str, SearchStrategy[float]]]] = {
    Gaussian: {True: {}},
    TwoPoint: {
        True: {"rare": st.just(0.5), "isotropic_share": _SHARES},
        False: {"rare": _ALL_BUT_HALF, "isotropic_share": st.floats(0, 3 / 4)},
    },
    Exponential: {False: {"isotropic_share": st.floats(0, 3 / 4)}},
    StudentT: {True: {"df": st.floats(2.25, 64)}},
}


def noises(
    *,
    sigma: Part[float] = None,
    symmetric: bool | None = None,
    laws: Iterable[type] = (Gaussian, TwoPoint, Exponential, StudentT),
) -> SearchStrategy[NoiseLaw]:
    """Benign noise: the package's four laws.

    Args:
        sigma: σ; 1/16 to 16 unless told, and sometimes 0 (not where the noise must be skewed: no
            noise is symmetric).
        symmetric: True for noise whose component along the gradient is symmetric, as Theorem 3
            asks (Gaussian, Student, two-point with π = ½); False for noise that is skewed
            (two-point with π ≠ ½ and exponential, at least a quarter of the variance in it); None
            for both.
        laws: which classes to draw from.

    Returns:
        A strategy; it shrinks to Gaussian noise, of σ = 0 where that is allowed and else of σ = 1.

    Raises:
        InvalidArgument: for classes that it does not know, and where none of them is as symmetric
            as asked.

    Source: the theory page, sections 2 and 6.

    >>> from hypothesis import find
    >>> find(noises(), lambda law: law.sigma > 0)
    Gaussian(sigma=1.0)
    >>> find(noises(symmetric=False, laws=[Exponential]), lambda law: law.sigma > 1)
    Exponential(sigma=2.0, isotropic_share=0.0)
    """
    chosen = _chosen("laws", laws, _NOISES)
    skewed = _drawn_from(sigma, _SCALES)
    even = _drawn_from(sigma, st.just(0.0) | _SCALES)
    makers = [
        st.builds(law, sigma=even if is_even else skewed, **arguments)
        for law in chosen
        for is_even, arguments in _NOISES[law].items()
        if symmetric is None or is_even == symmetric
    ]
    if not makers:
        names = ", ".join(law.__name__ for law in chosen)
        raise InvalidArgument(f"symmetric={shown(symmetric)} leaves none of the laws {names}")
    return st.one_of(makers)


def draggers(
    *,
    probability: Part[float] = None,
    norm_ratio: Part[float] = None,
    coherence: Part[float] = None,
    tilt: Part[float] = 0.0,
) -> SearchStrategy[Draggers]:
    """Draggers: how many, how long, how alike.

    Args:
        probability: p; 0, or 1/1024 to 1/2, unless told.
        norm_ratio: c; 0, or 1/16 to 100, unless told.
        coherence: γ; 0 to 1 unless told, both ends included.
        tilt: 0 unless told: what is drawn keeps assumption A4.

    Returns:
        A strategy; it shrinks to no draggers.

    >>> from hypothesis import find
    >>> find(draggers(norm_ratio=20), lambda some: some.probability > 0 and some.coherence == 1)
    Draggers(probability=0.5, norm_ratio=20.0, coherence=1.0, tilt=0.0)
    """
    return st.builds(
        Draggers,
        probability=_drawn_from(probability, _PROBABILITIES),
        norm_ratio=_drawn_from(norm_ratio, _NORM_RATIOS),
        coherence=_drawn_from(coherence, _SHARES),
        tilt=_drawn_from(tilt, st.just(0.0)),
    )


# Draggers for a dragger frame of 0, 1 and 2 dimensions; 2 will do for all.
_DRAGGERS_WITHIN = (
    st.just(Draggers(probability=0, norm_ratio=0)),
    draggers(coherence=st.sampled_from([0.0, 1.0])),
    draggers(),
)


def problems(
    *,
    loss: Part[Loss] = None,
    noise: Part[NoiseLaw] = None,
    draggers: Part[Draggers] = None,
    benign_dim: Part[int] = None,
    start: Part[Array] = None,
) -> SearchStrategy[Problem]:
    """Problems whose dimensions allow the model, with a start at which everything is finite.

    Parts that are not told are drawn to fit those that are: :func:`losses`, :func:`noises` and
    :func:`draggers` (without tilt, so that assumptions A1 to A4 hold) in up to a dozen dimensions,
    of which up to four are benign; coordinates of the start in [−8, 8].

    Args:
        loss: fixes the dimension.
        noise: any noise law, also one of your own.
        draggers: any.
        benign_dim: n.
        start: w₀; it fixes the dimension, too.

    Returns:
        A strategy; it shrinks to ½w² in one dimension, started at 1, without noise or draggers.

    Raises:
        InvalidArgument: when drawing, where parts do not fit each other.

    >>> from hypothesis import given
    >>> @given(problem=problems(noise=noises(symmetric=True), draggers=draggers(coherence=0.5)))
    ... def check(problem):
    ...     needed = problem.draggers.dimensions_needed
    ...     assert problem.dragger_dim >= needed and needed in (0, 2)
    >>> check()
    """
    parts = st.tuples(
        _drawn_from(loss, st.none()),
        _drawn_from(noise, noises()),
        _drawn_from(draggers, st.none()),
        _drawn_from(benign_dim, st.none()),
        _drawn_from(start, st.none()),
    )
    return _problems(parts)


@lru_cache(maxsize=1024)
def _starts(dim: int) -> SearchStrategy[Array]:
    return st.just(np.ones(dim)) | _array(float, dim, _COORDINATES, alike=True)


@st.composite
def _problems(draw: DrawFn, parts: SearchStrategy[Any]) -> Problem:
    # Fixed parts may draw the dimension; what is left is drawn to fit it.
    loss, noise, some, n, start = draw(parts)
    if loss is None and start is None:
        some = draw(_DRAGGERS_WITHIN[2]) if some is None else some
        n = draw(st.integers(1, 4)) if n is None else n
        dim = n + _besides(some) + draw(st.integers(0, 4))
    else:
        dim = np.size(start) if loss is None else loss.dim
        room = min(2, max(0, dim - (n or 1) - 1))
        some = draw(_DRAGGERS_WITHIN[room]) if some is None else some
        n = draw(st.integers(1, max(1, dim - _besides(some)))) if n is None else n
    loss = draw(_losses(dim, _LOSSES)) if loss is None else loss
    start = draw(_starts(dim)) if start is None else start
    return Problem(loss=loss, noise=noise, draggers=some, benign_dim=n, start=start)


def _besides(some: Draggers) -> int:
    """How many dimensions must not be benign."""
    return some.dimensions_needed + 1 if some.dimensions_needed else 0


# ------------------------------------------------------------------------- methods

_RULES: dict[type, SearchStrategy[Rule]] = {
    NoClipping: st.just(NoClipping()),
    SmallestNorm: st.just(SmallestNorm()),
    FixedNorm: st.builds(FixedNorm, threshold=_SCALES),
    QuantileNorm: st.builds(QuantileNorm, q=_SHARES),
    TrimmedNorm: st.builds(TrimmedNorm, fraction=_SHARES.filter(lambda share: share < 1)),
    UnitNorm: st.builds(UnitNorm, epsilon=_SHARES),
}


def rules(*, kinds: Iterable[type] = tuple(_RULES)) -> SearchStrategy[Rule]:
    """The package's clipping rules: thresholds from 1/16 to 16, every quantile
    and fraction, ε from 0 to 1.

    Args:
        kinds: which classes to draw from.

    Returns:
        A strategy; it shrinks to no clipping, if that is among them.

    Raises:
        InvalidArgument: for classes that it does not know.

    >>> from hypothesis import find
    >>> find(rules(), lambda rule: rule.factors(np.array([1.0, 2.0]))[1] == 0.5)
    SmallestNorm()
    """
    return st.one_of([_RULES[kind] for kind in _chosen("kinds", kinds, _RULES)])


def batch_sizes(*, largest: int = 64) -> SearchStrategy[int]:
    """Batch sizes B, often with many divisors.

    Args:
        largest: the largest.

    Returns:
        A strategy; it shrinks to 1.

    >>> from hypothesis import find
    >>> find(batch_sizes(), lambda size: size > 20)
    21
    """
    largest = check_integer("largest", largest, minimum=1)
    factors = st.integers(1, math.isqrt(largest))
    return st.integers(1, largest) | st.builds(lambda a, b: a * b, factors, factors)


def micro_batch_sizes(batch_size: int) -> SearchStrategy[int]:
    """The divisors b of a batch size.

    Args:
        batch_size: B.

    Returns:
        A strategy; it shrinks to 1.

    >>> from hypothesis import find
    >>> find(micro_batch_sizes(12), lambda size: size % 3 == 0)
    3
    """
    return st.sampled_from(divisors(check_integer("batch_size", batch_size, minimum=1)))


def methods(*, batch_size: int, rule: Part[Rule] = None) -> SearchStrategy[Method]:
    """Methods for one batch size: SGD, and clipping in micro-batches of every divisor.

    Args:
        batch_size: B. To draw it, too: ``batch_sizes().flatmap(lambda B: methods(batch_size=B))``.
        rule: the clipping rule; any of :func:`rules` unless told.

    Returns:
        A strategy; it shrinks to SGD.

    >>> from hypothesis import find
    >>> found = find(methods(batch_size=8, rule=SmallestNorm()), lambda one: one != SGD())
    >>> str(found)
    'clipping, b = 1'
    """
    sizes = micro_batch_sizes(batch_size)
    clipped = st.builds(MicroBatchClipping, sizes, rule=_drawn_from(rule, rules()))
    return st.just(SGD()) | clipped


# ------------------------------------------------------------------------- settings of bounds

# What is drawn for a quantity of mbsim.theory.QUANTITIES whose own range is too wide.
_VALUES: dict[str, SearchStrategy[Any]] = {
    "step_size": st.floats(1 / 1024, 1),
    "steps": st.integers(1, 10**6),
    "probability": _PROBABILITIES,
    "norm_ratio": _NORM_RATIOS,
}

# Nearer to the longest step, where sharper forms have a pole, rounding would decide their sign.
_OF_THE_LONGEST_STEP = st.floats(1 / 1024, 63 / 64)


def bound_values(
    *bounds: Formula, holding: bool = True, **fixed: Any
) -> SearchStrategy[dict[str, Any]]:
    """Keyword values for :meth:`Bound.evaluate <mbsim.theory.Bound.evaluate>`.

    Micro-batch sizes divide batch sizes, counts of draggers are below the micro-batch size, and
    every other quantity is in its own range, drawn by itself: quantities that are measured along a
    run are not made to fit a run.

    Args:
        bounds: one or more bounds or formulas; what is drawn has all of their names.
        holding: whether to draw step sizes and horizons that satisfy the bounds' conditions, so
            that :meth:`Bound.holds <mbsim.theory.Bound.holds>` is true of all of them.
        fixed: values or strategies by name. A fixed step_size or steps is taken as it is.

    Returns:
        A strategy for dicts.

    Raises:
        InvalidArgument: for names that no bound has; and, when drawing, for conditions that are
            neither an upper limit on step_size nor a lower one on steps.

    >>> from hypothesis import given
    >>> from mbsim.theory import sgd_bound
    >>> @given(values=bound_values(sgd_bound(), sgd_bound("sharper"), coherence=0.0))
    ... def check(values):
    ...     assert sgd_bound().holds(**values)
    ...     plain, sharper = (sgd_bound(form).evaluate(**values) for form in ("plain", "sharper"))
    ...     assert sharper <= plain * (1 + 1e-12)
    >>> check()
    """
    names = tuple(dict.fromkeys(name for bound in bounds for name in bound.names))
    strangers = [name for name in fixed if name not in names]
    if strangers:
        raise InvalidArgument(
            f"{', '.join(strangers)} is no quantity of these bounds, which have {', '.join(names)}"
        )
    parts = {name: _drawn_from(part, st.nothing()) for name, part in fixed.items()}
    conditions = [c for bound in bounds for c in getattr(bound, "conditions", ()) if holding]
    return _bound_values(names, parts, conditions)


@st.composite
def _bound_values(
    draw: DrawFn,
    names: tuple[str, ...],
    fixed: dict[str, SearchStrategy[Any]],
    conditions: list[Any],
) -> dict[str, Any]:
    from mbsim.theory import QUANTITIES, Formula

    for condition in conditions:
        if (condition.name, condition.comparison[0]) not in (("step_size", "<"), ("steps", ">")):
            raise InvalidArgument(
                f"the condition {condition.relation} is no limit on step_size or steps; "
                "pass holding=False"
            )
    limited = {condition.name for condition in conditions} - set(fixed)
    values = {name: draw(strategy) for name, strategy in fixed.items()}
    values |= _sizes(draw, names, values)
    for name in names:
        if name not in values and name not in limited:
            values[name] = draw(_values_of(QUANTITIES[name]))
    for name in sorted(limited, reverse=True):  # the step size may depend on the horizon
        limits = []
        for expression in (c.limit for c in conditions if c.name == name):
            limit = Formula(name="a limit", expression=expression, source="")
            limits.append(limit.evaluate(**limit.picked(values)))
        if name == "steps":
            values[name] = max(1, *map(math.ceil, limits)) + draw(st.integers(0, 10**6))
        else:
            values[name] = min(limits) * draw(_OF_THE_LONGEST_STEP)
    return {name: values[name] for name in names}


def _sizes(draw: DrawFn, names: tuple[str, ...], known: dict[str, Any]) -> dict[str, int]:
    """B, b and the count of draggers, as far as they are asked for and not known."""
    found: dict[str, int] = {}
    batch, size = known.get("batch_size"), known.get("micro_batch_size")
    if "micro_batch_size" in names and size is None:
        size = draw(st.integers(1, 16) if batch is None else micro_batch_sizes(batch))
        found["micro_batch_size"] = size
    if "batch_size" in names and batch is None:
        found["batch_size"] = (size or 1) * draw(st.integers(1, 16))
    if "dragger_count" in names and "dragger_count" not in known:
        found["dragger_count"] = draw(st.integers(0, (size or 1) - 1))
    return found


def _values_of(quantity: Any) -> SearchStrategy[Any]:
    """Values of a quantity of :data:`~mbsim.theory.QUANTITIES`, none of them 0 if open."""
    if quantity.name in _VALUES:
        return _VALUES[quantity.name]
    if quantity.whole:
        return st.integers(1, 64)
    least = 1 / 64 if quantity.above is not None else 0.0
    if quantity.below is not None:
        return st.floats(least, quantity.below, exclude_max=True, allow_subnormal=False)
    if quantity.maximum is None:
        return st.floats(1 / 64, 64)
    return st.floats(least, quantity.maximum, allow_subnormal=False)


# ------------------------------------------------------------------------- gradients


def gradient_batches(
    *,
    batch_size: Part[int] = None,
    dim: Part[int] = None,
    zeros: bool = True,
    smallest: float = 1e-9,
    largest: float = 1e9,
) -> SearchStrategy[Array]:
    """Per-example gradients ``[B, d]`` on which careless code breaks: zeros, ties, every size.

    Args:
        batch_size: B; 1 to 12 unless told.
        dim: d; 1 to 4 unless told.
        zeros: whether coordinates, and so whole examples, may be 0.
        smallest: no coordinate that is not 0 is below this in absolute value.
        largest: no coordinate is above it. Examples of both sizes come in one batch. (Squares of
            1e200 and of 1e-200 leave the range of float64; :func:`mbsim.clipping.update` is right
            all the same.)

    Returns:
        A strategy for float64 arrays; it shrinks to zeros, or to ones where these are excluded.

    Raises:
        InvalidArgument: for sizes below 1, and where `largest` is not at least 16 times
            `smallest`.

    >>> from hypothesis import given
    >>> @given(gradients=gradient_batches(batch_size=6, zeros=False))
    ... def check(gradients):
    ...     assert gradients.shape[0] == 6 and np.abs(gradients).min() >= 1e-9
    >>> check()
    """
    small = check_number("smallest", smallest, above=0)
    large = check_number("largest", largest, minimum=16 * small)
    # Coordinates are 2^e times a mantissa from 1/8 to 1: the e that keep both ends.
    low, high = math.ceil(math.log2(small)) + 3, math.floor(math.log2(large))
    mantissas = st.floats(1 / 8, 1)
    mantissas |= mantissas.map(lambda x: -x)
    if zeros:
        mantissas = st.just(0.0) | mantissas
    exponents = st.integers(low, high) | st.sampled_from([low, high])
    shapes = st.tuples(_count("batch_size", batch_size, 12), _count("dim", dim, 4))
    return _gradient_batches(shapes, mantissas, exponents)


@st.composite
def _gradient_batches(
    draw: DrawFn,
    shapes: SearchStrategy[tuple[int, int]],
    mantissas: SearchStrategy[float],
    exponents: SearchStrategy[int],
) -> Array:
    """Rows of a pool, each with a power of two and signs; a pool smaller than B repeats rows."""
    batch, dim = draw(shapes)
    rows = draw(st.integers(1, batch))
    pool = draw(_array(float, (rows, dim), mantissas))
    pool = pool * 2.0 ** draw(_array(int, rows, exponents))[:, None]
    signs = draw(_array(float, batch, _SIGNS, alike=True))
    which = draw(_array(int, batch, st.integers(0, rows - 1), alike=True))
    return signs[:, None] * pool[which] + 0.0  # no −0.0


class LabelledGradients(NamedTuple):
    """Per-example gradients of which it is known who is a dragger.

    Attributes:
        gradients: ``[B, d]``.
        is_dragger: ``[B]``, True for draggers.
        norm_ratio: c, every dragger's norm over the root-mean-square norm of the benign ones.

    >>> sample = LabelledGradients(np.diag([1.0, 3.0]), np.array([False, True]), norm_ratio=3.0)
    >>> sample.gradients[sample.is_dragger]
    array([[0., 3.]])
    """

    gradients: Array
    is_dragger: Mask
    norm_ratio: float


def benign_and_draggers(
    *,
    benign: Part[int] = None,
    draggers: Part[int] = None,
    benign_dim: Part[int] = None,
    dragger_dim: Part[int] = None,
    norm_ratio: Part[float] = None,
) -> SearchStrategy[LabelledGradients]:
    """Gradients that satisfy assumption A4 in the sample itself, for tests of those who check it.

    Benign gradients lie in a subspace of `benign_dim` dimensions, draggers are orthogonal to it,
    and each is `norm_ratio` times as long as the root-mean-square benign gradient; all up to
    rounding, some 1e-15 of their lengths. The subspaces are spanned by axes, or turned at random.
    Directions within them are arbitrary: draggers may be alike, opposite or orthogonal.

    Args:
        benign: how many benign gradients; 1 to 8 unless told. Not all of them are 0.
        draggers: how many draggers; 1 to 4 unless told.
        benign_dim: n; 1 to 4 unless told.
        dragger_dim: the dimensions that draggers live in, d − n; 1 to 4 unless told.
        norm_ratio: c; 1/16 to 64 unless told.

    Returns:
        A strategy for :class:`LabelledGradients`; it shrinks to one of each, along axes, of equal
        lengths.

    Source: [Wang2024] assumption 4.4; the theory page, section 2.

    >>> from hypothesis import given
    >>> @given(sample=benign_and_draggers(norm_ratio=3.0))
    ... def check(sample):
    ...     benign, strange = (sample.gradients[sample.is_dragger == who] for who in (False, True))
    ...     size = np.sqrt(np.square(benign).sum(axis=1).mean())
    ...     assert np.allclose(np.linalg.norm(strange, axis=1), 3 * size)
    ...     assert np.allclose(benign @ strange.T / size**2, 0)
    >>> check()
    """
    counts = st.tuples(
        _count("benign", benign, 8),
        _count("draggers", draggers, 4),
        _count("benign_dim", benign_dim, 4),
        _count("dragger_dim", dragger_dim, 4),
    )
    return _benign_and_draggers(counts, _drawn_from(norm_ratio, st.floats(1 / 16, 64)))


@st.composite
def _benign_and_draggers(
    draw: DrawFn, counts: SearchStrategy[tuple[int, ...]], ratios: SearchStrategy[float]
) -> LabelledGradients:
    n_benign, n_draggers, benign_dim, dragger_dim = draw(counts)
    ratio, scale = draw(ratios), draw(_SCALES)
    dim = benign_dim + dragger_dim
    gradients = np.zeros((n_benign + n_draggers, dim))
    inside = scale * draw(_array(float, (n_benign, benign_dim), _WITHIN_1))
    inside[-1] = scale * _directions(draw, 1, benign_dim)[0]  # one, at least, is not 0
    size = math.sqrt(np.square(inside).sum() / n_benign)
    gradients[:n_benign, :benign_dim] = inside
    gradients[n_benign:, benign_dim:] = ratio * size * _directions(draw, n_draggers, dragger_dim)
    seed = draw(st.integers(0, 2**16))
    if seed:  # 0 leaves the axes as they are
        normals = np.random.default_rng(seed).standard_normal((dim, dim))
        gradients = gradients @ np.linalg.qr(normals)[0]
    order = draw(st.permutations(range(len(gradients))))
    return LabelledGradients(gradients[order], np.array(order) >= n_benign, ratio)


def _directions(draw: DrawFn, count: int, dim: int) -> Array:
    """Unit vectors: one coordinate is ±1 before they are normalised."""
    vectors = draw(_array(float, (count, dim), _WITHIN_1))
    tops = draw(_array(int, count, st.integers(0, dim - 1), alike=True))
    vectors[np.arange(count), tops] = draw(_array(float, count, _SIGNS, alike=True))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
