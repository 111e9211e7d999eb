"""The C library of the CPU kernel: exact on every instruction set, whatever the shape, the values and the number of threads."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitvla_ros.ternary import library
from bitvla_ros.ternary.pack import pack

ROOT = Path(__file__).resolve().parents[1]
KERNEL = ROOT / "bitvla_ros/ternary/kernel"
SHAPES_3B = [(1152, 1152), (1152, 4304), (4304, 1152), (2560, 2560), (2560, 640), (2560, 6912), (6912, 2560)]  # K, N
EVERY_ISA = pytest.mark.parametrize("isa", library.isas())


def random_codes(tokens: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-128, 128, (tokens, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def random_weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed + 1))


def exact(codes: Tensor, weight: Tensor) -> Tensor:
    """Every partial sum is an integer below 2^24, which float32 holds exactly."""
    assert 128 * codes.shape[1] < 2**24
    return (codes.float() @ weight.float().T).to(torch.int32)


def padded(codes: Tensor, margin: int = 0) -> Tensor:
    """As the library wants them: zeros up to a multiple of 16 columns, rows `margin` bytes apart."""
    tokens, columns = codes.shape
    width = -(-columns // 16) * 16
    wide = torch.full((tokens, width + margin), 99, dtype=torch.int8)
    wide[:, :columns] = codes
    wide[:, columns:width] = 0
    return wide[:, :width]


def matmul(codes: Tensor, weight: Tensor, isa: str, threads: int = 1, margin: int = 0) -> Tensor:
    x, words, rows = padded(codes, margin), pack(weight), weight.shape[0]
    sums = codes.sum(1, dtype=torch.int32)
    out = torch.full((len(x), rows + margin), 12345, dtype=torch.int32)
    library.check(
        library.load().bitvla_matmul(
            *(x.data_ptr(), x.stride(0), sums.data_ptr(), words.data_ptr(), len(x), rows, words.shape[1], words.shape[0]),
            *(out.data_ptr(), out.stride(0), library.isa_number(isa), threads),
        )
    )
    assert (out[:, rows:] == 12345).all(), "wrote between the rows"
    return out[:, :rows]


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(1, 40),
    rows=st.integers(1, 150),
    columns=st.integers(1, 700),
    margin=st.sampled_from([0, 5]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_every_instruction_set_is_exact_for_any_shape(tokens: int, rows: int, columns: int, margin: int, threads: int, seed: int):
    codes, weight = random_codes(tokens, columns, seed), random_weight(rows, columns, seed)
    want = exact(codes, weight)
    for isa in library.isas():
        assert torch.equal(matmul(codes, weight, isa, threads, margin), want), isa


@EVERY_ISA
@pytest.mark.parametrize("activation", ["all 127", "all -128", "alternating"])
@pytest.mark.parametrize("row", ["all 1", "all -1", "alternating"])
def test_worst_cases_do_not_overflow(isa: str, activation: str, row: str):
    """6912 columns: sums up to 884,736, far beyond int16, in the order that is hardest on partial sums."""
    columns, sign = 6912, 1 - 2 * (torch.arange(6912) % 2)
    codes = {"all 127": torch.full((columns,), 127), "all -128": torch.full((columns,), -128)}.get(activation, (sign * 127.5 - 0.5).long())
    weight = {"all 1": torch.ones(columns), "all -1": -torch.ones(columns)}.get(row, sign)
    codes, weight = codes.to(torch.int8).repeat(7, 1), weight.to(torch.int8).repeat(17, 1)
    assert torch.equal(matmul(codes, weight, isa), exact(codes, weight))


@EVERY_ISA
@pytest.mark.parametrize(("columns", "rows"), SHAPES_3B)
def test_shapes_of_the_model_are_exact(isa: str, columns: int, rows: int):
    tokens = 3 if isa == "scalar" else 19
    codes, weight = random_codes(tokens, columns), random_weight(rows, columns)
    assert torch.equal(matmul(codes, weight, isa, threads=2), exact(codes, weight))


@EVERY_ISA
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_linear_rounds_as_the_reference_does(isa: str, with_bias: bool, with_residual: bool):
    tokens, rows, columns = 21, 83, 300
    generator = torch.Generator().manual_seed(3)
    codes, weight = random_codes(tokens, columns), random_weight(rows, columns)
    absmax = torch.rand(tokens, generator=generator) * 40
    bias, residual = torch.randn(rows, generator=generator), torch.randn(tokens, rows, generator=generator)
    scale = torch.tensor(0.02371)
    want = exact(codes, weight).float() * (scale * absmax / 127)[:, None]
    want = want + bias if with_bias else want
    want = want + residual if with_residual else want

    x, words, sums = padded(codes), pack(weight), codes.sum(1, dtype=torch.int32)
    out = residual.clone() if with_residual else torch.empty(tokens, rows)  # the residual may be updated in place
    library.check(
        library.load().bitvla_linear(
            *(x.data_ptr(), x.stride(0), sums.data_ptr(), absmax.data_ptr(), words.data_ptr(), scale.item()),
            *(tokens, rows, words.shape[1], words.shape[0], bias.data_ptr() if with_bias else None),
            *(out.data_ptr() if with_residual else None, rows, out.data_ptr(), rows, library.isa_number(isa), 2),
        )
    )
    assert torch.equal(out, want)


@EVERY_ISA
def test_neither_threads_nor_repetition_change_a_bit(isa: str):
    codes, weight = random_codes(201, 336), random_weight(400, 336)
    results = [matmul(codes, weight, isa, threads) for threads in (1, 1, 2, 3, 16)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_python_threads_may_call_at_once():
    problems = [(random_codes(33, 400, seed), random_weight(130, 400, seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda problem: matmul(*problem, library.isa(), threads=2), problems))
    assert all(torch.equal(result, exact(*problem)) for result, problem in zip(results, problems, strict=True))


GOOD = {"codes": 1, "ld_codes": 32, "sums": 1, "words": 1, "tokens": 2, "rows": 16, "stride": 16, "blocks": 2, "out": 1, "ld_out": 16}


@pytest.mark.parametrize(
    "bad",
    [{"codes": 0}, {"sums": 0}, {"words": 0}, {"out": 0}, {"tokens": 0}, {"rows": 0}, {"rows": -1}, {"blocks": 0}]
    + [{"rows": 17}, {"stride": 24}, {"ld_codes": 31}, {"ld_out": 15}, {"blocks": 2**20}, {"threads": 0}, {"threads": 10**6}],
    ids=str,
)
def test_a_bad_argument_is_an_error(bad: dict[str, int]):
    memory = torch.zeros(4096, dtype=torch.uint8)
    call = {**GOOD, "isa": library.isa_number(), "threads": 1, **bad}
    for name in ("codes", "sums", "words", "out"):
        call[name] = memory.data_ptr() if call[name] else None
    with pytest.raises(ValueError, match="null pointer, a size below 1 or strides"):
        library.check(library.load().bitvla_matmul(*call.values()))


def test_an_instruction_set_that_is_not_here_is_an_error():
    memory = torch.zeros(4096, dtype=torch.uint8).data_ptr()
    with pytest.raises(RuntimeError, match="instruction set"):
        library.check(library.load().bitvla_matmul(memory, 32, memory, memory, 2, 16, 16, 2, memory, 16, 77, 1))


def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BITVLA_ISA", raising=False)
    assert library.isa() == library.isas()[0]
    monkeypatch.setenv("BITVLA_ISA", "scalar")
    assert library.isa() == "scalar"
    monkeypatch.setenv("BITVLA_ISA", "mmx")
    with pytest.raises(ValueError, match=r"BITVLA_ISA=mmx: .*scalar"):
        library.isa()


def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    for path, said in ((tmp_path / "none.so", "is not there"), (broken, "cannot be loaded")):
        monkeypatch.setattr(library, "PATH", path)
        with pytest.raises(library.LibraryMissing, match=rf"{path.name}.* {said}.*pip install \."):
            library.load.__wrapped__()


@EVERY_ISA
def test_the_ceiling_is_a_rate(isa: str):
    assert library.ceiling(seconds=0.001, name=isa) > 1e8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_serves_torch_and_the_library():
    """Two would keep separate threads, whose idle ones spin on the cores that the others need."""
    if not list((Path(torch.__file__).parent / "lib").glob("libgomp.so*")):
        pytest.skip("this torch brings no libgomp.so, so its own cannot be shared by name")
    library.load()
    maps = Path("/proc/self/maps").read_text().split("\n")
    assert len({line.split()[-1] for line in maps if "libgomp" in line}) == 1


def cmake(folder: Path, *options: str) -> Path:
    """Builds the kernel alone, as the head of its CMakeLists.txt says; returns the library's folder."""
    for command in (["-S", KERNEL, "-B", folder, *options], ["--build", folder, "--parallel", "2"]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr
    return folder


def check_program(compiler: str, program: Path, *options: object) -> str:
    command = [compiler, "-O2", "-ffp-contract=off", f"-I{KERNEL}", ROOT / "test/kernel_check.c", "-o", program, *options]
    subprocess.run(list(map(str, command)), check=True)
    return str(program)


needs_compiler = pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("cc")), reason="needs cmake and a C compiler")


