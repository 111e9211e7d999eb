"""The guard: last in line before the arm. Every command passes it, or the arm stops and the first reason stays.

It rejects by default: a command outside a limit is a fault, which latches until an explicit reset. Only what `Limits.clamp` names
is brought back inside instead. No clocks are read here: `now` is nanoseconds of ROS time, `steady` of the steady clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from ..policy.chunk import ACTION_DIM
from .command import ArmState, Command
from .player import decelerated

CLAMPS = ("offset", "speed", "angular_speed", "acceleration", "angular_acceleration")

LOCKSTEP_GRACE = 1.0  # s without liveliness in lockstep, where the arm does not move while nobody infers

_TOLERANCE = 1e-5  # relative; commands are float32
_REST = np.zeros(ACTION_DIM, np.float32)


class FaultReason(str, Enum):
    """What stopped the arm."""

    NON_FINITE = "non_finite"
    DIMENSION = "dimension"
    OFFSET = "offset"
    GRIPPER = "gripper"
    WORKSPACE = "workspace"
    SPEED = "speed"
    ANGULAR_SPEED = "angular_speed"
    ACCELERATION = "acceleration"
    ANGULAR_ACCELERATION = "angular_acceleration"
    STATE = "state"
    POLICY_LOST = "policy_lost"
    CHUNK = "chunk"
    DEADLINE = "deadline"
    TICK = "tick"


@dataclass(frozen=True)
class Fault:
    reason: FaultReason
    message: str


@dataclass(frozen=True)
class Limits:
    """What a command may ask for. Metres, radians, seconds.

    metres_per_unit, radians_per_unit: what a full-scale component moves the arm by in one step, sustained (robosuite 1.4's
        OSC_POSE at 20 Hz, measured).
    workspace_min, workspace_max: box for the end effector in the command's frame. The default only keeps nonsense out; a robot's
        is drawn for its cell.
    speed, angular_speed, acceleration, angular_acceleration: caps on the norm of the commanded motion. The defaults are what
        the training controller itself can be asked for: full scale in all axes at once, reversed in one step.
    max_state_age: oldest measured pose a command is still checked against.
    chunk_deadline: realtime: how long a task may go without an accepted chunk, on the steady clock.
    hang_limit: lockstep: how long a task may stand still, on the steady clock.
    liveliness_grace: realtime: how long the policy may have lost its liveliness before the arm stops. On a loaded machine its lease
        runs out now and then though it is well, and is renewed within milliseconds.
    ramp_steps: steps in which a stop brings the offset to zero; in lockstep a stop is a hold at once.
    clamp: limits (names in CLAMPS) that bring a command back inside instead of stopping the arm.
    """

    metres_per_unit: float = 0.0135
    radians_per_unit: float = 0.07
    workspace_min: tuple[float, ...] = (-2.0, -2.0, -1.0)
    workspace_max: tuple[float, ...] = (2.0, 2.0, 3.0)
    speed: float = 0.5
    angular_speed: float = 2.5
    acceleration: float = 20.0
    angular_acceleration: float = 100.0
    max_state_age: float = 0.5
    chunk_deadline: float = 10.0
    hang_limit: float = 60.0
    liveliness_grace: float = 0.03
    ramp_steps: int = 4
    clamp: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.clamp) - set(CLAMPS))
        if unknown:
            raise ValueError(f"clamp names {', '.join(unknown)}; it can name {', '.join(CLAMPS)}")
        scales = ("metres_per_unit", "radians_per_unit")
        caps = ("speed", "angular_speed", "acceleration", "angular_acceleration", "max_state_age", "chunk_deadline", "hang_limit")
        for name in scales + caps:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a limit is above 0")
        if not self.liveliness_grace >= 0:
            raise ValueError(f"liveliness_grace is {self.liveliness_grace}; it cannot be negative")
        if self.ramp_steps < 0:
            raise ValueError(f"ramp_steps is {self.ramp_steps}; it cannot be negative")
        if len(self.workspace_min) != 3 or len(self.workspace_max) != 3:
            raise ValueError("workspace_min and workspace_max have 3 numbers each, m")
        if not (np.array(self.workspace_min) < np.array(self.workspace_max)).all():
            raise ValueError(f"workspace_min {self.workspace_min} is not below workspace_max {self.workspace_max}")


class _Violation(Exception):
    def __init__(self, reason: FaultReason, message: str) -> None:
        self.fault = Fault(reason, message)


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
        """Clear the fault. The task that it ended does not come back."""
        self.fault = None
        self._epoch = None

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
        except _Violation as violation:
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

    def _begin_stop(self) -> None:
        self._from, self._stopped = self._last, 0

    def _within(self, now: int, command: Command, arm: ArmState) -> Command:
        limits, action = self.limits, command.action
        if action.shape != (ACTION_DIM,):
            raise _Violation(FaultReason.DIMENSION, f"command of shape {action.shape}; expected [{ACTION_DIM}]")
        if not np.isfinite(action).all():
            raise _Violation(FaultReason.NON_FINITE, f"the command is not finite: {action.tolist()}")
        if not (np.isfinite(arm.position).all() and np.isfinite(arm.orientation).all()):
            raise _Violation(FaultReason.STATE, "the measured pose is not finite")
        age = (now - arm.stamp) / 1e9
        if abs(age) > limits.max_state_age:
            raise _Violation(FaultReason.STATE, f"the measured pose is {age:.3f} s old; the limit is {limits.max_state_age:g} s")
        if abs(float(action[6])) > 1 + _TOLERANCE:
            raise _Violation(FaultReason.GRIPPER, f"gripper command {action[6]:g} is outside [-1, 1]")
        if command.hold:
            if action[:6].any():
                raise _Violation(FaultReason.OFFSET, "a hold with an offset")
            return command
        offset = self._bounded(action[:6])
        translation = self._moderate(offset[:3], self._last[:3], limits.metres_per_unit, limits.speed, limits.acceleration, "", "m")
        rotation = self._moderate(
            offset[3:], self._last[3:6], limits.radians_per_unit, limits.angular_speed, limits.angular_acceleration, "angular_", "rad"
        )
        self._stay_inside(arm, translation)
        return Command(np.concatenate([translation, rotation, action[6:]]).astype(np.float32), False, command.epoch)

    def _bounded(self, offset: NDArray[np.float32]) -> NDArray[np.float32]:
        if np.abs(offset).max() <= 1 + _TOLERANCE:
            return offset
        if "offset" not in self.limits.clamp:
            raise _Violation(FaultReason.OFFSET, f"offset {offset.tolist()} is outside [-1, 1]")
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
                raise _Violation(FaultReason(kind + "speed"), f"command of {asked:.3f} {unit}/s; the limit is {speed:g}")
            offset = offset * np.float32(speed / asked)
        jump = float(np.linalg.norm(offset - last)) * scale * self._hz**2
        if jump > acceleration * (1 + _TOLERANCE):
            if kind + "acceleration" not in self.limits.clamp:
                raise _Violation(FaultReason(kind + "acceleration"), f"command of {jump:.1f} {unit}/s2; the limit is {acceleration:g}")
            offset = last + (offset - last) * np.float32(acceleration / jump)
        return offset

    def _stay_inside(self, arm: ArmState, translation: NDArray[np.float32]) -> None:
        """Neither across the wall in this step nor further out where the arm is beyond it already; inwards is always allowed."""
        ahead = arm.position + translation.astype(np.float64) * self.limits.metres_per_unit
        low, high = np.array(self.limits.workspace_min), np.array(self.limits.workspace_max)
        outward = ((ahead < low) & (translation < 0)) | ((ahead > high) & (translation > 0))
        if outward.any():
            axis = "xyz"[int(np.argmax(outward))]
            raise _Violation(
                FaultReason.WORKSPACE,
                f"the command leads out of the workspace along {axis}: from {np.round(arm.position, 3).tolist()} m,"
                f" box {low.tolist()} to {high.tolist()}",
            )
