"""What the numbers of an action mean, as numbers: stored with a dataset, taken over by the checkpoint that is trained on it and by the
model that is packed from that, sent with every chunk, and compared wherever two of them meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .stated import agreed, same

KEY = "action_convention"  # in info.json of a dataset, and in config.json of a checkpoint or a packed model


@dataclass(frozen=True)
class ActionConvention:
    """What a dataset's actions and states mean. None: unknown. Rate and cameras are stated beside it.

    metres_per_unit, radians_per_unit: what a full-scale component moves the arm by in one step, sustained; 1 where actions are metres
        and radians themselves.
    gripper_open, gripper_closed: the last number of an action when the gripper is to be open, and closed.
    orientation_branch: a quaternion xyzw; states' quaternions had the sign nearer to it before they became axis-angles.
    frame: whose axes actions and states are in.
    """

    metres_per_unit: float | None = None
    radians_per_unit: float | None = None
    gripper_open: float | None = None
    gripper_closed: float | None = None
    orientation_branch: tuple[float, float, float, float] | None = None
    frame: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no convention can be."""
        for name in ("metres_per_unit", "radians_per_unit", "gripper_open", "gripper_closed"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and (value > 0 or name.startswith("gripper"))):
                raise ValueError(f"{name} is {value!r}: expected a {'' if name.startswith('gripper') else 'positive '}number, or null")
        if (self.gripper_open is None) != (self.gripper_closed is None) or (self.gripper_open is not None and same_gripper(self)):
            raise ValueError(f"gripper_open is {self.gripper_open} and gripper_closed {self.gripper_closed}: expected two numbers, or none")
        branch = self.orientation_branch
        if branch is not None:
            if not isinstance(branch, (list, tuple)) or len(branch) != 4 or not all(map(_is_number, branch)) or not any(branch):
                raise ValueError(f"orientation_branch is {branch!r}: expected a quaternion, x, y, z, w, or null")
            object.__setattr__(self, "orientation_branch", tuple(map(float, branch)))
        if self.frame is not None and (not isinstance(self.frame, str) or not self.frame):
            raise ValueError(f"frame is {self.frame!r}: expected a frame's name, or null")

    @classmethod
    def from_json(cls, stated: object) -> ActionConvention:
        """What `to_json` gave; unknown throughout for None. Raises ValueError."""
        if stated is None:
            return UNKNOWN
        known = [field.name for field in fields(cls)]
        if not isinstance(stated, Mapping):
            raise ValueError(f"{KEY} is {stated!r}: expected an object with {', '.join(known)}")
        if foreign := sorted(set(stated) - set(known)):
            raise ValueError(f"{KEY} has {', '.join(foreign)}: expected {', '.join(known)}")
        return cls(**stated)

    def to_json(self) -> dict[str, Any]:
        """For a JSON file; unknown numbers are null."""
        branch = self.orientation_branch
        return {**asdict(self), "orientation_branch": None if branch is None else list(branch)}

    def differences(self, other: ActionConvention) -> Iterator[tuple[str, Any, Any]]:
        """Field, own value and the other's, of what both state and state differently. Branches differ where they are on opposite sides."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine is None or theirs is None:
                continue
            if sum(a * b for a, b in zip(mine, theirs, strict=True)) <= 0 if field.name == "orientation_branch" else not same(mine, theirs):
                yield field.name, mine, theirs

    def agreed(self, stated: ActionConvention, where: str | Path) -> ActionConvention:
        """Own numbers for what a file does not state. where: the file. Raises Contradiction where both state a number, and differ."""
        for name, mine, theirs in self.differences(stated):
            agreed(name, mine, theirs, where)
        return replace(self, **{name: value for name, value in vars(stated).items() if value is not None})

    @property
    def units(self) -> ActionConvention:
        """What a chunk says of itself: metres and radians a unit, and nothing else."""
        return ActionConvention(self.metres_per_unit, self.radians_per_unit)


def same_gripper(convention: ActionConvention) -> bool:
    """Whether open and closed are one number."""
    return same(convention.gripper_open, convention.gripper_closed)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


UNKNOWN = ActionConvention()
# robosuite 1.4's OSC_POSE at 20 Hz, measured, as LIBERO and the built-in scene were recorded with it; gripper and branch as in
# the datasets of the published policies.
OSC = ActionConvention(0.0135, 0.07, 1.0, 0.0, (1.0, 0.0, 0.0, 0.0), "world")
