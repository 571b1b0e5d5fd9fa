r"""The best bound that a drift proves, as a linear program in two variables.

Let λ = ηL/2 and f(r) = r A(r) − λ M(r). By A2 a step lowers the loss by at least η f(r) on average;
summed over the steps, with A1, (1/T) Σ E f(r_t) ≤ Δ/(ηT). So if x ≥ 0 and y satisfy

.. math:: x f(r) + y \ge r^2 \quad \text{for all } r \ge 0,

then (1/T) Σ E r_t² ≤ xΔ/(ηT) + y, whatever the loss. The least such value is a linear program; its
dual is the largest mean of r² that a law of r with mean f(r) ≤ Δ/(ηT) can have, so no more follows
from f alone. For ½L‖w‖² that is nearly what a run does.

**What is proven, and what is measured.** Without clipping, and without noise, f = slope r² − b is
written down and x = 1/slope, y = bx. Otherwise, given A and M, the program is solved on a grid of r
with

* r = 0, a node;
* *large r*: beyond the grid f(r) ≥ f_∞ r² − a r − b, proven by coupling a step to the same step
  without noise (:meth:`mbsim.drifts.sources.Step.tail`); x f_∞ ≥ 1 is required, and f_∞ ≤ 0
  refused;
* *sampled A and M*: in the place of f a lower confidence limit, for all nodes at once
  (Bonferroni); where the errors make the bound large, with all the draws that the drift allows;
* *quadrature*: the error estimated from two resolutions taken off f;
* *between the nodes*: f/(r² + r₀²) is interpolated by a cubic spline over s = asinh(r/r₀), a margin
  is taken off, and y is the highest r² − x f of what is left, not only at the nodes. The margin is
  measured, not proven: A has no second derivative that one could bound (two-point noise gives it
  kinks). It follows from fourth differences: of a smooth f it is a large multiple of the spline's
  error, and at a kink about that error. (What is proven is that A is Lipschitz, for a clipped step
  moves by at most (1/m) Σ‖ΔX_j‖ + max‖ΔX_j‖; but it would take hundreds of nodes to use it.)

Source: the theory page, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, optimize, special

from mbsim._shared.values import value
from mbsim.drifts.sources import Descends, DriftValues
from mbsim.errors import InvalidArgument, check_integer, check_number
from mbsim.statistics import Interval
from mbsim.verdicts import Refusal

__all__ = ["Certificate", "certificate", "floor", "floor_interval", "tuned_step_size"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Distance of the first nodes in asinh(r/r₀), and of those that are added far out.
_SPACING, _FAR_SPACING = 0.75, 1.2
# The grid reaches at first to so many σ, and at last no further than to so many.
_FIRST_REACH, _FARTHEST = 5.0, 1e9
# The bound may owe this share of itself to margins.
_MARGIN = 1e-3
# If the bound owes more than this share of itself to a sample's errors, the sample is enlarged, to
# what is drawn for a relative error that no sample has.
_ERRORS, _ALL_DRAWS = 0.05, 1e-12
# Points between two nodes at which the interpolant is looked at, and the most nodes of a grid.
_BETWEEN, _MOST_NODES = 8, 400
# Near a top of r² − x f so often are points put 8 times as close: its height is then right to 1e-9.
_ZOOMS = 4
# The most rounds of an exchange; three are the rule.
_EXCHANGES = 6
# The least x f_∞ where f may fall short of f_∞ r² by a multiple of r.
_LEAST_SLOPE = 1.001
# A step size is tuned when, on a grid refined for it, it moves by no more than this share; after so
# many turns it is what it is. Sampled certificates that it is tuned for have this rate.
_TUNED, _MOST_TURNS, _RATE = 1e-3, 20, 1e-6


@value
class Certificate:
    """A bound on (1/T) Σ_{t<T} E‖∇L(w_t)‖², and the numbers behind it.

    Attributes:
        value: xΔ/(ηT) + y.
        x, y: the solution of the linear program.
        step_size: η; steps: T; initial_gap: Δ.
        limited_by: the gradient norms at which x f(r) + y comes down to r²; infinite where large
            gradients limit it.
        grad_norms: the nodes of the grid; none where f is written down.
        margin: the share of the value that is owed to margins between the nodes.
        confidence: 1 where A and M are exact or integrated; else the probability that the sampled
            A and M do not make the bound too small.
        method: how A and M were found.
        assumptions: what is assumed, a sentence each.
        settings: what it holds for, by code name: problem, method, step size and steps.
    """

    value: float
    x: float
    y: float
    step_size: float
    steps: int
    initial_gap: float
    limited_by: tuple[float, ...]
    grad_norms: Array
    margin: float
    confidence: float
    method: str
    assumptions: tuple[str, ...]
    settings: Mapping[str, float | str]

    @property
    def name(self) -> str:
        """What it is called in tables and messages."""
        return "certificate"

    @property
    def kind(self) -> str:
        """An upper bound."""
        return "upper bound"

    @property
    def names(self) -> tuple[str, ...]:
        """None: nothing is left to fill in."""
        return ()

    def evaluate(self) -> float:
        """The value."""
        return self.value

    def holds(self) -> bool:
        """True: it is for one setting, in which its conditions are satisfied."""
        return True

    @property
    def conditions(self) -> tuple[()]:
        """None."""
        return ()

    @property
    def source(self) -> str:
        """Where the argument is."""
        return "theory page, section 8"

    def __str__(self) -> str:
        norms = ", ".join(f"{r:.3g}" for r in self.limited_by)
        return (
            f"(1/T) Σ E‖∇L(w_t)‖² ≤ {self.value:.4g} for η = {self.step_size:g}, T = {self.steps}, "
            f"Δ = {self.initial_gap:.4g}; limited by gradient norms {norms}"
        )


# ---------------------------------------------------------------------------- f on a grid


@dataclass(frozen=True)
class _Curve:
    """A and M at nodes: what every step size can use.

    Attributes:
        drift: where A and M come from; `rate`: how often their errors may be larger than allowed.
        reach: r at the last node.
        s: the nodes, s = asinh(r/r₀); `values`: A and M there.
        aim: the relative error that is asked of them; None for what is quick.
    """

    drift: Descends
    rate: float
    reach: float
    s: Array
    values: DriftValues
    aim: float | None = None

    @classmethod
    def first(cls, drift: Descends, rate: float, reach: float) -> _Curve:
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

    def norm(self, s: Array) -> Array:
        """r at s."""
        r: Array = self.scale * np.sinh(s)
        return np.where(s == math.asinh(self.reach / self.scale), self.reach, r)

    def size(self, s: Array) -> Array:
        """r² + r₀² at s."""
        size: Array = np.square(self.scale * np.cosh(s))
        return size

    def with_nodes(self, s: Array) -> _Curve:
        """The curve with these nodes too."""
        values = self.drift.source.values(self.norm(s), self.aim)
        nodes = np.concatenate([self.s, s])
        order = np.argsort(nodes)
        joined = {
            name: np.concatenate([array, vars(values)[name]])[order]
            for name, array in vars(self.values).items()
        }
        return replace(self, s=nodes[order], values=DriftValues(**joined))

    def up_to(self, reach: float) -> _Curve:
        """The curve with more nodes, if it needs them to come to r = `reach`."""
        if reach <= self.reach:
            return self
        end = math.asinh(reach / self.scale)
        count = max(2, math.ceil((end - self.s[-1]) / _FAR_SPACING) + 1)
        return replace(self, reach=reach).with_nodes(np.linspace(self.s[-1], end, count)[1:])

    def with_all_draws(self) -> _Curve:
        """The curve from as large a sample as the drift allows: everywhere, to keep it smooth."""
        none = self.drift.source.values(np.zeros(0), None)
        return replace(self, s=np.zeros(0), values=none, aim=_ALL_DRAWS).with_nodes(self.s)

    def without_standard_errors(self) -> _Curve:
        """The curve as if its values were no sample's."""
        zero = np.zeros_like(self.s)
        exact = {"progress_standard_error": zero, "second_moment_standard_error": zero}
        return replace(
            self, values=DriftValues(**(vars(self.values) | exact | {"covariance": zero}))
        )

    def refined(self, intervals: Mask) -> _Curve:
        """The curve with a node in the middle of some intervals."""
        chosen = np.flatnonzero(intervals)[: _MOST_NODES - self.s.size]
        return self.with_nodes((self.s[chosen] + self.s[chosen + 1]) / 2)


