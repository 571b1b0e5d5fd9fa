"""Figures, drawn from the plain data of a report and from nothing else.

Every curve carries its 99 % intervals. Colours are those of Okabe and Ito, which the colour-blind
can tell apart, and markers and line styles say the same once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_report"]

Points = Sequence[dict[str, float]]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: Any = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    # Text stays text, and no random identifiers: the same report, the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "mbsim",
}


def draw_report(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every figure of a report to `folder`, as PNG and as SVG; the paths written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    verdicts = {v["claim"]: v for v in report["verdicts"]}
    controls = {(c["claim"], c["without"]): c for c in report["controls"]}
    drawings: dict[str, Callable[[Figure], None]] = {
        "floor": lambda figure: _floor(figure, verdicts["sweet-spot"], controls),
        "trajectories": lambda figure: _trajectories(figure, report["trajectories"]),
        "sgd_rate": lambda figure: _rate(figure, verdicts["sgd-same-rate"]),
        "horizon": lambda figure: _horizon(figure, verdicts["clipping-ahead-early"]),
        "digits": lambda figure: _digits(
            figure,
            verdicts["training-sweet-spot"],
            controls["training-sweet-spot", "no canaries"],
        ),
    }
    paths = []
    with mpl.rc_context(_STYLE):
        for name, draw in drawings.items():
            wide = name == "trajectories"
            figure = Figure(figsize=(8.0 if wide else 5.0, 3.4))
            draw(figure)
            for suffix, about in ((".png", {"Software": None}), (".svg", {"Date": None})):
                paths.append(folder / f"{name}{suffix}")
                figure.savefig(paths[-1], metadata=about)
    return paths


def _curve(axes: Axes, points: Points, number: int, label: str, *, band: bool = False) -> None:
    """A curve with its intervals: bars, or a band where there are many points."""
    x, y, low, high = (np.array([p[key] for p in points]) for key in ("x", "y", "low", "high"))
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    if band:
        style = ("-", "--", "-.", ":")[number % 4]
        axes.plot(x, y, color=colour, linestyle=style, label=label, linewidth=1.4)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    else:
        errors = np.maximum([y - low, high - y], 0)
        axes.errorbar(
            x, y, errors, color=colour, marker=marker, markersize=4, capsize=2.5, label=label,
            linewidth=1.2,
        )  # fmt: skip


def _horizons_axis(axes: Axes, points: Points) -> None:
    """Steps on a logarithmic axis, labelled at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log", xlim=(0.9 * points[0]["x"], 1.1 * points[-1]["x"]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _sizes_axis(axes: Axes, points: Points) -> None:
    axes.set_xscale("log", base=2)
    sizes = [int(p["x"]) for p in points]
    axes.set_xticks(sizes, [str(b) for b in sizes])
    axes.minorticks_off()
    axes.set_xlabel("micro-batch size b  (b = B is SGD)")


def _floor(
    figure: Figure, verdict: dict[str, Any], controls: dict[tuple[str, str], dict[str, Any]]
) -> None:
    axes = figure.subplots()
    curves = (
        ("skewed noise, draggers", verdict),
        ("symmetric noise, draggers", controls["sweet-spot", "symmetric noise"]),
        ("skewed noise, no draggers", controls["sweet-spot", "no draggers"]),
    )
    for number, (label, found) in enumerate(curves):
        _curve(axes, found["details"]["floors"], number, label)
    axes.set_yscale("log")
    _sizes_axis(axes, verdict["details"]["floors"])
    axes.set_ylabel("floor: root mean square of ‖∇L‖")
    axes.set_title("Where a run stops, against the micro-batch size", loc="left", fontsize=9)
    axes.legend()


def _trajectories(figure: Figure, curves: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("skewed", "symmetric"), strict=True):
        for number, (label, points) in enumerate(curves[name].items()):
            _curve(axes, points, number, label, band=True)
        axes.set(xscale="log", yscale="log", xlabel="step T")
        axes.set_title(f"{name} noise, η = {curves['step_size']:g}", loc="left", fontsize=9)
    panels[0].set_ylabel("mean ‖∇L(w_T)‖²")
    panels[0].legend()


def _rate(figure: Figure, verdict: dict[str, Any]) -> None:
    axes = figure.subplots()
    curves = verdict["details"]["curves"]
    for number, (label, points) in enumerate(curves.items()):
        _curve(axes, points, number, label)
    clean = curves["SGD without draggers"]
    x = np.array([p["x"] for p in clean])
    last = clean[-1]["y"] * np.sqrt(x[-1] / x)
    axes.plot(x, last, color="0.4", linewidth=0.8, linestyle=":", label="T^(−1/2)")
    predicted = verdict["details"]["predicted_ratio"]
    axes.plot(
        x, predicted * last, color="0.4", linewidth=0.8, linestyle="--",
        label=f"T^(−1/2), {predicted:.2f} times as high (predicted)",
    )  # fmt: skip
    _horizons_axis(axes, clean)
    axes.set_xlabel("steps T, step size tuned for T")
    axes.set_ylabel("mean of ‖∇L‖² over the run")
    axes.set_title("SGD keeps its rate, with a larger constant", loc="left", fontsize=9)
    axes.legend()


def _horizon(figure: Figure, verdict: dict[str, Any]) -> None:
    axes = figure.subplots()
    for number, (label, points) in enumerate(verdict["details"]["curves"].items()):
        _curve(axes, points, number, label)
    ahead, behind = verdict["details"]["horizon"]
    if ahead and behind:
        axes.axvspan(ahead, behind, color="0.85", zorder=0)
        axes.annotate(
            f"horizon between {ahead} and {behind}",
            (ahead, 1.0),
            xycoords=("data", "axes fraction"),
            ha="right",
            va="top",
            xytext=(-4, -2),
            textcoords="offset points",
            fontsize=8,
        )
    _horizons_axis(axes, points)
    axes.set_xlabel("steps T, each with its best step size")
    axes.set_ylabel("mean of ‖∇L‖² over the run")
    axes.set_title("Clipping is ahead up to a horizon", loc="left", fontsize=9)
    axes.legend(loc="lower left")


def _digits(figure: Figure, verdict: dict[str, Any], control: dict[str, Any]) -> None:
    axes = figure.subplots()
    for number, (label, found) in enumerate((("canaries", verdict), ("no canaries", control))):
        _curve(axes, found["details"]["accuracy"], number, label)
    _sizes_axis(axes, verdict["details"]["accuracy"])
    axes.set_ylabel("test accuracy, step size tuned for each b")
    axes.set_title("Softmax regression on digits", loc="left", fontsize=9)
    axes.legend()
