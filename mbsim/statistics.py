"""The statistics behind every verdict and every statistical test, with a stated error rate.

The unit is always the independent replicate. Intervals are Student's (Welch's for two samples):
their coverage is exact for Gaussian data and close to it for means of the sample sizes used here;
the tests of this module measure it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from mbsim.errors import InvalidArgument, check_array, check_finite, check_number, shown

__all__ = [
    "Interval",
    "always_within",
    "difference",
    "exactly",
    "from_error",
    "log_log_slope",
    "mean",
    "median",
    "quantile",
    "ratio",
]


def t_quantile(df: float, tail: float) -> float:
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

    >>> interval = mean([1.0, 2.0, 3.0, 4.0], false_positive_rate=0.05)
    >>> 4.0 in interval, 5.0 in interval, round(interval.detectable, 2)
    (True, False, 3.11)
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
        if self.standard_error == 0:
            return 0.0
        quantiles = t_quantile(self.df, self.false_positive_rate / 2) + t_quantile(self.df, 0.1)
        return quantiles * self.standard_error

    def to_dict(self) -> dict[str, Any]:
        """The estimate and the ends of its interval, as plain data."""
        return {"estimate": self.estimate, "interval": [self.low, self.high]}

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        if math.isnan(self.estimate):
            return "no number"
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{self.estimate:.4g} (no interval)"
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interval_of(
    estimate: float,
    error: float,
    df: float,
    rate: float,
    ends: tuple[float, float] | None = None,
) -> Interval:
    """Between `ends`; Student's without them, and everything where a number is not finite."""
    if ends is None and not (math.isfinite(estimate) and math.isfinite(error)):
        error, ends = math.inf, (-math.inf, math.inf)
    elif ends is None:
        reach = t_quantile(df, rate / 2) * error
        ends = estimate - reach, estimate + reach
    return Interval(
        estimate=estimate,
        low=ends[0],
        high=ends[1],
        standard_error=error,
        false_positive_rate=rate,
        df=df,
    )


def _sample(name: str, sample: ArrayLike) -> NDArray[np.float64]:
    array = check_array(name, sample).ravel()
    if array.size < 2:
        raise InvalidArgument(f"{name} has {array.size} values and must have at least 2")
    return array


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and its standard error; not finite, and silent, where the values are not."""
    with np.errstate(over="ignore", invalid="ignore"):
        # In units of the largest value, whose square neither overflows nor vanishes.
        unit = float(np.abs(values).max()) or 1.0
        error = unit * float((values / unit).std(ddof=1)) / math.sqrt(values.size)
        return float(values.mean()), error


def _welch(errors: tuple[float, float], sizes: tuple[int, int]) -> tuple[float, float]:
    """The standard error of a difference and its degrees of freedom (Welch, Satterthwaite)."""
    total = math.hypot(*errors)
    if not 0 < total < math.inf:
        return total, sum(sizes) - 2
    shares = ((error / total) ** 4 / (size - 1) for error, size in zip(errors, sizes, strict=True))
    return total, 1 / sum(shares)


def mean(sample: ArrayLike, *, false_positive_rate: float, resampled: float = 0.0) -> Interval:
    """The mean of independent values, with Student's interval; NaN widens it to everything.

    Args:
        sample: the values.
        false_positive_rate: the probability that the interval misses the truth.
        resampled: 0 for independent values. For values from random splits of one data set, the
            size of the test part over that of the training part: it is added to 1/n in the
            variance, for splits share data (Nadeau and Bengio, Machine Learning 52, 2003).

    >>> print(mean([1.0, 2.0, 3.0, 4.0], false_positive_rate=0.05))
    2.5 [0.4457, 4.554]
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    values = _sample("sample", sample)
    estimate, error = _mean_and_error(values)
    error *= math.sqrt(1 + values.size * check_number("resampled", resampled, minimum=0))
    return interval_of(estimate, error, values.size - 1, rate)


def exactly(number: float) -> Interval:
    """A number that is not random, as an interval of length 0.

    >>> print(exactly(2.0))
    2 [2, 2]
    """
    return interval_of(number, 0.0, math.inf, 0.0, ends=(number, number))


def from_error(
    estimate: float, standard_error: float, df: float, *, false_positive_rate: float
) -> Interval:
    """Student's interval of an estimate whose standard error is known.

    >>> print(from_error(2.0, 0.1, 30, false_positive_rate=0.05))
    2 [1.796, 2.204]
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    return interval_of(estimate, standard_error, df, rate)


def always_within(
    count: ArrayLike, deviation: ArrayLike, *, false_positive_rate: float, tightest: float
) -> NDArray[np.float64]:
    r"""How far a mean of independent values may be from the truth, however often one looks.

    After t values of standard deviation s the mean is within

    .. math:: s \sqrt{\frac{2(tρ^2 + 1)}{t^2ρ^2} \log\frac{\sqrt{tρ^2 + 1}}{α}}

    of the truth at all t at once, except with probability α: an asymptotic confidence sequence,
    for large t, of any law with more than two moments. So it may be looked at after every block,
    and the last look, whenever one stops, is as good as any. Source: Waudby-Smith, Arbour, Sinha,
    Kennedy and Ramdas, Time-uniform central limit theory and asymptotic confidence sequences,
    Annals of Statistics 52 (2024).

    Args:
        count: t.
        deviation: s, the sample's.
        false_positive_rate: α, of all looks together.
        tightest: the t at which the sequence is about as tight as it can be, chosen beforehand.

    >>> always_within(1024, 1.0, false_positive_rate=0.05, tightest=1024).round(3)  # Student: 0.061
    np.float64(0.095)
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    most = check_number("tightest", tightest, above=0)
    t = np.asarray(count, np.float64)
    ρ2 = (-2 * math.log(rate) + math.log(1 - 2 * math.log(rate))) / most
    spread = 2 * (t * ρ2 + 1) / (t * t * ρ2) * np.log(np.sqrt(t * ρ2 + 1) / rate)
    return np.asarray(deviation) * np.sqrt(spread)


