"""The packed layouts: every shape survives, the bits are where kernels look for them, and what is no weight is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitvla_ros.ternary import pack as module
from bitvla_ros.ternary.pack import (
    base3_size,
    has_invalid_codes,
    pack,
    pack_base3,
    pack_weight,
    packed_shape,
    unpack,
    unpack_base3,
)
from bitvla_ros.ternary.quantize import quantize_weight

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def random_codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_any_shape_survives_packing(shape, seed):
    codes = random_codes(*shape, seed)
    words = pack(codes)
    assert words.shape == packed_shape(*shape) and words.dtype == torch.uint8 and words.is_contiguous()
    assert not has_invalid_codes(words)
    assert torch.equal(unpack(words, *shape), codes)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_any_shape_survives_storage_at_1_6_bits(shape, seed):
    words = pack(random_codes(*shape, seed))
    stored = pack_base3(words)
    assert stored.shape == (base3_size(words.numel() * 4),) and stored.dtype == torch.uint8
    assert torch.equal(unpack_base3(stored, *words.shape[:2]), words)


@pytest.mark.parametrize("groups", [1, 2, 3, 7])
def test_conversion_in_parts_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch, groups: int):
    words = pack(random_codes(33, 50))
    expected = pack_base3(words)
    monkeypatch.setattr(module, "_CHUNK", groups)
    assert torch.equal(pack_base3(words), expected)
    assert torch.equal(unpack_base3(expected, *words.shape[:2]), words)


def test_bits_are_where_kernels_look_for_them():
    """One weight at a time is set to 1 (digit 2) in a matrix of zeros (digit 1)."""
    for row, column in ((0, 0), (5, 3), (17, 4), (16, 15), (3, 16), (30, 47), (18, 29)):
        codes = torch.zeros(31, 48, dtype=torch.int8)
        codes[row, column] = 1
        expected = torch.full((3, 32, 4), 0b01010101, dtype=torch.uint8)
        block, within = divmod(column, 16)
        s, j = divmod(within, 4)
        expected[block, row, j] += 1 << 2 * s
        assert torch.equal(pack(codes), expected)


def test_padding_is_weight_zero():
    words = pack(torch.ones(1, 1, dtype=torch.int8))
    assert words[0, 0].tolist() == [0b01010110, 0b01010101, 0b01010101, 0b01010101]
    assert bool((words[0, 1:] == 0b01010101).all())


def test_published_sizes_take_two_bits_a_weight():
    for rows, columns in ((2560, 2560), (640, 2560), (6912, 2560), (2560, 6912), (1152, 1152), (4304, 1152), (1152, 4304)):
        blocks, padded, width = packed_shape(rows, columns)
        assert blocks * padded * width * 4 == rows * columns
        assert base3_size(rows * columns) * 8 <= 1.6 * rows * columns + 8


def test_base_3_digits_come_in_the_order_of_the_words():
    words = pack(torch.tensor([[1, 0, -1, 0] * 4], dtype=torch.int8))  # columns 0, 4, 8, 12 share a byte
    digits = [word >> 2 * s & 3 for word in words.flatten().tolist() for s in range(4)]
    expected = [sum(digit * 3**i for i, digit in enumerate(digits[k : k + 5])) for k in range(0, len(digits) - 4, 5)]
    assert pack_base3(words)[: len(expected)].tolist() == expected
    assert expected[0] == 2 * (1 + 3 + 9 + 27) + 81


def test_a_master_weight_is_packed_as_it_is_quantized():
    weight = torch.randn(20, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed = pack_weight(weight)
    codes, scale = quantize_weight(weight)
    assert (packed.rows, packed.columns) == (20, 40) and torch.equal(packed.scale, scale)
    assert torch.equal(unpack(packed.words, 20, 40), codes)


@pytest.mark.parametrize("length", [8, 64, 5, 13])
@pytest.mark.parametrize("byte", [0b00000011, 0b00001100, 0b00110000, 0b11000000])
def test_a_code_that_is_no_weight_is_found_wherever_it_is(length: int, byte: int):
    for position in range(length):
        words = torch.full((length,), 0b10101010, dtype=torch.uint8)
        assert not has_invalid_codes(words)
        words[position] = byte
        assert has_invalid_codes(words)


def test_a_slice_at_an_odd_address_is_searched_too():
    words = torch.zeros(17, dtype=torch.uint8)
    words[16] = 3
    assert has_invalid_codes(words[1:]) and not has_invalid_codes(words[:16])


def test_what_is_no_ternary_matrix_is_refused():
    with pytest.raises(ValueError, match="outside"):
        pack(torch.tensor([[2]], dtype=torch.int8))
    with pytest.raises(ValueError, match="int8"):
        pack(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="rows, columns"):
        pack(torch.zeros(4, dtype=torch.int8))
    with pytest.raises(ValueError, match="no weights"):
        pack(torch.zeros(0, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match="value 3"):
        pack_base3(torch.full((1, 16, 4), 255, dtype=torch.uint8))


def test_words_of_another_shape_are_refused():
    words = pack(random_codes(16, 32))
    with pytest.raises(ValueError, match=r"\[3, 16, 4\]"):
        unpack(words, 16, 33)
    with pytest.raises(ValueError, match="uint8"):
        unpack(words.int(), 16, 32)
    with pytest.raises(ValueError, match=r"uint8 \[103\]"):
        unpack_base3(pack_base3(words)[:-1], 2, 16)


def test_a_byte_beyond_five_digits_is_refused():
    stored = pack_base3(pack(random_codes(16, 32)))
    stored[7] = 243
    with pytest.raises(ValueError, match="242"):
        unpack_base3(stored, 2, 16)
