"""The public checks: what keeps its contract passes, and every broken kind is caught."""

import random

import numpy as np
import pytest

import mbsim
from mbsim.clipping import SmallestNorm
from mbsim.problems.losses import Quadratic
from mbsim.problems.noise import Exponential, Gaussian, StudentT, TwoPoint
from mbsim.testing import ContractBroken, check_loss, check_noise, check_rule

# ------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    "rule",
    [
        mbsim.clipping.NoClipping(),
        mbsim.clipping.SmallestNorm(),
        mbsim.clipping.FixedNorm(0.3),
        mbsim.clipping.FixedNorm(1e9),
        *(mbsim.clipping.QuantileNorm(q) for q in (0, 0.3, 1)),
        *(mbsim.clipping.TrimmedNorm(fraction) for fraction in (0, 0.3, 0.99)),
        mbsim.clipping.UnitNorm(0.0),
        mbsim.clipping.UnitNorm(0.1),
    ],
    ids=str,
)
def test_the_rules_of_the_package_keep_their_contract(rule):
    assert "keeps its contract" in str(check_rule(rule))


def rule(function):
    return type(function.__name__, (), {"factors": lambda self, norms: function(norms)})()


def divides_by_zero(norms):
    with np.errstate(all="ignore"):
        return norms.min(axis=-1, keepdims=True) / norms


def negative(norms):
    return 1 - norms


def flattens(norms):
    return np.ones(norms.size, dtype=norms.dtype)


def gives_a_list(norms):
    return norms.tolist()


def widens(norms):
    return norms.astype(np.longdouble) * 0


def narrows(norms):
    return np.ones_like(norms, dtype=np.float64)


def changes_norms(norms):
    norms[...] = np.minimum(norms, 1)
    return np.ones_like(norms)


def minimum_of_all_steps(norms):
    return np.minimum(1, np.divide(norms.min(), norms, out=np.ones_like(norms), where=norms > 0))


def draws(norms):
    return np.random.default_rng().random(norms.shape).astype(norms.dtype)


def first_is_special(norms):
    factors = np.ones_like(norms)
    factors[..., 0] = 0.5
    return factors


COUNT = iter(range(10**6))


def remembers(norms):
    return np.full_like(norms, next(COUNT))


@pytest.mark.parametrize(
    ("function", "promise"),
    [
        (divides_by_zero, "finite"),
        (negative, "at least 0"),
        (flattens, "the shape of the norms"),
        (gives_a_list, "floating type"),
        (widens, "floating type"),
        (narrows, "floating type"),
        (changes_norms, "not change the norms"),
        (minimum_of_all_steps, "every row"),
        (draws, "pure function"),
        (remembers, "pure function"),
        (first_is_special, "not on places"),
    ],
)
def test_a_broken_rule_is_caught(function, promise):
    with pytest.raises(ContractBroken, match=promise) as caught:
        check_rule(rule(function))
    assert isinstance(caught.value, AssertionError)
    assert str(caught.value) == "\n".join(caught.value.broken)
    assert all("\n" not in line and len(line) < 300 for line in caught.value.broken)


# ------------------------------------------------------------------------- losses


class Fine:
    """½ Σ i w_i², written without mbsim."""

    dim, smoothness, minimum = 4, 4.0, 0.0
    weights = np.arange(1.0, 5.0)

    def value(self, w):
        return 0.5 * (self.weights * w**2).sum(axis=-1)

    def gradient(self, w):
        return self.weights * w


class GradientOff(Fine):
    """One coordinate of the gradient is 0.1 % too large (and the smoothness allows it)."""

    smoothness = 4.01
    slopes = np.array([1.0, 2.0, 3.0, 4.004])

    def gradient(self, w):
        return self.slopes * w


class GradientSign(Fine):
    def gradient(self, w):
        return -super().gradient(w)


class TooSmooth(Fine):
    smoothness = 3.9


class HiddenCurvature(Fine):
    """Too little smoothness, in a direction that no axis and no random vector follows."""

    dim, smoothness = 200, 1.5

    def value(self, w):
        return 0.5 * (w**2).sum(axis=-1) + 0.3 / 200 * w.sum(axis=-1) ** 2

    def gradient(self, w):
        return w + 0.6 / 200 * w.sum(axis=-1, keepdims=True)


class MinimumAbove(Fine):
    """The bound is above what descending reaches, though not above what is met on the way."""

    minimum = 1e-6


class OverAllRows(Fine):
    def value(self, w):
        return super().value(w) * 0 + super().value(w).mean()


