"""Guards in the middle of a task, and what they are given, on a virtual clock."""

from __future__ import annotations

import numpy as np

from bitvla_ros.control.command import ArmState, Command
from bitvla_ros.control.guard import Guard
from bitvla_ros.control.limits import Limits

STEP = 50_000_000
SECOND = 1_000_000_000
NOW = 100 * STEP
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


def guard(lockstep: bool = False, **limits: object) -> Guard:
    made = Guard(Limits(**limits), 20.0)
    made.begin(1, 0, lockstep=lockstep)
    return made


def arm(position=(0.0, 0.0, 0.0), stamp: int = NOW) -> ArmState:
    return ArmState(np.array(position, np.float64), UPRIGHT, stamp)


def command(*offset: float, gripper: float = 1.0, epoch: int = 1, hold: bool = False) -> Command:
    action = np.zeros(7, np.float32)
    action[: len(offset)] = offset
    action[6] = gripper
    return Command(action, hold, epoch)


def lose(checked: Guard) -> None:
    checked.policy_alive(False, 0)
    checked.watch(SECOND)
