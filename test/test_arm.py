"""What the controller takes from the arm: the newest pose of TF, and the joints in the order that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from geometry_msgs.msg import PoseStamped
from graph import TestGraph
from std_msgs.msg import Header

from bitvla_ros.msg import SimulationState
from bitvla_ros.nodes.arm import Arm
from bitvla_ros.nodes.conversions import joint_state_to_msg, ns_to_stamp, pose_to_msg, stamp_to_ns
from bitvla_ros.nodes.frames import NoTransform, Transform
from bitvla_ros.nodes.qos import LATCHED, SENSOR

pytestmark = pytest.mark.ros

MS = 1_000_000


class Tree:
    """Transforms as robot_state_publisher makes them of the joints, the newest of them at `stamp`; 0: none yet."""

    def __init__(self) -> None:
        self.stamp = 0
        self.closed = False

    def newest(self, target: str, source: str) -> Transform:
        if self.stamp == 0:
            raise NoTransform(f"no transform from {source!r} to {target!r}")
        return Transform(np.array([self.stamp / 1e9, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]), self.stamp)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGraph]:
    with TestGraph(tmp_path_factory.mktemp("arm")) as graph:
        yield graph


class Joints:
    """An arm that listens, and somebody who publishes joint states."""

    def __init__(self, graph: TestGraph, **changes: object) -> None:
        from sensor_msgs.msg import JointState

        from bitvla_ros.nodes.qos import SENSOR

        p = {"simulator": False, "state_source": "tf", "base_frame": "base", "ee_frame": "tip", "joints": ("a", "b"), **changes}
        self.graph, self.tree, self.poses = graph, Tree(), 0
        self.arm = Arm(graph.node, SimpleNamespace(**p), self._count, lambda: None, True, lambda node: self.tree)
        self._publisher = graph.node.create_publisher(JointState, "joint_states", SENSOR)
        self._heard = graph.collect(JointState, "joint_states", SENSOR)  # which matches after the arm's

    def publish(self, names: list[str], positions: list[float], stamp: int) -> None:
        def heard() -> bool:
            self._publisher.publish(joint_state_to_msg(names, positions, stamp))
            return bool(self._heard) and stamp_to_ns(self._heard[-1].header.stamp) == stamp

        self.graph.wait(heard, "joint states")
        self.graph.spin(0.05)

    def close(self) -> None:
        self.arm.close()
        self.graph.node.destroy_publisher(self._publisher)

    def _count(self) -> None:
        self.poses += 1


def test_the_pose_is_the_newest_that_tf_knows_and_the_joints_have_their_own_time(graph: TestGraph) -> None:
    cell = Joints(graph)
    arm, tree = cell.arm, cell.tree
    assert "no joint_states with a, b" in str(arm.missing)
    cell.publish(["gripper"], [0.1], 5 * MS)  # another publisher's
    assert "no joint_states with a, b" in str(arm.missing)
    cell.publish(["b", "a"], [2.0, 1.0], 10 * MS)
    arm.refresh()
    assert "no transform from 'tip' to 'base'" in str(arm.missing)
    cell.publish(["a", "b"], [3.0, 4.0], 20 * MS)
    tree.stamp = 10 * MS
    arm.refresh()
    assert arm.missing is None and arm.pose is not None and arm.joints is not None
    assert (arm.pose.stamp, arm.pose.position[0], arm.frame, cell.poses) == (10 * MS, 0.01, "base", 1)
    assert arm.joints.positions.tolist() == [3.0, 4.0] and arm.joints.stamp == 20 * MS
    arm.refresh()
    assert cell.poses == 1, "nothing new"
    for stamp in (20 * MS, 5 * MS):  # time may begin anew
        tree.stamp = stamp
        arm.refresh()
        assert arm.pose.stamp == stamp
    assert cell.poses == 3
    cell.close()
    assert tree.closed


def test_a_fast_drivers_pose_is_taken_when_it_is_needed(graph: TestGraph) -> None:
    """And not with each of its messages: one at 1 kHz would keep the controller from its setpoints."""
    cell = Joints(graph, state_source="pose", joints=("",))
    publisher = graph.node.create_publisher(PoseStamped, "end_effector_pose", SENSOR)
    heard = graph.collect(PoseStamped, "end_effector_pose", SENSOR)
    assert "nobody publishes end_effector_pose" in str(cell.arm.missing)

    def publish(stamp: int) -> bool:
        publisher.publish(pose_to_msg(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), stamp, "base"))
        return bool(heard) and stamp_to_ns(heard[-1].header.stamp) == stamp

    for number in range(1, 20):
        graph.wait(lambda stamp=number * MS: publish(stamp), "a pose")
    assert cell.arm.pose is None and cell.poses == 0
    graph.wait(lambda: (publish(19 * MS), cell.arm.refresh(), cell.arm.pose)[-1], "the pose")
    assert (cell.arm.pose.stamp, cell.arm.frame, cell.poses) == (19 * MS, "base", 1)
    cell.close()
    graph.node.destroy_publisher(publisher)


def test_joints_that_do_not_come_are_missed(graph: TestGraph) -> None:
    """Where their limits are to be checked, nothing moves without them."""
    cell = Joints(graph, joints=("a", "elbow"))
    cell.tree.stamp = 10 * MS
    cell.publish(["a", "b"], [0.0, 0.0], 10 * MS)
    cell.arm.refresh()
    assert "no joint_states with a, elbow" in str(cell.arm.missing)
    cell.close()
    cell = Joints(graph, joints=("",))  # none are asked for
    cell.tree.stamp = 10 * MS
    cell.arm.refresh()
    assert cell.arm.missing is None and cell.arm.joints is None
    cell.close()


def test_after_a_simulators_reset_the_arm_is_where_the_next_pose_says(graph: TestGraph) -> None:
    """The pose before it is of another episode: a task that began there would find the arm far from its first setpoint."""
    p = SimpleNamespace(simulator=True, state_source="pose", joints=())
    arm = Arm(graph.node, p, lambda: None, lambda: None)
    states = graph.node.create_publisher(SimulationState, "simulation_state", LATCHED)
    poses = graph.node.create_publisher(PoseStamped, "end_effector_pose", SENSOR)

    def pose(stamp: int) -> None:
        def taken() -> bool:
            poses.publish(pose_to_msg(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), stamp, "world"))
            return arm.pose is not None and arm.pose.stamp == stamp

        graph.wait(taken, "the pose")
        graph.spin(0.05)

    def state(episode: int, stamp: int) -> None:
        states.publish(SimulationState(header=Header(stamp=ns_to_stamp(stamp)), episode=episode))
        graph.wait(lambda: arm.stamp == stamp, "the state")

    state(1, 10 * MS)
    pose(10 * MS)
    state(1, 60 * MS)
    assert arm.pose is not None and arm.missing is None, "the same episode: a pose a little older will do"
    state(2, 110 * MS)
    assert arm.pose is None and arm.missing == "nobody publishes end_effector_pose: start the simulator or the arm's driver"
    pose(120 * MS)
    state(3, 120 * MS)
    assert arm.pose is not None, "the pose of the reset itself came first"
    arm.close()
    graph.node.destroy_publisher(states)
    graph.node.destroy_publisher(poses)