@dataclass(frozen=True)
class _Descent:
    """f = r A − λ M between and at the nodes of a curve, from below.

    Attributes:
        curve: A and M; `half_step`: λ.
    """

    curve: _Curve
    half_step: float

    @cached_property
    def shape(self) -> Array:
        """f/(r² + r₀²) at the nodes."""
        shape: Array = self.curve.values.descent(self.half_step)[0] / self.curve.size(self.curve.s)
        return shape

    @cached_property
    def error(self) -> Array:
        """What the errors of A and M may make of it."""
        size = self.curve.size(self.curve.s)
        return _error_of_f(self.curve.values, self.half_step, self.curve.rate) / size

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
        margin: Array = np.square(width) * np.maximum(change[:-1], change[1:])
        return margin

    @cached_property
    def spline(self) -> interpolate.CubicSpline:
        """The interpolant of f/(r² + r₀²)."""
        return interpolate.CubicSpline(self.curve.s, self.shape)

    @cached_property
    def places(self) -> Array:
        """Places s at and between the nodes."""
        s, share = self.curve.s, np.arange(_BETWEEN) / _BETWEEN
        return np.append((s[:-1, None] + np.diff(s)[:, None] * share).ravel(), s[-1])

    def interval(self, s: Array) -> NDArray[np.int64]:
        """The intervals that places lie in."""
        found = np.searchsorted(self.curve.s, s, side="right") - 1
        return np.clip(found, 0, self.curve.s.size - 2)

    def margin_at(self, s: Array) -> Array:
        """The margin at some places: nothing at a node, all of it from a quarter way on."""
        interval, nodes = self.interval(s), self.curve.s
        start, end = nodes[interval], nodes[interval + 1]
        near = np.minimum(s - start, end - s) / (end - start)
        return self.margin[interval] * np.minimum(4 * near, 1)

    def lower(self, s: Array, margins: bool = True) -> Array:
        """f at some places: the interpolant less errors and margins."""
        shape = self.spline(s) - np.interp(s, self.curve.s, self.error)
        if margins:
            shape -= self.margin_at(s)
        lower: Array = self.curve.size(s) * shape
        return lower

    def heights(self, x: float, s: Array, margins: bool = True) -> Array:
        """r² − x f at some places."""
        heights: Array = np.square(self.curve.norm(s)) - x * self.lower(s, margins)
        return heights

    def tops(self, x: float, s: Array, margins: bool) -> Array:
        """Where r² − x f is highest between some places (ascending), near each local top."""
        heights = self.heights(x, s, margins)
        padded = np.concatenate([heights[1:2], heights, heights[-2:-1]])
        bend = np.abs(padded[2:] - 2 * padded[1:-1] + padded[:-2])
        top = (heights >= padded[:-2]) & (heights >= padded[2:])
        # A parabola through three places rises above the middle one by at most an eighth of this.
        top &= heights + bend >= heights.max()
        i = np.flatnonzero(top)
        low, high = s[np.maximum(i - 1, 0)], s[np.minimum(i + 1, s.size - 1)]
        for _ in range(_ZOOMS):
            inside = low + (high - low) * np.linspace(0, 1, 17)[:, None]
            best = self.heights(x, inside, margins).argmax(axis=0)
            across = np.arange(i.size)
            middle = inside[best, across]
            low = inside[np.maximum(best - 1, 0), across]
            high = inside[np.minimum(best + 1, 16), across]
        return np.unique(middle)


