"""A rosbag2 (mcap or sqlite3), read without ROS: topics by name, messages with their stamps."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...policy.observation import are_units, unit_quaternions
from ...share import share_folder
from . import ConversionError
from .alignment import SECOND, Floats, Stamps

OWN_TYPES = ("EndEffectorCommand", "Task")
METADATA = "metadata.yaml"
# As `ros2 bag record` names the parts of a recording; other tools name whole ones as they like.
RECORDING = re.compile(r"(?P<recording>.+?)(?:_(?P<part>0|[1-9][0-9]*))?\.(?:mcap|db3)(?:\.zstd)?")
PARTS_APART = 1.0  # s, between the last message of a part and the first of the next
_VIDEO = "packets of a video: let image_transport republish it as raw or compressed, and record that"
_JOINTS = "it does not say how the end effector moves: leave it out, and the measured motion is the action"
NEEDED = {  # what to do about a type that says too little
    "geometry_msgs/Twist": "it bears no time and no frame: record a TwistStamped that is sent beside it",
    "geometry_msgs/Pose": "it bears no time and no frame: record a PoseStamped that is sent beside it",
    "geometry_msgs/Transform": "it bears no time and no frame: record a PoseStamped, or TF (--tf BASE TIP)",
    "geometry_msgs/TransformStamped": "record a PoseStamped, or TF (--tf BASE TIP)",
    "std_msgs/Float64MultiArray": f"its numbers bear no time and no names; {_JOINTS}",
    "trajectory_msgs/JointTrajectory": _JOINTS,
    "sensor_msgs/PointCloud2": "the policy sees pictures",
    "ffmpeg_image_transport_msgs/FFMPEGPacket": _VIDEO,
    "foxglove_msgs/CompressedVideo": _VIDEO,
}
UNUSED_BYTES = 64  # at most, behind a message


class Bag:
    """Use as a context manager. path: the folder that `ros2 bag record` made, or a single .mcap or .db3 file. stamps: what says when a
    message was captured, its "header" or, for drivers that leave that empty, when it was "received". max_gap: s by which clocks may differ.

    Raises ConversionError for what cannot be read."""

    def __init__(self, path: Path, stamps: str = "header", max_gap: float = 0.15) -> None:
        self.path, self._by_reception, self._max_gap = path, stamps == "received", max_gap
        self._readers = _opened(_parts(path))
        self._connections = [connection for reader in self._readers for connection in reader.connections]
        self._store: Any = None
        self._received: Floats = np.zeros(1)
        self._stamps: Floats = np.zeros(1)
        self._base = self._origin = 0
        self._counts = {connection.topic: 0 for connection in self._connections}
        for connection in self._connections:
            self._counts[connection.topic] += connection.msgcount
        self.types = {connection.topic: connection.msgtype.replace("/msg/", "/") for connection in self._connections}

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for reader in self._readers:
            reader.close()

    def find(self, name: str, types: Sequence[str], what: str, *, required: bool = True) -> str:
        """The topic called `name`, or the only one whose name ends with it. types: those it may have, as "sensor_msgs/Image".
        Where it is not required, empty for none that holds messages, and for one of a type that has nothing to do with it."""
        full = _absolute(name)
        names = [topic for topic in self.types if _absolute(topic) == full] or [
            topic for topic in self.types if _absolute(topic).endswith(full)
        ]
        names = [topic for topic in names if self._counts[topic]]
        if len(names) > 1:
            raise self.error(f"{what}: several topics end with {name}: {', '.join(sorted(names))}; give the full name")
        if names and self.types[names[0]] not in types:
            kind = self.types[names[0]]
            if not required and kind not in NEEDED:  # something else of the same name
                return ""
            hint = f" ({NEEDED[kind]})" if kind in NEEDED else ""
            raise self.error(f"{what}: {names[0]} is {kind}, expected {' or '.join(types)}{hint}", listing=True)
        if not names and required:
            raise self.error(f"{what}: no messages of a topic {name}", listing=True)
        return names[0] if names else ""

    def error(self, message: str, *, listing: bool = False) -> ConversionError:
        """listing: add what the bag holds."""
        if listing:
            width = max(map(len, self.types), default=0)
            rows = [f"  {topic:{width}}  {kind}  {self._counts[topic]} messages" for topic, kind in sorted(self.types.items())]
            message += "\nThe bag has:\n" + "\n".join(rows or ["  nothing"])
        return ConversionError(f"{self.path}: {message}")

    def count(self, topic: str) -> int:
        return self._counts[topic]

    def set_clock(self, received: Stamps, stamps: Stamps) -> None:
        """From here on `clock` goes by a stream whose messages bear these stamps. Under a slow /clock many are received at one time: their
        mean counts."""
        self._base, self._origin = int(received[0]), int(stamps[0])
        times, index, counts = np.unique(received - self._base, return_inverse=True, return_counts=True)
        self._received = times.astype(np.float64)
        self._stamps = np.bincount(index, weights=(stamps - self._origin).astype(np.float64)) / counts

    def clock(self, received: Stamps) -> Stamps:
        """Times of reception -> the headers' time, for messages that have no header. Bags of a simulation may be received in wall time
        and stamped in simulated time; a bag's own stamped stream tells how the two go together."""
        mapped = np.interp((received - self._base).astype(np.float64), self._received, self._stamps)
        return np.asarray(np.round(mapped), np.int64) + self._origin

    def messages(self, topic: str, start: int | None = None, stop: int | None = None) -> Iterator[tuple[int, Any]]:
        """Time of reception (ns) and message, in the order of reception. start, stop: between these times of reception."""
        from rosbags.rosbag2 import ReaderError
        from rosbags.serde import SerdeError

        decode = self._decoder()
        count = 0
        try:
            for reader in self._readers:
                connections = [connection for connection in reader.connections if connection.topic == topic]
                for connection, received, data in reader.messages(connections, start, stop) if connections else ():
                    yield received, decode(data, connection.msgtype)
                    count += 1
        except (ReaderError, SerdeError, OSError, LookupError, ValueError, AssertionError, struct.error) as error:
            if isinstance(error, ConversionError):
                raise
            raise self.error(f"{topic}, message {count}: it does not decode ({error or type(error).__name__})") from error

    def stamp(self, received: int, message: Any) -> int:
        """When a message, or a transform of one, was captured, ns."""
        return received if self._by_reception else stamp_of(message)

    def stamped(self, topic: str, value: Callable[[Any], Any]) -> tuple[Stamps, Floats, list[Any]]:
        """Stamps (increasing), values [N, ...] and messages of a topic. value: of a message, numbers. Of messages that say the same twice
        the last is kept. Raises ConversionError, as `check_stamps` and `check_clock` do."""
        pairs = list(self.messages(topic))
        stamps = np.array([self.stamp(*pair) for pair in pairs], np.int64)
        values = np.array([value(message) for _, message in pairs], np.float64)
        kept = self.check_stamps(topic, stamps, values)
        self.check_clock(topic, np.array([received for received, _ in pairs], np.int64)[kept], stamps[kept])
        return stamps[kept], values[kept], [pairs[i][1] for i in kept]

    def check_stamps(self, topic: str, stamps: Stamps, values: NDArray[Any]) -> NDArray[np.intp]:
        """Indices of what to keep. values: [N, ...]. Raises ConversionError for stamps that are zero or go back, and for different values
        at one stamp."""
        if (stamps <= 0).any():
            at = int(np.argmax(stamps <= 0))
            raise self.error(
                f"{topic}, message {at}: its stamp is zero; its driver must fill in the time of capture. To go by the times of reception, "
                "give --stamps received"
            )
        back = np.flatnonzero(np.diff(stamps) < 0)
        if len(back):
            at = int(back[0]) + 1
            before = (stamps[at - 1] - stamps[at]) / SECOND
            raise self.error(
                f"{topic}, message {at}: its stamp {stamps[at] / SECOND:.3f} is {before:.3f} s before that of the message ahead of it; "
                "expected stamps that grow. Is there a second publisher?"
            )
        differs = np.any(values[1:] != values[:-1], axis=tuple(range(1, values.ndim)))
        twice = np.flatnonzero((np.diff(stamps) == 0) & differs)
        if len(twice) and not self._by_reception:
            at = int(twice[0]) + 1
            raise self.error(
                f"{topic}, message {at}: its stamp {stamps[at] / SECOND:.3f} is that of the message ahead of it, its value another; "
                "expected one value at a time. Is there a second publisher? Record without it"
            )
        return np.flatnonzero(np.append(np.diff(stamps) > 0, True)) if len(stamps) else np.empty(0, np.intp)

    def check_clock(self, topic: str, received: Stamps, stamps: Stamps) -> None:
        """Raises ConversionError where the topic's stamps are of another clock than those of the stream that `set_clock` was given."""
        meanwhile = (received >= self._base) & (received <= self._base + self._received[-1])
        if not meanwhile.any():
            return
        apart = float(np.median(self.clock(received[meanwhile]) - stamps[meanwhile])) / SECOND
        if abs(apart) > self._max_gap:
            raise self.error(
                f"{topic}: its stamps are {abs(apart):.3f} s {'behind' if apart > 0 else 'ahead of'} those of the joint states that came "
                f"at the same time; at most {self._max_gap:g} s are accepted (--max-gap). Synchronise the clocks that stamp (chrony, PTP), "
                "record again, or give --stamps received where all streams take equally long"
            )

    def unit_poses(self, what: str, stamps: Stamps, poses: Floats) -> Floats:
        """Poses [N, 7] with quaternions of length 1. Raises ConversionError for what is no pose."""
        wrong = np.flatnonzero(~(np.isfinite(poses).all(axis=1) & are_units(poses[:, 3:])))
        if len(wrong):
            at = int(wrong[0])
            raise self.error(f"{what} {at} (stamp {stamps[at] / SECOND:.3f}) is {poses[at]}; expected finite numbers and a unit quaternion")
        return np.concatenate([poses[:, :3], unit_quaternions(poses[:, 3:])], axis=1)

    def _decoder(self) -> Callable[[bytes, str], Any]:
        """CDR bytes and type -> message. Raises SerdeError."""
        from rosbags.serde import SerdeError

        store = self._typestore()

        def decode(data: bytes, kind: str) -> Any:
            try:
                return store.deserialize_cdr(data, kind)
            except (SerdeError, AssertionError):  # 0.11.0 asserts
                # What rclpy and rclcpp serialise by themselves, as rosbag2's writers do, may end with unused bytes.
                definition = store.get_msgdef(kind)
                read = definition.deserialize_cdr_le if data[1] else definition.deserialize_cdr_be
                message, length = read(data[4:], 0, definition.cls, store)
                if len(data) - 4 - length > UNUSED_BYTES:
                    raise
                return message

        return decode

    def _typestore(self) -> Any:
        """Types as the bag itself defines them; where it does not (sqlite3 before Iron), those of Humble and our own."""
        if self._store is not None:
            return self._store
        from rosbags.interfaces import MessageDefinitionFormat
        from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

        types = dict(get_typestore(Stores.ROS2_HUMBLE).fielddefs)
        defined = set()
        for connection in self._connections:
            if connection.msgdef.format == MessageDefinitionFormat.MSG:
                try:
                    types.update(get_types_from_msg(connection.msgdef.data, connection.msgtype))
                except TypesysError:  # of a topic that nobody may ask for; if somebody does, decoding says so
                    continue
                defined.add(connection.msgtype)
        for name in OWN_TYPES:
            if f"bitvla_ros/msg/{name}" not in defined:
                types.update(get_types_from_msg(_own_definition(name), f"bitvla_ros/msg/{name}"))
        self._store = get_typestore(Stores.EMPTY)
        self._store.register(types)
        return self._store


