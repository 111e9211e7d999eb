"""Ternary arithmetic: exact integers, straight-through gradients, packed layers, the choice of a backend."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.ternary import Backend, BackendError, TernaryLinear, backends, choose
from bitvla_ros.ternary.pack import pack_2bit, pack_weight, unpack_2bit
from bitvla_ros.ternary.quantize import fake_quantize_activation, fake_quantize_weight, quantize_activation, quantize_weight
from bitvla_ros.ternary.reference import BACKEND, integer_matmul, ternary_linear


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


def backend_or_skip(name: str) -> Backend:
    try:
        return choose(name)
    except BackendError as error:
        pytest.skip(str(error))


def packed(master: TernaryLinear, backend: Backend) -> TernaryLinear:
    (weight,) = backend.prepare([pack_weight(master.weight.detach())], torch.device("cpu"))
    master.set_packed(weight, backend)
    return master


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), k=st.integers(1, 90), seed=st.integers(0, 2**31), bf16=st.booleans())
def test_a_packed_layer_equals_the_definition_bit_for_bit(backend, n, k, seed, bf16):
    chosen, dtype = backend_or_skip(backend), torch.bfloat16 if bf16 else torch.float32
    master = layer(n, k, seed=seed).to(dtype)
    x = (torch.randn(3, 2, k, generator=torch.Generator().manual_seed(seed + 1)) * 5).to(dtype)
    expected = ternary_linear(x, *quantize_weight(master.weight.detach()), master.bias)
    assert torch.equal(packed(master, chosen)(x), expected)


def test_packing_gives_up_the_master_weight_for_two_bits():
    linear = packed(layer(32, 64, bias=False), BACKEND)
    assert linear.weight is None
    assert {name: tensor.nbytes for name, tensor in linear.state_dict().items()} == {"words": 32 * 64 // 4, "scale": 4}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer(32, 64, bias=False).load_state_dict(linear.state_dict())


def test_a_cast_leaves_words_and_scale_as_they_are():
    linear = packed(layer(32, 64), BACKEND)
    words, scale = linear.packed.words.clone(), linear.packed.scale.clone()
    linear.double().bfloat16()
    assert linear.bias.dtype == torch.bfloat16
    assert torch.equal(linear.packed.words, words)
    assert linear.packed.scale.dtype == torch.float32 and torch.equal(linear.packed.scale, scale)


def test_a_packed_layer_refuses_what_does_not_fit_it():
    linear = packed(layer(8, 20), BACKEND)
    with pytest.raises(ValueError, match="21 features for a layer of 20"):
        linear(torch.randn(2, 21))
    with pytest.raises(ValueError, match="at least one token"):
        linear(torch.randn(0, 20))
    with pytest.raises(ValueError, match=r"\[8, 20\] for a layer of \[9, 20\]"):
        layer(9, 20).set_packed(linear.packed, BACKEND)
    with pytest.raises(ValueError, match="keeps its master weight"):
        layer(8, 20, activation_bits=None).set_packed(linear.packed, BACKEND)
    with pytest.raises(RuntimeError, match="holds its master weight"):
        _ = layer(8, 20).packed


def good_call() -> dict:
    weight = pack_weight(torch.randn(8, 20))
    return {"x": BACKEND.quantize(torch.randn(3, 20)), "weights": [weight], "biases": [None], "dtype": torch.float32, "residual": None}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda c: {"x": c["x"]._replace(codes=c["x"].codes.int())}, "activation codes are torch.int32"),
        (lambda c: {"x": c["x"]._replace(codes=c["x"].codes[:0])}, "at least one token"),
        (lambda c: {"x": c["x"]._replace(codes=c["x"].codes.T.contiguous().T)}, "not contiguous"),
        (lambda c: {"x": c["x"]._replace(absmax=c["x"].absmax[:2])}, "absmax are"),
        (lambda c: {"x": c["x"]._replace(sums=c["x"].sums.float())}, "sums are torch.float32"),
        (lambda c: {"x": BACKEND.quantize(torch.randn(3, 33))}, r"48 activation codes a token, padded, for a weight \[8, 20\]"),
        (lambda c: {"weights": []}, "0 weights and 1 biases"),
        (lambda c: {"weights": [c["weights"][0]._replace(words=c["weights"][0].words.int())]}, "expected uint8"),
        (lambda c: {"weights": [c["weights"][0]._replace(scale=torch.ones(2))]}, "one float32"),
        (lambda c: {"biases": [torch.zeros(7)]}, r"floats \[8\]"),
        (lambda c: {"residual": torch.zeros(3, 7)}, r"the residual is .*expected torch.float32 \[3, 8\]"),
        (lambda c: {"residual": torch.zeros(3, 8).bfloat16()}, "the residual is torch.bfloat16"),
        (lambda c: {"residual": torch.zeros(3, 8), "weights": c["weights"] * 2, "biases": [None] * 2}, "a residual with 2 weights"),
        (lambda c: {"dtype": torch.int32}, "expected a float dtype"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_calls_that_would_give_wrong_numbers_are_refused(backend, wrong, message):
    chosen, call = backend_or_skip(backend), good_call()
    chosen.linear(**call)
    with pytest.raises(ValueError, match=message):
        chosen.linear(**call | wrong(call))


def test_a_backend_that_cannot_work_says_what_it_needs(monkeypatch):
    with pytest.raises(BackendError, match="no backend 'gpu': choose one of auto, reference, cpu, triton"):
        choose("gpu")
    with pytest.raises(BackendError, match="the backend cpu cannot be used: it runs on the CPU, not on cuda"):
        choose("cpu", "cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    for module in ("triton_backend", "triton_kernels"):
        monkeypatch.delitem(sys.modules, f"bitvla_ros.ternary.{module}", raising=False)
        monkeypatch.delattr(f"bitvla_ros.ternary.{module}", raising=False)
    with pytest.raises(BackendError, match=r"the backend triton cannot be used: Triton cannot be imported.*pip install triton"):
        choose("triton", "cuda")


def test_without_its_first_choice_auto_takes_the_next_and_says_so_once(monkeypatch, caplog):
    class Broken:
        def problem(self, device):
            return "the C library is not built"

    monkeypatch.setitem(sys.modules, "bitvla_ros.ternary.cpu", SimpleNamespace(BACKEND=Broken()))
    backends._warn_once.cache_clear()
    assert choose() is choose() is BACKEND
    assert [record.message for record in caplog.records] == [
        "the backend cpu cannot be used: the C library is not built",
        "packed layers run on the reference backend, which is slow",
    ]


def test_without_activation_bits_only_the_weight_is_quantized():
    linear, x = layer(8, 16, activation_bits=None), torch.randn(2, 16)
    torch.testing.assert_close(linear(x), x @ fake_quantize_weight(linear.weight).T + linear.bias)
