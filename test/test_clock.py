"""Simulators that share one /clock: one of them may be its source."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from graph import TestGraph
from rosgraph_msgs.msg import Clock

from bitvla_ros.nodes.lifecycle import EXIT_NOT_STARTED, EXIT_ON_FAILURE
from bitvla_ros.nodes.qos import LATCHED, SENSOR

pytestmark = pytest.mark.ros

PATIENCE = 90.0  # s
QUIET = {"suite": "tabletop_object", "cameras": [""]}
TAKEN = "activate failed: /clock is published by"


def start(graph: TestGraph, name: str, *arguments: str, **parameters: object) -> Any:
    return graph.start(name, "bitvla_ros.nodes.simulation", {**QUIET, "mode": "lockstep", **parameters}, EXIT_ON_FAILURE, *arguments)


def active(graph: TestGraph, process: Any) -> None:
    graph.wait(lambda: "active" in said(process).replace("inactive", ""), f"an active {process.name}", PATIENCE)


def said(process: Any) -> str:
    return process.log.read_text()


def test_a_second_simulator_in_lockstep_is_refused_and_time_goes_on_undisturbed(tmp_path: Path) -> None:
    with TestGraph(tmp_path) as graph:
        times = graph.collect(Clock, "/clock", LATCHED)
        active(graph, start(graph, "first"))
        graph.wait(lambda: times, "the first tick")
        for name, place in (("second", ()), ("elsewhere", ("--ros-args", "-r", "__ns:=/elsewhere", "-r", "__node:=other"))):
            graph.expected_dead.add(name)
            process = start(graph, name, *place)
            graph.wait(lambda process=process: process.popen.poll() is not None, f"end of {name}", PATIENCE)
            assert process.popen.returncode == EXIT_NOT_STARTED
            (line,) = [line for line in said(process).splitlines() if TAKEN in line]
            assert f"{TAKEN} /simulation" in line and "ROS_DOMAIN_ID" in line
        assert len(times) == 1, "nothing of the others came on /clock"
        active(graph, start(graph, "third", mode="realtime"))


def test_of_two_that_start_together_one_runs(tmp_path: Path) -> None:
    with TestGraph(tmp_path) as graph:
        graph.expected_dead |= {"left", "right"}
        pair = [start(graph, name) for name in ("left", "right")]
        graph.wait(lambda: any(process.popen.poll() is not None for process in pair), "end of one", PATIENCE)
        assert sorted((process.popen.poll() is None, TAKEN in said(process)) for process in pair) == [(False, True), (True, False)]
        (runs,) = [process for process in pair if process.popen.poll() is None]
        active(graph, runs)


def test_a_simulator_that_was_killed_starts_again(tmp_path: Path) -> None:
    """Its publisher is listed for the lease of its participant: 20 s."""
    with TestGraph(tmp_path) as graph:
        active(graph, start(graph, "first"))
        graph.wait(lambda: graph.node.count_publishers("/clock") == 1, "the clock")
        graph.kill("first", signal.SIGKILL)
        again = start(graph, "again")
        active(graph, again)
        assert TAKEN not in said(again)


def test_a_simulator_that_is_deactivated_leaves_the_clock_to_another(tmp_path: Path) -> None:
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    with TestGraph(tmp_path) as graph:

        def change(transition: int) -> bool:
            request = ChangeState.Request(transition=Transition(id=transition))
            return bool(graph.call(ChangeState, "first/change_state", request, PATIENCE).success)

        first = graph.start("first", "bitvla_ros.nodes.simulation", QUIET, "--ros-args", "-r", "__node:=first")
        active(graph, first)
        assert change(Transition.TRANSITION_DEACTIVATE)
        graph.wait(lambda: graph.node.count_publishers("/clock") == 0, "a clock without a source")
        active(graph, start(graph, "second"))
        assert not change(Transition.TRANSITION_ACTIVATE) and f"{TAKEN} /simulation" in said(first)
        graph.kill("second", signal.SIGTERM)
        graph.wait(lambda: graph.node.count_publishers("/clock") == 0, "a clock without a source", PATIENCE)
        assert change(Transition.TRANSITION_ACTIVATE)


def test_a_source_of_time_that_is_no_simulator_of_ours_is_respected(tmp_path: Path) -> None:
    with TestGraph(tmp_path) as graph:
        publisher = graph.node.create_publisher(Clock, "/clock", SENSOR)
        graph.node.create_timer(0.02, lambda: publisher.publish(Clock()))
        graph.expected_dead.add("simulation")
        process = start(graph, "simulation")
        graph.wait(lambda: process.popen.poll() is not None, "end of the simulator", PATIENCE)
        assert f"{TAKEN} /test" in said(process)
