"""The theory as code: bounds, drifts, certificates. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbsim.theory.assumptions import measure_assumptions
    from mbsim.theory.bounds import (
        Bound,
        bias_bound,
        clean_sgd_bound,
        clipping_bound,
        clipping_concentrated_bound,
        clipping_drift_bound,
        crossover,
        optimal_micro_batch_size,
        second_moment_bound,
        sgd_bound,
        sgd_tuned_bound,
        symmetric_bound,
        table1,
        tuned_bound,
        tuned_step_size,
    )
    from mbsim.theory.drift import Drift, drifts
    from mbsim.theory.formula import formula_bound, parse_formula
    from mbsim.theory.step_sample import step_sample

__all__ = [
    "Bound",
    "Drift",
    "bias_bound",
    "clean_sgd_bound",
    "clipping_bound",
    "clipping_concentrated_bound",
    "clipping_drift_bound",
    "crossover",
    "drifts",
    "formula_bound",
    "measure_assumptions",
    "optimal_micro_batch_size",
    "parse_formula",
    "second_moment_bound",
    "sgd_bound",
    "sgd_tuned_bound",
    "step_sample",
    "symmetric_bound",
    "table1",
    "tuned_bound",
    "tuned_step_size",
]

# Where names live that are not in bounds.
_HOMES = {
    "Drift": "drift",
    "drifts": "drift",
    "formula_bound": "formula",
    "measure_assumptions": "assumptions",
    "parse_formula": "formula",
    "step_sample": "step_sample",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mbsim.theory' has no attribute {name!r}")
    found = getattr(import_module(f"mbsim.theory.{_HOMES.get(name, 'bounds')}"), name)
    globals()[name] = found
    return found
