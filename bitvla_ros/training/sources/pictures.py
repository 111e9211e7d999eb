"""Pictures of sensor_msgs messages, as arrays. Works on whatever has the messages' fields."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..lerobot_format import decode_image
from . import ConversionError

# Of sensor_msgs/image_encodings.hpp: channels, and how they become RGB.
_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


def picture_of(message: Any, shorter_side: int | None) -> NDArray[np.uint8]:
    """Image or CompressedImage -> uint8 [H, W, 3], RGB, shrunk so that its shorter side has that many pixels, if given.
    Raises ConversionError."""
    return shrunk(_compressed(message) if hasattr(message, "format") else _raw(message), shorter_side)


def shrunk(picture: NDArray[np.uint8], shorter_side: int | None) -> NDArray[np.uint8]:
    """Never enlarged."""
    height, width = picture.shape[:2]
    if shorter_side is None or min(height, width) <= shorter_side:
        return np.ascontiguousarray(picture)
    scale = shorter_side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _raw(message: Any) -> NDArray[np.uint8]:
    if message.encoding not in _ENCODINGS:
        raise ConversionError(f"its encoding is {message.encoding!r}, expected {', '.join(_ENCODINGS)} (a colour image, not depth)")
    channels, conversion = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0 or step < width * channels or len(message.data) != height * step:
        raise ConversionError(f"{width}x{height} {message.encoding} with step {step} and {len(message.data)} bytes do not go together")
    data = np.ascontiguousarray(message.data, np.uint8)
    pixels: NDArray[np.uint8] = np.ndarray((height, width, channels), np.uint8, data, strides=(step, channels, 1))
    return np.array(pixels) if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)


def _compressed(message: Any) -> NDArray[np.uint8]:
    try:
        return decode_image(bytes(message.data))
    except ValueError as error:
        raise ConversionError(f"format {message.format!r}: {error}; expected a JPEG or PNG colour image") from error
