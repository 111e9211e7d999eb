"""Training under FSDP, in two processes that hold half of every tensor: as one process with all of it, and the same command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from demonstrations import write_demonstrations
from safetensors.torch import load_file
from sharded import ONE, train
from test_distillation import in_full_precision
from training import in_two_processes

from bitvla_ros.model import load_checkpoint
from bitvla_ros.training.log import read
from bitvla_ros.training.processes import ProcessesError, processes
from bitvla_ros.training.state import states

pytest.importorskip("accelerate")
SHARDED = {"ACCELERATE_USE_FSDP": "true"}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(states(folder)[-1] / "tensors.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """What sharded.py writes."""
    folder: Path = tmp_path_factory.mktemp("sharded")
    in_two_processes([str(Path(__file__).with_name("sharded.py")), str(folder)], **SHARDED)
    return folder


def test_a_step_is_that_of_one_process_with_the_joined_batch(runs, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tmp_path, ONE, None)
    torch.set_num_threads(threads)
    (sharded,), (alone,) = read(runs / "one" / "log.csv"), read(tmp_path / "log.csv")
    for name, value in alone.items():
        assert float(sharded[name]) == pytest.approx(float(value), rel=1e-3 if name.startswith("validation") else 1e-4), name
    expected = state(tmp_path)
    assert state(runs / "one").keys() == expected.keys()
    for name, tensor in state(runs / "one").items():
        if name.startswith("exp_avg."):  # a tenth of the gradient, after clipping
            assert float((tensor - expected[name]).norm()) <= 1e-4 * float(expected[name].norm()) + 1e-7, name


def test_each_process_holds_its_part_of_weights_and_moments(runs):
    shares = [float((runs / f"share-{rank}").read_text()) for rank in range(2)]
    assert sum(shares) == pytest.approx(1) and shares[0] == pytest.approx(0.5, abs=0.05)


def test_a_stopped_run_goes_on_bit_for_bit(runs):
    assert [(runs / f"stopped-{rank}").read_text() for rank in range(2)] == ["stopped after step 3"] * 2
    stopped, whole = state(runs / "stopped"), state(runs / "whole")
    assert stopped.keys() == whole.keys() and all(torch.equal(stopped[name], whole[name]) for name in whole)
    assert (runs / "stopped" / "log.csv").read_text() == (runs / "whole" / "log.csv").read_text()


@pytest.mark.parametrize("verb", ["train", "distill"])
def test_the_same_command_writes_whole_checkpoints(tmp_path, verb):
    start = tmp_path / "start"
    start.mkdir()
    write_checkpoint(start)
    if verb == "distill":
        in_full_precision(start)
    demos = write_demonstrations(tmp_path / "demos")
    options = ["--dataset", str(demos), "--steps", "2", "--batch-size", "1", "--workers", "0", "--threads", "1", "--dtype", "float32"]
    outputs = in_two_processes(["-m", "bitvla_ros.cli", verb, str(start), *options, "--output", str(tmp_path / "run"), "--json"], **SHARDED)
    assert '"steps": 2' in outputs[0] and outputs[1] == ""
    saved = load_checkpoint(tmp_path / "run" / "checkpoint").state_dict()
    learned = {name.removeprefix("weight."): tensor for name, tensor in state(tmp_path / "run").items() if name.startswith("weight.")}
    assert {name.split(".")[0] for name in learned} == ({"vision"} if verb == "distill" else {name.split(".")[0] for name in saved})
    for name, tensor in learned.items():
        assert torch.equal(saved[name].bfloat16(), tensor.bfloat16()), name


def test_weights_on_the_host_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", **SHARDED, "FSDP_OFFLOAD_PARAMS": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessesError, match="without --fsdp_offload_params"):
        processes()
