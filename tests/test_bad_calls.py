"""Bad calls: each is an InvalidArgument of one line with the argument, its value and the rule."""

from decimal import Decimal

import numpy as np
import processes
import pytest

import mbsim
from mbsim import SGD, Draggers, InvalidArgument, MicroBatchClipping, Problem, clipping, statistics
from mbsim.problems.losses import LogCosh, Quadratic, Ripple
from mbsim.problems.noise import Exponential, Gaussian, StudentT, TwoPoint
from mbsim.testing import check_loss, check_noise, check_rule
from mbsim.verdicts import Comparison, Verdict

NAN, INF = float("nan"), float("inf")


def problem(**changes):
    return Problem(
        **{
            "loss": Quadratic(np.ones(8)),
            "noise": Gaussian(sigma=1.0),
            "draggers": Draggers(probability=0.05, norm_ratio=5.0),
            "benign_dim": 4,
            "start": np.ones(8),
        }
        | changes
    )


def simulate(**changes):
    arguments = {
        "problem": problem(),
        "method": MicroBatchClipping(2),
        "batch_size": 8,
        "step_size": 0.1,
        "steps": 3,
        "replicates": 2,
        "rng": 0,
    } | changes
    return mbsim.simulate(arguments.pop("problem"), arguments.pop("method"), **arguments)


def draw(gradient=None, **changes):
    arguments = {"batch_size": 8, "replicates": 2, "rng": 0} | changes
    gradient = np.ones(8) if gradient is None else gradient
    return mbsim.draw_updates(problem(), MicroBatchClipping(2), gradient, **arguments)


X = np.ones((4, 3))
INTERVAL = statistics.mean([1.0, 2.0], false_positive_rate=0.1)


class NoValue:
    dim, smoothness, minimum = 8, 1.0, 0.0

    def gradient(self, w):
        return w


class OneAtATime(NoValue):
    """Takes vectors only: what an engine hands over has leading axes."""

    def value(self, w):
        return float((w.ravel() ** 2).sum() / 2)


class Flattened(OneAtATime):
    def value(self, w):
        return (w**2).sum(axis=-1) / 2

    def gradient(self, w):
        return w.ravel()


class AboveItsMinimum(OneAtATime):
    minimum = 5.0

    def value(self, w):
        return (w**2).sum(axis=-1) / 2


class Unsmooth(AboveItsMinimum):
    smoothness = NAN


class NoMean:
    sigma = 1.0


class Unbounded(Gaussian):
    sigma = INF

    def __init__(self):
        pass


