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
  without noise (:func:`mbsim.drifts.sources.tail_of`); x f_∞ ≥ 1 is required, and f_∞ ≤ 0 refused;
* *sampled A and M*: in the place of f a lower confidence limit, for all nodes at once
  (Bonferroni); where the errors make the bound large, with all the draws that the drift allows;
* *integrated A and M*: their numerical errors taken off f;
* *between the nodes*: f is interpolated, a margin is taken off (:mod:`mbsim.drifts.curve`), and y
  is the highest r² − x f of what is left, not only at the nodes.

Source: the theory page, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize

from mbsim._shared.arrays import Array
from mbsim._shared.meant import answering
from mbsim._shared.progress import Progress, progress
from mbsim._shared.values import value
from mbsim.drifts.curve import FARTHEST, TOO_LARGE, Curve, Descent, Far, Known
from mbsim.drifts.sources import DriftValues
from mbsim.errors import InvalidArgument, check_integer, check_number
from mbsim.verdicts import Refusal

__all__ = ["Certificate", "certify", "tuned_step_size"]

# The bound may owe this share of itself to margins.
_MARGIN = 1e-3
# If the bound owes more than this share of itself to a sample's errors, the sample is enlarged, to
# what is drawn for a relative error that no sample has.
_ERRORS, _ALL_DRAWS = 0.05, 1e-12
# Places between two nodes at which the interpolant is looked at; nodes kept for a last refinement.
_BETWEEN, _ROOM = 64, 16
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

    # What a bound of :mod:`mbsim.theory` says of itself. Nothing is left to fill in.
    name = "certificate"
    kind = "upper bound"
    source = "theory page, section 8"
    names = ()
    conditions = ()

    def evaluate(self) -> float:
        """The value."""
        return self.value

    def holds(self) -> bool:
        """True: it is for one setting, in which its conditions are satisfied."""
        return True

    def __str__(self) -> str:
        norms = ", ".join(f"{r:.3g}" for r in self.limited_by)
        return (
            f"(1/T) Σ E‖∇L(w_t)‖² ≤ {self.value:.4g} for η = {self.step_size:g}, T = {self.steps}, "
            f"Δ = {self.initial_gap:.4g}; limited by gradient norms {norms}"
        )


@answering
def certify(
    drift: Known,
    *,
    step_size: float,
    steps: int,
    initial_gap: float | None = None,
    largest_grad_norm: float | None = None,
    false_positive_rate: float = 1e-6,
) -> Certificate | Refusal:
    """The best bound that the drift proves on (1/T) Σ_{t<T} E‖∇L(w_t)‖².

    Args:
        drift: A(r) and M(r), a :class:`mbsim.Drift`, of which this is a method.
        step_size: η > 0.
        steps: T ≥ 1.
        initial_gap: Δ = L(w₀) − L*; that of the problem unless told.
        largest_grad_norm: a limit that no gradient exceeds; that of the loss, if it has one, unless
            told.
        false_positive_rate: the probability, where A and M are sampled, that an error in them makes
            the bound too small.

    Returns:
        A :class:`Certificate`; or a :class:`~mbsim.verdicts.Refusal`, which is false and says why.

    Raises:
        InvalidArgument: for arguments that break a rule.
    """
    eta = check_number("step_size", step_size, above=0)
    horizon = check_integer("steps", steps, minimum=1)
    gap = _gap(drift, initial_gap)
    largest = drift.largest_grad_norm
    if largest_grad_norm is not None:
        largest = check_number("largest_grad_norm", largest_grad_norm, above=0)
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    half_step, budget = eta * drift.smoothness / 2, gap / (eta * horizon)
    far = None if math.isfinite(largest) else Far.of(drift, half_step, rate, math.inf)
    if math.isinf(largest) and (far is None or far.slope <= 0):
        return Refusal(_no_bound(drift, far, half_step), of="certificate")
    if far is not None and far.exact:
        assert drift.tail is not None
        found, values = _written_down(far, budget), drift.tail.values
        nodes = np.zeros(0)
    else:
        with progress(drift.most_nodes, "certificate") as bar:
            first = Curve.first(drift, rate, largest)
            curve, found = _solve(first, half_step, budget, largest, bar)
            if curve.sampled and math.isfinite(found.value):
                least = _least_x(far)
                exact = _optimum(Descent(curve.without_standard_errors(), half_step), budget, least)
                if exact.value < (1 - _ERRORS) * found.value:
                    more = curve.with_aim(_ALL_DRAWS)
                    more, better = _solve(more, half_step, budget, largest, bar)
                    if better.value < found.value:
                        curve, found = more, better
        values, nodes = curve.values, curve.values.grad_norm
    if not math.isfinite(found.value):
        return Refusal(_says_nothing(far, values), of="certificate")
    sampled = bool(np.isfinite(values.df).any())
    limit = {"largest_grad_norm": largest} if math.isfinite(largest) else {}
    return Certificate(
        value=found.value,
        x=found.x,
        y=found.y,
        step_size=eta,
        steps=horizon,
        initial_gap=gap,
        limited_by=found.limited_by,
        grad_norms=nodes,
        margin=found.margin,
        confidence=1 - rate if sampled else 1.0,
        method=", ".join(sorted(set(values.method.tolist()))),
        assumptions=_assumptions(drift.law, nodes.size > 0, largest, rate if sampled else 0.0),
        settings=dict(drift.settings)
        | {"initial_gap": gap, "step_size": eta, "steps": horizon}
        | limit,
    )


