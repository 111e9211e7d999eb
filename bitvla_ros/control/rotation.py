"""Rotations as unit quaternions, float64 [4] xyzw, and as rotation vectors, float64 [3]: axis times angle, rad.

In plain floats: at the rate of a sink, numpy's overhead for four numbers is most of a step.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def turned(quaternion: Array, vector: Array) -> Array:
    """The orientation after a turn by the rotation vector, about the world's axes. On the same branch as before; of length 1."""
    x, y, z = vector.tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    half = angle / 2.0
    scale = math.sin(half) / angle if angle > 1e-9 else 0.5
    ax, ay, az, aw = x * scale, y * scale, z * scale, math.cos(half)
    bx, by, bz, bw = quaternion.tolist()
    px = aw * bx + ax * bw + ay * bz - az * by
    py = aw * by - ax * bz + ay * bw + az * bx
    pz = aw * bz + ax * by - ay * bx + az * bw
    pw = aw * bw - ax * bx - ay * by - az * bz
    length = math.sqrt(px * px + py * py + pz * pz + pw * pw)
    return np.array([px / length, py / length, pz / length, pw / length])


def turn_between(start: Array, end: Array) -> Array:
    """The shortest rotation vector, about the world's axes, that turns `start` into `end`. Quaternions of any length above 0."""
    ax, ay, az, aw = end.tolist()
    bx, by, bz, bw = start.tolist()
    x = ax * bw - aw * bx - ay * bz + az * by
    y = ay * bw - aw * by - az * bx + ax * bz
    z = az * bw - aw * bz - ax * by + ay * bx
    w = aw * bw + ax * bx + ay * by + az * bz
    sine = math.sqrt(x * x + y * y + z * z)
    if sine < 1e-300:
        return np.zeros(3)
    scale = 2.0 * math.atan2(sine, abs(w)) / sine * (1.0 if w >= 0.0 else -1.0)
    return np.array([x * scale, y * scale, z * scale])


def matrix(quaternion: Array) -> Array:
    """float64 [3, 3], whose columns are the body's axes in the world. The quaternion's length is 1."""
    x, y, z, w = quaternion.tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