def _quantile(df: Array, rate: float) -> Array:
    """How many standard errors are taken off, so that all nodes hold but for this rate.

    Nodes count twice, for the sample may be enlarged because of what it says.
    """
    sampled = np.isfinite(df)
    found = -special.stdtrit(np.where(sampled, df, 1.0), rate / (2 * _MOST_NODES + 2))
    return np.where(sampled, found, 0.0)


def _error_of_f(values: DriftValues, half_step: float, rate: float) -> Array:
    """By how much f may be smaller than it is found to be."""
    _, standard, numerical = values.descent(half_step)
    error: Array = _quantile(values.df, rate) * standard + numerical
    return error


# ---------------------------------------------------------------------------- large gradients


@dataclass(frozen=True)
class _Tail:
    """f(r) ≥ slope r² − a r − b for r ≥ `start`; for every r if it is `exact`, a being 0."""

    slope: float
    a: float
    b: float
    start: float
    values: DriftValues
    exact: bool

    @classmethod
    def of(cls, drift: Descends, half_step: float, rate: float, start: float) -> _Tail | None:
        """What :class:`~mbsim.drifts.sources.Tail` says of f for r ≥ `start`."""
        tail = drift.tail
        if tail is None:
            return None
        values = tail.values
        error = _quantile(values.df, rate) * values.second_moment_standard_error
        error += values.second_moment_numerical_error
        root = math.sqrt((values.second_moment + error)[0])
        kappa = tail.kappa(start)
        slope = values.descent(half_step)[0] - _error_of_f(values, half_step, rate)
        return cls(
            slope=float(slope[0]),
            a=kappa * (1 + 2 * half_step * root),
            b=half_step * (kappa**2 + tail.constant),
            start=start,
            values=values,
            exact=tail.exact,
        )

    def excess(self, x: float) -> float:
        """The largest r² − x f(r) that r ≥ `start` can have."""
        rest = x * self.slope - 1
        if rest <= 0:
            return math.inf
        r = max(self.start, x * self.a / (2 * rest))
        return -rest * r**2 + x * self.a * r + x * self.b

    def reach(self, x: float, y: float) -> float:
        """The r beyond which r² − x f(r) ≤ y."""
        rest = x * self.slope - 1
        root = (x * self.a) ** 2 + 4 * rest * (x * self.b - y)
        return (x * self.a + math.sqrt(max(root, 0.0))) / (2 * rest)


