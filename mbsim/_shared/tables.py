"""Small tables of words and numbers, as aligned text, as HTML and as Markdown."""

from __future__ import annotations

import html
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest

__all__ = ["as_html", "as_markdown", "as_text"]


def as_text(
    rows: Iterable[Sequence[str]],
    *,
    align: str = "",
    least: Sequence[int] = (),
    most: Sequence[int] = (),
    gap: str = "  ",
    width: int = 78,
) -> list[str]:
    r"""The lines of a table whose columns are as wide as their widest cell; a head is a row.

    Words that would go beyond the width are folded, in the last column and where `most` says so.

    Args:
        rows: cells, as many in every row.
        align: one of ``<``, ``>``, ``^`` and ``.`` (at the point) for each column from the left;
            ``<`` for the rest.
        least: the least width of each column from the left.
        most: the largest width of each column from the left; 0 for none.
        gap: what stands between two columns.
        width: of the table: 80 columns less an indent of two.

    >>> print(*as_text([("b", "floor"), ("16", "10.2"), ("4", "0.25")], align=">."), sep="\n")
     b  floor
    16  10.2
     4   0.25
    >>> print(*as_text([("16", "it is the lowest of all")], width=24), sep="\n")
    16  it is the lowest of
        all
    """
    rows = [tuple(map(str, row)) for row in rows]
    columns = len(rows[0]) if rows else 0
    sides, floors = align.ljust(columns, "<"), [*least, *[0] * columns]
    for i in (i for i, side in enumerate(sides) if side == "."):
        cells = _at_the_point([row[i] for row in rows])
        rows = [(*row[:i], cell, *row[i + 1 :]) for row, cell in zip(rows, cells, strict=True)]
    limits = [most[i] if i < len(most) else 0 for i in range(columns)]
    widths = [max(floors[i], *(_width(row[i]) for row in rows)) for i in range(columns)]
    widths = [min(w, limit or w) for w, limit in zip(widths, limits, strict=True)]
    if columns and sides[-1] == "<":
        left = width - sum(widths[:-1]) - len(gap) * (columns - 1)
        widths[-1] = min(widths[-1], max(left, 20 if columns > 1 else left))
    lines = []
    for row in rows:
        folded = [_folded(cell, w) for cell, w in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            padded = (_padded(c, s, w) for c, s, w in zip(parts, sides, widths, strict=True))
            lines.append(gap.join(padded).rstrip())
    return lines


def _width(text: str) -> int:
    """The columns that a text takes in a terminal: ω̅ is one."""
    return sum(not unicodedata.combining(letter) for letter in text)


def _padded(text: str, side: str, width: int) -> str:
    return f"{text:{'>' if side == '.' else side}{width + len(text) - _width(text)}}"


def _folded(text: str, width: int) -> list[str]:
    return [text] if _width(text) <= width else textwrap.wrap(text, width)


def _at_the_point(cells: Sequence[str]) -> list[str]:
    """Numbers filled up on the right, so that flush right they stand with their points in line."""
    after = [len(cell) - len(found[0]) if (found := re.match(r"[-+−]?\d+", cell)) else -1
             for cell in cells]  # fmt: skip
    longest = max(after, default=0)
    return [cell + " " * (longest - n) if n >= 0 else cell
            for cell, n in zip(cells, after, strict=True)]  # fmt: skip


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


def as_markdown(rows: Iterable[Sequence[str]], *, head: Sequence[str]) -> str:
    """The lines of a table for a page, below its head.

    >>> print(as_markdown([("16", "10.2")], head=("b", "floor")))
    | b | floor |
    | --- | --- |
    | 16 | 10.2 |
    """
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
