r"""The law of one micro-batch, by deterministic quadrature: how long it is, and where it points.

Everything about a step of a clipping rule follows from three functions of a threshold t
(:class:`Tails`),

.. math:: S(t) = P(x > t), \quad G(t) = E[\langle X, e\rangle/x;\, x > t], \quad
          H(t) = E[\langle X, h\rangle/x;\, x > t],

with X the mean gradient of one micro-batch, x its norm, e the direction of the gradient and h
that common to the draggers of the step (0 without coherence). Given the number k of draggers

.. math:: x^2 = (\mu + s z_1)^2 + s^2 (z_2^2 + \dots + z_n^2) + \delta^2 + \kappa |S_k|^2

with independent parts: μ the component along e without its Gaussian part (one value for Gaussian
noise, a lattice for two-point noise, a gamma variable for exponential noise), s the scale of the
Gaussian part of the benign frame, δ the draggers' common part, and |S_k|² the squared length of a
sum of k uniform directions (:mod:`mbsim.theory.random_walk`). So each k is of one of three kinds:

* *atoms*, where nothing is continuous: two-point noise and at most one dragger;
* *radial*, where |S_k|² is an atom and n is small: the density of x is that of a noncentral chi
  (or of one gamma variable), written down;
* *series*, otherwise: the characteristic function of x² is a product of closed forms and a Gauss
  rule, and a Fourier cosine series turns it into a density (Fang and Oosterlee, 2008).

Densities are integrated from the right on panels that resolve every one of them. Two resolutions
give two answers, and their difference is the error that is reported. Source: the theory page,
sections 2, 7 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw, TwoPoint
from mbsim.problems.problem import Problem
from mbsim.theory.random_walk import MOST_POINTS, Rule, gauss_rule, squared_length_rules

__all__ = ["LEVELS", "MicroBatchLaw", "Resolution", "Tails", "has_quadrature"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Resolution:
    """How finely a law is resolved.

    Attributes:
        points: Gauss points of what is integrated in closed form elsewhere.
        nodes: Gauss points of a panel.
        tolerance: where characteristic functions are cut off.
        terms: the most terms of one cosine series; sharper features are smoothed away.
    """

    points: int
    nodes: int
    tolerance: float
    terms: int


LEVELS = (
    Resolution(points=16, nodes=6, tolerance=1e-6, terms=192),
    Resolution(points=MOST_POINTS, nodes=8, tolerance=1e-7, terms=384),
    Resolution(points=MOST_POINTS, nodes=12, tolerance=1e-9, terms=4096),
)

# Draggers, and rare values of two-point noise, in numbers less likely than this are left out.
_NEGLIGIBLE = 1e-13
# A series covers its law but for a probability of e^-23 = 1e-10 at either end.
_TAIL = 23.0
# From this dimension on the squared norm is smooth enough for a series of few terms.
_SERIES_DIM = 16
# Series that overlap are joined while the joint one has no more terms than this.
_JOINT_TERMS = 256
# A Gauss rule of |S_k|² knows its characteristic function up to about so many standard
# deviations, and surely up to 1.6 points per unit of half its range.
_RULE_REACH = {16: 4.2, MOST_POINTS: 5.5}
_RULE_PHASE = 1.6


def has_quadrature(noise: object) -> bool:
    """Whether this module knows the noise law: Gaussian, two-point or exponential."""
    if type(noise) is Exponential:
        return noise.isotropic_share == 0
    return type(noise) in (Gaussian, TwoPoint)


@dataclass(frozen=True)
class Tails:
    """S, G and H at the nodes of a quadrature over t, and the law itself.

    Attributes:
        t: nodes; `dt`: their weights.
        survival: S; `along`: G; `shared`: H; all at the nodes.
        density: −dS/dt without atoms; `along_density`: −dG/dt; `shared_density`: −dH/dt.
        atoms: x, probability, and probability times the cosines with e and with h: ``[4, atoms]``.
    """

    t: Array
    dt: Array
    survival: Array
    along: Array
    shared: Array
    density: Array
    along_density: Array
    shared_density: Array
    atoms: Array


@dataclass(frozen=True)
class _Given:
    """What k draggers make of a micro-batch, in units of σ, r and a dragger's length."""

    k: int
    probability: float
    benign: float
    offsets: Array
    offset_weights: Array
    variance: float
    gamma_shape: int  # of exponential noise without an isotropic share; else 0


