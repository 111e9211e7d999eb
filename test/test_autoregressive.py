"""A robot-pretrained base decodes actions token by token: as the reference's class does, from every form in which such a base comes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import edit
from robot_base import (
    CASES,
    EMBEDDING,
    FIRST_ACTION,
    FOLDER,
    LM_HEAD,
    VECTORS,
    copy_base,
    copy_tied,
    expected,
    imitate_released,
    inputs,
    retensor,
)
from safetensors.torch import load_file

from bitvla_ros.model import CheckpointError, autoregressive, load_checkpoint
from bitvla_ros.model.autoregressive import AutoregressiveBitVLA, bin_values
from bitvla_ros.model.checkpoint import read_checkpoint
from bitvla_ros.model.graph import GraphedBitVLA
from bitvla_ros.model.language import KeyValueCache
from bitvla_ros.policy.normalization import Bounds, unnormalise_actions
from bitvla_ros.stated import Contradiction

NUMBERS = range(len(CASES))


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return copy_tied(tmp_path_factory.mktemp("tied") / "base")


@pytest.fixture(scope="module")
def load(tied):
    """The model of a case, loaded once for all of them."""

    @cache
    def loaded(is_tied: bool, packed: bool, **options) -> AutoregressiveBitVLA:
        model = load_checkpoint(tied if is_tied else FOLDER, norm_key="bridge_orig", **options)
        assert isinstance(model, AutoregressiveBitVLA)
        return model.pack() if packed else model

    return lambda case=0, packed=False, **options: loaded(CASES[case]["tied"], packed, **options)


def distance(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((actual.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("case", NUMBERS)
def test_network_without_activation_quantization_matches(case, load):
    prediction = load(case, activation_bits=None).predict(*inputs(case))
    assert distance(prediction.action_hidden, expected(case, "noactq_fp32", "final_hidden")) <= 2e-5
    assert prediction.normalized_actions.shape == (1, 7)
    assert torch.equal(prediction.normalized_actions[0], expected(case, "noactq_fp32", "normalized_actions"))


@pytest.mark.parametrize("case", NUMBERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_actions_with_activation_quantization_are_the_references(case, dtype, load):
    prediction = load(case, dtype=dtype).predict(*inputs(case))
    assert torch.equal(prediction.normalized_actions[0], expected(case, "fp32", "normalized_actions"))


@pytest.mark.parametrize("case", NUMBERS)
def test_packed_weights_give_the_same_actions(case, load):
    prediction = load(case, packed=True).predict(*inputs(case))
    assert torch.equal(prediction.normalized_actions[0], expected(case, "fp32", "normalized_actions"))
    assert distance(prediction.action_hidden, expected(case, "fp32", "final_hidden")) <= 0.05


@pytest.mark.parametrize("case", NUMBERS)
def test_actions_in_the_datasets_units_are_the_references(case):
    statistics = read_checkpoint(FOLDER, norm_key=CASES[case]["unnorm_key"]).norm_stats
    actions = unnormalise_actions(
        expected(case, "fp32", "normalized_actions").numpy(), Bounds.from_dict(statistics["action"], "action", 7)
    )
    np.testing.assert_allclose(actions, expected(case, "fp32", "actions").numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", json.loads((FOLDER / "config.json").read_text())["norm_stats"])
def test_every_dataset_has_units_of_its_own(key):
    """Among them dimensions that are never used, and masks that are not the usual one or missing."""
    bounds = Bounds.from_dict(read_checkpoint(FOLDER, norm_key=key).norm_stats["action"], "action", 7)
    actions = unnormalise_actions(expected(0, "fp32", "normalized_actions").numpy(), bounds)
    np.testing.assert_allclose(actions, VECTORS[f"case0.actions.{key}"].numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", NUMBERS)
def test_tokens_that_are_no_actions_are_never_taken_and_counted(case, load):
    """Cases 4 and 5 have such tokens: <proprio_pad>, and the end of the text."""
    model = load(case, activation_bits=None)
    foreign = int((expected(case, "noactq_fp32", "full_vocab_argmax") < FIRST_ACTION).sum())
    assert bool(foreign) == CASES[case]["restricted"]
    assert model.foreign_tokens(model.predict(*inputs(case)).action_hidden) == foreign


def test_cached_steps_equal_the_whole_sequence_computed_anew(load):
    model = load(activation_bits=None)
    prediction, tokens = model.predict(*inputs(0)), expected(0, "noactq_fp32", "action_token_ids")
    prepared = model.prepare(*(None if x is None else x[None] for x in inputs(0)))
    with torch.inference_mode():
        embeddings = torch.cat([model.embed(prepared), model.language.embed_tokens(tokens[None, :-1]).float()], 1)
        length = embeddings.shape[1]
        hidden = model.language(embeddings, model.attention_mask(None, length), torch.arange(length - 7, length)[None])[0]
    assert distance(prediction.action_hidden, hidden) <= 1e-5


def test_the_prompt_is_computed_once(load):
    model, lengths = load(), []
    hook = model.language.layers[0].register_forward_hook(lambda _m, arguments, _out: lengths.append(arguments[0].shape[1]))
    model.predict(*inputs(0))
    hook.remove()
    assert lengths == [len(inputs(0)[1])] + [1] * 6


def test_a_cache_keeps_what_it_is_given_in_its_order():
    cache, k, v = KeyValueCache(), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    for part in (slice(0, 3), slice(3, 4), slice(4, 5)):
        kept = cache.extend(k[:, :, part], v[:, :, part])
    assert cache.length == 5 and torch.equal(kept[0], k) and torch.equal(kept[1], v)


def test_a_batch_equals_its_samples(load):
    model = load(activation_bits=None)
    pixels, ids, _ = inputs(0)
    others = torch.stack([pixels, inputs(2)[0]])
    batch = model(others, torch.stack([ids, ids]), None)
    for i in range(2):
        assert torch.equal(batch.normalized_actions[i], model.predict(others[i], ids, None).normalized_actions)
    with pytest.raises(ValueError, match="needs one length"):
        model(others, torch.stack([ids, ids]), None, torch.tensor([5, len(ids)]))


def test_images_are_placed_by_their_tokens_under_either_id(load):
    """The checkpoint's image_token_index is an action's id; its tokenizer has <|image_pad|>."""
    model = load()
    pixels, ids, _ = inputs(0)
    assert (ids == 516).sum() == 64
    other = model.predict(pixels, ids.where(ids != 516, 266), None)
    assert torch.equal(other.action_hidden, model.predict(pixels, ids, None).action_hidden)
    two = torch.cat([ids[:200], torch.full((64,), 266), ids[200:]])
    assert model.predict(torch.cat([pixels, -pixels]), two, None).normalized_actions.shape == (1, 7)
    with pytest.raises(ValueError, match=r"has \[128\] image tokens: expected 64"):
        model.predict(pixels, two, None)


def test_only_the_action_tokens_rows_of_the_vocabulary_are_read(tmp_path):
    """The others may as well be anything: here each would win, and each is not even finite."""
    base = copy_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[LM_HEAD][:FIRST_ACTION] = float("nan")
    retensor(base, tensors)
    model = load_checkpoint(base, norm_key="bridge_orig")
    assert torch.equal(model.predict(*inputs(0)).normalized_actions[0], expected(0, "fp32", "normalized_actions"))
    assert model.token_head.weight.shape == (256, 128)
    assert "vocabulary" not in model.state_dict()


def test_without_a_key_the_base_is_there_to_be_trained(tmp_path):
    model = load_checkpoint(imitate_released(tmp_path / "base"))
    assert not isinstance(model, AutoregressiveBitVLA)
    assert model.norm_stats is None and model.norm_key is None and not model.config.acts
    assert (model.config.attention, model.config.chunk) == ("bidirectional", 8)
    with pytest.raises(ValueError, match="robot-pretrained base with norm_key"):
        model.predict(*inputs(0))


def test_a_key_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    base = imitate_released(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"no statistics under norm_key 'libero'; it has: bridge_orig.*, dataset_21"):
        load_checkpoint(base, norm_key="libero")
    assert load_checkpoint(base, norm_key="libero_spatial").norm_key == "libero_spatial_no_noops"


@pytest.mark.parametrize(("option", "value"), [("attention", "bidirectional"), ("chunk", 8)])
def test_options_that_a_token_by_token_action_has_not_are_refused(option, value):
    with pytest.raises(Contradiction, match=rf"{option} is {value!r}, but a robot-pretrained base .* states"):
        load_checkpoint(FOLDER, norm_key="bridge_orig", **{option: value})


def test_the_prompt_is_stored_or_chosen_but_never_both(tmp_path):
    assert load_checkpoint(FOLDER, norm_key="bridge_orig").config.discrete.prompt == "human"
    assert load_checkpoint(FOLDER, norm_key="bridge_orig", prompt="user").config.discrete.prompt == "user"
    base = copy_base(tmp_path / "base", prompt="user")
    assert load_checkpoint(base, norm_key="bridge_orig").config.discrete.prompt == "user"
    with pytest.raises(Contradiction, match="prompt is 'human'"):
        load_checkpoint(base, norm_key="bridge_orig", prompt="human")
    with pytest.raises(Contradiction, match="only a robot-pretrained base"):
        load_checkpoint(FOLDER, prompt="human")
    with pytest.raises(CheckpointError, match="prompt 'spoken' is unknown: choose one of human, user"):
        load_checkpoint(copy_base(tmp_path / "other", prompt="spoken"), norm_key="bridge_orig")


def test_a_tied_base_may_say_so_or_not(tied, tmp_path):
    """Which is right is what the file has: a missing lm_head, not a key of config.json that the reference's class may default."""
    config = json.loads((tied / "config.json").read_text())
    assert "tie_word_embeddings" not in config and "tie_word_embeddings" not in config["text_config"]
    untied = copy_base(tmp_path / "untied", text_config=config["text_config"])
    prediction = load_checkpoint(untied, norm_key="bridge_orig").predict(*inputs(0))
    assert torch.equal(prediction.normalized_actions[0], expected(0, "fp32", "normalized_actions"))


