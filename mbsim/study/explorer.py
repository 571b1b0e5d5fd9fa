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
    """The page's formulas as JavaScript: the bias of the bound, and A(r) and M(r) of SGD.

    >>> print(formulas().splitlines()[0])
    const biasBound = ({b, p, sigma}) => 8*Math.pow(sigma, 2)*Math.pow(1 - p, -b - 1)/(b + 1);
    """
    import sympy

    from mbsim.theory import bias_bound

    batch, p, c, σ, r = sympy.symbols("B p c sigma r", positive=True)
    bias = bias_bound("closed")
    expression = bias.expression.subs(bias.definitions)
    # The mean of B independent examples: the square of its mean, and a B-th of the rest.
    example = (1 - p) * (r**2 + σ**2) + p * c**2 * (r**2 + σ**2)
    progress = (1 - p) * r
    moment = progress**2 + (example - progress**2) / batch
    lines = [
        f"const biasBound = ({{b, p, sigma}}) => {sympy.jscode(expression)};",
        f"const sgdProgress = ({{p, r}}) => {sympy.jscode(progress)};",
        f"const sgdSecondMoment = ({{B, p, c, sigma, r}}) => {sympy.jscode(moment)};",
    ]
    return "\n".join(lines) + "\n"


def _write() -> None:
    page = explorer_page()
    before, _, rest = page.read_text("utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(before + _BEGIN + formulas() + _END + after, "utf-8")


if __name__ == "__main__":
    _write()
