"""Packed models on disk: the same model as the checkpoint's, memory-mapped, and refused by name where a bit is not as it was packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import STATISTICS, write_checkpoint
from golden import Golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import forge, write_description

from bitvla_ros.model import PackedModelError, load, load_checkpoint, load_packed, pack_model
from bitvla_ros.model.checkpoint import EMBEDDING
from bitvla_ros.model.packed import CONFIG, WEIGHTS, read_packed
from bitvla_ros.model.safetensors_file import read_header
from bitvla_ros.policy.bitvla import BitVLAPolicy
from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.preprocessing import ImageRecipe
from bitvla_ros.policy.prompt import load_tokenizer
from bitvla_ros.stated import Contradiction
from bitvla_ros.ternary import reference
from bitvla_ros.ternary.backends import BackendError

LAYER = "language.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def originals(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    for encoding in ("2bit", "base3"):
        pack_model(checkpoint, folder / encoding, encoding=encoding, control_hz=20)
    return {encoding: folder / encoding for encoding in ("2bit", "base3")}


@pytest.fixture
def packed(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["2bit"], tmp_path / "model"))


def load_reference(path: Path, **options):
    return load_packed(path, backend="reference", **options)


def assert_same(model, other) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


# --- what is loaded -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_model_is_the_checkpoints_packed_in_memory(checkpoint, originals, dtype):
    model = load_reference(originals["2bit"], dtype=dtype)
    assert_same(model, load_checkpoint(checkpoint, dtype=dtype).pack("reference"))
    assert model.norm_stats == STATISTICS and model.norm_key == "libero_goal_no_noops"
    assert model.config.control_hz == 20.0 and model.path == originals["2bit"].resolve()
    assert model.model_hash == json.loads((originals["2bit"] / CONFIG).read_text())["model_hash"]
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_both_encodings_are_the_same_model(originals):
    assert_same(load_reference(originals["base3"]), load_reference(originals["2bit"]))
    assert (originals["base3"] / WEIGHTS).stat().st_size < (originals["2bit"] / WEIGHTS).stat().st_size


def test_golden_checkpoint_survives_the_round_trip(shared, tmp_path):
    golden = Golden(shared)
    pack_model(golden.checkpoint, tmp_path / "packed", control_hz=20)
    model, source = load_reference(tmp_path / "packed"), load_checkpoint(golden.checkpoint, control_hz=20).pack("reference")
    assert_same(model, source)
    assert model.config == source.config and model.norm_stats == source.norm_stats and model.norm_key == source.norm_key
    inputs = golden.inputs(0)
    assert torch.equal(model.predict(*inputs).normalized_actions, source.predict(*inputs).normalized_actions)


def test_what_a_policy_reads_beside_the_weights_is_packed_too(checkpoint, originals):
    path = load_reference(originals["2bit"]).path
    assert ImageRecipe.from_checkpoint(path) == ImageRecipe.from_checkpoint(checkpoint)
    text = "put the bowl <|image_pad|> on the plate"
    assert load_tokenizer(path)(text)["input_ids"] == load_tokenizer(checkpoint)(text)["input_ids"]


def test_words_and_embedding_stay_memory_mapped(originals):
    model = load_reference(originals["2bit"])
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(originals["2bit"] / WEIGHTS)):
            mapped.append([int(number, 16) for number in line.split()[0].split("-")])
    for tensor in [model.language.embed_tokens.weight, *(layer.words for layer in model.ternary_layers().values())]:
        assert any(start <= tensor.data_ptr() < end for start, end in mapped)


def test_words_start_at_cache_lines(originals):
    for name, entry in read_header(originals["2bit"] / WEIGHTS)[1].items():
        assert entry.begin % (64 if name.endswith(".words") else entry.dtype.itemsize) == 0


def test_other_readers_of_safetensors_read_it(originals):
    from safetensors.torch import load_file

    stored = load_file(originals["2bit"] / WEIGHTS)
    assert torch.equal(stored[f"{LAYER}.words"], load_reference(originals["2bit"]).ternary_layers()[LAYER].words)


def test_a_vision_tower_in_full_precision_is_packed_as_it_is(tmp_path):
    from checkpoints import VISION, edit

    checkpoint = write_checkpoint(tmp_path / "tiny")
    edit(checkpoint / "config.json", vision_config={key: value for key, value in VISION.items() if not key.startswith("vit_")})
    pack_model(checkpoint, tmp_path / "packed", control_hz=20)
    model = load_reference(tmp_path / "packed")
    assert_same(model, load_checkpoint(checkpoint).pack("reference"))
    assert all(name.startswith("language.") for name in model.ternary_layers())


# --- one way to load both kinds -------------------------------------------------------------------------------------------


def test_load_tells_packed_models_and_checkpoints_apart(checkpoint, originals):
    model = load(originals["2bit"], backend="reference")
    assert_same(model, load(checkpoint, backend="reference"))
    assert model.backend.name == "reference"
    unquantized = load(checkpoint, activation_bits=None)
    assert unquantized.backend is None and not unquantized.training


def test_a_backend_that_cannot_work_is_said_before_anything_is_read(checkpoint, originals, monkeypatch):
    from bitvla_ros.model import packed as module

    for name in ("load_checkpoint", "read_packed"):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("read first"))
    for path in (checkpoint, originals["2bit"]):
        with pytest.raises(BackendError):
            load(path, backend="abacus")


def test_a_policy_of_random_weights_infers_from_disk_as_from_memory(tmp_path):
    pack_model("random:nano", tmp_path / "nano")
    random = np.random.default_rng(0)
    images = {role: random.integers(0, 256, (96, 128, 3), dtype=np.uint8) for role in ("scene", "wrist")}
    observation = Observation(images, np.zeros(8), "lift the block", dict.fromkeys((*images, "state"), 1))
    stored = BitVLAPolicy.load(tmp_path / "nano", backend="reference", dtype=torch.bfloat16)
    built = BitVLAPolicy.random("nano", backend="reference", dtype=torch.bfloat16)
    assert np.array_equal(stored.infer(observation).actions, built.infer(observation).actions)
    assert stored.spec.control_hz == built.spec.control_hz == 20.0


def test_options_of_packing_are_not_changed_afterwards(originals):
    agreeing = {"chunk": 8, "control_hz": 20.0, "attention": "bidirectional", "norm_key": "libero_goal"}
    assert load(originals["2bit"], backend="reference", **agreeing).config.chunk == 8
    for option in ({"chunk": 5}, {"control_hz": 10.0}, {"attention": "causal"}, {"activation_bits": None}, {"norm_key": "bridge"}):
        with pytest.raises(Contradiction, match=rf"^{next(iter(option))} is .*config\.json states .*: leave {next(iter(option))} out$"):
            load(originals["2bit"], backend="reference", **option)


# --- files that are not as they were packed -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused_naming_the_file(packed: Path, data: st.DataObject):
    file = data.draw(st.sampled_from(sorted(packed.iterdir())))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    intact = file.read_bytes()
    file.write_bytes(content)
    try:
        with pytest.raises(PackedModelError, match=file.name):
            read_packed(packed)
    finally:
        file.write_bytes(intact)


def test_a_header_that_says_the_same_in_other_words_is_refused(packed):
    content = (packed / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(dict(reversed(json.loads(content[8 : 8 + length]).items())), separators=(",", ":")).encode()
    (packed / WEIGHTS).write_bytes(content[:8] + header.ljust(length) + content[8 + length :])
    with pytest.raises(PackedModelError, match=f"the header of .*{WEIGHTS} is not the one that was packed"):
        load_reference(packed)


def test_a_description_that_says_the_same_in_other_words_is_refused(packed):
    (packed / CONFIG).write_text(json.dumps(described(packed), sort_keys=True))
    with pytest.raises(PackedModelError, match=r"config\.json is not as it was packed"):
        load_reference(packed)


@pytest.mark.parametrize("name", [f"{LAYER}.words", f"{LAYER}.scale", EMBEDDING, "action_head.fc2.bias"])
def test_a_flipped_bit_of_a_tensor_is_refused_naming_it(packed, name):
    entry = read_header(packed / WEIGHTS)[1][name]
    content = bytearray((packed / WEIGHTS).read_bytes())
    content[entry.end - 1] ^= 1
    (packed / WEIGHTS).write_bytes(content)
    with pytest.raises(PackedModelError, match=rf"{name} in .*{WEIGHTS} is not as it was packed"):
        load_reference(packed)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.2, 0.6, -1])
def test_a_file_cut_short_is_refused(packed, kept):
    content = (packed / WEIGHTS).read_bytes()
    (packed / WEIGHTS).write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(PackedModelError, match=f"{WEIGHTS} cannot be used: it is cut short"):
        load_reference(packed)


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(packed, monkeypatch):
    from bitvla_ros.model import packed as module

    entries = read_header(packed / WEIGHTS)
    (packed / WEIGHTS).write_bytes((packed / WEIGHTS).read_bytes()[:-3])
    monkeypatch.setattr(module, "read_header", lambda path: entries)
    with pytest.raises(PackedModelError, match=f"{WEIGHTS} was cut short while it was read"):
        load_reference(packed)


def test_a_file_with_bytes_at_its_end_is_refused(packed):
    with (packed / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(PackedModelError, match="4 bytes more"):
        load_reference(packed)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(packed, name):
    (packed / name).unlink()
    with pytest.raises(PackedModelError, match=f"{name} cannot be read: No such file"):
        load_reference(packed)


def test_a_file_that_would_change_the_prompt_is_refused(packed):
    (packed / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(PackedModelError, match=r"chat_template\.jinja was not packed with the model"):
        load_reference(packed)
    (packed / "chat_template.jinja").unlink()
    (packed / "README.md").write_text("notes are harmless")
    read_packed(packed)


# --- files that were made wrong, their hashes fitting ---------------------------------------------------------------------


def described(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def test_a_newer_format_is_refused_with_the_remedy(packed):
    description = described(packed) | {"format_version": 2, "shiny": True}
    del description["tensors"]
    write_description(packed, description)
    with pytest.raises(PackedModelError, match=r"config.json has format version 2, .* reads 1 at most: update the package"):
        load_reference(packed)


@pytest.mark.parametrize("value", [0, -1, "1", None])
def test_a_format_that_is_no_number_is_refused(packed, value):
    write_description(packed, described(packed) | {"format_version": value})
    with pytest.raises(PackedModelError, match="format_version"):
        load_reference(packed)


def test_what_is_no_packed_model_is_refused(packed, checkpoint):
    with pytest.raises(PackedModelError, match="Pack a checkpoint with `bitvla pack`"):
        load_reference(checkpoint)
    write_description(packed, described(packed) | {"format": "gguf"})
    with pytest.raises(PackedModelError, match="not of a packed model"):
        load(packed, backend="reference")


def spoil(name: str, value: float | int):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -1.0])
def test_a_scale_that_is_not_finite_and_positive_is_refused(packed, value):
    forge(packed, spoil(f"{LAYER}.scale", value))
    with pytest.raises(PackedModelError, match=rf"{LAYER}.scale in .*{WEIGHTS} (has NaN or infinite|is -?\d)"):
        load_reference(packed)


@pytest.mark.parametrize("byte", [0b11, 0b11 << 6])
def test_a_code_that_is_no_weight_is_refused(packed, byte):
    forge(packed, spoil(f"{LAYER}.words", byte))
    with pytest.raises(PackedModelError, match=rf"{LAYER}.words in .*{WEIGHTS} holds codes"):
        load_reference(packed)


def test_a_base_3_byte_that_is_no_weights_is_refused(originals, tmp_path):
    packed = Path(shutil.copytree(originals["base3"], tmp_path / "model"))
    forge(packed, spoil(f"{LAYER}.words", 243))
    with pytest.raises(PackedModelError, match=rf"{LAYER}.words in .*{WEIGHTS} holds codes"):
        load_reference(packed)


def test_weights_that_are_not_finite_are_refused(packed):
    forge(packed, spoil("action_head.fc1.weight", float("nan")))
    with pytest.raises(PackedModelError, match=r"action_head\.fc1\.weight in .* has NaN"):
        load_reference(packed)


@pytest.mark.parametrize(("name", "value"), [("action_head.fc1.weight", float("inf")), (f"{LAYER}.words", 255)])
def test_a_bad_value_is_found_in_whichever_part_of_a_tensor_it_is(packed, monkeypatch, name, value):
    from bitvla_ros.model import packed as module

    def change(tensors):
        tensors[name].view(-1)[0] = value

    monkeypatch.setattr(module, "_CHUNK", 64)
    forge(packed, change)
    with pytest.raises(PackedModelError, match=name):
        load_reference(packed)


def drop(tensors):
    del tensors[f"{LAYER}.scale"]


def add(tensors):
    tensors["language.layers.1.norm.weight"] = torch.ones(4)


def widen(tensors):
    tensors["language.norm.weight"] = torch.ones(32)


def retype(tensors):
    tensors[f"{LAYER}.scale"] = tensors[f"{LAYER}.scale"].double()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, f"{LAYER}.scale in .* is missing"),
        (add, "language.layers.1.norm.weight in .* does not belong"),
        (widen, r"language.norm.weight in .* has shape \[32\]: by config.json it must be \[24\]"),
        (retype, f"{LAYER}.scale in .* is torch.float64"),
    ],
)
def test_other_tensors_than_the_architectures_are_refused(packed, change, message):
    forge(packed, change)
    with pytest.raises(PackedModelError, match=message):
        load_reference(packed)


def test_weights_of_another_architecture_are_refused(packed):
    config = described(packed)["config"]
    for part, message in (({"intermediate_size": 48}, "has shape"), ({"num_hidden_layers": 2}, "language.layers.1.* is missing")):
        forge(packed, config=config | {"language": config["language"] | part})
        with pytest.raises(PackedModelError, match=f"{message}"):
            load_reference(packed)
    forge(packed, config=config | {"colour": "blue"})
    with pytest.raises(PackedModelError, match=r"config\.json does not describe a BitVLA: .*colour"):
        load_reference(packed)
    forge(packed, config=config | {"activation_bits": None})
    with pytest.raises(PackedModelError, match="does not describe a BitVLA with packed weights"):
        load_reference(packed)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"encoding": "4bit"}, "encoding '4bit'"),
        ({"files": {"../../secret": "0"}}, "lists ../../secret"),
        ({"files": []}, "must have objects"),
        ({"config": {}}, "does not describe a BitVLA"),
    ],
)
def test_nonsense_in_the_description_is_refused(packed, described, message):
    forge(packed, **described)
    with pytest.raises(PackedModelError, match=message):
        load_reference(packed)


def test_a_backend_that_computes_other_integers_is_refused(packed, monkeypatch):
    matmul = reference.BACKEND.matmul
    monkeypatch.setattr(reference.BACKEND, "matmul", lambda x, weight: matmul(x, weight) + (weight.rows == 36))
    with pytest.raises(PackedModelError, match=r"(gate|up)_proj in .* the backend reference computes other integers"):
        load_reference(packed)


def test_no_tensor_is_made_before_everything_is_checked(packed, monkeypatch):
    from bitvla_ros.model import packed as module

    def mapped(*_):
        raise AssertionError("mapped before it was checked")

    monkeypatch.setattr(module, "map_file", mapped)
    forge(packed, spoil(f"{LAYER}.scale", 0.0))
    with pytest.raises(PackedModelError):
        load_reference(packed)
