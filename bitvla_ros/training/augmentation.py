"""What training does to camera images, so that the policy does not depend on exact framing and light (OpenVLA-OFT's recipe).

A random crop of the area that inference crops from the centre, then brightness, contrast, saturation and hue, in this order. The
ranges are the reference's (prismatic/vla/datasets/datasets.py).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..policy.preprocessing import CROP_AREA, UInt8Image, crop

BRIGHTNESS = 0.2  # added, in shares of full scale
CONTRAST = (0.8, 1.2)  # about each channel's mean
SATURATION = (0.8, 1.2)
HUE = 0.05  # added, in turns


def augment(image: UInt8Image, random: np.random.Generator, crop_area: float | None = CROP_AREA) -> UInt8Image:
    """uint8 [H, W, 3], RGB -> the same. Draws six numbers of `random`, whatever they are used for.

    crop_area: share of the area that is kept; None where the policy does not crop either.
    """
    row, column, *colour = random.random(6)
    if crop_area is not None:
        image = crop(image, crop_area, float(row), float(column))
    brightness, contrast, saturation, hue = colour
    return jitter(
        image,
        brightness=BRIGHTNESS * (2 * brightness - 1),
        contrast=_between(CONTRAST, contrast),
        saturation=_between(SATURATION, saturation),
        hue=HUE * (2 * hue - 1),
    )


def jitter(image: UInt8Image, *, brightness: float, contrast: float, saturation: float, hue: float) -> UInt8Image:
    """uint8 [H, W, 3], RGB -> the same. 0, 1, 1, 0 change nothing."""
    value = image.astype(np.float32)
    value *= np.float32(1 / 255)
    value += np.float32(brightness)
    np.clip(value, 0, 1, out=value)
    mean = value.mean((0, 1))
    value -= mean
    value *= np.float32(contrast)
    value += mean
    np.clip(value, 0, 1, out=value)
    hsv: NDArray[np.float32] = cv2.cvtColor(value, cv2.COLOR_RGB2HSV)  # type: ignore[assignment]  # hue in degrees
    degrees, share = hsv[..., 0], hsv[..., 1]
    degrees += np.float32(360 * hue)
    degrees[degrees < 0] += 360
    degrees[degrees >= 360] -= 360
    share *= np.float32(saturation)
    np.minimum(share, 1, out=share)
    shifted: NDArray[np.float32] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)  # type: ignore[assignment]
    np.clip(shifted, 0, 1, out=shifted)
    shifted *= np.float32(255.5)
    return shifted.astype(np.uint8)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
