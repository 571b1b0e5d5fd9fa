"""Long studies: a file of each finished setting, so that they are begun again where they ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mbsim._shared.files import replacing, writable_folder
from mbsim._shared.processes import Job, in_processes
from mbsim._shared.progress import progress
from mbsim._shared.records import to_json
from mbsim.errors import InvalidArgument, shown

__all__ = ["Record", "stored"]

Record = dict[str, Any]


def stored(
    folder: str | os.PathLike[str],
    settings: Sequence[tuple[Any, ...]],
    measure: Callable[..., Record],
    *arguments: Any,
    names: Sequence[str],
    workers: int = 1,
    text: str,
) -> list[Record]:
    """What ``measure(setting, *arguments)`` says of every setting, or its file if there is one.

    Args:
        folder: where the files are, made if it is not there.
        settings: tuples of plain data; a record says its own under "setting".
        measure: a function that a process can be told of, if there are several.
        *arguments: its others.
        names: of the files, one for each setting, without ".json".
        workers: how many processes.
        text: what is said beside the progress.

    Returns:
        The records, in the order of the settings.

    Raises:
        InvalidArgument: for no folder, and a file that is of another study.
    """
    place = writable_folder(folder, "out")
    paths = [place / f"{name}.json" for name in names]
    left = [i for i, path in enumerate(paths) if not path.exists()]
    if workers > 1:
        jobs = [
            Job(names[i], 1.0, _keep_there, (paths[i], measure, settings[i], *arguments))
            for i in left
        ]
        in_processes(jobs, workers=workers, text=text)
    else:
        with progress(len(left), text) as bar:
            for number, i in enumerate(left):
                bar.update(number, f"{text}, {names[i]}")
                _keep(paths[i], measure, settings[i], *arguments)
    return [_read(path, setting) for path, setting in zip(paths, settings, strict=True)]


def _keep(path: Path, measure: Callable[..., Record], setting: Any, *arguments: Any) -> None:
    """Measure a setting and write its file."""
    record = {"setting": list(setting), **measure(setting, *arguments)}
    with replacing(path, "out") as file:
        file.write(to_json(record).encode())


def _keep_there(*arguments: Any) -> None:
    """The same in a process, whose last argument says how far it is: of no use here."""
    _keep(*arguments[:-1])


def _read(path: Path, setting: tuple[Any, ...]) -> Record:
    try:
        record: Record = json.loads(path.read_text("utf-8"))
        known = record["setting"]
    except (ValueError, KeyError, TypeError):
        known = None
    if known != json.loads(to_json(list(setting))):
        raise InvalidArgument(f"out: {shown(str(path))} is of another study; choose another folder")
    return record
