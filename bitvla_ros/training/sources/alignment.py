"""Streams with stamps of their own become rows of one fixed rate.

Stamps are int64 nanoseconds. Quaternions are float64 xyzw. Nothing is filled in: where a stream is silent for longer than
`max_gap` seconds, a GapError names the stream, the frame and the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import ConversionError

Floats = NDArray[np.float64]
Stamps = NDArray[np.int64]
SECOND = 1_000_000_000


class GapError(ConversionError):
    """A stream was silent for too long, or does not cover the episode. frame: row of the episode."""

    def __init__(self, message: str, frame: int) -> None:
        super().__init__(message)
        self.frame = frame


def control_times(streams: Sequence[Stamps], hz: float) -> Stamps:
    """int64 [T + 1]: the control steps' boundaries while every stream is there, from the latest beginning to the earliest end.
    Frame i is at [i], and its step ends at [i + 1]. Empty where the streams have no two boundaries in common."""
    start, end = max(int(stamps[0]) for stamps in streams), min(int(stamps[-1]) for stamps in streams)
    count = int((end - start) * hz / SECOND + 1e-6) + 1
    if end < start or count < 2:
        return np.empty(0, np.int64)
    return start + np.round(np.arange(count) * (SECOND / hz)).astype(np.int64)


def latest(name: str, stamps: Stamps, times: Stamps, max_gap: float) -> NDArray[np.intp]:
    """Index [T] of the newest of `stamps` (increasing) that is not later than each of `times`."""
    index = np.searchsorted(stamps, times, side="right") - 1
    age = np.where(index >= 0, times - stamps[np.maximum(index, 0)], np.iinfo(np.int64).max)
    _refuse_gap(name, age > max_gap * SECOND, age, times, max_gap)
    return index


def interpolate(name: str, stamps: Stamps, values: Floats, times: Stamps, max_gap: float) -> Floats:
    """Linear, float64 [T, ...]. values: [N, ...] at `stamps`, increasing."""
    left, right, share = _between(name, stamps, times, max_gap)
    share = share.reshape(-1, *(1,) * (values.ndim - 1))
    return np.asarray(values[left] + share * (values[right] - values[left]))


def interpolate_rotation(name: str, stamps: Stamps, quaternions: Floats, times: Stamps, max_gap: float) -> Floats:
    """Spherical, along the shorter arc, float64 [T, 4]; every result continues the sign of the first quaternion."""
    left, right, share = _between(name, stamps, times, max_gap)
    q = continued(quaternions)
    return continued(slerp(q[left], q[right], share))


def slerp(a: Floats, b: Floats, share: Floats) -> Floats:
    """From unit quaternions a to b, [T, 4], by `share` [T] in [0, 1]."""
    cosine = np.sum(a * b, axis=-1)
    b = np.where(cosine[:, None] < 0, -b, b)
    angle = np.arccos(np.clip(np.abs(cosine), 0.0, 1.0))
    near = angle < 1e-6
    sine = np.where(near, 1.0, np.sin(angle))
    weight_a = np.where(near, 1 - share, np.sin((1 - share) * angle) / sine)
    weight_b = np.where(near, share, np.sin(share * angle) / sine)
    mixed = weight_a[:, None] * a + weight_b[:, None] * b
    return np.asarray(mixed / np.linalg.norm(mixed, axis=-1, keepdims=True))


def continued(quaternions: Floats, reference: Floats | None = None) -> Floats:
    """The same rotations [N, 4] with signs so that each is the nearer one to its predecessor, the first to `reference` if given."""
    first = quaternions[:1] if reference is None else np.asarray(reference, np.float64)[None]
    dots = np.sum(quaternions * np.concatenate([first, quaternions[:-1]]), axis=-1)
    return np.asarray(quaternions * np.cumprod(np.where(dots < 0, -1.0, 1.0))[:, None])


def motion(positions: Floats, quaternions: Floats) -> Floats:
    """What led from each pose to the next, float64 [T, 6] of [T + 1] poses: translation (m) and axis-angle (rad), both in the axes of
    the poses' frame, as the training controller takes its offsets."""
    a, b = quaternions[:-1], continued(quaternions)[1:]
    # b a^-1: the rotation that is applied from the left, that is about the frame's axes
    av, aw, bv, bw = -a[:, :3], a[:, 3:], b[:, :3], b[:, 3:]
    vector = bw * av + aw * bv + np.cross(bv, av)
    scalar = bw * aw - np.sum(bv * av, axis=-1, keepdims=True)
    vector, scalar = vector * np.where(scalar < 0, -1.0, 1.0), np.abs(scalar)
    sine = np.linalg.norm(vector, axis=-1, keepdims=True)
    turned = vector * np.where(sine < 1e-9, 2.0, 2 * np.arctan2(sine, scalar) / np.maximum(sine, 1e-12))
    return np.concatenate([np.diff(positions, axis=0), turned], axis=-1)


