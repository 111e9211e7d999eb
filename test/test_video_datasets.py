"""Datasets whose pictures are videos (bitvla convert --video): small, read back by convert, refused by training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from converting import convert, refused
from test_conversion_lerobot import LENGTHS, OPTIONS, shade, write

from bitvla_ros.training.dataset import Dataset, DatasetError

pytest.importorskip("imageio_ffmpeg")
pq = pytest.importorskip("pyarrow.parquet")
SIZE = 64  # AV1's encoder takes no smaller ones


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_pictures_come_back_from_videos_nearly_as_they_were(tmp_path, capsys, codec):
    source = write(tmp_path / "in", "v2.1", video=False, size=SIZE)
    code, _, err = convert(capsys, source, tmp_path / "filmed", *OPTIONS, "--video", codec)
    assert code == 0, err
    info = json.loads((tmp_path / "filmed/meta/info.json").read_text())
    feature = info["features"]["observation.images.scene"]
    assert feature["dtype"] == "video" and feature["info"]["video.codec"] == codec
    rows = pq.read_table(tmp_path / "filmed/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.scene"
    assert [(row[f"{key}/file_index"], row[f"{key}/from_timestamp"], row[f"{key}/to_timestamp"]) for row in rows] == [
        (i, 0.0, length / 10) for i, length in enumerate(LENGTHS)
    ]
    with pytest.raises(DatasetError, match=r"keeps camera 'scene' as video, expected pictures: use bitvla convert"):
        Dataset(tmp_path / "filmed")
    code, _, err = convert(capsys, tmp_path / "filmed", tmp_path / "back")
    assert code == 0, err
    assert convert(capsys, source, tmp_path / "plain", *OPTIONS)[0] == 0
    back, plain = Dataset(tmp_path / "back"), Dataset(tmp_path / "plain")
    assert back.lengths == plain.lengths == LENGTHS
    for i in range(len(LENGTHS)):
        np.testing.assert_array_equal(back.episode(i).actions, plain.episode(i).actions)
        shades = np.asarray(back.episode(i).images["scene"]).reshape(LENGTHS[i], -1)
        assert np.abs(shades - np.array([[shade(i, frame)] for frame in range(LENGTHS[i])])).max() <= 3


def test_odd_sizes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", "v2.1", video=False, size=33)
    error = refused(capsys, tmp_path / "out", source, *OPTIONS, "--video", "h264")
    assert "camera scene has 33 x 33 pixels: videos need even numbers" in error
