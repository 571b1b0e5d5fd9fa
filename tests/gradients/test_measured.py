"""The measured problem: direct computation, enumeration, exact drifts, targets, invariance."""

import itertools
import math
import warnings

import numpy as np
import processes
import pytest
from heavy_gradients import CLOSE, RULES, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

import mbsim
from mbsim import SGD, Gram, InvalidArgument, MeasuredProblem, MicroBatchClipping, clipping, noise
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, UnitNorm
from mbsim.drifts.drift import drift, drifts
from mbsim.gradients import measured as measured_module
from mbsim.gradients.measured import geometric_median
from mbsim.problems.vectors import VectorDraws
from mbsim.statistics import from_error
from mbsim.verdicts import Refusal

# Every comparison with a sample is wrong by chance once in so many times.
RATE = 1e-6


G = gradients()
TARGET = np.full(30, 0.3)


def close(found, expected, size=1.0):
    return np.allclose(found, expected, rtol=CLOSE, atol=CLOSE * size)


# ------------------------------------------------------------------ the direct computation


def direct(measured_gradients, target, members, r, b, rule):
    """⟨u, ĝ⟩ and ‖u‖² of steps, from vectors: deviations kept, the target's length set to r."""
    unit = target / np.linalg.norm(target)
    moved = measured_gradients - target + r * unit
    updates = np.array([clipping.update(moved[one], b, rule) for one in members])
    return updates @ unit, np.square(updates).sum(axis=1)


@pytest.mark.parametrize("held", [2**25, 1])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("b", [1, 2, 8])
def test_steps_are_those_of_the_vectors(b, rule, replacement, held, monkeypatch):
    """Step by step, whether products of micro-batches are held or not."""
    monkeypatch.setattr(measured_module, "_HELD", held)
    measured = MeasuredProblem(G, target=TARGET, replacement=replacement)
    source = drift(measured, MicroBatchClipping(b, rule=rule), batch_size=16).source
    block = source._partitions(0)
    assert (block.products is None) == (held == 1)
    flat = block.members.reshape(len(block.members), 16)
    epochs = flat.reshape(-1, 48)  # three batches each
    repeats = [len(np.unique(epoch)) < 48 for epoch in epochs]
    assert all(repeats) if replacement else not any(repeats)
    for r in (0.0, 0.3, measured.target_norm, 50.0):
        expected = direct(G, TARGET, flat[:40], r, b, rule)
        found = block.moments(r, rule)[:, :40]
        assert close(found, expected, size=np.abs(found).max())


@pytest.mark.parametrize("target", ["geometric-median", "mean"])
@pytest.mark.filterwarnings("ignore:target='mean'")
def test_resampled_steps_have_the_target_of_their_own_examples(target):
    measured = MeasuredProblem(G, target=target)
    rule = SmallestNorm()
    source = drift(measured, MicroBatchClipping(2), batch_size=16).source
    block, r = source._resampled, 0.7
    steps = len(block.members) // 32
    for number, replicate in enumerate(measured._replicates[:4]):
        own = target_of(G[replicate.rows], target)
        part = slice(number * steps, (number + 1) * steps)
        members = block.members[part].reshape(steps, 16)
        assert np.isin(members, replicate.rows).all()
        expected = direct(G, own, members, r, 2, rule)
        assert np.allclose(block.moments(r, rule)[:, part], expected, rtol=1e-6)


