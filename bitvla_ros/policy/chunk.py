"""The action chunk: what a policy answers with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..action_convention import UNKNOWN, ActionConvention

OSC_POSE = "osc_pose"
ACTION_DIM = 7


@dataclass(frozen=True)
class Latency:
    """Seconds spent on a chunk: images, state and prompt; the network; everything from observation to chunk."""

    preprocessing: float = 0.0
    inference: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class ActionChunk:
    """Actions for the next H control steps (msg/ActionChunk.msg has the conventions of a row).

    actions: float32 [H, A]; action i is meant for the step that begins at observation_stamp + i * step_duration.
    observation_stamp, step_duration: nanoseconds. units: metres and radians a unit, where they are known.
    """

    actions: NDArray[np.float32]
    observation_stamp: int
    step_duration: int
    frame: str = ""
    control_mode: str = OSC_POSE
    sequence: int = 0
    epoch: int = 0
    instruction: str = ""
    model_hash: str = ""
    latency: Latency = Latency()
    units: ActionConvention = UNKNOWN

    @property
    def horizon(self) -> int:
        return int(self.actions.shape[0])

    @property
    def duration(self) -> int:
        """Nanoseconds from the first action to the end of the last."""
        return self.horizon * self.step_duration
