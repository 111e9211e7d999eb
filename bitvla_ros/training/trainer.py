"""The training loop: steps of AdamW on an objective, validated, recorded, saved, and continued after a kill as if nothing had been."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from ..model import BitVLA
from .log import Log, draw_curves
from .objective import Batch, Objective, action_errors, oft_objective
from .processes import Processes, own
from .samples import Samples
from .schedule import warmup_cosine
from .state import load_state, save_state

REPORT_SECONDS = 30.0  # between lines of progress where stderr is no terminal
DRAW_SECONDS = 60.0  # between pictures of the curves


class TrainingError(RuntimeError):
    """Training cannot go on. The message says at which step and batch, and what is left of it."""


@dataclass(frozen=True)
class TrainingConfig:
    """steps: of the optimizer. batch_size: samples of a forward pass, in each process; accumulate: passes whose gradients make a step.

    learning_rate: at its highest, after `warmup` steps; vision_learning_rate: of the vision tower (None: the same). clip: longest
    gradient (None: any). dtype: of matrix products, float32 or, by autocast, bfloat16; weights and moments are float32. direct_bf16:
    weights and moments in bfloat16 too, as in the reference, whose small steps get lost in rounding. checkpointing: compute layers
    again in the backward pass instead of keeping what they computed. compile: fuse what layers do between products, with torch.compile,
    which takes a minute first and rounds in other places. workers: processes that prepare samples ahead; 0: this one.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    vision_learning_rate: float | None = None
    warmup: int = 375
    weight_decay: float = 0.01
    clip: float | None = None
    dtype: torch.dtype = torch.float32
    direct_bf16: bool = False
    checkpointing: bool = False
    compile: bool = False
    workers: int = 1
    save_every: int = 1000
    validate_every: int = 500

    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as JSON: a run can be continued only with the same."""
        free = ("checkpointing", "workers", "save_every", "validate_every")
        return {key: str(value) if key == "dtype" else value for key, value in asdict(self).items() if key not in free}


class Trainer:
    """Trains, in place, the parameters of `model` that require gradients, on `samples`.

    output: folder of log.csv, curves.png and the state. objective: what is minimised. validation: samples that are not trained on.
    save: called in every process with the number of steps taken, whenever the state is saved too, to write the model. settings:
    whatever else decides the outcome (data, seed), as JSON; a run that stands in `output` is continued if its settings are the same,
    else StateError.
    """

    def __init__(
        self,
        model: BitVLA,
        samples: Samples,
        config: TrainingConfig,
        output: Path,
        *,
        objective: Objective = oft_objective,
        validation: Samples | None = None,
        save: Callable[[int], None] | None = None,
        settings: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.samples, self.config, self.output, self.objective = samples, config, output, objective
        self.validation, self.save = validation, save
        self.processes = processes or Processes()
        self.settings = {**config.settings(), **(settings or {}), "processes": self.processes.count}
        if self.processes.sharded:
            self.settings["sharded"] = True
        self.model = model.to(torch.bfloat16 if config.direct_bf16 else torch.float32).train()
        if config.checkpointing:
            recompute_layers(model)
        if config.compile:
            compile_layers(model)
        self._wrapped = self.processes.wrap(self.model)
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        vision = [parameter for name, parameter in self.parameters.items() if name.startswith("vision.")]
        rest = [parameter for name, parameter in self.parameters.items() if not name.startswith("vision.")]
        rates = (config.learning_rate, config.vision_learning_rate or config.learning_rate)
        self._groups = [(group, rate) for group, rate in zip((rest, vision), rates, strict=True) if group]
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, rate in self._groups], weight_decay=config.weight_decay, fused=True
        )
        self._asked = False  # to stop, by a signal to this process
        self._stop = False  # as all processes agreed
        self._drawn = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end. Raises TrainingError, StateError, and KeyboardInterrupt after SIGINT or SIGTERM, once the state is saved."""
        self.output.mkdir(parents=True, exist_ok=True)
        first = load_state(self.output, self.settings, self.parameters, self.optimizer, self.processes)
        self.log = Log(self.output / "log.csv", first) if self.processes.first else None
        began, step = time.monotonic(), first
        progress = _Progress(self.config, self.processes, first)
        with self._batches(first) as batches, self._catch_signals():
            while step < self.config.steps and not self._stop:
                row = self._step(batches, step)
                step += 1
                if step % self.config.validate_every == 0 or step == self.config.steps:
                    row |= self._validate()
                if self.log is not None:
                    self.log.add({"step": step, **row})
                    progress.show(step, row)
                if step % self.config.save_every == 0 or step == self.config.steps or self._stop:
                    self._save(step)
        progress.close()
        if step < self.config.steps:
            if self.processes.first:
                print(f"stopped after step {step}; the same command goes on from there", file=sys.stderr)
            raise KeyboardInterrupt(f"stopped after step {step}")
        seconds = time.monotonic() - began
        samples = (step - first) * self.config.batch_size * self.config.accumulate * self.processes.count
        return {
            "output": str(self.output),
            "steps": step,
            "resumed_from": first,
            "seconds": round(seconds, 1),
            "samples_per_second": round(samples / seconds, 1),
            **self._last(),
        }

    # ---- a step

    def _step(self, batches: Iterator[Batch], step: int) -> dict[str, float]:
        config = self.config
        factor = warmup_cosine(step, config.steps, config.warmup)
        for group, (_, rate) in zip(self.optimizer.param_groups, self._groups, strict=True):
            group["lr"] = rate * factor
        losses, details = [], []
        for part in range(config.accumulate):
            joined = contextlib.nullcontext() if part == config.accumulate - 1 else self.processes.alone(self._wrapped)
            with joined:
                with self._autocast():
                    loss, detail = self.objective(self._wrapped, _next(batches))
                (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            details.append(detail)
        means = {"loss": torch.stack(losses).mean()}
        means |= {name: torch.stack([detail[name].detach() for detail in details]).mean() for name in details[0]}
        means["gradient_norm"] = self._gradient_norm()
        numbers = torch.stack([value.float() for value in means.values()] + [self._flag()])
        *values, stop = self.processes.mean(numbers).tolist()
        self._stop = stop > 0
        row = dict(zip(means, values, strict=True))
        if not math.isfinite(row["loss"]) or not math.isfinite(row["gradient_norm"]):
            raise TrainingError(self._diagnosis(step, losses, row))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return row | {"learning_rate": config.learning_rate * factor}

    def _gradient_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = self.processes.norm(gradients)
        if self.config.clip is not None:
            share = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                own(gradient).mul_(share.to(gradient.dtype))
        return norm

    def _flag(self) -> Tensor:
        return torch.tensor(float(self._asked), device=self.processes.device)

    def _diagnosis(self, step: int, losses: list[Tensor], row: Mapping[str, float]) -> str:
        what = "the loss" if not math.isfinite(row["loss"]) else "the gradient"
        bad = [part for part, loss in enumerate(losses) if not bool(loss.isfinite())] or list(range(len(losses)))
        places = [self.samples.where(number) for part in bad for number in self._numbers(step, part)]
        named = ", ".join(f"episode {episode} frame {frame}" for episode, frame in places[:8]) + (", ..." if len(places) > 8 else "")
        return (
            f"{what} is not finite in step {step + 1}, batch {bad[0] + 1} of {len(losses)} ({named}). Nothing was learned from it: "
            f"the last state and checkpoint in {self.output} are good. Look at these frames, or start again with a lower learning rate"
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.processes.device, self.config.dtype)

    # ---- data

    def _numbers(self, step: int, part: int) -> list[int]:
        """Of the samples that this process takes in a part of a step. All processes and parts together take them in order."""
        size = self.config.batch_size
        first = ((step * self.config.accumulate + part) * self.processes.count + self.processes.rank) * size
        return list(range(first, first + size))

    @contextlib.contextmanager
    def _batches(self, first: int) -> Iterator[Iterator[Batch]]:
        numbers = (self._numbers(step, part) for step in range(first, self.config.steps) for part in range(self.config.accumulate))
        workers = self.config.workers
        loader: DataLoader[Any] = DataLoader(
            self.samples,
            batch_sampler=numbers,  # type: ignore[arg-type]
            collate_fn=self.samples.collate,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_start_worker,
            multiprocessing_context="fork" if workers else None,
        )
        batches = iter(loader)
        try:
            yield batches
        finally:
            if workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]

    # ---- beside the steps

    def _validate(self) -> dict[str, float]:
        errors: dict[str, float] = {}
        if self.validation is not None and (self.processes.first or self.processes.sharded):
            with self._autocast(), torch.compiler.set_stance("force_eager"):
                errors = validate(self.model, self.validation)
            self.model.train()
        self.processes.wait()
        return {f"validation_{name}": value for name, value in errors.items()}

    def _save(self, step: int) -> None:
        if self.save is not None:
            self.save(step)
        save_state(self.output, step, self.settings, self.parameters, self.optimizer, self.processes)
        if self.processes.first and (step == self.config.steps or self._stop or time.monotonic() - self._drawn > DRAW_SECONDS):
            with contextlib.suppress(ImportError):  # no matplotlib: log.csv has it all
                draw_curves(self.output / "log.csv", self.output / "curves.png")
            self._drawn = time.monotonic()
        self.processes.wait()

    def _last(self) -> dict[str, float | None]:
        if self.log is None:
            return {}
        names = ["loss", *(f"validation_{name}" for name in ("l1", "translation", "rotation", "gripper"))]
        return {name: self.log.last(name) for name in names}

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM let the step end and save the state; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            self._asked = True
            for kind, handler in before.items():
                signal.signal(kind, handler)

        before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
        for kind in before:
            signal.signal(kind, stop)
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


