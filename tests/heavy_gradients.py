"""What tests of measured gradients share: gradients with long ones among them, and the rules."""

import numpy as np

from mbsim.clipping import FixedNorm, NoClipping, QuantileNorm, SmallestNorm, TrimmedNorm, UnitNorm

RULES = [
    NoClipping(),
    SmallestNorm(),
    FixedNorm(3.0),
    QuantileNorm(0.5),
    TrimmedNorm(0.3),
    UnitNorm(0.01),
]
# What is asked of norms, products and cosines that a Gram matrix gives.
CLOSE = 1e-10


def gradients(examples=48, dim=30, seed=0):
    """A common part, noise, and one in eight that is ten times as long."""
    rng = np.random.default_rng(seed)
    found = 0.3 + rng.standard_normal((examples, dim))
    found[::8] *= 10
    return found
