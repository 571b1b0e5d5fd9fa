"""Noise laws, compiled: the mean noise of ν examples, for each ν. See :mod:`mbsim.problems.noise`.

Filled are the component along e, and the standard deviation of each coordinate across e.
"""

from __future__ import annotations

import math

from mbsim.compiled.draws import binomial, gamma, normal

__all__ = ["exponential", "gaussian", "student_t", "two_point"]


def gaussian(counts, benign_dim, parameters, state, along, across):
    """Isotropic, of standard deviation σ, the parameter."""
    for j in range(counts.size):
        along[j] = across[j] = 0
        if counts[j] > 0:
            across[j] = parameters[0] / math.sqrt(counts[j] * benign_dim)
            along[j] = across[j] * normal(state)


def two_point(counts, benign_dim, parameters, state, along, across):
    """Parameters: σ of the isotropic part; σ along e over √(π(1 − π)); π."""
    for j in range(counts.size):
        along[j] = across[j] = 0
        if counts[j] > 0:
            hits = binomial(state, counts[j], parameters[2])
            along[j] = parameters[1] * (hits / counts[j] - parameters[2])
            if parameters[0] > 0:
                across[j] = parameters[0] / math.sqrt(counts[j] * benign_dim)
                along[j] += across[j] * normal(state)


def exponential(counts, benign_dim, parameters, state, along, across):
    """Parameters: σ of the isotropic part; σ along e."""
    for j in range(counts.size):
        along[j] = across[j] = 0
        if counts[j] > 0:
            along[j] = parameters[1] * (gamma(state, float(counts[j])) / counts[j] - 1)
            if parameters[0] > 0:
                across[j] = parameters[0] / math.sqrt(counts[j] * benign_dim)
                along[j] += across[j] * normal(state)


def student_t(counts, benign_dim, parameters, state, along, across):
    """Parameters: σ; the degrees of freedom, above 2."""
    freedom = parameters[1]
    for j in range(counts.size):
        along[j] = across[j] = 0
        if counts[j] > 0:
            total = 0.0
            for _ in range(counts[j]):
                total += 0.5 * (freedom - 2) / gamma(state, 0.5 * freedom)
            across[j] = parameters[0] * math.sqrt(total / benign_dim) / counts[j]
            along[j] = across[j] * normal(state)
