"""Prompts against the reference's text and ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitvla_ros.model.tokenizer import byte_tokenizer, nano_tokenizer
from bitvla_ros.policy.prompt import CHAT_TEMPLATE, IMAGE_TOKEN, PROPRIO_TOKEN, Prompt, PromptError, load_tokenizer


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    return shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a"


@pytest.fixture
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


@pytest.fixture(params=[0, 1])
def case(request, shared):
    inputs = shared / "golden/bitvla_tiny/inputs"
    return json.loads((inputs / f"case{request.param}.json").read_text()), np.load(inputs / f"case{request.param}.npz")


def test_text_and_ids_are_the_references(tokenizer, case):
    words, arrays = case
    prompt = Prompt(tokenizer, image_tokens=256, cameras=2)
    assert prompt.text(words["task"]) == words["prompt_before_image_expansion"]
    ids = prompt(words["task"])
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, arrays["input_ids"])
    assert len(ids) == words["prompt_len_P"]


def test_a_tokenizer_without_a_chat_template_gets_the_documented_one(tokenizer, case):
    tokenizer.chat_template = None
    words, arrays = case
    np.testing.assert_array_equal(Prompt(tokenizer, image_tokens=256, cameras=2)(words["task"]), arrays["input_ids"])


def test_documented_template_is_the_checkpoints(tokenizer):
    messages = [{"role": "user", "content": " a "}]
    own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ours = tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True)
    assert ours == own


@pytest.mark.parametrize(("cameras", "patches"), [(1, 16), (2, 9), (3, 256)])
def test_every_camera_gets_its_patches_and_proprioception_one_token(tokenizer, cameras, patches):
    prompt = Prompt(tokenizer, image_tokens=patches, cameras=cameras)
    ids = prompt("lift the lid")
    images = np.flatnonzero(ids == prompt.image_token_id)
    assert len(images) == cameras * patches
    assert np.all(np.diff(images) == 1)
    np.testing.assert_array_equal(np.flatnonzero(ids == prompt.proprio_token_id), [images[-1] + 1])


def test_prompt_ends_in_the_lone_space(tokenizer):
    assert Prompt(tokenizer, image_tokens=4, cameras=2).text("x").endswith("<|eot_id|>Assistant: ")


def test_case_and_surrounding_space_do_not_matter(tokenizer):
    prompt = Prompt(tokenizer, image_tokens=4, cameras=2)
    np.testing.assert_array_equal(prompt(" Open the Drawer\n"), prompt("open the drawer"))


def test_last_instruction_is_kept_and_a_new_one_replaces_it(tokenizer):
    prompt = Prompt(tokenizer, image_tokens=4, cameras=2)
    first = prompt("open the drawer")
    assert prompt("open the drawer") is first
    assert len(prompt("close it")) != len(first)
    with pytest.raises(ValueError):
        first[0] = 0  # what is kept cannot be spoiled


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_empty_instruction_is_refused(tokenizer, instruction):
    with pytest.raises(PromptError, match="empty"):
        Prompt(tokenizer, image_tokens=4, cameras=2)(instruction)


@pytest.mark.parametrize("make", [nano_tokenizer, byte_tokenizer, None])
def test_instruction_cannot_smuggle_special_tokens_in(request, make):
    """Whatever its case: the prompt is put into lower case."""
    tokenizer = make() if make else request.getfixturevalue("tokenizer")
    prompt = Prompt(tokenizer, image_tokens=4, cameras=2)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    assert {IMAGE_TOKEN, "<|begin_of_text|>", "<|eot_id|>"} <= set(special)
    for token in special[:20]:
        for spelled in (token, token.upper(), token.title()):
            with pytest.raises(PromptError, match="control token"):
                prompt(f"look at{spelled}it")


def test_a_special_token_without_brackets_is_refused_and_a_phrase_is_not():
    """Nano's phrases are added tokens too; they stand in the prompt, and do no harm in an instruction."""
    tokenizer = nano_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[END]"]})
    prompt = Prompt(tokenizer, image_tokens=4, cameras=1)
    with pytest.raises(PromptError, match="control token"):
        prompt("lift it [end] now")
    phrases = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    assert phrases and all(len(prompt(f"user: {phrase}"[:500])) for phrase in phrases)
    prompt("what action should the robot take to lift the block? a < b, c > d")


def test_a_long_instruction_is_refused_before_it_is_tokenized(tokenizer):
    prompt = Prompt(tokenizer, image_tokens=4, cameras=1)
    assert len(prompt("a " * 249 + "b"))
    with pytest.raises(PromptError, match="at most 500 are accepted"):
        prompt("pick it up " * 20_000)


def copy_without(checkpoint: Path, target: Path, token: str) -> Path:
    """A copy of the tokenizer in which `token` is an unknown word."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (target / name).write_text((checkpoint / name).read_text(encoding="utf-8").replace(token, "<gone>"), encoding="utf-8")
    return target


@pytest.mark.parametrize("token", [IMAGE_TOKEN, PROPRIO_TOKEN])
def test_a_tokenizer_without_the_special_tokens_is_refused(checkpoint, tmp_path, token):
    with pytest.raises(PromptError, match="lacks"):
        Prompt(load_tokenizer(copy_without(checkpoint, tmp_path, token)), image_tokens=4, cameras=2)


def test_a_tokenizer_that_adds_no_bos_is_refused(checkpoint, tmp_path):
    path = copy_without(checkpoint, tmp_path, "nothing")
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(PromptError, match="bos_token"):
        Prompt(load_tokenizer(path), image_tokens=4, cameras=2)


def test_a_chat_template_that_drops_the_images_is_refused(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    with pytest.raises(PromptError, match="image"):
        Prompt(tokenizer, image_tokens=4, cameras=2)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(PromptError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(PromptError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("sizes", [(0, 2), (4, 0)])
def test_no_images_are_refused(tokenizer, sizes):
    with pytest.raises(PromptError):
        Prompt(tokenizer, image_tokens=sizes[0], cameras=sizes[1])
