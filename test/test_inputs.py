"""Where the policy listens: remapped topics, and image_transport's suffix behind them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

import rclpy
from graph import TestGraph

from bitvla_ros.action_convention import OSC
from bitvla_ros.nodes.doctor.facts import Expected
from bitvla_ros.nodes.doctor.gather import Listener
from bitvla_ros.nodes.inputs import PARAMETERS, Inputs
from bitvla_ros.nodes.parameters import ParameterError
from bitvla_ros.nodes.schedule import Schedule
from bitvla_ros.policy.gate import Reason, Refused
from bitvla_ros.policy.policy import PolicySpec

pytestmark = pytest.mark.ros

BASE = "camera/scene/image_raw:=/front/color/image_raw"
RULES = {
    (): "/cell/camera/scene/image_raw",
    (BASE,): "/front/color/image_raw",
    ("camera/scene/image_raw:=color",): "/cell/color",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    with TestGraph(tmp_path_factory.mktemp("inputs")) as made:
        yield made


def node_with(graph: TestGraph, rules: tuple[str, ...]):
    arguments = ["--ros-args", *(part for rule in rules for part in ("-r", rule))]
    return rclpy.create_node("looks", namespace="/cell", context=graph.node.context, cli_args=arguments)


def parameters(**changes: object) -> dict:
    return {parameter.name: parameter.default for parameter in PARAMETERS} | changes


@pytest.mark.parametrize("transport", ["raw", "compressed"])
@pytest.mark.parametrize("rules", RULES)
def test_a_cameras_base_topic_is_remapped_whatever_its_transport(graph, rules, transport):
    expected = RULES[rules] + ("/compressed" if transport == "compressed" else "")
    listens_on(graph, rules, transport, expected)


def test_the_whole_name_of_a_compressed_topic_may_be_remapped_too(graph):
    listens_on(graph, ("camera/scene/image_raw/compressed:=/small",), "compressed", "/small")


def test_cameras_that_change_places_are_remapped_once(graph):
    listens_on(graph, ("camera/scene/image_raw:=camera/wrist/image_raw", "camera/wrist/image_raw:=camera/scene/image_raw"), "raw",
               "/cell/camera/wrist/image_raw")  # fmt: skip


def test_the_side_of_quaternions_is_the_models(graph):
    spec = PolicySpec("test", (), 1, 20.0, False, "", OSC)
    node = node_with(graph, ())
    try:
        opposite = SimpleNamespace(**parameters(orientation_branch=(-1.0, 0.0, 0.0, 0.0)))
        with pytest.raises(ParameterError, match=r"orientation_branch is \(-1.0, 0.0, 0.0, 0.0\), but the model was trained with \(1.0"):
            Inputs(node, opposite, spec, None, lambda: None, lambda error: None)
        near = SimpleNamespace(**parameters(orientation_branch=(0.9, 0.1, 0.0, 0.0)))
        Inputs(node, near, spec, None, lambda: None, lambda error: None).close()
    finally:
        node.destroy_node()


def listens_on(graph: TestGraph, rules: tuple[str, ...], transport: str, expected: str) -> None:
    node = node_with(graph, rules)
    try:
        spec = PolicySpec("test", ("scene",), 1, 20.0, False, "")
        inputs = Inputs(node, SimpleNamespace(**parameters(camera_transport=transport)), spec, None, lambda: None, lambda error: None)
        assert expected in [subscription.topic_name for subscription in node.subscriptions]
        with pytest.raises(Refused) as refused:
            inputs.observe(Schedule("lift it"))
        assert refused.value.reason is Reason.MISSING_STREAM
        assert f"scene ({expected})" in str(refused.value) and "gripper (/cell/joint_states)" in str(refused.value)
        inputs.close()
        policy = parameters(camera_transport=transport, cameras=("scene",))
        listener = Listener(node, Expected("", policy, {"state_source": "pose", "simulator": False}))
        assert listener.graph.streams["camera scene"].topic == expected
    finally:
        node.destroy_node()
