"""The house style, and a few ways to draw: arrays in, Axes out.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; markers and line styles
say the same once more. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "cells",
    "curve",
    "dots",
    "intervals",
    "name_lines",
    "on",
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


@contextmanager
def on(ax: Axes | None) -> Iterator[Axes]:
    """The Axes given, or those of a new figure of pyplot's, to draw on in the house style.

    >>> from matplotlib.figure import Figure
    >>> given = Figure().subplots()
    >>> with on(given) as axes:
    ...     axes is given
    True
    """
    import matplotlib as mpl

    with style():
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots()[1]
        yield ax
        interactive = mpl.is_interactive()
    # The backend of a notebook wakes with its first figure; it is not to fall asleep again.
    mpl.interactive(interactive)


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
            figure.set_layout_engine("none")  # both are laid out alike, and once
    return found


def curve(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    number: int | None = None,
    label: str | None = None,
    band: bool = False,
    **style: Any,
) -> Axes:
    """A curve with its intervals.

    Args:
        axes: where to draw.
        x: where the points are.
        y: how high.
        interval: the lower and the upper ends of the intervals, one for each point; None for none.
        number: which curve of its panel, from 0: it decides colour, marker and line. As many as
            are labelled there, unless told.
        label: its name.
        band: for many points: a band in place of bars, and no markers.
        **style: properties of the line, such as ``color``, in place of the house's.

    Returns:
        `axes`.

    >>> from matplotlib.figure import Figure
    >>> axes = curve(Figure().subplots(), [1, 2], [3, 4], ([2, 3], [4, 5]), label="height")
    >>> axes.get_legend_handles_labels()[1]
    ['height']
    """
    if number is None:
        number = len(axes.get_legend_handles_labels()[1])
    marked: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": label}
    if band:
        marked |= {"linestyle": _LINES[number % len(_LINES)], "linewidth": 1.4}
    else:
        marked |= {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 4, "linewidth": 1.2}
    marked |= style
    if interval is None:
        axes.plot(x, y, **marked)
        return axes
    low, middle, high = (np.asarray(values) for values in (interval[0], y, interval[1]))
    if band:
        axes.plot(x, middle, **marked)
        axes.fill_between(x, low, high, color=marked["color"], alpha=0.2, linewidth=0)
    else:
        axes.errorbar(
            x, middle, np.maximum([middle - low, high - middle], 0), capsize=2.5, **marked
        )
    return axes


_NAME = "the name of a line"


def name_lines(axes: Axes, *, most: int = 4) -> None:
    """Write the name of each line at its right end, in its colour; a legend if there are many.

    Call it last, when the axes have their scales and limits. Names that it wrote before go.

    >>> from matplotlib.figure import Figure
    >>> axes = curve(Figure().subplots(), [1, 2], [3, 4], label="up")
    >>> name_lines(axes)
    >>> [text.get_text() for text in axes.texts]
    ['up']
    """
    for text in [text for text in axes.texts if text.get_gid() == _NAME]:
        text.remove()
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > most:
        axes.legend()
        return
    ends = []
    for handle, label in zip(handles, labels, strict=True):
        line: Any = handle[0] if isinstance(handle, tuple) else handle
        points: Any = np.ma.filled(np.ma.asarray(line.get_xydata(), dtype=float), np.nan)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            height = axes.transData.transform(points[-1])[1]
            ends.append((float(np.nan_to_num(height)), tuple(points[-1]), label, line.get_color()))
    figure: Any = axes.get_figure(root=True)
    inch, last = figure.dpi / 72, -np.inf
    for height, point, label, colour in sorted(ends):
        last = max(height, last + 11 * inch)  # names of 8 points do not touch
        axes.annotate(
            label,
            point,
            (5, (last - height) / inch),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            gid=_NAME,
        )


def intervals(
    axes: Axes,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    number: int = 0,
    shift: float = 0.0,
    **style: Any,
) -> Axes:
    """A row for each name with its estimate and interval, the first row at the top.

    Args:
        axes: where to draw.
        rows: name, estimate, low and high of each; ends that are infinite are left out.
        number: of the colour and the marker.
        shift: how far above the middle of its row.
        **style: properties in place of the house's.

    Returns:
        `axes`.

    >>> from matplotlib.figure import Figure
    >>> axes = intervals(Figure().subplots(), [("tilt", 0.2, 0.1, 0.3), ("p", 0.5, 0.4, 0.6)])
    >>> [text.get_text() for text in axes.get_yticklabels()], axes.get_ylim()[0] > 0
    (['tilt', 'p'], np.True_)
    """
    middle, low, high = (np.array([row[i] for row in rows], dtype=float) for i in (1, 2, 3))
    middle = np.where(np.isfinite(middle), middle, np.nan)
    low, high = (np.where(np.isfinite(end), end, middle) for end in (low, high))
    marked = {"color": COLOURS[number], "marker": _MARKERS[number], "markersize": 4.5}
    axes.errorbar(
        middle,
        np.arange(len(rows)) - shift,
        xerr=np.maximum([middle - low, high - middle], 0),
        **{"linestyle": "none", "capsize": 2.5, **marked, **style},
    )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
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


def cells(
    axes: Axes,
    x: Sequence[str],
    y: Sequence[str],
    values: ArrayLike,
    texts: Sequence[Sequence[str]],
    **style: Any,
) -> Axes:
    """A map: a coloured cell for every pair of x and y, with what it says written in it.

    Args:
        axes: where to draw.
        x: the names of the columns.
        y: the names of the rows, from the bottom.
        values: ``[y, x]``, which decide the colours; a NaN leaves its cell empty.
        texts: what is written in each cell.
        **style: as of :meth:`~matplotlib.axes.Axes.imshow`.

    Returns:
        `axes`.

    >>> from matplotlib.figure import Figure
    >>> axes = cells(Figure().subplots(), ["1", "2"], ["a"], [[0, 1]], [["low", "high"]])
    >>> [text.get_text() for text in axes.texts]
    ['low', 'high']
    """
    found = np.ma.masked_invalid(np.asarray(values, dtype=float))
    look = {"cmap": "cividis", "origin": "lower", "aspect": "auto", **style}
    image = axes.imshow(found, **look)
    for (i, j), value in np.ndenumerate(np.asarray(found.filled(np.nan), dtype=float)):
        # Black on light cells and on empty ones, white on dark ones.
        light = not np.isfinite(value) or float(np.asarray(image.norm(value))) > 0.5
        colour = "black" if light else "white"
        axes.text(j, i, texts[i][j], ha="center", va="center", color=colour)
    axes.set_xticks(range(len(x)), x)
    axes.set_yticks(range(len(y)), y)
    axes.grid(visible=False)
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
