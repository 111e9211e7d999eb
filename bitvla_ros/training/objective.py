"""What fine-tuning minimises: the L1 distance of a whole chunk, predicted in parallel (OpenVLA-OFT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Batch:
    """pixel_values: float [B, n, 3, H, W], in [-1, 1]. input_ids: int [B, P], prompts alone, padded on the right.
    prompt_lengths: int [B], or None where no prompt is padded. proprio: float [B, D] normalised, or None.
    actions: float [B, chunk, action_dim], normalised."""

    pixel_values: Tensor
    input_ids: Tensor
    prompt_lengths: Tensor | None
    proprio: Tensor | None
    actions: Tensor


# Called with a BitVLA, or with what wraps one in several processes, and a batch: the loss, and further numbers to log beside it.
Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]


def oft_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean absolute error of the normalised actions, a float32 scalar."""
    prediction = predict(model, batch)
    return F.l1_loss(prediction, batch.actions.float().to(prediction.device))


def oft_objective(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return oft_loss(model, batch), {}


@torch.no_grad()
def action_errors(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Mean absolute errors of the normalised actions, float32 scalars: of all (`l1`), and of each kind of number."""
    prediction = predict(model, batch)
    error = (prediction - batch.actions.float().to(prediction.device)).abs()
    parts = {"translation": error[..., :3], "rotation": error[..., 3:6], "gripper": error[..., 6:]}
    return {"l1": error.mean()} | {name: part.mean() for name, part in parts.items()}


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Normalised actions, float32 [B, chunk, action_dim]."""
    actions: Tensor = model(batch.pixel_values, batch.input_ids, batch.proprio, batch.prompt_lengths).normalized_actions
    return actions.float()
