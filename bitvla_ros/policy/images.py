"""Pixels as cameras send them: the encodings of sensor_msgs/Image that become RGB here."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Of sensor_msgs/image_encodings.hpp: those of 8 bits, with their channels and how they become RGB.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


class ImageError(ValueError):
    """An image that cannot become RGB uint8. what: "encoding" or "size"."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


def rgb(encoding: str, height: int, width: int, step: int, data: Any) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], RGB; of rgb8 a view of `data`, not a copy. Raises ImageError.

    The fields of a sensor_msgs/Image: step is the length of a row in bytes, data a buffer of height * step bytes.
    """
    if encoding not in ENCODINGS:
        raise ImageError("encoding", f"its encoding is {encoding!r}: expected {', '.join(ENCODINGS)} (a colour image, not depth)")
    channels, conversion = ENCODINGS[encoding]
    if height == 0 or width == 0 or step < width * channels or len(data) != height * step:
        raise ImageError(
            "size",
            f"{width}x{height} {encoding} with step {step} and {len(data)} bytes do not go together: "
            f"expected step >= width * {channels} and height * step bytes, both sides > 0",
        )
    pixels: NDArray[np.uint8] = np.ndarray((height, width, channels), np.uint8, data, strides=(step, channels, 1))
    return pixels if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)
