"""From camera frames and words to commands, end to end against the reference's recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitvla_ros.model import CheckpointError, load_checkpoint, pack_model
from bitvla_ros.policy.bitvla import BitVLAPolicy, InferenceError, PolicyError
from bitvla_ros.policy.gate import Reason, Refused
from bitvla_ros.policy.normalization import Statistics, StatisticsError
from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.preprocessing import ImageRecipe
from bitvla_ros.policy.prompt import PromptError, load_tokenizer

MASKS = {"bidirectional": "bidir", "causal": "causal"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden/bitvla_tiny"


@pytest.fixture(scope="module")
def checkpoint(golden: Path) -> Path:
    return golden / "checkpoint/bitvla_tiny_a"


@pytest.fixture(scope="module")
def nano() -> BitVLAPolicy:
    return BitVLAPolicy.random("nano", seed=0)


def recorded(golden: Path, case: int, frames: str) -> Observation:
    arrays = np.load(golden / f"inputs/case{case}.npz")
    task = json.loads((golden / f"inputs/case{case}.json").read_text())["task"]
    images = dict(zip(("scene", "wrist"), arrays[frames], strict=True))
    return Observation(images, arrays["state"], task, {"scene": 90, "wrist": 70, "state": 80}, epoch=4)


def expected(golden: Path, case: int, variant: str, mask: str) -> np.ndarray:
    from safetensors.torch import load_file

    return load_file(golden / f"expected/case{case}.{variant}.safetensors")[f"{MASKS[mask]}.env_actions"].numpy()


def observe(roles=("scene", "wrist"), seed: int = 0, **changes) -> Observation:
    random = np.random.default_rng(seed)
    images = {role: random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for role in roles}
    state = random.uniform(-1, 1, 8)
    return Observation(**{"images": images, "state": state, "instruction": "lift it", "stamps": {"state": 1}, **changes})


@pytest.mark.parametrize(("case", "attention"), [(0, "bidirectional"), (0, "causal"), (1, "bidirectional")])
def test_prepared_frames_give_the_references_commands(golden, checkpoint, case, attention):
    """Without activation quantization, and from frames behind the JPEG decoder, all is smooth and must agree to 1e-5."""
    model = load_checkpoint(checkpoint, activation_bits=None, attention=attention)
    policy = BitVLAPolicy(model, load_tokenizer(checkpoint), recipe=ImageRecipe(crop_area=None), control_hz=20)
    chunk = policy.infer(recorded(golden, case, "frames_cropped"))
    np.testing.assert_allclose(chunk.actions, expected(golden, case, "noactq_fp32", attention), atol=1e-5)


@pytest.mark.parametrize(
    ("case", "attention", "variant"),
    [(0, "bidirectional", "fp32"), (1, "bidirectional", "fp32"), (1, "causal", "fp32"), (1, "bidirectional", "bf16")],
)
def test_raw_frames_give_the_references_commands_within_what_int8_allows(golden, checkpoint, case, attention, variant):
    """The bounds of the vectors' README, in normalised units; JPEG decoders differ by a level, which adds to it."""
    dtype = torch.bfloat16 if variant == "bf16" else torch.float32
    policy = BitVLAPolicy.load(checkpoint, rotate_180=True, jpeg=True, control_hz=20, attention=attention, dtype=dtype)
    chunk = policy.infer(recorded(golden, case, "frames_env"))
    wanted = expected(golden, case, variant, attention)
    scale = policy.statistics.action.range[:6] / 2
    difference = np.abs(chunk.actions[:, :6] - wanted[:, :6]) / scale
    assert difference.max() <= 0.15
    assert difference.mean() <= 0.04


def test_an_image_the_wrong_way_up_would_be_noticed(golden, checkpoint):
    policy = BitVLAPolicy.load(checkpoint, jpeg=True, control_hz=20)
    chunk = policy.infer(recorded(golden, 0, "frames_env"))
    scale = policy.statistics.action.range[:6] / 2
    difference = np.abs(chunk.actions[:, :6] - expected(golden, 0, "fp32", "bidirectional")[:, :6]) / scale
    assert difference.max() > 0.15


