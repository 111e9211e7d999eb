"""The state of a training run on disk: what a killed run goes on from, as if nothing had happened.

A directory `state-<step>`: tensors.safetensors has every parameter that trains, with its two moments of AdamW; state.json the step and
the settings, and a SHA-256 of every tensor, of the header before them and of itself. Nothing else is needed, as all that is random is a
function of the seed and the step. A state is written under another name and then renamed, so that the one with the highest step is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..model.packed import serialise
from ..model.safetensors_file import FormatError, SafetensorsWriter, map_file, read_header
from .processes import Processes

TENSORS, DESCRIPTION = "tensors.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, by its own names
_PART = 1 << 22  # values that are looked at together


class StateError(RuntimeError):
    """A state that cannot be written, read or continued."""


def save_state(
    output: Path,
    step: int,
    settings: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    processes: Processes,
) -> None:
    """Write the state after `step` steps, then remove older ones; in the first process, to which all others give their parts."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach()
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    if not processes.first:
        for tensor in tensors.values():
            processes.whole(tensor)
        return
    partial = output / ".state.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with SafetensorsWriter(partial / TENSORS, specs) as file:
            hashes = {name: file.write(name, [processes.whole(tensor).cpu()]) for name, tensor in tensors.items()}
        description = {"step": step, "settings": dict(settings), "header": file.header_hash, "tensors": hashes}
        with (partial / DESCRIPTION).open("wb") as written:
            written.write(serialise({**description, "hash": _hash(description)}))
            written.flush()
            os.fsync(written.fileno())
        target = output / f"state-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StateError(
            f"the state after step {step} cannot be written to {output}: {error.strerror or error}. The one before is kept"
        ) from error
    for older in states(output):
        if older != target:
            shutil.rmtree(older, ignore_errors=True)


def states(output: Path) -> list[Path]:
    """Those that are there, oldest first."""
    return sorted(path for path in output.glob("state-*") if re.fullmatch(r"state-\d{8,}", path.name)) if output.is_dir() else []


def load_state(
    output: Path,
    settings: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    processes: Processes,
) -> int:
    """Put the newest state into parameters and optimizer; returns its step, 0 where there is none. Raises StateError."""
    found = states(output)
    if not found:
        return 0
    path = found[-1]
    try:
        description = _read_description(path)
        step, before = int(description["step"]), dict(description["settings"])
        header, entries = read_header(path / TENSORS)
        if description.get("header", header) != header:
            raise FormatError(f"the header of {TENSORS} is not as it was written")
        tensors = map_file(path / TENSORS, entries)
    except (OSError, ValueError, KeyError, TypeError, FormatError) as error:
        raise _damaged(path, error) from error
    now = json.loads(json.dumps(dict(settings)))
    different = [f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if different:
        raise StateError(
            f"{output} holds a run with other settings: {', '.join(different)}. Continue it with its own, or give another --output"
        )
    expected = {f"{kind}.{name}" for name in parameters for kind in ("weight", *MOMENTS)}
    if tensors.keys() != expected:
        raise StateError(f"{path} has {sorted(tensors.keys() ^ expected)[0]} or lacks it: it belongs to another model")
    for name, tensor in tensors.items():
        parameter = parameters[name.partition(".")[2]]
        if (tensor.shape, tensor.dtype) != (parameter.shape, parameter.dtype):
            stored, wanted = (f"{x.dtype} {list(x.shape)}" for x in (tensor, parameter))
            raise StateError(f"{path} has {name} as {stored}, the model as {wanted}: it belongs to another model")
        if problem := _problem(name, tensor, description.get("tensors")):
            raise _damaged(path, problem)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(processes.part(tensors[f"weight.{name}"], parameter))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                **{moment: processes.part(tensors[f"{moment}.{name}"], parameter) for moment in MOMENTS},
            }
    return step


def _read_description(path: Path) -> dict[str, Any]:
    """state.json, as it was written. Raises OSError, and ValueError."""
    content = (path / DESCRIPTION).read_bytes()
    description = json.loads(content)
    if not isinstance(description, dict) or f"state-{description.get('step'):08}" != path.name:
        raise ValueError(f"{DESCRIPTION} is not of {path.name}")
    if description.keys() == {"step", "settings"}:  # of a version without hashes
        return description
    claimed = description.pop("hash", None)
    if claimed != _hash(description) or content != serialise({**description, "hash": claimed}):
        raise ValueError(f"{DESCRIPTION} is not as it was written: its hash differs")
    return description


def _hash(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(serialise(dict(description))).hexdigest()


def _problem(name: str, tensor: Tensor, hashes: Mapping[str, str] | None) -> str | None:
    """Of the values of a tensor. hashes: None where the state has none."""
    data: Any = tensor.flatten().view(torch.uint8).numpy()
    if hashes is not None and hashlib.sha256(data).hexdigest() != hashes.get(name):
        return f"{name} is not as it was written: its SHA-256 differs"
    if not all(bool(part.isfinite().all()) for part in tensor.flatten().split(_PART)):
        return f"{name} has NaN or infinite values"
    if name.startswith(f"{MOMENTS[1]}.") and bool((tensor < 0).any()):
        return f"{name} has negative values, and is a mean of squares"
    return None


def _damaged(path: Path, why: object) -> StateError:
    return StateError(f"{path} is damaged ({why}): remove it to go on from an older one, or from the start")
