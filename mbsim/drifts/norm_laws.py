r"""The law of ‖X‖² for the mean X of a micro-batch, given the number of draggers in it.

Given k draggers,

.. math:: \|X\|^2 = (\mu + s z_1)^2 + s^2 (z_2^2 + \dots + z_n^2) + \delta^2 + \kappa |S_k|^2

with independent parts: μ the component along the gradient without its Gaussian part (one value for
Gaussian noise, a lattice for two-point noise, a gamma variable for exponential noise), s the scale
of the Gaussian part in the n dimensions of the benign frame, δ the draggers' common part along h,
and |S_k|² the squared length of a sum of k uniform directions (:mod:`mbsim.drifts.random_walk`).
So the law given k is of one of three kinds:

* *atoms*, where nothing is continuous but perhaps |S_k|², which is then replaced by a discrete law
  (two-point noise, no noise, or nothing but draggers);
* *radial*, where |S_k|² is an atom and n is small: the density of ‖X‖ is that of a noncentral chi,
  or of one gamma variable, and written down;
* *series*, otherwise: the characteristic function of ‖X‖² is a product of closed forms, and a
  Fourier cosine series turns it into a density (Fang and Oosterlee, 2008).

Source: the theory page, sections 2 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from mbsim.drifts.random_walk import (
    MOST_POINTS,
    Rule,
    SquaredLength,
    gauss_rule,
    powers,
    transforms,
)

__all__ = [
    "LEVELS",
    "Laws",
    "Radial",
    "Ragged",
    "Resolution",
    "Series",
    "atoms_of",
    "binomial",
    "chi_length",
    "gamma_length",
    "gamma_rule",
    "series_of",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Resolution:
    """How finely a law is resolved.

    Attributes:
        points: Gauss points of what is not integrated in closed form; `few`: where more are not
            needed.
        bins: of |S_k|² where nothing smooths it.
        nodes: Gauss points of a panel.
        tolerance: the size below which characteristic functions are cut off.
        terms: the most terms of one cosine series; sharper features are smoothed away.
    """

    points: int
    few: int
    bins: int
    nodes: int
    tolerance: float
    terms: int


LEVELS = (
    Resolution(points=16, few=5, bins=128, nodes=6, tolerance=1e-6, terms=512),
    Resolution(points=MOST_POINTS, few=8, bins=256, nodes=8, tolerance=1e-8, terms=1024),
    Resolution(points=MOST_POINTS, few=12, bins=512, nodes=12, tolerance=1e-11, terms=4096),
)

# Numbers of draggers, and of rare values of two-point noise, less likely than this are left out.
_NEGLIGIBLE = 1e-11
# A density is followed but for a probability of e^-23 = 1e-10 at either end.
_TAIL = 23.0
# Values of a series that are tabulated for each half period of its last term: the cubics between
# them are right to 1e-5 for this term, and to 1e-7 for those a third as fast.
_TABLE = 16
# Bessel functions of arguments up to here are SciPy's (beyond 1e9 they are NaN).
_LARGE = 1e8
# Series that overlap are joined, and long ones taken apart, to have about so many terms.
_JOINT_TERMS = 256


@dataclass(frozen=True, eq=False)
class Ragged:
    """Discrete laws of several sizes side by side: nodes, weights, and where each law begins."""

    nodes: Array
    weights: Array
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, rules: list[Rule]) -> Ragged:
        """The laws with these nodes and weights."""
        sizes = np.array([rule[0].size for rule in rules])
        return cls(
            np.concatenate([rule[0] for rule in rules]),
            np.concatenate([rule[1] for rule in rules]),
            sizes,
            np.cumsum(sizes) - sizes,
        )

    def spread(self, per_law: NDArray[Scalar]) -> NDArray[Scalar]:
        """One value for each law, repeated for its nodes."""
        return np.repeat(per_law, self.sizes)

    def law(self, i: int) -> Rule:
        """One of the laws."""
        part = slice(self.starts[i], self.starts[i] + self.sizes[i])
        return self.nodes[part], self.weights[part]

    def restricted(self, kept: Mask) -> Ragged:
        """Some of the nodes, and the laws that they belong to."""
        sizes = np.add.reduceat(kept.astype(np.int64), self.starts)
        sizes = sizes[sizes > 0]
        return Ragged(self.nodes[kept], self.weights[kept], sizes, np.cumsum(sizes) - sizes)


@dataclass(frozen=True, eq=False)
class Laws:
    """The laws of X given k draggers, for several k, at one gradient norm.

    Attributes:
        k: the numbers of draggers; `probability`: theirs.
        along: μ, as a discrete law for each k.
        variance: s²; `dimensions`: n.
        shared: δ, the component along h.
        own_sq: κ; `walk`: |S_k|²; `walk_dim`: the dimension that it walks in.
    """

    k: NDArray[np.int64]
    probability: Array
    along: Ragged
    variance: Array
    dimensions: int
    shared: Array
    own_sq: float
    walk: tuple[SquaredLength, ...]
    walk_dim: int

    @property
    def discrete_walk(self) -> Mask:
        """For which k the draggers' own part takes a few values only."""
        return (self.k <= 1) | (self.own_sq == 0) | (self.walk_dim == 1)

    def restricted(self, kept: Mask) -> Laws:
        """Some of the nodes of μ, and the k that they belong to."""
        if kept.all():
            return self
        which = np.logical_or.reduceat(kept, self.along.starts)
        return replace(
            self,
            k=self.k[which],
            probability=self.probability[which],
            along=self.along.restricted(kept),
            variance=self.variance[which],
            shared=self.shared[which],
            walk=tuple(self.walk[i] for i in np.flatnonzero(which)),
        )

    def ranges(self) -> tuple[Array, Array]:
        r"""Where ‖X‖² lies, for each μ, but for a probability of e^-23 at either end.

        A noncentral chi-square is sub-gamma (Birgé, 2001), and so is |S_k|²: a uniform direction
        is sub-Gaussian with variance 1/N in every direction, so E exp(θ|S_k|²) is at most that of
        k/N times a chi-square with N degrees of freedom. Variances add; the heavier scale counts.
        """
        spread, mu_sq = self.along.spread, np.square(self.along.nodes)
        k, variance = spread(self.k), spread(self.variance)
        of_walk = self.own_sq * k / max(self.walk_dim, 1) * (k > 1)
        mean = self.dimensions * variance + mu_sq + self.own_sq * k
        of_benign = variance * (self.dimensions * variance + 2 * mu_sq)
        reach = np.sqrt(4 * _TAIL * (of_benign + self.walk_dim * np.square(of_walk)))
        low = np.maximum(mean - reach, np.where(variance == 0, mu_sq, 0))
        high = mean + reach + 2 * _TAIL * np.maximum(variance, of_walk)
        high = np.where(variance == 0, np.minimum(high, mu_sq + self.own_sq * k * k), high)
        shift = spread(np.square(self.shared))
        return low + shift, high + shift

    def bands(self, tolerance: float) -> Array:
        """The frequency, for each μ, beyond which the characteristic function is negligible."""
        spread = self.along.spread
        decay = np.log(np.maximum(self.probability / tolerance, 10.0))
        # Of the noncentral chi-square |φ(ω)| = (1 + v)^(−n/4) exp(−(μ²/2s²) v/(1 + v)), with
        # v = (2s²ω)²; Newton's rule for log|φ| = −decay, concave in v, rises towards the root.
        variance = spread(self.variance)
        safe = np.where(variance > 0, variance, 1.0)
        slope, noncentral = self.dimensions / 4, np.square(self.along.nodes) / (2 * safe)
        v = np.zeros_like(safe)
        for _ in range(8):
            missing = spread(decay) - slope * np.log1p(v) - noncentral * v / (1 + v)
            v += missing / (slope / (1 + v) + noncentral / np.square(1 + v))
        bands = np.where(variance > 0, np.sqrt(v) / (2 * safe), math.inf)
        if self.own_sq > 0:
            of_walk = [law.band(d) for law, d in zip(self.walk, decay, strict=True)]
            bands = np.minimum(bands, spread(np.array(of_walk) / self.own_sq))
        return bands


