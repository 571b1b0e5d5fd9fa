"""The claims as a whole: ``mbsim reproduce --quick``, run once and looked at from all sides."""

import json
import pickle
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.util import find_spec

import pytest

import mbsim
from mbsim._shared.records import to_json
from mbsim.study.claim import Claim, Study
from mbsim.study.floors import BIAS_NEEDS_SKEW, BIAS_STAYS, SWEET_SPOT
from mbsim.study.page import report_page
from mbsim.study.rates import CLIPPING_AHEAD_EARLY
from mbsim.study.report import CLAIMS, draw_report, expected_statuses, reproduce


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return reproduce(folder, quick=True, workers=2), folder


def test_every_claim_and_control_has_the_committed_status(reproduced):
    assert reproduced[0].surprises() == []


def test_no_control_is_supported_whatever_is_expected_of_it(reproduced):
    statuses = {what: verdict.status for what, verdict in reproduced[0].controls}
    assert "supported" not in statuses.values(), statuses
    count = sum(len(claim.controls) for claim in CLAIMS)
    for mode in (True, False):
        expected = expected_statuses(quick=mode)
        controls = {k: v for k, v in expected.items() if k.startswith("control of ")}
        assert len(controls) == count
        assert len(expected) == len(CLAIMS) + count
        assert "supported" not in controls.values()


def test_every_verdict_says_how_sure_it_is_and_what_it_would_have_seen(reproduced):
    report, _ = reproduced
    for verdict in [*report.verdicts, *(v for _, v in report.controls)]:
        comparisons = verdict.to_dict()["comparisons"]
        counted = all(len({*one["interval"]}) == 1 for one in comparisons)  # not sampled, or none
        assert verdict.false_positive_rate <= 0.01 * (1 + 1e-9)  # added up in floats
        assert verdict.false_positive_rate > 0 or counted
        for comparison in comparisons:
            assert comparison["detectable"] >= 0
            low, high = comparison["interval"]
            if comparison["estimate"] == comparison["estimate"]:  # else there was no number
                assert low <= comparison["estimate"] <= high


def test_figures_are_pictures_and_the_report_is_json(reproduced):
    report, folder = reproduced
    names = {"floor", "trajectories", "sgd_rate", "horizon", "best_b", "oracle_share", "bounds"}
    names |= {"interior", "regret", "advisers", "tilt", "tilt_tables", "domains", "helpfulness"}
    names |= {"draggers", "norm_ratio", *(("memory",) if find_spec("torch") else ())}
    assert {p.name for p in folder.iterdir()} == {
        *(f"{name}.png" for name in names),
        *(f"{name}.svg" for name in names),
        "report.json",
        "report.html",
    }
    for name in names:
        header = (folder / f"{name}.png").read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", header[16:24])) >= 400
        assert ET.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
    written = json.loads((folder / "report.json").read_text("utf-8"))
    assert written == json.loads(to_json(report.to_dict()))
    assert set(written["made_with"]) >= {"mbsim", "numpy"}
    assert [verdict.claim for verdict in report.verdicts] == [claim.name for claim in CLAIMS]
    assert {*report.seconds} == {
        *(name.removeprefix("control of ").replace(": ", ", ") for name, *_ in report.rows()),
        "all",
    }


