"""The verb `bench`: how long a chunk takes, where the time goes, and how much memory it needs; with --kernels, the matrix products."""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..arguments import COUNT, require_read
from .machine import OtherLoad, default_device, machine, memory_now, resident_bytes
from .workload import TEXT_TOKENS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..policy.bitvla import BitVLAPolicy
    from ..policy.observation import Observation
    from ..policy.prompt import Prompt

EXAMPLES = """\
  bitvla bench                                     nano with random weights
  bitvla bench --preset 3b --threads 2             the published sizes, packed into a temporary folder of 1.5 GB first
  bitvla bench --model PATH_OR_HUB_ID --json       a packed model or a checkpoint, as JSON
  bitvla bench --kernels --threads 1 --plot a.png  every matrix product of the published sizes, against ceiling and peers
  BITVLA_ISA=avx2 bitvla bench --kernels           the same with a chosen instruction set"""

INSTRUCTION = "pick up the red block and place it in the basket"
# Where the network's time goes: part -> submodules of BitVLA.
PARTS = {"vision": ("vision", "connector"), "language": ("language",), "head": ("action_head",)}
PICTURES = (".png", ".svg", ".pdf")
READ = {"a chunk": ("norm_key", "chunks", "warmup", "image_size")}


class BenchmarkError(RuntimeError):
    """What was to be timed could not be made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preset", choices=("nano", "3b"), default="nano", help="sizes, with random weights (default: %(default)s)")
    what.add_argument("--model", help="a packed model's or a checkpoint's folder, or a hub id, instead of a preset")
    what.add_argument("--kernels", action="store_true", help="time the matrix products of 3b instead of a chunk: two to three minutes")
    backends = ("auto", "reference", "cpu", "triton")
    parser.add_argument("--backend", choices=backends, default="auto", help="what the ternary layers run on (default: %(default)s)")
    parser.add_argument("--threads", type=COUNT, help="threads of torch and of the kernels (default: torch's own choice)")
    parser.add_argument("--plot", type=_picture, metavar="FILE", help=f"draw the result too: {', '.join(PICTURES)}")
    chunk = parser.add_argument_group("of a chunk")
    chunk.add_argument("--norm-key", help="which of the checkpoint's statistics to use, where it has several")
    chunk.add_argument("--chunks", type=COUNT, help="chunks to time, after --warmup more (default: a minute of them, 5 to 30)")
    chunk.add_argument("--warmup", type=COUNT, default=3, help="chunks that do not count (default: %(default)s)")
    chunk.add_argument("--image-size", type=COUNT, default=256, help="side of the camera images, pixels (default: %(default)s)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    require_read(arguments.given, READ, "--kernels" if arguments.kernels else "a chunk")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the policy node, which shares its cores with others; before torch
    import rich  # noqa: F401, so that its lack is known before minutes are spent

    if arguments.plot:
        import matplotlib  # noqa: F401

    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.kernels:
        from . import kernel_benchmark

        result = kernel_benchmark.run(arguments.backend)
    else:
        with ExitStack() as stack:
            result = _run_chunk(arguments, stack)
    if arguments.plot:
        from .plots import draw

        draw(result, arguments.plot)
    return result


def _run_chunk(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    import torch

    from .kernel_benchmark import timed_on_gpu

    policy = _load(arguments, stack)
    model = policy.model
    observation = _observation(policy.spec.cameras, arguments.image_size)
    of_chunks = model.config.discrete is None
    timed = PARTS if of_chunks else PARTS | {"head": ("token_head",)}
    with first_inputs(model, timed) as inputs:
        for _ in range(arguments.warmup):
            last = policy.infer(observation).latency.total
    chunks = arguments.chunks or min(30, max(5, int(60 / last)))
    totals, parts = [], []
    load = OtherLoad()
    with _timed(model, timed) as spent:
        for _ in _counted(chunks):
            spent.clear()
            began = time.perf_counter()
            chunk = policy.infer(observation)
            totals.append(time.perf_counter() - began)
            parts.append({"preprocess": chunk.latency.preprocessing, **{name: spent.get(name, 0.0) for name in PARTS}})
    others = load.report()
    if model.device.type == "cuda":
        gpu_peak = torch.cuda.max_memory_allocated(model.device)
        if of_chunks:  # the language model's first inputs have a cache that is full by now
            alone = parts_alone(model, inputs, timed_on_gpu)
            parts = [{**part, **alone} for part in parts]
    breakdown = {name: _ms(float(np.median([part[name] for part in parts]))) for name in parts[0]}
    breakdown["rest"] = round(max(0.0, _ms(float(np.median(totals))) - sum(breakdown.values())), 3)
    prompt = len(policy.prompt(INSTRUCTION))
    result = {
        "preset": None if arguments.model else arguments.preset,
        "model": arguments.model,
        "backend": "torch" if model.backend is None else model.backend.name,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        **others,
        "chunks": chunks,
        "tokens": {"prompt": prompt, "sequence": prompt + model.config.appended_tokens},
        "latency_ms": {"p50": _ms(float(np.percentile(totals, 50))), "p99": _ms(float(np.percentile(totals, 99)))},
        "latencies_ms": [_ms(total) for total in totals],
        "breakdown_ms": breakdown,
        "weights_bytes": weight_bytes(model),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rss_bytes": memory_now(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    if model.device.type == "cuda":
        result["gpu_peak_bytes"] = gpu_peak
    return result


def _load(arguments: argparse.Namespace, stack: ExitStack) -> BitVLAPolicy:
    """The policy to time, packed. A preset is packed into a folder that lasts as long as `stack`, by a process of its own, whose
    memory is not the benchmark's."""

    from ..model.checkpoint import resolve
    from ..model.packed import is_packed
    from ..policy.bitvla import BitVLAPolicy
    from .readiness import needs

    if arguments.model:
        path = resolve(arguments.model)
    else:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bitvla-bench-"))) / arguments.preset
        print(f"packing {arguments.preset} with random weights", file=sys.stderr)
        command = [sys.executable, "-m", "bitvla_ros.cli", "pack", f"random:{arguments.preset}", str(path)]
        if subprocess.run(command, stdout=sys.stderr).returncode:  # it said why, on stderr
            raise BenchmarkError(f"{arguments.preset} could not be packed into {path}; its weights go there for the time of the benchmark")
    print(f"loading {arguments.model or arguments.preset}", file=sys.stderr)
    options: dict[str, Any] = {"norm_key": arguments.norm_key, "backend": arguments.backend, "device": default_device(arguments.backend)}
    if not is_packed(path) and needs(str(path), norm_key=arguments.norm_key).control_hz is None:
        options["control_hz"] = 20.0  # nothing is played here: any rate will do
    policy = BitVLAPolicy.load(path, **options)
    if arguments.preset == "3b" and arguments.model is None:
        policy.prompt = cast("Prompt", shortened(policy.prompt))
    return policy


