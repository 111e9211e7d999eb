"""Checkpoints that we write: in the reference's layout to the last name, and read back as they were."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import STATISTICS, write_checkpoint
from golden import Golden
from safetensors import safe_open
from training import Demonstrations

from bitvla_ros.model import BitVLA, CheckpointError, build, load_checkpoint, pack_model
from bitvla_ros.model.config import preset
from bitvla_ros.model.saving import reference_name, save_checkpoint
from bitvla_ros.model.tokenizer import byte_tokenizer, tokenizer_of
from bitvla_ros.policy.bitvla import BitVLAPolicy
from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.prompt import Prompt, load_tokenizer
from bitvla_ros.training.starting import starting_model


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared)


def names(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}, "the reference's loader asks for it"
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def head(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    (file,) = folder.glob(f"{stem}--*_checkpoint.pt")
    return {name.removeprefix("module."): tensor for name, tensor in torch.load(file, weights_only=True).items()}


def test_saved_again_the_references_checkpoint_is_what_it_was(golden, tmp_path):
    model = golden.load()
    folder = save_checkpoint(model, tmp_path / "again", step=7)
    assert names(folder) == names(golden.checkpoint)
    for stem in ("action_head", "proprio_projector"):
        ours, theirs = head(folder, stem), head(golden.checkpoint, stem)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)
    assert {path.name for path in golden.checkpoint.iterdir()} - {path.name for path in folder.iterdir()} == {
        path.name for path in golden.checkpoint.glob("*--10000_checkpoint.pt")
    }
    again = load_checkpoint(folder)
    assert again.config == model.config and again.norm_key == model.norm_key and again.norm_stats == model.norm_stats
    assert again.model_hash == model.model_hash
    for name, tensor in load_checkpoint(golden.checkpoint).state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with (
        safe_open(folder / "model.safetensors", framework="pt") as ours,
        safe_open(golden.checkpoint / "model.safetensors", "pt") as theirs,
    ):
        name = "language_model.lm_head.weight"
        assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name)), "what we do not use is kept"


def test_config_keeps_the_references_keys_and_values(golden, tmp_path):
    before = json.loads((golden.checkpoint / "config.json").read_text())
    after = json.loads((save_checkpoint(golden.load(), tmp_path / "again") / "config.json").read_text())
    assert {key: after[key] for key in before if not key.endswith("_config")} == {
        key: value for key, value in before.items() if not key.endswith("_config")
    }
    for part in ("vision_config", "text_config"):
        assert {key: after[part][key] for key in before[part]} == before[part]


# What only the library that wrote the reference's files means by it, and what the reference's loader adds itself.
THEIRS = {"_attn_implementation_autoset", "auto_map", "max_window_layers", "sliding_window", "transformers_version", "use_sliding_window"}


def test_a_model_of_our_own_has_what_the_references_loader_reads(golden, tmp_path):
    """File by file and key by key what stands in a checkpoint that the reference saved: its loader takes these names and no others."""
    model = BitVLA(golden.load().config)
    dataset = Demonstrations()
    folder = save_checkpoint(model, tmp_path / "ours", tokenizer=byte_tokenizer(), statistics={"libero_goal": dataset.statistics}, step=9)
    assert names(folder) == names(golden.checkpoint)
    for stem in ("action_head", "proprio_projector"):  # it wants one file with the stem and "checkpoint" in its name
        assert [path.name for path in folder.iterdir() if stem in path.name and "checkpoint" in path.name] == [f"{stem}--9_checkpoint.pt"]
        ours, theirs = head(folder, stem), head(golden.checkpoint, stem)
        assert {name: (x.shape, x.dtype) for name, x in ours.items()} == {name: (x.shape, x.dtype) for name, x in theirs.items()}

    def read(folder: Path, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((folder / name).read_text())
        return content

    ids = {"bos_token_id", "eos_token_id", "pad_token_id"}  # of another tokenizer
    ours, theirs = (read(folder, "config.json") for folder in (folder, golden.checkpoint))
    for mine, its in ((ours, theirs), *((ours[part], theirs[part]) for part in ("vision_config", "text_config"))):
        assert its.keys() - mine.keys() <= THEIRS
        assert {key: mine[key] for key in its.keys() - THEIRS - ids if not key.endswith("_config")} == {
            key: its[key] for key in its.keys() - THEIRS - ids if not key.endswith("_config")
        }
    assert ours["text_config"]["pad_token_id"] < ours["text_config"]["vocab_size"], "the embedding table's padding row"
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert read(folder, name) == read(golden.checkpoint, name), name
    (mine,), (its,) = (read(folder, "dataset_statistics.json").values() for folder in (folder, golden.checkpoint))
    assert mine.keys() == its.keys() and all(mine[part].keys() == its[part].keys() for part in ("action", "proprio"))


def test_the_references_version_of_transformers_can_read_the_tokenizer(golden, tmp_path):
    """4.51 takes extra_special_tokens for a dict, where today's version writes a list; chat templates were keys, not yet files."""
    dataset = Demonstrations()
    model, tokenizer = starting_model(golden.checkpoint, dataset.statistics, dataset.name, dataset.fps)
    folder = save_checkpoint(model, tmp_path / "tuned", tokenizer=tokenizer)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    before = json.loads((golden.checkpoint / "tokenizer_config.json").read_text())
    assert isinstance(config.get("extra_special_tokens", {}), dict)
    for key in ("additional_special_tokens", "chat_template", "bos_token", "eos_token", "pad_token", "model_max_length"):
        assert config[key] == before[key], key
    again = load_tokenizer(folder)
    assert again.get_vocab() == tokenizer.get_vocab() and again.all_special_tokens == tokenizer.all_special_tokens
    prompts = [Prompt(each, image_tokens=4, cameras=2)("push") for each in (again, load_tokenizer(golden.checkpoint))]
    assert prompts[0].tolist() == prompts[1].tolist()


