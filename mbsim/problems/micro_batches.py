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
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mbsim._shared.values import value
from mbsim.problems.draggers import Draggers
from mbsim.problems.lengths import is_plain, not_plain, unit_of
from mbsim.problems.noise import NoiseLaw
from mbsim.problems.problem import Problem

__all__ = ["MicroBatches", "along", "cosines", "draw_micro_batches", "norms"]

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
        return along(self.benign, self.noise, grad_norm, dragger_length, draggers)

    def norms(self, along: Array, dragger_length: Any) -> Array:
        """‖X‖, given ⟨X, e⟩ and c√(r² + σ²)."""
        with np.errstate(over="ignore"):
            across_sq = np.square(self.across)
        return norms(along, across_sq, self.dragger_sq(), dragger_length, self.across)

    def dragger_sq(self) -> Array:
        """The squared length of D, in the units of `own`."""
        return np.square(self.shared) + np.square(self.own)


def along(
    benign: Array, noise: Array, grad_norm: Any, dragger_length: Any, draggers: Draggers
) -> Array:
    """⟨X, e⟩ = α(r + ⟨ñ, e⟩), and the draggers' tilt; `noise` is α⟨ñ, e⟩."""
    result = benign * grad_norm
    result += noise
    if draggers.tilt:
        result += (1 - benign) * (draggers.along * dragger_length)
    return result


def norms(
    along: Array,
    across_sq: Array,
    dragger_sq: Array,
    dragger_length: Any,
    across: Array | None = None,
) -> Array:
    """‖X‖ from ⟨X, e⟩, the squares of its two other parts and c√(r² + σ²).

    Right also where squares are beyond float64, if `across` itself is given where its square is.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # such numbers are done again below
        result = dragger_sq * np.square(dragger_length)
        result += across_sq
        result += np.square(along)
    np.sqrt(result, out=result)
    if not is_plain(result):
        here = not_plain(result)
        square = dragger_sq[here]
        length = np.where(square > 0, np.broadcast_to(dragger_length, result.shape)[here], 0)
        side = np.sqrt(across_sq[here]) if across is None else across[here]
        unit = unit_of(np.maximum.reduce([np.sqrt(square) * length, side, np.abs(along[here])]))
        square *= np.square(length / unit)
        square += np.square(side / unit)
        square += np.square(along[here] / unit)
        result[here] = unit * np.sqrt(square)
    return result


def draw_micro_batches(
    problem: Problem, micro_batch_size: int, shape: tuple[int, ...], rng: Generator
) -> MicroBatches:
    """Independent micro-batches of `micro_batch_size` examples, in an array of `shape`."""
    noise: NoiseLaw = problem.noise
    n, draggers = problem.benign_dim, problem.draggers
    b = micro_batch_size
    k = _binomial(b, draggers.probability, shape, rng)
    counts = np.subtract(b, k, dtype=np.int64)
    along, across = noise.mean_of(counts, n, rng)
    benign = counts / b
    if n > 1 and np.any(across):
        # The length of n − 1 independent Gaussian coordinates: the root of a chi-square.
        length = rng.standard_gamma((n - 1) / 2, size=shape)
        length *= 2
        np.sqrt(length, out=length)
        length *= across
        length *= benign
    else:
        length = np.zeros(shape)
    gamma = draggers.coherence
    shared = (1 - benign) * math.sqrt(gamma) if gamma else np.zeros(shape)
    own = np.zeros(shape)
    if gamma < 1 and draggers.dimensions_needed:
        dimensions = problem.dragger_dim - (gamma > 0)
        own = _sums_of_directions(k, dimensions, rng)
        own *= math.sqrt(1 - gamma) / b
    return MicroBatches(
        benign=benign,
        noise=benign * along,
        across=length,
        shared=shared,
        own=own,
    )


# Up to so many values of a binomial number are told apart by comparisons: they cost less.
_MOST_COMPARISONS = 40


@lru_cache
def _binomial_table(trials: int, probability: float) -> tuple[float, ...] | None:
    """P(k ≤ 0), P(k ≤ 1), … up to where 1 is reached, if that is soon."""
    table: list[float] = []
    if probability == 1:
        return None
    chance, total = (1 - probability) ** trials, 0.0
    for k in range(min(trials, _MOST_COMPARISONS)):
        total += chance
        table.append(total)
        if chance < 2**-54 and total > 0.5:
            return tuple(table)
        chance *= (trials - k) / (k + 1) * (probability / (1 - probability))
    return tuple(table) if trials <= _MOST_COMPARISONS else None


def _binomial(
    trials: int, probability: float, shape: tuple[int, ...], rng: Generator
) -> NDArray[np.integer]:
    """Binomial numbers: by inversion of a uniform where few values are likely."""
    table = _binomial_table(trials, probability)
    if table is None:
        return rng.binomial(trials, probability, size=shape)
    uniform, k = rng.random(shape), np.zeros(shape, dtype=np.int8)
    for threshold in table:
        k += uniform >= threshold
    return k


def cosines(size: Any, dimensions: int, rng: Generator) -> Array:
    """The cosine of a uniform direction with anything fixed, in `dimensions` ≥ 1 dimensions.

    Projected on a plane, a uniform direction in N ≥ 2 dimensions has a uniform angle and the
    squared radius 1 − V^(2/(N−2)) with V uniform, independent of the angle (for N = 2 it is 1);
    so (1 + cosine)/2 is Beta((N−1)/2, (N−1)/2), at the price of two uniforms.
    """
    if dimensions == 1:
        return np.where(rng.random(size) < 0.5, -1.0, 1.0)
    # cos 2φ = 2/(1 + t²) − 1 with t = tan φ, which NumPy evaluates several times as fast as cos.
    cosine = rng.random(size)
    cosine *= math.pi
    np.tan(cosine, out=cosine)
    np.square(cosine, out=cosine)
    cosine += 1
    np.divide(2, cosine, out=cosine)
    cosine -= 1
    if dimensions > 2:
        radius = rng.random(size)
        np.subtract(1, radius, out=radius)  # in (0, 1], which has a logarithm
        np.log(radius, out=radius)
        radius *= 2 / (dimensions - 2)
        np.expm1(radius, out=radius)
        np.negative(radius, out=radius)
        np.sqrt(radius, out=radius)
        cosine *= radius
    return cosine


def _sums_of_directions(k: NDArray[np.integer], dimensions: int, rng: Generator) -> Array:
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
    return np.sqrt(length_sq, out=length_sq).reshape(k.shape)
