"""Step samples: against enumeration, closed forms and quadrature; the limits against the truth."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import integrate, stats

import mbsim
from mbsim import theory
from mbsim.drifts import steps as module
from mbsim.drifts.drift import drift
from mbsim.drifts.steps import measured_values, step_sample
from mbsim.errors import InvalidArgument
from mbsim.problems.noise import Exponential, Gaussian, StudentT, TwoPoint

# A statistical check here is wrong by chance once in ten million times.
TAIL = 1e-7


def problem(noise, *, n=1, walk=4, p=0.2, c=3.0, gamma=0.0, tilt=0.0):
    d = n + 1 + walk
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(d)),  # plays no part
        noise=noise,
        draggers=mbsim.Draggers(probability=p, norm_ratio=c, coherence=gamma, tilt=tilt),
        benign_dim=n,
        start=np.ones(d),
    )


def agrees(estimates, truth, at=..., error=0.0):
    """Whether the truth lies within the limits; 1e-12 of it is rounding, where nothing varies."""
    rounding = 1e-12 * (1 + abs(truth))
    low, high = estimates.low(TAIL)[at], estimates.high(TAIL)[at]
    return bool(
        np.all(low - error - rounding <= truth) and np.all(truth <= high + error + rounding)
    )


# ----------------------------------------------------------------------------- by enumeration


def enumerated(*, b, m, p, c, rare, r, sigma):
    """Every quantity, for two-point noise along e and γ = 1, over all steps there are."""
    up, down = math.sqrt((1 - rare) / rare), -math.sqrt(rare / (1 - rare))
    states = []
    for k in range(b + 1):
        for hits in range(b - k + 1):
            chance = stats.binom.pmf(k, b, p) * stats.binom.pmf(hits, b - k, rare)
            y = ((b - k) * r + sigma * (hits * up + (b - k - hits) * down)) / b
            states.append((chance, 1 - k / b, y, k / b * c * math.hypot(r, sigma)))
    total = dict.fromkeys(module.StepQuantities.__annotations__, 0.0)
    for step in itertools.product(states, repeat=m):
        chance = math.prod(state[0] for state in step)
        alpha, y, dragger = np.array(step).T[1:]
        x = np.hypot(y, dragger)
        cos = [abs(one) / long if long > 0 else 0.0 for one, long in zip(y, x, strict=True)]
        tau = [min([*x[:j], *x[j + 1 :]], default=math.inf) for j in range(m)]
        unit = [(y[j] / x[j], dragger[j] / x[j]) if x[j] > 0 else (0.0, 0.0) for j in range(m)]
        update = x.min() * np.mean(unit, axis=0)
        floor = min(1, *(math.hypot(alpha[j], dragger[j] / r) for j in range(m)))
        rate = 0.0
        for j in range(m):  # v_k = σ²/(b − k), and h is ‖D‖
            if dragger[j] > 0 and alpha[j] > 0:
                along = sigma**2 / (b * alpha[j]) + r**2 / 3
                bracket = 1 + alpha[j] ** 2 * along / dragger[j] ** 2
                rate += alpha[j] * dragger.min() / dragger[j] * bracket**-1.5 / m
        shortest = alpha[np.isclose(x, x.min(), rtol=1e-12)].mean()
        found = {
            "weight": np.minimum(tau, 0.75 * r).mean() / r,
            "aligned_share": np.mean([cos[j] * (x[j] >= 0.75 * r) for j in range(m)]),
            "alignment": np.mean(cos) * floor,
            "mean_cosine": np.mean(cos),
            "shortest_benign_share": shortest,
            "progress_rate": rate,
            "progress": update[0],
            "second_moment": update @ update,
        }
        for name, value in found.items():
            total[name] += chance * value
    return total


@pytest.mark.parametrize("sigma", [0.0, 1.3])
@pytest.mark.parametrize(("b", "m"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 1)])
def test_every_quantity_against_enumeration(b, m, sigma):
    for rare, c in ((0.3, 2.0), (0.8, 0.4)):
        made = problem(TwoPoint(sigma=sigma, rare=rare), p=0.3, c=c, gamma=1.0)
        sample = step_sample(made, b, batch_size=b * m, draws=2**16)
        found = sample.at([0.4, 2.3])
        for i, r in enumerate((0.4, 2.3)):
            truth = enumerated(b=b, m=m, p=0.3, c=c, rare=rare, r=r, sigma=sigma)
            for name in [name for name in truth if name != "grad_norm"]:
                assert agrees(getattr(found, name), truth[name], i), (name, r)


def test_enumeration_would_see_a_wrong_quantity():
    """Controls: one more micro-batch, other draggers, and quantities under each other's names."""
    setting = {"b": 2, "m": 3, "p": 0.3, "c": 0.6, "rare": 0.3, "r": 2.3, "sigma": 1.3}
    made = problem(TwoPoint(sigma=1.3, rare=0.3), p=0.3, c=0.6, gamma=1.0)
    found = step_sample(made, 2, batch_size=6, draws=2**17).at(2.3)
    names = [name for name in vars(found) if name != "grad_norm"]
    # One number alone must not depend on the other micro-batches.
    depend_on_m = [name for name in names if name not in ("aligned_share", "mean_cosine")]
    for changed, seen_by in (({"m": 4}, depend_on_m), ({"p": 0.35}, names), ({"c": 1.6}, names)):
        truth = enumerated(**(setting | changed))
        blind = [name for name in seen_by if agrees(getattr(found, name), truth[name])]
        assert not blind, changed
    truth = enumerated(**setting)
    for name, other in itertools.permutations(names, 2):
        assert not agrees(getattr(found, name), truth[other])


