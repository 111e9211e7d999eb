"""The CPU backend's products: the reference's integers and floats bit for bit, as torch operators, on packed weights alone."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitvla_ros.model.config import preset
from bitvla_ros.ternary import cpu
from bitvla_ros.ternary.backends import choose
from bitvla_ros.ternary.library import InstructionSetError, isas
from bitvla_ros.ternary.pack import PackedWeight, pack, pack_weight
from bitvla_ros.ternary.quantize import QuantizedActivation
from bitvla_ros.ternary.reference import BACKEND as REFERENCE

CPU = cpu.BACKEND
problem = CPU.problem(torch.device("cpu"))
pytestmark = pytest.mark.skipif(problem is not None, reason=str(problem))


def shapes(name: str) -> set[tuple[int, int]]:
    """(N, K) of every ternary matrix of a preset."""
    language, vision = preset(name).language, preset(name).vision
    hidden, inner = language.hidden_size, language.intermediate_size
    found = {(hidden, hidden), (language.num_key_value_heads * language.head_dim, hidden), (inner, hidden), (hidden, inner)}
    hidden, inner = vision.hidden_size, vision.intermediate_size
    return found | {(hidden, hidden), (inner, hidden), (hidden, inner)}


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=isas() if problem is None else ["none"])
def isa(request, monkeypatch) -> Iterator[str]:
    """Each instruction set of this processor in turn."""
    monkeypatch.setenv("BITVLA_ISA", request.param)
    cpu._kernel.cache_clear()
    yield request.param
    cpu._kernel.cache_clear()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weight(rows: int, columns: int, seed: int = 0) -> PackedWeight:
    codes = torch.randint(-1, 2, (rows, columns), generator=generator(seed), dtype=torch.int8)
    return PackedWeight(pack(codes), torch.rand((), generator=generator(seed + 1)) + 0.01, rows, columns)


def activation(codes: Tensor, seed: int = 0) -> QuantizedActivation:
    """Any int8 codes [..., K], -128 too, which no quantizer gives; random absmax."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 16))
    return QuantizedActivation(padded, torch.rand(codes.shape[:-1], generator=generator(seed)) + 0.1, codes.sum(-1, dtype=torch.int32))


def random_activation(tokens: int, columns: int, seed: int = 0) -> QuantizedActivation:
    return activation(torch.randint(-128, 128, (tokens, columns), generator=generator(seed), dtype=torch.int8), seed)


def same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return len(first) == len(second) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", sorted(shapes("3b") | shapes("nano")), ids=str)
def test_every_shape_of_the_presets_equals_the_reference(shape, isa):
    rows, columns = shape
    x, weight, bias = random_activation(3, columns), random_weight(rows, columns), torch.randn(rows, generator=generator(2))
    assert torch.equal(CPU.matmul(x, weight), REFERENCE.matmul(x, weight))
    for call in ([None], torch.float32), ([bias], torch.float32, torch.randn(3, rows, generator=generator(3))):
        assert same(CPU.linear(x, [weight], *call), REFERENCE.linear(x, [weight], *call))


def test_a_whole_prompt_equals_the_reference():
    x, weight = random_activation(634, 2560), random_weight(640, 2560)
    residual = torch.randn(634, 640, generator=generator(4))
    assert torch.equal(CPU.matmul(x, weight), REFERENCE.matmul(x, weight))
    call = [weight], [None], torch.float32, residual
    assert same(CPU.linear(x, *call), REFERENCE.linear(x, *call))


@pytest.mark.parametrize("columns", [6912, 4304])
def test_the_longest_and_most_extreme_rows_are_exact(columns, isa):
    one = torch.ones(columns, dtype=torch.int8)
    alternating = torch.tensor([1, -1], dtype=torch.int8).repeat(columns // 2)
    weight = torch.stack([one, -one, 0 * one, alternating, -alternating])
    codes = torch.stack([-128 * one, 127 * one, one, torch.where(alternating > 0, 127, -128).to(torch.int8)])
    packed = PackedWeight(pack(weight), torch.tensor(0.5), 5, columns)
    assert torch.equal(CPU.matmul(activation(codes), packed), (codes.long() @ weight.long().T).int())


@settings(deadline=None, max_examples=80)
@given(
    lead=st.sampled_from([(1,), (2,), (5,), (17,), (2, 3), (1, 1, 4)]),
    rows=st.integers(1, 90),
    columns=st.integers(1, 300),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**31),
)
def test_any_size_equals_the_reference(lead, rows, columns, with_bias, with_residual, dtype, threads, seed):
    torch.set_num_threads(threads)
    x = CPU.quantize(torch.randn(*lead, columns, generator=generator(seed)))
    weight = random_weight(rows, columns, seed)
    bias = torch.randn(rows, generator=generator(seed + 2)).to(dtype) if with_bias else None
    residual = torch.randn(*lead, rows, generator=generator(seed + 3)).to(dtype) if with_residual else None
    assert torch.equal(CPU.matmul(x, weight), REFERENCE.matmul(x, weight))
    call = [weight], [bias], dtype, residual
    assert same(CPU.linear(x, *call), REFERENCE.linear(x, *call))


