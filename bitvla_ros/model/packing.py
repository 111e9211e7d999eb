"""Packing: a checkpoint's master weights, or random ones, become a packed model on disk, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..action_convention import KEY, UNKNOWN, ActionConvention
from ..ternary.pack import pack_base3, pack_weight
from .bitvla import BitVLA
from .checkpoint import CheckpointError, Reading, read_checkpoint, read_statistics, resolve
from .checkpoint_files import require_content
from .config import BitVLAConfig, described, preset
from .hub import commit_of
from .layout import local_layout
from .packed import (
    COMPANIONS,
    CONFIG,
    ENCODINGS,
    FORMAT,
    VERSION,
    WEIGHTS,
    PackedModelError,
    hash_description,
    require_agreement,
    serialise,
    stored_shapes,
)
from .random_weights import RANDOM_KEY, draw, identity_statistics, with_byte_tokenizer
from .safetensors_file import DTYPES, SafetensorsWriter
from .tokenizer import tokenizer_of

RANDOM = "random:"
Progress = Callable[[str, int, int], None]  # tensor, weights done, weights in all


class _Source(NamedTuple):
    """What is packed. tensors: each master weight and each other tensor, in parts along its first dimension; to be taken in order."""

    config: BitVLAConfig
    norm_stats: dict[str, Any] | None
    norm_key: str | None
    cameras: tuple[str, ...] | None
    convention: ActionConvention
    provenance: dict[str, Any]
    companions: dict[str, bytes]
    dtypes: dict[str, torch.dtype]
    tensors: Iterator[tuple[str, Iterable[Tensor]]]


def pack_model(
    source: str | Path,
    out: str | Path,
    *,
    encoding: str = "2bit",
    attention: str | None = None,
    chunk: int | None = None,
    control_hz: float | None = None,
    norm_key: str | None = None,
    use_proprio: bool | None = None,
    prompt: str | None = None,
    convention: ActionConvention = UNKNOWN,
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Write a packed model to the new directory `out`, whole or not at all; returns its config.json.

    source: a checkpoint's directory or Hugging Face id, or "random:3b" or "random:nano", a preset with `build`'s weights in bfloat16.
    encoding: "2bit", which is used as it lies on the disk, or "base3", 1.6 bits a weight, which is unpacked when it is loaded.
    convention: what is known of it where the checkpoint does not say. The other options are `load_checkpoint`'s.
    Memory: a few copies of the largest ternary matrix, whatever the model's size.
    Raises PackedModelError, CheckpointError, and Contradiction.
    """
    out = Path(out).expanduser().absolute()
    if encoding not in ENCODINGS:
        raise PackedModelError(f"encoding {encoding!r} is unknown: choose {' or '.join(ENCODINGS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackedModelError(f"{out} exists already: give the name of a new directory, or remove that one first")
    stated: dict[str, Any] = {
        "attention": attention,
        "chunk": chunk,
        "control_hz": None if control_hz is None else float(control_hz),
        "norm_key": norm_key,
        "use_proprio": use_proprio,
        "prompt": prompt,
    }
    if str(source).startswith(RANDOM):
        opened = _from_preset(str(source).removeprefix(RANDOM), convention)
        require_agreement(source, opened.config, opened.norm_key, **stated)
    else:
        opened = _from_checkpoint(source, {**stated, "convention": convention})

    size = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            shapes, layers = stored_shapes(opened.config, encoding)
            stored = {f"{name}.words": torch.uint8 for name in layers} | {f"{name}.scale": torch.float32 for name in layers}
            specs = {name: (stored.get(name) or opened.dtypes[name], shape) for name, shape in shapes.items()}
            size = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in specs.values())
            with SafetensorsWriter(folder / WEIGHTS, specs) as file:
                hashes = _write_tensors(file, opened, set(layers), encoding, progress)
            description = _describe(opened, encoding, file.header_hash, hashes)
            for name, content in {**opened.companions, CONFIG: serialise(description)}.items():
                _write(folder / name, content)
            folder.chmod(0o777 & ~_umask())
            _sync(folder)
            folder.rename(out)
            _sync(out.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise PackedModelError(
            f"{out} cannot be written: {error.strerror or error}. The packed model takes {size / 1e6:.1f} MB; nothing of it was left there"
        ) from error
    return description


def _write_tensors(file: SafetensorsWriter, source: _Source, layers: set[str], encoding: str, progress: Progress) -> dict[str, str]:
    """-> SHA-256 of each tensor as it is stored."""
    hashes = {}
    done, total = 0, sum(entry.end - entry.begin for entry in file.entries.values())
    for name, parts in source.tensors:
        layer = name.removesuffix(".weight")
        if layer in layers:
            words, scale, _, _ = pack_weight(torch.cat(list(parts)))
            words = words if encoding == "2bit" else pack_base3(words)
            tensors: dict[str, Iterable[Tensor]] = {f"{layer}.words": [words], f"{layer}.scale": [scale]}
        else:
            tensors = {name: parts}
        for stored, content in tensors.items():
            hashes[stored] = file.write(stored, content)
            done += file.entries[stored].end - file.entries[stored].begin
        progress(name, done, total)
    return hashes


def _describe(source: _Source, encoding: str, header_hash: str, hashes: dict[str, str]) -> dict[str, Any]:
    description = {
        "format": FORMAT,
        "format_version": VERSION,
        "encoding": encoding,
        "config": described(source.config),
        "norm_stats": source.norm_stats,
        "norm_key": source.norm_key,
        **({} if source.cameras is None else {"cameras": list(source.cameras)}),
        KEY: source.convention.to_json(),
        "provenance": source.provenance,
        "header": header_hash,
        "tensors": hashes,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in source.companions.items()},
    }
    return description | {"model_hash": hash_description(description)}


