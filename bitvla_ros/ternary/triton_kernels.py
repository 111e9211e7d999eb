"""The Triton kernels: quantizers, and the product of two-bit weights with int8 activations on int8 tensor cores.

The product. A program computes a tile of rows (outputs) x tokens. The weight is operand A: on Hopper wgmma takes A from registers, so
unpacked weights never touch shared memory; the activations, read as they lie in memory, are the transposed operand B. Codes are unpacked
to 0, 1, 2; accumulators therefore start at minus the token's sum of activations, and end as the exact int32 sums.

Words on the device are uint8 [ceil(K / 128), N, 32], made of `pack`'s by `relayout` (two bits to two bits). Byte [b, n, j] holds in its
bits 2s and 2s + 1 the code + 1 of row n and column 128 b + 32 s + j. So one shift and one mask of four bytes give four consecutive
columns, a shift of a whole block 32 consecutive ones (the depth of one int8 tensor-core instruction), and the part of a block that a
tile of rows needs is one contiguous piece of memory. Columns behind K are weight 0.

Up to three matrices that share their input (q|k|v, gate|up) lie in the words one after the other and take one launch. Each has its
own scale, bias and tiles, and its own part [tokens, N_i] of the output, one part after the other.

Nothing here waits for the GPU or depends on values, so all of it can be captured in a CUDA graph. Kernels are to be launched with
enable_fp_fusion=False: a fused multiply-add would round otherwise than the reference.
"""

# What a kernel is given has no Python type; the comments at its parameters say what it is.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pack import PackedWeight, require_packed
from .quantize import FLOOR, INT8_MAX
from .triton_tiles import BLOCK, GROUP

MATRICES = 3  # that one launch serves at most

_BLOCK = tl.constexpr(BLOCK)
_GROUP = tl.constexpr(GROUP)
_FLOOR = tl.constexpr(FLOOR)
_INT8_MAX = tl.constexpr(float(INT8_MAX))
_ROUND = tl.constexpr(1.5 * 2**23)  # x + this - this rounds |x| < 2^22 half to even, as every float32 addition does

# Four codes of each shift at a time. Without it every byte is shifted and masked alone: eight times the instructions.
_UNPACK = tl.constexpr("""{
.reg .b32 t1, t2, t3;
shr.u32 t1, $4, 2;
shr.u32 t2, $4, 4;
shr.u32 t3, $4, 6;
and.b32 $0, $4, 0x03030303;
and.b32 $1, t1, 0x03030303;
and.b32 $2, t2, 0x03030303;
and.b32 $3, t3, 0x03030303;
}""")


def relayout(weight: PackedWeight, out: Tensor) -> None:
    """Write the words of `weight`, as `pack` made them, into out: uint8 [ceil(K / 128), N, 32] on any device, rows 32 bytes apart."""
    require_packed(weight.words, weight.rows, weight.columns)
    blocks = out.shape[0]
    words = weight.words.to(out.device)[:, : weight.rows]
    missing = blocks * 8 - words.shape[0]
    if missing:
        words = torch.cat([words, words.new_full((missing, *words.shape[1:]), 0b01010101)])
    # column = 128 b + 32 s + j, j = 16 half + 4 t + i, was: block of 16 (8 b + 2 s + half), shift t, byte i
    source = words.view(blocks, 4, 2, weight.rows, 4)
    target = out.view(blocks, weight.rows, 2, 4, 4)
    for t in range(4):
        byte = (source[:, 0] >> 2 * t) & 3
        for s in range(1, 4):
            byte |= ((source[:, s] >> 2 * t) & 3) << 2 * s
        target[:, :, :, t] = byte.transpose(1, 2)


