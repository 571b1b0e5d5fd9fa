"""What the site needs beside Sphinx: mathematics without JavaScript, and the reference by rooms."""

import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from functools import cache
from importlib.util import find_spec
from inspect import getsource as source_of
from pathlib import Path

import draw_architecture as architecture
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.ext.autodoc.mock import mock
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger
from sphinx.util.nodes import make_refnode

import mbsim

# ------------------------------------------------------------------------- mathematics

# What docutils does not know, as what it knows: LaTeX's names on the left, as patterns.
_SPELLINGS = {
    r"\\lt(?![a-zA-Z])": "<",
    r"\\gt(?![a-zA-Z])": ">",
    r"\\dots(?![a-zA-Z])": r"\\ldots",
    r"\\([td]frac)(\d)(\d)": r"\\\1{\2}{\3}",
    r"\\(big|Big)(?=[)\]]|\\r)": r"\\\1r",
    r"\\(big|Big)(?![a-zA-Z])": r"\\\1l",
    r"\\begin\{array\}\{\w*\}": r"\\begin{matrix}",
    r"\\end\{array\}": r"\\end{matrix}",
    r"(?<=[\w}])'\^(\w)": r"^{\\prime \1}",
    r"(?<=[\w}])'": r"^{\\prime}",
}
# The theme's script makes what has this class a stop of the Tab key where it is too wide.
_SCROLLS = "pst-scrollable-table-container"


def mathml(text, *, block):
    r"""LaTeX as MathML, and the number that its \tag gives it."""
    number = re.search(r"\\tag\{(.*?)\}", text)
    text = re.sub(r"\\tag\{.*?\}", "", text)
    for pattern, spelling in _SPELLINGS.items():
        text = re.sub(pattern, spelling, text)
    return tex2mathml(text, as_block=block), number[1] if number else ""


def _write(self, node):
    block = isinstance(node, nodes.math_block)
    try:
        formula, number = mathml(node.astext(), block=block)
    except MathError as error:
        formula, number = "", ""
        getLogger(__name__).warning("%s: %s", error, node.astext(), location=node)
    number = f"<span>({number})</span>" if number else ""
    self.body.append(f'<div class="math {_SCROLLS}">{formula}{number}</div>' if block else formula)
    raise nodes.SkipNode


# ------------------------------------------------------------------------- reference


def public_modules(room):
    """The modules of a room, opened, whether or not what they need is installed."""
    top = importlib.import_module(f"mbsim.{room}")
    inside = pkgutil.walk_packages(getattr(top, "__path__", ()), f"{top.__name__}.")
    with mock([name for name in ("torch", "jax", "optax") if not find_spec(name)]):
        return [top, *(importlib.import_module(one.name) for one in inside)]


def is_defined(thing):
    """Whether it is a class or a function of this package, and not a constant."""
    return hasattr(thing, "__qualname__") and thing.__module__.startswith("mbsim.")


def home_of(module, name):
    """The module that defines what another one calls `name`."""
    thing = getattr(module, name)
    if is_defined(thing):
        return thing.__module__
    inside = [one for one in sys.modules if one.startswith(f"{module.__name__}.")]
    homes = (one for one in inside if getattr(sys.modules[one], name, None) is thing)
    return next(homes, module.__name__)


def addresses():
    """By home and name, what users call a thing: the shortest way to it."""
    short = {(home, name): f"mbsim.{name}" for name, home in mbsim._HOMES.items()}
    rooms = [(one.__name__, one) for room in ROOMS for one in public_modules(room)]
    doors = [(f"mbsim.{door}", sys.modules[home]) for door, home in mbsim._MODULES.items()]
    for door, module in [*doors, *rooms]:
        for name in getattr(module, "__all__", ()):
            short.setdefault((home_of(module, name), name), f"{door}.{name}")
    return short


ROOMS = [room for room in architecture.ROOMS if not room.startswith("_")]
ADDRESSES = addresses()


def _comment_on(module, name):
    """What the source says above a constant."""
    pattern = rf"((?:^#.*\n)+)(?:^[A-Z]\w*(?:: .*)? = .*\n)*^{name}\b"
    above = re.search(pattern, source_of(module), re.M)
    return re.sub(r"^#:? ?", "", above[1], flags=re.M).split("\n") if above else []


