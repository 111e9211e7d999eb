"""Checkpoints in the reference's layout: read in every form they come in, refused with a reason when they are bad."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from checkpoints import STATISTICS, TEXT, VISION, edit, heads, tensors, write, write_checkpoint
from safetensors.torch import load_file, save_file

from bitvla_ros.model import CheckpointError, load_checkpoint
from bitvla_ros.model.checkpoint import EMBEDDING


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def retensor(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace or drop tensors by the end of their name, dots written as __."""
    stored = load_file(folder / "model.safetensors")
    for suffix, value in changes.items():
        name = next(name for name in stored if name.endswith(suffix.replace("__", ".")))
        del stored[name]
        if value is not None:
            stored[name] = value
    save_file(stored, folder / "new")
    (folder / "new").rename(folder / "model.safetensors")  # what is mapped must not be overwritten


def act(model):
    ids = torch.tensor([256, *[model.config.image_token_id] * 4, model.config.proprio_token_id, 65, 66])
    return model.predict(torch.ones(1, 3, 28, 28), ids, torch.ones(8)).normalized_actions


def test_fine_tuned_checkpoint_loads_and_acts(checkpoint):
    model = load_checkpoint(checkpoint)
    assert act(model).shape == (8, 7)
    assert (model.config.image_token_id, model.config.proprio_token_id, model.config.stop_token_id) == (260, 261, 257)
    assert model.norm_key == "libero_goal_no_noops" and model.norm_stats == STATISTICS
    assert model.path == checkpoint.resolve() and len(model.model_hash) == 64
    assert model.config.attention == "bidirectional" and model.config.control_hz is None and model.config.vision.ternary
    assert {p.dtype for name, p in model.named_parameters() if name != EMBEDDING} == {torch.float32}
    assert model.language.embed_tokens.weight.dtype == torch.bfloat16, "the embedding table stays as it is stored"
    assert not any("lm_head" in name for name in model.state_dict())


def test_bfloat16_converts_the_heads_too(checkpoint):
    model = load_checkpoint(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert act(model).dtype == torch.bfloat16


def test_shards_and_single_file_are_the_same_model(checkpoint):
    single = load_checkpoint(checkpoint)
    stored = load_file(checkpoint / "model.safetensors")
    names = sorted(stored)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: stored[name] for name in part}, checkpoint / file)
    write(checkpoint / "model.safetensors.index.json", {"weight_map": {name: file for file, part in parts.items() for name in part}})
    (checkpoint / "model.safetensors").unlink()
    sharded = load_checkpoint(checkpoint)
    assert sharded.model_hash == single.model_hash
    assert torch.equal(act(sharded), act(single))
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("model_type", ["bitvla", "openvla", "llava"])
def test_every_model_type_of_the_reference_is_accepted(checkpoint, model_type):
    edit(checkpoint / "config.json", model_type=model_type)
    load_checkpoint(checkpoint)


def test_prefixes_of_distributed_training_are_stripped(checkpoint):
    plain = load_checkpoint(checkpoint)
    stored = load_file(checkpoint / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in stored.items()}, checkpoint / "new")
    (checkpoint / "new").rename(checkpoint / "model.safetensors")
    assert load_checkpoint(checkpoint).model_hash == plain.model_hash


def test_options_and_config_decide_what_weights_cannot(checkpoint):
    edit(checkpoint / "config.json", attention="causal", control_hz=20.0)
    model = load_checkpoint(checkpoint)
    assert (model.config.attention, model.config.control_hz) == ("causal", 20.0)
    other = load_checkpoint(checkpoint, attention="causal", control_hz=20, chunk=5, activation_bits=None)
    assert (other.config.attention, other.config.control_hz, other.config.activation_bits) == ("causal", 20.0, None)
    assert act(other).shape == (5, 7)
    assert other.model_hash != model.model_hash


def test_base_checkpoint_loads_and_says_why_it_cannot_act(checkpoint):
    for file in [*checkpoint.glob("*.pt"), checkpoint / "dataset_statistics.json"]:
        file.unlink()
    model = load_checkpoint(checkpoint)
    assert model.norm_stats is None and model.config.proprio_dim is None
    with pytest.raises(ValueError, match="base checkpoint without an action head"):
        act(model)


def test_vision_tower_without_bits_is_not_quantized(checkpoint):
    edit(checkpoint / "config.json", vision_config={k: v for k, v in VISION.items() if not k.startswith("vit_")})
    model = load_checkpoint(checkpoint)
    assert type(model.vision.layers[0].mlp.fc1) is torch.nn.Linear
    assert act(model).shape == (8, 7)


