"""A broadcaster of the real tf2_ros as a process: what comes on `broadcast` and `broadcast_static` goes to /tf and /tf_static.

python -m tf_broadcaster
"""

from __future__ import annotations

import contextlib

import rclpy
import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile


def main() -> None:
    rclpy.init()
    node = Node("tf_broadcaster")
    moving, fixed = tf2_ros.TransformBroadcaster(node), tf2_ros.StaticTransformBroadcaster(node)
    qos = QoSProfile(depth=100)
    node.create_subscription(TransformStamped, "broadcast", moving.sendTransform, qos)
    node.create_subscription(TransformStamped, "broadcast_static", fixed.sendTransform, qos)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


if __name__ == "__main__":
    main()
