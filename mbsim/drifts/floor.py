"""The level at which a run with a constant step size stops: the largest root of r A = (ηL/2) M."""

from __future__ import annotations

import math

import numpy as np
from scipy import interpolate, optimize

from mbsim._shared.meant import answering
from mbsim._shared.progress import watched
from mbsim.drifts.curve import FARTHEST, Curve, Descent, Far, Known, error_of_f
from mbsim.errors import check_number
from mbsim.statistics import Interval, interval_of

__all__ = ["floor", "floor_interval"]

# How far from a root in asinh(r/r₀) one may stop, and so many secants before f is thought to jump.
_CLOSE, _SECANTS = 1e-6, 6


@answering
def floor(drift: Known, *, step_size: float) -> float:
    r"""The level at which a run with this step size stops: the largest root of r A = (ηL/2) M.

    Above it a step is expected to lower the loss; for ½L‖w‖² the root of the mean squared gradient
    norm settles about there. Theory page, section 7.

    Args:
        drift: A(r) and M(r), a :class:`mbsim.Drift`, of which this is a method.
        step_size: η > 0.

    Returns:
        The gradient norm; 0 if every step lowers the loss, and infinity if for large gradients none
        does. :func:`floor_interval` gives it with its error.
    """
    return _floors(drift, step_size, 1e-6, (0.0,))[0][0]


def floor_interval(
    drift: Known, *, step_size: float, false_positive_rate: float = 1e-6
) -> Interval:
    """The floor with an interval that holds the errors of A and M.

    Args:
        drift: as for :func:`floor`.
        step_size: η > 0.
        false_positive_rate: the probability that the interval misses the floor, where A and M are
            sampled.
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    (high, estimate, low), df = _floors(drift, step_size, rate, (-1.0, 0.0, 1.0))
    reach = (high - low) / 2
    error = reach if math.isfinite(df) and math.isfinite(reach) else 0.0
    return interval_of(estimate, error, df, rate, (low, high))


def _floors(
    drift: Known, step_size: float, rate: float, directions: tuple[float, ...]
) -> tuple[list[float], float]:
    """The largest roots of f + direction × error, and the degrees of freedom of the error."""
    half_step = check_number("step_size", step_size, above=0) * drift.smoothness / 2
    far = Far.of(drift, half_step, rate, math.inf)
    if drift.tail is not None and drift.tail.values.descent(half_step)[0][0] <= 0:
        return [math.inf for _ in directions], math.inf
    if far is not None and far.exact:
        root = math.sqrt(far.b / far.slope) if far.b else 0.0
        return [root for _ in directions], math.inf
    descent = Descent(_up_to_positive(drift, half_step, rate), half_step)
    roots = [_largest_root(descent, direction) for direction in watched(directions, "floor")]
    return roots, float(descent.curve.values.df.min())


def _up_to_positive(drift: Known, half_step: float, rate: float) -> Curve:
    """A curve up to where f is positive for good: proven where there is a tail."""
    curve = Curve.first(drift, rate, math.inf)
    farthest = FARTHEST * (max(drift.noise_size, drift.scale) or curve.reach)
    far = Far.of(drift, half_step, rate, curve.reach)
    if far is not None and far.slope > 0:
        # f ≥ slope r² − a r − b is positive beyond its larger root.
        root = far.a + math.sqrt(far.a * far.a + 4 * far.slope * far.b)
        curve = curve.up_to(min(1.01 * root / (2 * far.slope), farthest))
    while curve.room > drift.most_nodes // 2 and curve.reach < farthest:
        last = Descent(curve, half_step)
        if last.shape[-1] > last.error[-1]:
            break
        curve = curve.up_to(4 * curve.reach)
    return curve


def _largest_root(descent: Descent, direction: float) -> float:
    """The largest root of f + direction × error: intervals that may hide one are taken apart."""
    while descent.moderate:
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
        finer = curve.refined(hidden) if curve.room >= curve.drift.most_nodes // 2 else None
        if finer is None:
            break
        descent = Descent(finer, descent.half_step)
    else:
        return math.inf
    return _root_between(descent, last, direction) if last >= 0 else 0.0


def _root_between(descent: Descent, i: int, direction: float) -> float:
    """The root of f + direction × error between two nodes, by asking the drift.

    By secants from where the spline has it; where f jumps, by Brent's method.
    """
    curve, half_step = descent.curve, descent.half_step
    levels = descent.shape + direction * descent.error
    known = dict(zip(curve.s[i : i + 2].tolist(), levels[i : i + 2].tolist(), strict=True))

    def level(s: float) -> float:
        if s not in known:
            place = np.array([s])
            values = curve.drift.source.values(curve.norm(place), None)
            f, error = values.descent(half_step)[0], error_of_f(values, half_step, curve.rate)
            known[s] = float(((f + direction * error) / curve.size(place))[0])
        return known[s]

    start, end = known
    if known[start] < 0 < known[end]:
        spline = interpolate.CubicSpline(curve.s, levels)
        s = float(optimize.brentq(spline, start, end))
        slope = float(spline(s, 1))
        for number in range(_SECANTS):
            before, step = s, -level(s) / slope if slope > 0 else math.inf
            # No drift is known to more than its 1e-5. The first slope is the spline's, not f's.
            if number and abs(step) <= _CLOSE:
                return float(curve.norm(np.array(s + step)))
            step = math.copysign(max(abs(step), _CLOSE), step)
            if not start < s + step < end:
                break
            s += step
            slope = (level(s) - level(before)) / step
        start = max(place for place, found in known.items() if found < 0)
        end = min(place for place, found in known.items() if found > 0 and place > start)
        start = float(optimize.brentq(level, start, end, xtol=_CLOSE, rtol=_CLOSE))
    return float(curve.norm(np.array(start)))
