"""The bounds: every step of their proofs, by SymPy, by enumeration and by random search.

Nothing here is taken from the bounds themselves: the theory page's formulas are typed again, in
plain Python or mpmath, and what is proved about a step is compared with the step, enumerated.
"""

import itertools
import json
import math
import pickle

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import optimize

from mbsim.errors import InvalidArgument
from mbsim.theory import bounds
from mbsim.theory.bounds import (
    Bound,
    Row,
    Subject,
    alignment_estimate,
    bias_bound,
    clean_sgd_bound,
    clipping_bound,
    clipping_concentrated_bound,
    clipping_concentrated_drift_bound,
    clipping_drift_bound,
    crossover,
    micro_batch_norm_ratio,
    norm_spread_bound,
    optimal_micro_batch_size,
    second_moment_bound,
    sgd_bound,
    sgd_tuned_bound,
    symmetric_bound,
    table1,
    tuned_bound,
    tuned_step_size,
)
from mbsim.theory.formula import QUANTITIES, formula_bound, symbols

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
}


def evaluated(formula, **changes):
    values = {**SETTING, **changes}
    return formula.evaluate(**{name: values[name] for name in formula.names})


def allowed(bound, **changes):
    values = {**SETTING, **changes}
    return bound.holds(**{name: values[name] for name in bound.names})


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


def page(Delta, L, eta, T, B, b, p, c, g, sigma):  # noqa: N803 (the letters of the page)
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


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("changes", POINTS, ids=range(len(POINTS)))
def test_numbers_against_the_page_at_fifty_digits(name, changes):
    letters = (
        "initial_gap smoothness step_size steps batch_size micro_batch_size probability "
        "norm_ratio coherence sigma"
    )
    with mpmath.workdps(50):
        want = page(*(mpmath.mpf({**SETTING, **changes}[word]) for word in letters.split()))[name]
    assert abs(evaluated(OURS[name], **changes) - want) <= 1e-12 * abs(want)


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
    limit = plain.conditions[0].relation.rhs
    stilde, clean, s = symbols("stilde", "lambda_0", "s")
    rounding = {} if "any noise" not in plain.name else {s: stilde / sympy.sqrt(clean)}
    difference = (plain.expression - sharper.expression).subs(eta, limit).subs(rounding)
    assert sympy.simplify(difference) == 0


@given(values=random_settings)
@settings(max_examples=60)
def test_the_sharper_form_is_never_above_the_plain_form(values):
    for plain, sharper in zip(rates("plain"), rates("sharper"), strict=True):
        if allowed(plain, **values):
            assert allowed(sharper, **values)
            plain_value = evaluated(plain, **values)
            assert evaluated(sharper, **values) <= plain_value * (1 + ROUNDOFF), plain.name


@given(values=random_settings)
@settings(max_examples=60)
def test_without_damping_clipping_is_never_ahead_of_sgd(values):
    assert evaluated(clipping_bound(damped=False), **values) >= evaluated(sgd_bound(), **values)


# --------------------------------------------- Theorem 1 and every step bound, by enumeration
#
# Noise is along e: +σ√((1−π)/π) with probability π, else −σ√(π/(1−π)). Draggers live in a plane: the
# common direction h is its first axis, and o = ± the second one. So an example has four states and
# a small step can be enumerated. Means over h are not needed: norms and inner products do not
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
    return [(point, Step(**point)) for point in GRID]


