"""The controller node in a real graph, with the real simulator and the scripted expert as processes: goals, cancels and losses."""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray
from graph import TestGraph
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import EndEffectorCommand, SimulationState, Task
from bitvla_ros.nodes.conversions import chunk_to_msg, stamp_to_ns
from bitvla_ros.nodes.liveliness import SETTLE
from bitvla_ros.nodes.qos import CHUNK, COMMAND, LATCHED
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.srv import ResetEpisode

pytestmark = pytest.mark.ros

SUITE = "tabletop_object"
Result = ExecuteInstruction.Result


class World:
    """Simulator and controller, a policy where asked for, and everything they say."""

    def __init__(self, graph: TestGraph, mode: str = "lockstep", policy: bool = True, **controller: object) -> None:
        self.graph, self.mode = graph, mode
        self.commands = graph.collect(EndEffectorCommand, "end_effector_command", QoSProfile(depth=1000))
        self.states = graph.collect(SimulationState, "simulation_state", LATCHED)
        self.tasks = graph.collect(Task, "task", LATCHED)
        self.health = graph.collect(DiagnosticArray, "/diagnostics", 100)
        self.seeds = itertools.count()
        graph.start("simulation", "bitvla_ros.nodes.simulation", {"suite": SUITE, "mode": mode, "cameras": [""]})
        graph.start("controller", "bitvla_ros.nodes.controller", {"start_timeout": 60.0, **controller})
        if policy:
            self.start_policy()

    def start_policy(self) -> None:
        parameters = {"policy": "expert", "suite": SUITE, "synchronised": self.mode == "lockstep"}
        self.graph.start("policy", "bitvla_ros.nodes.prove.subject", parameters)  # which passes other_chunk on

    def reset(self) -> ResetEpisode.Response:
        return self.graph.call(ResetEpisode, "reset_episode", ResetEpisode.Request(task=0, seed=next(self.seeds)))

    def begin(self):
        """Begin an episode and its goal, and wait until the arm moves."""
        instruction = self.reset().instruction
        self.commands.clear()
        steps: list[int] = []
        handle = self.graph.send_goal(instruction, feedback=lambda message: steps.append(message.feedback.step))
        assert handle.accepted
        self.graph.wait(lambda: steps and steps[-1] >= 10, "ten steps", 90.0)
        return handle

    def begin_and_pause(self):
        """Begin an episode and stop the simulator within it: then no tick and no chunk is on its way. It goes on with SIGCONT."""
        for _ in range(10):
            handle = self.begin()
            self.graph.kill("simulation", signal.SIGSTOP)
            seen = len(self.statuses())
            running = self.graph.wait(lambda seen=seen: self.statuses()[seen:], "diagnostics of the controller")[-1]["running"]
            answered = self.commands[-1].tick == self.states[-1].tick  # not where it was stopped between a tick's pose and its state
            if running == "True" and answered and not self.states[-1].success:
                return handle
            self.graph.kill("simulation", signal.SIGCONT)
        raise AssertionError("ten episodes were over before the simulator was stopped, or it was stopped within a tick")

    def statuses(self) -> list[dict[str, str]]:
        """What the controller has said on /diagnostics, the newest last."""
        statuses = (status for array in self.health for status in array.status if status.name == "controller")
        return [{value.key: value.value for value in status.values} for status in statuses]

    def refused(self, reason: str) -> int:
        """How many chunks were refused for this reason, as /diagnostics says."""
        return int(self.statuses()[-1].get(f"refused_{reason}", 0))

    def holds(self) -> bool:
        """The newest command is a hold."""
        return bool(self.commands) and self.commands[-1].hold

    def diagnosed(self, text: str) -> bool:
        statuses = (status for array in self.health for status in array.status if status.name == "controller")
        return any(text in status.message or any(text in f"{v.key}={v.value}" for v in status.values) for status in statuses)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with TestGraph(tmp_path_factory.mktemp("lockstep")) as graph:
        yield World(graph)


