r"""Bounds: formulas that say something about a run or a step, if their assumptions hold.

Tuned step sizes, the bounds at them, biases, constants and the order in T are derived from the
expression of a bound, never typed a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import sympy
from numpy.typing import ArrayLike, NDArray

from mbsim._shared.arrays import Mask
from mbsim.errors import InvalidArgument, shown
from mbsim.theory.formula import Formula, as_latex, as_text, numbers_of
from mbsim.theory.parser import parse_formula
from mbsim.theory.quantities import QUANTITIES, checked_values, filled, symbols

__all__ = ["Bound", "Condition", "Subject", "formula_bound", "tuned_bound", "tuned_step_size"]

η, T = symbols("step_size", "steps")

KINDS = {
    "upper bound": ("≤", r"\le"),
    "lower bound": ("≥", r"\ge"),
    "limit": ("→", r"\to"),
    "estimate": ("≈", r"\approx"),
}
_COMPARISONS = {"<": np.less, "<=": np.less_equal, ">=": np.greater_equal}


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
    OVER_THRESHOLD = (
        "the progress A(r) of a step over the mean threshold",
        r"\frac{A(r)}{\mathbb{E}\, \tau}",
    )
    LEVEL = ("the gradient norm where runs with ever shorter steps stop", r"r_{\infty}")
    NORM_SPREAD = ("the spread of a micro-batch's benign norm", r"\bar{\varsigma}")

    def __init__(self, sentence: str, latex: str) -> None:
        self.sentence = sentence
        self.latex = latex


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a setting must satisfy for a bound to hold.

    Args:
        name: the code name of the quantity that is limited.
        comparison: "<", "<=" or ">=".
        limit: an expression as in a :class:`~mbsim.theory.formula.Formula`.
        sentence: what the condition is for.
    """

    name: str
    comparison: str
    limit: sympy.Expr
    sentence: str

    def __post_init__(self) -> None:
        check_choice("name", self.name, tuple(QUANTITIES))
        check_choice("comparison", self.comparison, tuple(_COMPARISONS))

    @property
    def relation(self) -> sympy.Rel:
        """It as SymPy's relation, which can be printed."""
        # As given: to see whether it always holds could take SymPy forever.
        return sympy.Rel(*symbols(self.name), self.limit, self.comparison, evaluate=False)


