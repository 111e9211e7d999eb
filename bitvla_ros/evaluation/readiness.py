"""What a model needs and what this machine has for it, before anything is started: for `bitvla doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..action_convention import UNKNOWN, ActionConvention
from ..policy.normalization import Statistics

RANDOM = "random"  # norm_key of weights that were trained on nothing


class Needs(NamedTuple):
    """packed: it is stored so. bytes: of its weights, packed. control_hz, cameras: None where it does not say. usual_cameras: what it looks
    at where nobody says. state_low, state_high: float64 [8], the 1 % and 99 % quantiles of its training data's states; None without
    proprioception. convention: what its actions mean."""

    packed: bool
    bytes: int
    chunk: int
    control_hz: float | None
    image_size: int
    state_low: NDArray[np.float64] | None
    state_high: NDArray[np.float64] | None
    cameras: tuple[str, ...] | None
    usual_cameras: tuple[str, ...]
    convention: ActionConvention


class Kernels(NamedTuple):
    """isa: the instruction set that the C library uses, "" where it cannot: then problem says why."""

    isa: str
    problem: str


def needs(model: str, **options: Any) -> Needs:
    """Of a packed model (every byte is checked), a checkpoint, a Hugging Face id, or random:PRESET. options: attention, chunk, control_hz,
    norm_key, use_proprio, prompt, as `model.load` takes them. Raises what reading it raises, and Contradiction."""
    from ..model.checkpoint import read_checkpoint, resolve
    from ..model.packed import is_packed, read_packed, require_agreement

    if model.startswith("random:"):
        return _random(model, options)
    path = resolve(model)
    if is_packed(path):
        packed = read_packed(path)
        described = packed.description
        require_agreement(path / "config.json", packed.config, described["norm_key"], **options)
        statistics = None if described["norm_key"] == RANDOM else described["norm_stats"]
        return _needs(True, packed.weights.stat().st_size, packed.config, statistics, packed.cameras, packed.convention)
    checkpoint = read_checkpoint(path, **options)
    sizes = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
    found = (checkpoint.config, checkpoint.norm_stats, checkpoint.cameras, checkpoint.convention)
    return _needs(False, _packed_size(checkpoint.config, sizes), *found)


def kernels() -> Kernels:
    from ..ternary.library import InstructionSetError, LibraryMissing, isa

    try:
        return Kernels(isa(), "")
    except (InstructionSetError, LibraryMissing) as error:
        return Kernels("", str(error))


def available_memory() -> int | None:
    """Bytes that a program may still take without swapping (MemAvailable); None where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def shared_memory() -> tuple[int, int] | None:
    """Size and free bytes of /dev/shm; None where there is none."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return None
    return status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail


def gpu_memory(device: str) -> int:
    """Free bytes of a CUDA device. Raises ValueError where it cannot be used."""
    import torch

    try:
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _needs(
    packed: bool,
    size: int,
    config: Any,
    statistics: Any,
    cameras: tuple[str, ...] | None = None,
    convention: ActionConvention = UNKNOWN,
) -> Needs:
    if not config.acts:
        raise ValueError(
            "it has no action head: a base model. Fine-tune it (bitvla train), take a fine-tuned one, or give a robot-pretrained base a "
            "norm_key, one of its statistics"
        )
    bounds = None
    if config.proprio_dim and statistics is not None:
        bounds = Statistics.from_dict(statistics, action_dim=config.action_dim, proprio_dim=config.proprio_dim).proprio
    low, high = (None, None) if bounds is None else (bounds.q01, bounds.q99)
    of_images = (config.vision.image_size, low, high, cameras, config.usual_cameras)
    return Needs(packed, size, config.chunk, config.control_hz, *of_images, convention)


def _random(model: str, options: dict[str, Any]) -> Needs:
    import torch

    from ..model.bitvla import BitVLA
    from ..model.config import preset
    from ..model.packed import require_agreement

    config = preset(model.removeprefix("random:"))
    require_agreement(model, config, RANDOM, **options)
    with torch.device("meta"):
        sizes = {key: tensor.nbytes for key, tensor in BitVLA(config).state_dict().items()}
    return _needs(True, _packed_size(config, sizes), config, None)


def _packed_size(config: Any, sizes: dict[str, int]) -> int:
    """Of the ternary matrices two bits a weight, of the rest what is stored."""
    from ..model.packed import stored_shapes

    layers = stored_shapes(config, "2bit")[1]
    rest = sum(size for name, size in sizes.items() if name.removesuffix(".weight") not in layers)
    return rest + sum(rows * columns for rows, columns in layers.values()) // 4
