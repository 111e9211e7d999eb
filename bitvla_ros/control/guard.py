"""The guard: last in line before the arm. Every command passes it, or the arm stops and the first reason stays.

It rejects by default: a command outside a limit is a fault, which latches until an explicit reset. Only what `Limits.clamp` names
is brought back inside instead. `check` is for a simulator's own commands, `check_setpoint` for an arm that is told where to be.
No clocks are read here: `now` is nanoseconds of ROS time, `steady` of the steady clock.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..policy.chunk import ACTION_DIM
from .command import ArmState, Command, Joints, Setpoint
from .limits import UNIT_TOLERANCE, Fault, FaultReason, Limits, Violation
from .player import decelerated
from .setpoint_checks import SetpointChecks

LOCKSTEP_GRACE = 1.0  # s without liveliness in lockstep, where the arm does not move while nobody infers

_TOLERANCE = 1e-5  # relative; commands are float32
_REST = np.zeros(ACTION_DIM, np.float32)


class Guard:
    """Lets one task's commands through while nothing is wrong. `fault` is the latched first fault, or None."""

    def __init__(self, limits: Limits, control_hz: float) -> None:
        self.limits = limits
        self.fault: Fault | None = None
        self._hz = control_hz
        self._epoch: int | None = None
        self._lockstep = False
        self._progress = 0
        self._lost: int | None = None  # when the policy's liveliness was lost
        self._last = _REST  # what went out last, and what a stop starts from
        self._from = _REST
        self._stopped = 0  # steps into the stop
        self._looked: int | None = None  # when the arm was looked at last, on the steady clock
        self._pause = 0, 0  # the last one: when it ended, and how long it was, ns
        self.setpoints = SetpointChecks(limits)

    @property
    def stopping(self) -> bool:
        """No command passes: no task, or a fault."""
        return self._epoch is None or self.fault is not None

    def begin(self, epoch: int, steady: int, *, lockstep: bool) -> None:
        """A task begins: commands of `epoch` pass. A lockstep task begins at rest: time stood still before it."""
        self._epoch, self._lockstep = epoch, lockstep
        if lockstep:
            self._last = _REST
        self.progress(steady)

    def end(self) -> None:
        """Drop the epoch: from here on every answer of `check` belongs to the stop."""
        if not self.stopping:
            self._begin_stop()
        self._epoch = None

    def trip(self, reason: FaultReason, message: str) -> None:
        """Stop, and stay stopped. The first fault stays; later ones are its consequences."""
        if self.fault is None:
            if not self.stopping:
                self._begin_stop()
            self.fault = Fault(reason, message)

    def reset(self) -> None:
        """Clear the fault. The task that it ended does not come back. Without a fault nothing changes: a task that runs stays guarded."""
        if self.fault is not None:
            self.fault = self._epoch = None

    def restrict(self, limits: Limits) -> None:
        """Go on with stricter limits."""
        self.limits = limits
        self.setpoints.restrict(limits)

    @property
    def liveliness_grace(self) -> float:
        """s"""
        return LOCKSTEP_GRACE if self._lockstep else self.limits.liveliness_grace

    def policy_alive(self, alive: bool, steady: int) -> None:
        """Liveliness of the policy's publisher, as the middleware reports it. A loss counts at the next `watch` after the grace."""
        if alive:
            self._lost = None
        elif self._lost is None:
            self._lost = steady

    def progress(self, steady: int) -> None:
        """The task went on: the deadline starts anew."""
        self._progress = steady

    def watch(self, steady: int, waiting_for: str = "an action chunk") -> None:
        """Stop where the policy is gone or a deadline has passed."""
        if self._lost is not None and not self.stopping and steady - self._lost >= self.liveliness_grace * 1e9:
            self.trip(FaultReason.POLICY_LOST, "the policy is gone: nobody keeps the action_chunk topic alive any more")
        waited = (steady - self._progress) / 1e9
        limit = self.limits.hang_limit if self._lockstep else self.limits.chunk_deadline
        if not self.stopping and waited > limit:
            self.trip(FaultReason.DEADLINE, f"waited {waited:.1f} s for {waiting_for}; the limit is {limit:g} s")

    def check(self, now: int, command: Command, arm: ArmState) -> Command:
        """The command itself where it is allowed, else the next command of a stop."""
        if self.stopping or command.epoch != self._epoch:
            return self.stop(command.epoch)
        try:
            allowed = self._within(now, command, arm)
        except Violation as violation:
            self.trip(violation.fault.reason, violation.fault.message)
            return self.stop(command.epoch)
        self._last = allowed.action
        return allowed

    def stop(self, epoch: int = 0) -> Command:
        """The next command of a stop: a ramp, then holds."""
        self._stopped += 1
        command = decelerated(self._from, self._stopped, 0 if self._lockstep else self.limits.ramp_steps, epoch)
        self._last = command.action
        return command

    def place(self, now: int, arm: ArmState, steady: int) -> Setpoint | None:
        """The arm is at rest where it is measured, and setpoints go on from there: that first one, a hold.
        None and a fault where the measured pose will not do; then nothing may go out."""
        try:
            self._check_state(now, arm)
            return self.setpoints.place(arm, steady, self._epoch or 0)
        except Violation as violation:
            self.trip(violation.fault.reason, violation.fault.message)
            return None

    def looks(self, now: int, steady: int) -> None:
        """Call whenever the arm is looked at. Where nobody has for longer than a control step and a half, as where the machine stood
        still, what is measured does not age meanwhile: newer poses wait to be taken, or their driver stood still too. Only the last such
        pause counts."""
        self.setpoints.rewind(steady)
        if now < self._pause[0]:  # time has gone back
            self._pause = 0, 0
        if self._looked is not None and (steady - self._looked) * self._hz > 1.5e9:
            self._pause = now, steady - self._looked
        self._looked = steady

    def check_arm(self, now: int, arm: ArmState) -> bool:
        """Whether the measured pose may be gone by. A fault where it may not."""
        try:
            self._check_state(now, arm)
        except Violation as violation:
            self.trip(violation.fault.reason, violation.fault.message)
            return False
        return True

    def check_offset(self, command: Command) -> Command:
        """The command, with an offset that a motion model may be given. What that makes of it goes to `check_setpoint`."""
        offset = command.action[:6]
        try:
            bounded = self._bounded(offset)
        except Violation as violation:
            self.trip(violation.fault.reason, violation.fault.message)
            return self.stop(command.epoch)
        return command if bounded is offset else replace(command, action=np.append(bounded, command.action[6:]))

    def check_setpoint(
        self, now: int, setpoint: Setpoint, arm: ArmState, joints: Joints | None = None, steady: int | None = None
    ) -> Setpoint | None:
        """The setpoint itself where it is allowed, else the next of a stop: deceleration to a hold.

        joints: as `Limits.joint_min` has them; None: unknown. steady: None: `now` serves as the steady clock. Returns
        None where nothing has gone out yet that could be stopped: then nothing may."""
        steady = now if steady is None else steady
        if self.stopping or setpoint.epoch != self._epoch:
            return self.stop_setpoint(steady, setpoint.epoch)
        try:
            self._check_state(now, arm)
            if joints is not None and self.limits.joint_min:
                self._check_age(now, joints.stamp, "the measured joints are")
            self.setpoints.check(setpoint, arm, None if joints is None else joints.positions, steady)
        except Violation as violation:
            self.trip(violation.fault.reason, violation.fault.message)
            return self.stop_setpoint(steady, setpoint.epoch)
        return setpoint

    def stop_setpoint(self, steady: int, epoch: int = 0) -> Setpoint | None:
        """The next setpoint of a stop: deceleration at the limits, then holds. None where none has gone out."""
        return self.setpoints.stop(steady, epoch)

    def _begin_stop(self) -> None:
        self._from, self._stopped = self._last, 0

    def _within(self, now: int, command: Command, arm: ArmState) -> Command:
        limits, action = self.limits, command.action
        if action.shape != (ACTION_DIM,):
            raise Violation(FaultReason.DIMENSION, f"command of shape {action.shape}; expected [{ACTION_DIM}]")
        if not np.isfinite(action).all():
            raise Violation(FaultReason.NON_FINITE, f"the command is not finite: {action.tolist()}")
        self._check_state(now, arm)
        if abs(float(action[6])) > 1 + _TOLERANCE:
            raise Violation(FaultReason.GRIPPER, f"gripper command {action[6]:g} is outside [-1, 1]")
        if command.hold:
            if action[:6].any():
                raise Violation(FaultReason.OFFSET, "a hold with an offset")
            return command
        offset = self._bounded(action[:6])
        translation = self._moderate(offset[:3], self._last[:3], limits.metres_per_unit, limits.speed, limits.acceleration, "", "m")
        rotation = self._moderate(
            offset[3:], self._last[3:6], limits.radians_per_unit, limits.angular_speed, limits.angular_acceleration, "angular_", "rad"
        )
        self._stay_inside(arm, translation)
        return Command(np.concatenate([translation, rotation, action[6:]]).astype(np.float32), False, command.epoch)

    def _check_state(self, now: int, arm: ArmState) -> None:
        position, orientation = arm.position.tolist(), arm.orientation.tolist()
        if not all(map(math.isfinite, position + orientation)):
            raise Violation(FaultReason.STATE, "the measured pose is not finite")
        length = math.hypot(*orientation)
        if abs(length - 1) > UNIT_TOLERANCE:
            raise Violation(FaultReason.STATE, f"the measured orientation is a quaternion of length {length:g}; expected 1")
        self._check_age(now, arm.stamp, "the measured pose is")

    def _check_age(self, now: int, stamp: int, what: str) -> None:
        end, length = self._pause
        age = (now - stamp - max(min(length, end - stamp), 0)) / 1e9
        if abs(age) > self.limits.max_state_age:
            raise Violation(FaultReason.STATE, f"{what} {age:.3f} s old; the limit is {self.limits.max_state_age:g} s")

    def _bounded(self, offset: NDArray[np.float32]) -> NDArray[np.float32]:
        if np.abs(offset).max() <= 1 + _TOLERANCE:
            return offset
        if "offset" not in self.limits.clamp:
            raise Violation(FaultReason.OFFSET, f"offset {offset.tolist()} is outside [-1, 1]")
        return np.clip(offset, np.float32(-1), np.float32(1))

    def _moderate(
        self,
        offset: NDArray[np.float32],
        last: NDArray[np.float32],
        scale: float,
        speed: float,
        acceleration: float,
        kind: str,
        unit: str,
    ) -> NDArray[np.float32]:
        """Caps on the speed of an offset [3] and on its change since the last command."""
        asked = float(np.linalg.norm(offset)) * scale * self._hz
        if asked > speed * (1 + _TOLERANCE):
            if kind + "speed" not in self.limits.clamp:
                raise Violation(FaultReason(kind + "speed"), f"command of {asked:.3f} {unit}/s; the limit is {speed:g}")
            offset = offset * np.float32(speed / asked)
        jump = float(np.linalg.norm(offset - last)) * scale * self._hz**2
        if jump > acceleration * (1 + _TOLERANCE):
            if kind + "acceleration" not in self.limits.clamp:
                raise Violation(FaultReason(kind + "acceleration"), f"command of {jump:.1f} {unit}/s2; the limit is {acceleration:g}")
            offset = last + (offset - last) * np.float32(acceleration / jump)
        return offset

    def _stay_inside(self, arm: ArmState, translation: NDArray[np.float32]) -> None:
        """Neither across the wall in this step nor further out where the arm is beyond it already; inwards is always allowed."""
        ahead = arm.position + translation.astype(np.float64) * self.limits.metres_per_unit
        low, high = np.array(self.limits.workspace_min), np.array(self.limits.workspace_max)
        outward = ((ahead < low) & (translation < 0)) | ((ahead > high) & (translation > 0))
        if outward.any():
            axis = "xyz"[int(np.argmax(outward))]
            raise Violation(
                FaultReason.WORKSPACE,
                f"the command leads out of the workspace along {axis}: from {np.round(arm.position, 3).tolist()} m,"
                f" box {low.tolist()} to {high.tolist()}",
            )
