r"""Table 1: the methods' bounds side by side, and where they cross."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import sympy
from numpy.typing import ArrayLike

from mbsim.errors import InvalidArgument
from mbsim.theory.bound import Bound, leading_terms, tuned_bound, tuned_step_size
from mbsim.theory.formula import Formula, as_latex, as_text
from mbsim.theory.quantities import checked_values, definitions_in
from mbsim.theory.theorems import (
    T,
    clean_sgd_bound,
    clipping_bound,
    clipping_concentrated_bound,
    incoherent_sgd_bound,
    sgd_bound,
    symmetric_bound,
)

__all__ = ["Crossover", "Row", "Table", "crossover", "table1"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of Table 1: its bound at a given step size, from which the rest is derived."""

    bound: Bound

    @property
    def tuned_step_size(self) -> Formula:
        """The step size at which the bound is smallest."""
        return tuned_step_size(self.bound)

    @property
    def tuned(self) -> Bound:
        """The bound there."""
        return tuned_bound(self.bound)

    @property
    def bias(self) -> Formula:
        """The limit of the tuned bound as T grows."""
        return self._leading("bias", 0)

    @property
    def constant(self) -> Formula:
        """The factor of :attr:`order` in the tuned bound."""
        return self._leading("constant", 1)

    @property
    def order(self) -> sympy.Expr:
        """How the tuned bound approaches its bias as T grows."""
        return leading_terms(self.tuned)[2]

    def _leading(self, name: str, index: int) -> Formula:
        return Formula(
            name=f"{name} of {self.bound.name}",
            expression=leading_terms(self.tuned)[index],
            source=self.bound.source,
        )

    def evaluate(self, **values: ArrayLike) -> dict[str, Any]:
        """The row in numbers; see :meth:`Table.evaluate`."""

        def number(formula: Formula, ask: str = "evaluate") -> Any:
            if not set(formula.names) <= set(values):
                return None
            try:
                return getattr(formula, ask)(**{name: values[name] for name in formula.names})
            except InvalidArgument:  # the table has checked the values: the result is not finite
                return None

        return {
            "method": self.bound.name,
            "bound": number(self.bound),
            "bound_holds": number(self.bound, "holds"),
            "tuned_step_size": number(self.tuned_step_size),
            "tuned_bound": number(self.tuned),
            "tuned_holds": number(self.tuned, "holds"),
            "order": as_text(self.order),
            "constant": number(self.constant),
            "bias": number(self.bias),
            "missing": [name for name in self.bound.names if name not in values],
        }


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table 1: the methods' bounds side by side. It prints in terminals and in notebooks."""

    rows: tuple[Row, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The code names of all quantities in the table."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.bound.names))

    @property
    def definitions(self) -> dict[sympy.Symbol, sympy.Expr]:
        """The abbreviations used in the table, and what they stand for."""
        return definitions_in([part for row in self.rows for part in row.bound.parts])

    def evaluate(self, **values: ArrayLike) -> list[dict[str, Any]]:
        """The table in numbers, one dict a row.

        Args:
            **values: quantities by code name, any of :attr:`names`.

        Returns:
            For each row ``method``, ``bound`` with ``bound_holds``, ``tuned_step_size``,
            ``tuned_bound`` with ``tuned_holds``, ``order`` (text), ``constant``, ``bias`` and
            ``missing``, the names that were not given. A number that lacks one of them is ``None``,
            and so is one that is not finite, such as a bias too large for a float.

        Raises:
            InvalidArgument: for unknown names, values out of range and shapes that do not fit.

        >>> row = table1().evaluate(initial_gap=1, smoothness=1, step_size=0.1, steps=1000, sigma=1,
        ...                         batch_size=64)[0]
        >>> row["method"], round(row["bound"], 5), row["bound_holds"]
        ('SGD without draggers', 0.02156, True)
        """
        checked_values("Table 1", self.names, values, partly=True)
        return [row.evaluate(**values) for row in self.rows]

    def latex(self) -> str:
        """The table as a LaTeX array, abbreviations kept (see :attr:`definitions`)."""
        head = [rf"\text{{{name}}}" for name in _HEAD]
        body = [[rf"\text{{{row.bound.name}}}", *_cells(row)] for row in self.rows]
        lines = " \\\\\n".join(" & ".join(line) for line in (head, *body))
        return rf"\begin{{array}}{{{'l' * len(head)}}}" + f"\n{lines}\n" + r"\end{array}"

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        body = [[row.bound.name, *map(_as_html, _cells(row))] for row in self.rows]
        lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in body)
        notation = ", ".join(
            _as_html(f"{sympy.latex(symbol)} = {as_latex(meaning)}")
            for symbol, meaning in self.definitions.items()
        )
        return f"<table><tr>{head}</tr>{lines}</table><p>{notation}</p>"

    def __str__(self) -> str:
        blocks = [_block(row) for row in self.rows]
        notation = [f"  {as_text(x)} = {as_text(d)}" for x, d in self.definitions.items()]
        return "\n\n".join([*blocks, "\n".join(["where", *notation])])

    __repr__ = __str__


_HEAD = ("method", "bound", "tuned", "order", "bias")


def _as_html(latex: str) -> str:
    return f"$\\displaystyle {escape(latex)}$"


def _cells(row: Row) -> list[str]:
    """The LaTeX of a row: each bound with its conditions below it."""

    def stacked(bound: Bound) -> str:
        lines = r" \\ \text{if } ".join(map(as_latex, bound.parts))
        return rf"\begin{{array}}{{l}} {lines} \end{{array}}"

    others = (row.order, row.bias.expression)
    return [stacked(row.bound), stacked(row.tuned), *map(as_latex, others)]


