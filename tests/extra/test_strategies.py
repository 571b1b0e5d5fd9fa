"""The strategies: all that is drawn is valid, reaches what is promised, and shrinks."""

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import mbsim
from mbsim import theory
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, UnitNorm
from mbsim.errors import InvalidArgument
from mbsim.extra import hypothesis as strategies
from mbsim.extra.hypothesis import (
    batch_sizes,
    benign_and_draggers,
    bound_values,
    draggers,
    gradient_batches,
    losses,
    methods,
    micro_batch_sizes,
    noises,
    problems,
    rules,
)
from mbsim.problems.losses import LogCosh, Loss, Quadratic, Ripple
from mbsim.problems.noise import Exponential, Gaussian, NoiseLaw, StudentT, TwoPoint
from mbsim.theory import QUANTITIES, Formula, formula_bound

# What is looked for is looked for among this many draws: seldom more than some tens are needed.
SOON = settings(max_examples=1000, derandomize=True, database=None, deadline=None)


def found(strategy, condition=lambda _: True, *, simplest=False):
    phases = (Phase.generate, Phase.shrink) if simplest else (Phase.generate,)
    return find(strategy, condition, settings=settings(SOON, phases=phases))


# ------------------------------------------------------------------------- all is valid


@given(loss=losses(), data=st.data())
def test_losses_are_losses_of_their_dimension(loss, data):
    assert isinstance(loss, Loss)
    w = data.draw(st.lists(st.floats(-4, 4), min_size=loss.dim, max_size=loss.dim))
    assert loss.gradient(np.array(w)).shape == (loss.dim,)
    assert loss.value(np.array(w)) >= loss.minimum
    assert data.draw(losses(dim=loss.dim)).dim == loss.dim


@given(law=noises(), dim=st.integers(1, 4))
def test_noises_draw_what_is_finite(law, dim):
    assert isinstance(law, NoiseLaw)
    for part in law.mean_of(np.array([0, 1, 5]), dim, np.random.default_rng(0)):
        assert np.isfinite(part).all()


def skew(law):
    """E ν³/σ³ of one example's component along the gradient, from the laws' definitions."""
    share = 1 - getattr(law, "isotropic_share", 1.0)
    if isinstance(law, TwoPoint):
        return share**1.5 * (1 - 2 * law.rare) / math.sqrt(law.rare * (1 - law.rare))
    return share**1.5 * 2 if isinstance(law, Exponential) else 0.0


@given(even=noises(symmetric=True), skewed=noises(symmetric=False))
def test_symmetric_noise_has_no_skew_and_other_noise_has_some(even, skewed):
    assert skew(even) == 0
    # Two-point: (1 − 2·31/64)/½ at the least, times (1/4)^(3/2).
    assert abs(skew(skewed)) > 1 / 16 / 8 * (1 - 1e-12)
    assert skewed.sigma > 0


@given(
    problem=problems(),
    batch=st.integers(1, 8),
    data=st.data(),
    engine=st.sampled_from(["reference", "exact_law"]),
)
@settings(max_examples=60)
def test_problems_and_methods_run_on_both_engines(problem, batch, data, engine):
    assert problem.draggers.tilt == 0
    assert math.isfinite(problem.initial_gap)
    assert problem.initial_gap >= 0
    run = mbsim.simulate(
        problem,
        data.draw(methods(batch_size=batch)),
        batch_size=batch,
        step_size=0.01,
        steps=2,
        replicates=2,
        rng=0,
        engine=engine,
        threads=1,
    )
    assert run.engine == engine
    assert np.isfinite(run.grad_norm_sq[:, 0]).all()


@given(rule=rules(), gradients=gradient_batches(), data=st.data())
def test_rules_take_gradients_that_are_drawn(rule, gradients, data):
    size = data.draw(micro_batch_sizes(len(gradients)))
    assert len(gradients) % size == 0
    assert np.isfinite(mbsim.clipping.update(gradients, size, rule)).all()


@given(rule=rules(), gradients=gradient_batches(smallest=1e-250, largest=1e250))
def test_rules_take_gradients_of_every_size(rule, gradients):
    assert np.isfinite(mbsim.clipping.apply(gradients, rule)).all()


