"""Which call was meant: other people's names of things, and ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, TypeVar

from mbsim.errors import shown

__all__ = ["answering", "meant", "no_such_name"]

T = TypeVar("T", bound=Callable[..., Any])

# Ours, and what it is called in papers and in other libraries; letters are the paper's.
_ARGUMENTS = {
    "batch_size": "B batch batchsize bs minibatch_size mini_batch_size",
    "benign_dim": "n benign_dimension benign_dimensions",
    "by": "criterion metric",
    "coherence": "gamma γ",
    "df": "nu ν dof degrees_of_freedom",
    "dim": "d dimension dimensions size",
    "eigenvalues": "matrix hessian diagonal",
    "initial_gap": "Delta Δ gap",
    "is_dragger": "mask draggers",
    "micro_batch_size": "b microbatch_size microbatch micro_batch mbs",
    "norm_ratio": "c ratio norm",
    "out": "output folder path directory outdir",
    "probability": "p prob dragger_probability share fraction",
    "rare": "pi π",
    "record_every": "log_every save_every every",
    "replicates": "runs n_runs repeats reps n_replicates num_replicates replicas trials",
    "rng": "seed random_state key generator",
    "sigma": "σ std stddev scale noise_std s",
    "smoothness": "L",
    "start": "w0 init initial x0 theta0",
    "step_size": "lr learning_rate eta η alpha stepsize",
    "steps": "T n_steps num_steps iterations iters n_iter max_iter epochs horizon",
    "target": "held_out mean reference",
    "threshold": "C clip max_norm clip_norm",
    "tilt": "t",
    "workers": "n_jobs jobs threads processes",
}
_NAMES = {
    "mbsim.MicroBatchClipping": "Clipping Clip MicrobatchClipping MicroBatch Microbatch",
    "mbsim.SGD": "Sgd sgd GradientDescent",
    "mbsim.advise": "advice recommend",
    "mbsim.clipping.FixedNorm": "Fixed Threshold ClipByNorm",
    "mbsim.clipping.NoClipping": "Identity NoClip",
    "mbsim.clipping.QuantileNorm": "Quantile Median MedianNorm",
    "mbsim.clipping.SmallestNorm": "Smallest MinNorm MinimumNorm Min Adaptive Algorithm1",
    "mbsim.clipping.TrimmedNorm": "Trimmed",
    "mbsim.clipping.UnitNorm": "Unit Normalized Normalised Normalize",
    "mbsim.losses.LogCosh": "logcosh",
    "mbsim.losses.Quadratic": "quadratic Square Squared HalfSquare",
    "mbsim.losses.Ripple": "ripple",
    "mbsim.noise.Exponential": "exponential Exp",
    "mbsim.noise.Gaussian": "Normal normal Gauss gaussian GaussianNoise",
    "mbsim.noise.StudentT": "Student StudentsT TDistribution T student_t",
    "mbsim.noise.TwoPoint": "two_point Bernoulli Skewed",
    "mbsim.Problem": "problem",
    "mbsim.simulate": "run train simulation",
    "mbsim.sweet_spot": "best find_best best_b optimal",
    "mbsim.theory.sgd_bound": "theorem1 Theorem1",
    "mbsim.theory.clipping_bound": "theorem2 Theorem2",
    "mbsim.theory.symmetric_bound": "theorem3 Theorem3",
    "mbsim.theory.table1": "Table1",
}


def _by_other(table: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for ours, others in table.items():
        for other in others.split():
            found.setdefault(other, []).append(ours)
    return found


_ARGUMENTS_BY_OTHER, _NAMES_BY_OTHER = _by_other(_ARGUMENTS), _by_other(_NAMES)


def meant(name: str, known: Iterable[str]) -> str | None:
    """The one of the `known` arguments that somebody means by `name`; None if it is not clear.

    >>> meant("lr", ["steps", "step_size"]), meant("step_sise", ["steps", "step_size"])
    ('step_size', 'step_size')
    """
    from difflib import get_close_matches

    known, name = list(known), name.replace("-", "_")
    for one in _ARGUMENTS_BY_OTHER.get(name, ()):
        if one in known:
            return one
    close = get_close_matches(name.lower(), known, 1, 0.75)
    return close[0] if close else None


def answering(thing: T) -> T:
    """A function or a class which, called wrongly, says the call that was meant, in one line.

    >>> @answering
    ... def move(*, step_size): ...
    >>> move(lr=0.1)
    Traceback (most recent call last):
        ...
    TypeError: move(lr=0.1): did you mean step_size=0.1?
    """
    called: Any = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]

    @wraps(called)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return called(*arguments, **named)
        except TypeError:
            answer = _answer(thing.__name__, called, arguments, named)
            if answer is None:  # a fault inside, or an argument that Python itself says is missing
                raise
        raise TypeError(answer)

    if not isinstance(thing, type):
        return call  # type: ignore[return-value]
    thing.__init__ = call  # type: ignore[misc]
    return thing


def _answer(
    name: str, called: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> str | None:
    parameters = inspect.signature(called).parameters.values()
    if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        return None
    # A drift is the self of functions that are its methods.
    takes = [p.name for p in parameters if p.name not in ("self", "drift")]
    places = [p.name for p in parameters if p.kind != p.KEYWORD_ONLY]
    free = [each for each in takes if each not in (*places[: len(arguments)], *named)]
    said, right, left = [], [], []
    for value in arguments[len(places) :]:
        ours = free.pop(0) if free else None
        said.append(shown(value))
        right += [f"{ours}={shown(value)}"] if ours else []
        left += [] if ours else [shown(value)]
    for other in [each for each in named if each not in takes]:
        ours = meant(other, free)
        said.append(f"{other}={shown(named[other])}")
        right += [f"{ours}={shown(named[other])}"] if ours else []
        left += [] if ours else [said[-1]]
        free = [each for each in free if each != ours]
    if not said:
        return None
    call = f"{name}({', '.join(said)})"
    if left:
        return f"{call}: it takes {', '.join(takes) or 'nothing'}, and no {', '.join(left)}"
    return f"{call}: did you mean {', '.join(right)}?"


def no_such_name(module: str, name: str) -> AttributeError:
    """What to raise where a module lacks a name; it says which was meant.

    >>> str(no_such_name("mbsim.noise", "Normal"))
    "module 'mbsim.noise' has no attribute 'Normal'; did you mean mbsim.noise.Gaussian?"
    """
    text = f"module {module!r} has no attribute {name!r}"
    others = {full.rpartition(".")[2]: full for full in _NAMES}
    found = others.get(name) or next(iter(_NAMES_BY_OTHER.get(name, ())), None)
    return AttributeError(f"{text}; did you mean {found}?" if found else text)
