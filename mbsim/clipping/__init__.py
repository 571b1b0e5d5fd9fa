r"""Clipping rules, and Algorithm 1 of the paper on any array.

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

from typing import NoReturn

from mbsim._shared.meant import no_such_name as no_such_name
from mbsim.clipping.algorithm import apply, update
from mbsim.clipping.rules import (
    FixedNorm,
    NoClipping,
    QuantileNorm,
    Rule,
    SmallestNorm,
    TrimmedNorm,
    UnitNorm,
    WithinGroups,
)
from mbsim.clipping.rules import check_rule_argument as check_rule_argument
from mbsim.clipping.rules import looks_at_own_norm as looks_at_own_norm
from mbsim.clipping.rules import rank_of as rank_of

__all__ = [
    "FixedNorm",
    "NoClipping",
    "QuantileNorm",
    "Rule",
    "SmallestNorm",
    "TrimmedNorm",
    "UnitNorm",
    "WithinGroups",
    "apply",
    "update",
]


def __getattr__(name: str) -> NoReturn:
    raise no_such_name("mbsim.clipping", name)
