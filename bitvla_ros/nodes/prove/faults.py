"""Faults injected while the arm moves, and how long it then takes until the first stopping command arrives at the simulator's place."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.control.limits import Limits
from bitvla_ros.control.player import decelerated
from bitvla_ros.evaluation.proofs.findings import Advance, Fault, Trial
from bitvla_ros.evaluation.proofs.stopping import Sent, bad_commands, find_braking, find_stop, problems_of

from ..recorder import GraphError
from .world import RAMP_STEPS, World

STEP = 50_000_000  # ns, a control step
SETTLING = 0.5  # s for which an arm that has stopped must stay so
LIMIT = 5.0  # s after which an arm that has not stopped counts as one that does not
ON_THE_WAY = 0.1  # s that a chunk which was finished before the fault may take to arrive
LATE = 0.02  # s by which a timer may be late

Find = Callable[[Sequence[Sent], int, int], "int | None"]
"""commands, since when (ns, steady clock), epoch of the task -> index of the first stopping command"""


def _stop(commands: Sequence[Sent], since: int, epoch: int) -> int | None:
    return find_stop(commands, since, RAMP_STEPS, STEP)


def _last_stop(commands: Sequence[Sent], since: int, epoch: int) -> int | None:
    """Where chunks may still come for a while, a stop after which the arm moves on is none of the fault's."""
    moves = [command.arrival for command in commands if command.moves]
    return find_stop(commands, max(since, moves[-1]) if moves else since, RAMP_STEPS, STEP)


def _change(commands: Sequence[Sent], since: int, epoch: int) -> int | None:
    """Where the plan of the task before is no longer followed."""
    first = next((index for index, command in enumerate(commands) if command.epoch > epoch), None)
    if first is None or first < 2:
        return first
    ramp = decelerated(commands[first - 2].action, 1, RAMP_STEPS, epoch)
    return first - 1 if np.allclose(commands[first - 1].action[:6], ramp.action[:6], rtol=1e-3, atol=1e-5) else first


@dataclass(frozen=True)
class Injection:
    """One fault. inject: does it, and returns since when it has been there, ns of the steady clock. recover: undoes it.

    live: the arm is driven by poses at 100 Hz. cameras: the policy must look at images. unnoticed: s for which chunks may still be
    made in spite of it, None where it has nothing to do with chunks. latches: the goal must end with a fault. p99_ms, max_ms: what is
    promised of the stop.
    """

    inject: Callable[[World], int]
    recover: Callable[[World], object] = lambda world: None
    find: Find = _stop
    live: bool = False
    cameras: bool = False
    unnoticed: float | None = None
    latches: bool = False
    p99_ms: float | None = None
    max_ms: float | None = None


def _camera(name: str, unnoticed: float) -> Injection:
    def inject(world: World) -> int:
        return world.witness.set_camera_fault(name)

    return Injection(inject, lambda world: world.witness.set_camera_fault(""), _last_stop, cameras=True, unnoticed=unnoticed)


def _cancel(world: World) -> int:
    began = time.monotonic_ns()
    world.cancel()
    return began


def _change_instruction(world: World) -> int:
    began = time.monotonic_ns()
    world.take_over()
    return began


_DEATH = {"latches": True, "p99_ms": 100.0, "max_ms": 150.0}

FAULTS = {
    "policy_sigkill": Injection(World.kill_policy, World.replace_policy, **_DEATH),
    "policy_sigstop": Injection(partial(World.signal_policy, number=signal.SIGSTOP), World.continue_policy, **_DEATH),
    "policy_sigkill_live": Injection(World.kill_policy, World.replace_policy, live=True, **_DEATH),
    "inference_hang": Injection(
        lambda world: world.witness.hang(True), lambda world: world.witness.hang(False), _last_stop, cameras=True, unnoticed=0.0
    ),
    "camera_loss": _camera("camera_loss", 0.15),
    "camera_delay": _camera("camera_delay", 0.15),
    "frozen_camera": _camera("frozen_camera", 1.0),  # can only be seen once the arm has moved by a centimetre
    "camera_corruption": _camera("camera_corruption", 0.0),
    "clock_jump": _camera("clock_jump", 0.15),  # images that are refused count as missing: the last good ones may still be used
    "cancel_mid_chunk": Injection(_cancel, max_ms=150.0),
    "instruction_change": Injection(_change_instruction, find=_change, max_ms=150.0),
}


