"""Work in processes: its results, its faults, its progress, and that nothing of it stays behind."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import processes
import pytest

from mbsim._shared import progress as _progress
from mbsim._shared.processes import Job, Workers, in_processes
from mbsim._shared.processes import processors as processors_here


def note(path, seconds, fault, tell):
    """Leave a trace of when it began, and of what a worker is."""
    tell(0.5)
    path.write_text(str(time.monotonic()))
    time.sleep(seconds)
    if fault:
        raise ValueError(fault)
    return os.getpid(), processors_here(), os.environ["OMP_NUM_THREADS"], "sympy" in sys.modules


def jobs(folder, *seconds, fault=""):
    return [
        Job(f"job {i}", s, note, (folder / str(i), s / 10, fault and f"{fault} {i}"))
        for i, s in enumerate(seconds)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_the_longest_begins_first(tmp_path, workers):
    found = in_processes(jobs(tmp_path, 1, 3, 2), workers=workers, text="working")
    began = [float((tmp_path / str(i)).read_text()) for i in range(3)]
    assert began[1] < began[0]
    assert began[2] < began[0]
    pids, shares, threads, sympy = zip(*found, strict=True)
    assert os.getpid() not in pids
    assert len({*pids}) <= workers
    assert {*shares} == {max(1, processors_here() // workers)}
    assert {*threads} == {"1"}
    assert not any(sympy)


def test_a_fault_is_named_and_ends_the_others(tmp_path):
    slow = Job("slow", 9.0, note, (tmp_path / "slow", 60, ""))
    since = time.monotonic()
    with pytest.raises(ValueError, match="odd 0") as caught:
        in_processes([*jobs(tmp_path, 1, fault="odd"), slow], workers=2, text="working")
    assert caught.value.__notes__ == ["(in job 0)"]
    assert time.monotonic() - since < 30


def break_off(path):
    """Begin to say a result, as one does that is ended there: its length, and no more."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    queue = frame.f_locals["result_queue"]
    with queue._wlock:
        queue._writer._send(struct.pack("!i", 40_000))
        path.touch()
        time.sleep(60)


def test_processes_end_though_one_was_in_the_middle_of_its_result(tmp_path):
    pool = Workers(2)
    pool.submit(break_off, tmp_path / "begun")
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    ending = threading.Thread(target=pool.end, daemon=True)
    ending.start()
    ending.join(10)
    assert not ending.is_alive()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_bar_counts_the_work_of_all_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    counted = []
    update = _progress.Progress.update
    monkeypatch.setattr(
        _progress.Progress, "update", lambda bar, done: counted.append(done) or update(bar, done)
    )
    in_processes(jobs(tmp_path, 1, 2, 3), workers=2, text="working")
    assert counted == sorted(counted)
    assert counted[-1] == 6
    assert {*counted} & {0.5, 1, 1.5, 2, 2.5, 3, 4, 5}  # on the way
    said = sys.stderr.getvalue()
    assert "working" in said
    assert "left" in said


def test_the_time_left_is_what_it_takes_at_the_pace_so_far(monkeypatch):
    now = 100.0
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now)
    bar = _progress.Progress(60, "working", shown=False)
    assert bar._left(now) == "-:--"
    now = 110.0
    bar.update(5)
    assert bar._left(now) == "1:50 left"
    now = 125.0
    bar.update(5)  # nothing new is done, but time passes
    assert bar._left(now) == "1:35 left"
    now = 300.0
    bar.update(5)
    assert bar._left(now) == "0:00 left"
    bar.update(40)
    assert bar._left(now) == "1:40 left"


# It has no guard against being imported again: each worker would begin it anew.
SCRIPT = """
from pathlib import Path
from test_processes import jobs
from mbsim._shared.processes import in_processes
in_processes(jobs(Path({folder!r}), 600, 600, 600), workers=2, text="working")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_behind(tmp_path, end):
    """Ctrl-C reaches a whole group, workers too; a kill only the first process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path)))
    with subprocess.Popen(
        [sys.executable, script],
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment(),
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 60
        while not {"0", "1"} <= {path.name for path in tmp_path.iterdir()}:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not (tmp_path / "2").exists()
        (os.killpg if end == signal.SIGINT else os.kill)(process.pid, end)
        _, said = process.communicate(timeout=30)  # all write to it: all have ended
    assert process.returncode != 0
    assert said.count("Traceback") == said.count("KeyboardInterrupt\n") == (end == signal.SIGINT)
