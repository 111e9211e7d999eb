"""The simulated arm behind an interface like a real arm's driver, in a real graph; the test drives it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from geometry_msgs.msg import PoseStamped, Quaternion, TwistStamped
from graph import TestGraph
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64

from bitvla_ros.msg import SimulationState
from bitvla_ros.nodes import simulated_driver
from bitvla_ros.nodes.conversions import pose_from_msg, pose_to_msg, stamp_to_ns
from bitvla_ros.nodes.parameters import ParameterError
from bitvla_ros.nodes.qos import COMMAND, LATCHED, SENSOR
from bitvla_ros.nodes.simulated_driver import SimulatedDriver
from bitvla_ros.simulation import make
from bitvla_ros.srv import ResetEpisode

DOWN = np.array([1.0, 0.0, 0.0, 0.0])


class Arm:
    """A simulated arm, what is heard of it, and publishers of its targets."""

    def __init__(self, graph: TestGraph, interface: str, cameras: tuple[str, ...] = ("",)) -> None:
        self.graph = graph
        self.states = graph.collect(SimulationState, "simulation_state", LATCHED)
        self.poses = graph.collect(PoseStamped, "end_effector_pose", SENSOR)
        self.joints = graph.collect(JointState, "joint_states", SENSOR)
        self.images = graph.collect(Image, "camera/scene/image_raw", SENSOR)
        kind = {"pose": PoseStamped, "twist": TwistStamped}[interface]
        self.target = graph.node.create_publisher(kind, f"target_{interface}", COMMAND)
        self.gripper = graph.node.create_publisher(Float64, "target_gripper", COMMAND)
        parameters = {"suite": "tabletop_object", "mode": "realtime", "interface": interface, "cameras": list(cameras), "image_size": 64}
        graph.start("simulation", "bitvla_ros.nodes.simulation", parameters)
        heard = (self.target, self.gripper)
        graph.wait(lambda: self.poses and self.joints and all(p.get_subscription_count() for p in heard), "the arm's driver")

    @property
    def position(self) -> np.ndarray:
        return pose_from_msg(self.poses[-1])[0]

    @property
    def opening(self) -> float:
        return float(self.joints[-1].position[-2] - self.joints[-1].position[-1])

    def drive(self, message: object, until: Callable[[], object], what: str) -> None:
        """Publish a target at 50 Hz until something has happened."""
        due = time.monotonic()

        def publish_and_look() -> object:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + 0.02
                self.target.publish(message)
            return until()

        self.graph.wait(publish_and_look, what)

    def silence(self, poses: int) -> None:
        """Publish nothing while so many poses come."""
        seen = len(self.poses)
        self.graph.wait(lambda: len(self.poses) >= seen + poses, "poses")


def pose(position: np.ndarray, frame: str = "world") -> PoseStamped:
    return pose_to_msg(position, DOWN, 0, frame)


@pytest.mark.ros
def test_an_arm_goes_to_poses_smoothly_and_stops_when_they_end(tmp_path):
    with TestGraph(tmp_path) as graph:
        arm = Arm(graph, "pose", cameras=("scene",))
        start, goal = arm.position, arm.position + [0.02, 0.03, 0.04]
        arm.drive(pose(goal), lambda: np.linalg.norm(arm.position - goal) < 5e-4, "the arm at its target")
        # A target across the table: the arm does not leap to it, and without targets it does not get there.
        seen = len(arm.poses)
        arm.drive(pose(start + [0.0, 0.5, 0.1]), lambda: arm.position[1] > start[1] + 0.1, "the arm on its way")
        path = [(stamp_to_ns(p.header.stamp) / 1e9, pose_from_msg(p)[0]) for p in arm.poses[seen:]]
        assert all(np.linalg.norm(b - a) < 0.03 + 1.0 * (then - now) for (now, a), (then, b) in itertools.pairwise(path)), "m, m/s"
        arm.silence(40)
        stopped = arm.position
        arm.silence(20)
        assert np.linalg.norm(arm.position - stopped) < 5e-4 and stopped[1] < start[1] + 0.45
        # Nonsense moves nothing and ends nothing.
        nowhere, long = pose(start), pose(start)
        nowhere.pose.orientation = Quaternion(x=0.0, y=0.0, z=0.0, w=0.0)
        long.pose.orientation.w = 3.0
        for bad in (pose(start, frame="base"), pose(np.full(3, np.nan)), nowhere, long):
            arm.target.publish(bad)
            arm.silence(10)  # the next would take its place before it is read
        arm.silence(20)
        assert np.linalg.norm(arm.position - stopped) < 5e-4
        # The gripper keeps its last command.
        assert arm.opening > 0.07
        arm.gripper.publish(Float64(data=1.0))
        graph.wait(lambda: arm.opening < 0.005, "a closed gripper")
        # Poses come faster than ticks and images do, and time only grows.
        ticks, poses, images = ([stamp_to_ns(m.header.stamp) for m in messages] for messages in (arm.states, arm.poses, arm.images))
        assert images and len(poses) > 2 * max(len(ticks), len(images))
        assert all(a < b for stamps in (ticks, poses, images) for a, b in itertools.pairwise(stamps))


@pytest.mark.ros
def test_an_arm_moves_with_a_twist_and_stops_when_it_ends(tmp_path):
    with TestGraph(tmp_path) as graph:
        arm = Arm(graph, "twist")
        start = arm.position
        twist = TwistStamped()
        twist.header.frame_id, twist.twist.linear.y = "world", 0.1
        arm.drive(twist, lambda: arm.position[1] > start[1] + 0.03, "motion to the left")
        arm.silence(40)
        stopped = arm.position
        arm.silence(20)
        moved = arm.position - start
        assert np.linalg.norm(arm.position - stopped) < 5e-4
        assert 0.03 < moved[1] < 0.06 and np.abs(moved[[0, 2]]).max() < 2e-3
        # A new episode: the arm is at home again and stays there.
        seen = len(arm.poses)
        assert graph.call(ResetEpisode, "reset_episode", ResetEpisode.Request(task=1, seed=3)).success
        graph.wait(lambda: len(arm.poses) > seen + 30, "poses of the new episode")
        assert arm.position == pytest.approx(start, abs=2e-3)


@pytest.mark.ros
def test_a_driver_can_be_deactivated_in_mid_step_and_activated_again(tmp_path):
    with TestGraph(tmp_path) as graph:
        arm = Arm(graph, "pose", cameras=("scene",))
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE) * 2:
            request = ChangeState.Request(transition=Transition(id=transition))
            assert graph.call(ChangeState, "simulation/change_state", request).success
            if transition == Transition.TRANSITION_ACTIVATE:
                seen = len(arm.images), len(arm.poses)
                graph.wait(lambda seen=seen: len(arm.images) > seen[0] and len(arm.poses) > seen[1] + 3, "images and poses again")


@pytest.mark.parametrize("interface", simulated_driver.INTERFACES)
def test_what_cannot_behave_like_a_driver_is_refused_with_the_reason(interface: str):
    simulated_driver.check(interface, False, "tabletop_goal")
    with pytest.raises(ParameterError, match="set mode to 'realtime'"):
        simulated_driver.check(interface, True, "tabletop_goal")
    with pytest.raises(ParameterError, match=r"LIBERO's arm takes no poses.*tabletop_object"):
        simulated_driver.check(interface, False, "libero_object")


@pytest.mark.ros
def test_a_refused_interface_fails_configure(tmp_path):
    from diagnostic_msgs.msg import DiagnosticArray

    with TestGraph(tmp_path) as graph:
        health = graph.collect(DiagnosticArray, "/diagnostics", 10)
        graph.start("simulation", "bitvla_ros.nodes.simulation", {"interface": "pose"})
        status = graph.wait(lambda: next((s for a in health for s in a.status if s.level == b"\x02"), None), "an error on /diagnostics")
        assert "set mode to 'realtime'" in status.message


@pytest.mark.ros
@pytest.mark.parametrize(("late", "made_up"), [(0.2, True), (1.0, False)])
def test_an_arm_does_not_move_slower_where_its_simulator_is_held_up(tmp_path, monkeypatch: pytest.MonkeyPatch, late: float, made_up: bool):
    """But what is too late is lost: nobody waits for an arm that makes up for seconds."""
    now = 100.0
    monkeypatch.setattr(simulated_driver.time, "monotonic", lambda: now)
    places = []
    with TestGraph(tmp_path) as graph, contextlib.closing(make("tabletop_object", cameras=())) as environment:
        for times in (np.arange(0.01, late + 0.005, 0.01), [late]):
            now = 100.0
            seen = environment.reset(0, 0)
            start = seen.position
            with contextlib.closing(SimulatedDriver(graph.node, environment, "pose", 100.0)) as driver:
                for passed in times:
                    driver._take_pose(pose(start + [0.0, 0.3, 0.0], environment.frame))
                    now = 100.0 + passed + 1e-6
                    driver._since = now
                    moved = driver.advance(seen)
                    seen = moved[0]
            places.append(seen.position)
    assert (np.linalg.norm(places[1] - places[0]) < 0.003) == made_up