def test_every_tensor_has_a_name_in_the_reference_and_no_two_the_same():
    with torch.device("meta"):
        model = BitVLA(preset("nano"))
    renamed = [reference_name(name) for name in model.state_dict()]
    assert len(set(renamed)) == len(renamed)
    with pytest.raises(ValueError, match="no tensor of BitVLA"):
        reference_name("lm_head.weight")


def random_checkpoint(folder: Path, **options: object) -> Path:
    dataset = Demonstrations()
    model, tokenizer = starting_model("random:nano", dataset.statistics, dataset.name, dataset.fps, **options)  # type: ignore[arg-type]
    return save_checkpoint(model, folder, tokenizer=tokenizer)


def test_a_policy_trained_from_nothing_acts_and_packs(tmp_path):
    folder = random_checkpoint(tmp_path / "nano")
    policy = BitVLAPolicy.load(folder)
    image = np.zeros((64, 64, 3), np.uint8)
    observation = Observation({"scene": image, "wrist": image}, np.zeros(8), "push", {"scene": 1, "wrist": 1, "state": 1})
    assert policy.infer(observation).actions.shape[1] == 7
    assert policy.spec.step_duration == 50_000_000, "the dataset's rate"
    pack_model(folder, tmp_path / "packed")
    model = load_checkpoint(folder)
    assert model.norm_key == "synthetic" and model.path == folder
    prompts = [Prompt(tokenizer, image_tokens=4, cameras=2) for tokenizer in (load_tokenizer(folder), tokenizer_of("nano"))]
    assert prompts[0]("push the red cube").tolist() == prompts[1]("push the red cube").tolist()


@pytest.mark.parametrize(("full", "ternary"), [(None, (True, True)), ("vision", (False, True)), ("all", (False, False))])
def test_what_is_in_full_precision_is_told(tmp_path, full, ternary):
    config = load_checkpoint(random_checkpoint(tmp_path / "nano", full_precision=full)).config
    assert (config.vision.ternary, config.language.ternary) == ternary


def test_chunk_rate_and_attention_are_kept(tmp_path):
    model = load_checkpoint(write_checkpoint(tmp_path / "old"), chunk=5, control_hz=7.5, attention="causal")
    config = load_checkpoint(save_checkpoint(model, tmp_path / "new")).config
    assert (config.chunk, config.control_hz, config.attention) == (5, 7.5, "causal")


def test_float32_keeps_every_bit(tmp_path):
    model = build("nano", seed=3)
    again = load_checkpoint(
        save_checkpoint(model, tmp_path / "nano", tokenizer=tokenizer_of("nano"), statistics={"x": STATISTICS}, dtype=torch.float32)
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    model = load_checkpoint(write_checkpoint(tmp_path / "old"))
    folder = save_checkpoint(model, tmp_path / "run" / "checkpoint")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*unharmed"):
        save_checkpoint(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_an_older_checkpoint_is_replaced_as_a_whole(tmp_path):
    model = load_checkpoint(write_checkpoint(tmp_path / "old"))
    folder = save_checkpoint(model, tmp_path / "new", step=1)
    save_checkpoint(model, folder, step=2)
    assert {path.name for path in folder.glob("*.pt")} == {"action_head--2_checkpoint.pt", "proprio_projector--2_checkpoint.pt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer to save"):
        save_checkpoint(build("nano"), tmp_path / "x")
    with pytest.raises(CheckpointError, match="packed model has no master weights"):
        save_checkpoint(build("nano").pack("reference"), tmp_path / "x")


def test_a_base_checkpoint_is_given_heads(tmp_path):
    base = write_checkpoint(tmp_path / "base")
    for file in [*base.glob("*.pt"), base / "dataset_statistics.json"]:
        file.unlink()
    dataset = Demonstrations()
    models = [starting_model(base, dataset.statistics, dataset.name, 20.0, seed=seed)[0] for seed in (1, 1, 2)]
    heads = [model.action_head.fc1.weight for model in models]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(models[0].connector.linear_1.weight, models[2].connector.linear_1.weight)
    saved = load_checkpoint(save_checkpoint(models[0], tmp_path / "tuned"))
    assert saved.config == models[0].config and saved.norm_key == "synthetic"
