r"""Data of several domains: whom clipping costs weight, and what gives it back.

A domain is as good as its held-out loss. Softmax regression, B = 64, micro-batches of b = 8 or as
the figure says; the step size of every way is the one with the lowest validation loss. *The longer
domain* is the one with the higher validation loss under SGD, whose gradients are the longer ones.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import SeedSequence

from mbsim import plots, statistics
from mbsim._shared.arrays import Array, Integers
from mbsim._shared.seeds import stream
from mbsim.clipping import NoClipping, Rule, SmallestNorm, WithinGroups
from mbsim.errors import InvalidArgument, shown
from mbsim.methods import SGD, Method, MicroBatchClipping
from mbsim.problems.finite import FiniteProblem, arranged
from mbsim.simulation.run import simulate
from mbsim.study import tables
from mbsim.study.claim import BATCH, RATE, Claim, Details, Found, Study, of_mean
from mbsim.study.descents import Data, descend, losses, parts
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DOMAIN_REMEDY", "HALF", "INVERTED", "MULTI_DOMAIN_HURTS", "ON_TABLES", "TABLES", "WAYS",
    "domain_data", "trained", "two_domains",
]  # fmt: skip

INVERTED, HALF = "digits, a quarter inverted", "digits, half inverted"
# Two classes against the rest. Trials were made on satimage, segment, vehicle and on other splits
# of the digits; these tables were not among them.
TABLES = (
    "penbased", "vowel", "texture", "marketing", "contraceptive", "led7digit", "wine", "tae",
)  # fmt: skip
_SIZE, _STEPS, _STEP_SIZES = 8, 300, (0.3, 1.0)
_FEATURES, _MOST = 64, 1024
# How a way makes micro-batches, and what it does to them.
WAYS: dict[str, tuple[str, str]] = {
    "SGD": ("mixed", "none"),
    "mixed": ("mixed", "smallest"),
    "by domain": ("by domain", "smallest"),
    "threshold per domain": ("by domain", "each"),
    "even weights": ("by domain", "even"),
    "stratified": ("stratified", "smallest"),
}


def domain_data(name: str, *, contamination: str = "clean", rng: SeedSequence) -> Data:
    """One split of a table in two domains, whose shares are eighths.

    Args:
        name: one of :func:`mbsim.study.tables.tables` with three classes or more, of which the
            first two are domain 0; or ``INVERTED`` or ``HALF``: digits through 64 random features
            (a linear model alone cannot tell an image from its negative), domain 1 inverted.
        contamination: as of :func:`~mbsim.study.descents.parts`.
        rng: the seed.

    >>> data = domain_data("vowel", rng=SeedSequence(0))
    >>> np.bincount(data.train.domains).tolist()
    [64, 448]
    """
    draw = stream(rng, "domains")
    if name in (INVERTED, HALF):
        images, labels = _images("digits")
        share = 2 if name == INVERTED else 4
        domains = (draw.random(len(labels)) < share / 8).astype(np.int64)
        images = np.where(domains[:, None] == 1, 16 - images, images) / 8 - 1
        wiring = draw.standard_normal((images.shape[1], _FEATURES)) / 8
        inputs = np.maximum(0, images @ wiring + draw.uniform(-1, 1, _FEATURES))
    else:
        inputs, labels = tables.load(name)
        if labels.max() < 2:
            raise InvalidArgument(
                f"name={shown(name)} has {int(labels.max()) + 1} classes and must have three: two "
                "against the rest"
            )
        domains = (labels > 1).astype(np.int64)
        share = min(max(round(8 * domains.mean()), 1), 7)
    shares = np.array([8 - share, share]) / 8
    room = 0.6 * np.bincount(domains, minlength=2) / shares
    total = int(min(_MOST, *room)) // 64 * 64
    counts = [round(total * s) for s in shares]
    return parts(inputs, labels, domains, counts, contamination=contamination, rng=rng)


_images = lru_cache(maxsize=1)(tables.load)


def trained(
    data: Data,
    way: str,
    *,
    b: int = _SIZE,
    steps: int = _STEPS,
    domains: Integers | None = None,
    rng: SeedSequence,
) -> dict[str, Any]:
    """What a way of ``WAYS`` comes to at its best step size, of each domain.

    Args:
        data: of :func:`domain_data`.
        way: one of ``WAYS``.
        b: micro-batch size; for SGD it means nothing.
        steps: T.
        domains: what the training examples' domains are taken to be; theirs unless told.
        rng: the seed of the order, the same for all ways.

    Returns:
        By domain: ``validation`` and ``test`` losses and ``accuracy``; ``step_size``, ``weights``,
        and ``mean``, the validation loss by which the step size was chosen.
    """
    arrangement, kind = WAYS[way]
    taken = data.train.domains if domains is None else domains
    m = 1 if kind == "none" else BATCH // b
    draw = arranged(taken, BATCH, m, micro_batches_are=arrangement)
    rows, shares = draw(steps, stream(rng, "rows")), np.bincount(data.train.domains)
    rule = _rule(kind, taken[rows[0, :, 0]])
    weights = np.zeros((data.classes, data.train.inputs.shape[1]))
    best: dict[str, Any] = {}
    for step_size in _STEP_SIZES:
        found = descend(weights, data.train, rows, rule, step_size)
        validation, _ = losses(found, data.validation)
        mean = float(validation @ shares / shares.sum())
        if not best or mean < best["mean"]:
            test, accuracy = losses(found, data.test)
            best = {"mean": mean, "validation": validation, "test": test, "accuracy": accuracy}
            best |= {"step_size": step_size, "weights": found}
    return best


def _rule(kind: str, groups: Integers) -> Rule:
    """The rule of a kind, for micro-batches of these domains."""
    if kind in ("none", "smallest"):
        return NoClipping() if kind == "none" else SmallestNorm()
    return WithinGroups(groups=tuple(groups.tolist()), even=kind == "even")


# ------------------------------------------------------------------------------ what is measured

# Losses of a way: of the longer domain, of the other, and their mean; then accuracies of the same:
# ``[splits, 6]``.
Losses = dict[str, Array]


def _compared(study: Study, name: str, b: int, ways: tuple[str, ...], shuffled: bool) -> Losses:
    """Held-out losses of SGD and of ways on some splits of one table."""
    many = 1
    if name == INVERTED:
        many = (4 if study.quick else 12) if b == _SIZE else 2 if study.quick else 3
    rows: dict[str, list[Array]] = {}
    for split in range(many):
        study.tell(split / many)
        seed = study.seed("splits in domains", name, split)
        data = study.once(_drawn, name, split)
        domains, shares = data.train.domains, np.bincount(data.train.domains)
        if shuffled:
            domains = stream(seed, "shuffled").permutation(domains)
        plain = study.once(_by_sgd, name, split)
        longer = int(plain["validation"].argmax())
        for way in ("SGD", *ways):
            one = plain if way == "SGD" else trained(data, way, b=b, domains=domains, rng=seed)
            rows.setdefault(way, []).append(_row(one, longer, shares / shares.sum()))
    return {way: np.array(each) for way, each in rows.items()}


def _row(one: dict[str, Any], longer: int, shares: Array) -> Array:
    order = [longer, 1 - longer]
    return np.array([x for a in (one["test"], one["accuracy"]) for x in (*a[order], a @ shares)])


def _drawn(study: Study, name: str, split: int) -> Data:
    return domain_data(name, rng=study.seed("splits in domains", name, split))


def _by_sgd(study: Study, name: str, split: int) -> dict[str, Any]:
    seed = study.seed("splits in domains", name, split)
    return trained(study.once(_drawn, name, split), "SGD", rng=seed)


def _over(losses: Losses, way: str, other: str, which: int) -> Array:
    """Log ratios of a loss, one for each split."""
    found: Array = np.log(losses[way][:, which] / losses[other][:, which])
    return found


def _digits(what: str, logs: Array, relation: str, limit: float) -> Comparison:
    """Splits are the unit, and share one set of images: Nadeau and Bengio's interval."""
    measured = statistics.mean(logs, false_positive_rate=RATE, resampled=_HELD)
    return Comparison(what=what, measured=measured, relation=relation, limit=math.log(limit))


