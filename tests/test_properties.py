"""The theory's properties on random problems: limits, units, certificates, bounds, sweet spot.

What is compared is proved, in the comment of its test or on the theory page; errors of the drift
are those that it states itself.
"""

import functools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

import mbsim
from mbsim import theory
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, TrimmedNorm, UnitNorm
from mbsim.drifts.drift import drift
from mbsim.extra.hypothesis import (
    batch_sizes,
    bound_values,
    draggers,
    gradient_batches,
    losses,
    micro_batch_sizes,
    noises,
    problems,
    rules,
)
from mbsim.problems.noise import Gaussian, TwoPoint
from mbsim.theory import (
    Formula,
    bias_bound,
    clean_sgd_bound,
    clipping_bound,
    clipping_concentrated_bound,
    clipping_concentrated_drift_bound,
    clipping_drift_bound,
    optimal_micro_batch_size,
    second_moment_bound,
    sgd_bound,
    sgd_tuned_bound,
    symmetric_bound,
    tuned_bound,
    tuned_step_size,
)

# Two routes through some tens of roundings of 1e-16 each.
ROUNDOFF = 1e-12
# Where a drift is sampled, a comparison is wrong by chance once in a million times.
RATE = 1e-6

# ------------------------------------------------------------------------- settings of drifts

scales = st.floats(1 / 16, 16)
# Laws that the drift integrates, and quickly: Gaussian, and two points with a Gaussian part.
mixed = st.builds(
    TwoPoint, sigma=scales, rare=st.floats(0.05, 0.95), isotropic_share=st.floats(0.25, 0.75)
)
integrated = noises(laws=[Gaussian]) | mixed
symmetric = noises(laws=[Gaussian]) | st.builds(
    TwoPoint, sigma=scales, rare=st.just(0.5), isotropic_share=st.floats(0.25, 0.75)
)
splits = st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([2, 3, 5]))  # (b, m)
norms = st.floats(1 / 16, 8)
few = settings(max_examples=12, deadline=None)


def clip(b, rule=None):
    return mbsim.MicroBatchClipping(b, rule=rule or SmallestNorm())


def changed(problem, **parts):
    """The problem with other parts."""
    names = ("loss", "noise", "draggers", "benign_dim", "start")
    return mbsim.Problem(**{name: getattr(problem, name) for name in names} | parts)


def with_draggers(problem, **numbers):
    names = ("probability", "norm_ratio", "coherence")
    old = {name: getattr(problem.draggers, name) for name in names}
    return changed(problem, draggers=mbsim.Draggers(**old | numbers))


def clean(problem):
    return changed(problem, draggers=None)


def step(problem, b, m, r):
    """A and M of Algorithm 1 at r, each with the error to allow for."""
    found = drift(problem, clip(b), batch_size=b * m, draws=2**16).at(r)
    quantile = -special.stdtrit(found.df, RATE / 2) if np.isfinite(found.df).all() else 0.0

    def error(name):
        return float(
            getattr(found, f"{name}_numerical_error")
            + quantile * getattr(found, f"{name}_standard_error")
            + ROUNDOFF * math.sqrt(found.second_moment)
        )

    names = ("progress", "second_moment")
    return [(float(getattr(found, name)), error(name)) for name in names]


def theorem_1(problem, batch, r):
    """A and M of SGD, as the theory page has them in section 4."""
    p, c, gamma = (
        getattr(problem.draggers, name) for name in ("probability", "norm_ratio", "coherence")
    )
    q, chi = 1 - p, p / batch + gamma * p**2 * (1 - 1 / batch)
    k_g, k_sigma = q**2 + p * q / batch + chi * c**2, q / batch + chi * c**2
    return q * r, k_g * r**2 + k_sigma * problem.noise.sigma**2


# ------------------------------------------------------------------------- limits of the drift


@given(problem=problems(), batch=batch_sizes(), r=norms, q=st.floats(0, 1), data=st.data())
def test_one_micro_batch_and_no_clipping_are_theorem_1(problem, batch, r, q, data):
    size = data.draw(micro_batch_sizes(batch))
    methods = (clip(batch), clip(batch, QuantileNorm(q)), clip(size, NoClipping()), mbsim.SGD())
    for method in methods:
        found = drift(problem, method, batch_size=batch).at(r)
        expected = theorem_1(problem, batch, r)
        assert found.progress == pytest.approx(expected[0], rel=ROUNDOFF)
        assert found.second_moment == pytest.approx(expected[1], rel=ROUNDOFF)


