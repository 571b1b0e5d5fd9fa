"""mbsim: does micro-batch clipping help here, at which micro-batch size, and is the theory right?

The paper is Lun Wang, "Revisit Micro-batch Clipping: Adaptive Data Pruning via Gradient
Manipulation", ICLR 2025, arXiv 2408.16204, cited as [Wang2024]. Its printed formulas were not
available to this project: every bound here is derived on the project's theory page.

Names are imported when they are first used, so that ``import mbsim`` is quick and does not need
the optional libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# For type checkers; an alias to the name itself says that it is public.
if TYPE_CHECKING:
    from mbsim import clipping as clipping
    from mbsim import errors as errors
    from mbsim import testing as testing
    from mbsim import theory as theory
    from mbsim._shared.version import __version__ as __version__
    from mbsim.checking.check import check as check
    from mbsim.checking.formulas import check_bound as check_bound
    from mbsim.choosing.compare import compare as compare
    from mbsim.choosing.phase_diagram import phase_diagram as phase_diagram
    from mbsim.choosing.quantities import quantities as quantities
    from mbsim.choosing.sweet_spot import sweet_spot as sweet_spot
    from mbsim.choosing.tuning import simulate as simulate
    from mbsim.drifts.drift import Drift as Drift
    from mbsim.drifts.drift import drift as drift
    from mbsim.errors import InvalidArgument as InvalidArgument
    from mbsim.extra import hypothesis as strategies  # noqa: F401
    from mbsim.gradients.advice import advise as advise
    from mbsim.gradients.assumptions import check_assumptions as check_assumptions
    from mbsim.gradients.gram import Gram as Gram
    from mbsim.gradients.measured import MeasuredProblem as MeasuredProblem
    from mbsim.gradients.race import race as race
    from mbsim.gradients.weights import example_weights as example_weights
    from mbsim.methods import SGD as SGD
    from mbsim.methods import Method as Method
    from mbsim.methods import MicroBatchClipping as MicroBatchClipping
    from mbsim.problems import losses as losses
    from mbsim.problems import noise as noise
    from mbsim.problems.draggers import Draggers as Draggers
    from mbsim.problems.finite import FiniteProblem as FiniteProblem
    from mbsim.problems.problem import Problem as Problem
    from mbsim.simulation.run import Run as Run
    from mbsim.simulation.run import draw_updates as draw_updates
    from mbsim.study.report import reproduce as reproduce
    from mbsim.sweeps.grid import Grid as Grid
    from mbsim.sweeps.runner import sweep as sweep
    from mbsim.sweeps.store import Store as Store
    from mbsim.verdicts import Verdict as Verdict

# Where each public name lives.
_HOMES = {
    "Draggers": "mbsim.problems.draggers",
    "Drift": "mbsim.drifts.drift",
    "FiniteProblem": "mbsim.problems.finite",
    "Gram": "mbsim.gradients.gram",
    "Grid": "mbsim.sweeps.grid",
    "InvalidArgument": "mbsim.errors",
    "MeasuredProblem": "mbsim.gradients.measured",
    "Method": "mbsim.methods",
    "MicroBatchClipping": "mbsim.methods",
    "Problem": "mbsim.problems.problem",
    "Run": "mbsim.simulation.run",
    "SGD": "mbsim.methods",
    "Store": "mbsim.sweeps.store",
    "Verdict": "mbsim.verdicts",
    "__version__": "mbsim._shared.version",
    "advise": "mbsim.gradients.advice",
    "check": "mbsim.checking.check",
    "check_assumptions": "mbsim.gradients.assumptions",
    "check_bound": "mbsim.checking.formulas",
    "compare": "mbsim.choosing.compare",
    "draw_updates": "mbsim.simulation.run",
    "drift": "mbsim.drifts.drift",
    "example_weights": "mbsim.gradients.weights",
    "phase_diagram": "mbsim.choosing.phase_diagram",
    "quantities": "mbsim.choosing.quantities",
    "race": "mbsim.gradients.race",
    "reproduce": "mbsim.study.report",
    "simulate": "mbsim.choosing.tuning",
    "sweep": "mbsim.sweeps.runner",
    "sweet_spot": "mbsim.choosing.sweet_spot",
}
_MODULES = {
    "clipping": "mbsim.clipping",
    "errors": "mbsim.errors",
    "losses": "mbsim.problems.losses",
    "noise": "mbsim.problems.noise",
    "strategies": "mbsim.extra.hypothesis",
    "testing": "mbsim.testing",
    "theory": "mbsim.theory",
}

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        found = import_module(_MODULES[name])
    else:
        from mbsim._shared.meant import no_such_name

        raise no_such_name("mbsim", name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
