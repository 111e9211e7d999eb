"""Several datasets as one, to train on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset, DatasetError
from .statistics import dataset_statistics


class JoinedDataset:
    """The episodes of one dataset after those of another; the members are those of a Dataset that training needs.

    name: of the first dataset. statistics: of all frames together, but those of failures. source: of each dataset.
    convention: what any of them states.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        """Raises DatasetError where rates, cameras, dimensions or what their numbers mean differ."""
        first = datasets[0]
        self.convention = first.convention
        for other in datasets[1:]:
            for what, mine, theirs in (
                ("frames a second", first.fps, other.fps),
                ("cameras", dict(first.cameras), dict(other.cameras)),
                ("dimensions of action and state", _dimensions(first), _dimensions(other)),
            ):
                if mine != theirs:
                    raise DatasetError(f"{other.path} has other {what} than {first.path}: {theirs}, expected {mine}")
            for field, theirs, mine in other.convention.differences(self.convention):
                raise DatasetError(f"{other.path} has another {field} than {first.path}: {theirs}, expected {mine}; convert it anew")
            self.convention = self.convention.agreed(other.convention, other.path)
        self._datasets = tuple(datasets)
        self._starts = np.concatenate([[0], np.cumsum([len(dataset) for dataset in datasets])])
        self.name, self.fps, self.cameras = first.name, first.fps, first.cameras
        self.tasks = tuple(dict.fromkeys(task for dataset in datasets for task in dataset.tasks))
        self.successes = tuple(success for dataset in datasets for success in dataset.successes)
        self.lengths = tuple(length for dataset in datasets for length in dataset.lengths)
        self.source = {str(dataset.path): dataset.source for dataset in datasets}
        self._episodes = [(dataset, i) for dataset in datasets for i in range(len(dataset.lengths))]
        numbers = [self.numbers(i) for i in range(len(self._episodes))]
        kept = [pair for pair, success in zip(numbers, self.successes, strict=True) if success is not False] or numbers
        self.statistics = dataset_statistics([actions for actions, _ in kept], [states for _, states in kept])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def frame(
        self, index: int, chunk: int = 1, other: int | None = None
    ) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.float32], NDArray[np.float32], str]:
        """See Dataset.frame."""
        if not 0 <= index < len(self):
            raise IndexError(f"no frame {index}: the datasets have {len(self)}")
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._datasets[which].frame(index - int(self._starts[which]), chunk, other)

    def others(self, index: int) -> NDArray[np.bool_]:
        """See Dataset.others."""
        dataset, index = self._episodes[index]
        return dataset.others(index)

    def numbers(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Dataset.numbers."""
        dataset, index = self._episodes[index]
        return dataset.numbers(index)


def open_datasets(paths: Sequence[str | Path], cameras: Sequence[str] | None = None) -> Dataset | JoinedDataset:
    """One dataset, or several as one. cameras: roles to read, in order. Raises DatasetError."""
    datasets = [Dataset(path, cameras) for path in paths]
    return datasets[0] if len(datasets) == 1 else JoinedDataset(datasets)


def _dimensions(dataset: Dataset) -> tuple[Any, ...]:
    actions, states = dataset.numbers(0)
    return actions.shape[1:] + states.shape[1:]
