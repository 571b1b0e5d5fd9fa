r"""The theorems as formulas: SGD with draggers, adaptive micro-batch clipping, Table 1.

Every theorem is a :class:`Bound`: a SymPy expression with its kind, assumptions, conditions on the
step size and source. Tuned step sizes, what the bounds are at them, biases, constants and the order
in T are derived from those expressions, never typed a second time.

The paper states theorems of this form, but its printed constants were not available: all of these
are derived on the project's theory page, from the paper's four assumptions. Where a docstring below
says *proof*, the constants are better than the first ones found, and this is why they hold.

**The descent argument** that all rates share. Let r A(r) ≥ w (a r² − κ) and M(r) ≤ w (M₁r² + M₀)
with w = 1, or a weight that depends on the step. A2 gives E L(w_{t+1}) ≤ E L(w_t) − η E[r A] +
(η²L/2) E M, and A1 the sum of both sides over the steps: the w-weighted average of E r² is at most

.. math:: \frac{\Delta/(\eta T \bar w) + \eta L M_0/2 + \kappa}{a - \eta L M_1/2},
          \qquad \eta < 2a/(L M_1).

This is the *sharper* form of each theorem. The *plain* form replaces the denominator by a smaller
constant, which asks for a smaller step, and is easier to read. Tuning the sharper form over η needs
no condition on T, and for SGD it halves the constant: what is gained is worth the longer formula.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from html import escape
from typing import Any

import numpy as np
import sympy
from numpy.typing import ArrayLike, NDArray

from mbsim.errors import InvalidArgument, shown
from mbsim.theory.formula import (
    ABBREVIATIONS,
    Formula,
    as_latex,
    as_text,
    checked_values,
    definitions_in,
    numbers_of,
    specialised,
    symbols,
)

__all__ = [
    "Bound",
    "Condition",
    "Crossover",
    "Row",
    "Subject",
    "Table",
    "alignment_estimate",
    "bias_bound",
    "clean_sgd_bound",
    "clipping_bound",
    "clipping_concentrated_bound",
    "clipping_concentrated_drift_bound",
    "clipping_drift_bound",
    "crossover",
    "micro_batch_norm_ratio",
    "norm_spread_bound",
    "optimal_micro_batch_size",
    "second_moment_bound",
    "sgd_bound",
    "sgd_tuned_bound",
    "symmetric_bound",
    "table1",
    "tuned_bound",
    "tuned_step_size",
]

KINDS = {"upper bound": r"\le", "lower bound": r"\ge", "limit": r"\to", "estimate": r"\approx"}


class Subject(Enum):
    """What a bound is about: its left side, in words and in LaTeX."""

    GRADIENT = (
        "the average of E‖∇L(w_t)‖² over the steps",
        r"\frac{1}{T} \sum_{t<T} \mathbb{E}\, r_t^2",
    )
    WEIGHTED_GRADIENT = (
        "the average of E‖∇L(w_t)‖² over the steps, weighted by ω_t",
        r"\frac{\sum_t \mathbb{E}[\omega_t r_t^2]}{\sum_t \mathbb{E}\, \omega_t}",
    )
    PROGRESS = ("the progress A(r) of a step along the gradient", "A(r)")
    SECOND_MOMENT = ("the second moment M(r) of the update", "M(r)")
    BIAS = ("what no number of steps removes from the bound", r"\beta_b^2")
    ALIGNMENT = ("the alignment λ = E[cos φ_j min_i a_i]", r"\lambda")
    NORM_SPREAD = ("the spread ς̄ of a micro-batch's benign norm", r"\bar{\varsigma}")

    def __init__(self, sentence: str, latex: str) -> None:
        self.sentence = sentence
        self.latex = latex


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A relation that the settings must satisfy for a bound to hold, and why."""

    relation: sympy.Rel
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Bound(Formula):
    """A formula that says something about a run or a step, if its assumptions hold.

    Args:
        name: what it is called in tables and messages.
        expression: the right side (see :class:`~mbsim.theory.formula.Formula`).
        source: the section of the theory page, and the paper's corresponding statement.
        kind: "upper bound", "lower bound", "limit" (what is left of an upper bound as the step
            size goes to 0 and the horizon to infinity) or "estimate" (no inequality is claimed).
        subject: the left side.
        assumptions: what is assumed, a sentence each.
        conditions: what the settings must satisfy besides.

    >>> bound = Bound(name="a measured certificate", kind="upper bound", source="theory page, section 8",
    ...               expression=sympy.Float(0.25))
    >>> bound.value
    0.25
    """

    kind: str
    subject: Subject = Subject.GRADIENT
    assumptions: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, tuple(KINDS))
        super().__post_init__()

    def _parts(self) -> tuple[sympy.Basic, ...]:
        return (self.expression, *(condition.relation for condition in self.conditions))

    def holds(self, **values: ArrayLike) -> bool | NDArray[np.bool_]:
        """Whether the settings satisfy the conditions; :meth:`evaluate` does not ask.

        Args:
            **values: as for :meth:`evaluate`.

        Returns:
            A bool if all values are numbers, else an array of the broadcast shape.

        Raises:
            InvalidArgument: as :meth:`evaluate`, but for results that are not finite.

        >>> sgd_bound().holds(initial_gap=1, smoothness=1, step_size=[0.1, 2], steps=100, sigma=1,
        ...                   batch_size=64, probability=0.05, norm_ratio=20, coherence=0)
        array([ True, False])
        """
        known = checked_values(self.name, self.names, values)
        result = np.ones(np.broadcast_shapes(*(array.shape for array in known.values())), bool)
        for condition in self.conditions:
            compare = _COMPARISONS[condition.relation.func]
            result &= compare(*(numbers_of(side, known) for side in condition.relation.args))
        return bool(result) if result.ndim == 0 else result

    def latex(self) -> str:
        """Both sides in LaTeX, abbreviations kept (see :attr:`definitions`)."""
        return f"{self.subject.latex} {KINDS[self.kind]} {super().latex()}"

    def _statement(self) -> list[str]:
        conditions = (as_latex(condition.relation) for condition in self.conditions)
        return [self.latex(), *(rf"\text{{if }} {condition}" for condition in conditions)]

    def __str__(self) -> str:
        sign = {"upper bound": "≤", "lower bound": "≥", "limit": "→", "estimate": "≈"}[self.kind]
        conditions = "".join(f", if {as_text(c.relation)}" for c in self.conditions)
        return f"{self.subject.sentence} {sign} {as_text(self.expression)}{conditions}"


