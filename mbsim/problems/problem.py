"""A Problem: everything about a synthetic experiment except the method and its step size."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsim._shared.meant import answering
from mbsim._shared.values import set_field, value
from mbsim.errors import InvalidArgument, check_array, check_integer, shown
from mbsim.problems.draggers import Draggers, check_draggers_argument
from mbsim.problems.losses import check_loss_argument
from mbsim.problems.noise import check_noise_argument

__all__ = ["Problem"]


@answering
@value
class Problem:
    r"""A loss, its benign noise, its draggers, the split of the space, and a starting point.

    The space is split once, R^d = V ⊕ U, with V the first `benign_dim` axes. At w, with
    g = ∇L(w) and e = g/‖g‖, the *benign frame* is span(e) ⊕ (V ⊖ P_V g), n = benign_dim
    dimensions, and the *dragger frame* is U ⊖ P_U g, d − n − 1 dimensions (where a projection is
    zero the subspace's first axis takes its place). The three pieces are orthogonal, so
    assumption A4 holds exactly for every loss, and the law of a step depends on w through
    r = ‖g‖ alone.

    Args:
        loss: a :class:`~mbsim.problems.losses.Loss`; it fixes the dimension d, the smoothness L
            and the lower bound L*.
        noise: a :class:`~mbsim.problems.noise.NoiseLaw`.
        draggers: the paper's p and c; no draggers if left out.
        benign_dim: n, at least 1; at most d − 1 − (the dimensions the draggers need), or d
            without draggers.
        start: w₀, shape ``[d]``.

    Raises:
        InvalidArgument: for parts of the wrong kind, a start that is not finite or does not fit
            the loss, and dimensions that do not allow the model.

    Source: [Wang2024] assumptions 4.1 to 4.4; the theory page, section 2.

    >>> import numpy as np, mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(8)), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=4, start=np.ones(8))
    >>> problem.dimension, problem.dragger_dim, problem.initial_gap
    (8, 3, 4.0)
    """

    _: KW_ONLY
    loss: Any
    noise: Any
    draggers: Draggers = Draggers(probability=0, norm_ratio=0)
    benign_dim: int
    start: NDArray[np.float64]

    def __post_init__(self) -> None:
        check_loss_argument(self.loss)
        check_noise_argument(self.noise)
        if self.draggers is None:  # as the default
            set_field(self, "draggers", type(self).draggers)
        check_draggers_argument(self.draggers)
        set_field(self, "benign_dim", check_integer("benign_dim", self.benign_dim, minimum=1))
        set_field(self, "start", self._checked_start(self.start))
        self._check_dimensions()

    def _checked_start(self, start: Any) -> NDArray[np.float64]:
        array = check_array("start", start, ndim=1, finite=True)
        if array.size != self.dimension:
            raise InvalidArgument(
                f"start has {array.size} coordinates and must have those of the loss, "
                f"{self.dimension}"
            )
        with np.errstate(all="ignore"):
            # The engines hand over leading axes, so a loss without them must fail here already.
            try:
                gradient, found = self.loss.gradient(array[None]), self.loss.value(array[None])
            except Exception as error:
                raise InvalidArgument(
                    f"loss={shown(self.loss)} must take w of shape [..., {array.size}], leading "
                    f"axes being independent, and at (1, {array.size}) it fails: {shown(error)}; "
                    "mbsim.testing.check_loss says more"
                ) from error
            if np.shape(gradient) != (1, array.size) or np.shape(found) != (1,):
                raise InvalidArgument(
                    f"loss={shown(self.loss)} gives gradients of shape {np.shape(gradient)} and "
                    f"values of shape {np.shape(found)} for w of shape (1, {array.size}); they "
                    f"must be of shape (1, {array.size}) and (1,)"
                )
            squared = float(np.square(gradient).sum())
        at_start = float(found[0])
        if not (math.isfinite(at_start) and math.isfinite(squared)):
            raise InvalidArgument(
                "start must be where the loss and its squared gradient norm are finite; "
                f"they are {at_start:g} and {squared:g}"
            )
        if at_start < self.loss.minimum:
            raise InvalidArgument(
                f"loss.minimum={self.loss.minimum:g} must be a lower bound of the loss, which is "
                f"{at_start:g} at the start"
            )
        return array

    def _check_dimensions(self) -> None:
        needed = self.draggers.dimensions_needed
        spare = self.dimension - self.benign_dim
        if needed == 0 and spare < 0:
            raise InvalidArgument(
                f"benign_dim={self.benign_dim} must be at most the dimension of the loss, "
                f"{self.dimension}"
            )
        if needed > 0 and spare < needed + 1:
            raise InvalidArgument(
                f"benign_dim={self.benign_dim} leaves max(0, {self.dimension} - {self.benign_dim} "
                f"- 1) = {self.dragger_dim} dimensions for the draggers, which need {needed} with "
                f"coherence={self.draggers.coherence:g}; take benign_dim at most "
                f"{self.dimension - needed - 1}, or a loss of more dimensions"
            )

    @property
    def dimension(self) -> int:
        """d, the number of parameters."""
        return int(self.loss.dim)

    @property
    def dragger_dim(self) -> int:
        """The dimension of the dragger frame, d − n − 1."""
        return max(0, self.dimension - self.benign_dim - 1)

    @property
    def smoothness(self) -> float:
        """L, the smoothness constant of the loss."""
        return float(self.loss.smoothness)

    @property
    def initial_gap(self) -> float:
        """Δ = L(w₀) − L*."""
        return float(self.loss.value(self.start) - self.loss.minimum)

    @property
    def initial_grad_norm(self) -> float:
        """‖∇L(w₀)‖."""
        return float(np.linalg.norm(self.loss.gradient(self.start)))

    def quantities(self) -> dict[str, float]:
        """What it fixes of the quantities that formulas are made of, by code name.

        >>> import mbsim
        >>> problem = Problem(loss=mbsim.losses.Quadratic(np.ones(4)), benign_dim=4,
        ...                   noise=mbsim.noise.Gaussian(2.0), start=np.ones(4))
        >>> problem.quantities()["initial_gap"], problem.quantities()["sigma"]
        (2.0, 2.0)
        """
        draggers = self.draggers
        return {
            "initial_gap": self.initial_gap,
            "smoothness": self.smoothness,
            "probability": draggers.probability,
            "norm_ratio": draggers.norm_ratio if draggers.dimensions_needed else 0.0,
            "coherence": draggers.coherence,
            "sigma": self.noise.sigma,
            "benign_dim": self.benign_dim,
            **({"tilt_against": 0.0 - draggers.tilt} if draggers.tilt <= 0 else {}),
        }

    def __str__(self) -> str:
        some = self.draggers
        numbers = {
            "probability": some.probability,
            "norm ratio": some.norm_ratio,
            "coherence": some.coherence,
            "tilt": some.tilt,
        }
        who = ", ".join(f"{name} {number:g}" for name, number in numbers.items() if number)
        lines = {
            "loss": self.loss,
            "dimension": f"{self.dimension}: {self.benign_dim} benign, {self.dragger_dim} dragger",
            "smoothness": f"{self.smoothness:.4g}",
            "initial gap": f"{self.initial_gap:.4g}, gradient norm {self.initial_grad_norm:.4g}",
            "noise": self.noise,
            "draggers": who if some.dimensions_needed else "none",
            "assumes": "A1 to A3; A4 broken by the tilt" if some.tilt else "A1 to A4",
        }
        return "\n".join(["Problem", *(f"  {name:<12} {text}" for name, text in lines.items())])

    __repr__ = __str__


def check_problem(problem: Any) -> Problem:
    """`problem` itself if it is one."""
    if not isinstance(problem, Problem):
        raise InvalidArgument(f"problem={shown(problem)} must be a mbsim.Problem")
    return problem