def _gap(drift: Known, initial_gap: float | None) -> float:
    """Δ, from the caller or the problem."""
    if initial_gap is None:
        return drift.initial_gap
    return check_number("initial_gap", initial_gap, minimum=0)


def _no_bound(drift: Known, far: Far | None, half_step: float) -> str:
    """Why large gradients rule a certificate out."""
    if far is None or drift.tail is None:
        return (
            "the update is not known to grow in proportion to the gradient, so that f(r)/r² may go "
            "to 0 and large gradients allow no bound; if none exceeds some limit, pass "
            "largest_grad_norm"
        )
    first, most = drift.tail.values, largest_step_size(drift)
    if half_step == 0 or most == 0:
        return f"for large r A/r goes to {first.progress[0]:.3g}: no step makes progress"
    return f"the step size is too large: usable is η below {most:.3g}"


def largest_step_size(drift: Known) -> float:
    """Where f(r)/r² = A/r − (ηL/2) M/r² goes to 0 for large r; infinite where that is not known."""
    if drift.tail is None or math.isfinite(drift.largest_grad_norm):
        return math.inf
    first = drift.tail.values
    return max(0.0, 2 * first.progress[0] / (drift.smoothness * first.second_moment[0]))


def _says_nothing(far: Far | None, values: DriftValues) -> str:
    """Why the least bound is infinite."""
    if (largest := values.second_moment.max()) > TOO_LARGE:
        r = values.grad_norm[values.second_moment.argmax()]
        return f"at the gradient norm {r:.3g} the second moment of a step is {largest:.3g}"
    slope = far.slope if far is not None else 0.0
    return (
        f"for large r f(r)/r² goes to {slope:.3g}, too close to 0 for a bound that says "
        "anything: hardly a step makes progress"
    )


