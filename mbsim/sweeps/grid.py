"""Grids: which runs a sweep makes, and by which names it knows them again.

A cell is a run of ``simulate`` with everything that decides its numbers. It is known by the SHA-256
of its description, put in one canonical way, and of the version of the law of its draws. Its
replicates are those of ``simulate`` with the grid's seed, by number: whatever else is in the grid,
and whoever draws them in whichever order.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, fields, is_dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from mbsim import clipping
from mbsim._shared import records
from mbsim._shared.files import reading
from mbsim._shared.values import set_field, value
from mbsim.clipping import check_rule_argument
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_finite,
    check_integer,
    check_number,
    shown,
)
from mbsim.methods import MicroBatchClipping
from mbsim.problems import losses, noise
from mbsim.problems.draggers import Draggers
from mbsim.problems.losses import check_loss_argument
from mbsim.problems.noise import check_noise_argument
from mbsim.problems.problem import Problem
from mbsim.simulation.run import LAW, choose_engine

__all__ = ["BLOCK", "Cell", "Grid"]

# Replicates that are drawn, and kept, together.
BLOCK = 256

_ROOMS: dict[str, Any] = {"loss": losses, "noise": noise, "rule": clipping}
_DRAGGERS = tuple(f.name for f in fields(Draggers))
# What may stand in the tables of a grid, and in its axes; what need not be given, and is then so.
_FIELDS = {
    "problem": ("loss", "noise", *_DRAGGERS, "benign_dim", "start"),
    "method": (
        "micro_batch_size", "rule", "batch_size", "step_size", "steps", "record_every", "engine",
    ),
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(_DRAGGERS, 0.0),
    "rule": {"kind": "SmallestNorm"},
    "record_every": None,
    "engine": "auto",
}
_ALL = (*_FIELDS["problem"], *_FIELDS["method"])
_MOST_CELLS, _MOST_REPLICATES = 10**7, 2**24
# So many records beside the first, unless told.
_RECORDS = 16


class Cell(NamedTuple):
    """One run of a grid.

    Attributes:
        identity: the SHA-256 of what decides its numbers, in hexadecimal digits.
        description: that as canonical JSON.
        place: its number on each axis.
    """

    identity: str
    description: str
    place: tuple[int, ...]


@value
class Grid:
    """Runs to be made: some fields fixed, and an axis for each of the others; nothing changes it.

    Args:
        problem: fields of the problem by name: loss, noise, benign_dim and start, which must be
            given here or as axes; probability, norm_ratio, coherence and tilt of draggers, or
            ``draggers`` with them. A loss or law is one of mbsim's own, or as in a file a
            dictionary of its kind and its fields.
        method: fields of the method and the run: micro_batch_size, batch_size, step_size and
            steps, which must be given here or as axes; rule, engine, and record_every, for which
            the default is a sixteenth of the steps.
        axes: for any of these names its values; the grid is their product. None is one cell.
        seed: the seed of every cell: cells that draw alike are paired.
        replicates: of every cell; or
        relative_standard_error: more replicates until both the mean and the final ‖∇L‖² are known
            as well as by this standard error over their mean, or
        cap: so many have been drawn: with `relative_standard_error`, and 65536 unless told.

    Raises:
        InvalidArgument: for a name that is unknown, with the nearest one that is known; for values
            that no cell could have; and where not one of the first cells could be run.

    >>> grid = Grid(problem={"loss": losses.LogCosh(4), "noise": {"kind": "Gaussian"},
    ...                      "benign_dim": 2, "start": [1, 1, 1, 1]},
    ...             method={"batch_size": 8, "step_size": 0.1, "steps": 50},
    ...             axes={"probability": [0.0, 0.1], "norm_ratio": [10.0],
    ...                   "micro_batch_size": [1, 2, 4]}, replicates=64)
    >>> len(grid), grid.coordinates(next(iter(grid)))
    (6, {'probability': 0.0, 'norm_ratio': 10.0, 'micro_batch_size': 1})
    """

    _: KW_ONLY
    problem: Mapping[str, Any]
    method: Mapping[str, Any]
    axes: Mapping[str, Any]
    seed: int = 0
    replicates: int | None = None
    relative_standard_error: float | None = None
    cap: int | None = None

    def __post_init__(self) -> None:
        set_field(self, "seed", check_integer("seed", self.seed, minimum=0))
        self._check_target()
        for table, known in _FIELDS.items():
            given = _table(table, getattr(self, table))
            if table == "problem" and "draggers" in given:
                given |= _table("draggers", given.pop("draggers"), _DRAGGERS)
            given = _known(table, given, known)
            plain = {n: _plain(n, given[n]) for n in known if n in given}
            set_field(self, table, MappingProxyType(plain))
        axes: dict[str, tuple[Any, ...]] = {}
        for name, values in _known("axes", _table("axes", self.axes), _ALL).items():
            if name in self.problem or name in self.method:
                raise InvalidArgument(f"{name} must be fixed or an axis, not both")
            if not isinstance(values, (list, tuple)) and not hasattr(values, "tolist"):
                raise InvalidArgument(f"axes.{name}={shown(values)} must be a list of values")
            axes[name] = tuple(_plain(name, v) for v in values)
            if not axes[name] or len({*map(_text, axes[name])}) < len(axes[name]):
                raise InvalidArgument(f"axes.{name} must have values, each of them once")
        set_field(self, "axes", MappingProxyType(axes))
        if (cells := math.prod(self.shape)) > _MOST_CELLS:
            raise InvalidArgument(f"axes make {cells:.3g} cells and must make at most 10**7")
        for name in _ALL:
            if not {name} & {*self.problem, *self.method, *axes, *_DEFAULTS}:
                raise InvalidArgument(f"{name} must be given, or be an axis")
        self._check_first_cells()

    def _check_target(self) -> None:
        if (self.replicates is None) == (self.relative_standard_error is None):
            raise InvalidArgument("one of replicates and relative_standard_error must be given")
        if self.replicates is not None:
            if self.cap is not None:
                raise InvalidArgument("cap must be left out where replicates is given")
            set_field(self, "replicates", _number("replicates", self.replicates, 1))
        else:
            error = self.relative_standard_error
            error = check_number("relative_standard_error", error, above=0, below=1)
            set_field(self, "relative_standard_error", error)
            set_field(self, "cap", 65536 if self.cap is None else _number("cap", self.cap, 2))

    def _check_first_cells(self) -> None:
        """A cell may fail by itself; but what is wrong with all is said at once."""
        first: InvalidArgument | None = None
        for cell in itertools.islice(self, 64):
            try:
                arguments(cell.description)
                return
            except InvalidArgument as error:
                first = first or error
        assert first is not None
        raise first

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Grid:
        """The grid in a TOML file.

        Raises:
            InvalidArgument: in one line, for whatever is wrong with the file.

        >>> Grid.from_toml("no-such-file.toml")
        Traceback (most recent call last):
            ...
        mbsim.errors.InvalidArgument: grid='no-such-file.toml' must be a TOML file of a grid: No \
