r"""Which micro-batch size to use: every divisor of the batch size, valued by one criterion.

Five criteria, from the paper's own to the most direct:

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
    (1/T) Σ ‖∇L(w_t)‖² of simulated runs.

The bias is a term of a bound: Algorithm 1's own bias is smallest at b = B, where it has none. Which
of these has an interior minimum, and where, is the claim ``interior-bias``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from mbsim import statistics
from mbsim._shared import tables
from mbsim._shared.progress import progress
from mbsim._shared.seeds import child, seed_sequence
from mbsim._shared.values import value
from mbsim.choosing.tuning import check_step_size
from mbsim.drifts.drift import Drift, drift
from mbsim.drifts.steps import measured_values, norms_near_atoms, step_sample
from mbsim.errors import InvalidArgument, check_integer, divisors, shown
from mbsim.methods import MicroBatchClipping
from mbsim.problems.problem import Problem, check_problem
from mbsim.problems.setting import Setting
from mbsim.simulation.run import run_setting
from mbsim.verdicts import Refusal

__all__ = ["CRITERIA", "SweetSpot", "sweet_spot"]

CRITERIA = ("bias", "bound", "certificate", "floor", "simulation")

# By a criterion: a number, or one of every replicate, or why there is none.
Value = float | NDArray[np.float64] | Refusal

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
    continuous: float | None

    @property
    def interior(self) -> bool:
        """Whether the best b lies strictly between 1 and B."""
        return self.micro_batch_size is not None and 1 < self.micro_batch_size < self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """The sweet spot as plain data; micro-batch sizes become texts, as in JSON."""
        return {
            **vars(self),
            "interior": self.interior,
            **{
                name: {str(b): content for b, content in getattr(self, name).items()}
                for name in ("curve", "why_not", "step_sizes")
            },
        }

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = []
        for b, number in self.curve.items():
            mark = "best" if b == self.micro_batch_size else "tied" if b in self.tied else ""
            rows.append((str(b), f"{number:.4g}", mark or self.why_not.get(b, "")))
        return rows

    def __str__(self) -> str:
        best = "no b" if self.micro_batch_size is None else f"b = {self.micro_batch_size}"
        lines = [f"SweetSpot by {self.by}: {best} of {self.batch_size} ({self.reason})"]
        if self.continuous is not None:
            lines.append(f"  lowest at b = {self.continuous:.4g} if it need not be whole")
        rows = tables.as_text(self._rows(), align=">>", least=(6, 10))
        return "\n".join([*lines, *(f"  {row}" for row in rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = str(self).partition("\n")[0]
        return tables.as_html(self._rows(), head=("b", self.by, ""), caption=title)


def sweet_spot(
    problem: Problem,
    *,
    batch_size: int,
    step_size: float | str | None = None,
    steps: int | None = None,
    by: str = "certificate",
    replicates: int | None = None,
    rng: int | SeedSequence | Generator | None = None,
) -> SweetSpot:
    """The best micro-batch size for Algorithm 1 among the divisors of the batch size.

    Args:
        problem: what is optimised.
        batch_size: B.
        step_size: η, the same for every b; or "tuned": for each b the step size at which its
            certificate is smallest. Only the bias does without.
        steps: T. The bias does without, and the floor at a given step size.
        by: the criterion, "bias", "bound", "certificate", "floor" or "simulation"; the head of
            this module says what they are.
        replicates: for a simulation, how many runs for each b, at least 2.
        rng: for a simulation, the seed; for the other criteria, the seed of what has to be sampled
            (0 unless told).

    Returns:
        A :class:`SweetSpot`.

    Raises:
        InvalidArgument: for arguments that break a rule, or that the criterion needs and lacks.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(16)), benign_dim=8, start=np.full(16, 0.1),
    ...     noise=mbsim.noise.TwoPoint(sigma=1.0, rare=0.05),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0))
    >>> best = sweet_spot(problem, batch_size=64, step_size=0.01, by="floor")
    >>> best.micro_batch_size, best.reason
    (16, 'interior')
    >>> best = sweet_spot(problem, batch_size=64, by="bias")
    >>> best.micro_batch_size, round(best.continuous, 1)
    (16, 18.5)
    """
    if not isinstance(by, str) or by not in CRITERIA:
        raise InvalidArgument(f"by={shown(by)} must be one of {', '.join(CRITERIA)}")
    for name, given, needed in (
        ("step_size", step_size, by != "bias"),
        ("steps", steps, by not in ("bias", "floor") or isinstance(step_size, str)),
        ("replicates", replicates, by == "simulation"),
        ("rng", rng, by == "simulation"),
    ):
        if needed and given is None:
            raise InvalidArgument(f"{name} must be given for by={by!r}")
    check_problem(problem)
    batch = check_integer("batch_size", batch_size, minimum=1)
    asked = None if step_size is None else check_step_size(step_size)
    horizon = 0 if steps is None else check_integer("steps", steps, minimum=1)
    samples = 2 if replicates is None else check_integer("replicates", replicates, minimum=2)
    seed = seed_sequence(0 if rng is None else rng)

    sizes = divisors(batch)
    values: dict[int, Value] = {}
    step_sizes: dict[int, float] = {}
    with progress(len(sizes), f"{by} for every b") as bar:
        for number, b in enumerate(sizes):
            setting = Setting(problem, MicroBatchClipping(b), batch, steps=horizon)
            one: Drift | None = None
            η: float | Refusal = 0.0
            if by != "bias":
                assert asked is not None
                one, η = _tuned(setting, seed) if isinstance(asked, str) else (None, asked)
            if isinstance(η, Refusal):
                values[b] = η
            else:
                values[b] = _value(by, replace(setting, step_size=η), seed, samples, one)
                if by != "bias":
                    step_sizes[b] = η
            bar.update(number + 1)
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
        continuous=_continuous(problem) if by == "bias" else None,
    )


def _mean(found: Value) -> float:
    return math.inf if isinstance(found, Refusal) else float(np.mean(found))


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
        return statistics.difference(found, lowest, false_positive_rate=rate).low > 0

    tied = tuple(b for b, found in values.items() if b == best or not apart(found))
    if best == 1:
        return best, tied, "smallest: b = 1"
    return best, tied, "none inside: b = B" if best == max(values) else "interior"


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
    if by == "bias":
        from mbsim.theory import bias_bound

        return _evaluated(bias_bound(), setting.quantities())
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
    return Refusal("the step size is too large: large gradients grow", of="floor")


def _bound(setting: Setting, seed: SeedSequence) -> float | Refusal:
    from mbsim.theory import clipping_bound, sgd_bound

    values, problem, b = setting.quantities(), setting.problem, setting.micro_batch_size
    if b == setting.batch_size:
        return _evaluated(sgd_bound(), values)
    bound, sigma = clipping_bound(), problem.noise.sigma
    sample = step_sample(problem, b, batch_size=setting.batch_size, rng=seed, draws=2**13)
    # ω is a function of r/σ that levels off at both ends.
    norms = (sigma or 1.0) * np.geomspace(1e-2 / math.sqrt(b), 1e2, 16)
    norms = np.union1d(norms, norms_near_atoms(problem, b))
    measured = measured_values(bound.names, sample, norms, false_positive_rate=1e-3)
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


def _simulated(
    setting: Setting, seed: SeedSequence, replicates: int
) -> NDArray[np.float64] | Refusal:
    rng = child(seed, setting.micro_batch_size)
    run = run_setting(setting, replicates=replicates, rng=rng, record_every=setting.steps)
    if run.diverged.any():
        reason = f"{run.diverged.sum()} of {run.replicates} replicates diverged"
        return Refusal(reason, of="mean")
    return run.mean_grad_norm_sq
