"""LeRobot's v3.0 layout: what the files of a dataset are called, and what stands in them.

Source: codebase_version "v3.0" of github.com/huggingface/lerobot 0.6. It allows many episodes a file; we write one, so that a file is an
episode, whole or not there. Pictures are PNG in the parquet (LeRobot's feature type "image").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..policy.images import ImageError, decoded

if TYPE_CHECKING:
    import pyarrow as pa

VERSION, OLD_VERSION = "v3.0", "v2.1"
EPISODES_A_FOLDER = 1000
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INFO, TASKS, EPISODES, EPISODES_FILE = "meta/info.json", "meta/tasks.parquet", "meta/episodes", "chunk-000/file-000.parquet"
LEROBOT_STATISTICS = "meta/stats.json"
OLD_TASKS, OLD_EPISODES = "meta/tasks.jsonl", "meta/episodes.jsonl"
STATISTICS = "dataset_statistics.json"  # the reference's, not LeRobot's: a checkpoint takes it over
IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
OTHER_TASKS, OTHER_ACTIONS = "counterfactual.task_index", "counterfactual.action"  # our own columns, beside the layout's
INDICES = ("frame_index", "episode_index", "index", "task_index")
TIMESTAMP_TOLERANCE = 1e-3  # s; float32 seconds are no better after a few hours

_METADATA = "bitvla_ros"  # of our own, in the parquet
_STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_1", "finger_2")
_ACTION_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "gripper")


def place(episode: int) -> dict[str, int]:
    """chunk_index and file_index of its files."""
    return {"chunk_index": episode // EPISODES_A_FOLDER, "file_index": episode % EPISODES_A_FOLDER}


def data_path(episode: int) -> str:
    return DATA.format(**place(episode))


def video_path(episode: int, role: str) -> str:
    return VIDEO.format(video_key=IMAGES + role, **place(episode))


def features(cameras: Mapping[str, tuple[int, int]], state: int, action: int, others: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """`features` of info.json. cameras: role -> (height, width). state, action: their dimensions. others: counterfactuals of a frame,
    and actions in each."""
    pictures = {
        IMAGES + role: {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channel"]}
        for role, (height, width) in cameras.items()
    }
    numbers = {
        STATE: {"dtype": "float32", "shape": [state], "names": _names(_STATE_NAMES, state)},
        ACTION: {"dtype": "float32", "shape": [action], "names": _names(_ACTION_NAMES, action)},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    if others[0]:
        numbers[OTHER_TASKS] = {"dtype": "int64", "shape": [others[0]], "names": None}
        numbers[OTHER_ACTIONS] = {"dtype": "float32", "shape": [others[0] * others[1] * action], "names": None}
    return {**pictures, **numbers, **{name: {"dtype": "int64", "shape": [1], "names": None} for name in INDICES}}


def _names(usual: Sequence[str], dimensions: int) -> list[str]:
    return list(usual) if dimensions == len(usual) else [str(i) for i in range(dimensions)]


@dataclass(frozen=True)
class Columns:
    """The numbers of an episode's T frames, by column: [T, D] or [T]. pictures: roles of cameras, whose columns come beside them."""

    values: Mapping[str, NDArray[Any]]
    pictures: tuple[str, ...]

    @classmethod
    def of(
        cls,
        roles: Sequence[str],
        state: NDArray[np.float32],
        actions: NDArray[np.float32],
        *,
        fps: float,
        episode: int,
        first: int,
        task: int,
        others: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None,
    ) -> Columns:
        """first: number of its first frame in the dataset. others: of counterfactuals, tasks [T, N] and actions [T, N, K, A]."""
        numbers, constant = np.arange(len(actions)), np.ones(len(actions), np.int64)
        values: dict[str, NDArray[Any]] = {STATE: state, ACTION: actions}
        if others is not None:
            tasks = others[0] if others[0].shape[1] > 1 else others[0][:, 0]  # LeRobot takes a feature of one number for no list
            values |= {OTHER_TASKS: tasks, OTHER_ACTIONS: others[1].reshape(len(actions), -1)}
        values["timestamp"] = (numbers / fps).astype(np.float32)
        values |= zip(INDICES, (numbers, episode * constant, first + numbers, task * constant), strict=True)
        return cls(values, tuple(roles))


