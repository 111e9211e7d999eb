"""Ternary codes in two bits each, as kernels read them, and five to a byte, for storage.

A packed matrix is uint8 [blocks, rows, 4]: 16 columns a block, and in a block the rows one after the other, four bytes each. Byte
[b, r, j] holds in its bits 2s and 2s + 1 the code + 1 of row r and column 16 b + 4 s + j. So one shift and one mask of a vector of
32-bit words give four consecutive columns of consecutive rows, the operand of an int8 dot-product instruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .quantize import quantize_weight

TILE = 16  # columns a block; rows are padded to a multiple of it too
_ZEROS = 0b01010101  # a byte of four weights that are 0
_TRITS = 5  # a byte: 3^5 = 243 <= 256
_CHUNK = 1 << 18  # groups of 20 weights that are converted at a time, to bound temporary memory


class PackedWeight(NamedTuple):
    """A ternary matrix: weight ~ codes * scale.

    words: uint8 [ceil(K / 16), N rounded up to a multiple of 16, 4], contiguous, see `pack`. scale: float32 scalar, the absmean.
    rows: N, outputs. columns: K, inputs.
    """

    words: Tensor
    scale: Tensor
    rows: int
    columns: int


def pack_weight(weight: Tensor) -> PackedWeight:
    """Quantize a master weight, any float [N, K], and pack it."""
    codes, scale = quantize_weight(weight)
    return PackedWeight(pack(codes), scale, *weight.shape)


def packed_shape(rows: int, columns: int) -> tuple[int, int, int]:
    """Shape of the words of a matrix [rows, columns]."""
    if rows < 1 or columns < 1:
        raise ValueError(f"a matrix [{rows}, {columns}] has no weights: expected at least one row and one column")
    return -(-columns // TILE), -(-rows // TILE) * TILE, 4


def pack(codes: Tensor) -> Tensor:
    """codes: int8 [N, K] in {-1, 0, 1} -> uint8 [ceil(K / 16), N rounded up to a multiple of 16, 4]. Padding is weight 0."""
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}: expected int8 [rows, columns]")
    blocks, rows, _ = packed_shape(*codes.shape)
    _require_ternary(codes)
    padding = (0, blocks * TILE - codes.shape[1], 0, rows - codes.shape[0])
    digits = torch.nn.functional.pad(codes, padding).add_(1).view(torch.uint8)
    digits = digits.view(rows, blocks, 4, 4).transpose(0, 1)
    words = digits[:, :, 0].clone(memory_format=torch.contiguous_format)
    for s in range(1, 4):
        words |= digits[:, :, s] << 2 * s
    return words


def unpack(words: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse: uint8 [ceil(K / 16), N rounded up to a multiple of 16, 4] -> int8 codes [N, K]."""
    require_packed(words, rows, columns)
    blocks, padded, _ = words.shape
    digits = words.new_empty((padded, blocks, 4, 4))
    for s in range(4):
        digits[:, :, s] = (words >> 2 * s & 3).transpose(0, 1)
    return digits.view(torch.int8).sub_(1).view(padded, blocks * TILE)[:rows, :columns].contiguous()


def require_packed(words: Tensor, rows: int, columns: int) -> None:
    """Raises ValueError unless `words` has the dtype and the shape of a packed [rows, columns]."""
    expected = packed_shape(rows, columns)
    if words.dtype != torch.uint8 or words.shape != expected:
        raise ValueError(f"words are {words.dtype} {list(words.shape)}: a packed [{rows}, {columns}] is uint8 {list(expected)}")


def has_invalid_codes(words: Tensor) -> bool:
    """Whether any of the two-bit fields is 3, which stands for no weight. words: uint8, contiguous, any shape."""
    flat = words.flatten()
    if flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0:
        flat = flat.view(torch.int64)  # eight bytes at a time; the shifted-in sign falls under the mask
        return bool((flat & flat >> 1 & 0x5555555555555555).any())
    return bool((flat & flat >> 1 & _ZEROS).any())


