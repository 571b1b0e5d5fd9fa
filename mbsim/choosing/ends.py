r"""Where a run ends with each micro-batch size, each at the step size that is best for it.

The level is E‖∇L(w_T)‖², or its average over the steps. A first guess comes from the drift: the
recursion r² ← r² − 2e r A(r) + e² M(r), e = ηL, which is exact for ½L‖w‖² but for the spread of r.
It says where to look; what is found there is simulated. From the b of the best guess the search
goes to its neighbours as long as they end lower; for each b it looks for the step size by factors
of two and then by a parabola, on the same random numbers. The few that were looked at are then run
again, from other random numbers, and compared by these runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from mbsim._shared.arrays import Array
from mbsim._shared.progress import progress
from mbsim._shared.seeds import child
from mbsim.drifts.drift import drift
from mbsim.errors import InvalidArgument, divisors
from mbsim.methods import MicroBatchClipping
from mbsim.problems.problem import Problem
from mbsim.problems.setting import Setting
from mbsim.simulation.run import run_setting

__all__ = ["Ends", "guesses"]

# Replicate-steps of one look, and how many replicates that may be.
_LOOK, _FEWEST, _MOST = 2**17, 8, 512
# Step sizes that the guess tries: powers of 2^(1/2) times the first.
_GRID = np.exp2(np.arange(-2, 29) / 2)
# Gradient norms of the guess, in units of the start's: each four times the one before.
_NORMS = np.exp2(np.arange(-16.0, 3.0, 2.0))
# The guess is content with this error of A and M, and ends so far below what noise leaves.
_ROUGH, _BELOW = 0.05, 8.0
# A step size is looked for within so many factors of two of where it began.
_REACH = 8
# A level that falls by less than this in a factor of two is flat; so far above the best is far.
_FLAT, _FAR = 0.95, 1.5


def guesses(problem: Problem, batch: int, steps: int, seed: SeedSequence) -> dict[int, Any]:
    """For every b: the step size that ends lowest by the drift's recursion, and that level.

    A b whose drift cannot be had is left out.
    """
    from mbsim.compiled.recursion import descend

    r0, found = problem.initial_grad_norm, {}
    if r0 == 0:
        return {}
    norms = r0 * _NORMS
    # Noise leaves σ/√(BT): nobody comes far below that, where the sign of A is hard to find.
    left = problem.noise.sigma / math.sqrt(batch * steps)
    norms = norms[min(int(np.searchsorted(norms, left / _BELOW)), norms.size - 2) :]
    for b in divisors(batch):
        try:
            one = drift(problem, MicroBatchClipping(b), batch_size=batch, rng=seed)
            values = one.at(norms, relative_error=_ROUGH)
        except InvalidArgument:
            continue
        rates = np.ascontiguousarray(values.progress / norms)
        moments = np.log(np.maximum(values.second_moment, 1e-290))
        first, gap = math.log(norms[0]), math.log(norms[1] / norms[0])
        with np.errstate(all="ignore"):
            levels = [
                descend(r0**2, float(e), steps, first, gap, rates, moments) for e in 1 / _GRID
            ]
        best = int(np.argmin(levels))
        found[b] = 1 / (_GRID[best] * problem.smoothness), float(levels[best])
    return found


@dataclass
class Ends:
    """The levels that were simulated.

    Args:
        problem, batch, steps: of the question.
        level: a run to the level of each of its replicates.
        seed: the seed.
        step_size: η for every b; None: for each its best.
        replicates: how many; None: as many as one look is worth.
    """

    problem: Problem
    batch: int
    steps: int
    level: Callable[[Any], Array]
    seed: SeedSequence
    step_size: float | None = None
    replicates: int | None = None
    best: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def looks(self) -> int:
        """How many replicates one look has."""
        return self.replicates or min(max(_LOOK // self.steps, _FEWEST), _MOST)

    def run(self, b: int, step_size: float, key: str) -> Array:
        """The level of every replicate; infinite where it diverged."""
        of = Setting(self.problem, MicroBatchClipping(b), self.batch, step_size, self.steps)
        rng = child(self.seed, key)
        found = self.level(run_setting(of, replicates=self.looks, rng=rng, record_every=self.steps))
        return np.where(np.isnan(found), math.inf, found)

    def _look(self, b: int, step_size: float) -> float:
        """The mean level, on the random numbers that all looks share."""
        return float(self.run(b, step_size, "look").mean())

    def tune(self, b: int, start: float) -> tuple[float, float]:
        """The best step size found for b, and its level there."""
        if b not in self.best:
            self.best[b] = self._tuned(b, start)
        return self.best[b]

    def _tuned(self, b: int, start: float) -> tuple[float, float]:
        if self.step_size is not None:
            return self.step_size, self._look(b, self.step_size)
        levels: dict[int, float] = {}

        def at(power: int) -> float:
            if power not in levels:
                levels[power] = self._look(b, start * 2.0**power)
            return levels[power]

        here, known = 0, min((level for _, level in self.best.values()), default=math.inf)
        while abs(here) < _REACH:
            beside = min((here - 1, here + 1), key=at)
            if at(beside) >= at(here) and math.isfinite(at(here)):
                break
            if at(beside) > _FLAT * at(here) > _FLAT * _FAR * known:
                break  # hardly lower, and far above another b
            here = beside if math.isfinite(at(beside)) else here - 1
        # The vertex of the parabola through three logarithms.
        low, middle, high = (math.log(max(at(here + i), 1e-300)) for i in (-1, 0, 1))
        bend = low - 2 * middle + high
        if math.isfinite(high) and bend > 0:
            fine = start * 2.0 ** (here + min(max((low - high) / (2 * bend), -0.5), 0.5))
            level = self._look(b, fine)
            if level < at(here):
                return fine, level
        return start * 2.0**here, at(here)

    def search(self) -> None:
        """Look at SGD, and from the best guess at its neighbours as long as they end lower."""
        sizes = divisors(self.batch)
        guess = {} if self.step_size else guesses(self.problem, self.batch, self.steps, self.seed)
        first = self.step_size or 1 / self.problem.smoothness
        with progress(len(sizes), "the end of runs with each b") as bar:

            def tune(b: int) -> float:
                # As far from its guess as the nearest b that is known ended from its own.
                known = min(self.best, key=lambda a: abs(math.log(a / b)), default=None)
                begin = guess[b][0] if b in guess else first
                if known is not None:
                    begin *= self.best[known][0] / (guess[known][0] if known in guess else first)
                level = self.tune(b, begin)[1]
                bar.update(len(self.best))
                return level

            tune(self.batch)
            if not guess:  # one step size, or nothing that says where to look
                for b in sizes:
                    tune(b)
                return
            place = sizes.index(min(guess, key=lambda b: guess[b][1]))
            while True:
                around = [i for i in (place - 1, place, place + 1) if 0 <= i < len(sizes)]
                lowest = min(around, key=lambda i: tune(sizes[i]))
                if lowest == place:
                    break
                place = lowest
