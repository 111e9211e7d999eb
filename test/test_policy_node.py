"""The policy node in a real graph: what it answers, what it refuses and says, and that it goes on."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

import cv2
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from graph import TestGraph
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import Task
from bitvla_ros.nodes import load
from bitvla_ros.nodes.conversions import (
    chunk_from_msg,
    image_to_msg,
    joint_state_to_msg,
    ns_to_duration,
    ns_to_stamp,
    pose_to_msg,
    stamp_to_ns,
)
from bitvla_ros.nodes.frames import NoTransform
from bitvla_ros.nodes.lifecycle import AUTOSTART
from bitvla_ros.nodes.policy import PARAMETERS, PolicyNode
from bitvla_ros.nodes.qos import CHUNK, LATCHED, state_qos
from bitvla_ros.nodes.schedule import Schedule
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.policy.policy import PolicySpec
from bitvla_ros.policy.replay import ReplayPolicy

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]

MODULE = "bitvla_ros.nodes.policy"
FINGERS = ["panda_finger_joint1", "panda_finger_joint2"]
MS = 1_000_000
STEP = 50 * MS
START = 120.0  # s; torch's imports on a full machine


class Robot:
    """A robot of the test's own around one policy node: it publishes inputs and tasks, and listens."""

    def __init__(
        self, graph: TestGraph, namespace: str = "", *, cameras: tuple[str, ...] = (), synchronised: bool = False, compressed: bool = False
    ) -> None:
        self.graph, self.cameras, self.compressed = graph, cameras, compressed
        node, qos, prefix = graph.node, state_qos(synchronised), f"/{namespace}/" if namespace else "/"
        self.name = f"{prefix}policy"
        self.chunks = graph.collect(ActionChunkMsg, f"{prefix}action_chunk", QoSProfile(depth=100))  # all of them, not the newest
        self._diagnostics = graph.collect(DiagnosticArray, "/diagnostics", 100)
        kind, suffix = (CompressedImage, "/compressed") if compressed else (Image, "")
        self.images = {role: node.create_publisher(kind, f"{prefix}camera/{role}/image_raw{suffix}", qos) for role in cameras}
        self.joints = node.create_publisher(JointState, f"{prefix}joint_states", qos)
        self.pose = node.create_publisher(PoseStamped, f"{prefix}end_effector_pose", qos)
        self.tasks = node.create_publisher(Task, f"{prefix}task", LATCHED)
        self.instructions = node.create_publisher(String, f"{prefix}instruction", LATCHED)
        self.epoch = 0
        self.fed: list[int] = []
        self._random = np.random.default_rng(0)

    def now(self) -> int:
        return self.graph.node.get_clock().now().nanoseconds

    def task(
        self, instruction: str = "lift the block", *, active: bool = True, lockstep: bool = False, since: int = 0, interval: int = 0
    ) -> int:
        """Publish a new task; its epoch."""
        self.epoch += 1
        self.publish_task(instruction, active, lockstep, since, interval)
        return self.epoch

    def publish_task(self, instruction: str, active: bool, lockstep: bool, since: int, interval: int) -> None:
        message = Task(epoch=self.epoch, active=active, instruction=instruction, lockstep=lockstep)
        message.header.stamp, message.replan_interval = ns_to_stamp(since), ns_to_duration(interval)
        self.tasks.publish(message)

    def feed_image(self, role: str, stamp: int, size: int = 64) -> None:
        image = self._random.integers(0, 256, (size, size, 3), np.uint8)
        message = image_to_msg(image, stamp, role)
        if self.compressed:
            message = CompressedImage(header=message.header, format="jpeg", data=cv2.imencode(".jpg", image)[1].tobytes())
        self.images[role].publish(message)

    def feed_pose(self, stamp: int, position=(0.4, 0.0, 0.3), quaternion=(1.0, 0.0, 0.0, 0.0)) -> None:
        self.pose.publish(pose_to_msg(position, quaternion, stamp, "robot_base"))

    def feed_joints(self, stamp: int, fingers=(0.02, -0.02)) -> None:
        self.joints.publish(joint_state_to_msg(["panda_joint1", *FINGERS], [0.3, *fingers], stamp))

    def feed(self, stamp: int | None = None) -> int:
        """Publish one complete, good observation; its stamp."""
        stamp = self.now() if stamp is None else stamp
        for role in self.cameras:
            self.feed_image(role, stamp)
        self.feed_pose(stamp)
        self.feed_joints(stamp)
        self.fed.append(stamp)
        return stamp

    def answer(self, seconds: float = 30.0) -> ActionChunkMsg:
        """Feed good observations until one that was fed from now on is answered."""
        since, seen = self.now(), len(self.chunks)

        def answered():
            self.feed()
            return next((chunk for chunk in self.chunks[seen:] if stamp_to_ns(chunk.observation_stamp) >= since), None)

        return self.graph.wait(answered, f"chunk of {self.name}", seconds)

    def statuses(self) -> list:
        return [status for array in self._diagnostics for status in array.status if f"/{status.name}" == self.name]

    def count(self, reason: str) -> int:
        statuses = self.statuses()
        return int({v.key: v.value for v in statuses[-1].values}.get(f"refused.{reason}", 0)) if statuses else 0

    def refuses(self, reason: str, feed: Callable[[], object]) -> str:
        """Feed until /diagnostics shows one more refusal for this reason; its message."""
        before, seen = self.count(reason), len(self.statuses())

        def refused():
            feed()
            shown = [status for status in self.statuses()[seen:] if status.message.startswith(f"refused: {reason}")]
            return self.count(reason) > before and shown

        return self.graph.wait(refused, f"refusal {reason} of {self.name}")[-1].message


