"""Losses against mpmath and the contract, draggers, problems, the law of a micro-batch."""

import copy
import dataclasses
import itertools
import pickle

import mpmath
import numpy as np
import pytest
from draws import many
from same_law import true_mean

import mbsim
from mbsim import Draggers, Problem
from mbsim.drifts.steps import StepSample
from mbsim.problems.draggers import uniform_directions
from mbsim.problems.losses import LogCosh, Quadratic, Ripple
from mbsim.problems.micro_batches import MicroBatches, draw_micro_batches
from mbsim.problems.noise import Gaussian, StudentT, TwoPoint
from mbsim.testing import check_loss

EIGENVALUES = [0.5, 2.0, 0.0]
LOSSES = {
    Quadratic(EIGENVALUES): lambda i, w: mpmath.mpf(EIGENVALUES[i]) * w**2 / 2,
    LogCosh(3): lambda i, w: mpmath.log(mpmath.cosh(w)),
    Ripple(3, amplitude=1.5): lambda i, w: w**2 / 2 + mpmath.mpf(1.5) * mpmath.sin(w) ** 2,
}
POINTS = np.array(
    [[0.0, -0.0, 0.0], [1e-9, -2e-9, 1e-8], [1e-3, -9.9e-4, 2e-3], [0.3, -1.7, 2.2], [40, -300, 9]]
)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_values_and_gradients_to_all_digits(loss):
    with mpmath.workdps(60):
        for w in POINTS:
            terms = [LOSSES[loss](i, mpmath.mpf(x)) for i, x in enumerate(w)]
            slopes = [
                mpmath.diff(lambda t, i=i: LOSSES[loss](i, t), mpmath.mpf(x))
                for i, x in enumerate(w)
            ]
            # A few roundings of the result; and, where LogCosh from .001 on adds and takes away
            # log 2, one of that for each coordinate.
            error = abs(float(loss.value(w) - sum(terms)))
            cancelled = 1e-16 * (np.abs(w) >= 1e-3).sum() * isinstance(loss, LogCosh)
            assert error <= 4e-16 * float(sum(terms)) + cancelled
            np.testing.assert_allclose(
                loss.gradient(w), [float(s) for s in slopes], rtol=4e-16, atol=0
            )
            assert mpmath.fsum(terms) >= loss.minimum


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_losses_keep_their_contract(loss):
    report = check_loss(loss, start=[1.0, -2.0, 0.5])
    # Smoothness is attained (at 0 by two of them); the minimum, too.
    assert report.figures["curvature found / smoothness"] == pytest.approx(1, abs=1e-6)
    assert report.figures["lowest value found - minimum"] == 0


@pytest.mark.parametrize(("amplitude", "convex"), [(0.4, True), (0.6, False)])
def test_ripple_is_convex_up_to_one_half(amplitude, convex):
    """Its least curvature, 1 − 2a, is at w = π/2."""
    ends = np.pi / 2 + np.array([[-1e-4], [1e-4]])
    low, high = Ripple(1, amplitude=amplitude).gradient(ends).ravel()
    assert (high - low) / 2e-4 == pytest.approx(1 - 2 * amplitude, abs=1e-7)  # error h²
    assert (high > low) == convex


def test_losses_hold_copies_that_cannot_be_changed():
    eigenvalues = np.array([1.0, 2.0])
    loss = Quadratic(eigenvalues)
    eigenvalues[0] = 9
    assert loss.smoothness == 2
    with pytest.raises(ValueError, match="read-only"):
        loss.eigenvalues[0] = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.eigenvalues = [1]


def problem(**changes):
    return Problem(
        **{
            "loss": Quadratic(np.arange(1.0, 9.0)),
            "noise": Gaussian(sigma=1.0),
            "draggers": Draggers(probability=0.05, norm_ratio=5.0),
            "benign_dim": 4,
            "start": np.ones(8),
        }
        | changes
    )


def test_equality_hash_and_copies():
    one, other = problem(), problem(loss=Quadratic(list(range(1, 9))), start=[1] * 8)
    assert one == other
    assert hash(one) == hash(other)
    assert one != problem(benign_dim=3)
    assert one != problem(start=np.full(8, 2.0))
    assert one != problem(noise=Gaussian(sigma=2.0))
    assert one != 3
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert dataclasses.replace(one, benign_dim=3) == problem(benign_dim=3)
    assert len({one, other}) == 1


def test_what_compares_equal_hashes_equal():
    one, other = Quadratic([0.0, 1.0]), Quadratic([-0.0, 1.0])
    assert one == other
    assert hash(one) == hash(other)


def test_a_problem_owns_dimension_smoothness_and_gap():
    one = problem()
    assert (one.dimension, one.dragger_dim, one.smoothness) == (8, 3, 8.0)
    assert one.initial_gap == 18.0
    assert one.initial_grad_norm == pytest.approx(np.sqrt(204), rel=1e-15)
    assert problem(draggers=None).draggers == Draggers(probability=0, norm_ratio=0)


