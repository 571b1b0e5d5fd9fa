"""The store: one SQLite file of what has finished: blocks of a sweep, and records of a study.

One process writes, in one transaction for each block or record; any number may read meanwhile. A
transaction that is not finished leaves nothing: a store that was killed is one with less in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from mbsim._shared import tables
from mbsim._shared.files import replacing
from mbsim._shared.values import value
from mbsim.errors import InvalidArgument, check_number, shown
from mbsim.sweeps.blocks import (
    QUANTILES,
    Block,
    Head,
    Summary,
    head,
    needed,
    packed,
    together,
    unpacked,
)
from mbsim.sweeps.grid import Cell, Grid, label

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes

__all__ = ["Results", "Row", "Store"]

# What makes a file a store, and the statements that take it from each version to the next.
_APPLICATION = 0x6D627377  # "mbsw"
_VERSIONS = (
    (
        "CREATE TABLE grids (number INTEGER PRIMARY KEY, grid TEXT UNIQUE)",
        "CREATE TABLE cells (identity TEXT PRIMARY KEY, description TEXT) WITHOUT ROWID",
        "CREATE TABLE blocks (identity TEXT, first INTEGER, count INTEGER, average REAL, "
        "average_deviation REAL, final REAL, final_deviation REAL, diverged INTEGER, "
        "stalled INTEGER, provenance TEXT, steps BLOB, moments BLOB, bins BLOB, "
        "UNIQUE (identity, first, count))",
        "CREATE INDEX diverging ON blocks (identity) WHERE diverged > 0",
    ),
    (
        "CREATE TABLE failures (identity TEXT PRIMARY KEY, first INTEGER, kind TEXT, "
        "message TEXT, traceback TEXT) WITHOUT ROWID",
    ),
    ("CREATE TABLE records (identity TEXT PRIMARY KEY, description TEXT, record TEXT)",),
)


# ------------------------------------------------------------------------- the file


class Store:
    """A file of finished blocks and records.

    Args:
        path: where it is; a link leads to the same store. To write, it is made if it is not there.
        write: hold it, so that no other process writes. Otherwise it is read only.
        wait: how many seconds to wait for a process that holds it.

    Raises:
        InvalidArgument: if it is held, saying by whom; if it is no store, or one of a newer
            version, or damaged, or cannot be written. Then nothing has changed.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Store(os.path.join(folder, "results.sqlite"), write=True) as store:
    ...         store.grids()
    []
    """

    def __init__(
        self, path: str | os.PathLike[str], *, write: bool = False, wait: float = 0.0
    ) -> None:
        wait = check_number("wait", wait, minimum=0)
        try:
            self.path = Path(os.path.realpath(os.fspath(path)))
            there = self.path.is_file()
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"store={shown(path)} must be the path of a file") from error
        if not write and not there:
            raise InvalidArgument(
                f"store={shown(str(path))} must be a store: there is no such file"
            )
        self._lock: _Lock | None = None
        if write:
            self._lock = _Lock(self.path, wait)
        try:
            with self._faults():
                self._connection = self._opened(write)
        except BaseException:
            if self._lock:
                self._lock.close()
            raise

    def _opened(self, write: bool) -> sqlite3.Connection:
        """A connection to what is a store of this version, or has become one."""
        if self.path.exists() and (size := self.path.stat().st_size):
            settled = not os.path.exists(f"{self.path}-wal")
            if size < 512:  # which SQLite takes for nothing, and would write over
                raise InvalidArgument("it is no database, or was cut short")
            with contextlib.closing(self._connected(write=False)) as found:
                version = self._version_of(found)
                (page,) = found.execute("PRAGMA page_size").fetchone()
                if settled and size % page:  # SQLite takes what is missing of a page for zeros
                    raise InvalidArgument("it was cut short")
        elif write:
            version = 0
        else:
            raise InvalidArgument("it is empty")
        if not write:
            connection = self._connected(write=False)
            if version < len(_VERSIONS):  # as it would be, in memory
                memory = sqlite3.connect(":memory:", isolation_level=None)
                connection.backup(memory)
                connection.close()
                connection = memory
                _migrate(connection, version)
            return connection
        connection = self._connected(write=True)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if version < len(_VERSIONS):
            _migrate(connection, version)
        return connection

    def _connected(self, *, write: bool) -> sqlite3.Connection:
        place = f"file:{quote(str(self.path.absolute()))}"
        settings: dict[str, Any] = {"uri": True, "isolation_level": None, "timeout": 10}
        connection = sqlite3.connect(f"{place}?mode={'rwc' if write else 'rw'}", **settings)
        if not write:
            # Of those who may write, the last to leave takes the files beside the store away.
            connection.execute("PRAGMA query_only = 1")
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.Error as error:
                connection.close()
                unopened = isinstance(error, sqlite3.OperationalError)
                if not unopened or os.path.exists(f"{self.path}-wal"):
                    raise
                # In a folder that cannot be written to, where nobody else can write either.
                connection = sqlite3.connect(f"{place}?mode=ro&immutable=1", **settings)
        return connection

    def _version_of(self, connection: sqlite3.Connection) -> int:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables_,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION and (application or version or tables_):
            raise InvalidArgument("it is a database of something else")
        if version > len(_VERSIONS):
            raise InvalidArgument(
                f"it is of version {version}, and this mbsim knows up to {len(_VERSIONS)}; "
                "a newer mbsim reads it"
            )
        return int(version)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Whatever is wrong with the file, in one line."""
        try:
            yield
        except Exception as error:  # a damaged file has a dozen kinds of damage
            why = " ".join(str(error).split())[:200]
            raise InvalidArgument(
                f"store={shown(str(self.path))} must be a store of sweeps that can be used: {why}"
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._faults():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise

    # -- what is written

    def add_grid(self, grid: Grid) -> None:
        """Make `grid` the one that was asked for last."""
        text = json.dumps(grid.to_plain(), ensure_ascii=False)
        with self._faults():
            last = self._connection.execute(
                "SELECT grid FROM grids ORDER BY number DESC"
            ).fetchone()
        if last != (text,):
            with self._transaction() as connection:
                connection.execute("DELETE FROM grids WHERE grid = ?", (text,))
                connection.execute("INSERT INTO grids (grid) VALUES (?)", (text,))

    def add(self, cell: Cell, block: Block) -> None:
        """Keep a finished block; one that is there already stays as it is."""
        row = packed(block)
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO cells VALUES (?, ?)", cell[:2])
            connection.execute(
                f"INSERT OR IGNORE INTO blocks VALUES ({', '.join('?' * (1 + len(row)))})",
                (cell.identity, *row),
            )
            connection.execute(
                "DELETE FROM failures WHERE identity = ? AND first = ?",
                (cell.identity, block.first),
            )

    def fail(self, cell: Cell, first: int, kind: str, message: str, traceback: str = "") -> None:
        """Keep why a block could not be drawn; of a cell, the first of them."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO cells VALUES (?, ?)", cell[:2])
            connection.execute(
                "INSERT INTO failures VALUES (?, ?, ?, ?, ?) ON CONFLICT (identity) DO UPDATE SET "
                "first = excluded.first, kind = excluded.kind, message = excluded.message, "
                "traceback = excluded.traceback WHERE excluded.first <= failures.first",
                (cell.identity, first, kind, message, traceback),
            )

    def add_record(self, description: Mapping[str, Any], record: Any) -> None:
        """Keep plain data under all that decides it, which is plain data too."""
        text, identity = _described(description)
        with self._transaction() as connection:
            row = identity, text, json.dumps(record)
            connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)

    # -- what is read

    def record(self, description: Mapping[str, Any]) -> Any:
        """What was kept under this description; None if nothing was."""
        text, identity = _described(description)
        with self._faults():
            asked = "SELECT description, record FROM records WHERE identity = ?"
            found = self._connection.execute(asked, (identity,)).fetchone()
            if found is not None and found[0] != text:
                raise InvalidArgument("a record in it is of another study")
            return None if found is None else json.loads(found[1])

    def grids(self) -> list[Grid]:
        """The grids that were asked for, the last one last."""
        with self._faults():
            rows = self._connection.execute("SELECT grid FROM grids ORDER BY number").fetchall()
            return [Grid.from_plain(json.loads(text)) for (text,) in rows]

    def have(self) -> dict[str, dict[tuple[int, int], Head]]:
        """For every cell what decides of its blocks whether to go on, by first and count."""
        names = "average, average_deviation, final, final_deviation"
        found: dict[str, dict[tuple[int, int], Head]] = {}
        with self._faults():
            asked = f"SELECT identity, first, count, {names} FROM blocks"
            for identity, first, count, *head in self._connection.execute(asked):
                numbers = (math.nan if x is None else x for x in head)  # SQLite has no NaN
                found.setdefault(identity, {})[first, count] = Head(count, *numbers)
        return found

    def failures(self) -> dict[str, tuple[str, str, str]]:
        """For every cell that failed: the kind of failure, a sentence and the traceback."""
        with self._faults():
            asked = "SELECT identity, kind, message, traceback FROM failures"
            return {identity: tuple(rest) for identity, *rest in self._connection.execute(asked)}

    def blocks(self, identity: str) -> list[Block]:
        """The blocks of a cell, in the order of their numbers."""
        with self._faults():
            asked = "SELECT * FROM blocks WHERE identity = ? ORDER BY first, count"
            return [unpacked(row) for row in self._connection.execute(asked, (identity,))]

    def results(self, grid: Grid | None = None) -> Results:
        """What is known of `grid`, or of the grid that was asked for last.

        Raises:
            InvalidArgument: if no grid is given and there is none, or the file is damaged.
        """
        if grid is None:
            if not (found := self.grids()):
                raise InvalidArgument(
                    f"store={shown(str(self.path))} must hold a grid: it is empty"
                )
            grid = found[-1]
        have = self.have()
        with self._faults():
            asked = "SELECT DISTINCT identity FROM blocks WHERE diverged > 0"
            diverged = {identity for (identity,) in self._connection.execute(asked)}
        failures, statuses = self.failures(), []
        for cell in grid:
            here = have.get(cell.identity, {})
            blocks, enough = needed(grid, here)
            there = sum(block in here for block in blocks)
            status = "partial" if there else "missing"
            if there == len(blocks):
                status = "done" if enough else "capped"
                status = "diverged" if cell.identity in diverged else status
            elif cell.identity in failures:
                status = "failed"
            statuses.append(status)
        return Results(grid=grid, path=self.path.absolute(), statuses=tuple(statuses))

    def summary(self, grid: Grid, cell: Cell) -> Summary | None:
        """What the blocks that `grid` needs say of a cell; None if there are none yet."""
        with self._faults():
            kept = {(b.first, b.replicates): b for b in self.blocks(cell.identity)}
            heads = {block: head(b) for block, b in kept.items()}
            there = [kept[block] for block in needed(grid, heads)[0] if block in kept]
            return together(there) if there else None


def _described(description: Mapping[str, Any]) -> tuple[str, str]:
    """A description in one canonical way, and the identity that follows."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text, hashlib.sha256(text.encode()).hexdigest()


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Take a store from its version to this one, whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    for statements in _VERSIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {len(_VERSIONS)}")
    connection.execute("COMMIT")


class _Lock:
    """A file beside the store, locked for as long as a process holds it, however that ends."""

    def __init__(self, path: Path, wait: float) -> None:
        self.path, until = Path(f"{path}.lock"), time.monotonic() + wait
        try:
            while not self._taken():
                if time.monotonic() >= until:
                    raise InvalidArgument(
                        f"store={shown(str(path))} must be free, and is held by "
                        f"{self.path.read_text('utf-8', 'replace').strip() or 'another process'}"
                    )
                time.sleep(0.05)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            text = f"process {os.getpid()} on {socket.gethostname()} since {since}"
            os.ftruncate(self.file, 0)
            os.write(self.file, text.encode())
        except OSError as error:
            raise InvalidArgument(
                f"store={shown(str(path))} must be in a folder that can be written to: "
                f"{error.strerror or error}"
            ) from error

    def _taken(self) -> bool:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(self.file)
            # It may have been removed by whoever held it before.
            if os.path.exists(self.path) and os.path.samestat(
                os.fstat(self.file), os.stat(self.path)
            ):
                return True
        except BlockingIOError:
            pass
        except BaseException:
            os.close(self.file)
            raise
        os.close(self.file)
        return False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        with contextlib.suppress(OSError):
            os.close(self.file)


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            raise BlockingIOError from error
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ------------------------------------------------------------------------- what came out


class Row(NamedTuple):
    """A cell, its status, and its summary or failure as far as there is one.

    A failure is its kind, a sentence and the traceback.
    """

    cell: Cell
    status: str
    summary: Summary | None
    failure: tuple[str, str, str] | None


@value
class Results:
    """What is known of a grid, in the order of its cells, however it came to be.

    Cells are "done"; "capped", if the cap was met before the standard error asked for; "diverged",
    if a replicate did, so that means are infinite or unknown; "failed"; "partial" or "missing". It
    is complete if none is of the last three kinds; if it is not, it can be drawn, exported or
    turned into arrays only by ``incomplete=True``.

    Attributes:
        grid: the grid.
        path: of the store, from which numbers are read when they are asked for.
        statuses: of every cell.
    """

    grid: Grid
    path: Path
    statuses: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many cells there are of each status."""
        return {status: self.statuses.count(status) for status in sorted({*self.statuses})}

    @property
    def complete(self) -> bool:
        """Whether every cell has all that was asked for."""
        return not {"failed", "partial", "missing"} & {*self.statuses}

    def __iter__(self) -> Iterator[Row]:
        """The cells with what is known of them now."""
        with Store(self.path) as store:
            failures = store.failures()
            for cell, status in zip(self.grid, self.statuses, strict=True):
                summary = None if status == "missing" else store.summary(self.grid, cell)
                failure = failures.get(cell.identity) if status == "failed" else None
                yield Row(cell, status, summary, failure)

    def _check_complete(self, incomplete: bool) -> None:
        if not (self.complete or incomplete):
            raise InvalidArgument(
                f"this sweep is not complete ({self._counted()}); go on with it, or say "
                "incomplete=True"
            )

    def _counted(self) -> str:
        return ", ".join(f"{number} {status}" for status, number in self.counts.items())

    def cells(self) -> Iterator[dict[str, Any]]:
        """The cells as plain data, curves and quantiles included."""
        for cell, status, summary, failure in self:
            plain: dict[str, Any] = {
                "identity": cell.identity,
                "at": self.grid.coordinates(cell),
                "status": status,
            }
            if summary is not None:
                plain |= _plain_summary(summary)
            if failure is not None:
                plain["failure"] = dict(zip(("kind", "message", "traceback"), failure, strict=True))
            yield plain

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data: the same for the same grid, however it came to be."""
        return {
            "grid": self.grid.to_plain(),
            "complete": self.complete,
            "counts": self.counts,
            "quantiles": list(QUANTILES),
            "cells": list(self.cells()),
        }

    def to_pandas(self, *, incomplete: bool = False) -> pandas.DataFrame:
        """A row for every cell: its place, its status, and the ends of its curves."""
        import pandas

        self._check_complete(incomplete)
        rows = [
            {n: _simple(v) for n, v in self.grid.coordinates(row.cell).items()}
            | {"status": row.status, **_ends(row.summary)}
            for row in self
        ]
        frame = pandas.DataFrame(rows)
        frame.attrs["complete"] = self.complete
        return frame

    def to_xarray(self, *, incomplete: bool = False) -> xarray.Dataset:
        """Curves and their ends by axis, step and quantile; NaN where there is nothing."""
        import xarray

        self._check_complete(incomplete)
        shape, axes = self.grid.shape, tuple(self.grid.axes)
        rows = [*self]
        records = max((row.summary.steps.size for row in rows if row.summary), default=0)
        ends = [_ends(row.summary) for row in rows]
        fields: dict[str, Any] = {
            name: (axes, np.reshape([row[name] for row in ends], shape)) for name in ends[0]
        }
        fields["status"] = axes, np.reshape(self.statuses, shape)
        steps = np.full((len(rows), records), -1)
        for number, name in enumerate(("grad_norm_sq", "loss")):
            curves = np.full((2 + len(QUANTILES), len(rows), records), np.nan)
            for place, (_, _, summary, _) in enumerate(rows):
                if summary is not None:
                    size = summary.steps.size
                    steps[place, :size] = summary.steps
                    found = np.vstack([summary.mean, summary.error, summary.quantiles])
                    curves[:, place, :size] = found[:, number * size : (number + 1) * size]
            mean, error, *quantiles = curves.reshape(-1, *shape, records)
            fields[name] = (*axes, "record"), mean
            fields[f"{name}_error"] = (*axes, "record"), error
            fields[f"{name}_quantiles"] = ("quantile", *axes, "record"), np.stack(quantiles)
        known = steps[steps[:, 0] >= 0] if records else steps
        if len(known) and (known == known[0]).all():
            fields["step"] = ("record",), known[0]
        else:
            fields["step"] = (*axes, "record"), steps.reshape(*shape, records)
        coordinates: dict[str, Any] = {"quantile": list(QUANTILES)}
        for name, values in self.grid.axes.items():
            texts = None in values  # which is no number among others
            coordinates[name] = [label(v) if texts else _simple(v) for v in values]
        about = {"grid": json.dumps(self.grid.to_plain()), "complete": int(self.complete)}
        return xarray.Dataset(fields, coordinates, about).set_coords("step")

    def save(self, path: str | os.PathLike[str], *, incomplete: bool = False) -> None:
        """Write ``.nc`` (NetCDF, all of it), ``.parquet`` or ``.csv`` (a row for every cell).

        Raises:
            InvalidArgument: for another ending, or if it cannot be written; and if the sweep is not
                complete, unless that is said to be known.
        """
        form = Path(path).suffix
        if form not in (".nc", ".parquet", ".csv"):
            raise InvalidArgument(f"path={shown(str(path))} must end in .nc, .parquet or .csv")
        content: Any
        if form == ".nc":
            content = self.to_xarray(incomplete=incomplete).to_netcdf(engine="scipy")
        elif form == ".parquet":
            content = self.to_pandas(incomplete=incomplete).to_parquet()
        else:
            content = self.to_pandas(incomplete=incomplete).to_csv(index=False).encode()
        with replacing(path) as file:
            file.write(content)

    def plot(
        self,
        x: str,
        *,
        name: str = "mean_grad_norm_sq",
        ax: Axes | None = None,
        incomplete: bool = False,
        **at: Any,
    ) -> Axes:
        """Draw means with their 95 % intervals along an axis.

        Args:
            x: the axis.
            name: ``"mean_grad_norm_sq"``, ``"final_grad_norm_sq"`` or ``"final_loss"``.
            ax: where to draw; a new figure if None.
            incomplete: draw what is there, though the sweep is not complete.
            **at: a value for each of the other axes; one of them may be left out, and has a curve
                for each of its values.
        """
        from mbsim import plots

        data = self.to_xarray(incomplete=incomplete)
        if x not in self.grid.axes or name not in data or f"{name}_error" not in data:
            known = f"an axis, {', '.join(self.grid.axes)}, and a number of a cell"
            raise InvalidArgument(f"x={shown(x)} and name={shown(name)} must be {known}")
        for key, wanted in at.items():
            if key not in self.grid.axes or wanted not in data[key].to_numpy():
                raise InvalidArgument(f"{key}={shown(wanted)} must be an axis and a value on it")
        data = data.sel(at).squeeze()
        lines = [axis for axis in self.grid.axes if axis != x and axis in data.dims]
        if len(lines) > 1:
            raise InvalidArgument(f"all but one of {', '.join(lines)} must be given a value")
        with plots.on(ax) as axes:
            for number, at_ in enumerate(data[lines[0]].to_numpy() if lines else [None]):
                line = data.sel({lines[0]: at_}) if lines else data
                names = (x, name, f"{name}_error")
                places, mean, error = (np.atleast_1d(line[n].to_numpy()) for n in names)
                ends = mean - 1.96 * error, mean + 1.96 * error
                text = f"{lines[0]} = {label(at_)}" if lines else None
                plots.curve(axes, places, mean, ends, number=number, label=text)
            if lines:
                axes.legend()
            title = "" if self.complete else f"not complete: {self._counted()}"
            axes.set(xlabel=x, ylabel=name, title=title)
        return axes

    def __str__(self) -> str:
        state = "complete" if self.complete else "NOT COMPLETE"
        lines = [f"Sweep of {len(self.statuses)} cells, {state}: {self._counted()}"]
        names = ("mean |g|^2", "last |g|^2", "replicates", "")
        table = [(*self.grid.axes, *names)]
        for row in itertools.islice(self, _SHOWN):
            at = [label(v) for v in self.grid.coordinates(row.cell).values()]
            ends = _ends(row.summary)
            numbers = [
                f"{ends[n]:.4g} ± {ends[n + '_error']:.2g}" if row.summary else ""
                for n in ("mean_grad_norm_sq", "final_grad_norm_sq")
            ]
            why = row.failure[1] if row.failure else ""
            note = "" if row.status == "done" else f"{row.status} {why}".strip()
            table.append((*at, *numbers, str(ends["replicates"]), note))
        lines += [f"  {line}" for line in tables.as_text(table)]
        if len(self.statuses) > _SHOWN:
            lines.append(f"  and {len(self.statuses) - _SHOWN} more")
        return "\n".join(lines)

    __repr__ = __str__


_SHOWN = 100


def _simple(content: Any) -> Any:
    """A value on an axis as a number or a text."""
    return content if content is None or isinstance(content, (int, float, str)) else label(content)


def _ends(summary: Summary | None) -> dict[str, Any]:
    """The numbers of a cell that are no curves."""
    counts = ("replicates", "diverged", "stalled")
    found: dict[str, Any] = {name: getattr(summary, name, 0) for name in counts}
    size = 0 if summary is None else summary.steps.size
    for name, column in (
        ("mean_grad_norm_sq", -1),
        ("final_grad_norm_sq", size - 1),
        ("final_loss", 2 * size - 1),
    ):
        found[name] = math.nan if summary is None else float(summary.mean[column])
        found[f"{name}_error"] = math.nan if summary is None else float(summary.error[column])
        for q, quantile in enumerate(QUANTILES):
            here = math.nan if summary is None else float(summary.quantiles[q, column])
            found[f"{name}_q{100 * quantile:02.0f}"] = here
    return found


def _plain_summary(summary: Summary) -> dict[str, Any]:
    size = summary.steps.size
    plain = {"steps": summary.steps.tolist(), **_ends(summary)}
    for number, name in enumerate(("grad_norm_sq", "loss")):
        here = slice(number * size, (number + 1) * size)
        plain[name] = summary.mean[here].tolist()
        plain[f"{name}_error"] = summary.error[here].tolist()
        plain[f"{name}_quantiles"] = summary.quantiles[:, here].tolist()
    return plain