def recording(path: Path) -> Path:
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 7)).astype(np.float32)
    ReplayPolicy(actions, control_hz=20.0).save(path)
    return path


def start(graph: TestGraph, namespace: str, parameters: dict) -> None:
    graph.start(namespace, MODULE, parameters, "--ros-args", "-r", f"__ns:=/{namespace}", "--")


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Iterator[TestGraph]:
    """One node for each way of being fed, all starting at once."""
    folder = tmp_path_factory.mktemp("policy_node")
    replay = {"policy": "replay", "model": str(recording(folder / "recording.npz"))}
    nano = {"model": "random:nano", "threads": 1, "image_height": 64, "image_width": 64, "max_age": 5.0}
    with TestGraph(folder / "logs") as graph:
        start(graph, "raw", nano)
        start(graph, "jpeg", {**nano, "camera_transport": "compressed"})
        start(graph, "state", replay)
        start(graph, "alone", replay)
        start(graph, "lockstep", {**replay, "synchronised": True})
        yield graph


@pytest.fixture(scope="module")
def state(graph) -> Robot:
    robot = Robot(graph, "state")
    robot.task()
    robot.answer(START)
    return robot


@pytest.fixture(scope="module")
def raw(graph) -> Robot:
    robot = Robot(graph, "raw", cameras=("scene", "wrist"))
    robot.task()
    robot.answer(START)
    return robot


# ---- what is answered


def test_chunk_bears_the_observations_time_and_the_tasks_epoch(state) -> None:
    epoch = state.task("lift the cup")
    first = state.graph.wait(lambda: (state.feed(), [c for c in state.chunks if c.epoch == epoch])[1], "chunk of the new task")[0]
    second = state.answer()
    assert stamp_to_ns(first.observation_stamp) in state.fed
    assert stamp_to_ns(first.header.stamp) >= stamp_to_ns(first.observation_stamp)
    assert (first.instruction, first.header.frame_id, first.control_mode) == ("lift the cup", "robot_base", "osc_pose")
    assert second.epoch == epoch and second.sequence > first.sequence
    sequences = [chunk.sequence for chunk in state.chunks]
    assert sequences == sorted(set(sequences))
    answered = [(chunk.epoch, stamp_to_ns(chunk.observation_stamp)) for chunk in state.chunks]  # each task may answer it once
    assert len(set(answered)) == len(answered), "an observation was answered twice"


def test_nothing_is_inferred_after_the_task_is_over(state) -> None:
    state.answer()
    state.publish_task("lift the block", False, False, 0, 0)

    def over() -> bool:
        state.feed()
        return any(status.message == "waiting for a task" and f"'{state.epoch}'" in str(status.values) for status in state.statuses())

    state.graph.wait(over, "end of the task on /diagnostics")
    seen = len(state.chunks)
    quiet = [state.feed() for _ in range(20) if state.graph.spin(0.02) is None]
    epoch = state.task()
    state.graph.wait(lambda: (state.feed(), len(state.chunks) > seen)[1], "chunk of the next task")
    assert all(chunk.epoch == epoch and stamp_to_ns(chunk.observation_stamp) >= quiet[-1] for chunk in state.chunks[seen:])


