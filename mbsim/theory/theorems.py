r"""The theorems as formulas: SGD with draggers, adaptive micro-batch clipping, Table 1.

Every theorem is a :class:`Bound`: a SymPy expression with its kind, assumptions, conditions on the
step size and source. Tuned step sizes, the bounds at them, biases, constants and the order in T are
derived from those expressions, never typed a second time.

The paper states theorems of this form, but its printed constants were not available: all of these
are derived on the project's theory page, from the paper's four assumptions.

**The descent argument** that all rates share. Let r A(r) ≥ w (a r² − κ) and M(r) ≤ w (M₁r² + M₀),
with w = 1 or a weight that depends on the step. A2 gives E L(w_{t+1}) ≤ E L(w_t) − η E[r A] +
(η²L/2) E M; sum over the steps, use A1, and the w-weighted average of E r² is at most

.. math:: \frac{\Delta/(\eta T \bar w) + \eta L M_0/2 + \kappa}{a - \eta L M_1/2},
          \qquad \eta < 2a/(L M_1).

This is the *sharper* form of each theorem. The *plain* form has a smaller constant in the place of
the denominator, which asks for a smaller step and is easier to read. Tuned over η, the sharper form
needs no condition on T, and for SGD its constant is half as large.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import sympy

from mbsim.theory.bound import Bound, Condition, Subject, check_choice, tuned_bound
from mbsim.theory.formula import Formula
from mbsim.theory.quantities import ABBREVIATIONS, specialised, symbols

__all__ = [
    "alignment_estimate",
    "bias_bound",
    "clean_sgd_bound",
    "clipping_bound",
    "clipping_concentrated_bound",
    "clipping_concentrated_drift_bound",
    "clipping_drift_bound",
    "micro_batch_norm_ratio",
    "norm_spread_bound",
    "optimal_micro_batch_size",
    "second_moment_bound",
    "sgd_bound",
    "sgd_tuned_bound",
    "symmetric_bound",
]

# --------------------------------------------------------------------- what the theorems share

_A1 = "A1: the loss is bounded below"
_A2 = "A2: the gradient of the loss is L-Lipschitz"
_A3 = "A3: examples are i.i.d. given the parameters; benign noise has mean 0 and variance σ²"
_A4 = (
    "A4: draggers are orthogonal to the gradient and to the noise, of norm c√(r² + σ²), "
    "with mean cosine γ between two of them"
)
_MODEL = (_A1, _A2, _A3, _A4)
ALGORITHM_1 = "the rule is the smallest norm (Algorithm 1)"
INCOHERENT = "the draggers are incoherent (γ = 0)"
SYMMETRIC_ACROSS = "the noise across the gradient is symmetric given the noise along it"
UNCLIPPED = "nothing is clipped (SGD, or a single micro-batch)"
NO_DRAGGERS = "there are no draggers"
GAUSSIAN = "the noise is Gaussian and isotropic in n dimensions"
ALONG = {
    "unimodal": "noise along the gradient is symmetric and unimodal given k and the rest",
    "independent": "noise along the gradient is symmetric and independent of the rest given k",
}

# The letters of the theory page, so that the theorems read as they do there.
Δ, L, η, T, r = symbols("initial_gap", "smoothness", "step_size", "steps", "grad_norm")
B, b, p, c, γ = symbols("batch_size", "micro_batch_size", "probability", "norm_ratio", "coherence")
σ, σ_e, n, k = symbols("sigma", "sigma_along", "benign_dim", "dragger_count")
q, m, s, s_tilde, λ0 = symbols("q", "m", "s", "stilde", "lambda_0")
K_g, K_σ, N_1, N_0, P_1, P_0 = symbols("K_g", "K_sigma", "N_1", "N_0", "P_1", "P_0")
M_1, M_0, f = symbols("M_1", "M_0", "f")
v, a, ω, λ = symbols("capped_threshold", "aligned_share", "mean_weight", "alignment")
q_star, Λ = symbols("shortest_benign_share", "progress_rate")


def _source(section: str, statement: str | None = None) -> str:
    page = f"theory page, section {section}"
    if statement is None:
        return page
    return f"{page}; corresponds to [Wang2024] {statement}, whose constants were not available"


def _descended(
    form: str,
    *,
    rate: sympy.Expr,
    kept: sympy.Expr | None = None,
    second_moment: tuple[sympy.Expr, sympy.Expr],
    loss: sympy.Expr | int = 0,
    weight: sympy.Expr | int = 1,
) -> dict[str, Any]:
    """The descent argument (see the head of the module): expression and condition, in one form.

    `rate`, `second_moment`, `loss` and `weight` are a, (M₁, M₀), κ and the mean of w; `kept` is
    what the plain form puts in the place of the denominator, a/2 unless told.
    """
    check_choice("form", form, ("plain", "sharper"))
    per_gradient, constant = second_moment
    paid = Δ / (η * T * weight) + η * L * constant / 2 + loss
    if form == "sharper":
        expression = paid / (rate - η * L * per_gradient / 2)
        comparison, longest = "<", 2 * rate / (L * per_gradient)
    else:
        kept = rate / 2 if kept is None else kept
        expression = sympy.Add(*(part / kept for part in paid.args))
        comparison, longest = "<=", 2 * (rate - kept) / (L * per_gradient)
    why = "a longer step could lose more to the second moment than it gains along the gradient"
    condition = Condition(name="step_size", comparison=comparison, limit=longest, sentence=why)
    return {"expression": expression, "conditions": (condition,)}


def _at(bound: Bound, values: dict[sympy.Symbol, int]) -> Bound:
    """`bound` with some symbols replaced by numbers, in the expression and in the conditions."""
    conditions = (replace(x, limit=specialised(x.limit, values)) for x in bound.conditions)
    expression = specialised(bound.expression, values)
    return replace(bound, expression=expression, conditions=tuple(conditions))


# --------------------------------------------------------------------- Theorem 1: SGD


def sgd_bound(form: str = "plain") -> Bound:
    r"""Theorem 1: SGD with draggers keeps SGD's rate, with a larger constant, and has no bias.

    A = q r and M = K_g r² + K_σ σ², both exactly, with K_g = q² + pq/B + χc², K_σ = q/B + χc² and
    χ = p/B + γp²(1 − 1/B). The descent argument with a = q and κ = 0 gives, for η ≤ q/(L K_g),

    .. math:: \frac1T \sum_{t<T} \mathbb E r_t^2
              \le \frac{2\Delta}{q\eta T} + \frac{\eta L K_\sigma \sigma^2}{q}.

    Args:
        form: "plain", as above, or "sharper", for η < 2q/(L K_g).

    Returns:
        The bound; :meth:`~Bound.evaluate` takes initial_gap, smoothness, step_size, steps,
        batch_size, probability, norm_ratio, coherence and sigma.

    Source: theory page, section 4 (corresponds to [Wang2024] Theorem 4.1).

    >>> round(sgd_bound().evaluate(initial_gap=1, smoothness=1, step_size=0.01, steps=1000,
    ...     batch_size=64, probability=0.05, norm_ratio=20, sigma=1, coherence=0), 6)
    0.213972
    """
    return Bound(
        name="SGD with draggers",
        kind="upper bound",
        assumptions=(*_MODEL, UNCLIPPED),
        source=_source("4 (Theorem 1)", "Theorem 4.1"),
        **_descended(form, rate=q, second_moment=(K_g, K_σ * σ**2)),
    )


def clean_sgd_bound(form: str = "plain") -> Bound:
    """Theorem 1 at p = 0: the classical bound for mini-batch SGD.

    >>> str(clean_sgd_bound())
    'the average of E‖∇L(w_t)‖² over the steps ≤ 2*Δ/(T*η) + L*η*σ**2/B, if η <= 1/L'
    """
    bound = _at(sgd_bound(form), {p: 0})
    assumptions = (*_MODEL[:3], UNCLIPPED, NO_DRAGGERS)
    return replace(bound, name="SGD without draggers", assumptions=assumptions)


def incoherent_sgd_bound(form: str = "plain") -> Bound:
    """Theorem 1 at γ = 0."""
    bound = _at(sgd_bound(form), {γ: 0})
    return replace(
        bound, name="SGD, incoherent draggers", assumptions=(*bound.assumptions, INCOHERENT)
    )


def sgd_tuned_bound(form: str = "plain") -> Bound:
    """Theorem 1 at its best step size: :func:`tuned_bound` of :func:`sgd_bound`.

    The plain form is 2√(2ΔLK_σσ²/T)/q for T ≥ 2ΔLK_g²/(K_σσ²q²). The sharper form holds for every
    T, is never above it, and for large T is half of it.

    >>> setting = dict(initial_gap=1, smoothness=1, batch_size=64, steps=1e6, probability=0.05,
    ...                norm_ratio=20, sigma=1, coherence=0)
    >>> sharper, plain = (sgd_tuned_bound(x).evaluate(**setting) for x in ("sharper", "plain"))
    >>> round(sharper / plain, 3)
    0.501
    """
    return tuned_bound(sgd_bound(form))


# --------------------------------------------------------------------- Theorem 2: any noise

# The cap of min(τ, βr). The proof of the drift bound allows β from 1/4 to (2 + √2)/4 = 0.853…, and
# the rate gains from a large one.
_CAP = sympy.Rational(3, 4)


def clipping_drift_bound(form: str = "plain") -> Bound:
    r"""The progress of Algorithm 1 for any noise, norm ratio, coherence and micro-batch size.

    With λ₀ = q^b the probability of a micro-batch without draggers and β = 3/4, for all r > 0,

    .. math:: A(r) \ge \mathbb E[\min(\tau, \beta r)]
              \left(\lambda_0 - \frac{\tilde s^2 + \lambda_0 s^2}{r^2}\right).

    *Proof.* Algorithm 1 clips X_j at τ = min_{i≠j} x_i, which is independent of X_j (norms do not
    depend on h, so also where γ > 0). Fix τ = t and let r = 1 (scaling). Write y = ‖e + ñ‖,
    V = ⟨e + ñ, e⟩, d = ‖ñ‖ ≥ |V − 1|, μ = min(t, β) and P = ⟨clip_t X, e⟩ = αV min(1, t/x). Where
    k = b, P = 0. Where k < b, the claim is P ≥ μ(1{k=0} − (1 + 1{k=0}) d²):

    1. V < 0. Then P ≥ −min(t, |V|) and d ≥ 1 + |V|. min(t, |V|) ≤ μ(1 + |V|)²: clear where t ≤ β,
       and else |V| ≤ (1 + |V|)²/4 ≤ β(1 + |V|)². So P ≥ −μd², which, as d ≥ 1, is at least
       μ(1 − 2d²) too.
    2. V ≥ 0, k > 0. P ≥ 0.
    3. V ≥ 0, k = 0. P = V min(1, t/y). If y ≥ μ, P ≥ μ cos θ, and 1 − cos θ ≤ sin²θ ≤ d². If y < μ,
       P = V, and V − μ(1 − 2(1 − V)²) = 2μV² + (1 − 4μ)V + μ ≥ 0: its discriminant, 8μ² − 8μ + 1,
       is at most 0 for μ between (2 − √2)/4 and (2 + √2)/4, and below that no coefficient is
       negative.

    E[d² 1{k<b}] = s̃² and E[d² 1{k=0}] = λ₀s² (in units of r²). Take expectations, then over τ. ∎

    Args:
        form: "plain", as above; "aligned" has E[cos φ 1{x ≥ βr}] − 2s̃²/r² in the bracket: less
            closed, and better where micro-batches with draggers still point along g. (The same
            cases prove it for every β ≥ 1/4: where V ≥ 0 and x ≥ βr, P ≥ μ cos φ cos θ.)

    Source: theory page, section 5.1.
    """
    check_choice("form", form, ("plain", "aligned"))
    bracket = λ0 - _LOST / r**2 if form == "plain" else a - 2 * s_tilde**2 / r**2
    return Bound(
        name="progress of clipping, any noise",
        kind="lower bound",
        subject=Subject.PROGRESS,
        assumptions=(_A3, _A4, ALGORITHM_1),
        source=_source("5.1"),
        expression=v * bracket,
    )


_LOST = s_tilde**2 + λ0 * s**2  # κ of the drift bound


def clipping_bound(form: str = "plain", *, damped: bool = True) -> Bound:
    r"""Theorem 2: clipping for any noise. It is fast, up to a bias that stays.

    With ω_t = E[min(τ, βr_t)|w_t]/r_t ∈ [0, β], β = 3/4, ω̄ = (1/T) Σ E ω_t, ψ = p/b + γp²(1 − 1/b),
    N₁ = 1 + ψc² and N₀ = s² + ψc²σ²: for η ≤ 3λ₀/(4 L N₁),

    .. math:: \frac{\sum_t \mathbb E[\omega_t r_t^2]}{\sum_t \mathbb E\omega_t} \le
              \frac{2\Delta}{\lambda_0 \eta T \bar\omega} + \frac{4\eta L N_0}{3\lambda_0}
              + \beta_b^2,\qquad \beta_b^2 = \frac{4\tilde s^2}{\lambda_0}.

    This is never below SGD's bound, for N₀ has the draggers in full. The *damped* version knows
    that clean micro-batches keep the threshold down. With Ω = (1 − λ₀)^{m−1}, P₀ = 2s² +
    Ωψc²(σ² + 32s²), Ω₁ = (1 − λ₀/2)^{m−1} and P₁ = 2 + Ω₁ψc²: for η ≤ 3λ₀/(4 L P₁),

    .. math:: \ldots \le \frac{2\Delta}{\lambda_0 \eta T \bar\omega}
              + \frac{\eta L P_0}{\lambda_0 \bar\omega} + \beta_b^2.

    *Proof.* :func:`clipping_drift_bound` gives r A ≥ ω(λ₀r² − κ) with κ = s̃² + λ₀s² ≤ 2s̃². For the
    second moment, M ≤ Eρ², ρ = min(τ, x_j). Where τ = t < βr, ρ² ≤ t² ≤ (t/βr) r². Where τ ≥ βr,
    1{τ≥βr} ≤ min(τ, βr)/βr, of mean ω/β, and x_j is independent of τ:

    - as it is: E x_j² ≤ N₁r² + N₀. So M ≤ (ω/β)(N₁r² + N₀); the descent argument, with w = ω.
    - damped: if j is clean, ρ² ≤ x_j², of mean r² + s². If not, and i is the first clean one of the
      others, ρ² ≤ 2r² + 2‖ñ_i‖², and E‖ñ_i‖² = s² whatever came before i. If no other is clean,
      ρ² ≤ x_j², of mean at most r² + s² + ψc²(r² + σ²). That event has probability Ω, and given
      τ ≥ βr at most ((1−λ₀)/(1−λ₀+λ₀π))^{m−1}, where π = P(‖g + ñ‖ ≥ βr) at k = 0. By Chebyshev
      π ≥ ½ where r² ≥ 32s², and then this is at most Ω₁; elsewhere ψc²r² ≤ 32ψc²s². Keep 1{τ≥βr}
      in the terms in r² and drop it in the others: M ≤ (ω/β)P₁r² + P₀. Now the descent argument;
      the constant part has no weight, and so is divided by ω̄. ∎

    Args:
        form: "plain", as above with κ rounded up to 2s̃²; "sharper", for steps up to twice as long.
        damped: which of the two versions.

    Returns:
        The bound. Its mean_weight ω̄ says how fast the algorithm moves: norms near zero stall it,
        and no proof of this kind can drop it. A lower limit on it will do, for the right side
        falls as it grows.

    Source: theory page, section 5.2 (corresponds to [Wang2024] Theorem 4.2).
    """
    second_moment = (P_1 / _CAP, P_0 / ω) if damped else (N_1 / _CAP, N_0 / _CAP)
    return Bound(
        name="clipping, any noise" + ("" if damped else ", not damped"),
        kind="upper bound",
        subject=Subject.WEIGHTED_GRADIENT,
        assumptions=(*_MODEL, ALGORITHM_1),
        source=_source("5.2 (Theorem 2)", "Theorem 4.2"),
        **_descended(
            form,
            rate=λ0,
            second_moment=second_moment,
            loss=_LOST if form == "sharper" else 2 * s_tilde**2,
            weight=ω,
        ),
    )


def bias_bound(form: str = "plain") -> Bound:
    """The bias β_b² of Theorem 2: what is left of it for small steps and many of them.

    Args:
        form: "plain", 4s̃²/λ₀, and "sharper", s̃²/λ₀ + s², are the limits of :func:`clipping_bound`
            in that form, s̃² being summed over the binomial. "closed" has 2σ²/((b+1)q) for s̃² in
            the plain form, which is above it: 1/j ≤ 2/(j+1), and E[1/(J+1)] =
            (1 − p^{b+1})/((b+1)q) for J ~ Binomial(b, q).

    Source: theory page, section 5.2. It is a property of the bound: the true bias is smallest at
    b = B, where Algorithm 1 is SGD and has none (section 5.5).

    >>> round(bias_bound().evaluate(micro_batch_size=1, probability=0.5, sigma=1), 12)
    4.0
    """
    check_choice("form", form, ("plain", "sharper", "closed"))
    bound = clipping_bound("sharper" if form == "sharper" else "plain")
    expression = bound.bias.expression
    if form == "closed":
        above = 2 * σ**2 / ((b + 1) * q)
        expression = expression.subs({s_tilde: sympy.sqrt(above), λ0: ABBREVIATIONS[λ0]})
    return Bound(
        name="bias of clipping",
        kind="limit",
        subject=Subject.BIAS,
        assumptions=(_A3, _A4, ALGORITHM_1),
        source=_source("5.2", "Theorem 4.2"),
        expression=sympy.powsimp(expression),
    )


@cache
def optimal_micro_batch_size() -> Formula:
    """The b, not rounded, where the closed bias is smallest: the root of its derivative.

    Source: theory page, section 5.2.

    >>> str(optimal_micro_batch_size())
    '-1 - 1/log(q)'
    >>> round(optimal_micro_batch_size().evaluate(probability=0.05), 2)
    18.5
    """
    (root,) = sympy.solve(sympy.diff(bias_bound("closed").expression, b), b)
    return Formula(
        name="micro-batch size of smallest closed bias", expression=root, source=_source("5.2")
    )


# ---------------------------------------------------------------- Theorem 2: concentrated norms


def clipping_concentrated_drift_bound() -> Bound:
    r"""The progress of Algorithm 1 where micro-batch norms vary little.

    With a_i = min(1, √(α_i² + ‖D_i‖²/r²)), λ = E[cos φ_j min_i a_i], λ̄ = E cos φ_j and
    ς̄² = max_k Var(‖Y‖ | k),

    .. math:: A(r) \ge \lambda r - f - \left[\sqrt{q^2 r^2 + q s^2} - q r\right],
              \qquad f = \bar\lambda \bar\varsigma \frac{m-1}{\sqrt m}.

    *Proof* of (m−1)/√m; the rest is on the theory page. Given all k and ‖D‖ the norms x_i are
    independent, of variance at most ς̄². With Z_i = x_i − E x_i, Samuelson's inequality gives
    min_i Z_i ≥ mean(Z) − √(m−1) S, where S² is the mean of (Z_i − mean(Z))². E mean(Z) = 0, and
    E S ≤ √(E S²) ≤ √(1 − 1/m) ς̄. ∎

    The bracket is written q s²/(√(q²r² + qs²) + qr), which keeps its digits.

    Source: theory page, section 5.3.
    """
    across = q * s**2 / (sympy.sqrt(q**2 * r**2 + q * s**2) + q * r)
    return Bound(
        name="progress of clipping, concentrated norms",
        kind="lower bound",
        subject=Subject.PROGRESS,
        assumptions=(_A3, _A4, ALGORITHM_1),
        source=_source("5.3"),
        expression=λ * r - f - across,
    )


def clipping_concentrated_bound(form: str = "plain", *, averaging: bool = False) -> Bound:
    r"""Theorem 2 where norms concentrate: a bound on the plain average, without weights.

    With λ at its least and λ̄ and ς̄ at their greatest over the r visited: for η ≤ λ/(2 L M₁),

    .. math:: \frac1T \sum_{t<T} \mathbb E r_t^2 \le \frac{2\Delta}{\lambda\eta T}
              + \frac{\eta L M_0}{\lambda} + \frac{s^2}{\lambda} + \frac{2 f^2}{\lambda^2}.

    *Proof.* The last bracket of :func:`clipping_concentrated_drift_bound` is at most s²/(2r), and
    f r ≤ λr²/4 + f²/λ. So r A ≥ (3λ/4) r² − (s²/2 + f²/λ); then the descent
    argument, of whose denominator the plain form keeps λ/2. ∎

    Args:
        form: "plain", as above, or "sharper", for η < 3λ/(2 L M₁).
        averaging: use :func:`second_moment_bound` with averaging, for γ = 0.

    Source: theory page, section 5.3 (corresponds to [Wang2024] Theorem 4.2).
    """
    assumptions, second_moment = _second_moment(averaging=averaging)
    return Bound(
        name="clipping, concentrated norms",
        kind="upper bound",
        assumptions=(*_MODEL, ALGORITHM_1, *assumptions),
        source=_source("5.3 (Theorem 2)", "Theorem 4.2"),
        **_descended(
            form,
            rate=3 * λ / 4,
            kept=λ / 2,
            second_moment=second_moment,
            loss=s**2 / 2 + f**2 / λ,
        ),
    )


def second_moment_bound(*, averaging: bool = False) -> Bound:
    r"""The second moment of an update of Algorithm 1.

    M ≤ Eρ² ≤ M₁r² + M₀ with M₁ = 1 + Ωψc², M₀ = s² + Ωψc²σ², Ω = (1 − λ₀)^{m−1}. *Proof.* ρ is at
    most the norm of the first clean micro-batch, whose mean square is r² + s². With probability
    (1 − λ₀)^m there is none; ρ is then at most the norm of the first, and E[x²|k>0] ≤ r² + s² +
    ψc²(r² + σ²)/(1 − λ₀). ∎

    With averaging, for γ = 0 and transverse noise symmetric given the noise along e,

    .. math:: M \le \frac{M_1 r^2 + M_0}{m} + \left(1 - \frac1m\right)
              \left(q^2 r^2 + q \frac{\sigma_e^2}{b}\right), \qquad
              \sigma_e^2 = \operatorname{Var}\langle \xi, e\rangle.

    *Proof.* ‖u‖² has m squares, each ρ²/m², and m(m − 1) products, of which only the part along e
    has a mean; there |ρ cos φ cos θ| ≤ α|r + ν|. So a product is at most (E α|r + ν|)². Given k,
    E α|r + ν| ≤ α√(r² + σ_e²/(b−k)) = √(α(αr² + σ_e²/b)), a geometric mean of linear functions and
    so concave in α, whose mean is q: the square is at most q²r² + qσ_e²/b. ∎

    Args:
        averaging: whether to use the second form.

    Source: theory page, sections 5.3 and 5.4.
    """
    assumptions, (per_gradient, constant) = _second_moment(averaging=averaging)
    return Bound(
        name="second moment of clipping" + (", averaging" if averaging else ""),
        kind="upper bound",
        subject=Subject.SECOND_MOMENT,
        assumptions=(_A3, _A4, ALGORITHM_1, *assumptions),
        source=_source("5.4" if averaging else "5.3"),
        expression=per_gradient * r**2 + constant,
    )


@cache
def _second_moment(*, averaging: bool) -> tuple[tuple[str, ...], tuple[sympy.Expr, sympy.Expr]]:
    """What a bound on M assumes besides, and its coefficients of r² and of 1."""
    if not averaging:
        return (), (M_1, M_0)
    squares = (specialised(M_1, {γ: 0}), specialised(M_0, {γ: 0}))
    products = (q**2, q * σ_e**2 / b)
    return (INCOHERENT, SYMMETRIC_ACROSS), (
        squares[0] / m + (1 - 1 / m) * products[0],
        squares[1] / m + (1 - 1 / m) * products[1],
    )


def micro_batch_norm_ratio() -> Formula:
    r"""How the norm ratio falls as micro-batches grow: c_k, with k draggers among b examples.

    .. math:: c_k^2 = \frac{\mathbb E\|D\|^2}{\mathbb E\|Y\|^2}
              = \frac{(k + \gamma k(k-1))\, c^2 (r^2 + \sigma^2)}{(b-k)^2 r^2 + (b-k) \sigma^2}

    Source: theory page, section 2 (an open question of [Wang2024], compare its Table 3).

    >>> round(micro_batch_norm_ratio().evaluate(dragger_count=1, micro_batch_size=5, norm_ratio=4,
    ...                                         coherence=0, grad_norm=1e-9, sigma=1), 6)
    2.0
    """
    above = (k + γ * k * (k - 1)) * c**2 * (r**2 + σ**2)
    below = (b - k) ** 2 * r**2 + (b - k) * σ**2
    return Formula(
        name="norm ratio of a micro-batch",
        expression=sympy.sqrt(above / below),
        source=_source("2", "Table 3"),
    )


def alignment_estimate() -> Bound:
    """An *estimate* of λ of section 5.3, for small gradients: E[(1 + c_k²)^(−1/2)] at r → 0.

    Not a lower bound: norms that vary pull λ below it, for two-point noise far below.

    Source: theory page, section 5.3.

    >>> setting = dict(micro_batch_size=64, probability=0.05, norm_ratio=3, coherence=0)
    >>> round(alignment_estimate().evaluate(**setting), 3)
    0.832
    """
    count = sympy.Symbol("k", integer=True, nonnegative=True)
    squared = micro_batch_norm_ratio().expression.subs({r: 0, k: count}) ** 2
    weight = sympy.binomial(b, count) * p**count * q ** (b - count)
    return Bound(
        name="alignment for concentrated norms and small gradients",
        kind="estimate",
        subject=Subject.ALIGNMENT,
        assumptions=(_A3, _A4, "micro-batch norms do not vary", "the gradient is small"),
        source=_source("5.3"),
        expression=sympy.Sum(weight / sympy.sqrt(1 + squared), (count, 0, b - 1)),
    )


def norm_spread_bound(*, gaussian: bool = False) -> Bound:
    """A limit on ς̄, the spread of a micro-batch's benign norm: σ/√b, or σ/√(bn) for Gaussian noise.

    ‖g + ñ‖ is 1-Lipschitz in ñ, and α²σ²/(b−k) = ασ²/b; for a Gaussian, Poincaré's inequality.

    Source: theory page, section 5.3.
    """
    noise = (GAUSSIAN,) if gaussian else ()
    return Bound(
        name="spread of a micro-batch's benign norm",
        kind="upper bound",
        subject=Subject.NORM_SPREAD,
        assumptions=(_A3, *noise),
        source=_source("5.3"),
        expression=s / sympy.sqrt(n) if gaussian else s,
    )


# --------------------------------------------------------------------- Theorem 3: symmetric noise


def symmetric_bound(
    part: str = "independent", form: str = "plain", *, averaging: bool = False
) -> Bound:
    r"""Theorem 3: clipping has no bias where the noise along the gradient is symmetric.

    Where A(r) ≥ Λr at the r visited, the descent argument gives, for η ≤ Λ/(L M₁),

    .. math:: \frac1T \sum_{t<T} \mathbb E r_t^2 \le
              \frac{2\Delta}{\Lambda\eta T} + \frac{\eta L M_0}{\Lambda}.

    Args:
        part: "unimodal": noise along e is symmetric and unimodal given k and the rest; then
            Λ = q*/m, q* = E[1 − k/b] of the shortest micro-batch. "independent": it is symmetric
            and independent of the rest given k; then Λ is the least over r of
            E[α_j (min_i h_i/h_j) (1 + α_j²(v_k + r²/3)/h_j²)^(−3/2)], without the 1/m.
        form: "plain", as above, or "sharper", for η < 2Λ/(L M₁).
        averaging: use :func:`second_moment_bound` with averaging, for γ = 0.

    Source: theory page, section 6.
    """
    check_choice("part", part, ("unimodal", "independent"))
    assumptions, second_moment = _second_moment(averaging=averaging)
    return Bound(
        name="clipping, symmetric noise" + (", unimodal" if part == "unimodal" else ""),
        kind="upper bound",
        assumptions=(*_MODEL, ALGORITHM_1, ALONG[part], *assumptions),
        source=_source("6 (Theorem 3)"),
        **_descended(
            form, rate=q_star / m if part == "unimodal" else Λ, second_moment=second_moment
        ),
    )
