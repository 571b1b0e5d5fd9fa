"""Sweet spots: every criterion against an independent computation, ties, ends, bad calls."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest

import mbsim
from mbsim.choosing.sweet_spot import CRITERIA
from mbsim.choosing.tuning import step_size_for
from mbsim.drifts.drift import drift
from mbsim.errors import InvalidArgument
from mbsim.sweeps import runner
from mbsim.theory import bias_bound, sgd_bound, tuned_step_size


def problem(noise=None, *, p=0.05, c=20.0, gamma=0.0, start=0.1, d=16):
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(d)),
        noise=noise or mbsim.noise.TwoPoint(sigma=1.0, rare=0.05),
        draggers=mbsim.Draggers(probability=p, norm_ratio=c, coherence=gamma),
        benign_dim=8,
        start=np.full(d, start),
    )


SETTINGS = {"batch_size": 16, "step_size": 0.02, "steps": 500}


# ------------------------------------------------------------------ what each criterion is


def test_the_bias_is_the_formula_at_every_divisor():
    found = mbsim.sweet_spot(problem(), batch_size=12, by="bias")
    sizes = np.array([1, 2, 3, 4, 6, 12])
    expected = bias_bound().evaluate(micro_batch_size=sizes, probability=0.05, sigma=1.0)
    assert list(found.curve) == sizes.tolist()
    assert list(found.curve.values()) == pytest.approx(expected, rel=1e-12)
    assert found.step_sizes == {}


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3])
def test_the_continuous_optimum_lies_beside_the_best_whole_size(p):
    """Between the neighbours of the best b of 1, …, 60: the closed bias has one minimum."""
    found = mbsim.sweet_spot(problem(p=p), batch_size=4, by="bias").continuous
    b = np.arange(1, 80)
    closed = bias_bound("closed").evaluate(micro_batch_size=b, probability=p, sigma=1.0)
    best = int(b[np.argmin(closed)])
    assert best - 1 < found < best + 1
    assert found == pytest.approx(1 / math.log(1 / (1 - p)) - 1, rel=1e-12)


def test_there_is_no_continuous_optimum_without_draggers():
    found = mbsim.sweet_spot(problem(p=0.0), batch_size=8, by="bias")
    assert found.continuous is None
    assert found.micro_batch_size == 8
    assert found.reason == "none inside: b = B"


def test_certificate_and_floor_are_those_of_the_drift():
    made = problem()
    certificates = mbsim.sweet_spot(made, **SETTINGS, by="certificate").curve
    floors = mbsim.sweet_spot(made, **SETTINGS, by="floor").curve
    for b in (1, 4, 16):
        one = drift(made, mbsim.MicroBatchClipping(b), batch_size=16)
        expected = one.certify(step_size=0.02, steps=500).value
        assert certificates[b] == pytest.approx(expected, rel=1e-9)
        assert floors[b] == pytest.approx(one.floor(step_size=0.02), rel=1e-9)


def test_the_bound_at_b_equal_to_the_batch_is_theorem_1():
    found = mbsim.sweet_spot(problem(), **SETTINGS, by="bound")
    expected = sgd_bound().evaluate(
        initial_gap=problem().initial_gap,
        smoothness=1,
        step_size=0.02,
        steps=500,
        batch_size=16,
        probability=0.05,
        norm_ratio=20,
        coherence=0,
        sigma=1,
    )
    assert found.curve[16] == pytest.approx(expected, rel=1e-12)
    assert all(value > mbsim.sweet_spot(problem(), **SETTINGS, by="certificate").curve[b]
               for b, value in found.curve.items() if b < 16)  # fmt: skip


def test_simulations_are_those_of_simulate_and_ties_are_statistical():
    made = problem(mbsim.noise.Gaussian(sigma=1.0), p=0.0)
    found = mbsim.sweet_spot(made, **SETTINGS, by="simulation", replicates=32, rng=3)
    # No draggers: SGD is ahead of b = 1 by far; what is close to it is tied.
    assert 16 in found.tied
    assert 1 not in found.tied
    again = mbsim.sweet_spot(made, **SETTINGS, by="simulation", replicates=32, rng=3)
    assert found == again
    other = mbsim.sweet_spot(made, **SETTINGS, by="simulation", replicates=32, rng=4)
    assert found.curve != other.curve


def test_a_store_goes_on_and_stops_when_it_knows_enough(tmp_path, monkeypatch):
    """Its means are those of simulate by the seed that is given, and near those without a store."""
    monkeypatch.setattr(runner, "sweep", partial(runner.sweep, executor=runner.Here()))
    made = problem(mbsim.noise.Gaussian(sigma=1.0), p=0.0)
    settings = {**SETTINGS, "steps": 100}
    how = {**settings, "by": "simulation", "rng": 3}
    path = tmp_path / "runs.sqlite"
    found = mbsim.sweet_spot(made, **how, store=path, replicates=32)
    run = mbsim.simulate(made, mbsim.MicroBatchClipping(4), **settings, replicates=32, rng=3)
    assert found.curve[4] == pytest.approx(run.mean("mean_grad_norm_sq"), rel=1e-12)
    assert 16 in found.tied
    assert 1 not in found.tied
    apart = mbsim.sweet_spot(made, **how, replicates=32)
    for b, (low, high) in found.intervals.items():
        assert low < apart.curve[b] < high
        assert low < found.curve[b] < high
    drawn = []
    draw = runner.draw
    monkeypatch.setattr(runner, "draw", lambda *call: drawn.append(call) or draw(*call))
    known = mbsim.sweet_spot(made, **how, store=path)
    assert len(drawn) >= 5
    for b, (low, high) in known.intervals.items():
        assert high - low < 0.06 * known.curve[b]  # 1.96 % at 95 % is at most 2.6 % at 99 %
    drawn.clear()
    assert mbsim.sweet_spot(made, **how, store=path) == known
    assert mbsim.sweet_spot(made, **how, store=path, replicates=32) == found
    assert not drawn
    wild = {**how, "step_size": 1e3, "store": path, "replicates": 4}
    assert "4 of 4 replicates diverged" in mbsim.sweet_spot(made, **wild).why_not[1]


def test_equal_sizes_are_tied_in_a_simulation():
    """Without noise and draggers every b takes the same steps."""
    quiet = problem(mbsim.noise.Gaussian(sigma=0.0), p=0.0)
    found = mbsim.sweet_spot(quiet, **SETTINGS, by="simulation", replicates=4, rng=0)
    assert found.tied == (1, 2, 4, 8, 16)


# ------------------------------------------------------------------ where the best lies


def test_interior_smallest_and_none_inside():
    skewed, symmetric = problem(), problem(mbsim.noise.Gaussian(sigma=1.0))
    settings = {"batch_size": 64, "step_size": 0.01, "by": "floor"}
    inside = mbsim.sweet_spot(skewed, **settings)
    assert (inside.micro_batch_size, inside.reason, inside.interior) == (16, "interior", True)
    smallest = mbsim.sweet_spot(symmetric, **settings)
    assert (smallest.micro_batch_size, smallest.reason) == (1, "smallest: b = 1")
    whole = mbsim.sweet_spot(problem(p=0.0), **settings)
    assert (whole.micro_batch_size, whole.reason) == (64, "none inside: b = B")
    assert not whole.interior


def test_too_large_a_step_size_has_no_best():
    settings = {"batch_size": 8, "step_size": 5.0, "steps": 10}
    found = mbsim.sweet_spot(problem(), **settings, by="certificate")
    assert found.micro_batch_size is None
    assert found.tied == ()
    assert "step size is too large" in found.reason
    assert set(found.why_not) == {1, 2, 4, 8}
    assert "no b of 8" in str(found)


def test_a_bias_too_large_for_a_float_is_no_obstacle():
    found = mbsim.sweet_spot(problem(p=0.9), batch_size=1024, by="bias")
    assert found.micro_batch_size == 1
    assert 1024 in found.why_not
    assert math.isinf(found.curve[1024])


def test_it_prints_everywhere():
    found = mbsim.sweet_spot(problem(), batch_size=16, by="bias")
    assert "b = 16 of 16" in str(found)
    assert "<table>" in found._repr_html_()
    assert found.to_dict()["curve"]["1"] == found.curve[1]


# ------------------------------------------------------------------ tuned step sizes


def test_sgd_is_tuned_by_theorem_1():
    made = problem(mbsim.noise.Gaussian(sigma=1.0), gamma=0.2)
    found = step_size_for(made, mbsim.SGD(), batch_size=32, step_size="tuned", steps=1000)
    expected = tuned_step_size(sgd_bound("sharper")).evaluate(
        initial_gap=made.initial_gap,
        smoothness=1,
        steps=1000,
        batch_size=32,
        probability=0.05,
        norm_ratio=20,
        coherence=0.2,
        sigma=1,
    )
    # The tuned bound is flat: a step size within 1 % of the best is as good to 1e-4.
    assert found == pytest.approx(expected, rel=0.01)


def test_simulate_and_compare_take_tuned_step_sizes():
    made, clip = problem(mbsim.noise.Gaussian(sigma=1.0)), mbsim.MicroBatchClipping(4)
    settings = {"batch_size": 16, "steps": 200, "replicates": 4, "rng": 0}
    run = mbsim.simulate(made, clip, step_size="tuned", **settings)
    tuned = step_size_for(made, clip, batch_size=16, step_size="tuned", steps=200)
    assert run.step_size == tuned
    assert run == mbsim.simulate(made, clip, step_size=tuned, **settings)
    both = mbsim.compare(made, [mbsim.SGD(), clip], step_size="tuned", **settings)
    assert both.runs[1].step_size == tuned
    assert both.runs[0].step_size != tuned
    assert f"η = {tuned:.3g}" in str(both)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnStudent(mbsim.noise.StudentT):
    """Student's noise by another name: its law is not known, so that it must be sampled."""


