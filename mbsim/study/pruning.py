r"""What is the pruning worth? Every way to train in spite of bad examples, on real tables.

A *way* is a rule at a micro-batch size, or what one would do otherwise. Each trains softmax
regression (or a tanh network) at B = 64 on the same mini-batches, with its step size, its stopping
time and its variants tuned on validation examples. The *oracle* is SGD on the examples that are not
contaminated, and the share of its gain that a way recovers

.. math:: (\ell_{SGD} - \ell_{way}) / (\ell_{SGD} - \ell_{oracle}),

ℓ the held-out loss, is undefined where the denominator is within noise of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import SeedSequence

from mbsim._shared.arrays import Array
from mbsim._shared.seeds import child
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, Rule, SmallestNorm, TrimmedNorm
from mbsim.compiled.twins import Twin
from mbsim.errors import divisors
from mbsim.gradients.gram import Gram
from mbsim.gradients.splits import Split
from mbsim.gradients.training import look_at, train
from mbsim.gradients.tuned import Tuned, tuned
from mbsim.gradients.weights import example_weights
from mbsim.methods import SGD, MicroBatchClipping
from mbsim.study import tables, text
from mbsim.study.claim import BATCH
from mbsim.study.stored import Record

__all__ = ["MODELS", "WAYS", "MeanNorm", "PerSampleNorm", "Setting", "Way", "measured"]


SIZES = divisors(BATCH)
STEPS = 300
# Options of what trains that make the models of the study, and the step size to begin at. Those
# with an optimizer are PyTorch's.
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "softmax": ({}, 1.0),
    "tanh network": ({"hidden": 64}, 1.0),
    "tanh network, Adam": ({"hidden": 64, "adam": True}, 1.0),
    "tanh network, momentum": ({"optimizer": "momentum"}, 0.125),
    "tanh network, AdamW": ({"optimizer": "AdamW"}, 2.0**-7),
    "transformer": ({"optimizer": "SGD"}, 1.0),
    "transformer, momentum": ({"optimizer": "momentum"}, 0.125),
    "transformer, AdamW": ({"optimizer": "AdamW"}, 2.0**-7),
}
TEXT = "text"  # the name that windows of text have among the tables
# Where scores are taken: after so many steps of SGD with a step size, in so many orders.
_EARLY, _EARLY_STEP, _ORDERS = 60, 0.25, 3
_PARTITIONS = 30


@dataclass(frozen=True)
class PerSampleNorm:
    """PS-Clip-SGD: example k of a step is clipped to α k^(1/β), s_k = min(1, α k^(1/β)/x_k).

    Source: Nobile and Grohs, Robust and fast training via per-sample clipping, arXiv 2605.02701,
    as described in public summaries of it; α stands for the noise σ, β for the moments that it has.

    >>> PerSampleNorm(1.0).factors(np.array([2.0, 2.0, 2.0, 2.0])).round(3)
    array([0.5  , 0.707, 0.866, 1.   ])
    """

    alpha: float
    beta: float = 2.0

    def factors(self, norms: Any) -> Any:
        """s_k = min(1, α k^(1/β)/x_k)."""
        limit = self.alpha * np.arange(1, norms.shape[-1] + 1) ** (1 / self.beta)
        limit = limit.astype(norms.dtype)
        return limit / np.maximum(norms, limit)

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        return _per_sample, np.array([self.alpha, self.beta])


def _per_sample(norms, parameters, factors):  # type: ignore[no-untyped-def]
    for k in range(norms.size):
        limit = parameters[0] * (k + 1) ** (1 / parameters[1])
        factors[k] = limit / norms[k] if norms[k] > limit else 1.0


@dataclass(frozen=True)
class MeanNorm:
    """The threshold is the mean of the step's norms, which nothing tunes: min(1, x̄/x_j).

    >>> MeanNorm().factors(np.array([1.0, 2.0, 6.0]))
    array([1. , 1. , 0.5])
    """

    def factors(self, norms: Any) -> Any:
        """s_j = min(1, x̄/x_j)."""
        mean = norms.mean(axis=-1, keepdims=True)
        tiny = np.finfo(norms.dtype).tiny
        return np.maximum(mean, tiny) / np.maximum(np.maximum(norms, mean), tiny)

    @property
    def compiled(self) -> Twin:
        """The same, compiled."""
        return _mean, np.zeros(0)


def _mean(norms, parameters, factors):  # type: ignore[no-untyped-def]  # noqa: ARG001
    mean = 0.0
    for j in range(norms.size):
        mean += norms[j] / norms.size
    for j in range(norms.size):
        factors[j] = mean / norms[j] if norms[j] > mean else 1.0


class Way(NamedTuple):
    """One variant of a way to train.

    Attributes:
        name: of the way; of its variants the one with the least validation loss counts.
        rule, size: what it clips by, and b.
        options: of :func:`~mbsim.gradients.training.train`.
        leave_out: a score, of which the examples with the largest values are left out beforehand,
            and their share; or "touched": those that are contaminated.
    """

    name: str
    rule: Rule
    size: int = BATCH
    options: tuple[tuple[str, Any], ...] = ()
    leave_out: tuple[str, float] | None = None


_ORACLE = Way("oracle", SmallestNorm(), leave_out=("touched", 0.0))
_SMALLEST = [Way("SGD", SmallestNorm()), _ORACLE] + [
    Way(f"smallest norm, b = {b}", SmallestNorm(), b) for b in SIZES[:-1]
]
_RULES: dict[str, Rule] = {
    "median": QuantileNorm(0.5),
    "trimmed": TrimmedNorm(0.25),
    "mean": MeanNorm(),
}
_ALL = [
    *_SMALLEST,
    *(Way(f"{word} norm, b = {b}", rule, b) for word, rule in _RULES.items() for b in SIZES[:4]),
    *(Way("fixed norm, b = 1", FixedNorm(c), 1) for c in (0.125, 0.5, 2.0)),
    *(Way("PS-Clip-SGD", PerSampleNorm(a), 1) for a in (0.03, 0.125, 0.5)),
    *(
        Way("SGD, weight decay", SmallestNorm(), options=(("decay", x),))
        for x in (0.0, 0.003, 0.03)
    ),
    *(
        Way("largest losses dropped", TrimmedNorm(share), 1, (("by", "losses"),))
        for share in (0.1, 0.25)
    ),
    *(
        Way(f"{kind} median, b = {b}", NoClipping(), b, (("by", f"{kind} median"),))
        for kind in ("coordinate", "geometric")
        for b in (2, 4, 8)
    ),
    *(
        Way(f"{score} pruned", SmallestNorm(), leave_out=(score, share))
        for score in ("GraNd", "EL2N")
        for share in (0.1, 0.25)
    ),
]
# SGD comes first, and the oracle: what is tuned later begins at its step size.
WAYS = {"smallest": _SMALLEST, "all": _ALL}


class Setting(NamedTuple):
    """One split of one contaminated table, and a model.

    Attributes:
        table: of :mod:`mbsim.study.tables`, or "text": that of :mod:`mbsim.study.text`.
        contamination: one of ``CONTAMINATIONS``.
        split: its number.
        model: one of ``MODELS``; of text a transformer, of tables no transformer.
        ways: one of ``WAYS``.
        held_out: whether what is held out is contaminated too: a control.
    """

    table: str
    contamination: str
    split: int = 0
    model: str = "softmax"
    ways: str = "all"
    held_out: bool = False


def measured(setting: Setting, rng: SeedSequence) -> Record:
    """Every way, tuned, on one split of a table.

    Returns:
        Plain data: by way, ``validation`` (loss), ``loss`` and ``accuracy`` held out where that is
        best, ``end_loss`` and ``end_accuracy`` after all steps, ``step_size``, ``stop`` and
        ``steps_to_sgd``, those until the held-out loss is SGD's (None: never). Of softmax
        regression ``auc`` by score: the area under the ROC curve with which it tells the
        contaminated examples, and under "shuffled" as many random ones; of clean data those that
        would have a wrong label.

    Raises:
        InvalidArgument: if the table has a single class.
    """
    seed = child(rng, "split", setting.split)
    data = _data(setting, seed)
    options, start = MODELS[setting.model]
    best: dict[str, Tuned] = {}
    ends: dict[str, tuple[float, float, float]] = {}
    scores: dict[str, Array] = {}
    for way in WAYS[setting.ways]:
        if way.leave_out and way is not _ORACLE and not scores:
            scores = _scores(data, seed)
        kept = _kept(data, way.leave_out, scores)
        if len(kept.train_labels) < BATCH:
            continue
        one = tuned(
            kept,
            MicroBatchClipping(way.size, rule=way.rule),
            steps=STEPS,
            start=best[way.name if way.name in best else "SGD"].step_size if best else start,
            rng=seed,
            train=_train_in_torch if "optimizer" in options else train,
            **options,
            **dict(way.options),
        )
        ends[way.name] = min(ends.get(way.name, one.end), one.end)
        if way.name not in best or one.validation_loss < best[way.name].validation_loss:
            best[way.name] = one
    target = best["SGD"].test_loss
    record: Record = {name: _plain(one, ends[name], target) for name, one in best.items()}
    if setting.model == "softmax" and not setting.held_out:
        scores = scores or _scores(data, seed)
        record["auc"] = _areas(setting, data, scores, seed)
    return record


def _data(setting: Setting, seed: SeedSequence) -> Any:
    """A split of a table, or windows of text."""
    if setting.table == TEXT:
        what = tables.CONTAMINATIONS[setting.contamination]
        return text.windows(what, rng=seed, held_out=setting.held_out)
    return tables.split(setting.table, setting.contamination, rng=seed, held_out=setting.held_out)


def _train_in_torch(*arguments: Any, **options: Any) -> Any:
    from mbsim.study import torch_training  # late: an extra brings it

    return torch_training.train(*arguments, **options)


def _areas(setting: Setting, data: Split, scores: dict[str, Array], seed: SeedSequence) -> Record:
    from sklearn.metrics import roc_auc_score

    touched = data.touched
    if not touched.any():
        touched = tables.split(setting.table, "10 % wrong labels", rng=seed).touched
    masks = {
        "": touched,
        "shuffled": np.random.default_rng(child(seed, "mask")).permutation(touched),
    }
    found: Record = {
        name: {score: float(roc_auc_score(mask, values)) for score, values in scores.items()}
        for name, mask in masks.items()
    }
    return {**found.pop(""), **found}


def _plain(one: Tuned, end: tuple[float, float, float], target: float) -> dict[str, Any]:
    reached = np.flatnonzero(one.curve <= target)
    return {
        "validation": one.validation_loss,
        "loss": one.test_loss,
        "accuracy": one.test_accuracy,
        "end_loss": end[1],
        "end_accuracy": end[2],
        "step_size": one.step_size,
        "stop": one.stop,
        "steps_to_sgd": int(one.steps[reached[0]]) if reached.size else None,
    }


def _kept(data: Any, leave_out: tuple[str, float] | None, scores: dict[str, Array]) -> Any:
    if leave_out is None:
        return data
    name, share = leave_out
    if name == "touched":
        return data.keep(~data.touched)
    order = np.argsort(scores[name], kind="stable")
    chosen = np.zeros(order.size, dtype=bool)
    chosen[order[: order.size - round(share * order.size)]] = True
    return data.keep(chosen)


def _scores(data: Split, seed: SeedSequence) -> dict[str, Array]:
    """Scores of the training examples, the larger the more suspicious, from early SGD.

    Sums over orders of the examples: the loss; GraNd, the norm of the gradient; EL2N, that of the
    residual (Paul, Ganguli, Dziugaite, 2021). In the first order: the average weights that clipping
    gives at some b, their sign turned.
    """
    run = train(data, SGD(), step_size=_EARLY_STEP, steps=_EARLY, orders=_ORDERS, rng=seed)
    x, labels = data.train_inputs, data.train_labels
    every = [look_at(weights, x, labels) for weights in run.weights]
    found: dict[str, Array] = {
        "loss": np.sum([seen.losses for seen in every], axis=0),
        "GraNd": np.sum([seen.norms for seen in every], axis=0),
        "EL2N": np.sum([np.linalg.norm(seen.signals, axis=1) for seen in every], axis=0),
    }
    gram = Gram.from_matrix((every[0].signals @ every[0].signals.T) * (x @ x.T))
    for b in SIZES[:4]:
        for word, rule in (("smallest", SmallestNorm()), ("median", QuantileNorm(0.5))):
            weights = example_weights(gram, b, rule=rule, partitions=_PARTITIONS, rng=seed)
            found[f"weight, {word} norm, b = {b}"] = -weights
    return found
