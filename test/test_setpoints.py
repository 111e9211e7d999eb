"""The controller in front of an arm's own interface: the modes, what live mode asks for, and that whatever moves comes to rest.

The arm and the policy are this test's: the arm is where its last target was, the policy asks for the same small offset again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from graph import TestGraph
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, Float64
from std_srvs.srv import SetBool, Trigger

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import SimulationState, Task
from bitvla_ros.nodes.conversions import chunk_to_msg, ns_to_stamp, pose_from_msg, pose_to_msg, stamp_to_ns
from bitvla_ros.nodes.qos import CHUNK, COMMAND, LATCHED, SENSOR
from bitvla_ros.nodes.sinks import ACCEPTANCE
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.profiles import load_profile

pytestmark = pytest.mark.ros

Result = ExecuteInstruction.Result
SPEED = 0.2  # m/s, the limit that is set
HOME = np.array([0.4, 0.0, 0.3])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])


class Cell:
    """A controller as a process, and an arm and a policy in this one."""

    def __init__(self, graph: TestGraph, mode: str, pace: float = 1.0, **controller: object) -> None:
        """pace: of time, which is simulated where it is not 1."""
        self.graph, self.node, self.pace = graph, graph.node, pace
        self.tasks = graph.collect(Task, "task", LATCHED)
        self.targets = graph.collect(PoseStamped, "target_pose", QoSProfile(depth=1000))
        self.health = graph.collect(DiagnosticArray, "/diagnostics", 100)
        self.frame, self.position, self.orientation = "base", HOME, DOWN
        self.policy_speaks = self.clock_runs = True
        self.delay = 0  # ns, of the pose
        self.node.create_subscription(PoseStamped, "target_pose", self._follow, COMMAND)
        self.node.create_subscription(Float64, "target_gripper", lambda _: None, COMMAND)
        self._pose = self.node.create_publisher(PoseStamped, "end_effector_pose", SENSOR)
        self._chunk = self.node.create_publisher(ActionChunkMsg, "action_chunk", CHUNK)
        self._ticks = 0
        self._clock = self.node.create_publisher(Clock, "/clock", QoSProfile(depth=1)) if pace != 1 else None
        self.node.create_timer(0.01, self._tick)
        parameters = {
            "simulator": False,
            "mode": mode,
            "time_limit": 60.0,
            "sink.kind": "pose",
            "sink.frame": "base",
            "sink.silence_timeout": 0.1,
            "gripper.kind": "float64",
            "limits.speed": SPEED,
            "limits.acceleration": 2.0,
            "limits.liveliness_grace": 0.5,  # a loaded machine
            "limits.max_state_age": 1.0,
            "use_sim_time": pace != 1,
        }
        graph.start("controller", "bitvla_ros.nodes.controller", {**parameters, **controller})

    @property
    def now(self) -> int:
        return round(self.node.get_clock().now().nanoseconds * self.pace)

    def enable(self, yes: bool = True) -> SetBool.Response:
        return self.graph.call(SetBool, "enable", SetBool.Request(data=yes))

    def begin(self) -> Any:
        """Send a goal; returns its handle."""
        self.targets.clear()
        handle = self.graph.send_goal("go on")
        assert handle.accepted
        return handle

    def moving(self) -> None:
        start = self.position
        self.graph.wait(lambda: np.linalg.norm(self.position - start) > 0.02, "a motion of 2 cm")

    def outcome(self, handle: Any) -> Any:
        return self.graph.outcome(handle, 20.0)

    def silent(self) -> None:
        """Wait for the silence after a stop, which ends at rest."""
        count = -1
        while count != len(self.targets):
            count = len(self.targets)
            self.graph.spin(0.2)
        check_targets(self.targets)
        before, last = (pose_from_msg(message)[0] for message in self.targets[-2:])
        assert np.linalg.norm(last - before) < 0.001, "it came to rest, and was not left at speed"

    def publishers(self) -> int:
        return self.node.count_publishers("/target_pose")

    def diagnosed(self, text: str) -> bool:
        statuses = (status for array in self.health for status in array.status if status.name == "controller")
        return any(text in status.message or any(text in f"{v.key}={v.value}" for v in status.values) for status in statuses)

    def _follow(self, target: PoseStamped) -> None:
        self.position, self.orientation = pose_from_msg(target)

    def _tick(self) -> None:
        now = self.now
        if self._clock is not None and self.clock_runs:
            self._clock.publish(Clock(clock=ns_to_stamp(now)))
        self._pose.publish(pose_to_msg(self.position, self.orientation, now - self.delay, self.frame))
        self._ticks += 1
        if self._ticks % 10 == 0 and self.tasks and self.tasks[-1].active and self.policy_speaks:
            actions = np.tile(np.array([0.3, 0, 0, 0, 0, 0, 1.0], np.float32), (8, 1))
            chunk = ActionChunk(actions, now, 50_000_000, frame=self.frame, epoch=self.tasks[-1].epoch)
            self._chunk.publish(chunk_to_msg(chunk, now))


@pytest.fixture
def graph(tmp_path) -> Iterator[TestGraph]:
    with TestGraph(tmp_path) as graph:
        yield graph


def check_targets(targets: list[PoseStamped], frame: str = "base") -> None:
    """Stamped as sent, in order, in the frame of the pose, and never faster than the limit."""
    stamps = [stamp_to_ns(message.header.stamp) for message in targets]
    assert stamps == sorted(stamps) and {message.header.frame_id for message in targets} == {frame}
    places = np.array([pose_from_msg(message)[0] for message in targets])
    steps, gaps = np.linalg.norm(np.diff(places, axis=0), axis=1), np.diff(stamps) / 1e9
    assert (steps <= SPEED * (gaps + 0.005) + 1e-9).all()  # the steady clock that counts is read a little later than the stamp's


def test_live(graph: TestGraph) -> None:
    """What live mode asks for before it moves, and every way in which it ends."""
    cell = Cell(graph, "live")
    refused = cell.outcome(cell.begin())
    assert refused.outcome == Result.FAULT and "call the service enable" in refused.reason
    graph.wait(lambda: cell.publishers() == 0, "no publisher of setpoints")
    assert not cell.targets

    stranger = cell.node.create_publisher(PoseStamped, "target_pose", COMMAND)
    graph.wait(lambda: cell.publishers() == 1, "the stranger")
    answer = cell.enable()
    assert not answer.success and "/test" in answer.message and "/target_pose" in answer.message
    cell.node.destroy_publisher(stranger)
    graph.wait(lambda: cell.publishers() == 0, "the stranger's end")
    graph.wait(lambda: cell.enable().success, "live mode")
    grip = graph.collect(Float64, "target_gripper", LATCHED)

    # It moves, and a cancel brings it to rest.
    handle = cell.begin()
    cell.moving()
    assert graph.result(handle.cancel_goal_async(), "answer to the cancel").goals_canceling
    assert cell.outcome(handle).outcome == Result.CANCELLED
    cell.silent()
    assert all(stamp_to_ns(message.header.stamp) <= cell.node.get_clock().now().nanoseconds for message in cell.targets)
    assert [message.data for message in grip] == [1.0], "the gripper is commanded once"

    # Somebody else begins to drive.
    handle = cell.begin()
    cell.moving()
    stranger = cell.node.create_publisher(PoseStamped, "target_pose", COMMAND)
    result = cell.outcome(handle)
    assert result.outcome == Result.FAULT and "others publish on /target_pose" in result.reason
    cell.node.destroy_publisher(stranger)
    graph.wait(lambda: cell.publishers() == 1, "the stranger's end")
    assert "others publish" in graph.call(Trigger, "reset_fault", Trigger.Request()).message

    # The pose comes in another frame: what goes out until the arm rests is still in that of the task.
    handle = cell.begin()
    cell.moving()
    cell.frame = "world"
    result = cell.outcome(handle)
    assert result.outcome == Result.FAULT and "'world' now, and in 'base'" in result.reason
    cell.silent()
    cell.frame = "base"
    graph.spin(0.2)  # until the controller has a pose of it
    graph.call(Trigger, "reset_fault", Trigger.Request())

    # The e-stop: service, then topic.
    handle = cell.begin()
    cell.moving()
    assert graph.call(Trigger, "estop", Trigger.Request()).success
    result = cell.outcome(handle)
    assert result.outcome == Result.FAULT and "e-stop" in result.reason
    graph.wait(lambda: cell.publishers() == 0, "the sink's end")
    cell.silent()
    assert not cell.enable().success, "while the fault is latched"
    graph.call(Trigger, "reset_fault", Trigger.Request())
    assert "call the service enable" in cell.outcome(cell.begin()).reason, "enabled anew after an e-stop"
    graph.wait(lambda: cell.enable().success, "live mode")
    handle = cell.begin()
    cell.moving()
    button = cell.node.create_publisher(Bool, "estop", COMMAND)
    graph.wait(button.get_subscription_count, "the e-stop's subscription")
    button.publish(Bool(data=True))
    assert "e-stop" in cell.outcome(handle).reason
    graph.call(Trigger, "reset_fault", Trigger.Request())

    # Disabled while it moves.
    graph.wait(lambda: cell.enable().success, "live mode")
    handle = cell.begin()
    cell.moving()
    assert cell.enable(False).success
    result = cell.outcome(handle)
    assert result.outcome == Result.CANCELLED and "disabled" in result.reason
    graph.wait(lambda: cell.publishers() == 0, "the sink's end")
    cell.silent()

    # The node is asked to end while it moves.
    graph.wait(lambda: cell.enable().success, "live mode")
    handle = cell.begin()
    cell.moving()
    ended = handle.get_result_async()
    graph.stop("controller")
    result = graph.result(ended, "result of the goal").result
    assert result.outcome == Result.CANCELLED and "deactivated" in result.reason
    cell.silent()


def test_shadow_mode_touches_no_topic_of_the_arm_and_says_how_far_it_agrees(graph: TestGraph) -> None:
    cell = Cell(graph, "shadow")
    shadow = graph.collect(PoseStamped, "shadow/target_pose", QoSProfile(depth=1000))
    answer = cell.enable()
    assert not answer.success and "the mode is shadow" in answer.message
    handle = cell.begin()
    graph.wait(lambda: len(shadow) > 150, "setpoints beside the arm")
    graph.wait(lambda: cell.diagnosed("disagreement_apart="), "the disagreement")
    assert cell.diagnosed("mode=shadow") and cell.diagnosed("stops_on_silence=0.1 s")
    assert cell.publishers() == 0 and not cell.targets
    farthest = max(float(np.linalg.norm(pose_from_msg(message)[0] - HOME)) for message in shadow)
    assert 0 < farthest < 0.05, "from where the arm is, which stands still"
    graph.result(handle.cancel_goal_async(), "answer to the cancel")
    assert cell.outcome(handle).outcome == Result.CANCELLED


def test_in_simulated_time_the_arm_moves_as_fast_as_its_simulator(graph: TestGraph) -> None:
    """Half as fast as the clock on the wall; the steady one would lead it at twice the speed that the model meant."""
    cell = Cell(graph, "live", pace=0.5)
    graph.wait(lambda: cell.enable().success, "live mode")
    handle = cell.begin()
    graph.wait(lambda: len(cell.targets) > 300, "targets")
    graph.result(handle.cancel_goal_async(), "answer to the cancel")
    cell.silent()
    stamps = np.array([stamp_to_ns(message.header.stamp) for message in cell.targets]) / 1e9
    places = np.array([pose_from_msg(message)[0][0] for message in cell.targets])
    middle = slice(len(stamps) // 3, 2 * len(stamps) // 3)
    speed = np.polyfit(stamps[middle], places[middle], 1)[0]
    assert 0.06 < speed < 0.1, "m/s: three tenths of 0.0135 m, 20 times a second"


def test_a_clock_that_stands_still_does_not_keep_an_arm_from_stopping(graph: TestGraph) -> None:
    """Twists: the last one would move the arm for ever."""
    cell = Cell(graph, "live", pace=0.5)
    graph.wait(lambda: cell.enable().success, "live mode")
    handle = cell.begin()
    cell.moving()
    cell.clock_runs = False
    assert graph.call(Trigger, "estop", Trigger.Request()).success
    assert "e-stop" in cell.outcome(handle).reason
    graph.wait(lambda: cell.publishers() == 0, "the sink's end, after the hold")
    before, last = (pose_from_msg(message)[0] for message in cell.targets[-2:])
    assert np.array_equal(last, before), "a hold"


def test_an_arm_whose_pose_is_late_is_not_led_and_diagnostics_say_why(graph: TestGraph) -> None:
    cell = Cell(graph, "live", **{"limits.max_state_age": 2.0})
    cell.delay = 1_200_000_000
    graph.wait(lambda: cell.enable().success, "live mode")
    handle = cell.begin()
    graph.wait(lambda: cell.diagnosed("the arm's pose is late"), "the warning")
    assert len({pose_from_msg(message)[0].tobytes() for message in cell.targets}) == 1, "it is told to stay"
    cell.delay = 0
    cell.moving()
    graph.result(handle.cancel_goal_async(), "answer to the cancel")
    assert cell.outcome(handle).outcome == Result.CANCELLED and cell.diagnosed("setpoints_blind=")


def test_dry_mode_speaks_beside_the_arm(graph: TestGraph) -> None:
    cell = Cell(graph, "dry")
    dry = graph.collect(PoseStamped, "dry/target_pose", QoSProfile(depth=1000))
    grip = graph.collect(Float64, "dry/target_gripper", LATCHED)
    handle = cell.begin()
    graph.wait(lambda: len(dry) > 20 and grip, "setpoints under dry/")
    assert cell.publishers() == 0 and not cell.targets and grip[0].data == 1.0
    check_targets(dry)
    graph.result(handle.cancel_goal_async(), "answer to the cancel")
    assert cell.outcome(handle).outcome == Result.CANCELLED


def test_an_arm_that_never_stops_by_itself_is_refused_until_somebody_accepts_it_in_writing(graph: TestGraph) -> None:
    """And then, where the pose is not in the frame that the arm takes, it is not moved all the same."""
    cell = Cell(graph, "live", **{"sink.silence_timeout": 0.0, "sink.accept_no_timeout": "yes"})
    graph.wait(lambda: cell.diagnosed("live mode is refused"), "the refusal")
    assert cell.diagnosed(ACCEPTANCE)
    graph.stop("controller")
    cell = Cell(graph, "live", **{"sink.silence_timeout": 0.0, "sink.accept_no_timeout": ACCEPTANCE, "sink.frame": "world"})
    graph.wait(lambda: cell.enable().success, "live mode")
    result = cell.outcome(cell.begin())
    assert result.outcome == Result.FAULT and "'world'" in result.reason and "'base'" in result.reason
    assert not cell.targets


def test_the_expert_drives_the_simulated_arm_through_its_drivers_interface(graph: TestGraph) -> None:
    """The whole way of a real arm, with the profile that stands for one: cameras apart, nothing is left out."""
    profile = load_profile("simulated_arm")
    files = ("--ros-args", "--params-file", str(profile.path))
    states = graph.collect(SimulationState, "simulation_state", LATCHED)
    health = graph.collect(DiagnosticArray, "/diagnostics", QoSProfile(depth=100))
    targets = graph.collect(PoseStamped, "target_pose", QoSProfile(depth=1000))
    graph.start("simulation", "bitvla_ros.nodes.simulation", {"mode": "realtime", "interface": "pose", "cameras": [""]})
    patient = {"limits.liveliness_grace": 0.5, "limits.max_state_age": 1.0}  # a loaded machine
    graph.start("controller", "bitvla_ros.nodes.controller", {"mode": "live", **patient}, *files)
    graph.start("policy", "bitvla_ros.nodes.policy", {"policy": "expert", "max_age": 0.5}, *files)
    graph.wait(lambda: states, "the simulator")
    graph.wait(lambda: graph.call(SetBool, "enable", SetBool.Request(data=True)).success, "live mode")
    result = graph.outcome(graph.send_goal(states[-1].instruction), 60.0)
    assert result.outcome in (Result.SUCCESS, Result.TIME_LIMIT), result.reason  # a loaded machine plays badly, but it plays
    assert result.chunks > 3 and len(targets) > 50
    assert {message.header.frame_id for message in targets} == {"world"}
    graph.wait(lambda: any(v.key == "lag" for array in health for status in array.status for v in status.values), "the arm's lag, measured")
