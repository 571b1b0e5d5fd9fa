"""simulate: the same numbers however they are computed, what is recorded, files, interruption."""

import dataclasses
import io
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import processes
import pytest

import mbsim
from mbsim import (
    SGD,
    Draggers,
    InvalidArgument,
    MicroBatchClipping,
    Problem,
    Run,
    clipping,
)
from mbsim._shared import progress as _progress
from mbsim.problems.losses import LogCosh, Quadratic, Ripple
from mbsim.problems.noise import Exponential, Gaussian, StudentT, TwoPoint
from mbsim.simulation import exact_law, reference

ENGINES = ("reference", "exact_law")
ARRAYS = ("grad_norm_sq", "loss", "final_w", "mean_grad_norm_sq", "diverged_at", "stalled_at")


def problem(**changes):
    return Problem(
        **{
            "loss": Quadratic(np.geomspace(0.1, 1, 8)),
            "noise": TwoPoint(sigma=1.0, rare=0.2, isotropic_share=0.5),
            "draggers": Draggers(probability=0.2, norm_ratio=5.0, coherence=0.3),
            "benign_dim": 4,
            "start": np.ones(8),
        }
        | changes
    )


def simulate(whole=None, method=None, **changes):
    arguments = {"batch_size": 6, "step_size": 0.1, "steps": 12, "replicates": 200, "rng": 5}
    method = MicroBatchClipping(2) if method is None else method
    return mbsim.simulate(problem() if whole is None else whole, method, **arguments | changes)


def same(one, other, rows=slice(None)):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name)[rows], name)


# ------------------------------------------------------------------------- to the bit


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(params=[*ENGINES, "lanes"])
def how(request):
    """Each engine, and the fast one with a loss that NumPy evaluates for a lane at a time."""
    by_lanes = request.param == "lanes"
    whole = problem(loss=OwnLoss()) if by_lanes else problem()
    return {"whole": whole, "engine": "exact_law" if by_lanes else request.param}


@pytest.fixture(params=[64, 5, 1])
def replicates(request, how, monkeypatch):
    """Three lanes and a bit: of 64 replicates, or of fewer, as where a step is very large."""
    width = request.param
    if width < 64:
        numbers = exact_law._numbers_per_step(problem(), 3)
        monkeypatch.setattr(exact_law, "_LANE_NUMBERS", width * numbers)
        monkeypatch.setattr(reference, "_LANE_NUMBERS", width * 6 * 8)
    kind = exact_law.ExactLaw if how["engine"] == "exact_law" else reference.Reference
    width = kind.lane_width(problem(), 6, 3)
    assert width == request.param
    return 3 * width + 2


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_no_digit(how, replicates, threads):
    one = simulate(**how, replicates=replicates, threads=1)
    same(one, simulate(**how, replicates=replicates, threads=threads))


def test_more_replicates_never_change_old_ones(how, replicates):
    whole, lane = simulate(**how, replicates=replicates), replicates // 3
    for fewer in {1, lane, lane + 1, replicates - 1}:
        same(simulate(**how, replicates=fewer), whole, slice(fewer))


def test_the_order_of_adding_up_micro_batches_is_fixed(how, monkeypatch):
    """NumPy adds a run of numbers that lies alone in memory in another order than several side by
    side: narrow lanes of many micro-batches must give the same bits one by one and together."""
    numbers = exact_law._numbers_per_step(problem(), 16)
    monkeypatch.setattr(exact_law, "_LANE_NUMBERS", numbers)
    width = exact_law.ExactLaw.lane_width(problem(), 32, 16)
    for threads in (1, 8):
        together = simulate(**how, batch_size=32, threads=threads, replicates=9 * width)
        same(simulate(**how, batch_size=32, replicates=width), together, slice(width))


def test_more_steps_never_change_earlier_ones(how):
    long = simulate(**how, steps=40)
    for steps in (1, 2, 3, 7, 8, 31):
        short = simulate(**how, steps=steps)
        np.testing.assert_array_equal(short.grad_norm_sq, long.grad_norm_sq[:, : steps + 1])
        np.testing.assert_array_equal(short.loss, long.loss[:, : steps + 1])


def test_what_runs_before_it_changes_no_digit(how, monkeypatch):
    """However long the pieces are in which compiled code is left and entered again."""
    one = simulate(**how, steps=200)
    monkeypatch.setattr(exact_law, "_SECONDS", 0.0)
    same(one, simulate(**how, steps=200))


