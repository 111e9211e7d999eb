"""Packed models: a directory with config.json, model.safetensors and the tokenizer's files, checked and memory-mapped.

`packing.py` writes them. model.safetensors holds, for each ternary layer, `<layer>.words` (uint8, see ternary/pack.py) and
`<layer>.scale` (float32), and every other tensor under its name in BitVLA. config.json describes the model and has a SHA-256 of each
tensor, of the header before them and of each file beside them; `model_hash` covers all of that. So no bit changes unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..action_convention import KEY, ActionConvention
from ..stated import agreed
from ..ternary.backends import choose
from ..ternary.pack import PackedWeight, base3_size, has_invalid_codes, pack_weight, packed_shape, unpack, unpack_base3
from ..ternary.quantize import QuantizedActivation
from ..ternary.reference import integer_matmul
from .autoregressive import network
from .bitvla import BitVLA
from .checkpoint import Checkpoint, Reading, cast, describe, load_checkpoint, read_checkpoint, require_dtype, resolve, stated_cameras
from .config import BitVLAConfig, described, from_description
from .safetensors_file import ALIGNMENT, Entry, FormatError, map_file, read_header

FORMAT, VERSION = "bitvla-packed", 1
ENCODINGS = ("2bit", "base3")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What stands beside the weights: all that a tokenizer and an image recipe are read from.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "preprocessor_config.json",
)
_CHUNK = 1 << 16  # bytes that are hashed and looked at together; torch works on so few in the calling thread
_AGAIN = "Copy or download it again, or pack the checkpoint anew"


class PackedModelError(ValueError):
    """A packed model that cannot be used or made. The message names the file, the tensor and what to do."""


class PackedModel(NamedTuple):
    """A packed model in which every byte has been checked.

    description: config.json. tensors: where each is in model.safetensors. layers: [rows, columns] of the ternary matrices.
    """

    path: Path
    description: dict[str, Any]
    config: BitVLAConfig
    tensors: dict[str, Entry]
    layers: dict[str, tuple[int, int]]

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def cameras(self) -> tuple[str, ...] | None:
        """See BitVLA."""
        return stated_cameras(self.description)

    @property
    def convention(self) -> ActionConvention:
        """See BitVLA."""
        return ActionConvention.from_json(self.description.get(KEY))


def load(
    path_or_hub_id: str | Path,
    *,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    activation_bits: int | None = 8,
    attention: str | None = None,
    chunk: int | None = None,
    control_hz: float | None = None,
    norm_key: str | None = None,
    use_proprio: bool | None = None,
    prompt: str | None = None,
) -> BitVLA:
    """A model that is ready to predict on `device`, from a packed model or from a checkpoint, which is packed in memory. A checkpoint's
    master weights are read one by one: at the peak memory holds the packed model and one tensor.

    backend: of ternary.backends.choose. dtype: of all that is not ternary; by default `default_dtype`. The other options are
    `load_checkpoint`'s; a packed model states them all. With activation_bits None the model computes in floats, without a backend.
    Raises what `load_checkpoint` and `load_packed` raise.
    """
    path, dtype = resolve(path_or_hub_id), dtype or default_dtype(device)
    if is_packed(path):
        model = load_packed(path, device, backend, dtype)
        agreed("activation_bits", activation_bits or 0, model.config.activation_bits or 0, path / CONFIG)
        require_agreement(
            path / CONFIG,
            model.config,
            model.norm_key,
            attention=attention,
            chunk=chunk,
            control_hz=control_hz,
            norm_key=norm_key,
            use_proprio=use_proprio,
            prompt=prompt,
        )
        return model
    if activation_bits is not None:
        choose(backend, device)  # a backend that cannot work is said before minutes of loading
    stated: dict[str, Any] = {
        "attention": attention,
        "chunk": chunk,
        "control_hz": control_hz,
        "norm_key": norm_key,
        "use_proprio": use_proprio,
        "prompt": prompt,
    }
    if activation_bits is None:
        return load_checkpoint(path, dtype=dtype, activation_bits=None, **stated).to(device)
    return _pack_in_memory(read_checkpoint(path, **stated), device, backend, dtype)


def _pack_in_memory(checkpoint: Checkpoint, device: torch.device | str, backend: str, dtype: torch.dtype) -> BitVLA:
    """One master weight after the other, so that never more than one of them is in memory."""
    require_dtype(dtype)
    layers = stored_shapes(checkpoint.config, "2bit")[1]
    rest, packed, reading = {}, {}, Reading(checkpoint)
    for name, tensor in reading:
        layer = name.removesuffix(".weight")
        if layer in layers:
            packed[layer] = pack_weight(tensor)
        else:
            converted = cast(name, tensor, dtype)
            rest[name] = checkpoint.tensors[name] if converted is tensor else converted
    model = describe(checkpoint, reading.model_hash)
    model.load_state_dict(rest, strict=False, assign=True)
    return model.set_packed(packed, backend, device)


def require_agreement(
    where: str | Path,
    config: BitVLAConfig,
    stated_key: str | None,
    *,
    attention: str | None = None,
    chunk: int | None = None,
    control_hz: float | None = None,
    norm_key: str | None = None,
    use_proprio: bool | None = None,
    prompt: str | None = None,
) -> None:
    """Options for a model that states them all: a packed one, or a preset. where: what states them. stated_key: of its statistics;
    norm_key may lack its suffix `_no_noops`. Raises Contradiction."""
    agreed("attention", attention, config.attention, where)
    agreed("chunk", chunk, config.chunk, where)
    agreed("control_hz", control_hz, config.control_hz, where)
    agreed("use_proprio", use_proprio, config.proprio_dim is not None, where)
    agreed("prompt", prompt, "user" if config.discrete is None else config.discrete.prompt, where)
    agreed("norm_key", stated_key if f"{norm_key}_no_noops" == stated_key else norm_key, stated_key or "", where)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on a GPU, whose fast attention it needs; float32 on a CPU, whose kernels compute in it."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def load_packed(path: str | Path, device: torch.device | str = "cpu", backend: str = "auto", dtype: torch.dtype = torch.float32) -> BitVLA:
    """The model in the directory `path`, on `device`, ready to predict.

    dtype: float32 or bfloat16, of all that is not ternary. On the CPU, packed weights and the embedding table stay memory-mapped:
    replace a packed model by renaming, not by overwriting. Raises PackedModelError before any memory is committed, and BackendError.
    """
    require_dtype(dtype)
    choose(backend, device)
    packed = read_packed(path)
    stored = map_file(packed.weights, packed.tensors)
    weights = {}
    for name, (rows, columns) in packed.layers.items():
        words, scale = stored.pop(f"{name}.words"), stored.pop(f"{name}.scale")
        if packed.description["encoding"] == "base3":
            words = unpack_base3(words, *packed_shape(rows, columns)[:2])
        weights[name] = PackedWeight(words, scale, rows, columns)
    with torch.device("meta"):
        model = network(packed.config)
    model.load_state_dict({name: cast(name, tensor, dtype) for name, tensor in stored.items()}, strict=False, assign=True)
    model.set_packed(weights, backend, device)
    _check_products(packed, weights, model)
    model.path, model.model_hash = packed.path, packed.description["model_hash"]
    model.norm_stats, model.norm_key = packed.description["norm_stats"], packed.description["norm_key"]
    model.cameras, model.convention = packed.cameras, packed.convention
    return model


def is_packed(path: Path) -> bool:
    """Whether the directory claims to be a packed model: a checkpoint's config.json has no `format`."""
    try:
        return "format" in json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def read_packed(path: str | Path) -> PackedModel:
    """Read and check all of a packed model but what its backend computes. Raises PackedModelError."""
    packed = open_packed(path)
    try:
        _check_tensors(packed)
    except OSError as error:
        raise _unreadable(packed.path, error) from error
    return packed


