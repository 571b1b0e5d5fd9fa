r"""The law of one micro-batch, by deterministic quadrature: how long it is, and where it points.

Everything about a step of a clipping rule follows from functions of a threshold t
(:class:`Tails`),

.. math:: S(t) = P(x > t), \quad G(t) = E[\langle X, e\rangle/x;\, x > t], \quad
          H(t) = E[\langle X, h\rangle/x;\, x > t],

with X the mean gradient of one micro-batch, x its norm, e the direction of the gradient and h
that common to the draggers of the step (0 without coherence). Given h micro-batches are
independent, and these functions do not depend on which direction h is. The law of x is a mixture
over the number of draggers (:mod:`mbsim.drifts.norm_laws`); its densities are integrated from the
right, on panels that resolve every one of them. Source: the theory page, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mbsim.drifts.norm_laws import (
    LEVELS,
    Laws,
    Length,
    Radial,
    Ragged,
    Resolution,
    Series,
    atoms_of,
    binomial,
    chi_length,
    gamma_length,
    gamma_rule,
    series_of,
)
from mbsim.drifts.random_walk import MOST_POINTS, Rule, SquaredLength, binned, squared_lengths
from mbsim.problems.noise import Exponential, Gaussian, TwoPoint
from mbsim.problems.problem import Problem

__all__ = ["MicroBatchLaw", "Tails", "has_quadrature"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
KnownNoise: TypeAlias = Gaussian | TwoPoint | Exponential

# From this dimension on ‖X‖² is smooth enough for a series of few terms.
_SERIES_DIM = 16
# With radial densities of more values of μ than this, a series is the cheaper.
_RADIAL_NODES = 32
# A mixture of more laws, series with more terms or more atoms than this cost more than a sample.
_MOST_LAWS, _MOST_TERMS, _MOST_ATOMS = 400, 5000, 10**5
# Atoms of |S_k|² are small enough when their mass times the number of micro-batches is.
_SMALL = 0.01
# A binned law has so many times fewer bins where even these are small enough.
_FEWER = (8, 4, 2)
# From this dimension on a random walk alone makes ‖X‖² smooth enough for a series.
_SMOOTH_WALK = 8
# Noise that is so small, measured by √(r² + σ²), is none: squares of norms would not show it.
_STILL = 1e-12
# Walks with smaller squares spread ‖X‖² too little for a series: rounding would show.
_NARROW = 1e-12


def has_quadrature(noise: object) -> bool:
    """Whether the law of a micro-batch with this noise is known here.

    Gaussian and two-point noise, and exponential noise without an isotropic share.
    """
    if type(noise) is Exponential:
        return noise.isotropic_share == 0
    return type(noise) in (Gaussian, TwoPoint)


@dataclass(frozen=True, eq=False)
class Tails:
    """S, G and H at the nodes of a quadrature over t.

    Attributes:
        t: nodes, ascending; `dt`: their weights.
        survival: S; `along`: G; `shared`: H.
        along_below: E[⟨X, e⟩; x ≤ t]; `shared_below`: E[⟨X, h⟩; x ≤ t].
    """

    t: Array
    dt: Array
    survival: Array
    along: Array
    shared: Array
    along_below: Array
    shared_below: Array


class MicroBatchLaw:
    """The law of the mean of b examples, for every gradient norm.

    Args:
        problem: its noise must be one that :func:`has_quadrature`.
        micro_batch_size: b.

    >>> import mbsim
    >>> from mbsim.drifts.norm_laws import LEVELS
    >>> problem = mbsim.Problem(loss=mbsim.losses.Quadratic(np.ones(4)),
    ...     noise=mbsim.noise.TwoPoint(sigma=1.0, rare=0.5), benign_dim=1, start=np.ones(4))
    >>> tails = MicroBatchLaw(problem, 1).tails(0.6, 0.8, LEVELS[0])    # x = |0.6 ± 0.8|
    >>> tails.survival, tails.along
    (array([1. , 0.5]), array([0. , 0.5]))
    """

    def __init__(self, problem: Problem, micro_batch_size: int) -> None:
        self.problem, self.b = problem, micro_batch_size
        self.walk_dim = problem.dragger_dim - (problem.draggers.coherence > 0)
        self.k, self.probability = binomial(micro_batch_size, problem.draggers.probability)
        self._share = _along_share(problem.noise)
        self._kept: dict[int, Ragged] = {}

    def costly(self, power: int = 0) -> bool:
        """Whether a sample is the cheaper: the mixture has too many laws, or too long ones."""
        gamma = type(self.problem.noise) is Exponential
        lattice = self._share == 1 and not gamma  # of atoms, if of any
        if not lattice and self._offsets(MOST_POINTS).nodes.size > _MOST_LAWS:
            return True
        draggers = self.problem.draggers
        walks = self.k[-1] > 1 and draggers.norm_ratio > 0 and draggers.coherence < 1
        if gamma and walks and 1 < self.walk_dim < _SMOOTH_WALK:
            return True  # nothing makes ‖X‖² smooth
        noise = self.problem.noise.sigma > 0
        grad_norm, sigma = (math.sqrt(0.5), math.sqrt(0.5)) if noise else (1.0, 0.0)
        atoms, _, series = self._parts(grad_norm, sigma, LEVELS[0], power)
        return atoms.shape[1] > _MOST_ATOMS // 2 or sum(s.terms for s in series) > _MOST_TERMS

    def tails(self, grad_norm: float, sigma: float, level: Resolution, power: int = 0) -> Tails:
        """S, G and H.

        Args:
            grad_norm: r, in the unit that makes r² + σ² = 1.
            sigma: σ, in this unit.
            level: how finely.
            power: nodes are close enough for polynomials in S of this degree.
        """
        atoms, radials, series = self._parts(grad_norm, sigma, level, power)
        if not radials and not series:
            return _tails_of_atoms(atoms)
        panels = _panels(atoms, radials, series, (), level)
        return _integrate(atoms, panels, _densities(panels, radials, series), power)

    def means(
        self,
        grad_norm: float,
        sigma: float,
        level: Resolution,
        length: Callable[[Array], Array],
        breaks: tuple[float, ...] = (),
    ) -> tuple[float, float, float]:
        """E[ℓ cos(X, e)], E[ℓ cos(X, h)] and E[ℓ²] for a length ℓ(x) that depends on x alone.

        Args:
            grad_norm: r, in the unit that makes r² + σ² = 1.
            sigma: σ, in this unit.
            level: how finely.
            length: ℓ, vectorised.
            breaks: where ℓ is not smooth.
        """
        atoms, radials, series = self._parts(grad_norm, sigma, level, 0)
        at_atoms = length(atoms[0])
        mass, along, shared = (atoms[1:] * [at_atoms**2, at_atoms, at_atoms]).sum(axis=1)
        if radials or series:
            panels = _panels(atoms, radials, series, breaks, level)
            density = _densities(panels, radials, series) * panels.dt
            at_nodes = length(panels.t)
            mass += (np.square(at_nodes) * density[0]).sum()
            along += (at_nodes * density[1]).sum()
            shared += (at_nodes * density[2]).sum()
        return float(along), float(shared), float(mass)

    # ------------------------------------------------------------------ the mixture over k

    def _parts(
        self, grad_norm: float, sigma: float, level: Resolution, power: int
    ) -> tuple[Array, list[Radial], list[Series]]:
        laws = self._laws(grad_norm, sigma, level)
        radial = self._is_radial(laws)
        gamma = (type(self.problem.noise) is Exponential) & (laws.along.sizes > 1)
        atomic = (laws.variance == 0) & (laws.discrete_walk | ~gamma) & ~radial
        if (atomic & ~laws.discrete_walk).any():
            laws = replace(laws, walk=self._discrete(laws, atomic, level, power))
        radials = [
            part for i in np.flatnonzero(radial).tolist() for part in self._radials(laws, i, sigma)
        ]
        smooth = laws.along.spread(~(atomic | radial))
        series = series_of(laws.restricted(smooth), level) if smooth.any() else []
        return atoms_of(laws, atomic), radials, series

    def _discrete(
        self, laws: Laws, atomic: Mask, level: Resolution, power: int
    ) -> tuple[SquaredLength, ...]:
        """The walks, with so many atoms for |S_k|² that S^power cannot tell them from a density.

        How many more than that a level has does not depend on k, so that levels can be compared.
        """
        largest = laws.probability * np.maximum.reduceat(laws.along.weights, laws.along.starts)
        few = squared_lengths(laws.walk_dim, int(laws.k[-1]), level.few)
        found = list(laws.walk)
        for i in np.flatnonzero(atomic & ~laws.discrete_walk).tolist():
            rule, crowd = few[k := int(laws.k[i])].rule, float(largest[i]) * (power + 1) / _SMALL
            if crowd * rule[1].max() > 1:
                fewer = next((n for n in _FEWER if crowd * n < LEVELS[0].bins / 2), 1)
                rule = binned(laws.walk_dim, k, level.bins // fewer)
            found[i] = replace(found[i], rule=rule)
        return tuple(found)

    def _laws(self, grad_norm: float, sigma: float, level: Resolution) -> Laws:
        draggers, n, b = self.problem.draggers, self.problem.benign_dim, self.b
        points = level.points
        length = draggers.norm_ratio * math.hypot(grad_norm, sigma)
        own_sq = length**2 * (1 - draggers.coherence) / b**2
        walks = squared_lengths(max(self.walk_dim, 1), int(self.k[-1]) if own_sq > 0 else 0, points)
        benign = 1 - self.k / b
        sigma = sigma if sigma > _STILL else 0.0
        offsets = self._offsets(points if sigma else 0)
        centre = benign * grad_norm + (1 - benign) * (draggers.along * length)
        along = offsets.nodes * (sigma * math.sqrt(self._share) / b) + offsets.spread(centre)
        return Laws(
            k=self.k,
            probability=self.probability,
            along=replace(offsets, nodes=along),
            variance=sigma**2 * (1 - self._share) * (b - self.k) / (n * b**2),
            dimensions=n,
            shared=(1 - benign) * (math.sqrt(draggers.coherence) * length),
            own_sq=own_sq,
            walk=tuple(walks[k if own_sq > 0 else 0] for k in self.k),
            walk_dim=self.walk_dim,
        )

    def _offsets(self, points: int) -> Ragged:
        """Σ of the unit-variance noises along e of b − k examples, without the Gaussian part.

        Without points there is no noise.
        """
        if points not in self._kept:
            counts = (self.b - self.k if points else 0 * self.k).tolist()
            rules = [_along_rule(self.problem.noise, count, points) for count in counts]
            self._kept[points] = Ragged.of(rules)
        return self._kept[points]

    def _is_radial(self, laws: Laws) -> Mask:
        """Which k have radial densities."""
        gaussian = laws.variance > 0
        gamma = (type(self.problem.noise) is Exponential) & ~gaussian & (laws.along.sizes > 1)
        few = (laws.k <= 1) | (laws.along.sizes <= _RADIAL_NODES)
        small = gaussian & few & (laws.dimensions < _SERIES_DIM)
        narrow = laws.own_sq < _NARROW
        found: Mask = (laws.discrete_walk & small) | ((laws.discrete_walk | narrow) & gamma)
        return found

    def _radials(self, laws: Laws, i: int, sigma: float) -> list[Radial]:
        """The radial densities given one k, one for each value of |S_k|²."""
        mu, weights = laws.along.law(i)
        if laws.variance[i] == 0:
            length = gamma_length(float(weights @ mu), sigma / self.b, self.b - int(laws.k[i]))
        else:
            length = self._chi_length(laws, i)
        return [
            Radial(
                probability=float(laws.probability[i] * weight),
                shift=float(laws.shared[i] ** 2 + laws.own_sq * squared),
                shared=float(laws.shared[i]),
                length=length,
            )
            for squared, weight in zip(*laws.walk[i].rule, strict=True)
        ]

    @staticmethod
    def _chi_length(laws: Laws, i: int) -> Length:
        alone = replace(laws, own_sq=0.0, shared=np.zeros_like(laws.shared))
        low, high = alone.restricted(laws.along.spread(np.arange(laws.k.size) == i)).ranges()
        ends = math.sqrt(low.min()), math.sqrt(high.max())
        return chi_length(laws.along.law(i), float(laws.variance[i]), laws.dimensions, ends)


def _along_share(noise: KnownNoise) -> float:
    """The share of the noise's variance that lies along e without being isotropic Gaussian."""
    return 0.0 if isinstance(noise, Gaussian) else 1 - noise.isotropic_share


