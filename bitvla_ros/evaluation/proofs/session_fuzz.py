"""Anything may happen between two setpoints: a session under random events, checked by what goes out alone.

The oracle knows the limits and where the arm is, and nothing of how the session decides. What it asks for:
finite numbers of the task that is current; inside the workspace; from one setpoint to the next no more than the limits of speed and
acceleration, unless none was sent for REST: then the first is a hold at the arm, or the last one again; after a latched fault, or
without a task, nothing but deceleration to a hold; and whatever moves is brought to a hold within the time that braking takes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...control.command import ArmState, Setpoint
from ...control.limits import FaultReason, Limits
from ...control.player import ChunkRefused, PlayerConfig
from ...control.rotation import turn_between, turned
from ...control.session import ControlConfig, Session
from ...policy.chunk import ActionChunk
from .findings import Advance, Promise
from .seam import HORIZON, STEP
from .steps import SECOND

Array = NDArray[np.float64]

SEGMENT = 5_000  # events with one configuration
RATES = (7, 20, 50, 100, 250, 500)  # Hz
REST = 0.5  # s without a setpoint after which a task may begin wherever the arm is
AT_ARM = 0.02  # m: a first setpoint is no further from the arm
WORKSPACE = np.array([0.15, -0.35, 0.05]), np.array([0.75, 0.35, 0.65])
LIMITS = Limits(
    clamp=("offset",),
    speed=0.25,
    angular_speed=1.5,
    acceleration=3.0,
    angular_acceleration=15.0,
    workspace_min=tuple(WORKSPACE[0]),
    workspace_max=tuple(WORKSPACE[1]),
    max_state_age=0.2,
    chunk_deadline=2.0,
)
_ROUNDING = 1e-8
_EXAMPLES = 5
_EVENTS = {  # what may happen between two setpoints, and how often
    "begin": 6.0,
    "cancel": 2.0,
    "fault": 1.0,
    "reset": 4.0,
    "chunk": 8.0,
    "glitch": 1.0,
    "stale": 1.0,
    "frame": 0.5,
    "time": 0.5,
    "policy": 1.0,
    "teleport": 0.3,
    "success": 0.5,
    "pause": 0.3,
    "unseen": 0.3,
    "restart": 0.2,
}


@dataclass
class Oracle:
    """Looks at setpoints as they go out. problems: some of what was wrong, in words."""

    limits: Limits
    problems: list[str] = field(default_factory=list)
    violations: int = 0
    last: Setpoint | None = None
    _time: int = 0
    _linear: Array = field(default_factory=lambda: np.zeros(3))
    _angular: Array = field(default_factory=lambda: np.zeros(3))
    _restarted: bool = False
    _moves_since: int | None = None  # since when the last setpoint moves although nothing may

    def take(self, setpoint: Setpoint | None, arm: ArmState, now: int, *, task: int, may_move: bool) -> None:
        """setpoint: that went out at `now`, ns of the steady clock, or None. arm: as a driver without faults measured it last. task: number
        of the current or the last one. may_move: a task runs and no fault is latched."""
        if setpoint is not None:
            self._check(setpoint, arm, now, task, may_move)
            self.last, self._time = setpoint, now
        self._check_rest(now, may_move)

    def restart(self, back: int) -> None:
        """Time has gone back by so many ns: how much has passed since the last setpoint is not known to who gives the next."""
        self._time -= back
        self._moves_since, self._restarted = None, True

    def _check(self, setpoint: Setpoint, arm: ArmState, now: int, task: int, may_move: bool) -> None:
        numbers = [*setpoint.position, *setpoint.orientation, *setpoint.linear, *setpoint.angular, setpoint.gripper]
        if not np.isfinite(numbers).all():
            self.note("not finite", now)
            return
        if (setpoint.position < WORKSPACE[0] - _ROUNDING).any() or (setpoint.position > WORKSPACE[1] + _ROUNDING).any():
            self.note(f"outside the workspace: {setpoint.position.round(4).tolist()}", now)
        if setpoint.epoch != task:
            self.note(f"of task {setpoint.epoch}, not {task}", now)
        before, linear, angular = self.last, self._linear, self._angular
        dt = (now - self._time) / SECOND
        if before is None or (dt > REST and before.hold):
            far = _norm(setpoint.position - arm.position)
            if before is not None and setpoint.hold:
                far = min(far, _norm(setpoint.position - before.position))
            if not setpoint.hold or far > AT_ARM:
                self.note(f"the first setpoint {'is' if setpoint.hold else 'moves'} {far:.3f} m from the arm", now)
            self._linear = self._angular = np.zeros(3)
            return
        if self._restarted:
            self._linear, self._angular, self._restarted = setpoint.linear, setpoint.angular, False
            if _norm(setpoint.position - before.position) > self.limits.speed * dt + _ROUNDING:
                self.note("a leap where time goes back", now)
            return
        dt = max(dt, 1e-9)
        self._linear = (setpoint.position - before.position) / dt
        self._angular = turn_between(before.orientation, setpoint.orientation) / dt
        for name, velocity, old, speed, acceleration in (
            ("", self._linear, linear, self.limits.speed, self.limits.acceleration),
            ("angular ", self._angular, angular, self.limits.angular_speed, self.limits.angular_acceleration),
        ):
            if (share := _norm(velocity) / speed) > 1 + 1e-6:
                self.note(f"{share:.2f} times the limit of {name}speed", now)
            if (share := (_norm(velocity - old) - _ROUNDING / dt) / (acceleration * dt)) > 1 + 1e-6:
                self.note(f"{share:.2f} times the limit of {name}acceleration", now)
            if not may_move and _norm(velocity) > _norm(old) + _ROUNDING / dt:
                self.note(f"faster, by {_norm(velocity) - _norm(old):.4f}, where nothing may move", now)
        if setpoint.hold and (setpoint.linear.any() or setpoint.angular.any() or _norm(self._linear) > _ROUNDING / dt):
            self.note("a hold that moves", now)

    def _check_rest(self, now: int, may_move: bool) -> None:
        moves = self.last is not None and not self.last.hold
        if may_move or not moves:
            self._moves_since = None
            return
        self._moves_since = now if self._moves_since is None else self._moves_since
        braking = max(self.limits.speed / self.limits.acceleration, self.limits.angular_speed / self.limits.angular_acceleration)
        if now - self._moves_since > (braking + 0.5) * SECOND:
            self.note(f"still moving {(now - self._moves_since) / SECOND:.2f} s after it had to stop", now)
            self._moves_since = now

    def note(self, problem: str, now: int) -> None:
        self.violations += 1
        if len(self.problems) < _EXAMPLES:
            self.problems.append(f"{problem}, at {now / SECOND:.3f} s")


class _Run:
    """One session, its arm, and what happens to them."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.period = SECOND // int(random.choice(RATES))
        config = ControlConfig(
            PlayerConfig(ensemble=float(random.choice([0.0, 0.01]))),
            LIMITS,
            str(random.choice(["spring", "scaled"])),
            float(random.choice([0.0, 0.06])),
            int(random.choice([0, 2, 5])),
        )
        self.session = Session(config)
        self.oracle = Oracle(LIMITS)
        self.steady = self.now = 1000 * SECOND
        self.position, self.orientation = np.array([0.45, 0.0, 0.35]), np.array([1.0, 0.0, 0.0, 0.0])
        self.success = False
        self.alive = True
        self.led = True  # the arm follows the last setpoint
        self._late = 0  # setpoints for which the pose stays what it was
        self._seen = self.arm
        self._glitches = 0  # poses that are still wrong
        names = tuple(_EVENTS)
        weights = np.array([_EVENTS[name] for name in names])
        self._names, self._weights = names, weights / weights.sum()

    @property
    def arm(self) -> ArmState:
        return ArmState(self.position, self.orientation, self.now)

    def step(self) -> int:
        """A setpoint, and what happens before it; how many events."""
        count = int(self.random.choice([0, 0, 0, 1, 1, 2, 3]))
        for name in self.random.choice(self._names, count, p=self._weights):
            getattr(self, f"_{name}")()
        late = int(self.random.exponential(self.period / 20)) + (self.period if self.random.random() < 0.01 else 0)
        self._pass(self.period + late)
        pose = self._measured()
        session = self.session
        setpoint = session.setpoint(self.now, pose, self.success, self.steady)
        self.success = False
        self._judge(setpoint)
        session.watch(self.steady)
        return 1 + count

    def _judge(self, setpoint: Setpoint | None) -> None:
        session = self.session
        self.led = self.led or setpoint is not None
        fault = session.guard.fault is not None
        self.oracle.take(setpoint, self._seen, self.steady, task=session.epoch, may_move=session.running and not fault)
        if not session.running and not session.stopping and self.oracle.last is not None and not self.oracle.last.hold:
            self.oracle.note("the stop is said to be over, but the last setpoint moves", self.steady)

    def _pass(self, dt: int) -> None:
        self.now += dt
        self.steady += dt
        if (last := self.oracle.last) is not None and self.led:
            share = 1 - float(np.exp(-dt / SECOND / 0.05))
            self.position = self.position + share * (last.position - self.position)
            self.orientation = turned(self.orientation, share * turn_between(self.orientation, last.orientation))

    def _measured(self) -> ArmState:
        if self._late > 0:
            self._late -= 1
        else:
            self._seen = self.arm
        if self._glitches > 0:
            self._glitches -= 1
            wrong = self.random.choice(3)
            if wrong == 0:
                return replace(self._seen, position=np.zeros(3))
            if wrong == 1:
                return replace(self._seen, position=self._seen.position + self.random.normal(0, 0.3, 3))
            return replace(self._seen, position=self._seen.position * np.nan)
        return self._seen

    # Events.

    def _begin(self) -> None:
        session = self.session
        if session.running:
            session.cancel("another goal took over")
        if session.guard.fault is None:
            session.begin(self.now, int(self.random.choice([1, 5, 60])) * SECOND, self.steady, lockstep=False)

    def _cancel(self) -> None:
        self.session.cancel("by the client", stop=bool(self.random.random() < 0.5))

    def _fault(self) -> None:
        self.session.fault(FaultReason.ESTOP, "pressed")

    def _reset(self) -> None:
        self.session.reset_fault()

    def _chunk(self) -> None:
        rows = self.random.uniform(-1.2, 1.2, (HORIZON, 6)) * self.random.choice([0.2, 1.0])
        if self.random.random() < 0.5:
            rows[:] = rows[0]
        actions = np.column_stack([rows, np.full(HORIZON, self.random.choice([-1.0, 1.0]))]).astype(np.float32)
        epoch = self.session.epoch - int(self.random.random() < 0.1)
        with contextlib.suppress(ChunkRefused):
            age = int(self.random.uniform(0, 0.3) * SECOND)
            self.session.accept(ActionChunk(actions, self.now - age, STEP, epoch=epoch), self.now, self.steady)

    def _glitch(self) -> None:
        self._glitches = int(self.random.integers(1, 3))

    def _stale(self) -> None:
        self._late = int(self.random.integers(1, 60))

    def _frame(self) -> None:
        if not self.session.running:
            self.session.player.frame = str(self.random.choice(["", "other"]))

    def _time(self) -> None:
        self.now += int(self.random.uniform(-2, 2) * SECOND)

    def _policy(self) -> None:
        self.alive = not self.alive
        self.session.policy_alive(self.alive, self.steady - SECOND // 10)

    def _teleport(self) -> None:
        """Somebody moves the arm, or a simulator is reset; not in the middle of a motion."""
        if self.oracle.last is None or self.oracle.last.hold:
            self.position = self.random.uniform(*WORKSPACE) + self.random.choice([0.0, 0.1])
            self.led = False

    def _success(self) -> None:
        self.success = True

    def _unseen(self) -> None:
        """The arm is not seen at all for a few setpoints."""
        for _ in range(int(self.random.integers(1, 40))):
            self._pass(self.period)
            self._judge(self.session.brake(self.steady))

    def _restart(self) -> None:
        """A simulator's time begins anew. The arm's setpoints are as far apart as before in the time of whoever follows them."""
        back = int(self.random.uniform(0, 1000) * SECOND)
        self.now -= back
        self.steady -= back
        self.oracle.restart(back)

    def _pause(self) -> None:
        self._pass(int(self.random.uniform(0, 1.5) * SECOND))


def prove_session(events: int, seed: int, advance: Advance) -> Promise:
    """Counts what the oracle found wrong. events: setpoints, and what happens between them."""
    violations, made = 0, 0
    examples: list[str] = []
    while made < events:
        run, here = _Run(np.random.default_rng([seed, made])), 0
        while here < min(SEGMENT, events - made):
            here += run.step()
        violations += run.oracle.violations
        examples += run.oracle.problems
        made += here
        advance(min(here, events))
    return Promise("session", events, violations, float(violations), "violations", 0.0, tuple(examples[:_EXAMPLES]))


def _norm(vector: Array) -> float:
    return float(np.linalg.norm(vector))