# ------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("b", [1, 4])
@pytest.mark.parametrize("m", [1, 2, 16])
def test_gaussian_noise_without_draggers(b, m):
    n, sigma, r = 5, 1.5, 0.9
    sample = step_sample(problem(Gaussian(sigma=sigma), n=n, p=0.0), b, batch_size=b * m)
    found = sample.at(r)
    scale = sigma / math.sqrt(n * b)

    def longer(t):
        return stats.ncx2.sf((t / scale) ** 2, n, (r / scale) ** 2)

    weight = integrate.quad(lambda t: longer(t) ** (m - 1), 0, 0.75 * r)[0] / r
    assert agrees(found.weight, weight)
    assert agrees(found.aligned_share, longer(0.75 * r))
    for exact in (found.alignment, found.mean_cosine, found.shortest_benign_share):
        assert (exact.mean, exact.standard_error) == (1, 0)

    def rate(h):  # given h of this micro-batch, times E min(h, the others' least)/h
        least = integrate.quad(lambda t: stats.chi.sf(t / scale, n - 1) ** (m - 1), 0, h)[0]
        bracket = 1 + (scale**2 + r**2 / 3) / h**2
        return least / h * bracket**-1.5 * stats.chi.pdf(h / scale, n - 1) / scale

    assert agrees(found.progress_rate, integrate.quad(rate, 0, 9 * scale, epsabs=1e-9)[0])


def test_one_micro_batch_is_sgd():
    """τ is infinite, A = q r and M = K_g r² + K_σ σ² (theory page, section 4)."""
    made = problem(Exponential(sigma=0.7), p=0.3, c=2.0, gamma=0.5)
    found = step_sample(made, 6, batch_size=6).at([0.2, 3.0])
    np.testing.assert_array_equal(found.weight.mean, 0.75)
    np.testing.assert_array_equal(found.weight.standard_error, 0)
    chi = 0.3 / 6 + 0.5 * 0.09 * (1 - 1 / 6)
    for i, r in enumerate((0.2, 3.0)):
        assert agrees(found.progress, 0.7 * r, i)
        assert agrees(found.shortest_benign_share, 0.7, i)
        square = (0.49 + 0.21 / 6 + chi * 4) * r**2 + (0.7 / 6 + chi * 4) * 0.49
        assert agrees(found.second_moment, square, i)


