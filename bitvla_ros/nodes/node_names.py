"""What the graph calls the nodes that own its endpoints."""

from __future__ import annotations

from typing import Any

UNKNOWN = "a node that has not said its name yet"  # it is announced after its endpoints, up to some seconds
_UNKNOWN_TO_RMW = "_NODE_NAME_UNKNOWN_"


def full_name(namespace: str, name: str) -> str:
    """As it stands in `ros2 node list`."""
    return f"{namespace.rstrip('/')}/{name}"


def owner(endpoint: Any) -> str:
    """Of a TopicEndpointInfo: its node's full name, or UNKNOWN."""
    return UNKNOWN if endpoint.node_name == _UNKNOWN_TO_RMW else full_name(endpoint.node_namespace, endpoint.node_name)
