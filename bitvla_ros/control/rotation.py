"""Rotations as unit quaternions [4] xyzw and as rotation vectors [3], rad: an axis times an angle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def multiply(first: Array, second: Array) -> Array:
    """The rotation `second` followed by the rotation `first`, both about axes of the world."""
    x, y, z, w = first
    return np.array([[w, -z, y, x], [z, w, -x, y], [-y, x, w, z], [-x, -y, -z, w]]) @ second


def inverse(quaternion: Array) -> Array:
    return quaternion * [-1.0, -1.0, -1.0, 1.0]


def from_vector(vector: Array) -> Array:
    """The quaternion of a rotation vector."""
    angle = float(np.linalg.norm(vector))
    return np.append(np.sinc(angle / (2.0 * np.pi)) / 2.0 * vector, np.cos(angle / 2.0))


def to_vector(quaternion: Array) -> Array:
    """The shortest rotation vector of a quaternion: q and -q are the same rotation, of at most pi."""
    quaternion = quaternion if quaternion[3] >= 0.0 else -quaternion
    sine = float(np.linalg.norm(quaternion[:3]))
    if sine < 1e-9:
        return 2.0 * quaternion[:3]
    return quaternion[:3] * (2.0 * np.arctan2(sine, quaternion[3]) / sine)


def between(start: Array, end: Array) -> Array:
    """The shortest rotation vector, world axes, that turns `start` into `end`."""
    return to_vector(multiply(end, inverse(start)))


def turned(quaternion: Array, vector: Array) -> Array:
    """quaternion, turned by a rotation vector about axes of the world; of unit length whatever the rounding."""
    product = multiply(from_vector(vector), quaternion)
    return product / np.linalg.norm(product)


def matrix(quaternion: Array) -> Array:
    """[3, 3], whose columns are the body's axes in the world."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
