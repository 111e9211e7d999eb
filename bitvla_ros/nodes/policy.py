"""The policy node: observations in, action chunks out.

Callbacks only keep the newest of everything. One thread of our own takes an observation, asks the gate, infers and publishes; nothing
queues up, and a slow network never delays the executor.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from std_msgs.msg import String

from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import Task

from ..policy.gate import MS, Gate, GateConfig, Refused
from ..policy.policy import Policy
from . import inputs, load
from .conversions import chunk_to_msg, duration_to_ns, stamp_to_ns
from .diagnostics import ERROR, OK, WARN, Status
from .events import PublisherEventCallbacks
from .frames import Frames, TfFrames
from .inputs import Inputs
from .lifecycle import ManagedNode, run
from .listening import listen
from .liveliness import Pulse
from .loading import TOPIC, announced, logged
from .missing import need
from .parameters import Parameter, ParameterError
from .qos import ANYBODY_LATCHED, CHUNK_OFFERED, LATCHED
from .schedule import Schedule
from .transports import Sender, chosen

PATIENCE = 0.1  # s without news after which the inputs are looked at all the same: a camera that died is silent
SOON = 0.005  # s after which they are looked at again where the images are of a later moment than the arm's state

PARAMETERS = (
    *load.PARAMETERS,
    Parameter("replan_interval", 0.0, "Between observations, without our controller; 0: a chunk is played to its end", "s", 0, 60),
    Parameter("max_age", 0.15, "Oldest input that is acted upon", "s", 0.001, 60),
    Parameter("max_future", 0.05, "How far ahead of this machine's clock an input's stamp may lie", "s", 0, 60),
    Parameter("max_skew", 0.1, "Between the oldest and the newest input", "s", 0, 60),
    Parameter("image_height", 0, "Expected of every camera; 0: any", "pixels", 0, 10000),
    Parameter("image_width", 0, "Expected of every camera; 0: any", "pixels", 0, 10000),
    Parameter("frozen_frames", 3, "Identical images in a row, while the arm moves, that mean a frozen camera", "", 2, 1000),
    *inputs.PARAMETERS,
)


class PolicyNode(ManagedNode):
    """A lifecycle node around one Policy.

    make_frames: where transforms come from with state_source:=tf.
    """

    def __init__(self, name: str = "policy", make_frames: Callable[[Node], Frames] = TfFrames, **options: Any) -> None:
        super().__init__(name, PARAMETERS, **options)
        self._make_frames = make_frames
        self._wake = threading.Condition()  # guards what follows
        self._news = self._stopping = False
        self._schedule: Schedule | None = None
        self._health: Status | None = None  # of the last observation; None until there was one
        self._refusals: Counter[str] = Counter()
        self._refused: object = None  # the last refusal, see _refuse
        self._reason: object = None  # why nothing is published at present
        self._last: dict[str, object] = {}
        self._sequence = 0
        self._looked_at = -1  # stamp of the newest observation that the gate has seen
        self._policy: Policy | None = None
        self._inputs: Inputs | None = None
        self._thread: threading.Thread | None = None
        self._entities: list[Callable[[], None]] = []

    def outlet(self) -> Node:
        """Publishing holds the GIL. So what waits for shared memory would hold up the pulse, which says that the policy lives."""
        self._sender = Sender(self, f"_{self.get_name()}_sender")
        return self._sender.node

    # ---- lifecycle

    def load(self, p: SimpleNamespace) -> Policy:
        """The policy that the parameters ask for. What is soon found wrong is found first."""
        if p.state_source == "tf" and self._make_frames is TfFrames:
            need("tf2_ros")
        if (p.image_height == 0) != (p.image_width == 0):
            raise ParameterError(f"image_height is {p.image_height}, image_width {p.image_width}: give both, or 0 for both")
        self.loading = f"{p.policy} {p.model}".rstrip()
        self.get_logger().info(f"loading {self.loading}")
        with announced(self._sender.node, self.resolve_topic_name(TOPIC), self.loading), logged(self.get_logger()):
            return load.load_policy(p, self.get_logger().info)

    def configure(self, p: SimpleNamespace) -> None:
        self._policy, shape = self.loaded, (p.image_height, p.image_width)
        spec = self._policy.spec
        limits = {name: round(getattr(p, name) * 1000 * MS) for name in ("max_age", "max_future", "max_skew")}
        self._gate = Gate(
            GateConfig(spec.cameras, spec.privileged, image_shape=shape if all(shape) else None, frozen_frames=p.frozen_frames, **limits)
        )
        self._p = p

    def activate(self) -> None:
        assert self._policy is not None
        self._stopping, self._schedule, self._health, self._key = False, None, None, None
        topic, events = self.resolve_topic_name("action_chunk"), PublisherEventCallbacks(use_default_callbacks=False)
        self._publisher = self._sender.node.create_publisher(ActionChunkMsg, topic, CHUNK_OFFERED, event_callbacks=events)
        self._entities.append(lambda publisher=self._publisher: self._sender.node.destroy_publisher(publisher))
        self._entities.append(Pulse(self._publisher).close)
        frames = self._make_frames(self) if self._p.state_source == "tf" else None
        self._inputs = Inputs(self, self._p, self._policy.spec, frames, self._tell, self._refuse)
        self._entities.append(self._inputs.close)
        self._entities.append(listen(self, Task, "task", self._on_task, [LATCHED]))
        self._entities.append(listen(self, String, "instruction", self._on_instruction, ANYBODY_LATCHED))
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._entities.append(self.get_clock().create_jump_callback(threshold, post_callback=self._on_jump).unregister)
        self._thread = threading.Thread(target=self._work, name="inference")
        self._thread.start()

    def deactivate(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()  # at most one inference
            self._thread = None
        while self._entities:
            self._entities.pop()()  # the publisher last: its liveliness is lost now
        self._inputs = None

    def cleanup(self) -> None:
        self._policy = None

    def destroy_node(self) -> None:
        self._sender.close()
        super().destroy_node()

    # ---- callbacks, on the executor's thread

    def _on_task(self, message: Task) -> None:
        since, interval = stamp_to_ns(message.header.stamp), duration_to_ns(message.replan_interval)
        self._set(Schedule(message.instruction, message.epoch, message.active, since, interval, message.lockstep, numbered=True))

    def _on_instruction(self, message: String) -> None:
        if self._schedule is not None and self._schedule.numbered:
            self.get_logger().warning("instruction ignored: a controller publishes tasks", once=True)
            return
        self._set(Schedule(message.data, replan_interval=round(self._p.replan_interval * 1000 * MS)))

    def _set(self, schedule: Schedule) -> None:
        with self._wake:
            if self._schedule is not None and self._schedule.key == schedule.key:
                self._schedule.active = schedule.active
                self._schedule.replan_interval = schedule.replan_interval
            else:
                self._schedule = schedule
                self._health = self._refused = self._reason = None
        self._tell()

    def _tell(self) -> None:
        with self._wake:
            self._news = True
            self._wake.notify()

    def _on_jump(self, jump: Any) -> None:
        if self._inputs is not None:
            self._inputs.jump()
        with self._wake:
            self._key = None  # the thread resets gate and policy
            if self._schedule is not None:
                self._schedule.last = -1

    # ---- the inference thread

    def _work(self) -> None:
        patience = PATIENCE
        while True:
            with self._wake:
                if not self._news and not self._stopping:
                    self._wake.wait(patience)
                self._news = False
                if self._stopping:
                    return
                schedule = self._schedule
            patience = PATIENCE
            if schedule is None or not schedule.active:
                continue
            try:
                self._answer(schedule)
            except Exception as error:
                self._refuse(error)
            if self._inputs.behind:
                patience = SOON

    def _answer(self, schedule: Schedule) -> None:
        """Publish a chunk if there is an observation that the task wants answered."""
        policy, spec = self._policy, self._policy.spec
        if self._key != schedule.key:
            self._key, self._looked_at = schedule.key, -1
            self._gate.reset()
            policy.reset()
        began = time.perf_counter()
        observation = self._inputs.observe(schedule)
        if observation is None:
            return
        now = observation.stamp if schedule.lockstep else self.get_clock().now().nanoseconds
        wanted = schedule.wants(observation.stamp, spec.horizon * spec.step_duration)
        known = observation.stamp <= self._looked_at and now - observation.stamp <= self._gate.config.max_age
        if not wanted and (schedule.lockstep or known):
            return
        self._looked_at = observation.stamp  # what is not wanted is checked too: a camera that freezes is noticed at its own rate
        try:
            observation = self._inputs.decode(observation)
            self._gate.check(observation, now)
        except Refused as refusal:
            self._refuse(refusal, tuple(observation.stamps.values()))
            if max(observation.stamps.values()) - now > self._gate.config.max_future:
                self._inputs.clear()  # beside it all that follows would seem to go back
            return
        if not wanted:
            return
        schedule.last = observation.stamp
        prepared = time.perf_counter() - began
        chunk = policy.infer(observation)
        if not np.isfinite(chunk.actions).all():
            raise FloatingPointError("the policy's actions are not finite")
        total = time.perf_counter() - began
        latency = replace(chunk.latency, preprocessing=chunk.latency.preprocessing + prepared, total=total)
        chunk = replace(chunk, frame=chunk.frame or self._inputs.frame, sequence=self._sequence, epoch=schedule.epoch, latency=latency)
        with self._wake:
            if self._stopping or self._schedule is None or self._schedule.key != schedule.key or not self._schedule.active:
                return  # the task is over
            stamp = observation.stamp if schedule.lockstep else self.get_clock().now().nanoseconds  # in lockstep time stands still
            self._publisher.publish(chunk_to_msg(chunk, stamp))
            schedule.lead = stamp - observation.stamp + spec.step_duration
            self._sequence += 1
            self._health, self._refused, self._reason = Status(OK, "inferring"), None, None
            self._last = {"latency_ms": f"{total * 1e3:.1f}", "chunk_age_ms": f"{(stamp - observation.stamp) / MS:.1f}"}

    # ---- health

    def _refuse(self, error: Exception, what: object = None) -> None:
        """Count and show a refusal. Anything but a Refused is an error of ours or of the policy's: it is logged with its traceback.

        what: identifies what was refused; looking at the same again is no second refusal.
        """
        refused = isinstance(error, Refused)
        reason = error.reason.value if refused else "exception"
        with self._wake:
            if refused and self._refused == (reason, what or str(error)):
                return
            self._refused = (reason, what or str(error))
            self._refusals[reason] += 1
            self._health = Status(WARN, f"refused: {error}") if refused else Status(ERROR, f"failed: {error!r}")
            new, self._reason = self._reason != (reason, type(error)), (reason, type(error))
        if new:  # not thirty times a second
            log = self.get_logger()
            log.warning(self._health.message) if refused else log.error(traceback.format_exc())
            self.diagnostics.publish()

    def status(self) -> Status:
        spec, schedule = self._policy.spec, self._schedule
        values = {"policy": spec.name, "model_hash": spec.model_hash, "chunks": self._sequence, **self._last}
        values |= getattr(self._policy, "counts", {})
        values |= {f"refused.{reason}": count for reason, count in sorted(self._refusals.items())}
        if schedule is not None:
            values |= {"epoch": schedule.epoch, "instruction": schedule.instruction}
        idle = schedule is None or not schedule.active
        health = self._health
        if health is None or (idle and health.level == OK):
            health = Status(OK, "waiting for a task" if idle else "waiting for an observation")
        return replace(health, values=values)


def main(args: Sequence[str] | None = None) -> int:
    with chosen():
        return run(PolicyNode, args)


if __name__ == "__main__":
    sys.exit(main())