# --- the product ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens"])
def linear_kernel(
    codes,  # int8 [tokens, pitch], zeros behind K
    absmax,  # float32 [tokens]
    sums,  # int32 [tokens]
    words,  # int8 [blocks, rows of all matrices in the words, 32]
    scales,  # float32 [COUNT]
    bias0,  # [rows0], [rows1], [rows2]
    bias1,
    bias2,
    residual,  # [tokens, rows], with one matrix
    out,  # COUNT parts [tokens, rows_i]; with INTEGERS int32, SPLIT times: the sums of each slice of K
    tokens,
    pitch,  # K rounded up to a multiple of 16
    block_bytes,  # from a block of words to the next
    rows,  # rows0 + rows1 + rows2, without those beyond COUNT
    rows0,
    rows1,
    rows2,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,  # pitch is a multiple of 128
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    INTEGERS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Grid (tiles of rows x tiles of tokens, SPLIT). Programs that share a tile of words run side by side."""
    token_tiles = tl.cdiv(tokens, TOKENS)
    row_tile = tl.program_id(0) // token_tiles
    token = tl.program_id(0) % token_tiles * TOKENS + tl.arange(0, TOKENS)
    matrix, first, count, row_tile = _find_matrix(row_tile, rows0, rows1, rows2, COUNT, ROWS)
    row = row_tile * ROWS + tl.arange(0, ROWS)

    # tiles that reach beyond the last row or token read the last one again, which needs no masks, and do not store it
    seen = tl.minimum(token, tokens - 1)
    column = tl.arange(0, _BLOCK)
    word = words + (first + tl.minimum(row, count - 1))[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    code = codes + seen[None, :] * pitch + column[:, None]
    blocks = tl.cdiv(pitch, _BLOCK)
    begin = blocks * tl.program_id(1) // SPLIT
    end = blocks * (tl.program_id(1) + 1) // SPLIT
    word += begin * block_bytes
    code += begin * _BLOCK

    correction = tl.load(sums + seen)
    if SPLIT > 1:
        correction = tl.where(tl.program_id(1) == 0, correction, 0)
    total = tl.zeros((ROWS, TOKENS), tl.int32) - _settle(correction, TOKENS)[None, :]
    for block in range(begin, end):
        a = _unpack(tl.load(word), ROWS, ASSEMBLY)
        if EVEN:
            b = tl.load(code)
        else:
            b = tl.load(code, mask=(column < pitch - block * _BLOCK)[:, None], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
        word += block_bytes
        code += _BLOCK

    if INTEGERS:
        stored = (row < count)[:, None] & (token < tokens)[None, :]
        part = out + (tl.program_id(1) * rows + first) * tokens
        tl.store(part + token[None, :] * count + row[:, None], total, mask=stored)
    else:
        _rescale(
            total, absmax, scales, bias0, bias1, bias2, residual, out,
            tokens, matrix, first, count, row, token, ROWS, TOKENS, COUNT, HAS_BIAS, HAS_RESIDUAL,
        )


@triton.jit(do_not_specialize=["tokens"])
def finish_kernel(
    partial,  # int32 [SPLIT, tokens * rows], as linear_kernel leaves it
    absmax,
    scales,
    bias0,
    bias1,
    bias2,
    residual,
    out,
    tokens,
    rows,
    rows0,
    rows1,
    rows2,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Add up the slices of K and rescale. Integers add exactly, so the split changes no result. Grid (tiles of rows x of tokens)."""
    token_tiles = tl.cdiv(tokens, TOKENS)
    row_tile = tl.program_id(0) // token_tiles
    token = tl.program_id(0) % token_tiles * TOKENS + tl.arange(0, TOKENS)
    matrix, first, count, row_tile = _find_matrix(row_tile, rows0, rows1, rows2, COUNT, ROWS)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    stored = (row < count)[:, None] & (token < tokens)[None, :]
    place = partial + first * tokens + token[None, :] * count + row[:, None]
    total = tl.load(place, mask=stored, other=0)
    for _ in tl.static_range(1, SPLIT):
        place += rows * tokens
        total += tl.load(place, mask=stored, other=0)
    _rescale(
        total, absmax, scales, bias0, bias1, bias2, residual, out,
        tokens, matrix, first, count, row, token, ROWS, TOKENS, COUNT, HAS_BIAS, HAS_RESIDUAL,
    )


@triton.jit
def _find_matrix(tile, rows0, rows1, rows2, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """The matrix that a tile of rows belongs to: its number, its first row, its rows, and the tile's number within it."""
    matrix = 0
    first = 0
    count = rows0
    if COUNT > 1:
        before = tl.cdiv(rows0, ROWS)
        later = tile >= before
        matrix = tl.where(later, 1, 0)
        first = tl.where(later, rows0, 0)
        count = tl.where(later, rows1, rows0)
        tile = tl.where(later, tile - before, tile)
    if COUNT > 2:
        before = tl.cdiv(rows1, ROWS)
        later = (matrix == 1) & (tile >= before)
        matrix = tl.where(later, 2, matrix)
        first = tl.where(later, rows0 + rows1, first)
        count = tl.where(later, rows2, count)
        tile = tl.where(later, tile - before, tile)
    return matrix, first, count, tile


@triton.jit
def _unpack(words, ROWS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """int8 [ROWS, 32] -> int8 [ROWS, 128], codes 0, 1, 2 in the order of the columns. No data moves: each shift is one K slice."""
    if ASSEMBLY:
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            _UNPACK, "=r,=r,=r,=r,r", [words], dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4
        )
    else:
        c0 = words & 3
        c1 = (words >> 2) & 3
        c2 = (words >> 4) & 3
        c3 = (words >> 6) & 3
    joined = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # [ROWS, 32, s / 2, s % 2]
    return tl.reshape(tl.permute(joined, (0, 2, 3, 1)), (ROWS, _BLOCK))


@triton.jit
def _settle(values, TOKENS: tl.constexpr):
    """The same values [TOKENS]. The reduction keeps each of them in one thread until they are broadcast; without it the compiler lets
    every thread of a tile load and divide all of its tokens' (sm_90, 128 x 128: 192 registers instead of 115, and 650 instructions more).
    """
    return tl.sum(tl.reshape(values, (TOKENS, 1)), 1)


@triton.jit
def _rescale(
    total, absmax, scales, bias0, bias1, bias2, residual, out,
    tokens, matrix, first, count, row, token,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, COUNT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):
    """Store total * (scale * absmax / 127) + bias + residual: float32, in this order, rounded once. total: int32 [ROWS, TOKENS]."""
    stored = (row < count)[:, None] & (token < tokens)[None, :]
    place = first * tokens + token[None, :] * count + row[:, None]
    largest = tl.load(absmax + tl.minimum(token, tokens - 1))
    factor = tl.div_rn(tl.load(scales + matrix) * largest, _INT8_MAX)
    y = total.to(tl.float32) * _settle(factor, TOKENS)[None, :]
    if HAS_BIAS:
        if COUNT > 1:
            bias0 = tl.where(matrix == 1, bias1, bias0)
        if COUNT > 2:
            bias0 = tl.where(matrix == 2, bias2, bias0)
        y += tl.load(bias0 + tl.minimum(row, count - 1)).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        y += tl.load(residual + place, mask=stored, other=0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=stored)


# --- the quantizers: one program a token, which stays in registers ------------------------------------------------------------


@triton.jit
def quantize_kernel(x, codes, absmax, sums, COLUMNS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr):
    """x: any float [tokens, COLUMNS] -> int8 [tokens, PITCH], float32 [tokens], int32 [tokens]. Grid (tokens,); WIDTH >= PITCH."""
    _quantize(_load_token(x, COLUMNS, WIDTH), codes, absmax, sums, PITCH, WIDTH)


@triton.jit
def gelu_quantize_kernel(x, codes, absmax, sums, COLUMNS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr):
    """x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    v = _load_token(x, COLUMNS, WIDTH)
    u = 0.7978845608028654 * (v + 0.044715 * v * v * v)
    _quantize(tl.div_rn(v, 1.0 + tl.exp(-2.0 * u)), codes, absmax, sums, PITCH, WIDTH)


@triton.jit
def rms_norm_quantize_kernel(x, weight, codes, absmax, sums, eps, COLUMNS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr):
    v = _rms_norm(_load_token(x, COLUMNS, WIDTH), weight, eps, COLUMNS, WIDTH)
    _quantize(v, codes, absmax, sums, PITCH, WIDTH)


@triton.jit
def layer_norm_quantize_kernel(
    x, weight, bias, codes, absmax, sums, eps, COLUMNS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr
):
    v = _load_token(x, COLUMNS, WIDTH)
    column = tl.arange(0, WIDTH)
    inside = column < COLUMNS
    v = tl.where(inside, v - tl.div_rn(tl.sum(v, 0), COLUMNS * 1.0), 0.0)
    v *= _inverse_root(v, eps, COLUMNS)
    v *= tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    v += tl.load(bias + column, mask=inside, other=0).to(tl.float32)
    _quantize(v, codes, absmax, sums, PITCH, WIDTH)


@triton.jit
def squared_relu_norm_quantize_kernel(
    gate, up, weight, codes, absmax, sums, eps, COLUMNS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr
):
    v = _load_token(gate, COLUMNS, WIDTH)
    v = tl.where(v < 0, 0.0, v)  # a NaN stays one
    v = v * v * _load_token(up, COLUMNS, WIDTH)
    _quantize(_rms_norm(v, weight, eps, COLUMNS, WIDTH), codes, absmax, sums, PITCH, WIDTH)


@triton.jit
def _load_token(x, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    return tl.load(x + tl.program_id(0) * COLUMNS + column, mask=column < COLUMNS, other=0).to(tl.float32)


@triton.jit
def _rms_norm(v, weight, eps, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    return v * _inverse_root(v, eps, COLUMNS) * tl.load(weight + column, mask=column < COLUMNS, other=0).to(tl.float32)


@triton.jit
def _inverse_root(v, eps, COLUMNS: tl.constexpr):
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(v * v, 0), COLUMNS * 1.0) + eps))


@triton.jit
def _quantize(v, codes, absmax, sums, PITCH: tl.constexpr, WIDTH: tl.constexpr):
    """v: float32 [WIDTH], zeros behind the columns."""
    token = tl.program_id(0)
    # the largest magnitude as an integer: floats without a sign sort as their bits do, and a NaN is above all, as in torch's maximum
    largest = tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0).to(tl.float32, bitcast=True)
    largest = tl.where(largest < _FLOOR, _FLOOR, largest)
    # 1 / largest * 127: the two roundings of torch's 127 / largest
    rounded = (v * (tl.div_rn(1.0, largest) * _INT8_MAX) + _ROUND) - _ROUND
    q = rounded.to(tl.int8)
    column = tl.arange(0, WIDTH)
    tl.store(codes + token * PITCH + column, q, mask=column < PITCH)
    tl.store(absmax + token, largest)
    tl.store(sums + token, tl.sum(q.to(tl.int32), 0))


INTERPRETED = not isinstance(linear_kernel, triton.JITFunction)  # TRITON_INTERPRET=1: kernels run in numpy, on CPU tensors
