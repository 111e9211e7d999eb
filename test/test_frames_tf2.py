"""Poses out of a real tf2, whose transforms are broadcast by another process."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")
pytest.importorskip("tf2_ros", reason="tf2_ros is not installed: it comes with ROS, not from PyPI")

from geometry_msgs.msg import TransformStamped
from graph import TestGraph
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock

from bitvla_ros.nodes.arm import Arm
from bitvla_ros.nodes.conversions import ns_to_stamp
from bitvla_ros.nodes.frames import NoTransform, TfFrames, Transform

pytestmark = pytest.mark.ros

S = 1_000_000_000
QUARTER_ABOUT_Z = (0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5))


class Tree:
    """Somebody else's transforms, and ours. The graph's node lives in simulated time."""

    def __init__(self, graph: TestGraph) -> None:
        self.graph, self.node = graph, graph.node
        qos = QoSProfile(depth=100)
        self._moving = self.node.create_publisher(TransformStamped, "broadcast", qos)
        self._fixed = self.node.create_publisher(TransformStamped, "broadcast_static", qos)
        self._clock = self.node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self.frames = TfFrames(self.node)
        ready = [self._moving.get_subscription_count, self._fixed.get_subscription_count]
        graph.wait(lambda: all(count() for count in ready) and self.node.count_publishers("/tf_static"), "the broadcaster")

    def move(self, parent: str, child: str, x: float, stamp: int, turn: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)) -> None:
        self._moving.publish(_transform(parent, child, x, stamp, turn))

    def fix(self, parent: str, child: str, x: float) -> None:
        self._fixed.publish(_transform(parent, child, x, 0, (0.0, 0.0, 0.0, 1.0)))

    def time(self, now: int) -> None:
        """Until our node's clock says so."""

        def said() -> bool:
            self._clock.publish(Clock(clock=ns_to_stamp(now)))
            return self.node.get_clock().now().nanoseconds == now

        self.graph.wait(said, f"the time {now / S:g} s")

    def newest(self, target: str, source: str, good: Callable[[Transform], bool], again: Callable[[], None] = lambda: None) -> Transform:
        """Wait until it is as it should be. again: publishes, since what is published before the match is lost."""
        found: Transform | None = None

        def as_it_should() -> bool:
            nonlocal found
            again()
            try:
                found = self.frames.newest(target, source)
            except NoTransform:
                return False
            return good(found)

        self.graph.wait(as_it_should, f"the transform from {source} to {target}; the last was {found}")
        assert found is not None
        return found


def _transform(parent: str, child: str, x: float, stamp: int, turn: tuple[float, ...]) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id, message.header.stamp = parent, ns_to_stamp(stamp)
    message.transform.translation.x = x
    q = message.transform.rotation
    q.x, q.y, q.z, q.w = turn
    return message


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    with TestGraph(tmp_path) as graph:
        monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
        graph.start("broadcaster", "tf_broadcaster")
        graph.node.set_parameters([Parameter("use_sim_time", value=True)])
        tree = Tree(graph)
        tree.time(100 * S)
        yield tree
        tree.frames.close()


def test_the_newest_transform_through_a_chain_has_the_stamp_of_its_oldest_link(tree: Tree) -> None:
    def publish() -> None:
        tree.fix("hand", "tip", 0.1)
        tree.move("base", "link", 1.0, 98 * S)
        tree.move("base", "link", 2.0, 99 * S, QUARTER_ABOUT_Z)
        tree.move("link", "hand", 0.5, 98 * S + 500_000_000)
        tree.move("link", "hand", 0.5, 98 * S)

    newest = tree.newest("base", "link", lambda found: found.stamp == 99 * S, publish)
    assert newest.position == pytest.approx([2.0, 0.0, 0.0]) and newest.orientation == pytest.approx(QUARTER_ABOUT_Z)
    whole = tree.newest("base", "tip", lambda found: found.stamp == 98 * S + 500_000_000, publish)
    eighth = math.sqrt(0.5) * 0.6  # half way between the two of base and link
    assert whole.position == pytest.approx([1.5 + eighth, eighth, 0.0])
    assert whole.position.shape == (3,) and whole.orientation.shape == (4,) and whole.position.dtype == np.float64


def test_what_is_missing_is_named(tree: Tree) -> None:
    def publish() -> None:
        tree.fix("base", "stand", 1.0)
        tree.move("base", "link", 1.0, 99 * S)
        tree.move("other_base", "other_link", 1.0, 99 * S)

    tree.newest("base", "link", lambda found: True, publish)
    tree.newest("other_base", "other_link", lambda found: True, publish)
    for target, source, complaint in (
        ("base", "nowhere", "nowhere"),
        ("base", "other_link", "not part of the same tree|not.*connected"),
        ("base", "", "no transform from ''"),
        ("base", "/link", "no transform from '/link'"),
        ("base", "base", "fixed to"),
    ):
        with pytest.raises(NoTransform, match=complaint):
            tree.frames.newest(target, source)
    tree.graph.wait(lambda: "fixed to" in _complaint(tree, "base", "stand"), "the fixed transform")


def _complaint(tree: Tree, target: str, source: str) -> str:
    try:
        tree.frames.newest(target, source)
    except NoTransform as error:
        return str(error)
    return ""


def test_after_a_jump_back_in_time_the_transforms_of_the_new_time_count(tree: Tree) -> None:
    """A simulator was reset. Fixed transforms, which nobody sends again, are still known."""
    tree.newest("base", "tip", lambda found: True, lambda: (tree.fix("link", "tip", 0.5), tree.move("base", "link", 1.0, 100 * S)))
    for now in (96 * S, 5 * S):  # within tf2's memory of 10 s, and beyond it
        tree.time(now)
        again = partial(tree.move, "base", "link", 2.0, now)
        found = tree.newest("base", "tip", lambda found, now=now: found.stamp <= now, again)
        assert found.stamp == now and found.position[0] == pytest.approx(2.5)


def test_a_transform_of_before_that_comes_after_the_jump_does_no_harm(tree: Tree) -> None:
    """robot_state_publisher hears of the jump later than we do."""
    tree.newest("base", "link", lambda found: True, lambda: tree.move("base", "link", 1.0, 100 * S))
    tree.time(5 * S)
    tree.move("base", "link", 1.0, 100 * S)
    tree.graph.wait(lambda: "ahead of our clock" in _complaint(tree, "base", "link"), "the late transform")
    found = tree.newest("base", "link", lambda found: True, lambda: tree.move("base", "link", 2.0, 5 * S))
    assert found.stamp == 5 * S and found.position[0] == pytest.approx(2.0)


def test_the_arm_is_seen_where_it_is_after_a_jump_back(tree: Tree) -> None:
    p = SimpleNamespace(simulator=False, state_source="tf", base_frame="base", ee_frame="tip", joints=("",))
    arm = Arm(tree.node, p, on_pose=lambda: None, on_state=lambda: None, polled=True)
    try:
        for now, x in ((100 * S, 1.0), (5 * S, 2.0)):
            tree.time(now)

            def seen(now: int = now, x: float = x) -> bool:
                tree.move("base", "tip", x, now)
                arm.refresh()
                return arm.pose is not None and arm.pose.stamp == now

            tree.graph.wait(seen, f"the pose of {now / S:g} s")
            assert arm.pose.position[0] == x and arm.frame == "base"
    finally:
        arm.close()


def test_after_its_end_it_listens_no_more(tree: Tree) -> None:
    assert tree.node.count_subscribers("/tf") == 1
    tree.frames.close()
    assert tree.node.count_subscribers("/tf") == 0
    tree.frames = TfFrames(tree.node)
