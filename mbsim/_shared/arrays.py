"""Arrays: what they are called, and arithmetic that NumPy has no one call for."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Integers", "Mask", "one_blas_thread", "ratio"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


def one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Keep matrix products on one thread, where threadpoolctl (a part of scikit-learn) is there.

    How many threads share a product decides its last digits. And of small ones, of about 64 × 64 ×
    64, two threads gain nothing and, when the machine is busy, wait for each other (three times
    slower, measured).
    """
    pools = _pools()
    return contextlib.nullcontext() if pools is None else pools.limit(limits=1, user_api="blas")


@lru_cache
def _pools() -> Any:
    """What limits threads, found once: NumPy's own are there by now."""
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
    except ImportError:
        return None
    return ThreadpoolController()


def ratio(above: Any, below: Any) -> Any:
    """above/below, broadcast, with 0 where `below` is not above 0: 0/0 is read as 0.

    >>> ratio(np.array([[1.0], [0.0]]), np.array([2.0, 0.0]))
    array([[0.5, 0. ],
           [0. , 0. ]])
    """
    shape = np.broadcast_shapes(above.shape, below.shape)
    out = np.zeros(shape, np.result_type(above, below))
    return np.divide(above, below, out=out, where=below > 0)