def test_a_cancel_is_acknowledged_when_the_stop_has_begun_and_then_time_stands_still(world: World) -> None:
    handle = world.begin()
    epoch = world.tasks[-1].epoch
    answer = world.graph.result(handle.cancel_goal_async(), "answer to the cancel")
    assert answer.goals_canceling
    result = world.graph.outcome(handle)
    assert result.outcome == Result.CANCELLED and "client" in result.reason and result.steps >= 10
    world.graph.wait(world.holds, "the hold")
    last, commands = world.commands[-1].tick, len(world.commands)
    world.graph.wait(lambda: world.states[-1].tick == last + 1, "the tick after the hold")
    world.graph.spin(0.5)
    assert len(world.commands) == commands and world.states[-1].tick == last + 1
    assert not any(command.hold for command in world.commands[:-1])
    world.graph.wait(lambda: not world.tasks[-1].active, "the end of the task")
    assert world.tasks[-1].epoch == epoch


def test_a_new_goal_takes_over(world: World) -> None:
    first = world.begin()
    second = world.graph.send_goal(world.states[-1].instruction)
    assert second.accepted
    result = world.graph.outcome(first)
    assert result.outcome == Result.CANCELLED and "another goal" in result.reason
    assert world.graph.outcome(second).outcome in (Result.SUCCESS, Result.TIME_LIMIT)
    holds = [k for k, command in enumerate(world.commands) if command.hold]
    assert len(holds) <= 1, "one hold between the two tasks at most"
    epochs = [command.epoch for command in world.commands]
    assert epochs == sorted(epochs) and len(set(epochs)) == 2


@pytest.mark.parametrize(
    ("instruction", "limit"), [("", 0.0), ("  \n", 0.0), ("put it there", -1.0), ("lift <|EOT_ID|>", 0.0), ("a" * 501, 0.0)]
)
def test_an_invalid_goal_is_rejected(world: World, instruction: str, limit: float) -> None:
    assert not world.graph.send_goal(instruction, limit).accepted


def test_a_time_limit_is_kept_to_the_step(world: World) -> None:
    result = world.graph.outcome(world.graph.send_goal(world.reset().instruction, time_limit=0.5))
    assert (result.outcome, result.steps, result.chunks) == (Result.TIME_LIMIT, 10, 2)


def test_a_reset_during_a_goal_ends_it(world: World) -> None:
    handle = world.begin()
    begun = world.reset()
    result = world.graph.outcome(handle)
    assert result.outcome == Result.CANCELLED and "reset" in result.reason
    world.graph.spin(0.3)
    assert world.states[-1].tick == begun.tick, "nobody answers the first tick of the new episode"


def test_a_goal_sent_right_after_a_reset_starts_with_the_new_episode(world: World) -> None:
    """The tick of the reset may reach the controller after the goal does."""
    for _ in range(5):
        begun = world.reset()
        world.commands.clear()
        result = world.graph.outcome(world.graph.send_goal(begun.instruction, time_limit=0.2))
        assert (result.outcome, result.steps) == (Result.TIME_LIMIT, 4)
        world.graph.wait(lambda begun=begun: any(command.tick >= begun.tick + 3 for command in world.commands), "the last command")
        played = [command.tick for command in world.commands if command.tick >= begun.tick]
        assert played == list(range(begun.tick, begun.tick + 4))


