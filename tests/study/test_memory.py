"""What clipping takes in memory; and a claim whose package is not there."""

from importlib.util import find_spec

import pytest

from mbsim.study import memory, report
from mbsim.study.claim import Study
from mbsim.verdicts import NOT_APPLICABLE, REFUTED, SUPPORTED


@pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
def test_the_accumulator_holds_two_gradients_and_storing_does_not():
    study = Study(quick=True)
    assert memory.MEMORY.verdict(study).status == SUPPORTED
    (control,) = memory.MEMORY.controls
    assert memory.MEMORY.verdict(study, control=control).status == REFUTED


@pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
def test_bytes_are_counted():
    import torch

    from mbsim.study.torch_memory import peak_bytes

    def makes(model, x, y, b):
        kept = torch.zeros(b, 1000)
        torch.ones(b, 500)  # gone at once
        kept.add_(1)

    x = torch.zeros(4)
    assert [peak_bytes(makes, torch.nn.Linear(1, 1), x, x, b) for b in (1, 2)] == [6000, 12000]


def test_without_its_package_a_claim_is_not_applicable_and_no_news(monkeypatch):
    monkeypatch.setattr("mbsim.study.claim.find_spec", lambda name: None)
    claim = memory.MEMORY
    names = ("", *claim.controls)
    found = {name: claim.verdict(Study(), control=name) for name in names}
    assert {verdict.status for verdict in found.values()} == {NOT_APPLICABLE}
    assert str(found[""]).endswith("needs torch: pip install 'microbatch-clipping[torch]'")
    assert claim.pictures({name: {} for name in names}) == {}

    def news(**change):
        parts = {"quick": True, "rng": 0, "trajectories": {}, "made_with": {}}
        controls = tuple((name, found[name]) for name in claim.controls)
        made = report.Report(verdicts=(found[""],), controls=controls, **(parts | change))
        return [line for line in made.surprises() if "memory" in line]

    assert news() == []
    monkeypatch.undo()
    if find_spec("torch"):
        assert len(news()) == 2
