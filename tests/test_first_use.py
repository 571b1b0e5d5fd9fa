"""What people type in their first ten minutes: it works, or the answer says what was meant."""

from pathlib import Path

import numpy as np
import pytest

import mbsim
from mbsim import SGD, Draggers, InvalidArgument, MicroBatchClipping, clipping, losses, noise
from mbsim._shared import meant as meanings
from mbsim._shared import progress as _progress

ROOT = Path(__file__).parent.parent
PROBLEM = mbsim.Problem(
    loss=losses.Quadratic(np.ones(16)),
    noise=noise.Exponential(),
    draggers=Draggers(probability=0.05, norm_ratio=20),
    benign_dim=8,
    start=np.ones(16),
)
RUN = {"batch_size": 8, "step_size": 0.1, "steps": 20, "replicates": 4, "rng": 0}


def simulate(**changes):
    renamed = {changes.pop("instead_of", None)}
    return mbsim.simulate(
        PROBLEM,
        MicroBatchClipping(2),
        **{name: x for name, x in RUN.items() if name not in renamed},
        **changes,
    )


WRONG = [
    (lambda: simulate(instead_of="step_size", lr=0.1), "lr=0.1", "step_size=0.1"),
    (lambda: simulate(instead_of="step_size", learning_rate=1), "learning_rate=1", "step_size=1"),
    (lambda: simulate(instead_of="step_size", eta=0.1), "eta=0.1", "step_size=0.1"),
    (lambda: simulate(instead_of="rng", seed=0), "seed=0", "rng=0"),
    (lambda: simulate(instead_of="steps", T=9), "T=9", "steps=9"),
    (lambda: simulate(instead_of="steps", setps=9), "setps=9", "steps=9"),
    (lambda: simulate(instead_of="replicates", n_runs=9), "n_runs=9", "replicates=9"),
    (lambda: simulate(instead_of="batch_size", B=8), "B=8", "batch_size=8"),
    (lambda: Draggers(p=0.05, c=20), "p=0.05, c=20", "probability=0.05, norm_ratio=20"),
    (lambda: Draggers(0.05, 20), "0.05, 20", "probability=0.05, norm_ratio=20"),
    (lambda: Draggers(0.05, c=20), "0.05, c=20", "probability=0.05, norm_ratio=20"),
    (lambda: MicroBatchClipping(microbatch_size=8), "microbatch_size=8", "micro_batch_size=8"),
    (lambda: MicroBatchClipping(b=8), "b=8", "micro_batch_size=8"),
    (lambda: noise.Gaussian(std=0.3), "std=0.3", "sigma=0.3"),
    (lambda: noise.TwoPoint(1.0, 0.1), "0.1", "rare=0.1"),
    (lambda: clipping.FixedNorm(max_norm=1), "max_norm=1", "threshold=1"),
    (
        lambda: mbsim.sweet_spot(PROBLEM, batch_size=8, lr=0.1, T=9, criterion="floor"),
        "lr=0.1, T=9, criterion='floor'",
        "step_size=0.1, steps=9, by='floor'",
    ),
    (lambda: mbsim.drift(PROBLEM, SGD(), B=8), "B=8", "batch_size=8"),
    (
        lambda: mbsim.drift(PROBLEM, SGD(), batch_size=8).certify(lr=0.1, T=9),
        "certify(lr=0.1, T=9)",
        "step_size=0.1, steps=9",
    ),
    (
        lambda: mbsim.compare(PROBLEM, [SGD()], batch_size=8, step_size=0.1, steps=9, n_runs=9),
        "n_runs=9",
        "replicates=9",
    ),
    (lambda: mbsim.advise(np.ones((9, 2)), batch_size=8, held_out=0), "held_out=0", "target=0"),
    (lambda: mbsim.check_bound("1", iterations=0, seed=3), "takes formula", "no iterations=0"),
]


