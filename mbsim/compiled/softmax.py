"""Softmax regression, and a network of one tanh layer, compiled: what a step sees, and its update.

Both are layers whose gradients are outer products: of what an example sends back to a layer (its
*signals*: first those to the hidden units, then the residuals softmax(z) − onehot(y)) and what it
sends in. So one sum of a layer's size is all the room that micro-batches need, one after another.
Without hidden units what comes in to the outer layer is the inputs themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numba import boolean, float64, int64, void

from mbsim.compiled.arrays import dot
from mbsim.compiled.jit import INTS, REALS, RULE, compiled, helper, pointer
from mbsim.compiled.rules import _of_rank

__all__ = ["BY", "gather", "look", "move", "steps"]

_TABLE = float64[:, ::1]
# What decides on the micro-batches of a step.
BY = {"norms": 0, "losses": 1, "coordinate median": 2, "geometric median": 3}
_NORMS, _LOSSES, _COORDINATES, _GEOMETRIC = BY.values()
# So many examples are looked at together.
_BLOCK = 64
_TURNS = 8  # of Weiszfeld's iteration, from the mean
_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8  # Adam's


@helper
def _products(weights, values, first, stop, room, sums, found):
    """Fill ⟨w_k, v_i⟩ of some examples, ``found[k, i - first]``: bit for bit what `dot` has.

    The examples are a block of fixed length, beside each other in memory: `room` takes their
    columns, and `sums` the eight of `dot`, of all of them at once.
    """
    outputs, width = weights.shape
    for i in range(first, stop):
        for c in range(width):
            room[c, i - first] = values[i, c]
    last = width - width % 8
    for k in range(outputs):
        sums[:] = 0.0
        for c in range(width):
            weight, at = weights[k, c], c % 8 if c < last else 0
            for i in range(_BLOCK):
                sums[at, i] += weight * room[c, i]
        for i in range(_BLOCK):
            found[k, i] = ((sums[0, i] + sums[1, i]) + (sums[2, i] + sums[3, i])) + (
                (sums[4, i] + sums[5, i]) + (sums[6, i] + sums[7, i])
            )


@helper
def _backward(outer, labels, logits, first, stop, between, signals, losses):
    """Fill signals and losses of a block of examples with these logits, ``[:, i - first]``.

    A label's residual is −Σ of the others, not p_y − 1, which would lose its digits as p_y → 1.
    """
    classes, hidden = outer.shape[0], signals.shape[1] - outer.shape[0]
    for i in range(first, stop):
        top, others = -math.inf, 0.0
        for k in range(classes):
            top = max(top, logits[k, i - first])
        logit = logits[labels[i], i - first] - top
        for k in range(classes):
            if k != labels[i]:
                signals[i, hidden + k] = math.exp(logits[k, i - first] - top)
                others += signals[i, hidden + k]
        whole = others + math.exp(logit)
        signals[i, hidden + labels[i]] = -others
        for k in range(classes):
            signals[i, hidden + k] /= whole
        for h in range(hidden):
            back = 0.0
            for k in range(classes):
                back += signals[i, hidden + k] * outer[k, h]
            signals[i, h] = back * (1 - between[i, h] * between[i, h])
        losses[i] = math.log(whole) - logit


@helper
def _add(signals, at, values, first, stop, scale, total):
    """Add `scale` Σ s_i v_iᵀ of some examples to a layer's `total`, one after another.

    Four at once: that is four times fewer to load and to store, and the same sum.
    """
    outputs, inputs = total.shape
    last = stop - (stop - first) % 4
    for i in range(first, last, 4):
        for k in range(outputs):
            a, b = scale * signals[i, at + k], scale * signals[i + 1, at + k]
            c, d = scale * signals[i + 2, at + k], scale * signals[i + 3, at + k]
            for x in range(inputs):
                total[k, x] = (
                    ((total[k, x] + a * values[i, x]) + b * values[i + 1, x]) + c * values[i + 2, x]
                ) + d * values[i + 3, x]
    for i in range(last, stop):
        for k in range(outputs):
            weight = scale * signals[i, at + k]
            for c in range(inputs):
                total[k, c] += weight * values[i, c]


@helper
def _squares(signals, at, values, size, total, squares):
    """Add ‖Σ s_i v_iᵀ‖² of one layer to every micro-batch's in `squares`; `total` is room."""
    n, (outputs, inputs) = len(signals), total.shape
    for j in range(squares.size):
        first, stop = j * size, min(n, (j + 1) * size)
        if stop - first == 1:
            s, v = signals[first], values[first]
            squares[j] += dot(s, s, at, at + outputs) * dot(v, v, 0, inputs)
        else:
            square, total[:] = 0.0, 0.0
            _add(signals, at, values, first, stop, 1.0, total)
            for k in range(outputs):
                square += dot(total[k], total[k], 0, inputs)
            squares[j] += square


