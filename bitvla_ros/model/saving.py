"""Writing checkpoints in the layout of the BitVLA repository, for its loader and for ours (checkpoint.py)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..action_convention import KEY, ActionConvention
from .bitvla import BitVLA
from .checkpoint import EMBEDDING, PREFIXES, CheckpointError
from .checkpoint_files import read_config, stored_tensors
from .config import BitVLAConfig
from .layout import HEADS
from .safetensors_file import SafetensorsWriter

LM_HEAD = "language_model.lm_head.weight"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
OTHERS = ("preprocessor_config.json", "processor_config.json", "generation_config.json")


def save_checkpoint(
    model: BitVLA,
    folder: str | Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    tokenizer: Any = None,
    statistics: Mapping[str, Any] | None = None,
    cameras: Sequence[str] | None = None,
    convention: ActionConvention | None = None,
    step: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write the master weights and all that belongs to them; what stood in `folder` is replaced. Returns the folder's absolute path.

    weights: the model's state, where its own tensors are not whole in this process. tokenizer: a transformers tokenizer; None where
    the model comes from a checkpoint (model.path), whose files are taken over, as are the other files and keys of config.json that say
    nothing of weights. statistics: content of dataset_statistics.json, by default the model's own; cameras: roles in the order of
    training, and convention: what actions mean, by default the model's own. step: of training, in the names of the heads' files.
    dtype: of all weights but those of the proprio projector, which are float32, as in the reference. The unused output vocabulary is
    the old checkpoint's, or a copy of the embedding.
    Written under another name and then renamed. Raises CheckpointError.
    """
    if model.backend is not None:
        raise CheckpointError("a packed model has no master weights left to save: load the checkpoint that it was packed from")
    if model.config.discrete is not None:
        raise CheckpointError("a model that decodes actions token by token is not saved: load its checkpoint without norm_key to train it")
    source = model.path if tokenizer is None else None
    if tokenizer is None and (source is None or not (source / "tokenizer.json").is_file()):
        raise CheckpointError("a model with random weights has no tokenizer to save: give one")
    if statistics is None and model.norm_key is not None:
        statistics = {model.norm_key: model.norm_stats}
    folder = Path(folder).expanduser().absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            _write_weights(model, model.state_dict() if weights is None else weights, partial, step, dtype)
            if source is None:
                _write_tokenizer(tokenizer, partial)
            stated: dict[str, Any] = {KEY: (model.convention if convention is None else convention).to_json()}
            if (roles := model.cameras if cameras is None else cameras) is not None:
                stated["cameras"] = list(roles)
            _write_descriptions(model, partial, source, stated, dtype)
            if statistics is not None:
                _write_json(partial / "dataset_statistics.json", statistics)
            partial.chmod(0o755)
            _exchange(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}. What was there before is unharmed") from error
    return folder


def reference_name(name: str) -> str:
    """A tensor's name in BitVLA -> its name in the reference, heads with their prefix."""
    for theirs, ours in PREFIXES:
        if name.startswith(ours) and _belongs(name, theirs):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} is no tensor of BitVLA")


def _belongs(name: str, theirs: str) -> bool:
    """The vision tower's two prefixes in the reference are one in BitVLA."""
    return not theirs.startswith("vision_tower.") or name.startswith("vision.layers.") == theirs.endswith("encoder.")


# --- weights --------------------------------------------------------------------------------------------------------------


def _write_weights(model: BitVLA, weights: Mapping[str, Tensor], folder: Path, step: int, dtype: torch.dtype) -> None:
    tensors = {name: tensor.detach() for name, tensor in weights.items()}
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith(HEADS)}
    body = {reference_name(name): tensor for name, tensor in tensors.items() if name not in heads}
    body[LM_HEAD] = _lm_head(model, tensors[EMBEDDING])
    specs = {name: (dtype, tuple(tensor.shape)) for name, tensor in body.items()}
    with SafetensorsWriter(folder / "model.safetensors", specs, {"format": "pt"}) as file:
        for name, tensor in body.items():
            file.write(name, (part.to("cpu", dtype) for part in tensor.split(1 << 14)))
    for head, own in zip(HEADS, (dtype, torch.float32), strict=True):
        state = {
            reference_name(name).removeprefix(f"{head}."): tensor.to("cpu", own, copy=True)
            for name, tensor in heads.items()
            if name.startswith(head)
        }
        if state:
            torch.save(state, folder / f"{head}--{step}_checkpoint.pt")


