"""Pixels as cameras send them become RGB, whoever reads them: the policy from a message, a conversion from a recording."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.policy.images import ENCODINGS, ImageError, rgb
from bitvla_ros.training.sources import ConversionError
from bitvla_ros.training.sources.pictures import picture_of

ORDER = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0], "mono8": [0, 0, 0]}  # where red, green, blue stand


@given(st.sampled_from(sorted(ENCODINGS)), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_every_encoding_becomes_rgb_whatever_pads_its_rows(encoding, height, width, padding, seed):
    channels, _ = ENCODINGS[encoding]
    rows = np.random.default_rng(seed).integers(0, 256, (height, width * channels + padding), dtype=np.uint8)
    expected = rows[:, : width * channels].reshape(height, width, channels)[:, :, ORDER[encoding]]
    np.testing.assert_array_equal(rgb(encoding, height, width, rows.shape[1], rows.tobytes()), expected)
    message = SimpleNamespace(encoding=encoding, height=height, width=width, step=rows.shape[1], data=rows.ravel())
    np.testing.assert_array_equal(picture_of(message, None), expected)


def test_rgb_is_a_view_and_a_recorded_picture_a_copy():
    data = np.zeros(12, np.uint8)
    view = rgb("rgb8", 2, 2, 6, data)
    copy = picture_of(SimpleNamespace(encoding="rgb8", height=2, width=2, step=6, data=data), None)
    data[0] = 7
    assert view[0, 0, 0] == 7 and copy[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("encoding", ("16UC1", 2, 2, 4, bytes(8))),
        ("size", ("rgb8", 2, 2, 5, bytes(10))),
        ("size", ("rgb8", 2, 2, 6, bytes(11))),
        ("size", ("mono8", 0, 2, 2, b"")),
    ],
)
def test_what_is_no_colour_image_is_refused_by_both(what, fields):
    with pytest.raises(ImageError, match="expected") as error:
        rgb(*fields)
    assert error.value.what == what
    message = SimpleNamespace(**dict(zip(("encoding", "height", "width", "step", "data"), fields, strict=True)))
    message.data = list(message.data)
    with pytest.raises(ConversionError, match="expected"):
        picture_of(message, None)
