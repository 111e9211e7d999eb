"""The verb `bench`: how long a chunk takes, where the time goes, and how much memory the weights need."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from ..policy.observation import Observation

EXAMPLES = """\
  bitvla bench                                nano with random weights
  bitvla bench --preset 3b --chunks 3         the published sizes: 6 to 12 GB of memory
  bitvla bench --model PATH_OR_HUB_ID --json  a checkpoint, as JSON"""

INSTRUCTION = "pick up the red block and place it in the basket"
# Where the network's time goes: part -> submodules of BitVLA.
PARTS = {"vision": ("vision", "connector"), "language": ("language",), "head": ("action_head",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preset", choices=("nano", "3b"), default="nano", help="sizes, with random weights (default: %(default)s)")
    what.add_argument("--model", help="a checkpoint's folder or hub id, instead of a preset")
    parser.add_argument("--norm-key", help="which of the checkpoint's statistics to use, where it has several")
    parser.add_argument("--chunks", type=_positive, default=30, help="chunks to time, after --warmup more (default: %(default)s)")
    parser.add_argument("--warmup", type=_positive, default=3, help="chunks that do not count (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--image-size", type=_positive, default=256, help="side of the camera images, pixels (default: %(default)s)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the policy node, which shares its cores with others; before torch
    import torch

    from ..policy.bitvla import BitVLAPolicy

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"loading {arguments.model or arguments.preset}", file=sys.stderr)
    if arguments.model:  # nothing is played here: the rate does not matter
        policy = BitVLAPolicy.load(arguments.model, control_hz=20.0, norm_key=arguments.norm_key)
    else:
        policy = BitVLAPolicy.random(arguments.preset)
    observation = _observation(policy.spec.cameras, arguments.image_size)
    for _ in range(arguments.warmup):
        policy.infer(observation)
    totals, parts = [], []
    with _timed(policy.model, PARTS) as spent:
        for _ in _counted(arguments.chunks):
            spent.clear()
            began = time.perf_counter()
            chunk = policy.infer(observation)
            totals.append(time.perf_counter() - began)
            parts.append({"preprocess": chunk.latency.preprocessing, **{name: spent.get(name, 0.0) for name in PARTS}})
    breakdown = {name: _ms(float(np.median([part[name] for part in parts]))) for name in parts[0]}
    breakdown["rest"] = round(max(0.0, _ms(float(np.median(totals))) - sum(breakdown.values())), 3)
    return {
        "preset": None if arguments.model else arguments.preset,
        "model": arguments.model,
        "backend": "torch",
        "device": str(next(policy.model.parameters()).device),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {_processor()}",
        "chunks": arguments.chunks,
        "latency_ms": {"p50": _ms(float(np.percentile(totals, 50))), "p99": _ms(float(np.percentile(totals, 99)))},
        "breakdown_ms": breakdown,
        "weights_bytes": weight_bytes(policy.model),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    latency, weights = result["latency_ms"], result["weights_bytes"]
    table = Table(
        title=f"a chunk of {result['model'] or result['preset']}, {result['threads']} threads on {result['device']}", show_header=False
    )
    table.add_row("latency p50 / p99", f"{latency['p50']:.1f} / {latency['p99']:.1f} ms", f"{result['chunks']} chunks")
    for name, value in result["breakdown_ms"].items():
        table.add_row(f"  {name}", f"{value:.1f} ms", f"{100 * value / latency['p50']:.0f} %")
    table.add_section()
    for name, value in weights.items():
        table.add_row(f"weights, {name}", f"{value / 1e6:.1f} MB")
    table.add_row("peak resident memory", f"{result['peak_rss_bytes'] / 1e6:.0f} MB")
    Console(highlight=False).print(table)


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the matrices of ternary layers as they are held now, of everything else, and of both."""
    from ..ternary import TernaryLinear

    ternary = sum(
        tensor.nbytes
        for module in model.modules()
        if isinstance(module, TernaryLinear)
        for tensor in (module.weight, module.frozen_weight)
        if tensor is not None
    )
    resident = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return {"ternary": ternary, "other": resident - ternary, "resident": resident}


@contextmanager
def _timed(model: nn.Module, parts: dict[str, tuple[str, ...]]) -> Iterator[dict[str, float]]:
    """Seconds spent in each part, summed up while the body runs."""
    spent: dict[str, float] = {}
    began: dict[str, float] = {}
    handles = []

    def before(child: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            began[child] = time.perf_counter()

        return hook

    def after(part: str, child: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - began[child]

        return hook

    try:
        for part, children in parts.items():
            for child in children:
                module = model.get_submodule(child)
                handles += [module.register_forward_pre_hook(before(child)), module.register_forward_hook(after(part, child))]
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _observation(cameras: tuple[str, ...], size: int) -> Observation:
    from ..policy.observation import STATE_DIM, Observation

    random = np.random.default_rng(0)
    images = {role: random.integers(0, 256, (size, size, 3), dtype=np.uint8) for role in cameras}
    return Observation(images, np.zeros(STATE_DIM), INSTRUCTION, dict.fromkeys((*cameras, "state"), 1))


def _counted(count: int) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import track

    yield from track(range(count), "timing", console=Console(stderr=True))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: give 1 or more")
    return value
