r"""Formulas: an expression with a name and a source, that can be printed and evaluated.

A formula is a SymPy expression in the symbols of :data:`~mbsim.theory.quantities.QUANTITIES` and in
abbreviations of them. Its LaTeX and its numbers both come from that one expression. The numbers are
computed by walking the expression (:func:`numbers_of`), not by generated code, so that powers such
as :math:`q^b` and :math:`1 - q^b` keep their digits where the textbook form loses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import sympy
from numpy.typing import ArrayLike
from sympy.printing.pretty.pretty_symbology import pretty_symbol
from sympy.printing.str import StrPrinter

from mbsim._shared.arrays import Array
from mbsim.errors import InvalidArgument, shown
from mbsim.theory.quantities import (
    ABBREVIATIONS,
    checked_values,
    definitions_in,
    filled,
    quantities_in,
    symbols,
)

__all__ = ["Formula"]


class Extreme(sympy.Function):  # type: ignore[misc]
    """The smallest or largest argument; SymPy's own compare theirs, which can take forever."""

    word = ""

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        call = rf"\{self.word}\left({', '.join(map(printer.doprint, self.args))}\right)"
        return call if exp is None else f"{call}^{{{exp}}}"

    def _sympystr(self, printer: Any) -> str:
        return f"{self.word}({', '.join(map(printer.doprint, self.args))})"


class Min(Extreme):
    word = "min"


class Max(Extreme):
    word = "max"


class _Numbers:
    """The numbers of expressions for given values, each subexpression computed once.

    Near 1 a float keeps few digits of what matters. So an expression is known by its distance from
    1, too, and log x = log1p(x − 1), x^e = exp(e log x), x^e − 1 = expm1(e log x). With these q^b,
    1 − q^b and (1 − q^b)^(m−1) are right to about 1e-13 for p from 1e-12 up and b to 1e6.
    """

    def __init__(self, known: Mapping[sympy.Symbol, Any]) -> None:
        self._known: dict[sympy.Basic, Any] = dict(known)

    def value(self, node: sympy.Expr) -> Any:
        """The number, or array of numbers, of an expression."""
        if node not in self._known:
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: sympy.Expr) -> Any:
        if node in ABBREVIATIONS:
            return self.value(ABBREVIATIONS[node])
        if isinstance(node, (sympy.Number, sympy.NumberSymbol)):
            return np.float64(float(node))
        if _is_power(node):
            return np.exp(self.log(node))
        if isinstance(node, sympy.log):
            return self.log(node.args[0])
        if isinstance(node, sympy.Sum):
            return self._binomial_mean(node)
        if (others := _beside_one(node)) and len(others) == 1:
            sign, z = others[0].as_coeff_Mul()
            if sign == -1:
                return -self.less_one(z)
        if node.func not in _OPERATIONS:
            raise InvalidArgument(f"expression has a part that is not a real number: {shown(node)}")
        return reduce(_OPERATIONS[node.func], map(self.value, node.args))

    def less_one(self, node: sympy.Expr) -> Any:
        """An expression minus 1."""
        if node in ABBREVIATIONS:
            return self.less_one(ABBREVIATIONS[node])
        if _is_power(node):
            return np.expm1(self.log(node))
        if others := _beside_one(node):
            return reduce(np.add, map(self.value, others))
        return self.value(node) - 1

    def log(self, node: sympy.Expr) -> Any:
        """The logarithm of an expression; of a power, without forming it."""
        if node in ABBREVIATIONS:
            return self.log(ABBREVIATIONS[node])
        if isinstance(node, (sympy.Pow, sympy.exp)):
            exponent = self.value(node.exp)
            return np.where(exponent == 0, 0.0, exponent * self.log(node.base))  # 0^0 = 1
        x = self.value(node)
        return np.where(np.abs(x - 1) < 0.5, np.log1p(self.less_one(node)), np.log(x))

    def _binomial_mean(self, node: sympy.Sum) -> Any:
        """Σ_{k<b} P(K = k) f(k), K ~ Binomial(b, p): the only sum that a formula may contain."""
        ((k, _, _),) = node.limits
        b, p, q = symbols("micro_batch_size", "probability", "q")
        weight = {sympy.binomial(b, k), p**k, q ** (b - k)}
        f = sympy.Mul(*(factor for factor in node.function.args if factor not in weight))
        needed = list({b, p, *f.free_symbols} - {k})

        def mean(*setting: float) -> Any:
            here = dict(zip(needed, setting, strict=True))
            counts, weights = _binomial(int(here[b]), here[p])
            inside = counts < here[b]
            values = _Numbers({**here, k: counts[inside]}).value(f)
            return (weights[inside] * values).sum()

        return np.vectorize(mean, otypes=[np.float64])(*map(self.value, needed))


