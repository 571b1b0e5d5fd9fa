"""What the site needs beside Sphinx: mathematics without JavaScript, and the reference by rooms."""

import importlib
import pkgutil

import latex2mathml.converter
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

import mbsim

# ------------------------------------------------------------------------- mathematics


def _mathml(self, node):
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    text = latex2mathml.converter.convert(node.astext(), display=display)
    self.body.append(f'<div class="math">{text}</div>' if display == "block" else text)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
