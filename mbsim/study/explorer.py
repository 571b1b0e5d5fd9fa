"""The explorer: one page to turn b, draggers and noise, and see what clipping does.

Its formulas are written by SymPy's own JavaScript printer, here; ``python -m mbsim.study.explorer``
puts them into the page. Its simulation is the law of :mod:`mbsim.compiled.step`, in JavaScript. The
tests hold both against Python.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["explorer_page", "formulas"]

_BEGIN, _END = "// <formulas>\n", "// </formulas>\n"


def explorer_page() -> Path:
    """Where the page is: it is part of the package, and needs no server.

    >>> explorer_page().name
    'explorer.html'
    """
    return Path(str(resources.files("mbsim.study").joinpath("explorer.html")))


def formulas() -> str:
    """The page's formulas as JavaScript: bias and bound of the theory, and A(r) and M(r) of SGD.

    The bound is Theorem 2 with the largest weight that there is, ω = 3/4, and so the least that it
    can be; at b = B it is Theorem 1. L is 1, and Δ is ½, as the page has it.

    >>> print(formulas().splitlines()[0])
    const biasBound = ({b, p, sigma}) => 8*Math.pow(sigma, 2)*Math.pow(1 - p, -b - 1)/(b + 1);
    """
    import sympy

    from mbsim.theory import ABBREVIATIONS, bias_bound, clipping_bound, sgd_bound, symbols

    batch, p, c, σ, r = sympy.symbols("B p c sigma r", positive=True)
    names = ("smoothness", "initial_gap", "coherence", "mean_weight")
    here = dict(
        zip(symbols(*names), (1, sympy.Rational(1, 2), 0, sympy.Rational(3, 4)), strict=True)
    )

    def script(expression: sympy.Expr) -> str:
        while expression.free_symbols & {*ABBREVIATIONS}:
            expression = expression.subs(ABBREVIATIONS)
        return str(sympy.jscode(expression.subs(here)))

    bias, bound, sgd = bias_bound("closed"), clipping_bound(), sgd_bound()
    whole = bound.expression - bound.bias.expression + bias.expression
    (allowed,), (of_sgd,) = ([one.relation for one in of.conditions] for of in (bound, sgd))
    # The mean of B independent examples: the square of its mean, and a B-th of the rest.
    example = (1 - p) * (r**2 + σ**2) + p * c**2 * (r**2 + σ**2)
    progress = (1 - p) * r
    moment = progress**2 + (example - progress**2) / batch
    given = "{B, b, p, c, sigma, eta, T}"
    lines = [
        f"const biasBound = ({{b, p, sigma}}) => {script(bias.expression)};",
        f"const clippingBound = ({given}) => {script(allowed)} ? {script(whole)} : NaN;",
        f"const sgdBound = ({given}) => {script(of_sgd)} ? {script(sgd.expression)} : NaN;",
        f"const sgdProgress = ({{p, r}}) => {script(progress)};",
        f"const sgdSecondMoment = ({{B, p, c, sigma, r}}) => {script(moment)};",
    ]
    return "\n".join(lines) + "\n"


def _write() -> None:
    page = explorer_page()
    before, _, rest = page.read_text("utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(before + _BEGIN + formulas() + _END + after, "utf-8")


if __name__ == "__main__":
    _write()