# --------------------------------------------------------------------- against the exact drift

LAWS = (
    Gaussian(sigma=1.0),
    TwoPoint(sigma=1.0, rare=0.2),
    TwoPoint(sigma=1.0, rare=0.3, isotropic_share=0.5),
    Exponential(sigma=1.0),
    Exponential(sigma=1.0, isotropic_share=0.4),
    StudentT(sigma=1.0, df=4.0),
)


@pytest.mark.parametrize("noise", LAWS, ids=repr)
def test_progress_and_second_moment_are_those_of_the_drift(noise):
    r = np.array([0.05, 0.5, 4.0])
    for gamma, (b, m) in itertools.product((0.0, 0.4, 1.0), ((1, 8), (4, 5))):
        made = problem(noise, n=3, gamma=gamma)
        found = step_sample(made, b, batch_size=b * m, rng=1, draws=2**16).at(r)
        method = mbsim.MicroBatchClipping(b)
        exact = drift(made, method, batch_size=b * m, rng=2, draws=2**16).at(r)
        for name in ("progress", "second_moment"):
            sampled = stats.t.isf(TAIL, exact.df) * getattr(exact, f"{name}_standard_error")
            error = getattr(exact, f"{name}_numerical_error") + sampled
            assert agrees(getattr(found, name), getattr(exact, name), error=error), (gamma, b)
    other = drift(made, method, batch_size=b * (m + 2), rng=2, draws=2**16).at(r)
    assert not agrees(found.progress, other.progress, error=error)


@pytest.mark.parametrize(("c", "b"), [(0.0, 1), (2.0, 2)])
def test_the_drift_stalls_where_norms_are_zero(c, b):
    """At c = 0, or where two draggers of a single dimension cancel, X_j can be 0, and u with it."""
    made = problem(Gaussian(), n=3, walk=1, p=0.4, c=c)
    found = step_sample(made, b, batch_size=4 * b).at(1.0)
    exact = drift(made, mbsim.MicroBatchClipping(b), batch_size=4 * b).at(1.0)
    error = float(exact.progress_numerical_error)
    assert agrees(found.progress, float(exact.progress), error=error)


# ----------------------------------------------------------------------------------- the sample


def test_one_sample_serves_every_gradient_norm():
    sample = step_sample(problem(Gaussian()), 2, batch_size=8, draws=2**10)
    both = sample.at([[0.1, 5.0]])
    assert both.grad_norm.shape == both.alignment.mean.shape == (1, 2)
    assert both.alignment.mean[0, 1] == sample.at(5.0).alignment.mean
    assert sample == step_sample(problem(Gaussian()), 2, batch_size=8, draws=2**10)
    assert sample != step_sample(problem(Gaussian()), 2, batch_size=8, draws=2**10, rng=1)


def test_there_are_always_enough_steps():
    assert step_sample(problem(Gaussian()), 1, batch_size=64, draws=1).steps == 64
    assert step_sample(problem(Gaussian()), 8, batch_size=64, draws=2**12).steps == 2**9


def test_the_unit_plays_no_part():
    """Powers of two are exact: the same numbers at 2^-600, whose square is 0, to the last digit."""
    tiny = 2.0**-600
    one = step_sample(problem(Gaussian(sigma=1.0), n=3), 2, batch_size=8, draws=2**12).at(0.3)
    other = step_sample(problem(Gaussian(sigma=tiny), n=3), 2, batch_size=8, draws=2**12)
    other = other.at(0.3 * tiny)
    for name in ("weight", "alignment", "progress_rate", "aligned_share"):
        assert getattr(one, name) == getattr(other, name)
    assert one.progress.mean * tiny == other.progress.mean


def test_the_cap_is_that_of_the_theorems():
    assert float(theory.theorems._CAP) == module._CAP


