"""The drift: against enumeration, against a plain sampler of whole vectors, against itself."""

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import optimize, special, stats

import mbsim
from mbsim import statistics
from mbsim._shared.seeds import seed_sequence
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, TrimmedNorm, UnitNorm
from mbsim.drifts import law, layer_cake, sources, walks
from mbsim.drifts.drift import drift, drifts
from mbsim.drifts.law import MicroBatchLaw, Points
from mbsim.errors import InvalidArgument
from mbsim.problems import mixtures
from mbsim.problems.noise import Exponential, Gaussian, StudentT, TwoPoint
from mbsim.problems.setting import Setting

# A statistical check here is wrong by chance once in a million times.
RATE = 1e-6
MANY = stats.norm.isf(RATE / 2)
RULES = (
    SmallestNorm(),
    QuantileNorm(0.4),
    TrimmedNorm(0.4),
    FixedNorm(0.7),
    UnitNorm(0.05),
    UnitNorm(0.0),
    NoClipping(),
)
LAWS = (
    Gaussian(sigma=1.0),
    TwoPoint(sigma=1.0, rare=0.2),
    TwoPoint(sigma=1.0, rare=0.3, isotropic_share=0.5),
    Exponential(sigma=1.0),
    Exponential(sigma=1.0, isotropic_share=0.4),
    StudentT(sigma=1.0, df=4.0),
)


def problem(noise, n=3, walk=4, p=0.2, c=3.0, gamma=0.0, tilt=0.0):
    """A problem whose dragger frame has `walk` dimensions; its loss plays no part here."""
    d = n + 1 + walk
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(d)),
        noise=noise,
        draggers=mbsim.Draggers(probability=p, norm_ratio=c, coherence=gamma, tilt=tilt),
        benign_dim=n,
        start=np.ones(d),
    )


def clip(b, rule=None):
    return mbsim.MicroBatchClipping(b, rule=rule or SmallestNorm())


@dataclass(frozen=True, kw_only=True)
class OwnStudent(StudentT):
    """Student's noise by another name: its law is not known, so that it must be sampled."""


@dataclass(frozen=True)
class Median:
    """A rule that has no layer cake here: the threshold lies between two norms."""

    def factors(self, norms):
        middle = np.median(norms, axis=-1, keepdims=True)
        return np.minimum(1, np.divide(middle, norms, out=np.ones_like(norms), where=norms > 0))


# ------------------------------------------------------------- a plain sampler of whole vectors


def unit_vectors(shape, dimensions, rng):
    vectors = rng.standard_normal((*shape, dimensions))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def noise_vectors(noise, shape, n, rng):
    """ξ of every example, the first coordinate along the gradient."""
    normal = rng.standard_normal((*shape, n)) * noise.sigma / math.sqrt(n)
    if isinstance(noise, Gaussian):
        return normal
    if isinstance(noise, StudentT):
        return normal * np.sqrt((noise.df - 2) / rng.chisquare(noise.df, (*shape, 1)))
    if isinstance(noise, TwoPoint):
        high, low = (
            math.sqrt((1 - noise.rare) / noise.rare),
            math.sqrt(noise.rare / (1 - noise.rare)),
        )
        along = np.where(rng.random(shape) < noise.rare, high, -low)
    else:
        along = rng.standard_exponential(shape) - 1
    vectors = normal * math.sqrt(noise.isotropic_share)
    vectors[..., 0] += along * noise.sigma * math.sqrt(1 - noise.isotropic_share)
    return vectors


def dragger_vectors(draggers, shape, dimensions, rng):
    """Unit dragger vectors of every example; h is drawn once a step."""
    gamma = draggers.coherence
    if gamma == 0:
        return unit_vectors(shape, dimensions, rng)
    common = unit_vectors((shape[0], 1), dimensions, rng)
    if gamma == 1:
        return np.broadcast_to(common, (*shape, dimensions))
    own = rng.standard_normal((*shape, dimensions))
    own -= (own * common).sum(axis=-1, keepdims=True) * common
    own /= np.linalg.norm(own, axis=-1, keepdims=True)
    return math.sqrt(gamma) * common + math.sqrt(1 - gamma) * own


def shortest_mean(means, norms, k):
    """The mean of the k shortest of every step; a tie shares the last places."""
    last = np.sort(norms, axis=1)[:, k - 1 : k]
    below, tied = norms < last, norms == last
    left = (k - below.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)
    return ((below + left * tied)[..., None] * means).sum(axis=1) / k


def clipped(means, rule):
    """Algorithm 1 and its family, written out: [steps, m, d] to [steps, d]."""
    norms = np.linalg.norm(means, axis=-1)
    m = norms.shape[1]
    if isinstance(rule, Median):
        length = np.minimum(norms, np.median(norms, axis=1, keepdims=True))
    elif isinstance(rule, NoClipping):
        length = norms
    elif isinstance(rule, SmallestNorm):
        length = np.broadcast_to(norms.min(axis=1, keepdims=True), norms.shape)
    elif isinstance(rule, QuantileNorm):
        threshold = np.sort(norms, axis=1)[:, int(rule.q * (m - 1) + 1e-9)]
        length = np.minimum(norms, threshold[:, None])
    elif isinstance(rule, FixedNorm):
        length = np.minimum(norms, rule.threshold)
    elif isinstance(rule, TrimmedNorm):
        return shortest_mean(means, norms, m - math.floor(rule.fraction * m))
    else:
        shifted = norms + rule.epsilon
        length = np.divide(norms, shifted, out=np.zeros_like(norms), where=norms > 0)
    factors = np.divide(length, norms, out=np.zeros_like(norms), where=norms > 0)
    return (means * factors[..., None]).mean(axis=1)


