"""What a policy is given: images by camera role, the robot's state, the instruction, and when each was captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

STATE_DIM = 8
LENGTH_TOLERANCE = 1e-2  # of a quaternion


@dataclass(frozen=True)
class Privileged:
    """Simulator truth. BitVLA never reads it; the scripted expert needs it.

    object_poses: name -> float64 [7], position (m) and quaternion xyzw, in the frame of the end-effector pose.
    success: the task's goal holds.
    """

    object_poses: Mapping[str, NDArray[np.float64]]
    success: bool = False


@dataclass(frozen=True)
class Observation:
    """One moment as a policy sees it.

    images: camera role ("scene", "wrist", ...) -> uint8 [H, W, 3], RGB, upright.
    state: float64 [8] = end-effector position (m, 3), axis-angle (rad, 3), two gripper joints (m, 2); see `state_vector`.
    instruction: the user's words.
    stamps: capture time of every input by name (camera roles, "state", "privileged"), nanoseconds of ROS time. Where pose and gripper
        came apart also of each of them (gate.STATE_PARTS); "state" is then the older one.
    epoch: the task this observation belongs to; 0 where nobody numbers tasks.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float64]
    instruction: str
    stamps: Mapping[str, int]
    epoch: int = 0
    privileged: Privileged | None = None

    @property
    def stamp(self) -> int:
        """Capture time of the oldest input, nanoseconds of ROS time: the age of what is computed from it."""
        return min(self.stamps.values())


def are_units(quaternions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """bool [...] of [..., 4]: finite, and of length 1 but for what drivers round."""
    return np.asarray(np.abs(np.linalg.norm(quaternions, axis=-1) - 1.0) <= LENGTH_TOLERANCE)


def unit_quaternions(quaternions: ArrayLike) -> NDArray[np.float64]:
    """The same rotations, float64 [..., 4] xyzw, of length 1. Whatever becomes a state or an action is measured by these.
    Raises ValueError where one is not finite or far from that length."""
    quaternions = np.asarray(quaternions, np.float64)
    wrong = ~are_units(quaternions)
    if wrong.any():
        raise ValueError(f"the quaternion is {quaternions[wrong].reshape(-1, 4)[0]}; expected a unit one, xyzw")
    return quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)


def quaternion_to_axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [4] xyzw -> float64 [3], rad. The angle is 2 acos(w), in [0, 2 pi]: q and -q give different vectors,
    as in the robosuite function with which LIBERO's datasets were made."""
    x, y, z, w = np.asarray(quaternion, np.float64)
    w = min(max(w, -1.0), 1.0)
    sine = np.sqrt(1.0 - w * w)
    if sine < 1e-9:
        return np.zeros(3)
    return np.array([x, y, z]) * (2.0 * np.arccos(w) / sine)


def state_vector(position: NDArray[np.float64], quaternion: NDArray[np.float64], gripper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Proprioception as the datasets store it, float64 [8].

    position: [3], m, of the grip site. quaternion: [4] xyzw, of the hand body, already on the dataset's branch.
    gripper: [2], m, the two finger joints (+w/2, -w/2 for an opening w).
    """
    return np.concatenate([np.asarray(position, np.float64), quaternion_to_axis_angle(quaternion), np.asarray(gripper, np.float64)])
