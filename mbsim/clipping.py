r"""Clipping rules, and Algorithm 1 of the paper on plain arrays.

A *micro-batch* is here the unit that is clipped: the mini-batch of B examples is split into
m = B/b micro-batches of b, the gradients in each are averaged to X_j, and a rule turns the norms
x_j = ‖X_j‖ into factors s_j ≥ 0. The update is

.. math:: u = \frac1m \sum_{j=1}^{m} s_j X_j .

A rule only ever sees norms, so the same object serves arrays, the scalar engine, the exact drift
and a Gram matrix. A rule of your own is any object with a method ``factors(norms)`` that maps an
array ``[..., m]`` to one of the same shape (:class:`Rule`).

Source: [Wang2024] Algorithm 1 for the smallest norm; the other rules are the common alternatives
that it is compared with. Where the sum of clipped micro-batches is written instead of the mean,
its step size is ours divided by m.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbsim._shared.arrays import ratio
from mbsim._shared.values import declared, set_field
from mbsim.compiled.twins import Twin
from mbsim.errors import (
    InvalidArgument,
    as_numbers,
    check_divides,
    check_finite,
    check_number,
    shown,
)

__all__ = [
    "FixedNorm",
    "NoClipping",
    "QuantileNorm",
    "Rule",
    "SmallestNorm",
    "UnitNorm",
    "apply",
    "update",
]

Floats = TypeVar("Floats", bound=NDArray[np.floating])


@runtime_checkable
class Rule(Protocol):
    """What a clipping rule must offer: norms in, factors out.

    ``factors`` must be a pure function, vectorised over leading axes, that looks at nothing but
    the norms of one step (the last axis), returns finite factors of at least 0 for finite norms
    (also for norms of 0), and keeps the floating type it is given.

    A rule may say more of itself, which makes its drift exact (:func:`rank_of`,
    :func:`looks_at_own_norm`): ``rank(m)``, if it clips to the norm of that rank among the m (0 is
    the smallest), and ``own_norm = True``, if the factor of a micro-batch depends on its own norm
    alone. A subclass must say it anew.
    """

    def factors(self, norms: Floats) -> Floats:
        """The factor of every micro-batch: ``[..., m]`` norms to ``[..., m]`` factors."""
        ...


def rank_of(rule: Rule, micro_batches: int) -> int | None:
    """The rank of the norm that is the rule's threshold (0 is the smallest), if it is one of them.

    >>> rank_of(SmallestNorm(), 8), rank_of(QuantileNorm(0.5), 8), rank_of(FixedNorm(1.0), 8)
    (0, 3, None)
    """
    rank = declared(rule, "rank")
    return None if rank is None else int(rank(micro_batches))


def looks_at_own_norm(rule: Rule) -> bool:
    """Whether the factor of a micro-batch depends on its own norm alone."""
    return bool(declared(rule, "own_norm", False))


def _clip_to(target: Any, norms: Floats) -> Floats:
    """min(1, target/norm), without dividing by a norm of 0 (whose micro-batch is 0 anyway)."""
    clipped = norms > target
    return np.divide(target, norms, out=np.ones_like(norms), where=clipped)


@dataclass(frozen=True)
class NoClipping:
    """Every factor is 1: plain SGD, the same update for every micro-batch size.

    >>> NoClipping().factors(np.array([3.0, 5.0]))
    array([1., 1.])
    """

    def factors(self, norms: Floats) -> Floats:
        """s_j = 1."""
        return np.ones_like(norms)

    def rank(self, micro_batches: int) -> int:
        """The last: a threshold that is the largest norm clips nothing."""
        return micro_batches - 1

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.none, np.zeros(0)


@dataclass(frozen=True)
class SmallestNorm:
    """Algorithm 1: every micro-batch is scaled down to the smallest norm ρ among them.

    s_j = ρ/x_j with ρ = min_i x_i, and 0/0 read as 0: one micro-batch of norm 0 makes ρ = 0 and
    the step stands still. It has no parameter, and with b = B (one micro-batch) it is SGD.
    Source: [Wang2024] Algorithm 1.

    >>> SmallestNorm().factors(np.array([1.0, 2.0, 4.0]))
    array([1.  , 0.5 , 0.25])
    >>> SmallestNorm().factors(np.array([0.0, 2.0]))
    array([0., 0.])
    """

    def factors(self, norms: Floats) -> Floats:
        """s_j = ρ/x_j."""
        smallest = norms.min(axis=-1, keepdims=True)
        if smallest.all():
            return smallest / norms
        found: Floats = ratio(smallest, norms)
        return found

    def rank(self, micro_batches: int) -> int:  # noqa: ARG002
        """The first."""
        return 0

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.smallest, np.zeros(0)


@dataclass(frozen=True)
class FixedNorm:
    """A fixed threshold C: s_j = min(1, C/x_j). With b = 1 it is DP-SGD's per-example clipping.

    >>> FixedNorm(2.0).factors(np.array([1.0, 4.0]))
    array([1. , 0.5])
    """

    threshold: float
    own_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_field(self, "threshold", check_number("threshold", self.threshold, above=0))

    def factors(self, norms: Floats) -> Floats:
        """s_j = min(1, C/x_j)."""
        return _clip_to(norms.dtype.type(self.threshold), norms)

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.fixed, np.array([self.threshold])


@dataclass(frozen=True)
class QuantileNorm:
    """The threshold is the q-quantile Q of the step's norms: s_j = min(1, Q/x_j).

    Q is NumPy's "lower" quantile, always one of the norms; q = 0 is :class:`SmallestNorm`.

    >>> QuantileNorm(0.5).factors(np.array([1.0, 2.0, 4.0]))
    array([1. , 1. , 0.5])
    """

    q: float

    def __post_init__(self) -> None:
        set_field(self, "q", check_number("q", self.q, minimum=0, maximum=1))

    def factors(self, norms: Floats) -> Floats:
        """s_j = min(1, Q/x_j)."""
        threshold = np.quantile(norms, self.q, axis=-1, keepdims=True, method="lower")
        return _clip_to(threshold, norms)

    def rank(self, micro_batches: int) -> int:
        """That of the q-quantile."""
        return int(np.quantile(np.arange(micro_batches), self.q, method="lower"))

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.ranked, np.array([self.q])


@dataclass(frozen=True)
class UnitNorm:
    """Every micro-batch is normalised: s_j = 1/(x_j + ε), with 1/0 read as 0.

    Automatic clipping (AUTO-S; Bu, Wang, Zha, Karypis, 2023), with micro-batches in the place of
    examples. It is not linear in the scale of the gradients: its step has about unit length.

    >>> UnitNorm(1.0).factors(np.array([0.0, 1.0, 3.0]))
    array([1.  , 0.5 , 0.25])
    """

    epsilon: float = 0.01
    own_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_field(self, "epsilon", check_number("epsilon", self.epsilon, minimum=0))

    def factors(self, norms: Floats) -> Floats:
        """s_j = 1/(x_j + ε)."""
        shifted = norms + norms.dtype.type(self.epsilon)
        # Below the least normal number 1/x overflows: so short a gradient is read as 0.
        normal = shifted >= np.finfo(norms.dtype).tiny
        return np.divide(1, shifted, out=np.zeros_like(norms), where=normal)

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.unit, np.array([self.epsilon])


def check_rule_argument(rule: object) -> Rule:
    """`rule` itself if it has a method ``factors``."""
    if isinstance(rule, type) or not isinstance(rule, Rule):
        raise InvalidArgument(
            f"rule={shown(rule)} must be a clipping rule, an object with a method factors(norms), "
            "such as mbsim.clipping.SmallestNorm()"
        )
    return rule


def apply(
    micro_batch_gradients: ArrayLike, rule: Rule | None = None, *, nonfinite: str = "raise"
) -> NDArray[np.floating]:
    r"""Algorithm 1 from micro-batch gradients: u = (1/m) Σ_j s_j X_j.

    Args:
        micro_batch_gradients: X, real numbers of shape ``[..., m, d]``; leading axes are
            independent steps. A gradient that is a matrix must be flattened first, for
            ``[m, out, in]`` are taken for m steps of `out` micro-batches.
        rule: the clipping rule; :class:`SmallestNorm` if none is given.
        nonfinite: ``"raise"`` refuses NaN and infinity; ``"drop"`` leaves the micro-batches that
            hold one out of the step: the rule and the mean see only the rest.

    Returns:
        The update u of shape ``[..., d]``, in the units and the floating type of the gradients
        (float64 for integers). It is right wherever it is representable, also for gradients of size
        1e200 or 1e-200 and for half precision: sums are taken in float64 or wider.

    Raises:
        InvalidArgument: for gradients that are not numbers, lack axes or are not finite, and for
            a step in which ``"drop"`` leaves no micro-batch.

    Source: [Wang2024] Algorithm 1.

    >>> apply([[3.0, 4.0], [0.0, 10.0]])          # norms 5 and 10: the second is halved
    array([1.5, 4.5])
    """
    return _clipped(
        "micro_batch_gradients", "micro-batch", micro_batch_gradients, 1, rule, nonfinite
    )


def update(
    per_example_gradients: ArrayLike,
    micro_batch_size: int,
    rule: Rule | None = None,
    *,
    nonfinite: str = "raise",
) -> NDArray[np.floating]:
    """Algorithm 1 from per-example gradients, in contiguous micro-batches of b.

    Micro-batch j holds the examples j·b … (j+1)·b − 1; shuffle the examples first if their order
    means something.

    Args:
        per_example_gradients: real numbers of shape ``[..., B, d]``; leading axes are independent
            steps. The gradients of a layer, ``[B, out, in]``, are B steps of `out` examples unless
            they are flattened to ``[B, out * in]`` first.
        micro_batch_size: b; it must divide B.
        rule: the clipping rule; :class:`SmallestNorm` if none is given.
        nonfinite: as in :func:`apply`.

    Returns:
        The update u of shape ``[..., d]``, as in :func:`apply`. Memory beyond it and the input
        stays under a tenth of a large input.

    Raises:
        InvalidArgument: as :func:`apply`, and for a b that does not divide B.

    Source: [Wang2024] Algorithm 1.

    >>> update([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 1.0]], micro_batch_size=2)
    array([0.5, 0.5])
    """
    return _clipped(
        "per_example_gradients", "example", per_example_gradients, micro_batch_size, rule, nonfinite
    )


def _clipped(
    name: str, unit: str, gradients: ArrayLike, size: Any, rule: Rule | None, nonfinite: Any
) -> NDArray[np.floating]:
    """Algorithm 1 from `gradients` ``[..., B, d]``, in micro-batches of `size`."""
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    if not isinstance(nonfinite, str) or nonfinite not in ("raise", "drop"):
        raise InvalidArgument(f"nonfinite={shown(nonfinite)} must be 'raise' or 'drop'")
    x = as_numbers(name, gradients)
    if x.ndim < 2:
        raise InvalidArgument(
            f"{name} has shape {x.shape} and must have at least two axes, [..., {unit}, coordinate]"
        )
    *leading, examples, dim = x.shape
    m = check_divides(size, examples)
    parts, norms = _norms(x.reshape(-1, m, examples // m, dim))
    out = np.empty((len(parts), dim), np.float64 if x.dtype.kind in "iu" else x.dtype)
    finite = np.isfinite(norms)
    if finite.all():
        factors = _factors(rule, norms.reshape(*leading, m))
        _average(parts, factors.reshape(-1, m), np.ones(m, bool), out)
    elif nonfinite == "raise":
        check_finite(name, x)
    else:
        for step, kept in enumerate(finite):
            if not kept.any():
                raise InvalidArgument(
                    f"{name} leaves no finite micro-batch in step "
                    f"{tuple(map(int, np.unravel_index(step, leading)))}, so nonfinite='drop' "
                    "has nothing to average"
                )
            factors = np.zeros((1, m), norms.dtype)
            factors[:, kept] = _factors(rule, norms[step, kept])
            _average(parts[step : step + 1], factors, kept, out[step : step + 1])
    check_finite(f"the update of rule={shown(rule)}", out)
    return out.reshape(*leading, dim)


def _factors(rule: Rule, norms: NDArray[np.floating]) -> NDArray[np.floating]:
    factors = np.asarray(rule.factors(norms))
    if factors.shape != norms.shape:
        raise InvalidArgument(
            f"rule={shown(rule)} returned factors of shape {factors.shape} for norms of shape "
            f"{norms.shape}; they must be the same"
        )
    return factors


# ---------------------------------------------------------------------------- in blocks

# Means held at a time (1 MiB in float64), and the fewest columns of them, to read memory in order.
_BLOCK, _COLUMNS = 2**17, 2**14


def _norms(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.floating]]:
    """‖X_j‖ for x ``[steps, m, b, d]``, not finite where an example is not, ``[steps, m]``.

    Beside them x again, or the means X in its place, ``[steps, m, 1, d]``, if they are few. The
    type of the norms is float64, or extended precision where the squares of float64 would not do.
    """
    parts, norms = _measured(x, np.promote_types(x.dtype, np.float64))
    if not _plain(norms).all() and x.dtype.kind in "fiu":
        # Which norms are not what they seem: NaN and a true 0 are. (An unsigned −x would wrap.)
        most, least = x.max(axis=(-1, -2)), x.min(axis=(-1, -2))
        size = np.maximum(most.astype(norms.dtype), -least.astype(norms.dtype))
        if (np.isfinite(size) & (size > 0) & ~_plain(norms)).any():
            if np.finfo(np.longdouble).maxexp <= np.finfo(norms.dtype).maxexp:
                raise InvalidArgument(
                    f"gradients of size {size[np.isfinite(size)].max()!s} are beyond what this "
                    "platform's floating point can clip safely; scale them into [1e-70, 1e70]"
                )
            return _measured(x, np.dtype(np.longdouble))
    return parts, norms


def _plain(norms: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Norms whose squares and ratios are far from the ends of their type."""
    limit = np.ldexp(norms.dtype.type(1), np.finfo(norms.dtype).maxexp // 4)
    return (norms > 1 / limit) & (norms < limit)


def _measured(x: NDArray[Any], kind: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.floating]]:
    steps, m, b, d = x.shape
    squares = np.zeros((steps, m), kind)
    few = b > 1 and 16 * kind.itemsize * steps * m * d <= x.nbytes
    means = np.empty((steps, m, 1, d), kind) if few else x
    with np.errstate(all="ignore"):  # what is not finite is seen by the caller
        for step, columns, groups in _blocks(x.shape):
            for group in groups:
                block = _means(x[step, group, :, columns], kind)
                squares[step, group] += np.einsum("smd,smd->sm", block, block)
                if few:
                    means[step, group, 0, columns] = block
    return means, np.sqrt(squares)


