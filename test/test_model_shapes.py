"""The network in other shapes than the published one, and its presets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.model import BitVLA, BitVLAConfig, LanguageConfig, VisionConfig, build
from bitvla_ros.model.config import preset
from bitvla_ros.model.tokenizer import BYTE_TOKENS, NANO_TOKENS, byte_tokenizer, nano_tokenizer
from bitvla_ros.policy.prompt import Prompt, load_tokenizer
from bitvla_ros.simulation.tabletop_tasks import SUITES

TOKENIZERS = (byte_tokenizer(), nano_tokenizer())
ODD = BitVLAConfig(
    vision=VisionConfig(
        hidden_size=33, intermediate_size=45, num_hidden_layers=2, num_attention_heads=3, image_size=31, patch_size=7, ternary=True
    ),
    language=LanguageConfig(
        vocab_size=41, hidden_size=42, intermediate_size=55, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1
    ),
    image_token_id=38,
    proprio_token_id=39,
    stop_token_id=40,
    chunk=5,
    action_dim=3,
    proprio_dim=4,
)


def network(config: BitVLAConfig, seed: int = 0) -> BitVLA:
    model, generator = BitVLA(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(generator=generator).div_(parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 10)
    return model.eval()


def prompt(config: BitVLAConfig, cameras: int, words: int = 9, proprio: bool = True) -> torch.Tensor:
    images = [config.image_token_id] * (config.vision.num_patches * cameras)
    return torch.tensor([0, 1, *images, *([config.proprio_token_id] if proprio else []), *range(2, 2 + words)])


@pytest.mark.parametrize("cameras", [1, 2, 3])
@pytest.mark.parametrize("proprio_dim", [4, None])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_odd_sizes_any_number_of_cameras_with_and_without_proprioception(cameras, proprio_dim, attention):
    config = replace(ODD, proprio_dim=proprio_dim, attention=attention)
    model, proprio = network(config), None if proprio_dim is None else torch.randn(proprio_dim)
    pixels = torch.randn(cameras, 3, 31, 31)
    prediction = model.predict(pixels, prompt(config, cameras), proprio)
    assert prediction.action_hidden.shape == (15, 42)
    assert prediction.normalized_actions.shape == (5, 3)
    assert bool(prediction.normalized_actions.isfinite().all())
    other = model.predict(pixels.flip(0) if cameras > 1 else -pixels, prompt(config, cameras), proprio)
    assert not torch.allclose(prediction.normalized_actions, other.normalized_actions)


@pytest.mark.parametrize("ternary", [True, False])
def test_odd_sizes_pack_with_a_ternary_vision_tower_and_without(ternary):
    config = replace(ODD, vision=replace(ODD.vision, ternary=ternary))
    model, inputs = network(config), (torch.randn(2, 3, 31, 31), prompt(config, 2), torch.randn(4))
    before = model.predict(*inputs)
    after = model.pack("reference").predict(*inputs)
    assert len(model.ternary_layers()) == (12 if ternary else 0) + 14
    assert float((after.action_hidden - before.action_hidden).norm() / before.action_hidden.norm()) < 0.2


def test_a_model_without_proprioception_reads_the_token_as_a_word():
    config = replace(ODD, proprio_dim=None)
    model, pixels = network(config), torch.randn(1, 3, 31, 31)
    without = model.predict(pixels, prompt(config, 1), None)
    with torch.no_grad():
        model.language.embed_tokens.weight[config.proprio_token_id].neg_()
    assert not torch.allclose(without.normalized_actions, model.predict(pixels, prompt(config, 1), None).normalized_actions)


def test_an_unquantized_vision_tower_has_plain_linear_layers():
    model = network(replace(ODD, vision=replace(ODD.vision, ternary=False)))
    assert all(type(layer.mlp.fc1) is torch.nn.Linear for layer in model.vision.layers)
    assert model.predict(torch.randn(1, 3, 31, 31), prompt(ODD, 1), torch.randn(4)).normalized_actions.shape == (5, 3)


def test_a_causal_prompt_does_not_see_what_follows_it():
    config = replace(ODD, attention="causal", activation_bits=None)
    model, pixels, ids = network(config), torch.randn(1, 3, 31, 31), prompt(ODD, 1)
    first = model.predict(pixels, ids, torch.zeros(4)).action_hidden[0]
    with torch.no_grad():
        model.language.embed_tokens.weight[config.stop_token_id].neg_()
    assert torch.equal(first, model.predict(pixels, ids, torch.zeros(4)).action_hidden[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i, s: (torch.zeros(1, 3, 28, 28), i, s), r"expected \[cameras, 3, 31, 31\]"),
        (lambda p, i, s: (p.expand(2, -1, -1, -1), i, s), "expected 32 in each"),
        (lambda p, i, s: (p, i[i != ODD.proprio_token_id], s), r"\[0\] proprioception tokens"),
        (lambda p, i, s: (p, i, None), "proprio is missing"),
        (lambda p, i, s: (p, i, torch.zeros(8)), r"expected \[4\]"),
    ],
)
def test_wrong_inputs_are_refused_with_what_was_expected(change, message):
    inputs = (torch.randn(1, 3, 31, 31), prompt(ODD, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=message):
        network(ODD).predict(*change(*inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i, s, n: (p, i, s, torch.tensor([25, 0])), "from 1 to 27"),
        (lambda p, i, s, n: (p, i, s, torch.tensor([25, 28])), "from 1 to 27"),
        (lambda p, i, s, n: (p, i, s, n[:1]), "expected 2 numbers"),
        (lambda p, i, s, n: (p, i, s, torch.tensor([27, 9])), r"\[16, 7\] image tokens"),
        (lambda p, i, s, n: (p, i, s[:1], n), r"batches of \[2, 2, 1\] samples"),
        (lambda p, i, s, n: (p[:1].expand(4, -1, -1, -1, -1), i, s, n), r"batches of \[4, 2, 2\] samples"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(change, message):
    ids = prompt(ODD, 1, words=8).expand(2, -1)
    inputs = torch.randn(1, 1, 3, 31, 31).expand(2, -1, -1, -1, -1), ids, torch.zeros(2, 4), torch.tensor([27, 25])
    model = network(ODD)
    model(*inputs)
    with pytest.raises(ValueError, match=message):
        model(*change(*inputs))


@pytest.mark.parametrize(
    "wrong",
    [{"attention": "sideways"}, {"activation_bits": 4}, {"chunk": 0}, {"image_token_id": 41}, {"control_hz": -1.0}],
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError):
        replace(ODD, **wrong)


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = BitVLA(preset("3b"))
    ternary = [m.weight for m in model.modules() if type(m).__name__ == "TernaryLinear"]
    assert len(ternary) == 366
    assert sum(w.numel() for w in ternary) == 2_479_890_432
    total = sum(p.numel() for p in model.parameters())
    assert total - 2_479_890_432 - model.language.embed_tokens.weight.numel() == 76_941_479
    assert model.language.embed_tokens.weight.numel() == 328_355_840


def test_nano_acts_from_its_own_tokenizer_and_is_reproducible():
    model, again, other = build("nano", seed=1), build("nano", seed=1), build("nano", seed=2)
    assert model.model_hash == again.model_hash != other.model_hash
    assert build("nano", seed=1, activation_bits=None).model_hash != model.model_hash
    tokenizer = nano_tokenizer()
    ids = torch.tensor(Prompt(tokenizer, image_tokens=model.config.vision.num_patches, cameras=2)("wait"))
    inputs = torch.randn(2, 3, 112, 112), ids, torch.zeros(8)
    prediction = model.predict(*inputs)
    assert torch.equal(prediction.normalized_actions, again.predict(*inputs).normalized_actions)
    packed, repacked = model.pack("reference").predict(*inputs), again.pack("reference").predict(*inputs)
    assert torch.equal(packed.normalized_actions, repacked.normalized_actions)
    torch.testing.assert_close(packed.normalized_actions, prediction.normalized_actions, rtol=0, atol=0.15)
    assert prediction.normalized_actions.shape == (8, 7)


def test_byte_tokenizer_has_the_ids_of_the_reference():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == len(BYTE_TOKENS) == 514
    assert tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<proprio_pad>", "<action_0>"]) == [260, 261, 262]
    assert tokenizer("hé\n<|eot_id|>").input_ids == [256, *"hé\n".encode(), 259]
    assert tokenizer.decode([*"hé ".encode()]) == "hé "


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_nano_reads_a_tabletop_instruction_word_by_word(suite):
    prompt = Prompt(nano_tokenizer(), image_tokens=1, cameras=2)
    for task in suite.tasks:
        # BOS, system, end of turn, user, two images, state, question, its mark, end of turn, assistant
        assert len(prompt(task.instruction)) == 11 + len(task.instruction.split()), task.instruction


def test_nano_tokenizer_begins_with_the_bytes_and_comes_back_from_a_directory(tmp_path):
    tokenizer = nano_tokenizer()
    assert len(tokenizer) == len(NANO_TOKENS) == len(set(NANO_TOKENS)) and NANO_TOKENS[: len(BYTE_TOKENS)] == BYTE_TOKENS
    tokenizer.save_pretrained(tmp_path)
    prompts = [Prompt(each, image_tokens=4, cameras=2) for each in (tokenizer, load_tokenizer(tmp_path))]
    words = "stack the shredded h\u00e9risson on the mat, twice"
    assert prompts[0](words).tolist() == prompts[1](words).tolist()


@given(st.text(max_size=30))
def test_any_text_has_tokens_and_decodes_to_itself(text):
    for tokenizer in TOKENIZERS:
        assert tokenizer.decode(tokenizer(text).input_ids) == f"<|begin_of_text|>{text}"


def test_words_within_other_words_are_spelled():
    tokenizer = nano_tokenizer()
    assert tokenizer(" red block").input_ids == [256, NANO_TOKENS.index("\u0120red"), NANO_TOKENS.index("\u0120block")]
    assert tokenizer(" redder").input_ids == [256, *b" redder"]


def test_unknown_preset_and_dtype_are_refused():
    with pytest.raises(ValueError, match="3b or nano"):
        build("7b")
    with pytest.raises(ValueError, match="float32 or"):
        build("nano", dtype=torch.float16)
