"""A subscriber that stands where the simulator stands: every command with the moment of its arrival, and the clients of a trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile
from std_msgs.msg import String, UInt64
from std_srvs.srv import SetBool

from bitvla_ros.evaluation.proofs.stopping import Sent, Target
from bitvla_ros.msg import ActionChunk, EndEffectorCommand

from ..conversions import stamp_to_ns
from ..qos import LATCHED
from ..recorder import PATIENCE, GraphError, Recorder, target


class Witness(Recorder):
    """Use as a context manager. commands, chunks, poses: everything since `forget_all`, in the order of arrival.

    poses: of an arm that is driven by them.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.commands: list[Sent] = []
        self.chunks: list[tuple[int, ActionChunk]] = []  # with the arrival, ns of the steady clock
        self.poses: list[Target] = []
        self.camera_fault_began = 0
        super().__init__((), lockstep=False, check=check)
        self._camera_fault = self.create_publisher(String, "camera_fault", LATCHED)
        self.create_subscription(UInt64, "camera_fault_began", self._on_camera_fault_began, QoSProfile(depth=10))
        self._hang = self.create_client(SetBool, "policy/hang")

    # What happens, in the spinning thread.

    def _on_command(self, command: EndEffectorCommand) -> None:
        self.commands.append(sent(command, time.monotonic_ns()))

    def _on_chunk(self, chunk: ActionChunk) -> None:
        self.chunks.append((time.monotonic_ns(), chunk))

    def _on_target(self, pose: PoseStamped) -> None:
        self.poses.append(target(pose, time.monotonic_ns()))

    def _on_camera_fault_began(self, message: UInt64) -> None:
        self.camera_fault_began = message.data

    # What the trials do.

    def forget_all(self) -> None:
        self.commands, self.chunks, self.poses, self.camera_fault_began = [], [], [], 0

    def wait(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
        """Until the condition holds. Raises GraphError after `patience` s, NodeDied when a node has ended."""
        if not self._until(condition, patience):
            raise GraphError(f"no {what} within {patience:g} s; the nodes say: {self.health()}")

    def holds(self, condition: Callable[[], Any], patience: float) -> bool:
        """Whether the condition comes to hold within `patience` s."""
        return self._until(condition, patience)

    def cancel(self, handle: Any) -> None:
        """Returns when the cancel of this goal is answered."""
        self._ask("the cancel", lambda: True, handle.cancel_goal_async)

    def hang(self, on: bool) -> int:
        """Let inference hang or go on; ns of the steady clock since when."""
        return int(self._ask("policy/hang", self._hang.service_is_ready, lambda: self._hang.call_async(SetBool.Request(data=on))).message)

    def set_camera_fault(self, name: str) -> int:
        """Let the cameras fail, or with "" work again; ns of the steady clock since when."""
        self.camera_fault_began = 0
        self._camera_fault.publish(String(data=name))
        if name:
            self.wait(lambda: self.camera_fault_began, "image that suffers from the fault")
        return self.camera_fault_began


def sent(command: EndEffectorCommand, arrival: int) -> Sent:
    """arrival: ns of the steady clock."""
    action = np.array([*command.offset, command.gripper], np.float32)
    return Sent(arrival, stamp_to_ns(command.header.stamp), int(command.epoch), bool(command.hold), action)
