"""Recorded actions played back."""

from __future__ import annotations

import numpy as np
import pytest

from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.replay import RecordingError, ReplayPolicy

STEP = 50_000_000
START = 1_000_000_000
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (20, 7)).astype(np.float32)


def observe(step: float, epoch: int = 0) -> Observation:
    return Observation({}, np.zeros(8), "lift it", {"state": START + round(step * STEP)}, epoch)


def test_chunks_laid_end_to_end_are_the_recording():
    policy = ReplayPolicy(ACTIONS, control_hz=20)
    chunks = [policy.infer(observe(step)) for step in (0, 8, 16)]
    np.testing.assert_array_equal(np.concatenate([chunk.actions for chunk in chunks])[:20], ACTIONS)
    assert all(chunk.actions.dtype == np.float32 and chunk.horizon == 8 for chunk in chunks)


def test_a_chunk_carries_its_observation():
    chunk = ReplayPolicy(ACTIONS, control_hz=20, frame="world").infer(observe(3, epoch=5))
    assert (chunk.observation_stamp, chunk.step_duration, chunk.epoch) == (START + 3 * STEP, STEP, 5)
    assert (chunk.instruction, chunk.frame) == ("lift it", "world")
    assert chunk.model_hash


def test_time_counts_and_not_the_number_of_chunks():
    policy = ReplayPolicy(ACTIONS, control_hz=20)
    policy.infer(observe(0))
    for step in (1, 4.2, 9.9):
        np.testing.assert_array_equal(policy.infer(observe(step)).actions, ACTIONS[round(step) : round(step) + 8])


def test_after_the_last_action_the_arm_stays_and_keeps_its_grip():
    policy = ReplayPolicy(ACTIONS, control_hz=20)
    policy.infer(observe(0))
    for step in (16, 40):
        tail = policy.infer(observe(step)).actions[4 if step == 16 else 0 :]
        assert not tail[:, :6].any()
        assert np.all(tail[:, 6] == ACTIONS[-1, 6])


def test_reset_begins_again():
    policy = ReplayPolicy(ACTIONS, control_hz=20)
    policy.infer(observe(0))
    policy.reset()
    np.testing.assert_array_equal(policy.infer(observe(100)).actions, ACTIONS[:8])


def test_recording_survives_saving(tmp_path):
    policy = ReplayPolicy(ACTIONS, control_hz=10, horizon=4, frame="base")
    policy.save(tmp_path / "actions.npz")
    loaded = ReplayPolicy.load(tmp_path / "actions.npz")
    np.testing.assert_array_equal(loaded.actions, ACTIONS)
    assert loaded.spec == policy.spec and loaded.frame == "base"
    assert [file.name for file in tmp_path.iterdir()] == ["actions.npz"]


@pytest.mark.parametrize(
    "actions",
    [np.zeros((0, 7)), np.zeros((4, 6)), np.zeros(7), np.full((2, 7), np.nan), np.zeros((2, 7), int), np.array([["a"] * 7])],
)
def test_what_is_no_recording_is_refused(actions):
    with pytest.raises(RecordingError):
        ReplayPolicy(actions, control_hz=20)


@pytest.mark.parametrize("options", [{"control_hz": 0.0}, {"control_hz": float("nan")}, {"control_hz": 20, "horizon": 0}])
def test_senseless_rates_are_refused(options):
    with pytest.raises(RecordingError):
        ReplayPolicy(ACTIONS, **options)


def test_files_that_are_no_recording_are_refused(tmp_path):
    with pytest.raises(RecordingError):
        ReplayPolicy.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("actions")
    with pytest.raises(RecordingError):
        ReplayPolicy.load(tmp_path / "text.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(RecordingError):
        ReplayPolicy.load(tmp_path / "empty.npz")
    np.savez(tmp_path / "other.npz", actions=ACTIONS)
    with pytest.raises(RecordingError):
        ReplayPolicy.load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", ACTIONS)
    with pytest.raises(RecordingError):
        ReplayPolicy.load(tmp_path / "array.npy")
    np.savez(tmp_path / "pickle.npz", actions=np.array([object()]), control_hz=20.0, horizon=8, frame="")
    with pytest.raises(RecordingError):
        ReplayPolicy.load(tmp_path / "pickle.npz")
    ReplayPolicy(ACTIONS, control_hz=20).save(tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordingError):
        ReplayPolicy.load(tmp_path / "cut.npz")
