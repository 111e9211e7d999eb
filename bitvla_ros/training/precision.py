"""One set of master weights in several architectures: full precision here, ternary there."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..model import BitVLA
from ..model.checkpoint import hash_model


def in_precision(model: BitVLA, *, vision: bool, language: bool) -> BitVLA:
    """A copy of the model with the same weights, whose vision tower and language model are ternary (True) or in full precision.

    Weights trained in full precision and made ternary here, without a further step, are rounded after training. The copy has gradients
    as every new model has; it shares no memory with the first. Raises ValueError for a packed model, which has no master weights left.
    """
    if model.backend is not None:
        raise ValueError("a packed model has no master weights left: load the checkpoint that it was packed from")
    config = replace(
        model.config, vision=replace(model.config.vision, ternary=vision), language=replace(model.config.language, ternary=language)
    )
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        other = BitVLA(config)
    other.load_state_dict(weights, assign=True)
    other.model_hash = hash_model(config, {name: tensor.cpu() for name, tensor in weights.items()})
    other.path, other.norm_stats, other.norm_key = model.path, model.norm_stats, model.norm_key
    other.cameras, other.convention = model.cameras, model.convention
    return other.eval()