def median(sample: ArrayLike, *, false_positive_rate: float) -> Interval:
    """The median of independent values, between two order statistics: exact for every law.

    Below the median lies a binomial number of the values. Where there are too few values for the
    rate, or one is NaN, the interval is everything.

    >>> print(median(range(1, 12), false_positive_rate=0.05))
    6 [2, 10]
    """
    return quantile(sample, 0.5, false_positive_rate=false_positive_rate)


def quantile(sample: ArrayLike, q: float, *, false_positive_rate: float) -> Interval:
    """The q-quantile of independent values, as :func:`median`; an end may be infinite.

    >>> print(quantile(range(1, 101), 0.9, false_positive_rate=0.05))
    90.1 [84, 96]
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    q = check_number("q", q, above=0, below=1)
    values = np.sort(_sample("sample", sample))
    n = values.size
    # The most values k with P(Binomial(n, q) < k) ≤ rate/2, and so from the other end.
    below, above = (int((special.bdtr(np.arange(n), n, p) <= rate / 2).sum()) for p in (q, 1 - q))
    finite = np.isfinite(values).all()
    low = float(values[below - 1]) if below and finite else -math.inf
    high = float(values[n - above]) if above and finite else math.inf
    estimate = float(np.quantile(values, q)) if finite else float(values[int(q * n)])
    error = (high - low) / (2 * t_quantile(n - 1, rate / 2))
    return interval_of(estimate, error, n - 1, rate, ends=(low, high))


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
            raise InvalidArgument(
                f"paired samples have {a.size} and {b.size} values; they must match"
            )
        return mean(a - b, false_positive_rate=false_positive_rate)
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    (mean_a, error_a), (mean_b, error_b) = _mean_and_error(a), _mean_and_error(b)
    error, df = _welch((error_a, error_b), (a.size, b.size))
    return interval_of(mean_a - mean_b, error, df, rate)


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
    (mean_a, error_a), (mean_b, error_b) = _mean_and_error(a), _mean_and_error(b)
    if not (0 < mean_a < math.inf and 0 < mean_b < math.inf):  # also where a replicate diverged
        return interval_of(math.nan, math.nan, min(a.size, b.size) - 1, rate)
    error, df = _welch((error_a / mean_a, error_b / mean_b), (a.size, b.size))
    log_ratio = power * (math.log(mean_a) - math.log(mean_b))
    logs = interval_of(log_ratio, abs(power) * error, df, rate)
    estimate, low, high = (_exp(x) for x in (log_ratio, logs.low, logs.high))
    return interval_of(estimate, estimate * logs.standard_error, df, rate, ends=(low, high))


def _exp(x: float) -> float:
    """e^x, infinite where it overflows."""
    return math.exp(x) if x < 709 else math.inf


def log_log_slope(
    x: ArrayLike, samples: Sequence[ArrayLike], *, false_positive_rate: float
) -> Interval:
    """The least-squares slope of log(mean of a sample) against log x; samples are independent.

    >>> wobble = np.linspace(0.9, 1.1, 50)
    >>> print(log_log_slope([1, 4, 16], [wobble, wobble / 2, wobble / 4], false_positive_rate=0.05))
    -0.5 [-0.5086, -0.4914]
    """
    rate = check_number("false_positive_rate", false_positive_rate, above=0, below=1)
    values = [_sample("samples", sample) for sample in samples]
    places = check_array("x", x, ndim=1)
    if places.size != len(values) or places.size < 2:
        raise InvalidArgument(
            f"x has {places.size} values and must have one for each of {len(values)} samples, and "
            "at least 2"
        )
    check_finite("x", places)
    if places.min() <= 0 or np.ptp(places) == 0:
        raise InvalidArgument(f"x={shown(places.tolist())} must be above 0 and not all the same")
    means, errors = np.transpose([_mean_and_error(v) for v in values])
    df = min(v.size for v in values) - 1
    if not ((means > 0) & np.isfinite(means)).all():
        return interval_of(math.nan, math.nan, df, rate)
    position = np.log(places)
    centred = position - position.mean()
    weights = centred / np.square(centred).sum()
    error = float(np.linalg.norm(weights * errors / means))
    return interval_of(float(weights @ np.log(means)), error, df, rate)
