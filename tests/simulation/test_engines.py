"""The engines: against exact expectations, against each other, against a program of outside."""

import importlib.util
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from same_law import (
    LAWS,
    RULES,
    OtherLaw,
    same_everywhere,
    same_law,
    same_mean,
    sizes,
    step_statistics,
    true_mean,
)

import mbsim
from mbsim import Draggers, MicroBatchClipping, Problem, draw_updates
from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, UnitNorm
from mbsim.problems.losses import Quadratic
from mbsim.problems.noise import Gaussian, StudentT, TwoPoint

ENGINES = ("reference", "exact_law")
# A gradient with a part in each subspace, neither along an axis.
SLANTED = np.array([0.5, -0.3, 0.2, -0.1, -0.4, 0.3, 0.5, -0.2, 0.1])
SLANTED = SLANTED / np.linalg.norm(SLANTED)
BENIGN_DIM = 4


def problem(gradient, noise, draggers=None, benign_dim=BENIGN_DIM):
    """A problem of which nothing but noise, draggers and dimensions matters."""
    d = gradient.size
    return Problem(
        loss=Quadratic(np.ones(d)),
        noise=noise,
        draggers=draggers,
        benign_dim=benign_dim,
        start=np.ones(d),
    )


@dataclass(frozen=True)
class Cell:
    noise: object
    rule: object
    coherence: float = 0.0
    tilt: float = 0.0
    probability: float = 0.2
    norm_ratio: float = 3.0


def drawing(engine, replicates, batch_size=6, micro_batch_size=2, change=lambda noise: noise):
    """A function that draws updates for a cell with an engine; `change` makes mutants."""

    def draw(cell, gradient, seed):
        draggers = Draggers(
            probability=cell.probability,
            norm_ratio=cell.norm_ratio,
            coherence=cell.coherence,
            tilt=cell.tilt,
        )
        return draw_updates(
            problem(gradient, change(cell.noise), draggers),
            MicroBatchClipping(micro_batch_size, rule=cell.rule),
            gradient,
            batch_size=batch_size,
            replicates=replicates,
            rng=seed,
            engine=engine,
        )

    return draw


# ------------------------------------------------------------------------- exact expectations


def enumerated(rule, gradient, *, rare, p, c, b, m, common, tilt=0.0):
    """E of the along and dragged parts of u, of their squares and of their product, by brute force.

    Every mini-batch of a problem in which all is discrete: two-point noise along e and a dragger
    frame of one dimension, where a dragger is ±1 (with its own sign, or the step's common one).
    """
    r = float(np.linalg.norm(gradient))
    up, down = np.sqrt((1 - rare) / rare), -np.sqrt(rare / (1 - rare))
    length, slope = c * np.hypot(r, 1.0), tilt / np.sqrt(1 - tilt**2)
    # (probability, along e, in the dragger frame) of one example, given the common sign.
    outcomes = {
        sign: [
            ((1 - p) * rare, r + up, 0.0),
            ((1 - p) * (1 - rare), r + down, 0.0),
            *(
                [(p, slope * length, sign * length)]
                if common
                else [(p / 2, slope * length, s * length) for s in (-1, 1)]
            ),
        ]
        for sign in ((-1, 1) if common else (1,))
    }
    total = np.zeros(5)
    for examples in outcomes.values():
        for batch in itertools.product(examples, repeat=b * m):
            chance = np.prod([example[0] for example in batch]) / len(outcomes)
            means = [
                np.mean([example[1:] for example in batch[j * b : (j + 1) * b]], axis=0)
                for j in range(m)
            ]
            factors = rule.factors(np.array([np.hypot(*x) for x in means]))
            along, dragged = sum(f * x for f, x in zip(factors, means, strict=True)) / m
            total += chance * np.array([along, along**2, dragged, dragged**2, along * dragged**2])
    return total


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    ("common", "tilt", "b", "m"), [(False, 0.0, 2, 2), (True, 0.0, 2, 2), (True, 0.5, 1, 3)]
)
def test_every_mini_batch_of_a_tiny_problem(rule, common, tilt, b, m):
    gradient = np.array([0.3, -0.2, 0.4])  # n = 1, so the dragger frame has one dimension
    truth = enumerated(rule, gradient, rare=0.3, p=0.3, c=2.0, b=b, m=m, common=common, tilt=tilt)
    draggers = Draggers(probability=0.3, norm_ratio=2.0, coherence=float(common), tilt=tilt)
    e = gradient / np.linalg.norm(gradient)
    across = np.array([0.0, gradient[2], -gradient[1]]) / np.linalg.norm(gradient[1:])
    for seed, engine in enumerate(ENGINES):
        updates = draw_updates(
            problem(gradient, TwoPoint(sigma=1.0, rare=0.3), draggers, benign_dim=1),
            MicroBatchClipping(b, rule=rule),
            gradient,
            batch_size=b * m,
            replicates=2**13,
            rng=seed,
            engine=engine,
        )
        along, dragged = updates @ e, updates @ across
        samples = [along, along**2, dragged, dragged**2, along * dragged**2]
        for name, sample, expected in zip(
            ["A", "A²", "D", "D²", "AD²"], samples, truth, strict=True
        ):
            # In units of its root mean square, 6.2/√N = .069 is the most that can be needed.
            scale = float(np.sqrt(np.square(sample).mean()))
            true_mean(sample, expected, what=f"{engine} {rule} {name}", scale=scale, detects=0.07)