@dataclass(frozen=True)
class Uniform:
    """A law of a user: uniform along e, with a quarter of the variance across it."""

    sigma: float = 2.0

    def mean_of(self, counts, benign_dim, rng):
        spread = self.sigma * math.sqrt(0.75) * math.sqrt(3)
        drawn = rng.uniform(-spread, spread, (*np.shape(counts), 8))
        used = np.arange(8) < np.asarray(counts)[..., None]
        inverse = 1 / np.maximum(counts, 1)
        across = self.sigma * np.sqrt(0.25 / (benign_dim - 1) * inverse)
        return (drawn * used).sum(axis=-1) * inverse, across


def test_sigma_along():
    for noise, want in (
        (Gaussian(sigma=3.0), 1.0),
        (StudentT(sigma=3.0), 1.0),
        (TwoPoint(sigma=3.0, rare=0.2), 3.0),
        (TwoPoint(sigma=3.0, rare=0.2, isotropic_share=1.0), 1.0),
        (Exponential(sigma=3.0, isotropic_share=0.5), math.sqrt(5)),
    ):
        sample = step_sample(problem(noise, n=9, p=0.3), 4, batch_size=16)
        assert sample.sigma_along == pytest.approx(want, rel=1e-15)
        # α²ν² has the mean q σ_e²/b, k drawn too.
        squares = np.square(sample.drawn.noise).mean(axis=1) * 4 / 0.7
        interval = mbsim.statistics.mean(squares, false_positive_rate=2 * TAIL)
        assert want**2 in interval
    unknown = step_sample(problem(Uniform(), n=9, p=0.3), 4, batch_size=16).sigma_along
    assert 2 * math.sqrt(0.75) < unknown < 1.02 * 2 * math.sqrt(0.75)
    assert step_sample(problem(Uniform(), n=9, p=1.0), 4, batch_size=16).sigma_along == 2


# ------------------------------------------------------------------------------ measured values

SETTING = {"b": 2, "m": 3, "p": 0.3, "c": 2.0, "rare": 0.3, "sigma": 1.3}
NORMS = (0.4, 1.1, 2.3)
BOUNDS = {
    "mean_weight": theory.clipping_bound(),
    "alignment": theory.clipping_concentrated_bound(),
    "mean_cosine": theory.clipping_concentrated_bound(),
    "shortest_benign_share": theory.symmetric_bound("unimodal"),
    "progress_rate": theory.symmetric_bound("independent"),
}
WORST = {"mean_cosine": max}
FOUND_AS = {"mean_weight": "weight"}


def two_point(draws, rng=0):
    made = problem(TwoPoint(sigma=1.3, rare=0.3), p=0.3, c=2.0, gamma=1.0)
    return step_sample(made, 2, batch_size=6, draws=draws, rng=rng)


@pytest.fixture(scope="module")
def worst():
    """The worst of each quantity over NORMS, enumerated."""
    truths = [enumerated(**SETTING, r=r) for r in NORMS]
    return {
        name: WORST.get(name, min)(truth[FOUND_AS.get(name, name)] for truth in truths)
        for name in BOUNDS
    }


@pytest.mark.parametrize("name", BOUNDS)
def test_measured_values_are_near_the_worst_and_on_its_safe_side(name, worst):
    bound = BOUNDS[name]
    found = measured_values(bound.names, two_point(2**18), NORMS, false_positive_rate=1e-6)
    assert set(found) == set(bound.names) & {*BOUNDS, "norm_spread", "sigma_along"}
    above = worst[name] - found[name]
    assert 0 < (-above if name == "mean_cosine" else above) < 0.01


