"""A step of many replicates, from one stream: for what is not compiled, a lane at a time."""

from __future__ import annotations

from numba import boolean, float64, int64, void

from mbsim.compiled.jit import STATE, compiled
from mbsim.compiled.step import MODEL, SIZES, combine, measure

__all__ = ["combine_all", "measure_all"]

_MATRIX, _COUNTS, _ROOMS = float64[:, ::1], int64[:, ::1], float64[:, :, ::1]


@compiled(void(SIZES, MODEL, _MATRIX, _COUNTS, _ROOMS, _MATRIX))
def measure_all(sizes, model, g, counts, rooms, frames):
    """:func:`~mbsim.compiled.step.measure` for each replicate."""
    for i in range(len(g)):
        measure(g[i], sizes, model, counts[i], rooms[i], frames[i])


@compiled(void(STATE, SIZES, MODEL, _MATRIX, _COUNTS, _ROOMS, _MATRIX, _MATRIX, boolean[::1]))
def combine_all(state, sizes, model, g, counts, rooms, frames, updates, stalled):
    """:func:`~mbsim.compiled.step.combine` for each replicate."""
    for i in range(len(g)):
        stalled[i] = combine(state, sizes, model, g[i], counts[i], rooms[i], frames[i], updates[i])