some_draggers = draggers(probability=st.floats(0.05, 0.5), norm_ratio=st.floats(0.25, 100))
with_some = problems(noise=integrated, draggers=some_draggers)


@given(problem=with_some, split=splits, r=norms, exponent=st.floats(0.5, 12))
@few
def test_few_draggers_change_little(problem, split, r, exponent):
    """p → 0. With probability q^B a step has no draggers, and is one of the clean problem. In any
    other ‖u‖² ≤ mean ‖X_j‖² ≤ mean ‖x_i‖², whose mean given who is a dragger is at most
    (r² + σ²) max(1, c²); and so it is in the clean problem. So |A_p − A_0| ≤ (1 − q^B)(…) with the
    roots of both, |M_p − M_0| with the larger.
    """
    b, m = split
    p, c = 10.0**-exponent, problem.draggers.norm_ratio
    square = (r**2 + problem.noise.sigma**2) * max(1, c**2)
    some = -math.expm1(b * m * math.log1p(-p))
    one = step(with_draggers(problem, probability=p), b, m, r)
    other = step(clean(problem), b, m, r)
    for (x, e), (y, f), size in zip(one, other, (2 * math.sqrt(square), square), strict=True):
        assert abs(x - y) <= some * size + e + f


with_noise = problems(noise=noises(laws=[Gaussian], sigma=scales) | mixed, draggers=some_draggers)


@given(problem=with_noise, split=splits, r=norms, exponent=st.floats(-1, 9))
@few
def test_short_draggers_are_like_gradients_of_0(problem, split, r, exponent):
    """c → 0, which is c = 0 and not p = 0: examples without a gradient. A micro-batch moves by D,
    E‖D‖² = ψc²(r² + σ²), and a step by (1/m) Σ‖D_j‖ + max‖D_j‖ (a projection on a ball), so by
    κ = (1 + √m) √(E‖D‖²) in the root mean square.
    """
    b, m = split
    p, gamma, c = problem.draggers.probability, problem.draggers.coherence, 10.0**-exponent
    psi = p / b + gamma * p**2 * (1 - 1 / b)
    kappa = (1 + math.sqrt(m)) * c * math.sqrt(psi) * math.hypot(r, problem.noise.sigma)
    one, other = (step(with_draggers(problem, norm_ratio=x), b, m, r) for x in (c, 0.0))
    allowed = (kappa, kappa * (2 * math.sqrt(other[1][0]) + kappa))
    for (x, e), (y, f), size in zip(one, other, allowed, strict=True):
        assert abs(x - y) <= size + e + f


def test_short_draggers_without_noise():
    """The same where nothing but a few draggers decides: E‖D‖² = 10^-6/6 and κ = 0.0014."""
    problem = mbsim.Problem(
        loss=mbsim.losses.LogCosh(6),
        noise=Gaussian(sigma=0.0),
        draggers=mbsim.Draggers(probability=0.5, norm_ratio=1e-3),
        benign_dim=1,
        start=np.ones(6),
    )
    kappa = (1 + math.sqrt(5)) * 1e-3 * math.sqrt(0.5 / 3)
    (x, e), (y, f) = (step(with_draggers(problem, norm_ratio=c), 3, 5, 1.0)[0] for c in (1e-3, 0.0))
    assert abs(x - y) <= kappa + e + f


@given(problem=with_some, m=st.sampled_from([2, 3, 8]), r=norms)
@few
def test_one_gradient_of_0_stops_a_step(problem, m, r):
    """At c = 0 and b = 1 a step without draggers is a clean one, and any other stands still."""
    q = 1 - problem.draggers.probability
    stopped = step(with_draggers(problem, norm_ratio=0.0), 1, m, r)
    for (x, e), (y, f) in zip(stopped, step(clean(problem), 1, m, r), strict=True):
        assert abs(x - q**m * y) <= e + f


far = draggers(probability=st.floats(0.05, 0.5), norm_ratio=1e6)


