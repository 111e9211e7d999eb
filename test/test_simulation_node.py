"""The simulation node in a real graph; the test answers its ticks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from geometry_msgs.msg import PoseStamped
from graph import TestGraph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from bitvla_ros.msg import EndEffectorCommand, SimulationState
from bitvla_ros.nodes.conversions import image_from_msg, pose_from_msg, stamp_to_ns
from bitvla_ros.nodes.qos import COMMAND, LATCHED, SENSOR
from bitvla_ros.simulation import make
from bitvla_ros.srv import ResetEpisode

pytestmark = pytest.mark.ros

SUITE = "tabletop_object"
STEP = 50_000_000


class Simulation:
    """The node and what it publishes."""

    def __init__(self, graph: TestGraph, lockstep: bool = True, **parameters: object) -> None:
        self.graph = graph
        qos = LATCHED if lockstep else SENSOR
        self.states = graph.collect(SimulationState, "simulation_state", LATCHED)
        self.poses = graph.collect(PoseStamped, "end_effector_pose", qos)
        self.joints = graph.collect(JointState, "joint_states", qos)
        self.images = {role: graph.collect(Image, f"camera/{role}/image_raw", qos) for role in ("scene", "wrist")}
        self.clocks = graph.collect(Clock, "/clock", LATCHED)
        self.command = graph.node.create_publisher(EndEffectorCommand, "end_effector_command", COMMAND)
        mode = "lockstep" if lockstep else "realtime"
        graph.start("simulation", "bitvla_ros.nodes.simulation", {"suite": SUITE, "mode": mode, "image_size": 64, **parameters})
        graph.wait(lambda: self.states and self.command.get_subscription_count(), "the first tick")

    def reset(self, task: int, seed: int) -> ResetEpisode.Response:
        """Begin an episode, and wait for its first tick, whole."""
        done = self.graph.call(ResetEpisode, "reset_episode", ResetEpisode.Request(task=task, seed=seed))
        assert done.success
        self.graph.wait(lambda: self.states[-1].tick == done.tick, "the tick of the reset")
        self.whole()
        return done

    def send(self, tick: int, action: np.ndarray, hold: bool = False) -> None:
        self.command.publish(EndEffectorCommand(tick=tick, offset=action[:6], gripper=float(action[6]), hold=hold))

    def answer(self, action: np.ndarray, hold: bool = False) -> SimulationState:
        """Answer the newest tick and wait for the next, whole."""
        tick = self.states[-1].tick
        self.send(tick, action, hold)
        self.graph.wait(lambda: self.states[-1].tick > tick, "the next tick")
        self.whole()
        return self.states[-1]

    def whole(self) -> None:
        stamp = self.states[-1].header.stamp
        streams = [self.poses, self.joints, *(images for images in self.images.values() if images)]
        self.graph.wait(lambda: all(s and s[-1].header.stamp == stamp for s in streams), "the whole tick")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """One without cameras, in lockstep."""
    with TestGraph(tmp_path_factory.mktemp("blind")) as graph:
        yield Simulation(graph, cameras=[""])


@pytest.fixture
def simulation(blind: Simulation) -> Simulation:
    """At the first tick of an episode."""
    blind.reset(0, 0)
    return blind


def test_lockstep_ticks_equal_the_environment_in_process(tmp_path):
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7)).astype(np.float32)
    with TestGraph(tmp_path) as graph:
        simulation = Simulation(graph, task=1, seed=5)
        graph.wait(lambda: all(simulation.images.values()), "images")
        environment = make(SUITE, image_size=64)
        expected = environment.reset(1, 5)
        for k in range(len(actions) + 1):
            simulation.whole()
            state, pose, joints = simulation.states[-1], simulation.poses[-1], simulation.joints[-1]
            assert (state.tick, state.step, state.episode) == (k, k, 1)
            assert state.lockstep and state.suite == SUITE and state.instruction == environment.tasks[1]
            position, orientation = pose_from_msg(pose)
            assert position.tobytes() == expected.position.tobytes() and orientation.tobytes() == expected.orientation.tobytes()
            assert list(joints.name) == [*environment.joint_names, *environment.gripper_joint_names]
            assert np.array(joints.position).tobytes() == np.concatenate([expected.joint_positions, expected.gripper]).tobytes()
            assert state.object_names == list(expected.object_poses) and state.success == expected.success
            for pose_, known in zip(state.object_poses, expected.object_poses.values(), strict=True):
                assert np.concatenate(pose_from_msg(pose_)).tobytes() == known.tobytes()
            if k in (0, len(actions)):
                for role, images in simulation.images.items():
                    assert images[-1].encoding == "rgb8" and images[-1].header.stamp == state.header.stamp
                    assert (image_from_msg(images[-1]) == expected.images[role]).all()
            if k < len(actions):
                simulation.answer(actions[k])
                expected = environment.step(actions[k])
        stamps = [stamp_to_ns(state.header.stamp) for state in simulation.states]
        assert set(np.diff(stamps)) == {STEP}
        graph.wait(lambda: stamp_to_ns(simulation.clocks[-1].clock) == stamps[-1], "the tick's time on /clock")
        environment.close()


def test_in_lockstep_time_waits_for_the_command_with_the_ticks_number(simulation: Simulation):
    first = simulation.states[-1].tick
    simulation.answer(np.zeros(7, np.float32))
    for wrong in (first, first + 2, 10**9):
        simulation.send(wrong, np.ones(7, np.float32))
    simulation.graph.spin(0.5)
    assert simulation.states[-1].tick == first + 1, "time went on without an answer"
    assert simulation.answer(np.zeros(7, np.float32)).tick == first + 2
    assert not any(simulation.images.values())


def test_a_reset_begins_a_new_tick_and_a_bad_one_is_refused_and_the_node_goes_on(simulation: Simulation):
    first = simulation.states[-1].tick
    simulation.answer(np.ones(7, np.float32))
    before = simulation.states[-1]
    refused = simulation.graph.call(ResetEpisode, "reset_episode", ResetEpisode.Request(task=999, seed=0))
    assert not refused.success and "999" in refused.message
    assert simulation.answer(np.zeros(7, np.float32)).tick == first + 2
    done = simulation.reset(2, 7)
    state = simulation.states[-1]
    assert done.tick == first + 3 and done.instruction == state.instruction and done.step_limit == state.step_limit > 0
    assert (state.episode, state.step, state.task, state.seed) == (before.episode + 1, 0, 2, 7)
    assert stamp_to_ns(state.header.stamp) > stamp_to_ns(before.header.stamp)
    environment = make(SUITE, cameras=())
    assert pose_from_msg(simulation.poses[-1])[0].tobytes() == environment.reset(2, 7).position.tobytes()


def test_nonsense_from_another_publisher_does_not_end_the_node(simulation: Simulation):
    first = simulation.states[-1].tick
    simulation.send(first, np.full(7, np.nan, np.float32))
    simulation.graph.spin(0.3)
    assert simulation.states[-1].tick == first
    assert simulation.answer(np.zeros(7, np.float32)).tick == first + 1


def test_a_hold_moves_nothing_whatever_its_offset(simulation: Simulation):
    environment = make(SUITE, cameras=())
    environment.reset(0, 0)
    held = np.array([0, 0, 0, 1e-9, 0, 0, 1], np.float32)  # see _HOLD
    simulation.answer(np.ones(7, np.float32), hold=True)
    expected = environment.step(held)
    assert pose_from_msg(simulation.poses[-1])[0].tobytes() == expected.position.tobytes()


def test_in_realtime_the_newest_command_is_played_and_then_the_arm_holds(tmp_path):
    with TestGraph(tmp_path) as graph:
        simulation = Simulation(graph, lockstep=False, cameras=[""])
        graph.wait(lambda: len(simulation.states) > 3 and simulation.poses, "ticks")
        assert not simulation.states[-1].lockstep and not simulation.clocks
        up = np.array([0, 0, 1, 0, 0, 0, 1], np.float32)
        start = simulation.poses[-1].pose.position.z

        def push() -> bool:
            simulation.send(0, up)
            return simulation.poses[-1].pose.position.z > start + 0.04

        graph.wait(push, "motion upwards")
        ticks = len(simulation.states)
        graph.wait(lambda: len(simulation.states) > ticks + 20, "ticks without commands")
        settled = simulation.poses[-1].pose.position.z
        ticks = len(simulation.states)
        graph.wait(lambda: len(simulation.states) > ticks + 20, "more ticks without commands")
        assert abs(simulation.poses[-1].pose.position.z - settled) < 0.005
        stamps = [stamp_to_ns(state.header.stamp) for state in simulation.states]
        assert (np.diff(stamps) > 0).all()


def test_an_unknown_suite_fails_in_configure_and_says_what_there_is(tmp_path):
    from diagnostic_msgs.msg import DiagnosticArray

    with TestGraph(tmp_path) as graph:
        health = graph.collect(DiagnosticArray, "/diagnostics", 10)
        graph.start("simulation", "bitvla_ros.nodes.simulation", {"suite": "tabletop_objects"})
        status = graph.wait(lambda: next((s for a in health for s in a.status if s.level == b"\x02"), None), "an error on /diagnostics")
        assert "tabletop_object" in status.message