def test_a_fine_tuned_checkpoint_whose_head_is_lost_is_no_token_policy(tmp_path):
    """Its config.json still has the base's statistics, and its tokenizer 252 action tokens of the reference's fine-tuning."""
    base = copy_base(tmp_path / "lost")
    statistics = json.loads((base / "config.json").read_text())["norm_stats"]["bridge_orig"]
    (base / "dataset_statistics.json").write_text(json.dumps({"mine": statistics}))
    assert not load_checkpoint(base, norm_key="mine").config.acts
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 520]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="252 action tokens with ids 268 to 519: expected 256, the last of the vocabulary of 524"):
        load_checkpoint(base, norm_key="bridge_orig")


def test_what_config_json_leaves_out_is_as_in_the_released_base(tmp_path):
    base = copy_base(tmp_path / "base", n_action_bins=None, image_token_index=None)
    assert load_checkpoint(base, norm_key="bridge_orig").config.discrete.bins == 256
    edit(base / "config.json", norm_stats=["bridge_orig"])
    with pytest.raises(CheckpointError, match=r"norm_stats is .*expected an object"):
        load_checkpoint(base, norm_key="bridge_orig")


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    base = copy_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[LM_HEAD] = tensors[LM_HEAD][:-4].clone()
    retensor(base, tensors)
    with pytest.raises(CheckpointError, match=r"vocabulary.*has shape \[520, 128\]: by config.json it must be \[524, 128\]"):
        load_checkpoint(base, norm_key="bridge_orig")
    del tensors[EMBEDDING], tensors[LM_HEAD]
    retensor(base, tensors)
    with pytest.raises(CheckpointError, match=r"lacks language\.embed_tokens\.weight, token_head\.weight"):
        load_checkpoint(base, norm_key="bridge_orig")


