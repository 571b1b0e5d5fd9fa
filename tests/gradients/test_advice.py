"""Advice on gradients: replays against each other, known best b, the control, bad input."""

import json
import math
import warnings

import numpy as np
import pytest

import mbsim
from mbsim import Gram, InvalidArgument, MeasuredProblem, MicroBatchClipping, clipping
from mbsim.gradients import advice as advice_module
from mbsim.gradients.advice import _lowest, noise_scale
from mbsim.gradients.replay import Together
from mbsim.problems.vectors import VectorDraws
from mbsim.verdicts import Refusal

BATCH, STEPS = 16, 200
SIZES = (1, 2, 4, 8, 16)


def a_problem(probability=0.1, norm_ratio=5.0, tilt=0.0):
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(16)),
        noise=mbsim.noise.Gaussian(sigma=1.0),
        draggers=mbsim.Draggers(probability=probability, norm_ratio=norm_ratio, tilt=tilt),
        benign_dim=8,
        start=np.full(16, 0.25),
    )


def drawn(problem, count=600, seed=0):
    """Gradients of examples at the start, the gradient there, and which are draggers."""
    draws = VectorDraws(
        problem=problem, batch_size=count, m=count, width=1, rng=np.random.default_rng(seed)
    )
    gradient = problem.loss.gradient(problem.start)
    found, is_dragger = draws.at(gradient[None])
    return found[0].copy(), gradient, is_dragger[0]


def advise(found, target=None, **changes):
    return mbsim.advise(found, **{"batch_size": BATCH, "target": target, "steps": STEPS} | changes)


# ------------------------------------------------------------------ many replays at once


def by_vectors(gradients, target, batches, b, rule, e):
    """‖v‖² after each step, from vectors: an example's gradient is v + d_i."""
    v, deviations, found = target.copy(), gradients - target, []
    for members in batches:
        v = v - e * clipping.update(v + deviations[members], b, rule)
        found.append(v @ v)
    return np.array(found)


@pytest.mark.parametrize("replacement", [False, True])
def test_replays_at_once_are_those_of_vectors(replacement):
    rules = (clipping.SmallestNorm(), clipping.QuantileNorm(0.5), clipping.UnitNorm())
    gradients = np.random.default_rng(0).standard_normal((40, 6)) + 0.3
    target = np.full(6, 0.25)
    deviations = gradients - target
    together = Together(
        deviations=deviations @ deviations.T,
        along=deviations @ target,
        target_norm=float(np.linalg.norm(target)),
        batch=8,
        sizes=(1, 2, 4, 8),
        rules=rules,
        replacement=replacement,
        seed=np.random.SeedSequence(3),
    )
    source = together._batches()
    batches = [next(source) for _ in range(40)]
    flat = np.concatenate(batches[:5])
    assert (len(set(flat)) < 40) == replacement  # an epoch has each once
    tried = np.full((3, 4, 2), [0.05, 0.2])
    found = together.ends(tried, 40)
    for k, rule in enumerate(rules):
        for i, b in enumerate((1, 2, 4, 8)):
            for j, e in enumerate((0.05, 0.2)):
                expected = by_vectors(gradients, target, batches, b, rule, e)[-2:].mean()
                assert math.isclose(found[k, i, j], expected, rel_tol=1e-9)
    # Where all diverge the best is to stay: as it was, if it is tried.
    tried = np.full((3, 4, 2), 1e6)
    best, levels = _lowest(together, tried, 40)
    assert not best.any()
    assert np.isinf(levels).all()
    assert (tried == 1e6).all()
    np.testing.assert_allclose(together.ends(best[..., None], 40), together.target_norm**2)


def test_the_law_at_the_start_is_that_of_the_drift():
    gradients, target, _ = drawn(a_problem())
    measured = MeasuredProblem(gradients, target=target)
    found = advise(measured)
    sgd = mbsim.drift(measured, mbsim.SGD(), batch_size=BATCH).at(measured.target_norm)
    for row in found.rows[:5]:
        method = MicroBatchClipping(row.micro_batch_size)
        one = mbsim.drift(measured, method, batch_size=BATCH).at(measured.target_norm)
        # 32 batches of heavy noise against some thousand: about a fifth.
        assert math.isclose(row.progress, one.progress / sgd.progress, rel_tol=0.3)
        assert math.isclose(row.second_moment, one.second_moment / sgd.second_moment, rel_tol=0.3)
        assert math.isclose(row.clipped, 1 - row.micro_batch_size / BATCH)


