"""Demonstrations: one in memory, and many on disk in LeRobot's v2.1 layout.

An episode is its parquet file, written under another name and then renamed, and that file's own metadata hold all that meta/ says of
it. So a writer that was killed continues after the last complete episode, and what it ends with is what an uninterrupted one writes.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..action_convention import KEY, UNKNOWN, ActionConvention
from . import lerobot_format as layout
from .episode import Counterfactuals, DatasetError, Episode, Rows, check
from .statistics import dataset_statistics

__all__ = ["Counterfactuals", "Dataset", "DatasetError", "DatasetWriter", "Episode"]

_CACHE = 2 << 30  # bytes of encoded pictures that a Dataset keeps in memory


class DatasetWriter:
    """Writes a dataset, episode after episode. Opened on one that it has begun before, it continues it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        cameras: Mapping[str, tuple[int, int]],
        *,
        name: str,
        robot_type: str = "panda",
        source: Mapping[str, Any] | None = None,
        convention: ActionConvention = UNKNOWN,
    ) -> None:
        """fps: frames a second, the control rate. cameras: role -> (height, width). name: key of its normalisation statistics.
        source: how it was made, for info.json; whatever JSON can hold. convention: what the numbers of every episode mean.

        Raises DatasetError for a folder that holds something else, or a dataset begun with other arguments."""
        self.path = Path(path)
        if not 0 < fps < float("inf"):
            raise DatasetError(f"fps is {fps}: expected a positive rate in Hz")
        if not name:
            raise DatasetError("the dataset has no name: its statistics are kept under one")
        self._settings: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "name": name,
                    "fps": int(fps) if float(fps).is_integer() else float(fps),
                    "robot_type": robot_type,
                    "cameras": {role: list(size) for role, size in cameras.items()},
                    "source": dict(source or {}),
                    KEY: convention.to_json(),
                }
            )
        )
        self._cameras, self._convention = dict(cameras), convention
        self._records: list[dict[str, Any]] = []  # of each episode: task, seed, success, length, stats
        self._tasks: list[str] = []
        self._actions: list[NDArray[np.float32]] = []
        self._states: list[NDArray[np.float32]] = []
        self._frames = 0
        self._others = (0, 0)  # counterfactuals of a frame, actions in each
        self._continue()

    def __len__(self) -> int:
        """Complete episodes."""
        return len(self._records)

    @property
    def frames(self) -> int:
        return self._frames

    @property
    def episodes(self) -> list[tuple[str, int | None]]:
        """Task and seed of every complete episode."""
        return [(record["task"], record["seed"]) for record in self._records]

    def add(self, episode: Episode) -> int:
        """Write an episode; returns its index. Raises DatasetError, naming the frame, for one that does not fit, and where it cannot
        be written; the dataset then stays as it was."""
        index = len(self._records)
        dimensions = (self._states[0].shape[1], self._actions[0].shape[1]) if self._records else None
        check(episode, index, self._cameras, dimensions)
        for field, other, own in episode.convention.differences(self._convention):
            raise DatasetError(f"episode {index}: {field} is {other}, and of those before {own}: they cannot be in one dataset")
        state, actions = episode.state, episode.actions
        record: dict[str, Any] = {"task": episode.task, "seed": episode.seed, "success": episode.success, "length": len(actions)}
        record["stats"] = {
            **{layout.IMAGES + role: layout.picture_statistics(episode.images[role]) for role in self._cameras},
            layout.STATE: layout.number_statistics(state),
            layout.ACTION: layout.number_statistics(actions),
        }
        others = episode.counterfactuals
        size = (0, 0) if others is None else (others.actions.shape[1], others.actions.shape[2])
        if self._records and size != self._others:
            raise DatasetError(f"episode {index} has counterfactuals of shape {list(size)}, those before have {list(self._others)}")
        if others is not None:
            record["other_tasks"] = list(others.tasks)
        tasks = list(dict.fromkeys([*self._tasks, episode.task, *record.get("other_tasks", ())]))
        data = layout.encode_episode(
            {role: [layout.encode_png(image) for image in episode.images[role]] for role in self._cameras},
            state,
            actions,
            fps=self._settings["fps"],
            episode=index,
            first=self._frames,
            task=tasks.index(episode.task),
            others=None if others is None else (_renumbered(others, tasks), others.actions),
            metadata={"dataset": self._settings, "episode": record},
        )
        _write(self.path / layout.data_path(index), data, f"episode {index}")
        self._remember(record, state, actions, size)
        return index

    def close(self) -> None:
        """Write meta/ and the statistics of what is there. Raises DatasetError where no episode is."""
        if not self._records:
            raise DatasetError(f"{self.path}: no episode was written, so there is no dataset")
        settings, count = self._settings, len(self._records)
        info = {
            "codebase_version": layout.VERSION,
            "robot_type": settings["robot_type"],
            "total_episodes": count,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "total_videos": 0,
            "total_chunks": -(-count // layout.EPISODES_A_FOLDER),
            "chunks_size": layout.EPISODES_A_FOLDER,
            "fps": settings["fps"],
            "splits": {"train": f"0:{count}"},
            "data_path": layout.DATA,
            "video_path": None,
            "features": layout.features(self._cameras, self._states[0].shape[1], self._actions[0].shape[1], self._others),
            "source": settings["source"],
            KEY: settings[KEY],
        }
        tasks = layout.json_lines({"task_index": i, "task": task} for i, task in enumerate(self._tasks))
        episodes = layout.json_lines(
            {"episode_index": i, "tasks": [record["task"]], **{key: record[key] for key in ("length", "seed", "success")}}
            for i, record in enumerate(self._records)
        )
        stats = layout.json_lines({"episode_index": i, "stats": record["stats"]} for i, record in enumerate(self._records))
        statistics = {settings["name"]: dataset_statistics(self._actions, self._states)}
        _write(self.path / layout.TASKS, tasks, "the list of tasks")
        _write(self.path / layout.EPISODES, episodes, "the list of episodes")
        _write(self.path / layout.EPISODE_STATISTICS, stats, "the episodes' statistics")
        _write(self.path / layout.STATISTICS, json.dumps(statistics, indent=2).encode() + b"\n", "the statistics")
        _write(self.path / layout.INFO, json.dumps(info, indent=4).encode() + b"\n", "info.json")  # last: it makes a dataset of the rest

    def _continue(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DatasetError(f"{self.path} is a file: expected a new folder, or one with a dataset to continue")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "data").is_dir():
            raise DatasetError(f"{self.path} holds something else than a dataset: give a new folder")
        for leftover in self.path.rglob(".*.partial"):
            leftover.unlink()
        present = {int(file.stem.removeprefix("episode_")) for file in self.path.glob("data/chunk-*/episode_*.parquet")}
        for index in range(len(present)):
            if index not in present:
                raise DatasetError(f"{self.path}: episode {index} is missing although episode {max(present)} is there")
            self._read(index)

    def _read(self, index: int) -> None:
        file = self.path / layout.data_path(index)
        try:
            found = layout.read_metadata(str(file))
        except (OSError, ValueError) as error:
            raise DatasetError(f"episode {index}: {file} is damaged ({error}); delete it and all after it to go on there") from error
        if found is None:
            raise DatasetError(f"episode {index}: {file} was written by another program; bitvla convert makes a dataset of ours from it")
        for key, value in self._settings.items():
            if found["dataset"].get(key) != value:
                raise DatasetError(
                    f"{self.path} was begun with {key} {found['dataset'].get(key)!r}, not {value!r}: use the same, or another folder"
                )
        rows = Rows.read(file, index, self._settings["fps"], self._frames)
        self._remember(found["episode"], rows.state, rows.actions, (rows.other_actions.shape[1], rows.other_actions.shape[2]))

    def _remember(
        self, record: dict[str, Any], state: NDArray[np.float32], actions: NDArray[np.float32], others: tuple[int, int]
    ) -> None:
        self._records.append(record)
        self._states.append(np.array(state))
        self._actions.append(np.array(actions))
        self._frames += len(actions)
        self._others = others
        self._tasks = list(dict.fromkeys([*self._tasks, record["task"], *record.get("other_tasks", ())]))


class Dataset:
    """A dataset on disk, read lazily: numbers when it is opened, pictures when they are asked for. len() is its frames.

    name, statistics: its entry in dataset_statistics.json. fps: frames a second. cameras: role -> (height, width).
    tasks: instructions. lengths: frames of each episode. source: how it was made. convention: what its numbers mean.
    """

    def __init__(self, path: str | os.PathLike[str], cameras: Sequence[str] | None = None) -> None:
        """cameras: roles to read; by default all. Raises DatasetError for what is damaged, has gaps or lacks a camera."""
        self.path = Path(path)
        try:
            self._open(cameras)
        except KeyError as error:
            raise DatasetError(f"{self.path}: {error} is missing in meta/, expected a dataset of the layout {layout.VERSION}") from error

    def _open(self, cameras: Sequence[str] | None) -> None:
        info = _json(self.path / layout.INFO, f"{self.path} is no dataset of the layout {layout.VERSION}, or it was not finished")
        if info["codebase_version"] != layout.VERSION:
            raise DatasetError(f"{self.path} has the layout {info['codebase_version']!r}, expected {layout.VERSION!r}: use bitvla convert")
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
        self.tasks = tuple(row["task"] for row in _json_lines(self.path / layout.TASKS))
        self._records = _json_lines(self.path / layout.EPISODES)
        if len(self._records) != info["total_episodes"]:
            raise DatasetError(f"{self.path} lists {len(self._records)} episodes, info.json says {info['total_episodes']}")
        self.lengths = tuple(int(record["length"]) for record in self._records)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self._files = [
            self.path / info["data_path"].format(episode_chunk=i // info["chunks_size"], episode_index=i) for i in range(len(self._records))
        ]
        dimensions = tuple(info["features"][name]["shape"][0] for name in (layout.STATE, layout.ACTION))
        self._rows = [self._read(i, dimensions) for i in range(len(self._records))]
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
        seed, success = record.get("seed"), bool(record.get("success", True))
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

    def _read(self, index: int, dimensions: tuple[int, ...]) -> Rows:
        rows = Rows.read(self._files[index], index, self.fps, int(self._starts[index]))
        if len(rows.actions) != self.lengths[index]:
            raise DatasetError(f"episode {index} has {len(rows.actions)} frames, episodes.jsonl says {self.lengths[index]}")
        if (rows.state.shape[1], rows.actions.shape[1]) != dimensions:
            raise DatasetError(
                f"episode {index}: state and actions have {rows.state.shape[1]} and {rows.actions.shape[1]} dimensions, "
                f"info.json says {dimensions[0]} and {dimensions[1]}"
            )
        for task in (rows.task, int(rows.other_tasks.max(initial=0))):
            if not 0 <= task < len(self.tasks):
                raise DatasetError(f"episode {index} has task {task}; tasks.jsonl has 0 to {len(self.tasks) - 1}")
        return rows

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
        except (OSError, ValueError) as error:
            raise DatasetError(f"episode {episode}: {self._files[episode]} is damaged ({error})") from error
        self._encoded[episode] = encoded
        self._bytes += _size(encoded)
        while self._bytes > _CACHE and len(self._encoded) > 1:
            self._bytes -= _size(self._encoded.popitem(last=False)[1])
        return encoded


def _renumbered(others: Counterfactuals, tasks: Sequence[str]) -> NDArray[np.int64]:
    """Their index into the dataset's tasks, [T, N]."""
    of_dataset = np.array([*(tasks.index(task) for task in others.tasks), -1], np.int64)
    return of_dataset[others.index]


def _write(path: Path, data: bytes | memoryview, what: str) -> None:
    """Under another name first: a reader never meets half a file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DatasetError(f"{what} could not be written ({error}); what was there before is whole: make room and run it again") from error


def _json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content
    except OSError as error:
        raise DatasetError(f"{otherwise} ({error})") from error
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error})") from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is missing or damaged ({error})") from error


def _size(encoded: Mapping[str, Any]) -> int:
    return sum(int(array.nbytes) for array in encoded.values())
