"""Frozen dataclasses that may hold arrays: equal content is equal, and nothing changes."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import numpy as np

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def value(cls: type[T]) -> type[T]:
    """``@dataclass(frozen=True)`` whose equality and hash also work for array fields."""
    cls.__eq__ = _equal  # type: ignore[method-assign]
    cls.__hash__ = _hash  # type: ignore[method-assign]
    return dataclasses.dataclass(frozen=True, eq=False)(cls)


def set_field(instance: object, name: str, content: Any) -> None:
    """Store a checked field of a frozen dataclass from its ``__post_init__``; arrays are locked."""
    if isinstance(content, np.ndarray):
        content = content.copy()
        content.setflags(write=False)
    object.__setattr__(instance, name, content)


def declared(instance: object, name: str, default: Any = None) -> Any:
    """What the class of an object says itself of it; `default` where it says nothing.

    A subclass does not inherit what is said here, for it may have changed what made it true.
    """
    if name not in vars(type(instance)):
        return default
    return getattr(instance, name)


def _contents(instance: Any) -> list[Any]:
    return [getattr(instance, f.name) for f in dataclasses.fields(instance) if f.compare]


def _equal(self: Any, other: object) -> bool:
    if type(self) is not type(other):
        return NotImplemented
    return all(_same(a, b) for a, b in zip(_contents(self), _contents(other), strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        numeric = np.asarray(a).dtype.kind in "fc"
        return type(a) is type(b) and np.array_equal(a, b, equal_nan=numeric)
    return bool(a == b)


def _hash(self: Any) -> int:
    # Adding 0 turns −0.0 into 0.0, which compares equal and must hash equal.
    parts = ((c + 0).tobytes() if isinstance(c, np.ndarray) else c for c in _contents(self))
    return hash((type(self), *(p if _hashable(p) else repr(p) for p in parts)))


def _hashable(content: Any) -> bool:
    try:
        hash(content)
    except TypeError:
        return False
    return True
