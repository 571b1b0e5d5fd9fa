r"""One step of Algorithm 1 by its law, in scalars; and runs made of such steps.

In the frame of the gradient a step is decided by a few numbers per micro-batch (the theory page,
sections 2 and 9). With k draggers among b examples and α = 1 − k/b, the micro-batch mean X has

- along e: α(r + ñ_e), and the tilt of its draggers;
- across e in the benign frame: an isotropic Gaussian of n − 1 dimensions;
- in the dragger frame: (k/b)√γ along the direction h that the step's draggers have in common, and
  across h the mean of k uniform directions times √(1 − γ), both times a dragger's length.

The norms follow, and from them the factors φ. What is left is the length and direction of Σ φ X
across e and across h. Its direction is uniform. Its length is found by adding one vector at a time:
‖S + φY‖² = ‖S‖² + 2‖S‖ φ⟨Y, Ŝ⟩ + φ²‖Y‖², and since the direction of Y is uniform and independent
of S and of all norms, ⟨Y, Ŝ⟩ has the law of any one coordinate of Y: one normal number, drawn
together with the length of Y, since ‖Y‖² is its square and a χ² of one degree less.

A replicate has a stream and rows of its own: ``counts``, ``int64[m]``, benign examples in each
micro-batch; and ``room``, ``float64[7, m]``, with the rows named below. `sizes` are m, b, n, the
dimension of the dragger frame and that of what is across h in it; `model` is c, σ, γ, √(1 − γ) and
the tilt per transverse length.
"""

from __future__ import annotations

import math

import numpy as np
from numba import boolean, float64, int64, types, void

from mbsim.compiled.arrays import dot
from mbsim.compiled.draws import chi_square, cosine, normal, uniform
from mbsim.compiled.jit import (
    INTS,
    LAW,
    LOSS,
    REALS,
    RULE,
    STATE,
    compiled,
    helper,
    pointer,
)

__all__ = ["combine", "draw_counts", "draw_lengths", "draw_noise", "measure", "run"]

# Rows of the room: noise along e, times α; the length across e, times α, and its one coordinate;
# the length of the dragger part across h over a dragger's; then X along e, ‖X‖, and φ.
NOISE, ACROSS, COORDINATE, OWN, ALONG, NORMS, FACTORS = range(7)
ROWS = 7

SIZES, MODEL = types.UniTuple(int64, 5), types.UniTuple(float64, 5)
_ROOM, _TABLE = float64[:, ::1], int64[:, ::1]

# Between these, sizes can be squared twice without leaving what is exact in float64.
_LEAST, _MOST = 2.0**-200, 2.0**200


@helper
def _unit(size):
    """The power of two next to a size of which squares cannot be taken; else 1."""
    unit = 1.0
    if not (_LEAST < size < _MOST) and 0 < size < math.inf:
        unit = math.ldexp(1.0, min(max(math.frexp(size)[1], -1021), 1023))
    return unit


@helper
def _norm(one, two, three):
    """The root of a sum of squares, also where a square is beyond float64."""
    square = one * one + two * two + three * three
    if _LEAST**2 < square < _MOST**2:
        out = math.sqrt(square)
    else:
        unit = _unit(max(abs(one), abs(two), abs(three)))
        one, two, three = one / unit, two / unit, three / unit
        out = unit * math.sqrt(one * one + two * two + three * three)
    return out


@compiled(void(STATE, _TABLE, REALS, INTS))
def draw_counts(state, values, chances, counts):
    """How many benign examples each micro-batch has, from a table of aliases (Walker, 1977).

    A uniform place in the table holds two values, the first with the chance that stands there.
    """
    for j in range(counts.size):
        place = uniform(state) * chances.size
        entry = int(place)
        counts[j] = values[0 if place - entry < chances[entry] else 1, entry]


@compiled(void(pointer(LAW), REALS, STATE, SIZES, INTS, _ROOM))
def draw_noise(law, numbers, state, sizes, counts, room):
    """The noise of the benign examples by a compiled law."""
    law(counts, sizes[2], numbers, state, room[NOISE], room[ACROSS])


