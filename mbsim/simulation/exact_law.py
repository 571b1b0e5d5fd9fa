r"""The fast engine: the law of a step, drawn in scalars instead of examples.

In the frame of the gradient a step is decided by a few scalars per micro-batch: they give the
norms, and the norms give the factors. What is left is a sum of vectors with known lengths and
independent uniform directions: its length is drawn in scalars as well, and its direction is
uniform again, drawn once. So a step costs O(m + d) random numbers in the place of O(B d), and has
exactly the law of the reference engine. The step is compiled (:mod:`mbsim.compiled.step`). Source:
the theory page, section 9.

Where the loss, the noise law and the rule are compiled too, a replicate is advanced by itself, from
a stream of its own. Where one of them is not, loss and rule are called for a whole lane of
replicates at a time, in NumPy, as is a law that is not compiled, and the lane has one stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim._shared.arrays import Array, Mask
from mbsim._shared.seeds import states, stream
from mbsim.clipping import NoClipping
from mbsim.compiled.twins import Twin, twin_of
from mbsim.errors import InvalidArgument
from mbsim.problems.finite import FiniteProblem
from mbsim.problems.micro_batches import draw_rows, numbers_of, table_of
from mbsim.problems.noise import why_no_means
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting

__all__ = ["ExactLaw", "Replicates", "twins_of"]

# Replicates whose streams are seeded together.
_LANE = 64
# Numbers in one step of one lane (8 MiB), and the most that one replicate may need (64 MiB).
_LANE_NUMBERS = 2**20
_MOST_NUMBERS = 2**23
# Compiled code runs for about so long before it looks whether it is to stop.
_SECONDS = 0.05


def _numbers_per_step(problem: Problem, micro_batches: int) -> int:
    """About how many numbers one step of one replicate holds."""
    return 9 * micro_batches + 2 * problem.dimension


def twins_of(setting: Setting) -> tuple[Twin, Twin, Twin] | None:
    """Loss, noise law and rule, compiled; None if one of them cannot be."""
    loss, law = (twin_of(name, getattr(setting.problem, name)) for name in ("loss", "noise"))
    clip = twin_of("rule", setting.method.rule)
    return None if loss is None or law is None or clip is None else (loss, law, clip)


class ExactLaw:
    """Draws updates for one lane of replicates, from one stream, in NumPy where it must.

    Args:
        setting: its problem's noise must be a :class:`~mbsim.problems.noise.NoiseLaw`.
        rng: the stream of the lane.
    """

    def __init__(self, setting: Setting, rng: Generator) -> None:
        problem, self.rng = setting.problem, rng
        self.problem, self.rule = problem, setting.method.rule
        self.width = self.lane_width(problem, setting.batch_size, setting.micro_batches)
        self.m, self.b = _needed(setting)
        self.state, self.law = states(rng, 1), twin_of("noise", problem.noise)

    @classmethod
    def why_not(cls, problem: Problem | FiniteProblem) -> str | None:
        """Why this engine does not apply to `problem`; None where it does."""
        if isinstance(problem, FiniteProblem):
            return (
                f"the same {problem.examples} examples come back, and this engine draws the law of "
                "new ones; take engine='reference'"
            )
        return why_no_means(problem.noise, "this engine")

    @classmethod
    def lane_width(cls, problem: Problem, batch_size: int, micro_batches: int) -> int:  # noqa: ARG003
        """How many replicates share one stream: 64, or fewer where a single step is very large.

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
        return max(1, min(_LANE, _LANE_NUMBERS // numbers))

    @classmethod
    def block_bytes(cls, problem: Problem, batch_size: int, micro_batches: int) -> int:
        """About how much memory one thread needs."""
        width = cls.lane_width(problem, batch_size, micro_batches)
        return 32 * width * _numbers_per_step(problem, micro_batches)

    def update(self, gradient: Array, w: Array | None = None) -> tuple[Array, Mask]:  # noqa: ARG002
        """One update for each replicate, and which of them stand still because ρ = 0.

        Args:
            gradient: ∇L(w) of each replicate, ``[width, d]``.
            w: where it is, which does not matter.
        """
        from mbsim.compiled import lanes, step

        g = np.array(gradient, np.float64, order="C")  # is put into other units
        sizes, model = numbers_of(self.problem, self.m, self.b)
        many = len(g) * self.m
        flat = draw_rows(self.problem, self.law, self.b, many, self.state, self.rng)
        counts = flat[0].reshape(len(g), self.m)
        rooms = flat[1].reshape(step.ROWS, *counts.shape).transpose(1, 0, 2).copy()
        frames, updates, stalled = np.empty((len(g), 3)), np.empty_like(g), np.empty(len(g), bool)
        lanes.measure_all(sizes, model, g, counts, rooms, frames)
        rooms[:, step.FACTORS] = self.rule.factors(rooms[:, step.NORMS])
        lanes.combine_all(self.state[0], sizes, model, g, counts, rooms, frames, updates, stalled)
        return updates, stalled


def _needed(setting: Setting) -> tuple[int, int]:
    """m and b. Without clipping every split gives the same update; one micro-batch is cheapest."""
    m = 1 if isinstance(setting.method.rule, NoClipping) else setting.micro_batches
    return m, setting.batch_size // m


class Replicates:
    """Advances replicates by compiled code alone, each from a stream of its own.

    Args:
        setting: what is run.
        parts: of :func:`twins_of`.
        limit: the loss at which a replicate has diverged.
        seed: the seed of the run; lane and place in it make a replicate's stream.
        first: the number of the replicate in row 0.
    """

    def __init__(
        self,
        setting: Setting,
        parts: tuple[Twin, Twin, Twin],
        limit: float,
        seed: SeedSequence,
        first: int,
    ) -> None:
        problem, (m, b) = setting.problem, _needed(setting)
        self.setting, self.seed, self.first = setting, seed, first
        self.arguments = (
            *(argument for part in parts for argument in part),
            *numbers_of(problem, m, b),
            *table_of(b, problem.draggers.probability),
            setting.step_size,
            limit,
        )

    def advance(
        self,
        rows: range,
        every: int,
        out: dict[str, Any],
        stopped: Callable[[], bool],
        tell: Callable[[int], None],
    ) -> None:
        """Fill the rows of `out`; `tell` hears of the steps done, and `stopped` ends it early."""
        from mbsim.compiled import step

        here, own, steps = slice(rows.start, rows.stop), self._states(rows), self.setting.steps
        w, total = np.tile(self.setting.problem.start, (len(rows), 1)), np.zeros(len(rows))
        first, chunk = 0, max(1, 256 // len(rows))
        while first <= steps and not stopped():
            began, stop = time.perf_counter(), min(first + chunk, steps + 1)
            step.run(
                *self.arguments,
                (first, stop, steps, every),
                own,
                w,
                total,
                *(out[name][here] for name in ("diverged_at", "stalled_at")),
                *(out[name][here] for name in ("grad_norm_sq", "loss")),
            )
            if time.perf_counter() - began < _SECONDS / 2:
                chunk *= 2
            first = stop
            tell(min(first, steps))
        out["final_w"][here], out["mean_grad_norm_sq"][here] = w, total / steps

    def _states(self, rows: range) -> Any:
        rows = range(self.first + rows.start, self.first + rows.stop)
        lanes = range(rows.start // _LANE, -(-rows.stop // _LANE))
        every = np.concatenate([states(stream(self.seed, lane), _LANE) for lane in lanes])
        return every[rows.start - lanes.start * _LANE :][: len(rows)].copy()
