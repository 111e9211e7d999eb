"""The player: action chunks in, commands out, at the control rate or any higher one.

Each action is played when the model meant it. In `realtime` the measured age of a chunk's observation says which action is due
and elapsed ones are dropped, unless the arm has held still since the observation: then nothing of the plan has elapsed and it
starts at action 0. In `lockstep` a chunk is computed from the very tick at which it starts, so its age is zero by construction.
No clocks are read here: `now` is an argument, nanoseconds of ROS time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from ..action_convention import UNKNOWN, ActionConvention
from ..policy.chunk import ACTION_DIM, OSC_POSE, ActionChunk
from .command import ArmState, Command

_REST = np.zeros(ACTION_DIM, np.float32)


class Refusal(str, Enum):
    """Why a chunk was refused."""

    NO_TASK = "no_task"
    EPOCH = "epoch"
    CONTROL_MODE = "control_mode"
    FRAME = "frame"
    UNITS = "units"
    RATE = "rate"
    DIMENSION = "dimension"
    NON_FINITE = "non_finite"
    STALE = "stale"
    BACKWARD = "backward"
    FUTURE = "future"
    NOT_ASKED = "not_asked"


class ChunkRefused(Exception):
    """A chunk that will not be played. `reason` says why in one word, the message in a sentence."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PlayerConfig:
    """How chunks are played. Seconds, metres and radians.

    control_hz: rate of the control steps; chunks made for another rate are refused.
    replan_steps: actions of a chunk played before the next chunk takes over; 0: all of them.
    The rest matters in realtime only.
    max_age: oldest observation whose chunk a moving arm still follows.
    max_age_still: the same for an arm that held still since the observation.
    max_future: tolerated lead of an observation's stamp over our clock.
    still_position, still_angle: the measured pose may wander so far and the arm still counts as still.
    fade_steps: steps in which what was commanded last gives way to a new chunk.
    ramp_steps: steps in which the offset goes to zero after the last action of a chunk.
    ensemble: above 0: an action is the mean of what all chunks say that cover its moment, the i-th oldest weighted by
        exp(-ensemble * i), as in ACT (arXiv 2304.13705, where 0.01 is used); the gripper is the newest chunk's. 0: the newest alone.
    """

    control_hz: float = 20.0
    replan_steps: int = 0
    max_age: float = 0.4
    max_age_still: float = 10.0
    max_future: float = 0.05
    still_position: float = 0.002
    still_angle: float = 0.01
    fade_steps: int = 2
    ramp_steps: int = 4
    ensemble: float = 0.0

    def __post_init__(self) -> None:
        if not self.control_hz > 0:
            raise ValueError(f"control_hz is {self.control_hz}; a control rate is above 0 Hz")
        ages = ("max_age", "max_age_still", "max_future", "still_position", "still_angle")
        for name in ("replan_steps", *ages, "fade_steps", "ramp_steps", "ensemble"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative")

    @property
    def step_duration(self) -> int:
        """Nanoseconds of one control step."""
        return round(1e9 / self.control_hz)


@dataclass
class _Plan:
    """A chunk that is played. origin: when its action 0 is, or would have been, played; None before it is played first.
    still: the arm has held still since the observation, so nothing has elapsed."""

    chunk: ActionChunk
    still: bool
    origin: int | None = None


class Player:
    """Plays the chunks of one task at a time. `began`: the last `play` was the first of a control step."""

    def __init__(self, config: PlayerConfig, frame: str = "", units: ActionConvention = UNKNOWN) -> None:
        """frame: the frame that commands are in; chunks that name another are refused. Empty: not checked. units: metres and radians that
        a full-scale action is taken for; chunks that state others are refused."""
        self.config = config
        self.frame, self.units = frame, units
        self.began = False
        self._step = config.step_duration
        self._epoch: int | None = None
        self._lockstep = False
        self._start = 0  # stamp of the task
        self._plans: list[_Plan] = []  # the newest last; without ensembling it is the only one
        self._count = 0  # of chunks taken over
        self._played_last: tuple[int, int] = (0, 0)  # chunk and control step of the last `play`
        self._anchor: ArmState | None = None  # since its stamp the arm has been here, and nothing but holds was commanded
        self._last = _REST  # what was commanded last, and what the fade and the ramp start from
        self._from = _REST
        self._since: int | None = None  # when the fade or the ramp began; None before its first step
        self._fades = False
        self._holding = True

    @property
    def chunk(self) -> ActionChunk | None:
        """The newest of those being played."""
        return self._plans[-1].chunk if self._plans else None

    def begin(self, epoch: int, now: int, *, lockstep: bool) -> None:
        """A task begins: only chunks of `epoch` from observations not older than `now` are played from here on."""
        self._epoch, self._start, self._lockstep = epoch, now, lockstep
        self._plans = []
        self.resume()

    def resume(self) -> None:
        """Go on from what was commanded last: since the task began, or its first chunk came, that may have been a stop."""
        self._from, self._since = self._last, None

    def end(self) -> None:
        """The task is over: nothing is played until the next `begin`."""
        self._epoch, self._plans = None, []

    @property
    def due(self) -> int:
        """Lockstep: observation stamp of the next chunk."""
        return self._start if self.chunk is None else self.chunk.observation_stamp + self._played(self.chunk) * self._step

    def age(self, now: int) -> int:
        """Nanoseconds since the observation behind the action being played; 0 without a chunk."""
        return 0 if self.chunk is None else now - self.chunk.observation_stamp

    def accept(self, chunk: ActionChunk, now: int) -> None:
        """Take a chunk over. Raises ChunkRefused, and goes on as if the chunk had not come."""
        self._validate(chunk)
        stamp = chunk.observation_stamp
        still = self._anchor is not None and self._anchor.stamp <= stamp
        if self._lockstep:
            if stamp != self.due:
                raise ChunkRefused(Refusal.NOT_ASKED, f"chunk of the observation at {stamp} ns, but the one asked for is at {self.due} ns")
        else:
            self._validate_time(chunk, now, still)
        keep = self.config.ensemble > 0 and not self._lockstep and not (still and self._holding)
        self._plans = [*(self._plans if keep else []), _Plan(chunk, still)]
        self._count += 1
        self._from, self._since, self._fades = self._last, None, True

    def play(self, now: int, arm: ArmState, *, continuous: bool = False) -> Command | None:
        """The command for the moment `now`. Lockstep: None while the chunk of this tick has not come.

        continuous: False: called once a control step, which begins now. True: called more often, for a motion model: actions change
        exactly when the model meant them to, and an arm at rest does not fade into its first chunk."""
        if self._epoch is None:
            raise RuntimeError("no task: call begin() first")
        if self._lockstep:
            return self._play_exactly(now)
        if continuous and self._since is None and self._holding:
            self._fades = False
        self.watch(arm)
        for plan in self._plans:
            if plan.origin is None:
                plan.origin = self._origin(plan, now, continuous)
        half = 0 if continuous else self._step // 2  # to the nearest step: timers jitter
        steps = [max((now - (plan.origin or 0) + half) // self._step, 0) for plan in self._plans]
        due = [(plan, index) for plan, index in zip(self._plans, steps, strict=True) if index < plan.chunk.horizon]
        if not due:
            return self._slow_down(now, continuous)
        self._plans = [plan for plan, _ in due]
        played, self._played_last = self._played_last, (self._count, due[-1][1])
        self.began = self._played_last != played
        return self._emit(self._fade(self._mean(due), now, continuous))

    def watch(self, arm: ArmState) -> None:
        """Notice whether the arm holds still. `play` does so itself; call this while no task runs."""
        if self._anchor is None or not self._holding or not self._near(arm, self._anchor):
            self._anchor = arm

    def commanded(self, command: Command) -> Command:
        """What really went out, where the guard changed it: fades and ramps start from it."""
        self._last, self._holding = command.action, command.hold
        return command

    # Validation

    def _validate(self, chunk: ActionChunk) -> None:
        if self._epoch is None:
            raise ChunkRefused(Refusal.NO_TASK, "no task is running")
        if chunk.epoch != self._epoch:
            raise ChunkRefused(Refusal.EPOCH, f"chunk of epoch {chunk.epoch}; the task's is {self._epoch}")
        if chunk.control_mode != OSC_POSE:
            raise ChunkRefused(Refusal.CONTROL_MODE, f"control mode {chunk.control_mode!r}; this player knows {OSC_POSE!r}")
        if self.frame and chunk.frame and chunk.frame != self.frame:
            raise ChunkRefused(Refusal.FRAME, f"actions in frame {chunk.frame!r}; the arm is commanded in {self.frame!r}")
        for name, stated, own in chunk.units.differences(self.units):
            raise ChunkRefused(
                Refusal.UNITS,
                f"the policy's {name} is {stated:g}, and limits.{name} is {own:g}: set it so, or take a model trained for this arm",
            )
        if chunk.actions.ndim != 2 or chunk.actions.shape[0] == 0 or chunk.actions.shape[1] != ACTION_DIM:
            raise ChunkRefused(Refusal.DIMENSION, f"actions of shape {chunk.actions.shape}; expected [H >= 1, {ACTION_DIM}]")
        if chunk.step_duration != self._step:
            raise ChunkRefused(
                Refusal.RATE,
                f"chunk made for steps of {chunk.step_duration / 1e6:g} ms, but control steps last {self._step / 1e6:g} ms:"
                " set control_hz to the rate that the policy was trained at",
            )
        if not np.isfinite(chunk.actions).all():
            raise ChunkRefused(Refusal.NON_FINITE, "an action is not finite")

    def _validate_time(self, chunk: ActionChunk, now: int, still: bool) -> None:
        stamp, age = chunk.observation_stamp, now - chunk.observation_stamp
        if stamp < self._start:
            raise ChunkRefused(Refusal.STALE, f"observation {(self._start - stamp) / 1e9:.3f} s older than the task")
        if -age > self.config.max_future * 1e9:
            raise ChunkRefused(Refusal.FUTURE, f"observation {-age / 1e9:.3f} s in the future: are the clocks synchronised?")
        if self.chunk is not None and stamp <= self.chunk.observation_stamp:
            raise ChunkRefused(Refusal.BACKWARD, "observation not newer than that of the chunk being played")
        limit = self.config.max_age_still if still else min(self.config.max_age, chunk.duration / 1e9)
        if age >= limit * 1e9:
            arm = "an arm that held still" if still else "a moving arm"
            raise ChunkRefused(Refusal.STALE, f"observation {age / 1e9:.3f} s old; the limit for {arm} is {limit:g} s")

    # Playing

    def _played(self, chunk: ActionChunk) -> int:
        return min(self.config.replan_steps or chunk.horizon, chunk.horizon)

    def _play_exactly(self, now: int) -> Command | None:
        if self.chunk is None or now >= self.due:
            return None
        return self._emit(self.chunk.actions[(now - self.chunk.observation_stamp) // self._step])

    def _origin(self, plan: _Plan, now: int, continuous: bool) -> int:
        if plan.still:
            return now
        stamp = plan.chunk.observation_stamp
        return stamp if continuous else now - max((now - stamp) // self._step, 0) * self._step

    def _mean(self, due: list[tuple[_Plan, int]]) -> NDArray[np.float32]:
        """What chunks, the oldest first, say of this moment."""
        actions = [plan.chunk.actions[index] for plan, index in due]
        if len(due) == 1:
            return actions[0]
        weights = np.array([math.exp(-self.config.ensemble * i) for i in range(len(due))])
        mean = (weights / weights.sum()) @ np.array(actions, np.float64)
        mean[6] = actions[-1][6]
        return mean.astype(np.float32)

    def _steps_since(self, now: int, continuous: bool) -> float:
        """Control steps into the fade or ramp. At the control rate its first command counts 1, so that it makes a difference at once."""
        if self._since is None:
            self._since = now
        return max(now - self._since, 0) / self._step + (0 if continuous else 1)

    def _fade(self, action: NDArray[np.float32], now: int, continuous: bool) -> NDArray[np.float32]:
        """What was commanded when the chunk came gives way to the chunk, linearly in time. A convex sum: never beyond either."""
        steps = self._steps_since(now, continuous)
        whole = self.config.fade_steps + (0 if continuous else 1)
        if not self._fades or steps >= whole:
            self._fades = False
            return action
        share = np.float32(steps / whole)
        blended = action * share + self._from * (1 - share)
        blended[6] = action[6]
        return blended

    def _slow_down(self, now: int, continuous: bool) -> Command:
        """The plan is used up: the offset goes to zero, linearly in time, then the arm holds."""
        if self._plans:
            self._from, self._since, self._plans = self._last, None, []
        steps = self._steps_since(now, continuous)
        played, self._played_last = self._played_last, (-self._count, int(steps))
        self.began = self._played_last != played
        return self.commanded(decelerated(self._from, steps, self.config.ramp_steps, self._epoch or 0))

    def _emit(self, action: NDArray[np.float32]) -> Command:
        return self.commanded(Command(np.array(action, np.float32), hold=False, epoch=self._epoch or 0))

    def _near(self, a: ArmState, b: ArmState) -> bool:
        angle = 2 * np.arccos(min(1.0, abs(float(np.dot(a.orientation, b.orientation)))))
        return bool(np.linalg.norm(a.position - b.position) <= self.config.still_position and angle <= self.config.still_angle)


def decelerated(action: NDArray[np.float32], step: float, steps: int, epoch: int) -> Command:
    """The command `step` control steps into a stop that began at `action`: its offset shrinks by equal parts and is a hold from step
    `steps` on, or from the first where it was zero already. The gripper keeps its last command."""
    stopped = np.array(action, np.float32)
    hold = step >= steps or not stopped[:6].any()
    stopped[:6] *= np.float32(0 if hold else 1 - step / steps)
    return Command(stopped, hold, epoch)
