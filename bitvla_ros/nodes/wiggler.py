"""The arm under a self-test: moved by tiny motions through its own sink, while its measured pose is watched."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState

from bitvla_ros.control.command import ArmState, Setpoint
from bitvla_ros.control.following import Following
from bitvla_ros.control.rotation import turn_between
from bitvla_ros.control.wiggle import DURATION, Motion, Seen

from . import inputs, sinks
from .arm import Arm
from .lifecycle import EXPECTED
from .node_names import owner
from .qos import SENSOR

# Of the controller's parameters and of the policy's, what a self-test needs.
PARAMETERS = (*sinks.PARAMETERS, *(parameter for parameter in inputs.PARAMETERS if parameter.name.startswith("gripper_")))

_NEWS = 0.3  # s: while the arm moves, its pose may not be older
_PAUSE = 0.1  # s: if nothing was done for longer, as where the machine stood still, the motion goes on from where it was
_HALT = 0.3  # s for which an arm that is to stop is told so
_STAY = 0.01, 0.05  # m, rad: so far an arm may go that is told to stay
_FAR = 0.05, 0.25  # m, rad: so far from its start a motion is broken off
_REST = 3e-4, 2e-3  # m, rad: so far the pose of an arm at rest may wander in _WINDOW
_WINDOW, _PATIENCE = 0.2, 2.5  # s
_WAY = 0.1  # m of motions that tell how late the arm is
_GRIPPER_REST, _GRIPPER_PATIENCE = 0.8, 5.0  # s: its fingers stand still, and are waited for

Pose = tuple[NDArray[np.float64], NDArray[np.float64]]


class WiggleError(Exception):
    """The self-test cannot be done or was broken off; the message says why and what to do."""


class TooFar(WiggleError):
    """A motion was broken off. seen: what it had done until then."""

    def __init__(self, seen: Seen) -> None:
        went = f"{1e3 * np.linalg.norm(seen.shift):.0f} mm and {np.linalg.norm(seen.turn):.2f} rad"
        asked = f"{seen.motion.size:g} rad" if seen.motion.turn else f"{1e3 * seen.motion.size:.0f} mm"
        super().__init__(
            f"{seen.motion.name} was broken off after {went}, where {asked} were asked: other units, or a scale of the controller"
        )
        self.seen = seen


class Wiggler:
    """Moves the arm that p describes (PARAMETERS by name, dots as underscores). check: called while it waits; may raise.

    Publishes nothing before `begin` and nothing after `close`.
    """

    def __init__(self, node: Node, executor: Executor, p: SimpleNamespace, check: Callable[[], None]) -> None:
        self.topics = sinks.sink_topics(node, p)
        self.has_gripper = p.gripper_kind != "none"
        self._node, self._executor, self._p, self._check = node, executor, p, check
        self._arm = Arm(node, SimpleNamespace(**{**vars(p), "simulator": False}), self._on_pose, lambda: None, polled=True)
        self._poses: deque[tuple[float, Pose]] = deque()  # of the last _WINDOW, each with the time of its arrival
        self._fingers: float | None = None  # m between them
        self._joints = node.create_subscription(JointState, "joint_states", self._on_joints, SENSOR) if self.has_gripper else None
        self._sink: sinks.Sink | None = None
        self._sent: tuple[float, Pose] | None = None  # when, in the arm's time, and which setpoint
        self._home: Pose | None = None  # where motions begin and end
        self._gripper = 0.0
        self._following = Following(_WAY)
        self._period = 1.0 / p.sink_rate
        self._due = 0.0
        self._resumed = 0.0  # when the last pause ended, of the monotonic clock

    @property
    def frame(self) -> str:
        return self._arm.frame

    @property
    def pose(self) -> Pose:
        """As measured last."""
        return self._poses[-1][1]

    @property
    def lag(self) -> float | None:
        """s, by which the arm has followed behind its targets; None before there were enough of them."""
        return self._following.lag

    def wait(self, patience: float) -> None:
        """Wait for the arm, s, and see that nobody else moves it. Raises WiggleError."""
        topic = self.topics[0]
        self._wait(lambda: not self._missing(), patience, self._missing)
        listening = f"nobody listens on {topic}: start the arm's controller, or correct sink.topic"
        self._wait(lambda: self._node.count_subscribers(topic) > 0, patience, lambda: listening)
        self._spin(0.5)  # whoever else publishes may be discovered later
        if self._node.count_publishers("/clock"):
            self._node.set_parameters([Parameter("use_sim_time", value=True)])
            paused = "nothing comes on /clock, although it has a publisher: let the simulator run"
            self._wait(lambda: self._time() > 0.0, patience, lambda: paused)
        for name in self.topics:
            if others := sorted(set(map(owner, self._node.get_publishers_info_by_topic(name)))):
                raise WiggleError(f"{', '.join(others)} also publishes on {name}: stop it, only one may move the arm")
        if self._p.sink_frame and self._p.sink_frame != self.frame:
            raise WiggleError(f"the arm takes targets in {self._p.sink_frame!r} (sink.frame), but its pose is measured in {self.frame!r}")

    def begin(self) -> None:
        """Look whether the arm stays where it is when told to. Raises WiggleError."""
        self._look()
        try:
            self._sink = sinks.make_sink(self._node, self._p)
        except EXPECTED as error:
            raise WiggleError(str(error)) from error
        self._home = self.pose
        try:
            self._rest(self._home, self._stays, least=0.5)
        except WiggleError:  # to tell the arm where it is measured would move it further: silence
            self._sink.close()
            self._sink = None
            raise

    def perform(self, motion: Motion) -> Seen:
        """One motion, there and back. Raises TooFar where it was broken off, WiggleError where the pose stays away."""
        self._look()
        if self._home is None or _beyond(_STAY, *_change(self._home, self.pose)):
            self._home, self._sent = self.pose, None  # somebody has moved it, or it yields
        home, start = self._home, self.pose

        def watch() -> None:
            change = _change(start, self.pose)
            if _beyond(_FAR, *change):
                raise TooFar(Seen(motion, *change))

        try:
            self._play(lambda time: motion.at(home, time), watch)
            seen = Seen(motion, *_change(start, self.pose))
            self._play(lambda time: motion.at(home, DURATION - time), watch)
        except TooFar:
            self._halt()
            raise
        return seen

    def try_gripper(self) -> tuple[float, float]:
        """m between the fingers after they were told to open, and to close; they are left open. Raises WiggleError."""
        assert self._sink is not None
        if (problem := self._sink.problem()) is not None:
            raise WiggleError(problem)
        opened, closed = self._command_gripper(-1.0), self._command_gripper(1.0)
        self._command_gripper(-1.0)
        return opened, closed

    def close(self) -> None:
        """Stop the arm where it is, and let go of it."""
        if self._sink is not None:
            with contextlib.suppress(Exception):  # the reason for which we end here counts
                self._halt()
            self._sink.close()
        self._arm.close()

    def _time(self) -> float:
        """s, of the arm's time: a simulator's own where it publishes /clock, else of the steady clock."""
        clock = self._node.get_clock()
        return clock.now().nanoseconds / 1e9 if clock.ros_time_is_active else time.monotonic()

    # What moves it.

    def _halt(self) -> None:
        """Ask no more of the arm than was asked last, without velocity. The measured pose is no target for one that misunderstands. An arm
        that is not seen any more is stopped all the same."""
        if self._sent is None:
            return
        last, self._sent = self._sent[1], None
        until = time.monotonic() + _HALT
        while time.monotonic() < until:
            self._send(last)
            with contextlib.suppress(Exception):  # why it is stopped is known; what else is wrong must not keep it from that
                self._spin(self._period)

    def _play(self, path: Callable[[float], Pose], watch: Callable[[], None]) -> None:
        elapsed, last, self._due = 0.0, self._time(), time.monotonic()
        while elapsed < DURATION:
            self._send(path(elapsed))
            self._step(watch)
            now = self._time()
            elapsed, last = elapsed + min(now - last, _PAUSE), now
        self._rest(path(DURATION), watch)

    def _rest(self, pose: Pose, watch: Callable[[], None], least: float = _WINDOW) -> None:
        """Hold a pose until the arm is at rest, or does not want to be."""
        begin = self._due = time.monotonic()
        while (elapsed := time.monotonic() - begin) < least or (elapsed < _PATIENCE and not self._still):
            self._send(pose)
            self._step(watch)

    def _command_gripper(self, command: float) -> float:
        self._gripper = command
        begin = moved = self._due = time.monotonic()
        last = self._fingers
        while (now := time.monotonic()) - begin < _GRIPPER_PATIENCE and now - moved < _GRIPPER_REST:
            self._send(self._home)
            self._step(self._stays)
            if abs(self._fingers - last) > 5e-4:
                moved, last = now, self._fingers
        return float(self._fingers)

    def _stays(self) -> None:
        shift, turn = _change(self._home, self.pose)
        if _beyond(_STAY, shift, turn):
            went = f"{1e3 * np.linalg.norm(shift):.0f} mm and {np.linalg.norm(turn):.2f} rad"
            raise WiggleError(
                f"told to stay where it is, the arm moves by {went}: it takes targets in another frame than {self.frame!r}, that of the "
                "measured pose, or for another point of the hand; compare frames and end effector of its controller with the profile"
            )

    def _send(self, pose: Pose) -> None:
        """The pose as a setpoint, with the velocity that leads to it from the one before."""
        now, linear, angular = self._time(), np.zeros(3), np.zeros(3)
        if self._sent is not None and 0.0 < now - self._sent[0] < _NEWS:
            elapsed, before = now - self._sent[0], self._sent[1]
            linear, angular = (change / elapsed for change in _change(before, pose))
        self._sent = now, pose
        hold = not (linear.any() or angular.any())
        setpoint, stamp = Setpoint(*pose, linear, angular, self._gripper, hold, 0), self._node.get_clock().now().nanoseconds
        self._following.observe(setpoint, ArmState(*self.pose, self._arm.pose.stamp), stamp)
        self._sink.send(setpoint, stamp, self.frame)

    # What is seen of it.

    def _look(self) -> None:
        """See where the arm is, after the time in which somebody was asked."""
        if self._sent is None or self._time() - self._sent[0] > _NEWS:
            self._spin(_WINDOW)

    def _step(self, watch: Callable[[], None]) -> None:
        """Wait for the time of the next setpoint."""
        self._due = self._not_before(self._due + self._period)  # after a delay no setpoints are made up for
        self._spin(self._due - time.monotonic())
        self._not_before(self._due)
        if not self._seen:
            raise WiggleError(f"no pose for {_NEWS} s while the arm moves: its driver is too slow, or gone")
        watch()

    def _not_before(self, due: float) -> float:
        """This time, or now where it is over. Long over: that was a pause, in which no pose could come."""
        now = time.monotonic()
        if now - due > _PAUSE:
            self._resumed = now
        return max(due, now)

    def _spin(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            self._executor.spin_once(timeout_sec=max(until - time.monotonic(), 0.0))
            if time.monotonic() >= until:
                break
        self._arm.refresh()
        self._check()

    def _wait(self, condition: Callable[[], bool], patience: float, explain: Callable[[], str]) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise WiggleError(explain())
            self._spin(0.05)

    def _missing(self) -> str:
        if self._arm.missing:
            return self._arm.missing
        if self._joints is not None and self._fingers is None:
            return f"nobody publishes joint_states with {', '.join(self._p.gripper_joints)}: start the gripper's driver, or name its joints"
        return ""

    @property
    def _seen(self) -> bool:
        return time.monotonic() - max(self._poses[-1][0], self._resumed) < _NEWS

    @property
    def _still(self) -> bool:
        watched = self._poses[-1][0] - self._poses[0][0]  # s; little after a pause
        return watched > _WINDOW / 2 and not any(_beyond(_REST, *_change(pose, self.pose)) for _, pose in self._poses)

    def _on_pose(self) -> None:
        position, orientation = self._arm.pose.position, self._arm.pose.orientation
        if not (np.isfinite(position).all() and np.isfinite(orientation).all() and orientation.any()):
            return
        now = time.monotonic()
        self._poses.append((now, (position, orientation)))
        while now - self._poses[0][0] > _WINDOW:
            self._poses.popleft()

    def _on_joints(self, message: JointState) -> None:
        positions = dict(zip(message.name, message.position, strict=False))
        names, scale, offset = self._p.gripper_joints, self._p.gripper_scale, self._p.gripper_offset
        if all(name in positions for name in names):
            first, second = (scale[i] * positions[names[i % len(names)]] + offset[i] for i in range(2))
            self._fingers = first - second


def _change(start: Pose, end: Pose) -> Pose:
    """Shift, m, and rotation vector, rad, from one pose to the other."""
    return end[0] - start[0], turn_between(start[1], end[1])


def _beyond(limit: tuple[float, float], shift: NDArray[np.float64], turn: NDArray[np.float64]) -> bool:
    return bool(np.linalg.norm(shift) > limit[0] or np.linalg.norm(turn) > limit[1])