@pytest.mark.parametrize(("call", "said", "meant"), WRONG, ids=[row[1] for row in WRONG])
def test_a_call_under_another_name_is_answered_with_what_was_meant(call, said, meant):
    with pytest.raises(TypeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert said in message
    assert meant in message.partition(said)[2]
    assert caught.value.__context__ is None  # one traceback, not two


def test_a_fault_inside_is_no_wrong_call():
    @meanings.answering
    def broken(*, step_size):
        return len(step_size)

    with pytest.raises(TypeError, match="object of type 'float' has no len"):
        broken(step_size=0.1)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'step_size'"):
        broken()


def test_every_other_name_stands_for_a_name_that_there_is():
    for full in meanings._NAMES:
        module, _, name = full.rpartition(".")
        found = mbsim if module == "mbsim" else getattr(mbsim, module.removeprefix("mbsim."))
        assert hasattr(found, name), full
    ours = {
        name
        for module, public in (
            ("mbsim", ["Draggers", "MicroBatchClipping", "MeasuredProblem", "Problem", "simulate"]),
            ("mbsim", ["advise", "check_assumptions", "compare", "reproduce", "sweet_spot"]),
            ("mbsim.noise", ["StudentT", "TwoPoint"]),
            ("mbsim.losses", ["Quadratic", "LogCosh"]),
            ("mbsim.clipping", ["FixedNorm"]),
        )
        for one in public
        for name in meanings.inspect.signature(_public(module, one)).parameters
    }
    letters = {"initial_gap", "smoothness"}  # of formulas
    assert set(meanings._ARGUMENTS) - letters <= ours


def _public(module, name):
    return getattr(mbsim if module == "mbsim" else getattr(mbsim, module[6:]), name)


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        ("noise", "Normal", "mbsim.noise.Gaussian"),
        ("noise", "Quadratic", "mbsim.losses.Quadratic"),
        ("losses", "quadratic", "mbsim.losses.Quadratic"),
        ("clipping", "MinNorm", "mbsim.clipping.SmallestNorm"),
        ("theory", "theorem1", "mbsim.theory.sgd_bound"),
        ("", "Quadratic", "mbsim.losses.Quadratic"),
        ("", "Normal", "mbsim.noise.Gaussian"),
        ("", "sgd", "mbsim.SGD"),
    ],
)
def test_a_name_of_others_leads_to_ours(module, name, meant):
    found = getattr(mbsim, module) if module else mbsim
    with pytest.raises(AttributeError, match=f"{name!r}; did you mean {meant}\\?"):
        getattr(found, name)


def test_the_one_obvious_argument_needs_no_name():
    assert noise.Gaussian(0.3) == noise.Gaussian(sigma=0.3)
    assert noise.StudentT(2.0, df=5) == noise.StudentT(sigma=2.0, df=5)
    assert MicroBatchClipping(8) == MicroBatchClipping(micro_batch_size=8)


def test_whole_numbers_may_be_written_as_floats():
    as_floats = {**RUN, "steps": 2e1, "batch_size": np.float64(8), "replicates": 4.0}
    run = simulate()
    assert mbsim.simulate(PROBLEM, MicroBatchClipping(2.0), **as_floats) == run
    assert type(MicroBatchClipping(2.0).micro_batch_size) is int
    floats = {"batch_size": 8.0, "step_size": 0.1}
    floor = mbsim.drift(PROBLEM, MicroBatchClipping(2), batch_size=8).floor(step_size=0.1)
    assert mbsim.sweet_spot(PROBLEM, **floats, by="floor").curve[2] == floor
    methods = [SGD(), MicroBatchClipping(2)]
    assert mbsim.compare(PROBLEM, methods, **as_floats) == mbsim.compare(PROBLEM, methods, **RUN)
    assert clipping.update(np.ones((8, 2)), 2.0).tolist() == [1.0, 1.0]
    for steps in (20.5, float("nan"), float("inf"), "20", True):
        with pytest.raises(InvalidArgument, match="steps="):
            simulate(instead_of="steps", steps=steps)


def test_a_matrix_is_answered_with_its_eigenvalues():
    with pytest.raises(InvalidArgument, match=r"give numpy.linalg.eigvalsh\(H\)"):
        losses.Quadratic(np.eye(3))


def test_a_refusal_keeps_its_reason_whatever_is_asked_of_it():
    refused = mbsim.drift(PROBLEM, SGD(), batch_size=8).certify(step_size=50, steps=9)
    with pytest.raises(AttributeError, match=r"step size is too large.*no 'check'"):
        refused.check(simulate())
    assert mbsim.check(refused, simulate()).status == "not applicable"


# ---------------------------------------------------------------------------- bounds from a problem


def test_a_bound_is_filled_in_from_a_problem_by_names_or_by_letters():
    bound = mbsim.theory.sgd_bound()
    by_hand = bound.evaluate(
        initial_gap=PROBLEM.initial_gap, smoothness=1, step_size=0.01, steps=1000, batch_size=64,
        probability=0.05, norm_ratio=20, coherence=0, sigma=1,
    )  # fmt: skip
    assert bound.evaluate(PROBLEM, batch_size=64, step_size=0.01, steps=1000) == by_hand
    assert bound.evaluate(PROBLEM, B=64, eta=0.01, T=1000) == by_hand
    assert bound.evaluate(PROBLEM, B=64, η=0.01, T=1000) == by_hand
    assert bound.holds(PROBLEM, B=64, η=0.01, T=1000)
    assert bound.evaluate(PROBLEM, B=64, η=0.01, T=1000, c=0) < by_hand  # what is given goes first
    assert bound.evaluate({"L": 1, "Δ": 8, "p": 0.05, "c": 20, "γ": 0, "σ": 1},
                          B=64, η=0.01, T=1000) == by_hand  # fmt: skip
    with pytest.raises(
        InvalidArgument, match=r"missing: step_size, batch_size; unknown: lr \(step_size\?\)"
    ):
        bound.evaluate(PROBLEM, steps=1000, lr=0.1)
    with pytest.raises(InvalidArgument, match=r"eta=0.1 must not be given twice: it is step_size"):
        bound.evaluate(PROBLEM, steps=1000, step_size=0.1, eta=0.1, batch_size=64)
    with pytest.raises(InvalidArgument, match=r"mbsim.quantities measures mean_weight"):
        mbsim.theory.clipping_bound().evaluate(PROBLEM, B=64, b=8, eta=0.01, T=1000)
    with pytest.raises(InvalidArgument, match=r"known=0.05 must be a problem"):
        bound.evaluate(0.05)


