"""Assumption 4.4 measured on gradients: known p, c and tilt, the null, guesses, bad input."""

import json
import math

import numpy as np
import pytest
from softmax import geometry

import mbsim
from mbsim import Gram, InvalidArgument, check_assumptions
from mbsim.gradients.assumptions import parts_of
from mbsim.problems.vectors import VectorDraws
from mbsim.verdicts import Refusal

RATE = 1e-4


def drawn(tilt=0.0, probability=0.1, norm_ratio=5.0, coherence=0.0, count=800, seed=0):
    problem = mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(32)),
        noise=mbsim.noise.Gaussian(sigma=1.0),
        draggers=mbsim.Draggers(
            probability=probability, norm_ratio=norm_ratio, tilt=tilt, coherence=coherence
        ),
        benign_dim=16,
        start=np.full(32, 0.25),
    )
    draws = VectorDraws(
        problem=problem, batch_size=count, m=count, width=1, rng=np.random.default_rng(seed)
    )
    found, is_dragger = draws.at(problem.loss.gradient(problem.start)[None])
    return found[0].copy(), is_dragger[0]


def check(gradients, mask=None, **changes):
    return check_assumptions(
        gradients, is_dragger=mask, **{"batch_size": 16, "false_positive_rate": RATE} | changes
    )


@pytest.mark.parametrize("tilt", [0.0, -0.4])
def test_what_the_gradients_were_drawn_with_is_found(tilt):
    gradients, mask = drawn(tilt=tilt)
    found = check(gradients, mask)
    # The transverse part of a dragger has the supposed length.
    assert 5.0 / math.sqrt(1 - tilt**2) in found["norm_ratio"].interval
    assert tilt in found["tilt"].interval
    assert found["tilt"].told_apart == (tilt != 0)
    assert found["norm_ratio"].told_apart
    assert 0.1 in found.probability
    assert 0.0 in found["coherence"].interval or tilt
    assert found["norm_spread"].interval.estimate < 1e-6


def test_coherent_draggers_are_told_apart():
    gradients, mask = drawn(coherence=0.8)
    found = check(gradients, mask)
    assert 0.8 in found["coherence"].interval
    assert found["coherence"].told_apart


def test_random_draggers_are_as_the_null():
    """The control: draggers that are directions with the spectrum of all."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((400, 30)) * np.geomspace(0.1, 3, 30)
    mask = np.arange(400) < 60
    found = check(gradients, mask)
    assert [one.name for one in found.measured if one.told_apart] == []


def test_the_numbers_are_those_of_the_direct_computation():
    gradients, mask = drawn(count=200)
    found, direct = check(gradients, mask), geometry(gradients, mask)
    assert math.isclose(found["tilt"].interval.estimate, direct.cosine_mean, abs_tol=1e-6)
    assert math.isclose(found["norm_ratio"].interval.estimate, direct.norm_ratio, rel_tol=1e-6)
    benign, draggers = gradients[~mask], gradients[mask]
    size, axes = np.linalg.eigh(benign.T @ benign)
    axes, size = axes[:, ::-1], size[::-1]
    for share in (0.9, 0.99):
        count = int(np.argmax(np.cumsum(size) >= share * size.sum())) + 1
        inside = np.square(draggers @ axes[:, :count]).sum() / np.square(draggers).sum()
        name = f"energy_{share * 100:.0f}"
        assert math.isclose(found[name].interval.estimate, inside, abs_tol=1e-6)
    parts = parts_of(gradients[None], mask[None], benign.mean(axis=0))
    size = found["cosine"].interval.estimate
    assert math.isclose(size, parts.dragger_cosine.mean(), abs_tol=1e-6)


def test_the_norm_ratio_of_micro_batches_follows_its_law():
    gradients, mask = drawn()
    found = check(gradients, mask)
    assert list(found.norm_ratios) == [1, 2, 4, 8, 16]
    for measured, law in found.norm_ratios.values():
        assert measured.low <= law <= measured.high
    ratios = [measured.estimate for measured, _ in found.norm_ratios.values()]
    assert ratios[1] > ratios[2] > ratios[3]
    one = mbsim.theory.micro_batch_norm_ratio()
    assert one  # whose mean over k it is


def test_without_a_mask_draggers_are_told_by_their_lengths_or_not_at_all():
    gradients, mask = drawn()
    found = check(gradients)
    assert found.guessed
    assert "told by their lengths" in str(found)
    assert abs(found.draggers - mask.sum()) <= 3
    refusal = check(gradients[~mask])
    assert isinstance(refusal, Refusal)
    assert "give is_dragger" in str(refusal)
    close, _ = drawn(norm_ratio=1.1)
    assert not check(close)


def test_every_form_and_its_own_words():
    gradients, mask = drawn(count=200)
    found = check(gradients, mask)
    assert json.loads(json.dumps(found.to_dict()))["draggers"] == int(mask.sum())
    assert "<table" in found._repr_html_()
    assert check(Gram(gradients), mask.astype(int).tolist()) == found
    with pytest.raises(KeyError):
        found["speed"]


G = np.random.default_rng(0).standard_normal((20, 4))
M = np.arange(20) < 5


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("must have one entry for each of 20", lambda: check(G, M[:5])),
        ("all 20 are True", lambda: check(G, M | True)),
        ("all 20 are False", lambda: check(G, M & False)),
        ("True and False", lambda: check(G, np.arange(20))),
        ("at least two draggers", lambda: check(G, np.arange(20) < 1)),
        ("array of real", lambda: check(G, ["a"] * 20)),
        ("rows are not: 0", lambda: check(np.where(np.arange(20)[:, None] < 1, np.inf, G), M)),
        ("batch_size=0", lambda: check(G, M, batch_size=0)),
        ("false_positive_rate=2", lambda: check(G, M, false_positive_rate=2)),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(message, call):
    with pytest.raises(InvalidArgument, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ along training


def test_several_snapshots_are_checked_each():
    (first, mask), (second, _) = drawn(norm_ratio=5.0), drawn(norm_ratio=8.0)
    found = check([first, second], mask)
    assert found.checks == (check(first, mask), check(second, mask))
    ratios = found["norm_ratio"]
    assert 5.0 in ratios[0]
    assert 8.0 in ratios[1]
    assert len(str(found).splitlines()) == 4
    json.dumps(found.to_dict())
    told = check([first, first[~mask]])  # without a mask there is nothing to tell in the second
    assert isinstance(told["probability"][1], Refusal)
    with pytest.raises(InvalidArgument, match="must have a snapshot"):
        check([], mask)


def test_skewness_of_the_benign_is_measured_against_random_signs():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((800, 8))
    mask = np.arange(800) < 80
    assert not check(noise + 0.5, mask)["skewness"].told_apart
    skewed = noise.copy()
    skewed[:, 0] = np.where(rng.random(800) < 0.1, 3.0, -1 / 3)
    found = check(skewed + np.eye(8)[0], mask)["skewness"]
    assert found.told_apart
    assert 0.8 / 0.3 in found.interval  # (1 − 2p)/√(p q) of a law of two points
