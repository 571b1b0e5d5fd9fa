"""What the README and the notebooks show must be true, and must run."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_has_exactly_two_commands_of_one_line_each():
    commands = blocks("sh")
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv ")
    assert "mbsim reproduce" in commands[0]
    assert "pytest" in commands[1]


def test_the_readmes_examples_run(capsys):
    namespace = {}
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    for expected in (
        "minus the first",
        "Which micro-batch size ends lowest",
        "certificate: supported",
    ):
        assert expected in printed


def test_the_verdicts_shown_are_those_of_the_committed_report():
    report = json.loads((ROOT / "figures" / "report.json").read_text("utf-8"))
    assert report["quick"] is False
    page = (ROOT / "docs" / "verdicts.md").read_text("utf-8")
    table = page.split("<!-- verdicts: begin -->")[1].split("<!-- verdicts: end -->")[0]
    shown = {
        (claim.strip(), verdict.strip())
        for claim, verdict in re.findall(r"^\| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)
    }
    found = {(v["claim"], v["status"]) for v in report["verdicts"]}
    found |= {(f"control of {c['claim']}: {c['without']}", c["status"]) for c in report["controls"]}
    assert found <= shown
    assert len(shown) == len(found) + 2  # the table's head and its rule


def test_the_readmes_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path):
    if "import torch" in path.read_text("utf-8"):
        pytest.importorskip("torch")
    copy = Path(shutil.copy(path, tmp_path))
    notebook = nbformat.read(copy, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_executed_small_and_without_machine_paths(path):
    text = path.read_text("utf-8")
    assert len(text) < 1_000_000
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
    for cell in nbformat.reads(text, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None
            assert not any(output.output_type == "error" for output in cell.outputs)
            if (
                ".plot(" in cell.source and path.stem != "09_sweeps"
            ):  # which has no figure of pyplot's
                assert any("image/png" in output.get("data", {}) for output in cell.outputs)
