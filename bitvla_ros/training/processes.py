"""One process, or many that share the work: `accelerate launch` starts the same command several times.

Gradients are joined by DDP, where every process has the whole model; or by FSDP (--use_fsdp), where each holds a part of every weight,
gradient and moment, and gathers a layer's weights while it computes the layer.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..model import BitVLA

USE_FSDP = "ACCELERATE_USE_FSDP"  # how `accelerate launch` tells its processes


class Processes:
    """This process alone. rank: of `count`; the first writes files and shows progress. sharded: weights lie in parts, one in each
    process, so that every process has to take part where the model computes and where weights are read."""

    rank = 0
    count = 1
    sharded = False

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: BitVLA) -> nn.Module:
        """What to call in the model's place, so that gradients are joined. The model moves to this process's device."""
        return model.to(self.device)

    def alone(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Gradients stay in this process meanwhile: there is more to add to them."""
        return contextlib.nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return values

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Of all their numbers as one vector, a float32 scalar."""
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(own(tensor)) for tensor in tensors]).float())

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter, or what has its form, put together of its parts."""
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """A copy of what `whole` gave, lying as the parameter `like` does."""
        return tensor.to(like.device, copy=True)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's whole state, in the first process; elsewhere perhaps nothing."""
        return model.state_dict()

    def wait(self) -> None:
        """Until all processes are here."""

    def finish(self) -> None:
        """No more work together."""


class LaunchedProcesses(Processes):
    """One of many, of `accelerate launch` (or torchrun), with the whole model."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        if str(self._accelerator.distributed_type).rpartition(".")[2] not in ("MULTI_CPU", "MULTI_GPU", "NO"):
            raise ProcessesError(
                f"accelerate is set up for {self._accelerator.distributed_type}: expected data-parallel processes, of "
                "accelerate launch --multi_gpu, --cpu or --use_fsdp"
            )
        self.device = self._accelerator.device
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def wrap(self, model: BitVLA) -> nn.Module:
        wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def alone(self, model: nn.Module) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.no_sync(model)
        return context

    def mean(self, values: Tensor) -> Tensor:
        reduced: Tensor = self._accelerator.reduce(values, "mean")
        return reduced

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def finish(self) -> None:
        self._accelerator.end_training()


class ShardedProcesses(LaunchedProcesses):
    """One of many, of `accelerate launch --use_fsdp`, with a part of every tensor.

    Whatever is said of FSDP beside, it is torch's `fully_shard`, layer by layer. Weights are gathered in their own dtype, as a
    ternary layer takes its scale from all of them in float32; autocast, as without FSDP, has the products in bfloat16.
    """

    sharded = True

    def __init__(self) -> None:
        if _flag("FSDP_OFFLOAD_PARAMS"):
            raise ProcessesError("accelerate is set up for FSDP with weights on the host: launch without --fsdp_offload_params")
        os.environ[USE_FSDP] = "false"  # accelerate's own sharding, which makes demands on options and devices, is not used
        try:
            super().__init__()
        finally:
            os.environ[USE_FSDP] = "true"

    def wrap(self, model: BitVLA) -> nn.Module:
        try:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard
        except ImportError as error:
            raise ProcessesError(f"torch {torch.__version__} cannot shard a model ({error}): FSDP needs 2.6 or later") from error

        # A view is in danger where it is changed in place; nothing here does that to what the model returns.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(self.device.type, (self.count,))
        for module in (*model.vision.layers, *model.language.layers, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        return model

    def alone(self, model: nn.Module) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # gradients that wait to be joined would lie here whole

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        square = super().norm(tensors).square()
        torch.distributed.all_reduce(square)
        return square.sqrt()

    def whole(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(tensor.to(self.device), like.device_mesh, like.placements)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            gathered = self.whole(tensor)
            if self.first:
                whole[name] = gathered.cpu()
        return whole


class ProcessesError(RuntimeError):
    """The processes were launched in a way that does not work here."""


def processes() -> Processes:
    """As the environment says."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    return ShardedProcesses() if _flag(USE_FSDP) else LaunchedProcesses()


def own(tensor: Tensor) -> Tensor:
    """The part of it that lies in this process, in the same memory."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