def test_documented_ids_are_used_only_where_the_tokenizer_lacks_the_token(checkpoint):
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    missing = ("<|image_pad|>", "<proprio_pad>")
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in missing]
    tokenizer["model"]["vocab"] = {text: i for text, i in tokenizer["model"]["vocab"].items() if text not in missing}
    write(checkpoint / "tokenizer.json", tokenizer)
    with pytest.raises(CheckpointError, match=r"no token <\|image_pad\|>.*128010 is outside the vocabulary of 514"):
        load_checkpoint(checkpoint)
    edit(checkpoint / "config.json", text_config=TEXT | {"vocab_size": 128264})
    retensor(checkpoint, embed_tokens__weight=torch.zeros(128264, 24, dtype=torch.bfloat16))
    config = load_checkpoint(checkpoint).config
    assert (config.image_token_id, config.proprio_token_id, config.stop_token_id) == (128010, 128011, 257)


def test_norm_key(checkpoint):
    write(checkpoint / "dataset_statistics.json", {"libero_goal_no_noops": STATISTICS, "bridge": STATISTICS})
    with pytest.raises(CheckpointError, match=r"several datasets \(libero_goal_no_noops, bridge\).*norm_key"):
        load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=r"'libero_ten'; it has: libero_goal_no_noops, bridge"):
        load_checkpoint(checkpoint, norm_key="libero_ten")
    assert load_checkpoint(checkpoint, norm_key="bridge").norm_key == "bridge"
    assert load_checkpoint(checkpoint, norm_key="libero_goal").norm_key == "libero_goal_no_noops"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad_statistics(folder: Path, **changes: object) -> None:
    write(folder / "dataset_statistics.json", {"x": STATISTICS | changes})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "config.json").unlink(), "config.json is missing"),
        (lambda c: truncate(c / "config.json"), "config.json cannot be read"),
        (lambda c: edit(c / "config.json", model_type="llama"), "model_type is 'llama': expected 'bitvla' or"),
        (lambda c: edit(c / "config.json", text_config={}), "lacks 'vocab_size'"),
        (lambda c: edit(c / "config.json", text_config=TEXT | {"hidden_size": "big"}), "does not describe a BitVLA"),
        (lambda c: edit(c / "config.json", text_config=TEXT | {"num_key_value_heads": 3}), "not a multiple of 3"),
        (lambda c: edit(c / "config.json", vision_config=VISION | {"vit_weight_bits": 4}), r"\(4, 8\): expected \(1, 8\)"),
        (lambda c: edit(c / "config.json", text_config=TEXT | {"weight_bits": 4}), r"\(4, 8\): expected neither, or \(32, 32\)"),
        (lambda c: edit(c / "config.json", vision_feature_layer=-2), "vision_feature_layer is -2"),
        (lambda c: edit(c / "config.json", attention="sideways"), "choose one of bidirectional, causal"),
        (lambda c: edit(c / "config.json", text_config=TEXT | {"hidden_size": 28}), "by config.json it must be"),
        (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda c: truncate(c / "model.safetensors"), "damaged or truncated"),
        (lambda c: retensor(c, norm__weight=None), "lacks"),
        (lambda c: retensor(c, fc1__weight=torch.zeros(3, 3)), r"has shape \[3, 3\]: by config.json it must be \[20, 12\]"),
        (lambda c: retensor(c, fc1__bias=torch.full((20,), math.nan)), "NaN or infinite"),
        (lambda c: retensor(c, fc1__bias=torch.full((20,), -math.inf)), "NaN or infinite"),
        (lambda c: retensor(c, fc1__bias=torch.zeros(20, dtype=torch.int8)), "expected a float dtype"),
        (lambda c: save_file(tensors() | {"extra.weight": torch.zeros(1)}, c / "model.safetensors"), "has extra.weight, which"),
        (lambda c: truncate(c / "action_head--100_checkpoint.pt"), "action_head--100_checkpoint.pt is damaged"),
        (lambda c: torch.save(c, c / "action_head--100_checkpoint.pt"), "holds more than tensors"),
        (lambda c: torch.save(heads()[0], c / "action_head--200_checkpoint.pt"), "2 files for the action_head.*Keep the one"),
        (lambda c: (c / "action_head--100_checkpoint.pt").unlink(), "its action_head--.*_checkpoint.pt is missing"),
        (lambda c: (c / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda c: write(c / "tokenizer.json", {}), "not a tokenizer"),
        (lambda c: (c / "dataset_statistics.json").unlink(), "no dataset statistics.*put dataset_statistics.json"),
        (lambda c: bad_statistics(c, action={"q01": [0.0] * 7}), "lack numbers under action.q99"),
        (lambda c: bad_statistics(c, proprio={"q01": [0.0] * 7, "q99": [0.0] * 8}), "proprio.q01 .* must be 8 finite"),
        (lambda c: bad_statistics(c, action={"q01": [0.0] * 7, "q99": [math.nan] * 7}), "action.q99 .* must be 7 finite"),
    ],
)
def test_bad_checkpoint_is_refused_with_what_is_wrong_and_what_to_do(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint)


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match="there is no directory"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is a file: give the checkpoint's directory"):
        load_checkpoint(checkpoint / "config.json")
