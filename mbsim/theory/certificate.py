r"""The best bound that a drift proves, as a linear program in two variables.

Let λ = ηL/2 and f(r) = r A(r) − λ M(r). By A2 a step lowers the loss by at least η f(r) on average;
summed over the steps, with A1, (1/T) Σ E f(r_t) ≤ Δ/(ηT). So if x ≥ 0 and y satisfy

.. math:: x f(r) + y \ge r^2 \quad \text{for all } r \ge 0,

then (1/T) Σ E r_t² ≤ xΔ/(ηT) + y, whatever the loss. The least such value is a linear program; its
dual is the largest mean of r² that a law of r with mean f(r) ≤ Δ/(ηT) can have, so no more follows
from f alone. For ½L‖w‖² that is nearly what a run does.

**What is proven, and what is measured.** Given A and M, the program is solved on a grid of r with

* r = 0, a node;
* *large r*: beyond the grid f(r) ≥ f_∞ r² − a r − b, proven by coupling a step to the same step
  without noise (:meth:`mbsim.theory.sources.Step.tail`); x f_∞ ≥ 1 is required, and f_∞ ≤ 0
  refused;
* *sampled A and M*: in the place of f a lower confidence limit, for all nodes at once
  (Bonferroni);
* *quadrature*: the error estimated from two resolutions taken off f;
* *between the nodes*: f/(r² + r₀²) is interpolated by a cubic spline over asinh(r/r₀), and a margin
  taken off. This margin is measured, not proven: A has no second derivative that one could bound
  (two-point noise gives it kinks). Where a midpoint has been evaluated, the margin is twice the
  deviation of the spline there, found before the midpoint was a node; elsewhere it is the error of
  *linear* interpolation, several times that of a spline. (What is proven is that A is Lipschitz,
  for a clipped step moves by at most (1/m) Σ‖ΔX_j‖ + max‖ΔX_j‖; but it would take
  hundreds of nodes to make use of it.)

Source: the theory page, section 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, optimize, special

from mbsim._values import value
from mbsim.errors import check_integer, check_number
from mbsim.statistics import Interval
from mbsim.theory.drift import Drift
from mbsim.theory.sources import DriftValues

if TYPE_CHECKING:
    from mbsim.theory.bounds import Bound

__all__ = ["Certificate", "Refusal", "certificate", "floor_interval"]

Array = NDArray[np.float64]

# Distance of the first nodes in asinh(r/r₀), and of those that are added far out.
_SPACING, _FAR_SPACING = 0.5, 0.8
# The grid reaches at first to so many σ.
_FIRST_REACH = 10.0
# The bound may owe this share of itself to margins.
_MARGIN = 1e-3
# Points between two nodes at which the interpolant is looked at, and the most nodes of a grid.
_BETWEEN, _MOST_NODES = 8, 400
# The least x f_∞ where f may fall short of f_∞ r² by a multiple of r.
_LEAST_SLOPE = 1.0001


@value
class Certificate:
    """A bound on (1/T) Σ_{t<T} E‖∇L(w_t)‖², and the numbers behind it.

    Attributes:
        value: xΔ/(ηT) + y.
        x, y: the solution of the linear program.
        step_size: η; steps: T; initial_gap: Δ.
        limited_by: the gradient norms at which x f(r) + y comes down to r²; infinite where large
            gradients limit it.
        grad_norms: the nodes of the grid.
        margin: the share of the value that is owed to margins between the nodes.
        confidence: 1 where A and M are exact or integrated; else the probability that the sampled
            A and M do not make the bound too small.
        method: how A and M were found.
        assumptions: what is assumed, a sentence each.
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

    @property
    def kind(self) -> str:
        """An upper bound."""
        return "upper bound"

    @property
    def source(self) -> str:
        """Where the argument is."""
        return "theory page, section 8"

    def to_bound(self) -> Bound:
        """The same as a Bound, with nothing left to fill in (needs SymPy)."""
        import sympy

        from mbsim.theory.bounds import Bound

        return Bound(
            name="certificate",
            kind=self.kind,
            expression=sympy.Float(self.value, 17),
            source=self.source,
            assumptions=self.assumptions,
        )

    def __str__(self) -> str:
        norms = ", ".join(f"{r:.3g}" for r in self.limited_by)
        return (
            f"(1/T) Σ E‖∇L(w_t)‖² ≤ {self.value:.4g} for η = {self.step_size:g}, T = {self.steps}, "
            f"Δ = {self.initial_gap:.4g}; limited by gradient norms {norms}"
        )


