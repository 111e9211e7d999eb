"""Training under FSDP, in two processes that hold half of every tensor: as one process with all of it, and the same command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from demonstrations import write_demonstrations
from safetensors.torch import load_file
from sharded import ONE, distill, train
from training import in_two_processes

from bitvla_ros.model import load_checkpoint
from bitvla_ros.training.log import read
from bitvla_ros.training.processes import ProcessesError, processes
from bitvla_ros.training.state import states

pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("no_curves")

# What `accelerate launch --use_fsdp` sets.
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "1",
    "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD",
    "FSDP_SYNC_MODULE_STATES": "true",
}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(states(folder)[-1] / "tensors.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """What sharded.py writes."""
    folder: Path = tmp_path_factory.mktemp("sharded")
    in_two_processes([str(Path(__file__).with_name("sharded.py")), str(folder)], **SHARDED)
    return folder


@pytest.mark.parametrize(("name", "alone"), [("one", partial(train, bits=None)), ("distilled", distill)])
def test_a_step_is_that_of_one_process_with_the_joined_batch(runs, tmp_path, name, alone):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone(tmp_path, ONE)
    torch.set_num_threads(threads)
    (sharded,), (whole,) = read(runs / name / "log.csv"), read(tmp_path / "log.csv")
    for key, value in whole.items():
        if value:
            assert float(sharded[key]) == pytest.approx(float(value), rel=1e-3 if key.startswith("validation") else 1e-4), key
    expected = state(tmp_path)
    assert state(runs / name).keys() == expected.keys()
    for key, tensor in state(runs / name).items():
        if key.startswith("exp_avg."):  # a tenth of the gradient, after clipping
            assert float((tensor - expected[key]).norm()) <= 1e-4 * float(expected[key].norm()) + 1e-7, key


def test_each_process_holds_its_part_of_weights_and_moments(runs):
    shares = [float((runs / f"share-{rank}").read_text()) for rank in range(2)]
    assert sum(shares) == pytest.approx(1) and shares[0] == pytest.approx(0.5, abs=0.05)


def test_a_stopped_run_goes_on_bit_for_bit(runs):
    assert [(runs / f"stopped-{rank}").read_text() for rank in range(2)] == ["stopped after step 3"] * 2
    stopped, whole = state(runs / "stopped"), state(runs / "whole")
    assert stopped.keys() == whole.keys() and all(torch.equal(stopped[name], whole[name]) for name in whole)
    assert (runs / "stopped" / "log.csv").read_text() == (runs / "whole" / "log.csv").read_text()


def test_the_same_command_writes_a_whole_checkpoint(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    demos = write_demonstrations(tmp_path / "demos")
    command = ["-m", "bitvla_ros.cli", "train", str(write_checkpoint(start)), "--dataset", str(demos), "--output", str(tmp_path / "run")]
    options = ["--steps", "2", "--batch-size", "1", "--threads", "1", "--dtype", "float32", "--json"]
    outputs = in_two_processes([*command, *options], **SHARDED)
    assert json.loads(outputs[0])["steps"] == 2 and outputs[1] == ""
    saved = load_checkpoint(tmp_path / "run" / "checkpoint").state_dict()
    learned = {name.removeprefix("weight."): tensor for name, tensor in state(tmp_path / "run").items() if name.startswith("weight.")}
    assert learned.keys() == saved.keys()
    for name, tensor in learned.items():
        assert torch.equal(saved[name].bfloat16(), tensor.bfloat16()), name


def test_weights_on_the_host_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", **SHARDED, "FSDP_OFFLOAD_PARAMS": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessesError, match="without --fsdp_offload_params"):
        processes()
