"""Node processes: a fresh domain, clear errors, nothing left behind. The "nodes" here are small Python modules without ROS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitvla_ros.nodes.processes import Graph, NodeDied, parameter, reserve_domain

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module that `python -m` finds."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text("import os, signal, sys, time\n" + code)
        return name

    return write


def wait_for(condition, what: str, seconds: float = 20.0):
    """The condition's value once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_node_gets_parameters_and_an_isolated_domain(module, tmp_path: Path):
    code = "print(sys.argv[1:], *(os.environ['ROS_' + name] for name in ('DOMAIN_ID', 'AUTOMATIC_DISCOVERY_RANGE'))); time.sleep(60)"
    name = module("node_talks", code)
    before = os.environ.get("ROS_DOMAIN_ID")
    with Graph(tmp_path / "logs") as graph:
        process = graph.start("simulation", name, {"suite": "tabletop_object", "seed": 3, "lockstep": True})
        text = wait_for(lambda: process.log.read_text(), "its log")
        assert os.environ["ROS_DOMAIN_ID"] == str(graph.domain)
    assert "'--ros-args', '-p', \"suite:='tabletop_object'\", '-p', 'seed:=3', '-p', 'lockstep:=true'" in text
    assert f"{graph.domain} LOCALHOST" in text
    assert os.environ.get("ROS_DOMAIN_ID") == before


@pytest.mark.parametrize("release", ["humble", "kilted"])
def test_a_graph_takes_no_discovery_of_its_surroundings(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str):
    monkeypatch.setenv("ROS_DISTRO", release)
    humble = release == "humble"
    surroundings = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF", "ROS_LOCALHOST_ONLY": "0" if humble else "1", "ROS_STATIC_PEERS": "192.0.2.1"}
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    name = module("node_found", f"import json; print(json.dumps([os.environ[name] for name in {list(surroundings)}])); time.sleep(60)")
    with Graph(tmp_path / "logs") as graph:
        process = graph.start("simulation", name)
        text = wait_for(lambda: process.log.read_text(), "its log")
    assert json.loads(text) == ["LOCALHOST", "1" if humble else "", ""]
    assert {name: os.environ[name] for name in surroundings} == surroundings


def test_parameters_are_written_as_yaml():
    values = [True, 2, 0.5, "it's", ["a", "b"], "3"]
    assert [parameter(v) for v in values] == ["true", "2", "0.5", "'it''s'", "['a', 'b']", "'3'"]


def test_dead_node_is_reported_with_the_end_of_its_log(module, tmp_path: Path):
    name = module("node_fails", "print('loading'); sys.exit('no such checkpoint')")
    with Graph(tmp_path / "logs") as graph:
        process = graph.start("policy", name)
        process.popen.wait(20)
        with pytest.raises(NodeDied, match=r"(?s)policy node ended with exit code 1.*loading.*no such checkpoint"):
            graph.check()


def test_killed_node_is_reported_with_its_signal(module, tmp_path: Path):
    with Graph(tmp_path / "logs") as graph:
        process = graph.start("policy", module("node_sleeps", "time.sleep(60)"))
        process.popen.kill()
        process.popen.wait(20)
        with pytest.raises(NodeDied, match="SIGKILL"):
            graph.check()


def test_running_nodes_pass_the_check(module, tmp_path: Path):
    with Graph(tmp_path / "logs") as graph:
        graph.start("policy", module("node_sleeps", "time.sleep(60)"))
        graph.check()


def test_deaf_node_and_its_children_are_stopped(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from bitvla_ros.nodes import processes

    monkeypatch.setattr(processes, "PATIENCE", ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0)))
    name = module(
        "node_deaf",
        "import subprocess\n"
        "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid); time.sleep(60)",
    )
    with Graph(tmp_path / "logs") as graph:
        process = graph.start("policy", name)
        child = int(wait_for(lambda: process.log.read_text().strip(), "its child"))
        assert alive(child)
    assert not alive(process.popen.pid)
    wait_for(lambda: not alive(child), "end of the child")


def test_nodes_are_stopped_when_the_body_raises(module, tmp_path: Path):
    with pytest.raises(RuntimeError), Graph(tmp_path / "logs") as graph:  # noqa: PT012
        process = graph.start("policy", module("node_sleeps", "time.sleep(60)"))
        raise RuntimeError
    assert not alive(process.popen.pid)


def test_killed_parent_leaves_no_orphan(module, tmp_path: Path):
    name = module("node_sleeps", "print(os.getpid()); time.sleep(60)")
    code = (
        f"import time; from pathlib import Path; from bitvla_ros.nodes.processes import Graph\n"
        f"with Graph(Path({str(tmp_path / 'logs')!r})) as graph: graph.start('policy', {name!r}); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    log = tmp_path / "logs" / "policy.log"
    node = int(wait_for(lambda: log.is_file() and log.read_text().strip(), "the node"))
    assert alive(node)
    parent.send_signal(signal.SIGKILL)
    parent.wait(20)
    wait_for(lambda: not alive(node), "end of the node")


def test_two_graphs_never_share_a_domain():
    first, lock = reserve_domain()
    second, other = reserve_domain()
    lock.close()
    other.close()
    assert first != second