def plain_steps(made, rule, b, m, r, steps, rng):
    """⟨u, e⟩ and ‖u‖² of independent steps, every example drawn as a vector.

    Coordinates: along the gradient, n − 1 across it, and those of the dragger frame.
    """
    draggers, n, walk = made.draggers, made.benign_dim, made.dragger_dim
    shape = (steps, b * m)
    gradient = np.zeros((*shape, n + walk))
    benign = rng.random(shape) >= draggers.probability
    gradient[..., :n] = noise_vectors(made.noise, shape, n, rng) * benign[..., None]
    gradient[..., 0] += r * benign
    length = draggers.norm_ratio * math.hypot(r, made.noise.sigma)
    dragger = dragger_vectors(draggers, shape, walk, rng) * length * ~benign[..., None]
    gradient[..., n:] = dragger
    tilt = draggers.tilt
    gradient[..., 0] += ~benign * (length * tilt / math.sqrt(1 - tilt**2))
    update = clipped(gradient.reshape(steps, m, b, -1).mean(axis=2), rule)
    return update[:, 0], np.square(update).sum(axis=1)


def agrees(sample, truth, error, numerical=0.0):
    """Whether the mean of a sample lies within its own error and that of `truth`."""
    mean = statistics.mean(sample, false_positive_rate=RATE)
    reach = MANY * math.hypot(mean.standard_error, error) + numerical
    # 1e-12 of the size: rounding, where nothing is random.
    return abs(mean.estimate - truth) <= reach + 1e-12 * (1 + abs(truth))


def same_as_sampled(found, along, square):
    return agrees(
        along,
        float(found.progress),
        float(found.progress_standard_error),
        float(found.progress_numerical_error),
    ) and agrees(
        square,
        float(found.second_moment),
        float(found.second_moment_standard_error),
        float(found.second_moment_numerical_error),
    )


@pytest.mark.parametrize("noise", LAWS, ids=repr)
@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_plain_sampler_of_vectors_agrees(noise, gamma):
    made, rng = problem(noise, gamma=gamma), np.random.default_rng(1)
    for b, m in ((1, 6), (3, 4), (4, 2)):
        one = drift(made, clip(b), batch_size=b * m, draws=2**17)
        for r in (0.1, 1.5):
            along, square = plain_steps(made, SmallestNorm(), b, m, r, 6000, rng)
            assert same_as_sampled(one.at(r), along, square), (b, m, r)


@pytest.mark.parametrize("rule", [*RULES[1:], QuantileNorm(0.8), Median()], ids=repr)
def test_plain_sampler_agrees_for_every_rule(rule):
    rng = np.random.default_rng(2)
    for noise in (LAWS[0], LAWS[2], LAWS[5]):
        for gamma, tilt in ((0.0, 0.0), (0.4, 0.3)):
            made = problem(noise, gamma=gamma, tilt=tilt)
            one = drift(made, clip(2, rule), batch_size=8, draws=2**16)
            along, square = plain_steps(made, rule, 2, 4, 0.6, 6000, rng)
            assert same_as_sampled(one.at(0.6), along, square), (noise, gamma, tilt)


def test_plain_sampler_would_see_a_wrong_drift():
    """Controls: two micro-batches more, no coherence, a norm ratio that is 20 % too large."""
    made, rng = problem(LAWS[0], gamma=0.4), np.random.default_rng(3)
    along, square = plain_steps(made, SmallestNorm(), 3, 4, 1.0, 20000, rng)
    assert same_as_sampled(drift(made, clip(3), batch_size=12).at(1.0), along, square)
    for wrong in (
        drift(made, clip(3), batch_size=18),
        drift(problem(LAWS[0], gamma=0.0), clip(3), batch_size=12),
        drift(problem(LAWS[0], gamma=0.4, c=3.6), clip(3), batch_size=12),
    ):
        assert not same_as_sampled(wrong.at(1.0), along, square)


# ------------------------------------------------------------- exact expectations


