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
_GAP = 0.5  # s between samples after which the arm may be anywhere, or the age that is allowed of them where that is more
_NOISE, _ANGULAR_NOISE = 0.01, 0.05  # m, rad, between two samples


class PoseContinuity:
    """Follows the measured pose from sample to sample. Successive samples agree where the arm could have moved from one to the other
    within its limits of speed, up to noise. `agree`: enough of them in a row did, for long enough, at whatever rate they come."""

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
        elif last is not None and 0 <= arm.stamp - last.stamp <= 1e9 * max(_GAP, self.limits.max_state_age) and self._near(last, arm):
            self._samples += arm.stamp > last.stamp  # some drivers' stamps are coarser than their rate
            self._last = arm
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
