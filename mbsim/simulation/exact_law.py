r"""The fast engine: the law of a step, drawn in scalars instead of examples.

In the frame of the gradient a step is decided by a few scalars per micro-batch
(:mod:`mbsim.problems.micro_batches`): they give the norms, and the norms give the factors. What
is left is a sum of vectors with known lengths and independent uniform directions, across the
gradient and in the dragger frame: its length is drawn by adding the vectors in pairs, each pair
by the law of cosines with a random cosine, and its direction is uniform again, drawn once. So a
step costs O(m + d) random numbers in the place of O(B d), and has exactly the law of the reference
engine. Source: the theory page, section 9.

Everything random is independent of the parameters w, so it is drawn ahead, many steps at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mbsim.clipping import NoClipping, Rule
from mbsim.problems.draggers import uniform_directions
from mbsim.problems.micro_batches import MicroBatches, cosines, draw_micro_batches
from mbsim.problems.noise import NoiseLaw
from mbsim.problems.problem import Problem

__all__ = ["ExactLaw", "lane_width", "why_not"]

Array = NDArray[np.float64]

# Numbers drawn ahead for one lane at a time: 2 MiB stay in a core's cache.
_AHEAD = 2**18
_LANE_NUMBERS = 2**23


def why_not(problem: Problem) -> str | None:
    """Why this engine does not apply to `problem`; None where it does."""
    if isinstance(problem.noise, NoiseLaw):
        return None
    return (
        f"noise={problem.noise!r} draws whole vectors (it has no mean_of), and this engine needs "
        "the law of the mean of ν examples along the gradient and across it"
    )


def _numbers_per_step(problem: Problem, micro_batches: int) -> int:
    """About how many numbers one step of one replicate holds."""
    return 9 * micro_batches + 2 * problem.dimension


def lane_width(problem: Problem, micro_batches: int) -> int:
    """How many replicates share one stream: 64, or fewer where a single step is very large."""
    return max(1, min(64, _LANE_NUMBERS // _numbers_per_step(problem, micro_batches)))


@dataclass(frozen=True)
class _Step:
    """The randomness of one step; or of many, with one axis more in front.

    Micro-batches and cosines are ``[m, lanes, width]`` and so on: with micro-batches first, sums
    over them run through memory in order. Directions are ``[lanes, width, d]``.
    """

    micro_batches: MicroBatches
    across_cosines: list[Array]
    own_cosines: list[Array]
    directions: Array

    def at(self, step: int) -> _Step:
        """One step of many."""
        return _Step(
            MicroBatches(**{f: a[step] for f, a in vars(self.micro_batches).items()}),
            [cosine[step] for cosine in self.across_cosines],
            [cosine[step] for cosine in self.own_cosines],
            self.directions[step],
        )


def _side_by_side(lanes: list[_Step]) -> _Step:
    """The steps of several lanes as one: lanes become an axis behind that of the steps."""

    def joined(arrays: list[Array]) -> Array:
        if len(arrays) == 1:
            return arrays[0][..., None, :]
        return np.stack(arrays, axis=-2)

    names = vars(lanes[0].micro_batches)
    return _Step(
        MicroBatches(
            **{name: joined([getattr(x.micro_batches, name) for x in lanes]) for name in names}
        ),
        [joined(list(level)) for level in zip(*(x.across_cosines for x in lanes), strict=True)],
        [joined(list(level)) for level in zip(*(x.own_cosines for x in lanes), strict=True)],
        np.stack([x.directions for x in lanes], axis=1),
    )


class ExactLaw:
    """Draws updates for a block of lanes, each from its own stream.

    Args:
        problem: its noise must be a :class:`~mbsim.problems.noise.NoiseLaw`.
        rule: the clipping rule.
        batch_size: B.
        micro_batches: m.
        streams: one generator per lane.
    """

    def __init__(
        self,
        problem: Problem,
        rule: Rule,
        batch_size: int,
        micro_batches: int,
        streams: list[Generator],
    ) -> None:
        self.problem, self.rule, self.streams = problem, rule, streams
        # Without clipping every split gives the same update; one micro-batch is the cheapest.
        self.m = 1 if isinstance(rule, NoClipping) else micro_batches
        self.b = batch_size // self.m
        self.width = lane_width(problem, micro_batches)
        most = _AHEAD // (self.width * _numbers_per_step(problem, self.m))
        self._most_ahead = max(1, min(most, 256))
        self._ahead: _Step | None = None
        self._next = self._drawn = 0

    def update(self, gradient: Array) -> tuple[Array, NDArray[np.bool_]]:
        """One update for each replicate, and which replicates stand still because ρ = 0.

        Args:
            gradient: ∇L(w) of each replicate, ``[lanes, width, d]``.
        """
        step = self._next_step()
        n = self.problem.benign_dim
        in_benign, in_dragger = gradient[..., :n], gradient[..., n:]
        benign_norm, dragger_norm = _norm(in_benign), _norm(in_dragger)
        grad_norm = np.hypot(benign_norm, dragger_norm)

        along, across, transverse, stalled = self._sum_micro_batches(step, grad_norm)
        out = np.empty_like(gradient)
        directions = step.directions
        scale = np.divide(along, grad_norm, out=np.zeros_like(along), where=grad_norm > 0)
        _place(in_benign, benign_norm, scale, across, directions[..., :n], out[..., :n])
        _place(in_dragger, dragger_norm, scale, transverse, directions[..., n:], out[..., n:])
        if (grad_norm == 0).any():  # there e is the first axis
            out[..., 0] += np.where(grad_norm == 0, along, 0)
        return out, stalled

    def _sum_micro_batches(
        self, step: _Step, grad_norm: Array
    ) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
        """The update along e, and its lengths across e and in the dragger frame."""
        problem, draggers = self.problem, self.problem.draggers
        drawn = step.micro_batches
        length = draggers.length(grad_norm, problem.noise.sigma)
        x_along = drawn.along(grad_norm, length, draggers)
        norms = drawn.norms(x_along, length)
        factors = np.moveaxis(self.rule.factors(np.moveaxis(norms, 0, -1)), -1, 0) / self.m
        along = (factors * x_along).sum(axis=0)
        across = _length_of_sum(factors * drawn.across, step.across_cosines)
        transverse = _length_of_sum(factors * drawn.own, step.own_cosines)
        if draggers.coherence:
            transverse = np.hypot(transverse, (factors * drawn.shared).sum(axis=0))
        return along, across, transverse * length, norms.min(axis=0) == 0

    def _next_step(self) -> _Step:
        """Draw 1, 2, 4, … steps ahead: short runs waste little, and longer ones begin alike."""
        if self._ahead is None or self._next == self._drawn:
            self._drawn = min(max(1, 2 * self._drawn), self._most_ahead)
            self._ahead = _side_by_side([self._draw_lane(self._drawn, rng) for rng in self.streams])
            self._next = 0
        self._next += 1
        return self._ahead.at(self._next - 1)

    def _draw_lane(self, steps: int, rng: Generator) -> _Step:
        problem, draggers = self.problem, self.problem.draggers
        n, d = problem.benign_dim, problem.dimension
        size = (steps, self.width)
        micro_batches = draw_micro_batches(problem, self.b, (steps, self.m, self.width), rng)
        own_dim = problem.dragger_dim - (draggers.coherence > 0)
        directions = np.zeros((*size, d))
        levels: dict[str, list[Array]] = {"across": [], "own": []}
        if n > 1 and micro_batches.across.any():
            levels["across"] = self._draw_levels(size, n - 1, rng)
            directions[..., 1:n] = uniform_directions(size, n - 1, rng)
        if draggers.dimensions_needed:
            if own_dim > 0 and draggers.coherence < 1:
                levels["own"] = self._draw_levels(size, own_dim, rng)
            directions[..., n + 1 :] = uniform_directions(size, problem.dragger_dim, rng)
        return _Step(micro_batches, levels["across"], levels["own"], directions)

    def _draw_levels(self, size: tuple[int, int], dimensions: int, rng: Generator) -> list[Array]:
        """Cosines for adding m vectors in pairs, level by level: ⌊m/2⌋, ⌊⌈m/2⌉/2⌋, …"""
        levels, left = [], self.m
        while left > 1:
            levels.append(cosines((size[0], left // 2, size[1]), dimensions, rng))
            left -= left // 2
        return levels


def _norm(vectors: Array) -> Array:
    return np.sqrt(np.einsum("...i,...i->...", vectors, vectors))


def _length_of_sum(lengths: Array, levels: list[Array]) -> Array:
    """‖Σ a_j o_j‖ for independent uniform directions o_j, added in pairs by the law of cosines."""
    squares = np.square(lengths)
    for cosine in levels:
        half = len(cosine)
        one, other = squares[:half], squares[half : 2 * half]
        pairs = one * other
        np.sqrt(pairs, out=pairs)
        pairs *= cosine
        pairs *= 2
        pairs += one
        pairs += other
        np.maximum(pairs, 0, out=pairs)  # rounding, where two lengths cancel
        odd = len(squares) > 2 * half
        squares = np.concatenate([pairs, squares[2 * half :]]) if odd else pairs
    return np.sqrt(squares[0])


def _place(
    gradient: Array, norm: Array, scale: Array, length: Array, direction: Array, out: Array
) -> None:
    """Write scale·g + length·H(direction) into `out`, in one of the two subspaces.

    `direction` has first coordinate 0; the reflection H takes the first axis to ±f, f = g/‖g‖, so
    H(direction) is a uniform direction orthogonal to g. With v = f + s·e₁, s = sign(f₁):
    H z = z − v ⟨f, z⟩ / (1 + |f₁|).
    """
    if gradient.shape[-1] == 0:
        return
    inner = np.einsum("...i,...i->...", gradient, direction)
    first = gradient[..., 0]
    # In the place of f, g: ⟨f, z⟩/(1 + |f₁|) = ⟨g, z⟩/(‖g‖ + |g₁|); all zero where g is.
    shift = np.divide(length * inner, norm + np.abs(first), out=np.zeros_like(norm), where=norm > 0)
    pull = np.divide(shift, norm, out=np.zeros_like(norm), where=norm > 0)
    np.multiply(direction, length[..., None], out=out)
    out += (scale - pull)[..., None] * gradient
    out[..., 0] -= shift * np.copysign(1, first)