@given(problem=problems(noise=integrated, draggers=far), m=st.sampled_from([2, 3, 5]), r=norms)
@few
def test_long_draggers_only_dilute_the_clean_ones(problem, m, r):
    """c → ∞ at b = 1: the shortest of N ≥ 1 benign examples is the threshold, and the draggers pull
    nowhere: A = Σ_N P(N) (N/m) A_N, with A_N the progress of N benign examples alone. If N = 0, u
    is a mean of m draggers: M/c² → p^m (r² + σ²)(1/m + γ(1 − 1/m)), where SGD's M/c² → χ(r² + σ²).
    """
    p, gamma, c = problem.draggers.probability, problem.draggers.coherence, 1e6
    (progress, error), (second, wrong) = step(problem, 1, m, r)
    total = 0.0
    for n in range(1, m + 1):
        one, more = step(clean(problem), 1, n, r)[0]
        weight = stats.binom.pmf(n, m, 1 - p) * n / m
        total, error = total + weight * one, error + weight * more
    # A benign norm above c√(r² + σ²) has, for these laws, probability 0 in float64.
    assert abs(progress - total) <= error
    square = r**2 + problem.noise.sigma**2
    limit = p**m * square * (1 / m + gamma * (1 - 1 / m))
    # Where N ≥ 1, ‖u‖² ≤ ρ² is at most the square of a benign example, of mean r² + σ².
    assert abs(second / c**2 - limit) <= square / c**2 + wrong / c**2
    sgd = drift(problem, mbsim.SGD(), batch_size=m).second_moment(r)
    assert sgd >= c**2 * (p / m) * square * (1 - ROUNDOFF)


@given(
    problem=problems(noise=integrated, draggers=draggers(norm_ratio=st.floats(1, 1e6))),
    split=splits,
    r=norms,
)
@few
def test_progress_stays_finite_however_long_draggers_are(problem, split, r):
    """⟨s_jX_j, e⟩ ≤ α_j|r + ν_j|, whose mean is at most √(q²r² + qσ_e²/b) (section 5.4): no c in
    it. (And M ≤ M₁r² + M₀ with Ω = (1 − λ₀)^{m−1} before the c²: section 5.3.)
    """
    b, m = split
    q, n = 1 - problem.draggers.probability, problem.benign_dim
    share = getattr(problem.noise, "isotropic_share", 1.0)
    along_sq = problem.noise.sigma**2 * (1 - share + share / n)
    (progress, error), (second, wrong) = step(problem, b, m, r)
    assert abs(progress) <= math.sqrt(q**2 * r**2 + q * along_sq / b) + error
    values = {
        "batch_size": b * m,
        "micro_batch_size": b,
        "probability": 1 - q,
        "norm_ratio": problem.draggers.norm_ratio,
        "coherence": problem.draggers.coherence,
        "sigma": problem.noise.sigma,
        "grad_norm": r,
    }
    assert second <= second_moment_bound().evaluate(**values) + wrong


@given(sigma=scales, split=splits, r=norms, n=st.integers(0, 20).map(lambda k: 2**k))
@few
def test_in_many_dimensions_norms_concentrate(sigma, split, r, n):
    """n → ∞ for Gaussian noise without draggers: A → r. r − A = E (1/m) Σ (1 − s_j)⟨X_j, e⟩ is at
    most E (mean x − min x) in size, and Samuelson's inequality and Var x ≤ σ²/(bn) (Poincaré) make
    that at most (m − 1)/√m · σ/√(bn).
    """
    b, m = split
    problem = mbsim.Problem(
        loss=mbsim.losses.LogCosh(n),
        noise=Gaussian(sigma=sigma),
        benign_dim=n,
        start=np.ones(n),
    )
    progress, error = step(problem, b, m, r)[0]
    assert abs(progress - r) <= (m - 1) / math.sqrt(m) * sigma / math.sqrt(b * n) + error


# ------------------------------------------------------------------------- shape of the drift


@given(problem=problems(noise=integrated), split=splits, r=norms, unit=st.floats(1e-3, 1e3))
@few
def test_the_drift_in_other_units(problem, split, r, unit):
    b, m = split
    law = problem.noise
    fields = {
        name: getattr(law, name) for name in ("rare", "isotropic_share") if hasattr(law, name)
    }
    other = changed(problem, noise=type(law)(sigma=law.sigma * unit, **fields))
    one, scaled = step(problem, b, m, r), step(other, b, m, r * unit)
    for (x, _), (y, _), power in zip(one, scaled, (1, 2), strict=True):
        # 1e-9: the same nodes, but for roundings that series of cosines may multiply.
        natural = math.sqrt(one[1][0]) ** power
        assert abs(y / unit**power - x) <= 1e-9 * natural


@given(problem=problems(noise=integrated), split=splits, r=norms)
@few
def test_a_mean_is_no_longer_than_its_root_mean_square(problem, split, r):
    """A² ≤ M (Jensen); in the other direction M is at most the mean square of a micro-batch."""
    b, m = split
    (progress, error), (second, wrong) = step(problem, b, m, r)
    assert (abs(progress) - error) ** 2 <= second + wrong or abs(progress) <= error
    assert second <= theorem_1(problem, b, r)[1] + wrong


