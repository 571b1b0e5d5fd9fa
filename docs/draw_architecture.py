"""The rooms of mbsim and who imports whom: read from the code, and drawn.

``python docs/draw_architecture.py`` writes architecture.svg. The tests hold the code against the
order of the rooms with the same reader, and the picture against what is drawn here.
"""

import ast
from itertools import pairwise
from math import floor, fsum
from pathlib import Path
from statistics import fmean

PACKAGE = Path(__file__).parents[1] / "mbsim"
# A room imports only from rooms before it.
ROOMS = [
    "errors", "_shared", "compiled", "clipping", "methods", "plots", "statistics", "verdicts",
    "problems", "simulation", "drifts", "theory", "gradients", "sweeps", "choosing", "checking",
    "testing", "extra", "study", "cli", "__main__",
]  # fmt: skip
# What checks must not depend on what is checked: these never import each other.
STRANGERS = {"simulation", "drifts", "theory"}

Imports = dict[str, set[str]]

# ------------------------------------------------------------------------- reading


def modules(package: Path) -> dict[str, Path]:
    """The file of every module of a package; a folder's is its ``__init__.py``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        place = path.parent if path.stem == "__init__" else path.with_suffix("")
        found[".".join([package.name, *place.relative_to(package).parts])] = path
    return found


def imports(package: Path) -> Imports:
    """For every module, the modules of the package that it imports: anywhere in it, for types too.

    ``from a import b`` imports the module a.b, or a if b is a name in it. Whoever comes from
    outside of a folder runs its ``__init__`` first, and so imports that as well.
    """
    files, found = modules(package), {}
    for module, path in files.items():
        named = set()
        folder = module.split(".")[: None if path.stem == "__init__" else -1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                start = folder[: len(folder) + 1 - node.level] if node.level else []
                base = ".".join([*start, *filter(None, [node.module])])
                parts = {f"{base}.{alias.name}" for alias in node.names}
                named |= {part if part in files else base for part in parts}
        named = {name for name in named if name.split(".")[0] == package.name}
        entered = {name.rsplit(".", n)[0] for name in named for n in range(1, name.count("."))}
        found[module] = named | {one for one in entered if not f"{module}.".startswith(f"{one}.")}
    return found


def room_of(module: str) -> str:
    """The room of ``mbsim.a.b`` is a; of the front door, ``mbsim`` itself, it is ""."""
    return f"{module}.".split(".")[1]


def imports_of_rooms() -> Imports:
    """For every room, the other rooms that it imports."""
    found: Imports = {room: set() for room in ROOMS}
    for module, others in imports(PACKAGE).items():
        if room := room_of(module):
            found[room] |= {room_of(other) for other in others} - {room}
    return found


def without_what_follows(graph: Imports) -> Imports:
    """The graph without an import where a chain of others leads there too."""

    def beyond(room: str) -> set[str]:
        return {far for near in graph[room] for far in (near, *beyond(near))}

    return {
        room: {one for one in near if not any(one in beyond(other) for other in near)}
        for room, near in graph.items()
    }


# ------------------------------------------------------------------------- drawing

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}">
<title>The rooms of mbsim, and who imports whom</title>
<style>
.ground {{ fill: #fff }}
.room {{ fill: #eaf0f6 }}
.stranger {{ fill: #eaf0f6; stroke: #c2571a; stroke-width: 2 }}
.line {{ fill: none; stroke: #22313f; stroke-width: 1.2; marker-end: url(#tip) }}
text {{ font: 11.5px sans-serif; fill: #22313f; text-anchor: middle }}
.name {{ font: bold 15px sans-serif }}
</style>
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
 markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0.5L8,4L0,7.5Z" fill="#22313f"/></marker>
<rect class="ground" width="{0}" height="{1}" rx="8"/>"""
# Lengths: of a line of text and of a tip; beside boxes, beside lines, between rows, around all.
TEXT, TIP, GAP, LANE, BETWEEN, MARGIN = 15, 8, 20, 18, 34, 24
# Of the layout; what is out of line by less than the last is put in line.
STARTS, TURNS, NEARLY = 60, 100, 50


def label(room: str) -> list[str]:
    """The name of a room, and its modules in lines of some 30 characters."""
    every = (name.split(".")[2:3] for name in modules(PACKAGE) if name.startswith(f"mbsim.{room}."))
    inside = list(dict.fromkeys(name for (name,) in every))
    lines = [f"{room}/" if inside else room]
    for name in inside:
        if len(lines) == 1 or len(lines[-1]) + len(name) > 30:
            lines.append(name)
        else:
            lines[-1] += f" · {name}"
    return lines


