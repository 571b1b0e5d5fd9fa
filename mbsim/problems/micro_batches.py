r"""The law of one micro-batch in the frame of the gradient, drawn as a few scalars.

A micro-batch mean is X = Y + D with k ~ Binomial(b, p) draggers in it: the benign part
Y = α(g + ñ), α = 1 − k/b, has a component along e and an isotropic part across it; the dragger
part D has a component along the step's common direction h and an isotropic part across h. Of the
isotropic parts only lengths are drawn here: their directions are uniform and independent, and
matter only when micro-batches are added up. Nothing drawn depends on r = ‖g‖, which enters at the
end. The drawing is compiled (:mod:`mbsim.compiled.step`), and shared with the engine. Source: the
theory page, sections 2 and 9.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random import Generator

from mbsim._shared.arrays import Array, Integers
from mbsim._shared.seeds import states
from mbsim._shared.values import value
from mbsim.compiled.twins import Twin, twin_of
from mbsim.problems.noise import binomial
from mbsim.problems.problem import Problem

__all__ = ["MicroBatches", "draw_micro_batches", "draw_rows", "numbers_of", "table_of"]


@value
class MicroBatches:
    """Scalars of micro-batches, all of one shape ``[...]``, independent of the gradient norm.

    Attributes:
        benign: α = 1 − k/b, the share of benign examples.
        noise: α times the component of ñ along e, in units of the gradient.
        across: α times the length of ñ across e, in units of the gradient.
        shared: (k/b) √γ, the part of D along h, in units of a dragger's length c√(r² + σ²).
        own: the length of the part of D across h, in the same units.
    """

    benign: Array
    noise: Array
    across: Array
    shared: Array
    own: Array


def draw_micro_batches(
    problem: Problem, micro_batch_size: int, shape: tuple[int, ...], rng: Generator
) -> MicroBatches:
    """Independent micro-batches of `micro_batch_size` examples, in an array of `shape`."""
    from mbsim.compiled import step

    b = micro_batch_size
    law = twin_of("noise", problem.noise)
    counts, room = draw_rows(problem, law, b, math.prod(shape), states(rng, 1), rng)
    benign = (counts / b).reshape(shape)
    return MicroBatches(
        benign=benign,
        noise=room[step.NOISE].reshape(shape),
        across=room[step.ACROSS].reshape(shape),
        shared=(1 - benign) * math.sqrt(problem.draggers.coherence),
        own=room[step.OWN].reshape(shape),
    )


def draw_rows(
    problem: Problem, law: Twin | None, b: int, count: int, state: Any, rng: Generator
) -> tuple[Integers, Array]:
    """`count` micro-batches as the compiled step holds them: benign examples in each, and rows.

    Everything comes from the stream `state`, but for a noise law without the twin `law`, whose
    ``mean_of`` draws from `rng`.
    """
    from mbsim.compiled import step

    sizes, model = numbers_of(problem, count, b)
    counts, room = np.empty(count, np.int64), np.empty((step.ROWS, count))
    step.draw_counts(state[0], *table_of(b, problem.draggers.probability), counts)
    if law is None:
        room[step.NOISE], room[step.ACROSS] = problem.noise.mean_of(counts, problem.benign_dim, rng)
    else:
        function, numbers = law
        step.draw_noise(function, numbers, state[0], sizes, counts, room)
    step.draw_lengths(state[0], sizes, model, counts, room)
    return counts, room


def numbers_of(problem: Problem, m: int, b: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """What the compiled step calls sizes and model."""
    draggers = problem.draggers
    gamma, frame = draggers.coherence, problem.dragger_dim
    own = frame - (gamma > 0) if gamma < 1 and draggers.dimensions_needed else 0
    sizes = m, b, problem.benign_dim, frame if draggers.dimensions_needed else 0, own
    sigma = float(problem.noise.sigma)
    return sizes, (draggers.norm_ratio, sigma, gamma, math.sqrt(1 - gamma), draggers.along)


@lru_cache
def table_of(b: int, probability: float) -> tuple[Integers, Array]:
    """The table of aliases (Walker, 1977; Vose, 1991) of b − k, k ~ Binomial(b, p).

    Returns:
        Two values for each entry, ``int64[2, entries]``, and the chance of the first. Values of
        a probability below 1e-25 are left out.
    """
    k = np.arange(b + 1)
    weights = binomial(b, probability, k)
    k, weights = k[weights > 1e-25], weights[weights > 1e-25]
    values, chances = np.array([b - k, b - k]), weights * (k.size / weights.sum())
    short = [i for i, chance in enumerate(chances) if chance < 1]
    long = [i for i, chance in enumerate(chances) if chance >= 1]
    while short and long:
        entry, donor = short.pop(), long[-1]
        values[1, entry] = b - k[donor]
        chances[donor] -= 1 - chances[entry]
        if chances[donor] < 1:
            short.append(long.pop())
    chances[short + long] = 1  # but for rounding
    return values, chances
