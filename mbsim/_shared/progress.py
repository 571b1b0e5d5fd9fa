"""Progress on standard error: a bar in a terminal; elsewhere a line, at ever longer intervals."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["Progress", "progress", "quiet", "watched"]

T = TypeVar("T")

_PATIENCE = 2.0
_FIRST_LINE = 20.0  # and the next ones when twice as much time has gone by
_busy: ContextVar[bool] = ContextVar("mbsim_progress", default=False)


class Progress:
    """Counts work done; after two seconds it draws a bar, or after twenty writes a line."""

    def __init__(self, total: float | None, text: str, *, shown: bool, lines: bool = False) -> None:
        self._total, self._text, self._shown, self._lines = total, text, shown, lines
        self._next = _FIRST_LINE
        self._since = self._known = time.monotonic()
        self._completed = 0.0
        self._bar: Any = None

    def update(self, completed: float, text: str | None = None) -> None:
        """Say how much of the total is done, and optionally what is being done now."""
        self._text, now = text or self._text, time.monotonic()
        if completed > self._completed:
            self._completed, self._known = completed, now
        if self._lines and now - self._since >= self._next:
            self._next = 2 * (now - self._since)
            share = f"{completed / self._total:.0%}, " if self._total else ""
            print(f"mbsim: {self._text}: {share}{self._left(now)}", file=sys.stderr, flush=True)
        if not self._shown or now - self._since < _PATIENCE:
            return
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(self._text, total=self._total, left="")
        self._bar.update(
            self._task, completed=completed, description=self._text, left=self._left(now)
        )

    def _left(self, now: float) -> str:
        """The time left if work goes on as it went so far: as last known, less what has passed."""
        if not self._completed or self._total is None:
            return "-:--"
        each = (self._known - self._since) / self._completed
        left = max(0.0, each * (self._total - self._completed) - (now - self._known))
        return f"{left // 60:.0f}:{left % 60:02.0f} left"

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    # Rich's own column of the time left forgets what was more than half a minute ago.
    text, left = TextColumn("{task.description}"), TextColumn("{task.fields[left]}")
    columns = (text, BarColumn(), TaskProgressColumn(), left)
    return Progress(*columns, console=Console(stderr=True), transient=True)


def quiet() -> None:
    """Draw no bar from here on: another process draws one for all."""
    _busy.set(True)


@contextmanager
def progress(total: float | None, text: str) -> Iterator[Progress]:
    """A progress bar for the body, or lines where stderr is no terminal; silent inside another one.

    A total of None is one that is not known.
    """
    outermost, watched = not _busy.get(), sys.stderr.isatty()
    bar = Progress(total, text, shown=outermost and watched, lines=outermost and not watched)
    token = _busy.set(True)
    try:
        yield bar
    finally:
        bar.close()
        _busy.reset(token)


def watched(items: Collection[T], text: str) -> Iterator[T]:
    """The items one by one, with a bar that says how many are done.

    >>> [2 * item for item in watched([1, 2, 3], "doubling")]
    [2, 4, 6]
    """
    with progress(len(items), text) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.update(done)
