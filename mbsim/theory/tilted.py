r"""Tilted draggers: Theorems 1 and 2 for draggers that point against the gradient.

A dragger has a component −t D along e, with 0 ≤ t < 1 and D = c̄ √(r² + σ²) its whole length; c̄ =
c/√(1 − t²), as c is that of the part across e (``mbsim.Draggers`` with ``tilt = -t``). Their *pull*
is ζ√(r² + σ²) with ζ = p t c̄. All of it is proved on the theory page, section 12.
"""

from __future__ import annotations

from functools import cache

import sympy

from mbsim.theory.bound import Bound, Condition, Subject, check_choice
from mbsim.theory.formula import Formula
from mbsim.theory.quantities import symbols
from mbsim.theory.theorems import (
    _A1,
    _A2,
    _A3,
    _CAP,
    _LOST,
    ALGORITHM_1,
    GAUSSIAN,
    UNCLIPPED,
    L,
    _descended,
    _source,
    b,
    c,
    m,
    n,
    p,
    q,
    r,
    s,
    v,
    γ,
    λ0,
    σ,
    ω,
)

__all__ = [
    "best_tilted_size",
    "stalled_share",
    "stalling_fitted_share",
    "tilted_clipping_bound",
    "tilted_clipping_drift_bound",
    "tilted_level",
    "tilted_level_estimate",
    "tilted_sgd_bound",
    "tilted_sgd_lower_bound",
    "tilted_threshold_drift_bound",
]

TILTED = (
    "A4 but for a tilt: draggers have a part −tD along the gradient, D = c̄√(r² + σ²) their length"
)
HALF_SQUARE = "the loss is ½L‖w‖²"
INDEPENDENT_THRESHOLD = "each micro-batch is clipped at a threshold τ that is independent of it"

t, ν, C, κ3, φ = symbols(
    "tilt_against", "relative_threshold", "clip_threshold", "noise_skew", "fitted_share"
)
c_bar, ζ, q_t, J_g, J_σ = symbols("cbar", "zeta", "q_t", "J_g", "J_sigma")
Θ, α_n, β_n, ϱ, ϑ = symbols("Theta", "alpha_n", "beta_n", "rho_m", "theta_b")
a_b, d_b = symbols("a_b", "d_b")
Q_1, Q_0, ψ_t = symbols("Q_1", "Q_0", "psi_t")


def _descends(
    limit: sympy.Expr,
    why: str = "longer draggers could outweigh the benign examples at every gradient norm",
) -> Condition:
    """The draggers' length, beyond which the theorem cannot show that anything descends."""
    return Condition(name="norm_ratio", comparison="<", limit=limit, sentence=why)


_SGD_DESCENDS = _descends(
    q * sympy.sqrt(1 - t**2) / (p * t),
    "p t c/√(1 − t²) must be below 1 − p; else draggers pull harder than the benign examples at "
    "every gradient norm, and SGD never descends",
)


def tilted_sgd_lower_bound() -> Bound:
    r"""Theorem 7, below: SGD stays above a level that no step size and no horizon removes.

    On ½L‖w‖², started at ‖g‖ ≥ r_SGD, for η ≤ 1/(L q_t), q_t = (q² − ζ²)/q, and for every T,

    .. math:: \frac1T \sum_{t<T} \mathbb E r_t^2 \ge r_{SGD}^2 = \frac{ζ^2 σ^2}{q^2 - ζ^2} .

    Where ζ ≥ q there is no such level: E r_t grows for ever.

    Source: theory page, section 12.1.

    >>> setting = dict(initial_gap=1, smoothness=1, step_size=0.1, sigma=1, probability=0.1,
    ...                norm_ratio=3, tilt_against=0.3)
    >>> round(tilted_sgd_lower_bound().evaluate(**setting), 5)
    0.01111
    """
    level = ζ**2 * σ**2 / (q**2 - ζ**2)
    why = "a longer step could jump over the level"
    return Bound(
        name="SGD, tilted draggers, from below",
        kind="lower bound",
        assumptions=(HALF_SQUARE, _A3, TILTED, UNCLIPPED),
        source=_source("12.1 (Theorem 7)"),
        expression=level,
        conditions=(
            _SGD_DESCENDS,
            Condition(
                name="initial_gap",
                comparison=">=",
                limit=level / (2 * L),
                sentence="a run that starts below the level has to climb to it first",
            ),
            Condition(name="step_size", comparison="<=", limit=1 / (L * q_t), sentence=why),
        ),
    )


