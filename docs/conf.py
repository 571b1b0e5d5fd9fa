"""The documentation site: ``sphinx-build -W --keep-going -n -c docs . site`` builds it.

The source is the whole repository, so that documents and notebooks are shown from where they lie,
and link to each other as they do on GitHub.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "mbsim"
copyright = "The mbsim developers"
root_doc = "index"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "pages"]
include_patterns = [
    "index.md", "docs/*.md", "docs/reference/*.rst", "notebooks/*.ipynb", "benchmarks/README.md",
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
]  # fmt: skip
exclude_patterns = [".*", "site", "build", "dist", "mbsim", "tests"]

nb_execution_mode = "off"  # notebooks are committed executed, and executed again by the tests
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_update_mathjax = False
html_math_renderer = "mathml"

default_role = "code"
autodoc_mock_imports = [name for name in ("torch", "jax", "optax") if not find_spec(name)]
autodoc_default_options = {"members": True}
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
nitpick_ignore_regex = [("py:.*", "(?!mbsim).*")]  # of other libraries nothing is known offline

html_theme = "pydata_sphinx_theme"
html_title = "mbsim"
templates_path = ["templates"]
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["../mbsim/study/explorer.html", "../figures/report.html"]
html_context = {"default_mode": "light"}
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which a site in a folder cannot
html_copy_source = False
html_theme_options = {"secondary_sidebar_items": ["page-toc"], "show_prev_next": False}
html_sidebars = {"index": [], "notebooks/10_gallery": []}