@given(problem=problems(noise=symmetric), split=splits, r=norms)
@few
def test_symmetric_noise_keeps_progress_between_0_and_sgds(problem, split, r):
    """(6.1): A = r E[α_j (1{x' ≤ τ} + 1{x' > τ} τh²/x'³)], and the bracket is at most 1, for
    h ≤ x' and, in the second term, τ < x'. So 0 ≤ A ≤ qr.
    """
    b, m = split
    progress, error = step(problem, b, m, r)[0]
    q = 1 - problem.draggers.probability
    assert -error <= progress <= q * r + error


def test_skewed_noise_may_go_beyond_sgds_progress_and_below_0():
    """The control of the one above: without symmetry neither end holds."""
    for rare, inside in ((0.9, False), (0.5, True), (0.1, False)):
        problem = mbsim.Problem(
            loss=mbsim.losses.LogCosh(2),
            noise=TwoPoint(rare=rare, isotropic_share=0.25),
            benign_dim=2,
            start=np.ones(2),
        )
        assert (0 <= step(problem, 1, 5, 1 / 16)[0][0] <= 1 / 16) == inside


# ------------------------------------------------------------------------- certificates


def line_of(bound, values):
    """(x, y) of a theorem: its right side is x Δ/(ηT) + y."""
    y = bound.evaluate(**values | {"initial_gap": 0.0})
    x = bound.evaluate(**values | {"initial_gap": 1.0}) - y
    return x * values["step_size"] * values["steps"], y


def f_at(one, r, step_size):
    """f = rA − (ηL/2)M, and its error."""
    values = one.at(r)
    assert not values.progress_standard_error.any()
    f, _, error = values.descent(step_size * one.smoothness / 2)
    return f, error


GRID = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 12)])
shares = st.floats(1 / 64, 0.9)  # of the longest step that a theorem allows
horizons = st.integers(1, 10**5)


def numbers_of(problem, b, m):
    return {
        "smoothness": problem.smoothness,
        "initial_gap": problem.initial_gap,
        "sigma": problem.noise.sigma,
        "probability": problem.draggers.probability,
        "norm_ratio": problem.draggers.norm_ratio,
        "coherence": problem.draggers.coherence,
        "benign_dim": problem.benign_dim,
        "batch_size": b * m,
        "micro_batch_size": b,
    }


def settled(bound, numbers, share, horizon, **measured):
    """The values that a bound takes, with a step size that it allows."""
    known = {**numbers, **measured, "steps": horizon}
    (condition,) = bound.conditions
    limit = Formula(name="limit", expression=condition.limit, source="")
    known["step_size"] = share * limit.evaluate(**{name: known[name] for name in limit.names})
    values = {name: known[name] for name in bound.names}
    assert bound.holds(**values)
    return values


def check_theorem(problem, b, m, bound, values, *, slack=1e-3):
    """The theorem's line is feasible for the linear program, so its optimum is no larger."""
    one = drift(problem, clip(b), batch_size=b * m, draws=2**16)
    x, y = line_of(bound, values)
    f, error = f_at(one, GRID, values["step_size"])
    # The cancellation of x f against r² rounds, at most, in the last digits of either.
    rounding = 1e-9 * (GRID**2 + y)
    assert (x * f + y >= GRID**2 - x * error - rounding).all()
    found = one.certify(step_size=values["step_size"], steps=values["steps"])
    assert found, found.reason
    # What a certificate may owe to its margins is 1e-3 of it.
    assert found.value <= bound.evaluate(**values) * (1 + slack)
    return one, found


# No limit on its gradients: what is known to be bounded (log cosh) is certified to be less.
unbounded = losses(dim=st.integers(3, 8), kinds=[mbsim.losses.Quadratic, mbsim.losses.Ripple])


@given(problem=problems(loss=unbounded), batch=batch_sizes(), share=shares, horizon=horizons)
@settings(max_examples=25, deadline=None)
def test_theorem_1_is_the_solution_of_the_program(problem, batch, share, horizon):
    assume(problem.initial_gap > 0)
    bound = sgd_bound("sharper")
    values = settled(bound, numbers_of(problem, batch, 1), share, horizon)
    one, found = check_theorem(problem, batch, 1, bound, values)
    # For SGD the line touches x f + y = r² everywhere: nothing better follows from f.
    assert found.value >= bound.evaluate(**values) * (1 - 1e-9)
    x, y = line_of(bound, values)
    f, _ = f_at(one, GRID, values["step_size"])
    np.testing.assert_allclose(x * f + y, GRID**2, atol=1e-9 * y, rtol=1e-9)


