"""Models with random weights, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .bitvla import BitVLA
from .checkpoint import hash_model, require_dtype
from .config import BitVLAConfig, preset
from .tokenizer import BYTE_TOKENS, END_OF_TEXT, IMAGE_PAD, PROPRIO_PAD

RANDOM_KEY = "random"  # norm_key of statistics that change nothing
# Elements that are drawn at a time. torch fills blocks of 16: in multiples of it, parts are what the whole would have been.
PART = 1 << 22


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, activation_bits: int | None = 8) -> BitVLA:
    """A model with random weights, for tests and benchmarks: "3b" (the published sizes, 6 GB) or "nano" (5 million parameters).

    Weights are normal with variance 1 / fan-in, norms 1 and biases 0; the same seed gives the same weights in every dtype.
    """
    require_dtype(dtype)
    with torch.device("meta"):
        model = BitVLA(preset(name, activation_bits=activation_bits))
    weights = {}
    for key, shape, parts in draw(model, seed=seed, dtype=dtype):
        weights[key] = weight = torch.empty(shape, dtype=dtype)
        row = 0
        for part in parts:
            weight[row : row + len(part)] = part
            row += len(part)
    model.load_state_dict(weights, assign=True)
    model.model_hash = hash_model(model.config, weights)
    return model.eval()


def draw(model: BitVLA, *, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, torch.Size, Iterator[Tensor]]]:
    """The tensors that `build` gives a model with master weights, one after the other, each in parts along its first dimension.

    The parts must be taken before the next tensor is asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, empty in model.state_dict().items():
        yield name, empty.shape, _parts(name, empty.shape, generator, dtype)


def _parts(name: str, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype) -> Iterator[Tensor]:
    if len(shape) == 1:
        yield (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=dtype)
        return
    fan_in = shape[1:].numel()
    step = max(1, PART // (16 * fan_in)) * 16
    for start in range(0, shape[0], step):
        part = torch.randn((min(step, shape[0] - start), *shape[1:]), generator=generator)
        yield part.mul_(fan_in**-0.5).to(dtype)


def with_byte_tokenizer(config: BitVLAConfig) -> BitVLAConfig:
    """The same sizes with the ids of `tokenizer_of`, which needs no download. Random embeddings do not care."""
    image, proprio, stop = (BYTE_TOKENS.index(token) for token in (IMAGE_PAD, PROPRIO_PAD, END_OF_TEXT))
    return replace(config, image_token_id=image, proprio_token_id=proprio, stop_token_id=stop)


def identity_statistics(config: BitVLAConfig) -> dict[str, Any]:
    """Normalisation that changes nothing: q01 = -1, q99 = 1, the gripper, an action's last number, as it is."""

    def bounds(size: int) -> dict[str, Any]:
        return {"q01": [-1.0] * size, "q99": [1.0] * size}

    action = bounds(config.action_dim) | {"mask": [True] * (config.action_dim - 1) + [False]}
    return {"action": action, "proprio": bounds(config.proprio_dim) if config.proprio_dim else None}
