"""The theory as formulas: quantities, bounds, theorems, Table 1, formulas of a user's own."""

from typing import NoReturn

from mbsim._shared.meant import no_such_name as no_such_name
from mbsim.theory.bound import (
    Bound,
    Condition,
    Subject,
    formula_bound,
    tuned_bound,
    tuned_step_size,
)
from mbsim.theory.formula import Formula
from mbsim.theory.parser import parse_formula
from mbsim.theory.quantities import ABBREVIATIONS, QUANTITIES, symbols
from mbsim.theory.table import Crossover, Table, crossover, table1
from mbsim.theory.theorems import (
    alignment_estimate,
    bias_bound,
    clean_sgd_bound,
    clipping_bound,
    clipping_concentrated_bound,
    clipping_concentrated_drift_bound,
    clipping_drift_bound,
    micro_batch_norm_ratio,
    norm_spread_bound,
    optimal_micro_batch_size,
    second_moment_bound,
    sgd_bound,
    sgd_tuned_bound,
    symmetric_bound,
)
from mbsim.theory.tilted import (
    best_tilted_size,
    stalled_share,
    stalling_fitted_share,
    tilted_clipping_bound,
    tilted_clipping_drift_bound,
    tilted_level,
    tilted_level_estimate,
    tilted_sgd_bound,
    tilted_sgd_lower_bound,
    tilted_threshold_drift_bound,
)

__all__ = [
    "ABBREVIATIONS",
    "QUANTITIES",
    "Bound",
    "Condition",
    "Crossover",
    "Formula",
    "Subject",
    "Table",
    "alignment_estimate",
    "best_tilted_size",
    "bias_bound",
    "clean_sgd_bound",
    "clipping_bound",
    "clipping_concentrated_bound",
    "clipping_concentrated_drift_bound",
    "clipping_drift_bound",
    "crossover",
    "formula_bound",
    "micro_batch_norm_ratio",
    "norm_spread_bound",
    "optimal_micro_batch_size",
    "parse_formula",
    "second_moment_bound",
    "sgd_bound",
    "sgd_tuned_bound",
    "stalled_share",
    "stalling_fitted_share",
    "symbols",
    "symmetric_bound",
    "table1",
    "tilted_clipping_bound",
    "tilted_clipping_drift_bound",
    "tilted_level",
    "tilted_level_estimate",
    "tilted_sgd_bound",
    "tilted_sgd_lower_bound",
    "tilted_threshold_drift_bound",
    "tuned_bound",
    "tuned_step_size",
]


def __getattr__(name: str) -> NoReturn:
    raise no_such_name("mbsim.theory", name)
