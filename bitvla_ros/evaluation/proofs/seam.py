"""Setpoints never jump: a million of them on a virtual clock, from a policy whose latency and whims are drawn from a seed."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...control.command import ArmState, Setpoint
from ...control.limits import FaultReason, Limits
from ...control.player import ChunkRefused, PlayerConfig
from ...control.rotation import turn_between, turned
from ...control.session import ControlConfig, Session
from ...policy.chunk import ActionChunk
from .findings import Advance, Promise, Samples
from .steps import SECOND, Steps

Array = NDArray[np.float64]

STEP = 50_000_000  # ns, a control step
HORIZON = 8
SEGMENT = 10_000  # setpoints with one configuration
SIMULATOR = Limits(clamp=("offset",))  # what the training controller can be asked for
ARM = Limits(clamp=("offset",), speed=0.25, angular_speed=1.5, acceleration=3.0, angular_acceleration=15.0)  # what one in a cell is given
RATES = (50, 100, 125, 250)  # Hz
_EXAMPLES = 5
_HOME = np.array([0.4, 0.0, 0.3])


@dataclass
class _Arm:
    """Follows its setpoints with a lag, as a compliant arm does, and says where it is a few milliseconds later."""

    position: Array = field(default_factory=_HOME.copy)
    orientation: Array = field(default_factory=lambda: np.array([1.0, 0.0, 0.0, 0.0]))
    target: Setpoint | None = None
    lag: float = 0.06  # s

    def move(self, dt: float) -> None:
        if self.target is not None:
            share = 1.0 - float(np.exp(-dt / self.lag))
            self.position = self.position + share * (self.target.position - self.position)
            self.orientation = turned(self.orientation, share * turn_between(self.orientation, self.target.orientation))

    def state(self, now: int) -> ArmState:
        return ArmState(self.position, self.orientation, now - 5_000_000)


class _Policy:
    """One inference after the other, with a latency of a fast machine, a loaded one, or a slow board."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._usual = float(random.choice([0.02, 0.1, 0.25]))
        self._gripper = np.float32(-1)
        self._pending: deque[tuple[int, ActionChunk]] = deque()

    def restart(self) -> None:
        self._pending.clear()

    def chunk_at(self, now: int, arm: ArmState, epoch: int) -> ActionChunk | None:
        """The chunk that is ready now, if one is; the next inference then begins."""
        ready = self._pending.popleft()[1] if self._pending and self._pending[0][0] <= now else None
        if not self._pending:
            latency = 2.7 if self._random.random() < 0.01 else self._usual * float(self._random.lognormal(0.0, 0.5))
            self._pending.append((now + round(latency * SECOND), self._chunk(arm, epoch)))
        return ready

    def _chunk(self, arm: ArmState, epoch: int) -> ActionChunk:
        kind = self._random.random()
        if kind < 0.4:  # another direction at full scale, all at once
            rows = np.repeat(self._random.choice([-1.0, 0.0, 1.0], (1, 6)), HORIZON, axis=0)
        elif kind < 0.7:  # noise from step to step
            rows = self._random.uniform(-1, 1, (HORIZON, 6))
        else:  # a smooth motion
            rows = self._random.uniform(-0.5, 0.5, 6) * np.sin(np.linspace(0, 3, HORIZON))[:, None]
        back = np.abs(arm.position - _HOME) > 0.3
        rows[:, :3] = np.where(back, -np.sign(arm.position - _HOME), rows[:, :3])
        if self._random.random() < 0.02:
            self._gripper = -self._gripper
        actions = np.column_stack([rows, np.full(HORIZON, self._gripper)]).astype(np.float32)
        return ActionChunk(actions, arm.stamp, STEP, epoch=epoch)


def prove_seam(steps: int, seed: int, advance: Advance) -> Promise:
    """Counts steps between successive setpoints that are longer than v_max dt or differ from the last by more than a_max dt^2."""
    violations = 0
    examples: list[str] = []
    shares: list[float] = []
    for first in range(0, steps, SEGMENT):
        count = min(SEGMENT, steps - first)
        done = _segment(count, np.random.default_rng([seed, first]), shares)
        violations += done.violations
        examples += done.problems
        advance(count)
    samples = Samples("largest share of a limit in a step", tuple(shares), 1.0)
    return Promise("seam", steps, violations, float(violations), "steps above a limit", 0.0, tuple(examples[:_EXAMPLES]), samples)


def _segment(count: int, random: np.random.Generator, shares: list[float]) -> Steps:
    """Tasks one after the other, with one configuration. shares: gets a sample of the steps' shares of a limit."""
    limits = SIMULATOR if random.random() < 0.5 else ARM
    period = SECOND // int(random.choice(RATES))
    player = PlayerConfig(ensemble=float(random.choice([0.0, 0.01])))
    model, lag = str(random.choice(["spring", "scaled"])), float(random.choice([0.0, 0.06, 0.2]))  # of an arm whose own is 0.06 s
    session = Session(ControlConfig(player, limits, model, lag))
    row, arm, policy = Steps(limits), _Arm(), _Policy(random)
    now, made = 1000 * SECOND, 0
    while made < count:
        late = int(random.integers(0, 40_000_000)) if random.random() < 0.005 else int(random.exponential(500_000))
        dt = max(period + late, 1)
        now += dt
        arm.move(dt / SECOND)
        state = arm.state(now)
        if session.running:
            chunk = policy.chunk_at(now, state, session.epoch)
            if chunk is not None:
                with contextlib.suppress(ChunkRefused):  # too old: the arm slows down and waits for the next
                    session.accept(chunk, now, now)
            if random.random() < 0.002:
                session.cancel("another instruction")
            elif random.random() < 0.001:
                session.policy_alive(False, now - SECOND)
                session.watch(now)
        elif session.guard.fault is None and random.random() < 0.05:  # in the middle of the stop, or some time after it
            policy.restart()
            session.begin(now, 3600 * SECOND, now, lockstep=False)
        setpoint = session.setpoint(now, state, False, now)
        fault = session.guard.fault
        if fault is not None and not session.stopping:
            if fault.reason is not FaultReason.POLICY_LOST:
                row.note(f"the guard had to stop the arm: {fault.message}")
            session.reset_fault()
            session.policy_alive(True, now)
        if setpoint is not None:
            arm.target = setpoint
            share = row.take(setpoint, now)
            if made % 20 == 0:
                shares.append(round(share, 4))
            made += 1
    return row
