"""Arithmetic of arrays that NumPy has no one call for."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ratio"]


def ratio(above: Any, below: Any) -> Any:
    """above/below, broadcast, with 0 where `below` is not above 0: 0/0 is read as 0.

    >>> ratio(np.array([[1.0], [0.0]]), np.array([2.0, 0.0]))
    array([[0.5, 0. ],
           [0. , 0. ]])
    """
    shape = np.broadcast_shapes(above.shape, below.shape)
    out = np.zeros(shape, np.result_type(above, below))
    return np.divide(above, below, out=out, where=below > 0)
