"""The layouts that people have: what the reference's trainer leaves, shards, adapters, and folders that are something else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import STATISTICS, TEXT, VISION, edit, heads, tensors, trainer_layout, write, write_checkpoint
from safetensors.torch import load_file, save_file

from bitvla_ros.evaluation import inspection
from bitvla_ros.evaluation.readiness import needs
from bitvla_ros.model import BitVLA, CheckpointError, load, load_checkpoint, pack_model
from bitvla_ros.model.checkpoint import read_checkpoint
from bitvla_ros.model.config import BitVLAConfig, LanguageConfig, VisionConfig
from bitvla_ros.model.layout import HEADS, layout_of
from bitvla_ros.model.saving import LM_HEAD, reference_name, save_checkpoint
from bitvla_ros.policy.bitvla import BitVLAPolicy
from bitvla_ros.policy.policy import Policy
from bitvla_ros.stated import Contradiction
from bitvla_ros.training.starting import starting_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def left_by_the_trainer(checkpoint: Path) -> Path:
    return trainer_layout(checkpoint)


def shard(folder: Path, count: int = 2) -> dict[str, str]:
    """model.safetensors becomes shards with an index, which is returned."""
    stored = load_file(folder / "model.safetensors")
    files = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    listed = {name: files[i % count] for i, name in enumerate(sorted(stored))}
    for file in files:
        save_file({name: stored[name] for name in listed if listed[name] == file}, folder / file)
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": listed})
    (folder / "model.safetensors").unlink()
    return listed


# --- what the reference's trainer leaves ----------------------------------------------------------------------------------


def test_config_and_weights_in_lora_adapter_are_the_same_model(checkpoint, tmp_path):
    expected = load_checkpoint(checkpoint)
    folder = trainer_layout(checkpoint)
    model = load_checkpoint(folder)
    assert model.model_hash == expected.model_hash and model.path == folder and model.norm_stats == STATISTICS
    assert load(folder).model_hash == expected.model_hash
    description = pack_model(folder, tmp_path / "packed", control_hz=20.0)
    assert description["provenance"]["source_config_sha256"]
    assert BitVLAPolicy.load(tmp_path / "packed").warm_up().total > 0
    assert BitVLAPolicy.load(folder, control_hz=20.0).warm_up().total > 0


def test_shards_in_lora_adapter(left_by_the_trainer):
    expected = load_checkpoint(left_by_the_trainer)
    shard(left_by_the_trainer / "lora_adapter", 3)
    assert load_checkpoint(left_by_the_trainer).model_hash == expected.model_hash


def test_it_is_saved_again_with_its_config_and_its_output_vocabulary(left_by_the_trainer, tmp_path):
    edit(left_by_the_trainer / "lora_adapter/config.json", kept="key")
    shard(left_by_the_trainer / "lora_adapter")
    saved = save_checkpoint(load_checkpoint(left_by_the_trainer), tmp_path / "saved")
    assert json.loads((saved / "config.json").read_text())["kept"] == "key"
    assert torch.equal(load_file(saved / "model.safetensors")[LM_HEAD], tensors()[LM_HEAD])
    load_checkpoint(saved)


def test_a_merged_adapter_beside_weights_is_not_read(checkpoint):
    expected = load_checkpoint(checkpoint).model_hash
    (checkpoint / "lora_adapter").mkdir()
    write(checkpoint / "lora_adapter/adapter_config.json", {"peft_type": "LORA"})
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, checkpoint / "lora_adapter/adapter_model.safetensors")
    assert load_checkpoint(checkpoint).model_hash == expected


def test_weights_that_were_copied_to_the_root_win(checkpoint):
    expected = load_checkpoint(checkpoint).model_hash
    (checkpoint / "lora_adapter").mkdir()
    shutil.copy(checkpoint / "config.json", checkpoint / "lora_adapter")
    save_file({name: tensor + 1 for name, tensor in tensors().items()}, checkpoint / "lora_adapter/model.safetensors")
    assert load_checkpoint(checkpoint).model_hash == expected


def test_the_run_folder_of_save_latest_checkpoint_only(left_by_the_trainer):
    for stem in ("action_head", "proprio_projector"):
        (left_by_the_trainer / f"{stem}--100_checkpoint.pt").rename(left_by_the_trainer / f"{stem}--latest_checkpoint.pt")
    load_checkpoint(left_by_the_trainer)


def test_lora_adapter_alone_is_told_to_be_part_of_a_checkpoint(left_by_the_trainer):
    with pytest.raises(CheckpointError, match=r"holds only a checkpoint's weights: give the folder around it"):
        load_checkpoint(left_by_the_trainer / "lora_adapter")


# --- what is no checkpoint, by its name -----------------------------------------------------------------------------------


def adapter(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "base"})
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")


def adapter_in_folder(folder: Path) -> None:
    (folder / "lora_adapter").mkdir()
    adapter(folder)
    for file in folder.glob("adapter_*"):
        file.rename(folder / "lora_adapter" / file.name)
    (folder / "config.json").unlink()


def rename(folder: Path, change: Callable[[str], str]) -> None:
    stored = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "new")
    (folder / "new").rename(folder / "model.safetensors")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pointer(file: Path) -> None:
    file.unlink()
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 6295953280\n")


def diffusion_head(folder: Path) -> None:
    state = {f"module.noise_predictor.mlp_resnet.{name.rpartition('model.')[2]}": value for name, value in heads()[0].items()}
    torch.save(state, folder / "action_head--100_checkpoint.pt")


def with_film(folder: Path) -> None:
    more = {"vision_tower.vision_model.encoder.layers.0.scale.weight": torch.zeros(12, 24)}
    save_file(tensors() | more, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (adapter, "has a LoRA adapter in its root that is not merged, and no model: merge it"),
        (adapter_in_folder, "has a LoRA adapter in lora_adapter/ that is not merged, and no model: merge it"),
        (lambda c: rename(c, lambda name: f"base_model.model.{name}"), "tensors of a LoRA adapter that is not merged"),
        (pickled, r"weights in pytorch_model\.bin, pickled, and pickles are not loaded: save them as safetensors"),
        (lambda c: pointer(c / "model.safetensors"), "is a Git-LFS pointer, not the file itself: run `git lfs pull`"),
        (lambda c: pointer(c / "config.json"), "is a Git-LFS pointer"),
        (lambda c: pointer(c / "tokenizer.json"), "is a Git-LFS pointer"),
        (lambda c: pointer(c / "action_head--100_checkpoint.pt"), "is a Git-LFS pointer"),
        (lambda c: torch.save({}, c / "noisy_action_projector--100_checkpoint.pt"), "trained with a diffusion head"),
        (diffusion_head, "has a diffusion head"),
        (lambda c: torch.save({}, c / "vision_backbone--100_checkpoint.pt"), "trained with FiLM"),
        (with_film, "has FiLM layers"),
        (lambda c: rename(c, lambda n: n.replace("vision_tower.vision_model.", "vision_tower.")), "names of a newer transformers"),
        (lambda c: rename(c, lambda n: f"model.{n}".replace("language_model.model.", "language_model.")), "names of a newer transformers"),
        (lambda c: rename(c, lambda n: n.replace("q_proj.weight", "q_proj.weight_scale")), "packed already by BitNet's tools"),
        (lambda c: edit(c / "config.json", text_config=TEXT | {"rope_scaling": {"rope_type": "yarn"}}), "of the kind yarn"),
    ],
)
def test_a_folder_that_is_something_else_is_called_what_it_is(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(checkpoint)
    assert "\n" not in str(error.value)


def test_a_pointer_in_the_place_of_the_image_recipe_is_not_packed(checkpoint, tmp_path):
    pointer(checkpoint / "preprocessor_config.json")
    with pytest.raises(CheckpointError, match="is a Git-LFS pointer"):
        pack_model(checkpoint, tmp_path / "packed", control_hz=20.0)


def test_rotary_parameters_are_read_where_a_newer_transformers_writes_them(checkpoint):
    edit(checkpoint / "config.json", text_config=TEXT | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}})
    assert load_checkpoint(checkpoint).config.language.rope_theta == 1e4
    edit(checkpoint / "config.json", text_config=TEXT | {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5})
    with pytest.raises(Contradiction, match="rope_theta is 500000"):
        load_checkpoint(checkpoint)


# --- shards ---------------------------------------------------------------------------------------------------------------


def relist(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    write(file, index)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: relist(c, lambda m: m.update(extra=FIRST)), "lists tensors that its shards lack: extra"),
        (lambda c: relist(c, lambda m: m.pop(min(m))), "does not list tensors that its shards have"),
        (lambda c: relist(c, lambda m: m.update({min(m): SECOND})), "under another shard than the one they are in"),
        (lambda c: relist(c, lambda m: m.update(extra=7)), "names 7 as a shard"),
        (lambda c: relist(c, lambda m: m.update(extra="../other.safetensors")), r"names '\.\./other\.safetensors' as a shard"),
        (lambda c: shutil.copy(c / FIRST, c / SECOND), r"is in model-00001-of-00002\.safetensors and in model-00002"),
        (lambda c: (c / "model.safetensors.index.json").unlink(), r"but not model\.safetensors\.index\.json"),
        (lambda c: save_file(tensors(), c / "model.safetensors"), r"weights twice, in model\.safetensors and in 2 shards"),
        (lambda c: write(c / "model.safetensors.index.json", {"weight_map": []}), "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(checkpoint, damage, message):
    shard(checkpoint)
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint)


def test_an_index_that_is_left_of_older_shards_is_not_read(checkpoint):
    expected = load_checkpoint(checkpoint).model_hash
    listed = shard(checkpoint)
    for file in set(listed.values()):
        (checkpoint / file).unlink()
    save_file(tensors(), checkpoint / "model.safetensors")
    assert load_checkpoint(checkpoint).model_hash == expected


# --- buffers, and proprioception ------------------------------------------------------------------------------------------


def test_buffers_that_follow_from_the_config_are_ignored(checkpoint):
    expected = load_checkpoint(checkpoint).model_hash
    buffers = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(4)[None],
        "language_model.model.rotary_emb.inv_freq": torch.ones(6),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6, dtype=torch.float64),
    }
    save_file(tensors() | buffers, checkpoint / "model.safetensors")
    assert load_checkpoint(checkpoint).model_hash == expected
    shard(checkpoint)
    relist(checkpoint, lambda listed: [listed.pop(name) for name in list(buffers)])
    assert load_checkpoint(checkpoint).model_hash == expected


def test_prefixes_of_torch_compile_are_stripped(checkpoint):
    expected = load_checkpoint(checkpoint).model_hash
    rename(checkpoint, lambda name: f"module._orig_mod.{name}")
    assert load_checkpoint(checkpoint).model_hash == expected


def test_a_missing_proprio_projector_is_refused_unless_asked(checkpoint, tmp_path):
    (checkpoint / "proprio_projector--100_checkpoint.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no proprio_projector--.*fine-tuned without proprioception, say so.*--no-proprio"):
        load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=r"and its config\.json asks"):
        load_checkpoint(checkpoint, use_proprio=True)
    model = load_checkpoint(checkpoint, use_proprio=False)
    assert model.config.proprio_dim is None
    packed = tmp_path / "packed"
    pack_model(checkpoint, packed, control_hz=20.0, use_proprio=False)
    assert load(packed, use_proprio=False).config.proprio_dim is None
    with pytest.raises(Contradiction, match="use_proprio"):
        load(packed, use_proprio=True)
    assert load_checkpoint(save_checkpoint(model, tmp_path / "saved")).config.proprio_dim is None, "config.json says so from now on"


def test_no_proprioception_contradicts_a_projector(checkpoint):
    with pytest.raises(Contradiction, match="has a proprio projector"):
        load_checkpoint(checkpoint, use_proprio=False)


def test_data_without_proprioception_needs_no_word(checkpoint):
    (checkpoint / "proprio_projector--100_checkpoint.pt").unlink()
    write(checkpoint / "dataset_statistics.json", {"x": {"action": STATISTICS["action"]}})
    assert load_checkpoint(checkpoint).config.proprio_dim is None


# --- names alone ----------------------------------------------------------------------------------------------------------


def test_only_what_is_read_is_downloaded():
    root = ["config.json", "tokenizer.json", "chat_template.jinja", "dataset_statistics.json"]
    root += ["action_head--10_checkpoint.pt", "proprio_projector--10_checkpoint.pt"]
    adapter = ["lora_adapter/config.json", "lora_adapter/model.safetensors"]
    more = [*adapter, "checkpoint-5000/model.safetensors", "checkpoint-5000/config.json"]
    more += ["optimizer--10_checkpoint.pt", "README.md", "modeling.py", "lora_adapter/adapter_model.safetensors", "other.safetensors"]
    names = [*root, *more, "model.safetensors"]
    assert set(layout_of(names, "it").read(names)) == {*root, "model.safetensors"}
    names = [name for name in (*root, *more) if name != "config.json"]
    assert set(layout_of(names, "it").read(names)) == {*root, *adapter} - {"config.json"}


def test_reading_takes_tensors_that_are_not_aligned(checkpoint):
    """An odd number of bytes before a tensor of bfloat16, as the format allows."""
    expected = load_checkpoint(checkpoint)
    header: dict[str, object] = {"x.position_ids": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    data = b"\0"
    for name, tensor in tensors().items():
        content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    written = json.dumps(header).encode()
    (checkpoint / "new").write_bytes(len(written).to_bytes(8, "little") + written + data)
    (checkpoint / "new").rename(checkpoint / "model.safetensors")
    assert load_checkpoint(checkpoint).model_hash == expected.model_hash
    assert read_checkpoint(checkpoint).tensors.keys() == expected.state_dict().keys()


# --- everything that takes a checkpoint takes what the trainer leaves -----------------------------------------------------


def node_policy(**given: object) -> Policy:
    """As the policy node loads it with these parameters."""
    pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")
    from bitvla_ros.nodes.load import DEFAULTS, load_policy

    return load_policy(SimpleNamespace(**(DEFAULTS | given)), print)


def test_inspect_train_and_the_node_take_what_the_trainer_leaves(left_by_the_trainer, tmp_path):
    whole = str(left_by_the_trainer)
    assert inspection.run(Namespace(path=whole, remote=False))["statistics"] == ["libero_goal_no_noops"]
    assert needs(whole).chunk == 8
    model, tokenizer = starting_model(whole, {"action": STATISTICS["action"], "proprio": STATISTICS["proprio"]}, "new", 10.0)
    saved = save_checkpoint(model, tmp_path / "saved", tokenizer=tokenizer)
    assert load_checkpoint(saved).config.control_hz == 10.0
    assert node_policy(model=whole, control_hz=20.0).spec.control_hz == 20.0


def test_the_node_can_be_told_that_there_is_no_proprioception(checkpoint):
    (checkpoint / "proprio_projector--100_checkpoint.pt").unlink()
    with pytest.raises(CheckpointError, match="the parameter use_proprio of the policy node"):
        node_policy(model=str(checkpoint), control_hz=20.0)
    assert node_policy(model=str(checkpoint), control_hz=20.0, use_proprio=False).spec.horizon == 8


# --- memory ---------------------------------------------------------------------------------------------------------------

WIDE_VISION = {**VISION, "hidden_size": 576, "intermediate_size": 2304, "num_hidden_layers": 4}
WIDE_TEXT = {**TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16}
PEAK = """
import resource, sys
from bitvla_ros.model import load
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load(sys.argv[1], backend="reference")
before = peak()
load(sys.argv[2], backend="reference")
print(peak() - before)
"""


def write_wide(folder: Path) -> Path:
    """A checkpoint of 320 MB in bfloat16, most of it in ternary matrices."""
    write_checkpoint(folder)
    edit(folder / "config.json", vision_config=WIDE_VISION, text_config=WIDE_TEXT)
    config = BitVLAConfig(
        vision=VisionConfig(**{key: value for key, value in WIDE_VISION.items() if key in vars(VisionConfig())}),
        language=LanguageConfig(**{key: value for key, value in WIDE_TEXT.items() if key in vars(LanguageConfig())}),
        image_token_id=260,
        proprio_token_id=261,
        stop_token_id=257,
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in BitVLA(config).state_dict().items()}
    values = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).bfloat16()
    stored = {name: values[: shape.numel()].view(shape).clone() for name, shape in shapes.items()}
    heads_of = {stem: {name.removeprefix(f"{stem}."): stored.pop(name) for name in list(stored) if name.startswith(stem)} for stem in HEADS}
    save_file({reference_name(name): tensor for name, tensor in stored.items()}, folder / "model.safetensors")
    for stem, state in heads_of.items():
        prefix = "model." if stem == "action_head" else ""
        state = {prefix + name.replace("blocks.", "mlp_resnet_blocks."): tensor for name, tensor in state.items()}
        torch.save(state, folder / f"{stem}--100_checkpoint.pt")
    return folder


def test_loading_holds_the_packed_model_and_one_tensor(checkpoint, tmp_path):
    """The whole file was in memory before, and twice as much again in float32."""
    wide = write_wide(tmp_path / "wide")
    sizes = {name: tensor.nbytes for name, tensor in read_checkpoint(wide).tensors.items()}
    packed = needs(str(wide)).bytes
    assert sum(sizes.values()) > 5 * packed, "most of it is ternary"
    done = subprocess.run([sys.executable, "-c", PEAK, str(checkpoint), str(wide)], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    # Quantizing works on a matrix in float32, which is twice as large, a few times over.
    assert int(done.stdout) < 1.2 * packed + 16 * max(sizes.values())
