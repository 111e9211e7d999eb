"""The gripper beside a sink: commanded when it is to change, not with every setpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64

from ..missing import need
from ..publishing import retire
from ..qos import LATCHED

RETRY = 1.0  # s


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
        retire(self._node, self._publisher)

    def _command(self, position: float) -> bool:
        self._publisher.publish(Float64(data=float(position)))
        return True


class ActionGripper(_Switch):
    """An action that takes a position as its goal. A later goal takes over from an earlier one; one that the server refuses is sent
    again after RETRY, as long as the policy still asks for it.

    kind: the action. goal: of a position.
    """

    def __init__(self, node: Node, p: SimpleNamespace, kind: Any, goal: Callable[[float], Any]) -> None:
        from rclpy.action import ActionClient

        super().__init__(p)
        self._node, self._goal = node, goal
        self._client = ActionClient(node, kind, p.gripper_action)
        self._wait_until = 0.0  # of the monotonic clock, after a refusal

    def close(self) -> None:
        self._client.destroy()

    def _command(self, position: float) -> bool:
        if time.monotonic() < self._wait_until or not self._client.server_is_ready():
            return False
        self._client.send_goal_async(self._goal(float(position))).add_done_callback(self._on_answer)
        return True

    def _on_answer(self, future: Any) -> None:
        if not future.cancelled() and not future.result().accepted:
            self._sent, self._wait_until = None, time.monotonic() + RETRY
            remedy = "see its log; is gripper.open or gripper.closed out of its range?"
            self._node.get_logger().error(f"{self._p.gripper_action} refused a goal: {remedy}", throttle_duration_sec=10.0)


def make_gripper(node: Node, p: SimpleNamespace, prefix: str = "") -> Gripper:
    """prefix: "dry/" puts the topic there and, of an action, shows the position that it would have been sent, on dry/target_gripper."""
    if p.gripper_kind == "none":
        return NoGripper()
    if p.gripper_kind == "float64":
        return TopicGripper(node, p, under(prefix, p.gripper_topic))
    if prefix:
        return TopicGripper(node, p, under(prefix, "target_gripper"))
    actions = need("control_msgs.action")
    if p.gripper_kind == "parallel_gripper":
        return ActionGripper(node, p, actions.ParallelGripperCommand, partial(_parallel_goal, actions, p))
    return ActionGripper(node, p, actions.GripperCommand, partial(_gripper_goal, actions, p))


def _gripper_goal(actions: Any, p: SimpleNamespace, position: float) -> Any:
    """command {position, max_effort} (control_msgs, action/GripperCommand.action)."""
    goal = actions.GripperCommand.Goal()
    goal.command.position, goal.command.max_effort = position, p.gripper_effort
    return goal


def _parallel_goal(actions: Any, p: SimpleNamespace, position: float) -> Any:
    """command is a sensor_msgs/JointState with the joint's name (control_msgs, action/ParallelGripperCommand.action)."""
    goal, effort = actions.ParallelGripperCommand.Goal(), p.gripper_effort
    goal.command = JointState(name=[p.gripper_joint], position=[position], effort=[effort] if effort else [])
    return goal


def under(prefix: str, topic: str) -> str:
    """The topic itself, or its place under the prefix."""
    return prefix + topic.lstrip("/") if prefix else topic
