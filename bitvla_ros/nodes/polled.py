"""A subscription that calls back when it is asked: of a driver at 1 kHz only what is needed is taken, when it is needed.

A message that calls back costs rclpy's executor some 0.2 ms, whether anybody needed it or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile


class Polled:
    """Messages of a topic that wait to be taken; how many, and which go where they are too many, is the QoS's history."""

    def __init__(self, node: Node, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        self._node, self._callback, self._most = node, callback, qos.depth
        self._subscription = node.create_subscription(kind, topic, callback, qos, callback_group=_Unattended())

    def deliver(self) -> None:
        """Call back with each message that waits."""
        for message in self.take():
            self._callback(message)

    def take(self) -> Iterator[Any]:
        """What has come since the last time, the oldest first; no more than the history holds, however fast they come."""
        subscription = self._subscription
        for _ in range(self._most):
            with subscription.handle:
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
            if taken is None:
                return
            yield taken[0]

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)


class _Unattended(CallbackGroup):
    """No executor waits for its entities."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass
