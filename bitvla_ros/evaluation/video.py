"""Episodes as pictures: a video with the instruction and the action chunk drawn in, and a poster for a README.

Drawn with Pillow and its own font, encoded as H.264 by the ffmpeg that imageio-ffmpeg brings: nothing is asked of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

WIDTH, HEIGHT = 800, 608  # both multiples of 16, as H.264 likes them
MARGIN, GAP = 10, 12
TILE = (WIDTH - 2 * MARGIN - GAP) // 2
HEADER = 58
PANEL_TOP = HEADER + TILE + 12

BACKGROUND, CARD, LINE = (17, 20, 26), (27, 32, 40), (58, 66, 79)
TEXT, MUTED = (236, 240, 245), (140, 151, 166)
GOOD, WARN = (64, 192, 122), (222, 170, 70)
LANES = ("x", "y", "z", "rx", "ry", "rz", "grip")
LANE_COLOURS = ((238, 110, 98), (104, 202, 120), (98, 158, 246), (214, 122, 170), (160, 196, 96), (128, 142, 236), (240, 188, 84))


class VideoError(Exception):
    """A video cannot be written: why, and what to do."""


@dataclass(frozen=True)
class Caption:
    """What stays the same for an episode. policy: as it is shown, e.g. "BitVLA nano, random weights"."""

    instruction: str
    policy: str
    step_limit: int


@dataclass(frozen=True)
class Moment:
    """What one frame shows.

    images: camera role -> uint8 [H, W, 3], RGB, upright; the first two are shown.
    chunk: float32 [H, 7] being played, or None; index: row being played.
    gripper: as commanded, -1 open ... +1 closed. chunk_age, latency: seconds, or None.
    outcome: "" while the episode runs, then what became of it; success: whether that is good.
    """

    images: Mapping[str, Pixels]
    step: int
    chunk: NDArray[np.float32] | None = None
    index: int = 0
    gripper: float = -1.0
    chunk_age: float | None = None
    latency: float | None = None
    outcome: str = ""
    success: bool = False


def render(caption: Caption, moment: Moment) -> Pixels:
    """One frame: uint8 [HEIGHT, WIDTH, 3], RGB."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(canvas, "RGBA")
    _header(draw, caption)
    for column, (role, pixels) in enumerate(list(moment.images.items())[:2]):
        corner = (MARGIN + column * (TILE + GAP), HEADER)
        canvas.paste(_tile(pixels, TILE), corner, _rounded(TILE, 10))
        _tag(draw, (corner[0] + 10, corner[1] + 10), role)
    _chunk(draw, moment)
    _numbers(draw, caption, moment)
    if moment.outcome:
        _banner(draw, moment)
    return np.asarray(canvas)


