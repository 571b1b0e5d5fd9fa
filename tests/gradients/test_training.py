"""Training on digits: the Gram path against explicit gradients, pairing, bits, tuning, geometry."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import log_softmax
from softmax import per_example_gradients

from mbsim import clipping
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, TrimmedNorm, UnitNorm
from mbsim.errors import InvalidArgument
from mbsim.gradients import training
from mbsim.gradients.training import (
    Splits,
    TunedAccuracy,
    accuracy_by_micro_batch_size,
    digits_splits,
    dragger_geometry,
    train,
)
from mbsim.methods import SGD, MicroBatchClipping

RULES = [
    NoClipping(),
    SmallestNorm(),
    FixedNorm(0.5),
    QuantileNorm(0.5),
    TrimmedNorm(0.3),
    UnitNorm(0.01),
]


@pytest.fixture(scope="module")
def data():
    return digits_splits(3, rng=7)


@pytest.fixture(scope="module")
def trained(data):
    """Weights [S, K, D] at which most residuals are small, as late in training."""
    return train(data, SGD(), step_size=0.5, steps=150, rng=7).weights


def some(data, splits=slice(None), **changes):
    """Some of the splits, with some fields changed."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    fields = {name: f[splits] if name != "classes" else f for name, f in fields.items()}
    return Splits(**{**fields, **changes})


# ------------------------------------------------------------------ the step is Algorithm 1


