"""Rows of a fixed rate out of streams with jittered stamps of their own (training/sources/alignment.py)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.training.sources import alignment as align
from bitvla_ros.training.sources.alignment import SECOND, GapError

BEGIN = 1_700_000_000 * SECOND
seeds = st.integers(0, 2**32 - 1)


def jittered(seed: int, hz: float, seconds: float = 2.0, share: float = 0.45) -> np.ndarray:
    """Increasing stamps about regular ones, off by up to `share` of a period, with a phase of their own."""
    random = np.random.default_rng(seed)
    count = int(seconds * hz)
    times = (np.arange(count) + random.uniform() + random.uniform(-share, share, count)) / hz
    return BEGIN + np.round(times * SECOND).astype(np.int64)


def rotations(seed: int, count: int) -> np.ndarray:
    q = np.random.default_rng(seed).normal(size=(count, 4))
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return np.array(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ]
    )


def exponential(vector: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(vector))
    return np.append(vector * (np.sin(angle / 2) / angle if angle > 1e-12 else 0.5), np.cos(angle / 2))


@given(seed=seeds, hz=st.sampled_from([10.0, 20.0, 33.0]))
@settings(deadline=None, max_examples=40)
def test_a_frame_never_sees_the_future_and_always_the_newest(seed, hz):
    streams = [jittered(seed, 30), jittered(seed + 1, 100), jittered(seed + 2, 15)]
    times = align.control_times(streams, hz)
    assert times[0] == max(stamps[0] for stamps in streams)
    assert np.abs(np.diff(times) - SECOND / hz).max() <= 1
    for stamps in streams:
        index = align.latest("camera", stamps, times, 0.2)
        assert (stamps[index] <= times).all()
        later = index + 1 < len(stamps)
        assert (stamps[np.minimum(index + 1, len(stamps) - 1)] > times)[later].all()


@given(seed=seeds)
@settings(deadline=None, max_examples=40)
def test_interpolation_is_exact_for_steady_motion_whatever_the_jitter(seed):
    stamps = jittered(seed, 50)
    times = align.control_times([stamps], 20)
    velocity, spin = np.array([0.1, -0.2, 0.05]), np.array([0.3, 1.0, -0.5])
    seconds = (stamps - BEGIN)[:, None] / SECOND
    start = rotations(seed, 1)[0]
    turned = np.stack([product(exponential(spin * t), start) for t in seconds[:, 0]])
    turned[np.random.default_rng(seed).random(len(turned)) < 0.5] *= -1  # drivers take either sign
    positions = align.interpolate("pose", stamps, seconds * velocity, times, 0.1)
    quaternions = align.interpolate_rotation("pose", stamps, turned, times, 0.1)
    wanted = (times - BEGIN)[:, None] / SECOND
    np.testing.assert_allclose(positions, wanted * velocity, atol=1e-7)
    expected = np.stack([product(exponential(spin * t), start) for t in wanted[:, 0]])
    assert np.abs(np.sum(quaternions * expected, axis=1)).min() > 1 - 1e-9
    assert (np.sum(quaternions[1:] * quaternions[:-1], axis=1) > 0).all()
    moved = align.motion(positions, quaternions)
    np.testing.assert_allclose(moved, np.tile(np.append(velocity, spin) * 0.05, (len(moved), 1)), atol=1e-6)


@given(seed=seeds)
@settings(deadline=None, max_examples=40)
def test_motion_leads_from_each_pose_to_the_next(seed):
    q = rotations(seed, 6)
    positions = np.random.default_rng(seed).normal(size=(6, 3))
    for i, row in enumerate(align.motion(positions, q)):
        np.testing.assert_allclose(positions[i] + row[:3], positions[i + 1])
        assert abs(product(exponential(row[3:]), q[i]) @ q[i + 1]) == pytest.approx(1, abs=1e-9)
        assert np.linalg.norm(row[3:]) <= np.pi + 1e-9


@given(seed=seeds, hz=st.floats(3, 200))
@settings(deadline=None, max_examples=60)
def test_held_commands_keep_their_integral_at_any_rate(seed, hz):
    stamps = jittered(seed, hz)
    values = np.random.default_rng(seed).normal(size=(len(stamps), 2))
    times = stamps[0] + np.arange(0, 31) * (SECOND // 20)
    timeout = 0.1
    mean = align.held_mean(stamps, values, times, timeout)
    fine = times[0] + np.arange(0, int(times[-1] - times[0]), SECOND // 2000)
    index = np.searchsorted(stamps, fine, side="right") - 1
    held = np.where((fine - stamps[index] < timeout * SECOND)[:, None], values[index], 0.0)
    np.testing.assert_allclose(mean, held.reshape(30, 100, 2).mean(axis=1), atol=0.15)
    np.testing.assert_allclose(mean.sum(axis=0), held.reshape(30, 100, 2).mean(axis=1).sum(axis=0), atol=0.8)


def test_a_command_that_falls_silent_counts_as_zero():
    stamps = BEGIN + np.array([0, SECOND // 10])
    times = BEGIN + np.arange(0, 9) * (SECOND // 20)
    mean = align.held_mean(stamps, np.array([[1.0], [2.0]]), times, 0.125)
    np.testing.assert_allclose(mean[:, 0], [1, 1, 2, 2, 1, 0, 0, 0])
    assert (align.held_mean(stamps[:0], np.zeros((0, 1)), times, 0.1) == 0).all()


@given(seed=seeds, where=st.integers(20, 60))
@settings(deadline=None, max_examples=30)
def test_every_gap_is_found_and_its_frame_named(seed, where):
    stamps = jittered(seed, 50, share=0.3)
    gap = np.delete(stamps, slice(where, where + 12))  # 0.24 s
    times = align.control_times([stamps], 20)
    for call in (
        lambda: align.latest("camera", gap, times, 0.15),
        lambda: align.interpolate("pose", gap, np.zeros((len(gap), 3)), times, 0.15),
    ):
        with pytest.raises(GapError, match=r"--max-gap") as caught:
            call()
        frame = caught.value.frame
        assert gap[where - 1] < times[frame] < gap[where]
        assert f"frame {frame} " in str(caught.value)
    align.latest("camera", gap, times, 0.5)


def test_streams_that_never_overlap_give_no_frames():
    assert len(align.control_times([BEGIN + np.array([0, SECOND]), BEGIN + np.array([2 * SECOND, 3 * SECOND])], 20)) == 0


def test_slerp_halves_a_turn():
    a, b = exponential(np.array([0, 0, 0.2])), exponential(np.array([0, 0, 1.0]))
    half = align.slerp(a[None], -b[None], np.array([0.5]))[0]
    np.testing.assert_allclose(half, exponential(np.array([0, 0, 0.6])), atol=1e-12)


def test_fingers_tell_when_they_were_commanded():
    rest, hold = np.full(20, 0.08), np.full(15, 0.03)
    opening = np.concatenate([rest, np.linspace(0.08, 0.03, 6)[1:], hold, np.linspace(0.03, 0.08, 6)[1:], rest])
    opening += np.random.default_rng(0).normal(0, 1e-4, len(opening))  # resting fingers tremble
    commands = align.gripper_from_fingers(opening, 0.005)
    assert len(commands) == len(opening) - 1
    changes = np.flatnonzero(np.diff(commands)) + 1
    assert commands[0] == 1 and len(changes) == 2
    assert changes[0] in (19, 20) and changes[1] in (39, 40)


@pytest.mark.parametrize(("opening", "command"), [(0.0, 0.0), (0.06, 1.0)])
def test_fingers_that_never_move_keep_what_they_are(opening, command):
    assert (align.gripper_from_fingers(np.full(10, opening), 0.005) == command).all()
