"""The network against the reference implementation's numbers, by the recipe in shared/golden/bitvla_tiny/README.md."""

from __future__ import annotations

import pytest
import torch
from golden import ATTENTIONS, Golden, assert_close, check_end_to_end, check_layers, check_smooth, check_units

from bitvla_ros.model import BitVLA
from bitvla_ros.model.checkpoint import _rename
from bitvla_ros.ternary import TernaryLinear
from bitvla_ros.ternary.quantize import quantize_weight
from bitvla_ros.ternary.reference import ternary_linear
from bitvla_ros.training.objective import Batch, oft_loss

CASES = (0, 1)


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_operations_match_the_stand_alone_vectors(golden, dtype):
    check_units(golden, dtype)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", CASES)
def test_network_without_activation_quantization_matches_to_1e_5(golden, case, attention):
    check_smooth(golden, golden.load(activation_bits=None, attention=attention), case)


def test_hidden_states_without_activation_quantization_match_to_1e_5(golden):
    trace, model = golden.tensors("trace/case0.noactq_fp32"), golden.load(activation_bits=None)
    seen = {}
    for i, layer in enumerate(model.language.layers):
        layer.register_forward_hook(lambda _m, inputs, out, i=i: seen.update({f"in.{i}": inputs[0][0], f"out.{i}": out[0]}))
    model.predict(*golden.inputs(0))
    rows = trace["rows"]
    assert_close(seen["in.0"][rows], trace["llm.inputs_embeds"], 1e-5, "input embeddings")
    for i in (1, 2):
        assert_close(seen[f"out.{i - 1}"][rows], trace[f"llm.hidden_states.{i}"], 1e-5, f"hidden states {i}")


def test_each_layer_matches_with_activation_quantization(golden):
    check_layers(golden, golden.load())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("variant", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_whole_network_stays_within_the_references_own_spread(golden, case, attention, variant, dtype):
    model = golden.load(dtype=dtype, attention=attention)
    assert model.predict(*golden.inputs(case)).normalized_actions.dtype == dtype
    check_end_to_end(golden, model, case, variant)


def integer_forward(layer: TernaryLinear, x: torch.Tensor) -> torch.Tensor:
    return ternary_linear(x, *quantize_weight(layer.weight), layer.bias)


@pytest.mark.parametrize("variant", ["int8_fp32", "int8_bf16"])
def test_network_of_exact_integer_layers_matches(golden, monkeypatch, variant):
    monkeypatch.setattr(TernaryLinear, "forward", integer_forward)
    dtype = torch.float32 if variant == "int8_fp32" else torch.bfloat16
    check_end_to_end(golden, golden.load(dtype=dtype), 0, variant)
    if dtype == torch.float32:
        check_layers(golden, golden.load())


def training_batch(golden: Golden) -> Batch:
    stored = golden.training()[0]
    lengths = (stored["labels"] != -100).int().argmax(1)  # the first label is the first action
    assert torch.equal(stored["attention_mask"].sum(1), lengths + 57)
    images = torch.stack([golden.inputs(case)[0] for case in CASES])
    prompts = stored["input_ids"][:, : int(lengths.max())]
    return Batch(images, prompts, lengths, stored["proprio"], stored["actions"])


def backward(golden: Golden, model: BitVLA, batch: Batch) -> float:
    loss = oft_loss(model.float(), batch)  # float: the embedding table too, so that its gradient is not rounded
    loss.backward()
    return float(loss.detach())


def test_padded_training_batch_has_the_references_loss_and_gradients(golden):
    stored, scalars = golden.training()
    model = golden.load(activation_bits=None)
    loss = backward(golden, model, training_batch(golden))
    assert loss == pytest.approx(scalars["loss"]["noactq_fp32"], rel=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    prefix = "noactq_fp32.grad."
    for name in [name for name in stored if name.startswith(prefix)]:
        assert_close(gradients[_rename(name.removeprefix(prefix))], stored[name], 1e-5, name)

    norms = {_rename(name.removeprefix("vla.")): norm for name, norm in scalars["grad_norms"]["noactq_fp32"].items()}
    del norms["language_model.lm_head.weight"]  # the objective never reaches it
    assert norms.keys() == dict(model.named_parameters()).keys()
    for name, norm in norms.items():
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-7), name


def test_padded_training_batch_with_activation_quantization(golden):
    stored, scalars = golden.training()
    model = golden.load()
    loss = backward(golden, model, training_batch(golden))
    assert loss == pytest.approx(scalars["loss"]["fp32"], abs=0.01)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    prefix = "fp32.grad."
    for name in [name for name in stored if name.startswith(prefix)]:
        assert_close(gradients[_rename(name.removeprefix(prefix))], stored[name], 0.25, name)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_changes_nothing(golden, attention):
    batch = training_batch(golden)
    model = golden.load(activation_bits=None, attention=attention)
    with torch.no_grad():
        together = model(batch.pixel_values, batch.input_ids, batch.proprio, batch.prompt_lengths)
    for i, length in enumerate(batch.prompt_lengths):
        alone = model.predict(batch.pixel_values[i], batch.input_ids[i, :length], batch.proprio[i])
        assert_close(together.action_hidden[i], alone.action_hidden, 1e-5, f"sample {i}")
