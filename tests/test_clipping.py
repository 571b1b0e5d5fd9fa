"""The rules and Algorithm 1 on arrays: a plain loop, the identities, extremes, non-finite input."""

import math
import warnings
from fractions import Fraction

import numpy as np
import processes
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mbsim import InvalidArgument, clipping
from mbsim.clipping import (
    FixedNorm,
    NoClipping,
    QuantileNorm,
    SmallestNorm,
    TrimmedNorm,
    UnitNorm,
    apply,
    blocks,
    update,
)

RULES = [
    NoClipping(),
    SmallestNorm(),
    FixedNorm(1.5),
    QuantileNorm(0.0),
    QuantileNorm(0.5),
    QuantileNorm(1.0),
    TrimmedNorm(0.0),
    TrimmedNorm(0.4),
    UnitNorm(0.1),
    UnitNorm(0.0),
]
# Two routes to one number of float64 in some tens of operations: 100 roundings of 1e-16.
CLOSE = {"rtol": 1e-14, "atol": 0}


def plain_factor(rule, norm, norms):
    """The table of rules on the theory page, section 3, written out for one micro-batch."""
    match rule:
        case NoClipping():
            return 1.0
        case SmallestNorm():
            return min(norms) / norm if norm > 0 else 0.0
        case FixedNorm(threshold):
            return min(1.0, threshold / norm) if norm > 0 else 1.0
        case QuantileNorm(q):
            threshold = sorted(norms)[math.floor(Fraction(q) * (len(norms) - 1))]
            return min(1.0, threshold / norm) if norm > 0 else 1.0
        case TrimmedNorm(fraction):
            kept = len(norms) - math.floor(fraction * len(norms))
            ties = [i for i, other in enumerate(sorted(norms)) if other == norm]
            return sum(i < kept for i in ties) / len(ties) * len(norms) / kept
        case UnitNorm(epsilon):
            return 1 / (norm + epsilon) if norm + epsilon > 0 else 0.0
    raise AssertionError(rule)


def plain_update(examples, b, rule):
    """Algorithm 1 for one mini-batch, in plain loops over Python floats."""
    B, d = len(examples), len(examples[0])
    micro_batches = []
    for j in range(B // b):
        mean = [math.fsum(examples[j * b + i][k] for i in range(b)) / b for k in range(d)]
        micro_batches.append(mean)
    norms = [math.sqrt(math.fsum(x * x for x in mean)) for mean in micro_batches]
    factors = [plain_factor(rule, norm, norms) for norm in norms]
    m = len(micro_batches)
    return [
        math.fsum(s * x[k] for s, x in zip(factors, micro_batches, strict=True)) / m
        for k in range(d)
    ]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("B", "b", "d"), [(1, 1, 1), (6, 1, 3), (6, 2, 3), (6, 6, 3), (35, 5, 8)])
def test_algorithm_1_in_plain_loops(rule, B, b, d):
    rng = np.random.default_rng(B * 100 + b)
    examples = rng.standard_normal((4, 2, B, d)) * np.exp(rng.uniform(-3, 3, (4, 2, B, 1)))
    ours = update(examples, b, rule)
    assert ours.shape == (4, 2, d)
    assert ours.dtype == np.float64
    plain = [[plain_update(step.tolist(), b, rule) for step in row] for row in examples]
    # The bar set for an outside implementation; the coordinates are of size 0.1 to 10.
    np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-12)
    means = examples.reshape(4, 2, B // b, b, d).mean(axis=-2)
    np.testing.assert_array_equal(apply(means, rule), ours)


# ------------------------------------------------------------------------- identities


def gradients(min_m=1, max_m=5, size=1e3):
    """Micro-batch gradients [m, d], with zeros, ties and wide spreads, none of them subnormal."""
    numbers = st.floats(-size, size).map(lambda x: 0.0 if abs(x) < 1e-9 else x)
    shapes = st.tuples(st.integers(min_m, max_m), st.integers(1, 4))
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=numbers))