class EpisodeFile:
    """Writes an episode's parquet file, some frames after others. A context manager."""

    def __init__(self, path: str, columns: Columns) -> None:
        """Raises OSError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._columns, self._done = columns, 0
        fields: list[pa.Field] = []
        kinds: dict[str, dict[str, Any]] = {}  # how the library `datasets` reads a column
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for role in columns.pictures:
            fields.append(pa.field(IMAGES + role, picture))
            kinds[IMAGES + role] = {"_type": "Image"}
        for name, values in columns.values.items():
            value = {"dtype": str(values.dtype), "_type": "Value"}
            flat = values.ndim == 1
            kinds[name] = value if flat else {"feature": value, "length": values.shape[1], "_type": "List"}
            kind = pa.from_numpy_dtype(values.dtype)
            fields.append(pa.field(name, kind if flat else pa.list_(kind, values.shape[1])))
        self._schema = pa.schema(fields, {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()})
        # PNG neither repeats nor shrinks: dictionaries and a second compression would cost time for nothing.
        leaves = {f"{IMAGES}{role}.{part}": "none" for role in columns.pictures for part in ("bytes", "path")}
        for name, values in columns.values.items():
            leaves[name if values.ndim == 1 else f"{name}.list.element"] = "snappy"
        self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=False, compression=leaves)

    def write(self, encoded: Mapping[str, Sequence[bytes]], count: int) -> None:
        """The next `count` frames. encoded: their pictures, by role. Raises OSError."""
        import pyarrow as pa

        first, last = self._done, self._done + count
        arrays: list[Any] = []
        for role in self._columns.pictures:
            paths = pa.array([f"frame-{i:06d}.png" for i in range(first, last)], pa.string())
            arrays.append(pa.StructArray.from_arrays([pa.array(encoded[role], pa.binary()), paths], ["bytes", "path"]))
        for values in self._columns.values.values():
            flat = pa.array(np.ascontiguousarray(values[first:last]).ravel())
            arrays.append(flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._done = last

    def describe(self, metadata: Mapping[str, Any]) -> None:
        """What `read_metadata` gives back."""
        self._writer.add_key_value_metadata({_METADATA: json.dumps(metadata)})

    def __enter__(self) -> EpisodeFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def read_metadata(path: str) -> dict[str, Any] | None:
    """What `describe` was given; None in a file of another origin. Raises OSError or ValueError for a damaged file."""
    import pyarrow.parquet as pq

    found = (pq.read_metadata(path).metadata or {}).get(_METADATA.encode())
    return None if found is None else json.loads(found)


def read_columns(path: str, columns: Sequence[str]) -> pa.Table:
    """Raises OSError or ValueError (pyarrow's ArrowInvalid is one) for a damaged file, KeyError for a column it lacks."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise KeyError(missing[0])
        return file.read(columns=list(columns), use_threads=False)


def read_counterfactuals(path: str, frames: int, action: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Tasks, int64 [T, N], and actions, float32 [T, N, K, A]; N is 0 in a file without. Raises OSError or ValueError for a damaged one."""
    try:
        table = read_columns(path, [OTHER_TASKS, OTHER_ACTIONS])
    except KeyError:
        return np.zeros((frames, 0), np.int64), np.zeros((frames, 0, 0, action), np.float32)
    return counterfactuals_of(table, action)


def counterfactuals_of(table: pa.Table, action: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Tasks, int64 [T, N], and actions, float32 [T, N, K, A], of a table that has both columns."""
    import pyarrow as pa

    columns = [table.column(name).combine_chunks() for name in (OTHER_TASKS, OTHER_ACTIONS)]
    tasks, actions = (
        (column if pa.types.is_integer(column.type) else column.flatten()).to_numpy(zero_copy_only=False) for column in columns
    )
    tasks = tasks.reshape(table.num_rows, -1)
    return tasks.astype(np.int64), actions.reshape(*tasks.shape, -1, action).astype(np.float32)


def matrix(table: pa.Table, name: str) -> list[NDArray[np.float32]]:
    """The rows of a column of lists, each float32 [D]; D may differ from row to row, as it may in the file. A null is an empty row."""
    import pyarrow as pa

    column = table.column(name).combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"{name} is {column.type}, expected lists of numbers")
    if pa.types.is_fixed_size_list(column.type) and column.null_count == 0:
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return list(flat.reshape(len(column), column.type.list_size))
    return [np.asarray([] if row is None else row, np.float32) for row in column.to_pylist()]


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """image: uint8 [H, W, 3], RGB."""
    import cv2

    done, encoded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise ValueError(f"a picture of shape {image.shape} could not be encoded")
    return bytes(encoded)


def decode_image(encoded: Any) -> NDArray[np.uint8]:
    """PNG or JPEG bytes -> uint8 [H, W, 3], RGB. Raises ValueError for what is damaged or no picture of 8 bits."""
    try:
        return decoded(encoded)
    except ImageError as error:
        raise ValueError(f"the picture does not decode: {error}") from error


class PictureStatistics:
    """min, max, mean, std [3, 1, 1] of colours in 0..1, and count, as LeRobot keeps them, of some of an episode's pictures."""

    def __init__(self, length: int) -> None:
        self._every = max(1, length // 16)
        self._seen = self._count = self._pixels = 0
        self._low, self._high = np.full(3, 255, np.int64), np.zeros(3, np.int64)
        self._sum, self._squares = np.zeros(3), np.zeros(3)

    def add(self, picture: NDArray[np.uint8]) -> None:
        """The next one, uint8 [H, W, 3]."""
        if self._seen % self._every == 0:
            colours = picture.reshape(-1, 3)
            self._low, self._high = np.minimum(self._low, colours.min(0)), np.maximum(self._high, colours.max(0))
            self._sum += colours.sum(0, dtype=np.float64)
            self._squares += np.einsum("ij,ij->j", colours, colours, dtype=np.float64)
            self._pixels += len(colours)
            self._count += 1
        self._seen += 1

    def result(self) -> dict[str, Any]:
        mean = self._sum / self._pixels
        deviation = np.sqrt(np.maximum(self._squares / self._pixels - mean**2, 0.0))
        values = {"min": self._low, "max": self._high, "mean": mean, "std": deviation}
        return {**{key: (value / 255.0).reshape(3, 1, 1).tolist() for key, value in values.items()}, "count": [self._count]}


def number_statistics(rows: NDArray[Any]) -> dict[str, Any]:
    """min, max, mean, std, quantiles [D] and count. rows: [T, D]."""
    rows = rows.astype(np.float64)
    values = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    values |= {f"q{share:02d}": np.quantile(rows, share / 100, axis=0) for share in (1, 10, 50, 90, 99)}
    return {**{key: value.tolist() for key, value in values.items()}, "count": [len(rows)]}


def joined_statistics(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all episodes together, of what PictureStatistics gave for each."""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    means, deviations = (np.array([part[name] for part in parts]) for name in ("mean", "std"))
    mean = np.tensordot(counts, means, 1) / counts.sum()
    square = np.tensordot(counts, deviations**2 + means**2, 1) / counts.sum()
    values = {"min": np.min([part["min"] for part in parts], 0), "max": np.max([part["max"] for part in parts], 0), "mean": mean}
    values["std"] = np.sqrt(np.maximum(square - mean**2, 0.0))
    return {**{key: value.tolist() for key, value in values.items()}, "count": [int(counts.sum())]}


def encode_table(columns: Mapping[str, Sequence[Any]], index: str = "") -> memoryview:
    """A parquet file of a table. index: the column that pandas takes for its index, as LeRobot does with the tasks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if index:
        described = {"index_columns": [index], "column_indexes": [], "columns": [], "pandas_version": "2.0.0"}
        kinds = {pa.int64(): ("int64", "int64"), pa.string(): ("unicode", "object")}
        for field in table.schema:
            pandas_type, numpy_type = kinds[field.type]
            described["columns"].append(  # type: ignore[attr-defined]
                {"name": field.name, "field_name": field.name, "pandas_type": pandas_type, "numpy_type": numpy_type, "metadata": None}
            )
        table = table.replace_schema_metadata({b"pandas": json.dumps(described).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return memoryview(sink.getvalue())
