"""What `bitvla doctor` is told of a model and of this machine."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import STATISTICS, write_checkpoint

from bitvla_ros.evaluation.readiness import available_memory, gpu_memory, kernels, needs, shared_memory
from bitvla_ros.model import CheckpointError, PackedModelError, pack_model
from bitvla_ros.model.packed import WEIGHTS


def test_a_packed_model_says_its_size_rate_and_what_it_was_trained_on(tmp_path):
    pack_model(write_checkpoint(tmp_path / "tiny"), tmp_path / "packed", control_hz=10)
    found = needs(str(tmp_path / "packed"))
    assert found.packed and found.bytes == (tmp_path / "packed" / WEIGHTS).stat().st_size
    assert (found.control_hz, found.chunk, found.image_size) == (10.0, 8, 28)
    assert np.array_equal(found.state_low, STATISTICS["proprio"]["q01"]) and np.array_equal(found.state_high, STATISTICS["proprio"]["q99"])


def test_a_checkpoint_is_read_without_packing_it_and_says_the_same(tmp_path):
    pack_model(write_checkpoint(tmp_path / "tiny"), tmp_path / "packed", control_hz=10)
    found, packed = needs(str(tmp_path / "tiny")), needs(str(tmp_path / "packed"))
    assert not found.packed and found.control_hz is None  # the reference's checkpoints do not say
    assert found[2:3] + found[4:5] == packed[2:3] + packed[4:5]
    assert np.array_equal(found.state_low, packed.state_low)


def test_the_estimate_of_a_model_that_is_not_packed_is_near_its_size_when_packed(tmp_path):
    pack_model("random:nano", tmp_path / "nano")
    packed, estimate = needs(str(tmp_path / "nano")), needs("random:nano")
    assert packed.state_low is None  # random weights were trained on nothing
    assert estimate.bytes == pytest.approx(packed.bytes, rel=1.0)  # built in float32, packed in bfloat16
    assert estimate.bytes > 0.9 * packed.bytes


def test_a_damaged_model_is_refused(tmp_path):
    pack_model("random:nano", tmp_path / "nano")
    weights = tmp_path / "nano" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PackedModelError):
        needs(str(tmp_path / "nano"))


def test_a_model_that_cannot_act_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "base")
    for file in (*path.glob("action_head*"), *path.glob("proprio_projector*")):
        file.unlink()
    with pytest.raises((ValueError, CheckpointError), match="action head"):
        needs(str(path))


def test_an_unknown_instruction_set_is_a_problem_and_not_a_crash(monkeypatch):
    assert kernels().isa and not kernels().problem
    monkeypatch.setenv("BITVLA_ISA", "mmx")
    assert kernels().isa == "" and "BITVLA_ISA=mmx" in kernels().problem


def test_memory_is_told_where_the_system_tells_it():
    memory, shared = available_memory(), shared_memory()
    assert memory is None or 10**7 < memory < 10**14
    assert shared is None or 0 <= shared[1] <= shared[0]
    with pytest.raises(ValueError):
        gpu_memory("cuda:99")
