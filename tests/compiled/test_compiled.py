"""Compiled code against NumPy, SciPy and the classes whose twins it holds."""

import dataclasses
import itertools

import numpy as np
import processes
import pytest
from draws import _uniform, many
from numba import njit
from numpy.random import SFC64, Generator
from same_law import LAWS, RULES, OtherLaw, same_law, step_statistics
from scipy import stats

import mbsim
from mbsim import Draggers, MicroBatchClipping, Problem
from mbsim._shared.seeds import states
from mbsim.clipping import QuantileNorm, UnitNorm
from mbsim.compiled import step
from mbsim.compiled.draws import _ziggurat, normal
from mbsim.compiled.twins import twin_of
from mbsim.problems.losses import LogCosh, Quadratic, Ripple
from mbsim.problems.micro_batches import draw_micro_batches, numbers_of, table_of
from mbsim.testing import _distance, _distance_limit

# ------------------------------------------------------------------------- random numbers


def test_the_generator_is_sfc64_bit_for_bit():
    theirs = SFC64(12)
    words = theirs.state["state"]["state"]
    state = states(np.random.default_rng(0), 1)
    for name, word in zip(("a", "b", "c", "counter"), words, strict=True):
        state[name] = word
    ours = np.empty(1000)
    with np.errstate(over="ignore"):
        _uniform(state[0], ours)
    np.testing.assert_array_equal(ours, Generator(theirs).random(1000))


def test_the_layers_of_the_ziggurat_have_equal_areas():
    """Each is as wide as the curve at its top, and they end at the top of the curve."""
    widths = _ziggurat()
    heights = np.exp(-(widths**2) / 2)
    areas = widths[1:-1] * np.diff(heights[1:])
    base = widths[1] * heights[1] + stats.norm.sf(widths[1]) * np.sqrt(2 * np.pi)
    # The start is the published one, to 17 digits; 255 layers multiply its rounding.
    np.testing.assert_allclose(areas, base, rtol=1e-12)
    assert widths[0] * heights[1] == pytest.approx(base, rel=1e-14)


