"""Between messages and the core's objects. Only here does a stamp become nanoseconds or an Image become an array."""

from __future__ import annotations

import importlib
import re
import time
from array import array
from collections.abc import Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from numpy.typing import ArrayLike, NDArray
from rclpy.clock import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from bitvla_ros.action_convention import ActionConvention
from bitvla_ros.control.command import Command
from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import EndEffectorCommand, SimulationState
from bitvla_ros.policy.chunk import OSC_POSE, ActionChunk, Latency
from bitvla_ros.policy.images import ENCODINGS, ImageError, decoded, rgb
from bitvla_ros.policy.observation import Privileged

SECOND = 1_000_000_000
_TOGETHER = 100_000  # ns


class ChunkError(ValueError):
    """An ActionChunk message that contradicts itself."""


# ---- time


def stamp_to_ns(stamp: Time) -> int:
    return int(stamp.sec) * SECOND + int(stamp.nanosec)


def ns_to_stamp(ns: int) -> Time:
    return Time(sec=int(ns // SECOND), nanosec=int(ns % SECOND))


def duration_to_ns(duration: Duration) -> int:
    return int(duration.sec) * SECOND + int(duration.nanosec)


def ns_to_duration(ns: int) -> Duration:
    return Duration(sec=int(ns // SECOND), nanosec=int(ns % SECOND))


def moment(clock: Clock) -> tuple[int, int]:
    """Now, in ROS time and on the steady clock, ns. On a full machine the process may have to wait between the two readings, tens of
    milliseconds have been seen: then they are taken again, so that what is stamped with the one fits what was computed for the other."""
    for _ in range(5):
        before = time.monotonic_ns()
        now = clock.now().nanoseconds
        steady = time.monotonic_ns()
        if steady - before < _TOGETHER:
            break
    return now, steady


# ---- images


def image_to_msg(image: NDArray[np.uint8], stamp: int, frame: str) -> Image:
    """uint8 [H, W, 3] RGB -> Image, rgb8. stamp: nanoseconds."""
    height, width, _ = image.shape
    message = Image(header=_header(stamp, frame), height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = array("B", np.ascontiguousarray(image).tobytes())  # of the types accepted here only array.array is fast
    return message


def image_from_msg(message: Image | CompressedImage) -> NDArray[np.uint8]:
    """Image or CompressedImage -> uint8 [H, W, 3], RGB. rgb8 is a view of the message, not a copy.

    Encodings that are not decoded here go to cv_bridge where it is installed. Raises ImageError.
    """
    if isinstance(message, CompressedImage):
        return decoded(message.data, message.format)
    if message.encoding not in ENCODINGS:
        return _through_cv_bridge(message)
    return rgb(message.encoding, message.height, message.width, message.step, message.data)


def _through_cv_bridge(message: Image) -> NDArray[np.uint8]:
    known = ", ".join(ENCODINGS)
    if re.fullmatch(r"(8|16|32|64)[USF]C\d+", message.encoding):
        raise ImageError("encoding", f"{message.encoding!r} does not say which channel is red: expected {known}")
    try:
        bridge = importlib.import_module("cv_bridge").CvBridge()
    except (ImportError, AttributeError):
        raise ImageError("encoding", f"{message.encoding!r}: expected {known} (cv_bridge, from ROS, would add others)") from None
    try:
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"), np.uint8)
    except Exception as error:  # CvBridgeError, or whatever OpenCV throws through it
        raise ImageError("encoding", f"{message.encoding!r}: expected {known} or what cv_bridge turns into rgb8 ({error})") from error


# ---- poses and joints


def pose_to_msg(position: ArrayLike, quaternion: ArrayLike, stamp: int, frame: str) -> PoseStamped:
    """position: [3], m. quaternion: [4] xyzw. stamp: nanoseconds."""
    return PoseStamped(header=_header(stamp, frame), pose=_pose(position, quaternion))


def pose_from_msg(message: PoseStamped | Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """-> position float64 [3], m, and quaternion float64 [4] xyzw, as they stand in the message."""
    pose = message.pose if isinstance(message, PoseStamped) else message
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])


def joint_state_to_msg(names: Sequence[str], positions: ArrayLike, stamp: int, frame: str = "") -> JointState:
    """positions: [n], rad or m, in the order of names. stamp: nanoseconds."""
    return JointState(header=_header(stamp, frame), name=list(names), position=array("d", np.asarray(positions, np.float64)))


# ---- the simulator's truth


def privileged_from_msg(message: SimulationState) -> Privileged:
    poses = {name: np.concatenate(pose_from_msg(pose)) for name, pose in zip(message.object_names, message.object_poses, strict=True)}
    return Privileged(object_poses=poses, success=bool(message.success))


def poses_to_msg(object_poses: Mapping[str, NDArray[np.float64]]) -> tuple[list[str], list[Pose]]:
    """name -> [7], position and quaternion xyzw, as Privileged has them -> object_names and object_poses."""
    return list(object_poses), [_pose(pose[:3], pose[3:]) for pose in object_poses.values()]


# ---- chunks


def chunk_to_msg(chunk: ActionChunk, stamp: int) -> ActionChunkMsg:
    """stamp: time of publishing, nanoseconds."""
    actions = np.ascontiguousarray(chunk.actions, np.float32)
    return ActionChunkMsg(
        header=_header(stamp, chunk.frame),
        observation_stamp=ns_to_stamp(chunk.observation_stamp),
        step_duration=ns_to_duration(chunk.step_duration),
        control_mode=chunk.control_mode,
        horizon=actions.shape[0],
        action_dimension=actions.shape[1],
        actions=array("f", actions.tobytes()),
        sequence=chunk.sequence,
        epoch=chunk.epoch,
        instruction=chunk.instruction,
        model_hash=chunk.model_hash,
        metres_per_unit=chunk.units.metres_per_unit or 0.0,
        radians_per_unit=chunk.units.radians_per_unit or 0.0,
        preprocessing_latency=ns_to_duration(round(chunk.latency.preprocessing * SECOND)),
        inference_latency=ns_to_duration(round(chunk.latency.inference * SECOND)),
        total_latency=ns_to_duration(round(chunk.latency.total * SECOND)),
    )


def chunk_from_msg(message: ActionChunkMsg) -> ActionChunk:
    """The chunk with its own copy of the actions. Raises ChunkError where the message contradicts itself.

    Whether the chunk is finite, fresh and for this task is the player's business.
    """
    horizon, dimension = int(message.horizon), int(message.action_dimension)
    if horizon == 0 or dimension == 0 or len(message.actions) != horizon * dimension:
        raise ChunkError(f"{len(message.actions)} numbers for {horizon} actions of {dimension}: expected horizon * action_dimension, not 0")
    if message.control_mode != OSC_POSE:
        raise ChunkError(f"control mode {message.control_mode!r}: expected {OSC_POSE!r}")
    if duration_to_ns(message.step_duration) <= 0:
        raise ChunkError(f"step duration {duration_to_ns(message.step_duration)} ns: expected more than 0")
    try:
        units = ActionConvention(message.metres_per_unit or None, message.radians_per_unit or None)
    except ValueError as error:
        raise ChunkError(f"{error}, or 0") from error
    latency = (message.preprocessing_latency, message.inference_latency, message.total_latency)
    return ActionChunk(
        actions=np.array(message.actions, np.float32).reshape(horizon, dimension),
        observation_stamp=stamp_to_ns(message.observation_stamp),
        step_duration=duration_to_ns(message.step_duration),
        frame=message.header.frame_id,
        control_mode=message.control_mode,
        sequence=int(message.sequence),
        epoch=int(message.epoch),
        instruction=message.instruction,
        model_hash=message.model_hash,
        units=units,
        latency=Latency(*(duration_to_ns(part) / SECOND for part in latency)),
    )


# ---- commands


def command_to_msg(command: Command, stamp: int, frame: str, tick: int = 0) -> EndEffectorCommand:
    """stamp: nanoseconds. tick: in lockstep, the one that the command answers."""
    return EndEffectorCommand(
        header=_header(stamp, frame),
        tick=tick,
        epoch=command.epoch,
        hold=command.hold,
        offset=np.array(command.action[:6], np.float32),
        gripper=float(command.action[6]),
    )


def _header(stamp: int, frame: str) -> Header:
    return Header(stamp=ns_to_stamp(stamp), frame_id=frame)


def _pose(position: ArrayLike, quaternion: ArrayLike) -> Pose:
    px, py, pz = (float(v) for v in np.asarray(position, np.float64))
    x, y, z, w = (float(v) for v in np.asarray(quaternion, np.float64))
    return Pose(position=Point(x=px, y=py, z=pz), orientation=Quaternion(x=x, y=y, z=z, w=w))
