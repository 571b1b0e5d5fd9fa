"""Many of the numbers that compiled code draws one at a time."""

import numpy as np
from numba import njit

from mbsim._shared.seeds import states
from mbsim.compiled import draws


@njit
def _uniform(state, out):
    for i in range(out.size):
        out[i] = draws.uniform(state)


@njit
def _normal(state, out):
    for i in range(out.size):
        out[i] = draws.normal(state)


@njit
def _gamma(state, out, shape):
    for i in range(out.size):
        out[i] = draws.gamma(state, shape)


@njit
def _chi_square(state, out, freedom):
    for i in range(out.size):
        out[i] = draws.chi_square(state, freedom)


@njit
def _cosine(state, out, dimensions):
    for i in range(out.size):
        out[i] = draws.cosine(state, dimensions)


@njit
def _binomial(state, out, trials, probability):
    for i in range(out.size):
        out[i] = draws.binomial(state, trials, probability)


def many(name, size, *parameters, rng=0):
    """`size` numbers of the kind `name`, from the stream of a seed."""
    out, (state,) = np.empty(size), states(np.random.default_rng(rng), 1)
    with np.errstate(over="ignore"):  # where nothing is compiled, words overflow as they should
        globals()[f"_{name}"](state, out, *parameters)
    return out