def _assumptions(law: str, on_grid: bool, largest: float, rate: float) -> tuple[str, ...]:
    found = [
        "A1: the loss is bounded below",
        "A2: the gradient of the loss is L-Lipschitz",
        law,
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


# ---------------------------------------------------------------------------- the linear program


class _Solution(NamedTuple):
    """The least budget x + y, and what it is owed to."""

    value: float
    x: float
    y: float
    limited_by: tuple[float, ...] = ()
    margin: float = 0.0


def _written_down(far: Far, budget: float) -> _Solution:
    """The solution where f ≥ slope r² − b for every r: x = 1/slope and y = bx."""
    x, y = 1 / far.slope, far.b / far.slope
    return _Solution(budget * x + y, x, y, (0.0, math.inf))


def _solve(
    curve: Curve, half_step: float, budget: float, largest: float, bar: Progress
) -> tuple[Curve, _Solution]:
    """Solve; extend the grid until the tail is no limit; refine it until margins do not matter."""
    while True:
        bar.update(curve.s.size)
        descent, far = Descent(curve, half_step), None
        if not descent.moderate:
            return curve, _Solution(math.inf, 0.0, math.inf)
        if math.isinf(largest):
            far = Far.of(curve.drift, half_step, curve.rate, curve.reach)
        value, x, y, *_ = _optimum(descent, budget, _least_x(far))
        beyond = far.excess(x) if far else -math.inf
        free = _optimum(descent, budget, _least_x(far), margins=False).value
        share = max((value - free) / value, 0.0) if value > 0 else 0.0
        value = budget * x + max(y, beyond)
        # An enlarged sample is spread over the nodes that there are.
        room = curve.room > _ROOM and curve.aim is None
        if far is not None and beyond > y + 1e-4 * value and room:
            wanted = 1.05 * far.reach(x, y + 0.5e-4 * value)
            if wanted < FARTHEST * curve.drift.noise_size:
                curve = curve.up_to(wanted)
                continue
            value = y = math.inf  # so little progress that its bound would say nothing
        s = descent.places(_BETWEEN)
        heights, bend = _heights(descent, x, s)
        if share > _MARGIN / 2 and room:
            owed = np.zeros(curve.s.size - 1)
            matters = heights + bend > y - share * value / 2
            effect = (x * curve.size(s) * descent.margin_at(s) + bend) * matters
            np.maximum.at(owed, descent.interval(s), effect)
            finer = curve.refined(owed > _MARGIN / 8 * value)
            if finer is not None:
                curve = finer
                continue
        limits = _limits(curve.norm(s), heights + bend, y, value)
        if beyond > y:
            limits = (*limits, math.inf)
        return curve, _Solution(value, x, max(y, beyond), limits, share)


def _least_x(far: Far | None) -> float:
    """The least x that large gradients allow."""
    return 0.0 if far is None else _LEAST_SLOPE / far.slope


def _optimum(descent: Descent, budget: float, least: float, *, margins: bool = True) -> _Solution:
    """x ≥ least and y with x f + y ≥ r² on the curve, budget x + y the smallest.

    The constraint is looked at in many places at and between the nodes; a parabola through a local
    top and its neighbours rises above it by at most an eighth of their second difference.
    """
    s = descent.places(_BETWEEN)
    squares, f = np.square(descent.curve.norm(s)), descent.lower(s, margins=margins)
    x = _least_maximum(squares, budget - f, least)
    y = float((squares - x * f).max())
    if margins:
        heights, bend = _heights(descent, x, s)
        y = float((heights + bend).max())
    return _Solution(budget * x + y, x, y)


def _heights(descent: Descent, x: float, s: Array) -> tuple[Array, Array]:
    """r² − x f at some places, and how far it may rise above them before the next."""
    heights = np.square(descent.curve.norm(s)) - x * descent.lower(s)
    before, here, after = heights[:-2], heights[1:-1], heights[2:]
    # At a node the interpolant is what it is; elsewhere it is smooth.
    top = (here >= before) & (here >= after) & (np.arange(1, s.size - 1) % _BETWEEN > 0)
    bend = np.zeros_like(heights)
    bend[1:-1] = np.where(top, 2 * here - before - after, 0.0) / 8
    return heights, bend


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
    """The gradient norms at which the constraint is active, but for what margins may be."""
    padded = np.concatenate([[-math.inf], heights, [-math.inf]])
    tops = (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
    return tuple(float(norm) for norm in r[tops & (heights >= y - _MARGIN * value)])


# ---------------------------------------------------------------------------- the best step size


@answering
def tuned_step_size(drift: Known, *, steps: int, initial_gap: float | None = None) -> float:
    """The step size at which :func:`certify` gives the smallest bound, for every method alike.

    It is right to 1 % or better; the bound is flat there. With w = xη the program is min x²Δ/(wT) +
    y subject to x r A − (L/2) w M + y ≥ r²: a convex program in (x, w, y). Its values below any
    level make an interval of η = w/x, so that there is one valley and a search along η finds the
    bottom. Theory page, section 8.

    Args:
        drift: as for :func:`certify`.
        steps: T ≥ 1.
        initial_gap: Δ = L(w₀) − L* > 0; that of the problem unless told.

    Raises:
        InvalidArgument: where no step size has a certificate, or none is best.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(8)), noise=mbsim.noise.Gaussian(sigma=0.0),
    ...     benign_dim=4, start=np.ones(8))
    >>> round(mbsim.drift(problem, mbsim.SGD(), batch_size=4).tuned_step_size(steps=10), 6)
    1.0
    """
    horizon = check_integer("steps", steps, minimum=1)
    gap, largest = _gap(drift, initial_gap), drift.largest_grad_norm
    far = None if math.isfinite(largest) else Far.of(drift, 0.0, _RATE, math.inf)
    if math.isinf(largest) and (far is None or far.slope <= 0):
        raise InvalidArgument(f"no step size has a certificate: {_no_bound(drift, far, 0.0)}")
    if gap == 0:
        raise InvalidArgument(
            "initial_gap=0 leaves no best step size: the smaller it is, the smaller the certificate"
        )
    exact = far is not None and far.exact
    curve = None if exact else Curve.first(drift, _RATE, largest)

    def value(log_eta: float) -> float:
        eta = math.exp(log_eta)
        return _value(drift, curve, eta * drift.smoothness / 2, gap / (eta * horizon))

    trials = np.log(_trials(drift))
    values = [value(log_eta) for log_eta in trials]
    if math.isinf(min(values)):
        reason = _says_nothing(far, curve.values) if curve else "none says anything"
        raise InvalidArgument(f"no step size has a certificate: {reason}")
    if min(values) >= largest**2 * (1 - _TUNED):
        raise InvalidArgument(
            f"steps={horizon} are so few that no step size certifies less than the square of the "
            f"largest gradient norm, {largest:g}"
        )
    now = float(trials[int(np.argmin(values))])
    with progress(drift.most_nodes, "step size") as bar:
        for _ in range(_MOST_TURNS):
            if curve is not None:
                eta = math.exp(now)
                half_step, budget = eta * drift.smoothness / 2, gap / (eta * horizon)
                curve, _ = _solve(curve, half_step, budget, largest, bar)
            before, ends = now, (now - math.log(4), min(now + math.log(4), trials.max()))
            now = float(optimize.minimize_scalar(value, bounds=ends, method="bounded").x)
            if exact or abs(now - before) <= _TUNED:
                break
    return math.exp(now)


def _trials(drift: Known) -> Array:
    """Step sizes from far too small to the largest that could have a certificate."""
    falling = 4.0 ** -np.arange(1, 30)
    most = largest_step_size(drift)
    if math.isinf(most):
        return np.append(falling, 4.0 ** np.arange(4)) / drift.smoothness
    return most * np.append(falling, [0.5, 0.75, 0.9, 0.99, 0.999])


def _value(drift: Known, curve: Curve | None, half_step: float, budget: float) -> float:
    """The value of the program without margins on a curve as it is, or written down."""
    far = None
    if math.isinf(drift.largest_grad_norm):
        far = Far.of(drift, half_step, _RATE, math.inf)
        if far is None or far.slope <= 0:
            return math.inf
        if far.exact:
            return _written_down(far, budget).value
    assert curve is not None
    descent = Descent(curve, half_step)
    if not descent.moderate:
        return math.inf
    return _optimum(descent, budget, _least_x(far), margins=False).value