def clean_share_of_the_worst(b, m, p):
    """E min_j (1 − k_j/b), k_j binomial: at most q*, and with 1{k_1 = 0} inside at most λ."""
    below = stats.binom.cdf(np.arange(b + 1), b, p)

    def mean(others):
        law = np.diff(below**others, prepend=0.0) if others else np.eye(1, b + 1)[0]
        return float(law @ (1 - np.arange(b + 1) / b))

    return mean(m), (1 - p) ** b * mean(m - 1)


@given(
    problem=problems(noise=noises(laws=[Gaussian])), split=splits, share=shares, horizon=horizons
)
@few
def test_certificates_are_at_or_below_theorem_3(problem, split, share, horizon):
    """q* is at least E min_j (1 − k_j/b)."""
    b, m = split
    assume(problem.initial_gap > 0)
    q_star, _ = clean_share_of_the_worst(b, m, problem.draggers.probability)
    bound = symmetric_bound("unimodal", "sharper")
    numbers = numbers_of(problem, b, m)
    values = settled(bound, numbers, share, horizon, shortest_benign_share=q_star)
    check_theorem(problem, b, m, bound, values)


@given(problem=problems(noise=integrated), split=splits, share=shares, horizon=horizons)
@few
def test_certificates_are_at_or_below_theorem_2_for_concentrated_norms(
    problem, split, share, horizon
):
    """λ = E[cos φ_j min_i a_i] ≥ E[1{k_j = 0} min_i α_i], for a_i ≥ α_i; λ̄ ≤ 1; ς̄ ≤ σ/√b."""
    b, m = split
    assume(problem.initial_gap > 0)
    _, alignment = clean_share_of_the_worst(b, m, problem.draggers.probability)
    spread = problem.noise.sigma / math.sqrt(b)
    if isinstance(problem.noise, Gaussian):
        spread /= math.sqrt(problem.benign_dim)
    bound = clipping_concentrated_bound("sharper")
    measured = {"alignment": alignment, "mean_cosine": 1.0, "norm_spread": spread}
    values = settled(bound, numbers_of(problem, b, m), share, horizon, **measured)
    check_theorem(problem, b, m, bound, values)


@given(problem=problems(noise=integrated), split=splits, gap=scales, factor=st.floats(1, 64))
@settings(max_examples=6, deadline=None)
def test_certificates_in_steps_and_gap(problem, split, gap, factor):
    """A certificate is min (x Δ/(ηT) + y): increasing and concave in Δ/(ηT), and of it alone."""
    b, m = split
    one = drift(problem, clip(b), batch_size=b * m, draws=2**16)

    def value(gap, steps):
        found = one.certify(step_size=step_size, steps=steps, initial_gap=gap)
        return found.value if found else None

    step_size = 0.05 / problem.smoothness
    base = value(gap, 64)
    assume(base is not None)
    assert value(2 * gap, 128) == base
    more, middle = value(gap * factor, 64), value(gap * (1 + factor) / 2, 64)
    # 1e-3: the margins, in either value.
    assert base * (1 - 1e-3) <= middle <= more * (1 + 1e-3)
    assert middle >= (base + more) / 2 * (1 - 1e-3)
    assert value(gap, math.ceil(64 * factor)) <= base * (1 + 1e-3)


@given(
    problem=problems(noise=mixed, loss=losses(dim=7, kinds=[mbsim.losses.Quadratic])),
    split=splits,
    units=st.tuples(scales, scales),
)
@settings(max_examples=8, deadline=None)
def test_certificates_in_other_units(problem, split, units):
    """In units of the gradient a and of the loss v: σ → aσ, L → (a²/v)L, η → (v/a²)η, bound a²."""
    a, v = units
    b, m = split
    curvature = a**2 / v
    law = problem.noise
    other = changed(
        problem,
        loss=mbsim.losses.Quadratic(curvature * problem.loss.eigenvalues),
        noise=TwoPoint(sigma=a * law.sigma, rare=law.rare, isotropic_share=law.isotropic_share),
        start=problem.start * (v / a),
    )
    step_size = 0.05 / problem.smoothness
    found = [
        drift(made, clip(b), batch_size=b * m, draws=2**16).certify(step_size=eta, steps=100)
        for made, eta in ((problem, step_size), (other, step_size / curvature))
    ]
    assert bool(found[0]) == bool(found[1])
    if found[0]:
        # Nodes lie at the same places but for rounding.
        assert found[1].value == pytest.approx(found[0].value * a**2, rel=1e-6)


