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

import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from mbsim._shared import records
from mbsim._shared.arrays import one_blas_thread
from mbsim._shared.progress import progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim._shared.version import __version__
from mbsim.errors import check_integer, check_number
from mbsim.gradients.measured import MeasuredProblem
from mbsim.methods import Method
from mbsim.simulation.run import DIVERGED, Run

__all__ = ["replay"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

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
        has the N + 1 coefficients of w_T − w₀ in the gradients and the target. It cannot be loaded
        from a file.

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
    recorded = np.unique(np.append(np.arange(0, last + 1, every), last))
    seed = seed_sequence(rng)
    lanes = range(-(-count // _LANE))
    found = []
    with progress(len(lanes) * last, "simulating") as bar, np.errstate(all="ignore"):
        for lane in lanes:
            one = _Lane(measured, method, batch_size, eta, stream(seed, lane))
            found.append(one.run(recorded, lambda t, lane=lane: bar.update(lane * last + t)))
    joined = {name: np.concatenate([one[name] for one in found])[:count] for name in found[0]}
    return Run(
        problem=None,
        method=method,
        batch_size=int(batch_size),
        step_size=eta,
        engine="gram",
        seed=(np.asarray(seed.entropy).tolist(), tuple(map(int, seed.spawn_key))),
        steps=recorded,
        loss=joined["grad_norm_sq"] / (2 * measured.smoothness),
        **joined,
        recipe={
            "problem": records.describe(measured),
            "method": records.describe(method),
            "versions": {
                "mbsim": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
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

    def _step(self, members: Integers) -> NDArray[np.bool_]:
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
