"""The simulated arm behind an interface like that of a real arm's driver: poses or twists come in at any rate, and move it smoothly.

It subscribes `target_pose` (PoseStamped) or `target_twist` (TwistStamped), and `target_gripper` (std_msgs/Float64: below 0 opens,
above 0 closes). The newest target counts. After SILENCE without one the arm comes to rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from rclpy.node import Node
from std_msgs.msg import Float64

from bitvla_ros.control.rotation import turn_between, turned
from bitvla_ros.policy.observation import unit_quaternions
from bitvla_ros.simulation import TABLETOP_SUITES, Snapshot
from bitvla_ros.simulation.environment import PoseFollower

from .conversions import pose_from_msg
from .parameters import ParameterError
from .qos import COMMAND

INTERFACES = ("pose", "twist")
RATES = (40.0, 80.0, 100.0, 200.0, 400.0)  # whole physics steps in a period, whole periods in a control step
SILENCE = 0.1  # s
CATCH_UP = 0.2  # s that a machine which was busy with something else makes up for; an arm does not move slower because of it

# The pose that the arm is pulled to stays within this of the measured one: what bounds its speed at 0.6 m/s and 4 rad/s.
_REACH, _ANGULAR_REACH = 0.03, 0.2  # m, rad

Array = NDArray[np.float64]


def check(interface: str, lockstep: bool, suite: str) -> None:
    """Raises ParameterError where the simulator cannot behave like a driver."""
    if lockstep:
        raise ParameterError(f"interface is {interface!r}: a driver's time runs on, set mode to 'realtime'")
    if suite not in TABLETOP_SUITES:
        raise ParameterError(
            f"interface is {interface!r}: LIBERO's arm takes no poses or twists, only one offset from its measured pose every 50 ms "
            f"(robosuite's OSC_POSE); set suite to one of {', '.join(TABLETOP_SUITES)}, or interface to 'end_effector_command'"
        )


class SimulatedDriver:
    """Moves the environment's arm as time passes. Targets in other frames than the environment's are ignored, as are ones that are no
    numbers; `ignored` counts them."""

    def __init__(self, node: Node, environment: PoseFollower, interface: str, hz: float) -> None:
        self.ignored = 0
        self._node, self._environment = node, environment
        self._period = 1.0 / hz
        self._per_step = round(hz / environment.control_hz)  # periods in a control step
        self._start = time.monotonic()
        self._done = 0  # periods
        kind, topic, take = {
            "pose": (PoseStamped, "target_pose", self._take_pose),
            "twist": (TwistStamped, "target_twist", self._take_twist),
        }[interface]
        self._subscriptions = [
            node.create_subscription(kind, topic, take, COMMAND),
            node.create_subscription(Float64, "target_gripper", self._take_gripper, COMMAND),
        ]
        self.reset()

    def reset(self) -> None:
        """Forget every target: the arm holds where it is."""
        self._target: Callable[[Snapshot, float], tuple[Array, Array]] | None = None
        self._since = 0.0  # when the newest target came
        self._goal: tuple[Array, Array] | None = None  # where the arm is pulled to
        self._gripper = 0.0  # keeps what was commanded last

    def advance(self, snapshot: Snapshot) -> tuple[Snapshot, bool] | None:
        """Let the arm move until now. snapshot: of where it is. Returns what is seen afterwards, and whether a control step has ended,
        which has images; None where no period has passed."""
        now = time.monotonic()
        due = int((now - self._start) / self._period) - self._done
        if due <= 0:
            return None
        periods = min(due, round(CATCH_UP / self._period))
        self._start += (due - periods) * self._period
        ended = self._done % self._per_step + periods >= self._per_step
        self._done += periods
        if self._target is not None and now - self._since > SILENCE:
            self._target = None  # and the arm comes to rest where it was pulled to last
        for left in reversed(range(periods)):
            if self._target is not None:
                self._goal = _within_reach(*self._target(snapshot, self._period), snapshot)
            elif self._goal is None:
                self._goal = snapshot.position, snapshot.orientation
            snapshot = self._environment.follow(*self._goal, self._gripper, self._period, render=ended and left == 0)
        return snapshot, ended

    def close(self) -> None:
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _take_pose(self, message: PoseStamped) -> None:
        position, orientation = pose_from_msg(message)
        if not (self._in_frame(message.header.frame_id) and self._finite([*position, *orientation])):
            return
        try:
            pose = position, unit_quaternions(orientation)
        except ValueError as error:
            self._refuse(str(error))
            return
        self._follow(lambda snapshot, duration: pose)

    def _take_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        velocity, rate = np.array([linear.x, linear.y, linear.z]), np.array([angular.x, angular.y, angular.z])
        if not (self._in_frame(message.header.frame_id) and self._finite([*velocity, *rate])):
            return

        def moved(snapshot: Snapshot, duration: float) -> tuple[Array, Array]:
            position, orientation = self._goal or (snapshot.position, snapshot.orientation)
            return position + velocity * duration, turned(orientation, rate * duration)

        self._follow(moved)

    def _take_gripper(self, message: Float64) -> None:
        if self._finite([message.data]):
            self._gripper = message.data

    def _follow(self, target: Callable[[Snapshot, float], tuple[Array, Array]]) -> None:
        self._target, self._since = target, time.monotonic()

    def _in_frame(self, frame: str) -> bool:
        expected = self._environment.frame
        return frame == expected or self._refuse(f"its frame is {frame!r}, expected {expected!r}")

    def _finite(self, numbers: list[float]) -> bool:
        return bool(np.isfinite(numbers).all()) or self._refuse(f"it is not finite: {numbers}")

    def _refuse(self, reason: str) -> bool:
        self.ignored += 1
        self._node.get_logger().error(f"target ignored: {reason}", throttle_duration_sec=1.0)
        return False


def _within_reach(position: Array, orientation: Array, measured: Snapshot) -> tuple[Array, Array]:
    """The pose, or the nearest on the way to it that the arm may be pulled to."""
    way, turn = position - measured.position, turn_between(measured.orientation, orientation)
    far, wide = np.linalg.norm(way) / _REACH, np.linalg.norm(turn) / _ANGULAR_REACH
    if far > 1.0:
        position = measured.position + way / far
    if wide > 1.0:
        orientation = turned(measured.orientation, turn / wide)
    return position, orientation
