"""What must not wait uses no shared memory: the controller's participant, and the one that publishes chunks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray
from graph import TestGraph

from bitvla_ros.nodes import transports
from bitvla_ros.nodes.processes import LOCALHOST_ONLY, PEERS, RANGE, discovery_range, isolation, reserve_domain
from bitvla_ros.nodes.transports import IMAGES, LOCALHOST, chosen, udp_alone

ROOT = Path(__file__).resolve().parents[1]
TRANSPORTS, PROFILES = "FASTDDS_BUILTIN_TRANSPORTS", "FASTDDS_DEFAULT_PROFILES_FILE"
OLD_PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
PORTS = re.compile(r"fast\w+_port\d+")  # of Fast DDS's shared memory, as files that a process has mapped


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TRANSPORTS, PROFILES, OLD_PROFILES, RANGE, LOCALHOST_ONLY, PEERS, "RMW_IMPLEMENTATION"):
        monkeypatch.delenv(name, raising=False)


def settings() -> tuple[str | None, str | None, str | None]:
    profile = os.environ.get(PROFILES) or os.environ.get(OLD_PROFILES)
    return os.environ.get(RANGE), profile and Path(profile).name, os.environ.get(TRANSPORTS)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a release that reads the discovery range."""
    monkeypatch.delenv("ROS_DISTRO", raising=False)


@pytest.mark.parametrize(
    ("distro", "wheels", "expected"),
    [
        ("kilted", (), [PROFILES]),
        ("jazzy", (), [OLD_PROFILES]),
        ("humble", (), [OLD_PROFILES]),
        ("", ("ros-fastdds",), [PROFILES]),
        ("", ("ros-fastrtps",), [OLD_PROFILES]),
        ("", (), [PROFILES, OLD_PROFILES]),
    ],
)
def test_fast_dds_is_not_given_the_variable_of_another_version(monkeypatch, distro, wheels, expected) -> None:
    """Version 3 warns of version 2's at every start."""
    monkeypatch.setenv("ROS_DISTRO", distro)
    monkeypatch.setattr(transports, "_has_wheel", wheels.__contains__)
    assert list(transports.read_by_fast_dds()) == expected
    monkeypatch.setenv(RANGE, "LOCALHOST")
    monkeypatch.setenv(LOCALHOST_ONLY, "1")
    with chosen():
        assert [name for name in (PROFILES, OLD_PROFILES) if name in os.environ] == expected


@pytest.mark.usefixtures("newest")
@pytest.mark.parametrize("profile", [None, str(ROOT / "config" / IMAGES)], ids=["no profile", "for images"])
@pytest.mark.parametrize(
    ("found", "main", "alone"),
    [
        ("SUBNET", ("SUBNET", None, "LARGE_DATA"), ("SUBNET", None, "UDPv4")),
        ("LOCALHOST", ("SYSTEM_DEFAULT", LOCALHOST, "SHM"), ("SYSTEM_DEFAULT", LOCALHOST, "NONE")),
        ("localhost", ("SYSTEM_DEFAULT", LOCALHOST, "SHM"), ("SYSTEM_DEFAULT", LOCALHOST, "NONE")),
    ],
)
def test_each_participant_has_its_choice(
    monkeypatch: pytest.MonkeyPatch, found: str, profile: str | None, main: tuple[str, ...], alone: tuple[str, ...]
) -> None:
    monkeypatch.setenv(RANGE, found)
    monkeypatch.setenv(TRANSPORTS, "LARGE_DATA")
    if profile:
        monkeypatch.setenv(PROFILES, profile)
    before = settings()
    with chosen():
        assert settings() == main
        with udp_alone():
            assert settings() == alone
        assert settings() == main
    assert settings() == before


