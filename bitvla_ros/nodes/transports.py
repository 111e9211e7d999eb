"""Fast DDS without its shared memory, for what must not wait.

When a participant appears, everybody who sends to it through shared memory first looks whether its port is healthy. That look takes a
third of a second or more, in which the sender sends nothing to anybody, assertions of liveliness included (eProsima/Fast-DDS issue
6535). So `ros2 topic echo` beside a moving arm could stop it. The controller, and whoever publishes chunks, therefore speak UDP alone.
Images are too big for that; config/fastdds.xml gives shared memory that holds them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

_TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
_PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # of Fast DDS 3 and 2
OURS = "fastdds.xml"  # in config/


@contextlib.contextmanager
def udp_alone() -> Iterator[None]:
    """Participants that are created within use no shared memory, unless ROS_AUTOMATIC_DISCOVERY_RANGE is LOCALHOST: then rmw_fastrtps
    itself chooses shared memory and UDP. A profile of the user's own is left in force; ours is for images."""
    changes: dict[str, str | None] = {_TRANSPORTS: "UDPv4"}
    changes |= {name: None for name in _PROFILES if Path(os.environ.get(name, "")).name == OURS}
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


class Sender:
    """A node that only publishes, as a participant of its own, without shared memory. beside: a node in the same graph."""

    def __init__(self, beside: Node, name: str, args: Sequence[str] | None = None) -> None:
        """args: of the process, for its enclave; None: sys.argv."""
        self._context = Context()
        domain = beside.context.get_domain_id()
        rclpy.init(args=args, context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        with udp_alone():
            self.node = Node(
                name, context=self._context, namespace=beside.get_namespace(), use_global_arguments=False, enable_rosout=False,
                start_parameter_services=False, parameter_overrides=[Parameter("start_type_description_service", value=False)],
            )  # fmt: skip

    def close(self) -> None:
        self.node.destroy_node()
        self._context.try_shutdown()


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
