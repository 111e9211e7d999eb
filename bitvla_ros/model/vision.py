"""The eye: a SigLIP vision transformer, ternary in every linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..ternary import TernaryLinear
from ..ternary.fused import gelu_linear, linear, norm_linear
from .attention import attend
from .config import VisionConfig


class VisionTower(nn.Module):
    """pixel_values: [N, 3, image_size, image_size] -> [N, num_patches, hidden_size], patches row by row.

    The features are what the last layer puts out: no class token, no final norm, no pooling.
    """

    def __init__(self, config: VisionConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)
        self.layers = nn.ModuleList(VisionLayer(config, activation_bits) for _ in range(config.num_hidden_layers))

    def embed(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)
        return patches.flatten(2).transpose(1, 2).contiguous() + self.position_embedding.weight

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.embed(pixel_values)
        for layer in self.layers:
            x = layer(x)
        return x

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """The hidden states [N, num_patches, hidden_size] behind every layer, of the forward passes inside the `with`."""
        states: list[Tensor] = []
        handles = [layer.register_forward_hook(lambda module, inputs, output: states.append(output)) for layer in self.layers]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config, activation_bits)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config, activation_bits)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn(x, self.layer_norm1)
        return self.mlp(x, self.layer_norm2)


class VisionAttention(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, config: VisionConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.k_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.v_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.out_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        projected = norm_linear(norm, (self.q_proj, self.k_proj, self.v_proj), x)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projected)
        seen = attend(q, k, v).transpose(1, 2).flatten(2)
        return linear(self.out_proj, seen, residual=x)


class VisionMLP(nn.Module):
    """x + mlp(norm(x))."""

    def __init__(self, config: VisionConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.fc1 = _linear(config, activation_bits, config.hidden_size, config.intermediate_size)
        self.fc2 = _linear(config, activation_bits, config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        (inner,) = norm_linear(norm, (self.fc1,), x)
        return gelu_linear(self.fc2, inner, residual=x)


def _linear(config: VisionConfig, activation_bits: int | None, in_features: int, out_features: int) -> nn.Module:
    if config.ternary:
        return TernaryLinear(in_features, out_features, bias=True, activation_bits=activation_bits)
    return nn.Linear(in_features, out_features)
