"""Setpoints one after the other: whether each step keeps to the limits of speed and acceleration, and how regularly they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...control.limits import Limits
from ...control.rotation import turn_between
from .stopping import Target

Array = NDArray[np.float64]

SECOND = 1_000_000_000
EXACT = 1e-6  # relative
# The guard goes by the steady clock, a stamp is of ROS time: each read within 0.1 ms of the other, 1 % of a step at 100 Hz.
OF_STAMPS = 0.02
_ROUNDING = 1e-8  # m, rad, m/s, rad/s
_EXAMPLES = 5


class Pose(Protocol):
    """position: float64 [3], m. orientation: float64 [4] xyzw."""

    @property
    def position(self) -> Array: ...

    @property
    def orientation(self) -> Array: ...


@dataclass
class Steps:
    """Counts steps that are longer than v_max dt, or differ from the step before by more than a_max dt^2.

    tolerance: relative. problems: some of them in words. largest: share of a limit that a step took."""

    limits: Limits
    tolerance: float = EXACT
    problems: list[str] = field(default_factory=list)
    violations: int = 0
    largest: float = 0.0
    _last: Pose | None = None
    _time: int = 0
    _linear: Array = field(default_factory=lambda: np.zeros(3))  # m/s, of the last step
    _angular: Array = field(default_factory=lambda: np.zeros(3))

    def take(self, pose: Pose, now: int) -> float:
        """The next setpoint, at `now` ns. Returns the largest share of a limit that its step takes."""
        last, dt, limits = self._last, (now - self._time) / SECOND, self.limits
        self._last, self._time = pose, now
        if last is None:
            return 0.0
        problem = "" if np.isfinite([*pose.position, *pose.orientation]).all() else "not finite"
        if problem or dt <= 0:
            self.note(f"{problem or 'no later than the one before'}, at {now / SECOND:.3f} s")
            return float("inf")
        linear = (pose.position - last.position) / dt
        angular = turn_between(last.orientation, pose.orientation) / dt
        change, turn = linear - self._linear, angular - self._angular
        self._linear, self._angular = linear, angular
        shares = {
            "speed": _share(linear, limits.speed),
            "angular speed": _share(angular, limits.angular_speed),
            "acceleration": _share(change, limits.acceleration * dt),
            "angular acceleration": _share(turn, limits.angular_acceleration * dt),
        }
        worst = max(shares, key=shares.__getitem__)
        self.largest = max(self.largest, shares[worst])
        if shares[worst] > 1.0 + self.tolerance:
            self.note(f"{worst}: {shares[worst]:.4g} times the limit, at {now / SECOND:.3f} s")
        return shares[worst]

    def note(self, problem: str) -> None:
        self.violations += 1
        if len(self.problems) < _EXAMPLES:
            self.problems.append(problem)


def _share(vector: Array, limit: float) -> float:
    return max(float(np.linalg.norm(vector)) - _ROUNDING, 0.0) / limit


def rhythm(intervals: NDArray[np.int64], period: float) -> dict[str, Any]:
    """intervals, period: ns. misses: an interval of two periods lacks one. jitter_ms: how far intervals are from the period."""
    misses = int(np.maximum(np.round(intervals / period) - 1, 0).sum())
    return {"misses": misses, "jitter_ms": {"p99": round(float(np.percentile(np.abs(intervals - period), 99)) / 1e6, 3)}}


def figures(targets: Sequence[Target], limits: Limits, rate: float) -> dict[str, Any]:
    """What setpoints of one task were like, by their stamps. rate: Hz, at which they are due.

    seam_violations: steps beyond a limit; seam_problems: some of them in words, their times since the first setpoint. largest_share: of a
    limit that a step took. Where fewer than two came, what cannot be said is None."""
    steps = Steps(limits, OF_STAMPS)
    for target in targets:
        steps.take(target, target.stamp - targets[0].stamp)
    seams = {"largest_share": round(steps.largest, 4), "seam_violations": steps.violations, "seam_problems": list(steps.problems)}
    if len(targets) < 2:
        return {"setpoints": len(targets), "rate_hz": None, "misses": None, "jitter_ms": {"p99": None}, **seams}
    intervals = np.diff([target.stamp for target in targets])
    seconds = float(intervals.sum()) / SECOND
    reached = round(len(intervals) / seconds, 3) if seconds > 0 else None
    return {"setpoints": len(targets), "rate_hz": reached, **rhythm(intervals, SECOND / rate), **seams}
