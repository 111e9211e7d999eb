"""The policy node, in this process, where a policy fails or is slow and where inputs fail or come late."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

from graph import TestGraph
from lifecycle_msgs.srv import GetState
from rclpy.parameter import Parameter as RosParameter
from robot import MS, STEP, Robot

from bitvla_ros.nodes import load
from bitvla_ros.nodes.conversions import image_to_msg, joint_state_to_msg, ns_to_stamp, stamp_to_ns
from bitvla_ros.nodes.frames import NoTransform, Transform
from bitvla_ros.nodes.policy import PolicyNode
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.policy.policy import PolicySpec

pytestmark = pytest.mark.ros


class Scripted:
    """Answers zeros; `act` may do something first."""

    def __init__(self, act: Callable = lambda observation: None, cameras: tuple[str, ...] = ()) -> None:
        self.spec = PolicySpec("scripted", cameras, 8, 20.0, False, "hash")
        self.act = act

    def reset(self) -> None:
        pass

    def infer(self, observation) -> ActionChunk:
        actions = self.act(observation)
        actions = np.zeros((8, 7), np.float32) if actions is None else actions
        return ActionChunk(actions, observation.stamp, STEP, epoch=observation.epoch, instruction=observation.instruction)


@contextmanager
def in_process(graph: TestGraph, policy: Scripted, make_frames=None, **parameters) -> Iterator[PolicyNode]:
    overrides = [RosParameter(name, value=value) for name, value in parameters.items()]
    frames = {} if make_frames is None else {"make_frames": make_frames}
    node = PolicyNode(context=graph.context, parameter_overrides=overrides, **frames)
    graph.executor.add_node(node)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_policy", lambda p, log: policy)
        node.start()
        graph.wait(lambda: node.state == "active", "the active node")
    try:
        yield node
    finally:
        graph.executor.remove_node(node)
        node.stop()
        node.destroy_node()


def test_the_garbage_collector_leaves_alone_what_was_loaded(tmp_path) -> None:
    """Or it would hold up every thread for 0.15 s now and then, the one too that says that the policy lives."""
    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(lambda observation: None)):
        assert gc.get_freeze_count() > 10 * len(gc.get_objects())


def test_exception_in_inference_is_shown_and_the_node_goes_on(tmp_path, capfd) -> None:
    def act(observation):
        if observation.instruction == "explode":
            raise RuntimeError("out of magic")
        return np.full((8, 7), np.nan, np.float32) if observation.instruction == "nan" else None

    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(act)):
        robot = Robot(graph)
        for instruction, message in (("explode", "out of magic"), ("nan", "not finite")):
            epoch = robot.task(instruction)
            failed = graph.wait(
                lambda message=message: (robot.feed(), [s for s in robot.statuses() if s.level == b"\x02" and message in s.message])[1],
                "error on /diagnostics",
            )
            assert failed
            before = robot.count("exception")
            graph.wait(lambda before=before: (robot.feed(), robot.count("exception") > before + 4)[1], "further failures")
            robot.task("lift")
            robot.answer()
            assert epoch not in {chunk.epoch for chunk in robot.chunks}, "a failed inference was published"
    logged = capfd.readouterr().err.count("RuntimeError: out of magic")
    assert 1 <= logged < 4, "with its traceback; again only after a refusal of another kind, as of inputs that a full machine delays"


def test_slow_inference_takes_the_newest_observation_next_and_holds_nothing_up(tmp_path) -> None:
    entered, release = threading.Event(), threading.Semaphore(0)

    def act(observation) -> None:
        entered.set()
        assert release.acquire(timeout=60)

    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(act), max_age=60.0):
        robot = Robot(graph)
        robot.task()
        graph.wait(lambda: (robot.feed(), entered.is_set())[1], "inference")
        first = robot.fed[-1]
        for _ in range(10):
            robot.feed()
            graph.spin(0.02)
        newest = robot.fed[-1]
        response = graph.call(GetState, "/policy/get_state", GetState.Request())  # the executor is free
        assert response.current_state.label == "active" and not robot.chunks
        for expected in (1, 2):
            release.release()
            graph.wait(lambda expected=expected: len(robot.chunks) == expected, f"{expected} chunks")
        stamps = [stamp_to_ns(chunk.observation_stamp) for chunk in robot.chunks]
        assert stamps[0] <= first and stamps[1] == newest, "an observation in between was queued"
        release.release(10)


def test_chunk_of_a_cancelled_task_is_not_published(tmp_path) -> None:
    entered, release = threading.Event(), threading.Event()

    def act(observation) -> None:
        entered.set()
        assert release.wait(60)

    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(act)) as node:
        robot = Robot(graph)
        cancelled = robot.task()
        graph.wait(lambda: (robot.feed(), entered.is_set())[1], "inference")
        robot.publish_task("lift the block", False, False, 0, 0)
        graph.wait(lambda: node.status().message == "waiting for a task", "end of the task")
        release.set()
        robot.task("next")
        robot.answer()
        assert cancelled not in {chunk.epoch for chunk in robot.chunks}


def test_lockstep_never_mixes_ticks(tmp_path) -> None:
    seen = []
    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(seen.append), synchronised=True):
        robot = Robot(graph, synchronised=True)
        graph.wait(lambda: graph.node.count_subscribers("/joint_states"), "subscription")
        origin = 100 * STEP
        robot.task(lockstep=True, since=origin)
        for tick in (0, 1):  # the next tick's joints come before this tick's pose
            robot.feed_joints(origin + tick * STEP, (0.01 + 0.01 * tick, 0.0))
            graph.spin(0.1)
        robot.feed_pose(origin)
        graph.wait(lambda: robot.chunks, "chunk")
        assert seen[0].state[6] == 0.01


def test_late_image_meets_the_state_of_its_own_moment(tmp_path) -> None:
    seen = []
    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(seen.append, ("scene",)), max_skew=0.05, max_age=30.0):
        robot = Robot(graph, cameras=("scene",))
        robot.task(interval=1)
        robot.answer()
        graph.spin(0.2)
        moment = robot.now()
        for later in (0, 1):
            robot.feed_pose(moment + later * 80 * MS, (0.1 * later, 0.0, 0.3))
            robot.feed_joints(moment + later * 80 * MS)
            graph.spin(0.1)
        robot.feed_image("scene", moment)
        graph.wait(lambda: stamp_to_ns(robot.chunks[-1].observation_stamp) == moment, "chunk")
        assert set(seen[-1].stamps.values()) == {moment} and seen[-1].state[0] == 0.0


def test_pose_comes_from_tf_at_its_own_time(tmp_path) -> None:
    """Which may be 50 ms before that of the newest joints: robot_state_publisher's own rate is 20 Hz."""

    class Table:
        stamp = 0

        def newest(self, target, source):
            if not self.stamp:
                raise NoTransform(f"no transform from {source!r} to {target!r}")
            return Transform(np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.0, 0.0, 0.0]), self.stamp)

        def close(self) -> None:
            pass

    seen = []
    table = Table()
    with TestGraph(tmp_path) as graph:
        names = {"state_source": "tf", "base_frame": "arm", "ee_frame": "hand"}
        one_joint = {"gripper_joints": ["knuckle"], "gripper_scale": [0.5, -0.5], "gripper_offset": [0.01, -0.01]}
        with in_process(graph, Scripted(seen.append), lambda node: table, **names, **one_joint):
            robot = Robot(graph)

            def feed() -> None:
                now = robot.now()
                if table.stamp:
                    table.stamp = now - 50 * MS
                robot.joints.publish(joint_state_to_msg(["knuckle"], [0.04], now))

            robot.task()
            assert "no transform from 'hand' to 'arm'" in robot.refuses("missing_transform", feed)
            table.stamp = robot.now() - 50 * MS
            chunk = graph.wait(lambda: (feed(), robot.chunks)[1], "chunk")[0]
            assert chunk.header.frame_id == "arm"
            stamp = stamp_to_ns(chunk.observation_stamp)
            (answered,) = [observation for observation in seen if observation.stamps["end_effector_pose"] == stamp]
            assert 0 <= answered.stamps["gripper"] - stamp <= 100 * MS
            np.testing.assert_allclose(answered.state, [0.1, 0.2, 0.3, np.pi, 0, 0, 0.03, -0.03], atol=1e-12)


