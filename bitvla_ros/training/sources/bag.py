"""A rosbag2 (mcap or sqlite3), read without ROS: topics by name, messages with their stamps."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...policy.observation import are_units, unit_quaternions
from . import ConversionError
from .alignment import SECOND, Floats, Stamps

OWN_TYPES = ("EndEffectorCommand", "Task")
UNUSED_BYTES = 64  # at most, behind a message


class Bag:
    """Use as a context manager. path: the folder that `ros2 bag record` made, or a single .mcap or .db3 file. stamps: what says when a
    message was captured, its "header" or, for drivers that leave that empty, when it was "received". max_gap: s by which clocks may differ.

    Raises ConversionError for what cannot be read."""

    def __init__(self, path: Path, stamps: str = "header", max_gap: float = 0.15) -> None:
        from rosbags.rosbag2 import Reader, ReaderError

        self.path, self._by_reception, self._max_gap = path, stamps == "received", max_gap
        try:
            self._reader = Reader(path)
            self._reader.open()
        except (ReaderError, OSError) as error:
            hint = "`ros2 bag reindex` may mend a recording that was cut off"
            raise ConversionError(f"{path} is no readable rosbag2 ({error}); {hint}") from error
        self._store: Any = None
        self._received: Floats = np.zeros(1)
        self._stamps: Floats = np.zeros(1)
        self._base = self._origin = 0
        self._counts = {connection.topic: 0 for connection in self._reader.connections}
        for connection in self._reader.connections:
            self._counts[connection.topic] += connection.msgcount
        self.types = {connection.topic: connection.msgtype.replace("/msg/", "/") for connection in self._reader.connections}

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._reader.close()

    def find(self, name: str, types: Sequence[str], what: str, *, required: bool = True) -> str:
        """The topic called `name`, or the only one whose name ends with it. types: those it may have, as "sensor_msgs/Image".
        Empty where there is no such topic that holds messages, and it is not required."""
        full = "/" + name.lstrip("/")
        names = [topic for topic in self.types if topic == full] or [topic for topic in self.types if topic.endswith(full)]
        names = [topic for topic in names if self._counts[topic]]
        if len(names) > 1:
            raise self.error(f"{what}: several topics end with {name}: {', '.join(sorted(names))}; give the full name")
        if not names:
            if required:
                raise self.error(f"{what}: no messages of a topic {name}", listing=True)
            return ""
        if self.types[names[0]] not in types:
            if not required:
                return ""
            raise self.error(f"{what}: {names[0]} is {self.types[names[0]]}, expected {' or '.join(types)}", listing=True)
        return names[0]

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
        connections = [connection for connection in self._reader.connections if connection.topic == topic]
        kind = connections[0].msgtype
        count = 0
        try:
            for _, received, data in self._reader.messages(connections, start, stop):
                yield received, decode(data, kind)
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
        for connection in self._reader.connections:
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
    here = Path(__file__).resolve()
    places = [here.parents[3] / "msg", Path(sys.prefix) / "share/bitvla_ros/msg"]
    places += [parent / "share/bitvla_ros/msg" for parent in here.parents]
    for place in places:
        if (place / f"{name}.msg").is_file():
            return (place / f"{name}.msg").read_text()
    raise ConversionError(f"{name}.msg of bitvla_ros is not in {', '.join(map(str, places[:2]))}: install the package again")


def stamp_of(message: Any) -> int:
    """Header stamp, ns."""
    return int(message.header.stamp.sec) * SECOND + int(message.header.stamp.nanosec)


def pose_of(pose: Any) -> Floats:
    """geometry_msgs/Pose or Transform -> float64 [7], m and quaternion xyzw, as they stand there; see `Bag.unit_poses`."""
    position = pose.position if hasattr(pose, "position") else pose.translation
    rotation = pose.orientation if hasattr(pose, "orientation") else pose.rotation
    return np.array([position.x, position.y, position.z, rotation.x, rotation.y, rotation.z, rotation.w])


def bags_in(path: Path) -> list[Path]:
    """The bags at a path: itself, or those directly inside it, by name. Empty where there is none."""
    if path.suffix in (".mcap", ".db3") and path.is_file():
        return [path]
    if (path / "metadata.yaml").is_file():
        return [path]
    if not path.is_dir():
        return []
    inside = [child for child in sorted(path.iterdir()) if (child / "metadata.yaml").is_file()]
    return inside or [child for child in sorted(path.iterdir()) if child.suffix in (".mcap", ".db3")]
