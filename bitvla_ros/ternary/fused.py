"""Where something comes before a ternary layer that can be computed together with its quantizer.

Layers with master weights, and ordinary linear layers, are composed as they stand, but that layers share their input's quantization.
Packed ones are served by their backend: one pass over memory for norm and quantizer, one quantization for all layers that share an
input, and the residual added in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from .backends import Backend
from .linear import TernaryLinear
from .quantize import QuantizedActivation, fake_quantize_activation


class Norm(Protocol):
    """nn.LayerNorm, or a root-mean-square norm."""

    weight: nn.Parameter
    eps: float

    def __call__(self, x: Tensor) -> Any: ...


def norm_linear(norm: Norm, layers: Sequence[nn.Module], x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
    """layer(norm(x)) for each of `layers`; + residual, of which there may be one where there is one layer."""
    backend = _backend(layers, x)
    if backend is None:
        return tuple(_plus(y, residual) for y in _each(layers, norm(x)))
    if isinstance(norm, nn.LayerNorm):
        quantized = backend.layer_norm_quantize(x, norm.weight, norm.bias, norm.eps)
    else:
        quantized = backend.rms_norm_quantize(x, norm.weight, norm.eps)
    return _linear(backend, layers, quantized, x, residual)


def squared_relu_norm_linear(norm: Norm, layer: nn.Module, gate: Tensor, up: Tensor, residual: Tensor) -> Tensor:
    """layer(norm(relu(gate)^2 * up)) + residual, with a root-mean-square norm."""
    backend = _backend([layer], up)
    if backend is None:
        return _plus(layer(norm(squared_relu(gate) * up)), residual)
    return _linear(backend, [layer], backend.squared_relu_norm_quantize(gate, up, norm.weight, norm.eps), up, residual)[0]


def gelu_linear(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """layer(gelu(x)) + residual, with the tanh approximation of gelu."""
    backend = _backend([layer], x)
    if backend is None:
        return _plus(layer(F.gelu(x, approximate="tanh")), residual)
    return _linear(backend, [layer], backend.gelu_quantize(x), x, residual)[0]


def linear(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """layer(x) + residual."""
    backend = _backend([layer], x)
    if backend is None:
        return _plus(layer(x), residual)
    return _linear(backend, [layer], backend.quantize(x), x, residual)[0]


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _backend(layers: Sequence[nn.Module], x: Tensor) -> Backend | None:
    """The backend of packed layers that read x; None where the layers are something else."""
    first = layers[0]
    if not isinstance(first, TernaryLinear) or first.backend is None:
        return None
    if x.shape[-1] != first.in_features:
        raise ValueError(f"{x.shape[-1]} features for a layer of {first.in_features}")
    return first.backend


def _linear(
    backend: Backend, layers: Sequence[Any], quantized: QuantizedActivation, like: Tensor, residual: Tensor | None
) -> tuple[Tensor, ...]:
    return backend.linear(quantized, [layer.packed for layer in layers], [layer.bias for layer in layers], like.dtype, residual)


def _each(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """layer(x) for each of `layers`, which share its quantization."""
    if len(layers) > 1 and all(isinstance(layer, TernaryLinear) and layer.activation_bits is not None for layer in layers):
        x = fake_quantize_activation(x)
        return [layer.multiply(x) for layer in layers if isinstance(layer, TernaryLinear)]
    return [layer(x) for layer in layers]


def _plus(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else residual + x