def tilted_sgd_bound(form: str = "plain") -> Bound:
    r"""Theorem 7, above: what SGD reaches; its bias is the level of the lower bound.

    rA ≥ (q_t/2)(r² − r_SGD²), and M ≤ J_g r² + J_σ σ²; then the descent argument.

    Args:
        form: "plain" or "sharper", as for :func:`~mbsim.theory.theorems.sgd_bound`.

    Source: theory page, section 12.1.

    >>> str(tilted_sgd_bound("sharper").bias)
    'σ**2*ζ**2/(q*qₜ)'
    """
    descended = _descended(
        form,
        rate=q_t / 2,
        second_moment=(J_g, J_σ * σ**2),
        loss=ζ**2 * σ**2 / (2 * q),
    )
    descended["conditions"] += (_SGD_DESCENDS,)
    return Bound(
        name="SGD, tilted draggers",
        kind="upper bound",
        assumptions=(_A1, _A2, _A3, TILTED, UNCLIPPED),
        source=_source("12.1 (Theorem 7)"),
        **descended,
    )


_GAUSSIAN_DESCENDS = _descends(
    (λ0 * α_n - (1 + 1 / (2 * sympy.sqrt(n) * β_n)) * Θ)
    * sympy.sqrt(1 - t**2)
    / (ϱ * sympy.sqrt(b) * p * t)
)
_PLANE = Condition(
    name="benign_dim",
    comparison=">=",
    limit=sympy.Integer(2),
    sentence="in one dimension norms vary too much for the proof",
)
_ANY_DESCENDS = _descends(_CAP * (2 * λ0 - 1) * sympy.sqrt(1 - t**2) / (p * t))


def tilted_clipping_drift_bound(noise: str = "Gaussian") -> Bound:
    r"""The progress of Algorithm 1 with tilted draggers, for every b.

    For Gaussian noise and m ≥ 2, with R = √(r² + σ²/b) and ν = E min(τ, R)/R,

    .. math:: A(r) \ge ν λ_0 α_n (r - ϑ R).

    For any noise, with v = E min(τ, 3r/4), the drift bound of section 5.1 less what tilt can cost.

    Args:
        noise: "Gaussian" or "any".

    Source: theory page, sections 12.2 and 12.3.
    """
    check_choice("noise", noise, ("Gaussian", "any"))
    if noise == "any":
        pull = ζ * sympy.sqrt(r**2 + σ**2) / (_CAP * r)
        expression = v * (2 * λ0 - 1 - _LOST / r**2 - pull)
    else:
        expression = ν * λ0 * α_n * (r - ϑ * sympy.sqrt(r**2 + s**2))
    return Bound(
        name=f"progress of clipping, tilted draggers, {noise} noise",
        kind="lower bound",
        subject=Subject.PROGRESS,
        assumptions=(_A3, TILTED, ALGORITHM_1, *((GAUSSIAN,) if noise == "Gaussian" else ())),
        source=_source("12.3" if noise == "any" else "12.2"),
        expression=expression,
        conditions=(_PLANE,) if noise == "Gaussian" else (),
    )