@dataclass(frozen=True)
class Refusal:
    """Why there is no certificate; false in a condition.

    >>> bool(Refusal("the step size is too large"))
    False
    """

    reason: str

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"no certificate: {self.reason}"


# ---------------------------------------------------------------------------- f on a grid


@dataclass(frozen=True)
class _Curve:
    """f at nodes, and what lies between them.

    Attributes:
        drift: where A and M come from; half_step: λ.
        scale: r₀: nodes lie evenly in s = asinh(r/r₀) at first.
        quantile: how many standard errors are taken off.
        s: nodes; `shape`: f/(r² + r₀²) there; `error`: what the errors in A and M may make of it.
        tested: for each interval, the deviation of the interpolant at a midpoint; NaN if untested.
        sampled: whether any value is.
    """

    drift: Drift
    half_step: float
    scale: float
    quantile: float
    s: Array
    shape: Array
    error: Array
    tested: Array
    methods: frozenset[str]

    @classmethod
    def empty(cls, drift: Drift, half_step: float, rate: float) -> _Curve:
        none = np.zeros(0)
        df = _sampled_df(drift)
        quantile = -float(special.stdtrit(df, rate / _MOST_NODES)) if math.isfinite(df) else 0.0
        return cls(
            drift=drift,
            half_step=half_step,
            scale=drift.scale or 1.0,
            quantile=quantile,
            s=none,
            shape=none,
            error=none,
            tested=none,
            methods=frozenset(),
        )

    def norm(self, s: Array) -> Array:
        """r at s."""
        r: Array = self.scale * np.sinh(s)
        return r

    def with_nodes(self, s: Array, tested: Array) -> _Curve:
        """The curve with these nodes, the new ones evaluated."""
        new = s[~np.isin(s, self.s)]
        values = self.drift.source.values(self.norm(new), None)
        f, standard, numerical = values.descent(self.half_step)
        error = self.quantile * standard + numerical
        size = np.square(self.scale * np.cosh(new))
        order = np.argsort(np.concatenate([self.s, new]))
        return replace(
            self,
            s=np.concatenate([self.s, new])[order],
            shape=np.concatenate([self.shape, f / size])[order],
            error=np.concatenate([self.error, error / size])[order],
            tested=tested,
            methods=self.methods | set(values.method.tolist()),
        )

    def up_to(self, reach: float) -> _Curve:
        """The curve with nodes up to r = `reach` and not beyond."""
        end = math.asinh(reach / self.scale)
        start, spacing = (self.s[-1], _FAR_SPACING) if self.s.size else (0.0, _SPACING)
        added = np.linspace(start, end, max(2, math.ceil((end - start) / spacing) + 1))
        added = added[1:] if self.s.size else added
        if not self.s.size and added.size < 8:  # a spline and its margins want a few nodes
            added = np.linspace(start, end, 8)
        tested = np.full(self.s.size + added.size - 1, math.nan)
        tested[: self.tested.size] = self.tested
        return self.with_nodes(np.concatenate([self.s, added]), tested)

    def refined(self, intervals: NDArray[np.bool_]) -> _Curve:
        """The curve with a node in the middle of some intervals, by which they are tested."""
        chosen = np.flatnonzero(intervals)
        middles = (self.s[chosen] + self.s[chosen + 1]) / 2
        before = interpolate.CubicSpline(self.s, self.shape)(middles)
        places = np.arange(self.s.size - 1)
        halves = np.repeat(places, np.where(intervals, 2, 1))
        finer = self.with_nodes(np.sort(np.append(self.s, middles)), self.tested[halves])
        deviation = np.zeros(places.size)
        deviation[chosen] = np.abs(finer.shape[np.searchsorted(finer.s, middles)] - before)
        tested = np.where(intervals[halves], deviation[halves], finer.tested)
        return replace(finer, tested=tested)

    @property
    def margin(self) -> Array:
        """How far f/(r² + r₀²) may lie from the interpolant, for each interval."""
        bend = np.zeros(self.s.size)
        left, right = np.diff(self.s)[:-1], np.diff(self.s)[1:]
        chords = (self.shape[:-2] * right + self.shape[2:] * left) / (left + right)
        bend[1:-1] = np.abs(self.shape[1:-1] - chords)
        bend[0], bend[-1] = bend[1], bend[-2]
        # Bent by d over two intervals, a parabola leaves its chord by d/4 over one.
        untested = np.maximum(bend[:-1], bend[1:]) / 4
        return np.where(np.isnan(self.tested), untested, 2 * self.tested + untested / 50)

    def dense(self) -> tuple[Array, Array, Array, NDArray[np.int64]]:
        """Points r between and at the nodes, the interpolant of f − error, margins, intervals."""
        share = np.arange(_BETWEEN) / _BETWEEN
        s = (self.s[:-1, None] + np.diff(self.s)[:, None] * share).ravel()
        interval = np.repeat(np.arange(self.s.size - 1), _BETWEEN)
        at_node = np.tile(share == 0, self.s.size - 1)
        margin = np.where(at_node, 0.0, self.margin[interval])
        s, margin = np.append(s, self.s[-1]), np.append(margin, 0.0)
        interval = np.append(interval, self.s.size - 2)
        size = np.square(self.scale * np.cosh(s))
        lower = interpolate.CubicSpline(self.s, self.shape - self.error)(s)
        return self.norm(s), size * lower, size * margin, interval


