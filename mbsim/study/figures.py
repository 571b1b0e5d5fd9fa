"""Figures, drawn from the plain data of a report and from nothing else.

Every curve carries its 99 % intervals. Colours are those of Okabe and Ito, which the colour-blind
can tell apart, and markers and line styles say the same once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mbsim._shared.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
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


# Inches, where a figure is not of the usual size.
_SIZES = {"trajectories": (8.0, 3.4), "bounds": (7.0, 4.4), "interior": (8.0, 3.2)}


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
        "bounds": lambda figure: _bounds(figure, verdicts["bounds-hold"]),
        "interior": lambda figure: _interior(figure, verdicts["interior-bias"]),
        "regret": lambda figure: _regret(figure, verdicts["sweet-spot-predicted"]),
    }
    paths = []
    with mpl.rc_context(_STYLE):
        for name, draw in drawings.items():
            figure = Figure(figsize=_SIZES.get(name, (5.0, 3.4)))
            draw(figure)
            for suffix, about in ((".png", {"Software": None}), (".svg", {"Date": None})):
                paths.append(folder / f"{name}{suffix}")
                with replacing(paths[-1], "out") as file:
                    figure.savefig(file, format=suffix[1:], metadata=about)
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


def _plain_numbers(axis: Axis) -> None:
    """A logarithmic axis labelled with plain numbers, at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _horizons_axis(axes: Axes, points: Points) -> None:
    axes.set(xscale="log", yscale="log", xlim=(0.9 * points[0]["x"], 1.1 * points[-1]["x"]))
    for axis in (axes.xaxis, axes.yaxis):
        _plain_numbers(axis)


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


def _bounds(figure: Figure, verdict: dict[str, Any]) -> None:
    """How far above the simulation each bound lies: a dot for every problem."""
    axes = figure.subplots()
    found = {
        name: bound["slacks"]
        for name, bound in verdict["details"]["bounds"].items()
        if bound["slacks"] and "(plain)" not in name
    }
    order = sorted(found, key=lambda name: float(np.median(found[name])), reverse=True)
    for row, name in enumerate(order):
        slacks = np.array(found[name])
        axes.plot(
            slacks, np.full(slacks.size, row), "o", color=_COLOURS[0], alpha=0.35, ms=4, mew=0
        )
        axes.plot([np.median(slacks)] * 2, [row - 0.3, row + 0.3], color=_COLOURS[1], linewidth=2)
    axes.axvline(1, color="0.4", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(order)), [name.replace(" (sharper)", "") for name in order])
    axes.set_xlabel("right side over simulated left side (bar: median)")
    problems = verdict["details"]["problems"]
    axes.set_title(f"Bounds held against {problems} problems", loc="left", fontsize=9)


def _interior(figure: Figure, verdict: dict[str, Any]) -> None:
    """The three quantities of the central claim against b."""
    curves, lowest = verdict["details"]["curves"], verdict["details"]["lowest"]
    panels = (
        ("bias term of the bound", ("bias",)),
        ("whole bound", ("bound",)),
        ("floor", ("floor", "simulated floor")),
    )
    for axes, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for number, name in enumerate(names):
            curve = {int(b): y for b, y in curves[name].items() if y is not None and np.isfinite(y)}
            label = {"floor": "of the drift", "simulated floor": "simulated"}.get(name)
            style = {"marker": _MARKERS[number], "color": _COLOURS[number], "markersize": 4}
            axes.plot(list(curve), list(curve.values()), label=label, linewidth=1.2, **style)
            best = int(lowest[name])
            axes.plot([best], [curve[best]], "o", ms=10, mfc="none", color=_COLOURS[number])
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
        _sizes_axis(axes, [{"x": b} for b in curve])
        axes.set_xlabel("micro-batch size b")
        axes.set_title(title, loc="left", fontsize=9)
        if len(names) > 1:
            axes.legend()


def _regret(figure: Figure, verdict: dict[str, Any]) -> None:
    """Floor at the advised micro-batch size over the lowest: a dot for every problem."""
    axes = figure.subplots()
    regrets = verdict["details"]["every_regret"]
    for row, (rule, values) in enumerate(reversed(regrets.items())):
        colour = _COLOURS[0] if rule in ("floor", "certificate") else _COLOURS[2]
        axes.plot(values, np.full(len(values), row), "o", color=colour, alpha=0.35, ms=4, mew=0)
        axes.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color=_COLOURS[1], linewidth=2)
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set_yticks(range(len(regrets)), list(reversed(regrets)))
    axes.set_xlabel("floor at the chosen b over the lowest floor (bar: median)")
    axes.set_title("What it costs to follow each rule", loc="left", fontsize=9)