# ---------------------------------------------------------------------------- discrete laws


@lru_cache(maxsize=4096)
def binomial(count: int, probability: float) -> tuple[NDArray[np.int64], Array]:
    """The values of a binomial variable that are not negligible, and their probabilities."""
    k = np.arange(count + 1)
    log_ways = special.gammaln(count + 1) - special.gammaln(k + 1) - special.gammaln(count - k + 1)
    log_weights = special.xlogy(k, probability) + special.xlog1py(count - k, -probability)
    weights = np.exp(log_ways + log_weights)
    kept = weights > _NEGLIGIBLE
    return k[kept], weights[kept] / weights[kept].sum()


@lru_cache(maxsize=4096)
def gamma_rule(shape: int, points: int) -> Rule:
    """The Gauss rule of a gamma variable of integer shape (Laguerre)."""
    i = np.arange(points, dtype=np.float64)
    return gauss_rule(2 * i + shape, (i * (i + shape - 1))[1:])


def atoms_of(laws: Laws, which: Mask) -> Array:
    """‖X‖, its probability, and that times the cosines with e and with h: ``[4, atoms]``."""
    sizes = np.array([law.rule[0].size for law in laws.walk])
    found = [np.zeros((4, 0))]
    for size in np.unique(sizes[which]):
        some = np.flatnonzero(which & (sizes == size))
        part = laws.restricted(laws.along.spread(np.isin(np.arange(sizes.size), some)))
        spread = part.along.spread
        walk = np.repeat([law.rule[0] for law in part.walk], part.along.sizes, axis=0)
        walk_weights = np.repeat([law.rule[1] for law in part.walk], part.along.sizes, axis=0)
        weights = part.along.weights * spread(part.probability)
        likely = weights > _NEGLIGIBLE
        walk, walk_weights = walk[likely], walk_weights[likely]
        mu, shared = part.along.nodes[likely, None], spread(part.shared)[likely, None]
        x = np.sqrt(np.square(mu) + np.square(shared) + laws.own_sq * walk)
        mass = weights[likely, None] * walk_weights
        inverse = np.divide(mass, x, out=np.zeros_like(x), where=x > 0)
        found.append(np.stack([x, mass, inverse * mu, inverse * shared]).reshape(4, -1))
    return np.concatenate(found, axis=1)