def test_observation_older_than_the_task_is_not_used(state) -> None:
    since = state.now() + 300 * MS
    epoch = state.task(since=since)
    chunk = state.graph.wait(lambda: (state.feed(), [c for c in state.chunks if c.epoch == epoch])[1], "chunk of the task")[0]
    assert stamp_to_ns(chunk.observation_stamp) >= since


def test_observations_are_at_least_a_replan_interval_apart(state) -> None:
    epoch = state.task(interval=200 * MS)
    own = lambda: [stamp_to_ns(c.observation_stamp) for c in state.chunks if c.epoch == epoch]  # noqa: E731
    state.graph.wait(lambda: (state.feed(), len(own()) >= 4)[1], "four chunks")
    assert np.diff(own()).min() >= 200 * MS


def test_plain_instruction_drives_a_graph_without_controller(graph) -> None:
    robot = Robot(graph, "alone")
    robot.instructions.publish(String(data="open the drawer"))
    chunk = robot.answer(START)
    assert (chunk.epoch, chunk.instruction) == (0, "open the drawer")
    assert "no controller" not in robot.refuses("empty_instruction", lambda: (robot.instructions.publish(String(data=" ")), robot.feed()))
    robot.instructions.publish(String(data="close the drawer"))
    robot.graph.wait(lambda: (robot.feed(), robot.chunks[-1].instruction == "close the drawer")[1], "chunk of the new instruction")


def test_network_answers_camera_images(raw) -> None:
    chunk = chunk_from_msg(raw.answer())
    assert chunk.actions.shape == (8, 7) and np.isfinite(chunk.actions).all()
    assert (chunk.step_duration, chunk.frame) == (STEP, "robot_base")
    assert 0 < chunk.latency.inference <= chunk.latency.total
    assert chunk.model_hash


def test_network_answers_compressed_images(graph) -> None:
    robot = Robot(graph, "jpeg", cameras=("scene", "wrist"), compressed=True)
    robot.task()
    robot.answer(START)
    broken = CompressedImage(format="jpeg", data=b"\xff\xd8\xff no jpeg")

    def feed() -> None:
        stamp = robot.now()
        broken.header.stamp = ns_to_stamp(stamp)
        robot.images["scene"].publish(broken)
        robot.feed_image("wrist", stamp)
        robot.feed_pose(stamp)
        robot.feed_joints(stamp)

    assert "expected a JPEG or PNG" in robot.refuses("wrong_encoding", feed)
    robot.answer()


# ---- lockstep


@pytest.fixture
def lockstep(graph) -> Robot:
    robot = Robot(graph, "lockstep", synchronised=True)
    graph.wait(lambda: graph.node.count_subscribers("/lockstep/task"), "subscription of the task", START)
    return robot


def test_lockstep_answers_exactly_the_ticks_the_task_asks_for(lockstep) -> None:
    origin = 3_000 * STEP  # simulated time, far from the system's
    lockstep.feed(origin)
    epoch = lockstep.task(lockstep=True, since=origin, interval=3 * STEP)
    own = lambda: [stamp_to_ns(c.observation_stamp) for c in lockstep.chunks if c.epoch == epoch]  # noqa: E731
    for tick in range(10):
        stamp = origin + tick * STEP
        if tick:
            lockstep.feed_joints(stamp)
            lockstep.graph.spin(0.02)
            assert stamp not in own(), "answered before the pose of this tick had come"
            lockstep.feed_pose(stamp)
        if tick % 3 == 0:
            lockstep.graph.wait(lambda stamp=stamp: stamp in own(), f"chunk of tick {tick}")
    lockstep.graph.spin(0.1)
    assert all(c.header.stamp == c.observation_stamp for c in lockstep.chunks if c.epoch == epoch), "time stands still in lockstep"
    assert own() == [origin + tick * STEP for tick in (0, 3, 6, 9)]


