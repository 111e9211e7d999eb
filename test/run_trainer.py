"""A training run of its own process: `python run_trainer.py FOLDER CHANGES [smooth]`; test_trainer.py stops it, or starts it twice.

CHANGES: of CONFIG, as JSON. smooth: activations are not quantized.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from training import samples, tiny_model

from bitvla_ros.training import trainer
from bitvla_ros.training.processes import processes

CONFIG = trainer.TrainingConfig(steps=6, batch_size=4, learning_rate=1e-3, warmup=2, workers=0, save_every=2, validate_every=3)


def main() -> None:
    torch.set_num_threads(1)
    trainer.draw_curves = lambda log, picture: None  # costs more than these runs
    group, model = processes(), tiny_model(None if "smooth" in sys.argv else 8)
    trainer.Trainer(model, samples(), replace(CONFIG, **json.loads(sys.argv[2])), Path(sys.argv[1]), processes=group).run()
    group.finish()


if __name__ == "__main__":
    main()
