"""Blocks of replicates: the statistics that are kept of each, and when there are enough.

A block is a cell's replicates from one number on, 256 or those that are left, as statistics that
add: means and deviations of ‖∇L‖² and of the loss at every recorded step and of the average of
‖∇L‖² over a run, and counts of their values in bins from which quantiles follow. Blocks are put
together in the order of their numbers, so that it does not matter in which order they came.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mbsim import statistics
from mbsim._shared.arrays import Array, Integers
from mbsim._shared.values import value
from mbsim.problems.lengths import unit_of
from mbsim.simulation.run import Run
from mbsim.sweeps.grid import BLOCK, Grid

__all__ = ["QUANTILES", "Block", "Summary"]


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Of all looks at one number of a cell together.
_RATE = 0.05


class Block(NamedTuple):
    """What is kept of the replicates from `first` on. Columns are ‖∇L‖² at each of the recorded
    steps, the loss at each, and the average of ‖∇L‖² over a run.

    Attributes:
        first: the number of the first replicate.
        replicates: how many there are.
        diverged, stalled: how many of them did.
        provenance: versions and engine, as JSON.
        steps: int64[records].
        mean, deviation: float64[2 records + 1], of each column.
        bins: int64[bins], column and bin in one number, ascending; counts: int64[bins].
    """

    first: int
    replicates: int
    diverged: int
    stalled: int
    provenance: str
    steps: Integers
    mean: Array
    deviation: Array
    bins: Integers
    counts: Integers


# A bin is the numbers whose sign, exponent and first 6 bits after the point are the same: within
# 1/128 of its middle. They are told by the bits of a float, so without rounding.
_CUT, _WIDE, _HALF = 46, 18, 1 << 17


def condensed(run: Run, first: int) -> Block:
    """A run's statistics; a diverged replicate makes means NaN, and is in the highest bin."""
    columns = np.column_stack([run.grad_norm_sq, run.loss, run.mean_grad_norm_sq])
    columns = np.where(np.isnan(columns), np.inf, columns) + 0.0  # −0 is 0
    bits = columns.view(np.int64)
    bits = np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)  # in the order of the numbers
    codes = (np.arange(columns.shape[1]) << _WIDE) + (bits >> _CUT) + _HALF
    bins, counts = np.unique(codes, return_counts=True)
    names = ("grad_norm_sq", "loss", "mean_grad_norm_sq")
    error = np.hstack([run.standard_error(name) for name in names])
    alone = run.replicates == 1
    return Block(
        first=first,
        replicates=run.replicates,
        diverged=int(run.diverged.sum()),
        stalled=int(run.stalled.sum()),
        provenance=json.dumps({"engine": run.engine, **run.recipe["versions"]}),
        steps=run.steps,
        mean=np.hstack([run.mean(name) for name in names]),
        deviation=np.zeros_like(error) if alone else error * math.sqrt(run.replicates),
        bins=bins,
        counts=counts,
    )


@value
class Summary:
    """All blocks of a cell together; columns as in a :class:`Block`.

    Attributes:
        replicates, diverged, stalled: how many.
        steps: int64[records].
        mean, error: float64[2 records + 1], each column's mean and its standard error.
        quantiles: float64[5, 2 records + 1], at 5, 25, 50, 75 and 95 %, each within 1/128 of it.
    """

    replicates: int
    diverged: int
    stalled: int
    steps: Integers
    mean: Array
    error: Array
    quantiles: Array


