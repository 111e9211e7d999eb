"""Publishers and subscriptions of other nodes whose QoS does not fit ours, so that no message passes: to be shown on /diagnostics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

from rclpy.duration import Infinite
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from .node_names import UNKNOWN, owner

_OF_ROS = ("/parameter_events", "/rosout")


class Mismatches:
    """Looks at the subscriptions and publishers of some nodes. `found`: one line for each whose QoS does not fit, with what to do.

    A publisher is heard where one of our subscriptions of its topic fits. Who else is there is asked only when their number has changed
    or one of them has no name yet: that takes half a millisecond a topic.
    """

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes
        self._seen: dict[tuple[str, bool], tuple[object, list[str]]] = {}
        self.found: list[str] = []

    def look(self) -> None:
        """Take account of who has come and gone."""
        node, seen = self._nodes[0], {}
        for topic, hearing, ours in self._endpoints():
            known, endpoints = self._seen.get((topic, hearing)), [id(endpoint) for endpoint in ours]
            count = node.count_publishers(topic) if hearing else node.count_subscribers(topic)
            if known is None or known[0] != (count, endpoints) or any(UNKNOWN in line for line in known[1]):
                others = node.get_publishers_info_by_topic(topic) if hearing else node.get_subscriptions_info_by_topic(topic)
                profiles = [_as_discovered(endpoint.qos_profile) for endpoint in ours]
                # Counted in what was looked at: between two questions one may come or go.
                known = (len(others), endpoints), list(_misfits(topic, hearing, profiles, others))
            seen[topic, hearing] = known
        self._seen = seen
        self.found = [line for _, lines in seen.values() for line in lines]

    def _endpoints(self) -> Iterator[tuple[str, bool, list[Any]]]:
        """Topic, whether they are subscriptions, and ours."""
        ours: dict[tuple[str, bool], list[Any]] = {}
        for node in self._nodes:
            for hearing, endpoints in ((True, node.subscriptions), (False, node.publishers)):
                for endpoint in endpoints:
                    ours.setdefault((endpoint.topic_name, hearing), []).append(endpoint)
        return ((topic, hearing, found) for (topic, hearing), found in ours.items() if topic not in _OF_ROS)


def _misfits(topic: str, hearing: bool, ours: Sequence[QoSProfile], others: Sequence[Any]) -> Iterator[str]:
    """others: what the graph knows of the endpoints at the other end."""
    for info in others:
        pairs = [(info.qos_profile, profile) if hearing else (profile, info.qos_profile) for profile in ours]
        checked = [qos_check_compatible(*pair) for pair in pairs]
        if all(compatible == QoSCompatibility.ERROR for compatible, _ in checked):
            reasons = [part.removeprefix("ERROR: ").strip() for part in checked[-1][1].split(";")]
            who, why = owner(info), ", ".join(filter(None, reasons)).lower()
            what = f"nothing comes from {who}" if hearing else f"{who} hears nothing"
            remedy = f"let it offer {_words(ours[-1])}" if hearing else f"let it ask for no more than {_words(ours[-1])}"
            yield f"QoS mismatch on {topic}: {what} ({why}); {remedy}"


def _as_discovered(profile: QoSProfile) -> QoSProfile:
    """As others see it: a time of 0 stands for none."""
    seen = copy(profile)
    for name in ("deadline", "liveliness_lease_duration"):
        if getattr(seen, name).nanoseconds == 0:
            setattr(seen, name, Infinite)
    return seen


def _words(profile: QoSProfile) -> str:
    words = [profile.reliability.name, profile.durability.name]
    lease = profile.liveliness_lease_duration
    if lease < Infinite:
        words.append(f"{profile.liveliness.name} liveliness with a lease of {lease.nanoseconds / 1e6:g} ms")
    return ", ".join(words).lower().replace("_", " ")
