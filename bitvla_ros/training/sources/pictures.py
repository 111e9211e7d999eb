"""Pictures of sensor_msgs messages, as arrays. Works on whatever has the messages' fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    height, width = shrunk_size(picture.shape[0], picture.shape[1], shorter_side)
    if (height, width) == picture.shape[:2]:
        return np.ascontiguousarray(picture)
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def shrunk_size(height: int, width: int, shorter_side: int | None) -> tuple[int, int]:
    """Of a picture of that size after `shrunk`."""
    if shorter_side is None or min(height, width) <= shorter_side:
        return height, width
    scale = shorter_side / min(height, width)
    return round(height * scale), round(width * scale)


class LazyPictures:
    """An episode's pictures of one camera, decoded while they are gone through, anew each time, so that few are in memory.

    shape: (T, H, W, 3). Iteration gives T pictures, uint8 [H, W, 3], and raises ConversionError, naming the frame."""

    dtype = np.dtype(np.uint8)

    def __init__(self, name: str, length: int, size: tuple[int, int], decode: Callable[[], Iterator[NDArray[np.uint8]]]) -> None:
        """name: of the topic or feature. size: height and width. decode: gives the pictures, from the first one on."""
        self.shape = (length, *size, 3)
        self._name, self._decode = name, decode

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        count = 0
        for picture in self._decode():
            if picture.shape != self.shape[1:]:
                sizes = f"{list(self.shape[1:3])} to {list(picture.shape[:2])}"
                raise ConversionError(f"frame {count}: {self._name} changes its size from {sizes}")
            yield picture
            count += 1
        if count != len(self):
            raise ConversionError(f"frame {count}: {self._name} has {count} pictures, expected {len(self)}")
