"""Reading checkpoints in the layout of the BitVLA repository; saving.py writes them.

A checkpoint is a directory: config.json, model.safetensors (or shards with an index), tokenizer.json; a fine-tuned one also has
action_head--*_checkpoint.pt, proprio_projector--*_checkpoint.pt and dataset_statistics.json. Config and weights may lie in lora_adapter/
(layout.py). Everything is checked before a model is made of it. Weights that need no other dtype stay memory-mapped: replace a checkpoint
by renaming, not by overwriting.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..action_convention import KEY, ActionConvention
from ..stated import Contradiction, agreed
from .autoregressive import AutoregressiveBitVLA, network
from .bitvla import BitVLA
from .checkpoint_files import read_config, read_head, read_json, read_weights, some
from .config import BitVLAConfig, DiscreteActions, LanguageConfig, VisionConfig, described
from .discrete import discrete_actions, token_head
from .hub import download, hub_id
from .layout import MERGE, local_layout
from .layout import CheckpointError as CheckpointError
from .safetensors_file import Entry, map_file
from .shipped import SHIPPED, shipped
from .token_additions import converted, following_ids
from .tokenizer import DOCUMENTED_IDS, END_OF_TEXT, IMAGE_PAD, PROPRIO_PAD

MODEL_TYPES = ("bitvla", "openvla", "llava")
DTYPES = (torch.float32, torch.bfloat16)
EMBEDDING = "language.embed_tokens.weight"

# (prefix in the checkpoint, prefix in BitVLA); heads have files of their own
PREFIXES = (
    ("vision_tower.vision_model.embeddings.", "vision."),
    ("vision_tower.vision_model.encoder.", "vision."),
    ("multi_modal_projector.", "connector."),
    ("language_model.model.", "language."),
    ("action_head.model.mlp_resnet_blocks.", "action_head.blocks."),
    ("action_head.model.", "action_head."),
    ("proprio_projector.", "proprio_projector."),
)
LARGE = 1 << 20  # bytes of a tensor after which memory is given back
PART = 1 << 22  # elements of a tensor that are looked at together
LM_HEAD = "language_model.lm_head.weight"  # used where actions are tokens; else they are regressed from hidden states
# What tensors that do not belong to a BitVLA are, by their names.
KNOWN_NAMES = (
    (r"^base_model\.|\.lora_[AB]\.", f"the tensors of a LoRA adapter that is not merged: {MERGE}"),
    (
        r"^model\.(language_model|vision_tower|multi_modal_projector)\.|^vision_tower\.(encoder|embeddings)\.|^lm_head\.",
        "the tensor names of a newer transformers than the reference's: save it again with transformers 4.51, which names them "
        "language_model.model.layers.… and vision_tower.vision_model.encoder.layers.…",
    ),
    (r"^action_head\.noise_predictor\.", "a diffusion head: only the L1 regression head is supported (fine-tune with bitvla train)"),
    (r"film|^vision.*\.(scale|shift)\.(weight|bias)$", "FiLM layers in its vision tower: only towers without FiLM are supported"),
    (r"\.weight_scale$", "weights that are packed already by BitNet's tools: take the repository with the bf16 master weights"),
)


class Checkpoint(NamedTuple):
    """A directory that describes a BitVLA and has all its tensors, in the right shapes.

    tensors: by their names in BitVLA, as they are stored, memory-mapped; their values have not been looked at.
    norm_stats, norm_key, cameras, convention: as in BitVLA. places: where the tensors of safetensors files are.
    """

    path: Path
    config: BitVLAConfig
    tensors: dict[str, Tensor]
    norm_stats: dict[str, Any] | None
    norm_key: str | None
    cameras: tuple[str, ...] | None
    convention: ActionConvention
    vocabulary: Tensor | None  # as in AutoregressiveBitVLA; not among the tensors
    places: Mapping[str, tuple[Path, Entry]] = MappingProxyType({})


def load_checkpoint(
    path_or_hub_id: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    activation_bits: int | None = 8,
    attention: str | None = None,
    chunk: int | None = None,
    control_hz: float | None = None,
    norm_key: str | None = None,
    use_proprio: bool | None = None,
    prompt: str | None = None,
) -> BitVLA:
    """A model with the weights of a directory, or of a Hugging Face repository, which is downloaded first (owner/name, or
    owner/name@revision: a branch, a tag or a commit).

    dtype: float32 or bfloat16, of weights and arithmetic; the embedding table keeps the dtype it is stored in.
    activation_bits: 8, or None to switch activation quantization off. What config.json states holds; where it does not, these do:
    attention: "bidirectional" or "causal", by default bidirectional, as the released code. chunk: actions a forward pass, by default
    8. control_hz: rate the actions are meant for, by default unknown. norm_key: which of the dataset statistics; may be left out where
    there is one, and may lack its suffix `_no_noops`. use_proprio: False for a checkpoint that was fine-tuned without proprioception, as
    the statistics of its dataset have some all the same.

    A base checkpoint has no action head: it loads, for training, and cannot predict. But a robot-pretrained base, whose config.json has
    norm_stats of several datasets, acts token by token when norm_key chooses one (AutoregressiveBitVLA). prompt: of config.PROMPTS, of
    such a base, by default "human".

    Raises CheckpointError, and Contradiction for an option that says something else than config.json.
    """
    require_dtype(dtype)
    checkpoint = read_checkpoint(
        resolve(path_or_hub_id),
        activation_bits=activation_bits,
        attention=attention,
        chunk=chunk,
        control_hz=control_hz,
        norm_key=norm_key,
        use_proprio=use_proprio,
        prompt=prompt,
    )
    weights, reading = {}, Reading(checkpoint)
    for name, tensor in reading:
        as_wanted = cast(name, tensor, dtype)
        weights[name] = checkpoint.tensors[name] if as_wanted is tensor else as_wanted
    model = describe(checkpoint, reading.model_hash)
    model.load_state_dict(weights, assign=True)
    return model.eval()


class Reading:
    """Every tensor of a checkpoint once, by its name, in the order of names: as it is stored, found to be finite, and hashed.

    Each lies in memory of its own, mapped from its file, so that what was read of it leaves memory with it. model_hash: of all that was
    given. Raises CheckpointError.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._digest = hashlib.sha256(json.dumps(described(checkpoint.config), sort_keys=True).encode())

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        path, places = self._checkpoint.path, self._checkpoint.places
        for name in sorted(self._checkpoint.tensors):
            file, entry = places.get(name, (None, None))
            tensor = self._checkpoint.tensors[name] if file is None or entry is None else map_file(file, {name: entry})[name]
            require_finite(path, name, tensor)
            _update(self._digest, name, tensor)
            yield name, tensor
            if tensor.nbytes > LARGE:
                _give_back()

    @property
    def model_hash(self) -> str:
        return self._digest.hexdigest()


