"""Small grids; and, as a process, ``kills FOLDER MODE KILLS`` and ``dask STORE KILL``."""

import contextlib
import hashlib
import json
import mmap
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mbsim.sweeps import runner
from mbsim.sweeps.grid import Grid
from mbsim.sweeps.store import Store

SMALL = Grid(
    problem={
        "loss": {"kind": "Quadratic", "eigenvalues": [1.0, 0.5, 0.25, 0.1]},
        "noise": {"kind": "Gaussian", "sigma": 1.0},
        "benign_dim": 2,
        "start": [1.0, 1.0, 1.0, 1.0],
    },
    method={"batch_size": 16, "steps": 40, "step_size": 0.05},
    axes={
        "probability": [0.01, 0.05],
        "norm_ratio": [1.0, 5.0, 20.0, 50.0],
        "micro_batch_size": [1, 2, 4, 8, 16],
    },
    replicates=64,
)
FEW = replace(SMALL, axes={"micro_batch_size": [1, 4, 16]}, replicates=300)
assert len(SMALL) == 40


def contents(path):
    """All that is in a store, as one text: its rows in the order of their keys, bit for bit."""
    with sqlite3.connect(path) as connection:
        rows = {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY {key}").fetchall()
            for table, key in (
                ("grids", "number"),
                ("cells", "identity"),
                ("blocks", "identity, first, count"),
                ("failures", "identity"),
            )
        }
    connection.close()
    with Store(path) as store:
        found = json.dumps(store.results().to_dict())
    return hashlib.sha256(repr((rows, found)).encode()).hexdigest()


class Faulty(runner.Workers):
    """Processes of which those that draw b = 4 meet with something."""

    fate = staticmethod(os._exit)

    def submit(self, function, /, *arguments):
        struck = '"micro_batch_size":4,' in arguments[1]
        return (
            super().submit(type(self).fate, 1) if struck else super().submit(function, *arguments)
        )


# ------------------------------------------------------------------------- in a process of its own

# What a sweep says of itself: how many transactions and blocks it is in, and then how many it has
# entered so far.
TRANSACTION, BLOCK = 0, 1
lock = threading.Lock()


@contextlib.contextmanager
def marking(marks, which):
    with lock:
        marks[which] += 1
        marks[2 + which] += 1
    yield
    with lock:
        marks[which] -= 1


class Marked(ThreadPoolExecutor):
    """Two threads that say when they draw."""

    def __init__(self, marks):
        super().__init__(2)
        self.marks = marks

    def submit(self, function, /, *arguments):
        def call():
            with marking(self.marks, BLOCK):
                return function(*arguments)

        return super().submit(call)


def swept(path, mode, marks):
    """A sweep that says where it is."""
    inside = Store._transaction

    @contextlib.contextmanager
    def marked(self):
        with marking(marks, TRANSACTION), inside(self) as connection:
            yield connection
            time.sleep(0.003)  # or hardly any kill would land here

    executor = Marked(marks) if mode == "threads" else None
    with Store(path, write=True) as store:
        happening = runner.events(SMALL, store, executor=executor, workers=2)
        assert next(happening).kind == "begun"
        Store._transaction = marked
        for event in happening:
            if mode == "processes" and event.kind == "block":
                marks[BLOCK] = len(event.active)
                marks[2 + BLOCK] += 1


def killed(path, mode, which, entered, after):
    """Kill a sweep so many seconds after it has entered so many blocks or transactions."""
    marks = mmap.mmap(-1, 4)
    child = os.fork()
    if not child:
        swept(path, mode, marks)
        os._exit(0)
    while marks[2 + which] < entered and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.0002)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return bytes(marks)


def main(folder, mode, kills):
    folder, chance = Path(folder), random.Random(15)
    whole = folder / "whole.sqlite"
    runner.sweep(SMALL, whole, executor=runner.Here())  # and all is compiled
    expected, found = contents(whole), []
    for number in range(int(kills)):
        path = folder / f"{number}.sqlite"
        entered, after = chance.randrange(1, len(SMALL)), chance.uniform(0, 0.003)
        marks = killed(path, mode, number % 2, entered, after)
        with Store(path, write=True) as store:
            before = sum(map(len, store.have().values()))
        runner.sweep(SMALL, path, executor=runner.Here())
        found.append((marks[TRANSACTION] > 0, marks[BLOCK] > 0, before))
        assert contents(path) == expected, f"kill {number}: {found[-1]}"
    print(json.dumps(found))


def on_dask(path, kill):
    """A sweep by a Dask cluster of two processes, one of which is killed in the middle."""
    from distributed import Client, LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as made:
        with Client(made) as client:
            pids = sorted(client.run(os.getpid).values())
        with (
            runner.cluster(made.scheduler_address) as (executor, size),
            Store(path, write=True) as store,
        ):
            kinds = []
            for event in runner.events(SMALL, store, executor=executor, workers=size):
                kinds.append(event.kind)
                if kill == "kill" and event.done == 3 and event.kind == "cell":
                    os.kill(pids[0], signal.SIGKILL)
    print(json.dumps({"size": size, "kinds": kinds, "contents": contents(path)}))


if __name__ == "__main__":
    {"kills": main, "dask": on_dask}[sys.argv[1]](*sys.argv[2:])
