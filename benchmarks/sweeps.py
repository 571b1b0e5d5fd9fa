"""What a sweep costs beside its cells: ``python benchmarks/sweeps.py``, about five minutes.

1. The overhead of the runner on cells of about a second, by one process, against plain calls.
2. Two processes against one.
3. What each block costs the coordinator: a thousand fake workers that return at once, and a Dask
   cluster of two that do.
4. A store of 100,000 cells: how long a sweep takes to see that nothing is left, and its memory.
"""

import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np

from mbsim.simulation.run import simulate
from mbsim.sweeps import runner
from mbsim.sweeps.grid import Grid, arguments
from mbsim.sweeps.store import Store

PROBLEM = {
    "loss": {"kind": "Quadratic", "eigenvalues": [1.0, 0.5, 0.25, 0.1]},
    "noise": {"kind": "Gaussian"},
    "benign_dim": 2,
    "start": [1.0, 1.0, 1.0, 1.0],
}
WORKERS, HUGE = 1000, 100_000


def grid(cells, steps):
    ratios = 100 if cells > 1000 else 1
    return Grid(
        problem=PROBLEM,
        method={"batch_size": 64, "steps": steps, "step_size": 0.05, "micro_batch_size": 8},
        axes={
            "probability": np.linspace(0, 0.5, cells // ratios).tolist(),
            "norm_ratio": np.linspace(10.0, 50.0, ratios).tolist(),
        },
        replicates=256,
    )


def plain(of):
    """The same cells by calls one after the other, in this process."""
    since = time.perf_counter()
    for cell in of:
        simulate(**arguments(cell.description), replicates=256, threads=1)
    return time.perf_counter() - since


def swept(of, workers):
    """From before the first event to after the last."""
    with tempfile.TemporaryDirectory() as folder:
        since = time.perf_counter()
        found = runner.sweep(of, Path(folder, "results.sqlite"), workers=workers)
        assert found.complete
        return time.perf_counter() - since


def answer(_number, description, first, count):
    """What a worker would return, which it drew once."""
    if not hasattr(runner, "answered"):
        runner.answered = runner.draw(0, description, 0, 256)
    return runner.answered._replace(first=first, replicates=count)


class Fake(Executor):
    """Workers that return at once: in this process, or on a cluster, where messages are left."""

    def __init__(self, executor=None):
        self.executor = executor or runner.Here()

    def submit(self, _function, /, *arguments):
        """Answer."""
        return self.executor.submit(answer, *arguments)


def coordinator(of, executor, workers, path):
    since, spent = time.perf_counter(), time.process_time()
    with Store(path, write=True) as store:
        happening = runner.events(of, store, executor=executor, workers=workers)
        blocks = sum(event.kind == "block" for event in happening)
    wall, spent = time.perf_counter() - since, time.process_time() - spent
    size = path.stat().st_size
    print(
        f"  {blocks} blocks in {wall:.1f} s: {blocks / wall:.0f} blocks and commits a second, "
        f"{1e3 * spent / blocks:.2f} ms of the coordinator and {size / blocks:.0f} bytes each"
    )


def main():
    one = grid(60, 9_600)
    first = replace(one, axes={**one.axes, "probability": [0.1]})
    plain(first)  # compiled
    print(f"a cell takes {plain(first):.2f} s")
    calls, single, double = plain(one), swept(one, 1), swept(one, 2)
    start = swept(grid(1, 10), 1)
    print(f"60 cells: plain calls {calls:.1f} s, one process {single:.1f} s, two {double:.1f} s")
    print(f"  overhead {single / calls - 1:.1%}, of which {start:.1f} s to start the process")
    print(f"  two are {single / double:.2f} times one")

    many = grid(20_000, 1000)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{WORKERS} workers that return at once, in this process:")
        coordinator(many, Fake(), WORKERS, Path(folder, "fake.sqlite"))
        try:
            from distributed import LocalCluster
        except ImportError:
            print("no Dask here")
        else:
            made = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            with made, runner.cluster(made.scheduler_address) as (executor, _):
                print("a Dask cluster of two processes that return at once:")
                coordinator(grid(5000, 1000), Fake(executor), WORKERS, Path(folder, "dask.sqlite"))

        print("100,000 cells:")
        coordinator(grid(HUGE, 1000), Fake(), WORKERS, Path(folder, "huge.sqlite"))
        again = [sys.executable, __file__, "resume", str(Path(folder, "huge.sqlite"))]
        subprocess.run(again, check=True)


def resume(path):
    since = time.perf_counter()
    with Store(path, write=True) as store:
        assert [e.kind for e in runner.events(grid(HUGE, 1000), store)] == ["begun"]
    seconds, status = time.perf_counter() - since, Path("/proc/self/status").read_text()
    most = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
    print(f"  seen to be complete in {seconds:.2f} s, with {most:.0f} MiB at most")


if __name__ == "__main__":
    resume(sys.argv[2]) if sys.argv[1:2] == ["resume"] else main()
