"""Augmentation: the reference's ranges, in the place of the centre crop, and nothing but a function of its random numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.policy.preprocessing import centre_crop
from bitvla_ros.training.augmentation import augment, crop, jitter

NEUTRAL = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def picture(seed: int = 0, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_neutral_jitter_changes_nothing(seed):
    image = picture(seed, 8)
    assert np.abs(jitter(image, **NEUTRAL).astype(int) - image).max() <= 1


def test_the_same_numbers_give_the_same_image_and_leave_the_original_alone():
    image = picture()
    kept = image.copy()
    first, again, other = (augment(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(image, kept)
    assert first.dtype == np.uint8 and first.shape == image.shape


@given(row=st.floats(0, 1), column=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_crop_keeps_its_area_wherever_it_lies(row, column):
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 200, 3))
    kept = crop(ramp, 0.9, row, column)[:, 0, 0].astype(float)
    assert kept[-1] - kept[0] == pytest.approx(199 * math.sqrt(0.9), abs=1.5)
    across = crop(ramp.transpose(1, 0, 2), 0.9, row, column)[0, :, 0].astype(float)
    assert across[0] == pytest.approx(column * 199 * (1 - math.sqrt(0.9)), abs=1)


def test_crop_in_the_middle_is_the_policys():
    image = picture(size=224)  # noise, the hardest there is
    assert np.abs(crop(image, 0.9, 0.5, 0.5).astype(int) - centre_crop(image, 0.9)).max() <= 1 + 255 * 2 / 32


def test_each_jitter_does_what_it_is_called():
    red = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    assert jitter(red, **NEUTRAL | {"brightness": 0.1})[0, 0].tolist() == pytest.approx([225.5, 65.5, 65.5], abs=1)
    assert jitter(red, **NEUTRAL | {"saturation": 0.5})[0, 0].tolist() == pytest.approx([200, 120, 120], abs=1)
    assert jitter(red, **NEUTRAL | {"hue": 1 / 3})[0, 0].tolist() == pytest.approx([40, 200, 40], abs=1)
    assert jitter(red, **NEUTRAL | {"hue": -1 / 3})[0, 0].tolist() == pytest.approx([40, 40, 200], abs=1)
    image = picture().astype(int) // 2 + 64
    contrasted = jitter(image.astype(np.uint8), **NEUTRAL | {"contrast": 0.5}).astype(float)
    assert contrasted.mean((0, 1)) == pytest.approx(image.mean((0, 1)), abs=1)
    assert contrasted.std() == pytest.approx(0.5 * image.std(), rel=0.1)


def test_grey_has_no_hue_to_turn():
    grey = np.full((4, 4, 3), 90, np.uint8)
    assert np.abs(jitter(grey, **NEUTRAL | {"saturation": 1.2, "hue": 0.05}).astype(int) - 90).max() <= 1


def test_brightness_is_drawn_from_its_whole_range():
    grey = np.full((4, 4, 3), 128, np.uint8)
    drawn = [(augment(grey, np.random.default_rng(seed))[0, 0, 0] - 128.0) / 255 for seed in range(300)]
    assert -0.21 < min(drawn) < -0.18 and 0.18 < max(drawn) < 0.21
    assert np.mean(drawn) == pytest.approx(0, abs=0.03)


def test_a_policy_without_a_crop_is_trained_without_one():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None] + 60, (100, 100, 3)).copy()
    rows = augment(ramp, np.random.default_rng(0), None)[:, 0, 0].astype(float)
    cropped = augment(ramp, np.random.default_rng(0), 0.5)[:, 0, 0].astype(float)
    assert rows[-1] - rows[0] > 1.3 * (cropped[-1] - cropped[0])
