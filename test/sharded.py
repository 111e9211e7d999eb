"""Training under FSDP, to be started in two processes: `python sharded.py FOLDER`; test_sharded_training.py looks at what it writes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from training import samples, tiny_model

from bitvla_ros.training import trainer as training_loop
from bitvla_ros.training.distillation import Distillation, make_student
from bitvla_ros.training.precision import in_precision
from bitvla_ros.training.processes import Processes, own, processes
from bitvla_ros.training.trainer import Trainer, TrainingConfig

ONE = TrainingConfig(
    steps=1, batch_size=4, learning_rate=1e-3, vision_learning_rate=1e-4, warmup=0, clip=0.1, workers=0, save_every=1, validate_every=1
)
LONG = replace(ONE, steps=4, batch_size=1, accumulate=2, save_every=2, checkpointing=True)


def train(
    folder: Path, config: TrainingConfig, bits: int | None = 8, *, group: Processes | None = None, save: Callable[[int], None] | None = None
) -> Trainer:
    validation = samples(seed=None, augment=False)
    trainer = Trainer(tiny_model(bits), samples(), config, folder, validation=validation, save=save, processes=group)
    trainer.run()
    return trainer


def distill(folder: Path, config: TrainingConfig, *, group: Processes | None = None) -> None:
    teacher = in_precision(tiny_model(None), vision=False, language=True)
    student = make_student(teacher)
    Trainer(student, samples(), config, folder, objective=Distillation(teacher.vision, student.vision), processes=group).run()


def main() -> None:
    folder, group = Path(sys.argv[1]), processes()
    torch.set_num_threads(1)
    training_loop.draw_curves = lambda log, picture: None  # costs more than these runs
    trainer = train(folder / "one", replace(ONE, batch_size=2), None, group=group)
    tensors = [*trainer.parameters.values(), *(state["exp_avg"] for state in trainer.optimizer.state.values())]
    share = sum(own(tensor).numel() for tensor in tensors) / sum(tensor.numel() for tensor in tensors)
    (folder / f"share-{group.rank}").write_text(str(share))
    distill(folder / "distilled", replace(ONE, batch_size=2), group=group)
    train(folder / "whole", LONG, group=group)

    def stop(step: int) -> None:
        if step == 2 and not group.first:  # the signal reaches one of them
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(folder / "stopped", LONG, group=group, save=stop)
    except KeyboardInterrupt as stopped:
        (folder / f"stopped-{group.rank}").write_text(str(stopped))
    train(folder / "stopped", LONG, group=group)
    group.finish()


if __name__ == "__main__":
    main()