def half_width(room: str) -> int:
    """Half of the width of a room's box: about that of its text."""
    name, *inside = label(room)
    return 12 + max(30, 5 * len(name), *(13 * len(line) // 4 for line in inside))


def way(user: str, room: str, row_of: dict[str, int]) -> list[str]:
    """What a line joins: two rooms, and the lane between them where it passes other rows."""
    return [user, room] if row_of[user] == row_of[room] + 1 else [user, f"to {room}", room]


def layout(graph: Imports, row_of: dict[str, int]) -> tuple[dict[str, int], int]:
    """The centres of boxes, and of the lanes in which the lines to a room pass rows; the width.

    Each is drawn to where those are, on average, that it is joined to, and pushed aside by others
    in its rows; at last what is nearly in line is put in line. Of several starts the one that ends
    with the shortest lines is kept.
    """
    ways = [way(user, room, row_of) for user in ROOMS for room in sorted(graph[user])]
    links = sorted({link for one in ways for link in pairwise(one)})
    rows = {room: range(row, row + 1) for room, row in row_of.items()}
    for user, *lanes, room in ways:
        for lane in lanes:
            last = max(row_of[user], rows.get(lane, range(0)).stop)
            rows[lane] = range(row_of[room] + 1, last)
    half = {one: half_width(one) + GAP / 2 if one in row_of else LANE / 2 for one in rows}
    joined = {one: [a if b == one else b for a, b in links if one in (a, b)] for one in rows}

    def pushed(order: list[str], wanted: dict[str, float], sign: int) -> dict[str, float]:
        """What comes later gives way, to the right or to the left."""
        centres, edges = {}, dict.fromkeys(row_of.values(), -1e9)
        for one in order:
            x = max(sign * wanted[one], *(edges[row] + half[one] for row in rows[one]))
            edges |= dict.fromkeys(rows[one], x + half[one])
            centres[one] = sign * x
        return centres

    def settled(x: dict[str, float]) -> dict[str, float]:
        for turn in range(2 * TURNS):
            if turn < TURNS:
                wanted = {one: (x[one] + fmean(x[a] for a in joined[one])) / 2 for one in rows}
                order = sorted(rows, key=wanted.__getitem__)
            else:
                for one, above in links:
                    wanted[one] = x[above] if abs(x[above] - x[one]) < NEARLY else x[one]
            right, left = pushed(order, wanted, 1), pushed(order[::-1], wanted, -1)
            x = {one: (right[one] + left[one]) / 2 for one in rows}
        return x

    starts = ({one: 100.0 * (i * k % 97) for i, one in enumerate(rows)} for k in range(1, STARTS))
    x = min(map(settled, starts), key=lambda x: round(fsum(abs(x[a] - x[b]) for a, b in links)))
    left, right = min(x[one] - half[one] for one in rows), max(x[one] + half[one] for one in rows)
    whole = {one: floor(x[one] - left + MARGIN - GAP / 2 + 0.501) for one in rows}
    return whole, round(right - left + 2 * MARGIN - GAP)


def picture() -> str:
    """The picture, as the text of an SVG file."""
    graph = without_what_follows(imports_of_rooms())
    rows: list[list[str]] = [[]]
    for room in ROOMS:  # in their order, and none imports from its own row
        if graph[room] & {*rows[-1]}:
            rows.append([])
        rows[-1].append(room)
    row_of = {room: number for number, row in enumerate(rows) for room in row}
    x, width = layout(graph, row_of)
    heights = [TEXT * (1 + max(len(label(room)) for room in row)) for row in rows]
    tops = [MARGIN + sum(heights[:number]) + number * BETWEEN for number in range(len(rows))]
    drawn = [HEAD.format(width, tops[-1] + heights[-1] + MARGIN)]
    for user in ROOMS:
        for room in sorted(graph[user]):
            y, path = tops[row_of[user]], f"M{x[user]},{tops[row_of[user]]}"
            for a, b in pairwise(way(user, room, row_of)):
                row = row_of.get(b, row_of[user] - 1)
                end = tops[row] + heights[row] + TIP * (b == room)
                path += f"C{x[a]},{(y + end) / 2:g} {x[b]},{(y + end) / 2:g} {x[b]},{end}"
                y = tops[row_of[room] + 1]
                path += f"v-{TIP}" if b == room else f"V{y}"
            drawn.append(f'<path class="line" d="{path}"/>')
    for room in ROOMS:
        top, height, half = tops[row_of[room]], heights[row_of[room]], half_width(room)
        shape = f'x="{x[room] - half}" y="{top}" width="{2 * half}" height="{height}" rx="6"'
        drawn.append(f'<rect class="{"stranger" if room in STRANGERS else "room"}" {shape}/>')
        name, *inside = label(room)
        y = top + height / 2 + 5 - TEXT / 2 * len(inside)
        drawn.append(f'<text class="name" x="{x[room]}" y="{y:g}">{name}</text>')
        for number, line in enumerate(inside, 1):
            drawn.append(f'<text x="{x[room]}" y="{y + 1 + TEXT * number:g}">{line}</text>')
    return "\n".join([*drawn, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(picture(), encoding="utf-8")
