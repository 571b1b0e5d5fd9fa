"""Training: the compiled steps against explicit gradients, pairing, bits, tuning, contamination."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import log_softmax
from softmax import digits_with_canaries, geometry, per_example_gradients

import mbsim
from mbsim import clipping
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, TrimmedNorm, UnitNorm
from mbsim.errors import InvalidArgument
from mbsim.gradients import training
from mbsim.gradients.splits import Contamination, Split, split_of, splits_by
from mbsim.gradients.training import look_at, train
from mbsim.gradients.tuned import BySize, by_micro_batch_size, tuned
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
def several():
    return digits_with_canaries(3, rng=7)


@pytest.fixture(scope="module")
def data(several):
    return several[1]


@pytest.fixture(scope="module")
def trained(data):
    """Weights [K, D] at which most residuals are small, as late in training."""
    return train(data, SGD(), step_size=0.5, steps=150, rng=7).weights[0]


def some(data, **changes):
    """A split with some fields changed."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    return Split(**{**fields, **changes})


def first(data, count):
    """A split of which the first `count` examples alone are trained on."""
    return data.keep(np.arange(len(data.train_labels)) < count)


class Plain:
    """A rule that is not compiled."""

    def __init__(self, rule):
        self.rule, self.threads = rule, ()

    def factors(self, norms):
        from threadpoolctl import threadpool_info

        pools = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
        self.threads = pools
        return self.rule.factors(norms)


# ------------------------------------------------------------------ the step is Algorithm 1


def one_step(weights, inputs, labels, rule, size, rate):
    """W after one step from `weights`, of which train knows nothing: by the compiled parts."""
    from mbsim.compiled import softmax

    x, none, outer = inputs.copy(), np.empty((0, inputs.shape[1])), weights.copy()
    seen = look_at(outer, x, labels, size=size)
    update, scales = np.empty_like(outer), rule.factors(seen.norms) / len(x)
    softmax.gather(size, x, x, seen.signals.copy(), scales, none, update)
    softmax.move(outer, update, rate, 0.0, 0, update, update)
    return outer


@pytest.mark.parametrize("where", ["random", "trained"])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_step_is_the_update_from_explicit_gradients(data, trained, rule, size, where):
    batch = np.r_[0:12, -4:0]  # twelve digits and four canaries
    inputs, labels = data.train_inputs[batch], data.train_labels[batch]
    start = np.random.default_rng(1).normal(0, 0.3, trained.shape) if where == "random" else trained
    gradients = per_example_gradients(start, inputs, labels)
    update = clipping.update(gradients, size, rule).reshape(start.shape)
    for rate in (1.0, 3.0):
        moved = start - one_step(start, inputs, labels, rule, size, rate)
        # Rounding: about 1e-16 of the weights (below 3) in `moved`, and of the gradients in
        # the sums of the compiled path, magnified where they cancel within a micro-batch.
        error = np.abs(moved - rate * update).max()
        assert error <= 1e-12 * np.abs(rate * update).max() + 2e-15


def test_a_step_with_other_micro_batches_is_told_apart(data, trained):
    """The comparison above can fail: shifted micro-batches are 1e9 tolerances off."""
    inputs, labels = data.train_inputs[-16:], data.train_labels[-16:]
    steps = [
        trained - one_step(trained, inputs[order], labels[order], SmallestNorm(), 4, 1.0)
        for order in (np.arange(16), np.roll(np.arange(16), 1))
    ]
    assert np.abs(steps[0] - steps[1]).max() > 1e-3 * np.abs(steps[0]).max()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", [1, 4, 32])
