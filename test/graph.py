"""A real ROS graph for a test: nodes as processes in a domain of their own, and a node of the test's own that listens and talks.

    with TestGraph(tmp_path) as graph:
        graph.start("simulation", "bitvla_ros.nodes.simulation", {"suite": "tabletop_object", "cameras": ["scene"]})
        states = graph.collect(SimulationState, "simulation_state", LATCHED)
        graph.wait(lambda: states, "a tick")

Everything waits on events with a limit; a node that dies fails the test at once with the end of its log. Import rclpy only after entering.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitvla_ros.nodes.processes import Graph

ASK_AGAIN = 1 / 3  # of the time that an answer may take


class TestGraph(Graph):
    """A Graph with an rclpy context and a node, `node`, in this process."""

    __test__ = False

    def __init__(self, logs: Path) -> None:
        super().__init__(logs)
        self.expected_dead: set[str] = set()
        self._clients: dict[str, Any] = {}

    def __enter__(self) -> TestGraph:
        super().__enter__()
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("test", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.executor.shutdown(timeout_sec=1.0)
            self.node.destroy_node()
            self.context.try_shutdown()
        finally:
            super().__exit__(*error)

    def collect(self, kind: Any, topic: str, qos: Any) -> list[Any]:
        """Subscribe; every message is appended to the list returned."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """Spin until condition() is true, and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            self.executor.spin_once(timeout_sec=0.05)
            self.check()
            if time.monotonic() > deadline:
                logs = "\n".join(f"{process.name}:\n{process.tail(8)}" for process in self.processes.values())
                raise AssertionError(f"no {what} within {seconds:g} s\n{logs}")
        return value

    def spin(self, seconds: float) -> None:
        """Listen for a while: to see that something does not happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def result(self, future: Any, what: str, seconds: float = 30.0) -> Any:
        """Spin until the future is done, and return its result."""
        self.wait(future.done, what, seconds)
        return future.result()

    def call(self, kind: Any, service: str, request: Any, seconds: float = 30.0) -> Any:
        """Call a service and return its response."""
        client = self._client(service, lambda: self.node.create_client(kind, service), "service_is_ready", seconds)
        return self._ask(lambda: client.call_async(request), f"response of {service}", seconds)

    def send_goal(self, instruction: str, time_limit: float = 0.0, feedback: Callable[[Any], None] | None = None) -> Any:
        """Send an ExecuteInstruction goal and return its handle, accepted or not."""
        from rclpy.action import ActionClient

        from bitvla_ros.action import ExecuteInstruction
        from bitvla_ros.nodes.conversions import ns_to_duration

        name = "execute_instruction"
        client = self._client(name, lambda: ActionClient(self.node, ExecuteInstruction, name), "server_is_ready", 30.0)
        goal = ExecuteInstruction.Goal(instruction=instruction, time_limit=ns_to_duration(round(time_limit * 1e9)))
        return self._ask(lambda: client.send_goal_async(goal, feedback_callback=feedback), "answer to the goal")

    def _ask(self, send: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """As in nodes.recorder: what a new client sends first is lost now and then (2 of 1,050), and comes through when sent again. But not
        soon: a server that is at work on the first would answer the second with a refusal."""
        future = send()
        again = time.monotonic() + ASK_AGAIN * seconds
        self.wait(lambda: future.done() or time.monotonic() > again, what, seconds)
        return self.result(future if future.done() else send(), what, seconds)

    def _client(self, name: str, make: Callable[[], Any], is_ready: str, seconds: float) -> Any:
        """The client of this name, kept between calls, when its server is there."""
        client = self._clients.pop(name, None) or make()  # kept again once it is known to work
        renewed = time.monotonic()

        def ready() -> bool:
            nonlocal client, renewed
            if time.monotonic() - renewed > 10.0:  # seen once in some 300 calls: a client that never found its service, a fresh one did
                client.destroy()
                client, renewed = make(), time.monotonic()
            return bool(getattr(client, is_ready)())

        self.wait(ready, f"server of {name}", seconds)
        self._clients[name] = client
        return client

    def outcome(self, handle: Any, seconds: float = 60.0) -> Any:
        """Wait for the goal's result."""
        return self.result(handle.get_result_async(), "result of the goal", seconds).result

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a node a signal; from here on it may be dead."""
        self.expected_dead.add(name)
        os.killpg(self.processes[name].popen.pid, number)

    def check(self) -> None:
        held = {name: self.processes.pop(name) for name in self.expected_dead if name in self.processes}
        try:
            super().check()
        finally:
            self.processes.update(held)
