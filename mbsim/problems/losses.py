r"""Smooth losses with everything the theory asks for known in closed form.

A loss of your own is any object with the members of :class:`Loss`;
:func:`mbsim.testing.check_loss` tells whether it keeps the contract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np

from mbsim._shared.arrays import Array
from mbsim._shared.meant import answering, no_such_name
from mbsim._shared.values import set_field, value
from mbsim.compiled.twins import Twin
from mbsim.errors import InvalidArgument, check_array, check_integer, check_number, shown

__all__ = ["LogCosh", "Loss", "Quadratic", "Ripple"]


@runtime_checkable
class Loss(Protocol):
    r"""What a loss must offer; w has shape ``[..., dim]`` and leading axes are independent.

    Assumptions A1 and A2 of the theory page: :math:`L(w) \ge L^*` (`minimum`, a lower bound) and
    :math:`L(v) \le L(w) + \langle\nabla L(w), v - w\rangle + \tfrac{L}{2}\|v - w\|^2`
    (`smoothness` is the constant L).
    """

    @property
    def dim(self) -> int:
        """The number of parameters d."""
        ...

    @property
    def smoothness(self) -> float:
        """The smoothness constant L."""
        ...

    @property
    def minimum(self) -> float:
        """A lower bound L* of the loss."""
        ...

    def value(self, w: Array) -> Array:
        """The loss: ``[..., dim]`` to ``[...]``."""
        ...

    def gradient(self, w: Array) -> Array:
        """Its gradient: ``[..., dim]`` to ``[..., dim]``."""
        ...


@answering
@value
class Quadratic:
    """½ Σ λ_i w_i²: convex, smoothness max λ, minimum 0.

    Args:
        eigenvalues: λ, shape ``[dim]``, each at least 0 and one above 0.

    >>> loss = Quadratic([0.5, 2.0])
    >>> loss.value(np.array([2.0, 1.0])), loss.gradient(np.array([2.0, 1.0])), loss.smoothness
    (np.float64(2.0), array([1., 2.]), 2.0)
    """

    eigenvalues: Any
    minimum = 0.0

    def __post_init__(self) -> None:
        eigenvalues = check_array("eigenvalues", self.eigenvalues)
        if eigenvalues.ndim == 2 and eigenvalues.shape[0] == eigenvalues.shape[1]:
            raise InvalidArgument(
                f"eigenvalues has shape {eigenvalues.shape} and must have 1 axes; for a symmetric "
                "matrix H give numpy.linalg.eigvalsh(H): the same loss, in its axes"
            )
        eigenvalues = check_array("eigenvalues", eigenvalues, ndim=1, finite=True)
        if eigenvalues.min() < 0 or eigenvalues.max() == 0:
            raise InvalidArgument(
                f"eigenvalues go from {eigenvalues.min():g} to {eigenvalues.max():g} and must be "
                "at least 0, one of them above 0"
            )
        set_field(self, "eigenvalues", eigenvalues)

    @property
    def dim(self) -> int:
        """The number of parameters."""
        return int(self.eigenvalues.size)

    @property
    def smoothness(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues.max())

    def value(self, w: Array) -> Array:
        """½ Σ λ_i w_i²."""
        return 0.5 * np.einsum("...i,...i,i->...", w, w, self.eigenvalues)

    def gradient(self, w: Array) -> Array:
        """λ_i w_i."""
        return self.eigenvalues * w

    @property
    def compiled(self) -> Twin:
        """Value and gradient, compiled."""
        from mbsim.compiled import losses

        return losses.quadratic, self.eigenvalues

    def __str__(self) -> str:
        low, high = self.eigenvalues.min(), self.eigenvalues.max()
        return f"½ Σ λᵢ wᵢ² in {self.dim} dimensions, λ from {low:.3g} to {high:.3g}"


@answering
@dataclass(frozen=True)
class LogCosh:
    """Σ log cosh w_i: convex, smoothness 1, gradient tanh w_i (so never above √dim), minimum 0.

    >>> LogCosh(2).gradient(np.array([0.0, 800.0]))
    array([0., 1.])
    """

    dim: int
    smoothness = 1.0
    minimum = 0.0

    def __post_init__(self) -> None:
        set_field(self, "dim", check_integer("dim", self.dim, minimum=1))

    @property
    def largest_grad_norm(self) -> float:
        """√dim: no gradient is longer. A loss of your own may say such a limit, too."""
        return math.sqrt(self.dim)

    def value(self, w: Array) -> Array:
        """Σ log cosh w_i, written so that it neither overflows nor loses its small values."""
        size = np.abs(w)
        # log cosh x = x + log((1 + e^-2x)/2) cancels near 0, where it is log(1 + 2 sinh²(x/2)).
        far = size + np.log1p(np.exp(-2 * size)) - np.log(2)
        near = np.log1p(2 * np.square(np.sinh(np.minimum(size, 1) / 2)))
        return np.where(size < 1, near, far).sum(axis=-1)

    def gradient(self, w: Array) -> Array:
        """tanh w_i."""
        return np.tanh(w)

    @property
    def compiled(self) -> Twin:
        """Value and gradient, compiled."""
        from mbsim.compiled import losses

        return losses.log_cosh, np.zeros(0)

    def __str__(self) -> str:
        return f"Σ log cosh wᵢ in {self.dim} dimensions"


@answering
@dataclass(frozen=True)
class Ripple:
    """½‖w‖² + a Σ sin² w_i: smoothness 1 + 2a, minimum 0, not convex for a > ½.

    Args:
        dim: the number of parameters.
        amplitude: a, at least 0.

    >>> Ripple(1, amplitude=2.0).smoothness
    5.0
    """

    dim: int
    amplitude: float
    minimum = 0.0

    def __post_init__(self) -> None:
        set_field(self, "dim", check_integer("dim", self.dim, minimum=1))
        set_field(self, "amplitude", check_number("amplitude", self.amplitude, minimum=0))

    @property
    def smoothness(self) -> float:
        """1 + 2a: the second derivative 1 + 2a cos 2w lies between 1 − 2a and 1 + 2a."""
        return 1 + 2 * self.amplitude

    def value(self, w: Array) -> Array:
        """½‖w‖² + a Σ sin² w_i."""
        return (0.5 * np.square(w) + self.amplitude * np.square(np.sin(w))).sum(axis=-1)

    def gradient(self, w: Array) -> Array:
        """w_i + a sin 2w_i."""
        return w + self.amplitude * np.sin(2 * w)

    @property
    def compiled(self) -> Twin:
        """Value and gradient, compiled."""
        from mbsim.compiled import losses

        return losses.ripple, np.array([self.amplitude])

    def __str__(self) -> str:
        return f"½‖w‖² + {self.amplitude:g} Σ sin² wᵢ in {self.dim} dimensions"


@value
class Held:
    """A gradient that is the same everywhere, to look at single steps; its value is not looked at.

    >>> Held(np.array([3.0, 4.0])).gradient(np.zeros((2, 2)))
    array([[3., 4.],
           [3., 4.]])
    """

    direction: Any
    smoothness = 1.0
    minimum = 0.0

    @property
    def dim(self) -> int:
        """The number of parameters."""
        return int(self.direction.size)

    def value(self, w: Array) -> Array:
        """0."""
        return np.zeros(w.shape[:-1])

    def gradient(self, w: Array) -> Array:
        """The same for every w."""
        return np.zeros_like(w) + self.direction

    @property
    def compiled(self) -> Twin:
        """Value and gradient, compiled."""
        from mbsim.compiled import losses

        return losses.held, self.direction


def check_loss_argument(loss: Any) -> Loss:
    """`loss` itself if it has the members of :class:`Loss`, with sound constants."""
    if isinstance(loss, type) or not isinstance(loss, Loss):
        raise InvalidArgument(
            f"loss={shown(loss)} must have value, gradient, smoothness, minimum and dim, "
            "such as mbsim.losses.Quadratic(eigenvalues)"
        )
    check_integer("loss.dim", loss.dim, minimum=1)
    check_number("loss.smoothness", loss.smoothness, above=0)
    check_number("loss.minimum", loss.minimum)
    return loss


def __getattr__(name: str) -> NoReturn:
    raise no_such_name("mbsim.losses", name)