KINDS = {
    "uniform": ((), stats.uniform()),
    "normal": ((), stats.norm()),
    "gamma of 1": (("gamma", 1.0), stats.gamma(1.0)),
    "gamma of 1.5": (("gamma", 1.5), stats.gamma(1.5)),
    "gamma of 300": (("gamma", 300.0), stats.gamma(300.0)),
    "chi_square of 1": (("chi_square", 1), stats.chi2(1)),
    "chi_square of 2": (("chi_square", 2), stats.chi2(2)),
    "chi_square of 31": (("chi_square", 31), stats.chi2(31)),
    "cosine in 2": (("cosine", 2), stats.beta(0.5, 0.5, loc=-1, scale=2)),
    "cosine in 3": (("cosine", 3), stats.uniform(loc=-1, scale=2)),
    "cosine in 40": (("cosine", 40), stats.beta(19.5, 19.5, loc=-1, scale=2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_have_their_distribution(kind):
    """Kolmogorov-Smirnov at the rate 1e-6; a scale off by 2 % is told apart."""
    (name, *parameters), law = KINDS[kind][0] or (kind,), KINDS[kind][1]
    sample = many(name, 2**20, *parameters, rng=len(kind))
    assert stats.kstest(sample, law.cdf).pvalue > 1e-6
    assert stats.kstest(1.02 * sample, law.cdf).pvalue < 1e-6
    assert np.unique(sample).size > 0.99 * sample.size


def test_the_tails_of_normal_numbers():
    """Beyond the last layer, at 3.654, where numbers are made in another way."""
    sample = np.abs(many("normal", 2**23))
    tail = sample[sample > 3.6541528853610088]
    expected = 2 * stats.norm.sf(3.6541528853610088)
    low, high = stats.binom(sample.size, expected).ppf([5e-7, 1 - 5e-7])
    assert low <= tail.size <= high
    assert stats.kstest(stats.norm.sf(tail) * 2 / expected, "uniform").pvalue > 1e-6


@pytest.mark.parametrize(
    ("trials", "p"), [(1, 0.3), (16, 0.1), (17, 0.5), (100, 0.03), (5000, 0.7)]
)
def test_binomial_numbers(trials, p):
    sample, law = many("binomial", 2**18, trials, p), stats.binom(trials, p)
    values, counts = np.unique(sample, return_counts=True)
    assert values.min() >= 0
    assert values.max() <= trials
    often = law.pmf(values) * sample.size > 20
    expected = law.pmf(values[often]) * sample.size
    rest = sample.size - counts[often].sum(), sample.size - expected.sum()
    found = np.append(counts[often], rest[0])
    expected = np.append(expected, rest[1])
    kept = expected > 1e-6 * sample.size
    found, expected = found[kept], expected[kept] * (found[kept].sum() / expected[kept].sum())
    assert stats.chisquare(found, expected).pvalue > 1e-6
    wrong = stats.binom(trials, 1.02 * p).pmf(values[often]) * sample.size
    if trials > 1:  # told apart from 2 % more
        scale = counts[often].sum() / wrong.sum()
        assert stats.chisquare(counts[often], wrong * scale).pvalue < 1e-6


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.05, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("b", [1, 2, 7, 64, 3000])
def test_the_table_of_aliases_is_the_binomial_law(b, p):
    values, chances = table_of(b, p)
    assert ((chances >= 0) & (chances <= 1)).all()
    implied = np.zeros(b + 1)
    np.add.at(implied, b - values[0], chances / chances.size)
    np.add.at(implied, b - values[1], (1 - chances) / chances.size)
    # Logarithms of factorials of 3000 have the size 2e4, so their roundings are some 1e-12.
    np.testing.assert_allclose(
        implied, stats.binom(b, p).pmf(np.arange(b + 1)), rtol=1e-10, atol=1e-15
    )


def test_streams_differ_and_do_not_depend_on_what_else_is_made():
    found = states(np.random.default_rng(1), 64)
    assert np.unique(found).size == 64
    assert (found == states(np.random.default_rng(1), 64)).all()


# ------------------------------------------------------------------------- twins


@pytest.mark.parametrize("rule", [*RULES, QuantileNorm(0), QuantileNorm(1), UnitNorm(0)], ids=str)
def test_a_rule_and_its_twin_give_the_same_factors(rule):
    function, numbers = twin_of("rule", rule)
    rng, tried = np.random.default_rng(3), 0
    for m in (1, 2, 3, 10, 257):
        for norms in (
            rng.random(m),
            np.zeros(m),
            np.where(rng.random(m) < 0.3, 0.0, rng.random(m)),
            rng.integers(1, 4, m) * 0.25,  # ties
            np.exp(rng.uniform(-700, 700, m)),
            np.ldexp(rng.random(m), -1060),
        ):
            factors, given = np.full(m, np.nan), norms.copy()
            with np.errstate(all="ignore"):
                function(given, numbers, factors)
            np.testing.assert_array_equal(factors, rule.factors(norms))
            np.testing.assert_array_equal(given, norms)
            tried += 1
    assert tried == 30


LOSSES = Quadratic(np.geomspace(0.1, 1, 7)), LogCosh(7), Ripple(7, amplitude=1.5)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_loss_and_its_twin_have_the_same_value_and_gradient(loss):
    function, numbers = twin_of("loss", loss)
    rng = np.random.default_rng(4)
    for scale in (0.0, 1e-150, 1e-8, 0.1, 1.0, 30.0, 1e3):
        for d in range(1, 8):
            kind = type(loss)
            part = (
                Quadratic(loss.eigenvalues[-d:])
                if kind is Quadratic
                else dataclasses.replace(loss, dim=d)
            )
            function, numbers = twin_of("loss", part)
            w, gradient = scale * rng.standard_normal(d), np.full(d, np.nan)
            found = function(w, numbers, gradient)
            # Some roundings of 1e-16 in a sum of seven terms.
            np.testing.assert_allclose(gradient, part.gradient(w), rtol=1e-14, atol=0)
            np.testing.assert_allclose(found, part.value(w), rtol=1e-14, atol=0)


def draws_of(law, function, numbers, counts, seed):
    state = states(np.random.default_rng(seed), 1)[0]
    along, across = np.empty(counts.size), np.empty(counts.size)
    with np.errstate(over="ignore"):
        function(counts, 8, numbers, state, along, across)
    return along, across


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_a_law_and_its_twin_draw_the_same(law, count):
    """Both numbers and their products, by distance at the rate 1e-6; and a control."""
    function, numbers = twin_of("noise", law)
    size = 2**15
    counts = np.full(size, count)
    ours = draws_of(law, function, numbers, counts, count)
    theirs = law.mean_of(counts, 8, np.random.default_rng(count))
    if count == 0:
        assert not np.any(ours)
        return
    for one, other in zip(
        (*ours, ours[0] * ours[1], ours[0] ** 2 + 7 * ours[1] ** 2),
        (*theirs, theirs[0] * theirs[1], theirs[0] ** 2 + 7 * theirs[1] ** 2),
        strict=True,
    ):
        assert _distance(one, other) <= _distance_limit(size)
    assert _distance(1.1 * ours[0] + 0.05 * law.sigma, theirs[0]) > _distance_limit(size)


# ------------------------------------------------------------------------- one micro-batch


def test_the_coordinate_of_a_part_across_is_one_of_its_coordinates():
    """‖Y‖² and one coordinate, jointly: those of a Gaussian vector of n − 1 dimensions."""
    n, size = 6, 2**16
    whole = Problem(
        loss=Quadratic(np.ones(9)), noise=mbsim.noise.Gaussian(), benign_dim=n, start=np.ones(9)
    )
    sizes_, model = numbers_of(whole, size, 1)
    counts, room = np.ones(size, np.int64), np.zeros((step.ROWS, size))
    room[step.ACROSS] = 1
    state = states(np.random.default_rng(2), 1)[0]
    with np.errstate(over="ignore"):
        step.draw_lengths(state, sizes_, model, counts, room)
    vectors = np.random.default_rng(3).standard_normal((size, n - 1))
    lengths = np.linalg.norm(vectors, axis=1)
    for ours, theirs in (
        (room[step.ACROSS], lengths),
        (room[step.COORDINATE], vectors[:, 0]),
        (room[step.COORDINATE] / room[step.ACROSS], vectors[:, 0] / lengths),
        (room[step.COORDINATE] * room[step.ACROSS], vectors[:, 0] * lengths),
    ):
        assert _distance(ours, theirs) <= _distance_limit(size)
    wrong = np.sqrt(np.square(vectors[:, 1:]).sum(axis=1))
    assert _distance(room[step.ACROSS], wrong) > _distance_limit(size)


def test_micro_batches_of_a_law_that_is_not_compiled_have_the_same_law():
    for law in LAWS:
        whole = Problem(
            loss=Quadratic(np.ones(9)),
            noise=law,
            draggers=Draggers(probability=0.3, norm_ratio=2.0, coherence=0.4),
            benign_dim=4,
            start=np.ones(9),
        )
        plain = dataclasses.replace(whole, noise=without_twin(law))
        assert twin_of("noise", plain.noise) is None
        one, other = (
            draw_micro_batches(p, 3, (2**14,), np.random.default_rng(i))
            for i, p in enumerate((whole, plain))
        )
        for name in ("benign", "noise", "across", "own", "shared"):
            a, b = getattr(one, name), getattr(other, name)
            assert _distance(a, b) <= _distance_limit(a.size), (law, name)


# ------------------------------------------------------------------------- a step, all compiled


def without_twin(part):
    """The same law, rule or loss, of a class that does not say how it is compiled."""
    kind = type(part)
    return type("Plain" + kind.__name__, (kind,), {})(
        **{f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    )


def one_step(noise, rule, draggers, g, n, seed, *, plain=False, replicates=1024):
    """u of one step: in a run where all is compiled, or where nothing is."""
    d = g.size
    noise, rule = (without_twin(noise), without_twin(rule)) if plain else (noise, rule)
    run = mbsim.simulate(
        Problem(loss=Quadratic(np.ones(d)), noise=noise, draggers=draggers, benign_dim=n, start=g),
        MicroBatchClipping(2, rule=rule),
        batch_size=6,
        step_size=1.0,
        steps=1,
        replicates=replicates,
        rng=seed,
        engine="exact_law",
    )
    return g - run.final_w


SLANTED = np.array([0.5, -0.3, 0.2, -0.1, -0.4, 0.3, 0.5, -0.2, 0.1])
SLANTED = SLANTED / np.linalg.norm(SLANTED)


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_compiled_and_lane_by_lane_are_the_same_law(noise, rule):
    for gamma, tilt, r in itertools.product((0.0, 0.4, 1.0), (0.0, 0.5), (0.02, 1.0, 30.0)):
        draggers = Draggers(probability=0.2, norm_ratio=3.0, coherence=gamma, tilt=tilt)
        one, other = (
            step_statistics(
                one_step(noise, rule, draggers, r * SLANTED, 4, seed, plain=plain), r * SLANTED, 4
            )
            for seed, plain in enumerate((False, True))
        )
        # 8.8/√1024 of each root mean square.
        same_law(one, other, what=f"γ = {gamma}, t = {tilt}, r = {r}", detects=0.276)


def test_a_step_with_more_noise_is_told_apart():
    draggers = Draggers(probability=0.2, norm_ratio=3.0)
    one, other = (
        step_statistics(
            one_step(
                mbsim.noise.Gaussian(sigma=s), RULES[0], draggers, SLANTED, 4, i, replicates=2**15
            ),
            SLANTED,
            4,
        )
        for i, s in enumerate((1.0, 1.05))
    )
    with pytest.raises(OtherLaw):
        same_law(one, other, what="louder", detects=0.276)


# ------------------------------------------------------------------------- twins of one's own


@njit
def halved(w, numbers, gradient):
    total = 0.0
    for i in range(w.size):
        gradient[i] = numbers[0] * w[i]
        total += 0.5 * gradient[i] * w[i]
    return total


@njit
def normal_noise(counts, benign_dim, numbers, state, along, across):
    for j in range(counts.size):
        along[j] = across[j] = 0.0
        if counts[j] > 0:
            across[j] = numbers[0] / np.sqrt(counts[j] * benign_dim)
            along[j] = across[j] * normal(state)


def shortened(norms, numbers, factors):
    for j in range(norms.size):
        factors[j] = 1.0 if norms[j] <= numbers[0] else numbers[0] / norms[j]


def saying(part, compiled):
    own = without_twin(part)
    type(own).compiled = compiled
    return own


def runs_of(loss, noise, rule):
    return mbsim.simulate(
        Problem(
            loss=loss,
            noise=noise,
            draggers=Draggers(probability=0.2, norm_ratio=3.0),
            benign_dim=4,
            start=np.ones(9),
        ),
        MicroBatchClipping(2, rule=rule),
        batch_size=6, step_size=0.1, steps=20, replicates=70, rng=0,
    )  # fmt: skip


def test_parts_of_ones_own_are_compiled_into_the_same_run():
    library = Quadratic(np.full(9, 0.5)), mbsim.noise.Gaussian(sigma=1.3), RULES[2]
    assert isinstance(RULES[2], mbsim.clipping.FixedNorm)
    ones_own = (
        saying(library[0], (halved, [0.5])),
        saying(library[1], (normal_noise, [1.3])),
        saying(library[2], (shortened, np.array([RULES[2].threshold]))),
    )
    theirs = runs_of(*library)
    for place in range(3):
        mixed = list(library)
        mixed[place] = ones_own[place]
        ours = runs_of(*mixed)
        np.testing.assert_array_equal(ours.final_w, theirs.final_w)
    # That the twin was what ran: one that says something else changes the run.
    other = runs_of(library[0], library[1], saying(library[2], (shortened, [0.1])))
    assert np.abs(other.final_w - theirs.final_w).max() > 1e-3


@njit
def of_too_few(w, numbers):
    return 0.0


@njit
def of_no_number(w, numbers, gradient):
    return "text"


@pytest.mark.parametrize(
    "said",
    [
        3,
        (halved,),
        (halved, [np.nan]),
        (halved, "text"),
        ("halved", [1.0]),
        (of_too_few, [1.0]),
        (of_no_number, [1.0]),
    ],
    ids=["no pair", "no numbers", "NaN", "text for numbers", "text", "too few", "no number"],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(said):
    loss = saying(LogCosh(9), said)
    rule = r"loss=.* must say compiled=\(function, numbers\)"
    with pytest.raises(mbsim.InvalidArgument, match=rule) as error:
        runs_of(loss, mbsim.noise.Gaussian(), RULES[1])
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------- where it is compiled

RUNS = """
import numpy as np, mbsim
for noise, rule in (
    (mbsim.noise.StudentT(), mbsim.clipping.QuantileNorm(0.5)),
    (mbsim.noise.TwoPoint(isotropic_share=0.5), mbsim.clipping.SmallestNorm()),
    (mbsim.noise.Exponential(), mbsim.clipping.FixedNorm(1.0)),
):
    problem = mbsim.Problem(
        loss=mbsim.losses.LogCosh(9), noise=noise, benign_dim=4, start=np.ones(9),
        draggers=mbsim.Draggers(probability=0.2, norm_ratio=3.0, coherence=0.4))
    run = mbsim.simulate(
        problem, mbsim.MicroBatchClipping(20, rule=rule), batch_size=60, step_size=0.1, steps=10,
        replicates=3, rng=0)
    print(*run.mean_grad_norm_sq, *mbsim.draw_updates(
        problem, mbsim.SGD(), np.ones(9), batch_size=3, replicates=2, rng=0).ravel())
"""


def test_without_a_compiler_the_numbers_are_the_same():
    with_it, without = (
        processes.run(RUNS, NUMBA_DISABLE_JIT=choice)[0].split() for choice in ("0", "1")
    )
    assert len(with_it) == 3 * (3 + 18)
    # The mathematical functions may come from different libraries: their last digits.
    np.testing.assert_allclose(
        np.array(without, float), np.array(with_it, float), rtol=1e-10, atol=1e-13
    )


def test_where_no_cache_can_be_written_it_runs_all_the_same():
    """Neither beside the source nor in the folder of the user."""
    nowhere = "from numba.core.caching import CacheImpl\nCacheImpl._locator_classes = []\n"
    out, err = processes.run(nowhere + RUNS)
    assert err == ""
    assert out == processes.run(RUNS)[0] != ""