@pytest.mark.parametrize("rng", [5, np.random.SeedSequence(5, spawn_key=(1,))])
def test_one_seed_tunes_alike_everywhere(rng):
    """Noise of one's own is sampled, so its tuned step size depends on the seed."""
    made, clip = problem(OwnStudent(sigma=1.0, df=5.0)), mbsim.MicroBatchClipping(2)
    settings = {"batch_size": 8, "step_size": "tuned", "steps": 50}
    best = mbsim.sweet_spot(made, **settings, by="simulation", replicates=2, rng=rng)
    run = mbsim.simulate(made, clip, **settings, replicates=2, rng=rng)
    both = mbsim.compare(made, [mbsim.SGD(), clip], **settings, replicates=2, rng=rng)
    assert best.step_sizes[2] == run.step_size == both.runs[1].step_size
    assert run.step_size == step_size_for(made, clip, **settings, rng=rng)
    assert run.step_size != step_size_for(made, clip, **settings, rng=6)


def test_a_generator_is_advanced_once_tuned_or_not():
    made, clip = problem(mbsim.noise.Gaussian(sigma=1.0)), mbsim.MicroBatchClipping(2)
    settings = {"batch_size": 8, "steps": 50, "replicates": 2}
    one, other = (np.random.default_rng(3) for _ in range(2))
    tuned = mbsim.simulate(made, clip, step_size="tuned", rng=one, **settings)
    assert tuned == mbsim.simulate(made, clip, step_size=tuned.step_size, rng=other, **settings)
    assert one.random() == other.random()


