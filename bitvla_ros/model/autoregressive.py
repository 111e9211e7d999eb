"""A robot-pretrained base as a policy: seven action tokens, one after the other, become one action.

The sequence, P being the length of the prompt: positions 0 ... P-1 hold the prompt, each image `num_patches` tokens of it; position
P + s holds the token that was chosen at step s. Attention is causal, so the prompt is computed once, its keys and values are kept, and
every further step computes a single token. At each step the token is the likeliest of the `bins` action tokens, the last ids of the
vocabulary: no other row of the output vocabulary is read. Where another token were likelier still, as that which ends a text, the
action token is taken all the same; `foreign_tokens` counts these cases for who has the whole vocabulary at hand.

A token's number: with `bins` edges from -1 to 1, the last id of the vocabulary is the centre of the first of the bins - 1 intervals, the id
before it that of the second, and so on; the two lowest action ids share the last interval.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ternary.pack import PackedWeight
from .bitvla import BitVLA, Inputs, Prediction, _require_tokens, _rows_of
from .config import BitVLAConfig
from .language import KeyValueCache

PART = 1 << 9  # rows of the vocabulary that are read together


class AutoregressiveBitVLA(BitVLA):
    """A network whose actions are tokens. Prediction.action_hidden has the hidden states that chose them, in their order, and
    normalized_actions is float64 [1, action_dim], exactly the bins' centres.

    vocabulary: the whole output vocabulary, [vocab_size, hidden_size], to count foreign tokens, memory-mapped on the CPU; None where it is
    not at hand, as in packed models, which keep the action tokens' rows alone.
    """

    def __init__(self, config: BitVLAConfig) -> None:
        super().__init__(config)
        assert config.discrete is not None
        self.discrete = config.discrete
        self.token_head = nn.Linear(config.language.hidden_size, self.discrete.bins, bias=False)
        self.vocabulary: Tensor | None = None

    def prepare(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None, prompt_lengths: Tensor | None = None) -> Inputs:
        """As in BitVLA. Prompts of one batch have one length. `words` has the embeddings of all action tokens behind the prompt's."""
        self.check_inputs(pixel_values, input_ids, proprio)
        ids = input_ids.cpu()
        if prompt_lengths is not None and bool((prompt_lengths != ids.shape[1]).any()):
            raise ValueError(f"prompts of {prompt_lengths.tolist()} tokens: a model that decodes token by token needs one length a batch")
        is_image = (ids == self.config.image_token_id) | (ids == self.discrete.placeholder_id)
        _require_tokens(is_image, pixel_values.shape[1] * self.config.vision.num_patches, "image")
        table = self.language.embed_tokens
        actions = torch.arange(self.first_action_id, self.config.language.vocab_size)
        return Inputs(
            pixel_values=pixel_values,
            proprio=None,
            words=table(torch.cat([ids[~is_image], actions]).to(table.weight.device)),
            source=_rows_of(is_image, ~is_image),
            read=torch.full((len(ids), 1), ids.shape[1] - 1),
            padding=None,
        )

    def compute(self, inputs: Inputs) -> Prediction:
        """As in BitVLA: the choice of a token stays on the device, too."""
        embeddings = self.embed(inputs)
        action_embeddings = inputs.words[-self.discrete.bins :]
        mask, read = self.attention_mask(None, embeddings.shape[1]), inputs.read
        caches = [KeyValueCache() for _ in self.language.layers]
        hidden, chosen = [], []
        for _ in range(self.config.action_dim):
            state = self.language(embeddings, mask, read, caches)
            hidden.append(state)
            chosen.append(self.token_head(state).float().argmax(-1))
            embeddings, mask, read = F.embedding(chosen[-1], action_embeddings), None, torch.zeros_like(read)
        return Prediction(torch.cat(hidden, 1), bin_values(self.discrete.bins, inputs.words.device)[torch.cat(chosen, 1)][:, None])

    def foreign_tokens(self, action_hidden: Tensor) -> int | None:
        """At how many steps another token than an action's was the likeliest; None where the vocabulary is not at hand.

        action_hidden: [action_dim, hidden_size], of a prediction. It reads the whole vocabulary once.
        """
        if self.vocabulary is None:
            return None
        hidden = action_hidden.to(self.vocabulary.device)
        foreign, actions = self.vocabulary.tensor_split([self.first_action_id])
        highest = [F.linear(hidden, rows.to(hidden.dtype)).amax(-1) for rows in (*foreign.split(PART), actions)]
        return int((torch.stack(highest[:-1]).amax(0) > highest[-1]).sum())

    def set_packed(self, weights: dict[str, PackedWeight], backend: str = "auto", device: torch.device | str = "cpu") -> BitVLA:  # type: ignore[override]
        super().set_packed(weights, backend, device)
        self.token_head.to(self.device)
        if self.vocabulary is not None:
            self.vocabulary = self.vocabulary.to(self.device)
        return self

    @property
    def first_action_id(self) -> int:
        return self.config.language.vocab_size - self.discrete.bins


def network(config: BitVLAConfig) -> BitVLA:
    """The network that a configuration describes, without weights."""
    return BitVLA(config) if config.discrete is None else AutoregressiveBitVLA(config)


@cache
def bin_values(bins: int, device: torch.device) -> Tensor:
    """float64 [bins]: the numbers that the action tokens stand for, in the order of their ids."""
    edges = np.linspace(-1.0, 1.0, bins)
    centres = (edges[:-1] + edges[1:]) / 2.0
    return torch.from_numpy(centres[np.clip(bins - 1 - np.arange(bins), 0, bins - 2)]).to(device)
