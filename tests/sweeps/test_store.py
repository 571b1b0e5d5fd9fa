"""The store: statistics that add, and a file that is whole whatever was done to it."""

import json
import math
import os
import shutil
import sqlite3
import threading
from dataclasses import replace

import numpy as np
import processes
import pytest
import sweeping
from hypothesis import given
from hypothesis import strategies as st

from mbsim.errors import InvalidArgument
from mbsim.simulation.run import simulate
from mbsim.sweeps import blocks, runner
from mbsim.sweeps.blocks import QUANTILES, condensed, together
from mbsim.sweeps.grid import arguments
from mbsim.sweeps.store import Store

FEW = sweeping.FEW


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete store of the small grid with three cells of two blocks."""
    path = tmp_path_factory.mktemp("store") / "results.sqlite"
    runner.sweep(FEW, path, executor=runner.Here())
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copy(whole, tmp_path / "copy.sqlite")


def run_of(cell, **changed):
    return simulate(**{**arguments(cell.description), **changed})


def columns_of(run):
    return np.column_stack([run.grad_norm_sq, run.loss, run.mean_grad_norm_sq])


# ------------------------------------------------------------------------- statistics that add


def test_one_block_says_what_a_run_says_to_the_bit():
    run = run_of(next(iter(FEW)), replicates=100)
    found, records = together([condensed(run, 0)]), run.steps.size
    assert np.array_equal(found.mean[:records], run.mean("grad_norm_sq"))
    assert found.mean[-1] == run.mean("mean_grad_norm_sq")
    assert np.allclose(found.error[-1], run.standard_error("mean_grad_norm_sq"), rtol=1e-15)
    assert np.array_equal(found.steps, run.steps)


def test_blocks_together_say_what_one_long_run_says():
    cell = next(iter(FEW))
    parts = [condensed(run_of(cell, replicates=n, first=i), i) for i, n in ((0, 256), (256, 44))]
    run, found = run_of(cell, replicates=300), together(parts)
    columns = columns_of(run)
    # A few roundings in sums of 300 numbers.
    assert np.allclose(found.mean, columns.mean(0), rtol=1e-13)
    assert np.allclose(found.error, columns.std(0, ddof=1) / math.sqrt(300), rtol=1e-12, atol=1e-16)
    exact = np.quantile(columns, QUANTILES, axis=0, method="inverted_cdf")
    assert (np.abs(found.quantiles - exact) <= exact / 128).all()
    assert found.replicates == 300


def test_a_store_says_the_same_in_whatever_order_blocks_came(whole, tmp_path):
    path = tmp_path / "backwards.sqlite"
    with Store(whole) as there, Store(path, write=True) as store:
        store.add_grid(FEW)
        for cell in reversed([*FEW]):
            for block in reversed(there.blocks(cell.identity)):
                store.add(cell, block)
                store.add(cell, block)  # nothing twice
    assert sweeping.contents(path) == sweeping.contents(whole)


def test_sizes_near_the_ends_of_floats_add_too():
    cell = next(iter(FEW))
    for start in ([1e120] * 4, [1e-150] * 4):
        run = run_of(
            cell,
            replicates=40,
            problem=replace(arguments(cell.description)["problem"], start=start),
        )
        one, two = (together([condensed(run, i) for i in range(n)]) for n in (1, 2))
        assert np.allclose(one.mean, two.mean, rtol=1e-12)
        assert np.isfinite(two.error).all()
        assert (two.error[0] > 0) == (two.mean[0] > 0)


def test_what_diverges_is_unknown_in_means_and_beyond_all_in_quantiles():
    run = run_of(next(iter(FEW)), replicates=70, step_size=300.0)
    assert run.diverged.all()
    found = together([condensed(run, 0)])
    assert found.diverged == 70
    assert np.isnan(found.mean[-1])
    assert np.isinf(found.quantiles[:, -1]).all()
    assert np.isfinite(found.quantiles[:, 0]).all()


@given(st.floats(allow_nan=False, allow_subnormal=False))
def test_a_number_is_near_the_middle_of_its_bin(x):
    bits = np.array([x + 0.0]).view(np.int64)
    middle = blocks._middles(np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits) >> blocks._CUT)
    assert middle == x or abs(middle - x) <= abs(x) / 64
    assert math.isinf(x) or x == 0 or (middle > 0) == (x > 0)


# ------------------------------------------------------------------------- who holds it


def test_a_second_writer_is_told_who_is_there_or_waits(tmp_path):
    path = tmp_path / "results.sqlite"
    first = Store(path, write=True)
    with pytest.raises(InvalidArgument, match=f"is held by process {os.getpid()} on"):
        Store(path, write=True)
    Store(path).close()  # who reads need not wait
    timer = threading.Timer(0.3, first._lock.close)
    timer.start()
    Store(path, write=True, wait=30).close()
    timer.join()
    first.close()
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_leads_to_the_same_store(tmp_path):
    with Store(tmp_path / "results.sqlite", write=True):
        (tmp_path / "link").symlink_to("results.sqlite")
        with pytest.raises(InvalidArgument, match=f"is held by process {os.getpid()} on"):
            Store(tmp_path / "link", write=True)


@pytest.mark.parametrize("path", [None, 3, "x\0y", b"x"])
def test_what_is_no_path_is_refused(path):
    for write in (False, True):
        with pytest.raises(InvalidArgument, match=r"^store="):
            Store(path, write=write)


def test_a_record_is_known_by_all_that_decides_it(tmp_path):
    with Store(tmp_path / "x.sqlite", write=True) as store:
        store.add_record({"b": [1], "a": 2.0}, {"x": [math.inf, None]})
        store.add_record({"a": 2.0}, "other")
    with Store(tmp_path / "x.sqlite") as store:
        assert store.record({"a": 2.0, "b": [1]}) == {"x": [math.inf, None]}
        assert store.record({"a": 2.0, "b": [2]}) is None


def test_another_process_is_told_too_and_one_that_was_killed_holds_nothing(tmp_path):
    path = str(tmp_path / "results.sqlite")
    code = f"from mbsim.sweeps.store import Store\nStore({path!r}, write=True)\n"
    with Store(path, write=True):
        assert f"held by process {os.getpid()}" in processes.run(code)[1]
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    processes.run(code.replace("\nStore", "\nheld = Store") + kill)
    assert os.path.exists(f"{path}.lock")
    Store(path, write=True).close()


# ------------------------------------------------------------------------- versions


def of_version(path, version):
    """Take a store back to what an older mbsim wrote."""
    with sqlite3.connect(path) as connection:
        for table in ("failures", "records")[version - 1 :]:
            connection.execute(f"DROP TABLE {table}")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_store_is_migrated_and_a_newer_refused(whole, copy, version):
    of_version(copy, version)
    before = copy.read_bytes()
    with Store(copy) as store:  # as it would be
        assert store.results().complete
    assert copy.read_bytes() == before
    Store(copy, write=True).close()
    assert sweeping.contents(copy) == sweeping.contents(whole)

    with sqlite3.connect(copy) as connection:
        connection.execute("PRAGMA user_version = 4")
    connection.close()
    before = copy.read_bytes()
    for write in (False, True):
        with pytest.raises(InvalidArgument, match="version 4, and this mbsim knows up to 3"):
            Store(copy, write=write)
    assert copy.read_bytes() == before


# ------------------------------------------------------------------------- broken files


def other_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE blocks (identity TEXT)")
    connection.close()


def cut_to(share):
    def cut(path):
        os.truncate(path, int(share * path.stat().st_size))

    return cut


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("grid of results"),
        lambda path: path.write_bytes(b"\0" * 5000),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: (path.unlink(), other_database(path)),
        *map(cut_to, (0.01, 0.2, 0.5, 0.9, 0.999)),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_what_is_no_store_is_refused_and_left_alone(copy, damage, write):
    damage(copy)
    before = copy.read_bytes()
    with pytest.raises(
        InvalidArgument, match="must be a store of sweeps that can be used"
    ) as error:
        Store(copy, write=write)
    assert "\n" not in str(error.value)
    assert copy.read_bytes() == before
    assert [*copy.parent.iterdir()] == [copy]


def test_a_byte_that_has_changed_is_at_worst_a_line(copy):
    rng, whole = np.random.default_rng(0), copy.read_bytes()
    told = []
    for place in rng.integers(100, len(whole), 150):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        copy.write_bytes(content)
        try:
            with Store(copy) as store:
                json.dumps(store.results().to_dict())
        except InvalidArgument as error:
            told.append(str(error))
    assert len(told) > 5
    assert not any("\n" in line for line in told)


@pytest.mark.parametrize("path", ["/proc/results.sqlite", "/dev/null/results.sqlite", "{}/no/x"])
def test_a_place_that_cannot_be_written_to_is_refused(path, tmp_path):
    with pytest.raises(InvalidArgument, match="must be in a folder that can be written to"):
        Store(path.format(tmp_path), write=True)
    with pytest.raises(InvalidArgument, match="there is no such file"):
        Store(path.format(tmp_path))


def test_a_folder_is_no_store(tmp_path):
    with pytest.raises(InvalidArgument, match="must be a store"):
        Store(tmp_path, write=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_store_in_a_folder_that_is_read_only_is_read(copy):
    copy.parent.chmod(0o500)
    try:
        with Store(copy) as store:
            assert store.results().complete
        with pytest.raises(InvalidArgument, match="written to"):
            Store(copy, write=True)
    finally:
        copy.parent.chmod(0o700)


# ------------------------------------------------------------------------- a full disk


def test_a_full_disk_ends_a_sweep_and_loses_nothing(whole, tmp_path):
    path = tmp_path / "results.sqlite"
    with Store(path, write=True) as store:
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(InvalidArgument, match="full"):
            list(runner.events(FEW, store, executor=runner.Here()))
    with Store(path) as store:
        there = sum(map(len, store.have().values()))
        assert 0 < there < 6
        assert not store.results().complete
    runner.sweep(FEW, path, executor=runner.Here())
    assert sweeping.contents(path) == sweeping.contents(whole)


def test_a_file_that_may_not_grow_ends_a_sweep_and_loses_nothing(whole, tmp_path):
    """The same by the system's own limit, in a process that has it, through the command line."""
    (tmp_path / "grid.json").write_text(json.dumps(FEW.to_plain()))
    path = tmp_path / "results.sqlite"
    code = f"""
import json, resource
from mbsim.sweeps import blocks, runner
from mbsim.sweeps.grid import Grid
grid = Grid.from_plain(json.load(open({str(tmp_path / "grid.json")!r})))
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
runner.sweep(grid, {str(path)!r}, executor=runner.Here())
"""
    err = processes.run(code)[1]
    assert "InvalidArgument: store=" in err.splitlines()[-1]
    runner.sweep(FEW, path, executor=runner.Here())
    assert sweeping.contents(path) == sweeping.contents(whole)


