"""The policy node in a real graph: what it answers, what it refuses and says, and that it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

from graph import TestGraph
from robot import FINGERS, MODULE, MS, START, STEP, Robot, recording
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from bitvla_ros.nodes import inputs
from bitvla_ros.nodes.conversions import (
    chunk_from_msg,
    image_to_msg,
    joint_state_to_msg,
    ns_to_stamp,
    stamp_to_ns,
)
from bitvla_ros.nodes.schedule import Schedule
from bitvla_ros.policy.gate import Refused
from bitvla_ros.policy.policy import PolicySpec

pytestmark = pytest.mark.ros


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


# ---- what is looked at


class Listening:
    """The inputs of a policy with one camera, which look when they are told to; `news` counts how often they asked to be."""

    def __init__(self, graph: TestGraph, **changes: object) -> None:
        values = {parameter.name: parameter.default for parameter in inputs.PARAMETERS} | changes
        spec = PolicySpec("test", ("scene",), 8, 20.0, False, "")
        self.news: list[int] = []
        self.inputs = inputs.Inputs(graph.node, SimpleNamespace(**values), spec, None, lambda: self.news.append(1), pytest.fail)

    def observed(self) -> int:
        """Stamp of an observation that is made now; 0: there is none."""
        try:
            return self.inputs.observe(Schedule("")).stamp
        except Refused:
            return 0


@pytest.fixture
def listening(graph) -> Iterator[tuple[Robot, Listening]]:
    robot, listening = Robot(graph, cameras=("scene",)), Listening(graph)
    graph.wait(lambda: (robot.feed(), listening.observed())[1], "an observation")
    graph.wait(lambda: listening.observed() == robot.fed[-1], "the last one")
    listening.news.clear()
    yield robot, listening
    listening.inputs.close()
    for publisher in (*robot.images.values(), robot.pose, robot.joints):
        graph.node.destroy_publisher(publisher)


def test_a_fast_driver_is_no_news_between_two_images(listening) -> None:
    """One at 1 kHz would else keep the executor busy, and wake the policy for each of its messages."""
    robot, seen = listening
    for _ in range(40):
        robot.feed_pose(robot.now())
        robot.feed_joints(robot.now())
        robot.graph.spin(0.005)
    assert not seen.news and seen.observed() == robot.fed[-1]


def test_states_that_come_after_their_image_are_waited_for(listening) -> None:
    robot, seen = listening
    stamp = robot.now()
    robot.feed_image("scene", stamp)
    robot.graph.wait(lambda: seen.news, "the image")
    assert seen.observed() == robot.fed[-1] and seen.inputs.behind
    robot.feed_pose(stamp)
    robot.feed_joints(stamp)
    robot.graph.wait(lambda: seen.observed() == stamp, "the image's moment")
    assert not seen.inputs.behind


def test_states_that_wait_when_time_jumps_back_are_forgotten(listening) -> None:
    robot, seen = listening
    for _ in range(5):
        robot.feed_pose(robot.now())
        robot.feed_joints(robot.now())
    robot.graph.spin(0.2)  # they have arrived
    seen.inputs.jump()
    assert seen.observed() == 0
    past = iter(range(robot.now() - 10**10, robot.now(), STEP))
    robot.graph.wait(lambda: (robot.feed(next(past)), seen.observed())[1], "an observation of the new time")


def test_a_tick_that_comes_after_time_has_jumped_back_is_answered(graph) -> None:
    """A simulator that waits for its answer sends it once."""
    robot, seen = Robot(graph, cameras=("scene",), synchronised=True), Listening(graph, synchronised=True)
    graph.wait(lambda: (robot.feed(), seen.observed())[1], "an observation")
    graph.wait(lambda: seen.observed() == robot.fed[-1], "the last one")
    seen.inputs.jump()
    stamp = robot.feed(robot.now() - 10**10)
    graph.wait(lambda: seen.inputs._streams.moment() == stamp, "the tick")
    assert seen.observed() == stamp
    seen.inputs.close()


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


def test_in_realtime_the_next_chunk_is_asked_for_so_early_that_it_comes_in_time() -> None:
    schedule = Schedule("lift", since=1000)
    assert schedule.wants(1000, 400)
    schedule.last, schedule.lead = 1000, 150  # 100 for the answer, and a step of 50
    assert [s for s in range(1000, 1401, 50) if schedule.wants(s, 400)] == [1250, 1300, 1350, 1400]
    schedule.lead = 2700  # a slow board: as soon as it can
    assert schedule.wants(1050, 400) and not schedule.wants(1000, 400)
    schedule.replan_interval = 200
    assert [s for s in range(1000, 1301, 50) if schedule.wants(s, 400)] == [1200, 1250, 1300]


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