def test_training_is_a_plain_loop_over_mini_batches(data, size, compiled):
    rule = SmallestNorm() if compiled else Plain(SmallestNorm())
    method = MicroBatchClipping(size, rule=rule)
    run = train(
        data, method, step_size=[1.0, 2.0], steps=20, batch_size=32, decay=0.01, orders=2, rng=3
    )
    order = training.mini_batches(986, 32, 20, np.random.SeedSequence(3), 1)
    weights = np.zeros((10, 65))
    for batch in order:
        gradients = per_example_gradients(
            weights, data.train_inputs[batch], data.train_labels[batch]
        )
        update = clipping.update(gradients, size).reshape(10, 65)
        weights -= 2.0 * (update + 0.01 * weights)
    # Each step agrees to 1e-12 (above); 20 steps pass their differences on, at most tenfold here.
    np.testing.assert_allclose(run.weights[1, 1], weights, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("adam", [False, True])
def test_a_network_trains_as_one_with_explicit_gradients(data, size, adam):
    """Sixteen tanh units: explicit gradients of both layers, by hand, and Adam plainly."""
    small = first(data, 96)
    method = MicroBatchClipping(size, rule=QuantileNorm(0.5))
    run = train(small, method, step_size=0.05, steps=8, batch_size=16, hidden=16, adam=adam, rng=5)
    start = np.random.default_rng(training.child(np.random.SeedSequence(5), "start", 0))
    inner, outer = start.standard_normal((16, 65)) / np.sqrt(65), np.zeros((10, 17))
    mean = square = np.zeros(16 * 65 + 10 * 17)
    for step, batch in enumerate(training.mini_batches(96, 16, 8, np.random.SeedSequence(5), 0)):
        gradients = []
        for x, y in zip(small.train_inputs[batch], small.train_labels[batch], strict=True):
            a = np.append(np.tanh(inner @ x), 1.0)
            residual = np.exp(log_softmax(outer @ a)) - np.eye(10)[y]
            back = (outer[:, :-1].T @ residual) * (1 - a[:-1] ** 2)
            gradients.append(np.append(np.outer(back, x), np.outer(residual, a)))
        found = training.per_example_gradients(
            outer, small.train_inputs[batch], small.train_labels[batch], hidden_weights=inner
        )
        np.testing.assert_allclose(found, gradients, atol=1e-13)
        update = clipping.update(np.array(gradients), size, QuantileNorm(0.5))
        mean, square = 0.9 * mean + 0.1 * update, 0.999 * square + 0.001 * update**2
        if adam:
            whole = np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8
            update = mean / (1 - 0.9 ** (step + 1)) / whole
        inner = inner - 0.05 * update[: inner.size].reshape(inner.shape)
        outer = outer - 0.05 * update[inner.size :].reshape(outer.shape)
    # Adam divides by roots of squares as small as rounding leaves them: 1e-8 is its own scale.
    np.testing.assert_allclose(run.weights[0], outer, atol=1e-6 if adam else 1e-12)
    np.testing.assert_allclose(run.hidden_weights[0], inner, atol=1e-6 if adam else 1e-12)


def test_norms_of_a_network_are_those_of_two_gram_matrices(data):
    """A layer's gradients are outer products, so their Gram matrix is a product of two."""
    draw = np.random.default_rng(0)
    inner, outer = draw.normal(0, 0.3, (16, 65)), draw.normal(0, 0.3, (10, 17))
    x, labels = data.train_inputs[:24], data.train_labels[:24]
    signals = look_at(outer, x, labels, hidden_weights=inner).signals
    a = np.column_stack([np.tanh(x @ inner.T), np.ones(24)])
    back, residuals = signals[:, :16], signals[:, 16:]
    gram = (back @ back.T) * (x @ x.T) + (residuals @ residuals.T) * (a @ a.T)
    for size in (1, 2, 6, 24):
        found = look_at(outer, x, labels, hidden_weights=inner, size=size).norms
        sums = gram.reshape(24 // size, size, 24 // size, size).sum(axis=(1, 3))
        np.testing.assert_allclose(found, np.sqrt(np.diagonal(sums)) / size, rtol=1e-12)


def test_losses_and_medians_take_the_place_of_norms(data):
    """One step from W = 0, where all losses are log 10; and two, where they are not."""
    small = first(data, 64)

    def weights(steps, size=8, **options):
        rule = options.pop("rule", NoClipping())
        method = MicroBatchClipping(size, rule=rule)
        return train(
            small, method, step_size=0.5, steps=steps, batch_size=64, rng=0, **options
        ).weights[0]

    batches = training.mini_batches(64, 64, 2, np.random.SeedSequence(0), 0)
    explicit = [
        per_example_gradients(w, small.train_inputs[b], small.train_labels[b])
        for w, b in zip((np.zeros((10, 65)), weights(1)), batches, strict=True)
    ]
    means = explicit[0].reshape(8, 8, -1).mean(axis=1)
    found = -weights(1, by="coordinate median").ravel() / 0.5
    np.testing.assert_allclose(found, np.median(means, axis=0), atol=1e-14)
    found = -weights(1, by="geometric median").ravel() / 0.5

    def distance(point):
        return np.linalg.norm(means - point, axis=1).sum()

    best = min(
        distance(found + 1e-3 * d) for d in np.random.default_rng(0).standard_normal((99, 650))
    )
    assert distance(found) < min(best, distance(means.mean(axis=0)))
    steps = [weights(n, size=1, rule=TrimmedNorm(0.25), by="losses") for n in (1, 2)]
    losses = look_at(
        steps[0], small.train_inputs[batches[1]], small.train_labels[batches[1]]
    ).losses
    gradients = per_example_gradients(
        steps[0], small.train_inputs[batches[1]], small.train_labels[batches[1]]
    )
    kept = np.argsort(losses)[:48]
    update = gradients[kept].mean(axis=0).reshape(10, 65)
    np.testing.assert_allclose(steps[0] - steps[1], 0.5 * update, atol=1e-13)


def test_accuracy_and_loss_are_scikit_learns(data):
    from sklearn.metrics import accuracy_score, log_loss

    run = train(data, SGD(), step_size=0.5, steps=60, record_every=25, orders=3, rng=0)
    assert run.steps.tolist() == [25, 50, 60]
    assert run.test_accuracy.shape == (3, 3)
    for part in ("validation", "test"):
        for order in range(3):
            inputs = getattr(data, f"{part}_inputs")
            labels = getattr(data, f"{part}_labels")
            logits = inputs @ run.weights[order].T
            p = np.exp(log_softmax(logits, axis=1))
            accuracy = accuracy_score(labels, logits.argmax(axis=1))
            assert getattr(run, f"{part}_accuracy")[order, -1] == pytest.approx(accuracy, abs=1e-12)
            # log_loss renormalises p in float64: about 1e-15 a term.
            loss = log_loss(labels, p, labels=range(10))
            assert getattr(run, f"{part}_loss")[order, -1] == pytest.approx(loss, rel=1e-12)


def test_it_learns_what_logistic_regression_learns_and_nothing_from_shuffled_labels():
    from sklearn.linear_model import LogisticRegression

    (clean,) = digits_with_canaries(1, rng=0, fraction=0)
    theirs = LogisticRegression(C=10.0, max_iter=2000).fit(clean.train_inputs, clean.train_labels)
    # Both near 0.96 on 450 images; four standard errors of one such share are 0.037. The network
    # has more to say, and says no less.
    for hidden in (0, 32):
        run = train(clean, SGD(), step_size=1.0, steps=600, hidden=hidden, rng=0)
        assert run.test_accuracy[0, 0] == pytest.approx(
            theirs.score(clean.test_inputs, clean.test_labels), abs=0.037
        )
    shuffled = np.random.default_rng(0).permuted(clean.train_labels)
    control = train(some(clean, train_labels=shuffled), SGD(), step_size=1.0, steps=600, rng=0)
    assert (control.test_accuracy < 0.25).all()  # chance is 0.1


# ------------------------------------------------------------------ pairing and reproducibility


def labelled(count=120, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((count, 4)), draw.permutation(np.arange(count) % classes)


def made(count, splits=None, **options):
    from sklearn.model_selection import ShuffleSplit

    splitter = ShuffleSplit(splits or count, test_size=0.25, random_state=0)
    found = splits_by(splitter, *labelled(), **{"rng": 11, **options})
    return [split for _, split in zip(range(count), found, strict=False)]


def test_splits_depend_on_seed_and_number_alone():
    wrong = Contamination("canaries", 0.2)
    three, five = made(3, contamination=wrong), made(5, contamination=wrong)
    assert three == five[:3]
    assert three != made(3, contamination=wrong, rng=12)
    root = np.random.SeedSequence(11)
    assert made(3, contamination=wrong, rng=root) == three
    generator = np.random.default_rng(11)
    assert made(2, rng=generator) != made(2, rng=generator)


@pytest.mark.parametrize("method", [SGD(), MicroBatchClipping(1), MicroBatchClipping(8)])
@pytest.mark.parametrize("hidden", [0, 4])
def test_training_is_the_same_to_the_bit_with_more_orders(data, method, hidden):
    arguments = {"step_size": [0.5, 4.0, 64.0], "steps": 40, "record_every": 15, "rng": 2}
    arguments["hidden"] = hidden
    all_five = train(data, method, orders=5, **arguments)
    for count in (1, 3):
        run = train(data, method, orders=count, **arguments)
        for name in ("weights", "validation_accuracy", "validation_loss", "test_loss"):
            mine, theirs = getattr(run, name), getattr(all_five, name)[:count]
            assert mine.tobytes() == theirs.tobytes(), name


def test_matrix_products_run_on_one_thread(data):
    from threadpoolctl import threadpool_limits

    spy = Plain(NoClipping())
    with threadpool_limits(2, user_api="blas"):
        train(data, MicroBatchClipping(8, rule=spy), step_size=1.0, steps=1, rng=0)
    assert set(spy.threads) == {1}


def test_a_mini_batch_order_uses_each_example_at_most_once_an_epoch():
    orders = [training.mini_batches(50, 16, 7, np.random.SeedSequence(0), i) for i in (0, 1)]
    epochs = [np.concatenate(orders[0][start : start + 3]) for start in (0, 3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert (epochs[0] != epochs[1]).any()
    assert (orders[0] != orders[1]).any()
    assert len(orders[0]) == 7


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


def test_a_split_is_a_partition_of_the_examples_and_contamination_touches_training_alone():
    x, _ = labelled()
    clean, bad, worse = (
        made(2, contamination=what, held_out=held)
        for what, held in (
            (None, False), (Contamination("canaries", 0.25), False),
            (Contamination("wrong labels", 0.25), True),
        )
    )  # fmt: skip
    assert not any(split.touched.any() for split in clean)
    for one, other, third in zip(clean, bad, worse, strict=True):
        parts = ("train", "validation", "test")
        assert [len(getattr(one, f"{part}_labels")) for part in parts] == [60, 30, 30]
        rows = np.concatenate([getattr(one, f"{part}_inputs")[:, :-1] for part in parts])
        # Undone by what the training part has: its own mean and spread are 0 and 1.
        np.testing.assert_allclose(one.train_inputs[:, :-1].mean(axis=0), 0, atol=1e-14)
        np.testing.assert_allclose(one.train_inputs[:, :-1].std(axis=0), 1, rtol=1e-12)
        scaled = (x - x.mean(axis=0)) / x.std(axis=0)
        again = (rows - rows.mean(axis=0)) / rows.std(axis=0)
        np.testing.assert_allclose(sorted(again.tolist()), sorted(scaled.tolist()), atol=1e-12)
        for part in parts[1:]:
            for what in ("inputs", "labels"):
                name = f"{part}_{what}"
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert (getattr(one, f"{part}_labels") != getattr(third, f"{part}_labels")).any()
        changed = (one.train_inputs != other.train_inputs).any(axis=1)
        np.testing.assert_array_equal(changed, other.touched)
        assert (one.train_inputs[:, -1] == 1).all()
        assert (other.train_inputs[:, -1] == 1).all()
        kept = other.keep(~other.touched)
        assert not kept.touched.any()
        np.testing.assert_array_equal(kept.train_inputs, one.train_inputs[~other.touched])


def test_canaries_are_far_and_their_labels_uniform():
    inputs, labels = np.zeros((4000, 16)), np.zeros(4000, dtype=np.int64)
    touched = Contamination("canaries", 0.25).apply(inputs, labels, 10, rng=0)
    assert abs(touched.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert inputs[touched].std() == pytest.approx(5.0, rel=0.03)  # of 16,000 normals
    assert (inputs[~touched] == 0).all()
    counts = np.bincount(labels[touched], minlength=10)
    # Chi-square, 9 df: passed but 5e-6 of times.
    assert np.square(counts - touched.sum() / 10).sum() / (touched.sum() / 10) < 40.9


def test_equal_content_compares_equal_and_prints_readably(several, data):
    assert several == digits_with_canaries(3, rng=7)
    assert len(repr(data)) < 200
    run = train(data, SGD(), step_size=1.0, steps=2, rng=0)
    assert run == train(data, SGD(), step_size=1.0, steps=2, rng=0)
    assert repr(run) == (
        "Training(SGD, batch_size=64, 2 steps, 1 orders, 1 step sizes, 0 diverged)"
    )


# ------------------------------------------------------------------ divergence


@pytest.mark.parametrize(
    "rule", [*RULES, Plain(SmallestNorm())], ids=lambda rule: type(rule).__name__
)
def test_what_diverged_is_recorded_and_leaves_the_others_alone(data, rule):
    method = MicroBatchClipping(8, rule=rule)
    arguments = {"steps": 6, "record_every": 2, "rng": 0}
    inputs = data.train_inputs.copy()
    inputs[:, 0] = 1e200  # squares overflow
    run = train(some(data, train_inputs=inputs), method, step_size=[1.0], **arguments)
    assert run.diverged_at.tolist() == [[1]]
    assert np.isnan(run.test_accuracy).all()
    assert np.isnan(run.weights).all()
    both = train(data, method, step_size=[1.0, 1e300], **arguments)
    alone = train(data, method, step_size=[1.0], **arguments)
    assert both.weights[:, 0].tobytes() == alone.weights[:, 0].tobytes()
    assert both.diverged.tolist() == [[False, True]]


def test_a_loss_a_million_times_the_first_counts_as_diverged(data):
    run = train(data, SGD(), step_size=[1.0, 1e8], steps=10, record_every=5, orders=3, rng=0)
    assert run.diverged.tolist() == [[False, True]] * 3
    assert (run.diverged_at[:, 1] == 5).all()
    assert np.isnan(run.validation_loss[:, 1]).all()
    assert np.isfinite(run.validation_loss[:, 0]).all()


# ------------------------------------------------------------------ tuning


def test_step_size_and_stop_are_tuned_on_each_splits_own_validation_set(several):
    """No power of two within a factor of two has a lower validation loss, nor any other stop."""
    table = by_micro_batch_size(several, [1, 8, 64], steps=40, rng=4)
    for row, size in enumerate((1, 8, 64)):
        for number, split in enumerate(several):
            seed = training.child(np.random.SeedSequence(4), number)
            eta = table.step_size[row, number]
            run = train(
                split, MicroBatchClipping(size), step_size=[eta / 2, eta, 2 * eta], steps=40,
                record_every=2, rng=seed,
            )  # fmt: skip
            losses = np.nan_to_num(run.validation_loss[0], nan=np.inf)
            assert losses.min() == losses[1].min()
            stop = int(losses[1].argmin())
            assert table.stop[row, number] == run.steps[stop]
            assert table.test_loss[row, number] == run.test_loss[0, 1, stop]
            assert table.test_accuracy[row, number] == run.test_accuracy[0, 1, stop]
            last = tuned(split, MicroBatchClipping(size), steps=40, rng=seed).end
            assert last[0] <= run.validation_loss[0, :, -1].min()
    np.testing.assert_array_equal(table.difference(8, 64), table.test_loss[1] - table.test_loss[2])
    assert len(repr(table).splitlines()) == 5


def test_test_labels_do_not_touch_the_choice(several):
    others = [some(one, test_labels=np.roll(one.test_labels, 1)) for one in several]
    tables = [by_micro_batch_size(splits, [8, 64], steps=30, rng=4) for splits in (several, others)]
    np.testing.assert_array_equal(tables[0].step_size, tables[1].step_size)
    np.testing.assert_array_equal(tables[0].stop, tables[1].stop)
    assert (tables[0].test_accuracy > tables[1].test_accuracy + 0.3).all()


def test_without_clipping_every_size_ties_whatever_the_kind_of_seed(data):
    for rng in (3, np.random.SeedSequence(3), np.random.default_rng(3)):
        table = by_micro_batch_size(data, [1, 8, 64], steps=20, rule=NoClipping(), rng=rng)
        assert (table.difference(1, 64) == 0).all()
        assert (table.difference(8, 64) == 0).all()


def by_size(loss):
    """A table for sizes 1 and 64, from losses."""
    return BySize(
        sizes=np.array([1, 64]), test_loss=np.array(loss), test_accuracy=np.array(loss),
        step_size=np.ones((2, 2)), stop=np.full((2, 2), 10), rule=SmallestNorm(), batch_size=64,
    )  # fmt: skip


def test_the_best_size_is_that_of_the_least_mean_logarithm():
    assert by_size([[0.5, 0.9], [0.6, 0.6]]).best == 64
    assert by_size([[0.1, 0.9], [0.6, 0.6]]).best == 1


# ------------------------------------------------------------------ canaries as draggers


def test_draggers_are_measured_as_by_least_squares(several):
    """The geometry that tests take directly, least squares, and check_assumptions: three ways."""
    for data in several:
        weights = train(data, SGD(), step_size=0.5, steps=150, rng=7).weights[0]
        gradients = per_example_gradients(weights, data.train_inputs, data.train_labels)
        is_canary = data.touched
        found = geometry(gradients, is_canary)
        # The first 30 benign gradients and the canaries.
        few = np.append(np.flatnonzero(~is_canary)[:30], np.flatnonzero(is_canary))
        spanned = geometry(gradients[few], is_canary[few])
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
    rows = slice(-189, None)  # a hundred digits and all canaries
    found = geometry(gradients[rows], is_canary[rows])
    theirs = mbsim.check_assumptions(gradients[rows], is_dragger=is_canary[rows])
    assert theirs["tilt"].interval.estimate == pytest.approx(found.cosine_mean, abs=1e-6)
    assert theirs["norm_ratio"].interval.estimate == pytest.approx(found.norm_ratio, rel=1e-6)


def test_canaries_with_inputs_of_their_own_are_orthogonal_and_copies_lie_in_the_span(data, trained):
    inputs = data.train_inputs.copy()
    inputs[:, -1] = 0
    inputs[~data.touched] *= np.arange(65) < 32
    inputs[data.touched] *= np.arange(65) >= 32
    gradients = per_example_gradients(trained, inputs, data.train_labels)
    apart = geometry(gradients, data.touched)
    assert abs(apart.cosine_mean) < 1e-12  # rounding in sums of exact zeros: none
    assert apart.energy_in_span < 1e-12
    theirs = mbsim.check_assumptions(gradients[-189:], is_dragger=data.touched[-189:])
    assert abs(theirs["tilt"].interval.estimate) < 1e-6
    assert theirs["energy_99"].interval.estimate < 1e-6
    copies = per_example_gradients(trained, data.train_inputs, data.train_labels)
    copies[-89:] = copies[:89]
    inside = geometry(copies, data.touched)
    assert inside.energy_in_span == pytest.approx(1, rel=1e-9)  # rounding in the basis


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: made(2, rng=-1), "rng=-1 must be"),
        (lambda d: made(2, rng=None), "rng=None must be"),
        (lambda d: made(1, splits=121), "splitter has 121 splits and must have at most one for"),
        (lambda d: Contamination("canaries", 1.0), "share=1.0 must be"),
        (lambda d: Contamination("canaries", -0.1), "share=-0.1 must be"),
        (lambda d: Contamination("canary", 0.1), "kind='canary' must be one of none, wrong labels"),
        (
            lambda d: split_of(np.ones((3, 1)), [1] * 3, ([0], [1], [2])),
            "labels must be of at least",
        ),
        (
            lambda d: next(splits_by(Folds(), np.ones((3, 1)), [1] * 3)),
            "labels must be of at least",
        ),
        (lambda d: go("digits"), "data='digits' must be a Split"),
        (lambda d: go(d, SmallestNorm()), "method=SmallestNorm() must be a method"),
        (lambda d: go(d, MicroBatchClipping(3)), "must divide batch_size=64; its divisors are 1,"),
        (lambda d: go(d, step_size=-0.5), "step_size=-0.5 must be above 0"),
        (lambda d: go(d, step_size=[0.5, 0.0]), "step_size=0.0 must be above 0"),
        (lambda d: go(d, step_size=np.nan), "step_size must be finite"),
        (lambda d: go(d, step_size="big"), "step_size='big' must be an array of real numbers"),
        (lambda d: go(d, steps=0), "steps=0 must be an integer of at least 1"),
        (lambda d: go(d, steps=2.5), "steps=2.5 must be an integer"),
        (lambda d: go(d, record_every=0), "record_every=0 must be an integer of at least 1"),
        (lambda d: go(d, hidden=-1), "hidden=-1 must be an integer of at least 0"),
        (lambda d: go(d, decay=-1), "decay=-1 must be"),
        (lambda d: go(d, orders=0), "orders=0 must be"),
        (lambda d: go(d, by="mood"), "by='mood' must be one of norms, losses,"),
        (lambda d: go(d, batch_size=0), "batch_size=0 must be an integer of at least 1"),
        (lambda d: go(d, batch_size=1024), "batch_size=1024 must be at most the number of"),
        (lambda d: go(d, rng="seed"), "rng='seed' must be"),
        (lambda d: table(d, sizes=[3, 64]), "micro_batch_size=3 must divide batch_size=64"),
        (lambda d: table(d, sizes=[64, 8]), "sizes=[64, 8] must ascend"),
        (lambda d: table(d, sizes=[]), "sizes=[] must ascend and have at least 1"),
        (lambda d: table(d, rule="smallest"), "rule='smallest' must be a clipping rule"),
        (lambda d: by_size([[1.0] * 2] * 2).difference(8, 64), "size=8 must be one of the"),
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


class Folds:
    """A splitter."""

    def get_n_splits(self, x, y):
        return 1

    def split(self, x, y):
        yield np.arange(2), np.array([2])


def table(data, **changes):
    arguments = {"sizes": [8, 64], "steps": 1, "rng": 0}
    return by_micro_batch_size(data, **{**arguments, **changes})


def test_scikit_learn_is_imported_where_it_is_needed():
    program = "import sys, mbsim.gradients.training; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_records_may_be_named_and_are_those_of_every_so_many_steps():
    (data,) = digits_with_canaries(1, rng=0)
    every, named = (
        train(data, SGD(), step_size=0.5, steps=30, record_every=when, rng=0)
        for when in (10, [10, 20])
    )
    assert every.steps.tolist() == named.steps.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(every.validation_loss, named.validation_loss)
    for bad in ([20, 10], [10, 40], [0]):
        with pytest.raises(InvalidArgument, match=r"^record_every="):
            train(data, SGD(), step_size=0.5, steps=30, record_every=bad, rng=0)
