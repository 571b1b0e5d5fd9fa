"""The documentation site: it builds without a warning, is whole, and works offline in a browser."""

import importlib
import pkgutil
import re
import subprocess
import sys
import zlib
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import broken_rules, browser, opened

import mbsim

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, from the command that the documents name."""
    for needed in ("sphinx", "myst_nb", "pydata_sphinx_theme"):
        pytest.importorskip(needed, reason="needs the extra docs")
    told = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    options = re.search(r"`sphinx-build (.*) \. site`", told)[1].split()
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", *options, "-q", "-d", f"{out}-trees", ".", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert {"-W", "-n"} <= {*options}
    assert done.returncode == 0, done.stderr
    return out


def found(address):
    """What a dotted name stands for; None where its library is missing."""
    home, thing = mbsim, mbsim
    for part in address.split(".")[1:]:
        try:
            thing = getattr(home, part, None)
            home = importlib.import_module(f"{home.__name__}.{part}") if thing is None else thing
        except ModuleNotFoundError:
            return None
    return home


def test_every_public_name_is_in_the_reference(site):
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    listed = [line.split(" py:")[0] for line in lines.splitlines() if " py:" in line]
    there = {id(thing) for name in listed if (thing := found(name)) is not None}
    missing = {name for name in mbsim.__all__ if id(getattr(mbsim, name)) not in there}
    for one in pkgutil.walk_packages(mbsim.__path__, "mbsim."):
        if "._" in one.name:
            continue
        try:
            module = importlib.import_module(one.name)
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "optax"}:
                raise
            continue
        for name in getattr(module, "__all__", ()):
            if id(getattr(module, name)) not in there:
                missing.add(f"{one.name}.{name}")
    assert missing == set()
    assert {"mbsim.advise", "mbsim.losses.Quadratic", "mbsim.theory.sgd_bound",
            "mbsim.extra.torch.MicroBatchClipper"} <= {*listed}  # fmt: skip


def test_every_link_within_the_site_leads_somewhere(site):
    pages = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    anchors = {path: {*re.findall(r'\bid="([^"]+)"', text)} for path, text in pages.items()}
    assert {"index.html", "explorer.html", "report.html"} <= {path.name for path in pages}
    lost = []
    for path, text in pages.items():
        for link in map(unescape, re.findall(r'<a\b[^>]*?\bhref="([^"]*)"', text)):
            if re.match(r"\w+:", link):
                continue
            place, _, anchor = unquote(link).partition("#")
            target = (path.parent / place).resolve() if place else path
            if not target.is_file() or (anchor and anchor not in anchors.get(target, ())):
                lost.append(f"{path.relative_to(site)} links to {link}")
    assert lost == []


def test_every_figure_of_the_gallery_is_shown_and_described(site):
    text = (site / "notebooks" / "10_gallery.html").read_text("utf-8")
    article = text.partition("<article")[2].partition("</article>")[0]
    described = re.findall(r'<img alt="([^"]+)" src="\.\./_images', article)
    assert len(described) == len(re.findall("<h2>", article)) >= 10
    assert not any(re.search(r"_images|\.png", words) for words in described)


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


def complaints(said):
    """What the console and the network said, but for the theme's account of itself."""
    return [line for line in said if not line.startswith("log: [PST]")]


# One of each kind; and what is long, which axe-core takes minutes for.
PAGES = ["index", "docs/howto", "docs/reference/methods", "notebooks/03_sweet_spot"]
LONG = ["docs/theory", "docs/reference/index", "docs/reference/choosing", "notebooks/10_gallery"]


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_pages_fit_are_silent_and_accessible(site, chromium, width, scheme):
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    for name in [*PAGES, *LONG]:
        with opened(chromium, site / f"{name}.html", **look) as (it, said):
            assert it.evaluate("document.documentElement.dataset.theme") == scheme
            assert it.evaluate("document.documentElement.scrollWidth") <= width, name
            assert complaints(said) == [], name
            # A table in Markdown has a head, and its corner may be empty, or mathematics.
            broken = broken_rules(it) if name in PAGES else []
            broken = [one for one in broken if not one.startswith("empty-table-header")]
            assert broken == [], name


def test_it_is_read_without_javascript(site, chromium):
    with opened(chromium, site / "docs" / "theory.html", java_script_enabled=False) as (it, said):
        formulas = it.locator("math")
        assert formulas.count() > 1000
        assert formulas.first.bounding_box()["height"] > 5
        assert it.locator("math", has_text="ℒ").count() > 5
        it.locator("nav a", has_text="How-to").first.click()
        assert it.locator("h1", has_text="How to").is_visible()
        assert complaints(said) == []


def test_keys_reach_search_and_navigation(site, chromium):
    with opened(chromium, site / "index.html") as (it, said):
        reached = set()
        for _ in range(25):
            it.keyboard.press("Tab")
            reached.add(it.evaluate("document.activeElement.innerText.trim().split('\\n')[0]"))
        assert {"Skip to main content", "Tutorial", "How-to", "Reference", "Search"} <= reached
        it.keyboard.press("Control+k")
        it.keyboard.type("sweet_spot")
        it.keyboard.press("Enter")
        it.locator("#search-results li a", has_text="sweet_spot").first.wait_for()
        assert complaints(said) == []
