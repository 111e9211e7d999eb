"""Where in a row of commands the arm begins to stop, and whether the stop is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...control.player import decelerated
from ...policy.chunk import ACTION_DIM


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


def find_stop(commands: Sequence[Sent], since: int, ramp_steps: int) -> int | None:
    """Index of the first command of the stop that ends in the first hold to arrive after `since` (ns, steady clock), or None.

    A stop is the ramp of control.player.decelerated; where the hold does not end such a ramp, it is the stop by itself.
    """
    hold = next((index for index, command in enumerate(commands) if command.arrival > since and command.hold), None)
    if hold is None:
        return None
    first = hold - max(ramp_steps, 1) + 1
    if first < 1:
        return hold
    before = commands[first - 1]
    ramp = (decelerated(before.action, step + 1, ramp_steps, before.epoch) for step in range(hold - first + 1))
    is_ramp = all(_same(sent, given.action, given.hold) for sent, given in zip(commands[first : hold + 1], ramp, strict=True))
    return first if is_ramp and before.moves else hold


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


def _same(sent: Sent, action: NDArray[np.float32], hold: bool) -> bool:
    return sent.hold == hold and bool(np.allclose(sent.action[:6], action[:6], rtol=1e-4, atol=1e-6))
