"""Whether the policy lives, as DDS says it."""

from __future__ import annotations

import time
from typing import Any

from bitvla_ros.control.session import Session

from .lifecycle import ManagedNode


class Liveliness:
    """Tells the session when a publisher of chunks is lost, and has the node look again when the grace is over.

    alive: publishers that live. losses: how often one was lost since configure.
    """

    def __init__(self, node: ManagedNode, session: Session, watch: Any) -> None:
        self.alive = 0
        self.losses = 0
        self._node, self._session, self._watch = node, session, watch
        self._needed = 1  # none may be lost during a task: a second publisher must not hide the death of the first
        self._timer: Any = None

    def begin(self) -> None:
        """A task begins with the publishers that are here."""
        self._needed = self.alive
        self._session.policy_alive(True, time.monotonic_ns())

    def on_event(self, event: Any) -> None:
        """The subscription's liveliness has changed."""
        self.losses += event.not_alive_count_change > 0
        self.alive = event.alive_count
        self._needed = max(1, self.alive, self._needed if self._session.running else 1)
        alive = self.alive >= self._needed
        self._session.policy_alive(alive, time.monotonic_ns())
        self.close()
        if not alive:
            self._timer = self._node.steady_timer(self._session.guard.liveliness_grace + 0.001, self._on_timer)

    def close(self) -> None:
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    def _on_timer(self) -> None:
        self.close()
        self._watch()
