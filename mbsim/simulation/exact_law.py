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

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mbsim.clipping import NoClipping, Rule
from mbsim.errors import InvalidArgument
from mbsim.problems import micro_batches as micro
from mbsim.problems.lengths import is_plain, not_plain, unit_of
from mbsim.problems.noise import NoiseLaw
from mbsim.problems.normals import standard_normals
from mbsim.problems.problem import Problem

__all__ = ["ExactLaw"]

Array = NDArray[np.float64]

# Numbers drawn ahead for one lane (2 MiB), and the most in one step of a lane (8 MiB).
_AHEAD = 2**18
_LANE_NUMBERS = 2**20
# The most that one step of one replicate may need (64 MiB).
_MOST_NUMBERS = 2**23
# Lanes advanced together: enough to make NumPy's overhead small, within 16 MiB for a step.
_MOST_LANES, _BLOCK_NUMBERS = 8, 2**21
# A second thread pays from about so many numbers in a step of each.
_THREAD_NUMBERS = 2**16
_BENIGN, _DRAGGER = 0, 1


def _numbers_per_step(problem: Problem, micro_batches: int) -> int:
    """About how many numbers one step of one replicate holds."""
    return 9 * micro_batches + 2 * problem.dimension


class _Step(NamedTuple):
    """The randomness of one step for R replicates; or of many steps, with one axis in front.

    Replicates are the last axis, so that all arithmetic runs through memory in order. A
    micro-batch has a part across e in the benign frame and one in the dragger frame; the axes P
    hold those of the two that can be other than zero.

    Attributes:
        benign, noise, shared: as in MicroBatches, ``[m, R]``.
        across_sq, dragger_sq: the squared lengths of the two parts, ``[m, R]``.
        lengths: the lengths that add up in pairs, ``[P, m, R]``.
        cosines: twice the cosines for that, ``[P, m − 1, R]``.
        inverse: 1/‖z‖ for the Gaussian z that gives the sum its direction, ``[P, R]``.
        directions: z, for each of the P ``[dimensions, R]``.
    """

    benign: Array
    noise: Array
    shared: Array
    across_sq: Array
    dragger_sq: Array
    lengths: Array
    cosines: Array
    inverse: Array
    directions: Any


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
        self.width = self.lane_width(problem, batch_size, micro_batches)
        gamma, n = problem.draggers.coherence, problem.benign_dim
        # Of each part: where a direction lives, and how many dimensions its own lengths have.
        self._dimensions = (n - 1, problem.dragger_dim)
        self._own_dimensions = (n - 1, 0 if gamma == 1 else problem.dragger_dim - (gamma > 0))
        self._parts: list[int] = []
        self._room: _Step | None = None
        self._steps = self._drawn_ahead()

    @classmethod
    def why_not(cls, problem: Problem) -> str | None:
        """Why this engine does not apply to `problem`; None where it does."""
        if isinstance(problem.noise, NoiseLaw):
            return None
        return (
            f"noise={problem.noise!r} draws whole vectors (it has no mean_of), and this engine "
            "needs the law of the mean of ν examples along the gradient and across it"
        )

    @classmethod
    def lane_width(cls, problem: Problem, batch_size: int, micro_batches: int) -> int:  # noqa: ARG003
        """How many replicates share one stream: 64, or fewer where a single step is very large.

        Never one: NumPy adds up a single column in another order than several side by side, and
        then the last digits of a replicate would depend on how many lanes are advanced together.

        Raises:
            InvalidArgument: if one step of one replicate is too large for the memory allowed.
        """
        numbers = _numbers_per_step(problem, micro_batches)
        if numbers > _MOST_NUMBERS:
            raise InvalidArgument(
                f"batch_size with {micro_batches} micro-batches and dimension {problem.dimension} "
                f"needs {numbers:,} numbers for one step of one replicate, and must need at most "
                f"{_MOST_NUMBERS:,}"
            )
        return max(2, min(64, _LANE_NUMBERS // numbers))

    @classmethod
    def lanes_together(
        cls, problem: Problem, batch_size: int, micro_batches: int
    ) -> tuple[int, int]:
        """How many lanes one thread advances at a time, at least and at most; it changes no digit.

        With fewer, a step is too short for threads to pay: they would wait for the interpreter.
        """
        width = cls.lane_width(problem, batch_size, micro_batches)
        lane = width * _numbers_per_step(problem, micro_batches)
        most = max(1, min(_MOST_LANES, _BLOCK_NUMBERS // lane))
        return min(most, -(-_THREAD_NUMBERS // lane)), most

    @classmethod
    def block_bytes(cls, problem: Problem, batch_size: int, micro_batches: int) -> int:
        """About how much memory one thread needs: what is drawn ahead, and one step's work."""
        sizes = problem, batch_size, micro_batches
        step = cls.lane_width(*sizes) * _numbers_per_step(problem, micro_batches)
        return 24 * cls.lanes_together(*sizes)[1] * (_AHEAD + step)

    def update(self, gradient: Array) -> tuple[Array, NDArray[np.bool_] | None]:
        """One update for each replicate, and which of them stand still because ρ = 0, if any.

        Args:
            gradient: ∇L(w) of each replicate, ``[R, d]``; fast where the transpose is contiguous.
        """
        step = next(self._steps)
        g, n = gradient.T, self.problem.benign_dim
        unit: Any = 1.0
        norm_sq = np.array([_dot(g[:n], g[:n]), _dot(g[n:], g[n:])])
        if not is_plain(norm_sq[0] + norm_sq[1]):  # then in a unit that squares can be taken in
            unit = unit_of(np.abs(g).max(axis=0))
            g = g / unit
            norm_sq = np.array([_dot(g[:n], g[:n]), _dot(g[n:], g[n:])])
        in_units = np.sqrt(norm_sq[0] + norm_sq[1])
        grad_norm = unit * in_units
        along, lengths, stalled = self._sum_micro_batches(step, grad_norm)
        out = self._place(g, norm_sq, along / _or_one(in_units), lengths * step.inverse, step)
        if not grad_norm.all():  # there e is the first axis
            out[0] += np.where(grad_norm == 0, along, 0)
        return out.T, stalled

    def _sum_micro_batches(
        self, step: _Step, grad_norm: Array
    ) -> tuple[Array, Array, NDArray[np.bool_] | None]:
        """The update along e, the lengths of its parts, and which replicates stand still."""
        draggers = self.problem.draggers
        dragger_length = draggers.length(grad_norm, self.problem.noise.sigma)
        x_along = micro.along(step.benign, step.noise, grad_norm, dragger_length, draggers)
        across = step.lengths[0] if self._parts[:1] == [_BENIGN] else None
        norms = micro.norms(x_along, step.across_sq, step.dragger_sq, dragger_length, across)
        factors = self.rule.factors(norms.T).T / self.m
        stalled = None if norms.all() else ~np.any((factors != 0) & (norms != 0), axis=0)
        lengths = _length_of_sum(factors * step.lengths, step.cosines)
        if not is_plain(lengths):
            here = not_plain(lengths).any(axis=0)
            parts = factors[:, here] * step.lengths[..., here]
            unit = unit_of(parts.max(axis=1))
            parts /= unit[:, None]
            lengths[:, here] = unit * _length_of_sum(parts, step.cosines[..., here])
        if self._parts[-1:] == [_DRAGGER]:
            if draggers.coherence:
                lengths[-1] = np.hypot(lengths[-1], _dot(factors, step.shared))
            lengths[-1] *= dragger_length
        return _dot(factors, x_along), lengths, stalled

    def _place(self, g: Array, norm_sq: Array, scale: Array, lengths: Array, step: _Step) -> Array:
        """scale·g, and in each subspace length·H(z) for its Gaussian z, ``[d, R]``.

        z has first coordinate 0 (and is stored without it); the reflection H takes the first axis
        to ±f, f the direction of the subspace's part g of the gradient, so H z is a uniform
        direction orthogonal to g. With v = g + s‖g‖e₁, s = sign(g₁):
        H z = z − v ⟨g, z⟩ / (‖g‖² + ‖g‖|g₁|).
        """
        out = np.empty_like(g)
        n = self.problem.benign_dim
        subspaces = (slice(0, n), slice(n, None))
        for part in (_BENIGN, _DRAGGER):
            here = subspaces[part]
            if part not in self._parts:
                np.multiply(g[here], scale, out=out[here])
                continue
            place = self._parts.index(part)
            length, z, first = lengths[place], step.directions[place], g[here][0]
            norm = np.sqrt(norm_sq[part])
            pull = _dot(g[here][1:], z)
            pull *= length
            pull /= _or_one(norm_sq[part] + norm * np.abs(first))
            np.multiply(g[here], scale - pull, out=out[here])
            z *= length  # it is not needed again
            out[here][1:] += z
            out[here][0] -= pull * np.copysign(norm, first)
        return out

    def _drawn_ahead(self) -> Iterator[_Step]:
        """Draw 1, 2, 4, … steps ahead: short runs waste little, and longer ones begin alike."""
        most = min(256, _AHEAD // (self.width * _numbers_per_step(self.problem, self.m)))
        steps = 1
        while True:
            *scalars, directions = self._draw(steps)
            each = zip(*directions, strict=True) if directions else [()] * steps
            yield from map(_Step, *scalars, each)
            steps = max(1, min(2 * steps, most))

    def _draw(self, steps: int) -> _Step:
        """Many steps at once, for all lanes side by side."""
        problem, size = self.problem, (steps, self.m, self.width)
        lanes = [micro.draw_micro_batches(problem, self.b, size, rng) for rng in self.streams]
        parts = [_BENIGN] if any(lane.across.any() for lane in lanes) else []
        if problem.draggers.dimensions_needed:
            parts.append(_DRAGGER)
        if self._room is None or len(self._room.benign) != steps or parts != self._parts:
            self._parts, self._room = parts, self._empty(steps, parts)
        for number, (lane, rng) in enumerate(zip(lanes, self.streams, strict=True)):
            here = np.s_[..., number * self.width : (number + 1) * self.width]
            *scalars, directions = self._room
            room = _Step._make([*(a[here] for a in scalars), [z[here] for z in directions]])
            self._fill(room, lane, rng)
        return self._room

    def _empty(self, steps: int, parts: list[int]) -> _Step:
        """Room for many steps, used again and again: fresh memory costs as much as the drawing."""
        m, replicates = self.m, self.width * len(self.streams)
        benign, noise, shared, across_sq, dragger_sq = np.empty((5, steps, m, replicates))
        return _Step(
            benign,
            noise,
            shared,
            across_sq,
            dragger_sq,
            lengths=np.empty((steps, len(parts), m, replicates)),
            cosines=np.zeros((steps, len(parts), m - 1, replicates)),
            inverse=np.empty((steps, len(parts), replicates)),
            directions=[np.empty((steps, self._dimensions[p], replicates)) for p in parts],
        )

    def _fill(self, room: _Step, lane: micro.MicroBatches, rng: Generator) -> None:
        """The steps of one lane."""
        steps, m, width = lane.benign.shape
        room.benign[:], room.noise[:] = lane.benign, lane.noise
        np.square(lane.across, out=room.across_sq)
        np.square(lane.own, out=room.dragger_sq)
        if self.problem.draggers.coherence:
            room.shared[:] = lane.shared
            room.dragger_sq[:] += np.square(lane.shared)
        for place, part in enumerate(self._parts):
            room.lengths[:, place] = (lane.across, lane.own)[part]
            if part == _BENIGN and not lane.across.any():
                # Other lanes have this part; what this one draws must not depend on them.
                room.cosines[:, place] = room.inverse[:, place] = room.directions[place][:] = 0
                continue
            own = self._own_dimensions[part]
            if own:
                c = micro.cosines((steps, m - 1, width), own, rng)
                np.multiply(c, 2, out=room.cosines[:, place])
            z = standard_normals((steps, self._dimensions[part], width), rng)
            room.directions[place][:] = z
            room.inverse[:, place] = 1 / np.sqrt(_or_one(np.einsum("sir,sir->sr", z, z)))


def _dot(one: Array, other: Array) -> Array:
    """⟨·, ·⟩ over the first of two axes."""
    result: Array = np.einsum("ir,ir->r", one, other)
    return result


def _or_one(numbers: Array) -> Array:
    """The numbers, with 1 in the place of 0, to divide by."""
    return numbers + (numbers == 0)


def _length_of_sum(lengths: Array, cosines: Array) -> Array:
    """‖Σ a_j o_j‖ for independent uniform directions o_j, added in pairs by the law of cosines.

    Args:
        lengths: a, ``[P, m, R]``; overwritten.
        cosines: twice the cosines, ``[P, m − 1, R]``.
    """
    squares = np.square(lengths, out=lengths)
    left, used = squares.shape[1], 0
    while left > 1:
        half = left // 2
        one, other = squares[:, :half], squares[:, half : 2 * half]
        cross = one * other
        np.sqrt(cross, out=cross)
        cross *= cosines[:, used : used + half]
        one += other
        one += cross
        np.maximum(one, 0, out=one)  # rounding, where two lengths cancel
        if left % 2:
            squares[:, half] = squares[:, left - 1]
        left, used = left - half, used + half
    return np.sqrt(squares[:, 0])