def _give_back() -> None:
    """What was freed to the system, where the C library is glibc. What is made of a tensor lies between what is freed with it, and
    would keep the heap from shrinking: by up to half the file in some runs."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def describe(checkpoint: Checkpoint, model_hash: str) -> BitVLA:
    """A model without weights that is in all else the checkpoint's."""
    with torch.device("meta"):
        model = network(checkpoint.config)
    model.path, model.cameras, model.model_hash = checkpoint.path, checkpoint.cameras, model_hash
    model.norm_stats, model.norm_key, model.convention = checkpoint.norm_stats, checkpoint.norm_key, checkpoint.convention
    if isinstance(model, AutoregressiveBitVLA):
        model.vocabulary = checkpoint.vocabulary
    return model


def read_checkpoint(
    path: Path,
    *,
    activation_bits: int | None = 8,
    attention: str | None = None,
    chunk: int | None = None,
    control_hz: float | None = None,
    norm_key: str | None = None,
    use_proprio: bool | None = None,
    prompt: str | None = None,
    convention: ActionConvention | None = None,
) -> Checkpoint:
    """What `load_checkpoint` makes a model of, without converting or even reading a weight. path: a directory, see `resolve`.
    convention: what is known of it where the checkpoint does not say."""
    files = local_layout(path)
    raw = read_config(path)
    places, tensors = read_weights(path, files)
    for stem, file in files.heads.items():
        tensors |= read_head(path / file, stem)
    lm_head = tensors.pop(LM_HEAD, None)
    tensors = {_rename(name): tensor for name, tensor in tensors.items()}
    for pattern, meaning in KNOWN_NAMES:
        if any(map(re.compile(pattern).search, tensors)):
            raise CheckpointError(f"{path} has {meaning}")

    try:
        has_head, tokenizer = "action_head.fc2.weight" in tensors, read_json(path / "tokenizer.json")
        discrete = None if has_head else discrete_actions(path, raw, tokenizer, norm_key, prompt)
        if discrete is None:
            agreed("prompt", prompt, "user", "the reference's fine-tuning", "only a robot-pretrained base, with a norm_key, has a choice")
        config = _parse_config(raw, path, tensors, activation_bits, attention, chunk, control_hz, discrete)
        cameras, stated = stated_cameras(raw), ActionConvention.from_json(raw.get(KEY))
        vocabulary = None
        if discrete is not None:
            vocabulary = tensors.get(EMBEDDING) if lm_head is None else lm_head  # as the file says: tied where it has no lm_head
            tensors |= token_head(path, vocabulary, config)
    except (CheckpointError, Contradiction):
        raise
    except (KeyError, TypeError, ValueError) as error:
        problem = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path / files.config} does not describe a BitVLA: {problem}") from error
    norm_stats, chosen_key = _choose_statistics(path, raw["norm_stats"] if discrete else read_statistics(path), config, norm_key)
    if discrete is None:
        _require_proprio(path, config, norm_stats, agreed("use_proprio", use_proprio, raw.get("use_proprio"), path / files.config))
    with torch.device("meta"):
        _check_tensors(path, tensors, network(config).state_dict())
    renamed = {_rename(name): place for name, place in places.items()}
    convention = stated if convention is None else convention.agreed(stated, path / files.config)
    return Checkpoint(path, config, tensors, norm_stats, chosen_key, cameras, convention, vocabulary, renamed)


