"""Methods: a clipping rule and a micro-batch size. Plain SGD is one."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol, runtime_checkable

from mbsim._shared.meant import answering
from mbsim._shared.values import set_field
from mbsim.clipping import NoClipping, Rule, SmallestNorm, check_rule_argument
from mbsim.errors import InvalidArgument, check_divides, check_integer, shown

__all__ = ["SGD", "Method", "MicroBatchClipping"]


@runtime_checkable
class Method(Protocol):
    """How the examples of one mini-batch become one update."""

    @property
    def rule(self) -> Rule:
        """The clipping rule."""
        ...

    def micro_batches(self, batch_size: int) -> int:
        """The number of micro-batches m that a batch of `batch_size` examples is split into."""
        ...


@answering
@dataclass(frozen=True)
class SGD:
    """Mini-batch SGD: the mean gradient of the batch, nothing clipped.

    >>> SGD().micro_batches(batch_size=64)
    1
    """

    @property
    def rule(self) -> Rule:
        """No clipping."""
        return NoClipping()

    def micro_batches(self, batch_size: int) -> int:
        """One: every split of the batch gives SGD the same update."""
        check_integer("batch_size", batch_size, minimum=1)
        return 1

    def __str__(self) -> str:
        return "SGD"


@answering
@dataclass(frozen=True)
class MicroBatchClipping:
    """Micro-batches of b examples, averaged, clipped by a rule and averaged again.

    Args:
        micro_batch_size: the paper's b; it must divide the batch size B it is used with.
        rule: the clipping rule; the smallest norm (Algorithm 1 of [Wang2024]) unless told.

    >>> MicroBatchClipping(micro_batch_size=8).micro_batches(batch_size=64)
    8
    """

    micro_batch_size: int
    _: KW_ONLY
    rule: Rule = field(default_factory=SmallestNorm)

    def __post_init__(self) -> None:
        size = check_integer("micro_batch_size", self.micro_batch_size, minimum=1)
        set_field(self, "micro_batch_size", size)
        check_rule_argument(self.rule)

    def micro_batches(self, batch_size: int) -> int:
        """m = B/b."""
        return check_divides(self.micro_batch_size, batch_size)

    def __str__(self) -> str:
        rule = "" if self.rule == SmallestNorm() else f", {self.rule}"
        return f"clipping, b = {self.micro_batch_size}{rule}"


def check_method(method: Any) -> Method:
    """`method` itself if it is one."""
    if isinstance(method, type) or not isinstance(method, Method):
        raise InvalidArgument(
            f"method={shown(method)} must be a method such as mbsim.SGD() or "
            "mbsim.MicroBatchClipping(micro_batch_size=8)"
        )
    return method