# ------------------------------------------------------------------------- bounds, one by one

UP, DOWN = 1, -1
RATE_TERMS = {"initial_gap": UP, "smoothness": UP, "sigma": UP, "steps": DOWN}
DRAGGERS = {"norm_ratio": UP, "coherence": UP}
# What is true of each, seen from its formula. Not in the list, because it is false: p in sharper
# forms and with averaging (draggers also take noise out of a step), b anywhere, B in 5.3 and 6 (i).
MONOTONE = {
    "SGD": (
        sgd_bound(),
        RATE_TERMS | DRAGGERS | {"probability": UP, "batch_size": DOWN},
    ),
    "SGD, sharper": (sgd_bound("sharper"), RATE_TERMS | DRAGGERS | {"batch_size": DOWN}),
    "SGD, tuned": (
        sgd_tuned_bound(),
        RATE_TERMS | DRAGGERS | {"probability": UP, "batch_size": DOWN},
    ),
    "SGD, tuned, sharper": (
        sgd_tuned_bound("sharper"),
        RATE_TERMS | DRAGGERS | {"batch_size": DOWN},
    ),
    "clean SGD": (clean_sgd_bound(), RATE_TERMS | {"batch_size": DOWN}),
    "any noise": (
        clipping_bound(),
        RATE_TERMS | DRAGGERS | {"probability": UP, "batch_size": DOWN, "mean_weight": DOWN},
    ),
    "any noise, not damped": (
        clipping_bound(damped=False),
        RATE_TERMS | DRAGGERS | {"probability": UP, "mean_weight": DOWN},
    ),
    "concentrated": (
        clipping_concentrated_bound(),
        RATE_TERMS
        | DRAGGERS
        | {"probability": UP, "alignment": DOWN, "mean_cosine": UP, "norm_spread": UP},
    ),
    "concentrated, sharper": (
        clipping_concentrated_bound("sharper"),
        RATE_TERMS
        | DRAGGERS
        | {"probability": UP, "alignment": DOWN, "mean_cosine": UP, "norm_spread": UP},
    ),
    "concentrated, averaging": (
        clipping_concentrated_bound(averaging=True),
        RATE_TERMS | {"norm_ratio": UP, "sigma_along": UP, "alignment": DOWN},
    ),
    "symmetric": (
        symmetric_bound(),
        RATE_TERMS | DRAGGERS | {"probability": UP, "batch_size": DOWN, "progress_rate": DOWN},
    ),
    "symmetric, unimodal": (
        symmetric_bound("unimodal"),
        RATE_TERMS | DRAGGERS | {"probability": UP, "shortest_benign_share": DOWN},
    ),
    "bias": (bias_bound(), {"sigma": UP, "probability": UP}),
    "bias, closed": (bias_bound("closed"), {"sigma": UP, "probability": UP}),
    "second moment": (
        second_moment_bound(),
        DRAGGERS | {"sigma": UP, "probability": UP, "grad_norm": UP, "batch_size": DOWN},
    ),
    "drift, any noise": (clipping_drift_bound(), {"sigma": DOWN, "grad_norm": UP}),
    "drift, concentrated": (
        clipping_concentrated_drift_bound(),
        {"sigma": DOWN, "alignment": UP, "mean_cosine": DOWN, "norm_spread": DOWN},
    ),
}
RANGES = dict.fromkeys(("probability", "mean_weight"), 0.75)
RANGES |= dict.fromkeys(("coherence", "alignment", "mean_cosine"), 1.0)
RANGES |= dict.fromkeys(("shortest_benign_share", "progress_rate"), 1.0)


def moved(values, name, factor):
    """The values with one quantity up by a factor, or part of the way to the end of its range."""
    old = values[name]
    if name in RANGES:
        return values | {name: old + (RANGES[name] - old) * (1 - 1 / factor)}
    if name in ("batch_size", "steps"):
        return values | {name: old * math.ceil(factor)}
    return values | {name: old * factor}


@pytest.mark.parametrize("case", MONOTONE)
@given(data=st.data(), factor=st.floats(1.0625, 8))
@settings(max_examples=15, deadline=None)
def test_bounds_are_monotone(case, data, factor):
    bound, directions = MONOTONE[case]
    values = data.draw(bound_values(bound))
    base = bound.evaluate(**values)
    for name, direction in directions.items():
        other = moved(values, name, factor)
        if not bound.holds(**other):
            continue  # a sharper form has a pole there
        change = (bound.evaluate(**other) - base) * direction
        assert change >= -ROUNDOFF * max(abs(base), 1e-300), name


