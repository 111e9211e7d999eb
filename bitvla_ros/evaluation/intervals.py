"""How much a number of successes says: confidence intervals of a rate, and of the difference of two rates on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist


@dataclass(frozen=True)
class Difference:
    """Of two success rates, first less second, with its confidence interval; fractions in [-1, 1]."""

    difference: float
    low: float
    high: float


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a success rate: low, high, as fractions (Wilson 1927). Raises ValueError for counts that cannot be."""
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(f"{successes} successes in {episodes} episodes: expected 0 to all of at least 1 episode")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    reach = z * sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    scale = 1 + z * z / episodes
    low = 0.0 if successes == 0 else (centre - reach) / scale
    high = 1.0 if successes == episodes else (centre + reach) / scale
    return low, high


def paired_difference(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> Difference:
    """The difference of two success rates, each episode (task and seed) played by both.

    Wilson's intervals of both rates, joined with the correlation of the outcomes: Newcombe, Statistics in Medicine 17 (1998) 2635,
    method 10. Raises ValueError where the numbers of episodes differ or are zero.
    """
    episodes = len(first)
    if len(second) != episodes:
        raise ValueError(f"{episodes} outcomes against {len(second)}: a paired difference needs the same episodes on both sides")
    pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    a, b = both + only_first, both + only_second
    (low_a, high_a), (low_b, high_b) = wilson(a, episodes, confidence), wilson(b, episodes, confidence)
    rate_a, rate_b = a / episodes, b / episodes
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:  # continuity correction
        covariance = max(covariance - episodes / 2, 0.0)
    margins = a * (episodes - a) * b * (episodes - b)
    phi = covariance / sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = rate_a - rate_b
    return Difference(difference, difference - reach(rate_a - low_a, high_b - rate_b), difference + reach(high_a - rate_a, rate_b - low_b))