@given(gradients=gradient_batches(zeros=False, smallest=1e-3, largest=1e3))
def test_gradients_keep_their_limits(gradients):
    assert np.abs(gradients).min() >= 1e-3
    assert np.abs(gradients).max() <= 1e3


@given(batch=batch_sizes(largest=30))
def test_batch_sizes_keep_their_limit(batch):
    assert 1 <= batch <= 30


@pytest.mark.parametrize("rule", [None, SmallestNorm(), rules(kinds=[QuantileNorm])], ids=str)
@given(data=st.data(), batch=batch_sizes())
def test_methods_split_every_batch(rule, data, batch):
    method = data.draw(methods(batch_size=batch, rule=rule))
    assert batch % method.micro_batches(batch) == 0
    if rule == SmallestNorm() and method != mbsim.SGD():
        assert method.rule == rule


# ------------------------------------------------------------------------- parts may be fixed


@given(data=st.data())
def test_fixed_parts_of_a_problem_are_kept(data):
    parts = {
        "loss": losses(dim=7),
        "noise": Gaussian(sigma=0.25),
        "draggers": draggers(probability=0.1, norm_ratio=5.0),
        "benign_dim": st.integers(2, 4),
        "start": np.arange(7.0),
    }
    names = data.draw(st.sets(st.sampled_from(sorted(parts))))
    problem = data.draw(problems(**{name: parts[name] for name in names}))
    if "loss" in names or "start" in names:
        assert problem.dimension == 7
    if "noise" in names:
        assert problem.noise == parts["noise"]
    if "draggers" in names:
        assert (problem.draggers.probability, problem.draggers.norm_ratio) == (0.1, 5.0)
    if "benign_dim" in names:
        assert 2 <= problem.benign_dim <= 4
    if "start" in names:
        np.testing.assert_array_equal(problem.start, parts["start"])


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@given(data=st.data())
@settings(max_examples=10)
def test_draggers_fit_into_few_dimensions(dim, data):
    """In one or two dimensions there is no room for draggers, in three none to be half alike."""
    problem = data.draw(problems(loss=LogCosh(dim)))
    assert problem.draggers.dimensions_needed <= max(0, dim - 2)
    fixed = data.draw(problems(loss=LogCosh(dim), benign_dim=dim))
    assert fixed.draggers.dimensions_needed == 0


def test_parts_that_do_not_fit_say_so():
    made = problems(loss=LogCosh(2), draggers=draggers(probability=0.1, norm_ratio=1.0))
    with pytest.raises(InvalidArgument, match="dimensions for the draggers"):
        found(made)


# ------------------------------------------------------------------------- what is reached


@pytest.mark.parametrize(
    ("strategy", "condition"),
    [
        (problems(), lambda it: 0 < it.draggers.coherence < 1 and it.draggers.dimensions_needed),
        (problems(), lambda it: it.draggers.coherence == 1 and it.draggers.dimensions_needed),
        (problems(), lambda it: it.noise.sigma == 0),
        (problems(), lambda it: it.draggers.probability > 0 and it.draggers.norm_ratio > 20),
        (problems(), lambda it: it.dragger_dim == 0 and it.benign_dim == it.dimension),
        (problems(), lambda it: it.initial_grad_norm == 0),
        (problems(), lambda it: isinstance(it.noise, StudentT)),
        (losses(), lambda it: isinstance(it, Ripple) and it.amplitude > 0.5),
        (losses(), lambda it: isinstance(it, Quadratic) and it.eigenvalues.min() == 0),
        (losses(), lambda it: isinstance(it, Quadratic) and 0 < it.eigenvalues.min() < 1e-4),
        (noises(), lambda it: isinstance(it, TwoPoint) and it.rare < 0.1),
        (noises(), lambda it: isinstance(it, TwoPoint) and it.rare > 0.9),
        (noises(symmetric=True), lambda it: isinstance(it, TwoPoint) and it.isotropic_share == 0),
        (methods(batch_size=12), lambda it: it == mbsim.SGD()),
        (methods(batch_size=12), lambda it: it.micro_batches(12) == 12),
        (methods(batch_size=12), lambda it: getattr(it, "micro_batch_size", 0) == 12),
        (rules(), lambda it: it == QuantileNorm(1.0)),
        (rules(), lambda it: it == UnitNorm(0.0)),
        (rules(), lambda it: isinstance(it, FixedNorm)),
        (gradient_batches(), lambda it: len(it) > 3 and not it.any()),
        (gradient_batches(), lambda it: (~it.any(axis=1)).sum() == 1 and len(it) > 3),
        (gradient_batches(), lambda it: len(it) > 1 and it.any() and (it == it[0]).all()),
        (gradient_batches(), lambda it: len(it) == 2 and it.any() and (it[0] == -it[1]).all()),
        (gradient_batches(zeros=False), lambda it: np.ptp(np.log10(np.abs(it))) > 15),
        (batch_sizes(), lambda it: it == 64),
        (benign_and_draggers(), lambda it: np.count_nonzero(it.gradients[it.is_dragger]) > 6),
        (benign_and_draggers(), lambda it: (~it.gradients[~it.is_dragger].any(axis=1)).any()),
    ],
    ids=range(27),
)
def test_what_is_promised_is_reached(strategy, condition):
    assert condition(found(strategy, condition))