def test_the_same_seed_gives_the_same_verdict_and_the_same_pictures_byte_for_byte(
    reproduced, tmp_path
):
    report, folder = reproduced
    again = BIAS_NEEDS_SKEW.verdict(Study(quick=True))
    first = next(v for v in report.verdicts if v.claim == again.claim)
    assert to_json(again.to_dict()) == to_json(first.to_dict())
    assert BIAS_NEEDS_SKEW.verdict(Study(quick=True, rng=1)).to_dict() != first.to_dict()
    for path in draw_report(json.loads((folder / "report.json").read_text()), tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def _broken(study):
    raise ZeroDivisionError("no such number")


BROKEN = Claim(name="broken", statement="It is so.", source="a test", run=_broken, seconds=0.0)


def test_neither_workers_nor_a_store_nor_a_fault_change_a_byte(
    reproduced, tmp_path, tmp_path_factory, monkeypatch
):
    """A few claims once more, with one worker, kept as they ended before a fault; all had two."""
    report, folder = reproduced
    few = {claim.name: claim for claim in (CLIPPING_AHEAD_EARLY, BIAS_STAYS, BIAS_NEEDS_SKEW)}
    again = {"quick": True, "workers": 1, "store": tmp_path_factory.mktemp("kept") / "x.sqlite"}
    monkeypatch.setattr("mbsim.study.report.CLAIMS", (*few.values(), BROKEN))
    with pytest.raises(ZeroDivisionError):
        reproduce(tmp_path, **again)
    monkeypatch.setattr("mbsim.study.report.CLAIMS", tuple(few.values()))
    monkeypatch.setattr("mbsim._shared.processes.Workers", None)  # nothing is left to be done
    alone = reproduce(tmp_path, **again)
    chosen = replace(
        report,
        verdicts=tuple(verdict for verdict in report.verdicts if verdict.claim in few),
        controls=tuple(pair for pair in report.controls if pair[1].claim in few),
    )
    assert (tmp_path / "report.json").read_text("utf-8") == to_json(chosen.to_dict())
    assert [what for what, _ in alone.controls] == ["no draggers", "skewed noise"]
    pictures = {path.name for path in tmp_path.iterdir()} - {"report.json", "report.html"}
    assert pictures == {
        f"{x}.{form}" for x in ("horizon", "trajectories") for form in ("png", "svg")
    }
    drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    page = report_page(json.loads(to_json(chosen.to_dict())), tuple(few.values()), drawn)
    assert (tmp_path / "report.html").read_text("utf-8") == page
    for name in pictures:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_claim_that_raises_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("mbsim.study.report.CLAIMS", (BIAS_STAYS, BROKEN))
    with pytest.raises(ZeroDivisionError, match="no such number") as caught:
        reproduce(tmp_path, quick=True, workers=2)
    assert caught.value.__notes__ == ["(in broken)"]
    assert list(tmp_path.iterdir()) == []


def test_a_change_of_verdict_is_news(reproduced, monkeypatch):
    report, _ = reproduced
    changed = expected_statuses(quick=True) | {"sweet-spot": "refuted"}
    monkeypatch.setattr("mbsim.study.report.expected_statuses", lambda *, quick: changed)
    assert report.surprises() == ["sweet-spot: expected refuted, found supported"]


def test_the_report_reads_well(reproduced):
    report, _ = reproduced
    assert "sweet-spot" in str(report)
    assert "control of sweet-spot: no draggers" in str(report)
    assert "<table>" in report._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rng": -1}, "rng=-1 must be an integer of at least 0"),
        ({"rng": 1.5}, "rng=1.5 must be an integer"),
        ({"out": "/dev/null/figures"}, "out='/dev/null/figures' must be a folder"),
        ({"out": None}, "out=None must be a folder"),
        ({"workers": 0}, "workers=0 must be an integer of at least 1"),
        ({"workers": "two"}, "workers='two' must be an integer"),
    ],
)
def test_bad_calls_are_refused_before_any_work(arguments, message):
    with pytest.raises(mbsim.InvalidArgument, match="^" + message):
        reproduce(**arguments)


def test_an_unknown_control_is_refused():
    message = "control='odd' must be a control of sweet-spot: symmetric noise, no draggers, labels"
    with pytest.raises(mbsim.InvalidArgument, match="^" + message):
        SWEET_SPOT.verdict(Study(), control="odd")
    message = "control='odd' must be a control of bias-stays: there is none"
    with pytest.raises(mbsim.InvalidArgument, match="^" + message):
        BIAS_STAYS.verdict(Study(), control="odd")


def test_a_bad_seed_is_refused():
    message = "rng=-1 must be an integer of at least 0"
    with pytest.raises(mbsim.InvalidArgument, match="^" + message):
        Study(rng=-1)


def test_every_claim_says_what_it_is():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.statement.endswith(".")
        assert claim.source
        assert bool(claim.figure) == bool(claim.draw), claim.name


def test_what_a_claim_and_its_control_share_runs_once_in_a_study():
    def flips(study, bent=False):
        return [], {"thrown": study.once(throw, 3), "bent": bent}

    def throw(study, count):
        calls.append(count)
        return study.rng + count

    calls = []
    claim = Claim(name="c", statement="It is so.", source="a test", run=flips,
                  controls={"bent": {"bent": True}})  # fmt: skip
    study = Study(rng=4)
    assert claim.run(study) == ([], {"thrown": 7, "bent": False})
    assert claim.run(study, **claim.controls["bent"]) == ([], {"thrown": 7, "bent": True})
    assert calls == [3]
    assert claim.run(Study(rng=5))[1]["thrown"] == 8
    assert calls == [3, 3]


def test_claims_and_studies_can_go_to_another_process():
    for claim in CLAIMS:
        assert pickle.loads(pickle.dumps(claim)) == claim
    assert pickle.loads(pickle.dumps(Study(quick=True, rng=2))) == Study(quick=True, rng=2)