def _sampled_df(drift: Drift) -> float:
    """Degrees of freedom of the drift's standard errors, infinite if it is not sampled."""
    values = drift.source.values(np.array([drift.scale or 1.0]), None)
    return float(values.df[0])


# ---------------------------------------------------------------------------- the linear program


@dataclass(frozen=True)
class _Tail:
    """f(r) ≥ slope r² − a r − b for large r."""

    slope: float
    a: float
    b: float

    @classmethod
    def of(cls, drift: Drift, half_step: float, quantile: float, start: float) -> _Tail | None:
        """What :class:`~mbsim.theory.sources.Tail` says of f for r ≥ `start`."""
        tail = drift.tail
        if tail is None:
            return None
        f, standard, numerical = tail.values.descent(half_step)
        kappa, root = tail.kappa(start), math.sqrt(_upper(tail.values, quantile))
        return cls(
            slope=float(f[0] - quantile * standard[0] - numerical[0]),
            a=kappa * (1 + 2 * half_step * root),
            b=half_step * (kappa**2 + tail.constant),
        )

    def excess(self, x: float, start: float) -> float:
        """The largest r² − x f(r) that r ≥ `start` can have."""
        rest = x * self.slope - 1
        if self.a == 0 and rest > -1e-12:
            return x * self.b
        if rest <= 0:
            return math.inf
        r = max(start, x * self.a / (2 * rest))
        return -rest * r**2 + x * self.a * r + x * self.b

    def reach(self, x: float, y: float) -> float:
        """The r beyond which r² − x f(r) ≤ y."""
        rest = x * self.slope - 1
        root = (x * self.a) ** 2 + 4 * rest * (x * self.b - y)
        return (x * self.a + math.sqrt(max(root, 0.0))) / (2 * rest)


def _upper(values: DriftValues, quantile: float) -> float:
    """An upper limit of M at the first point."""
    error = quantile * values.second_moment_standard_error + values.second_moment_numerical_error
    return float((values.second_moment + error)[0])


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


def certificate(
    drift: Drift,
    *,
    step_size: float,
    steps: int,
    initial_gap: float | None = None,
    largest_grad_norm: float | None = None,
    false_positive_rate: float = 1e-6,
) -> Certificate | Refusal:
    """The least xΔ/(ηT) + y; see :meth:`mbsim.theory.drift.Drift.certify` for the arguments."""
    eta = check_number("step_size", step_size, above=0)
    horizon = check_integer("steps", steps, minimum=1)
    gap = drift.initial_gap
    if initial_gap is not None:
        gap = check_number("initial_gap", initial_gap, minimum=0)
    reach = drift.largest_grad_norm
    if largest_grad_norm is not None:
        reach = check_number("largest_grad_norm", largest_grad_norm, above=0)
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    half_step = eta * drift.smoothness / 2
    curve = _Curve.empty(drift, half_step, rate)
    refusal = None if math.isfinite(reach) else _refuse(drift, half_step, curve.quantile)
    if refusal is not None:
        return refusal
    found = _solve(curve, gap / (eta * horizon), reach)
    if not math.isfinite(found.value):
        return Refusal("the linear program has no finite solution")
    return Certificate(
        value=found.value,
        x=found.x,
        y=found.y,
        step_size=eta,
        steps=horizon,
        initial_gap=gap,
        limited_by=found.limited_by,
        grad_norms=found.curve.norm(found.curve.s),
        margin=found.margin,
        confidence=1 - rate if found.curve.quantile else 1.0,
        method=", ".join(sorted(found.curve.methods)),
        assumptions=_assumptions(found.curve, reach, rate),
    )


