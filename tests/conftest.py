"""Hypothesis draws the same examples on every machine, and leaves nothing behind."""

import os

# Before NumPy is loaded: tests run side by side, and threads of each would wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("mbsim", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("mbsim")