_OPERATIONS: dict[type[sympy.Basic], Callable[..., Any]] = {
    sympy.Add: np.add,
    sympy.Mul: np.multiply,
    sympy.Pow: np.power,
    Min: np.minimum,
    Max: np.maximum,
}


def _is_power(node: sympy.Expr) -> bool:
    """Whether the exponent varies: then the base may be close to 1, and the exponent large."""
    return isinstance(node, sympy.exp) or (
        isinstance(node, sympy.Pow) and bool(node.exp.free_symbols)
    )


def _beside_one(node: sympy.Expr) -> list[sympy.Expr]:
    """The other terms of a sum that has a 1 among them."""
    terms = list(node.args) if isinstance(node, sympy.Add) else []
    if sympy.S.One not in terms:
        return []
    terms.remove(sympy.S.One)
    return terms


def _binomial(b: int, p: float) -> tuple[Array, Array]:
    """The counts around the mode of Binomial(b, p), and their probabilities.

    Products of exact ratios from the mode outwards, so small probabilities keep their digits. What
    lies further off than 40 standard deviations and 200 has a probability below e^-300 (Bernstein).
    """
    mode = min(b, int((b + 1) * p))
    reach = 200 + int(40 * np.sqrt(b * p * (1 - p)))
    counts = np.arange(max(0, mode - reach), min(b, mode + reach) + 1, dtype=np.float64)
    ratios = (b - counts[:-1]) * p / ((counts[:-1] + 1) * (1 - p))
    start = mode - int(counts[0])
    below = np.cumprod(1 / ratios[:start][::-1])[::-1]
    above = np.cumprod(ratios[start:])
    weights = np.concatenate([below, [1.0], above])
    return counts, weights / weights.sum()


def numbers_of(expression: sympy.Expr, known: Mapping[sympy.Symbol, Array]) -> Array:
    """The numbers of an expression; what is not finite is the caller's to judge."""
    with np.errstate(all="ignore"):
        return np.asarray(_Numbers(known).value(expression), np.float64)


# ------------------------------------------------------------------------------------- formulas


class _Text(StrPrinter):  # type: ignore[misc]
    """Plain text with Greek letters, for terminals."""

    def _print_Symbol(self, symbol: sympy.Symbol) -> str:  # noqa: N802 (SymPy's naming)
        return str(pretty_symbol(symbol.name))

    def _print_Float(self, number: sympy.Float) -> str:  # noqa: N802
        return f"{float(number):.6g}"


def _for_display(node: sympy.Basic) -> sympy.Basic:
    """The same with √x/√y written as √(x/y): SymPy takes roots of positive symbols apart.

    Nothing is evaluated: what a user typed is shown as it is.
    """
    if not isinstance(node, (sympy.Add, sympy.Mul, sympy.Pow, sympy.Function, sympy.Rel)):
        return node
    parts = [_for_display(part) for part in node.args]
    roots = [x for x in parts if isinstance(x, sympy.Pow) and x.exp in (_HALF, -_HALF)]
    if isinstance(node, sympy.Mul) and len(roots) > 1:
        squares = (x.base if x.exp == _HALF else 1 / x.base for x in roots)
        inside = sympy.Mul(*squares, evaluate=False)
        parts = [x for x in parts if x not in roots]
        parts.append(sympy.Pow(inside, _HALF, evaluate=False))
        if len(parts) == 1:
            return parts[0]
    return node.func(*parts, evaluate=False)


_HALF = sympy.Rational(1, 2)


def as_latex(expression: sympy.Basic) -> str:
    """An expression or a relation as LaTeX."""
    return _printed(sympy.latex, expression)


