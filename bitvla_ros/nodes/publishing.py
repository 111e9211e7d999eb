"""Publishers whose last message counts: a stop's hold, a command, the end of a task."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher

_PATIENCE = Duration(nanoseconds=500_000_000)  # a subscriber that was killed acknowledges nothing, and is known for seconds


def retire(node: Node, publisher: Publisher) -> None:
    """Destroy a publisher once every reliable subscriber has what it published last: destroyed at once, it takes that along."""
    if not publisher.wait_for_all_acked(_PATIENCE):
        node.get_logger().warning(f"{publisher.topic_name}: a subscriber did not acknowledge the last message")
    node.destroy_publisher(publisher)
