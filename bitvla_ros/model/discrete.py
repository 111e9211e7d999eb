"""What a robot-pretrained base needs beside other checkpoints, to act token by token: which of its tokens are actions, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..stated import agreed
from .config import BitVLAConfig, DiscreteActions

BINS = 256
HEAD = "token_head.weight"


def discrete_actions(
    path: Path, raw: Mapping[str, Any], tokenizer: Mapping[str, Any], norm_key: str | None, prompt: str | None
) -> DiscreteActions | None:
    """How a base without an action head acts; None where it does not: norm_key is none of its config.json's norm_stats.

    raw, tokenizer: config.json and tokenizer.json in `path`. Raises KeyError, TypeError, ValueError and Contradiction.
    """
    statistics = raw.get("norm_stats") or {}
    if not isinstance(statistics, dict):
        raise ValueError(f"norm_stats is {statistics!r:.80}: expected an object with the statistics of each dataset")
    if norm_key is None or not {norm_key, f"{norm_key}_no_noops"} & statistics.keys():
        return None
    bins, vocabulary = raw.get("n_action_bins") or BINS, raw["text_config"]["vocab_size"]
    named = action_ids(tokenizer)
    if named and named != list(range(vocabulary - bins, vocabulary)):
        raise ValueError(
            f"tokenizer.json has {len(named)} action tokens with ids {named[0]} to {named[-1]}: expected {bins}, the last of the "
            f"vocabulary of {vocabulary}. A fine-tuned checkpoint needs its action_head--*_checkpoint.pt to act"
        )
    return DiscreteActions(
        bins=bins,
        placeholder_id=raw.get("image_token_index") or DiscreteActions.placeholder_id,
        prompt=agreed("prompt", prompt, raw.get("prompt"), path / "config.json") or DiscreteActions.prompt,
    )


def action_ids(tokenizer: Mapping[str, Any]) -> list[int]:
    """The ids of <action_0>, <action_1> ... in a tokenizer.json, as far as it has them."""
    by_text = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    return [by_text[f"<action_{i}>"] for i in range(len(by_text)) if f"<action_{i}>" in by_text]


def token_head(path: Path, vocabulary: Tensor | None, config: BitVLAConfig) -> dict[str, Tensor]:
    """The action tokens' rows of the output vocabulary, under their name in AutoregressiveBitVLA. None: it is missing, which is said
    with all other tensors. Raises ValueError for a vocabulary of another shape."""
    assert config.discrete is not None
    if vocabulary is None:
        return {}
    expected = config.language.vocab_size, config.language.hidden_size
    if tuple(vocabulary.shape) != expected:
        raise ValueError(f"the output vocabulary in {path} has shape {list(vocabulary.shape)}: by config.json it must be {list(expected)}")
    return {HEAD: vocabulary[-config.discrete.bins :].clone()}