def test_prompts_of_another_length_and_pixels_of_another_size(tmp_path):
    """Whatever the sizes: a base for images of 56 pixels, and prompts of 20 tokens."""
    base = copy_base(tmp_path / "base")
    vision = json.loads((base / "config.json").read_text())["vision_config"]
    edit(base / "config.json", vision_config=vision | {"image_size": 56})
    tensors = load_file(base / "model.safetensors")
    place = "vision_tower.vision_model.embeddings.position_embedding.weight"
    tensors[place] = tensors[place][:16].clone()
    retensor(base, tensors)
    model = load_checkpoint(base, norm_key="bridge_orig").pack()
    ids = torch.tensor([256, 65, *[516] * 16, 66])
    prediction = model.predict(torch.zeros(1, 3, 56, 56), ids, None)
    assert prediction.normalized_actions.shape == (1, 7) and bool((prediction.normalized_actions.abs() < 1).all())
    with pytest.raises(ValueError, match=r"expected \[cameras, 3, 56, 56\]"):
        model.predict(torch.zeros(1, 3, 112, 112), ids, None)
    with pytest.raises(ValueError, match="this model has no proprioception"):
        model.predict(torch.zeros(1, 3, 56, 56), ids, torch.zeros(8))


def test_the_whole_action_can_be_recorded_as_one_graph(load):
    """As a CUDA graph is: `compute` runs again on other inputs that lie in the same place."""

    def capture(run):
        results = run()
        return lambda: [place.copy_(value) for place, value in zip(results, run(), strict=True)], results

    graphed = GraphedBitVLA(load(activation_bits=None), capture)
    for case in (0, 2, 0):
        assert torch.equal(graphed.predict(*inputs(case)).normalized_actions[0], expected(case, "noactq_fp32", "normalized_actions"))