def _average(
    x: NDArray[Any], factors: NDArray[np.floating], kept: NDArray[np.bool_], out: NDArray[Any]
) -> None:
    """(1/m) Σ_j s_j X_j over the micro-batches that are kept, for x ``[steps, m, b, d]``."""
    kind = np.promote_types(factors.dtype, np.float64)
    with np.errstate(all="ignore"):  # the caller looks whether the result is finite
        for step, columns, groups in _blocks(x.shape):
            total = np.zeros((), kind)
            for group in groups:
                block = _means(x[step, group, :, columns], kind)
                weights = factors[step, group]
                if not kept[group].all():
                    block, weights = block[:, kept[group]], weights[:, kept[group]]
                total = total + (weights[:, None] @ block)[:, 0]
            out[step, columns] = total / kept.sum()


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Steps, columns, and groups of micro-batches that together are all of them."""
    steps, m, _, d = shape
    columns = min(d, max(_COLUMNS, _BLOCK // m))
    rows, at_once = min(m, _BLOCK // columns), max(1, _BLOCK // (m * d))
    groups = [slice(j, j + rows) for j in range(0, m, rows)]
    for i in range(0, steps, at_once):
        for c in range(0, d, columns):
            yield slice(i, i + at_once), slice(c, c + columns), groups


def _means(examples: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """``[steps, m, b, d]`` to ``[steps, m, d]``, added up in `kind` without a copy in it."""
    b = examples.shape[2]
    if b == 1:
        return examples[:, :, 0].astype(kind, copy=False)
    means: NDArray[Any] = np.add.reduce(examples, axis=2, dtype=kind)
    means /= b
    return means
