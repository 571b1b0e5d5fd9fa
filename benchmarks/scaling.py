"""How cost grows with B, b, d, T and the number of replicates, beside what theory says.

    pip install ".[bench,plots]"
    python benchmarks/scaling.py             # every axis: the table, and docs/scaling.png
    python benchmarks/scaling.py --axis d    # one axis: its table alone

The programs are those of `engines.py` (without PyTorch; without JAX where it is not installed), and
a drift at one gradient norm, a certificate and a sweet spot. They take turns along the whole of an
axis, so that a machine whose speed drifts slows all points alike. A point is the median of five
turns, compilation excluded. A slope is that of a line through the upper half of a curve, on
logarithmic axes. What theory says is a cost, counted in `THEORY`, whose slope over the same points
is found in the same way.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import outside
from engines import mbsim_program, problem_of
from outside import Workload

import mbsim
from mbsim import plots
from mbsim._shared.progress import progress
from mbsim.simulation.reference import Reference

TURNS = 5
FIGURE = Path(__file__).parents[1] / "docs" / "scaling.png"
# Where a run's length is free, it draws about so many numbers: some 0.1 s. Else each engine has the
# three decades of sizes whose runs draw between the two others: milliseconds to a second or two.
NUMBERS, FEWEST_NUMBERS, MOST_NUMBERS = 2**23, 2**16, 2**27
# Replicates of such a run: the most, and so many that one step of all holds about so many numbers.
# JAX is fastest where these fit the cache.
CROWD, CROWD_NUMBERS = 128, {"exact_law": 2**23, "reference": 2**23, "JAX": 2**20}
GRAD_NORM, STEP_SIZE, STEPS = 1.0, 0.05, 1000


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done: a workload, for T steps of R replicates."""

    workload: Workload = outside.W1
    steps: int = STEPS
    replicates: int = 1


@dataclass(frozen=True)
class Theory:
    """A cost, up to a factor; the same in words, and why."""

    cost: Callable[[Work], float]
    cost_in_words: str
    why: str


def _scalars(work: Work) -> float:
    w = work.workload
    draggers = w.probability * w.batch_size
    return work.steps * work.replicates * (4 * w.micro_batches + w.dim + draggers)


def _coordinates(work: Work) -> float:
    return work.steps * work.replicates * work.workload.batch_size * work.workload.dim


def _points(work: Work) -> float:
    return 2.0 if work.workload.micro_batches >= 256 else 1.0


