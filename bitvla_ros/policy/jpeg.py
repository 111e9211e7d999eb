"""A JPEG's header, and its pixels where all of them are there.

libjpeg fills what a torn file lacks with grey or with a shifted rest of the picture, and calls that a warning. OpenCV drops the warning.
It does report the end of its data, so the picture's data are given an end at which only a whole picture decodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

# Markers of ITU-T T.81, table B.1.
_BASELINE, _OTHER_FRAMES = (0xC0, 0xC1), (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_RESTART_INTERVAL, _SCAN, _END = 0xDD, 0xDA, b"\xff\xd9"
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))
# libjpeg reads up to 8 bytes ahead. Ones begin no Huffman code, so no block is made of them.
_READ_AHEAD = b"\xff\x00" * 8
_OLDEST_OPENCV = (4, 11)  # the first that reports the end of the data


class JpegError(ValueError):
    """Bytes that are no whole JPEG of the kind that cameras send."""


@dataclass(frozen=True)
class Header:
    """Of a baseline JPEG of 8 bits. channels: 1 or 3. restarts: how many restart markers the data hold. data: where these begin."""

    height: int
    width: int
    channels: int
    restarts: int
    data: int


def read_header(encoded: bytes) -> Header:
    """Without decoding. Raises JpegError."""
    at, interval, frame = 2, 0, b""
    try:
        while True:
            if encoded[at] != 0xFF:
                raise JpegError(f"its header is damaged at byte {at}")
            marker = encoded[at + 1]
            if marker == 0xFF or marker in _WITHOUT_LENGTH:
                at += 1 if marker == 0xFF else 2
                continue
            length = int.from_bytes(encoded[at + 2 : at + 4], "big")
            body = encoded[at + 4 : at + 2 + length]
            if length < 2 or len(body) != length - 2:
                raise JpegError(f"its header is cut off after {len(encoded)} bytes")
            at += 2 + length
            if marker in _OTHER_FRAMES:
                raise JpegError("it is a progressive, lossless or arithmetic JPEG, which may be torn without a sign: expected baseline")
            if marker in _BASELINE:
                frame = body
            elif marker == _RESTART_INTERVAL:
                interval = int.from_bytes(body[:2], "big")
            elif marker == _SCAN:
                return _header(frame, interval, at)
    except IndexError:
        raise JpegError(f"its header is cut off after {len(encoded)} bytes") from None


def _header(frame: bytes, interval: int, data: int) -> Header:
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        raise JpegError("its header is damaged: it does not say the picture's size")
    bits, height, width, channels = frame[0], int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"), frame[5]
    sampling = [divmod(frame[i], 16) for i in range(7, len(frame), 3)]  # blocks of a channel in one coded unit, across and down
    if bits != 8 or channels not in (1, 3) or height == 0 or width == 0 or not all(min(pair) for pair in sampling):
        raise JpegError(f"it is {width}x{height} with {channels} channels of {bits} bits; expected 1 or 3 of 8 bits, both sides > 0")
    across, down = (1, 1) if channels == 1 else (max(pair[i] for pair in sampling) for i in (0, 1))
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    return Header(height, width, channels, (units - 1) // interval if interval else 0, data)


def decode(encoded: bytes, header: Header) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], BGR; as the rows are stored, whatever EXIF says of the camera's orientation. Raises JpegError for a picture that is
    not whole. Where a hole of a few bytes leaves as many blocks as there were, no decoder can tell."""
    if tuple(map(int, cv2.__version__.split(".")[:2])) < _OLDEST_OPENCV:
        raise JpegError(f"OpenCV {cv2.__version__} does not tell a torn JPEG from a whole one: install opencv-python-headless >= 4.11")
    end = encoded.find(_END, header.data)
    if end < 0:
        raise JpegError(f"it is cut off after {len(encoded)} bytes")
    restarts = [marker[1] & 7 for marker in re.findall(rb"\xff[\xd0-\xd7]", encoded[header.data : end])]
    whole = _decoded(encoded[:end] + _READ_AHEAD, cv2.IMREAD_COLOR)
    without_last_byte = _decoded(encoded[: end - 1], cv2.IMREAD_REDUCED_COLOR_8)  # a whole picture needs it
    if whole is None or without_last_byte is not None or restarts != [i % 8 for i in range(header.restarts)]:
        raise JpegError(f"a part of its {len(encoded)} bytes is missing or damaged")
    return whole


def _decoded(encoded: bytes, flag: int) -> NDArray[np.uint8] | None:
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if picture is None else np.asarray(picture, np.uint8)