def test_without_randomness_the_update_is_the_gradient():
    for engine in ENGINES:
        for rule in (NoClipping(), SmallestNorm()):
            updates = draw_updates(
                problem(SLANTED, Gaussian(sigma=0.0)),
                MicroBatchClipping(2, rule=rule),
                SLANTED,
                batch_size=6,
                replicates=70,
                rng=0,
                engine=engine,
            )
            # A dozen roundings of 1e-16 on the way through the frame.
            np.testing.assert_allclose(updates, np.tile(SLANTED, (70, 1)), atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
def test_moments_of_sgd_are_those_of_the_theory(engine):
    """Theory page, section 4: A = q r and M = K_g r² + K_σ σ²."""
    p, c, gamma, B = 0.3, 2.0, 0.4, 5
    draggers = Draggers(probability=p, norm_ratio=c, coherence=gamma)
    updates = draw_updates(
        problem(SLANTED, Gaussian(sigma=1.0), draggers),
        mbsim.SGD(),
        SLANTED,
        batch_size=B,
        replicates=2**15,
        rng=3,
        engine=engine,
    )
    q, chi = 1 - p, p / B + gamma * p**2 * (1 - 1 / B)
    second = q**2 + p * q / B + chi * c**2 + (q / B + chi * c**2) * 1.0
    # 6.2/√N = .034 in units of the root mean square, which is at most 1.7 times these scales.
    true_mean(updates @ SLANTED, q, what="A", scale=q, detects=0.06)
    squared = np.square(updates).sum(axis=1)
    true_mean(squared, second, what="M", scale=second, detects=0.06)


# ------------------------------------------------------------------------- any size of number


def update_at(engine, gradient, *, sigma=1.0, norm_ratio=3.0, rule=None, law=TwoPoint, tilt=0.0):
    draggers = Draggers(probability=0.2, norm_ratio=norm_ratio, coherence=0.3, tilt=tilt)
    shares = {} if law is StudentT else {"rare": 0.2, "isotropic_share": 0.5}
    return draw_updates(
        problem(gradient, law(sigma=sigma, **shares), draggers),
        MicroBatchClipping(2, rule=rule or SmallestNorm()),
        gradient,
        batch_size=6,
        replicates=70,
        rng=3,
        engine=engine,
    )


POWERS = [-1000, -500, -400, -270, -200, 200, 270, 400, 500]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("power", POWERS)
def test_the_unit_of_the_gradients_is_irrelevant_to_the_bit(engine, power):
    """Gradient, noise and threshold times a power of two: so is the update, in every digit."""
    unit = 2.0**power
    for law in (TwoPoint, StudentT):
        for r in (0.0, 0.02, 1.0, 30.0):
            for rule, same in (
                (SmallestNorm(), SmallestNorm()),
                (NoClipping(), NoClipping()),
                (QuantileNorm(0.5), QuantileNorm(0.5)),
                (FixedNorm(0.7), FixedNorm(0.7 * unit)),
            ):
                here = update_at(engine, r * SLANTED, rule=rule, law=law, tilt=0.4)
                there = update_at(
                    engine, unit * (r * SLANTED), sigma=unit, rule=same, law=law, tilt=0.4
                )
                np.testing.assert_array_equal(there / unit, here)
            if r:  # normalised, the unit is gone
                here = update_at(engine, r * SLANTED, rule=UnitNorm(0.0), law=law)
                there = update_at(
                    engine, unit * (r * SLANTED), sigma=unit, rule=UnitNorm(0.0), law=law
                )
                np.testing.assert_allclose(there, here, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_of_very_different_size(engine):
    """From some size on, a large part hides a small one, and its size no longer matters."""
    for rule in (SmallestNorm(), QuantileNorm(0.2)):
        far = [update_at(engine, SLANTED, norm_ratio=c, rule=rule) for c in (1e30, 1e150, 1e300)]
        clipped = (np.abs(far[0]) < 1e10).all(axis=1)  # not a dragger in every micro-batch
        assert clipped.mean() > 0.9
        for other in far[1:]:
            np.testing.assert_allclose(other[clipped], far[0][clipped], rtol=1e-10, atol=1e-14)
            assert (np.abs(other[~clipped]).max(axis=1) > 1e100).all()
    plain = {"rule": NoClipping(), "norm_ratio": 3.0}
    small = [update_at(engine, r * SLANTED, **plain) for r in (1e-30, 1e-100, 1e-300)]
    quiet = [update_at(engine, SLANTED, sigma=s, **plain) for s in (1e-30, 1e-100, 1e-300)]
    for same in (small, quiet):
        for other in same[1:]:
            np.testing.assert_allclose(other, same[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_length_beyond_the_largest_float_is_said(engine):
    with pytest.raises(mbsim.InvalidArgument, match="an update at this gradient must be finite"):
        update_at(engine, SLANTED, norm_ratio=1e300, sigma=1e300, rule=NoClipping())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("power", [-500, -270, 270, 500])
def test_runs_in_any_unit(engine, power):
    def run(unit):
        whole = Problem(
            loss=Quadratic(np.geomspace(0.1, 1, 9)),
            noise=TwoPoint(sigma=unit, rare=0.2, isotropic_share=0.5),
            draggers=Draggers(probability=0.2, norm_ratio=3.0, coherence=0.3),
            benign_dim=4,
            start=np.full(9, unit),
        )
        settings = {"batch_size": 6, "step_size": 0.3, "steps": 20, "replicates": 70}
        return mbsim.simulate(whole, MicroBatchClipping(2), rng=0, engine=engine, **settings)

    here, there = run(1.0), run(2.0**power)
    np.testing.assert_array_equal(there.final_w / 2.0**power, here.final_w)
    np.testing.assert_array_equal(there.loss / 2.0 ** (2 * power), here.loss)
    np.testing.assert_array_equal(
        there.mean_grad_norm_sq / 2.0 ** (2 * power), here.mean_grad_norm_sq
    )
    for summary in ("mean", "standard_error"):
        one, other = (getattr(run, summary)("grad_norm_sq") for run in (here, there))
        # Near 1e-301 rounding itself, some 1e-16 of a number, has few digits left.
        np.testing.assert_allclose(other / 2.0 ** (2 * power), one, rtol=1e-12, atol=1e-15)
    assert "±" in repr(there)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", [SmallestNorm(), FixedNorm(1.0), UnitNorm()], ids=str)
def test_draggers_of_any_length_can_be_clipped(engine, rule):
    """No warning, no divergence: a clipped dragger is no longer than the rule makes it."""
    runs = [
        mbsim.simulate(
            Problem(
                loss=Quadratic(np.geomspace(0.1, 1, 9)),
                noise=Gaussian(),
                draggers=Draggers(probability=0.05, norm_ratio=c),
                benign_dim=4,
                start=np.ones(9),
            ),
            MicroBatchClipping(2, rule=rule),
            batch_size=32,
            step_size=0.1,
            steps=30,
            replicates=70,
            rng=0,
            engine=engine,
        )
        for c in (1e40, 1e150, 1e300)
    ]
    for run in runs:
        assert not run.diverged.any()
        np.testing.assert_allclose(run.final_w, runs[0].final_w, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------- each other


GRADIENTS = [r * SLANTED for r in (0.02, 1.0, 30.0)]
# 1024 draws of each engine in each of 45 cells per law. In units of a statistic's root mean square
# the smallest detectable difference is at most 8.8/√N: .276 in a cell, .041 in all together.
DRAWS, EACH, TOGETHER = 1024, 0.276, 0.042


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_the_engines_draw_the_same_law(noise):
    same_everywhere(
        drawing("reference", DRAWS),
        drawing("exact_law", DRAWS),
        [Cell(noise, rule, coherence) for rule in RULES for coherence in (0.0, 0.4, 1.0)],
        GRADIENTS,
        BENIGN_DIM,
        each=EACH,
        together=TOGETHER,
    )


def louder(noise):
    """2 % too much noise."""
    return Gaussian(sigma=1.02 * noise.sigma)


def test_a_mutant_engine_is_caught():
    """The negative control: the same comparison with 2 % too much noise must fail."""
    with pytest.raises(OtherLaw, match="all cells"):
        same_everywhere(
            drawing("reference", DRAWS),
            drawing("exact_law", DRAWS, change=louder),
            [Cell(Gaussian(), rule, coherence) for rule in RULES for coherence in (0.0, 0.4, 1.0)],
            GRADIENTS,
            BENIGN_DIM,
            each=EACH,
            together=TOGETHER,
        )


def test_the_engines_agree_with_tilted_draggers():
    rules = [SmallestNorm(), NoClipping()]
    noise = TwoPoint(sigma=1.0, rare=0.2, isotropic_share=0.5)
    same_everywhere(
        drawing("reference", DRAWS),
        drawing("exact_law", DRAWS),
        [Cell(noise, rule, coherence, tilt=0.6) for rule in rules for coherence in (0.0, 0.4, 1.0)],
        GRADIENTS,
        BENIGN_DIM,
        each=EACH,
        together=0.066,  # 18 cells
    )


def at(d, *places):
    """A gradient of norm 0.7 with equal entries at some places and 0 elsewhere."""
    gradient = np.zeros(d)
    gradient[list(places)] = 0.7 / np.sqrt(max(1, len(places)))
    return gradient


COMMON = {"probability": 0.2, "norm_ratio": 3.0}
# name: gradient, benign_dim, draggers, B, b, sigma
EDGES = {
    "benign_dim 1": (at(6, 0, 2, 4), 1, COMMON, 6, 2, 1.0),
    "dragger_dim 1": (at(5, 0, 1, 4), 3, COMMON, 6, 2, 1.0),
    "dragger_dim 1, coherence 1": (at(5, 0, 1, 4), 3, COMMON | {"coherence": 1}, 6, 2, 1.0),
    "dragger_dim 2, coherence .5": (at(6, 0, 1, 4), 3, COMMON | {"coherence": 0.5}, 6, 2, 1.0),
    "dragger_dim 3, coherence .5": (at(7, 0, 1, 4), 3, COMMON | {"coherence": 0.5}, 6, 2, 1.0),
    "benign_dim d": (at(4, 0, 1, 3), 4, {"probability": 0, "norm_ratio": 0}, 6, 2, 1.0),
    "benign_dim 1 = d": (at(1, 0), 1, {"probability": 0, "norm_ratio": 0}, 6, 2, 1.0),
    "benign_dim d - 1": (at(4, 0, 3), 3, {"probability": 0, "norm_ratio": 0}, 6, 2, 1.0),
    "m = 5, b = 1": (at(9, 0, 2, 5), 4, COMMON | {"coherence": 0.3}, 5, 1, 1.0),
    "m = 7, b = 3": (at(9, 0, 2, 5), 4, COMMON, 21, 3, 1.0),
    "m = 1, b = B": (at(9, 0, 2, 5), 4, COMMON | {"coherence": 0.3}, 5, 5, 1.0),
    "p = 0": (at(9, 0, 2, 5), 4, {"probability": 0, "norm_ratio": 3}, 6, 2, 1.0),
    "p = 1": (at(9, 0, 2, 5), 4, {"probability": 1, "norm_ratio": 3}, 6, 2, 1.0),
    "p = 1, coherent": (
        at(9, 0, 2, 5), 4, {"probability": 1, "norm_ratio": 3, "coherence": 0.4}, 6, 2, 1.0,
    ),
    "p near 1": (at(9, 0, 2, 5), 4, {"probability": 0.98, "norm_ratio": 3}, 6, 2, 1.0),
    "sigma 0": (at(9, 0, 2, 5), 4, COMMON, 6, 2, 0.0),
    "norm_ratio 0": (at(9, 0, 2, 5), 4, {"probability": 0.2, "norm_ratio": 0}, 6, 3, 1.0),
    "gradient 0": (at(9), 4, COMMON | {"coherence": 0.3}, 6, 2, 1.0),
    "gradient inside V": (at(9, 1, 2), 4, COMMON | {"coherence": 0.3}, 6, 2, 1.0),
    "gradient inside U": (at(9, 5, 7), 4, COMMON | {"coherence": 0.3}, 6, 2, 1.0),
    "gradient along -first axes": (-at(9, 0, 4), 4, COMMON, 6, 2, 1.0),
    "d large": (at(200, 0, 5, 101), 100, COMMON, 6, 2, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES)
def test_the_engines_agree_at_the_edges_of_the_model(edge):
    gradient, n, draggers, batch, size, sigma = EDGES[edge]
    noise = TwoPoint(sigma=sigma, rare=0.2, isotropic_share=0.5)
    one, other = (
        step_statistics(
            draw_updates(
                problem(gradient, noise, Draggers(**draggers), n),
                MicroBatchClipping(size),
                gradient,
                batch_size=batch,
                replicates=2048,
                rng=seed,
                engine=engine,
            ),
            gradient,
            n,
        )
        for seed, engine in enumerate(ENGINES)
    )
    same_law(one, other, what=edge, detects=0.195)  # 8.8/√2048


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_trajectories_have_the_same_mean(noise):
    start = np.linspace(0.5, 1.5, 9)
    runs = [
        mbsim.simulate(
            Problem(
                loss=Quadratic(np.geomspace(0.1, 1, 9)),
                noise=noise,
                draggers=Draggers(probability=0.1, norm_ratio=4.0, coherence=0.3),
                benign_dim=4,
                start=start,
            ),
            MicroBatchClipping(2),
            batch_size=6,
            step_size=0.3,
            steps=20,
            replicates=1024,
            rng=seed,
            engine=engine,
        )
        for seed, engine in enumerate(ENGINES)
    ]
    one, other = (
        {"mean": run.mean_grad_norm_sq, "loss": run.loss[:, -1], "last": run.grad_norm_sq[:, -1]}
        | {f"w[{i}]": run.final_w[:, i] for i in (0, 4, 8)}
        for run in runs
    )
    # 8.8/√1024 of each root mean square; the mean over the run varies less, so more is seen.
    same_law(one, other, what="trajectory", detects=0.276)
    mean = float(other["mean"].mean())
    same_mean(one["mean"], other["mean"], what="mean", scale=mean, detects=0.16)


# ------------------------------------------------------------------------- a witness from outside


def outside():
    """The plain program of the benchmarks, which does not import mbsim."""
    path = Path(__file__).parents[2] / "benchmarks" / "outside.py"
    spec = importlib.util.spec_from_file_location("outside", path)
    module = sys.modules["outside"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outside_noise(module, noise):
    if isinstance(noise, TwoPoint):
        return module.two_point(noise.rare, noise.isotropic_share)
    if isinstance(noise, mbsim.noise.Exponential):
        return module.exponential(noise.isotropic_share)
    if isinstance(noise, mbsim.noise.StudentT):
        return module.student_t(noise.df)
    return module.gaussian


WITNESSED = [
    (Cell(LAWS[0], RULES[1], coherence=0.4), 1.0),
    (Cell(LAWS[1], RULES[1]), 0.02),
    (Cell(LAWS[2], RULES[0], coherence=1.0), 1.0),
    (Cell(LAWS[3], RULES[3], coherence=0.4, tilt=0.5), 1.0),
    (Cell(LAWS[4], RULES[4]), 30.0),
    (Cell(LAWS[2], RULES[2], tilt=-0.4), 0.5),
]


@pytest.mark.parametrize(("cell", "r"), WITNESSED)
def test_a_program_from_outside_draws_the_same_law(cell, r, monkeypatch):
    module = outside()
    rng, gradient = np.random.default_rng(7), r * SLANTED
    plain = np.array([
        gradient
        - module.plain_step(
            gradient,
            np.ones(9),
            batch_size=4,
            micro_batch_size=2,
            benign_dim=BENIGN_DIM,
            probability=cell.probability,
            norm_ratio=cell.norm_ratio,
            step_size=1.0,
            rng=rng,
            coherence=cell.coherence,
            tilt=cell.tilt,
            noise=outside_noise(module, cell.noise),
            factors=cell.rule.factors,
        )
        for _ in range(1500)
    ])  # fmt: skip
    theirs = step_statistics(plain, gradient, BENIGN_DIM)
    for seed, engine in enumerate(ENGINES):
        ours = step_statistics(drawing(engine, 6000, 4)(cell, gradient, seed), gradient, 4)
        # At most 7 √(1/1500 + 1/6000) of each root mean square, as spreads may differ.
        same_law(ours, theirs, what=f"{engine} against outside", detects=0.2)


def test_the_units_of_a_cell_are_those_of_its_statistics():
    assert sizes({"x": np.array([3.0, -3.0])}) == {"x": 3.0}


# ------------------------------------------------------------------------- which engine


class Vectors:
    """Noise on the axes of the frame: it has no law across e that is isotropic."""

    sigma = 1.0

    def vectors(self, shape, benign_dim, rng):
        axis = rng.integers(benign_dim, size=shape)
        return np.eye(benign_dim)[axis] * rng.choice([-1.0, 1.0], size=shape)[..., None]


class Both(Vectors, Gaussian):
    pass


def test_engine_auto_takes_the_fast_one_wherever_it_applies():
    from mbsim.simulation.run import choose_engine

    for noise in LAWS:
        assert choose_engine(problem(SLANTED, noise)) == "exact_law"
    assert choose_engine(problem(SLANTED, Vectors())) == "reference"
    with pytest.raises(
        mbsim.InvalidArgument, match=r"engine='exact_law' does not apply: .*mean_of"
    ):
        choose_engine(problem(SLANTED, Vectors()), "exact_law")


def test_vector_noise_lands_in_the_frame():
    updates = draw_updates(
        problem(SLANTED, Vectors()), mbsim.SGD(), SLANTED, batch_size=1, replicates=4096, rng=0
    )
    found = step_statistics(updates, SLANTED, BENIGN_DIM)
    # One example: ±1 on one of n = 4 axes. So E along² = r² + 1/4, and across² is 1 in 3 of 4.
    true_mean(found["along²"], 1.25, what="along²", scale=1.25, detects=0.15)
    true_mean(found["across²"], 0.75, what="across²", scale=0.75, detects=0.06)
    assert np.allclose(found["across²"] * (1 - found["across²"]), 0, atol=1e-12)  # rounding