@needs_compiler
@pytest.mark.parametrize("options", [(), ("-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON",)], ids=["OpenMP", "one thread"])
def test_the_kernel_builds_alone_and_stays_within_its_arrays(tmp_path: Path, options: tuple[str, ...]):
    folder = cmake(tmp_path / "build", *options)
    program = check_program("cc", tmp_path / "check", f"-L{folder}", "-lternary", f"-Wl,-rpath,{folder}")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("exact") == len(library.isas())


SYSROOT = Path("/usr/aarch64-linux-gnu")


@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="needs cmake, aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu qemu-user)",
)
def test_neon_is_exact_under_emulation(tmp_path: Path):
    compiler = "aarch64-linux-gnu-gcc"
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_C_COMPILER={compiler}")
    folder = cmake(tmp_path / "build", *system)
    program = check_program(compiler, tmp_path / "check", f"-L{folder}", "-lternary", f"-Wl,-rpath,{folder}")
    done = subprocess.run(["qemu-aarch64", "-L", str(SYSROOT), program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "isa 4: exact" in done.stdout


def processor_flags() -> set[str]:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-VNNI belongs to x86-64")
@pytest.mark.skipif(not {"avx512vl", "avx512_vnni"} <= processor_flags(), reason="needs AVX-512 VL and VNNI")
def test_avx_vnni_is_exact_in_its_other_encoding(tmp_path: Path):
    """Processors with AVX-512 VNNI but without AVX-VNNI run the 256-bit vpdpbusd in its EVEX encoding: the same source, compiled so."""
    objects = []
    for name, options in {
        "product": [],
        "scalar": [],
        "isa": ["-D__builtin_cpu_supports(name)=1", "-DBITVLA_HAS_AVXVNNI"],
        "avxvnni": ["-mavx2", "-mavx512vl", "-mavx512vnni", "-D_mm256_dpbusd_avx_epi32=_mm256_dpbusd_epi32"],
    }.items():
        objects.append(str(tmp_path / f"{name}.o"))
        command = ["cc", "-std=gnu11", "-O3", "-ffp-contract=off", *options, "-c", str(KERNEL / f"{name}.c"), "-o", objects[-1]]
        subprocess.run(command, check=True)
    done = subprocess.run([check_program("cc", tmp_path / "check", *objects)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "isa 2: exact" in done.stdout
