r"""Which micro-batch size to use: the one that ends lowest, or that is best by another criterion.

The question of a practitioner is which b ends lowest after T steps, each at its own best step
size, and by what factor that is better than SGD. Two criteria answer it, by runs
(:mod:`mbsim.choosing.ends`):

``"final"``
    E‖∇L(w_T)‖² at the end of the run; the default.
``"average"``
    its average over the steps, (1/T) Σ ‖∇L(w_t)‖², which the theorems bound: it charges a method
    for the way down as well.

The others explain. They differ because they see other things, mostly at one step size for all b:

``"bias"``
    β_b² = 4s̃²/λ₀, the term of Theorem 2 that no number of steps removes (theory page, 5.2).
``"bound"``
    Theorem 2 in full at the given η and T (plain form, its weight ω at its least over all gradient
    norms); at b = B, where Algorithm 1 is SGD, Theorem 1.
``"certificate"``
    the best bound that the exact drift of a step proves (section 8).
``"floor"``
    the level at which a run with this step size stops: bias against the draggers' variance
    (section 7). It does not depend on T.
``"simulation"``
    (1/T) Σ ‖∇L(w_t)‖² of simulated runs, for every b at the step size that is given. With a store
    it is a sweep (:mod:`mbsim.sweeps`): it resumes, and may stop when it knows enough.

The bias is a term of a bound: Algorithm 1's own bias is smallest at b = B, where it has none. Which
of these has an interior minimum, and where, is the claim ``interior-bias``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import field, replace
from typing import Any, cast

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from mbsim import plots, statistics
from mbsim._shared import tables
from mbsim._shared.meant import answering
from mbsim._shared.progress import watched
from mbsim._shared.seeds import child, seed_sequence
from mbsim._shared.values import value
from mbsim.choosing.ends import Ends
from mbsim.choosing.quantities import measured_anywhere
from mbsim.choosing.tuning import check_step_size
from mbsim.drifts.drift import Drift, drift
from mbsim.errors import InvalidArgument, check_integer, divisors, shown
from mbsim.gradients.advice import advise
from mbsim.gradients.measured import MeasuredProblem
from mbsim.methods import MicroBatchClipping
from mbsim.problems.noise import facts_of
from mbsim.problems.problem import Problem, check_problem
from mbsim.problems.setting import Setting
from mbsim.simulation.run import Run, run_setting
from mbsim.verdicts import Answer, Refusal

__all__ = ["CRITERIA", "SweetSpot", "sweet_spot"]

CRITERIA = ("final", "average", "bias", "bound", "certificate", "floor", "simulation")
# What measured gradients can be asked: the others want a model's p, c and σ, or its runs.
_MEASURED = ("final", "certificate", "floor")
_LEVELS: dict[str, Callable[[Run], NDArray[np.float64]]] = {
    "final": lambda run: run.grad_norm_sq[:, -1],
    "average": lambda run: run.mean_grad_norm_sq,
}

# By a criterion: a number, or one of every replicate, or their mean, or why there is none.
Value = float | NDArray[np.float64] | statistics.Interval | Refusal

# What a value is, by criterion.
_UNITS = {
    "final": "E‖∇L‖² at the end",
    "average": "mean ‖∇L‖²",
    "bias": "bias β_b²",
    "bound": "bound on the mean ‖∇L‖²",
    "certificate": "bound on the mean ‖∇L‖²",
    "floor": "‖∇L‖ it stops at",
    "simulation": "mean ‖∇L‖²",
}

# Numbers that are not random are tied within 1 %; means, where a difference is not told from 0 at
# this false-positive rate, all sizes together.
_TIED, _RATE = 1.01, 0.01


@value
class SweetSpot:
    """The best micro-batch size by one criterion, and the curve that it is the lowest point of.

    Attributes:
        by: the criterion.
        batch_size: B.
        micro_batch_size: the b with the lowest value; None if no b has a value.
        tied: every b whose value cannot be told from the best: statistically for a simulation,
            within 1 % for numbers that are not random.
        reason: where the best b lies: "interior", "smallest: b = 1" or "none inside: b = B"; or why
            there is none.
        curve: the value for every divisor b of B; infinite where there is none.
        why_not: for every b without a value, the reason.
        step_sizes: η for every b; empty for the bias.
        intervals: for means over runs, the 99 % interval of each (from a store, of all together,
            and at all looks); empty for numbers that are not random.
        answer: for "final" and "average", the answer in words, with what it is worth; else None.
        continuous: for the bias, where its closed form is stationary if b need not be whole:
            1/ln(1/q) − 1, found by SymPy (if that is below 1, b = 1 is best); else None.
    """

    by: str
    batch_size: int
    micro_batch_size: int | None
    tied: tuple[int, ...]
    reason: str
    curve: dict[int, float]
    why_not: dict[int, str]
    step_sizes: dict[int, float]
    intervals: dict[int, tuple[float, float]] = field(default_factory=dict)
    answer: Answer | None = None
    continuous: float | None = None

    @property
    def interior(self) -> bool:
        """Whether the best b lies strictly between 1 and B."""
        return self.micro_batch_size is not None and 1 < self.micro_batch_size < self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """The sweet spot as plain data; micro-batch sizes become texts, as in JSON."""
        return {
            **vars(self),
            "interior": self.interior,
            "answer": self.answer and self.answer.to_dict(),
            **{
                name: {str(b): content for b, content in getattr(self, name).items()}
                for name in ("curve", "why_not", "step_sizes", "intervals")
            },
        }

    def plot(self, ax: plots.Axes | None = None, **style: Any) -> plots.Axes:
        """The curve over b: the best ringed, those tied filled, others hollow, × for no value.

        Means over runs have their 99 % intervals; the other criteria are not random.

        Args:
            ax: where to draw; a new figure unless told. Criteria drawn on the same Axes get
                colours and names of their own.
            **style: properties of the line, such as ``color`` or ``label``.
        """
        known = {b: y for b, y in self.curve.items() if b not in self.why_not}
        low, high = ([self.intervals.get(b, (y, y))[i] for b, y in known.items()] for i in (0, 1))
        sure = ", 99 % interval" if self.intervals else ""
        with plots.on(ax) as axes:
            look = {"label": self.by, **style}
            interval = (low, high) if self.intervals else None
            plots.curve(axes, list(known), list(known.values()), interval, **look)
            colour = axes.lines[-1].get_color() if interval is None else axes.lines[-3].get_color()
            for b in known.keys() - set(self.tied):
                axes.plot([b], [known[b]], "o", mfc="white", color=colour, ms=4, zorder=5)
            if self.micro_batch_size is not None:
                at = [self.micro_batch_size], [known[self.micro_batch_size]]
                axes.plot(*at, "o", mfc="none", color=colour, ms=11, gid="best")
            foot = axes.get_xaxis_transform()
            none = list(self.why_not)
            axes.plot(none, [0.02] * len(none), "x", color="0.4", transform=foot, gid="no value")
            plots.sizes_axis(axes, list(self.curve))
            if known and min(known.values()) > 0:
                axes.set_yscale("log")
            alone = len(axes.get_legend_handles_labels()[1]) < 2
            axes.set_ylabel(_UNITS[self.by] + sure if alone else "value of each criterion")
            best = f"best b = {self.micro_batch_size} of B = {self.batch_size}"
            axes.set_title(f"{best} ({self.reason})" if alone else "")
            plots.name_lines(axes)
        return axes

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for b, number in self.curve.items():
            mark = "best" if b == self.micro_batch_size else "tied" if b in self.tied else ""
            step = f"{self.step_sizes[b]:.3g}" if b in self.step_sizes else ""
            value = "" if b in self.why_not else f"{number:.4g}"
            rows.append((str(b), value, step, mark or self.why_not.get(b, "")))
        return rows

    @property
    def _head(self) -> tuple[str, ...]:
        return ("b", _UNITS[self.by], "step size", "")

    def __str__(self) -> str:
        best = "no b" if self.micro_batch_size is None else f"b = {self.micro_batch_size}"
        lines = tables.as_text(
            [(f"SweetSpot by {self.by}: {best} of {self.batch_size} ({self.reason})",)], width=80
        )
        if self.micro_batch_size is None:
            return "\n".join(lines)  # the reason has been said
        if self.answer is not None:
            lines = str(self.answer).splitlines()
        if self.continuous is not None:
            lines.append(f"  lowest at b = {self.continuous:.4g} if it need not be whole")
        rows = tables.as_text([self._head, *self._rows()], align=">..", least=(6, 10))
        return "\n".join([*lines, *(f"  {row.rstrip()}" for row in rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = str(self).partition("\n")[0]
        return tables.as_html(self._rows(), head=self._head, caption=title)


@answering
def sweet_spot(
    problem: Problem | MeasuredProblem,
    *,
    batch_size: int,
    step_size: float | str | None = None,
    steps: int | None = None,
    by: str = "final",
    replicates: int | None = None,
    rng: int | SeedSequence | Generator | None = None,
    store: str | os.PathLike[str] | None = None,
) -> SweetSpot:
    """The best micro-batch size for Algorithm 1 among the divisors of the batch size.

    Args:
        problem: what is optimised; or a :class:`mbsim.MeasuredProblem`, which is asked for "final"
            (by :func:`mbsim.advise`, which has more to say), "certificate" and "floor".
        batch_size: B.
        step_size: η, the same for every b; or "tuned". For "final" and "average" that is the
            default, and means for each b the step size at which it ends lowest; elsewhere the one
            at which its certificate is smallest. Only the bias does without.
        steps: T. The bias does without, and the floor at a given step size.
        by: "final", the mean of ‖∇L(w_T)‖² at the end of runs; "average", its average over the
            steps; "bias", what no number of steps removes from Theorem 2; "bound", Theorem 2 in
            full; "certificate", the best bound that the exact drift proves; "floor", where a run
            with this step size stops; "simulation", the average over runs at a step size that is
            given.
        replicates: how many runs for each b, at least 2: needed for "simulation"; for "final" and
            "average" as many as are worth their time unless told, from 8 to 512.
        rng: the seed: needed for "simulation", 0 unless told elsewhere.
        store: for "simulation" a file, as of :func:`mbsim.sweep`: runs are drawn in processes and
            kept there, and those that are there are not drawn again. Then `rng` is an integer, the
            problem of mbsim's own parts, and `replicates` may be left out: until each mean is known
            to a relative standard error of 1 %, however often that is looked at.

    Returns:
        A :class:`SweetSpot`.

    Raises:
        InvalidArgument: for arguments that break a rule, or that the criterion needs and lacks.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(16)), benign_dim=8, start=np.full(16, 0.1),
    ...     noise=mbsim.noise.TwoPoint(sigma=1.0, rare=0.05),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0))
    >>> from dataclasses import replace
    >>> symmetric = replace(problem, noise=mbsim.noise.Gaussian(sigma=1.0), start=np.ones(16))
    >>> best = sweet_spot(symmetric, batch_size=64, steps=100, replicates=64)
    >>> best.micro_batch_size in (1, 2), best.answer.clips, best.answer.gain.low > 5
    (True, True, True)
    >>> best = sweet_spot(problem, batch_size=64, step_size=0.01, by="floor")
    >>> best.micro_batch_size, best.reason
    (16, 'interior')
    >>> gradients = 0.1 + np.random.default_rng(0).standard_normal((200, 8))  # of examples
    >>> measured = mbsim.MeasuredProblem(gradients, target=np.full(8, 0.1))
    >>> sweet_spot(measured, batch_size=8, steps=100).by
    'final'
    >>> best = sweet_spot(problem, batch_size=64, by="bias")
    >>> best.micro_batch_size, round(best.continuous, 1)
    (16, 18.5)
    """
    if not isinstance(by, str) or by not in CRITERIA:
        raise InvalidArgument(f"by={shown(by)} must be one of {', '.join(CRITERIA)}")
    for name, given, needed in (
        ("step_size", step_size, by not in ("bias", *_LEVELS)),
        ("steps", steps, by not in ("bias", "floor") or isinstance(step_size, str)),
        ("replicates", replicates, by == "simulation" and store is None),
        ("rng", rng, by == "simulation"),
    ):
        if needed and given is None:
            raise InvalidArgument(f"{name} must be given for by={by!r}")
    batch = check_integer("batch_size", batch_size, minimum=1)
    asked = None if step_size is None else check_step_size(step_size)
    horizon = 0 if steps is None else check_integer("steps", steps, minimum=1)
    samples = 2 if replicates is None else check_integer("replicates", replicates, minimum=2)
    if replicates is not None and by not in ("simulation", *_LEVELS):
        raise InvalidArgument(
            f"replicates={shown(replicates)} must be left out for by={by!r}: it simulates nothing"
        )
    seed = seed_sequence(0 if rng is None else rng)
    if store is not None and (by != "simulation" or isinstance(asked, str)):
        raise InvalidArgument(
            f"store={shown(str(store))} must be left out but for by='simulation' at a step size"
        )
    if isinstance(problem, MeasuredProblem):
        _check_measured(by, step_size, replicates)
        if by == "final":
            return _advised(problem, batch, horizon, seed)
    else:
        check_problem(problem)
    # Of measured gradients a setting is asked no more than its drift.
    problem = cast(Problem, problem)
    if by in _LEVELS:
        fixed = None if asked is None or isinstance(asked, str) else asked
        number = None if replicates is None else samples
        ends = Ends(problem, batch, horizon, _LEVELS[by], seed, fixed, number)
        return _ended(by, ends)

    values: dict[int, Value] = {}
    step_sizes: dict[int, float] = {}
    sizes = divisors(batch)
    if store is not None:
        assert isinstance(asked, float)
        settings = {"batch_size": batch, "step_size": asked, "steps": horizon}
        values = _swept(problem, settings, None if replicates is None else samples, rng, store)
        sizes, step_sizes = [], dict.fromkeys(values, asked)
    for b in watched(sizes, f"{by} for every b"):
        setting = Setting(problem, MicroBatchClipping(b), batch, steps=horizon)
        if by == "bias":
            values[b] = _bias(setting)
            continue
        assert asked is not None
        one, η = _tuned(setting, seed) if isinstance(asked, str) else (None, asked)
        if isinstance(η, Refusal):
            values[b] = η
        else:
            values[b] = _value(by, replace(setting, step_size=η), seed, samples, one)
            step_sizes[b] = η
    found = _lowest(by, batch, values, step_sizes)
    if by == "bias":
        found = replace(found, continuous=_continuous(problem))
    return _hinted(found, problem, asked, seed)


def _lowest(
    by: str, batch: int, values: Mapping[int, Value], step_sizes: dict[int, float]
) -> SweetSpot:
    """The sweet spot of the values of every b."""
    best, tied, reason = _best(values)
    return SweetSpot(
        by=by,
        batch_size=batch,
        micro_batch_size=best,
        tied=tied,
        reason=reason,
        curve={b: _mean(found) for b, found in values.items()},
        why_not={b: found.reason for b, found in values.items() if isinstance(found, Refusal)},
        step_sizes=step_sizes,
        intervals=_intervals(values),
    )


def _check_measured(by: str, step_size: Any, replicates: Any) -> None:
    if by not in _MEASURED:
        raise InvalidArgument(
            f"by={shown(by)} must be one of {', '.join(_MEASURED)} for measured gradients"
        )
    left_out = {"replicates": replicates, **({"step_size": step_size} if by == "final" else {})}
    for name, given in left_out.items():
        if given is not None and given != "tuned":
            raise InvalidArgument(
                f"{name}={shown(given)} must be left out for by={by!r} of measured gradients"
            )


def _advised(measured: MeasuredProblem, batch: int, steps: int, seed: SeedSequence) -> SweetSpot:
    """By training replayed on measured gradients."""
    advice = advise(measured, batch_size=batch, steps=steps, rng=seed)
    squares = {b: level.estimate**2 for b, level in advice.curve.items()}
    best = advice.micro_batch_size
    return SweetSpot(
        by="final",
        batch_size=batch,
        micro_batch_size=best,
        tied=advice.tied,
        reason=_place(best, batch),
        curve=squares,
        why_not={},
        step_sizes={row.micro_batch_size: row.step_size for row in advice.rows[: len(squares)]},
        answer=advice.answer,
    )


def _ended(by: str, ends: Ends) -> SweetSpot:
    """By where runs end: searched for, and then run again."""
    ends.search()
    values: dict[int, Value] = {}
    for b in divisors(ends.batch):
        if b in ends.best:
            found = ends.run(b, ends.best[b][0], "again")
            gone = int(np.isinf(found).sum())
            values[b] = found
            if gone:
                values[b] = Refusal(f"{gone} of {found.size} replicates diverged", of="level")
        else:
            values[b] = Refusal("not looked at (far from the best)", of="level")
    step_sizes = {b: float(step_size) for b, (step_size, _) in sorted(ends.best.items())}
    spot = _lowest(by, ends.batch, values, step_sizes)
    if spot.micro_batch_size is None:
        return _hinted(spot, ends.problem, ends.step_size, ends.seed)
    answer = _answer(by, ends, spot.micro_batch_size, spot.tied, values)
    return replace(spot, answer=answer)


def _answer(
    by: str, ends: Ends, best: int, tied: tuple[int, ...], values: Mapping[int, Value]
) -> Answer:
    sgd, lowest = values[ends.batch], values[best]
    gain = statistics.exactly(1.0 if best == ends.batch else math.inf)
    if best != ends.batch and not isinstance(sgd, Refusal):
        samples = cast(NDArray[np.float64], sgd), cast(NDArray[np.float64], lowest)
        gain = statistics.ratio(*samples, false_positive_rate=_RATE)
    what = {"final": "ends lowest after", "average": "is lowest in the mean over"}[by]
    each = "each at its own best step size" if ends.step_size is None else "all at one step size"
    looked = ", ".join(str(b) for b in sorted(ends.best))
    return Answer(
        question=f"Which micro-batch size {what} {ends.steps} steps, {each}?",
        batch_size=ends.batch,
        micro_batch_size=best,
        tied=tied,
        gain=gain,
        step_size=ends.best[best][0],
        sgd_step_size=ends.best[ends.batch][0],
        reason=_why(ends.problem, best, ends.batch),
        rests_on=f"{ends.looks} runs for each of b = {looked}; intervals at the rate {_RATE:g}",
    )


def _why(problem: Problem, best: int, batch: int) -> str:
    """What in the problem speaks for clipping, and what against it."""
    draggers, facts = problem.draggers, facts_of(problem.noise)
    p, c = draggers.probability, draggers.norm_ratio
    share = p * c**2 / (1 - p + p * c**2) if p < 1 else 1.0
    speaks, against = [], []
    if p and c > 1:
        speaks.append(f"draggers make {share:.0%} of the variance of an example's gradient")
    if p and draggers.tilt < 0:
        speaks.append(_stopped(problem))
    if not (facts.unimodal or facts.independent):
        against.append("noise that is skewed along the gradient biases clipping at small b")
    if p and draggers.tilt > 0:
        against.append("draggers point along the gradient, and clipping cuts them")
    if not p or c <= 1:
        against.append("there are no long draggers to cut")
    if best == batch:
        return "; ".join(against or ["what clipping cuts from good examples outweighs its gain"])
    but = "; but " + "; ".join(against) if against and speaks else ""
    return "; ".join(speaks or ["noise alone makes micro-batches of different length"]) + but


def _stopped(problem: Problem) -> str:
    """What draggers that are tilted against the gradient do to SGD."""
    from mbsim.theory import tilted_level

    level = tilted_level("SGD")
    known = level.picked(problem.quantities())
    if not level.holds(**known):
        return "they pull harder than the others at every gradient norm, so that SGD never descends"
    stops = f"{level.evaluate(**known):.3g}"
    return f"they pull against the gradient, which stops SGD at a norm of {stops}"


def _usable(problem: Problem, batch: int, step_size: float, seed: SeedSequence) -> str:
    """Which step sizes are usable, where none of the b can use this one; "" if that is not it."""
    usable: dict[int, float] = {}
    for b in divisors(batch):
        with suppress(InvalidArgument):  # a law that has no drift
            setting = Setting(problem, MicroBatchClipping(b), batch)
            usable[b] = _drift(setting, seed).largest_step_size
    b = max(usable, key=lambda one: usable[one], default=0)
    if not b or step_size < usable[b]:
        return ""
    return f"; at b = {b}, which allows most, usable is η below {usable[b]:.3g}"


def _hinted(spot: SweetSpot, problem: Problem, step_size: Any, seed: SeedSequence) -> SweetSpot:
    """The same; where no b is best at a step size that was given, it says which are usable."""
    if spot.micro_batch_size is not None or not isinstance(step_size, float):
        return spot
    return replace(spot, reason=spot.reason + _usable(problem, spot.batch_size, step_size, seed))


def _mean(found: Value) -> float:
    if isinstance(found, statistics.Interval):
        return found.estimate
    return math.inf if isinstance(found, Refusal) else float(np.mean(found))


def _intervals(values: Mapping[int, Value]) -> dict[int, tuple[float, float]]:
    means = {
        b: statistics.mean(found, false_positive_rate=_RATE)
        for b, found in values.items()
        if isinstance(found, np.ndarray)
    }
    means |= {b: found for b, found in values.items() if isinstance(found, statistics.Interval)}
    return {b: (mean.low, mean.high) for b, mean in means.items()}


def _best(values: Mapping[int, Value]) -> tuple[int | None, tuple[int, ...], str]:
    """The b of the lowest value, those tied with it, and where it lies or why there is none.

    Samples are told apart by a test, numbers by 1 %.
    """
    best = min(values, key=lambda b: _mean(values[b]))
    lowest = values[best]
    if isinstance(lowest, Refusal):
        return None, (), lowest.reason
    rate = _RATE / max(1, len(values) - 1)

    def apart(found: Value) -> bool:
        if isinstance(found, Refusal):
            return True
        if isinstance(found, float):
            return found > _TIED * _mean(lowest)
        if isinstance(found, statistics.Interval):  # they hold together, paired or not
            return found.low > cast(statistics.Interval, lowest).high
        other = cast(NDArray[np.float64], lowest)
        return statistics.difference(found, other, false_positive_rate=rate).low > 0

    tied = tuple(b for b, found in values.items() if b == best or not apart(found))
    return best, tied, _place(best, max(values))


def _place(best: int, batch: int) -> str:
    """Where the best b lies."""
    if best == 1:
        return "smallest: b = 1"
    return "none inside: b = B" if best == batch else "interior"


def _continuous(problem: Problem) -> float | None:
    """Where the closed bias is stationary in b; None without draggers: it falls for ever."""
    from mbsim.theory import optimal_micro_batch_size

    p = problem.draggers.probability
    if not 0 < p < 1:
        return None
    return float(optimal_micro_batch_size().evaluate(probability=p))


# ---------------------------------------------------------------------------- the criteria


def _drift(setting: Setting, seed: SeedSequence) -> Drift:
    return drift(setting.problem, setting.method, batch_size=setting.batch_size, rng=seed)


def _tuned(setting: Setting, seed: SeedSequence) -> tuple[Drift | None, float | Refusal]:
    """The drift, and its tuned step size: what :func:`mbsim.simulate` takes for it."""
    try:
        one = _drift(setting, seed)
        return one, one.tuned_step_size(steps=setting.steps)
    except InvalidArgument as reason:
        return None, Refusal(str(reason), of="step size")


def _value(
    by: str, setting: Setting, seed: SeedSequence, replicates: int, one: Drift | None
) -> Value:
    """The value of a setting by a criterion; with its drift, if that is there."""
    if by == "bound":
        return _bound(setting, seed)
    if by == "simulation":
        return _simulated(setting, seed, replicates)
    one = one or _drift(setting, seed)
    if by == "certificate":
        found = one.certify(step_size=setting.step_size, steps=setting.steps)
        return found if isinstance(found, Refusal) else found.value
    floor = one.floor(step_size=setting.step_size)
    if math.isfinite(floor):
        return floor
    usable = f"usable is η below {one.largest_step_size:.3g}"
    return Refusal(f"the step size is too large: {usable}", of="floor")


def _bias(setting: Setting) -> float | Refusal:
    from mbsim.theory import bias_bound

    return _evaluated(bias_bound(), setting.quantities())


def _bound(setting: Setting, seed: SeedSequence) -> float | Refusal:
    from mbsim.theory import clipping_bound, sgd_bound

    values, problem, b = setting.quantities(), setting.problem, setting.micro_batch_size
    if b == setting.batch_size:
        return _evaluated(sgd_bound(), values)
    bound = clipping_bound()
    measured = measured_anywhere(bound.names, problem, b, batch_size=setting.batch_size, rng=seed)
    if measured["mean_weight"] < 1e-9:  # 0 but for rounding
        return Refusal("the weight ω is not told from 0 at some gradient norm", of="bound")
    return _evaluated(bound, values | measured)


def _evaluated(bound: Any, values: Mapping[str, Any]) -> float | Refusal:
    known = bound.picked(values)
    try:
        if bound.holds(**known):
            return float(bound.evaluate(**known))
        return Refusal(f"the step size is too large for the bound ({bound.name})", of="bound")
    except InvalidArgument as reason:  # p = 1, or a bias too large for a float
        return Refusal(str(reason), of="bound")


def _swept(
    problem: Problem, settings: dict[str, Any], replicates: int | None, rng: Any, store: Any
) -> dict[int, Value]:
    """The mean for every b by a sweep, with intervals that hold together and at all looks."""
    from mbsim.sweeps import blocks
    from mbsim.sweeps.grid import Grid
    from mbsim.sweeps.runner import sweep

    names = ("loss", "noise", "draggers", "benign_dim", "start")
    grid = Grid(
        problem={name: getattr(problem, name) for name in names},
        method=settings,
        axes={"micro_batch_size": divisors(settings["batch_size"])},
        seed=check_integer("rng", rng, minimum=0),
        replicates=replicates,
        relative_standard_error=_TIED - 1 if replicates is None else None,
    )
    values: dict[int, Value] = {}
    for cell, _, summary, failure in sweep(grid, store):
        b = grid.coordinates(cell)["micro_batch_size"]
        if summary is None or failure is not None:
            raise InvalidArgument(f"b = {b} failed: {failure and failure[1]}")
        count = summary.replicates
        if summary.diverged:
            reason = f"{summary.diverged} of {count} replicates diverged"
            values[b] = Refusal(reason, of="mean")
            continue
        mean, error = float(summary.mean[-1]), float(summary.error[-1])
        rate = _RATE / len(grid)
        reach = float(blocks.always_within(grid, count, error * math.sqrt(count), rate))
        ends = mean - reach, mean + reach
        values[b] = statistics.interval_of(mean, error, count - 1, rate, ends)
    return values


def _simulated(
    setting: Setting, seed: SeedSequence, replicates: int
) -> NDArray[np.float64] | Refusal:
    rng = child(seed, setting.micro_batch_size)
    run = run_setting(setting, replicates=replicates, rng=rng, record_every=setting.steps)
    if run.diverged.any():
        reason = f"{run.diverged.sum()} of {run.replicates} replicates diverged"
        return Refusal(reason, of="mean")
    return run.mean_grad_norm_sq