# ---------------------------------------------------------------------------- radial densities


@dataclass(frozen=True, eq=False)
class Length:
    """A length y whose density is written down.

    Attributes:
        edges: ends of panels in y that resolve the density; the first and the last bound it.
        density: y to the density of y, and to that of E[⟨X, e⟩; y].
    """

    edges: Array
    density: Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Radial:
    """‖X‖ = √(shift + y²) for a length y.

    Attributes:
        probability: of this law; `shift`: the square that y² is added to.
        shared: the component along h; `length`: the law of y.
    """

    probability: float
    shift: float
    shared: float
    length: Length

    @property
    def edges(self) -> Array:
        """Ends of panels in t."""
        edges: Array = np.sqrt(self.shift + np.square(self.length.edges))
        return edges

    def add_to(self, density: Array, t: Array) -> None:
        """Add the densities of ‖X‖ and of its cosines with e and h, at ascending t: ``[3, t]``."""
        inside = slice(*np.searchsorted(t, self.edges[[0, -1]]))
        t = t[inside]
        y = np.sqrt(np.maximum(t**2 - self.shift, 0))
        mass, along = self.length.density(y)
        per_y = np.divide(self.probability, y, out=np.zeros_like(y), where=y > 0)
        density[:, inside] += np.stack([mass * t, along, mass * self.shared]) * per_y


def chi_length(along: Rule, variance: float, n: int, ends: tuple[float, float]) -> Length:
    """‖μ e + s z‖ in n dimensions, between two ends: a mixture of noncentral chi variables."""
    (mu, weights), (low, high), s = along, ends, math.sqrt(variance)
    count = min(2 + int((high - low) / (1.5 * s)), 512)

    def density(y: Array) -> tuple[Array, Array]:
        mass, along = np.zeros_like(y), np.zeros_like(y)
        for centre, weight in zip(mu / s, weights, strict=True):
            near = np.abs(y / s - abs(centre)) < 9 + math.sqrt(n)
            scaled = y[near] / s
            # f(y) = y^(n-1) exp(-(y² + μ²)/2) (yμ)^-v I_v(yμ), v = n/2 - 1; E[a; y] has v + 1.
            common = weight / s * scaled ** (n - 1) * np.exp(-np.square(scaled - abs(centre)) / 2)
            argument = scaled * abs(centre)
            mass[near] += common * _bessel_ratio(n / 2 - 1, argument)
            along[near] += common * np.square(scaled) * s * centre * _bessel_ratio(n / 2, argument)
        return mass, along

    return Length(np.linspace(low, high, count), density)


