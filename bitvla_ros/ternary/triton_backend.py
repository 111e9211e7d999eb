"""The GPU backend: checks what it is given, allocates results and launches the Triton kernels. Imports without Triton and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .backends import require_activation, require_call, require_weight
from .pack import TILE, PackedWeight
from .quantize import QuantizedActivation
from .triton_tiles import BLOCK, GROUP, Tiles, choose_tiles

_INT32_MAX = 2**31 - 1  # kernels count elements in 32 bits
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (8, 0)  # compute capability: what Triton's int8 tensor-core products need


@cache
def _kernels() -> Any:
    from . import triton_kernels

    return triton_kernels


class TritonBackend:
    """On CUDA GPUs (under TRITON_INTERPRET=1: in numpy, on CPU tensors). Takes float32, bfloat16 and float16, computes in float32.

    Norms may round a code otherwise than `reference` where a value falls between two, because they sum in another order. Everything
    can be captured in a CUDA graph after a first call, which compiles. Raises ValueError for tensors that are elsewhere, empty, not
    contiguous, or of the wrong dtype or shape.
    """

    name = "triton"

    def problem(self, device: torch.device) -> str | None:
        try:
            kernels = _kernels()
        except ImportError as error:
            return f"Triton cannot be imported ({error}): pip install triton (Linux), or ask for the backend cpu"
        if kernels.INTERPRETED:
            return None
        if device.type != "cuda":
            return f"it runs on a CUDA GPU, not on {device}: ask for the device cuda, or for the backend cpu"
        if not torch.cuda.is_available():
            return "torch sees no CUDA GPU: install the driver and torch's CUDA build, or ask for the backend cpu"
        found = torch.cuda.get_device_capability(device)
        if found < _OLDEST:
            needed = ".".join(map(str, _OLDEST))
            return f"{device} has compute capability {found[0]}.{found[1]}, below {needed}: ask for the backend cpu on the device cpu"
        return None

    def prepare(self, weights: Sequence[PackedWeight], device: torch.device) -> tuple[PackedWeight, ...]:
        """Words uint8 [ceil(K / 128), N, 32], see triton_kernels.py; those of matrices that come together are views of one tensor."""
        kernels, columns = _kernels(), weights[0].columns
        if any(weight.columns != columns for weight in weights):
            raise ValueError(f"weights of {[weight.columns for weight in weights]} columns: those that share an input have as many")
        ends = torch.tensor([weight.rows for weight in weights]).cumsum(0).tolist()
        words = torch.empty((-(-columns // BLOCK), ends[-1], GROUP), dtype=torch.uint8, device=device)
        scales = torch.stack([weight.scale.to(device, torch.float32).reshape(()) for weight in weights])
        prepared = []
        for i, (weight, end) in enumerate(zip(weights, ends, strict=True)):
            part = words[:, end - weight.rows : end]
            kernels.relayout(weight, part)
            prepared.append(weight._replace(words=part, scale=scales[i]))
        return tuple(prepared)

    def quantize(self, x: Tensor) -> QuantizedActivation:
        return self._quantize(_kernels().quantize_kernel, [x], [], [])

    def rms_norm_quantize(self, x: Tensor, weight: Tensor, eps: float) -> QuantizedActivation:
        return self._quantize(_kernels().rms_norm_quantize_kernel, [x], [weight], [eps])

    def layer_norm_quantize(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> QuantizedActivation:
        return self._quantize(_kernels().layer_norm_quantize_kernel, [x], [weight, bias], [eps])

    def squared_relu_norm_quantize(self, gate: Tensor, up: Tensor, weight: Tensor, eps: float) -> QuantizedActivation:
        return self._quantize(_kernels().squared_relu_norm_quantize_kernel, [gate, up], [weight], [eps])

    def gelu_quantize(self, x: Tensor) -> QuantizedActivation:
        return self._quantize(_kernels().gelu_quantize_kernel, [x], [], [])

    def matmul(self, x: QuantizedActivation, weight: PackedWeight) -> Tensor:
        require_activation(x)
        require_weight(x, weight)
        return self._launch(x, [weight], [None], torch.int32, None, None)[0]

    def linear(
        self,
        x: QuantizedActivation,
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor | None],
        dtype: torch.dtype,
        residual: Tensor | None = None,
        tiles: Tiles | None = None,
    ) -> tuple[Tensor, ...]:
        """As the protocol has it. tiles: instead of what `choose_tiles` says, for tuning and tests."""
        require_call(x, weights, biases, dtype, residual)
        outputs: list[Tensor] = []
        for start, stop in _launches(weights, biases):
            outputs += self._launch(x, weights[start:stop], biases[start:stop], dtype, residual, tiles)
        return tuple(outputs)

    def _quantize(self, kernel: Any, matrices: list[Tensor], vectors: list[Tensor], scalars: list[float]) -> QuantizedActivation:
        shape, device = matrices[0].shape, matrices[0].device
        if len(shape) == 0 or matrices[0].numel() == 0:
            raise ValueError(f"an activation of shape {list(shape)}: expected at least one token of at least one number")
        for tensor in matrices:
            _require(tensor, shape, device)
        for tensor in vectors:
            _require(tensor, shape[-1:], device)
        columns = shape[-1]
        pitch = -(-columns // TILE) * TILE
        codes = torch.empty((*shape[:-1], pitch), dtype=torch.int8, device=device)
        absmax = torch.empty(shape[:-1], dtype=torch.float32, device=device)
        sums = torch.empty(shape[:-1], dtype=torch.int32, device=device)
        _require_countable(codes.numel())
        width = 1 << (pitch - 1).bit_length()
        warps = min(max(width // 512, 1), 16)  # 16 values of each of its matrices a thread
        with _on(device):
            kernel[(sums.numel(),)](
                *matrices, *vectors, codes, absmax, sums, *scalars,
                COLUMNS=columns, PITCH=pitch, WIDTH=width, num_warps=warps, enable_fp_fusion=False,
            )
        return QuantizedActivation(codes, absmax, sums)

    def _launch(
        self,
        x: QuantizedActivation,
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor | None],
        dtype: torch.dtype,
        residual: Tensor | None,
        tiles: Tiles | None,
    ) -> list[Tensor]:
        """One launch (two with a split) for matrices that lie one after the other. dtype int32: the sums as they are."""
        kernels = _kernels()
        codes, absmax, sums = x
        device, shape, pitch = codes.device, codes.shape[:-1], codes.shape[-1]
        tokens, counts = sums.numel(), [weight.rows for weight in weights]
        rows = sum(counts)
        integers = dtype == torch.int32
        for weight in weights:
            _require_words(weight)
        if tiles is None:
            tiles = _choose_tiles(device, tokens, rows, weights[0].columns)
        if integers:
            tiles = tiles._replace(split=1)
        split = tiles.split > 1
        words = weights[0].words.view(torch.int8)
        _require_countable(max(tokens * rows * tiles.split, tokens * pitch, words.shape[0] * words.stride(0)))

        out = torch.empty(tokens * rows, dtype=dtype, device=device)
        partial = torch.empty(tiles.split * tokens * rows, dtype=torch.int32, device=device) if split else out
        none = out  # a pointer of some kind for what is not there
        added = [none if bias is None else bias.contiguous() for bias in biases]
        epilogue = (weights[0].scale, *added, *[added[0]] * (kernels.MATRICES - len(added)), none if residual is None else residual)
        sizes = (rows, *counts, *[1] * (kernels.MATRICES - len(counts)))
        options: dict[str, Any] = {"COUNT": len(weights), "ROWS": tiles.rows, "TOKENS": tiles.tokens, "SPLIT": tiles.split}
        terms = {"HAS_BIAS": biases[0] is not None, "HAS_RESIDUAL": residual is not None}
        programs = sum(-(-count // tiles.rows) for count in counts) * -(-tokens // tiles.tokens)
        with _on(device):
            kernels.linear_kernel[(programs, tiles.split)](
                codes, absmax, sums, words, *epilogue, partial, tokens, pitch, words.stride(0), *sizes,
                **options, **terms, EVEN=pitch % BLOCK == 0, INTEGERS=integers or split, ASSEMBLY=not kernels.INTERPRETED,
                num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=False,
            )
            if split:
                kernels.finish_kernel[(programs,)](
                    partial, absmax, *epilogue, out, tokens, *sizes, **options, **terms,
                    num_warps=tiles.warps, enable_fp_fusion=False,
                )
        parts = out.split([tokens * count for count in counts])
        return [part.view(*shape, count) for part, count in zip(parts, counts, strict=True)]


BACKEND = TritonBackend()


def _launches(weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> Iterator[tuple[int, int]]:
    """(start, stop) of the weights that one launch can serve: prepared together, and with biases of one dtype or without."""
    start = 0
    for i in range(1, len(weights) + 1):
        full = i == len(weights) or i - start == _kernels().MATRICES
        if full or not _follows(weights[i - 1], weights[i]) or not _alike(biases[i - 1], biases[i]):
            yield start, i
            start = i


def _follows(first: PackedWeight, second: PackedWeight) -> bool:
    """Whether the second weight lies behind the first in one tensor, as `prepare` leaves those that come together."""
    return (
        second.words.untyped_storage().data_ptr() == first.words.untyped_storage().data_ptr()
        and second.words.data_ptr() == first.words.data_ptr() + first.rows * first.words.stride(1)
        and second.words.stride() == first.words.stride()
        and second.scale.data_ptr() == first.scale.data_ptr() + first.scale.element_size()
    )


def _alike(first: Tensor | None, second: Tensor | None) -> bool:
    return (first is None) == (second is None) and (first is None or second is None or first.dtype == second.dtype)


def _choose_tiles(device: torch.device, tokens: int, rows: int, columns: int) -> Tiles:
    if device.type != "cuda":
        return Tiles(64, 32, 4, 1)  # the interpreter has no use for large ones
    properties = _properties(device)
    return choose_tiles((properties.major, properties.minor), properties.multi_processor_count, tokens, rows, columns)


@cache
def _properties(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _require(tensor: Tensor, shape: torch.Size, device: torch.device) -> None:
    right = tensor.dtype in _FLOATS and tensor.shape == shape and tensor.is_contiguous()
    if not right or tensor.device != device or not _reachable(device):
        found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}{'' if tensor.is_contiguous() else ', not contiguous'}"
        place = device if _reachable(device) else "a CUDA GPU"
        raise ValueError(f"a tensor is {found}: expected float32, bfloat16 or float16 {list(shape)} on {place}, contiguous")


def _require_words(weight: PackedWeight) -> None:
    words = weight.words
    expected = (-(-weight.columns // BLOCK), weight.rows, GROUP)
    if words.shape != expected or words.stride()[1:] != (GROUP, 1) or not _reachable(words.device):
        found = f"uint8 {list(words.shape)} on {words.device}, strides {words.stride()}"
        raise ValueError(f"packed words are {found}: expected {list(expected)} on a CUDA GPU, as this backend's `prepare` gives them")


def _require_countable(elements: int) -> None:
    if elements > _INT32_MAX:
        raise ValueError(f"a tensor of {elements} elements: the kernels count to {_INT32_MAX}; call with fewer tokens at a time")


def _reachable(device: torch.device) -> bool:
    return device.type == "cuda" or bool(_kernels().INTERPRETED)
