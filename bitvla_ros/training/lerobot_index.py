"""Which files hold which episode of a LeRobot dataset: v2.0 and v2.1 (an episode a file) and v3.0 (many).

Everything is found by its key (episode_index, task_index), never by its place in a table: episodes may have been taken out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .episode import DatasetError
from .lerobot_format import EPISODES, INFO, OLD_EPISODES, OLD_TASKS, TASKS

VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Video:
    """Where an episode's frames of one camera are. first: number of the first one. alone: the file holds nothing else."""

    path: Path
    first: int
    alone: bool


class Index:
    """Use `open_index`. tasks: instructions by task_index. rows: what meta/ says of each episode, by episode_index, in order."""

    def __init__(self, path: Path, info: Mapping[str, Any], tasks: Mapping[int, str], rows: Mapping[int, Mapping[str, Any]]) -> None:
        self.path, self.tasks, self.rows = path, dict(tasks), dict(sorted(rows.items()))
        self._info = info

    def length(self, episode: int) -> int:
        return _integer(self.rows[episode], "length", f"{self.path}/meta, episode {episode}")

    def file(self, episode: int) -> Path:
        """Where its numbers are, and its pictures unless they are videos. Raises DatasetError."""
        raise NotImplementedError

    def table(self, episode: int) -> Any:
        """Its rows, as an Arrow table. Raises DatasetError."""
        raise NotImplementedError

    def video(self, episode: int, feature: str) -> Video:
        """Raises DatasetError."""
        raise NotImplementedError

    def _place(self, template: str, **names: object) -> Path:
        try:
            return self.path / self._info[template].format(**names)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise DatasetError(f"{self.path / INFO}: {template} is {self._info.get(template)!r}: expected LeRobot's") from error


class _EpisodeAFile(Index):
    def file(self, episode: int) -> Path:
        return self._place("data_path", **self._names(episode))

    def table(self, episode: int) -> Any:
        return read_table(self.file(episode))

    def video(self, episode: int, feature: str) -> Video:
        return Video(self._place("video_path", **self._names(episode), video_key=feature), 0, True)

    def _names(self, episode: int) -> dict[str, int]:
        size = _integer({"chunks_size": 1000, **self._info}, "chunks_size", str(self.path / INFO))
        return {"episode_chunk": episode // max(size, 1), "episode_index": episode}


class _ManyAFile(Index):
    _cached: tuple[Path | None, Any] = (None, None)

    def file(self, episode: int) -> Path:
        return self._place("data_path", **self._names(episode, "data/"))

    def table(self, episode: int) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        file = self.file(episode)
        if self._cached[0] != file:
            self._cached = (file, read_table(file))
        table = self._cached[1]
        if "episode_index" not in table.column_names or not pa.types.is_integer(table.column("episode_index").type):
            raise DatasetError(f"{file} has no column episode_index of whole numbers")
        return table.filter(pc.equal(table.column("episode_index"), episode))

    def video(self, episode: int, feature: str) -> Video:
        prefix = f"videos/{feature}/"
        names = self._names(episode, prefix)
        began: Any = self.rows[episode].get(f"{prefix}from_timestamp")
        if not is_number(began) or began < 0:
            raise DatasetError(f"{self.path}/meta, episode {episode}: {prefix}from_timestamp is {began!r}, expected seconds")
        first = round(float(began) * float(self._info["fps"]))
        return Video(self._place("video_path", video_key=feature, **names), first, False)

    def _names(self, episode: int, prefix: str) -> dict[str, int]:
        where = f"{self.path}/meta, episode {episode}"
        return {name: _integer(self.rows[episode], prefix + name, where) for name in ("chunk_index", "file_index")}


def open_index(path: Path, info: Mapping[str, Any]) -> Index:
    """info: of `read_info`. Raises DatasetError."""
    if info["codebase_version"] != "v3.0":
        rows = _json_lines(path / OLD_TASKS)
        episodes = _json_lines(path / OLD_EPISODES)
        return _EpisodeAFile(path, info, _tasks(path, rows), _by_key(path, episodes, "episode_index"))
    table = read_table(path / TASKS).to_pydict()
    words = next((values for name, values in table.items() if name != "task_index"), None)  # pandas' index, whatever it is called
    if words is None or "task_index" not in table:
        raise DatasetError(f"{path / TASKS} has the columns {', '.join(table)}, expected the tasks and task_index")
    rows = [{"task_index": index, "task": task} for index, task in zip(table["task_index"], words, strict=True)]
    files = sorted((path / EPISODES).glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{path / EPISODES} holds no list of episodes")
    episodes = [row for file in files for row in read_table(file).to_pylist()]
    return _ManyAFile(path, info, _tasks(path, rows), _by_key(path, episodes, "episode_index"))


def read_info(path: Path) -> dict[str, Any]:
    """meta/info.json. Raises DatasetError for what is no dataset in one of VERSIONS."""
    try:
        info: Any = json.loads((path / INFO).read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path / INFO} is missing or damaged ({error})") from error
    if not isinstance(info, dict):
        raise DatasetError(f"{path / INFO} is {type(info).__name__}, expected an object")
    if info.get("codebase_version") not in VERSIONS:
        raise DatasetError(f"{path} has LeRobot's layout {info.get('codebase_version')!r}, expected {', '.join(VERSIONS)}")
    check_info(path, info)
    return info


def check_info(path: Path, info: Mapping[str, Any]) -> None:
    """Raises DatasetError for an info.json without a rate, or with features that are none."""
    missing = [key for key in ("fps", "features", "data_path") if key not in info]
    if missing:
        raise DatasetError(f"{path / INFO} has no {', '.join(missing)}")
    if not is_number(info["fps"]) or info["fps"] <= 0:
        raise DatasetError(f"{path / INFO}: fps is {info['fps']!r}, expected a rate in Hz")
    features = info["features"]
    for name, feature in features.items() if isinstance(features, dict) else [("features", features)]:
        shape = feature.get("shape") if isinstance(feature, dict) else None
        pictures = isinstance(feature, dict) and feature.get("dtype") in ("image", "video")
        if not isinstance(shape, list) or not shape or not all(isinstance(size, int) and size > 0 for size in shape):
            raise DatasetError(f"{path / INFO}: {name} is {feature!r}, expected a feature with its dtype and shape")
        if pictures and len(shape) != 3:
            raise DatasetError(f"{path / INFO}: {name} has the shape {shape}, expected that of pictures")


def read_table(path: Path) -> Any:
    """A parquet file. Raises DatasetError."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is missing or damaged ({error})") from error


def _tasks(path: Path, rows: Iterable[dict[str, Any]]) -> dict[int, str]:
    return {index: str(row.get("task") or "") for index, row in _by_key(path, rows, "task_index").items()}


def _by_key(path: Path, rows: Iterable[dict[str, Any]], key: str) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row, dict):
            raise DatasetError(f"{path}/meta: a row is {row!r}, expected an object with {key}")
        if found.setdefault(_integer(row, key, f"{path}/meta"), row) is not row:
            raise DatasetError(f"{path}/meta: {key} {row[key]} is listed twice: expected each once")
    return found


def _integer(row: Mapping[str, Any], key: str, where: str) -> int:
    """0 or more."""
    value: Any = row.get(key)
    if not is_number(value) or value != int(value) or value < 0:
        raise DatasetError(f"{where}: {key} is {value!r}, expected a whole number, 0 or more")
    return int(value)


def is_number(value: Any) -> bool:
    """Finite, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is missing or damaged ({error})") from error
