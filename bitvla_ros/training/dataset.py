"""Demonstrations on disk, read lazily: in LeRobot's v3.0 layout, as `dataset_writer` writes it, or in v2.1, as it once did."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..action_convention import KEY, ActionConvention
from . import lerobot_format as layout
from .dataset_writer import DatasetWriter
from .episode import Counterfactuals, DatasetError, Episode, Rows
from .lerobot_index import check_info, open_index

__all__ = ["Counterfactuals", "Dataset", "DatasetError", "DatasetWriter", "Episode"]

_CACHE = 2 << 30  # bytes of encoded pictures that a Dataset keeps in memory
_VERSIONS = (layout.OLD_VERSION, layout.VERSION)


class Dataset:
    """A dataset on disk, read lazily: numbers when it is opened, pictures when they are asked for. len() is its frames.

    name, statistics: its entry in dataset_statistics.json. fps: frames a second. cameras: role -> (height, width).
    tasks: instructions. lengths: frames of each episode. successes: of each, None where nobody knows. source: how it was made.
    convention: what its numbers mean.
    """

    def __init__(self, path: str | os.PathLike[str], cameras: Sequence[str] | None = None) -> None:
        """cameras: roles to read; by default all. Raises DatasetError for what is damaged, has gaps or lacks a camera."""
        self.path = Path(path)
        try:
            self._open(cameras)
        except KeyError as error:
            expected = f"expected a dataset of the layout {' or '.join(_VERSIONS)}"
            raise DatasetError(f"{self.path}: {error} is missing in meta/, {expected}") from error

    def _open(self, cameras: Sequence[str] | None) -> None:
        layouts = " or ".join(_VERSIONS)
        info = _json(self.path / layout.INFO, f"{self.path} is no dataset of the layout {layouts}, or it was not finished")
        if info["codebase_version"] not in _VERSIONS:
            raise DatasetError(f"{self.path} has the layout {info['codebase_version']!r}, expected {layouts}: use bitvla convert")
        check_info(self.path, info)
        self.fps = float(info["fps"])
        self.source: dict[str, Any] = info.get("source", {})
        try:
            self.convention = ActionConvention.from_json(info.get(KEY))
        except ValueError as error:
            raise DatasetError(f"{self.path / layout.INFO}: {error}") from error
        self.cameras = self._choose(info["features"], cameras)
        statistics = _json(self.path / layout.STATISTICS, f"{self.path} has no normalisation statistics: bitvla convert computes them")
        if len(statistics) != 1:
            raise DatasetError(f"{self.path / layout.STATISTICS} has {len(statistics)} entries, expected the one of this dataset")
        self.name, self.statistics = next(iter(statistics.items()))
        index = open_index(self.path, info)
        self._place = {key: i for i, key in enumerate(sorted(index.tasks))}  # of a task among `tasks`
        self.tasks = tuple(index.tasks[key] for key in self._place)
        self._records = list(index.rows.values())
        if len(self._records) != info["total_episodes"]:
            raise DatasetError(f"{self.path} lists {len(self._records)} episodes, info.json says {info['total_episodes']}")
        self.lengths = tuple(index.length(key) for key in index.rows)
        self.successes = tuple(None if record.get("success") is None else bool(record["success"]) for record in self._records)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self._files = [index.file(key) for key in index.rows]
        if len(set(self._files)) < len(self._files):
            raise DatasetError(f"{self.path} keeps several episodes in a file, as other programs do: use bitvla convert")
        dimensions = tuple(info["features"][name]["shape"][0] for name in (layout.STATE, layout.ACTION))
        self._rows = [self._read(i, key, dimensions) for i, key in enumerate(index.rows)]
        self._encoded: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, frame: int) -> tuple[int, int]:
        """The episode of a frame of the dataset, and its number there."""
        if not 0 <= frame < len(self):
            raise IndexError(f"no frame {frame}: the dataset has {len(self)}")
        episode = int(np.searchsorted(self._starts, frame, side="right")) - 1
        return episode, frame - int(self._starts[episode])

    def numbers(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of an episode: actions, float32 [T, A], and states, float32 [T, D]."""
        return self._rows[index].actions, self._rows[index].state

    def episode(self, index: int) -> Episode:
        """A whole episode. Raises DatasetError, naming the frame, for a picture that does not decode."""
        rows, record = self._rows[index], self._records[index]
        images = {role: np.stack([self._image(index, i, role) for i in range(len(rows.actions))]) for role in self.cameras}
        seed, success = record.get("seed"), self.successes[index]
        others = Counterfactuals(self.tasks, rows.other_tasks, rows.other_actions) if rows.other_tasks.size else None
        return Episode(self.tasks[rows.task], images, rows.state, rows.actions, seed, success, others, self.convention)

    def frame(
        self, index: int, chunk: int = 1, other: int | None = None
    ) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.float32], NDArray[np.float32], str]:
        """Images by role, uint8 [H, W, 3]; state, float32 [D]; actions of this and the following frames, float32 [chunk, A]; instruction.

        Beyond the end of the episode the arm is asked to stay: no offset, the gripper as it was last.
        other: number of a counterfactual, whose actions and instruction are to be given instead. Raises DatasetError where its chunk is
        shorter."""
        episode, i = self.locate(index)
        rows = self._rows[episode]
        task, following = rows.task, rows.actions[i : i + chunk]
        if other is not None:
            task, following = int(rows.other_tasks[i, other]), rows.other_actions[i, other, :chunk]
            if len(following) < chunk:
                raise DatasetError(f"{self.path} has counterfactuals of {len(following)} actions, but chunks of {chunk} are needed")
        actions = np.zeros((chunk, rows.actions.shape[1]), np.float32)
        actions[:, -1] = rows.actions[-1, -1]
        actions[: len(following)] = following
        images = {role: self._image(episode, i, role) for role in self.cameras}
        return images, rows.state[i], actions, self.tasks[task]

    def others(self, index: int) -> NDArray[np.bool_]:
        """Of an episode: which counterfactuals its frames have, [T, N]."""
        return self._rows[index].other_tasks >= 0

    def _choose(self, features: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, tuple[int, int]]:
        present = {name.removeprefix(layout.IMAGES): feature for name, feature in features.items() if name.startswith(layout.IMAGES)}
        roles = list(present) if wanted is None else list(wanted)
        for role in roles:
            if role not in present:
                raise DatasetError(f"{self.path} has no camera {role!r}; it has {', '.join(present) or 'none'}")
            if present[role]["dtype"] != "image":
                raise DatasetError(f"{self.path} keeps camera {role!r} as {present[role]['dtype']}, expected pictures: use bitvla convert")
        return {role: (int(present[role]["shape"][0]), int(present[role]["shape"][1])) for role in roles}

    def _read(self, index: int, key: int, dimensions: tuple[int, ...]) -> Rows:
        """index: among our episodes. key: its episode_index, which differs where episodes were taken out."""
        rows = Rows.read(self._files[index], key, self.fps, int(self._starts[index]))
        if len(rows.actions) != self.lengths[index]:
            raise DatasetError(f"episode {index} has {len(rows.actions)} frames, meta/ says {self.lengths[index]}")
        if (rows.state.shape[1], rows.actions.shape[1]) != dimensions:
            raise DatasetError(
                f"episode {index}: state and actions have {rows.state.shape[1]} and {rows.actions.shape[1]} dimensions, "
                f"info.json says {dimensions[0]} and {dimensions[1]}"
            )
        found = {rows.task, *rows.other_tasks.ravel().tolist()} - {-1}
        if unknown := sorted(found - set(self._place)):
            raise DatasetError(f"episode {index} has the task {unknown[0]}; meta/ has {', '.join(map(str, self._place)) or 'none'}")
        return rows.renumbered(self._place)

    def _image(self, episode: int, frame: int, role: str) -> NDArray[np.uint8]:
        pictures = self._pictures(episode)[role]
        try:
            image = layout.decode_image(pictures[frame].as_buffer())
        except (ValueError, TypeError, IndexError) as error:  # damaged, null, and not there
            raise DatasetError(f"episode {episode}, frame {frame}, camera {role}: {error}") from error
        if image.shape[:2] != self.cameras[role]:
            raise DatasetError(
                f"episode {episode}, frame {frame}, camera {role}: {image.shape[0]} x {image.shape[1]} pixels, "
                f"info.json says {self.cameras[role][0]} x {self.cameras[role][1]}"
            )
        return image

    def _pictures(self, episode: int) -> dict[str, Any]:
        """Role -> an Arrow array of encoded pictures. The least recently used are dropped beyond the cache's size."""
        if episode in self._encoded:
            self._encoded.move_to_end(episode)
            return self._encoded[episode]
        columns = [layout.IMAGES + role for role in self.cameras]
        try:
            table = layout.read_columns(str(self._files[episode]), columns)
            encoded = {role: table.column(layout.IMAGES + role).combine_chunks().field("bytes") for role in self.cameras}
        except KeyError as error:
            raise DatasetError(f"episode {episode}: camera {str(error.args[0]).removeprefix(layout.IMAGES)} is missing") from error
        except (OSError, ValueError, AttributeError) as error:  # the last: a column of another type
            raise DatasetError(f"episode {episode}: {self._files[episode]} is damaged ({error})") from error
        self._encoded[episode] = encoded
        self._bytes += _size(encoded)
        while self._bytes > _CACHE and len(self._encoded) > 1:
            self._bytes -= _size(self._encoded.popitem(last=False)[1])
        return encoded


def _json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content
    except OSError as error:
        raise DatasetError(f"{otherwise} ({error})") from error
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error})") from error


def _size(encoded: Mapping[str, Any]) -> int:
    return sum(int(array.nbytes) for array in encoded.values())