def test_the_tuned_certificate_is_the_lowest_of_all_step_sizes():
    made = problem(start=0.5)
    tuned = mbsim.sweet_spot(made, batch_size=8, step_size="tuned", steps=300, by="certificate")
    for step_size in (0.003, 0.01, 0.03, 0.1, 0.3):
        settings = {"batch_size": 8, "step_size": step_size, "steps": 300}
        fixed = mbsim.sweet_spot(made, **settings, by="certificate")
        for b in (1, 2, 4, 8):
            # 1e-3: a certificate is allowed that much for the margins between its nodes.
            assert tuned.curve[b] <= fixed.curve[b] * (1 + 1e-3)


# ------------------------------------------------------------------ phase diagram


def test_the_phase_diagram_is_many_sweet_spots():
    settings = {"batch_size": 16, "step_size": 0.01, "by": "floor"}
    found = mbsim.phase_diagram(
        problem(), probabilities=[0.01, 0.1], norm_ratios=[1.0, 5.0, 20.0], **settings
    )
    assert found.micro_batch_size.shape == (2, 3)
    for i, p in enumerate((0.01, 0.1)):
        for j, c in enumerate((1.0, 5.0, 20.0)):
            one = mbsim.sweet_spot(problem(p=p, c=c), **settings)
            assert found.micro_batch_size[i, j] == one.micro_batch_size
            assert found.interior[i, j] == one.interior
    labelled = found.to_xarray()
    assert (
        labelled.micro_batch_size.sel(probability=0.1, norm_ratio=20.0)
        == (found.micro_batch_size[1, 2])
    )


# ------------------------------------------------------------------ where runs end


LEVELS = {
    "final": lambda run: run.grad_norm_sq[:, -1],
    "average": lambda run: run.mean_grad_norm_sq,
}


def exhaustive(made, batch, steps):
    """For each b the lowest mean level over a fine grid of step sizes, from runs of their own."""
    lowest = {name: {} for name in LEVELS}
    for b in (b for b in range(1, batch + 1) if batch % b == 0):
        runs = [
            mbsim.simulate(
                made, mbsim.MicroBatchClipping(b), batch_size=batch, step_size=step_size,
                steps=steps, replicates=64, record_every=steps, rng=99,
            )
            for step_size in np.geomspace(3e-3, 3, 24)
        ]  # fmt: skip
        for name, level in LEVELS.items():
            lowest[name][b] = np.nanmin([level(run).mean() for run in runs])
    return lowest


