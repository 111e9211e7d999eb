"""A camera frame becomes the network's input, step by step as the reference implementation does it, without TensorFlow."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

JPEG_QUALITY = 95  # TensorFlow's default, which the reference uses
CROP_AREA = 0.9  # training crops this share of the area at random, inference from the centre
FITS = ("squash", "crop")

UInt8Image = NDArray[np.uint8]


class ImageRecipeError(ValueError):
    """A preprocessor_config.json or an image that this recipe cannot serve."""


@dataclass(frozen=True)
class ImageRecipe:
    """How an upright RGB frame is prepared; call it with one.

    image_size: side in pixels of the lanczos3 resize and the centre crop (None: no such resize). output_size: (height, width) the network
    takes; a bicubic resize leads there where it differs (None: image_size; one of the two is needed). rotate_180: only for frames that
    nobody has turned upright yet, such as LIBERO's raw renderings. jpeg: the round trip that LIBERO's datasets went through; real cameras
    do not need it. fit: what the checkpoint's dataset did with frames that are not square, "squash" them or "crop" the central square.
    crop_area: share of the area that the centre crop keeps (None: no crop).
    mean, std, rescale: one number a channel, as in preprocessor_config.json.
    """

    image_size: int | None = 224
    output_size: tuple[int, int] | None = None
    rotate_180: bool = False
    jpeg: bool = False
    fit: str = "squash"
    crop_area: float | None = CROP_AREA
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255

    def __post_init__(self) -> None:
        if self.image_size is None and self.output_size is None:
            raise ImageRecipeError("neither image_size nor output_size is given; give the side of the model's images in pixels")
        if self.image_size is not None and self.image_size < 2:
            raise ImageRecipeError(f"image_size is {self.image_size}; give the side of the model's images in pixels, at least 2")
        if self.fit not in FITS:
            raise ImageRecipeError(f"fit is {self.fit!r}; choose one of {', '.join(FITS)}, as the checkpoint's dataset did")
        if self.crop_area is not None and not 0 < self.crop_area <= 1:
            raise ImageRecipeError(f"crop_area is {self.crop_area}; give a share of the area in (0, 1], or None for no crop")
        if len(self.mean) != 3 or len(self.std) != 3 or not np.isfinite([*self.mean, *self.std, self.rescale]).all() or 0 in self.std:
            raise ImageRecipeError(f"mean {self.mean}, std {self.std}: three finite numbers each are needed, std without zeros")

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, *, image_size: int | None = None, rotate_180: bool = False, jpeg: bool = False, fit: str = "squash"
    ) -> ImageRecipe:
        """Read preprocessor_config.json in the directory `path`.

        image_size: by default the size found there, so that no bicubic resize is left to do. The reference always works at 224:
        say so for a checkpoint of another size that it fine-tuned.
        Raises ImageRecipeError where the file is missing or does not describe a fixed resize, rescale and normalisation.
        """
        file, (height, width), mean, std, rescale = _read(path)
        if image_size is None:
            if height != width:
                raise ImageRecipeError(f"{file} asks for {height} x {width}; give image_size, the side that the square crop works at")
            image_size = height
        return cls(image_size, (height, width), rotate_180, jpeg, fit, CROP_AREA, mean, std, rescale)

    @classmethod
    def from_base(cls, path: Path | str, *, rotate_180: bool = False, jpeg: bool = False, fit: str = "squash") -> ImageRecipe:
        """For a robot-pretrained base, whose images are only resized: bicubic, to the size in preprocessor_config.json in `path`, whatever
        their shape, and not cropped. Raises ImageRecipeError as `from_checkpoint` does."""
        _, size, mean, std, rescale = _read(path)
        return cls(None, size, rotate_180, jpeg, fit, None, mean, std, rescale)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        if self.output_size is not None:
            return self.output_size
        assert self.image_size is not None
        return self.image_size, self.image_size

    def pixels(self, image: UInt8Image) -> UInt8Image:
        """uint8 [H, W, 3], RGB -> uint8 [h, w, 3]: everything up to the normalisation."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageRecipeError(f"an image is {image.dtype} {image.shape}; expected uint8 [H, W, 3], RGB")
        if self.rotate_180:
            image = image[::-1, ::-1]
        if self.fit == "crop":
            image = centre_square(image)
        if self.jpeg:
            image = jpeg_round_trip(image)
        if self.image_size is not None:
            image = resize_lanczos3(image, self.image_size)
        if self.crop_area is not None:
            image = centre_crop(image, self.crop_area)
        return resize_bicubic(image, self.shape)

    def __call__(self, image: UInt8Image) -> NDArray[np.float32]:
        """uint8 [H, W, 3], RGB, upright (see rotate_180) -> float32 [3, h, w]."""
        return normalise(self.pixels(image), self.mean, self.std, self.rescale)


