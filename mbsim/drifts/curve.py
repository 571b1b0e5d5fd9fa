r"""f(r) = r A(r) − λ M(r) on a grid of gradient norms, and from below between its nodes.

What floors, certificates and tuned step sizes look at, with λ = ηL/2. Nodes lie at even distances
in s = asinh(r/r₀), r₀ a gradient norm below which A and M change little; between them f/(r² + r₀²)
is interpolated by a cubic spline. A *margin* says how far off that may be. It is measured, not
proven: A has no second derivative that one could bound (two-point noise gives it kinks). It follows
from fourth differences: of a smooth f it is a large multiple of the spline's error, and at a kink
about that error. (What is proven is that A is Lipschitz, for a clipped step moves by at most
(1/m) Σ‖ΔX_j‖ + max‖ΔX_j‖; but it would take hundreds of nodes to use it.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import interpolate

from mbsim._shared.arrays import Array, Integers, Mask
from mbsim.drifts.sources import DriftValues, Source, Tail
from mbsim.statistics import t_quantile

__all__ = ["Curve", "Descent", "Far", "Known", "error_of_f"]


# Distance of the first nodes in asinh(r/r₀), and of those that are added far out.
_SPACING, _FAR_SPACING = 0.75, 1.2
# The grid reaches at first to so many σ, and never further than to so many.
_FIRST_REACH, FARTHEST = 5.0, 1e9
# f, M and their errors over r² + r₀² must stay below this, for room to work with them.
TOO_LARGE = 1e100
# The most nodes of a grid, and how close they may come: at a jump of f no distance is small enough.
MOST_NODES, _CLOSEST = 400, 1e-9


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a drift knows, and what floors, certificates and tuned step sizes are made from.

    Attributes:
        source: what gives the values of A and M.
        smoothness: L; `initial_gap`: Δ, for certificates.
        tail: what is proven for large r; None where the update does not grow in proportion to r.
        largest_grad_norm: no gradient of the loss is longer; infinite where there is no limit.
        relative_error: what values aim at, unless told otherwise.
        scale: a gradient norm below which A and M change little.
        noise_size: a gradient norm far above which noise matters little: σ.
        most_nodes: at so many gradient norms a curve looks at most: fewer where values are dear.
        settings: what it is the drift of, by code name: the problem's constants, the batch size
            and the method.
        law: what is assumed of the law of a step, in a sentence.
    """

    source: Source
    smoothness: float
    initial_gap: float
    tail: Tail | None
    largest_grad_norm: float
    relative_error: float
    scale: float
    noise_size: float
    most_nodes: int = MOST_NODES
    settings: Mapping[str, float | str] = field(default_factory=dict)
    law: str = (
        "the law of a step depends on the parameters through the gradient norm alone, and is that "
        "of the model (A3, A4)"
    )


def _quantile(df: Array, rate: float) -> Array:
    """How many standard errors are taken off, so that all nodes hold but for this rate.

    Nodes count twice, for the sample may be enlarged because of what it says.
    """
    tail = rate / (2 * MOST_NODES + 2)
    return np.array([t_quantile(one, tail) if math.isfinite(one) else 0.0 for one in df])


def error_of_f(values: DriftValues, half_step: float, rate: float) -> Array:
    """By how much f may be smaller than it is found to be."""
    _, standard, numerical = values.descent(half_step)
    return _quantile(values.df, rate) * standard + numerical


