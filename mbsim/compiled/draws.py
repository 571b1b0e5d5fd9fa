r"""Random numbers, drawn one at a time inside compiled code.

A stream is the state of an SFC64 generator (Doty-Humphrey; NumPy's ``SFC64``, bit for bit): three
words and a counter, ``uint64[4]``, changed in place.
"""

from __future__ import annotations

import math

import numpy as np

from mbsim.compiled.jit import helper

__all__ = ["binomial", "chi_square", "cosine", "gamma", "normal", "uniform"]

_WORD = np.uint64


@helper
def _bits(state):
    """64 random bits."""
    a, b, c, counter = state["a"], state["b"], state["c"], state["counter"]
    out = a + b + counter
    state["counter"] = counter + _WORD(1)
    state["a"] = b ^ (b >> _WORD(11))
    state["b"] = c + (c << _WORD(3))
    state["c"] = ((c << _WORD(24)) | (c >> _WORD(40))) + out
    return out


@helper
def uniform(state):
    """Uniform in [0, 1), a multiple of 2⁻⁵³, as NumPy makes it."""
    return np.int64(_bits(state) >> _WORD(11)) * 2.0**-53


def _ziggurat(layers: int = 256, start: float = 3.6541528853610088) -> np.ndarray:
    """The widths of layers of equal area under exp(−x²/2), the base first, 0 last.

    The base is a layer and the tail beyond `start`, so its width is its area over its height.
    """
    density = math.exp(-(start**2) / 2)
    area = start * density + math.sqrt(math.pi / 2) * math.erfc(start / math.sqrt(2))
    widths = [area / density, start]
    while len(widths) < layers:
        density += area / widths[-1]
        widths.append(math.sqrt(-2 * math.log(density)))
    return np.array([*widths, 0.0])


_WIDTHS = _ziggurat()
_DENSITIES = np.exp(-(_WIDTHS**2) / 2)
_TAIL = _WIDTHS[1]


@helper
def normal(state):
    """A standard normal number: the ziggurat of Marsaglia and Tsang (2000), in 256 layers."""
    while True:
        bits = _bits(state)
        layer = np.int64(bits & _WORD(255))
        x = (np.int64(bits >> _WORD(11)) * 2.0**-52 - 1) * _WIDTHS[layer]
        if abs(x) < _WIDTHS[layer + 1]:
            break
        if layer == 0:
            beyond = height = 0.0
            while 2 * height <= beyond**2:
                beyond = -math.log(1 - uniform(state)) / _TAIL
                height = -math.log(1 - uniform(state))
            x = math.copysign(_TAIL + beyond, x)
            break
        low, high = _DENSITIES[layer], _DENSITIES[layer + 1]
        if low + uniform(state) * (high - low) < math.exp(-0.5 * x * x):
            break
    return x


@helper
def gamma(state, shape):
    """A gamma variable of shape ≥ 1 and scale 1 (Marsaglia and Tsang, 2000)."""
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        x = normal(state)
        v = 1 + c * x
        if v > 0:
            v = v * v * v
            u = 1 - uniform(state)  # in (0, 1], which has a logarithm
            if u < 1 - 0.0331 * (x * x) * (x * x):
                break
            if math.log(u) < 0.5 * x * x + d * (1 - v + math.log(v)):
                break
    return d * v


@helper
def chi_square(state, freedom):
    """χ² with `freedom` ≥ 0 degrees, an integer."""
    out = 0.0
    if freedom > 1:
        out = 2 * gamma(state, 0.5 * freedom)
    elif freedom == 1:
        out = normal(state) ** 2
    return out


@helper
def cosine(state, dimensions):
    """The cosine of a uniform direction with anything fixed, in `dimensions` ≥ 1 dimensions."""
    x = normal(state)
    return x / math.sqrt(x * x + chi_square(state, dimensions - 1))


@helper
def binomial(state, trials, probability):
    """A binomial number; one that is large by way of order statistics (Devroye, 1986, X.4).

    The i-th smallest of n uniform numbers is Beta(i, n + 1 − i); if it lies below the probability
    then i numbers do, and of the others each does by chance; else only the i − 1 below it can.
    """
    hits = 0
    while trials > 16:
        middle = trials // 2 + 1
        below = gamma(state, float(middle))
        place = below / (below + gamma(state, float(trials + 1 - middle)))
        if place <= probability:
            hits += middle
            trials -= middle
            probability = (probability - place) / (1 - place)
        else:
            trials = middle - 1
            probability = probability / place
    for _ in range(trials):
        if uniform(state) < probability:
            hits += 1
    return hits