def target_of(examples, name):
    """The target as a vector, by another way than Weiszfeld's."""
    if name == "mean":
        return examples.mean(axis=0)
    points = examples[: len(examples) // 8 * 8].reshape(-1, 8, examples.shape[1]).mean(axis=1)

    def total(at):
        away = at - points
        distance = np.linalg.norm(away, axis=1)
        return distance.sum(), (away / distance[:, None]).sum(axis=0)

    found = optimize.minimize(total, points.mean(axis=0), jac=True, method="BFGS", tol=1e-9)
    return found.x


def enumerated(measured_gradients, target, batch, b, rule, r, *, replacement):
    """The exact A and M: the mean over every ordered batch."""
    n = len(measured_gradients)
    ordered = (
        itertools.product(range(n), repeat=batch)
        if replacement
        else itertools.permutations(range(n), batch)
    )
    progress, second = direct(measured_gradients, target, np.array(list(ordered)), r, b, rule)
    return progress.mean(), second.mean()


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("b", [1, 2, 4])
@pytest.mark.parametrize("rule", [SmallestNorm(), QuantileNorm(0.5), FixedNorm(0.5)], ids=str)
def test_every_batch_of_a_tiny_set(rule, b, replacement):
    """A and M against enumeration, within the errors over partitions alone."""
    some = gradients(6, 3, seed=2)
    measured = MeasuredProblem(some, target=[1.0, 0.5, 0.2], replacement=replacement)
    one = drift(measured, MicroBatchClipping(b, rule=rule), batch_size=4)
    for r in (0.2, 2.0):
        exact = enumerated(some, np.array([1.0, 0.5, 0.2]), 4, b, rule, r, replacement=replacement)
        partitions, _ = one.source.errors(r)
        mean, _, _, df = one.source._one(r, 1e-3)
        for found, error, truth in zip(mean, partitions, exact, strict=True):
            interval = from_error(found, error, df, false_positive_rate=RATE)
            assert truth in interval or close(found, truth)  # where all batches agree
        if b == 4 and isinstance(rule, SmallestNorm):
            assert (partitions == 0).all()  # SGD is written down


def test_a_wrong_moment_would_be_seen():
    """The mutant: draws with replacement are not those without, and the test above sees it."""
    some, target = gradients(6, 3, seed=2), np.array([1.0, 0.5, 0.2])
    one = drift(MeasuredProblem(some, target=target), MicroBatchClipping(2), batch_size=4)
    exact = enumerated(some, target, 4, 2, SmallestNorm(), 2.0, replacement=True)
    mean, _, _, df = one.source._one(2.0, 1e-3)
    errors, _ = one.source.errors(2.0)
    wrong = from_error(mean[1], errors[1], df, false_positive_rate=RATE)
    assert exact[1] not in wrong


def test_clipping_nothing_is_written_down():
    measured = MeasuredProblem(G, target=TARGET)
    ways = [SGD(), MicroBatchClipping(16), MicroBatchClipping(4, rule=NoClipping())]
    found = [drift(measured, way, batch_size=16).at([0.1, 1.0, 9.0]) for way in ways]
    for other in found[1:]:
        assert (other.progress == found[0].progress).all()
        assert (other.second_moment == found[0].second_moment).all()
    along = (G - TARGET).mean(axis=0) @ TARGET / np.linalg.norm(TARGET)
    assert close(found[0].progress, np.array([0.1, 1.0, 9.0]) + along)


# ------------------------------------------------------------------ the exact drift of a problem


def example_gradients(problem, r, count, seed):
    """Gradients of examples drawn from a problem where its gradient, along an axis, is r long."""
    draws = VectorDraws(
        problem=problem, batch_size=count, m=count, width=1, rng=np.random.default_rng(seed)
    )
    gradient = np.zeros(problem.dimension)
    gradient[0] = r
    found, _ = draws.at(gradient[None])
    return found[0], gradient


def a_problem(law, **draggers):
    draggers = {"probability": 0.05, "norm_ratio": 5.0} | draggers
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(32)),
        noise=law,
        draggers=mbsim.Draggers(**draggers),
        benign_dim=16,
        start=np.ones(32),
    )


PROBLEMS = {
    "skewed": a_problem(noise.TwoPoint(sigma=1.0, rare=0.1, isotropic_share=0.5)),
    "symmetric": a_problem(noise.Gaussian(sigma=1.0)),
    "tilted": a_problem(noise.Exponential(sigma=1.0, isotropic_share=0.5), tilt=0.3),
}
METHODS = [
    MicroBatchClipping(1),
    MicroBatchClipping(2, rule=FixedNorm(0.5)),
    MicroBatchClipping(4),
    MicroBatchClipping(4, rule=QuantileNorm(0.5)),
    MicroBatchClipping(16, rule=UnitNorm(0.1)),
    SGD(),
]


def off(measured_drift, exact, r):
    """How many of A and M are not within their errors of the exact ones."""
    found, truth = measured_drift.at(r), exact.at(r)
    wrong = 0
    for name in ("progress", "second_moment"):
        error = float(getattr(found, f"{name}_standard_error"))
        numerical = float(getattr(truth, f"{name}_numerical_error"))
        numerical += 6 * float(getattr(truth, f"{name}_standard_error"))
        interval = from_error(
            float(getattr(found, name)), error, float(found.df), false_positive_rate=RATE
        )
        number = float(getattr(truth, name))
        wrong += not interval.low - numerical <= number <= interval.high + numerical
    return wrong