# ---------------------------------------------------------------------------- the linear program


def certificate(
    drift: Descends,
    *,
    step_size: float,
    steps: int,
    initial_gap: float | None = None,
    largest_grad_norm: float | None = None,
    false_positive_rate: float = 1e-6,
) -> Certificate | Refusal:
    """The least xΔ/(ηT) + y; see :meth:`mbsim.drifts.drift.Drift.certify` for the arguments."""
    eta = check_number("step_size", step_size, above=0)
    horizon = check_integer("steps", steps, minimum=1)
    gap = _gap(drift, initial_gap)
    largest = drift.largest_grad_norm
    if largest_grad_norm is not None:
        largest = check_number("largest_grad_norm", largest_grad_norm, above=0)
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    half_step, budget = eta * drift.smoothness / 2, gap / (eta * horizon)
    tail = None if math.isfinite(largest) else _Tail.of(drift, half_step, rate, math.inf)
    if math.isinf(largest) and (tail is None or tail.slope <= 0):
        return Refusal(_no_bound(drift, tail, half_step), of="certificate")
    if tail is not None and tail.exact:
        found = _Solution.written_down(tail, budget)
    else:
        found = _solve(_Curve.first(drift, rate, largest), half_step, budget, largest)
        if found.curve and found.curve.sampled and math.isfinite(found.value):
            x, y, _ = _optimum(
                _Descent(found.curve.without_standard_errors(), half_step), budget, _least_x(tail)
            )
            if budget * x + y < (1 - _ERRORS) * found.value:
                found = _solve(found.curve.with_all_draws(), half_step, budget, largest)
    if tail is not None and not math.isfinite(found.value):
        return Refusal(
            f"for large r f(r)/r² goes to {tail.slope:.3g}, too close to 0 for a bound that says "
            "anything: hardly a step makes progress",
            of="certificate",
        )
    sampled = bool(np.isfinite(found.values.df).any())
    return Certificate(
        value=found.value,
        x=found.x,
        y=found.y,
        step_size=eta,
        steps=horizon,
        initial_gap=gap,
        limited_by=found.limited_by,
        grad_norms=found.grad_norms,
        margin=found.margin,
        confidence=1 - rate if sampled else 1.0,
        method=", ".join(sorted(set(found.values.method.tolist()))),
        assumptions=_assumptions(found.grad_norms.size > 0, largest, rate if sampled else 0.0),
        settings={
            **drift.settings,
            "initial_gap": gap,
            "step_size": eta,
            "steps": horizon,
            **({"largest_grad_norm": largest} if math.isfinite(largest) else {}),
        },
    )