@dataclass(frozen=True, kw_only=True)
class Bound(Formula):
    """A formula that says something about a run or a step, if its assumptions hold.

    :meth:`evaluate` gives the formula's number whether or not the conditions hold; it is a bound
    only where :meth:`holds` says so.

    Args:
        name: what it is called in tables and messages.
        expression: the right side (see :class:`~mbsim.theory.formula.Formula`).
        source: the section of the theory page, and the paper's corresponding statement.
        kind: "upper bound", "lower bound", "limit" (what is left of an upper bound as the step
            size goes to 0 and the horizon to infinity) or "estimate" (no inequality is claimed).
        subject: the left side.
        assumptions: what is assumed, a sentence each.
        conditions: what the settings must satisfy besides.

    >>> Bound(name="a certificate", kind="upper bound", expression=sympy.Float(0.25),
    ...       source="theory page, section 8").value
    0.25
    """

    kind: str
    subject: Subject = Subject.GRADIENT
    assumptions: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, tuple(KINDS))
        super().__post_init__()

    @property
    def parts(self) -> tuple[sympy.Basic, ...]:
        """The expression, and the relations of the conditions."""
        return (self.expression, *(condition.relation for condition in self.conditions))

    def holds(self, known: Any = None, /, **values: ArrayLike) -> bool | Mask:
        """Whether the settings satisfy the conditions; :meth:`evaluate` does not ask.

        Args:
            known: as for :meth:`evaluate`.
            **values: as for :meth:`evaluate`.

        Returns:
            A bool if all values are numbers, else an array of the broadcast shape.

        Raises:
            InvalidArgument: for missing and unknown names, values that are not finite or out of
                range, and shapes that do not fit.

        >>> from mbsim.theory import sgd_bound
        >>> sgd_bound().holds(initial_gap=1, smoothness=1, step_size=[0.1, 2], steps=100, sigma=1,
        ...                   batch_size=64, probability=0.05, norm_ratio=20, coherence=0)
        array([ True, False])
        """
        numbers = checked_values(self.name, self.names, filled(self.names, known, values))
        result = np.ones(np.broadcast_shapes(*(array.shape for array in numbers.values())), bool)
        for condition in self.conditions:
            compare = _COMPARISONS[condition.comparison]
            (limited,) = symbols(condition.name)
            result &= compare(numbers[limited], numbers_of(condition.limit, numbers))
        return bool(result) if result.ndim == 0 else result

    def evaluate(self, known: Any = None, /, **values: ArrayLike) -> float | NDArray[np.float64]:
        """As :meth:`Formula.evaluate`; where there is no number, the broken condition is named.

        >>> import mbsim
        >>> from mbsim.theory import sgd_bound
        >>> problem = mbsim.Problem(
        ...     loss=mbsim.losses.Quadratic(np.ones(8)), noise=mbsim.noise.Gaussian(1.0),
        ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20), benign_dim=4,
        ...     start=np.ones(8))
        >>> round(sgd_bound().evaluate(problem, batch_size=64, step_size=0.01, steps=1000), 4)
        0.8456
        >>> round(sgd_bound().evaluate(problem, B=64, eta=0.01, T=1000), 4)
        0.8456
        """
        values = filled(self.names, known, values)
        try:
            return super().evaluate(**values)
        except InvalidArgument as error:
            if set(values) == set(self.names):
                for condition in self.conditions:
                    alone = replace(self, conditions=(condition,))
                    if not np.all(alone.holds(**alone.picked(values))):
                        raise InvalidArgument(f"{error}: {condition.sentence}") from None
            raise

    @property
    def tuned(self) -> Bound:
        """The bound at its best step size: :func:`tuned_bound`."""
        return tuned_bound(self)

    @property
    def bias(self) -> Formula:
        """The limit of the tuned bound as T grows."""
        return self._of_tuned("bias", _leading_terms(self)[0])

    @property
    def constant(self) -> Formula:
        """The factor of :attr:`order` in the tuned bound."""
        return self._of_tuned("constant", _leading_terms(self)[1])

    @property
    def order(self) -> sympy.Expr:
        """How the tuned bound approaches its bias as T grows."""
        return _leading_terms(self)[2]

    def _of_tuned(self, what: str, expression: sympy.Expr) -> Formula:
        return Formula(name=f"{what} of {self.name}", expression=expression, source=self.source)

    def latex(self) -> str:
        """Both sides in LaTeX, abbreviations kept (see :attr:`definitions`)."""
        return f"{self.subject.latex} {KINDS[self.kind][1]} {super().latex()}"

    def _statement(self) -> list[str]:
        return [self.latex(), *(rf"\text{{if }} {as_latex(part)}" for part in self.parts[1:])]

    def __str__(self) -> str:
        right = ", if ".join(map(as_text, self.parts))
        return f"{self.subject.sentence} {KINDS[self.kind][0]} {right}"

    __repr__ = __str__


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise InvalidArgument(f"{name}={shown(value)} must be one of {listed}")


def formula_bound(
    text: str,
    *,
    kind: str = "upper bound",
    name: str | None = None,
    assumptions: tuple[str, ...] = (),
) -> Bound:
    """A user's formula for the average of E‖∇L(w_t)‖² over the steps, as a Bound.

    Args:
        text: as for :func:`~mbsim.theory.parser.parse_formula`.
        kind: what it claims to be: "upper bound", "lower bound", "limit" or "estimate".
        name: what tables and messages call it; the text itself unless told.
        assumptions: what it assumes, a sentence each.

    >>> clean = formula_bound("2*sqrt(2*Delta*L*sigma**2/(B*T))")
    >>> setting = dict(initial_gap=1, smoothness=1, sigma=1, batch_size=2)
    >>> clean.evaluate(**setting, steps=[100, 400]).round(9)
    array([0.2, 0.1])
    """
    return Bound(
        name=text if name is None else name,
        expression=parse_formula(text),
        kind=kind,
        assumptions=assumptions,
        source="entered by the user",
    )


