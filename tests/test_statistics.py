"""The intervals: their coverage measured, their numbers against mpmath, bad data."""

import math
import warnings

import mpmath
import numpy as np
import pytest
from scipy import stats

from mbsim import statistics
from mbsim.statistics import Interval, difference, log_log_slope, mean, median, ratio

RATE = 0.05
SEEDS = 2500
# The number of misses is binomial; 4.9 of its standard deviations either way is a false-positive
# rate of 1e-6 for each of the counts below.
SLACK = 4.9 * math.sqrt(SEEDS * RATE * (1 - RATE))


def misses(interval_of, truth, rng):
    """How often the interval of fresh data misses the truth."""
    return sum(truth not in interval_of(rng) for _ in range(SEEDS))


CASES = {
    "mean": (lambda rng: mean(rng.normal(3, 2, 8), false_positive_rate=RATE), 3.0),
    "mean of two": (lambda rng: mean(rng.normal(3, 2, 2), false_positive_rate=RATE), 3.0),
    "paired": (
        lambda rng: difference(
            *(rng.normal(0, 9, 8) + rng.normal([[2], [1]], 1, (2, 8))),
            false_positive_rate=RATE,
            paired=True,
        ),
        1.0,
    ),
    "difference": (
        lambda rng: difference(
            rng.normal(3, 1, 20), rng.normal(1, 3, 30), false_positive_rate=RATE
        ),
        2.0,
    ),
    "ratio": (
        lambda rng: ratio(rng.gamma(4, 2, 200), rng.gamma(9, 1, 150), false_positive_rate=RATE),
        8 / 9,
    ),
    "root of a ratio": (
        lambda rng: ratio(
            rng.gamma(4, 2, 200), rng.gamma(9, 1, 150), false_positive_rate=RATE, power=0.5
        ),
        math.sqrt(8 / 9),
    ),
    "slope": (
        lambda rng: log_log_slope(
            [1, 2, 4], [rng.gamma(9, s, 200) for s in (1, 0.5, 0.25)], false_positive_rate=RATE
        ),
        -1.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_intervals_miss_as_often_as_they_say(case):
    interval_of, truth = CASES[case]
    found = misses(interval_of, truth, np.random.default_rng(11))
    assert abs(found - RATE * SEEDS) <= SLACK


def test_the_median_s_interval_misses_no_more_often_than_it_says():
    """Exact where a binomial number can be: 9 values miss as often as 2 P(Binomial(9, ½) ≤ 1)."""
    rng = np.random.default_rng(5)
    rate = 2 * stats.binom.cdf(1, 9, 0.5)
    found = misses(
        lambda rng: median(rng.exponential(1, 9), false_positive_rate=RATE), math.log(2), rng
    )
    assert abs(found - rate * SEEDS) <= SLACK
    assert rate <= RATE
    assert rate + stats.binom.pmf(2, 9, 0.5) * 2 > RATE  # the next interval would miss too often


def test_too_few_values_and_values_that_are_none_leave_the_median_open():
    assert median([1.0, 2.0, 3.0], false_positive_rate=RATE).high == math.inf
    assert median([1.0, math.nan, *range(20)], false_positive_rate=RATE).high == math.inf


def test_numbers_that_are_not_random_and_errors_that_are_known():
    number = statistics.exactly(2.0)
    assert (number.low, number.high, number.detectable, number.false_positive_rate) == (2, 2, 0, 0)
    sample = np.random.default_rng(0).normal(1, 2, 30)
    expected = mean(sample, false_positive_rate=RATE)
    assert expected == statistics.from_error(
        sample.mean(), sample.std(ddof=1) / math.sqrt(30), 29, false_positive_rate=RATE
    )


def test_the_calibration_would_see_a_wrong_interval():
    """The negative control: intervals of a normal, for Student's 8 values, miss too often."""

    def normal(rng):
        right = mean(rng.normal(3, 2, 8), false_positive_rate=RATE)
        reach = 1.96 * right.standard_error
        return Interval(
            estimate=right.estimate,
            low=right.estimate - reach,
            high=right.estimate + reach,
            standard_error=right.standard_error,
            false_positive_rate=RATE,
            df=7,
        )

    assert misses(normal, 3.0, np.random.default_rng(11)) > RATE * SEEDS + SLACK


def test_what_is_called_detectable_is_seen_nine_times_in_ten():
    rng, size = np.random.default_rng(4), 25
    sample = rng.normal(0, 1, size)
    sample = (sample - sample.mean()) / sample.std(ddof=1)
    effect = mean(sample, false_positive_rate=1e-3).detectable
    power = stats.nct.sf(stats.t.isf(5e-4, size - 1), size - 1, effect * math.sqrt(size))
    # Adding Student's quantiles is an approximation of the noncentral t, this near with 25 values.
    assert power == pytest.approx(0.9, abs=0.02)
    seen = np.mean(
        [0 not in mean(rng.normal(effect, 1, size), false_positive_rate=1e-3) for _ in range(2000)]
    )
    assert abs(seen - power) <= 4.9 * math.sqrt(power * (1 - power) / 2000)  # binomial, rate 1e-6


@pytest.mark.parametrize("df", [1.0, 7.0, 23.4, 4095.0, 1e6])
@pytest.mark.parametrize("tail", [0.05, 5e-7])
def test_quantiles_to_all_digits(df, tail):
    quantile = statistics.t_quantile(df, tail)
    with mpmath.workdps(40):
        x = mpmath.mpf(df) / (df + mpmath.mpf(quantile) ** 2)
        upper = mpmath.betainc(mpmath.mpf(df) / 2, 0.5, 0, x, regularized=True) / 2
        assert float(upper / tail) == pytest.approx(1, rel=1e-8)


def test_the_numbers_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 12), rng.normal(0, 3, 7)
    ours = difference(a, b, false_positive_rate=0.01)
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.99)
    np.testing.assert_allclose([ours.low, ours.high], theirs, rtol=1e-10)
    ours = difference(a[:7], b, false_positive_rate=0.01, paired=True)
    theirs = stats.ttest_rel(a[:7], b).confidence_interval(0.99)
    np.testing.assert_allclose([ours.low, ours.high], theirs, rtol=1e-10)
    ours = mean(a, false_positive_rate=0.01)
    theirs = stats.ttest_1samp(a, 0).confidence_interval(0.99)
    np.testing.assert_allclose([ours.low, ours.high], theirs, rtol=1e-10)


