"""Setpoints as PoseStamped, TwistStamped or Twist."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3
from numpy.typing import NDArray
from rclpy.node import Node

from bitvla_ros.control.command import Setpoint
from bitvla_ros.control.rotation import matrix

from ..conversions import ns_to_stamp, pose_to_msg
from ..publishing import retire
from ..qos import COMMAND
from .gripper import Gripper


class _Targets:
    """One publisher of targets and a gripper."""

    def __init__(self, node: Node, kind: Any, topic: str, stops_on_silence: float | None, gripper: Gripper) -> None:
        self.stops_on_silence = stops_on_silence
        self._node, self._gripper = node, gripper
        self._publisher = node.create_publisher(kind, topic, COMMAND)

    @property
    def topics(self) -> tuple[str, ...]:
        return (self._publisher.topic_name, *self._gripper.topics)

    @property
    def gripper(self) -> str:
        return self._gripper.state

    def problem(self) -> str | None:
        return self._gripper.problem()

    def send(self, setpoint: Setpoint, stamp: int, frame: str) -> None:
        self._publisher.publish(self._message(setpoint, stamp, frame))
        self._gripper.send(setpoint.gripper)

    def close(self) -> None:
        retire(self._node, self._publisher)
        self._gripper.close()

    def _message(self, setpoint: Setpoint, stamp: int, frame: str) -> Any:
        raise NotImplementedError


class PoseSink(_Targets):
    """geometry_msgs/PoseStamped: crisp_controllers' target_pose, FZI cartesian_controllers' target_frame, MoveIt Servo's pose."""

    def __init__(self, node: Node, topic: str, stops_on_silence: float | None, gripper: Gripper) -> None:
        super().__init__(node, PoseStamped, topic, stops_on_silence, gripper)

    def _message(self, setpoint: Setpoint, stamp: int, frame: str) -> PoseStamped:
        return pose_to_msg(setpoint.position, setpoint.orientation, stamp, frame)


class TwistSink(_Targets):
    """geometry_msgs/TwistStamped (MoveIt Servo) or Twist (Kinova's twist_controller), m/s and rad/s.

    tool: along the axes of the tool as the setpoint has it, instead of the frame's. degrees: the angular part in degrees/s.
    """

    def __init__(
        self, node: Node, topic: str, stops_on_silence: float | None, gripper: Gripper, *, stamped: bool, tool: bool, degrees: bool
    ) -> None:
        super().__init__(node, TwistStamped if stamped else Twist, topic, stops_on_silence, gripper)
        self._stamped, self._tool, self._degrees = stamped, tool, degrees

    def _message(self, setpoint: Setpoint, stamp: int, frame: str) -> TwistStamped | Twist:
        linear, angular = np.asarray(setpoint.linear, np.float64), np.asarray(setpoint.angular, np.float64)
        if self._tool:
            axes = matrix(np.asarray(setpoint.orientation, np.float64))
            linear, angular = linear @ axes, angular @ axes
        if self._degrees:
            angular = np.degrees(angular)
        twist = Twist(linear=_vector(linear), angular=_vector(angular))
        if not self._stamped:
            return twist
        message = TwistStamped(twist=twist)
        message.header.stamp = ns_to_stamp(stamp)
        message.header.frame_id = frame
        return message


def _vector(values: NDArray[np.float64]) -> Vector3:
    x, y, z = (float(value) for value in values)
    return Vector3(x=x, y=y, z=z)