class MicroBatchLaw:
    """The law of the mean of b examples, for every gradient norm.

    Args:
        problem: its noise must be one that :func:`has_quadrature`.
        micro_batch_size: b.

    >>> import mbsim
    >>> problem = mbsim.Problem(loss=mbsim.losses.Quadratic(np.ones(4)),
    ...     noise=mbsim.noise.TwoPoint(sigma=1.0, rare=0.5), benign_dim=1, start=np.ones(4))
    >>> tails = MicroBatchLaw(problem, 1).tails(0.25, LEVELS[0])    # x = |0.25 ± 1|
    >>> tails.atoms.round(12)
    array([[ 0.75,  1.25],
           [ 0.5 ,  0.5 ],
           [-0.5 ,  0.5 ],
           [ 0.  ,  0.  ]])
    """

    def __init__(self, problem: Problem, micro_batch_size: int) -> None:
        self.problem, self.b = problem, micro_batch_size
        draggers = problem.draggers
        self.dimensions = problem.dragger_dim - (draggers.coherence > 0)
        k, probability = _binomial(micro_batch_size, draggers.probability)
        self._most = int(k[-1])
        self._given = {
            points: [
                self._given_draggers(int(ki), float(pi), points)
                for ki, pi in zip(k, probability, strict=True)
            ]
            for points in {level.points for level in LEVELS}
        }

    def _given_draggers(self, k: int, probability: float, points: int) -> _Given:
        count, noise, b = self.b - k, self.problem.noise, self.b
        offsets, weights, along_share = _along_rule(noise, count, points)
        continuous = type(noise) is Exponential and along_share == 1 and count > 0
        return _Given(
            k=k,
            probability=probability,
            benign=count / b,
            offsets=offsets * (math.sqrt(along_share) / b),
            offset_weights=weights,
            variance=(1 - along_share) * count / (self.problem.benign_dim * b**2),
            gamma_shape=count if continuous else 0,
        )

    def tails(
        self, grad_norm: float, level: Resolution, *, power: int = 0, breaks: tuple[float, ...] = ()
    ) -> Tails:
        """S, G and H at ‖g‖ = `grad_norm` for σ = √(1 − r²) (or σ = 0): the scale is √(r² + σ²) = 1.

        Args:
            grad_norm: r over √(r² + σ²).
            level: how finely.
            power: nodes are close enough for polynomials in S of this degree.
            breaks: values of t that must be ends of panels.
        """
        atoms, radials, series = self._pieces(grad_norm, level)
        groups = _join(series, level)
        panels = _panels(atoms, radials, groups, breaks, level)
        density = np.zeros((3, panels.t.size))
        for piece in (*radials, *groups):
            piece.add_to(density, panels.t.ravel())
        return _integrate(atoms, panels, density.reshape(3, *panels.t.shape), power)

    def _pieces(
        self, grad_norm: float, level: Resolution
    ) -> tuple[Array, list[_Radial], list[_Series]]:
        draggers, n = self.problem.draggers, self.problem.benign_dim
        sigma = math.sqrt(max(0.0, 1 - grad_norm**2)) if self.problem.noise.sigma > 0 else 0.0
        length = draggers.norm_ratio * math.hypot(grad_norm, sigma)
        own_sq = length**2 * (1 - draggers.coherence) / self.b**2
        walks: list[Rule] = (
            squared_length_rules(self.dimensions, self._most, level.points)
            if own_sq > 0 and self._most > 0
            else [(np.zeros(1), np.ones(1))] * (self._most + 1)
        )
        atoms: list[Array] = [np.zeros((4, 0))]
        radials: list[_Radial] = []
        series: list[_Series] = []
        for given in self._given[level.points]:
            mu = given.benign * grad_norm + sigma * given.offsets
            mu = mu + (1 - given.benign) * draggers.along * length
            shared = given.k * math.sqrt(draggers.coherence) * length / self.b
            walk, variance = walks[given.k], given.variance * sigma**2
            discrete_walk = walk[0].size == 1 or self.dimensions == 1
            gamma_shape = given.gamma_shape if sigma > 0 else 0
            cheap = given.k <= 1 or mu.size == 1
            if discrete_walk and (gamma_shape or (0 < variance and n < _SERIES_DIM and cheap)):
                for squared, weight in zip(*walk, strict=True):
                    shift = shared**2 + own_sq * squared
                    probability = given.probability * weight
                    if gamma_shape:
                        least = given.benign * (grad_norm - sigma)
                        least += (1 - given.benign) * draggers.along * length
                        radials.append(
                            _gamma_radial(
                                probability, shift, shared, least, sigma / self.b, gamma_shape
                            )
                        )
                    else:
                        radials.append(
                            _chi_radial(
                                probability, shift, shared, mu, given.offset_weights, variance, n
                            )
                        )
            elif discrete_walk and variance == 0:
                atoms.append(
                    _atoms(given.probability, mu, given.offset_weights, shared, own_sq, walk)
                )
            else:
                series.append(
                    _Series.of(given, mu, variance, n, shared, own_sq, walk, self.dimensions, level)
                )
        return np.concatenate(atoms, axis=1), radials, series


