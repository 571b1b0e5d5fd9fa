"""Progress on standard error for what runs longer than two seconds, if anybody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Progress", "progress"]

_PATIENCE = 2.0
_busy: ContextVar[bool] = ContextVar("mbsim_progress", default=False)


class Progress:
    """Counts work done; draws a bar once the work has lasted two seconds."""

    def __init__(self, total: float | None, text: str, *, shown: bool) -> None:
        self._total, self._text, self._shown = total, text, shown
        self._since = time.monotonic()
        self._bar: Any = None

    def update(self, completed: float, text: str | None = None) -> None:
        """Say how much of the total is done, and optionally what is being done now."""
        self._text = text or self._text
        if not self._shown or time.monotonic() - self._since < _PATIENCE:
            return
        from rich.console import Console
        from rich.progress import Progress as Bar

        if self._bar is None:
            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._text, total=self._total)
        self._bar.update(self._task, completed=completed, description=self._text)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(total: float | None, text: str) -> Iterator[Progress]:
    """A progress bar for the body; silent inside another one, and where stderr is no terminal.

    A total of None is one that is not known.
    """
    bar = Progress(total, text, shown=sys.stderr.isatty() and not _busy.get())
    token = _busy.set(True)
    try:
        yield bar
    finally:
        bar.close()
        _busy.reset(token)
