"""What the demonstrator meant: actions of the dataset's convention out of a teleoperation's commands, or out of the motion itself.

An action of 1 moves the arm by `metres_per_unit` or `radians_per_unit` in one control step, sustained. The defaults are those of the
controller that LIBERO was recorded with, and of our own controller's limits (control/guard.py): 13.5 mm and 0.07 rad at 20 Hz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import ConversionError
from . import alignment as align
from .alignment import SECOND, Floats, Stamps
from .bag import Bag, pose_of

if TYPE_CHECKING:
    from .rosbag import RosbagOptions

OFFSET, TWIST, TARGET = "bitvla_ros/EndEffectorCommand", "geometry_msgs/TwistStamped", "geometry_msgs/PoseStamped"
GRIPPERS = ("std_msgs/Bool", "std_msgs/Float64", "std_msgs/Float32", "sensor_msgs/JointState")
FINGER_THRESHOLD = 0.005  # m, a change of the opening that is no noise
MANY_CLIPPED = 0.05


@dataclass(frozen=True)
class Command:
    """kind: OFFSET, TWIST or TARGET. values: [N, 7] offset and gripper, [N, 6] m/s and rad/s, or [N, 7] pose. tool: a twist in the axes
    of the end effector."""

    topic: str
    kind: str
    stamps: Stamps
    values: Floats
    tool: bool = False


@dataclass(frozen=True)
class GripperTopic:
    """opening: [N], 1 = open, 0 = closed."""

    topic: str
    stamps: Stamps
    opening: Floats


def read_command(bag: Bag, topic: str, frame: str, pose_frame: str) -> Command | None:
    """None where the action is the measured motion. frame: "pose", "tool" or, to trust the headers, empty."""
    if topic == "none":
        return None
    found = bag.find(topic or "end_effector_command", (OFFSET, TWIST, TARGET), "the teleoperation (--command)", required=bool(topic))
    if not found:
        return None
    kind = bag.types[found]
    stamps, values, messages = bag.stamped(found, lambda message: _values(kind, message))
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise bag.error(f"{found}: the command with stamp {stamps[at] / SECOND:.3f} is not finite: {values[at]}")
    if kind == TARGET:
        values = bag.unit_poses(f"{found}: target", stamps, values)
    named = {message.header.frame_id for message in messages} - {"", pose_frame}
    if named and pose_frame and not frame:
        raise bag.error(
            f"{found} is in frame {', '.join(sorted(named))}, the pose in {pose_frame}: say with --command-frame pose that their axes are "
            "the same, or with --command-frame tool that a twist is in the end effector's axes"
        )
    if frame == "tool" and kind != TWIST:
        raise bag.error(f"{found} is {kind}: --command-frame tool is for {TWIST}")
    return Command(found, kind, stamps, values, frame == "tool")


def read_gripper(bag: Bag, topic: str, values: tuple[float, float] | None, joints: Sequence[str]) -> GripperTopic | None:
    """values: what the topic says when (open, closed)."""
    if not topic:
        return None
    found = bag.find(topic, GRIPPERS, "the gripper's command (--gripper)")
    if values is None or values[0] == values[1]:
        raise bag.error(f"{found} may mean anything: say its values for an open and a closed gripper (--gripper-open, --gripper-closed)")
    if bag.types[found] == "sensor_msgs/JointState":
        stamps, numbers, _ = bag.stamped(found, lambda message: _joint(bag, found, message, joints))
    else:
        pairs = [(received, float(message.data)) for received, message in bag.messages(found)]
        stamps = bag.clock(np.array([received for received, _ in pairs], np.int64))
        numbers = np.array([number for _, number in pairs])
    if not np.isfinite(numbers).all():
        raise bag.error(f"{found}, message {int(np.argmin(np.isfinite(numbers)))}: not a finite number")
    opened, closed = values
    return GripperTopic(found, stamps, np.clip((numbers - closed) / (opened - closed), 0.0, 1.0))


def from_fingers(command: Command | None, gripper: GripperTopic | None) -> bool:
    """Whether the gripper's commands must be told from the motion of its fingers."""
    return gripper is None and (command is None or command.kind != OFFSET)


