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
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike, NDArray

from mbsim import statistics
from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence
from mbsim._shared.values import value
from mbsim.choosing.tuning import check_step_size, step_size_for
from mbsim.drifts.drift import Drift, drift
from mbsim.errors import InvalidArgument, check_array, check_integer, divisors, shown
from mbsim.methods import MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.problem import Problem
from mbsim.simulation.run import check_problem, simulate
from mbsim.verdicts import Refusal

if TYPE_CHECKING:
    import xarray

__all__ = ["CRITERIA", "PhaseDiagram", "SweetSpot", "phase_diagram", "sweet_spot"]

Array = NDArray[np.float64]

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
        lines += [f"  {b:>6}  {number:>10}  {mark}".rstrip() for b, number, mark in self._rows()]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import html

        cells = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in self._rows()
        )
        title = html.escape(str(self).partition("\n")[0])
        return f"<p>{title}</p><table><tr><th>b</th><th>{self.by}</th><th></th></tr>{cells}</table>"


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
    setting = _Setting.checked(problem, batch_size, step_size, steps, by, replicates, rng)
    sizes, values, why_not, step_sizes = divisors(setting.batch_size), {}, {}, {}
    with progress(len(sizes), f"{by} for every b") as bar:
        for number, b in enumerate(sizes):
            try:
                if by != "bias":
                    step_sizes[b] = setting.step_size_at(b)
                values[b] = _CRITERIA[by](setting, b, step_sizes.get(b, math.nan))
            except _NoValue as reason:
                values[b], why_not[b] = math.inf, str(reason)
            bar.update(number + 1)
    curve = {b: float(np.mean(values[b])) for b in sizes}
    lowest = min(sizes, key=curve.__getitem__)
    found = math.isfinite(curve[lowest])
    return SweetSpot(
        by=by,
        batch_size=setting.batch_size,
        micro_batch_size=lowest if found else None,
        tied=_tied(values, lowest) if found else (),
        reason=_reason(lowest, setting.batch_size) if found else why_not.get(lowest, "no value"),
        curve=curve,
        why_not=why_not,
        step_sizes=step_sizes,
        continuous=_continuous(problem) if by == "bias" else None,
    )


CRITERIA = ("bias", "bound", "certificate", "floor", "simulation")


def _reason(lowest: int, batch: int) -> str:
    if lowest == 1:
        return "smallest: b = 1"
    return "none inside: b = B" if lowest == batch else "interior"


def _tied(values: dict[int, Any], lowest: int) -> tuple[int, ...]:
    """The sizes that cannot be told from the best: samples by a test, numbers within 1 %."""

    def apart(b: int) -> bool:
        if isinstance(values[b], float):
            return bool(values[b] > _TIED * np.mean(values[lowest]))
        rate = _RATE / (len(values) - 1)
        return statistics.difference(values[b], values[lowest], false_positive_rate=rate).low > 0

    return tuple(b for b in values if b == lowest or not apart(b))


def _continuous(problem: Problem) -> float | None:
    """Where the closed bias is stationary in b; None without draggers: it falls for ever."""
    from mbsim.theory import optimal_micro_batch_size

    p = problem.draggers.probability
    if not 0 < p < 1:
        return None
    return float(optimal_micro_batch_size().evaluate(probability=p))


# ---------------------------------------------------------------------------- the criteria