def prove_fault(name: str, trials: int, seed: int, logs: Path, advance: Advance) -> Fault:
    injection, done = FAULTS[name], []
    with World(logs, np.random.default_rng(seed), failing_cameras=injection.cameras, live=injection.live) as world:
        for _ in range(3 * trials):
            world.begin()
            began = injection.inject(world)
            trial = _observe_poses(world, injection, began) if injection.live else _observe(world, injection, began)
            world.finish()
            injection.recover(world)
            if trial is not None:
                done.append(trial)
                advance(1)
            if len(done) == trials:
                return Fault(name, tuple(done), injection.p99_ms, injection.max_ms)
    raise GraphError(f"{name}: the arm moved in only {len(done)} of {3 * trials} attempts when the fault came; is the machine too slow?")


def _observe(world: World, injection: Injection, began: int) -> Trial | None:
    """What the fault led to; None where the arm was about to stop before it, or where it cannot be told when its plan ended."""
    witness, epoch = world.witness, world.epoch

    def stopped() -> bool:
        commands = list(witness.commands)
        at = injection.find(commands, began, epoch)
        return at is not None and time.monotonic_ns() - commands[at].arrival > SETTLING * 1e9

    witness.holds(stopped, LIMIT)
    commands = list(witness.commands)
    at = injection.find(commands, began, epoch)
    problems = bad_commands(commands)
    if at is None:
        return Trial(None, (*problems, f"the arm did not stop within {LIMIT:g} s"))
    stop = commands[at]
    if stop.arrival <= began:
        return None
    stop_ms = (stop.arrival - began) / 1e6
    if injection.find is not _change:
        problems += problems_of(commands, at, RAMP_STEPS)
    if any(command.epoch <= epoch and command.moves for command in commands[at + RAMP_STEPS :]):
        problems.append("the arm is moved for the old task after its stop")
    if injection.unnoticed is not None:
        ends = world.plan_ends(stop.arrival)
        if ends is not None:
            problems += _chunk_problems(world, injection.unnoticed, began, stop.stamp - ends)
        elif not problems:
            return None
    return Trial(stop_ms, (*problems, *_common_problems(world, injection, stop_ms)))


def _observe_poses(world: World, injection: Injection, began: int) -> Trial | None:
    """The same of an arm that is driven by poses."""
    witness, braking = world.witness, Limits().acceleration

    def stopped() -> bool:
        poses = list(witness.poses)
        silent = bool(poses) and time.monotonic_ns() - poses[-1].arrival > SETTLING * 1e9  # after the hold nothing is sent
        return silent and find_braking(poses, began, braking) is not None

    witness.holds(stopped, LIMIT)
    poses = list(witness.poses)
    at = find_braking(poses, began, braking)
    if at is None:
        return Trial(None, (f"the arm did not stop within {LIMIT:g} s",))
    if poses[at].arrival <= began:
        return None
    stop_ms = (poses[at].arrival - began) / 1e6
    return Trial(stop_ms, tuple(_common_problems(world, injection, stop_ms)))


def _common_problems(world: World, injection: Injection, stop_ms: float) -> list[str]:
    problems = []
    if injection.max_ms is not None and stop_ms > injection.max_ms:
        problems.append(f"the first stopping command came after {stop_ms:.0f} ms; promised are {injection.max_ms:.0f} ms")
    if injection.latches and world.result().outcome != ExecuteInstruction.Result.FAULT:
        problems.append("the goal did not end with a fault")
    return problems


def _chunk_problems(world: World, unnoticed: float, began: int, after: int) -> list[str]:
    """Chunks made in spite of the fault, and an arm that moves on after its last chunk has been played. after: ns from then to the stop."""
    problems = []
    late = [arrival - began for arrival, _ in list(world.witness.chunks) if arrival - began > (unnoticed + ON_THE_WAY) * 1e9]
    if late:
        problems.append(f"a chunk came {late[0] / 1e6:.0f} ms after the fault; it should be noticed after {unnoticed * 1e3:.0f} ms")
    over = (after - STEP) / 1e9
    if over > LATE:
        problems.append(f"the stop began {over * 1e3:.0f} ms later than one step after the end of the last chunk")
    return problems