# ---------------------------------------------------------------------------- discrete parts


def _binomial(count: int, probability: float) -> tuple[NDArray[np.int64], Array]:
    """The values of a binomial variable that are not negligible, and their probabilities."""
    k = np.arange(count + 1)
    log_ways = special.gammaln(count + 1) - special.gammaln(k + 1) - special.gammaln(count - k + 1)
    weights = np.exp(
        log_ways + special.xlogy(k, probability) + special.xlog1py(count - k, -probability)
    )
    kept = weights > _NEGLIGIBLE
    return k[kept], weights[kept] / weights[kept].sum()


def _along_rule(noise: NoiseLaw, count: int, points: int) -> tuple[Array, Array, float]:
    """Σ of `count` unit-variance noises along e, as nodes and weights; and the share they hold.

    The rest of the variance is isotropic.
    """
    none = np.zeros(1), np.ones(1)
    if count == 0 or isinstance(noise, Gaussian):
        return *none, 0.0
    if isinstance(noise, TwoPoint):
        hits, weights = _binomial(count, noise.rare)
        spread = math.sqrt(noise.rare * (1 - noise.rare))
        nodes = (hits - count * noise.rare) / spread
    elif isinstance(noise, Exponential):
        nodes, weights = _laguerre_rule(count, points)
        nodes = nodes - count
    share = 1 - noise.isotropic_share
    return (nodes, weights, share) if share > 0 else (*none, 0.0)


@lru_cache(maxsize=4096)
def _laguerre_rule(shape: int, points: int) -> Rule:
    """The Gauss rule of a gamma variable of integer shape."""
    i = np.arange(points)
    return gauss_rule(2.0 * i + shape, (i * (i + shape - 1.0))[1:])


def _atoms(
    probability: float, mu: Array, weights: Array, shared: float, own_sq: float, walk: Rule
) -> Array:
    squared = np.add.outer(np.square(mu), shared**2 + own_sq * walk[0])
    mass = probability * np.outer(weights, walk[1])
    x = np.sqrt(squared)
    inverse = np.divide(mass, x, out=np.zeros_like(x), where=x > 0)
    return np.stack([x, mass, inverse * mu[:, None], inverse * shared]).reshape(4, -1)


# ---------------------------------------------------------------------------- radial densities


