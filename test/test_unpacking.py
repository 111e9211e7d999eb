"""A packed model becomes one that can be trained, and is the same model until it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import Demonstrations

from bitvla_ros.model import BitVLA, CheckpointError, build, load_packed, pack_model
from bitvla_ros.model.saving import save_checkpoint
from bitvla_ros.model.unpacking import unpack_model
from bitvla_ros.ternary.pack import unpack
from bitvla_ros.ternary.quantize import master_weight, quantize_weight
from bitvla_ros.training.starting import starting_model


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    zeros=st.floats(0, 1),
    scale=st.floats(1e-4, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_drawn_master_weight_quantizes_to_what_it_was_drawn_for(shape, zeros, scale, seed):
    random = np.random.default_rng(seed)
    codes = torch.from_numpy((random.choice([-1, 1], shape) * (random.random(shape) >= zeros)).astype(np.int8))
    generator = torch.Generator().manual_seed(seed)
    found, found_scale = quantize_weight(master_weight(codes, torch.tensor(scale), generator))
    assert torch.equal(found, codes)
    if codes.any():
        assert found_scale.item() == pytest.approx(scale, rel=1e-5)


def test_what_is_drawn_is_near_every_edge_and_follows_the_seed():
    """At rest in the middle of its cell no weight would flip for long."""
    codes = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (200, 200)).astype(np.int8))
    first, again, other = (master_weight(codes, torch.tensor(2.0), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    size = first.abs() / 2.0
    for low, high in ((0.40, 0.499), (0.501, 0.60)):
        assert ((size >= low) & (size <= high)).float().mean() > 0.02


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unpacking") / "packed"
    pack_model("random:nano", path)
    return path


def outputs(model: BitVLA) -> torch.Tensor:
    torch.manual_seed(0)
    config = model.config
    images = torch.rand(2, 3, config.vision.image_size, config.vision.image_size) * 2 - 1
    ids = torch.tensor([config.image_token_id] * (2 * config.vision.num_patches) + [config.proprio_token_id, 5, 6, 7])
    return model.predict(images, ids, torch.rand(config.proprio_dim)).normalized_actions


def test_unpacked_it_is_the_same_model(packed):
    """Apart from activations, whose rounding makes the last bits of a scale chaos."""
    ours, theirs = unpack_model(packed), load_packed(packed, backend="reference")
    assert ours.backend is None and ours.config == theirs.config and ours.path == theirs.path
    for name, layer in theirs.ternary_layers().items():
        codes, scale = quantize_weight(ours.ternary_layers()[name].weight)
        assert torch.equal(codes, unpack(layer.words, layer.out_features, layer.in_features)), name
        assert scale.item() == pytest.approx(layer.scale.item(), rel=1e-5)
    exact = build("nano", dtype=torch.bfloat16).float()  # what was packed
    for model in (ours, exact):
        model.config = replace(theirs.config, activation_bits=None)
        for layer in model.ternary_layers().values():
            layer.activation_bits = None
    a, b = outputs(ours), outputs(exact)
    assert torch.linalg.norm(a - b) < 1e-4 * torch.linalg.norm(b)


def test_training_starts_from_a_packed_model(packed, tmp_path):
    dataset = Demonstrations()
    model, tokenizer = starting_model(packed, dataset.statistics, dataset.name, 20.0)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    folder = save_checkpoint(model, tmp_path / "checkpoint", tokenizer=tokenizer, dtype=torch.float32)
    pack_model(folder, tmp_path / "again")
    for name, layer in load_packed(packed, backend="reference").ternary_layers().items():
        assert torch.equal(load_packed(tmp_path / "again", backend="reference").ternary_layers()[name].words, layer.words), name


def test_full_precision_is_not_made_of_a_packed_model(packed):
    dataset = Demonstrations()
    with pytest.raises(CheckpointError, match="nothing is left of its full precision"):
        starting_model(packed, dataset.statistics, dataset.name, 20.0, full_precision="vision")
