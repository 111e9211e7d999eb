"""What goes from the player through the guard to a sink."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ArmState:
    """The measured arm. position: float64 [3], m. orientation: float64 [4] xyzw. stamp: nanoseconds of ROS time."""

    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    stamp: int


@dataclass(frozen=True)
class Joints:
    """The measured joints. positions: float64 [n], rad, or m of a sliding one. stamp: nanoseconds of ROS time."""

    positions: NDArray[np.float64]
    stamp: int


@dataclass(frozen=True)
class Command:
    """One control step. action: float32 [7], a row of an ActionChunk (msg/ActionChunk.msg).
    hold: stay at the measured pose; the offset is zero, the gripper keeps its last command."""

    action: NDArray[np.float32]
    hold: bool
    epoch: int


@dataclass(frozen=True)
class Setpoint:
    """Where an arm should be at one moment, and how fast it should be moving.

    position: float64 [3], m. orientation: float64 [4] xyzw. linear, angular: float64 [3], m/s and rad/s, the mean over the time since
    the setpoint before, so that position and velocity say the same. All in the frame of the measured pose, with the world's axes.
    gripper: -1 open ... +1 closed, what was commanded last; exactly 0 until something was: send nothing then.
    hold: at rest, and asked to be. epoch: of the task that it serves, or whose stop it belongs to.
    """

    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    linear: NDArray[np.float64]
    angular: NDArray[np.float64]
    gripper: float
    hold: bool
    epoch: int
