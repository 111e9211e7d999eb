"""`ros2 param set` on nodes that run: what is answered with success holds from then on, and all else is refused with what to do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from graph import TestGraph
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from robot import START, recording
from test_setpoints import Cell

from bitvla_ros.nodes.conversions import pose_from_msg, stamp_to_ns

pytestmark = pytest.mark.ros

BACK = "deactivate and clean up the node, set it, configure it again"


class Node:
    """A node of a graph, its parameters and its transitions."""

    def __init__(self, graph: TestGraph, name: str) -> None:
        self.graph, self.name = graph, name

    def set(self, **values: object) -> list[str]:
        """Set them one by one; the reasons of the refusals, empty for success."""
        request = SetParameters.Request(parameters=_messages(values))
        results = self.graph.call(SetParameters, f"/{self.name}/set_parameters", request).results
        assert all(bool(result.reason) != result.successful for result in results), results
        return [result.reason for result in results]

    def set_together(self, **values: object) -> str:
        request = SetParametersAtomically.Request(parameters=_messages(values))
        return self.graph.call(SetParametersAtomically, f"/{self.name}/set_parameters_atomically", request).result.reason

    def get(self, name: str) -> object:
        request = GetParameters.Request(names=[name])
        (value,) = self.graph.call(GetParameters, f"/{self.name}/get_parameters", request).values
        return Parameter.from_parameter_msg(_message(name, value)).value

    def state(self) -> int:
        return self.graph.call(GetState, f"/{self.name}/get_state", GetState.Request()).current_state.id

    def change(self, *transitions: int) -> None:
        for transition in transitions:
            request = ChangeState.Request(transition=Transition(id=transition))
            assert self.graph.call(ChangeState, f"/{self.name}/change_state", request).success


def _messages(values: dict[str, object]) -> list:
    return [Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()]


def _message(name: str, value: object) -> object:
    from rcl_interfaces.msg import Parameter as Message

    return Message(name=name, value=value)


# ---- the controller, with an arm that moves


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    with TestGraph(tmp_path_factory.mktemp("cell")) as graph:
        cell = Cell(graph, "live")
        graph.wait(lambda: cell.diagnosed("mode=live"), "the controller")
        graph.wait(lambda: (answer := cell.enable()) and answer.success, "live mode")
        yield cell


def test_a_lower_speed_limit_slows_the_moving_arm_down(cell: Cell) -> None:
    controller = Node(cell.graph, "controller")
    handle = cell.begin()
    cell.moving()
    assert controller.set(limits__speed=0.05) == [""] and controller.get("limits.speed") == 0.05
    since = cell.targets[-1]
    cell.graph.wait(lambda: stamp_to_ns(cell.targets[-1].header.stamp) - stamp_to_ns(since.header.stamp) > 10**9, "a second of setpoints")
    braked = stamp_to_ns(since.header.stamp) + 300_000_000  # it takes 75 ms
    slow = [message for message in cell.targets if stamp_to_ns(message.header.stamp) > braked]
    way = np.linalg.norm(pose_from_msg(slow[-1])[0] - pose_from_msg(slow[0])[0])
    seconds = (stamp_to_ns(slow[-1].header.stamp) - stamp_to_ns(slow[0].header.stamp)) / 1e9
    assert 0.02 < way / seconds < 0.05 * 1.05
    assert not cell.diagnosed("stopped:"), "a false fault"
    (refused,) = controller.set(limits__speed=0.1)
    assert refused == f"limits.speed: speed would allow more than now, and only stricter limits are taken on; else {BACK}"
    (refused,) = controller.set(limits__workspace_max=[0.3, 1.0, 1.0])
    assert refused.startswith("limits.workspace_max: the setpoint, or where it could stop, is outside this box: end the task")
    cell.graph.result(handle.cancel_goal_async(), "the cancel")
    cell.outcome(handle)


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": "shadow"},
        {"sink__rate": 50.0},
        {"control_hz": 10.0},
        {"limits__acceleration": 1.0},
        {"limits__joint_margin": 0.1},
        {"use_sim_time": True},
        {"ensemble": 1.0},
    ],
)
def test_what_is_read_in_configure_is_refused(cell: Cell, changed: dict) -> None:
    controller, name = Node(cell.graph, "controller"), next(iter(changed)).replace("__", ".")
    before = controller.get(name)
    assert controller.set(**changed) == [f"{name}: read in configure, and the node is active: {BACK}"]
    assert controller.get(name) == before
    assert controller.set(**{next(iter(changed)): before}) == [""], "it is so already"


def test_autostart_is_refused_at_any_time(cell: Cell) -> None:
    assert "on the command line" in Node(cell.graph, "controller").set(autostart=False)[0]


def test_several_are_set_together_or_one_by_one(cell: Cell) -> None:
    controller = Node(cell.graph, "controller")
    box = {"limits__workspace_min": [-1.0, -1.0, 0.0], "limits__workspace_max": [1.5, 1.0, 1.0]}
    assert controller.set_together(**box, mode="dry").startswith("mode: read in configure")
    assert list(controller.get("limits.workspace_max")) == [2.0, 2.0, 3.0], "all or none"
    assert controller.set_together(**box) == ""
    reasons = controller.set(limits__max_state_age=0.9, mode="dry", limits__following_position=0.09)
    assert [bool(reason) for reason in reasons] == [False, True, False]
    inverted = controller.set_together(limits__workspace_min=[1.6, -1.0, 0.0])
    assert "not below workspace_max" in inverted and list(controller.get("limits.workspace_min")) == [-1.0, -1.0, 0.0]


@pytest.mark.parametrize("value", [1, "fast", [0.1], True, -1.0, float("nan"), []])
def test_nonsense_is_refused(cell: Cell, value: object) -> None:
    controller = Node(cell.graph, "controller")
    before = controller.get("limits.angular_speed")
    if value == []:
        assert controller.set(limits__workspace_min=value)[0]
    else:
        assert controller.set(limits__angular_speed=value)[0]
    assert controller.get("limits.angular_speed") == before


def test_a_node_that_is_taken_back_reads_what_is_set_then(cell: Cell) -> None:
    controller = Node(cell.graph, "controller")
    controller.change(Transition.TRANSITION_DEACTIVATE)
    refused = controller.set(limits__acceleration=1.0)
    assert refused == ["limits.acceleration: read in configure, and the node is inactive: clean up the node, set it, configure it again"]
    assert controller.set(limits__gripper_rate=10.0) == [""]
    controller.change(Transition.TRANSITION_CLEANUP)
    assert controller.set(limits__acceleration=1.0, limits__speed=0.2, mode="shadow") == ["", "", ""]
    cell.health.clear()
    controller.change(Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    cell.graph.wait(lambda: cell.diagnosed("mode=shadow"), "the new mode")


# ---- policy and simulator


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGraph]:
    folder = tmp_path_factory.mktemp("others")
    with TestGraph(folder / "logs") as graph:
        graph.start("policy", "bitvla_ros.nodes.policy", {"policy": "replay", "model": str(recording(folder / "recording.npz"))})
        graph.start("simulation", "bitvla_ros.nodes.simulation", {"mode": "realtime", "cameras": [""]})
        for name in ("policy", "simulation"):
            graph.wait(lambda name=name: Node(graph, name).state() == State.PRIMARY_STATE_ACTIVE, f"the active {name}", START)
        yield graph


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("policy", {"model": "random:nano"}),
        ("policy", {"device": "cuda"}),
        ("policy", {"control_hz": 10.0}),
        ("policy", {"max_age": 0.01}),
        ("policy", {"cameras": ["front"]}),
        ("simulation", {"mode": "lockstep"}),
        ("simulation", {"seed": 3}),
    ],
)
def test_other_nodes_refuse_what_they_would_not_read(others: TestGraph, name: str, changed: dict) -> None:
    node, parameter = Node(others, name), next(iter(changed))
    before = node.get(parameter)
    assert node.set(**changed) == [f"{parameter}: read in configure, and the node is active: {BACK}"]
    assert node.get(parameter) == before
