"""A policy that loads for long: the node answers and says so, goals wait for it, and a signal ends it at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

from diagnostic_msgs.msg import DiagnosticArray
from graph import TestGraph
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters
from robot import START, recording

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.srv import ResetEpisode

pytestmark = pytest.mark.ros

# A policy node whose loading does `act` first, which has the folder of the test in `here`.
SLOW = """
import ctypes, os, sys, time
from pathlib import Path
from bitvla_ros.nodes import load, policy

here, load_policy = Path({here!r}), load.load_policy

def slow(*arguments):
    (here / "began").touch()
    {act}
    return load_policy(*arguments)

load.load_policy = slow
sys.exit(policy.main())
"""
UNTIL_TOLD = "while not (here / 'go').exists(): time.sleep(0.02)"


class Graph(TestGraph):
    diagnostics: list[DiagnosticArray]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Graph]]:
    """start(act, ...): a graph with such a policy node in it."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    graph = Graph(tmp_path / "logs")
    with graph:

        def _start(act: str = UNTIL_TOLD, *arguments: str, **parameters: object) -> Graph:
            (tmp_path / "slow_policy.py").write_text(SLOW.format(here=str(tmp_path), act=act))
            replay = {"policy": "replay", "model": str(recording(tmp_path / "recording.npz"))}
            parameters = parameters if "policy" in parameters else {**replay, **parameters}
            graph.diagnostics = graph.collect(DiagnosticArray, "/diagnostics", 100)
            graph.start("policy", "slow_policy", parameters, *arguments)
            graph.wait((tmp_path / "began").exists, "the beginning of the loading", START)
            return graph

        yield _start


def state(graph: TestGraph, name: str = "/policy") -> int:
    return graph.call(GetState, f"{name}/get_state", GetState.Request()).current_state.id


