"""What fine-tuning minimises: the L1 distance of a whole chunk, predicted in parallel (OpenVLA-OFT)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..model import BitVLA


@dataclass(frozen=True)
class Batch:
    """pixel_values: float [B, n, 3, H, W], in [-1, 1]. input_ids: int [B, P], prompts alone, padded on the right.
    prompt_lengths: int [B]. proprio: float [B, D] normalised, or None. actions: float [B, chunk, action_dim], normalised."""

    pixel_values: Tensor
    input_ids: Tensor
    prompt_lengths: Tensor
    proprio: Tensor | None
    actions: Tensor


def oft_loss(model: BitVLA, batch: Batch) -> Tensor:
    """Mean absolute error of the normalised actions, a float32 scalar."""
    prediction = model(batch.pixel_values, batch.input_ids, batch.proprio, batch.prompt_lengths)
    return F.l1_loss(prediction.normalized_actions.float(), batch.actions.float())
