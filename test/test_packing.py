"""Packing: streamed in little memory, whole or not at all, with the numbers of `load_checkpoint` and `build`. And the two verbs."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import edit, write, write_checkpoint
from safetensors.torch import save_file

from bitvla_ros import cli
from bitvla_ros.model import (
    BitVLA,
    BitVLAConfig,
    CheckpointError,
    LanguageConfig,
    PackedModelError,
    VisionConfig,
    build,
    load_packed,
    pack_model,
    random_weights,
)
from bitvla_ros.model.checkpoint import PREFIXES
from bitvla_ros.model.packed import CONFIG, WEIGHTS, read_packed
from bitvla_ros.model.packing import SafetensorsWriter
from bitvla_ros.model.tokenizer import byte_tokenizer
from bitvla_ros.policy.normalization import Statistics
from bitvla_ros.stated import Contradiction

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


# --- the same numbers -----------------------------------------------------------------------------------------------------


def test_packing_twice_gives_the_same_bytes(checkpoint, tmp_path):
    for name in ("one", "two"):
        pack_model(checkpoint, tmp_path / name, control_hz=20)
    assert {file.name for file in (tmp_path / "one").iterdir()} >= {CONFIG, WEIGHTS, "tokenizer.json", "preprocessor_config.json"}
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_random_weights_are_those_of_build(tmp_path):
    pack_model("random:nano", tmp_path / "nano")
    model, expected = load_packed(tmp_path / "nano", backend="reference", dtype=torch.bfloat16), build("nano", dtype=torch.bfloat16)
    ours, theirs = model.state_dict(), expected.pack("reference").state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert model.config == expected.config, "nano has the byte tokenizer's ids"
    given, identity = Statistics.from_dict(model.norm_stats), Statistics.identity()
    for part in ("action", "proprio"):
        for name in ("q01", "q99", "mask"):
            assert (getattr(getattr(given, part), name) == getattr(getattr(identity, part), name)).all()


def test_weights_drawn_in_parts_are_those_drawn_at_once(monkeypatch):
    expected = build("nano", seed=1).model_hash
    monkeypatch.setattr(random_weights, "PART", 1)
    assert build("nano", seed=1).model_hash == expected


def test_provenance_says_where_it_came_from_without_a_path(checkpoint, tmp_path):
    description = pack_model(checkpoint, tmp_path / "packed", control_hz=20)
    assert description["provenance"].keys() == {"source", "source_config_sha256", "package_version"}
    assert description["provenance"]["source"] == "tiny"
    assert str(tmp_path) not in (tmp_path / "packed" / CONFIG).read_text()


def test_options_reach_the_packed_model(checkpoint, tmp_path):
    edit(checkpoint / "config.json", control_hz=5.0)
    pack_model(checkpoint, tmp_path / "packed", chunk=4, attention="causal", norm_key="libero_goal")
    config = read_packed(tmp_path / "packed").config
    assert (config.chunk, config.attention, config.control_hz) == (4, "causal", 5.0)


def test_base_checkpoint_is_packed_without_a_rate(checkpoint, tmp_path):
    for file in [*checkpoint.glob("*.pt"), checkpoint / "dataset_statistics.json", checkpoint / "preprocessor_config.json"]:
        file.unlink()
    pack_model(checkpoint, tmp_path / "packed")
    model = load_packed(tmp_path / "packed", backend="reference")
    assert model.norm_stats is None and not model.config.action_head


# --- refused --------------------------------------------------------------------------------------------------------------


def test_fine_tuned_checkpoint_needs_a_rate(checkpoint, tmp_path):
    with pytest.raises(PackedModelError, match="--control-hz"):
        pack_model(checkpoint, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_what_is_there_already_is_not_overwritten(checkpoint, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(PackedModelError, match="exists already"):
            pack_model(checkpoint, tmp_path / name, control_hz=20)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    pack_model(checkpoint, tmp_path / "empty", control_hz=20)
    read_packed(tmp_path / "empty")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("random:huge", {}, "choose 3b or nano"),
        ("random:nano", {"chunk": 4}, "chunk is 4, but random:nano states 8: leave chunk out"),
        ("random:nano", {"encoding": "4bit"}, "choose 2bit or base3"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, source, options, message):
    with pytest.raises((PackedModelError, Contradiction), match=message):
        pack_model(source, tmp_path / "packed", **options)


def test_checkpoint_without_an_image_recipe_is_refused(checkpoint, tmp_path):
    (checkpoint / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing"):
        pack_model(checkpoint, tmp_path / "packed", control_hz=20)


def test_weights_that_are_not_finite_leave_nothing_behind(checkpoint, tmp_path):
    from safetensors.torch import load_file

    stored = load_file(checkpoint / "model.safetensors")
    stored["language_model.model.norm.weight"][3] = float("nan")
    (checkpoint / "model.safetensors").unlink()
    save_file(stored, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"language\.norm\.weight in .* has NaN"):
        pack_model(checkpoint, tmp_path / "new" / "packed", control_hz=20)
    assert list((tmp_path / "new").iterdir()) == []


# --- interrupted ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_from_the_start_is_one_clear_error(checkpoint, tmp_path):
    """A limit on a file's size stands in for the full disk."""
    code = (
        "import resource, sys; from bitvla_ros import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "sys.exit(cli.main(['pack', sys.argv[1], sys.argv[2], '--control-hz', '20']))"
    )
    done = subprocess.run(python(code, checkpoint, tmp_path / "packed"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "packed cannot be written: File too large. The packed model takes 0.1 MB; nothing of it was left there" in done.stderr
    assert "packing" not in done.stderr, "the space is reserved before the work begins"
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path, monkeypatch):
    write_tensor = SafetensorsWriter.write

    def full(self, name, parts):
        if name.startswith("language.layers.1."):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_tensor(self, name, parts)

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    with pytest.raises(PackedModelError, match="packed cannot be written: No space left"):
        pack_model("random:nano", tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(name, done, total):
        if name.startswith("language."):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_model("random:nano", tmp_path / "packed", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_the_middle_leaves_no_model(checkpoint, tmp_path):
    code = (
        "import sys, time; from bitvla_ros.model import pack_model\n"
        "def stop(name, done, total):\n"
        "    if done > total / 2: print('half', flush=True); time.sleep(60)\n"
        "pack_model(sys.argv[1], sys.argv[2], control_hz=20, progress=stop)"
    )
    out = tmp_path / "packed"
    with subprocess.Popen(python(code, checkpoint, out), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    pack_model(checkpoint, out, control_hz=20)
    read_packed(out)


# --- memory ---------------------------------------------------------------------------------------------------------------

PEAK = """
import re, sys, threading, time
from bitvla_ros.model import pack_model

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.001)

tiny, *large = sys.argv[1:]
pack_model(tiny, tiny + "-packed", control_hz=20)  # what is imported late is not the model
peak = before = anonymous()
threading.Thread(target=watch, daemon=True).start()
for path in large:
    pack_model(path, path + "-packed", control_hz=20)
print(peak - before)
"""


def write_large_checkpoint(folder: Path, shards: int) -> int:
    """100 MB in bfloat16, the largest ternary matrix 2 MB. -> bytes."""
    config = BitVLAConfig(
        VisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=28),
        LanguageConfig(50_000, 512, 2048, 6, num_attention_heads=4, num_key_value_heads=2),
        image_token_id=260,
        proprio_token_id=261,
        stop_token_id=257,
    )
    byte_tokenizer().save_pretrained(folder)
    text, vision = vars(config.language), {**vars(config.vision), "vit_weight_bits": 1, "vit_act_bits": 8}
    write(folder / "config.json", {"model_type": "bitvla", "vision_config": vision, "text_config": text})
    write(folder / "dataset_statistics.json", {"random": random_weights.identity_statistics(config)})
    write(folder / "preprocessor_config.json", {})
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in BitVLA(config).state_dict().items()}
    tensors = {}
    for name, shape in shapes.items():
        theirs, ours = next((theirs, ours) for theirs, ours in PREFIXES if name.startswith(ours))
        tensors[theirs + name.removeprefix(ours)] = torch.ones(shape, dtype=torch.bfloat16)
    names = sorted(tensors)
    files = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    write(folder / "model.safetensors.index.json", {"weight_map": files})
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_memory_does_not_grow_with_the_model(checkpoint, tmp_path):
    size = write_large_checkpoint(tmp_path / "single", 1) / 2**20
    write_large_checkpoint(tmp_path / "sharded", 3)
    command = python(PEAK, checkpoint, tmp_path / "single", tmp_path / "sharded")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert size > 90
    assert float(done.stdout) < 45, f"{done.stdout} MiB of anonymous memory for models of {size:.0f} MiB"


# --- the verbs ------------------------------------------------------------------------------------------------------------


def test_pack_and_inspect_from_the_command_line(checkpoint, tmp_path, capsys):
    out = str(tmp_path / "packed")
    assert cli.main(["pack", str(checkpoint), out, "--control-hz", "20", "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert packed["bytes"] == sum(file.stat().st_size for file in Path(out).iterdir()) and packed["source"] == "tiny"

    assert cli.main(["inspect", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model_hash"] == packed["model_hash"] and told["format"] == "bitvla-packed"
    assert told["statistics"] == ["libero_goal_no_noops"]
    assert told["architecture"]["language"]["hidden_size"] == 24 and told["matrices"] == 19
    assert told["total"]["bytes"] == sum(entry.end - entry.begin for entry in read_packed(out).tensors.values())
    assert sum(part["bytes"] for part in told["components"].values()) == told["total"]["bytes"]
    assert told["components"]["embedding"] == {
        "ternary_weights": 0,
        "ternary_bytes": 0,
        "other_bytes": 514 * 24 * 2,
        "bytes": 514 * 24 * 2,
        "bits_per_ternary_weight": None,
    }

    assert cli.main(["inspect", out]) == 0
    shown = capsys.readouterr().out
    assert packed["model_hash"] in shown and "8 x 7 at 20 Hz" in shown and "every hash fits" in shown


def test_inspect_tells_about_a_checkpoint_with_several_statistics(checkpoint, capsys):
    statistics = json.loads((checkpoint / "dataset_statistics.json").read_text())
    write(checkpoint / "dataset_statistics.json", {**statistics, "bridge": statistics["libero_goal_no_noops"]})
    assert cli.main(["inspect", str(checkpoint), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "checkpoint" and told["statistics"] == ["libero_goal_no_noops", "bridge"]
    assert told["components"]["vision"]["bits_per_ternary_weight"] == 16.0
    assert cli.main(["inspect", str(checkpoint)]) == 0
    assert "a rate that is not recorded" in capsys.readouterr().out


def test_inspect_refuses_a_damaged_model(checkpoint, tmp_path, capsys):
    pack_model(checkpoint, tmp_path / "packed", control_hz=20)
    content = bytearray((tmp_path / "packed" / WEIGHTS).read_bytes())
    content[-1] ^= 4
    (tmp_path / "packed" / WEIGHTS).write_bytes(content)
    assert cli.main(["inspect", str(tmp_path / "packed")]) == 2
    assert "its SHA-256 differs" in capsys.readouterr().err
