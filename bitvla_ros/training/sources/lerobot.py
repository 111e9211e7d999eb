"""Datasets in LeRobot's layouts v2.0, v2.1 (an episode a file) and v3.0 (many), with pictures in the parquet or in mp4 videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...action_convention import KEY, ActionConvention
from ...stated import agreed
from ..dataset import Episode
from ..lerobot_format import ACTION, INFO, STATE, STATISTICS, decode_image
from . import ConversionError
from .pictures import shrunk
from .videos import Videos

VERSIONS = ("v2.0", "v2.1", "v3.0")
OFFSETS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LerobotOptions:
    """cameras: role -> feature; empty: all pictures, their roles being the last part of their names. state, action: features.
    gripper_values: what the last column of the actions is when (open, closed); None: only what the dataset says of itself is accepted.
    instruction: instead of the dataset's own. control_hz: the rate that is expected; None: the dataset's."""

    cameras: Mapping[str, str]
    state: str = STATE
    action: str = ACTION
    gripper_values: tuple[float, float] | None = None
    instruction: str = ""
    control_hz: float | None = None
    shorter_side: int | None = None


def is_lerobot(path: Path) -> bool:
    return (path / INFO).is_file()


def rate(path: Path) -> float:
    """Frames a second."""
    return float(_info(path)["fps"])


def robot_type(path: Path) -> str | None:
    """Which robot it says, if it says one."""
    said = _info(path).get("robot_type")
    return said if isinstance(said, str) and said not in ("", "unknown") else None


def read_lerobot(path: Path, options: LerobotOptions, say: Callable[[str], None]) -> Iterator[tuple[str, Episode]]:
    """Where it comes from, and the episode. Raises ConversionError, and Contradiction for what the dataset says otherwise."""
    info = _info(path)
    agreed("--control-hz", options.control_hz, float(info["fps"]), path / INFO, "leave it out; a dataset is not resampled")
    cameras = _cameras(path, info["features"], options.cameras)
    for name, option in ((options.state, "--state"), (options.action, "--action")):
        if name not in info["features"]:
            raise ConversionError(f"{path} has no feature {name} ({option}); it has {', '.join(info['features'])}")
    convention = _convention(path, info)
    convert = _gripper(path, info, options, say)
    for role, name in cameras.items():
        say(f"camera {role}: {name}")
    index = _Version3(path, info) if info["codebase_version"] == "v3.0" else _Version2(path, info)
    with Videos() as videos:
        for number in range(len(index.lengths)):
            where = f"{path}, episode {number}"
            try:
                episode = _episode(index, number, cameras, info["features"], options, convert, videos)
            except ConversionError as error:
                raise ConversionError(f"{where}: {error}") from error
            yield where, replace(episode, convention=convention)


@dataclass(frozen=True)
class _Video:
    """Where an episode's frames of one camera are. alone: the file holds nothing else."""

    path: Path
    first: int
    alone: bool


