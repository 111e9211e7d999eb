"""A task from its first tick to its result: player, motion and guard joined, with the rules of lockstep and realtime.

The controller node and the in-process rollout both run this code, so the same chunks give the same commands, byte for byte.
`tick` answers a simulator once a control step; `setpoint` drives an arm, at the rate of whatever moves it. A session does one or the
other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from ..policy.chunk import ACTION_DIM, ActionChunk
from .command import ArmState, Command, Joints, Setpoint
from .continuity import PoseContinuity
from .guard import Guard
from .limits import FaultReason, Limits
from .motion import Motion
from .player import ChunkRefused, Player, PlayerConfig
from .rotation import turn_between, turned

_PLACING = 2_000_000_000  # ns that measured poses may contradict one another before a task's first setpoint


@dataclass(frozen=True)
class ControlConfig:
    """Player and guard for a simulator. Offsets beyond [-1, 1] are clipped, as robosuite's OSC controller clips its input.

    motion: what an offset means to an arm that is given setpoints, of motion.MODELS. lag: s, by which that arm follows behind them.
    hold_repeats: how often the hold at the end of a stop is said again, because a setpoint may be lost on its way to the arm."""

    player: PlayerConfig = field(default_factory=PlayerConfig)
    limits: Limits = field(default_factory=lambda: Limits(clamp=("offset",)))
    motion: str = "spring"
    lag: float = 0.0
    hold_repeats: int = 5

    def __post_init__(self) -> None:
        if self.hold_repeats < 0:
            raise ValueError(f"hold_repeats is {self.hold_repeats}; it cannot be negative")


class Outcome(IntEnum):
    """How a task ended; the numbers of action/ExecuteInstruction.action."""

    SUCCESS = 0
    TIME_LIMIT = 1
    CANCELLED = 2
    FAULT = 3


@dataclass(frozen=True)
class Result:
    """steps: control steps played. chunks: chunks of which at least one action was played."""

    outcome: Outcome
    reason: str
    steps: int
    chunks: int


class Session:
    """Runs one task after another. Times are nanoseconds: `now` of ROS time, `steady` of the steady clock.

    frame: of the setpoints that go out. blind: the last of them rests because the measured pose is late.
    shadow: somebody else moves the arm; setpoints say what the policy would do from where it is.
    fade: s in which a distance between setpoint and measured arm fades; 0: it stays. For an arm that is given velocities alone: the
        small errors of following them would add up, over a task, until the setpoint is far from the arm. One that does not follow at
        all is found by its distance all the same."""

    def __init__(self, config: ControlConfig, frame: str = "", epoch: int = 0) -> None:
        """frame: of the commands; empty: not checked. epoch: the last one used; each task takes the next."""
        self.config = config
        self.frame = frame
        self.player = Player(config.player, frame, config.limits.units)
        self.guard = Guard(config.limits, config.player.control_hz)
        self.motion = Motion(config.limits.motion(config.motion, config.lag), config.player.control_hz)
        self.shadow = False
        self.fade = 0.0
        self.blind = False
        self.epoch = epoch
        self.running = False
        self.lockstep = False
        self.result: Result | None = None  # of the last task
        self.steps = 0
        self.chunks = 0
        self._start = self._end_at = self._newest = 0
        self._counted: ActionChunk | None = None
        self._ramping = False  # of commands: the stop's ramp has not reached its hold
        self._holds_left = 0  # of setpoints: how many holds have still to be given until the arm counts as stopped
        self._placed = False  # the task's setpoints have begun
        self._placing: int | None = None  # since when the task has waited for measured poses that agree
        self._poses = PoseContinuity(config.limits)

    @property
    def replan_interval(self) -> int:
        """Nanoseconds between the observations that the policy should answer; 0: a chunk is played to its end."""
        player = self.config.player
        overlap = player.ensemble > 0 and not self.lockstep  # a mean needs as many chunks as it can get
        return (player.replan_steps or int(overlap)) * player.step_duration

    def begin(self, now: int, limit: int, steady: int, *, lockstep: bool) -> int:
        """A task begins at `now` and may take `limit` ns. Returns its epoch. RuntimeError while another runs or a fault is latched.

        An arm that still moves for the task before goes on to its hold, or into this task, whatever happens to it."""
        if self.running:
            raise RuntimeError("a task is running: cancel it first")
        if self.guard.fault is not None:
            raise RuntimeError(f"a fault is latched ({self.guard.fault.message}): reset it first")
        self.epoch += 1
        self.player.begin(self.epoch, now, lockstep=lockstep)
        self.guard.begin(self.epoch, steady, lockstep=lockstep)
        self.running, self.lockstep, self.result = True, lockstep, None
        self.steps = self.chunks = 0
        self._start, self._end_at, self._newest = now, now + limit, now
        self._placed = self._ramping = False
        self._placing = None
        return self.epoch

    def accept(self, chunk: ActionChunk, now: int, steady: int) -> None:
        """Hand over a chunk. Raises ChunkRefused; in lockstep the refusal of the very chunk that was asked for is a fault,
        because no other will come."""
        asked_for = self.running and self.lockstep and chunk.epoch == self.epoch and chunk.observation_stamp == self.player.due
        try:
            self.player.accept(chunk, now)
        except ChunkRefused as refused:
            if asked_for:
                self.fault(FaultReason.CHUNK, f"the chunk was refused: {refused}")
            raise
        self.guard.progress(steady)

    def tick(self, now: int, arm: ArmState, success: bool, steady: int) -> Command | None:
        """The answer to a control step, or None: the chunk of this lockstep tick has not come, or there is nothing to say.

        success: the simulator, or whoever judges, says at this tick that the goal is reached; counts once a step was played.
        """
        self.guard.looks(now, steady)
        if self.running:
            self._conclude(now, success)
        if not self.running:
            self.player.watch(arm)
            return self._next_of_stop()
        if self.lockstep and now > self._newest:
            self._newest = now
            self.guard.progress(steady)
        asked = self.player.play(now, arm)
        if asked is None:
            return None
        command = self.guard.check(now, asked, arm)
        self.player.commanded(command)
        if self.guard.fault is not None:
            self._end(Outcome.FAULT, self.guard.fault.message)
            self._ramping = not command.hold
        else:
            self.steps += 1
            self._count_chunk()
        return command

    def setpoint(self, now: int, arm: ArmState, success: bool, steady: int, joints: Joints | None = None) -> Setpoint | None:
        """Realtime: the setpoint of this moment, at any rate not below the control rate. None: there is nothing to say. Without a task:
        those of the stop, the last of them a hold and its repetitions.

        joints: where known. success: as in `tick`. A pause of more than a control step and a half brakes: whatever moves the arm has
        heard nothing for as long. So does a pose older than `Limits.unseen`: an arm that is not seen is not led."""
        if self.running and self.lockstep:
            raise RuntimeError("a lockstep task is answered by tick()")
        self.guard.looks(now, steady)
        self._poses.observe(arm)
        self.blind = False
        if self.running:
            self._conclude(now, success)
        if not self.running:
            self.player.watch(arm)
            return self.brake(steady)
        setpoint = None if self._placed else self._begin_motion(now, arm, steady)
        if self._placed and setpoint is None:
            setpoint = self._follow(now, arm, joints, steady)
        if self.running:
            self.steps = max(self.steps, (now - self._start) // self.config.player.step_duration + 1)
            self._count_chunk()
        return setpoint

    def brake(self, steady: int) -> Setpoint | None:
        """The next setpoint of a stop, for which the arm need not be seen: deceleration to a hold, which is said again
        `ControlConfig.hold_repeats` times. None: the stop is over. A task that runs goes on afterwards, from the hold."""
        self._ramping = False  # of commands alone
        setpoint = self.guard.stop_setpoint(steady, self.epoch) if self._holds_left else None
        if setpoint is not None:
            self._holds_left -= setpoint.hold and not (self.running and self._placed)
            self.motion.resume(setpoint)
            rest = np.zeros(ACTION_DIM, np.float32)
            rest[6] = setpoint.gripper
            self.player.commanded(Command(rest, setpoint.hold, self.epoch))
        return setpoint

    def _begin_motion(self, now: int, arm: ArmState, steady: int) -> Setpoint | None:
        """Go on from the task before, where the arm still moves or has not settled yet. Else the first setpoint: a hold where the arm is
        measured."""
        self.player.watch(arm)
        if not self.guard.check_arm(now, arm):
            self._notice()
            return self.brake(steady)
        setpoints = self.guard.setpoints
        if setpoints.last is not None and (self._holds_left or setpoints.settling(steady)):
            if self.frame != self.player.frame or not (setpoints.follows(arm) and setpoints.stays_inside(self.config.limits)):
                return self.brake(steady)  # and wait until the arm has settled, wherever that is
            self._go_on(setpoints.last)
            return None
        if not (self.shadow or self._poses.agree):
            self._wait_for_poses(arm, steady)
            return None
        setpoint = self.guard.place(now, arm, steady)
        self._notice()
        if setpoint is not None:
            self._go_on(setpoint)
        return setpoint

    def _go_on(self, setpoint: Setpoint) -> None:
        """The task's setpoints go on from this one."""
        self.motion.resume(setpoint)
        self.player.resume()
        self._placed, self.frame = True, self.player.frame
        self._holds_left = 1 + self.config.hold_repeats

    def _wait_for_poses(self, arm: ArmState, steady: int) -> None:
        self._placing = steady if self._placing is None else min(self._placing, steady)
        if steady - self._placing > _PLACING:
            found = f"the measured poses have contradicted one another for {_PLACING / 1e9:g} s, the last at {arm.position.tolist()} m"
            self.fault(FaultReason.STATE, f"{found}: does the arm move, do they come too seldom, or from more than one driver?")

    def _follow(self, now: int, arm: ArmState, joints: Joints | None, steady: int) -> Setpoint | None:
        elapsed = max(steady - self.guard.setpoints.time, 0)
        pause = elapsed > 1.5 * self.config.player.step_duration
        seen = self.guard.check_arm(now, arm)
        if seen and (self.shadow or self.fade):
            here = arm if self.shadow else self._faded(arm, elapsed)
            self.motion.rebase(here)
            self.guard.setpoints.rebase(here)
        asked = self.player.play(now, arm, continuous=True)
        if asked is None:
            return None  # lockstep alone
        command = self.guard.check_offset(asked)
        self.blind = now - arm.stamp > self.config.limits.unseen * 1e9
        rest = command.hold or self.blind or pause
        wanted = self.motion.step(None if rest else command.action, elapsed / 1e9, self.player.began, arm if seen else None)
        setpoint = self.guard.check_setpoint(now, replace(wanted, epoch=self.epoch), arm, joints, steady)
        if setpoint is not None and not setpoint.hold:
            self._holds_left = 1 + self.config.hold_repeats
        self._notice()
        self.player.commanded(replace(command, hold=self.shadow or (setpoint is not None and setpoint.hold)))
        return setpoint

    def _faded(self, arm: ArmState, elapsed: int) -> ArmState:
        """Where the last setpoint is, and a little nearer to the arm."""
        last = self.guard.setpoints.last
        if last is None:
            return arm
        share = min(elapsed / 1e9 / self.fade, 1.0)
        position = last.position + share * (arm.position - last.position)
        return ArmState(position, turned(last.orientation, share * turn_between(last.orientation, arm.orientation)), arm.stamp)

    @property
    def stopping(self) -> bool:
        """A stop has begun, and its hold, or a repetition of it, has not been given yet."""
        return self._ramping or (self._holds_left > 0 and not self.running)

    def cancel(self, reason: str, *, stop: bool = True) -> None:
        """Drop the task. When this returns no further command of its epoch is given but those that stop the arm.
        stop: False gives not even those to whoever waits for a command, because that is for another task's; an arm that is given
        setpoints is stopped all the same."""
        if self.running:
            self._end(Outcome.CANCELLED, reason)
            self._ramping = stop

    def fault(self, reason: FaultReason, message: str) -> None:
        """Stop, and latch."""
        self.guard.trip(reason, message)
        self._notice()

    def restrict(self, limits: Limits) -> None:
        """Take on stricter limits, at once. Setpoints that are faster than these slow down within the acceleration; nothing faults that
        keeps to them. Raises ValueError, and changes nothing, where one is looser, or where a setpoint that moves or is being led would
        be outside the smaller box."""
        now = self.config.limits
        if looser := limits.looser(now):
            raise ValueError(f"{', '.join(looser)} would allow more than now, and only stricter limits are taken on")
        box = limits.workspace_min, limits.workspace_max
        led = ((self.running and self._placed) or self.stopping) and box != (now.workspace_min, now.workspace_max)
        if led and not self.guard.setpoints.stays_inside(limits):
            raise ValueError("the setpoint, or where it could stop, is outside this box: end the task, or lead the arm inside first")
        self.config = replace(self.config, limits=limits)
        self.guard.restrict(limits)
        self._poses.limits = limits
        self.motion.restrict(limits.motion(self.config.motion, self.config.lag))

    def policy_alive(self, alive: bool, steady: int) -> None:
        """Liveliness of the policy. Its loss during a task is a fault, found by `watch` after a grace."""
        self.guard.policy_alive(alive, steady)

    def watch(self, steady: int) -> None:
        """Call a few times a second, and at the end of a grace: liveliness and deadlines run on the steady clock."""
        self.guard.watch(steady, "the next tick or chunk" if self.lockstep else "an action chunk")
        self._notice()

    def reset_fault(self) -> None:
        """Clear a latched fault; the next task may begin."""
        self.guard.reset()

    def _count_chunk(self) -> None:
        if self.player.chunk is not None and self.player.chunk is not self._counted:
            self._counted = self.player.chunk
            self.chunks += 1

    def _notice(self) -> None:
        if self.running and self.guard.fault is not None:
            self._end(Outcome.FAULT, self.guard.fault.message)

    def _conclude(self, now: int, success: bool) -> None:
        if success and self.steps > 0:
            self._end(Outcome.SUCCESS, "the goal is reached")
        elif now >= self._end_at:
            self._end(Outcome.TIME_LIMIT, f"not reached within {(self._end_at - self._start) / 1e9:g} s")
        elif self.lockstep and (now - self._start) % self.config.player.step_duration:
            late, step = (now - self._start) / 1e6, self.config.player.step_duration / 1e6
            self.fault(FaultReason.TICK, f"tick {late:g} ms after the task began; control_hz gives steps of {step:g} ms")

    def _end(self, outcome: Outcome, reason: str) -> None:
        self.result = Result(outcome, reason, self.steps, self.chunks)
        self.running = False
        self.player.end()
        self.guard.end()
        # A lockstep simulator stands still where nobody answers; after success or the limit nobody does.
        self._ramping = not (self.lockstep and outcome in (Outcome.SUCCESS, Outcome.TIME_LIMIT))

    def _next_of_stop(self) -> Command | None:
        if not self._ramping:
            return None
        command = self.guard.stop(self.epoch)
        self.player.commanded(command)
        self._ramping = not command.hold
        return command
