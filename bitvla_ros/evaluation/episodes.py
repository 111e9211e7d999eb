"""Episodes of an evaluation: which are played, what became of each, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..simulation import FIRST_TRAINING_SEED, LIBERO_SUITES
from .intervals import wilson

FIRST_SEED = 10_000


@dataclass(frozen=True)
class Trial:
    """An episode to play: task by its index in the suite, and seed of the initial state."""

    task: int
    seed: int


@dataclass(frozen=True)
class Attempt:
    """A trial that was played.

    outcome: "success", "time_limit", "cancelled" or "fault". steps: control steps played. latencies: s, of each chunk.
    model_hash: of the policy. video: its path from the report's folder, or None. still: the last frame, JPEG, or empty.
    """

    task: int
    seed: int
    instruction: str
    outcome: str
    reason: str
    steps: int
    latencies: tuple[float, ...] = ()
    model_hash: str = ""
    video: str | None = None
    still: bytes = b""

    @property
    def success(self) -> bool:
        return self.outcome == "success"


class SeedError(ValueError):
    """Episodes of these seeds are no evaluation."""


def trials(suite: str, tasks: int, episodes: int, seed: int) -> list[Trial]:
    """`episodes` trials that go round a suite's tasks. tasks: how many it has. seed: another one draws other initial states.

    Tabletop: episode i has seed FIRST_SEED + seed + i. LIBERO has a list of initial states for each task instead of random ones:
    there a seed is an index in it, `seed` in the first round of the tasks. Raises SeedError for seeds of demonstrations.
    """
    if suite in LIBERO_SUITES:
        return [Trial(i % tasks, seed + i // tasks) for i in range(episodes)]
    first = FIRST_SEED + seed
    if first + episodes > FIRST_TRAINING_SEED:
        limit = FIRST_TRAINING_SEED - FIRST_SEED - episodes
        raise SeedError(f"seed {seed} would evaluate on initial states that policies train on: give 0 to {limit}")
    return [Trial(i % tasks, first + i) for i in range(episodes)]


def summary(suite: str, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """What `bitvla eval --json` prints for a suite. Intervals: Wilson's, 95 %, [low, high] as fractions. mean_steps: of all episodes.
    by_task: by the index of the task."""
    by_task = {}
    for task in sorted({attempt.task for attempt in attempts}):
        own = [attempt for attempt in attempts if attempt.task == task]
        by_task[str(task)] = {"instruction": own[0].instruction, **_rate(own)}
    return {
        "suite": suite,
        **_rate(attempts),
        "by_task": by_task,
        "mean_steps": round(float(np.mean([attempt.steps for attempt in attempts])), 2),
        "latency_ms": percentiles([latency for attempt in attempts for latency in attempt.latencies]),
        "episodes_detail": [{"task": a.task, "seed": a.seed, "success": a.success, "steps": a.steps} for a in attempts],
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """{"p50", "p99"} in ms; None where nothing was measured."""
    if not seconds:
        return {"p50": None, "p99": None}
    return {name: round(1e3 * float(np.percentile(seconds, level)), 3) for name, level in (("p50", 50), ("p99", 99))}


def _rate(attempts: Sequence[Attempt]) -> dict[str, Any]:
    successes = sum(attempt.success for attempt in attempts)
    low, high = wilson(successes, len(attempts))
    return {
        "episodes": len(attempts),
        "successes": successes,
        "success_rate": round(successes / len(attempts), 6),
        "interval": [round(low, 6), round(high, 6)],
    }
