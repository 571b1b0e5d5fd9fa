"""Real tables and their contaminations."""

import numpy as np
import pytest
from numpy.random import SeedSequence

import mbsim
from mbsim.gradients import training
from mbsim.study import advisers, tables

TABLES = tables.tables()


@pytest.mark.parametrize("name", ["wine", "segment", "german", "chess", "titanic", "wdbc"])
def test_a_table_is_numbers_with_labels_from_0(name):
    inputs, labels = tables.load(name)
    assert np.isfinite(inputs).all()
    assert labels.shape == inputs.shape[:1]
    assert np.unique(labels).tolist() == list(range(labels.max() + 1))


def test_keel_has_what_scikit_learn_has():
    """Two packages, one table: rows in another order, the same numbers, rounded to three digits."""
    mine, theirs = (tables.load(name) for name in ("wdbc", "breast-cancer"))
    assert mine[0].shape == theirs[0].shape
    for a, b in zip(mine[0].T, theirs[0].T, strict=True):
        np.testing.assert_allclose(np.sort(a), np.sort(b), rtol=0.01, atol=6e-3)
    assert sorted(np.bincount(mine[1])) == sorted(np.bincount(theirs[1]))


def test_words_become_a_column_for_each():
    inputs, _ = tables.load("tic-tac-toe")
    assert inputs.shape == (958, 27)
    np.testing.assert_array_equal(inputs.sum(axis=1), 9)


@pytest.mark.parametrize("contamination", tables.CONTAMINATIONS)
def test_only_training_examples_are_contaminated_and_they_are_known(contamination):
    clean, other = (
        tables.split("satimage", kind, rng=SeedSequence(3)) for kind in ("clean", contamination)
    )
    for part in ("validation_inputs", "validation_labels", "test_inputs", "test_labels"):
        np.testing.assert_array_equal(getattr(clean, part), getattr(other, part))
    touched = other.touched
    share = {"clean": 0, "25 % wrong labels": 0.25}.get(contamination, 0.1)
    assert abs(touched.mean() - share) <= 5 * np.sqrt(share * (1 - share) / touched.size)
    inputs = (other.train_inputs != clean.train_inputs).any(axis=1)
    labels = other.train_labels != clean.train_labels
    np.testing.assert_array_equal(inputs | labels, touched)
    changed = {"outlying inputs": (True, False), "canaries": (True, True)}
    wanted = changed.get(contamination, (False, share > 0))
    assert (inputs.any(), labels.any()) == wanted
    if "wrong" in contamination:
        np.testing.assert_array_equal(labels, touched)  # a wrong label is never the right one


def test_features_are_standardised_over_the_clean_training_part_and_seeds_split_anew():
    one, other = (tables.split("spambase", "clean", rng=SeedSequence(s)) for s in (0, 1))
    features, ones = one.train_inputs[:, :-1], one.train_inputs[:, -1]
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-12)
    spread = features.std(axis=0)
    assert ((np.abs(spread - 1) < 1e-9) | (spread == 0)).all()
    assert (ones == 1).all()
    assert len(features) == 1000
    assert not np.array_equal(one.train_labels, other.train_labels)


def test_the_claim_has_enough_settings():
    assert len({*advisers._TABLES}) == len(advisers._TABLES) >= 12
    assert {*advisers._TABLES} <= {*TABLES}
    assert len(advisers._TABLES) * len(tables.CONTAMINATIONS) >= 40


def test_gradients_of_the_softmax_are_those_of_differences():
    draw = np.random.default_rng(0)
    weights, x, y = draw.standard_normal((3, 4)), draw.standard_normal((5, 4)), np.arange(5) % 3

    def losses(w):
        logits = x @ w.reshape(3, 4).T
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(5), y]

    step = 1e-6 * np.eye(12)
    w = weights.ravel()
    wanted = np.array([(losses(w + s) - losses(w - s)) / 2e-6 for s in step]).T
    found = training.per_example_gradients(weights, x, y)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_a_table_that_is_not_there_is_refused():
    with pytest.raises(
        mbsim.InvalidArgument, match=r"^name='odd' must be one of australian, banana"
    ):
        tables.load("odd")


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'microbatch-clipping\[data\]'"):
        tables.load("segment")
