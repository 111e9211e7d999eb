"""LeRobot's v2.1 layout: what the files of a dataset are called, and what stands in one episode's parquet file.

Source: codebase_version "v2.1" of github.com/huggingface/lerobot. Pictures are PNG in the parquet (LeRobot's feature type "image").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..policy.images import ImageError, decoded

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = "v2.1"
EPISODES_A_FOLDER = 1000
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
INFO, TASKS, EPISODES, EPISODE_STATISTICS = "meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl", "meta/episodes_stats.jsonl"
STATISTICS = "dataset_statistics.json"  # the reference's, not LeRobot's: a checkpoint takes it over
IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
OTHER_TASKS, OTHER_ACTIONS = "counterfactual.task_index", "counterfactual.action"  # our own columns, beside the layout's
INDICES = ("frame_index", "episode_index", "index", "task_index")
TIMESTAMP_TOLERANCE = 1e-3  # s; float32 seconds are no better after a few hours

_METADATA = b"bitvla_ros"  # of our own, in the parquet's schema
_STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_1", "finger_2")
_ACTION_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "gripper")


def data_path(episode: int) -> str:
    return DATA.format(episode_chunk=episode // EPISODES_A_FOLDER, episode_index=episode)


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


def encode_episode(
    images: Mapping[str, Sequence[bytes]],
    state: NDArray[np.float32],
    actions: NDArray[np.float32],
    *,
    fps: float,
    episode: int,
    first: int,
    task: int,
    others: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None,
    metadata: Mapping[str, Any],
) -> memoryview:
    """The bytes of an episode's parquet file. images: role -> encoded pictures. first: number of its first frame in the dataset.
    others: of counterfactuals, tasks [T, N] and actions [T, N, K, A]. metadata: what `read_metadata` gives back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    length = len(actions)
    columns: dict[str, pa.Array] = {}
    kinds: dict[str, Any] = {}  # how the library `datasets` reads a column
    for role, encoded in images.items():
        name = f"episode_{episode:06d}_frame_{{:06d}}.png"
        paths = pa.array([name.format(i) for i in range(length)], pa.string())
        columns[IMAGES + role] = pa.StructArray.from_arrays([pa.array(encoded, pa.binary()), paths], ["bytes", "path"])
        kinds[IMAGES + role] = {"_type": "Image"}
    lists: dict[str, NDArray[Any]] = {STATE: state, ACTION: actions}
    if others is not None:
        lists |= {OTHER_TASKS: others[0], OTHER_ACTIONS: others[1].reshape(length, -1)}
    for name, rows in lists.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        kinds[name] = {"feature": {"dtype": str(rows.dtype), "_type": "Value"}, "length": rows.shape[1], "_type": "Sequence"}
    numbers = np.arange(length)
    columns["timestamp"] = pa.array((numbers / fps).astype(np.float32))
    kinds["timestamp"] = {"dtype": "float32", "_type": "Value"}
    constant = np.ones(length, np.int64)
    for name, values in zip(INDICES, (numbers, episode * constant, first + numbers, task * constant), strict=True):
        columns[name] = pa.array(values, pa.int64())
        kinds[name] = {"dtype": "int64", "_type": "Value"}
    table = pa.table(columns).replace_schema_metadata(
        {b"huggingface": json.dumps({"info": {"features": kinds}}).encode(), _METADATA: json.dumps(metadata).encode()}
    )
    sink = pa.BufferOutputStream()
    pictures = [f"{IMAGES}{role}.{field}" for role in images for field in ("bytes", "path")]
    numeric = [name for name in columns if not name.startswith(IMAGES)]
    # PNG neither repeats nor shrinks: dictionaries and a second compression would cost time for nothing.
    compression = {**dict.fromkeys(pictures, "none"), **dict.fromkeys([_leaf(table.schema, name) for name in numeric], "snappy")}
    pq.write_table(table, sink, use_dictionary=False, compression=compression, row_group_size=max(length, 1))
    return memoryview(sink.getvalue())


def _leaf(schema: pa.Schema, name: str) -> str:
    """A column's path in the parquet: a list's values are one level down."""
    return f"{name}.list.element" if name in (STATE, ACTION, OTHER_TASKS, OTHER_ACTIONS) else name


def read_metadata(path: str) -> dict[str, Any] | None:
    """What `encode_episode` was given as metadata; None in a file of another origin. Raises OSError or ValueError for a damaged file."""
    import pyarrow.parquet as pq

    found = (pq.read_schema(path).metadata or {}).get(_METADATA)
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
    tasks, actions = (
        table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in (OTHER_TASKS, OTHER_ACTIONS)
    )
    tasks = tasks.reshape(frames, -1)
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


def picture_statistics(pictures: NDArray[np.uint8]) -> dict[str, Any]:
    """min, max, mean, std [3, 1, 1] of colours in 0..1, and count, as LeRobot keeps them. pictures: uint8 [T, H, W, 3]."""
    some = pictures[:: max(1, len(pictures) // 16)]
    colours = some.reshape(-1, 3)
    mean = colours.mean(0, dtype=np.float64)
    square = np.einsum("ij,ij->j", colours, colours, dtype=np.float64) / len(colours)
    values = {"min": colours.min(0), "max": colours.max(0), "mean": mean, "std": np.sqrt(np.maximum(square - mean**2, 0.0))}
    statistics: dict[str, Any] = {key: (np.asarray(value) / 255.0).reshape(3, 1, 1).tolist() for key, value in values.items()}
    return {**statistics, "count": [len(some)]}


def number_statistics(rows: NDArray[Any]) -> dict[str, Any]:
    """min, max, mean, std [D] and count. rows: [T, D]."""
    rows = rows.astype(np.float64)
    values = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**{key: value.tolist() for key, value in values.items()}, "count": [len(rows)]}


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