@compiled(void(STATE, SIZES, MODEL, INTS, _ROOM))
def draw_lengths(state, sizes, model, counts, room):
    """From the noise of the benign examples to what NOISE, ACROSS, COORDINATE and OWN say."""
    _, b, n, _, own_dim = sizes
    for j in range(counts.size):
        share = counts[j] / b
        room[NOISE, j] *= share
        deviation = share * room[ACROSS, j]
        room[ACROSS, j] = room[COORDINATE, j] = room[OWN, j] = 0
        if deviation > 0 and n > 1:
            x = normal(state)
            room[COORDINATE, j] = deviation * x
            room[ACROSS, j] = deviation * math.sqrt(x * x + chi_square(state, n - 2))
        if counts[j] < b and own_dim > 0:
            square = 1.0
            for _ in range(b - counts[j] - 1):
                square += 2 * math.sqrt(square) * cosine(state, own_dim) + 1
                square = max(square, 0.0)  # a sum of ±1 can cancel exactly, but for rounding
            room[OWN, j] = model[3] / b * math.sqrt(square)


@compiled(void(REALS, SIZES, MODEL, INTS, _ROOM, REALS))
def measure(g, sizes, model, counts, room, frame):
    """X along e and ‖X‖; g is put into a unit in which squares can be taken.

    `frame` is filled with that unit, and in it ‖g‖² in the benign subspace and outside of it.
    """
    _, b, n, _, _ = sizes
    norm_ratio, sigma, coherence, _, slope = model
    frame[0], frame[1], frame[2] = 1, dot(g, g, 0, n), dot(g, g, n, g.size)
    if not (_LEAST**2 < frame[1] + frame[2] < _MOST**2):
        most = 0.0
        for i in range(g.size):
            most = max(most, abs(g[i]))
        frame[0] = _unit(most)
        for i in range(g.size):
            g[i] /= frame[0]
        frame[1], frame[2] = dot(g, g, 0, n), dot(g, g, n, g.size)
    r = frame[0] * math.sqrt(frame[1] + frame[2])
    length = norm_ratio * _norm(r, sigma, 0.0)
    common = math.sqrt(coherence)
    for j in range(counts.size):
        share = counts[j] / b
        room[ALONG, j] = share * r + room[NOISE, j]
        if slope != 0:
            room[ALONG, j] += (1 - share) * (slope * length)
        dragger = math.sqrt(room[OWN, j] ** 2 + ((1 - share) * common) ** 2)
        # Without draggers their length, which may be infinite, does not matter.
        dragger = dragger * length if dragger > 0 else 0.0
        room[NORMS, j] = _norm(room[ALONG, j], room[ACROSS, j], dragger)


@helper
def _length_across(room):
    """‖Σ φ_j Y_j‖ of the parts across e."""
    m, most = room.shape[1], 0.0
    for j in range(m):
        most = max(most, room[FACTORS, j] * room[ACROSS, j])
    unit, square = _unit(most), 0.0
    for j in range(m):
        if room[ACROSS, j] > 0:
            factor = room[FACTORS, j] / unit
            step = 2 * math.sqrt(square) * (factor * room[COORDINATE, j])
            square += step + (factor * room[ACROSS, j]) ** 2
            square = max(square, 0.0)
    return unit * math.sqrt(square)


@helper
def _length_of_draggers(state, own_dim, room):
    """The same of the dragger parts across h, over a dragger's length."""
    m, most = room.shape[1], 0.0
    for j in range(m):
        most = max(most, room[FACTORS, j] * room[OWN, j])
    unit, square = _unit(most), 0.0
    for j in range(m):
        size = room[FACTORS, j] / unit * room[OWN, j]
        if size > 0:
            if square > 0:
                square += 2 * math.sqrt(square) * size * cosine(state, own_dim)
            square = max(square + size * size, 0.0)
    return unit * math.sqrt(square)


@helper
def _place(state, g, square, start, stop, along, length, update):
    """In one subspace: `along` times g, and `length` in a uniform direction orthogonal to g.

    Of a Gaussian z with first coordinate 0 the reflection H that takes the first axis to ± the
    direction of g makes a Gaussian orthogonal to g. With v = g + s‖g‖e₁, s = sign(g₁):
    H z = z − v⟨g, z⟩/(‖g‖² + ‖g‖|g₁|).
    """
    if length > 0:
        size = inner = 0.0
        for i in range(start + 1, stop):
            z = normal(state)
            update[i] = z
            size += z * z
            inner += g[i] * z
        length /= math.sqrt(size)
        norm = math.sqrt(square)
        below = square + norm * abs(g[start])
        pull = length * inner / below if below > 0 else 0.0
        along -= pull
        update[start] = along * g[start] - pull * math.copysign(norm, g[start])
        for i in range(start + 1, stop):
            update[i] = along * g[i] + length * update[i]
    else:
        for i in range(start, stop):
            update[i] = along * g[i]