def _bessel_ratio(order: float, x: Array) -> Array:
    """I_v(x) e^-x / x^v, also at 0 and for large x, where SciPy knows no more."""
    at_zero = 1 / (2**order * math.gamma(order + 1))
    safe = np.clip(x, 1e-8, _LARGE)
    ratio: Array = np.where(x > 1e-8, special.ive(order, safe), at_zero)
    # I_v(x) e^-x √x comes to 1/√(2π), but for a share (4v² − 1)/8x.
    ratio = ratio * np.sqrt(safe / np.maximum(x, safe))
    return np.where(x > 1e-8, ratio / np.maximum(x, 1e-8) ** order, ratio)


def gamma_length(mean: float, scale: float, shape: int) -> Length:
    """|a| for a = mean + scale × (a gamma variable of integer shape, centred)."""
    least = mean - shape * scale
    reach = shape + math.sqrt(2 * shape * _TAIL) + _TAIL
    ends = least + scale * np.linspace(0, reach, 4 + int(2 * reach / math.sqrt(shape)))
    if least < 0 < ends[-1]:
        ends = np.append(ends, 0.0)

    def of_a(a: Array) -> Array:
        gamma = (a - least) / scale
        inside = gamma > 0
        safe = np.where(inside, gamma, 1.0)
        log_density = special.xlogy(shape - 1, safe) - safe - special.gammaln(shape)
        found: Array = np.where(inside, np.exp(log_density) / scale, 0.0)
        return found

    def density(y: Array) -> tuple[Array, Array]:
        plus, minus = of_a(y), of_a(-y)
        return plus + minus, y * (plus - minus)

    return Length(np.unique(np.abs(ends)), density)


# ---------------------------------------------------------------------------- cosine series


@dataclass(frozen=True, eq=False)
class Series:
    """Laws of ‖X‖² by one cosine series of their joint density.

    With L = high − low and ω_j = jπ/L the density is Σ' a_j cos(ω_j (z − low)), where
    a_j = (2/L) Re φ(ω_j) exp(−i ω_j low), and the dash halves the first term.

    Attributes:
        laws: the laws; `low`, `high`: the range of ‖X‖²; `terms`: how many terms the series has.
        tolerance: where characteristic functions are cut off.
    """

    laws: Laws
    low: float
    high: float
    terms: int
    tolerance: float

    @property
    def panel_width(self) -> float:
        """Two periods of the highest frequency, in ‖X‖²."""
        return 4 * (self.high - self.low) / self.terms

    def add_to(self, density: Array, t: Array) -> None:
        """Add the densities of ‖X‖ and of its cosines with e and h, at ascending t: ``[3, t]``."""
        width = self.high - self.low
        rows = 3 if self.laws.shared.any() else 2
        size = 2 ** math.ceil(math.log2(_TABLE * self.terms))
        coefficients = np.zeros((rows, size + 1))
        coefficients[:, : self.terms] = self._transforms()[:rows].real / width
        table = fft.dct(coefficients, type=1, axis=-1, overwrite_x=True)
        inside = slice(*np.searchsorted(t, np.sqrt([self.low, self.high])))
        place = np.clip((np.square(t[inside]) - self.low) * (size / width), 0, size)
        values = _interpolated(table, place)
        values[0] *= t[inside]  # from ‖X‖² to ‖X‖, and from components to cosines
        density[:rows, inside] += 2 * values

    def _transforms(self) -> NDArray[np.complex128]:
        """exp(−iω low) E[exp(iω‖X‖²) (1, ⟨X, e⟩, ⟨X, h⟩)] over all k: ``[3, terms]``."""
        laws, along = self.laws, self.laws.along
        step = math.pi / (self.high - self.low)
        weights = along.weights * along.spread(laws.probability)
        mu_sq, shift = np.square(along.nodes), along.spread(np.square(laws.shared)) - self.low
        if not laws.variance.any():
            mass = powers(mu_sq + shift, step, self.terms) * weights
            first = mass * along.nodes
        else:
            # Given μ, with v = 2s²ω: (1 − iv)^(−n/2) exp(iωμ²/(1 − iv)), and for ⟨X, e⟩ that
            # times μ/(1 − iv).
            omega = step * np.arange(self.terms)[:, None]
            v = 2 * omega * along.spread(laws.variance)
            size = 1 / (1 + v * v)
            phase = laws.dimensions / 2 * np.arctan(v) + omega * (mu_sq * size + shift)
            log_size = laws.dimensions / 4 * np.log(size) - omega * v * mu_sq * size
            mass = weights * np.exp(log_size) * _turned(phase)
            first = mass * along.nodes * size * (1 + 1j * v)
        mass = np.add.reduceat(mass, along.starts, axis=1)
        first = np.add.reduceat(first, along.starts, axis=1)
        if laws.own_sq > 0:
            decay = 3 - math.log(self.tolerance)
            walk = transforms(laws.walk, laws.own_sq * step, self.terms, decay)
            mass, first = mass * walk, first * walk
        return np.stack([mass.sum(axis=1), first.sum(axis=1), (mass * laws.shared).sum(axis=1)])