@pytest.mark.parametrize(
    "made",
    [
        problem(start=0.5),
        problem(mbsim.noise.Gaussian(sigma=1.0), start=0.5),
        problem(mbsim.noise.Exponential(sigma=1.0), p=0.02, c=40.0, start=0.5),
        problem(mbsim.noise.StudentT(sigma=1.0), p=0.0, c=0.0, start=0.5),
        problem(p=0.0, c=0.0, start=0.5),
    ],
    ids=["two-point", "Gaussian", "exponential", "Student", "none"],
)
def test_the_answer_ends_as_low_as_an_exhaustive_search(made):
    every = exhaustive(made, 16, 300)
    for by in LEVELS:
        found = mbsim.sweet_spot(made, batch_size=16, steps=300, by=by)
        truth, best, answer = every[by], found.micro_batch_size, found.answer
        # Regret, by the other runs: the means of 64 replicates have errors of some 4 %.
        assert truth[best] <= 1.1 * min(truth.values())
        assert found.curve[best] == pytest.approx(truth[best], rel=0.2)
        assert answer.gain.low / 1.2 <= truth[16] / truth[best] <= answer.gain.high * 1.2
        assert (answer.micro_batch_size, answer.tied) == (best, found.tied)
        assert answer.clips == (16 not in found.tied)


def test_the_answer_prints_what_it_rests_on():
    found = mbsim.sweet_spot(problem(start=0.5), batch_size=64, steps=400)
    card = " ".join(str(found).split())
    for part in (
        "Which micro-batch size ends lowest after 400 steps, each at its own best step size?",
        "SGD ends",
        "times as high",
        "draggers make 95% of the variance",
        "327 runs for each of b =",
        "E‖∇L‖² at the end",
        "step size",
    ):
        assert part in card, part
    plain = mbsim.sweet_spot(problem(mbsim.noise.Gaussian(), p=0, c=0), batch_size=8, steps=100)
    assert not plain.answer.clips
    assert "do not clip" in str(plain)
    assert plain.to_dict()["answer"]["clips"] is False


def test_one_step_size_for_all_looks_at_every_b():
    found = mbsim.sweet_spot(problem(start=0.5), batch_size=16, steps=100, step_size=0.1)
    assert set(found.curve) == set(found.step_sizes) == {1, 2, 4, 8, 16}
    assert set(found.step_sizes.values()) == {0.1}
    assert not found.why_not
    assert "all at one step size" in str(found)


def test_a_step_size_at_which_all_diverge_has_no_answer():
    found = mbsim.sweet_spot(
        problem(mbsim.noise.Gaussian()), batch_size=4, steps=3000, step_size=3.0
    )
    assert found.micro_batch_size is None
    assert found.answer is None
    assert "replicates diverged" in found.reason
    assert "usable is η below" in found.reason


# ------------------------------------------------------------------ bad calls


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"by": "best"},
            "by='best' must be one of final, average, bias, bound, certificate, floor",
        ),
        ({"by": None}, "by=None must be one of"),
        ({"step_size": None, "by": "floor"}, "step_size must be given for by='floor'"),
        ({"steps": None}, "steps must be given for by='final'"),
        ({"steps": None, "by": "average"}, "steps must be given for by='average'"),
        ({"replicates": 1}, "replicates=1 must be an integer of at least 2"),
        ({"by": "floor", "steps": None, "step_size": "tuned"}, "steps must be given"),
        ({"step_size": "best"}, "step_size='best' must be a number or 'tuned'"),
        ({"step_size": -1.0}, "step_size=-1.0 must be above 0"),
        ({"step_size": math.nan}, "step_size=nan must be finite"),
        ({"by": "simulation"}, "replicates must be given for by='simulation'"),
        ({"by": "simulation", "replicates": 4}, "rng must be given for by='simulation'"),
        ({"by": "simulation", "replicates": 1, "rng": 0}, "replicates=1 must be an integer of at"),
        ({"by": "floor", "store": "x"}, "store='x' must be left out but for by='simulation'"),
        ({"by": "simulation", "rng": 1, "store": "x", "step_size": "tuned"}, "store='x' must be"),
        ({"by": "simulation", "rng": 1.5, "store": "x"}, "rng=1.5 must be"),
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"steps": 2.5}, "steps=2.5 must be an integer of at least 1"),
        ({"problem": "easy"}, "problem='easy' must be a mbsim.Problem"),
    ],
)
def test_bad_calls(changes, says):
    call = {"problem": problem(), **SETTINGS, **changes}
    with pytest.raises(InvalidArgument) as caught:
        mbsim.sweet_spot(call.pop("problem"), **call)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["probabilities", "norm_ratios"])
