"""The Triton kernels in Triton's interpreter, on the CPU. test_triton_interpreter.py runs this with TRITON_INTERPRET=1.

The interpreter cuts float32 to bfloat16 where a GPU rounds (test_triton_compile.py sees the rounding in the code), so what is compared
bit for bit is float32 and float16.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitvla_ros.evaluation.tune_tiles import Product, products, tune
from bitvla_ros.model.config import preset
from bitvla_ros.ternary import TernaryLinear
from bitvla_ros.ternary.backends import choose
from bitvla_ros.ternary.fused import norm_linear
from bitvla_ros.ternary.pack import PackedWeight, pack, pack_weight
from bitvla_ros.ternary.quantize import FLOOR, QuantizedActivation
from bitvla_ros.ternary.reference import BACKEND as REFERENCE
from bitvla_ros.ternary.triton_backend import BACKEND as TRITON
from bitvla_ros.ternary.triton_tiles import Tiles, candidates

CPU = torch.device("cpu")
SMALL, SPLIT = Tiles(16, 16, 4, 1), Tiles(16, 16, 4, 1, split=3)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weights(rows: list[int], columns: int, seed: int = 0) -> list[PackedWeight]:
    g = generator(seed)
    codes = [torch.randint(-1, 2, (n, columns), generator=g, dtype=torch.int8) for n in rows]
    return [PackedWeight(pack(c), torch.rand((), generator=g) + 0.01, *c.shape) for c in codes]


def activation(codes: Tensor, seed: int = 0) -> QuantizedActivation:
    padded = nn.functional.pad(codes, (0, -codes.shape[-1] % 16))
    absmax = torch.rand(codes.shape[:-1], generator=generator(seed)) * 3 + FLOOR
    return QuantizedActivation(padded, absmax, codes.sum(-1, dtype=torch.int32))


def random_activation(tokens: int, columns: int, seed: int = 0) -> QuantizedActivation:
    return activation(torch.randint(-128, 128, (tokens, columns), generator=generator(seed), dtype=torch.int8), seed)


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


# --- the product --------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    lead=st.sampled_from([(1,), (5,), (2, 9), (33,)]),
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    columns=st.integers(1, 520),
    with_bias=st.sampled_from([None, torch.float32, torch.bfloat16]),
    with_residual=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    tiles=st.sampled_from([SMALL, SPLIT, Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1, split=2)]),
    seed=st.integers(0, 2**31),
)
def test_any_size_in_any_tiles_equals_the_reference(lead, rows, columns, with_bias, with_residual, dtype, tiles, seed):
    if with_residual:
        rows = rows[:1]
    g = generator(seed)
    weights = random_weights(rows, columns, seed)
    x = activation(torch.randint(-128, 128, (*lead, columns), generator=g, dtype=torch.int8), seed)
    biases = [torch.randn(n, generator=g).to(with_bias) if with_bias else None for n in rows]
    residual = torch.randn(*lead, rows[0], generator=g).to(dtype) if with_residual else None
    prepared = TRITON.prepare(weights, CPU)
    y = TRITON.linear(x, prepared, biases, dtype, residual, tiles)
    assert equal(y, REFERENCE.linear(x, weights, biases, dtype, residual))
    assert all(part.is_contiguous() for part in y)


@pytest.mark.parametrize("tiles", [SMALL, SPLIT])
@pytest.mark.parametrize("columns", [2560, 1152])
def test_the_most_extreme_rows_are_exact(columns, tiles):
    alternating = torch.arange(columns) % 2 * 2 - 1
    rows = torch.stack([torch.ones(columns), -torch.ones(columns), alternating, -alternating, torch.zeros(columns)])
    levels = torch.tensor([[127], [-128], [1], [0]]).expand(-1, columns)
    extremes = torch.stack([alternating * 127, torch.where(alternating > 0, 127, -128)])
    x = activation(torch.cat([levels, extremes]).to(torch.int8))
    weight = PackedWeight(pack(rows.to(torch.int8)), torch.tensor(0.5), *rows.shape)
    (prepared,) = TRITON.prepare([weight], CPU)
    assert equal((TRITON.matmul(x, prepared),), (REFERENCE.matmul(x, weight),))
    assert equal(TRITON.linear(x, [prepared], [None], torch.float32, tiles=tiles), REFERENCE.linear(x, [weight], [None], torch.float32))


def shapes(name: str) -> set[tuple[int, int]]:
    """(N, K) of every product of a preset, joined matrices as one."""
    return {(sum(product.counts), product.columns) for product in products(preset(name))}


@pytest.mark.parametrize("shape", sorted(shapes("3b") | shapes("nano")), ids=str)
def test_every_shape_of_the_presets_equals_the_reference(shape):
    """In each column, and in the rows of a whole tile and of the last one: those between are more of the same."""
    rows, columns = shape
    rows = min(rows, 256 + 1 + (rows - 1) % 256)
    x, weight = random_activation(3, columns), random_weights([rows], columns)
    y = TRITON.linear(x, TRITON.prepare(weight, CPU), [None], torch.float32, tiles=Tiles(256, 16, 4, 1))
    assert equal(y, REFERENCE.linear(x, weight, [None], torch.float32))


def test_every_candidate_of_tuning_is_timed():
    product = Product("small", 3, (40, 24), 600, True, False, 1)
    times = tune(product, (9, 0), CPU, lambda call: float(len(call())))
    assert len(times) == len(list(candidates((9, 0), 600))) and set(times.values()) == {2.0}


def test_a_large_tile_beyond_the_matrix_equals_the_reference():
    weights, x = random_weights([70, 20], 4304 % 512), random_activation(3, 4304 % 512)
    y = TRITON.linear(x, TRITON.prepare(weights, CPU), [None, None], torch.float32, tiles=Tiles(256, 128, 16, 4))
    assert equal(y, REFERENCE.linear(x, weights, [None, None], torch.float32))


@pytest.mark.parametrize("product", products(preset("nano"), tokens=1)[:4], ids=lambda product: product.name)
def test_a_single_token_equals_the_reference(product):
    """The steps of a model that decodes token by token, [1, 1, K], in the tiles that are chosen for them."""
    weights = random_weights(list(product.counts), product.columns)
    codes, absmax, sums = random_activation(1, product.columns)
    x = QuantizedActivation(codes[None], absmax[None], sums[None])
    residual = torch.randn(1, 1, product.counts[0]) if product.residual else None
    nones = [None] * len(weights)
    y = TRITON.linear(x, TRITON.prepare(weights, CPU), nones, torch.float32, residual)
    assert equal(y, REFERENCE.linear(x, weights, nones, torch.float32, residual))


def test_bfloat16_output_is_float32_with_fewer_digits():
    weights, x = random_weights([24], 200), random_activation(6, 200)
    (y,) = TRITON.linear(x, TRITON.prepare(weights, CPU), [None], torch.bfloat16)
    (exact,) = REFERENCE.linear(x, weights, [None], torch.float32)
    assert torch.equal(y.float(), (exact.view(torch.int32) & -65536).view(torch.float32))  # cut: see the top of the file


def test_matrices_prepared_together_also_serve_alone_and_in_any_company():
    weights, x = random_weights([20, 17, 33], 300), random_activation(5, 300)
    prepared = TRITON.prepare(weights, CPU)
    strangers = [TRITON.prepare([weight], CPU)[0] for weight in weights]
    nones = [None, None, None]
    expected = REFERENCE.linear(x, weights, nones, torch.float32)
    for company in (prepared, strangers, [prepared[0], strangers[1], prepared[2]]):
        assert equal(TRITON.linear(x, company, nones, torch.float32), expected)
    assert equal(TRITON.linear(x, prepared[::-1], nones, torch.float32), expected[::-1])
    assert equal(tuple(TRITON.matmul(x, weight) for weight in prepared), tuple(REFERENCE.matmul(x, weight) for weight in weights))


def test_one_of_several_biases_may_be_missing():
    weights, x = random_weights([20, 17, 33], 100), random_activation(5, 100)
    biases = [torch.randn(20), None, torch.randn(33).bfloat16()]
    y = TRITON.linear(x, TRITON.prepare(weights, CPU), biases, torch.float32)
    assert equal(y, REFERENCE.linear(x, weights, biases, torch.float32))


def test_words_hold_each_code_once_where_the_layout_says():
    columns, rows = 300, 5
    codes = torch.randint(-1, 2, (rows, columns), generator=generator(3), dtype=torch.int8)
    (prepared,) = TRITON.prepare([PackedWeight(pack(codes), torch.tensor(1.0), rows, columns)], CPU)
    assert prepared.words.shape == (3, rows, 32)
    padded = nn.functional.pad(codes, (0, 3 * 128 - columns))
    for column in range(3 * 128):
        block, shift, byte = column // 128, column % 128 // 32, column % 32
        assert torch.equal((prepared.words[block, :, byte] >> 2 * shift & 3).to(torch.int8) - 1, padded[:, column])


def test_prepared_weights_take_two_bits_each_in_one_tensor():
    weights = TRITON.prepare(random_weights([48, 16, 16], 256), CPU)
    assert len({weight.words.untyped_storage().data_ptr() for weight in weights}) == 1
    assert weights[0].words.untyped_storage().nbytes() == (48 + 16 + 16) * 256 // 4
    assert [weight.scale.dtype for weight in weights] == [torch.float32] * 3


def test_layers_with_a_common_norm_run_on_triton():
    torch.manual_seed(0)
    layers = [TernaryLinear(96, n, bias=True) for n in (32, 16, 16)]
    norm, x = nn.LayerNorm(96), torch.randn(1, 7, 96)
    for layer in layers:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    weights = [pack_weight(layer.weight.detach()) for layer in layers]
    outputs = []
    with torch.no_grad():
        for backend in (REFERENCE, choose("triton", "cpu")):
            for layer, weight in zip(layers, backend.prepare(weights, CPU), strict=True):
                layer.set_packed(weight, backend)
            outputs.append(norm_linear(norm, layers, x))
    for a, b in zip(*outputs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


# --- the quantizers -----------------------------------------------------------------------------------------------------------

QUANTIZERS = ["quantize", "rms_norm_quantize", "layer_norm_quantize", "squared_relu_norm_quantize", "gelu_quantize"]


def arguments(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> tuple[Tensor | float, ...]:
    g = generator(seed)
    x, other = (torch.randn(shape, generator=g) * 3 for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=g) for _ in range(2))
    return {
        "quantize": (x.to(dtype),),
        "rms_norm_quantize": (x.to(dtype), weight, 1e-5),
        "layer_norm_quantize": (x.to(dtype), weight.to(dtype), bias.to(dtype), 1e-6),
        "squared_relu_norm_quantize": (x.to(dtype), other.to(dtype), weight, 1e-5),
        "gelu_quantize": (x.to(dtype),),
    }[name]


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(QUANTIZERS),
    lead=st.sampled_from([(1,), (3,), (2, 2)]),
    columns=st.one_of(st.integers(2, 200), st.sampled_from([1152, 2560, 4304, 6912])),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_quantizers_equal_the_reference(name, lead, columns, dtype, seed):
    given_ = arguments(name, (*lead, columns), dtype, seed)
    found, expected = getattr(TRITON, name)(*given_), getattr(REFERENCE, name)(*given_)
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert torch.equal(found.sums, found.codes.sum(-1, dtype=torch.int32))
    if name == "quantize":
        assert equal(found, expected)
    else:  # sums in another order: a code between two may fall the other way
        # GELU of numbers near -4 is the difference of nearly equal ones: right to a rounding of the numbers, not of itself
        rounding = 1e-7 * given_[0].abs().max().item() if name == "gelu_quantize" else 0
        torch.testing.assert_close(found.absmax, expected.absmax, rtol=2e-6, atol=rounding)
        well_conditioned = (expected.absmax > 1e3 * rounding).unsqueeze(-1)
        difference = (found.codes.int() - expected.codes.int()).abs() * well_conditioned
        assert difference.max() <= 1 and (difference > 0).sum() <= 1 + difference.numel() // 1000


def test_halves_are_rounded_to_even():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 127.0]])
    assert TRITON.quantize(x).codes[0, :9].tolist() == [0, 2, 2, 0, -2, -2, 126, -126, 127]


def test_zeros_quantize_to_zeros_at_the_floor():
    q = TRITON.quantize(torch.zeros(2, 40))
    assert not q.codes.any() and not q.sums.any() and torch.equal(q.absmax, torch.full((2,), FLOOR))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_activation_that_is_not_finite_gives_an_output_that_is_not(name, bad):
    given_ = arguments(name, (3, 64), torch.float32, 0)
    given_[0][1, 5] = bad
    q = getattr(TRITON, name)(*given_)
    (weight,) = TRITON.prepare(random_weights([4], 64), CPU)
    (y,) = TRITON.linear(q, [weight], [None], torch.float32)
    assert not y[1].isfinite().any() and y[[0, 2]].isfinite().all()


# --- calls that would give wrong numbers ----------------------------------------------------------------------------------------

X, W = random_activation(3, 64), random_weights([8], 64)
READY = TRITON.prepare(W, CPU)
BAD = {
    "no token": lambda: TRITON.quantize(torch.zeros(0, 16)),
    "no number": lambda: TRITON.quantize(torch.tensor(1.0)),
    "integers": lambda: TRITON.quantize(torch.ones(2, 16, dtype=torch.int32)),
    "float64": lambda: TRITON.gelu_quantize(torch.ones(2, 16, dtype=torch.float64)),
    "not contiguous": lambda: TRITON.quantize(torch.ones(16, 2).T),
    "elsewhere": lambda: TRITON.rms_norm_quantize(torch.ones(2, 16), torch.ones(16, device="meta"), 1e-5),
    "a norm of another size": lambda: TRITON.rms_norm_quantize(torch.ones(2, 16), torch.ones(15), 1e-5),
    "gate and up": lambda: TRITON.squared_relu_norm_quantize(torch.ones(2, 16), torch.ones(1, 16), torch.ones(16), 1e-5),
    "another K": lambda: TRITON.linear(random_activation(3, 80), READY, [None], torch.float32),
    "words as `pack` gives them": lambda: TRITON.linear(X, W, [None], torch.float32),
    "words as `pack` gives them, matmul": lambda: TRITON.matmul(X, W[0]),
    "too few words": lambda: TRITON.linear(X, [READY[0]._replace(words=READY[0].words[:, :7])], [None], torch.float32),
    "integers out": lambda: TRITON.linear(X, READY, [None], torch.int32),
    "no bias for a weight": lambda: TRITON.linear(X, READY, [], torch.float32),
    "codes of another dtype": lambda: TRITON.linear(X._replace(codes=X.codes.short()), READY, [None], torch.float32),
    "a residual of another dtype": lambda: TRITON.linear(X, READY, [None], torch.float32, torch.ones(3, 8).half()),
    "different inputs": lambda: TRITON.prepare([*random_weights([8], 64), *random_weights([8], 32)], CPU),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD.keys())
def test_bad_calls_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|a token|those that share"):
        call()
