"""Which files of a checkpoint's folder are read, and what a folder is that is no checkpoint: by the files' names alone, so that it can
be said of a folder here and of a repository before anything is downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ADAPTER = "lora_adapter"  # where the reference's trainer leaves config.json and weights, unless it has merged a LoRA adapter
HEADS = ("action_head", "proprio_projector")
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
MERGE = (
    "merge it into its base model and save the result (the reference's vla-scripts/merge_lora_weights_and_save.py, or PEFT's "
    "merge_and_unload and save_pretrained), then put the heads, the statistics and the tokenizer beside it"
)


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message says what is wrong, what was expected and what to do."""


class Layout(NamedTuple):
    """Files by their names in the checkpoint's folder, with / between the parts.

    prefix: of the weights' names, "" or that of a subfolder. weights: one file, or the shards that are there, listed in `shard_index`.
    heads: of HEADS, those that are there.
    """

    prefix: str
    config: str
    weights: tuple[str, ...]
    shard_index: str | None
    heads: Mapping[str, str]

    def __str__(self) -> str:
        where = f"{self.prefix}, as the reference's trainer leaves them" if self.prefix else "the root"
        files = "one file" if self.shard_index is None else f"{len(self.weights)} shards"
        return f"weights in {files} in {where}; {' and '.join(self.heads) or 'no heads'}"

    def read(self, names: Iterable[str]) -> list[str]:
        """Of the names in a repository those that loading may read: descriptions in the root, the config, weights and heads."""
        own = {self.config, *self.weights, *self.heads.values(), *([self.shard_index] if self.shard_index else [])}
        return [name for name in names if name in own or ("/" not in name and name.endswith((".json", ".jinja")))]


def layout_of(names: Iterable[str], where: str | Path) -> Layout:
    """The layout of a folder with the files `names`, those of subfolders too. where: the folder, for messages. Raises CheckpointError
    for a folder that is something else than a checkpoint, or has a part twice; not for one that lacks files, which reading it does."""
    names = set(names)
    root = {name for name in names if "/" not in name}
    # The root first, as the reference's loader reads no other: whoever used it has copied the weights there.
    places = [prefix for prefix in ("", f"{ADAPTER}/") if _has_weights(names, prefix)]
    if not places:
        _refuse_others(names, where)
    unread = {"noisy_action_projector": "a diffusion head", "vision_backbone": "FiLM, a vision tower that reads the instruction"}
    for stem, meaning in unread.items():
        if found := sorted(name for name in root if stem in name and name.endswith(".pt")):
            raise CheckpointError(f"{where} was trained with {meaning} ({found[0]}): only the L1 regression head without FiLM is supported")
    prefix = places[0] if places else ""
    shards, sharded = _shards(names, prefix), prefix + INDEX in names
    if shards and prefix + SINGLE in names and sharded:
        raise CheckpointError(f"{where} has its weights twice, in {prefix}{SINGLE} and in {len(shards)} shards: keep the newer ones")
    if shards and prefix + SINGLE not in names and not sharded:
        raise CheckpointError(f"{where} has {shards[0]}, but not {prefix}{INDEX}, which says what is in the shards: download it too")
    single = prefix + SINGLE in names or not sharded  # an index may be left of older shards
    return Layout(
        prefix=prefix,
        config=prefix + CONFIG if prefix + CONFIG in names else CONFIG,
        weights=(prefix + SINGLE,) if single else shards,
        shard_index=None if single else prefix + INDEX,
        heads={stem: name for stem in HEADS if (name := _head(root, stem, where))},
    )


def local_layout(path: Path) -> Layout:
    """`layout_of` a folder on this machine."""
    adapter = path / ADAPTER
    names = [file.name for file in path.iterdir() if file.is_file()]
    names += [f"{ADAPTER}/{file.name}" for file in adapter.iterdir() if file.is_file()] if adapter.is_dir() else []
    if path.name == ADAPTER and "tokenizer.json" not in names:
        raise CheckpointError(f"{path} holds only a checkpoint's weights: give the folder around it, {path.parent}")
    return layout_of(names, path)


def _has_weights(names: set[str], prefix: str) -> bool:
    return bool({prefix + SINGLE, prefix + INDEX} & names) or bool(_shards(names, prefix))


def _shards(names: set[str], prefix: str) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if name.startswith(prefix) and _SHARD.fullmatch(name.removeprefix(prefix))))


def _head(root: set[str], stem: str, where: str | Path) -> str | None:
    """By the reference's own rule."""
    found = sorted(name for name in root if stem in name and "checkpoint" in name and name.endswith(".pt"))
    if len(found) > 1:
        raise CheckpointError(
            f"{where} has {len(found)} files for the {stem}: {', '.join(found)}. Keep the one that belongs to the weights"
        )
    return found[0] if found else None


def _refuse_others(names: set[str], where: str | Path) -> None:
    """What stands in the place of the weights, if it is known."""
    for prefix in ("", f"{ADAPTER}/"):
        if {f"{prefix}adapter_config.json", f"{prefix}adapter_model.safetensors", f"{prefix}adapter_model.bin"} & names:
            raise CheckpointError(f"{where} has a LoRA adapter in {prefix or 'its root'} that is not merged, and no model: {MERGE}")
        found = sorted(name for name in names if re.fullmatch(re.escape(prefix) + r"pytorch_model.*\.bin(\.index\.json)?", name))
        if found:
            raise CheckpointError(
                f"{where} has its weights in {found[0]}, pickled, and pickles are not loaded: save them as safetensors, with "
                "transformers' save_pretrained(safe_serialization=True)"
            )
