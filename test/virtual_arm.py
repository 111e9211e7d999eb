"""A session that plays into an arm on a virtual clock, at the rate of a sink."""

from __future__ import annotations

import numpy as np

from bitvla_ros.control.command import ArmState, Joints, Setpoint
from bitvla_ros.control.limits import Limits
from bitvla_ros.control.player import PlayerConfig
from bitvla_ros.control.rotation import turn_between, turned
from bitvla_ros.control.session import ControlConfig, Session
from bitvla_ros.policy.chunk import ActionChunk

STEP = 50_000_000
SECOND = 1_000_000_000
START = 100 * STEP
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
LIMITS = Limits(clamp=("offset",), speed=0.25, angular_speed=1.5, acceleration=3.0, angular_acceleration=15.0)
TICK = 10_000_000
REPEATS = ControlConfig().hold_repeats


class Arm:
    """A session that plays into an arm which follows with a lag, at 100 Hz unless said otherwise; every step between setpoints is
    checked against the limits, as whoever takes them would see it."""

    def __init__(self, limits: Limits = LIMITS, lag: float = 0.03, period: int = TICK, motion: str = "spring") -> None:
        self.session = Session(ControlConfig(PlayerConfig(), limits, motion))
        self.limits, self.lag, self.period = limits, lag, period
        self.now = START
        self.position, self.orientation = np.array([0.4, 0.0, 0.3]), UPRIGHT
        self.last: Setpoint | None = None
        self._velocity = np.zeros(3), np.zeros(3)
        self._time = 0
        self.watch()

    def watch(self, seconds: float = 0.3) -> None:
        """The controller sees the arm long before a task begins."""
        for _ in range(round(seconds * SECOND / self.period) + 3):
            self.session.setpoint(self.now, self.state, False, self.now)
            self.now += self.period

    @property
    def state(self) -> ArmState:
        return ArmState(self.position, self.orientation, self.now)

    def begin(self, limit: int = 1000 * SECOND) -> int:
        return self.session.begin(self.now, limit, self.now, lockstep=False)

    def accept(self, *rows: tuple[float, ...], age: int = 0, repeat: int = 1) -> None:
        """A chunk of these offsets (gripper closed), of an observation `age` ns ago."""
        actions = np.zeros((len(rows) * repeat, 7), np.float32)
        for k in range(len(actions)):
            actions[k, : len(rows[k // repeat])] = rows[k // repeat]
        actions[:, 6] = 1
        self.session.accept(ActionChunk(actions, self.now - age, STEP, epoch=self.session.epoch), self.now, self.now)

    def step(self, seen: ArmState | None = None, *, success: bool = False, joints: Joints | None = None) -> Setpoint | None:
        """seen: of the arm; None: where it is now."""
        setpoint = self.session.setpoint(self.now, seen or self.state, success, self.now, joints)
        if setpoint is not None:
            self._check(setpoint)
        if self.last is not None:
            share = 1 - np.exp(-self.period / 1e9 / self.lag)
            self.position = self.position + share * (self.last.position - self.position)
            self.orientation = turned(self.orientation, share * turn_between(self.orientation, self.last.orientation))
        self.now += self.period
        return setpoint

    def run(self, seconds: float) -> list[Setpoint | None]:
        return [self.step() for _ in range(round(seconds * 1e9 / self.period))]

    def _check(self, setpoint: Setpoint) -> None:
        last, dt = self.last, (self.now - self._time) / 1e9
        self.last, self._time = setpoint, self.now
        if last is None or np.linalg.norm(last.position - self.position) > self.limits.following_position:
            self._velocity = setpoint.linear, setpoint.angular
            return
        moved = (setpoint.position - last.position) / dt, turn_between(last.orientation, setpoint.orientation) / dt
        caps = (self.limits.speed, self.limits.acceleration), (self.limits.angular_speed, self.limits.angular_acceleration)
        for velocity, before, (speed, acceleration) in zip(moved, self._velocity, caps, strict=True):
            assert np.linalg.norm(velocity) <= speed * (1 + 1e-6) + 1e-9
            assert np.linalg.norm(velocity - before) <= acceleration * dt * (1 + 1e-6) + 1e-9
        self._velocity = moved
