r"""The assumptions of the theorems, measured on a run.

A bound says something about a run only where its assumptions hold there. They are not taken from
how the problem was made: the loss is evaluated along the run's path, and examples are drawn as
vectors at points of it (:mod:`mbsim.problems.vectors`), so a loss with a wrong smoothness constant
or draggers that lean along the gradient are found out. Each measurement is a
:class:`~mbsim.verdicts.Comparison`; an assumption is measured false where one is *refuted*.

What cannot be measured from a sample (that the noise is unimodal, or that its part along the
gradient is independent of the rest) is known of mbsim's own noise laws, and of no other. Source:
the theory page, section 2 (A1 to A4 are [Wang2024] assumptions 4.1 to 4.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import SFC64, Generator, SeedSequence
from numpy.typing import NDArray

from mbsim import statistics
from mbsim.clipping import rank_of
from mbsim.errors import InvalidArgument, check_number, shown
from mbsim.problems.noise import NoiseLaw, facts_of
from mbsim.problems.problem import Problem
from mbsim.problems.vectors import VectorDraws
from mbsim.theory import theorems
from mbsim.verdicts import Comparison

__all__ = ["broken_assumption", "measure_assumptions"]

Array = NDArray[np.float64]

# Points of the path at which examples are drawn, and about how many at each.
_POINTS, _EXAMPLES = 4, 2**13
# An equality is measured false when its whole interval lies so far off, as a share of the scale.
_OFF = 0.02
# Inner products that are 0 by construction, and quotients of losses: rounding of float64 sums.
_ROUNDING = 1e-7


def measure_assumptions(
    run: Any, *, rng: int = 0, false_positive_rate: float = 1e-6
) -> tuple[Comparison, ...]:
    """A1 to A4 on a run: lower bound, smoothness, noise, share, length and angles of draggers.

    Args:
        run: a :class:`~mbsim.Run` that knows its problem.
        rng: the seed of the examples drawn.
        false_positive_rate: of each measurement.

    Returns:
        The comparisons. Equalities are held against windows of 2 % of the scale (the share of
        draggers to a fifth); the path is the start, where replicates ended, and points between.

    Raises:
        InvalidArgument: if the run does not know its problem.

    >>> import mbsim, numpy as np
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.LogCosh(8), noise=mbsim.noise.Gaussian(sigma=1.0), benign_dim=4,
    ...     draggers=mbsim.Draggers(probability=0.2, norm_ratio=5.0, tilt=0.1), start=np.ones(8))
    >>> run = mbsim.simulate(problem, mbsim.SGD(), batch_size=16, step_size=0.1, steps=10,
    ...                      replicates=8, rng=0)
    >>> next(found.what for found in measure_assumptions(run) if found.status == "refuted")
    'A4: largest |cos| of a dragger and the gradient'
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    problem = problem_of(run)
    points = _path(run)
    b = run.batch_size // run.method.micro_batches(run.batch_size)
    gradients = problem.loss.gradient(points)
    batches = [
        _Batch.draw(problem, gradient, run.batch_size, SeedSequence(rng, spawn_key=(i,)))
        for i, gradient in enumerate(gradients)
    ]
    return (
        _exactly("A1: loss above its lower bound, least on the run", "above", *_gap(run, points)),
        _exactly(
            "A2: curvature between start, ends and points between over L, largest",
            "below",
            _curvature(problem, points, run.step_size, batches),
            1 + _ROUNDING,
        ),
        *_noise(problem, b, batches, rate, rng),
        *_draggers(problem, batches, rate),
    )


def problem_of(run: Any) -> Problem:
    """The problem of a run."""
    problem = getattr(run, "problem", None)
    if not isinstance(problem, Problem) or getattr(run, "method", None) is None:
        raise InvalidArgument(
            f"run={shown(run)} must be a mbsim.Run that knows its problem and its method"
        )
    return problem


def broken_assumption(sentence: str, run: Any) -> str:
    """Why an assumption that is no part of A1 to A4 fails on a run; "" if it holds or is unknown.

    Args:
        sentence: one of a bound's assumptions.
        run: the run.
    """
    problem, m = problem_of(run), run.method.micro_batches(run.batch_size)
    facts, rank = facts_of(problem.noise), rank_of(run.method.rule, m)
    known = {
        theorems.ALGORITHM_1: rank == 0,  # with one micro-batch to clip nothing is the same
        theorems.UNCLIPPED: rank == m - 1,
        theorems.INCOHERENT: problem.draggers.coherence == 0
        or not problem.draggers.dimensions_needed,
        theorems.SYMMETRIC_ACROSS: facts.symmetric_across,
        theorems.NO_DRAGGERS: not problem.draggers.dimensions_needed,
        theorems.GAUSSIAN: facts.gaussian,
        theorems.ALONG["unimodal"]: facts.unimodal,
        theorems.ALONG["independent"]: facts.independent,
    }
    if known.get(sentence, True):
        return ""
    return f"{sentence}: not so, or not known, of {run.method} and {problem.noise}"


