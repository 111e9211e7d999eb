"""What the controller sees of the arm: its measured pose and joints, success and, where a simulator moves it, the simulator's tick."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool

from bitvla_ros.control.command import ArmState, Joints
from bitvla_ros.msg import SimulationState

from .conversions import pose_from_msg, stamp_to_ns
from .frames import Frames, NoTransform, TfFrames
from .listening import listen
from .polled import Polled
from .qos import ANYBODY, JOINTS, LATCHED, NEWEST, state_qos


class Arm:
    """Keeps the newest pose and the newest simulation_state or, of an arm that is no simulator's, the newest word on `success`.

    pose: None before the first. frame: of the pose. joints: in the order of p.joints; None before the first, and where p names
    none. state: None before the first, and without a simulator. success: what was said last. stamp: when, ns.
    on_pose(), on_state(): called after each. polled: the pose is taken in `refresh`, as joints always are, since an arm's driver may be ten
    times as fast as we are; else when it comes, as whoever answers a tick needs it. make_frames: with p.state_source "tf", where the pose
    is looked up.
    """

    def __init__(
        self,
        node: Node,
        p: SimpleNamespace,
        on_pose: Callable[[], None],
        on_state: Callable[[], None],
        polled: bool = False,
        make_frames: Callable[[Node], Frames] = TfFrames,
    ) -> None:
        self.simulator: bool = p.simulator
        self.pose: ArmState | None = None
        self.frame = ""
        self.joints: Joints | None = None
        self.state: SimulationState | None = None
        self.success = False
        self.stamp = 0
        self._node, self._p, self._on_pose, self._on_state = node, p, on_pose, on_state
        self._names = [name for name in p.joints if name]
        self._no_transform = "TF was not asked yet"
        self._frames = make_frames(node) if p.state_source == "tf" else None
        self._poses = None
        self._polled: list[Polled] = []
        if self._names:
            self._polled.append(Polled(node, JointState, "joint_states", self._take_joints, JOINTS))
        if self._frames is None and polled:
            self._polled.append(Polled(node, PoseStamped, "end_effector_pose", self._take_pose, NEWEST))
        elif self._frames is None:
            self._poses = self._subscribe(synchronised=False)
        if self.simulator:
            self._close = listen(node, SimulationState, "simulation_state", self._take_state, [LATCHED])
        else:
            self._close = listen(node, Bool, "success", self._take_success, ANYBODY)

    @property
    def missing(self) -> str | None:
        """Which of them has not come, and what brings it."""
        if self.simulator and self.state is None:
            return "nobody publishes simulation_state: start simulation_node, or set simulator:=false where the arm is a real one"
        if self._names and self.joints is None:
            return f"no joint_states with {', '.join(self._names)}: start the arm's driver, or correct the parameter joints"
        if self.pose is None:
            return self._no_transform if self._frames else "nobody publishes end_effector_pose: start the simulator or the arm's driver"
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

    def refresh(self) -> None:
        """Take over the newest joints and, where it is polled or TF's, the newest pose. Does not wait."""
        for polled in self._polled:
            polled.deliver()
        if self._frames is None:
            return
        try:
            found = self._frames.newest(self._p.base_frame, self._p.ee_frame)
        except NoTransform as error:
            self._no_transform = str(error)
            return
        if self.pose is None or found.stamp != self.pose.stamp:
            self.pose, self.frame = ArmState(*found), self._p.base_frame
            self._on_pose()

    def close(self) -> None:
        self._close()
        if self._poses is not None:
            self._node.destroy_subscription(self._poses)
        for polled in self._polled:
            polled.close()
        if self._frames is not None:
            self._frames.close()

    def _subscribe(self, synchronised: bool) -> Any:
        return self._node.create_subscription(PoseStamped, "end_effector_pose", self._take_pose, state_qos(synchronised))

    def _take_pose(self, message: PoseStamped) -> None:
        self.pose = ArmState(*pose_from_msg(message), stamp_to_ns(message.header.stamp))
        self.frame = message.header.frame_id
        self._on_pose()

    def _take_joints(self, message: JointState) -> None:
        positions = dict(zip(message.name, message.position, strict=False))
        if all(name in positions for name in self._names):  # else another publisher's, such as the gripper's
            self.joints = Joints(np.array([positions[name] for name in self._names]), stamp_to_ns(message.header.stamp))

    def _take_state(self, state: SimulationState) -> None:
        if state.lockstep != self.lockstep and self._poses is not None:  # the simulator says how it publishes
            self._node.destroy_subscription(self._poses)
            self._poses = self._subscribe(state.lockstep)
        stamp = stamp_to_ns(state.header.stamp)
        if state.episode != self.episode and self.pose is not None and self.pose.stamp < stamp:
            self.pose = None  # the arm is somewhere else now
        self.state, self.success, self.stamp = state, state.success, stamp
        self._on_state()

    def _take_success(self, message: Bool) -> None:
        self.success, self.stamp = message.data, self._node.get_clock().now().nanoseconds
        self._on_state()
