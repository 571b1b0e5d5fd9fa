"""A step of training replayed in the Gram matrix, compiled: see :mod:`mbsim.gradients.replay`.

Lanes are runs of one micro-batch size on the same batch: arrays begin ``[sizes, lanes]``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float64, int64, void

from mbsim.compiled.jit import INTS, REALS, RULE, compiled, pointer

__all__ = ["move", "weigh"]

_TABLE, _ROOM = float64[:, ::1], float64[:, :, ::1]


@compiled(
    void(pointer(RULE), REALS, INTS, int64, int64, INTS, _TABLE, _TABLE, _ROOM, _ROOM)
)  # fmt: skip
def weigh(rule, numbers, sizes, first, stop, members, rows, square, products, omega):
    """Fill ω of the batch's examples, ``[sizes, lanes, B]``, for the lanes of one rule.

    `members` are the batch, ``[B]``, `rows` what it has of the Gram matrix, ``[B, N]``; `square` is
    ‖v‖² and `products` are ⟨v, d_i⟩, ``[sizes, lanes, N]``.
    """
    batch = members.size
    inside, norms, factors = np.empty(batch), np.empty(batch), np.empty(batch)
    for i in range(sizes.size):
        b = sizes[i]
        m = batch // b
        for j in range(m):
            inside[j] = 0.0
            for p in range(j * b, (j + 1) * b):
                for q in range(j * b, (j + 1) * b):
                    inside[j] += rows[p, members[q]]
            inside[j] /= b * b
        for lane in range(first, stop):
            for j in range(m):
                along = 0.0
                for p in range(j * b, (j + 1) * b):
                    along += products[i, lane, members[p]]
                norms[j] = math.sqrt(max(square[i, lane] + 2 * along / b + inside[j], 0.0))
            rule(norms[:m], numbers, factors[:m])
            for p in range(batch):
                omega[i, lane, p] = factors[p // b] / batch


@compiled(void(INTS, float64, _ROOM, _ROOM, _TABLE, _TABLE, _ROOM, _TABLE))
def move(members, limit, omega, moved, step_sizes, square, products, total):
    """A step of every lane, in place, where `moved` is Σ_l ω_l ⟨d_l, d_i⟩.

    Where ‖v‖² is not within `limit` any more, `total` is infinite, and the lane stands still.
    """
    for i in range(square.shape[0]):
        for lane in range(square.shape[1]):
            share = along = second = 0.0
            for p in range(members.size):
                weight, at = omega[i, lane, p], members[p]
                share += weight
                along += weight * products[i, lane, at]
                second += weight * moved[i, lane, at]
            e = step_sizes[i, lane]
            kept = 1 - e * share
            found = kept * (kept * square[i, lane] - 2 * e * along) + e * e * second
            if found <= limit:
                square[i, lane] = max(found, 0.0)
            else:
                total[i, lane], square[i, lane], step_sizes[i, lane] = math.inf, 1.0, 0.0
                kept = e = 0.0
            here, there = products[i, lane], moved[i, lane]
            for at in range(here.size):
                here[at] = kept * here[at] - e * there[at]
