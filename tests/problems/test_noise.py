"""The noise laws: their contract, their moments in closed form, their shapes at the edges."""

import math

import numpy as np
import pytest
from same_law import LAWS, true_mean

from mbsim.problems import noise as laws
from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw, StudentT, TwoPoint, VectorNoise
from mbsim.testing import check_noise

MORE = (
    TwoPoint(sigma=0.3, rare=0.9),
    Exponential(sigma=2.0),
    Exponential(sigma=1.0, isotropic_share=1.0),
    StudentT(sigma=3.0, df=8.0),
    Gaussian(sigma=0.0),
)


@pytest.mark.parametrize("law", LAWS + MORE, ids=str)
def test_the_laws_keep_their_contract(law):
    assert isinstance(law, NoiseLaw)
    assert not isinstance(law, VectorNoise)
    report = check_noise(law, draws=2**18)
    if law.sigma > 0:  # what was asked of sigma: 2 % and less would have been seen
        for n in (1, 8):
            assert report.figures[f"smallest detectable error of sigma, benign_dim={n}"] < 0.02


def test_heavy_tails_are_not_held_against_a_law():
    report = check_noise(StudentT(df=3.0), draws=2**18)
    assert "too heavy" in report.figures["smallest detectable error of sigma, benign_dim=8"]


@pytest.mark.parametrize(
    ("law", "third"),
    [
        (Gaussian(), 0.0),
        (TwoPoint(rare=0.2), (1 - 2 * 0.2) / math.sqrt(0.2 * 0.8)),
        (TwoPoint(rare=0.8), -(1 - 2 * 0.2) / math.sqrt(0.2 * 0.8)),
        (Exponential(), 2.0),
        (Exponential(isotropic_share=0.5), 2.0 * 0.5**1.5),
        (StudentT(df=9), 0.0),
    ],
    ids=str,
)
def test_the_skew_of_a_mean_falls_with_the_root_of_the_count(law, third):
    """E ν³ of a mean of ν is that of one example over ν²."""
    for count in (1, 4):
        along, _ = law.mean_of(np.full(2**18, count), 1, np.random.default_rng(count))
        scale = float(np.sqrt(np.mean(along**6)))
        # 6.2/√2¹⁸ of the root mean square.
        true_mean(along**3, third / count**2, what=f"{law} {count}", scale=scale, detects=0.0125)


def test_two_point_takes_two_values():
    along, across = TwoPoint(sigma=2.0, rare=0.2).mean_of(
        np.ones(500, dtype=np.int64), 8, np.random.default_rng(0)
    )
    assert not across.any()
    # −σ√(π/(1−π)) and σ√((1−π)/π), to rounding.
    np.testing.assert_allclose(np.unique(along.round(12)), [-1.0, 4.0], rtol=1e-12)
    assert np.mean(along > 0) < 0.4


def test_isotropic_noise_spreads_its_variance_over_the_frame():
    for n in (1, 5):
        _, across = Gaussian(sigma=3.0).mean_of(np.array([1, 9]), n, np.random.default_rng(0))
        np.testing.assert_allclose(across, [3 / math.sqrt(n), 1 / math.sqrt(n)], rtol=1e-15)
        _, across = Exponential(sigma=2.0, isotropic_share=0.25).mean_of(
            np.array([1, 4]), n, np.random.default_rng(0)
        )
        np.testing.assert_allclose(across, [1 / math.sqrt(n), 0.5 / math.sqrt(n)], rtol=1e-15)


def test_student_sums_in_blocks_are_sums(monkeypatch):
    """The blocks that bound memory add what one draw would, number by number."""
    counts = np.array([[3, 0, 1], [7, 2**18 + 5, 4]])
    blocked = laws._sums_of_inverse_chi_squares(counts, 5.0, np.random.default_rng(1))
    flat = 1 / np.random.default_rng(1).chisquare(5.0, counts.sum())
    ends = np.cumsum(counts.ravel())
    plain = [flat[end - count : end].sum() for end, count in zip(ends, counts.ravel(), strict=True)]
    np.testing.assert_allclose(blocked.ravel(), plain, rtol=1e-12)  # 2¹⁸ numbers added
    assert blocked[0, 1] == 0


def test_scale_is_exactly_linear_in_sigma():
    """Also far beyond what squares of it could represent."""
    counts = np.array([1, 5, 0, 64])
    for unit in (*LAWS, Exponential()):
        fields = {k: v for k, v in vars(unit).items() if k != "sigma"}
        small = unit.mean_of(counts, 4, np.random.default_rng(3))
        for size in (2.0**-600, 2.0**600):
            large = type(unit)(sigma=size, **fields).mean_of(counts, 4, np.random.default_rng(3))
            for a, b in zip(small, large, strict=True):
                np.testing.assert_allclose(b, a * size, rtol=1e-15)  # one more rounding
