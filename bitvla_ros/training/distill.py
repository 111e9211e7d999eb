"""The verb `distill`: quantize-then-distill of a teacher's vision tower (distillation.py)."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from .finetuning import add_training_arguments, prepare_threads, training_config

EXAMPLES = """\
  bitvla train random:nano --full-precision vision --dataset demos --output teacher --steps 10000
  bitvla distill teacher/checkpoint --dataset demos --output student --steps 5000
The same command again goes on where a run was stopped or killed. student/checkpoint is what bitvla eval and bitvla pack take;
student/log.csv has the loss of the task and the distance of the hidden states, step by step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", help="a checkpoint whose vision tower is in full precision: its folder or Hugging Face id")
    parser.add_argument("--dataset", required=True, nargs="+", metavar="DIR", help="demonstrations, best the teacher's")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run: checkpoint/, log.csv, curves.png, state")
    parser.add_argument("--cameras", nargs="+", default=("scene", "wrist"), metavar="ROLE", help="in order (default: scene wrist)")
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    prepare_threads(arguments.threads)

    from ..model import load_checkpoint
    from ..model.checkpoint import resolve
    from ..model.packed import is_packed
    from ..policy.prompt import load_tokenizer
    from ..stated import agreed
    from .distillation import GAMMA, Distillation, DistillationError, make_student
    from .joined import open_datasets
    from .log import read
    from .runs import train_on

    path = resolve(arguments.teacher)
    if is_packed(path):
        raise DistillationError(f"{path} is packed, without weights to start from: give the checkpoint that it was packed from")
    dataset = open_datasets(arguments.dataset, arguments.cameras)
    teacher = load_checkpoint(path)
    own = path / "config.json"
    rate = agreed("the dataset's rate", dataset.fps, teacher.config.control_hz, own, "give the teacher demonstrations of its own rate")
    agreed("--cameras", tuple(dataset.cameras), teacher.cameras, own)
    teacher.config = replace(teacher.config, control_hz=rate)
    if not teacher.config.action_head:
        raise DistillationError(f"{path} is a base checkpoint, which cannot act yet: fine-tune it first (bitvla train)")
    student = make_student(teacher)
    output = Path(arguments.output).expanduser()
    result = train_on(
        dataset,
        student,
        load_tokenizer(path),
        training_config(arguments),
        output,
        seed=arguments.seed,
        augment=not arguments.no_augmentation,
        failures=arguments.failures,
        objective=Distillation(teacher.vision, student.vision),
        settings={"teacher": teacher.model_hash, "gamma": GAMMA},
    )
    last = read(output / "log.csv")[-1]
    return result | {name: float(last[name]) for name in ("task", "hidden")}


def show(result: dict[str, Any]) -> None:
    from .runs import show_episodes

    show_episodes(result)
    words = {"loss": "loss", "task": "of the task", "hidden": "hidden states apart", "validation_l1": "validation l1"}
    for name, text in words.items():
        if result.get(name) is not None:
            print(f"  {text:24} {result[name]:.4f}")
    print(f"checkpoint: {result['checkpoint']}; curves: {result['output']}/curves.png")
