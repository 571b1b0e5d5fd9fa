"""The race: what it spends, whom it drops, what it answers, and what it refuses."""

import json
import math

import numpy as np
import pytest

import mbsim
from mbsim import clipping, statistics
from mbsim.gradients.race import Candidate, grid, race, schedule

INF, NAN = math.inf, math.nan
GRID = grid(64, step_size=0.1)


def curve(loss):
    """A `train` of the law loss(candidate, steps), which checks that nothing is trained twice."""
    calls = []

    def train(candidate, *, steps, seed, state=None):
        done = 0 if state is None else state
        assert done < steps, "a call must train on"
        assert done == max([s for c, s, _ in calls if c == candidate], default=0)
        calls.append((candidate, steps, seed))
        return loss(candidate, steps), steps

    train.calls = calls
    return train


def bowl(best_b, best_eta):
    """Lowest at one b and step size, at all times, and falling with the steps."""

    def loss(c, steps):
        away = abs(math.log2(c.micro_batch_size / best_b)) + math.log2(c.step_size / best_eta) ** 2
        return 1 + away + 10 / steps

    return loss


@pytest.mark.parametrize("best", [GRID[0], GRID[22], GRID[40], GRID[-1]], ids=str)
def test_who_is_ahead_all_the_time_wins_within_the_budget(best):
    train = curve(bowl(best.micro_batch_size, best.step_size))
    found = race(train, GRID, batch_size=64, steps=300, rng=5)
    assert found.candidate == best
    assert found.micro_batch_size == best.micro_batch_size
    # The cost, counted by whoever is called.
    until = {candidate: steps for candidate, steps, _ in train.calls}
    assert found.cost == pytest.approx(sum(until.values()) / 300)
    assert 9.5 < found.cost <= 10
    assert len({seed for _, _, seed in train.calls}) == 1, "paired: one seed for everybody"
    other = curve(bowl(best.micro_batch_size, best.step_size))
    race(other, GRID, batch_size=64, steps=300, rng=6)
    assert other.calls[0][2] != train.calls[0][2]


def test_a_smaller_step_size_that_overtakes_late_is_kept():
    """The step size that is best at the end trails its neighbour until 60 % of the steps."""

    def loss(c, steps):
        eta = c.step_size / GRID[0].step_size
        return 1 + abs(math.log2(c.micro_batch_size / 8)) + 1 / (eta * steps) + 4e-5 * eta

    finals = {c: loss(c, 300) for c in GRID}
    best = min(finals, key=finals.get)
    found = race(curve(loss), GRID, batch_size=64, steps=300)
    leaders = [rung.losses[0][0] for rung in found.rungs]
    assert leaders[0].step_size > best.step_size
    assert found.candidate == best


@pytest.mark.parametrize("seed", range(20))
def test_sgd_is_raced_to_the_end_whatever_the_losses(seed):
    draw = np.random.default_rng(seed)
    table = {(c, k): x for c in GRID for k, x in enumerate(draw.lognormal(size=301))}
    worst = 100 if seed % 2 else 0  # SGD is hopeless in half of them
    train = curve(lambda c, steps: table[c, steps] + worst * (c.micro_batch_size == 64))
    found = race(train, GRID, batch_size=64, steps=300, budget=6)
    assert any(c.micro_batch_size == 64 for c, _ in found.rungs[-1].losses)
    assert all(any(c.micro_batch_size == 64 for c, _ in rung.losses) for rung in found.rungs)
    ends = dict(found.rungs[-1].losses)
    sgd = min(loss for c, loss in ends.items() if c.micro_batch_size == 64)
    assert found.answer.gain.estimate == pytest.approx(sgd / min(ends.values()))
    assert found.cost <= 6


@pytest.mark.parametrize("budget", [2.5, 4, 10, 40])
@pytest.mark.parametrize("count", [3, 9, 63, 200])
def test_a_schedule_spends_the_budget_and_no_more(count, budget):
    try:
        plan = schedule(count, budget, 1000)
    except mbsim.InvalidArgument as refused:
        least = float(str(refused).split("at least ")[1].split()[0])
        assert least > budget
        return
    sizes, stops = zip(*plan, strict=True)
    assert sizes[0] == count
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(stops) == sorted(set(stops))
    assert stops[-1] == 1000
    cost = sum(n * (a - b) for n, a, b in zip(sizes, stops, (0, *stops), strict=False)) / 1000
    assert cost <= budget
    # Not much is left, unless the last rungs cannot take more.
    assert cost > 0.9 * budget or cost > 0.6 * count


