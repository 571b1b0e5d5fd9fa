"""The report as one page: every verdict, opening on its figure, its controls and its call.

No script, no network, no fonts of its own: HTML and a style sheet, with the figures inside it. The
same report gives the same bytes.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from mbsim.study.claim import Claim

__all__ = ["report_page"]

_MARKS = {"supported": "✓", "refuted": "✕", "inconclusive": "?", "not applicable": "–"}


def report_page(
    report: Mapping[str, Any], claims: Sequence[Claim], pictures: Mapping[str, bytes]
) -> str:
    """The page.

    Args:
        report: the plain data of a :class:`~mbsim.study.report.Report`.
        claims: those that it is of: they know their sources and figures.
        pictures: SVG figures by file name.

    >>> page = report_page({"verdicts": [], "controls": [], "quick": True, "rng": 0,
    ...                     "made_with": {"mbsim": "1"}}, [], {})
    >>> page.startswith("<!doctype html>"), "http" in page
    (True, False)
    """
    known = {claim.name: claim for claim in claims}
    counts = Counter(verdict["status"] for verdict in report["verdicts"])
    found = ", ".join(f"{counts[status]} {status}" for status in _MARKS if counts[status])
    made = ", ".join(f"{name} {version}" for name, version in report["made_with"].items())
    how = f"{'quick, ' if report['quick'] else ''}seed {report['rng']}; {made}"
    rows = "".join(
        f'<li><a href="#{escape(v["claim"])}">{escape(v["claim"])}</a> {_status(v["status"])}</li>'
        for v in report["verdicts"]
    )
    parts = []
    for verdict in report["verdicts"]:
        controls = [one for one in report["controls"] if one["claim"] == verdict["claim"]]
        parts.append(_claim(verdict, controls, known[verdict["claim"]], report, pictures))
    if "trajectories.svg" in pictures:
        figure = _figure("Trajectories: the mean of ‖∇L‖² against steps", "trajectories", pictures)
        parts.append(
            "<details><summary><h2>What runs look like</h2></summary>"
            f'<div id="trajectories">{figure}</div></details>'
        )
    style = resources.files("mbsim.study").joinpath("page.css").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Micro-batch clipping: every claim and its verdict</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Micro-batch clipping: every claim and its verdict</h1>
<p>Each claim was held against simulation, with limits fixed beforehand and a stated error rate:
{escape(found)}. A <em>control</em> takes away what a claim rests on; there it must not be
supported. Open a claim for its figure, its numbers and the call that repeats it.</p>
</header>
<nav aria-label="Claims"><ul>{rows}</ul></nav>
<main>
{chr(10).join(parts)}
</main>
<footer><p>Made by <code>mbsim reproduce</code>: {escape(how)}.</p></footer>
</body>
</html>
"""


def _status(status: str) -> str:
    kind = status.replace(" ", "-")
    return f'<span class="status {kind}">{_MARKS[status]} {escape(status)}</span>'


def _claim(
    verdict: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any]],
    claim: Claim,
    report: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> str:
    name, statement = verdict["claim"], verdict["statement"]
    taken = "".join(
        f"<h3>Control: {escape(one['without'])}, where it is {escape(one['status'])}</h3>"
        f"{_numbers(one)}"
        for one in controls
    )
    call = (
        "from mbsim.study.claim import Study\n"
        "from mbsim.study.report import CLAIMS\n\n"
        f'claim = {{one.name: one for one in CLAIMS}}["{name}"]\n'
        f"print(claim.verdict(Study(quick={report['quick']}, rng={report['rng']})))"
    )
    if controls:
        call += f'\n# and a control: claim.verdict(Study(…), control="{controls[0]["without"]}")'
    return f"""<details>
<summary><h2>{escape(statement)}</h2> {_status(verdict["status"])}</summary>
<div id="{escape(name)}">
{_figure(f"Figure of the claim: {statement}", claim.figure, pictures)}
<h3>Measured</h3>{_numbers(verdict)}
{taken}
<h3>Source</h3><p>{escape(claim.source)}.</p>
<h3>The call that repeats it</h3>
<pre tabindex="0" role="region" aria-label="Call of {escape(name)}">{escape(call)}</pre>
</div>
</details>"""


def _figure(text: str, name: str, pictures: Mapping[str, bytes]) -> str:
    """A figure inside the page; wide ones scroll, by the keyboard too."""
    content = pictures.get(f"{name}.svg")
    if content is None:
        return ""
    data = base64.b64encode(content).decode()
    return (
        f'<figure tabindex="0" role="region" aria-label="Figure {escape(name)}">'
        f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def _numbers(verdict: Mapping[str, Any]) -> str:
    """The comparisons of a verdict, as a table."""
    if verdict["not_applicable"]:
        return f"<p>{escape(verdict['not_applicable'])}</p>"
    head = ("what", "measured", "interval", "claimed", "so it is")
    rows = [
        (
            one["what"],
            _number(one["estimate"], "none"),
            f"{_number(one['interval'][0], '−∞')} to {_number(one['interval'][1], '∞')}",
            f"{one['relation']} {_limit(one['limit'])}",
            one["status"],
        )
        for one in verdict["comparisons"]
    ]
    label = " of ".join(filter(None, ("Numbers", verdict.get("without"), verdict["claim"])))
    rate = f"{verdict['false_positive_rate']:.2g}"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead>{_row(head, 'th scope=col')}</thead>"
        f"<tbody>{''.join(_row(row, 'td') for row in rows)}</tbody></table></div>"
        f"<p>All intervals together miss at a rate of at most {rate}.</p>"
    )


def _row(cells: Iterable[str], tag: str) -> str:
    end = tag.partition(" ")[0]
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{end}>" for cell in cells) + "</tr>"


def _limit(limit: Any) -> str:
    if isinstance(limit, list):
        return f"{_number(limit[0], '−∞')} to {_number(limit[1], '∞')}"
    return _number(limit, "none")


def _number(number: float | None, endless: str) -> str:
    """A number; JSON has none that is not finite."""
    return endless if number is None else f"{number:.4g}"
