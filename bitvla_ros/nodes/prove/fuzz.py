"""Malformed messages, from a seed, through the conversions, the policy's inputs and gate, and the controller's player and guard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.signals import SignalHandlerOptions

from bitvla_ros.control.command import ArmState, Joints, Setpoint
from bitvla_ros.control.player import ChunkRefused
from bitvla_ros.control.session import ControlConfig, Session
from bitvla_ros.evaluation.proofs.findings import Advance, Fuzz
from bitvla_ros.evaluation.proofs.seam import ARM
from bitvla_ros.policy.gate import Gate, GateConfig, Refused
from bitvla_ros.policy.policy import PolicySpec

from .. import inputs
from ..conversions import ChunkError, chunk_from_msg, command_to_msg, duration_to_ns, pose_from_msg, stamp_to_ns
from ..processes import Graph
from ..schedule import Schedule
from .messages import STEP, Messages

SECOND = 10**9
HOUR = 3600 * SECOND
CHUNK_DURATION = 400_000_000
ROLES = ("scene", "wrist")
HOME = np.array([0.4, 0.0, 0.3])


class _Tally:
    def __init__(self) -> None:
        self.crashes = self.nonfinite = self.outside = 0
        self.refused: Counter[str] = Counter()
        self.examples: list[str] = []

    def crash(self, what: str, error: Exception) -> None:
        self.crashes += 1
        self.example(f"{what}: {error!r}")

    def example(self, words: str) -> None:
        if len(self.examples) < 5:
            self.examples.append(words)


class _Controller:
    """Session behind its conversions, as the controller node joins them, on a virtual clock. A fault is reset, and a task begun anew."""

    def __init__(self, tally: _Tally, now: int, config: ControlConfig) -> None:
        self.tally = tally
        self.session = Session(config, "robot_base")
        self.arm = ArmState(HOME, np.array([1.0, 0.0, 0.0, 0.0]), now)

    def take_chunk(self, message: Any, now: int) -> None:
        try:
            self.session.accept(chunk_from_msg(message), now, now)
        except ChunkRefused as refused:
            self.tally.refused[f"chunk.{refused.reason.value}"] += 1
        except ChunkError:
            self.tally.refused["chunk.malformed"] += 1

    def take_pose(self, message: Any) -> None:
        self.arm = ArmState(*pose_from_msg(message), stamp_to_ns(message.header.stamp))

    def go_on(self, now: int) -> None:
        session = self.session
        session.watch(now)
        if not session.running and not session.stopping:
            if session.guard.fault is not None:
                self.tally.refused[f"guard.{session.guard.fault.reason.value}"] += 1
            session.reset_fault()
            session.begin(now, HOUR, now, lockstep=False)

    def judge(self, what: str, numbers: NDArray[np.float64], shares: Sequence[float]) -> None:
        """What went out. shares: of its limits, that it takes."""
        if not np.isfinite(numbers).all():
            self.tally.nonfinite += 1
            self.tally.example(f"{what} {numbers.tolist()}")
        elif max(shares) > 1 + 1e-5:
            self.tally.outside += 1
            self.tally.example(f"{what} {numbers.tolist()} is beyond a limit")


class _Commands(_Controller):
    """For a simulator."""

    def __init__(self, tally: _Tally, now: int) -> None:
        super().__init__(tally, now, ControlConfig())

    def step(self, now: int) -> None:
        self.go_on(now)
        command = self.session.tick(now, self.arm, False, now)
        if command is None:
            return
        message, limits, hz = command_to_msg(command, now, "robot_base"), self.session.config.limits, self.session.config.player.control_hz
        action = np.array([*message.offset, message.gripper])
        speed, turning = (float(np.linalg.norm(part)) * hz for part in (action[:3], action[3:6]))
        shares = speed * limits.metres_per_unit / limits.speed, turning * limits.radians_per_unit / limits.angular_speed
        self.judge("command", action, (float(np.abs(action).max()), *shares))


class _Setpoints(_Controller):
    """For an arm, at 100 Hz, with joints."""

    def __init__(self, tally: _Tally, now: int) -> None:
        limits = replace(ARM, workspace_min=(0.2, -0.2, 0.1), workspace_max=(0.6, 0.2, 0.5), joint_min=(-2.0,), joint_max=(2.0,))
        super().__init__(tally, now, ControlConfig(limits=limits))
        self.joints: Joints | None = None
        self.position = HOME
        self._last: Setpoint | None = None
        self._time = now

    def take_joints(self, message: Any) -> None:
        self.joints = Joints(np.array(message.position[:1]), stamp_to_ns(message.header.stamp))

    def step(self, now: int) -> None:
        if self.session.guard.fault is not None:
            self.position = HOME  # else it would stand at the wall for ever
        self.go_on(now)
        for moment in range(now, now + STEP, STEP // 5):
            setpoint = self.session.setpoint(moment, self.arm, False, moment, self.joints)
            if setpoint is not None:
                self._judge(setpoint, moment)

    def _judge(self, setpoint: Setpoint, now: int) -> None:
        limits, last, elapsed = self.session.config.limits, self._last, (now - self._time) / SECOND
        self._last, self._time, self.position = setpoint, now, setpoint.position
        numbers = np.concatenate([setpoint.position, setpoint.orientation, setpoint.linear, setpoint.angular, [setpoint.gripper]])
        speed, turning = (float(np.linalg.norm(part)) for part in (setpoint.linear, setpoint.angular))
        shares = [speed / limits.speed, turning / limits.angular_speed, abs(setpoint.gripper)]
        if last is not None and not last.hold:  # after a hold the arm may have been taken elsewhere
            parts = setpoint.linear - last.linear, setpoint.position - last.position
            changed, moved = (float(np.linalg.norm(part)) / elapsed for part in parts)
            shares += [changed / limits.acceleration, moved / limits.speed]
        self.judge("setpoint", numbers, shares)


class _Policy:
    """Inputs and gate, as the policy node joins them; a real node, whose subscriptions' callbacks are called with the messages."""

    def __init__(self, tally: _Tally, node: Any, compressed: bool) -> None:
        self.tally = tally
        defaults = {parameter.name: parameter.default for parameter in inputs.PARAMETERS}
        p = SimpleNamespace(**{**defaults, "camera_transport": "compressed" if compressed else "raw"})
        spec = PolicySpec("fuzzed", ROLES, 8, 20.0, True, "")
        before = set(node.subscriptions)
        self.inputs = inputs.Inputs(node, p, spec, None, lambda: None, self._on_refusal)
        self.callbacks: dict[str, Callable[[Any], None]] = {
            subscription.topic_name: subscription.callback for subscription in set(node.subscriptions) - before
        }
        self.gate = Gate(GateConfig(ROLES, privileged=True))
        self.schedule = Schedule("lift the block")
        self.passed = 0

    def _on_refusal(self, error: Exception) -> None:
        if isinstance(error, Refused):
            self.tally.refused[f"input.{error.reason.value}"] += 1
        else:
            self.tally.crash("input", error)

    def take(self, topic: str, message: Any) -> None:
        next(callback for name, callback in self.callbacks.items() if name.startswith(f"/{topic}"))(message)

    def take_task(self, message: Any) -> None:
        since, interval = stamp_to_ns(message.header.stamp), duration_to_ns(message.replan_interval)
        self.schedule = Schedule(message.instruction, message.epoch, message.active, since, interval, message.lockstep, numbered=True)
        self.gate.reset()

    def look(self, now: int) -> None:
        """What the inference thread does before it infers."""
        observation = None
        try:
            observation = self.inputs.observe(self.schedule)
            if observation is None:
                return
            wanted = self.schedule.wants(observation.stamp, CHUNK_DURATION)
            observation = self.inputs.decode(observation)
            self.gate.check(observation, now)
        except Refused as refused:
            self.tally.refused[f"gate.{refused.reason.value}"] += 1
            if observation is not None and max(observation.stamps.values()) - now > self.gate.config.max_future:
                self.inputs.clear()
            return
        self.passed += wanted
        truth = [] if observation.privileged is None else list(observation.privileged.object_poses.values())
        if not all(np.isfinite(part).all() for part in (observation.state, *truth)):
            self.tally.nonfinite += 1
            self.tally.example(f"observation with the state {observation.state.tolist()}")


