r"""Formulas: the theory page's notation, the numbers of a formula, and formulas from users.

A formula is a SymPy expression in the symbols of :data:`QUANTITIES` and in abbreviations of them,
:data:`ABBREVIATIONS`. Its LaTeX and its numbers both come from that one expression. The numbers are
computed by walking the expression (:func:`numbers_of`), not by generated code, so that powers such
as :math:`q^b` and :math:`1 - q^b` keep their digits where the textbook form loses them.

What a user may enter (:func:`parse_formula`), as a letter of the paper or under its code name:

=====================  ==========  =======================================================
code name              letter      meaning
=====================  ==========  =======================================================
``initial_gap``        ``Delta``   Δ, the loss at the start minus its lower bound
``smoothness``         ``L``       Lipschitz constant of the gradient
``step_size``          ``eta``     η
``steps``              ``T``       number of steps
``batch_size``         ``B``       examples in a mini-batch
``micro_batch_size``   ``b``       examples in a micro-batch
``micro_batches``      ``m``       micro-batches in a mini-batch, B/b
``probability``        ``p``       probability that an example is a dragger
(no code name)         ``q``       1 − p
``norm_ratio``         ``c``       ‖dragger gradient‖ / root-mean-square benign gradient norm
``coherence``          ``gamma``   γ, mean cosine between two draggers of one step
``sigma``              ``sigma``   σ, with σ² the variance of one example's noise
``benign_dim``         ``n``       dimension of the benign frame
=====================  ==========  =======================================================
"""

from __future__ import annotations

import ast
import numbers
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy
from numpy.typing import ArrayLike, NDArray
from sympy.printing.pretty.pretty_symbology import pretty_symbol
from sympy.printing.str import StrPrinter

from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_divides,
    check_finite,
    check_number,
    shown,
)

if TYPE_CHECKING:
    from mbsim.theory.bounds import Bound

__all__ = ["ABBREVIATIONS", "QUANTITIES", "Formula", "Quantity", "formula_bound", "parse_formula"]

Floats = NDArray[np.float64]