def test_no_step_looks_at_a_value():
    """On the meta device, where tensors have no values and do not mix with others: what a CUDA graph asks for."""
    model = load_checkpoint(FOLDER, norm_key="bridge_orig").pack("reference", "meta")
    assert model.token_head.weight.device.type == "meta" and model.language.embed_tokens.weight.device.type == "cpu"
    prepared = model.prepare(*(None if x is None else x[None] for x in inputs(0)))
    with torch.inference_mode():
        results = model.compute(prepared.to(model.device, model.dtype))
    assert {result.device.type for result in results} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_cuda_graph_gives_the_references_actions():
    model = load_checkpoint(FOLDER, norm_key="bridge_orig", dtype=torch.bfloat16).pack(device="cuda")
    graphed = GraphedBitVLA(model)
    for case in (0, 2, 0):
        assert torch.equal(graphed.predict(*inputs(case)).normalized_actions[0].cpu(), expected(case, "fp32", "normalized_actions"))


# --- the whole set of vectors ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    folder = shared / "golden" / "bitvla_tiny_base"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: it has more vectors of the same kind than data/bitvla_tiny_base")
    return folder


@pytest.mark.parametrize("case", NUMBERS)
def test_every_logit_of_the_action_tokens_matches(case, golden, load):
    for variant, options, tolerance in (
        ("noactq_fp32", {"activation_bits": None}, 2e-5),
        ("fp32", {}, 0.05),
        ("int8_fp32", {"packed": True}, 0.05),
        ("bf16", {"dtype": torch.bfloat16}, 0.25),
    ):
        model = load(case, **options)
        wanted = load_file(golden / "expected" / f"case{case}.{variant}.safetensors")
        prediction = model.predict(*inputs(case))
        prefix = "restricted." if CASES[case]["restricted"] else ""
        with torch.inference_mode():
            logits = model.token_head(prediction.action_hidden)
        assert distance(logits, wanted[f"{prefix}logits_last_257"][:, 1:].float()) <= tolerance, variant
        assert torch.equal(logits.argmax(-1) + FIRST_ACTION, wanted[f"{prefix}action_token_ids"]), variant


def test_pixels_features_and_embeddings_are_the_references(golden, load):
    model = load(activation_bits=None)
    for image, case in ((0, 0), (1, 2), (2, 3)):
        pixels = inputs(case)[0]
        np.testing.assert_array_equal(pixels.numpy(), np.load(golden / "inputs" / f"image{image}.npz")["pixel_values"])
        wanted = load_file(golden / "expected" / f"image{image}.noactq_fp32.safetensors")
        with torch.inference_mode():
            features = model.vision(pixels)
            assert distance(features[0], wanted["vision_features"]) <= 1e-5
            assert distance(model.connector(features)[0], wanted["projector_out"]) <= 1e-5
    prepared = model.prepare(*(None if x is None else x[None] for x in inputs(0)))
    embeddings = load_file(golden / "expected" / "case0.noactq_fp32.safetensors")["inputs_embeds"]
    with torch.inference_mode():
        assert distance(model.embed(prepared)[0], embeddings) <= 1e-5


def test_every_id_stands_for_the_references_number(golden):
    unit = np.load(golden / "unit" / "actions.npz")
    values = bin_values(256, torch.device("cpu")).numpy()
    known = unit["ids"] >= FIRST_ACTION
    np.testing.assert_array_equal(values[unit["ids"][known] - FIRST_ACTION], unit["decoded"][known])
    statistics = json.loads((FOLDER / "config.json").read_text())["norm_stats"]
    for key, entry in statistics.items():
        actions = unnormalise_actions(unit["normalized"], Bounds.from_dict(entry["action"], "action", 7))
        np.testing.assert_allclose(actions, unit[f"unnormalize.{key}"], rtol=0, atol=1e-12)


def test_the_tied_base_is_the_references(golden, tied):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tied, golden / "checkpoint" / "bitvla_tiny_base_a_tied"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- mistakes that must be noticed ----------------------------------------------------------------------------------------


def sees_everything(monkeypatch):
    monkeypatch.setattr(AutoregressiveBitVLA, "attention_mask", lambda *_: None)


def new_tokens_one_position_too_low(monkeypatch):
    original = KeyValueCache.length.fget
    monkeypatch.setattr(KeyValueCache, "length", property(lambda self: max(0, original(self) - 1)))


def forgets_what_it_chose(monkeypatch):
    original = KeyValueCache.extend
    monkeypatch.setattr(KeyValueCache, "extend", lambda self, k, v: original(self, k, v * (k.shape[2] > 1)))


def counts_upwards(monkeypatch):
    monkeypatch.setattr(autoregressive, "bin_values", lambda bins, device: bin_values(bins, device).flip(0))


@pytest.mark.parametrize("mistake", [sees_everything, new_tokens_one_position_too_low, forgets_what_it_chose, counts_upwards])
def test_mistake_is_noticed(mistake, load, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        test_network_without_activation_quantization_matches(0, load)
