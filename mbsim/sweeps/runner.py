"""The runner: cells of a grid, drawn in parallel by whatever executes calls, kept one by one.

Where a block is drawn decides nothing: not the worker, nor their number, nor the order. So an
executor needs ``submit`` alone: processes of its own unless told, a Dask cluster by
``Client.get_executor()``, ``mpi4py.futures.MPIPoolExecutor``, or :class:`Here`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import sys
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mbsim._shared.arrays import one_blas_thread
from mbsim._shared.meant import answering
from mbsim._shared.processes import Workers, processors, tell
from mbsim._shared.progress import progress
from mbsim.errors import InvalidArgument, check_integer, check_number, shown
from mbsim.methods import MicroBatchClipping
from mbsim.problems.losses import LogCosh
from mbsim.problems.noise import Gaussian
from mbsim.problems.problem import Problem
from mbsim.simulation.run import simulate
from mbsim.sweeps.blocks import Block, Head, condensed, head, needed
from mbsim.sweeps.grid import Cell, Grid, arguments, label
from mbsim.sweeps.store import Results, Store

__all__ = ["Event", "Here", "events", "sweep"]

# A block that ends its process so often, with nothing else running, is what ends it.
_BREAKS = 2


class Event(NamedTuple):
    """What has happened in a sweep.

    Attributes:
        kind: "begun" (what is there has been counted), "block" (one was kept), "cell" (one has all
            it needs), "failed" (a cell has, or has diverged), "retried" (a worker died).
        at: the cell's place on each axis; empty if it is of no cell.
        message: of a failure, what it was.
        done, failed, cells: how many cells have all they need, how many failed, how many there are.
        drawn, needed: how many blocks of the cell there are, and of how many as far as is known.
        flying: how many blocks are on their way.
        active: the places of the cells that they are of, 20 at most.
    """

    kind: str
    at: dict[str, Any]
    message: str
    done: int
    failed: int
    cells: int
    drawn: int
    needed: int
    flying: int
    active: tuple[dict[str, Any], ...]


class Here(Executor):
    """An executor that makes each call at once, in this thread.

    >>> Here().submit(max, 1, 2).result()
    2
    """

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Failed(NamedTuple):
    """Why a block could not be drawn: "raised", "memory", "killed" or "timeout"."""

    kind: str
    message: str
    traceback: str = ""


def draw(number: int, description: str, first: int, count: int) -> Block | Failed:
    """Draw a block of a cell: what workers do."""
    try:
        with one_blas_thread(), progress(None, ""):  # the sweep's own bar is one for all
            _ready()
            tell(number, 0.0)  # its time is counted from here
            given = arguments(description)
            run = simulate(**given, replicates=count, first=first, threads=1)
            return condensed(run, first)
    except Exception as error:
        kind = "memory" if isinstance(error, MemoryError) else "raised"
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Failed(kind, message, traceback.format_exc())


@cache
def _ready() -> None:
    """Load all that is compiled: by the smallest of runs, once in each process."""
    smallest = Problem(loss=LogCosh(1), noise=Gaussian(), benign_dim=1, start=np.ones(1))
    settings: dict[str, Any] = {"batch_size": 1, "steps": 1, "replicates": 1, "threads": 1}
    simulate(smallest, MicroBatchClipping(1), step_size=0.1, rng=0, **settings)


def _well(future: Future[Any]) -> bool:
    """Whether a call has ended, and not by what ended its process."""
    return future.done() and not future.cancelled() and future.exception() is None


@dataclass(eq=False)
class _Open:
    """A cell that is being drawn."""

    cell: Cell
    at: dict[str, Any]
    have: dict[tuple[int, int], Head]
    asked: set[tuple[int, int]] = field(default_factory=set)
    counted: bool = False
    failed: bool = False


@dataclass(eq=False)
class _Task:
    """A block that is being drawn, and how often it ended its process when it was alone."""

    open: _Open
    block: tuple[int, int]
    number: int
    breaks: int = 0
    since: float = 0.0


@answering
def sweep(
    grid: Grid,
    store: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    keep_going: bool = True,
    timeout: float | None = None,
    wait: float = 0.0,
) -> Results:
    """Draw what a grid needs and its store does not have yet; all that is known of it then.

    The same numbers whatever draws them: replicates are those of ``simulate`` with the grid's seed.
    What has finished is kept at once, so that a sweep that ended in any way goes on where it was.
    Cells that failed are tried again.

    Args:
        grid: what to draw.
        store: the file to keep it in; it is made if it is not there.
        executor: what makes calls, by its ``submit`` alone; processes of its own if None.
        workers: how many blocks are drawn at a time; by default as many as there are processors,
            or 64 with an `executor` that is not :class:`Here`.
        keep_going: go on when a cell has failed, or has diverged; otherwise stop.
        timeout: how many seconds a block may take. With an `executor`, since it was submitted.
        wait: how many seconds to wait for a process that holds the store.

    Returns:
        :class:`~mbsim.sweeps.store.Results`, which say whether they are complete.

    Raises:
        InvalidArgument: for arguments that break a rule, and for a store that cannot be used.
        KeyboardInterrupt: on Ctrl-C, promptly, with all that had finished kept.

    >>> import mbsim, os, tempfile
    >>> grid = Grid(problem={"loss": mbsim.losses.LogCosh(4), "noise": mbsim.noise.Gaussian(),
    ...                      "benign_dim": 2, "start": [1, 1, 1, 1]},
    ...             method={"batch_size": 8, "step_size": 0.1, "steps": 50},
    ...             axes={"micro_batch_size": [1, 2, 4]}, replicates=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = sweep(grid, os.path.join(folder, "results.sqlite"), executor=Here())
    >>> found.complete, found.counts
    (True, {'done': 3})
    """
    with Store(store, write=True, wait=wait) as kept:
        happening = events(
            grid, kept, executor=executor, workers=workers, keep_going=keep_going, timeout=timeout
        )
        done = 0
        try:
            for event in watched(happening):
                done = event.done
        except KeyboardInterrupt as stop:
            happening.close()
            stop.add_note(
                f"{done} of {len(grid)} cells are done; the same sweep goes on from there"
            )
            raise
        return kept.results(grid)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[tuple[Executor, int]]:
    """An executor for the Dask cluster with its scheduler there, and how many blocks to have there.

    Raises:
        InvalidArgument: if no scheduler answers.
    """
    from distributed import Client

    try:
        client: Any = Client(address, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InvalidArgument(
            f"scheduler={shown(address)} must be a Dask scheduler that answers: {why}"
        ) from error
    with client:
        # Twice as many as can be drawn, so that none waits for the next. Never the answer to a call
        # made before: it may have been an error.
        yield client.get_executor(pure=False), 2 * max(1, sum(client.nthreads().values()))


def events(
    grid: Grid,
    store: Store,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    keep_going: bool = True,
    timeout: float | None = None,
) -> Generator[Event, None, None]:
    """What :func:`sweep` does, step by step, for programs: an :class:`Event` after each.

    Closing the iterator stops the sweep, with all that had finished kept.
    """
    run = _Run(grid, store, executor, workers, keep_going, timeout)
    try:
        yield run.event("begun")
        while run.launch():
            yield from run.landed()
    finally:
        run.close()


class _Run:
    """The state of a sweep that is going on."""

    def __init__(
        self, grid: Any, store: Store, executor: Any, workers: Any, keep_going: bool, timeout: Any
    ) -> None:
        if not isinstance(grid, Grid):
            raise InvalidArgument(f"grid={shown(grid)} must be a Grid")
        if executor is not None and not callable(getattr(executor, "submit", None)):
            raise InvalidArgument(f"executor={shown(executor)} must have a method submit")
        default = 1 if isinstance(executor, Here) else 64 if executor else processors()
        workers = default if workers is None else check_integer("workers", workers, minimum=1)
        self.timeout = None if timeout is None else check_number("timeout", timeout, above=0)
        self.grid, self.store, self.given, self.keep_going = grid, store, executor, keep_going
        self.workers = workers
        # With processes of its own one block waits at their door while another is kept.
        self.width = workers + (executor is None)
        self.pool: Any = executor  # with processes of its own a new one when they have ended
        store.add_grid(grid)
        self.have = store.have()
        self.done = sum(not self._missing(self.have.get(c.identity, {})) for c in grid)
        self.failed, self.stopped = 0, False
        self.cells = iter(grid if self.done < len(grid) else ())
        self.ready: deque[_Task] = deque()
        self.suspects: deque[_Task] = deque()
        self.flying: dict[Future[Any], _Task] = {}
        self.landing: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self.numbers = itertools.count()

    def _missing(self, have: dict[tuple[int, int], Head]) -> list[tuple[int, int]]:
        return [block for block in needed(self.grid, have)[0] if block not in have]

    def event(self, kind: str, of: _Open | None = None, message: str = "") -> Event:
        some = itertools.islice(self.flying.values(), 20)
        active = {id(task.open): task.open.at for task in some}
        drawn, whole = 0, 0
        if of is not None:
            blocks = needed(self.grid, of.have)[0]
            drawn, whole = sum(block in of.have for block in blocks), len(blocks)
        counted = self.done, self.failed, len(self.grid), drawn, whole, len(self.flying)
        return Event(kind, of.at if of else {}, message, *counted, tuple(active.values()))

    # -- up

    def launch(self) -> bool:
        """Submit as much as there is room for; whether anything is on its way."""
        while not self.stopped and len(self.flying) < (1 if self.suspects else self.width):
            task = self.suspects.popleft() if self.suspects else self._next()
            if task is None:
                break
            if self.pool is None:
                self.pool = Workers(self.workers)
            first, count = task.block
            try:
                call = draw, task.number, task.open.cell.description, first, count
                future = self.pool.submit(*call)
            except BrokenExecutor as error:
                self.ready.appendleft(task)
                if self.given is not None:
                    raise self._gone(error) from error
                self._end_pool()
                break
            task.since = time.monotonic() if self.given is not None else 0.0
            self.flying[future] = task
            future.add_done_callback(self.landing.put)
        return bool(self.flying or self.ready or self.suspects) and not self.stopped

    def _gone(self, error: Exception) -> InvalidArgument:
        return InvalidArgument(
            f"executor={shown(self.given)} must last, and broke ({type(error).__name__}); what had "
            "finished is kept, and the same sweep goes on from there"
        )

    def _next(self) -> _Task | None:
        """The next block to draw: of a cell that is open, or of the next that lacks some."""
        while True:
            while self.ready:
                task = self.ready.popleft()
                if not task.open.failed:
                    return task
            for cell in self.cells:
                have = self.have.pop(cell.identity, {})
                if self._missing(have):
                    self._ask(_Open(cell, self.grid.coordinates(cell), have))
                    break
            else:
                return None

    def _ask(self, one: _Open) -> None:
        """Have the blocks drawn that a cell lacks as far as is known."""
        wanted = [block for block in self._missing(one.have) if block not in one.asked]
        one.asked |= {*wanted}
        tasks = [_Task(one, block, next(self.numbers)) for block in wanted]
        self.ready.extendleft(reversed(tasks))  # what has begun is finished first

    # -- down

    def landed(self) -> Iterator[Event]:
        """Wait a moment for what lands, and keep it."""
        futures = []
        with contextlib.suppress(queue.Empty):
            futures.append(self.landing.get(timeout=0.1))
            while True:
                futures.append(self.landing.get_nowait())
        broken = []
        for future in futures:
            if future not in self.flying:
                continue  # it was given up before
            try:
                found = future.result()
            except (BrokenExecutor, CancelledError) as error:
                if self.given is not None:
                    raise self._gone(error) from error
                broken.append(future)
                continue
            except Exception as error:  # the cluster could not, or what came cannot be read
                kind = "killed" if type(error).__name__ == "KilledWorker" else "raised"
                found = Failed(kind, " ".join(f"{type(error).__name__}: {error}".split()))
            yield from self._kept(future, found)
        if broken:
            yield from self._broken()
        yield from self._overdue()

    def _kept(self, future: Future[Any], found: Any) -> Iterator[Event]:
        task = self.flying[future]
        one = task.open
        self._keep(task, found)
        del self.flying[future]
        if isinstance(found, Failed):
            yield from self._fallen(one, found.message)
            return
        yield self.event("block", one)
        if one.failed:
            return
        if found.diverged:
            yield from self._fallen(one, f"{found.diverged} of {found.replicates} diverged", True)
        self._ask(one)
        if not self._missing(one.have):
            self.done += 1
            yield self.event("cell", one)

    def _keep(self, task: _Task, found: Any) -> None:
        one = task.open
        if isinstance(found, Failed):
            self.store.fail(one.cell, task.block[0], *found)
            return
        self.store.add(one.cell, found)
        one.have[task.block] = head(found)

    def _fallen(self, one: _Open, message: str, diverged: bool = False) -> Iterator[Event]:
        """A cell has failed: it is left where it is; one that diverged is drawn to its end."""
        if not one.counted:
            one.counted = True
            self.failed += 1
            self.stopped = self.stopped or not self.keep_going
            yield self.event("failed", one, message)
        one.failed = one.failed or not diverged

    def _broken(self) -> Iterator[Event]:
        """A process was ended from outside: all that was on its way is drawn again, one by one."""
        alone = len(self.flying) == 1
        self._end_pool()
        for future, task in [*self.flying.items()]:
            if _well(future):
                yield from self._kept(future, future.result())
                continue
            task.breaks += alone
            if task.breaks >= _BREAKS:
                why = "its process was ended from outside: out of memory, or killed"
                yield from self._kept(future, Failed("killed", why))
                continue
            del self.flying[future]
            self.suspects.append(task)
            yield self.event("retried", task.open)

    def _overdue(self) -> Iterator[Event]:
        """What has taken too long is given up; what was beside it in its pool is drawn again."""
        now, own = time.monotonic(), self.given is None
        begun = {number for number, _ in self.pool.told()} if own and self.pool else set()
        if self.timeout is None:
            return
        for task in self.flying.values():
            task.since = now if task.number in begun else task.since
        late = {
            future: task
            for future, task in self.flying.items()
            if task.since and now - task.since > self.timeout and not future.done()
        }
        if not late:
            return
        if own:
            self._end_pool()
        for future, task in [*self.flying.items()]:
            if future in late:
                future.cancel()
                why = f"it took more than {self.timeout:g} seconds"
                yield from self._kept(future, Failed("timeout", why))
            elif own and not _well(future):
                del self.flying[future]
                task.since = 0.0
                self.ready.appendleft(task)

    def _end_pool(self) -> None:
        if self.given is None and self.pool is not None:
            self.pool.end()
            self.pool = None

    def close(self) -> None:
        """Keep what has finished, and let go of the rest."""
        for future, task in self.flying.items():
            if _well(future):
                with contextlib.suppress(InvalidArgument):  # a full disk has been told of already
                    self._keep(task, future.result())
            elif self.given is not None:
                future.cancel()
        self._end_pool()


# ------------------------------------------------------------------------- progress


def watched(happening: Iterable[Event]) -> Iterator[Event]:
    """The same events, shown on standard error once they have lasted two seconds.

    In a terminal or a notebook a line for each cell that is being drawn, and one for all with the
    time left; elsewhere a line of text every ten seconds.
    """
    began, told, first, screen = time.monotonic(), 0.0, 0, None
    try:
        for event in happening:
            now = time.monotonic() - began
            if event.kind == "begun":
                first = event.done
            if now > 2:
                screen = screen or _Screen.made()
                left = _left(now, event.done - first, event.cells - event.done)
                if screen:
                    screen.show(event, left)
                elif now - told > 10:
                    told = now
                    print(f"mbsim: {_total(event, left)}", file=sys.stderr, flush=True)
            yield event
    finally:
        if screen:
            screen.live.stop()


def _left(passed: float, done: int, rest: int) -> str:
    if not done:
        return "-:--"
    seconds = passed / done * rest
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def _total(event: Event, left: str) -> str:
    failed = f", {event.failed} failed" if event.failed else ""
    return f"{event.done} of {event.cells} cells{failed}, {left} left"


class _Screen:
    """Lines that are drawn over each other."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live

        self.live = Live(console=console, transient=True, auto_refresh=False)
        self.live.start()
        self.shown, self.drawn = 0.0, dict[str, str]()

    @classmethod
    def made(cls) -> _Screen | None:
        from rich.console import Console

        console = Console(stderr=True)
        return cls(console) if console.is_terminal or console.is_jupyter else None

    def show(self, event: Event, left: str) -> None:
        from rich.text import Text

        if event.at:
            self.drawn[_where(event.at)] = f"{event.drawn} of {event.needed} blocks"
        if time.monotonic() - self.shown < 0.2:
            return
        self.shown = time.monotonic()
        names = [*map(_where, event.active)]
        self.drawn = {name: self.drawn.get(name, "begun") for name in names}
        lines = [f"  {name}: {self.drawn[name]}" for name in names[:8]]
        if event.flying > len(lines):
            lines.append(f"  and {event.flying - len(lines)} more blocks")
        self.live.update(Text("\n".join([*lines, _total(event, left)])), refresh=True)


def _where(at: dict[str, Any]) -> str:
    return ", ".join(f"{name} {label(content)}" for name, content in at.items()) or "the one cell"
