"""A tiny robot-pretrained base, from vectors made by running the reference (data/bitvla_tiny_base), and what people have of that kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from checkpoints import edit
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitvla_ros.policy.preprocessing import ImageRecipe

FOLDER = Path(__file__).parent / "data" / "bitvla_tiny_base"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())
VECTORS: dict[str, Tensor] = load_file(FOLDER / "vectors.safetensors")
EMBEDDING, LM_HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
FIRST_ACTION = 268
NOT_OF_A_CHECKPOINT = ("cases.json", "vectors.safetensors", "README.md")


def copy_base(folder: Path, **changes: object) -> Path:
    """The checkpoint, untied, in a new folder. changes: of config.json."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns(*NOT_OF_A_CHECKPOINT))
    edit(folder / "config.json", **changes)
    return folder


def copy_tied(folder: Path) -> Path:
    """The reference's tied one: no lm_head, no word of it in config.json, and smaller embeddings of what is no action."""
    copy_base(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[LM_HEAD]
    tensors[EMBEDDING][:FIRST_ACTION] = (tensors[EMBEDDING][:FIRST_ACTION].float() * 0.6).bfloat16()
    retensor(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def imitate_released(folder: Path) -> Path:
    """As lxsy/bitvla-bf16 is laid out: one model.safetensors, an untied head, statistics of 27 datasets in config.json."""
    known = json.loads((FOLDER / "config.json").read_text())["norm_stats"]
    names = [*known, *(f"dataset_{i}" for i in range(27 - len(known)))]
    return copy_base(folder, norm_stats={name: known.get(name, known["bridge_orig"]) for name in names})


def retensor(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "new")
    (folder / "new").rename(folder / "model.safetensors")  # what is mapped must not be overwritten


def inputs(case: int) -> tuple[Tensor, Tensor, None]:
    """As `predict` takes them."""
    image = VECTORS[f"image{CASES[case]['image']}"].numpy()
    return torch.from_numpy(ImageRecipe.from_base(FOLDER)(image))[None], VECTORS[f"case{case}.input_ids"].long(), None


def expected(case: int, variant: str, name: str) -> Tensor:
    return VECTORS[f"case{case}.{variant}.{name}"]


def imitate_raw(folder: Path) -> Path:
    """As hongyuw/bitvla-bitsiglipL-224px-bf16 is laid out, before the reference's convert_ckpt.py: reserved tokens where padding, images,
    proprioception and actions go, no vocab_size at the top of config.json, and no statistics."""
    copy_base(folder, model_type="llava", architectures=["LlavaForConditionalGeneration"])
    config = json.loads((folder / "config.json").read_text())
    for key in ("vocab_size", "norm_stats", "n_action_bins", "auto_map"):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kept = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    number = 0
    for token in tokenizer["added_tokens"]:
        if token["content"] not in kept:
            token["content"], number = f"<|reserved_special_token_{number}|>", number + 1
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": kept[0], "eos_token": kept[1], "model_max_length": 4096}
    described["chat_template"] = "{% for message in messages %}{{ message }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": kept[0], "eos_token": kept[1]}))
    return folder
