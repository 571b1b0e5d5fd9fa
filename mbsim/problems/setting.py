"""A Setting: a problem with a method, a batch size, and how long and with which steps it runs."""

from __future__ import annotations

import numpy as np

from mbsim._shared.values import value
from mbsim.methods import Method
from mbsim.problems.losses import Quadratic
from mbsim.problems.problem import Problem

__all__ = ["Setting"]


@value
class Setting:
    """What a run, a bound or a drift is about, in one place.

    Attributes:
        problem: the problem; for a run also a :class:`~mbsim.FiniteProblem`.
        method: the method.
        batch_size: B.
        step_size: η; 0 where only the law of a step matters.
        steps: T; 0 likewise.

    >>> import mbsim
    >>> problem = mbsim.Problem(loss=mbsim.losses.Quadratic(np.ones(4)), benign_dim=4,
    ...                         noise=mbsim.noise.Gaussian(sigma=2.0), start=np.ones(4))
    >>> setting = Setting(problem, mbsim.MicroBatchClipping(4), 16)
    >>> setting.micro_batch_size, setting.quantities()["initial_gap"]
    (4, 2.0)
    """

    problem: Problem
    method: Method
    batch_size: int
    step_size: float = 0.0
    steps: int = 0

    @property
    def micro_batches(self) -> int:
        """m; for SGD, 1."""
        return self.method.micro_batches(self.batch_size)

    @property
    def micro_batch_size(self) -> int:
        """b; for SGD, B."""
        return self.batch_size // self.micro_batches

    @property
    def half_square(self) -> bool:
        """Whether the loss is ½L‖w‖², for which the descent lemma is an equality."""
        loss = self.problem.loss
        return isinstance(loss, Quadratic) and bool(np.ptp(loss.eigenvalues) == 0)

    def quantities(self) -> dict[str, float | str]:
        """The setting by code name, as bounds take it, and in words what is no number."""
        problem, draggers = self.problem, self.problem.draggers
        run = {"step_size": self.step_size, "steps": self.steps} if self.steps else {}
        return {
            **problem.quantities(),
            **run,
            "batch_size": self.batch_size,
            "micro_batch_size": self.micro_batch_size,
            "dragger_dim": problem.dragger_dim if draggers.dimensions_needed else 0,
            "tilt": draggers.tilt,
            "noise": str(problem.noise),
            "method": str(self.method),
        }
