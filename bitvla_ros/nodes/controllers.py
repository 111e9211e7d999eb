"""How many controllers live in this namespace: two would both take a goal, and both drive the arm."""

from __future__ import annotations

from typing import Any

from bitvla_ros.msg import Task

from .events import SubscriptionEventCallbacks
from .lifecycle import ManagedNode
from .qos import TASK


class Controllers:
    """Counts those who publish tasks, this node among them. One that was killed is forgotten within the lease of its liveliness; who is
    known to the graph alone would count for 20 s more."""

    def __init__(self, node: ManagedNode) -> None:
        self._node, self._heard = node, 0
        events = SubscriptionEventCallbacks(liveliness=self._on_event)
        self._subscription = node.create_subscription(Task, "task", lambda _: None, TASK, event_callbacks=events)

    @property
    def alive(self) -> int:
        # Some middlewares report this node's own publisher as alive too, others do not.
        return min(self._node.count_publishers(self._subscription.topic_name), 1 + self._heard)

    @property
    def refusal(self) -> str | None:
        """Why no goal may start now, and what to do."""
        if (alive := self.alive) > 1:
            return f"{alive} controllers publish {self._subscription.topic_name}: stop all but one, or give each arm a namespace"
        return None

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _on_event(self, event: Any) -> None:
        self._heard = event.alive_count
