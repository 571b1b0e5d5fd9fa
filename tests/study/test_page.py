"""The page of a report: its structure, and how it is in a real browser."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import broken_rules, browser, opened

from mbsim.study.claim import Claim
from mbsim.study.floors import BIAS_NEEDS_SKEW
from mbsim.study.page import report_page
from mbsim.study.report import CLAIMS

FIGURES = Path(__file__).parents[2] / "figures"
VOID = {"meta", "link", "img"}


class Read(HTMLParser):
    """Every element with its attributes, the text, and whether tags close as they opened."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text, self.code = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.code if "pre" in self.open else self.text).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report():
    return json.loads((FIGURES / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def page(report):
    pictures = {path.name: path.read_bytes() for path in FIGURES.glob("*.svg")}
    return report_page(report, CLAIMS, pictures)


def test_the_committed_page_is_that_of_the_committed_report(page):
    assert (FIGURES / "report.html").read_text("utf-8") == page


def test_every_claim_opens_on_its_statement_figure_controls_and_call(report, page):
    read = Read(page)
    links = [link["href"] for link in read.all("a")]
    assert links == [f"#{verdict['claim']}" for verdict in report["verdicts"]]
    names = [content.get("id") for content in read.all("div") if content.get("id")]
    assert names == [*(link[1:] for link in links), "trajectories"]
    assert len(read.all("details")) == len(read.all("summary")) == len(names)
    assert len(read.all("img")) == sum(bool(claim.figure) for claim in CLAIMS) + 1
    assert all(image["alt"] for image in read.all("img"))
    text, code = " ".join(read.text), " ".join(read.code)
    for verdict in report["verdicts"]:
        assert verdict["statement"] in text
        assert f'"{verdict["claim"]}"' in code
        assert all(one["what"] in text for one in verdict["comparisons"])
    for control in report["controls"]:
        assert f"Control: {control['without']}" in text
    assert all(claim.source in text for claim in CLAIMS)


def test_the_page_needs_nothing_but_itself(page):
    read = Read(page)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in read.elements}
    sources = [e.get("src") or e.get("href") for _, e in read.elements if "src" in e or "href" in e]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in page.partition("</style>")[0]


def test_what_a_claim_says_is_text_and_not_html():
    claim = Claim(name="a<b", statement='1 < 2 & "so"', source="<i>", run=print)
    verdict = {
        "claim": "a<b",
        "statement": claim.statement,
        "status": "not applicable",
        "not_applicable": "<none>",
    }
    made = {"verdicts": [verdict], "controls": [], "quick": False, "rng": 0, "made_with": {}}
    read = Read(report_page(made, [claim], {}))
    assert {"i", "b", "none"}.isdisjoint(tag for tag, _ in read.elements)
    assert claim.statement in "".join(read.text)


def test_ends_that_are_not_finite_are_said(report):
    verdict = {**report["verdicts"][0]}
    one = {**verdict["comparisons"][0], "estimate": None, "interval": [None, None], "limit": None}
    verdict["comparisons"] = [one]
    text = report_page({**report, "verdicts": [verdict], "controls": []}, CLAIMS, {})
    assert "<td>none</td><td>−∞ to ∞</td>" in text


def test_the_call_of_a_claim_repeats_it(report, page, capsys):
    calls = [code for code in Read(page).code if f'"{BIAS_NEEDS_SKEW.name}"' in code]
    quick = calls[0].replace("quick=False", "quick=True")
    assert quick != calls[0]
    exec(quick, {})
    assert capsys.readouterr().out.startswith(f"{BIAS_NEEDS_SKEW.name}: supported")


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_in_a_browser_it_is_silent_fits_and_is_accessible(chromium, scheme, width):
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    with opened(chromium, FIGURES / "report.html", **look) as (it, said):
        it.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert it.evaluate("document.documentElement.scrollWidth") <= width
        assert it.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
        assert broken_rules(it) == []
        assert said == []


def test_every_link_and_disclosure_works_by_the_keyboard(chromium, report):
    with opened(chromium, FIGURES / "report.html") as (it, said):
        claims = len(report["verdicts"])
        focus = "document.activeElement.closest('details, a')"
        for number, verdict in enumerate(report["verdicts"]):
            it.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
            it.locator("nav a").nth(number).focus()
            it.keyboard.press("Enter")
            content = it.locator(f"[id='{verdict['claim']}']")
            content.wait_for(state="visible", timeout=2000)  # its details opened
        it.goto((FIGURES / "report.html").as_uri())
        for _ in range(claims):
            it.keyboard.press("Tab")
            assert it.evaluate(f"{focus}.tagName") == "A"
        for number in range(claims + 1):
            it.keyboard.press("Tab")
            for is_open in (True, False):
                it.keyboard.press("Space" if is_open else "Enter")
                assert it.evaluate(f"{focus}.open") is is_open
                assert it.locator("details[open]").count() == is_open
            assert (
                it.evaluate(f"[...document.querySelectorAll('details')].indexOf({focus})") == number
            )
        assert said == []


def test_printed_it_shows_what_is_closed(chromium, report):
    with opened(chromium, FIGURES / "report.html") as (it, _):
        first = it.locator(f"[id='{report['verdicts'][0]['claim']}']")
        assert not first.is_visible()
        it.emulate_media(media="print")
        assert first.evaluate("one => one.getBoundingClientRect().height") > 100
        assert not it.locator("nav").is_visible()
