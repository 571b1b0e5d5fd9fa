"""The study of training: every way and model on all tables, kept as a table, and pages of it.

The claims that are made of it: :mod:`mbsim.study.worth`.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.util import find_spec

import numpy as np

from mbsim import plots
from mbsim._shared import tables as texts
from mbsim._shared.extras import needed
from mbsim._shared.files import writable_folder, write_all
from mbsim._shared.processes import processors
from mbsim.errors import InvalidArgument, check_integer, shown
from mbsim.study import tables
from mbsim.study.claim import Study, verdicts_on
from mbsim.study.pruning import MODELS, SIZES, TEXT, Setting, measured
from mbsim.study.stored import Record, stored
from mbsim.study.worth import (
    BEST_B_FALLS,
    CLEAN,
    NOISY,
    PRUNING_SHARE,
    RATES,
    TRAINING_HELPS,
    WEIGHTS_FIND,
    share_of,
    way_of,
    with_tuned,
)
from mbsim.verdicts import Verdict

__all__ = ["TABLES", "as_markdown", "models_as_markdown", "stored_table", "whole"]


TABLES = (
    "phoneme", "pima", "australian", "ionosphere", "sonar", "heart", "wine", "saheart", "magic",
    "penbased", "vowel", "digits", "german", "mammographic", "segment", "spambase", "satimage",
    "vehicle", "wdbc",
)  # fmt: skip
_NETWORKS = ("satimage", "segment", "wdbc", "spambase", "vehicle", "phoneme")
_FEW = 2  # splits of what is contaminated where it is held out
_TORCH = find_spec("torch") is not None
_COLUMNS = ("loss", "accuracy", "end_loss", "end_accuracy", "steps_to_sgd")
_MODELS_HEAD = (
    "model", "contamination", "best b", "loss at b = 64 over its", "without early stopping",
    "accuracy, points", "of the oracle's gain",
)  # fmt: skip
_CLAIMS = (TRAINING_HELPS, BEST_B_FALLS, PRUNING_SHARE, WEIGHTS_FIND)


def whole(
    folder: str | os.PathLike[str],
    *,
    rng: int = 0,
    only: Iterable[str] | None = None,
    splits: int = 10,
    workers: int | None = None,
) -> dict[str, Verdict]:
    """The claims on all tables, contaminations and ways; begun again where it was cut off.

    Every finished setting is kept in ``study.sqlite`` in `folder`, and is not done again. Beside
    it: ``training.csv``, of every way the means over splits and the standard error of the log of
    SGD's loss over its, ``training.md``, their medians over tables, and the figures
    ``best_b_whole`` and ``oracle_share_whole``.

    Args:
        folder: where the store is, made if it is not there.
        rng: the seed.
        only: the tables, and "text", which needs PyTorch; None for all 19, and for text and the
            optimizers of PyTorch where it is installed.
        splits: of every table.
        workers: how many processes; as many as there are processors if None.

    Returns:
        Verdicts by claim, and of the controls.

    Raises:
        InvalidArgument: for no folder, tables that do not exist, fewer than two of them, and a
            store that cannot be used.
    """
    study, place = Study(rng=rng), writable_folder(folder, "out")
    names = (*TABLES, *([TEXT] if _TORCH else [])) if only is None else tuple(only)
    if len({*names} - {TEXT}) < 2:
        raise InvalidArgument(f"only={shown(list(names))} must name at least two tables")
    for name in names:
        if name not in (known := [*tables.tables(), TEXT]):
            raise InvalidArgument(f"only={shown(name)} must be one of {', '.join(known)}")
    if TEXT in names:
        with needed(f"only={shown(TEXT)}", "PyTorch", extra="torch", name="torch"):
            import torch  # noqa: F401
    settings = _settings(names, check_integer("splits", splits, minimum=1))
    records = stored(
        place,
        settings,
        measured,
        study.seed("pruning"),
        names=[
            f"training, {one.table}, {one.contamination}, {one.model}, {rng}" for one in settings
        ],
        workers=processors() if workers is None else workers,
        text="real tables",
    )
    records = [with_tuned(record) for record in records]
    found = verdicts_on(_CLAIMS, study, records)
    lines = _as_csv(records)
    files = {"training.csv": lines.encode()}
    rows = list(csv.DictReader(io.StringIO(lines)))
    files["training.md"] = f"{models_as_markdown(rows)}\n{as_markdown(rows)}".encode()
    for claim in _CLAIMS:
        if claim.draw:
            details = found[claim.name].to_dict()["details"]
            files |= plots.pictures(f"{claim.figure}_whole", claim.draw, {"": details})
    write_all(place, files)
    return found


def _settings(names: Sequence[str], splits: int) -> list[Setting]:
    found = [
        Setting(table, contamination, split)
        for split in range(splits)
        for table in names
        if table != TEXT
        for contamination in tables.CONTAMINATIONS
    ]
    found += [
        Setting(table, contamination, split, model, "smallest")
        for split in range(splits)
        for table in names
        for model in _models(table)
        for contamination in RATES
    ]
    return found + [
        Setting(table, contamination, split, ways="smallest", held_out=True)
        for split in range(min(splits, _FEW))
        for table in names
        if table != TEXT
        for contamination in NOISY
    ]


def _models(table: str) -> list[str]:
    """The models tried on a table beside softmax regression; PyTorch's if it is there."""
    kind = "transformer" if table == TEXT else "tanh network" if table in _NETWORKS else None
    in_torch = _TORCH and table in (*_NETWORKS[:3], TEXT)  # it takes longer
    return [
        model
        for model, (options, _) in MODELS.items()
        if model.split(",")[0] == kind and (in_torch or "optimizer" not in options)
    ]


