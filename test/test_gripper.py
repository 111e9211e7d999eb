"""The gripper's rule: what becomes of a command whatever its action server does, and when live mode may not begin.

By an action of ours, whose instruction is the position, and by those of the real control_msgs where it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

import rclpy
from action_msgs.srv import CancelGoal
from graph import TestGraph
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from std_msgs.msg import Float64
from test_setpoints import Cell
from test_sinks import described

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.nodes.missing import MissingPackage
from bitvla_ros.nodes.prove.gripper import SCRIPTS, expected
from bitvla_ros.nodes.prove.gripper_server import ACTION, FATES
from bitvla_ros.nodes.prove.verb import PROOFS, _possible
from bitvla_ros.nodes.qos import LATCHED
from bitvla_ros.nodes.sinks import gripper as module
from bitvla_ros.nodes.sinks.gripper import ActionGripper, make_gripper

pytestmark = pytest.mark.ros

OPEN, CLOSED = 0.04, 0.0
REAL = {"gripper_command": "GripperCommand", "parallel_gripper": "ParallelGripperCommand"}
no_control_msgs = importlib.util.find_spec("control_msgs") is None
needs_control_msgs = pytest.mark.skipif(no_control_msgs, reason="control_msgs is not installed: it comes with ROS, not from PyPI")
KINDS = ["ours", *(pytest.param(kind, marks=needs_control_msgs) for kind in REAL)]


def action(kind: str) -> Any:
    return ExecuteInstruction if kind == "ours" else getattr(importlib.import_module("control_msgs.action"), REAL[kind])


def position(goal: Any) -> float:
    """What a goal asks for, and that the rest of it is as the parameters say."""
    if isinstance(goal, ExecuteInstruction.Goal):
        return float(goal.instruction)
    if hasattr(goal.command, "max_effort"):
        assert goal.command.max_effort == 20.0
        return goal.command.position
    assert list(goal.command.name) == ["knuckle"] and list(goal.command.effort) == [20.0]
    (asked,) = goal.command.position
    return asked


class Server:
    """A gripper's server, in a thread of its own. script: what becomes of one goal after the other, the last of all that follow: "succeed",
    "abort", each also with " stalled" after it, "refuse", "endless", which ends by `release` or a cancel, or "mute", which is answered by
    `release`.
    asked: when a goal came, s, and its position. accepted: the positions, in the order of acceptance.
    """

    def __init__(self, graph: TestGraph, kind: str, *script: str) -> None:
        self.asked: list[tuple[float, float]] = []
        self.accepted: list[float] = []
        self._script = list(script)
        self._held: list[tuple[Any, Future]] = []
        self._how: dict[int, str] = {}
        self._node = rclpy.create_node("gripper", context=graph.context)
        self._executor = SingleThreadedExecutor(context=graph.context)
        self._executor.add_node(self._node)
        self._action = ActionServer(
            self._node,
            action(kind),
            "fingers",
            self._carry_out,
            goal_callback=self._decide,
            cancel_callback=self._cancel,
            callback_group=ReentrantCallbackGroup(),  # a goal that is not answered holds up no other
        )
        self._node.create_timer(0.02, lambda: None)  # a task that waits is looked at when something else happens
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    @property
    def positions(self) -> list[float]:
        return [asked for _, asked in list(self.asked)]

    def release(self) -> None:
        """Answer what was not, accepting it; what runs endlessly is aborted."""
        while self._held:
            self._executor.create_task(self._held.pop(0)[1].set_result, None)

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self._action.destroy()
        self._node.destroy_node()

    async def _decide(self, goal: Any) -> GoalResponse:
        how = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        self._how[id(goal)] = how
        self.asked.append((time.monotonic(), position(goal)))
        if how == "mute":
            await self._wait(goal)
        if how == "refuse":
            return GoalResponse.REJECT
        self.accepted.append(position(goal))
        return GoalResponse.ACCEPT

    async def _carry_out(self, handle: Any) -> Any:
        how = self._how[id(handle.request)]
        result = action_of(handle.request).Result()
        if how == "endless":
            await self._wait(handle.request)
            how = "" if handle.is_cancel_requested else "abort"
        if how.endswith("stalled"):
            if isinstance(result, ExecuteInstruction.Result):
                result.reason = "stalled"
            else:
                result.stalled = True
        if how.startswith("abort"):
            handle.abort()
        elif handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.succeed()
        return result

    def _cancel(self, _: Any) -> CancelResponse:
        self.release()
        return CancelResponse.ACCEPT

    async def _wait(self, goal: Any) -> None:
        future = Future(executor=self._executor)
        self._held.append((goal, future))
        await future


def action_of(goal: Any) -> Any:
    kinds = [ExecuteInstruction] + ([] if no_control_msgs else [action(kind) for kind in REAL])
    return next(kind for kind in kinds if isinstance(goal, kind.Goal))


class Bench:
    """One gripper to be commanded, as by setpoints at 50 Hz."""

    def __init__(self, graph: TestGraph, kind: str) -> None:
        self.graph, self.kind = graph, kind
        self._servers: list[Server] = []
        p = described(
            gripper_kind=kind,
            gripper_action="fingers",
            gripper_joint="knuckle",
            gripper_open=OPEN,
            gripper_closed=CLOSED,
            gripper_effort=20.0,
        )
        self.gripper = _ours(graph, p) if kind == "ours" else make_gripper(graph.node, p)

    def serve(self, *script: str) -> Server:
        """When the gripper has found it."""
        self._servers.append(Server(self.graph, self.kind, *script))
        self.graph.wait(lambda: self.gripper.problem() is None, "the gripper's server")
        return self._servers[-1]

    def until(self, condition: Callable[[], Any], what: str, command: float) -> None:
        """Send this command again and again until the condition holds."""

        def met() -> Any:
            self.gripper.send(command)
            return condition()

        self.graph.wait(met, f"{what}; the gripper says {self.gripper.state!r}")

    def runs(self, state: str, command: float) -> None:
        """Until the server's acceptance has come, and it has been asked for the result."""
        gripper = self.gripper
        assert isinstance(gripper, ActionGripper)
        self.until(lambda: gripper.state == state and gripper._goal and gripper._goal.awaited == "result", "the acceptance", command)
        self.graph.spin(0.3)

    def quiet(self, command: float, server: Server) -> None:
        """The command goes on, and nothing else is sent for more than a retry."""
        count, until = len(server.asked), time.monotonic() + 2.5 * module.RETRY
        while time.monotonic() < until:
            self.gripper.send(command)
            self.graph.spin(0.02)
        assert len(server.asked) == count

    def close(self) -> None:
        self.gripper.close()
        for server in self._servers:
            server.close()


