"""Long work, piece by piece: what has finished is in a store, and is not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mbsim._shared.files import writable_folder
from mbsim._shared.processes import Job, in_processes
from mbsim._shared.progress import progress
from mbsim.sweeps.store import Store

__all__ = ["Record", "kept", "stored"]

Record = dict[str, Any]
# The version of what long studies measure: 1 more when its numbers have changed on purpose.
LAW = 1


def stored(
    folder: str | os.PathLike[str],
    settings: Sequence[tuple[Any, ...]],
    measure: Callable[..., Record],
    *arguments: Any,
    names: Sequence[str],
    workers: int = 1,
    text: str,
) -> list[Record]:
    """What ``measure(setting, *arguments)`` says of every setting; what is stored is not asked.

    Args:
        folder: where ``study.sqlite`` is, made if it is not there.
        settings: tuples of plain data.
        measure: a function that a process can be told of, if there are several.
        *arguments: its others.
        names: of the settings, one for each; with its setting one says all that decides a record.
        workers: how many processes; with 1 it is done in this one.
        text: what is said beside the progress.

    Returns:
        The records, in the order of the settings.

    Raises:
        InvalidArgument: for no folder, and a store that is held, damaged, or of something else.
    """
    jobs = [
        Job(name, 1.0, _measured, (measure, setting, *arguments))
        for name, setting in zip(names, settings, strict=True)
    ]
    about = [{"law": LAW, "name": job.name, "setting": list(job.arguments[1])} for job in jobs]
    path = writable_folder(folder, "out") / "study.sqlite"
    return kept(path, jobs, about, workers=workers if workers > 1 else 0, text=text)


def kept(
    path: str | os.PathLike[str],
    jobs: Sequence[Job],
    about: Sequence[Mapping[str, Any]],
    *,
    workers: int,
    text: str,
    form: tuple[Any, Any] = (None, None),
) -> list[Any]:
    """What jobs return, from a store as far as it is there.

    What ends is kept at once: after an interrupt only the rest is done.

    Args:
        path: of the store, made if it is not there.
        jobs: what to do.
        about: for each of them all that decides what it returns, as plain data.
        workers: how many processes; 0 for none but this one.
        text: what is said beside the progress.
        form: for what is no plain data, the default of ``json.dumps`` and the hook of
            ``json.loads``.
    """
    plain, back = form
    with Store(path, write=True) as store:
        found = [store.record(one) for one in about]
        left = [i for i, record in enumerate(found) if record is None]

        def keep(number: int, record: Any) -> None:
            found[left[number]] = json.loads(json.dumps(record, default=plain))
            store.add_record(about[left[number]], found[left[number]])

        if workers:
            in_processes([jobs[i] for i in left], workers=workers, text=text, keep=keep)
        else:
            with progress(len(left), text) as bar:
                for number, i in enumerate(left):
                    bar.update(number, f"{text}, {jobs[i].name}")
                    keep(number, jobs[i].function(*jobs[i].arguments, None))
    return [json.loads(json.dumps(record), object_hook=back) for record in found]


def _measured(measure: Callable[..., Record], *arguments: Any) -> Record:
    """A setting measured by a job, whose last argument says how far it is: of no use here."""
    return {"setting": list(arguments[0]), **measure(*arguments[:-1])}