such file or directory
        """
        with reading(path, "a TOML file of a grid", "grid") as file:
            text = file.read(2**24 + 1)
            if len(text) > 2**24:
                raise ValueError("it is larger than 16 MiB")
            plain = tomllib.loads(text.decode("utf-8"))
        return cls.from_plain(plain)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Grid:
        """The grid of plain data such as :meth:`to_plain` returns and a file holds."""
        known = [f.name for f in fields(cls) if f.name != "_"]
        given = {"problem": {}, "method": {}, "axes": {}, **_known("grid", plain, known)}
        return cls(**given)

    def to_plain(self) -> dict[str, Any]:
        """The grid as plain data, in one canonical way."""
        found = {name: content for name, content in vars(self).items() if content is not None}
        return {n: dict(c) if isinstance(c, Mapping) else c for n, c in found.items()}

    def __reduce__(self) -> tuple[Any, ...]:  # a table that nothing changes cannot be pickled
        return Grid.from_plain, (self.to_plain(),)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has."""
        return tuple(map(len, self.axes.values()))

    @property
    def most(self) -> int:
        """How many replicates a cell may have."""
        found = self.replicates or self.cap
        assert found is not None
        return found

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Cell]:
        """The cells, the last axis fastest: an order that depends on the grid alone."""
        fixed = {**_DEFAULTS, **self.problem, **self.method, "seed": self.seed}
        texts = {n: [_text(_plain(n, v) if n != "seed" else v)] for n, v in fixed.items()}
        texts |= {name: [_text(v) for v in values] for name, values in self.axes.items()}
        names = sorted(texts)
        slots = [names.index(name) for name in self.axes]
        pieces = [f'"{name}":{texts[name][0]}' for name in names]
        choices = [[f'"{name}":{text}' for text in texts[name]] for name in self.axes]
        law = f"mbsim law {LAW}\n"
        for place in itertools.product(*(range(n) for n in self.shape)):
            for slot, number, texts_of in zip(slots, place, choices, strict=True):
                pieces[slot] = texts_of[number]
            text = "{" + ",".join(pieces) + "}"
            yield Cell(hashlib.sha256((law + text).encode()).hexdigest(), text, place)

    def coordinates(self, cell: Cell) -> dict[str, Any]:
        """Where a cell is: a value for each axis."""
        return {n: v[i] for (n, v), i in zip(self.axes.items(), cell.place, strict=True)}

    def __str__(self) -> str:
        error = self.relative_standard_error
        each = f"{self.replicates} replicates each"
        if error is not None:
            each = f"to a relative standard error of {error:g}, at most {self.cap} replicates each"
        lines = [f"Grid of {len(self)} cells, {each}, seed {self.seed}"]
        for name, content in {**self.problem, **self.method, **self.axes}.items():
            values = ", ".join(map(label, content)) if name in self.axes else label(content)
            lines.append(f"  {name:<16} {values if len(values) <= 70 else values[:67] + '...'}")
        return "\n".join(lines)

    __repr__ = __str__