def _in_lanes(work: Work) -> float:
    w, problem = work.workload, problem_of(work.workload)
    lane = Reference.lane_width(problem, w.batch_size, w.micro_batches)
    return _coordinates(replace(work, replicates=-(-work.replicates // lane) * lane))


def _divisors(work: Work) -> float:
    batch = work.workload.batch_size
    sizes = [b for b in range(1, batch + 1) if batch % b == 0]
    each = [replace(work, workload=replace(work.workload, micro_batch_size=b)) for b in sizes]
    return sum(map(_points, each))


# An engine costs what its random numbers cost (the theory page, section 9), a drift what it takes
# to sort points (section 7).
THEORY = {
    "exact_law": Theory(
        _scalars,
        "T R (4m + d + pB), with m = B/b",
        "four numbers for a micro-batch, d for directions, one for a dragger",
    ),
    "reference": Theory(
        _in_lanes, "T R B d", "every coordinate of every example is drawn, in whole lanes of 64"
    ),
    "JAX": Theory(_coordinates, "T R B d", "every coordinate of every example is drawn"),
    "drift": Theory(
        _points,
        "1, and 2 from m = 256",
        "the law of a micro-batch is 30,000 weighted points of a few scalars, or twice as many",
    ),
    "certificate": Theory(
        _points, "1, and 2 from m = 256", "a drift at a dozen or two of gradient norms"
    ),
    "sweet spot": Theory(
        _divisors, "that, over the divisors b of B", "a certificate for each micro-batch size"
    ),
}
COLOURS = dict(zip(THEORY, plots.COLOURS, strict=True))
ENGINES = ("exact_law", "reference", "JAX")
# These take long, to compile or to run: every second size is enough.
SPARSE = ("JAX", "sweet spot")


@dataclass(frozen=True)
class Axis:
    """What grows: its name, what else is fixed, its sizes, who depends on it, and how to set it."""

    title: str
    fixed: str
    sizes: range  # powers of two
    programs: tuple[str, ...]
    work: Callable[[int], Work]
    free: bool = True  # whether steps and replicates are: then seconds are for one of both


def _workload(**changes: int) -> Work:
    return Work(workload=replace(outside.W1, **changes))


AXES = {
    "B": Axis(
        "batch size B", "b = 8, d = 64", range(4, 15), tuple(THEORY),
        lambda size: _workload(batch_size=size),
    ),
    "b": Axis(
        "micro-batch size b", "B = 8192, d = 64", range(2, 13), tuple(THEORY)[:-1],
        lambda size: _workload(batch_size=8192, micro_batch_size=size),
    ),
    "d": Axis(
        "dimension d", "B = 128, b = 8", range(3, 14), tuple(THEORY),
        lambda size: _workload(dim=size, benign_dim=size // 2),
    ),
    "T": Axis(
        "steps T", "B = 128, b = 8, d = 16, R = 64", range(15),
        (*ENGINES, "certificate", "sweet spot"),
        lambda size: replace(_workload(dim=16, benign_dim=8), steps=size, replicates=64),
        free=False,
    ),
    "R": Axis(
        "replicates R", "B = 128, b = 8, d = 64, T = 8", range(17), ENGINES,
        lambda size: Work(steps=8, replicates=size), free=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One program along one axis: sizes, and seconds ``[turns, sizes]``; theory's cost."""

    axis: str
    program: str
    sizes: np.ndarray
    seconds: np.ndarray
    cost: np.ndarray

    @property
    def medians(self) -> np.ndarray:
        """Seconds at each size."""
        return np.median(self.seconds, axis=0)

    @property
    def upper(self) -> np.ndarray:
        """Which sizes are in the upper half of the curve."""
        return self.sizes**2 >= self.sizes[0] * self.sizes[-1]

    def slope(self, values: np.ndarray) -> float:
        """The slope of the upper half of `values`, on logarithmic axes."""
        x, y = np.log(self.sizes[self.upper]), np.log(values[self.upper])
        return float(np.polyfit(x, y, 1)[0])


def call_of(name: str, work: Work) -> Callable[[int], Any]:
    """What is timed: a function of a seed."""
    workload = work.workload
    if name == "JAX":
        return outside.jax_program(workload, work.replicates, work.steps)
    if name in ENGINES:
        return mbsim_program(workload, name, work.replicates, work.steps)
    problem, batch = problem_of(workload), workload.batch_size
    how = {"step_size": STEP_SIZE, "steps": work.steps}
    if name == "sweet spot":
        return lambda _: mbsim.sweet_spot(problem, batch_size=batch, by="certificate", **how)
    method = mbsim.MicroBatchClipping(workload.micro_batch_size)
    if name == "drift":
        return lambda _: mbsim.drift(problem, method, batch_size=batch).at(GRAD_NORM)
    return lambda _: mbsim.drift(problem, method, batch_size=batch).certify(**how)


def timed(axis: Axis, name: str, size: int) -> Work | None:
    """What a program does at one size; None if that is too little to time, or too much."""
    work, cost = axis.work(size), THEORY[name].cost
    if name not in ENGINES:
        return work
    if not axis.free:
        return work if FEWEST_NUMBERS <= cost(work) <= MOST_NUMBERS else None
    numbers = cost(replace(work, steps=1, replicates=CROWD)) / CROWD
    crowd = int(min(CROWD, max(1, CROWD_NUMBERS[name] // numbers)))
    return replace(work, replicates=crowd, steps=max(1, round(NUMBERS / (numbers * crowd))))


def measure(letter: str, names: list[str]) -> list[Line]:
    """Every program along one axis."""
    axis, points = AXES[letter], []
    for i, power in enumerate(axis.sizes):
        for name in names:
            work = timed(axis, name, 2**power) if name in axis.programs else None
            if work and not (i % 2 and name in SPARSE):
                each = work.steps * work.replicates if axis.free and name in ENGINES else 1
                points.append((name, 2**power, call_of(name, work), each, work))
    seconds = np.empty((TURNS, len(points)))
    with progress((TURNS + 1) * len(points), f"seconds against {letter}") as bar:
        for turn in range(-1, TURNS):  # the first compiles, and fills the caches
            for i, (_, _, call, each, _) in enumerate(points):
                began = time.perf_counter()
                call(1 + turn)
                seconds[turn, i] = (time.perf_counter() - began) / each
                bar.update((turn + 1) * len(points) + i + 1)
    lines = []
    for name in (name for name in names if name in axis.programs):
        here = [i for i, point in enumerate(points) if point[0] == name]
        cost = [THEORY[name].cost(points[i][4]) / points[i][3] for i in here]
        sizes = np.array([points[i][1] for i in here])
        lines.append(Line(letter, name, sizes, seconds[:, here], np.array(cost)))
    return lines


# ---------------------------------------------------------------------------- the table


def _time(seconds: float) -> str:
    unit, factor = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * factor:.3g} {unit}"


def _slope(values: np.ndarray, line: Line) -> str:
    return f"{line.slope(values):z.2f}".replace("-", "−")


def _row(line: Line) -> str:
    slopes = sorted(line.seconds, key=line.slope)
    first, last = _time(line.medians[0]), _time(line.medians[-1])
    return (
        f"| {line.axis} | {line.program} | {line.sizes[0]:,} to {line.sizes[-1]:,} | {first} | "
        f"{last} | {_slope(line.medians, line)} | {_slope(slopes[0], line)} to "
        f"{_slope(slopes[-1], line)} | {_slope(line.cost, line)} |"
    )


def table(lines: list[Line]) -> str:
    """The table, in Markdown."""
    head = (
        "| axis | program | sizes | at the first | at the last | slope | of single turns | theory |"
    )
    return "\n".join([head, "|---" * 8 + "|", *map(_row, lines)])


def machine() -> str:
    """What it was measured on."""
    names = ["numpy", "numba", "jax"]
    versions = ", ".join(f"{name} {version(name)}" for name in names if find_spec(name))
    return f"{os.cpu_count()} processors, Python {platform.python_version()}, {versions}"


def load() -> str:
    """How busy the machine is, where that is known."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


# ---------------------------------------------------------------------------- the figure


def draw(lines: list[Line], path: Path) -> None:
    """One panel for each axis."""
    import matplotlib.pyplot as plt

    with plots.style():
        figure, panels = plt.subplots(3, 2, figsize=(8.0, 9.4))
        for axes, letter in zip(panels.flat, AXES, strict=False):
            _panel(axes, AXES[letter], [line for line in lines if line.axis == letter])
        _legend(panels.flat[-1])
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)


def _panel(axes: Any, axis: Axis, lines: list[Line]) -> None:
    axes.set(xscale="log", yscale="log", ylabel="seconds")
    axes.set_title(axis.title, fontweight="bold")
    axes.set_xlabel(axis.fixed, color="0.4")
    for line in lines:
        y, upper, colour = line.medians, line.upper, COLOURS[line.program]
        level = np.exp(np.log(y / line.cost)[upper].mean())
        axes.plot(line.sizes, level * line.cost, ":", color=colour, linewidth=1.1)
        axes.plot(line.sizes, y, color=colour, linewidth=1.3)
        for points, face in ((~upper, "white"), (upper, colour)):
            axes.plot(
                line.sizes[points], y[points], "o", color=colour, ms=3.6, markerfacecolor=face
            )
    low, high = axes.get_ylim()
    # Room above, where lines end at different sizes and labels must pass over one another.
    axes.set_ylim(low / 1.5, high * (1.5 if axis.free else 8))
    _labels(axes, lines)


def _labels(axes: Any, lines: list[Line]) -> None:
    """A name and two slopes beside the end of each line, moved apart where they would overlap."""
    low, high = np.log(axes.get_ylim())
    # A line that ends early has its label above the others, so that leaders do not cross them.
    lines = sorted(lines, key=lambda line: (-line.sizes[-1], line.medians[-1]))
    wanted = np.array([(np.log(line.medians[-1]) - low) / (high - low) for line in lines])
    for line, place in zip(lines, apart(wanted, 0.12, 0.06, 0.95), strict=True):
        colour = COLOURS[line.program]
        axes.annotate(
            f"{line.program}\n{_slope(line.medians, line)}  ({_slope(line.cost, line)})",
            xy=(line.sizes[-1], line.medians[-1]), xytext=(1.07, place),
            textcoords="axes fraction", color=colour, fontsize=8, va="center", linespacing=1.05,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6,
                        "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def apart(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Ascending places near those wanted, at least `gap` apart, between `low` and `high`."""
    # Without its gaps the answer is an ascending sequence: the least-squares one, by pooling.
    shift = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in wanted - shift:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    levels = [np.mean(block) for block in blocks for _ in block]
    return np.clip(levels, low, high - shift[-1]) + shift


def _legend(axes: Any) -> None:
    axes.axis("off")
    axes.set_title("How to read it", fontweight="bold")
    text = (
        "Seconds, medians of five turns. For the engines and\n"
        "JAX: over B, b and d of one step of one replicate,\n"
        "over T and R of the whole run. Else: of one call.\n\n"
        "By each name the slope of the filled points, and in\n"
        "brackets what theory says. Dotted: theory's cost,\n"
        "set to the height of the filled points. It counts:\n"
    )
    place = {"transform": axes.transAxes, "va": "top", "fontsize": 8}
    axes.text(0, 1, text, linespacing=1.4, **place)
    for i, (name, theory) in enumerate(THEORY.items()):
        height = 0.47 - 0.068 * i
        axes.text(0, height, name, color=COLOURS[name], fontweight="bold", **place)
        axes.text(0.33, height, theory.cost_in_words, **place)


def main() -> None:
    """Print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--axis", choices=AXES, help="this one alone, and no figure")
    letter = parser.parse_args().axis
    names = [name for name in THEORY if name != "JAX" or find_spec("jax")]
    if "JAX" not in names:
        print("JAX is not installed: its lines are left out.\n")
    began, before = time.perf_counter(), load()
    lines: list[Line] = []
    for one in [letter] if letter else AXES:
        lines += measure(one, names)
        print(f"{one} after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(lines))
    print(f"\n{machine()}; load {before} at the start, {load()} at the end.\n\nTheory:\n")
    for name, theory in THEORY.items():
        print(f"- {name}: {theory.cost_in_words}: {theory.why}.")
    if not letter:
        draw(lines, FIGURE)
        print(f"\nDrawn: {FIGURE}")


if __name__ == "__main__":
    main()