def _along_rule(noise: KnownNoise, count: int, points: int) -> Rule:
    """The sum of `count` noises along e, each of variance 1, without the isotropic Gaussian."""
    if count == 0 or _along_share(noise) == 0:
        return np.zeros(1), np.ones(1)
    if isinstance(noise, TwoPoint):
        hits, weights = binomial(count, noise.rare)
        nodes = (hits - count * noise.rare) / math.sqrt(noise.rare * (1 - noise.rare))
        return nodes.astype(np.float64), weights
    nodes, weights = gamma_rule(count, points)
    return nodes - count, weights


# ---------------------------------------------------------------------------- panels


@dataclass(frozen=True, eq=False)
class _Panels:
    """Gauss panels in t: `edges`, and nodes and weights ``[panels, nodes]``."""

    edges: Array
    t: Array
    dt: Array


def _panels(
    atoms: Array,
    radials: list[Radial],
    series: list[Series],
    breaks: tuple[float, ...],
    level: Resolution,
) -> _Panels:
    """Panels from 0 on that end at every atom and break and resolve every density."""
    ends = [np.zeros(1), atoms[0], np.asarray(breaks, dtype=np.float64)]
    ends += [radial.edges for radial in radials]
    if series:
        ends.append(_series_edges(series))
    edges = np.unique(np.concatenate(ends))
    u, weights, _ = _gauss_panel(level.nodes)
    # Above the onset δ of a radial density, √(t² − δ²) has a root there: panels are even in
    # v = √(t − δ), with δ the nearest onset below.
    onsets = np.unique([0.0] + [math.sqrt(radial.shift) for radial in radials])
    onset = onsets[np.searchsorted(onsets, edges[:-1], side="right") - 1][:, None]
    even = onset > 0
    low, high = edges[:-1, None] - onset, edges[1:, None] - onset
    low, high = np.where(even, np.sqrt(low), low), np.where(even, np.sqrt(high), high)
    v = low + (high - low) * u
    return _Panels(
        edges=edges,
        t=onset + np.where(even, v * v, v),
        dt=(high - low) * weights * np.where(even, 2 * v, 1.0),
    )