def enumerated(made, rule, b, m, r):
    """A and M of two-point noise and draggers on a line, over every mini-batch there is."""
    noise, draggers = made.noise, made.draggers
    p, rare = draggers.probability, noise.rare
    length = draggers.norm_ratio * math.hypot(r, noise.sigma)
    high, low = math.sqrt((1 - rare) / rare), math.sqrt(rare / (1 - rare))
    benign = [
        ((1 - p) * rare, (r + noise.sigma * high, 0.0)),
        ((1 - p) * (1 - rare), (r - noise.sigma * low, 0.0)),
    ]
    # On a line the common direction is ±1, and what is across it has no dimension.
    coherent = draggers.coherence == 1
    signs = [[1.0], [-1.0]] if coherent else [[1.0, -1.0]]
    progress = second = 0.0
    for directions in signs:
        dragger = [(p / len(directions), (0.0, s * length)) for s in directions]
        for batch in itertools.product(benign + dragger, repeat=b * m):
            weight = math.prod(w for w, _ in batch) / len(signs)
            means = np.array([x for _, x in batch]).reshape(1, m, b, 2).mean(axis=2)
            update = clipped(means, rule)[0]
            progress += weight * update[0]
            second += weight * (update @ update)
    return progress, second


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize(("b", "m"), [(1, 4), (2, 2), (1, 3)])
def test_trimming_is_sampled_around_every_mini_batch(gamma, b, m):
    """Two-point noise has many norms that tie."""
    rule = TrimmedNorm(0.4)
    made = problem(TwoPoint(sigma=1.3, rare=0.3), n=1, walk=1, p=0.25, c=1.7, gamma=gamma)
    found = drift(made, clip(b, rule), batch_size=b * m).at(0.4)
    assert found.method == "sample"
    progress, second = enumerated(made, rule, b, m, 0.4)
    assert abs(found.progress - progress) < MANY * found.progress_standard_error + 1e-12
    error = MANY * found.second_moment_standard_error + 1e-12
    assert abs(found.second_moment - second) < error
    assert found.progress_standard_error < 0.02
    assert found.second_moment_standard_error < 0.02


EXACT = [rule for rule in RULES if not isinstance(rule, TrimmedNorm)]


@pytest.mark.parametrize("rule", [*EXACT, QuantileNorm(0.8)], ids=repr)
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_every_mini_batch_of_a_tiny_problem(rule, gamma):
    made = problem(TwoPoint(sigma=1.3, rare=0.3), n=1, walk=1, p=0.25, c=1.7, gamma=gamma)
    for b, m in ((1, 4), (2, 2), (1, 3)):
        found = drift(made, clip(b, rule), batch_size=b * m).at(0.4)
        expected = enumerated(made, rule, b, m, 0.4)
        # Nothing but rounding on both sides, in sums of 256 terms.
        assert found.method in ("quadrature", "closed form")
        np.testing.assert_allclose([found.progress, found.second_moment], expected, rtol=1e-12)


def step_of_atoms(along, shared, norms, rank):
    length = np.minimum(norms, np.sort(norms)[rank])
    pairs = sum(
        (c * length / norms).sum() ** 2 - np.square(c * length / norms).sum()
        for c in (along, shared)
    )
    return (along * length / norms).sum(), np.square(length).sum() + pairs


def test_the_layer_cake_is_the_mean_over_all_steps_of_a_discrete_law():
    rng = np.random.default_rng(4)
    along, shared = rng.normal(size=(2, 5))
    norms = np.sqrt(along**2 + shared**2 + rng.random(5))
    order = np.argsort(norms)
    along, shared, norms, weight = (
        along[order],
        shared[order],
        norms[order],
        rng.dirichlet(np.ones(5)),
    )
    exact = np.full(5, -1)
    points = Points(along, shared, norms, weight, exact, weight)
    for m in (1, 2, 3, 5):
        for rank in range(m):
            total = np.zeros(2)
            for some in map(list, itertools.product(range(5), repeat=m)):
                step = step_of_atoms(along[some], shared[some], norms[some], rank)
                total += weight[some].prod() * np.array(step) / [m, m**2]
            found, errors = layer_cake.of_rank(points, m, rank)
            np.testing.assert_allclose(found, total, rtol=1e-12)
            assert not errors.any()


@pytest.mark.parametrize("rank", [0, 2])
def test_influences_are_derivatives_in_the_weights(rank):
    """What the stated errors rest on, against differences: each point made a little likelier."""
    rng = np.random.default_rng(5)
    along, shared = rng.normal(size=(2, 8))
    norms = np.sort(np.sqrt(along**2 + shared**2 + rng.random(8)))
    part, weight = np.arange(8), np.full(8, 1 / 8)
    seen = []

    class Watched(Points):
        def error_of_mean(self, values):
            seen.append(values)
            return 0.0

    layer_cake.of_rank(Watched(along, shared, norms, weight, part, weight), 6, rank)
    for moment, influence in enumerate(seen):
        for i in range(8):
            ends = []
            for h in (-1e-6, 1e-6):
                changed = weight + h * (np.arange(8) == i) - h / 8
                points = Points(along, shared, norms, changed, part, changed)
                ends.append(layer_cake.of_rank(points, 6, rank)[0][moment])
            slope = (ends[1] - ends[0]) / 2e-6
            assert slope == pytest.approx(influence[i] - influence.mean(), abs=1e-6)


def test_sgd_and_one_micro_batch_have_theorem_1_s_drift():
    made = problem(Gaussian(sigma=1.5), p=0.2, c=3.0, gamma=0.4)
    batch, r, p, c, gamma = 12, np.array([0.0, 0.3, 2.0]), 0.2, 3.0, 0.4
    q, chi = 1 - p, p / batch + gamma * p**2 * (1 - 1 / batch)
    k_g, k_sigma = q**2 + p * q / batch + chi * c**2, q / batch + chi * c**2
    methods = (mbsim.SGD(), clip(12), clip(3, NoClipping()), clip(3, QuantileNorm(1.0)))
    for method in methods:
        found = drift(made, method, batch_size=batch).at(r)
        np.testing.assert_allclose(found.progress, q * r, rtol=1e-14)
        np.testing.assert_allclose(found.second_moment, k_g * r**2 + k_sigma * 1.5**2, rtol=1e-13)
        assert set(found.method) == {"closed form"}
        assert found.delivered.all()