# name of the argument in the message, what else it must show, the call
BAD = [
    # Algorithm 1 on arrays
    ("micro_batch_gradients", "array of real", lambda: clipping.apply("abc")),
    ("micro_batch_gradients", "array of real", lambda: clipping.apply(None)),
    ("micro_batch_gradients", "array of real", lambda: clipping.apply([[1, 2], [3]])),
    ("micro_batch_gradients", "array of real", lambda: clipping.apply(X.astype(complex))),
    ("micro_batch_gradients", "array of real", lambda: clipping.apply(X.astype(bool))),
    ("micro_batch_gradients", "array of real", lambda: clipping.apply(X.astype(object))),
    ("micro_batch_gradients", "array of real", lambda: clipping.apply(X.astype("M8[s]"))),
    ("micro_batch_gradients", "array of real", lambda: clipping.apply([[10**400]])),
    ("micro_batch_gradients", "two axes", lambda: clipping.apply(3.0)),
    ("micro_batch_gradients", "two axes", lambda: clipping.apply([1.0, 2.0])),
    ("micro_batch_gradients", "empty", lambda: clipping.apply(np.ones((0, 3)))),
    ("micro_batch_gradients", "empty", lambda: clipping.apply(np.ones((3, 0)))),
    ("micro_batch_gradients", "finite", lambda: clipping.apply([[NAN, 1.0]])),
    ("rule", "factors", lambda: clipping.apply(X, "smallest")),
    ("rule", "factors", lambda: clipping.apply(X, clipping.SmallestNorm)),
    ("rule", "factors", lambda: clipping.update(X, 2, 3)),
    ("nonfinite", "'ignore'", lambda: clipping.apply(X, nonfinite="ignore")),
    ("nonfinite", "True", lambda: clipping.update(X, 2, nonfinite=True)),
    ("nonfinite", "array of", lambda: clipping.apply(X, nonfinite=np.array(["drop", "raise"]))),
    ("per_example_gradients", "two axes", lambda: clipping.update(np.ones(4), 2)),
    ("per_example_gradients", "finite", lambda: clipping.update(X * INF, 2)),
    ("micro_batch_size", "=3 must divide batch_size=4; its divisors are 1, 2, 4",
     lambda: clipping.update(X, 3)),
    ("micro_batch_size", "=8 must divide", lambda: clipping.update(X, 8)),
    ("micro_batch_size", "=0 ", lambda: clipping.update(X, 0)),
    ("micro_batch_size", "=-2 ", lambda: clipping.update(X, -2)),
    ("micro_batch_size", "=2.5 ", lambda: clipping.update(X, 2.5)),
    ("micro_batch_size", "=True ", lambda: clipping.update(X, True)),
    ("micro_batch_size", "='2' ", lambda: clipping.update(X, "2")),
    ("micro_batch_size", "=None ", lambda: clipping.update(X, None)),
    # rules
    ("threshold", "=0 must be above 0", lambda: clipping.FixedNorm(0)),
    ("threshold", "=nan", lambda: clipping.FixedNorm(NAN)),
    ("threshold", "=inf", lambda: clipping.FixedNorm(INF)),
    ("threshold", "='1'", lambda: clipping.FixedNorm("1")),
    ("threshold", "=True", lambda: clipping.FixedNorm(True)),
    ("threshold", "Decimal", lambda: clipping.FixedNorm(Decimal("1"))),
    ("threshold", "must be finite", lambda: clipping.FixedNorm(10**400)),
    ("q", "=1.5 must be at least 0 and at most 1", lambda: clipping.QuantileNorm(1.5)),
    ("q", "=-0.1", lambda: clipping.QuantileNorm(-0.1)),
    ("q", "array of", lambda: clipping.QuantileNorm(np.array([0.5]))),
    ("epsilon", "=-1", lambda: clipping.UnitNorm(-1)),
    ("epsilon", "=None", lambda: clipping.UnitNorm(None)),
    # methods
    ("micro_batch_size", "=0", lambda: MicroBatchClipping(0)),
    ("micro_batch_size", "=2.5", lambda: MicroBatchClipping(2.5)),
    ("rule", "=None", lambda: MicroBatchClipping(2, rule=None)),
    ("rule", "SmallestNorm", lambda: MicroBatchClipping(2, rule=clipping.SmallestNorm)),
    ("micro_batch_size", "=5 must divide batch_size=12; its divisors are 1, 2, 3, 4, 6, 12",
     lambda: MicroBatchClipping(5).micro_batches(12)),
    ("batch_size", "=0", lambda: SGD().micro_batches(0)),
    # losses
    ("eigenvalues", "real numbers", lambda: Quadratic("abc")),
    ("eigenvalues", "real numbers", lambda: Quadratic([1, [2, 3]])),
    ("eigenvalues", "1 axes", lambda: Quadratic(np.eye(2))),
    ("eigenvalues", "1 axes", lambda: Quadratic(1.0)),
    ("eigenvalues", "at least 0", lambda: Quadratic([1.0, -1.0])),
    ("eigenvalues", "above 0", lambda: Quadratic([0.0, 0.0])),
    ("eigenvalues", "finite", lambda: Quadratic([1.0, NAN])),
    ("eigenvalues", "empty", lambda: Quadratic([])),
    ("dim", "=0", lambda: LogCosh(0)),
    ("dim", "=2.5", lambda: LogCosh(2.5)),
    ("dim", "=-1", lambda: Ripple(-1, 1.0)),
    ("amplitude", "=-1", lambda: Ripple(2, -1.0)),
    ("amplitude", "=inf", lambda: Ripple(2, INF)),
    # noise
    *[("sigma", "must", lambda law=law, bad=bad: law(sigma=bad))
      for law in (Gaussian, TwoPoint, Exponential, StudentT)
      for bad in (-1.0, NAN, INF, "1", None, True, 1j, [1.0], 10**400)],
    ("rare", "=0 ", lambda: TwoPoint(rare=0)),
    ("rare", "=1 ", lambda: TwoPoint(rare=1)),
    ("rare", "=nan", lambda: TwoPoint(rare=NAN)),
    ("isotropic_share", "=1.1", lambda: TwoPoint(isotropic_share=1.1)),
    ("isotropic_share", "=-0.1", lambda: Exponential(isotropic_share=-0.1)),
    ("df", "=2 must be above 2", lambda: StudentT(df=2)),
    ("df", "=inf", lambda: StudentT(df=INF)),
    # draggers
    ("probability", "=-0.1 must be at least 0 and at most 1",
     lambda: Draggers(probability=-0.1, norm_ratio=1)),
    ("probability", "=1.1", lambda: Draggers(probability=1.1, norm_ratio=1)),
    ("probability", "=nan", lambda: Draggers(probability=NAN, norm_ratio=1)),
    ("probability", "='5%'", lambda: Draggers(probability="5%", norm_ratio=1)),
    ("norm_ratio", "=-1", lambda: Draggers(probability=0.1, norm_ratio=-1)),
    ("norm_ratio", "=inf", lambda: Draggers(probability=0.1, norm_ratio=INF)),
    ("coherence", "=1.5", lambda: Draggers(probability=0.1, norm_ratio=1, coherence=1.5)),
    ("coherence", "=-0.5", lambda: Draggers(probability=0.1, norm_ratio=1, coherence=-0.5)),
    ("tilt", "=1 ", lambda: Draggers(probability=0.1, norm_ratio=1, tilt=1)),
    ("tilt", "=-1 ", lambda: Draggers(probability=0.1, norm_ratio=1, tilt=-1)),
    # problems
    ("loss", "=3 ", lambda: problem(loss=3)),
    ("loss", "Quadratic", lambda: problem(loss=Quadratic)),
    ("loss", "value", lambda: problem(loss=NoValue())),
    ("loss", r"values of shape \(\)", lambda: problem(loss=OneAtATime())),
    ("loss", r"gradients of shape \(8,\)", lambda: problem(loss=Flattened())),
    ("loss.minimum", "=5 must be a lower bound", lambda: problem(loss=AboveItsMinimum())),
    ("loss.smoothness", "=nan", lambda: problem(loss=Unsmooth())),
    ("loss.smoothness", "must be finite", lambda: problem(loss=Ripple(8, 1e308))),
    ("noise", "=None", lambda: problem(noise=None)),
    ("noise", "Gaussian", lambda: problem(noise=Gaussian)),
    ("noise", "mean_of", lambda: problem(noise=NoMean())),
    ("noise.sigma", "=inf", lambda: problem(noise=Unbounded())),
    ("draggers", "=0.05 ", lambda: problem(draggers=0.05)),
    ("draggers", "Draggers", lambda: problem(draggers=Draggers)),
    ("benign_dim", "=0 ", lambda: problem(benign_dim=0)),
    ("benign_dim", "=4.5 ", lambda: problem(benign_dim=4.5)),
    ("benign_dim", "=True ", lambda: problem(benign_dim=True)),
    ("benign_dim", "=7 leaves .* 0 dimensions .* need 1 .* at most 6",
     lambda: problem(benign_dim=7)),
    ("benign_dim", "=6 leaves .* 1 dimensions .* need 2 with coherence=0.5; .* at most 5",
     lambda: problem(benign_dim=6, draggers=Draggers(
         probability=0.1, norm_ratio=1, coherence=0.5))),
    ("benign_dim", "=9 must be at most .* 8", lambda: problem(benign_dim=9, draggers=None)),
    ("start", "7 coordinates", lambda: problem(start=np.ones(7))),
    ("start", "1 axes", lambda: problem(start=1.0)),
    ("start", "1 axes", lambda: problem(start=np.ones((2, 4)))),
    ("start", "finite", lambda: problem(start=np.full(8, NAN))),
    ("start", "real numbers", lambda: problem(start=["a"] * 8)),
    ("start", "real numbers", lambda: problem(start=np.ones(8, dtype=complex))),
    ("start", "real numbers", lambda: problem(start=[None] * 8)),
    ("start", "finite", lambda: problem(start=np.full(8, 1e200))),
    ("start", "squared gradient norm",
     lambda: problem(loss=Quadratic(np.full(8, 1e200)), start=np.full(8, 1e-10))),
    # simulate
    ("problem", "=None", lambda: simulate(problem=None)),
    ("problem", "Problem", lambda: simulate(problem=Problem)),
    ("method", "='sgd'", lambda: simulate(method="sgd")),
    ("method", "SGD", lambda: simulate(method=SGD)),
    ("method", "SmallestNorm", lambda: simulate(method=clipping.SmallestNorm())),
    ("micro_batch_size", "=2 must divide batch_size=9; its divisors are 1, 3, 9",
     lambda: simulate(batch_size=9)),
    ("batch_size", "=0 ", lambda: simulate(batch_size=0)),
    ("batch_size", "=8.5 ", lambda: simulate(batch_size=8.5)),
    ("batch_size", "='8' ", lambda: simulate(batch_size="8")),
    ("step_size", "=0 must be above 0", lambda: simulate(step_size=0)),
    ("step_size", "=-0.1", lambda: simulate(step_size=-0.1)),
    ("step_size", "=nan", lambda: simulate(step_size=NAN)),
    ("step_size", "=inf", lambda: simulate(step_size=INF)),
    ("step_size", "='best'", lambda: simulate(step_size="best")),
    ("step_size", "must be finite", lambda: simulate(step_size=10**400)),
    ("steps", "=0 ", lambda: simulate(steps=0)),
    ("steps", "=-1 ", lambda: simulate(steps=-1)),
    ("steps", "=10.5 ", lambda: simulate(steps=10.5)),
    ("steps", "=None ", lambda: simulate(steps=None)),
    ("replicates", "=0 ", lambda: simulate(replicates=0)),
    ("replicates", "=True ", lambda: simulate(replicates=True)),
    ("replicates", "=0.1", lambda: simulate(replicates=1e-1)),
    ("record_every", "=0 ", lambda: simulate(record_every=0)),
    ("record_every", "=0.5 ", lambda: simulate(record_every=0.5)),
    ("engine", "='fast' must be one of auto, reference, exact_law",
     lambda: simulate(engine="fast")),
    ("engine", "=None ", lambda: simulate(engine=None)),
    ("engine", "array of", lambda: simulate(engine=np.array(["auto", "auto"]))),
    ("threads", "=0 ", lambda: simulate(threads=0)),
    ("threads", "=1.5 ", lambda: simulate(threads=1.5)),
    ("rng", "=None ", lambda: simulate(rng=None)),
    ("rng", "=-1 ", lambda: simulate(rng=-1)),
    ("rng", "=0.0 ", lambda: simulate(rng=0.0)),
    ("rng", "=True ", lambda: simulate(rng=True)),
    ("rng", "='0' ", lambda: simulate(rng="0")),
    ("rng", "RandomState", lambda: simulate(rng=np.random.RandomState(0))),
    # draw_updates
    ("gradient", "must", lambda: draw(np.ones(7))),
    ("gradient", "must", lambda: draw(1.0)),
    ("gradient", "must", lambda: draw(np.full(8, NAN))),
    ("gradient", "must", lambda: draw(["a"] * 8)),
    ("gradient", "must", lambda: draw([[1.0], [1.0, 2.0]])),
    ("gradient", "must", lambda: draw(np.ones(8, dtype=complex))),
    ("gradient", "must", lambda: draw([None] * 8)),
    ("gradient", "must", lambda: draw(np.ones(8, dtype=bool))),
    ("gradient", "must", lambda: draw(np.full(8, 1e200))),
    ("rng", "=None ", lambda: draw(rng=None)),
    ("replicates", "=0 ", lambda: draw(replicates=0)),
    ("replicates", "=-1 ", lambda: draw(replicates=-1)),
    # runs
    ("name", "='w' must be one of", lambda: simulate().mean("w")),
    ("name", "='diverged'", lambda: simulate().standard_error("diverged")),
    ("path", "Run.save", lambda: mbsim.Run.load(__file__)),
    # statistics and verdicts
    ("sample", "at least 2", lambda: statistics.mean([1.0], false_positive_rate=0.1)),
    ("sample", "real numbers", lambda: statistics.mean(["a", "b"], false_positive_rate=0.1)),
    ("false_positive_rate", "=0 ", lambda: statistics.mean([1.0, 2.0], false_positive_rate=0)),
    ("false_positive_rate", "=1 ", lambda: statistics.mean([1.0, 2.0], false_positive_rate=1)),
    ("paired", "2 and 3", lambda: statistics.difference(
        [1.0, 2.0], [1.0, 2.0, 3.0], false_positive_rate=0.1, paired=True)),
    ("x", "above 0", lambda: statistics.log_log_slope(
        [0, 1], [[1.0, 2.0], [1.0, 2.0]], false_positive_rate=0.1)),
    ("x", "one for each", lambda: statistics.log_log_slope(
        [1, 2, 3], [[1.0, 2.0], [1.0, 2.0]], false_positive_rate=0.1)),
    ("relation", "='under'", lambda: Comparison(
        what="", measured=INTERVAL, relation="under", limit=1.0)),
    ("relation", "='within'", lambda: Comparison(
        what="", measured=INTERVAL, relation="within", limit=1.0)),
    ("limit", "ascend", lambda: Comparison(
        what="", measured=INTERVAL, relation="within", limit=(2.0, 1.0))),
    ("claim", "at least one comparison", lambda: Verdict(
        claim="none", statement="", comparisons=(), seed=0)),
    # testing
    ("rule", "factors", lambda: check_rule(3)),
    ("loss", "value", lambda: check_loss(NoValue())),
    ("start", "2 coordinates", lambda: check_loss(LogCosh(3), start=[0.0, 1.0])),
    ("noise", "mean_of", lambda: check_noise(NoMean())),
    ("draws", "=10 ", lambda: check_noise(Gaussian(), draws=10)),
    ("rng", "=-1 ", lambda: check_rule(clipping.SmallestNorm(), rng=-1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "shows", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)]
)
def test_bad_call(argument, shows, call):
    with pytest.raises(InvalidArgument, match=shows) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is InvalidArgument
    assert "\n" not in message
    assert len(message) <= 300
    assert argument in message
    assert any(rule in message for rule in ("must", "leaves", "needs", "does not apply"))