def _block(row: Row) -> str:
    """The plain text of a row."""
    lines = {
        "bound": ", if ".join(map(as_text, row.bound.parts)),
        "tuned": ", if ".join(map(as_text, row.tuned.parts)),
        "at η": as_text(row.tuned_step_size.expression),
        "order": f"{as_text(row.order)}, times {as_text(row.constant.expression)}",
        "bias": as_text(row.bias.expression),
    }
    return "\n".join([row.bound.name, *(f"  {key:<6} {line}" for key, line in lines.items())])


def table1(form: str = "plain") -> Table:
    """Table 1: SGD without and with draggers, and clipping for three kinds of noise.

    The clipping rows are Theorem 2 for any noise (on a weighted average) and where norms
    concentrate, and Theorem 3 for symmetric noise. At b = B clipping is SGD: use its row there.

    Args:
        form: "plain", or "sharper": longer formulas, smaller numbers, and tuned step sizes that are
            allowed for every horizon.

    Source: theory page, sections 4 to 6 (corresponds to [Wang2024] Table 1).

    >>> for row in table1().rows:
    ...     print(f"{row.bound.name}: {row.order}, bias {row.bias}")
    SGD without draggers: 1/sqrt(T), bias 0
    SGD, incoherent draggers: 1/sqrt(T), bias 0
    SGD with draggers: 1/sqrt(T), bias 0
    clipping, any noise: 1/sqrt(T), bias 4*s̃**2/λ₀
    clipping, concentrated norms: 1/sqrt(T), bias 2*f**2/λ**2 + s**2/λ
    clipping, symmetric noise: 1/sqrt(T), bias 0
    """
    bounds = (
        clean_sgd_bound(form),
        incoherent_sgd_bound(form),
        sgd_bound(form),
        clipping_bound(form),
        clipping_concentrated_bound(form),
        symmetric_bound(form=form),
    )
    return Table(rows=tuple(Row(bound=bound) for bound in bounds))


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where the tuned bounds of SGD and of clipping cross.

    ``horizon`` is the number of steps below which clipping's bound is the smaller one, or None if
    they never cross; ``reason`` says which is ahead where. ``allowed`` is whether both tuned step
    sizes satisfy their theorems' conditions at the horizon (None if there is none).
    """

    horizon: float | None
    reason: str
    allowed: bool | None = None


def crossover(
    clipping: Bound | None = None, sgd: Bound | None = None, **values: float
) -> Crossover:
    """The horizon at which SGD's tuned bound falls below clipping's, or "never".

    Tuned plain bounds are C₁/√T (SGD) and C₂/√T + β² (clipping). They cross at T = ((C₁ − C₂)/β²)²
    if C₁ > C₂ and β² > 0, and never otherwise. For Theorem 2 the right sides are compared although
    the left sides differ: clipping's average is weighted.

    Args:
        clipping: a plain bound for clipping; :func:`clipping_bound` unless told.
        sgd: a plain bound for SGD; :func:`sgd_bound` unless told.
        **values: the quantities in both, by code name, step_size and steps apart; numbers.

    Raises:
        InvalidArgument: for unknown and missing names, values out of range, arrays, and bounds that
            are not exactly of this form at their tuned step size.

    Source: theory page, section 5.6.

    >>> setting = dict(initial_gap=100, smoothness=1, sigma=1, batch_size=64, micro_batch_size=4,
    ...                probability=0.02, coherence=0, mean_weight=0.7)
    >>> crossover(**setting, norm_ratio=10).reason
    "never: SGD's bound is the smaller one at every horizon"
    >>> crossover(**setting, norm_ratio=500).reason
    "clipping's bound is the smaller one below 4.049e+04 steps, SGD's above"
    """
    rows = (Row(bound=sgd or sgd_bound()), Row(bound=clipping or clipping_bound()))
    for row in rows:
        leading = row.bias.expression + row.constant.expression / sympy.sqrt(T)
        if sympy.simplify(row.tuned.expression - leading) != 0:
            raise InvalidArgument(
                f"the bound {row.bound.name!r} is not C/√T + bias when tuned; use its plain form"
            )
    names = [name for name in Table(rows=rows).names if name not in ("step_size", "steps")]
    known = checked_values("the crossover", tuple(names), values)
    if any(array.ndim for array in known.values()):
        raise InvalidArgument("the crossover takes numbers, not arrays; ask once for each")

    def numbers(part: str) -> list[Any]:
        formulas = [getattr(row, part) for row in rows]
        return [f.evaluate(**{name: values[name] for name in f.names}) for f in formulas]

    constants, biases = numbers("constant"), numbers("bias")
    lead, handicap = constants[0] - constants[1], biases[1] - biases[0]
    if lead > 0 and handicap > 0:
        horizon = (lead / handicap) ** 2
        there = {**values, "steps": max(horizon, 1.0)}
        tuned = [row.tuned for row in rows]
        allowed = all(x.holds(**{name: there[name] for name in x.names}) for x in tuned)
        reason = f"clipping's bound is the smaller one below {horizon:.4g} steps, SGD's above"
        if not allowed:
            reason += "; there a tuned step is still longer than its theorem allows"
        return Crossover(horizon=horizon, reason=reason, allowed=allowed)
    if lead == handicap == 0:
        return Crossover(horizon=None, reason="never: the bounds are equal at every horizon")
    ahead = "clipping's" if lead > 0 or (lead == 0 and handicap < 0) else "SGD's"
    return Crossover(
        horizon=None, reason=f"never: {ahead} bound is the smaller one at every horizon"
    )
