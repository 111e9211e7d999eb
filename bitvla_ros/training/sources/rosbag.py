"""Teleoperated demonstrations out of rosbag2 recordings (docs/data.md says how to record them)."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...action_convention import ActionConvention
from ...policy.observation import state_vector
from ..dataset import Episode
from ..left_out import LeftOut
from . import ConversionError
from .alignment import SECOND, Floats, Stamps, continued, control_times, interpolate, interpolate_rotation, latest
from .bag import NEEDED, Bag, pose_of, stamp_of
from .commands import FINGER_THRESHOLD, Command, GripperTopic, actions, from_fingers, read_command, read_gripper, say_clipped
from .pictures import LazyPictures, picture_of
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


def read_rosbags(
    paths: Sequence[Path], options: RosbagOptions, say: Callable[[str], None], left_out: LeftOut
) -> Iterator[tuple[str, Episode]]:
    """Where it comes from, and the episode, whose pictures are read while the next one has not been asked for. say: is told every choice.
    Raises ConversionError."""
    run = _Run(options, say, left_out)
    for path in paths:
        try:
            bag = Bag(path, options.stamps, options.max_gap)
        except ConversionError as error:
            left_out.add(str(path), error)
            continue
        with bag:
            yield from run.episodes(bag)
    if run.total and not run.told:
        raise ConversionError(
            f"{paths[0]}: the opening of the gripper never changes, so its commands cannot be told from the fingers: give their topic "
            "(--gripper), or the right joints (--gripper-joints, or --profile of the arm)"
        )
    say_clipped(run.clipped, run.total, run.worst[1], say)


class _Run:
    """What is known of all bags so far. branch: of orientations. clipped, total: frames. worst: most clipped frames of an episode, and
    where. told: the gripper's commands could be told from the fingers, or need not be."""

    def __init__(self, options: RosbagOptions, say: Callable[[str], None], left_out: LeftOut) -> None:
        self.options, self.say, self.left_out = options, say, left_out
        self.branch = None if options.orientation_branch is None else np.array(options.orientation_branch)
        self.clipped = self.total = 0
        self.worst, self.told = (0, ""), False

    def episodes(self, bag: Bag) -> Iterator[tuple[str, Episode]]:
        """Of one bag."""
        try:
            streams = _read(bag, self.options, self.say)
            intervals = list(_intervals(bag, streams, self.options))
            judgements = _judgements(bag, self.options.joints)
        except ConversionError as error:
            self.left_out.add(str(bag.path), error)
            return
        self.told = self.told or not from_fingers(streams.command, streams.gripper) or _opening_changes(streams.fingers)
        if self.branch is None:
            self.branch = streams.quaternions[0]
            words = ", ".join(f"{value:.4f}" for value in self.branch)
            self.say(f"orientations are kept on the branch of the first one: give the policy node orientation_branch:=[{words}]")
        for number, (start, end, instruction) in enumerate(intervals):
            where = f"{bag.path}, episode {number} ({(start - streams.pose_stamps[0]) / SECOND:.1f} s after the first pose)"
            try:
                episode, beyond = _episode(bag, streams, self.options, (start, end), instruction, self.branch, self.say)
            except ConversionError as error:
                self.left_out.add(where, ConversionError(f"{where}: {error}"))
                continue
            after = intervals[number + 1][0] if number + 1 < len(intervals) else None
            self.clipped, self.total, self.worst = self.clipped + beyond, self.total + len(episode), max(self.worst, (beyond, where))
            yield where, replace(episode, success=_judgement(judgements, start, after))


def _judgements(bag: Bag, joints: str) -> list[tuple[int, bool]]:
    """Time (ns, on the clock of the headers) and value of every message on `success`, in the namespace of the joint states or in none.
    Others of that name are somebody else's."""
    found = bag.find(joints, ("sensor_msgs/JointState",), "joint states (--joints)")
    namespace = found.rpartition("/")[0].lstrip("/")
    wanted = {f"{namespace}/success".lstrip("/"), "success"}
    topics = [topic for topic, kind in bag.types.items() if topic.lstrip("/") in wanted and kind == "std_msgs/Bool" and bag.count(topic)]
    topic = max(topics, key=len, default="")
    pairs = [(received, bool(message.data)) for received, message in bag.messages(topic)] if topic else []
    times = bag.clock(np.array([received for received, _ in pairs], np.int64)) if pairs else ()
    return [(int(time), value) for time, (_, value) in zip(times, pairs, strict=True)]


def _judgement(judgements: Sequence[tuple[int, bool]], start: int, after: int | None) -> bool | None:
    """The last one from the beginning of an episode to that of the next; None where there is none."""
    values = [value for time, value in judgements if start <= time and (after is None or time < after)]
    return values[-1] if values else None


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
) -> LazyPictures:
    """Of each frame the picture with that number. Several may have been received at one time: their stamps differ."""

    def decode() -> Iterator[NDArray[np.uint8]]:
        wanted = Counter(int(stamps[number]) for number in index)  # frames that have this picture
        frame = 0
        for time, message in bag.messages(topic, int(received[index[0]]), int(received[index[-1]]) + 1):
            if not (frames := wanted.pop(bag.stamp(time, message), 0)):
                continue
            try:
                picture = picture_of(message, shorter_side)
            except ConversionError as error:
                raise ConversionError(f"frame {frame}: {topic} (stamp {stamp_of(message) / SECOND:.3f}): {error}") from error
            frame += frames
            yield from repeat(picture, frames)

    height, width = next(decode()).shape[:2]
    return LazyPictures(topic, len(index), (height, width), decode)
