"""Quantize-then-distill: a ternary vision tower learns from the full-precision one that it replaces (arXiv 2506.07530, section III).

The student's weights start as the teacher's. Only its vision tower trains; the rest of the network, in which it replaces the teacher's,
is frozen. The loss is that of the task plus GAMMA times the distance between the hidden states of the two towers. The paper trains on
answer tokens of a language model; here the task is to act, and its loss the L1 distance of action chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model import BitVLA
from ..model.vision import VisionTower
from .objective import Batch, oft_loss
from .precision import in_precision

GAMMA = 0.1  # arXiv 2506.07530


class DistillationError(ValueError):
    """A model that no student can learn from."""


def make_student(teacher: BitVLA) -> BitVLA:
    """A copy of the teacher with a ternary vision tower, in which nothing else trains. Raises DistillationError."""
    if teacher.config.vision.ternary:
        raise DistillationError(
            "the teacher's vision tower is ternary already; expected one in full precision: a checkpoint whose config.json has no "
            "vit_weight_bits under vision_config (train one with: bitvla train --full-precision vision)"
        )
    student = in_precision(teacher, vision=True, language=teacher.config.language.ternary)
    student.requires_grad_(False)
    student.vision.requires_grad_(True)
    return student


def hidden_error(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """L_aux: the mean over layers of the mean squared difference of hidden states, a float32 scalar.

    teacher, student: float [N, num_patches, hidden_size], one for each layer of the towers.
    """
    if len(teacher) != len(student) or not teacher:
        raise ValueError(f"hidden states of {len(teacher)} and {len(student)} layers: expected those of two equal towers")
    return torch.stack([(t.float() - s.float()).square().mean() for t, s in zip(teacher, student, strict=True)]).mean()


class Distillation:
    """The objective of distillation (see `Objective`): call it with the student and a batch; its further numbers are "task" and "hidden".

    teacher: the tower to imitate, in full precision; it is frozen. student: the vision tower of the model that is trained, which
    may be wrapped by then: its hidden states are taken in the one forward pass of the task. The teacher follows it to its device.
    """

    def __init__(self, teacher: VisionTower, student: VisionTower, gamma: float = GAMMA) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = student
        self.gamma = gamma

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self.student.recording() as actual:
            task = oft_loss(model, batch)
        weight = self.teacher.to(actual[0].device).patch_embedding.weight
        with self.teacher.recording() as expected, torch.no_grad():
            self.teacher(batch.pixel_values.flatten(0, 1).to(weight))
        hidden = hidden_error(expected, actual)
        return task + self.gamma * hidden, {"task": task.detach(), "hidden": hidden.detach()}