def open_packed(path: str | Path) -> PackedModel:
    """Read and check all of a packed model but its tensors' values. Raises PackedModelError."""
    path = Path(path).expanduser().resolve()
    try:
        description = _read_description(path / CONFIG)
        config = _parse_config(path / CONFIG, description)
        _check_companions(path, description["files"])
        header_hash, tensors = read_header(path / WEIGHTS)
        if header_hash != description["header"]:
            raise PackedModelError(f"the header of {path / WEIGHTS} is not the one that was packed. {_AGAIN}")
        shapes, layers = stored_shapes(config, description["encoding"])
        packed = PackedModel(path, description, config, tensors, layers)
        _check_layout(packed, shapes)
    except FormatError as error:
        raise PackedModelError(f"{path / WEIGHTS} cannot be used: {error}. {_AGAIN}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    return packed


def _unreadable(path: Path, error: OSError) -> PackedModelError:
    return PackedModelError(f"{error.filename or path} cannot be read: {error.strerror}. {_AGAIN}")


# --- config.json ----------------------------------------------------------------------------------------------------------


def serialise(description: dict[str, Any]) -> bytes:
    """The only form in which config.json is written and accepted."""
    return json.dumps(description, indent=2, sort_keys=True).encode() + b"\n"


def hash_description(description: dict[str, Any]) -> str:
    """SHA-256 of everything in config.json but the hash itself."""
    return hashlib.sha256(serialise({key: value for key, value in description.items() if key != "model_hash"})).hexdigest()


def _read_description(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    try:
        description = json.loads(content)
    except ValueError as error:
        raise PackedModelError(f"{file} is damaged ({error}). {_AGAIN}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise PackedModelError(f'{file} is not of a packed model: it lacks "format": "{FORMAT}". Pack a checkpoint with `bitvla pack`')
    version = description.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise PackedModelError(f"{file} has format_version {version!r}: expected a number from 1 to {VERSION}. {_AGAIN}")
    if version > VERSION:
        raise PackedModelError(f"{file} has format version {version}, and this package reads {VERSION} at most: update the package")
    if content != serialise(description) or description.get("model_hash") != hash_description(description):
        raise PackedModelError(f"{file} is not as it was packed: its model_hash differs. {_AGAIN}")
    return description


def _parse_config(file: Path, description: dict[str, Any]) -> BitVLAConfig:
    missing = {"encoding", "config", "files", "header", "tensors", "norm_stats", "norm_key"} - description.keys()
    if missing:
        raise PackedModelError(f"{file} lacks {', '.join(sorted(missing))}. {_AGAIN}")
    if not all(isinstance(description[key], dict) for key in ("config", "files", "tensors")):
        raise PackedModelError(f"{file} must have objects under config, files and tensors. {_AGAIN}")
    if description["encoding"] not in ENCODINGS:
        raise PackedModelError(f"{file} has the encoding {description['encoding']!r}: expected {' or '.join(ENCODINGS)}. {_AGAIN}")
    try:
        config = from_description(description["config"])
        stated_cameras(description)
        ActionConvention.from_json(description.get(KEY))
    except (KeyError, TypeError, ValueError) as error:
        raise PackedModelError(f"{file} does not describe a BitVLA: {error}. {_AGAIN}") from error
    if config.activation_bits is None or described(config) != description["config"]:
        raise PackedModelError(f"{file} does not describe a BitVLA with packed weights. {_AGAIN}")
    return config


def _check_companions(path: Path, files: dict[str, str]) -> None:
    unknown = sorted(files.keys() - set(COMPANIONS))
    if unknown:
        raise PackedModelError(f"{path / CONFIG} lists {', '.join(unknown)}: expected only {', '.join(COMPANIONS)}. {_AGAIN}")
    for name in COMPANIONS:
        if name in files:
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != files[name]:
                raise PackedModelError(f"{path / name} is not as it was packed: its SHA-256 differs. {_AGAIN}")
        elif (path / name).exists():
            raise PackedModelError(f"{path / name} was not packed with the model, and would change its prompt or images: remove it")


# --- model.safetensors ----------------------------------------------------------------------------------------------------


def stored_shapes(config: BitVLAConfig, encoding: str) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, int]]]:
    """Shapes of all tensors in the file by their names, and [rows, columns] of each ternary layer."""
    with torch.device("meta"):
        model = network(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layers = {}
    for name, layer in model.ternary_layers().items():
        rows, columns = shapes.pop(f"{name}.weight")
        blocks, padded, width = packed_shape(rows, columns)
        shapes[f"{name}.words"] = (blocks, padded, width) if encoding == "2bit" else (base3_size(blocks * padded * width * 4),)
        shapes[f"{name}.scale"] = ()
        layers[name] = (layer.out_features, layer.in_features)
    return shapes, layers


def _check_layout(packed: PackedModel, shapes: dict[str, tuple[int, ...]]) -> None:
    """The file has the tensors of the architecture, all of them and no others."""
    hashes = packed.description["tensors"]
    for name in sorted(shapes.keys() | packed.tensors.keys() | hashes.keys()):
        where = f"{name} in {packed.weights}"
        if name not in shapes:
            raise PackedModelError(f"{where} does not belong to the architecture in {CONFIG}. {_AGAIN}")
        if name not in packed.tensors or name not in hashes:
            raise PackedModelError(f"{where} is missing{'' if name in hashes else f', or its hash in {CONFIG}'}. {_AGAIN}")
        dtype, shape, begin, _ = packed.tensors[name]
        if shape != shapes[name]:
            raise PackedModelError(f"{where} has shape {list(shape)}: by {CONFIG} it must be {list(shapes[name])}. {_AGAIN}")
        kind = name.rpartition(".")[2]
        fitting = dtype == {"words": torch.uint8, "scale": torch.float32}.get(kind, dtype) and (kind == "words" or dtype.is_floating_point)
        if not fitting or begin % (ALIGNMENT if kind == "words" and packed.description["encoding"] == "2bit" else dtype.itemsize):
            raise PackedModelError(f"{where} is {dtype} at byte {begin}: that is no dtype or place for it. {_AGAIN}")


def _check_tensors(packed: PackedModel) -> None:
    """Every tensor's hash and values. The file is read, not mapped, so that nothing stays resident."""
    names = sorted(packed.tensors, key=lambda name: packed.tensors[name].begin - packed.tensors[name].end)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            list(pool.map(lambda name: _check_tensor(packed, name), names))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_tensor(packed: PackedModel, name: str) -> None:
    entry, digest, problem = packed.tensors[name], hashlib.sha256(), None
    kind = name.rpartition(".")[2]
    buffer = memoryview(bytearray(_CHUNK))
    with packed.weights.open("rb") as file:
        file.seek(entry.begin)
        for begin in range(entry.begin, entry.end, _CHUNK):
            count = min(_CHUNK, entry.end - begin)
            if file.readinto(buffer[:count]) != count:
                raise PackedModelError(f"{packed.weights} was cut short while it was read. {_AGAIN}")
            digest.update(buffer[:count])
            values = torch.frombuffer(buffer, dtype=entry.dtype, count=count // entry.dtype.itemsize)
            problem = problem or _problem(values, kind, packed.description["encoding"])
    if digest.hexdigest() != packed.description["tensors"][name]:
        problem = "is not as it was packed: its SHA-256 differs"
    if problem:
        raise PackedModelError(f"{name} in {packed.weights} {problem}. {_AGAIN}")


def _problem(values: Tensor, kind: str, encoding: str) -> str | None:
    if kind == "words":
        if has_invalid_codes(values) if encoding == "2bit" else bool((values > 242).any()):
            return "holds codes that are none of the weights -1, 0, 1"
    elif not bool(values.isfinite().all()):
        return "has NaN or infinite values"
    elif kind == "scale" and not bool((values > 0).all()):
        return f"is {values.item()}: expected a positive scale"
    return None


def _check_products(packed: PackedModel, weights: dict[str, PackedWeight], model: BitVLA) -> None:
    """The backend's integers on the weights as it holds them, against plain arithmetic on the file's: a layer of each shape, 16 rows."""
    choice = random.Random(packed.description["model_hash"])
    shuffled = choice.sample(sorted(weights), len(weights))
    layers = model.ternary_layers()
    for name in {(weights[name].rows, weights[name].columns): name for name in shuffled}.values():
        words, _, rows, columns = weights[name]
        first = choice.randrange(0, rows, 16)
        last = min(first + 16, rows)
        expected_codes = unpack(words[:, first : first + 16].contiguous(), last - first, columns)

        codes = torch.zeros(2, words.shape[0] * 16, dtype=torch.int8)
        codes[:, :columns] = torch.randint(-127, 128, (2, columns), generator=torch.Generator().manual_seed(choice.getrandbits(32)))
        x = QuantizedActivation(codes, torch.full((2,), 127.0), codes.sum(-1, dtype=torch.int32))
        held, backend = layers[name].packed, layers[name].backend
        assert backend is not None
        products = backend.matmul(QuantizedActivation(*(tensor.to(held.words.device) for tensor in x)), held)[:, first:last].cpu()
        if not torch.equal(products, integer_matmul(codes[:, :columns], expected_codes)):
            raise PackedModelError(
                f"{name} in {packed.weights}: the backend {backend.name} computes other integers than the reference arithmetic. "
                "Load it with backend='reference', and report this with your processor's or GPU's name"
            )
