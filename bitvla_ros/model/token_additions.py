"""What the reference does to the tokenizer of a vision-language base before it is fine-tuned, in memory.

Its convert_ckpt.py drops the tokens behind <|eot_id|>, which the Llama 3 tokenizer reserves, and makes the one behind <|end_of_text|> the
padding; its fine-tuning then appends image, proprioception and action tokens, as many as the vocabulary has rows for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tokenizer import END_OF_TEXT, END_OF_TURN, IMAGE_PAD, PAD, PROPRIO_PAD

BINS = 256  # action tokens at most


def converted(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer.json without what convert_ckpt.py drops; unchanged where it has additions already, or no <|eot_id|>."""
    added = tokenizer.get("added_tokens") or []
    ids = {token["content"]: token["id"] for token in added}
    if END_OF_TURN not in ids or any(text in (IMAGE_PAD, PROPRIO_PAD) or text.startswith("<action_") for text in ids):
        return dict(tokenizer)
    kept = [dict(token) for token in added if token["id"] <= ids[END_OF_TURN]]
    if PAD not in ids and END_OF_TEXT in ids:
        kept = [token | {"content": PAD} if token["id"] == ids[END_OF_TEXT] + 1 else token for token in kept]
    return dict(tokenizer) | {"added_tokens": kept}


def following_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Of a converted tokenizer.json: the ids that image and proprioception tokens get when they are appended; none where <|eot_id|> is
    not its last token."""
    ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    if not ids or END_OF_TURN not in ids or ids[END_OF_TURN] != max(ids.values()):
        return {}
    return {IMAGE_PAD: ids[END_OF_TURN] + 1, PROPRIO_PAD: ids[END_OF_TURN] + 2}


def additions(proprio_token_id: int, vocab_size: int) -> list[str]:
    """The tokens to append, in their order."""
    bins = max(0, min(BINS, vocab_size - proprio_token_id - 1))
    return [IMAGE_PAD, PROPRIO_PAD, *(f"<action_{i}>" for i in range(bins))]
