"""One demonstration: in memory, as rows of its file, and what it must hold to be learned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..action_convention import UNKNOWN, ActionConvention
from . import lerobot_format as layout


class DatasetError(ValueError):
    """A dataset or an episode that cannot be read, written or learned from; names episode and frame where there is one."""


class DatasetNotWritten(DatasetError):
    """An episode, or what meta/ says of all, could not be written: the disk is full, or the folder not ours to write."""


class Pictures(Protocol):
    """uint8 [T, H, W, 3], RGB, given one after the other by iteration, as often as it is asked for: an array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Counterfactuals:
    """What would be done at a frame under other instructions, as the N next chunks of K actions: so that one picture is seen with
    several instructions, and words count (CAST, arXiv 2508.13446).

    tasks: the other instructions. index: int64 [T, N], into tasks; -1 where there is none. actions: float32 [T, N, K, A].
    """

    tasks: tuple[str, ...]
    index: NDArray[np.int64]
    actions: NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """One demonstration of T frames.

    task: the instruction. images: camera role -> uint8 [T, H, W, 3], RGB, upright: an array, or what is decoded while it is gone through.
    state: float32 [T, D]; of a Panda [T, 8], policy/observation.py state_vector.
    actions: float32 [T, A], what the demonstrator meant to do at each frame: offsets in [-1, 1], last the gripper, 1 = open, 0 = closed.
    seed: of the simulator's initial state, where it was simulated. success: whether the goal was reached; None: unknown.
    counterfactuals: of its frames, where they are known. convention: what its numbers mean.
    """

    task: str
    images: Mapping[str, Pictures]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    seed: int | None = None
    success: bool | None = None
    counterfactuals: Counterfactuals | None = None
    convention: ActionConvention = UNKNOWN

    def __len__(self) -> int:
        return len(self.actions)


def check(episode: Episode, index: int, cameras: Mapping[str, tuple[int, int]], dimensions: tuple[int, int] | None) -> None:
    """Raises DatasetError, naming episode and frame, for an episode that does not fit into a dataset.

    cameras: role -> (height, width). dimensions: of state and actions of the episodes before it."""
    where = f"episode {index}"
    if not episode.task.strip():
        raise DatasetError(f"{where} has no instruction")
    length = len(episode.actions)
    if length == 0:
        raise DatasetError(f"{where} has no frames")
    for i, (name, rows) in enumerate((("state", episode.state), ("actions", episode.actions))):
        if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != length or rows.size == 0:
            raise DatasetError(f"{where}: {name} are {rows.dtype} {list(rows.shape)}, expected float32 [{length}, dimensions]")
        if dimensions is not None and rows.shape[1] != dimensions[i]:
            raise DatasetError(f"{where}: {name} have {rows.shape[1]} dimensions, those before have {dimensions[i]}")
        _refuse_non_finite(rows, name, where)
    _refuse_unconverted_gripper(episode.actions, where)
    others = episode.counterfactuals
    if others is not None:
        shape = (*others.index.shape, others.actions.shape[2], episode.actions.shape[1]) if others.actions.ndim == 4 else None
        if others.actions.shape != shape or len(others.index) != length or others.actions.dtype != np.float32:
            raise DatasetError(
                f"{where}: counterfactuals are {list(others.index.shape)} and {others.actions.dtype} {list(others.actions.shape)}, "
                f"expected [{length}, n] and float32 [{length}, n, chunk, {episode.actions.shape[1]}]"
            )
        if others.index.size and not -1 <= others.index.min() <= others.index.max() < len(others.tasks):
            raise DatasetError(f"{where}: counterfactuals name other tasks than the {len(others.tasks)} that they have")
        _refuse_non_finite(others.actions.reshape(length, -1), "counterfactuals", where)
        _refuse_unconverted_gripper(others.actions, where)
    unknown, missing = sorted(set(episode.images) - set(cameras)), sorted(set(cameras) - set(episode.images))
    if unknown or missing:
        wrong_cameras = f"unknown camera role {', '.join(unknown)}" if unknown else f"camera {', '.join(missing)} is missing"
        raise DatasetError(f"{where}: {wrong_cameras}; this dataset has {', '.join(cameras) or 'no cameras'}")
    for role, (height, width) in cameras.items():
        pictures = episode.images[role]
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (height, width, 3):
            raise DatasetError(
                f"{where}: camera {role} has {pictures.dtype} {list(pictures.shape)}, expected uint8 [{length}, {height}, {width}, 3]"
            )
        if len(pictures) != length:
            raise DatasetError(f"{where}, frame {min(len(pictures), length)}: camera {role} has {len(pictures)} of {length} pictures")


