"""What a BitVLA is built from. The defaults are the published 3B model's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .tokenizer import END_OF_TEXT, IMAGE_PAD, NANO_TOKENS, PROPRIO_PAD

ATTENTIONS = ("bidirectional", "causal")
PROMPTS = ("human", "user")


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP-SO400M without its last layer and without a pooling head. ternary: the linear layers are W1.58-A8."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    ternary: bool = True

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"vision hidden_size {self.hidden_size} is not a multiple of its {self.num_attention_heads} heads")
        if self.image_size < self.patch_size:
            raise ValueError(f"vision image_size {self.image_size} is smaller than one patch ({self.patch_size})")

    @property
    def num_patches(self) -> int:
        """Tokens an image becomes."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class LanguageConfig:
    """BitNet b1.58 2B4T. ternary: the linear layers are W1.58-A8, as in every released model."""

    vocab_size: int = 128264
    hidden_size: int = 2560
    intermediate_size: int = 6912
    num_hidden_layers: int = 30
    num_attention_heads: int = 20
    num_key_value_heads: int = 5
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    ternary: bool = True

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(f"hidden_size {self.hidden_size} does not give {self.num_attention_heads} heads an even size")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"{self.num_attention_heads} heads are not a multiple of {self.num_key_value_heads} key-value heads")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class DiscreteActions:
    """Actions as tokens, one after the other, each number one of `bins` tokens: the last ids of the vocabulary.

    placeholder_id: stands for an image token in prompts, beside image_token_id (config.json's image_token_index); in the released base
    it is the id of an action token too, so it says nothing about tokens behind the prompt. prompt: of PROMPTS, see policy/prompt.py.
    """

    bins: int = 256
    placeholder_id: int = 128260
    prompt: str = "human"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"discrete actions of {self.bins} bins: at least 2 are needed")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt {self.prompt!r} is unknown: choose one of {', '.join(PROMPTS)}")


@dataclass(frozen=True)
class BitVLAConfig:
    """A whole model.

    chunk: actions a forward pass. proprio_dim: None for a model without proprioception. action_head: False for a base
    checkpoint, which has not been fine-tuned to act. discrete: how a robot-pretrained base acts all the same, token by token (see
    autoregressive.py): causal, one action at a time, without proprioception. attention: "bidirectional" (every token sees every token) or
    "causal". activation_bits: 8, or None without activation quantization. control_hz: rate the actions are meant for, None if unknown.
    *_token_id: where images and proprioception enter the prompt, and what ends the sequence.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    image_token_id: int = 128010
    proprio_token_id: int = 128011
    stop_token_id: int = 128001
    chunk: int = 8
    action_dim: int = 7
    proprio_dim: int | None = 8
    action_head: bool = True
    attention: str = "bidirectional"
    activation_bits: int | None = 8
    control_hz: float | None = None
    discrete: DiscreteActions | None = None

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.discrete is not None:
            self._check_discrete(self.discrete)
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention {self.attention!r} is unknown: choose one of {', '.join(ATTENTIONS)}")
        if self.activation_bits not in (8, None):
            raise ValueError(f"activation_bits {self.activation_bits} is not supported: choose 8 or None")
        for name in ("image_token_id", "proprio_token_id", "stop_token_id"):
            if not 0 <= getattr(self, name) < self.language.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is not in the vocabulary of {self.language.vocab_size} tokens")

    @property
    def action_tokens(self) -> int:
        """Tokens of a chunk, one for each number."""
        return self.chunk * self.action_dim

    @property
    def appended_tokens(self) -> int:
        """Tokens that the language model computes behind the prompt: placeholders and the stop token, or all action tokens but the last."""
        return self.action_tokens + 1 if self.discrete is None else self.action_tokens - 1

    @property
    def usual_cameras(self) -> tuple[str, ...]:
        """Roles, where neither the files nor anybody says: LIBERO's two of a fine-tuned model, one of a robot-pretrained base."""
        return ("scene", "wrist") if self.discrete is None else ("scene",)

    @property
    def acts(self) -> bool:
        """Whether the model gives actions; a base that is there to be trained does not."""
        return self.action_head or self.discrete is not None

    def _check_discrete(self, discrete: DiscreteActions) -> None:
        if self.attention != "causal":
            raise ValueError(f"attention is {self.attention!r}: a model that decodes actions token by token is causal")
        if self.chunk != 1:
            raise ValueError(f"chunk is {self.chunk}: a model that decodes actions token by token gives one at a time")
        if self.action_head or self.proprio_dim is not None:
            raise ValueError("a model that decodes actions token by token has neither an action head nor proprioception")
        if discrete.bins > self.language.vocab_size:
            raise ValueError(f"{discrete.bins} action tokens in a vocabulary of {self.language.vocab_size}")


def described(config: BitVLAConfig) -> dict[str, Any]:
    """As JSON, for files and hashes; without `discrete` where it is None, as older files are."""
    parts = asdict(config)
    if config.discrete is None:
        del parts["discrete"]
    return parts


def from_description(description: dict[str, Any]) -> BitVLAConfig:
    """The inverse of `described`. Raises KeyError, TypeError and ValueError."""
    kinds = {"vision": VisionConfig, "language": LanguageConfig, "discrete": DiscreteActions}
    return BitVLAConfig(**{name: kinds[name](**value) if name in kinds else value for name, value in description.items()})


def preset(name: str, *, activation_bits: int | None = 8) -> BitVLAConfig:
    """`3b`: the published sizes. `nano`: the same network in two and a half million parameters, which two CPU cores can train."""
    if name == "3b":
        return BitVLAConfig(activation_bits=activation_bits, control_hz=20.0)
    if name == "nano":
        return BitVLAConfig(
            vision=VisionConfig(
                hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=16
            ),
            language=LanguageConfig(
                vocab_size=len(NANO_TOKENS),
                hidden_size=192,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                rope_theta=1000.0,  # sequences are short: about 180 tokens
            ),
            image_token_id=NANO_TOKENS.index(IMAGE_PAD),
            proprio_token_id=NANO_TOKENS.index(PROPRIO_PAD),
            stop_token_id=NANO_TOKENS.index(END_OF_TEXT),
            activation_bits=activation_bits,
            control_hz=20.0,
        )
    raise ValueError(f"no preset {name!r}: choose 3b or nano")


def _require_positive(config: object) -> None:
    for name, value in vars(config).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.endswith("_id") and not value > 0:
            raise ValueError(f"{type(config).__name__}.{name} is {value}: it must be positive")
