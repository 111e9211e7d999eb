from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitvla_ros.evaluation.video import HEIGHT, LANES, WIDTH, Caption, Moment, VideoError, VideoWriter, poster, render, write_video

CAPTION = Caption("pick up the red block and place it in the basket", "expert", 200)


def moment(step: int = 0, **changes: object) -> Moment:
    scene = np.full((256, 256, 3), 90, np.uint8)
    scene[100:140, 60:100] = (200, 40, 40)
    chunk = np.linspace(-1, 1, 8 * 7, dtype=np.float32).reshape(8, 7)
    usual = Moment({"scene": scene, "wrist": scene[::-1]}, step, chunk, index=step % 8, chunk_age=0.1, latency=0.02)
    return replace(usual, **changes)


def changed(one: Moment, other: Moment, caption: Caption = CAPTION, other_caption: Caption = CAPTION) -> tuple[slice, slice] | None:
    """The box in which two frames differ, rows and columns."""
    differs = (render(caption, one) != render(other_caption, other)).any(axis=2)
    if not differs.any():
        return None
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_frame_shows_both_cameras_side_by_side():
    frame = render(CAPTION, moment())
    assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
    red = (frame[..., 0] > 180) & (frame[..., 1] < 60) & (frame[..., 2] < 60)
    columns = np.flatnonzero(red.any(axis=0))
    assert columns.min() < WIDTH / 2 < columns.max()


@pytest.mark.parametrize("lane", range(7))
def test_each_action_dimension_is_drawn_in_its_own_lane(lane: int):
    base = np.zeros((8, 7), np.float32)
    other = base.copy()
    other[5, lane] = 0.8
    rows, columns = changed(moment(chunk=base), moment(chunk=other))
    assert rows.start > 440
    width = (580 - 10) / len(LANES)
    assert 10 + lane * width <= columns.start and columns.stop <= 10 + (lane + 1) * width


def test_non_finite_action_does_not_stop_the_drawing():
    assert changed(moment(chunk=np.full((8, 7), np.nan, np.float32)), moment(chunk=np.zeros((8, 7), np.float32))) is None


def test_outcome_step_gripper_and_instruction_are_drawn():
    assert changed(moment(), moment(outcome="success", success=True)) is not None
    assert changed(moment(3), moment(3, gripper=1.0)) is not None
    assert changed(moment(3), moment(3, chunk=None)) is not None
    rows, _ = changed(moment(), moment(), CAPTION, Caption("open the drawer", "expert", 200))
    assert rows.stop <= 58


def test_long_instruction_leaves_the_policy_readable():
    long = Caption("pick up the red block " * 20, "BitVLA", 200)
    with_policy, without = render(long, moment()), render(Caption(long.instruction, "BitVLA", 200), moment())
    assert np.array_equal(with_policy, without)
    _, columns = changed(moment(), moment(), Caption("x", "BitVLA", 200), long)
    assert columns.stop < WIDTH - 60


def test_video_holds_every_frame(tmp_path: Path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "demo" / "expert.mp4"
    write_video(path, CAPTION, [moment(k) for k in range(7)], fps=20, linger=0.25)
    assert [p.name for p in path.parent.iterdir()] == ["expert.mp4"]
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta["size"] == (WIDTH, HEIGHT) and meta["codec"] == "h264" and meta["fps"] == 20
    frames = [np.frombuffer(frame, np.uint8).reshape(HEIGHT, WIDTH, 3) for frame in reader]
    assert len(frames) == 7 + 5
    assert np.abs(frames[3].astype(int) - render(CAPTION, moment(3))).mean() < 4


def test_failure_while_recording_leaves_neither_video_nor_rest(tmp_path: Path):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4") as video:  # noqa: PT012
        video.write(render(CAPTION, moment()))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_frame_of_another_size_is_refused(tmp_path: Path):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(VideoError, match="expected uint8"), VideoWriter(tmp_path / "a.mp4") as video:
        video.write(np.zeros((10, 10, 3), np.uint8))


def test_video_without_frames_is_an_error(tmp_path: Path):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(VideoError, match="nothing was encoded"), VideoWriter(tmp_path / "a.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_poster_has_a_row_an_episode(tmp_path: Path):
    episode = [moment(k) for k in range(30)]
    poster(tmp_path / "one.png", [(CAPTION, episode)], columns=4)
    poster(tmp_path / "two.png", [(CAPTION, episode), (CAPTION, episode[:1])], columns=4)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == one.width and two.height > 1.8 * one.height
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]
    with pytest.raises(VideoError):
        poster(tmp_path / "none.png", [])
