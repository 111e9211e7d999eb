"""The safetensors format, written tensor by tensor and read without trust.

A file is the length of its header (8 bytes, little-endian), the header, which is JSON and names the tensors with their dtypes, shapes
and places, and the tensors' bytes, without gaps. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
# What others' files may have too, to be read, never written.
FOREIGN = {
    "BOOL": torch.bool,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
ALIGNMENT = 64  # of the data: a cache line, and the widest vector
MAX_HEADER = 100_000_000  # bytes, the format's own limit


class FormatError(ValueError):
    """The file is not safetensors, or not all of it. The message does not repeat the file's name."""


class Entry(NamedTuple):
    """Where a tensor is: its bytes are [begin, end) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsWriter:
    """A file whose tensors are written one at a time, in any order, each in parts along its first dimension.

    specs: dtype and shape of each tensor. metadata: words for the header. All of the file is reserved at once, so that a full disk
    shows before the work begins.
    header_hash: SHA-256 of what stands before the data. size: bytes of the file. Raises OSError.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
    ) -> None:
        header, self.entries = _layout(specs, metadata)
        self.header_hash = hashlib.sha256(header).hexdigest()
        self.size = max(entry.end for entry in self.entries.values())
        self._missing = set(specs)
        self._file = path.open("xb")
        try:
            os.posix_fallocate(self._file.fileno(), 0, self.size)
            self._file.write(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                assert not self._missing, self._missing
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, name: str, parts: Iterable[Tensor]) -> str:
        """-> SHA-256 of the tensor's bytes, hex."""
        entry, digest = self.entries[name], hashlib.sha256()
        self._file.seek(entry.begin)
        for part in parts:
            assert part.dtype == entry.dtype
            data: Any = part.contiguous().flatten().view(torch.uint8).numpy()
            digest.update(data)
            self._file.write(data)
        assert self._file.tell() == entry.end, name
        self._missing.remove(name)
        return digest.hexdigest()


def read_header(path: Path) -> tuple[str, dict[str, Entry]]:
    """SHA-256 of what stands before the data, and the tensors' places. Raises FormatError unless they fill the file exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise FormatError(f"it is cut short: {size} bytes, of which the header alone takes {8 + length}")
        if length > MAX_HEADER:
            raise FormatError(f"its header of {length} bytes is longer than the format allows ({MAX_HEADER})")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        entries = {name: _entry(8 + length, **tensor) for name, tensor in tensors.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(f"its header is damaged ({error})") from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != end:
            raise FormatError(f"its header is damaged ({name} begins at {entry.begin}, expected {end})")
        end = entry.end
    if end != size:
        raise FormatError(f"it is cut short: {size} bytes of {end}" if size < end else f"{size - end} bytes more than its header tells of")
    return hashlib.sha256(prefix + header).hexdigest(), entries


def map_file(path: Path, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Every tensor, memory-mapped: read from the file where it is touched. One that is not aligned in the file is a copy."""
    memory = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def tensor(entry: Entry) -> Tensor:
        stored = memory[entry.begin : entry.end]
        return (stored.clone() if entry.begin % entry.dtype.itemsize else stored).view(entry.dtype).view(entry.shape)

    return {name: tensor(entry) for name, entry in entries.items()}


def _layout(specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, Entry]]:
    """The file's bytes before the data, and where each tensor goes."""
    sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in specs.items()}
    # Gaps are not allowed. In falling order of the power of two that divides their sizes, all tensors are aligned.
    order = sorted(specs, key=lambda name: -min(ALIGNMENT, sizes[name] & -sizes[name]))
    codes = {dtype: code for code, dtype in DTYPES.items()}
    tensors: dict[str, dict[str, Any]] = {}
    at = 0
    for name in order:
        dtype, shape = specs[name]
        tensors[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    named = tensors if metadata is None else {"__metadata__": dict(metadata), **tensors}
    header = json.dumps(named, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    start = 8 + len(header)
    return len(header).to_bytes(8, "little") + header, {name: _entry(start, **tensors[name]) for name in order}


def _entry(start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    """An entry of the header, checked. start: of the data in the file."""
    begin, end = data_offsets
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"a tensor with shape {shape} at {data_offsets}")
    known = DTYPES | FOREIGN
    if dtype not in known:
        raise ValueError(f"dtype {dtype} is not one of {', '.join(known)}")
    if end - begin != known[dtype].itemsize * math.prod(shape):
        raise ValueError(f"{end - begin} bytes for {dtype} {shape}")
    return Entry(known[dtype], tuple(shape), start + begin, start + end)
