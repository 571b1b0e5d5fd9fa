"""Algorithm 1 on arrays of PyTorch and JAX, on trees, and by weights: held against plain loops."""

import math

import numpy as np
import pytest
from test_clipping import RULES, plain_factor, plain_update

from mbsim import InvalidArgument
from mbsim.clipping import (
    FixedNorm,
    QuantileNorm,
    SmallestNorm,
    TrimmedNorm,
    WithinGroups,
    apply,
    update,
)

RNG = np.random.default_rng(0)
EXAMPLES = RNG.standard_normal((12, 5)) * np.exp(RNG.uniform(-2, 2, (12, 1)))
TOKENS = np.array([3.0, 1.0, 7.0, 2.0, 2.0, 5.0])


def weighted(examples, weights, b, rule):
    """Σ n_j s_j X_j / Σ n_j in plain loops, where examples have weights."""
    kept = [j for j in range(len(examples) // b) if sum(weights[j * b : (j + 1) * b]) > 0]
    sizes, means = [], []
    for j in kept:
        own = range(j * b, (j + 1) * b)
        sizes.append(math.fsum(weights[i] for i in own))
        total = [math.fsum(weights[i] * x for i, x in zip(own, column, strict=True))
                 for column in np.transpose([examples[i] for i in own])]  # fmt: skip
        means.append([x / sizes[-1] for x in total])
    norms = [math.sqrt(math.fsum(x * x for x in mean)) for mean in means]
    factors = [plain_factor(rule, norm, norms) for norm in norms]
    pairs = list(zip(sizes, factors, means, strict=True))
    return [
        math.fsum(n * s * mean[k] for n, s, mean in pairs) / math.fsum(sizes)
        for k in range(len(examples[0]))
    ]


def library(name, kind):
    """How to make its arrays, and read them; with the type that is asked for."""
    if name == "numpy":
        return (lambda x: np.asarray(x, kind)), np.asarray
    if name == "torch":
        torch = pytest.importorskip("torch")
        return (
            lambda x: torch.tensor(np.asarray(x), dtype=getattr(torch, kind)),
            lambda x: x.detach().double().numpy(),
        )
    jnp = pytest.importorskip("jax.numpy")
    return (lambda x: jnp.asarray(x, kind)), lambda x: np.asarray(x, np.float64)


# Up to the spacing of the type, a few times over.
KINDS = [
    ("numpy", "float64", 1e-13),
    ("numpy", "float32", 1e-6),
    ("torch", "float64", 1e-13),
    ("torch", "float32", 2e-6),
    ("torch", "float16", 4e-3),
    ("torch", "bfloat16", 3e-2),
    ("jax", "float32", 2e-6),
    ("jax", "float16", 4e-3),
    ("jax", "bfloat16", 3e-2),
]
EVERY = pytest.mark.parametrize(("name", "kind", "spacing"), KINDS)


@EVERY
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("b", [1, 2, 12])
def test_any_array_in_plain_loops(name, kind, spacing, rule, b):
    array, numbers = library(name, kind)
    given = array(EXAMPLES)
    exact = numbers(given).astype(float)  # as the type holds them
    found = update(given, b, rule)
    assert type(found) is type(given)
    assert found.dtype == given.dtype
    plain = np.array(plain_update(exact.tolist(), b, rule))
    size = np.abs(plain).max()
    np.testing.assert_allclose(numbers(found), plain, rtol=0, atol=spacing * size)
    two = update(array(np.stack([EXAMPLES, 2 * EXAMPLES])), b, rule)
    np.testing.assert_allclose(numbers(two)[0], plain, rtol=0, atol=spacing * size)


@EVERY
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_blocks_are_one_gradient(name, kind, spacing, rule):
    """A layer's [B, out, in] among others, nested: the norm is over all blocks together."""
    array, numbers = library(name, kind)
    x = numbers(array(EXAMPLES))
    tree = {
        "layer": {"weight": array(x[:, :4].reshape(12, 2, 2))},
        "rest": [(array(x[:, 4]),), None],
    }
    found = update(tree, 3, rule)
    assert found["rest"][1] is None
    assert type(found["layer"]["weight"]) is type(tree["layer"]["weight"])
    assert tuple(found["layer"]["weight"].shape) == (2, 2)
    flat = np.append(numbers(found["layer"]["weight"]), numbers(found["rest"][0][0]))
    plain = np.array(plain_update(x.astype(float).tolist(), 3, rule))
    np.testing.assert_allclose(flat, plain, rtol=0, atol=spacing * np.abs(plain).max())


@EVERY
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_threshold_for_each_group_in_plain_loops(name, kind, spacing, rule, even):
    array, numbers = library(name, kind)
    given, groups = array(EXAMPLES), (1, 0, 1, 2, 0, 1)
    means = numbers(given).astype(float).reshape(6, 2, 5).mean(axis=1)
    norms = [math.sqrt(math.fsum(x * x for x in mean)) for mean in means.tolist()]
    factors = np.zeros(6)
    for group in (0, 1, 2):
        own = [i for i in range(6) if groups[i] == group]
        part = [plain_factor(rule, norms[i], [norms[j] for j in own]) for i in own]
        factors[own] = np.array(part) * (len(own) / math.fsum(part) if even else 1)
    plain = factors @ means / 6
    found = update(given, 2, WithinGroups(groups=groups, rule=rule, even=even))
    assert type(found) is type(given)
    assert found.dtype == given.dtype
    np.testing.assert_allclose(numbers(found), plain, rtol=0, atol=spacing * np.abs(plain).max())


def test_a_list_of_gradients_is_rows_and_a_list_of_blocks_is_a_tree():
    np.testing.assert_array_equal(apply(list(EXAMPLES)), apply(EXAMPLES))
    (only,) = apply([EXAMPLES])
    np.testing.assert_allclose(only, apply(EXAMPLES), rtol=1e-14)
    layer = RNG.standard_normal((12, 3, 3))
    (found,) = update([layer], 3)
    np.testing.assert_allclose(found.ravel(), update(layer.reshape(12, 9), 3), rtol=1e-13)
    torch = pytest.importorskip("torch")
    rows = apply([torch.tensor(x) for x in EXAMPLES])
    assert torch.is_tensor(rows)
    np.testing.assert_allclose(rows.numpy(), apply(EXAMPLES), rtol=1e-13)


# ------------------------------------------------------------------------- weights


@EVERY
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_weights_in_plain_loops(name, kind, spacing, rule):
    array, numbers = library(name, kind)
    x = numbers(array(EXAMPLES)).astype(float)
    each = np.repeat(TOKENS, 2)
    plain = np.array(weighted(x, each, 2, rule))
    for weights in (TOKENS, each, array(TOKENS), list(TOKENS)):
        found = numbers(update(array(x), 2, rule, weights=weights))
        np.testing.assert_allclose(found, plain, rtol=0, atol=2 * spacing * np.abs(plain).max())
    uneven = np.array([1, 2, 0, 3, 0, 0, 4, 4, 1, 0, 5, 1.0])  # the third is not there at all
    plain = np.array(weighted(x, uneven, 2, rule))
    found = numbers(update(array(x), 2, rule, weights=uneven))
    np.testing.assert_allclose(found, plain, rtol=0, atol=2 * spacing * np.abs(plain).max())


def test_the_ragged_last_batch_by_padding():
    """11 examples in micro-batches of 4: the last has 3, and a row of zeros without weight."""
    padded = np.concatenate([EXAMPLES[:11], np.zeros((1, 5))])
    found = update(padded, 4, weights=[1] * 11 + [0])
    means = [EXAMPLES[:4].mean(0), EXAMPLES[4:8].mean(0), EXAMPLES[8:11].mean(0)]
    norms = [np.linalg.norm(x) for x in means]
    units = [x / norm for x, norm in zip(means, norms, strict=True)]
    expected = min(norms) * (4 * units[0] + 4 * units[1] + 3 * units[2]) / 11
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@EVERY
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equal_weights_are_none_to_the_bit(name, kind, spacing, rule):
    array, numbers = library(name, kind)
    for weights in ([0.1] * 6, [7] * 6, [0.3] * 12):
        np.testing.assert_array_equal(
            numbers(update(array(EXAMPLES), 2, rule, weights=weights)),
            numbers(update(array(EXAMPLES), 2, rule)),
        )


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1, 1, -1], "must be at least 0"),
        ([0, 0, 0], "not all 0"),
        ([1, np.nan, 1], "weights must be finite"),
        ([1, np.inf, 1], "weights must be finite"),
        ([1, 1], r"shape \(2,\) and must have one for each of the 3 micro-batches or of the 6 ex"),
        ("heavy", "must be an array of real numbers"),
    ],
)
def test_bad_weights(weights, says):
    with pytest.raises(InvalidArgument, match=says) as raised:
        update(EXAMPLES[:6], 2, weights=weights)
    assert len(str(raised.value).splitlines()) == 1


