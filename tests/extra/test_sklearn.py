"""The classifier: scikit-learn's own checks, and Algorithm 1 by explicit gradients."""

import time
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from softmax import per_example_gradients
from test_clipping import RULES, plain_factor

from mbsim import InvalidArgument
from mbsim.clipping import NoClipping, SmallestNorm
from mbsim.extra import sklearn as module
from mbsim.extra.sklearn import MicroBatchClippingClassifier

X, Y = load_digits(return_X_y=True)
X = X / 16
SMALL = {"batch_size": 12, "micro_batch_size": 4, "random_state": 0}


@parametrize_with_checks(
    [
        MicroBatchClippingClassifier(),
        MicroBatchClippingClassifier(batch_size=6, micro_batch_size=2, fit_intercept=False),
    ]
)
def test_what_scikit_learn_asks_of_an_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(("b", "B"), [(1, 12), (2, 12), (4, 12), (12, 12), (4, 10), (3, 2)])
def test_a_step_in_plain_loops(rule, classes, b, B):
    """Also where the last micro-batch is short: it counts by its size."""
    rng = np.random.default_rng(b)
    weights, x = rng.standard_normal((classes, 5)), rng.standard_normal((B, 5))
    codes, order = rng.integers(0, classes, B), rng.permutation(B)
    gradients = per_example_gradients(weights, x, codes)
    parts = [gradients[i : i + b] for i in range(0, B, b)]
    means = [part.mean(axis=0) for part in parts]
    norms = [float(np.linalg.norm(mean)) for mean in means]
    factors = [plain_factor(rule, norm, norms) for norm in norms]
    terms = [len(p) * s * mean for p, s, mean in zip(parts, factors, means, strict=True)]
    found = weights.copy()
    loss = module._step(found, x[order], codes[order], np.argsort(order), b, rule, 0.5)
    step = (weights - found).ravel() / 0.5
    np.testing.assert_allclose(step, sum(terms) / B, rtol=1e-9, atol=1e-12)
    logits = x @ weights.T
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(B), codes]
    np.testing.assert_allclose(loss, losses.sum(), rtol=1e-12)


def test_an_epoch_is_all_examples_once_in_mini_batches():
    """Whatever the order: with one mini-batch of all, one epoch is one step from 0."""
    model = MicroBatchClippingClassifier(
        batch_size=len(X), micro_batch_size=len(X), max_iter=1, tol=None, step_size=0.5
    ).fit(X, Y)
    inputs = np.hstack([X, np.ones((len(X), 1))])
    gradient = per_example_gradients(np.zeros((10, 65)), inputs, Y).mean(axis=0).reshape(10, 65)
    np.testing.assert_allclose(model.coef_, -0.5 * gradient[:, :-1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(model.intercept_, -0.5 * gradient[:, -1], rtol=0, atol=1e-14)
    assert model.loss_ == pytest.approx(np.log(10), rel=1e-12)
    assert model.n_iter_ == 1


def test_without_clipping_it_comes_to_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4))
    y = (x @ rng.standard_normal((4, 3)) + rng.gumbel(size=(300, 3))).argmax(axis=1)
    judge = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x, y)
    model = MicroBatchClippingClassifier(
        batch_size=300, micro_batch_size=300, step_size=1.0, tol=None, max_iter=1000
    ).fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x), judge.predict_proba(x), rtol=0, atol=1e-6)


def test_weights_are_repetitions_and_rows_have_no_order():
    counts = np.random.default_rng(0).integers(0, 4, 200)
    few = np.concatenate([X[:100], X[:100]]), Y[:200]  # inputs twice, with labels of their own
    repeated = MicroBatchClippingClassifier(max_iter=5, tol=None, **SMALL).fit(
        np.repeat(few[0], counts, axis=0), np.repeat(few[1], counts)
    )
    order = np.random.default_rng(1).permutation(200)
    for weights in (counts, 3 * counts):
        weighted = clone(repeated).fit(few[0][order], few[1][order], weights[order])
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=0, atol=1e-12)
    halves = clone(repeated).fit(*few, np.where(few[1] < 5, 1.5, 0.5))
    seen = halves.predict_proba(few[0])[:, :5].sum(axis=1).mean()
    assert seen > clone(repeated).fit(*few).predict_proba(few[0])[:, :5].sum(axis=1).mean() + 0.1