@dataclass(frozen=True)
class _Radial:
    """x = √(δ² + y²), where y has a density that is written down.

    Attributes:
        edges: ends of panels in y, fine enough to resolve it; the first and the last bound it.
        density: y to its density, and to the density of E[⟨X, e⟩; y].
    """

    probability: float
    shift: float
    shared: float
    edges: Array
    density: Callable[[Array], tuple[Array, Array]]

    @property
    def panel_edges(self) -> Array:
        return np.sqrt(self.shift + np.square(self.edges))

    def add_to(self, density: Array, t: Array) -> None:
        ends = self.panel_edges
        first, last = np.searchsorted(t, [ends[0], ends[-1]])
        inside = t[first:last]
        y = np.sqrt(np.maximum(inside**2 - self.shift, 0))
        mass, along = self.density(y)
        per_t = np.divide(inside, y, out=np.zeros_like(y), where=y > 0) * self.probability
        density[0, first:last] += mass * per_t
        density[1, first:last] += along * per_t / inside
        density[2, first:last] += mass * per_t * (self.shared / inside)


def _chi_radial(
    probability: float,
    shift: float,
    shared: float,
    mu: Array,
    weights: Array,
    variance: float,
    n: int,
) -> _Radial:
    """y = ‖μ e + s z‖ in n dimensions: a mixture of noncentral chi variables."""
    s = math.sqrt(variance)
    low, high = _bounds(np.square(mu), variance, n, 0.0, 0.0, 0.0)
    low, high = math.sqrt(low), math.sqrt(high)
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
            along[near] += (
                common * np.square(scaled) * (s * centre) * _bessel_ratio(n / 2, argument)
            )
        return mass, along

    return _Radial(probability, shift, shared, np.linspace(low, high, count), density)


def _bessel_ratio(order: float, x: Array) -> Array:
    """I_v(x) e^-x / x^v, also at 0."""
    at_zero = 1 / (2**order * math.gamma(order + 1))
    safe = np.maximum(x, 1e-8)
    return np.where(x > 1e-8, special.ive(order, safe) / safe**order, at_zero)


def _gamma_radial(
    probability: float, shift: float, shared: float, least: float, scale: float, shape: int
) -> _Radial:
    """y = |a|, a = least + scale × a gamma variable of integer shape."""
    reach = shape + math.sqrt(2 * shape * _TAIL) + _TAIL
    count = 4 + int(2 * reach / math.sqrt(shape))
    ends = least + scale * np.linspace(0, reach, count)
    if least < 0 < ends[-1]:
        ends = np.append(ends, 0.0)

    def of_a(a: Array) -> Array:
        gamma = (a - least) / scale
        inside = gamma > 0
        safe = np.where(inside, gamma, 1.0)
        log_density = special.xlogy(shape - 1, safe) - safe - special.gammaln(shape)
        return np.where(inside, np.exp(log_density) / scale, 0.0)

    def density(y: Array) -> tuple[Array, Array]:
        plus, minus = of_a(y), of_a(-y)
        return plus + minus, y * (plus - minus)

    return _Radial(probability, shift, shared, np.unique(np.abs(ends)), density)


# ---------------------------------------------------------------------------- cosine series


def _bounds(
    mu_sq: Array, variance: float, n: int, own_sq: float, k: float, dimensions: float
) -> tuple[float, float]:
    r"""Where x² − δ² lies but for a probability of e^-23 at either end, whatever μ² it has.

    A noncentral chi-square is sub-gamma (Birgé, 2001), and so is |S_k|²: a uniform direction
    is sub-Gaussian with variance 1/N in every direction, so E exp(θ|S_k|²) is at most that of
    k/N times a chi-square with N degrees of freedom. Variances add; the heavier scale counts.
    """
    spread = 2 * n * variance**2 + 4 * mu_sq * variance
    scale, mean = 2 * variance, n * variance + mu_sq
    if own_sq > 0 and k > 1:
        spread = spread + 2 * (own_sq * k) ** 2 / dimensions
        scale = max(scale, 2 * own_sq * k / dimensions)
    mean = mean + own_sq * k
    reach = np.sqrt(2 * spread * _TAIL)
    low, high = (mean - reach).min(), (mean + reach + scale * _TAIL).max()
    least, most = 0.0, math.inf
    if variance == 0:
        least, most = float(mu_sq.min()), float(mu_sq.max()) + own_sq * k**2
    return max(float(low), least), min(float(high), most)


