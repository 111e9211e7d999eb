"""Each deliberate mistake must be noticed by one of the golden checks: the proof that they hold the network at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import Golden, check_layers, check_smooth, check_units
from torch import Tensor
from torch.nn import functional as F

from bitvla_ros.model import BitVLA, bitvla, language
from bitvla_ros.ternary import fused, quantize, reference
from bitvla_ros.ternary.pack import unpack
from bitvla_ros.ternary.reference import ReferenceBackend, rescale


def units(golden: Golden, mutate: Callable[[BitVLA], object]) -> None:
    check_units(golden, "fp32")


def smooth(golden: Golden, mutate: Callable[[BitVLA], object]) -> None:
    model = golden.load(activation_bits=None)
    mutate(model)
    check_smooth(golden, model, 0)


def layers(golden: Golden, mutate: Callable[[BitVLA], object]) -> None:
    model = golden.load()
    mutate(model)
    check_layers(golden, model)


def packed(golden: Golden, mutate: Callable[[BitVLA], object]) -> None:
    model = golden.load().pack("reference")
    mutate(model)
    check_layers(golden, model)


def causal_mask(monkeypatch):
    monkeypatch.setattr(BitVLA, "attention_mask", lambda self, padding, length: torch.ones(length, length, dtype=torch.bool).tril())


def hidden_states_one_later(monkeypatch):
    original = BitVLA.read_positions
    monkeypatch.setattr(BitVLA, "read_positions", lambda self, lengths: original(self, lengths) + 1)


def weight_scale_per_row(monkeypatch):
    monkeypatch.setattr(quantize, "weight_scale", lambda weight: weight.float().abs().mean(1, keepdim=True).clamp(min=1e-5))


def activation_scale_per_tensor(monkeypatch):
    monkeypatch.setattr(quantize, "_token_absmax", lambda x: x.abs().amax().clamp(min=1e-5).expand(*x.shape[:-1], 1))


def rounding_half_away_from_zero(monkeypatch):
    monkeypatch.setattr(Tensor, "round_", lambda x: x.copy_(x.sign() * (x.abs() + 0.5).floor()))


def activations_not_quantized(monkeypatch):
    monkeypatch.setattr("bitvla_ros.ternary.linear.fake_quantize_activation", lambda x: x)


def sub_norm_after_the_output_projection(monkeypatch):
    def mutate(model: BitVLA) -> None:
        for layer in model.language.layers:
            attention = layer.self_attn
            attention.attn_sub_norm, attention.o_proj = attention.o_proj, attention.attn_sub_norm

    return mutate


def gelu_variants_swapped(monkeypatch):
    gelu, other = F.gelu, {"none": "tanh", "tanh": "none"}
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": gelu(x, approximate=other[approximate]))


def rotation_of_neighbouring_channels(monkeypatch):
    def interleaved(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (table[:, : x.shape[-1] // 2].repeat_interleave(2, dim=1) for table in rotary)
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin

    monkeypatch.setattr(language, "rotate", interleaved)


def placeholders_not_zeroed(monkeypatch):
    original = bitvla._rows_of
    monkeypatch.setattr(bitvla, "_rows_of", lambda *kinds: original(*kinds).clamp(min=1))


def plain_relu(monkeypatch):
    monkeypatch.setattr(fused, "squared_relu", F.relu)


# Mistakes that only packed layers can make, for the check `packed`.


def residual_forgotten(monkeypatch):
    original = ReferenceBackend.linear
    monkeypatch.setattr(ReferenceBackend, "linear", lambda self, *arguments: original(self, *arguments[:4]))


def bias_forgotten(monkeypatch):
    monkeypatch.setattr(reference, "rescale", lambda sums, absmax, scale, bias, *rest: rescale(sums, absmax, scale, None, *rest))


def one_scale_for_layers_that_share_an_input(monkeypatch):
    original = ReferenceBackend.prepare

    def prepare(self, weights, device):
        return tuple(weight._replace(scale=weights[0].scale) for weight in original(self, weights, device))

    monkeypatch.setattr(ReferenceBackend, "prepare", prepare)


def gate_and_up_exchanged(monkeypatch):
    original = ReferenceBackend.squared_relu_norm_quantize
    monkeypatch.setattr(ReferenceBackend, "squared_relu_norm_quantize", lambda self, gate, up, *rest: original(self, up, gate, *rest))


def norm_without_its_weight(monkeypatch):
    original = ReferenceBackend.rms_norm_quantize
    monkeypatch.setattr(ReferenceBackend, "rms_norm_quantize", lambda self, x, weight, eps: original(self, x, torch.ones_like(weight), eps))


def columns_one_off(monkeypatch):
    monkeypatch.setattr(reference, "unpack", lambda words, rows, columns: unpack(words, rows, columns).roll(1, dims=1))


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        (causal_mask, smooth),
        (causal_mask, layers),
        (hidden_states_one_later, smooth),
        (weight_scale_per_row, units),
        (weight_scale_per_row, smooth),
        (activation_scale_per_tensor, units),
        (activation_scale_per_tensor, layers),
        (rounding_half_away_from_zero, units),
        (activations_not_quantized, layers),
        (sub_norm_after_the_output_projection, smooth),
        (gelu_variants_swapped, smooth),
        (rotation_of_neighbouring_channels, smooth),
        (placeholders_not_zeroed, smooth),
        (plain_relu, smooth),
        (causal_mask, packed),
        (rotation_of_neighbouring_channels, packed),
        (activation_scale_per_tensor, packed),
        (residual_forgotten, packed),
        (bias_forgotten, packed),
        (one_scale_for_layers_that_share_an_input, packed),
        (gate_and_up_exchanged, packed),
        (norm_without_its_weight, packed),
        (columns_one_off, packed),
    ],
    ids=lambda function: function.__name__,
)
def test_mistake_is_noticed(shared, monkeypatch, mistake, check):
    mutate = mistake(monkeypatch) or (lambda model: None)
    with pytest.raises(AssertionError):
        check(Golden(shared), mutate)


@pytest.mark.parametrize("check", [units, smooth, layers, packed], ids=lambda function: function.__name__)
def test_the_network_as_it_is_passes(shared, check):
    check(Golden(shared), lambda model: None)