# ------------------------------------------------------------- what the theory page says


def two_point(rare, p=0.0, n=1, walk=2, c=20.0):
    return problem(TwoPoint(sigma=1.0, rare=rare), n=n, walk=walk, p=p, c=c)


def test_fair_coin_noise_progresses_by_two_to_the_minus_63():
    one = drift(two_point(0.5), clip(1), batch_size=64)
    for r in (0.125, 0.5, 0.999):
        # Section 6: r 2^-63 for r < σ. The sums behind it have two terms.
        assert one.progress(r) == pytest.approx(r * 2.0**-63, rel=1e-12)
    # Beyond σ every micro-batch points the right way, and the smallest norm is r − σ but once.
    assert one.progress(1.5) == pytest.approx(0.5 + 2.0**-63, rel=1e-12)


def test_skew_decides_the_sign_of_the_progress():
    r = np.array([1e-3, 0.01, 0.05, 0.1])
    few = drift(two_point(0.1, p=0.05, walk=31, n=32), clip(1), batch_size=64)
    many = drift(two_point(0.9, p=0.05, walk=31, n=32), clip(1), batch_size=64)
    assert (few.progress(r) < 0).all()
    assert (many.progress(np.append(r, [0.3, 1.0, 5.0])) > 0).all()


def test_pooling_over_the_common_direction_is_wrong():
    """Section 7: what draggers share must stay in the second moment."""
    made = problem(Gaussian(sigma=0.5), p=0.4, c=4.0, gamma=0.8)
    right = drift(made, clip(4), batch_size=8).second_moment(0.5)
    points = MicroBatchLaw(made, 4, 2**15).at(1.0, 1.0)
    blind = Points(**{**vars(points), "shared": np.zeros_like(points.norm)})
    wrong = layer_cake.of_rank(blind, 2, 0)[0][1] * 0.5**2
    assert wrong < 0.85 * right
    _, square = plain_steps(made, SmallestNorm(), 4, 2, 0.5, 20000, np.random.default_rng(5))
    assert agrees(square, right, 0.0)
    assert not agrees(square, wrong, 0.0)


@pytest.mark.parametrize("micro_batch_size", [1, 16, 64])
def test_floor_is_where_a_run_on_half_w_squared_stops(micro_batch_size):
    made = mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(64)),
        noise=TwoPoint(sigma=1.0, rare=0.05),
        draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
        benign_dim=32,
        start=np.full(64, 0.02),
    )
    method = clip(micro_batch_size)
    floor = drift(made, method, batch_size=64).floor(step_size=0.05)
    run = mbsim.simulate(
        made,
        method,
        batch_size=64,
        step_size=0.05,
        steps=1200,
        replicates=32,
        rng=6,
        record_every=20,
    )
    late = np.sqrt(run.grad_norm_sq[:, 30:].mean(axis=1))
    mean = statistics.mean(late, false_positive_rate=RATE)
    # 4 %: the floor is a point, and a run spreads around it (for SGD alone they are the same).
    assert mean.low <= 1.04 * floor
    assert mean.high >= 0.96 * floor
    assert mean.high < 1.15 * floor
    assert mean.low > 0.85 * floor


# ------------------------------------------------------------- the parts of the quadrature


SHARES = (np.arange(2**16) + 0.5) / 2**16


@pytest.mark.parametrize("dimensions", [2, 3, 7, 31, 1000])
def test_squared_lengths_have_the_moments_of_a_random_walk(dimensions):
    for k in (2, 3, 5, 10, 40, 300, 3000):
        found = walks.squared_length(dimensions, k, SHARES)
        # E|S|⁴ = k² + 2k(k−1)/N. Means of bins have these moments exactly; that values move within
        # a bin adds to the variance what 512 bins leave of it.
        assert found.mean() == pytest.approx(k, rel=2e-4)
        assert found.var() == pytest.approx(2 * k * (k - 1) / dimensions, rel=3e-3)
        assert (np.diff(found) >= 0).all()
        assert found.min() >= 0
        assert found.max() <= k**2


def test_directions_on_a_line_are_listed():
    for k in range(2, 40):
        values, weights = walks.line_walk(k)
        assert weights @ values == pytest.approx(k, abs=1e-11)
        assert weights @ (values - k) ** 2 == pytest.approx(2 * k * (k - 1), rel=1e-11)


