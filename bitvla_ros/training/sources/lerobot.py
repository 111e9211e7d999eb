"""Datasets in LeRobot's layouts v2.0, v2.1 (an episode a file) and v3.0 (many), with pictures in the parquet or in mp4 videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...action_convention import KEY, ActionConvention
from ...stated import agreed
from ..dataset import Counterfactuals, DatasetError, Episode
from ..left_out import LeftOut
from ..lerobot_format import ACTION, INFO, OTHER_ACTIONS, OTHER_TASKS, STATE, STATISTICS, counterfactuals_of, decode_image
from ..lerobot_index import Index, open_index, read_info
from . import ConversionError
from .commands import say_clipped
from .lerobot_actions import Declared, Meaning
from .pictures import LazyPictures, shrunk, shrunk_size
from .videos import Videos

SUCCESS = "next.success"


@dataclass(frozen=True)
class LerobotOptions:
    """cameras: role -> feature; empty: all pictures, their roles being the last part of their names. state, action: features.
    gripper_values: what the last column of the actions is when (open, closed); None: only what the dataset says of itself is accepted.
    instruction: instead of the dataset's own. control_hz: the rate that is expected; None: the dataset's. declared: what numbers mean,
    where the features' names do not say it."""

    cameras: Mapping[str, str]
    state: str = STATE
    action: str = ACTION
    gripper_values: tuple[float, float] | None = None
    instruction: str = ""
    control_hz: float | None = None
    shorter_side: int | None = None
    declared: Declared = field(default_factory=Declared)


def is_lerobot(path: Path) -> bool:
    return (path / INFO).is_file()


def rate(path: Path) -> float:
    """Frames a second."""
    return float(read_info(path)["fps"])


def robot_type(path: Path) -> str | None:
    """Which robot it says, if it says one."""
    said = read_info(path).get("robot_type")
    return said if isinstance(said, str) and said not in ("", "unknown") else None


def origin(path: Path) -> Mapping[str, Any] | None:
    """How a dataset of ours was made."""
    said = read_info(path).get("source")
    return said if isinstance(said, Mapping) else None


def read_lerobot(
    path: Path, options: LerobotOptions, say: Callable[[str], None], left_out: LeftOut
) -> Iterator[tuple[str, Episode]]:
    """Where it comes from, and the episode, whose pictures are read while the next one has not been asked for. Raises ConversionError, and
    Contradiction for what the dataset says otherwise."""
    info = read_info(path)
    features = info["features"]
    agreed("--control-hz", options.control_hz, float(info["fps"]), path / INFO, "leave it out; a dataset is not resampled")
    cameras = _cameras(path, features, options.cameras)
    for name, option in ((options.state, "--state"), (options.action, "--action")):
        if name not in features:
            raise ConversionError(f"{path} has no feature {name} ({option}); it has {', '.join(features)}")
    ours = "source" in info and (path / STATISTICS).is_file()  # of our own writer, which takes nothing else
    meaning = Meaning(features, options.action, options.state, options.declared, ours=ours, fps=float(info["fps"]), say=say)
    convert = _gripper(path, ours, options, say)
    for role, name in cameras.items():
        say(f"camera {role}: {name}")
    index = open_index(path, info)
    with Videos() as videos:
        for number in index.rows:
            where = f"{path}, episode {number}"
            try:
                episode = _episode(index, number, cameras, features, options, meaning, convert, videos)
            except (ConversionError, DatasetError) as error:
                left_out.add(where, ConversionError(f"{where}: {error}"))
                continue
            except (KeyError, TypeError, ValueError, OverflowError) as error:  # of numpy's and pyarrow's, about columns of other types
                left_out.add(where, ConversionError(f"{where}: its columns cannot be read ({type(error).__name__}: {error})"))
                continue
            yield where, replace(episode, convention=_convention(path, info, meaning))
    say_clipped(meaning.clipped, meaning.frames, str(path), say)
    meaning.conclude()


