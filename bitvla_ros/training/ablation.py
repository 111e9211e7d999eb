"""One policy trained at several precisions, with the same data, seeds and steps: the arms of an ablation.

All arms of a training seed start from the same weights and see the same samples in the same order. Every arm has the same number of
optimizer steps behind it: where a ternary vision tower starts from a teacher, the teacher's steps count too. So the teacher is trained
for fewer steps than the full-precision arm, and what is left is the student's. Rounding costs no steps.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from ..model import BitVLA, BitVLAConfig, load_checkpoint
from ..model.packed import stored_shapes
from ..model.saving import save_checkpoint
from ..policy.prompt import load_tokenizer
from .dataset import Dataset
from .distillation import GAMMA, Distillation, make_student
from .objective import Objective, oft_objective
from .precision import in_precision
from .runs import CHECKPOINT, samples_of, train_on
from .starting import starting_model
from .trainer import TrainingConfig, fast_dtype, validate

TRAINED = "trained.json"  # in an arm's folder, once its checkpoint is final


@dataclass(frozen=True)
class Arm:
    """vision, language: whether they are ternary. origin: the arm whose trained weights it starts from, if any.

    gamma: only the vision tower trains, distilled from the origin's with this weight; None: everything trains on the task, or, with
    an origin, nothing: its weights are rounded.
    """

    name: str
    title: str
    vision: bool
    language: bool
    origin: str | None = None
    gamma: float | None = None


ARMS = (
    Arm("full", "full precision", False, False),
    Arm("language", "ternary language only", False, True),
    Arm("ternary", "ternary everything, from the start", True, True),
    Arm("plain", "ternary vision, plain training", True, True, "teacher", 0.0),
    Arm("distilled", "ternary vision, quantize-then-distill", True, True, "teacher", GAMMA),
    Arm("rounded", "rounded after training", True, True, "full"),
)
TEACHER = Arm("teacher", "teacher: ternary language only, fewer steps", False, True)


@dataclass(frozen=True)
class Recipe:
    """What all arms have in common. start: as `bitvla train` takes it. steps: of the optimizer, `batch_size` samples each. clip, augment,
    compile: see TrainingConfig and Samples."""

    dataset: Path
    start: str
    steps: int
    batch_size: int
    learning_rate: float
    clip: float | None = None
    augment: bool = True
    compile: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON."""
        numbers = {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate", "clip", "augment", "compile")}
        return {"dataset": self.data.name, "frames": len(self.data), "start": self.start, **numbers}

    @cached_property
    def data(self) -> Dataset:
        return Dataset(self.dataset, cameras=("scene", "wrist"))

    @property
    def suites(self) -> list[str]:
        """Those that were recorded, where the dataset says so."""
        return list(self.data.source.get("suites", ()))

    @property
    def render_size(self) -> int:
        """Edge of the pictures as they were rendered, pixels; by what the dataset says, else as they are kept."""
        return int(self.data.source.get("render_size", self.data.cameras["scene"][0]))


@dataclass(frozen=True)
class Trained:
    """steps: optimizer steps behind the checkpoint, its origin's included. seconds: of training, its origin's not included.

    action_error: of held-out episodes, see `validate`. bytes: of all weights, "packed" at two bits a ternary one, and "bf16"."""

    checkpoint: Path
    steps: int
    seconds: float
    action_error: dict[str, float]
    bytes: dict[str, int]


def student_steps(steps: int) -> int:
    """Of `steps`, those in which a student learns from its teacher. A third, as in the paper: 20k after 40k with a full-precision tower."""
    return max(1, steps // 3)


def own_steps(arm: Arm, steps: int) -> int:
    """Those that an arm trains for itself."""
    if arm.gamma is not None:
        return student_steps(steps)
    if arm.name == TEACHER.name:
        return steps - student_steps(steps)
    return steps if arm.origin is None else 0


def train_arm(arm: Arm, recipe: Recipe, seed: int, folder: Path) -> Trained:
    """Train an arm, and its origin before it, in folders of their names in `folder`. What is there already is kept or continued."""
    by_name = {other.name: other for other in (*ARMS, TEACHER)}
    origin = None if arm.origin is None else train_arm(by_name[arm.origin], recipe, seed, folder)
    output = folder / arm.name
    if not (output / TRAINED).exists():
        began = time.monotonic()
        if origin is None:
            model, tokenizer = starting_model(recipe.start, recipe.data.statistics, recipe.data.name, recipe.data.fps, seed=seed)
            _train(arm, in_precision(model, vision=arm.vision, language=arm.language), tokenizer, recipe, seed, output)
        else:
            teacher = load_checkpoint(origin.checkpoint)
            if arm.gamma is not None:
                _train(arm, make_student(teacher), load_tokenizer(origin.checkpoint), recipe, seed, output, teacher)
            else:
                save_checkpoint(in_precision(teacher, vision=arm.vision, language=arm.language), output / CHECKPOINT)
        _write(output / TRAINED, {"seconds": round(time.monotonic() - began, 1)})
    checkpoint = output / CHECKPOINT
    model = load_checkpoint(checkpoint)
    return Trained(
        checkpoint=checkpoint,
        steps=own_steps(arm, recipe.steps) + (0 if origin is None else origin.steps),
        seconds=json.loads((output / TRAINED).read_text())["seconds"],
        action_error=_action_error(model, recipe, seed),
        bytes=stored_bytes(model.config),
    )


def stored_bytes(config: BitVLAConfig) -> dict[str, int]:
    """Of all weights: "packed", ternary matrices at two bits and the rest in bfloat16, and "bf16", everything in it."""
    shapes, layers = stored_shapes(config, "2bit")
    rest = {name: prod(shape) for name, shape in shapes.items() if not name.endswith((".words", ".scale"))}
    words = sum(prod(shape) for name, shape in shapes.items() if name.endswith(".words"))
    masters = sum(rows * columns for rows, columns in layers.values())
    return {"packed": words + 4 * len(layers) + 2 * sum(rest.values()), "bf16": 2 * (masters + sum(rest.values()))}


def _train(arm: Arm, model: BitVLA, tokenizer: Any, recipe: Recipe, seed: int, output: Path, teacher: BitVLA | None = None) -> None:
    steps = own_steps(arm, recipe.steps)
    config = TrainingConfig(
        steps=steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup=steps // 20,
        clip=recipe.clip,
        compile=recipe.compile,
        dtype=fast_dtype(),
        validate_every=max(500, steps // 10),
    )
    objective: Objective = oft_objective if teacher is None else Distillation(teacher.vision, model.vision, arm.gamma or 0.0)
    settings = {"arm": arm.name, "start": recipe.start}
    train_on(recipe.data, model, tokenizer, config, output, seed=seed, augment=recipe.augment, objective=objective, settings=settings)


def _action_error(model: BitVLA, recipe: Recipe, seed: int) -> dict[str, float]:
    assert model.path is not None
    _, held_out = samples_of(recipe.data, model, load_tokenizer(model.path), seed)
    if held_out is None:
        raise ValueError(f"{recipe.dataset} has one episode: an ablation needs two, to hold one out")
    return validate(model, held_out)


def _write(file: Path, content: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(content))
    os.replace(partial, file)