@dataclass(frozen=True)
class Curve:
    """A and M at nodes: what every step size can use.

    Attributes:
        drift: where A and M come from; `rate`: how often their errors may be larger than allowed.
        reach: r at the last node.
        s: the nodes, s = asinh(r/r₀); `values`: A and M there.
        aim: the relative error that is asked of them; None for what is quick.
    """

    drift: Known
    rate: float
    reach: float
    s: Array
    values: DriftValues
    aim: float | None = None

    @classmethod
    def first(cls, drift: Known, rate: float, reach: float) -> Curve:
        """The curve with its first nodes, from 0 to `reach`; if that is infinite, far enough."""
        scale = drift.scale or 1.0
        if math.isinf(reach):
            reach = max(_FIRST_REACH * drift.noise_size, 4 * scale)
        end = math.asinh(reach / scale)
        # A spline and its margins want a few nodes.
        s = np.linspace(0.0, end, max(8, math.ceil(end / _SPACING) + 1))
        none = drift.source.values(np.zeros(0), None)
        return cls(drift, rate, reach, np.zeros(0), none).with_nodes(s)

    @property
    def scale(self) -> float:
        """r₀."""
        return self.drift.scale or 1.0

    @property
    def sampled(self) -> bool:
        """Whether any value is."""
        return bool(np.isfinite(self.values.df).any())

    @property
    def room(self) -> int:
        """How many nodes more it may have."""
        return max(0, self.drift.most_nodes - self.s.size)

    def norm(self, s: Array) -> Array:
        """r at s."""
        r: Array = self.scale * np.sinh(s)
        return np.where(s == math.asinh(self.reach / self.scale), self.reach, r)

    def size(self, s: Array) -> Array:
        """r² + r₀² at s."""
        return np.square(self.scale * np.cosh(s))

    def with_nodes(self, s: Array) -> Curve:
        """The curve with these nodes too."""
        values = self.drift.source.values(self.norm(s), self.aim)
        nodes = np.concatenate([self.s, s])
        order = np.argsort(nodes)
        joined = {
            name: np.concatenate([array, vars(values)[name]])[order]
            for name, array in vars(self.values).items()
        }
        return replace(self, s=nodes[order], values=DriftValues(**joined))

    def up_to(self, reach: float) -> Curve:
        """The curve with more nodes, if it needs them to come to r = `reach`."""
        if reach <= self.reach:
            return self
        end = math.asinh(reach / self.scale)
        count = max(2, math.ceil((end - self.s[-1]) / _FAR_SPACING) + 1)
        return replace(self, reach=reach).with_nodes(np.linspace(self.s[-1], end, count)[1:])

    def with_aim(self, aim: float) -> Curve:
        """The curve at the same nodes with another aim: everywhere, to keep it smooth."""
        none = self.drift.source.values(np.zeros(0), None)
        return replace(self, s=np.zeros(0), values=none, aim=aim).with_nodes(self.s)

    def without_standard_errors(self) -> Curve:
        """The curve as if its values were no sample's."""
        zero = np.zeros_like(self.s)
        names = ("progress_standard_error", "second_moment_standard_error", "covariance")
        exact = vars(self.values) | dict.fromkeys(names, zero)
        return replace(self, values=DriftValues(**exact))

    def refined(self, intervals: Mask) -> Curve | None:
        """The curve with a node in the middle of some intervals; None where none has room."""
        wide = np.diff(self.s) > _CLOSEST * (1 + self.s[1:])
        chosen = np.flatnonzero(intervals & wide)[: self.room]
        if not chosen.size:
            return None
        return self.with_nodes((self.s[chosen] + self.s[chosen + 1]) / 2)