def require_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype} is not supported: choose torch.float32 or torch.bfloat16")


# --- files ----------------------------------------------------------------------------------------------------------------


def resolve(path_or_hub_id: str | Path) -> Path:
    """The directory that is meant: of a shipped model by its name, or given; a Hugging Face repository is downloaded, what of it is read.
    Raises CheckpointError, and ShippedModelError."""
    if str(path_or_hub_id) in SHIPPED:
        return shipped(str(path_or_hub_id))
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise CheckpointError(f"{path} is a file: give the checkpoint's directory, the one that holds config.json")
    repository = hub_id(str(path_or_hub_id))
    if repository is None:
        raise CheckpointError(f"there is no directory {path}: give a checkpoint's directory or a Hugging Face id (owner/name)")
    return download(repository)


def _rename(name: str) -> str:
    """A tensor's name in the checkpoint -> its name in BitVLA. Unknown names stay as they are."""
    for theirs, ours in PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


# --- configuration --------------------------------------------------------------------------------------------------------


def _parse_config(
    raw: dict[str, Any],
    path: Path,
    tensors: dict[str, Tensor],
    activation_bits: int | None,
    attention: str | None,
    chunk: int | None,
    control_hz: float | None,
    discrete: DiscreteActions | None,
) -> BitVLAConfig:
    vision, text = raw["vision_config"], raw["text_config"]
    for value, name, allowed in (
        (raw["model_type"], "model_type", MODEL_TYPES),
        (text.get("model_type", "BitNet"), "text_config.model_type", ("BitNet", "bitnet")),
        (vision.get("model_type", "siglip_vision_model"), "vision_config.model_type", ("siglip_vision_model",)),
        (vision.get("hidden_act", "gelu_pytorch_tanh"), "vision_config.hidden_act", ("gelu_pytorch_tanh",)),
        (vision.get("num_channels", 3), "vision_config.num_channels", (3,)),
        (raw.get("projector_hidden_act", "gelu"), "projector_hidden_act", ("gelu",)),
        (raw.get("vision_feature_layer", -1), "vision_feature_layer", (-1,)),
        (raw.get("vision_feature_select_strategy", "full"), "vision_feature_select_strategy", ("full",)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}: expected {' or '.join(map(repr, allowed))}")
    vision_bits = (vision.get("vit_weight_bits", 32), vision.get("vit_act_bits", 32))
    if vision_bits not in ((1, 8), (32, 32)):
        raise ValueError(f"vit_weight_bits, vit_act_bits are {vision_bits}: expected (1, 8), or neither for a tower in full precision")
    # The reference has no such keys: its language model is always ternary. Ours in full precision exist to compare with.
    text_bits = (text.get("weight_bits", 1), text.get("act_bits", 8))
    if text_bits not in ((1, 8), (32, 32)):
        raise ValueError(f"text_config has weight_bits, act_bits {text_bits}: expected neither, or (32, 32) for full precision")

    ids = _special_ids(path, text["vocab_size"])
    head_out, proprio_in = tensors.get("action_head.fc2.weight"), tensors.get("proprio_projector.fc1.weight")
    if head_out is None and proprio_in is not None:
        raise CheckpointError(f"{path} has a proprio projector and no action head: its action_head--*_checkpoint.pt is missing")
    file = path / local_layout(path).config
    chunk = agreed("chunk", chunk, raw.get("chunk"), file)
    attention = agreed("attention", attention, raw.get("attention"), file)
    if discrete is not None:
        tokens = f"a robot-pretrained base that decodes token by token, as {path},"
        chunk, attention = agreed("chunk", chunk, 1, tokens), agreed("attention", attention, "causal", tokens)
    return BitVLAConfig(
        vision=VisionConfig(**_known(VisionConfig, vision), ternary=vision_bits == (1, 8)),
        language=LanguageConfig(**_known(LanguageConfig, text | _rotation(text)), ternary=text_bits == (1, 8)),
        image_token_id=ids[IMAGE_PAD],
        proprio_token_id=ids[PROPRIO_PAD],
        stop_token_id=ids[END_OF_TEXT],
        chunk=8 if chunk is None else chunk,
        action_dim=7 if head_out is None else head_out.shape[0],
        proprio_dim=None if proprio_in is None else proprio_in.shape[-1],
        action_head=head_out is not None,
        attention="bidirectional" if attention is None else attention,
        activation_bits=activation_bits,
        control_hz=agreed("control_hz", control_hz, raw.get("control_hz"), file),
        discrete=discrete,
    )


def _rotation(text: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta where newer versions of transformers write it. Raises ValueError for a rotary embedding of another kind."""
    stated = text.get("rope_parameters") or {}
    kinds = {part.get(key, "default") for part in (stated, text.get("rope_scaling") or {}) for key in ("rope_type", "type")}
    if kinds != {"default"}:
        raise ValueError(f"the rotary embedding is of the kind {', '.join(sorted(kinds - {'default'}))}: expected the plain one")
    theta = agreed("rope_theta", text.get("rope_theta"), stated.get("rope_theta"), "its rope_parameters")
    return {} if theta is None else {"rope_theta": theta}


def stated_cameras(raw: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The camera roles that a config.json states, in the order of training; None where it does not. Raises ValueError."""
    roles = raw.get("cameras")
    if roles is None:
        return None
    if not isinstance(roles, list) or not roles or not all(isinstance(role, str) and role for role in roles):
        raise ValueError(f"cameras is {roles!r}: expected a list of roles")
    return tuple(roles)


def _known(kind: type, raw: dict[str, Any]) -> dict[str, Any]:
    """The values that `kind` has fields for. A key that is not there has the default, as in the reference's classes."""
    return {field.name: raw[field.name] for field in fields(kind) if field.name in raw and field.name != "ternary"}


def _special_ids(path: Path, vocab_size: int) -> dict[str, int]:
    """Ids by the text of the token; where the tokenizer (of a base checkpoint) does not have it yet, the id that it will be given."""
    tokenizer = read_json(path / "tokenizer.json")
    try:
        tokenizer = converted(tokenizer)
        following = DOCUMENTED_IDS | following_ids(tokenizer)
        by_text = dict(tokenizer["model"]["vocab"]) if isinstance(tokenizer["model"]["vocab"], dict) else {}
        by_text |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'tokenizer.json'} is not a tokenizer of the tokenizers library: it lacks {error}") from error
    taken = set(by_text.values())
    ids = {}
    for text in (END_OF_TEXT, IMAGE_PAD, PROPRIO_PAD):
        ids[text] = by_text.get(text, following[text])
        if text not in by_text and (ids[text] in taken or ids[text] >= vocab_size):
            raise CheckpointError(
                f"{path / 'tokenizer.json'} has no token {text}, and its documented id {ids[text]} "
                f"{'belongs to another token' if ids[text] in taken else f'is outside the vocabulary of {vocab_size}'}: "
                "use the tokenizer that was saved with these weights"
            )
    return ids


def read_statistics(path: Path) -> dict[str, Any]:
    """The statistics of all datasets by their keys; empty where a checkpoint has none."""
    file = path / "dataset_statistics.json"
    return read_json(file) if file.exists() else read_config(path).get("norm_stats") or {}


def _choose_statistics(
    path: Path, statistics: dict[str, Any], config: BitVLAConfig, norm_key: str | None
) -> tuple[dict[str, Any] | None, str | None]:
    available = ", ".join(statistics) or "none"
    if norm_key is None:
        if not config.action_head:
            return None, None  # a base, to be trained: the statistics of its new data take the place of what it has
        if len(statistics) != 1:
            problem = "has no dataset statistics" if not statistics else f"has statistics of several datasets ({available})"
            remedy = "put dataset_statistics.json beside the weights" if not statistics else "say which one with norm_key"
            raise CheckpointError(f"{path} {problem}, without which actions have no units: {remedy}")
        norm_key = next(iter(statistics))
    elif norm_key not in statistics:
        if f"{norm_key}_no_noops" not in statistics:
            raise CheckpointError(f"{path} has no statistics under norm_key {norm_key!r}; it has: {available}")
        norm_key = f"{norm_key}_no_noops"

    chosen = statistics[norm_key]
    for part, size in (("action", config.action_dim), ("proprio", config.proprio_dim)):
        for name in ("q01", "q99") if size else ():
            try:
                values = torch.tensor(chosen[part][name], dtype=torch.float64)
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"the statistics {norm_key!r} in {path} lack numbers under {part}.{name}") from error
            if values.shape != (size,) or not bool(values.isfinite().all()):
                raise CheckpointError(f"{part}.{name} of the statistics {norm_key!r} in {path} must be {size} finite numbers")
    return {"action": chosen["action"], "proprio": chosen.get("proprio")}, norm_key