class Room(SphinxDirective):
    """The reference of a room: what each of its modules says, and every public name of it."""

    required_arguments = 1

    def run(self):
        """The nodes of the directive."""
        lines = []
        for module in public_modules(self.arguments[0]):
            here = module.__name__
            title = here.removeprefix("mbsim.")
            lines += [title, "-" * len(title), ""] if "." in title else []
            lines += [f".. automodule:: {here}", "   :no-members:", ""]
            names = [n for n in getattr(module, "__all__", ()) if home_of(module, n) == here]
            for name in sorted(names, key=lambda name: ADDRESSES[here, name].count(".")):
                lines += self.entry(module, name)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def entry(self, module, name):
        """The lines for one name."""
        thing, address = getattr(module, name), ADDRESSES[module.__name__, name]
        if is_defined(thing) and inspect.isclass(thing):
            kind = "exception" if issubclass(thing, Exception) else "class"
            return [f".. auto{kind}:: {address}", ""]
        if is_defined(thing):
            return [f".. autofunction:: {address}", ""]
        value = textwrap.shorten(repr(thing), 100, placeholder=" …")
        comment = [f"   {line}" for line in _comment_on(module, name)]
        door = address.rpartition(".")[0]
        return [
            f".. py:data:: {name}", f"   :module: {door}", f"   :value: {value}", "", *comment, "",
        ]  # fmt: skip


class Door(SphinxDirective):
    """What ``import mbsim`` opens: a row for each name, with the first line of what it says."""

    def run(self):
        """The nodes of the directive."""
        lines = [".. list-table::", "   :widths: 30 70", ""]
        for name in mbsim.__all__:
            if name == "__version__":
                continue
            says = inspect.getdoc(getattr(mbsim, name)).split("\n\n")[0]
            home = mbsim._MODULES.get(name, f"mbsim.{name}")
            lines += [f"   * - :py:obj:`mbsim.{name} <{home}>`", f"     - {' '.join(says.split())}"]
        lines += ["", ".. py:data:: __version__", "   :module: mbsim", "", "   A string."]
        return self.parse_text_to_nodes("\n".join(lines))


_SECTION = r"\d+(?:\.\d+)?"
_SECTIONS = rf"{_SECTION}(?:(?:,|,?\s+and|\s+to)\s+{_SECTION})*"
_THEORY = re.compile(rf"theory\s+page(?:'s|,)\s+(?:sections?\s+)?{_SECTIONS}")


# Where a bar is one; elsewhere in a docstring it is written as it is, |x|.
_BARS = re.compile(
    r"``.*?``|:math:`.*?`|(?:\.\. math::(?:\n\s*\n)?|>>> ).*?(?:\n\s*\n|\Z)|\\?\|", re.S
)


@cache
def _anchors(page):
    """Where the numbered sections of a page are."""
    titles = re.findall(rf"^##+ (({_SECTION})\.? .*)$", page.read_text("utf-8"), re.M)
    return {number: nodes.make_id(title) for title, number in titles}


def spell(app, _what, _name, _thing, _options, lines):
    """A docstring as Sphinx wants it: bars are bars, and sections of the theory page lead there."""
    anchors = _anchors(Path(app.srcdir, "docs/theory.md"))

    def linked(match):
        return re.sub(_SECTION, lambda m: f"`{m[0]} <../theory.html#{anchors[m[0]]}>`__", match[0])

    text = _BARS.sub(lambda m: r"\|" if m[0] == "|" else m[0], "\n".join(lines))
    text = re.sub(r"(?<=: )(?=[A-Z]\.$)", r"\\", text, flags=re.M)  # B. begins no list
    lines[:] = _THEORY.sub(linked, text).split("\n")


def sign(_app, _what, _name, _thing, _options, arguments, returned):
    """A signature that can be parsed."""
    return arguments and arguments.replace("<factory>", "..."), returned


def skip(_app, _what, name, thing, _is_skipped, _options):
    """What a class does not define: fields of named tuples, defaults, what scikit-learn adds."""
    added = name.startswith("set_") and name.endswith("_request")
    default = getattr(thing, "__name__", name) != name
    return True if added or default or type(thing).__name__ == "_tuplegetter" else None


def resolve(app, env, node, shown):
    """Find what is referred to by its home; what is there and not public has no link."""
    parts = node.get("reftarget", "").split(".")
    for cut in range(len(parts) - 1, 0, -1):
        home = ".".join(parts[:cut])
        if (home, parts[cut]) in ADDRESSES:
            target = ".".join([ADDRESSES[home, parts[cut]], *parts[cut + 1 :]])
            place = env.domains["py"].objects.get(target)
            if place is None:
                return None
            return make_refnode(app.builder, node["refdoc"], place.docname, place.node_id, shown)
        if home.startswith("mbsim") and hasattr(sys.modules.get(home), parts[cut]):
            return shown
    return None


# ------------------------------------------------------------------------- links


def open_pages(app, doctree):
    """A page that is whole by itself lies beside the index, to be opened and not downloaded."""
    for node in [*doctree.findall(addnodes.download_reference)]:
        if node["reftarget"].endswith(".html"):
            place = "../" * app.env.docname.count("/") + Path(node["reftarget"]).name
            node.replace_self(nodes.reference("", "", *node.children, refuri=place))


def setup(app):
    """Sphinx calls this."""
    app.add_directive("room", Room)
    app.add_directive("door", Door)
    app.connect("autodoc-process-docstring", spell, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", open_pages, priority=400)  # before files are collected
    app.add_html_math_renderer("mathml", (_write, None), (_write, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
