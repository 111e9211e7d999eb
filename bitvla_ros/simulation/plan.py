"""What a suite tells the scripted expert of its tasks."""

from __future__ import annotations

from dataclasses import dataclass


class ExpertError(ValueError):
    """The expert was given something that it cannot act on."""


class ObjectMissing(ExpertError):
    """What the plan is about has no pose."""


@dataclass(frozen=True)
class PickAndPlace:
    """How one task is done. Names are those of Privileged.object_poses; lengths in m, world axes.

    pick, place: the object to move, and the object to put it on or in.
    grasp: grip site from the picked object's origin when the fingers close.
    place_at: the picked object's origin from the goal's origin, sideways.
    release: height of the grip site above the goal's origin when the fingers open.
    hover, lift: heights of the grip site above the grasp before and after it.
    close_steps, open_steps: control steps that the fingers are given.
    """

    pick: str
    place: str
    grasp: tuple[float, float, float] = (0.0, 0.0, 0.0)
    place_at: tuple[float, float] = (0.0, 0.0)
    release: float = 0.07
    hover: float = 0.12
    lift: float = 0.16
    close_steps: int = 12
    open_steps: int = 10
