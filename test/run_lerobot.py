"""Run with LeRobot's own interpreter: `read ROOT OUT` opens a dataset and keeps what it says, `write ROOT images|videos` makes one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_numbers import FPS, SIZE, TASKS, numbers


def read(root: str, out: str) -> None:
    dataset = LeRobotDataset("test/dataset", root=root)
    frames = [dataset[i] for i in range(len(dataset))]
    arrays = {key: np.stack([frame[key].numpy() for frame in frames]) for key in frames[0] if key != "task"}
    for key in [key for key in arrays if key.startswith("observation.images.")]:
        arrays[key] = np.round(arrays[key].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    statistics = {f"stats.{key}.{name}": value for key, values in dataset.meta.stats.items() for name, value in values.items()}
    counted = np.array([dataset.fps, dataset.num_episodes, dataset.num_frames])
    np.savez(out, task=np.array([frame["task"] for frame in frames]), counted=counted, **arrays, **statistics)


def write(root: str, kind: str) -> None:
    videos = kind == "videos"
    features = {
        "observation.images.scene": {
            "dtype": "video" if videos else "image",
            "shape": (SIZE, SIZE, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    dataset = LeRobotDataset.create("test/dataset", fps=FPS, features=features, root=root, use_videos=videos)
    for episode, task in enumerate(TASKS):
        for picture, state, action in zip(*numbers(episode), strict=True):
            dataset.add_frame({"observation.images.scene": picture, "observation.state": state, "action": action, "task": task})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
    assert Path(sys.argv[2]).is_dir()