def rotated(quaternions: Floats, vectors: Floats) -> Floats:
    """vectors [T, 3], given in the axes of each of the quaternions [T, 4], in the axes of the frame that these refer to."""
    axis, w = quaternions[:, :3], quaternions[:, 3:]
    twice = 2 * np.cross(axis, vectors)
    return np.asarray(vectors + w * twice + np.cross(axis, twice))


def held_mean(stamps: Stamps, values: Floats, times: Stamps, timeout: float) -> Floats:
    """Mean over each step [times[i], times[i + 1]) of a command that holds until the next one, float64 [T, D].

    A command older than `timeout` seconds is zero, as controllers treat one that has fallen silent. So commands at any rate, and at
    any phase to the steps, keep their integral."""
    if not len(stamps):
        return np.zeros((len(times) - 1, values.shape[1]))
    lasting = np.minimum(np.append(np.diff(stamps), np.iinfo(np.int64).max), round(timeout * SECOND)) / SECOND
    before = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values * lasting[:, None], axis=0)])
    index = np.searchsorted(stamps, times, side="right") - 1
    safe = np.maximum(index, 0)
    into = np.where(index < 0, 0.0, np.minimum((times - stamps[safe]) / SECOND, lasting[safe]))
    integral = before[safe] + values[safe] * into[:, None]
    return np.asarray(np.diff(integral, axis=0) / (np.diff(times) / SECOND)[:, None])


def with_rests(stamps: Stamps, max_gap: float) -> tuple[Stamps, NDArray[np.intp]]:
    """A target that is sent rarely stands still until shortly before the next one. Stamps with a rest inserted `max_gap` seconds before
    each one that came later than that, and the index of the value that each of them has."""
    limit = round(max_gap * SECOND)
    late = np.flatnonzero(np.diff(stamps) > limit)
    index = np.insert(np.arange(len(stamps)), late + 1, late)
    return np.insert(stamps, late + 1, stamps[late + 1] - limit), index


def gripper_from_fingers(opening: Floats, threshold: float) -> NDArray[np.float32]:
    """Commands, 1 = open, 0 = closed, float32 [T], of a measured opening [T + 1] in metres.

    Fingers that close by more than `threshold` from their widest were told to close when they began to, and the other way round: a
    grasped object stops them anywhere, so the opening itself says nothing. Fingers that never move are closed if they are together."""
    commands = np.empty(len(opening), np.float32)
    since, turned, state = 0, 0, -1
    for i in range(1, len(opening)):
        seen = opening[since : i + 1]
        if state != 1 and opening[i] - seen.min() > threshold:
            state, near = 1, seen <= seen.min() + threshold / 5
        elif state != 0 and seen.max() - opening[i] > threshold:
            state, near = 0, seen >= seen.max() - threshold / 5
        else:
            continue
        began = since + int(np.flatnonzero(near)[-1])  # a resting finger trembles: the last time that it was still near
        commands[turned:began] = 1 - state
        since, turned = i, began
    commands[turned:] = state if state >= 0 else opening[0] > threshold
    return commands[:-1]


def _between(name: str, stamps: Stamps, times: Stamps, max_gap: float) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Indices of the neighbours of each time, and how far it lies between them."""
    outside = (times < stamps[0]) | (times > stamps[-1])
    if outside.any():
        frame = int(np.argmax(outside))
        raise GapError(f"frame {frame} ({_seconds(times, frame)}): {name} does not reach so far", frame)
    right = np.minimum(np.searchsorted(stamps, times, side="left"), len(stamps) - 1)
    left = np.where(stamps[right] == times, right, np.maximum(right - 1, 0))
    width = stamps[right] - stamps[left]
    _refuse_gap(name, width > max_gap * SECOND, width, times, max_gap)
    return left, right, (times - stamps[left]) / np.maximum(width, 1)


def _refuse_gap(name: str, wrong: NDArray[np.bool_], gap: Stamps, times: Stamps, max_gap: float) -> None:
    if not wrong.any():
        return
    frame = int(np.argmax(wrong))
    missing = "has not begun" if gap[frame] == np.iinfo(np.int64).max else f"has a gap of at least {gap[frame] / SECOND:.3f} s"
    where = f"frame {frame} ({_seconds(times, frame)})"
    raise GapError(f"{where}: {name} {missing}; the limit is {max_gap:g} s (--max-gap). Record it again, or leave it out", frame)


def _seconds(times: Stamps, frame: int) -> str:
    return f"{(times[frame] - times[0]) / SECOND:.2f} s into the episode, stamp {times[frame] / SECOND:.3f}"
