"""The explorer: one page to turn b, draggers and noise, and see what clipping does.

Its formulas are written by SymPy's own JavaScript printer, here; ``python -m mbsim.study.explorer``
puts them into the page. Its simulation is the law of :mod:`mbsim.compiled.step`, in JavaScript. The
tests hold both against Python.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from mbsim.choosing.compare import compare
from mbsim.methods import SGD, MicroBatchClipping
from mbsim.problems.draggers import Draggers
from mbsim.problems.noise import TwoPoint
from mbsim.study.half_square import half_square

__all__ = ["explorer_page", "formulas", "sliders"]

_BEGIN, _END = "// <formulas>\n", "// </formulas>\n"


def explorer_page() -> Path:
    """Where the page is: it is part of the package, and needs no server.

    >>> explorer_page().name
    'explorer.html'
    """
    return Path(str(resources.files("mbsim.study").joinpath("explorer.html")))


def sliders() -> Any:
    """For a notebook: three sliders, b, p and c, and runs of SGD beside runs of clipping.

    The problem is that of the page, with skewed noise; B = 64, 64 runs of 400 steps, 99 % bands.

    Returns:
        A widget of ipywidgets, which the extra ``notebooks`` brings.

    Raises:
        ModuleNotFoundError: without ipywidgets.

    >>> sliders()  # as the last line of a cell  # doctest: +SKIP
    """
    try:
        import ipywidgets
    except ImportError:
        raise ModuleNotFoundError(
            "mbsim.study.explorer.sliders needs ipywidgets: "
            "pip install 'microbatch-clipping[notebooks]'",
            name="ipywidgets",
        ) from None
    from matplotlib import pyplot

    noise = TwoPoint(sigma=1.0, rare=0.15, isotropic_share=0.5)

    def draw(b: int, p: float, c: float) -> None:
        draggers = Draggers(probability=p, norm_ratio=c)
        problem = half_square(noise, draggers, dimension=64, benign_dim=32, grad_norm=1.0)
        settings: Any = {"batch_size": 64, "step_size": 0.05, "steps": 400, "replicates": 64}
        compare(problem, [SGD(), MicroBatchClipping(b)], rng=0, **settings).plot()
        pyplot.show()

    choices: dict[str, tuple[list[float], float]] = {
        "b": ([1, 2, 4, 8, 16, 32, 64], 8),
        "p": ([0.0, 0.01, 0.02, 0.05, 0.1, 0.2], 0.05),
        "c": ([2.0, 5.0, 10.0, 20.0, 50.0, 100.0], 20.0),
    }
    turned = {
        name: ipywidgets.SelectionSlider(
            options=options, value=value, description=name, continuous_update=False
        )
        for name, (options, value) in choices.items()
    }
    shown = ipywidgets.interactive_output(draw, turned)
    return ipywidgets.VBox([ipywidgets.HBox([*turned.values()]), shown])


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