def test_lanes_of_many_sorts_of_numbers_fit_together(engine):
    """So many draggers that some lanes hold no benign example at all, in their first step."""
    crowded = problem(draggers=Draggers(probability=0.999, norm_ratio=2.0))
    one = simulate(crowded, MicroBatchClipping(3), engine=engine, replicates=600, threads=1)
    other = simulate(crowded, MicroBatchClipping(3), engine=engine, replicates=600, threads=3)
    same(one, other)


def test_the_same_seed_in_any_form():
    by_int = simulate(rng=5)
    same(by_int, simulate(rng=np.random.SeedSequence(5)))
    same(by_int, simulate(rng=np.int64(5)))
    entropy, key = by_int.seed
    same(by_int, simulate(rng=np.random.SeedSequence(entropy, spawn_key=key)))
    child = np.random.SeedSequence(5).spawn(2)[1]
    spawned = simulate(rng=child)
    assert spawned.seed == (5, (1,))
    assert not np.array_equal(spawned.final_w, by_int.final_w)


def test_a_generator_is_advanced():
    rng = np.random.default_rng(0)
    first, second = simulate(rng=rng), simulate(rng=rng)
    assert not np.array_equal(first.final_w, second.final_w)
    same(first, simulate(rng=np.random.default_rng(0)))
    entropy, key = first.seed
    same(first, simulate(rng=np.random.SeedSequence(entropy, spawn_key=key)))


def test_replicates_and_seeds_differ():
    run = simulate()
    assert len(np.unique(run.final_w[:, 0])) == run.replicates
    assert not np.isin(run.final_w[:, 0], simulate(rng=6).final_w[:, 0]).any()


def test_other_random_numbers_are_left_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate()
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


# ------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("every", [1, 2, 5, 12, 100])
def test_first_and_last_step_are_always_recorded(engine, every):
    full, sparse = simulate(engine=engine), simulate(engine=engine, record_every=every)
    assert sparse.steps.tolist() == sorted({*range(0, 13, every), 12})
    np.testing.assert_array_equal(sparse.grad_norm_sq, full.grad_norm_sq[:, sparse.steps])
    np.testing.assert_array_equal(sparse.loss, full.loss[:, sparse.steps])
    same(sparse, dataclasses.replace(full, grad_norm_sq=sparse.grad_norm_sq, loss=sparse.loss))


def test_the_mean_takes_every_step_but_the_last(engine):
    full = simulate(engine=engine)
    plain = full.grad_norm_sq[:, :-1].mean(axis=1)
    np.testing.assert_allclose(full.mean_grad_norm_sq, plain, rtol=1e-14)  # order of the sum
    sparse = simulate(engine=engine, record_every=12)
    np.testing.assert_array_equal(sparse.mean_grad_norm_sq, full.mean_grad_norm_sq)


@pytest.mark.parametrize("loss", [LogCosh(8), Ripple(8, 2.0)], ids=str)
def test_records_are_those_of_the_loss(engine, loss):
    run = simulate(problem(loss=loss), engine=engine)
    np.testing.assert_array_equal(run.final_w.shape, (200, 8))
    squares = np.square(loss.gradient(run.final_w)).sum(axis=1)
    for recorded, expected in (  # but for the order in which eight coordinates are added
        (run.loss[:, 0], loss.value(np.ones(8))),
        (run.loss[:, -1], loss.value(run.final_w)),
        (run.grad_norm_sq[:, -1], squares),
    ):
        np.testing.assert_allclose(recorded, expected, rtol=2e-15)


def test_without_noise_it_is_gradient_descent(engine):
    still = problem(noise=Gaussian(sigma=0.0), draggers=None)
    run = simulate(still, engine=engine, replicates=3)
    w = np.ones(8)
    for step in range(12):
        np.testing.assert_allclose(run.loss[:, step], still.loss.value(w), rtol=1e-13)
        w = w - 0.1 * still.loss.gradient(w)
    np.testing.assert_allclose(run.final_w, np.tile(w, (3, 1)), rtol=1e-13)  # roundings of a step


def test_the_reference_engine_pairs_methods():
    """The same examples from the same seed: with b = B clipping is SGD, to rounding."""
    sgd = simulate(method=SGD(), engine="reference")
    whole_batch = simulate(method=MicroBatchClipping(6), engine="reference")
    np.testing.assert_allclose(whole_batch.final_w, sgd.final_w, rtol=1e-12, atol=1e-13)
    split = simulate(method=MicroBatchClipping(2, rule=clipping.NoClipping()), engine="reference")
    # The means are added in another order, for 12 steps.
    np.testing.assert_allclose(split.final_w, sgd.final_w, rtol=1e-9, atol=1e-12)
    clipped = simulate(engine="reference")
    # By far more alike than independent runs: noise and draggers are shared.
    gaps = clipped.final_w - sgd.final_w
    independent = clipped.final_w - np.roll(sgd.final_w, 1, axis=0)
    assert np.square(gaps).sum() < 0.9 * np.square(independent).sum()