def _require_proprio(path: Path, config: BitVLAConfig, statistics: Mapping[str, Any] | None, stated: bool | None) -> None:
    """stated: whether the checkpoint uses proprioception; None where neither its config.json nor the caller says."""
    if not config.action_head:
        return
    if config.proprio_dim is not None:
        agreed("use_proprio", stated, True, f"{path} has a proprio projector, which")
    elif stated or (stated is None and statistics is not None and statistics["proprio"]):
        raise CheckpointError(
            f"{path} has no proprio_projector--*_checkpoint.pt, and {'its config.json' if stated else 'the state in its statistics'} asks "
            "for one: download it; or, if the checkpoint was fine-tuned without proprioception, say so with "
            '`bitvla pack --no-proprio`, the parameter use_proprio of the policy node, or "use_proprio": false in its config.json'
        )


# --- tensors --------------------------------------------------------------------------------------------------------------


def _check_tensors(path: Path, tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        problems = [f"lacks {some(missing)}"] if missing else []
        problems += [f"has {some(unexpected)}, which its config.json does not call for"] if unexpected else []
        raise CheckpointError(f"{path} {' and '.join(problems)}. Check that config.json and the weights belong together")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{name} in {path} has shape {list(tensor.shape)}: by config.json it must be {list(expected[name].shape)}. "
                "Check that config.json and the weights belong together"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} in {path} is {tensor.dtype}: expected a float dtype, the full-precision master weights")


def require_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raises CheckpointError for NaN and infinite values. In parts, as the embedding table is too large for a copy."""
    if not all(bool(part.isfinite().all()) for part in tensor.split(max(1, PART // max(1, tensor[:1].numel())))):
        raise CheckpointError(f"{name} in {path} has NaN or infinite values: the file is damaged or the training diverged")


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The embedding table stays as narrow as it is stored, hence memory-mapped: a few rows of it are read in a forward pass."""
    if name == EMBEDDING and tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor
    return tensor.to(dtype)


def hash_model(config: BitVLAConfig, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the configuration and of every tensor as it is stored, hex."""
    digest = hashlib.sha256(json.dumps(described(config), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        _update(digest, name, tensor)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