@pytest.mark.parametrize("release", ["humble", "jazzy"])
def test_localhost_only_is_the_range_localhost_where_it_is_read(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    for name, value in (("ROS_DISTRO", release), (LOCALHOST_ONLY, "1"), (RANGE, "SUBNET")):
        monkeypatch.setenv(name, value)
    with chosen():
        assert settings() == ("SYSTEM_DEFAULT", LOCALHOST, "SHM") and LOCALHOST_ONLY not in os.environ
        with udp_alone():
            assert settings() == ("SYSTEM_DEFAULT", LOCALHOST, "NONE")
    assert os.environ[LOCALHOST_ONLY] == "1"


@pytest.mark.parametrize(
    ("environment", "humble", "jazzy", "kilted"),
    [
        ({}, "SUBNET", "SUBNET", "SUBNET"),
        ({RANGE: "LOCALHOST"}, "SUBNET", "LOCALHOST", "LOCALHOST"),
        ({RANGE: "OFF"}, "SUBNET", "OFF", "OFF"),
        ({RANGE: "anything else"}, "SUBNET", "LOCALHOST", "LOCALHOST"),
        ({RANGE: "SUBNET", LOCALHOST_ONLY: "1"}, "LOCALHOST", "LOCALHOST", "SUBNET"),
        ({RANGE: "SYSTEM_DEFAULT", LOCALHOST_ONLY: "0"}, "SUBNET", "SYSTEM_DEFAULT", "SYSTEM_DEFAULT"),
    ],
)
def test_the_range_that_a_process_takes(environment: dict[str, str], humble: str, jazzy: str, kilted: str) -> None:
    for release, expected in (("humble", humble), ("jazzy", jazzy), ("kilted", kilted)):
        assert discovery_range({**environment, "ROS_DISTRO": release}) == expected
    assert discovery_range(environment) == kilted  # PyPI's wheels name no release


@pytest.mark.usefixtures("newest")
@pytest.mark.parametrize("name", [PROFILES, "ROS_STATIC_PEERS"])
def test_what_the_user_has_set_up_stays_in_force(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(RANGE, "LOCALHOST")
    monkeypatch.setenv(name, "/opt/robot/discovery.xml")
    with chosen(), udp_alone():
        assert os.environ[RANGE] == "LOCALHOST" and os.environ[name] == "/opt/robot/discovery.xml" and os.environ[TRANSPORTS] == "UDPv4"


@pytest.mark.usefixtures("newest")
@pytest.mark.parametrize(("rmw", "range"), [("rmw_cyclonedds_cpp", "LOCALHOST"), ("rmw_fastrtps_dynamic_cpp", "SYSTEM_DEFAULT")])
def test_another_rmw_keeps_the_range(monkeypatch: pytest.MonkeyPatch, rmw: str, range: str) -> None:
    monkeypatch.setenv("RMW_IMPLEMENTATION", rmw)
    monkeypatch.setenv(RANGE, "LOCALHOST")
    with chosen():
        assert os.environ[RANGE] == range


SENDER = """
import re, rclpy
from rclpy.node import Node
from bitvla_ros.nodes.processes import LOCALHOST_ONLY, PEERS, RANGE, discovery_range, isolation, reserve_domain
from bitvla_ros.nodes.transports import Sender, chosen
def ports(): return sorted(set(re.findall(r"fast\\w+_port\\d+", open("/proc/self/maps").read())))
with chosen():
    rclpy.init()
    node = Node("policy", namespace="arm")
    before = ports()
    sender = Sender(node, "_policy_sender")
    print(len(before), ports() == before, sender.node.get_fully_qualified_name())
    sender.close()
    rclpy.shutdown()
"""


@pytest.fixture(params=["SUBNET", "LOCALHOST"])
def discovery(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The discovery range of the graphs that the test starts."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no shared memory")
    monkeypatch.setattr("bitvla_ros.nodes.processes.DISCOVERY", request.param)
    return request.param


PROFILE = pytest.mark.parametrize("profile", [None, ROOT / "config" / IMAGES], ids=["default", "for images"])


@pytest.mark.ros
@PROFILE
def test_a_sender_beside_shared_memory_has_none(discovery: str, monkeypatch: pytest.MonkeyPatch, profile: Path | None) -> None:
    if profile:
        monkeypatch.setenv(PROFILES, str(profile))
    domain, lock = reserve_domain()  # without any other participant, whose ports would be mapped too
    with lock:
        environment = {**os.environ, **isolation(domain)}
        done = subprocess.run([sys.executable, "-c", SENDER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, same, name = done.stdout.split()
    assert int(count) > 0 and same == "True" and name == "/arm/_policy_sender"


@pytest.mark.ros
@PROFILE
def test_the_controller_has_none_and_all_find_each_other(
    discovery: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Path | None
) -> None:
    if profile:
        monkeypatch.setenv(PROFILES, str(profile))
    with TestGraph(tmp_path) as graph:
        check_transports(graph)


def check_transports(graph: TestGraph) -> None:
    health: dict[str, str] = {}

    def on_diagnostics(array: DiagnosticArray) -> None:
        health.update({status.name: status.message for status in array.status})

    graph.node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    nodes = {"controller": {}, "simulation": {"mode": "realtime"}, "policy": {"policy": "expert", "suite": "tabletop_object"}}
    for name, parameters in nodes.items():
        graph.start(name, f"bitvla_ros.nodes.{name}", parameters)
    graph.wait(lambda: health.get("controller") == "ready" and len(health) == 3, "controller that hears a policy", 90.0)
    mapped = {name: PORTS.findall(Path(f"/proc/{process.popen.pid}/maps").read_text()) for name, process in graph.processes.items()}
    assert mapped["simulation"] and mapped["policy"] and not mapped["controller"]
    expected = {"action_chunk": {"_policy_sender"}, "/diagnostics": {"_policy_sender", "controller", "simulation"}}

    def publishers() -> dict[str, set[str]]:
        return {topic: {info.node_name for info in graph.node.get_publishers_info_by_topic(topic)} for topic in expected}

    graph.wait(lambda: publishers() == expected, "publishers by their nodes")  # this node may learn of them later than the controller


@pytest.mark.ros
@pytest.mark.parametrize(("name", "parameters"), [("controller", {}), ("policy", {"policy": "expert", "suite": "tabletop_object"})])
def test_on_this_machine_alone_nobody_else_is_listened_to(tmp_path: Path, name: str, parameters: dict[str, str]) -> None:
    with TestGraph(tmp_path) as graph:
        process = graph.start(name, f"bitvla_ros.nodes.{name}", parameters)
        graph.wait(lambda: "active" in process.tail(), "active node")
        assert listening(process.popen.pid) == {"127.0.0.1"}


def listening(pid: int) -> set[str]:
    """Addresses of a process's UDP sockets (proc(5): /proc/net/udp)."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return {str(IPv4Address(int(row[1][:8], 16).to_bytes(4, sys.byteorder))) for row in rows if row[9] in inodes}
