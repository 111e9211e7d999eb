"""The real LeRobot 0.6 opens what is written here as it is, and what it wrote comes back unchanged (`make test-lerobot`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import convert
from lerobot_numbers import FPS, LENGTHS, TASKS, numbers
from test_conversion_lerobot import OPTIONS

from bitvla_ros import cli
from bitvla_ros.training.dataset import Dataset

PYTHON = os.environ.get("BITVLA_LEROBOT_PYTHON", "")
HERE = Path(__file__).resolve().parent

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.skipif(not PYTHON, reason="BITVLA_LEROBOT_PYTHON names no interpreter that has LeRobot 0.6: make test-lerobot"),
    pytest.mark.timeout(600),
]


def lerobot(*arguments: object) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [PYTHON, str(HERE / "run_lerobot.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def opened(dataset: Path, folder: Path) -> Any:
    lerobot("read", dataset, folder / "read.npz")
    return np.load(folder / "read.npz")


def is_all_there(dataset: Dataset, seen: Any) -> None:
    """LeRobot saw every number, picture and word."""
    episodes = [dataset.episode(i) for i in range(len(dataset.lengths))]
    assert seen["counted"].tolist() == [dataset.fps, len(episodes), len(dataset)]
    assert seen["task"].tolist() == [episode.task for episode in episodes for _ in range(len(episode))]
    np.testing.assert_array_equal(seen["action"], np.concatenate([episode.actions for episode in episodes]))
    np.testing.assert_array_equal(seen["observation.state"], np.concatenate([episode.state for episode in episodes]))
    np.testing.assert_allclose(seen["timestamp"], np.concatenate([np.arange(n) / dataset.fps for n in dataset.lengths]), atol=1e-5)
    for role in dataset.cameras:
        expected = np.concatenate([np.asarray(episode.images[role]) for episode in episodes])
        np.testing.assert_array_equal(seen[f"observation.images.{role}"], expected)
    for feature, values in (("action", seen["action"]), ("observation.state", seen["observation.state"])):
        for name, expected in (("mean", values.mean(0)), ("std", values.std(0)), ("min", values.min(0)), ("max", values.max(0))):
            np.testing.assert_allclose(seen[f"stats.{feature}.{name}"], expected, atol=1e-5)


def test_it_opens_what_record_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    command = ["record", "--suite", "tabletop_object", "--episodes", "2", "--image-size", "32", "--render-size", "32"]
    assert cli.main([*command, "--counterfactuals", "2", "--output", str(tmp_path / "recorded"), "--json"]) == 0, capsys.readouterr().err
    dataset = Dataset(tmp_path / "recorded")
    assert dataset.successes == (True, True) and dataset.others(0).any()
    is_all_there(dataset, opened(tmp_path / "recorded", tmp_path))


def test_it_opens_what_convert_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = convert(capsys, HERE / "data" / "dataset_v2.1", tmp_path / "converted")
    assert code == 0, err
    is_all_there(Dataset(tmp_path / "converted"), opened(tmp_path / "converted", tmp_path))


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_it_opens_what_convert_writes_as_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str], codec: str) -> None:
    lerobot("write", tmp_path / "in", "images")
    code, _, err = convert(capsys, tmp_path / "in", tmp_path / "filmed", *OPTIONS, "--video", codec)
    assert code == 0, err
    seen = opened(tmp_path / "filmed", tmp_path)
    pictures = np.concatenate([numbers(i)[0] for i in range(len(LENGTHS))])
    assert np.abs(seen["observation.images.scene"].astype(int) - pictures).max() <= 3
    assert seen["counted"].tolist() == [FPS, len(LENGTHS), sum(LENGTHS)]


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_what_it_wrote_comes_back_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    lerobot("write", tmp_path / "in", kind)
    code, _, err = convert(capsys, tmp_path / "in", tmp_path / "out", *OPTIONS)
    assert code == 0, err
    dataset = Dataset(tmp_path / "out")
    assert dataset.fps == FPS and dataset.lengths == LENGTHS
    for i, task in enumerate(TASKS):
        pictures, state, actions = numbers(i)
        episode = dataset.episode(i)
        assert episode.task == task
        np.testing.assert_array_equal(episode.state, state)
        np.testing.assert_array_equal(episode.actions[:, :6], actions[:, :6])
        np.testing.assert_array_equal(episode.actions[:, 6], actions[:, 6] == -1)
        apart = np.abs(np.asarray(episode.images["scene"]).astype(int) - pictures).max()
        assert apart <= (0 if kind == "images" else 3)