# ------------------------------------------------------------------------- intervals


def noisy(means, examples=400, spread=0.3):
    """Losses of every held-out example; what is common to all candidates cancels in pairs."""
    common = np.random.default_rng(0).exponential(size=examples)

    def loss(c, steps):
        own = np.random.default_rng([c.micro_batch_size, steps]).normal(0, spread, examples)
        mean = means.get(c.micro_batch_size, 3.0) + abs(math.log2(c.step_size / 0.1))
        return mean * (common + 0.5 + np.abs(own))

    return loss


def test_the_interval_of_the_gain_is_that_of_resampled_examples():
    loss = noisy({4: 1.0, 64: 1.5})
    found = race(curve(loss), GRID, batch_size=64, steps=300)
    assert found.micro_batch_size == 4
    assert found.tied == (4,)
    sgd = next(c for c, _ in found.rungs[-1].losses if c.micro_batch_size == 64)
    above, below = loss(sgd, 300), loss(found.candidate, 300)
    draw = np.random.default_rng(1).integers(400, size=(4000, 400))
    ratios = above[draw].mean(axis=1) / below[draw].mean(axis=1)
    low, high = np.quantile(ratios, [0.005, 0.995])
    gain = found.answer.gain
    assert gain.estimate == pytest.approx(above.mean() / below.mean())
    assert gain.low == pytest.approx(low, rel=0.01)
    assert gain.high == pytest.approx(high, rel=0.01)
    assert gain.high - gain.low == pytest.approx(high - low, rel=0.15)
    assert found.regret_bound == 1.0  # SGD, the other that was raced to the end, is told from it


def test_intervals_that_separate_stop_the_race_early():
    numbers = noisy({4: 1.0, 64: 1.5})
    early = race(curve(numbers), GRID, batch_size=64, steps=300)
    late = race(curve(lambda c, t: numbers(c, t).mean()), GRID, batch_size=64, steps=300)
    assert early.candidate == late.candidate
    assert early.cost < late.cost
    assert early.rungs[-2].steps >= 150
    before = [rung for rung in early.rungs if rung.steps < 150]
    assert [len(r.losses) for r in before] == [len(r.losses) for r in late.rungs[: len(before)]]


def test_what_cannot_be_told_is_tied_and_sgd_is_then_the_answer():
    found = race(curve(noisy({4: 1.0, 64: 1.001})), GRID, batch_size=64, steps=300)
    assert set(found.tied) == {4, 64}
    assert not found.answer.clips
    assert "do not clip" in str(found)
    assert 1 < found.regret_bound < 1.1


def test_single_numbers_have_no_interval_and_are_tied_within_one_percent():
    for gap, tied in ((1.009, (4, 64)), (1.011, (4,))):
        means = {4: 1.0, 64: gap}
        train = curve(lambda c, _, m=means: m.get(c.micro_batch_size, 2) + abs(c.step_size - 0.1))
        found = race(train, GRID, batch_size=64, steps=300)
        assert found.tied == tied
        assert (found.answer.gain.low, found.answer.gain.high) == (0, INF)
        assert found.regret_bound == INF
        assert "no interval" in found.answer.rests_on


# ------------------------------------------------------------------------- divergence


def test_what_diverges_is_last_and_costs_nothing_more():
    nothing = {"NaN": NAN, "infinite": INF}
    for value in nothing.values():
        train = curve(lambda c, t, v=value: v if c.step_size > 0.1 else bowl(8, 0.1)(c, t))
        found = race(train, GRID, batch_size=64, steps=300)
        assert (found.micro_batch_size, found.candidate.step_size) == (8, 0.1)
        diverged = [c for c, _, _ in train.calls if c.step_size > 0.1]
        assert len(diverged) == len(set(diverged)) > 0


def test_one_example_that_is_not_finite_is_divergence():
    def loss(c, _):
        return np.array([1.0, NAN if c.micro_batch_size == 4 else 1.5, 2.0])

    found = race(curve(loss), GRID, batch_size=64, steps=300)
    assert found.micro_batch_size != 4