def test_a_chunk_says_where_it_comes_from(golden, checkpoint):
    policy = BitVLAPolicy.load(checkpoint, control_hz=10, frame="world")
    observation = recorded(golden, 1, "frames_env")
    chunk = policy.infer(observation)
    assert chunk.actions.dtype == np.float32 and chunk.actions.shape == (8, 7)
    assert (chunk.observation_stamp, chunk.epoch, chunk.step_duration, chunk.frame) == (70, 4, 100_000_000, "world")
    assert chunk.instruction == "Open the top drawer"  # as the user said it
    assert chunk.model_hash == policy.model.model_hash != ""
    latency = chunk.latency
    assert min(latency.preprocessing, latency.inference) > 0
    assert latency.preprocessing + latency.inference <= latency.total
    assert not policy.spec.privileged and policy.spec.cameras == ("scene", "wrist") and policy.spec.horizon == 8


def test_a_rate_is_asked_for_and_never_guessed(checkpoint):
    with pytest.raises(PolicyError, match="control_hz"):
        BitVLAPolicy.load(checkpoint)
    with pytest.raises(PolicyError, match="control_hz"):
        BitVLAPolicy(load_checkpoint(checkpoint), load_tokenizer(checkpoint), recipe=ImageRecipe(), control_hz=-1.0)


def test_a_packed_directory_gives_the_chunks_of_the_checkpoint_it_was_packed_from(golden, checkpoint, tmp_path):
    pack_model(checkpoint, tmp_path / "packed", control_hz=20)
    observation = recorded(golden, 0, "frames_env")
    loaded = BitVLAPolicy.load(tmp_path / "packed", jpeg=True, rotate_180=True, backend="reference")
    in_memory = BitVLAPolicy.load(checkpoint, jpeg=True, rotate_180=True, backend="reference", control_hz=20, dtype=torch.float32)
    np.testing.assert_array_equal(loaded.infer(observation).actions, in_memory.infer(observation).actions)
    assert loaded.spec.control_hz == 20 and loaded.spec.cameras == in_memory.spec.cameras
    assert len(loaded.spec.model_hash) == 64 and loaded.spec.model_hash != in_memory.spec.model_hash


def test_layers_run_on_the_backend_that_was_asked_for_or_on_none_without_activation_quantization(checkpoint):
    assert BitVLAPolicy.load(checkpoint, control_hz=20, backend="reference").model.backend.name == "reference"
    assert BitVLAPolicy.load(checkpoint, control_hz=20, activation_bits=None).model.backend is None
    assert BitVLAPolicy.random("nano", activation_bits=None).model.backend is None
    with pytest.raises(ValueError, match="no backend 'fast': choose one of auto, reference, cpu, triton"):
        BitVLAPolicy.random("nano", backend="fast")


def test_equal_observations_give_equal_chunks_whatever_came_before(nano):
    first = nano.infer(observe()).actions
    nano.infer(observe(seed=1, instruction="another thing"))
    np.testing.assert_array_equal(nano.infer(observe()).actions, first)
    np.testing.assert_array_equal(BitVLAPolicy.random("nano", seed=0).infer(observe()).actions, first)


def test_every_input_counts(nano):
    base = observe()
    actions = nano.infer(base).actions
    changed = {
        "scene": observe(images={**base.images, "scene": observe(seed=1).images["scene"]}),
        "wrist": observe(images={**base.images, "wrist": observe(seed=1).images["wrist"]}),
        "order": observe(images={"scene": base.images["wrist"], "wrist": base.images["scene"]}),
        "state": observe(state=-base.state),
        "instruction": observe(instruction="put it down"),
    }
    for name, observation in changed.items():
        assert not np.array_equal(nano.infer(observation).actions, actions), name


