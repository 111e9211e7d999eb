"""The special tokens of BitVLA, and tokenizers for models that bring none of their own: bytes, and bytes with words for `nano`."""

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


# What is the same in every prompt (policy/prompt.py), each a single token.
_PHRASES = [
    "System: A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "User: ",
    "What action should the robot take to",
    "Assistant: ",
]

# Of instructions. They stand behind a space; at any other place, and whatever is not here, is spelled in bytes.
_WORDS = (
    "pick up put place stack push pull open close turn move lift take bring lay slide "
    "and it them the a an its both "
    "in into on onto at to of from off under above over between behind next near beside inside "
    "left right front back middle top bottom center upper lower first second "
    "red green blue yellow orange purple black white brown grey pink wooden small large "
    "block cube can ball box bowl plate basket mat mug cup bottle tray drawer cabinet table stove rack shelf door handle lid pan pot book"
)

BYTE_TOKENS: list[str] = [*_byte_characters(), *_SPECIAL]
"""The vocabulary of `byte_tokenizer`: a token's id is its index."""

NANO_TOKENS: list[str] = [*BYTE_TOKENS, *_PHRASES, *(_byte_characters()[ord(" ")] + word for word in _WORDS.split())]
"""The vocabulary of `nano_tokenizer`, which begins with the other's."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no download: ids 0-255 are bytes, the special tokens follow in the order of the released models."""
    return _tokenizer(BYTE_TOKENS[:256], phrases=[])


def nano_tokenizer() -> PreTrainedTokenizerFast:
    """`byte_tokenizer` with short prompts: what every prompt says, and the usual words of instructions, are single tokens.

    A prompt of bytes is four times as long as two pictures of `nano`. Any text has tokens, and decodes to itself.
    """
    return _tokenizer(NANO_TOKENS, phrases=_PHRASES)


def tokenizer_of(preset: str) -> PreTrainedTokenizerFast:
    """For a preset with random weights: `nano` has a tokenizer of its own, others take bytes."""
    return nano_tokenizer() if preset == "nano" else byte_tokenizer()


def _tokenizer(vocabulary: list[str], phrases: list[str]) -> PreTrainedTokenizerFast:
    """vocabulary: by their ids; special tokens that it lacks come behind it. phrases: of it, looked for before words are."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # A word of the vocabulary is taken whole (ignore_merges), others fall into bytes, as no merges lead anywhere.
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
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
