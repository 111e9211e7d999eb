"""What is fused equals what is composed: in training bit for bit, on a backend up to roundings of int8."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bitvla_ros.model.language import RMSNorm
from bitvla_ros.ternary import Backend, BackendError, TernaryLinear, choose
from bitvla_ros.ternary.fused import gelu_linear, linear, norm_linear, squared_relu, squared_relu_norm_linear
from bitvla_ros.ternary.pack import pack_weight

BACKENDS = ("reference", "cpu")


def backend_or_skip(name: str) -> Backend:
    try:
        return choose(name)
    except BackendError as error:
        pytest.skip(str(error))


class Case:
    """Layers of one input, norms, activations and a residual, all random; sizes are no multiples of anything."""

    def __init__(self, columns: int, rows: tuple[int, ...], bias: bool, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.layers = [TernaryLinear(columns, n, bias=bias) for n in rows]
        self.rms, self.layer_norm = RMSNorm(columns, 1e-5), nn.LayerNorm(columns, eps=1e-6)
        for module in (*self.layers, self.rms, self.layer_norm):
            module.to(dtype).requires_grad_(False)
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=self.generator))
        self.x, self.other = ((torch.randn(2, 5, columns, generator=self.generator) * 3).to(dtype) for _ in range(2))
        self.residual = torch.randn(2, 5, rows[0], generator=self.generator).to(dtype)

    def pack(self, backend: Backend) -> Case:
        weights = backend.prepare([pack_weight(layer.weight) for layer in self.layers], torch.device("cpu"))
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.set_packed(weight, backend)
        return self

    def fused(self) -> list[Tensor]:
        layer = self.layers[0]
        return [
            *norm_linear(self.rms, self.layers, self.x),
            *norm_linear(self.layer_norm, self.layers, self.x),
            *norm_linear(self.rms, [layer], self.x, self.residual),
            squared_relu_norm_linear(self.rms, layer, self.x, self.other, self.residual),
            gelu_linear(layer, self.x, self.residual),
            linear(layer, self.x, self.residual),
        ]

    def composed(self) -> list[Tensor]:
        layer = self.layers[0]
        return [
            *(each(self.rms(self.x)) for each in self.layers),
            *(each(self.layer_norm(self.x)) for each in self.layers),
            self.residual + layer(self.rms(self.x)),
            self.residual + layer(self.rms(squared_relu(self.x) * self.other)),
            self.residual + layer(F.gelu(self.x, approximate="tanh")),
            self.residual + layer(self.x),
        ]


ROWS = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)
cases = given(columns=st.integers(2, 70), rows=ROWS, bias=st.booleans(), seed=st.integers(0, 9999))


@settings(deadline=None, max_examples=30)
@cases
def test_master_weights_are_composed_as_they_stand(columns, rows, bias, seed):
    case = Case(columns, rows, bias, seed)
    assert all(torch.equal(fused, composed) for fused, composed in zip(case.fused(), case.composed(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=30)
@cases
def test_packed_layers_give_the_same_up_to_one_rounding_of_int8(backend, columns, rows, bias, seed):
    case = Case(columns, rows, bias, seed)
    composed = case.composed()
    scales = [float(pack_weight(layer.weight).scale) for layer in case.layers]
    for fused, expected in zip(case.pack(backend_or_skip(backend)).fused(), composed, strict=True):
        # a code on the edge may fall to either side: one step of the scale of its token, in a few sums
        step = max(scales) * 200 / 127
        assert (fused - expected).abs().max() <= step
        assert (fused - expected).abs().mean() <= 1e-4 + step / 20


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=30)
@cases
def test_fused_quantizers_equal_the_plain_one_behind_a_float32_norm(backend, columns, rows, bias, seed):
    """Of 100 random codes hardly one is near an edge: sums in another order move at most a few, and by one."""
    chosen, case = backend_or_skip(backend), Case(columns, rows, bias, seed)
    weight, x, other = case.rms.weight, case.x, case.other
    pairs = [
        (chosen.rms_norm_quantize(x, weight, 1e-5), case.rms(x)),
        (chosen.layer_norm_quantize(x, case.layer_norm.weight, case.layer_norm.bias, 1e-6), case.layer_norm(x)),
        (chosen.squared_relu_norm_quantize(x, other, weight, 1e-5), case.rms(squared_relu(x) * other)),
        (chosen.gelu_quantize(x), F.gelu(x, approximate="tanh")),
    ]
    for fused, plain in pairs:
        expected = chosen.quantize(plain)
        well_conditioned = plain.abs().amax(-1, keepdim=True) > 1e-3  # GELU of two numbers near -5 is the difference of nearly equal ones
        difference = (fused.codes.int() - expected.codes.int()).abs() * well_conditioned
        assert difference.max() <= 1 and difference.sum() <= 2
        torch.testing.assert_close(fused.absmax, expected.absmax, rtol=1e-5, atol=1e-6)
        assert torch.equal(fused.sums, fused.codes.sum(-1, dtype=torch.int32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_goes_in_and_comes_out(backend):
    case = Case(40, (24, 8), True, 0, torch.bfloat16)
    composed = case.composed()
    for fused, expected in zip(case.pack(backend_or_skip(backend)).fused(), composed, strict=True):
        assert fused.dtype == torch.bfloat16
        assert float((fused.float() - expected.float()).norm() / expected.float().norm()) < 0.02


def test_layers_that_share_an_input_quantize_it_once(monkeypatch):
    backend, case, calls = choose("reference"), Case(20, (8, 4, 4), True, 0), []
    case.pack(backend)
    quantize = type(backend).quantize
    monkeypatch.setattr(type(backend), "quantize", lambda self, x: calls.append(x) or quantize(self, x))
    norm_linear(case.rms, case.layers, case.x)
    assert len(calls) == 1


def test_ordinary_layers_are_composed_too():
    layer, norm, x, residual = nn.Linear(6, 6), nn.LayerNorm(6), torch.randn(3, 6), torch.randn(3, 6)
    assert torch.equal(norm_linear(norm, [layer], x)[0], layer(norm(x)))
    assert torch.equal(linear(layer, x, residual), residual + layer(x))
    assert torch.equal(gelu_linear(layer, x, residual), residual + layer(F.gelu(x, approximate="tanh")))


def test_a_width_that_does_not_fit_is_refused():
    (layer,) = Case(20, (8,), True, 0).pack(choose("reference")).layers
    with pytest.raises(ValueError, match="21 features for a layer of 20"):
        norm_linear(RMSNorm(21, 1e-5), [layer], torch.randn(2, 21))
    with pytest.raises(ValueError, match="21 features for a layer of 20"):
        linear(layer, torch.randn(2, 21), torch.randn(2, 8))
