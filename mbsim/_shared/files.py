"""Files: written whole or not at all, and read only where there is one. Every fault is one line."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mbsim.errors import InvalidArgument, shown

__all__ = ["reading", "replacing", "writable_folder", "write_all"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def _why(error: Exception) -> str:
    """What an exception says, in one line that is not too long."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def _shown(path: Any) -> str:
    return shown(str(path) if isinstance(path, os.PathLike) else path)


def _text_of(path: Any) -> str:
    """A path as text, if it can be the path of a file."""
    try:
        text = os.fspath(path)
        os.fsencode(text)
    except (TypeError, UnicodeError):
        raise OSError("it is no path") from None
    if not isinstance(text, str) or "\0" in text or not os.path.basename(text):
        raise OSError("it names no file")
    return text


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}")


def _target(path: Any) -> tuple[str, int | None]:
    """Where `path` leads, and the mode of the regular file that is there, if there is one."""
    text = _text_of(path)
    if not os.path.lexists(text):
        os.stat(os.path.dirname(text) or os.curdir)
        with suppress(FileNotFoundError):  # any other fault is one of the name
            os.lstat(text)
        return text, None
    text = os.path.realpath(text, strict=True)
    mode = os.stat(text).st_mode
    _check_regular(mode)
    return text, stat.S_IMODE(mode)


@contextmanager
def replacing(path: Any, name: str = "path") -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` once the body has ended well.

    A link to a file stays, and the file takes the new content; an existing file keeps its mode.
    Whatever is no regular file (a folder, a device, a pipe, a link that leads nowhere) is left
    alone.

    Raises:
        InvalidArgument: if the file cannot be written; then nothing has changed.
    """
    temporary = None
    try:
        target, mode = _target(path)
        temporary = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.part")
        with open(temporary, "xb") as file:  # its mode is that of any new file
            yield file
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    except OSError as error:
        raise InvalidArgument(
            f"{name}={_shown(path)} must be a file that can be written: {_why(error)}"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # gone if all went well
                os.unlink(temporary)


@contextmanager
def reading(path: Any, rule: str, name: str = "path") -> Iterator[IO[bytes]]:
    """The file at `path`, to read; whatever is wrong with it, in the body too, is one line.

    Raises:
        InvalidArgument: that `path` must be `rule`, and why it is not.
    """
    try:
        text = _text_of(path)
        _check_regular(os.stat(text).st_mode)  # opening a pipe would wait for its other end
        with open(text, "rb") as file:
            yield file
    except Exception as error:  # a damaged file has a dozen kinds of damage
        raise InvalidArgument(f"{name}={_shown(path)} must be {rule}: {_why(error)}") from error


def writable_folder(path: Any, name: str) -> Path:
    """The folder at `path`, made if it is not there, in which files can be made."""
    try:
        if not os.fspath(path):
            raise ValueError("it names no folder")
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"{name}={_shown(path)} must be a folder that can be written to"
        ) from error
    return folder


def write_all(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files of a folder by name, each whole or not at all; their paths."""
    for name, content in files.items():
        with replacing(folder / name, "out") as file:
            file.write(content)
    return [folder / name for name in files]