@dataclass(frozen=True)
class _Series:
    """A law of x² by the cosine series of its density.

    With L = high − low and ω_j = jπ/L the density is Σ' a_j cos(ω_j (z − low)), where
    a_j = (2/L) Re φ(ω_j) exp(−i ω_j low), and the dash halves the first term.

    Attributes:
        low, high: the range of x².
        band: the frequency beyond which φ is negligible or not known.
        members: (φ-maker, probability, shared part) of the laws that share this series.
        coefficients: ``[3, terms]``: of the density, and of those of ⟨X, e⟩ and ⟨X, h⟩.
    """

    low: float
    high: float
    band: float
    members: tuple[Callable[[Array, float], tuple[NDArray[np.complex128], ...]], ...]
    terms: int = 0

    @classmethod
    def of(
        cls,
        given: _Given,
        mu: Array,
        variance: float,
        n: int,
        shared: float,
        own_sq: float,
        walk: Rule,
        dimensions: int,
        level: Resolution,
    ) -> _Series:
        """The law given k draggers."""
        mu_sq, shift = np.square(mu), shared**2
        smooth_walk = walk[0].size > 1
        k = float(given.k) if smooth_walk else float(walk[0][0])
        low, high = _bounds(mu_sq, variance, n, own_sq, k, dimensions)
        decay = math.log(max(given.probability / level.tolerance, 10.0))
        band = _gaussian_band(decay, variance, n, float(mu_sq.min()))
        if smooth_walk:
            deviation = math.sqrt(2 * k * (k - 1) / dimensions)
            reach = min(math.sqrt(2 * decay), _RULE_REACH[level.points]) / deviation
            band = min(band, max(reach, _RULE_PHASE * level.points / (k * k / 2)) / own_sq)
        weights = given.offset_weights * given.probability

        def transform(omega: Array, origin: float) -> tuple[NDArray[np.complex128], ...]:
            step = omega[1] if omega.size > 1 else 0.0
            walk_part = _powers(walk[0], step * own_sq, omega.size) @ walk[1]
            if variance == 0:
                turns = _powers(mu_sq + (shift - origin), step, omega.size)
                mass, along = turns @ weights, turns @ (weights * mu)
            else:
                u = 1 - 2j * variance * omega
                turns = np.exp(np.multiply.outer(1j * omega / u, mu_sq))
                front = np.exp(-n / 2 * np.log(u) + 1j * omega * (shift - origin))
                mass, along = front * (turns @ weights), front / u * (turns @ (weights * mu))
            mass = mass * walk_part
            return mass, along * walk_part, mass * shared

        return cls(low + shift, high + shift, band, (transform,))

    @property
    def wanted(self) -> float:
        """How many terms the range and the band ask for."""
        return (self.high - self.low) * self.band / math.pi

    def joined(self, other: _Series) -> _Series:
        """One series for both laws."""
        return _Series(
            min(self.low, other.low),
            max(self.high, other.high),
            max(self.band, other.band),
            self.members + other.members,
        )

    def limited(self, terms: int) -> _Series:
        """The same with its number of terms settled."""
        count = int(min(max(self.wanted + 1, 8), terms))
        return _Series(self.low, self.high, self.band, self.members, count)

    @property
    def panel_width(self) -> float:
        """Two periods of the highest frequency, in x²."""
        return 4 * (self.high - self.low) / self.terms

    def add_to(self, density: Array, t: Array) -> None:
        width = self.high - self.low
        omega = np.arange(self.terms) * (math.pi / width)
        total = np.zeros((3, self.terms), dtype=np.complex128)
        for member in self.members:
            total += member(omega, self.low)
        # A table by the fast cosine transform, 32 values for each half period of the last term.
        size = 2 ** math.ceil(math.log2(32 * self.terms))
        coefficients = np.zeros((3, size + 1))
        coefficients[:, : self.terms] = total.real / width
        table = fft.dct(coefficients, type=1, axis=-1, overwrite_x=True)
        z = np.square(t)
        first, last = np.searchsorted(z, [self.low, self.high])
        place = (z[first:last] - self.low) * (size / width)
        whole = np.minimum(place.astype(np.int64), size - 1)
        place -= whole
        inside = t[first:last]
        for row, values, factor in zip(density, table, (2 * inside, 2.0, 2.0), strict=True):
            between = values[whole] + place * (values[whole + 1] - values[whole])
            row[first:last] += between * factor