def test_bad_axes(name):
    axes = {"probabilities": [0.1], "norm_ratios": [1.0], name: []}
    with pytest.raises(InvalidArgument, match=name):
        mbsim.phase_diagram(problem(), **axes, batch_size=4, by="bias")


@dataclasses.dataclass(frozen=True)
class WholeVectors:
    """Noise that draws vectors: no law of its means is known."""

    sigma: float = 1.0

    def vectors(self, shape, benign_dim, rng):
        return rng.standard_normal((*shape, benign_dim)) / math.sqrt(benign_dim)


def test_noise_without_a_law_is_simulated_and_else_refused():
    made = problem(WholeVectors())
    with pytest.raises(InvalidArgument, match="draws whole vectors"):
        mbsim.sweet_spot(made, batch_size=4, step_size=0.1, steps=10, by="certificate")
    searched = mbsim.sweet_spot(made, batch_size=4, steps=10)
    assert set(searched.step_sizes) == {1, 2, 4}  # no drift says where to look: everywhere
    found = mbsim.sweet_spot(
        made, batch_size=4, step_size=0.1, steps=10, by="simulation", replicates=4, rng=0
    )
    assert found.micro_batch_size in (1, 2, 4)


def test_every_criterion_is_deterministic():
    for by in CRITERIA:
        more = {"rng": 7, **({"replicates": 4} if by in ("final", "average", "simulation") else {})}
        first, second = (mbsim.sweet_spot(problem(), **SETTINGS, by=by, **more) for _ in range(2))
        assert first == second


# ------------------------------------------------------------------ measured gradients


@pytest.fixture(scope="module")
def measured():
    gradients = 0.2 + np.random.default_rng(0).standard_normal((200, 8))
    gradients[::10] *= 6
    return mbsim.MeasuredProblem(gradients, target=np.full(8, 0.2))


def test_measured_gradients_are_advised_on(measured):
    found = mbsim.sweet_spot(measured, batch_size=8, steps=50, rng=3)
    advice = mbsim.advise(measured, batch_size=8, steps=50, rng=3)
    assert found.answer == advice.answer
    assert (found.micro_batch_size, found.tied) == (advice.micro_batch_size, advice.tied)
    assert found.curve == {b: level.estimate**2 for b, level in advice.curve.items()}
    for row in advice.rows[:4]:
        assert found.step_sizes[row.micro_batch_size] == row.step_size


@pytest.mark.parametrize("by", ["floor", "certificate"])
def test_measured_gradients_have_a_drift_like_any_other(measured, by):
    found = mbsim.sweet_spot(measured, batch_size=8, step_size=0.01, steps=50, by=by)
    for b, value in found.curve.items():
        one = mbsim.drift(measured, mbsim.MicroBatchClipping(b), batch_size=8)
        floor, bound = one.floor(step_size=0.01), one.certify(step_size=0.01, steps=50)
        assert value == (floor if by == "floor" else bound.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"by": "bias"}, "by='bias' must be one of final, certificate, floor"),
        ({"by": "average", "steps": 9}, "by='average' must be one of final"),
        ({"steps": 9, "step_size": 0.1}, "step_size=0.1 must be left out"),
        ({"steps": 9, "replicates": 4}, "replicates=4 must be left out"),
        ({"batch_size": 400, "steps": 9}, "batch_size=400 must be at most"),
    ],
)
def test_what_measured_gradients_cannot_be_asked(measured, settings, words):
    with pytest.raises(mbsim.InvalidArgument, match=words):
        mbsim.sweet_spot(measured, **{"batch_size": 8} | settings)


@pytest.mark.parametrize(("probability", "descends"), [(0.1, True), (0.45, False)])
def test_the_reason_says_where_tilted_draggers_stop_sgd(probability, descends):
    """The level of Theorem 7 in words, and the same by the exact drift with a short step."""
    problem = mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(8)),
        noise=mbsim.noise.Gaussian(sigma=1.0),
        draggers=mbsim.Draggers(probability=probability, norm_ratio=3.0, tilt=-0.4),
        benign_dim=4,
        start=np.ones(8),
    )
    found = mbsim.sweet_spot(problem, batch_size=8, steps=50, replicates=8).answer.reason
    floor = mbsim.drift(problem, mbsim.SGD(), batch_size=8).floor(step_size=1e-6)
    assert np.isfinite(floor) == descends
    said = f"stops SGD at a norm of {floor:.3g}" if descends else "SGD never descends"
    assert said in found
