"""The verb `pack`: a checkpoint becomes a packed model, two bits a weight, on disk."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..action_convention import ActionConvention
from ..arguments import COUNT, POSITIVE

EXAMPLES = """\
  bitvla pack hongyuw/ft-bitvla-bitsiglipL-224px-libero_goal-bf16 goal-packed --control-hz 20
  bitvla pack lxsy/bitvla-bf16 bridge --norm-key bridge_orig --control-hz 5 --metres-per-unit 1 --radians-per-unit 1
                                                                   a robot-pretrained base, for one of its datasets
  bitvla pack CHECKPOINT packed --control-hz 20 --encoding base3   smaller, for storage and transfer
  bitvla pack random:3b packed-3b                                  random weights, for benchmarks: 1.4 GB"""

_MOVES = "what a full-scale action moves the arm by in one step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's folder or Hugging Face id; or random:3b, random:nano")
    parser.add_argument("out", help="folder of the packed model, which must not exist or be empty")
    parser.add_argument(
        "--encoding", choices=("2bit", "base3"), default="2bit", help="base3: 1.6 bits a weight, unpacked at load (default: %(default)s)"
    )
    parser.add_argument("--control-hz", type=POSITIVE, help="rate of its dataset, where it does not say (LIBERO: 20)")
    parser.add_argument("--norm-key", help="which of the checkpoint's statistics to keep, where it has several")
    parser.add_argument("--no-proprio", action="store_true", help="it was fine-tuned without proprioception, where it does not say")
    parser.add_argument("--chunk", type=COUNT, help="actions a forward pass, where it does not say (default: 8)")
    parser.add_argument("--prompt", choices=("human", "user"), help="of a robot-pretrained base, where it does not say (default: human)")
    parser.add_argument("--metres-per-unit", type=POSITIVE, help=f"{_MOVES}, where it does not say (LIBERO: 0.0135; actions in metres: 1)")
    parser.add_argument("--radians-per-unit", type=POSITIVE, help="the same for rotation (LIBERO: 0.07; radians: 1)")
    parser.add_argument("--attention", choices=("bidirectional", "causal"), help="where it does not say (default: bidirectional)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress

    from ..model import pack_model

    began = time.perf_counter()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("packing", visible=False)  # until the checkpoint has been read and found to be good
        description = pack_model(
            arguments.checkpoint,
            arguments.out,
            encoding=arguments.encoding,
            attention=arguments.attention,
            chunk=arguments.chunk,
            control_hz=arguments.control_hz,
            norm_key=arguments.norm_key,
            use_proprio=False if arguments.no_proprio else None,
            prompt=arguments.prompt,
            convention=ActionConvention(arguments.metres_per_unit, arguments.radians_per_unit),
            progress=lambda name, done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    files = list(Path(arguments.out).expanduser().iterdir())
    return {
        "out": arguments.out,
        "source": description["provenance"]["source"],
        "encoding": arguments.encoding,
        "bytes": sum(file.stat().st_size for file in files),
        "files": sorted(file.name for file in files),
        "model_hash": description["model_hash"],
        "seconds": round(time.perf_counter() - began, 1),
    }


def show(result: dict[str, Any]) -> None:
    print(f"packed {result['source']} into {result['out']}: {result['bytes'] / 1e6:.1f} MB in {result['seconds']:.1f} s")
    print(f"model hash {result['model_hash']}")
    print(f"look at it with: bitvla inspect {result['out']}")