@pytest.mark.parametrize("dimensions", [2, 3, 8, 31, 200])
def test_two_directions_have_the_law_of_their_cosine(dimensions):
    omega = np.linspace(0, 3 * math.sqrt(dimensions), 30)
    found = np.exp(1j * omega[:, None] * walks.squared_length(dimensions, 2, SHARES)).mean(axis=1)
    # |S_2|² = 2 + 2C, and E exp(iτC) = Γ(N/2)(2/τ)^(N/2−1) J_{N/2−1}(τ).
    expected = np.exp(2j * omega) * special.hyp0f1(dimensions / 2, -np.square(omega))
    # 1e-4: between its exact quantiles the law is interpolated.
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("dimensions", "k"), [(3, 6), (8, 3), (31, 5), (31, 40), (300, 4), (5, 200)]
)
def test_lengths_of_many_directions_agree_with_sampled_walks(dimensions, k):
    rng = np.random.default_rng(7)
    sums = sum(unit_vectors((20000,), dimensions, rng) for _ in range(k))
    squares = np.square(sums).sum(axis=1)
    found = walks.squared_length(dimensions, k, SHARES)
    step = 1.5 / math.sqrt(2 * k * (k - 1) / dimensions)
    for j in range(1, 4):
        for part in (np.real, np.imag):
            mean = part(np.exp(1j * j * step * found)).mean()
            assert agrees(part(np.exp(1j * j * step * squares)), mean, 0.0, 1e-4)
    # Control: an eighth of the directions fewer is noticed.
    fewer = np.exp(1j * step * walks.squared_length(dimensions, k - max(1, k // 8), SHARES))
    assert not agrees(np.imag(np.exp(1j * step * squares)), np.imag(fewer).mean(), 0.0, 1e-4)


def smallest_of_lengths(k, m):
    """E min |S_k| over m independent walks in space: m ∫ q(u) (1 − u)^(m−1) du, q the quantiles."""
    share = -np.expm1(np.log1p(-SHARES) / m)  # of the smallest of m
    return np.sqrt(walks.squared_length(3, k, share)).mean()


@pytest.mark.parametrize("k", [2, 3, 6])
def test_walks_have_the_lengths_of_walks_in_space(k):
    """In 3 dimensions a coordinate of S_k is a sum of k uniform variables, with distribution F and
    density f, and P(|S_k| ≤ s) = F(s) − F(−s) − 2 s f(s)."""
    s, j = np.linspace(0, k, 100_001), np.arange(k + 1)
    signs = (-1.0) ** j * special.comb(k, j)

    def powers(x, degree):
        y = np.maximum((x[:, None] + k) / 2 - j, 0)
        return (y**degree) @ signs / math.factorial(degree)

    below = powers(s, k) - powers(-s, k) - s * powers(s, k - 1)
    for m in (1, 8, 64):
        exact = np.trapezoid(np.clip(1 - below, 0, 1) ** m, s)
        found = smallest_of_lengths(k, m)
        # What bins leave of the least of many; 1e-4 where m is 1.
        assert found == pytest.approx(exact, rel=max((m / 512) ** 2, 1e-4))
    # Control: a chi-square law has the moments, but not this tail.
    share = -np.expm1(np.log1p(-SHARES) / 64)
    other = np.sqrt(special.gammaincinv(1.5, share) * k / 1.5).mean()
    assert other != pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("n", "r"), [(1, 0.0), (1, 0.7), (3, 0.3), (15, 0.5), (16, 0.0), (40, 0.9)]
)
def test_benign_norms_have_a_noncentral_chi_square_law(n, r):
    """Points against SciPy: the largest distance of two distribution functions."""
    law = MicroBatchLaw(problem(Gaussian(sigma=1.0), n=n, p=0.0), 4, 2**14)
    sigma = math.sqrt(1 - r**2)
    points = law.at(r, sigma)
    variance = sigma**2 / (4 * n)
    expected = stats.ncx2.cdf(points.norm**2 / variance, n, r**2 / variance)
    if r == 0:
        expected = stats.chi2.cdf(points.norm**2 / variance, n)
    found = np.cumsum(points.weight)
    assert np.abs(found - expected).max() < 4e-3
    # Where norms are short and points are more, three points' weight.
    short = expected < 0.01
    assert np.abs(found - expected)[short].max() < 4e-4
    half = (points.norm < points.norm[points.norm.size // 2]).astype(float)
    assert points.error_of_mean(half) < 4e-3


def test_price_and_value_do_not_depend_on_the_dimension():
    """Draggers in 10^5 dimensions: |S_k|² is k, but for 1/√N; against the sampled drift."""
    made = problem(Gaussian(sigma=1.0), n=40, walk=10**5, p=0.1, c=5.0)
    found = drift(made, clip(8), batch_size=64).at(0.5)
    assert found.method == "quadrature"
    assert found.delivered
    assert within_errors(found, sampled(made, 8, 8, 8).values(np.array([0.5]), 1e-9), RATE)


@pytest.mark.parametrize("df", [2.001, 2.3, 4.0, 5.0, 10.0, 100.0])
@pytest.mark.parametrize("node", [0, 2, 3, 9, 18, 30])
def test_two_inversions_of_one_transform_agree(df, node):
    """The Fourier series and the integral along the cut share nothing but the transform."""
    count = 2 ** (node / mixtures._PER_OCTAVE)
    places, logs = mixtures._PLACES, mixtures._log_means(df, node)
    t = count * np.exp(logs)
    assert (np.diff(t) > 0).all()
    end = mixtures._end_of_bulk(df, count)
    high = end * np.linspace(1, 2, 9)
    below, beyond = mixtures._below(high, df, count, 4 * end), mixtures._beyond(high, df, count)
    # 1e-7 for both; 4e-8 is the worst.
    np.testing.assert_allclose(1 - below, beyond, atol=1e-7)
    # And the quantiles are quantiles, but for what lies between places.
    low = t < 2 * end
    share = mixtures._below(t[low], df, count, 4 * end)
    np.testing.assert_allclose(share, special.ndtr(places[low]), rtol=1e-4, atol=1e-6)
    if node == 0:  # V itself, which is known
        exact = (df / 2 - 1) / special.gammainccinv(df / 2, special.ndtr(places))
        np.testing.assert_allclose(t, exact, rtol=2e-5)


@pytest.mark.parametrize(
    ("df", "count"), [(2.1, 2), (4.0, 5), (5.0, 30), (64.0, 3), (150.0, 3), (1e3, 7), (1e6, 2)]
)
def test_sums_of_variances_agree_with_sampled_sums(df, count):
    rng = np.random.default_rng(8)
    sums = sum((df - 2) / rng.chisquare(df, 100_000) for _ in range(count))
    for share in (1e-3, 0.1, 0.5, 0.9, 0.999):
        found = mixtures.sum_of_variances(df, count, np.array([share]))[0]
        hits = int((sums <= found).sum())
        assert stats.binomtest(hits, sums.size, share).pvalue > RATE, share
    # Control: the median of one example more is far off, but for rounding of those next to 1.
    other = mixtures.sum_of_variances(df, count + 1, np.array([0.5]))[0]
    assert stats.binomtest(int((sums <= other).sum()), sums.size, 0.5).pvalue < RATE


def test_chi_squares_of_the_table_are_those_of_scipy():
    share = np.concatenate([np.geomspace(1e-20, 0.5, 300), 1 - np.geomspace(1e-11, 0.5, 300)])
    for df in (1, 2, 7, 31, 10**5):
        exact = 2 * special.gammaincinv(df / 2, share)
        np.testing.assert_allclose(law._chi_square(df, share), exact, rtol=1e-6)
        usual = (share > 1e-9) & (share < 1 - 1e-8)
        found = law._chi_square(df, share[usual])
        np.testing.assert_allclose(found, exact[usual], rtol=1e-8)


# ------------------------------------------------------------- errors are what they claim to be


def sampled(made, b, m, seed, draws=2**17):
    """The drift from sampled steps, for a law that would be integrated."""
    return sources._Sampled(Setting(made, clip(b), b * m), draws, seed_sequence(seed))


def within_errors(found, estimate, rate):
    """Whether an integrated and a sampled drift agree within the errors that they state."""
    reach = -special.stdtrit(estimate.df, rate / 2)
    return all(
        np.abs(getattr(found, name) - getattr(estimate, name))
        <= reach * getattr(estimate, f"{name}_standard_error")
        + getattr(found, f"{name}_numerical_error")
        for name in ("progress", "second_moment")
    )


MUTUAL = (
    (Gaussian(sigma=1.0), {"n": 32, "walk": 31, "p": 0.05, "c": 20.0}, 8, 64),
    (Gaussian(sigma=1.0), {"n": 5, "walk": 9, "p": 0.3, "c": 3.0, "gamma": 0.4}, 4, 64),
    (TwoPoint(sigma=1.0, rare=0.1), {"n": 32, "walk": 31, "p": 0.05, "c": 20.0}, 16, 256),
    (
        TwoPoint(sigma=1.0, rare=0.2, isotropic_share=0.5),
        {"n": 8, "walk": 12, "p": 0.1, "c": 2.0},
        8,
        32,
    ),
    (Exponential(sigma=1.0), {"n": 4, "walk": 20, "p": 0.1, "c": 5.0}, 4, 64),
    (StudentT(sigma=1.0, df=2.5), {"n": 4, "walk": 20, "p": 0.1, "c": 5.0}, 4, 64),
    (StudentT(sigma=1.0, df=5.0), {"n": 40, "walk": 9, "p": 0.3, "c": 3.0, "gamma": 0.4}, 8, 64),
    (StudentT(sigma=1.0, df=300.0), {"n": 300, "walk": 9, "p": 0.0, "c": 3.0}, 2, 64),
)


@pytest.mark.parametrize(("noise", "numbers", "b", "batch"), MUTUAL)
def test_quadrature_and_sampled_steps_agree(noise, numbers, b, batch):
    made = problem(noise, **numbers)
    one, other = drift(made, clip(b), batch_size=batch), sampled(made, b, batch // b, 9)
    for r in (0.02, 0.4, 3.0):
        found = one.at(r)
        assert found.method == "quadrature"
        assert within_errors(found, other.values(np.array([r]), 1e-9), RATE / 2), r


def test_standard_errors_of_samples_are_calibrated():
    """Squared errors over their variances, added up over seeds, follow their law."""
    made = problem(Gaussian(sigma=1.0), n=8, walk=9, p=0.2, c=4.0, gamma=0.4)
    found = drift(made, clip(4), batch_size=32).at(0.3, relative_error=1e-5)
    truth, squares, halved = np.array([found.progress, found.second_moment]), 0.0, 0.0
    for seed in range(40):
        one = sampled(made, 4, 8, seed, draws=1).values(np.array([0.3]), None)
        gap = np.array([one.progress[0], one.second_moment[0]]) - truth
        covariance = (
            np.diag([one.progress_standard_error[0], one.second_moment_standard_error[0]]) ** 2
        )
        covariance += one.covariance[0] * (1 - np.eye(2))
        squares += gap @ np.linalg.solve(covariance, gap)
        halved += gap @ np.linalg.solve(covariance / 4, gap)
    # With df degrees of freedom the sum of 40 has mean 80 df/(df − 3) and about the law of that
    # multiple of a chi-square of 80.
    ends = stats.chi2(80).ppf([RATE / 2, 1 - RATE / 2]) * one.df[0] / (one.df[0] - 3)
    assert ends[0] < squares < ends[1]
    assert not ends[0] < halved < ends[1]


def test_relative_error_is_delivered_or_said_to_be_missed():
    r = np.array([0.03, 0.3, 2.0])
    for noise, numbers, b, batch in MUTUAL:
        one = drift(problem(noise, **numbers), clip(b), batch_size=batch)
        found, finer = one.at(r), one.at(r, relative_error=1e-5)
        for name in ("progress", "second_moment"):
            gap = np.abs(getattr(found, name) - getattr(finer, name))
            assert (gap <= 1e-3 * np.abs(getattr(finer, name)))[found.delivered].all()
            assert (gap <= getattr(found, f"{name}_numerical_error") + 1e-14).all()
        assert found.delivered.mean() > 0.5
    skewed = drift(two_point(0.1, p=0.05, n=32, walk=31), clip(16), batch_size=256)
    root = optimize.brentq(skewed.progress, 1e-3, 0.5)
    assert not skewed.at(root).delivered
    sampled = problem(OwnStudent(sigma=1.0, df=4.0))
    few, many = (drift(sampled, clip(2), batch_size=8, draws=draws) for draws in (1, 2**21))
    assert not few.at(0.5, relative_error=1e-3).delivered
    better = many.at(0.5, relative_error=2e-3)
    assert better.delivered
    assert better.progress_standard_error <= 2e-3 * better.progress


def test_a_sample_is_the_same_for_every_order_of_questions():
    made = problem(OwnStudent(sigma=1.0, df=4.0))
    one, other = (drift(made, clip(2), batch_size=8, rng=3) for _ in range(2))
    together = one.at([0.5, 0.1, 2.0])
    other.at(2.0, relative_error=1e-3)
    assert other.at(0.1).progress == together.progress[1]
    assert drift(made, clip(2), batch_size=8, rng=4).progress(0.1) != together.progress[1]


def integrated(made, b, m, r, steps=400_001):
    """A and M for two-point noise and at most two draggers in 2 or 3 dimensions, on a fine grid.

    |S_2|² = 2 + 2C: uniform on [0, 4] in 3 dimensions, and arccos(C) uniform in 2.
    """
    noise, p = made.noise, made.draggers.probability
    length = made.draggers.norm_ratio * math.hypot(r, noise.sigma)
    high = math.sqrt((1 - noise.rare) / noise.rare)
    top = max(2 * length / b, r + noise.sigma * high) * 1.01
    t = np.linspace(0, top, steps)
    survival, along = np.zeros_like(t), np.zeros_like(t)
    for k in range(b + 1):
        for hits in range(b - k + 1):
            weight = stats.binom.pmf(k, b, p) * stats.binom.pmf(hits, b - k, noise.rare)
            shift = noise.sigma * (hits * high - (b - k - hits) / high)
            mu = ((b - k) * r + shift) / b
            if k < 2:
                x = math.hypot(mu, k * length / b)
                survival += weight * (x > t)
                along += weight * (x > t) * (mu / x)
                continue
            cosine = np.clip(((t * b / length) ** 2 - 2) / 2, -1, 1)
            flat = made.dragger_dim == 2
            survival += weight * (np.arccos(cosine) / np.pi if flat else (1 - cosine) / 2)
    progress = np.trapezoid(along * survival ** (m - 1), t)
    second = np.trapezoid(2 * t * survival**m, t) / m
    second += (1 - 1 / m) * np.trapezoid(2 * t * along**2 * survival ** (m - 2), t)
    return progress, second


@pytest.mark.parametrize("walk", [2, 3])
def test_walks_with_two_point_noise_are_integrated(walk):
    """Nothing makes these norms smooth: densities with poles, jumps and atoms."""
    for p, m, r in ((0.5, 4, 0.7), (0.5, 64, 0.7), (0.2, 16, 0.1), (0.2, 16, 3.0)):
        made = problem(TwoPoint(sigma=1.0, rare=0.3), n=2, walk=walk, p=p, c=1.5)
        found, exact = drift(made, clip(2), batch_size=2 * m).at(r), integrated(made, 2, m, r)
        assert found.method == "quadrature"
        assert found.delivered
        # The error that it says it has, and the grid's: a step of 1e-5 at every atom.
        assert abs(found.progress - exact[0]) <= found.progress_numerical_error + 2e-5
        assert abs(found.second_moment - exact[1]) <= found.second_moment_numerical_error + 2e-5
        # Control: two draggers that are always at right angles would be noticed.
        straight = problem(TwoPoint(sigma=1.0, rare=0.3), n=2, walk=10**6, p=p, c=1.5)
        wrong = drift(straight, clip(2), batch_size=2 * m).at(r)
        assert abs(wrong.progress - exact[0]) > 3 * (found.progress_numerical_error + 2e-5)


def test_norms_far_apart_are_all_seen():
    """Benign gradients alike and draggers next to nothing: norms near 0, 1/3, 2/3 and 1."""
    q = 0.875  # not nothing but draggers: then the smallest norm of 5 is 0
    alike = q**5 * (1 + (4 / 7) ** 5 + (1 / 7) ** 5) / 3
    # Each of the five norms is i/3 with a probability (1, 3, 3, 1)/8, and so much its share of e.
    for noise in (Gaussian(sigma=0.0), Gaussian(sigma=1e-6), TwoPoint(sigma=1e-6, rare=0.3)):
        for n, walk, c in ((1, 5, 1e-4), (40, 30, 1e-6), (2, 2, 1e-16)):
            made = problem(noise, n=n, walk=walk, p=0.5, c=c)
            found = drift(made, clip(3), batch_size=15).at(1.0)
            # (1 + √5) √(E‖D‖²), for draggers of length c and for noise (theory page, 8.2).
            away = (1 + math.sqrt(5)) * (c + noise.sigma)
            assert abs(found.progress - alike) <= away + found.progress_numerical_error, (n, walk)
            assert found.method == "quadrature"


@pytest.mark.parametrize("c", [1e-16, 1e-30, 0.0])
def test_draggers_too_short_to_be_seen(c):
    for noise in (Gaussian(sigma=1.0), TwoPoint(sigma=1.0), Exponential(sigma=1.0)):
        found = drift(problem(noise, n=4, walk=12, p=0.3, c=c), clip(3), batch_size=9)
        other = drift(problem(noise, n=4, walk=12, p=0.3, c=1e-9), clip(3), batch_size=9)
        for r in (0.0, 1.0, 1e9, 1e15):
            x, y = found.at(r), other.at(r)
            assert abs(x.progress - y.progress) <= 1e-8 * math.hypot(1, r) + float(
                x.progress_numerical_error + y.progress_numerical_error
            )


# ------------------------------------------------------------- shapes, units, calls


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_units(rule):
    """In other units of the gradient A scales, and M by the square; UnitNorm has no unit."""
    one = drift(problem(LAWS[1]), clip(2, rule), batch_size=8).at(0.4)
    scaled = {FixedNorm(0.7): FixedNorm(0.7e-6), UnitNorm(0.05): UnitNorm(0.05e-6)}.get(rule, rule)
    noise = TwoPoint(sigma=1e-6, rare=0.2)
    other = drift(problem(noise), clip(2, scaled), batch_size=8).at(0.4e-6)
    unit = 1.0 if isinstance(rule, UnitNorm) else 1e-6
    # Rounding alone: nodes and weights are the same but for the last digits.
    assert other.progress == pytest.approx(one.progress * unit, rel=1e-9)
    assert other.second_moment == pytest.approx(one.second_moment * unit**2, rel=1e-9)


def test_shapes_and_kinds_of_values():
    one = drift(problem(LAWS[0]), clip(2), batch_size=8)
    assert isinstance(one.progress(1.0), float)
    assert one.second_moment([[0.1, 1.0]]).shape == (1, 2)
    assert one.progress(0.0) == 0.0
    found = one.at([[0.1, 1.0]])
    assert {array.shape for array in vars(found).values()} == {(1, 2)}
    assert found == one.at([[0.1, 1.0]])
    still = drift(problem(Gaussian(sigma=0.0)), clip(2), batch_size=8)
    assert (still.progress(0.0), still.second_moment(0.0)) == (0.0, 0.0)


def test_drifts_serve_every_divisor():
    found = drifts(problem(LAWS[0]), batch_size=6)
    assert list(found) == [1, 2, 3, 6]
    alone = drift(problem(LAWS[0]), clip(3), batch_size=6)
    assert found[3].progress(0.7) == alone.progress(0.7)
    quantile = drifts(problem(LAWS[0]), batch_size=6, rule=QuantileNorm(0.5))
    assert quantile[2].progress(0.7) != found[2].progress(0.7)


class Vectors:
    sigma = 1.0

    def vectors(self, shape, benign_dim, rng):
        return rng.standard_normal((*shape, benign_dim))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: drift("here", clip(1), batch_size=4), "problem='here' must be a mbsim.Problem"),
        (lambda: drift(problem(LAWS[0]), clip(3), batch_size=4), "must divide batch_size=4"),
        (lambda: drift(problem(LAWS[0]), SmallestNorm(), batch_size=4), "must be a method"),
        (lambda: drift(problem(Vectors()), clip(1), batch_size=4), "draws whole vectors"),
        (lambda: drift(problem(LAWS[0]), clip(1), batch_size=4, rng=-1), "rng=-1 must be"),
        (lambda: drift(problem(LAWS[0]), clip(1), batch_size=4, draws=0), "draws=0 must be"),
        (
            lambda: drift(problem(LAWS[0]), clip(1), batch_size=4, relative_error=0),
            "relative_error=0 must be above 0",
        ),
        (lambda: drift(problem(LAWS[0]), clip(1), batch_size=4).at(-1.0), "grad_norm=-1.0 must be"),
        (lambda: drift(problem(LAWS[0]), clip(1), batch_size=4).at([math.nan]), "must be finite"),
        (lambda: drift(problem(LAWS[0]), clip(1), batch_size=4).floor(step_size=0), "step_size=0"),
    ],
)
def test_bad_calls(call, says):
    with pytest.raises(InvalidArgument, match=says.replace("(", r"\(")):
        call()


def test_a_drift_needs_neither_sympy_nor_the_simulation():
    code = (
        "import sys, mbsim.drifts.drift, mbsim.drifts.certificate\n"
        "heavy = ('sympy', 'matplotlib', 'xarray', 'mbsim.simulation')\n"
        "found = [name for name in heavy if name in sys.modules]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
