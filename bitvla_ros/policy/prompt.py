"""An instruction becomes token ids, with the checkpoint's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .instruction import problem_of

IMAGE_TOKEN = "<|image_pad|>"
PROPRIO_TOKEN = "<proprio_pad>"
TURN_TOKEN = "<|eot_id|>"

SYSTEM = (
    "System: A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.<|eot_id|>"
)
# Installed by the reference's convert_ckpt.py; used where a tokenizer has no chat template of its own.
CHAT_TEMPLATE = SYSTEM + (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


class PromptError(ValueError):
    """A tokenizer that is not BitVLA's, or an instruction that cannot be put to the model."""


def load_tokenizer(path: Path | str) -> Any:
    """The tokenizer in the directory `path` (tokenizer.json), never from the network. Raises PromptError."""
    from transformers import PreTrainedTokenizerFast  # takes a second to import

    try:
        # Not AutoTokenizer: config.json's auto_map would make it ask for permission to run the checkpoint's code.
        return PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds, among them a bare Exception
        raise PromptError(
            f"no tokenizer can be read from {path} ({error}); expected tokenizer.json and tokenizer_config.json, fetch the checkpoint again"
        ) from error


class Prompt:
    """Call it with an instruction: int64 [P] token ids, ready for the network.

    BOS, system sentence, `User: `, `image_tokens` image tokens a camera, one proprioception token, the question, `Assistant: `.
    tokenizer: a transformers tokenizer (see `load_tokenizer`). image_tokens: patches of one image. cameras: how many images. kind: of
    model.config.PROMPTS. "user" is the above, the reference's fine-tuning prompt; "human", of robot-pretrained bases, says `Human: `, has
    a newline behind each image and no proprioception token.
    Raises PromptError for a tokenizer without BitVLA's special tokens.
    """

    def __init__(self, tokenizer: Any, *, image_tokens: int, cameras: int, kind: str = "user") -> None:
        if image_tokens < 1 or cameras < 1:
            raise PromptError(f"{cameras} cameras with {image_tokens} tokens each: both must be at least 1")
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (IMAGE_TOKEN, PROPRIO_TOKEN, TURN_TOKEN) if token not in vocabulary]
        if missing:
            raise PromptError(
                f"the tokenizer lacks {', '.join(missing)}; expected the tokenizer of a fine-tuned BitVLA checkpoint, "
                "which the reference's fine-tuning saves beside the weights"
            )
        if tokenizer.bos_token_id is None:
            raise PromptError("the tokenizer has no bos_token; expected <|begin_of_text|> in tokenizer_config.json")
        self.image_tokens = image_tokens
        self.cameras = cameras
        self.kind = kind
        self.image_token_id: int = vocabulary[IMAGE_TOKEN]
        self.proprio_token_id: int = vocabulary[PROPRIO_TOKEN]
        self._bos: int = tokenizer.bos_token_id
        self._tokenizer = tokenizer
        # Not the added tokens that are words, such as the phrases of nano's prompt: they may stand in an instruction.
        self._control = sorted({token.content.lower() for token in tokenizer.added_tokens_decoder.values() if token.special})
        self._template: str | None = None if tokenizer.chat_template else CHAT_TEMPLATE
        self._last: tuple[str, NDArray[np.int64]] | None = None
        self("check")  # the template and the post-processor too are refused here, not at the first instruction

    def text(self, instruction: str) -> str:
        """The prompt in words, with one image token a camera and without BOS, which the tokenizer adds.

        Lower case, as in training. White space around the instruction is dropped; no dataset has any.
        Raises PromptError for an instruction that is empty, too long, or holds a special token of the tokenizer, in any case.
        """
        task = instruction.strip().lower()
        problem = problem_of(instruction)
        control = next((token for token in self._control if token.strip() and token in task), "")
        if problem or control:
            raise PromptError(problem or f"the instruction holds {control!r}, a control token of the model; say it in words")
        if self.kind == "human":
            images = f"{IMAGE_TOKEN}\n" * self.cameras
            return f"{SYSTEM}Human: {images}What action should the robot take to {task}?{TURN_TOKEN}Assistant: "
        # "<image>\n" a camera in the datasets; the reference's substitution swallows the newline.
        content = IMAGE_TOKEN * self.cameras + PROPRIO_TOKEN + f"What action should the robot take to {task}?"
        messages = [{"role": "user", "content": content}]
        return str(self._tokenizer.apply_chat_template(messages, chat_template=self._template, tokenize=False, add_generation_prompt=True))

    def __call__(self, instruction: str) -> NDArray[np.int64]:
        """int64 [P], read-only. The last instruction's ids are kept."""
        if self._last is None or self._last[0] != instruction:
            self._last = instruction, self._tokenize(instruction)
        return self._last[1]

    def _tokenize(self, instruction: str) -> NDArray[np.int64]:
        ids = np.asarray(self._tokenizer(self.text(instruction))["input_ids"], np.int64)
        if ids.size == 0 or ids[0] != self._bos or (ids == self._bos).sum() != 1:
            raise PromptError(
                f"the prompt does not begin with the tokenizer's bos_token (id {self._bos}), or has it twice; "
                "tokenizer.json's post_processor puts it there, and the instruction must not contain it"
            )
        images, proprio = int((ids == self.image_token_id).sum()), int((ids == self.proprio_token_id).sum())
        expected = 1 if self.kind == "user" else 0
        if images != self.cameras or proprio != expected:
            raise PromptError(
                f"the prompt has {images} image and {proprio} proprioception tokens, expected {self.cameras} and {expected}; "
                f"the instruction must not contain {IMAGE_TOKEN} or {PROPRIO_TOKEN}, nor the chat template drop them: {instruction!r}"
            )
        ids = np.repeat(ids, np.where(ids == self.image_token_id, self.image_tokens, 1))
        ids.flags.writeable = False
        return ids