class OneAtATime(Fine):
    def value(self, w):
        return 0.5 * float(self.weights @ np.square(w))


class Transposed(Fine):
    def gradient(self, w):
        return super().gradient(w).T


class SinglePrecision(Fine):
    def gradient(self, w):
        return super().gradient(w).astype(np.float32)


class Mutating(Fine):
    def gradient(self, w):
        w *= self.weights
        return w


class LogOfNegative(Fine):
    def value(self, w):
        with np.errstate(all="ignore"):
            return np.log(w[..., 0] - 1)


def test_a_loss_of_ones_own_passes():
    report = check_loss(Fine(), start=np.full(4, 3.0))
    assert report.figures["curvature found / smoothness"] == pytest.approx(1, abs=1e-6)
    # Rounding over h: 1e-16 of the value 10⁴ over 1e-5 of the distance, and far less than 0.1 %.
    assert report.figures["gradient off central differences, relative"] < 1e-5


@pytest.mark.parametrize(
    ("loss", "promise"),
    [
        (GradientOff, "gradient must be that of value"),
        (GradientSign, "gradient must be that of value"),
        (TooSmooth, "smoothness must bound"),
        (HiddenCurvature, "smoothness must bound"),
        (MinimumAbove, "minimum must be a lower bound"),
        (OverAllRows, "value must treat every row"),
        (OneAtATime, "value must (be float64|serve w of any)"),
        (Transposed, "gradient must be float64 of shape"),
        (SinglePrecision, "gradient must be float64"),
        (Mutating, "gradient must not change w"),
        (LogOfNegative, "value must be finite"),
    ],
)
def test_a_broken_loss_is_caught(loss, promise):
    with pytest.raises(ContractBroken, match=promise):
        check_loss(loss())


def test_every_broken_promise_has_its_line():
    class Broken(TooSmooth):
        minimum = 1.0

    with pytest.raises(ContractBroken) as caught:
        check_loss(Broken())
    assert len(caught.value.broken) == 2


def test_the_report_says_how_tight_the_constants_are():
    class Loose(Fine):
        smoothness, minimum = 8.0, -3.0

    figures = check_loss(Loose()).figures
    assert figures["curvature found / smoothness"] == pytest.approx(0.5, abs=1e-6)
    assert figures["lowest value found - minimum"] == pytest.approx(3.0, abs=1e-9)
    assert check_loss(Quadratic(np.ones(3))).subject.startswith("Quadratic")


# ------------------------------------------------------------------------- noise laws


class Law:
    """A law made of another, changed by what the subclasses override."""

    sigma = 1.0

    def __init__(self, base=None):
        self.base = base or Gaussian(sigma=1.0)

    def mean_of(self, counts, benign_dim, rng):
        return self.base.mean_of(counts, benign_dim, rng)