# ------------------------------------------------------------------------- extremes


@EVERY
def test_norms_beyond_the_type_do_not_overflow(name, kind, spacing):
    """Squares and sums of these leave the type (and float32), the update does not."""
    array, numbers = library(name, kind)
    for size in (3e4, 6e-6) if kind == "float16" else (1e36, 1e-30):
        x = array(np.full((8, 4), size))
        for b in (1, 4):
            np.testing.assert_allclose(numbers(update(x, b)), numbers(x)[0], rtol=2 * spacing)
            unit = numbers(update({"x": x}, b, FixedNorm(1.0))["x"])
            np.testing.assert_allclose(unit, min(size, 0.5), rtol=0.01)


@EVERY
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_not_finite_is_refused_or_left_out(name, kind, spacing, rule):
    array, numbers = library(name, kind)
    x = np.array(numbers(array(EXAMPLES)), float)
    bad = x.copy()
    bad[5, 2] = np.nan
    with pytest.raises(InvalidArgument, match=r"must be finite; micro-batch 2 is not"):
        update([array(bad)], 2, rule)
    expected = numbers(update(array(np.delete(x, [4, 5], axis=0)), 2, rule))
    (found,) = update([array(bad)], 2, rule, nonfinite="drop")
    size = np.abs(expected).max()
    np.testing.assert_allclose(numbers(found), expected, rtol=0, atol=2 * spacing * size)
    both = update(array(np.stack([x, bad])), 2, rule, nonfinite="drop")
    np.testing.assert_allclose(numbers(both)[1], expected, rtol=0, atol=2 * spacing * size)
    with pytest.raises(InvalidArgument, match="no finite micro-batch"):
        apply({"x": array(np.full((2, 3), np.nan))}, rule, nonfinite="drop")


