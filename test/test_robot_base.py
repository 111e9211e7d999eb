"""Base checkpoints through every verb: a robot-pretrained one as a policy and as a start of training, a vision-language one as a start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demonstrations import write_demonstrations
from robot_base import CASES, FOLDER, LM_HEAD, VECTORS, expected, imitate_raw, imitate_released
from safetensors.torch import load_file

from bitvla_ros import cli
from bitvla_ros.evaluation.readiness import needs
from bitvla_ros.model import CheckpointError, PackedModelError, load, load_checkpoint, pack_model
from bitvla_ros.model.autoregressive import AutoregressiveBitVLA
from bitvla_ros.model.packed import read_packed
from bitvla_ros.model.saving import save_checkpoint
from bitvla_ros.policy.bitvla import BitVLAPolicy, PolicyError
from bitvla_ros.policy.normalization import to_command, unnormalise_actions
from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.preprocessing import ImageRecipe
from bitvla_ros.policy.prompt import Prompt, load_tokenizer
from bitvla_ros.stated import Contradiction


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return imitate_released(tmp_path_factory.mktemp("released") / "base")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return imitate_raw(tmp_path_factory.mktemp("raw") / "base")


@pytest.fixture(scope="module")
def packed(base) -> Path:
    pack_model(base, base.parent / "packed", norm_key="bridge_orig", control_hz=5)
    return base.parent / "packed"


def observation(case: int) -> Observation:
    image = VECTORS[f"image{CASES[case]['image']}"].numpy()
    return Observation({"scene": image}, np.zeros(8), CASES[case]["instruction"], {"scene": 1, "state": 1})


def run(capfd, *command: object) -> dict:
    assert cli.main([*map(str, command), "--json"]) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


# --- as a policy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_prompts_ids_are_those_of_the_vectors(case):
    prompt = Prompt(load_tokenizer(FOLDER), image_tokens=64, cameras=1, kind="human")
    ids = prompt(CASES[case]["instruction"])
    placeholders = VECTORS[f"case{case}.input_ids"].numpy()
    np.testing.assert_array_equal(np.where(ids == prompt.image_token_id, 516, ids), placeholders)


def test_the_other_prompt_is_the_references_fine_tuning_one():
    tokenizer = load_tokenizer(FOLDER)
    text = Prompt(tokenizer, image_tokens=64, cameras=2, kind="user").text("lift it")
    assert text.endswith("User: <|image_pad|><|image_pad|><proprio_pad>What action should the robot take to lift it?<|eot_id|>Assistant: ")
    text = Prompt(tokenizer, image_tokens=64, cameras=2, kind="human").text("lift it")
    assert text.endswith("Human: <|image_pad|>\n<|image_pad|>\nWhat action should the robot take to lift it?<|eot_id|>Assistant: ")


def test_images_are_only_resized():
    """Bicubic to the network's size, whatever their shape: no crop, and nothing else before."""
    from PIL import Image

    recipe, frame = ImageRecipe.from_base(FOLDER), VECTORS["image0"].numpy()
    assert frame.shape == (120, 160, 3) and recipe.shape == (112, 112)
    np.testing.assert_array_equal(recipe.pixels(frame), np.asarray(Image.fromarray(frame).resize((112, 112), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("case", [0, 2, 4])
@pytest.mark.parametrize("stored", ["checkpoint", "packed"])
def test_the_policy_gives_the_references_action(case, stored, base, packed):
    """A frame, an instruction with capitals; dimensions as the dataset's statistics say. Case 4 has one token that is no action's."""
    options = {"norm_key": "bridge_orig", "control_hz": 5.0}
    policy = BitVLAPolicy.load(base if stored == "checkpoint" else packed, **options)
    policy.warm_up(1)
    assert policy.spec.cameras == ("scene",) and policy.spec.horizon == 1 and policy.spec.control_hz == 5.0
    actions = policy.infer(observation(case)).actions
    assert actions.shape == (1, 7)
    wanted = to_command(unnormalise_actions(expected(case, "fp32", "normalized_actions").numpy(), policy.statistics.action))
    np.testing.assert_array_equal(actions[0], wanted)
    if stored == "packed":
        assert policy.counts == {}, "256 rows do not say what the others would have"
    else:
        assert policy.counts["action_tokens"] == 7 and bool(policy.counts["foreign_tokens"]) == (case == 4)


def test_without_a_key_the_policy_names_the_keys(base):
    with pytest.raises(PolicyError, match=r"give norm_key, of bridge_orig, .*, dataset_21; or fine-tune it"):
        BitVLAPolicy.load(base, control_hz=5.0)


def test_a_rate_is_never_guessed(base):
    with pytest.raises(PolicyError, match="at what rate"):
        BitVLAPolicy.load(base, norm_key="bridge_orig")


def test_the_doctor_is_told_what_it_needs(base, packed):
    for found in (needs(str(base), norm_key="bridge_orig"), needs(str(packed))):
        assert (found.chunk, found.image_size, found.cameras, found.usual_cameras) == (1, 112, None, ("scene",))
        assert found.state_low is None
    with pytest.raises(ValueError, match="give a robot-pretrained base a norm_key"):
        needs(str(base))


def test_the_doctor_looks_for_the_one_camera(packed):
    pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")
    from bitvla_ros.nodes.doctor import _model
    from bitvla_ros.nodes.doctor.expected import load_expected

    expected = load_expected()
    assert _model(str(packed), expected)[0].cameras == ("scene",)
    front = replace(expected, policy={**expected.policy, "cameras": ("front",)})
    assert _model(str(packed), front)[0].cameras == ("front",)


# --- packed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["2bit", "base3"])
def test_packed_and_unpacked_actions_are_equal(base, tmp_path, encoding):
    description = pack_model(base, tmp_path / "packed", norm_key="taco_play", control_hz=15, prompt="user", encoding=encoding)
    model = load(tmp_path / "packed", norm_key="taco_play", prompt="user", attention="causal", chunk=1)
    assert isinstance(model, AutoregressiveBitVLA) and model.vocabulary is None
    assert model.config.discrete.prompt == "user" and model.model_hash == description["model_hash"]
    other = load_checkpoint(base, norm_key="taco_play", control_hz=15.0, prompt="user").pack()
    assert model.norm_stats == other.norm_stats and model.config == other.config
    pixels, ids = torch.rand(1, 3, 112, 112), torch.tensor([256, 65, *[516] * 64, 66])
    for mine, theirs in zip(model.predict(pixels, ids, None), other.predict(pixels, ids, None), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(Contradiction, match="prompt is 'human'"):
        load(tmp_path / "packed", prompt="human")


def test_of_the_output_vocabulary_the_actions_rows_are_packed(packed):
    tensors = read_packed(packed).tensors
    assert tensors["token_head.weight"].shape == (256, 128)
    assert not any("lm_head" in name or "action_head" in name for name in tensors)


def test_packing_a_base_with_statistics_asks_for_one_of_them(base, tmp_path):
    with pytest.raises(PackedModelError, match=r"statistics of 27 datasets: choose the one .* --norm-key, of bridge_orig, "):
        pack_model(base, tmp_path / "packed", control_hz=5)


def test_pack_and_inspect_as_verbs(base, tmp_path, capfd):
    found = run(capfd, "inspect", base)
    assert len(found["statistics"]) == 27 and found["architecture"]["discrete"] == {"bins": 256, "placeholder_id": 516, "prompt": "human"}
    run(capfd, "pack", base, tmp_path / "out", "--norm-key", "bridge_orig", "--control-hz", "5", "--prompt", "user")
    found = run(capfd, "inspect", tmp_path / "out")
    assert found["statistics"] == ["bridge_orig"] and found["architecture"]["discrete"]["prompt"] == "user"
    assert found["components"]["heads"]["bytes"] == 256 * 128 * 2
    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    assert "1 x 7 at 5 Hz, proprioception none, token by token in 256 bins, prompt user" in capfd.readouterr().out


def test_an_older_packed_model_says_nothing_of_tokens():
    """What is new in a configuration is left out where it is not there, so that older files and hashes are as they were."""
    found = read_packed(Path(__file__).parents[1] / "models" / "nano")
    assert "discrete" not in found.description["config"] and found.config.discrete is None


def test_a_token_policy_is_not_saved(base, tmp_path):
    with pytest.raises(CheckpointError, match="load its checkpoint without norm_key"):
        save_checkpoint(load_checkpoint(base, norm_key="bridge_orig"), tmp_path / "saved")


# --- as a start of training -----------------------------------------------------------------------------------------------

QUICK = ["--steps", "1", "--batch-size", "2", "--warmup", "0", "--workers", "0"]


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demos") / "demos")


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("stored", ["checkpoint", "packed"])
def test_training_from_a_robot_pretrained_base_gives_it_heads(base, packed, demos, tmp_path, capfd, stored):
    result = run(capfd, "train", base if stored == "checkpoint" else packed, "--dataset", demos, "--output", tmp_path / "run", *QUICK)
    model = load_checkpoint(result["checkpoint"])
    config = model.config
    assert (config.chunk, config.attention, config.proprio_dim, config.action_head) == (8, "bidirectional", 8, True)
    assert config.discrete is None and model.norm_key == "tabletop_object" and model.cameras == ("scene", "wrist")
    assert BitVLAPolicy.load(result["checkpoint"]).spec.horizon == 8
    if stored == "checkpoint":
        saved = load_file(Path(result["checkpoint"]) / "model.safetensors")
        assert torch.equal(saved[LM_HEAD], load_file(base / "model.safetensors")[LM_HEAD]), "for the reference's loader"


@pytest.mark.usefixtures("no_curves")
def test_a_vision_language_base_is_inspected_packed_and_trained(raw, demos, tmp_path, capfd):
    """Its tokenizer has neither images nor actions yet, and reserved tokens where they go; no script has to be run on it."""
    found = run(capfd, "inspect", raw)
    assert found["statistics"] == [] and (found["architecture"]["image_token_id"], found["architecture"]["proprio_token_id"]) == (266, 267)
    run(capfd, "pack", raw, tmp_path / "packed")
    result = run(capfd, "train", raw, "--dataset", demos, "--output", tmp_path / "run", *QUICK)
    tokenizer, before = load_tokenizer(result["checkpoint"]), load_tokenizer(raw)
    assert tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<proprio_pad>", "<action_0>", "<action_255>"]) == [266, 267, 268, 523]
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<|pad|>", 258, 524)
    assert before.convert_ids_to_tokens(266) == "<|reserved_special_token_7|>" and len(before) == 524
    reference = Prompt(load_tokenizer(FOLDER), image_tokens=64, cameras=2)("push it")
    np.testing.assert_array_equal(Prompt(tokenizer, image_tokens=64, cameras=2)("push it"), reference)
    assert BitVLAPolicy.load(result["checkpoint"]).spec.horizon == 8


def test_a_vision_language_base_is_no_policy(raw, capfd):
    with pytest.raises(PolicyError, match="no action head"):
        BitVLAPolicy.load(raw, control_hz=5.0)
