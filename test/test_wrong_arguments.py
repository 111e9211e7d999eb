"""What is often mistyped is answered with one clear line, and a log folder that cannot be written keeps no node from starting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

from bitvla_ros.nodes import load, simulation, sinks
from bitvla_ros.nodes.processes import isolation, reserve_domain

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    domain, lock = reserve_domain()
    yield {**os.environ, **isolation(domain), "PYTHONUNBUFFERED": "1"}
    lock.close()


def output(environment: dict[str, str], module: str, *arguments: str, until: str) -> list[str]:
    """Lines that the node writes, up to one with `until`; then it is told to end. They are without Fast DDS's own warnings."""
    command = [sys.executable, "-m", f"bitvla_ros.nodes.{module}", "--ros-args", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    lines: list[str] = []
    for line in process.stdout:
        if "rmw_fastrtps" not in line:
            lines.append(line.rstrip())
        if until in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and lines, lines
    return lines


FAILED = "configure failed: "
NO_TOPIC = "which makes no name of a topic"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (
            "policy",
            {
                "cameras:=[]": "cameras is []: give array of text, such as ['']",
                "model:=[]": "model has no value: give text",
                "image_height:=-1": "image_height is -1: give whole number from 0 to 10000, pixels",
            },
        ),
        ("simulation", {"cameras:=['scene','']": f"cameras is '', {NO_TOPIC}"}),
        ("policy", {"cameras:=['left hand']": f"cameras is 'left hand', {NO_TOPIC} ('camera/left hand/image_raw'): give letters"}),
        (
            "controller",
            {
                "limits.clamp:=[]": "limits.clamp is []: give array of text, such as ['offset']",
                "joints:=[]": "joints is []: give array of text, such as ['']",
                "limits.workspace_min:=[]": "limits.workspace_min is []: give array of number with a decimal point",
                "sink.topic:=my arm": f"sink.topic is 'my arm', {NO_TOPIC}",
                "gripper.topic:=''": f"gripper.topic is '', {NO_TOPIC}",
            },
        ),
        (
            "simulation",
            {
                "cameras:=['left hand']": f"cameras is 'left hand', {NO_TOPIC}",
                "task:=two": "task is 'two': give whole number from 0 to 10000",
                "image_size:=-64": "image_size is -64: give whole number from 8 to 2048, pixels",
            },
        ),
    ],
)
def test_wrong_values_are_named_in_one_line(environment, module: str, arguments: dict[str, str]) -> None:
    lines = output(environment, module, *(part for argument in arguments for part in ("-p", argument)), until=FAILED)
    (line,) = [line for line in lines if FAILED in line]
    problems = line.partition(FAILED)[2].split("; ")
    assert len(problems) == len(arguments), line
    for expected in arguments.values():
        assert any(problem.startswith(expected) for problem in problems), line
    assert "Traceback" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("table", "name", "value", "expected"),
    [
        (load.PARAMETERS, "cameras", ("1st",), NO_TOPIC),
        (load.PARAMETERS, "cameras", ("",), None),
        (load.PARAMETERS, "cameras", ("scene", "scene"), "cameras names 'scene' twice"),
        (load.PARAMETERS, "cameras", ("scene", "hand_2"), None),
        (simulation.PARAMETERS, "cameras", ("",), None),
        (sinks.PARAMETERS, "sink.topic", "", None),
        (sinks.PARAMETERS, "sink.topic", "/arm/target_pose", None),
        (sinks.PARAMETERS, "sink.topic", "~/target", None),
        (sinks.PARAMETERS, "sink.topic", "arm//target", NO_TOPIC),
        (sinks.PARAMETERS, "sink.servo_node", "servo node", NO_TOPIC),
        (sinks.PARAMETERS, "sink.servo_node", "/servo_node", None),
        (sinks.PARAMETERS, "gripper.action", "a b", NO_TOPIC),
        (sinks.PARAMETERS, "gripper.action", "", NO_TOPIC),
    ],
)
def test_what_becomes_a_topic_is_checked(table, name: str, value: object, expected: str | None) -> None:
    problem = next(parameter for parameter in table if parameter.name == name).problem(value)
    assert problem is None if expected is None else expected in problem


def test_an_empty_list_in_a_file_is_one_line(environment, tmp_path: Path) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text("/**:\n  ros__parameters:\n    gripper_joints: []\n    policy: expert\n")
    lines = output(environment, "policy", "--params-file", str(path), until=FAILED)
    expected = "gripper_joints is []: give array of text, such as ['panda_finger_joint1', 'panda_finger_joint2']"
    assert any(line.endswith(expected) for line in lines)


@pytest.mark.parametrize("module", ["policy", "controller", "simulation"])
def test_a_node_starts_without_its_log_file(environment, tmp_path: Path, module: str) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "log")
    arguments = ("-p", "policy:=expert") if module == "policy" else ()
    lines = output({**environment, "ROS_LOG_DIR": folder}, module, *arguments, until=": active")
    expected = f"there will be no log file: {folder} cannot be written (Not a directory); set ROS_LOG_DIR to a folder that can be"
    assert lines.count(expected) == 1 and "Traceback" not in "\n".join(lines)


def test_the_log_folder_is_found_as_ros_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bitvla_ros.nodes.log_folder import log_arguments, log_folder

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ROS_LOG_DIR", "ROS_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert log_folder() == tmp_path / ".ros/log"
    monkeypatch.setenv("ROS_HOME", str(tmp_path / "home"))
    assert log_folder() == tmp_path / "home/log"
    monkeypatch.setenv("ROS_LOG_DIR", "~/logs")
    assert log_folder() == tmp_path / "logs"
    assert log_arguments() == [] and not list((tmp_path / "logs").iterdir())
