"""Hypothesis draws the same examples everywhere; what many tests share is worked out once."""

import os

# Before NumPy is loaded: tests run side by side, and threads of each would wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("mbsim", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("mbsim")

# Tests that one process runs (-n), as they share what takes long to work out.
TOGETHER = {
    "tests/study/test_report.py": "reproduce",
    "tests/test_site.py": "site",
    "tests/theory/test_tilted.py": "tilted",
    "tests/theory/test_theory_page.py::test_fact_tilted_margins": "tilted",
    "tests/theory/test_inequalities.py": "inequalities",
    "tests/theory/test_theory_page.py::test_fact_margins": "inequalities",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """These first, as what is most; every other test by itself."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return TOGETHER.get(nodeid, TOGETHER.get(nodeid.partition("::")[0], nodeid))

    return Scheduling(config, log)
