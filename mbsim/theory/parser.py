r"""Formulas typed in by users; nothing in them is ever executed.

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
import re
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import sympy

from mbsim._shared.meant import meant
from mbsim.errors import InvalidArgument, shown
from mbsim.theory.formula import Max, Min, numbers_of
from mbsim.theory.quantities import SETTINGS, symbols

__all__ = ["USER_SYMBOLS", "parse_formula"]

#: What a user's formula may call a symbol: letters of the paper, and code names.
USER_SYMBOLS: dict[str, sympy.Symbol] = {
    **{quantity.symbol.name: quantity.symbol for quantity in SETTINGS},
    **{quantity.name: quantity.symbol for quantity in SETTINGS},
    "q": symbols("q")[0],
    "m": symbols("m")[0],
    "micro_batches": symbols("m")[0],
}

_FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = {
    "sqrt": sympy.sqrt,
    "log": sympy.log,
    "exp": sympy.exp,
    "min": Min,
    "max": Max,
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
                ours = meant(name, names)
                hint = f" ({ours}?)" if ours else ""
                known = ", ".join(names)
                raise _Refused(f"has the unknown name {shown(name)}{hint}; known are {known}")
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
    return sympy.Rational(repr(value))  # 0.1 is 1/10


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