def test_the_enumeration_adds_up(steps):
    for _, step in steps[:: len(steps) // 20]:
        assert step.weights.sum() == pytest.approx(1, rel=ROUNDOFF)


def test_sgd_has_exactly_the_moments_of_theorem_1(steps):
    K_g, K_sigma, q, p, B, c, gamma = sympy.symbols("K_g K_sigma q p B c gamma", positive=True)
    del K_g, K_sigma, q, p, B, c, gamma
    for point, step in steps:
        B, p, q = point["b"] * point["m"], point["p"], 1 - point["p"]
        chi = p / B + point["gamma"] * p**2 * (1 - 1 / B)
        progress, second = step.moments(clip=False)
        want = (q**2 + p * q / B + chi * point["c"] ** 2) * point["r"] ** 2 + (
            q / B + chi * point["c"] ** 2
        )
        assert progress == pytest.approx(q * point["r"], rel=ROUNDOFF)
        assert second == pytest.approx(want, rel=ROUNDOFF)


def least_margin(steps, right, left):
    """The least of (left − right)/scale over the grid; below 0 the claim left ≥ right is false."""
    margins = []
    for point, step in steps:
        values = {**in_code_names(point), **step.values()}
        upper, lower = left(step, values), right(step, values)
        margins.append((upper - lower) / (abs(upper) + abs(lower) + 1e-300))
    return min(margins)


def at(bound):
    return lambda _, values: bound.evaluate(**{name: values[name] for name in bound.names})


def progress(step, _):
    return step.moments()[0]


def second_moment(step, _):
    return step.moments()[1]


STEP_CLAIMS = {
    "5.1": (at(clipping_drift_bound()), progress),
    "5.1, aligned": (at(clipping_drift_bound("aligned")), progress),
    "5.3": (at(clipping_concentrated_drift_bound()), progress),
    "M, 5.3": (second_moment, at(second_moment_bound())),
}


@pytest.mark.parametrize("claim", STEP_CLAIMS)
def test_step_bounds_hold_where_the_step_is_enumerated(steps, claim):
    assert least_margin(steps, *STEP_CLAIMS[claim]) >= -ROUNDOFF


def test_averaging_holds_without_coherence(steps):
    incoherent = [(point, step) for point, step in steps if point["gamma"] == 0]
    bound = at(second_moment_bound(averaging=True))
    assert least_margin(incoherent, second_moment, bound) >= -ROUNDOFF


@pytest.mark.parametrize("damped", [False, True])
def test_the_weighted_second_moment_of_theorem_2(steps, damped):
    """M ≤ (ω/β)(N₁r² + N₀), and M ≤ (ω/β)P₁r² + P₀."""

    def above(step, values):
        r, b, p, c = (
            values[x] for x in ("grad_norm", "micro_batch_size", "probability", "norm_ratio")
        )
        psi = (p / b + values["coherence"] * p**2 * (1 - 1 / b)) * c**2
        weight, clean = values["capped_threshold"] / (0.75 * r), (1 - p) ** b
        if not damped:
            return weight * ((1 + psi) * r**2 + 1 / b + psi)
        none, half = ((1 - x) ** (step.m - 1) for x in (clean, clean / 2))
        return weight * (2 + half * psi) * r**2 + 2 / b + none * psi * (1 + 32 / b)

    assert least_margin(steps, second_moment, above) >= -ROUNDOFF


def without_clean_probability(_, values):
    b, p, r = (values[x] for x in ("micro_batch_size", "probability", "grad_norm"))
    inverse = sum(math.comb(b, k) * p**k * (1 - p) ** (b - k) / (b - k) for k in range(b))
    return values["capped_threshold"] * (1 - (inverse + 1 / b) / r**2)


def with_estimated_alignment(_, values):
    names = alignment_estimate().names
    estimate = alignment_estimate().evaluate(**{name: values[name] for name in names})
    return at(clipping_concentrated_drift_bound())(_, {**values, "alignment": estimate})


def half_the_loss(_, values):
    full, r = at(clipping_drift_bound()), values["grad_norm"]
    none = values["capped_threshold"] * (1 - values["probability"]) ** values["micro_batch_size"]
    del r
    return none - (none - full(_, values)) / 2


WRONG_CLAIMS = {
    "5.1 without λ₀": (without_clean_probability, progress),
    "5.1 with half of κ": (half_the_loss, progress),
    "5.3 with the estimate of λ": (with_estimated_alignment, progress),
    "M ≤ r² + s²": (
        second_moment,
        lambda _, values: values["grad_norm"] ** 2 + 1 / values["micro_batch_size"],
    ),
    "averaging with coherence": (second_moment, at(second_moment_bound(averaging=True))),
}


@pytest.mark.parametrize("claim", WRONG_CLAIMS)
def test_wrong_step_bounds_are_found_out(steps, claim):
    assert least_margin(steps, *WRONG_CLAIMS[claim]) < -1e-3
