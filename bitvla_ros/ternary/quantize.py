"""The two quantizers of W1.58-A8: weights to {-1, 0, 1} with one scale a matrix, activations to int8 with one scale a token.

Both round half to even, work in float32 whatever comes in, and pass gradients straight through, clipped values included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-5  # of both scales, so that zeros quantize to zeros
INT8_MAX = 127
_EDGE = 0.499  # of a scale: a weight below it is surely 0, one beyond 1 - 0.499 surely none


class QuantizedActivation(NamedTuple):
    """An activation [..., K] as every backend's matmul reads it. x ~ codes * absmax / 127.

    A backend stores weights as codes + 1 = 0, 1, 2, sums a * (c + 1), and takes `sums` off once at the end.
    """

    codes: Tensor  # int8 [..., Kp], Kp = K rounded up to a multiple of 16, zeros behind K
    absmax: Tensor  # float32 [...], of each token
    sums: Tensor  # int32 [...], of each token's codes


def weight_scale(weight: Tensor) -> Tensor:
    """absmean of the whole matrix: float32 scalar."""
    return weight.float().abs().mean().clamp_(min=FLOOR)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight: any float [N, K] -> codes int8 [N, K] in {-1, 0, 1}, scale float32 scalar; weight ~ codes * scale."""
    scale = weight_scale(weight)
    codes = (weight.float() * (1.0 / scale)).round_().clamp_(-1, 1)
    return codes.to(torch.int8), scale


def master_weight(codes: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A weight to train further, where only its quantization is left: float32 [N, K] of these codes and, rounding aside, this scale.

    codes: int8 [N, K] in {-1, 0, 1}. scale: float32 scalar. What rounding forgot is drawn: zeros evenly within half a scale, the others
    evenly from there to where the mean is the scale. So some are about to flip, as in a weight that was trained.
    """
    drawn = 1.0 - torch.rand(codes.shape, generator=generator)  # never 0
    zeros = codes == 0
    count = codes.numel() - int(zeros.sum())
    if count == 0:
        return torch.zeros(codes.shape)
    inside = (drawn - 0.5) * (2 * _EDGE)
    beyond = drawn.masked_fill(zeros, 0.0)
    missing = codes.numel() - inside.abs().masked_fill(~zeros, 0.0).sum() - count * (1 - _EDGE)  # of the sum of magnitudes, in scales
    return torch.where(zeros, inside, codes * (1 - _EDGE + beyond * (missing / beyond.sum()))) * scale


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: any float [..., K] -> codes int8 [..., K] in [-127, 127], absmax float32 [..., 1]; x ~ codes * absmax / 127."""
    x = x.float()
    absmax = _token_absmax(x)
    return (x * (INT8_MAX / absmax)).round_().to(torch.int8), absmax


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """The quantized weight as a float matrix of the same dtype: every entry is -scale, 0 or scale."""
    return _WeightQuantizer.apply(weight)  # type: ignore[no-any-return]


def fake_quantize_activation(x: Tensor) -> Tensor:
    """The quantized activation in the dtype of `x`."""
    return _ActivationQuantizer.apply(x)  # type: ignore[no-any-return]


def _token_absmax(x: Tensor) -> Tensor:
    return x.abs().amax(dim=-1, keepdim=True).clamp_(min=FLOOR)


class _WeightQuantizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        inverse = 1.0 / weight_scale(weight)
        # divided by the inverse, not multiplied by the scale: the last bit of the released models' arithmetic
        return (weight.float() * inverse).round_().clamp_(-1, 1).div_(inverse).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class _ActivationQuantizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x32 = x.float()
        scale = INT8_MAX / _token_absmax(x32)
        return (x32 * scale).round_().div_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]
