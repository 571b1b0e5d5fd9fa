r"""Benign noise, in the frame of the gradient.

A noise law is a component along e = g/‖g‖ and an isotropic Gaussian across it, in the n − 1 other
dimensions of the benign frame. So the mean of ν examples is two numbers: its component along e,
and the standard deviation of each of its coordinates across e (given whatever else is random in
the law). That is the whole contract (:class:`NoiseLaw`), and :func:`mbsim.testing.check_noise`
tells whether a law of your own keeps it. A law that cannot be put like that draws whole vectors
instead (:class:`VectorNoise`) and is served by the reference engine alone.

`sigma` is the paper's σ: E‖ξ‖² = σ² for one example, summed over coordinates. Source: the theory
page, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.random import Generator
from scipy import special

from mbsim._shared.arrays import Array, Integers
from mbsim._shared.meant import answering, no_such_name
from mbsim._shared.values import declared, set_field
from mbsim.compiled.twins import Twin
from mbsim.errors import InvalidArgument, check_number, shown
from mbsim.problems.normals import standard_normals

__all__ = ["Exponential", "Facts", "Gaussian", "NoiseLaw", "StudentT", "TwoPoint", "VectorNoise"]


@runtime_checkable
class NoiseLaw(Protocol):
    """What a noise law must offer to both engines and to the exact drift."""

    @property
    def sigma(self) -> float:
        """σ, the root of E‖ξ‖² of one example, over all benign_dim coordinates."""
        ...

    def mean_of(self, counts: Integers, benign_dim: int, rng: Generator) -> tuple[Array, Array]:
        """The mean noise of `counts` examples, drawn once for every entry of `counts`.

        Args:
            counts: ν ≥ 0, any shape; the mean of no examples is 0.
            benign_dim: n, the dimension of the benign frame (across e there are n − 1).
            rng: the only source of randomness.

        Returns:
            The component along e, and the standard deviation of each coordinate across e; both
            of the shape of `counts`, in the units of the gradient. The numbers drawn from `rng`
            must not depend on anything but the arguments.
        """
        ...


@runtime_checkable
class VectorNoise(Protocol):
    """A noise law that draws whole vectors of the benign frame; for the reference engine alone."""

    @property
    def sigma(self) -> float:
        """σ, the root of E‖ξ‖² of one example, over all benign_dim coordinates."""
        ...

    def vectors(self, shape: tuple[int, ...], benign_dim: int, rng: Generator) -> Array:
        """Noise of `shape` examples, ``[*shape, benign_dim]``; coordinate 0 is the one along e."""
        ...


def _inverse(counts: Integers) -> Array:
    """1/ν, and 0 for ν = 0."""
    return np.minimum(counts, 1) / np.maximum(counts, 1)


def _isotropic(
    sigma: float, counts: Integers, benign_dim: int, rng: Generator
) -> tuple[Array, Array]:
    """The mean of ν isotropic Gaussians whose squared norms have mean σ²."""
    deviation = sigma * np.sqrt(_inverse(counts) / benign_dim)
    return deviation * standard_normals(np.shape(counts), rng), deviation


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a law knows of itself besides what it draws. The defaults say nothing, which is safe.

    A law of your own may have a property ``facts``: bounds whose assumptions it states then apply,
    and with `along` its drift is integrated where it would be sampled. A subclass must say it anew.

    Attributes:
        symmetric_across: noise across e is symmetric given the noise along e.
        unimodal: noise along e is symmetric and unimodal given k and the rest (theory page, 6).
        independent: noise along e is symmetric and independent of the rest given k.
        gaussian: it is isotropic and Gaussian.
        isotropic_share: the share of σ² that is isotropic, None if it is not known: along e there
            is σ_e² = σ² (1 − share + share/n).
        along: what is not isotropic is along e, and this is its law: ν ≥ 1 to the sum of ν such
            parts, each of variance 1, as values and their probabilities if it is discrete, else as
            its quantile function.
        variance: all is isotropic, and Gaussian given a variance of its own for each example: ν ≥ 1
            to the quantile function of the sum of ν such variances, each of mean 1.

    >>> TwoPoint(rare=0.5).facts.along(1)[0]
    array([-1.,  1.])
    """

    symmetric_across: bool = False
    unimodal: bool = False
    independent: bool = False
    gaussian: bool = False
    isotropic_share: float | None = None
    along: Callable[[int], tuple[Array, Array] | Callable[[Array], Array]] | None = None
    variance: Callable[[int], Callable[[Array], Array]] | None = None

    @property
    def integrated(self) -> bool:
        """Whether the law of a micro-batch can be put as weighted points."""
        return self.along is not None or (self.variance is not None and self.isotropic_share == 1)


