"""The golden vectors of the reference implementation, and what the network must do with them (see their README's test recipe).

Each check raises AssertionError where the network differs; test_model_mutations.py shows that they do.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from bitvla_ros.model import BitVLA, load_checkpoint
from bitvla_ros.model.language import RMSNorm, rotary_table, rotate
from bitvla_ros.ternary import TernaryLinear
from bitvla_ros.ternary.fused import squared_relu
from bitvla_ros.ternary.quantize import fake_quantize_activation, fake_quantize_weight, quantize_activation, quantize_weight
from bitvla_ros.ternary.reference import integer_matmul

ATTENTIONS = {"bidirectional": "bidir", "causal": "causal"}


class Golden:
    def __init__(self, shared: Path) -> None:
        self.folder = shared / "golden" / "bitvla_tiny"
        self.checkpoint = self.folder / "checkpoint" / "bitvla_tiny_a"

    def load(self, **options: object) -> BitVLA:
        return load_checkpoint(self.checkpoint, **options)  # type: ignore[arg-type]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def inputs(self, case: int) -> tuple[Tensor, Tensor, Tensor]:
        """pixel_values, input_ids, proprio, as `predict` takes them."""
        arrays = np.load(self.folder / "inputs" / f"case{case}.npz")
        pixels = (arrays["frames_cropped"] * (1 / 255)).astype(np.float32)
        pixels = ((pixels - np.float32(0.5)) / np.float32(0.5)).transpose(0, 3, 1, 2)
        proprio = torch.from_numpy(arrays["proprio_normalized"]).float()
        return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(arrays["input_ids"]), proprio

    def training(self) -> tuple[dict[str, Tensor], dict[str, dict[str, dict[str, float]]]]:
        return self.tensors("train/oft_batch"), json.loads((self.folder / "train" / "oft_batch.json").read_text())


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((actual.detach().float() - expected.float()).norm() / expected.float().norm())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    distance = relative(actual, expected)
    assert distance <= tolerance, f"{what}: relative L2 distance {distance:.1e} > {tolerance:.0e}"


def check_units(golden: Golden, dtype: str) -> None:
    """Quantizers, integer sums, norm, rotation, activations: stand-alone vectors, exact wherever they can be."""
    unit = golden.tensors(f"unit/ops_{dtype}")
    for i in range(7):
        x = unit[f"act.{i}.in"]
        codes, absmax = quantize_activation(x)
        assert torch.equal(codes, unit[f"act.{i}.codes"])
        assert torch.equal(absmax[..., 0], unit[f"act.{i}.absmax"].clamp(min=1e-5))
        assert torch.equal(fake_quantize_activation(x), unit[f"act.{i}.dequant"])

        weight = unit[f"weight.{i}.in"]
        codes, scale = quantize_weight(weight)
        assert torch.equal(codes, unit[f"weight.{i}.codes"])
        assert_close(scale, unit[f"weight.{i}.absmean"][0], 2e-7, f"absmean {i}")
        assert torch.equal(fake_quantize_weight(weight), unit[f"weight.{i}.dequant"])
    for i in range(5):
        x, weight, bias = unit[f"bitlinear.{i}.in"], unit[f"bitlinear.{i}.weight"], unit.get(f"bitlinear.{i}.bias")
        assert torch.equal(integer_matmul(quantize_activation(x)[0], quantize_weight(weight)[0]), unit[f"bitlinear.{i}.int32_accum"])
        layer = TernaryLinear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
        assert_close(layer(x), unit[f"bitlinear.{i}.out"], 1e-5 if dtype == "fp32" else 1e-2, f"bitlinear {i}")

    norm = RMSNorm(96, 1e-5)
    norm.load_state_dict({"weight": unit["rmsnorm.weight"]}, assign=True)
    assert torch.equal(norm(unit["rmsnorm.in"]), unit["rmsnorm.out"])
    table = rotary_table(40, 32, 500000.0, unit["rope.q"].dtype, torch.device("cpu"))
    for name in "qk":
        assert_close(rotate(unit[f"rope.{name}"], table), unit[f"rope.{name}_out"], 1e-6, f"rotated {name}")
    assert torch.equal(squared_relu(unit["squared_relu.in"]), unit["squared_relu.out"])
    for name, approximate in (("tanh", "tanh"), ("erf", "none")):
        assert_close(F.gelu(unit[f"gelu_{name}.in"], approximate=approximate), unit[f"gelu_{name}.out"], 1e-6, f"gelu {name}")


def check_smooth(golden: Golden, model: BitVLA, case: int) -> None:
    """Wiring, tightly: `model` has activation quantization off, so that nothing is chaotic."""
    expected = golden.tensors(f"expected/case{case}.noactq_fp32")
    pixel_values, input_ids, proprio = golden.inputs(case)
    if "vision_features" in expected:
        features = model.vision(pixel_values)
        assert_close(features, expected["vision_features"], 1e-5, "vision features")
        assert_close(model.connector(features), expected["projector_out"], 1e-5, "connector")
        assert model.proprio_projector is not None
        assert_close(model.proprio_projector(proprio), expected["proprio_features"], 1e-5, "proprioception")
    prediction = model.predict(pixel_values, input_ids, proprio)
    mask = ATTENTIONS[model.config.attention]
    assert_close(prediction.action_hidden, expected[f"{mask}.action_hidden"], 1e-5, f"action hidden, {mask}")
    torch.testing.assert_close(prediction.normalized_actions, expected[f"{mask}.normalized_actions"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def check_layers(golden: Golden, model: BitVLA) -> None:
    """Each layer of both towers with activation quantization, fed with what the reference fed it; `model` is bidirectional."""
    trace, expected = golden.tensors("trace/case0.fp32"), golden.tensors("expected/case0.fp32")
    assert_close(model.vision.embed(golden.inputs(0)[0]), trace["vision.hidden_states.0"], 1e-5, "patch embedding")
    states = [trace[f"vision.hidden_states.{i}"] for i in range(3)] + [expected["vision_features"]]
    for i, layer in enumerate(model.vision.layers):
        assert_close(layer(states[i]), states[i + 1], 3e-3, f"vision layer {i}")

    states = [trace["llm.inputs_embeds"]] + [trace[f"llm.hidden_states.{i}"] for i in (1, 2, 3)]
    config = model.config.language
    table = rotary_table(len(states[0]), config.head_dim, config.rope_theta, torch.float32, torch.device("cpu"))
    mask = model.attention_mask(None, len(states[0]))
    for i, layer in enumerate(model.language.layers):
        out = layer(states[i][None], table, mask)
        out = model.language.norm(out) if i == 2 else out  # the last state of the trace is after the final norm
        assert_close(out[0], states[i + 1], 3e-3, f"language layer {i}")


def check_end_to_end(golden: Golden, model: BitVLA, case: int, variant: str) -> None:
    """The whole network with activation quantization. Single roundings that flip spread, so this is only statistical."""
    expected = golden.tensors(f"expected/case{case}.{variant}")
    mask = ATTENTIONS[model.config.attention]
    prediction = model.predict(*golden.inputs(case))
    difference = (prediction.normalized_actions.float() - expected[f"{mask}.normalized_actions"].float()).abs()
    assert_close(prediction.action_hidden, expected[f"{mask}.action_hidden"], 0.05, f"action hidden, {mask}, {variant}")
    assert difference.max() <= 0.15
    assert difference.mean() <= 0.04
