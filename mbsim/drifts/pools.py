r"""Progress and second moment of a step from sampled micro-batches.

Micro-batches are drawn as scalars (:mod:`mbsim.problems.micro_batches`), in blocks of independent
pools; nothing that is drawn depends on r, so one sample serves every gradient norm, and curves over
r are smooth. Every pool gives an unbiased estimate (:mod:`mbsim.drifts.layer_cake`), and the pools
of a block are independent, which gives the standard error. The mean of ⟨X, e⟩ and the share of
benign examples, whose expectations are known, serve as control variates: that removes the noise
that would swamp A(r) at small r.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from mbsim._shared.seeds import stream
from mbsim.clipping import FixedNorm, Rule, UnitNorm
from mbsim.drifts.layer_cake import Pool, from_factors, from_own_factors, from_pool
from mbsim.problems.micro_batches import MicroBatches, draw_micro_batches, norms
from mbsim.problems.problem import Problem

__all__ = ["Estimate", "Pools"]

Array = NDArray[np.float64]

# Pools of a block. With two control variates, 61 degrees of freedom are left.
_POOLS = 64
# A pool holds at least this many steps' worth of micro-batches, so that subsets are many.
_STEPS_PER_POOL = 4
# Micro-batches of a block, unless steps are so large that a pool needs more, and the most examples
# (some noise laws draw one number for each).
_BLOCK, _EXAMPLES = 2**16, 2**21


@dataclass(frozen=True)
class Estimate:
    """Estimates of A and M at one gradient norm, and the covariance of these estimates.

    Attributes:
        mean: A and M; `covariance`: of the means, ``[2, 2]``.
        df: degrees of freedom of the covariance.
    """

    mean: Array
    covariance: Array
    df: int


@dataclass(frozen=True, eq=False)
class _Block:
    """Micro-batches of one block, and squares that do not depend on r either."""

    drawn: MicroBatches
    across_sq: Array
    dragger_sq: Array


class Pools:
    """Sampled micro-batches of one problem, in blocks that are drawn when they are first needed.

    Args:
        problem: any problem whose noise is a NoiseLaw.
        micro_batch_size: b.
        micro_batches: m, the micro-batches of a step.
        rule: the clipping rule.
        rank: the rank of the norm that is the threshold, for a rule that has one; else None.
        seed: what the sample is drawn from.
    """

    def __init__(
        self,
        problem: Problem,
        micro_batch_size: int,
        micro_batches: int,
        rule: Rule,
        rank: int | None,
        seed: SeedSequence,
    ) -> None:
        self.problem, self.rule, self.rank, self.seed = problem, rule, rank, seed
        self.b, self.m = micro_batch_size, micro_batches
        wanted = min(_BLOCK, _EXAMPLES // self.b) // _POOLS
        steps = max(_STEPS_PER_POOL, wanted // self.m)
        self.size = steps * self.m
        self._blocks: list[_Block] = []

    @property
    def block(self) -> int:
        """How many micro-batches a block holds."""
        return _POOLS * self.size

    def estimate(self, grad_norm: float, relative_error: float, most: int) -> Estimate:
        """A and M at ‖g‖ = `grad_norm`.

        Args:
            grad_norm: r.
            relative_error: blocks are added until both standard errors are below this share of
                the estimates, or there are `most` micro-batches (always at least one block).
            most: the largest number of micro-batches.
        """
        rows = np.zeros((0, 4))
        for number in range(max(1, most // self.block)):
            rows = np.concatenate([rows, self._of_block(number, grad_norm)])
            found = _regressed(rows)
            errors = np.sqrt(np.diag(found.covariance))
            if (errors <= relative_error * np.abs(found.mean)).all():
                break
        return found

    def _of_block(self, number: int, grad_norm: float) -> Array:
        """A, M and the deviations of the two controls from their expectations, for each pool."""
        while len(self._blocks) <= number:
            rng = stream(self.seed, len(self._blocks))
            shape = (_POOLS, self.size)
            drawn = draw_micro_batches(self.problem, self.b, shape, rng)
            self._blocks.append(_Block(drawn, np.square(drawn.across), drawn.dragger_sq()))
        block, draggers = self._blocks[number], self.problem.draggers
        drawn = block.drawn
        length = float(draggers.length(np.array(grad_norm), self.problem.noise.sigma))
        along = drawn.along(grad_norm, length, draggers)
        x = norms(along, block.across_sq, block.dragger_sq, length)
        pool = Pool(along=along, shared=drawn.shared * length, norms=x)
        progress, second = self._drift_of(pool)
        benign = 1 - draggers.probability
        expected = benign * grad_norm + (1 - benign) * draggers.along * length
        controls = along.mean(axis=1) - expected, drawn.benign.mean(axis=1) - benign
        return np.stack([progress, second, *controls], axis=1)

    def _drift_of(self, pool: Pool) -> tuple[Array, Array]:
        if self.rank is not None:
            return from_pool(pool, self.m, self.rank)
        if isinstance(self.rule, (FixedNorm, UnitNorm)):
            return from_own_factors(pool, self.rule.factors(pool.norms), self.m)
        steps = pool.norms.reshape(_POOLS, -1, self.m)
        return from_factors(pool, self.rule.factors(steps).reshape(pool.norms.shape), self.m)


def _regressed(rows: Array) -> Estimate:
    """Means of A and M at the expectations of the controls, by regression over the pools."""
    targets, controls = rows[:, :2], rows[:, 2:]
    controls = controls[:, np.ptp(controls, axis=0) > 0]
    design = np.concatenate([np.ones((len(rows), 1)), controls], axis=1)
    scale = np.abs(design).max(axis=0)
    coefficients, *_ = np.linalg.lstsq(design / scale, targets)
    rest = targets - (design / scale) @ coefficients
    df = len(rows) - design.shape[1]
    # The variance of the intercept: a little more than 1/pools, for the controls are not balanced.
    leverage = np.linalg.pinv((design / scale).T @ (design / scale))[0, 0]
    return Estimate(
        mean=coefficients[0] / scale[0], covariance=leverage * (rest.T @ rest) / df, df=df
    )
