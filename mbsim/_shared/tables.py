"""Small tables of words and numbers, as aligned text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["as_html", "as_text"]


def as_text(
    rows: Iterable[Sequence[str]], *, align: str = "", least: Sequence[int] = (), gap: str = "  "
) -> list[str]:
    r"""The lines of a table whose columns are as wide as their widest cell; a head is a row.

    Args:
        rows: cells, as many in every row.
        align: one of ``<``, ``>`` and ``^`` for each column from the left; ``<`` for the rest.
        least: the least width of each column from the left.
        gap: what stands between two columns.

    >>> print(*as_text([("b", "floor"), ("16", "0.2")], align=">"), sep="\n")
     b  floor
    16  0.2
    """
    rows = [tuple(map(str, row)) for row in rows]
    columns = len(rows[0]) if rows else 0
    sides, floors = align.ljust(columns, "<"), [*least, *[0] * columns]
    widths = [max(floors[i], *(len(row[i]) for row in rows)) for i in range(columns)]
    return [
        gap.join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=False)).rstrip()
        for row in rows
    ]


def as_html(rows: Iterable[Sequence[str]], *, head: Sequence[str] = (), caption: str = "") -> str:
    """The table for a notebook, its cells escaped.

    >>> as_html([("p", "< 0.1")]).replace(" style='text-align:left'", "")
    '<table><tr><td>p</td><td>&lt; 0.1</td></tr></table>'
    """

    def line(cells: Iterable[str], tag: str) -> str:
        style = " style='text-align:left'"
        whole = (f"<{tag}{style}>{html.escape(str(cell))}</{tag}>" for cell in cells)
        return f"<tr>{''.join(whole)}</tr>"

    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    above = line(head, "th") if head else ""
    return f"<table>{title}{above}{''.join(line(row, 'td') for row in rows)}</table>"
