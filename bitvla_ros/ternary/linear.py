"""The layer that BitVLA is made of: y = quantize(x) @ quantize(W)^T + b."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backends import Backend
from .pack import PackedWeight
from .quantize import fake_quantize_activation, fake_quantize_weight


class TernaryLinear(nn.Module):
    """A linear layer with weights in {-s, 0, s} and int8 activations (W1.58-A8).

    s is one number a matrix, the mean of its absolute values; each token has an int8 scale of its own. The bias is not quantized.

    For training the layer holds the full-precision *master* weight, in which training takes its small steps and which is what
    checkpoints store, and quantizes it anew in every forward pass; gradients go straight through both quantizers. Nothing is
    cached, so nothing goes stale. The arithmetic is floating point over quantized values, as the released models were trained.

    For inference `set_packed` gives it two bits a weight in the place of the master weight, and a backend that multiplies them
    with int8 activations in exact integers. It is the same function but for the last bits of its floats.

    x: float [..., in_features] -> the same dtype, [..., out_features].
    activation_bits: 8, or None to leave activations as they are, which only the master weight can.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, activation_bits: int | None = 8) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation_bits = activation_bits
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.backend: Backend | None = None
        self.words: Tensor | None
        self.scale: Tensor | None
        self.register_buffer("words", None)
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.backend is not None:
            if x.shape[-1] != self.in_features:
                raise ValueError(f"{x.shape[-1]} features for a layer of {self.in_features}")
            return self.backend.linear(self.backend.quantize(x), [self.packed], [self.bias], x.dtype)[0]
        return self.multiply(x if self.activation_bits is None else fake_quantize_activation(x))

    def multiply(self, x: Tensor) -> Tensor:
        """`forward` with the master weight, for an x that is quantized already."""
        assert self.weight is not None
        return F.linear(x, fake_quantize_weight(self.weight), self.bias)

    def set_packed(self, weight: PackedWeight, backend: Backend) -> None:
        """Give up the master weight for `weight`, as `backend` prepared it. There is no way back, hence no further training."""
        if (weight.rows, weight.columns) != (self.out_features, self.in_features):
            raise ValueError(f"a weight [{weight.rows}, {weight.columns}] for a layer of [{self.out_features}, {self.in_features}]")
        if self.activation_bits is None:
            raise ValueError("packed weights need int8 activations: a layer without activation quantization keeps its master weight")
        self.weight, self.words, self.scale, self.backend = None, weight.words, weight.scale, backend

    @property
    def packed(self) -> PackedWeight:
        """The weight after `set_packed`."""
        if self.words is None or self.scale is None:
            raise RuntimeError("this layer holds its master weight: pack the model first")
        return PackedWeight(self.words, self.scale, self.out_features, self.in_features)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TernaryLinear:
        """As in every module, but that a cast of the network leaves the scale in float32, which kernels and their exactness need."""
        scale = self.scale
        super()._apply(fn, recurse)
        if scale is not None and self.scale is not None:
            self.scale = scale.to(self.scale.device)
        return self
