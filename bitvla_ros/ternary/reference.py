"""The exact definition of a ternary linear layer, in integers, and the backend of plain torch. Slow; every kernel equals it bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import require_activation, require_call, require_weight
from .pack import TILE, PackedWeight, unpack
from .quantize import INT8_MAX, QuantizedActivation, quantize_activation


def integer_matmul(x_codes: Tensor, weight_codes: Tensor) -> Tensor:
    """x_codes: int8 [..., K], weight_codes: int8 [N, K] in {-1, 0, 1} -> int32 [..., N], exact.

    Every partial sum is an integer of at most 128 K, which floats hold exactly in any order: float32 below 2^24, float64 beyond.
    """
    exact = torch.float32 if 128 * x_codes.shape[-1] <= 1 << 24 else torch.float64
    return (x_codes.to(exact) @ weight_codes.to(exact).T).to(torch.int32)


def rescale(
    sums: Tensor, absmax: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, residual: Tensor | None = None
) -> Tensor:
    """sums: int32 [..., N], absmax: float32 [...] -> `dtype` [..., N]. Float32 throughout, in this order, rounded once."""
    y = sums.float() * (scale * absmax / INT8_MAX)[..., None]
    if bias is not None:
        y = y + bias.float()
    if residual is not None:
        y = y + residual.float()
    return y.to(dtype)


def ternary_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = (scale * absmax / 127) * (x_codes @ codes^T) + bias, rounded once to the dtype of `x`.

    x: float [..., K]. codes: int8 [N, K] in {-1, 0, 1}. scale: float32 scalar. bias: [N] or None. -> [..., N].
    """
    x_codes, absmax = quantize_activation(x)
    return rescale(integer_matmul(x_codes, codes), absmax[..., 0], scale, bias, x.dtype)


class ReferenceBackend:
    """Unpacks a matrix whenever it is used; on every device that torch has."""

    name = "reference"

    def problem(self, device: torch.device) -> str | None:
        return None

    def prepare(self, weights: Sequence[PackedWeight], device: torch.device) -> tuple[PackedWeight, ...]:
        return tuple(weight._replace(words=weight.words.to(device), scale=weight.scale.to(device)) for weight in weights)

    def quantize(self, x: Tensor) -> QuantizedActivation:
        if x.numel() == 0:
            raise ValueError(f"an activation of shape {list(x.shape)}: expected at least one token")
        codes, absmax = quantize_activation(x)
        padded = F.pad(codes, (0, -codes.shape[-1] % TILE)).contiguous()
        return QuantizedActivation(padded, absmax[..., 0].contiguous(), codes.sum(-1, dtype=torch.int32))

    def rms_norm_quantize(self, x: Tensor, weight: Tensor, eps: float) -> QuantizedActivation:
        return self.quantize(_rms_norm(x.float(), weight.float(), eps))

    def layer_norm_quantize(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> QuantizedActivation:
        return self.quantize(F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps))

    def squared_relu_norm_quantize(self, gate: Tensor, up: Tensor, weight: Tensor, eps: float) -> QuantizedActivation:
        return self.quantize(_rms_norm(F.relu(gate.float()).square() * up.float(), weight.float(), eps))

    def gelu_quantize(self, x: Tensor) -> QuantizedActivation:
        return self.quantize(F.gelu(x.float(), approximate="tanh"))

    def matmul(self, x: QuantizedActivation, weight: PackedWeight) -> Tensor:
        require_activation(x)
        require_weight(x, weight)
        return integer_matmul(x.codes[..., : weight.columns], unpack(weight.words, weight.rows, weight.columns))

    def linear(
        self,
        x: QuantizedActivation,
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor | None],
        dtype: torch.dtype,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        require_call(x, weights, biases, dtype, residual)
        return tuple(
            rescale(self.matmul(x, weight), x.absmax, weight.scale, bias, dtype, residual)
            for weight, bias in zip(weights, biases, strict=True)
        )


BACKEND = ReferenceBackend()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))