@pytest.mark.parametrize("who", ["everybody", "SGD"])
def test_all_may_diverge(who):
    train = curve(lambda c, _: INF if who == "everybody" or c.micro_batch_size == 64 else 1.0)
    found = race(train, GRID, batch_size=64, steps=300)
    if who == "everybody":
        assert (found.micro_batch_size, found.answer.clips) == (64, False)
        assert "diverged" in found.answer.reason
    else:
        assert found.answer.clips
        assert found.answer.gain.estimate == INF
    json.dumps(found.to_dict())
    assert str(found)
    assert found.plot()


# ------------------------------------------------------------------------- candidates


def test_sgd_is_added_where_it_is_missing():
    few = grid(64, sizes=[2, 4], step_size=0.1)
    found = race(curve(bowl(4, 0.1)), few, batch_size=64, steps=300)
    raced = {c for c, _ in found.rungs[0].losses}
    assert raced == {*few, *grid(64, sizes=[64], step_size=0.1)}
    no_clipping = [*few, Candidate(micro_batch_size=4, step_size=0.1, rule=clipping.NoClipping())]
    found = race(curve(lambda c, _: 1.0), no_clipping, batch_size=64, steps=300)
    assert len(found.rungs[0].losses) == len(no_clipping)
    assert found.micro_batch_size == 64, "of equal ones SGD, which without clipping any b is"


def test_rules_are_raced_too():
    rules = [clipping.SmallestNorm(), clipping.QuantileNorm(0.5)]
    raced = grid(64, sizes=[1, 8, 64], step_size=0.1, rules=rules)
    found = race(
        curve(lambda c, t: bowl(8, 0.1)(c, t) - (c.rule == rules[1]) * 0.5),
        raced, batch_size=64, steps=300,
    )  # fmt: skip
    assert found.candidate == Candidate(micro_batch_size=8, step_size=0.1, rule=rules[1])
    assert "QuantileNorm" in found.answer.reason


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e3])
def test_the_step_size_is_found_where_none_is_given(curvature):
    """Gradient descent on ½L(w² + w'²/100) is best at ηL a little below 2."""

    def train(candidate, *, steps, seed, state=None):
        w, done = (np.ones(2), 0) if state is None else state
        scale = curvature * np.array([1.0, 0.01])
        with np.errstate(over="ignore"):
            for _ in range(done, steps):
                w = w - candidate.step_size * scale * w
            return 0.5 * (scale * w**2).sum() / curvature, (w, steps)

    found = race(train, [1, 64], batch_size=64, steps=200, budget=6)
    etas = curvature * np.array(sorted({c.step_size for c, _ in found.rungs[0].losses}))
    assert etas.size == 9
    assert etas.min() < 0.5
    assert etas.max() > 2
    assert 0.9 < found.candidate.step_size * curvature < 2  # doubling, one lies in it at least
    assert found.cost <= 6


# ------------------------------------------------------------------------- results


def test_a_race_is_the_same_again_and_says_what_it_is():
    found, again = (race(curve(noisy({4: 1.0, 64: 1.5})), GRID, batch_size=64, steps=300)
                    for _ in range(2))  # fmt: skip
    assert found == again
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["answer"]["micro_batch_size"] == 4
    assert plain["rungs"][0]["losses"][0].keys() == {
        "micro_batch_size", "step_size", "rule", "loss",
    }  # fmt: skip
    assert "training runs of 10" in str(found)
    assert found._repr_html_().count("<tr>") == len(found.rungs) + 1
    labels = found.plot().get_legend_handles_labels()[1]
    assert labels == [f"b = {b}" for b in (1, 2, 4, 8, 16, 32, 64)]


def test_real_training_with_wrong_signs_is_won_by_clipping():
    """A mean with one example in ten far off on one side: medians are nearer than means."""
    draw = np.random.default_rng(0)
    clean = draw.standard_normal((2000, 4))
    train_set = clean[:1000] + 30 * (draw.random((1000, 1)) < 0.1)

    def train(candidate, *, steps, seed, state=None):
        w, done = (np.full(4, -3.0), 0) if state is None else state
        for step in range(done, steps):
            batch = train_set[np.random.default_rng([seed, step]).integers(1000, size=16)]
            w = w - candidate.step_size * clipping.update(
                w - batch, candidate.micro_batch_size, candidate.rule
            )
        return 0.5 * ((w - clean[1000:]) ** 2).sum(axis=1), (w, steps)

    found = race(train, batch_size=16, steps=60, budget=8)
    assert found.answer.clips
    assert found.answer.gain.low > 1.3
    assert found.cost <= 8


