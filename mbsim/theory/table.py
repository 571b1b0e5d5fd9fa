r"""Table 1: the methods' bounds side by side, and where they cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import sympy
from numpy.typing import ArrayLike

from mbsim import plots
from mbsim._shared import tables
from mbsim.errors import InvalidArgument
from mbsim.theory.bound import Bound, tuned_step_size
from mbsim.theory.formula import Formula, as_latex, as_text
from mbsim.theory.quantities import (
    QUANTITIES,
    by_name,
    checked_values,
    definitions_in,
    filled,
    letter_of,
)
from mbsim.theory.theorems import (
    T,
    clean_sgd_bound,
    clipping_bound,
    clipping_concentrated_bound,
    incoherent_sgd_bound,
    sgd_bound,
    symmetric_bound,
)
from mbsim.theory.tilted import tilted_clipping_bound, tilted_sgd_bound

__all__ = ["Crossover", "Table", "crossover", "table1"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table 1: the methods' bounds side by side. It prints in terminals and in notebooks."""

    rows: tuple[Bound, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The code names of all quantities in the table."""
        return tuple(dict.fromkeys(name for bound in self.rows for name in bound.names))

    @property
    def definitions(self) -> dict[sympy.Symbol, sympy.Expr]:
        """The abbreviations used in the table, and what they stand for."""
        return definitions_in([part for bound in self.rows for part in bound.parts])

    def evaluate(self, known: Any = None, /, **values: ArrayLike) -> list[dict[str, Any]]:
        """The table in numbers, one dict a row.

        Args:
            known: a problem, or what :func:`mbsim.quantities` gives: then every row has its number.
            **values: quantities by code name or letter, any of :attr:`names`.

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
        values = filled(self.names, known, values)
        checked_values("Table 1", self.names, values, partly=True)
        return [_in_numbers(bound, values) for bound in self.rows]

    def in_numbers(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """What :meth:`evaluate` gave, as text; what is missing is explained below it.

        >>> table = table1()
        >>> text = table.in_numbers(table.evaluate(Δ=1, L=1, eta=0.1, T=1000, sigma=1, B=64))
        >>> print(*text.splitlines()[:2], sep=chr(10))
        method                        bound   tuned η      tuned  order      bias
        SGD without draggers      0.0215625  0.357771  0.0111803  1/sqrt(T)     0
        """
        head = ("method", "bound", "tuned η", "tuned", "order", "bias")
        cells = [head]
        for row in rows:
            numbers = [_said(row["bound"], row["bound_holds"]), _said(row["tuned_step_size"])]
            numbers += [_said(row["tuned_bound"], row["tuned_holds"]), row["order"]]
            cells.append((row["method"], *numbers, _said(row["bias"])))
        lines = tables.as_text(cells, align="<...<.", most=(24,), width=80)
        if any(cell.endswith("*") for row in cells for cell in row):
            lines.append("* a condition of the theorem does not hold here: a number, and no bound")
        missing = [name for name in self.names if any(name in row["missing"] for row in rows)]
        if missing:
            lines += ["", "– needs a quantity that was not given:"]
            notes = [(name, letter_of(name), QUANTITIES[name].meaning) for name in missing]
            lines += [f"  {line}" for line in tables.as_text(notes)]
        return "\n".join(lines)

    def plot(self, ax: plots.Axes | None = None, *, values: Any, **style: Any) -> plots.Axes:
        """The rates: each row's bound at its tuned step size against the number of steps T.

        Thin where the tuned step is longer than the theorem allows. Rows that lack a quantity are
        left out. A bound has no interval: it is a number.

        Args:
            ax: where to draw; a new figure unless told.
            values: quantities by code name or letter, or what :func:`mbsim.quantities` gives;
                ``steps`` may be an array, and is 10² to 10⁸ unless given.
            **style: properties of the lines, such as ``linewidth``.

        Raises:
            InvalidArgument: as :meth:`evaluate`; and if no row has all its quantities.

        >>> from matplotlib.figure import Figure
        >>> ax = table1().plot(Figure().subplots(),
        ...     values=dict(initial_gap=1, smoothness=1, sigma=1, batch_size=64))
        >>> [line.get_label() for line in ax.lines if line.get_label()[0] != "_"]
        ['SGD without draggers']
        """
        given = (None, values) if isinstance(values, dict) else (values, {})
        values = filled(self.names, *given)
        steps = np.asarray(values.get("steps", np.geomspace(1e2, 1e8, 200)), dtype=float)
        known: dict[str, ArrayLike] = {**values, "steps": steps}
        rows = [row for row in self.evaluate(**known)
                if row["tuned_bound"] is not None]  # fmt: skip
        if not rows or steps.ndim != 1:
            wanted = ", ".join(name for name in self.rows[0].tuned.names if name != "steps")
            raise InvalidArgument(
                f"values={', '.join(values) or 'none'} must give at least {wanted}, and steps, "
                "if given, a one-dimensional array"
            )
        with plots.on(ax) as axes:
            for number, row in enumerate(rows):
                bound = np.broadcast_to(row["tuned_bound"], steps.shape)
                look = {"number": number, "band": True, **style}
                allowed = np.where(row["tuned_holds"], bound, np.nan)
                plots.curve(axes, steps, bound, **{**look, "linewidth": 0.6, "label": None})
                plots.curve(axes, steps, allowed, label=row["method"], **look)
            axes.set(xscale="log", yscale="log", xlabel="steps T, step size tuned for T")
            axes.set_ylabel("bound on the average of E‖∇L‖²")
            plots.name_lines(axes)
        return axes

    def latex(self) -> str:
        """The table as a LaTeX array, abbreviations kept (see :attr:`definitions`)."""
        head = [rf"\text{{{name}}}" for name in _HEAD]
        body = [[rf"\text{{{bound.name}}}", *_cells(bound)] for bound in self.rows]
        lines = " \\\\\n".join(" & ".join(line) for line in (head, *body))
        return rf"\begin{{array}}{{{'l' * len(head)}}}" + f"\n{lines}\n" + r"\end{array}"

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"

    def _repr_html_(self) -> str:
        rows = [(bound.name, *map(_displayed, _cells(bound))) for bound in self.rows]
        notation = ", ".join(
            _displayed(f"{sympy.latex(symbol)} = {as_latex(meaning)}")
            for symbol, meaning in self.definitions.items()
        )
        return f"{tables.as_html(rows, head=_HEAD)}<p>{escape(notation)}</p>"

    def __str__(self) -> str:
        notation = [
            f"  {line}"
            for x, d in self.definitions.items()
            for line in tables.as_text([(f"{as_text(x)} =", as_text(d))], gap=" ")
        ]
        return "\n\n".join([*map(_block, self.rows), "\n".join(["where", *notation])])

    __repr__ = __str__


_HEAD = ("method", "bound", "tuned", "order", "bias")


def _said(number: Any, holds: Any = True) -> str:
    return "–" if number is None else f"{number:.6g}{'' if holds else '*'}"


def _displayed(latex: str) -> str:
    return rf"$\displaystyle {latex}$"


def _in_numbers(bound: Bound, values: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """A row of :meth:`Table.evaluate`, which has checked the values."""

    def number(formula: Formula, ask: str = "evaluate") -> Any:
        if not set(formula.names) <= set(values):
            return None
        try:
            return getattr(formula, ask)(**formula.picked(values))
        except InvalidArgument:  # the values are in range: the result is not finite
            return None

    return {
        "method": bound.name,
        "bound": number(bound),
        "bound_holds": number(bound, "holds"),
        "tuned_step_size": number(tuned_step_size(bound)),
        "tuned_bound": number(bound.tuned),
        "tuned_holds": number(bound.tuned, "holds"),
        "order": as_text(bound.order),
        "constant": number(bound.constant),
        "bias": number(bound.bias),
        "missing": [name for name in bound.names if name not in values],
    }


def _cells(bound: Bound) -> list[str]:
    """The LaTeX of a row: each bound with its conditions below it."""

    def stacked(one: Bound) -> str:
        lines = r" \\ \text{if } ".join(map(as_latex, one.parts))
        return rf"\begin{{array}}{{l}} {lines} \end{{array}}"

    others = (bound.order, bound.bias.expression)
    return [stacked(bound), stacked(bound.tuned), *map(as_latex, others)]


def _block(bound: Bound) -> str:
    """The plain text of a row."""
    lines = {
        "bound": ", if ".join(map(as_text, bound.parts)),
        "tuned": ", if ".join(map(as_text, bound.tuned.parts)),
        "at η": tuned_step_size(bound),
        "order": f"{as_text(bound.order)}, times {bound.constant}",
        "bias": bound.bias,
    }
    rows = tables.as_text([(key, str(line)) for key, line in lines.items()], least=(6,), gap=" ")
    return "\n".join([bound.name, *(f"  {row}" for row in rows)])


def table1(form: str = "plain") -> Table:
    """Table 1: SGD without and with draggers, and clipping for three kinds of noise.

    The clipping rows are Theorem 2 for any noise (on a weighted average) and where norms
    concentrate, and Theorem 3 for symmetric noise; the last two rows are Theorems 7 and 8, for
    draggers tilted against the gradient. At b = B clipping is SGD: use its row there.

    Args:
        form: "plain", or "sharper": longer formulas, smaller numbers, and tuned step sizes that are
            allowed for every horizon.

    Source: theory page, sections 4 to 6 and 12 (corresponds to [Wang2024] Table 1).

    >>> for row in table1().rows:
    ...     print(f"{row.name}: {row.order}, bias {row.bias}")
    SGD without draggers: 1/sqrt(T), bias 0
    SGD, incoherent draggers: 1/sqrt(T), bias 0
    SGD with draggers: 1/sqrt(T), bias 0
    clipping, any noise: 1/sqrt(T), bias 4*s̃**2/λ₀
    clipping, concentrated norms: 1/sqrt(T), bias 2*f**2/λ**2 + s**2/λ
    clipping, symmetric noise: 1/sqrt(T), bias 0
    SGD, tilted draggers: 1/sqrt(T), bias 2*σ**2*ζ**2/(q*qₜ)
    clipping, tilted draggers, Gaussian noise: 1/sqrt(T), bias αₙ*λ₀*s**2*θ_b**2/a_b
    """
    rows = (
        clean_sgd_bound(form),
        incoherent_sgd_bound(form),
        sgd_bound(form),
        clipping_bound(form),
        clipping_concentrated_bound(form),
        symmetric_bound(form=form),
        tilted_sgd_bound(form),
        tilted_clipping_bound(form),
    )
    return Table(rows=rows)


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
        **values: the quantities in both, by code name or letter, step_size and steps apart.

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
    bounds = (sgd or sgd_bound(), clipping or clipping_bound())
    for bound in bounds:
        leading = bound.bias.expression + bound.constant.expression / sympy.sqrt(T)
        left_over = sympy.expand(bound.tuned.expression - leading)
        if left_over != 0 and sympy.simplify(left_over) != 0:  # which takes a second
            raise InvalidArgument(
                f"the bound {bound.name!r} is not C/√T + bias when tuned; use its plain form"
            )
    values = by_name(values)
    names = [name for name in Table(rows=bounds).names if name not in ("step_size", "steps")]
    known = checked_values("the crossover", tuple(names), values)
    if any(array.ndim for array in known.values()):
        raise InvalidArgument("the crossover takes numbers, not arrays; ask once for each")

    def number(formula: Formula) -> float:
        return float(formula.evaluate(**formula.picked(values)))

    (sgds, own), (sgds_bias, bias) = (
        [number(getattr(bound, part)) for bound in bounds] for part in ("constant", "bias")
    )
    lead, handicap = sgds - own, bias - sgds_bias
    if lead > 0 and handicap > 0:
        horizon = (lead / handicap) ** 2
        there = {**values, "steps": max(horizon, 1.0)}
        tuned = [bound.tuned for bound in bounds]
        allowed = all(x.holds(**x.picked(there)) for x in tuned)
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
