"""From intervals to statuses: which way each decision goes, and that it can go the other way."""

import copy
import json
import math
import pickle

import numpy as np
import pytest

from mbsim import Verdict, statistics
from mbsim.statistics import Interval
from mbsim.verdicts import Comparison


def interval(low, high):
    return Interval(
        estimate=(low + high) / 2,
        low=low,
        high=high,
        standard_error=(high - low) / 8,
        false_positive_rate=1e-6,
        df=30,
    )


def status(low, high, relation, limit):
    return Comparison(
        what="it", measured=interval(low, high), relation=relation, limit=limit
    ).status


@pytest.mark.parametrize(
    ("low", "high", "relation", "limit", "expected"),
    [
        (1, 2, "below", 3, "supported"),
        (1, 2, "below", 1.5, "inconclusive"),
        (1, 2, "below", 0.5, "refuted"),
        (1, 2, "below", 2, "inconclusive"),
        (1, 2, "above", 0.5, "supported"),
        (1, 2, "above", 1.5, "inconclusive"),
        (1, 2, "above", 3, "refuted"),
        (1, 2, "within", (0, 3), "supported"),
        (1, 2, "within", (1.5, 3), "inconclusive"),
        (1, 2, "within", (1.2, 1.8), "inconclusive"),
        (1, 2, "within", (3, 4), "refuted"),
        (1, 2, "within", (-1, 0), "refuted"),
        (-math.inf, math.inf, "below", 3, "inconclusive"),
        (-math.inf, math.inf, "above", 3, "inconclusive"),
        (-math.inf, math.inf, "within", (0, 1), "inconclusive"),
        (1, 2, "below", math.nan, "inconclusive"),
        (1, 2, "above", math.nan, "inconclusive"),
    ],
)
def test_a_comparison(low, high, relation, limit, expected):
    assert status(low, high, relation, limit) == expected


@pytest.mark.parametrize("relation", ["below", "above"])
def test_nan_and_infinite_data_are_inconclusive(relation):
    for bad in (math.nan, math.inf, -math.inf):
        for measured in (
            statistics.mean([1.0, bad, 2.0], false_positive_rate=0.1),
            statistics.ratio([1.0, bad, 2.0], [1.0, 2.0], false_positive_rate=0.1),
        ):
            comparison = Comparison(what="it", measured=measured, relation=relation, limit=1.0)
            assert comparison.status == "inconclusive"


def verdict(*ranges, **more):
    comparisons = tuple(
        Comparison(what=f"{r}", measured=interval(*r), relation="below", limit=1.5) for r in ranges
    )
    return Verdict(claim="c", statement="s", comparisons=comparisons, seed=0, **more)


GOOD, OPEN, BAD = (0, 1), (1, 2), (2, 3)


@pytest.mark.parametrize(
    ("ranges", "expected", "decides"),
    [
        ([GOOD], "supported", 0),
        ([GOOD, GOOD], "supported", 0),
        ([GOOD, OPEN], "inconclusive", 1),
        ([OPEN, GOOD, BAD], "refuted", 2),
        ([BAD], "refuted", 0),
    ],
)
def test_a_claim_stands_on_all_its_comparisons(ranges, expected, decides):
    found = verdict(*ranges)
    assert found.status == expected
    assert found.deciding is found.comparisons[decides]
    assert found.false_positive_rate == pytest.approx(len(ranges) * 1e-6)
    assert str(found).startswith(f"c: {expected}")


def test_not_applicable_says_why():
    found = verdict(BAD, not_applicable="the draggers are tilted")
    assert found.status == "not applicable"
    assert found.deciding is None
    assert "tilted" in str(found)


@pytest.mark.parametrize(("shift", "expected"), [(-0.5, "supported"), (0.5, "refuted")])
def test_a_claim_follows_its_data(shift, expected):
    """The same claim, from good data and from bad: nothing is typed in."""
    data = np.random.default_rng(0).normal(1 + shift, 0.3, 50)
    measured = statistics.mean(data, false_positive_rate=1e-6)
    claim = Comparison(what="mean", measured=measured, relation="below", limit=1.0)
    assert Verdict(claim="low", statement="", comparisons=(claim,), seed=0).status == expected


def test_plain_data():
    found = verdict(GOOD, OPEN, details={"note": [1, 2]})
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["status"] == "inconclusive"
    assert [c["status"] for c in plain["comparisons"]] == ["supported", "inconclusive"]
    assert plain["comparisons"][0]["ratio"] == pytest.approx(0.5 / 1.5)
    assert plain["details"] == {"note": [1, 2]}
    with pytest.raises(TypeError):
        found.details["note"] = 3


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_a_verdict_survives_copies_and_pickles(again):
    """So claims can run in other processes."""
    found = verdict(GOOD, OPEN, details={"note": [1, 2]})
    other = again(found)
    assert other == found
    assert other.to_dict() == found.to_dict()
    with pytest.raises(TypeError):
        other.details["note"] = 3
