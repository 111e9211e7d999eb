"""The C library of the CPU kernel, through ctypes: finding it, its functions, and the instruction set it uses."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_double, c_float, c_int, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import torch  # noqa: F401, before the library, which then shares torch's OpenMP threads: one pool, not two in each other's way

PATH = Path(__file__).with_name("libternary.so")
HOW_TO_BUILD = "Build it with `pip install .` or `colcon build`, which need a C compiler and CMake."

# Best first; the values are ternary.h's.
_ISAS = {"avx512vnni": 3, "avxvnni": 2, "avx2": 1, "neon": 4, "scalar": 0}

_ERRORS: dict[int, tuple[type[Exception], str]] = {
    -1: (MemoryError, "the ternary kernel found no memory for its scratch, at most 0.3 MB a thread"),
    -2: (ValueError, "the ternary kernel was called with a null pointer, a size below 1 or strides that cannot hold the sizes"),
    -3: (RuntimeError, "the ternary kernel was asked for an instruction set that this processor or this build lacks"),
}


class LibraryMissing(RuntimeError):
    """The C library was not built, or cannot be loaded."""


class InstructionSetError(ValueError):
    """BITVLA_ISA names an instruction set that is not here."""


@cache
def load() -> ctypes.CDLL:
    """The library with its prototypes (kernel/ternary.h). Pointers go in as integers; `check` what comes back.

    Raises LibraryMissing where it is not built.
    """
    if not PATH.exists():
        raise LibraryMissing(f"the ternary kernel's library {PATH} is not there. {HOW_TO_BUILD}")
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise LibraryMissing(f"the ternary kernel's library {PATH} cannot be loaded: {error}. {HOW_TO_BUILD}") from error
    sizes = [c_int64, c_int64, c_int64, c_int64]  # tokens, rows, stride, blocks
    library.bitvla_isas.argtypes, library.bitvla_isas.restype = [], c_uint32
    library.bitvla_matmul.argtypes = [c_void_p, c_int64, c_void_p, c_void_p, *sizes, c_void_p, c_int64, c_int, c_int]
    library.bitvla_linear.argtypes = [
        c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_float, *sizes, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int, c_int
    ]  # fmt: skip
    library.bitvla_ceiling.argtypes = [c_int, c_double, c_int, POINTER(c_double)]
    return library


def check(status: int) -> None:
    """Raises what a function of the library reported: MemoryError, ValueError, RuntimeError."""
    if status != 0:
        kind, message = _ERRORS.get(status, (RuntimeError, f"the ternary kernel failed with the unknown code {status}"))
        raise kind(message)


def isas() -> tuple[str, ...]:
    """The instruction sets of this build that this processor has, best first; "scalar" is always the last."""
    found = load().bitvla_isas()
    return tuple(name for name, bit in _ISAS.items() if found >> bit & 1)


def isa() -> str:
    """The instruction set in use: the best, or the one that the environment variable BITVLA_ISA names. Raises InstructionSetError."""
    wanted = os.environ.get("BITVLA_ISA")
    choices = isas()
    if not wanted:
        return choices[0]
    if wanted not in choices:
        raise InstructionSetError(f"BITVLA_ISA={wanted}: this processor and this build have {', '.join(choices)}")
    return wanted


def isa_number(name: str | None = None) -> int:
    """What the library's functions take as `isa`: that of `name`, or of the one in use."""
    return _ISAS[isa() if name is None else name]


def ceiling(threads: int = 1, seconds: float = 0.02, name: str | None = None) -> float:
    """Multiply-accumulates a second on registers alone, of all threads together; see bitvla_ceiling in kernel/ternary.h."""
    rate = c_double()
    check(load().bitvla_ceiling(isa_number(name), seconds, threads, byref(rate)))
    return rate.value
