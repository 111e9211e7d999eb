"""A PNG or JPEG is the same picture to node, conversion and training, or none."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from bitvla_ros.training.lerobot_format import decode_image
from bitvla_ros.training.sources import ConversionError
from bitvla_ros.training.sources.pictures import picture_of

HEIGHT, WIDTH = 120, 160


def picture() -> np.ndarray:
    """As a camera's: smooth, with noise. uint8 [HEIGHT, WIDTH, 3], RGB."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, WIDTH)[None, :, None] + np.linspace(0, 40, HEIGHT)[:, None, None]
    return np.clip(slope * [1, 0.5, 0.2] + rng.normal(0, 8, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


def jpeg(*parameters: int) -> bytes:
    return cv2.imencode(".jpg", picture()[..., ::-1], parameters)[1].tobytes()


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def pillow(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(encoded: bytes, form: str) -> np.ndarray:
    return picture_of(SimpleNamespace(format=form, data=np.frombuffer(encoded, np.uint8)), None)


def png_of_zeros(side: int) -> bytes:
    """A whole PNG of side x side black pixels, without ever holding them."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    deflate, row = zlib.compressobj(9), bytes(1 + 3 * side)
    rows = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


WHOLE = {
    "jpeg": ("jpeg", jpeg()),
    "jpg": ("jpg", jpeg()),
    "nothing said": ("", jpeg()),
    "image_transport": ("rgb8; jpeg compressed bgr8", jpeg()),
    "Humble's space": ("bgr8; jpeg compressed bgr8 ", jpeg()),
    "converted from YUV": ("yuv422_yuy2; jpeg compressed bgr8", jpeg()),
    "full colour": ("jpeg", jpeg(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111)),
    "4:2:2": ("jpeg", jpeg(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x211111)),
    "restart markers": ("jpeg", jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 3)),
    "own Huffman tables": ("jpeg", jpeg(cv2.IMWRITE_JPEG_OPTIMIZE, 1)),
    "grey": ("mono8; jpeg compressed mono8", pillow(Image.fromarray(picture()).convert("L"), "JPEG")),
    "bytes behind the end": ("jpeg", jpeg() + bytes(100)),
    "next picture behind the end": ("jpeg", jpeg() + jpeg()[300:]),
    "png": ("png", pillow(Image.fromarray(picture()))),
    "png of image_transport": ("rgb8; png compressed bgr8", pillow(Image.fromarray(picture()))),
    "grey png": ("mono8; png compressed ", pillow(Image.fromarray(picture()).convert("L"))),
    "palette": ("png", pillow(Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE, colors=9))),
    "alpha": ("png", pillow(Image.fromarray(picture()).convert("RGBA"))),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pictures_decode_as_pillow_decodes_them(name):
    form, encoded = WHOLE[name]
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(read(encoded, form), expected)
    np.testing.assert_array_equal(decode_image(encoded), expected)


def test_jpegs_of_every_size_are_whole():
    rng = np.random.default_rng(0)
    for i in range(150):
        array = rng.integers(0, 256, (*rng.integers(1, 70, 2), 3), np.uint8)
        encoded = cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_RST_INTERVAL, i % 4, cv2.IMWRITE_JPEG_QUALITY, 5 + i % 95])[1].tobytes()
        np.testing.assert_array_equal(read(encoded, "jpeg"), np.asarray(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_orientation_tag_turns_no_picture(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(picture())
    np.testing.assert_array_equal(read(pillow(image, form, exif=exif), form.lower()), read(pillow(image, form), form.lower()))


def torn() -> dict[str, bytes]:
    whole, restarts = jpeg(), jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
    n, half = len(whole), len(whole) // 2
    end = b"\xff\xd9"
    noise = np.random.default_rng(1).bytes(600)
    png_ = pillow(Image.fromarray(picture()))
    cuts = {f"{share} % of it": whole[: n * share // 100] for share in (1, 3, 10, 50, 90, 99)}
    cuts |= {f"{share} % of it, and an end": whole[: n * share // 100] + end for share in (20, 50, 90, 99)}
    holes = {
        "no end": whole[:-2],
        "a hole": whole[:half] + whole[half + 600 :],
        "a hole of zeros": whole[:half] + bytes(600) + whole[half + 600 :],
        "a hole of noise": whole[:half] + noise + whole[half + 600 :],
        "a hole of ones": whole[:half] + b"\xff" * 600 + whole[half + 600 :],
        "a packet twice": whole[:half] + whole[half - 600 :],
        "restarts missing": restarts[:half] + restarts[half + 600 :],
        "restarts of zeros": restarts[:half] + bytes(600) + restarts[half + 600 :],
        "a header of another size": whole.replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", HEIGHT * 2, WIDTH), 1),
    }
    pngs = {f"png, {share} %": png_[: len(png_) * share // 100] for share in (0, 1, 50, 99)}
    pngs |= {"png, a byte changed": png_[: len(png_) // 2] + bytes([png_[len(png_) // 2] ^ 1]) + png_[len(png_) // 2 + 1 :]}
    return cuts | holes | pngs


TORN = torn()


@pytest.mark.parametrize("name", TORN)
def test_what_is_torn_is_no_picture(name):
    with pytest.raises(ConversionError, match="expected"):
        read(TORN[name], "png" if name.startswith("png") else "jpeg")
    with pytest.raises(ValueError, match="expected"):
        decode_image(TORN[name])


def test_holes_anywhere_are_found():
    """But for those after which the code falls back into step with as many blocks as before."""
    encoded, rng = cv2.imencode(".jpg", np.tile(picture()[..., ::-1], (3, 3, 1)))[1].tobytes(), np.random.default_rng(2)
    whole, missed = read(encoded, "jpeg").astype(int), 0
    for i in range(90):
        at, length = int(rng.integers(700, len(encoded) - 3100)), int(rng.integers(400, 3000))
        filled = (b"", bytes(length), rng.bytes(length))[i % 3]
        try:
            got = read(encoded[:at] + filled + encoded[at + length :], "jpeg").astype(int)
        except ConversionError:
            continue
        missed += bool((np.abs(got - whole).max(-1) > 8).mean() > 0.02)
    assert missed <= 1


DEPTH = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 5000).astype(np.uint16)
MOSAIC = picture()[..., 0]
REFUSED = {
    "depth": ("16UC1; png compressed ", png(DEPTH)),
    "depth without a word": ("png", png(DEPTH)),
    "depth, nothing said": ("", png(DEPTH)),
    "depth, called mono16": ("mono16; png compressed ", png(DEPTH)),
    "depth made grey": ("16UC1; jpeg compressed mono8", cv2.imencode(".jpg", (DEPTH // 256).astype(np.uint8))[1].tobytes()),
    "depth of compressed_depth_image_transport": ("16UC1; compressedDepth png", bytes(12) + png(DEPTH)),
    "depth, its header cut off": ("16UC1; compressedDepth", png(DEPTH)),
    "16 bits of colour": ("rgb16; png compressed bgr16", png(np.dstack([DEPTH] * 3))),
    "a mosaic": ("bayer_rggb8; png compressed ", png(MOSAIC)),
    "a mosaic as JPEG": ("bayer_grbg8; jpeg compressed mono8", cv2.imencode(".jpg", MOSAIC)[1].tobytes()),
    "channels without names": ("8UC3; jpeg compressed mono8", jpeg()),
    "red or blue": ("rgb8; jpeg compressed rgb8", jpeg()),
    "called grey": ("mono8; jpeg compressed mono8", jpeg()),
    "called colour": ("rgb8; png compressed bgr8", png(MOSAIC)),
    "called png": ("png", jpeg()),
    "called jpeg": ("rgb8; jpeg compressed bgr8", png(picture())),
    "h264": ("h264", b"\x00\x00\x00\x01\x67" + bytes(50)),
    "tiff": ("rgb8; tiff compressed bgr8", cv2.imencode(".tiff", picture())[1].tobytes()),
    "bmp without a word": ("", cv2.imencode(".bmp", picture())[1].tobytes()),
    "webp called jpeg": ("jpeg", cv2.imencode(".webp", picture())[1].tobytes()),
    "progressive": ("jpeg", jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
    "four channels": ("jpeg", pillow(Image.fromarray(picture()).convert("CMYK"), "JPEG")),
    "nothing": ("jpeg", b""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_colour_picture_of_8_bits_is_refused(name):
    form, encoded = REFUSED[name]
    with pytest.raises(ConversionError, match="expected"):
        read(encoded, form)


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_a_huge_picture_costs_nothing(form):
    if form == "png":
        encoded = png_of_zeros(12000)
        assert len(encoded) < 500_000
    else:
        encoded = jpeg().replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 65500, 65500), 1)
    tracemalloc.start()
    try:
        with pytest.raises(ConversionError, match="at most 33554432 pixels"):
            read(encoded, form)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(encoded) + 100_000
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="pixels"):
        decode_image(encoded)