@torch.no_grad()
def validate(model: BitVLA, samples: Samples, *, batch_size: int = 32, limit: int = 512) -> dict[str, float]:
    """Mean `action_errors` of `limit` samples, spread evenly over all. The model is in eval mode afterwards."""
    model.eval()
    numbers = np.unique(np.linspace(0, len(samples) - 1, min(limit, len(samples))).round().astype(int)).tolist()
    sums: dict[str, float] = {}
    for start in range(0, len(numbers), batch_size):
        chosen = numbers[start : start + batch_size]
        for name, value in action_errors(model, samples.collate([samples[number] for number in chosen])).items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(chosen) / len(numbers)
    return sums


def recompute_layers(model: BitVLA) -> None:
    """Gradient checkpointing: keep the inputs of the towers' layers alone, and compute the rest again when gradients need it."""
    for layer in (*model.vision.layers, *model.language.layers):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def compile_layers(model: BitVLA) -> None:
    """torch.compile for each layer of the towers; one compilation serves all layers of a kind."""
    for layer in (*model.vision.layers, *model.language.layers):
        layer.forward = torch.compile(layer.forward, dynamic=False)


def fast_dtype() -> torch.dtype:
    """Of matrix products here: bfloat16 on a GPU, and on a CPU with instructions for it (nano: 1.5 times as many samples a second)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    fast = torch.cuda.is_available() or bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _next(batches: Iterator[Batch]) -> Batch:
    """The error of a worker without the worker's traceback, which the loader puts into the message."""
    try:
        return next(batches)
    except (ValueError, OSError) as error:
        if "Original Traceback" not in str(error):
            raise
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error