@pytest.mark.parametrize("where", ["random", "trained"])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_step_is_the_update_from_explicit_gradients(data, trained, rule, size, where):
    batch = np.r_[0:12, -4:0]  # twelve digits and four canaries
    inputs, labels = data.train_inputs[:, batch], data.train_labels[:, batch]
    start = np.random.default_rng(1).normal(0, 0.3, trained.shape) if where == "random" else trained
    rates = np.array([1.0, 3.0])
    weights = np.repeat(start[:, :, None], 2, axis=2)
    training._step(weights, inputs, labels, rule=rule, micro_batches=16 // size, rates=rates)
    for split in range(data.count):
        gradients = per_example_gradients(start[split], inputs[split], labels[split])
        update = clipping.update(gradients, size, rule).reshape(start[split].shape)
        for candidate, rate in enumerate(rates):
            moved = start[split] - weights[split, :, candidate]
            # Rounding: about 1e-16 of the weights (below 3) in `moved`, and of the gradients in
            # the sums of the Gram path, magnified where they cancel within a micro-batch.
            error = np.abs(moved - rate * update).max()
            assert error <= 1e-12 * np.abs(rate * update).max() + 2e-15


def test_a_step_with_other_micro_batches_is_told_apart(data, trained):
    """The comparison above can fail: shifted micro-batches are 1e9 tolerances off."""
    inputs, labels = data.train_inputs[:, -16:], data.train_labels[:, -16:]
    steps = []
    for order in (np.arange(16), np.roll(np.arange(16), 1)):
        weights = trained[:, :, None].copy()
        training._step(
            weights,
            inputs[:, order],
            labels[:, order],
            rule=SmallestNorm(),
            micro_batches=4,
            rates=np.ones(1),
        )
        steps.append(trained - weights[:, :, 0])
    assert np.abs(steps[0] - steps[1]).max() > 1e-3 * np.abs(steps[0]).max()


@pytest.mark.parametrize("size", [1, 4, 32])
def test_training_is_a_plain_loop_over_mini_batches(data, size):
    run = train(
        data,
        MicroBatchClipping(size),
        step_size=[1.0, 2.0],
        steps=20,
        batch_size=32,
        rng=3,
    )
    one = some(data, slice(1, 2))
    order = training._mini_batches(986, 32, training._streams(3, "order", 2))
    weights = np.zeros((10, 65))
    for _ in range(20):
        batch = next(order)[1]
        gradients = per_example_gradients(
            weights, one.train_inputs[0, batch], one.train_labels[0, batch]
        )
        weights -= 2.0 * clipping.update(gradients, size).reshape(10, 65)
    # Each step agrees to 1e-12 (above); 20 steps pass their differences on, at most tenfold here.
    np.testing.assert_allclose(run.weights[1, 1], weights, rtol=0, atol=1e-11)


def test_accuracy_and_loss_are_scikit_learns(data):
    from sklearn.metrics import accuracy_score, log_loss

    run = train(data, SGD(), step_size=0.5, steps=60, record_every=25, rng=0)
    assert run.steps.tolist() == [25, 50, 60]
    assert run.test_accuracy.shape == (3, 3)
    for part in ("validation", "test"):
        for split in range(3):
            inputs = getattr(data, f"{part}_inputs")[split]
            labels = getattr(data, f"{part}_labels")[split]
            logits = inputs @ run.weights[split].T
            p = np.exp(log_softmax(logits, axis=1))
            accuracy = accuracy_score(labels, logits.argmax(axis=1))
            assert getattr(run, f"{part}_accuracy")[split, -1] == pytest.approx(accuracy, abs=1e-12)
            # log_loss renormalises p in float64: about 1e-15 a term.
            loss = log_loss(labels, p, labels=range(10))
            assert getattr(run, f"{part}_loss")[split, -1] == pytest.approx(loss, rel=1e-12)


def test_it_learns_what_logistic_regression_learns_and_nothing_from_shuffled_labels():
    from sklearn.linear_model import LogisticRegression

    clean = digits_splits(2, canary_fraction=0, rng=0)
    run = train(clean, SGD(), step_size=1.0, steps=600, rng=0)
    theirs = LogisticRegression(C=10.0, max_iter=2000).fit(
        clean.train_inputs[0], clean.train_labels[0]
    )
    # Both near 0.96 on 450 images; four standard errors of one such share are 0.037.
    assert run.test_accuracy[0, 0] == pytest.approx(
        theirs.score(clean.test_inputs[0], clean.test_labels[0]), abs=0.037
    )
    shuffled = np.random.default_rng(0).permuted(clean.train_labels, axis=1)
    control = train(some(clean, train_labels=shuffled), SGD(), step_size=1.0, steps=600, rng=0)
    assert (control.test_accuracy < 0.25).all()  # chance is 0.1


# ------------------------------------------------------------------ pairing and reproducibility


def test_splits_depend_on_seed_and_number_alone():
    three, five = digits_splits(3, rng=11), digits_splits(5, rng=11)
    assert three == some(five, slice(3))
    assert three != digits_splits(3, rng=12)
    root = np.random.SeedSequence(11)
    assert digits_splits(3, rng=root) == three == digits_splits(3, rng=root)
    generator = np.random.default_rng(11)
    assert digits_splits(2, rng=generator) != digits_splits(2, rng=generator)


@pytest.mark.parametrize("method", [SGD(), MicroBatchClipping(1), MicroBatchClipping(8)])
def test_training_is_the_same_to_the_bit_with_more_splits(method):
    five = digits_splits(5, rng=2)
    arguments = {"step_size": [0.5, 4.0, 64.0], "steps": 40, "record_every": 15, "rng": 2}
    all_five = train(five, method, **arguments)
    for count in (1, 3):
        some_splits = train(some(five, slice(count)), method, **arguments)
        for name in ("weights", "validation_accuracy", "validation_loss", "test_loss"):
            mine, theirs = getattr(some_splits, name), getattr(all_five, name)[:count]
            assert mine.tobytes() == theirs.tobytes(), name


def test_matrix_products_run_on_one_thread(data):
    from threadpoolctl import threadpool_info, threadpool_limits

    class Spy:
        threads = ()

        def factors(self, norms):
            self.threads = tuple(
                pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
            )
            return np.ones_like(norms)

    spy = Spy()
    with threadpool_limits(2, user_api="blas"):
        train(data, MicroBatchClipping(8, rule=spy), step_size=1.0, steps=1, rng=0)
    assert set(spy.threads) == {1}


def test_a_mini_batch_order_uses_each_example_at_most_once_an_epoch():
    batches = training._mini_batches(50, 16, training._streams(0, "order", 2))
    epochs = [np.concatenate([next(batches) for _ in range(3)], axis=1) for _ in range(2)]
    for epoch in epochs:
        assert all(len(set(row)) == 48 for row in epoch.tolist())
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0][0] != epochs[0][1]).any()


def test_sgd_is_every_micro_batch_size_without_clipping(data):
    runs = [
        train(data, method, step_size=[0.5, 2.0], steps=50, rng=np.random.default_rng(5))
        for method in (
            SGD(),
            MicroBatchClipping(64),
            MicroBatchClipping(1, rule=NoClipping()),
            MicroBatchClipping(8, rule=NoClipping()),
        )
    ]
    for run in runs[1:]:
        # The very same operations on the same mini-batches (factors of 1).
        assert run.weights.tobytes() == runs[0].weights.tobytes()


# ------------------------------------------------------------------ the data


