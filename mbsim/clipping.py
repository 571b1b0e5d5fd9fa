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

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbsim._shared.values import declared
from mbsim.errors import (
    InvalidArgument,
    check_array,
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
        return np.divide(smallest, norms, out=np.zeros_like(norms), where=norms > 0)

    def rank(self, micro_batches: int) -> int:  # noqa: ARG002
        """The first."""
        return 0


@dataclass(frozen=True)
class FixedNorm:
    """A fixed threshold C: s_j = min(1, C/x_j). With b = 1 it is DP-SGD's per-example clipping.

    >>> FixedNorm(2.0).factors(np.array([1.0, 4.0]))
    array([1. , 0.5])
    """

    threshold: float
    own_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", check_number("threshold", self.threshold, above=0))

    def factors(self, norms: Floats) -> Floats:
        """s_j = min(1, C/x_j)."""
        return _clip_to(norms.dtype.type(self.threshold), norms)


@dataclass(frozen=True)
class QuantileNorm:
    """The threshold is the q-quantile Q of the step's norms: s_j = min(1, Q/x_j).

    Q is NumPy's "lower" quantile, always one of the norms; q = 0 is :class:`SmallestNorm`.

    >>> QuantileNorm(0.5).factors(np.array([1.0, 2.0, 4.0]))
    array([1. , 1. , 0.5])
    """

    q: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", check_number("q", self.q, minimum=0, maximum=1))

    def factors(self, norms: Floats) -> Floats:
        """s_j = min(1, Q/x_j)."""
        threshold = np.quantile(norms, self.q, axis=-1, keepdims=True, method="lower")
        return _clip_to(threshold, norms)

    def rank(self, micro_batches: int) -> int:
        """That of the q-quantile."""
        return int(np.quantile(np.arange(micro_batches), self.q, method="lower"))


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
        object.__setattr__(self, "epsilon", check_number("epsilon", self.epsilon, minimum=0))

    def factors(self, norms: Floats) -> Floats:
        """s_j = 1/(x_j + ε)."""
        shifted = norms + norms.dtype.type(self.epsilon)
        # Below the least normal number 1/x overflows: so short a gradient is read as 0.
        normal = shifted >= np.finfo(norms.dtype).tiny
        return np.divide(1, shifted, out=np.zeros_like(norms), where=normal)


# Squares of entries within these limits, and sums of up to 1e60 of them, neither overflow nor
# lose digits to underflow in float64; beyond them the arithmetic moves to extended precision.
_PLAIN_MIN, _PLAIN_MAX = 1e-120, 1e120
_EXTENDED_REACHES_FURTHER = bool(np.finfo(np.longdouble).maxexp > np.finfo(np.float64).maxexp)


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
) -> NDArray[np.float64]:
    r"""Algorithm 1 from micro-batch gradients: u = (1/m) Σ_j s_j X_j.

    Args:
        micro_batch_gradients: X, real numbers of shape ``[..., m, d]``; leading axes are
            independent steps.
        rule: the clipping rule; :class:`SmallestNorm` if none is given.
        nonfinite: ``"raise"`` refuses NaN and infinity; ``"drop"`` leaves the micro-batches that
            hold one out of the step: the rule and the mean see only the rest.

    Returns:
        The update u, float64 of shape ``[..., d]``, in the units of the gradients. It is right
        wherever it is representable, also for gradients of size 1e200 or 1e-200.

    Raises:
        InvalidArgument: for gradients that are not numbers, lack axes or are not finite, and for
            a step in which ``"drop"`` leaves no micro-batch.

    Source: [Wang2024] Algorithm 1.

    >>> apply([[3.0, 4.0], [0.0, 10.0]])          # norms 5 and 10: the second is halved
    array([1.5, 4.5])
    """
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    _check_nonfinite(nonfinite)
    gradients = check_array("micro_batch_gradients", micro_batch_gradients)
    if gradients.ndim < 2:
        raise InvalidArgument(
            f"micro_batch_gradients has shape {gradients.shape} and must have at least two axes, "
            "[..., micro-batch, coordinate]"
        )
    return _apply(gradients, rule, nonfinite, name="micro_batch_gradients")


