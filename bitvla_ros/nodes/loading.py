"""That a policy loads, which takes up to a minute: how the policy says so, and how the controller, whose goals wait for it, hears it.

The topic `policy_loading` (std_msgs/String, latched) has a publisher as long as a policy loads, and no longer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node
from std_msgs.msg import String

from .qos import LATCHED

TOPIC = "policy_loading"


@contextmanager
def announced(node: Node, topic: str, what: str) -> Iterator[None]:
    """Say on the topic, while within, what is loaded."""
    publisher = node.create_publisher(String, topic, LATCHED)
    publisher.publish(String(data=what))
    try:
        yield
    finally:
        node.destroy_publisher(publisher)


@contextmanager
def logged(logger: RcutilsLogger) -> Iterator[None]:
    """What the package without ROS warns of in Python's log, while within, goes into the node's, under its name."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.warning(record.getMessage())

    ours, handler = logging.getLogger("bitvla_ros"), Handler(logging.WARNING)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


class PolicyLoading:
    """What the policy in the node's namespace loads."""

    def __init__(self, node: Node) -> None:
        self._node, self._what, self._seen = node, "", 0.0
        self._topic = node.resolve_topic_name(TOPIC)
        self._subscription = node.create_subscription(String, TOPIC, self._on_message, LATCHED)

    @property
    def missing(self) -> str | None:
        """What a goal waits for while a policy loads; None: none does."""
        if not self._what:
            return None
        if not self._node.count_publishers(self._topic):
            self._what = ""
            return None
        self._seen = time.monotonic()
        return f"the policy loads {self._what}: a goal waits until it has"

    def waits_since(self, since: float) -> float:
        """From when on a goal that came at `since` waits for something else than the loading; s of the steady clock."""
        return max(since, self._seen) if self.missing is None else time.monotonic()

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _on_message(self, message: String) -> None:
        self._what = message.data
        self._node.get_logger().info(f"the policy loads {message.data}: goals wait until it has")