def _gap(drift: Descends, initial_gap: float | None) -> float:
    """Δ, from the caller or the problem."""
    if initial_gap is None:
        return drift.initial_gap
    return check_number("initial_gap", initial_gap, minimum=0)


def _no_bound(drift: Descends, tail: _Tail | None, half_step: float) -> str:
    """Why large gradients rule a certificate out."""
    if tail is None or drift.tail is None:
        return (
            "the update is not known to grow in proportion to the gradient, so that f(r)/r² may go "
            "to 0 and large gradients allow no bound; if none exceeds some limit, pass "
            "largest_grad_norm"
        )
    first = drift.tail.values
    return (
        f"f(r)/r² goes to {tail.slope:.3g} for large r and must be above 0: the step size is too "
        f"large (ηL/2 = {half_step:.3g}, and for large r A/r goes to {first.progress[0]:.3g} and "
        f"M/r² to {first.second_moment[0]:.3g})"
    )


def _assumptions(on_grid: bool, largest: float, rate: float) -> tuple[str, ...]:
    found = [
        "A1: the loss is bounded below",
        "A2: the gradient of the loss is L-Lipschitz",
        "the law of a step depends on the parameters through the gradient norm alone, and is that "
        "of the model (A3, A4)",
    ]
    if on_grid:
        found.append(
            "between the nodes of its grid f is interpolated, with a margin that is measured"
        )
    if math.isfinite(largest):
        found.append(f"no gradient is longer than {largest:g}")
    if rate:
        found.append(f"A and M are sampled: wrong with probability at most {rate:g}")
    return tuple(found)


@dataclass(frozen=True)
class _Solution:
    """One solution of the linear program."""

    value: float
    x: float
    y: float
    limited_by: tuple[float, ...]
    margin: float
    values: DriftValues
    curve: _Curve | None = None

    @classmethod
    def written_down(cls, tail: _Tail, budget: float) -> _Solution:
        """The solution where f ≥ slope r² − b for every r: x = 1/slope and y = bx."""
        x, y = 1 / tail.slope, tail.b / tail.slope
        return cls(budget * x + y, x, y, (0.0, math.inf), 0.0, tail.values)

    @property
    def grad_norms(self) -> Array:
        """The nodes of the grid."""
        return self.curve.values.grad_norm if self.curve else np.zeros(0)


