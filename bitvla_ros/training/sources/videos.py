"""Frames out of video files, one after another, through the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ConversionError

# Every decoded frame once: ffmpeg would else repeat or drop some to make up for odd time stamps.
EACH_ONCE = ["-fps_mode", "passthrough"]


class Videos:
    """Keeps each file open where it was read last: episodes that follow each other in a file are decoded once. A context manager."""

    def __init__(self) -> None:
        self._open: dict[Path, _Stream] = {}

    def __enter__(self) -> Videos:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in self._open.values():
            stream.close()

    def size(self, path: Path) -> tuple[int, int]:
        """Height and width of its frames. Raises ConversionError."""
        return (self._open.get(path) or self._at(path, 0)).size

    def read(self, path: Path, first: int, count: int, *, alone: bool) -> Iterator[NDArray[np.uint8]]:
        """uint8 [H, W, 3], RGB, `count` of them from frame number `first` on. alone: the file ends there. Raises ConversionError."""
        stream = self._at(path, first)
        while stream.position < first:
            if stream.next() is None:
                raise ConversionError(f"frame 0: {path} ends after {stream.position} frames, this episode begins at {first}")
        for frame in range(count):
            picture = stream.next()
            if picture is None:
                raise ConversionError(f"frame {frame}: {path} ends after {stream.position} frames, expected {first + count}")
            yield picture
        if alone and stream.next() is not None:
            raise ConversionError(f"frame {count}: {path} has more frames than the episode's {count}")

    def _at(self, path: Path, first: int) -> _Stream:
        """The file, read no further than to frame `first`."""
        stream = self._open.get(path)
        if stream is None or stream.position > first:
            if stream is not None:
                stream.close()
            for other in [other for other in self._open if other.parent == path.parent]:  # the same camera's file before
                self._open.pop(other).close()
            stream = self._open[path] = _Stream(path)
        return stream


class _Stream:
    """position: number of the next frame. size: height and width."""

    def __init__(self, path: Path) -> None:
        import imageio_ffmpeg

        if not path.is_file():
            raise ConversionError(f"{path} is missing")
        self.position = 0
        self._path = path
        self._frames: Generator[Any, None, None] = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24", output_params=EACH_ONCE)
        try:
            width, height = next(self._frames)["size"]
        except (OSError, RuntimeError, StopIteration, KeyError) as error:
            raise ConversionError(f"frame 0: {path} does not decode ({str(error).strip()[-200:]})") from error
        self.size = (height, width)

    def next(self) -> NDArray[np.uint8] | None:
        try:
            data = next(self._frames, None)
        except (OSError, RuntimeError) as error:
            raise ConversionError(f"frame {self.position}: {self._path} does not decode ({str(error).strip()[-200:]})") from error
        if data is None:
            return None
        self.position += 1
        return np.frombuffer(data, np.uint8).reshape(*self.size, 3)

    def close(self) -> None:
        self._frames.close()
