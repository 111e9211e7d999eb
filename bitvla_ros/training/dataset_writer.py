"""Writes demonstrations, episode after episode, in LeRobot's v3.0 layout.

An episode is its parquet file, written under another name and then renamed, and that file's own metadata hold all that meta/ says of
it. So a writer that was killed continues after the last complete episode, and what it ends with is what an uninterrupted one writes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..action_convention import KEY, UNKNOWN, ActionConvention
from . import lerobot_format as layout
from .episode import Counterfactuals, DatasetError, DatasetNotWritten, Episode, Pictures, Rows, check
from .statistics import dataset_statistics
from .video_files import check_size, feature, write_video

_TOGETHER = 32  # frames that are encoded and written together
_ENCODERS = os.cpu_count() or 1


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
        video: str = "",
    ) -> None:
        """fps: frames a second, the control rate. cameras: role -> (height, width). name: key of its normalisation statistics.
        source: how it was made, for info.json; whatever JSON can hold. convention: what the numbers of every episode mean.
        video: codec (av1, h264) of pictures that are kept as videos; "": as PNG, which alone can be trained on.

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
        if video:
            self._settings["video"] = video
            for role, pixels in cameras.items():
                check_size(role, pixels)
        self._cameras, self._convention, self._video = dict(cameras), convention, video
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

    @property
    def successes(self) -> list[bool | None]:
        """Of every complete episode; None where nobody knows."""
        return [record["success"] for record in self._records]

    def note(self, **source: Any) -> None:
        """Add to how it was made, for info.json, what is only known at the end."""
        self._settings["source"] |= json.loads(json.dumps(source))

    def add(self, episode: Episode) -> int:
        """Write an episode; returns its index. Raises DatasetError, naming the frame, for one that does not fit, and where it cannot
        be written, and whatever its pictures raise; the dataset then stays as it was."""
        index = len(self._records)
        dimensions = (self._states[0].shape[1], self._actions[0].shape[1]) if self._records else None
        check(episode, index, self._cameras, dimensions)
        for field, other, own in episode.convention.differences(self._convention):
            raise DatasetError(f"episode {index}: {field} is {other}, and of those before {own}: they cannot be in one dataset")
        others = episode.counterfactuals
        size = (0, 0) if others is None else (others.actions.shape[1], others.actions.shape[2])
        if self._records and size != self._others:
            raise DatasetError(f"episode {index} has counterfactuals of shape {list(size)}, those before have {list(self._others)}")
        state, actions = episode.state, episode.actions
        record: dict[str, Any] = {"task": episode.task, "seed": episode.seed, "success": episode.success, "length": len(actions)}
        if others is not None:
            record["other_tasks"] = list(others.tasks)
        tasks = list(dict.fromkeys([*self._tasks, episode.task, *record.get("other_tasks", ())]))
        columns = layout.Columns.of(
            () if self._video else tuple(self._cameras),
            state,
            actions,
            fps=self._settings["fps"],
            episode=index,
            first=self._frames,
            task=tasks.index(episode.task),
            others=None if others is None else (_renumbered(others, tasks), others.actions),
        )
        file = self.path / layout.data_path(index)
        partial = _partial(file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            pictures = self._write_videos(index, episode.images, len(actions)) if self._video else {}
            with layout.EpisodeFile(str(partial), columns) as written:
                if self._video:
                    written.write({}, len(actions))
                else:
                    pictures = _write_frames(written, episode.images, self._cameras, len(actions))
                record["stats"] = {
                    **pictures,
                    layout.STATE: layout.number_statistics(state),
                    layout.ACTION: layout.number_statistics(actions),
                }
                written.describe({"dataset": self._settings, "episode": record})
            partial.replace(file)
        except OSError as error:
            raise _unwritten(f"episode {index}", error) from error
        finally:
            partial.unlink(missing_ok=True)
        self._remember(record, state, actions, size)
        return index

    def _write_videos(self, index: int, images: Mapping[str, Pictures], length: int) -> dict[str, dict[str, Any]]:
        """Before the episode's own file, which says that all is there. Returns the statistics of each camera's pictures."""
        files = {role: self.path / layout.video_path(index, role) for role in self._cameras}
        statistics = {role: layout.PictureStatistics(length) for role in self._cameras}
        try:
            for role, file in files.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                pictures = _counted(images[role], statistics[role])
                write_video(_partial(file), pictures, self._cameras[role], self._settings["fps"], self._video)
            for file in files.values():
                _partial(file).replace(file)
        finally:
            for file in files.values():
                _partial(file).unlink(missing_ok=True)
        return {layout.IMAGES + role: found.result() for role, found in statistics.items()}

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
            "chunks_size": layout.EPISODES_A_FOLDER,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": settings["fps"],
            "splits": {"train": f"0:{count}"},
            "data_path": layout.DATA,
            "video_path": layout.VIDEO if self._video else None,
            "features": self._features(),
            "source": settings["source"],
            KEY: settings[KEY],
        }
        tasks = layout.encode_table({"task_index": range(len(self._tasks)), "task": self._tasks}, index="task")
        statistics = {settings["name"]: self._statistics()}
        _write(self.path / layout.TASKS, tasks, "the list of tasks")
        _write(self.path / layout.EPISODES / layout.EPISODES_FILE, layout.encode_table(self._listed()), "the list of episodes")
        _write(self.path / layout.LEROBOT_STATISTICS, _json(self._lerobot_statistics()), "LeRobot's statistics")
        _write(self.path / layout.STATISTICS, _json(statistics), "the statistics")
        _write(self.path / layout.INFO, _json(info), "info.json")  # last: it makes a dataset of the rest

    def _features(self) -> dict[str, Any]:
        features = layout.features(self._cameras, self._states[0].shape[1], self._actions[0].shape[1], self._others)
        filmed = self._cameras.items() if self._video else ()
        return features | {layout.IMAGES + role: feature(self._video, size, self._settings["fps"]) for role, size in filmed}

    def _statistics(self) -> dict[str, Any]:
        """Of what is trained on: failures count only where nothing else is."""
        kept = [i for i, record in enumerate(self._records) if record["success"] is not False] or range(len(self._records))
        return dataset_statistics([self._actions[i] for i in kept], [self._states[i] for i in kept])

    def _listed(self) -> dict[str, list[Any]]:
        """The table of episodes, by column."""
        ends = np.cumsum([record["length"] for record in self._records]).tolist()
        places = [layout.place(i) for i in range(len(self._records))]
        columns: dict[str, list[Any]] = {
            "episode_index": list(range(len(self._records))),
            "tasks": [[record["task"]] for record in self._records],
            "length": [record["length"] for record in self._records],
            **{f"data/{name}": [place[name] for place in places] for name in ("chunk_index", "file_index")},
            "dataset_from_index": [0, *ends[:-1]],
            "dataset_to_index": ends,
            **{f"meta/episodes/{name}": [0] * len(self._records) for name in ("chunk_index", "file_index")},
            **{name: [record[name] for record in self._records] for name in ("seed", "success")},
        }
        for role in self._cameras if self._video else ():
            key = f"videos/{layout.IMAGES}{role}"
            columns |= {f"{key}/{name}": [place[name] for place in places] for name in ("chunk_index", "file_index")}
            columns[f"{key}/from_timestamp"] = [0.0] * len(places)
            columns[f"{key}/to_timestamp"] = [record["length"] / self._settings["fps"] for record in self._records]
        for key, values in self._records[0]["stats"].items():
            for name in values:
                columns[f"stats/{key}/{name}"] = [record["stats"][key][name] for record in self._records]
        return columns

    def _lerobot_statistics(self) -> dict[str, Any]:
        pictures = [layout.IMAGES + role for role in self._cameras]
        return {
            **{feature: layout.joined_statistics([record["stats"][feature] for record in self._records]) for feature in pictures},
            layout.STATE: layout.number_statistics(np.concatenate(self._states)),
            layout.ACTION: layout.number_statistics(np.concatenate(self._actions)),
        }

    def _continue(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DatasetError(f"{self.path} is a file: expected a new folder, or one with a dataset to continue")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "data").is_dir():
            raise DatasetError(f"{self.path} holds something else than a dataset: give a new folder")
        if next(self.path.glob("data/chunk-*/episode_*.parquet"), None) is not None:
            raise DatasetError(f"{self.path} has the layout {layout.OLD_VERSION}, which is only read: convert it, or give a new folder")
        for leftover in self.path.rglob(".*.partial"):
            leftover.unlink()
        present = {_index(file) for file in self.path.glob("data/chunk-*/file-*.parquet")}
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


