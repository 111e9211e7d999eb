"""Compile the Triton kernels for GPUs that are not here, and read the machine code. As a script: the table of docs/performance.md."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitvla_ros.ternary import triton_kernels as kernels
from bitvla_ros.ternary.triton_tiles import Tiles, choose_tiles

PROCESSORS = {87: 16, 90: 132, 110: 20}  # streaming multiprocessors: AGX Orin, H200, Thor
POINTERS = {
    "codes": "*i8", "absmax": "*fp32", "sums": "*i32", "words": "*i8", "scales": "*fp32", "partial": "*i32",
}  # the others are activations, weights of norms and biases
INTEGER = {"LOP3", "SHF", "PRMT", "IADD3", "IMAD", "VIADD", "LEA", "MOV", "SEL", "ISETP", "IMNMX", "VIMNMX", "SGXT", "BFE", "I2I"}


class Code(NamedTuple):
    """registers a thread; stack: bytes a thread; spills: loads and stores of local memory; loop: the opcodes of the main loop."""

    registers: int
    stack: int
    spills: int
    shared: int
    loop: Counter[str]
    opcodes: Counter[str]
    ptx: str

    @property
    def products(self) -> set[str]:
        return {opcode for opcode in self.opcodes if "MMA" in opcode}

    @property
    def loop_integers(self) -> int:
        return sum(n for opcode, n in self.loop.items() if opcode.split(".")[0] in INTEGER)


def linear(capability: int, tiles: Tiles, dtype: str = "bf16", matrices: int = 1, even: bool = True, bias: bool = True,
           residual: bool = False, assembly: bool = True) -> Code:
    split = tiles.split > 1
    return compile_kernel(
        kernels.linear_kernel, capability, tiles.warps, tiles.stages, "i32" if split else dtype, dtype,
        COUNT=matrices, ROWS=tiles.rows, TOKENS=tiles.tokens, SPLIT=tiles.split, EVEN=even, HAS_BIAS=bias, HAS_RESIDUAL=residual,
        INTEGERS=split, ASSEMBLY=assembly,
    )


def finish(capability: int, tiles: Tiles, dtype: str = "bf16", bias: bool = True, residual: bool = True) -> Code:
    return compile_kernel(
        kernels.finish_kernel, capability, tiles.warps, 3, dtype, dtype,
        COUNT=1, ROWS=tiles.rows, TOKENS=tiles.tokens, SPLIT=tiles.split, HAS_BIAS=bias, HAS_RESIDUAL=residual,
    )


def quantizer(kernel: Any, capability: int, columns: int, dtype: str = "bf16") -> Code:
    width = 1 << (columns - 1).bit_length()
    return compile_kernel(kernel, capability, min(max(width // 512, 1), 16), 3, dtype, dtype, COLUMNS=columns, PITCH=columns, WIDTH=width)


def compile_kernel(kernel: Any, capability: int, warps: int, stages: int, out: str, other: str, **constants: Any) -> Code:
    names = kernel.arg_names
    signature = {}
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name == "eps":
            signature[name] = "fp32"
        elif name in POINTERS:
            signature[name] = POINTERS[name]
        elif re.match(r"x$|gate$|up$|weight$|bias|residual$", name):
            signature[name] = f"*{other}"
        else:
            signature[name] = f"*{out}" if name == "out" else "i32"
    unaligned = {"tokens"} if constants.get("COUNT", 1) == kernels.MATRICES else {"tokens", "rows1", "rows2"}  # as the launcher sees them
    aligned = [n for n in names if signature[n][0] == "*" or (signature[n] == "i32" and n not in unaligned)]
    source = ASTSource(
        kernel, signature, {(names.index(n),): value for n, value in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    return read(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))


def read(compiled: Any) -> Code:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = _run(tools / "nvdisasm", "-c", file.name)
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file.name)
    opcodes, labels, backward = [], {}, []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][\w.]*)(.*);", line):
            if instruction[1].startswith("BRA") and (target := re.search(r"\.L_x_\d+", instruction[2])) and target[0] in labels:
                backward.append((labels[target[0]], len(opcodes)))
            opcodes.append(instruction[1])
    loops = [opcodes[start : end + 1] for start, end in backward]
    main = min((loop for loop in loops if any("MMA" in opcode for opcode in loop)), key=len, default=[])
    return Code(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),  # type: ignore[index]
        spills=sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
        shared=compiled.metadata.shared,
        loop=Counter(main),
        opcodes=Counter(opcodes),
        ptx=compiled.asm["ptx"],
    )


def _run(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def table() -> None:
    print(f"Triton {triton.__version__}. In the loop, a block of 128 columns: instructions of one warp. Shared memory in bytes.")
    print("| sm | rows x tokens | warps | stages | unpacking | product | in the loop | integer | all | registers | spills | shared |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for capability in PROCESSORS:
        seen = set()
        for tokens, rows, columns in ((512, 3456, 1152), (640, 3840, 2560), (640, 13824, 2560), (640, 2560, 6912)):
            tiles = choose_tiles((capability // 10, capability % 10), PROCESSORS[capability], tokens, rows, columns)
            for assembly in (True, False):
                if (tiles, assembly) in seen:
                    continue
                seen.add((tiles, assembly))
                code = linear(capability, tiles, bias=False, assembly=assembly)
                products = sum(n for opcode, n in code.loop.items() if "MMA" in opcode)
                print(
                    f"| {capability} | {tiles.rows} x {tiles.tokens}{'' if tiles.split == 1 else f', split {tiles.split}'} | {tiles.warps} "
                    f"| {tiles.stages} | {'assembly' if assembly else 'plain'} | {' '.join(code.products)} | {products} "
                    f"| {code.loop_integers} | {code.loop.total()} | {code.registers} | {code.spills} | {code.shared} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(table())