def test_scale_does_not_matter():
    """Welch's degrees of freedom neither underflow nor overflow."""
    rng = np.random.default_rng(0)
    a, b = rng.gamma(2, 1, 12), rng.gamma(2, 1, 7)
    plain = difference(a, b, false_positive_rate=0.01)
    for size in (2.0**-500, 2.0**480):
        scaled = difference(size * a, size * b, false_positive_rate=0.01)
        assert scaled.df == pytest.approx(plain.df, rel=1e-12)
        assert scaled.low == pytest.approx(size * plain.low, rel=1e-12)
        assert ratio(size * a, size * b, false_positive_rate=0.01).high == pytest.approx(
            ratio(a, b, false_positive_rate=0.01).high, rel=1e-9
        )


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
def test_bad_data_widen_the_interval_to_everything(bad):
    good, broken = [1.0, 2.0, 3.0], [1.0, bad, 3.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for interval in (
            mean(broken, false_positive_rate=0.1),
            difference(good, broken, false_positive_rate=0.1),
            difference(broken, good, false_positive_rate=0.1, paired=True),
            ratio(good, broken, false_positive_rate=0.1),
            ratio(broken, good, false_positive_rate=0.1, power=-0.5),
            log_log_slope([1, 2], [good, broken], false_positive_rate=0.1),
        ):
            assert interval.low in (0, -math.inf)
            assert interval.high == math.inf
            assert interval.detectable == math.inf


def test_ratios_of_what_is_not_positive_are_unknown():
    for a, b in (([-1.0, -2.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])):
        interval = ratio(a, b, false_positive_rate=0.1)
        assert math.isnan(interval.estimate)
        assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_two_values_at_a_strict_rate_give_a_wide_ratio_and_no_overflow():
    interval = ratio([1.0, 3.0], [1.0, 2.0], false_positive_rate=1e-6)
    assert interval.low == 0
    assert interval.high == math.inf
    assert interval.estimate == pytest.approx(4 / 3)