def test_missing_arguments_are_named_by_python():
    """The seed is required, and nothing that looks like one is made up."""
    with pytest.raises(TypeError, match="'rng'"):
        mbsim.simulate(problem(), SGD(), batch_size=8, step_size=0.1, steps=1, replicates=1)


HUGE = """
import numpy as np, resource
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
import test_bad_calls as t
from mbsim.problems.noise import Gaussian
from mbsim import Draggers, InvalidArgument, MicroBatchClipping
for name, call in {
    "replicates": lambda: t.simulate(replicates=10**13),
    "replicates ": lambda: t.simulate(replicates=10**25),
    "replicates  ": lambda: t.draw(replicates=10**13),
    "steps": lambda: t.simulate(steps=10**13),
    "steps ": lambda: t.simulate(steps=10**25),
    "batch_size": lambda: t.simulate(batch_size=2**40, method=MicroBatchClipping(1)),
    "batch_size ": lambda: t.simulate(batch_size=10**25, method=MicroBatchClipping(1)),
    "batch_size  ": lambda: t.simulate(batch_size=10**15 + 1, method=MicroBatchClipping(2)),
    "batch_size   ": lambda: t.simulate(batch_size=2**40, engine="reference"),
}.items():
    try:
        call()
    except InvalidArgument as error:
        ok = name.strip() in str(error) and len(str(error)) < 300 and "\\n" not in str(error)
        print(name, "fine" if ok else error, flush=True)
    except BaseException as error:
        print(name, type(error).__name__, error, flush=True)
    else:
        print(name, "passed", flush=True)
"""


def test_huge_sizes():
    """In a process of its own, which may neither hang nor fill the memory."""
    out, err = processes.run(HUGE, timeout=20)
    assert out.split().count("fine") == 9, out + err


def test_huge_parameters_end_in_divergence_or_a_refusal():
    """Numbers whose squares overflow: no OverflowError out of Python's floats."""
    for draggers, noise in (
        (Draggers(probability=0.5, norm_ratio=1e200), Gaussian(sigma=1.0)),
        (Draggers(probability=0.1, norm_ratio=1.0), Gaussian(sigma=1e200)),
        (Draggers(probability=0.1, norm_ratio=1.0), TwoPoint(sigma=1e200)),
        (Draggers(probability=0.1, norm_ratio=1.0), StudentT(sigma=1e200)),
    ):
        try:
            run = simulate(
                problem=problem(draggers=draggers, noise=noise), method=SGD(), replicates=64
            )
        except InvalidArgument:
            continue
        assert run.diverged.any()
        finite = np.isfinite(run.loss)
        assert (finite | np.isnan(run.loss)).all()
