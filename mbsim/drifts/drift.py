r"""The drift of a step: gradient norm r to progress A(r) and second moment M(r).

With g the gradient, r = ‖g‖, e = g/r and u the update of one step,

.. math:: A(r) = E\langle u, e\rangle, \qquad M(r) = E\|u\|^2 .

They decide what a run does: by smoothness E L(w − ηu) ≤ L(w) − η(r A(r) − (ηL/2) M(r)). A
:class:`Drift` gives both at every r, each with the error that it has: from a closed form, by
quadrature over the law of a micro-batch (:mod:`mbsim.drifts.law`), or from sampled steps
(:mod:`mbsim.drifts.steps`), in this order of preference. The price does not depend on the
dimension. Source: the theory page, sections 6 to 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike

from mbsim import plots
from mbsim._shared import tables
from mbsim._shared.arrays import Array
from mbsim._shared.meant import answering
from mbsim._shared.seeds import seed_sequence
from mbsim.clipping import Rule, SmallestNorm
from mbsim.drifts import certificate
from mbsim.drifts import floor as floors
from mbsim.drifts.curve import MOST_NODES, Known
from mbsim.drifts.sources import DriftValues, source_of, tail_of
from mbsim.errors import InvalidArgument, check_array, check_integer, check_number, divisors, shown
from mbsim.methods import Method, MicroBatchClipping, check_method
from mbsim.problems.noise import why_no_means
from mbsim.problems.problem import Problem, check_problem
from mbsim.problems.setting import Setting
from mbsim.statistics import t_quantile

__all__ = ["Drift", "DriftValues", "drift", "drifts"]

# What a drift draws, and what it is called.
_QUANTITIES = {
    "progress": "progress of a step, A(r)",
    "second_moment": "second moment of a step, M(r)",
    "gain": "gain of a step, r A − (ηL/2) M",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Drift(Known):
    """A(r) and M(r) of a problem, a method and a batch size.

    Made by :func:`drift`; or by hand, from any source of values. Its attributes are those of
    :class:`~mbsim.drifts.curve.Known`.
    """

    def at(self, grad_norm: ArrayLike, *, relative_error: float | None = None) -> DriftValues:
        """A(r) and M(r) with their errors.

        Args:
            grad_norm: r ≥ 0, a number or an array of any shape.
            relative_error: what to aim at, for both; that of the drift unless told. Of a sample it
                is the standard error that is held against it.

        Returns:
            The values. Where `delivered` is False the error is larger than asked for; so it is
            near a root of A, for one.

        Raises:
            InvalidArgument: for gradient norms that are negative, not finite or no numbers.
        """
        r = check_array("grad_norm", grad_norm, finite=True)
        if r.min() < 0:
            raise InvalidArgument(f"grad_norm={shown(grad_norm)} must be at least 0")
        aim = self.relative_error
        if relative_error is not None:
            aim = check_number("relative_error", relative_error, above=0, below=1)
        found = self.source.values(r.ravel(), aim)
        return DriftValues(**{name: array.reshape(r.shape) for name, array in vars(found).items()})

    def progress(self, grad_norm: ArrayLike) -> Any:
        """A(r) = E⟨u, e⟩: a float for a number, an array for an array; see :meth:`at`."""
        return _plain(self.at(grad_norm).progress)

    def second_moment(self, grad_norm: ArrayLike) -> Any:
        """M(r) = E‖u‖²: a float for a number, an array for an array; see :meth:`at`."""
        return _plain(self.at(grad_norm).second_moment)

    def plot(
        self,
        ax: plots.Axes | None = None,
        *,
        quantity: str = "progress",
        step_size: float | None = None,
        grad_norm: ArrayLike | None = None,
        **style: Any,
    ) -> plots.Axes:
        """A(r), M(r) or, with a step size, what a step gains, against the gradient norm r.

        The band is the 99 % interval of a sample with the numerical error; where A and M are exact
        it has no width. The gain is rA − (ηL/2)M; a dot marks the floor, where it is 0.

        Args:
            ax: where to draw; a new figure unless told.
            quantity: "progress", "second_moment" or "gain".
            step_size: η, for the gain.
            grad_norm: r, one-dimensional; from 0 to √(2LΔ), the longest gradient at the start,
                unless told.
            **style: properties of the line, such as ``color`` or ``label``.

        Raises:
            InvalidArgument: for another quantity, a gain without a step size, or bad gradient
                norms.
        """
        if quantity not in _QUANTITIES:
            known = ", ".join(_QUANTITIES)
            raise InvalidArgument(f"quantity={shown(quantity)} must be one of {known}")
        if grad_norm is None:
            far = min(math.sqrt(2 * self.smoothness * self.initial_gap), self.largest_grad_norm)
            grad_norm = np.linspace(0, far if 0 < far < math.inf else self.noise_size or 1.0, 65)
        at = self.at(check_array("grad_norm", grad_norm, ndim=1))
        if quantity == "gain":
            η = check_number("step_size", step_size, above=0)
            half = η * self.smoothness / 2
            y, standard, numerical = at.descent(half)
        else:
            y, standard, numerical = (
                getattr(at, quantity + end) for end in ("", "_standard_error", "_numerical_error")
            )
        quantile = [t_quantile(df, 0.005) if math.isfinite(df) else 0.0 for df in at.df]
        reach = np.array(quantile) * standard + numerical
        sure = ", 99 % interval" if np.any(standard) else ""
        with plots.on(ax) as axes:
            look = {"label": str(self.settings.get("method", "")), **style}
            plots.curve(axes, at.grad_norm, y, (y - reach, y + reach), band=True, **look)
            if quantity == "second_moment" and np.all(y > 0):
                axes.set_yscale("log")
            else:
                axes.axhline(0, color="0.3", linewidth=0.8)
            if quantity == "gain":
                root = self.floor(step_size=η)
                if root <= at.grad_norm.max():
                    axes.plot([root], [0], "o", color=axes.lines[-2].get_color(), gid="floor")
            axes.set(xlabel="gradient norm r = ‖∇L‖", ylabel=_QUANTITIES[quantity] + sure)
            plots.name_lines(axes)
        return axes

    @property
    def largest_step_size(self) -> float:
        """η beyond which long gradients grow, and there is neither floor nor certificate.

        Infinite where that is not known, as for an update that does not grow with the gradient.
        """
        return certificate.largest_step_size(self)

    def __str__(self) -> str:
        shown_ = ("batch_size", "noise", "probability", "norm_ratio")
        lines = [(name.replace("_", " "), f"{x:.4g}" if isinstance(x, float) else str(x))
                 for name, x in self.settings.items() if name in shown_]  # fmt: skip
        if math.isfinite(self.largest_step_size):
            lines.append(("usable", f"step sizes below {self.largest_step_size:.4g}"))
        ask = ".progress(r), .second_moment(r), .floor(step_size=…), .certify(step_size=…, steps=…)"
        lines.append(("ask it", f"{ask}, .plot()"))
        title = f"Drift of {self.settings.get('method', 'a step')}"
        return "\n".join([title, *(f"  {row}" for row in tables.as_text(lines))])

    __repr__ = __str__

    # Methods that fill modules of their own.
    floor = floors.floor
    floor_interval = floors.floor_interval
    tuned_step_size = certificate.tuned_step_size
    certify = certificate.certify


@runtime_checkable
class HasDrift(Protocol):
    """What has a drift of its own, as measured gradients have."""

    def drift(
        self,
        method: Method,
        *,
        batch_size: int,
        rng: int | SeedSequence | Generator = 0,
        relative_error: float = 1e-3,
        draws: int = 2**20,
    ) -> Drift:
        """That of a method; see :func:`drift`."""
        ...


@answering
def drift(
    problem: Problem | HasDrift,
    method: Method,
    *,
    batch_size: int,
    rng: int | SeedSequence | Generator = 0,
    relative_error: float = 1e-3,
    draws: int = 2**20,
) -> Drift:
    r"""The drift of one step: A(r) = E⟨u, e⟩ and M(r) = E‖u‖² for every gradient norm r.

    Where nothing is clipped (SGD; the smallest norm of one micro-batch) A and M are written down
    (theory page, section 4). For the smallest norm, a quantile of the norms, a fixed threshold and
    the unit norm they follow from the law of a single micro-batch (section 7), which is integrated
    numerically for the noise laws of the library, and for a law and a rule of your own that say
    what is needed (:class:`mbsim.problems.noise.Facts`, :class:`mbsim.clipping.Rule`).
    Everything else is sampled, step by step.

    Args:
        problem: noise, draggers and dimensions; its loss gives L and Δ. Or what has a method
            ``drift`` of its own, such as :class:`mbsim.MeasuredProblem`.
        method: the method, with its micro-batch size.
        batch_size: B.
        rng: what samples are drawn from, where there are any.
        relative_error: what values aim at (:meth:`Drift.at` says when they miss it).
        draws: the most micro-batches sampled for one value.

    Returns:
        A :class:`Drift`.

    Raises:
        InvalidArgument: for arguments that break a rule, and for noise that draws whole vectors:
            its law along the gradient and across it is not known.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(64)), noise=mbsim.noise.Gaussian(sigma=1.0),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    ...     benign_dim=32, start=np.ones(64))
    >>> sgd = drift(problem, mbsim.SGD(), batch_size=64)
    >>> sgd.progress([0.5, 1.0]), round(sgd.second_moment(1.0), 12)         # q r, and K_g + K_σ
    (array([0.475, 0.95 ]), 1.5430859375)
    >>> clip = drift(problem, mbsim.MicroBatchClipping(8), batch_size=64)
    >>> clip.at(1.0).method.item(), round(clip.progress(1.0), 3), round(clip.second_moment(1.0), 3)
    ('quadrature', 0.692, 0.541)
    """
    if not isinstance(problem, Problem) and isinstance(problem, HasDrift):
        return problem.drift(
            method, batch_size=batch_size, rng=rng, relative_error=relative_error, draws=draws
        )
    problem, method = check_problem(problem), check_method(method)
    setting = Setting(problem, method, check_integer("batch_size", batch_size, minimum=1))
    b = setting.micro_batch_size
    if reason := why_no_means(problem.noise, "a drift"):
        instead = "simulation, and sweet_spot by 'final' or 'simulation', do without"
        raise InvalidArgument(f"{reason}; {instead}")
    aim = check_number("relative_error", relative_error, above=0, below=1)
    draws = check_integer("draws", draws, minimum=1)
    seed = seed_sequence(rng)
    source = source_of(setting, draws, seed)
    return Drift(
        source=source,
        most_nodes=min(MOST_NODES, getattr(source, "most_norms", MOST_NODES)),
        smoothness=problem.smoothness,
        initial_gap=problem.initial_gap,
        tail=tail_of(setting, draws, seed),
        largest_grad_norm=getattr(problem.loss, "largest_grad_norm", math.inf),
        relative_error=aim,
        scale=problem.noise.sigma / math.sqrt(problem.benign_dim * b),
        noise_size=problem.noise.sigma,
        settings=setting.quantities(),
    )


@answering
def drifts(
    problem: Problem | HasDrift,
    *,
    batch_size: int,
    rule: Rule | None = None,
    rng: int | SeedSequence | Generator = 0,
    **how: Any,
) -> dict[int, Drift]:
    """The drift for every micro-batch size: the divisors of the batch size, each with its own.

    Args:
        problem: as for :func:`drift`.
        batch_size: B.
        rule: the clipping rule; :class:`~mbsim.clipping.SmallestNorm` if none is given.
        rng: as for :func:`drift`.
        **how: the other arguments of :func:`drift`.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(8)), noise=mbsim.noise.TwoPoint(rare=0.1),
    ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0), benign_dim=4,
    ...     start=np.ones(8))
    >>> {b: round(one.progress(0.1), 3) for b, one in drifts(problem, batch_size=4).items()}
    {1: -0.177, 2: -0.073, 4: 0.095}
    """
    seed, rule = seed_sequence(rng), SmallestNorm() if rule is None else rule
    sizes = divisors(check_integer("batch_size", batch_size, minimum=1))
    methods = {b: MicroBatchClipping(b, rule=rule) for b in sizes}
    return {
        b: drift(problem, method, batch_size=batch_size, rng=seed, **how)
        for b, method in methods.items()
    }


def _plain(array: Array) -> Any:
    return float(array) if array.ndim == 0 else array
