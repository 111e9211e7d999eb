"""The eye: a SigLIP vision transformer, ternary in every linear layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..ternary import TernaryLinear
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
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.embed(pixel_values)
        for layer in self.layers:
            x = layer(x)
        return x


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config, activation_bits)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config, activation_bits)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.k_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.v_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.out_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        seen = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.fc1 = _linear(config, activation_bits, config.hidden_size, config.intermediate_size)
        self.fc2 = _linear(config, activation_bits, config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _linear(config: VisionConfig, activation_bits: int | None, in_features: int, out_features: int) -> nn.Module:
    if config.ternary:
        return TernaryLinear(in_features, out_features, bias=True, activation_bits=activation_bits)
    return nn.Linear(in_features, out_features)
