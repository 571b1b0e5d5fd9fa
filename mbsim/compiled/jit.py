"""How a function of the library is compiled, and what the exchangeable ones look like.

Compiled code is kept in a cache beside the source, or in the user's own cache directory where that
is read-only; where neither can be written it is compiled again in every process. With
``NUMBA_DISABLE_JIT=1`` the same functions run in plain Python: slowly, and to the same law.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from numba import float64, from_dtype, int64, njit, types, void
from numba.core import event

from mbsim._shared.seeds import SFC64_STATE

__all__ = [
    "INTS", "LAW", "LOSS", "REALS", "RULE", "STATE",
    "compiled", "for_signature", "helper", "pointer",
]  # fmt: skip

# The state of a stream. As a record it is passed to a function as it is; an array would be counted
# as held by one more, which costs more than a random number.
REALS, INTS, STATE = float64[::1], int64[::1], from_dtype(SFC64_STATE)
# (w, parameters, gradient to be filled) to the value.
LOSS = float64(REALS, REALS, REALS)
# (norms, parameters, factors to be filled).
RULE = void(REALS, REALS, REALS)
# (counts, benign_dim, parameters, state, and to be filled: along e, deviation across it).
LAW = void(INTS, int64, REALS, STATE, REALS, REALS)

# Divisions by 0 give infinity or NaN as in NumPy, and threads run side by side.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True}


class _Line(event.Listener):
    """Says once that something is compiled, if anybody watches; nothing where the cache has it."""

    said = False

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        if not _Line.said and sys.stderr.isatty():
            print("mbsim compiles its engine, once: a few seconds", file=sys.stderr, flush=True)
        _Line.said = True

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def _interrupt_afterwards() -> Iterator[None]:
    """Put off a Ctrl-C: the compiler calls back into Python, where it would be lost."""
    came: list[int] = []
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if mine else None
    if before is None:  # another thread never sees it, and a handler that is not Python's stays
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function compiled for one signature, or taken from the cache."""
    return lambda function: for_signature(function, signature)


@lru_cache
def for_signature(function: Callable[..., Any], signature: Any) -> Any:
    """The same as a function: once for each function, so that everybody's is one."""
    plain = getattr(function, "py_func", function)
    with event.install_listener("numba:compile", _Line()), _interrupt_afterwards():
        try:
            return njit(signature, cache=True, forceinline=True, **_OPTIONS)(plain)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(signature, **_OPTIONS)(plain)


def helper(function: Callable[..., Any]) -> Any:
    """A function that is compiled as a part of those that call it."""
    return njit(forceinline=True, **_OPTIONS)(function)


def pointer(signature: Any) -> Any:
    """The type of an argument that is a compiled function."""
    return types.FunctionType(signature)