# --- what is packed -------------------------------------------------------------------------------------------------------


def _from_checkpoint(source: str | Path, stated: dict[str, Any]) -> _Source:
    path = resolve(source)
    checkpoint = read_checkpoint(path, **stated)
    config = checkpoint.config
    if not config.acts and (keys := read_statistics(path)):
        raise PackedModelError(
            f"{path} is a robot-pretrained base with statistics of {len(keys)} datasets: choose the one whose actions it is to give with "
            f"--norm-key, of {', '.join(keys)}"
        )
    if config.acts and config.control_hz is None:
        raise PackedModelError(
            f"{path} does not say at what rate its actions are meant to be played: give the rate of the dataset that it was "
            "fine-tuned on with --control-hz (LIBERO: 20)"
        )
    if config.acts and not (path / "preprocessor_config.json").is_file():
        raise CheckpointError(f"{path / 'preprocessor_config.json'} is missing, which says how images are prepared: fetch it again")
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    odd = {name: dtype for name, dtype in dtypes.items() if dtype not in DTYPES.values()}
    if odd:
        name, dtype = next(iter(odd.items()))
        raise CheckpointError(f"{name} in {path} is {dtype}: expected one of {', '.join(map(str, DTYPES.values()))}")

    provenance = {
        "source": path.name if Path(source).expanduser().is_dir() else str(source),
        **({} if (commit := commit_of(path)) is None else {"revision": commit}),
        "source_config_sha256": hashlib.sha256((path / local_layout(path).config).read_bytes()).hexdigest(),
        "package_version": _package_version(),
    }
    for name in COMPANIONS:
        if (path / name).is_file():
            require_content(path / name)
    companions = {name: (path / name).read_bytes() for name in COMPANIONS if (path / name).is_file()}
    tensors = ((name, [tensor]) for name, tensor in Reading(checkpoint))
    of_data = (checkpoint.norm_stats, checkpoint.norm_key, checkpoint.cameras, checkpoint.convention)
    return _Source(config, *of_data, provenance, companions, dtypes, tensors)


def _from_preset(name: str, convention: ActionConvention) -> _Source:
    try:
        config = with_byte_tokenizer(preset(name))
    except ValueError as error:
        raise PackedModelError(str(error)) from error
    with torch.device("meta"):
        model = BitVLA(config)
    dtype, seed, size = torch.bfloat16, 0, config.vision.image_size
    images = {
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255,
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_of(name).save_pretrained(folder)
        companions = {name: (Path(folder) / name).read_bytes() for name in COMPANIONS if (Path(folder) / name).is_file()}
    companions["preprocessor_config.json"] = json.dumps(images, indent=2).encode() + b"\n"
    provenance = {"source": RANDOM + name, "seed": seed, "package_version": _package_version()}
    dtypes = dict.fromkeys(model.state_dict(), dtype)
    tensors = ((name, parts) for name, _, parts in draw(model, seed=seed, dtype=dtype))
    return _Source(config, identity_statistics(config), RANDOM_KEY, None, convention, provenance, companions, dtypes, tensors)


def _package_version() -> str | None:
    try:
        return metadata.version("bitvla_ros")
    except metadata.PackageNotFoundError:
        return None  # run from its source tree


# --- files ----------------------------------------------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a directory as durable as the files behind them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
