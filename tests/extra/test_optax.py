"""The transformation of optax: held against Algorithm 1 in plain loops over stored gradients."""

import numpy as np
import pytest
from test_clipping import plain_factor

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

from mbsim import InvalidArgument  # noqa: E402
from mbsim.clipping import (  # noqa: E402
    FixedNorm,
    NoClipping,
    QuantileNorm,
    SmallestNorm,
    TrimmedNorm,
    UnitNorm,
)
from mbsim.extra.optax import micro_batch_clipping  # noqa: E402

RULES = [None, SmallestNorm(), FixedNorm(1.0), UnitNorm(0.1), UnitNorm(0), NoClipping()]
RULES += [QuantileNorm(0), QuantileNorm(1)]
RNG = np.random.default_rng(0)
PARAMETERS = {"weight": jnp.ones((3, 2)), "rest": [jnp.zeros(4), jnp.zeros(())]}
CLOSE = {"rtol": 2e-6, "atol": 2e-7}  # some tens of roundings of float32


def draw(number):
    """So many micro-batch gradients, of lengths 0.1 to 10."""

    def one(scale):
        return jax.tree.map(
            lambda p: jnp.asarray(scale * RNG.standard_normal(p.shape), "float32"), PARAMETERS
        )

    return [one(scale) for scale in np.exp(RNG.uniform(-2, 2, number))]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)


def by_hand(gradients, rule, sizes):
    rows = [flat(one) for one in gradients]
    norms = [float(np.linalg.norm(row)) for row in rows]
    total = np.zeros_like(rows[0])
    for row, norm, n in zip(rows, norms, sizes, strict=True):
        total += n * plain_factor(rule or SmallestNorm(), norm, norms) * row
    return total / sum(sizes)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_every_kth_call_is_algorithm_1(rule, k):
    transformation = micro_batch_clipping(k, rule)
    state = transformation.init(PARAMETERS)
    gradients, sizes = draw(3 * k), RNG.integers(1, 9, 3 * k)
    update = jax.jit(lambda g, s, n: transformation.update(g, s, weight=n))
    for i, (gradient, n) in enumerate(zip(gradients, sizes, strict=True), start=1):
        found, state = update(gradient, state, int(n))
        assert jax.tree.structure(found) == jax.tree.structure(PARAMETERS)
        if i % k:
            assert not flat(found).any()
        else:
            some = slice(i - k, i)
            np.testing.assert_allclose(
                flat(found), by_hand(gradients[some], rule, sizes[some]), **CLOSE
            )


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_under_scan_in_a_chain(rule):
    """SGD on w, two steps of four micro-batches each."""
    optimiser = optax.chain(micro_batch_clipping(4, rule), optax.sgd(0.5))
    gradients = draw(8)

    def step(carry, gradient):
        parameters, state = carry
        updates, state = optimiser.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    start = PARAMETERS, optimiser.init(PARAMETERS)
    (found, _), _ = jax.jit(lambda: jax.lax.scan(step, start, stacked))()
    steps = [by_hand(gradients[i : i + 4], rule, [1] * 4) for i in (0, 4)]
    expected = flat(PARAMETERS) - 0.5 * sum(steps)
    np.testing.assert_allclose(flat(found), expected, **CLOSE)


def test_an_optimiser_with_a_state_sees_the_kth_calls_only():
    adam = optax.adam(0.1)
    optimiser = optax.chain(
        micro_batch_clipping(2),
        optax.conditionally_transform(adam, lambda calls: (calls + 1) % 2 == 0),
    )
    gradients = draw(4)
    found, state = PARAMETERS, optimiser.init(PARAMETERS)
    for gradient in gradients:
        updates, state = optimiser.update(gradient, state, found)
        found = optax.apply_updates(found, updates)
    expected, state = flat(PARAMETERS), adam.init(jnp.zeros(11))
    for i in (0, 2):
        clipped = jnp.asarray(by_hand(gradients[i : i + 2], None, [1, 1]), "float32")
        updates, state = adam.update(clipped, state)
        expected = expected + np.asarray(updates)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_not_finite_is_left_out_of_all_and_counted(rule, bad):
    transformation = micro_batch_clipping(3, rule)
    state, gradients = transformation.init(PARAMETERS), draw(3)
    gradients[1]["rest"][0] = gradients[1]["rest"][0].at[2].set(bad)
    for gradient in gradients:
        found, state = transformation.update(gradient, state)
    expected = by_hand([gradients[0], gradients[2]], rule, [1, 1])
    np.testing.assert_allclose(flat(found), expected, **CLOSE)
    assert int(state.left_out) == 1
    for _ in range(3):  # nothing is left: a step of 0, and the next one is as ever
        found, state = transformation.update(gradients[1], state)
    assert not flat(found).any()
    assert int(state.left_out) == 4
    for gradient in (gradients[0], gradients[1], gradients[2]):
        found, state = transformation.update(gradient, state)
    np.testing.assert_allclose(flat(found), expected, **CLOSE)


def test_a_micro_batch_of_norm_0_stands_still_and_one_of_weight_0_is_not_there():
    transformation, (gradient,) = micro_batch_clipping(2), draw(1)
    zero = jax.tree.map(jnp.zeros_like, gradient)
    state = transformation.init(PARAMETERS)
    for one in (gradient, zero):
        found, state = transformation.update(one, state)
    assert not flat(found).any()
    for one, n in ((gradient, 3), (zero, 0)):
        found, state = transformation.update(one, state, weight=n)
    np.testing.assert_allclose(flat(found), flat(gradient), rtol=1e-6)
    assert int(state.left_out) == 0


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_added_up_in_single(kind):
    """Squares of 4e4 are no float16, nor is a sum of 64 of them; the type stays."""
    transformation = micro_batch_clipping(64)
    state = transformation.init(jnp.zeros(9, kind))
    update = jax.jit(transformation.update)
    for _ in range(64):
        found, state = update(jnp.full(9, 4e4, kind), state)
    assert found.dtype == kind
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(jnp.full(9, 4e4, kind), float))


def test_what_is_refused():
    for k in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgument, match="every_k="):
            micro_batch_clipping(k)
    for rule in (QuantileNorm(0.5), TrimmedNorm(0.2)):
        with pytest.raises(InvalidArgument, match="not known until the last micro-batch"):
            micro_batch_clipping(8, rule)
    with pytest.raises(InvalidArgument, match="rule="):
        micro_batch_clipping(8, SmallestNorm)
    transformation = micro_batch_clipping(2)
    state = transformation.init(PARAMETERS)
    with pytest.raises(InvalidArgument, match=r"weight=-1.0 must be at least 0"):
        transformation.update(PARAMETERS, state, weight=-1)
    with pytest.raises(InvalidArgument, match="the structure of the parameters"):
        transformation.update([jnp.zeros(3)], state)
