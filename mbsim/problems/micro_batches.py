r"""The law of one micro-batch in the frame of the gradient, drawn as a few scalars.

A micro-batch mean is X = Y + D with k ~ Binomial(b, p) draggers in it: the benign part
Y = α(g + ñ), α = 1 − k/b, has a component along e and an isotropic part across it; the dragger
part D has a component along the step's common direction h and an isotropic part across h. Of the
isotropic parts only lengths are drawn here: their directions are uniform and independent, and
matter only when micro-batches are added up. Nothing drawn depends on r = ‖g‖, which enters at the
end (:meth:`MicroBatches.along`, :meth:`MicroBatches.norms`). Source: the theory page, sections 2
and 9.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mbsim._values import value
from mbsim.problems.draggers import Draggers
from mbsim.problems.noise import NoiseLaw
from mbsim.problems.problem import Problem

__all__ = ["MicroBatches", "cosines", "draw_micro_batches"]

Array = NDArray[np.float64]


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

    def along(self, grad_norm: Any, dragger_length: Any, draggers: Draggers) -> Array:
        """⟨X, e⟩ at ‖g‖ = `grad_norm`; broadcasts."""
        along = self.benign * grad_norm + self.noise
        if draggers.tilt:
            along += (1 - self.benign) * (draggers.along * dragger_length)
        return along

    def norms(self, along: Array, dragger_length: Any) -> Array:
        """‖X‖, given ⟨X, e⟩ and c√(r² + σ²)."""
        dragger_sq = np.square(self.shared) + np.square(self.own)
        return np.sqrt(
            np.square(along) + np.square(self.across) + dragger_sq * np.square(dragger_length)
        )


def draw_micro_batches(
    problem: Problem, micro_batch_size: int, shape: tuple[int, ...], rng: Generator
) -> MicroBatches:
    """Independent micro-batches of `micro_batch_size` examples, in an array of `shape`."""
    noise: NoiseLaw = problem.noise
    n, draggers = problem.benign_dim, problem.draggers
    b = micro_batch_size
    k = rng.binomial(b, draggers.probability, size=shape)
    along, across = noise.mean_of(b - k, n, rng)
    benign = 1 - k / b
    if n > 1 and np.any(across):
        # The length of n − 1 independent Gaussian coordinates: the root of a chi-square.
        across = across * np.sqrt(2 * rng.standard_gamma((n - 1) / 2, size=shape))
    else:
        across = np.zeros(shape)
    gamma = draggers.coherence
    shared = k / b * math.sqrt(gamma)
    own = np.zeros(shape)
    if gamma < 1 and draggers.dimensions_needed:
        dimensions = problem.dragger_dim - (gamma > 0)
        own = _sums_of_directions(k, dimensions, rng) * (math.sqrt(1 - gamma) / b)
    return MicroBatches(
        benign=benign, noise=benign * along, across=benign * across, shared=shared, own=own
    )


def cosines(size: Any, dimensions: int, rng: Generator) -> Array:
    """The cosine of a uniform direction with anything fixed, in `dimensions` ≥ 1 dimensions.

    Projected on a plane, a uniform direction in N ≥ 2 dimensions has a uniform angle and the
    squared radius 1 − V^(2/(N−2)) with V uniform, independent of the angle (for N = 2 it is 1);
    so (1 + cosine)/2 is Beta((N−1)/2, (N−1)/2), at the price of an exponential and a uniform.
    """
    if dimensions == 1:
        return np.where(rng.random(size) < 0.5, -1.0, 1.0)
    # cos 2φ = (1 − t²)/(1 + t²) with t = tan φ, which NumPy evaluates several times as fast as cos.
    angle = 2 / (1 + np.square(np.tan(math.pi * rng.random(size)))) - 1
    if dimensions == 2:
        return angle
    radius_sq = -np.expm1(rng.standard_exponential(size) * (-2 / (dimensions - 2)))
    return np.sqrt(radius_sq) * angle


def _sums_of_directions(k: NDArray[np.int64], dimensions: int, rng: Generator) -> Array:
    """The length of the sum of k independent uniform directions, for every entry of k.

    Directions are added one at a time: ‖S + o‖² = ‖S‖² + 2‖S‖ cos + 1.
    """
    flat = k.ravel()
    length_sq = np.minimum(flat, 1).astype(np.float64)
    more, count = np.flatnonzero(flat > 1), 1
    while more.size:
        count += 1
        before = length_sq[more]
        step = cosines(more.size, dimensions, rng)
        # A sum of ±1 can cancel exactly; rounding must not leave a negative square.
        length_sq[more] = np.maximum(before + 2 * np.sqrt(before) * step + 1, 0)
        more = more[flat[more] > count]
    return np.sqrt(length_sq).reshape(k.shape)
