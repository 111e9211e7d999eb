"""BitVLA: images, an instruction and the robot's state in, a chunk of actions out, in one forward pass.

The sequence that the language model sees, P being the length of the prompt:

    0 ... P-1          the prompt; each image is `num_patches` image tokens in it, proprioception is one token
    P ... P+55         one placeholder for each number of the chunk (8 actions x 7), embedded as zeros
    P+56               the stop token

The hidden states of positions P-1 ... P+54 become the actions: as in next-token prediction, a position speaks for the one
that follows it. arXiv 2506.07530, sections III and IV.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ternary import TernaryLinear
from .config import BitVLAConfig
from .heads import ActionHead, Connector, ProprioProjector
from .language import LanguageModel
from .vision import VisionTower


class Prediction(NamedTuple):
    """action_hidden: [chunk * action_dim, hidden_size]. normalized_actions: [chunk, action_dim], in the units of the dataset's
    statistics. A batch has one more dimension in front."""

    action_hidden: Tensor
    normalized_actions: Tensor


class BitVLA(nn.Module):
    """The network. `load_checkpoint` and `build` make one that has weights.

    norm_stats: {"action": ..., "proprio": ...}, the dataset statistics under norm_key; None where a model has none.
    path: the directory the weights came from, which holds the tokenizer too; None for random weights.
    model_hash: identifies configuration and stored weights.
    """

    def __init__(self, config: BitVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_stats: dict[str, Any] | None = None
        self.norm_key: str | None = None
        self.path: Path | None = None
        self.model_hash = ""

        hidden_size = config.language.hidden_size
        self.vision = VisionTower(config.vision, config.activation_bits)
        self.connector = Connector(config.vision.hidden_size, hidden_size)
        self.language = LanguageModel(config.language, config.activation_bits)
        self.proprio_projector = ProprioProjector(config.proprio_dim, hidden_size) if config.proprio_dim else None
        self.action_head = ActionHead(config.action_dim, hidden_size) if config.action_head else None

    @torch.inference_mode()
    def predict(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None) -> Prediction:
        """One chunk for one observation.

        pixel_values: float [n, 3, image_size, image_size], n cameras in the order of training, scaled to [-1, 1].
        input_ids: int [P], the tokenized prompt, with one image token for each patch of each image.
        proprio: float [proprio_dim], already normalised; None for a model without proprioception.
        """
        device = self.connector.linear_1.weight.device
        batch = self(
            pixel_values[None].to(device),
            input_ids[None].to(device),
            None if proprio is None else proprio[None].to(device),
        )
        return Prediction(batch.action_hidden[0], batch.normalized_actions[0])

    def forward(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None, prompt_lengths: Tensor | None = None) -> Prediction:
        """A batch, for training too: [B, n, 3, H, W], [B, P], [B, proprio_dim] or None.

        prompt_lengths: int [B]; `input_ids` beyond a prompt's length are padding, which nothing sees. None: no padding.
        """
        self._check_inputs(pixel_values, input_ids, proprio)
        longest, actions = input_ids.shape[1], self.config.action_tokens
        lengths = input_ids.new_full(input_ids.shape[:1], longest) if prompt_lengths is None else prompt_lengths.to(input_ids.device)
        start, stop = lengths[:, None], lengths[:, None] + actions
        position = torch.arange(longest + actions + 1, device=input_ids.device)

        ids = F.pad(input_ids, (0, actions + 1)).masked_fill(position >= start, self.config.stop_token_id)
        embeddings = self.embed(pixel_values, ids, proprio)
        embeddings = embeddings.masked_fill(((start <= position) & (position < stop))[..., None], 0)
        mask = self.attention_mask(None if prompt_lengths is None else position > stop, len(position))
        hidden = self.language(embeddings, mask)

        read = self.read_positions(lengths)[..., None].expand(-1, -1, hidden.shape[-1])
        action_hidden = hidden.gather(1, read)
        assert self.action_head is not None
        return Prediction(action_hidden, self.action_head(action_hidden.unflatten(1, (self.config.chunk, -1)).flatten(2)))

    def embed(self, pixel_values: Tensor, ids: Tensor, proprio: Tensor | None) -> Tensor:
        """[B, n, 3, H, W], [B, S], [B, proprio_dim] or None -> [B, S, hidden_size]: images and state in the places of their tokens."""
        dtype = self.connector.linear_1.weight.dtype
        embeddings = self.language.embed_tokens(ids).to(dtype)
        images = self.connector(self.vision(pixel_values.flatten(0, 1).to(dtype)))
        embeddings = _fill(embeddings, ids == self.config.image_token_id, images, "image", pixel_values.shape[1] * images.shape[1])
        if self.proprio_projector is not None:
            assert proprio is not None
            state = self.proprio_projector(proprio.to(dtype))
            embeddings = _fill(embeddings, ids == self.config.proprio_token_id, state, "proprioception", 1)
        return embeddings

    def read_positions(self, prompt_lengths: Tensor) -> Tensor:
        """int [B, action_tokens]: where the hidden states of the actions are read, from the prompt's last token on."""
        return prompt_lengths[:, None] - 1 + torch.arange(self.config.action_tokens, device=prompt_lengths.device)

    def attention_mask(self, is_padding: Tensor | None, length: int) -> Tensor | None:
        """bool, True where a row sees a column; None where every token sees every token. is_padding: bool [B, length] or None."""
        mask = None if is_padding is None else ~is_padding[:, None, None, :]
        if self.config.attention == "bidirectional":
            return mask
        causal = torch.ones(length, length, dtype=torch.bool, device=self.connector.linear_1.weight.device).tril()
        return causal if mask is None else causal & mask

    def freeze(self) -> BitVLA:
        """Quantize every ternary weight once and for all: faster, the same numbers, no further training. Returns the model."""
        for layer in self._ternary_layers():
            layer.freeze()
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> BitVLA:
        if mode and any(layer.weight is None for layer in self._ternary_layers()):
            raise RuntimeError("a frozen model has no master weights left to train: load the checkpoint again")
        return super().train(mode)

    def _ternary_layers(self) -> list[TernaryLinear]:
        return [module for module in self.modules() if isinstance(module, TernaryLinear)]

    def _check_inputs(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None) -> None:
        if self.action_head is None:
            raise ValueError(
                "this is a base checkpoint without an action head, so it cannot act: load a fine-tuned one "
                "(it has action_head--*_checkpoint.pt beside model.safetensors)"
            )
        size = self.config.vision.image_size
        if pixel_values.shape[2:] != (3, size, size):
            raise ValueError(f"pixel_values {list(pixel_values.shape[1:])}: expected [cameras, 3, {size}, {size}]")
        if (proprio is None) != (self.proprio_projector is None):
            expected = f"[{self.config.proprio_dim}] numbers" if proprio is None else "None, as this model has no proprioception"
            raise ValueError(f"proprio is {'missing' if proprio is None else 'given'}: expected {expected}")
        if proprio is not None and proprio.shape[1:] != (self.config.proprio_dim,):
            raise ValueError(f"proprio {list(proprio.shape[1:])}: expected [{self.config.proprio_dim}]")


def _fill(embeddings: Tensor, where: Tensor, values: Tensor, what: str, expected: int) -> Tensor:
    """Put `values` [..., H], in order, at the positions `where` [B, S] of `embeddings` [B, S, H], `expected` in each row."""
    found = where.sum(1)
    if bool((found != expected).any()):
        raise ValueError(f"the prompt has {found.tolist()} {what} tokens: expected {expected} in each")
    return embeddings.masked_scatter(where[..., None], values)
