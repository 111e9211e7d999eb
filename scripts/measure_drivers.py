"""What controller and policy cost beside an arm's driver, by its rate: the figures of docs/real-arm.md.

.venv/bin/python scripts/measure_drivers.py
A driver publishes the pose and nine joints, two cameras 224 x 224 pixels at 30 Hz. The controller plays setpoints at 100 Hz in dry mode,
without a task; the policy (random:nano) looks at every image, and infers once.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from bitvla_ros.evaluation.machine import OtherLoad, machine
from bitvla_ros.nodes.processes import Graph
from bitvla_ros.nodes.qos import LATCHED, SENSOR

RATES = (100, 500, 1000)  # Hz
LOADING, MEASURED = 15.0, 20.0  # s
CAMERAS, FRAME_RATE, SIZE = ("scene", "wrist"), 30, 224
FINGERS = ["panda_finger_joint1", "panda_finger_joint2"]
ARM = [f"joint{number}" for number in range(1, 8)]
CONTROLLER = {
    "simulator": False,
    "mode": "dry",
    "time_limit": 60.0,
    "sink.kind": "pose",
    "joints": ARM,
    "limits.joint_min": [-3.0] * 7,
    "limits.joint_max": [3.0] * 7,
}
POLICY = {"model": "random:nano", "replan_interval": 60.0}


class Message:
    """Serialized once: only the stamp, which comes first, changes."""

    def __init__(self, node: rclpy.node.Node, topic: str, message: PoseStamped | JointState | Image) -> None:
        self._publisher = node.create_publisher(type(message), topic, SENSOR)
        self._data = bytearray(serialize_message(message))

    def publish(self) -> None:
        now = time.time_ns()
        self._data[4:12] = struct.pack("<iI", now // 10**9, now % 10**9)  # after the encapsulation's four bytes
        self._publisher.publish(bytes(self._data))


def seconds(pid: int) -> float:
    """Of a processor's time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rate: int, logs: Path) -> str:
    with Graph(logs) as graph, rclpy.init():
        nodes = [graph.start(name, f"bitvla_ros.nodes.{name}", p) for name, p in (("controller", CONTROLLER), ("policy", POLICY))]
        node = rclpy.create_node("driver")
        pose = PoseStamped()
        pose.header.frame_id, pose.pose.position.x, pose.pose.orientation.x, pose.pose.orientation.w = "base", 0.4, 1.0, 0.0
        joints = JointState(name=[*ARM, *FINGERS], position=[0.0] * 7 + [0.02, -0.02])
        driver = [Message(node, "end_effector_pose", pose), Message(node, "joint_states", joints)]
        cameras = []
        for role in CAMERAS:
            pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8).tobytes()
            image = Image(height=SIZE, width=SIZE, encoding="rgb8", step=3 * SIZE, data=pixels)
            cameras.append(Message(node, f"camera/{role}/image_raw", image))
        instruction = node.create_publisher(String, "instruction", LATCHED)
        instruction.publish(String(data="pick up the block"))

        began, sent, before = time.monotonic(), 0, None
        while (elapsed := time.monotonic() - began) < LOADING + MEASURED:
            if before is None and elapsed > LOADING:
                graph.check()
                before, load, start, first = [seconds(process.popen.pid) for process in nodes], OtherLoad(), elapsed, sent
            for message in (*driver, *(cameras if sent * FRAME_RATE // rate > (sent - 1) * FRAME_RATE // rate else ())):
                message.publish()
            sent += 1
            time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        graph.check()
        used = [100 * (seconds(process.popen.pid) - was) / (elapsed - start) for process, was in zip(nodes, before, strict=True)]
        busy = f"others than this script kept the processors {load.share():.0%} busy"
        return f"{(sent - first) / (elapsed - start):.0f} Hz: controller {used[0]:.0f} % of a core, policy {used[1]:.0f} %; {busy}"


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for rate in RATES:
            print(measure(rate, Path(folder) / str(rate)), flush=True)