def test_weights_that_share_an_input_each_keep_their_scale_and_bias():
    x = random_activation(7, 100)
    weights, biases = [random_weight(rows, 100, rows) for rows in (48, 12, 13)], [None, torch.randn(12), torch.randn(13)]
    assert same(CPU.linear(x, weights, biases, torch.float32), REFERENCE.linear(x, weights, biases, torch.float32))
    assert same(CPU.linear(x, weights, biases, torch.bfloat16), REFERENCE.linear(x, weights, biases, torch.bfloat16))


def test_repeated_runs_give_identical_bytes_on_any_number_of_threads(isa):
    x, weight = random_activation(77, 512), random_weight(203, 512)
    expected = CPU.linear(x, [weight], [None], torch.float32)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert same(CPU.linear(x, [weight], [None], torch.float32), expected)


def test_an_activation_that_is_not_finite_gives_an_output_that_is_not():
    x = torch.randn(3, 64, generator=generator(0))
    x[1, 5], x[2, 6] = float("nan"), float("inf")
    (y,) = CPU.linear(CPU.quantize(x), [random_weight(33, 64)], [torch.ones(33)], torch.bfloat16, torch.ones(3, 33, dtype=torch.bfloat16))
    assert y[0].isfinite().all() and not y[1:].isfinite().any()


# --- what torch's compilers see ----------------------------------------------------------------------------------------------


def operator_samples() -> dict[str, tuple[object, ...]]:
    x, y, weight = torch.randn(3, 2, 40), torch.randn(3, 2, 40), torch.rand(40)
    product = (*random_activation(5, 40), *random_weight(24, 40))
    return {
        "quantize": (x,),
        "rms_norm_quantize": (x, weight, 1e-5),
        "layer_norm_quantize": (x, weight, weight, 1e-6),
        "squared_relu_norm_quantize": (x, y, weight, 1e-5),
        "gelu_quantize": (x,),
        "matmul": product,
        "linear": (*product, torch.randn(24), torch.randn(5, 24)),
    }


@pytest.mark.parametrize("name", operator_samples())
def test_operators_are_registered_as_torch_expects(name):
    torch.library.opcheck(getattr(torch.ops.bitvla, name).default, operator_samples()[name])


class Block(nn.Module):
    """Everything the backend does, from one input to one output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.rand(40, generator=generator(5)))
        for i, (rows, columns) in enumerate([(40, 40), (40, 40), (24, 40)]):
            weight = random_weight(rows, columns, i)
            self.register_buffer(f"words_{i}", weight.words)
            self.register_buffer(f"scale_{i}", weight.scale)

    def forward(self, x: Tensor) -> Tensor:
        gate_weight, up_weight, down = (
            PackedWeight(getattr(self, f"words_{i}"), getattr(self, f"scale_{i}"), rows, 40) for i, rows in enumerate((40, 40, 24))
        )
        gate, up = CPU.linear(CPU.rms_norm_quantize(x, self.norm, 1e-5), [gate_weight, up_weight], [None, None], x.dtype)
        (y,) = CPU.linear(CPU.squared_relu_norm_quantize(gate, up, self.norm, 1e-5), [down], [None], x.dtype)
        return y


@torch.no_grad()
def test_compile_sees_one_graph_and_changes_no_bit():
    block, x = Block(), torch.randn(6, 40, generator=generator(6))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for tokens in (6, 3):
        assert torch.equal(compiled(x[:tokens]), block(x[:tokens]))


@torch.no_grad()
def test_export_keeps_each_operator_whole():
    block, x = Block(), torch.randn(6, 40, generator=generator(6))
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("tokens", min=2, max=64)},))
    called = [str(node.target) for node in program.graph.nodes if str(node.target).startswith("bitvla.")]
    assert called == [
        "bitvla.rms_norm_quantize.default",
        "bitvla.linear.default",
        "bitvla.linear.default",
        "bitvla.squared_relu_norm_quantize.default",
        "bitvla.linear.default",
    ]
    assert torch.equal(program.module()(x[:5]), block(x[:5]))


# --- memory ------------------------------------------------------------------------------------------------------------------


def test_weights_stay_where_they_are_and_are_never_unpacked(tmp_path):
    rows, columns = 6912, 2560
    weight = random_weight(rows, columns)
    path = tmp_path / "words"
    path.write_bytes(weight.words.numpy().tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    words = torch.frombuffer(mapped, dtype=torch.uint8).view(weight.words.shape)
    (prepared,) = CPU.prepare([weight._replace(words=words)], torch.device("cpu"))
    assert prepared.words.data_ptr() == words.data_ptr()

    x = random_activation(3, columns)
    CPU.linear(x, [prepared], [None], torch.float32)  # threads, scratch and the file's pages are there now
    growth = peak_growth(lambda: CPU.linear(x, [prepared], [None], torch.float32))
    assert growth < rows * columns // 8  # two bits a weight are a quarter of a byte; int8 would be eight times this


def peak_growth(call) -> int:
    """Bytes by which `call` raises this process's peak of resident memory above where it stands."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    gc.collect()
    try:
        clear.write_text("5")  # the peak starts anew from here (proc(5))
    except OSError as error:
        pytest.skip(f"no resettable peak of memory here: {error}")
    fields = [dict(line.split(":", 1) for line in status.read_text().splitlines())]
    call()
    fields.append(dict(line.split(":", 1) for line in status.read_text().splitlines()))
    before, after = (int(field[name].split()[0]) * 1024 for field, name in zip(fields, ("VmRSS", "VmHWM"), strict=True))
    return after - before