def _series_edges(series: list[Series]) -> Array:
    """Ends of panels in t, everywhere as close as the finest series present there asks for."""
    low = np.array([s.low for s in series])
    high = np.array([s.high for s in series])
    per_unit = np.array([1 / s.panel_width for s in series])
    ends = np.unique(np.concatenate([low, high]))
    middle = (ends[1:] + ends[:-1]) / 2
    present = (low[:, None] < middle) & (middle < high[:, None])
    panels = np.append(0.0, np.cumsum((present * per_unit[:, None]).max(axis=0) * np.diff(ends)))
    wanted = np.linspace(0, panels[-1], int(panels[-1]) + 2)
    edges = np.interp(wanted, panels, ends)
    # Where there is no series no panel begins or ends, and one might reach across.
    gaps = ~present.any(axis=0)
    found: Array = np.sqrt(np.concatenate([edges, ends[:-1][gaps], ends[1:][gaps]]))
    return found


@lru_cache(maxsize=8)
def _gauss_panel(nodes: int) -> tuple[Array, Array, Array]:
    """Nodes and weights on [0, 1], and the matrix that integrates from a node to 1."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    to_coefficients = np.linalg.inv(np.polynomial.legendre.legvander(x, nodes - 1))
    integral = np.polynomial.legendre.legint(to_coefficients)
    at_nodes = np.polynomial.legendre.legval(x, integral).T
    to_end = (np.polynomial.legendre.legval(1.0, integral) - at_nodes) / 2
    return (x + 1) / 2, weights / 2, to_end


def _densities(panels: _Panels, radials: list[Radial], series: list[Series]) -> Array:
    """The densities of x and of its cosines with e and h: ``[3, panels, nodes]``."""
    density = np.zeros((3, panels.t.size))
    parts: list[Radial | Series] = [*radials, *series]
    for part in parts:
        part.add_to(density, panels.t.ravel())
    return density.reshape(3, *panels.t.shape)


# ---------------------------------------------------------------------------- integration


def _tails_of_atoms(atoms: Array) -> Tails:
    """Between atoms S, G and H are constant, and a midpoint integrates what is linear in t."""
    x, *rest = atoms[:, np.argsort(atoms[0])]
    ends = np.append(0.0, x)
    per_atom = np.stack([*rest, rest[1] * x, rest[2] * x])
    tails = np.cumsum(per_atom[:, ::-1], axis=1)[:, ::-1]
    return Tails(
        (ends[1:] + ends[:-1]) / 2,
        np.diff(ends),
        np.minimum(tails[0], 1),
        *tails[1:3],
        *(tails[3:, :1] - tails[3:]),
    )


def _integrate(atoms: Array, panels: _Panels, density: Array, power: int) -> Tails:
    """Integrate the densities from the right, add the atoms, refine where S^power asks for it."""
    density = np.concatenate([density, density[1:] * panels.t])  # also of ⟨X, e⟩ and ⟨X, h⟩
    x, *rest = atoms[:, np.argsort(atoms[0])]
    per_atom = np.stack([*rest, rest[1] * x, rest[2] * x])
    nodes = panels.t.shape[1]
    _, weights, to_end = _gauss_panel(nodes)
    per_panel = density * (panels.dt / weights)  # a density in u, for the map of the panel is in dt
    mass = np.einsum("ijk,k->ij", per_panel, weights)
    beyond = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1] - mass
    from_atoms = np.zeros((5, x.size + 1))
    from_atoms[:, :-1] = np.cumsum(per_atom[:, ::-1], axis=1)[:, ::-1]
    beyond += from_atoms[:, np.searchsorted(x, panels.edges[1:])]
    tails = np.einsum("ijk,lk->ijl", per_panel, to_end) + beyond[..., None]
    whole = beyond[:, :1, None] + mass[:, :1, None]
    # 1 but for quadrature, and S^power would multiply what it is short of 1. Atoms to the left of
    # all panels, at norm 0, are part of it and of no tail.
    tails[0] /= whole[0] + per_atom[0, x <= panels.edges[0]].sum()
    tails[3:] = whole[3:] - tails[3:]
    # t, dt/weight and the tails are smooth on a panel: interpolated where it is split.
    values = np.concatenate([[panels.t, panels.dt / weights], tails])
    parts = _splits(mass[0], beyond[0] + mass[0], power)
    found = []
    for count in np.unique(parts):
        matrix, split_weights = _splitting(nodes, int(count))
        split = np.einsum("ijk,kl->ijl", values[:, parts == count], matrix)
        split[1] *= split_weights
        found.append(split.reshape(7, -1))
    flat = np.concatenate(found, axis=1)
    flat = flat[:, np.argsort(flat[0])]
    flat[2] = np.clip(flat[2], 0, 1)
    return Tails(*flat)


def _splits(mass: Array, survival: Array, power: int) -> NDArray[np.int64]:
    """Into how many parts a panel goes, so that S^power falls by no more than e^-3 on each of them.

    Where S^power is below e^-40 at the start of the panel, one part will do.
    """
    fall = np.where(power * (1 - survival) < 40, power * mass / 3, 1)
    parts: NDArray[np.int64] = 2 ** np.ceil(np.log2(np.clip(fall, 1, 1024))).astype(np.int64)
    return parts


@lru_cache(maxsize=64)
def _splitting(nodes: int, parts: int) -> tuple[Array, Array]:
    """The matrix from the nodes of a panel to those of its parts, and the weights of these."""
    u, weights, _ = _gauss_panel(nodes)
    finer = ((np.arange(parts)[:, None] + u) / parts).ravel()
    to_coefficients = np.linalg.inv(np.polynomial.legendre.legvander(2 * u - 1, nodes - 1))
    values = np.polynomial.legendre.legvander(2 * finer - 1, nodes - 1) @ to_coefficients
    return values.T, np.tile(weights, parts) / parts
