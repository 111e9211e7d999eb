"""A small dataset for tests: noise in pictures, smooth actions, two tasks of the tabletop."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitvla_ros.training.dataset import DatasetWriter, Episode

TASKS = ("pick up the red block and place it in the basket", "pick up the green block and place it in the basket")


def write_demonstrations(
    folder: Path, episodes: int = 4, length: int = 9, size: int = 28, *, name: str = "tabletop_object", suites: tuple[str, ...] = ()
) -> Path:
    """suites: where info.json says it was recorded."""
    random = np.random.default_rng(0)
    cameras = {"scene": (size, size), "wrist": (size, size)}
    writer = DatasetWriter(folder, 20.0, cameras, name=name, source={"suites": list(suites)} if suites else None)
    for i in range(episodes):
        state = random.uniform(-1, 1, (length, 8)).astype(np.float32)
        actions = random.uniform(-1, 1, (length, 7)).astype(np.float32)
        actions[:, 6] = np.arange(length) < length / 2
        images = {role: random.integers(0, 256, (length, size, size, 3), dtype=np.uint8) for role in cameras}
        writer.add(Episode(TASKS[i % 2], images, state, actions))
    writer.close()
    return folder