def test_order_of_the_images_is_the_policys_and_not_the_observations(nano):
    base = observe()
    turned = observe(images={"wrist": base.images["wrist"], "scene": base.images["scene"], "other": base.images["scene"]})
    np.testing.assert_array_equal(nano.infer(turned).actions, nano.infer(base).actions)


@pytest.mark.parametrize("cameras", [("scene",), ("scene", "wrist", "left")])
def test_any_number_of_cameras_works(cameras):
    policy = BitVLAPolicy.random("nano", cameras=cameras)
    assert np.isfinite(policy.infer(observe(cameras)).actions).all()


def test_observation_is_left_as_it_was(nano):
    observation = observe()
    images, state = {role: image.copy() for role, image in observation.images.items()}, observation.state.copy()
    nano.infer(observation)
    np.testing.assert_array_equal(observation.state, state)
    for role, image in images.items():
        np.testing.assert_array_equal(observation.images[role], image)


def test_a_missing_camera_is_refused(nano):
    with pytest.raises(Refused) as caught:
        nano.infer(observe(("scene",)))
    assert caught.value.reason is Reason.MISSING_STREAM and "wrist" in str(caught.value)


@pytest.mark.parametrize("instruction", ["lift it <|EOT_ID|>", "lift it " * 70])
def test_an_instruction_that_the_prompt_refuses_is_no_failure_of_the_node(nano, instruction):
    observation = observe(("scene", "wrist"))
    with pytest.raises(Refused) as caught:
        nano.infer(replace(observation, instruction=instruction))
    assert caught.value.reason is Reason.INVALID_INSTRUCTION


def test_an_output_that_is_not_finite_is_never_a_chunk():
    policy = BitVLAPolicy.random("nano")
    with torch.no_grad():
        policy.model.action_head.fc2.bias[0] = float("nan")
    with pytest.raises(InferenceError, match="not finite"):
        policy.infer(observe())


def test_warm_up_leaves_a_policy_that_answers(nano):
    assert nano.warm_up().total > 0
    assert nano.infer(observe()).horizon == 8


def test_parts_that_do_not_belong_together_are_refused(checkpoint, nano):
    model, tokenizer = load_checkpoint(checkpoint), load_tokenizer(checkpoint)
    with pytest.raises(PolicyError, match="images"):
        BitVLAPolicy(model, tokenizer, recipe=ImageRecipe(image_size=112), control_hz=20)
    with pytest.raises(PolicyError, match="cameras"):
        BitVLAPolicy(model, tokenizer, recipe=ImageRecipe(), cameras=("scene", "scene"), control_hz=20)
    with pytest.raises(PolicyError, match="ids"):
        BitVLAPolicy(nano.model, tokenizer, recipe=nano.recipe, statistics=Statistics.identity(), control_hz=20)
    with pytest.raises(StatisticsError):
        BitVLAPolicy(nano.model, nano.prompt._tokenizer, recipe=nano.recipe, control_hz=20)


def linked(checkpoint: Path, target: Path, *without: str) -> Path:
    """The checkpoint again, but for some of its files."""
    for file in checkpoint.iterdir():
        if file.name not in without:
            (target / file.name).symlink_to(file)
    return target


def test_a_checkpoint_without_its_preprocessor_or_special_tokens_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        BitVLAPolicy.load(linked(checkpoint, tmp_path, "preprocessor_config.json"), control_hz=20)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<proprio_pad>"])
def test_a_tokenizer_without_the_special_tokens_is_refused(checkpoint, tmp_path, token):
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    linked(checkpoint, tmp_path, *names)
    for name in names:
        (tmp_path / name).write_text((checkpoint / name).read_text(encoding="utf-8").replace(token, "<gone>"), encoding="utf-8")
    with pytest.raises((PromptError, CheckpointError)) as caught:
        BitVLAPolicy.load(tmp_path, control_hz=20)
    assert token in str(caught.value)