def test_lockstep_interval_is_at_most_the_chunk_and_epochs_do_not_mix(lockstep) -> None:
    origin = 6_000 * STEP
    lockstep.feed(origin)
    lockstep.epoch = 100
    epoch = lockstep.task(lockstep=True, since=origin, interval=0)
    own = lambda: [stamp_to_ns(c.observation_stamp) for c in lockstep.chunks if c.epoch == epoch]  # noqa: E731
    for tick in range(17):
        lockstep.feed(origin + tick * STEP)
        lockstep.graph.spin(0.01)
        if tick % 8 == 0:
            lockstep.graph.wait(lambda tick=tick: origin + tick * STEP in own(), f"chunk of tick {tick}")
    assert own() == [origin, origin + 8 * STEP, origin + 16 * STEP]


def test_schedule_of_a_policy_that_joins_late() -> None:
    schedule = Schedule("lift", since=1000, replan_interval=300, lockstep=True)
    assert [s for s in range(900, 2001, 100) if schedule.wants(s, 400)] == [1000, 1300, 1600, 1900]
    schedule.last = 1300
    assert [s for s in range(900, 2001, 100) if schedule.wants(s, 400)] == [1600, 1900]
    assert not Schedule("lift", active=False).wants(1000, 400)


# ---- what is refused


def _zero(robot: Robot) -> None:
    robot.feed_pose(0)


def _backward(robot: Robot) -> None:
    robot.feed_joints(robot.feed() - 1000 * MS)


def _future(robot: Robot) -> None:
    robot.feed(robot.now() + 1_000_000 * MS)


def _silence(robot: Robot) -> None:
    pass


def _nan_pose(robot: Robot) -> None:
    robot.feed_pose(robot.now(), position=(0.4, float("nan"), 0.3))


def _infinite_joint(robot: Robot) -> None:
    robot.feed_joints(robot.now(), fingers=(float("inf"), 0.0))


def _empty_quaternion(robot: Robot) -> None:
    robot.feed_pose(robot.now(), quaternion=(0.0, 0.0, 0.0, 0.0))


def _joint_without_position(robot: Robot) -> None:
    message = joint_state_to_msg(FINGERS, [0.02], robot.now())
    robot.joints.publish(message)


@pytest.mark.parametrize(
    ("reason", "feed", "remedy"),
    [
        ("zero_stamp", _zero, "must fill in the time of capture"),
        ("backward_stamp", _backward, "second publisher"),
        ("future", _future, "synchronise the clocks"),
        ("stale", _silence, "is its driver alive"),
        ("non_finite", _nan_pose, "expected finite"),
        ("non_finite", _infinite_joint, "expected finite"),
        ("invalid_orientation", _empty_quaternion, "expected a unit one"),
        ("missing_stream", _joint_without_position, "gripper_joints"),
    ],
)
def test_bad_state_is_refused_with_a_reason_and_the_node_goes_on(state, reason, feed, remedy) -> None:
    state.task()
    state.answer()
    assert remedy in state.refuses(reason, lambda: feed(state))
    state.answer()


def test_task_without_words_is_refused(state) -> None:
    state.task("  ")
    assert "say in words" in state.refuses("empty_instruction", state.feed)
    state.task()
    state.answer()


def _bad_image(robot: Robot, **changes) -> None:
    stamp = robot.now()
    message = image_to_msg(np.zeros((64, 64, 3), np.uint8), stamp, "scene")
    for field, value in changes.items():
        setattr(message, field, value)
    robot.images["scene"].publish(message)
    robot.feed_image("wrist", stamp)
    robot.feed_pose(stamp)
    robot.feed_joints(stamp)


@pytest.mark.parametrize(
    ("reason", "changes", "remedy"),
    [
        ("wrong_encoding", {"encoding": "32FC1"}, "expected rgb8"),
        ("wrong_encoding", {"encoding": ""}, "expected rgb8"),
        ("wrong_size", {"height": 63}, "height * step"),
        ("wrong_size", {"height": 32, "width": 128, "step": 384}, "expected 64 x 64"),
    ],
)
def test_bad_image_is_refused_with_a_reason_and_the_node_goes_on(raw, reason, changes, remedy) -> None:
    raw.answer()
    assert remedy in raw.refuses(reason, lambda: _bad_image(raw, **changes))
    raw.answer()


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


# ---- a policy that fails on purpose, in a node of this process


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
        patch.setattr(load, "load_policy", lambda p: policy)
        node.start()
    assert node.state == "active"
    try:
        yield node
    finally:
        graph.executor.remove_node(node)
        node.stop()
        node.destroy_node()


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
            graph.wait(lambda before=before: (robot.feed(), robot.count("exception") > before + 2)[1], "further failures")
            robot.task("lift")
            robot.answer()
            assert epoch not in {chunk.epoch for chunk in robot.chunks}, "a failed inference was published"
    assert capfd.readouterr().err.count("RuntimeError: out of magic") == 1, "logged once, with its traceback"


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
        robot.task()
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


