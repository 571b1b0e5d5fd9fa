"""Training in PyTorch against the compiled loop, and what a transformer reads."""

import csv
import math

import numpy as np
import pytest
from numpy.random import SeedSequence
from sklearn.metrics import roc_auc_score

import mbsim
from mbsim.gradients.splits import Contamination, Split
from mbsim.gradients.training import mini_batches, train
from mbsim.study import pruning, tables, text, trained_tables
from mbsim.study.pruning import MODELS, Setting, measured

torch = pytest.importorskip("torch")

from mbsim.extra.torch import clipped_backward  # noqa: E402
from mbsim.study import torch_training  # noqa: E402
from mbsim.study.torch_memory import per_example  # noqa: E402


@pytest.mark.parametrize("size", [1, 4, 64])
def test_the_network_under_sgd_is_that_of_the_compiled_loop(size):
    data = tables.split("wdbc", "10 % wrong labels", rng=SeedSequence(1))
    method = mbsim.MicroBatchClipping(size)
    given = {"step_size": 0.5, "steps": 20, "record_every": 7, "rng": SeedSequence(2)}
    here = torch_training.train(data, method, optimizer="SGD", **given)
    there = train(data, method, hidden=64, **given)
    np.testing.assert_array_equal(here.steps, there.steps)
    for name in ("validation_loss", "test_loss", "validation_accuracy", "test_accuracy"):
        np.testing.assert_allclose(getattr(here, name), getattr(there, name), rtol=1e-9)


@pytest.mark.parametrize("optimizer", torch_training.OPTIMIZERS)
def test_optimizers_are_handed_the_clipped_gradient(optimizer, monkeypatch):
    """The loop against one of plain autograd over micro-batches, on text."""
    data = text.windows(Contamination("wrong labels", 0.25), rng=SeedSequence(0))
    seed, size = SeedSequence(5), 16
    found = torch_training.train(
        data, mbsim.MicroBatchClipping(size), optimizer=optimizer, step_size=0.01, steps=3,
        record_every=1, rng=seed,
    )  # fmt: skip
    made = []
    real = torch_training.Transformer
    monkeypatch.setattr(torch_training, "Transformer", lambda *a: made.append(real(*a)) or made[-1])
    torch_training.train(
        data, mbsim.SGD(), optimizer="SGD", step_size=1e-30, steps=1, record_every=1, rng=seed
    )
    model = made[0]
    mover = torch_training.OPTIMIZERS[optimizer](model.parameters(), lr=0.01)
    losses = []
    for rows in mini_batches(2048, 64, 3, seed, 0):
        x, y = torch.tensor(data.train_inputs[rows]), torch.tensor(data.train_labels[rows])
        parts = []
        for i in range(0, 64, size):
            logits = model(x[i : i + size]).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, y[i : i + size].flatten())
            parts.append(torch.autograd.grad(loss, [*model.parameters()]))
        norms = [math.sqrt(sum(float(p.square().sum()) for p in part)) for part in parts]
        for k, p in enumerate(model.parameters()):
            p.grad = sum(g[k] * (min(norms) / n) for g, n in zip(parts, norms, strict=True)) / 4
        mover.step()
        with torch.no_grad():
            logits = model(torch.tensor(data.test_inputs)).flatten(0, 1)
            y = torch.tensor(data.test_labels).flatten()
            losses.append(float(torch.nn.functional.cross_entropy(logits, y)))
    np.testing.assert_allclose(found.test_loss[0], losses, rtol=2e-5)


def test_what_diverges_is_nan_from_there_on_and_no_step_size_of_a_user():
    data = tables.split("wine", "clean", rng=SeedSequence(0))
    run = torch_training.train(
        data, mbsim.MicroBatchClipping(4), optimizer="SGD", step_size=1e12, steps=10,
        record_every=2, rng=SeedSequence(0),
    )  # fmt: skip
    assert np.isnan(run.test_loss[0, -1])
    assert np.isnan(run.validation_accuracy[0, -1])