def test_camera_that_never_came_is_named(tmp_path) -> None:
    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(cameras=("scene", "wrist"))):
        robot = Robot(graph, "", cameras=("scene",))
        robot.task()
        message = robot.refuses("missing_stream", robot.feed)
        assert "wrist" in message.split(";")[0] and "scene" not in message.split(";")[0]


def test_frozen_and_skewed_cameras_are_refused(tmp_path) -> None:
    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(cameras=("scene", "wrist")), max_skew=0.05, max_age=5.0):
        robot = Robot(graph, cameras=("scene", "wrist"))
        robot.task()
        robot.answer()
        image = image_to_msg(np.full((64, 64, 3), 7, np.uint8), 0, "scene")
        positions = iter(np.linspace(0.0, 5.0, 2000))

        def frozen() -> None:
            stamp = robot.now()
            image.header.stamp = ns_to_stamp(stamp)
            robot.images["scene"].publish(image)
            robot.feed_image("wrist", stamp)
            robot.feed_pose(stamp, (next(positions), 0.0, 0.3))
            robot.feed_joints(stamp)

        assert "camera scene has repeated" in robot.refuses("frozen", frozen)
        robot.answer()

        def skewed() -> None:
            stamp = robot.now()
            robot.feed_image("scene", stamp)
            robot.feed_image("wrist", stamp - 80 * MS)
            robot.feed_pose(stamp)
            robot.feed_joints(stamp)
            graph.spin(0.1)

        assert "at most 50 ms" in robot.refuses("skewed", skewed)
        robot.answer()


def test_one_bad_image_from_the_future_does_not_shut_out_the_good_ones(tmp_path) -> None:
    """It cannot be decoded, so its stamp is not what it is refused for; all that come after it would seem to go back."""
    with TestGraph(tmp_path) as graph, in_process(graph, Scripted(cameras=("scene",))):
        robot = Robot(graph, cameras=("scene",))
        robot.task()
        robot.answer()
        image = image_to_msg(np.full((64, 64, 3), 7, np.uint8), robot.now() + 3_600_000 * MS, "scene")
        image.encoding = "8UC3"
        robot.refuses(
            "wrong_encoding", lambda: (robot.images["scene"].publish(image), robot.feed_pose(robot.now()), robot.feed_joints(robot.now()))
        )
        robot.answer()