def _lm_head(model: BitVLA, embedding: Tensor) -> Tensor:
    """Actions do not need it; the reference's loader expects it."""
    stored = None if model.path is None else stored_tensors(model.path).get(LM_HEAD)
    return embedding if stored is None or stored.shape != embedding.shape else stored


# --- descriptions ---------------------------------------------------------------------------------------------------------


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # In words that every version of transformers understands. The reference's, 4.51, stops at a list of extra_special_tokens.
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    extra = config.pop("extra_special_tokens", [])
    config |= {"additional_special_tokens": extra} if isinstance(extra, list) else {"extra_special_tokens": extra}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "LlavaProcessor", "chat_template": tokenizer.chat_template}
    _write_json(folder / "tokenizer_config.json", config)


def _write_descriptions(model: BitVLA, folder: Path, source: Path | None, stated: Mapping[str, Any], dtype: torch.dtype) -> None:
    taken = [] if source is None else [name for name in TOKENIZER + OTHERS if (source / name).is_file()]
    for name in taken:
        shutil.copyfile(source / name, folder / name)  # type: ignore[operator]
    raw = {} if source is None else read_config(source)
    special = _special_ids(folder, model.config)
    _write_json(folder / "config.json", {**_config(model.config, raw, special, dtype), **stated})
    size = model.config.vision.image_size
    images = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5] * 3,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }
    processor = {
        "image_token": "<|image_pad|>",
        "num_additional_image_tokens": 0,
        "patch_size": model.config.vision.patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "full",
    }
    for name, content in zip(OTHERS, (images, processor, special), strict=True):
        if name not in taken:
            _write_json(folder / name, content)


def _config(config: BitVLAConfig, raw: dict[str, Any], special: dict[str, int], dtype: torch.dtype) -> dict[str, Any]:
    """config.json: the reference's keys, and ours for what it has no words for: attention, chunk, control_hz; and those stated.

    Nor has it words for a language model in full precision (weight_bits, act_bits are ours): its own is ternary whatever stands there.
    """
    vision, language = dict(vars(config.vision)), dict(vars(config.language))
    vision_ternary, language_ternary = vision.pop("ternary"), language.pop("ternary")
    old_vision, old_text = dict(raw.get("vision_config", {})), dict(raw.get("text_config", {}))
    for key in ("vit_weight_bits", "vit_act_bits"):
        old_vision.pop(key, None)
    for key in ("weight_bits", "act_bits"):
        old_text.pop(key, None)
    vision |= {
        "model_type": "siglip_vision_model",
        "num_channels": 3,
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": False,
        **({"vit_weight_bits": 1, "vit_act_bits": 8} if vision_ternary else {}),
    }
    language |= {"model_type": "BitNet", **({} if language_ternary else {"weight_bits": 32, "act_bits": 32})}
    fresh_text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",  # the reference computes a squared ReLU whatever stands here
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "use_cache": True,
        **special,
    }
    fresh = {
        "image_token_index": config.image_token_id,
        "image_seq_length": config.vision.num_patches,
        "multimodal_projector_bias": True,
        "n_action_bins": 256,
        "norm_stats": None,
        "pad_token_id": special["pad_token_id"],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    return {
        **fresh,
        **raw,
        "architectures": ["BitVLAForActionPrediction"],
        "model_type": "bitvla",  # a base checkpoint may say llava
        "norm_stats": None,  # of older data, perhaps; dataset_statistics.json has what is valid
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vision_config": {**old_vision, **vision},
        "text_config": {**fresh_text, **old_text, **language},
        "vocab_size": config.language.vocab_size,
        "attention": config.attention,
        "chunk": config.chunk,
        **({} if config.control_hz is None else {"control_hz": config.control_hz}),
        **({"use_proprio": config.proprio_dim is not None} if config.action_head else {}),
    }


def _special_ids(folder: Path, config: BitVLAConfig) -> dict[str, int]:
    """Of the tokenizer that was just written; the end of the sequence is the model's own."""
    described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    by_text = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    ids = {"eos_token_id": config.stop_token_id}
    for name in ("bos_token", "pad_token"):
        token = described.get(name)
        text = token["content"] if isinstance(token, dict) else token
        ids[f"{name}_id"] = by_text.get(text, config.stop_token_id)
    return ids


# --- files ----------------------------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _exchange(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`, with everything on the disk before its name is."""
    for path in [*partial.iterdir(), partial]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    old = partial.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