@compiled(boolean(STATE, SIZES, MODEL, REALS, INTS, _ROOM, REALS, REALS))
def combine(state, sizes, model, g, counts, room, frame, update):
    """u = (1/m) Σ φ_j X_j, and whether the step stands still because a norm is 0."""
    m, b, n, dragger_dim, own_dim = sizes
    d = g.size
    moves = some_zero = False
    along = common = 0.0
    for j in range(m):
        some_zero |= room[NORMS, j] == 0
        moves |= room[NORMS, j] != 0 and room[FACTORS, j] != 0
        room[FACTORS, j] /= m
        along += room[FACTORS, j] * room[ALONG, j]
        common += room[FACTORS, j] * (1 - counts[j] / b)
    across = _length_across(room)
    dragged = _length_of_draggers(state, own_dim, room) if own_dim > 0 else 0.0
    dragged = _norm(dragged, common * math.sqrt(model[2]), 0.0)
    r = math.sqrt(frame[1] + frame[2])
    dragged = dragged * (model[0] * _norm(frame[0] * r, model[1], 0.0)) if dragged > 0 else 0.0
    if dragger_dim == 0:
        dragged = 0.0
    scale = along / r if r > 0 else 0.0
    _place(state, g, frame[1], 0, n, scale, across, update)
    _place(state, g, frame[2], n, d, scale, dragged, update)
    if r == 0:  # there e is the first axis
        update[0] += along
    return some_zero and not moves


_STATES, _MATRIX, _RECORDS = STATE[::1], float64[:, ::1], float64[:, :]


_PARTS = (pointer(LOSS), REALS, pointer(LAW), REALS, pointer(RULE), REALS)
_SETTING = (SIZES, MODEL, _TABLE, REALS, float64, float64)
_SPAN = types.UniTuple(int64, 4)


@compiled(void(*_PARTS, *_SETTING, _SPAN, _STATES, _MATRIX, REALS, INTS, INTS, _RECORDS, _RECORDS))
def run(
    loss, loss_numbers, law, law_numbers, rule, rule_numbers,
    sizes, model, values, chances, step_size, limit,
    span, states, w, total, diverged_at, stalled_at, grad_norm_sq, losses,
):  # fmt: skip
    """Advance some replicates from step span[0] to span[1] of span[2], each by itself.

    ‖g‖² and the loss are recorded at every span[3]-th step and the last. A replicate whose loss is
    not at most `limit` has diverged: from then on its numbers are NaN.
    """
    first, stop, steps, every = span
    counts, room = np.empty(sizes[0], np.int64), np.empty((ROWS, sizes[0]))
    noise, across, norms, factors = room[NOISE], room[ACROSS], room[NORMS], room[FACTORS]
    g, update, frame = np.empty(w.shape[1]), np.empty(w.shape[1]), np.empty(3)
    for i in range(len(w)):
        state, here = states[i], w[i]
        for t in range(first, stop):
            if diverged_at[i] >= 0:
                break
            value = loss(here, loss_numbers, g)
            square = dot(g, g, 0, g.size)
            record = -(-t // every)  # this one, or the next
            if not value <= limit:
                diverged_at[i] = t
                total[i] = np.nan
                for k in range(g.size):
                    here[k] = np.nan
                for k in range(record, losses.shape[1]):
                    grad_norm_sq[i, k] = losses[i, k] = np.nan
                break
            if t % every == 0 or t == steps:
                grad_norm_sq[i, record], losses[i, record] = square, value
            if t == steps:
                break
            total[i] += square
            draw_counts(state, values, chances, counts)
            law(counts, sizes[2], law_numbers, state, noise, across)
            draw_lengths(state, sizes, model, counts, room)
            measure(g, sizes, model, counts, room, frame)
            rule(norms, rule_numbers, factors)
            if combine(state, sizes, model, g, counts, room, frame, update) and stalled_at[i] < 0:
                stalled_at[i] = t
            for k in range(g.size):
                here[k] -= step_size * update[k]
