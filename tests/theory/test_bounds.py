"""The bounds: every step of their proofs, by SymPy, by enumeration and by random search.

Nothing here is taken from the bounds themselves: the theory page's formulas are typed again, in
plain Python or mpmath, and what is proved about a step is compared with the step, enumerated.
"""

import functools
import itertools
import json
import math
import pickle
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize

from mbsim import theory
from mbsim.errors import InvalidArgument
from mbsim.theory import (
    QUANTITIES,
    Bound,
    Condition,
    Subject,
    alignment_estimate,
    bias_bound,
    clean_sgd_bound,
    clipping_bound,
    clipping_concentrated_bound,
    clipping_concentrated_drift_bound,
    clipping_drift_bound,
    crossover,
    formula_bound,
    micro_batch_norm_ratio,
    norm_spread_bound,
    optimal_micro_batch_size,
    second_moment_bound,
    sgd_bound,
    sgd_tuned_bound,
    symbols,
    symmetric_bound,
    table1,
    tuned_bound,
    tuned_step_size,
)

FORMS = ("plain", "sharper")
# Sums and products of some tens of floats: 1e-12 is far above their roundoff, and far below any
# difference that a wrong formula would make.
ROUNDOFF = 1e-12

SETTING = {
    "initial_gap": 1.0,
    "smoothness": 1.0,
    "step_size": 0.01,
    "steps": 1000,
    "batch_size": 64,
    "micro_batch_size": 8,
    "probability": 0.05,
    "norm_ratio": 20.0,
    "coherence": 0.0,
    "sigma": 1.0,
    "sigma_along": 0.5,
    "grad_norm": 2.0,
    "mean_weight": 0.5,
    "alignment": 0.6,
    "mean_cosine": 0.9,
    "norm_spread": 0.1,
    "shortest_benign_share": 0.98,
    "progress_rate": 0.7,
    "tilt_against": 0.02,
    "benign_dim": 32,
    "relative_threshold": 0.6,
}


def evaluated(formula, **changes):
    values = {**SETTING, **changes}
    return formula.evaluate(**{name: values[name] for name in formula.names})


def allowed(bound, **changes):
    values = {**SETTING, **changes}
    return bound.holds(**{name: values[name] for name in bound.names})


@functools.cache
def rates(form):
    """Every bound with a step size in it."""
    return [
        sgd_bound(form),
        clean_sgd_bound(form),
        clipping_bound(form),
        clipping_bound(form, damped=False),
        clipping_concentrated_bound(form),
        clipping_concentrated_bound(form, averaging=True),
        symmetric_bound("unimodal", form),
        symmetric_bound("independent", form),
        symmetric_bound("independent", form, averaging=True),
    ]


# Random settings, in which every bound can be evaluated.
random_settings = st.fixed_dictionaries(
    {
        "initial_gap": st.floats(1e-3, 1e3),
        "smoothness": st.floats(1e-2, 1e2),
        "step_size": st.floats(1e-6, 1.0),
        "steps": st.integers(1, 10**6),
        "probability": st.floats(0, 0.4),
        "norm_ratio": st.floats(0, 100),
        "coherence": st.floats(0, 1),
        "sigma": st.floats(1e-2, 10),
        "sigma_along": st.floats(0, 1),
        "mean_weight": st.floats(0.01, 0.75),
        "alignment": st.floats(0.05, 1),
        "mean_cosine": st.floats(0.05, 1),
        "norm_spread": st.floats(0, 1),
        "shortest_benign_share": st.floats(0.05, 1),
        "progress_rate": st.floats(0.05, 1),
    }
).flatmap(
    lambda values: st.tuples(st.integers(0, 6), st.integers(0, 5)).map(
        lambda ab: {
            **values,
            "micro_batch_size": 2 ** ab[0],
            "batch_size": 2 ** (ab[0] + ab[1]),
        }
    )
)

# --------------------------------------------- the theory page's formulas, typed independently


def page(Delta, L, eta, T, B, b, p, c, g, sigma):
    """Right sides of sections 4 and 5 in mpmath."""
    q, m, s2 = 1 - p, B / b, sigma**2 / b
    chi = p / B + g * p**2 * (1 - 1 / B)
    psi = p / b + g * p**2 * (1 - 1 / b)
    k_g, k_s = q**2 + p * q / B + chi * c**2, q / B + chi * c**2
    clean = q**b
    counts = range(int(b))
    inverse = sum(mpmath.binomial(b, k) * p**k * q ** (b - k) / (b - k) for k in counts)
    none = (1 - clean) ** (m - 1)
    w, lam, lbar, spread, rate = (
        mpmath.mpf(SETTING[name])
        for name in ("mean_weight", "alignment", "mean_cosine", "norm_spread", "progress_rate")
    )
    m0 = s2 + none * psi * c**2 * sigma**2
    m1 = 1 + none * psi * c**2
    p0 = 2 * s2 + none * psi * c**2 * (sigma**2 + 32 * s2)
    f2 = (lbar * spread) ** 2 * (m - 1) ** 2 / m
    root = mpmath.sqrt
    return {
        "sgd": 2 * Delta / (q * eta * T) + eta * L * k_s * sigma**2 / q,
        "sgd, sharper": (Delta / (eta * T) + eta * L * k_s * sigma**2 / 2)
        / (q - eta * L * k_g / 2),
        "sgd, tuned": 2 * root(2 * Delta * L * k_s * sigma**2 / T) / q,
        "sgd, tuned, sharper": (
            Delta * L * k_g / T
            + root((Delta * L * k_g / T) ** 2 + 2 * q**2 * Delta * L * k_s * sigma**2 / T)
        )
        / q**2,
        "sgd, step": root(2 * Delta / (L * k_s * sigma**2 * T)),
        "clean": 2 * Delta / (eta * T) + eta * L * sigma**2 / B,
        "any noise": 2 * Delta / (clean * eta * T * w)
        + eta * L * p0 / (clean * w)
        + 4 * inverse * sigma**2 / clean,
        "any noise, not damped": 2 * Delta / (clean * eta * T * w)
        + 4 * eta * L * (s2 + psi * c**2 * sigma**2) / (3 * clean)
        + 4 * inverse * sigma**2 / clean,
        "concentrated": 2 * Delta / (lam * eta * T)
        + eta * L * m0 / lam
        + s2 / lam
        + 2 * f2 / lam**2,
        "symmetric": 2 * Delta / (rate * eta * T) + eta * L * m0 / rate,
        "second moment": m1 * 4 + m0,
        "bias": 4 * inverse * sigma**2 / clean,
        "bias, sharper": inverse * sigma**2 / clean + s2,
        "bias, closed": 8 * sigma**2 / ((b + 1) * q ** (b + 1)),
        "best b": 1 / mpmath.log(1 / q) - 1,
    }


