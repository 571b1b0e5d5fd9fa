"""Optional dependencies: where one is missing, the message says what brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needed"]


@contextmanager
def needed(who: str, what: str, *, extra: str, name: str) -> Iterator[None]:
    """For imports in the body, of the module `name`, which an extra of mbsim brings.

    >>> with needed("this", "Nothing", extra="all", name="nothing"):
    ...     import nothing
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: this needs Nothing: pip install 'microbatch-clipping[all]'
    """
    try:
        yield
    except ImportError:
        message = f"{who} needs {what}: pip install 'microbatch-clipping[{extra}]'"
        raise ModuleNotFoundError(message, name=name) from None