def facts_of(law: object) -> Facts:
    """What a law's own class says of it.

    >>> facts_of(TwoPoint(rare=0.5)).independent, facts_of(StudentT()).along
    (True, None)
    """
    return declared(law, "facts", Facts())


def why_no_means(noise: object, who: str) -> str | None:
    """Why a noise law does not serve who asks for means along the gradient; None if it does."""
    if isinstance(noise, NoiseLaw):
        return None
    return (
        f"noise={shown(noise)} draws whole vectors (it has no mean_of), and {who} needs the law of "
        "the mean of ν examples along the gradient and across it"
    )


def binomial(count: int, probability: float, k: Integers) -> Array:
    """P(Binomial(`count`, `probability`) = k)."""
    ways = special.gammaln(count + 1) - special.gammaln(k + 1) - special.gammaln(count - k + 1)
    logs = ways + special.xlogy(k, probability) + special.xlog1py(count - k, -probability)
    return np.exp(logs)


def likely_binomial(count: int, probability: float) -> tuple[Integers, Array]:
    """The values of a binomial variable that are not negligible, and their probabilities."""
    # What lies further off than 8 standard deviations and 40 is less likely than 1e-13 (Bernstein).
    mean, reach = count * probability, 40 + 8 * math.sqrt(count * probability * (1 - probability))
    k = np.arange(max(0, int(mean - reach)), min(count, int(mean + reach)) + 1)
    weights = binomial(count, probability, k)
    kept = weights > 1e-11
    return k[kept], weights[kept] / weights[kept].sum()