class LouderBy2Percent(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return 1.02 * along, 1.02 * across


class QuieterBy2Percent(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return 0.98 * along, 0.98 * across


class Biased(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return along + 0.02 * (counts > 0), across


class AcrossForgetsTheCount(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return along, across * np.sqrt(counts)


class AlongForgetsTheCount(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return along * np.sqrt(counts), across


class TotalForEachCoordinate(Law):
    """σ in the place of σ/√n in each coordinate across e."""

    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return along, across * np.sqrt(benign_dim)


class GlobalSource(Law):
    def mean_of(self, counts, benign_dim, rng):
        return self.base.mean_of(counts, benign_dim, np.random.default_rng(random.getrandbits(32)))


class LegacySource(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return along * (1 + 1e-9 * np.random.standard_normal()), across  # noqa: NPY002


class OwnSeed(Law):
    def mean_of(self, counts, benign_dim, rng):
        return self.base.mean_of(counts, benign_dim, np.random.default_rng(0))


class MutatesCounts(Law):
    def mean_of(self, counts, benign_dim, rng):
        result = self.base.mean_of(counts, benign_dim, rng)
        if counts.ndim:
            counts += 1
        return result


class SomethingFromNothing(Law):
    def mean_of(self, counts, benign_dim, rng):
        return self.base.mean_of(np.maximum(counts, 1), benign_dim, rng)


class FirstCountForAll(Law):
    def mean_of(self, counts, benign_dim, rng):
        same = np.where(counts > 0, np.max(counts), 0)
        return self.base.mean_of(same, benign_dim, rng)


class OneNumberForAll(Law):
    def mean_of(self, counts, benign_dim, rng):
        _, across = self.base.mean_of(counts, benign_dim, rng)
        return across * rng.standard_normal(), across


class RowsShareANumber(Law):
    def mean_of(self, counts, benign_dim, rng):
        _, across = self.base.mean_of(counts, benign_dim, rng)
        shape = (*np.shape(counts)[:-1], 1) if np.ndim(counts) else ()
        return across * rng.standard_normal(shape), across


class OneAxisOnly(Law):
    def mean_of(self, counts, benign_dim, rng):
        draws = [self.base.mean_of(np.array([c]), benign_dim, rng) for c in counts]
        return np.concatenate([d[0] for d in draws]), np.concatenate([d[1] for d in draws])


class NegativeAcross(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return along, -across


class InfiniteForNone(Law):
    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        with np.errstate(all="ignore"):
            return along, across + 0 / np.asarray(counts)


class MeansLouderBy5Percent(Law):
    """Single draws are right, and so is everything else about the means."""

    def mean_of(self, counts, benign_dim, rng):
        along, across = self.base.mean_of(counts, benign_dim, rng)
        return along * np.where(counts > 1, 1.05, 1.0), across


class OneVarianceForAMean(Law):
    """Student's t whose mean of ν shares one random scale: the right moments, another law."""

    def mean_of(self, counts, benign_dim, rng):
        along, across = StudentT(df=9).mean_of(np.minimum(counts, 1), benign_dim, rng)
        shrink = np.sqrt(np.maximum(counts, 1))
        return along / shrink, across / shrink


class ScaleOfAnother(Law):
    """Each of the two numbers has its law, but along goes with the scale of another draw."""

    def mean_of(self, counts, benign_dim, rng):
        along, _ = StudentT(df=9).mean_of(counts, benign_dim, rng)
        if np.max(counts) == 1:
            deviation = StudentT(df=9).mean_of(counts, benign_dim, rng)[1]
            return deviation * rng.standard_normal(np.shape(counts)), deviation
        return along, StudentT(df=9).mean_of(counts, benign_dim, rng)[1]


class GaussianMeans(Law):
    """Skewed single draws whose means are Gaussian at once: the variance is right."""

    def mean_of(self, counts, benign_dim, rng):
        one = Exponential(sigma=1.0).mean_of(np.minimum(counts, 1), benign_dim, rng)[0]
        many = rng.standard_normal(np.shape(counts)) / np.sqrt(np.maximum(counts, 1))
        along = np.where(np.asarray(counts) == 1, one, many * (np.asarray(counts) > 0))
        return along, np.zeros(np.shape(counts))


BASES = (Gaussian(), TwoPoint(rare=0.1), Exponential(isotropic_share=0.2), StudentT(df=6))


@pytest.mark.parametrize(
    ("law", "promise"),
    [
        *((LouderBy2Percent(base), r"E‖ξ‖² must be sigma²") for base in BASES),
        *((QuieterBy2Percent(base), r"E‖ξ‖² must be sigma²") for base in BASES),
        (Biased(), "E ξ must be 0"),
        (Biased(TwoPoint(rare=0.1)), "E ξ must be 0"),
        (AcrossForgetsTheCount(), "law of a mean of single draws; E across²"),
        (AlongForgetsTheCount(), "law of a mean of single draws; .* of along"),
        (TotalForEachCoordinate(), r"E‖ξ‖² must be sigma².*benign_dim=8"),
        (GlobalSource(), "from rng alone"),
        (LegacySource(), "from rng alone"),
        (OwnSeed(), "must draw from rng; another rng"),
        (MutatesCounts(), "not change counts"),
        (SomethingFromNothing(), "0 for the mean of no examples"),
        (FirstCountForAll(), "law of a mean of single draws"),
        (OneNumberForAll(), "must be"),
        (RowsShareANumber(), "examples must be independent"),
        (OneAxisOnly(), "serve counts of any shape"),
        (NegativeAcross(), "standard deviation"),
        (InfiniteForNone(), "must be finite"),
        (MeansLouderBy5Percent(), "law of a mean of single draws; E along² is"),
        (OneVarianceForAMean(), "law of a mean of single draws"),
        (ScaleOfAnother(), "along² across²"),
        (GaussianMeans(), "law of a mean of single draws"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Law) else "",
)
def test_a_broken_law_is_caught(law, promise):
    with pytest.raises(ContractBroken, match=promise):
        check_noise(law, draws=2**18)


class Vectors:
    """Heavy noise on single axes: no law of two numbers describes it."""

    sigma = 2.0

    def vectors(self, shape, benign_dim, rng):
        axis = rng.integers(benign_dim, size=shape)
        signs = rng.choice([-self.sigma, self.sigma], size=shape)
        return np.eye(benign_dim)[axis] * signs[..., None]


class LouderVectors(Vectors):
    def vectors(self, shape, benign_dim, rng):
        return 1.02 * super().vectors(shape, benign_dim, rng)


class BiasedInOneCoordinate(Vectors):
    def vectors(self, shape, benign_dim, rng):
        result = super().vectors(shape, benign_dim, rng)
        result[..., -1] += 0.02
        return result


class FlatVectors(Vectors):
    def vectors(self, shape, benign_dim, rng):
        return super().vectors((int(np.prod(shape)),), benign_dim, rng)


class VectorsOfTheWorld(Vectors):
    def vectors(self, shape, benign_dim, rng):
        return super().vectors(shape, benign_dim, np.random.default_rng())


class VectorsInStep(Vectors):
    """All examples of a row are the same one."""

    def vectors(self, shape, benign_dim, rng):
        one = super().vectors((*shape[:-1], 1) if shape else (), benign_dim, rng)
        return np.broadcast_to(one, (*shape, benign_dim)).copy()


def test_vector_noise_passes():
    figures = check_noise(Vectors(), draws=2**18).figures
    assert 1 in figures["E‖ξ‖² / σ², benign_dim=8"]
    assert not any("means" in name for name in figures)


@pytest.mark.parametrize(
    ("law", "promise"),
    [
        (LouderVectors, "E‖ξ‖² must be sigma²"),
        (BiasedInOneCoordinate, "E ξ must be 0; coordinate"),
        (FlatVectors, "must return"),
        (VectorsOfTheWorld, "from rng alone"),
        (VectorsInStep, "examples must be independent"),
    ],
)
def test_broken_vector_noise_is_caught(law, promise):
    with pytest.raises(ContractBroken, match=promise):
        check_noise(law())


def test_both_forms_are_checked():
    class Both(LouderVectors, Law):
        sigma = 1.0

        def __init__(self):
            Law.__init__(self)

    with pytest.raises(ContractBroken, match="E‖ξ‖² must be sigma²"):
        check_noise(Both(), draws=2**18)


# ------------------------------------------------------------------------- compiled twins


class Twinned:
    """Another object, with its twin or with the twin's function and other numbers."""

    def __init__(self, other, *numbers):
        self.other, self.numbers = other, numbers

    @property
    def compiled(self):
        function, numbers = self.other.compiled
        return function, self.numbers or numbers


class TwinnedLoss(Twinned):
    compiled = Twinned.compiled
    dim, smoothness, minimum = 3, 1.0, 0.0

    def value(self, w):
        return self.other.value(w)

    def gradient(self, w):
        return self.other.gradient(w)


class TwinnedRule(Twinned):
    compiled = Twinned.compiled

    def factors(self, norms):
        return self.other.factors(norms)


class TwinnedLaw(Twinned):
    compiled = Twinned.compiled
    sigma = 1.0

    def mean_of(self, counts, benign_dim, rng):
        return self.other.mean_of(counts, benign_dim, rng)


TWINS = [
    (check_loss, TwinnedLoss, mbsim.losses.Quadratic([1.0, 0.5, 0.2]), (1.0, 0.5, 0.20001)),
    (check_rule, TwinnedRule, mbsim.clipping.FixedNorm(0.5), (0.50001,)),
    (check_noise, TwinnedLaw, mbsim.noise.Gaussian(sigma=1.0), (1.02,)),
    # As large, but skewed differently: a moment of single draws must tell.
    (check_noise, TwinnedLaw, mbsim.noise.TwoPoint(rare=0.5), (0.0, 1 / 0.3, 0.1)),
    (check_noise, TwinnedLaw, mbsim.noise.StudentT(df=5.0), (1.0, 4.0)),
]


@pytest.mark.parametrize(("check", "kind", "other", "wrong"), TWINS)
def test_a_twin_that_differs_is_caught(check, kind, other, wrong):
    check(kind(other))
    with pytest.raises(ContractBroken):
        check(kind(other, *wrong))


def test_the_checks_are_deterministic_and_leave_the_generator_alone():
    assert str(check_noise(Gaussian(), draws=2**14)) == str(check_noise(Gaussian(), draws=2**14))
    assert str(check_rule(SmallestNorm(), rng=5)) == str(check_rule(SmallestNorm(), rng=5))