def _as_csv(records: list[Record]) -> str:
    """Means over splits of every table, contamination, model and way, as lines of text."""
    grouped: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        setting = Setting(*record["setting"])
        if not setting.held_out and "oracle" in record:
            key = (setting.table, setting.contamination, setting.model)
            grouped.setdefault(key, []).append(record)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("table", "contamination", "model", "way", "splits", *_COLUMNS, "share", "error")
    )
    for at, splits in grouped.items():
        for way in (way for way in splits[0] if way not in ("setting", "auc")):
            some = [record for record in splits if way in record]
            cells = [_cell([record[way][column] for record in some]) for column in _COLUMNS]
            share = share_of(some, way) if at[1] != CLEAN else None
            cells += ["" if x is None else f"{x:.4g}" for x in (share, _error(some, way))]
            writer.writerow((*at, way, len(some), *cells))
    return text.getvalue()


def _error(splits: list[Record], way: str) -> float | None:
    """The standard error of the log of SGD's loss over a way's; None if a loss is 0."""
    sgd, its = ([record[name]["loss"] for record in splits] for name in ("SGD", way))
    if len(splits) < 2 or min(*sgd, *its) <= 0:
        return None
    return float(np.std(np.log(sgd) - np.log(its), ddof=1) / math.sqrt(len(splits)))


def stored_table() -> list[dict[str, str]]:
    """The lines of ``training.csv`` as it is kept with the library: ten splits of each table,
    and of text.

    >>> len({row["table"] for row in stored_table()})
    20
    """
    text = resources.files("mbsim.study").joinpath("training.csv").read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def as_markdown(rows: Iterable[Mapping[str, str]]) -> str:
    """The lines of ``training.csv``, softmax regression, as a table for a page.

    Of each way the median over tables of the share of the oracle's gain, and the number of tables
    where it is defined; on clean data the held-out loss added, in the median and at the worst.

    >>> said = (("clean", "SGD", "1", ""), ("clean", "y", "1.1", ""), ("canaries", "y", "2", "0.5"))
    >>> names = ("contamination", "way", "loss", "share")
    >>> rows = [{"table": table, "model": "softmax", **dict(zip(names, row))}
    ...         for table in "ab" for row in said]
    >>> print(as_markdown(rows).splitlines()[-1])
    | y | – | – | – | 50 % (2) | +10 % | +10 % |
    """
    shares: dict[str, dict[str, list[float]]] = {}
    clean: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["model"] == "softmax" and row["contamination"] == CLEAN:
            clean.setdefault(row["way"], {})[row["table"]] = float(row["loss"])
        elif row["model"] == "softmax":
            by = shares.setdefault(row["way"], {}).setdefault(row["contamination"], [])
            by += [float(row["share"])] if row["share"] else []
    kinds = [kind for kind in tables.CONTAMINATIONS if kind != CLEAN]

    def worth(way: str) -> float:
        values = [x for kind in NOISY for x in shares[way].get(kind, [])]
        return float(np.median(values)) if values else 0.0

    lines = []
    for way in sorted(
        (way for way in shares if way not in ("SGD", "oracle")), key=lambda w: -worth(w)
    ):
        cells = [
            f"{100 * np.median(values):.0f} % ({len(values)})" if values else "–"
            for values in (shares[way].get(kind, []) for kind in kinds)
        ]
        added = [100 * (x / clean["SGD"][table] - 1) for table, x in clean[way].items()]
        lines.append(
            (way, *cells, f"{round(np.median(added)) or 0:+d} %", f"{round(max(added)):+d} %")
        )
    head = ("way", *kinds, "clean: loss added", "at the worst")
    return texts.as_markdown(lines, head=head) + "\n"


