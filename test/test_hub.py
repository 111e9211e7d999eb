"""Hugging Face repositories: what is downloaded of them, at which revision, and what `bitvla inspect --remote` says without weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import TEXT, edit, heads, trainer_layout, write, write_checkpoint
from hub import COMMIT, REPOSITORY, Hub
from robot_base import imitate_raw, imitate_released
from safetensors.torch import load_file, save_file
from test_checkpoint_layouts import adapter, pickled, shard

from bitvla_ros.cli import main
from bitvla_ros.evaluation.inspection import run
from bitvla_ros.model import CheckpointError, load_checkpoint, pack_model
from bitvla_ros.model.checkpoint import resolve

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serves a checkpoint with what is not read beside it."""
    from huggingface_hub import constants

    folder = write_checkpoint(tmp_path / "served")
    for extra in ("checkpoint-5000/model.safetensors", "checkpoint-5000/config.json", "optimizer--100_checkpoint.pt", "README.md"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(bytes(5000))
    with Hub(folder) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield served


def inspect(name: str = REPOSITORY) -> dict:
    result = run(Namespace(path=name, remote=True))
    json.dumps(result, allow_nan=False)
    return result


# --- downloading ----------------------------------------------------------------------------------------------------------


def test_only_what_is_read_is_downloaded(hub):
    model = load_checkpoint(REPOSITORY)
    assert model.model_hash == load_checkpoint(hub.folder).model_hash
    assert set(hub.sent) == {file.name for file in hub.folder.glob("*.*")} - {"optimizer--100_checkpoint.pt", "README.md"}


def test_the_layout_of_the_reference_s_trainer_is_downloaded_and_loads(hub):
    expected = load_checkpoint(hub.folder).model_hash
    trainer_layout(hub.folder)
    save_file({"x": torch.zeros(1)}, hub.folder / "lora_adapter/adapter_model.safetensors")
    assert load_checkpoint(REPOSITORY).model_hash == expected
    assert {name for name in hub.sent if "/" in name} == {"lora_adapter/config.json", "lora_adapter/model.safetensors"}


def test_a_revision_is_asked_for_and_recorded(hub, tmp_path):
    description = pack_model(f"{REPOSITORY}@v1", tmp_path / "packed", control_hz=20.0)
    assert description["provenance"]["source"] == f"{REPOSITORY}@v1" and description["provenance"]["revision"] == COMMIT
    assert "v1" in hub.asked and "main" not in hub.asked
    with pytest.raises(CheckpointError, match="Revision Not Found"):
        resolve(f"{REPOSITORY}@v2")


def test_a_repository_that_is_not_there_is_one_line(hub):
    with pytest.raises(CheckpointError, match=r"could not be downloaded from Hugging Face: RepositoryNotFoundError") as error:
        resolve("owner/other")
    assert "\n" not in str(error.value)


def test_an_adapter_is_told_before_anything_is_downloaded(hub):
    adapter(hub.folder)
    with pytest.raises(CheckpointError, match="LoRA adapter"):
        resolve(REPOSITORY)
    assert not hub.sent


def test_without_a_network_what_was_downloaded_before_is_taken(hub, monkeypatch):
    from huggingface_hub import constants

    before = resolve(REPOSITORY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve(REPOSITORY) == before
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        resolve("owner/other")


def test_a_stalled_transfer_is_one_line(hub, monkeypatch):
    from huggingface_hub import constants, file_download

    hub.stalls.add("model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    with pytest.raises(CheckpointError, match=r"the transfer stalled for 0\.3 s .*Run it again, it goes on where it stopped") as error:
        resolve(REPOSITORY)
    assert "\n" not in str(error.value)


# --- looking at it from afar ----------------------------------------------------------------------------------------------


def enlarge(folder: Path) -> None:
    """Weights and heads of some MB, so that a download of them would show."""
    edit(folder / "config.json", text_config=TEXT | {"vocab_size": 60000})
    stored = load_file(folder / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        stored[name] = torch.zeros(60000, 24, dtype=torch.bfloat16)
    save_file(stored, folder / "new")
    (folder / "new").rename(folder / "model.safetensors")


def fat_head(folder: Path) -> None:
    """An archive of more than a MB: what is fetched of it are its directory and the headers of its records."""
    state = {name: value.clone() for name, value in heads()[0].items()}
    wide = torch.zeros(24 * 20000)  # a view of it is saved with all of it
    state["module.model.fc1.weight"] = wide[: 24 * 168].view(24, 168)
    torch.save(state, folder / "action_head--100_checkpoint.pt")


def test_a_checkpoint_is_described_without_its_weights(hub):
    enlarge(hub.folder)
    fat_head(hub.folder)
    result = inspect()
    assert result["loads"] and "error" not in result
    assert result["commit"] == COMMIT and result["layout"] == "weights in one file in the root; action_head and proprio_projector"
    here = run(Namespace(path=str(hub.folder), remote=False))
    assert {key: result[key] for key in ("architecture", "components", "total", "statistics")} == {
        key: here[key] for key in ("architecture", "components", "total", "statistics")
    }
    assert result["files"] == {name: size for name, size in hub.files().items() if name in result["files"]}
    assert "model.safetensors" in result["files"] and "optimizer--100_checkpoint.pt" not in result["files"]
    assert result["download_bytes"] == sum(result["files"].values()) < result["repository_bytes"]
    assert hub.sent["model.safetensors"] <= 1 << 18 and hub.sent["action_head--100_checkpoint.pt"] < 1 << 18
    assert sum(hub.sent.values()) == result["fetched_bytes"] < result["download_bytes"] / 8


@pytest.mark.parametrize("imitate", [imitate_released, imitate_raw])
def test_bases_are_described_without_their_weights(hub, tmp_path, imitate):
    """As the published ones are laid out: robot-pretrained, which acts token by token, and vision-language."""
    hub.folder = imitate(tmp_path / "base")
    result = inspect()
    assert result["loads"] and "error" not in result
    here = run(Namespace(path=str(hub.folder), remote=False))
    assert {key: result[key] for key in ("architecture", "total", "statistics")} == {
        key: here[key] for key in ("architecture", "total", "statistics")
    }
    assert bool(result["architecture"].get("discrete")) == (imitate is imitate_released)


def test_every_layout_is_told(hub, tmp_path):
    trainer_layout(hub.folder)
    shard(hub.folder / "lora_adapter")
    result = inspect(f"{REPOSITORY}@v1")
    assert result["loads"] and result["layout"].startswith("weights in 2 shards in lora_adapter/, as the reference's trainer leaves them")
    shutil.rmtree(hub.folder / "lora_adapter")
    for file in hub.folder.iterdir():
        if file.is_file():
            file.unlink()
    packed = write_checkpoint(tmp_path / "checkpoint")
    pack_model(packed, tmp_path / "packed", control_hz=20.0)
    shutil.copytree(tmp_path / "packed", hub.folder, dirs_exist_ok=True)
    result = inspect()
    assert result["loads"] and result["format"] == "bitvla-packed" and result["model_hash"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (adapter, "LoRA adapter"),
        (pickled, "pickled"),
        (lambda c: edit(c / "config.json", text_config=TEXT | {"hidden_size": 28}), "by config.json it must be"),
        (lambda c: write(c / "dataset_statistics.json", {}), "no dataset statistics"),
        (lambda c: (c / "preprocessor_config.json").unlink(), "preprocessor_config.json cannot be read"),
        (lambda c: (c / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda c: (c / "model.safetensors").write_bytes(b"\xff" * (1 << 19)), "model.safetensors is damaged"),
        (lambda c: (c / "action_head--100_checkpoint.pt").write_bytes(bytes(2 << 20)), "no archive of torch"),
        (lambda c: (c / "proprio_projector--100_checkpoint.pt").unlink(), "no proprio_projector"),
    ],
)
def test_what_would_not_load_is_said(hub, damage, message):
    damage(hub.folder)
    result = inspect()
    assert not result["loads"] and message in result["error"] and "bitvla-inspect-" not in result["error"]


def test_a_server_without_ranges_is_told(hub):
    enlarge(hub.folder)
    hub.ranges = False
    assert "it must know ranges" in inspect()["error"]


def test_the_command_line_asks_the_hub_of_the_environment(hub, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bitvla_ros.cli", "inspect", "--remote", REPOSITORY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "would load            yes" in done.stdout and COMMIT in done.stdout, done


def test_what_would_not_load_is_shown_and_fails(hub, capsys):
    adapter(hub.folder)
    assert main(["inspect", "--remote", REPOSITORY]) == 1
    shown = capsys.readouterr()
    assert "would load            no" in shown.out and "LoRA adapter" in shown.err