# ------------------------------------------------------------------------------------ notation


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A quantity with a name in code, a symbol, and the range of values that make sense for it.

    `whole` asks for whole numbers; the other rules are those of the range.
    """

    name: str
    symbol: sympy.Symbol
    meaning: str
    whole: bool = False
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None

    def checked(self, value: ArrayLike) -> Floats:
        """`value` as a finite float64 array within the range; the first that is not is named."""
        limits = {k: getattr(self, k) for k in ("above", "minimum", "below", "maximum")}
        if isinstance(value, numbers.Real):
            array = np.asarray(check_number(self.name, value, **limits))
        else:
            array = check_array(self.name, value)
            if array.ndim:
                check_finite(self.name, array)
            # The two ends stand for all: a range has no holes.
            for end in (array.min(), array.max()):
                check_number(self.name, end.item(), **limits)
        if self.whole and (broken := array[array != np.floor(array)]).size:
            raise InvalidArgument(f"{self.name}={shown(broken.flat[0])} must be a whole number")
        return array


def _symbol(name: str) -> sympy.Symbol:
    # Positive, although some may be 0 in numbers: the algebra may then take roots freely, and
    # every formula is continuous where a quantity reaches 0.
    return sympy.Symbol(name, positive=True)


def _quantity(name: str, symbol: str, meaning: str, **rules: Any) -> Quantity:
    return Quantity(name=name, symbol=_symbol(symbol), meaning=meaning, **rules)


_COUNT: dict[str, Any] = {"minimum": 1, "whole": True}
_SHARE: dict[str, Any] = {"minimum": 0, "maximum": 1}
_POSITIVE_SHARE: dict[str, Any] = {"above": 0, "maximum": 1}

# What a user's formula may contain: sections 1 and 2 of the theory page.
_SETTINGS = (
    _quantity("initial_gap", "Delta", "the loss at the start minus its lower bound", minimum=0),
    _quantity("smoothness", "L", "Lipschitz constant of the gradient", above=0),
    _quantity("step_size", "eta", "the step size", above=0),
    _quantity("steps", "T", "number of steps (a curve may be drawn through fractions)", minimum=1),
    _quantity("batch_size", "B", "examples in a mini-batch", **_COUNT),
    _quantity("micro_batch_size", "b", "examples in a micro-batch", **_COUNT),
    _quantity("probability", "p", "probability of a dragger", minimum=0, below=1),
    _quantity("norm_ratio", "c", "dragger norm over root-mean-square benign norm", minimum=0),
    _quantity("coherence", "gamma", "mean cosine between two draggers of one step", **_SHARE),
    _quantity("sigma", "sigma", "square root of one benign example's variance E‖ξ‖²", minimum=0),
    _quantity("benign_dim", "n", "dimension of the benign frame", **_COUNT),
)

# What the theorems need besides: properties of a run or of its drift.
_MEASURED = (
    _quantity("grad_norm", "r", "norm of the true gradient", above=0),
    _quantity("dragger_count", "k", "draggers in one micro-batch", minimum=0, whole=True),
    _quantity(
        "sigma_along",
        "sigma_e",
        "standard deviation of one example's noise along the gradient (isotropic noise: σ/√n)",
        minimum=0,
    ),
    _quantity(
        "capped_threshold",
        "v",
        "E min(τ, 3r/4), where τ is the smallest norm among the other micro-batches",
        minimum=0,
    ),
    _quantity(
        "aligned_share", "a", "E[cos φ 1{x ≥ 3r/4}], x the norm of one micro-batch", **_SHARE
    ),
    _quantity(
        "mean_weight",
        "omegabar",
        "at most (1/T) Σ E ω_t, the average along the run of ω = E min(τ, 3r/4)/r",
        above=0,
        maximum=0.75,
    ),
    _quantity(
        "alignment", "lambda", "at most E[cos φ_j min_i a_i] at every r visited", **_POSITIVE_SHARE
    ),
    _quantity("mean_cosine", "lambdabar", "at least E cos φ_j at every r visited", **_SHARE),
    _quantity(
        "norm_spread",
        "varsigmabar",
        "at least the standard deviation of a micro-batch's benign norm, whatever k and r",
        minimum=0,
    ),
    _quantity(
        "shortest_benign_share",
        "q_star",
        "at most E[1 − k/b] of the shortest micro-batch at every r visited",
        **_POSITIVE_SHARE,
    ),
    _quantity("progress_rate", "Lambda", "at most A(r)/r at every r visited", **_POSITIVE_SHARE),
)

#: Every quantity that a formula may contain, by its name in code, in the order they are listed.
QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in _SETTINGS + _MEASURED}


def _abbreviations() -> dict[sympy.Symbol, sympy.Expr]:
    names = ("batch_size", "micro_batch_size", "probability", "norm_ratio", "coherence", "sigma")
    batch, size, p, c, gamma, sigma = (QUANTITIES[name].symbol for name in names)
    mean_cosine, norm_spread = (QUANTITIES[x].symbol for x in ("mean_cosine", "norm_spread"))
    q, m, s, chi, psi = map(_symbol, ("q", "m", "s", "chi", "psi"))
    clean, none_clean, half_clean = map(_symbol, ("lambda_0", "Omega", "Omega_1"))
    k = sympy.Symbol("k", integer=True, nonnegative=True)
    weight = sympy.binomial(size, k) * p**k * q ** (size - k)
    return {
        q: 1 - p,
        m: batch / size,
        s: sigma / sympy.sqrt(size),
        _symbol("stilde"): sigma * sympy.sqrt(sympy.Sum(weight / (size - k), (k, 0, size - 1))),
        chi: p / batch + gamma * p**2 * (1 - 1 / batch),
        psi: p / size + gamma * p**2 * (1 - 1 / size),
        _symbol("K_g"): q**2 + p * q / batch + chi * c**2,
        _symbol("K_sigma"): q / batch + chi * c**2,
        clean: q**size,
        none_clean: (1 - clean) ** (m - 1),
        _symbol("N_1"): 1 + psi * c**2,
        _symbol("N_0"): s**2 + psi * c**2 * sigma**2,
        _symbol("M_1"): 1 + none_clean * psi * c**2,
        _symbol("M_0"): s**2 + none_clean * psi * c**2 * sigma**2,
        half_clean: (1 - clean / 2) ** (m - 1),
        _symbol("P_1"): 2 + half_clean * psi * c**2,
        _symbol("P_0"): 2 * s**2 + none_clean * psi * c**2 * (sigma**2 + 32 * s**2),
        _symbol("f"): mean_cosine * norm_spread * (m - 1) / sympy.sqrt(m),
    }


#: The abbreviations of the theory page (sections 1, 2, 4 and 5), each in terms of quantities and
#: of abbreviations before it.
ABBREVIATIONS: dict[sympy.Symbol, sympy.Expr] = _abbreviations()


def symbols(*names: str) -> tuple[sympy.Symbol, ...]:
    """The symbols of quantities, by their code names, and of abbreviations, by their letters.

    >>> symbols("norm_ratio", "q")
    (c, q)
    """
    known = {symbol.name: symbol for symbol in ABBREVIATIONS}
    known |= {name: quantity.symbol for name, quantity in QUANTITIES.items()}
    return tuple(known[name] for name in names)


# ------------------------------------------------------------------------------------- numbers


@cache
def quantities_in(expressions: Collection[sympy.Basic]) -> tuple[Quantity, ...]:
    """The quantities that expressions are made of once abbreviations are unfolded."""
    meanings = definitions_in(expressions)
    everything = (*expressions, *meanings.values())
    found = set().union(*(each.free_symbols for each in everything)) - set(meanings)
    if strangers := found - {quantity.symbol for quantity in QUANTITIES.values()}:
        listed = ", ".join(sorted(map(str, strangers)))
        raise InvalidArgument(
            f"expression has symbols that stand for no quantity: {listed}; "
            "use those of mbsim.theory.formula.QUANTITIES"
        )
    return tuple(quantity for quantity in QUANTITIES.values() if quantity.symbol in found)


def definitions_in(expressions: Collection[sympy.Basic]) -> dict[sympy.Symbol, sympy.Expr]:
    """The abbreviations that expressions use, directly or through each other, simple ones first."""
    found: dict[sympy.Symbol, sympy.Expr] = {}
    used = set().union(*(each.free_symbols for each in expressions))
    for symbol in reversed(ABBREVIATIONS):
        if symbol in used:
            found[symbol] = ABBREVIATIONS[symbol]
            used |= ABBREVIATIONS[symbol].free_symbols
    return dict(reversed(found.items()))


def specialised(expression: sympy.Expr, values: Mapping[sympy.Symbol, int]) -> sympy.Expr:
    """`expression` with symbols replaced by numbers; abbreviations that change are unfolded."""
    meanings = {
        symbol: specialised(meaning, values)
        for symbol, meaning in definitions_in([expression]).items()
        if symbol in expression.free_symbols
    }
    changed = {symbol: new for symbol, new in meanings.items() if new != ABBREVIATIONS[symbol]}
    return expression.xreplace(changed).subs(values)


class _Extreme(sympy.Function):  # type: ignore[misc]
    """The smallest or largest argument; SymPy's own compare theirs, which can take forever."""

    word = ""

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        call = rf"\{self.word}\left({', '.join(map(printer.doprint, self.args))}\right)"
        return call if exp is None else f"{call}^{{{exp}}}"

    def _sympystr(self, printer: Any) -> str:
        return f"{self.word}({', '.join(map(printer.doprint, self.args))})"