def test_chunks_that_nobody_asked_for_are_refused_and_change_nothing(world: World) -> None:
    """They come from the policy's own publisher: a second one would be a fault."""
    publisher = world.graph.node.create_publisher(ActionChunkMsg, "other_chunk", COMMAND)
    world.graph.wait(publisher.get_subscription_count, "the policy's subscription")
    handle = world.begin_and_pause()
    now, epoch = stamp_to_ns(world.states[-1].header.stamp), world.commands[-1].epoch
    ones = np.ones((8, 7), np.float32)
    wrong = {
        "epoch": chunk_to_msg(ActionChunk(ones, now, 50_000_000, epoch=epoch - 1), now),
        "not_asked": chunk_to_msg(ActionChunk(ones, now + 1, 50_000_000, epoch=epoch), now),
        "non_finite": chunk_to_msg(ActionChunk(ones * np.nan, now + 1, 50_000_000, epoch=epoch), now),
        "rate": chunk_to_msg(ActionChunk(ones, now + 1, 100_000_000, epoch=epoch), now),
        "malformed": chunk_to_msg(ActionChunk(ones, now, 50_000_000, epoch=epoch), now),
    }
    wrong["malformed"].horizon = 9
    before, sent = {reason: world.refused(reason) for reason in wrong}, Counter()

    def all_refused() -> bool:
        """Send the next of those that /diagnostics does not count yet, one at a time: a reader keeps only the newest chunk."""
        unseen = [reason for reason in wrong if world.refused(reason) == before[reason]]
        if unseen:
            reason = min(unseen, key=sent.__getitem__)
            publisher.publish(wrong[reason])
            sent[reason] += 1
        return not unseen

    world.graph.wait(all_refused, "refusal of every wrong chunk on /diagnostics")
    assert all(world.refused(reason) - before[reason] <= sent[reason] for reason in wrong)
    world.graph.kill("simulation", signal.SIGCONT)
    assert world.graph.outcome(handle).outcome == Result.SUCCESS
    assert not any((np.asarray(command.offset) == 1).all() for command in world.commands)
    world.graph.node.destroy_publisher(publisher)


def test_a_killed_policy_is_a_fault_that_latches_until_a_reset(world: World) -> None:
    handle = world.begin()
    world.graph.kill("policy")
    result = world.graph.outcome(handle)
    assert result.outcome == Result.FAULT and "policy is gone" in result.reason
    world.graph.wait(world.holds, "the hold")
    world.graph.wait(lambda: world.diagnosed("call reset_fault"), "the fault on /diagnostics")
    latched = world.graph.outcome(world.graph.send_goal("go on"))
    assert latched.outcome == Result.FAULT and "reset_fault" in latched.reason
    cleared = world.graph.call(Trigger, "reset_fault", Trigger.Request())
    assert cleared.success and "policy is gone" in cleared.message
    # The next goal waits for a policy.
    instruction = world.reset().instruction
    handle = world.graph.send_goal(instruction)
    world.graph.spin(0.5)
    world.graph.stop("policy")
    world.start_policy()
    assert world.graph.outcome(handle, 90.0).outcome == Result.SUCCESS


def test_an_e_stop_ends_a_simulators_task_too(world: World) -> None:
    handle = world.begin()
    assert world.graph.call(Trigger, "estop", Trigger.Request()).success
    result = world.graph.outcome(handle)
    assert result.outcome == Result.FAULT and "e-stop" in result.reason
    world.graph.wait(world.holds, "the hold")
    assert "e-stop" in world.graph.call(Trigger, "reset_fault", Trigger.Request()).message


def test_without_a_policy_a_goal_says_what_to_start(tmp_path) -> None:
    with TestGraph(tmp_path) as graph:
        world = World(graph, policy=False, start_timeout=1.0)
        result = graph.outcome(graph.send_goal(world.reset().instruction))
        assert result.outcome == Result.FAULT and "start policy_node" in result.reason
        assert graph.call(Trigger, "reset_fault", Trigger.Request()).message == "no fault was latched"
        assert not world.commands


def test_an_e_stop_ends_a_goal_that_still_waits(tmp_path) -> None:
    with TestGraph(tmp_path) as graph:
        world = World(graph, policy=False, start_timeout=60.0)
        handle = graph.send_goal(world.reset().instruction)
        graph.wait(lambda: world.diagnosed("no policy"), "a controller that waits")
        assert graph.call(Trigger, "estop", Trigger.Request()).success
        result = graph.outcome(handle, 30.0)
        assert result.outcome == Result.FAULT and "e-stop" in result.reason
        world.start_policy()
        graph.wait(lambda: world.diagnosed("call reset_fault"), "a controller that lives")