# ---------------------------------------------------------------------------- points and examples


def _path(run: Any) -> Array:
    """The start, where some replicates ended, and points between."""
    ends = run.final_w[np.isfinite(run.final_w).all(axis=1)][:_POINTS]
    start = run.problem.start
    if not len(ends):
        return np.tile(start, (2, 1))
    shares = np.linspace(0, 1, len(ends))[:, None] if len(ends) > 1 else np.ones((1, 1))
    return np.concatenate([start[None], (start + shares * (ends - start))[1:], ends[:1]])


class _Batch:
    """Examples drawn at one point, and the gradient there."""

    def __init__(self, problem: Problem, gradient: Array, examples: Array, mask: Any) -> None:
        norm = float(np.linalg.norm(gradient))
        direction = gradient / norm if norm else np.eye(gradient.size)[0]
        self.gradient, self.grad_norm, self.direction = gradient, norm, direction
        self.examples, self.is_dragger = examples, mask
        self.benign = examples[~mask] - gradient
        self.draggers = examples[mask]
        self.length = float(problem.draggers.length(np.array(norm), problem.noise.sigma))

    @classmethod
    def draw(cls, problem: Problem, gradient: Array, batch: int, seed: SeedSequence) -> _Batch:
        size = min(batch, _EXAMPLES)
        width = max(2, min(_EXAMPLES, 2**21 // problem.dimension) // size)
        draws = VectorDraws(
            problem=problem, batch_size=size, m=size, width=width, rng=Generator(SFC64(seed))
        )
        return cls(problem, gradient, *draws.at(np.tile(gradient, (width, 1))))


# ---------------------------------------------------------------------------- the measurements


def _exactly(what: str, relation: str, number: float, limit: float) -> Comparison:
    """A comparison of a number that is not random."""
    measured = statistics.exactly(number)
    return Comparison(what=what, measured=measured, relation=relation, limit=limit)


def _about(
    what: str, sample: Array, truth: float, scale: float, rate: float
) -> tuple[Comparison, ...]:
    """The mean of a sample within 2 % of the scale of its supposed value; none if too few."""
    if sample.size < 2:
        return ()
    window = (truth - _OFF * scale, truth + _OFF * scale)
    measured = statistics.mean(sample, false_positive_rate=rate)
    return (Comparison(what=what, measured=measured, relation="within", limit=window),)


def _gap(run: Any, points: Array) -> tuple[float, float]:
    """The least loss seen, above the lower bound; and 0 but for rounding."""
    loss = run.problem.loss
    seen = np.concatenate([run.loss[np.isfinite(run.loss)], loss.value(points)])
    scale = max(abs(loss.minimum), float(np.abs(seen).max(initial=0.0)))
    return float(seen.min()) - loss.minimum, -_ROUNDING * scale - 1e-300


def _curvature(problem: Problem, points: Array, step_size: float, batches: list[_Batch]) -> float:
    """The largest of 2 (L(v) − L(w) − ⟨g(w), v − w⟩)/(L ‖v − w‖²) over pairs of points.

    Pairs of points of the path, and of each with where steps of some size lead from it.
    """
    loss = problem.loss
    steps = [step_size * batch.examples.mean(axis=1)[:4] for batch in batches]
    moved = [w - step for w, step in zip(points, steps, strict=True)]
    every = np.concatenate([points, *moved])
    values, gradients = loss.value(every), loss.gradient(every)
    apart = every - every[:, None]
    squared = np.einsum("ijk,ijk->ij", apart, apart)
    slope = np.einsum("ik,ijk->ij", gradients, apart)
    excess = values - values[:, None] - slope
    # Where points nearly coincide the excess is rounding of its terms.
    rounding = 1e-12 * (np.abs(values) + np.abs(values[:, None]) + np.abs(slope))
    quotient = np.divide(
        2 * (excess - rounding),
        problem.smoothness * squared,
        out=np.zeros_like(squared),
        where=squared > 0,
    )
    return float(quotient.max())


def _noise(
    problem: Problem, b: int, batches: list[_Batch], rate: float, rng_seed: int
) -> tuple[Comparison, ...]:
    sigma = problem.noise.sigma
    if sigma == 0:
        return ()
    along = np.concatenate([batch.benign @ batch.direction for batch in batches]) / sigma
    squares = np.concatenate([np.square(b.benign / sigma).sum(axis=1) for b in batches])
    found = [
        *_about("A3: mean of benign noise along the gradient over σ", along, 0.0, 1.0, rate),
        *_at_most("A3: variance of benign noise over σ²", squares, rate),
    ]
    if isinstance(problem.noise, NoiseLaw):
        n, counts = problem.benign_dim, np.full(_EXAMPLES, b)
        rng = Generator(SFC64(SeedSequence(rng_seed, spawn_key=tuple(b"means"))))
        mean, across = problem.noise.mean_of(counts, n, rng)
        squares = (np.square(mean) + (n - 1) * np.square(across)) * (b / sigma**2)
        found += _at_most("A3: variance of a mean of b benign examples over σ²/b", squares, rate)
    return tuple(found)


def _at_most(what: str, sample: Array, rate: float) -> tuple[Comparison, ...]:
    """A variance that may not exceed 1: no bound asks that it is reached.

    One-sided, for a sample of few rare and large values shows too little of it.
    """
    if sample.size < 2:
        return ()
    measured = statistics.mean(sample, false_positive_rate=rate)
    return (Comparison(what=what, measured=measured, relation="below", limit=1 + _OFF),)


def _draggers(problem: Problem, batches: list[_Batch], rate: float) -> tuple[Comparison, ...]:
    draggers = problem.draggers
    masks = np.concatenate([batch.is_dragger.ravel() for batch in batches]).astype(float)
    # To a fifth: it takes many draws to see few draggers.
    share = 0.2 / _OFF * max(draggers.probability, 0.005)
    found = _about("A4: share of draggers", masks, draggers.probability, share, rate)
    with_some = [b for b in batches if len(b.draggers) and b.length > 0]
    if not with_some:
        return found
    cosines = [np.abs(b.draggers @ b.direction) / _lengths(b.draggers) for b in with_some]
    # Without noise, what is left of an example is rounding, and has no direction.
    noise = [_largest_cosine(b.draggers, b.benign) for b in with_some if problem.noise.sigma]
    # The transverse part has the supposed length; a tilt is caught by the angle.
    lengths = [_lengths(_across(b.draggers, b.direction)) / b.length for b in with_some]
    return (
        *found,
        _exactly(
            "A4: largest |cos| of a dragger and the gradient",
            "below",
            float(np.concatenate(cosines).max()),
            _ROUNDING,
        ),
        _exactly(
            "A4: largest |cos| of a dragger and noise",
            "below",
            max(noise, default=0.0),
            max(_ROUNDING + _of_rounding(batch, problem) for batch in with_some),
        ),
        *_about("A4: length of draggers over c√(r² + σ²)", np.concatenate(lengths), 1, 1, rate),
        *_about(
            "A4: mean cosine of two draggers of one step",
            np.concatenate([_pair_cosines(b) for b in with_some]),
            draggers.coherence,
            1.0,
            rate,
        ),
    )


def _of_rounding(batch: _Batch, problem: Problem) -> float:
    """What rounding of the gradient in an example may add to the cosine of its noise."""
    sigma = problem.noise.sigma
    return 1e-14 * (batch.grad_norm + batch.length) / sigma if sigma else 0.0


def _lengths(vectors: Array) -> Array:
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def _across(vectors: Array, direction: Array) -> Array:
    return vectors - np.multiply.outer(vectors @ direction, direction)


def _largest_cosine(draggers: Array, noise: Array) -> float:
    some, others = draggers[:200], noise[:200]
    size = np.multiply.outer(_lengths(some), _lengths(others))
    inner = np.abs(np.einsum("ik,jk->ij", some, others))
    return float(np.divide(inner, size, out=np.zeros_like(inner), where=size > 0).max(initial=0.0))


def _pair_cosines(batch: _Batch) -> Array:
    """For each step with two draggers or more, the mean cosine of the first with the others."""
    found = []
    for examples, mask in zip(batch.examples, batch.is_dragger, strict=True):
        across = _across(examples[mask], batch.direction)
        if len(across) > 1:
            unit = across / _lengths(across)[:, None]
            found.append(float((unit[1:] @ unit[0]).mean()))
    return np.array(found)