class _Min(_Extreme):
    word = "min"


class _Max(_Extreme):
    word = "max"


class _Numbers:
    """The numbers of expressions for given values, each subexpression computed once.

    Where the textbook form loses digits, powers go through logarithms: x^e = exp(e log x) with
    log(1 − z) = log1p(−z), and 1 − x^e = −expm1(e log x). So q^b, 1 − q^b and (1 − q^b)^(m−1) are
    right to about 1e-13 for p from 1e-12 up and b to 1e6.
    """

    def __init__(self, known: Mapping[sympy.Symbol, Any]) -> None:
        self._known: dict[sympy.Basic, Any] = dict(known)

    def value(self, node: sympy.Expr) -> Any:
        """The number, or array of numbers, of an expression."""
        if node not in self._known:
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: sympy.Expr) -> Any:
        match node:
            case sympy.Symbol():
                return self.value(ABBREVIATIONS[node])
            case sympy.Number() | sympy.NumberSymbol():
                return np.float64(float(node))
            case sympy.Add():
                z = _taken_from_one(node)
                return self._sum(node.args) if z is None else -np.expm1(self.log(z))
            case sympy.Mul():
                return reduce(np.multiply, map(self.value, node.args))
            case sympy.Pow() if not node.exp.free_symbols:
                return np.power(self.value(node.base), self.value(node.exp))
            case sympy.Pow():
                return np.exp(self.log(node))
            case sympy.exp():
                return np.exp(self.value(node.args[0]))
            case sympy.log():
                return self.log(node.args[0])
            case _Min():
                return reduce(np.minimum, map(self.value, node.args))
            case _Max():
                return reduce(np.maximum, map(self.value, node.args))
            case sympy.Sum():
                return self._binomial_mean(node)
        raise InvalidArgument(f"expression has a part that is not a real number: {shown(node)}")

    def _sum(self, terms: Sequence[sympy.Expr]) -> Any:
        return reduce(np.add, map(self.value, terms))

    def log(self, node: sympy.Expr) -> Any:
        """The logarithm of an expression, without forming a power or a number close to 1."""
        if node in ABBREVIATIONS and node not in self._known:
            return self.log(ABBREVIATIONS[node])
        if isinstance(node, sympy.Pow):
            exponent = self.value(node.exp)
            return np.where(exponent == 0, 0.0, exponent * self.log(node.base))  # 0^0 = 1
        if (z := _taken_from_one(node)) is not None:
            log_z = self.log(z)
            return np.where(log_z > -np.log(2), np.log(-np.expm1(log_z)), np.log1p(-np.exp(log_z)))
        if isinstance(node, sympy.Add) and sympy.S.One in node.args:
            return np.log1p(self._sum(_without_one(node)))
        return np.log(self.value(node))

    def _binomial_mean(self, node: sympy.Sum) -> Any:
        """Σ_k P(K = k) f(k) for K ~ Binomial(b, p), the only sum that a formula may contain."""
        ((k, _, last),) = node.limits
        b, p, q = symbols("micro_batch_size", "probability", "q")
        weight = {sympy.binomial(b, k), p**k, q ** (b - k)}
        f = sympy.Mul(*(factor for factor in node.function.args if factor not in weight))
        needed = [each.symbol for each in quantities_in(frozenset(f.free_symbols | {b, p}) - {k})]
        settings = np.broadcast_arrays(*map(self.value, needed))
        means = np.empty(settings[0].shape)
        for index in np.ndindex(means.shape):
            here = {symbol: array[index] for symbol, array in zip(needed, settings, strict=True)}
            counts, weights = _binomial(int(here[b]), float(here[p]))
            inside = counts <= _Numbers(here).value(last)
            values = _Numbers({**here, k: counts[inside]}).value(f)
            means[index] = (weights[inside] * values).sum()
        return means


