"""Ternary codes in two bits each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pack_2bit(codes: Tensor) -> Tensor:
    """codes: int8 in {-1, 0, 1}, any shape -> uint8 [ceil(numel / 4)].

    Flat row-major order, four codes a byte, code + 1 in bits 0-1, 2-3, 4-5, 6-7; the last byte is filled with zero bits.
    The layout of the BitVLA repository's own packer.
    """
    if not bool(((codes >= -1) & (codes <= 1)).all()):
        raise ValueError("codes outside {-1, 0, 1}: quantize the weight before packing it")
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
