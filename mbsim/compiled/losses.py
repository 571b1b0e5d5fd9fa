"""Losses, compiled: fills the gradient and returns the value. See :mod:`mbsim.problems.losses`."""

from __future__ import annotations

import math

from mbsim.compiled.arrays import dot

__all__ = ["held", "log_cosh", "quadratic", "ripple"]


def held(w, parameters, gradient):
    """0, with the parameters as its gradient."""
    for i in range(w.size):
        gradient[i] = parameters[i]
    return 0.0


def quadratic(w, parameters, gradient):
    """½ Σ λ_i w_i²; the parameters are λ."""
    for i in range(w.size):
        gradient[i] = parameters[i] * w[i]
    return 0.5 * dot(gradient, w, 0, w.size)


def log_cosh(w, parameters, gradient):
    """Σ log cosh w_i; no parameters."""
    total = 0.0
    for i in range(w.size):
        size = abs(w[i])
        below = math.expm1(-2 * size)
        slope = -below / (2 + below)
        gradient[i] = math.copysign(slope, w[i])
        # log cosh = −½ log(1 − tanh²), which keeps the digits near 0 and loses them far away.
        if size < 1:
            total -= 0.5 * math.log1p(-slope * slope)
        else:
            total += size + math.log1p(0.5 * below)
    return total


def ripple(w, parameters, gradient):
    """½‖w‖² + a Σ sin² w_i; the parameter is a."""
    total = 0.0
    for i in range(w.size):
        sine = math.sin(w[i])
        gradient[i] = w[i] + parameters[0] * (2 * sine * math.cos(w[i]))
        total += 0.5 * w[i] * w[i] + parameters[0] * sine * sine
    return total
