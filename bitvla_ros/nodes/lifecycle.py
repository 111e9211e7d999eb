"""The base of our lifecycle nodes, and how a node's process runs and ends."""

from __future__ import annotations

import gc
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer

from .diagnostics import ERROR, OK, Diagnostics, Status
from .parameters import Parameter, Parameters

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

AUTOSTART = Parameter("autostart", True, "Configure and activate the node when it starts")

# Errors that explain themselves: bad values, files and packages. Anything else is a bug and is logged with its traceback.
EXPECTED = (ValueError, OSError, ImportError)


class ManagedNode(LifecycleNode):
    """A lifecycle node whose transitions fail loudly and leave nothing half-done.

    Override configure, activate, deactivate, cleanup and status. An exception in configure or activate is logged and shown on
    /diagnostics, what had begun is undone with deactivate or cleanup, and the transition fails, so the node can be put right
    and configured again. deactivate and cleanup must therefore cope with a node that came half-way.
    """

    def __init__(self, name: str, table: Sequence[Parameter], **options: Any) -> None:
        super().__init__(name, **options)
        self.parameters = Parameters(self, (AUTOSTART, *table))
        self.failure: str | None = None  # why the last transition failed
        self.state = "unconfigured"
        self.diagnostics = Diagnostics(self, self.outlet(), self._status)

    def outlet(self) -> Node:
        """The node that publishes this one's diagnostics; asked for once."""
        return self

    def configure(self, p: SimpleNamespace) -> None:
        """Load what is needed. p: the checked parameters by name."""

    def activate(self) -> None:
        """Begin to work."""

    def deactivate(self) -> None:
        """Stop working."""

    def cleanup(self) -> None:
        """Free what configure loaded."""

    def status(self) -> Status:
        """Health of the active node."""
        return Status(OK, self.state)

    def steady_timer(self, period: float, callback: Callable[[], None]) -> Timer:
        """A timer, s, on the steady clock: for watchdogs, which must run while simulated time stands still."""
        return self.create_timer(period, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def start(self) -> None:
        """Configure and activate, where the parameter autostart says so."""
        if self.get_parameter("autostart").value and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def stop(self) -> None:
        """Deactivate and clean up from whatever state: the process ends."""
        if self.state == "active":
            self._undo(self.deactivate)
        if self.state in ("active", "inactive"):
            self._undo(self.cleanup)
        self.state = "finalized"

    # Called by rclpy.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._attempt("configure", lambda: self.configure(self.parameters.read()), self.cleanup, "inactive")
        _settle()
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt("activate", self.activate, self.deactivate, "active")

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._undo(self.deactivate)
        self.state = "inactive"
        return SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._undo(self.cleanup)
        self.state = "unconfigured"
        group = self.default_callback_group  # rclpy never forgets what was destroyed: a node that goes round would grow
        group.entities = {entity for entity in group.entities if entity() is not None}
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop()
        return SUCCESS

    def _attempt(self, what: str, act: Callable[[], None], undo: Callable[[], None], then: str) -> TransitionCallbackReturn:
        try:
            act()
        except Exception as error:
            self.failure = f"{what} failed: {error}" if isinstance(error, EXPECTED) else f"{what} failed: {error!r}"
            detail = "" if isinstance(error, EXPECTED) else "\n" + traceback.format_exc()
            self.get_logger().error(self.failure + detail)
            self._undo(undo)
            self.diagnostics.publish()
            return FAILURE
        self.failure = None
        self.state = then
        self.get_logger().info(then)
        return SUCCESS

    def _undo(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            self.get_logger().error(traceback.format_exc())

    def _status(self) -> Status:
        if self.failure is not None:
            return Status(ERROR, self.failure, {"state": self.state})
        return self.status() if self.state == "active" else Status(OK, self.state)


def _settle() -> None:
    """What is loaded by now lives long. To look at it all again takes the garbage collector 0.15 s with torch among it, in which no thread
    of the process runs: longer than the lease of a policy that lives. So it is told not to."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def run(
    make: Callable[[], ManagedNode], args: Sequence[str] | None = None, executor: Callable[[], Executor] = SingleThreadedExecutor
) -> int:
    """Run one node until SIGINT or SIGTERM; the exit code.

    The signals only raise a flag. So the node is deactivated, and may publish a last stop, while its context is still alive.
    """
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        rclpy.init(args=None if args is None else list(args), signal_handler_options=SignalHandlerOptions.NO)
        node = make()
    except Exception as error:  # a malformed command line or parameter file: nothing runs yet
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    spinner = executor()
    spinner.add_node(node)
    try:
        node.start()
        while not ended and rclpy.ok():
            spinner.spin_once(timeout_sec=0.1)
    finally:
        spinner.shutdown(timeout_sec=1.0)
        node.stop()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