def test_partial_fit_goes_on():
    model = MicroBatchClippingClassifier(shuffle=False, **SMALL)
    model.partial_fit(X[:100], Y[:100], classes=np.arange(10))
    before = model.coef_.copy()
    with pytest.raises(InvalidArgument, match="label 11"):
        model.partial_fit(X[:2], [3, 11])
    with pytest.raises(InvalidArgument, match="those of before"):
        model.partial_fit(X[:2], [3, 1], classes=[1, 3])
    np.testing.assert_array_equal(model.coef_, before)
    twice = MicroBatchClippingClassifier(shuffle=False, max_iter=2, tol=None, **SMALL)
    model.partial_fit(X[:100], Y[:100])
    np.testing.assert_array_equal(model.coef_, twice.fit(X[:100], Y[:100]).coef_)


def test_it_stops_early_on_what_is_held_out():
    model = MicroBatchClippingClassifier(early_stopping=True, max_iter=500, random_state=0)
    model.fit(X, Y)
    assert 5 < model.n_iter_ < 500
    assert model.score(X, Y) > 0.9
    with pytest.warns(ConvergenceWarning, match="max_iter=2 epochs were not enough"):
        MicroBatchClippingClassifier(max_iter=2).fit(X, Y)


def test_wrong_labels_and_auto():
    """With a quarter of the labels wrong, the advice is taken, and it is the same every time."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(Y)) < 0.25, rng.integers(0, 10, len(Y)), Y)
    model = MicroBatchClippingClassifier(
        micro_batch_size="auto", random_state=0, max_iter=10, tol=None
    ).fit(X, y)
    assert 64 % model.micro_batch_size_ == 0
    assert clone(model).fit(X, y).micro_batch_size_ == model.micro_batch_size_
    assert model.micro_batch_size == "auto"
    with pytest.raises(InvalidArgument, match="needs at least batch_size=64 examples"):
        clone(model).fit(X[:60], Y[:60])
    with pytest.raises(InvalidArgument, match="must be a number for partial_fit"):
        clone(model).partial_fit(X, Y, classes=np.arange(10))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"micro_batch_size": 5}, "micro_batch_size=5 must divide batch_size=64; its divisors are"),
        ({"micro_batch_size": "best"}, "micro_batch_size='best' must be an integer"),
        ({"rule": SmallestNorm}, "rule="),
        ({"step_size": 0}, "step_size=0 must be above 0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": "small"}, "tol='small'"),
        ({"n_iter_no_change": 0}, "n_iter_no_change=0"),
        ({"validation_fraction": 1}, "validation_fraction=1 must be above 0 and below 1"),
        ({"step_size": 1e300, "rule": NoClipping()}, "makes the coefficients overflow"),
    ],
)
def test_bad_parameters_are_said_in_one_line(parameters, says):
    model = MicroBatchClippingClassifier(**parameters)
    with pytest.raises(InvalidArgument, match=says) as raised:
        model.fit(1e10 * X, Y)
    assert len(str(raised.value).splitlines()) == 1
    assert not hasattr(model, "coef_")


def test_bad_data_is_said_in_one_line():
    model = MicroBatchClippingClassifier()
    for call, says in (
        (lambda: model.fit(X, np.zeros(len(X))), "y has the one class 0.0"),
        (lambda: model.fit(X, Y, -np.ones(len(X))), "sample_weight=.* must be at least 0"),
        (lambda: model.fit(X, Y, np.zeros(len(X))), "not be all 0|at least one non-zero"),
        (lambda: model.fit(np.full_like(X, np.nan), Y), "NaN"),
        (lambda: model.partial_fit(X, Y), "first call of partial_fit"),
        (lambda: model.partial_fit(X, Y, classes=[1]), "two classes"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert not hasattr(model, "coef_")


def test_the_same_seed_gives_the_same_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, other = (
            MicroBatchClippingClassifier(random_state=3, max_iter=3).fit(X, Y) for _ in range(2)
        )
    np.testing.assert_array_equal(one.coef_, other.coef_)


def test_an_epoch_takes_no_three_times_as_long_as_that_of_sgd_classifier():
    """Processor time on digits; half of SGDClassifier's when it was measured."""

    def seconds_per_epoch(model):
        times = []
        for _ in range(3):
            start = time.process_time()
            model.fit(X, Y)
            times.append(time.process_time() - start)
        return min(times) / 20

    judge = SGDClassifier(loss="log_loss", max_iter=20, tol=None)
    for b in (1, 8, 64):
        ours = MicroBatchClippingClassifier(micro_batch_size=b, max_iter=20, tol=None)
        assert seconds_per_epoch(ours) < 3 * seconds_per_epoch(judge)