def label(plain: Any) -> str:
    """A value of a field as a short text."""
    if isinstance(plain, dict):
        inside = ", ".join(f"{n}={label(v)}" for n, v in plain.items() if n != "mbsim")
        return f"{plain['mbsim']}({inside})"
    return f"{plain:g}" if isinstance(plain, float) else str(plain)


def arguments(description: str) -> dict[str, Any]:
    """What ``simulate`` takes for the cell of this description, without replicates."""
    plain = json.loads(description)
    parts = {n: records.rebuild(c) if isinstance(c, dict) else c for n, c in plain.items()}
    draggers = Draggers(**{name: parts.pop(name) for name in _DRAGGERS})
    names = ("loss", "noise", "benign_dim", "start")
    problem = Problem(draggers=draggers, **{name: parts.pop(name) for name in names})
    choose_engine(problem, parts["engine"])
    method = MicroBatchClipping(parts.pop("micro_batch_size"), rule=parts.pop("rule"))
    method.micro_batches(parts["batch_size"])
    every = parts.pop("record_every") or max(1, parts["steps"] // _RECORDS)
    rng = parts.pop("seed")
    return {"problem": problem, "method": method, "record_every": every, "rng": rng, **parts}


# ------------------------------------------------------------------------- checks


def nearest(name: str, known: Any) -> str:
    """Which of the known names is meant, in words."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"the nearest known name is {close[0]}" if close else "none is known"


def _table(name: str, given: Any, known: Any = None) -> dict[str, Any]:
    if isinstance(given, Draggers):
        given = {n: getattr(given, n) for n in _DRAGGERS}
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"{name}={shown(given)} must be a table of names and values")
    return dict(given) if known is None else _known(name, given, known)


def _known(table: str, given: Mapping[Any, Any], known: Any) -> dict[str, Any]:
    for name in given:
        if name not in known:
            close = nearest(str(name), known)
            raise InvalidArgument(f"{table} has an unknown name, {shown(name)}; {close}")
    return dict(given)


def _number(name: str, given: Any, least: int) -> int:
    """How many replicates: so many that the list of their blocks is short."""
    number = check_integer(name, given, minimum=least)
    if number > _MOST_REPLICATES:
        raise InvalidArgument(f"{name}={shown(given)} must be at most 2**24")
    return number


def _text(plain: Any) -> str:
    text = json.dumps(
        plain, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    text.encode()  # no lone surrogates
    return text


_LIMITS: dict[str, dict[str, float]] = {
    "probability": {"minimum": 0, "maximum": 1},
    "norm_ratio": {"minimum": 0},
    "coherence": {"minimum": 0, "maximum": 1},
    "tilt": {"above": -1, "below": 1},
    "step_size": {"above": 0},
}


def _plain(name: str, given: Any) -> Any:
    """A field's value, checked as far as it can be by itself, as canonical plain data."""
    if name in _ROOMS:
        return _own(name, given)
    if name in _LIMITS:
        return check_number(name, given, **_LIMITS[name]) + 0.0  # −0 is 0
    if name == "start":
        array = check_array(name, given, ndim=1) + 0.0
        check_finite(name, array)
        return array.tolist()
    if name == "engine":
        if given not in ("auto", "exact_law", "reference"):
            raise InvalidArgument(f"engine={shown(given)} must be auto, exact_law or reference")
        return given
    if name == "record_every" and given is None:
        return None
    return check_integer(name, given, minimum=1)


def _own(name: str, given: Any) -> Any:
    """A loss, law or rule of mbsim's own, from itself, a description or a kind with its fields."""
    room = _ROOMS[name]
    kinds = [n for n in room.__all__ if is_dataclass(getattr(room, n)) and n != "Facts"]
    if isinstance(given, Mapping):
        inside = dict(given)
        kind = inside.pop("kind", inside.pop("mbsim", None))
        if not isinstance(kind, str) or kind not in kinds:
            close = nearest(str(kind), kinds)
            raise InvalidArgument(f"{name} has an unknown kind, {shown(kind)}; {close}")
        cls = getattr(room, kind)
        known = [f.name for f in fields(cls)]
        try:
            given = cls(**_known(f"{name} of kind {kind}", inside, known))
        except TypeError as error:  # a field is missing
            why = ", ".join(n for n in known if n not in inside) or shown(str(error))
            raise InvalidArgument(f"{name} of kind {kind} needs {why}") from error
    check = {"loss": check_loss_argument, "noise": check_noise_argument}
    check.get(name, check_rule_argument)(given)
    plain = records.describe(given)
    if type(given).__name__ not in kinds or "foreign" in _text(plain):
        raise InvalidArgument(
            f"{name}={shown(given)} must be one of mbsim's own, {', '.join(kinds)}: what is known "
            "by its text alone may have changed since a cell was run"
        )
    return plain
