"""Where one frame stands in another: a small interface of our own, and TF behind it where ROS is installed."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from .missing import need

Transform = tuple[NDArray[np.float64], NDArray[np.float64]]


class NoTransform(LookupError):
    """A transform is not known at the time asked for; the message says between which frames."""


class Frames(Protocol):
    def lookup(self, target: str, source: str, stamp: int) -> Transform:
        """Pose of `source` in `target` at `stamp` (ns): position float64 [3], m, quaternion float64 [4] xyzw. Raises NoTransform."""

    def clear(self) -> None:
        """Forget every transform: time has jumped back."""

    def close(self) -> None:
        """Stop listening."""


class TfFrames:
    """Frames from /tf and /tf_static. Raises MissingPackage where tf2_ros is not installed.

    patience: how long a lookup waits, s: transforms arrive a little later than the image they belong to. 0 where whoever looks up
    is the thread that also hears of transforms.
    """

    def __init__(self, node: Node, patience: float = 0.05) -> None:
        self._patience = Duration(nanoseconds=round(patience * 1e9))
        self._tf2 = need("tf2_ros")
        self._buffer = self._tf2.Buffer()  # on a clock of its own: its waiting ends while simulated time stands still
        self._listener = self._tf2.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp: int) -> Transform:
        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp), self._patience).transform
        except self._tf2.TransformException as error:
            raise NoTransform(f"no transform from {source!r} to {target!r} at {stamp / 1e9:.3f} s: {error}") from error
        p, q = found.translation, found.rotation
        return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])

    def clear(self) -> None:
        self._buffer.clear()

    def close(self) -> None:
        self._listener.unregister()