def together(blocks: Sequence[Block]) -> Summary:
    """What blocks of one cell say together; they are in the order of their numbers."""
    heads = [(block.replicates, block.mean, block.deviation) for block in blocks]
    count, mean, deviation = _added(heads)
    codes, counts = blocks[0].bins, blocks[0].counts
    if len(blocks) > 1:
        codes, where = np.unique(np.concatenate([b.bins for b in blocks]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([b.counts for b in blocks])).astype(np.int64)
    # Every column has all replicates, so the ranks of its quantiles follow those of the last.
    ranks = np.ceil(np.multiply(QUANTILES, count)).astype(np.int64)[:, None]
    places = np.searchsorted(counts.cumsum(), count * np.arange(mean.size) + ranks)
    quantiles = _middles((codes[places] & (2 * _HALF - 1)) - _HALF)
    return Summary(
        replicates=count,
        diverged=sum(b.diverged for b in blocks),
        stalled=sum(b.stalled for b in blocks),
        steps=blocks[0].steps,
        mean=mean,
        error=deviation / math.sqrt(count) if count > 1 else np.full_like(mean, math.nan),
        quantiles=quantiles,
    )


def _middles(bins: Integers) -> Array:
    """The middle of each bin; 0 for that of 0, and infinity for that of infinity."""
    ends = np.stack([bins, bins + 1]) << _CUT
    ends = np.where(ends < 0, ends ^ np.int64(2**63 - 1), ends).view(np.float64)
    finite = np.isfinite(ends)
    low, high = np.where(finite, ends, ends[::-1])  # the largest floats are next to infinity
    with np.errstate(invalid="ignore"):
        middle = np.where(finite.any(axis=0), low / 2 + high / 2, ends[0])
    found: Array = np.where((bins == 0) | (bins == -1), 0.0, middle)
    return found


def _added(heads: Sequence[tuple[int, Array, Array]]) -> tuple[int, Array, Array]:
    """Count, mean and deviation of all, from those of each: Chan, Golub and LeVeque (1983)."""
    largest = np.max([np.maximum(np.abs(m), d) for _, m, d in heads], axis=0)
    unit = unit_of(largest)  # in which squares do not overflow
    count, mean, deviation = heads[0]
    with np.errstate(invalid="ignore"):
        mean, spread = mean / unit, np.square(deviation / unit) * (count - 1)
        for more, other, its in heads[1:]:
            gap, whole = other / unit - mean, count + more
            spread = spread + np.square(its / unit) * (more - 1)
            spread = spread + np.square(gap) * (count * more / whole)
            mean, count = mean + gap * (more / whole), whole
        return count, unit * mean, unit * np.sqrt(spread / max(1, count - 1))


# By their first replicates and how many they have.
Blocks = tuple[tuple[int, int], ...]


class Head(NamedTuple):
    """Of a block what decides whether there are enough: two means and their deviations."""

    replicates: int
    average: float = math.nan
    average_deviation: float = math.nan
    final: float = math.nan
    final_deviation: float = math.nan


def head(block: Block) -> Head:
    """What decides of a block."""
    last, mean, deviation = block.steps.size - 1, block.mean, block.deviation
    return Head(block.replicates, mean[-1], deviation[-1], mean[last], deviation[last])


def needed(grid: Grid, have: dict[tuple[int, int], Head]) -> tuple[Blocks, bool]:
    """The blocks (first, count) that make up a cell as far as is known, and whether that is enough.

    With a target the cell is looked at after 1, 2, 3, 4, 5, 6, 8, … blocks, about a quarter more
    each time, and those up to the next look are drawn side by side. It has enough when the interval
    that holds at all looks together is no wider than one of the standard error that is asked for.
    """
    most = grid.most
    if grid.relative_standard_error is None:
        return _blocks(most), True
    looks = 1
    while True:
        blocks = _blocks(min(looks * BLOCK, most))
        if not have.keys() >= {*blocks}:
            return blocks, True
        if _enough(grid, [have[block] for block in blocks]):
            return blocks, True
        if looks * BLOCK >= most:
            return blocks, False
        looks += max(1, looks // 4)


@lru_cache
def _blocks(replicates: int) -> Blocks:
    return tuple((i, min(BLOCK, replicates - i)) for i in range(0, replicates, BLOCK))


def _enough(grid: Grid, heads: Sequence[Head]) -> bool:
    """Whether both numbers are known well enough, or will never be, as replicates diverged."""
    count, mean, deviation = _added([(h[0], np.array(h[1::2]), np.array(h[2::2])) for h in heads])
    if not np.isfinite(mean).all():
        return True
    reach = always_within(grid, count, deviation, _RATE)
    asked = statistics.t_quantile(math.inf, _RATE / 2) * (grid.relative_standard_error or 0)
    return bool((reach <= asked * np.abs(mean)).all())


def always_within(grid: Grid, count: int, deviation: ArrayLike, rate: float) -> Array:
    """How far means of so many replicates may be from the truth, at whichever look at a cell."""
    tightest = math.sqrt(BLOCK * max(BLOCK, grid.most))
    return statistics.always_within(count, deviation, false_positive_rate=rate, tightest=tightest)


def packed(block: Block) -> tuple[Any, ...]:
    """A block as the columns of a row, after the identity."""
    moments = np.stack([block.mean, block.deviation]).astype("<f8").tobytes()
    gaps = np.diff(block.bins, prepend=0).astype("<i4").tobytes()
    bins = zlib.compress(gaps + block.counts.astype("<u2").tobytes(), 6)
    return (
        block.first, block.replicates, *map(float, head(block)[1:]), block.diverged, block.stalled,
        block.provenance, block.steps.astype("<i8").tobytes(), moments, bins,
    )  # fmt: skip


def unpacked(row: tuple[Any, ...]) -> Block:
    first, count, diverged, stalled, provenance = (row[i] for i in (1, 2, 7, 8, 9))
    steps = np.frombuffer(row[10], "<i8").astype(np.int64)
    mean, deviation = np.frombuffer(row[11], "<f8").astype(np.float64).reshape(2, -1)
    data = zlib.decompress(row[12])
    number = len(data) // 6
    bins = np.frombuffer(data, "<i4", number).astype(np.int64).cumsum()
    counts = np.frombuffer(data, "<u2", number, offset=4 * number).astype(np.int64)
    if mean.size != 2 * steps.size + 1 or counts.sum() != count * mean.size:
        raise ValueError("its parts do not fit together")
    return Block(first, count, diverged, stalled, provenance, steps, mean, deviation, bins, counts)
