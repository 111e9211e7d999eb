"""What LeRobot is given to write, here and in its own interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

FPS, SIZE, LENGTHS, TASKS = 10, 64, (6, 9, 4), ("open the drawer", "close the drawer", "open the drawer")


def numbers(episode: int) -> tuple[Any, Any, Any]:
    """Pictures of soft colours, which survive a codec, state [T, 8] and actions [T, 7] with the gripper in -1 (open), 1."""
    random, length = np.random.default_rng(episode), LENGTHS[episode]
    shades = 20 + 11 * (sum(LENGTHS[:episode]) + np.arange(length))
    pictures = np.broadcast_to(shades[:, None, None, None], (length, SIZE, SIZE, 3)).astype(np.uint8)
    actions = random.uniform(-1, 1, (length, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(length) < 3, -1, 1)
    return pictures, random.normal(size=(length, 8)).astype(np.float32), actions