def _refuse(drift: Drift, half_step: float, quantile: float) -> Refusal | None:
    """The reason why large gradients rule a certificate out, if they do."""
    tail = _Tail.of(drift, half_step, quantile, math.inf)
    if tail is None:
        return Refusal(
            "the update does not grow in proportion to the gradient, so that f(r)/r² goes to 0 and "
            "large gradients allow no bound; if none exceeds some limit, pass largest_grad_norm"
        )
    if tail.slope <= 0:
        first = drift.tail.values if drift.tail else None
        return Refusal(
            f"f(r)/r² goes to {tail.slope:.3g} for large r and must be above 0: the step size is "
            f"too large (ηL/2 = {half_step:.3g}, and for large r A/r goes to "
            f"{float(first.progress[0]) if first else math.nan:.3g} and M/r² to "
            f"{float(first.second_moment[0]) if first else math.nan:.3g})"
        )
    return None


def _assumptions(curve: _Curve, reach: float, rate: float) -> tuple[str, ...]:
    found = [
        "A1: the loss is bounded below",
        "A2: the gradient of the loss is L-Lipschitz",
        "the law of a step depends on the parameters through the gradient norm alone, and is that "
        "of the model (A3, A4)",
        "between the nodes of its grid f is interpolated, with a margin that is measured",
    ]
    if math.isfinite(reach):
        found.append(f"no gradient is longer than {reach:g}")
    if curve.quantile:
        found.append(f"A and M are sampled: wrong with probability at most {rate:g}")
    return tuple(found)


@dataclass(frozen=True)
class _Solution:
    """One solution of the linear program."""

    curve: _Curve
    value: float
    x: float
    y: float
    limited_by: tuple[float, ...]
    margin: float


def _solve(curve: _Curve, budget: float, largest: float) -> _Solution:
    """Solve; extend the grid until the tail is no limit; refine it until margins do not matter."""
    bounded = math.isfinite(largest)
    sigma_reach = _FIRST_REACH * curve.drift.noise_size
    reach = largest if bounded else max(sigma_reach, 4 * curve.scale, 4 * math.sqrt(budget))
    curve = curve.up_to(reach)
    while True:
        r, f, margin, interval = curve.dense()
        tail = None if bounded else _Tail.of(curve.drift, curve.half_step, curve.quantile, reach)
        least = 0.0
        if tail is not None:
            least = (_LEAST_SLOPE if tail.a else 1.0) / tail.slope
        free = _optimum(r, f, budget, least)
        x, y = _optimum(r, f - margin, budget, least)
        beyond = tail.excess(x, reach) if tail else -math.inf
        value = budget * x + max(y, beyond)
        share = (budget * x + y - budget * free[0] - free[1]) / value if value > 0 else 0.0
        room = curve.s.size < _MOST_NODES - 2 * _BETWEEN
        if tail is not None and beyond > y + 1e-4 * value and room:
            reach = 1.05 * tail.reach(x, y + 0.5e-4 * value)
            curve = curve.up_to(reach)
            continue
        heights = r**2 - x * (f - margin)
        if share > _MARGIN / 2 and room:
            raised = np.zeros(curve.s.size - 1)
            np.maximum.at(raised, interval, heights - (y - share * value / 2))
            effect = np.zeros(curve.s.size - 1)
            np.maximum.at(effect, interval, x * margin)
            active = (raised > 0) & (effect > _MARGIN / 8 * value)
            if active.any():
                curve = curve.refined(active)
                continue
        limits = _limits(r, heights, y, value)
        if beyond > y:
            limits = (*limits, math.inf)
        return _Solution(curve, value, x, max(y, beyond), limits, max(share, 0.0))


