"""Publishers with any QoS on the topics that anybody may publish, and a QoS that does not fit on /diagnostics."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import TestGraph
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from robot import MODULE, START, Robot, recording
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from bitvla_ros.msg import ActionChunk, Task
from bitvla_ros.nodes.qos import SENSOR

pytestmark = pytest.mark.ros

RELIABLE, BEST_EFFORT = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT
VOLATILE, LATCHED = QoSDurabilityPolicy.VOLATILE, QoSDurabilityPolicy.TRANSIENT_LOCAL
ANY = [(RELIABLE, VOLATILE), (BEST_EFFORT, VOLATILE), (RELIABLE, LATCHED), (BEST_EFFORT, LATCHED)]


class Nodes:
    """A controller of an arm that is no simulator, a policy that plays a recording, and what both say about their health."""

    def __init__(self, graph: TestGraph) -> None:
        self.graph = graph
        self.health = graph.collect(DiagnosticArray, "/diagnostics", 100)
        graph.start("controller", "bitvla_ros.nodes.controller", {"simulator": False, "sink.kind": "pose", "time_limit": 60.0})
        graph.start("policy", MODULE, {"policy": "replay", "model": str(recording(graph.logs / "recording.npz"))})
        graph.wait(lambda: self.status("controller") and "waiting" in self.message("policy"), "both nodes", START)

    def status(self, name: str) -> DiagnosticStatus | None:
        return next((s for array in reversed(self.health) for s in array.status if s.name == name), None)

    def message(self, name: str) -> str:
        status = self.status(name)
        return "" if status is None else status.message


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with TestGraph(tmp_path_factory.mktemp("mismatches")) as graph:
        yield Nodes(graph)


@pytest.mark.parametrize(("reliability", "durability"), ANY)
def test_an_e_stop_is_heard_whatever_its_quality_of_service(nodes: Nodes, reliability, durability) -> None:
    nodes.graph.call(Trigger, "reset_fault", Trigger.Request())
    nodes.graph.wait(lambda: "e-stop" not in nodes.message("controller"), "no fault")
    publisher = nodes.graph.node.create_publisher(Bool, "estop", QoSProfile(depth=1, reliability=reliability, durability=durability))
    try:
        nodes.graph.wait(lambda: publisher.get_subscription_count() >= 1, "the controller")
        nodes.graph.wait(lambda: (publisher.publish(Bool(data=True)), "e-stop: true came" in nodes.message("controller"))[1], "the stop")
        assert "QoS mismatch" not in nodes.message("controller")
    finally:
        nodes.graph.node.destroy_publisher(publisher)
    assert "incompatible QoS" not in nodes.graph.processes["controller"].log.read_text()


@pytest.mark.parametrize(("reliability", "durability"), ANY)
def test_an_instruction_is_heard_whatever_its_quality_of_service(nodes: Nodes, reliability, durability) -> None:
    robot, words = Robot(nodes.graph), f"lift {reliability.name} {durability.name}"
    qos = QoSProfile(depth=1, reliability=reliability, durability=durability)
    publisher = nodes.graph.node.create_publisher(String, "instruction", qos)

    def answered() -> bool:
        publisher.publish(String(data=words))
        robot.feed()
        return any(chunk.instruction == words for chunk in robot.chunks)

    try:
        nodes.graph.wait(answered, "a chunk for the instruction")
    finally:
        nodes.graph.node.destroy_publisher(publisher)
        nodes.graph.node.destroy_publisher(robot.tasks)  # unlike a controller's, it has no lease: a mismatch of its own


def test_success_is_heard_of_a_best_effort_publisher(nodes: Nodes) -> None:
    publisher = nodes.graph.node.create_publisher(Bool, "success", SENSOR)
    nodes.graph.wait(lambda: publisher.get_subscription_count() == 1, "the controller")
    nodes.graph.node.destroy_publisher(publisher)


def shown_while_there(nodes: Nodes, name: str, expected: str, endpoint, destroy) -> None:
    status = nodes.graph.wait(lambda: expected in nodes.message(name) and nodes.status(name), f"{expected!r} in {nodes.message(name)!r}")
    assert status.level >= DiagnosticStatus.WARN
    assert {value.key: value.value for value in status.values}["qos_mismatches"] == "1"
    assert expected in nodes.graph.processes[name].log.read_text()
    destroy(endpoint)
    nodes.graph.wait(lambda: "QoS mismatch" not in nodes.message(name), "an end of the warning")


def test_a_policy_that_the_controller_cannot_hear_is_shown(nodes: Nodes) -> None:
    publisher = nodes.graph.node.create_publisher(ActionChunk, "action_chunk", SENSOR)
    expected = "QoS mismatch on /action_chunk: nothing comes from /test ("
    remedy = "let it offer reliable, volatile, automatic liveliness with a lease of 60 ms"
    nodes.graph.wait(lambda: remedy in nodes.message("controller"), "the remedy")
    shown_while_there(nodes, "controller", expected, publisher, nodes.graph.node.destroy_publisher)


def test_who_cannot_hear_the_policy_is_shown(nodes: Nodes) -> None:
    """Its chunks leave from a participant of their own."""
    qos = QoSProfile(depth=1, reliability=RELIABLE, durability=LATCHED)
    subscription = nodes.graph.node.create_subscription(ActionChunk, "action_chunk", lambda _: None, qos)
    expected = "QoS mismatch on /action_chunk: /test hears nothing ("
    shown_while_there(nodes, "policy", expected, subscription, nodes.graph.node.destroy_subscription)


def test_a_controller_that_the_policy_cannot_hear_is_shown(nodes: Nodes) -> None:
    publisher = nodes.graph.node.create_publisher(Task, "task", QoSProfile(depth=1, reliability=RELIABLE, durability=VOLATILE))
    expected = "QoS mismatch on /task: nothing comes from /test ("
    shown_while_there(nodes, "policy", expected, publisher, nodes.graph.node.destroy_publisher)
