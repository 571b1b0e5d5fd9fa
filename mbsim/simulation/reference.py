r"""The reference engine: every example is drawn, and Algorithm 1 is done as the paper writes it.

One step: draw B examples and average each micro-batch of b (:mod:`mbsim.problems.vectors`); clip by
norms; average. It is the plain reading that the fast engine is held against, and it alone serves
noise laws that draw whole vectors.

What is drawn depends neither on the method nor on w: methods run from the same seed see the same
examples, which pairs them. Source: [Wang2024] Algorithm 1; the theory page, sections 2 and 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator

from mbsim._shared.arrays import Array, Mask
from mbsim.errors import InvalidArgument
from mbsim.problems.finite import FiniteDraws, FiniteProblem
from mbsim.problems.lengths import norms_of
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting
from mbsim.problems.vectors import VectorDraws

__all__ = ["Reference"]

# Numbers in one step of one lane (32 MiB), and the most that one replicate may need (256 MiB).
_LANE_NUMBERS = 2**22
_MOST_NUMBERS = 2**25


class Reference:
    """Draws updates for one lane of replicates, from one stream.

    Args:
        setting: any problem, also one whose examples come back, with a method and a batch size.
        rng: the stream of the lane.
    """

    def __init__(self, setting: Setting, rng: Generator) -> None:
        problem: Any = setting.problem
        batch, m = setting.batch_size, setting.micro_batches
        self.rule, self.width = setting.method.rule, self.lane_width(problem, batch, m)
        draws = FiniteDraws if isinstance(problem, FiniteProblem) else VectorDraws
        self.draws = draws(problem=problem, batch_size=batch, m=m, width=self.width, rng=rng)

    @classmethod
    def why_not(cls, problem: Problem | FiniteProblem) -> str | None:  # noqa: ARG003
        """Why this engine does not apply to `problem`: it always does."""
        return None

    @classmethod
    def lane_width(
        cls,
        problem: Problem | FiniteProblem,
        batch_size: int,
        micro_batches: int,  # noqa: ARG003
    ) -> int:
        """How many replicates share one stream: 64, or fewer where a single step is very large.

        Raises:
            InvalidArgument: if one step of one replicate is too large for the memory allowed.
        """
        numbers = batch_size * problem.dimension
        if isinstance(problem, FiniteProblem):
            numbers += problem.examples  # of which a batch is drawn
        if numbers > _MOST_NUMBERS:
            raise InvalidArgument(
                f"batch_size={batch_size} with dimension {problem.dimension} needs {numbers:,} "
                f"numbers for one step, and engine='reference' draws at most {_MOST_NUMBERS:,}; "
                "take engine='exact_law', which needs few"
            )
        return max(1, min(64, _LANE_NUMBERS // numbers))

    @classmethod
    def block_bytes(
        cls, problem: Problem | FiniteProblem, batch_size: int, micro_batches: int
    ) -> int:
        """About how much memory one thread needs: measured, 3.5 times the examples of a step."""
        width = cls.lane_width(problem, batch_size, micro_batches)
        return 28 * width * batch_size * problem.dimension

    def update(self, gradient: Array, w: Array) -> tuple[Array, Mask]:
        """One update for each replicate, and which of them stand still because ρ = 0.

        Args:
            gradient: ∇L(w) of each replicate, ``[width, d]``.
            w: where it is, ``[width, d]``: all that examples that come back look at.
        """
        micro_batches, _ = self.draws.at(gradient, w)
        norms = norms_of(micro_batches)
        factors = self.rule.factors(norms)
        update: Array = np.einsum("rj,rji->ri", factors, micro_batches) / factors.shape[-1]
        moves = ((factors != 0) & (norms != 0)).any(axis=-1)
        return update, ~norms.all(axis=-1) & ~moves
