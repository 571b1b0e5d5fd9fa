"""Examples that come back: gradients, mini-batches, runs, and the statements of section 13."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

import mbsim
from mbsim import SGD, FiniteProblem, InvalidArgument, MicroBatchClipping, clipping
from mbsim.problems.finite import FiniteDraws, arranged, check_domains

SETTINGS = {"batch_size": 16, "step_size": 0.1, "steps": 400, "replicates": 4, "rng": 0}


def some(seed=0, count=48, dim=5, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "centres": rng.standard_normal((count, dim)),
        "curvatures": rng.uniform(0.2, 1.0, (count, dim)),
        "start": np.full(dim, 2.0),
        "is_dragger": np.arange(count) % 7 == 0,
        "domains": np.arange(count) * 4 // (3 * count) * 1,
    }
    return FiniteProblem(**fields | changes)


def at_domains(points, shares, arrangement, count=64):
    """Domains without noise: all examples of one have one centre."""
    domains = np.repeat(np.arange(len(points)), [round(count * s) for s in shares])
    points = np.array(points, dtype=float)
    start = points.mean(axis=0) + 0.7
    return FiniteProblem(
        centres=points[domains], start=start, domains=domains, micro_batches=arrangement
    )


def last(problem, method, **changes):
    run = mbsim.simulate(problem, method, record_every=10**6, **SETTINGS | changes)
    return run.final_w


# ------------------------------------------------------------------------- losses and gradients


def test_gradients_are_those_of_the_losses():
    problem, w, step = some(), np.random.default_rng(1).standard_normal(5), 1e-6
    benign = ~problem.is_dragger
    mean = problem.gradients(w)[benign].mean(axis=0)
    shares = np.bincount(problem.domains[benign]) / benign.sum()
    np.testing.assert_allclose(problem.loss.gradient(w), mean, rtol=1e-12)  # rounding
    assert problem.loss.value(w) == pytest.approx(problem.domain_losses(w) @ shares, rel=1e-12)
    slope = [
        (problem.loss.value(w + step * e) - problem.loss.value(w - step * e)) / (2 * step)
        for e in np.eye(5)
    ]
    np.testing.assert_allclose(slope, mean, rtol=1e-6)  # a quadratic: rounding over the step
    least = optimize.minimize(problem.loss.value, w, jac=problem.loss.gradient)
    assert problem.loss.minimum == pytest.approx(least.fun, rel=1e-9)


def test_the_mean_loss_keeps_the_contract_of_losses():
    assert mbsim.testing.check_loss(some().loss)


# ------------------------------------------------------------------------- mini-batches

DOMAINS = np.repeat([0, 1], [36, 12])


@pytest.mark.parametrize("how", ["mixed", "by domain", "stratified"])
def test_mini_batches_are_different_examples_in_micro_batches_as_they_are_said_to_be(how):
    draw = arranged(DOMAINS, 32, 8, micro_batches_are=how)
    rows = draw(2000, np.random.default_rng(0))
    assert rows.shape == (2000, 8, 4)
    assert all(np.unique(batch).size == 32 for batch in rows)
    # Each example is in two batches of three: binomial deviations, of the 48 the largest.
    assert abs(np.bincount(rows.ravel()) / 2000 - 2 / 3).max() < 4.5 * math.sqrt(2 / 9 / 2000)
    ones = DOMAINS[rows].sum(axis=2)
    if how == "by domain":
        assert (ones == [0, 0, 0, 0, 0, 0, 4, 4]).all()
    elif how == "stratified":
        assert (ones == 1).all()
    else:
        assert ones.std() > 0.5
    places = rows[:, :, 0] if how != "stratified" else rows[:, :, 3:]
    assert len(np.unique(places)) == (48 if how != "stratified" else 12)


def test_what_is_drawn_is_the_start_of_a_whole_permutation():
    keys = np.random.default_rng(3).random((5, 48))
    rows = arranged(DOMAINS, 32, 8)(5, np.random.default_rng(3))
    np.testing.assert_array_equal(rows.reshape(5, 32), keys.argsort(axis=1)[:, :32])


# ------------------------------------------------------------------------- runs


@pytest.mark.parametrize("alike", [True, False])
def test_a_run_is_algorithm_1_on_explicit_gradients(alike):
    problem = some(curvatures=np.linspace(0.2, 1, 5)) if alike else some()
    run = mbsim.simulate(problem, MicroBatchClipping(4), **SETTINGS | {"steps": 3})
    w = np.tile(problem.start, (64, 1))
    from mbsim._shared.seeds import seed_sequence, stream

    draws = problem.draws(16, 4)
    rng = stream(seed_sequence(0), 0)
    for _ in range(3):
        rows = draws(64, rng).reshape(64, 16)
        each = np.array([problem.gradients(one)[r] for one, r in zip(w, rows, strict=True)])
        w = w - 0.1 * clipping.update(each, 4)
    np.testing.assert_allclose(run.final_w, w[:4], rtol=1e-12)  # another order of sums
    assert run.engine == "reference"


def test_runs_are_saved_and_repeat_to_the_bit(tmp_path):
    problem = some(micro_batches="mixed")
    one = mbsim.simulate(problem, MicroBatchClipping(4), threads=1, **SETTINGS)
    other = mbsim.simulate(problem, MicroBatchClipping(4), threads=2, **SETTINGS)
    np.testing.assert_array_equal(one.loss, other.loss)
    one.save(tmp_path / "run.npz")
    back = mbsim.Run.load(tmp_path / "run.npz")
    assert back.problem == problem == replace(problem)
    assert back.problem != some(seed=1)
    assert "48 that come back, 7 of them draggers" in str(problem)


def test_methods_are_compared_on_the_same_examples():
    methods = [SGD(), MicroBatchClipping(4), MicroBatchClipping(16)]
    both = mbsim.compare(some(), methods, **SETTINGS)
    assert both.paired
    np.testing.assert_array_equal(both.runs[0].loss, both.runs[2].loss)


def test_a_step_size_that_is_too_large_diverges():
    run = mbsim.simulate(some(), SGD(), **SETTINGS | {"step_size": 5.0})
    assert run.diverged.all()


# ------------------------------------------------------------------------- section 13


@pytest.mark.parametrize("b", [1, 4, 16])
def test_proposition_17_where_examples_agree_there_is_no_bias(b):
    low, high, eta = 0.3, 1.0, 0.5
    curvatures = np.random.default_rng(0).uniform(low, high, (48, 5))
    problem = some(centres=np.full((48, 5), 1.5), curvatures=curvatures, is_dragger=None)
    method = MicroBatchClipping(b)
    w = last(problem, method, step_size=eta, steps=200)
    start = np.linalg.norm(problem.start - 1.5)
    assert np.linalg.norm(w - 1.5, axis=1).max() <= start * (1 - eta * low**2 / high) ** 200
    still = replace(problem, start=np.full(5, 1.5))
    np.testing.assert_array_equal(last(still, method, steps=3), np.full((4, 5), 1.5))
    # Where they do not agree, and norms are skewed, there is one.
    centres = np.where(np.arange(48)[:, None] < 6, 6.0, np.zeros((48, 5)))
    pulled = some(curvatures=1.0, centres=centres, is_dragger=None)
    off = np.abs(last(pulled, method).mean(axis=0) - pulled.centres.mean(axis=0)).max()
    assert (off > 0.2) == (b < 16)


def unit_vectors(count, seed):
    vectors = np.random.default_rng(seed).standard_normal((count, 8))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_proposition_18_draggers_that_come_back_do_not_average_out():
    centres = np.zeros((64, 8))
    centres[:8] = 5 * unit_vectors(8, 0)
    problem = FiniteProblem(centres=centres, start=np.zeros(8), is_dragger=np.arange(64) < 8)
    said = 5 / 64 * np.linalg.norm(centres[:8].sum(axis=0) / 5)
    for step_size, steps in ((0.1, 200), (0.01, 1000)):
        run = mbsim.simulate(
            problem, SGD(), **SETTINGS | {"replicates": 64, "step_size": step_size, "steps": steps}
        )
        # The mean of 64 ends wanders by about √(η p ℓ²/(2B))/8, a fiftieth at η = 0.1.
        assert np.linalg.norm(run.final_w.mean(axis=0)) == pytest.approx(said, abs=0.06)
    # E‖ō‖² = 1/(pN), so E r² = pℓ²/N: over 400 draws of the draggers to a tenth.
    squares = [np.square(unit_vectors(8, seed).mean(axis=0)).sum() for seed in range(400)]
    assert np.mean(squares) == pytest.approx(1 / 8, rel=0.1)


def test_theorem_10_three_domains_end_at_their_geometric_median_and_sgd_at_their_mean():
    points, shares = [[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]], np.array([0.375, 0.375, 0.25])
    problem = at_domains(points, shares, "by domain")

    def total(w):
        return shares @ np.linalg.norm(w - np.array(points), axis=1)

    median = optimize.minimize(total, [1.0, 1.0], method="Nelder-Mead", tol=1e-10).x
    clipped = last(problem, MicroBatchClipping(2), steps=4000)
    np.testing.assert_allclose(clipped, [median] * 4, atol=1e-5)
    w = last(problem, SGD())
    np.testing.assert_allclose(w, [shares @ points] * 4, atol=1e-9)  # batches have these shares
    assert np.linalg.norm(median - shares @ np.array(points)) > 0.3


def test_theorem_10_the_smaller_of_two_domains_is_given_up():
    problem = at_domains([[0.0, 0.0], [4.0, 0.0]], (0.75, 0.25), "by domain")
    clipped, sgd = (last(problem, method) for method in (MicroBatchClipping(4), SGD()))
    first, second = problem.domain_losses(clipped).T
    assert first.max() < 1e-9
    assert second / problem.domain_losses(sgd)[:, 1] == pytest.approx(1 / 0.75**2, rel=1e-6)
    shares = np.array([0.75, 0.25])
    mean = problem.domain_losses(clipped) @ shares / (problem.domain_losses(sgd) @ shares)
    assert mean == pytest.approx(1 / 0.75, rel=1e-6)
    same = at_domains([[0.0, 0.0], [0.0, 0.0]], (0.75, 0.25), "by domain")
    np.testing.assert_allclose(last(same, MicroBatchClipping(4)), last(same, SGD()), atol=1e-12)


def test_equal_shares_rest_between_the_optima():
    problem = at_domains([[0.0, 0.0], [4.0, 0.0]], (0.5, 0.5), "by domain")
    x, y = last(problem, MicroBatchClipping(4)).T
    assert (abs(y) < 1e-6).all()
    assert ((x > 0) & (x < 4)).all()
    assert abs(x - 2).min() > 0.3  # it is not SGD's


@pytest.mark.parametrize(("b", "rest"), [(2, 0.0), (4, 1.0), (8, 1.0), (16, 1.0)])
def test_proposition_19_mixed_micro_batches_rest_at_the_median_of_their_mix(b, rest):
    problem = at_domains([[0.0, 0.0], [4.0, 0.0]], (0.75, 0.25), "mixed")
    assert stats.hypergeom.median(64, 16, b) / b * 4 == rest  # drawn without replacement
    method = MicroBatchClipping(b, rule=clipping.UnitNorm(0.0))
    ends = last(problem, method, batch_size=32, step_size=0.02, steps=800)[:, 0]
    assert ends == pytest.approx(rest, abs=0.25)  # unit steps wander


@pytest.mark.parametrize(
    ("how", "even"), [("stratified", None), ("by domain", False), ("by domain", True)]
)
def test_remedies_without_noise_are_sgd(how, even):
    problem = at_domains([[0.0, 0.0], [4.0, 1.0]], (0.75, 0.25), how)
    rule = clipping.SmallestNorm()
    if even is not None:
        rule = clipping.WithinGroups(groups=problem.groups(16, 4), even=even)
    expected = last(replace(problem, micro_batches="stratified"), MicroBatchClipping(16))
    np.testing.assert_allclose(last(problem, MicroBatchClipping(4, rule=rule)), expected, rtol=1e-9)


def test_in_noise_even_weights_are_a_mean_of_one():
    norms = np.random.default_rng(0).exponential(size=(50, 8))
    groups = (1, 0, 0, 1, 1, 0, 2, 2)
    even = clipping.WithinGroups(groups=groups, even=True).factors(norms)
    each = clipping.WithinGroups(groups=groups).factors(norms)
    for group in range(3):
        here = np.array(groups) == group
        np.testing.assert_allclose(even[:, here].mean(axis=1), 1, rtol=1e-12)
        np.testing.assert_array_equal(
            each[:, here], clipping.SmallestNorm().factors(norms[:, here])
        )


# ------------------------------------------------------------------------- bad input


def finite(**changes):
    return FiniteProblem(**{"centres": np.zeros((4, 2)), "start": [0.0, 0.0]} | changes)


def drawn(how):
    return arranged(np.repeat([0, 1], [42, 6]), 16, 4, micro_batches_are=how)


BAD = [
    ("centres", "2 axes", lambda: finite(centres=[1.0])),
    ("centres", "finite", lambda: finite(centres=[[math.nan, 0.0]])),
    ("start", "must have 2", lambda: finite(start=[0.0])),
    ("curvatures", "broadcast", lambda: finite(curvatures=[1, 2, 3])),
    ("curvatures", "at least 0", lambda: finite(curvatures=-1)),
    ("curvatures", "above 0", lambda: finite(curvatures=0)),
    ("is_dragger", "bools", lambda: finite(is_dragger=[0, 1, 0, 1])),
    ("is_dragger", "no benign", lambda: finite(is_dragger=[True] * 4)),
    ("micro_batches", "one of", lambda: finite(micro_batches="all")),
    ("domains", "one domain", lambda: finite(micro_batches="by domain")),
    ("domains", "each of 4", lambda: finite(domains=[0, 1])),
    ("domains", "2 has none", lambda: finite(domains=[0, 1, 3, 3])),
    ("domains", "integers", lambda: check_domains([0.5, 1.0], 2)),
    ("domains", "at least 0", lambda: check_domains([-1, 1], 2)),
    ("batch_size", "at most the 48", lambda: last(some(), SGD(), batch_size=64)),
    ("domains", "multiple of b=4", lambda: drawn("by domain")),
    ("domains", "multiple of m=4", lambda: drawn("stratified")),
    ("micro_batches", "to have groups", lambda: some().groups(16, 4)),
    ("micro_batch_size", "must divide", lambda: at_domains(
        [[0.0], [1.0]], (0.5, 0.5), "by domain").groups(16, 5)),
    ("engine", "come back", lambda: last(some(), SGD(), engine="exact_law")),
    ("problem", "mbsim.Problem", lambda: last(some(), SGD(), step_size="tuned")),
    ("problem", "mbsim.Problem", lambda: mbsim.drift(some(), SGD(), batch_size=16)),
    ("run", "knows its problem", lambda: mbsim.check(
        mbsim.theory.sgd_bound(), mbsim.simulate(some(), SGD(), **SETTINGS | {"steps": 2}))),
    ("groups", "integers", lambda: clipping.WithinGroups(groups=(0.5, 1.0))),
    ("groups", "each of 3", lambda: clipping.WithinGroups(groups=(0, 1)).factors(np.ones(3))),
    ("rule", "factors", lambda: clipping.WithinGroups(groups=(0, 1), rule=3)),
    ("even", "True or False", lambda: clipping.WithinGroups(groups=(0, 1), even=1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words", "call"), BAD)
def test_bad_input_is_told_in_one_line(name, words, call):
    with pytest.raises(InvalidArgument) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(name)
    assert words in message
    assert "\n" not in message


def test_draws_say_who_is_a_dragger():
    problem = some()
    draws = FiniteDraws(problem=problem, batch_size=16, m=16, width=3, rng=np.random.default_rng(0))
    w = np.zeros((3, 5))
    gradients, flags = draws.at(w, w)
    own = problem.gradients(np.zeros(5))
    for one, is_dragger in zip(gradients.reshape(-1, 5), flags.ravel(), strict=True):
        row = int(np.abs(own - one).sum(axis=1).argmin())
        assert problem.is_dragger[row] == is_dragger
