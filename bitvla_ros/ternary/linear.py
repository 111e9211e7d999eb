"""The layer that BitVLA is made of: y = quantize(x) @ quantize(W)^T + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .quantize import fake_quantize_activation, fake_quantize_weight


class TernaryLinear(nn.Module):
    """A linear layer with weights in {-s, 0, s} and int8 activations (W1.58-A8).

    s is one number a matrix, the mean of its absolute values; each token has an int8 scale of its own. The bias is not quantized.

    The layer holds the full-precision *master* weight, in which training takes its small steps and which is what checkpoints
    store, and quantizes it anew in every forward pass; gradients go straight through both quantizers. Nothing is cached, so
    nothing goes stale. For inference `freeze` does that work once and gives the master weight up.

    The arithmetic is floating point over quantized values, as the released models were trained and evaluated.
    `reference.ternary_linear` is the same function in exact integers, on `quantize_weight(layer.weight)`.

    x: float [..., in_features] -> the same dtype, [..., out_features].
    activation_bits: 8, or None to leave activations as they are.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, activation_bits: int | None = 8) -> None:
        super().__init__()
        self.activation_bits = activation_bits
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.frozen_weight: Tensor | None
        self.register_buffer("frozen_weight", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_bits is not None:
            x = fake_quantize_activation(x)
        return F.linear(x, self.quantized_weight(), self.bias)

    def quantized_weight(self) -> Tensor:
        """[out_features, in_features], every entry -s, 0 or s, in the layer's dtype."""
        if self.weight is None:
            assert self.frozen_weight is not None
            return self.frozen_weight
        return fake_quantize_weight(self.weight)

    @torch.no_grad()
    def freeze(self) -> None:
        """Put the quantized weight in the place of the master weight: same results, same memory, no further training.

        It lives under another name, `frozen_weight`: its absmean is not s, so quantizing it again would be wrong.
        """
        self.frozen_weight = self.quantized_weight()
        self.weight = None
