"""Videos of an evaluation's episodes, one file each, with a still of how it ended."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..control.command import Command
from ..policy.chunk import ActionChunk
from ..simulation.environment import Snapshot
from .episodes import Attempt
from .video import Caption, Moment, require_encoder, write_video

STILL = 192  # edge of a camera's picture in a still, pixels


@dataclass(frozen=True)
class Film:
    """Where videos go. folder: of the report. policy: as a video shows it. Raises VideoError where none can be written."""

    folder: Path
    policy: str

    def __post_init__(self) -> None:
        require_encoder()

    def write(self, suite: str, attempt: Attempt, moments: Sequence[Moment], *, step_limit: int, fps: float) -> Attempt:
        """Write the video of an episode; returns the attempt with video and still. Raises VideoError."""
        if not moments:
            return attempt
        words = f"{attempt.outcome.replace('_', ' ')} after {attempt.steps} steps"
        last = replace(moments[-1], outcome=words, success=attempt.success)
        name = f"videos/{suite}/task{attempt.task}_seed{attempt.seed}.mp4"
        write_video(self.folder / name, Caption(attempt.instruction, self.policy, step_limit), [*moments[:-1], last], fps=fps)
        return replace(attempt, video=name, still=_still(last))


class Reel:
    """Collects the moments of a rollout; its `on_tick` is the rollout's."""

    def __init__(self, step_duration: float) -> None:
        self.moments: list[Moment] = []
        self._step_duration = step_duration  # s
        self._chunk: ActionChunk | None = None
        self._since = 0

    def on_tick(self, snapshot: Snapshot, command: Command, chunk: ActionChunk) -> None:
        step = len(self.moments)
        if chunk is not self._chunk:
            self._chunk, self._since = chunk, step
        index = min(step - self._since, chunk.horizon - 1)
        moment = Moment(
            images=snapshot.images,
            step=step,
            chunk=chunk.actions,
            index=index,
            gripper=float(command.action[6]),
            chunk_age=(step - self._since) * self._step_duration,
            latency=chunk.latency.total or None,
        )
        self.moments.append(moment)

    def end(self, snapshot: Snapshot) -> list[Moment]:
        """All moments, with what was seen last."""
        if self.moments:
            self.moments.append(replace(self.moments[-1], images=snapshot.images, step=len(self.moments)))
        return self.moments


def _still(moment: Moment) -> bytes:
    """The cameras side by side, JPEG."""
    pictures = [Image.fromarray(pixels).resize((STILL, STILL)) for pixels in list(moment.images.values())[:2]]
    canvas = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
