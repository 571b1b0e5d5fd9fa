"""What the claims on domains and on finite data train, and that their controls are controls."""

import numpy as np
import pytest
from numpy.random import SeedSequence
from softmax import per_example_gradients

from mbsim import InvalidArgument, clipping
from mbsim.problems.finite import arranged
from mbsim.study import domains, finite_data
from mbsim.study.claim import Study
from mbsim.study.descents import descend, losses, parts
from mbsim.study.domains import HALF, INVERTED, WAYS, domain_data, trained

SEED = SeedSequence(5)


def table(count=120, classes=3):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 4)), rng.integers(classes, size=count)


def split(**changes):
    inputs, labels = table()
    where = np.repeat([0, 1], 60)
    return parts(inputs, labels, where, [48, 16], **{"rng": SEED} | changes)


@pytest.mark.parametrize("rule", [clipping.SmallestNorm(), clipping.NoClipping()])
def test_a_descent_is_algorithm_1_on_explicit_gradients(rule):
    data = split()
    x, y, _ = data.train
    rows = arranged(data.train.domains, 32, 8)(4, np.random.default_rng(0))
    w = np.zeros((3, x.shape[1]))
    for batch in rows.reshape(4, -1):
        each = per_example_gradients(w, x[batch], y[batch]).reshape(32, -1)
        w = w - 0.3 * clipping.update(each, 4, rule).reshape(w.shape)
    found = descend(np.zeros_like(w), data.train, rows, rule, 0.3)
    np.testing.assert_allclose(found, w, rtol=1e-9, atol=1e-12)  # another order of sums


def test_losses_of_domains_are_means_over_their_examples():
    data = split()
    w = np.random.default_rng(1).standard_normal((3, 5))
    loss, accuracy = losses(w, data.test)
    for domain in (0, 1):
        x, y, here = data.test
        logits = x[here == domain] @ w.T
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        own = chances[np.arange(len(logits)), y[here == domain]]
        assert loss[domain] == pytest.approx(-np.log(own).mean(), rel=1e-12)
        hits = chances.argmax(axis=1) == y[here == domain]
        assert accuracy[domain] == hits.mean()
    assert losses(w * np.nan, data.test)[0].tolist() == [np.inf, np.inf]


def test_parts_share_no_example_and_only_training_is_contaminated():
    clean, wrong = split(), split(contamination="25 % wrong labels")
    assert np.bincount(clean.train.domains).tolist() == [48, 16]
    np.testing.assert_array_equal(clean.test.labels, wrong.test.labels)
    np.testing.assert_array_equal(clean.train.labels != wrong.train.labels, wrong.touched)
    rows = np.concatenate([part.inputs for part in (clean.train, clean.validation, clean.test)])
    assert len(np.unique(rows.round(9), axis=0)) == 120


@pytest.mark.parametrize(("name", "share"), [(INVERTED, 2), (HALF, 4), ("vowel", None)])
def test_shares_of_domains_are_eighths(name, share):
    data = domain_data(name, rng=SEED)
    eighths = 8 * np.bincount(data.train.domains) / len(data.train.labels)
    np.testing.assert_array_equal(eighths, eighths.round())
    assert share in (None, eighths[1])
    for way in WAYS if name == "vowel" else ():
        found = trained(data, way, steps=5, rng=SEED)
        assert found["test"].shape == found["accuracy"].shape == (2,)


def test_mixed_and_apart_are_the_same_at_b_1_and_ways_are_sgd_at_b_64():
    data = domain_data("vowel", rng=SEED)
    plain = trained(data, "SGD", steps=30, rng=SEED)
    whole = trained(data, "mixed", b=64, steps=30, rng=SEED)
    np.testing.assert_array_equal(plain["weights"], whole["weights"])
    ends = [trained(data, w, b=1, steps=300, rng=SEED)["test"] for w in ("mixed", "by domain")]
    np.testing.assert_allclose(*ends, rtol=0.1)  # of one law, and other draws


INPUTS, LABELS = table()
BAD = [
    ("labels", lambda: parts(INPUTS, 0 * LABELS, LABELS, [4], rng=SEED)),
    ("domains", lambda: parts(INPUTS, LABELS, LABELS[:5], [4], rng=SEED)),
    ("domains", lambda: parts(INPUTS, LABELS, LABELS * 2, [4], rng=SEED)),
    ("counts", lambda: parts(INPUTS, LABELS, 0 * LABELS, [119], rng=SEED)),
    ("name", lambda: domain_data("wdbc", rng=SEED)),
    ("name", lambda: domain_data("no such table", rng=SEED)),
]


@pytest.mark.parametrize(("name", "call"), BAD)
def test_bad_input_is_told_in_one_line(name, call):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_what_is_drawn_of_draggers_that_come_back_ends_where_section_13_says():
    """SGD at p‖mean dragger‖, clipping by about the factor lower that they are longer by."""
    found = finite_data._simulated(Study(quick=True))
    problem = finite_data.persistent_draggers()
    level = np.linalg.norm(problem.centres[problem.is_dragger].sum(axis=0)) / 256
    ends = {name: np.sqrt(np.mean(end)) / level for name, (_, end) in found.items()}
    assert ends["SGD"] == pytest.approx(1, abs=0.15)  # and some noise of the steps
    assert ends["switched off"] == pytest.approx(ends["SGD"], abs=0.05)
    assert ends["clipping"] < 0.4
    assert ends["switched on late"] == pytest.approx(ends["clipping"], abs=0.1)


def test_the_figures_are_drawn_from_plain_data():
    details = {
        "paths": {name: [1.0, 0.5] for name in finite_data.SCHEDULES},
        "level": 0.1,
        "tables": {
            "wine": {"losses": dict.fromkeys(finite_data.SCHEDULES, 1.0), "ratios": [1.0, 2.0, 3.0]}
        },
    }
    assert len(finite_data.HELPFULNESS_CHANGES.pictures({"": details})) == 2
    ways = {way: {"1": [2.0], "8": [1.0, 1.1]} for way in domains._NAMES}
    details = {"curves": {"inverted": ways, "as they are": ways}}
    assert len(domains.MULTI_DOMAIN_HURTS.pictures({"": details})) == 2