@dataclass(frozen=True)
class Rows:
    """What an episode's file holds besides pictures. state: float32 [T, D]. actions: float32 [T, A]. task: index.
    other_tasks: int64 [T, N], of counterfactuals, -1 for none; other_actions: float32 [T, N, K, A]. N is 0 where the file has none."""

    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    task: int
    other_tasks: NDArray[np.int64]
    other_actions: NDArray[np.float32]

    def renumbered(self, place: Mapping[int, int]) -> Rows:
        """With other numbers for the tasks."""
        others = np.array([place.get(task, -1) for task in self.other_tasks.ravel().tolist()], np.int64)
        return replace(self, task=place[self.task], other_tasks=others.reshape(self.other_tasks.shape))

    @classmethod
    def read(cls, file: Path, index: int, fps: float, first: int) -> Rows:
        """first: the number that the episode's first frame must have in the dataset."""
        where = f"episode {index}"
        if not file.is_file():
            raise DatasetError(f"{where} is missing: no file {file}")
        columns = [layout.STATE, layout.ACTION, "timestamp", *layout.INDICES]
        try:
            table = layout.read_columns(str(file), columns)
            state, actions = (_stack(layout.matrix(table, name), name, where) for name in (layout.STATE, layout.ACTION))
            numbers = {name: table.column(name).to_numpy() for name in columns[2:]}
            others = layout.read_counterfactuals(str(file), len(actions), actions.shape[1])
            if strange := [name for name, column in numbers.items() if column.dtype.kind not in "iuf"]:
                raise ValueError(f"{strange[0]} holds no numbers")
        except KeyError as error:
            raise DatasetError(f"{where}: {file} has no column {error.args[0]!r}") from error
        except DatasetError:
            raise
        except (OSError, ValueError, TypeError, AttributeError) as error:  # the last two: columns of other types
            raise DatasetError(f"{where}: {file} is damaged ({error})") from error
        expected = np.arange(len(actions))
        wanted = {"frame_index": expected, "index": first + expected, "episode_index": np.full(len(actions), index)}
        for name, right in wanted.items():
            wrong = np.flatnonzero(numbers[name] != right)
            if len(wrong):
                at = wrong[0]
                raise DatasetError(f"{where}, frame {at}: {name} is {numbers[name][at]}, expected {right[at]}: a gap, or another order")
        on_time = np.abs(numbers["timestamp"] - expected / fps) <= layout.TIMESTAMP_TOLERANCE
        wrong = np.flatnonzero(~on_time)
        if len(wrong):
            at = wrong[0]
            raise DatasetError(
                f"{where}, frame {at}: its timestamp is {numbers['timestamp'][at]:g} s, expected {at / fps:g} s: "
                f"a gap, or another rate than {fps:g} frames a second"
            )
        _refuse_non_finite(others[1].reshape(len(actions), -1), layout.OTHER_ACTIONS, where)
        return cls(state, actions, int(numbers["task_index"][0]), *others)


def _stack(rows: list[NDArray[np.float32]], name: str, where: str) -> NDArray[np.float32]:
    if not rows:
        raise DatasetError(f"{where} has no frames")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise DatasetError(f"{where}, frame {i}: {name} has {len(row)} dimensions, frame 0 has {len(rows[0])}")
    stacked = np.stack(rows)
    _refuse_non_finite(stacked, name, where)
    return stacked


def _refuse_unconverted_gripper(actions: NDArray[np.float32], where: str) -> None:
    """actions: [T, ..., A]."""
    gripper = actions[..., -1].reshape(len(actions), -1)
    wrong = np.argwhere((gripper < 0) | (gripper > 1))
    if len(wrong):
        frame, column = wrong[0]
        raise DatasetError(
            f"{where}, frame {frame}: the gripper action is {gripper[frame, column]:g}, expected 0 (closed) to 1 (open); "
            "a command's -1 (open) and +1 (closed) must be converted"
        )


def _refuse_non_finite(rows: NDArray[np.float32], name: str, where: str) -> None:
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        frame, dimension = bad[0]
        raise DatasetError(f"{where}, frame {frame}: {name}[{dimension}] is {rows[frame, dimension]}, expected a finite number")