def prove_fuzz(messages: int, seed: int, logs: Path, advance: Advance) -> Fuzz:
    with Graph(logs), np.errstate(all="ignore"):
        context = rclpy.Context()
        rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
        node = rclpy.create_node("fuzz", context=context)
        try:
            tally = _Tally()
            _fuzz(messages, np.random.default_rng(seed), node, tally, advance)
        finally:
            node.destroy_node()
            rclpy.try_shutdown(context=context)
    return Fuzz("fuzz", messages, tally.crashes, tally.nonfinite, tally.outside, dict(tally.refused), tuple(tally.examples))


def _fuzz(messages: int, random: np.random.Generator, node: Any, tally: _Tally, advance: Advance) -> None:
    now = 1_700_000_000 * 10**9
    draw, commands, setpoints = Messages(random), _Commands(tally, now), _Setpoints(tally, now)
    raw, compressed = _Policy(tally, node, compressed=False), _Policy(tally, node, compressed=True)
    jpeg = cv2.imencode(".jpg", random.integers(0, 256, (8, 8, 3), np.uint8))[1].tobytes()
    sent = 0

    def send(take: Callable[..., None], *arguments: Any) -> None:
        nonlocal sent
        sent += 1
        try:
            take(*arguments)
        except Exception as error:
            tally.crash(getattr(take, "__name__", "message"), error)

    while sent < messages:
        now += STEP
        before = sent
        for controller in (commands, setpoints):
            send(controller.take_pose, draw.pose(now, HOME if controller is commands else setpoints.position))
            if random.random() < 0.4:  # so that a chunk is also played beyond its first action
                send(controller.take_chunk, draw.chunk(now, controller.session.epoch), now)
        send(setpoints.take_joints, draw.joints(now))
        send(commands.step, now)
        send(setpoints.step, now)
        for policy in (raw, compressed):
            if random.random() < 0.02:
                send(policy.take_task, draw.task(now, commands.session.epoch))
            for role in ROLES:
                send(policy.take, f"camera/{role}", draw.image(now) if policy is raw else draw.compressed(now, jpeg))
            send(policy.take, "end_effector_pose", draw.pose(now))
            send(policy.take, "joint_states", draw.joints(now))
            send(policy.take, "simulation_state", draw.truth(now))
            send(policy.look, now)
        advance(min(sent, messages) - min(before, messages))