OURS = {
    "sgd": sgd_bound(),
    "sgd, sharper": sgd_bound("sharper"),
    "sgd, tuned": sgd_tuned_bound(),
    "sgd, tuned, sharper": sgd_tuned_bound("sharper"),
    "sgd, step": tuned_step_size(sgd_bound()),
    "clean": clean_sgd_bound(),
    "any noise": clipping_bound(),
    "any noise, not damped": clipping_bound(damped=False),
    "concentrated": clipping_concentrated_bound(),
    "symmetric": symmetric_bound(),
    "second moment": second_moment_bound(),
    "bias": bias_bound(),
    "bias, sharper": bias_bound("sharper"),
    "bias, closed": bias_bound("closed"),
    "best b": optimal_micro_batch_size(),
}
POINTS = [
    {},
    {"probability": 1e-12, "batch_size": 2**20, "micro_batch_size": 1024},
    {"probability": 0.3, "coherence": 0.7, "norm_ratio": 500, "batch_size": 16},
    {"probability": 0.02, "micro_batch_size": 64, "coherence": 1, "norm_ratio": 0},
    {"initial_gap": 1e6, "smoothness": 1e-6, "steps": 1e9, "step_size": 1e-7, "sigma": 1e-6},
    {"micro_batch_size": 1, "batch_size": 10**6, "probability": 1e-6},
]


@pytest.mark.parametrize("changes", POINTS, ids=range(len(POINTS)))
def test_numbers_against_the_page_at_fifty_digits(changes):
    letters = (
        "initial_gap smoothness step_size steps batch_size micro_batch_size probability "
        "norm_ratio coherence sigma"
    )
    with mpmath.workdps(50):
        wanted = page(*(mpmath.mpf({**SETTING, **changes}[word]) for word in letters.split()))
    assert set(wanted) == set(OURS)
    for name, want in wanted.items():
        assert abs(evaluated(OURS[name], **changes) - want) <= ROUNDOFF * abs(want), name


def test_the_call_of_the_house_plan():
    value = sgd_bound().evaluate(
        initial_gap=1,
        smoothness=1,
        step_size=0.01,
        steps=1000,
        batch_size=64,
        probability=0.05,
        norm_ratio=20,
        sigma=1,
        coherence=0,
    )
    # 2/(.95 · .01 · 1000) + .01 (.95 + .05 · 400)/64/.95
    assert value == pytest.approx(2 / 9.5 + 0.01 * 20.95 / 64 / 0.95, rel=1e-15)


# --------------------------------------------- the descent argument, by SymPy


def descent(rate, loss, second_moment, weight=1):
    """The average X that Δ/T = η w (rate X − loss) − (η²L/2)(M₁ w X + M₀ w) allows."""
    gap, L, eta, T = symbols("initial_gap", "smoothness", "step_size", "steps")
    X = sympy.Symbol("X")
    gained = eta * weight * (rate * X - loss)
    lost = eta**2 * L / 2 * weight * (second_moment[0] * X + second_moment[1])
    (found,) = sympy.solve(sympy.Eq(gained - lost, gap / T), X)
    return found


def test_sharper_forms_are_what_the_descent_argument_gives():
    q, K_g, K_sigma, N_1, N_0, P_1, P_0 = symbols("q", "K_g", "K_sigma", "N_1", "N_0", "P_1", "P_0")
    M_1, M_0, f, s, stilde, clean = symbols("M_1", "M_0", "f", "s", "stilde", "lambda_0")
    sigma, weight, lam, rate = symbols("sigma", "mean_weight", "alignment", "progress_rate")
    loss = stilde**2 + clean * s**2
    cap = sympy.Rational(3, 4)
    expected = {
        sgd_bound("sharper"): descent(q, 0, (K_g, K_sigma * sigma**2)),
        clipping_bound("sharper"): descent(clean, loss, (P_1 / cap, P_0 / weight), weight),
        clipping_bound("sharper", damped=False): descent(
            clean, loss, (N_1 / cap, N_0 / cap), weight
        ),
        clipping_concentrated_bound("sharper"): descent(
            lam * 3 / 4, s**2 / 2 + f**2 / lam, (M_1, M_0)
        ),
        symmetric_bound("independent", "sharper"): descent(rate, 0, (M_1, M_0)),
    }
    for bound, found in expected.items():
        assert sympy.simplify(bound.expression - found) == 0, bound.name


@pytest.mark.parametrize("index", range(len(rates("plain"))))
def test_the_plain_condition_keeps_the_plain_denominator(index):
    """At the longest step that the plain form allows, both forms differ by the rounded κ only."""
    plain, sharper = rates("plain")[index], rates("sharper")[index]
    (eta,) = symbols("step_size")
    limit = plain.conditions[0].limit
    stilde, clean, s = symbols("stilde", "lambda_0", "s")
    rounding = {} if "any noise" not in plain.name else {s: stilde / sympy.sqrt(clean)}
    difference = (plain.expression - sharper.expression).subs(eta, limit).subs(rounding)
    assert sympy.simplify(difference) == 0


@given(values=random_settings)
@settings(max_examples=40)
def test_the_sharper_form_is_never_above_the_plain_form(values):
    for plain, sharper in zip(rates("plain"), rates("sharper"), strict=True):
        if allowed(plain, **values):
            assert allowed(sharper, **values)
            plain_value = evaluated(plain, **values)
            assert evaluated(sharper, **values) <= plain_value * (1 + ROUNDOFF), plain.name


@given(values=random_settings)
@settings(max_examples=40)
def test_without_damping_clipping_is_never_ahead_of_sgd(values):
    assert evaluated(clipping_bound(damped=False), **values) >= evaluated(sgd_bound(), **values)


# --------------------------------------------- Theorem 1 and every step bound, by enumeration
#
# Noise is along e: +σ√((1−π)/π) with probability π, else −σ√(π/(1−π)). Draggers live in a plane:
# the common direction h is its first axis, and o = ± the second one. So an example has four states,
# and a small step can be enumerated. Means over h are not needed: norms and inner products do not
# depend on its sign.


