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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy
from numpy.typing import ArrayLike, NDArray

from mbsim.errors import InvalidArgument, shown
from mbsim.theory.formula import (
    ABBREVIATIONS,
    Formula,
    as_latex,
    as_text,
    checked_values,
    definitions_in,
    numbers_of,
    specialised,
    symbols,
)

if TYPE_CHECKING:
    from mbsim.verdicts import Verdict

__all__ = [
    "Bound",
    "Condition",
    "Crossover",
    "Row",
    "Subject",
    "Table",
    "alignment_estimate",
    "bias_bound",
    "clean_sgd_bound",
    "clipping_bound",
    "clipping_concentrated_bound",
    "clipping_concentrated_drift_bound",
    "clipping_drift_bound",
    "crossover",
    "micro_batch_norm_ratio",
    "norm_spread_bound",
    "optimal_micro_batch_size",
    "second_moment_bound",
    "sgd_bound",
    "sgd_tuned_bound",
    "symmetric_bound",
    "table1",
    "tuned_bound",
    "tuned_step_size",
]

KINDS = {
    "upper bound": ("≤", r"\le"),
    "lower bound": ("≥", r"\ge"),
    "limit": ("→", r"\to"),
    "estimate": ("≈", r"\approx"),
}
_COMPARISONS = {
    sympy.LessThan: np.less_equal,
    sympy.StrictLessThan: np.less,
    sympy.GreaterThan: np.greater_equal,
}


