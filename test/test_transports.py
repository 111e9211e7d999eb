"""What must not wait uses no shared memory: the controller's participant, and the one that publishes chunks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from graph import TestGraph

from bitvla_ros.nodes.transports import OURS, udp_alone

ROOT = Path(__file__).resolve().parents[1]
TRANSPORTS, PROFILES = "FASTDDS_BUILTIN_TRANSPORTS", "FASTDDS_DEFAULT_PROFILES_FILE"
PORTS = re.compile(r"fast\w+_port\d+")  # of Fast DDS's shared memory, as files that a process has mapped


@pytest.mark.parametrize("profile", ["/opt/robot/discovery.xml", None])
def test_a_profile_of_the_users_own_stays_in_force(monkeypatch: pytest.MonkeyPatch, profile: str | None) -> None:
    monkeypatch.setenv(TRANSPORTS, "LARGE_DATA")
    monkeypatch.delenv(PROFILES, raising=False)
    if profile:
        monkeypatch.setenv(PROFILES, profile)
    with udp_alone():
        assert os.environ[TRANSPORTS] == "UDPv4" and os.environ.get(PROFILES) == profile
    assert os.environ[TRANSPORTS] == "LARGE_DATA" and os.environ.get(PROFILES) == profile


def test_our_profile_for_images_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRANSPORTS, raising=False)
    monkeypatch.setenv(PROFILES, str(ROOT / "config" / OURS))
    with udp_alone():
        assert PROFILES not in os.environ
    assert TRANSPORTS not in os.environ and os.environ[PROFILES].endswith(OURS)


SENDER = """
import re, rclpy
from rclpy.node import Node
from bitvla_ros.nodes.transports import Sender
def ports(): return sorted(set(re.findall(r"fast\\w+_port\\d+", open("/proc/self/maps").read())))
rclpy.init()
node = Node("policy", namespace="arm")
before = ports()
sender = Sender(node, "_policy_chunks")
print(len(before), ports() == before, sender.node.get_fully_qualified_name())
sender.close()
rclpy.shutdown()
"""


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestGraph]:
    """A graph whose nodes discover nobody: in one of LOCALHOST rmw_fastrtps chooses the transports."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no shared memory")
    with TestGraph(tmp_path) as graph:
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
        monkeypatch.setenv(TRANSPORTS, "DEFAULT")
        yield graph


@pytest.mark.ros
def test_a_sender_beside_a_node_with_shared_memory_has_none(alone: TestGraph) -> None:
    done = subprocess.run([sys.executable, "-c", SENDER], env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    count, same, name = done.stdout.split()
    assert int(count) > 0 and same == "True" and name == "/arm/_policy_chunks"


@pytest.mark.ros
@pytest.mark.parametrize("profile", [None, ROOT / "config" / OURS], ids=["default", "for images"])
def test_the_controller_has_none(alone: TestGraph, monkeypatch: pytest.MonkeyPatch, profile: Path | None) -> None:
    if profile:
        monkeypatch.setenv(PROFILES, str(profile))
    for name in ("controller", "simulation"):
        alone.start(name, f"bitvla_ros.nodes.{name}", {})
    alone.wait(lambda: all("active" in process.tail() for process in alone.processes.values()), "both nodes")
    mapped = {name: PORTS.findall(Path(f"/proc/{process.popen.pid}/maps").read_text()) for name, process in alone.processes.items()}
    assert mapped["simulation"] and not mapped["controller"]
