r"""Micro-batch means as vectors of the parameter space: every example is drawn.

One step: draw B examples in the frame of the gradient; average each micro-batch of b; turn the
averages into the space of the parameters. It is the plain reading of the model, serves noise laws
that draw whole vectors, and with micro-batches of one example gives the examples' gradients
themselves. What is drawn depends neither on b nor on w. Source: the theory page, section 2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from mbsim._shared.arrays import Array, Integers, Mask
from mbsim.problems.draggers import uniform_directions
from mbsim.problems.lengths import norms_of
from mbsim.problems.noise import VectorNoise
from mbsim.problems.problem import Problem

__all__ = ["VectorDraws"]


class VectorDraws:
    """Draws steps for some replicates at once, from one stream.

    Args:
        problem: any problem.
        batch_size: B.
        m: the number of micro-batches.
        width: how many replicates.
        rng: the stream.
    """

    def __init__(
        self, *, problem: Problem, batch_size: int, m: int, width: int, rng: Generator
    ) -> None:
        self.problem, self.batch_size, self.m = problem, batch_size, m
        self.width, self.rng = width, rng
        # Used again and again: fresh memory for so many numbers costs as much as drawing them.
        self._across = np.empty((width, batch_size, problem.benign_dim - 1))
        self._means = np.empty((width, m, problem.dimension))

    def at(self, gradient: Array, w: Array | None = None) -> tuple[Array, Mask]:  # noqa: ARG002
        """One step at ∇L(w) of each replicate, ``[width, d]``; w itself does not matter.

        Returns:
            X_j, ``[width, m, d]``, in memory that the next step uses again; and which of the
            examples are draggers, ``[width, B]``.
        """
        uniforms = self.rng.random((self.width, self.batch_size))
        is_dragger = uniforms < self.problem.draggers.probability
        along, across = self._benign_means(~is_dragger)
        tilted, dragger = self._dragger_means(is_dragger)
        n = self.problem.benign_dim
        norm = norms_of(gradient)
        length = self.problem.draggers.length(norm, self.problem.noise.sigma)
        benign_share = 1 - is_dragger.reshape(-1, self.m, self.batch_size // self.m).mean(axis=-1)

        # In the frame: along e, across it, and in the dragger frame.
        along = benign_share * norm[:, None] + along + length[:, None] * tilted
        dragger *= length[:, None, None]
        direction, means = _unit(gradient), self._means
        _place(along, direction[:, :n], across, means[..., :n])
        _place(along, direction[:, n:], dragger, means[..., n:])
        return means, is_dragger

    def _benign_means(self, is_benign: Mask) -> tuple[Array, Array]:
        """(1/b) Σ ξ over the benign examples of each micro-batch: along e, and across it."""
        noise, n = self.problem.noise, self.problem.benign_dim
        shape, b = is_benign.shape, self.batch_size // self.m
        if isinstance(noise, VectorNoise):
            vectors = noise.vectors(shape, n, self.rng)
            along, across, rest = vectors[..., 0], np.ones(shape), vectors[..., 1:]
        else:
            along, across = noise.mean_of(np.ones(shape, dtype=np.int64), n, self.rng)
            rest = self._across
            if across.any():
                self.rng.standard_normal(out=rest)
            else:
                rest[:] = 0
        mean_along = np.where(is_benign, along, 0).reshape(-1, self.m, b).mean(axis=-1)
        weights = (np.where(is_benign, across, 0) / b).reshape(-1, self.m, b)
        rest = rest.reshape(self.width, self.m, b, n - 1)
        return mean_along, np.einsum("rjk,rjki->rji", weights, rest)

    def _dragger_means(self, is_dragger: Mask) -> tuple[Array, Array]:
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

    def _dragger_directions(self, replicate: Integers, dimensions: int, gamma: float) -> Array:
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
    norms = norms_of(vectors)[..., None]
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


def _place(along: Array, direction: Array, coordinates: Array, out: Array) -> None:
    """In one subspace: `along` times its part of e, and `coordinates` across that part.

    The arithmetic of :func:`_orthogonal`, with what lies along f added up before it is written.
    """
    if out.shape[-1] == 0:
        return
    f, norm = _unit(direction)[:, None], norms_of(direction)[:, None]
    size = 1 + np.abs(f[..., 0])
    inner = np.zeros(along.shape)
    if coordinates.shape[-1]:
        inner = np.einsum("...i,...i->...", f[..., 1:], coordinates) / size
    np.multiply((along * norm - inner)[..., None], f, out=out)
    if coordinates.shape[-1]:
        out[..., 1:] += coordinates
    out[..., 0] = along * direction[:, None, 0] - inner * np.copysign(size, f[..., 0])
