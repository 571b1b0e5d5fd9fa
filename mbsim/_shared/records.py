"""Runs on disk, and the plain-data description of what made them. No pickles, ever."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import IO, Any

import numpy as np

from mbsim._shared.files import replacing
from mbsim._shared.version import __version__
from mbsim.errors import InvalidArgument

__all__ = ["load", "provenance", "register", "save"]

_FORMAT = "mbsim run 1"
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
    if content is None or isinstance(content, (bool, int, float, str)):
        return content
    if isinstance(content, (list, tuple)):
        return [describe(item) for item in content]
    if isinstance(content, dict):
        return {key: describe(item) for key, item in content.items()}
    kind = type(content)
    return {"foreign": f"{kind.__module__}.{kind.__qualname__}", "repr": repr(content)}


def rebuild(description: Any) -> Any:
    """The object that :func:`describe` described; None if any part of it is not mbsim's own."""
    if not isinstance(description, dict):
        return description
    if "mbsim" not in description:
        return None
    fields = {name: rebuild(item) for name, item in description.items() if name != "mbsim"}
    if any(item is None for item in fields.values()):
        return None
    cls = _KNOWN[description["mbsim"]]
    return cls(**fields)


def provenance(**what: Any) -> dict[str, Any]:
    """A description of what made a run, with the versions that made it."""
    versions = {
        "mbsim": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return {**{name: describe(item) for name, item in what.items()}, "versions": versions}


def save(run: Any, path: Path) -> None:
    """Write `run` to `path` through a temporary file beside it."""
    arrays: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(run):
        content = getattr(run, field.name)
        if isinstance(content, np.ndarray):
            arrays[field.name] = content
        elif field.name not in ("problem", "method"):  # the provenance has them
            plain[field.name] = describe(content)
    meta = json.dumps({"format": _FORMAT, **plain})
    with replacing(path) as file:
        np.savez(file, meta=np.array(meta), **arrays)  # numbers only, so nothing is pickled


def load(path: Path, cls: type) -> dict[str, Any]:
    """The fields of the run in the file at `path`."""
    with path.open("rb") as stream:  # why a file cannot be opened, the system says best
        try:
            return _read(stream, cls)
        except Exception as error:  # zipfile, zlib, json and NumPy know a dozen kinds of damage
            raise InvalidArgument(
                f"path={str(path)!r} must be a file written by Run.save"
            ) from error


def _read(stream: IO[bytes], cls: type) -> dict[str, Any]:
    with np.load(stream, allow_pickle=False) as file:
        content: dict[str, Any] = {name: file[name] for name in file.files}
    meta = json.loads(str(content.pop("meta")))
    recipe = meta["provenance"]
    entropy, key = meta["seed"]
    rebuilt = {name: rebuild(recipe[name]) for name in ("problem", "method")}
    content |= meta | rebuilt | {"seed": (entropy, tuple(key))}
    if content.pop("format") != _FORMAT:
        raise ValueError(f"not in the format {_FORMAT!r}")
    if set(content) != {f.name for f in dataclasses.fields(cls)}:
        raise ValueError("not the fields of a run")
    return content
