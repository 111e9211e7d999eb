"""Packed models for tests: made, and forged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitvla_ros.model.packed import CONFIG, WEIGHTS, hash_description, serialise
from bitvla_ros.model.safetensors_file import SafetensorsWriter, map_file, read_header


def forge(folder: Path, change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None, **described: Any) -> None:
    """Change tensors, or entries of config.json, and make every hash fit again."""
    weights = folder / WEIGHTS
    tensors = {name: tensor.clone() for name, tensor in map_file(weights, read_header(weights)[1]).items()}
    change(tensors)
    weights.unlink()
    with SafetensorsWriter(weights, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}) as file:
        hashes = {name: file.write(name, [tensor]) for name, tensor in tensors.items()}
    description = json.loads((folder / CONFIG).read_bytes()) | {"tensors": hashes, "header": file.header_hash} | described
    write_description(folder, description)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    (folder / CONFIG).write_bytes(serialise(description | {"model_hash": hash_description(description)}))