def tilted_clipping_bound(form: str = "plain", *, noise: str = "Gaussian") -> Bound:
    r"""Theorem 8 (Gaussian noise) and 9 (any noise): what clipping reaches with tilted draggers.

    The weights are ω_t = E[min(τ, R_t)|w_t]/R_t for Gaussian noise, and those of Theorem 2 for any.
    The bias of the sharper form is the square of :func:`tilted_level`.

    Args:
        form: "plain" or "sharper".
        noise: "Gaussian" or "any".

    Source: theory page, sections 12.2 and 12.3.
    """
    check_choice("noise", noise, ("Gaussian", "any"))
    if noise == "Gaussian":
        others: tuple[Condition, ...] = (_GAUSSIAN_DESCENDS, _PLANE)
        rate, loss = a_b, λ0 * α_n * ϑ**2 * s**2 / 2
        weight, second_moment = ν, (2 * Q_1, 2 * Q_0)
    else:
        rate, loss = d_b, _LOST + (ζ / _CAP * σ) ** 2 / (2 * (2 * λ0 - 1))
        weight, second_moment, others = ω, (Q_1 / _CAP, Q_0 / _CAP), (_ANY_DESCENDS,)
    descended = _descended(form, rate=rate, second_moment=second_moment, loss=loss, weight=weight)
    descended["conditions"] += others
    return Bound(
        name=f"clipping, tilted draggers, {noise} noise",
        kind="upper bound",
        subject=Subject.WEIGHTED_GRADIENT,
        assumptions=(
            *(_A1, _A2, _A3, TILTED, ALGORITHM_1),
            *((GAUSSIAN,) if noise == "Gaussian" else ()),
        ),
        source=_source("12.3 (Theorem 9)" if noise == "any" else "12.2 (Theorem 8)"),
        **descended,
    )


def tilted_threshold_drift_bound() -> Bound:
    r"""Rules that do not stall: thresholds that are independent of the micro-batch they clip.

    With s_n² = (σ²/b)(1 + 2/n), A ≥ Eτ (λ₀r/√(C² + r² + s_n²) − Θ): C = 0 (and Eτ = 1) for unit
    norm, the threshold itself for a fixed one, and √(Eτ³/Eτ) for quantiles and Algorithm 1.

    Source: theory page, section 12.4.
    """
    return Bound(
        name="progress at a threshold, tilted draggers",
        kind="lower bound",
        subject=Subject.OVER_THRESHOLD,
        assumptions=(_A3, TILTED, INDEPENDENT_THRESHOLD, GAUSSIAN),
        source=_source("12.4"),
        expression=λ0 * r / sympy.sqrt(C**2 + r**2 + s**2 * (1 + 2 / n)) - Θ,
    )


def tilted_level(method: str = "clipping") -> Bound:
    r"""Where a method stops with tilted draggers, for ever shorter steps: exactly, or at most.

    Args:
        method: "SGD" (exact: it stops there), "clipping" (Algorithm 1, Gaussian noise, m ≥ 2),
            "threshold" (unit norm with C = 0, a fixed threshold C, quantiles; Gaussian noise), or
            "clipping, any noise".

    Source: theory page, sections 12.1 to 12.4.

    >>> setting = dict(sigma=1, probability=0.1, norm_ratio=3, tilt_against=0.3)
    >>> round(tilted_level("SGD").evaluate(**setting), 4)
    0.1054
    >>> more = dict(batch_size=64, micro_batch_size=1, benign_dim=32)
    >>> round(tilted_level("clipping").evaluate(**setting, **more), 4)
    0.0419
    """
    share, pull = 2 * λ0 - 1, ζ / _CAP
    lean = Θ / λ0
    root, sections = sympy.sqrt, {"SGD": "12.1", "clipping": "12.2", "threshold": "12.4"}
    levels = {
        "SGD": (ζ * σ / root(q**2 - ζ**2), (_SGD_DESCENDS,)),
        "clipping": (ϑ * s / root(1 - ϑ**2), (_GAUSSIAN_DESCENDS, _PLANE)),
        "threshold": (lean * root((C**2 + s**2 * (1 + 2 / n)) / (1 - lean**2)), ()),
        "clipping, any noise": (
            root((pull**2 * σ**2 + 2 * share * _LOST) / (share**2 - pull**2)),
            (_ANY_DESCENDS,),
        ),
    }
    check_choice("method", method, tuple(levels))
    expression, conditions = levels[method]
    gaussian = (GAUSSIAN,) if method in ("clipping", "threshold") else ()
    return Bound(
        name=f"level of {method}, tilted draggers",
        kind="limit" if method == "SGD" else "upper bound",
        subject=Subject.LEVEL,
        assumptions=(_A3, TILTED, *gaussian),
        source=_source(sections.get(method, "12.3")),
        expression=expression,
        conditions=conditions,
    )