def shortened(prompt: Prompt) -> Callable[[str], NDArray[np.int64]]:
    """The byte tokenizer's prompt, cut to the length that the released tokenizer's has: that one makes words of letters."""

    def cut(instruction: str) -> NDArray[np.int64]:
        ids = prompt(instruction)
        text = np.flatnonzero((ids != prompt.image_token_id) & (ids != prompt.proprio_token_id))
        kept = TEXT_TOKENS - 1  # beside proprioception: BOS and the end
        return np.delete(ids, text[1 : len(text) - (kept - 1)])

    return cut


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    if "shapes" in result:
        from . import kernel_benchmark

        kernel_benchmark.show(result)
        return
    latency, weights = result["latency_ms"], result["weights_bytes"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("latency p50 / p99", f"{latency['p50']:.1f} / {latency['p99']:.1f} ms", f"{result['chunks']} chunks")
    for name, value in result["breakdown_ms"].items():
        table.add_row(f"  {name}", f"{value:.1f} ms", f"{100 * value / latency['p50']:.0f} %")
    for name, value in weights.items():
        table.add_row(f"weights, {name}", f"{value / 1e6:.1f} MB")
    table.add_row("peak resident memory", f"{result['peak_rss_bytes'] / 1e6:.0f} MB")
    if "gpu_peak_bytes" in result:
        table.add_row("peak memory on the GPU", f"{result['gpu_peak_bytes'] / 1e6:.0f} MB")
    console = Console(highlight=False)
    console.print(f"A chunk of {result['model'] or result['preset']}. Backend: {result['backend']} on {result['device']}.", end=" ")
    console.print(f"Threads: {result['threads']}. {result['machine']}.")
    console.print(table)
    if result["others_share"] is not None:
        console.print(f"Processor time that others took meanwhile: {result['others_share']:.1%}.")


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the model's tensors. "ternary": the matrices of ternary layers with their scales, packed or not; "other": the rest;
    "resident": how much of both lies in this process's memory now, or on a GPU: of a memory-mapped file what has been read."""
    from ..ternary import TernaryLinear

    matrices = [
        tensor
        for module in model.modules()
        if isinstance(module, TernaryLinear)
        for tensor in (module.weight, module.words, module.scale)
        if tensor is not None
    ]
    everything: list[Tensor] = [*model.parameters(), *model.buffers()]
    ternary = sum(tensor.nbytes for tensor in matrices)
    return {"ternary": ternary, "other": sum(tensor.nbytes for tensor in everything) - ternary, "resident": resident_bytes(everything)}


@contextmanager
def first_inputs(model: nn.Module, parts: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """What each submodule of the parts is first called with while the body runs."""
    inputs: dict[str, tuple[Any, ...]] = {}

    def keep(child: str) -> Callable[..., None]:
        def hook(_: Any, arguments: tuple[Any, ...]) -> None:
            inputs.setdefault(child, arguments)

        return hook

    handles = [model.get_submodule(child).register_forward_pre_hook(keep(child)) for children in parts.values() for child in children]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def parts_alone(
    model: nn.Module, inputs: Mapping[str, tuple[Any, ...]], timer: Callable[[Callable[[], object]], Callable[[], float]]
) -> dict[str, float]:
    """Seconds of each part on its first inputs again, each by itself: on a GPU, one graph replays the whole network, and no hook
    is called in it."""
    import torch

    seconds = {}
    with torch.inference_mode():
        for part, children in PARTS.items():
            timed = [timer(partial(model.get_submodule(child), *inputs[child])) for child in children]
            seconds[part] = sum(statistics.median(take() for _ in range(5)) for take in timed)
    return seconds


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


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in PICTURES or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: give a file ending in {', '.join(PICTURES)} in a folder that exists")
    return path