@given(gradients())
def test_the_update_is_no_longer_than_the_smallest_norm(x):
    smallest = np.linalg.norm(x, axis=1).min()
    assert np.linalg.norm(apply(x)) <= smallest * (1 + 1e-14)  # 100 roundings


@given(gradients())
def test_smallest_norm_is_the_mean_direction_times_the_smallest_norm(x):
    norms = np.linalg.norm(x, axis=1)
    assume(norms.min() > 0)
    expected = norms.min() * (x / norms[:, None]).mean(axis=0)
    np.testing.assert_allclose(apply(x), expected, rtol=0, atol=1e-14 * norms.min())


@given(gradients(), st.integers(-60, 60))
@pytest.mark.parametrize("rule", [NoClipping(), SmallestNorm(), QuantileNorm(0.4)], ids=str)
def test_scaling_scales(rule, x, exponent):
    """By a power of two, to the bit."""
    a = 2.0**exponent
    np.testing.assert_array_equal(apply(a * x, rule), a * apply(x, rule))


@given(gradients(), st.integers(-60, 60))
def test_scaling_the_threshold_with_the_gradients_scales(x, exponent):
    a = 2.0**exponent
    np.testing.assert_array_equal(apply(a * x, FixedNorm(a * 3)), a * apply(x, FixedNorm(3)))