def test_trees_that_are_none():
    for tree, says in (
        ({}, "at least one array"),
        ({"a": np.ones((2, 3)), "b": np.ones(3)}, r"\(2, 3\), \(3,\), whose first axis"),
        ({"a": "word"}, "array of real numbers"),
        ({"a": np.float64(1)}, r"shapes \(\), whose first axis"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            apply(tree)


# ------------------------------------------------------------------------- one library each


def test_tensors_keep_their_graph_and_are_real_and_dense():
    torch = pytest.importorskip("torch")
    x = torch.tensor(EXAMPLES, requires_grad=True)
    update(x, 2).square().sum().backward()
    shift = 1e-6 * RNG.standard_normal(EXAMPLES.shape)
    ends = [np.square(update(EXAMPLES + s * shift, 2)).sum() for s in (1, -1)]
    np.testing.assert_allclose((x.grad.numpy() * shift).sum(), (ends[0] - ends[1]) / 2, rtol=1e-6)
    for tree, says in (
        (torch.ones((2, 2), dtype=torch.int32), "must hold real floats"),
        (torch.ones((2, 2), dtype=torch.complex64), "must hold real floats"),
        (torch.eye(3).to_sparse(), "is sparse"),
        (torch.ones((0, 2)), "must not be empty"),
        (torch.ones(3), "at least two axes"),
        ([torch.ones((2, 2)), np.ones((2, 2))], "of one library"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            apply(tree)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_jax_under_jit_and_grad(rule):
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(EXAMPLES, "float32")
    size = np.abs(plain_update(EXAMPLES.tolist(), 2, rule)).max()
    close = {"rtol": 0, "atol": 2e-6 * size}
    found = jax.jit(lambda x: update({"x": [x]}, 2, rule))(x)["x"][0]
    np.testing.assert_allclose(found, update(EXAMPLES, 2, rule), **close)
    found = jax.jit(lambda x, n: update(x, 2, rule, weights=n))(x, TOKENS)
    expected = weighted(EXAMPLES, np.repeat(TOKENS, 2), 2, rule)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * np.abs(expected).max())
    many = jax.vmap(lambda x: update(x, 2, rule))(jax.numpy.stack([x, 3 * x]))
    np.testing.assert_allclose(many[0], update(EXAMPLES, 2, rule), **close)
    at_zero = jax.grad(lambda x: (update(x, 2, rule) ** 2).sum())(jax.numpy.zeros((4, 3)))
    assert np.isfinite(at_zero).all()


def test_the_smallest_norm_has_the_derivative_of_its_formula():
    jax = pytest.importorskip("jax")

    def by_hand(x):
        means = x.reshape(6, 2, 5).mean(axis=1)
        norms = jax.numpy.sqrt((means**2).sum(axis=1))
        return norms.min() * (means / norms[:, None]).mean(axis=0)

    x = jax.numpy.asarray(EXAMPLES, "float32")
    ours = jax.grad(lambda x: (update(x, 2) ** 3).sum())(x)
    plain = jax.grad(lambda x: (by_hand(x) ** 3).sum())(x)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


# ------------------------------------------------------------------------- trimming


def test_trimming_keeps_the_shortest_and_their_mean():
    for fraction, m in [(0.0, 5), (0.1, 10), (0.5, 5), (0.5, 4), (0.99, 7), (1 - 2**-53, 3)]:
        norms = RNG.permutation(np.arange(1.0, m + 1))
        k = max(1, m - math.floor(fraction * m))
        factors = TrimmedNorm(fraction).factors(norms)
        np.testing.assert_array_equal(factors, np.where(norms <= k, m / k, 0))
    x = RNG.standard_normal((8, 3)) * np.arange(1, 9)[:, None]
    order = np.argsort(np.linalg.norm(x, axis=1))
    np.testing.assert_allclose(apply(x, TrimmedNorm(0.3)), x[order[:6]].mean(0), rtol=1e-13)


def test_ties_share_the_last_places():
    """As the mean over all orders in which ties could be broken."""
    norms = np.array([2.0, 1.0, 2.0, 3.0, 2.0])
    factors = TrimmedNorm(0.5).factors(norms)  # three places: 1, and two of the three of 2
    np.testing.assert_allclose(factors, [10 / 9, 5 / 3, 10 / 9, 0, 10 / 9], rtol=1e-15)
    np.testing.assert_array_equal(TrimmedNorm(0.7).factors(np.full(6, 4.0)), np.ones(6))
    rows = TrimmedNorm(0.5).factors(np.array([[1.0, 1.0], [1.0, 2.0]]))
    np.testing.assert_array_equal(rows, [[1, 1], [2, 0]])


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, np.nan, "half"])
def test_a_fraction_is_below_1(fraction):
    with pytest.raises(InvalidArgument, match="fraction="):
        TrimmedNorm(fraction)


def test_quantiles_of_any_array_are_those_of_numpy():
    torch = pytest.importorskip("torch")
    norms = RNG.gamma(2.0, size=(3, 7))
    for rule in (QuantileNorm(0.3), TrimmedNorm(0.3), SmallestNorm()):
        found = rule.factors(torch.tensor(norms)).numpy()
        np.testing.assert_array_equal(found, rule.factors(norms))
