"""The e-stop in software: a service and a topic that stop the arm within its limits, and latch.

It is no safety function: it stands beside the arm's own emergency stop and never in its place.
"""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from .listening import listen
from .qos import ANYBODY


class EStop:
    """trip(why): stops, called by the service `estop` (std_srvs/Trigger) and by true on the topic `estop` (std_msgs/Bool, reliable or best
    effort); it may be called twice for one message."""

    def __init__(self, node: Node, trip: Callable[[str], None]) -> None:
        self._node, self._trip = node, trip
        self._service = node.create_service(Trigger, "estop", self._on_service)
        self._close = listen(node, Bool, "estop", self._on_topic, ANYBODY)

    def close(self) -> None:
        self._node.destroy_service(self._service)
        self._close()

    def _on_service(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._trip("the service estop was called")
        response.success, response.message = True, "stopped; call reset_fault to go on"
        return response

    def _on_topic(self, message: Bool) -> None:
        if message.data:
            self._trip("true came on the topic estop")