# ------------------------------------------------------------------------- divergence and stalls


def test_divergence_is_recorded_with_its_step_and_counted(engine):
    """SGD on ½‖w‖² with η = 3 doubles w at every step: the gap passes 10⁶ times its start at 10."""
    steep = problem(loss=Quadratic(np.ones(8)), noise=Gaussian(sigma=0.0), draggers=None)
    run = simulate(steep, SGD(), engine=engine, step_size=3.0, steps=15, replicates=5)
    assert run.diverged.all()
    np.testing.assert_array_equal(run.diverged_at, 10)  # 4⁹ < 10⁶ < 4¹⁰
    assert np.isfinite(run.loss[:, :10]).all()
    for array in (run.loss[:, 10:], run.grad_norm_sq[:, 10:], run.final_w, run.mean_grad_norm_sq):
        assert np.isnan(array).all()
    assert np.isnan(run.mean("loss")[10:]).all()
    assert np.isfinite(run.mean("loss")[:10]).all()
    assert "diverged" in str(run)


def test_one_diverged_replicate_is_not_dropped_and_leaves_the_others_alone(engine):
    # w₁ grows by −1.2 a step, in all replicates alike but for the noise they met on the way.
    steep = problem(loss=Quadratic([1.0, *[0.1] * 7]), draggers=None)
    run = simulate(steep, SGD(), engine=engine, step_size=2.2, steps=38, replicates=128)
    assert 0 < run.diverged.sum() < 128
    bad = run.diverged
    assert np.isnan(run.mean("mean_grad_norm_sq"))
    assert np.isnan(run.mean_grad_norm_sq[bad]).all()
    assert np.isfinite(run.loss[~bad]).all()
    for replicate in np.flatnonzero(bad):
        first = run.diverged_at[replicate]
        assert np.isnan(run.loss[replicate, first:]).all()
        assert np.isfinite(run.loss[replicate, :first]).all()
    assert f"{bad.sum()} of 128" in str(run)


@pytest.mark.parametrize("start", [0.0, 1e-6])
@pytest.mark.parametrize("noise", [Gaussian(), StudentT(df=3.0)], ids=str)
def test_noise_around_the_minimum_is_no_divergence(engine, noise, start):
    """η = 1.5 is stable for L = 1: from the minimum, the gap settles at η/(2 − η) σ²/2 = 1.5."""
    quiet = problem(loss=Quadratic(np.ones(8)), noise=noise, draggers=None, start=np.full(8, start))
    run = simulate(quiet, SGD(), engine=engine, batch_size=1, step_size=1.5, steps=100)
    assert not run.diverged.any()


def test_overflow_is_divergence_and_makes_no_warning(engine):
    run = simulate(engine=engine, step_size=1e300, replicates=3)
    assert run.diverged.all()
    assert (run.diverged_at == 1).all()


def test_an_infinite_loss_is_never_recorded(engine):
    """Also where 10⁶ times the start's gap is beyond the largest float."""
    far = problem(start=np.full(8, 3e151), noise=Gaussian(sigma=1.0), draggers=None)
    run = simulate(far, SGD(), engine=engine, step_size=1e10, replicates=3)
    assert run.diverged.all()
    assert not np.isinf(run.loss).any()


def test_stalls_are_recorded(engine):
    """Every example a dragger of length 0: ρ = 0, and nothing moves."""
    dead = problem(draggers=Draggers(probability=1.0, norm_ratio=0.0))
    run = simulate(dead, engine=engine, replicates=3)
    assert run.stalled.all()
    np.testing.assert_array_equal(run.stalled_at, 0)
    np.testing.assert_array_equal(run.final_w, np.ones((3, 8)))
    assert "stalled" in str(run)


@pytest.mark.parametrize(
    "rule", [clipping.FixedNorm(1.0), clipping.UnitNorm(), clipping.NoClipping()], ids=str
)
def test_only_what_stands_still_has_stalled(engine, rule):
    """A micro-batch of norm 0 stops no rule but the smallest norm."""
    half = problem(draggers=Draggers(probability=0.5, norm_ratio=0.0))
    run = simulate(half, MicroBatchClipping(1, rule=rule), engine=engine)
    moved = (np.diff(run.loss, axis=1) != 0).all(axis=1)
    assert moved.any()
    assert not (run.stalled & moved).any()


