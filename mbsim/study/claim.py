"""What a claim is: a statement, what is measured for it, its controls and its figure.

How to add a claim, in about thirty lines:

1. Write a function of a :class:`Study` that returns what it measured as comparisons, and the rest
   as a dictionary of plain data. What a control changes is an argument with a default. Runs take
   their seeds from ``study.seeds("the-name")``, and fewer or shorter ones do if ``study.quick``.
   Limits are fixed before data are seen; what is chosen from data is tested on other data.
2. Make a :class:`Claim` of it, with the claim's source, and with controls that take away what the
   claim rests on: none of these may come out supported.
3. If a figure shows it, write that from the plain data alone, with what ``mbsim.plots`` offers.
4. Name the claim in ``CLAIMS`` of ``mbsim/study/report.py``, run ``mbsim reproduce`` with and
   without ``--quick``, and write what came out into ``expected.json``, whatever it is.

>>> def flips(study, heads=0.5):
...     draw = np.random.default_rng(next(study.seeds("fair")))
...     thrown = draw.binomial(1, heads, 2000)
...     share = statistics.mean(thrown, false_positive_rate=RATE)
...     within = Comparison(what="heads", measured=share, relation="within", limit=(0.4, 0.6))
...     return [within], {"thrown": thrown.size}
>>> fair = Claim(name="fair", statement="The coin is fair.", source="an example", run=flips,
...              controls={"a bent coin": {"heads": 0.8}})
>>> fair.verdict(Study(quick=True)).status
'supported'
>>> fair.verdict(Study(quick=True), control="a bent coin").status
'refuted'
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import ArrayLike

from mbsim import plots, statistics
from mbsim._shared.arrays import Array
from mbsim._shared.seeds import child
from mbsim._shared.values import set_field
from mbsim.errors import InvalidArgument, check_integer, divisors, shown
from mbsim.verdicts import Comparison, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BATCH", "RATE", "Claim", "Study", "draw_curves", "examined", "of_mean", "points",
           "verdicts_on"]  # fmt: skip

# What a claim measured, and its details.
Found = tuple[Sequence[Comparison], dict[str, Any]]
# The details of a claim, under "", and of each of its controls, under its name.
Details = Mapping[str, dict[str, Any]]
# What comes of a claim and its controls, the seconds each took, and the pictures.
Examined = tuple[dict[str, Verdict], dict[str, float], dict[str, bytes]]
Points = list[dict[str, float]]
T = TypeVar("T")

# The false-positive rate of one comparison, and the batch size of most claims.
RATE, BATCH = 0.001, 64


def _tell_nobody(share: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One reproduction: how thorough it is, its seed, and the runs that claims share.

    Attributes:
        quick: fewer steps, problems and replicates.
        rng: the seed, an integer.
        tell: told by a long claim, as a share, how much of its work is done.
    """

    quick: bool = False
    rng: int = 0
    tell: Callable[[float], None] = field(default=_tell_nobody, repr=False, compare=False)
    _done: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        set_field(self, "rng", check_integer("rng", self.rng, minimum=0))

    @property
    def replicates(self) -> int:
        """Of the runs of most claims."""
        return 64 if self.quick else 128

    @property
    def sizes(self) -> list[int]:
        """The micro-batch sizes that most claims try."""
        return [1, 4, 16, 64] if self.quick else divisors(BATCH)

    def seed(self, *key: int | str) -> SeedSequence:
        """A seed of its own for what `key` says."""
        return child(SeedSequence(self.rng), *key)

    def seeds(self, purpose: str) -> Iterator[SeedSequence]:
        """Seeds for the runs of one purpose, one after the other."""
        return (self.seed(purpose, number) for number in itertools.count(1))

    def once(self, measure: Callable[..., T], *settings: Hashable) -> T:
        """``measure(self, *settings)``, worked out once: a control reads the runs of its claim."""
        key = (measure, settings)
        if key not in self._done:
            self._done[key] = measure(self, *settings)
        found: T = self._done[key]
        return found


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, held against simulation.

    Attributes:
        name: short, as in reports and in the list of expected statuses.
        statement: what is claimed, in a sentence.
        source: where it is from.
        run: measures: ``run(study)`` returns comparisons, all of which must be supported, and
            details as plain data.
        controls: what the claim rests on, taken away: a name for each, and the arguments of `run`
            that do it.
        figure: the name of the file that `draw` is for.
        draw: ``draw(figure, details)`` draws the details of the claim, ``details[""]``, and of
            controls, which are under their names.
        needs: an extra of this package, named as the package it brings, without which the claim
            is not applicable.
        seconds: about how long it takes, with its controls: the longest are begun first.
    """

    name: str
    statement: str
    source: str
    run: Callable[..., Found]
    controls: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    figure: str = ""
    draw: Callable[[Figure, Details], None] | None = None
    needs: str = ""
    seconds: float = 1.0

    @property
    def missing(self) -> str:
        """What has to be installed for it, in words; empty if nothing."""
        if not self.needs or find_spec(self.needs):
            return ""
        return f"needs {self.needs}: pip install 'microbatch-clipping[{self.needs}]'"

    def verdict(self, study: Study, *, control: str = "") -> Verdict:
        """What comes of the claim, or of one of its controls.

        Raises:
            InvalidArgument: if the claim has no such control.
        """
        if control and control not in self.controls:
            known = ", ".join(self.controls) or "there is none"
            raise InvalidArgument(
                f"control={shown(control)} must be a control of {self.name}: {known}"
            )
        about: dict[str, Any] = {"claim": self.name, "statement": self.statement, "seed": study.rng}
        if self.missing:
            return Verdict(**about, comparisons=(), not_applicable=self.missing)
        comparisons, details = self.run(study, **(self.controls[control] if control else {}))
        return Verdict(**about, comparisons=tuple(comparisons), details=details)

    def pictures(self, details: Details) -> dict[str, bytes]:
        """Its figure as PNG and SVG, by file name; nothing where none shows it or it is missing."""
        if self.draw is None or not details[""]:
            return {}
        return plots.pictures(self.figure, self.draw, details)


def examined(
    claims: Sequence[Claim], study: Study, tell: Callable[[float], None]
) -> list[Examined]:
    """Of every claim what comes of it (under "") and of its controls, seconds, and its pictures."""
    done, whole = 0, sum(1 + len(claim.controls) for claim in claims)
    study = replace(study, tell=lambda share: tell((done + share) / whole))
    found: list[Examined] = []
    for claim in claims:
        verdicts: dict[str, Verdict] = {}
        seconds: dict[str, float] = {}
        for name in ("", *claim.controls):
            since = time.perf_counter()
            verdicts[name] = claim.verdict(study, control=name)
            done += 1
            study.tell(0.0)
            seconds[claim.name + (f", {name}" if name else "")] = time.perf_counter() - since
        details = {name: verdict.to_dict()["details"] for name, verdict in verdicts.items()}
        found.append((verdicts, seconds, claim.pictures(details)))
    return found


def verdicts_on(
    claims: Iterable[Claim], study: Study, records: list[dict[str, Any]]
) -> dict[str, Verdict]:
    """What comes of claims, and of their controls, on `records` in place of their own."""
    found: dict[str, Verdict] = {}
    for claim in claims:
        on_these = replace(claim, run=partial(claim.run, records=records))
        found[claim.name] = on_these.verdict(study)
        for name in claim.controls:
            found[f"control of {claim.name}: {name}"] = on_these.verdict(study, control=name)
    return found


def of_mean(
    what: str,
    values: ArrayLike,
    relation: str,
    limit: float | tuple[float, float],
    *,
    false_positive_rate: float = RATE,
) -> Comparison:
    """The mean of independent values, held against a limit."""
    measured = statistics.mean(values, false_positive_rate=false_positive_rate)
    return Comparison(what=what, measured=measured, relation=relation, limit=limit)


def points(x: Iterable[float], samples: Iterable[Array]) -> Points:
    """A curve as plain data: at each x a mean with its 99 % interval."""
    rows = []
    for position, sample in zip(x, samples, strict=True):
        mean = statistics.mean(sample, false_positive_rate=0.01)
        rows.append({"x": position, "y": mean.estimate, "low": mean.low, "high": mean.high})
    return rows


def draw_curves(axes: Axes, curves: Mapping[str, Points], *, band: bool = False) -> None:
    """Draw curves of :func:`points` by their labels, with a band if they have many points."""
    for number, (label, rows) in enumerate(curves.items()):
        x, y, low, high = (
            np.array([row[key] for row in rows]) for key in ("x", "y", "low", "high")
        )
        plots.curve(axes, x, y, (low, high), number=number, label=label, band=band)
