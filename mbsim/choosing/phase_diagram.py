"""Phase diagrams: for which draggers is the best micro-batch size interior?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mbsim import plots
from mbsim._shared.arrays import Array, Integers, Mask
from mbsim._shared.meant import answering
from mbsim._shared.progress import watched
from mbsim._shared.values import value
from mbsim.choosing.sweet_spot import sweet_spot
from mbsim.errors import check_array
from mbsim.problems.problem import Problem, check_problem

if TYPE_CHECKING:
    import xarray

__all__ = ["PhaseDiagram", "phase_diagram"]


@value
class PhaseDiagram:
    """The best micro-batch size for many dragger probabilities and norm ratios.

    Attributes:
        by: the criterion.
        batch_size: B.
        probabilities: p, float64[rows]; norm_ratios: c, float64[columns].
        micro_batch_size: int64[rows, columns], 0 where no b has a value.
    """

    by: str
    batch_size: int
    probabilities: Array
    norm_ratios: Array
    micro_batch_size: Integers

    @property
    def interior(self) -> Mask:
        """bool[rows, columns]: where the best b lies strictly between 1 and B."""
        return (self.micro_batch_size > 1) & (self.micro_batch_size < self.batch_size)

    def plot(self, ax: plots.Axes | None = None, **style: Any) -> plots.Axes:
        """The best b in a cell for each p and c, dark for small b; "SGD" where b = B.

        Args:
            ax: where to draw; a new figure unless told.
            **style: as of :meth:`~matplotlib.axes.Axes.imshow`, such as ``cmap``.
        """
        names = {0: "none", self.batch_size: "SGD"}
        texts = [[names.get(b, f"{b}") for b in row] for row in self.micro_batch_size.tolist()]
        size = np.log(np.where(self.micro_batch_size, self.micro_batch_size, np.nan))
        look = {"vmin": 0.0, "vmax": float(np.log(max(self.batch_size, 2))), **style}
        p, c = ([f"{x:.3g}" for x in axis] for axis in (self.probabilities, self.norm_ratios))
        with plots.on(ax) as axes:
            plots.cells(axes, c, p, size, texts, **look)
            axes.set(xlabel="norm ratio of draggers, c", ylabel="probability of a dragger, p")
            axes.set_title(f"best micro-batch size b of B = {self.batch_size}, by {self.by}")
        return axes

    def to_xarray(self) -> xarray.Dataset:
        """The diagram as a labelled :class:`xarray.Dataset` (needs xarray: extra ``labels``)."""
        import xarray

        axes = ("probability", "norm_ratio")
        return xarray.Dataset(
            {
                "micro_batch_size": (axes, self.micro_batch_size),
                "interior": (axes, self.interior),
            },
            coords={"probability": self.probabilities, "norm_ratio": self.norm_ratios},
            attrs={"by": self.by, "batch_size": self.batch_size},
        )

    def __str__(self) -> str:
        head = "p \\ c " + "".join(f"{c:>8.3g}" for c in self.norm_ratios)
        rows = [
            f"{p:<6.3g}" + "".join(f"{b:>8}" for b in row)
            for p, row in zip(self.probabilities, self.micro_batch_size, strict=True)
        ]
        share = f"{self.interior.mean():.0%} interior"
        title = f"PhaseDiagram by {self.by}: best b of {self.batch_size}, {share}"
        return "\n".join([title, head, *rows])

    __repr__ = __str__


@answering
def phase_diagram(
    problem: Problem,
    *,
    probabilities: ArrayLike,
    norm_ratios: ArrayLike,
    batch_size: int,
    by: str = "certificate",
    **settings: Any,
) -> PhaseDiagram:
    r"""The sweet spot for many draggers: where is the best micro-batch size interior?

    Args:
        problem: what is optimised; its own draggers' probability and norm ratio are replaced.
        probabilities: p, one-dimensional.
        norm_ratios: c, one-dimensional.
        batch_size: B.
        by: the criterion.
        **settings: the other arguments of :func:`sweet_spot`.

    Raises:
        InvalidArgument: as :func:`sweet_spot`.

    >>> import mbsim
    >>> problem = mbsim.Problem(
    ...     loss=mbsim.losses.Quadratic(np.ones(16)), benign_dim=8, start=np.full(16, 0.1),
    ...     noise=mbsim.noise.TwoPoint(sigma=1.0, rare=0.05))
    >>> phase_diagram(problem, probabilities=[0.01, 0.1], norm_ratios=[1, 20], batch_size=16,
    ...               by="floor", step_size=0.01)
    PhaseDiagram by floor: best b of 16, 25% interior
    p \ c        1      20
    0.01        16      16
    0.1         16       8
    """
    rows = check_array("probabilities", probabilities, ndim=1)
    columns = check_array("norm_ratios", norm_ratios, ndim=1)
    draggers = check_problem(problem).draggers
    best = np.zeros((rows.size, columns.size), dtype=np.int64)
    for i, j in watched(list(np.ndindex(best.shape)), "phase diagram"):
        changed = replace(draggers, probability=float(rows[i]), norm_ratio=float(columns[j]))
        of = replace(problem, draggers=changed)
        found = sweet_spot(of, batch_size=batch_size, by=by, **settings)
        best[i, j] = found.micro_batch_size or 0
    return PhaseDiagram(
        by=by,
        batch_size=batch_size,
        probabilities=rows,
        norm_ratios=columns,
        micro_batch_size=best,
    )