@cache
def tilted_level_estimate() -> Bound:
    r"""An *estimate* of the level: a tilt term that rises with b and a skew term that falls.

    Micro-batch norms are taken at their root mean squares at r = 0, so that unit vectors have mean
    Σ_k P(k) w_k (αr − (k/b) t D) − (skew), and the root of it is

    .. math:: \ell = σ\, \frac{t \bar c\, \mathbb E[k w_k] + \frac{κ_3}{2} \mathbb E[(b-k) w_k^3]}
              {\mathbb E[(b-k) w_k]}, \qquad r \approx \frac{\ell}{\sqrt{1 - \ell^2/σ^2}},

    with w_k^(−2) = b − k + c²(k + γk(k−1)) + t²c̄²k². At b = 1 and b → ∞ without skew it is exact
    but for the shape of the noise.

    Source: theory page, section 12.5.

    >>> setting = dict(sigma=1, probability=0.1, norm_ratio=3, tilt_against=0.3, coherence=0,
    ...                noise_skew=0, micro_batch_size=[1, 4, 16])
    >>> tilted_level_estimate().evaluate(**setting).round(3)
    array([0.033, 0.062, 0.088])
    """
    k = sympy.Symbol("k", integer=True, nonnegative=True)

    def length(count: sympy.Expr) -> sympy.Expr:
        walk = c**2 * (count + γ * count * (count - 1)) + (t * c_bar * count) ** 2
        return sympy.sqrt(b - count + walk)

    weight = sympy.binomial(b, k) * p**k * q ** (b - k)

    def mean(inside: sympy.Expr) -> sympy.Expr:
        return sympy.Sum(weight * inside, (k, 0, b - 1))

    pull = t * c_bar * (mean(k / length(k)) + p**b * b / length(b))
    skewed = κ3 / 2 * mean((b - k) / length(k) ** 3)
    level = (pull + skewed) / mean((b - k) / length(k))
    return Bound(
        name="level, tilted draggers and skewed noise",
        kind="estimate",
        subject=Subject.LEVEL,
        assumptions=(_A3, TILTED, "micro-batch norms do not vary given k", "the level is below σ"),
        source=_source("12.5"),
        expression=σ * level / sympy.sqrt(1 - level**2),
    )


@cache
def best_tilted_size() -> Formula:
    r"""The b, not rounded, where the estimate's two terms add up to the least, for few draggers.

    To first order in p the terms are (ζσ/q)√(b/(b + c̄² − 1)) and κ_3σ/(2b). Their sum is smallest
    at b = (c̄² − 1) y/(1 − y) with y = (κ_3q/(ζ(c̄² − 1)))^{2/3}: about (κ_3q/(pt))^{2/3}. Where
    y ≥ 1 it falls for ever, and b = B is best; what is printed is then negative.

    Source: theory page, section 12.5.

    >>> setting = dict(norm_ratio=3, tilt_against=0.3, noise_skew=0.18, probability=[0.1, 0.25])
    >>> best_tilted_size().evaluate(**setting).round(1)
    array([4.5, 1.7])
    """
    room = c_bar**2 - 1
    return Formula(
        name="micro-batch size of the lowest level",
        expression=room / ((ζ * room / (κ3 * q)) ** sympy.Rational(2, 3) - 1),
        source=_source("12.5"),
    )


def stalled_share() -> Formula:
    """The share of steps in which Algorithm 1 stands still: some micro-batch is fitted perfectly.

    Source: theory page, section 12.6.

    >>> setting = dict(batch_size=64, micro_batch_size=[1, 2, 4], fitted_share=0.1)
    >>> stalled_share().evaluate(**setting).round(3)
    array([0.999, 0.275, 0.002])
    """
    return Formula(
        name="share of stalled steps", expression=1 - (1 - φ**b) ** m, source=_source("12.6")
    )


def stalling_fitted_share() -> Formula:
    """The share of fitted examples at which Algorithm 1 stands still in every other step.

    Source: theory page, section 12.6.

    >>> setting = dict(batch_size=64, micro_batch_size=[1, 2, 4, 8])
    >>> stalling_fitted_share().evaluate(**setting).round(2)
    array([0.01, 0.15, 0.45, 0.73])
    """
    half = sympy.Rational(1, 2)
    return Formula(
        name="share of fitted examples that stalls every other step",
        expression=(1 - half ** (1 / m)) ** (1 / b),
        source=_source("12.6"),
    )