def _ours(graph: TestGraph, p: SimpleNamespace) -> ActionGripper:
    def goal(position: float) -> ExecuteInstruction.Goal:
        return ExecuteInstruction.Goal(instruction=f"{position}")

    return ActionGripper(graph.node, p, ExecuteInstruction, goal, lambda result: result.reason == "stalled")


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestGraph]:
    monkeypatch.setattr(module, "RETRY", 0.4)
    monkeypatch.setattr(module, "ANSWER", 1.5)
    with TestGraph(tmp_path) as graph:
        yield graph


@pytest.fixture
def bench(graph: TestGraph, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(graph, request.param)
    yield bench
    bench.close()


CASES = {
    "succeeds": (1.0, ["succeed"], 1, "closed"),
    "opens": (-1.0, ["succeed"], 1, "open"),
    "aborts with a stall while closing": (1.0, ["abort stalled"], 1, "holds an object"),
    "succeeds with a stall while closing": (1.0, ["succeed stalled"], 1, "holds an object"),
    "aborts with a stall while opening": (-1.0, ["abort stalled", "succeed"], 2, "open"),
    "succeeds with a stall while opening": (-1.0, ["succeed stalled"], 1, "open, stalled on the way"),
    "is refused, then aborts": (1.0, ["refuse", "abort", "succeed"], 3, "closed"),
    "is not answered": (1.0, ["mute", "succeed"], 2, "closed"),
    "always aborts": (1.0, ["abort"], 4, "gives up to close after 4 goals: the server aborted it; see its log"),
    "is always refused": (
        -1.0,
        ["refuse"],
        4,
        "gives up to open after 4 goals: the server refused it; is the position out of its range?; see its log",
    ),
}


@pytest.mark.parametrize("bench", KINDS, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_a_command_ends_by_the_rule_where_its_goal(bench: Bench, case: str) -> None:
    command, script, goals, state = CASES[case]
    server = bench.serve(*script)
    bench.until(lambda: bench.gripper.state == state, state, command)
    bench.quiet(command, server)
    assert server.positions == [CLOSED if command > 0 else OPEN] * goals
    assert np.diff([when for when, _ in server.asked]).min(initial=1.0) > 0.9 * module.RETRY
    assert bench.gripper.state == state


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_a_goal_without_a_result_is_sent_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESULT", 1.0)
    server = bench.serve("endless", "succeed")
    bench.until(lambda: "the server gave no result" in bench.gripper.state, "the missing result", 1.0)
    bench.until(lambda: bench.gripper.state == "closed", "the end", 1.0)
    server.release()
    bench.quiet(1.0, server)
    assert server.positions == [CLOSED, CLOSED] and bench.gripper.state == "closed"


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_a_goal_that_another_client_cancels_is_not_sent_again(bench: Bench) -> None:
    server = bench.serve("endless", "succeed")
    bench.until(lambda: server.accepted, "the goal", 1.0)
    cancelled = bench.graph.call(CancelGoal, "fingers/_action/cancel_goal", CancelGoal.Request())  # without an id: all of them
    assert len(cancelled.goals_canceling) == 1
    bench.until(lambda: bench.gripper.state == "told to close; another client cancelled it", "the cancel", 1.0)
    bench.quiet(1.0, server)
    bench.until(lambda: bench.gripper.state == "open", "the next command", -1.0)


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_another_command_takes_over_at_once_and_begins_anew(bench: Bench) -> None:
    """Of a goal that failed, of one that was given up, and of one that runs, whose end then does not matter."""
    server = bench.serve("abort", "succeed", *["abort"] * 4, "endless", "succeed")
    bench.until(lambda: "sent again (1 of 3)" in bench.gripper.state, "the abort", 1.0)
    before = time.monotonic()
    bench.until(lambda: bench.gripper.state == "open", "the other command", -1.0)
    assert server.asked[1][0] - before < module.RETRY, "it does not wait for the retry of the first"
    bench.until(lambda: "gives up to close" in bench.gripper.state, "the end of patience", 1.0)
    bench.until(lambda: len(server.accepted) == 7, "the goal", -1.0)
    bench.runs("told to open", -1.0)
    bench.until(lambda: bench.gripper.state == "closed", "the last command", 1.0)
    server.release()
    bench.quiet(1.0, server)
    assert server.positions == [CLOSED, OPEN, *[CLOSED] * 4, OPEN, CLOSED] and bench.gripper.state == "closed"


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_the_last_goal_that_a_server_accepts_is_the_newest(bench: Bench) -> None:
    """A server that answers late accepts the goal before after the newest, and carries it out."""
    server = bench.serve("mute", "succeed")
    bench.until(lambda: server.asked, "the first goal", 1.0)
    bench.until(lambda: bench.gripper.state == "open", "the second goal", -1.0)
    server.release()
    bench.until(lambda: len(server.accepted) == 3, "the second goal again", -1.0)
    bench.until(lambda: bench.gripper.state == "open", "its end", -1.0)
    bench.quiet(-1.0, server)
    assert server.accepted == [OPEN, CLOSED, OPEN]


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_a_command_waits_for_its_server_and_one_that_vanishes_is_said(
    bench: Bench, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESULT", 600.0)
    assert bench.gripper.problem() == "there is no server of the action fingers: start the gripper's driver, or correct gripper.action"
    for _ in range(20):
        bench.gripper.send(1.0)
    assert bench.gripper.state.startswith("waits to close; there is no server of the action fingers")
    assert capfd.readouterr().err.count("waits to close") == 1, "once in the log"
    first = bench.serve("endless")
    bench.runs("told to close", 1.0)
    bench._servers.remove(first)
    first.close()
    bench.until(lambda: "there is no server of the action fingers" in bench.gripper.state, "the server's end", 1.0)
    second = bench.serve("succeed")
    bench.until(lambda: bench.gripper.state == "closed", "the goal again", 1.0)
    assert second.positions == [CLOSED]


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_while_the_policy_asks_for_nothing_nothing_is_sent(bench: Bench) -> None:
    server = bench.serve("abort")
    for command in (0.0, 0.29, -0.29):
        bench.quiet(command, server)
    assert bench.gripper.state == "not commanded yet" and not server.asked
    bench.until(lambda: server.asked, "a goal", 0.31)
    count = len(server.asked)
    bench.graph.spin(3 * module.RETRY)  # without setpoints
    assert len(server.asked) == count
    bench.until(lambda: len(server.asked) > count, "the next, as the command is still the last one asked for", 0.0)


@needs_control_msgs
def test_an_action_of_another_kind_is_named(graph: TestGraph) -> None:
    graph.start("gripper", "bitvla_ros.nodes.prove.gripper_server", None, "parallel_gripper")
    gripper = make_gripper(graph.node, described(gripper_kind="gripper_command", gripper_action=ACTION))
    kinds = "control_msgs/action/ParallelGripperCommand, not control_msgs/action/GripperCommand: correct gripper.kind"
    graph.wait(lambda: kinds in (gripper.problem() or ""), "the complaint about the kind")
    graph.spin(1.0)
    assert kinds in (gripper.problem() or ""), "it stays one when all of the server is discovered"
    gripper.close()


def test_live_mode_is_refused_where_no_node_takes_the_grippers_commands(graph: TestGraph) -> None:
    cell = Cell(graph, "live", **{"gripper.topic": "fingers"})
    graph.wait(lambda: "no node subscribes to /fingers" in cell.enable().message, "the refusal")
    graph.wait(lambda: cell.publishers() == graph.node.count_publishers("/fingers") == 0, "the end of what the refused try had made")
    heard = graph.collect(Float64, "fingers", LATCHED)
    graph.wait(lambda: cell.enable().success, "live mode")
    cell.begin()
    graph.wait(lambda: heard and cell.diagnosed("gripper=told to close"), "the gripper's command")


@needs_control_msgs
@pytest.mark.parametrize("kind", REAL)
def test_live_mode_with_an_action_of_control_msgs(graph: TestGraph, kind: str) -> None:
    """In the controller's process: refused without the server, and what becomes of the command is on /diagnostics."""
    changes = {"gripper.kind": kind, "gripper.action": "fingers", "gripper.joint": "knuckle", "gripper.effort": 20.0}
    cell = Cell(graph, "live", **changes)
    graph.wait(lambda: "there is no server of the action fingers" in cell.enable().message, "the refusal")
    graph.wait(lambda: cell.publishers() == 0, "the end of what the refused try had made")
    server = Server(graph, kind, "abort stalled")
    try:
        graph.wait(lambda: cell.enable().success, "live mode")
        assert cell.enable().success, "and again"
        cell.begin()
        cell.moving()
        graph.wait(lambda: cell.diagnosed("gripper=holds an object"), "the result on /diagnostics")
        assert server.positions == [1.0]
    finally:
        server.close()
    graph.wait(lambda: cell.diagnosed("there is no server of the action fingers"), "the server's end on /diagnostics")
    graph.wait(lambda: "there is no server" in cell.enable().message, "the refusal without the server")
    cell.moving()


# ---- fault injection


def test_what_the_rule_makes_of_a_script() -> None:
    assert {fate for script in SCRIPTS for fate in script} == set(FATES), "every failure has its turn"
    assert expected(("abort_stalled", "succeed"), closed=True).state == "holds an object"
    opened = expected(("abort_stalled", "succeed"), closed=False)
    assert (opened.goals, opened.failures, opened.state) == (2, ("aborted it, stalled",), "open")
    assert expected(("succeed_stalled",), closed=False).state == "open, stalled on the way"
    given_up = expected(("abort",) * 4, closed=True)
    assert (given_up.goals, len(given_up.failures)) == (4, 4) and given_up.state.startswith("gives up to close after 4 goals")


@needs_control_msgs
def test_a_short_run_of_the_proof(tmp_path: Path) -> None:
    """Whether setpoints came in time is not for a machine that may be full."""
    done: list[int] = []
    promise = PROOFS["gripper_aborts"].run(6, 0, tmp_path, done.append)
    assert promise.trials == 6 and sum(done) == 6
    assert promise.met or all("no setpoint for" in example for example in promise.examples), promise.examples


@pytest.mark.skipif(not no_control_msgs, reason="control_msgs is installed")
def test_the_proof_says_which_package_it_needs_and_a_run_of_all_leaves_it_out(tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match="control-msgs"):
        PROOFS["gripper_aborts"].run(1, 0, tmp_path, lambda _: None)
    said: list[str] = []
    assert set(_possible(said.append)) == set(PROOFS) - {"gripper_aborts"}
    assert said == ["gripper_aborts is left out: it needs control_msgs, which comes with ROS, not from PyPI"]
