"""The gripper beside a sink: commanded when it is to change, not with every setpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, Protocol

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient, get_action_names_and_types
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64

from ..missing import need
from ..publishing import retire
from ..qos import LATCHED

DISCOVERY = 1.0  # s after its making that a gripper waits for whoever takes its commands
ANSWER, RESULT = 2.0, 10.0  # s that an action server may take to accept a goal, and then to end it
RETRY = 1.0  # s from a goal that failed to the next
RETRIES = 3  # how often a command is sent again


class Gripper(Protocol):
    """state: what is known of it, for diagnostics."""

    topics: tuple[str, ...]

    @property
    def state(self) -> str: ...

    def send(self, command: float) -> None:
        """Called with every setpoint. command: -1 open ... +1 closed."""

    def problem(self) -> str | None:
        """Why live mode may not begin, and what to do. Waits for discovery until DISCOVERY after the making."""

    def close(self) -> None:
        """Stop commanding."""


class NoGripper:
    topics: tuple[str, ...] = ()
    state = "none"

    def send(self, command: float) -> None:
        pass

    def problem(self) -> str | None:
        return None

    def close(self) -> None:
        pass


class _Switch:
    """Open or closed: closes above `hysteresis`, opens below its negative, stays as it is between them.

    A policy's gripper is nearly binary and noisy in between, and an action's goal that is sent anew starts the gripper anew.
    """

    topics: tuple[str, ...] = ()

    def __init__(self, node: Node, p: SimpleNamespace) -> None:
        self._node, self._p = node, p
        self._closed: bool | None = None  # as the policy asks
        self._text = "not commanded yet"
        self._discovered = time.monotonic() + DISCOVERY

    @property
    def state(self) -> str:
        return self._text

    @property
    def _verb(self) -> str:
        return "close" if self._closed else "open"

    @property
    def _position(self) -> float:
        return float(self._p.gripper_closed if self._closed else self._p.gripper_open)

    def send(self, command: float) -> None:
        closed = command > 0
        if abs(command) > self._p.gripper_hysteresis and closed is not self._closed:
            self._closed = closed
            self._change()
        self._continue()

    def problem(self) -> str | None:
        while (problem := self._missing()) is not None and time.monotonic() < self._discovered:
            time.sleep(0.02)
        return problem

    def _change(self) -> None:
        """The policy asks for something else."""

    def _continue(self) -> None:
        """With every setpoint."""

    def _missing(self) -> str | None:
        """Who is not there to take a command, and what to do."""
        raise NotImplementedError


class TopicGripper(_Switch):
    """std_msgs/Float64, latched, so that whoever subscribes later gets the last command."""

    def __init__(self, node: Node, p: SimpleNamespace, topic: str) -> None:
        super().__init__(node, p)
        self._publisher = node.create_publisher(Float64, topic, LATCHED)
        self.topics = (self._publisher.topic_name,)

    def close(self) -> None:
        retire(self._node, self._publisher)

    def _change(self) -> None:
        self._publisher.publish(Float64(data=self._position))
        self._text = f"told to {self._verb}"

    def _missing(self) -> str | None:
        if self._node.count_subscribers(self.topics[0]):
            return None
        return f"no node subscribes to {self.topics[0]}: start the gripper's driver, or correct gripper.topic"


@dataclass(eq=False)
class _Goal:
    """awaited: what its server owes: "answer", then "result", then nothing. due: when, s of the monotonic clock."""

    due: float
    awaited: str = "answer"


class ActionGripper(_Switch):
    """An action that takes a position as its goal. A later goal takes over from an earlier one. How a goal ends, by the rule:

    - succeeded: done. Where the gripper stalled while closing, it holds an object;
    - aborted, stalled while closing: the same. control_msgs' controllers abort on a stall unless allow_stalling is set;
    - cancelled, while no later goal of ours took over: another client wants something else. Done, and not sent again;
    - refused, not answered within ANSWER, aborted without such a stall, without a result within RESULT, its server gone, or an
      earlier goal accepted after it: failed. It is sent again RETRY later, while the policy still asks for it, RETRIES times; then the
      command is given up until the policy asks for another, which is logged as an error.

    While there is no server, a command waits. The rule advances with the setpoints.

    kind: the action. goal: of a position. stalled: whether a result says so.
    """

    def __init__(
        self,
        node: Node,
        p: SimpleNamespace,
        kind: Any,
        goal: Callable[[float], Any],
        stalled: Callable[[Any], bool] = attrgetter("stalled"),
    ) -> None:
        super().__init__(node, p)
        self._kind, self._make_goal, self._stalled = kind, goal, stalled
        self._client = ActionClient(node, kind, p.gripper_action)
        self._goal: _Goal | None = None  # the newest; None: to be sent, or given up
        self._failures = 0  # of this command
        self._next = 0.0  # s of the monotonic clock from which the next goal may be sent

    @property
    def state(self) -> str:
        missing = self._missing()
        return self._text if missing is None else f"{self._text}; {missing}"

    def close(self) -> None:
        self._client.destroy()

    def _change(self) -> None:
        self._goal, self._failures, self._next = None, 0, 0.0

    def _continue(self) -> None:
        goal, now = self._goal, time.monotonic()
        if goal is None:
            if self._closed is not None and self._failures <= RETRIES and now >= self._next:
                self._send()
        elif goal.awaited and now > goal.due:
            self._fail(f"the server gave no {goal.awaited}")
        elif goal.awaited and not self._client.server_is_ready():
            self._fail("the server is gone")

    def _missing(self) -> str | None:
        if self._client.server_is_ready():
            return None
        name, ours = self._p.gripper_action, f"{self._kind.__module__.partition('.')[0]}/action/{self._kind.__name__}"
        kinds = dict(get_action_names_and_types(self._node)).get(self._node.resolve_topic_name(name), [])
        if others := [kind for kind in kinds if kind != ours]:
            return f"the action {name} is of the type {', '.join(others)}, not {ours}: correct gripper.kind"
        return f"there is no server of the action {name}: start the gripper's driver, or correct gripper.action"

    def _send(self) -> None:
        if not self._client.server_is_ready():
            self._report(f"waits to {self._verb}")
            return
        goal = self._goal = _Goal(time.monotonic() + ANSWER)
        self._text = f"told to {self._verb}"
        self._client.send_goal_async(self._make_goal(self._position)).add_done_callback(partial(self._on_answer, goal))

    def _on_answer(self, goal: _Goal, future: Any) -> None:
        if future.cancelled():
            return
        handle = future.result()
        if goal is self._goal:
            if handle.accepted:
                goal.awaited, goal.due = "result", time.monotonic() + RESULT
                handle.get_result_async().add_done_callback(partial(self._on_result, goal))
            else:
                self._fail("the server refused it; is the position out of its range?")
        elif handle.accepted and self._goal is not None and self._goal.awaited != "answer":
            self._fail("the server accepted an earlier goal after it")

    def _on_result(self, goal: _Goal, future: Any) -> None:
        if goal is not self._goal or future.cancelled():
            return
        status, result = future.result().status, future.result().result
        stalled = status in (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED) and self._stalled(result)
        if stalled and self._closed:
            self._finish("holds an object")
        elif status == GoalStatus.STATUS_SUCCEEDED:
            self._finish(("closed" if self._closed else "open") + (", stalled on the way" if stalled else ""))
        elif status == GoalStatus.STATUS_CANCELED:
            self._finish(f"told to {self._verb}; another client cancelled it")
        else:
            how = "aborted it" if status == GoalStatus.STATUS_ABORTED else "does not know it any more"
            self._fail(f"the server {how}" + (", stalled" if stalled else ""))

    def _finish(self, text: str) -> None:
        assert self._goal is not None
        self._goal.awaited, self._text = "", text

    def _fail(self, why: str) -> None:
        self._goal, self._failures, self._next = None, self._failures + 1, time.monotonic() + RETRY
        if self._failures <= RETRIES:
            self._text = f"told to {self._verb}: {why}; it is sent again ({self._failures} of {RETRIES})"
        else:
            self._report(f"gives up to {self._verb} after {self._failures} goals: {why}; see its log")

    def _report(self, text: str) -> None:
        """Once each."""
        if text != self._text:
            self._text = text
            self._node.get_logger().error(f"gripper: {self.state}")


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