def test_a_split_is_a_partition_of_the_digits_plus_canaries_in_training():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    everything = sorted(np.column_stack([pixels / 16, np.ones(1797), labels]).tolist())
    splits = digits_splits(2, canary_fraction=0.25, canary_scale=3.0, rng=0)
    clean = digits_splits(2, canary_fraction=0, rng=0)
    assert not clean.canary.any()
    assert splits.canary.sum(axis=1).tolist() == [299, 299]  # 897 are then three quarters
    for split in range(2):
        benign = ~splits.canary[split]
        parts = [
            (splits.train_inputs[split, benign], splits.train_labels[split, benign]),
            (splits.validation_inputs[split], splits.validation_labels[split]),
            (splits.test_inputs[split], splits.test_labels[split]),
        ]
        rows = np.concatenate([np.column_stack(part) for part in parts])
        assert sorted(rows.tolist()) == everything
        np.testing.assert_array_equal(parts[0][0], clean.train_inputs[split])
        np.testing.assert_array_equal(parts[2][1], clean.test_labels[split])
    canaries = splits.train_inputs[splits.canary]
    assert (canaries[:, -1] == 1).all()
    assert 2.99 < canaries[:, :-1].max() <= 3.0  # the largest of 38,272 uniforms on [0, 3]
    counts = np.bincount(splits.train_labels[splits.canary], minlength=10)
    assert (
        np.square(counts - 59.8).sum() / 59.8 < 40.9
    )  # chi-square, 9 df: passed but 5e-6 of times


def test_equal_content_compares_equal_and_prints_readably(data):
    assert data == digits_splits(3, rng=7)
    assert len(repr(data)) < 200
    run = train(data, SGD(), step_size=1.0, steps=2, rng=0)
    assert run == train(data, SGD(), step_size=1.0, steps=2, rng=0)
    assert repr(run) == (
        "Training(SGD, batch_size=64, 2 steps, 3 splits, 1 step sizes, 0 diverged)"
    )


# ------------------------------------------------------------------ divergence


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_diverged_split_is_recorded_and_leaves_the_others_alone(data, rule):
    method = MicroBatchClipping(8, rule=rule)
    arguments = {"step_size": [1.0], "steps": 6, "record_every": 2, "rng": 0}
    inputs = data.train_inputs.copy()
    inputs[1, :, 0] = 1e200  # squares overflow
    run = train(some(data, train_inputs=inputs), method, **arguments)
    assert run.diverged_at.tolist() == [[-1], [1], [-1]]
    assert np.isnan(run.test_accuracy[1]).all()
    assert np.isnan(run.weights[1]).all()
    whole = train(data, method, **arguments)
    for split in (0, 2):
        assert run.weights[split].tobytes() == whole.weights[split].tobytes()


def test_a_loss_a_million_times_the_first_counts_as_diverged(data):
    run = train(data, SGD(), step_size=[1.0, 1e8], steps=10, record_every=5, rng=0)
    assert run.diverged.tolist() == [[False, True]] * 3
    assert (run.diverged_at[:, 1] == 5).all()
    assert np.isnan(run.validation_loss[:, 1]).all()
    assert np.isfinite(run.validation_loss[:, 0]).all()


# ------------------------------------------------------------------ tuning


def test_the_step_size_is_tuned_on_each_splits_own_validation_set(data):
    grid = [0.01, 0.1, 1.0, 10.0]
    table = accuracy_by_micro_batch_size(data, [1, 8, 64], grid, steps=40, rng=4)
    for row, size in enumerate((1, 8, 64)):
        run = train(data, MicroBatchClipping(size), step_size=grid, steps=40, rng=4)
        for split in range(3):
            validation = run.validation_accuracy[split, :, -1]
            best = int(np.flatnonzero(validation == validation.max())[0])
            assert table.chosen[row, split] == best
            assert table.test_accuracy[row, split] == run.test_accuracy[split, best, -1]
    np.testing.assert_array_equal(
        table.difference(8, 64), table.test_accuracy[1] - table.test_accuracy[2]
    )


def test_test_labels_do_not_touch_the_choice(data):
    other = some(data, test_labels=np.roll(data.test_labels, 1, axis=1))
    tables = [
        accuracy_by_micro_batch_size(d, [8, 64], [0.1, 1.0, 10.0], steps=30, rng=4)
        for d in (data, other)
    ]
    np.testing.assert_array_equal(tables[0].chosen, tables[1].chosen)
    assert (tables[0].test_accuracy > tables[1].test_accuracy + 0.3).all()


def test_without_clipping_every_size_ties_whatever_the_kind_of_seed(data):
    for rng in (3, np.random.SeedSequence(3), np.random.default_rng(3)):
        table = accuracy_by_micro_batch_size(
            data, [1, 8, 64], [0.1, 1.0, 10.0], steps=20, rule=NoClipping(), rng=rng
        )
        assert (table.difference(1, 64) == 0).all()
        assert (table.difference(8, 64) == 0).all()


