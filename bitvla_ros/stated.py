"""What a file states of itself and what an argument says of it: they agree, or only one of them says it. No argument overrides a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TOLERANCE = 1e-5  # relative: 29.97 is 30000 / 1001, and a rate may have been stored in single precision


class Contradiction(ValueError):
    """An argument says something else than the file that it is about."""


def agreed(name: str, given: T | None, stated: T | None, where: str | Path, remedy: str = "") -> T | None:
    """The value that holds: what the file states, else what is given, else None.

    name: of the argument. given: None where it was left out. stated: None where the file does not say. where: the file, or what else
    states it. remedy: what to do, by default to leave the argument out. Raises Contradiction.
    """
    if given is None or stated is None:
        return given if stated is None else stated
    if not same(given, stated):
        raise Contradiction(f"{name} is {_words(given)}, but {where} states {_words(stated)}: {remedy or f'leave {name} out'}")
    return stated


def same(given: object, stated: object) -> bool:
    """Equal; numbers with a point up to TOLERANCE, lists and tuples by their elements."""
    if isinstance(given, (list, tuple)) and isinstance(stated, (list, tuple)):
        return len(given) == len(stated) and all(map(same, given, stated))
    if isinstance(given, float) or isinstance(stated, float):
        numbers = isinstance(given, (int, float)) and isinstance(stated, (int, float))
        return numbers and math.isclose(given, stated, rel_tol=TOLERANCE)  # type: ignore[arg-type]
    return given == stated


def _words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, str):
        return repr(value)
    return f"{value:.9g}" if isinstance(value, float) else str(value)
