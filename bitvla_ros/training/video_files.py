"""An episode's pictures of one camera as an mp4, through the ffmpeg that imageio-ffmpeg brings: small, and not exact."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .episode import DatasetError

# LeRobot's: every second frame is whole, so that any is found quickly.
CODECS = {"av1": ("libsvtav1", ["-crf", "30", "-preset", "8"]), "h264": ("libx264", ["-crf", "20"])}


def feature(codec: str, size: tuple[int, int], fps: float) -> dict[str, Any]:
    """What info.json says of a camera whose pictures are videos. size: height and width."""
    height, width = size
    said = {"height": height, "width": width, "codec": codec, "pix_fmt": "yuv420p", "is_depth_map": False, "fps": fps, "channels": 3}
    info = {**{f"video.{name}": value for name, value in said.items()}, "has_audio": False}
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channel"], "info": info}


def check_size(role: str, size: tuple[int, int]) -> None:
    """Raises DatasetError for pictures that no video of these codecs can hold."""
    if size[0] % 2 or size[1] % 2:
        found = f"camera {role} has {size[0]} x {size[1]} pixels"
        raise DatasetError(f"{found}: videos need even numbers; shrink them with --image-size, or keep PNG")


def write_video(path: Path, pictures: Iterable[NDArray[np.uint8]], size: tuple[int, int], fps: float, codec: str) -> None:
    """pictures: uint8 [H, W, 3], RGB. size: height and width. codec: of CODECS. Raises OSError."""
    import imageio_ffmpeg

    encoder, quality = CODECS[codec]
    parameters = ["-g", "2", *quality, "-f", "mp4"]
    writer = imageio_ffmpeg.write_frames(
        str(path), size[::-1], fps=fps, codec=encoder, quality=None, macro_block_size=1, output_params=parameters, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
    finally:
        writer.close()
    if not path.is_file() or not path.stat().st_size:
        raise OSError(f"ffmpeg wrote no {path.name}")
