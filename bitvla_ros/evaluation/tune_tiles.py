"""Find the Triton product's tiles for the GPU at hand: `python -m bitvla_ros.evaluation.tune_tiles` [tokens].

Times every candidate of `ternary/triton_tiles.py` on every product of the 3b model, joined as the model joins them, and prints for each
product what was best beside what `choose_tiles` estimates to be, then the entries for `MEASURED`. A minute or two, most of it compiling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..model.config import BitVLAConfig, preset
from ..ternary.backends import choose
from ..ternary.pack import PackedWeight, packed_shape
from ..ternary.triton_tiles import Tiles, candidates, choose_tiles

PROMPT = 630  # tokens of a usual prompt: two images, instruction, state and actions

Timer = Callable[[Callable[[], object]], float]  # milliseconds of a call


class Product(NamedTuple):
    """counts: rows of the matrices that share an input and a launch. times: how often a chunk has it."""

    name: str
    tokens: int
    counts: tuple[int, ...]
    columns: int
    bias: bool
    residual: bool
    times: int


def products(config: BitVLAConfig, tokens: int = PROMPT, images: int = 2) -> list[Product]:
    language, vision = config.language, config.vision
    hidden, inner, depth = language.hidden_size, language.intermediate_size, language.num_hidden_layers
    narrow = language.num_key_value_heads * language.head_dim
    found = [
        Product("language q|k|v", tokens, (hidden, narrow, narrow), hidden, False, False, depth),
        Product("language o", tokens, (hidden,), hidden, False, True, depth),
        Product("language gate|up", tokens, (inner, inner), hidden, False, False, depth),
        Product("language down", tokens, (hidden,), inner, False, True, depth),
    ]
    hidden, inner, depth = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
    patches = images * vision.num_patches
    return found + [
        Product("vision q|k|v", patches, (hidden, hidden, hidden), hidden, True, False, depth),
        Product("vision out", patches, (hidden,), hidden, True, True, depth),
        Product("vision fc1", patches, (inner,), hidden, True, False, depth),
        Product("vision fc2", patches, (hidden,), inner, True, True, depth),
    ]


@torch.inference_mode()
def tune(product: Product, capability: tuple[int, int], device: torch.device, timer: Timer) -> dict[Tiles, float]:
    """Milliseconds of one call by tiles, the fastest first. Random two-bit words (of no 3) and activations, bfloat16 out."""
    from ..ternary.triton_backend import BACKEND

    generator = torch.Generator().manual_seed(0)
    weights = [
        PackedWeight(_random_words(rows, product.columns, generator), torch.tensor(0.02), rows, product.columns) for rows in product.counts
    ]
    prepared = BACKEND.prepare(weights, device)
    x = BACKEND.quantize(torch.randn(product.tokens, product.columns, generator=generator).to(device))
    biases = [torch.zeros(rows, dtype=torch.bfloat16, device=device) if product.bias else None for rows in product.counts]
    residual = torch.zeros(product.tokens, product.counts[0], dtype=torch.bfloat16, device=device) if product.residual else None

    def call(tiles: Tiles) -> Callable[[], object]:
        return lambda: BACKEND.linear(x, prepared, biases, torch.bfloat16, residual, tiles)

    times = {tiles: timer(call(tiles)) for tiles in candidates(capability, product.columns)}
    return dict(sorted(times.items(), key=lambda item: item[1]))


def main(arguments: list[str]) -> None:
    from triton.testing import do_bench_cudagraph

    device = torch.device("cuda")
    choose("triton", device)  # raises BackendError, which says what is missing
    properties = torch.cuda.get_device_properties(device)
    capability, processors = (properties.major, properties.minor), properties.multi_processor_count
    print(f"{properties.name}, sm_{properties.major}{properties.minor}, {processors} multiprocessors")
    stream = torch.cuda.Stream()  # graphs are captured on a stream of their own
    total, entries = 0.0, []
    with torch.cuda.stream(stream):
        for product in products(preset("3b"), *map(int, arguments)):
            times = tune(product, capability, device, lambda call: do_bench_cudagraph(call, rep=50, return_mode="median"))
            rows = sum(product.counts)
            best, estimated = next(iter(times)), choose_tiles(capability, processors, product.tokens, rows, product.columns)
            operations = 2e-9 * product.tokens * rows * product.columns
            total += product.times * times[best]
            entries.append(f"    ({capability}, {rows}, {product.columns}): {best},")
            print(
                f"{product.name:17} {times[best]:.4f} ms ({operations / times[best]:.0f} TOP/s) with {tuple(best)}; "
                f"estimated best {tuple(estimated)}: {times.get(estimated, float('nan')):.4f} ms"
            )
    print(f"all products of a chunk: {total:.2f} ms")
    print("\n".join(["MEASURED = {", *entries, "}"]))


def _random_words(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    words = torch.randint(0, 256, packed_shape(rows, columns), generator=generator, dtype=torch.uint8)
    return words & ~(words & words >> 1 & 0b01010101)  # a 3 becomes a 2


if __name__ == "__main__":
    main(sys.argv[1:])