@lru_cache(maxsize=256)  # a verdict says its bound, and a bound is held against many runs
def as_text(expression: sympy.Basic) -> str:
    """An expression or a relation as one line of plain text."""
    return _printed(_Text().doprint, expression)


def _printed(printer: Callable[[sympy.Basic], str], expression: sympy.Basic) -> str:
    try:
        return str(printer(_for_display(expression)))
    except (ArithmeticError, RecursionError, ValueError):
        # SymPy's printers calculate, and a contrived formula of a user can make that fail.
        return "(SymPy cannot print this)"


@dataclass(frozen=True, kw_only=True)
class Formula:
    """An expression with a name and a source, that can be printed and evaluated.

    Args:
        name: what it is, for tables and messages.
        expression: SymPy, in the symbols of :data:`QUANTITIES` and :data:`ABBREVIATIONS`.
        source: the section of the theory page, and the paper's corresponding statement.

    >>> import sympy
    >>> Formula(name="noise of a mean", expression=sympy.Symbol("s", positive=True) ** 2,
    ...         source="theory page, section 2").evaluate(sigma=2.0, micro_batch_size=[1, 4])
    array([4., 1.])
    """

    name: str
    expression: sympy.Expr
    source: str

    def __post_init__(self) -> None:
        if not isinstance(self.expression, sympy.Expr):
            raise InvalidArgument(
                f"expression={shown(self.expression)} must be a SymPy expression; "
                "mbsim.theory.formula_bound makes one from text"
            )
        quantities_in(self.parts)

    @property
    def parts(self) -> tuple[sympy.Basic, ...]:
        """Everything here that has symbols."""
        return (self.expression,)

    @property
    def names(self) -> tuple[str, ...]:
        """The code names that :meth:`evaluate` takes."""
        return tuple(quantity.name for quantity in quantities_in(self.parts))

    @property
    def definitions(self) -> dict[sympy.Symbol, sympy.Expr]:
        """The abbreviations used, and what they stand for."""
        return definitions_in(self.parts)

    def picked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`evaluate` takes, out of values that may be more, such as a whole setting."""
        return {name: values[name] for name in self.names}

    def evaluate(self, known: Any = None, /, **values: ArrayLike) -> float | Array:
        """The formula's numbers, in float64.

        Args:
            known: where quantities that are not among the `values` come from: a
                :class:`mbsim.Problem`, what :func:`mbsim.quantities` gives, or any mapping.
            **values: quantities in :attr:`names`, by code name or by the paper's letter (``eta`` or
                ``η``); numbers or arrays, which are broadcast against each other.

        Returns:
            A float if all values are numbers, else an array of the broadcast shape.

        Raises:
            InvalidArgument: for missing and unknown names, for values that are not finite or out
                of range, for shapes that do not fit, and where the formula itself is not finite.
        """
        numbers = checked_values(self.name, self.names, filled(self.names, known, values))
        result = np.broadcast_arrays(numbers_of(self.expression, numbers), *numbers.values())[0]
        result = result.copy()
        for at in map(tuple, np.argwhere(~np.isfinite(result))[:1]):
            where = ", ".join(
                f"{name}={array[at]:g}"
                for name, array in zip(self.names, numbers.values(), strict=True)
            )
            raise InvalidArgument(f"{self.name} is {result[at]} at {where}; it must be finite")
        return float(result) if result.ndim == 0 else result

    @property
    def value(self) -> float:
        """The number, where nothing is left to fill in."""
        if self.names:
            raise InvalidArgument(
                f"{self.name} has no value before {', '.join(self.names)} are given; "
                "use evaluate(...)"
            )
        return float(self.evaluate())

    def latex(self) -> str:
        """The expression in LaTeX, abbreviations kept (see :attr:`definitions`)."""
        return as_latex(self.expression)

    def _statement(self) -> list[str]:
        """The lines of LaTeX that say it, before its abbreviations are explained."""
        return [self.latex()]

    def _repr_latex_(self) -> str:
        notation = (f"{sympy.latex(s)} = {as_latex(d)}" for s, d in self.definitions.items())
        lines = " \\\\\n".join(f"& {line}" for line in (*self._statement(), *notation))
        return f"$$\\begin{{aligned}}\n{lines}\n\\end{{aligned}}$$"

    def __str__(self) -> str:
        return as_text(self.expression)
