r"""Algorithm 1 for a loop that accumulates gradients: one buffer, one pass.

.. math:: u = \frac{\sum_j n_j s_j X_j}{\sum_j n_j}, \qquad
          s_j = \frac{\rho}{x_j}:\quad u = \frac{\rho}{\sum_j n_j} \sum_j n_j \frac{X_j}{x_j} .

The smallest norm ρ is known after the last micro-batch only, but it is a common factor: so unit
gradients are added up, beside the least norm so far. That takes one buffer of a gradient's size
beside the gradient that a backward pass makes, whatever the number of micro-batches. With equal
weights n_j this is Algorithm 1 [Wang2024]; docs/use.md says what "micro-batch" means in which loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from mbsim._shared.values import declared
from mbsim.clipping import Rule, SmallestNorm, check_rule_argument, looks_at_own_norm, rank_of
from mbsim.errors import InvalidArgument, check_integer, check_number, shown

__all__ = ["MicroBatchClipper", "Step"]

# Elements whose squares are added up at once, in float64: a copy of them is all that it takes.
_BLOCK = 2**20
# A norm whose inverse is finite.
_LEAST = 1e-300
# A power of ten that every floating type of a gradient's buffer holds.
_RANGE = 1e30
# Sizes of micro-batches: with more, or less, float32 would not hold their sums.
_WEIGHTS = (1e-12, 1e12)
# A rule's rank among so many says whether it is always the first, or the last.
_MANY = 2**20

_log = logging.getLogger("mbsim")


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What one update was made of: micro-batches in the order in which they came, rank by rank.

    Attributes:
        norms: x_j, of gradients without a scaler's factor; NaN or infinite where left out.
        factors: s_j, and 0 for what was left out.
        weights: n_j.
        left_out: how many micro-batches were not finite, and so in neither sum nor count.
        how: "exact", or "tracked" for factors from the norms of earlier micro-batches.
        skipped: why there is no update, or "".

    >>> norms, factors, both = np.array([5.0, 10.0]), np.array([1.0, 0.5]), np.ones(2)
    >>> step = Step(norms=norms, factors=factors, weights=both, left_out=0, how="exact")
    >>> step.fraction_clipped
    0.5
    """

    norms: NDArray[np.float64]
    factors: NDArray[np.float64]
    weights: NDArray[np.float64]
    left_out: int
    how: str
    skipped: str = ""

    @property
    def fraction_clipped(self) -> float:
        """The share of what was not left out that has a factor below 1; NaN if all was."""
        kept = np.isfinite(self.norms) & (self.weights > 0)
        return float((self.factors[kept] < 1).mean()) if kept.any() else math.nan

    def __str__(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        kept = self.norms[np.isfinite(self.norms)]
        return (
            f"{len(self.norms)} micro-batches ({self.left_out} left out), norms {kept.min():.3g} "
            f"to {kept.max():.3g}, {self.fraction_clipped:.0%} clipped, {self.how}"
        )


class MicroBatchClipper:
    """Clips in a loop that accumulates gradients; ``.grad`` then holds Algorithm 1's update.

    Call :meth:`add` after the backward pass of each micro-batch's *mean* loss, not divided by the
    number of micro-batches, and :meth:`finish` before the optimizer's step.

    Args:
        params: the parameters, as an optimizer takes them. Frozen ones, and ones without gradient,
            are passed over, and one that is given twice counts once.
        rule: the clipping rule; :class:`~mbsim.clipping.SmallestNorm` if none is given. It, a fixed
            threshold, unit norms, and no clipping are exact in one pass. Other rules need all norms
            before the first factor. With :meth:`measure` in a pass before they are exact too;
            without, the factor of a micro-batch is what the rule gives it among the last `window`
            norms, its own included: a threshold tracked over steps, and :attr:`Step.how` says so.
        scaler: the ``GradScaler`` whose scaled losses are differentiated. Norms, and so fixed
            thresholds, are of gradients without its factor; ``.grad`` keeps it, for
            ``scaler.step``. Call :meth:`finish` before ``scaler.unscale_``. If a micro-batch was
            left out, which may be an overflow, the scale is lowered.
        group: the processes whose micro-batches make one step: all if ``torch.distributed`` is
            initialised, this one alone if False, or a process group. Run their backward passes
            under ``no_sync()`` of ``DistributedDataParallel``: gradients that are averages already
            are refused.
        window: how many norms a tracked rule looks at.

    Attributes:
        left_out: micro-batches left out so far, in all steps.
        skipped: steps skipped so far.

    Raises:
        InvalidArgument: for what cannot be clipped, and for calls in the wrong order; what was
            added before stays, :meth:`reset` forgets it, and ``.grad`` is as it was.

    Source: [Wang2024] Algorithm 1; tracked thresholds: Andrew, Thakkar, McMahan, Ramaswamy (2021),
    arXiv 1905.03871, who may not look at norms, and so count.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> clipper = MicroBatchClipper([w])
    >>> for direction in ([3.0, 4.0], [0.0, 10.0]):
    ...     (w @ torch.tensor(direction)).backward()
    ...     clipper.add()
    >>> print(clipper.finish())
    2 micro-batches (0 left out), norms 5 to 10, 50% clipped, exact
    >>> w.grad
    tensor([1.5000, 4.5000])
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        rule: Rule | None = None,
        *,
        scaler: Any = None,
        group: Any = None,
        window: int = 256,
    ) -> None:
        self.rule = check_rule_argument(SmallestNorm() if rule is None else rule)
        self.params = _parameters(params)
        self.scaler, self.group = enabled(scaler), group
        self.window = check_integer("window", window, minimum=1)
        self.left_out = self.skipped = 0
        ranked = declared(self.rule, "rank") is not None
        self._relative = ranked and rank_of(self.rule, _MANY) == 0
        self._plain = ranked and rank_of(self.rule, _MANY) == _MANY - 1
        self._exact = self._relative or self._plain or looks_at_own_norm(self.rule)
        self._recent: list[float] = []
        self._left: list[tuple[torch.Tensor, int]] = []  # what finish() has put into .grad
        self.reset()

    def reset(self) -> None:
        """Forget the micro-batches since the last step, as after an error in the loop."""
        self._sums: list[torch.Tensor | None] = [None] * len(self.params)
        self._seen: list[tuple[float, float, float]] = []  # norm, factor, weight
        self._measured: list[tuple[float, float]] = []  # norm, weight
        self._known: NDArray[np.float64] | None = None  # factors of what was measured
        self._scale: float | None = None

    def measure(self, weight: float = 1.0) -> None:
        """The first of two passes: note the norm of a micro-batch, and drop its gradient.

        Then make the same backward passes again, in the same order and with the same random
        numbers, each followed by :meth:`add`.
        """
        if self._seen:
            raise InvalidArgument("measure() must come before the first add() of a step")
        weight = _weight(weight)
        norm, _ = self._norm()
        self._measured.append((norm, weight))
        self._drop()

    def add(self, weight: float = 1.0) -> None:
        """Take a micro-batch's gradient out of ``.grad``, into the sum.

        Args:
            weight: n_j, the size of the micro-batch, in examples or tokens, whatever its loss is
                the mean of. A micro-batch of weight 0 is left out of everything, not counted.
        """
        weight = _weight(weight)
        norm, scale = self._norm()
        factor = self._factor(norm, weight)
        finite = math.isfinite(norm) and weight > 0
        # Unit gradients where the common factor comes last, else clipped ones.
        unit = 1 / (norm * scale) if self._relative and norm > _LEAST else factor
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            wide = torch.promote_types(p.dtype, torch.float32)
            total = self._sums[i]
            if total is None:
                total = self._sums[i] = torch.zeros_like(p, dtype=wide)
            if finite and norm and unit:
                outer, inner = _halves(weight * unit)
                part = p.grad if inner == 1 else p.grad.to(wide) * inner
                total.add_(part, alpha=outer)
        self._seen.append((norm, factor if finite else 0.0, weight))
        self._drop()

    def finish(self) -> Step:
        """Put the update into ``.grad``, and start anew.

        Returns:
            The :class:`Step`. Where no micro-batch is finite there is no update: ``.grad`` is None,
            so that an optimizer passes over it, or infinite for a scaler to see.
        """
        names = [total is not None for total in self._sums]
        ranks = self._gather((self._seen, names, len(self._measured)))
        seen = [one for some, _, _ in ranks for one in some]
        if not seen:
            raise InvalidArgument("finish() must follow add(); no micro-batch was added")
        if any(measured and measured != len(some) for some, _, measured in ranks):
            raise InvalidArgument("finish() must follow an add() for every measure()")
        if len(ranks) > 1 and _averaged([some for some, _, _ in ranks]):
            self.reset()
            raise InvalidArgument(
                "gradients must be each process's own, and are the same in all; run backward() "
                "under model.no_sync(), for the average would be clipped"
            )
        norms, factors, weights = np.array(seen).T
        kept = np.isfinite(norms) & (weights > 0)
        if not weights.any():
            self.reset()
            raise InvalidArgument("weight must be above 0 for some micro-batch; all are 0")
        lost, total = int((~kept & (weights > 0)).sum()), weights[kept].sum()
        if self._relative and kept.any():
            factors[kept] = self.rule.factors(norms[kept])
        how = "exact" if self._exact or any(measured for _, _, measured in ranks) else "tracked"
        skipped = "" if kept.any() else f"none of {lost} micro-batches is finite"
        step = Step(
            norms=norms, factors=factors, weights=weights, left_out=lost, how=how, skipped=skipped
        )
        ratio = lower(self.scaler) if self.scaler and lost and kept.any() else 1.0
        if kept.any():
            least = norms[kept].min() * (self._scale or self._now()) if self._relative else 1.0
            present = [any(own) for own in zip(*(n for _, n, _ in ranks), strict=True)]
            self._write(present, least * ratio / total)
        else:
            overflow(self.params[:1], self.scaler)
            _log.warning("mbsim: step skipped, %s", skipped)
        self.left_out += lost
        self.skipped += bool(skipped)
        self._recent = [*self._recent, *norms[kept]][-self.window :]
        self._left = [(p.grad, p.grad._version) for p in self.params if p.grad is not None]
        self.reset()
        return step

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs to go on; only between steps."""
        if self._seen or self._measured:
            raise InvalidArgument("state_dict() must come between steps; call finish() before")
        return {
            "rule": repr(self.rule),
            "recent": list(map(float, self._recent)),
            "left_out": self.left_out,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, for the same rule."""
        if not isinstance(state, dict) or not state.keys() >= {
            "rule", "recent", "left_out", "skipped"
        }:  # fmt: skip
            raise InvalidArgument(f"state={shown(state)} must be what state_dict() returned")
        if state["rule"] != repr(self.rule):
            raise InvalidArgument(
                f"state is of rule={state['rule']} and must be of rule={self.rule}"
            )
        self._recent = list(state["recent"])[-self.window :]
        self.left_out, self.skipped = state["left_out"], state["skipped"]

    # ------------------------------------------------------------------------ one micro-batch

    def _now(self) -> float:
        return float(self.scaler.get_scale()) if self.scaler else 1.0

    def _norm(self) -> tuple[float, float]:
        """The norm of what is in ``.grad``, without the scale, and the scale."""
        found = [p.grad for p in self.params if p.grad is not None]
        if not found:
            raise InvalidArgument("add() must follow backward(); no parameter has a gradient")
        for one in found:
            check_dense(one)
        same = {id(one): version for one, version in self._left}
        steps = [one._version - same[id(one)] for one in found if id(one) in same]
        if steps and len(steps) == len(found) and max(steps) <= 1:
            raise InvalidArgument(
                "gradients must be zeroed after a step: .grad still has the last update; call "
                "optimizer.zero_grad() before backward()"
            )
        self._left = []
        scale = self._now()
        if self._scale not in (None, scale):
            raise InvalidArgument(
                f"scaler has changed its scale from {self._scale:g} to {scale:g} within a step; "
                "call scaler.update() after scaler.step()"
            )
        self._scale = scale
        return length(found) / scale, scale

    def _factor(self, norm: float, weight: float) -> float:
        """s_j, as far as it is known before the last micro-batch."""
        if self._measured or self._known is not None:
            return self._second(norm)
        if not (math.isfinite(norm) and weight) or self._plain or self._relative:
            return 1.0
        earlier = [] if self._exact else [*self._recent, *(n for n, _, w in self._seen if w)]
        among = [*filter(math.isfinite, earlier), norm][-self.window :]
        return float(self.rule.factors(np.array(among))[-1])

    def _second(self, norm: float) -> float:
        """The factor of the next micro-batch of the second pass, now that all norms are known."""
        place = len(self._seen)
        if self._known is None:
            ranks = self._gather(self._measured)
            norms, weights = np.array([one for some in ranks for one in some]).reshape(-1, 2).T
            kept = np.isfinite(norms) & (weights > 0)
            factors = np.zeros_like(norms)
            if kept.any():
                factors[kept] = self.rule.factors(norms[kept])
            before = sum(map(len, ranks[: self._rank()]))
            self._known = factors[before : before + len(self._measured)]
        if place >= len(self._measured):
            raise InvalidArgument("add() must be called once for every measure(), not more often")
        first = self._measured[place][0]
        if not math.isclose(first, norm, rel_tol=0.05) and math.isfinite(first):
            raise InvalidArgument(
                f"the second pass must be as the first: micro-batch {place} had norm {first:g} and "
                f"has {norm:g}; give it the same examples and random numbers"
            )
        return float(self._known[place])

    def _drop(self) -> None:
        for p in self.params:
            p.grad = None

    # ------------------------------------------------------------------------ all of them

    def _grouped(self) -> bool:
        return self.group is not False and dist.is_available() and dist.is_initialized()

    def _rank(self) -> int:
        return dist.get_rank(self.group) if self._grouped() else 0

    def _gather(self, own: Any) -> list[Any]:
        """What every process has."""
        if not self._grouped():
            return [own]
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(found, own, group=self.group)
        return found

    def _write(self, present: list[bool], factor: float) -> None:
        """The sums of all processes, times a factor, into ``.grad``."""
        for i, p in enumerate(self.params):
            if not present[i]:
                continue
            total = self._sums[i]
            if total is None:
                total = torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            if self._grouped():
                dist.all_reduce(total, group=self.group)
            for part in _halves(factor):
                total.mul_(part)
            p.grad = total.to(p.dtype)
            self._sums[i] = None


# ---------------------------------------------------------------------------- of both ways


def length(tensors: Iterable[torch.Tensor]) -> float:
    """The norm of all of them together, in float64, without a copy of more than a block.

    >>> length([torch.tensor([3e30]), torch.tensor([4e30])])
    4.999999984567896e+30
    """
    tensors = list(tensors)
    parts = [torch.linalg.vector_norm(one, dtype=_widest(one)) for one in _blocks(tensors)]
    stacked = torch.stack([one.to(parts[0].device) for one in parts])  # the device is read once
    norm = float(torch.linalg.vector_norm(stacked))
    if not 1e-140 < norm < 1e140:  # squares that float64 does not hold, in float64 alone
        most = max(float(one.abs().max()) for one in _blocks(tensors))
        if math.isfinite(most) and most > 0:
            squares = sum(float((one.double() / most).square().sum()) for one in _blocks(tensors))
            return most * math.sqrt(squares)
        return most if most == 0 else math.nan
    return norm


def _blocks(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    for one in tensors:
        yield from one.detach().reshape(-1).split(_BLOCK)


def _widest(one: torch.Tensor) -> torch.dtype:
    return torch.float32 if one.device.type == "mps" else torch.float64


def _halves(factor: float) -> tuple[float, float]:
    """Two factors that float32 holds, whose product this is."""
    factor = float(factor)
    if 1 / _RANGE < abs(factor) < _RANGE or not factor:
        return factor, 1.0
    return math.sqrt(abs(factor)), math.sqrt(abs(factor))


def enabled(scaler: Any) -> Any:
    """The scaler, or None where it does nothing."""
    if scaler is None:
        return None
    if not (hasattr(scaler, "get_scale") and hasattr(scaler, "is_enabled")):
        raise InvalidArgument(f"scaler={shown(scaler)} must be a torch.amp.GradScaler")
    return scaler if scaler.is_enabled() else None


def lower(scaler: Any) -> float:
    """Lower the scale, as the scaler itself would after an overflow; the ratio of new to old."""
    old = scaler.get_scale()
    scaler.update(old * scaler.get_backoff_factor())
    return float(scaler.get_scale() / old)


def overflow(params: Iterable[torch.nn.Parameter], scaler: Any) -> None:
    """A gradient that makes ``scaler.step`` skip, and its update lower the scale."""
    for p in params if scaler else ():
        p.grad = torch.full_like(p, math.inf)


def check_dense(gradient: torch.Tensor) -> None:
    """Refuse gradients of which only a part is here."""
    if gradient.layout != torch.strided:
        raise InvalidArgument("gradients must be dense, and one is sparse; make it sparse=False")
    if type(gradient).__name__ == "DTensor":
        raise InvalidArgument(
            "gradients must be whole in every process, and one is a DTensor; clip without sharding"
        )


def check_untied(model: torch.nn.Module, so_that: str) -> None:
    """Refuse batch normalisation that ties the examples of a batch together, saying what of it."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise InvalidArgument(
                f"model ties the examples of a batch together in {name!r} "
                f"({type(module).__name__}), so that {so_that}"
            )


def _averaged(ranks: list[list[tuple[float, float, float]]]) -> bool:
    """Whether all processes saw the very same gradients, bit for bit."""
    norms = [[norm for norm, _, weight in some if weight and norm] for some in ranks]
    return (
        bool(norms[0]) and all(map(math.isfinite, norms[0])) and norms.count(norms[0]) == len(norms)
    )


def _weight(weight: Any) -> float:
    if isinstance(weight, torch.Tensor) and weight.numel() == 1:
        weight = weight.item()
    weight = check_number("weight", weight, minimum=0)
    if weight and not _WEIGHTS[0] <= weight <= _WEIGHTS[1]:
        raise InvalidArgument(f"weight={weight!r} must be 0, or from 1e-12 to 1e12")
    return weight


def _parameters(params: Any) -> list[torch.nn.Parameter]:
    if isinstance(params, (torch.Tensor, torch.nn.Module)) or not isinstance(params, Iterable):
        raise InvalidArgument(
            f"params={type(params).__name__} must be parameters, as of model.parameters()"
        )
    found = list({id(p): p for p in params}.values())
    for p in found:
        if not isinstance(p, torch.Tensor) or not p.is_leaf or not p.is_floating_point():
            raise InvalidArgument(
                f"params must be real parameters, as of model.parameters(); one is {shown(p)}"
            )
    if not any(p.requires_grad for p in found):
        raise InvalidArgument("params must have one with requires_grad=True; there is none")
    return found
