"""The special tokens of BitVLA, and a byte-level tokenizer for models that bring none of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|pad|>"
END_OF_TURN = "<|eot_id|>"
IMAGE_PAD = "<|image_pad|>"
PROPRIO_PAD = "<proprio_pad>"
ACTION_BINS = 252

# Of the released models: the Llama 3 vocabulary, then what BitVLA appends to it.
DOCUMENTED_IDS = {
    BEGIN_OF_TEXT: 128000,
    END_OF_TEXT: 128001,
    PAD: 128002,
    END_OF_TURN: 128009,
    IMAGE_PAD: 128010,
    PROPRIO_PAD: 128011,
}

_SPECIAL = [BEGIN_OF_TEXT, END_OF_TEXT, PAD, END_OF_TURN, IMAGE_PAD, PROPRIO_PAD, *(f"<action_{i}>" for i in range(ACTION_BINS))]


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level tokenizers (GPT-2's table), in the order of the bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), ord("\u00ff") + 1)}
    substitutes = iter(range(256, 512))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


BYTE_TOKENS: list[str] = [*_byte_characters(), *_SPECIAL]
"""The vocabulary of `byte_tokenizer`: a token's id is its index."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no download: ids 0-255 are bytes, the special tokens follow in the order of the released models."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(BYTE_TOKENS[:256])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A", special_tokens=[(BEGIN_OF_TEXT, BYTE_TOKENS.index(BEGIN_OF_TEXT))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