def _write_frames(
    file: layout.EpisodeFile, images: Mapping[str, Pictures], cameras: Iterable[str], length: int
) -> dict[str, dict[str, Any]]:
    """All frames, a few at a time. Returns the statistics of each camera's pictures."""
    statistics = {role: layout.PictureStatistics(length) for role in cameras}
    with ThreadPoolExecutor(_ENCODERS) as pool:
        encoded = {role: _encoded(pool, images[role], statistics[role]) for role in statistics}
        for first in range(0, length, _TOGETHER):
            count = min(_TOGETHER, length - first)
            file.write({role: list(islice(pictures, count)) for role, pictures in encoded.items()}, count)
        for pictures in encoded.values():
            next(pictures, None)  # whoever gives them may have to say that there are more than there should be
    return {layout.IMAGES + role: found.result() for role, found in statistics.items()}


def _counted(pictures: Pictures, statistics: layout.PictureStatistics) -> Iterator[NDArray[np.uint8]]:
    for picture in pictures:
        statistics.add(picture)
        yield picture


def _encoded(pool: ThreadPoolExecutor, pictures: Pictures, statistics: layout.PictureStatistics) -> Iterator[bytes]:
    """PNG, made in the pool a few pictures ahead."""
    ahead: deque[Future[bytes]] = deque()
    for picture in pictures:
        statistics.add(picture)
        ahead.append(pool.submit(layout.encode_png, picture))
        if len(ahead) > 2 * _ENCODERS:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _renumbered(others: Counterfactuals, tasks: Sequence[str]) -> NDArray[np.int64]:
    """Their index into the dataset's tasks, [T, N]."""
    of_dataset = np.array([*(tasks.index(task) for task in others.tasks), -1], np.int64)
    return of_dataset[others.index]


def _index(file: Path) -> int:
    return int(file.parent.name.removeprefix("chunk-")) * layout.EPISODES_A_FOLDER + int(file.stem.removeprefix("file-"))


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=4).encode() + b"\n"


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _write(path: Path, data: bytes | memoryview, what: str) -> None:
    """Under another name first: a reader never meets half a file."""
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _unwritten(what, error) from error


def _unwritten(what: str, error: OSError) -> DatasetNotWritten:
    return DatasetNotWritten(f"{what} could not be written ({error}); what was there before is whole: make room and run it again")
