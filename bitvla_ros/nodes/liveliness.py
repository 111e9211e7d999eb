"""Whether the policy lives, as DDS says it: how the policy says so, and how the controller takes it."""

from __future__ import annotations

import threading
import time
from typing import Any

from rclpy.publisher import Publisher

from bitvla_ros.control.limits import FaultReason
from bitvla_ros.control.session import Session

from .lifecycle import ManagedNode
from .qos import LIVELINESS_LEASE

SETTLE = 0.5  # s without a loss before a task may begin: discovery can hold a publisher's first assertions back for longer than the lease


class Pulse:
    """Asserts the liveliness of a publisher four times a lease, in a thread of its own, until it is closed."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher, self._ended = publisher, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="liveliness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        period = LIVELINESS_LEASE.nanoseconds / 4e9
        while not self._ended.wait(period):
            self._publisher.assert_liveliness()


class Liveliness:
    """Tells the session when the publisher of chunks is lost, or is no longer the only one, and has the node look again when the grace is
    over.

    alive: publishers that live. losses: how often one was lost since configure.
    """

    def __init__(self, node: ManagedNode, session: Session, watch: Any) -> None:
        self.alive = 0
        self.losses = 0
        self._node, self._session, self._watch = node, session, watch
        self._timer: Any = None
        self._since = 0.0  # when DDS last reported a change; steady clock, s

    @property
    def missing(self) -> str | None:
        """What a task still waits for."""
        if not self.alive:
            return "nobody publishes action_chunk: start policy_node"
        if time.monotonic() - self._since < SETTLE:
            return f"the policy has not been alive for {SETTLE:g} s yet"
        return None

    @property
    def refusal(self) -> str | None:
        """Why no goal may start now, and what to do."""
        return f"{self.alive} nodes publish action_chunk: stop all but one" if self.alive > 1 else None

    def begin(self) -> None:
        """A task begins with the publisher that is here."""
        self._session.policy_alive(True, time.monotonic_ns())

    def on_event(self, event: Any) -> None:
        """The subscription's liveliness has changed."""
        self.losses += event.not_alive_count_change > 0
        self.alive, self._since = event.alive_count, time.monotonic()
        self._session.policy_alive(self.alive > 0, time.monotonic_ns())
        self.close()
        if self.refusal is not None and self._session.running:
            self._session.fault(FaultReason.SECOND_POLICY, self.refusal)
            self._watch()
        if not self.alive:
            self._timer = self._node.steady_timer(self._session.guard.liveliness_grace + 0.001, self._on_timer)

    def close(self) -> None:
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    def _on_timer(self) -> None:
        self.close()
        self._watch()
