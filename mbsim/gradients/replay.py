r"""Training replayed in the Gram matrix: where w is, N products with measured gradients say.

Let example i have the loss (L/2)‖w − c_i‖² and what is to be lowered the loss (L/2)‖w − c‖², with
minima such that the gradients at the start are the measured g_i and the target g. With v the
gradient of the latter, an example's gradient is v + d_i wherever w is, d_i = g_i − g. A step of
Algorithm 1 with the factors s_j, φ̄ their mean and ω_i = s_{j(i)}/B for the examples of the batch is

.. math:: u = \bar\varphi v + \sum_i \omega_i d_i, \qquad v \leftarrow v - \eta L u ,

so v stays a combination of the target and the rows, and what a step needs, ‖v‖² and the products
⟨v, d_i⟩, moves by the Gram matrix of the deviations:

.. math:: \langle v, d_i\rangle \leftarrow (1 - \eta L\bar\varphi)\langle v, d_i\rangle
   - \eta L \sum_l \omega_l \langle d_l, d_i\rangle .

That is exact for these losses. For others it is an approximation: one curvature in all directions,
and deviations that stay as they were measured. It differs from the drift of
:class:`~mbsim.gradients.measured.MeasuredProblem` in that deviations do not turn with v.

Source: the theory page, section 11.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence

from mbsim._shared.arrays import Array, Integers, Mask, one_blas_thread
from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim.clipping import Rule
from mbsim.compiled.twins import twin_of
from mbsim.errors import check_integer, check_number
from mbsim.gradients.measured import MeasuredProblem
from mbsim.methods import Method
from mbsim.simulation.run import DIVERGED, Run, made, recorded_steps

__all__ = ["Together", "replay"]

# Replicates are drawn and moved together in so many, always all of them.
_LANE = 64


def replay(
    measured: MeasuredProblem,
    method: Method,
    *,
    batch_size: int,
    step_size: float,
    steps: int,
    replicates: int,
    rng: int | SeedSequence | Generator,
    record_every: int = 1,
) -> Run:
    """Run w ← w − η u on measured gradients, as :func:`mbsim.simulate` does on them.

    Replicates differ in their batches, and the same seed gives all methods of the same batch size
    the same batches.

    Args:
        measured: the problem; its `smoothness` is L.
        method: as for :func:`mbsim.simulate`, as are the rest.
        batch_size: B.
        step_size: η > 0, a number.
        steps: T ≥ 1.
        replicates: how many independent runs.
        rng: the seed.
        record_every: how many steps from one record to the next.

    Returns:
        A :class:`~mbsim.Run` with the engine "gram". Its `loss` is ‖v‖²/(2L), and its `final_w`
        has the N + 1 coefficients of w_T − w₀ in the gradients and the target. It has no
        `problem`: its recipe says which it was.

    >>> import mbsim
    >>> gradients = np.random.default_rng(0).standard_normal((64, 4)) + 1
    >>> measured = MeasuredProblem(gradients, target=np.ones(4))
    >>> run = replay(measured, mbsim.SGD(), batch_size=16, step_size=0.1, steps=200, replicates=8,
    ...              rng=0)
    >>> run.mean("grad_norm_sq").round(2)[[0, -1]]
    array([4.  , 0.07])
    """
    measured.drift(method, batch_size=batch_size)  # which checks them
    eta = check_number("step_size", step_size, above=0)
    last = check_integer("steps", steps, minimum=1)
    count = check_integer("replicates", replicates, minimum=1)
    every = check_integer("record_every", record_every, minimum=1)
    recorded = recorded_steps(last, every)
    seed = seed_sequence(rng)
    lanes = range(-(-count // _LANE))
    found = []
    with progress(len(lanes) * last, "simulating") as bar, np.errstate(all="ignore"):
        for lane in lanes:
            one = _Lane(measured, method, batch_size, eta, stream(seed, lane))
            found.append(one.run(recorded, lambda t, lane=lane: bar.update(lane * last + t)))
    joined: dict[str, Any] = {
        name: np.concatenate([one[name] for one in found])[:count] for name in found[0]
    }
    return Run(
        problem=None,
        engine="gram",
        steps=recorded,
        loss=joined["grad_norm_sq"] / (2 * measured.smoothness),
        **joined,
        **made(measured, method, int(batch_size), eta, seed),
    )


class _Lane:
    """Replicates that are moved together; arrays have a row for each."""

    def __init__(
        self,
        measured: MeasuredProblem,
        method: Method,
        batch: int,
        step_size: float,
        rng: Generator,
    ) -> None:
        self.measured, self.rule, self.rng = measured, method.rule, rng
        self.shape = (_LANE, method.micro_batches(batch), batch // method.micro_batches(batch))
        self.eta = step_size * measured.smoothness
        along, norm = measured.target_products, measured.target_norm
        # ⟨d_i, d_l⟩.
        self.deviations = measured.gram.matrix - along[:, None] - along + norm**2
        n = measured.examples
        self.products = np.tile(along - norm**2, (_LANE, 1))  # ⟨v, d_i⟩
        self.square = np.full(_LANE, norm**2)  # ‖v‖²
        # v = own g + Σ weights d_i.
        self.own, self.weights = np.ones(_LANE), np.zeros((_LANE, n))

    def run(self, recorded: Integers, say: Any) -> dict[str, Any]:
        """All steps up to the last that is recorded."""
        last, start = int(recorded[-1]), self.square[0]
        curve = np.full((_LANE, recorded.size), np.nan)
        diverged_at, stalled_at = np.full((2, _LANE), -1)
        total, place, batches = np.zeros(_LANE), 0, self._batches()
        for t in range(last + 1):
            gone = ~(self.square <= DIVERGED * start)
            diverged_at[gone & (diverged_at < 0)] = t
            self.square[gone] = np.nan
            if t == recorded[place]:
                curve[:, place] = self.square
                place += 1
                say(t)
            if t < last:
                total += self.square
                still = self._step(next(batches))
                stalled_at[still & (stalled_at < 0) & ~gone] = t
        gone = diverged_at >= 0
        total[gone] = np.nan
        # Σ weights d_i = Σ weights g_i − (Σ weights) g; and w_T − w₀ = (v_T − g)/L.
        final = np.column_stack([self.weights, self.own - self.weights.sum(axis=1) - 1])
        final[gone] = np.nan
        return {
            "grad_norm_sq": curve,
            "final_w": final / self.measured.smoothness,
            "mean_grad_norm_sq": total / last,
            "diverged_at": diverged_at,
            "stalled_at": stalled_at,
        }

    def _step(self, members: Integers) -> Mask:
        """One step on batches ``[lane, m, b]``; returns which replicates stand still."""
        lane, m, b = members.shape
        flat = members.reshape(lane, m * b)
        row = np.arange(lane)[:, None]
        means = self.products[row, flat].reshape(members.shape).mean(axis=2)
        inside = self.deviations[members[..., :, None], members[..., None, :]].mean(axis=(2, 3))
        squares = self.square[:, None] + 2 * means + inside
        norms = np.sqrt(np.maximum(squares, 0.0))
        norms[~np.isfinite(self.square)] = 1.0  # of what has diverged nothing is looked at
        factors = self.rule.factors(norms) / m
        share, omega = factors.sum(axis=1), np.zeros_like(self.weights)
        np.add.at(omega, (row, flat), np.repeat(factors / b, b, axis=1))
        with one_blas_thread():
            moved = omega @ self.deviations
        kept = 1 - self.eta * share
        along = (omega * self.products).sum(axis=1)
        second = (omega * moved).sum(axis=1)
        self.square = kept * (kept * self.square - 2 * self.eta * along) + self.eta**2 * second
        self.square = np.maximum(self.square, 0.0)
        self.products = kept[:, None] * self.products - self.eta * moved
        self.own *= kept
        self.weights = kept[:, None] * self.weights - self.eta * omega
        return ~((factors != 0) & (norms != 0)).any(axis=1)

    def _batches(self) -> Iterator[Integers]:
        """The examples of each step: epochs of a random order, or drawn with replacement."""
        n, size = self.measured.examples, self.shape[1] * self.shape[2]
        while True:
            if self.measured.replacement:
                yield self.rng.integers(n, size=self.shape)
                continue
            order = self.rng.permuted(np.tile(np.arange(n), (_LANE, 1)), axis=1)
            for start in range(0, n - size + 1, size):
                yield order[:, start : start + size].reshape(self.shape)


# ---------------------------------------------------------------------------- many at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Together:
    """Several rules and all micro-batch sizes on the same batches of the same examples.

    One product of matrices serves all of them: per step lanes × B × N multiplications.

    Attributes:
        deviations: ⟨d_i, d_l⟩, ``[N, N]``; `along`: ⟨g, d_i⟩, ``[N]``; `target_norm`: ‖g‖.
        batch: B; `sizes`: every b; `rules`: the rules, all of them compiled.
        replacement: whether the examples of a batch are drawn with replacement.
        seed: what batches are drawn from.

    >>> import mbsim
    >>> deviations = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> together = Together(
    ...     deviations=deviations @ deviations.T, along=deviations @ [1.0, 0.0], target_norm=1.0,
    ...     batch=4, sizes=(2, 4), rules=(mbsim.clipping.SmallestNorm(),),
    ...     replacement=False, seed=SeedSequence(0))
    >>> together.ends(np.full((1, 2, 1), 0.5), steps=3)[0, 1]  # SGD sees the mean: 0.5² a step
    array([0.015625])
    """

    deviations: Array
    along: Array
    target_norm: float
    batch: int
    sizes: tuple[int, ...]
    rules: tuple[Rule, ...]
    replacement: bool
    seed: SeedSequence

    def law(self, batches: int) -> Array:
        """Progress, second moment and share of clipped micro-batches at w₀, ``[3, rules, sizes]``.

        Means over the first batches. A micro-batch is clipped if another of its step is scaled
        down less.
        """
        total, lanes = np.zeros((3, len(self.sizes), len(self.rules))), len(self.rules)
        square = np.full((len(self.sizes), lanes), self.target_norm**2)
        products = np.tile(self.along, (*square.shape, 1))
        with one_blas_thread():
            for members in itertools.islice(self._batches(), batches):
                rows = self.deviations[members]
                omega = self._weights(members, rows, square, products)
                share, inner = omega.sum(axis=2), rows[:, members]
                first = (omega * self.along[members]).sum(axis=2)
                total[0] += share * self.target_norm + first / self.target_norm
                total[1] += share**2 * square + 2 * share * first + ((omega @ inner) * omega).sum(2)
                total[2] += self._clipped(omega)
        return np.swapaxes(total, 1, 2) / batches

    def ends(self, step_sizes: Array, steps: int) -> Array:
        """‖v‖² after `steps` steps for every rule, b and ηL, ``[rules, sizes, any]``.

        It is the mean over the last twentieth of the steps, and infinite for what has diverged.
        """
        from mbsim.compiled import replay

        e = np.swapaxes(step_sizes, 0, 1).reshape(len(self.sizes), -1).copy()
        square = np.full(e.shape, self.target_norm**2)
        products = np.tile(self.along, (*e.shape, 1))
        last = max(1, steps // 20)
        total = np.zeros(e.shape)
        limit = DIVERGED * self.target_norm**2
        rows, moved = np.empty((self.batch, len(self.along))), np.empty(products.shape)
        with one_blas_thread():
            for t, members in enumerate(itertools.islice(self._batches(), steps)):
                np.take(self.deviations, members, axis=0, out=rows, mode="clip")
                omega = self._weights(members, rows, square, products)
                np.matmul(omega.reshape(-1, self.batch), rows, out=moved.reshape(e.size, -1))
                replay.move(members, limit, omega, moved, e, square, products, total)
                if t >= steps - last:
                    total += square
        return np.swapaxes(total.reshape(-1, *step_sizes.shape[::2]), 0, 1) / last

    def _weights(self, members: Integers, rows: Array, square: Array, products: Array) -> Array:
        """ω of the batch's examples, ``[sizes, lanes, B]``: each rule has as many lanes."""
        from mbsim.compiled import replay

        omega = np.empty((*square.shape, self.batch))
        count = square.shape[1] // len(self.rules)
        for k, twin in enumerate(self._twins):
            lanes = k * count, (k + 1) * count
            replay.weigh(
                *twin, np.array(self.sizes), *lanes, members, rows, square, products, omega
            )
        return omega

    @cached_property
    def _twins(self) -> list[Any]:
        return [twin_of("rule", rule) for rule in self.rules]

    def _clipped(self, omega: Array) -> Array:
        """The share of micro-batches that are clipped, ``[sizes, lanes]``."""
        return (omega < omega.max(axis=2, keepdims=True)).mean(axis=2)

    def _batches(self) -> Iterator[Integers]:
        """The examples of each step."""
        n, rng = len(self.deviations), stream(self.seed)
        while True:
            if self.replacement:
                yield rng.integers(n, size=self.batch)
                continue
            order = rng.permutation(n)
            for start in range(0, n - self.batch + 1, self.batch):
                yield order[start : start + self.batch]