def require_encoder() -> Any:
    """The module that runs ffmpeg. Raises VideoError where it is missing: ask before the work that is to be filmed."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise VideoError("writing a video needs imageio-ffmpeg: pip install '.[sim]'") from error
    return imageio_ffmpeg


class VideoWriter:
    """An H.264 mp4 that appears under its name only when it is complete.

    Use as a context manager; `write` takes frames of `render`. Raises VideoError where ffmpeg is missing or fails.
    """

    def __init__(self, path: Path | str, fps: float = 20.0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        self.path = Path(path)
        self.frames = 0
        self._partial = self.path.with_name(f".{self.path.stem}.partial{os.getpid()}.mp4")
        self._size = size
        imageio_ffmpeg = require_encoder()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._encoder: Any = imageio_ffmpeg.write_frames(
                str(self._partial), size, fps=fps, codec="libx264", quality=None, macro_block_size=2, ffmpeg_log_level="error",
                output_params=["-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"],
            )  # fmt: skip
            self._encoder.send(None)
        except (OSError, RuntimeError) as error:
            raise VideoError(f"ffmpeg does not start for {self.path}: {error}") from error

    def write(self, frame: Pixels) -> None:
        """frame: uint8 [height, width, 3], RGB, of the size given at the beginning."""
        expected = (self._size[1], self._size[0], 3)
        if frame.shape != expected or frame.dtype != np.uint8:
            raise VideoError(f"{self.path.name}: a frame is {frame.dtype} {frame.shape}, expected uint8 {expected}")
        try:
            self._encoder.send(np.ascontiguousarray(frame))
        except (OSError, StopIteration) as error:
            raise VideoError(f"ffmpeg failed in frame {self.frames} of {self.path}: {error}; is the disk full?") from error
        self.frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._encoder.close()
        if kind is not None:
            self._partial.unlink(missing_ok=True)
            return
        if self.frames == 0 or not self._partial.is_file() or self._partial.stat().st_size == 0:
            self._partial.unlink(missing_ok=True)
            raise VideoError(f"{self.path}: nothing was encoded ({self.frames} frames); is the disk full?")
        os.replace(self._partial, self.path)


def write_video(path: Path | str, caption: Caption, moments: Sequence[Moment], *, fps: float = 20.0, linger: float = 1.5) -> None:
    """All moments of an episode, the last of them held for `linger` seconds so that its banner can be read."""
    with VideoWriter(path, fps) as video:
        for moment in moments:
            video.write(render(caption, moment))
        if moments:
            last = render(caption, moments[-1])
            for _ in range(round(linger * fps)):
                video.write(last)


def poster(
    path: Path | str, episodes: Sequence[tuple[Caption, Sequence[Moment]]], *, columns: int = 6, tile: int = 200, fps: float = 20.0
) -> None:
    """A film strip as a PNG: evenly spaced moments of each episode, a row for each of its first two cameras, the outcome on the last."""
    if not episodes or not all(moments for _, moments in episodes):
        raise VideoError("a poster needs at least one moment of every episode")
    margin, gap, head, foot = 16, 8, 42, 18
    width = 2 * margin + columns * (tile + gap) - gap
    rows = [min(2, len(moments[0].images)) for _, moments in episodes]
    canvas = Image.new("RGB", (width, margin + sum(head + count * (tile + gap) - gap + foot for count in rows)), BACKGROUND)
    draw = ImageDraw.Draw(canvas, "RGBA")
    top = margin
    for (caption, moments), count in zip(episodes, rows, strict=True):
        room = width - 2 * margin - 24 - draw.textlength(caption.policy, _font(19))
        draw.text((margin, top + 17), _shorten(draw, f"“{caption.instruction}”", 23, room), TEXT, _font(23), anchor="lm")
        draw.text((width - margin, top + 17), caption.policy, MUTED, _font(19), anchor="rm")
        top += head
        for column, at in enumerate(np.linspace(0, len(moments) - 1, columns).round().astype(int)):
            moment, left = moments[at], margin + column * (tile + gap)
            for row, pixels in enumerate(list(moment.images.values())[:count]):
                canvas.paste(_tile(pixels, tile), (left, top + row * (tile + gap)), _rounded(tile, 8))
            if column == columns - 1 and moment.outcome:
                _tag(draw, (left + 8, top + 8), _shorten(draw, moment.outcome, 15, tile - 32), GOOD if moment.success else WARN)
            else:
                _tag(draw, (left + 8, top + 8), f"{moment.step / fps:.1f} s")
        top += count * (tile + gap) - gap + foot
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{os.getpid()}.png")
    canvas.save(partial, optimize=True)
    os.replace(partial, path)


def _header(draw: ImageDraw.ImageDraw, caption: Caption) -> None:
    policy = _font(17)
    pill = draw.textlength(caption.policy, policy) + 24
    left = WIDTH - MARGIN - pill
    draw.rounded_rectangle((left, 14, WIDTH - MARGIN, 44), 15, CARD, LINE)
    draw.text((left + pill / 2, 29), caption.policy, TEXT, policy, anchor="mm")
    text, room = f"“{caption.instruction}”", left - MARGIN - 16
    size = 25
    while size > 14 and draw.textlength(text, _font(size)) > room:
        size -= 1
    draw.text((MARGIN + 4, 29), _shorten(draw, text, size, room), TEXT, _font(size), anchor="lm")


def _chunk(draw: ImageDraw.ImageDraw, moment: Moment) -> None:
    """The chunk as seven lanes of bars, one bar an action: played ones dim, the current one framed, those to come bright."""
    left, right, bottom = MARGIN, 580, HEIGHT - MARGIN
    draw.rounded_rectangle((left, PANEL_TOP, right, bottom), 10, CARD)
    inner, lane_gap = left + 12, 8
    lane = (right - left - 24 - 6 * lane_gap) / 7
    top, base = PANEL_TOP + 14, bottom - 30
    middle, half = (top + base) / 2, (base - top) / 2
    for number, name in enumerate(LANES):
        x0 = inner + number * (lane + lane_gap)
        draw.line((x0, middle, x0 + lane, middle), LINE)
        draw.text((x0 + lane / 2, bottom - 15), name, MUTED, _font(15), anchor="mm")
        if moment.chunk is None:
            continue
        horizon = len(moment.chunk)
        bar = lane / horizon
        for step in range(horizon):
            value = float(np.clip(np.nan_to_num(moment.chunk[step, number]), -1.0, 1.0))
            a, b = x0 + step * bar, x0 + (step + 1) * bar - (1 if bar > 3 else 0)
            y = middle - value * (half - 1)
            colour = (*LANE_COLOURS[number], 80 if step < moment.index else 255)
            draw.rectangle((a, min(y, middle - 0.5), b, max(y, middle + 0.5)), colour)
            if step == moment.index:
                draw.rectangle((a, top, b, base), (255, 255, 255, 34))
    if moment.chunk is None:
        draw.text(((left + right) / 2, middle), "waiting for a chunk", MUTED, _font(17), anchor="mm")


def _numbers(draw: ImageDraw.ImageDraw, caption: Caption, moment: Moment) -> None:
    left, right, bottom = 592, WIDTH - MARGIN, HEIGHT - MARGIN
    draw.rounded_rectangle((left, PANEL_TOP, right, bottom), 10, CARD)
    x, far = left + 14, right - 14
    draw.text((x, PANEL_TOP + 24), f"step {moment.step}", TEXT, _font(21), anchor="lm")
    draw.text((far, PANEL_TOP + 25), f"of {caption.step_limit}", MUTED, _font(15), anchor="rm")
    y = PANEL_TOP + 44
    draw.rounded_rectangle((x, y, far, y + 4), 2, LINE)
    done = min(1.0, moment.step / max(1, caption.step_limit))
    if done > 0.02:
        draw.rounded_rectangle((x, y, x + done * (far - x), y + 4), 2, TEXT)
    y += 26
    for label, value in (("chunk age", moment.chunk_age), ("latency", moment.latency)):
        draw.text((x, y), label, MUTED, _font(15), anchor="lm")
        draw.text((far, y), "-" if value is None else f"{1e3 * value:.0f} ms", TEXT, _font(16), anchor="rm")
        y += 22
    draw.text((x, y + 3), "gripper", MUTED, _font(15), anchor="lm")
    opening = (1.0 - float(np.clip(moment.gripper, -1.0, 1.0))) / 2.0
    finger, reach, height = 7, 15.0, 16
    centre = far - finger - reach - 1
    for side in (-1, 1):
        inner = centre + side * (1 + opening * reach - 1)
        edges = sorted((inner, inner + side * finger))
        draw.rounded_rectangle((edges[0], y + 3 - height / 2, edges[1], y + 3 + height / 2), 2, LANE_COLOURS[6])


def _banner(draw: ImageDraw.ImageDraw, moment: Moment) -> None:
    font = _font(24)
    colour = GOOD if moment.success else WARN
    mark = 34 if moment.success else 0
    outcome = _shorten(draw, moment.outcome, 24, WIDTH - 120 - mark)
    width = draw.textlength(outcome, font) + 44 + mark
    left, top, height = (WIDTH - width) / 2, HEADER + TILE - 66, 46
    draw.rounded_rectangle((left, top, left + width, top + height), height / 2, (*colour, 238))
    ink = (12, 16, 20)
    if mark:
        x, y = left + 22, top + height / 2
        draw.line([(x, y), (x + 7, y + 8), (x + 21, y - 9)], ink, 4, joint="curve")
    draw.text((left + 22 + mark, top + height / 2), outcome, ink, font, anchor="lm")


def _tag(draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: tuple[int, int, int] | None = None) -> None:
    font = _font(15)
    x, y = corner
    draw.rounded_rectangle((x, y, x + draw.textlength(text, font) + 16, y + 22), 11, (*colour, 235) if colour else (0, 0, 0, 150))
    draw.text((x + 8, y + 11), text, (12, 16, 20) if colour else TEXT, font, anchor="lm")


def _shorten(draw: ImageDraw.ImageDraw, text: str, size: int, room: float) -> str:
    text = " ".join(text.split())
    if draw.textlength(text, _font(size)) <= room:
        return text
    while text and draw.textlength(text + "…", _font(size)) > room:
        text = text[:-1].rstrip()
    return text + "…"


def _tile(pixels: Pixels, side: int) -> Image.Image:
    """The picture in a square of `side` pixels, its proportions kept."""
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    if picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


@lru_cache
def _rounded(side: int, radius: int) -> Image.Image:
    mask = Image.new("L", (2 * side, 2 * side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 2 * side - 1, 2 * side - 1), 2 * radius, 255)
    return mask.resize((side, side), Image.Resampling.BICUBIC)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