def _read(path: Path | str) -> tuple[Path, tuple[int, int], tuple[float, ...], tuple[float, ...], float]:
    """preprocessor_config.json in the directory `path`: the file, (height, width), mean, std and rescale."""
    file = Path(path) / "preprocessor_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ImageRecipeError(f"{file} cannot be read ({error}); a BitVLA checkpoint holds one, fetch it again") from error
    try:
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
        mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))
        rescale = float(config["rescale_factor"])
    except (KeyError, TypeError, ValueError) as error:
        raise ImageRecipeError(
            f"{file} lacks or garbles {error}; expected size {{height, width}}, image_mean, image_std, rescale_factor"
        ) from error
    off = [key for key in ("do_resize", "do_rescale", "do_normalize") if config.get(key) is False]
    if off:
        raise ImageRecipeError(f"{file} switches {', '.join(off)} off; BitVLA is defined with all three on")
    if config.get("resample", Image.Resampling.BICUBIC) != Image.Resampling.BICUBIC:
        raise ImageRecipeError(f"{file} asks for resample {config['resample']}; BitVLA is defined with {int(Image.Resampling.BICUBIC)}")
    return file, (height, width), mean, std, rescale


def centre_square(image: UInt8Image) -> UInt8Image:
    """The largest central square, uint8 [n, n, 3]."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def jpeg_round_trip(image: UInt8Image) -> UInt8Image:
    """Encode and decode at quality 95, 4:2:0. The bytes equal TensorFlow's; its decoder uses the fast integer DCT and differs from
    this one by about one level on average, 15 at most."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def resize_lanczos3(image: UInt8Image, size: int) -> UInt8Image:
    """tf.image.resize(method="lanczos3", antialias=True), rounded and clipped: uint8 [H, W, 3] -> uint8 [size, size, 3].

    A channel at a time in floating point, as TensorFlow computes; on RGB, Pillow rounds to 8 bits between the two passes.
    A frame that has the size already is left alone, as the filter would leave it.
    """
    if image.shape[:2] == (size, size):
        return image
    out = np.empty((size, size, 3), np.float32)
    for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype(np.float32))
        out[..., channel] = np.asarray(plane.resize((size, size), Image.Resampling.LANCZOS))
    np.rint(out, out=out)
    return np.clip(out, 0, 255, out=out).astype(np.uint8)


def centre_crop(image: UInt8Image, area: float = CROP_AREA) -> UInt8Image:
    """Keep the central share `area` and stretch it back to the same size, as tf.image.crop_and_resize does, bit for bit.

    Bilinear without antialiasing, in float32; back to uint8 by TensorFlow's saturating conversion, trunc(v * 255.5).
    """
    height, width = image.shape[:2]
    row, row_next, row_share = _crop_samples(height, area)
    column, column_next, column_share = _crop_samples(width, area)
    value = image.astype(np.float32)
    value *= np.float32(1 / 255)
    left = value.take(column, axis=1)
    right = value.take(column_next, axis=1)
    right -= left
    right *= column_share[:, None]
    right += left
    top = right.take(row, axis=0)
    bottom = right.take(row_next, axis=0)
    bottom -= top
    bottom *= row_share[:, None, None]
    bottom += top
    np.clip(bottom, 0, 1, out=bottom)
    bottom *= np.float32(255.5)
    return bottom.astype(np.uint8)


@lru_cache(maxsize=16)
def _crop_samples(size: int, area: float) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Where the crop samples one axis: pixel before, pixel after, share of the latter."""
    side = np.sqrt(np.float32(area))
    start = (np.float32(1) - side) / np.float32(2)
    last = np.float32(size - 1)
    position = start * last + np.arange(size, dtype=np.float32) * side
    before = np.floor(position)
    share = (position - before).astype(np.float32)
    return before.astype(np.intp), np.minimum(np.ceil(position), last).astype(np.intp), share


def resize_bicubic(image: UInt8Image, shape: tuple[int, int]) -> UInt8Image:
    """The Hugging Face processor's resize to (height, width); nothing to do where the image has that shape."""
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def normalise(
    image: UInt8Image, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3, rescale: float = 1 / 255
) -> NDArray[np.float32]:
    """uint8 [H, W, 3] -> float32 [3, H, W], (value * rescale - mean) / std, bit for bit as the Hugging Face processor."""
    table = _levels(mean, std, rescale)
    return np.stack([table[channel].take(image[..., channel]) for channel in range(3)])


@lru_cache(maxsize=16)
def _levels(mean: tuple[float, ...], std: tuple[float, ...], rescale: float) -> NDArray[np.float32]:
    """float32 [3, 256]: what each of the 256 levels becomes. The product is taken in float64, the rest in float32."""
    level = (np.arange(256, dtype=np.float64) * rescale).astype(np.float32)
    levels: NDArray[np.float32] = (level - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    return levels
