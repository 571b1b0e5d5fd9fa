"""Grids: what they say of themselves, and every way to write one wrongly."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import sweeping
from hypothesis import given
from hypothesis import strategies as st

import mbsim
from mbsim.errors import InvalidArgument
from mbsim.simulation.run import simulate
from mbsim.sweeps import grid as grids
from mbsim.sweeps.grid import Grid, arguments

FORM = """
seed = 0
replicates = 256
[problem]
loss = {kind = "Quadratic", eigenvalues = [1.0, 0.5, 0.25, 0.1]}
noise = {kind = "Gaussian", sigma = 1.0}
benign_dim = 2
start = [1.0, 1.0, 1.0, 1.0]
[method]
batch_size = 64
steps = 1000
[axes]
probability = [0.01, 0.05]
norm_ratio = [10.0, 50.0]
micro_batch_size = [1, 8, 64]
step_size = [0.05]
"""


def from_text(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Grid.from_toml(path)


def test_a_file_and_python_say_the_same(tmp_path):
    grid = from_text(tmp_path, FORM)
    by_objects = Grid(
        problem={
            "loss": mbsim.losses.Quadratic([1, 0.5, 0.25, 0.1]),
            "noise": mbsim.noise.Gaussian(),
            "draggers": {"tilt": -0.0},
            "benign_dim": 2,
            "start": np.ones(4),
        },
        method={"batch_size": 64, "steps": 1000, "engine": "auto", "record_every": None},
        axes={
            "probability": np.array([0.01, 0.05]),
            "norm_ratio": [10, 50],
            "micro_batch_size": (1, 8, 64),
            "step_size": [0.05],
        },
        replicates=256,
    )
    assert [cell.identity for cell in grid] == [cell.identity for cell in by_objects]
    assert len({cell.identity for cell in grid}) == len(grid) == 12
    assert Grid.from_plain(json.loads(json.dumps(grid.to_plain()))) == grid
    assert pickle.loads(pickle.dumps(grid)) == grid


def test_a_cell_is_what_simulate_is_called_with(tmp_path):
    """Against a call that is written out."""
    grid = from_text(tmp_path, FORM)
    cell = [c for c in grid if list(grid.coordinates(c).values()) == [0.05, 10.0, 8, 0.05]]
    run = simulate(**arguments(cell[0].description), replicates=3)
    problem = mbsim.Problem(
        loss=mbsim.losses.Quadratic([1, 0.5, 0.25, 0.1]),
        noise=mbsim.noise.Gaussian(sigma=1.0),
        draggers=mbsim.Draggers(probability=0.05, norm_ratio=10.0),
        benign_dim=2,
        start=np.ones(4),
    )
    other = mbsim.simulate(
        problem, mbsim.MicroBatchClipping(8), batch_size=64, step_size=0.05, steps=1000,
        replicates=3, rng=0, record_every=62,
    )  # fmt: skip
    assert np.array_equal(run.loss, other.loss)
    assert run.provenance == other.provenance


@pytest.mark.parametrize("engine", ["exact_law", "reference"])
@pytest.mark.parametrize(("batch", "size"), [(64, 8), (2**16, 2**10)])
def test_later_replicates_are_those_of_a_longer_run(engine, batch, size):
    """Also where lanes are narrower than 64, and for a law that is not compiled."""

    class Twice:
        sigma = 2.0

        def mean_of(self, counts, n, rng):
            mean, deviation = mbsim.noise.Gaussian(sigma=2.0).mean_of(counts, n, rng)
            return mean, deviation

    for law in (mbsim.noise.Gaussian(sigma=2.0), Twice()):
        problem = mbsim.Problem(
            loss=mbsim.losses.LogCosh(4), noise=law, benign_dim=2, start=np.ones(4)
        )
        settings = {"batch_size": batch, "step_size": 0.1, "steps": 2, "rng": 3, "engine": engine}
        method = mbsim.MicroBatchClipping(size)
        whole = simulate(problem, method, replicates=72, **settings)
        for first in (0, 1, 50, 64):
            part = simulate(problem, method, replicates=8, first=first, **settings)
            for name in ("loss", "grad_norm_sq", "final_w", "mean_grad_norm_sq"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)[first : first + 8])


def test_whatever_decides_the_numbers_decides_who_a_cell_is(monkeypatch):
    grid = sweeping.FEW
    names = [cell.identity for cell in grid]
    for changed in (
        replace(grid, seed=1),
        replace(grid, method={**grid.method, "steps": 41}),
        replace(grid, method={**grid.method, "rule": {"kind": "UnitNorm"}}),
        replace(grid, problem={**grid.problem, "probability": 0.1}),
    ):
        assert not {*names} & {cell.identity for cell in changed}
    for same in (
        replace(grid, replicates=7),
        replace(grid, replicates=None, relative_standard_error=0.1),
        replace(grid, problem={**grid.problem, "probability": 0}),
    ):
        assert names == [cell.identity for cell in same]
    more = replace(grid, axes={"coherence": [0.0, 0.5], "micro_batch_size": [16, 2, 1, 4]})
    assert {*names} < {cell.identity for cell in more}
    monkeypatch.setattr(grids, "LAW", 2)
    assert not {*names} & {cell.identity for cell in grid}


def test_a_seed_gives_the_numbers_of_this_version_of_the_law():
    """If these have changed on purpose, the law has: add 1 to LAW in simulation/run.py."""
    found = [
        simulate(**arguments(cell.description), replicates=64).mean_grad_norm_sq.mean()
        for cell in sweeping.FEW
    ]
    assert grids.LAW == 1
    # Rounded: another machine's last digits may be others.
    assert np.allclose(found, [0.884261, 0.571112, 0.411196], rtol=0, atol=6e-7)


CHANGES = {
    "not TOML": (FORM, "seed = "),
    "not UTF-8": (FORM, b"\xff\xfe"),
    "deep": (FORM, "a = " + "[" * 100_000),
    "unknown table": ("[axes]", "[axis]"),
    "unknown name": ("benign_dim", "bening_dim"),
    "unknown axis": ("norm_ratio", "norm_ration"),
    "unknown name in the method": ("batch_size = 64", "batchsize = 64"),
    "unknown kind": ('"Gaussian"', '"Gausian"'),
    "unknown field of a kind": ("sigma = 1.0", "sgima = 1.0"),
    "a kind that is no loss": ('"Quadratic"', '"Draggers"'),
    "a kind without its field": (", eigenvalues = [1.0, 0.5, 0.25, 0.1]", ""),
    "a kind that is a number": ('"Gaussian"', "7"),
    "no kind": ('kind = "Gaussian", ', ""),
    "wrong type": ("benign_dim = 2", 'benign_dim = "2"'),
    "a date": ("benign_dim = 2", "benign_dim = 1979-05-27"),
    "not a number": ("[0.01, 0.05]", "[nan]"),
    "out of range": ("[0.01, 0.05]", "[0.01, 1.5]"),
    "no list": ("[0.01, 0.05]", "0.01"),
    "no values": ("[0.01, 0.05]", "[]"),
    "a value twice": ("[0.01, 0.05]", "[0.5, 0.5]"),
    "fixed and an axis": ("steps = 1000", "steps = 1000\nstep_size = 0.1"),
    "missing": ("steps = 1000", ""),
    "no number of replicates": ("replicates = 256", ""),
    "both": ("replicates = 256", "replicates = 256\nrelative_standard_error = 0.1"),
    "cap alone": ("replicates = 256", "replicates = 256\ncap = 1000"),
    "no replicates": ("replicates = 256", "replicates = 0"),
    "replicates without end": ("replicates = 256", f"replicates = {10**15}"),
    "a cap without end": ("replicates = 256", f"relative_standard_error = 0.1\ncap = {10**15}"),
    "negative seed": ("seed = 0", "seed = -1"),
    "huge seed": ("seed = 0", f"seed = {10**40}"),
    "problem is no table": ("[problem]\n", "problem = 3\n[other]\n"),
    "wrong in every cell": ("benign_dim = 2", "benign_dim = 9"),
    "ragged start": ("start = [1.0, 1.0,", "start = [[1.0], 1.0,"),
    "too many cells": ("[0.01, 0.05]", str([i / 1e5 for i in range(10**5)])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_is_said_in_a_line(tmp_path, name):
    old, new = CHANGES[name]
    text = FORM.replace(old, new, 1) if isinstance(new, str) and old != FORM else new
    if name == "too many cells":
        text = text.replace("[10.0, 50.0]", str([i / 10 for i in range(1000)]))
    with pytest.raises(InvalidArgument) as error:
        from_text(tmp_path, text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("bening_dim", "benign_dim"), ("norm_ration", "norm_ratio"), ("Gausian", "Gaussian")],
)
def test_an_unknown_name_is_told_with_the_nearest(tmp_path, wrong, meant):
    with pytest.raises(InvalidArgument, match=f"{wrong}'; the nearest known name is {meant}"):
        from_text(tmp_path, re.sub(meant, wrong, FORM, count=1))


def test_a_loss_of_ones_own_is_refused():
    class Own(mbsim.losses.LogCosh):
        pass

    with pytest.raises(InvalidArgument, match="must be one of mbsim's own"):
        replace(sweeping.FEW, problem={**sweeping.FEW.problem, "loss": Own(4)})


def test_a_grid_does_not_change():
    with pytest.raises(TypeError):
        sweeping.FEW.axes["steps"] = (1,)
    with pytest.raises(AttributeError):
        sweeping.FEW.seed = 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
plain_grid = sweeping.FEW.to_plain()


@given(
    table=st.sampled_from(["problem", "method", "axes"]),
    name=st.sampled_from(grids._ALL),
    content=json_values,
)
def test_any_value_in_any_place_is_taken_or_refused_in_a_line(table, name, content):
    plain = json.loads(json.dumps(plain_grid))
    plain[table] = {**plain[table], name: [content] if table == "axes" else content}
    try:
        found = Grid.from_plain(plain)
    except InvalidArgument as error:
        said = str(error)
    else:
        said = found.to_plain()[table][name] and ""
    assert "\n" not in str(said)