def test_pose_comes_from_tf_at_the_joints_time(tmp_path) -> None:
    class Table:
        known = False
        asked: list[tuple[str, str, int]] = []

        def lookup(self, target, source, stamp):
            self.asked.append((target, source, stamp))
            if not self.known:
                raise NoTransform(f"no transform from {source!r} to {target!r}")
            return np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.0, 0.0, 0.0])

        def clear(self) -> None:
            pass

        def close(self) -> None:
            pass

    seen = []
    table = Table()
    with TestGraph(tmp_path) as graph:
        names = {"state_source": "tf", "base_frame": "arm", "ee_frame": "hand"}
        one_joint = {"gripper_joints": ["knuckle"], "gripper_scale": [0.5, -0.5], "gripper_offset": [0.01, -0.01]}
        with in_process(graph, Scripted(seen.append), lambda node: table, **names, **one_joint):
            robot = Robot(graph)
            feed = lambda: robot.joints.publish(joint_state_to_msg(["knuckle"], [0.04], robot.now()))  # noqa: E731
            robot.task()
            assert "no transform from 'hand' to 'arm'" in robot.refuses("missing_transform", feed)
            table.known = True
            chunk = graph.wait(lambda: (feed(), robot.chunks)[1], "chunk")[0]
            assert chunk.header.frame_id == "arm"
            assert ("arm", "hand", stamp_to_ns(chunk.observation_stamp)) in table.asked
            np.testing.assert_allclose(seen[0].state, [0.1, 0.2, 0.3, np.pi, 0, 0, 0.03, -0.03], atol=1e-12)


# ---- configure


@pytest.fixture(scope="module")
def unconfigured(tmp_path_factory) -> Iterator[Robot]:
    with TestGraph(tmp_path_factory.mktemp("configure")) as graph:
        graph.start("policy", MODULE, {"autostart": False, "control_hz": 20.0, "threads": 1})
        yield Robot(graph)


def configure(robot: Robot, **parameters) -> bool:
    values = [RosParameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
    results = robot.graph.call(SetParameters, "/policy/set_parameters", SetParameters.Request(parameters=values)).results
    assert all(result.successful for result in results), results
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    return robot.graph.call(ChangeState, "/policy/change_state", request, START).success


def damage(checkpoint: Path, folder: Path, how: str) -> Path:
    """A copy of a checkpoint with one thing wrong."""
    from safetensors.torch import load_file, save_file

    copy = folder / how
    shutil.copytree(checkpoint, copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    copy.chmod(0o755)
    weights = copy / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "nan":
        tensors = load_file(weights)
        name = next(name for name in tensors if "mlp" in name)
        tensors[name].view(-1)[3] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
    elif how == "no_weights":
        weights.unlink()
    elif how == "wrong_shape":
        tensors = load_file(weights)
        name = next(name for name in tensors if "mlp" in name and tensors[name].ndim == 2)
        tensors[name] = tensors[name][:-1].contiguous()
        save_file(tensors, weights, {"format": "pt"})
    return copy


def refused_configuration(robot: Robot, **parameters) -> str:
    seen = len(robot.statuses())
    assert not configure(robot, **parameters)
    assert robot.graph.call(GetState, "/policy/get_state", GetState.Request()).current_state.id == State.PRIMARY_STATE_UNCONFIGURED
    failed = robot.graph.wait(lambda: [s for s in robot.statuses()[seen:] if s.level == b"\x02"], "error on /diagnostics")
    return failed[-1].message


DEFAULT = {"policy": "bitvla", "model": "", "norm_key": "", "state_source": "pose", "device": "cpu"}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "the parameter model is empty"),
        ({"model": "random:giant"}, "nano"),
        ({"model": "random:nano", "norm_key": "libero"}, "random weights know nothing of norm_key"),
        ({"policy": "replay", "model": "/nowhere/recording.npz"}, "expected an .npz file"),
        ({"policy": "expert", "suite": "tabletop_juggling"}, "tabletop_object"),
        ({"device": "cuda:99", "model": "random:nano"}, "give cpu"),
        ({"state_source": "tf"}, "apt install ros-"),
    ],
)
def test_wrong_configuration_is_refused_with_the_remedy(unconfigured, parameters, expected) -> None:
    if "control_hz" not in parameters and parameters.get("model", "").startswith("random:"):
        parameters = {"control_hz": 0.0, **parameters}
    message = refused_configuration(unconfigured, **{**DEFAULT, **parameters})
    assert message.startswith("configure failed: ") and expected in message