def _episode(
    index: Index,
    number: int,
    cameras: Mapping[str, str],
    features: Mapping[str, Any],
    options: LerobotOptions,
    meaning: Meaning,
    convert: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    videos: Videos,
) -> Episode:
    table, length = index.table(number), index.length(number)
    if table.num_rows != length:
        raise ConversionError(f"frame {min(table.num_rows, length)}: {table.num_rows} rows in the parquet, {length} in meta/")
    frames = np.asarray(table.column("frame_index")) if "frame_index" in table.column_names else np.arange(length)
    if (frames != np.arange(length)).any():
        at = int(np.argmax(frames != np.arange(length)))
        raise ConversionError(f"frame {at}: its frame_index is {frames[at]}: frames are missing or mixed up")
    actions = _matrix(table, options.action, 7)
    state, offsets = meaning.convert(_matrix(table, options.state, 8), actions)
    made = np.concatenate([offsets, convert(actions[:, 6])[:, None]], axis=1)
    images: dict[str, Any] = {}
    for role, feature in cameras.items():
        if features[feature]["dtype"] == "video":
            place = index.video(number, feature)
            images[role] = _filmed(videos, place.path, place.first, length, place.alone, feature, options.shorter_side)
        else:
            images[role] = _pictures(index.path, table.column(feature), feature, options.shorter_side)
    task = options.instruction or _task(index, table)
    said = index.rows[number]
    seed = said.get("seed")
    return Episode(
        task,
        images,
        state.astype(np.float32),
        made.astype(np.float32),
        seed=None if seed is None else int(seed),
        success=_success(table, said),
        counterfactuals=_others(index, table),
    )


def _others(index: Index, table: Any) -> Counterfactuals | None:
    """Labels for other instructions, of our own datasets."""
    if OTHER_TASKS not in table.column_names or OTHER_ACTIONS not in table.column_names:
        return None
    tasks = tuple(index.tasks[key] for key in sorted(index.tasks))
    place = {key: i for i, key in enumerate(sorted(index.tasks))} | {-1: -1}
    numbers, actions = counterfactuals_of(table, 7)
    if unknown := set(numbers.ravel().tolist()) - set(place):
        raise ConversionError(f"{OTHER_TASKS} names the tasks {sorted(unknown)}; expected those of meta/ ({sorted(index.tasks)})")
    return Counterfactuals(tasks, np.vectorize(place.__getitem__, otypes=[np.int64])(numbers), actions)


def _pictures(root: Path, cells: Any, feature: str, shorter_side: int | None) -> LazyPictures:
    def decode() -> Iterator[NDArray[np.uint8]]:
        for frame in range(len(cells)):
            try:
                cell = cells[frame].as_py()
                encoded = cell["bytes"] if isinstance(cell, dict) else None
                if encoded is None:
                    encoded = (root / cell["path"]).read_bytes()
                yield shrunk(decode_image(encoded), shorter_side)
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise ConversionError(f"frame {frame}: {feature}: {error}") from error

    height, width = next(decode()).shape[:2]
    return LazyPictures(feature, len(cells), (height, width), decode)


def _filmed(
    videos: Videos, path: Path, first: int, length: int, alone: bool, feature: str, shorter_side: int | None
) -> LazyPictures:
    def decode() -> Iterator[NDArray[np.uint8]]:
        return (shrunk(picture, shorter_side) for picture in videos.read(path, first, length, alone=alone))

    return LazyPictures(feature, length, shrunk_size(*videos.size(path), shorter_side), decode)


def _success(table: Any, said: Mapping[str, Any]) -> bool | None:
    """Whether the demonstration reached its goal; None where nobody says. said: of meta/, as our own datasets have it."""
    stated = said.get("success")
    if stated is None and SUCCESS in table.column_names:
        values = [value[0] if isinstance(value, list) else value for value in table.column(SUCCESS).to_pylist()]
        known = [bool(value) for value in values if value is not None]
        return any(known) if known else None
    return None if stated is None else bool(stated)


def _task(index: Index, table: Any) -> str:
    numbers = set(table.column("task_index").to_pylist())
    if len(numbers) != 1 or next(iter(numbers)) not in index.tasks:
        found = ", ".join(sorted(map(str, numbers)))
        raise ConversionError(f"its task_index is {found}; expected one of meta/'s tasks ({sorted(index.tasks)})")
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
    path: Path, ours: bool, options: LerobotOptions, say: Callable[[str], None]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
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


def _convention(path: Path, info: Mapping[str, Any], meaning: Meaning) -> ActionConvention:
    """What one of our own says of itself; of others the gripper, which is converted, and what was given or converted to."""
    given = ActionConvention(meaning.metres_per_unit, meaning.radians_per_unit, 1.0, 0.0, meaning.branch)
    try:
        return given.agreed(ActionConvention.from_json(info.get(KEY)), path / INFO)
    except ValueError as error:
        raise ConversionError(f"{path / INFO}: {error}") from error
