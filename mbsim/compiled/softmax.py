"""Softmax regression on some rows, compiled: what a rule sees of a mini-batch, and its update.

The gradient of row i is the outer product of its residual and its inputs, so that one sum of
classes × inputs is all the room that micro-batches need, one after another.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float64, int64, void

from mbsim.compiled.arrays import dot
from mbsim.compiled.jit import INTS, REALS, compiled

__all__ = ["descend", "look"]

_TABLE = float64[:, ::1]


@compiled(float64(_TABLE, _TABLE, INTS, INTS, int64, _TABLE, REALS))
def look(weights, inputs, labels, rows, size, residuals, norms):
    """Fill the residuals softmax(W x) − onehot(y) of the rows and ‖X_j‖; the sum of the losses.

    A label's residual is −Σ of the others, not p_y − 1, which would lose its digits as p_y → 1.
    Micro-batches are `size` rows each, but for the last.
    """
    classes, dim = weights.shape
    total = np.zeros((classes, dim))
    losses = 0.0
    for j in range(norms.size):
        first, stop = j * size, min(rows.size, (j + 1) * size)
        if size > 1:
            total[:] = 0.0
        square = 0.0
        for i in range(first, stop):
            x, y, p = inputs[rows[i]], labels[rows[i]], residuals[i]
            for k in range(classes):
                p[k] = dot(weights[k], x, 0, dim)
            top = p.max()
            logit = p[y] - top
            others = 0.0
            for k in range(classes):
                if k != y:
                    p[k] = math.exp(p[k] - top)
                    others += p[k]
            whole = others + math.exp(logit)
            losses += math.log(whole) - logit
            p[y] = -others
            for k in range(classes):
                p[k] /= whole
            if size == 1:
                square = dot(p, p, 0, classes) * dot(x, x, 0, dim)
            else:
                for k in range(classes):
                    for c in range(dim):
                        total[k, c] += p[k] * x[c]
        if size > 1:
            for k in range(classes):
                square += dot(total[k], total[k], 0, dim)
        norms[j] = math.sqrt(square) / (stop - first)
    return losses


@compiled(void(_TABLE, _TABLE, INTS, int64, _TABLE, REALS))
def descend(weights, inputs, rows, size, residuals, steps):
    """W less Σ_j s_j Σ_{i in j} r_i x_iᵀ, in place, where s is `steps`."""
    classes, dim = weights.shape
    for i in range(rows.size):
        x = inputs[rows[i]]
        for k in range(classes):
            scale = steps[i // size] * residuals[i, k]
            for c in range(dim):
                weights[k, c] -= scale * x[c]
