"""Where in a row of commands the arm begins to stop, and whether the stop is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...policy.chunk import ACTION_DIM

_TOLERANCE = 0.06  # of the offset: timers jitter by a few milliseconds
_REST = 1e-4  # m/s
_BRAKES = 0.8  # of the acceleration: stamps are not quite those of the steady clock that the stop goes by


@dataclass(frozen=True)
class Sent:
    """A command as it came to where the simulator stands. arrival: ns of the steady clock; stamp: ns of ROS time, when it was given.
    action: float32 [7], offset and gripper as in msg/EndEffectorCommand.msg."""

    arrival: int
    stamp: int
    epoch: int
    hold: bool
    action: NDArray[np.float32]

    @property
    def moves(self) -> bool:
        return not self.hold and bool(self.action[:6].any())


@dataclass(frozen=True)
class Target:
    """A pose that an arm was told to be at, as it arrived. arrival, stamp: as of Sent. position: float64 [3], m. orientation: float64 [4]
    xyzw."""

    arrival: int
    stamp: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]


def find_stop(commands: Sequence[Sent], since: int, ramp_steps: int, step: int) -> int | None:
    """Index of the first command of the stop that ends in the first hold to arrive after `since` (ns, steady clock), or None.

    A stop is a ramp as control.player.decelerated has it, which counts commands or, in the player, time in control steps of `step` ns;
    a hold that ends no ramp is the stop by itself.
    """
    hold = next((index for index, command in enumerate(commands) if command.arrival > since and command.hold), None)
    if hold is None:
        return None
    for first in range(max(hold - ramp_steps, 1), hold):
        if commands[first - 1].moves and _is_ramp(commands[first - 1 : hold], ramp_steps, step):
            return first
    return hold


def _is_ramp(commands: Sequence[Sent], steps: int, step: int) -> bool:
    """The first command is what the others, after it, bring to zero in equal parts."""
    before, began = commands[0].action[:6], commands[1].stamp
    for count, command in enumerate(commands[1:], 1):
        share = float(command.action[:6] @ before / (before @ before))
        by_time = 1 + (command.stamp - began) / step
        if min(abs(share - (1 - done / steps)) for done in (count, by_time)) > _TOLERANCE:
            return False
        if np.abs(command.action[:6] - share * before).max() > _TOLERANCE * np.abs(before).max():
            return False
    return True


def speeds(targets: Sequence[Target]) -> NDArray[np.float64]:
    """m/s, float64 [n]: of each target from the one before it; the first is 0."""
    positions, times = np.array([target.position for target in targets]), np.array([target.stamp for target in targets], np.float64)
    moved = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return np.concatenate([[0.0], moved / np.maximum(np.diff(times) / 1e9, 1e-9)])


def find_braking(targets: Sequence[Target], since: int, acceleration: float) -> int | None:
    """Index of the first target of the stop after which the arm is at rest for good, where that is after `since` (ns, steady clock);
    else None.

    A stop brakes at `acceleration` (m/s2); slower changes before it belong to the motion."""
    if len(targets) < 2:
        return None
    speed = speeds(targets)
    rest = int(np.flatnonzero(speed >= _REST)[-1]) + 1 if (speed >= _REST).any() else 0
    if rest == len(targets) or targets[rest].arrival <= since:
        return None
    first = rest
    while first > 1:
        elapsed = (targets[first - 1].stamp - targets[first - 2].stamp) / 1e9
        if speed[first - 2] - speed[first - 1] < _BRAKES * acceleration * elapsed:
            break
        first -= 1
    return first


def problems_of(commands: Sequence[Sent], stop: int, ramp_steps: int) -> list[str]:
    """What is wrong with the stop that begins at commands[stop], and with what follows it."""
    problems = []
    if commands[stop].hold and ramp_steps > 1 and stop > 0 and commands[stop - 1].moves:
        problems.append(f"it holds at once, from an offset of {np.abs(commands[stop - 1].action[:6]).max():.2f}, where a ramp was due")
    held = next((index for index in range(stop, len(commands)) if commands[index].hold), len(commands))
    if any(command.moves for command in commands[held:]):
        problems.append("the arm is moved again after the hold")
    return problems


def bad_commands(commands: Sequence[Sent]) -> list[str]:
    """Commands that no arm should ever be sent."""
    problems = []
    for command in commands:
        if command.action.shape != (ACTION_DIM,) or not np.isfinite(command.action).all():
            problems.append(f"a command is not finite: {command.action.tolist()}")
        elif np.abs(command.action).max() > 1 + 1e-5:
            problems.append(f"a command is beyond [-1, 1]: {command.action.tolist()}")
    return problems