def models_as_markdown(rows: Iterable[Mapping[str, str]]) -> str:
    """The lines of ``training.csv``, the smallest norm at its best b, as a table for a page.

    Medians over tables; beside that of the best b the geometric mean, beside that of the loss
    without clipping, b = 64, over its the largest, and where there is one table the standard error
    over splits.

    >>> names = ("table", "model", "contamination", "way", "loss", "end_loss", "accuracy", "share")
    >>> said = (("SGD", "1.2", "1.5", ".8", "0"), ("smallest norm, b = 4", "1", "1", ".81", ".6"))
    >>> rows = [{**dict(zip(names, (table, "softmax", "canaries", *row))), "error": "0.02"}
    ...         for table in "ab" for row in said]
    >>> print(models_as_markdown(rows).splitlines()[-1])
    | softmax | canaries | 4 (4) | 1.20 (1.20) | 1.50 | +1.0 | 60 % (2) |
    """
    ways = {way_of(b): b for b in SIZES}
    found: dict[tuple[str, str], dict[str, dict[int, Mapping[str, str]]]] = {}
    for row in rows:
        if row["way"] in ways:
            of_kind = found.setdefault((row["model"], row["contamination"]), {})
            of_kind.setdefault(row["table"], {})[ways[row["way"]]] = row
    lines = [
        (model, kind, *_best_cells([*found[model, kind].values()]))
        for model in MODELS
        for kind in tables.CONTAMINATIONS
        if (model, kind) in found
    ]
    return texts.as_markdown(lines, head=_MODELS_HEAD) + "\n"


def _best_cells(by_table: list[dict[int, Mapping[str, str]]]) -> tuple[str, ...]:
    """Cells of one model and contamination, from the rows of every table by b."""

    def least(what: str) -> list[tuple[Mapping[str, str], Mapping[str, str]]]:
        best = [min(row, key=lambda b: float(row[b][what])) for row in by_table]
        return [(row[SIZES[-1]], row[b]) for row, b in zip(by_table, best, strict=True)]

    over, ends = (
        [float(sgd[what]) / float(its[what]) for sgd, its in least(what)]
        for what in ("loss", "end_loss")
    )
    both = least("loss")
    up = [100 * (float(its["accuracy"]) - float(sgd["accuracy"])) for sgd, its in both]
    shares = [float(its["share"]) for _, its in both if its["share"]]
    sizes = [min(row, key=lambda b: float(row[b]["loss"])) for row in by_table]
    beside = f"({max(over):.2f})" if len(over) > 1 else f"± {float(both[0][1]['error'] or 0):.3f}"
    share = f"{100 * np.median(shares):.0f} % ({len(shares)})" if shares else "–"
    return (
        f"{np.median(sizes):g} ({2 ** np.log2(sizes).mean():.2g})",
        f"{np.median(over):.2f} {beside}",
        f"{np.median(ends):.2f}",
        f"{round(float(np.median(up)), 1) + 0.0:+.1f}",
        share,
    )


def _cell(values: list[float | None]) -> str:
    """The mean; empty where some are missing: where SGD's loss is not reached in every split."""
    return "" if any(v is None for v in values) else f"{np.mean(np.array(values, float)):.6g}"