_COMPARISONS = {
    sympy.LessThan: np.less_equal,
    sympy.StrictLessThan: np.less,
    sympy.GreaterThan: np.greater_equal,
}


def _check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise InvalidArgument(f"{name}={shown(value)} must be one of {listed}")


# ------------------------------------------------------------------------------ what is assumed

_A1 = "A1: the loss is bounded below"
_A2 = "A2: the gradient of the loss is L-Lipschitz"
_A3 = "A3: examples are i.i.d. given the parameters; benign noise has mean 0 and variance σ²"
_A4 = (
    "A4: draggers are orthogonal to the gradient and to the noise, of norm c√(r² + σ²), "
    "with mean cosine γ between two of them"
)
_MODEL = (_A1, _A2, _A3, _A4)
_ALGORITHM_1 = "the rule is the smallest norm (Algorithm 1)"
_INCOHERENT = "the draggers are incoherent (γ = 0)"
_SYMMETRIC_ACROSS = "the noise across the gradient is symmetric given the noise along it"

_FORMS = ("plain", "sharper")

# The letters of the theory page, so that the theorems read as they do there.
Δ, L, η, T, r = symbols("initial_gap", "smoothness", "step_size", "steps", "grad_norm")
B, b, p, c, γ = symbols("batch_size", "micro_batch_size", "probability", "norm_ratio", "coherence")
σ, n, k = symbols("sigma", "benign_dim", "dragger_count")
q, m, s, s̃, λ0 = symbols("q", "m", "s", "stilde", "lambda_0")
