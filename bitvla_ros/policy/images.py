"""Pictures as cameras send them and as datasets keep them become RGB: sensor_msgs/Image, sensor_msgs/CompressedImage, PNG and JPEG."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import jpeg

# Of sensor_msgs/image_encodings.hpp: those of 8 bits, with their channels and how they become RGB.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


# What image_transport converts to 8 bits of colour before it compresses.
_CONVERTED = ("rgb16", "bgr16", "rgba16", "bgra16", "yuv422", "yuv422_yuy2", "uyvy", "yuyv", "nv21", "nv24")
_CODECS = {"jpeg": "jpeg", "jpg": "jpeg", "png": "png"}
_BEGINNINGS = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # colours by the colour type of IHDR; 3 is a palette
MAX_PIXELS = 1 << 25  # of one picture: 100 MB of RGB


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


def decoded(encoded: Any, form: str = "") -> NDArray[np.uint8]:
    """uint8 [H, W, 3], RGB, of a whole PNG or JPEG of 8 bits; its rows as they are stored. Raises ImageError.

    encoded: a buffer. form: what sensor_msgs/CompressedImage says in `format`, as "png" or "rgb8; jpeg compressed bgr8"; empty: nothing.
    The size is read from the header and checked before anything is decoded.
    """
    data = bytes(encoded)
    kind = next((name for name, beginning in _BEGINNINGS.items() if data.startswith(beginning)), "")
    codec, channels = _stated(form)
    if not kind or codec not in ("", kind):
        found = f"a {kind}" if kind else f"{len(data)} bytes that begin neither"
        raise ImageError("encoding", f"its format is {form!r}, and its data are {found}: expected a JPEG or PNG colour image")
    try:
        header = jpeg.read_header(data) if kind == "jpeg" else None
        height, width, stored = (header.height, header.width, header.channels) if header else _png_header(data)
        if channels not in (0, stored):
            raise ImageError("encoding", f"its format is {form!r}, and its {kind} has {stored} channels: expected {channels}")
        if height * width > MAX_PIXELS:
            raise ImageError("size", f"it is {width}x{height}: expected at most {MAX_PIXELS} pixels. Let its driver send smaller pictures")
        picture = jpeg.decode(data, header) if header else _decoded_png(data)
    except jpeg.JpegError as error:
        raise ImageError("encoding", f"{error}: expected a JPEG or PNG colour image") from error
    if picture.shape[:2] != (height, width):
        raise ImageError("encoding", f"its {kind} is damaged: it decodes to {picture.shape[:2]}, expected {(height, width)}")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def _stated(form: str) -> tuple[str, int]:
    """Codec and number of channels of a `format`; "" and 0 where it does not say. Raises ImageError for what is no colour or grey picture.

    image_transport writes "ENCODING; CODEC compressed STORED", with bgr8 or mono8 for STORED (compressed_publisher.cpp)."""
    encoding, separator, rest = (part.strip() for part in form.partition(";"))
    words = (rest if separator else encoding).split()
    codec = _CODECS.get(words[0].lower(), words[0]) if words else ""
    if codec not in ("", *_BEGINNINGS):
        raise ImageError("encoding", f"its format is {form!r}: expected a JPEG or PNG colour image, no video and no depth")
    if not separator:
        return codec, 0
    if encoding not in (*ENCODINGS, *_CONVERTED):
        known = ", ".join(ENCODINGS)
        raise ImageError("encoding", f"its format is {form!r}: expected a JPEG or PNG of {known} (no depth, no Bayer mosaic)")
    if encoding == "mono8":
        return codec, 1
    if words[-1] != "bgr8":
        whole = f"'{encoding}; {codec} compressed bgr8'"
        raise ImageError("encoding", f"its format is {form!r}, which does not say which channel is red: expected {whole}, or '{codec}'")
    return codec, 3


def _png_header(data: bytes) -> tuple[int, int, int]:
    """Height, width, and number of channels without alpha."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if len(data) < 29 or data[12:16] != b"IHDR" or data[25] not in _PNG_CHANNELS or not width or not height:
        raise ImageError("encoding", f"its PNG header is damaged or cut off after {len(data)} bytes: expected a JPEG or PNG colour image")
    if data[24] != 8 and data[25] != 3:
        raise ImageError("encoding", f"its PNG has {data[24]} bits a channel: expected 8 bits of colour or grey (not depth)")
    return height, width, _PNG_CHANNELS[data[25]]


def _decoded_png(data: bytes) -> NDArray[np.uint8]:
    """BGR. From 4.11 on OpenCV reports damage."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise ImageError("encoding", f"its PNG of {len(data)} bytes is cut off or damaged: expected a JPEG or PNG colour image")
    return np.asarray(picture, np.uint8)
