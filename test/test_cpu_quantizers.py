"""The C quantizers: torch's bits where nothing is summed, its values where something is, and nothing hidden."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bitvla_ros.ternary import cpu
from bitvla_ros.ternary.quantize import QuantizedActivation, quantize_activation
from bitvla_ros.ternary.reference import BACKEND as REFERENCE

CPU = cpu.BACKEND
KERNEL = Path(cpu.__file__).with_name("kernel")
problem = CPU.problem(torch.device("cpu"))
pytestmark = pytest.mark.skipif(problem is not None, reason=str(problem))

# (tokens, columns) of the published model, and of nano: hidden and intermediate sizes of the language model, then of the vision tower
SHAPES = [(634, 2560), (634, 6912), (512, 1152), (512, 4304), (175, 192), (175, 384), (98, 128), (98, 384)]


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calls(x: Tensor, seed: int = 1) -> dict[str, Callable[[object], QuantizedActivation]]:
    """Every method that quantizes, on x and random partners."""
    columns = x.shape[-1]
    up, weight, bias = randn(*x.shape, seed=seed), randn(columns, seed=seed + 1).exp(), randn(columns, seed=seed + 2)
    return {
        "quantize": lambda backend: backend.quantize(x),
        "rms_norm_quantize": lambda backend: backend.rms_norm_quantize(x, weight, 1e-5),
        "layer_norm_quantize": lambda backend: backend.layer_norm_quantize(x, weight, bias, 1e-6),
        "squared_relu_norm_quantize": lambda backend: backend.squared_relu_norm_quantize(x, up, weight, 1e-5),
        "gelu_quantize": lambda backend: backend.gelu_quantize(x),
    }


METHODS = tuple(calls(torch.ones(1, 1)))


def identical(first: QuantizedActivation, second: QuantizedActivation) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    lead=st.lists(st.integers(1, 5), max_size=2),
    columns=st.integers(1, 130),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_quantize_equals_the_definition_bit_for_bit(lead, columns, exponent, seed, dtype):
    x = (randn(*lead, columns, seed=seed) * 10.0**exponent).to(dtype).nan_to_num()
    codes, absmax, sums = CPU.quantize(x)
    expected_codes, expected_absmax = quantize_activation(x)
    assert torch.equal(codes[..., :columns], expected_codes) and not codes[..., columns:].any()
    assert codes.shape == (*lead, -(-columns // 16) * 16)
    assert torch.equal(absmax, expected_absmax[..., 0])
    assert torch.equal(sums, expected_codes.sum(-1, dtype=torch.int32))


def test_ties_zeros_and_the_largest_floats_quantize_as_defined():
    halves = torch.cat([torch.tensor([127.0]), torch.arange(-126.5, 127, 1.0)])  # absmax 127: every other entry is a tie
    rows = torch.stack([halves, torch.zeros_like(halves), halves * 1e-9, halves * (torch.finfo(torch.float32).max / 127)])
    assert identical(CPU.quantize(rows), REFERENCE.quantize(rows))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_fused_quantizers_equal_torch_but_for_the_order_of_sums(method, shape):
    call = calls(randn(*shape) * 3)[method]
    ours, torchs = call(CPU), call(REFERENCE)
    difference = (ours.codes.int() - torchs.codes.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    torch.testing.assert_close(ours.absmax, torchs.absmax, rtol=1e-6, atol=0)
    assert torch.equal(ours.sums, ours.codes.sum(-1, dtype=torch.int32))


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 4), power=st.integers(0, 9), seed=st.integers(0, 2**31))
def test_norms_equal_torch_bit_for_bit_where_no_sum_is_rounded(rows, power, seed):
    generator = torch.Generator().manual_seed(seed)
    x, up = (torch.randint(-3, 4, (rows, 2**power), generator=generator).float() for _ in range(2))
    weight = torch.rand(2**power, generator=generator)
    assert identical(CPU.rms_norm_quantize(x, weight, 1e-5), REFERENCE.rms_norm_quantize(x, weight, 1e-5))
    assert identical(CPU.squared_relu_norm_quantize(x, up, weight, 1e-5), REFERENCE.squared_relu_norm_quantize(x, up, weight, 1e-5))


def test_gelu_is_accurate_over_all_floats():
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-30, 38, 2001), -torch.logspace(-30, 38, 2001)])
    exact = F.gelu(x.double(), approximate="tanh").abs().clamp(min=1e-5)
    ours = CPU.gelu_quantize(x[:, None]).absmax.double()  # rows of one number: the absmax is its magnitude
    assert ((ours - exact).abs() / x.abs().clamp(min=1.0)).max() < 2e-7
    tail = (x > -8) & (exact > 1e-5)
    assert ((ours - exact)[tail] / exact[tail]).abs().max() < 2e-6  # down in the tail too, where 1 + tanh has lost its digits


@pytest.mark.parametrize("method", METHODS)
def test_rows_depend_neither_on_threads_nor_on_repetition(method):
    call = calls(randn(333, 1157))[method]
    torch.set_num_threads(1)
    first = call(CPU)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert identical(call(CPU), first)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_alone_equals_the_row_in_a_batch(method):
    x, up = randn(5, 83), randn(5, 83, seed=1)
    whole = calls(x)[method](CPU)
    if method == "squared_relu_norm_quantize":  # whose partner has rows too
        weight = randn(83, seed=2).exp()
        alone = CPU.squared_relu_norm_quantize(x[3], up[3], weight, 1e-5)
    else:
        alone = calls(x[3])[method](CPU)
    assert identical(alone, QuantizedActivation(*(tensor[3] for tensor in whole)))


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_not_hidden(method, value):
    x = randn(4, 70)
    clean = calls(x)[method](CPU)
    for column in (0, 69):
        dirty = x.clone()
        dirty[2, column] = value
        quantized = calls(dirty)[method](CPU)
        assert torch.equal(quantized.absmax.isfinite(), torch.tensor([True, True, False, True]))
        assert not quantized.codes[2].any() and quantized.sums[2] == 0
        for ours, expected in zip(quantized, clean, strict=True):
            assert torch.equal(ours[[0, 1, 3]], expected[[0, 1, 3]])


def test_an_up_projection_that_is_not_finite_is_not_hidden():
    gate, up = randn(2, 40).abs(), randn(2, 40, seed=1)
    up[1, 3] = float("nan")
    assert CPU.squared_relu_norm_quantize(gate, up, torch.ones(40), 1e-5).absmax.isfinite().tolist() == [True, False]


def test_every_instruction_set_gives_the_bits_of_plain_unoptimised_c(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    plain = tmp_path / "plain.so"
    options = ["-std=gnu11", "-O0", "-ffp-contract=off", "-DEVERY_ISA=", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, str(KERNEL / "activation.c"), "-o", str(plain), "-lm"], check=True)
    library = ctypes.CDLL(str(plain))
    used, number = cpu._kernel()
    for method in METHODS:
        function = getattr(library, f"bitvla_{method}")
        function.argtypes = getattr(used, f"bitvla_{method}").argtypes
    with pytest.MonkeyPatch.context() as patch:
        for columns in (1, 15, 33, 256, 1157):
            for method, call in calls(randn(3, columns) * 4).items():
                vectorised = call(CPU)
                patch.setattr(cpu, "_kernel", lambda: (library, number))
                assert identical(call(CPU), vectorised), (method, columns)
                patch.undo()


BAD = {
    "no tokens": (torch.zeros(0, 16), "at least one token"),
    "no columns": (torch.zeros(3, 0), "at least one token"),
    "a scalar": (torch.tensor(1.0), "at least one token"),
    "integers": (torch.zeros(3, 16, dtype=torch.int32), "expected floats"),
    "another device": (torch.zeros(3, 16, device="meta"), "on the CPU"),
    "a transposed matrix": (torch.zeros(16, 3).T, "not contiguous"),
    "a slice of columns": (torch.zeros(3, 32)[:, :16], "not contiguous"),
}


@pytest.mark.parametrize(("x", "message"), BAD.values(), ids=BAD.keys())
def test_bad_activations_are_refused(x, message):
    weight = torch.ones(x.shape[-1:])
    for call in (
        lambda: CPU.quantize(x),
        lambda: CPU.rms_norm_quantize(x, weight, 1e-5),
        lambda: CPU.layer_norm_quantize(x, weight, weight, 1e-5),
        lambda: CPU.squared_relu_norm_quantize(x, x, weight, 1e-5),
        lambda: CPU.gelu_quantize(x),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_partners_of_another_size_are_refused():
    x = torch.zeros(3, 16)
    with pytest.raises(ValueError, match=r"expected float32 \[16\]"):
        CPU.rms_norm_quantize(x, torch.ones(15), 1e-5)
    with pytest.raises(ValueError, match=r"expected float32 \[16\]"):
        CPU.layer_norm_quantize(x, torch.ones(16), torch.ones(1), 1e-5)
    with pytest.raises(ValueError, match=r"expected float32 \[3, 16\]"):
        CPU.squared_relu_norm_quantize(x, torch.zeros(1, 16), torch.ones(16), 1e-5)
