"""The claims on the draggers of real tables, where the answer is known."""

import warnings

import numpy as np
import pytest

import mbsim
from mbsim.study import real_draggers
from mbsim.study.claim import Study
from mbsim.verdicts import REFUTED, SUPPORTED


def planted(study, change, largest, *, tilt=0.0, coherent=False):
    """Benign gradients of rank 3, and draggers across them: the model, up to a tilt."""
    rng, checks = np.random.default_rng(5), {}
    for table in range(12):
        gradients = np.zeros((200, 40))
        gradients[:, :3] = [0.5, 0.0, 0.0] + 2.0 * rng.standard_normal((200, 3))
        few = np.arange(200) < 50
        directions = rng.standard_normal((1 if coherent else 50, 37))
        gradients[few] = np.pad(directions, ((0, 0), (3, 0)))
        gradients[few, 0] = tilt * np.linalg.norm(directions, axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checks[str(table)] = mbsim.check_assumptions(
                gradients, is_dragger=few, batch_size=largest
            )
    return dict.fromkeys(real_draggers._KINDS, checks)


@pytest.mark.parametrize(
    ("claim", "made", "wanted"),
    [
        (real_draggers.ASSUMPTION_4_4, {}, SUPPORTED),
        (real_draggers.ASSUMPTION_4_4, {"tilt": -0.3}, REFUTED),
        (real_draggers.NORM_RATIO_FALLS, {}, SUPPORTED),
        (real_draggers.NORM_RATIO_FALLS, {"coherent": True}, REFUTED),
    ],
)
def test_what_is_planted_is_found(monkeypatch, claim, made, wanted):
    def known(study, change, largest):
        return planted(study, change, largest, **made)

    monkeypatch.setattr(real_draggers, "_checks", known)
    assert claim.verdict(Study(quick=True)).status == wanted
