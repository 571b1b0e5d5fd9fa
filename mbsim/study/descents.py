"""Softmax regression on tables in domains, step by step: what two claims train.

Which rows a step gets, and in which micro-batches, is :func:`~mbsim.problems.finite.arranged`'s, so
that domains can be kept apart, mixed or stratified.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import SeedSequence

from mbsim._shared.arrays import Array, Integers, Mask
from mbsim._shared.seeds import stream
from mbsim.clipping import Rule
from mbsim.compiled import softmax
from mbsim.errors import InvalidArgument
from mbsim.problems.finite import check_domains
from mbsim.study.tables import CONTAMINATIONS

__all__ = ["Data", "Part", "descend", "losses", "parts"]


_MOST = 1000


class Part(NamedTuple):
    """Inputs with a column of ones ``[N, D + 1]``, labels and domains ``[N]``."""

    inputs: Array
    labels: Integers
    domains: Integers


class Data(NamedTuple):
    """One split; `touched` says which training examples were contaminated."""

    train: Part
    validation: Part
    test: Part
    classes: int
    touched: Mask


def parts(
    inputs: Array,
    labels: Integers,
    domains: Integers,
    counts: list[int],
    *,
    contamination: str = "clean",
    rng: SeedSequence,
) -> Data:
    """A random split: so many of each domain for training, and to hold out half of the rest each.

    No more than 1000 of a domain are held out for one purpose.

    Args:
        inputs: ``[N, D]``; they get mean 0 and variance 1 over the training part.
        labels: from 0 on, ``[N]``.
        domains: from 0 on, ``[N]``.
        counts: training examples of each domain.
        contamination: one of :data:`~mbsim.study.tables.CONTAMINATIONS`, of the training part.
        rng: the seed.

    Raises:
        InvalidArgument: for labels of one class, domains that do not fit, and a domain with too
            few examples.

    >>> x, y = np.arange(40.0)[:, None], np.arange(40) % 2
    >>> found = parts(x, y, y, [10, 10], rng=SeedSequence(0))
    >>> found.train.inputs.shape, len(found.test.labels)
    ((20, 2), 10)
    """
    domains = check_domains(domains, len(labels), least=1)
    if labels.max() < 1:
        raise InvalidArgument("labels must be of at least two classes, and are of one")
    draw, chosen = stream(rng, "split"), ([], [], [])  # type: ignore[var-annotated]
    for domain, count in enumerate(counts):
        rows = draw.permutation(np.flatnonzero(domains == domain))
        if rows.size < count + 2:
            raise InvalidArgument(
                f"counts={counts}: domain {domain} has {rows.size} examples, and must have 2 more "
                f"than the {count} for training"
            )
        half = min((rows.size - count) // 2, _MOST)
        ends = [count, count + half, count + 2 * half]
        for some, part in zip(chosen, np.split(rows, ends)[:3], strict=True):
            some.append(part)
    train, validation, test = (np.concatenate(rows) for rows in chosen)
    centre, spread = inputs[train].mean(axis=0), inputs[train].std(axis=0)
    constant = spread <= 1e-9 * np.abs(centre)
    inputs = np.where(constant, 0.0, (inputs - centre) / np.where(constant, 1.0, spread))
    given, said, classes = inputs[train], labels[train], int(labels.max()) + 1
    touched = CONTAMINATIONS[contamination].apply(given, said, classes, stream(rng, contamination))
    return Data(
        train=Part(_with_ones(given), said, domains[train]),
        validation=Part(_with_ones(inputs[validation]), labels[validation], domains[validation]),
        test=Part(_with_ones(inputs[test]), labels[test], domains[test]),
        classes=classes,
        touched=touched,
    )


def _with_ones(inputs: Array) -> Array:
    return np.column_stack([inputs, np.ones(len(inputs))])


def descend(weights: Array, part: Part, rows: Integers, rule: Rule, step_size: float) -> Array:
    """Weights ``[K, D + 1]`` after one step for each mini-batch of `rows`, ``[steps, m, b]``.

    >>> part = Part(np.ones((2, 1)), np.array([0, 1]), np.zeros(2, int))
    >>> from mbsim.clipping import NoClipping
    >>> descend(np.zeros((2, 1)), part, np.array([[[0]]]), NoClipping(), 1.0).ravel()
    array([ 0.5, -0.5])
    """
    weights, (_, m, b) = np.array(weights, np.float64, order="C"), rows.shape
    norms, each, none = np.empty(m), np.empty(m), np.empty((0, weights.shape[1]))
    signals, update = np.empty((m * b, len(weights))), np.empty_like(weights)
    with np.errstate(all="ignore"):  # a step size may be too large; `losses` says so
        for batch in rows.reshape(len(rows), -1):
            x, labels = part.inputs[batch], part.labels[batch]
            softmax.look(none, weights, labels, b, x, x, signals, norms, each)
            steps = rule.factors(norms) * (step_size / batch.size)
            softmax.gather(b, x, x, signals, steps, none, update)
            weights -= update
    return weights


def losses(weights: Array, part: Part) -> tuple[Array, Array]:
    """Mean loss and accuracy of each domain; of weights that are not finite, infinity and 0."""
    domains = int(part.domains.max()) + 1
    if not np.isfinite(weights).all():
        return np.full(domains, np.inf), np.zeros(domains)
    logits = part.inputs @ weights.T
    own = logits[np.arange(len(logits)), part.labels]
    top = logits.max(axis=1)
    each = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - own
    hits = logits.argmax(axis=1) == part.labels
    sizes = np.bincount(part.domains)
    means = (np.bincount(part.domains, weights=x) / sizes for x in (each, hits))
    loss, accuracy = means
    return loss, accuracy
