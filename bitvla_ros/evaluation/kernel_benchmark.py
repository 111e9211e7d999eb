"""`bitvla bench --kernels`: every matrix product of the published model, against the hardware's ceiling and against peers.

The candidates of a shape take turns, round by round, in one process, and what counts is the median of the rounds' ratios: whatever
disturbs a round disturbs all of them. What each does:

    linear      packed weight, int8 activation -> float32, rescale and bias included. The rate in GMAC/s is this one's.
    quantize    float32 activation -> int8, scale and sum, the step before
    ceiling     the same multiply-accumulates in registers alone, on as many threads (CPU)
    fp32, bf16  F.linear on float activation and weight
    int_mm      torch._int_mm on int8 operands -> int32, nothing rescaled
    fake_quant  TernaryLinear with its master weight: both quantizers, then F.linear in float32, as stock transformers runs BitNet

Ceiling and int_mm are compared with `linear`; fp32, bf16 and fake_quant, which take floats, with `quantize` and `linear` together,
although in the model q, k and v (gate and up) share one quantization, fused with the norm before it.
"""

from __future__ import annotations

import datetime
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .machine import OtherLoad, default_device, machine
from .workload import Shape, shapes

if TYPE_CHECKING:
    import torch

    from ..ternary.backends import Backend
    from ..ternary.pack import PackedWeight
    from ..ternary.quantize import QuantizedActivation

# Candidate -> what of ours it is compared with.
OURS = {
    "ceiling": ("linear",),
    "fp32": ("quantize", "linear"),
    "bf16": ("quantize", "linear"),
    "int_mm": ("linear",),
    "fake_quant": ("quantize", "linear"),
}
SECONDS = 15.0  # of rounds, for each shape
ROUNDS = 25
TURN_SECONDS = 0.02  # of one measurement, at least

Timed = Callable[[], float]
Round = dict[str, float]


def run(backend: str) -> dict[str, Any]:
    """Time the published model's products on the backend of that name."""
    import torch

    from ..model.config import preset
    from ..ternary.backends import choose

    chosen = choose(backend, default_device(backend))
    return measure(shapes(preset("3b")), chosen, torch.device("cuda" if chosen.name == "triton" else "cpu"))


