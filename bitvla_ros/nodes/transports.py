"""Fast DDS without its shared memory, for what must not wait.

When a participant appears, everybody who sends to it through shared memory first looks whether its port is healthy. That look takes a
third of a second or more, in which the sender sends nothing to anybody, assertions of liveliness included (eProsima/Fast-DDS issue
6535). So `ros2 topic echo` beside a moving arm could stop it. The controller, and whoever publishes chunks, therefore speak UDP alone.
Images are too big for that; config/fastdds.xml gives those who publish them shared memory that holds them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from .processes import LOCALHOST_ONLY, PEERS, RANGE, discovery_range

_TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
_PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # of Fast DDS 3 and 2
_WITH_FAST_DDS_2 = ("humble", "iron", "jazzy")
FAST_DDS = "rmw_fastrtps"  # the default, and how its variants begin
IMAGES = "fastdds.xml"  # in config/
LOCALHOST = "fastdds_localhost.xml"  # beside this file


@contextlib.contextmanager
def chosen() -> Iterator[None]:
    """Around a process's life: its first participant makes Fast DDS read the profiles, for all of them.

    The profile for images would give every participant shared memory, so it is put aside; whoever receives needs none. With the
    discovery range LOCALHOST, rmw_fastrtps would do so as well: ours replaces what it sets, and leaves the choice to udp_alone().
    A profile of the user's own stays in force. The choice is the participant's from Fast DDS 2.6.7 on.
    """
    changes: dict[str, str | None] = {}
    if _profile() in ("", IMAGES):
        changes = dict.fromkeys(_PROFILES)
        fast_dds = os.environ.get("RMW_IMPLEMENTATION", FAST_DDS).startswith(FAST_DDS)  # no other reads our profile in place of the range
        if fast_dds and discovery_range(os.environ) == "LOCALHOST" and not os.environ.get(PEERS):
            changes |= dict.fromkeys(read_by_fast_dds(), str(Path(__file__).with_name(LOCALHOST)))
            changes |= {RANGE: "SYSTEM_DEFAULT", LOCALHOST_ONLY: None, _TRANSPORTS: "SHM"}
    with _environment(changes):
        yield


@contextlib.contextmanager
def udp_alone() -> Iterator[None]:
    """Participants that are created within use no shared memory, unless a profile of the user's own gives it to them."""
    with _environment({_TRANSPORTS: "NONE" if _profile() == LOCALHOST else "UDPv4"}):
        yield


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


def read_by_fast_dds() -> tuple[str, ...]:
    """The variable that names its file of profiles; both where its version is not known, since version 3 warns of version 2's."""
    distro, (of_3, of_2) = os.environ.get("ROS_DISTRO"), _PROFILES
    if distro in _WITH_FAST_DDS_2 or (not distro and _has_wheel("ros-fastrtps")):
        return (of_2,)
    return (of_3,) if distro or _has_wheel("ros-fastdds") else _PROFILES


def _has_wheel(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _profile() -> str:
    """Name of the file with profiles, if there is one."""
    return next((Path(os.environ[name]).name for name in _PROFILES if os.environ.get(name)), "")


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