@given(gradients(), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rotations_commute(rule, x, seed):
    norms = np.linalg.norm(x, axis=1)
    if isinstance(rule, UnitNorm):
        assume(norms.min() > 0)  # a zero stays one under rotation, but 1/norm is no smaller for it
    if isinstance(rule, TrimmedNorm):  # rotations round, and so break ties
        assume((np.diff(np.sort(norms)) > 1e-12 * norms.max()).all())
    d = x.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    # Rounding of either side is relative to the longest factor times its gradient.
    size = (rule.factors(norms) * norms).max()
    off = apply(x @ rotation.T, rule) - rotation @ apply(x, rule)
    assert np.abs(off).max() <= 1e-13 * max(size, 1e-300)


@given(gradients(min_m=2), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_order_of_micro_batches_is_irrelevant(rule, x, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    size = np.abs(rule.factors(np.linalg.norm(x, axis=1))[:, None] * x).max()
    np.testing.assert_allclose(apply(x[order], rule), apply(x, rule), rtol=0, atol=1e-15 * size)


@given(arrays(np.float64, (12, 3), elements=st.floats(-8, 8).map(lambda v: round(v * 16) / 16)))
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_order_within_and_across_micro_batches_is_irrelevant(rule, x):
    """Sixteenths add exactly, so only the sum over micro-batches rounds."""
    rng = np.random.default_rng(3)
    shuffled = np.array([rng.permutation(part) for part in x.reshape(3, 4, 3)])[[2, 0, 1]]
    np.testing.assert_allclose(
        update(shuffled.reshape(12, 3), 4, rule), update(x, 4, rule), rtol=0, atol=1e-14
    )


@given(gradients(min_m=2), st.floats(0.1, 10))
def test_equal_norms_give_sgd(x, norm):
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    assume(lengths.min() > 0)
    x = norm * x / lengths
    for rule in (SmallestNorm(), QuantileNorm(0.7), FixedNorm(norm * (1 + 1e-12))):
        np.testing.assert_allclose(apply(x, rule), x.mean(axis=0), rtol=0, atol=1e-14 * norm)


@given(gradients())
def test_one_micro_batch_is_sgd_to_the_bit(x):
    """b = B. (The mean of a mini-batch is the same computation on both sides.)"""
    assume(np.linalg.norm(x.mean(axis=0)) > 0)
    for rule in (SmallestNorm(), QuantileNorm(0.0), QuantileNorm(1.0)):
        np.testing.assert_array_equal(update(x, len(x), rule), update(x, len(x), NoClipping()))


@given(gradients(min_m=6, max_m=6))
def test_sgd_is_the_same_for_every_micro_batch_size(x):
    for b in (1, 2, 3, 6):
        np.testing.assert_allclose(
            update(x, b, NoClipping()), x.mean(axis=0), rtol=0, atol=1e-15 * np.abs(x).max() * 6
        )


@given(gradients())
def test_the_lowest_quantile_is_the_smallest_norm_to_the_bit(x):
    np.testing.assert_array_equal(apply(x, QuantileNorm(0)), apply(x, SmallestNorm()))


@given(gradients())
def test_a_threshold_out_of_reach_is_sgd_to_the_bit(x):
    for rule in (FixedNorm(np.finfo(float).max), QuantileNorm(1)):
        np.testing.assert_array_equal(apply(x, rule), apply(x, NoClipping()))


@given(gradients(), st.floats(1e-3, 1e3))
def test_a_fixed_threshold_is_kept(x, threshold):
    factors = FixedNorm(threshold).factors(np.linalg.norm(x, axis=1))
    assert (factors * np.linalg.norm(x, axis=1) <= threshold * (1 + 1e-15)).all()
    assert np.linalg.norm(apply(x, FixedNorm(threshold))) <= threshold * (1 + 1e-14)


def test_a_zero_norm_stands_still():
    x = np.array([[[3.0, 4.0], [0.0, 0.0]], [[3.0, 4.0], [6.0, 8.0]]])
    np.testing.assert_array_equal(apply(x), [[0.0, 0.0], [3.0, 4.0]])
    for rule in RULES:
        np.testing.assert_array_equal(apply(np.zeros((4, 3)), rule), np.zeros(3))
    for rule in (FixedNorm(1.0), UnitNorm(0.0)):  # the other micro-batch moves on
        np.testing.assert_allclose(apply(x[0], rule), [0.3, 0.4], **CLOSE)


# ------------------------------------------------------------------------- extremes


SIZES = [1e-320, 1e-308, 1e-200, 1e-121, 1e-119, 1e119, 1e121, 1e200, 1e308]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("b", [1, 2])
def test_any_size_that_can_be_represented(size, b):
    """Exact rational arithmetic, but for the square root, is the judge."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (6, 3)) * size
    for rule in (NoClipping(), SmallestNorm(), QuantileNorm(0.5), UnitNorm(0.0)):
        expected = rational_update(x, b, rule)
        # Near 1e-320 a float64 has three digits, and its spacing is all that can be asked.
        np.testing.assert_allclose(update(x, b, rule), expected, rtol=1e-13, atol=5e-324)


def rational_update(examples, b, rule):
    """`plain_update` in exact fractions, but for the square roots, which have 40 digits."""
    exact = [[Fraction(v) for v in row] for row in examples.tolist()]
    m, d = len(exact) // b, len(exact[0])
    means = [[sum(exact[j * b + i][k] for i in range(b)) / b for k in range(d)] for j in range(m)]
    norms = [root(sum(v * v for v in mean)) for mean in means]
    ordered = sorted(norms)
    factors = []
    for norm in norms:
        match rule:
            case NoClipping():
                factor = Fraction(1)
            case SmallestNorm():
                factor = ordered[0] / norm if norm else Fraction(0)
            case QuantileNorm(q):
                level = ordered[math.floor(Fraction(q) * (m - 1))]
                factor = min(Fraction(1), level / norm) if norm else Fraction(1)
            case UnitNorm():
                factor = 1 / norm if norm else Fraction(0)
        factors.append(factor)
    total = [sum(s * x[k] for s, x in zip(factors, means, strict=True)) / m for k in range(d)]
    return [float(v) for v in total]


def root(square):
    """√ of a fraction to 40 digits."""
    shift = 10**40
    scale = Fraction(1)
    if square:
        digits = len(str(square.denominator)) - len(str(square.numerator))
        scale = Fraction(10) ** (2 * (digits // 2))
    return Fraction(math.isqrt(int(square * scale * shift**2)), shift) / root_of_power(scale)


def root_of_power(scale):
    exponent = len(str(scale.numerator)) - len(str(scale.denominator))
    return Fraction(10) ** (exponent // 2)


def test_one_huge_beside_one_tiny():
    x = np.array([[3e200, 4e200], [3e-200, 4e-200], [0.0, 1.0]])
    np.testing.assert_allclose(apply(x[:2]), [3e-200, 4e-200], **CLOSE)
    np.testing.assert_allclose(apply(x), [2e-200, 8e-200 / 3 + 5e-200 / 3], **CLOSE)
    np.testing.assert_allclose(apply(x, FixedNorm(1.0)), [0.2, 1.8 / 3], **CLOSE)
    np.testing.assert_allclose(apply(x, NoClipping()), [1e200, 4e200 / 3], **CLOSE)
    np.testing.assert_allclose(apply(x, UnitNorm(0.0)), [0.4, 2.6 / 3], **CLOSE)


def test_the_largest_floats_do_not_overflow():
    top = np.finfo(float).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(update(np.full((4, 3), top), 2), np.full(3, top))
        np.testing.assert_array_equal(update([[top], [-top]], 2), [0.0])
        np.testing.assert_array_equal(update([[top], [top]], 1, FixedNorm(1.0)), [1.0])


def test_subnormal_examples_keep_their_direction():
    """Their mean is below the smallest float; with unit norms the update is not."""
    tiny = 5e-324
    x = np.array([[3 * tiny, 4 * tiny], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose(update(x, 4, UnitNorm(0.0)), [0.6, 0.8], **CLOSE)


def test_nothing_is_mutated():
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e200, 1e-200):
        x = scale * rng.standard_normal((3, 6, 4))
        given_x = x.copy()
        for rule in RULES:
            apply(x, rule)
            update(x, 2, rule)
            np.testing.assert_array_equal(x, given_x)
        x[0, 0, 0] = np.nan
        given_x = x.copy()
        apply(x, nonfinite="drop")
        np.testing.assert_array_equal(x, given_x)
        norms = np.array([0.0, 1.0, 2.0])
        for rule in RULES:
            rule.factors(norms)
        np.testing.assert_array_equal(norms, [0.0, 1.0, 2.0])


def test_integers_lists_and_float32_are_taken_as_they_are():
    x = [[3, 4], [0, 10]]
    for given_x, kind in (
        (x, np.float64),
        (np.array(x), np.float64),
        (np.array(x, dtype=np.uint8), np.float64),
        (np.array(x, dtype=np.float16), np.float16),
        (np.array(x, dtype=np.float32), np.float32),
        (np.array(x, dtype=">f4"), np.dtype(">f4")),
        (np.array(x, dtype=np.longdouble), np.longdouble),
    ):
        result = apply(given_x)
        assert result.dtype == kind
        np.testing.assert_array_equal(result, [1.5, 4.5])


# ------------------------------------------------------------------------- floating types


def narrow_types():
    """The types below float64 with their relative spacing; bfloat16 where it can be had."""
    yield pytest.param(np.float16, 2.0**-10, id="float16")
    yield pytest.param(np.float32, 2.0**-23, id="float32")
    try:
        import ml_dtypes
    except ImportError:
        skip = pytest.mark.skip(reason="needs ml_dtypes")
        yield pytest.param(None, None, id="bfloat16", marks=skip)
    else:
        yield pytest.param(ml_dtypes.bfloat16, 2.0**-7, id="bfloat16")


NARROW = pytest.mark.parametrize(("kind", "spacing"), list(narrow_types()))


@NARROW
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("b", [1, 2, 50])
def test_a_narrow_type_is_kept_and_loses_one_rounding(kind, spacing, rule, b):
    x = np.random.default_rng(b).standard_normal((3, 100, 7)).astype(kind)
    result = update(x, b, rule)
    assert result.dtype == kind
    exact = update(x.astype(np.float64), b, rule)
    np.testing.assert_array_equal(result, exact.astype(kind))


@NARROW
def test_squares_and_sums_may_leave_the_range_of_a_narrow_type(kind, spacing):
    """4e4² is no float16, nor is the sum of eight; 1e-7² is 0. The update is there all the same."""
    for size in (4e4, 1e-7) if kind == np.float16 else (2e38, 1e-40):
        x = (size * np.ones((8, 4))).astype(kind)
        expected = x[0].astype(np.float64)
        for b in (1, 2, 8):
            for rule in (SmallestNorm(), NoClipping(), QuantileNorm(0.5)):
                result = update(x, b, rule)
                assert result.dtype == kind
                np.testing.assert_array_equal(result.astype(np.float64), expected)
            unit = update(x, b, UnitNorm(0.0)).astype(np.float64)
            np.testing.assert_allclose(unit, 0.5, rtol=spacing)


@NARROW
def test_what_a_narrow_type_cannot_hold_is_refused_or_dropped(kind, spacing):
    x = np.ones((4, 3), kind)
    with pytest.raises(InvalidArgument, match=r"the update of rule=.*must be finite"):
        apply((3e38 if spacing != 2.0**-10 else 6e4) * x, Doubled())
    x[1, 2] = np.nan
    with pytest.raises(InvalidArgument, match=r"must be finite.*\(1, 2\)"):
        update(x, 2)
    np.testing.assert_array_equal(update(x, 2, nonfinite="drop").astype(float), np.ones(3))


class Doubled:
    def factors(self, norms):
        return np.full_like(norms, 2)


def test_cancellation_in_float32():
    """The mean of 1e8, 1 and −1e8 is 1/3, which sums in float32 would lose."""
    x = np.array([[1e8, 1.0], [1.0, 1.0], [-1e8, 1.0]], dtype=np.float32)
    third = np.float32(1 / 3)
    np.testing.assert_array_equal(update(x, 3, NoClipping()), [third, 1.0])


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_blocks_change_nothing_but_roundings(monkeypatch, scale):
    rng = np.random.default_rng(0)
    x = scale * rng.standard_normal((2, 3, 24, 50))
    x[1, 2, 5, 7] = np.nan
    for b in (1, 4, 24):
        for rule in RULES[1:]:
            nonfinite = "drop" if b < 24 else "raise"
            clean = x if b < 24 else x[:1]
            whole = update(clean, b, rule, nonfinite=nonfinite)
            with monkeypatch.context() as patch:
                patch.setattr(blocks, "_BLOCK", 40)
                patch.setattr(blocks, "_COLUMNS", 8)
                pieces = update(clean, b, rule, nonfinite=nonfinite)
            size = np.abs(whole).max()
            np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-14 * size)


MEMORY = """
import resource, tracemalloc
import numpy as np
from mbsim.clipping import *
x = np.random.default_rng(0).standard_normal((B, d), dtype=np.float32).astype(kind, copy=False)
if bad:
    x[3, 5] = np.nan
tracemalloc.start()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = update(x, b, QuantileNorm(0.5), nonfinite="drop")
peak = tracemalloc.get_traced_memory()[1]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert result.dtype == x.dtype
print((peak - result.nbytes) / x.nbytes, ((after - before) * 1024 - result.nbytes) / x.nbytes)
"""


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize(
    ("kind", "B", "d", "b"),
    [
        ("float32", 512, 100_000, 8),
        ("float32", 512, 100_000, 1),
        ("float32", 512, 100_000, 256),
        ("float32", 512, 100_000, 32),
        ("float32", 50_000, 1000, 1),
        ("float32", 4, 12_500_000, 2),
        ("float64", 256, 100_000, 16),
        ("float16", 512, 200_000, 4),
    ],
)
def test_memory_beyond_the_input_stays_under_a_tenth(kind, B, d, b, bad):
    """200 MB of gradients in a process of its own, by its arrays and by what the system counts."""
    out, err = processes.run(f"kind, B, d, b, bad = {(kind, B, d, b, bad)}\n{MEMORY}")
    assert err == ""
    for share in map(float, out.split()):
        assert share < 0.1, out


# ------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_non_finite_gradients_raise_or_are_dropped(rule, bad):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 6, 3))
    x[1, 3, 2] = bad
    where = r"first at \(1, 3, 2\)"
    with pytest.raises(InvalidArgument, match=f"per_example_gradients must be finite.*{where}"):
        update(x, 2, rule)
    with pytest.raises(InvalidArgument, match=f"micro_batch_gradients must be finite.*{where}"):
        apply(x, rule)
    kept = x[1, [0, 1, 4, 5]]
    expected = [update(x[0], 2, rule), update(kept, 2, rule)]
    np.testing.assert_array_equal(update(x, 2, rule, nonfinite="drop"), expected)
    np.testing.assert_array_equal(
        apply(x, rule, nonfinite="drop")[1], apply(np.delete(x[1], 3, axis=0), rule)
    )


def test_dropping_looks_at_examples_not_at_overflow_on_the_way():
    """A finite micro-batch near the largest float must not be dropped beside a NaN."""
    x = [[1e308], [1.5e308], [np.nan], [1.0]]
    np.testing.assert_array_equal(update(x, 2, NoClipping(), nonfinite="drop"), [1.25e308])


def test_nothing_left_to_average():
    x = np.ones((2, 2, 3))
    x[1] = np.nan
    with pytest.raises(InvalidArgument, match=r"no finite micro-batch in step \(1,\)"):
        apply(x, nonfinite="drop")


# ------------------------------------------------------------------------- rules of one's own


class Zero:
    def factors(self, norms):
        return np.zeros_like(norms)


class Listed:
    def factors(self, norms):
        return norms.tolist()


class Flat:
    def factors(self, norms):
        return norms.ravel()


class Blown:
    def factors(self, norms):
        return np.full_like(norms, np.inf)


def test_a_rule_of_ones_own():
    np.testing.assert_array_equal(apply(np.ones((2, 3)), Zero()), np.zeros(3))
    np.testing.assert_array_equal(apply([[3.0], [1.0]], Listed()), [5.0])
    with pytest.raises(InvalidArgument, match=r"factors of shape \(4,\) for norms of shape \(2, 2"):
        apply(np.ones((2, 2, 3)), Flat())
    with pytest.raises(InvalidArgument, match=r"the update of rule=.*Blown.* must be finite"):
        apply(np.ones((2, 2)), Blown())


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_factors_keep_the_floating_type(rule, kind):
    norms = np.array([[0.5, 1.0, 4.0]], dtype=kind)
    factors = rule.factors(norms)
    assert factors.dtype == kind
    plain = [plain_factor(rule, float(x), [0.5, 1.0, 4.0]) for x in norms[0]]
    np.testing.assert_allclose(factors[0], plain, rtol=1e-6 if kind == np.float32 else 1e-15)


def test_quantile_is_the_lower_one_of_numpy():
    norms = np.random.default_rng(0).gamma(2.0, size=(20, 7))
    for q in (0, 0.1, 0.3, 0.5, 2 / 3, 0.99, 1):
        level = np.array([np.quantile(row, q, method="lower") for row in norms])
        expected = np.minimum(1, level[:, None] / norms)
        np.testing.assert_array_equal(QuantileNorm(q).factors(norms), expected)
    assert clipping.QuantileNorm(0) == clipping.QuantileNorm(0.0)
