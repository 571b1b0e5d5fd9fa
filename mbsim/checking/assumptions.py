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
from numpy.random import Generator, SeedSequence

from mbsim import statistics
from mbsim._shared.arrays import Array, Mask
from mbsim._shared.seeds import stream
from mbsim.clipping import rank_of
from mbsim.errors import InvalidArgument, shown
from mbsim.gradients.assumptions import Parts, parts_of
from mbsim.problems.noise import NoiseLaw, facts_of
from mbsim.problems.problem import Problem
from mbsim.problems.vectors import VectorDraws
from mbsim.theory import theorems
from mbsim.verdicts import Comparison

__all__ = ["Parts", "broken_assumption", "measure_assumptions", "parts_of", "problem_of"]

# Points of the path at which examples are drawn, and about how many at each.
_POINTS, _EXAMPLES = 4, 2**13
# Every measurement misses the truth so often.
_RATE = 1e-6
# An equality is measured false when its whole interval lies so far off, as a share of the scale.
_OFF = 0.02
# Inner products that are 0 by construction, and quotients of losses: rounding of float64 sums.
_ROUNDING = 1e-7


def measure_assumptions(run: Any, *, rng: int = 0) -> tuple[Comparison, ...]:
    """A1 to A4 on a run: lower bound, smoothness, noise, share, length and angles of draggers.

    Args:
        run: a :class:`~mbsim.Run` that knows its problem.
        rng: the seed of the examples drawn.

    Returns:
        The comparisons, each at the false-positive rate 1e-6. Equalities are held against windows
        of 2 % of the scale (the share of draggers to a fifth); the path is the start, where
        replicates ended, and points between.

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
    problem, seed = problem_of(run), SeedSequence(rng)
    points = _path(run)
    b = run.batch_size // run.method.micro_batches(run.batch_size)
    drawn = [
        (*_examples(problem, gradient, run.batch_size, stream(seed, i)), gradient)
        for i, gradient in enumerate(problem.loss.gradient(points))
    ]
    curvature = _curvature(problem, points, run.step_size, [examples for examples, _, _ in drawn])
    parts = [parts_of(*each) for each in drawn]
    return (
        _exactly("A1: loss above its lower bound, least on the run", "above", *_gap(run, points)),
        _exactly(
            "A2: curvature between start, ends and points between over L, largest",
            "below",
            curvature,
            1 + _ROUNDING,
        ),
        *_noise(problem, b, parts, stream(seed, "means")),
        *_draggers(problem, parts),
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


def _examples(problem: Problem, gradient: Array, batch: int, rng: Generator) -> tuple[Array, Mask]:
    """Examples drawn where the gradient is this, ``[steps, B, d]``, and which are draggers."""
    size = min(batch, _EXAMPLES)
    width = max(2, min(_EXAMPLES, 2**21 // problem.dimension) // size)
    draws = VectorDraws(problem=problem, batch_size=size, m=size, width=width, rng=rng)
    return draws.at(np.tile(gradient, (width, 1)))


# ---------------------------------------------------------------------------- the measurements


def _exactly(what: str, relation: str, number: float, limit: float) -> Comparison:
    """A comparison of a number that is not random."""
    measured = statistics.exactly(number)
    return Comparison(what=what, measured=measured, relation=relation, limit=limit)


def _about(what: str, sample: Array, truth: float, scale: float) -> tuple[Comparison, ...]:
    """The mean of a sample within 2 % of the scale of its supposed value; none if too few."""
    if sample.size < 2:
        return ()
    window = (truth - _OFF * scale, truth + _OFF * scale)
    measured = statistics.mean(sample, false_positive_rate=_RATE)
    return (Comparison(what=what, measured=measured, relation="within", limit=window),)


def _gap(run: Any, points: Array) -> tuple[float, float]:
    """The least loss seen, above the lower bound; and 0 but for rounding."""
    loss = run.problem.loss
    seen = np.concatenate([run.loss[np.isfinite(run.loss)], loss.value(points)])
    scale = max(abs(loss.minimum), float(np.abs(seen).max(initial=0.0)))
    return float(seen.min()) - loss.minimum, -_ROUNDING * scale - 1e-300


def _curvature(problem: Problem, points: Array, step_size: float, examples: list[Array]) -> float:
    """The largest of 2 (L(v) − L(w) − ⟨g(w), v − w⟩)/(L ‖v − w‖²) over pairs of points.

    Pairs of points of the path, and of each with where steps of some size lead from it.
    """
    loss = problem.loss
    steps = [step_size * drawn[:4].mean(axis=1) for drawn in examples]
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


def _noise(problem: Problem, b: int, parts: list[Parts], rng: Generator) -> tuple[Comparison, ...]:
    sigma = problem.noise.sigma
    if sigma == 0:
        return ()
    along = np.concatenate([part.noise_along for part in parts]) / sigma
    squares = np.square(np.concatenate([part.noise_length for part in parts]) / sigma)
    found = [
        *_about("A3: mean of benign noise along the gradient over σ", along, 0.0, 1.0),
        *_at_most("A3: variance of benign noise over σ²", squares),
    ]
    if isinstance(problem.noise, NoiseLaw):
        n, counts = problem.benign_dim, np.full(_EXAMPLES, b)
        mean, across = problem.noise.mean_of(counts, n, rng)
        squares = (np.square(mean) + (n - 1) * np.square(across)) * (b / sigma**2)
        found += _at_most("A3: variance of a mean of b benign examples over σ²/b", squares)
    return tuple(found)


def _at_most(what: str, sample: Array) -> tuple[Comparison, ...]:
    """A variance that may not exceed 1: no bound asks that it is reached.

    One-sided, for a sample of few rare and large values shows too little of it.
    """
    if sample.size < 2:
        return ()
    measured = statistics.mean(sample, false_positive_rate=_RATE)
    return (Comparison(what=what, measured=measured, relation="below", limit=1 + _OFF),)


def _draggers(problem: Problem, parts: list[Parts]) -> tuple[Comparison, ...]:
    draggers, sigma = problem.draggers, problem.noise.sigma
    masks = np.concatenate([part.is_dragger for part in parts])
    # To a fifth: it takes many draws to see few draggers.
    share = 0.2 / _OFF * max(draggers.probability, 0.005)
    found = _about("A4: share of draggers", masks, draggers.probability, share)
    supposed = [float(draggers.length(part.target_norm, sigma)) for part in parts]
    there = [
        (part, length)
        for part, length in zip(parts, supposed, strict=True)
        if part.dragger_length.size and length > 0
    ]
    if not there:
        return found
    # Without noise, what is left of an example is rounding, and has no direction; of the noise in
    # an example, rounding of the gradient in it.
    rounding = max(1e-14 * (part.target_norm + length) for part, length in there)
    return (
        *found,
        _exactly(
            "A4: largest |cos| of a dragger and the gradient",
            "below",
            max(float(part.dragger_cosine.max()) for part, _ in there),
            _ROUNDING,
        ),
        _exactly(
            "A4: largest |cos| of a dragger and noise",
            "below",
            max(part.noise_cosine for part, _ in there) if sigma else 0.0,
            _ROUNDING + (rounding / sigma if sigma else 0.0),
        ),
        # The transverse part has the supposed length; a tilt is caught by the angle.
        *_about(
            "A4: length of draggers over c√(r² + σ²)",
            np.concatenate([part.dragger_length / length for part, length in there]),
            1.0,
            1.0,
        ),
        *_about(
            "A4: mean cosine of two draggers of one step",
            np.concatenate([part.pair_cosine for part, _ in there]),
            draggers.coherence,
            1.0,
        ),
    )
