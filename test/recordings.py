"""Recordings of known motions, as a roboticist would make them, for the tests of `bitvla convert`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BEGIN = 1_700_000_000 * 10**9  # ns
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")
MESSAGE = {  # topic -> type
    "/camera/scene/image_raw": "sensor_msgs/msg/Image",
    "/camera/wrist/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/end_effector_pose": "geometry_msgs/msg/PoseStamped",
    "/instruction": "std_msgs/msg/String",
}
HEIGHT, WIDTH = 12, 16


def position(t: float) -> NDArray[np.float64]:
    """m, at t s; slower than 0.2 m/s."""
    return np.array([0.4 + 0.05 * np.sin(t), 0.08 * np.cos(0.7 * t), 0.2 + 0.02 * t])


def quaternion(t: float) -> NDArray[np.float64]:
    """xyzw: looking down, turning about the vertical axis."""
    angle = 0.4 * np.sin(t)
    return np.array([np.cos(angle / 2), np.sin(angle / 2), 0.0, 0.0])


def opening(t: float) -> float:
    """m: closes on an object of 3 cm from 0.8 s to 1 s."""
    return float(np.interp(t, [0.8, 1.0], [0.08, 0.03]))


def picture(number: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], of which `number_of` finds the number again; not symmetric."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0], image[..., 1] = number % 256, number // 256
    image[0, 0, 2] = 255
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    return int(image[5, 5, 0]) + 256 * int(image[5, 5, 1])


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def typestore() -> Any:
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name in ("EndEffectorCommand", "Task"):
        store.register(get_types_from_msg((ROOT / f"msg/{name}.msg").read_text(), f"bitvla_ros/msg/{name}"))
    return store


class Messages:
    """Makes messages of the store's types. Times are s after BEGIN."""

    def __init__(self) -> None:
        self.store = typestore()

    def make(self, kind: str, /, **fields: Any) -> Any:
        return self.store.types[kind](**fields)

    def time(self, t: float) -> Any:
        ns = BEGIN + round(t * 1e9)
        return self.make("builtin_interfaces/msg/Time", sec=ns // 10**9, nanosec=ns % 10**9)

    def header(self, t: float, frame: str = "base") -> Any:
        return self.make("std_msgs/msg/Header", stamp=self.time(t), frame_id=frame)

    def vector(self, values: Iterable[float], kind: str = "Vector3") -> Any:
        x, y, z = map(float, values)
        return self.make(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)

    def rotation(self, values: Iterable[float]) -> Any:
        x, y, z, w = map(float, values)
        return self.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)

    def pose(self, t: float, place: Iterable[float], turn: Iterable[float], frame: str = "base") -> Any:
        pose = self.make("geometry_msgs/msg/Pose", position=self.vector(place, "Point"), orientation=self.rotation(turn))
        return self.make("geometry_msgs/msg/PoseStamped", header=self.header(t, frame), pose=pose)

    def twist(self, t: float, linear: Iterable[float], angular: Iterable[float], frame: str = "base") -> Any:
        twist = self.make("geometry_msgs/msg/Twist", linear=self.vector(linear), angular=self.vector(angular))
        return self.make("geometry_msgs/msg/TwistStamped", header=self.header(t, frame), twist=twist)

    def joints(self, t: float, names: Iterable[str], positions: Iterable[float]) -> Any:
        none = np.empty(0)
        values = np.array(list(positions), np.float64)
        return self.make("sensor_msgs/msg/JointState", header=self.header(t), name=list(names), position=values, velocity=none, effort=none)

    def image(self, t: float, number: int, encoding: str = "rgb8") -> Any:
        data = picture(number)
        if encoding == "bgr8":
            data = data[..., ::-1]
        return self.make(
            "sensor_msgs/msg/Image",
            header=self.header(t, "camera"),
            height=HEIGHT,
            width=WIDTH,
            encoding=encoding,
            is_bigendian=0,
            step=3 * WIDTH,
            data=np.ascontiguousarray(data).reshape(-1),
        )

    def compressed(self, t: float, number: int) -> Any:
        data = np.frombuffer(png(picture(number)), np.uint8)
        return self.make("sensor_msgs/msg/CompressedImage", header=self.header(t, "camera"), format="png", data=data)

    def command(self, t: float, offset: Iterable[float], gripper: float, *, hold: bool = False, frame: str = "base") -> Any:
        values = np.array(list(offset), np.float32)
        return self.make(
            "bitvla_ros/msg/EndEffectorCommand", header=self.header(t, frame), tick=0, epoch=1, hold=hold, offset=values, gripper=gripper
        )

    def task(self, t: float, *, active: bool, instruction: str) -> Any:
        zero = self.make("builtin_interfaces/msg/Duration", sec=0, nanosec=0)
        return self.make(
            "bitvla_ros/msg/Task",
            header=self.header(t),
            epoch=1,
            active=active,
            instruction=instruction,
            replan_interval=zero,
            lockstep=False,
        )

    def data(self, kind: str, value: Any) -> Any:
        return self.make(f"std_msgs/msg/{kind}", data=value)

    def transform(self, t: float, parent: str, child: str, place: Iterable[float], turn: Iterable[float]) -> Any:
        transform = self.make("geometry_msgs/msg/Transform", translation=self.vector(place), rotation=self.rotation(turn))
        return self.make("geometry_msgs/msg/TransformStamped", header=self.header(t, parent), child_frame_id=child, transform=transform)


Stream = list[tuple[float, Any]]  # time of reception, s after BEGIN, and message


def standard(
    m: Messages, seconds: float = 3.0, jitter: Callable[[str, NDArray[np.float64]], NDArray[np.float64]] | None = None
) -> dict[str, Stream]:
    """Two cameras at 30 Hz, joints at 50 Hz, poses at 100 Hz, an instruction. jitter: topic and regular times -> real ones."""
    jitter = jitter or (lambda topic, times: times)

    def times(topic: str, hz: float) -> Iterable[tuple[int, float]]:
        return enumerate(jitter(topic, np.arange(0.0, seconds + 1e-9, 1 / hz)).tolist())

    return {
        "/camera/scene/image_raw": [(t, m.image(t, i)) for i, t in times("/camera/scene/image_raw", 30)],
        "/camera/wrist/image_raw/compressed": [(t, m.compressed(t, i)) for i, t in times("/camera/wrist/image_raw/compressed", 30)],
        "/joint_states": [
            (t, m.joints(t, ["panda_joint1", *FINGERS], [0.1, opening(t) / 2, -opening(t) / 2])) for _, t in times("/joint_states", 50)
        ],
        "/end_effector_pose": [(t, m.pose(t, position(t), quaternion(t))) for _, t in times("/end_effector_pose", 100)],
        "/instruction": [(0.0, m.data("String", "Pick up the red block"))],
    }


def write_bag(
    path: Path, m: Messages, streams: Mapping[str, Stream], storage: str = "mcap", *, late: float = 0.002, slowness: float = 1.0
) -> Path:
    """late: s from stamp to reception. slowness: seconds of reception that a second of the stamps takes."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        rows = []
        for topic, stream in streams.items():
            kind = stream[0][1].__msgtype__
            connection = writer.add_connection(topic, kind, typestore=m.store)
            rows += [(t, connection, m.store.serialize_cdr(message, kind)) for t, message in stream]
        for t, connection, data in sorted(rows, key=lambda row: row[0]):
            writer.write(connection, BEGIN + round((t * slowness + late) * 1e9), data)
    return path