# ------------------------------------------------------------------------- the Run as an object


def test_nothing_in_a_run_can_be_changed():
    run = simulate()
    for name in (*ARRAYS, "steps"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(run, name)[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.loss = None


def test_equality_and_hash():
    one, other = simulate(), simulate()
    assert one == other
    assert hash(one) == hash(other)
    assert one != simulate(rng=6)
    assert one != simulate(steps=11)
    assert len({one, other}) == 1


def test_means_and_standard_errors():
    run = simulate()
    np.testing.assert_array_equal(run.mean("loss"), run.loss.mean(axis=0))
    expected = run.loss.std(axis=0, ddof=1) / np.sqrt(200)
    np.testing.assert_allclose(run.standard_error("loss"), expected, rtol=1e-14)
    alone = simulate(replicates=1)
    assert np.isnan(alone.standard_error("mean_grad_norm_sq"))
    assert np.isnan(alone.standard_error("loss")).all()
    assert "in one replicate" in str(alone)
    assert "nan" not in str(alone)


def test_runs_print_themselves():
    run = simulate(step_size=0.25)
    for text in (repr(run), run._repr_html_()):
        for part in ("clipping, b = 2", "step size 0.25", "200, 12 steps, engine exact_law", "±"):
            assert part in text


def test_to_xarray():
    run = simulate(record_every=5)
    data = run.to_xarray()
    assert data.sizes == {"replicate": 200, "step": 4, "coordinate": 8}
    np.testing.assert_array_equal(data["grad_norm_sq"].sel(step=10), run.grad_norm_sq[:, 2])
    np.testing.assert_array_equal(data["final_w"], run.final_w)
    assert '"Quadratic"' in data.attrs["provenance"]


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("noise", "method", "seed"),
    [
        (Gaussian(), SGD(), 3),
        (TwoPoint(rare=0.123456789), MicroBatchClipping(3, rule=clipping.UnitNorm(1e-3)), 2**100),
        (Exponential(isotropic_share=1 / 3), MicroBatchClipping(2), np.random.SeedSequence([1, 2])),
        (StudentT(df=3), MicroBatchClipping(2, rule=clipping.QuantileNorm(0.3)), np.int64(4)),
        (Gaussian(), MicroBatchClipping(1), np.random.default_rng(1)),
        (Gaussian(), MicroBatchClipping(1), np.random.SeedSequence(np.int64(5), spawn_key=(2, 7))),
    ],
    ids=str,
)
def test_save_and_load(tmp_path, noise, method, seed):
    run = simulate(problem(noise=noise), method, rng=seed, replicates=3)
    run.save(tmp_path / "run.npz")
    loaded = Run.load(tmp_path / "run.npz")
    assert loaded == run
    assert hash(loaded) == hash(run)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    entropy, key = loaded.seed
    again = simulate(
        loaded.problem,
        loaded.method,
        rng=np.random.SeedSequence(entropy, spawn_key=key),
        replicates=3,
    )
    same(again, run)


@pytest.mark.parametrize(
    "loss", [Quadratic([0.1, 1 / 3, 1, 1, 1, 1, 1, 1]), LogCosh(8), Ripple(8, 0.7)], ids=str
)
def test_every_loss_survives_the_file(tmp_path, loss):
    run = simulate(problem(loss=loss, draggers=None), replicates=2)
    run.save(str(tmp_path / "run"))
    assert Run.load(str(tmp_path / "run")) == run


def test_diverged_runs_survive_the_file(tmp_path):
    run = simulate(step_size=1e300, replicates=3, record_every=np.int64(4))
    run.save(tmp_path / "run")
    assert Run.load(tmp_path / "run") == run


@dataclasses.dataclass(frozen=True)
class OwnLoss:
    """A loss that mbsim does not know."""

    dim: int = 8
    smoothness: float = 1.0
    minimum: float = 0.0

    def value(self, w):
        return 0.5 * np.square(w).sum(axis=-1)

    def gradient(self, w):
        return 1.0 * w


@dataclasses.dataclass(frozen=True)
class Halve:
    def factors(self, norms):
        return np.full_like(norms, 0.5)


def test_classes_of_the_user_are_described_and_not_rebuilt(tmp_path):
    run = simulate(problem(loss=OwnLoss()), MicroBatchClipping(2, rule=Halve()), replicates=2)
    run.save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert loaded.problem is None
    assert loaded.method is None
    assert loaded.provenance == run.provenance
    assert loaded.provenance["problem"]["loss"]["repr"] == repr(OwnLoss())
    assert "Halve" in loaded.provenance["method"]["rule"]["foreign"]
    same(loaded, run)
    assert "Run" in str(loaded)
    partly = simulate(problem(loss=OwnLoss()), replicates=2)
    partly.save(tmp_path / "run")
    assert Run.load(tmp_path / "run").method == MicroBatchClipping(2)


def test_there_are_no_pickles_in_the_file(tmp_path):
    simulate(problem(loss=OwnLoss()), replicates=2).save(tmp_path / "run")
    with zipfile.ZipFile(tmp_path / "run") as file:
        for name in file.namelist():
            assert b"'descr': '|O'" not in file.read(name)[:128]
    with np.load(tmp_path / "run", allow_pickle=False) as file:
        for name in file.files:
            assert file[name].dtype.kind in "fiU"


def test_a_file_that_is_not_a_run(tmp_path):
    path = tmp_path / "file"
    makers = {
        "empty": lambda file: file.write(b""),
        "text": lambda file: file.write(b"hello"),
        "zip": lambda file: zipfile.ZipFile(file, "w").close(),
        "array": lambda file: np.save(file, np.ones(3)),
        "other arrays": lambda file: np.savez(file, meta=np.array("{}"), x=np.ones(3)),
        "not json": lambda file: np.savez(file, meta=np.array("{")),
        "a list": lambda file: np.savez(file, meta=np.array("[1]")),
        "pickles": lambda file: np.savez(file, meta=np.array([{}], dtype=object)),
    }
    for make in makers.values():
        with path.open("wb") as file:
            make(file)
        with pytest.raises(InvalidArgument, match=r"path=.*must be a file written by Run\.save"):
            Run.load(path)
    with pytest.raises(
        InvalidArgument, match=r"absent.* must be a file written by Run.save: No such"
    ):
        Run.load(tmp_path / "absent")


def test_a_damaged_file_is_refused_or_was_not_damaged_where_it_matters(tmp_path):
    run = simulate(replicates=2, steps=3)
    run.save(tmp_path / "run")
    whole = (tmp_path / "run").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            for place in rng.integers(len(whole), size=1 + trial % 4):
                damaged[place] ^= 1 << rng.integers(8)
        (tmp_path / "run").write_bytes(damaged)
        try:
            assert Run.load(tmp_path / "run") == run
        except InvalidArgument:
            refused += 1
    assert refused > 100


def test_a_file_that_names_a_class_of_its_own_is_refused(tmp_path):
    simulate(replicates=2).save(tmp_path / "run")
    with np.load(tmp_path / "run") as file:
        content = {name: file[name] for name in file.files}
    for old, new in (('"Quadratic"', '"Popen"'), ('"sigma": 1.0', '"sigma": -1.0')):
        meta = str(content["meta"])
        assert old in meta
        with (tmp_path / "run").open("wb") as file:
            np.savez(file, **content | {"meta": np.array(meta.replace(old, new))})
        with pytest.raises(InvalidArgument, match=r"Run\.save"):
            Run.load(tmp_path / "run")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    run = simulate(replicates=2)
    run.save(tmp_path / "run")
    before = (tmp_path / "run").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(InvalidArgument, match=r"path=.*must be a file .*: disk full"):
        simulate(replicates=3).save(tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# ------------------------------------------------------------------------- processes


INTERRUPTED = """
import threading, sys
import numpy as np, mbsim
problem = mbsim.Problem(
    loss=mbsim.losses.Quadratic(np.ones(64)), noise=mbsim.noise.{noise},
    draggers=mbsim.Draggers(probability={p}, norm_ratio=5.0), benign_dim=32, start=np.ones(64))
print("go", flush=True)
try:
    mbsim.simulate(problem, mbsim.MicroBatchClipping({b}), batch_size={B}, step_size=0.01,
                   steps=10**7, record_every=10**6, replicates=256, rng=0, engine="{engine}")
finally:
    print("threads left:", threading.active_count() - 1, flush=True)
"""

LONG = {
    "exact_law": {"noise": "Gaussian()", "p": 0.05, "b": 8, "B": 64, "engine": "exact_law"},
    "reference": {"noise": "Gaussian()", "p": 0.05, "b": 8, "B": 64, "engine": "reference"},
    "many draggers": {"noise": "Gaussian()", "p": 0.5, "b": 2048, "B": 2048, "engine": "exact_law"},
}


@pytest.mark.parametrize("case", LONG)
def test_ctrl_c_stops_promptly_with_nothing_left_running(case):
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(**LONG[case])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment(),
    ) as process:
        assert process.stdout.readline() == "go\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    # A fifth of a second for the main thread to wake, the block under way, and a loaded machine.
    assert time.monotonic() - began < 4
    assert out == "threads left: 0\n"
    assert err.strip().endswith("KeyboardInterrupt")
    assert process.returncode in (-signal.SIGINT, 130)


def test_ctrl_c_is_not_lost_while_code_is_compiled(tmp_path):
    code = INTERRUPTED.format(**LONG["exact_law"])
    environment = processes.environment() | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for wait in (0.3, 1.0, 2.0):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, env=environment
        ) as process:
            assert process.stdout.readline() == "go\n"
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
        assert out == "threads left: 0\n"
        assert err.strip().endswith("KeyboardInterrupt")
        assert process.returncode in (-signal.SIGINT, 130)


