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
OTHERS = ["Algorithm 1 on any array", "optax", "scikit-learn"]
TITLES = [GRADIENTS[0], *LOOPS, *GRADIENTS[1:], *OTHERS]


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def test_every_section_is_tested():
    assert [section.splitlines()[0] for section in SECTIONS] == TITLES
    counts = [len(blocks(section)) for section in [FIRST, *SECTIONS]]
    assert counts == [1, 2, 1, 1, 1, 1, 1, 1, 2, 2, 1]


def run(title):
    """All blocks of a section after the first of the page, in one namespace."""
    code = blocks(SECTIONS[TITLES.index(title)])
    for library in re.findall(r"^(?:from|import) (\w+)", "\n".join(code), flags=re.M):
        if library != "mbsim":
            pytest.importorskip(library)
    namespace = {}
    for number, block in enumerate([*blocks(FIRST), *code]):
        exec(compile(block, f"use.md, {title}, block {number}", "exec"), namespace)
    return code, namespace


@pytest.mark.parametrize("title", GRADIENTS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus and BackPACK
def test_a_frameworks_gradients_are_those_of_the_formula(title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, namespace = run(title)
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


def test_algorithm_1_on_any_array():
    _, found = run("Algorithm 1 on any array")
    x = found["weight"]
    rows = x[:3].reshape(3, 6)
    norms, n = np.linalg.norm(rows, axis=1), np.array(found["tokens"])
    expected = norms.min() * (n[:, None] * rows / norms[:, None]).sum(axis=0) / n.sum()
    assert np.allclose(found["update"][0].ravel(), expected, rtol=1e-12)
    means = [x[i:j].reshape(-1, 6).mean(axis=0) for i, j in ((0, 4), (4, 8), (8, 11))]
    least = min(map(np.linalg.norm, means))
    sums = [k * mean / np.linalg.norm(mean) for k, mean in zip((4, 4, 3), means, strict=True)]
    assert np.allclose(found["padded"][0].ravel(), least * sum(sums) / 11, rtol=1e-12)


def test_optax_trains(capsys):
    _, found = run("optax")
    assert capsys.readouterr().out.split() == ["0"]
    x, y = (part.astype(float) for part in found["train"])
    w = np.append(np.ones(5), 0.0)
    for start in range(0, 240, 48):
        means = []
        for i in range(start, start + 48, 6):
            inputs = np.hstack([x[i : i + 6], np.ones((6, 1))])
            means.append(2 * (inputs @ w - y[i : i + 6, 0]) @ inputs / 6)
        norms = np.linalg.norm(means, axis=1)
        w -= 0.1 * norms.min() * (means / norms[:, None]).mean(axis=0)
    trained = np.append(found["weights"]["weight"], found["weights"]["bias"])
    assert np.allclose(trained, w, rtol=1e-4)


def test_scikit_learn_trains(capsys):
    run("scikit-learn")
    score, size = map(float, capsys.readouterr().out.split())
    assert score > 0.85
    assert 64 % size == 0


@pytest.mark.parametrize("title", LOOPS)
def test_a_loop_takes_the_steps_of_algorithm_1(title):
    torch = pytest.importorskip("torch")
    _, namespace = run(title)
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
