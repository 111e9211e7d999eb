"""Which tiles the Triton product takes for which shape on which GPU. Imports without Triton.

`MEASURED` holds what evaluation/tune_tiles.py found on a GPU. Any other shape gets the candidate with the least estimated time: rounds
of programs, times the longer of multiplying a tile and bringing its operands from L2, plus storing it. The estimate was never compared
with a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

BLOCK = 128  # columns a block of the kernels' words
GROUP = BLOCK // 4  # bytes of a row in a block


class Tiles(NamedTuple):
    """rows x tokens a program, in so many warps, with so many blocks of columns in flight; `split` programs share a tile's columns."""

    rows: int
    tokens: int
    warps: int
    stages: int
    split: int = 1


class Processor(NamedTuple):
    """What the estimate knows of one streaming multiprocessor: int8 multiply-adds, and bytes from L2, in a cycle."""

    multiply_adds: int
    bytes: int
    candidates: tuple[Tiles, ...]


_AMPERE = (Tiles(128, 128, 8, 3), Tiles(128, 64, 4, 3), Tiles(64, 64, 4, 4), Tiles(64, 32, 4, 4))
_HOPPER = (Tiles(256, 128, 16, 4), Tiles(128, 128, 8, 4), Tiles(256, 64, 8, 4), Tiles(128, 64, 4, 4), Tiles(64, 64, 4, 4))

# By compute capability. Multiply-adds from the vendor's dense int8 rates (Orin 85 TOP/s on 16 processors, H100 1,979 on 132); for Thor,
# which Triton serves with the older instructions, Ampere's. Bytes: published microbenchmarks for H100, guesses elsewhere.
_PROCESSORS = {
    (8, 7): Processor(2048, 32, _AMPERE),
    (9, 0): Processor(4096, 25, _HOPPER),
    (11, 0): Processor(2048, 32, _AMPERE),
}
_OTHER = Processor(2048, 32, _AMPERE)
_SPLITS = (1, 2, 4, 8)
_EDGE_CYCLES = 1500  # before a program's first and after its last product: addresses, the pipeline's filling, rescaling, storing

FEW = 64  # tokens, of which what was measured with a whole sequence says nothing: the steps of a model that decodes token by token
# (compute capability, N, K): tiles, for the chunk's number of tokens, as `python -m bitvla_ros.evaluation.tune_tiles` prints them.
MEASURED: dict[tuple[tuple[int, int], int, int], Tiles] = {}


@cache
def choose_tiles(capability: tuple[int, int], processors: int, tokens: int, rows: int, columns: int) -> Tiles:
    """For a product [rows, columns] x [columns, tokens] on a GPU with so many streaming multiprocessors."""
    measured = MEASURED.get((capability, rows, columns)) if tokens > FEW else None
    return measured or min(candidates(capability, columns), key=lambda tiles: _cycles(tiles, capability, processors, tokens, rows, columns))


def candidates(capability: tuple[int, int], columns: int) -> Iterator[Tiles]:
    """All that may be worth a try; the columns must be enough to split."""
    for tiles in _PROCESSORS.get(capability, _OTHER).candidates:
        for split in _SPLITS:
            if split == 1 or columns >= 4 * split * BLOCK:
                yield tiles._replace(split=split)


def _cycles(tiles: Tiles, capability: tuple[int, int], processors: int, tokens: int, rows: int, columns: int) -> float:
    processor = _PROCESSORS.get(capability, _OTHER)
    programs = -(-rows // tiles.rows) * -(-tokens // tiles.tokens) * tiles.split
    multiply = tiles.rows * tiles.tokens * BLOCK / processor.multiply_adds
    load = (tiles.rows * GROUP + tiles.tokens * BLOCK) / processor.bytes
    blocks = -(-columns // BLOCK) / tiles.split
    finish = 0.0
    if tiles.split > 1:  # partial sums go to memory and come back, and a second kernel starts
        finish = 4000 + 8 * tiles.split * rows * tokens / processor.bytes / processors
    return -(-programs // processors) * (blocks * max(multiply, load) + _EDGE_CYCLES) + finish
