"""The launch files under the real launch and launch_ros, with the running parameters read back from the nodes.

They come with a ROS installation. Elsewhere BITVLA_LAUNCH_SOURCES names a folder that holds the Python packages launch, launch_ros and
osrf_pycommon (of github.com/ros2/launch, ros2/launch_ros, osrf/osrf_pycommon) and composition_interfaces, built.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from graph import TestGraph
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from robot import recording

from bitvla_ros.nodes.processes import Process

REPOSITORY = Path(__file__).resolve().parents[1]
PROFILES = sorted(path.stem for path in (REPOSITORY / "config" / "profiles").glob("*.yaml"))
PATIENCE = 120.0  # s

SOURCES = os.environ.get("BITVLA_LAUNCH_SOURCES", "")
PREFIX = {"PYTHONPATH": str(REPOSITORY), "AMENT_PREFIX_PATH": sys.prefix}
ENVIRONMENT = {name: os.pathsep.join(filter(None, (first, os.environ.get(name)))) for name, first in PREFIX.items()}
ENVIRONMENT["PYTHONPATH"] += os.pathsep + SOURCES


def unavailable() -> str:
    """Why the real launch cannot be imported here, or nothing."""
    code = "import launch.actions, launch_ros.actions"
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    why = (found.stderr.strip().splitlines() or [""])[-1]
    return f"no launch here ({why}): install ROS, or name a folder with its sources in BITVLA_LAUNCH_SOURCES" if found.returncode else ""


REASON = unavailable()
pytestmark = [pytest.mark.ros, pytest.mark.timeout(400), pytest.mark.skipif(bool(REASON), reason=REASON)]


class Launch:
    """`ros2 launch FILE ARGUMENTS` in a graph of the test's own."""

    def __init__(self, graph: TestGraph, file: str, *arguments: str) -> None:
        self.graph, self.log = graph, graph.logs / "launch.log"
        command = [sys.executable, str(REPOSITORY / "test/run_launch.py"), str(REPOSITORY / "launch" / f"{file}.launch.py"), *arguments]
        with open(self.log, "wb") as output:
            environment = {**os.environ, **ENVIRONMENT, "ROS_LOG_DIR": str(graph.logs), "PYTHONUNBUFFERED": "1"}
            self.popen = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        graph.processes["launch"] = Process("launch", self.popen, self.log)

    def parameters(self, node: str, *names: str) -> list[Any]:
        """Of a node that runs."""
        found = self.graph.call(GetParameters, f"{node}/get_parameters", GetParameters.Request(names=names), PATIENCE).values
        return [parameter_value_to_python(value) for value in found]

    def result(self) -> int:
        """Its exit code, once it has ended by itself."""
        self.graph.expected_dead.add("launch")
        self.graph.wait(lambda: self.popen.poll() is not None, "end of the launch", PATIENCE)
        return self.popen.returncode

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        os.killpg(self.popen.pid, signal.SIGINT)
        return self.result()

    @property
    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[TestGraph]:
    with TestGraph(tmp_path) as graph:
        yield graph


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mode", ["", "shadow", "dry", "live"])
def test_a_real_arm_runs_in_the_mode_that_was_said(graph: TestGraph, profile: str, mode: str) -> None:
    launch = Launch(graph, "real_arm", f"profile:={profile}", f"mode:={mode}", "model:=somewhere", "control_hz:=10", "autostart:=false")
    assert launch.parameters("controller", "mode", "autostart", "use_sim_time") == [mode or "shadow", False, False]
    assert launch.parameters("policy", "model", "control_hz", "policy", "autostart") == ["somewhere", 10.0, "bitvla", False]
    assert launch.parameters("controller", "sink.kind")[0] in ("pose", "twist", "twist_stamped"), "the profile's"
    assert launch.interrupt() == 0


@pytest.mark.parametrize("mode", ["", "lockstep", "realtime"])
@pytest.mark.parametrize("file", ["tabletop", "libero_sim"])
def test_a_simulator_runs_as_it_was_said(graph: TestGraph, file: str, mode: str) -> None:
    suite = {"tabletop": "tabletop_goal", "libero_sim": "libero_goal"}[file]
    launch = Launch(graph, file, f"mode:={mode}", f"suite:={suite}", "task:=2", "seed:=7", "model:=somewhere", "autostart:=false")
    lockstep = mode != "realtime"
    assert launch.parameters("simulation", "mode", "suite", "task", "seed") == ["lockstep" if lockstep else "realtime", suite, 2, 7]
    assert launch.parameters("policy", "suite", "synchronised", "use_sim_time") == [suite, lockstep, lockstep]
    inference = ["expert", False, 0.0] if file == "tabletop" else ["bitvla", True, 20.0]
    assert launch.parameters("policy", "policy", "jpeg", "control_hz") == inference
    high = {"tabletop": 1.5, "libero_sim": 2.5}[file]
    assert launch.parameters("controller", "use_sim_time") == [lockstep]
    assert list(launch.parameters("controller", "limits.workspace_max")[0])[2] == high, "the launch file's own file"
    assert launch.interrupt() == 0


