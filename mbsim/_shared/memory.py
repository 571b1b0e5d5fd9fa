"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_memory"]

# Where the system does not tell.
_ASSUMED = 16 * 2**30


def free_memory() -> int:
    """Bytes that can be taken without swapping, as Linux tells them; elsewhere 16 GiB are assumed.

    >>> free_memory() > 0
    True
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        numbers = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return 1024 * numbers["MemAvailable"]
    except (OSError, ValueError, IndexError, KeyError):
        return _ASSUMED
