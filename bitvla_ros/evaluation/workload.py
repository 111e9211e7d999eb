"""What one chunk asks of the ternary kernels: the shapes of its matrix products, and how often each occurs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..model import BitVLAConfig

CAMERAS = 2
# Tokens of a prompt beside its images, proprioception included: the Llama 3 tokenizer's count for an instruction of LIBERO's length
# (system sentence 35, question about 20, turn and `Assistant: ` 5), on the generous side.
TEXT_TOKENS = 65


class Shape(NamedTuple):
    """A product [m, k] x [k, n] of activations and weights; `layers` layers of the model have this shape."""

    m: int
    k: int
    n: int
    bias: bool
    layers: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one such product."""
        return self.m * self.k * self.n


def sequence_length(config: BitVLAConfig, cameras: int = CAMERAS, text_tokens: int = TEXT_TOKENS) -> int:
    """Tokens that the language model computes: images, text, and what follows the prompt."""
    return cameras * config.vision.num_patches + text_tokens + config.appended_tokens


def shapes(config: BitVLAConfig, cameras: int = CAMERAS, text_tokens: int = TEXT_TOKENS) -> list[Shape]:
    """Every distinct product of a chunk, in the order in which they first occur."""
    import torch

    from ..model import BitVLA
    from ..ternary import TernaryLinear

    with torch.device("meta"):
        model = BitVLA(config)
    towers = ((model.vision, cameras * config.vision.num_patches), (model.language, sequence_length(config, cameras, text_tokens)))
    found = Counter(
        (m, layer.in_features, layer.out_features, layer.bias is not None)
        for tower, m in towers
        for layer in tower.modules()
        if isinstance(layer, TernaryLinear)
    )
    return [Shape(*shape, layers) for shape, layers in found.items()]
