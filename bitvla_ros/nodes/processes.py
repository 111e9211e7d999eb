"""Nodes as processes of their own, in a ROS graph that nobody else sees, and that never outlives whoever started it.

The graph gets a free domain with discovery on this machine only. Every node leads a process group, writes to a log file, and is
stopped by SIGINT, then SIGTERM, then SIGKILL of its group; the kernel kills it if this process dies first. This file does not
import rclpy: a Graph is entered before rclpy.init, so that this process joins the same domain.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

DOMAINS = range(1, 102)  # above 101 the ports run into Linux's ephemeral range (docs.ros.org, "The ROS_DOMAIN_ID")
DISCOVERY = "LOCALHOST"  # range of a graph (docs.ros.org, "Improved Dynamic Discovery")
RANGE, LOCALHOST_ONLY, PEERS = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS"
RANGES = ("OFF", "LOCALHOST", "SUBNET", "SYSTEM_DEFAULT")
READ = {"humble": {LOCALHOST_ONLY}, "iron": {LOCALHOST_ONLY, RANGE}, "jazzy": {LOCALHOST_ONLY, RANGE}}  # by release; newer ones: RANGE
PATIENCE = ((signal.SIGINT, 5.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))  # what a node is sent, and how long it has, s


class NodeDied(Exception):
    """A node ended although it should run; the message holds the end of its log."""


class NoDomain(Exception):
    """Every ROS domain is in use."""


@dataclass
class Process:
    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """The end of the log."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(f"    {line}" for line in text[-lines:]) or "    (its log is empty)"


class Graph:
    """A context manager: on entering it reserves a domain and sets this process's environment to it, on leaving it stops every node.

    logs: directory for NAME.log. domain: a ROS domain id, or None for a free one.
    """

    def __init__(self, logs: Path, domain: int | None = None) -> None:
        self.logs = logs
        self.domain = domain
        self.processes: dict[str, Process] = {}
        self._reserved: IO[bytes] | None = None
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> Graph:
        self.logs.mkdir(parents=True, exist_ok=True)
        if self.domain is None:
            self.domain, self._reserved = reserve_domain()
        for name, value in isolation(self.domain).items():
            self._environment[name] = os.environ.get(name)
            os.environ[name] = value
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            for name, value in self._environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            if self._reserved is not None:
                self._reserved.close()

    def start(self, name: str, module: str, parameters: Mapping[str, Any] | None = None, *arguments: str) -> Process:
        """Run `python -m module --ros-args -p name:=value ...` and return at once. name: of the process and its log."""
        command = [sys.executable, "-m", module, *arguments, "--ros-args"]
        for key, value in (parameters or {}).items():
            command += ["-p", f"{key}:={parameter(value)}"]
        log = self.logs / f"{name}.log"
        with open(log, "wb") as output:
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=_die_with_parent, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self.processes[name] = Process(name, popen, log)
        return self.processes[name]

    def check(self) -> None:
        """Raises NodeDied if a node has ended."""
        for process in self.processes.values():
            code = process.popen.poll()
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise NodeDied(f"the {process.name} node {how}; the end of {process.log}:\n{process.tail()}")

    def stop(self, *names: str) -> None:
        """Stop these nodes, or all: nicely, then firmly. Returns when they are gone."""
        stopping = [self.processes.pop(name) for name in (names or tuple(self.processes))]
        for number, patience in PATIENCE:
            deadline = time.monotonic() + patience
            for process in stopping:
                # The group, also where its leader is gone already: a node's children must not stay behind.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.popen.pid, number)
            while stopping and time.monotonic() < deadline:
                stopping = [process for process in stopping if not _gone(process)]
                time.sleep(0.02)


def reserve_domain() -> tuple[int, IO[bytes]]:
    """A ROS domain that nobody on this machine uses: no socket on its discovery ports, and a lock that says it is ours.

    Returns the domain id and the lock; closing it gives the domain back. Raises NoDomain.
    """
    first = os.getpid() % len(DOMAINS)
    for domain in (*DOMAINS[first:], *DOMAINS[:first]):
        path = Path(tempfile.gettempdir()) / f"bitvla_ros_domain_{domain}.lock"
        try:
            lock = open(path, "ab")  # noqa: SIM115
        except OSError:  # another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        if _unused(domain):
            return domain, lock
        lock.close()
    raise NoDomain(f"all ROS domains from {DOMAINS[0]} to {DOMAINS[-1]} are in use on this machine; stop some ROS nodes")


def isolation(domain: int) -> dict[str, str]:
    """Environment of an isolated graph. Empty is what stands for unset: the graph takes no setting of its surroundings."""
    alone = os.environ.get("ROS_DISTRO") == "humble" and DISCOVERY == "LOCALHOST"
    return {"ROS_DOMAIN_ID": str(domain), RANGE: DISCOVERY, LOCALHOST_ONLY: "1" if alone else "", PEERS: ""}


def discovery_range(environment: Mapping[str, str]) -> str:
    """OFF, LOCALHOST, SUBNET or SYSTEM_DEFAULT: what a process of the release ROS_DISTRO takes from its environment.

    ROS_LOCALHOST_ONLY overrules the range where a release reads both. An unknown range counts as LOCALHOST.
    """
    read = READ.get(environment.get("ROS_DISTRO", ""), {RANGE})
    if LOCALHOST_ONLY in read and environment.get(LOCALHOST_ONLY, "").startswith("1"):
        return "LOCALHOST"
    given = environment.get(RANGE, "") if RANGE in read else ""
    return (given if given in RANGES else "LOCALHOST") if given else "SUBNET"


def parameter(value: object) -> str:
    """A value as ROS's command line reads it (YAML)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(parameter(item) for item in value) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


def _unused(domain: int) -> bool:
    """Nobody listens where the first participants of the domain would (RTPS 2.5, 9.6.1.1: 7400 + 250 d + 10 + 2 p)."""
    for port in (7400 + 250 * domain + offset for offset in (0, 10, 12)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True


def _gone(process: Process) -> bool:
    """The node has ended and so has all of its group."""
    if process.popen.poll() is None:
        return False
    try:
        os.killpg(process.popen.pid, 0)
    except (ProcessLookupError, PermissionError):
        return True
    return False


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)


def _die_with_parent() -> None:
    """Runs in the child: SIGKILL when the thread that started it ends, so start nodes from the main thread."""
    if _LIBC is not None:
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
