"""The theory as formulas: quantities, bounds, theorems, Table 1, formulas of a user's own.

Every theorem is a function that gives a :class:`Bound`: it prints its formula, and
``bound.evaluate(problem, batch_size=64, step_size=0.01, steps=1000)`` gives its number. Numbers go
by name or by letter (``eta=0.01``); what has to be measured comes from :func:`mbsim.quantities`.
The sections are those of the theory page.

======================================  ==========================================================
of the theory                           its function
======================================  ==========================================================
2, norm ratio of a micro-batch          :func:`micro_batch_norm_ratio`
Theorem 1 (4): SGD with draggers        :func:`sgd_bound`, :func:`sgd_tuned_bound`,
                                        :func:`clean_sgd_bound`
5.1, the drift of clipping              :func:`clipping_drift_bound`
Theorem 2 (5.2): clipping, any noise    :func:`clipping_bound`; its bias: :func:`bias_bound`,
                                        :func:`optimal_micro_batch_size`
Theorem 2 (5.3): concentrated norms     :func:`clipping_concentrated_bound`,
                                        :func:`clipping_concentrated_drift_bound`,
                                        :func:`alignment_estimate`, :func:`norm_spread_bound`
5.3 and 5.4, second moment of a step    :func:`second_moment_bound`
5.6, Table 1, and where bounds cross    :func:`table1`, :func:`crossover`
Theorem 3 (6): symmetric noise          :func:`symmetric_bound`
Theorem 5 (7), the exact drift          :func:`mbsim.drift`
Theorem 6 (8), the certificate          :meth:`mbsim.Drift.certify`
Theorem 7 (12.1): SGD, tilted draggers  :func:`tilted_sgd_lower_bound`, :func:`tilted_sgd_bound`
Theorem 8 (12.2): clipping, tilted      :func:`tilted_clipping_bound`,
                                        :func:`tilted_clipping_drift_bound`
Theorem 9 (12.3): the same, any noise   ``tilted_clipping_bound(noise="any")``
12.4, rules that do not stall           :func:`tilted_threshold_drift_bound`
12, the level where runs stop           :func:`tilted_level`
12.5, an estimate for every b           :func:`tilted_level_estimate`, :func:`best_tilted_size`
12.6, examples that are fitted          :func:`stalled_share`, :func:`stalling_fitted_share`
a step size that is best for a bound    :func:`tuned_bound`, :func:`tuned_step_size`
your own formula                        :func:`formula_bound`, :func:`parse_formula`;
                                        :func:`mbsim.check_bound` holds it against simulation
======================================  ==========================================================

:data:`QUANTITIES` lists what formulas are made of, with letters, ranges and meanings
(:func:`symbols` gives the letters), and :data:`ABBREVIATIONS` what stands for more than one.
:class:`Formula`, :class:`Condition`, :class:`Subject`, :class:`Table` and :class:`Crossover` are
what those functions are made of, and give.
"""

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