def _powers(phases: Array, step: float, count: int) -> NDArray[np.complex128]:
    """exp(i j step phases) for j = 0, …, count − 1: ``[count, phases]``."""
    block = 16
    small = np.exp(1j * step * np.multiply.outer(np.arange(block), phases))
    large = np.exp(1j * step * block * np.multiply.outer(np.arange(-(-count // block)), phases))
    return (large[:, None] * small).reshape(-1, phases.size)[:count]


def _gaussian_band(decay: float, variance: float, n: int, mu_sq: float) -> float:
    """Where |φ| of a noncentral chi-square has fallen by e^-decay: a lower bound, by Newton's rule.

    |φ(ω)| = (1 + v)^(−n/4) exp(−(μ²/2s²) v/(1 + v)) with v = (2 s² ω)².
    """
    if variance == 0:
        return math.inf
    slope, noncentral, v = n / 4, mu_sq / (2 * variance), 0.0
    for _ in range(8):  # concave and increasing in v: the iterates rise towards the root
        missing = decay - slope * math.log1p(v) - noncentral * v / (1 + v)
        v += missing / (slope / (1 + v) + noncentral / (1 + v) ** 2)
    return math.sqrt(v) / (2 * variance)


def _join(series: list[_Series], level: Resolution) -> list[_Series]:
    """Neighbouring laws share a series as long as that keeps it short."""
    joined: list[_Series] = []
    for one in sorted(series, key=lambda s: s.low):
        both = joined[-1].joined(one) if joined else None
        if both and both.wanted <= min(_JOINT_TERMS, level.terms):
            joined[-1] = both
        else:
            joined.append(one)
    return [one.limited(level.terms) for one in joined]


# ---------------------------------------------------------------------------- panels


@dataclass(frozen=True)
class _Panels:
    """Gauss panels in t: ``[panels, nodes]``."""

    edges: Array
    t: Array
    dt: Array
    level: Resolution


def _panels(
    atoms: Array,
    radials: list[_Radial],
    series: list[_Series],
    breaks: tuple[float, ...],
    level: Resolution,
) -> _Panels:
    """Panels from 0 on that end at every atom and break and resolve every density."""
    ends = [np.zeros(1), atoms[0], np.asarray(breaks, dtype=np.float64)]
    ends += [radial.panel_edges for radial in radials]
    if series:
        ends.append(_series_edges(series))
    edges = np.unique(np.concatenate(ends))
    u, weights, _ = _gauss_panel(level.nodes)
    width = np.diff(edges)[:, None]
    # At the onset of a radial density below a shift, x = √(δ² + y²) has a root: there t = δ + w u².
    onsets = [math.sqrt(radial.shift) for radial in radials if radial.shift > 0]
    at_onset = np.isin(edges[:-1], onsets)[:, None]
    t = edges[:-1, None] + width * np.where(at_onset, u * u, u)
    dt = width * weights * np.where(at_onset, 2 * u, 1.0)
    return _Panels(edges=edges, t=t, dt=dt, level=level)


def _series_edges(series: list[_Series]) -> Array:
    """Ends of panels in t, everywhere as close as the finest series present there asks for."""
    low = np.array([s.low for s in series])
    high = np.array([s.high for s in series])
    per_unit = np.array([1 / s.panel_width for s in series])
    ends = np.unique(np.concatenate([low, high]))
    middle = (ends[1:] + ends[:-1]) / 2
    present = (low[:, None] < middle) & (middle < high[:, None])
    panels = np.append(0.0, np.cumsum((present * per_unit[:, None]).max(axis=0) * np.diff(ends)))
    wanted = np.linspace(0, panels[-1], int(panels[-1]) + 2)
    return np.sqrt(np.interp(wanted, panels, ends))


@lru_cache(maxsize=8)
def _gauss_panel(nodes: int) -> tuple[Array, Array, Array]:
    """Nodes and weights on [0, 1], and the matrix that integrates from a node to 1."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    to_coefficients = np.linalg.inv(np.polynomial.legendre.legvander(x, nodes - 1))
    integral = np.polynomial.legendre.legint(to_coefficients)
    at_nodes = np.polynomial.legendre.legval(x, integral).T
    to_end = (np.polynomial.legendre.legval(1.0, integral) - at_nodes) / 2
    return (x + 1) / 2, weights / 2, to_end


def _integrate(atoms: Array, panels: _Panels, density: Array, power: int) -> Tails:
    """Integrate the densities from the right, add the atoms, and refine where S^power asks for it."""
    atoms = atoms[:, np.argsort(atoms[0])]
    _, weights, to_end = _gauss_panel(panels.level.nodes)
    per_panel = density * (panels.dt / weights)  # a density in u, for the map of the panel is in dt
    mass = per_panel @ weights
    beyond = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1] - mass
    from_atoms = np.zeros((3, atoms.shape[1] + 1))
    from_atoms[:, :-1] = np.cumsum(atoms[1:, ::-1], axis=1)[:, ::-1]
    beyond += from_atoms[:, np.searchsorted(atoms[0], panels.edges[1:])]
    tails = per_panel @ to_end.T + beyond[..., None]
    # t, dt, S, G, H and their densities, all smooth on a panel: interpolated where it is split.
    values = np.concatenate([[panels.t, panels.dt / weights], tails, density])
    parts = _splits(mass[0], power)
    pieces = [values[:, parts == 1] * _dt_only(weights)]
    for count in np.unique(parts[parts > 1]):
        matrix, split_weights = _splitting(panels.level.nodes, int(count))
        pieces.append((values[:, parts == count] @ matrix) * _dt_only(split_weights))
    flat = np.concatenate([piece.reshape(8, -1) for piece in pieces], axis=1)
    t, dt, survival, along, shared, *densities = flat
    return Tails(
        t=t,
        dt=dt,
        survival=np.clip(survival, 0, 1),
        along=along,
        shared=shared,
        density=densities[0],
        along_density=densities[1],
        shared_density=densities[2],
        atoms=atoms,
    )


def _splits(mass: Array, power: int) -> NDArray[np.int64]:
    """Into how many parts a panel goes so that S^power falls by no more than e^-3 on each of them."""
    fall = np.clip(power * mass / 3, 1, 1024)
    return 2 ** np.ceil(np.log2(fall)).astype(np.int64)


def _dt_only(weights: Array) -> Array:
    """Factors that turn the row of dt/weight into dt and leave the others: ``[8, 1, nodes]``."""
    factors = np.ones((8, 1, weights.size))
    factors[1] = weights
    return factors


@lru_cache(maxsize=64)
def _splitting(nodes: int, parts: int) -> tuple[Array, Array]:
    """The matrix from the nodes of a panel to those of its parts, and the weights of these."""
    u, weights, _ = _gauss_panel(nodes)
    finer = ((np.arange(parts)[:, None] + u) / parts).ravel()
    to_coefficients = np.linalg.inv(np.polynomial.legendre.legvander(2 * u - 1, nodes - 1))
    values = np.polynomial.legendre.legvander(2 * finer - 1, nodes - 1) @ to_coefficients
    return values.T, np.tile(weights, parts) / parts
