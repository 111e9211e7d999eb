"""A run of training: a model, a dataset and a configuration become a checkpoint in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model import BitVLA
from ..model.saving import save_checkpoint
from ..policy.normalization import Statistics
from ..policy.prompt import Prompt
from .dataset import Dataset, DatasetError
from .joined import JoinedDataset
from .objective import Objective, oft_objective
from .processes import processes
from .samples import Samples, split_episodes
from .starting import image_recipe
from .trainer import Trainer, TrainingConfig

CHECKPOINT = "checkpoint"  # in a run's folder
VALIDATION_SHARE = 0.05  # of the episodes


def samples_of(
    dataset: Dataset | JoinedDataset,
    model: BitVLA,
    tokenizer: Any,
    seed: int,
    augment: bool = True,
    approach: bool = False,
    failures: bool = False,
) -> tuple[Samples, Samples | None]:
    """Samples to train on, and of the episodes that are held out (None where there is one episode in all).

    Numbers are normalised by the model's statistics. seed: chooses what is held out, and decides order and augmentation.
    augment, approach: what is trained on. failures: episodes that failed too. Raises DatasetError where nothing is left."""
    config = model.config
    shared: dict[str, Any] = {
        "recipe": image_recipe(model),
        "prompt": Prompt(tokenizer, image_tokens=config.vision.num_patches, cameras=len(dataset.cameras)),
        "statistics": Statistics.from_dict(model.norm_stats, action_dim=config.action_dim, proprio_dim=config.proprio_dim),
        "chunk": config.chunk,
    }
    kept = [i for i, success in enumerate(dataset.successes) if failures or success is not False]
    if not kept:
        raise DatasetError(f"every one of the {len(dataset.successes)} demonstrations failed: --failures trains on them all the same")
    train, held_out = ([kept[i] for i in part] for part in split_episodes(len(kept), VALIDATION_SHARE, seed))
    validation = Samples(dataset, held_out, seed=None, augment=False, **shared) if held_out else None
    return Samples(dataset, train, seed=seed, augment=augment, approach=approach, **shared), validation


def train_on(
    dataset: Dataset | JoinedDataset,
    model: BitVLA,
    tokenizer: Any,
    config: TrainingConfig,
    output: Path,
    *,
    seed: int,
    augment: bool = True,
    approach: bool = False,
    failures: bool = False,
    objective: Objective = oft_objective,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Train what requires gradients, or go on with a run that stands in `output`; returns the Trainer's summary and the checkpoint's path.

    settings: what decides the outcome beside config, seed and dataset, as JSON. With several processes only the first returns.
    """
    group = processes()
    samples, validation = samples_of(dataset, model, tokenizer, seed, augment, approach, failures)
    checkpoint = output.expanduser() / CHECKPOINT

    def save(step: int) -> None:
        weights = group.weights(model)
        if group.first:
            of_data: dict[str, Any] = {"cameras": list(dataset.cameras), "convention": dataset.convention}
            save_checkpoint(model, checkpoint, weights=weights, tokenizer=tokenizer, step=step, **of_data)

    trainer = Trainer(
        model,
        samples,
        config,
        output.expanduser(),
        objective=objective,
        validation=validation,
        save=save,
        settings={
            "seed": seed,
            "augment": augment,
            "cameras": list(dataset.cameras),
            "dataset": dataset.name,
            "frames": len(dataset),
            "samples": len(samples),
            **settings,
        },
        processes=group,
    )
    try:
        result = trainer.run()
    finally:
        group.finish()
    if not group.first:
        raise SystemExit(0)  # the first process speaks for all
    left_out = 0 if failures else dataset.successes.count(False)
    return {**result, "checkpoint": str(checkpoint), "episodes": len(samples.episodes), "failures_left_out": left_out}


def show_episodes(result: Mapping[str, Any]) -> None:
    """How long a run was, and on what."""
    left_out = result["failures_left_out"]
    words = f"; {left_out} that failed were left out (--failures)" if left_out else ""
    print(f"{result['steps']} steps on {result['episodes']} episodes{words}, {result['samples_per_second']:.0f} samples/s")
