"""The house style, and a few ways to draw: arrays in, Axes out.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; markers and line styles
say the same once more. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "curve",
    "dots",
    "heat_map",
    "pictures",
    "plain_numbers",
    "sizes_axis",
    "style",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", "-.", ":")
_STYLE: Any = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "figure.figsize": (5.0, 3.4),  # inches
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    # Text stays text, and no random identifiers: the same data, the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "mbsim",
}


def style() -> AbstractContextManager[None]:
    """A context in which figures are made and saved in the house style."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def pictures(name: str, draw: Callable[[Figure, Any], None], data: Any) -> dict[str, bytes]:
    """What ``draw(figure, data)`` draws in the house style, as PNG and as SVG, by file name.

    The same data give the same bytes.

    >>> found = pictures("line", lambda figure, y: figure.subplots().plot(y), [1, 2])
    >>> found["line.png"][1:4]
    b'PNG'
    """
    from matplotlib.figure import Figure

    found = {}
    with style():
        figure = Figure()
        draw(figure, data)
        for form, about in (("png", {"Software": None}), ("svg", {"Date": None})):
            file = io.BytesIO()
            figure.savefig(file, format=form, metadata=about)
            found[f"{name}.{form}"] = file.getvalue()
    return found


def curve(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    number: int = 0,
    label: str | None = None,
    band: bool = False,
) -> Axes:
    """A curve with its intervals.

    Args:
        axes: where to draw.
        x: where the points are.
        y: how high.
        interval: the lower and the upper ends of the intervals, one for each point; None for none.
        number: which curve of its panel, from 0: it decides colour, marker and line.
        label: for the legend.
        band: draw the intervals as a band and no markers, for many points, in place of bars.

    Returns:
        `axes`.

    >>> from matplotlib.figure import Figure
    >>> axes = curve(Figure().subplots(), [1, 2], [3, 4], ([2, 3], [4, 5]), label="height")
    >>> axes.get_legend_handles_labels()[1]
    ['height']
    """
    colour = COLOURS[number % len(COLOURS)]
    marked: dict[str, Any] = {
        "color": colour,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.2,
        "label": label,
    }
    if interval is None:
        axes.plot(x, y, **marked)
        return axes
    low, middle, high = (np.asarray(values) for values in (interval[0], y, interval[1]))
    if band:
        line = _LINES[number % len(_LINES)]
        axes.plot(x, middle, color=colour, linestyle=line, label=label, linewidth=1.4)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    else:
        axes.errorbar(
            x, middle, np.maximum([middle - low, high - middle], 0), capsize=2.5, **marked
        )
    return axes


def dots(axes: Axes, rows: Mapping[str, ArrayLike], *, numbers: Sequence[int] = ()) -> Axes:
    """A row of dots for each name, the first at the bottom, with a bar at the median of each.

    Args:
        axes: where to draw.
        rows: the values in each row, by its name.
        numbers: of the colour of each row; all have the first if left out.

    Returns:
        `axes`.

    >>> from matplotlib.figure import Figure
    >>> axes = dots(Figure().subplots(), {"a": [1, 2, 9], "b": [3]})
    >>> [text.get_text() for text in axes.get_yticklabels()]
    ['a', 'b']
    """
    for row, values in enumerate(map(np.asarray, rows.values())):
        colour = COLOURS[numbers[row] if numbers else 0]
        axes.plot(values, np.full(values.size, row), "o", color=colour, alpha=0.35, ms=4, mew=0)
        axes.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color=COLOURS[1], linewidth=2)
    axes.set_yticks(range(len(rows)), list(rows))
    return axes


def heat_map(axes: Axes, x: ArrayLike, y: ArrayLike, values: ArrayLike, *, label: str) -> Axes:
    """A map: a coloured cell for every pair of x and y, and a bar that says what colours mean.

    Args:
        axes: where to draw.
        x: the middles of the columns of cells, ascending.
        y: the middles of the rows.
        values: ``[y, x]``; a NaN leaves its cell empty.
        label: what the values are.

    Returns:
        `axes`.

    >>> from matplotlib.figure import Figure
    >>> axes = heat_map(Figure().subplots(), [1, 2], [1, 2, 3], np.eye(3, 2), label="best b")
    >>> axes.collections[0].get_array().shape
    (3, 2)
    """
    cells = axes.pcolormesh(x, y, np.ma.masked_invalid(values), cmap="viridis", shading="nearest")
    axes.grid(visible=False)
    axes.get_figure(root=True).colorbar(cells, ax=axes, label=label)  # type: ignore[union-attr]
    return axes


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def sizes_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Make x an axis of micro-batch sizes: logarithmic, each of them labelled."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(b) for b in sizes])
    axes.minorticks_off()
    axes.set_xlabel("micro-batch size b  (b = B is SGD)")
