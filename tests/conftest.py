"""Hypothesis draws the same examples on every machine, and leaves nothing behind."""

from hypothesis import settings

settings.register_profile("mbsim", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("mbsim")