class Step:
    """One step of Algorithm 1 (or of SGD), enumerated."""

    def __init__(self, *, b, m, p, c, gamma, rare, r, sigma=1.0):
        self.b, self.m, self.p, self.r = b, m, p, r
        ups = sigma * math.sqrt((1 - rare) / rare), -sigma * math.sqrt(rare / (1 - rare))
        length = c * math.sqrt(r**2 + sigma**2)
        common, own = length * math.sqrt(gamma), length * math.sqrt(1 - gamma)
        examples = [
            ((r + ups[0], 0, 0), (1 - p) * rare),
            ((r + ups[1], 0, 0), (1 - p) * (1 - rare)),
            ((0, common, own), p / 2),
            ((0, common, -own), p / 2),
        ]
        batches = list(itertools.combinations_with_replacement(range(4), b))
        counts = np.array([[batch.count(state) for state in range(4)] for batch in batches])
        ways = [math.factorial(b) / math.prod(map(math.factorial, row)) for row in counts]
        self.X = counts @ np.array([vector for vector, _ in examples], float) / b
        self.prob = ways * np.prod(np.array([w for _, w in examples]) ** counts, axis=1)
        self.k = counts[:, 2:].sum(axis=1)
        self.benign = counts[:, :2] @ np.array([r + ups[0], r + ups[1]]) / b
        self.x = np.linalg.norm(self.X, axis=1)
        self.cos = np.divide(
            np.abs(self.benign), self.x, out=np.zeros(len(self.x)), where=self.x > 0
        )
        # All m-tuples of micro-batches.
        self.picks = np.array(list(itertools.product(range(len(batches)), repeat=m)))
        self.weights = np.prod(self.prob[self.picks], axis=1)
        self.norms = self.x[self.picks]

    def mean(self, values):
        return float(self.weights @ values)

    def moments(self, *, clip=True):
        """(A, M)."""
        vectors = self.X[self.picks]
        if clip:
            low = self.norms.min(axis=1, keepdims=True)
            factors = np.divide(
                low, self.norms, out=np.zeros_like(self.norms), where=self.norms > 0
            )
            vectors = factors[..., None] * vectors
        update = vectors.mean(axis=1)
        return self.mean(update[:, 0]), self.mean((update**2).sum(axis=1))

    def capped_threshold(self):
        others = self.norms[:, 1:].min(axis=1, initial=np.inf)
        return self.mean(np.minimum(others, 0.75 * self.r))

    def concentration(self):
        """(λ, λ̄, ς̄) of section 5.3."""
        rest = self.x**2 - self.benign**2
        floor = np.sqrt((1 - self.k / self.b) ** 2 + np.maximum(rest, 0) / self.r**2)
        smallest = np.minimum(1, floor)[self.picks].min(axis=1)
        alignment = self.mean(self.cos[self.picks][:, 0] * smallest)
        spreads = []
        for k in np.unique(self.k):
            here, weight = np.abs(self.benign[self.k == k]), self.prob[self.k == k]
            mean = np.average(here, weights=weight)
            spreads.append(np.average((here - mean) ** 2, weights=weight))
        return alignment, float(self.prob @ self.cos), math.sqrt(max(spreads))

    def values(self):
        """What the bounds on this step take."""
        alignment, cosine, spread = self.concentration()
        return {
            "capped_threshold": self.capped_threshold(),
            "aligned_share": float(self.prob @ (self.cos * (self.x >= 0.75 * self.r))),
            "alignment": alignment,
            "mean_cosine": cosine,
            "norm_spread": spread,
        }


GRID = [
    {"b": b, "m": m, "p": p, "c": c, "gamma": gamma, "rare": rare, "r": r}
    for (b, m) in ((1, 1), (1, 4), (2, 1), (2, 3), (3, 2))
    for p in (0.02, 0.3)
    for c in (0.3, 3.0, 20.0)
    for gamma in (0.0, 0.6)
    for rare in (0.05, 0.5, 0.9)
    for r in (0.1, 1.0, 5.0, 20.0)
]


def in_code_names(point):
    return {
        "batch_size": point["b"] * point["m"],
        "micro_batch_size": point["b"],
        "probability": point["p"],
        "norm_ratio": point["c"],
        "coherence": point["gamma"],
        "grad_norm": point["r"],
        "sigma": 1.0,
        "sigma_along": 1.0,
    }


