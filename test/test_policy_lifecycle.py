"""The policy node's life: what it refuses to be configured with, and how its end is noticed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

import yaml
from graph import TestGraph
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSLivelinessPolicy
from robot import MODULE, START, Robot, recording

from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.nodes.events import SubscriptionEventCallbacks
from bitvla_ros.nodes.lifecycle import AUTOSTART
from bitvla_ros.nodes.policy import PARAMETERS
from bitvla_ros.nodes.qos import CHUNK, LIVELINESS_LEASE

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def unconfigured(tmp_path_factory) -> Iterator[Robot]:
    with TestGraph(tmp_path_factory.mktemp("configure")) as graph:
        graph.start("policy", MODULE, {"autostart": False, "control_hz": 20.0, "threads": 1})
        yield Robot(graph)


def configure(robot: Robot, **parameters) -> bool:
    values = [RosParameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
    results = robot.graph.call(SetParameters, "/policy/set_parameters", SetParameters.Request(parameters=values)).results
    assert all(result.successful for result in results), results
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    return robot.graph.call(ChangeState, "/policy/change_state", request, START).success


def damage(checkpoint: Path, folder: Path, how: str) -> Path:
    """A copy of a checkpoint with one thing wrong."""
    from safetensors.torch import load_file, save_file

    copy = folder / how
    shutil.copytree(checkpoint, copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    copy.chmod(0o755)
    weights = copy / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "nan":
        tensors = load_file(weights)
        name = next(name for name in tensors if "mlp" in name)
        tensors[name].view(-1)[3] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
    elif how == "no_weights":
        weights.unlink()
    elif how == "wrong_shape":
        tensors = load_file(weights)
        name = next(name for name in tensors if "mlp" in name and tensors[name].ndim == 2)
        tensors[name] = tensors[name][:-1].contiguous()
        save_file(tensors, weights, {"format": "pt"})
    return copy


def refused_configuration(robot: Robot, **parameters) -> str:
    seen = len(robot.statuses())
    assert not configure(robot, **parameters)
    assert robot.graph.call(GetState, "/policy/get_state", GetState.Request()).current_state.id == State.PRIMARY_STATE_UNCONFIGURED
    failed = robot.graph.wait(lambda: [s for s in robot.statuses()[seen:] if s.level == b"\x02"], "error on /diagnostics")
    return failed[-1].message


DEFAULT = {
    "policy": "bitvla",
    "model": "",
    "control_hz": 20.0,
    "seed": 0,
    "norm_key": "",
    "state_source": "pose",
    "device": "cpu",
    "backend": "auto",
    "activation_bits": 8,
}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "the parameter model is empty"),
        ({"model": "random:giant"}, "nano"),
        ({"model": "random:nano", "norm_key": "libero"}, "norm_key is 'libero', but random:nano states 'random': leave norm_key out"),
        ({"model": "random:nano", "control_hz": 10.0}, "control_hz is 10, but random:nano states 20: leave control_hz out"),
        ({"policy": "expert", "model": "nano"}, "model is not read by the expert, only by a replay, random weights, a trained model"),
        ({"model": "nano", "seed": 3}, "seed is not read by a trained model, only by random weights: leave it out"),
        ({"policy": "replay", "model": "/nowhere/recording.npz"}, "expected an .npz file"),
        ({"policy": "expert", "suite": "tabletop_juggling"}, "tabletop_object"),
        ({"device": "cuda:99", "model": "random:nano"}, "give cpu"),
        ({"backend": "triton", "model": "random:nano"}, "the backend triton cannot be used"),
        ({"backend": "cpu", "activation_bits": 0, "model": "random:nano"}, "needs int8 activations"),
        ({"state_source": "tf"}, "apt install ros-"),
    ],
)
def test_wrong_configuration_is_refused_with_the_remedy(unconfigured, parameters, expected) -> None:
    message = refused_configuration(unconfigured, **{**DEFAULT, **parameters})
    assert message.startswith("configure failed: ") and expected in message


@pytest.mark.parametrize(
    ("how", "parameters", "expected"),
    [
        ("missing", {}, "missing"),
        ("truncated", {}, "model.safetensors"),
        ("nan", {}, "finite|NaN|nan"),
        ("no_weights", {}, "safetensors"),
        ("wrong_shape", {}, "shape"),
        ("whole", {"norm_key": "bridge_orig"}, "bridge_orig.*libero_spatial_no_noops"),
    ],
)
def test_broken_checkpoint_is_refused_and_the_node_stays_unconfigured(unconfigured, shared, tmp_path, how, parameters, expected) -> None:
    import re

    checkpoint = shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a"
    model = tmp_path / "missing" if how == "missing" else damage(checkpoint, tmp_path, how)
    message = refused_configuration(unconfigured, **{**DEFAULT, "control_hz": 20.0, "model": str(model), **parameters})
    assert re.search(expected, message), message


def test_refused_node_can_be_put_right(unconfigured, shared) -> None:
    refused_configuration(unconfigured, **DEFAULT)
    model = str(shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a")
    assert configure(unconfigured, **{**DEFAULT, "model": model, "control_hz": 20.0})
    for transition in (Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert unconfigured.graph.call(ChangeState, "/policy/change_state", request).success


# ---- liveliness and the end


class Policies:
    """Policy nodes that play a recording, each in a namespace of its own, and the counts of their publishers that are alive."""

    def __init__(self, graph: TestGraph, *names: str) -> None:
        self.graph = graph
        model = str(recording(graph.logs / "recording.npz"))
        for name in names:
            graph.start(name, MODULE, {"policy": "replay", "model": model}, "--ros-args", "-r", f"__ns:=/{name}", "--")
        self.alive: dict[str, list[int]] = {name: [] for name in names}
        for name, counts in self.alive.items():
            callbacks = SubscriptionEventCallbacks(liveliness=lambda event, counts=counts: counts.append(event.alive_count))
            graph.node.create_subscription(ActionChunkMsg, f"{name}/action_chunk", lambda _: None, CHUNK, event_callbacks=callbacks)

    def wait(self, name: str, alive: int, seconds: float = 30.0) -> None:
        self.graph.wait(lambda: self.alive[name][-1:] == [alive], f"{alive} alive in {name}", seconds)


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> Iterator[Policies]:
    with TestGraph(tmp_path_factory.mktemp("ends")) as graph:
        yield Policies(graph, "killed", "stopped", "inactive", "interrupted", "terminated")


@pytest.mark.parametrize(("name", "number"), [("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)])
def test_killed_or_stopped_node_loses_its_liveliness(policies: Policies, name: str, number: int) -> None:
    policies.wait(name, 1, START)
    policies.graph.kill(name, number)
    policies.wait(name, 0, 5.0)
    if number == signal.SIGSTOP:
        policies.graph.kill(name, signal.SIGCONT)


def test_the_node_itself_says_that_it_lives(policies: Policies) -> None:
    policies.wait("inactive", 1, START)
    (offer,) = policies.graph.node.get_publishers_info_by_topic("inactive/action_chunk")
    assert offer.qos_profile.liveliness == QoSLivelinessPolicy.MANUAL_BY_TOPIC
    assert offer.qos_profile.liveliness_lease_duration == LIVELINESS_LEASE


def test_inactive_node_is_not_alive_and_can_begin_again(policies: Policies) -> None:
    robot = Robot(policies.graph, "inactive")
    robot.task()
    robot.answer()
    for transition, alive in ((Transition.TRANSITION_DEACTIVATE, 0), (Transition.TRANSITION_ACTIVATE, 1)):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert policies.graph.call(ChangeState, "inactive/policy/change_state", request).success
        policies.wait("inactive", alive)
    robot.answer()


@pytest.mark.parametrize(("name", "number"), [("interrupted", signal.SIGINT), ("terminated", signal.SIGTERM)])
def test_node_ends_cleanly_on_a_signal(policies: Policies, name: str, number: int) -> None:
    process = policies.graph.processes[name]
    robot = Robot(policies.graph, name)
    robot.task()
    robot.answer()
    policies.graph.kill(name, number)
    assert process.popen.wait(20) == 0, process.tail()
    assert "Traceback" not in process.tail(40)


def test_parameter_file_shows_every_default() -> None:
    path = Path(__file__).resolve().parents[1] / "config/policy.yaml"
    shown = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    assert shown == {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in (AUTOSTART, *PARAMETERS)}