def test_measured_values_are_on_the_wrong_side_as_seldom_as_they_say(worst):
    """At a rate of 20 %; means without limits, the control, are on the wrong side half the time."""
    seeds, wrong, wrong_means = 200, dict.fromkeys(BOUNDS, 0), dict.fromkeys(BOUNDS, 0)
    for seed in range(seeds):
        sample = two_point(600, rng=seed)
        steps = sample.at(NORMS)
        for name, bound in BOUNDS.items():
            found = measured_values(bound.names, sample, NORMS, false_positive_rate=0.2)[name]
            means = getattr(steps, FOUND_AS.get(name, name)).mean
            sign = -1 if name == "mean_cosine" else 1
            wrong[name] += sign * found > sign * worst[name]
            wrong_means[name] += (sign * means).min() > sign * worst[name]
    most = stats.binom.isf(1e-6, seeds, 0.2)
    assert max(wrong.values()) <= most < min(wrong_means.values())


def test_a_limit_that_is_not_above_zero_is_vacuous():
    """Noise along e alone: a clean micro-batch has h = 0, and Λ is 0."""
    sample = step_sample(problem(TwoPoint(rare=0.5), p=0.0), 2, batch_size=6, draws=2**12)
    bound = theory.symmetric_bound("independent")
    found = measured_values(bound.names, sample, 1.0, false_positive_rate=1e-6)
    assert found == {"progress_rate": 0.0}
    rest = dict.fromkeys(set(bound.names) - set(found), 0.5)
    rest |= {"batch_size": 6, "micro_batch_size": 2, "steps": 10}
    with pytest.raises(InvalidArgument, match="progress_rate"):
        bound.evaluate(**rest, **found)


def test_closed_values():
    bound = theory.clipping_concentrated_bound(averaging=True)
    for noise, spread, along in (
        (Gaussian(sigma=3.0), 0.5, 1.0),
        (StudentT(sigma=3.0), 1.5, 1.0),
        (TwoPoint(sigma=3.0), 1.5, 3.0),
    ):
        sample = step_sample(problem(noise, n=9), 4, batch_size=16, draws=2**12)
        found = measured_values(bound.names, sample, [0.1, 1.0], false_positive_rate=1e-6)
        assert found["norm_spread"] == pytest.approx(spread, rel=1e-15)
        assert found["sigma_along"] == pytest.approx(along, rel=1e-15)
    assert measured_values(theory.sgd_bound().names, sample, 1.0, false_positive_rate=1e-6) == {}


# -------------------------------------------------------------------------------------- refusals


class Vectors:
    sigma = 1.0

    def vectors(self, shape, benign_dim, rng):
        return rng.standard_normal((*shape, benign_dim))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"problem": 3}, "problem=3 must be a mbsim.Problem"),
        ({"micro_batch_size": 3}, "micro_batch_size=3 must divide batch_size=8"),
        ({"draws": 0}, "draws=0 must be an integer of at least 1"),
        ({"rng": -1}, "rng=-1 must be"),
        ({"problem": problem(Vectors())}, "draws whole vectors"),
        ({"problem": problem(Gaussian(), tilt=0.2)}, "draggers.tilt=0.2 must be 0"),
    ],
)
def test_bad_samples_are_refused(arguments, words):
    given = {"problem": problem(Gaussian()), "micro_batch_size": 2, "batch_size": 8} | arguments
    with pytest.raises(InvalidArgument, match=words):
        step_sample(given.pop("problem"), given.pop("micro_batch_size"), **given)


@pytest.mark.parametrize("r", [0.0, -1.0, math.nan, [1.0, math.inf], [], "1"])
def test_bad_gradient_norms_are_refused(r):
    with pytest.raises(InvalidArgument, match="grad_norm"):
        step_sample(problem(Gaussian()), 2, batch_size=8, draws=64).at(r)


@pytest.mark.parametrize(
    ("place", "bad", "words"),
    [(1, 1, "sample=1"), (2, 0.0, "grad_norm"), (3, 0.0, "false_positive_rate")],
)
def test_bad_arguments_of_measured_values_are_refused(place, bad, words):
    sample = step_sample(problem(Gaussian()), 2, batch_size=8, draws=64)
    arguments = [theory.clipping_bound().names, sample, 1.0, 1e-6]
    arguments[place] = bad
    with pytest.raises(InvalidArgument, match=words):
        measured_values(*arguments[:3], false_positive_rate=arguments[3])
