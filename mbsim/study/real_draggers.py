"""Are the draggers of real tables those of the theory? Their angles, and the norm ratio's fall."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mbsim import plots
from mbsim.gradients import training
from mbsim.gradients.assumptions import DraggerCheck, check_assumptions
from mbsim.gradients.gram import Gram
from mbsim.methods import SGD
from mbsim.study import tables
from mbsim.study.claim import (
    BATCH,
    RATE,
    Claim,
    Details,
    Found,
    Study,
    draw_curves,
    of_mean,
    points,
)
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ASSUMPTION_4_4", "NORM_RATIO_FALLS"]

_TABLES = (
    "digits", "wine", "segment", "ionosphere", "breast-cancer", "satimage", "spambase", "vowel",
    "penbased", "sonar", "phoneme", "heart",
)  # fmt: skip
_QUICK = ("wine", "ionosphere", "segment", "spambase")
_KINDS = ("canaries", "10 % wrong labels", "25 % wrong labels")
# Gradients are looked at where SGD is after so many steps; at most so many of them, for speed.
_STEP_SIZE, _STEPS, _ROWS = 0.25, 300, 200
# The b whose norm ratio is held against that of single examples; and the least that is held against
# its law: few pairs of 200 examples have one of each kind.
_LARGEST, _LEAST = 16, 4
# What is claimed: cosines that count as 0; energy in the benign span, as a share of what random
# directions have there; how far c(b) has fallen; how near to its law.
_TILT, _ENERGY, _FALLEN, _OFF = 0.1, 0.5, 0.7, 0.15

# A claim has up to a dozen comparisons.
_of_mean = partial(of_mean, false_positive_rate=RATE / 2)

# A check for each table, by contamination.
Checks = dict[str, dict[str, DraggerCheck]]


def _checks(study: Study, change: str, largest: int) -> Checks:
    """Check every table with every contamination, at the weights where SGD has come.

    Args:
        study: the reproduction.
        change: nothing; "others": draggers are left out, and as many other examples called so;
            "copies": all draggers are the first of them.
        largest: the largest b whose norm ratio is measured.
    """
    names = _QUICK if study.quick else _TABLES
    found: Checks = {kind: {} for kind in _KINDS}
    for number, table in enumerate(names):
        study.tell(number / len(names))
        for kind in _KINDS:
            seed, draw = (study.seed(what, table, kind) for what in ("draggers", "draggers' rows"))
            rng = np.random.default_rng(draw)
            data = tables.split(table, kind, rng=study.seed("draggers"))
            sgd = training.train(
                data, SGD(), step_size=_STEP_SIZE, steps=_STEPS, batch_size=BATCH, rng=seed
            )
            rows = rng.permutation(data.touched.size)[:_ROWS]
            mask = data.touched[rows]
            gradients = training.per_example_gradients(
                sgd.weights[0], data.train_inputs[rows], data.train_labels[rows]
            )
            if change == "copies":
                gradients[mask] = gradients[mask][0]
            elif change == "others":
                gradients, draggers = gradients[~mask], min(mask.sum(), (~mask).sum() // 2)
                mask = rng.permutation(len(gradients)) < draggers
            with warnings.catch_warnings():  # that some tables have rows twice
                warnings.simplefilter("ignore")
                check = check_assumptions(Gram(gradients), is_dragger=mask, batch_size=largest)
            assert isinstance(check, DraggerCheck)
            found[kind][table] = check
    return found


def _orthogonal(study: Study, change: str = "") -> Found:
    """Tilt and energy of draggers: in the mean over tables, for each kind of dragger.

    The tilt is the mean cosine of a dragger and the mean benign gradient. The energy is the share
    of draggers' squared lengths within the principal directions that hold 90 % of the benign ones',
    over what random directions with the spectrum of all gradients have there: 0 for the draggers
    of assumption 4.4, and 1 for such as know nothing of the benign ones.
    """
    comparisons: list[Comparison] = []
    details: dict[str, Any] = {"tables": list(_QUICK if study.quick else _TABLES)}
    for kind, checks in study.once(_checks, change, 1).items():
        tilt = [one["tilt"].interval.estimate for one in checks.values()]
        energy = [
            one["energy_90"].interval.estimate / one["energy_90"].null.estimate
            for one in checks.values()
        ]
        comparisons += [
            _of_mean(f"cosine with the benign gradient, {kind}", tilt, "within", (-_TILT, _TILT)),
            _of_mean(f"energy in the benign span over random, {kind}", energy, "below", _ENERGY),
        ]
        details[kind] = {
            "tilt": tilt,
            "energy": energy,
            "tilt told apart": sum(one["tilt"].told_apart for one in checks.values()),
            "energy told apart": sum(one["energy_90"].told_apart for one in checks.values()),
        }
    return comparisons, details


def _falls(study: Study, change: str = "") -> Found:
    """c(b) over c(1) at the largest b, and over its law (Lemma 1 with measured inner products)."""
    comparisons: list[Comparison] = []
    details: dict[str, Any] = {"tables": list(_QUICK if study.quick else _TABLES)}
    for kind, checks in study.once(_checks, change, _LARGEST).items():
        ratios = [one.norm_ratios for one in checks.values()]
        sizes = list(ratios[0])
        fallen = {b: np.array([x[b][0].estimate / x[1][0].estimate for x in ratios]) for b in sizes}
        off = {b: [x[b][0].estimate / x[b][1] for x in ratios] for b in sizes if b >= _LEAST}
        what, limit = f"c({_LARGEST}) over c(1), {kind}", (1 - _OFF, 1 + _OFF)
        comparisons.append(_of_mean(what, fallen[_LARGEST], "below", _FALLEN))
        comparisons += [
            _of_mean(f"c({b}) over its law, {kind}", off[b], "within", limit) for b in off
        ]
        details[kind] = {
            "norm ratio": [x[1][0].estimate for x in ratios],
            "fallen": points(sizes, fallen.values()),
            "law": [float(np.mean([x[b][1] / x[1][1] for x in ratios])) for b in sizes],
        }
    return comparisons, details


def _draw_angles(figure: Figure, details: Details) -> None:
    """A dot for every table, and below those of as many other examples called draggers."""
    figure.set_size_inches(9, 3.4)
    left, right = figure.subplots(1, 2, sharey=True)
    others = details.get("other examples called draggers", {})
    for axes, name in ((left, "tilt"), (right, "energy")):
        rows, numbers = {}, []
        for kind in reversed(_KINDS):
            if kind in others:
                rows[f"others, beside {kind}"] = others[kind][name]
                numbers.append(2)
            rows[kind] = details[""][kind][name]
            numbers.append(0)
        plots.dots(axes, rows, numbers=numbers)
    for axes, low, high in ((left, -_TILT, _TILT), (right, 0, _ENERGY)):
        axes.axvspan(low, high, color="0.88", zorder=0)
    left.set(xlabel="cosine with the benign gradient", title="Wrong labels pull against it")
    right.set(xlabel="energy in its span, over random", title="and share its span", xlim=(0, None))
    left.text(0, -0.45, "assumption 4.4", ha="center", fontsize=7, color="0.35")


def _draw_fall(figure: Figure, details: Details) -> None:
    """c(b) over c(1): measured, by the law, and for copies of one dragger."""
    figure.set_size_inches(8, 3.2)
    copies = details.get("copies of one dragger", {})
    for axes, kind in zip(figure.subplots(1, len(_KINDS), sharey=True), _KINDS, strict=True):
        found = details[""][kind]
        sizes = [int(row["x"]) for row in found["fallen"]]
        curves = {"measured, 99 % interval": found["fallen"]}
        if kind in copies:
            curves["copies of one dragger"] = copies[kind]["fallen"]
        draw_curves(axes, curves)
        axes.plot(sizes, found["law"], "k:", label="law (Lemma 1)")
        plots.sizes_axis(axes, sizes)
        axes.set(
            xlabel="micro-batch size b",
            title=f"{kind}, {len(found['norm ratio'])} tables",
            ylim=(0, None),
        )
    first, *_, last = figure.axes
    first.set_ylabel("norm ratio c(b) over c(1)")
    last.legend(fontsize=7)


ASSUMPTION_4_4 = Claim(
    name="assumption-4.4",
    statement=(
        "On real tables the gradients of canaries and of wrong labels are orthogonal to the "
        "benign gradient (mean cosine within 0.1) and lie outside the span of the benign ones."
    ),
    source="[Wang2024] assumption 4.4 and canaries as its surrogate; wrong labels are ours",
    run=_orthogonal,
    controls={"other examples called draggers": {"change": "others"}},
    figure="draggers",
    draw=_draw_angles,
    seconds=3.5,
)

NORM_RATIO_FALLS = Claim(
    name="norm-ratio-falls",
    statement=(
        "On real tables the norm ratio of micro-batches falls with b, to less than 70 % at "
        "b = 16, by the law that has the draggers' and benign gradients' inner products in it."
    ),
    source="[Wang2024] Table 3 in its claim; the law is ours: theory page, Lemma 1",
    run=_falls,
    controls={"copies of one dragger": {"change": "copies"}},
    figure="norm_ratio",
    draw=_draw_fall,
    seconds=6,
)