@answering
@dataclass(frozen=True)
class Gaussian:
    """Isotropic Gaussian noise in the n dimensions of the benign frame: σ/√n in each.

    >>> counts = np.array([1, 4, 0])
    >>> along, across = Gaussian(sigma=3.0).mean_of(counts, 9, np.random.default_rng(0))
    >>> across
    array([1. , 0.5, 0. ])
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        set_field(self, "sigma", check_number("sigma", self.sigma, minimum=0))

    def mean_of(self, counts: Integers, benign_dim: int, rng: Generator) -> tuple[Array, Array]:
        """A Gaussian of variance σ²/(nν) in every coordinate."""
        return _isotropic(self.sigma, counts, benign_dim, rng)

    @property
    def compiled(self) -> Twin:
        """The same law, compiled."""
        from mbsim.compiled import laws

        return laws.gaussian, np.array([self.sigma])

    @property
    def facts(self) -> Facts:
        """Everything that can be said."""
        return Facts(
            symmetric_across=True,
            unimodal=True,
            independent=True,
            gaussian=True,
            isotropic_share=1.0,
            along=lambda count: (np.zeros(1), np.ones(1)),  # noqa: ARG005
        )


def _check_shared(law: TwoPoint | Exponential) -> None:
    set_field(law, "sigma", check_number("sigma", law.sigma, minimum=0))
    share = check_number("isotropic_share", law.isotropic_share, minimum=0, maximum=1)
    set_field(law, "isotropic_share", share)


def _with_isotropic_share(
    law: TwoPoint | Exponential,
    along: Array,
    counts: Integers,
    benign_dim: int,
    rng: Generator,
) -> tuple[Array, Array]:
    """Scale the unit-variance component `along` e, and add the isotropic rest of the variance."""
    isotropic, skewed = _deviations(law)
    along = along * skewed
    if isotropic == 0:
        return along, np.zeros(np.shape(counts))
    rest, across = _isotropic(isotropic, counts, benign_dim, rng)
    return along + rest, across


def _deviations(law: TwoPoint | Exponential) -> tuple[float, float]:
    """The roots of the isotropic and of the skewed share of σ²."""
    share = law.isotropic_share
    return law.sigma * math.sqrt(share), law.sigma * math.sqrt(1 - share)


@answering
@dataclass(frozen=True)
class TwoPoint:
    r"""Skewed noise along the gradient: a few examples pull the right way a lot.

    ξ = σ τ e with τ = +√((1−π)/π) with probability π, else −√(π/(1−π)): mean 0, variance 1. For
    π < ½ most examples pull the wrong way a little, which is what normalisation punishes.

    Args:
        sigma: σ.
        rare: π, strictly between 0 and 1.
        isotropic_share: the share of the variance that is an isotropic Gaussian instead.

    >>> law = TwoPoint(sigma=1.0, rare=0.2)
    >>> along, across = law.mean_of(np.full(5, 1), 8, np.random.default_rng(1))
    >>> np.unique(along).round(12), across.max()
    (array([-0.5,  2. ]), np.float64(0.0))
    """

    sigma: float = 1.0
    _: KW_ONLY
    rare: float = 0.1
    isotropic_share: float = 0.0

    def __post_init__(self) -> None:
        _check_shared(self)
        set_field(self, "rare", check_number("rare", self.rare, above=0, below=1))

    def mean_of(self, counts: Integers, benign_dim: int, rng: Generator) -> tuple[Array, Array]:
        """A binomial count of the rare value, centred and scaled, and the isotropic share."""
        hits = rng.binomial(counts, self.rare)
        spread = math.sqrt(self.rare * (1 - self.rare))
        along = (hits - counts * self.rare) * (_inverse(counts) / spread)
        return _with_isotropic_share(self, along, counts, benign_dim, rng)

    @property
    def compiled(self) -> Twin:
        """The same law, compiled."""
        from mbsim.compiled import laws

        isotropic, skewed = _deviations(self)
        scale = skewed / math.sqrt(self.rare * (1 - self.rare))
        return laws.two_point, np.array([isotropic, scale, self.rare])

    @property
    def facts(self) -> Facts:
        """A lattice along e; symmetric at π = ½ alone."""
        return Facts(
            symmetric_across=True,
            independent=self.rare == 0.5,
            isotropic_share=self.isotropic_share,
            along=self._lattice,
        )

    def _lattice(self, count: int) -> tuple[Array, Array]:
        hits, weights = likely_binomial(count, self.rare)
        spread = math.sqrt(self.rare * (1 - self.rare))
        return np.asarray(hits - count * self.rare, np.float64) / spread, weights


@answering
@dataclass(frozen=True)
class Exponential:
    """Skewed noise along the gradient: σ(E − 1) e with E a standard exponential.

    The skew is that of :class:`TwoPoint` with π < ½: most examples pull the wrong way.

    Args:
        sigma: σ.
        isotropic_share: the share of the variance that is an isotropic Gaussian instead.

    >>> law = Exponential(sigma=2.0)
    >>> law.mean_of(np.full(1000, 1), 8, np.random.default_rng(1))[0].min() > -2
    np.True_
    """

    sigma: float = 1.0
    _: KW_ONLY
    isotropic_share: float = 0.0

    def __post_init__(self) -> None:
        _check_shared(self)

    def mean_of(self, counts: Integers, benign_dim: int, rng: Generator) -> tuple[Array, Array]:
        """A gamma variable of shape ν over ν, centred, and the isotropic share."""
        along = rng.standard_gamma(counts) * _inverse(counts) - (counts > 0)
        return _with_isotropic_share(self, along, counts, benign_dim, rng)

    @property
    def compiled(self) -> Twin:
        """The same law, compiled."""
        from mbsim.compiled import laws

        return laws.exponential, np.array(_deviations(self))

    @property
    def facts(self) -> Facts:
        """A gamma variable along e."""
        return Facts(
            symmetric_across=True,
            isotropic_share=self.isotropic_share,
            along=lambda count: lambda share: special.gammaincinv(count, share) - count,
        )


def _sums_of_inverse_chi_squares(counts: Integers, df: float, rng: Generator) -> Array:
    """Σ 1/χ²(df) over ν draws for every ν of `counts`, in blocks that bound the memory."""
    sums = np.zeros(np.size(counts))
    filled = np.flatnonzero(counts)
    ends = np.cumsum(np.ravel(counts)[filled])
    total = int(ends[-1]) if filled.size else 0
    block = 2**18
    for start in range(0, total, block):
        stop = min(start + block, total)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        starts = np.concatenate([[start], ends[first:last]]) - start
        sums[filled[first : last + 1]] += np.add.reduceat(
            1 / rng.chisquare(df, stop - start), starts
        )
    return sums.reshape(np.shape(counts))


@answering
@dataclass(frozen=True)
class StudentT:
    """Heavy-tailed noise: multivariate Student t, scaled to E‖ξ‖² = σ².

    An isotropic Gaussian whose variance is a random number per example, (df − 2)/χ²(df) times
    σ²/n. The mean of ν is a Gaussian whose variance is the mean of the ν variances over ν.

    Args:
        sigma: σ.
        df: degrees of freedom, above 2 so that the variance exists.

    >>> StudentT(df=2)
    Traceback (most recent call last):
        ...
    mbsim.errors.InvalidArgument: df=2 must be above 2
    """

    sigma: float = 1.0
    _: KW_ONLY
    df: float = 5.0

    def __post_init__(self) -> None:
        set_field(self, "sigma", check_number("sigma", self.sigma, minimum=0))
        set_field(self, "df", check_number("df", self.df, above=2))

    def mean_of(self, counts: Integers, benign_dim: int, rng: Generator) -> tuple[Array, Array]:
        """One variance per example, added up over the examples of each entry."""
        total = _sums_of_inverse_chi_squares(counts, self.df, rng) * (self.df - 2)
        deviation = self.sigma * np.sqrt(total / benign_dim) * _inverse(counts)
        return deviation * standard_normals(np.shape(counts), rng), deviation

    @property
    def compiled(self) -> Twin:
        """The same law, compiled."""
        from mbsim.compiled import laws

        return laws.student_t, np.array([self.sigma, self.df])

    @property
    def facts(self) -> Facts:
        """Symmetric and unimodal; a sum of inverse chi-squares for the variance."""
        from mbsim.problems.mixtures import sum_of_variances

        return Facts(
            symmetric_across=True,
            unimodal=True,
            isotropic_share=1.0,
            variance=lambda count: lambda share: sum_of_variances(self.df, count, share),
        )


def check_noise_argument(noise: Any) -> NoiseLaw | VectorNoise:
    """`noise` itself if it is a noise law of either form with a sound sigma."""
    if isinstance(noise, type) or not isinstance(noise, (NoiseLaw, VectorNoise)):
        raise InvalidArgument(
            f"noise={shown(noise)} must have sigma and mean_of, such as "
            "mbsim.noise.Gaussian(sigma=1.0)"
        )
    check_number("noise.sigma", noise.sigma, minimum=0)
    return noise


def __getattr__(name: str) -> NoReturn:
    raise no_such_name("mbsim.noise", name)