def test_training_leaves_threads_and_random_numbers_of_pytorch_alone():
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    data = text.windows(Contamination(), rng=SeedSequence(0))
    method = mbsim.MicroBatchClipping(8)
    given = {"optimizer": "AdamW", "step_size": 0.01, "steps": 2, "record_every": 1}
    one, other = (torch_training.train(data, method, rng=SeedSequence(1), **given) for _ in "ab")
    np.testing.assert_array_equal(one.test_loss, other.test_loss)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_transformer_learns_what_follows_and_does_not_look_ahead():
    model = torch_training.Transformer(5, 8)
    x = torch.randint(5, (3, 8))
    changed = x.clone()
    changed[:, 5:] = (x[:, 5:] + 1) % 5
    same = (model(x) - model(changed)).abs().amax((0, 2)) < 1e-5
    assert same.tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize("model", [name for name, (how, _) in MODELS.items() if "optimizer" in how])
def test_settings_of_pytorch_are_measured_as_all_others(model, monkeypatch):
    monkeypatch.setattr(pruning, "STEPS", 6)
    monkeypatch.setattr(pruning, "SIZES", [1, 64])
    monkeypatch.setitem(pruning.WAYS, "smallest", pruning.WAYS["smallest"][:3])
    table = "text" if "transformer" in model else "wdbc"
    found = measured(Setting(table, "10 % wrong labels", 0, model, "smallest"), SeedSequence(0))
    assert set(found) == {"SGD", "oracle", "smallest norm, b = 1"}
    guess = math.log(len(np.unique(text.characters())) if table == "text" else 2)
    assert all(one["loss"] < guess for one in found.values())


def test_the_study_has_text_and_optimizers_of_pytorch_beside_all_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "STEPS", 2)
    monkeypatch.setattr(pruning, "_PARTITIONS", 5)
    monkeypatch.setattr(text, "_PARTS", {"train": 128, "validation": 16, "test": 16})
    monkeypatch.setitem(pruning.WAYS, "all", pruning.WAYS["smallest"])
    monkeypatch.setattr(trained_tables, "_NETWORKS", ("wine",))
    few = {name: tables.CONTAMINATIONS[name] for name in trained_tables.RATES}
    monkeypatch.setattr(tables, "CONTAMINATIONS", few)
    trained_tables.whole(tmp_path, only=["wine", "heart", "text"], splits=1, workers=1)
    with (tmp_path / "training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {*MODELS}
    assert {row["model"].split(",")[0] for row in rows if row["table"] == "text"} == {"transformer"}
    page = (tmp_path / "training.md").read_text("utf-8")
    assert page.count("| transformer, AdamW |") == 3
    assert page.count("| tanh network, momentum |") == 3
    assert (tmp_path / "best_b_whole.png").stat().st_size > 10_000


def test_windows_that_are_wrong_have_gradients_hardly_longer_than_the_others():
    """Why clipping gains little on text, as docs/training.md says: it prunes by norms."""
    data = text.windows(Contamination("wrong labels", 0.25), rng=SeedSequence(0))
    x, y = torch.tensor(data.train_inputs), torch.tensor(data.train_labels)
    with torch_training.one_thread(0):
        model = torch_training.Transformer(data.classes, text.LENGTH)
        mover = torch_training.OPTIMIZERS["AdamW"](model.parameters(), lr=1 / 64)
        for rows in torch.tensor(mini_batches(len(y), 64, 150, SeedSequence(1), 0)):
            mover.zero_grad()
            per_example(model(x[rows]), y[rows]).mean().backward()
            mover.step()
        norms = clipped_backward(per_example(model(x[:512]), y[:512]), model, 1).norms
    wrong = data.touched[:512]
    assert 1.1 < norms[wrong].mean() / norms[~wrong].mean() < 1.5
    assert roc_auc_score(wrong, norms) > 0.8  # which tell them apart all the same


def test_a_split_is_not_taken_for_text():
    data = tables.split("wine", "clean", rng=SeedSequence(0))
    assert isinstance(data, Split)
    assert not isinstance(torch_training._model(data, SeedSequence(0)), torch_training.Transformer)
