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
class Command:
    """One control step. action: float32 [7], a row of an ActionChunk (msg/ActionChunk.msg).
    hold: stay at the measured pose; the offset is zero, the gripper keeps its last command."""

    action: NDArray[np.float32]
    hold: bool
    epoch: int
