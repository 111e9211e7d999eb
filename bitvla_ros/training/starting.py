"""What training starts from: random weights of a preset, a checkpoint or a packed model; fitted to the dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..model import BitVLA, BitVLAConfig, CheckpointError, build, load_checkpoint, with_byte_tokenizer
from ..model.checkpoint import read_statistics, resolve
from ..model.discrete import HEAD
from ..model.packed import is_packed
from ..model.random_weights import draw
from ..model.token_additions import additions, converted
from ..model.tokenizer import IMAGE_PAD, PAD, PROPRIO_PAD, tokenizer_of
from ..model.unpacking import unpack_model
from ..policy.preprocessing import ImageRecipe
from ..policy.prompt import CHAT_TEMPLATE, load_tokenizer
from .precision import in_precision

RANDOM = "random:"
STATE_DIM = 8


def starting_model(
    start: str | Path, statistics: dict[str, Any], name: str, control_hz: float, *, seed: int = 0, full_precision: str | None = None
) -> tuple[BitVLA, Any]:
    """A model with gradients, in float32, and the tokenizer to save with it.

    start: `random:nano`, `random:3b`, a checkpoint's directory or a Hugging Face id, or a packed model's, whose master weights are drawn
    anew (`unpack_model`). statistics, name, control_hz: of the dataset, with which the model will be saved. seed: of what is drawn, also
    the heads that a base checkpoint does not have yet. full_precision: what is not to be ternary. Raises CheckpointError,
    PackedModelError and PromptError.
    """
    if str(start).startswith(RANDOM):
        preset = str(start).removeprefix(RANDOM)
        try:
            model = build(preset, seed=seed)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        tokenizer = tokenizer_of(preset)
        if preset != "nano":
            model.config = with_byte_tokenizer(model.config)
        tokenizer.chat_template = CHAT_TEMPLATE
    else:
        path = resolve(start)
        if is_packed(path):
            if full_precision is not None:
                raise CheckpointError(f"{path} is packed, nothing is left of its full precision: give the checkpoint it was packed from")
            model = unpack_model(path, seed=seed)
        else:
            model = load_checkpoint(path, norm_key=next(iter(read_statistics(path)), None))
        if not model.config.action_head:
            model = with_heads(model, seed)
        tokenizer = complete(load_tokenizer(path), model)
    if full_precision is not None:
        ternary = model.config.vision.ternary, model.config.language.ternary
        model = in_precision(
            model,
            vision=ternary[0] and full_precision not in ("vision", "all"),
            language=ternary[1] and full_precision not in ("language", "all"),
        )
    model.config = replace(model.config, control_hz=control_hz)
    model.norm_stats, model.norm_key = statistics, name
    return model.float().requires_grad_(True).train(), tokenizer


def image_recipe(model: BitVLA) -> ImageRecipe:
    """As the policy will prepare images."""
    if model.path is not None:
        return ImageRecipe.from_checkpoint(model.path)
    return ImageRecipe(image_size=model.config.vision.image_size)


def with_heads(base: BitVLA, seed: int) -> BitVLA:
    """A base checkpoint with an action head and a proprio projector of random weights."""
    config = base.config
    if config.discrete is not None:  # what says actions token by token becomes what says a chunk at once, as a base does without a key
        config = replace(config, discrete=None, attention=BitVLAConfig.attention, chunk=BitVLAConfig.chunk)
    model = BitVLA(replace(config, action_head=True, proprio_dim=config.proprio_dim or STATE_DIM))
    weights = {name: tensor for name, tensor in base.state_dict().items() if name != HEAD}
    for name, _, parts in draw(model, seed=seed, dtype=torch.float32):
        drawn = torch.cat(list(parts))
        weights.setdefault(name, drawn)
    model.load_state_dict(weights, assign=True)
    model.path = base.path
    return model


def complete(tokenizer: Any, model: BitVLA) -> Any:
    """The tokenizer of a base checkpoint as the reference fine-tunes it (model/token_additions.py); others stay as they are."""
    vocabulary = tokenizer.get_vocab()
    if IMAGE_PAD in vocabulary and PROPRIO_PAD in vocabulary:
        return tokenizer
    tokenizer = _converted(tokenizer)
    tokenizer.add_tokens(additions(model.config.proprio_token_id, model.config.language.vocab_size), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids([IMAGE_PAD, PROPRIO_PAD])
    if ids != [model.config.image_token_id, model.config.proprio_token_id]:
        raise CheckpointError(
            f"appending {IMAGE_PAD} and {PROPRIO_PAD} to the tokenizer in {model.path} gives them the ids {ids}, expected "
            f"{[model.config.image_token_id, model.config.proprio_token_id]}: run the reference's convert_ckpt.py on the checkpoint first"
        )
    return tokenizer


def _converted(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    changed = converted(content)
    if changed == content:
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(changed)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
    )
