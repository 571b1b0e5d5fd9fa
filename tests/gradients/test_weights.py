"""The average weight of an example: by steps of the Gram matrix, by enumeration, bad input."""

import itertools

import numpy as np
import pytest
from numpy.random import SeedSequence

import mbsim
from mbsim import Gram, InvalidArgument, clipping, example_weights
from mbsim._shared.seeds import stream


@pytest.fixture(scope="module")
def gradients():
    return np.random.default_rng(0).standard_normal((26, 5)) * np.geomspace(0.2, 5, 26)[:, None]


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("rule", [None, clipping.QuantileNorm(0.5), clipping.TrimmedNorm(0.25)])
def test_it_is_the_mean_factor_of_steps_on_the_same_partitions(gradients, size, rule):
    found = example_weights(gradients, size, rule=rule, batch_size=8, partitions=7, rng=3)
    gram, draw, total = Gram(gradients), stream(SeedSequence(3), "partitions"), np.zeros((2, 26))
    for _ in range(7):
        order = draw.permutation(26)
        for batch in (order[:8], order[8:16], order[16:24]):
            step = gram.step(size, rule=rule, examples=batch)
            total[0, batch] += np.repeat(step.factors, size)
            total[1, batch] += 1
    np.testing.assert_allclose(found, total[0] / total[1], rtol=1e-12)


def test_it_is_the_expectation_over_all_partitions():
    """Four examples in pairs: three partitions, each as likely."""
    rows = np.array([[3.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-2.0, 1.0]])
    every = []
    for order in itertools.permutations(range(4)):
        means = rows[list(order)].reshape(2, 2, 2).mean(axis=1)
        norms = np.linalg.norm(means, axis=1)
        factors = np.empty(4)
        factors[list(order)] = np.repeat(norms.min() / norms, 2)
        every.append(factors)
    found = example_weights(rows, 2, batch_size=4, partitions=4000)
    # Factors are in [0, 1]: five standard errors are at most 5/(2√4000) = 0.04.
    np.testing.assert_allclose(found, np.mean(every, axis=0), atol=0.04)


def test_long_gradients_weigh_less_and_without_clipping_all_weigh_one(gradients):
    found = example_weights(gradients, 1, batch_size=16)
    assert np.argsort(-found)[:5].max() < 13
    assert found[-1] < 0.2 * found[0]
    assert (example_weights(gradients, 2, batch_size=16, rule=clipping.NoClipping()) == 1).all()


def test_what_no_partition_had_is_nan_and_seeds_decide(gradients):
    one = example_weights(gradients, 2, batch_size=16, partitions=1, rng=5)
    assert np.isnan(one).sum() == 10
    again = example_weights(Gram(gradients), 2, batch_size=16, partitions=1, rng=5)
    np.testing.assert_array_equal(one, again)
    other = example_weights(gradients, 2, batch_size=16, partitions=1, rng=6)
    assert not np.array_equal(one, other, equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch_size": 3}, "micro_batch_size=3 must divide batch_size=8"),
        (
            {"batch_size": 64, "micro_batch_size": 1},
            "batch_size=64 must be at most the 26 examples",
        ),
        ({"partitions": 0}, "partitions=0 must be an integer of at least 1"),
        ({"rule": "smallest"}, "rule='smallest' must be a clipping rule"),
        ({"rng": None}, "rng=None must be"),
        ({"gradients": np.full((26, 2), np.nan)}, "gradients must be finite"),
    ],
)
def test_bad_calls(gradients, changes, message):
    arguments = {"gradients": gradients, "micro_batch_size": 2, "batch_size": 8, **changes}
    with pytest.raises(InvalidArgument) as caught:
        mbsim.example_weights(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
