"""What a setpoint may be, seen from the one before it, the measured arm and the limits."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .command import ArmState, Setpoint
from .limits import FaultReason, Limits, Violation
from .motion import braked
from .rotation import turn_between, turned

_TOLERANCE = 1e-9  # relative; setpoints are float64
_ROUNDING = 1e-9  # m, rad, m/s, rad/s: float64 near 1
_UNIT_TOLERANCE = 1e-6  # of a quaternion's length
_JOINT_TOLERANCE = 0.002  # rad, of noise
_SECOND = 1_000_000_000
_SETTLING = _SECOND // 2  # after which an arm that was told to rest has come to rest
_EDGE = 0.005  # m by which an arm at rest may be outside the workspace: its first setpoint is the nearest place inside
_PATIENCE = 2 * _SECOND  # with an arm that stays further behind than half of the following limits


class SetpointChecks:
    """Remembers what went out. last: the last setpoint, None before the first. time: of it, ns of the steady clock."""

    def __init__(self, limits: Limits) -> None:
        self.last: Setpoint | None = None
        self.time = 0
        self._limits = limits
        self._low, self._high = np.array(limits.workspace_min), np.array(limits.workspace_max)
        self._behind: int | None = None  # since when the arm has been further behind than half of the limits
        self._travel: deque[tuple[int, float]] = deque()  # of the gripper's command in the last second, by when
        self._allowed: NDArray[np.float64] | None = None  # how far into its margin a joint may be: as far as when the arm was placed

    def place(self, arm: ArmState, steady: int, epoch: int) -> Setpoint:
        """The arm is at rest where it is measured. The gripper keeps its last command. Raises Violation where that is outside the
        workspace."""
        position = np.clip(np.array(arm.position, np.float64), self._low, self._high)
        if np.abs(position - arm.position).max() > _EDGE:
            raise Violation(
                FaultReason.WORKSPACE,
                f"the arm is outside the workspace: it is measured at {np.round(arm.position, 3).tolist()} m, box {self._low.tolist()} to"
                f" {self._high.tolist()}: move it inside by other means, or correct limits.workspace_min and limits.workspace_max",
            )
        gripper = 0.0 if self.last is None else self.last.gripper
        rest = np.zeros(3)
        self.last = Setpoint(position, turned(arm.orientation, rest), rest, rest, gripper, True, epoch)
        self.time, self._allowed, self._behind = steady, None, None
        return self.last

    def settling(self, steady: int) -> bool:
        """The arm may still be on its way to the last setpoint: whoever goes on now, goes on from there, not from where it is measured."""
        return self.last is not None and steady - self.time <= _SETTLING

    def follows(self, arm: ArmState) -> bool:
        """The arm is no further from the last setpoint than the limits allow."""
        return self.last is not None and max(self._following(self.last, arm)) <= 1

    def rewind(self, steady: int) -> None:
        """Where a simulator's time has gone back, the last setpoint is of now."""
        if steady < self.time:
            self.time, self._behind = steady, None
            self._travel.clear()

    def rebase(self, arm: ArmState) -> None:
        """Setpoints go on from where the arm is measured, at the velocity of before: for an arm that somebody else moves."""
        if self.last is not None:
            self.last = replace(self.last, position=arm.position, orientation=arm.orientation)

    def restrict(self, limits: Limits) -> None:
        """Go on with stricter limits."""
        self._limits = limits
        self._low, self._high = np.array(limits.workspace_min), np.array(limits.workspace_max)

    def stays_inside(self, limits: Limits) -> bool:
        """The last setpoint, and where a stop that began there would end, are in the box of these limits."""
        if self.last is None:
            return True
        places = np.array([self.last.position, self._stops_at(self.last)])
        return bool(((places >= limits.workspace_min) & (places <= limits.workspace_max)).all())

    def stop(self, steady: int, epoch: int) -> Setpoint | None:
        """The next setpoint of a stop. None where none has gone out."""
        if self.last is None:
            return None
        elapsed = max(steady - self.time, 0) / _SECOND
        stop = braked(self.last, elapsed, self._limits.acceleration, self._limits.angular_acceleration)
        self.last, self.time = replace(stop, epoch=epoch), steady
        return self.last

    def check(self, setpoint: Setpoint, arm: ArmState, joints: Sequence[float] | NDArray[np.float64] | None, steady: int) -> None:
        """Let the setpoint become the last one. Raises Violation."""
        last = self.last
        if last is None:
            raise RuntimeError("no setpoint to go on from: call place() first")
        elapsed = max(steady - self.time, 0) / _SECOND
        self._check_form(setpoint)
        self._check_motion(setpoint, last, elapsed)
        self._check_following(setpoint, arm, steady)
        self._check_workspace(setpoint)
        self._check_gripper(setpoint, last, steady)
        self._check_joints(joints)
        self.last, self.time = setpoint, steady

    def _check_form(self, setpoint: Setpoint) -> None:
        parts = (setpoint.position, setpoint.orientation, setpoint.linear, setpoint.angular)
        if [np.shape(part) for part in parts] != [(3,), (4,), (3,), (3,)]:
            raise Violation(FaultReason.DIMENSION, f"setpoint of shapes {[np.shape(part) for part in parts]}; expected [3], [4], [3], [3]")
        if not all(map(math.isfinite, [setpoint.gripper, *itertools.chain(*(part.tolist() for part in parts))])):
            raise Violation(FaultReason.NON_FINITE, f"the setpoint is not finite: {setpoint}")
        length = _norm(setpoint.orientation)
        if abs(length - 1) > _UNIT_TOLERANCE:
            raise Violation(FaultReason.DIMENSION, f"the setpoint's quaternion has length {length:g}; expected 1")
        if abs(setpoint.gripper) > 1 + _TOLERANCE:
            raise Violation(FaultReason.GRIPPER, f"gripper command {setpoint.gripper:g} is outside [-1, 1]")
        if setpoint.hold and (setpoint.linear.any() or setpoint.angular.any()):
            raise Violation(FaultReason.OFFSET, "a hold with a velocity")

    def _check_motion(self, setpoint: Setpoint, last: Setpoint, elapsed: float) -> None:
        """elapsed: s since the last setpoint."""
        limits = self._limits
        moved, turn = setpoint.position - last.position, turn_between(last.orientation, setpoint.orientation)
        for velocity, before, step, speed, acceleration, kind, unit in (
            (setpoint.linear, last.linear, moved, limits.speed, limits.acceleration, "", "m"),
            (setpoint.angular, last.angular, turn, limits.angular_speed, limits.angular_acceleration, "angular_", "rad"),
        ):
            asked, speed = _norm(velocity), max(speed, _norm(before) - acceleration * elapsed)  # a limit that was lowered is slowed down to
            if asked > speed * (1 + _TOLERANCE):
                raise Violation(FaultReason(kind + "speed"), f"setpoint of {asked:.3f} {unit}/s; the limit is {speed:g}")
            change = _norm(velocity - before)
            if change > acceleration * elapsed * (1 + _TOLERANCE) + _ROUNDING:
                raise Violation(
                    FaultReason(kind + "acceleration"),
                    f"setpoints that differ by {change:.4f} {unit}/s within {elapsed:.4f} s; the limit is {acceleration:g} {unit}/s2",
                )
            far = _norm(step)
            if far > speed * elapsed * (1 + _TOLERANCE) + _ROUNDING:
                raise Violation(
                    FaultReason.STEP, f"setpoints {far:.4f} {unit} apart within {elapsed:.4f} s; the limit is {speed:g} {unit}/s"
                )
            # A sink may take the pose or the velocity: both must tell the same.
            apart = _norm(step - velocity * elapsed)
            if apart > acceleration * elapsed**2 * (1 + _TOLERANCE) + _ROUNDING:
                raise Violation(FaultReason.STEP, f"the setpoint's velocity and its step disagree by {apart:.4f} {unit}")

    def _following(self, setpoint: Setpoint, arm: ArmState) -> tuple[float, float]:
        """How far the arm is from the setpoint, in position and angle, as shares of the limits."""
        far, turn = setpoint.position - arm.position, turn_between(arm.orientation, setpoint.orientation)
        return _norm(far) / self._limits.following_position, _norm(turn) / self._limits.following_angle

    def _check_following(self, setpoint: Setpoint, arm: ArmState, steady: int) -> None:
        limits = self._limits
        far, angle = self._following(setpoint, arm)
        if far > 1:
            message = f"the arm is {far * limits.following_position:.3f} m from its setpoint; the limit is {limits.following_position:g} m"
            raise Violation(FaultReason.FOLLOWING, message + ": is it blocked?")
        if angle > 1:
            message = f"the hand is {angle * limits.following_angle:.3f} rad from its setpoint; the limit is {limits.following_angle:g} rad"
            raise Violation(FaultReason.FOLLOWING, message + ": does it push against something, or is the arm at the end of its reach?")
        if max(far, angle) <= 0.5:
            self._behind = None
        elif self._behind is None:
            self._behind = steady
        elif steady - self._behind > _PATIENCE:
            message = f"for {_PATIENCE / _SECOND:g} s the arm has been further from its setpoints than half of the following limits"
            raise Violation(FaultReason.FOLLOWING, message + ": is it switched on, or blocked?")

    def _check_workspace(self, setpoint: Setpoint) -> None:
        """Where a stop that began now would end. Inwards is always allowed."""
        ahead = self._stops_at(setpoint)
        low, high = self._low, self._high
        outward = ((ahead < low) & (setpoint.linear < 0)) | ((ahead > high) & (setpoint.linear > 0))
        if outward.any():
            axis = "xyz"[int(np.argmax(outward))]
            raise Violation(
                FaultReason.WORKSPACE,
                f"the setpoint leads out of the workspace along {axis}: {np.round(ahead, 3).tolist()} m,"
                f" box {low.tolist()} to {high.tolist()}",
            )

    def _stops_at(self, setpoint: Setpoint) -> NDArray[np.float64]:
        return setpoint.position + setpoint.linear * (_norm(setpoint.linear) / (2 * self._limits.acceleration))

    def _check_gripper(self, setpoint: Setpoint, last: Setpoint, steady: int) -> None:
        if setpoint.gripper == last.gripper:
            return
        self._travel.append((steady, abs(setpoint.gripper - last.gripper)))
        while self._travel and self._travel[0][0] <= steady - _SECOND:
            self._travel.popleft()
        travel = sum(by for _, by in self._travel)
        if travel > self._limits.gripper_rate * (1 + _TOLERANCE):
            message = f"the gripper was told to travel {travel:.1f} within a second; the limit is {self._limits.gripper_rate:g}"
            raise Violation(FaultReason.GRIPPER_RATE, message)

    def _check_joints(self, joints: Sequence[float] | NDArray[np.float64] | None) -> None:
        limits = self._limits
        if joints is None or not limits.joint_min:
            return
        measured = np.asarray(joints, np.float64)
        if measured.shape != (len(limits.joint_min),) or not np.isfinite(measured).all():
            raise Violation(FaultReason.JOINT, f"joint positions {measured.tolist()}; expected {len(limits.joint_min)} finite numbers")
        # How far each joint is into its margin. A task may begin there, and lead out of it, but no further in.
        beyond = np.maximum(np.array(limits.joint_min) - measured, measured - np.array(limits.joint_max)) + limits.joint_margin
        if self._allowed is None:
            self._allowed = np.maximum(beyond, 0.0)
        over = beyond > self._allowed + _JOINT_TOLERANCE
        if over.any():
            joint = int(np.argmax(over))
            raise Violation(
                FaultReason.JOINT,
                f"joint {joint} is at {measured[joint]:.3f}; with a margin of {limits.joint_margin:g} its range is"
                f" {limits.joint_min[joint]:g} to {limits.joint_max[joint]:g}",
            )


def _norm(vector: NDArray[np.float64]) -> float:
    return math.hypot(*vector.tolist())
