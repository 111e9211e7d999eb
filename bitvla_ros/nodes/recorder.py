"""A node that has one instruction carried out in a graph with our controller and a simulator, and keeps what it saw."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.srv import GetState
from rclpy.action import ActionClient
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.evaluation.proofs.stopping import Target
from bitvla_ros.msg import ActionChunk, EndEffectorCommand, SimulationState
from bitvla_ros.srv import ResetEpisode

from .conversions import chunk_from_msg, duration_to_ns, ns_to_duration, pose_from_msg, stamp_to_ns
from .episode import Episode
from .events import PublisherEventCallbacks
from .log_folder import log_arguments

# More messages than an episode has may wait, so that a slow recorder loses none.
DEPTH = 2000
RELIABLE = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)

PATIENCE = 60.0  # s, for anything that a graph has to answer
ASK_AGAIN = PATIENCE / 3
AT_REST = 0.2  # s without a setpoint

OUTCOMES = ("success", "time_limit", "cancelled", "fault")  # by the numbers of action/ExecuteInstruction.action


class GraphError(Exception):
    """The graph does not do what it should: which part, and what it said."""


@dataclass(frozen=True)
class Progress:
    """Of a running goal. chunk_age, latency: s. silence: s since the last tick of the simulation."""

    step: int = 0
    chunk_age: float = 0.0
    latency: float = 0.0
    silence: float = 0.0


OnProgress = Callable[[Progress, Episode], None]
Entered = TypeVar("Entered", bound="Recorder")


class Recorder(Node):
    """Use as a context manager; it spins in a thread of its own, while `wait_until_active` and `run` are called from any other.

    cameras: roles to record. lockstep: the simulator's streams are reliable, and none may be lost.
    check: called while waiting; raises where waiting has become pointless.
    """

    def __init__(self, cameras: Sequence[str], *, lockstep: bool, check: Callable[[], None]) -> None:
        context = Context()
        rclpy.init(args=log_arguments(), context=context, signal_handler_options=SignalHandlerOptions.NO)
        super().__init__("recorder", context=context)
        self._check, self._lockstep = check, lockstep
        self._health: dict[str, tuple[bytes, str]] = {}
        self._progress = Progress()
        self._cameras = tuple(cameras)
        self._episode: Episode | None = None  # only replaced, never changed, by the caller's thread
        self._newest = 0  # stamp of the newest tick, to see whether anything happens
        self._newest_tick = 0
        self._led = float("-inf")  # when the last setpoint came, s of the steady clock
        images = LATCHED if lockstep else BEST_EFFORT
        for role in self._cameras:
            self.create_subscription(Image, f"camera/{role}/image_raw", partial(self._on_image, role), images)
        self.create_subscription(SimulationState, "simulation_state", self._on_state, LATCHED)
        self._chunks = self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, RELIABLE)
        commands = self.create_subscription(EndEffectorCommand, "end_effector_command", self._on_command, RELIABLE)
        targets = self.create_subscription(PoseStamped, "target_pose", self._on_led, RELIABLE)
        self._commands = (commands, targets)  # the controller publishes on one of them
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._reset = self.create_client(ResetEpisode, "reset_episode")
        self._clear = self.create_client(Trigger, "reset_fault")
        self._enable = self.create_client(SetBool, "enable")
        self._execute = ActionClient(self, ExecuteInstruction, "execute_instruction", callback_group=ReentrantCallbackGroup())
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self: Entered) -> Entered:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(5.0)
        self.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def wait_until_active(self, name: str, patience: float) -> None:
        """Until this lifecycle node is active. Raises GraphError when it says that it cannot, or after `patience` s."""
        client = self.create_client(GetState, f"{name}/get_state")
        began, state = time.monotonic(), "not there"
        try:
            while state != "active":
                level, message = self._health.get(name, (DiagnosticStatus.OK, ""))
                if level == DiagnosticStatus.ERROR:
                    raise GraphError(f"the {name} node does not become active: {message}")
                if time.monotonic() - began > patience:
                    raise GraphError(f"the {name} node is not active after {patience:g} s: it is {state}")
                if client.service_is_ready():
                    answer = client.call_async(GetState.Request())
                    if self._until(answer.done, 2.0):
                        state = answer.result().current_state.label
                self._until(lambda: False, 0.05)
        finally:
            self.destroy_client(client)

    def forget(self, name: str) -> None:
        """Another node takes this name."""
        self._health.pop(name, None)

    def run(self, task: int, seed: int, *, steps: int | None, step_duration: int, on_progress: OnProgress) -> Episode:
        """Reset the simulator, have its instruction carried out, and return what was seen.

        steps: limit of control steps, None for the suite's. step_duration: ns. Raises GraphError where the graph refuses or stands still.
        """
        recording = Episode("", 0, images={role: {} for role in self._cameras}, step_duration=step_duration)
        self._episode = recording
        answer = self.reset(task, seed)
        limit = min(steps or answer.step_limit, answer.step_limit)
        recording.instruction, recording.step_limit = answer.instruction, limit
        self._progress = Progress()
        handle = self.send_goal(answer.instruction, limit * step_duration, self._on_feedback)
        done = handle.get_result_async()
        began = time.monotonic()
        newest, since = -1, began
        while not self._until(done.done, 0.05):
            if self._newest != newest:
                newest, since = self._newest, time.monotonic()
            silence = time.monotonic() - since
            on_progress(replace(self._progress, silence=silence), recording)
            if silence > 90.0:
                raise GraphError(f"no tick of the simulation for 90 s; the nodes say: {self.health()}")
        result = done.result().result
        recording.seconds = time.monotonic() - began
        recording.outcome, recording.reason = OUTCOMES[result.outcome], result.reason
        recording.steps, recording.accepted = result.steps, result.chunks
        # The last messages may still be on their way.
        self._until(lambda: recording.complete, 2.0)
        self._until(lambda: self._newest_tick > max((command.tick for command in recording.commands), default=0), 2.0)
        self._until(lambda: all(self._newest in images for images in recording.images.values()), 2.0)
        if recording.outcome == "fault" and self._lockstep:
            # The ticks of the stop: an episode that began before its hold would be given the rest of it.
            self._until(lambda: bool(recording.commands) and recording.commands[-1].hold, 2.0)
        self._episode = None
        recording.states = {stamp: state for stamp, state in list(recording.states.items()) if state.tick >= answer.tick}
        on_progress(replace(self._progress, step=result.steps), recording)
        return recording

    def reset(self, task: int, seed: int) -> ResetEpisode.Response:
        """Begin an episode, where an arm that is led by setpoints has come to rest: one that leaps while it stops is a fault."""
        if not self._until(lambda: time.monotonic() - self._led > AT_REST, PATIENCE):
            raise GraphError(f"setpoints still lead the arm, so no episode can begin; the nodes say: {self.health()}")
        request = ResetEpisode.Request(task=task, seed=seed)
        answer = self._ask("reset_episode", self._reset.service_is_ready, lambda: self._reset.call_async(request))
        if not answer.success:
            raise GraphError(f"the simulation refuses to begin task {task}: {answer.message}")
        return answer

    def send_goal(self, instruction: str, time_limit: int, on_feedback: Callable[[Any], None] | None = None) -> Any:
        """The goal's handle; it is sent when chunks and commands would be heard. time_limit: ns."""
        self._until(lambda: self._hears_all, PATIENCE)  # discovery takes up to 3 s; the controller may be done with it sooner
        goal = ExecuteInstruction.Goal(instruction=instruction, time_limit=ns_to_duration(time_limit))
        send = partial(self._execute.send_goal_async, goal, feedback_callback=on_feedback)
        handle = self._ask("execute_instruction", self._execute.server_is_ready, send)
        if not handle.accepted:
            raise GraphError(f"the controller refuses the goal; the nodes say: {self.health()}")
        return handle

    def reset_fault(self) -> None:
        """Clear the fault that the controller has latched, so that it carries out the next instruction."""
        self._ask("reset_fault", self._clear.service_is_ready, lambda: self._clear.call_async(Trigger.Request()))

    def enable(self, on: bool = True) -> SetBool.Response:
        """Ask the controller for live mode, or end it."""
        return self._ask("enable", self._enable.service_is_ready, lambda: self._enable.call_async(SetBool.Request(data=on)))

    def go_live(self, patience: float = 30.0) -> None:
        """Until the controller is in live mode. Raises GraphError with what it says against it."""
        answer = self.enable()
        began = time.monotonic()
        while not answer.success:
            if time.monotonic() - began > patience:
                raise GraphError(f"no live mode within {patience:g} s: {answer.message}")
            self._until(lambda: False, 0.05)
            answer = self.enable()

    def answer(self, future: Future, what: str) -> Any:
        """Its result. Raises GraphError when it does not come."""
        if not self._until(future.done, PATIENCE):
            raise GraphError(f"{what} is not answered within {PATIENCE:g} s; the nodes say: {self.health()}")
        return future.result()

    def passing_publisher(self, kind: type, topic: str, qos: QoSProfile) -> Publisher:
        """One that may be destroyed while the node spins: it has no events for the executor to wait for."""
        return self.create_publisher(kind, topic, qos, event_callbacks=PublisherEventCallbacks(use_default_callbacks=False))

    def health(self) -> str:
        """What the nodes last said on /diagnostics."""
        return "; ".join(f"{name}: {message}" for name, (_, message) in sorted(self._health.items())) or "nothing"

    # Waiting, always with an eye on the processes.

    def _until(self, condition: Callable[[], bool], patience: float) -> bool:
        """Whether the condition came to hold within `patience` s."""
        began = time.monotonic()
        while not condition():
            self._check()
            if time.monotonic() - began > patience:
                return False
            time.sleep(0.01)
        return True

    def _ask(self, what: str, is_ready: Callable[[], bool], send: Callable[[], Future]) -> Any:
        """The answer of a server. One that has not met a new client entirely loses its request now and then: it is sent again."""
        if not self._until(is_ready, PATIENCE):
            raise GraphError(f"nobody offers {what}; the nodes say: {self.health()}")
        future = send()
        if not self._until(future.done, ASK_AGAIN):
            future = send()
        return self.answer(future, what)

    @property
    def _hears_all(self) -> bool:
        """Discovery has found a publisher of both. Counted by the node: a subscription of Humble's does not count them."""
        counts = [self.count_publishers(topic.topic_name) for topic in (self._chunks, *self._commands)]
        return counts[0] > 0 and any(counts[1:])

    # Callbacks, in the spinning thread. They only keep what arrives.

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def _on_image(self, role: str, image: Image) -> None:
        if (episode := self._episode) is not None:
            episode.images[role][stamp_to_ns(image.header.stamp)] = image

    def _on_state(self, state: SimulationState) -> None:
        self._newest, self._newest_tick = stamp_to_ns(state.header.stamp), state.tick
        if (episode := self._episode) is not None:
            episode.states[self._newest] = state

    def _on_chunk(self, chunk: ActionChunk) -> None:
        if (episode := self._episode) is not None:
            there = chunk.observation_stamp if self._lockstep else chunk.header.stamp
            episode.chunks.append((stamp_to_ns(there), chunk_from_msg(chunk)))

    def _on_command(self, command: EndEffectorCommand) -> None:
        if (episode := self._episode) is not None:
            episode.commands.append(command)

    def _on_led(self, pose: PoseStamped) -> None:
        self._led = time.monotonic()
        self._on_target(pose)

    def _on_target(self, pose: PoseStamped) -> None:
        if (episode := self._episode) is not None:
            episode.targets.append(target(pose, time.monotonic_ns()))

    def _on_feedback(self, message: Any) -> None:
        feedback = message.feedback
        self._progress = Progress(feedback.step, duration_to_ns(feedback.chunk_age) / 1e9, duration_to_ns(feedback.inference_latency) / 1e9)

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self._health[status.name] = (status.level, status.message)


def target(pose: PoseStamped, arrival: int) -> Target:
    """arrival: ns of the steady clock."""
    return Target(arrival, stamp_to_ns(pose.header.stamp), *pose_from_msg(pose))