# ------------------------------------------------------------------------- shrinking


def simplest(strategy, condition=lambda _: True):
    return found(strategy, condition, simplest=True)


def test_failures_shrink_to_what_is_simple():
    problem = simplest(problems())
    assert problem == mbsim.Problem(
        loss=Quadratic([1.0]), noise=Gaussian(sigma=0.0), benign_dim=1, start=[1.0]
    )
    noisy = simplest(problems(), lambda it: it.noise.sigma > 0 and it.draggers.dimensions_needed)
    assert (noisy.noise, noisy.dimension, noisy.benign_dim) == (Gaussian(sigma=1.0), 3, 1)
    assert (noisy.draggers.norm_ratio, noisy.draggers.coherence) == (1.0, 0.0)
    assert simplest(rules()) == NoClipping()
    assert simplest(methods(batch_size=8)) == mbsim.SGD()
    np.testing.assert_array_equal(simplest(gradient_batches()), [[0.0]])
    np.testing.assert_array_equal(simplest(gradient_batches(zeros=False)), [[1.0]])
    sample = simplest(benign_and_draggers())
    np.testing.assert_array_equal(sample.gradients, np.eye(2))
    np.testing.assert_array_equal(sample.is_dragger, [False, True])


# ------------------------------------------------------------------------- labelled gradients


@given(sample=benign_and_draggers())
def test_labelled_gradients_satisfy_assumption_4(sample):
    gradients, is_dragger, ratio = sample
    benign, strange = gradients[~is_dragger], gradients[is_dragger]
    size = math.sqrt(np.square(benign).sum(axis=1).mean())
    lengths = np.linalg.norm(strange, axis=1)
    # 1e-12: far above the rounding of a rotation in up to eight dimensions, some 1e-15.
    np.testing.assert_allclose(lengths, ratio * size, rtol=1e-12)
    inner = np.abs(benign @ strange.T)
    assert (inner <= 1e-12 * size * ratio * size * math.sqrt(len(benign))).all()
    assert 1 <= len(benign) <= 8
    assert 1 <= len(strange) <= 4


@given(data=st.data())
def test_labelled_gradients_have_the_sizes_asked_for(data):
    sizes = {"benign": 5, "draggers": 2, "benign_dim": 3, "dragger_dim": 4}
    gradients, is_dragger, ratio = data.draw(benign_and_draggers(**sizes, norm_ratio=0.5))
    assert gradients.shape == (7, 7)
    assert (is_dragger.sum(), ratio) == (2, 0.5)
    # Rank within rounding: singular values below 1e-9 of the largest are none.
    for rows, most in ((gradients[~is_dragger], 3), (gradients[is_dragger], 4)):
        assert np.linalg.matrix_rank(rows, tol=1e-9 * np.abs(rows).max()) <= most


# ------------------------------------------------------------------------- settings of bounds

BOUNDS = (
    theory.sgd_bound(),
    theory.sgd_bound("sharper"),
    theory.sgd_tuned_bound(),
    theory.clipping_bound(),
    theory.clipping_concentrated_bound(averaging=True),
    theory.tuned_bound(theory.clipping_concentrated_bound()),
    theory.symmetric_bound("unimodal", "sharper"),
    theory.clipping_drift_bound(),
    theory.bias_bound(),
    theory.micro_batch_norm_ratio(),
    formula_bound("2*Delta/(eta*T) + eta*L*sigma**2/m"),
)