def _solve(curve: _Curve, half_step: float, budget: float, largest: float) -> _Solution:
    """Solve; extend the grid until the tail is no limit; refine it until margins do not matter."""
    bounded = math.isfinite(largest)
    while True:
        descent = _Descent(curve, half_step)
        tail = None
        if not bounded:
            tail = _Tail.of(curve.drift, half_step, curve.rate, curve.reach)
        least = _least_x(tail)
        x, y, s = _optimum(descent, budget, least)
        beyond = tail.excess(x) if tail else -math.inf
        value = budget * x + max(y, beyond)
        free = _value_at(descent, s, budget, least, margins=False)
        share = (budget * x + y - free) / value if value > 0 else 0.0
        room = curve.s.size < _MOST_NODES - 2 * _BETWEEN
        if tail is not None and beyond > y + 1e-4 * value and room:
            wanted = 1.05 * tail.reach(x, y + 0.5e-4 * value)
            if wanted < _FARTHEST * curve.drift.noise_size:
                curve = curve.up_to(wanted)
                continue
            value = y = math.inf  # so little progress that its bound would say nothing
        heights = descent.heights(x, s)
        if share > _MARGIN / 2 and room:
            owed = np.zeros(curve.s.size - 1)
            matters = heights > y - share * value / 2
            effect = x * curve.size(s) * descent.margin_at(s) * matters
            np.maximum.at(owed, descent.interval(s), effect)
            active = owed > _MARGIN / 8 * value
            if active.any():
                curve = curve.refined(active)
                continue
        limits = _limits(curve.norm(s), heights, y, value)
        if beyond > y:
            limits = (*limits, math.inf)
        y = max(y, beyond)
        return _Solution(value, x, y, limits, max(share, 0.0), curve.values, curve)


def _least_x(tail: _Tail | None) -> float:
    """The least x that large gradients allow."""
    if tail is None:
        return 0.0
    return _LEAST_SLOPE / tail.slope


def _optimum(
    descent: _Descent, budget: float, least: float, margins: bool = True
) -> tuple[float, float, Array]:
    """x ≥ least and y with x f + y ≥ r² on the curve, budget x + y the smallest; and places s.

    An exchange: solve on places, add to them where the constraint is broken most, solve again. The
    last y holds for the last x everywhere, so that to stop early is sound.
    """
    s = descent.places
    for _ in range(_EXCHANGES):
        squares, f = np.square(descent.curve.norm(s)), descent.lower(s, margins)
        x = _least_maximum(squares, budget - f, least)
        y = float((squares - x * f).max())
        tops = descent.tops(x, s, margins)
        top = float(descent.heights(x, tops, margins).max())
        s = np.union1d(s, tops)
        if top <= y + 1e-7 * (budget * x + abs(y)):
            break
    return x, max(y, top), s


def _value_at(descent: _Descent, s: Array, budget: float, least: float, margins: bool) -> float:
    """The value of the program where only some places count."""
    squares, f = np.square(descent.curve.norm(s)), descent.lower(s, margins)
    x = _least_maximum(squares, budget - f, least)
    return float((squares + x * (budget - f)).max())


def _least_maximum(intercepts: Array, slopes: Array, least: float) -> float:
    """The x ≥ least at which max_i (intercept_i + slope_i x), a convex polygon, is lowest."""
    falling = int(np.argmax(intercepts + slopes * least))
    rising = int(np.argmax(slopes))
    if slopes[falling] >= 0 or slopes[rising] <= 0:
        return least
    while True:
        x = (intercepts[falling] - intercepts[rising]) / (slopes[rising] - slopes[falling])
        heights = intercepts + slopes * x
        top = int(np.argmax(heights))
        # Lines may meet in one point but for rounding; any x is sound, so that near is enough.
        rounding = 1e-12 * (intercepts[top] + abs(slopes[top] * x))
        if top in (falling, rising) or heights[top] <= heights[falling] + rounding:
            return float(x)
        if slopes[top] < 0:
            falling = top
        else:
            rising = top


