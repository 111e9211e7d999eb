"""What the controller sees of the arm: its measured pose, success and, where a simulator moves it, the simulator's tick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from std_msgs.msg import Bool

from bitvla_ros.control.command import ArmState
from bitvla_ros.msg import SimulationState

from .conversions import pose_from_msg, stamp_to_ns
from .qos import COMMAND, LATCHED, state_qos


class Arm:
    """Keeps the newest pose and the newest simulation_state or, of an arm that is no simulator's, the newest word on `success`.

    pose: None before the first. frame: of the pose. state: None before the first, and without a simulator.
    success: what was said last. stamp: when, ns. on_pose(), on_state(): called after each.
    """

    def __init__(self, node: Node, simulator: bool, on_pose: Callable[[], None], on_state: Callable[[], None]) -> None:
        self.simulator = simulator
        self.pose: ArmState | None = None
        self.frame = ""
        self.state: SimulationState | None = None
        self.success = False
        self.stamp = 0
        self._node, self._on_pose, self._on_state = node, on_pose, on_state
        self._poses = self._subscribe(synchronised=False)
        if simulator:
            self._states = node.create_subscription(SimulationState, "simulation_state", self._take_state, LATCHED)
        else:
            self._states = node.create_subscription(Bool, "success", self._take_success, COMMAND)

    @property
    def missing(self) -> str | None:
        """Which of them has not come, and what brings it."""
        if self.simulator and self.state is None:
            return "nobody publishes simulation_state: start simulation_node, or set simulator:=false where the arm is a real one"
        if self.pose is None:
            return "nobody publishes end_effector_pose: start the simulator or the arm's driver"
        return None

    @property
    def episode(self) -> int:
        return 0 if self.state is None else self.state.episode

    @property
    def lockstep(self) -> bool:
        return self.state is not None and self.state.lockstep

    @property
    def tick_is_whole(self) -> bool:
        """Pose and state of one lockstep tick are here."""
        return self.lockstep and self.pose is not None and self.pose.stamp == self.stamp

    def close(self) -> None:
        self._node.destroy_subscription(self._poses)
        self._node.destroy_subscription(self._states)

    def _subscribe(self, synchronised: bool) -> Any:
        return self._node.create_subscription(PoseStamped, "end_effector_pose", self._take_pose, state_qos(synchronised))

    def _take_pose(self, message: PoseStamped) -> None:
        self.pose = ArmState(*pose_from_msg(message), stamp_to_ns(message.header.stamp))
        self.frame = message.header.frame_id
        self._on_pose()

    def _take_state(self, state: SimulationState) -> None:
        if state.lockstep != self.lockstep:  # the simulator says how it publishes
            self._node.destroy_subscription(self._poses)
            self._poses = self._subscribe(state.lockstep)
        self.state, self.success, self.stamp = state, state.success, stamp_to_ns(state.header.stamp)
        self._on_state()

    def _take_success(self, message: Bool) -> None:
        self.success, self.stamp = message.data, self._node.get_clock().now().nanoseconds
        self._on_state()
