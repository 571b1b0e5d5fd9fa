r"""The claims of the theory, each held against simulation and returned as a Verdict.

Every claim is a function of the same few arguments: `quick` (fewer steps and replicates), `rng`
(an integer seed), and what a negative control changes. All run on ½‖w‖² with B = 64, where the
bounds are nearly tight, in d = 16 dimensions, 8 of them benign. A *floor* is the level at which a
run with a constant step size stops: the root mean square of ‖∇L‖ over the last third of the run.
It is not the bias, of which it is only the limit for small step sizes (theory page, 5.5).

A claim fixes its limits before it sees data, and what is chosen from data (the best micro-batch
size, the best step size, the horizon) is chosen on one half of the replicates and tested on the
other half. Intervals are at a false-positive rate of 0.001 for each comparison.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from mbsim import statistics
from mbsim.errors import InvalidArgument, check_integer, shown
from mbsim.methods import SGD, Method, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import Quadratic
from mbsim.problems.noise import Gaussian, NoiseLaw, TwoPoint
from mbsim.problems.problem import Problem
from mbsim.simulation.run import Run, simulate
from mbsim.verdicts import Comparison, Verdict

__all__ = [
    "bias_needs_skew",
    "bias_stays",
    "clipping_ahead_early",
    "sgd_same_rate",
    "sweet_spot",
    "training_sweet_spot",
    "trajectories",
]

Array = NDArray[np.float64]

RATE = 0.001
BATCH = 64
DIM, BENIGN = 16, 8
SKEWED = TwoPoint(sigma=1.0, rare=0.05)
SYMMETRIC = Gaussian(sigma=1.0)
# Of the sweep over b, quick or not: the sizes, the step size, and step size times steps.
_SWEEPS = {True: ((1, 4, 16, 64), 0.02, 20), False: ((1, 2, 4, 8, 16, 32, 64), 0.01, 30)}
_LAWS: dict[str, NoiseLaw] = {"skewed": SKEWED, "symmetric": SYMMETRIC}
STRONG = Draggers(probability=0.05, norm_ratio=20.0)
NONE = Draggers(probability=0.0, norm_ratio=0.0)


def _problem(noise: NoiseLaw, draggers: Draggers, grad_norm: float) -> Problem:
    """½‖w‖² started where ‖g‖ is `grad_norm`."""
    start = np.full(DIM, grad_norm / math.sqrt(DIM))
    loss = Quadratic(np.ones(DIM))
    return Problem(loss=loss, noise=noise, draggers=draggers, benign_dim=BENIGN, start=start)


def _method(micro_batch_size: int) -> Method:
    """Algorithm 1, which with one micro-batch is SGD."""
    return SGD() if micro_batch_size == BATCH else MicroBatchClipping(micro_batch_size)


class _Simulations:
    """Simulations of one claim: each has its own stream, keyed by the claim and its number."""

    def __init__(self, claim: str, rng: int, replicates: int) -> None:
        self.rng = check_integer("rng", rng, minimum=0)
        self._key = tuple(claim.encode())
        self._replicates, self._count = replicates, 0

    def run(
        self,
        problem: Problem,
        method: Method,
        *,
        step_size: float,
        steps: int,
        record_every: int = 1,
    ) -> Run:
        self._count += 1
        return simulate(
            problem,
            method,
            batch_size=BATCH,
            step_size=step_size,
            steps=steps,
            replicates=self._replicates,
            record_every=record_every,
            rng=SeedSequence(self.rng, spawn_key=(*self._key, self._count)),
        )

    def floor_sq(self, problem: Problem, method: Method, *, step_size: float, time: float) -> Array:
        """The squared floor of every replicate: mean ‖g‖² over the last third of time/η steps."""
        steps = round(time / step_size)
        run = self.run(
            problem, method, step_size=step_size, steps=steps, record_every=max(1, steps // 600)
        )
        squared: Array = run.grad_norm_sq[:, run.steps >= 2 * steps / 3].mean(axis=1)
        return squared


def _halves(samples: Array) -> tuple[Array, Array]:
    """The replicates to choose with, and those to test with: along axis 0."""
    return samples[::2], samples[1::2]


def _points(x: Iterable[float], samples: Iterable[Array]) -> list[dict[str, float]]:
    """A curve as plain data: at each x, a mean with its interval."""
    rows = []
    for position, sample in zip(x, samples, strict=True):
        mean = statistics.mean(sample, false_positive_rate=0.01)
        rows.append({"x": position, "y": mean.estimate, "low": mean.low, "high": mean.high})
    return rows


def _floor_points(sizes: Iterable[float], floors_sq: Iterable[Array]) -> list[dict[str, float]]:
    """The same, as floors: roots of mean squares."""
    rows = _points(sizes, floors_sq)
    return [{k: v if k == "x" else math.sqrt(max(0.0, v)) for k, v in row.items()} for row in rows]


# ------------------------------------------------------------------------------- rates


def sgd_same_rate(*, quick: bool = False, rng: int = 0, tilt: float = 0.0) -> Verdict:
    r"""SGD with draggers has the rate of SGD without, and a constant larger as predicted.

    With η tuned for T by Theorem 1, η = √(2Δ/(L K_σ σ² T)), the mean of ‖∇L‖² over a run falls
    as T^{−1/2} with draggers and without. The ratio of the two is the theorem's, √(q + pc²)/q.
    Both are claims of equality, tested as equivalences: slopes within 0.05 of −½, the ratio
    within 10 % of the prediction. `tilt` makes the draggers lean along the gradient (a control:
    with a negative tilt SGD has a bias, and no rate at all).

    Source: [Wang2024] Theorem 4.1; theory page, section 4.
    """
    horizons = tuple(2**k for k in (range(9, 13) if quick else range(9, 14)))
    draggers = Draggers(probability=STRONG.probability, norm_ratio=STRONG.norm_ratio, tilt=tilt)
    p, c = draggers.probability, draggers.norm_ratio
    check_integer("rng", rng, minimum=0)
    means = {
        name: _tuned_sgd(horizons, which, 64 if quick else 128, rng)
        for name, which in (("without", NONE), ("with", draggers))
    }
    predicted = math.sqrt(1 - p + p * c**2) / (1 - p)
    comparisons = [
        Comparison(
            what=f"slope of mean ‖g‖² in T {name} draggers",
            measured=statistics.log_log_slope(horizons, means[name], false_positive_rate=RATE),
            relation="within",
            limit=(-0.55, -0.45),
        )
        for name in means
    ]
    measured = statistics.ratio(means["with"][-1], means["without"][-1], false_positive_rate=RATE)
    comparisons.append(
        Comparison(
            what=f"constant with draggers over without, at T = {horizons[-1]}",
            measured=measured,
            relation="within",
            limit=(0.9 * predicted, 1.1 * predicted),
        )
    )
    return Verdict(
        claim="sgd-same-rate",
        statement="SGD with draggers keeps SGD's rate 1/√T, with a constant larger as predicted.",
        comparisons=tuple(comparisons),
        seed=rng,
        details={
            "predicted_ratio": predicted,
            "curves": {f"SGD {name} draggers": _points(horizons, means[name]) for name in means},
        },
    )


@functools.lru_cache(maxsize=4)  # the control shares the runs without draggers
def _tuned_sgd(
    horizons: tuple[int, ...], draggers: Draggers, replicates: int, rng: int
) -> list[Array]:
    """Mean ‖g‖² of every replicate of SGD, the step size tuned by Theorem 1 for each horizon."""
    simulations = _Simulations(f"tuned SGD {draggers}", rng, replicates)
    problem = _problem(SYMMETRIC, draggers, grad_norm=0.5)
    p, c = draggers.probability, draggers.norm_ratio
    k_sigma = (1 - p + p * c**2) / BATCH
    return [
        simulations.run(
            problem,
            SGD(),
            step_size=math.sqrt(2 * problem.initial_gap / (k_sigma * horizon)),
            steps=horizon,
            record_every=horizon,
        ).mean_grad_norm_sq
        for horizon in horizons
    ]


def clipping_ahead_early(*, quick: bool = False, rng: int = 0, draggers: bool = True) -> Verdict:
    r"""With strong draggers clipping is ahead of SGD up to a horizon, and behind after it.

    At every horizon T each method runs with its best step size of a grid (chosen on one half of
    the replicates), and the means of ‖∇L‖² over the T steps are compared on the other half. The
    noise is skewed, so clipping (b = 4) has a bias. The horizon is found as an interval: the last
    T at which clipping is ahead beyond chance, and the first after it at which SGD is.
    Without draggers (a control) clipping should not be ahead at all.

    Source: [Wang2024] Theorems 4.1, 4.2 and Table 1; theory page, 5.6.
    """
    last = 700 if quick else 2000
    horizons = np.unique(np.geomspace(20, last, 10 if quick else 16).astype(int))
    step_sizes = [0.02 * 2**k for k in range(0, 7, 2 if quick else 1)]
    simulations = _Simulations("clipping-ahead-early", rng, 64 if quick else 128)
    problem = _problem(SKEWED, STRONG if draggers else NONE, grad_norm=1.4)
    tuned = {}
    for name, method in (("SGD", SGD()), ("clipping, b = 4", MicroBatchClipping(4))):
        means = []  # [step sizes][replicates, horizons]
        for step_size in step_sizes:
            run = simulations.run(problem, method, step_size=step_size, steps=last)
            sums = run.grad_norm_sq[:, :-1].cumsum(axis=1)
            means.append(sums[:, horizons - 1] / horizons)
        choose, test = zip(*(_halves(m) for m in means), strict=True)
        best = np.argmin([m.mean(axis=0) for m in choose], axis=0)
        tuned[name] = [test[best[i]][:, i] for i in range(horizons.size)]
    ratios = [
        statistics.ratio(clip, sgd, false_positive_rate=RATE / horizons.size)
        for clip, sgd in zip(tuned["clipping, b = 4"], tuned["SGD"], strict=True)
    ]
    ahead = [int(t) for t, r in zip(horizons, ratios, strict=True) if r.high < 1]
    behind = [int(t) for t, r in zip(horizons, ratios, strict=True) if r.low > 1]
    after = [t for t in behind if not ahead or t > ahead[-1]]
    return Verdict(
        claim="clipping-ahead-early",
        statement=(
            "With strong draggers and skewed noise clipping is ahead of SGD up to a horizon, and "
            "behind after it."
        ),
        comparisons=(
            Comparison(
                what=f"clipping over SGD, mean ‖g‖² at T = {horizons[0]}",
                measured=ratios[0],
                relation="below",
                limit=1.0,
            ),
            Comparison(
                what=f"clipping over SGD, mean ‖g‖² at T = {horizons[-1]}",
                measured=ratios[-1],
                relation="above",
                limit=1.0,
            ),
        ),
        seed=rng,
        details={
            "horizon": [ahead[-1] if ahead else None, after[0] if after else None],
            "curves": {name: _points(map(int, horizons), m) for name, m in tuned.items()},
        },
    )


# ------------------------------------------------------------------------------ floors


def bias_stays(*, quick: bool = False, rng: int = 0) -> Verdict:
    """With noise skewed against g clipping's floor stays as the step size falls; SGD's does not.

    A quarter of the step size (and four times the steps) leaves more than 0.8 of clipping's floor
    and less than 0.6 of SGD's, whose floor falls as √η. Control: :func:`bias_needs_skew`.

    Source: [Wang2024] Theorem 4.2; theory page, sections 5 and 6.
    """
    return _floor_ratios(
        "bias-stays",
        "With noise skewed against the gradient clipping has a bias that a smaller step size does "
        "not remove, and SGD has none.",
        SKEWED,
        (("clipping, b = 4", MicroBatchClipping(4), "above", 0.8), ("SGD", SGD(), "below", 0.6)),
        quick=quick,
        rng=rng,
    )


def bias_needs_skew(*, quick: bool = False, rng: int = 0, skewed: bool = False) -> Verdict:
    """With Gaussian noise the same clipping has no bias: its floor falls with the step size.

    Ours, not the paper's (theory page, section 6). `skewed` brings the skew back (a control).
    """
    return _floor_ratios(
        "bias-needs-skew",
        "With Gaussian noise clipping has no bias: its floor falls with the step size as SGD's.",
        SKEWED if skewed else SYMMETRIC,
        (("clipping, b = 4", MicroBatchClipping(4), "below", 0.6),),
        quick=quick,
        rng=rng,
    )


def _floor_ratios(
    claim: str,
    statement: str,
    noise: NoiseLaw,
    expected: Sequence[tuple[str, Method, str, float]],
    *,
    quick: bool,
    rng: int,
) -> Verdict:
    """floor(η/4)/floor(η) for some methods, each held against its limit."""
    simulations = _Simulations(claim, rng, 64 if quick else 128)
    step_size = 0.16 if quick else 0.04
    problem = _problem(noise, STRONG, grad_norm=0.2)
    comparisons, floors = [], {}
    for name, method, relation, limit in expected:
        small, large = (
            simulations.floor_sq(problem, method, step_size=eta, time=40)
            for eta in (step_size / 4, step_size)
        )
        floors[name] = _floor_points([step_size / 4, step_size], [small, large])
        measured = statistics.ratio(small, large, false_positive_rate=RATE, power=0.5)
        comparisons.append(
            Comparison(
                what=f"floor(η/4)/floor(η) of {name}, η = {step_size:g}",
                measured=measured,
                relation=relation,
                limit=limit,
            )
        )
    return Verdict(
        claim=claim,
        statement=statement,
        comparisons=tuple(comparisons),
        seed=rng,
        details={"floors": floors},
    )


def sweet_spot(
    *,
    quick: bool = False,
    rng: int = 0,
    noise: str = "skewed",
    draggers: bool = True,
    shuffle: bool = False,
) -> Verdict:
    """An interior micro-batch size has a lower floor than b = 1 and than b = B.

    The best interior b is chosen on one half of the replicates and tested on the other half.
    Controls: ``noise="symmetric"`` (the bias that punishes a small b is gone), ``draggers=False``
    (nothing for clipping to remove), ``shuffle=True`` (in each replicate the labels of the floors
    are shuffled among the micro-batch sizes: all means are equal then).

    Source: [Wang2024] Theorem 4.2; theory page, 5.5 and section 6.
    """
    if noise not in _LAWS:
        raise InvalidArgument(f"noise={shown(noise)} must be 'skewed' or 'symmetric'")
    sizes, step_size, _ = _SWEEPS[quick]
    floors_sq = _floors_sq(noise, draggers, quick, check_integer("rng", rng, minimum=0))
    if shuffle:
        floors_sq = np.random.default_rng([rng, 1]).permuted(floors_sq, axis=1)
    choose, test = _halves(floors_sq)
    inside = range(1, len(sizes) - 1)
    best = min(inside, key=lambda i: float(choose[:, i].mean()))
    comparisons = tuple(
        Comparison(
            what=f"floor at b = {sizes[best]} over floor at b = {sizes[end]}",
            measured=statistics.ratio(
                test[:, best], test[:, end], false_positive_rate=RATE, power=0.5
            ),
            relation="below",
            limit=1.0,
        )
        for end in (0, len(sizes) - 1)
    )
    return Verdict(
        claim="sweet-spot",
        statement="An interior micro-batch size has a lower floor than b = 1 and than b = B.",
        comparisons=comparisons,
        seed=rng,
        details={
            "micro_batch_size": sizes[best],
            "step_size": step_size,
            "floors": _floor_points(sizes, floors_sq.T),
        },
    )


@functools.lru_cache(maxsize=4)  # the control with shuffled labels reads the claim's own data
def _floors_sq(noise: str, draggers: bool, quick: bool, rng: int) -> Array:
    """Squared floors, ``[replicates, sizes]``."""
    simulations = _Simulations(f"sweet-spot {noise} {draggers}", rng, 64 if quick else 128)
    problem = _problem(_LAWS[noise], STRONG if draggers else NONE, grad_norm=0.2)
    sizes, step_size, time = _SWEEPS[quick]
    floors = (
        simulations.floor_sq(problem, _method(b), step_size=step_size, time=time) for b in sizes
    )
    return np.stack(list(floors), axis=1)


def trajectories(*, quick: bool = False, rng: int = 0) -> dict[str, Any]:
    """Mean ‖g‖² against the step for SGD and several b, with skewed and symmetric noise: no claim.

    Returns:
        Plain data: for each noise and each method a curve of points with 99 % intervals.
    """
    step_size, steps = 0.02, 600 if quick else 2000
    simulations = _Simulations("trajectories", rng, 64 if quick else 128)
    shown_steps = np.unique(np.geomspace(1, steps, 60).astype(int))
    curves: dict[str, Any] = {"step_size": step_size, "batch_size": BATCH}
    for name, noise in _LAWS.items():
        problem = _problem(noise, STRONG, grad_norm=1.4)
        curves[name] = {}
        for b in (1, 4, 16, BATCH):
            run = simulations.run(problem, _method(b), step_size=step_size, steps=steps)
            label = "SGD" if b == BATCH else f"b = {b}"
            recorded = run.grad_norm_sq[:, shown_steps]
            curves[name][label] = _points(map(int, shown_steps), recorded.T)
    return curves


# --------------------------------------------------------------------------- real data


def training_sweet_spot(*, quick: bool = False, rng: int = 0, canaries: bool = True) -> Verdict:
    """On digits with canaries an interior micro-batch size trains to a better test accuracy.

    Softmax regression; the canaries (large random images with random labels) stand in for
    draggers. In every split the step size is tuned for each b on the validation images; the best
    interior b is chosen by validation accuracy too, and compared on the test images, paired by
    split, with b = 1 and with b = B (SGD). The splits share one set of images, so the intervals
    are those of Nadeau and Bengio for resampled splits, which speak of new images of the same
    kind; `details` has the narrower ones that speak of these images alone. Without canaries is a
    control.

    Source: [Wang2024], whose canaries these are a small version of.
    """
    from mbsim.gradients import training

    sizes = [1, 4, 16, 64] if quick else [1, 2, 4, 8, 16, 32, 64]
    step_sizes = [2.0**k for k in (range(-3, 6, 2) if quick else range(-3, 6))]
    splits, steps = (20, 150) if quick else (24, 600)
    seed = SeedSequence(check_integer("rng", rng, minimum=0), spawn_key=tuple(b"training"))
    data = training.digits_splits(splits, canary_fraction=0.09 if canaries else 0.0, rng=seed)
    found = training.accuracy_by_micro_batch_size(
        data, sizes, step_sizes, steps=steps, batch_size=BATCH, rng=seed
    )
    validation = np.nanmax(found.validation_accuracy, axis=-1).mean(axis=1)
    best = max(range(1, len(sizes) - 1), key=lambda i: float(validation[i]))
    shared = data.test_labels.shape[1] / data.train_labels.shape[1]
    against = {
        f"test accuracy at b = {sizes[best]} minus that at b = {sizes[end]}": found.difference(
            sizes[best], sizes[end]
        )
        for end in (0, -1)
    }
    return Verdict(
        claim="training-sweet-spot",
        statement=(
            "On digits with canaries an interior micro-batch size has a better test accuracy than "
            "b = 1 and than b = B."
        ),
        comparisons=tuple(
            Comparison(
                what=what,
                measured=statistics.mean(differences, false_positive_rate=RATE, resampled=shared),
                relation="above",
                limit=0.0,
            )
            for what, differences in against.items()
        ),
        seed=rng,
        details={
            "micro_batch_size": sizes[best],
            "steps": steps,
            "splits": splits,
            "for_these_images": {
                what: str(statistics.mean(differences, false_positive_rate=RATE))
                for what, differences in against.items()
            },
            "accuracy": _points(sizes, found.test_accuracy),
            "median_step_size": np.median(found.step_sizes[found.chosen], axis=1).tolist(),
            "warning": found.warning,
        },
    )
