"""Content as plain data and back, as JSON and in files: numbers and text, no pickles, ever."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from typing import Any

import numpy as np

from mbsim._shared.files import reading, replacing
from mbsim.errors import shown

__all__ = ["describe", "load", "rebuild", "register", "save", "to_json"]

# The classes that a file may name, as rooms register them, and no others.
_KNOWN: dict[str, Any] = {}


def register(*classes: type) -> None:
    """Let files name these dataclasses, which their fields describe."""
    _KNOWN.update((cls.__name__, cls) for cls in classes)


def describe(content: Any) -> Any:
    """`content` as plain data: mbsim's own objects field by field, anything else by its repr."""
    if isinstance(content, (np.ndarray, np.generic)):
        return content.tolist()
    if _KNOWN.get(type(content).__name__) is type(content):
        fields = {f.name: describe(getattr(content, f.name)) for f in dataclasses.fields(content)}
        return {"mbsim": type(content).__name__, **fields}
    if isinstance(content, (bool, int, float, str)):
        return content
    if isinstance(content, (list, tuple)):
        return [describe(item) for item in content]
    kind = type(content)
    return {"foreign": f"{kind.__module__}.{kind.__qualname__}", "repr": repr(content)}


def rebuild(description: Any) -> Any:
    """The object that :func:`describe` described; None if any part of it is not mbsim's own.

    Raises:
        ValueError: for what nothing is described by; the classes themselves refuse wrong fields.
    """
    if description is None:
        raise ValueError("null describes nothing")
    if not isinstance(description, dict):
        return description
    if description.keys() == {"foreign", "repr"}:
        return None
    cls = _KNOWN.get(str(description.get("mbsim")))
    names = {"mbsim"} if cls is None else {"mbsim", *(f.name for f in dataclasses.fields(cls))}
    if cls is None or description.keys() != names:
        raise ValueError(f"{shown(description)} must describe a class of mbsim")
    fields = {name: rebuild(item) for name, item in description.items() if name != "mbsim"}
    if any(item is None for item in fields.values()):
        return None
    found = cls(**fields)
    if describe(found) != description:
        raise ValueError(f"{shown(description)} must be what describes {shown(found)}")
    return found


def to_json(content: Any) -> str:
    """Plain data as JSON that any reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(item) for key, item in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(item) for item in content]
    return content


# ---------------------------------------------------------------------------- files


def save(path: Any, form: str, plain: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write plain data and arrays of numbers to one ``.npz`` file, whole or not at all."""
    meta = json.dumps({"format": form, **plain}, allow_nan=False)
    with replacing(path) as file:
        np.savez(file, meta=np.array(meta), **arrays)  # numbers only, so nothing is pickled


def load(path: Any, writer: str, form: str, build: Any) -> Any:
    """What `build` makes of the plain data and the arrays in a file written by :func:`save`.

    Nothing in the file is trusted: `build` must check what it is given.

    Args:
        path: the file.
        writer: who writes such files, for the message.
        form: the format that the file must be in.
        build: plain data and arrays, by name, to what is returned.

    Raises:
        InvalidArgument: if there is no such file there, and for whatever `build` raises.
    """
    with reading(path, f"a file written by {writer}") as file, zipfile.ZipFile(file) as members:
        arrays = {info.filename.removesuffix(".npy"): info for info in members.infolist()}
        if len(arrays) < len(members.infolist()) or "meta" not in arrays:
            raise ValueError("its arrays must have names, each its own, and one must be 'meta'")
        content = {name: _read(members, info) for name, info in arrays.items()}
        meta = content.pop("meta")
        if meta.shape or meta.dtype.kind != "U":
            raise ValueError("its 'meta' must be text")
        plain = json.loads(meta.item(), object_pairs_hook=_no_twins, parse_constant=_no_constant)
        if not isinstance(plain, dict) or plain.pop("format", None) != form:
            raise ValueError(f"it must be in the format {form!r}; another version has another")
        return build(plain, content)


def _read(members: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """One array, of which no more is believed than the file has bytes for."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{info.filename!r} must not be compressed")
    with members.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{info.filename!r} is of an unknown version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or member.tell() + size != info.file_size:
            raise ValueError(f"{info.filename!r} must hold {shape} of {dtype}, and does not")
    with members.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{info.filename!r} is longer than it says")
    return array


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its 'meta'")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"its 'meta' must not hold {name}")
