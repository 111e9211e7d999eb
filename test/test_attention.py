"""Attention in plain products is the attention that torch has."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bitvla_ros.model.attention import attend


def tensors(heads: int = 4, key_heads: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, heads, 13, 16), (2, key_heads, 13, 16), (2, key_heads, 13, 16)]
    return tuple(torch.randn(*size, generator=generator).requires_grad_() for size in sizes)


PADDING = torch.arange(13) < torch.tensor([[13], [9]])
MASKS = {"none": None, "padding": PADDING[:, None, None], "causal": PADDING[:, None, None] & torch.ones(13, 13, dtype=torch.bool).tril()}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_autocast_training_on_a_cpu_has_the_values_and_gradients_of_float32(mask, key_heads):
    inputs, same = tensors(key_heads=key_heads), tensors(key_heads=key_heads)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(*same, mask)
    assert got.dtype == torch.bfloat16
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weight).sum().backward()
    (got.float() * weight).sum().backward()
    for theirs, ours in [(expected, got), *((a.grad, b.grad) for a, b in zip(inputs, same, strict=True))]:
        assert float((theirs - ours).detach().norm() / theirs.detach().norm()) < 0.01


def test_float32_and_inference_are_torchs_own():
    inputs = tensors()
    assert torch.equal(attend(*inputs), F.scaled_dot_product_attention(*inputs, enable_gqa=True))
    half = [x.detach().bfloat16() for x in inputs]
    with torch.no_grad():
        assert torch.equal(attend(*half), F.scaled_dot_product_attention(*half, enable_gqa=True))
