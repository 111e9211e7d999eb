"""What every policy offers: BitVLA, the scripted expert, a recorded replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..action_convention import UNKNOWN, ActionConvention
from .chunk import ActionChunk
from .observation import Observation


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs and what it gives.

    cameras: roles it looks at, in the model's order. horizon: actions in a chunk. control_hz: rate the actions are meant for.
    privileged: it needs simulator truth. model_hash: identifies weights and configuration as they are
    stored: a checkpoint and what was packed from it have two. convention: what the numbers of its actions mean.
    """

    name: str
    cameras: tuple[str, ...]
    horizon: int
    control_hz: float
    privileged: bool
    model_hash: str
    convention: ActionConvention = UNKNOWN

    @property
    def step_duration(self) -> int:
        """Nanoseconds of one action."""
        return round(1e9 / self.control_hz)


class Policy(Protocol):
    spec: PolicySpec

    def reset(self) -> None:
        """Forget everything: a new task begins."""

    def infer(self, observation: Observation) -> ActionChunk:
        """One chunk for one observation. `sequence` is left 0: whoever publishes counts."""
