"""A node that joins a graph, listens to what it says, and leaves when told to: to the others what `ros2 topic echo` or a viewer is.

python -m bitvla_ros.nodes.prove.guest
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState

from bitvla_ros.msg import ActionChunk, EndEffectorCommand

from ..qos import SENSOR

TOPICS = {
    "joint_states": JointState,
    "end_effector_pose": PoseStamped,
    "target_pose": PoseStamped,
    "action_chunk": ActionChunk,
    "end_effector_command": EndEffectorCommand,
}


def main() -> int:
    rclpy.init()
    node = Node("guest")
    for topic, kind in TOPICS.items():
        node.create_subscription(kind, topic, lambda _: None, SENSOR)

    def end(number: int, frame: FrameType | None) -> None:
        rclpy.try_shutdown()

    signal.signal(signal.SIGTERM, end)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
