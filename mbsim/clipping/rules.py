"""Clipping rules: functions of the norms of one step, on any array of the array API."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np

from mbsim._shared.meant import answering
from mbsim._shared.values import declared, set_field
from mbsim.compiled.twins import Twin
from mbsim.errors import InvalidArgument, as_numbers, check_number, shown

__all__ = [
    "FixedNorm",
    "NoClipping",
    "QuantileNorm",
    "Rule",
    "SmallestNorm",
    "TrimmedNorm",
    "UnitNorm",
    "WithinGroups",
]

# An array of floats: NumPy's, PyTorch's, JAX's, or another's that keeps to the array API.
Floats = TypeVar("Floats", bound=Any)


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


def namespace(array: Any) -> Any:
    """The functions for an array of its kind; what is not NumPy's is found by array-api-compat."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    from array_api_compat import array_namespace

    return array_namespace(array)


def _share(above: Any, below: Floats, where: Any, otherwise: float) -> Floats:
    """above/below where that is asked for, without dividing elsewhere (nor differentiating)."""
    xp = namespace(below)
    found: Floats = xp.where(where, above / xp.where(where, below, 1.0), otherwise)
    return found


@dataclass(frozen=True)
class NoClipping:
    """Every factor is 1: plain SGD, the same update for every micro-batch size.

    >>> NoClipping().factors(np.array([3.0, 5.0]))
    array([1., 1.])
    """

    def factors(self, norms: Floats) -> Floats:
        """s_j = 1."""
        return namespace(norms).ones_like(norms)

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
        if isinstance(norms, np.ndarray):
            smallest = norms.min(axis=-1, keepdims=True)
            if smallest.all():  # most often, and quicker
                return smallest / norms
        smallest = namespace(norms).min(norms, axis=-1, keepdims=True)
        return _share(smallest, norms, norms != 0, 0.0)

    def rank(self, micro_batches: int) -> int:  # noqa: ARG002
        """The first."""
        return 0

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.smallest, np.zeros(0)


@answering
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
        # No norm is above the largest of its type, which not every library compares to a larger.
        threshold = min(self.threshold, float(namespace(norms).finfo(norms.dtype).max))
        return _share(threshold, norms, norms > threshold, 1.0)

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.fixed, np.array([self.threshold])


@answering
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
        rank = self.rank(norms.shape[-1])
        threshold = namespace(norms).sort(norms, axis=-1)[..., rank : rank + 1]
        return _share(threshold, norms, norms > threshold, 1.0)

    def rank(self, micro_batches: int) -> int:
        """That of the q-quantile."""
        return math.floor(self.q * (micro_batches - 1))

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.ranked, np.array([self.q])


@answering
@dataclass(frozen=True)
class TrimmedNorm:
    """The longest micro-batches are left out: s_j = m/k for the k = m − ⌊f m⌋ shortest, else 0.

    The update is the mean of the k shortest, f being the `fraction`. Norms that tie for the last
    places share them: where a places are left for c micro-batches of one norm, each has
    (a/c) m/k, so that no factor depends on an order, and equal norms give SGD.

    >>> TrimmedNorm(0.4).factors(np.array([3.0, 1.0, 2.0]))
    array([0. , 1.5, 1.5])
    >>> TrimmedNorm(0.5).factors(np.array([1.0, 2.0, 2.0, 2.0]))
    array([2.        , 0.66666667, 0.66666667, 0.66666667])
    """

    fraction: float

    def __post_init__(self) -> None:
        set_field(self, "fraction", check_number("fraction", self.fraction, minimum=0, below=1))

    def factors(self, norms: Floats) -> Floats:
        """s_j = m/k, the share of it in a tie, or 0."""
        xp, m = namespace(norms), norms.shape[-1]
        kept = max(1, m - math.floor(self.fraction * m))
        last = xp.sort(norms, axis=-1)[..., kept - 1 : kept]
        whole = xp.ones_like(norms)
        within = xp.where(norms < last, whole, 0.0)
        tied = xp.where(norms == last, whole, 0.0)
        places = kept - xp.sum(within, axis=-1, keepdims=True, dtype=norms.dtype)
        each = places / xp.sum(tied, axis=-1, keepdims=True, dtype=norms.dtype)
        found: Floats = (within + tied * each) * (m / kept)
        return found

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.trimmed, np.array([self.fraction])


@answering
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
        shifted = norms + self.epsilon
        # Below the least normal number 1/x overflows: so short a gradient is read as 0.
        normal = shifted >= namespace(norms).finfo(norms.dtype).smallest_normal
        return _share(1.0, shifted, normal, 0.0)

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        from mbsim.compiled import rules

        return rules.unit, np.array([self.epsilon])


@dataclass(frozen=True, kw_only=True)
class WithinGroups:
    """A rule applied to some groups of the micro-batches, each by itself: a threshold per group.

    Groups are domains: a domain with long gradients is then not held back by one with short ones.

    Args:
        groups: the group of each micro-batch of a step, in their order: m integers.
        rule: the clipping rule; the smallest norm unless told.
        even: whether each group's factors are then scaled to a mean of 1, so that no group loses
            weight against another, or against SGD (a group that stands still does).

    Source: the theory page, section 13.

    >>> norms = np.array([1.0, 2.0, 10.0, 40.0])
    >>> WithinGroups(groups=(0, 0, 1, 1)).factors(norms)
    array([1.  , 0.5 , 1.  , 0.25])
    >>> WithinGroups(groups=(0, 0, 1, 1), even=True).factors(norms)
    array([1.33333333, 0.66666667, 1.6       , 0.4       ])
    """

    groups: tuple[int, ...]
    rule: Rule = field(default_factory=SmallestNorm)
    even: bool = False

    def __post_init__(self) -> None:
        found = as_numbers("groups", self.groups)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise InvalidArgument(
                f"groups={shown(self.groups)} must be integers, one for each micro-batch"
            )
        set_field(self, "groups", tuple(found.tolist()))
        check_rule_argument(self.rule)
        if not isinstance(self.even, bool):
            raise InvalidArgument(f"even={shown(self.even)} must be True or False")

    def factors(self, norms: Floats) -> Floats:
        """Those of the rule in each group."""
        xp, m = namespace(norms), len(self.groups)
        if norms.shape[-1] != m:
            raise InvalidArgument(
                f"groups={shown(self.groups)} must be one for each of {norms.shape[-1]} "
                "micro-batches"
            )
        members, back, parts = *_layout(self.groups), []
        for places in members:
            part = self.rule.factors(xp.take(norms, xp.asarray(places), axis=-1))
            if self.even:
                mean = xp.mean(part, axis=-1, keepdims=True)
                part = _share(part, mean, mean > 0, 0.0)
            parts.append(part)
        found: Floats = xp.take(xp.concat(parts, axis=-1), xp.asarray(back), axis=-1)
        return found


@lru_cache
def _layout(groups: tuple[int, ...]) -> tuple[list[Any], Any]:
    """The places of each group, and where each place is when they stand one after another."""
    found = np.array(groups)
    members = [np.flatnonzero(found == group) for group in np.unique(found)]
    return members, np.argsort(np.concatenate(members))


def check_rule_argument(rule: object) -> Rule:
    """`rule` itself if it has a method ``factors``."""
    if isinstance(rule, type) or not isinstance(rule, Rule):
        raise InvalidArgument(
            f"rule={shown(rule)} must be a clipping rule, an object with a method factors(norms), "
            "such as mbsim.clipping.SmallestNorm()"
        )
    return rule