_HELD = 0.38  # held-out test images over training images

# ------------------------------------------------------------------------------ simulated

_APART, _SPREAD, _COUNT, _SHARE = 4.0, 0.5, 512, 0.25  # between optima, within; N, the smaller


def two_domains(arrangement: str, *, apart: float = _APART) -> FiniteProblem:
    """Bowls of two domains, one of a quarter, whose optima are `apart`, in 8 dimensions.

    >>> two_domains("by domain").loss.minimum  # ½π₁π₂·4² and the spread within domains
    1.6...
    """
    draw = np.random.default_rng(0)
    domains = (np.arange(_COUNT) >= (1 - _SHARE) * _COUNT).astype(np.int64)
    centres = _SPREAD * draw.standard_normal((_COUNT, 8)) / math.sqrt(8)
    for domain in (0, 1):
        centres[domains == domain] -= centres[domains == domain].mean(axis=0)
    centres[domains == 1, 0] += apart
    start = np.full(8, 0.5 * _APART + 1)
    return FiniteProblem(centres=centres, start=start, domains=domains, micro_batches=arrangement)


def _ends(study: Study, way: str, apart: float, shuffled: bool) -> Array:
    """Squared distances to both optima at the end of each replicate, b = 16: ``[64, 2]``."""
    arrangement, kind = WAYS[way]
    problem = two_domains(arrangement, apart=apart)
    if shuffled:
        taken = stream(study.seed("two domains, shuffled")).permutation(problem.domains)
        problem = replace(problem, domains=taken)
    method: Method = SGD()
    if kind != "none":
        groups = np.sort(np.array([0, 0, 0, 1]))
        method = MicroBatchClipping(16, rule=_rule(kind, groups))
    run = simulate(
        problem, method, batch_size=BATCH, step_size=0.1, steps=300, replicates=64,
        record_every=300, rng=study.seed("two domains", way),
    )  # fmt: skip
    optima = np.array([[0.0] * 8, [apart] + [0.0] * 7])
    found: Array = np.square(run.final_w[:, None, :] - optima).sum(axis=2)
    return found