# ------------------------------------------------------------------------- what is not complete


@pytest.fixture
def partial(tmp_path):
    path = tmp_path / "partial.sqlite"
    with Store(path, write=True) as store:
        for event in runner.events(FEW, store, executor=runner.Here()):
            if event.done == 1:
                break
    with Store(path) as store:
        return store.results()


def test_what_is_not_complete_says_so_everywhere(partial, tmp_path):
    assert not partial.complete
    assert partial.counts == {"done": 1, "missing": 2}
    assert str(partial).startswith("Sweep of 3 cells, NOT COMPLETE: 1 done, 2 missing")
    assert partial.to_dict()["complete"] is False
    for use in (
        partial.to_pandas,
        partial.to_xarray,
        lambda: partial.plot("micro_batch_size"),
        lambda: partial.save(tmp_path / "x.csv"),
    ):
        with pytest.raises(InvalidArgument, match=r"this sweep is not complete .1 done, 2 missing"):
            use()
    assert not (tmp_path / "x.csv").exists()
    assert partial.to_pandas(incomplete=True).attrs["complete"] is False
    data = partial.to_xarray(incomplete=True)
    assert data.attrs["complete"] == 0
    assert int(data.mean_grad_norm_sq.isnull().sum()) == 2
    from matplotlib.figure import Figure

    axes = partial.plot("micro_batch_size", ax=Figure().subplots(), incomplete=True)
    assert "not complete" in axes.get_title(loc="left")


