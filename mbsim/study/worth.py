"""What pruning by clipping is worth where people train: claims on real tables, and the whole study."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mbsim._shared.processes import processors
from mbsim.study import tables
from mbsim.study.claim import Study
from mbsim.study.pruning import Setting, measured
from mbsim.study.stored import Record, stored

__all__ = ["TABLES", "records_of"]

TABLES = (
    "phoneme", "pima", "australian", "ionosphere", "sonar", "heart", "wine", "saheart", "magic",
    "penbased", "vowel", "digits", "german", "mammographic", "segment", "spambase", "satimage",
    "vehicle", "wdbc",
)  # fmt: skip
NETWORK_TABLES = ("satimage", "segment", "wdbc", "spambase", "vehicle", "phoneme")
CLEAN, TENTH, QUARTER = "clean", "10 % wrong labels", "25 % wrong labels"
_NETWORKS = 2  # splits of them


def records_of(
    folder: str | os.PathLike[str],
    *,
    rng: int = 0,
    only: Iterable[str] | None = None,
    splits: int = 10,
    workers: int | None = None,
) -> list[Record]:
    """Every setting of the whole study, each measured or read from its file in `folder`."""
    names = TABLES if only is None else tuple(only)
    settings = [
        Setting(table, contamination, split)
        for split in range(splits)
        for table in names
        for contamination in tables.CONTAMINATIONS
    ]
    settings += [
        Setting(table, contamination, split, model, "smallest")
        for split in range(min(splits, _NETWORKS))
        for table in names
        if table in NETWORK_TABLES
        for contamination in (CLEAN, TENTH, QUARTER)
        for model in ("tanh network", "tanh network, Adam")
    ]
    return stored(
        folder,
        settings,
        measured,
        Study(rng=rng).seed("pruning"),
        names=[_name(setting, rng) for setting in settings],
        workers=processors() if workers is None else workers,
        text="real tables",
    )


def _name(setting: Setting, rng: int) -> str:
    words = (setting.table, setting.contamination, setting.model, str(setting.split), str(rng))
    return "-".join("".join(c for c in word if c.isalnum() or c in "-") for word in words)