def test_a_file_of_ones_own_stands_between_the_profile_and_the_arguments(graph: TestGraph, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("/**: {ros__parameters: {mode: dry, limits.speed: 0.1}}\n/left/policy: {ros__parameters: {threads: 1, max_age: 0.2}}\n")
    given = ("profile:=ur5e", f"params_file:={mine}", "namespace:=left", "autostart:=false", "model:=somewhere", "log_level:=debug")
    launch = Launch(graph, "real_arm", *given, "mode:=live")
    assert launch.parameters("/left/controller", "mode", "limits.speed", "limits.angular_speed") == ["live", 0.1, 1.0]
    assert launch.parameters("/left/policy", "threads", "max_age", "max_skew") == [1, 0.2, 0.1]
    assert launch.interrupt() == 0
    assert "[DEBUG]" in launch.output


def test_a_graph_starts_and_ctrl_c_ends_it_without_a_complaint(graph: TestGraph) -> None:
    launch = Launch(graph, "tabletop", "mode:=realtime")
    for node in ("simulation", "controller", "policy"):
        graph.wait(lambda node=node: f"[{node}]: active" in launch.output, f"an active {node}", PATIENCE)
    assert launch.interrupt() == 0
    assert "Traceback" not in launch.output


@pytest.mark.parametrize("respawn", ["false", "true"])
def test_a_failed_configure_ends_the_launch_whether_nodes_respawn_or_not(graph: TestGraph, respawn: str, tmp_path: Path) -> None:
    launch = Launch(graph, "real_arm", "profile:=simulated_arm", "policy:=replay", f"model:={tmp_path}/absent.npz", f"respawn:={respawn}")
    assert launch.result() != 0
    lines = [line for line in launch.output.splitlines() if "so the launch ends" in line]
    assert len(lines) == 1 and "policy_node" in lines[0] and "exit code 78" in lines[0]
    said = [line for line in launch.output.splitlines() if not line.startswith("[controller_node")]  # which may still be importing
    assert any("[policy]: configure failed" in line for line in said) and not any("Traceback" in line for line in said)


def test_a_node_that_dies_ends_the_launch(graph: TestGraph, tmp_path: Path) -> None:
    launch = Launch(graph, "real_arm", "profile:=simulated_arm", "policy:=replay", f"model:={recording(tmp_path / 'recording.npz')}")
    graph.wait(lambda: "[policy]: active" in launch.output and "[controller]: active" in launch.output, "both nodes", PATIENCE)
    os.kill(pid(launch, "policy_node"), signal.SIGKILL)
    assert launch.result() != 0
    assert "policy_node-2 has ended with exit code -9, so the launch ends" in launch.output
    assert "[controller_node-1]: process has finished cleanly" in launch.output


def test_a_node_that_dies_starts_again_where_respawn_says_so(graph: TestGraph, tmp_path: Path) -> None:
    given = ("profile:=simulated_arm", "policy:=replay", f"model:={recording(tmp_path / 'recording.npz')}", "mode:=dry", "respawn:=true")
    launch = Launch(graph, "real_arm", *given)
    graph.wait(lambda: "[controller]: active" in launch.output, "an active controller", PATIENCE)
    first = pid(launch, "controller_node")
    os.kill(first, signal.SIGKILL)
    graph.wait(lambda: launch.output.count("[controller]: active") == 2, "the controller again", PATIENCE)
    assert pid(launch, "controller_node") != first
    assert launch.parameters("controller", "mode") == ["dry"]
    assert launch.interrupt() == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("profile:=ur5",), "there is no profile 'ur5'"),
        ((), "give a profile"),
        (("profile:=ur5e", "mode:=alive"), "mode:=alive: give one of shadow, dry, live"),
        (("profile:=ur5e", "control_hz:=fast"), "control_hz:=fast: give a number"),
        (("profile:=ur5e", "params_file:=nowhere.yaml"), "nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(graph: TestGraph, given: tuple[str, ...], complaint: str) -> None:
    launch = Launch(graph, "real_arm", *given)
    assert launch.result() != 0
    assert complaint in launch.output and "Traceback" not in launch.output and "process started" not in launch.output


def test_a_recording_starts_or_the_package_that_is_missing_is_named(graph: TestGraph, tmp_path: Path) -> None:
    launch = Launch(graph, "real_arm", "profile:=ur5e", "autostart:=false", f"record:={tmp_path / 'bag'}")
    try:
        import ros2bag  # noqa: F401
    except ModuleNotFoundError:
        assert launch.result() != 0 and "-ros2bag` and source" in launch.output
    else:
        graph.wait(lambda: list((tmp_path / "bag").glob("*")), "a bag", PATIENCE)
        assert launch.interrupt() == 0


def pid(launch: Launch, executable: str) -> int:
    """Of the newest process that the launch has started for it."""
    lines = [line for line in launch.output.splitlines() if f"[{executable}-" in line and "process started with pid" in line]
    return int(lines[-1].partition("pid [")[2].rstrip("]"))