@pytest.fixture(scope="module")
def known():
    made = {"batch_size": 64, "micro_batch_size": 8, "step_size": 0.01, "steps": 1000}
    gaussian = mbsim.Problem(
        loss=PROBLEM.loss, noise=noise.Gaussian(), draggers=PROBLEM.draggers, benign_dim=8,
        start=PROBLEM.start,
    )  # fmt: skip
    return gaussian, mbsim.quantities(gaussian, **made)


def test_table_1_has_numbers_for_clipping_from_a_problem(known):
    problem, found = known
    rows = {row["method"]: row for row in mbsim.theory.table1().evaluate(found)}
    clipping = rows["clipping, any noise"]
    assert clipping["missing"] == []
    assert clipping["bound"] == mbsim.theory.clipping_bound().evaluate(found)
    assert rows["clipping, concentrated norms"]["tuned_bound"] > 0
    assert rows["clipping, symmetric noise"]["bound"] > 0
    # The measured numbers are on the safe side of another sample's.
    steps = mbsim.drift(problem, MicroBatchClipping(8), batch_size=64)
    for r in (0.05, 0.3, 1.0, 4.0):
        assert steps.progress(r) / r > found["progress_rate"] > 0.3
    words = " ".join(str(found).split())
    assert "the problem; probability of a dragger" in words
    assert "measured; at most (1/T) Σ E ω_t" in words
    assert max(map(len, str(found).splitlines())) <= 81  # a mark above a letter takes no column
    assert found.to_dict()["steps"] == {"value": 1000.0, "from": "given"}


def test_what_cannot_be_measured_says_why():
    tilted = mbsim.Problem(
        loss=PROBLEM.loss, noise=noise.Gaussian(), benign_dim=8, start=PROBLEM.start,
        draggers=Draggers(probability=0.1, norm_ratio=5, tilt=-0.3),
    )  # fmt: skip
    found = mbsim.quantities(tilted, batch_size=8, micro_batch_size=2)
    assert found["tilt_against"] == 0.3
    assert "mean_weight" not in found
    assert "not measured: draggers.tilt=-0.3 must be 0" in str(found)
    bound = mbsim.theory.tilted_sgd_bound().evaluate(found, step_size=0.01, steps=100)
    assert bound == mbsim.theory.tilted_sgd_bound().evaluate(tilted, B=8, eta=0.01, T=100)


def test_help_on_the_theory_and_its_page_list_every_function():
    page = (ROOT / "docs" / "theory.md").read_text("utf-8").partition("## 1. Symbols")[0]
    for name in mbsim.theory.__all__:
        assert f"`{name}`" in mbsim.theory.__doc__, name
        if callable(getattr(mbsim.theory, name)) and name[0].islower():
            helpers = ("formula_bound", "parse_formula", "symbols", "tuned_bound")
            assert f"`{name}`" in page or name in (*helpers, "tuned_step_size"), name


# ---------------------------------------------------------------------------- answers in words


def test_a_step_size_that_is_too_large_is_one_line_with_the_largest_usable_one():
    one = mbsim.drift(PROBLEM, SGD(), batch_size=8)
    most = one.largest_step_size
    assert not one.certify(step_size=1.01 * most, steps=10)
    assert one.certify(step_size=0.99 * most, steps=10).value > 0
    assert np.isinf(one.floor(step_size=1.01 * most))
    assert np.isfinite(one.floor(step_size=0.99 * most))
    for by in ("floor", "certificate"):
        found = mbsim.sweet_spot(PROBLEM, batch_size=8, step_size=50, steps=10, by=by)
        assert f"usable is η below {most:.3g}" in found.why_not[8]
        assert "which allows most, usable is η below" in found.reason
        assert len(str(found).splitlines()) <= 3