def measure(
    todo: Sequence[Shape], backend: Backend, device: torch.device, *, seconds: float = SECONDS, rounds: int = ROUNDS
) -> dict[str, Any]:
    """The table, as `bitvla bench --kernels --json` prints it."""
    import torch

    load = OtherLoad()
    rows = []
    with torch.inference_mode():
        for shape in _counted(todo):
            times, exact = _measure_shape(shape, backend, device, seconds, rounds)
            rows.append(shape_row(shape, times, exact))
    ceilings = [row["ceiling_gmacs"] for row in rows if row["ceiling_gmacs"] is not None]
    return {
        "shapes": rows,
        **weighted(rows),
        "ceiling_gmacs": round(statistics.median(ceilings), 2) if ceilings else None,
        "isa": _isa(backend, device),
        "machine": machine() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        **load.report(),
        "backend": backend.name,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


# --- from times to figures ------------------------------------------------------------------------------------------------


def interleave(candidates: Mapping[str, Timed], *, seconds: float, rounds: int) -> list[Round]:
    """Let the candidates take turns: seconds of each in each round, the first round being the warm-up.

    It ends after `rounds` more, or after the first that brings them past `seconds`. A candidate that has used up its share, an equal
    part of `seconds`, sits out the rest; `quantize`, `linear` and `ceiling`, to which the others are compared, never do.
    """
    always, share = {"quantize", "linear", "ceiling"}, seconds / len(candidates)
    spent = dict.fromkeys(candidates, 0.0)
    times: list[Round] = []
    while len(times) <= rounds and (len(times) < 2 or sum(sum(row.values()) for row in times[1:]) < seconds):
        times.append({name: timed() for name, timed in candidates.items() if name in always or not times or spent[name] < share})
        for name, value in times[-1].items():
            spent[name] += value
    return times


def shape_row(shape: Shape, times: Sequence[Round], exact: bool) -> dict[str, Any]:
    """The figures of one shape. times: what `interleave` gives; a candidate that is missing cannot run here, its ratio is None.

    A ratio is our rate over theirs, their time over ours. Of a candidate too slow for more than its warm-up, that one counts.
    """
    warm_up, *rounds = times
    usual = {name: statistics.median(row[name] for row in rounds) for name in ("quantize", "linear")}

    def ratio(name: str) -> float | None:
        if name not in warm_up:
            return None
        pairs = [(row[name], sum(row[part] for part in OURS[name])) for row in rounds if name in row]
        pairs = pairs or [(warm_up[name], sum(usual[part] for part in OURS[name]))]
        return statistics.median(theirs / ours for theirs, ours in pairs)

    ratios = {name: ratio(name) for name in OURS}
    rates = {name: 1e-9 * shape.macs / (value * sum(usual[part] for part in OURS[name])) for name, value in ratios.items() if value}
    return {
        "m": shape.m,
        "k": shape.k,
        "n": shape.n,
        "gmacs": _digits(1e-9 * shape.macs / usual["linear"]),
        "exact": exact,
        **{f"vs_{name}": _digits(value) for name, value in ratios.items()},
        "ceiling_gmacs": _digits(rates.pop("ceiling", None)),
        "peer_gmacs": {name: _digits(rate) for name, rate in rates.items()},
        "count": shape.layers,
        "linear_ms": _digits(1e3 * usual["linear"]),
        "quantize_ms": _digits(1e3 * usual["quantize"]),
        "rounds": {name: sum(name in row for row in rounds) for name in warm_up},
    }


def weighted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The chunk's figures: its multiply-accumulates over the time of all its products, one after the other.

    That is the harmonic mean of the shapes' rates, weighted by MACs, never above the arithmetic one. The ratios are of the same times.
    """
    macs = [1e-9 * row["count"] * row["m"] * row["k"] * row["n"] for row in rows]
    linear = [row["count"] * row["linear_ms"] for row in rows]
    result: dict[str, Any] = {"weighted_gmacs": _digits(sum(macs) / (1e-3 * sum(linear))), "chunk_gmac": _digits(sum(macs))}
    for name, parts in OURS.items():
        ours = [row["count"] * sum(row[f"{part}_ms"] for part in parts) for row in rows]
        ratios = [row[f"vs_{name}"] for row in rows]
        known = all(ratio is not None for ratio in ratios)
        theirs = sum(time * ratio for time, ratio in zip(ours, ratios, strict=True)) if known else 0.0
        result[f"weighted_vs_{name}"] = _digits(theirs / sum(ours)) if known else None
    return result


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


# --- the candidates -------------------------------------------------------------------------------------------------------


def _measure_shape(shape: Shape, backend: Backend, device: torch.device, seconds: float, rounds: int) -> tuple[list[Round], bool]:
    import torch
    from torch.nn import functional as F

    from ..ternary import TernaryLinear
    from ..ternary.pack import PackedWeight, pack
    from ..ternary.quantize import quantize_weight

    generator = torch.Generator().manual_seed(0)
    layer = TernaryLinear(shape.k, shape.n, bias=shape.bias).requires_grad_(False)
    master, bias = layer.weight, layer.bias
    assert master is not None
    master.normal_(std=shape.k**-0.5, generator=generator)
    if bias is not None:
        bias.normal_(generator=generator)
    x = torch.randn(shape.m, shape.k, generator=generator).to(device)

    codes, scale = quantize_weight(master)
    for row, extreme in enumerate(_extremes(shape.k, 1, -1)[: shape.n]):
        codes[row] = extreme
    layer.to(device)
    (packed,) = backend.prepare([PackedWeight(pack(codes), scale, shape.n, shape.k)], device)
    codes = codes.to(device)
    quantized = backend.quantize(x)
    exact = _is_exact(backend, packed, codes, quantized)

    weight, bias = layer.weight, layer.bias
    assert weight is not None
    x16, w16, b16 = x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()
    # the layout of the weight that each device's library is quickest with
    x8, w8 = quantized.codes[:, : shape.k].contiguous(), codes.T if device.type == "cuda" else codes.T.contiguous()
    work: dict[str, Callable[[], object]] = {
        "quantize": lambda: backend.quantize(x),
        "linear": lambda: backend.linear(quantized, [packed], [bias], torch.float32),
        "fp32": lambda: F.linear(x, weight, bias),
        "bf16": lambda: F.linear(x16, w16, b16),
        "fake_quant": lambda: layer(x),
        "int_mm": lambda: torch._int_mm(x8, w8),
    }
    try:
        work["int_mm"]()
    except RuntimeError as error:  # where torch has none for this device or shape
        print(f"torch._int_mm is left out: {error}", file=sys.stderr)
        del work["int_mm"]
    timed: dict[str, Timed] = {}
    for name, call in work.items():
        if name == "linear" and (ceiling := _ceiling(shape, backend)) is not None:
            timed["ceiling"] = ceiling  # right before what it is compared with
        timed[name] = (timed_on_gpu if device.type == "cuda" else timed_on_cpu)(call)
    return interleave(timed, seconds=seconds, rounds=rounds), exact


def timed_on_cpu(call: Callable[[], object]) -> Timed:
    """Seconds of one call. What takes less than a turn is called again for as long as a turn, once its operands are where they will be
    between calls, and not where the other candidates have driven them."""

    def timed() -> float:
        took = _seconds(call, 1)
        return took if took >= TURN_SECONDS else _seconds(call, math.ceil(TURN_SECONDS / took))

    return timed


def _seconds(call: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def timed_on_gpu(call: Callable[[], object], repeats: int = 20) -> Timed:
    """Seconds of one call, from CUDA events around a graph of several: no launch by Python is in it."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, tunes and allocates
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timed() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end) / repeats

    return timed


