"""The page on one's own model: its blocks run, and their Gram matrices are that of the formula."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import mbsim

PAGE = (Path(__file__).parents[2] / "docs" / "use.md").read_text(encoding="utf-8")
FIRST, *SECTIONS = re.split(r"^## ", PAGE, flags=re.M)
GRADIENTS = ["PyTorch", "Opacus", "BackPACK", "JAX", "Anything else"]
LOOPS = ["In a PyTorch loop", "From one forward pass"]
TITLES = [GRADIENTS[0], *LOOPS, *GRADIENTS[1:]]


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def test_every_section_is_tested():
    assert [section.splitlines()[0] for section in SECTIONS] == TITLES
    assert [len(blocks(section)) for section in [FIRST, *SECTIONS]] == [1, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("title", GRADIENTS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus and BackPACK
def test_a_frameworks_gradients_are_those_of_the_formula(title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks(SECTIONS[TITLES.index(title)])
    for library in re.findall(r"^(?:from|import) (\w+)", "\n".join(code), flags=re.M):
        if library != "mbsim":
            pytest.importorskip(library)
    namespace = {}
    for number, block in enumerate([*blocks(FIRST), *code]):
        exec(compile(block, f"use.md, {title}, block {number}", "exec"), namespace)
    weight, bias = np.ones((1, 5)), np.zeros(1)
    if "torch.manual_seed" in code[0]:
        torch = importlib.import_module("torch")
        torch.manual_seed(0)
        weight, bias = (p.detach().double().numpy() for p in torch.nn.Linear(5, 1).parameters())

    def gradients(x, y):
        residual = x.astype(float) @ weight.T + bias - y
        return np.hstack([2 * residual * x, 2 * residual])

    def close(found, expected):  # up to the roundings of float32
        return np.allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())

    rows, gram = gradients(*namespace["train"]), namespace["gram"]
    assert close(gram.matrix, rows @ rows.T)
    if title == "PyTorch":
        goal = gradients(*namespace["held_out"]).mean(axis=0)
        assert close(gram.target_products, rows @ goal)
        assert close(namespace["same"].matrix, rows @ rows.T)
        assert len(capsys.readouterr().out.splitlines()) >= 2
    assert isinstance(gram, mbsim.Gram)


@pytest.mark.parametrize("title", LOOPS)
def test_a_loop_takes_the_steps_of_algorithm_1(title):
    torch = pytest.importorskip("torch")
    namespace = {}
    for number, block in enumerate([*blocks(FIRST), *blocks(SECTIONS[TITLES.index(title)])]):
        exec(compile(block, f"use.md, {title}, block {number}", "exec"), namespace)
    torch.manual_seed(0)
    weight, bias = (p.detach().double().numpy() for p in torch.nn.Linear(5, 1).parameters())
    x, y = (one.astype(float) for one in namespace["train"])
    w = np.append(weight, bias)
    for i in range(0, 240, 48):
        some = np.hstack([x[i : i + 48], np.ones((48, 1))])
        gradients = 2 * (some @ w[:, None] - y[i : i + 48]) * some
        w -= 0.1 * mbsim.clipping.update(gradients, 8)
    found = [p.detach().double().numpy().ravel() for p in namespace["model"].parameters()]
    assert np.allclose(np.concatenate(found), w, rtol=1e-5, atol=1e-5)
    assert namespace["step"].fraction_clipped == 5 / 6
