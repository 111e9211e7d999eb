"""What may be asked of an arm, and the names of what stops it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..action_convention import ActionConvention
from .motion import MotionConfig

CLAMPS = ("offset", "speed", "angular_speed", "acceleration", "angular_acceleration")

UNIT_TOLERANCE = 0.01  # of a measured quaternion's length
# What a running session takes on where it becomes stricter: lower, and of the box's lower corner higher. A lower acceleration is not
# stricter: it makes every stop longer.
RESTRICTABLE = (
    "workspace_min",
    "workspace_max",
    "speed",
    "angular_speed",
    "max_state_age",
    "chunk_deadline",
    "hang_limit",
    "liveliness_grace",
    "following_position",
    "following_angle",
    "gripper_rate",
)

_LEAD = 0.6  # of the following limits, from where offsets count at most: hard pushing gets beyond them, gentle touching does not


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
    STEP = "step"
    FOLLOWING = "following"
    GRIPPER_RATE = "gripper_rate"
    JOINT = "joint"
    STATE = "state"
    POLICY_LOST = "policy_lost"
    CHUNK = "chunk"
    DEADLINE = "deadline"
    TICK = "tick"
    ESTOP = "estop"
    SECOND_PUBLISHER = "second_publisher"
    SECOND_POLICY = "second_policy"


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
        the training controller itself can be asked for: full scale in all axes at once, reversed in one step. An arm's are much
        lower: the model of that controller asks for 7.5 m/s2 when it starts and 15 when it turns round, and moves gently, though
        later, within 3 m/s2 and 15 rad/s2; 0.25 m/s is the reduced speed of ISO 10218-1.
    max_state_age: oldest measured pose, and joints, that a command is still checked against. Setpoints come to rest before: see `unseen`.
    chunk_deadline: realtime: how long a task may go without an accepted chunk, on the steady clock.
    hang_limit: lockstep: how long a task may stand still, on the steady clock.
    liveliness_grace: realtime: how long the policy may have lost its liveliness before the arm stops. On a loaded machine its lease
        runs out now and then though it is well, and is renewed within milliseconds.
    ramp_steps: steps in which a stop brings the offset to zero; in lockstep a stop is a hold at once.
    clamp: limits (names in CLAMPS) that bring a command back inside instead of stopping the arm. Of setpoints, "offset" alone.
    The rest is about setpoints only.
    following_position, following_angle: how far from the measured pose a setpoint may be; beyond half of it for 2 s at most.
    gripper_rate: how far the gripper's command may travel within any second; from open to closed is 2.
    joint_min, joint_max, joint_margin: limits of the joints (rad, or m of a sliding one) in the order of the joint positions that come
        with the arm's state, and how near a joint may come to them. Empty: unknown, and not checked.
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
    liveliness_grace: float = 0.02
    ramp_steps: int = 4
    clamp: tuple[str, ...] = ()
    following_position: float = 0.10
    following_angle: float = 0.5
    gripper_rate: float = 20.0
    joint_min: tuple[float, ...] = ()
    joint_max: tuple[float, ...] = ()
    joint_margin: float = 0.05

    def __post_init__(self) -> None:
        unknown = sorted(set(self.clamp) - set(CLAMPS))
        if unknown:
            raise ValueError(f"clamp names {', '.join(unknown)}; it can name {', '.join(CLAMPS)}")
        scales = ("metres_per_unit", "radians_per_unit")
        caps = ("speed", "angular_speed", "acceleration", "angular_acceleration", "following_position", "following_angle", "gripper_rate")
        times = ("max_state_age", "chunk_deadline", "hang_limit")
        for name in (*scales, *caps, *times):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a limit is above 0")
        if not self.liveliness_grace >= 0:
            raise ValueError(f"liveliness_grace is {self.liveliness_grace}; it cannot be negative")
        for name in ("ramp_steps", "joint_margin"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if len(self.workspace_min) != 3 or len(self.workspace_max) != 3:
            raise ValueError("workspace_min and workspace_max have 3 numbers each, m")
        if not (np.array(self.workspace_min) < np.array(self.workspace_max)).all():
            raise ValueError(f"workspace_min {self.workspace_min} is not below workspace_max {self.workspace_max}")
        if len(self.joint_min) != len(self.joint_max):
            raise ValueError(f"joint_min has {len(self.joint_min)} numbers and joint_max {len(self.joint_max)}; give one a joint in both")
        if any(not low + 2 * self.joint_margin < high for low, high in zip(self.joint_min, self.joint_max, strict=True)):
            raise ValueError(f"joint_min {self.joint_min} and joint_max {self.joint_max} leave no room between them for joint_margin")

    @property
    def units(self) -> ActionConvention:
        """Metres and radians that a full-scale action is taken for."""
        return ActionConvention(self.metres_per_unit, self.radians_per_unit)

    @property
    def unseen(self) -> float:
        """How old the measured pose may be, s, before setpoints come to rest: half as old as is a fault, and no older than the arm needs
        at full speed for half of the following limits. So an arm whose driver is held up is not found far behind its setpoints."""
        return min(self.max_state_age, self.following_position / self.speed, self.following_angle / self.angular_speed) / 2

    def looser(self, than: Limits) -> list[str]:
        """Names, of RESTRICTABLE, in which these limits allow more than those do."""

        def more(name: str) -> bool:
            new, old = np.array(getattr(self, name)), np.array(getattr(than, name))
            return bool((new < old if name == "workspace_min" else new > old).any())

        return [name for name in RESTRICTABLE if more(name)]

    def motion(self, model: str, lag: float = 0.0) -> MotionConfig:
        """The reference model that keeps to these limits. model: of motion.MODELS. lag: s, by which the arm follows behind setpoints."""
        shared = MotionConfig.__dataclass_fields__.keys() & Limits.__dataclass_fields__.keys()
        lead = {"lead": _LEAD * self.following_position, "lead_angle": _LEAD * self.following_angle}
        return MotionConfig(model, **{name: getattr(self, name) for name in shared}, **lead, lag=lag)


class Violation(Exception):
    """A limit that a command or a setpoint breaks."""

    def __init__(self, reason: FaultReason, message: str) -> None:
        self.fault = Fault(reason, message)
