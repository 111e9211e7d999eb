"""One process, or many that share the work: `accelerate launch` starts the same command several times, and DDP joins the gradients."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


class Processes:
    """This process alone. rank: of `count`; the first writes files and shows progress."""

    rank = 0
    count = 1

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in the model's place, so that gradients are joined."""
        return model

    def alone(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Gradients stay in this process meanwhile: there is more to add to them."""
        return contextlib.nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return values

    def wait(self) -> None:
        """Until all processes are here."""

    def finish(self) -> None:
        """No more work together."""


class LaunchedProcesses(Processes):
    """One of many, of `accelerate launch` (or torchrun)."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        if str(self._accelerator.distributed_type).rpartition(".")[2] not in ("MULTI_CPU", "MULTI_GPU", "NO"):
            raise ProcessesError(
                f"accelerate is set up for {self._accelerator.distributed_type}: expected plain data-parallel processes, of "
                "accelerate launch --multi_gpu or --cpu"
            )
        self.device = self._accelerator.device
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def wrap(self, model: nn.Module) -> nn.Module:
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


class ProcessesError(RuntimeError):
    """The processes were launched in a way that does not work here."""


def processes() -> Processes:
    """As the environment says."""
    return LaunchedProcesses() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Processes()
