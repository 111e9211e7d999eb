"""The Triton backend on a CUDA GPU: what the interpreter cannot show. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (extra `triton`)")

from bitvla_ros.evaluation.tune_tiles import Product, products
from bitvla_ros.model.config import preset
from bitvla_ros.ternary.pack import PackedWeight, pack
from bitvla_ros.ternary.quantize import QuantizedActivation
from bitvla_ros.ternary.reference import BACKEND as REFERENCE
from bitvla_ros.ternary.reference import rescale
from bitvla_ros.ternary.triton_backend import BACKEND as TRITON
from bitvla_ros.ternary.triton_tiles import candidates

GPU = torch.device("cuda")
problem = TRITON.problem(GPU)
pytestmark = pytest.mark.skipif(problem is not None, reason=str(problem))


def extreme_weights(product: Product) -> list[PackedWeight]:
    """Random, but for rows of all ones, of all minus ones and of both in turn."""
    generator = torch.Generator().manual_seed(product.columns)
    weights = []
    for rows in product.counts:
        codes = torch.randint(-1, 2, (rows, product.columns), generator=generator, dtype=torch.int8)
        codes[0], codes[1], codes[2, ::2], codes[2, 1::2] = 1, -1, 1, -1
        weights.append(PackedWeight(pack(codes), torch.rand((), generator=generator), rows, product.columns))
    return weights


def extreme_activation(tokens: int, columns: int) -> QuantizedActivation:
    codes = torch.randint(-128, 128, (tokens, columns), generator=torch.Generator().manual_seed(tokens), dtype=torch.int8)
    codes[:1], codes[1:2], codes[2:3, ::2], codes[2:3, 1::2] = -128, 127, 127, -128
    padded = torch.nn.functional.pad(codes, (0, -columns % 16))
    return QuantizedActivation(padded.to(GPU), torch.rand(tokens).to(GPU), codes.sum(-1, dtype=torch.int32).to(GPU))


def expected(
    x: QuantizedActivation, weights: list[PackedWeight], biases: list[Tensor | None], dtype: torch.dtype, residual: Tensor | None = None
) -> list[Tensor]:
    """The reference's integers, and its floats as the CPU computes them: torch on a GPU divides by 127 with a reciprocal."""
    found = []
    for weight, ready, bias in zip(weights, REFERENCE.prepare(weights, GPU), biases, strict=True):
        sums, added = REFERENCE.matmul(x, ready).cpu(), None if bias is None else bias.cpu()
        found.append(rescale(sums, x.absmax.cpu(), weight.scale, added, dtype, None if residual is None else residual.cpu()))
    return found


def equal(first: tuple[Tensor, ...], second: list[Tensor]) -> bool:
    return all(torch.equal(a.cpu(), b) for a, b in zip(first, second, strict=True))


SINGLE = [product._replace(name=f"{product.name}, one token") for product in products(preset("3b"), tokens=1)[:4]]


@pytest.mark.parametrize("product", [*products(preset("3b"), tokens=611), *SINGLE], ids=lambda product: product.name)
def test_every_product_in_every_tile_size_equals_the_reference(product):
    weights, x = extreme_weights(product), extreme_activation(product.tokens, product.columns)
    prepared = TRITON.prepare(weights, GPU)
    biases = [torch.randn(n, device=GPU).bfloat16() if product.bias else None for n in product.counts]
    for dtype in (torch.bfloat16, torch.float32):
        residual = torch.randn(product.tokens, product.counts[0], device=GPU).to(dtype) if product.residual else None
        right = expected(x, weights, biases, dtype, residual)
        for tiles in [None, *candidates(torch.cuda.get_device_capability(), product.columns)]:
            found = TRITON.linear(x, prepared, biases, dtype, residual, tiles)
            assert equal(found, right), (dtype, tiles)
    for weight, ready in zip(REFERENCE.prepare(weights, GPU), prepared, strict=True):
        assert torch.equal(TRITON.matmul(x, ready), REFERENCE.matmul(x, weight))


@pytest.mark.parametrize("rows", [1, 15, 100])
@pytest.mark.parametrize("columns", [1, 17, 130])
@pytest.mark.parametrize("tokens", [3, 65])
def test_odd_sizes_equal_the_reference(tokens, columns, rows):
    x = extreme_activation(tokens, columns)
    codes = [torch.randint(-1, 2, (n, columns), dtype=torch.int8) for n in (rows, 7, 1)]
    weights = [PackedWeight(pack(c), torch.tensor(0.3), *c.shape) for c in codes]
    right = expected(x, weights, [None] * 3, torch.float32)
    for tiles in [None, *candidates(torch.cuda.get_device_capability(), 2560)]:
        assert equal(TRITON.linear(x, TRITON.prepare(weights, GPU), [None] * 3, torch.float32, None, tiles), right), tiles


@pytest.mark.parametrize("columns", [1152, 2560, 4304, 6912])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantizers_equal_the_reference(dtype, columns):
    x, up = (torch.randn(37, columns, device=GPU).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(columns, device=GPU) for _ in range(2))
    on_cpu = [tensor.cpu() for tensor in (x, up, weight, bias)]
    for name, pick in {
        "quantize": lambda x, up, weight, bias: (x,),
        "rms_norm_quantize": lambda x, up, weight, bias: (x, weight, 1e-5),
        "layer_norm_quantize": lambda x, up, weight, bias: (x, weight, bias, 1e-6),
        "squared_relu_norm_quantize": lambda x, up, weight, bias: (x, up, weight, 1e-5),
        "gelu_quantize": lambda x, up, weight, bias: (x,),
    }.items():
        found, right = getattr(TRITON, name)(*pick(x, up, weight, bias)), getattr(REFERENCE, name)(*pick(*on_cpu))
        difference = (found.codes.cpu().int() - right.codes.int()).abs()
        assert difference.max() <= (name != "quantize") and (difference > 0).float().mean() < 1e-3, name
        assert torch.equal(found.sums, found.codes.sum(-1, dtype=torch.int32)), name
        torch.testing.assert_close(found.absmax.cpu(), right.absmax, rtol=0 if name == "quantize" else 1e-5, atol=0)


def test_a_captured_graph_gives_the_same_bytes_on_new_input():
    product = products(preset("3b"))[0]
    prepared = TRITON.prepare(extreme_weights(product), GPU)
    x, norm = torch.randn(611, product.columns, device=GPU).bfloat16(), torch.randn(product.columns, device=GPU)

    def call() -> tuple[Tensor, ...]:
        return TRITON.linear(TRITON.rms_norm_quantize(x, norm, 1e-5), prepared, [None] * 3, torch.bfloat16)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, call(), strict=True))


def test_preparing_keeps_two_bits_a_weight_on_the_gpu():
    weights = extreme_weights(products(preset("3b"))[2])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    prepared = TRITON.prepare(weights, GPU)
    assert torch.cuda.memory_allocated() - before <= sum(w.rows * w.columns for w in weights) // 4 + 4096
    assert all(ready.words.device.type == "cuda" for ready in prepared)
