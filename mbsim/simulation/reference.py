r"""The reference engine: every example is drawn, and Algorithm 1 is done as the paper writes it.

One step: draw B examples in the frame of the gradient; average each micro-batch of b; turn the
averages into the space of the parameters; clip by norms; average. It is the plain reading that
the fast engine is held against, and it alone serves noise laws that draw whole vectors.

What is drawn depends neither on the method nor on w: methods run from the same seed see the same
examples, which pairs them. Source: [Wang2024] Algorithm 1; the theory page, sections 2 and 3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mbsim.clipping import Rule
from mbsim.errors import InvalidArgument
from mbsim.problems.draggers import uniform_directions
from mbsim.problems.noise import VectorNoise
from mbsim.problems.problem import Problem

__all__ = ["Reference", "block_bytes", "lane_width"]

Array = NDArray[np.float64]

# Numbers in one step of one lane (32 MiB), and the most that one replicate may need (256 MiB).
_LANE_NUMBERS = 2**22
_MOST_NUMBERS = 2**25


def lane_width(problem: Problem, batch_size: int) -> int:
    """How many replicates share one stream: 64, or fewer where a single step is very large."""
    numbers = batch_size * problem.dimension
    if numbers > _MOST_NUMBERS:
        raise InvalidArgument(
            f"batch_size={batch_size} with dimension {problem.dimension} needs {numbers:,} numbers "
            f"for one step, and engine='reference' draws at most {_MOST_NUMBERS:,}; take "
            "engine='exact_law', which needs few"
        )
    return max(1, min(64, _LANE_NUMBERS // numbers))


def block_bytes(problem: Problem, batch_size: int) -> int:
    """About how much memory one thread needs: measured, 3.5 times the examples of a step."""
    return 28 * lane_width(problem, batch_size) * batch_size * problem.dimension


class Reference:
    """Draws updates for one lane of replicates, from one stream.

    Args:
        problem: any problem.
        rule: the clipping rule.
        batch_size: B.
        micro_batches: m.
        streams: one generator, that of the lane.
    """

    def __init__(
        self,
        problem: Problem,
        rule: Rule,
        batch_size: int,
        micro_batches: int,
        streams: list[Generator],
    ) -> None:
        self.problem, self.rule, (self.rng,) = problem, rule, streams
        self.batch_size, self.m = batch_size, micro_batches
        self.width = lane_width(problem, batch_size)

    def update(self, gradient: Array) -> tuple[Array, NDArray[np.bool_] | None]:
        """One update for each replicate, and which of them stand still because ρ = 0, if any.

        Args:
            gradient: ∇L(w) of each replicate, ``[width, d]``.
        """
        micro_batches = self._micro_batch_gradients(gradient)
        norms = np.sqrt(np.einsum("...i,...i->...", micro_batches, micro_batches))
        factors = self.rule.factors(norms)
        update = np.einsum("rj,rji->ri", factors, micro_batches) / self.m
        return update, None if norms.all() else ~(factors * norms).any(axis=-1)

    def _micro_batch_gradients(self, gradient: Array) -> Array:
        """X_j for every replicate: ``[width, d]`` to ``[width, m, d]``."""
        is_dragger = self._draw_mask()
        along, across = self._benign_means(~is_dragger)
        tilted, dragger = self._dragger_means(is_dragger)
        n = self.problem.benign_dim
        norm = np.sqrt(np.einsum("ri,ri->r", gradient, gradient))
        length = self.problem.draggers.length(norm, self.problem.noise.sigma)
        benign_share = 1 - is_dragger.reshape(-1, self.m, self.batch_size // self.m).mean(axis=-1)

        # In the frame: along e, across it, and in the dragger frame.
        along = benign_share * norm[:, None] + along + length[:, None] * tilted
        dragger *= length[:, None, None]
        direction = _unit(gradient)
        means = along[..., None] * direction[:, None]
        means[..., :n] += _reflect(direction[:, :n], across)
        means[..., n:] += _reflect(direction[:, n:], dragger)
        return means

    def _draw_mask(self) -> NDArray[np.bool_]:
        """Which of the B examples of each replicate are draggers."""
        uniforms = self.rng.random((self.width, self.batch_size))
        return uniforms < self.problem.draggers.probability

    def _benign_means(self, is_benign: NDArray[np.bool_]) -> tuple[Array, Array]:
        """(1/b) Σ ξ over the benign examples of each micro-batch: along e, and across it."""
        noise, n = self.problem.noise, self.problem.benign_dim
        shape, b = is_benign.shape, self.batch_size // self.m
        if isinstance(noise, VectorNoise):
            vectors = noise.vectors(shape, n, self.rng)
            along, across, rest = vectors[..., 0], np.ones(shape), vectors[..., 1:]
        else:
            along, across = noise.mean_of(np.ones(shape, dtype=np.int64), n, self.rng)
            rest = np.zeros((*shape, n - 1))
            if across.any():
                rest = self.rng.standard_normal((*shape, n - 1))
        mean_along = np.where(is_benign, along, 0).reshape(-1, self.m, b).mean(axis=-1)
        weights = (np.where(is_benign, across, 0) / b).reshape(-1, self.m, b)
        rest = rest.reshape(self.width, self.m, b, n - 1)
        return mean_along, np.einsum("rjk,rjki->rji", weights, rest)

    def _dragger_means(self, is_dragger: NDArray[np.bool_]) -> tuple[Array, Array]:
        """(1/b) Σ d over the draggers of each micro-batch, for c√(r² + σ²) = 1.

        Returns:
            The part along e (0 without tilt), and the part in the dragger frame.
        """
        draggers, dimensions = self.problem.draggers, self.problem.dragger_dim
        b, gamma = self.batch_size // self.m, draggers.coherence
        tilted = is_dragger.reshape(-1, self.m, b).mean(axis=-1) * draggers.along
        means = np.zeros((self.width * self.m, dimensions if draggers.dimensions_needed else 0))
        replicate, example = np.nonzero(is_dragger)
        if means.size and replicate.size:
            directions = self._dragger_directions(replicate, dimensions, gamma)
            micro_batch = replicate * self.m + example // b
            starts = np.flatnonzero(np.diff(micro_batch, prepend=-1))
            means[micro_batch[starts]] = np.add.reduceat(directions, starts, axis=0) / b
        return tilted, means.reshape(self.width, self.m, means.shape[-1])

    def _dragger_directions(
        self, replicate: NDArray[np.int64], dimensions: int, gamma: float
    ) -> Array:
        """√γ h + √(1−γ) o for every dragger, h common to the step of its replicate."""
        if gamma == 0:
            return uniform_directions((replicate.size,), dimensions, self.rng)
        common = uniform_directions((self.width,), dimensions, self.rng)[replicate]
        if gamma == 1:
            return common
        own = uniform_directions((replicate.size,), dimensions - 1, self.rng)
        return math.sqrt(gamma) * common + math.sqrt(1 - gamma) * _orthogonal(common, own)


def _unit(vectors: Array) -> Array:
    """Each vector over its norm; the first axis in the place of a zero vector."""
    norms = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    first = np.zeros_like(vectors)
    first[..., 0] = 1
    return np.divide(vectors, norms, out=first, where=norms > 0)


def _orthogonal(axis: Array, coordinates: Array) -> Array:
    """Vectors orthogonal to `axis` (of any length, 0 standing for the first axis).

    The reflection that takes the first axis to ± the unit vector f along `axis` takes the other
    axes to an orthonormal basis of what is orthogonal to f; `coordinates` are in that basis. With
    v = f + sign(f₁) e₁: H z = z − v ⟨v, z⟩/(1 + |f₁|), which nowhere cancels.
    """
    f = _unit(axis)
    size = 1 + np.abs(f[..., 0])
    inner = np.einsum("...i,...i->...", f[..., 1:], coordinates) / size
    out = np.empty(np.broadcast_shapes(f.shape, (*coordinates.shape[:-1], 1)))
    out[..., 0] = -inner * np.copysign(size, f[..., 0])
    out[..., 1:] = coordinates - inner[..., None] * f[..., 1:]
    return out


def _reflect(direction: Array, coordinates: Array) -> Array:
    """`coordinates` across the projection of e on one subspace, as vectors of that subspace."""
    if coordinates.shape[-1] == 0:
        return np.zeros(1)
    return _orthogonal(direction[:, None], coordinates)