def test_results_as_arrays_tables_and_files(whole, tmp_path):
    import pandas
    import xarray

    with Store(whole) as store:
        results = store.results()
    table, data = results.to_pandas(), results.to_xarray()
    for row in results:
        at = results.grid.coordinates(row.cell)
        (line,) = table[table.micro_batch_size == at["micro_batch_size"]].itertuples()
        assert line.mean_grad_norm_sq == row.summary.mean[-1]
        here = data.sel(at)
        size = row.summary.steps.size
        assert np.array_equal(here.step, row.summary.steps)
        assert np.array_equal(here.grad_norm_sq, row.summary.mean[:size])
        assert np.array_equal(here.loss_error, row.summary.error[size:-1])
        assert np.array_equal(here.loss_quantiles, row.summary.quantiles[:, size:-1])
    for ending in ("nc", "parquet", "csv"):
        results.save(tmp_path / f"results.{ending}")
    assert xarray.load_dataset(tmp_path / "results.nc").equals(data)
    assert pandas.read_parquet(tmp_path / "results.parquet").equals(table)
    read = pandas.read_csv(tmp_path / "results.csv", float_precision="round_trip")
    assert read.equals(table)
    with pytest.raises(InvalidArgument, match=r"must end in .nc, .parquet or .csv"):
        results.save(tmp_path / "results.txt")


def test_a_curve_for_each_value_of_another_axis(tmp_path):
    from matplotlib.figure import Figure

    grid = replace(FEW, axes={"probability": [0.0, 0.1], "micro_batch_size": [1, 16]}, replicates=9)
    found = runner.sweep(grid, tmp_path / "results.sqlite", executor=runner.Here())
    axes = found.plot("micro_batch_size", ax=Figure().subplots())
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["probability = 0", "probability = 0.1"]
    axes = found.plot("micro_batch_size", probability=0.1, ax=Figure().subplots())
    assert axes.get_legend() is None
    for wrong in ({"x": "steps"}, {"x": "micro_batch_size", "probability": 0.3}, {"name": "x"}):
        with pytest.raises(InvalidArgument):
            found.plot(**{"x": "probability", **wrong})
