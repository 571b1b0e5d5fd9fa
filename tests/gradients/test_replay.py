"""Training replayed in the Gram matrix, against the same training in vectors."""

import math

import numpy as np
import pytest
from heavy_gradients import RULES

import mbsim
from mbsim import SGD, InvalidArgument, MeasuredProblem, MicroBatchClipping, clipping
from mbsim._shared.seeds import seed_sequence, stream
from mbsim.gradients.replay import _Lane
from mbsim.statistics import difference

RNG = np.random.default_rng(0)
G = 0.3 + RNG.standard_normal((50, 12))
G[::8] *= 6
TARGET = np.full(12, 0.3)


def settings(**changes):
    return {
        "batch_size": 16, "step_size": 0.2, "steps": 30, "replicates": 64, "rng": 5,
    } | changes  # fmt: skip


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("b", [1, 4, 16])
def test_it_is_the_training_of_the_vectors(b, rule, replacement):
    """Examples with losses (L/2)‖w − c_i‖², trained in 12 dimensions on the same batches."""
    smoothness = 2.0
    measured = MeasuredProblem(G, target=TARGET, replacement=replacement, smoothness=smoothness)
    method = MicroBatchClipping(b, rule=rule)
    run = mbsim.simulate(measured, method, **settings(record_every=7))
    batches = _Lane(measured, method, 16, 0.2, stream(seed_sequence(5), 0))._batches()
    w, squares = np.zeros((64, 12)), []
    for _ in range(30):
        # Minima at −g_i/L and −g/L, for the gradients at 0 are those measured.
        held_out = smoothness * (w + TARGET / smoothness)
        squares.append(np.square(held_out).sum(axis=1))
        members = next(batches).reshape(64, 16)
        own = smoothness * (w[:, None] + G[members] / smoothness)
        w = w - 0.2 * clipping.update(own, b, rule)
    squares.append(np.square(smoothness * (w + TARGET / smoothness)).sum(axis=1))
    squares = np.transpose(squares)
    assert run.steps.tolist() == [0, 7, 14, 21, 28, 30]
    assert np.allclose(run.grad_norm_sq, squares[:, run.steps], rtol=1e-9, atol=1e-12)
    assert np.allclose(run.mean_grad_norm_sq, squares[:, :-1].mean(axis=1), rtol=1e-9)
    assert np.allclose(run.loss, run.grad_norm_sq / 4)
    assert np.allclose(run.final_w @ np.vstack([G, TARGET]), w, atol=1e-11)
    assert not run.diverged.any()
    assert not run.stalled.any()


def test_one_step_has_the_drift_that_is_stated():
    """E‖v‖² after a step is r² − 2ηL r A + η²L² M: the drift at the r of the target."""
    measured = MeasuredProblem(G, target=TARGET)
    method, r = MicroBatchClipping(4), measured.target_norm
    run = mbsim.simulate(measured, method, **settings(steps=1, replicates=4096))
    drift = mbsim.drift(measured, method, batch_size=16)
    partitions, _ = drift.source.errors(r)
    found = drift.at(r)
    expected = r**2 - 0.4 * r * found.progress + 0.04 * found.second_moment
    slack = 6 * math.hypot(0.4 * r * partitions[0], 0.04 * partitions[1])
    # Wrong once in a million times.
    interval = difference(run.grad_norm_sq[:, 1], np.full(4096, expected), false_positive_rate=1e-6)
    assert interval.low - slack <= 0 <= interval.high + slack
    assert interval.high - interval.low < 0.1 * expected


def test_batches_belong_to_the_seed():
    measured = MeasuredProblem(G, target=TARGET)
    few = mbsim.simulate(measured, MicroBatchClipping(4), **settings(replicates=3))
    many = mbsim.simulate(measured, MicroBatchClipping(4), **settings(replicates=70))
    assert (many.grad_norm_sq[:3] == few.grad_norm_sq).all()
    other = mbsim.simulate(measured, MicroBatchClipping(4), **settings(replicates=3, rng=6))
    assert (other.grad_norm_sq[:, 1:] != few.grad_norm_sq[:, 1:]).all()
    one, same = (
        mbsim.simulate(measured, way, **settings()) for way in (SGD(), MicroBatchClipping(16))
    )
    assert (one.grad_norm_sq == same.grad_norm_sq).all()  # the same batches


def test_divergence_is_recorded():
    measured = MeasuredProblem(G, target=TARGET)
    run = mbsim.simulate(measured, SGD(), **settings(step_size=5.0))
    assert run.diverged.all()
    for replicate, at in enumerate(run.diverged_at):
        assert np.isnan(run.grad_norm_sq[replicate, at:]).all()
        assert np.isfinite(run.grad_norm_sq[replicate, :at]).all()
    assert np.isnan(run.mean_grad_norm_sq).all()
    assert np.isnan(run.final_w).all()


def test_a_stall_is_recorded():
    """Where all but one are fitted, some micro-batch has length 0 in the first step."""
    one = np.zeros((50, 3))
    one[4, 0] = 1.0
    measured = MeasuredProblem(one, target=[1.0, 0.0, 0.0])
    run = mbsim.simulate(measured, MicroBatchClipping(1), **settings())
    assert (run.stalled_at == 0).all()
    assert (run.grad_norm_sq == 1).all()


def test_the_step_size_may_be_tuned():
    measured = MeasuredProblem(G, target=TARGET)
    clip = MicroBatchClipping(4)
    run = mbsim.simulate(measured, clip, **settings(step_size="tuned"))
    expected = mbsim.drift(measured, clip, batch_size=16, rng=5).tuned_step_size(steps=30)
    assert run.step_size == expected
    assert run.engine == "gram"
    assert "engine gram" in repr(run)
    assert run.provenance["seed"] == [5, []]


def test_a_run_is_saved_and_loaded(tmp_path):
    run = mbsim.simulate(MeasuredProblem(G, target=TARGET), mbsim.SGD(), **settings())
    run.save(tmp_path / "run.npz")
    same = mbsim.Run.load(tmp_path / "run.npz")
    assert same == run
    assert (same.problem, same.engine) == (None, "gram")


BAD = [
    ("batch_size=64", {"batch_size": 64}),
    ("step_size=0", {"step_size": 0}),
    ("steps=0", {"steps": 0}),
    ("replicates=0", {"replicates": 0}),
    ("record_every=0", {"record_every": 0}),
    ("rng=-1", {"rng": -1}),
]


@pytest.mark.parametrize(("begins", "changes"), BAD)
def test_bad_input_is_one_line(begins, changes):
    with pytest.raises(InvalidArgument) as caught:
        mbsim.simulate(MeasuredProblem(G, target=TARGET), SGD(), **settings(**changes))
    assert str(caught.value).startswith(begins)
