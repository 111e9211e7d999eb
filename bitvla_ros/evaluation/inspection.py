"""The verb `inspect`: what a packed model or a checkpoint is made of, and whether it is whole."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..action_convention import KEY

if TYPE_CHECKING:
    from rich.console import Console

    from ..model import BitVLAConfig

EXAMPLES = """\
  bitvla inspect goal-packed           a packed model: every byte of it is checked
  bitvla inspect CHECKPOINT --json     a checkpoint's folder or Hugging Face id, as JSON
  bitvla inspect --remote OWNER/NAME   whether all of it would load, and how much a download is: fetches tens of MB, no weights"""

# Component -> how the names of its tensors begin; the first that fits.
COMPONENTS = {
    "vision": ("vision.",),
    "connector": ("connector.",),
    "embedding": ("language.embed_tokens.",),
    "language": ("language.",),
    "heads": ("action_head.", "proprio_projector.", "token_head."),
}

PROVENANCE = ("source", "source_config_sha256", "seed", "package_version")  # in the order they are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a packed model, or a checkpoint's folder or Hugging Face id (owner/name[@revision])")
    parser.add_argument("--remote", action="store_true", help="look at a Hugging Face id without its weights, and keep nothing of it here")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..model.checkpoint import resolve
    from ..model.packed import is_packed

    if arguments.remote:
        return _remote(arguments.path)
    path = resolve(arguments.path)
    return {"path": arguments.path, **(_packed(path) if is_packed(path) else _checkpoint(path))}


def _remote(name: str) -> dict[str, Any]:
    """What is on the hub, and what it is made of or, under `error`, why it would not load."""
    from ..model.checkpoint import CheckpointError
    from ..model.hub import hub_id
    from ..model.packed import is_packed
    from ..model.remote import Outline, contents

    repository = hub_id(name)
    if repository is None:
        raise CheckpointError(f"{name} is no Hugging Face id: give owner/name or owner/name@revision")
    found = contents(repository)
    files = {} if found.layout is None else {file: found.sizes[file] for file in found.layout.read(found.sizes)}
    result: dict[str, Any] = {
        "path": name,
        "commit": found.commit,
        "layout": None if found.layout is None else str(found.layout),
        "files": files,
        "download_bytes": sum(files.values()),
        "repository_bytes": sum(found.sizes.values()),
        "fetched_bytes": 0,
        "loads": False,
    }
    if found.layout is None:
        return {**result, "error": found.problem}
    with TemporaryDirectory(prefix="bitvla-inspect-") as temporary:
        path = Path(temporary).resolve()
        try:
            result["fetched_bytes"] = Outline(repository, found, path).fetched
            described = _packed(path, whole=False) if is_packed(path) else _checkpoint(path, whole=False)
            _require_policy_files(path, described)
        except (ValueError, OSError) as error:
            return {**result, "error": str(error).replace(f"{path}/", "").replace(str(path), name)}
    return {**result, **described, "loads": True}


def _require_policy_files(path: Path, described: Mapping[str, Any]) -> None:
    """Of a model that acts, what the policy reads beside it: the image recipe, and a tokenizer that makes its prompt."""
    from ..policy.preprocessing import ImageRecipe
    from ..policy.prompt import Prompt, load_tokenizer

    discrete = described["architecture"].get("discrete")
    if described["architecture"]["action_head"] or discrete:
        read = ImageRecipe.from_base if discrete else ImageRecipe.from_checkpoint
        read(path)
        Prompt(load_tokenizer(path), image_tokens=1, cameras=1, kind=discrete["prompt"] if discrete else "user")


def _packed(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """whole: the values are there too."""
    from ..model.packed import open_packed, read_packed

    packed = read_packed(path) if whole else open_packed(path)
    description = packed.description
    sizes = {name: entry.end - entry.begin for name, entry in packed.tensors.items()}
    return {
        "format": description["format"],
        "format_version": description["format_version"],
        "encoding": description["encoding"],
        "architecture": description["config"],
        **_bytes(sizes, packed.layers),
        "statistics": [description["norm_key"]] if description["norm_key"] else [],
        KEY: packed.convention.to_json(),
        "provenance": description["provenance"],
        "model_hash": description["model_hash"],
        "tensors": description["tensors"],
        "files": description["files"],
    }


def _checkpoint(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """whole: the values are there too."""
    from ..model.checkpoint import hash_model, read_checkpoint, read_statistics
    from ..model.config import described

    keys = list(read_statistics(path))
    checkpoint = read_checkpoint(path, norm_key=keys[0] if keys else None)
    sizes = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
    return {
        "format": "checkpoint",
        "encoding": None,
        "architecture": described(checkpoint.config),
        **_bytes(sizes, _ternary(checkpoint.config)),
        "statistics": keys,
        KEY: checkpoint.convention.to_json(),
        "provenance": None,
        "model_hash": hash_model(checkpoint.config, checkpoint.tensors) if whole else None,
    }


def _ternary(config: BitVLAConfig) -> dict[str, tuple[int, int]]:
    from ..model.packed import stored_shapes

    return stored_shapes(config, "2bit")[1]


def _bytes(sizes: Mapping[str, int], layers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Bytes of each component, of its ternary matrices (with their scales) and of the rest."""
    components = {name: {"ternary_weights": 0, "ternary_bytes": 0, "other_bytes": 0} for name in COMPONENTS}
    for name, (rows, columns) in layers.items():
        components[_component(name)]["ternary_weights"] += rows * columns
    for name, size in sizes.items():
        layer, _, kind = name.rpartition(".")
        ternary = layer in layers and kind in ("weight", "words", "scale")
        components[_component(name)]["ternary_bytes" if ternary else "other_bytes"] += size
    total = {key: sum(component[key] for component in components.values()) for key in components["vision"]}
    return {
        "matrices": len(layers),
        "components": {name: _with_bits(component) for name, component in components.items()},
        "total": _with_bits(total),
    }


