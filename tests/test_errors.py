"""The messages: one line, short, the value as a reader knows it."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_divides,
    check_finite,
    check_integer,
    check_number,
    divisors,
    shown,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"),
        (np.float64(1.5), "1.5"),
        (np.int64(3), "3"),
        (np.ones((2, 3)), "array of shape (2, 3)"),
        ("a\nb", "'a\\nb'"),
        ([1, 2], "[1, 2]"),
        (None, "None"),
    ],
)
def test_values_as_shown(value, text):
    assert shown(value) == text


@given(st.one_of(st.text(), st.lists(st.floats()), st.dictionaries(st.text(), st.text())))
def test_whatever_is_shown_is_one_short_line(value):
    assert "\n" not in shown(value)
    assert len(shown(value)) <= 80


@given(st.integers(1, 5000))
def test_divisors(number):
    assert divisors(number) == [k for k in range(1, number + 1) if number % k == 0]


def test_what_is_accepted_comes_back_plain():
    for value, checked in (
        (check_integer("x", np.int32(3), minimum=1), 3),
        (check_number("x", np.float32(0.5), minimum=0, maximum=1), 0.5),
        (check_number("x", Fraction(1, 2)), 0.5),
        (check_number("x", 1, above=0), 1.0),
        (check_divides(np.int64(4), 12), 3),
    ):
        assert value == checked
        assert type(value) in (int, float)
    array = check_array("x", [[1, 2], [3, 4]], ndim=2)
    assert array.dtype == np.float64


def test_limits_are_where_the_message_says():
    for limits, inside, outside in (
        ({"minimum": 0}, 0, -1e-300),
        ({"maximum": 1}, 1, 1 + 1e-15),
        ({"above": 0}, 5e-324, 0),
        ({"below": 1}, 1 - 1e-16, 1),
        ({"above": -1, "below": 1}, 0, -1),
    ):
        assert check_number("x", inside, **limits) == inside
        with pytest.raises(InvalidArgument, match=r"x=.* must be "):
            check_number("x", outside, **limits)


def test_where_the_first_bad_number_is():
    array = np.zeros((2, 3))
    check_finite("x", array)
    array[1, 2], array[1, 1] = math.inf, math.nan
    with pytest.raises(InvalidArgument) as caught:
        check_finite("x", array)
    assert str(caught.value) == (
        "x must be finite; 2 of its 6 values are not, the first at (1, 1): nan"
    )


def test_masked_numbers_are_not_silently_unmasked():
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    with pytest.raises(InvalidArgument, match=r"x=.* must be"):
        check_array("x", masked)


def test_it_is_a_value_error():
    assert issubclass(InvalidArgument, ValueError)