def tuned(validation):
    """A table for sizes 1 and 64, two splits and three step sizes, from validation accuracies."""
    chosen = np.nan_to_num(validation, nan=-1).argmax(axis=-1)
    return TunedAccuracy(
        sizes=np.array([1, 64]),
        step_sizes=np.array([0.1, 1.0, 10.0]),
        validation_accuracy=np.array(validation),
        chosen=chosen,
        test_accuracy=np.take_along_axis(np.array(validation), chosen[..., None], -1)[..., 0],
        rule=SmallestNorm(),
        batch_size=64,
        steps=10,
    )


def test_a_step_size_at_the_end_of_the_grid_is_told():
    inside = [[0.5, 0.9, 0.8], [0.5, 0.7, 0.8]]
    quiet = tuned([inside, inside])
    assert quiet.warning == ""
    assert quiet.edge_share.tolist() == [0.5, 0.5]
    rising = [[0.5, 0.6, 0.9], [0.5, 0.6, np.nan]]
    assert tuned([inside, rising]).at_edge.tolist() == [False, False]  # one of two diverged there
    falling = [[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]]
    loud = tuned([inside, falling])
    assert loud.at_edge.tolist() == [False, True]
    assert "b = 64" in loud.warning
    assert repr(loud).endswith(loud.warning)


# ------------------------------------------------------------------ canaries as draggers


def gradients_of(data, weights, split):
    return per_example_gradients(weights[split], data.train_inputs[split], data.train_labels[split])


def test_dragger_geometry_against_least_squares(data, trained):
    for split in range(3):
        gradients, is_canary = gradients_of(data, trained, split), data.canary[split]
        found = dragger_geometry(gradients, is_canary)
        # The first 30 benign gradients and the canaries.
        few = np.append(np.flatnonzero(~is_canary)[:30], np.flatnonzero(is_canary))
        spanned = dragger_geometry(gradients[few], is_canary[few])
        benign, canaries = gradients[~is_canary], gradients[is_canary]
        mean = benign.mean(axis=0)
        cosines = [g @ mean / np.sqrt((g @ g) * (mean @ mean)) for g in canaries]
        outside, *_ = np.linalg.lstsq(benign[:30].T, canaries.T, rcond=None)
        rest = canaries.T - benign[:30].T @ outside
        share = 1 - np.sum(rest**2) / np.sum(canaries**2)
        ratio = np.sqrt(np.mean(np.sum(canaries**2, 1)) / np.mean(np.sum(benign**2, 1)))
        # Rounding, magnified by the condition of 30 benign gradients (below 1e3).
        assert found.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-12)
        assert found.cosine_sd == pytest.approx(np.std(cosines), rel=1e-10)
        assert spanned.energy_in_span == pytest.approx(share, rel=1e-9)
        assert found.norm_ratio == pytest.approx(ratio, rel=1e-12)
        assert spanned.span_rank == 30


