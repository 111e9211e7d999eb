"""Pictures of sensor_msgs messages, as arrays. Works on whatever has the messages' fields."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...policy.images import ImageError, decoded, rgb
from . import ConversionError


def picture_of(message: Any, shorter_side: int | None) -> NDArray[np.uint8]:
    """Image or CompressedImage -> uint8 [H, W, 3], RGB, shrunk so that its shorter side has that many pixels, if given.
    Raises ConversionError."""
    try:
        if hasattr(message, "format"):
            return shrunk(decoded(message.data, message.format), shorter_side)
        data = np.ascontiguousarray(message.data, np.uint8)
        return shrunk(np.array(rgb(message.encoding, message.height, message.width, message.step, data)), shorter_side)
    except ImageError as error:
        raise ConversionError(str(error)) from error


def shrunk(picture: NDArray[np.uint8], shorter_side: int | None) -> NDArray[np.uint8]:
    """Never enlarged."""
    height, width = picture.shape[:2]
    if shorter_side is None or min(height, width) <= shorter_side:
        return np.ascontiguousarray(picture)
    scale = shorter_side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