# --- bad calls ---------------------------------------------------------------------------------------------------------------

X, W = random_activation(3, 64), random_weight(20, 64)
BAD_CALLS = {
    "no tokens": ((random_activation(0, 64), [W], [None], torch.float32), "at least one token"),
    "codes that are not int8": ((X._replace(codes=X.codes.int()), [W], [None], torch.float32), "expected int8"),
    "codes that are not contiguous": ((X._replace(codes=X.codes.T.contiguous().T), [W], [None], torch.float32), "not contiguous"),
    "codes of another width": ((random_activation(3, 80), [W], [None], torch.float32), "80 activation codes"),
    "absmax in another dtype": ((X._replace(absmax=X.absmax.double()), [W], [None], torch.float32), "absmax"),
    "sums of other tokens": ((X._replace(sums=X.sums[:2]), [W], [None], torch.float32), "sums"),
    "words of another matrix": ((X, [W._replace(rows=40)], [None], torch.float32), "words are"),
    "words that are not bytes": ((X, [W._replace(words=W.words.int())], [None], torch.float32), "words are"),
    "words that are not contiguous": ((X, [W._replace(words=W.words.mT.contiguous().mT)], [None], torch.float32), "packed words"),
    "words on another device": ((X, [W._replace(words=W.words.to("meta"))], [None], torch.float32), "words are"),
    "a scale in another dtype": ((X, [W._replace(scale=W.scale.double())], [None], torch.float32), "scale"),
    "a bias of another size": ((X, [W], [torch.zeros(21)], torch.float32), "bias"),
    "a bias that is not contiguous": ((X, [W], [torch.zeros(40)[::2]], torch.float32), "contiguous"),
    "a bias of integers": ((X, [W], [torch.zeros(20, dtype=torch.int32)], torch.float32), "expected floats"),
    "an output of integers": ((X, [W], [None], torch.int32), "float dtype"),
    "a residual of another dtype": ((X, [W], [None], torch.bfloat16, torch.zeros(3, 20)), "residual"),
    "a residual of another shape": ((X, [W], [None], torch.float32, torch.zeros(1, 20)), "residual"),
    "a residual that is not contiguous": ((X, [W], [None], torch.float32, torch.zeros(20, 3).T), "residual"),
    "a residual for two weights": ((X, [W, W], [None, None], torch.float32, torch.zeros(3, 20)), "residual"),
    "fewer biases than weights": ((X, [W, W], [None], torch.float32), "2 weights and 1 biases"),
    "no weights": ((X, [], [], torch.float32), "at least one"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        CPU.linear(*call)


@pytest.mark.parametrize("replaced", [{"rows": 40}, {"columns": 80}, {"words": W.words.int()}, {"words": W.words[:, ::2]}], ids=str)
def test_a_bad_weight_is_refused_by_matmul_too(replaced):
    with pytest.raises(ValueError):
        CPU.matmul(X, W._replace(**replaced))


def test_other_devices_are_a_problem_with_a_remedy():
    assert "ask for the device cpu" in str(CPU.problem(torch.device("cuda")))


def test_an_unknown_instruction_set_is_an_error_and_no_reason_to_be_slow(monkeypatch):
    monkeypatch.setenv("BITVLA_ISA", "mmx")
    cpu._kernel.cache_clear()
    with pytest.raises(InstructionSetError, match="scalar"):
        choose("auto", "cpu")


def test_a_packed_master_weight_is_the_layer():
    x, weight = torch.randn(4, 50, generator=generator(8)), torch.randn(30, 50, generator=generator(9))
    call = [pack_weight(weight)], [None], torch.float32
    assert same(CPU.linear(CPU.quantize(x), *call), REFERENCE.linear(REFERENCE.quantize(x), *call))