class _Version2:
    """An episode a file."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        self.path, self._info = path, info
        self.tasks = {int(row["task_index"]): str(row["task"]) for row in _json_lines(path / "meta/tasks.jsonl")}
        episodes = sorted(_json_lines(path / "meta/episodes.jsonl"), key=lambda row: int(row["episode_index"]))
        self.lengths = [int(row["length"]) for row in episodes]

    def table(self, number: int) -> Any:
        return _read_table(self.path / self._info["data_path"].format(**self._names(number)))

    def video(self, number: int, feature: str) -> _Video:
        return _Video(self.path / self._info["video_path"].format(**self._names(number), video_key=feature), 0, True)

    def _names(self, number: int) -> dict[str, int]:
        return {"episode_chunk": number // int(self._info.get("chunks_size", 1000)), "episode_index": number}


class _Version3:
    """Several episodes a file; meta/episodes says where each begins."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        self.path, self._info = path, info
        tasks = _read_table(path / "meta/tasks.parquet").to_pydict()
        words = next((values for name, values in tasks.items() if name != "task_index"), None)  # pandas' index, whatever it is called
        if words is None or "task_index" not in tasks:
            raise ConversionError(f"{path / 'meta/tasks.parquet'} has the columns {', '.join(tasks)}, expected the tasks and task_index")
        self.tasks = dict(zip(map(int, tasks["task_index"]), map(str, words), strict=True))
        files = sorted((path / "meta/episodes").glob("chunk-*/file-*.parquet"))
        rows = [row for file in files for row in _read_table(file).to_pylist()]
        self._rows = sorted(rows, key=lambda row: int(row["episode_index"]))
        self.lengths = [int(row["length"]) for row in self._rows]
        self._cached: tuple[Path | None, Any] = (None, None)

    def table(self, number: int) -> Any:
        import pyarrow.compute as pc

        row = self._rows[number]
        names = {"chunk_index": int(row["data/chunk_index"]), "file_index": int(row["data/file_index"])}
        file = self.path / self._info["data_path"].format(**names)
        if self._cached[0] != file:
            self._cached = (file, _read_table(file))
        return self._cached[1].filter(pc.equal(self._cached[1].column("episode_index"), int(row["episode_index"])))

    def video(self, number: int, feature: str) -> _Video:
        row, prefix = self._rows[number], f"videos/{feature}"
        try:
            names = {"chunk_index": int(row[f"{prefix}/chunk_index"]), "file_index": int(row[f"{prefix}/file_index"])}
            first = round(float(row[f"{prefix}/from_timestamp"]) * float(self._info["fps"]))
        except KeyError as error:
            raise ConversionError(f"meta/episodes has no column {error.args[0]}") from error
        return _Video(self.path / self._info["video_path"].format(video_key=feature, **names), first, False)


def _episode(
    index: _Version2 | _Version3,
    number: int,
    cameras: Mapping[str, str],
    features: Mapping[str, Any],
    options: LerobotOptions,
    convert: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    videos: Videos,
) -> Episode:
    table, length = index.table(number), index.lengths[number]
    if table.num_rows != length:
        raise ConversionError(f"frame {min(table.num_rows, length)}: {table.num_rows} rows in the parquet, {length} in meta/")
    frames = np.asarray(table.column("frame_index")) if "frame_index" in table.column_names else np.arange(length)
    if (frames != np.arange(length)).any():
        at = int(np.argmax(frames != np.arange(length)))
        raise ConversionError(f"frame {at}: its frame_index is {frames[at]}: frames are missing or mixed up")
    state, actions = _matrix(table, options.state, 8), _matrix(table, options.action, 7)
    beyond = np.abs(actions[:, :6]).max(axis=1) > 1 + OFFSETS_TOLERANCE
    if beyond.any():
        at = int(np.argmax(beyond))
        raise ConversionError(
            f"frame {at}: action {np.round(actions[at], 4).tolist()} leaves [-1, 1]; expected offsets of the end effector in the training "
            "controller's units, not joint positions, metres or absolute poses"
        )
    actions[:, :6] = np.clip(actions[:, :6], -1.0, 1.0)
    actions[:, 6] = convert(actions[:, 6])
    images = {}
    for role, feature in cameras.items():
        if features[feature]["dtype"] == "video":
            place = index.video(number, feature)
            pictures = videos.read(place.path, place.first, length, alone=place.alone)
            images[role] = np.stack([shrunk(picture, options.shorter_side) for picture in pictures])
        else:
            images[role] = _pictures(index, table, feature, options.shorter_side)
    return Episode(options.instruction or _task(index, table), images, state.astype(np.float32), actions.astype(np.float32))


def _pictures(index: _Version2 | _Version3, table: Any, feature: str, shorter_side: int | None) -> NDArray[np.uint8]:
    pictures: list[NDArray[np.uint8]] = []
    for frame, cell in enumerate(table.column(feature).to_pylist()):
        try:
            encoded = cell["bytes"] if isinstance(cell, dict) else None
            if encoded is None:
                encoded = (index.path / cell["path"]).read_bytes()
            picture = shrunk(decode_image(encoded), shorter_side)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConversionError(f"frame {frame}: {feature}: {error}") from error
        if pictures and picture.shape != pictures[0].shape:
            sizes = f"{list(pictures[0].shape[:2])} to {list(picture.shape[:2])}"
            raise ConversionError(f"frame {frame}: {feature} changes its size from {sizes}")
        pictures.append(picture)
    return np.stack(pictures)


