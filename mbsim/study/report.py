"""``reproduce``: every claim and every negative control, with verdicts, figures and a report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from mbsim import plots
from mbsim._shared import tables
from mbsim._shared.files import replacing, writable_folder
from mbsim._shared.progress import progress
from mbsim._shared.records import to_json
from mbsim._shared.version import __version__
from mbsim.study import bounds_hold, digits, floors, rates, sweet_spots
from mbsim.study.claim import Study
from mbsim.verdicts import Verdict

__all__ = ["CLAIMS", "Report", "draw_report", "expected_statuses", "reproduce"]

CLAIMS = (
    rates.SGD_SAME_RATE,
    rates.CLIPPING_AHEAD_EARLY,
    floors.BIAS_STAYS,
    floors.BIAS_NEEDS_SKEW,
    floors.SWEET_SPOT,
    digits.TRAINING_SWEET_SPOT,
    bounds_hold.BOUNDS_HOLD,
    sweet_spots.SWEET_SPOT_PREDICTED,
    sweet_spots.INTERIOR_BIAS,
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`reproduce` found.

    Attributes:
        verdicts: one per claim.
        controls: (what was taken away, verdict) for every negative control.
        trajectories: curves for a figure.
        quick, rng: how it was made.
        made_with: versions and seconds, the only part that differs between two runs of one seed.
    """

    verdicts: tuple[Verdict, ...]
    controls: tuple[tuple[str, Verdict], ...]
    trajectories: dict[str, Any]
    quick: bool
    rng: int
    made_with: dict[str, Any]

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
        """Where the statuses differ from the committed list of expected ones; one line each."""
        expected, found = expected_statuses(quick=self.quick), self.statuses()
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
        return "\n".join(tables.as_text(self.rows(), least=(0, 14)))

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The table of :meth:`rows`, for a page."""
        rows = [_HEAD, ("---",) * 3, *self.rows()]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def _repr_html_(self) -> str:
        return tables.as_html(self.rows(), head=_HEAD)


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


def reproduce(
    out: str | os.PathLike[str] = "figures", *, quick: bool = False, rng: int = 0
) -> Report:
    """Run every claim and every control; write the figures and ``report.json`` to `out`.

    Args:
        out: a directory, made if it is not there.
        quick: fewer steps, problems and replicates: less than a minute in the place of four.
        rng: the seed, an integer; the same seed gives the same report, byte for byte, but for
            ``made_with``.

    Returns:
        The :class:`Report`.

    Raises:
        InvalidArgument: if `out` cannot be a directory or `rng` is not an integer of at least 0.
    """
    study = Study(quick=quick, rng=rng)
    folder = writable_folder(out, "out")
    jobs = [(claim, "") for claim in CLAIMS]
    jobs += [(claim, control) for claim in CLAIMS for control in claim.controls]
    started, seconds, done = time.perf_counter(), {}, []
    with progress(len(jobs) + 2, "reproducing") as bar:
        for number, (claim, control) in enumerate(jobs):
            name = claim.name + (f", {control}" if control else "")
            bar.update(number, name)
            since = time.perf_counter()
            done.append((control, claim.verdict(study, control=control)))
            seconds[name] = round(time.perf_counter() - since, 2)
        bar.update(len(jobs), "trajectories")
        report = Report(
            verdicts=tuple(verdict for control, verdict in done if not control),
            controls=tuple((control, verdict) for control, verdict in done if control),
            trajectories=floors.trajectories(study),
            quick=quick,
            rng=study.rng,
            made_with={},
        )
        bar.update(len(jobs) + 1, "figures")
        draw_report(report.to_dict(), folder)
    seconds["all"] = round(time.perf_counter() - started, 2)
    report.made_with.update(_versions(), seconds=seconds)
    with replacing(folder / "report.json", "out") as file:
        file.write(to_json(report.to_dict()).encode())
    return report


def draw_report(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every figure to `folder` from a report's plain data alone; the paths written."""
    from matplotlib.figure import Figure

    found: dict[str, dict[str, Any]] = {v["claim"]: {"": v["details"]} for v in report["verdicts"]}
    for verdict in report["controls"]:
        found[verdict["claim"]][verdict["without"]] = verdict["details"]
    drawings: dict[str, tuple[Callable[[Figure, Any], None], Any]] = {
        claim.figure: (claim.draw, found[claim.name]) for claim in CLAIMS if claim.draw
    }
    drawings["trajectories"] = (floors.draw_trajectories, report["trajectories"])
    paths = []
    with plots.style():
        for name, (draw, details) in drawings.items():
            figure = Figure()
            draw(figure, details)
            paths += plots.save(figure, folder, name)
    return paths


def _versions() -> dict[str, Any]:
    names = ("numpy", "scipy", "matplotlib", "scikit-learn")
    found = {name: metadata.version(name) for name in names}
    return {"mbsim": __version__, "python": platform.python_version(), **found}
