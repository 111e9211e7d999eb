"""Ternary arithmetic: exact integers, straight-through gradients, packing, freezing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.ternary import TernaryLinear
from bitvla_ros.ternary.pack import pack_2bit, unpack_2bit
from bitvla_ros.ternary.quantize import fake_quantize_activation, fake_quantize_weight, quantize_activation, quantize_weight
from bitvla_ros.ternary.reference import integer_matmul, ternary_linear


def layer(out_features: int, in_features: int, bias: bool = True, seed: int = 0, activation_bits: int | None = 8) -> TernaryLinear:
    made = TernaryLinear(in_features, out_features, bias=bias, activation_bits=activation_bits)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_packing_equals_the_reference_packer(shared, dtype):
    from safetensors.torch import load_file

    unit = load_file(shared / "golden" / "bitvla_tiny" / "unit" / f"ops_{dtype}.safetensors")
    for i in range(7):
        codes = unit[f"weight.{i}.codes"]
        assert torch.equal(pack_2bit(codes), unit[f"weight.{i}.ref_packed_int2"])
        assert torch.equal(unpack_2bit(pack_2bit(codes), codes.shape), codes)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 9), columns=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_packing_is_lossless_for_any_shape(rows, columns, seed):
    codes = torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    assert torch.equal(unpack_2bit(pack_2bit(codes), codes.shape), codes)


def test_only_ternary_codes_are_packed():
    with pytest.raises(ValueError, match="-1, 0, 1"):
        pack_2bit(torch.tensor([2], dtype=torch.int8))
    with pytest.raises(ValueError, match="expected 2"):
        unpack_2bit(torch.zeros(3, dtype=torch.uint8), (5,))


def test_integer_sums_of_the_longest_rows_are_exact():
    x, codes = torch.full((1, 6912), 127, dtype=torch.int8), torch.ones(1, 6912, dtype=torch.int8)
    assert integer_matmul(x, codes).item() == 127 * 6912
    assert integer_matmul(-x, codes).item() == -127 * 6912


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), k=st.integers(1, 90), seed=st.integers(0, 2**31))
def test_integer_form_equals_the_floating_point_form(n, k, seed):
    linear = layer(n, k, seed=seed)
    x = torch.randn(3, 2, k, generator=torch.Generator().manual_seed(seed + 1)) * 5
    expected = ternary_linear(x, *quantize_weight(linear.weight), linear.bias)
    torch.testing.assert_close(linear(x), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(k=st.integers(1, 90), scale=st.floats(1e-8, 1e8), seed=st.integers(0, 2**31))
def test_activation_codes_use_the_whole_range_and_stay_in_it(k, scale, seed):
    x = torch.randn(4, k, generator=torch.Generator().manual_seed(seed)) * scale
    codes, absmax = quantize_activation(x)
    assert codes.abs().max() <= 127
    assert bool((codes.abs().amax(1)[absmax[:, 0] > 1e-5] == 127).all())
    assert bool(((codes * absmax / 127 - x).abs() <= absmax / 127 * 0.501).all())


def test_zeros_stay_zeros():
    linear = layer(5, 7, bias=False)
    assert torch.equal(linear(torch.zeros(2, 7)), torch.zeros(2, 5))
    assert not quantize_weight(torch.zeros(3, 3))[0].any()


def test_gradients_pass_straight_through_both_quantizers():
    weight, x = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    (fake_quantize_activation(x) @ fake_quantize_weight(weight).T).sum().backward()
    assert weight.grad is not None and x.grad is not None
    torch.testing.assert_close(x.grad, fake_quantize_weight(weight.detach()).sum(0).expand(3, 6))
    torch.testing.assert_close(weight.grad, fake_quantize_activation(x.detach()).sum(0).expand(4, 6))


def test_a_changed_weight_is_never_answered_with_an_old_one():
    linear, x = layer(8, 16, bias=False).eval(), torch.randn(2, 16)
    with torch.inference_mode():
        before = linear(x)
    linear.weight.data.neg_()
    with torch.inference_mode():
        assert torch.equal(linear(x), -before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_freezing_changes_no_number_and_keeps_one_copy(dtype):
    linear, x = layer(8, 16).to(dtype), torch.randn(2, 16).to(dtype)
    before, stored = linear(x), linear.weight.numel()
    linear.freeze()
    linear.freeze()
    assert torch.equal(linear(x), before)
    assert linear.weight is None and sum(t.numel() for t in linear.state_dict().values()) == stored + 8
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer(8, 16).load_state_dict(linear.state_dict())


def test_without_activation_bits_only_the_weight_is_quantized():
    linear, x = layer(8, 16, activation_bits=None), torch.randn(2, 16)
    torch.testing.assert_close(linear(x), x @ fake_quantize_weight(linear.weight).T + linear.bias)
