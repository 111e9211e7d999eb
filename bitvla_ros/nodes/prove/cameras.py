"""Cameras that can fail: images pass from `sound/camera/ROLE/image_raw` to `camera/ROLE/image_raw`, or as a fault has it.

python -m bitvla_ros.nodes.prove.cameras ROLE …

The topic `camera_fault` (std_msgs/String) names the fault of all cameras, empty for none; when the first image has suffered from it,
`camera_fault_began` (std_msgs/UInt64) says since when, ns of the steady clock.
"""

from __future__ import annotations

import contextlib
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import Image
from std_msgs.msg import String, UInt64

from ..conversions import SECOND, ns_to_stamp, stamp_to_ns
from ..qos import COMMAND, LATCHED, SENSOR

DELAY = 0.4  # s, more than an input may be old
JUMPS = (SECOND, -SECOND, None)  # ns that a camera's clock leaps by; None: its driver forgets the stamp


def _truncate(image: Image) -> None:
    image.data = image.data[: len(image.data) // 2]


def _empty(image: Image) -> None:
    image.height = image.width = image.step = 0
    image.data = array("B")


def _rename(image: Image) -> None:
    image.encoding = "8UC3"  # says nothing of which channel is red


def _narrow(image: Image) -> None:
    image.step = image.width


CORRUPTIONS = (_truncate, _empty, _rename, _narrow)


class Cameras(Node):
    def __init__(self, roles: Sequence[str], **options: Any) -> None:
        super().__init__("cameras", **options)
        self._publishers_of = {role: self.create_publisher(Image, f"camera/{role}/image_raw", SENSOR) for role in roles}
        for role in roles:
            self.create_subscription(Image, f"sound/camera/{role}/image_raw", partial(self._on_image, role), SENSOR)
        self._began = self.create_publisher(UInt64, "camera_fault_began", COMMAND)
        self.create_subscription(String, "camera_fault", self._on_fault, LATCHED)
        self._faults: dict[str, Callable[[str, Image], None]] = {
            "camera_loss": lambda role, image: None,
            "camera_delay": self._delay,
            "frozen_camera": self._freeze,
            "camera_corruption": self._corrupt,
            "clock_jump": self._jump,
        }
        self._count = 0  # faults so far: variants take turns
        self._set("")

    def _set(self, fault: str) -> None:
        self._fault, self._told = fault, not fault
        self._waiting: dict[str, deque[Image]] = {role: deque() for role in self._publishers_of}
        self._frozen: dict[str, Image] = {}
        self._count += bool(fault)

    def _on_fault(self, message: String) -> None:
        self._set(message.data)

    def _on_image(self, role: str, image: Image) -> None:
        if not self._fault:
            self._publishers_of[role].publish(image)
            return
        now = time.monotonic_ns()
        self._faults[self._fault](role, image)
        if not self._told:
            self._told = True
            self._began.publish(UInt64(data=now))

    def _delay(self, role: str, image: Image) -> None:
        waiting = self._waiting[role]
        waiting.append(image)
        due = self.get_clock().now().nanoseconds - DELAY * SECOND
        while waiting and stamp_to_ns(waiting[0].header.stamp) <= due:
            self._publishers_of[role].publish(waiting.popleft())

    def _freeze(self, role: str, image: Image) -> None:
        frozen = self._frozen.setdefault(role, image)
        frozen.header.stamp = image.header.stamp
        self._publishers_of[role].publish(frozen)

    def _corrupt(self, role: str, image: Image) -> None:
        CORRUPTIONS[self._count % len(CORRUPTIONS)](image)
        self._publishers_of[role].publish(image)

    def _jump(self, role: str, image: Image) -> None:
        jump = JUMPS[self._count % len(JUMPS)]
        image.header.stamp = ns_to_stamp(0 if jump is None else stamp_to_ns(image.header.stamp) + jump)
        self._publishers_of[role].publish(image)


def main(args: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv if args is None else args)
    rclpy.init(args=arguments)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(Cameras(remove_ros_args(arguments)[1:]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