# ------------------------------------------------------------------------- multi-domain-hurts


def _hurts(study: Study, shuffled: bool = False, apart: float = _APART) -> Found:
    """One domain to a micro-batch, and the smaller one is given up, as Theorem 10 says.

    Simulated, without noise the rest point is the larger domain's optimum: the smaller one's
    distance from its own is 1/(1 − π) times SGD's, π its share; at the noise of b = 16 at least
    0.9 of that. On digits, b = 8: the longer domain's held-out loss is above 1.2 times SGD's.
    """
    ends = {way: study.once(_ends, way, apart, shuffled) for way in ("SGD", "by domain", "mixed")}
    far = np.sqrt(ends["by domain"][:, 1]) / math.sqrt(float(ends["SGD"][:, 1].mean()))
    says = 1 / (1 - _SHARE)
    what = "simulated: the smaller domain's distance over SGD's"
    comparisons = [of_mean(what, far, "within", (0.9 * says, 1.02 * says))]
    ways = ("by domain",) if shuffled else tuple(_NAMES)
    found = study.once(_compared, INVERTED, _SIZE, ways, shuffled)
    logs = _over(found, "by domain", "SGD", 0)
    what = "digits: log of the longer domain's loss over SGD's, b = 8"
    comparisons.append(_digits(what, logs, "above", 1.2))
    details: dict[str, Any] = {"simulated": {k: v.mean(axis=0).tolist() for k, v in ends.items()}}
    details["digits"] = {way: rows.mean(axis=0).tolist() for way, rows in found.items()}
    if not shuffled and apart == _APART:
        details["curves"] = study.once(_curves)
    return comparisons, details


def _curves(study: Study) -> dict[str, Any]:
    """By domain, way and b: test losses over SGD's, of each split."""
    sizes = [1, 8] if study.quick else [1, 4, 8, 16]
    found = {b: study.once(_compared, INVERTED, b, tuple(_NAMES), False) for b in sizes}
    return {
        domain: {
            way: {str(b): np.exp(_over(found[b], way, "SGD", number)).tolist() for b in sizes}
            for way in _NAMES
        }
        for number, domain in enumerate(("a quarter, inverted", "three quarters, as they are"))
    }


def _draw(figure: Figure, details: Details) -> None:
    """Each domain's test loss over SGD's against b: geometric means, and every split as a dot."""
    figure.set_size_inches(7.6, 3.5)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (domain, ways) in zip(panels, details[""]["curves"].items(), strict=True):
        for number, (way, by_size) in enumerate(ways.items()):
            sizes = [int(b) for b in by_size]
            for b, ratios in by_size.items():
                place = [int(b) * 1.06 ** (number - 1)] * len(ratios)
                axes.plot(place, ratios, ".", color=plots.COLOURS[number], alpha=0.3, ms=4)
            means = [float(np.exp(np.log(ratios).mean())) for ratios in by_size.values()]
            plots.curve(axes, sizes, means, number=number, label=_NAMES[way])
        axes.axhline(1, color="0.3", linewidth=1)
        plots.sizes_axis(axes, sizes)
        axes.set(yscale="log", xlabel="micro-batch size b, of B = 64", title=f"Digits: {domain}")
        plots.plain_numbers(axes.yaxis)
    panels[0].set_ylabel("test loss over SGD's")
    panels[1].legend(fontsize=7.5)


