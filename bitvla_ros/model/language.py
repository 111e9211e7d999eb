"""The mind: a BitNet b1.58 decoder, ternary in every linear layer, without its output vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ternary import TernaryLinear
from ..ternary.fused import norm_linear, squared_relu_norm_linear
from .attention import attend
from .config import LanguageConfig


class KeyValueCache:
    """Keys and values that one layer computed for the tokens so far, for tokens that follow: [B, key-value heads, S, head_dim]."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Tokens so far."""
        return 0 if self._kept is None else self._kept[0].shape[2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of new tokens; returns those of all tokens."""
        if self._kept is not None:
            k, v = torch.cat([self._kept[0], k], 2), torch.cat([self._kept[1], v], 2)
        self._kept = k, v
        return self._kept


class LanguageModel(nn.Module):
    """embeddings: [B, S, hidden_size] -> hidden states [B, R, hidden_size] of the positions in `read`, after the final norm.

    mask: bool, broadcastable to [B, 1, S, S], True where a query (row) sees a key (column); None where every token sees every
    token. read: int64 [B, R]; the last layer's MLP, whose output no other position sees, is computed for these alone.
    caches: one a layer, of the tokens before these, which are added; `mask` has a column for each of all tokens, earlier ones first.
    `embed_tokens` may be stored in a narrower dtype than the rest: only the few rows that are read are converted.
    """

    def __init__(self, config: LanguageConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, activation_bits) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, embeddings: Tensor, mask: Tensor | None, read: Tensor, caches: Sequence[KeyValueCache | None] | None = None
    ) -> Tensor:
        x = embeddings
        before = caches[0].length if caches and caches[0] else 0
        rotary = rotary_table(before + x.shape[1], self.config.head_dim, self.config.rope_theta, x.dtype, x.device)
        rotary = rotary[0][before:], rotary[1][before:]
        for i, (layer, cache) in enumerate(zip(self.layers, caches or [None] * len(self.layers), strict=True), 1):
            x = layer(x, rotary, mask, read if i == len(self.layers) else None, cache)
        return self.norm(x)


class DecoderLayer(nn.Module):
    def __init__(self, config: LanguageConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, activation_bits)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, activation_bits)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        read: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        x = self.self_attn(x, self.input_layernorm, rotary, mask, cache)
        if read is not None:
            x = x.gather(1, read[..., None].expand(-1, -1, x.shape[-1]))
        return self.mlp(x, self.post_attention_layernorm)


class Attention(nn.Module):
    """x + attention(norm(x)), with grouped queries. BitNet normalises once more before the output projection (attn_sub_norm)."""

    def __init__(self, config: LanguageConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.k_proj = _linear(config, activation_bits, config.hidden_size, key_value_size)
        self.v_proj = _linear(config, activation_bits, config.hidden_size, key_value_size)
        self.o_proj = _linear(config, activation_bits, config.hidden_size, config.hidden_size)
        self.attn_sub_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, norm: RMSNorm, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        projected = norm_linear(norm, (self.q_proj, self.k_proj, self.v_proj), x)
        q, k, v = (p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in projected)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.extend(k, v)
        seen = attend(q, k, v, mask).transpose(1, 2).flatten(2)
        return norm_linear(self.attn_sub_norm, (self.o_proj,), seen, residual=x)[0]


class MLP(nn.Module):
    """x + mlp(norm(x)), gated by a squared ReLU, and normalised before the way down (ffn_sub_norm)."""

    def __init__(self, config: LanguageConfig, activation_bits: int | None) -> None:
        super().__init__()
        self.gate_proj = _linear(config, activation_bits, config.hidden_size, config.intermediate_size)
        self.up_proj = _linear(config, activation_bits, config.hidden_size, config.intermediate_size)
        self.down_proj = _linear(config, activation_bits, config.intermediate_size, config.hidden_size)
        self.ffn_sub_norm = RMSNorm(config.intermediate_size, config.rms_norm_eps)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        gate, up = norm_linear(norm, (self.gate_proj, self.up_proj), x)
        return squared_relu_norm_linear(self.ffn_sub_norm, self.down_proj, gate, up, residual=x)


class RMSNorm(nn.Module):
    """Normalised in float32, rounded to the input's dtype, and only then scaled."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return self.weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotary_table(length: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [length, head_dim] of positions 0 ... length - 1, computed in float32 and rounded to `dtype`."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of x [B, heads, S, head_dim], in the dtype of x. Channel i turns with channel i + head_dim / 2."""
    cos, sin = rotary
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half] -= x[..., half:] * sin[:, :half]
    turned[..., half:] += x[..., :half] * sin[:, half:]
    return turned


def _linear(config: LanguageConfig, activation_bits: int | None, in_features: int, out_features: int) -> nn.Module:
    if config.ternary:
        return TernaryLinear(in_features, out_features, activation_bits=activation_bits)
    return nn.Linear(in_features, out_features, bias=False)