def _own_definition(name: str) -> str:
    """Of our own message: from the source tree, or from share/ of where the package is installed."""
    try:
        return (share_folder("msg") / f"{name}.msg").read_text()
    except OSError as error:
        raise ConversionError(str(error)) from error


def stamp_of(message: Any) -> int:
    """Header stamp, ns."""
    return int(message.header.stamp.sec) * SECOND + int(message.header.stamp.nanosec)


def pose_of(pose: Any) -> Floats:
    """geometry_msgs/Pose or Transform -> float64 [7], m and quaternion xyzw, as they stand there; see `Bag.unit_poses`."""
    position = pose.position if hasattr(pose, "position") else pose.translation
    rotation = pose.orientation if hasattr(pose, "orientation") else pose.rotation
    return np.array([position.x, position.y, position.z, rotation.x, rotation.y, rotation.z, rotation.w])


def bags_in(path: Path) -> list[Path]:
    """The bags at a path: itself, or those inside it, by name. Empty where there is none. A folder without metadata.yaml that holds the
    parts of one recording, as `ros2 bag record` splits and names them, is a bag. Raises ConversionError where parts are missing."""
    if path.is_file():
        return [path] if RECORDING.fullmatch(path.name) else []
    if not path.is_dir():
        return []
    if (path / METADATA).is_file():
        return [path]
    parts = recordings_in(path)
    split = [name for name, numbered in parts.items() if sorted(numbered) == list(range(len(numbered))) and len(numbered) > 1]
    own = parts.get(path.name, {})  # of a folder that `ros2 bag record` made
    if sorted(own) != list(range(len(own))) and -1 not in own:
        there = ", ".join(map(str, sorted(own)))
        raise ConversionError(f"{path} has the parts {there} of a recording: expected all from 0 on; find the others")
    if len(parts) == 1 and (split or own):
        return [path]
    if split:
        raise ConversionError(f"{path} holds the parts of {', '.join(split)} beside others: put each recording into a folder of its own")
    folders = [child for child in path.iterdir() if child.is_dir() and ((child / METADATA).is_file() or recordings_in(child))]
    files = [file for numbered in parts.values() for file in numbered.values()]
    return sorted([*files, *(bag for child in folders for bag in bags_in(child))])