# ------------------------------------------------------------------ known best b


def simulated(problem):
    """Where runs end, for every b at its best step size."""
    found = {}
    for b in SIZES:
        runs = [
            mbsim.simulate(
                problem,
                MicroBatchClipping(b),
                batch_size=BATCH,
                step_size=e,
                steps=STEPS,
                replicates=64,
                rng=0,
                record_every=STEPS,
            ).grad_norm_sq[:, -1]
            for e in 0.5 ** np.arange(1, 11)
        ]
        found[b] = math.sqrt(min(float(run.mean()) for run in runs if np.isfinite(run).all()))
    return found


@pytest.mark.parametrize(
    ("draggers", "clips"),
    [
        ({"tilt": -0.4}, True),
        ({"probability": 0.05, "norm_ratio": 10.0}, None),
        ({"probability": 0.0}, False),
    ],
    ids=["tilted", "orthogonal", "none"],
)
def test_the_advice_is_near_the_best_b_of_simulation(draggers, clips):
    """At most a quarter above the best, where following SGD costs a half and more."""
    problem = a_problem(**draggers)
    levels = simulated(problem)
    best = min(levels.values())
    gradients, target, _ = drawn(problem)
    found = advise(gradients, target)
    assert levels[found.micro_batch_size] < 1.25 * best
    if clips is not None:  # of orthogonal draggers 600 examples do not tell enough
        assert found.answer.clips == clips
    assert (levels[BATCH] > 1.5 * best) == (clips is not False)


def test_with_the_mean_as_target_the_advice_is_sgd():
    """The control: the same gradients, and a target for which SGD is unbiased."""
    gradients, target, _ = drawn(a_problem(tilt=-0.4))
    assert advise(gradients, target).answer.clips
    with pytest.warns(UserWarning, match="SGD by construction"):
        control = advise(gradients, "mean")
    assert not control.answer.clips
    assert control.micro_batch_size == BATCH
    assert "SGD is unbiased" in control.reason


def test_noise_alone_is_no_reason_to_clip():
    """Another control: no draggers at all and little data; every b is tied."""
    gradients, target, _ = drawn(a_problem(probability=0.0), count=64)
    found = advise(gradients, target)
    assert BATCH in found.tied
    assert not found.answer.clips
    assert "do not clip" in str(found)


# ------------------------------------------------------------------ snapshots, forms, seeds


def test_snapshots_advise_together_and_may_disagree():
    tilted, target, _ = drawn(a_problem(tilt=-0.4))
    clean, _, _ = drawn(a_problem(probability=0.0), count=600)
    both = [Gram(clean + 20 * target, target=target), Gram(tilted, target=target)]
    found, alone = advise(both), [advise(one) for one in both]
    for b, level in found.curve.items():
        levels = [one.curve[b].estimate for one in alone]
        assert math.isclose(level.estimate, math.sqrt(math.prod(levels)), rel_tol=1e-9)
    assert [norm for norm, _, _ in found.snapshots] == [one.snapshots[0][0] for one in alone]
    assert found.shortlist(1) == (min(found.curve, key=lambda b: found.curve[b].estimate),)
    assert len(found.shortlist()) == 2
    assert "snapshots" in str(found)
    assert "each of 2 snapshots" in found.answer.rests_on
    same = advise([both[1], both[1]])
    assert not same.disagree
    assert same.snapshots[0] == same.snapshots[1]


def test_every_form_of_gradients_gives_the_same_advice(tmp_path):
    gradients, target, _ = drawn(a_problem())
    np.save(tmp_path / "g.npy", gradients)
    np.save(tmp_path / "t.npy", target)
    gram = Gram(gradients, target=target)
    found = advise(gram)
    others = [
        advise(gradients, target),
        advise(gradients.tolist(), target.tolist()),
        advise(str(tmp_path / "g.npy"), tmp_path / "t.npy"),
        advise(MeasuredProblem(gram, rng=0)),
        advise([gradients], [target]),
    ]
    for other in others:
        assert other == found
    assert advise(gram, rng=1) != found


def test_it_says_what_it_rests_on_and_draws_itself():
    gradients, target, _ = drawn(a_problem(tilt=-0.4))
    found = advise(gradients, target)
    text = str(found)
    assert text.startswith(str(found.answer))
    for part in ("600 examples", "target given", "false-positive rate of 0.01", "noise scale"):
        assert part in text
    assert json.loads(json.dumps(found.to_dict()))["answer"]["clips"] is True
    assert "<table" in found._repr_html_()
    assert len(found.rows) == 15
    ax = found.plot()
    assert found.plot(ax) is ax
    assert list(found.curve) == list(SIZES)
    assert all(level.low <= level.estimate <= level.high for level in found.curve.values())


