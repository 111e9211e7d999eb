"""Several datasets to train on: their frames in a row, and the statistics of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from demonstrations import TASKS, write_demonstrations

from bitvla_ros.training.dataset import Counterfactuals, Dataset, DatasetError, DatasetWriter, Episode
from bitvla_ros.training.joined import JoinedDataset, open_datasets
from bitvla_ros.training.statistics import dataset_statistics


def one_more(folder: Path, *, size: int = 28, fps: float = 20.0, dimensions: int = 7) -> Path:
    """A dataset of one episode, of another task and of larger actions."""
    cameras = {"scene": (size, size), "wrist": (size, size)}
    writer = DatasetWriter(folder, fps, cameras, name="corrections")
    images = {role: np.full((5, size, size, 3), 77, np.uint8) for role in cameras}
    actions = np.full((5, dimensions), 3.0, np.float32)
    actions[:, -1] = 1
    writer.add(Episode("another task", images, np.full((5, 8), 2.0, np.float32), actions))
    writer.close()
    return folder


def test_frames_of_the_second_come_after_those_of_the_first(tmp_path: Path) -> None:
    paths = [write_demonstrations(tmp_path / "a", episodes=2, length=9), one_more(tmp_path / "b")]
    first, second = (Dataset(path) for path in paths)
    joined = open_datasets(paths)
    assert isinstance(joined, JoinedDataset)
    assert (len(joined), joined.lengths, joined.name, joined.fps) == (23, (9, 9, 5), "tabletop_object", 20.0)
    assert joined.tasks == (*TASKS, "another task") and joined.cameras == first.cameras
    for index, (dataset, frame) in {0: (first, 0), 17: (first, 17), 18: (second, 0), 22: (second, 4)}.items():
        images, state, actions, task = joined.frame(index, 4)
        expected = dataset.frame(frame, 4)
        assert all(np.array_equal(images[role], expected[0][role]) for role in images)
        assert np.array_equal(state, expected[1]) and np.array_equal(actions, expected[2]) and task == expected[3]
    with pytest.raises(IndexError, match="no frame 23"):
        joined.frame(23)


def test_counterfactuals_keep_their_episode(tmp_path: Path) -> None:
    plain, others = write_demonstrations(tmp_path / "a", episodes=2, length=9), tmp_path / "b"
    writer = DatasetWriter(others, 20.0, dict.fromkeys(("scene", "wrist"), (28, 28)), name="others")
    images = {role: np.zeros((3, 28, 28, 3), np.uint8) for role in ("scene", "wrist")}
    index, actions = np.array([[0], [-1], [1]]), np.arange(3 * 4 * 7, dtype=np.float32).reshape(3, 1, 4, 7) / 100
    told = Counterfactuals(("wave", "bow"), index, actions)
    writer.add(Episode("stand", images, np.ones((3, 8), np.float32), np.ones((3, 7), np.float32), counterfactuals=told))
    writer.close()
    joined = open_datasets([plain, others])
    assert np.array_equal(joined.numbers(2)[0], np.ones((3, 7))) and len(joined.numbers(1)[0]) == 9
    assert not joined.others(1).any() and joined.others(2).tolist() == [[True], [False], [True]]
    assert {"wave", "bow"} <= set(joined.tasks)
    _, _, found, task = joined.frame(20, 4, 0)
    assert task == "bow" and np.array_equal(found, actions[2, 0])


def test_statistics_are_of_all_frames_together(tmp_path: Path) -> None:
    paths = [write_demonstrations(tmp_path / "a"), one_more(tmp_path / "b")]
    episodes = [dataset.episode(i) for dataset in map(Dataset, paths) for i in range(len(dataset.lengths))]
    joined = open_datasets(paths)
    assert joined.statistics == dataset_statistics([e.actions for e in episodes], [e.state for e in episodes])
    assert joined.statistics["action"]["max"][0] == 3.0


def test_one_dataset_is_itself(tmp_path: Path) -> None:
    assert isinstance(open_datasets([write_demonstrations(tmp_path / "a")]), Dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 10.0}, "other frames a second"),
        ({"size": 14}, "other cameras"),
        ({"dimensions": 6}, "other dimensions of action and state"),
    ],
)
def test_datasets_that_do_not_belong_together_are_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    paths = [write_demonstrations(tmp_path / "a"), one_more(tmp_path / "b", **changes)]
    with pytest.raises(DatasetError, match=f"b has {message} than .*a: .* expected"):
        open_datasets(paths)