def _taken_from_one(node: sympy.Expr) -> sympy.Expr | None:
    """z where an expression is 1 − z and z is short for, or is, a power with a varying exponent."""
    if not (isinstance(node, sympy.Add) and len(node.args) == 2 and sympy.S.One in node.args):
        return None
    (other,) = _without_one(node)
    sign, z = other.as_coeff_Mul()
    power = z
    while power in ABBREVIATIONS:
        power = ABBREVIATIONS[power]
    return z if sign == -1 and isinstance(power, sympy.Pow) and power.exp.free_symbols else None


def _without_one(node: sympy.Add) -> list[sympy.Expr]:
    terms = list(node.args)
    terms.remove(sympy.S.One)
    return terms


def _binomial(b: int, p: float) -> tuple[Floats, Floats]:
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


def numbers_of(expression: sympy.Expr, known: Mapping[sympy.Symbol, Floats]) -> Floats:
    """The numbers of an expression; what is not finite is the caller's to judge."""
    with np.errstate(all="ignore"):
        return np.asarray(_Numbers(known).value(expression), np.float64)


def checked_values(
    owner: str, names: tuple[str, ...], values: Mapping[str, ArrayLike], *, partly: bool = False
) -> dict[sympy.Symbol, Floats]:
    """Values by symbol, broadcast together.

    Names other than `names` are refused, and so are missing ones, unless `partly`.
    """
    missing = [] if partly else [name for name in names if name not in values]
    unknown = [name for name in values if name not in names]
    if missing or unknown:
        wanted = f"{owner} takes {', '.join(names) or 'no values'}"
        faults = [
            f"{what} {', '.join(which)}"
            for what, which in (("missing:", missing), ("unknown:", unknown))
            if which
        ]
        raise InvalidArgument("; ".join([wanted, *faults]))
    arrays = {name: QUANTITIES[name].checked(values[name]) for name in names if name in values}
    try:
        together = np.broadcast_arrays(*arrays.values())
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if array.ndim)
        raise InvalidArgument(f"the shapes of {shapes} do not broadcast together") from None
    checked = dict(zip(arrays, together, strict=True))
    if "batch_size" in checked and "micro_batch_size" in checked:
        sizes, totals = checked["micro_batch_size"], checked["batch_size"]
        for at in map(tuple, np.argwhere(totals % sizes != 0)[:1]):
            check_divides(int(sizes[at]), int(totals[at]))
    return {QUANTITIES[name].symbol: array for name, array in checked.items()}


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

    def evaluate(self, **values: ArrayLike) -> float | Floats:
        """The formula's numbers, in float64.

        Args:
            **values: every quantity in :attr:`names`, by its code name; numbers or arrays, which
                are broadcast against each other.

        Returns:
            A float if all values are numbers, else an array of the broadcast shape.

        Raises:
            InvalidArgument: for missing and unknown names, for values that are not finite or out
                of range, for shapes that do not fit, and where the formula itself is not finite.
        """
        known = checked_values(self.name, self.names, values)
        result = np.broadcast_arrays(numbers_of(self.expression, known), *known.values())[0].copy()
        for at in map(tuple, np.argwhere(~np.isfinite(result))[:1]):
            where = ", ".join(
                f"{name}={array[at]:g}"
                for name, array in zip(self.names, known.values(), strict=True)
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


# -------------------------------------------------------------------------- formulas from users

#: What a user's formula may call a symbol: letters of the paper, and code names.
USER_SYMBOLS: dict[str, sympy.Symbol] = {
    **{quantity.symbol.name: quantity.symbol for quantity in _SETTINGS},
    **{quantity.name: quantity.symbol for quantity in _SETTINGS},
    "q": _symbol("q"),
    "m": _symbol("m"),
    "micro_batches": _symbol("m"),
}

_FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = {
    "sqrt": sympy.sqrt,
    "log": sympy.log,
    "exp": sympy.exp,
    "min": _Min,
    "max": _Max,
}
_OPERATORS: dict[type[ast.operator], Callable[..., sympy.Expr]] = {
    ast.Add: lambda x, y: x + y,
    ast.Sub: lambda x, y: x - y,
    ast.Mult: lambda x, y: x * y,
    ast.Div: lambda x, y: x / y,
    ast.Pow: lambda x, y: x**y,
}

# No formula of the field comes near these.
MAX_LENGTH = 500
MAX_NODES = 200
MAX_DEPTH = 40
MAX_EXPONENT = 64
MAX_ARGUMENTS = 8
LITERALS = (1e-30, 1e30)
_LONG_NUMBER = r"[\d._]{41}|\d[eE][+-]?\d{3}"


def parse_formula(text: str, names: Mapping[str, sympy.Symbol] = USER_SYMBOLS) -> sympy.Expr:
    """A formula typed in by a user, as a SymPy expression; nothing in it is ever executed.

    Python's own parser builds the syntax tree; of that, only numbers, the symbols in `names`,
    ``+ - * / **``, unary minus and plus, parentheses and the functions ``sqrt``, ``log``, ``exp``,
    ``min`` and ``max`` are taken. Length, number of parts, depth, literals and exponents are
    limited, and every constant in it must be a finite real number.

    Args:
        text: the formula, such as ``"2*Delta/(eta*T) + eta*L*sigma**2/B"``.
        names: what a name stands for; the table at the head of this module unless told.

    Returns:
        The expression; decimal numbers are exact in it (``0.1`` is 1/10).

    Raises:
        InvalidArgument: for everything else, in one line that says what is not taken.

    >>> parse_formula("sqrt(2*Delta*L/T)/(1 - probability)")
    sqrt(((2*Delta)*L)/T)/(1 - p)
    >>> parse_formula("__import__('os').system('true')")
    Traceback (most recent call last):
        ...
    mbsim.errors.InvalidArgument: formula="__import__('os').system('true')" has the character "'"; \
it may have letters, digits, _ . , + - * / ( ) and blanks
    """
    try:
        # Left as typed: simplifying a hostile formula can take SymPy forever.
        with sympy.evaluate(False):
            return _built(_syntax_tree(text), names)
    except _Refused as refused:
        raise InvalidArgument(f"formula={shown(text)} {refused}") from None


def formula_bound(
    text: str,
    *,
    kind: str = "upper bound",
    name: str | None = None,
    assumptions: tuple[str, ...] = (),
    source: str = "entered by the user",
) -> Bound:
    """A user's formula for the average of E‖∇L(w_t)‖² over the steps, as a Bound.

    Args:
        text: as for :func:`parse_formula`.
        kind: what it claims to be: "upper bound", "lower bound", "limit" or "estimate".
        name: what tables and messages call it; the text itself unless told.
        assumptions: what it assumes, a sentence each.
        source: where it is from.

    >>> clean = formula_bound("2*sqrt(2*Delta*L*sigma**2/(B*T))")
    >>> setting = dict(initial_gap=1, smoothness=1, sigma=1, batch_size=2)
    >>> clean.evaluate(**setting, steps=[100, 400]).round(9)
    array([0.2, 0.1])
    """
    from mbsim.theory.bounds import Bound  # which builds on this module

    return Bound(
        name=text if name is None else name,
        expression=parse_formula(text),
        kind=kind,
        assumptions=assumptions,
        source=source,
    )


class _Refused(Exception):
    """Why a formula is not taken; completes the sentence "formula=... "."""


def _syntax_tree(text: str) -> ast.expr:
    """The syntax tree of a text that is short, plain and shallow enough to be looked at."""
    if not isinstance(text, str) or not text.strip():
        raise _Refused("must be a text such as '2*Delta/(eta*T)'")
    if len(text) > MAX_LENGTH:
        raise _Refused(f"has {len(text)} characters; it may have {MAX_LENGTH}")
    if stray := re.search(r"[^A-Za-z0-9_.,+\-*/() ]", text):
        hint = "; powers are written **" if stray[0] == "^" else ""
        raise _Refused(
            f"has the character {shown(stray[0])}; it may have letters, digits, "
            f"_ . , + - * / ( ) and blanks{hint}"
        )
    if re.search(_LONG_NUMBER, text):
        raise _Refused("has a number of more than 40 digits, or an exponent of more than two")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python only warns of "2if"
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, Warning):
        raise _Refused("is not a formula: look for a missing operator or parenthesis") from None
    if (nodes := sum(isinstance(node, ast.expr) for node in ast.walk(tree))) > MAX_NODES:
        raise _Refused(f"has {nodes} parts; it may have {MAX_NODES}")
    return tree