def _limits(r: Array, heights: Array, y: float, value: float) -> tuple[float, ...]:
    """The gradient norms at which the constraint is active: local tops within 1e-6 of the value."""
    padded = np.concatenate([[-math.inf], heights, [-math.inf]])
    tops = (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
    return tuple(float(norm) for norm in r[tops & (heights >= y - 1e-6 * value)])


# ---------------------------------------------------------------------------- the best step size


def tuned_step_size(drift: Descends, *, steps: int, initial_gap: float | None = None) -> float:
    """The step size of the smallest certificate; see :meth:`mbsim.drifts.drift.Drift`.

    With w = xη the program is min x²Δ/(wT) + y subject to x r A − (L/2) w M + y ≥ r²: a convex
    program in (x, w, y). Its values below any level make an interval of η = w/x, so that there is
    one valley and a search along η finds the bottom.
    """
    horizon = check_integer("steps", steps, minimum=1)
    gap, largest = _gap(drift, initial_gap), drift.largest_grad_norm
    tail = None if math.isfinite(largest) else _Tail.of(drift, 0.0, _RATE, math.inf)
    if math.isinf(largest) and (tail is None or tail.slope <= 0):
        raise InvalidArgument(f"no step size has a certificate: {_no_bound(drift, tail, 0.0)}")
    if gap == 0:
        raise InvalidArgument(
            "initial_gap=0 leaves no best step size: the smaller it is, the smaller the certificate"
        )
    exact = tail is not None and tail.exact
    curve = None if exact else _Curve.first(drift, _RATE, largest)

    def value(log_eta: float) -> float:
        eta = math.exp(log_eta)
        return _value(drift, curve, eta * drift.smoothness / 2, gap / (eta * horizon))

    trials = np.log(_trials(drift))
    values = [value(log_eta) for log_eta in trials]
    if min(values) >= largest**2 * (1 - _TUNED):
        raise InvalidArgument(
            f"steps={horizon} are so few that no step size certifies less than the square of the "
            f"largest gradient norm, {largest:g}"
        )
    now = float(trials[int(np.argmin(values))])
    for _ in range(_MOST_TURNS):
        if curve is not None:
            eta = math.exp(now)
            curve = _solve(curve, eta * drift.smoothness / 2, gap / (eta * horizon), largest).curve
        before, ends = now, (now - math.log(4), min(now + math.log(4), trials.max()))
        now = float(optimize.minimize_scalar(value, bounds=ends, method="bounded").x)
        if exact or abs(now - before) <= _TUNED:
            break
    return math.exp(now)


def _trials(drift: Descends) -> Array:
    """Step sizes from far too small to the largest that could have a certificate."""
    falling = 4.0 ** -np.arange(1, 30)
    if drift.tail is None or math.isfinite(drift.largest_grad_norm):
        return np.append(falling, 4.0 ** np.arange(4)) / drift.smoothness
    first = drift.tail.values
    most = 2 * first.progress[0] / (drift.smoothness * first.second_moment[0])
    return most * np.append(falling, [0.5, 0.75, 0.9, 0.99, 0.999])


def _value(drift: Descends, curve: _Curve | None, half_step: float, budget: float) -> float:
    """The value of the program without margins on a curve as it is, or written down."""
    tail = None
    if math.isinf(drift.largest_grad_norm):
        tail = _Tail.of(drift, half_step, _RATE, math.inf)
        if tail is None or tail.slope <= 0:
            return math.inf
        if tail.exact:
            return _Solution.written_down(tail, budget).value
    assert curve is not None
    x, y, _ = _optimum(_Descent(curve, half_step), budget, _least_x(tail), margins=False)
    return budget * x + y


# ---------------------------------------------------------------------------- floors


def floor(drift: Descends, *, step_size: float) -> float:
    """The largest root of f; see :meth:`mbsim.drifts.drift.Drift.floor`."""
    return _floors(drift, step_size, 1e-6, (0.0,))[0][0]


def floor_interval(
    drift: Descends, *, step_size: float, false_positive_rate: float = 1e-6
) -> Interval:
    """The largest root of f with its interval; see :class:`mbsim.drifts.drift.Drift`."""
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    (high, estimate, low), df = _floors(drift, step_size, rate, (-1.0, 0.0, 1.0))
    quantile = float(_quantile(np.array([df]), rate)[0])
    error = (high - low) / (2 * quantile) if quantile else 0.0
    return Interval(
        estimate=estimate,
        low=low,
        high=high,
        standard_error=error,
        false_positive_rate=rate,
        df=df,
    )


def _floors(
    drift: Descends, step_size: float, rate: float, directions: tuple[float, ...]
) -> tuple[list[float], float]:
    """The largest roots of f + direction × error, and the degrees of freedom of the error."""
    half_step = check_number("step_size", step_size, above=0) * drift.smoothness / 2
    tail = _Tail.of(drift, half_step, rate, math.inf)
    if tail is not None and tail.values.descent(half_step)[0][0] <= 0:
        return [math.inf for _ in directions], math.inf
    if tail is not None and tail.exact:
        root = math.sqrt(tail.b / tail.slope) if tail.b else 0.0
        return [root for _ in directions], math.inf
    curve = _up_to_positive(drift, half_step, rate)
    descent = _Descent(curve, half_step)
    roots = [_largest_root(descent, direction) for direction in directions]
    return roots, float(curve.values.df.min())


def _up_to_positive(drift: Descends, half_step: float, rate: float) -> _Curve:
    """A curve up to where f is positive for good: proven where there is a tail."""
    curve = _Curve.first(drift, rate, math.inf)
    tail = _Tail.of(drift, half_step, rate, curve.reach)
    if tail is not None and tail.slope > 0:
        # f ≥ slope r² − a r − b is positive beyond its larger root.
        root = tail.a + math.sqrt(tail.a**2 + 4 * tail.slope * tail.b)
        curve = curve.up_to(1.01 * root / (2 * tail.slope))
    while curve.s.size < _MOST_NODES // 2:
        last = _Descent(curve, half_step)
        if last.shape[-1] > last.error[-1]:
            break
        curve = curve.up_to(4 * curve.reach)
    return curve


def _largest_root(descent: _Descent, direction: float) -> float:
    """The largest root of f + direction × error: intervals that may hide one are taken apart."""
    while True:
        curve = descent.curve
        level = descent.shape + direction * descent.error
        negative = np.flatnonzero(level <= 0)
        last = int(negative[-1]) if negative.size else -1
        if last == curve.s.size - 1:
            return math.inf
        spline = interpolate.CubicSpline(curve.s, level)
        places = spline.derivative().roots(extrapolate=False)
        lowest = np.minimum(level[:-1], level[1:])
        np.minimum.at(lowest, descent.interval(places), spline(places))
        hidden = (np.arange(lowest.size) > last) & (lowest - descent.margin <= 0)
        if not hidden.any() or curve.s.size > _MOST_NODES // 2:
            break
        descent = _Descent(curve.refined(hidden), descent.half_step)
    if last < 0:
        return 0.0
    return float(curve.norm(np.array(_root_between(descent, last, direction))))


def _root_between(descent: _Descent, i: int, direction: float) -> float:
    """The root of f + direction × error between two nodes, by asking the drift."""
    curve, half_step = descent.curve, descent.half_step

    def level(s: float) -> float:
        values = curve.drift.source.values(curve.norm(np.array([s])), None)
        f, error = values.descent(half_step)[0], _error_of_f(values, half_step, curve.rate)
        return float((f + direction * error)[0])

    start, end = float(curve.s[i]), float(curve.s[i + 1])
    if level(start) == 0:
        return start
    # No drift is known to more than its 1e-5.
    return float(optimize.brentq(level, start, end, xtol=1e-6, rtol=1e-6))
