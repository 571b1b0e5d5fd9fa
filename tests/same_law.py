"""One helper for every statistical test: stated sample size, false-positive rate and power.

Two samples of independent replicates are held to have the same mean unless Welch's interval for
the difference, at the false-positive rate of 1e-6 for each comparison, excludes 0. A comparison
that could not have seen a difference of the size stated fails too: it would test nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import mbsim
from mbsim import statistics

RATE = 1e-6
Array = NDArray[np.float64]

RULES = (
    mbsim.clipping.NoClipping(),
    mbsim.clipping.SmallestNorm(),
    mbsim.clipping.FixedNorm(0.7),
    mbsim.clipping.QuantileNorm(0.5),
    mbsim.clipping.TrimmedNorm(0.3),
    mbsim.clipping.UnitNorm(0.1),
)
LAWS = (
    mbsim.noise.Gaussian(sigma=1.0),
    mbsim.noise.TwoPoint(sigma=1.0, rare=0.2),
    mbsim.noise.TwoPoint(sigma=1.0, rare=0.2, isotropic_share=0.5),
    mbsim.noise.Exponential(sigma=1.0, isotropic_share=0.2),
    mbsim.noise.StudentT(sigma=1.0, df=5.0),
)


class OtherLaw(AssertionError):
    """Two samples that should share a mean do not."""


def same_mean(one: Array, other: Array, *, what: str, scale: float, detects: float) -> None:
    """The means of two independent samples are the same; a gap of `detects`·`scale` would be seen.

    "Seen" means in 9 cases of 10. Differences of rounding are allowed: 1e-12 of the scale, some
    thousands of rounding errors, for quantities that have no spread at all.
    """
    gap = statistics.difference(one, other, false_positive_rate=RATE)
    if abs(gap.estimate) > max(gap.estimate - gap.low, 1e-12 * scale):
        raise OtherLaw(f"{what}: means differ by {gap}, scale {scale:.4g}")
    assert gap.detectable <= detects * scale, f"{what}: blind below {gap.detectable / scale:.3g}"


def true_mean(sample: Array, truth: float, *, what: str, scale: float, detects: float) -> None:
    """The mean of a sample is `truth`; a gap of `detects`·`scale` would be seen."""
    mean = statistics.mean(sample, false_positive_rate=RATE)
    if abs(mean.estimate - truth) > max(mean.estimate - mean.low, 1e-12 * scale):
        raise OtherLaw(f"{what}: {mean} for {truth:.6g}")
    assert mean.detectable <= detects * scale, f"{what}: blind below {mean.detectable / scale:.3g}"


def frame(gradient: Array, n: int) -> tuple[Array, Array, Array, Array]:
    """e, and orthonormal rows: across e, of the dragger frame, and what neither may reach.

    Built from null spaces, as the engines do not: V ⊖ P_V g is the null space of P_V g in V.
    """

    def null_space(vector: Array) -> Array:
        if not vector.any():
            vector = np.eye(vector.size)[0]
        return np.linalg.svd(vector[None])[2][1:]

    d = gradient.size
    e = gradient / np.linalg.norm(gradient) if gradient.any() else np.eye(d)[0]
    across = np.zeros((n - 1, d))
    across[:, :n] = null_space(gradient[:n])
    draggers = np.zeros((max(0, d - n - 1), d))
    if d > n:
        draggers[:, n:] = null_space(gradient[n:])
    rows = np.concatenate([e[None], across, draggers])
    forbidden = np.linalg.svd(rows)[2][len(rows) :]
    return e, across, draggers, forbidden


def step_statistics(updates: Array, gradient: Array, n: int) -> dict[str, Array]:
    """What one step did, a number per replicate: along e, across it, in the dragger frame."""
    e, across, draggers, forbidden = frame(gradient, n)
    lengths = np.linalg.norm(updates, axis=1)
    # The engines reach the frame by reflections: some dozens of roundings of 1e-16. What is no
    # larger is 0 to both engines, and must not be compared in its own size.
    rounding = 1e-13 * lengths.max()
    assert (np.abs(updates @ forbidden.T) <= rounding).all(), "left the frame"
    along, in_v, in_u = (
        np.where(np.abs(part) <= rounding, 0, part)
        for part in (updates @ e[:, None], updates @ across.T, updates @ draggers.T)
    )
    along = along[:, 0]
    across_sq, dragged_sq = np.square(in_v).sum(axis=1), np.square(in_u).sum(axis=1)
    found = {
        "along": along,
        "along²": along**2,
        "across²": across_sq,
        "dragged²": dragged_sq,
        "along across²": along * across_sq,
        "along dragged²": along * dragged_sq,
        "across² dragged²": across_sq * dragged_sq,
        "length": lengths,
    }
    for name, parts in (("across", in_v), ("dragged", in_u)):
        for i, part in enumerate(parts.T[:4]):
            place = f"{name}[{i}]"
            found |= {place: part, f"{place}²": part**2, f"along {place}": along * part}
    return found


def same_law(one: dict[str, Array], other: dict[str, Array], *, what: str, detects: float) -> None:
    """Every statistic of two samples of steps has the same mean.

    The scale of each is its root mean square, so `detects` is in units of its own size.
    """
    for name in one:
        scale = float(np.sqrt(np.square(np.append(one[name], other[name])).mean()))
        if scale > 0:
            same_mean(one[name], other[name], what=f"{what}: {name}", scale=scale, detects=detects)


def pooled(cells: list[dict[str, Array]], scales: list[dict[str, float]]) -> dict[str, Array]:
    """The statistics of many cells as one sample each, in units of each cell's own size.

    A defect of all cells that none shows alone shows here.
    """
    pairs = list(zip(cells, scales, strict=True))
    return {
        name: np.concatenate([c[name] / s[name] for c, s in pairs if s[name] > 0] or [[0, 0]])
        for name in cells[0]
    }


def sizes(cell: dict[str, Array]) -> dict[str, float]:
    """The root mean square of every statistic, the unit in which cells are pooled."""
    return {name: float(np.sqrt(np.square(sample).mean())) for name, sample in cell.items()}


def same_everywhere(
    draw_one: Callable[..., Array],
    draw_other: Callable[..., Array],
    cells: list[tuple],
    gradients: list[Array],
    n: int,
    *,
    each: float,
    together: float,
) -> None:
    """Compare two ways to draw updates in every cell, and over all cells together.

    Args:
        draw_one: from a cell, a gradient and a seed to updates ``[replicates, d]``.
        draw_other: the same.
        cells: whatever the two functions take first.
        gradients: where the step is taken.
        n: the benign dimension.
        each: the difference that must be detectable in one cell, in units of its own size.
        together: the same for all cells together.
    """
    ones, others = [], []
    for number, (cell, gradient) in enumerate((c, g) for c in cells for g in gradients):
        what = f"{cell}, r = {np.linalg.norm(gradient):.3g}"
        ones.append(step_statistics(draw_one(cell, gradient, 2 * number), gradient, n))
        others.append(step_statistics(draw_other(cell, gradient, 2 * number + 1), gradient, n))
        same_law(ones[-1], others[-1], what=what, detects=each)
    units = [sizes(cell) for cell in others]
    same_law(pooled(ones, units), pooled(others, units), what="all cells", detects=together)
