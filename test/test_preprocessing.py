"""The image path against the reference's recorded steps, and against its formulas on other shapes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bitvla_ros.policy import preprocessing
from bitvla_ros.policy.preprocessing import ImageRecipe, ImageRecipeError


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(shared / f"golden/bitvla_tiny/inputs/case{i}.npz")) for i in (0, 1)]


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def levels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


def test_jpeg_differs_from_tensorflow_only_by_the_decoder(cases):
    ours = preprocessing.jpeg_round_trip(cases[0]["frames_env"][0, ::-1, ::-1])
    difference = levels(ours, cases[0]["frame0_jpeg_roundtrip"])
    assert difference.mean() < 1.5
    assert difference.max() <= 15


def test_jpeg_is_quality_95_with_halved_chroma():
    image = np.zeros((16, 16, 3), np.uint8)
    image[::2] = (255, 0, 0)  # alternating rows survive in luma, not in halved chroma
    out = preprocessing.jpeg_round_trip(image)
    assert out.shape == image.shape and out.dtype == np.uint8
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=2)
    np.testing.assert_array_equal(out, np.asarray(Image.open(file)))


def test_lanczos3_is_tensorflows_but_for_rounding_ties(cases):
    ours = preprocessing.resize_lanczos3(cases[0]["frame0_jpeg_roundtrip"], 224)
    difference = levels(ours, cases[0]["frames_resized"][0])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4  # Pillow's RGB mode, with 8 bits between the passes, differs at 17 % of the values


def test_centre_crop_is_bit_exact(cases):
    for resized, cropped in zip(cases[0]["frames_resized"], cases[0]["frames_cropped"], strict=True):
        np.testing.assert_array_equal(preprocessing.centre_crop(resized), cropped)


def test_whole_path_stays_within_the_decoders_difference(cases):
    recipe = ImageRecipe(rotate_180=True, jpeg=True)
    for case in cases:
        for frame, expected in zip(case["frames_env"], case["frames_cropped"], strict=True):
            difference = levels(recipe.pixels(frame), expected)
            assert difference.mean() < 1.5
            assert difference.max() <= 20


def test_rotation_happens_once_and_only_when_asked(cases):
    raw = cases[0]["frames_env"][0]
    upright = np.ascontiguousarray(raw[::-1, ::-1])
    np.testing.assert_array_equal(ImageRecipe(rotate_180=True).pixels(raw), ImageRecipe().pixels(upright))
    assert levels(ImageRecipe().pixels(raw), ImageRecipe().pixels(upright)).mean() > 5


def crop_by_the_formula(image: np.ndarray, area: float) -> np.ndarray:
    """tf.image.crop_and_resize and the saturating conversion, a pixel at a time."""
    height, width = image.shape[:2]
    side = np.sqrt(np.float32(area))
    offset = (np.float32(1) - side) / np.float32(2)
    out = np.empty_like(image)
    source = image.astype(np.float32) * np.float32(1 / 255)
    for i in range(height):
        y = offset * np.float32(height - 1) + np.float32(i) * side
        for j in range(width):
            x = offset * np.float32(width - 1) + np.float32(j) * side
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(math.ceil(y), height - 1), min(math.ceil(x), width - 1)
            top = source[y0, x0] + (source[y0, x1] - source[y0, x0]) * (x - np.float32(x0))
            bottom = source[y1, x0] + (source[y1, x1] - source[y1, x0]) * (x - np.float32(x0))
            value = np.clip(top + (bottom - top) * (y - np.float32(y0)), np.float32(0), np.float32(1))
            out[i, j] = (value * np.float32(255.5)).astype(np.uint8)
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.floats(0.1, 1.0), st.integers(0, 1000))
def test_centre_crop_follows_the_formula_at_any_size(height, width, area, seed):
    image = random_image(height, width, seed)
    np.testing.assert_array_equal(preprocessing.centre_crop(image, area), crop_by_the_formula(image, area))


def test_normalisation_is_the_hugging_face_processors(cases, shared):
    from transformers import SiglipImageProcessor

    processor = SiglipImageProcessor.from_pretrained(shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a", local_files_only=True)
    image = cases[0]["frames_cropped"][0]
    expected = np.float32((image * (1 / 255)).astype(np.float32))
    expected = ((expected - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)
    ours = preprocessing.normalise(image)
    assert ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, expected)
    # The processor's newer back ends fuse the two steps, hence a tolerance of one rounding.
    theirs = np.asarray(processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0])
    np.testing.assert_allclose(ours, theirs, atol=2e-7)


def test_channels_have_their_own_mean_and_std():
    image = random_image(4, 4)
    ours = preprocessing.normalise(image, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    expected = (image / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    np.testing.assert_allclose(ours, expected.transpose(2, 0, 1), atol=1e-6)


def test_recipe_is_read_from_the_checkpoint(shared):
    recipe = ImageRecipe.from_checkpoint(shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a")
    assert recipe == ImageRecipe(image_size=224, output_size=(224, 224))
    assert recipe(random_image(256, 256)).shape == (3, 224, 224)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (37, 91), (224, 224)])
def test_any_camera_shape_comes_out_square(shape):
    image = random_image(*shape)
    for fit in ("squash", "crop"):
        out = ImageRecipe(image_size=56, fit=fit)(image)
        assert out.shape == (3, 56, 56) and out.dtype == np.float32
        assert np.abs(out).max() <= 1


def test_crop_keeps_the_centre_and_squash_keeps_everything():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :32] = 255  # outside the central square
    assert ImageRecipe(image_size=32, fit="crop", crop_area=None).pixels(image).max() == 0
    assert ImageRecipe(image_size=32, fit="squash", crop_area=None).pixels(image)[:, :4].min() > 200


def test_bicubic_resize_leads_to_the_processors_size():
    image = random_image(100, 100)
    recipe = ImageRecipe(image_size=64, output_size=(48, 40))
    square = ImageRecipe(image_size=64).pixels(image)
    np.testing.assert_array_equal(recipe.pixels(image), np.asarray(Image.fromarray(square).resize((40, 48), Image.Resampling.BICUBIC)))


def test_image_is_left_as_it_was():
    image = random_image(64, 64)
    before = image.copy()
    ImageRecipe(image_size=64, rotate_180=True, jpeg=True)(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_what_is_not_an_rgb_frame_is_refused(image):
    with pytest.raises(ImageRecipeError, match="expected uint8"):
        ImageRecipe()(image)


GOOD = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, "size"),
        ({"image_mean": "half"}, "image_mean"),
        ({"image_std": [0.5, 0.5]}, "std"),
        ({"image_std": [0.5, 0.5, 0]}, "std"),
        ({"rescale_factor": None}, "rescale_factor"),
        ({"do_normalize": False}, "do_normalize"),
        ({"resample": 2}, "resample"),
        ({"size": {"height": 64, "width": 32}}, "image_size"),
    ],
)
def test_a_bad_preprocessor_config_is_refused(tmp_path, change, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ImageRecipeError, match=message):
        ImageRecipe.from_checkpoint(tmp_path)


def test_a_missing_or_broken_preprocessor_config_is_refused(tmp_path):
    with pytest.raises(ImageRecipeError, match="cannot be read"):
        ImageRecipe.from_checkpoint(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ImageRecipeError, match="cannot be read"):
        ImageRecipe.from_checkpoint(tmp_path)


@pytest.mark.parametrize("options", [{"fit": "stretch"}, {"crop_area": 0.0}, {"crop_area": 1.5}, {"image_size": 1}])
def test_a_senseless_recipe_is_refused(options):
    with pytest.raises(ImageRecipeError):
        ImageRecipe(**options)