@pytest.mark.parametrize(
    ("how", "parameters", "expected"),
    [
        ("missing", {}, "missing"),
        ("truncated", {}, "model.safetensors"),
        ("nan", {}, "finite|NaN|nan"),
        ("no_weights", {}, "safetensors"),
        ("wrong_shape", {}, "shape"),
        ("whole", {"norm_key": "bridge_orig"}, "bridge_orig.*libero_spatial_no_noops"),
    ],
)
def test_broken_checkpoint_is_refused_and_the_node_stays_unconfigured(unconfigured, shared, tmp_path, how, parameters, expected) -> None:
    import re

    checkpoint = shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a"
    model = tmp_path / "missing" if how == "missing" else damage(checkpoint, tmp_path, how)
    message = refused_configuration(unconfigured, **{**DEFAULT, "control_hz": 20.0, "model": str(model), **parameters})
    assert re.search(expected, message), message


def test_refused_node_can_be_put_right(unconfigured, shared) -> None:
    refused_configuration(unconfigured, **DEFAULT)
    model = str(shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a")
    assert configure(unconfigured, **{**DEFAULT, "model": model, "control_hz": 20.0})
    for transition in (Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert unconfigured.graph.call(ChangeState, "/policy/change_state", request).success


# ---- liveliness and the end


class Liveliness:
    """Counts of the publishers alive, as a subscriber of action_chunk sees them."""

    def __init__(self, graph: TestGraph) -> None:
        self.alive: list[int] = []
        callbacks = SubscriptionEventCallbacks(liveliness=lambda event: self.alive.append(event.alive_count))
        graph.node.create_subscription(ActionChunkMsg, "action_chunk", lambda message: None, CHUNK, event_callbacks=callbacks)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_stopped_node_loses_its_liveliness(tmp_path, number) -> None:
    with TestGraph(tmp_path) as graph:
        graph.start("policy", MODULE, {"policy": "replay", "model": str(recording(tmp_path / "recording.npz"))})
        liveliness = Liveliness(graph)
        graph.wait(lambda: liveliness.alive and liveliness.alive[-1] == 1, "liveliness")
        graph.kill("policy", number)
        began = time.monotonic()
        graph.wait(lambda: liveliness.alive[-1] == 0, "loss of liveliness", 5.0)
        print(f"lost within {(time.monotonic() - began) * 1e3:.0f} ms")
        if number == signal.SIGSTOP:
            graph.kill("policy", signal.SIGCONT)


def test_inactive_node_is_not_alive_and_can_begin_again(tmp_path) -> None:
    with TestGraph(tmp_path) as graph:
        graph.start("policy", MODULE, {"policy": "replay", "model": str(recording(tmp_path / "recording.npz"))})
        liveliness = Liveliness(graph)
        robot = Robot(graph)
        robot.task()
        robot.answer()
        for transition, alive in ((Transition.TRANSITION_DEACTIVATE, 0), (Transition.TRANSITION_ACTIVATE, 1)):
            request = ChangeState.Request(transition=Transition(id=transition))
            assert graph.call(ChangeState, "/policy/change_state", request).success
            graph.wait(lambda alive=alive: liveliness.alive[-1] == alive, f"{alive} alive")
        robot.answer()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_node_ends_cleanly_on_a_signal(tmp_path, number) -> None:
    with TestGraph(tmp_path) as graph:
        process = graph.start("policy", MODULE, {"policy": "replay", "model": str(recording(tmp_path / "recording.npz"))})
        robot = Robot(graph)
        robot.task()
        robot.answer()
        graph.kill("policy", number)
        assert process.popen.wait(20) == 0, process.tail()
        assert "Traceback" not in process.tail(40)


def test_parameter_file_shows_every_default() -> None:
    path = Path(__file__).resolve().parents[1] / "config/policy.yaml"
    shown = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    assert shown == {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in (AUTOSTART, *PARAMETERS)}
