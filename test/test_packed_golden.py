"""The packed network against the reference implementation's numbers, on every backend of this machine, and what it keeps in memory."""

from __future__ import annotations

import gc

import pytest
import torch
from golden import ATTENTIONS, Golden, check_end_to_end, check_layers

from bitvla_ros.model import build
from bitvla_ros.ternary import Backend, BackendError, choose, triton_backend

BACKENDS = ("reference", "cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8_fp32": torch.float32, "int8_bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> Backend:
    try:
        return choose(request.param)
    except BackendError as error:
        pytest.skip(str(error))


def test_each_layer_matches(golden, backend):
    check_layers(golden, golden.load().pack(backend.name))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("case", "variant"), [(0, "fp32"), (1, "fp32"), (0, "bf16"), (1, "bf16"), (0, "int8_fp32"), (0, "int8_bf16")]
)
def test_whole_network_stays_within_the_references_own_spread(golden, backend, case, variant, attention):
    model = golden.load(dtype=DTYPES[variant], attention=attention).pack(backend.name)
    assert model.backend is backend
    assert model.predict(*golden.inputs(case)).normalized_actions.dtype == DTYPES[variant]
    check_end_to_end(golden, model, case, variant)


def test_repeated_runs_give_identical_bytes(golden, backend):
    model, again = (golden.load().pack(backend.name) for _ in range(2))
    first = model.predict(*golden.inputs(0)).action_hidden
    assert torch.equal(first, model.predict(*golden.inputs(0)).action_hidden)
    assert torch.equal(first, again.predict(*golden.inputs(0)).action_hidden)


def resident() -> int:
    """Bytes of every tensor that Python can reach."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter):  # torch.export's own kinds have no memory
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_a_packed_model_keeps_two_bits_a_weight_and_no_other_copy(golden, backend):
    before = resident()
    model = build("nano").pack(backend.name)
    weights = sum(layer.in_features * layer.out_features for layer in model.ternary_layers().values())
    layers = len(model.ternary_layers())
    ids = torch.full((1,), model.config.proprio_token_id)
    ids = torch.cat([torch.full((model.config.vision.num_patches,), model.config.image_token_id), ids])
    model.predict(torch.zeros(1, 3, 112, 112), ids, torch.zeros(8))

    packed = sum(tensor.nbytes for layer in model.ternary_layers().values() for tensor in (layer.words, layer.scale))
    assert packed == weights // 4 + 4 * layers, "all sizes of nano are multiples of 16"
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert sum(tensor.nbytes for tensor in model.state_dict().values()) == packed + parameters
    assert resident() - before == packed + parameters + ids.nbytes


def test_a_packed_model_refuses_to_train_and_to_be_packed_again(backend):
    model = build("nano").train().eval().pack(backend.name)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="no master weights left to train"):
        model.train()
    with pytest.raises(RuntimeError, match="packed already"):
        model.pack(backend.name)


def test_a_model_without_activation_quantization_keeps_its_master_weights():
    model = build("nano", activation_bits=None)
    with pytest.raises(ValueError, match="int8 activations"):
        model.pack()
    assert model.backend is None and all(layer.weight is not None for layer in model.ternary_layers().values())


def test_a_backend_that_cannot_work_costs_no_weights():
    model = build("nano")
    with pytest.raises(BackendError):
        model.pack("no such")
    assert all(layer.weight is not None for layer in model.ternary_layers().values())


def test_a_gpu_without_triton_leaves_the_network_on_the_cpu(monkeypatch):
    monkeypatch.setattr(triton_backend.TritonBackend, "problem", lambda self, device: "Triton cannot be imported")
    model = build("nano").pack("auto", "cuda")
    assert model.backend is not None and model.backend.name != "triton"
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_packed_weights_of_another_network_are_refused():
    model = build("nano")
    weights = {name: layer.packed for name, layer in build("nano").pack("reference").ternary_layers().items()}
    del weights["language.layers.0.mlp.up_proj"]
    with pytest.raises(ValueError, match=r"45 packed weights for 46 ternary layers: language.layers.0.mlp.up_proj is in one of them only"):
        model.set_packed(weights)


def test_layers_that_share_an_input_come_to_the_backend_together(monkeypatch):
    together = []
    reference = choose("reference")
    prepare = type(reference).prepare

    def recorded(self, weights, device):
        together.append([weight.rows for weight in weights])
        return prepare(self, weights, device)

    monkeypatch.setattr(type(reference), "prepare", recorded)
    build("nano").pack("reference")
    vision, language = [[128] * 3, [128], [384], [128]], [[192, 96, 96], [192], [384] * 2, [192]]
    assert together == vision * 3 + language * 4
