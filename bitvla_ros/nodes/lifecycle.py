"""The base of our lifecycle nodes, and how a node's process runs and ends."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rclpy.timer import Timer

from .diagnostics import ERROR, OK, Diagnostics, Status
from .log_folder import log_arguments
from .parameters import Parameter, ParameterError, Parameters

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

ANSWERS = 0.2  # s for which a deactivated node still answers before its process ends

AUTOSTART = Parameter("autostart", True, "Configure and activate the node when it starts")

EXIT_ON_FAILURE = "--exit-on-failure"  # command line: the process ends where its node cannot be configured or activated
EXIT_NOT_STARTED = os.EX_CONFIG  # its exit code then: starting it again would not help

# Errors that explain themselves: bad values, files and packages. Anything else is a bug and is logged with its traceback.
EXPECTED = (ValueError, OSError, ImportError)

# What brings a node back to where it reads its parameters.
_BACK = {
    "configuring": "wait until it is configured, then clean up the node",
    "inactive": "clean up the node",
    "active": "deactivate and clean up the node",
}


class ManagedNode(LifecycleNode):
    """A lifecycle node whose transitions fail loudly and leave nothing half-done.

    Override configure, activate, deactivate, cleanup and status. An exception in configure or activate is logged and shown on
    /diagnostics, what had begun is undone with deactivate or cleanup, and the transition fails, so the node can be put right
    and configured again. deactivate and cleanup must therefore cope with a node that came half-way.

    What takes long goes into load, which runs on a thread of its own, in the state configuring: the node answers its services
    meanwhile, no other transition may begin, and whoever asked for this one gets the answer at its end.

    changeable: names of the parameters that `change` takes on while the node is configured. Any other is read in configure alone, and
    setting it in between is refused.
    """

    changeable: frozenset[str] = frozenset()

    def __init__(self, name: str, table: Sequence[Parameter], **options: Any) -> None:
        super().__init__(name, **options)
        self.parameters = Parameters(self, (AUTOSTART, *table), self._take_on)
        self.failure: str | None = None  # why the last transition failed
        self.state = "unconfigured"
        self.loading = ""  # what load loads, in words
        self.loaded: Any = None  # what it returned, for configure
        self.ending = False  # the process was told to end: what is loaded by then is not used any more
        self._configuring_since = 0.0  # s of the steady clock
        service, group = self._service_change_state, ReentrantCallbackGroup()  # while one call waits, others are answered
        self._change_state = service.callback  # rclpy's own, which makes a transition in one go
        service.callback, service.callback_group = self._on_change_state, group
        group.add_entity(service)
        self.diagnostics = Diagnostics(self, self.outlet(), self._status)

    def outlet(self) -> Node:
        """The node that publishes this one's diagnostics; asked for once."""
        return self

    def load(self, p: SimpleNamespace) -> Any:
        """Load what takes long, on a thread of its own, and return it. Changes nothing of the node: its process may end meanwhile."""

    def configure(self, p: SimpleNamespace) -> None:
        """Make what is needed, of `loaded` too. p: the checked parameters by name."""

    def activate(self) -> None:
        """Begin to work."""

    def deactivate(self) -> None:
        """Stop working."""

    def cleanup(self) -> None:
        """Free what configure loaded."""

    def change(self, p: SimpleNamespace) -> None:
        """Take on changed values of `changeable` parameters. p: as in configure. Raises ValueError where one cannot take effect now."""

    def status(self) -> Status:
        """Health of the active node."""
        return Status(OK, self.state)

    def steady_timer(self, period: float, callback: Callable[[], None]) -> Timer:
        """A timer, s, on the steady clock: for watchdogs, which must run while simulated time stands still."""
        return self.create_timer(period, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def start(self) -> None:
        """Begin to configure and activate, where the parameter autostart says so. The node has an executor already."""
        if self.get_parameter("autostart").value:
            self.executor.create_task(self._autostart)

    def rest(self) -> None:
        """Deactivate, where the node is active: the process ends."""
        if self.state == "active":
            self._undo(self.deactivate)
            self.state = "inactive"

    def stop(self) -> None:
        """Deactivate and clean up from whatever state: the process ends."""
        self.rest()
        if self.state in ("active", "inactive"):
            self._undo(self.cleanup)
        self.state = "finalized"

    # Called by rclpy.

    async def _on_change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        wanted = request.transition.label or request.transition.id
        if wanted in ("configure", Transition.TRANSITION_CONFIGURE) and self.state == "unconfigured":
            response.success = await self._configure() == SUCCESS
            return response
        return self._change_state(request, response)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        raise RuntimeError("trigger_configure() cannot wait for what is loaded: call start(), or the service change_state")

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self.activate()
        except Exception as error:
            return self._fail("activate", error, self.deactivate, "inactive")
        return self._succeed("active")

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

    async def _autostart(self) -> None:
        if await self._configure() == SUCCESS and not self.ending:
            self.trigger_activate()

    async def _configure(self) -> TransitionCallbackReturn:
        """As rclpy makes the transition, but in two goes, with the loading between them."""
        self._state_machine.trigger_transition_by_id(Transition.TRANSITION_CONFIGURE, True)
        self.state, self.failure, self._configuring_since = "configuring", None, time.monotonic()
        try:
            p = self.parameters.read()
            self.loaded = await self._load_apart(p)
            self.configure(p)
        except Exception as error:
            result = self._fail("configure", error, self.cleanup, "unconfigured")
        else:
            result = self._succeed("inactive")
        self.loaded, self.loading = None, ""
        _settle()
        self._state_machine.trigger_transition_by_label(result.to_label(), True)
        return result

    def _load_apart(self, p: SimpleNamespace) -> Future[Any]:
        future: Future[Any] = Future(executor=self.executor)
        future.add_done_callback(lambda _: None)  # a task of the executor, which wakes it

        def work() -> None:
            try:
                future.set_result(self.load(p))
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:  # a library that would end the process
                future.set_exception(RuntimeError(f"loading ended with {error!r}"))

        threading.Thread(target=work, name="loading", daemon=True).start()
        return future

    def _succeed(self, state: str) -> TransitionCallbackReturn:
        self.failure, self.state = None, state
        self.get_logger().info(state)
        return SUCCESS

    def _fail(self, what: str, error: Exception, undo: Callable[[], None], state: str) -> TransitionCallbackReturn:
        self.state = state
        self.failure = f"{what} failed: {error}" if isinstance(error, EXPECTED) else f"{what} failed: {error!r}"
        detail = "" if isinstance(error, EXPECTED) else "\n" + "".join(traceback.format_exception(error))
        self.get_logger().error(self.failure + detail)
        self._undo(undo)
        self.diagnostics.publish()
        return FAILURE

    def _take_on(self, changed: Mapping[str, Any]) -> None:
        """A parameter is about to be set. Raises ParameterError where it would have no effect."""
        if AUTOSTART.name in changed:
            raise ParameterError("autostart is read when the process starts: give it on the command line, and use the transitions now")
        if not changed or self.state == "unconfigured":
            return
        again = f"{_BACK.get(self.state, 'start the node again')}, set it, configure it again"
        fixed = [name for name in changed if name not in self.changeable]
        if fixed or self.state not in ("inactive", "active"):
            raise ParameterError(f"{', '.join(fixed or changed)}: read in configure, and the node is {self.state}: {again}")
        try:
            self.change(self.parameters.read(changed))
        except ValueError as error:
            raise ParameterError(f"{', '.join(changed)}: {error}; else {again}") from error

    def _undo(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            self.get_logger().error(traceback.format_exc())

    def _status(self) -> Status:
        if self.failure is not None:
            return Status(ERROR, self.failure, {"state": self.state})
        if self.loading:
            return Status(OK, f"loading, {time.monotonic() - self._configuring_since:.0f} s: {self.loading}", {"state": self.state})
        return self.status() if self.state == "active" else Status(OK, self.state)


def _settle() -> None:
    """What is loaded by now lives long. To look at it all again takes the garbage collector 0.15 s with torch among it, in which no thread
    of the process runs: longer than the lease of a policy that lives. So it is told not to."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def run(
    make: Callable[..., ManagedNode], args: Sequence[str] | None = None, executor: Callable[[], Executor] = SingleThreadedExecutor
) -> int:
    """Run one node until SIGINT or SIGTERM; the exit code. make: takes the node's own command-line arguments, cli_args.

    The signals only raise a flag. So the node is deactivated, and may publish a last stop, while its context is still alive, and whoever
    waits for the result of a goal gets it. What a node still loads then is not waited for: its thread ends with the process. With
    EXIT_ON_FAILURE among the arguments a transition that fails ends the process too.
    """
    ended = False
    node: ManagedNode | None = None
    arguments = list(sys.argv if args is None else args)

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        if node is not None:
            node.ending = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        rclpy.init(args=[*arguments, *log_arguments()], signal_handler_options=SignalHandlerOptions.NO)
        node = make(cli_args=parameter_rules(arguments))
    except Exception as error:  # a malformed command line or parameter file: nothing runs yet
        print(f"cannot start: {error}", file=sys.stderr)
        return EXIT_NOT_STARTED
    spinner = executor()
    spinner.add_node(node)
    try:
        node.start()
        while not ended and rclpy.ok():
            if node.failure is not None and EXIT_ON_FAILURE in arguments:
                return EXIT_NOT_STARTED
            spinner.spin_once(timeout_sec=0.1)
    finally:
        loading = node.state == "configuring"
        node.rest()
        until = time.monotonic() + ANSWERS
        while not loading and time.monotonic() < until:
            spinner.spin_once(timeout_sec=0.01)
        spinner.shutdown(timeout_sec=0.0 if loading else 1.0)
        node.stop()
        node.destroy_node()
        rclpy.try_shutdown()
    if loading:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # libraries that are still used by a thread do not survive their unloading
    return 0


def parameter_rules(arguments: Sequence[str]) -> list[str]:
    """The rules `-p NAME:=VALUE` of a command line, as a command line. As arguments of the node itself they win over every file: among the
    process's, rcl prefers a file's key /**/NODE to the key /** that it gives a rule, wherever they stand."""
    rules: list[str] = []
    given = False
    for flag, value in itertools.pairwise([*arguments, ""]):
        given = (given or flag == "--ros-args") and flag != "--"
        if given and flag in ("-p", "--param"):
            rules += ["-p", value]
    return ["--ros-args", *rules] if rules else []
