"""Unpacking: a packed model becomes one with master weights again, to be trained further."""

from __future__ import annotations

from pathlib import Path

import torch

from ..ternary.pack import unpack
from ..ternary.quantize import master_weight
from .autoregressive import network
from .bitvla import BitVLA
from .packed import load_packed


def unpack_model(path: str | Path, *, seed: int = 0) -> BitVLA:
    """The packed model in the directory `path` in float32, with master weights that quantize to its own.

    Training left only their quantization behind: they are drawn (`ternary.quantize.master_weight`), and the seed decides which are near
    the edge. Raises PackedModelError.
    """
    packed = load_packed(path, backend="reference")
    weights = dict(packed.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for name, layer in packed.ternary_layers().items():
        words, scale = weights.pop(f"{name}.words"), weights.pop(f"{name}.scale")
        codes = unpack(words, layer.out_features, layer.in_features)
        weights[f"{name}.weight"] = master_weight(codes, scale, generator)
    with torch.device("meta"):
        model = network(packed.config)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    model.path, model.norm_stats, model.norm_key, model.model_hash = packed.path, packed.norm_stats, packed.norm_key, packed.model_hash
    model.cameras, model.convention = packed.cameras, packed.convention
    return model.eval()
