"""The files of a checkpoint, read without trust: JSON, safetensors, in one file or in shards, and the heads' .pt files."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .layout import CheckpointError, Layout, local_layout
from .safetensors_file import Entry, FormatError, map_file, read_header

WRAPPERS = ("module.", "_orig_mod.")  # of distributed training, and of torch.compile
# Tables that some versions of transformers save with the weights, and that follow from config.json.
BUFFERS = (".inv_freq", ".original_inv_freq", ".cos_cached", ".sin_cached", ".position_ids")
LFS = b"version https://git-lfs.github.com/spec/"


def read_config(path: Path) -> dict[str, Any]:
    """The config.json that belongs to the weights of the directory `path`."""
    return read_json(path / local_layout(path).config)


def read_json(path: Path) -> dict[str, Any]:
    try:
        require_content(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the directory is not a checkpoint, or its download is incomplete") from error
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object. Download the file again")
    return value


def require_content(path: Path) -> None:
    """Raises CheckpointError for what git leaves in the place of a large file, and OSError."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise CheckpointError(f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in the clone, or download it")


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """What the safetensors files of a directory hold, by the names there, memory-mapped. Raises CheckpointError."""
    return read_weights(path, local_layout(path))[1]


def read_weights(path: Path, files: Layout) -> tuple[dict[str, tuple[Path, Entry]], dict[str, Tensor]]:
    """Where every tensor is and, memory-mapped, what it is, by its name without WRAPPERS. Buffers are left out."""
    listed = None if files.shard_index is None else _read_index(path / files.shard_index)
    places: dict[str, tuple[Path, Entry]] = {}
    tensors: dict[str, Tensor] = {}
    for name in files.weights if listed is None else sorted({files.prefix + shard for shard in listed.values()}):
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing. Download it, or check that this is the checkpoint's directory")
        try:
            require_content(file)
            entries = {_plain(key): entry for key, entry in read_header(file)[1].items() if not key.endswith(BUFFERS)}
            tensors |= map_file(file, entries)
        except (FormatError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or truncated ({error}). Download it again") from error
        if twice := sorted(entries.keys() & places.keys()):
            raise CheckpointError(f"{some(twice)} is in {places[twice[0]][0].name} and in {file.name}. Download the shards again")
        places |= {key: (file, entry) for key, entry in entries.items()}
    if listed is not None:
        _check_index(path / str(files.shard_index), listed, {key: file.name for key, (file, _) in places.items()})
    return places, tensors


def _read_index(file: Path) -> dict[str, str]:
    """The shard of every tensor."""
    listed = read_json(file).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{file} has no weight_map. Download the file again")
    if odd := [name for name in listed.values() if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{file} names {odd[0]!r} as a shard: expected the name of a file beside it. Download the file again")
    return {_plain(key): name for key, name in listed.items() if not key.endswith(BUFFERS)}


def _check_index(index: Path, listed: Mapping[str, str], found: Mapping[str, str]) -> None:
    for problem, names in (
        ("lists tensors that its shards lack", listed.keys() - found.keys()),
        ("does not list tensors that its shards have", found.keys() - listed.keys()),
        ("lists tensors under another shard than the one they are in", {key for key in listed if listed[key] != found.get(key)}),
    ):
        if names:
            raise CheckpointError(f"{index} {problem}: {some(sorted(names))}. Download index and shards again, all of one revision")


def read_head(file: Path, stem: str) -> dict[str, Tensor]:
    """One of the two .pt files, its names prefixed by `stem`."""
    try:
        require_content(file)
        # every torch since 1.6 saves in a zip archive, which can be memory-mapped
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except CheckpointError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} is damaged, or holds more than tensors ({error}). Download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file} does not hold a state dict: expected parameter names with tensors")
    return {f"{stem}.{_plain(key)}": value for key, value in state.items()}


def _plain(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
