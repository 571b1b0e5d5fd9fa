"""``reproduce``: every claim and every negative control, with verdicts, figures and a report."""

from __future__ import annotations

import json
import os
import platform
import time
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import metadata, resources
from itertools import groupby
from pathlib import Path
from typing import Any

from mbsim import plots
from mbsim._shared import tables
from mbsim._shared.files import writable_folder, write_all
from mbsim._shared.meant import answering
from mbsim._shared.processes import Job, in_processes, processors
from mbsim._shared.records import to_json
from mbsim._shared.version import __version__
from mbsim.errors import check_integer
from mbsim.statistics import Interval
from mbsim.study import (
    advisers,
    bounds_hold,
    domains,
    finite_data,
    floors,
    memory,
    rates,
    real_draggers,
    sweet_spots,
    tilt,
    tilted_tables,
    worth,
)
from mbsim.study.claim import Study, examined
from mbsim.study.page import report_page
from mbsim.study.stored import kept
from mbsim.verdicts import Comparison, Verdict

__all__ = ["CLAIMS", "Report", "draw_report", "expected_statuses", "reproduce"]

CLAIMS = (
    rates.SGD_SAME_RATE,
    rates.CLIPPING_AHEAD_EARLY,
    floors.BIAS_STAYS,
    floors.BIAS_NEEDS_SKEW,
    floors.SWEET_SPOT,
    bounds_hold.BOUNDS_HOLD,
    sweet_spots.SWEET_SPOT_PREDICTED,
    sweet_spots.INTERIOR_BIAS,
    advisers.ADVISOR_AGREES,
    tilt.TILT_STOPS_SGD,
    tilt.CLIPPING_ENDS_LOWER,
    tilt.BEST_B,
    tilted_tables.TILT_ON_TABLES,
    tilted_tables.SWEET_SPOT_ON_TABLES,
    tilted_tables.STALL,
    real_draggers.ASSUMPTION_4_4,
    real_draggers.NORM_RATIO_FALLS,
    memory.MEMORY,
    domains.MULTI_DOMAIN_HURTS,
    domains.DOMAIN_REMEDY,
    domains.ON_TABLES,
    finite_data.HELPFULNESS_CHANGES,
    worth.TRAINING_HELPS,
    worth.BEST_B_FALLS,
    worth.PRUNING_SHARE,
    worth.WEIGHTS_FIND,
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`reproduce` found.

    Attributes:
        verdicts: one per claim.
        controls: (what was taken away, verdict) for every negative control.
        trajectories: curves for a figure.
        quick, rng: how it was made.
        made_with: versions.
        seconds: how long each claim and control took, and all: no part of :meth:`to_dict`, as it
            is all that differs between two runs of one seed.
    """

    verdicts: tuple[Verdict, ...]
    controls: tuple[tuple[str, Verdict], ...]
    trajectories: dict[str, Any]
    quick: bool
    rng: int
    made_with: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "quick": self.quick,
            "rng": self.rng,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "controls": [{"without": what, **v.to_dict()} for what, v in self.controls],
            "trajectories": self.trajectories,
            "made_with": self.made_with,
        }

    def statuses(self) -> dict[str, str]:
        """The status of every claim and control, by name."""
        return {name: status for name, status, _ in self.rows()}

    def surprises(self) -> list[str]:
        """Where the statuses differ from the committed list of expected ones; one line each.

        What could not be tried for want of a package is no news.
        """
        missing = {claim.name for claim in CLAIMS if claim.missing}
        expected, found = (
            {name: status for name, status in statuses.items() if _claim_of(name) not in missing}
            for statuses in (expected_statuses(quick=self.quick), self.statuses())
        )
        return [
            f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, status and the deciding comparison, for every claim and control."""
        named = [(v.claim, v) for v in self.verdicts]
        named += [(f"control of {v.claim}: {what}", v) for what, v in self.controls]
        return [(name, v.status, _decided_by(v)) for name, v in named]

    def __str__(self) -> str:
        rows, claims = self.rows(), len(self.verdicts)
        claimed, controls = (
            tables.as_text([_HEAD, *part], most=(34, 14), width=80)
            for part in (rows[:claims], rows[claims:])
        )
        told = "\nNegative controls: without what it rests on, no claim must be supported"
        return "\n".join([*claimed, told, *controls])

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The table of :meth:`rows`, for a page."""
        return tables.as_markdown(self.rows(), head=_HEAD)

    def _repr_html_(self) -> str:
        return tables.as_html(self.rows(), head=_HEAD)


def _claim_of(row: str) -> str:
    """The claim that a row of the table is of."""
    return row.removeprefix("control of ").partition(":")[0]


_HEAD = ("claim", "verdict", "decided by")


def _decided_by(verdict: Verdict) -> str:
    comparison = verdict.deciding
    if comparison is None:
        return verdict.not_applicable
    limit = comparison.limit
    limit_text = f"{limit[0]:.3g} to {limit[1]:.3g}" if isinstance(limit, tuple) else f"{limit:.3g}"
    return f"{comparison.what}: {comparison.measured}, claimed {comparison.relation} {limit_text}"


def expected_statuses(*, quick: bool) -> dict[str, str]:
    """The committed statuses, kept beside this file: a change of one is news."""
    text = resources.files("mbsim.study").joinpath("expected.json").read_text("utf-8")
    statuses: dict[str, str] = json.loads(text)["quick" if quick else "full"]
    return statuses


@answering
def reproduce(
    out: str | os.PathLike[str] = "mbsim-report",
    *,
    quick: bool = False,
    rng: int = 0,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Report:
    """Run every claim and control; write figures, ``report.json`` and ``report.html`` to `out`.

    The page is whole in itself: every claim opens on its figure, its controls and its call.

    Claims run in processes, those of one module in one. Files are written when all have ended, and
    none on Ctrl-C.

    With a `store` claims are kept in it as they end, and not run again after an interrupt. They are
    known by their names, `quick`, `rng`, mbsim's own code and the versions of what that stands on.

    Args:
        out: a directory, made if it is not there.
        quick: fewer steps, problems and replicates: a fifth of the time.
        rng: the seed, an integer; the same seed gives the same report and figures, byte for byte,
            whatever the number of workers.
        workers: how many processes; as many as there are processors if None.
        store: a file to keep finished claims in, and to go on from.

    Returns:
        The :class:`Report`.

    Raises:
        InvalidArgument: if `out` cannot be a directory, `rng` is not an integer of at least 0 or
            `workers` not one of at least 1; for a store that is held, damaged or something else.
        Exception: what a claim raises, with a note that names it.
    """
    started, study = time.perf_counter(), Study(quick=quick, rng=rng)
    workers = processors() if workers is None else check_integer("workers", workers, minimum=1)
    folder = writable_folder(out, "out")
    # Claims of one module share what they measure.
    groups = [tuple(some) for _, some in groupby(CLAIMS, lambda claim: claim.run.__module__)]
    jobs = [
        Job(
            ", ".join(claim.name for claim in claims),
            sum(claim.seconds for claim in claims),
            examined,
            (claims, study),
        )
        for claims in groups
    ]
    jobs.append(Job("trajectories", 3.0, floors.drawn_trajectories, (study,)))
    if store is None:
        done = in_processes(jobs, workers=workers, text="reproducing")
    else:
        decides = {"quick": quick, "rng": study.rng, **_code()}
        about = [{"claim": job.name, **decides} for job in jobs]
        form = _plain, _back
        done = kept(store, jobs, about, workers=workers, text="reproducing", form=form)
    *each, (curves, pictures) = done
    found = [one for some in each for one in some]
    seconds: dict[str, float] = {}
    for _, taken, drawn in found:
        seconds |= taken
        pictures |= drawn
    report = Report(
        verdicts=tuple(verdicts[""] for verdicts, _, _ in found),
        controls=tuple(
            (name, verdict)
            for verdicts, _, _ in found
            for name, verdict in verdicts.items()
            if name
        ),
        trajectories=curves,
        quick=quick,
        rng=study.rng,
        made_with=_versions(),
        seconds={**seconds, "all": time.perf_counter() - started},
    )
    plain = to_json(report.to_dict())
    page = report_page(json.loads(plain), CLAIMS, pictures)
    write_all(folder, {**pictures, "report.json": plain.encode(), "report.html": page.encode()})
    return report


_CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (Interval, Comparison, Verdict)}


def _plain(content: Any) -> Any:
    """What is no plain data in what claims return, for :func:`json.dumps`."""
    if isinstance(content, bytes):
        return {"base64": b64encode(content).decode()}
    name = type(content).__name__
    return {"class": name, **vars(content)} if name in _CLASSES else dict(content)


def _back(plain: dict[str, Any]) -> Any:
    """The same back, for :func:`json.loads`."""
    if plain.keys() == {"base64"}:
        return b64decode(plain["base64"])
    cls = _CLASSES.get(str(plain.get("class")))
    if cls is None:
        return plain
    fields = {n: tuple(c) if isinstance(c, list) else c for n, c in plain.items() if n != "class"}
    return cls(**fields)


def _code() -> dict[str, Any]:
    """What decides numbers besides a claim's settings: mbsim's own code, and versions."""
    code, place = sha256(), Path(__file__).parents[1]
    for path in sorted(place.rglob("*.py")):
        code.update(f"{path.relative_to(place).as_posix()}\n".encode() + path.read_bytes())
    return {"code": code.hexdigest(), "numba": metadata.version("numba"), **_versions()}


def draw_report(report: dict[str, Any], folder: Path) -> list[Path]:
    """Every figure and the page, to `folder`, from a report's plain data alone; the paths."""
    found: dict[str, dict[str, Any]] = {v["claim"]: {"": v["details"]} for v in report["verdicts"]}
    for verdict in report["controls"]:
        found[verdict["claim"]][verdict["without"]] = verdict["details"]
    files = plots.pictures("trajectories", floors.draw_trajectories, report["trajectories"])
    for claim in CLAIMS:
        files |= claim.pictures(found[claim.name])
    files["report.html"] = report_page(report, CLAIMS, files).encode()
    return write_all(folder, files)


def _versions() -> dict[str, Any]:
    names = ("numpy", "scipy", "matplotlib", "scikit-learn")
    found = {name: metadata.version(name) for name in names}
    return {"mbsim": __version__, "python": platform.python_version(), **found}