@pytest.fixture(scope="module")
def steps():
    """Every step of the grid: its settings, its moments and what the bounds take, as arrays."""
    rows = []
    for point in GRID:
        step = Step(**point)
        progress, second_moment = step.moments()
        sgd_progress, sgd_second_moment = step.moments(clip=False)
        rows.append(
            {
                **in_code_names(point),
                **step.values(),
                "m": point["m"],
                "total": step.weights.sum(),
                "progress": progress,
                "second_moment": second_moment,
                "sgd_progress": sgd_progress,
                "sgd_second_moment": sgd_second_moment,
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def at(bound, steps):
    return bound.evaluate(**{name: steps[name] for name in bound.names})


def least_margin(larger, smaller):
    """The least of (larger − smaller)/scale; below 0 the claim is false somewhere."""
    return float(np.min((larger - smaller) / (np.abs(larger) + np.abs(smaller))))


def test_the_enumeration_adds_up(steps):
    np.testing.assert_allclose(steps["total"], 1, rtol=ROUNDOFF)


def test_sgd_has_exactly_the_moments_of_theorem_1(steps):
    B, p, c, r = (steps[x] for x in ("batch_size", "probability", "norm_ratio", "grad_norm"))
    q, chi = 1 - p, p / B + steps["coherence"] * p**2 * (1 - 1 / B)
    want = (q**2 + p * q / B + chi * c**2) * r**2 + q / B + chi * c**2
    np.testing.assert_allclose(steps["sgd_progress"], q * r, rtol=ROUNDOFF)
    np.testing.assert_allclose(steps["sgd_second_moment"], want, rtol=ROUNDOFF)


@pytest.mark.parametrize(
    "bound",
    [
        clipping_drift_bound(),
        clipping_drift_bound("aligned"),
        clipping_concentrated_drift_bound(),
        second_moment_bound(),
        second_moment_bound(averaging=True),
    ],
    ids=lambda bound: bound.name,
)
def test_step_bounds_hold_where_the_step_is_enumerated(steps, bound):
    if "averaging" in bound.name:  # for γ = 0
        steps = {name: values[steps["coherence"] == 0] for name, values in steps.items()}
    if bound.kind == "lower bound":
        assert least_margin(steps["progress"], at(bound, steps)) >= -ROUNDOFF
    else:
        assert least_margin(at(bound, steps), steps["second_moment"]) >= -ROUNDOFF


def weighted_second_moments(steps):
    """Right sides of M ≤ (ω/β)(N₁r² + N₀) and of M ≤ (ω/β)P₁r² + P₀."""
    b, p, r = (steps[x] for x in ("micro_batch_size", "probability", "grad_norm"))
    psi = (p / b + steps["coherence"] * p**2 * (1 - 1 / b)) * steps["norm_ratio"] ** 2
    weight, clean = steps["capped_threshold"] / (0.75 * r), (1 - p) ** b
    none, half = ((1 - x) ** (steps["m"] - 1) for x in (clean, clean / 2))
    return (
        weight * ((1 + psi) * r**2 + 1 / b + psi),
        weight * (2 + half * psi) * r**2 + 2 / b + none * psi * (1 + 32 / b),
    )


def test_the_weighted_second_moments_of_theorem_2(steps):
    for above in weighted_second_moments(steps):
        assert least_margin(above, steps["second_moment"]) >= -ROUNDOFF


def test_wrong_step_bounds_are_found_out(steps):
    b, p, r, c = (steps[x] for x in ("micro_batch_size", "probability", "grad_norm", "norm_ratio"))
    inverse = at(bias_bound(), steps) * (1 - p) ** b / 4
    without_clean_probability = steps["capped_threshold"] * (1 - (inverse + 1 / b) / r**2)
    estimate = {**steps, "alignment": at(alignment_estimate(), steps)}
    weighted = weighted_second_moments({**steps, "norm_ratio": 0 * c})[1]
    wrong = {
        "5.1 without λ₀": (steps["progress"], without_clean_probability),
        "5.3 with the estimate of λ": (
            steps["progress"],
            at(clipping_concentrated_drift_bound(), estimate),
        ),
        "5.4 with coherence": (
            at(second_moment_bound(averaging=True), steps),
            steps["second_moment"],
        ),
        "M without draggers": (r**2 + 1 / b, steps["second_moment"]),
        "the weighted M without draggers": (weighted, steps["second_moment"]),
    }
    for claim, (larger, smaller) in wrong.items():
        assert least_margin(larger, smaller) < -1e-3, claim


# --------------------------------------------- the drift bound's pointwise claim
#
# In the plane of e and g + ñ, with r = 1: e + ñ = (V, W), and D of length D across both.

BETA = 0.75
TOP = (2 + math.sqrt(2)) / 4


def clipped_progress(t, V, W, D, alpha):
    """⟨clip_t X, e⟩ for X = α(V, W) + D."""
    x = math.hypot(alpha * V, alpha * W, D)
    return alpha * V * min(1.0, t / x) if x > 0 else 0.0


lengths = st.floats(0, 3) | st.floats(0, 1e-3) | st.floats(0, 1e3)
signed = st.builds(lambda sign, size: sign * size, st.sampled_from([-1, 1]), lengths)


@given(t=lengths, V=signed, W=lengths, beta=st.floats(0.25, TOP))
@example(t=1.0, V=1 - 1 / (4 * 0.75), W=0.0, beta=0.75)
@example(t=1e-9, V=-1e-9, W=0.0, beta=0.75)
@settings(max_examples=200)
def test_the_claim_for_clean_micro_batches(t, V, W, beta):
    d2, mu = (V - 1) ** 2 + W**2, min(t, beta)
    # V − 1 loses 2^-53 to roundoff, which the claim multiplies by 4d at most.
    slack = 1e-14 * mu * (1 + d2)
    assert clipped_progress(t, V, W, 0.0, 1.0) >= mu * (1 - 2 * d2) - slack


@given(t=lengths, V=signed, W=lengths, D=lengths, alpha=st.floats(0, 1), beta=st.floats(0.25, 9))
@settings(max_examples=200)
def test_the_claims_for_other_micro_batches(t, V, W, D, alpha, beta):
    d2, mu = (V - 1) ** 2 + W**2, min(t, beta)
    got, slack = clipped_progress(t, V, W, D, alpha), 1e-14 * mu * (1 + d2)
    assert got >= -mu * d2 - slack
    x = math.hypot(alpha * V, alpha * W, D)
    aligned = alpha * math.hypot(V, W) / x if x >= beta else 0.0
    assert got >= mu * (aligned - 2 * d2) - slack


def test_the_claims_constants_cannot_be_improved():
    # More than 2 is lost to d² where the noise just turns a tiny gradient round …
    t, V = 1e-6, -1e-6
    assert clipped_progress(t, V, 0, 0, 1) < t * (1 - 1.99 * (1 - V) ** 2)
    # … with draggers, more than 1 …
    assert clipped_progress(t, V, 0, 1, 1) > -t * (1 - V) ** 2
    assert clipped_progress(t, V, 0, 0, 0.999) < -0.99 * t * (1 - V) ** 2
    # … and no cap above (2 + √2)/4 or, with draggers, below 1/4 will do.
    above = TOP + 0.01
    V = 1 - 1 / (4 * above)
    assert clipped_progress(above, V, 0, 0, 1) < above * (1 - 2 * (1 - V) ** 2)
    assert clipped_progress(1, -1, 0, 0, 1) < -0.24 * 4


def test_the_algebra_of_the_drift_bound():
    V, mu = symbols_of("V mu")
    gap = V - mu * (1 - 2 * (1 - V) ** 2)
    quadratic = sympy.Poly(gap, V)
    assert quadratic.all_coeffs() == [2 * mu, 1 - 4 * mu, mu]
    discriminant = sympy.discriminant(quadratic)
    assert sympy.expand(discriminant - (8 * mu**2 - 8 * mu + 1)) == 0
    ends = sympy.solve(discriminant, mu)
    assert set(ends) == {(2 - sympy.sqrt(2)) / 4, (2 + sympy.sqrt(2)) / 4}
    assert min(ends) < sympy.Rational(1, 4)  # below it, 1 − 4μ > 0: no negative coefficient
    assert sympy.Rational(1, 4) < theory.theorems._CAP < max(ends)
    assert sympy.factor((1 + V) ** 2 / 4 - V) == (V - 1) ** 2 / 4  # |V| ≤ (1 + |V|)²/4
    theta = sympy.Symbol("theta", real=True)
    one_less = (1 - sympy.cos(theta)) * (1 + sympy.cos(theta))  # ≥ 1 − cos θ where cos θ ≥ 0
    assert sympy.simplify(one_less - sympy.sin(theta) ** 2) == 0


def symbols_of(names):
    return sympy.symbols(names, positive=True)


def test_the_algebra_of_lemma_a():
    """The first route to the drift: min(t,y)(1 − cos θ) ≤ 2t'‖ñ‖²/(t'+r)², t' = min(t,r)."""
    t, y, r = symbols_of("t y r")
    z = sympy.Symbol("z", real=True)  # cos θ
    for low, short in itertools.product((t, y), (t, r)):
        left, right = low * (1 - z), 2 * short * (y**2 + r**2 - 2 * y * r * z) / (short + r) ** 2
        assert sympy.diff(right - left, z, 2) == 0  # linear: the ends of [−1, 1] decide
        at_one = sympy.simplify((right - left).subs(z, 1))
        assert sympy.simplify(at_one - 2 * short * (y - r) ** 2 / (short + r) ** 2) == 0
    at_minus_one = t * (y + r) ** 2 - y * (t + r) ** 2  # t ≤ r, y ≤ t
    assert sympy.expand(at_minus_one - (t - y) * (r**2 - t * y)) == 0
    assert sympy.factor((y + r) ** 2 - 4 * y * r) == (y - r) ** 2  # t > r
    assert sympy.factor((t + r) ** 2 - 4 * t * r) == (r - t) ** 2  # t'/(t'+r)² ≤ (r/4)/r²


@given(t=lengths, y=lengths, angle=st.floats(0, math.pi), r=st.floats(1e-3, 1e3))
@settings(max_examples=200)
def test_lemma_a(t, y, angle, r):
    z, short = math.cos(angle), min(t, r)
    noise = y**2 + r**2 - 2 * y * r * z
    right = 2 * short * noise / (short + r) ** 2
    slack = 1e-14 * (y + r) ** 2 * short / (short + r) ** 2  # roundoff of ‖ñ‖²
    assert min(t, y) * (1 - z) <= right + slack
    assert short / (short + r) ** 2 <= min(t, r / 4) / r**2 * (1 + ROUNDOFF)


# --------------------------------------------- the moments that the second-moment bounds start from


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_moments_of_a_micro_batch(b):
    """E α = q, E α² = q² + pq/b, E‖D‖² = ψc²(r² + σ²), and the sum that closes s̃²."""
    p, gamma = symbols_of("p gamma")
    q = 1 - p

    def mean(f):
        weights = [sympy.binomial(b, k) * p**k * q ** (b - k) for k in range(b + 1)]
        return sympy.expand(sum(w * f(sympy.Integer(k)) for k, w in enumerate(weights)))

    assert sympy.expand(mean(lambda k: 1 - k / b) - q) == 0
    assert sympy.expand(mean(lambda k: (1 - k / b) ** 2) - q**2 - p * q / b) == 0
    squared_length = mean(lambda k: (k + gamma * k * (k - 1)) / b**2)
    psi = p / b + gamma * p**2 * (1 - sympy.Rational(1, b))
    assert sympy.expand(squared_length - psi) == 0
    inverse = mean(lambda k: 1 / (b - k + 1))
    assert sympy.cancel(inverse - (1 - p ** (b + 1)) / ((b + 1) * q)) == 0


@given(values=random_settings)
@settings(max_examples=40)
def test_biases_are_in_order(values):
    sharper, plain, closed = (
        evaluated(bias_bound(form), **values) for form in ("sharper", "plain", "closed")
    )
    assert sharper <= plain * (1 + ROUNDOFF)
    assert plain <= closed * (1 + ROUNDOFF)


# --------------------------------------------- section 5.3, by SymPy


def test_the_algebra_of_the_concentrated_bound():
    q, r, s, alpha, lam, f, m = symbols_of("q r s alpha lambda f m")
    root = sympy.sqrt(q**2 * r**2 + q * s**2)
    assert sympy.simplify((root - q * r) - q * s**2 / (root + q * r)) == 0
    # √(q²r² + qs²) ≤ qr + s²/(2r)
    assert sympy.expand((q * r + s**2 / (2 * r)) ** 2 - root**2) == s**4 / (4 * r**2)
    # α√(r² + σ²/(b−k)) = √(α²r² + αs²) is concave in α
    curve = sympy.sqrt(alpha**2 * r**2 + alpha * s**2)
    bend = -(s**4) / (4 * (alpha**2 * r**2 + alpha * s**2) ** sympy.Rational(3, 2))
    assert sympy.simplify(sympy.diff(curve, alpha, 2) - bend) == 0
    # fr ≤ λr²/4 + f²/λ
    square = (sympy.sqrt(lam) * r / 2 - f / sympy.sqrt(lam)) ** 2
    assert sympy.expand(lam * r**2 / 4 + f**2 / lam - f * r - square) == 0
    # √(m−1) √(1 − 1/m) = (m−1)/√m for m > 1
    assert sympy.simplify((m - 1) * (1 - 1 / m) - (m - 1) ** 2 / m) == 0


@given(values=st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_samuelsons_inequality(values):
    z, m = np.array(values), len(values)
    assert z.min() >= z.mean() - math.sqrt(m - 1) * z.std() - 1e-13  # roundoff of ten numbers of 10


def test_samuelsons_inequality_is_an_equality_for_one_low_norm():
    z = np.array([0.0, 1, 1, 1, 1])
    assert z.min() == pytest.approx(z.mean() - 2 * z.std(), abs=1e-15)


# --------------------------------------------- Theorem 3


def test_the_algebra_of_theorem_3():
    z, h, tau, u, nu = sympy.symbols("z h tau u nu", positive=True)
    clipped = z * tau / sympy.sqrt(z**2 + h**2)
    slope = tau * h**2 / (z**2 + h**2) ** sympy.Rational(3, 2)
    assert sympy.simplify(sympy.diff(clipped, z) - slope) == 0
    # E (ν + rU)² = ν² + r²/3, and (1 + s)^(−3/2) is convex
    r = sympy.Symbol("r", positive=True)
    assert sympy.integrate((nu + r * u) ** 2 / 2, (u, -1, 1)) == nu**2 + r**2 / 3
    s = sympy.Symbol("s", positive=True)
    assert sympy.diff((1 + s) ** sympy.Rational(-3, 2), s, 2).is_positive


@pytest.mark.parametrize("r", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("c", [0.5, 4.0])
def test_the_identity_of_theorem_3(r, m, c):
    """A(r) = r E[α(1{x' ≤ τ} + 1{x' > τ} τh²/x'³)] for noise of ±1 along e, b = 1."""
    p = 0.2
    step = Step(b=1, m=m, p=p, c=c, gamma=0, rare=0.5, r=r)
    # b = 1: α is 1 for a benign example, whose h is 0, so the second case is 0. τ is the least of
    # the others' norms, and x' = |ν + rU|; over U, P(x' ≤ τ) is the share of an interval.
    total = 0.0
    for picks in itertools.product(range(len(step.x)), repeat=m - 1):
        tau = min((step.x[i] for i in picks), default=math.inf)
        weight = math.prod(step.prob[i] for i in picks)
        for nu in (-1.0, 1.0):
            low, high = max(-r, -tau - nu), min(r, tau - nu)
            total += weight * (1 - p) / 2 * max(0.0, high - low) / (2 * r)
    assert step.moments()[0] == pytest.approx(r * total, rel=ROUNDOFF)


@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_why_unimodality_matters(m):
    """±1 noise along e, b = 1, no draggers: A(r) = r 2^(1−m) for r < σ."""
    step = Step(b=1, m=m, p=0.0, c=0, gamma=0, rare=0.5, r=0.3)
    assert step.moments()[0] == pytest.approx(0.3 * 2.0 ** (1 - m), rel=1e-10)  # the mean cancels


# --------------------------------------------- tuned step sizes


@pytest.mark.parametrize("form", FORMS)
@given(values=random_settings)
@settings(max_examples=15)
def test_tuned_bounds_are_minima_over_the_step_size(form, values):
    for bound in rates(form):
        tuned = tuned_bound(bound)
        eta = evaluated(tuned_step_size(bound), **values)
        smallest = evaluated(tuned, **values)
        assert evaluated(bound, **{**values, "step_size": eta}) == pytest.approx(smallest, rel=1e-9)
        for factor in (0.5, 0.9, 1.1, 1.5):
            other = {**values, "step_size": eta * factor}
            if allowed(bound, **other):
                assert evaluated(bound, **other) >= smallest * (1 - ROUNDOFF), bound.name
        # The condition on the horizon says what the condition on the step size says.
        assert allowed(tuned, **values) == allowed(bound, **{**values, "step_size": eta})


def test_sharper_tuned_bounds_have_no_conditions():
    assert all(tuned_bound(bound).conditions == () for bound in rates("sharper"))
    assert all(len(tuned_bound(bound).conditions) == 1 for bound in rates("plain"))


@given(values=random_settings)
@settings(max_examples=40)
def test_tuning_the_sharper_form_is_never_worse(values):
    for plain, sharper in zip(rates("plain"), rates("sharper"), strict=True):
        if allowed(tuned_bound(plain), **values):
            smaller = evaluated(tuned_bound(sharper), **values)
            assert smaller <= evaluated(tuned_bound(plain), **values) * (1 + ROUNDOFF)


def test_a_numerical_minimiser_agrees():
    for bound in [*rates("plain"), *rates("sharper")]:
        top = evaluated(
            Bound(name="top", kind="limit", source="", expression=bound.conditions[0].limit)
        )
        found = optimize.minimize_scalar(
            lambda x, bound=bound: evaluated(bound, step_size=math.exp(x)),
            bounds=(math.log(top) - 20, math.log(top) + (10 if "plain" in bound.name else 0)),
            method="bounded",
            options={"xatol": 1e-10},
        )
        tuned = evaluated(tuned_bound(bound))
        assert found.fun >= tuned * (1 - ROUNDOFF)


def test_bounds_without_a_best_step_size_are_refused():
    for text in ("Delta/T", "Delta*eta", "Delta/(eta*T) + eta**3", "exp(eta) + 1/eta"):
        with pytest.raises(InvalidArgument, match="no best step size in closed form"):
            tuned_step_size(formula_bound(text))


def test_conditions_on_other_quantities_stay_when_a_bound_is_tuned():
    (ratio,) = symbols("norm_ratio")
    other = Condition(name="sigma", comparison=">=", limit=ratio, sentence="so it was assumed")
    bound = replace(sgd_bound(), conditions=(*sgd_bound().conditions, other))
    assert tuned_bound(bound).conditions == (*tuned_bound(sgd_bound()).conditions, other)
    assert allowed(bound, sigma=30.0)
    assert not allowed(bound, sigma=10.0)
    assert "σ >= c" in str(bound)


def test_a_users_bound_can_be_tuned():
    bound = formula_bound("2*Delta/(eta*T) + eta*L*sigma**2/B")
    assert (
        sympy.simplify(tuned_bound(bound).expression - tuned_bound(clean_sgd_bound()).expression)
        == 0
    )


# --------------------------------------------- the sweet spot of the closed bias


def test_the_best_micro_batch_size():
    (q,) = symbols("q")
    found = optimal_micro_batch_size()
    assert sympy.simplify(found.expression - (1 / sympy.log(1 / q) - 1)) == 0
    for p in (0.3, 0.1, 0.05, 0.01, 1e-3):
        best = found.evaluate(probability=p)
        sizes = np.arange(1, round(4 / p))
        curve = bias_bound("closed").evaluate(micro_batch_size=sizes, probability=p, sigma=1)
        assert abs(sizes[curve.argmin()] - best) < 1  # the best whole number is next to it
    assert found.evaluate(probability=1e-12) == pytest.approx(1e12, rel=1e-11)  # 1/p − 3/2
    with pytest.raises(InvalidArgument, match="must be finite"):
        found.evaluate(probability=0)


# --------------------------------------------- Table 1 and the crossover


def test_the_rows_of_table_1():
    rows = table1().rows
    assert [row.name for row in rows] == [
        "SGD without draggers",
        "SGD, incoherent draggers",
        "SGD with draggers",
        "clipping, any noise",
        "clipping, concentrated norms",
        "clipping, symmetric noise",
        "SGD, tilted draggers",
        "clipping, tilted draggers, Gaussian noise",
    ]
    (T,) = symbols("steps")
    assert all(row.order == 1 / sympy.sqrt(T) for row in rows)
    assert [row.bias.expression == 0 for row in rows] == [
        *(True, True, True, False, False, True),
        *(False, False),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_constants_and_biases_are_the_leading_terms(form):
    for row in table1(form).rows:
        bias, constant = evaluated(row.bias), evaluated(row.constant)
        steps = 1e14
        # What is smaller is of order 1/T: 1e-7 of the constant's term, times settings of size 10².
        rest = (evaluated(row.tuned, steps=steps) - bias) * math.sqrt(steps)
        assert rest == pytest.approx(constant, rel=1e-4)


def test_draggers_multiply_sgds_constant_by_the_factor_of_the_page():
    clean, incoherent = (evaluated(row.constant) for row in table1().rows[:2])
    p, c = SETTING["probability"], SETTING["norm_ratio"]
    assert incoherent / clean == pytest.approx(math.sqrt(1 - p + p * c**2) / (1 - p), rel=ROUNDOFF)
    coherent = table1().rows[2].constant
    assert evaluated(coherent, batch_size=2**40, coherence=0.5) > 0.9 * evaluated(
        coherent, batch_size=2**20, coherence=0.5
    )


def test_the_table_in_numbers():
    names = set(table1().names)
    full = {name: value for name, value in SETTING.items() if name in names}
    rows = table1().evaluate(**full)
    assert all(row["missing"] == [] for row in rows)
    for row, source in zip(rows, table1().rows, strict=True):
        assert row["bound"] == evaluated(source)
        assert row["bound_holds"] == allowed(source)
        assert row["tuned_bound"] == evaluated(source.tuned)
        assert row["tuned_holds"] == allowed(source.tuned)
        assert row["tuned_step_size"] == evaluated(tuned_step_size(source))
    assert json.loads(json.dumps(rows)) == rows


def test_the_table_leaves_open_what_it_was_not_given():
    rows = table1().evaluate(initial_gap=1, smoothness=1, sigma=1, batch_size=64, steps=100)
    assert rows[0]["tuned_bound"] is not None
    assert rows[0]["bound"] is None
    assert rows[0]["missing"] == ["step_size"]
    assert "mean_weight" in rows[3]["missing"]
    with pytest.raises(InvalidArgument, match=r"Table 1 takes .*; unknown: pi"):
        table1().evaluate(pi=3)
    with pytest.raises(InvalidArgument, match="sigma=-1 must be at least 0"):
        table1().evaluate(sigma=-1)


def test_the_table_survives_numbers_too_large_for_a_float():
    full = {name: value for name, value in SETTING.items() if name in table1().names}
    vacuous = {"probability": 0.5, "micro_batch_size": 2**20, "batch_size": 2**21}
    rows = table1().evaluate(**{**full, **vacuous})
    assert rows[3]["bound"] is None
    assert rows[3]["bound_holds"] is False
    assert rows[2]["bound"] is not None


def test_the_bounds_cross_at_the_crossover():
    setting = {name: SETTING[name] for name in ("smoothness", "sigma", "mean_weight")}
    setting |= {"initial_gap": 100, "batch_size": 64, "micro_batch_size": 4, "probability": 0.02}
    setting |= {"norm_ratio": 500, "coherence": 0}
    found = crossover(**setting)
    assert found.allowed is True
    for factor, sign in ((0.5, -1), (1, 0), (2, 1)):
        values = {**setting, "steps": found.horizon * factor}
        ahead = evaluated(tuned_bound(clipping_bound()), **values) - evaluated(
            sgd_tuned_bound(), **values
        )
        assert np.sign(ahead) == sign or (sign == 0 and abs(ahead) < 1e-9)
    assert found.reason.startswith("clipping's bound is the smaller one below ")


def test_when_they_never_cross():
    weak = {**{name: SETTING[name] for name in ("smoothness", "sigma", "mean_weight")}}
    weak |= {"initial_gap": 1, "batch_size": 64, "micro_batch_size": 4, "probability": 0.02}
    weak |= {"norm_ratio": 1, "coherence": 0}
    assert crossover(**weak) == theory.Crossover(
        horizon=None, reason="never: SGD's bound is the smaller one at every horizon"
    )
    symmetric = {name: value for name, value in weak.items() if name != "mean_weight"}
    strong = crossover(symmetric_bound(), **{**symmetric, "norm_ratio": 500}, progress_rate=0.9)
    assert strong.reason == "never: clipping's bound is the smaller one at every horizon"
    same = {name: weak[name] for name in sgd_bound().names if name in weak}
    assert "equal" in crossover(sgd_bound(), **same).reason
    with pytest.raises(InvalidArgument, match="use its plain form"):
        crossover(clipping_bound("sharper"), **weak)
    with pytest.raises(InvalidArgument, match=r"the crossover takes .*; missing: sigma"):
        crossover(**{name: value for name, value in weak.items() if name != "sigma"})
    with pytest.raises(InvalidArgument, match="takes numbers, not arrays"):
        crossover(**{**weak, "sigma": [1, 2]})


def test_a_crossover_too_early_for_its_step_sizes_says_so():
    setting = {"initial_gap": 100, "smoothness": 1, "sigma": 1, "batch_size": 64}
    setting |= {"micro_batch_size": 4, "probability": 0.02, "norm_ratio": 100, "coherence": 1}
    found = crossover(**setting, mean_weight=0.7)
    assert found.allowed is False
    assert "longer than its theorem allows" in found.reason


# --------------------------------------------- limits and monotonicity


@pytest.mark.parametrize("form", FORMS)
def test_without_draggers_theorem_1_is_clean_sgd(form):
    clean = evaluated(clean_sgd_bound(form))
    assert evaluated(sgd_bound(form), probability=0) == pytest.approx(clean, rel=ROUNDOFF)
    nearly = evaluated(sgd_bound(form), probability=1e-12)
    assert nearly == pytest.approx(clean, rel=1e-8)  # a share of 1e-12 · c² = 4e-10


def test_one_micro_batch_has_no_shortfall():
    concentrated = evaluated(clipping_concentrated_bound(), batch_size=8)
    assert concentrated == pytest.approx(
        evaluated(clipping_concentrated_bound(), batch_size=8, norm_spread=0), rel=ROUNDOFF
    )


def test_coherence_keeps_sgds_noise_and_large_batches_do_not():
    big = {"batch_size": 10**9, "step_size": 0.1, "steps": 1e12}
    assert evaluated(sgd_bound(), **big, coherence=0) < 1e-6
    p, c = SETTING["probability"], SETTING["norm_ratio"]
    kept = 0.1 * 0.5 * p**2 * c**2 / (1 - p)
    assert evaluated(sgd_bound(), **big, coherence=0.5) == pytest.approx(kept, rel=1e-6)


RISING = ("initial_gap", "sigma", "norm_ratio", "coherence", "probability")
FALLING = ("steps", "mean_weight", "alignment", "progress_rate", "shortest_benign_share")


@given(values=random_settings, factor=st.floats(1.01, 2))
@settings(max_examples=20)
def test_bounds_rise_and_fall_with_what_they_should(values, factor):
    for bound in rates("plain"):
        now = evaluated(bound, **values)
        for name in set(bound.names) & {*RISING, *FALLING}:
            if bound.name.startswith("clipping") and name == "probability":
                continue  # more draggers: fewer clean examples, also less noise in the mean
            moved = {**values, name: values[name] * factor}
            try:
                then = evaluated(bound, **moved)
            except InvalidArgument:  # beyond 1, say
                continue
            sign = 1 if name in RISING else -1
            assert sign * (then - now) >= -ROUNDOFF * now, (bound.name, name)


@given(values=random_settings, loss=st.floats(0.1, 10), length=st.floats(0.1, 10))
@settings(max_examples=30)
def test_bounds_do_not_depend_on_units(values, loss, length):
    """Loss in other units, and the parameters' lengths: ‖g‖² has units of (loss/length)²."""
    other = {
        **values,
        "initial_gap": values["initial_gap"] * loss,
        "smoothness": values["smoothness"] * loss / length**2,
        "step_size": values["step_size"] * length**2 / loss,
        "sigma": values["sigma"] * loss / length,
        "sigma_along": values["sigma_along"] * loss / length,
        "norm_spread": values["norm_spread"] * loss / length,
    }
    for form in FORMS:
        for bound in rates(form):
            if allowed(bound, **values):
                scaled = evaluated(bound, **values) * (loss / length) ** 2
                # The sharper denominator may be a small difference; then digits are lost.
                assert evaluated(bound, **other) == pytest.approx(scaled, rel=1e-6)


# --------------------------------------------- the other formulas


def test_the_norm_ratio_of_a_micro_batch():
    ratio = micro_batch_norm_ratio()
    few = {"micro_batch_size": 16, "norm_ratio": 8, "coherence": 0, "dragger_count": 1}
    noisy = ratio.evaluate(**few, grad_norm=1e-6, sigma=1)
    assert noisy == pytest.approx(8 / math.sqrt(15), rel=1e-9)  # c/√(b−1)
    signal = ratio.evaluate(**few, grad_norm=1, sigma=0.5)
    assert signal == pytest.approx(8 * math.sqrt(1.25) / math.sqrt(15**2 + 15 / 4), rel=ROUNDOFF)


@pytest.mark.parametrize("b", [1, 2, 10, 300])
@pytest.mark.parametrize("gamma", [0, 0.7])
def test_the_alignment_estimate_is_its_sum(b, gamma):
    p, c = 0.15, 2.5
    with mpmath.workdps(50):
        q = 1 - mpmath.mpf(p)
        want = sum(
            mpmath.binomial(b, k)
            * mpmath.mpf(p) ** k
            * q ** (b - k)
            / mpmath.sqrt(1 + (k + mpmath.mpf(gamma) * k * (k - 1)) * c**2 / (b - k))
            for k in range(b)
        )
    got = alignment_estimate().evaluate(
        micro_batch_size=b, probability=p, norm_ratio=c, coherence=gamma
    )
    assert got == pytest.approx(float(want), rel=ROUNDOFF)


def test_the_norm_spread():
    assert norm_spread_bound().evaluate(sigma=2, micro_batch_size=4) == 1
    assert (
        norm_spread_bound(gaussian=True).evaluate(sigma=2, micro_batch_size=4, benign_dim=16)
        == 0.25
    )


# --------------------------------------------- Bounds as objects


EVERY = [
    *rates("plain"),
    *rates("sharper"),
    *map(tuned_bound, rates("plain")),
    *map(tuned_bound, rates("sharper")),
    clipping_drift_bound(),
    clipping_drift_bound("aligned"),
    clipping_concentrated_drift_bound(),
    second_moment_bound(),
    second_moment_bound(averaging=True),
    alignment_estimate(),
    norm_spread_bound(),
    norm_spread_bound(gaussian=True),
    *(bias_bound(form) for form in ("plain", "sharper", "closed")),
    theory.tilted_sgd_lower_bound(),
    *(theory.tilted_sgd_bound(form) for form in FORMS),
    *(theory.tilted_clipping_bound(f, noise=x) for f in FORMS for x in ("Gaussian", "any")),
    *(theory.tilted_clipping_drift_bound(noise) for noise in ("Gaussian", "any")),
    theory.tilted_threshold_drift_bound(),
    *map(theory.tilted_level, ("SGD", "clipping", "threshold", "clipping, any noise")),
    theory.tilted_level_estimate(),
]


def test_every_bound_says_what_it_is():
    for bound in EVERY:
        assert bound.kind in theory.bound.KINDS
        assert bound.assumptions
        assert bound.source.startswith("theory page, section")
        assert "[Wang2024]" not in bound.source or "not available" in bound.source
        assert set(bound.names) <= set(QUANTITIES)
        assert all(condition.sentence for condition in bound.conditions)


def test_the_estimate_is_an_estimate():
    assert alignment_estimate().kind == "estimate"
    assert [bias_bound(form).kind for form in ("plain", "closed")] == ["limit", "limit"]
    assert clipping_drift_bound().kind == "lower bound"
    assert clipping_bound().subject is Subject.WEIGHTED_GRADIENT


def test_bounds_compare_by_content_and_survive_pickling():
    for bound in EVERY:
        again = pickle.loads(pickle.dumps(bound))
        assert again == bound
        assert hash(again) == hash(bound)
    assert sgd_bound() == sgd_bound()
    assert sgd_bound() != sgd_bound("sharper")


def test_latex_is_balanced_and_complete():
    for thing in [*EVERY, *(row.constant for row in table1().rows), table1(), table1("sharper")]:
        for text in (thing.latex(), thing._repr_latex_()):
            assert text.count("{") == text.count("}")
            assert text.count(r"\left") == text.count(r"\right")
            assert text.count(r"\begin") == text.count(r"\end")
    assert r"K_{\sigma} = " in sgd_bound()._repr_latex_()
    assert r"\text{if } \eta \leq" in sgd_bound()._repr_latex_()


def test_the_table_prints_everywhere():
    html, text = table1()._repr_html_(), str(table1())
    for row in table1().rows:
        assert row.name in html
        assert row.name in text
    assert html.count("<tr>") == html.count("</tr>") == 9
    assert "t<T" not in html
    assert "λ₀ = q**b" in text


def condition(*, name="sigma", comparison="<"):
    return Condition(name=name, comparison=comparison, limit=sympy.S.One, sentence="")


def test_wrong_words_are_refused():
    for call, words in [
        (lambda: sgd_bound("best"), "form='best' must be one of 'plain', 'sharper'"),
        (lambda: symmetric_bound("even"), "part='even' must be one of"),
        (lambda: bias_bound("open"), "form='open' must be one of"),
        (lambda: clipping_drift_bound("sharper"), "form='sharper' must be one of"),
        (lambda: condition(name="pi"), "name='pi' must be one of 'initial_gap', "),
        (lambda: condition(comparison=">"), "comparison='>' must be one of '<', '<=', '>='"),
    ]:
        with pytest.raises(InvalidArgument, match=words):
            call()


def test_holds_broadcasts():
    names = sgd_bound().names
    holds = sgd_bound().holds(
        **{**{name: SETTING[name] for name in names}, "step_size": [[0.1], [5.0]], "sigma": [1, 2]}
    )
    np.testing.assert_array_equal(holds, [[True, True], [False, False]])
    assert sgd_bound().holds(**{name: SETTING[name] for name in names}) is True
    with pytest.raises(InvalidArgument, match="missing: step_size"):
        sgd_bound().holds(**{name: SETTING[name] for name in names if name != "step_size"})
