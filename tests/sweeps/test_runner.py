"""The runner: the same bits whoever draws, and what becomes of what goes wrong."""

import io
import json
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
import sweeping
from sweeping import FEW, SMALL

from mbsim import cli, statistics
from mbsim.errors import InvalidArgument
from mbsim.sweeps import runner
from mbsim.sweeps.grid import BLOCK, Grid
from mbsim.sweeps.runner import Event, Here, events, sweep, watched
from mbsim.sweeps.store import Store

# How many sweeps are killed in each way; with MBSIM_KILLS=100 a hundred, which takes some minutes.
KILLS = int(os.environ.get("MBSIM_KILLS", "0"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "results.sqlite"
    sweep(SMALL, path, executor=Here())
    return sweeping.contents(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.sqlite"


class Backwards(Executor):
    """Does the last of 40 first."""

    def __init__(self):
        self.waiting = []

    def submit(self, function, /, *arguments):
        self.waiting.append((Future(), function, arguments))
        future = self.waiting[-1][0]
        while len(self.waiting) == 40 or (self.waiting and future.done()):
            last, function, arguments = self.waiting.pop()
            last.set_result(function(*arguments))
        return future


# ------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_processes_gives_the_same_bits(expected, path, workers):
    found = sweep(SMALL, path, workers=workers)
    assert found.complete
    assert sweeping.contents(path) == expected
    assert not multiprocessing.active_children()


def test_threads_and_another_order_give_the_same_bits(expected, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        sweep(SMALL, tmp_path / "threads.sqlite", executor=pool)
    assert sweeping.contents(tmp_path / "threads.sqlite") == expected
    sweep(SMALL, tmp_path / "back.sqlite", executor=Backwards(), workers=40)
    assert sweeping.contents(tmp_path / "back.sqlite") == expected


def test_cells_and_replicates_can_be_added(tmp_path, path):
    """What is there already is not drawn again, and says the same."""
    sweep(replace(FEW, replicates=100), path, executor=Here())
    more = replace(FEW, axes={"micro_batch_size": [16, 8, 4, 2, 1]}, replicates=600)
    with Store(path, write=True) as store:
        drawn = [e.at["micro_batch_size"] for e in events(FEW, store, executor=Here())
                 if e.kind == "block"]  # fmt: skip
        assert drawn == [1, 1, 4, 4, 16, 16]
        drawn = [e.at["micro_batch_size"] for e in events(more, store, executor=Here())
                 if e.kind == "block"]  # fmt: skip
        assert sorted(drawn) == [1, 1, 2, 2, 2, 4, 4, 8, 8, 8, 16, 16]
        assert next(events(more, store, executor=Here())).done == 5
    sweep(more, tmp_path / "fresh.sqlite", executor=Here())
    with Store(path) as old, Store(tmp_path / "fresh.sqlite") as new:
        assert old.results().to_dict() == new.results().to_dict()
        assert len(old.grids()) == 3


# ------------------------------------------------------------------------- killed


def script(*arguments, timeout=120):
    """What sweeping.py prints, run as a process."""
    done = subprocess.run(
        [sys.executable, sweeping.__file__, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=processes.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sweep_whose_process_was_killed_goes_on_to_the_same_bits(tmp_path):
    found = script("kills", tmp_path, "threads", KILLS or 12, timeout=3000)
    in_transaction, in_block, before = zip(*found, strict=True)
    assert sum(in_transaction) >= 1
    assert sum(in_block) >= 5
    assert len({*before}) >= 5  # early and late


def test_so_does_one_that_had_processes(tmp_path):
    found = script("kills", tmp_path, "processes", KILLS or 2, timeout=3000)
    assert sum(in_block for _, in_block, _ in found) >= 1


@pytest.mark.parametrize("number", range(KILLS or 1))
def test_a_worker_that_was_killed_loses_nothing(expected, path, number):
    chance = random.Random(number)
    when, kinds = chance.randrange(38), []
    with Store(path, write=True) as store:
        for event in events(SMALL, store, workers=2):
            kinds.append(event.kind)
            if kinds.count("cell") == when + 1 and event.kind == "cell":
                victim = chance.choice(multiprocessing.active_children())
                os.kill(victim.pid, signal.SIGKILL)
    assert "failed" not in kinds
    assert kinds.count("block") == kinds.count("cell") == 40  # nothing lost, nothing twice
    assert sweeping.contents(path) == expected


def test_a_dask_cluster_gives_the_same_bits_though_a_worker_is_killed(expected, path):
    found = script("dask", path, "kill")
    assert found["size"] == 4
    assert found["kinds"].count("block") == found["kinds"].count("cell") == 40
    assert "failed" not in found["kinds"]
    assert found["contents"] == expected


# ------------------------------------------------------------------------- what goes wrong

BAD = replace(FEW, axes={"micro_batch_size": [1, 3, 16]}, replicates=20)


def test_a_cell_that_raises_is_recorded_and_tried_again(path):
    found = sweep(BAD, path, executor=Here())
    assert found.counts == {"done": 2, "failed": 1}
    (failed,) = (row for row in found if row.status == "failed")
    kind, message, trace = failed.failure
    assert kind == "raised"
    assert message.startswith("InvalidArgument: micro_batch_size=3 must divide batch_size=16")
    assert trace.startswith("Traceback")
    assert not found.complete
    before = sweeping.contents(path)
    with Store(path, write=True) as store:
        kinds = [event.kind for event in events(BAD, store, executor=Here())]
    assert kinds == ["begun", "failed"]
    assert sweeping.contents(path) == before


def test_a_sweep_stops_at_a_failure_if_asked(path):
    found = sweep(BAD, path, executor=Here(), keep_going=False)
    assert found.counts == {"done": 1, "failed": 1, "missing": 1}
    found = sweep(BAD, path, workers=1, keep_going=False)
    assert found.counts["failed"] == 1


def test_a_cell_that_diverges_is_recorded_and_counts_as_failed(path):
    grid = replace(
        FEW, method={**FEW.method, "steps": 40}, axes={"micro_batch_size": [1], "coherence": [0.0]}
    )
    wild = Grid.from_plain(
        {**grid.to_plain(), "method": {"batch_size": 16, "steps": 40},
         "axes": {"micro_batch_size": [1], "step_size": [0.05, 300.0]}}
    )  # fmt: skip
    with Store(path, write=True) as store:
        happened = [e for e in events(wild, store, executor=Here()) if e.kind == "failed"]
        found = store.results()
    assert [event.message for event in happened] == ["256 of 256 diverged"]
    assert found.counts == {"diverged": 1, "done": 1}
    assert found.complete  # a result, of which every replicate counts
    assert found.to_pandas().diverged.tolist() == [0, 300]


def test_a_cell_whose_process_dies_is_found_and_recorded(path, monkeypatch):
    monkeypatch.setattr(runner, "Workers", sweeping.Faulty)
    found = sweep(FEW, path, workers=1)
    assert found.counts == {"done": 2, "failed": 1}
    (failed,) = (row for row in found if row.status == "failed")
    assert found.grid.coordinates(failed.cell) == {"micro_batch_size": 4}
    assert failed.failure[0] == "killed"
    monkeypatch.undo()
    assert sweep(FEW, path, executor=Here()).counts == {"done": 3}


def test_a_cell_that_takes_too_much_memory_is_recorded(path, monkeypatch):
    draw = runner.simulate

    def fails(*arguments, method, **settings):
        if method.micro_batch_size == 4:
            raise MemoryError("no room")
        return draw(*arguments, method=method, **settings)

    runner._ready()
    monkeypatch.setattr(runner, "simulate", fails)
    found = sweep(FEW, path, executor=Here())
    assert found.counts == {"done": 2, "failed": 1}
    (failed,) = (row for row in found if row.failure)
    assert failed.failure[:2] == ("memory", "MemoryError: no room")


def test_a_cell_that_takes_too_long_is_given_up(path):
    plain = FEW.to_plain() | {"axes": {"steps": [40, 10**8], "micro_batch_size": [4]}}
    plain["method"] = {"batch_size": 16, "step_size": 0.05, "record_every": 10**8}
    found = sweep(Grid.from_plain(plain), path, workers=2, timeout=1.0)
    assert found.counts == {"done": 1, "failed": 1}
    assert [row.failure[:2] for row in found if row.failure] == [
        ("timeout", "it took more than 1 seconds")
    ]
    assert not multiprocessing.active_children()


def test_an_executor_that_breaks_ends_the_sweep_and_keeps_what_had_finished(path):
    class Breaks(Here):
        left = 2

        def submit(self, function, /, *arguments):
            self.left -= 1
            if self.left < 0:
                raise BrokenExecutor("gone")
            return super().submit(function, *arguments)

    with pytest.raises(InvalidArgument, match="must last, and broke"):
        sweep(FEW, path, executor=Breaks())
    with Store(path) as store:
        assert sum(map(len, store.have().values())) == 2


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("workers", 0), ("timeout", 0), ("executor", 3), ("wait", -1), ("grid", {})],
)
def test_bad_calls(path, name, wrong):
    with pytest.raises(InvalidArgument, match=name):
        sweep(**{"grid": FEW, "store": path, "executor": Here(), name: wrong})


# ------------------------------------------------------------------------- adaptive stopping


def adaptive(error, cap):
    plain = FEW.to_plain() | {"relative_standard_error": error, "cap": cap}
    return Grid.from_plain({n: c for n, c in plain.items() if n != "replicates"})


def test_a_cell_stops_when_it_knows_enough_whoever_draws(tmp_path):
    grid = adaptive(0.005, 20_000)
    found = sweep(grid, tmp_path / "one.sqlite", executor=Here())
    assert found.counts == {"done": 3}
    for row in found:
        summary, last = row.summary, row.summary.steps.size - 1
        relative = [summary.error[i] / summary.mean[i] for i in (-1, last)]
        assert max(relative) < 0.005
        assert summary.replicates % BLOCK == 0
    assert len({row.summary.replicates for row in found}) > 1
    sweep(grid, tmp_path / "two.sqlite", workers=2)
    assert sweeping.contents(tmp_path / "one.sqlite") == sweeping.contents(tmp_path / "two.sqlite")


def test_a_cap_that_is_met_is_said(path):
    found = sweep(adaptive(0.001, 600), path, executor=Here())
    assert found.counts == {"capped": 3}
    assert {row.summary.replicates for row in found} == {600}
    assert found.complete
    assert "capped" in str(found)
    with Store(path, write=True) as store:  # a larger cap goes on from there
        drawn = [e.kind for e in events(adaptive(0.001, 1000), store, executor=Here())]
    assert drawn.count("block") == 3 * 2


@pytest.mark.parametrize("law", ["exponential", "standard_normal"])
def test_the_sequence_keeps_its_level_however_often_one_looks(law):
    """Looks as a sweep takes them, up to 64 blocks; at the rate of one look it would not."""
    rng, looks, runs, rate = np.random.default_rng(15), [1], 2000, 0.05
    while looks[-1] < 64:
        looks.append(min(64, looks[-1] + max(1, looks[-1] // 4)))
    truth = {"exponential": 1.0, "standard_normal": 0.0}[law]
    draws = getattr(rng, law)(size=(runs, 64, BLOCK))
    sums, squares = draws.sum(2).cumsum(1), np.square(draws).sum(2).cumsum(1)
    count = BLOCK * np.array(looks)
    mean = sums[:, np.array(looks) - 1] / count
    deviation = np.sqrt(squares[:, np.array(looks) - 1] / count - mean**2)
    tightest = BLOCK * 8
    reach = statistics.always_within(count, deviation, false_positive_rate=rate, tightest=tightest)
    missed = int((np.abs(mean - truth) > reach).any(axis=1).sum())
    # The most misses of 2000 that a rate of 5 % gives, except with probability 1e-6.
    assert missed <= 152
    assert missed >= 10  # it is not so wide as to say nothing
    naive = (np.abs(mean - truth) > 1.96 * deviation / np.sqrt(count)).any(axis=1).sum()
    assert naive > 400


# ------------------------------------------------------------------------- progress


def happening(number, active=({"b": 1},)):
    yield Event("begun", {}, "", 0, 0, number, 0, 0, 0, ())
    for i in range(number):
        yield Event("cell", {"b": i}, "", i + 1, i % 2, number, 1, 1, len(active), active)


def test_plain_lines_where_nobody_watches(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    assert len([*watched(happening(8))]) == 9
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mbsim: 2 of 8 cells, 1 failed, 0:36 left"
    assert len(lines) == 3  # every ten seconds


def test_lines_for_active_cells_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, clock = Terminal(), iter(range(0, 1000, 4))
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner.time, "monotonic", lambda: next(clock))
        assert len([*watched(happening(5, tuple({"b": i} for i in range(10))))]) == 6
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "b 1: begun" in text
    assert "and 2 more blocks" in text
    assert re.search(r"3 of 5 cells, \d+ failed, \d+:\d\d left|3 of 5 cells, \d+:\d\d left", text)


# ------------------------------------------------------------------------- the page


def test_the_page_is_true(tmp_path, monkeypatch):
    """Its grid is one, and its Python runs."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text("utf-8")
    (toml,) = re.findall(r"^```toml\n(.*?)^```", text, flags=re.M | re.S)
    (tmp_path / "grid.toml").write_text(toml)
    assert len(Grid.from_toml(tmp_path / "grid.toml")) == 12
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        exec(compile(block, "sweeps.md", "exec"), namespace)
    assert namespace["table"].shape[0] == 6


# ------------------------------------------------------------------------- the command line

TOML = """
replicates = {replicates}
[problem]
loss = {{kind = "Quadratic", eigenvalues = [1.0, 0.5]}}
noise = {{kind = "Gaussian"}}
benign_dim = 1
start = [1.0, 1.0]
[method]
batch_size = 16
steps = {steps}
[axes]
micro_batch_size = {sizes}
step_size = [0.05]
"""


def without_progress(err):
    """What a command says besides lines of progress, which come where a machine is busy."""
    return "".join(x for x in err.splitlines(keepends=True) if not x.endswith(" left\n"))


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    def call(*options, sizes=(1, 4), steps=20, replicates=30):
        text = TOML.format(sizes=list(sizes), steps=steps, replicates=replicates)
        (tmp_path / "grid.toml").write_text(text)
        place = [str(tmp_path / name) for name in ("grid.toml", "results.sqlite")]
        monkeypatch.setattr("sys.argv", ["mbsim", "sweep", place[0], "--store", place[1], *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, without_progress(err)

    return call


def test_the_command_draws_prints_and_says_the_same_again(command):
    code, out, err = command("--json", "--workers", "1")
    assert (code, err) == (0, "")
    assert command("--json") == (0, out, "")
    found = json.loads(out)
    assert found["complete"]
    assert [cell["at"]["micro_batch_size"] for cell in found["cells"]] == [1, 4]
    code, out, _ = command()
    assert code == 0
    assert out.startswith("Sweep of 2 cells, complete: 2 done")


def test_the_command_exits_1_if_a_cell_failed_and_2_for_bad_input(command, tmp_path):
    code, out, _ = command("--workers", "1", sizes=(1, 3, 8))
    assert code == 1
    assert "NOT COMPLETE: 2 done, 1 failed" in out
    assert "micro_batch_size=3 must divide batch_size=16" in " ".join(out.split())
    code, out, _ = command("--workers", "1", "--fail-fast", "--json", sizes=(3, 2))
    assert code == 1
    assert json.loads(out)["counts"] == {"failed": 1, "missing": 1}
    for options, said in (
        (("--workers", "0"), "workers=0 must be"),
        (("--scheduler", "nowhere"), "scheduler='nowhere' must be a Dask scheduler"),
        (("--timeout", "-1"), "timeout=-1.0 must be"),
    ):
        code, out, err = command(*options, sizes=(1, 5))
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
    (tmp_path / "results.sqlite").write_text("text")
    assert command()[0] == 2


def test_ctrl_c_stops_within_two_seconds_and_keeps_what_has_finished(tmp_path):
    text = TOML.format(sizes=[1, 2, 4, 8, 16], steps=1000, replicates=50_000)
    (tmp_path / "grid.toml").write_text(text)
    store = tmp_path / "results.sqlite"
    with subprocess.Popen(
        [sys.executable, "-m", "mbsim", "sweep", tmp_path / "grid.toml", "--store", store],
        stderr=subprocess.PIPE, text=True, env=processes.environment(), start_new_session=True,
    ) as process:  # fmt: skip
        until = time.monotonic() + 60
        while time.monotonic() < until and blocks_in(store) < 3:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: its workers hear it as well
        since = time.monotonic()
        err = process.communicate(timeout=30)[1]
        assert time.monotonic() - since < 2
    assert process.returncode == 130
    assert re.fullmatch(
        r"mbsim: interrupted; \d of 5 cells are done; the same sweep goes on from there\n",
        without_progress(err),
    )
    assert blocks_in(store) >= 3
    assert is_gone(process.pid)


def is_gone(group):
    """Whether nothing of a group of processes is left, or soon."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def blocks_in(path):
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM blocks").fetchone()[0]
    except sqlite3.OperationalError:  # it has no tables yet
        return 0
    finally:
        connection.close()
