"""Demonstrations that failed are left out of training and of its statistics unless asked for; unknown ones are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bitvla_ros.training import runs
from bitvla_ros.training.dataset import Dataset, DatasetError, DatasetWriter, Episode
from bitvla_ros.training.joined import JoinedDataset, open_datasets
from bitvla_ros.training.statistics import dataset_statistics

LENGTH = 3


def write(folder: Path, successes: Sequence[bool | None]) -> Path:
    """Episode i does i / 10 everywhere."""
    writer = DatasetWriter(folder, 20.0, {}, name=folder.name)
    for i, success in enumerate(successes):
        actions = np.full((LENGTH, 7), i / 10, np.float32)
        writer.add(Episode("pick", {}, actions[:, [*range(7), 0]], actions, success=success))
    writer.close()
    return folder


def trained_on(dataset: Dataset | JoinedDataset, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[int]:
    """Episodes that a run takes, trained on or held out."""
    monkeypatch.setattr(runs, "image_recipe", lambda model: None)
    monkeypatch.setattr(runs, "Prompt", lambda *arguments, **options: None)
    monkeypatch.setattr(runs, "Samples", lambda dataset, episodes, **options: SimpleNamespace(episodes=list(episodes)))
    config = SimpleNamespace(action_dim=7, proprio_dim=8, chunk=4, vision=SimpleNamespace(num_patches=4))
    model: Any = SimpleNamespace(config=config, norm_stats=dataset.statistics)
    train, held_out = runs.samples_of(dataset, model, None, 0, **options)
    return sorted([*train.episodes, *(held_out.episodes if held_out else [])])


def test_failures_are_left_out_and_unknown_ones_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(write(tmp_path / "d", [True, False, None, False, True]))
    assert dataset.successes == (True, False, None, False, True)
    assert trained_on(dataset, monkeypatch) == [0, 2, 4]
    assert trained_on(dataset, monkeypatch, failures=True) == [0, 1, 2, 3, 4]


def test_they_are_left_out_of_several_datasets_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = open_datasets([write(tmp_path / "a", [False, True]), write(tmp_path / "b", [None, False])])
    assert trained_on(joined, monkeypatch) == [1, 2]
    kept = [joined.numbers(i) for i in (1, 2)]
    assert joined.statistics == dataset_statistics([actions for actions, _ in kept], [states for _, states in kept])


def test_statistics_are_of_what_is_trained_on(tmp_path: Path) -> None:
    statistics = Dataset(write(tmp_path / "d", [True, False, None])).statistics
    assert statistics["num_trajectories"] == 2 and statistics["action"]["max"][0] == pytest.approx(0.2)
    assert Dataset(write(tmp_path / "failed", [False, False])).statistics["num_trajectories"] == 2


def test_where_every_one_failed_it_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(write(tmp_path / "d", [False, False]))
    with pytest.raises(DatasetError, match="every one of the 2 demonstrations failed: --failures trains on them all the same"):
        trained_on(dataset, monkeypatch)
    assert trained_on(dataset, monkeypatch, failures=True) == [0, 1]


def test_a_run_says_how_many_were_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"steps": 5, "episodes": 8, "samples_per_second": 3.0, "failures_left_out": 2}
    runs.show_episodes(result)
    assert capsys.readouterr().out == "5 steps on 8 episodes; 2 that failed were left out (--failures), 3 samples/s\n"
