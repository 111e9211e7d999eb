"""/clock has one source. A simulator in lockstep becomes it, unless another already is."""

from __future__ import annotations

import time
from collections.abc import Set

from rclpy.node import Node
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock

from .node_names import UNKNOWN, owner
from .polled import Polled
from .qos import LATCHED, SENSOR

TOPIC = "/clock"
SETTLED = 4.0  # s after which a new node knows the others: mostly 0.1, but what it misses at first is announced again after 3
# How long a publisher that is listed may stay silent until it counts as gone, s: that of a killed process is listed for another 20 s. Of
# two simulators that start together one waits less than the other, and is heard by it.
PATIENCE, LONGER = 3.0, 6.0
_POLL = 0.02  # s

Gid = tuple[int, ...]


def claim_clock(node: Node, created: float) -> Publisher:
    """The publisher of /clock, where no other node says the time. created: when this one was, on time.monotonic(), s.

    Blocks until SETTLED after that, and for LONGER at most where another publisher is listed. Raises ValueError where one runs."""
    before = _listed(node).keys()
    publisher = node.create_publisher(Clock, TOPIC, LATCHED)
    own = _appeared(node, before)
    # What a source that waits has said last comes to a latched subscription; one that is not latched is heard while it runs.
    ears = [Polled(node, Clock, TOPIC, lambda _: None, qos) for qos in (LATCHED, SENSOR)]
    began, heard = time.monotonic(), False
    try:
        while (others := _others(node, own)) or time.monotonic() - created < SETTLED:
            heard = heard or (bool(others) and any(True for ear in ears for _ in ear.take()))
            known = UNKNOWN not in others.values() or time.monotonic() - created >= LONGER
            if others and heard and known:
                raise ValueError(
                    f"{TOPIC} is published by {', '.join(sorted(set(others.values())))}, and time can have one source: stop that, "
                    "give this graph another ROS_DOMAIN_ID, or take mode:=realtime"
                )
            if others and not heard and time.monotonic() - began > (LONGER if min(others) < own else PATIENCE):
                node.get_logger().warning(f"{TOPIC} has another publisher, which says nothing: it is taken for gone")
                break
            time.sleep(_POLL)
    except ValueError:
        node.destroy_publisher(publisher)
        raise
    finally:
        for ear in ears:
            ear.close()
    return publisher


def sources(node: Node) -> int:
    """How many publish /clock."""
    return int(node.count_publishers(TOPIC))


def _appeared(node: Node, before: Set[Gid]) -> Gid:
    """The id of a publisher that was just created; the graph lists it at once, or soon."""
    deadline = time.monotonic() + SETTLED
    while not (new := _listed(node).keys() - before) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return max(new, default=())


def _others(node: Node, own: Gid) -> dict[Gid, str]:
    return {gid: name for gid, name in _listed(node).items() if gid != own}


def _listed(node: Node) -> dict[Gid, str]:
    """The node of every publisher, by the publisher's id."""
    found = node.get_publishers_info_by_topic(TOPIC)
    return {tuple(info.endpoint_gid): owner(info) for info in found}