# ------------------------------------------------------------------ noise scale


def test_the_noise_scale_is_that_of_the_law():
    """Of 40 sets, each interval misses with probability 0.01: more than 4 do once in 1e5 times."""
    rng = np.random.default_rng(0)
    truth, missed = 20 / (20 * 0.3**2), 0
    for _ in range(40):
        found = noise_scale(Gram(0.3 + rng.standard_normal((200, 20))))
        missed += not found.low <= truth <= found.high
    assert missed <= 4


def test_the_noise_scale_is_refused_in_words():
    rng = np.random.default_rng(0)
    found = [noise_scale(Gram(rng.standard_normal((30, 50)))) for _ in range(20)]
    refused = [one for one in found if isinstance(one, Refusal)]
    assert refused
    assert "not told from 0" in str(refused[0])
    assert all(math.isinf(one.high) for one in found if one)
    assert all(one.low > 0 for one in found if one)
    assert "one micro-batch only" in str(noise_scale(Gram(np.ones((1, 3)))))


# ------------------------------------------------------------------ bad input


G = np.random.default_rng(0).standard_normal((32, 4)) + 0.5
T = np.full(4, 0.5)


def unfinished(path):
    np.save(path / "g.npy", G)
    (path / "short.npy").write_bytes((path / "g.npy").read_bytes()[:400])
    return path / "short.npy"


def of_objects(path):
    np.save(path / "o.npy", np.array([[1, "a"]], dtype=object), allow_pickle=True)
    return path / "o.npy"


BAD = [
    ("gradients must be finite.*; 1 of 32 rows are not: 3",
     lambda p: advise(np.where(np.arange(32)[:, None] == 3, np.nan, G), T)),
    ("batch_size=64 must be at most the number of examples, 32",
     lambda p: advise(G, T, batch_size=64)),
    ("gradients must not all be 0", lambda p: advise(np.zeros((32, 4)), T)),
    ("all 32 rows are", lambda p: advise(np.ones((32, 4)), T)),
    ("target has 3 coordinates", lambda p: advise(G, T[:3])),
    ("target has length 0", lambda p: advise(G, 0 * T)),
    ("is its sign reversed", lambda p: advise(np.abs(G), -T)),
    ("must be positive semidefinite",
     lambda p: advise(Gram.from_matrix(np.ones((32, 32)) - 2 * np.eye(32)))),
    ("pickle is never loaded", lambda p: advise(of_objects(p), T)),
    (r"must be an \.npy file", lambda p: advise(unfinished(p), T)),
    (r"must be an \.npy file", lambda p: advise(p / "none.npy", T)),
    ("batch_size=1 must be an integer of at least 2", lambda p: advise(G, T, batch_size=1)),
    ("batch_size=2.5", lambda p: advise(G, T, batch_size=2.5)),
    ("steps=0", lambda p: advise(G, T, steps=0)),
    ("rng=", lambda p: advise(G, T, rng="a")),
    ("gradients=", lambda p: advise([], T)),
    ("must be left out", lambda p: advise(MeasuredProblem(G, target=T), T)),
    ("must be part of the pass", lambda p: advise(Gram(G), T)),
    ("target has 1 arrays", lambda p: advise([G, G], [T])),
    ("must be a list, with an array for each snapshot", lambda p: advise([G, G], T)),
    ("has 1 example", lambda p: advise(G[:1], T, batch_size=2)),
    ("array of real numbers", lambda p: advise(None, T)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message for message, _ in BAD])
def test_bad_input_is_one_clear_line(message, call, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidArgument, match=message) as error:
            call(tmp_path)
    assert "\n" not in str(error.value)


def test_duplicate_rows_are_said():
    twice = np.concatenate([G, G[:1]])
    with pytest.warns(UserWarning, match="equal rows, such as 0 and 32"):
        advise(twice, T)


def test_divergence_is_not_taken_for_low(monkeypatch):
    """Step sizes that are all too large: what has diverged is infinite, and the least is taken."""
    monkeypatch.setattr(advice_module, "_LEAST", 1)
    gradients, target, _ = drawn(a_problem(probability=0.0), count=64)
    found = advise(gradients, target, steps=4)
    assert all(math.isfinite(row.final_grad_norm) for row in found.rows)
