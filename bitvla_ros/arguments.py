"""Numbers on a command line: what argparse takes as `type`, which says what to give instead of a number out of range."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def within(kind: type[Number], low: float, high: float = math.inf, *, above: bool = False) -> Callable[[str], Number]:
    """A finite number from low to high, both included; above: low itself is not."""
    words = f"more than {low:g}" if above else f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"

    def parse(text: str) -> Number:
        value = kind(text)
        if not low <= value <= high or value == math.inf or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text}: give {words}")
        return value

    parse.__name__ = kind.__name__  # argparse: invalid int value
    return parse


COUNT = within(int, 1)
NATURAL = within(int, 0)
POSITIVE = within(float, 0, above=True)
