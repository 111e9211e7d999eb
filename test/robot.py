"""A robot as the policy node sees it: publishes what its cameras, joints and controller would, and hears what the node says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from graph import TestGraph
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import Task
from bitvla_ros.nodes.conversions import (
    image_to_msg,
    joint_state_to_msg,
    ns_to_duration,
    ns_to_stamp,
    pose_to_msg,
    stamp_to_ns,
)
from bitvla_ros.nodes.qos import LATCHED, state_qos
from bitvla_ros.policy.replay import ReplayPolicy

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
