"""Numbers on command lines: taken, or refused with what to give."""

from __future__ import annotations

import argparse
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.arguments import COUNT, NATURAL, POSITIVE, within


@given(st.integers(), st.integers(), st.integers())
def test_what_lies_within_is_taken_and_nothing_else(value, low, high):
    parse = within(int, low, high)
    if low <= value <= high:
        assert parse(str(value)) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(str(value))


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (COUNT, "0", "0: give 1 or more"),
        (NATURAL, "-1", "-1: give 0 or more"),
        (POSITIVE, "0", "0: give more than 0"),
        (POSITIVE, "nan", "nan: give more than 0"),
        (POSITIVE, "inf", "inf: give more than 0"),
        (within(float, 0, 1), "1.5", "1.5: give 0 to 1"),
        (within(int, 0, 99_999), "100000", "100000: give 0 to 99999"),
    ],
)
def test_the_message_says_what_to_give(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{message}$"):
        parse(text)


def test_bounds_are_included_unless_said():
    assert (COUNT("1"), NATURAL("0"), within(float, 0, 1)("1"), POSITIVE(str(math.ulp(0)))) == (1, 0, 1.0, math.ulp(0))


def test_text_that_is_no_number_is_named_by_its_kind(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=COUNT)
    with pytest.raises(SystemExit):
        parser.parse_args(["--steps", "many"])
    assert "invalid int value: 'many'" in capsys.readouterr().err