def test_what_is_not_monotone():
    """Controls: the claims that the list leaves out are false, and would be seen to be."""
    common = {"initial_gap": 1.0, "smoothness": 1.0, "steps": 1000, "sigma": 1.0, "coherence": 0.0}
    sgd = common | {"step_size": 1.5, "norm_ratio": 0.0, "batch_size": 64}
    values = [sgd_bound("sharper").evaluate(**sgd, probability=p) for p in (0.0, 0.1)]
    assert values[1] < values[0]
    sizes = [
        bias_bound("closed").evaluate(micro_batch_size=b, probability=0.05, sigma=1.0)
        for b in (1, 18, 64)
    ]
    assert sizes[1] < min(sizes[0], sizes[2])


# By how much a quantity grows when gradients are measured in units a and losses in units v.
UNITS = {
    "initial_gap": (0, 1),
    "smoothness": (2, -1),
    "step_size": (-2, 1),
    **dict.fromkeys(("sigma", "sigma_along", "norm_spread", "grad_norm"), (1, 0)),
    "capped_threshold": (1, 0),
}
SCALED = {
    **{name: (bound, 2) for name, (bound, _) in MONOTONE.items() if not name.startswith("drift")},
    **{name: (bound, 1) for name, (bound, _) in MONOTONE.items() if name.startswith("drift")},
    "any noise, tuned, sharper": (tuned_bound(clipping_bound("sharper")), 2),
    "second moment, averaging": (second_moment_bound(averaging=True), 2),
    "norm ratio": (theory.micro_batch_norm_ratio(), 0),
    "spread": (theory.norm_spread_bound(gaussian=True), 1),
}


@pytest.mark.parametrize("case", SCALED)
@given(data=st.data(), a=scales, v=scales)
@settings(max_examples=10, deadline=None)
def test_bounds_in_other_units(case, data, a, v):
    bound, power = SCALED[case]
    values = data.draw(bound_values(bound))
    other = {
        name: number * a ** UNITS.get(name, (0, 0))[0] * v ** UNITS.get(name, (0, 0))[1]
        for name, number in values.items()
    }
    # A drift bound is a difference: it may cancel to a small part of its terms.
    small = 1e-9 * values.get("grad_norm", 0.0) if case.startswith("drift") else 0.0
    expected = bound.evaluate(**values) * a**power
    assert bound.evaluate(**other) == pytest.approx(expected, rel=1e-9, abs=small * a)


@given(values=bound_values(sgd_bound()), a=scales, v=scales)
@settings(max_examples=10, deadline=None)
def test_tuned_step_sizes_in_other_units(values, a, v):
    formula = tuned_step_size(sgd_bound())
    values = {name: values[name] for name in formula.names}
    other = {
        name: number * a ** UNITS.get(name, (0, 0))[0] * v ** UNITS.get(name, (0, 0))[1]
        for name, number in values.items()
    }
    expected = formula.evaluate(**values) * v / a**2
    assert formula.evaluate(**other) == pytest.approx(expected, rel=ROUNDOFF)


# ------------------------------------------------------------------------- clipping


@given(gradients=gradient_batches(), rule=rules(), data=st.data())
def test_every_example_twice_is_the_same_step(gradients, rule, data):
    """Twice in its micro-batch, which has the same mean; twice as many micro-batches, whose norms
    come in pairs (so do quantiles of the norms, but for the "lower" one's rank)."""
    b = data.draw(micro_batch_sizes(len(gradients)))
    update = mbsim.clipping.update(gradients, b, rule)
    # Sums of twice as many terms round in another order.
    size = rounding_of(gradients, b, rule)
    twice = mbsim.clipping.update(np.repeat(gradients, 2, axis=0), 2 * b, rule)
    np.testing.assert_allclose(twice, update, rtol=0, atol=size)
    if not isinstance(rule, (QuantileNorm, TrimmedNorm)):
        again = mbsim.clipping.update(np.tile(gradients, (2, 1)), b, rule)
        np.testing.assert_allclose(again, update, rtol=0, atol=size)


def rounding_of(gradients, b, rule):
    """Means of gradients round by 1e-15 of the largest; factors carry that on to the update."""
    means = gradients.reshape(-1, b, gradients.shape[1]).mean(axis=1)
    norms = np.linalg.norm(means, axis=1)
    return 1e-14 * float(np.abs(rule.factors(norms)).max() * np.abs(gradients).max())


