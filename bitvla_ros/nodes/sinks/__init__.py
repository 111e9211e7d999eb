"""Where setpoints leave for an arm: one class a kind of interface, chosen by the parameters of sinks.parameters.

A sink has publishers from its making to its close and only then, because some arms count them: crisp_controllers ignores
target_pose while more than one node publishes it (cartesian_controller.cpp, check_topic_publisher_count).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Protocol

from rclpy.node import Node

from bitvla_ros.control.command import Setpoint

from .gripper import make_gripper, under
from .parameters import ACCEPTANCE, GRIPPERS, KINDS, MODES, PARAMETERS, SIMULATOR
from .servo import select_command_type
from .targets import PoseSink, TwistSink

__all__ = ["ACCEPTANCE", "GRIPPERS", "KINDS", "MODES", "PARAMETERS", "SIMULATOR", "Sink", "check", "make_sink", "sink_topics"]


class Sink(Protocol):
    """stops_on_silence: s without a setpoint after which the arm's own controller stops it; None: it does not.
    topics: full names of the topics that it publishes on. gripper: what is known of it, for diagnostics."""

    @property
    def stops_on_silence(self) -> float | None: ...

    @property
    def topics(self) -> tuple[str, ...]: ...

    @property
    def gripper(self) -> str: ...

    def problem(self) -> str | None:
        """Why live mode may not begin, and what to do. Waits up to a second for the discovery of what was made just now."""

    def send(self, setpoint: Setpoint, stamp: int, frame: str) -> None:
        """stamp: ns of ROS time, now. frame: of the setpoint."""

    def close(self) -> None:
        """Stop publishing, once whoever listens has the last setpoint."""


def sink_topics(node: Node, p: SimpleNamespace) -> tuple[str, ...]:
    """Full names of the topics that the sink will publish on; the setpoints' is the first."""
    gripper = (p.gripper_topic,) if p.gripper_kind == "float64" else ()
    return tuple(node.resolve_topic_name(topic) for topic in (_target_topic(p), *gripper))


def _target_topic(p: SimpleNamespace) -> str:
    return str(p.sink_topic) or ("target_pose" if p.sink_kind == "pose" else "target_twist")


def check(p: SimpleNamespace) -> None:
    """Raises ValueError where the parameters contradict each other, and for kind simulator, which takes no setpoints: the controller
    answers its control steps itself."""
    if p.sink_kind == SIMULATOR:
        raise ValueError(f"sink.kind is simulator, which takes no setpoints: give one of {', '.join(KINDS[1:])}")
    if p.sink_twist_frame == "tool" and p.sink_kind != "twist":
        raise ValueError("sink.twist_frame is tool, which only sink.kind twist can be: the others name the pose's frame in the message")
    if p.gripper_kind == "parallel_gripper" and not p.gripper_joint:
        raise ValueError("gripper.kind is parallel_gripper, but gripper.joint is empty: name the joint that is commanded")


def make_sink(node: Node, p: SimpleNamespace, prefix: str = "") -> Sink:
    """The sink that the parameters describe. p: by name, dots as underscores. prefix: "dry/" puts every topic there; then nothing that
    is not a topic (actions, services) is called.

    Raises as `check` does, ServoError where MoveIt Servo cannot be switched, and MissingPackage where a gripper's action is not installed.
    """
    check(p)
    if p.sink_servo_node and not prefix:
        select_command_type(node, p.sink_servo_node, "POSE" if p.sink_kind == "pose" else "TWIST")
    gripper = make_gripper(node, p, prefix)
    topic, silence = under(prefix, _target_topic(p)), p.sink_silence_timeout or None
    if p.sink_kind == "pose":
        return PoseSink(node, topic, silence, gripper)
    return TwistSink(
        node,
        topic,
        silence,
        gripper,
        stamped=p.sink_kind == "twist_stamped",
        tool=p.sink_twist_frame == "tool",
        degrees=p.sink_angular_unit == "deg",
    )