def _optimum(r: Array, f: Array, budget: float, least: float) -> tuple[float, float]:
    """x ≥ least and y with x f + y ≥ r² everywhere on the grid, and budget x + y the smallest."""
    x = _least_maximum(np.square(r), budget - f, least)
    return x, float((np.square(r) - x * f).max())


def _limits(r: Array, heights: Array, y: float, value: float) -> tuple[float, ...]:
    """The gradient norms at which the constraint is active: local tops within 1e-6 of the value."""
    padded = np.concatenate([[-math.inf], heights, [-math.inf]])
    tops = (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
    return tuple(float(norm) for norm in r[tops & (heights >= y - 1e-6 * value)])


# ---------------------------------------------------------------------------- floors


def floor_interval(
    drift: Drift, *, step_size: float, false_positive_rate: float = 1e-6
) -> Interval:
    """The largest root of f with its interval; see :meth:`mbsim.theory.drift.Drift.floor`."""
    eta = check_number("step_size", step_size, above=0)
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    half_step = eta * drift.smoothness / 2
    curve = _Curve.empty(drift, half_step, rate)
    tail = _Tail.of(drift, half_step, 0.0, math.inf)
    if tail is not None and tail.slope <= 0:
        return _as_interval(math.inf, math.inf, math.inf, rate, drift)
    curve = _up_to_positive(curve)
    ends = [_largest_root(curve, direction) for direction in (-1.0, 0.0, 1.0)]
    return _as_interval(ends[1], ends[2], ends[0], rate, drift)


def _as_interval(estimate: float, low: float, high: float, rate: float, drift: Drift) -> Interval:
    df = _sampled_df(drift)
    quantile = -float(special.stdtrit(df, rate / _MOST_NODES)) if math.isfinite(df) else math.inf
    error = (high - low) / (2 * quantile) if math.isfinite(high) else math.inf
    return Interval(
        estimate=estimate, low=low, high=high, standard_error=error, false_positive_rate=rate, df=df
    )


def _up_to_positive(curve: _Curve) -> _Curve:
    """The curve up to where f is positive for good: proven where there is a tail."""
    drift = curve.drift
    reach = max(_FIRST_REACH * drift.noise_size, 4 * curve.scale)
    tail = _Tail.of(drift, curve.half_step, curve.quantile, reach)
    if tail is not None and tail.slope > 0:
        # f ≥ slope r² − a r − b is positive beyond its larger root.
        root = tail.a + math.sqrt(tail.a**2 + 4 * tail.slope * tail.b)
        reach = max(reach, 1.01 * root / (2 * tail.slope))
    curve = curve.up_to(reach)
    while curve.shape[-1] - curve.error[-1] <= 0 and curve.s.size < _MOST_NODES // 2:
        reach *= 4
        curve = curve.up_to(reach)
    return curve


def _largest_root(curve: _Curve, direction: float) -> float:
    """The largest root of f + direction × error: intervals that may hide one are taken apart."""
    while True:
        level = curve.shape + direction * curve.error
        r, _, _, interval = curve.dense()
        s = np.arcsinh(r / curve.scale)
        between = interpolate.CubicSpline(curve.s, level)(s) - 0.0
        lowest = np.full(curve.s.size - 1, math.inf)
        np.minimum.at(lowest, interval, between)
        negative = np.flatnonzero(level <= 0)
        last = int(negative[-1]) if negative.size else -1
        if last == curve.s.size - 1:
            return math.inf
        hidden = (np.arange(lowest.size) > last) & (lowest - curve.margin <= 0)
        if not hidden.any() or curve.s.size > _MOST_NODES // 2:
            break
        curve = curve.refined(hidden)
    if last < 0:
        return 0.0
    return float(curve.norm(np.array(_root_between(curve, last, direction))))


def _root_between(curve: _Curve, i: int, direction: float) -> float:
    def shape(s: float) -> float:
        if s in (curve.s[i], curve.s[i + 1]):
            j = i if s == curve.s[i] else i + 1
            return float(curve.shape[j] + direction * curve.error[j])
        one = replace(curve, s=np.zeros(0), shape=np.zeros(0), error=np.zeros(0))
        one = one.with_nodes(np.array([s]), np.zeros(0))
        return float(one.shape[0] + direction * one.error[0])

    if shape(curve.s[i]) == 0:
        return float(curve.s[i])
    return float(optimize.brentq(shape, curve.s[i], curve.s[i + 1], xtol=1e-7, rtol=1e-7))
