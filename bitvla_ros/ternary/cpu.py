"""The CPU backend: the C library's functions as torch operators `bitvla::*`, and the backend that calls them.

An operator checks what it is given, allocates its results and calls C once, with pointers, while the GIL is free. Checks and
allocations are also its fake implementation, so that torch.compile and torch.export see one operator and raise the same errors.
All of them are for inference: no gradient passes through. Threads are torch's (torch.set_num_threads).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .backends import require_activation, require_call, require_weight
from .library import LibraryMissing, check, isa_number, load
from .pack import TILE, PackedWeight, require_packed
from .quantize import QuantizedActivation

# Those that quantize, as kernel/activation.h has them: so many matrices [..., K], vectors [K], and eps or not.
_QUANTIZERS = {
    "quantize(Tensor x)": (1, 0, False),
    "rms_norm_quantize(Tensor x, Tensor weight, float eps)": (1, 1, True),
    "layer_norm_quantize(Tensor x, Tensor weight, Tensor bias, float eps)": (1, 2, True),
    "squared_relu_norm_quantize(Tensor gate, Tensor up, Tensor weight, float eps)": (2, 1, True),
    "gelu_quantize(Tensor x)": (1, 0, False),
}
_PRODUCT = "Tensor codes, Tensor absmax, Tensor sums, Tensor words, Tensor scale, int rows, int columns"
_OPERATORS = torch.library.Library("bitvla", "FRAGMENT")
_ops = torch.ops.bitvla


@cache
def _kernel() -> tuple[ctypes.CDLL, int]:
    """The library, all of its functions declared, and the number of the instruction set in use. Raises LibraryMissing."""
    library = load()
    for signature, (matrices, vectors, has_eps) in _QUANTIZERS.items():
        function = getattr(library, f"bitvla_{signature.split('(')[0]}")
        inputs = [c_void_p] * (matrices + vectors) + [c_float] * has_eps
        function.argtypes = [*inputs, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int]
    return library, isa_number()


def _register(schema: str, allocate: Callable[..., Any], run: Callable[..., Any]) -> None:
    name = schema.split("(")[0]
    _OPERATORS.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _OPERATORS.impl(name, run, "CPU")
    torch.library.register_fake(f"bitvla::{name}", allocate, lib=_OPERATORS)


def _register_quantizer(signature: str, matrices: int, vectors: int) -> None:
    name = f"bitvla_{signature.split('(')[0]}"

    def allocate(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        shape = inputs[0].shape
        if len(shape) == 0 or inputs[0].numel() == 0:
            raise ValueError(f"an activation of shape {list(shape)}: expected at least one token of at least one number")
        for tensor in inputs[:matrices]:
            _require(tensor, shape)
        for tensor in inputs[matrices : matrices + vectors]:
            _require(tensor, shape[-1:])
        codes = torch.empty((*shape[:-1], -(-shape[-1] // TILE) * TILE), dtype=torch.int8)
        return codes, torch.empty(shape[:-1], dtype=torch.float32), torch.empty(shape[:-1], dtype=torch.int32)

    def run(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        codes, absmax, sums = outputs = allocate(*inputs)
        arguments = [value.data_ptr() if isinstance(value, Tensor) else value for value in inputs]
        sizes = sums.numel(), inputs[0].shape[-1]
        results = codes.data_ptr(), absmax.data_ptr(), sums.data_ptr()
        check(getattr(_kernel()[0], name)(*arguments, *sizes, *results, torch.get_num_threads()))
        return outputs

    _register(f"{signature} -> (Tensor codes, Tensor absmax, Tensor sums)", allocate, run)


def _require(tensor: Tensor, shape: torch.Size) -> None:
    if tensor.dtype != torch.float32 or tensor.shape != shape or not tensor.is_cpu or not tensor.is_contiguous():
        found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}{'' if tensor.is_contiguous() else ', not contiguous'}"
        raise ValueError(f"a tensor is {found}: expected float32 {list(shape)} on the CPU, contiguous")


def _require_words(words: Tensor, rows: int, columns: int) -> None:
    require_packed(words, rows, columns)
    if not words.is_cpu or not words.is_contiguous():
        raise ValueError(f"packed words on {words.device}, strides {words.stride()}: expected them as `pack` gives them, on the CPU")


# The arguments of a product are those of _PRODUCT: a QuantizedActivation, then a PackedWeight, field by field.


def _allocate_matmul(*arguments: Any) -> Tensor:
    x, weight = QuantizedActivation(*arguments[:3]), PackedWeight(*arguments[3:])
    require_activation(x)
    require_weight(x, weight)
    _require_words(weight.words, weight.rows, weight.columns)
    return torch.empty((*x.codes.shape[:-1], weight.rows), dtype=torch.int32)


def _matmul(*arguments: Any) -> Tensor:
    out = _allocate_matmul(*arguments)
    codes, _, sums, words, _, rows, _ = arguments
    library, isa = _kernel()
    pointers = codes.data_ptr(), codes.shape[-1], sums.data_ptr(), words.data_ptr()
    sizes = sums.numel(), rows, words.shape[1], words.shape[0]
    check(library.bitvla_matmul(*pointers, *sizes, out.data_ptr(), rows, isa, torch.get_num_threads()))
    return out


def _allocate_linear(*arguments: Any) -> Tensor:
    x, weight, (bias, residual) = QuantizedActivation(*arguments[:3]), PackedWeight(*arguments[3:7]), arguments[7:]
    require_call(x, [weight], [bias], torch.float32, residual)
    _require_words(weight.words, weight.rows, weight.columns)
    if bias is not None:
        _require(bias, torch.Size((weight.rows,)))
    return torch.empty((*x.codes.shape[:-1], weight.rows), dtype=torch.float32)


def _linear(*arguments: Any) -> Tensor:
    out = _allocate_linear(*arguments)
    codes, absmax, sums, words, scale, rows, _, bias, residual = arguments
    library, isa = _kernel()
    pointers = codes.data_ptr(), codes.shape[-1], sums.data_ptr(), absmax.data_ptr(), words.data_ptr()
    sizes = sums.numel(), rows, words.shape[1], words.shape[0]
    added = None if bias is None else bias.data_ptr(), None if residual is None else residual.data_ptr(), rows
    check(library.bitvla_linear(*pointers, scale.item(), *sizes, *added, out.data_ptr(), rows, isa, torch.get_num_threads()))
    return out


for _signature, (_matrices, _vectors, _) in _QUANTIZERS.items():
    _register_quantizer(_signature, _matrices, _vectors)
_register(f"matmul({_PRODUCT}) -> Tensor", _allocate_matmul, _matmul)
_register(f"linear({_PRODUCT}, Tensor? bias, Tensor? residual) -> Tensor", _allocate_linear, _linear)


class CpuBackend:
    """Float32 inside: other floats are converted on their way in, and the result on its way out.

    Raises ValueError for tensors that are elsewhere, empty, not contiguous, or of the wrong dtype or shape.
    """

    name = "cpu"

    def problem(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device}: ask for the device cpu, or for another backend"
        try:
            _kernel()
        except LibraryMissing as error:
            return str(error)
        return None

    def prepare(self, weights: Sequence[PackedWeight], device: torch.device) -> tuple[PackedWeight, ...]:
        """The weights as they are: what lies in a memory-mapped file stays there."""
        return tuple(weights)

    def quantize(self, x: Tensor) -> QuantizedActivation:
        return QuantizedActivation(*_ops.quantize.default(_float(x)))

    def rms_norm_quantize(self, x: Tensor, weight: Tensor, eps: float) -> QuantizedActivation:
        return QuantizedActivation(*_ops.rms_norm_quantize.default(_float(x), _float(weight), eps))

    def layer_norm_quantize(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> QuantizedActivation:
        return QuantizedActivation(*_ops.layer_norm_quantize.default(_float(x), _float(weight), _float(bias), eps))

    def squared_relu_norm_quantize(self, gate: Tensor, up: Tensor, weight: Tensor, eps: float) -> QuantizedActivation:
        return QuantizedActivation(*_ops.squared_relu_norm_quantize.default(_float(gate), _float(up), _float(weight), eps))

    def gelu_quantize(self, x: Tensor) -> QuantizedActivation:
        return QuantizedActivation(*_ops.gelu_quantize.default(_float(x)))

    def matmul(self, x: QuantizedActivation, weight: PackedWeight) -> Tensor:
        return _ops.matmul.default(*x, *weight)  # type: ignore[no-any-return]

    def linear(
        self,
        x: QuantizedActivation,
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor | None],
        dtype: torch.dtype,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if not 0 < len(weights) == len(biases) or residual is not None or not dtype.is_floating_point:
            require_call(x, weights, biases, dtype, residual)  # what the operator, which sees one weight, cannot check
        added = None if residual is None else _float(residual)
        return tuple(
            _ops.linear.default(*x, *weight, None if bias is None else _float(bias), added).to(dtype)
            for weight, bias in zip(weights, biases, strict=True)
        )


def _float(x: Tensor) -> Tensor:
    if not x.is_cpu or not x.is_floating_point():
        raise ValueError(f"a tensor is {x.dtype} on {x.device}: expected floats on the CPU")
    return x.float()


BACKEND = CpuBackend()