def test_nothing_on_standard_error_where_nobody_watches():
    code = """
import numpy as np, mbsim, mbsim._shared.progress
mbsim._shared.progress._PATIENCE = 0.0
problem = mbsim.Problem(loss=mbsim.losses.LogCosh(4), noise=mbsim.noise.Gaussian(), benign_dim=4,
                        start=np.ones(4))
print(mbsim.simulate(problem, mbsim.SGD(), batch_size=1, step_size=0.1, steps=4000, replicates=64,
                     rng=0).replicates)
"""
    assert processes.run(code) == ("64\n", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_on_a_terminal_after_a_while(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    simulate(replicates=3)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    simulate(replicates=3)
    assert "simulating" in sys.stderr.getvalue()


def test_a_loss_that_fails_stops_the_run():
    class Fails(OwnLoss):
        calls = 0

        def gradient(self, w):
            Fails.calls += 1
            if Fails.calls > 20:
                raise ZeroDivisionError("user's own")
            return 1.0 * w

    with pytest.raises(ZeroDivisionError, match="user's own"):
        simulate(problem(loss=Fails()), replicates=1000, steps=1000)


# ------------------------------------------------------------------------- memory


def beyond_its_arrays(call):
    """The peak of traced memory beyond the arrays of what the call returns, in GiB."""
    tracemalloc.start()
    try:
        run = call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrays = [v.nbytes for v in vars(run).values() if isinstance(v, np.ndarray)]
    return (peak - sum(arrays)) / 2**30


def test_a_million_replicates_of_which_means_and_ends_are_asked():
    tracemalloc.start()
    try:
        run = simulate(replicates=10**6, steps=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.final_w.shape == (10**6, 8)
    assert peak < 200e6


def test_what_does_not_fit_is_refused_beforehand_and_what_is_large_is_said(monkeypatch):
    from mbsim.simulation import run as module

    monkeypatch.setattr(module, "free_memory", lambda: 2**30)
    with pytest.raises(InvalidArgument, match=r"would return 7\.46 GiB, .*free of memory, 1 GiB"):
        simulate(replicates=10**5, steps=5000)
    monkeypatch.setattr(module, "_LARGE", 0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    simulate(replicates=3)
    assert "GiB of results" in sys.stderr.getvalue()


SIZES = {
    "m = 2^19": {"d": 64, "B": 2**19, "b": 1, "replicates": 4},
    "d = 2^16": {"d": 2**16, "B": 8, "b": 2, "replicates": 128},
    "B d = 2^25": {"d": 1024, "B": 2**15, "b": 1, "replicates": 2, "engine": "reference"},
}


@pytest.mark.parametrize("size", SIZES)
def test_memory_beyond_the_arrays_stays_below_one_gib(size):
    sizes = dict(SIZES[size])
    d, b = sizes.pop("d"), sizes.pop("b")
    large = problem(
        loss=Quadratic(np.ones(d)), start=np.ones(d), benign_dim=d // 2, noise=Gaussian()
    )
    # Four threads, whatever this machine has: a bound that holds only on small ones is none.
    try:
        used = beyond_its_arrays(
            lambda: simulate(
                large, MicroBatchClipping(b), batch_size=sizes.pop("B"), steps=1, threads=4, **sizes
            )
        )
    except InvalidArgument as refusal:
        assert "at most" in str(refusal)  # noqa: PT017
        return
    assert used < 1.0