def test_canaries_with_inputs_of_their_own_are_orthogonal_and_copies_lie_in_the_span(data, trained):
    inputs = data.train_inputs.copy()
    inputs[:, :, -1] = 0
    inputs[~data.canary] *= np.arange(65) < 32
    inputs[data.canary] *= np.arange(65) >= 32
    for split in range(3):
        gradients = gradients_of(some(data, train_inputs=inputs), trained, split)
        apart = dragger_geometry(gradients, data.canary[split])
        assert abs(apart.cosine_mean) < 1e-12  # rounding in sums of exact zeros: none
        assert apart.energy_in_span < 1e-12
        copies = gradients_of(data, trained, split)
        copies[-89:] = copies[:89]
        inside = dragger_geometry(copies, data.canary[split])
        assert inside.energy_in_span == pytest.approx(1, rel=1e-9)  # rounding in the basis


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: digits_splits(0, rng=0), "splits=0 must be an integer of at least 1"),
        (lambda d: digits_splits(2, rng=-1), "rng=-1 must be"),
        (lambda d: digits_splits(2, rng=None), "rng=None must be"),
        (lambda d: digits_splits(2, canary_fraction=1.0, rng=0), "canary_fraction=1.0 must be"),
        (lambda d: digits_splits(2, canary_fraction=-0.1, rng=0), "canary_fraction=-0.1 must be"),
        (lambda d: digits_splits(2, canary_scale=0, rng=0), "canary_scale=0 must be above 0"),
        (lambda d: digits_splits(2, canary_scale=np.inf, rng=0), "canary_scale=inf must be finite"),
        (lambda d: go("digits"), "data='digits' must be Splits"),
        (lambda d: go(d, SmallestNorm()), "method=SmallestNorm() must be a method"),
        (lambda d: go(d, MicroBatchClipping(3)), "must divide batch_size=64; its divisors are 1,"),
        (lambda d: go(d, step_size=-0.5), "step_size=-0.5 must be above 0"),
        (lambda d: go(d, step_size=[0.5, 0.0]), "step_size=0.0 must be above 0"),
        (lambda d: go(d, step_size=np.nan), "step_size must be finite"),
        (lambda d: go(d, step_size="big"), "step_size='big' must be an array of real numbers"),
        (lambda d: go(d, steps=0), "steps=0 must be an integer of at least 1"),
        (lambda d: go(d, steps=2.5), "steps=2.5 must be an integer"),
        (lambda d: go(d, record_every=0), "record_every=0 must be an integer of at least 1"),
        (lambda d: go(d, batch_size=0), "batch_size=0 must be an integer of at least 1"),
        (lambda d: go(d, batch_size=1024), "batch_size=1024 must be at most the number of"),
        (lambda d: go(d, rng="seed"), "rng='seed' must be"),
        (lambda d: table(d, sizes=[3, 64]), "micro_batch_size=3 must divide batch_size=64"),
        (lambda d: table(d, sizes=[64, 8]), "sizes=[64, 8] must ascend"),
        (lambda d: table(d, sizes=[]), "sizes=[] must ascend and have at least 1"),
        (lambda d: table(d, step_sizes=[1.0, 2.0]), "must ascend and have at least 3"),
        (lambda d: table(d, step_sizes=[2.0, 1.0, 4.0]), "step_sizes=[2.0, 1.0, 4.0] must ascend"),
        (lambda d: table(d, step_sizes=[-1.0, 1.0, 4.0]), "step_size=-1.0 must be above 0"),
        (lambda d: table(d, rule="smallest"), "rule='smallest' must be a clipping rule"),
        (lambda d: tuned([[[1.0] * 3] * 2] * 2).difference(8, 64), "size=8 must be one of the"),
        (lambda d: dragger_geometry(np.ones((2, 2)), [True]), "is_dragger must have one entry"),
        (lambda d: dragger_geometry(np.full((2, 2), np.nan), [0, 1]), "gradients must be finite"),
        (lambda d: dragger_geometry(np.ones((2, 2)), [0, 0]), "True and False among them"),
        (lambda d: dragger_geometry(np.ones((2, 2)), [1, 1]), "True and False among them"),
        (lambda d: some(d, train_labels=d.train_labels + 1), "train_labels must be integers from"),
        (lambda d: some(d, test_labels=d.test_labels + 0.5), "test_labels must be integers from"),
        (lambda d: some(d, test_labels=d.test_labels[:2]), "test_labels has axes of length"),
        (lambda d: some(d, test_inputs=d.test_inputs[..., 1:]), "test_inputs has axes of length"),
        (lambda d: some(d, train_inputs=d.train_inputs * np.nan), "train_inputs must be finite"),
    ],
)
def test_bad_calls(data, call, message):
    with pytest.raises(InvalidArgument) as caught:
        call(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


PLAIN = SGD()


def go(data, method=PLAIN, **changes):
    return train(data, method, **{"step_size": 1.0, "steps": 1, "rng": 0, **changes})


def table(data, **changes):
    arguments = {"sizes": [8, 64], "step_sizes": [0.1, 1.0, 10.0], "steps": 1, "rng": 0}
    return accuracy_by_micro_batch_size(data, **{**arguments, **changes})


def test_scikit_learn_is_imported_where_it_is_needed():
    program = "import sys, mbsim.gradients.training; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"'microbatch-clipping\[data\]'") as caught:
        digits_splits(1, rng=0)
    assert caught.value.name == "sklearn"


def test_records_may_be_named_and_are_those_of_every_so_many_steps():
    data = digits_splits(1, rng=0)
    every, named = (
        train(data, SGD(), step_size=0.5, steps=30, record_every=when, rng=0)
        for when in (10, [10, 20])
    )
    assert every.steps.tolist() == named.steps.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(every.validation_loss, named.validation_loss)
    for bad in ([20, 10], [10, 40], [0]):
        with pytest.raises(InvalidArgument, match=r"^record_every="):
            train(data, SGD(), step_size=0.5, steps=30, record_every=bad, rng=0)
