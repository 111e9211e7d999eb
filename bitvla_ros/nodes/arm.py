"""What the controller sees of the arm: its measured pose and, where a simulator moves it, the simulator's tick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node

from bitvla_ros.control.command import ArmState
from bitvla_ros.msg import SimulationState

from .conversions import pose_from_msg, stamp_to_ns
from .qos import LATCHED, state_qos


class Arm:
    """Keeps the newest pose and the newest simulation_state.

    pose: None before the first. frame: of the pose. state: None before the first. stamp: of the state, ns.
    on_pose(), on_state(): called after each.
    """

    def __init__(self, node: Node, on_pose: Callable[[], None], on_state: Callable[[], None]) -> None:
        self.pose: ArmState | None = None
        self.frame = ""
        self.state: SimulationState | None = None
        self.stamp = 0
        self._node, self._on_pose, self._on_state = node, on_pose, on_state
        self._poses = self._subscribe(synchronised=False)
        self._states = node.create_subscription(SimulationState, "simulation_state", self._take_state, LATCHED)

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
        self.state, self.stamp = state, stamp_to_ns(state.header.stamp)
        self._on_state()
