"""Options on a command line: numbers, which say what to give instead of one out of range, and options that nothing would read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterable, Mapping
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


class UnreadOption(ValueError):
    """An option was given that nothing reads in this combination."""


def require_read(given: Iterable[str], read: Mapping[str, Collection[str]], *chosen: str, prefix: str = "--") -> None:
    """Refuse what was given and would be ignored.

    given: names of options, as attributes of the parsed arguments. read: choice, in words for the message -> the options that it reads;
    an option in no row is read by every choice. chosen: what was chosen, each a row of `read` or nothing that has options of its own.
    prefix: of an option; without one the names are those of a node's parameters. Raises UnreadOption.
    """
    for option in sorted(given):
        readers = [choice for choice, options in read.items() if option in options]
        if readers and not set(readers) & set(chosen):
            name = prefix + option.replace("_", "-") if prefix else option
            raise UnreadOption(f"{name} is not read by {' or '.join(chosen)}, only by {', '.join(readers)}: leave it out")
