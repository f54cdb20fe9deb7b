"""Checks of arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diptych.checks import check_choice, check_number
from diptych.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "bounds", "remedy"),
    [
        (0, {"above": 0, "most": 20}, "a number above 0 and up to 20"),
        (20.5, {"above": 0, "most": 20}, "a number above 0 and up to 20"),
        (-1, {"least": 0}, "a number of 0 or more"),
        (1.5, {"least": 1, "whole": True}, "a whole number of 1 or more"),
        (True, {"least": 1, "whole": True}, "a whole number of 1 or more"),
        ("3", {"least": 1}, "a number of 1 or more"),
        (None, {"least": 1}, "a number of 1 or more"),
        (1.0, {"least": 0, "below": 1}, "a number of 0 or more and below 1"),
        (math.inf, {"least": 0, "most": 1}, "a number from 0 to 1"),
        (math.nan, {}, "a number"),
        (math.nan, {"least": 0}, "a number of 0 or more"),
        (3, {"most": 2, "remedy": "a share"}, "a share"),
    ],
)
def test_out_of_range_names_argument_value_and_range(value, bounds, remedy):
    with pytest.raises(ConfigError) as error:
        check_number("head x: steps", value, **bounds)
    assert str(error.value) == f"head x: steps is {value}; give {remedy}"


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (0, {"least": 0}),
        (20, {"above": 0, "most": 20}),
        (np.int64(1), {"least": 1, "whole": True}),
        (np.float32(0.5), {"least": 0, "below": 1}),
    ],
)
def test_in_range_passes(value, bounds):
    check_number("x", value, **bounds)


def test_other_choices_are_refused():
    check_choice("x", "a", ["a", "b"])
    with pytest.raises(ConfigError, match=r"^x is 'c'; choose among: a, b$"):
        check_choice("x", "c", ["a", "b"])
