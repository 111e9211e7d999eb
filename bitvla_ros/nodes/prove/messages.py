"""Messages as no well-meaning node would send them, drawn from a seed. Each holds only what its types allow: more cannot come over DDS."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Pose, PoseStamped
from numpy.typing import ArrayLike
from sensor_msgs.msg import CompressedImage, Image, JointState

from bitvla_ros.msg import ActionChunk, SimulationState, Task
from bitvla_ros.policy.chunk import ActionChunk as Chunk

from ..conversions import chunk_to_msg, image_to_msg, joint_state_to_msg, ns_to_duration, ns_to_stamp, pose_to_msg

STEP = 50_000_000
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")
WORDS = ("", " ", "put it there", "\x00", "ß" * 500, "🤖", "osc_pose", "robot_base", "rgb8", "bgr8", "8UC3", "16UC1", "yuv422", "mono8")
ODD = (0.0, -0.0, 1.0, -1.0, 1.0001, -1.0001, 1e-45, 3.4e38, -3.4e38, np.nan, np.inf, -np.inf)
SIZES = (0, 1, 2, 6, 7, 8, 55, 56, 57, 255, 2**16, 2**31, 2**32 - 1)


class Messages:
    """Draws messages: most are as they should be, a share `spoiled` has a field or two that is not. So what is wrong is met deep inside."""

    def __init__(self, random: np.random.Generator, spoiled: float = 0.25) -> None:
        self.random, self._spoiled = random, spoiled
        self._image = random.integers(0, 256, (8, 8, 3), np.uint8)

    # Values

    def one(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def word(self) -> str:
        return str(self.one(WORDS))

    def number(self) -> float:
        if self.random.random() < 0.5:
            return float(self.one(ODD))
        return float(self.random.integers(0, 2**32, dtype=np.uint32).view(np.float32))  # any bits that a float32 can have

    def size(self) -> int:
        return int(self.one(SIZES))

    def stamp(self, now: int) -> Time:
        """Now and then an hour off, or no time at all: nanosec is a whole uint32."""
        kind = int(self.random.integers(4))
        if kind == 0:
            return Time(sec=int(self.one((0, 1, -1, -(2**31), 2**31 - 1))), nanosec=int(self.one((0, 1, 10**9, 2**32 - 1))))
        return ns_to_stamp(max(0, now + int(self.random.integers(-(10**9), 10**9) * (3600 if kind == 1 else 1))))

    def duration(self) -> Duration:
        return Duration(sec=int(self.one((0, 0, -1, 2**31 - 1, -(2**31)))), nanosec=int(self.one((0, 1, STEP, 10**9, 2**32 - 1))))

    def _spoil(self, message: Any, mutations: Sequence[Callable[[Any], None]]) -> Any:
        if self.random.random() < self._spoiled:
            for _ in range(int(self.random.integers(1, 3))):
                self.one(mutations)(message)
        return message

    # Messages

    def chunk(self, now: int, epoch: int) -> ActionChunk:
        """An ActionChunk for an observation of a moment ago."""
        actions = self.random.uniform(-1, 1, (8, 7)).astype(np.float32)
        observed = now - int(self.random.integers(0, 2 * STEP))
        message = chunk_to_msg(Chunk(actions, observed, STEP, frame="robot_base", epoch=epoch), now)

        def actions_of(length: int) -> Callable[[ActionChunk], None]:
            return lambda m: setattr(m, "actions", array("f", [self.number() for _ in range(length)]))

        def number_in(m: ActionChunk) -> None:
            """The same odd number in one component of every action from some row on."""
            odd = self.number()
            for index in range(int(self.random.integers(56)), len(m.actions), 7):
                m.actions[index] = odd

        def set_(name: str, draw: Callable[[], Any]) -> Callable[[ActionChunk], None]:
            return lambda m: setattr(m, name, draw())

        return self._spoil(
            message,
            (
                number_in,
                number_in,
                actions_of(int(self.random.integers(0, 80))),
                set_("horizon", self.size),
                set_("action_dimension", self.size),
                set_("observation_stamp", lambda: self.stamp(now)),
                set_("step_duration", self.duration),
                set_("control_mode", self.word),
                set_("epoch", lambda: int(self.one((0, max(0, epoch - 1), epoch + 1, 2**64 - 1)))),
                set_("total_latency", self.duration),
                set_("instruction", self.word),
                lambda m: setattr(m.header, "frame_id", self.word()),
            ),
        )

    def pose(self, now: int, position: ArrayLike = (0.4, 0.0, 0.3)) -> PoseStamped:
        message = pose_to_msg(position, (1.0, 0.0, 0.0, 0.0), now, "robot_base")
        return self._spoil(message, (lambda m: self._bend(m.pose), lambda m: setattr(m.header, "stamp", self.stamp(now))))

    def _bend(self, pose: Pose) -> None:
        part, axis = (pose.position, self.one("xyz")) if self.random.random() < 0.5 else (pose.orientation, self.one("xyzw"))
        setattr(part, axis, self.number())

    def joints(self, now: int) -> JointState:
        message = joint_state_to_msg(("panda_joint1", *FINGERS), (0.3, 0.02, -0.02), now)
        return self._spoil(
            message,
            (
                lambda m: setattr(m, "name", [str(self.one((*FINGERS, "", "panda_joint1"))) for _ in range(int(self.random.integers(5)))]),
                lambda m: setattr(m, "position", array("d", [self.number() for _ in range(int(self.random.integers(5)))])),
                lambda m: setattr(m.header, "stamp", self.stamp(now)),
            ),
        )

    def image(self, now: int) -> Image:
        self._image = self._image + np.uint8(1)  # another picture every time
        return self._spoil(
            image_to_msg(self._image, now, "camera"),
            (
                lambda m: setattr(m, "height", self.size()),
                lambda m: setattr(m, "width", self.size()),
                lambda m: setattr(m, "step", self.size()),
                lambda m: setattr(m, "encoding", self.word()),
                lambda m: setattr(m, "data", m.data[: int(self.random.integers(0, 200))]),
                lambda m: setattr(m, "is_bigendian", int(self.random.integers(256))),
                lambda m: setattr(m.header, "stamp", self.stamp(now)),
            ),
        )

    def compressed(self, now: int, jpeg: bytes) -> CompressedImage:
        """jpeg: a good one."""
        message = CompressedImage(format="jpeg", data=array("B", jpeg))
        message.header.stamp = ns_to_stamp(now)

        def flip(m: CompressedImage) -> None:
            if len(m.data):
                m.data[int(self.random.integers(len(m.data)))] = int(self.random.integers(256))

        return self._spoil(
            message,
            (
                flip,
                lambda m: setattr(m, "data", m.data[: int(self.random.integers(0, len(jpeg)))]),
                lambda m: setattr(m, "format", self.word()),
                lambda m: setattr(m.header, "stamp", self.stamp(now)),
            ),
        )

    def truth(self, now: int) -> SimulationState:
        message = SimulationState(object_names=["block"], object_poses=[Pose()])
        message.header.stamp = ns_to_stamp(now)
        return self._spoil(
            message,
            (
                lambda m: setattr(m, "object_names", [self.word() for _ in range(int(self.random.integers(4)))]),
                lambda m: setattr(m, "object_poses", [Pose() for _ in range(int(self.random.integers(4)))]),
                lambda m: self._bend(m.object_poses[0]) if m.object_poses else None,
                lambda m: setattr(m.header, "stamp", self.stamp(now)),
            ),
        )

    def task(self, now: int, epoch: int) -> Task:
        message = Task(epoch=epoch, active=True, instruction="lift the block", replan_interval=ns_to_duration(0))
        message.header.stamp = ns_to_stamp(now)
        return self._spoil(
            message,
            (
                lambda m: setattr(m, "instruction", self.word()),
                lambda m: setattr(m, "replan_interval", self.duration()),
                lambda m: setattr(m, "epoch", int(self.one((0, 1, 2**64 - 1)))),
                lambda m: setattr(m, "lockstep", True),
                lambda m: setattr(m.header, "stamp", self.stamp(now)),
            ),
        )