class Subject(Enum):
    """What a bound is about: its left side, in words and in LaTeX."""

    GRADIENT = (
        "the average of E‖∇L(w_t)‖² over the steps",
        r"\frac{1}{T} \sum_{t<T} \mathbb{E}\, r_t^2",
    )
    WEIGHTED_GRADIENT = (
        "the average of E‖∇L(w_t)‖² over the steps, weighted by ω_t",
        r"\frac{\sum_t \mathbb{E}[\omega_t r_t^2]}{\sum_t \mathbb{E}\, \omega_t}",
    )
    PROGRESS = ("the progress A(r) of a step along the gradient", "A(r)")
    SECOND_MOMENT = ("the second moment M(r) of the update", "M(r)")
    BIAS = ("what no number of steps removes from the bound", r"\beta_b^2")
    ALIGNMENT = ("the alignment λ = E[cos φ_j min_i a_i]", r"\lambda")
    NORM_SPREAD = ("the spread of a micro-batch's benign norm", r"\bar{\varsigma}")

    def __init__(self, sentence: str, latex: str) -> None:
        self.sentence = sentence
        self.latex = latex


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A relation that the settings must satisfy for a bound to hold, and what it is for."""

    relation: sympy.Rel
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Bound(Formula):
    """A formula that says something about a run or a step, if its assumptions hold.

    :meth:`evaluate` gives the formula's number whether or not the conditions hold; it is a bound
    only where :meth:`holds` says so.

    Args:
        name: what it is called in tables and messages.
        expression: the right side (see :class:`~mbsim.theory.formula.Formula`).
        source: the section of the theory page, and the paper's corresponding statement.
        kind: "upper bound", "lower bound", "limit" (what is left of an upper bound as the step
            size goes to 0 and the horizon to infinity) or "estimate" (no inequality is claimed).
        subject: the left side.
        assumptions: what is assumed, a sentence each.
        conditions: what the settings must satisfy besides.
        fixed: what has been filled in already, by code name, where the expression holds for one
            setting alone; a run of another setting is not judged by it.

    >>> Bound(name="a certificate", kind="upper bound", expression=sympy.Float(0.25),
    ...       source="theory page, section 8").value
    0.25
    """

    kind: str
    subject: Subject = Subject.GRADIENT
    assumptions: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    fixed: Mapping[str, float | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, tuple(KINDS))
        super().__post_init__()

    @property
    def parts(self) -> tuple[sympy.Basic, ...]:
        """The expression, and the relations of the conditions."""
        return (self.expression, *(condition.relation for condition in self.conditions))

    def holds(self, **values: ArrayLike) -> bool | NDArray[np.bool_]:
        """Whether the settings satisfy the conditions; :meth:`evaluate` does not ask.

        Args:
            **values: as for :meth:`evaluate`.

        Returns:
            A bool if all values are numbers, else an array of the broadcast shape.

        Raises:
            InvalidArgument: for missing and unknown names, values that are not finite or out of
                range, and shapes that do not fit.

        >>> sgd_bound().holds(initial_gap=1, smoothness=1, step_size=[0.1, 2], steps=100, sigma=1,
        ...                   batch_size=64, probability=0.05, norm_ratio=20, coherence=0)
        array([ True, False])
        """
        known = checked_values(self.name, self.names, values)
        result = np.ones(np.broadcast_shapes(*(array.shape for array in known.values())), bool)
        for condition in self.conditions:
            compare = _COMPARISONS[condition.relation.func]
            result &= compare(*(numbers_of(side, known) for side in condition.relation.args))
        return bool(result) if result.ndim == 0 else result

    def check(
        self,
        run: Any,
        *,
        gate: bool = True,
        false_positive_rate: float = 1e-3,
        rng: int = 0,
        **known: float,
    ) -> Verdict:
        """Hold the bound against a run: its simulated left side against the right side.

        The assumptions are measured on the run first (smoothness along its path, the noise's mean
        and variance, the draggers' share, length and angles); the settings come from the run; what
        is left, such as the alignment λ, is measured on sampled steps at the gradient norms that
        the run visited, and taken on the safe side.

        Args:
            run: a :class:`~mbsim.Run`; for a weighted average with every step recorded.
            gate: whether a broken assumption or condition ends the matter as "not applicable".
                Negative controls run with the gate off.
            false_positive_rate: the probability of a wrong decision.
            rng: the seed of what is measured, an integer.
            **known: quantities that you know better than a measurement, by code name.

        Returns:
            A :class:`~mbsim.Verdict`: an upper bound is supported if the run's mean lies below it
            beyond chance. Its `details` have the values, the slack (right side over left side) and
            whether the bound is vacuous: no lower than the squared gradient norm at the start.

        Raises:
            InvalidArgument: for bounds that are not about a run, runs that do not know their
                problem, and unknown names.

        >>> import mbsim
        >>> problem = mbsim.Problem(
        ...     loss=mbsim.losses.Quadratic(np.ones(8)), noise=mbsim.noise.Gaussian(sigma=1.0),
        ...     draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
        ...     benign_dim=4, start=np.full(8, 0.5))
        >>> run = mbsim.simulate(problem, mbsim.SGD(), batch_size=64, step_size=0.05, steps=200,
        ...                      replicates=64, rng=0)
        >>> sgd_bound().check(run).status
        'supported'
        """
        from mbsim.theory.checking import check

        return check(
            self, run, gate=gate, false_positive_rate=false_positive_rate, rng=rng, **known
        )

    def latex(self) -> str:
        """Both sides in LaTeX, abbreviations kept (see :attr:`definitions`)."""
        return f"{self.subject.latex} {KINDS[self.kind][1]} {super().latex()}"

    def _statement(self) -> list[str]:
        return [self.latex(), *(rf"\text{{if }} {as_latex(part)}" for part in self.parts[1:])]

    def __str__(self) -> str:
        right = ", if ".join(map(as_text, self.parts))
        return f"{self.subject.sentence} {KINDS[self.kind][0]} {right}"

    __repr__ = __str__


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise InvalidArgument(f"{name}={shown(value)} must be one of {listed}")


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
    _check_choice("form", form, ("plain", "sharper"))
    per_gradient, constant = second_moment
    paid = Δ / (η * T * weight) + η * L * constant / 2 + loss
    if form == "sharper":
        expression = paid / (rate - η * L * per_gradient / 2)
        relation = sympy.StrictLessThan(η, 2 * rate / (L * per_gradient))
    else:
        kept = rate / 2 if kept is None else kept
        expression = sympy.Add(*(part / kept for part in paid.args))
        relation = sympy.LessThan(η, 2 * (rate - kept) / (L * per_gradient))
    why = "a longer step could lose more to the second moment than it gains along the gradient"
    return {
        "expression": expression,
        "conditions": (Condition(relation=relation, sentence=why),),
    }


def _at(bound: Bound, values: dict[sympy.Symbol, int]) -> Bound:
    """`bound` with some symbols replaced by numbers, in the expression and in the conditions."""

    def at(condition: Condition) -> Condition:
        sides = (specialised(side, values) for side in condition.relation.args)
        return replace(condition, relation=condition.relation.func(*sides))

    return replace(
        bound,
        expression=specialised(bound.expression, values),
        conditions=tuple(map(at, bound.conditions)),
    )


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


def _incoherent_sgd_bound(form: str = "plain") -> Bound:
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
    _check_choice("form", form, ("plain", "aligned"))
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
    _check_choice("form", form, ("plain", "sharper", "closed"))
    bound = clipping_bound("sharper" if form == "sharper" else "plain")
    expression = _leading_terms(tuned_bound(bound))[0]
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
    _check_choice("part", part, ("unimodal", "independent"))
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


# --------------------------------------------------------------------- tuned step sizes


@cache
def _lowest_point() -> tuple[tuple[sympy.Symbol, ...], sympy.Expr, sympy.Expr]:
    """Where (a x² + b x + c)/(x − d) is smallest beyond its pole, and its value there.

    Where its derivative is 0, a ratio equals the ratio of its two parts' derivatives. The root is
    at least 2d.
    """
    x, *letters = (sympy.Dummy(letter, positive=True) for letter in "xabcd")
    quadratic, linear, constant, pole = letters
    slope = 2 * quadratic * x + linear
    roots = sympy.solve(slope * (x - pole) - (quadratic * x**2 + linear * x + constant), x)
    (lowest,) = (root for root in roots if root.is_positive)
    return tuple(letters), lowest, sympy.expand(slope.subs(x, lowest))


@cache
def _stationary(bound: Bound) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """1/η where a bound is smallest, its value there, and 1/η at its pole."""
    x = sympy.Dummy("x", positive=True)
    parts = sympy.fraction(sympy.together(bound.expression.subs(η, 1 / x)))
    polynomials = [sympy.Poly(part, x) for part in parts if part.is_polynomial(x)]
    if [polynomial.degree() for polynomial in polynomials] != [2, 1]:
        raise InvalidArgument(f"the bound {bound.name!r} has no best step size in closed form")
    (*above, leading, below) = (part for each in polynomials for part in each.all_coeffs())
    values = [sympy.factor(part / leading) for part in (*above, -below)]
    letters, lowest, value = _lowest_point()
    meaning = dict(zip(letters, values, strict=True))
    return lowest.subs(meaning), value.subs(meaning), values[-1]


def tuned_step_size(bound: Bound) -> Formula:
    """The step size at which a bound is smallest, found by SymPy.

    Args:
        bound: a bound with a step size in it, such as :func:`sgd_bound`. Whether it allows this
            step size is what :meth:`Bound.holds` of its :func:`tuned_bound` says.

    Raises:
        InvalidArgument: where there is none in closed form.

    >>> str(tuned_step_size(sgd_bound()))
    'sqrt(2*Δ/(K_σ*L*T))/σ'
    """
    return Formula(
        name=f"tuned step size for {bound.name}",
        expression=1 / _stationary(bound)[0],
        source=bound.source,
    )


@cache
def tuned_bound(bound: Bound) -> Bound:
    """A bound at its tuned step size; conditions on the step size become conditions on the horizon.

    A condition that the tuned step size always satisfies is dropped: sharper forms keep none.
    Quantities measured along a run, such as mean_weight, must hold for the run at this step size.

    >>> str(tuned_bound(clean_sgd_bound()))
    'the average of E‖∇L(w_t)‖² over the steps ≤ 2*σ*sqrt(2*Δ*L/(B*T)), if T >= 2*B*Δ*L/σ**2'
    """
    inverse, smallest, pole = _stationary(bound)
    conditions = []
    for limit in (condition.relation.rhs for condition in bound.conditions):
        if sympy.simplify(limit * pole) != 1:
            (horizon,) = sympy.solve(limit * inverse - 1, T, check=False, simplify=False)
            why = "on a shorter horizon the tuned step is longer than the theorem allows"
            conditions.append(Condition(relation=sympy.GreaterThan(T, horizon), sentence=why))
    return replace(
        bound, name=f"{bound.name}, tuned", expression=smallest, conditions=tuple(conditions)
    )


@cache
def _leading_terms(tuned: Bound) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """(bias, constant, order): a tuned bound is bias + constant · order + what is smaller."""
    y = sympy.Dummy("y", positive=True)
    in_y = tuned.expression.subs(T, y**-2)
    bias = sympy.limit(in_y, y, 0, "+")
    constant, power = (in_y - bias).as_leading_term(y).as_coeff_exponent(y)
    return bias, constant, T ** (-power / 2)


# --------------------------------------------------------------------- Table 1 and the crossover


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of Table 1: its bound at a given step size, from which the rest is derived."""

    bound: Bound

    @property
    def tuned_step_size(self) -> Formula:
        """The step size at which the bound is smallest."""
        return tuned_step_size(self.bound)

    @property
    def tuned(self) -> Bound:
        """The bound there."""
        return tuned_bound(self.bound)

    @property
    def bias(self) -> Formula:
        """The limit of the tuned bound as T grows."""
        return self._leading("bias", 0)

    @property
    def constant(self) -> Formula:
        """The factor of :attr:`order` in the tuned bound."""
        return self._leading("constant", 1)

    @property
    def order(self) -> sympy.Expr:
        """How the tuned bound approaches its bias as T grows."""
        return _leading_terms(self.tuned)[2]

    def _leading(self, name: str, index: int) -> Formula:
        return Formula(
            name=f"{name} of {self.bound.name}",
            expression=_leading_terms(self.tuned)[index],
            source=self.bound.source,
        )

    def evaluate(self, **values: ArrayLike) -> dict[str, Any]:
        """The row in numbers; see :meth:`Table.evaluate`."""

        def number(formula: Formula, ask: str = "evaluate") -> Any:
            if not set(formula.names) <= set(values):
                return None
            try:
                return getattr(formula, ask)(**{name: values[name] for name in formula.names})
            except InvalidArgument:  # the table has checked the values: the result is not finite
                return None

        return {
            "method": self.bound.name,
            "bound": number(self.bound),
            "bound_holds": number(self.bound, "holds"),
            "tuned_step_size": number(self.tuned_step_size),
            "tuned_bound": number(self.tuned),
            "tuned_holds": number(self.tuned, "holds"),
            "order": as_text(self.order),
            "constant": number(self.constant),
            "bias": number(self.bias),
            "missing": [name for name in self.bound.names if name not in values],
        }


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table 1: the methods' bounds side by side. It prints in terminals and in notebooks."""

    rows: tuple[Row, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The code names of all quantities in the table."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.bound.names))

    @property
    def definitions(self) -> dict[sympy.Symbol, sympy.Expr]:
        """The abbreviations used in the table, and what they stand for."""
        return definitions_in([part for row in self.rows for part in row.bound.parts])

    def evaluate(self, **values: ArrayLike) -> list[dict[str, Any]]:
        """The table in numbers, one dict a row.

        Args:
            **values: quantities by code name, any of :attr:`names`.

        Returns:
            For each row ``method``, ``bound`` with ``bound_holds``, ``tuned_step_size``,
            ``tuned_bound`` with ``tuned_holds``, ``order`` (text), ``constant``, ``bias`` and
            ``missing``, the names that were not given. A number that lacks one of them is ``None``,
            and so is one that is not finite, such as a bias too large for a float.

        Raises:
            InvalidArgument: for unknown names, values out of range and shapes that do not fit.

        >>> row = table1().evaluate(initial_gap=1, smoothness=1, step_size=0.1, steps=1000, sigma=1,
        ...                         batch_size=64)[0]
        >>> row["method"], round(row["bound"], 5), row["bound_holds"]
        ('SGD without draggers', 0.02156, True)
        """
        checked_values("Table 1", self.names, values, partly=True)
        return [row.evaluate(**values) for row in self.rows]

    def latex(self) -> str:
        """The table as a LaTeX array, abbreviations kept (see :attr:`definitions`)."""
        head = [rf"\text{{{name}}}" for name in _HEAD]
        body = [[rf"\text{{{row.bound.name}}}", *_cells(row)] for row in self.rows]
        lines = " \\\\\n".join(" & ".join(line) for line in (head, *body))
        return rf"\begin{{array}}{{{'l' * len(head)}}}" + f"\n{lines}\n" + r"\end{array}"

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        body = [[row.bound.name, *map(_as_html, _cells(row))] for row in self.rows]
        lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in body)
        notation = ", ".join(
            _as_html(f"{sympy.latex(symbol)} = {as_latex(meaning)}")
            for symbol, meaning in self.definitions.items()
        )
        return f"<table><tr>{head}</tr>{lines}</table><p>{notation}</p>"

    def __str__(self) -> str:
        blocks = [_block(row) for row in self.rows]
        notation = [f"  {as_text(x)} = {as_text(d)}" for x, d in self.definitions.items()]
        return "\n\n".join([*blocks, "\n".join(["where", *notation])])

    __repr__ = __str__


_HEAD = ("method", "bound", "tuned", "order", "bias")


def _as_html(latex: str) -> str:
    return f"$\\displaystyle {escape(latex)}$"


def _cells(row: Row) -> list[str]:
    """The LaTeX of a row: each bound with its conditions below it."""

    def stacked(bound: Bound) -> str:
        lines = r" \\ \text{if } ".join(map(as_latex, bound.parts))
        return rf"\begin{{array}}{{l}} {lines} \end{{array}}"

    others = (row.order, row.bias.expression)
    return [stacked(row.bound), stacked(row.tuned), *map(as_latex, others)]


def _block(row: Row) -> str:
    """The plain text of a row."""
    lines = {
        "bound": ", if ".join(map(as_text, row.bound.parts)),
        "tuned": ", if ".join(map(as_text, row.tuned.parts)),
        "at η": as_text(row.tuned_step_size.expression),
        "order": f"{as_text(row.order)}, times {as_text(row.constant.expression)}",
        "bias": as_text(row.bias.expression),
    }
    return "\n".join([row.bound.name, *(f"  {key:<6} {line}" for key, line in lines.items())])


def table1(form: str = "plain") -> Table:
    """Table 1: SGD without and with draggers, and clipping for three kinds of noise.

    The clipping rows are Theorem 2 for any noise (on a weighted average) and where norms
    concentrate, and Theorem 3 for symmetric noise. At b = B clipping is SGD: use its row there.

    Args:
        form: "plain", or "sharper": longer formulas, smaller numbers, and tuned step sizes that are
            allowed for every horizon.

    Source: theory page, sections 4 to 6 (corresponds to [Wang2024] Table 1).

    >>> for row in table1().rows:
    ...     print(f"{row.bound.name}: {row.order}, bias {row.bias}")
    SGD without draggers: 1/sqrt(T), bias 0
    SGD, incoherent draggers: 1/sqrt(T), bias 0
    SGD with draggers: 1/sqrt(T), bias 0
    clipping, any noise: 1/sqrt(T), bias 4*s̃**2/λ₀
    clipping, concentrated norms: 1/sqrt(T), bias 2*f**2/λ**2 + s**2/λ
    clipping, symmetric noise: 1/sqrt(T), bias 0
    """
    bounds = (
        clean_sgd_bound(form),
        _incoherent_sgd_bound(form),
        sgd_bound(form),
        clipping_bound(form),
        clipping_concentrated_bound(form),
        symmetric_bound(form=form),
    )
    return Table(rows=tuple(Row(bound=bound) for bound in bounds))


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where the tuned bounds of SGD and of clipping cross.

    ``horizon`` is the number of steps below which clipping's bound is the smaller one, or None if
    they never cross; ``reason`` says which is ahead where. ``allowed`` is whether both tuned step
    sizes satisfy their theorems' conditions at the horizon (None if there is none).
    """

    horizon: float | None
    reason: str
    allowed: bool | None = None


def crossover(
    clipping: Bound | None = None, sgd: Bound | None = None, **values: float
) -> Crossover:
    """The horizon at which SGD's tuned bound falls below clipping's, or "never".

    Tuned plain bounds are C₁/√T (SGD) and C₂/√T + β² (clipping). They cross at T = ((C₁ − C₂)/β²)²
    if C₁ > C₂ and β² > 0, and never otherwise. For Theorem 2 the right sides are compared although
    the left sides differ: clipping's average is weighted.

    Args:
        clipping: a plain bound for clipping; :func:`clipping_bound` unless told.
        sgd: a plain bound for SGD; :func:`sgd_bound` unless told.
        **values: the quantities in both, by code name, step_size and steps apart; numbers.

    Raises:
        InvalidArgument: for unknown and missing names, values out of range, arrays, and bounds that
            are not exactly of this form at their tuned step size.

    Source: theory page, section 5.6.

    >>> setting = dict(initial_gap=100, smoothness=1, sigma=1, batch_size=64, micro_batch_size=4,
    ...                probability=0.02, coherence=0, mean_weight=0.7)
    >>> crossover(**setting, norm_ratio=10).reason
    "never: SGD's bound is the smaller one at every horizon"
    >>> crossover(**setting, norm_ratio=500).reason
    "clipping's bound is the smaller one below 4.049e+04 steps, SGD's above"
    """
    rows = (Row(bound=sgd or sgd_bound()), Row(bound=clipping or clipping_bound()))
    for row in rows:
        leading = row.bias.expression + row.constant.expression / sympy.sqrt(T)
        if sympy.simplify(row.tuned.expression - leading) != 0:
            raise InvalidArgument(
                f"the bound {row.bound.name!r} is not C/√T + bias when tuned; use its plain form"
            )
    names = [name for name in Table(rows=rows).names if name not in ("step_size", "steps")]
    known = checked_values("the crossover", tuple(names), values)
    if any(array.ndim for array in known.values()):
        raise InvalidArgument("the crossover takes numbers, not arrays; ask once for each")

    def numbers(part: str) -> list[Any]:
        formulas = [getattr(row, part) for row in rows]
        return [f.evaluate(**{name: values[name] for name in f.names}) for f in formulas]

    constants, biases = numbers("constant"), numbers("bias")
    lead, handicap = constants[0] - constants[1], biases[1] - biases[0]
    if lead > 0 and handicap > 0:
        horizon = (lead / handicap) ** 2
        there = {**values, "steps": max(horizon, 1.0)}
        tuned = [row.tuned for row in rows]
        allowed = all(x.holds(**{name: there[name] for name in x.names}) for x in tuned)
        reason = f"clipping's bound is the smaller one below {horizon:.4g} steps, SGD's above"
        if not allowed:
            reason += "; there a tuned step is still longer than its theorem allows"
        return Crossover(horizon=horizon, reason=reason, allowed=allowed)
    if lead == handicap == 0:
        return Crossover(horizon=None, reason="never: the bounds are equal at every horizon")
    ahead = "clipping's" if lead > 0 or (lead == 0 and handicap < 0) else "SGD's"
    return Crossover(
        horizon=None, reason=f"never: {ahead} bound is the smaller one at every horizon"
    )