def _task(index: _Version2 | _Version3, table: Any) -> str:
    numbers = set(table.column("task_index").to_pylist())
    if len(numbers) != 1 or next(iter(numbers)) not in index.tasks:
        raise ConversionError(f"its task_index is {sorted(numbers)}; expected one of meta/'s tasks ({sorted(index.tasks)})")
    return index.tasks[numbers.pop()].strip()


def _matrix(table: Any, name: str, dimensions: int) -> NDArray[np.float64]:
    if name not in table.column_names:
        raise ConversionError(f"the parquet has no column {name}")
    rows = table.column(name).to_pylist()
    for frame, row in enumerate(rows):
        if row is None or len(row) != dimensions:
            raise ConversionError(f"frame {frame}: {name} has {0 if row is None else len(row)} dimensions, expected {dimensions}")
    matrix = np.array(rows, np.float64).reshape(-1, dimensions)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise ConversionError(f"frame {bad[0]}: {name} is {matrix[bad[0]].tolist()}; expected finite numbers")
    return matrix


def _cameras(path: Path, features: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, str]:
    pictures = [name for name, feature in features.items() if feature.get("dtype") in ("image", "video")]
    missing = [f"{role}={name}" for role, name in wanted.items() if name not in pictures]
    if missing or not pictures:
        what = f"no pictures {', '.join(missing) or 'at all'}"
        raise ConversionError(f"{path}: {what}; it has {', '.join(pictures) or 'none'} (--camera ROLE=FEATURE)")
    return dict(wanted) or {name.rpartition(".")[2]: name for name in pictures}


def _gripper(
    path: Path, info: Mapping[str, Any], options: LerobotOptions, say: Callable[[str], None]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    ours = "source" in info and (path / STATISTICS).is_file()  # of our own writer, which takes nothing else
    values = agreed("--gripper-open, --gripper-closed", options.gripper_values, (1.0, 0.0) if ours else None, path)
    if values is None or values[0] == values[1]:
        raise ConversionError(
            f"{path}: nobody says what its gripper action means: give its values with --gripper-open and --gripper-closed "
            "(raw LIBERO: -1 and 1; RLDS and OpenVLA: 1 and 0)"
        )
    opened, closed = values
    say(f"gripper: {opened:g} = open, {closed:g} = closed converted to 1 = open, 0 = closed")

    def convert(column: NDArray[np.float64]) -> NDArray[np.float64]:
        share = (column - closed) / (opened - closed)
        wrong = (share < -0.01) | (share > 1.01)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ConversionError(f"frame {at}: the gripper action is {column[at]:g}, but open is {opened:g} and closed is {closed:g}")
        return np.clip(share, 0.0, 1.0)

    return convert


def _convention(path: Path, info: Mapping[str, Any]) -> ActionConvention:
    """What one of our own says of itself; of others nothing is known but the gripper, which is converted."""
    try:
        return replace(ActionConvention.from_json(info.get(KEY)), gripper_open=1.0, gripper_closed=0.0)
    except ValueError as error:
        raise ConversionError(f"{path / INFO}: {error}") from error


def _info(path: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads((path / INFO).read_text())
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path / INFO} is missing or damaged ({error})") from error
    if info.get("codebase_version") not in VERSIONS:
        raise ConversionError(f"{path} has LeRobot's layout {info.get('codebase_version')!r}, expected {', '.join(VERSIONS)}")
    missing = [key for key in ("fps", "features", "data_path") if key not in info]
    if missing:
        raise ConversionError(f"{path / INFO} has no {', '.join(missing)}")
    return info


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is missing or damaged ({error})") from error


def _read_table(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is missing or damaged ({error})") from error
