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
_TURNS = 8  # of Weiszfeld's iteration, from the mean
_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8  # Adam's


@helper
def _forward(inner, outer, label, x, a, s):
    """Fill what an example sends to the outer layer, `a`, and its signals; its loss.

    A label's residual is −Σ of the others, not p_y − 1, which would lose its digits as p_y → 1.
    """
    hidden, classes, width = inner.shape[0], outer.shape[0], outer.shape[1]
    for h in range(hidden):
        a[h] = math.tanh(dot(inner[h], x, 0, x.size))
    if hidden:
        a[hidden] = 1.0
    top = -math.inf
    for k in range(classes):
        s[hidden + k] = dot(outer[k], a, 0, width)
        top = max(top, s[hidden + k])
    logit = s[hidden + label] - top
    others = 0.0
    for k in range(classes):
        if k != label:
            s[hidden + k] = math.exp(s[hidden + k] - top)
            others += s[hidden + k]
    whole = others + math.exp(logit)
    s[hidden + label] = -others
    for k in range(classes):
        s[hidden + k] /= whole
    for h in range(hidden):
        back = 0.0
        for k in range(classes):
            back += s[hidden + k] * outer[k, h]
        s[h] = back * (1 - a[h] * a[h])
    return math.log(whole) - logit


@helper
def _add(signals, at, values, first, stop, scale, total):
    """Add `scale` Σ s_i v_iᵀ of some examples to a layer's `total`."""
    outputs, inputs = total.shape
    for i in range(first, stop):
        for k in range(outputs):
            weight = scale * signals[i, at + k]
            for c in range(inputs):
                total[k, c] += weight * values[i, c]


@helper
def _square(signals, at, values, first, stop, total):
    """‖Σ s_i v_iᵀ‖² of some examples and one layer; `total` is room."""
    square = 0.0
    if total.shape[0] and stop - first == 1:
        s, v = signals[first], values[first]
        square = dot(s, s, at, at + total.shape[0]) * dot(v, v, 0, total.shape[1])
    elif total.shape[0]:
        total[:] = 0.0
        _add(signals, at, values, first, stop, 1.0, total)
        for k in range(total.shape[0]):
            square += dot(total[k], total[k], 0, total.shape[1])
    return square


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
    for j in range(norms.size):
        first, stop = j * size, min(n, (j + 1) * size)
        loss = 0.0
        for i in range(first, stop):
            loss += _forward(inner, outer, labels[i], inputs[i], between[i], signals[i])
        square = _square(signals, 0, inputs, first, stop, room)
        square += _square(signals, hidden, between, first, stop, more)
        norms[j] = math.sqrt(square) / (stop - first)
        losses[j] = loss / (stop - first)
        total += loss
    return total


@compiled(void(int64, _TABLE, _TABLE, _TABLE, REALS, _TABLE, _TABLE))
def gather(size, inputs, between, signals, scales, inner, outer):
    """Fill the update of both layers: Σ_j c_j Σ_{i in j} s_i v_iᵀ, where c is `scales`."""
    inner[:], outer[:] = 0.0, 0.0
    for j in range(scales.size):
        first, stop = j * size, min(len(signals), (j + 1) * size)
        if scales[j]:
            _add(signals, 0, inputs, first, stop, scales[j], inner)
            _add(signals, inner.shape[0], between, first, stop, scales[j], outer)


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