@compiled(float64(_TABLE, _TABLE, INTS, int64, _TABLE, _TABLE, _TABLE, REALS, REALS))
def look(inner, outer, labels, size, inputs, between, signals, norms, losses):
    """Fill signals, ‖X_j‖ and the mean losses of micro-batches; the sum of all examples' losses.

    Weights are `inner`, the hidden layer's ``[H, D]`` (H = 0 for softmax regression), and `outer`,
    ``[K, H + 1]`` or ``[K, D]``. Of n examples there are `labels` and `inputs` ``[n, D]``; every
    micro-batch but the last has `size` of them. `between` is room for what comes out of the hidden
    layer, ``[n, H + 1]``, or the inputs again. To be filled: `signals` ``[n, H + K]``, `norms` and
    `losses` ``[m]``.
    """
    hidden, n, total = inner.shape[0], labels.size, 0.0
    room, more = np.empty(inner.shape), np.empty(outer.shape)
    columns, sums = np.zeros((max(inner.shape[1], outer.shape[1]), _BLOCK)), np.empty((8, _BLOCK))
    found, each = np.empty((max(hidden, len(outer)), _BLOCK)), np.empty(n)
    for first in range(0, n, _BLOCK):
        stop = min(n, first + _BLOCK)
        if hidden:
            _products(inner, inputs, first, stop, columns, sums, found)
            for i in range(first, stop):
                for h in range(hidden):
                    between[i, h] = math.tanh(found[h, i - first])
                between[i, hidden] = 1.0
        _products(outer, between, first, stop, columns, sums, found)
        _backward(outer, labels, found, first, stop, between, signals, each)
    norms[:] = 0.0
    if hidden:
        _squares(signals, 0, inputs, size, room, norms)
    _squares(signals, hidden, between, size, more, norms)
    for j in range(norms.size):
        first, stop = j * size, min(n, (j + 1) * size)
        loss = 0.0
        for i in range(first, stop):
            loss += each[i]
        norms[j] = math.sqrt(norms[j]) / (stop - first)
        losses[j] = loss / (stop - first)
        total += loss
    return total


@compiled(void(int64, _TABLE, _TABLE, _TABLE, REALS, _TABLE, _TABLE))
def gather(size, inputs, between, signals, scales, inner, outer):
    """Fill the update of both layers: Σ_j c_j Σ_{i in j} s_i v_iᵀ, where c is `scales`.

    It leaves c_j s_i in `signals`.
    """
    inner[:], outer[:], n = 0.0, 0.0, len(signals)
    for j in range(scales.size):
        for i in range(j * size, min(n, (j + 1) * size)):
            for k in range(signals.shape[1]):
                signals[i, k] *= scales[j]
    _add(signals, 0, inputs, 0, n, 1.0, inner)
    _add(signals, len(inner), between, 0, n, 1.0, outer)