# ------------------------------------------------------------------------- bad calls


def test_what_train_raises_comes_through_with_the_candidate_named():
    def train(candidate, *, steps, seed, state=None):
        raise ZeroDivisionError("my own")

    with pytest.raises(ZeroDivisionError, match="my own") as caught:
        race(train, GRID, batch_size=64, steps=300)
    assert caught.value.__notes__ == [f"raised by train for {GRID[0]}, steps=7"]


def answers(value):
    return lambda candidate, *, steps, seed, state=None: value


LENGTHS = iter(range(3, 100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 3}, "train=3 must be a function"),
        ({"train": answers(1.0)}, "train returned 1.0 for b = 1, .* must be .losses, state."),
        ({"train": answers(("a", 0))}, "losses of train for b = 1, .* must be an array of real"),
        ({"train": answers(([], 0))}, "losses of train for b = 1, .* must not be empty"),
        ({"train": answers((-1.0, 0))}, "train returned a loss of -1 for b = 1, .* at least 0"),
        ({"train": lambda c, **_: (np.ones(next(LENGTHS)), 0)},
         "train returned 4 losses for .* and 3 before; they must be of the same"),
        ({"candidates": []}, "candidates=.. must have at least one"),
        ({"candidates": 4}, "candidates=4 must be Candidates or integers"),
        ({"candidates": "4"}, "candidates='4' must be Candidates or integers"),
        ({"candidates": [3]}, "micro_batch_size=3 must divide batch_size=64"),
        ({"candidates": [2.5]}, "micro_batch_size=2.5 must be an integer"),
        ({"candidates": [2, GRID[0]]}, "candidates must be all Candidates or all integers"),
        ({"candidates": [GRID[0]] * 2}, "candidates must differ; .b = 1, .* more than once"),
        ({"candidates": grid(10)}, "micro_batch_size=5 must divide batch_size=64"),
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"steps": 0}, "steps=0 must be an integer of at least 1"),
        ({"steps": 2.5}, "steps=2.5 must be an integer"),
        ({"budget": 0}, "budget=0 must be above 0"),
        ({"budget": NAN}, "budget=nan must be finite"),
        ({"budget": 1}, r"budget=1(\.0)? must be at least 2.* training runs for 63 candidates"),
        ({"steps": 1}, r"budget=10(\.0)? must be at least 63 training runs"),
        ({"rng": -1}, "rng=-1 must be an integer of at least 0"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused_in_a_line(changes, message):
    good = {"train": answers((1.0, None)), "candidates": GRID, "batch_size": 64, "steps": 300}
    with pytest.raises(mbsim.InvalidArgument, match="^" + message) as caught:
        race(**{**good, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Candidate(micro_batch_size=0, step_size=1), "micro_batch_size=0 must be"),
        (lambda: Candidate(micro_batch_size=1, step_size=-1), "step_size=-1 must be above 0"),
        (lambda: Candidate(micro_batch_size=1, step_size=1, rule=3), "rule=3 must be a clipping"),
        (lambda: grid(64, sizes=[5]), "micro_batch_size=5 must divide batch_size=64"),
        (lambda: grid(64, step_size=0), "step_size=0 must be above 0"),
    ],
)
def test_bad_candidates_are_refused(make, message):
    with pytest.raises(mbsim.InvalidArgument, match="^" + message):
        make()


def test_the_quantile_is_between_the_order_statistics_that_the_binomial_law_names():
    """Coverage of the 90 % point's interval, which the claim on races rests on."""
    draw = np.random.default_rng(0)
    missed = sum(
        math.log(10)
        not in statistics.quantile(draw.exponential(size=80), 0.9, false_positive_rate=0.05)
        for _ in range(2000)
    )
    assert 10 <= missed <= 130  # at most 5 % of 2000, and 3 standard deviations; not none
