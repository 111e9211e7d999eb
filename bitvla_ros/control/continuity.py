"""Whether the measured pose can be trusted to be where the arm is: one bad sample must not become the first setpoint of a task."""

from __future__ import annotations

import math

import numpy as np

from .command import ArmState
from .limits import UNIT_TOLERANCE, Limits
from .rotation import turn_between

_SAMPLES = 3  # that must continue one another
_SPAN = 50_000_000  # ns between the first and the last of them, at least
_SPAN_AFTER_JUMP = 250_000_000  # ns: the same where they contradict the poses before them
_GAP = 500_000_000  # ns between samples after which the arm may be anywhere
_NOISE, _ANGULAR_NOISE = 0.002, 0.01  # m, rad


class PoseContinuity:
    """Follows the measured pose from sample to sample. Successive samples agree where the arm could have moved from one to the other
    within its limits of speed. `agree`: enough of them in a row did."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._last: ArmState | None = None
        self._samples = 0  # of the row
        self._since = self._span = 0  # stamp of its first sample, and how long it must last

    def observe(self, arm: ArmState) -> None:
        """Call with every measured pose, in the order in which they come; one that was seen before does not count again."""
        last = self._last
        if last is not None and arm.stamp == last.stamp and np.array_equal(arm.position, last.position):
            return
        if not _is_pose(arm):
            self._last, self._samples = None, 0
        elif last is not None and 0 < arm.stamp - last.stamp <= _GAP and self._near(last, arm):
            self._last, self._samples = arm, self._samples + 1
        else:
            self._begin(arm, known=last)

    @property
    def agree(self) -> bool:
        return self._last is not None and self._samples >= _SAMPLES and self._last.stamp - self._since >= self._span

    def _begin(self, arm: ArmState, known: ArmState | None) -> None:
        """A new row. known: the pose before it."""
        jumped = known is not None and not self._near(known, arm)
        self._last, self._samples, self._since = arm, 1, arm.stamp
        self._span = _SPAN_AFTER_JUMP if jumped else _SPAN

    def _near(self, before: ArmState, after: ArmState) -> bool:
        elapsed = max(after.stamp - before.stamp, 0) / 1e9
        moved = math.hypot(*(after.position - before.position).tolist())
        turn = math.hypot(*turn_between(before.orientation, after.orientation).tolist())
        limits = self.limits
        return moved <= _NOISE + limits.speed * elapsed and turn <= _ANGULAR_NOISE + limits.angular_speed * elapsed


def _is_pose(arm: ArmState) -> bool:
    return bool(np.isfinite(arm.position).all()) and abs(math.hypot(*arm.orientation.tolist()) - 1) <= UNIT_TOLERANCE