@given(gradients=gradient_batches(), rule=rules(), data=st.data())
def test_the_update_turns_round_with_the_gradients(gradients, rule, data):
    b = data.draw(micro_batch_sizes(len(gradients)))
    update = mbsim.clipping.update(gradients, b, rule)
    np.testing.assert_array_equal(mbsim.clipping.update(-gradients, b, rule), -update)


@given(gradients=gradient_batches(), levels=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_higher_quantiles_and_thresholds_clip_less(gradients, levels):
    norms = np.linalg.norm(gradients, axis=1)
    low, high = sorted(levels)
    pairs = [(QuantileNorm(low), QuantileNorm(high)), (SmallestNorm(), QuantileNorm(low))]
    pairs += [(QuantileNorm(high), NoClipping())]
    if low > 0:
        pairs += [(FixedNorm(low), FixedNorm(high)), (UnitNorm(high), UnitNorm(low))]
    for one, other in pairs:
        assert (one.factors(norms) <= other.factors(norms) * (1 + 1e-15)).all() or not norms.all()


@given(gradients=gradient_batches(smallest=1e-250, largest=1e250), data=st.data())
def test_the_smallest_norm_bounds_the_update_at_every_size(gradients, data):
    b = data.draw(micro_batch_sizes(len(gradients)))
    wide = gradients.astype(np.longdouble)
    means = wide.reshape(-1, b, wide.shape[1]).mean(axis=1)
    smallest = np.sqrt(np.square(means).sum(axis=1)).min()
    update = mbsim.clipping.update(gradients, b).astype(np.longdouble)
    # Where means cancel their roundings, 1e-19 of the largest gradient in extended precision, stay.
    slack = smallest * np.longdouble(1e-14) + np.abs(wide).max() * np.longdouble(1e-17)
    assert np.sqrt(np.square(update).sum()) <= smallest + slack


# ------------------------------------------------------------------------- the sweet spot


def closed_bias(b, p):
    """β_b² of section 5.2 in its closed form, typed again."""
    return 8 / ((b + 1) * (1 - p) ** (b + 1))


@given(p=st.floats(1e-6, 0.5))
@example(p=0.05)
@settings(max_examples=12)
def test_the_closed_bias_is_stationary_at_the_best_micro_batch_size(p):
    best = optimal_micro_batch_size().evaluate(probability=p)
    with mpmath.workdps(60):
        q = 1 - mpmath.mpf(p)
        exact = -1 - 1 / mpmath.log(q)
        assert abs(best - exact) <= ROUNDOFF * max(1, abs(exact))
        # With b + 1 = 1/ln(1/q): f'/f = −1/(b+1) + ln(1/q) = 0 and f''/f = 1/(b+1)² > 0.
        f, slope, bend = (mpmath.diff(functools.partial(closed_bias, p=mpmath.mpf(p)), exact, k)
                          for k in (0, 1, 2))  # fmt: skip
        # Derivatives by differences keep some 20 of the 60 digits.
        assert abs(slope / f) <= mpmath.mpf(10) ** -18 / (exact + 1)
        assert abs(bend / f * (exact + 1) ** 2 - 1) <= mpmath.mpf(10) ** -12
    # The package's own formula is the one that was differentiated.
    ours = bias_bound("closed").evaluate(micro_batch_size=7, probability=p, sigma=1)
    assert ours == pytest.approx(closed_bias(7, p), rel=ROUNDOFF)


@given(above=st.integers(1, 40), below=st.integers(2, 400))
@settings(max_examples=40)
def test_the_best_whole_micro_batch_size(above, below):
    """f(b)/f(b − 1) = b/((b + 1) q) ≤ 1 where b ≤ q/p: so the best is max(1, ⌊q/p⌋), and where q/p
    is whole, q/p − 1 ties with it. In exact fractions, and by the package's formula.
    """
    assume(2 * above <= below)
    p = Fraction(above, below)
    q = 1 - p
    best = max(1, math.floor(q / p))
    around = range(max(1, best - 3), best + 4)
    exact = {b: 1 / ((b + 1) * q ** (b + 1)) for b in around}
    assert exact[best] == min(exact.values())
    ties = [b for b in around if exact[b] == exact[best]]
    whole = (q / p).denominator == 1 and q / p > 1
    assert ties == ([best - 1, best] if whole else [best])
    sizes = np.arange(1, 4 * best + 4)
    curve = bias_bound("closed").evaluate(micro_batch_size=sizes, probability=float(p), sigma=1)
    assert curve[best - 1] <= curve.min() * (1 + ROUNDOFF)