@helper
def _medians(size, by, values, signals, at, room, update):
    """The median of the means of micro-batches, a layer's: of coordinates, or the geometric one."""
    outputs, inputs = update.shape
    m = len(signals) // size
    means = np.zeros((m, outputs, inputs))
    for j in range(m):
        _add(signals, at, values, j * size, (j + 1) * size, 1.0 / size, means[j])
    flat, found = means.reshape(m, -1), update.reshape(-1)
    if by == _COORDINATES:
        column, free = room[0], room[1]
        for c in range(found.size):
            for j in range(m):
                column[j] = flat[j, c]
            low = _of_rank(column, (m - 1) // 2, free)
            found[c] = (low + _of_rank(column, m // 2, free)) / 2
        return
    for c in range(found.size):
        found[c] = 0.0
        for j in range(m):
            found[c] += flat[j, c] / m
    for _ in range(_TURNS):
        weights, whole = room[0], 0.0
        for j in range(m):
            square = 0.0
            for c in range(found.size):
                square += (flat[j, c] - found[c]) ** 2
            weights[j] = 1 / max(math.sqrt(square), 1e-12)
            whole += weights[j]
        found[:] = 0.0
        for j in range(m):
            for c in range(found.size):
                found[c] += weights[j] / whole * flat[j, c]


@compiled(void(_TABLE, _TABLE, float64, float64, int64, _TABLE, _TABLE))
def move(weights, update, step_size, decay, adam, first, second):
    """W less η(update + decay W); or Adam's step number `adam`, with its moments, if not 0."""
    mean, square = 1 - _FIRST**adam, 1 - _SECOND**adam
    for k in range(weights.shape[0]):
        for c in range(weights.shape[1]):
            u = update[k, c]
            if adam:
                first[k, c] = _FIRST * first[k, c] + (1 - _FIRST) * u
                second[k, c] = _SECOND * second[k, c] + (1 - _SECOND) * u * u
                u = first[k, c] / mean / (math.sqrt(second[k, c] / square) + _SMALL)
            weights[k, c] -= step_size * (u + decay * weights[k, c])


@compiled(
    int64(
        pointer(RULE), REALS, int64, _TABLE, _TABLE, _TABLE, _TABLE, _TABLE, _TABLE, _TABLE, INTS,
        int64[:, ::1], int64, float64, float64, boolean, INTS, float64[:, :, ::1],
        float64[:, :, ::1],
    )
)  # fmt: skip
def steps(
    rule, numbers, by, inner, outer, inner_1, inner_2, outer_1, outer_2, inputs, labels, batches,
    size, step_size, decay, adam, stops, inners, outers,
):  # fmt: skip
    """Steps of training in place, one for each row of `batches`; −1, or that at which it diverged.

    `rule` and `numbers` are a compiled rule, and `by`, of ``BY``, says what it or a median looks
    at. `inner` and `outer` are weights, the same with 1 and 2 Adam's moments. `inputs` and `labels`
    are of all examples, `batches` rows of them ``[steps, B]``; `size` is b, `step_size` η, `decay`
    the weight decay. After `stops` steps (ascending) weights are put down in `inners`, `outers`.
    """
    n, dim, hidden, classes = batches.shape[1], inputs.shape[1], len(inner), len(outer)
    m = n // size
    x, said = np.empty((n, dim)), np.empty(n, np.int64)
    between = np.empty((n, outer.shape[1])) if hidden else x
    signals, room = np.empty((n, hidden + classes)), np.empty((2, m))
    norms, losses, factors = np.empty(m), np.empty(m), np.empty(m)
    on_inner, on_outer = np.empty(inner.shape), np.empty(outer.shape)
    record = 0
    for step in range(len(batches)):
        for i in range(n):
            said[i] = labels[batches[step, i]]
            for c in range(dim):
                x[i, c] = inputs[batches[step, i], c]
        look(inner, outer, said, size, x, between, signals, norms, losses)
        for j in range(m):
            if not math.isfinite(norms[j]):
                return step
        if by <= _LOSSES:
            rule(norms if by == _NORMS else losses, numbers, factors)
            for j in range(m):
                factors[j] /= n
            gather(size, x, between, signals, factors, on_inner, on_outer)
        else:
            _medians(size, by, x, signals, 0, room, on_inner)
            _medians(size, by, between, signals, hidden, room, on_outer)
        time = step + 1 if adam else 0
        move(inner, on_inner, step_size, decay, time, inner_1, inner_2)
        move(outer, on_outer, step_size, decay, time, outer_1, outer_2)
        if record < stops.size and step + 1 == stops[record]:
            inners[record], outers[record] = inner, outer
            record += 1
    return -1
