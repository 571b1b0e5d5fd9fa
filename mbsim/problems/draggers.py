"""Draggers: the examples whose gradients are orthogonal to the benign gradient subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from mbsim._shared.arrays import Array
from mbsim._shared.meant import answering
from mbsim._shared.values import set_field
from mbsim.errors import InvalidArgument, check_number, shown
from mbsim.problems.normals import standard_normals

__all__ = ["Draggers"]


@answering
@dataclass(frozen=True, kw_only=True)
class Draggers:
    r"""Assumption A4: with probability p an example's gradient is a dragger's.

    A dragger's gradient d lies in the dragger frame, orthogonal to the gradient and to all benign
    noise, with ‖d‖ = c √(r² + σ²), c times the root-mean-square norm of a benign gradient.

    Args:
        probability: p, in [0, 1]: the paper's dragger probability.
        norm_ratio: c ≥ 0: the paper's norm ratio.
        coherence: γ in [0, 1], the mean cosine between two draggers of one step. At 0 the
            directions are independent and uniform; above 0 they are √γ h + √(1−γ) o_i with h
            uniform and common to the step, and o_i independent, uniform and orthogonal to h.
        tilt: t = cos(d, g) in (−1, 1): a deliberate violation of A4 for negative controls. The
            transverse part is kept, of length c √(r² + σ²), and t/√(1−t²) times that is added
            along the gradient.

    Source: [Wang2024] assumption 4.4; the theory page, section 2.

    >>> Draggers(probability=0.05, norm_ratio=20.0).dimensions_needed
    1
    """

    probability: float
    norm_ratio: float
    coherence: float = 0.0
    tilt: float = 0.0

    def __post_init__(self) -> None:
        for name, limits in (
            ("probability", {"minimum": 0, "maximum": 1}),
            ("norm_ratio", {"minimum": 0}),
            ("coherence", {"minimum": 0, "maximum": 1}),
            ("tilt", {"above": -1, "below": 1}),
        ):
            set_field(self, name, check_number(name, getattr(self, name), **limits))

    @property
    def dimensions_needed(self) -> int:
        """How many dimensions the dragger frame must have: 0 without draggers, else 1, or 2.

        Two where 0 < γ < 1, for then h and something orthogonal to it must both fit.
        """
        if self.probability == 0 or self.norm_ratio == 0:
            return 0
        return 2 if 0 < self.coherence < 1 else 1

    @property
    def along(self) -> float:
        """The component of a dragger along the gradient, for a transverse part of length 1."""
        return self.tilt / math.sqrt(1 - self.tilt**2)

    def length(self, grad_norm: ArrayLike, sigma: ArrayLike) -> Any:
        """c √(r² + σ²), the length of a dragger's transverse part; ∞ beyond the largest float."""
        with np.errstate(over="ignore"):
            return self.norm_ratio * np.hypot(grad_norm, sigma)


def check_draggers_argument(draggers: Any) -> Draggers:
    """`draggers` itself if it is a Draggers."""
    if not isinstance(draggers, Draggers):
        raise InvalidArgument(
            f"draggers={shown(draggers)} must be mbsim.Draggers(probability=..., norm_ratio=...)"
        )
    return draggers


def uniform_directions(size: tuple[int, ...], dimensions: int, rng: Generator) -> Array:
    """Independent uniform directions, ``[*size, dimensions]``; none at all in 0 dimensions."""
    vectors = standard_normals((*size, dimensions), rng)
    lengths_sq = np.einsum("...i,...i->...", vectors, vectors)[..., None]
    vectors /= np.sqrt(lengths_sq + (lengths_sq == 0))
    return vectors
