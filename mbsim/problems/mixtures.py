r"""The variance of the mean of ν Student examples, as a quantile function.

Student's noise is Gaussian given a variance of its own for every example, V = (df − 2)/χ²_df with
E V = 1. The mean of ν examples is Gaussian given the sum S_ν of ν such V, whose Laplace transform
is L(s)^ν, with a = df/2, β = a − 1 and

.. math:: L(s) = E e^{-sV} = \frac{2 (\beta s)^{a/2}}{\Gamma(a)} K_a\big(2\sqrt{\beta s}\big) .

P(S_ν ≤ t) is its Fourier series (Abate and Whitt, 1992) in the bulk; P(S_ν > t), for large t, an
integral along the cut of L, which keeps its digits however small it is. Both are good to 1e-7. As
L^ν is a transform for every ν > 0 quantiles are smooth in ν, and found for a few ν alone. Source:
the theory page, section 9.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, special

from mbsim._shared.arrays import Array

__all__ = ["sum_of_variances"]

Complex = NDArray[np.complex128]

# Where quantiles are found: at so many standard normal quantiles, and at the powers of 2^(1/3).
_PLACES = np.linspace(-5.5, 5.25, 87)
_PER_OCTAVE = 3
# Beyond this df S_ν is made from more summands of this df, to the same first three cumulants; so
# many of them are as good as normal.
_MOST_DF, _LIKE_NORMAL = 100.0, 2.0**12
# An error of the Fourier series is exp(−2 · _DAMPING); terms less than exp(−_LAST) are left out.
_DAMPING, _LAST = 13.0, 34.0
# Probabilities to this are found, on either side; passes that come to the bulk of the most narrow
# law; steps along the cut, in log s.
_LEAST, _PASSES, _STEP = 1e-8, 8, 0.05


def sum_of_variances(df: float, count: int, share: Array) -> Array:
    """S_ν at some of its quantiles.

    Args:
        df: degrees of freedom, above 2.
        count: ν ≥ 1.
        share: probabilities strictly between 0 and 1.

    >>> sum_of_variances(4.0, 1, np.array([0.5])).round(6)          # 2/χ²_4 at its median
    array([0.595824])
    >>> sum_of_variances(4.0, 9, np.array([0.1, 0.5, 0.9])).round(3)
    array([ 5.049,  7.677, 13.591])
    """
    if count == 1:
        return np.asarray((df / 2 - 1) / special.gammainccinv(df / 2, share))
    used, like = min(df, _MOST_DF), float(count)
    if df > used:  # so many of the most skewed are as skewed as so many of these
        like = max(min(count * (_skewness(used) / _skewness(df)) ** 2, _LIKE_NORMAL), count)
    place = _PER_OCTAVE * math.log2(like)
    nodes = np.arange(4) + max(int(place) - 1, 0)
    logs = np.zeros_like(_PLACES)
    for node in nodes:  # Lagrange's polynomial
        others = nodes[nodes != node]
        logs += np.prod((place - others) / (node - others)) * _log_means(used, int(node))
    places = np.clip(special.ndtri(share), _PLACES[0], _PLACES[-1])
    found = like * np.exp(interpolate.CubicSpline(_PLACES, logs)(places))
    if df > used:
        found = count + (found - like) * math.sqrt(count / like * (used - 4) / (df - 4))
    return np.asarray(found)


def _skewness(df: float) -> float:
    """Of V, for df > 6; its variance is 2/(df − 4)."""
    return 4 * math.sqrt(df / 2 - 2) / (df / 2 - 3)


@lru_cache(maxsize=512)
def _log_means(df: float, node: int) -> Array:
    """log S_ν/ν at the places, for ν = 2^(node/_PER_OCTAVE)."""
    count, a, beta = 2 ** (node / _PER_OCTAVE), df / 2, df / 2 - 1
    end = _end_of_bulk(df, count)
    t, inside = np.array([end / 1000, end]), np.ones(2, dtype=bool)
    for _ in range(_PASSES):  # to between what is next to 0 and what is next to 1
        first, last = np.flatnonzero(inside)[[0, -1]]
        t = np.geomspace(t[max(first - 1, 0)], t[min(last + 1, t.size - 1)], 80)
        share = _below(t, df, count, 2 * end)
        inside = (share > _LEAST) & (share < 1 - 10 * _LEAST)
        if not inside.any():  # nothing yet but where it crosses a half
            inside = np.abs(np.arange(80) - np.argmax(share > 0.5)) < 2
        elif inside.sum() >= 40:
            break
    places = np.where(inside, special.ndtri(np.clip(share, 0, 1)), np.nan)
    most = beta * math.exp((math.log(count / _LEAST) - math.lgamma(a + 1)) / a) + count
    far = np.geomspace(1.02 * end, max(most, 2 * end), 48)
    rest = _beyond(far, df, count)
    places = np.append(places, -special.ndtri(np.where(rest > _LEAST, rest, 0)))
    t = np.append(t, far)
    known = np.isfinite(places)
    return np.asarray(interpolate.CubicSpline(places[known], np.log(t[known] / count))(_PLACES))


def _end_of_bulk(df: float, count: float) -> float:
    """Where t is large: the rest, and a V that is so large once in five times."""
    a, beta = df / 2, df / 2 - 1
    jump = beta * math.exp((math.log(5 * count) - math.lgamma(a + 1)) / a)
    return 1.3 * (jump + count * float(special.gammaincc(a - 1, beta / jump)))


def _log_transform(s: Any, df: float) -> Complex:
    """log L, continuous along a path of s that begins where L is next to real."""
    a = df / 2
    z = 2 * np.sqrt((a - 1) * s)
    logs = math.log(2) - math.lgamma(a) + a * np.log(z / 2) + np.log(special.kve(a, z)) - z
    # Next to 0, where K_a is too large for a float, L is 1.
    logs = np.where(np.isfinite(logs), logs, 0)
    phase = np.unwrap(logs.imag)
    return np.asarray(logs.real + 1j * (phase - 2 * math.pi * np.round(phase[0] / (2 * math.pi))))


def _below(t: Array, df: float, count: float, period: float) -> Array:
    """P(S_ν ≤ t) for t up to half the period."""
    first, step, terms = _DAMPING / period, 1j * math.pi / period, 64
    while count * _log_transform(np.array([first + step * terms]), df)[0].real > -_LAST:
        terms *= 2
    s = first + step * np.arange(terms)
    series = np.exp(count * _log_transform(s, df)) / s
    series[0] /= 2
    kept = np.abs(series) > math.exp(-_LAST) * np.abs(series[0])
    found = [(np.exp(one * s[kept]) * series[kept]).real.sum() for one in t.tolist()]
    return np.array(found) / period


def _beyond(t: Array, df: float, count: float) -> Array:
    """P(S_ν > t) for t well above the bulk: ∫ e^(−yt) Im L(−y)^ν dy/(πy)."""
    y = np.exp(np.arange(math.log(1e-8 / t[-1]), math.log(1e2 / t[0]), _STEP))
    logs = count * _log_transform(-y + 0j, df)
    terms = np.exp(logs.real - np.multiply.outer(t, y)) * np.sin(np.abs(logs.imag))
    return np.asarray(terms.sum(axis=1) * (_STEP / math.pi))