def update(
    per_example_gradients: ArrayLike,
    micro_batch_size: int,
    rule: Rule | None = None,
    *,
    nonfinite: str = "raise",
) -> NDArray[np.float64]:
    """Algorithm 1 from per-example gradients, in contiguous micro-batches of b.

    Micro-batch j holds the examples j·b … (j+1)·b − 1; shuffle the examples first if their order
    means something.

    Args:
        per_example_gradients: real numbers of shape ``[..., B, d]``.
        micro_batch_size: b; it must divide B.
        rule: the clipping rule; :class:`SmallestNorm` if none is given.
        nonfinite: as in :func:`apply`.

    Returns:
        The update u, float64 of shape ``[..., d]``.

    Raises:
        InvalidArgument: as :func:`apply`, and for a b that does not divide B.

    Source: [Wang2024] Algorithm 1.

    >>> update([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 1.0]], micro_batch_size=2)
    array([0.5, 0.5])
    """
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    _check_nonfinite(nonfinite)
    gradients = check_array("per_example_gradients", per_example_gradients)
    if gradients.ndim < 2:
        raise InvalidArgument(
            f"per_example_gradients has shape {gradients.shape} and must have at least two axes, "
            "[..., example, coordinate]"
        )
    *leading, examples, dim = gradients.shape
    m = check_divides(micro_batch_size, examples)
    if nonfinite == "raise":
        check_finite("per_example_gradients", gradients)
    # Averages near the largest float would overflow on the way, and tiny ones lose their direction.
    wide = _widened(gradients) if _extreme(gradients) else gradients
    with np.errstate(invalid="ignore"):  # inf - inf in a micro-batch that is about to be dropped
        means = wide.reshape(*leading, m, examples // m, dim).mean(axis=-2)
    return _apply(means, rule, nonfinite, name="per_example_gradients")


def _check_nonfinite(nonfinite: object) -> None:
    if not isinstance(nonfinite, str) or nonfinite not in ("raise", "drop"):
        raise InvalidArgument(f"nonfinite={shown(nonfinite)} must be 'raise' or 'drop'")


def _apply(
    gradients: NDArray[np.floating], rule: Rule, nonfinite: str, *, name: str
) -> NDArray[np.float64]:
    finite = np.isfinite(gradients).all(axis=-1)
    if finite.all():
        return _clipped_mean(gradients, rule)
    if nonfinite == "raise":
        check_finite(name, gradients)
    out = np.empty((*gradients.shape[:-2], gradients.shape[-1]))
    for step in np.ndindex(finite.shape[:-1]):
        if not finite[step].any():
            raise InvalidArgument(
                f"{name} leaves no finite micro-batch in step {step}, so nonfinite='drop' "
                "has nothing to average"
            )
        out[step] = _clipped_mean(gradients[step][finite[step]], rule)
    return out


def _clipped_mean(gradients: NDArray[np.floating], rule: Rule) -> NDArray[np.float64]:
    """u = (1/m) Σ_j s_j X_j for finite X of shape [..., m, d]."""
    if _extreme(gradients):
        gradients = _widened(gradients)
    norms = np.sqrt(np.square(gradients).sum(axis=-1))
    factors = np.asarray(rule.factors(norms))
    if factors.shape != norms.shape:
        raise InvalidArgument(
            f"rule={shown(rule)} returned factors of shape {factors.shape} for norms of shape "
            f"{norms.shape}; they must be the same"
        )
    clipped = (factors[..., None] * gradients).mean(axis=-2)
    result: NDArray[np.float64] = clipped.astype(np.float64)
    check_finite(f"the update of rule={shown(rule)}", result)
    return result


def _extreme(vectors: NDArray[np.floating]) -> bool:
    """Whether a vector (the last axis) is beyond the plain limits; NaN and ∞ are overlooked."""
    largest = np.where(np.isfinite(vectors), np.abs(vectors), 0).max(axis=-1)
    return bool(((largest > _PLAIN_MAX) | ((largest < _PLAIN_MIN) & (largest > 0))).any())


def _widened(gradients: NDArray[np.floating]) -> NDArray[np.floating]:
    if not _EXTENDED_REACHES_FURTHER:
        raise InvalidArgument(
            f"gradients of size {float(np.abs(gradients).max()):g} are beyond what this platform's "
            "floating point can clip safely; scale them into [1e-120, 1e120]"
        )
    return gradients.astype(np.longdouble)
