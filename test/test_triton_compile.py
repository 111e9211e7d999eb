"""The Triton kernels compiled ahead of time for Jetson AGX Orin (sm_87), H100 and H200 (sm_90) and Jetson Thor (sm_110), with no GPU.

What the machine code must have: int8 tensor-core products, registers to spare, no spills to local memory, the rounding of the reference.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed (extra `triton`)")

import triton_aot as aot

from bitvla_ros.evaluation.tune_tiles import products
from bitvla_ros.model.config import preset
from bitvla_ros.ternary import triton_kernels as kernels
from bitvla_ros.ternary.triton_tiles import Tiles, choose_tiles

if kernels.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1 leaves nothing to compile", allow_module_level=True)

REGISTERS = 65536  # of a streaming multiprocessor; a thread has at most 255
SHARED = {87: 163 * 1024, 90: 227 * 1024, 110: 227 * 1024}  # bytes that one program may have
PRODUCT = {87: r"IMMA\.16832\.S8\.S8", 90: r"IGMMA\.64x\d+x32\.S8\.S8", 110: r"IMMA\.16832\.S8\.S8"}
QUANTIZERS = {
    "quantize_kernel": 2560,
    "rms_norm_quantize_kernel": 2560,
    "layer_norm_quantize_kernel": 1152,
    "squared_relu_norm_quantize_kernel": 6912,
    "gelu_quantize_kernel": 4304,
}


def production(capability: int) -> dict[Tiles, aot.Code]:
    """Each tile size that the 3b model uses on that GPU, for a whole sequence and for the steps of a single token, with everything at once
    that one launch may have: masks, bias, residual."""
    found = {}
    for product in (*products(preset("3b")), *products(preset("3b"), tokens=1)):
        key = divmod(capability, 10)
        tiles = choose_tiles(key, aot.PROCESSORS[capability], product.tokens, sum(product.counts), product.columns)
        if tiles not in found:
            found[tiles] = aot.linear(capability, tiles, even=False, residual=True)
    return found


@pytest.mark.parametrize("capability", aot.PROCESSORS)
def test_products_run_on_int8_tensor_cores_without_spills(capability):
    for tiles, code in production(capability).items():
        assert code.products and all(re.match(PRODUCT[capability], opcode) for opcode in code.products), tiles
        assert any("MMA" in opcode for opcode in code.loop), "no product in the main loop"
        assert (code.spills, code.stack) == (0, 0), tiles
        assert code.registers <= 255 and code.registers * tiles.warps * 32 <= REGISTERS, tiles
        assert code.shared <= SHARED[capability], tiles


@pytest.mark.parametrize("capability", [87, 90])
def test_joined_matrices_and_assembly_keep_the_main_loop_short(capability):
    """Three matrices cost the loop nothing; unpacking four bytes at a time takes less than half the integer work of one at a time."""
    tiles = Tiles(128, 128, 8, 3)
    single, joined = (aot.linear(capability, tiles, matrices=n) for n in (1, 3))
    plain = aot.linear(capability, tiles, assembly=False)
    assert (joined.spills, joined.stack) == (0, 0)
    assert joined.loop.total() <= single.loop.total() + 16
    assert single.loop_integers <= plain.loop_integers / 2


def test_a_split_product_is_summed_up_and_rescaled_without_spills():
    tiles = Tiles(64, 64, 4, 4, split=2)
    for code in (aot.linear(90, tiles, residual=False), aot.finish(90, tiles)):
        assert (code.spills, code.stack) == (0, 0)


def test_the_epilogue_rounds_as_the_reference_does():
    """No fused multiply-add, IEEE division, and bfloat16 to the nearest."""
    ptx = aot.linear(90, Tiles(128, 128, 8, 3), residual=True).ptx
    assert "fma.rn.f32" not in ptx and "div.rn.f32" in ptx and "cvt.rn.bf16" in ptx
    assert not re.search(r"div\.(full|approx)", ptx)


@pytest.mark.parametrize("capability", aot.PROCESSORS)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_token_is_quantized_in_registers(name, capability):
    code = aot.quantizer(getattr(kernels, name), capability, QUANTIZERS[name])
    assert (code.spills, code.stack) == (0, 0)
    assert code.registers <= 64
    assert any(opcode.startswith("LDG.E") and opcode.endswith("128") for opcode in code.opcodes)  # 16 bytes at a time, in and out
    assert code.opcodes["STG.E.128"] == 1
    assert name.startswith("gelu") or "fma.rn.f32" not in code.ptx