def recordings_in(folder: Path) -> dict[str, dict[int, Path]]:
    """The .mcap and .db3 files directly in it: name of the recording -> number of the part, -1 of a whole one -> file."""
    found: dict[str, dict[int, Path]] = {}
    for child in sorted(folder.iterdir()):
        if child.is_file() and (match := RECORDING.fullmatch(child.name)):
            name = match["recording"] if match["part"] else child.name
            found.setdefault(name, {})[int(match["part"] or -1)] = child
    return found


def _parts(bag: Path) -> list[Path]:
    """What rosbags is to open, in order."""
    if bag.is_file() or (bag / METADATA).is_file():
        return [bag]
    return [file for files in recordings_in(bag).values() for _, file in sorted(files.items())]


def _opened(paths: Sequence[Path]) -> list[Any]:
    """A reader of each part of a recording. Raises ConversionError for what cannot be read, and for parts that do not follow each other."""
    from rosbags.rosbag2 import Reader, ReaderError

    readers: list[Any] = []
    for path in paths:
        try:
            reader = Reader(path)
            reader.open()
        except (ReaderError, OSError, LookupError, ValueError, AssertionError, struct.error) as error:
            hint = "`mcap recover` mends an .mcap that was cut off, `ros2 bag reindex` a bag without metadata.yaml, `zstd -d` unpacks .zstd"
            raise ConversionError(f"{path} is no readable rosbag2 ({error or type(error).__name__}); {hint}") from error
        apart = (reader.start_time - readers[-1].end_time) / SECOND if readers else 0.0
        if abs(apart) > PARTS_APART:
            raise ConversionError(
                f"{path} begins {apart:.1f} s after the part before it ends: expected parts of one recording; give recordings one by one"
            )
        readers.append(reader)
    return readers


def _absolute(topic: str) -> str:
    """Other tools record names without the slash."""
    return "/" + topic.lstrip("/")
