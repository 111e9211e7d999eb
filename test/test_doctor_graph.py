"""`bitvla doctor` in real graphs: around our simulator, and around a robot on which much is wrong, or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

import rclpy
from geometry_msgs.msg import PoseStamped
from graph import TestGraph
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from robot import MS, Robot
from sensor_msgs.msg import JointState

from bitvla_ros.msg import EndEffectorCommand, SimulationState
from bitvla_ros.nodes.conversions import image_to_msg, joint_state_to_msg, ns_to_stamp
from bitvla_ros.nodes.qos import COMMAND, LATCHED, STATES

pytestmark = pytest.mark.ros


def depends_on_speed(check: str) -> bool:
    """What a busy machine may rightly be told."""
    return check.endswith((": rate", ": stamps")) or check in ("gate", "skew")


def doctor(graph: TestGraph, *arguments: object, feed: Callable[[], object] = lambda: None, hz: float = 20.0) -> dict:
    """Run the verb beside a robot that is fed meanwhile; its report, with the findings by their check under "by"."""
    output = graph.logs / "doctor.json"
    command = [sys.executable, "-m", "bitvla_ros.cli", "doctor", "--json", *map(str, arguments)]
    with open(output, "wb") as out, open(graph.logs / "doctor.log", "wb") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log)
    try:
        while process.poll() is None:
            feed()
            graph.spin(1 / hz)
    finally:
        process.kill()
    assert process.returncode in (0, 1), (graph.logs / "doctor.log").read_text()
    report = json.loads(output.read_text())
    assert process.returncode == (1 if report["error"] else 0)
    assert (report["counts"]["fail"] > 0) == (process.returncode == 1)
    return report | {"by": {check["check"]: check for check in report["checks"]}}


@pytest.mark.parametrize("mode", ["realtime", "lockstep"])
def test_of_our_simulator_nothing_is_wrong(tmp_path: Path, mode: str):
    with TestGraph(tmp_path) as graph:
        states = graph.collect(SimulationState, "simulation_state", LATCHED)
        graph.start("simulation", "bitvla_ros.nodes.simulation", {"mode": mode, "image_size": 64})
        graph.wait(lambda: states, "the first tick")
        report = doctor(graph, "--seconds", 1.5)
        domain = graph.domain
    found = report["by"]
    assert found["graph"]["found"].endswith(f"in ROS domain {domain}, discovery LOCALHOST")
    assert [check for check in report["checks"] if check["level"] == "fail" and not depends_on_speed(check["check"])] == []
    for name in ("camera scene", "camera wrist", "joint_states", "end_effector_pose", "simulation_state"):
        assert all(found[f"{name}: {part}"]["level"] == "ok" for part in ("topic", "QoS"))
    assert all(found[name]["level"] == "ok" for name in ("camera roles", "gripper", "end effector", "sink: listener", "sink: publishers"))
    if mode == "lockstep":
        assert found["gate"]["found"].endswith("would be acted upon")
        assert {check["level"] for check in report["checks"]} <= {"ok", "skip"}


def test_localhost_only_is_the_discovery_range_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with TestGraph(tmp_path) as graph:
        for name, value in {"DISTRO": "humble", "LOCALHOST_ONLY": "1", "AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}.items():
            monkeypatch.setenv(f"ROS_{name}", value)
        found = doctor(graph, "--seconds", 0.5)["by"]["graph"]
    assert found["found"].endswith("discovery LOCALHOST")


def test_everything_that_is_wrong_on_a_robot_is_found_at_once(tmp_path: Path):
    with TestGraph(tmp_path) as graph:
        robot = Robot(graph, cameras=("scene", "wrist"))
        best_effort = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        states = graph.node.create_publisher(SimulationState, "simulation_state", best_effort)
        graph.node.create_publisher(EndEffectorCommand, "end_effector_command", COMMAND)
        other = rclpy.create_node("other", context=graph.node.context)
        others_joints = other.create_publisher(JointState, "joint_states", STATES)
        random, sign = np.random.default_rng(1), 1.0
        picture = random.integers(0, 256, (64, 64, 3), np.uint8)

        def feed() -> None:
            nonlocal sign
            sign = -sign
            stamp, image = robot.now(), picture.copy()
            image[0] = random.integers(0, 256, (64, 3), np.uint8)  # moves, yet is the same picture
            for role, publisher in robot.images.items():
                publisher.publish(image_to_msg(image, 0 if role == "wrist" else stamp, role))
            robot.feed_joints(stamp + 200 * MS, fingers=(0.02, 0.02))
            others_joints.publish(joint_state_to_msg(["panda_joint1"], [0.7], stamp + 200 * MS))
            robot.feed_pose(stamp, quaternion=(sign, 0.0, 0.0, 0.0))
            state = SimulationState()
            state.header.stamp = ns_to_stamp(stamp)
            states.publish(state)

        found = doctor(graph, "--seconds", 1.5, "--model", tmp_path / "no_model", feed=feed)["by"]
        other.destroy_node()
    expected = {
        "camera roles": "show the same picture",
        "camera wrist: stamps": "are zero",
        "joint_states: stamps": "two values of panda_joint1 at one stamp",
        "gripper": "expected +w/2 and -w/2",
        "end effector": "changed sign",
        "simulation_state: QoS": "Best effort publisher and reliable subscription",
        "sink: listener": "nobody listens to /end_effector_command",
        "sink: publishers": "/test",
        "model": "no_model",
    }
    for check, words in expected.items():
        assert (found[check]["level"], words in found[check]["found"]) == ("fail", True), found[check]
        assert found[check]["remedy"]
    assert "/test" in found["joint_states: stamps"]["found"] and "/other" in found["joint_states: stamps"]["found"]
    assert found["end_effector_pose: topic"]["level"] == found["camera scene: QoS"]["level"] == "ok"


def test_an_arm_is_found_where_its_profile_and_the_command_line_remap_it(tmp_path: Path):
    profile = tmp_path / "cell.yaml"
    profile.write_text(
        """
/**/policy:
  ros__parameters: {cameras: [scene]}
/**/controller:
  ros__parameters: {simulator: false, mode: live, time_limit: 60.0, sink: {kind: pose, topic: /arm/target, silence_timeout: 0.1}}
/**/launch:
  ros__parameters: {remappings: ["joint_states:=/arm/joint_states", "end_effector_pose:=/arm/end_effector_pose"]}
"""
    )
    with TestGraph(tmp_path) as graph:
        robot = Robot(graph, namespace="arm", cameras=("scene",))
        graph.node.create_subscription(PoseStamped, "/arm/target", lambda message: None, COMMAND)
        given = ("--profile", profile, "--remap", "camera/scene/image_raw:=/arm/camera/scene/image_raw", "--seconds", 1.5)
        found = doctor(graph, *given, feed=robot.feed, hz=30)["by"]
    topics = {"camera scene": "camera/scene/image_raw", "joint_states": "joint_states", "end_effector_pose": "end_effector_pose"}
    for name, topic in topics.items():
        assert found[f"{name}: topic"]["found"] == f"/arm/{topic} from /test"
        assert f"{name}: stamps" in found  # something came
    assert found["sink: listener"]["found"] == "/test listens to /arm/target"
    assert [finding for name, finding in found.items() if finding["level"] == "fail" and not depends_on_speed(name)] == []
    assert "simulation_state: topic" not in found
