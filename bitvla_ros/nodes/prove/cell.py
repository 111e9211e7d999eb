"""A controller as a process, in live mode, and beside the observer an arm and a policy: for what a stop leaves at an arm's interface.

The arm takes poses or twists and keeps to the last one for ever, as arms without a time-out do. The policy asks for the same small
offset again and again. Both are as simple as can be, so that what arrives is the controller's doing alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import Task
from bitvla_ros.policy.chunk import ActionChunk

from ..conversions import chunk_to_msg, pose_from_msg, pose_to_msg
from ..liveliness import Pulse
from ..processes import Graph
from ..qos import CHUNK_OFFERED, COMMAND, LATCHED, SENSOR
from ..recorder import BEST_EFFORT, PATIENCE, RELIABLE, GraphError, Recorder

HOME = np.array([0.4, 0.0, 0.3])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
SPEED, ACCELERATION = 0.2, 2.0  # m/s, m/s2: the limits that are set
SILENCE = 0.4  # s without a setpoint after which the stop is over
LIMIT = 10.0  # s
ATTEMPTS = 5
GOAL = 600 * 10**9  # ns
MOVING = 0.05  # m/s
STEP = 50_000_000  # ns, a control step

SINKS: dict[str, dict[str, Any]] = {
    "pose": {"sink.kind": "pose"},
    "twist_stamped": {"sink.kind": "twist_stamped"},
    "twist": {"sink.kind": "twist", "sink.twist_frame": "tool", "sink.angular_unit": "deg"},  # as Kinova's Gen3 takes it
    "servo": {"sink.kind": "twist_stamped", "sink.topic": "servo_node/delta_twist_cmds", "sink.servo_node": "servo_node"},
}
CONTROLLER = {
    "simulator": False,
    "mode": "live",
    "time_limit": 600.0,
    "sink.frame": "base",
    "sink.silence_timeout": 0.1,
    "start_timeout": PATIENCE,
    "limits.speed": SPEED,
    "limits.acceleration": ACCELERATION,
    "limits.max_state_age": 0.5,
    "limits.liveliness_grace": 0.3,  # the policy's process is the observer's, which is busy
}
_TYPES = {"pose": PoseStamped, "twist_stamped": TwistStamped, "twist": Twist}


@dataclass
class Received:
    """Setpoints as they came to one subscriber: float64 [3] positions in m, or [6] velocities; and when, ns of the steady clock."""

    values: list[NDArray[np.float64]] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)

    def add(self, value: NDArray[np.float64]) -> None:
        self.values.append(value)
        self.arrivals.append(time.monotonic_ns())


class Cell(Recorder):
    """Use `cell(...)`. reliable, best_effort: what two subscribers of the sink's topic have received since `forget_setpoints`.

    kind, topic: of the sink's messages."""

    def __init__(self, sink: str, graph: Graph, random: np.random.Generator) -> None:
        self.graph, self.random = graph, random
        self.reliable, self.best_effort = Received(), Received()
        self.position, self._velocity = HOME.copy(), np.zeros(3)
        self.pose_is_sent = self.chunks_are_sent = True
        self.glitches = 0.0  # share of the poses that are zero
        self.success = False
        self.goal: Any = None
        self.parameters = {**CONTROLLER, **SINKS[sink]}
        self._task: Task | None = None
        self._ticks, self._result = 0, None
        super().__init__((), lockstep=False, check=graph.check)
        kind = self.parameters["sink.kind"]
        self.topic = self.parameters.get("sink.topic") or ("target_pose" if kind == "pose" else "target_twist")
        self._is_pose, self.kind = kind == "pose", _TYPES[kind]
        self.create_subscription(self.kind, self.topic, self._on_setpoint, RELIABLE)
        self.create_subscription(self.kind, self.topic, lambda message: self.best_effort.add(self._value(message)), BEST_EFFORT)
        self.create_subscription(Task, "task", self._on_task, LATCHED)
        self._pose = self.create_publisher(PoseStamped, "end_effector_pose", SENSOR)
        self._success = self.create_publisher(Bool, "success", COMMAND)
        self._button = self.create_publisher(Bool, "estop", COMMAND)
        self._stop = self.create_client(Trigger, "estop")
        self._policy: tuple[Publisher, Pulse] | None = None
        self.create_timer(0.01, self._tick)
        self.start_policy()

    # The controller's process.

    def start_controller(self) -> None:
        self.forget("controller")
        self.graph.start("controller", "bitvla_ros.nodes.controller", self.parameters)
        self.wait_until_active("controller", PATIENCE)
        self.go_live()

    def end_controller(self, number: int) -> None:
        """Send the controller's process a signal and wait for its end."""
        process = self.graph.processes.pop("controller")
        os.kill(process.popen.pid, number)
        process.popen.wait(PATIENCE)

    def transition(self, node: str, *numbers: int) -> None:
        """Have a lifecycle node make these transitions."""
        client = self.create_client(ChangeState, f"{node}/change_state")
        for number in numbers:
            request = ChangeState.Request(transition=Transition(id=number))
            if not self._ask(f"{node}/change_state", client.service_is_ready, partial(client.call_async, request)).success:
                raise GraphError(f"{node} did not make transition {number}; the nodes say: {self.health()}")
        self.destroy_client(client)

    # The policy.

    def __exit__(self, *error: Any) -> None:
        if self.has_policy:
            self.end_policy()
        super().__exit__(*error)

    def start_policy(self) -> None:
        publisher = self.passing_publisher(ActionChunkMsg, "action_chunk", CHUNK_OFFERED)
        self._policy = publisher, Pulse(publisher)

    @property
    def has_policy(self) -> bool:
        return self._policy is not None

    def end_policy(self) -> None:
        """It goes without a word, like one that was killed."""
        (publisher, pulse), self._policy = self._policy, None
        pulse.close()
        self.destroy_publisher(publisher)

    # Trials.

    def begin(self, time_limit: int = GOAL) -> None:
        """A goal; returns at a random moment while the arm moves. One that the observer's own delays end before is sent again."""
        for _ in range(ATTEMPTS):
            self.forget_setpoints()
            self.success = False
            self.send(time_limit)
            self.until(lambda: self.moving() or self.ended, "motion of the arm")
            time.sleep(float(self.random.uniform(0.0, 0.3)))
            if not self.ended:
                return
            self.reset_fault()
            self.go_live()
        raise GraphError(f"{ATTEMPTS} goals in a row ended before their stop, the last: {self.result().reason}")

    def forget_setpoints(self) -> None:
        self.reliable, self.best_effort = Received(), Received()

    def send(self, time_limit: int = GOAL) -> None:
        """A goal, whatever becomes of it."""
        self.goal = self.send_goal("go on", time_limit)
        self._result = self.goal.get_result_async()

    def result(self) -> ExecuteInstruction.Result:
        return self.answer(self._result, "result of the goal").result

    @property
    def ended(self) -> bool:
        return bool(self._result.done())

    def moving(self) -> bool:
        """The last setpoints move the arm."""
        values, arrivals = self.reliable.values[-6:], self.reliable.arrivals[-6:]
        if len(values) < 6:
            return False
        if not self._is_pose:
            return bool(np.linalg.norm(values[-1][:3]) > MOVING)
        return bool(np.linalg.norm(values[-1] - values[0]) > MOVING * (arrivals[-1] - arrivals[0]) / 1e9)

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
        if not self._until(condition, patience):
            raise GraphError(f"no {what} within {patience:g} s; the nodes say: {self.health()}")

    def until_controller_says(self, text: str) -> None:
        """On /diagnostics."""
        self.until(lambda: text in self._health.get("controller", (b"", ""))[1], f"word of the controller: {text}")

    def holds(self, condition: Callable[[], Any], patience: float) -> bool:
        """Whether the condition comes to hold within `patience` s."""
        return self._until(condition, patience)

    def problem(self) -> str | None:
        """Waits for the silence after a stop. What is wrong with the last setpoint that arrived, if anything is."""

        def silent() -> bool:
            return not self.reliable.arrivals or time.monotonic_ns() - self.reliable.arrivals[-1] > SILENCE * 1e9

        if not self._until(silent, LIMIT):
            return f"setpoints go on {LIMIT:g} s after the stop"
        for name, received in (("reliable", self.reliable), ("best-effort", self.best_effort)):
            if not self._holds(received.values):
                last = received.values[-1].round(4).tolist() if received.values else "nothing"
                return f"the last setpoint at the {name} subscriber is no hold: {last}"
        return None

    def press(self, topic: bool) -> None:
        """The e-stop: its topic, or its service."""
        if topic:
            self._button.publish(Bool(data=True))
            self.until(lambda: self.ended, "end of the goal", LIMIT)
        else:
            self._ask("estop", self._stop.service_is_ready, lambda: self._stop.call_async(Trigger.Request()))

    def hide_pose(self) -> None:
        self.pose_is_sent = False

    def cancel(self) -> None:
        self._ask("the cancel", lambda: True, self.goal.cancel_goal_async)

    @property
    def _hears_all(self) -> bool:
        return self._policy is None or self._policy[0].get_subscription_count() > 0

    def _holds(self, values: list[NDArray[np.float64]]) -> bool:
        """Zero velocity, or the same pose twice."""
        if self._is_pose:
            return len(values) > 1 and np.array_equal(values[-1], values[-2])
        return bool(values) and not values[-1].any()

    # What happens, in the spinning thread.

    def _value(self, message: Any) -> NDArray[np.float64]:
        if self._is_pose:
            return pose_from_msg(message)[0]
        twist = getattr(message, "twist", message)
        return np.array([getattr(part, axis) for part in (twist.linear, twist.angular) for axis in "xyz"])

    def _on_setpoint(self, message: Any) -> None:
        value = self._value(message)
        self.reliable.add(value)
        if self._is_pose:
            self.position = value
        else:
            self._velocity = value[:3]

    def _on_target(self, pose: PoseStamped) -> None:
        """The recorder's own subscription has no part in this."""

    def _on_task(self, task: Task) -> None:
        self._task = task

    def _tick(self) -> None:
        self._ticks += 1
        self.position = self.position + 0.01 * self._velocity
        now = self.get_clock().now().nanoseconds
        if self.pose_is_sent:
            glitch = self.random.random() < self.glitches
            self._pose.publish(pose_to_msg(np.zeros(3) if glitch else self.position, DOWN, now, "base"))
        if self._ticks % 10:
            return
        self._success.publish(Bool(data=self.success))
        if self._policy is not None and self.chunks_are_sent and self._task is not None and self._task.active:
            actions = np.zeros((8, 7), np.float32)
            actions[:, 0], actions[:, 6] = -0.6 if self.position[0] > HOME[0] else 0.6, 1.0
            chunk = ActionChunk(actions, now, STEP, frame="base", epoch=self._task.epoch)
            self._policy[0].publish(chunk_to_msg(chunk, now))


@contextlib.contextmanager
def cell(sink: str, logs: Path, random: np.random.Generator, others: Mapping[str, str] | None = None) -> Iterator[Cell]:
    """A cell whose controller is in live mode. others: further nodes, by name; the modules that start them."""
    with Graph(logs) as graph, Cell(sink, graph, random) as made:
        made.start_controller()
        for name, module in (others or {}).items():
            graph.start(name, module, {**made.parameters, "autostart": False}, "--ros-args", "-r", f"__node:={name}")
        yield made


SIGNALS = {"sigint": signal.SIGINT, "sigterm": signal.SIGTERM}