@pytest.mark.parametrize("r", [0.1, 1.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_measured_drifts_agree_with_the_exact_one(name, r):
    """Six methods, on two sets of 800 examples each; each number wrong once in a million times."""
    problem = PROBLEMS[name]
    exact = [drift(problem, method, batch_size=16) for method in METHODS]
    for seed in range(2):
        found, target = example_gradients(problem, r, 800, seed)
        measured = MeasuredProblem(found, target=target, rng=seed)
        for method, truth in zip(METHODS, exact, strict=True):
            assert off(drift(measured, method, batch_size=16), truth, r) == 0, method


def test_without_draggers_one_set_serves_every_r():
    """Noise that does not depend on r: measured at r = 1 and asked at others."""
    problem = a_problem(noise.Gaussian(sigma=1.0), probability=0.0)
    found, target = example_gradients(problem, 1.0, 800, seed=3)
    measured = MeasuredProblem(found, target=target)
    for method in METHODS:
        one, exact = (drift(which, method, batch_size=16) for which in (measured, problem))
        for r in (0.05, 0.4, 6.0):
            assert off(one, exact, r) == 0


def test_a_wrong_target_would_be_seen():
    """The negative control: a target twice as long, or draggers left out."""
    problem = PROBLEMS["symmetric"]
    found, target = example_gradients(problem, 1.0, 800, seed=0)
    exact = drift(problem, MicroBatchClipping(4), batch_size=16)
    twice = MeasuredProblem(found, target=2 * target)
    assert off(drift(twice, MicroBatchClipping(4), batch_size=16), exact, 1.0)
    benign = found[np.linalg.norm(found[:, 16:], axis=1) == 0]
    assert off(drift(MeasuredProblem(benign, target=target), SGD(), batch_size=16),
               drift(problem, SGD(), batch_size=16), 1.0)  # fmt: skip


@pytest.mark.parametrize("replacement", [False, True])
def test_errors_over_examples_are_neither_too_small_nor_idle(replacement):
    """Standardised errors over 60 sets of 300 examples: their mean square is about 1.

    For 60 squares of Student's t with about 31 degrees of freedom the mean square is 1.07 with a
    standard deviation of 0.21: 2.1 is 4.9 of them above. Errors twice too small would give 4, and
    errors four times too large 1/16.
    """
    problem, r = PROBLEMS["symmetric"], 1.0
    methods = [MicroBatchClipping(1), MicroBatchClipping(4), SGD()]
    exact = [drift(problem, method, batch_size=16).at(r) for method in methods]
    scores = np.zeros((60, len(methods), 2))
    for seed in range(len(scores)):
        found, target = example_gradients(problem, r, 300, seed)
        measured = MeasuredProblem(found, target=target, rng=seed, replacement=replacement)
        for i, method in enumerate(methods):
            one = drift(measured, method, batch_size=16).at(r)
            scores[seed, i] = (
                (one.progress - exact[i].progress) / one.progress_standard_error,
                (one.second_moment - exact[i].second_moment) / one.second_moment_standard_error,
            )
    squares = np.square(scores).mean(axis=0)
    assert (squares < 2.1).all()
    assert (squares > 0.2).all()


# ------------------------------------------------------------------ what is built on drifts


def test_it_is_a_drift_like_any_other():
    measured = MeasuredProblem(gradients(400), target=TARGET)
    clip = MicroBatchClipping(4)
    one = mbsim.drift(measured, clip, batch_size=64)
    assert isinstance(one, mbsim.Drift)
    assert one.progress(0.1) == measured.drift(clip, batch_size=64).progress(0.1)
    assert one.at([[0.1, 1.0]]).progress.shape == (1, 2)
    assert set(one.at([0.1]).method) == {"measured"}
    floor, eta = one.floor_interval(step_size=0.1), one.tuned_step_size(steps=100)
    assert floor.low < floor.estimate < floor.high
    assert math.isclose(floor.estimate, one.floor(step_size=0.1), rel_tol=1e-9)
    r, floored = floor.estimate, one.at(floor.estimate)
    assert math.isclose(
        r * floored.progress, 0.05 * floored.second_moment, rel_tol=0.02
    )  # quick values, and those with an aim
    bound = one.certify(step_size=eta, steps=100)
    assert bound.value > 0
    assert any("measured" in line for line in bound.assumptions)
    assert bound.settings["target"] == "given"
    every = drifts(measured, batch_size=64)
    assert list(every) == [1, 2, 4, 8, 16, 32, 64]
    assert every[4].progress(0.1) == one.progress(0.1)


def test_the_floor_of_sgd_has_the_error_over_examples():
    with pytest.warns(UserWarning, match="SGD by construction"):
        measured = MeasuredProblem(G, target="mean")
    one = drift(measured, SGD(), batch_size=16)
    assert close(one.progress([0.5, 2.0]), [0.5, 2.0])  # it has no bias
    floor = one.floor_interval(step_size=0.1, false_positive_rate=0.05)
    spread = measured._pool.deviation(16, measured.target_norm)
    expected = math.sqrt(0.05 * spread / 0.95)
    assert math.isclose(floor.estimate, expected, rel_tol=1e-4)
    assert floor.low < 0.95 * expected
    assert floor.high > 1.05 * expected


def test_a_certificate_is_refused_where_the_update_does_not_grow():
    measured = MeasuredProblem(G, target=TARGET)
    one = drift(measured, MicroBatchClipping(4, rule=UnitNorm()), batch_size=16)
    found = one.certify(step_size=0.1, steps=10)
    assert isinstance(found, Refusal)
    assert "in proportion" in found.reason
    assert one.certify(step_size=0.01, steps=100, largest_grad_norm=10.0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("b", [1, 4, 16])
def test_what_is_said_of_large_gradients_holds(rule, b):
    measured = MeasuredProblem(G, target=TARGET)
    one = drift(measured, MicroBatchClipping(b, rule=rule), batch_size=16)
    if one.tail is None:
        return
    for r in (0.01, 1.0, 30.0, 1e4):
        kappa, found = one.tail.kappa(r), one.at(r)
        rounding = 1e-9 * (r + 1)
        assert abs(found.progress - r) <= kappa + rounding
        limit = r**2 + 2 * r * kappa + kappa**2 + one.tail.constant
        assert found.second_moment <= limit + r * rounding


def test_smoothness_is_a_unit_of_step_sizes():
    one, other = (
        drift(MeasuredProblem(G, target=TARGET, smoothness=unit), SGD(), batch_size=16)
        for unit in (1.0, 4.0)
    )
    assert math.isclose(one.floor(step_size=0.4), other.floor(step_size=0.1), rel_tol=1e-9)
    first, second = one.certify(step_size=0.4, steps=9), other.certify(step_size=0.1, steps=9)
    assert math.isclose(first.value, second.value, rel_tol=1e-9)


def test_the_same_seed_gives_the_same_numbers():
    def at(seed, examples=0):
        measured = MeasuredProblem(G, rng=examples)
        return drift(measured, MicroBatchClipping(2), batch_size=16, rng=seed).at([0.3, 2.0])

    assert at(1) == at(1)
    assert (at(1).progress != at(2).progress).all()
    assert (at(1).progress != at(1, examples=1).progress).all()  # other eights


def test_threads_do_not_change_a_digit(monkeypatch):
    pytest.importorskip("threadpoolctl")
    code = (
        "import numpy as np, mbsim\n"
        "g = np.random.default_rng(0).standard_normal((1600, 30)) + 0.3\n"
        "m = mbsim.MeasuredProblem(g)\n"
        "d = mbsim.drift(m, mbsim.MicroBatchClipping(2), batch_size=64).source\n"
        "print(d.values(np.array([0.5, 2.0]), None))"
    )
    found = set()
    for threads in "12":
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
        found.add(processes.run(code))
    assert len(found) == 1


def test_more_draws_do_not_change_the_first():
    measured = MeasuredProblem(gradients(200), target=TARGET)
    few, many = (
        drift(measured, MicroBatchClipping(2), batch_size=16, draws=draws) for draws in (1, 2**20)
    )
    assert (few.source._rows(0, 0.5) == many.source._rows(0, 0.5)).all()
    assert few.source._most == 1


def test_a_projection_states_its_error():
    measured = MeasuredProblem(Gram(G, target=TARGET, project=8))
    found = drift(measured, MicroBatchClipping(2), batch_size=16).at(1.0)
    assert found.second_moment_numerical_error == 2 * 0.5 * found.second_moment
    assert found.progress_numerical_error == 0.5 * math.sqrt(found.second_moment)


# ------------------------------------------------------------------ targets


def test_a_gram_brings_its_target():
    measured = MeasuredProblem(Gram(G, target=TARGET))
    assert measured.target == "given"
    assert measured == MeasuredProblem(G, target=TARGET)
    from_matrix = Gram.from_matrix(
        G @ G.T, target_products=G @ TARGET, target_norm=np.linalg.norm(TARGET)
    )
    assert close(MeasuredProblem(from_matrix).target_products, measured.target_products)
    assert MeasuredProblem(Gram(G)).target == "geometric-median"
    other = MeasuredProblem(Gram(G, target=TARGET), target="geometric-median")
    assert close(other.target_products, MeasuredProblem(G).target_products)


def test_the_geometric_median_is_that_of_the_eights():
    measured = MeasuredProblem(G, rng=5)
    order = measured_module.stream(measured_module.seed_sequence(5), "eights").permutation(48)
    expected = target_of(G[order], "geometric-median")
    assert np.allclose(measured.target_products, G @ expected, rtol=1e-5, atol=1e-4)
    assert math.isclose(measured.target_norm, np.linalg.norm(expected), rel_tol=1e-5)


def test_the_geometric_median_withstands_a_few_that_pull_away():
    some = gradients(400)
    some[::40] -= 300 * TARGET  # ten of 400, together far beyond the others
    measured = MeasuredProblem(some)
    assert some.mean(axis=0) @ TARGET < 0
    assert (
        measured.target_products @ np.linalg.pinv(some).T @ TARGET > 0
    )  # g itself, by its products
    assert np.corrcoef(measured.target_products, some @ TARGET)[0, 1] > 0.9


@given(st.integers(3, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_geometric_medians_are_where_unit_vectors_cancel(count, dim, seed):
    """The condition of a minimum: the unit vectors to the points add up to at most 1 at a point."""
    points = np.random.default_rng(seed).standard_normal((count, dim))
    weights = geometric_median(points @ points.T)
    assert math.isclose(weights.sum(), 1)
    away = points - weights @ points
    distance = np.linalg.norm(away, axis=1)
    near = distance < 1e-3
    pull = (away[~near] / distance[~near, None]).sum(axis=0)
    assert np.linalg.norm(pull) <= near.sum() + 1e-3 * count


def test_the_mean_is_sgd_by_construction():
    with pytest.warns(UserWarning, match="SGD by construction"):
        measured = MeasuredProblem(G, target="mean")
    assert math.isclose(measured.target_norm, np.linalg.norm(G.mean(axis=0)), rel_tol=1e-9)
    r = measured.target_norm
    every = [drift(measured, MicroBatchClipping(b), batch_size=16).progress(r) for b in (1, 4, 16)]
    assert math.isclose(max(every), every[-1])


# ------------------------------------------------------------------ invariance


@st.composite
def small_sets(draw):
    examples, dim = draw(st.sampled_from([4, 8])), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    target = rng.standard_normal(dim)
    return target + rng.standard_normal((examples, dim)), target, rng


@settings(max_examples=15)
@given(small_sets(), st.sampled_from(RULES), st.floats(0.05, 20.0))
def test_rotations_and_units_change_nothing(case, rule, r):
    found, target, rng = case
    dim = target.size
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    first = MeasuredProblem(found, target=target)
    turned = MeasuredProblem(found @ rotation.T, target=rotation @ target)
    double = MeasuredProblem(2 * found, target=2 * target)
    method = MicroBatchClipping(2, rule=rule)
    one, other, large = (drift(which, method, batch_size=4) for which in (first, turned, double))
    a, b = one.at(r), other.at(r)
    assert math.isclose(a.progress, b.progress, abs_tol=1e-8 * (r + 10))
    assert math.isclose(a.second_moment, b.second_moment, abs_tol=1e-8 * (r + 10) ** 2)
    if not isinstance(rule, (FixedNorm, UnitNorm)):  # those have a unit of their own
        c = large.at(2 * r)
        assert math.isclose(2 * a.progress, c.progress, abs_tol=1e-8 * (r + 10))
        assert math.isclose(4 * a.second_moment, c.second_moment, abs_tol=1e-7 * (r + 10) ** 2)


@settings(max_examples=10)
@given(small_sets(), st.sampled_from(RULES))
def test_the_order_of_the_examples_means_nothing(case, rule):
    """The sets are small, so that partitions leave little open; but for them nothing changes."""
    found, target, rng = case
    order = rng.permutation(len(found))
    one, other = (
        drift(MeasuredProblem(which, target=target), MicroBatchClipping(1, rule=rule),
              batch_size=len(found))
        for which in (found, found[order])
    )  # fmt: skip
    for r in (0.3, 3.0):
        a, b = one.at(r), other.at(r)
        assert math.isclose(a.progress, b.progress, abs_tol=1e-7)  # b = 1, B = N: one partition
        assert math.isclose(a.second_moment, b.second_moment, abs_tol=1e-7)


# ------------------------------------------------------------------ bad input


def measured_drift(b=2, batch=16, **changes):
    return mbsim.drift(MeasuredProblem(G, target=TARGET, **changes), MicroBatchClipping(b),
                       batch_size=batch)  # fmt: skip


BAD = [
    ("gradients must be finite", "rows", lambda: MeasuredProblem(G * np.nan)),
    ("gradients must not all be 0", "48", lambda: MeasuredProblem(0 * G)),
    ("gradients must not all be the same", "9", lambda: MeasuredProblem(np.ones((9, 4)))),
    ("gradients has 1 example", "at least 2", lambda: MeasuredProblem(G[:1], target=TARGET)),
    ("target", "29 coordinates", lambda: MeasuredProblem(G, target=TARGET[1:])),
    ("target", "longer than 0", lambda: MeasuredProblem(G, target=0 * TARGET)),
    ("target='given'", "sign reversed", lambda: MeasuredProblem(5 + G**2, target=-TARGET)),
    ("target='median'", "'geometric-median'", lambda: MeasuredProblem(G, target="median")),
    ("target", "part of the pass", lambda: MeasuredProblem(Gram(G), target=TARGET)),
    ("target='geometric-median'", "at least 24", lambda: MeasuredProblem(G[:20])),
    (
        "target='geometric-median'",
        "no direction",
        lambda: MeasuredProblem(np.tile([[1.0, 0], [-1, 1e-30]], (8, 1)).repeat(8, axis=0)),
    ),
    ("replacement=1", "True or False", lambda: MeasuredProblem(G, replacement=1)),
    ("smoothness=0", "above 0", lambda: MeasuredProblem(G, smoothness=0)),
    ("rng=-1", "at least 0", lambda: MeasuredProblem(G, rng=-1)),
    ("batch_size=64", "examples, 48", lambda: measured_drift(batch=64)),
    ("micro_batch_size=3", "divide batch_size=16", lambda: measured_drift(3)),
    ("method=3", "method", lambda: mbsim.drift(MeasuredProblem(G), 3, batch_size=16)),
    ("relative_error=2", "below 1", lambda: MeasuredProblem(G).drift(SGD(), batch_size=2,
                                                                      relative_error=2)),
    ("draws=0", "at least 1", lambda: MeasuredProblem(G).drift(SGD(), batch_size=2, draws=0)),
    ("grad_norm=1e+151", "at most 1e+150", lambda: measured_drift().at(1e151)),
    ("grad_norm=-1", "at least 0", lambda: measured_drift().at(-1)),
    ("problem='x'", "Problem", lambda: mbsim.drift("x", SGD(), batch_size=2)),
]  # fmt: skip


@pytest.mark.parametrize(("begins", "shows", "call"), BAD)
def test_bad_input_is_one_line(begins, shows, call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidArgument) as caught:
            call()
    message = str(caught.value)
    assert message.startswith(begins)
    assert shows in message
    assert "\n" not in message
    assert len(message) < 300


def test_equal_rows_are_pointed_out():
    twice = G.copy()
    twice[[7, 30]] = twice[3]
    twice[[1, 2]] = 0.0  # fitted examples: nothing to point out
    with pytest.warns(UserWarning, match=r"rows, such as 3 and 7 \(3 such pairs\)"):
        MeasuredProblem(twice, target=TARGET)


def test_with_replacement_a_batch_may_be_larger_than_the_set():
    measured = MeasuredProblem(G, target=TARGET, replacement=True)
    assert mbsim.drift(measured, MicroBatchClipping(4), batch_size=64).progress(1.0) > 0


def test_it_says_what_it_is():
    assert repr(MeasuredProblem(G, target=TARGET, replacement=True)) == (
        "MeasuredProblem(48 examples, target given, of length 1.643, batches with replacement)"
    )