@dataclass(frozen=True)
class Descent:
    """f = r A − λ M between and at the nodes of a curve, from below.

    Attributes:
        curve: A and M; `half_step`: λ.
    """

    curve: Curve
    half_step: float

    @cached_property
    @np.errstate(over="ignore")
    def shape(self) -> Array:
        """f/(r² + r₀²) at the nodes."""
        return self.curve.values.descent(self.half_step)[0] / self.curve.size(self.curve.s)

    @property
    def moderate(self) -> bool:
        """Whether f, at every node, is a number that floating point leaves room for."""
        return bool((np.abs(self.shape) + self.error < TOO_LARGE).all())

    @cached_property
    @np.errstate(over="ignore")
    def error(self) -> Array:
        """What the errors of A and M may make of it."""
        curve = self.curve
        return error_of_f(curve.values, self.half_step, curve.rate) / curve.size(curve.s)

    @cached_property
    def margin(self) -> Array:
        """How far f/(r² + r₀²) may lie from the interpolant, for each interval.

        w² times the change of the second derivative at either end: by how much a second difference
        differs from the line through its two neighbours. On even nodes that is half the fourth
        difference, 192 times the error of the spline of a smooth function; and if the slope changes
        by κ in the middle of an interval it is κw/4, which is the error of linear interpolation.
        """
        s, width = self.curve.s, np.diff(self.curve.s)
        bend = 2 * np.diff(np.diff(self.shape) / width) / (width[1:] + width[:-1])
        bend = np.concatenate([bend[:1], bend, bend[-1:]])
        line = bend[:-2] + (bend[2:] - bend[:-2]) * (width[:-1] / (s[2:] - s[:-2]))
        change = np.abs(bend[1:-1] - line)
        change = np.concatenate([change[:1], change, change[-1:]])
        return np.square(width) * np.maximum(change[:-1], change[1:])

    @cached_property
    def spline(self) -> interpolate.CubicSpline:
        """The interpolant of f/(r² + r₀²)."""
        return interpolate.CubicSpline(self.curve.s, self.shape)

    def places(self, between: int) -> Array:
        """Places s at the nodes, and so many in every interval."""
        s, share = self.curve.s, np.arange(between) / between
        return np.append((s[:-1, None] + np.diff(s)[:, None] * share).ravel(), s[-1])

    def interval(self, s: Array) -> Integers:
        """The intervals that places lie in."""
        found = np.searchsorted(self.curve.s, s, side="right") - 1
        return np.clip(found, 0, self.curve.s.size - 2)

    def margin_at(self, s: Array) -> Array:
        """The margin at some places: nothing at a node, all of it from a quarter way on."""
        interval, nodes = self.interval(s), self.curve.s
        start, end = nodes[interval], nodes[interval + 1]
        near = np.minimum(s - start, end - s) / (end - start)
        return self.margin[interval] * np.minimum(4 * near, 1)

    def lower(self, s: Array, *, margins: bool = True) -> Array:
        """f at some places: the interpolant less errors and margins."""
        shape = self.spline(s) - np.interp(s, self.curve.s, self.error)
        if margins:
            shape -= self.margin_at(s)
        return self.curve.size(s) * shape


@dataclass(frozen=True)
class Far:
    """f(r) ≥ slope r² − a r − b for r ≥ `start`; for every r if it is `exact`, a being 0.

    What :class:`~mbsim.drifts.sources.Tail` says of f.
    """

    slope: float
    a: float
    b: float
    start: float
    exact: bool

    @classmethod
    @np.errstate(over="ignore")
    def of(cls, drift: Known, half_step: float, rate: float, start: float) -> Far | None:
        """For r ≥ `start`; None where the update does not grow in proportion to r."""
        tail = drift.tail
        if tail is None:
            return None
        values, kappa = tail.values, tail.kappa(start)
        error = _quantile(values.df, rate) * values.second_moment_standard_error
        error += values.second_moment_numerical_error
        if values.second_moment[0] > TOO_LARGE:
            return cls(slope=-math.inf, a=0.0, b=0.0, start=start, exact=False)
        root = math.sqrt((values.second_moment + error)[0])
        slope = values.descent(half_step)[0] - error_of_f(values, half_step, rate)
        return cls(
            slope=float(slope[0]),
            a=kappa * (1 + 2 * half_step * root),
            b=half_step * (kappa * kappa + tail.constant),
            start=start,
            exact=tail.exact,
        )

    def excess(self, x: float) -> float:
        """The largest r² − x f(r) that r ≥ `start` can have."""
        rest = x * self.slope - 1
        if rest <= 0:
            return math.inf
        r = max(self.start, x * self.a / (2 * rest))
        return -rest * r * r + x * self.a * r + x * self.b

    def reach(self, x: float, y: float) -> float:
        """The r beyond which r² − x f(r) ≤ y."""
        rest = x * self.slope - 1
        root = (x * self.a) * (x * self.a) + 4 * rest * (x * self.b - y)
        return (x * self.a + math.sqrt(max(root, 0.0))) / (2 * rest)
