"""The statistics behind every verdict and every statistical test: one helper, one stated error rate.

The unit is always the independent replicate. Intervals are Student's (Welch's for two samples):
their coverage is exact for Gaussian data and close to it for means of the sample sizes used here;
the tests of this module measure it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from mbsim.errors import InvalidArgument, check_number

__all__ = ["Interval", "difference", "log_log_slope", "mean", "ratio"]


def _t_quantile(df: float, tail: float) -> float:
    """The upper `tail` quantile of Student's t."""
    return -float(special.stdtrit(df, tail))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its two-sided confidence interval.

    Attributes:
        estimate: the point estimate; `low`, `high`: the ends of the interval.
        standard_error: its standard error.
        false_positive_rate: the probability that the interval misses the truth (both sides).
        df: degrees of freedom.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    false_positive_rate: float
    df: float

    @property
    def detectable(self) -> float:
        """The smallest true effect that this experiment would have seen in 9 cases out of 10."""
        quantiles = _t_quantile(self.df, self.false_positive_rate / 2) + _t_quantile(self.df, 0.1)
        return quantiles * self.standard_error

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def _interval(estimate: float, error: float, df: float, rate: float) -> Interval:
    if not (math.isfinite(estimate) and math.isfinite(error)):
        return Interval(
            estimate=estimate,
            low=-math.inf,
            high=math.inf,
            standard_error=math.inf,
            false_positive_rate=rate,
            df=df,
        )
    reach = _t_quantile(df, rate / 2) * error
    return Interval(
        estimate=estimate,
        low=estimate - reach,
        high=estimate + reach,
        standard_error=error,
        false_positive_rate=rate,
        df=df,
    )


def _sample(name: str, sample: ArrayLike) -> np.ndarray:
    array = np.asarray(sample, dtype=np.float64).ravel()
    if array.size < 2:
        raise InvalidArgument(f"{name} has {array.size} values and must have at least 2")
    return array


def mean(sample: ArrayLike, *, false_positive_rate: float) -> Interval:
    """The mean of independent values, with Student's interval; NaN widens it to everything.

    >>> print(mean([1.0, 2.0, 3.0, 4.0], false_positive_rate=0.05))
    2.5 [0.4457, 4.554]
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    values = _sample("sample", sample)
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    return _interval(float(values.mean()), error, values.size - 1, rate)


def difference(
    one: ArrayLike, other: ArrayLike, *, false_positive_rate: float, paired: bool = False
) -> Interval:
    """mean(one) − mean(other), paired by position or with Welch's interval.

    >>> print(difference([1.0, 2.0, 3.0], [0.0, 1.5, 2.0], false_positive_rate=0.05, paired=True))
    0.8333 [0.1162, 1.55]
    """
    a, b = _sample("one", one), _sample("other", other)
    if paired:
        if a.size != b.size:
            raise InvalidArgument(f"paired samples have {a.size} and {b.size} values; they must match")
        return mean(a - b, false_positive_rate=false_positive_rate)
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    total = float(va + vb)
    df = total**2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1)) if total > 0 else a.size + b.size - 2
    return _interval(float(a.mean() - b.mean()), math.sqrt(total), float(df), rate)


def ratio(
    one: ArrayLike, other: ArrayLike, *, false_positive_rate: float, power: float = 1.0
) -> Interval:
    """(mean(one)/mean(other))^power for independent positive samples, by the delta method on logs.

    >>> low_noise = np.linspace(0.9, 1.1, 50)
    >>> print(ratio(4 * low_noise, low_noise, false_positive_rate=0.05, power=0.5))
    2 [1.977, 2.024]
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    a, b = _sample("one", one), _sample("other", other)
    if not (a.mean() > 0 and b.mean() > 0):  # also where NaN says that a replicate diverged
        return _interval(math.nan, math.nan, min(a.size, b.size) - 1, rate)
    va, vb = ((x.std(ddof=1) / x.mean()) ** 2 / x.size for x in (a, b))
    total = float(va + vb)
    df = total**2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1)) if total > 0 else a.size + b.size - 2
    estimate = float(a.mean() / b.mean()) ** power
    logs = _interval(math.log(estimate), abs(power) * math.sqrt(total), float(df), rate)
    return Interval(
        estimate=estimate,
        low=math.exp(logs.low),
        high=math.exp(logs.high),
        standard_error=estimate * logs.standard_error,
        false_positive_rate=rate,
        df=logs.df,
    )


def log_log_slope(
    x: ArrayLike, samples: Sequence[ArrayLike], *, false_positive_rate: float
) -> Interval:
    """The least-squares slope of log(mean of a sample) against log x; samples are independent.

    >>> wobble = np.linspace(0.9, 1.1, 50)
    >>> print(log_log_slope([1, 4, 16], [wobble, wobble / 2, wobble / 4], false_positive_rate=0.05))
    -0.5 [-0.5087, -0.4913]
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    values = [_sample("samples", sample) for sample in samples]
    position = np.log(np.asarray(x, dtype=np.float64))
    if position.size != len(values) or position.size < 2 or np.ptp(position) == 0:
        raise InvalidArgument(f"x has {position.size} values and needs one for each of {len(values)}")
    means = np.array([v.mean() for v in values])
    df = min(v.size for v in values) - 1
    if not (means > 0).all():
        return _interval(math.nan, math.nan, df, rate)
    centred = position - position.mean()
    weights = centred / np.square(centred).sum()
    relative = np.array([v.std(ddof=1) / v.mean() / math.sqrt(v.size) for v in values])
    error = math.sqrt(float(np.square(weights * relative).sum()))
    return _interval(float(weights @ np.log(means)), error, df, rate)
