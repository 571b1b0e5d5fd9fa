"""The average weight that clipping gives an example: a pruning score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim.clipping import Rule, SmallestNorm, check_rule_argument
from mbsim.errors import InvalidArgument, check_divides, check_integer
from mbsim.gradients.gram import Gram

__all__ = ["example_weights"]


def example_weights(
    gradients: Any,
    micro_batch_size: int,
    *,
    rule: Rule | None = None,
    batch_size: int = 64,
    partitions: int = 200,
    rng: int | SeedSequence | Generator = 0,
) -> NDArray[np.float64]:
    """The factor that clipping gives each example, averaged over random partitions.

    A partition is an epoch: a random order of the examples, cut into mini-batches of B and these
    into micro-batches of b; the few left over wait. Example i has the factor s_j of its micro-batch
    there. Those with small averages are what clipping prunes: at b = 1 the long gradients, at
    larger b those that make the mean of b longer, in length and in direction.

    Args:
        gradients: one for each example: a :class:`mbsim.Gram`, or what it takes.
        micro_batch_size: b, a divisor of B.
        rule: the clipping rule; :class:`~mbsim.clipping.SmallestNorm` if none is given.
        batch_size: B, at most the number of examples N.
        partitions: how many are averaged over; the standard error of a weight falls with their
            square root.
        rng: what partitions are drawn from.

    Returns:
        float64 ``[N]``; NaN for an example that was left over by every partition.

    Raises:
        InvalidArgument: for numbers outside their limits, and as :class:`mbsim.Gram`.

    >>> example_weights([[1.0, 0.0], [0.0, 1.0], [-4.0, 0.0], [1.0, 0.1]], 1, batch_size=4).round(2)
    array([1.  , 1.  , 0.25, 1.  ])
    """
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    gram = gradients if isinstance(gradients, Gram) else Gram(gradients)
    m, n = check_divides(micro_batch_size, batch_size), gram.examples
    if batch_size > n:
        raise InvalidArgument(f"batch_size={batch_size} must be at most the {n} examples there are")
    count = check_integer("partitions", partitions, minimum=1)
    draw, total, seen = stream(seed_sequence(rng), "partitions"), np.zeros(n), np.zeros(n)
    batches, size = n // batch_size, batch_size // m
    with progress(count, "example weights") as bar:
        for done in range(count):
            members = draw.permutation(n)[: batches * batch_size].reshape(-1, size)
            squares = gram.matrix[members[:, :, None], members[:, None, :]].sum(axis=(1, 2))
            norms = np.sqrt(np.maximum(squares, 0.0)) / size
            factors = np.asarray(rule.factors(norms.reshape(batches, m))).reshape(-1, 1)
            total[members] += factors
            seen[members] += 1
            bar.update(done)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = total / seen
    return found
