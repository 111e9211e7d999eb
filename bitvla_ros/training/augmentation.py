"""What training does to camera images, so that the policy does not depend on exact framing and light (OpenVLA-OFT's recipe).

A random crop of the area that inference crops from the centre, then brightness, contrast, saturation and hue, in this order. The
ranges are the reference's (prismatic/vla/datasets/datasets.py).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..policy.preprocessing import CROP_AREA, UInt8Image

BRIGHTNESS = 0.2  # added, in shares of full scale
CONTRAST = (0.8, 1.2)  # about each channel's mean
SATURATION = (0.8, 1.2)
HUE = 0.05  # added, in turns


def augment(image: UInt8Image, random: np.random.Generator, crop_area: float | None = CROP_AREA) -> UInt8Image:
    """uint8 [H, W, 3], RGB -> the same. Draws six numbers of `random`, whatever they are used for.

    crop_area: share of the area that is kept; None where the policy does not crop either.
    """
    row, column, brightness, contrast, saturation, hue = random.random(6).tolist()
    if crop_area is not None:
        image = crop(image, crop_area, row, column)
    return jitter(
        image,
        brightness=BRIGHTNESS * (2 * brightness - 1),
        contrast=_between(CONTRAST, contrast),
        saturation=_between(SATURATION, saturation),
        hue=HUE * (2 * hue - 1),
    )


def crop(image: UInt8Image, area: float, row: float, column: float) -> UInt8Image:
    """Keep the share `area` and stretch it back to the same size, bilinear; in the middle (0.5, 0.5) as policy.centre_crop does.

    row, column: where the crop lies, from 0 (top, left) to 1 (bottom, right). Positions are rounded to 1/32 pixel, hence fast.
    """
    height, width = image.shape[:2]
    side = area**0.5
    places = np.array([[side, 0, (1 - side) * column * (width - 1)], [0, side, (1 - side) * row * (height - 1)]])
    cropped: UInt8Image = cv2.warpAffine(  # type: ignore[assignment]
        image, places, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return cropped


def jitter(image: UInt8Image, *, brightness: float, contrast: float, saturation: float, hue: float) -> UInt8Image:
    """uint8 [H, W, 3], RGB -> the same. 0, 1, 1, 0 change nothing."""
    levels = np.clip(np.arange(256) / 255 + brightness, 0, 1).astype(np.float32)
    value = cv2.LUT(image, levels)
    mean = cv2.mean(value)
    value = cv2.addWeighted(value, contrast, value, 0, 0)
    value = cv2.add(value, tuple((1 - contrast) * channel for channel in mean))  # type: ignore[call-overload]
    hsv: NDArray[np.float32] = cv2.cvtColor(np.clip(value, 0, 1), cv2.COLOR_RGB2HSV)  # type: ignore[assignment]
    hsv[..., 0] += np.float32(360 * (hue % 1))  # HSV2RGB takes degrees up to 720
    hsv[..., 1] *= np.float32(saturation)
    np.minimum(hsv[..., 1], 1, out=hsv[..., 1])
    shifted = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return np.clip(shifted * np.float32(255.5), 0, 255).astype(np.uint8)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
