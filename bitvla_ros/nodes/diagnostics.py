"""A node's health on /diagnostics, once a second and at once when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from .mismatches import Mismatches

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


@dataclass(frozen=True)
class Status:
    """level: OK, WARN, ERROR or STALE. message: one line. values: figures behind it, by name."""

    level: bytes
    message: str
    values: Mapping[str, object] = field(default_factory=dict)


class Diagnostics:
    """Publishes what `status` returns, at 1 Hz on the steady clock (simulated time may stand still), and whose QoS does not fit.

    outlet: the node that publishes for `node`.
    """

    def __init__(self, node: Node, outlet: Node, status: Callable[[], Status], hardware_id: str = "") -> None:
        self._node = node
        self._status = status
        self._hardware_id = hardware_id
        self._publisher = outlet.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._mismatches = Mismatches(node, outlet) if outlet is not node else Mismatches(node)
        self._timer = node.create_timer(1.0, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_timer(self) -> None:
        before = self._mismatches.found
        self._mismatches.look()
        for line in set(self._mismatches.found).difference(before):
            self._node.get_logger().warning(line)
        self.publish()

    def publish(self) -> None:
        status = self._warned(self._status())
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.status = [
            DiagnosticStatus(
                level=status.level,
                name=self._node.get_fully_qualified_name().lstrip("/"),
                message=status.message,
                hardware_id=self._hardware_id,
                values=[KeyValue(key=str(key), value=str(value)) for key, value in status.values.items()],
            )
        ]
        self._publisher.publish(message)

    def _warned(self, status: Status) -> Status:
        if not (found := self._mismatches.found):
            return status
        words = found if status.level == OK else [status.message, *found]
        return Status(max(status.level, WARN), "; ".join(words), {**status.values, "qos_mismatches": len(found)})
