"""The gripper beside a sink: commanded when it is to change, not with every setpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64

from ..missing import need
from ..qos import LATCHED


class Gripper(Protocol):
    topics: tuple[str, ...]

    def send(self, command: float) -> None:
        """command: -1 open ... +1 closed."""

    def close(self) -> None:
        """Stop commanding."""


class NoGripper:
    topics: tuple[str, ...] = ()

    def send(self, command: float) -> None:
        pass

    def close(self) -> None:
        pass


class _Switch:
    """Open or closed: closes above `hysteresis`, opens below its negative, stays as it is between them.

    A policy's gripper is nearly binary and noisy in between, and an action's goal that is sent anew starts the gripper anew.
    """

    topics: tuple[str, ...] = ()

    def __init__(self, p: SimpleNamespace) -> None:
        self._p = p
        self._sent: bool | None = None  # closed, as it was sent last

    def send(self, command: float) -> None:
        if abs(command) <= self._p.gripper_hysteresis:
            return
        closed = command > 0
        if closed is not self._sent and self._command(self._p.gripper_closed if closed else self._p.gripper_open):
            self._sent = closed

    def _command(self, position: float) -> bool:
        """False: nobody could take it; it is tried again with the next setpoint."""
        raise NotImplementedError


class TopicGripper(_Switch):
    """std_msgs/Float64, latched, so that whoever subscribes later gets the last command."""

    def __init__(self, node: Node, p: SimpleNamespace, topic: str) -> None:
        super().__init__(p)
        self._node = node
        self._publisher = node.create_publisher(Float64, topic, LATCHED)
        self.topics = (self._publisher.topic_name,)

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)

    def _command(self, position: float) -> bool:
        self._publisher.publish(Float64(data=float(position)))
        return True


class ActionGripper(_Switch):
    """control_msgs/GripperCommand, or ParallelGripperCommand where `joint` is given. A later goal takes over from an earlier one.

    GripperCommand: command {position, max_effort}; ParallelGripperCommand: command is a sensor_msgs/JointState with the joint's name
    (control_msgs, action/*.action).
    """

    def __init__(self, node: Node, p: SimpleNamespace) -> None:
        from rclpy.action import ActionClient

        super().__init__(p)
        actions = need("control_msgs.action")
        self._parallel = p.gripper_kind == "parallel_gripper"
        self._kind: Any = actions.ParallelGripperCommand if self._parallel else actions.GripperCommand
        self._client = ActionClient(node, self._kind, p.gripper_action)

    def close(self) -> None:
        self._client.destroy()

    def _command(self, position: float) -> bool:
        if not self._client.server_is_ready():
            return False
        self._client.send_goal_async(self._goal(float(position)))
        return True

    def _goal(self, position: float) -> Any:
        goal, effort = self._kind.Goal(), self._p.gripper_effort
        if self._parallel:
            goal.command = JointState(name=[self._p.gripper_joint], position=[position], effort=[effort] if effort else [])
        else:
            goal.command.position = position
            goal.command.max_effort = effort
        return goal


def make_gripper(node: Node, p: SimpleNamespace, prefix: str = "") -> Gripper:
    """prefix: "dry/" puts the topic there and, of an action, shows the position that it would have been sent, on dry/target_gripper."""
    if p.gripper_kind == "none":
        return NoGripper()
    if p.gripper_kind == "float64":
        return TopicGripper(node, p, under(prefix, p.gripper_topic))
    return TopicGripper(node, p, under(prefix, "target_gripper")) if prefix else ActionGripper(node, p)


def under(prefix: str, topic: str) -> str:
    """The topic itself, or its place under the prefix."""
    return prefix + topic.lstrip("/") if prefix else topic
