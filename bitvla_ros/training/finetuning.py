"""The verb `train`: OFT, the fine-tuning of a ternary policy on demonstrations (arXiv 2506.07530, sections III and IV)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..arguments import COUNT, NATURAL, POSITIVE, require_read

EXAMPLES = """\
  bitvla train random:nano --dataset demos --output run --steps 20000 --batch-size 32 --learning-rate 5e-4
  bitvla train CHECKPOINT --dataset demos --output run --accumulate 8          a checkpoint's folder or Hugging Face id
  bitvla train nano --dataset demos --output run --learning-rate 4e-4          the shipped model, or another packed one
  accelerate launch -m bitvla_ros.cli train CHECKPOINT --dataset demos --output run          on every GPU there is
  accelerate launch --use_fsdp -m bitvla_ros.cli train CHECKPOINT --dataset demos --output run     for GPUs too small for the whole
The same command again goes on where a run was stopped or killed. run/checkpoint is what bitvla eval and bitvla pack take."""

FULL_PRECISION = ("vision", "language", "all")
READ = {"weights in float32": ("dtype",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("start", help="random:nano, random:3b, nano (the shipped model), or a folder or Hugging Face id, packed or not")
    parser.add_argument("--dataset", required=True, nargs="+", metavar="DIR", help="demonstrations, of bitvla record or bitvla convert")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run: checkpoint/, log.csv, curves.png, state")
    parser.add_argument("--cameras", nargs="+", default=("scene", "wrist"), metavar="ROLE", help="in order (default: scene wrist)")
    add_training_arguments(parser)
    parser.add_argument("--approach", action="store_true", help="only frames before the hand first closes: to learn what to reach for")
    parser.add_argument("--full-precision", choices=FULL_PRECISION, help="train this without ternary weights, to compare")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every kind of training, which `training_config` reads."""
    parser.add_argument("--steps", type=COUNT, default=10_000, help="of the optimizer (default: %(default)s)")
    parser.add_argument("--batch-size", type=COUNT, default=8, help="samples of a pass, in each process (default: %(default)s)")
    parser.add_argument("--accumulate", type=COUNT, default=1, help="passes that make a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=POSITIVE, default=1e-4, help="at its highest (default: %(default)s)")
    parser.add_argument("--vision-learning-rate", type=POSITIVE, help="of the vision tower (default: the same)")
    parser.add_argument("--warmup", type=NATURAL, default=375, help="steps in which the rate rises (default: %(default)s)")
    parser.add_argument("--clip", type=POSITIVE, help="longest gradient (default: any)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of matrix products; weights stay float32 (default: what is fast here)"
    )
    parser.add_argument("--direct-bf16", action="store_true", help="weights in bfloat16 too, as in the reference: small steps get lost")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    parser.add_argument("--compile", action="store_true", help="fuse small operations: faster after the first minute; needs a C++ compiler")
    parser.add_argument("--no-augmentation", action="store_true", help="train on pictures as they are: cameras and light never change")
    parser.add_argument("--failures", action="store_true", help="train on demonstrations that failed too")
    parser.add_argument("--seed", type=NATURAL, default=0, help="of weights, order and augmentation (default: %(default)s)")
    parser.add_argument("--workers", type=NATURAL, default=1, help="processes that prepare images ahead (default: %(default)s)")
    parser.add_argument("--threads", type=COUNT, help="of torch on the CPU (default: one a core)")
    parser.add_argument("--save-every", type=COUNT, default=1000, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--validate-every", type=COUNT, default=500, metavar="STEPS", help="(default: %(default)s)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    prepare_threads(arguments.threads)

    from .joined import open_datasets
    from .runs import train_on
    from .starting import starting_model

    dataset = open_datasets(arguments.dataset, arguments.cameras)
    model, tokenizer = starting_model(
        arguments.start, dataset.statistics, dataset.name, dataset.fps, seed=arguments.seed, full_precision=arguments.full_precision
    )
    return train_on(
        dataset,
        model,
        tokenizer,
        training_config(arguments),
        Path(arguments.output),
        seed=arguments.seed,
        augment=not arguments.no_augmentation,
        failures=arguments.failures,
        approach=arguments.approach,
        settings={"start": arguments.start, "full_precision": arguments.full_precision},
    )


def show(result: dict[str, Any]) -> None:
    from .runs import show_episodes

    show_episodes(result)
    for name in ("loss", "validation_l1", "validation_translation", "validation_rotation", "validation_gripper"):
        if result.get(name) is not None:
            print(f"  {name.replace('_', ' '):24} {result[name]:.4f}")
    print(f"checkpoint: {result['checkpoint']}; curves: {result['output']}/curves.png")


def training_config(arguments: argparse.Namespace) -> Any:
    """A TrainingConfig of `add_training_arguments`. Raises UnreadOption and TrainingError for options that do not go together."""
    import torch

    from .trainer import TrainingConfig, TrainingError, fast_dtype

    require_read(arguments.given, READ, "--direct-bf16" if arguments.direct_bf16 else "weights in float32")
    if "warmup" in arguments.given and arguments.warmup > arguments.steps:
        raise TrainingError(f"--warmup is {arguments.warmup} of --steps {arguments.steps}: give as many or fewer")

    return TrainingConfig(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        accumulate=arguments.accumulate,
        learning_rate=arguments.learning_rate,
        vision_learning_rate=arguments.vision_learning_rate,
        warmup=min(arguments.warmup, arguments.steps),
        clip=arguments.clip,
        dtype=fast_dtype() if arguments.dtype is None else getattr(torch, arguments.dtype),
        direct_bf16=arguments.direct_bf16,
        checkpointing=arguments.gradient_checkpointing,
        compile=arguments.compile,
        workers=arguments.workers,
        save_every=arguments.save_every,
        validate_every=arguments.validate_every,
    )


def prepare_threads(threads: int | None) -> None:
    """torch's threads; before torch is imported, so that those that wait leave their cores to the workers."""
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