def actions(
    command: Command | None,
    gripper: GripperTopic | None,
    times: Stamps,
    positions: Floats,
    quaternions: Floats,
    fingers: Floats,
    options: RosbagOptions,
    say: Callable[[str], None],
) -> tuple[NDArray[np.float32], int]:
    """float32 [T, 7] of the steps between times [T + 1], and how many had to be clipped to [-1, 1]. positions, quaternions and fingers are
    the measured ones at these times."""
    scale = np.repeat([options.metres_per_unit, options.radians_per_unit], 3)
    units = f"1 = {options.metres_per_unit:g} m or {options.radians_per_unit:g} rad a step"
    seconds = np.diff(times)[:, None] / SECOND
    timeout = max(options.max_gap, 1.5 / options.control_hz)  # after which controllers stop
    if command is None:
        offset = align.motion(positions, quaternions) / scale
        say(f"actions: the measured motion from one frame to the next, {units}; no command was recorded")
    elif command.kind == OFFSET:
        offset = align.held_mean(command.stamps, command.values[:, :6], times, timeout)
        say(f"actions: offsets of {command.topic}, as they are")
    elif command.kind == TWIST:
        velocity = align.held_mean(command.stamps, command.values, times, timeout)
        if command.tool:
            velocity = np.concatenate(
                [align.rotated(quaternions[:-1], velocity[:, :3]), align.rotated(quaternions[:-1], velocity[:, 3:])], axis=1
            )
        offset = velocity * seconds / scale
        say(f"actions: twists of {command.topic} over each step, {units}")
    else:
        stamps, index = align.with_rests(command.stamps, timeout)
        inside = np.clip(times, stamps[0], stamps[-1])
        targets, endless = command.values[index], float("inf")
        offset = align.motion(
            align.interpolate(command.topic, stamps, targets[:, :3], inside, endless),
            align.interpolate_rotation(command.topic, stamps, targets[:, 3:], inside, endless),
        )
        offset = offset / scale
        say(f"actions: how the target of {command.topic} moves from one frame to the next, {units}")
    clipped = int(np.sum(np.abs(offset).max(axis=1) > 1 + 1e-6))
    opening = _gripper(command, gripper, times, fingers, say)
    return np.concatenate([np.clip(offset, -1.0, 1.0), opening[:, None]], axis=1).astype(np.float32), clipped


def say_clipped(clipped: int, frames: int, worst: str, say: Callable[[str], None]) -> None:
    """clipped: of so many frames. worst: the episode that has most of them."""
    if clipped:
        hint = "; raise --metres-per-unit or --radians-per-unit, or teleoperate more slowly" if clipped > MANY_CLIPPED * frames else ""
        say(f"clipped to [-1, 1]: {clipped / frames:.1%} of the actions, most of them in {worst}{hint}")


def _gripper(
    command: Command | None, gripper: GripperTopic | None, times: Stamps, fingers: Floats, say: Callable[[str], None]
) -> NDArray[np.floating[Any]]:
    """1 = open, 0 = closed, [T]."""
    opening = fingers[:, 0] - fingers[:, 1]
    if gripper is not None:
        say(f"gripper: {gripper.topic}, converted to 1 = open, 0 = closed")
        return _in_force(gripper.topic, gripper.stamps, gripper.opening, times, opening, say)
    if command is not None and command.kind == OFFSET:
        say(f"gripper: {command.topic}, -1 (open) ... +1 (closed) converted to 1 = open, 0 = closed")
        commanded = np.clip((1.0 - command.values[:, 6]) / 2.0, 0.0, 1.0)
        return _in_force(command.topic, command.stamps, commanded, times, opening, say)
    say("gripper: 1 = open, 0 = closed, from the motion of the fingers; no command was given (--gripper)")
    return align.gripper_from_fingers(opening, FINGER_THRESHOLD)


def _in_force(
    topic: str, stamps: Stamps, values: Floats, times: Stamps, opening: Floats, say: Callable[[str], None]
) -> NDArray[np.floating[Any]]:
    """The command in the middle of each step. Before the first one, what the fingers [T + 1] did: a topic that is sent on change says first
    what came next."""
    index = np.searchsorted(stamps, times[:-1] + np.diff(times) // 2, side="right") - 1
    before = index < 0
    if not before.any():
        return values[index]
    say(f"gripper: before the first command of {topic}, from the motion of the fingers")
    return np.where(before, align.gripper_from_fingers(opening, FINGER_THRESHOLD), values[index])


def _values(kind: str, message: Any) -> Floats:
    if kind == OFFSET:
        offset = np.zeros(6) if message.hold else np.asarray(message.offset, np.float64)
        return np.append(offset, float(message.gripper))
    if kind == TWIST:
        parts = (message.twist.linear, message.twist.angular)
        return np.array([value for part in parts for value in (part.x, part.y, part.z)])
    return pose_of(message.pose)


def _joint(bag: Bag, topic: str, message: Any, joints: Sequence[str]) -> float:
    positions = dict(zip(message.name, message.position, strict=False))
    if joints[0] in positions:
        return float(positions[joints[0]])
    if len(positions) == 1:
        return float(next(iter(positions.values())))
    raise ConversionError(f"{bag.path}: {topic} has {', '.join(positions)}, but not {joints[0]} (--gripper-joints)")
