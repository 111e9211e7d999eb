"""Where one frame stands in another: a small interface of our own, and TF behind it where ROS is installed."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from .conversions import SECOND, stamp_to_ns
from .missing import need

AHEAD = SECOND  # ns by which a transform's stamp may be ahead of our clock; less than that is for whoever checks ages


class Transform(NamedTuple):
    """position: float64 [3], m. orientation: float64 [4] xyzw. stamp: when it was so, ns."""

    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    stamp: int


class NoTransform(LookupError):
    """A transform is not known; the message says between which frames."""


class Frames(Protocol):
    def newest(self, target: str, source: str) -> Transform:
        """Pose of `source` in `target` at the newest moment of which it is known. Does not wait. Raises NoTransform.

        The moment is TF's, not that of the newest joint_states: robot_state_publisher publishes 20 times a second unless its
        publish_frequency says otherwise, and whoever waits for the transform of one message of joints waits for up to 50 ms."""

    def close(self) -> None:
        """Stop listening."""


class TfFrames:
    """Frames from /tf and /tf_static. Raises MissingPackage where tf2_ros is not installed.

    When time jumps back, moving transforms are forgotten: tf2 would go on giving those of before, and ignore those that come (TF_OLD_DATA),
    until time has caught up. Fixed ones stay, as they are not sent again.
    """

    def __init__(self, node: Node) -> None:
        self._tf2, self._node = need("tf2_ros"), node
        self._buffer = self._tf2.Buffer()
        self._listener = self._tf2.TransformListener(self._buffer, node)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jumps = node.get_clock().create_jump_callback(threshold, post_callback=lambda _: self._buffer.clear())

    def newest(self, target: str, source: str) -> Transform:
        try:
            found = self._buffer.lookup_transform(target, source, Time())
        except self._tf2.TransformException as error:
            raise NoTransform(f"no transform from {source!r} to {target!r}: {error}") from error
        stamp = stamp_to_ns(found.header.stamp)
        if stamp == 0:  # what TF says of fixed joints alone
            raise NoTransform(f"{source!r} is fixed to {target!r}: no joint of the arm is between them")
        ahead = stamp - self._node.get_clock().now().nanoseconds
        if ahead > AHEAD:  # its sender heard of the jump later than we did
            self._buffer.clear()
            raise NoTransform(f"{source!r} in {target!r} is {ahead / SECOND:.1f} s ahead of our clock: time jumped, or clocks differ")
        p, q = found.transform.translation, found.transform.rotation
        return Transform(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]), stamp)

    def close(self) -> None:
        self._jumps.unregister()
        self._listener.unregister()