def _ceiling(shape: Shape, backend: Backend) -> Timed | None:
    """Seconds that the shape would take at the ceiling, measured anew in each call. None where none is known."""
    if backend.name != "cpu":
        return None
    import torch

    from ..ternary import library

    return lambda: shape.macs / library.ceiling(torch.get_num_threads(), TURN_SECONDS)


def _isa(backend: Backend, device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    if backend.name != "cpu":
        return "torch"
    from ..ternary import library

    return library.isa()


def _extremes(columns: int, high: int, low: int) -> torch.Tensor:
    """int8 [4, columns]: all high, all low, and both alternations, the rows that overflow first where an accumulator is too narrow."""
    import torch

    odd = torch.arange(columns) % 2 == 1
    rows = [torch.full((columns,), high), torch.full((columns,), low), torch.where(odd, high, low), torch.where(odd, low, high)]
    return torch.stack(rows).to(torch.int8)


def _is_exact(backend: Backend, packed: PackedWeight, codes: torch.Tensor, quantized: QuantizedActivation) -> bool:
    """Whether `linear` sums right, on the matrix and the activation that are timed, with some rows made as large as they can be."""
    import torch

    x = quantized.codes.clone()
    for row, extreme in enumerate(_extremes(packed.columns, 127, -128)[: len(x)]):
        x[row, : packed.columns] = extreme.to(x.device)
    # With a scale of 1 and an absmax of 127 the rescale is a product with 1; the sums stay below 2^24, exact in float32.
    probe = quantized._replace(codes=x, absmax=torch.full_like(quantized.absmax, 127.0), sums=x.sum(-1, dtype=torch.int32))
    (sums,) = backend.linear(probe, [packed._replace(scale=torch.ones_like(packed.scale))], [None], torch.float32)
    return bool(torch.equal(sums.double(), x[:, : packed.columns].double() @ codes.double().T))


# --- for people -----------------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("M x K x N", "layers", "GMAC/s", "exact", "ceiling", "fp32", "bf16", "int8", "fake-q."):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["shapes"]:
        name = f"{row['m']}x{row['k']}x{row['n']}"
        ratios = [_ratio(row[f"vs_{peer}"], peer) for peer in OURS]
        table.add_row(name, str(row["count"]), f"{row['gmacs']:.1f}", "yes" if row["exact"] else "[bold red]NO[/]", *ratios)
    table.add_section()
    ratios = [_ratio(result[f"weighted_vs_{peer}"], peer) for peer in OURS]
    table.add_row("chunk", str(sum(row["count"] for row in result["shapes"])), f"{result['weighted_gmacs']:.1f}", "", *ratios)
    console = Console(highlight=False)
    console.print(f"Ternary products of a 3b chunk. Instructions: {result['isa']}. Threads: {result['threads']}. {result['machine']}.")
    console.print(table)
    ceiling = "" if result["ceiling_gmacs"] is None else f"Ceiling {result['ceiling_gmacs']:.1f} GMAC/s in registers. "
    others = "unknown" if result["others_share"] is None else f"{result['others_share']:.1%}"
    console.print(f"{ceiling}Ratios are our rate over theirs. Processor time that others took meanwhile: {others}.")


def _ratio(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if name == "ceiling" else f"{value:.2f}x"


def _counted(todo: Sequence[Shape]) -> Any:
    from rich.console import Console
    from rich.progress import track

    return track(todo, "timing", console=Console(stderr=True))
