"""The exact definition of a ternary linear layer, in integers. Slow; every kernel equals it bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantize import INT8_MAX, quantize_activation


def integer_matmul(x_codes: Tensor, weight_codes: Tensor) -> Tensor:
    """x_codes: int8 [..., K], weight_codes: int8 [N, K] -> int32 [..., N]. |sum| <= 127 K, so int32 never overflows."""
    return x_codes.to(torch.int32) @ weight_codes.to(torch.int32).T


def ternary_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = (scale * absmax / 127) * (x_codes @ codes^T) + bias, rounded once to the dtype of `x`.

    x: float [..., K]. codes: int8 [N, K] in {-1, 0, 1}. scale: float32 scalar. bias: [N] or None. -> [..., N].
    """
    x_codes, absmax = quantize_activation(x)
    y = integer_matmul(x_codes, codes).float() * (scale * absmax / INT8_MAX)
    return (y if bias is None else y + bias.float()).to(x.dtype)