def _start_worker(worker: int) -> None:
    """A worker outlives the signal that asks the run to end, until the run is ready to; and it takes one core."""
    import cv2

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    cv2.setNumThreads(0)


class _Progress:
    """On stderr: a line that changes, or in a file a line now and then."""

    def __init__(self, config: TrainingConfig, processes: Processes, first: int) -> None:
        self._config, self._first, self._began = config, first, time.monotonic()
        self._samples = config.batch_size * config.accumulate * processes.count
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0
        self._loss: float | None = None
        self._validation: float | None = None
        if first:
            print(f"continuing after step {first}", file=sys.stderr)

    def show(self, step: int, row: Mapping[str, float]) -> None:
        now, self._validation = time.monotonic(), row.get("validation_l1", self._validation)
        self._loss = row["loss"] if self._loss is None else 0.98 * self._loss + 0.02 * row["loss"]
        if now - self._shown < (0.2 if self._terminal else REPORT_SECONDS) and step < self._config.steps:
            return
        self._shown = now
        rate = (step - self._first) / (now - self._began)
        left = time.strftime("%H:%M:%S", time.gmtime((self._config.steps - step) / rate))
        validation = "" if self._validation is None else f"  validation {self._validation:.4f}"
        line = f"step {step}/{self._config.steps}  loss {self._loss:.4f}{validation}  {rate * self._samples:.0f} samples/s  {left} left"
        print(f"\r\x1b[K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._terminal and self._shown:
            print(file=sys.stderr)
