"""What every simulator offers, in process and behind the simulation node alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Snapshot:
    """Everything that can be seen at one tick.

    images: camera role -> uint8 [H, W, 3], RGB, upright (turned as the datasets store them, once, here).
    position: float64 [3], m, grip site. orientation: float64 [4] xyzw, hand body, on the dataset's branch. Both in `Environment.frame`.
    gripper: float64 [2], m, the two finger joints. joint_positions: float64 [n], rad, of the arm; gripper joints are not among them.
    object_poses: name -> float64 [7], position (m) and quaternion xyzw, in `Environment.frame`.
    """

    images: Mapping[str, NDArray[np.uint8]]
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    gripper: NDArray[np.float64]
    joint_positions: NDArray[np.float64]
    object_poses: Mapping[str, NDArray[np.float64]]
    success: bool


class Environment(Protocol):
    """One suite of language-conditioned tasks. Equal (task, seed, actions) give equal snapshots, byte for byte."""

    suite: str
    tasks: tuple[str, ...]  # instructions, by task index
    step_limit: int  # control steps an episode may take
    control_hz: float
    cameras: tuple[str, ...]  # roles rendered in every snapshot
    frame: str  # frame_id of every pose
    joint_names: tuple[str, ...]  # of joint_positions
    gripper_joint_names: tuple[str, str]

    def reset(self, task: int, seed: int) -> Snapshot:
        """Begin an episode. Raises ValueError for a task that the suite lacks."""

    def step(self, action: NDArray[np.float32]) -> Snapshot:
        """Play one control step. action: float32 [7], a row of an ActionChunk (msg/ActionChunk.msg). An offset of zero is a hold."""

    def close(self) -> None:
        """Free renderers."""


class PoseFollower(Environment, Protocol):
    """An Environment whose arm also goes to absolute poses at rates of its driver's, as a real arm does. LIBERO's is none: its
    controller, robosuite's, takes one offset from the measured pose in a control step of 50 ms."""

    physics_step: float  # s

    def follow(
        self, position: NDArray[np.float64], orientation: NDArray[np.float64], gripper: float, duration: float, *, render: bool = False
    ) -> Snapshot:
        """Pull the grip site towards a pose in `frame` for `duration` (s, a multiple of physics_step). position: float64 [3], m.
        orientation: float64 [4] xyzw, of the hand body. gripper: as in an action. render: without it the snapshot has no images."""
