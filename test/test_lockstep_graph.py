"""Episodes through the real graph, simulator, controller and policy each a process, equal episodes in process action for action."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray
from graph import TestGraph
from rclpy.qos import QoSProfile

from bitvla_ros.control.session import Outcome
from bitvla_ros.evaluation.rollout import Rollout, rollout
from bitvla_ros.msg import EndEffectorCommand
from bitvla_ros.simulation import make
from bitvla_ros.simulation.expert import make_expert
from bitvla_ros.srv import ResetEpisode

pytestmark = pytest.mark.ros


class Bench:
    """A graph in lockstep that plays episodes."""

    def __init__(
        self, graph: TestGraph, suite: str, cameras: Sequence[str], policy: dict, image_size: int = 64, **controller: object
    ) -> None:
        self.graph = graph
        self.commands = graph.collect(EndEffectorCommand, "end_effector_command", QoSProfile(depth=1000))
        simulation = {"suite": suite, "cameras": cameras or [""], "image_size": image_size}
        graph.start("simulation", "bitvla_ros.nodes.simulation", simulation)
        graph.start("controller", "bitvla_ros.nodes.controller", {"start_timeout": 90.0, **controller})
        graph.start("policy", "bitvla_ros.nodes.policy", {"synchronised": True, **policy})

    def play(self, task: int, seed: int, time_limit: float = 0.0) -> tuple[np.ndarray, object]:
        """Reset and carry out the task's instruction: the actions commanded, float32 [T, 7], and the goal's result."""
        episode = self.graph.call(ResetEpisode, "reset_episode", ResetEpisode.Request(task=task, seed=seed), 60.0)
        assert episode.success, episode.message
        self.commands.clear()
        handle = self.graph.send_goal(episode.instruction, time_limit)
        assert handle.accepted
        result = self.graph.outcome(handle, 100.0)
        # The result may overtake the last commands, which come on a topic of their own.
        last = episode.tick + result.steps - 1
        self.graph.wait(lambda: self.commands and self.commands[-1].tick >= last, "the last command")
        played = [command for command in self.commands if command.tick >= episode.tick]
        assert [command.tick for command in played] == list(range(episode.tick, episode.tick + len(played))), "one command a tick"
        assert not any(command.hold for command in played)
        rows = [[*command.offset, command.gripper] for command in played]
        return np.array(rows, np.float32).reshape(-1, 7), result


def assert_equal(actions: np.ndarray, result: object, expected: Rollout) -> None:
    assert result.outcome == int(expected.outcome), result.reason
    assert (result.steps, result.chunks) == (expected.steps, expected.chunks)
    assert actions.shape == expected.actions.shape
    different = np.flatnonzero((actions.view(np.uint32) != expected.actions.view(np.uint32)).any(axis=1))
    assert not different.size, f"the actions differ from step {different[0]} on"


@pytest.mark.parametrize("suite", ["tabletop_spatial", "tabletop_object", "tabletop_goal"])
def test_the_expert_through_the_graph_equals_the_expert_in_process(tmp_path: Path, suite: str) -> None:
    environment, expert = make(suite, cameras=()), make_expert(suite)
    with TestGraph(tmp_path) as graph:
        bench = Bench(graph, suite, (), {"policy": "expert", "suite": suite})
        for task, seed in ((0, 10), (3, 13)):
            expected = rollout(environment, expert, task, seed)
            assert_equal(*bench.play(task, seed), expected)
            assert expected.success
    environment.close()


def test_cameras_and_another_replan_interval_change_nothing_in_that(tmp_path: Path) -> None:
    from bitvla_ros.control.player import PlayerConfig
    from bitvla_ros.control.session import ControlConfig

    steps = 40
    environment = make("tabletop_object", cameras=())
    control = ControlConfig(PlayerConfig(replan_steps=3))
    expected = rollout(environment, make_expert("tabletop_object"), 2, 3, control=control, step_limit=steps)
    with TestGraph(tmp_path) as graph:
        bench = Bench(graph, "tabletop_object", ("scene", "wrist"), {"policy": "expert", "suite": "tabletop_object"}, replan_steps=3)
        assert_equal(*bench.play(2, 3, steps * 0.05), expected)
    assert (expected.steps, expected.chunks) == (steps, 14)
    environment.close()


def test_the_network_through_the_graph_equals_the_network_in_process(tmp_path: Path) -> None:
    """Random weights; images, prompt, network, player and guard on both ways. Equal numbers of threads."""
    torch = pytest.importorskip("torch")
    from bitvla_ros.policy.bitvla import BitVLAPolicy

    threads, torch_threads = 2, torch.get_num_threads()
    steps = 12
    environment = make("tabletop_object", image_size=128)
    torch.set_num_threads(threads)
    try:
        expected = rollout(environment, BitVLAPolicy.random("nano", seed=0), 0, 0, step_limit=steps)
    finally:
        torch.set_num_threads(torch_threads)
    assert expected.outcome is Outcome.TIME_LIMIT and expected.steps == steps and expected.chunks == 2
    assert np.unique(expected.actions, axis=0).shape[0] > 8, "the network says something"
    policy = {"policy": "bitvla", "model": "random:nano", "threads": threads}
    with TestGraph(tmp_path) as graph:
        bench = Bench(graph, "tabletop_object", ("scene", "wrist"), policy, image_size=128)
        assert_equal(*bench.play(0, 0, steps * 0.05), expected)
    environment.close()


def test_a_robot_pretrained_base_through_the_graph_equals_itself_in_process(tmp_path: Path) -> None:
    """Actions token by token, one a chunk, from the checkpoint's own files; the tokens that are no actions are counted on the way."""
    torch = pytest.importorskip("torch")
    from robot_base import imitate_released

    from bitvla_ros.policy.bitvla import BitVLAPolicy

    model, steps, threads = imitate_released(tmp_path / "base"), 5, torch.get_num_threads()
    environment = make("tabletop_object", image_size=64)
    torch.set_num_threads(2)
    try:
        policy = BitVLAPolicy.load(model, norm_key="taco_play", control_hz=20.0)
        expected = rollout(environment, policy, 0, 0, step_limit=steps)
    finally:
        torch.set_num_threads(threads)
        environment.close()
    assert (expected.steps, expected.chunks) == (steps, steps) and policy.counts["action_tokens"] == 7 * steps
    given = {"policy": "bitvla", "model": str(model), "norm_key": "taco_play", "control_hz": 20.0, "threads": 2}
    with TestGraph(tmp_path) as graph:
        statuses = graph.collect(DiagnosticArray, "/diagnostics", QoSProfile(depth=100))
        bench = Bench(graph, "tabletop_object", ("scene",), given)
        assert_equal(*bench.play(0, 0, steps * 0.05), expected)

        def counted() -> bool:
            """At least what was played: the last tick is answered too."""
            values = {item.key: item.value for array in statuses for status in array.status for item in status.values}
            return all(int(values.get(name, 0)) >= count for name, count in policy.counts.items())

        graph.wait(counted, "status that counts the tokens")


@pytest.mark.libero
@pytest.mark.timeout(400)
def test_the_expert_on_a_libero_task_equals_itself_in_process(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libero", reason="the optional extra LIBERO is not installed")
    from bitvla_ros.simulation.libero import ASSETS_VARIABLE

    assets = Path(os.environ.get(ASSETS_VARIABLE, shared / "libero_assets" / "assets"))
    if not assets.is_dir():
        pytest.skip(f"no LIBERO assets in {assets} (set {ASSETS_VARIABLE})")
    monkeypatch.setenv(ASSETS_VARIABLE, str(assets))
    environment = make("libero_object", cameras=())
    expected = rollout(environment, make_expert("libero_object"), 0, 1)
    assert expected.success
    with TestGraph(tmp_path) as graph:
        bench = Bench(graph, "libero_object", (), {"policy": "expert", "suite": "libero_object"})
        assert_equal(*bench.play(0, 1), expected)
    environment.close()