def test_what_has_no_number_says_so_in_words():
    wild = mbsim.compare(PROBLEM, [SGD(), MicroBatchClipping(2)], **{**RUN, "step_size": 1e3,
                                                                     "steps": 200})  # fmt: skip
    assert str(wild).count("none: 4 of 4 replicates diverged") == 2
    alone = simulate(instead_of="replicates", replicates=1)
    assert "in one replicate" in str(alone)
    gone = mbsim.simulate(PROBLEM, SGD(), **{**RUN, "step_size": 1e3, "steps": 200})
    assert "no number, as replicates diverged" in str(gone)
    for text in map(str, (wild, alone, gone)):
        assert "nan" not in text
        assert "inf" not in text


def test_a_drift_says_what_it_is_of_and_what_to_ask_it():
    text = repr(mbsim.drift(PROBLEM, MicroBatchClipping(2), batch_size=8))
    assert "Drift of clipping, b = 2" in text
    assert ".certify(step_size=…, steps=…)" in " ".join(text.split())
    assert "0x" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("by", ["bias", "bound", "certificate", "floor"])
def test_replicates_are_not_taken_where_nothing_is_simulated(by):
    with pytest.raises(InvalidArgument, match=f"replicates=4 must be left out for by='{by}'"):
        mbsim.sweet_spot(PROBLEM, batch_size=8, step_size=0.1, steps=9, by=by, replicates=4)


def test_a_comparison_is_plain_data_with_intervals():
    methods = [SGD(), MicroBatchClipping(2)]
    both = mbsim.compare(PROBLEM, methods, **RUN)
    first, second = both.to_dict()["rows"]
    difference = both.difference()
    assert first["minus_the_first"] == 0
    assert second["minus_the_first_interval"] == [difference.low, difference.high]
    assert second["interval"][0] < second["mean_grad_norm_sq"] < second["interval"][1]


# ---------------------------------------------------------------------------- a layer's gradients


def test_a_layers_gradients_are_named_where_the_answer_would_hide_the_mistake():
    layer = np.random.default_rng(0).standard_normal((4, 4, 3))  # 4 examples of a 4 by 3 layer
    with pytest.warns(UserWarning, match=r"4 steps of 4 examples.*a layer go in as") as said:
        wrong = clipping.update(layer, 2)
    assert said[0].filename == __file__
    right = clipping.update({"w": layer}, 2)["w"]
    assert right.shape == wrong.shape  # so nothing else would tell
    assert not np.allclose(right, wrong)
    for quiet in (np.ones((5, 4, 3)), np.ones((1, 1, 3)), np.ones((2, 4, 4, 3))):
        clipping.update(quiet, 1)  # warnings are errors here


# ---------------------------------------------------------------------------- progress


def test_progress_is_told_where_no_terminal_is_and_seldom(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now)
    with _progress.progress(100, "all") as bar, _progress.progress(7, "a part of it") as inner:
        for now in range(1, 101):
            bar.update(now)
            inner.update(3)
    assert capsys.readouterr().err.splitlines() == [
        "mbsim: all: 20%, 1:20 left",
        "mbsim: all: 40%, 1:00 left",
        "mbsim: all: 80%, 0:20 left",
    ]


# ---------------------------------------------------------------------------- the next step


class OneRowAtATime:
    dim, smoothness, minimum = 16, 1.0, 0.0

    def value(self, w):
        return 0.5 * w @ w

    def gradient(self, w):
        return w


class WholeVectors:
    sigma = 1.0

    def vectors(self, shape, n, rng):
        return rng.standard_normal((*shape, n)) / np.sqrt(n)


def test_a_loss_that_fails_in_its_own_code_leads_to_its_check():
    with pytest.raises(InvalidArgument, match=r"fails: .*check_loss says more") as caught:
        mbsim.Problem(loss=OneRowAtATime(), noise=noise.Gaussian(), benign_dim=2, start=np.ones(16))
    assert isinstance(caught.value.__cause__, ValueError)
    assert "\n" not in str(caught.value)


def test_noise_of_whole_vectors_is_answered_or_says_what_can():
    problem = mbsim.Problem(
        loss=PROBLEM.loss, noise=WholeVectors(), benign_dim=4, start=np.ones(16)
    )
    assert mbsim.sweet_spot(problem, batch_size=2, steps=5).answer is not None
    with pytest.raises(InvalidArgument, match=r"by 'final' or 'simulation', do without"):
        mbsim.drift(problem, SGD(), batch_size=2)


@pytest.mark.parametrize(
    ("bound", "says"),
    [
        (lambda run: run, r"it goes first, and the run second"),
        (lambda run: mbsim.theory.sgd_bound, r"such as mbsim.theory.sgd_bound\(\)"),
        (lambda run: "2*Delta/(eta*T)", r"formula_bound makes one from text"),
    ],
)
def test_what_is_no_bound_is_told_what_is_one(bound, says):
    run = simulate()
    with pytest.raises(InvalidArgument, match=says):
        mbsim.check(bound(run), run)