def _built(node: ast.expr, names: Mapping[str, sympy.Symbol], depth: int = 1) -> sympy.Expr:
    """The expression of a syntax tree, from the leaves up, every constant in it checked."""
    if depth > MAX_DEPTH:
        raise _Refused(f"is nested more than {MAX_DEPTH} deep")
    match node:
        case ast.Constant(value=value):
            return _literal(value)
        case ast.Name(id=name):
            if name not in names:
                raise _Refused(f"has the unknown name {shown(name)}; known are {', '.join(names)}")
            return names[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            part = _built(operand, names, depth + 1)
            return -part if isinstance(sign, ast.USub) else part
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            parts = [_built(side, names, depth + 1) for side in (left, right)]
            _check_operands(op, *parts)
            return _checked(_OPERATORS[type(op)](*parts))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            few, many = (2, MAX_ARGUMENTS) if name in ("min", "max") else (1, 1)
            if not few <= len(args) <= many:
                wanted = f"{few} to {many} arguments" if few < many else "one argument"
                raise _Refused(f"has {name} of {len(args)} arguments; it takes {wanted}")
            return _checked(_FUNCTIONS[name](*(_built(arg, names, depth + 1) for arg in args)))
    raise _Refused(
        f"has {shown(ast.unparse(node))}; it may have numbers, names, + - * / ** "
        f"and {', '.join(_FUNCTIONS)}"
    )


def _literal(value: object) -> sympy.Expr:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Refused(f"has {shown(value)}, which is not a real number")
    smallest, largest = LITERALS
    if value != 0 and not smallest <= value <= largest:
        raise _Refused(f"has the number {shown(value)}; it may be 0 or {smallest:g} to {largest:g}")
    exact = Fraction(repr(value))
    return sympy.Rational(exact.numerator, exact.denominator)


def _check_operands(op: ast.operator, left: sympy.Expr, right: sympy.Expr) -> None:
    """Refuse a division by 0, and powers that no formula has."""
    if isinstance(op, ast.Div) and _constant(right) == 0:
        raise _Refused("divides by 0")
    if isinstance(op, ast.Pow):
        times = 1 if right.free_symbols else _degree(left)
        if any(times * abs(value) > MAX_EXPONENT for value in _constants(right)):
            raise _Refused(f"has an exponent above {MAX_EXPONENT}, powers of powers multiplied")


def _constant(part: sympy.Expr) -> float | None:
    """The value of an expression without symbols; None if it has some."""
    return None if part.free_symbols else float(numbers_of(part, {}))


def _constants(part: sympy.Expr) -> list[float]:
    """The values of the parts without symbols that are not inside of others."""
    own = _constant(part)
    return [value for arg in part.args for value in _constants(arg)] if own is None else [own]


def _degree(part: sympy.Expr) -> float:
    """The largest product of constant exponents on a way from the whole to a leaf, at least 1."""
    inside = max(map(_degree, part.args), default=1.0)
    own = _constant(part.exp) if isinstance(part, sympy.Pow) else None
    return inside if own is None else max(1.0, inside * abs(own))


def _checked(part: sympy.Expr) -> sympy.Expr:
    """`part`, if it varies or is a finite real number."""
    if not np.isfinite(_constant(part) or 0):
        raise _Refused(f"has a part, {shown(str(part))}, that is not a finite real number")
    return part
