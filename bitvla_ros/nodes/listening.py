"""Subscriptions for topics that anybody may publish, with whatever QoS is theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile

from .events import SubscriptionEventCallbacks


def listen(node: Node, kind: Any, topic: str, callback: Callable[[Any], None], profiles: Sequence[QoSProfile]) -> Callable[[], None]:
    """One subscription for each profile, because a reliable one does not hear who publishes best effort, and one that is best effort hears
    a reliable publisher less than reliably. So a message may come once for each. Returns what closes them."""
    subscriptions = [
        # That one of them does not fit is no news; that none does is shown by mismatches.Mismatches.
        node.create_subscription(kind, topic, callback, qos, event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))
        for qos in profiles
    ]

    def close() -> None:
        for subscription in subscriptions:
            node.destroy_subscription(subscription)

    return close
