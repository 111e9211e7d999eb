"""MoveIt Servo is switched to our commands before live mode begins, and live mode does not begin where it is not.

The server here stands in for Servo's node, with the service type of the real moveit_msgs; without that package the waiting itself is
tested, with a service type that is always there.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

import rclpy
from graph import TestGraph
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import SetBool
from test_setpoints import Cell
from test_sinks import described

from bitvla_ros.nodes import sinks
from bitvla_ros.nodes.sinks import servo

pytestmark = pytest.mark.ros

needs_moveit = pytest.mark.skipif(
    importlib.util.find_spec("moveit_msgs") is None, reason="moveit_msgs is not installed: it comes with ROS, not from PyPI"
)


class Server:
    """Answers with `success`, after `delay` s, in a thread of its own; asked: what it was asked for."""

    def __init__(self, graph: TestGraph, kind: Any, service: str) -> None:
        self.success, self.delay, self.asked = True, 0.0, []
        self._node = rclpy.create_node("servo_node", context=graph.context)
        self._node.create_service(kind, service, self._answer)
        self._executor = SingleThreadedExecutor(context=graph.context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _answer(self, request: Any, response: Any) -> Any:
        self.asked.append(getattr(request, "command_type", None))
        time.sleep(self.delay)
        response.success = self.success
        return response

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[TestGraph]:
    with TestGraph(tmp_path) as graph:
        yield graph


def test_a_service_is_asked_from_within_a_callback_and_not_for_ever(graph: TestGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    request = SetBool.Request(data=True)
    with pytest.raises(servo.ServoError, match=r"no service /servo_node/switch: start MoveIt Servo, or correct sink\.servo_node"):
        servo._ask(graph.node, SetBool, "/servo_node/switch", request)
    server = Server(graph, SetBool, "/servo_node/switch")
    answers = []
    timer = graph.node.create_timer(0.01, lambda: answers.append(servo._ask(graph.node, SetBool, "/servo_node/switch", request)))
    try:
        graph.wait(lambda: answers, "the answer")
        graph.node.destroy_timer(timer)
        assert answers[0].success
        server.delay = 3.0
        with pytest.raises(servo.ServoError, match="did not answer on /servo_node/switch within 1 s"):
            servo._ask(graph.node, SetBool, "/servo_node/switch", request)
    finally:
        server.close()
    assert not [name for name in graph.node.get_node_names() if "servo_client" in name], "nothing is left behind"


@needs_moveit
@pytest.mark.parametrize(("kind", "number"), [("pose", 2), ("twist_stamped", 1)])
def test_servo_is_told_the_kind_of_commands_that_it_will_get(graph: TestGraph, kind: str, number: int) -> None:
    from moveit_msgs.srv import ServoCommandType

    assert (ServoCommandType.Request.TWIST, ServoCommandType.Request.POSE) == (1, 2)
    p = described(sink_kind=kind, sink_servo_node="/servo_node", gripper_kind="float64")
    with pytest.raises(servo.ServoError, match="no service /servo_node/switch_command_type"):
        sinks.make_sink(graph.node, p)
    server = Server(graph, ServoCommandType, "/servo_node/switch_command_type")
    try:
        server.success = False
        with pytest.raises(servo.ServoError, match=r"refuses to take (POSE|TWIST) commands"):
            sinks.make_sink(graph.node, p)
        assert graph.node.count_publishers("/target_gripper") == 0, "nothing is left behind"
        server.success = True
        sink = sinks.make_sink(graph.node, p)
        sink.close()
    finally:
        server.close()
    assert server.asked == [number, number]


@needs_moveit
def test_live_mode_is_refused_where_servo_would_drop_every_command(graph: TestGraph) -> None:
    from moveit_msgs.srv import ServoCommandType

    cell = Cell(graph, "live", **{"sink.servo_node": "/servo_node"})
    graph.wait(lambda: "no service /servo_node/switch_command_type" in cell.enable().message, "the refusal without Servo")
    server = Server(graph, ServoCommandType, "/servo_node/switch_command_type")
    try:
        server.success = False
        graph.wait(lambda: "refuses to take POSE commands" in cell.enable().message, "Servo's refusal")
        server.delay = 3.0
        assert "did not answer" in cell.enable().message
        graph.wait(lambda: cell.publishers() == 0, "the end of what the refused try had made")
        server.success, server.delay = True, 0.0
        graph.wait(lambda: cell.enable().success, "live mode")  # the server is still busy with the request before
        assert cell.publishers() == 1 and set(server.asked) == {2}
        cell.begin()
        cell.moving()
    finally:
        server.close()