def test_a_goal_waits_until_the_policy_has_been_alive_for_a_while(tmp_path) -> None:
    with TestGraph(tmp_path) as graph:
        world = World(graph, policy=False)
        instruction = world.reset().instruction
        handle = graph.send_goal(instruction)
        graph.wait(lambda: world.diagnosed("no policy"), "a controller that waits")
        began = time.monotonic()
        graph.node.create_publisher(ActionChunkMsg, "action_chunk", CHUNK)
        graph.wait(lambda: world.tasks and world.tasks[-1].active, "the task")
        assert time.monotonic() - began >= SETTLE
        graph.result(handle.cancel_goal_async(), "answer to the cancel")
        assert graph.outcome(handle).outcome == Result.CANCELLED


def test_realtime(tmp_path) -> None:
    """One graph for what takes real seconds: a task succeeds, a cancel ramps down, a stopped policy stops the arm, an end holds."""
    with TestGraph(tmp_path) as graph:
        # A long grace: on a machine that runs other things the 60 ms lease of a policy that is well runs out now and then.
        world = World(graph, "realtime", **{"limits.liveliness_grace": 0.5})
        handle = world.begin()
        assert not world.tasks[-1].lockstep and world.commands[-1].tick == 0
        answer = graph.result(handle.cancel_goal_async(), "answer to the cancel")
        assert answer.goals_canceling
        epoch = world.commands[-1].epoch
        assert graph.outcome(handle).outcome == Result.CANCELLED
        graph.wait(world.holds, "the end of the ramp")
        graph.spin(0.3)
        assert world.commands[-1].epoch == epoch and world.commands[-1].hold
        sizes = [float(np.abs(command.offset).max()) for command in world.commands][-5:]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0

        result = graph.outcome(graph.send_goal(world.reset().instruction))
        assert result.outcome in (Result.SUCCESS, Result.TIME_LIMIT), result.reason  # a loaded machine plays badly, but it plays
        assert result.chunks > 3

        handle = world.begin()
        graph.kill("policy", signal.SIGSTOP)
        result = graph.outcome(handle)
        assert result.outcome == Result.FAULT and "policy is gone" in result.reason
        graph.wait(world.holds, "the hold")
        graph.kill("policy", signal.SIGCONT)
        graph.call(Trigger, "reset_fault", Trigger.Request())

        world.begin()
        graph.stop("controller")
        graph.wait(world.holds, "the hold of a controller that is asked to end")


def test_wrong_limits_fail_in_configure_with_the_remedy(tmp_path) -> None:
    with TestGraph(tmp_path) as graph:
        health = graph.collect(DiagnosticArray, "/diagnostics", 10)
        graph.start("controller", "bitvla_ros.nodes.controller", {"limits.clamp": ["ofset"]})
        status = graph.wait(lambda: next((s for a in health for s in a.status if s.level == b"\x02"), None), "an error on /diagnostics")
        assert "ofset" in status.message and "offset" in status.message


def test_without_a_simulator_success_comes_from_its_topic(tmp_path) -> None:
    """The arm is still simulated, but the controller is told that it is a real one: it sees the pose alone."""
    with TestGraph(tmp_path) as graph:
        world = World(graph, "realtime", simulator=False, time_limit=60.0, **{"limits.liveliness_grace": 0.5})
        success = graph.node.create_publisher(Bool, "success", 1)
        graph.wait(success.get_subscription_count, "the controller")
        success.publish(Bool(data=True))  # of whatever was before the goal: does not count
        # The publisher may know of the controller before the controller knows of it; then the word comes later, even after the goal.
        assert success.wait_for_all_acked(Duration(seconds=30))
        handle = world.begin()
        assert not world.tasks[-1].lockstep
        success.publish(Bool(data=True))
        result = graph.outcome(handle)
        assert result.outcome == Result.SUCCESS and result.steps >= 10


def test_without_a_simulator_somebody_must_set_a_time_limit(tmp_path) -> None:
    with TestGraph(tmp_path) as graph:
        health = graph.collect(DiagnosticArray, "/diagnostics", 100)
        graph.start("controller", "bitvla_ros.nodes.controller", {"simulator": False})
        graph.wait(lambda: any("time_limit is 0" in status.message for array in health for status in array.status), "the refusal")
