"""Work in processes: the same results whatever their number, and none of them left behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from mbsim._shared.progress import progress, quiet

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Job", "Workers", "in_processes", "processors", "tell"]

# What keeps the libraries of linear algebra on one thread, if it is set before they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# Of a worker: how many there are, and where it says what it has done.
_workers = 1
_told: Any = None


class Job(NamedTuple):
    """A call that a process makes: ``function(*arguments, tell)``.

    The function says ``tell(share)`` when it has done that share of its work. It, its arguments and
    what it returns must be such as can be pickled. `seconds` is about how long it takes.
    """

    name: str
    seconds: float
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def processors() -> int:
    """How many processors this process may keep busy; a worker has its share of them."""
    seen = hasattr(os, "sched_getaffinity")
    found = len(os.sched_getaffinity(0)) if seen else os.cpu_count() or 1
    return max(1, found // _workers)


def in_processes(
    jobs: Sequence[Job],
    *,
    workers: int,
    text: str,
    keep: Callable[[int, Any], object] = lambda *_: None,
) -> list[Any]:
    """What every job returns, in the order of the jobs; the longest are begun first.

    As each ends, ``keep(number, found)`` is called here. Processes are spawned, as this is right on
    every system. They import neither the caller's script again nor hear its Ctrl-C: they end when
    this process lets go of them, or ends in any way.

    Raises:
        Exception: the first that a job raises, with a note that names the job.
    """
    from concurrent.futures import wait

    if not jobs:
        return []
    shares = [0.0] * len(jobs)
    total, number = sum(job.seconds for job in jobs), min(workers, len(jobs))
    with progress(total, text) as bar, Workers(number, workers) as pool:
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i].seconds)
        began = {pool.submit(_do, i, jobs[i]): i for i in order}
        pending = {*began}
        while pending:
            done, pending = wait(pending, timeout=0.1, return_when="FIRST_EXCEPTION")
            for number, share in pool.told():
                shares[number] = share
            bar.update(sum(s * job.seconds for s, job in zip(shares, jobs, strict=True)))
            for future in sorted(done, key=lambda one: one.exception() is not None):
                keep(began[future], future.result())
    return [future.result() for future in sorted(began, key=began.__getitem__)]


class Workers:
    """A pool of spawned processes that :meth:`end` ends at once, whatever they are doing.

    Args:
        number: how many there are.
        sharing: among how many each may think that it shares the processors; `number` if None.
    """

    def __init__(self, number: int, sharing: int | None = None) -> None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context("spawn")
        self._held, self._hold = context.Pipe(duplex=False)
        self._told = context.SimpleQueue()
        arguments = (self._held, self._told, sharing or number)
        self._pool = ProcessPoolExecutor(number, context, initializer=_begin, initargs=arguments)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Have a process call ``function(*arguments)``."""
        with _unseen():  # the first call spawns all
            return self._pool.submit(function, *arguments)

    def told(self) -> Iterator[tuple[int, float]]:
        """What processes have said by :func:`tell` since the last call."""
        while not self._told.empty():
            yield self._told.get()

    def end(self) -> None:
        """End the processes, which lose what they were doing."""
        self._hold.close()
        # One may have ended in the middle of what it was saying. What waits for the rest, in a
        # thread of the pool, hears that there is none when nobody can say more, this process too.
        results: Any = self._pool._result_queue
        if results is not None:  # it is not shut down yet
            results._writer.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._held.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._pool.shutdown()
        self.end()


def tell(number: int, share: float) -> None:
    """Tell whoever holds this process that it has done this share of a piece of work."""
    if _told is not None:
        _told.put((number, share))


@contextmanager
def _unseen() -> Iterator[None]:
    """What is spawned in the body sees no script of the caller, and is deaf to Ctrl-C."""
    main, deaf = sys.modules["__main__"], hasattr(signal, "pthread_sigmask")
    sys.modules["__main__"] = ModuleType("__main__")
    if deaf:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if deaf:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(held: Any, told: Any, workers: int) -> None:
    """Make a worker of this process."""
    import threading

    global _workers, _told
    _workers, _told = workers, told
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    quiet()

    def watch() -> None:
        try:
            held.recv()
        except EOFError:  # nobody holds the other end any more
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(number: int, job: Job) -> Any:
    try:
        found = job.function(*job.arguments, lambda share: tell(number, share))
    except Exception as error:
        error.add_note(f"(in {job.name})")
        raise
    tell(number, 1.0)
    return found