def _component(name: str) -> str:
    return next(component for component, prefixes in COMPONENTS.items() if name.startswith(prefixes))


def _with_bits(part: dict[str, int]) -> dict[str, Any]:
    weights = part["ternary_weights"]
    return {
        **part,
        "bytes": part["ternary_bytes"] + part["other_bytes"],
        "bits_per_ternary_weight": round(8 * part["ternary_bytes"] / weights, 4) if weights else None,
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if "commit" in result:
        _show_remote(console, result)
    if "architecture" not in result:
        return
    config = result["architecture"]
    vision, language = config["vision"], config["language"]
    checked = "; every hash fits" if "commit" not in result else ""
    encoding = f", {result['encoding']}, format version {result['format_version']}{checked}" if result["encoding"] else ""
    rate = f"{config['control_hz']:g} Hz" if config["control_hz"] else "a rate that is not recorded"
    discrete = config.get("discrete")
    actions = f"{config['chunk']} x {config['action_dim']} at {rate}, proprioception {config['proprio_dim'] or 'none'}"
    if discrete:
        actions += f", token by token in {discrete['bins']} bins, prompt {discrete['prompt']}"
    facts = {
        "format": result["format"] + encoding,
        "vision": f"{_layers(vision)}, images {vision['image_size']} px{'' if vision['ternary'] else ', not ternary'}",
        "language": f"{_layers(language)}, {language['vocab_size']} tokens, {config['attention']} attention",
        "actions": actions if config["action_head"] or discrete else "none: a base model",
        "statistics": ", ".join(result["statistics"]) or "none",
        "one unit": _units(result[KEY]),
        **{name: value for name in PROVENANCE if (value := (result["provenance"] or {}).get(name)) is not None},
        **({} if result["model_hash"] is None else {"model hash": result["model_hash"]}),
    }
    console.print(result["path"], style="italic", markup=False)
    for name, value in facts.items():  # not a table, which would cut hashes short
        console.print(f"{name.replace('_', ' '):<21} {value}", soft_wrap=True, markup=False)

    table = Table(title=f"\nbytes, {result['matrices']} ternary matrices", title_justify="left")
    for column in ("component", "ternary", "other", "together", "bits a ternary weight"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for name, part in result["components"].items():
        table.add_row(name, *_cells(part))
    table.add_section()
    table.add_row("total", *_cells(result["total"]))
    console.print(table)


def _show_remote(console: Console, result: Mapping[str, Any]) -> None:
    facts = {
        "commit": result["commit"],
        "layout": result["layout"] or "none that is known",
        "to be downloaded": f"{_megabytes(result['download_bytes']) or 'nothing'} of {_megabytes(result['repository_bytes'])}",
        "fetched for this": _megabytes(result["fetched_bytes"]) or "nothing",
        "would load": "yes, by names, shapes and dtypes; the values were not looked at" if result["loads"] else "no",
    }
    for name, value in facts.items():
        console.print(f"{name:<21} {value}", soft_wrap=True, markup=False)
    for name, size in result["files"].items():
        console.print(f"  {size:>15,} {name}", soft_wrap=True, markup=False)


def _units(convention: Mapping[str, Any]) -> str:
    metres, radians = (convention[f"{unit}_per_unit"] for unit in ("metres", "radians"))
    return "unknown" if None in (metres, radians) else f"{metres:g} m or {radians:g} rad a step"


def _layers(part: Mapping[str, Any]) -> str:
    return f"{part['num_hidden_layers']} layers, {part['hidden_size']} wide"


def _cells(part: Mapping[str, Any]) -> list[str]:
    bits = part["bits_per_ternary_weight"]
    return [*(_megabytes(part[key]) for key in ("ternary_bytes", "other_bytes", "bytes")), "" if bits is None else f"{bits:.2f}"]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count else ""