@pytest.mark.parametrize("bound", BOUNDS, ids=range(len(BOUNDS)))
@given(data=st.data())
@settings(max_examples=10)
def test_bound_values_can_be_evaluated_and_hold(bound, data):
    values = data.draw(bound_values(bound))
    assert tuple(values) == bound.names
    assert math.isfinite(bound.evaluate(**values))
    if type(bound) is not Formula:
        assert bound.holds(**values)


@given(data=st.data())
@settings(max_examples=10)
def test_one_setting_for_many_bounds(data):
    values = data.draw(bound_values(*BOUNDS, probability=0.1, batch_size=st.just(12)))
    assert set(values) == {name for bound in BOUNDS for name in bound.names}
    assert (values["probability"], values["batch_size"]) == (0.1, 12)
    for bound in BOUNDS:
        chosen = {name: values[name] for name in bound.names}
        assert math.isfinite(bound.evaluate(**chosen))
        if hasattr(bound, "holds"):
            assert bound.holds(**chosen)


@given(data=st.data())
def test_every_quantity_is_drawn_within_its_range(data):
    everything = Formula(
        name="all", expression=sum(q.symbol for q in QUANTITIES.values()), source=""
    )
    values = data.draw(bound_values(everything))
    assert set(values) == set(QUANTITIES)
    everything.evaluate(**values)
    assert values["dragger_count"] < values["micro_batch_size"]


def test_without_holding_some_settings_do_not_hold():
    bound = theory.symmetric_bound()
    values = found(bound_values(bound, holding=False), lambda it: not bound.holds(**it))
    assert math.isfinite(bound.evaluate(**values))


# ------------------------------------------------------------------------- bad calls


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: losses(dim=0), "dim=0 must be an integer of at least 1"),
        (lambda: losses(kinds=[Gaussian]), "must be some of Quadratic, LogCosh, Ripple"),
        (lambda: losses(kinds=Ripple(1, 1.0)), "must be some of Quadratic"),
        (lambda: noises(laws=[]), r"laws=\[\] must be some of Gaussian, TwoPoint"),
        (lambda: noises(symmetric=False, laws=[Gaussian]), "leaves none of the laws Gaussian"),
        (lambda: rules(kinds=[str]), "must be some of NoClipping"),
        (lambda: batch_sizes(largest=0), "largest=0 must be an integer of at least 1"),
        (lambda: micro_batch_sizes(0), "batch_size=0 must be"),
        (lambda: methods(batch_size=2.5), "batch_size=2.5 must be"),
        (lambda: bound_values(theory.sgd_bound(), pi=3), "pi is no quantity of these bounds"),
        (lambda: gradient_batches(batch_size=0), "batch_size=0 must be"),
        (lambda: gradient_batches(smallest=1, largest=2), "largest=2 must be at least 16"),
        (lambda: benign_and_draggers(benign=0), "benign=0 must be"),
    ],
    ids=range(13),
)
def test_bad_calls(call, says):
    with pytest.raises(InvalidArgument, match=says):
        call()


def test_a_condition_of_another_kind_is_refused():
    import sympy

    (gap,) = theory.symbols("initial_gap")
    condition = theory.Condition(
        name="initial_gap", comparison="<=", limit=sympy.Integer(1), sentence=""
    )
    bound = theory.Bound(name="x", kind="limit", expression=gap, source="", conditions=(condition,))
    with pytest.raises(InvalidArgument, match="no limit on step_size or steps"):
        found(bound_values(bound))
    assert simplest(bound_values(bound, holding=False)) == {"initial_gap": 1.0}


def test_every_strategy_takes_keywords_and_is_listed():
    for name in strategies.__all__:
        thing = getattr(strategies, name)
        if inspect.isfunction(thing) and name != "micro_batch_sizes":
            kinds = {p.kind for p in inspect.signature(thing).parameters.values()}
            assert inspect.Parameter.POSITIONAL_OR_KEYWORD not in kinds, name


def test_without_hypothesis_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import mbsim\n"
        "try:\n    import mbsim.extra.hypothesis\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    remedy = "pip install 'microbatch-clipping[testing]'"
    assert done.stdout == f"mbsim.extra.hypothesis needs Hypothesis: {remedy}\n"