# --------------------------------------------------------------------- tuned step sizes


@cache
def _lowest_point() -> tuple[tuple[sympy.Symbol, ...], sympy.Expr, sympy.Expr]:
    """Where (a x² + b x + c)/(x − d) is smallest beyond its pole, and its value there.

    Where its derivative is 0, a ratio equals the ratio of its two parts' derivatives. The root is
    at least 2d.
    """
    x, *letters = (sympy.Dummy(letter, positive=True) for letter in "xabcd")
    quadratic, linear, constant, pole = letters
    slope = 2 * quadratic * x + linear
    roots = sympy.roots(slope * (x - pole) - (quadratic * x**2 + linear * x + constant), x)
    (lowest,) = (root for root in roots if root.is_positive)
    return tuple(letters), lowest, sympy.expand(slope.subs(x, lowest))


@cache
def _stationary(bound: Bound) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """1/η where a bound is smallest, its value there, and 1/η at its pole."""
    x = sympy.Dummy("x", positive=True)
    parts = sympy.fraction(sympy.together(bound.expression.subs(η, 1 / x)))
    polynomials = [sympy.Poly(part, x) for part in parts if part.is_polynomial(x)]
    if [polynomial.degree() for polynomial in polynomials] != [2, 1]:
        raise InvalidArgument(f"the bound {bound.name!r} has no best step size in closed form")
    (*above, leading, below) = (part for each in polynomials for part in each.all_coeffs())
    values = [sympy.factor(part / leading) for part in (*above, -below)]
    letters, lowest, value = _lowest_point()
    meaning = dict(zip(letters, values, strict=True))
    return lowest.subs(meaning), value.subs(meaning), values[-1]


def tuned_step_size(bound: Bound) -> Formula:
    """The step size at which a bound is smallest, found by SymPy.

    Args:
        bound: a bound with a step size in it, such as :func:`sgd_bound`. Whether it allows this
            step size is what :meth:`Bound.holds` of its :func:`tuned_bound` says.

    Raises:
        InvalidArgument: where there is none in closed form.

    >>> from mbsim.theory import sgd_bound
    >>> str(tuned_step_size(sgd_bound()))
    'sqrt(2*Δ/(K_σ*L*T))/σ'
    """
    return Formula(
        name=f"tuned step size for {bound.name}",
        expression=1 / _stationary(bound)[0],
        source=bound.source,
    )


@cache
def tuned_bound(bound: Bound) -> Bound:
    """A bound at its tuned step size; conditions on the step size become conditions on the horizon.

    A condition that the tuned step size always satisfies is dropped: sharper forms keep none.
    Quantities measured along a run, such as mean_weight, must hold for the run at this step size.

    >>> from mbsim.theory import clean_sgd_bound
    >>> str(tuned_bound(clean_sgd_bound()))
    'the average of E‖∇L(w_t)‖² over the steps ≤ 2*σ*sqrt(2*Δ*L/(B*T)), if T >= 2*B*Δ*L/σ**2'
    """
    inverse, smallest, pole = _stationary(bound)
    conditions = []
    for condition in bound.conditions:
        if condition.name != "step_size":
            conditions.append(condition)
        elif sympy.cancel(condition.limit * pole) != 1:
            ratio = condition.limit * inverse
            (horizon,) = sympy.solve(ratio - 1, T, check=False, simplify=False)
            why = "on a shorter horizon the tuned step is longer than the theorem allows"
            conditions.append(Condition(name="steps", comparison=">=", limit=horizon, sentence=why))
    return replace(
        bound, name=f"{bound.name}, tuned", expression=smallest, conditions=tuple(conditions)
    )


@cache
def _leading_terms(bound: Bound) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """(bias, constant, order): tuned, a bound is bias + constant · order + what is smaller."""
    y = sympy.Dummy("y", positive=True)
    in_y = bound.tuned.expression.subs(T, y**-2)
    bias = sympy.limit(in_y, y, 0, "+")
    constant, power = (in_y - bias).as_leading_term(y).as_coeff_exponent(y)
    return bias, constant, T ** (-power / 2)
