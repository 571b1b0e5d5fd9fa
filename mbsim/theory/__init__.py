"""The theory as code: bounds in SymPy. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from mbsim.theory.formula import formula_bound, parse_formula

__all__ = [
    "Bound",
    "bias_bound",
    "clean_sgd_bound",
    "clipping_bound",
    "clipping_concentrated_bound",
    "clipping_drift_bound",
    "crossover",
    "formula_bound",
    "optimal_micro_batch_size",
    "parse_formula",
    "second_moment_bound",
    "sgd_bound",
    "sgd_tuned_bound",
    "symmetric_bound",
    "table1",
    "tuned_bound",
    "tuned_step_size",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mbsim.theory' has no attribute {name!r}")
    home = "formula" if name in ("formula_bound", "parse_formula") else "bounds"
    found = getattr(import_module(f"mbsim.theory.{home}"), name)
    globals()[name] = found
    return found
