"""Teleoperated demonstrations out of rosbag2 recordings (docs/data.md says how to record them)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...action_convention import ActionConvention
from ...policy.observation import state_vector
from ..dataset import Episode
from . import ConversionError
from .alignment import SECOND, Floats, Stamps, continued, control_times, interpolate, interpolate_rotation, latest
from .bag import NEEDED, Bag, pose_of, stamp_of
from .commands import FINGER_THRESHOLD, Command, GripperTopic, actions, from_fingers, read_command, read_gripper, say_clipped
from .pictures import picture_of
from .transforms import pose_from_tf

CAMERA = re.compile(r"/camera/(?P<role>[^/]+)/image_raw(?P<transport>|/[^/]+)$")
IMAGES = ("sensor_msgs/Image", "sensor_msgs/CompressedImage")
CLOSED = 2e-3  # m, up to which an opening is none: fingers differ by so much
SPLITS = ("std_msgs/Bool", "std_msgs/String", "bitvla_ros/Task")


@dataclass(frozen=True)
class RosbagOptions:
    """control_hz: rate of the demonstrations. cameras: role -> topic; empty: every topic camera/<role>/image_raw (or its /compressed).
    pose, joints: topics. tf: (base frame, end effector's frame), to take the pose from TF instead.
    command: topic of the teleoperation; empty: end_effector_command if there is one; "none": the measured motion is the action.
    command_frame: axes of a twist: "pose", "tool"; empty: as the frames in the headers say.
    gripper: topic of the gripper's command, and what it says when (open, closed); empty: EndEffectorCommand, else the fingers' motion.
    gripper_joints, gripper_scale, gripper_offset, orientation_branch: as the policy node's parameters of these names.
    instruction: the task; empty: of `split`, or of a topic `instruction` or `task`.
    split: topic (Bool, String or Task) that says when an episode begins and ends; empty: one episode a bag.
    max_gap: s. stamps: "header" or "received", see Bag.
    metres_per_unit, radians_per_unit: motion of a full-scale action in one step. shorter_side: pixels, to shrink pictures to.
    """

    control_hz: float
    cameras: Mapping[str, str]
    pose: str = "end_effector_pose"
    tf: tuple[str, str] | None = None
    joints: str = "joint_states"
    command: str = ""
    command_frame: str = ""
    gripper: str = ""
    gripper_values: tuple[float, float] | None = None
    gripper_joints: Sequence[str] = ("panda_finger_joint1", "panda_finger_joint2")
    gripper_scale: tuple[float, float] = (1.0, 1.0)
    gripper_offset: tuple[float, float] = (0.0, 0.0)
    orientation_branch: tuple[float, float, float, float] | None = None
    instruction: str = ""
    split: str = ""
    max_gap: float = 0.15
    stamps: str = "header"
    metres_per_unit: float = 0.0135
    radians_per_unit: float = 0.07
    shorter_side: int | None = None


@dataclass(frozen=True)
class _Streams:
    """Everything of a bag but the pictures themselves."""

    frame: str  # of the poses
    pose_stamps: Stamps
    positions: Floats  # [N, 3]
    quaternions: Floats  # [N, 4]
    finger_stamps: Stamps
    fingers: Floats  # [N, 2]
    cameras: dict[str, tuple[str, Stamps, Stamps]]  # role -> topic, stamps, times of reception
    command: Command | None
    gripper: GripperTopic | None


def read_rosbags(paths: Sequence[Path], options: RosbagOptions, say: Callable[[str], None]) -> Iterator[tuple[str, Episode]]:
    """Where it comes from, and the episode. say: is told every choice. Raises ConversionError."""
    branch = None if options.orientation_branch is None else np.array(options.orientation_branch)
    clipped = total = 0
    worst, told = (0, ""), False
    for path in paths:
        with Bag(path, options.stamps, options.max_gap) as bag:
            streams = _read(bag, options, say)
            told = told or not from_fingers(streams.command, streams.gripper) or _opening_changes(streams.fingers)
            if branch is None:
                branch = streams.quaternions[0]
                say(
                    "orientations are kept on the branch of the first one: give the policy node orientation_branch:="
                    f"[{', '.join(f'{value:.4f}' for value in branch)}]"
                )
            for number, (start, end, instruction) in enumerate(_intervals(bag, streams, options)):
                where = f"{path}, episode {number} ({(start - streams.pose_stamps[0]) / SECOND:.1f} s after the first pose)"
                try:
                    episode, beyond = _episode(bag, streams, options, (start, end), instruction, branch, say)
                except ConversionError as error:
                    raise ConversionError(f"{where}: {error}") from error
                clipped, total, worst = clipped + beyond, total + len(episode), max(worst, (beyond, where))
                yield where, episode
    if total and not told:
        raise ConversionError(
            f"{paths[0]}: the opening of the gripper never changes, so its commands cannot be told from the fingers: give their topic "
            "(--gripper), or the right joints (--gripper-joints, or --profile of the arm)"
        )
    say_clipped(clipped, total, worst[1], say)


def _read(bag: Bag, options: RosbagOptions, say: Callable[[str], None]) -> _Streams:
    topics = _cameras(bag, options.cameras)  # first: a missing topic shows before anything long begins
    joints = bag.find(options.joints, ("sensor_msgs/JointState",), "joint states (--joints)")
    pose = "" if options.tf else bag.find(options.pose, ("geometry_msgs/PoseStamped",), "the end effector's pose (--pose, or --tf)")
    finger_stamps, fingers = _fingers(bag, joints, options)
    cameras = {role: (topic, *_picture_times(bag, topic)) for role, topic in topics.items()}
    if options.tf:
        frame, (stamps, poses) = options.tf[0], pose_from_tf(bag, *options.tf, options.max_gap)
    else:
        stamps, poses, messages = bag.stamped(pose, lambda message: pose_of(message.pose))
        frame = messages[0].header.frame_id
        if len(frames := {message.header.frame_id for message in messages}) > 1:
            raise bag.error(f"{pose} is in several frames: {', '.join(sorted(frames))}; expected one")
    poses = bag.unit_poses("pose", stamps, poses)
    command = read_command(bag, options.command, options.command_frame, frame)
    gripper = read_gripper(bag, options.gripper, options.gripper_values, options.gripper_joints)
    say(f"state: position and orientation from {pose or f'TF {options.tf}'}, fingers from {joints} ({', '.join(options.gripper_joints)})")
    for role, (topic, _, _) in cameras.items():
        say(f"camera {role}: {topic}")
    return _Streams(frame, stamps, poses[:, :3], poses[:, 3:], finger_stamps, fingers, cameras, command, gripper)


def _cameras(bag: Bag, wanted: Mapping[str, str]) -> dict[str, str]:
    """Topics by role."""
    topics = {role: bag.find(topic, IMAGES, f"camera {role} (--camera {role}=TOPIC)") for role, topic in wanted.items()}
    others: dict[str, str] = {}  # of a role, what is no picture
    if not wanted:
        for topic, kind in sorted(bag.types.items()):  # raw comes before its compressed twin
            if (match := CAMERA.search(f"/{topic}")) and bag.count(topic) and (kind in IMAGES or kind in NEEDED):
                if kind in IMAGES and match["transport"] in ("", "/compressed"):
                    topics.setdefault(match["role"], topic)
                else:
                    others.setdefault(match["role"], topic)
    for role, topic in others.items():
        if role not in topics:
            bag.find(topic, IMAGES, f"camera {role} (name those that you want: --camera ROLE=TOPIC)")
    if not topics:
        raise bag.error("no camera: expected topics camera/<role>/image_raw, or --camera ROLE=TOPIC", listing=True)
    return topics


def _picture_times(bag: Bag, topic: str) -> tuple[Stamps, Stamps]:
    """Stamps, and times of reception."""
    rows = [(bag.stamp(received, message), received, zlib.crc32(message.data)) for received, message in bag.messages(topic)]
    stamps, received, pictures = np.array(rows, np.int64).T
    kept = bag.check_stamps(topic, stamps, pictures)
    bag.check_clock(topic, received[kept], stamps[kept])
    return stamps[kept], received[kept]


def _fingers(bag: Bag, topic: str, options: RosbagOptions) -> tuple[Stamps, Floats]:
    """Sets the bag's clock, too."""
    names = options.gripper_joints
    rows, times, seen = [], [], set()
    for received, message in bag.messages(topic):
        seen |= set(message.name)
        positions = dict(zip(message.name, message.position, strict=False))
        if all(name in positions for name in names):  # others are another publisher's, with stamps of their own
            rows.append([positions[names[0]], positions[names[-1]]])
            times.append((bag.stamp(received, message), received))
    if not rows:
        raise bag.error(f"{topic} never has {', '.join(names)}; it has {', '.join(sorted(seen))} (--gripper-joints)")
    stamps, received_at = np.array(times, np.int64).T
    kept = bag.check_stamps(topic, stamps, np.array(rows, np.float64))
    bag.set_clock(received_at[kept], stamps[kept])
    fingers = np.array(rows, np.float64)[kept] * np.array(options.gripper_scale) + np.array(options.gripper_offset)
    if not np.isfinite(fingers).all():
        at = int(np.argmin(np.isfinite(fingers).all(axis=1)))
        raise bag.error(f"{topic}: a finger's position is not finite at stamp {stamps[kept][at] / SECOND:.3f}")
    _check_opening(bag, topic, fingers[:, 0] - fingers[:, 1], options)
    return stamps[kept], fingers


def _opening_changes(fingers: Floats) -> bool:
    return bool(np.ptp(fingers[:, 0] - fingers[:, 1]) > FINGER_THRESHOLD)


def _check_opening(bag: Bag, topic: str, opening: Floats, options: RosbagOptions) -> None:
    """The state has the fingers at [+w/2, -w/2] of the opening w, m [N]; joints that report otherwise are told by their signs."""
    first, last = options.gripper_joints[0], options.gripper_joints[-1]
    scale, offset = (" ".join(f"{value:g}" for value in pair) for pair in (options.gripper_scale, options.gripper_offset))
    found = f"{topic}: the opening made of {first} and {last} (--gripper-scale {scale} --gripper-offset {offset})"
    if np.abs(opening).max() < CLOSED:
        remedy = (
            "give the scale and offset that make +w/2 and -w/2 of this joint at the opening w"
            if first == last
            else "where both joints report half the opening, as Franka's do, give --gripper-scale 1 -1"
        )
        raise bag.error(f"{found} is always 0 m: {remedy}, or --profile of the arm")
    if opening.min() < -CLOSED:
        turn = "turn the signs of the scale, or give --profile of the arm"
        raise bag.error(f"{found} goes down to {opening.min():.3f} m, expected 0 or more: {turn}")


def _intervals(bag: Bag, streams: _Streams, options: RosbagOptions) -> Iterator[tuple[int, int, str]]:
    """Beginning and end (ns, on the clock of the headers) and instruction of each episode."""
    first, last = int(streams.pose_stamps[0]), int(streams.pose_stamps[-1])
    if not options.split:
        yield first, last, options.instruction or _instruction(bag)
        return
    topic = bag.find(options.split, SPLITS, "--split")
    kind = bag.types[topic]
    text = options.instruction or ("" if kind != "std_msgs/Bool" else _instruction(bag))
    begun: tuple[int, str] | None = None
    count = 0
    for received, message in bag.messages(topic):
        if kind == "bitvla_ros/Task":
            time, active, words = bag.stamp(received, message), bool(message.active), str(message.instruction)
        else:
            active, words = bool(message.data), str(message.data).strip() if kind == "std_msgs/String" else ""
            time = int(bag.clock(np.array([received], np.int64))[0])
        if begun is not None:
            yield begun[0], min(time, last), begun[1]
            count += 1
        begun = (max(time, first), text or words) if active else None
    if begun is not None:
        yield begun[0], last, begun[1]
        count += 1
    if not count:
        raise bag.error(f"{topic} never says that an episode begins: expected {'true' if kind == 'std_msgs/Bool' else 'an instruction'}")


def _instruction(bag: Bag) -> str:
    """The one that the bag holds."""
    for name in ("instruction", "task"):
        topic = bag.find(name, ("std_msgs/String", "bitvla_ros/Task"), "instruction", required=False)
        if not topic:
            continue
        field = "data" if bag.types[topic] == "std_msgs/String" else "instruction"
        different = list(dict.fromkeys(filter(None, (str(getattr(message, field)).strip() for _, message in bag.messages(topic)))))
        if len(different) > 1:
            some = ", ".join(map(repr, different[:3]))
            raise bag.error(f"{topic} has several instructions ({some}): give --split {topic} or --instruction")
        if different:
            return different[0]
    raise bag.error("no instruction: give --instruction, or record a topic instruction (std_msgs/String)", listing=True)


def _episode(
    bag: Bag,
    streams: _Streams,
    options: RosbagOptions,
    interval: tuple[int, int],
    instruction: str,
    branch: Floats,
    say: Callable[[str], None],
) -> tuple[Episode, int]:
    """And how many of its actions had to be clipped."""
    if not instruction.strip():
        raise ConversionError("its instruction is empty; give --instruction")
    pictures = [stamps for _, stamps, _ in streams.cameras.values()]
    times = control_times([np.array(interval, np.int64), streams.pose_stamps, streams.finger_stamps, *pictures], options.control_hz)
    if len(times) < 2:
        raise ConversionError(f"its streams overlap for less than one step of {1 / options.control_hz:g} s")
    gap = options.max_gap
    positions = interpolate("the pose", streams.pose_stamps, streams.positions, times, gap)
    quaternions = interpolate_rotation("the pose", streams.pose_stamps, streams.quaternions, times, gap)
    quaternions = continued(quaternions, branch)
    fingers = interpolate("the joint state", streams.finger_stamps, streams.fingers, times, gap)
    frames = times[:-1]
    chosen = {role: latest(f"camera {role}", stamps, frames, gap) for role, (_, stamps, _) in streams.cameras.items()}
    state = np.stack([state_vector(*row) for row in zip(positions[:-1], quaternions[:-1], fingers[:-1], strict=True)])
    made, clipped = actions(streams.command, streams.gripper, times, positions, quaternions, fingers, options, say)
    images = {role: _pictures(bag, *streams.cameras[role], index, options.shorter_side) for role, index in chosen.items()}
    x, y, z, w = branch.tolist()
    convention = ActionConvention(options.metres_per_unit, options.radians_per_unit, 1.0, 0.0, (x, y, z, w), streams.frame or None)
    return Episode(instruction.strip(), images, state.astype(np.float32), made, convention=convention), clipped


def _pictures(
    bag: Bag, topic: str, stamps: Stamps, received: Stamps, index: NDArray[np.intp], shorter_side: int | None
) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3]: of each frame the picture with that number. Several may have been received at one time: their stamps differ."""
    wanted: dict[int, list[int]] = {}
    for frame, number in enumerate(index):
        wanted.setdefault(int(stamps[number]), []).append(frame)
    rows: Any = None
    for time, message in bag.messages(topic, int(received[index[0]]), int(received[index[-1]]) + 1):
        for frame in wanted.get(bag.stamp(time, message), ()):
            try:
                picture = picture_of(message, shorter_side)
            except ConversionError as error:
                raise ConversionError(f"frame {frame}: {topic} (stamp {stamp_of(message) / SECOND:.3f}): {error}") from error
            if rows is None:
                rows = np.empty((len(index), *picture.shape), np.uint8)
            if picture.shape != rows.shape[1:]:
                raise ConversionError(f"frame {frame}: {topic} changes its size from {list(rows.shape[1:3])} to {list(picture.shape[:2])}")
            rows[frame] = picture
    return np.asarray(rows)
