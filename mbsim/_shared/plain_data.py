"""Plain data as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["to_json"]


def to_json(content: Any) -> str:
    """Plain data as JSON that any reader takes: numbers that are not finite become null.

    >>> print(to_json({"b": 4, "floor": float("inf")}), end="")
    {
     "b": 4,
     "floor": null
    }
    """
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(item) for key, item in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(item) for item in content]
    return content
