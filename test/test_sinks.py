"""What leaves for an arm: the messages of every kind of sink, and when the gripper is commanded."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from graph import TestGraph
from rclpy.action import ActionServer, GoalResponse
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from std_msgs.msg import Float64

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.control.command import Setpoint
from bitvla_ros.nodes import sinks
from bitvla_ros.nodes.conversions import stamp_to_ns
from bitvla_ros.nodes.missing import MissingPackage
from bitvla_ros.nodes.qos import COMMAND
from bitvla_ros.nodes.sinks.gripper import ActionGripper

pytestmark = pytest.mark.ros

STAMP = 1_234_567_890_123
QUARTER_ABOUT_Z = np.array([0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)])


def described(**changes: object) -> SimpleNamespace:
    values = {parameter.name.replace(".", "_"): parameter.default for parameter in sinks.PARAMETERS}
    return SimpleNamespace(**{**values, "sink_kind": "pose", **changes})


def setpoint(gripper: float = 0.0) -> Setpoint:
    linear, angular = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    return Setpoint(np.array([0.5, -0.1, 0.3]), QUARTER_ABOUT_Z, linear, angular, gripper, False, 7)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGraph]:
    with TestGraph(tmp_path_factory.mktemp("sinks")) as graph:
        yield graph


def sent(graph: TestGraph, kind: Any, p: SimpleNamespace, topic: str, prefix: str = "") -> Any:
    """The message that one setpoint becomes."""
    heard = graph.collect(kind, topic, COMMAND)
    sink = sinks.make_sink(graph.node, p, prefix)
    try:
        graph.wait(lambda: graph.node.count_subscribers(topic) and graph.node.count_publishers(topic), "discovery")

        def send() -> bool:  # the match takes its time; until then nothing arrives
            sink.send(setpoint(), STAMP, "base")
            return bool(heard)

        graph.wait(send, f"message on {topic}")
    finally:
        sink.close()
    return heard[0]


def values(vector: Any) -> list[float]:
    return [vector.x, vector.y, vector.z]


def test_a_pose_has_the_setpoints_frame_and_the_stamp_of_sending(graph: TestGraph) -> None:
    message = sent(graph, PoseStamped, described(), "/target_pose")
    assert stamp_to_ns(message.header.stamp) == STAMP and message.header.frame_id == "base"
    assert values(message.pose.position) == [0.5, -0.1, 0.3]
    q = message.pose.orientation
    assert [q.x, q.y, q.z, q.w] == pytest.approx(list(QUARTER_ABOUT_Z))


def test_a_stamped_twist_is_in_the_poses_frame_and_in_si_units(graph: TestGraph) -> None:
    message = sent(graph, TwistStamped, described(sink_kind="twist_stamped"), "/target_twist")
    assert stamp_to_ns(message.header.stamp) == STAMP and message.header.frame_id == "base"
    assert values(message.twist.linear) == [0.1, 0.2, 0.3] and values(message.twist.angular) == [0.4, 0.5, 0.6]


def test_a_tools_twist_is_along_the_tools_axes_in_the_unit_that_the_arm_takes(graph: TestGraph) -> None:
    """The tool is turned a quarter about z, so what is x outside is -y to it."""
    p = described(sink_kind="twist", sink_topic="/arm/commands", sink_twist_frame="tool", sink_angular_unit="deg")
    message = sent(graph, Twist, p, "/arm/commands")
    assert values(message.linear) == pytest.approx([0.2, -0.1, 0.3])
    assert values(message.angular) == pytest.approx([math.degrees(v) for v in (0.5, -0.4, 0.6)])


def test_dry_topics_stand_under_a_name_of_their_own(graph: TestGraph) -> None:
    p = described(sink_kind="twist_stamped", sink_topic="/servo_node/delta_twist_cmds", sink_servo_node="/servo_node")
    sent(graph, TwistStamped, p, "/dry/servo_node/delta_twist_cmds", "dry/")
    assert sinks.sink_topics(graph.node, p) == ("/servo_node/delta_twist_cmds",)
    assert graph.node.count_publishers("/servo_node/delta_twist_cmds") == 0


def test_a_sink_says_its_topics_and_its_time_out_and_leaves_nothing_behind(graph: TestGraph) -> None:
    p = described(sink_silence_timeout=0.1, gripper_kind="float64", sink_topic="/somewhere", gripper_topic="/fingers")
    sink = sinks.make_sink(graph.node, p)
    assert sink.topics == ("/somewhere", "/fingers") == sinks.sink_topics(graph.node, p)
    assert sink.stops_on_silence == 0.1
    sink.close()
    assert graph.node.count_publishers("/somewhere") == graph.node.count_publishers("/fingers") == 0
    sink = sinks.make_sink(graph.node, described())
    assert sink.stops_on_silence is None
    sink.close()


def test_the_gripper_is_commanded_on_a_change_alone_and_not_by_noise(graph: TestGraph) -> None:
    p = described(gripper_kind="float64", gripper_topic="/fingers", gripper_open=0.04, gripper_closed=0.0)
    qos = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    heard = graph.collect(Float64, "/fingers", qos)
    sink = sinks.make_sink(graph.node, p)
    expected = []
    for commands, position in (((0.0, 0.2, -0.29), None), ((-1.0, -0.9, -0.1, 0.29, -1.0), 0.04), ((0.31, 1.0, 0.5, -0.2, 0.9), 0.0)):
        for gripper in commands:
            sink.send(setpoint(gripper), STAMP, "base")
        if position is not None:
            expected.append(position)
            graph.wait(lambda: len(heard) >= len(expected), "the gripper's command")
        graph.spin(0.1)
        assert [message.data for message in heard] == expected
    late = graph.collect(Float64, "/fingers", qos)  # whoever comes later gets the last command
    graph.wait(lambda: late, "the last command")
    assert [message.data for message in late] == [0.0]
    sink.close()


def test_a_goal_that_the_gripper_refuses_is_sent_again_and_not_at_the_setpoints_rate(graph: TestGraph, monkeypatch) -> None:
    """By an action of ours, whose goal is a text: control_msgs is in few environments."""
    monkeypatch.setattr("bitvla_ros.nodes.sinks.gripper.RETRY", 0.3)
    asked: list[tuple[float, str]] = []

    def answer(goal: ExecuteInstruction.Goal) -> GoalResponse:
        asked.append((time.monotonic(), goal.instruction))
        return GoalResponse.REJECT if len(asked) < 3 else GoalResponse.ACCEPT

    def carry_out(handle: Any) -> ExecuteInstruction.Result:
        handle.succeed()
        return ExecuteInstruction.Result()

    server = ActionServer(graph.node, ExecuteInstruction, "fingers", carry_out, goal_callback=answer)
    p = described(gripper_action="fingers", gripper_closed=0.8)
    gripper = ActionGripper(
        graph.node, p, ExecuteInstruction, lambda position: ExecuteInstruction.Goal(instruction=f"{position}"), lambda _: False
    )

    def send() -> bool:
        gripper.send(1.0)
        return len(asked) == 3

    graph.wait(send, "the third goal")
    for _ in range(30):
        gripper.send(1.0)
        graph.spin(0.02)
    gripper.close()
    server.destroy()
    times = [when for when, _ in asked]
    assert [text for _, text in asked] == ["0.8"] * 3, "the third was accepted"
    assert np.diff(times).min() > 0.25


@pytest.mark.skipif(importlib.util.find_spec("control_msgs") is not None, reason="control_msgs is installed")
@pytest.mark.parametrize("kind", ["gripper_command", "parallel_gripper"])
def test_without_control_msgs_the_package_that_brings_it_is_named(graph: TestGraph, kind: str) -> None:
    p = described(gripper_kind=kind, gripper_joint="knuckle")
    with pytest.raises(MissingPackage, match="control-msgs"):
        sinks.make_sink(graph.node, p)
    assert graph.node.count_publishers("/target_pose") == 0
    sink = sinks.make_sink(graph.node, p, "dry/")  # which needs no action
    assert sink.topics == ("/dry/target_pose", "/dry/target_gripper")
    sink.close()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sink_kind": "simulator"}, "takes no setpoints: give one of pose"),
        ({"sink_kind": "twist_stamped", "sink_twist_frame": "tool"}, "only sink.kind twist"),
        ({"sink_kind": "pose", "sink_twist_frame": "tool"}, "only sink.kind twist"),
        ({"gripper_kind": "parallel_gripper"}, "name the joint"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sinks.check(described(**changes))


@pytest.mark.skipif(importlib.util.find_spec("moveit_msgs") is not None, reason="moveit_msgs is installed")
def test_without_moveit_servo_the_sink_is_made_all_the_same(graph: TestGraph) -> None:
    """It says in the log how to switch Servo by hand; the arm stands still until then."""
    sink = sinks.make_sink(graph.node, described(sink_kind="twist_stamped", sink_servo_node="/servo_node"))
    assert sink.topics == ("/target_twist",)
    sink.close()