@pytest.mark.parametrize(
    ("draggers", "most"),
    [
        (None, 8),
        (Draggers(probability=0, norm_ratio=9, coherence=0.5), 8),
        (Draggers(probability=0.5, norm_ratio=0), 8),
        (Draggers(probability=0.5, norm_ratio=1), 6),
        (Draggers(probability=0.5, norm_ratio=1, coherence=1), 6),
        (Draggers(probability=0.5, norm_ratio=1, coherence=0.5), 5),
    ],
)
def test_which_coherence_needs_how_many_dimensions(draggers, most):
    for n in range(1, 9):
        if n <= most:
            problem(benign_dim=n, draggers=draggers)
        else:
            with pytest.raises(mbsim.InvalidArgument, match=f"benign_dim={n}"):
                problem(benign_dim=n, draggers=draggers)


def test_problems_print_themselves():
    text = repr(problem())
    for part in ("Σ λᵢ wᵢ²", "8: 4 benign, 3 dragger", "Gaussian(sigma=1.0)", "0.05", "A1 to A4"):
        assert part in text
    tilted = problem(draggers=Draggers(probability=0.1, norm_ratio=2, tilt=0.5, coherence=0.25))
    for part in ("tilt 0.5", "coherence 0.25", "A4 broken"):
        assert part in repr(tilted)


# ------------------------------------------------------------------------- directions


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 40])
def test_cosines_have_the_moments_of_a_coordinate_of_the_sphere(dimensions):
    """E c² = 1/N, E c⁴ = 3/(N(N+2)), E c⁶ = 15/(N(N+2)(N+4)), odd moments 0."""
    c = many("cosine", 2**18, dimensions, rng=dimensions)
    assert np.abs(c).max() <= 1
    N = dimensions
    truths = {1: 0, 3: 0, 2: 1 / N, 4: 3 / (N * (N + 2)), 6: 15 / (N * (N + 2) * (N + 4))}
    for power, truth in truths.items():
        scale = float(np.sqrt(np.mean(c ** (2 * power))))
        # 6.2/√2¹⁸ of the root mean square.
        true_mean(c**power, truth, what=f"E c^{power}, N = {N}", scale=scale, detects=0.0125)


def test_cosines_are_those_of_uniform_directions():
    """The whole distribution, against vectors: a Kolmogorov-Smirnov distance at the rate 1e-6."""
    from mbsim.testing import _distance, _distance_limit

    for dimensions in (1, 2, 3, 7):
        rng = np.random.default_rng(dimensions)
        directions = uniform_directions((2**15,), dimensions, rng)
        np.testing.assert_allclose(np.square(directions).sum(axis=1), 1, rtol=1e-14)  # rounding
        ours = many("cosine", 2**15, dimensions, rng=dimensions)
        assert _distance(ours, directions[:, -1]) <= _distance_limit(2**15)
        if dimensions > 1:  # the wrong dimension is told apart
            wrong = many("cosine", 2**15, dimensions + 1, rng=dimensions)
            assert _distance(wrong, directions[:, -1]) > _distance_limit(2**15)


# ------------------------------------------------------------------------- one micro-batch


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("noise", [Gaussian(), TwoPoint(rare=0.3), StudentT(df=6)], ids=str)
def test_the_moments_of_a_micro_batch(gamma, noise):
    """Theory page, section 2: ‖D‖² and ‖Y‖² in mean, by summing over the number of draggers."""
    b, p, r, c, sigma = 4, 0.3, 0.7, 2.0, 1.0
    whole = problem(
        noise=noise, draggers=Draggers(probability=p, norm_ratio=c, coherence=gamma), benign_dim=4
    )
    drawn = draw_micro_batches(whole, b, (2**16,), np.random.default_rng(5))
    length = c * np.hypot(r, sigma)
    parts = StepSample(whole, b, drawn)._at(r)
    along, norms = parts.along * parts.unit, parts.norm * parts.unit
    dragger_sq = np.square(drawn.shared) + np.square(drawn.own)
    weights = [
        (k, len(list(itertools.combinations(range(b), k))) * p**k * (1 - p) ** (b - k))
        for k in range(b + 1)
    ]
    d_sq = sum(w * (k + gamma * k * (k - 1)) for k, w in weights) / b**2
    y_sq = sum(w * ((b - k) ** 2 * r**2 + (b - k) * sigma**2) for k, w in weights) / b**2
    # Two Monte-Carlo samples of 2¹⁶ at most 2.5 times as wide as their mean: 6.2 · 2.5/256.
    true_mean(dragger_sq, d_sq, what="‖D‖²", scale=d_sq, detects=0.065)
    true_mean(along, (1 - p) * r, what="along", scale=r, detects=0.065)
    total = y_sq + d_sq * length**2
    true_mean(np.square(norms), total, what="‖X‖²", scale=total, detects=0.065)
    expected = np.square(along) + np.square(drawn.across) + dragger_sq * length**2
    np.testing.assert_allclose(np.square(norms), expected, rtol=1e-14)  # rounding


def test_a_tilted_dragger_points_along_the_gradient():
    tilted = Draggers(probability=1, norm_ratio=2, tilt=0.6)
    only = MicroBatches(
        benign=np.zeros(1),
        noise=np.zeros(1),
        across=np.zeros(1),
        shared=np.zeros(1),
        own=np.ones(1),
    )
    whole = problem(draggers=tilted, noise=Gaussian(sigma=0.8))
    parts = StepSample(whole, 1, only)._at(0.6)  # where c√(r² + σ²) = 2
    along = parts.along * parts.unit
    assert along == pytest.approx(2.0 * 0.75)  # t/√(1 − t²) = .6/.8
    assert along / (parts.norm * parts.unit) == pytest.approx(0.6)  # the cosine is t