def pack_base3(words: Tensor) -> Tensor:
    """words: uint8 [B, R, 4], as `pack` gives them -> uint8 [ceil(B * R * 16 / 5)], 1.6 bits a weight, for storage and transfer.

    Five base-3 digits (code + 1) a byte, the first one the lowest, in the order of the words' bytes and in a byte from the low
    bits up; the last byte is filled with weights 0.
    """
    if has_invalid_codes(words):
        raise ValueError("words hold the two-bit value 3, which is no weight: pack the codes anew")
    flat = words.flatten()
    out = flat.new_empty(base3_size(flat.numel() * 4))
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=words.device)
    for start in range(0, flat.numel(), 5 * _CHUNK):
        some = flat[start : start + 5 * _CHUNK]
        some = torch.nn.functional.pad(some, (0, -some.numel() % 5), value=_ZEROS)
        digits = torch.stack([some >> 2 * s & 3 for s in range(4)], dim=1).view(-1, _TRITS)
        packed = (digits * powers).sum(1, dtype=torch.uint8)
        out[start // 5 * 4 :][: packed.numel()] = packed[: out.numel() - start // 5 * 4]
    return out


def unpack_base3(packed: Tensor, blocks: int, rows: int) -> Tensor:
    """The inverse: uint8 [ceil(blocks * rows * 16 / 5)] -> words uint8 [blocks, rows, 4]; `rows` counts padding too.

    Raises ValueError for a byte above 242.
    """
    size = base3_size(blocks * rows * TILE)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ValueError(f"packed is {packed.dtype} {list(packed.shape)}: {blocks} blocks of {rows} rows take uint8 [{size}]")
    if bool((packed >= 3**_TRITS).any()):
        raise ValueError(f"a byte is above {3**_TRITS - 1}, the largest number of five base-3 digits")
    byte = torch.arange(3**_TRITS, device=packed.device)
    two_bit = sum(byte // 3**i % 3 << 2 * i for i in range(_TRITS))
    assert isinstance(two_bit, Tensor)
    out = packed.new_empty(blocks * rows * 4)
    for start in range(0, size, 4 * _CHUNK):  # four bytes, 20 weights, become five
        some = packed[start : start + 4 * _CHUNK]
        some = torch.nn.functional.pad(some, (0, -some.numel() % 4)).view(-1, 4)
        group = two_bit[some[:, 0].int()]
        for i in range(1, 4):
            group |= two_bit[some[:, i].int()] << 10 * i
        words = torch.stack([(group >> 8 * i).to(torch.uint8) for i in range(5)], dim=1).flatten()
        part = out[start // 4 * 5 :][: words.numel()]
        part.copy_(words[: part.numel()])
    return out.view(blocks, rows, 4)


def base3_size(weights: int) -> int:
    """Bytes that many weights take, five to a byte."""
    return -(-weights // _TRITS)


# --- the layout of the BitVLA repository's own packer ---------------------------------------------------------------------


def pack_2bit(codes: Tensor) -> Tensor:
    """codes: int8 in {-1, 0, 1}, any shape -> uint8 [ceil(numel / 4)].

    Flat row-major order, four codes a byte, code + 1 in bits 0-1, 2-3, 4-5, 6-7; the last byte is filled with zero bits.
    """
    _require_ternary(codes)
    flat = codes.flatten().add(1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 4)).view(-1, 4)
    return flat[:, 0] | flat[:, 1] << 2 | flat[:, 2] << 4 | flat[:, 3] << 6


def unpack_2bit(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse: uint8 [ceil(numel / 4)] -> int8 codes of `shape`."""
    numel = math.prod(shape)
    if packed.numel() != -(-numel // 4):
        raise ValueError(f"{packed.numel()} packed bytes cannot hold shape {tuple(shape)}: expected {-(-numel // 4)}")
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device)
    codes = (packed.view(-1, 1) >> shifts & 3).flatten()[:numel]
    return codes.to(torch.int8).sub_(1).view(tuple(shape))


def _require_ternary(codes: Tensor) -> None:
    if not bool(((codes >= -1) & (codes <= 1)).all()):
        raise ValueError("codes outside {-1, 0, 1}: quantize the weight before packing it")