def change(graph: TestGraph, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return graph.call(ChangeState, "/policy/change_state", request).success


def messages(graph: Graph, name: str = "policy") -> list[str]:
    return [status.message for array in graph.diagnostics for status in array.status if status.name == name]


def test_a_node_that_loads_answers_and_says_what_it_loads(start, tmp_path) -> None:
    graph = start()
    answer = graph.call(GetParameters, "/policy/get_parameters", GetParameters.Request(names=["policy"]), 5.0)
    assert answer.values[0].string_value == "replay"
    assert state(graph) == State.TRANSITION_STATE_CONFIGURING
    said = graph.wait(lambda: (m := {m for m in messages(graph) if m.startswith("loading, ")}) and len(m) > 1 and m, "two seconds' word")
    assert all(message.endswith(f" s: replay {tmp_path / 'recording.npz'}") for message in said)
    assert not change(graph, Transition.TRANSITION_ACTIVATE), "what is loaded by half runs"
    assert not change(graph, Transition.TRANSITION_CONFIGURE), "it loads already"
    assert state(graph) == State.TRANSITION_STATE_CONFIGURING
    (tmp_path / "go").touch()
    graph.wait(lambda: state(graph) == State.PRIMARY_STATE_ACTIVE, "the active node")


def test_a_configure_that_is_asked_for_is_answered_at_its_end(start, tmp_path) -> None:
    (tmp_path / "began").touch()  # nothing loads yet
    graph = start(autostart=False)
    client = graph.node.create_client(ChangeState, "/policy/change_state")
    graph.wait(client.service_is_ready, "the node", START)
    (tmp_path / "began").unlink()
    future = client.call_async(ChangeState.Request(transition=Transition(label="configure")))
    graph.wait((tmp_path / "began").exists, "the beginning of the loading")
    assert state(graph) == State.TRANSITION_STATE_CONFIGURING and not future.done()
    assert not change(graph, Transition.TRANSITION_ACTIVATE), "refused now, and not kept for later"
    (tmp_path / "go").touch()
    assert graph.result(future, "end of the configure").success and state(graph) == State.PRIMARY_STATE_INACTIVE
    assert change(graph, Transition.TRANSITION_ACTIVATE)


def test_a_goal_that_comes_meanwhile_waits_and_the_controller_says_so(start, tmp_path) -> None:
    graph = start(policy="expert", suite="tabletop_object", synchronised=True)
    graph.start("simulation", "bitvla_ros.nodes.simulation", {"suite": "tabletop_object", "cameras": [""]})
    graph.start("controller", "bitvla_ros.nodes.controller", {"start_timeout": 2.0})
    instruction = graph.call(ResetEpisode, "reset_episode", ResetEpisode.Request(task=0, seed=1)).instruction
    graph.wait(lambda: any("the policy loads expert" in m for m in messages(graph, "controller")), "word of the controller")
    result = graph.send_goal(instruction).get_result_async()
    until = time.monotonic() + 5.0
    graph.wait(lambda: result.done() or time.monotonic() > until, "more than start_timeout")
    assert not result.done(), result.result()
    assert "waits: the policy loads expert" in graph.processes["controller"].log.read_text()
    (tmp_path / "go").touch()
    assert graph.result(result, "result of the goal", 90.0).result.outcome == ExecuteInstruction.Result.SUCCESS


def test_a_goal_waits_for_no_policy_that_died_while_it_loaded(start) -> None:
    graph = start(policy="expert")
    graph.start("controller", "bitvla_ros.nodes.controller", {"start_timeout": 1.0})
    graph.start("simulation", "bitvla_ros.nodes.simulation", {"suite": "tabletop_object", "cameras": [""]})
    graph.wait(lambda: any("the policy loads expert" in m for m in messages(graph, "controller")), "word of the controller")
    graph.kill("policy")
    result = graph.outcome(graph.send_goal("lift"), 60.0)
    assert result.outcome == ExecuteInstruction.Result.FAULT and "not started within 1 s: nobody publishes action_chunk" in result.reason


SLEEPS = {"python": "time.sleep(60)", "native": "ctypes.CDLL(None).sleep(60)"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", SLEEPS)
def test_a_signal_during_loading_ends_the_node_at_once(start, how: str, number: int) -> None:
    graph = start(f"print('loads', flush=True); {SLEEPS[how]}")
    process = graph.processes["policy"]
    graph.wait(lambda: "loads" in process.log.read_text(), "the loading")
    began = time.monotonic()
    graph.kill("policy", number)
    assert process.popen.wait(10.0) == 0, process.tail()
    assert time.monotonic() - began < 5.0, "on a full machine; 0.3 s on an idle one"
    text = process.log.read_text()
    assert "Traceback" not in text and ": active" not in text


def test_a_node_that_is_told_to_end_while_it_loads_never_activates(start, tmp_path) -> None:
    """Not even where the loading ends just then."""
    graph = start()
    process = graph.processes["policy"]
    graph.kill("policy", signal.SIGSTOP)
    (tmp_path / "go").touch()
    graph.kill("policy", signal.SIGINT)
    graph.kill("policy", signal.SIGCONT)
    assert process.popen.wait(10.0) == 0
    assert ": active" not in process.log.read_text()


def test_a_node_logs_under_its_own_name(start, tmp_path) -> None:
    warns = "import logging; logging.getLogger('bitvla_ros.ternary.backends').warning('a slow backend')"
    graph = start(warns, "--ros-args", "-r", "__ns:=/left", "-r", "__node:=left_policy", "--", model="random:nano", policy="bitvla")
    log = graph.processes["policy"].log
    graph.wait(lambda: ": active" in log.read_text(), "the active node", START)
    lines = [line for line in log.read_text().splitlines() if "rmw_fastrtps" not in line]
    assert len(lines) >= 5 and all("[left.left_policy]: " in line for line in lines), lines
    assert any(line.startswith("[WARN]") and line.endswith(": a slow backend") for line in lines)


def test_loading_that_fails_leaves_the_node_unconfigured_and_can_be_tried_again(start, tmp_path) -> None:
    graph = start("raise FileNotFoundError('no such checkpoint: give another')")
    graph.wait(lambda: any("configure failed: no such checkpoint" in m for m in messages(graph)), "the failure")
    assert state(graph) == State.PRIMARY_STATE_UNCONFIGURED
    (tmp_path / "began").unlink()
    assert not change(graph, Transition.TRANSITION_CONFIGURE) and (tmp_path / "began").exists()
