"""`bitvla wiggle` against the simulated arm, and against one whose driver misunderstands what it is told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from graph import TestGraph
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rich.console import Console
from rosgraph_msgs.msg import Clock

import bitvla_ros.control.wiggle as judging
from bitvla_ros import cli
from bitvla_ros.control.rotation import matrix, turned
from bitvla_ros.nodes import wiggle, wiggler
from bitvla_ros.nodes.conversions import ns_to_stamp, pose_from_msg, pose_to_msg, stamp_to_ns
from bitvla_ros.nodes.qos import COMMAND, SENSOR
from bitvla_ros.nodes.wiggler import WiggleError
from bitvla_ros.profiles import load_profile

pytestmark = pytest.mark.ros

PARAMETERS = load_profile("simulated_arm").controller
QUARTER = matrix(turned(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 0.0, -np.pi / 2])))


USUAL = judging.DURATION


@pytest.fixture(autouse=True)
def _swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Motions of a third of their time, and poses that a full machine may delay."""
    last_for(0.3, monkeypatch)
    monkeypatch.setattr(wiggler, "_NEWS", 2.0)


def last_for(duration: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a motion takes, s."""
    for module in (judging, wiggler):
        monkeypatch.setattr(module, "DURATION", duration)


def test_the_simulated_arm_passes_and_json_is_alone_on_stdout(capfd: pytest.CaptureFixture[str]):
    assert cli.main(["wiggle", "--simulator", "--only", "roll", "--only", "gripper", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["error"] is None and result["problems"] == [] and result["frame"] == "world"
    assert [row["motion"] for row in result["motions"]] == ["+roll", "-roll"]
    for row in result["motions"]:
        assert row["ok"] and row["along"] == row["motion"] and row["scale"] == pytest.approx(1.0, abs=0.1)
        assert row["seen"] == pytest.approx(row["asked"], abs=0.1 * max(map(abs, row["asked"])))
    assert result["lag"] is None, "two turns tell nothing of it"
    assert result["gripper"]["opened"] == pytest.approx(0.08, abs=0.002) and result["gripper"]["closed"] < 0.002


@dataclass
class Misunderstanding:
    """Between the target and the simulated arm: its position is taken in axes that are turned and scaled about `about`."""

    graph: TestGraph
    axes: np.ndarray = field(default_factory=lambda: np.eye(3))
    about: np.ndarray | None = None  # None: where the arm was measured first
    stamps: list[int] = field(default_factory=list)  # of the targets, ns
    places: list[np.ndarray] = field(default_factory=list)  # of the targets, m

    def __post_init__(self) -> None:
        node = self.graph.node
        self.poses = self.graph.collect(PoseStamped, "end_effector_pose", SENSOR)
        self._out = node.create_publisher(PoseStamped, "arm/target_pose", COMMAND)
        node.create_subscription(PoseStamped, "target_pose", self._pass_on, COMMAND)

    @property
    def position(self) -> np.ndarray:
        return pose_from_msg(self.poses[-1])[0]

    def _pass_on(self, message: PoseStamped) -> None:
        position, orientation = pose_from_msg(message)
        about = self.about if self.about is not None else self.start
        stamp, frame = stamp_to_ns(message.header.stamp), message.header.frame_id
        self.stamps.append(stamp)
        self.places.append(position)
        self._out.publish(pose_to_msg(about + self.axes @ (position - about), orientation, stamp, frame))

    def check(self) -> None:
        """Lets messages pass while the self-test waits."""
        for _ in range(4):
            self.graph.executor.spin_once(timeout_sec=0)
        self.graph.check()

    def rest(self) -> None:
        """Wait until the arm is at rest; from here on the axes are turned about this point."""
        seen = len(self.poses)
        self.graph.wait(lambda: len(self.poses) > seen + 40, "poses")
        self.start = self.position


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misunderstanding]:
    with TestGraph(tmp_path_factory.mktemp("arm")) as graph:
        relay = Misunderstanding(graph)
        simulation = {"mode": "realtime", "interface": "pose", "cameras": [""]}
        graph.start("simulation", "bitvla_ros.nodes.simulation", simulation, "--ros-args", "-r", "target_pose:=arm/target_pose", "--")
        graph.wait(lambda: relay.poses and relay._out.get_subscription_count(), "the arm")
        yield relay


@pytest.fixture
def misunderstanding(relay: Misunderstanding) -> Misunderstanding:
    relay.axes, relay.about = np.eye(3), None
    relay.rest()
    return relay


QUIET = Console(quiet=True)


def examine(misunderstanding: Misunderstanding, *parts: str, person: wiggle._Person | None = None) -> dict:
    with wiggle.wiggler(PARAMETERS, check=misunderstanding.check) as arm:
        arm.wait(10.0)
        arm.begin()
        return wiggle.examine(arm, parts, person, QUIET)


def test_turned_frames_are_found(misunderstanding: Misunderstanding):
    misunderstanding.axes = QUARTER
    result = examine(misunderstanding, "x", "y", "z")
    assert [row["along"] for row in result["motions"]] == ["-y", "+y", "+x", "-x", "+z", "-z"]
    assert result["error"].startswith("x moves along -y, y moves along +x: the frames are turned by 90 degrees")
    assert result["error"] == result["problems"][0] and len(result["problems"]) == 1


def test_how_far_the_arm_follows_behind_is_told(misunderstanding: Misunderstanding, capsys: pytest.CaptureFixture[str]):
    result = examine(misunderstanding, "x", "y")
    assert result["error"] is None and result["lag"] == pytest.approx(0.055, abs=0.02)
    for written, words in ((result["lag"], "as its profile says"), (0.0, "write lag: 0.0")):
        wiggle.show({**result, "profile": "a", "frame": "world", "topics": ("target_pose",), "lag_of_profile": written})
        assert words in " ".join(capsys.readouterr().out.split())


def test_a_machine_that_stands_still_for_a_moment_loses_no_motion(misunderstanding: Misunderstanding):
    """And in mid motion no target leaps."""
    simulation, pauses = misunderstanding.graph.processes["simulation"].popen.pid, []

    def check() -> None:
        misunderstanding.check()
        if len(pauses) < 3 and np.linalg.norm(misunderstanding.position - misunderstanding.start) > 0.005:
            os.killpg(simulation, signal.SIGSTOP)
            time.sleep(0.5)
            os.killpg(simulation, signal.SIGCONT)
            pauses.append(len(misunderstanding.places))

    misunderstanding.places.clear()
    with wiggle.wiggler(PARAMETERS, check=check) as arm:
        arm.wait(10.0)
        arm.begin()
        result = wiggle.examine(arm, ("x",), None, QUIET)
    assert result["error"] is None and [row["ok"] for row in result["motions"]] == [True, True] and len(pauses) == 3
    steps = np.linalg.norm(np.diff(misunderstanding.places, axis=0), axis=1)
    assert steps.max() < 0.012, "m; 0.02 is the whole motion"


def test_an_arm_that_goes_too_far_is_stopped_and_nothing_more_is_tried(misunderstanding: Misunderstanding, monkeypatch: pytest.MonkeyPatch):
    last_for(USUAL, monkeypatch)
    misunderstanding.axes = 10.0 * np.eye(3)
    result = examine(misunderstanding, "x", "y", "gripper")
    (problem,), (row,) = result["problems"], result["motions"]
    assert problem.startswith("+x was broken off after") and "20 mm were asked: other units" in problem
    assert not row["ok"] and row["along"] == "+x" and row["scale"] > 2 and result["gripper"] is None
    seen = len(misunderstanding.poses)
    misunderstanding.graph.wait(lambda: len(misunderstanding.poses) > seen + 60, "poses")
    path = np.array([pose_from_msg(pose)[0] for pose in misunderstanding.poses[seen + 30 :]])
    assert np.ptp(path, axis=0).max() < 1e-3, "the arm stands still"
    assert np.linalg.norm(misunderstanding.position - misunderstanding.start) < 0.19  # the whole motion would have led to 0.2 m


def test_an_arm_that_is_not_seen_any_more_is_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Twists: an arm without a time-out would go on with the last for ever."""
    last_for(4.0, monkeypatch)
    position, hidden = np.array([0.4, 0.0, 0.3]), False
    with TestGraph(tmp_path) as graph:
        twists = graph.collect(TwistStamped, "target_twist", QoSProfile(depth=1000))
        pose = graph.node.create_publisher(PoseStamped, "end_effector_pose", SENSOR)
        now = graph.node.get_clock().now

        def tell() -> None:
            if not hidden:
                pose.publish(pose_to_msg(position, [1.0, 0.0, 0.0, 0.0], now().nanoseconds, "base"))

        graph.node.create_timer(0.01, tell)
        given = {"sink.kind": "twist_stamped", "sink.topic": "target_twist", "sink.frame": "base", "gripper.kind": "none"}
        executor, node = SingleThreadedExecutor(context=graph.context), rclpy.create_node("wiggle", context=graph.context)
        executor.add_node(node)
        p = SimpleNamespace(**{q.name.replace(".", "_"): given.get(q.name, q.default) for q in wiggler.PARAMETERS})

        def check() -> None:
            nonlocal hidden
            graph.executor.spin_once(timeout_sec=0)
            hidden = hidden or bool(twists and twists[-1].twist.linear.x)  # when it begins to move

        arm = wiggler.Wiggler(node, executor, p, check)
        arm.wait(30.0)
        arm.begin()
        with pytest.raises(WiggleError, match="no pose"):
            arm.perform(judging.MOTIONS[0])
        assert twists[-1].twist.linear.x
        arm.close()
        graph.wait(lambda: not twists[-1].twist.linear.x, "the halt", 10.0)
        node.destroy_node()


def test_an_arm_that_does_not_stay_where_it_is_told_to_is_left_alone(misunderstanding: Misunderstanding):
    misunderstanding.axes, misunderstanding.about = QUARTER, np.zeros(3)
    with pytest.raises(WiggleError, match=r"told to stay where it is, the arm moves by .* frame than 'world'"):
        examine(misunderstanding, "x")
    misunderstanding.rest()
    assert np.linalg.norm(misunderstanding.position - misunderstanding.start) < 0.1


def test_what_the_person_sees_counts(misunderstanding: Misunderstanding, monkeypatch: pytest.MonkeyPatch):
    answers = iter(["s", "", "n", "q"])  # skip +y; do -y, which was not it; enough
    questions: list[str] = []
    monkeypatch.setattr(QUIET, "input", lambda question: questions.append(question) or next(answers), raising=False)
    result = examine(misunderstanding, "y", "z", person=wiggle._Person(QUIET))
    assert "-y: the hand moves to the right" in questions[1]
    (row,) = result["motions"]
    assert row["motion"] == "-y" and row["ok"] and row["confirmed"] is False
    assert result["error"].startswith("-y: not what you saw; then 'world', the frame of the pose, is not x forwards")


def test_in_simulated_time_motions_take_it_and_targets_bear_it(misunderstanding: Misunderstanding):
    """At half the pace of the wall clock."""
    node, began = misunderstanding.graph.node, time.monotonic_ns()
    clock = node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
    timer = node.create_timer(0.01, lambda: clock.publish(Clock(clock=ns_to_stamp(10**9 + (time.monotonic_ns() - began) // 2))))
    misunderstanding.stamps.clear()
    try:
        result = examine(misunderstanding, "x")
    finally:
        node.destroy_timer(timer)
        node.destroy_publisher(clock)
    assert result["error"] is None and [row["along"] for row in result["motions"]] == ["+x", "-x"]
    assert 10**9 < misunderstanding.stamps[0] <= misunderstanding.stamps[-1] < 10**9 + (time.monotonic_ns() - began) // 2
    assert misunderstanding.stamps[-1] - misunderstanding.stamps[0] > 4 * 3 * 10**8, "four ways of 0.3 s"


def test_whoever_else_moves_the_arm_is_named(misunderstanding: Misunderstanding):
    node = misunderstanding.graph.node
    other = node.create_publisher(PoseStamped, "target_pose", COMMAND)
    try:
        with pytest.raises(WiggleError, match="/test also publishes on /target_pose"):
            examine(misunderstanding, "x")
    finally:
        node.destroy_publisher(other)


def test_what_is_missing_is_said(misunderstanding: Misunderstanding):
    for change, words in (
        ({"sink.topic": "elsewhere"}, "nobody listens on /elsewhere"),
        ({"sink.frame": "base"}, "takes targets in 'base'.*measured in 'world'"),
        ({"gripper_joints": ["finger_joint"]}, "joint_states with finger_joint"),
    ):
        with pytest.raises(WiggleError, match=words), wiggle.wiggler({**PARAMETERS, **change}, check=misunderstanding.check) as arm:
            arm.wait(5.0)  # two participants that miss each other's first announcements meet at the next, 3 s later
    for change, words in (
        ({"sink.kind": "simulator"}, "takes no setpoints"),
        ({"sink.silence_timeout": 0.0}, "nothing stops this arm when we fall silent"),
    ):
        with pytest.raises(WiggleError, match=words), wiggle.wiggler({**PARAMETERS, **change}):
            pass


def test_a_gripper_that_no_node_drives_is_not_tried(misunderstanding: Misunderstanding):
    with wiggle.wiggler({**PARAMETERS, "gripper.topic": "fingers"}, check=misunderstanding.check) as arm:
        arm.wait(10.0)
        arm.begin()
        result = wiggle.examine(arm, ("gripper",), None, QUIET)
    assert result["gripper"] is None and "no node subscribes to /fingers: start the gripper's driver" in result["error"]


def test_without_a_terminal_nobody_is_moved(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert cli.main(["wiggle", "--profile", "simulated_arm"]) == 2
    assert "--yes" in capsys.readouterr().err