def _turned(phase: Array) -> NDArray[np.complex128]:
    """exp(i phase), cheaper than the complex exponential."""
    turned = np.empty(phase.shape, dtype=np.complex128)
    np.cos(phase, out=turned.real)
    np.sin(phase, out=turned.imag)
    return turned


def _interpolated(table: Array, place: Array) -> Array:
    """Rows of evenly spaced values at places between them, by the cubic through four of them."""
    first = np.clip(place.astype(np.int64) - 1, 0, table.shape[1] - 4)
    p = place - (first + 1)
    return (
        table[:, first] * (p * (p - 1) * (2 - p) / 6)
        + table[:, first + 1] * ((p + 1) * (p - 1) * (p - 2) / 2)
        + table[:, first + 2] * (p * (p + 1) * (2 - p) / 2)
        + table[:, first + 3] * (p * (p + 1) * (p - 1) / 6)
    )


def series_of(laws: Laws, level: Resolution) -> list[Series]:
    """Cosine series for all the laws.

    Neighbours share a series as long as that keeps it short; a k whose own series would be long is
    taken apart, each μ for itself.
    """
    along = laws.along
    (low, high), bands = laws.ranges(), laws.bands(level.tolerance)

    def ends(starts: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        return (
            np.minimum.reduceat(low, starts),
            np.maximum.reduceat(high, starts),
            np.maximum.reduceat(bands, starts),
        )

    least, most, band = ends(along.starts)
    begins = along.spread((most - least) * band / math.pi > _JOINT_TERMS)
    begins[along.starts] = True
    group = _groups(*ends(np.flatnonzero(begins)))[np.cumsum(begins) - 1]
    found = []
    for i in range(group.max() + 1):
        members = group == i
        start, end = float(low[members].min()), float(high[members].max())
        terms = min((end - start) * float(bands[members].max()) / math.pi + 1, level.terms)
        found.append(
            Series(laws.restricted(members), start, end, int(max(terms, 8)), level.tolerance)
        )
    return found


def _groups(low: Array, high: Array, bands: Array) -> NDArray[np.int64]:
    """The number of the series that each part goes to."""
    group = np.zeros(low.size, dtype=np.int64)
    number, ends = -1, (0.0, 0.0, math.inf)
    for i in np.argsort(low):
        both = min(ends[0], low[i]), max(ends[1], high[i]), max(ends[2], bands[i])
        if number < 0 or (both[1] - both[0]) * both[2] / math.pi > _JOINT_TERMS:
            number, both = number + 1, (low[i], high[i], bands[i])
        group[i], ends = number, both
    return group