_NAMES = {
    "by domain": "one domain to a micro-batch",
    "mixed": "mixed",
    "threshold per domain": "one domain, a threshold for each",
}

MULTI_DOMAIN_HURTS = Claim(
    name="multi-domain-hurts",
    statement=(
        "Where a micro-batch holds one domain, clipping gives up the domain with the longer "
        "gradients: the smaller of two that disagree."
    ),
    source="[Wang2024] in its limitation; ours in its reason: theory page, section 13.2",
    run=_hurts,
    controls={
        "domains shuffled": {"shuffled": True},
        "both domains the same": {"apart": 0.0, "shuffled": True},
    },
    figure="domains",
    draw=_draw,
    seconds=3,
)


# ------------------------------------------------------------------------------ domain-remedy


def _remedy(study: Study, way: str = "threshold per domain") -> Found:
    """With a threshold for each domain the longer one's loss, and the mean, are as SGD's.

    "As": at most 1.1 times; and the longer one's at most 0.8 times that of one threshold for all.
    Simulated, b = 16: its squared distance from its optimum is at most 1.1 times SGD's.
    """
    found = study.once(_compared, INVERTED, _SIZE, tuple(_NAMES), False)
    ends = {one: study.once(_ends, one, _APART, False) for one in ("SGD", way)}
    far = ends[way][:, 1] / float(ends["SGD"][:, 1].mean())
    what = "simulated: the smaller domain's squared distance over SGD's"
    comparisons = [of_mean(what, far, "below", 1.1)]
    for what, other, which, limit in (
        ("the longer domain's loss over that of one threshold", "by domain", 0, 0.8),
        ("the longer domain's loss over SGD's", "SGD", 0, 1.1),
        ("the mean loss over SGD's", "SGD", 2, 1.1),
    ):
        logs = _over(found, way, other, which)
        comparisons.append(_digits(f"digits: log of {what}, b = 8", logs, "below", limit))
    return comparisons, {
        "losses over SGD's": {
            one: [float(np.exp(_over(found, one, "SGD", i).mean())) for i in range(3)]
            for one in found
        }
    }


DOMAIN_REMEDY = Claim(
    name="domain-remedy",
    statement=(
        "A threshold for each domain undoes what one threshold for all does to the longer domain, "
        "and costs nothing on the whole."
    ),
    source="ours: theory page, section 13.4; the question is [Wang2024]'s",
    run=_remedy,
    controls={"one threshold": {"way": "by domain"}},
    seconds=1.5,
)


# --------------------------------------------------------------------- multi-domain-on-tables


def _on_tables(study: Study, shuffled: bool = False) -> Found:
    """Two classes against the rest, b = 8: mean log ratios over tables, which are the unit.

    The longer domain's loss with one domain to a micro-batch is above that of mixed ones; and with
    a threshold for each domain below that with one.
    """
    names = TABLES[:3] if study.quick else TABLES
    found = {name: study.once(_compared, name, _SIZE, tuple(_NAMES), shuffled) for name in names}
    comparisons = []
    for way, other, relation in (
        ("by domain", "mixed", "above"),
        ("threshold per domain", "by domain", "below"),
    ):
        logs = [float(_over(one, way, other, 0).mean()) for one in found.values()]
        what = f"log of the longer domain's loss, {way} over {other}"
        comparisons.append(of_mean(what, logs, relation, 0.0))
    return comparisons, {
        name: {way: rows.mean(axis=0).tolist() for way, rows in one.items()}
        for name, one in found.items()
    }


ON_TABLES = Claim(
    name="multi-domain-on-tables",
    statement=(
        "On tables, two classes against the rest, micro-batches of one domain cost the domain with "
        "the longer gradients, and a threshold for each gives it back."
    ),
    source="ours: theory page, section 13; the tables are KEEL's",
    run=_on_tables,
    controls={"domains shuffled": {"shuffled": True}},
    seconds=1,
)