class _NoValue(Exception):
    """Why a micro-batch size has no value by a criterion."""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Checked arguments of a sweet spot."""

    problem: Problem
    batch_size: int
    step_size: float | str | None
    steps: int | None
    replicates: int
    seed: SeedSequence

    @classmethod
    def checked(
        cls,
        problem: Any,
        batch_size: Any,
        step_size: Any,
        steps: Any,
        by: Any,
        replicates: Any,
        rng: Any,
    ) -> _Setting:
        if not isinstance(by, str) or by not in CRITERIA:
            raise InvalidArgument(f"by={shown(by)} must be one of {', '.join(CRITERIA)}")
        needed = {
            "step_size": by != "bias",
            "steps": by not in ("bias", "floor") or isinstance(step_size, str),
            "replicates": by == "simulation",
            "rng": by == "simulation",
        }
        for name, given in (
            ("step_size", step_size),
            ("steps", steps),
            ("replicates", replicates),
            ("rng", rng),
        ):
            if needed[name] and given is None:
                raise InvalidArgument(f"{name} must be given for by={by!r}")
        return cls(
            problem=check_problem(problem),
            batch_size=check_integer("batch_size", batch_size, minimum=1),
            step_size=None if step_size is None else check_step_size(step_size),
            steps=None if steps is None else check_integer("steps", steps, minimum=1),
            replicates=2
            if replicates is None
            else check_integer("replicates", replicates, minimum=2),
            seed=seed_sequence(0 if rng is None else rng),
        )

    def key(self, b: int) -> SeedSequence:
        """A stream of its own for the simulation of every b."""
        return SeedSequence(self.seed.entropy, spawn_key=(*self.seed.spawn_key, b))

    def drift(self, b: int) -> Drift:
        method = MicroBatchClipping(b)
        return drift(self.problem, method, batch_size=self.batch_size, rng=self.seed)

    def step_size_at(self, b: int) -> float:
        assert self.step_size is not None
        try:
            return step_size_for(
                self.problem,
                MicroBatchClipping(b),
                batch_size=self.batch_size,
                step_size=self.step_size,
                steps=self.steps or 1,
                rng=self.seed,
            )
        except InvalidArgument as reason:
            raise _NoValue(str(reason)) from None

    def values(self, b: int, step_size: float) -> dict[str, float]:
        """What the bounds are evaluated with, by code name."""
        draggers, problem = self.problem.draggers, self.problem
        return {
            "initial_gap": problem.initial_gap,
            "smoothness": problem.smoothness,
            "step_size": step_size,
            "steps": float(self.steps or 1),
            "batch_size": self.batch_size,
            "micro_batch_size": b,
            "probability": draggers.probability,
            "norm_ratio": draggers.norm_ratio,
            "coherence": draggers.coherence,
            "sigma": problem.noise.sigma,
        }


def _bias(setting: _Setting, b: int, step_size: float) -> float:  # noqa: ARG001
    from mbsim.theory import bias_bound

    return _evaluated(bias_bound(), setting.values(b, 1.0))


def _bound(setting: _Setting, b: int, step_size: float) -> float:
    from mbsim.drifts.steps import measured_values, norms_near_atoms, step_sample
    from mbsim.theory import clipping_bound, sgd_bound

    values = setting.values(b, step_size)
    if b == setting.batch_size:
        return _evaluated(sgd_bound(), values)
    bound, sigma = clipping_bound(), setting.problem.noise.sigma
    sample = step_sample(
        setting.problem, b, batch_size=setting.batch_size, rng=setting.seed, draws=2**13
    )
    # ω is a function of r/σ that levels off at both ends.
    norms = (sigma or 1.0) * np.geomspace(1e-2 / math.sqrt(b), 1e2, 16)
    norms = np.union1d(norms, norms_near_atoms(setting.problem, b))
    measured = measured_values(bound.names, sample, norms, false_positive_rate=1e-3)
    if measured["mean_weight"] < 1e-9:  # 0 but for rounding
        raise _NoValue("the weight ω is not told from 0 at some gradient norm")
    return _evaluated(bound, values | measured)


def _evaluated(bound: Any, values: dict[str, float]) -> float:
    known = {name: values[name] for name in bound.names}
    try:
        if not bound.holds(**known):
            raise _NoValue(f"the step size is too large for the bound ({bound.name})")
        return float(bound.evaluate(**known))
    except InvalidArgument as reason:  # p = 1, or a bias too large for a float
        raise _NoValue(str(reason)) from None


def _certificate(setting: _Setting, b: int, step_size: float) -> float:
    assert setting.steps is not None
    found = setting.drift(b).certify(step_size=step_size, steps=setting.steps)
    if isinstance(found, Refusal):
        raise _NoValue(found.reason)
    return found.value


def _floor(setting: _Setting, b: int, step_size: float) -> float:
    floor = setting.drift(b).floor(step_size=step_size)
    if not math.isfinite(floor):
        raise _NoValue("the step size is too large: large gradients grow")
    return floor


def _simulated(setting: _Setting, b: int, step_size: float) -> Array:
    assert setting.steps is not None
    run = simulate(
        setting.problem,
        MicroBatchClipping(b),
        batch_size=setting.batch_size,
        step_size=step_size,
        steps=setting.steps,
        replicates=setting.replicates,
        record_every=setting.steps,
        rng=setting.key(b),
    )
    if run.diverged.any():
        raise _NoValue(f"{run.diverged.sum()} of {run.replicates} replicates diverged")
    return run.mean_grad_norm_sq


_CRITERIA: dict[str, Callable[[_Setting, int, float], Any]] = {
    "bias": _bias,
    "bound": _bound,
    "certificate": _certificate,
    "floor": _floor,
    "simulation": _simulated,
}


# ---------------------------------------------------------------------------- phase diagram


@value
class PhaseDiagram:
    """The best micro-batch size for many dragger probabilities and norm ratios.

    Attributes:
        by: the criterion.
        batch_size: B.
        probabilities: p, float64[rows]; norm_ratios: c, float64[columns].
        micro_batch_size: int64[rows, columns], 0 where no b has a value.
    """

    by: str
    batch_size: int
    probabilities: Array
    norm_ratios: Array
    micro_batch_size: NDArray[np.int64]

    @property
    def interior(self) -> NDArray[np.bool_]:
        """bool[rows, columns]: where the best b lies strictly between 1 and B."""
        return (self.micro_batch_size > 1) & (self.micro_batch_size < self.batch_size)

    def to_xarray(self) -> xarray.Dataset:
        """The diagram as a labelled :class:`xarray.Dataset` (needs xarray: extra ``labels``)."""
        import xarray

        axes = ("probability", "norm_ratio")
        return xarray.Dataset(
            {
                "micro_batch_size": (axes, self.micro_batch_size),
                "interior": (axes, self.interior),
            },
            coords={"probability": self.probabilities, "norm_ratio": self.norm_ratios},
            attrs={"by": self.by, "batch_size": self.batch_size},
        )

    def __str__(self) -> str:
        head = "p \\ c " + "".join(f"{c:>8.3g}" for c in self.norm_ratios)
        rows = [
            f"{p:<6.3g}" + "".join(f"{b:>8}" for b in row)
            for p, row in zip(self.probabilities, self.micro_batch_size, strict=True)
        ]
        share = f"{self.interior.mean():.0%} interior"
        title = f"PhaseDiagram by {self.by}: best b of {self.batch_size}, {share}"
        return "\n".join([title, head, *rows])

    __repr__ = __str__


def phase_diagram(
    problem: Problem,
    *,
    probabilities: ArrayLike,
    norm_ratios: ArrayLike,
    batch_size: int,
    by: str = "certificate",
    **settings: Any,
) -> PhaseDiagram:
    r"""The sweet spot for many draggers: where is the best micro-batch size interior?

    Args:
        problem: what is optimised; its own draggers' probability and norm ratio are replaced.
        probabilities: p, one-dimensional.
        norm_ratios: c, one-dimensional.
        batch_size: B.
        by: the criterion.
        **settings: the other arguments of :func:`sweet_spot`.

    Raises:
        InvalidArgument: as :func:`sweet_spot`.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(16)), benign_dim=8, start=np.full(16, 0.1),
    ...     noise=mbsim.noise.TwoPoint(sigma=1.0, rare=0.05))
    >>> phase_diagram(problem, probabilities=[0.01, 0.1], norm_ratios=[1, 20], batch_size=16,
    ...               by="floor", step_size=0.01)
    PhaseDiagram by floor: best b of 16, 25% interior
    p \ c        1      20
    0.01        16      16
    0.1         16       8
    """
    rows, columns = _axis("probabilities", probabilities), _axis("norm_ratios", norm_ratios)
    best = np.zeros((rows.size, columns.size), dtype=np.int64)
    with progress(best.size, "phase diagram") as bar:
        for number, (i, j) in enumerate(np.ndindex(best.shape)):
            changed = _with_draggers(problem, float(rows[i]), float(columns[j]))
            found = sweet_spot(changed, batch_size=batch_size, by=by, **settings)
            best[i, j] = found.micro_batch_size or 0
            bar.update(number + 1)
    return PhaseDiagram(
        by=by,
        batch_size=batch_size,
        probabilities=rows,
        norm_ratios=columns,
        micro_batch_size=best,
    )


def _axis(name: str, numbers: Any) -> Array:
    array = check_array(name, numbers, ndim=1)
    if not array.size:
        raise InvalidArgument(f"{name} must have at least one number")
    return array


def _with_draggers(problem: Problem, probability: float, norm_ratio: float) -> Problem:
    old = check_problem(problem).draggers
    return Problem(
        loss=problem.loss,
        noise=problem.noise,
        benign_dim=problem.benign_dim,
        start=problem.start,
        draggers=Draggers(
            probability=probability,
            norm_ratio=norm_ratio,
            coherence=old.coherence,
            tilt=old.tilt,
        ),
    )
