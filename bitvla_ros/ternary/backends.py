"""What packed layers run on: plain torch, the C kernel, or Triton. All give the same integers and the same floats."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from .pack import TILE, PackedWeight
from .quantize import QuantizedActivation

_MODULES = {"reference": "reference", "cpu": "cpu", "triton": "triton_backend"}
NAMES = tuple(_MODULES)
_log = logging.getLogger(__name__)


class BackendError(ValueError):
    """A backend that was asked for cannot work here. The message says what it needs."""


class Backend(Protocol):
    """The arithmetic of packed layers. Inputs are float [..., K], on the backend's device; norms and quantizers compute in float32.

    Each module of a backend has one, named BACKEND. `reference.py` says what every method means.
    """

    name: str

    def problem(self, device: torch.device) -> str | None:
        """Why this backend cannot run on `device`, and what to do about it; None where it can."""

    def prepare(self, weights: Sequence[PackedWeight], device: torch.device) -> tuple[PackedWeight, ...]:
        """`pack`'s weights on `device`, laid out as this backend reads them. Together come those of layers that share their input."""

    def quantize(self, x: Tensor) -> QuantizedActivation: ...

    def rms_norm_quantize(self, x: Tensor, weight: Tensor, eps: float) -> QuantizedActivation: ...

    def layer_norm_quantize(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> QuantizedActivation: ...

    def squared_relu_norm_quantize(self, gate: Tensor, up: Tensor, weight: Tensor, eps: float) -> QuantizedActivation:
        """rms_norm(relu(gate)^2 * up) * weight, quantized."""

    def gelu_quantize(self, x: Tensor) -> QuantizedActivation:
        """The tanh approximation of gelu, quantized."""

    def matmul(self, x: QuantizedActivation, weight: PackedWeight) -> Tensor:
        """int32 [..., N], exact."""

    def linear(
        self,
        x: QuantizedActivation,
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor | None],
        dtype: torch.dtype,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """[..., N] of `dtype` for each weight: float(sum) * (scale * absmax / 127) + bias + residual, in float32 and in this order.

        biases: any float [N]. residual: `dtype` [..., N], contiguous; only with one weight. Raises ValueError, see `require_call`.
        """


def choose(name: str = "auto", device: torch.device | str = "cpu") -> Backend:
    """The backend of that name, or BackendError where it cannot run on `device`.

    auto: triton on a GPU, else cpu (where a GPU has no Triton, the network then runs on the CPU); reference where the C library is
    not built. Whatever is not the fastest is said in the log, with the remedy.
    """
    device = torch.device(device)
    if name != "auto":
        return _require(name, device)
    wanted = [("triton", device)] if device.type == "cuda" else []
    for candidate, place in (*wanted, ("cpu", torch.device("cpu"))):
        try:
            return _require(candidate, place)
        except BackendError as error:
            _warn_once(f"{error}")
    _warn_once("packed layers run on the reference backend, which is slow")
    return _require("reference", device)


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def _require(name: str, device: torch.device) -> Backend:
    if name not in _MODULES:
        raise BackendError(f"there is no backend {name!r}: choose one of auto, {', '.join(NAMES)}")
    backend: Backend = importlib.import_module(f".{_MODULES[name]}", __package__).BACKEND
    problem = backend.problem(device)
    if problem is not None:
        raise BackendError(f"the backend {name} cannot be used: {problem}")
    return backend


def require_call(
    x: QuantizedActivation, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None], dtype: torch.dtype, residual: Tensor | None
) -> None:
    """The checks that every backend's `linear` owes: ValueError for what would give wrong numbers."""
    require_activation(x)
    if not weights or len(weights) != len(biases):
        raise ValueError(f"{len(weights)} weights and {len(biases)} biases: expected as many of each, and at least one")
    for weight, bias in zip(weights, biases, strict=True):
        require_weight(x, weight)
        if bias is not None and (bias.shape != (weight.rows,) or not bias.is_floating_point() or bias.device != x.codes.device):
            raise ValueError(f"a bias is {_kind(bias)}: expected floats [{weight.rows}] on {x.codes.device}")
    if not dtype.is_floating_point:
        raise ValueError(f"output in {dtype}: expected a float dtype")
    if residual is not None:
        shape = (*x.codes.shape[:-1], weights[0].rows)
        if len(weights) != 1:
            raise ValueError(f"a residual with {len(weights)} weights: expected one")
        if residual.shape != shape or residual.dtype != dtype or residual.device != x.codes.device or not residual.is_contiguous():
            raise ValueError(f"the residual is {_kind(residual)}: expected {dtype} {list(shape)} on {x.codes.device}, contiguous")


def require_activation(x: QuantizedActivation) -> None:
    codes = x.codes
    if codes.dtype != torch.int8 or codes.ndim < 1 or codes.numel() == 0 or codes.shape[-1] % TILE or not codes.is_contiguous():
        raise ValueError(f"activation codes are {_kind(codes)}: expected int8 [..., a multiple of {TILE}], contiguous, at least one token")
    for name, tensor, dtype in (("absmax", x.absmax, torch.float32), ("sums", x.sums, torch.int32)):
        if tensor.dtype != dtype or tensor.shape != codes.shape[:-1] or tensor.device != codes.device or not tensor.is_contiguous():
            expected = f"{dtype} {list(codes.shape[:-1])} on {codes.device}, contiguous"
            raise ValueError(f"the activation's {name} are {_kind(tensor)}: expected {expected}")


def require_weight(x: QuantizedActivation, weight: PackedWeight) -> None:
    words, scale, rows, columns = weight
    if -(-columns // TILE) * TILE != x.codes.shape[-1]:
        raise ValueError(f"{x.codes.shape[-1]} activation codes a token, padded, for a weight [{rows}, {columns}]")
    if words.dtype != torch.uint8 or words.device != x.codes.device:
        raise ValueError(f"packed words are {_kind(words)}: expected uint8 on {x.codes.device}")
    if scale.dtype != torch.float32 or scale.numel() != 1 or scale.device != words.device:
        raise ValueError(f"a weight's scale is {_kind(scale)}: expected one float32 on {words.device}")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}{'' if tensor.is_contiguous() else ', not contiguous'}"
