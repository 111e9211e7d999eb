"""A policy that plays back recorded actions, so that a graph can be tested with actions known in advance."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .chunk import ACTION_DIM, ActionChunk
from .observation import Observation
from .policy import PolicySpec


class RecordingError(ValueError):
    """A recording that cannot be read or played."""


class ReplayPolicy:
    """Answers every observation with the recorded actions that belong to its time.

    actions: float32 [T, 7], rows of an ActionChunk (msg/ActionChunk.msg); row i is meant for i steps after the first observation.
    After the last row the arm is asked to stay: no motion, the gripper as it was.
    horizon: actions in a chunk. control_hz: rate of the recording. frame: in which the actions are expressed.
    """

    def __init__(self, actions: NDArray[np.float32], *, control_hz: float, horizon: int = 8, frame: str = "") -> None:
        actions = np.array(actions)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            raise RecordingError(f"recorded actions have shape {actions.shape}; expected [T, {ACTION_DIM}], T at least 1")
        if not np.issubdtype(actions.dtype, np.floating) or not np.isfinite(actions).all():
            raise RecordingError(f"recorded actions ({actions.dtype}) must be finite floats")
        if not (np.isfinite(control_hz) and control_hz > 0) or horizon < 1:
            raise RecordingError(f"control_hz {control_hz} and horizon {horizon} must be positive")
        self.actions: NDArray[np.float32] = actions.astype(np.float32)
        self.actions.flags.writeable = False
        self.frame = frame
        digest = hashlib.sha256(self.actions.tobytes()).hexdigest()
        self.spec = PolicySpec("replay", (), horizon, float(control_hz), False, digest)
        self._start: int | None = None

    def reset(self) -> None:
        """The next observation is the first again."""
        self._start = None

    def infer(self, observation: Observation) -> ActionChunk:
        """The `horizon` rows from the observation's step on, rounded to whole steps."""
        if self._start is None:
            self._start = observation.stamp
        first = max(0, round((observation.stamp - self._start) / self.spec.step_duration))
        rows = np.zeros((self.spec.horizon, ACTION_DIM), np.float32)
        rows[:, -1] = self.actions[-1, -1]
        recorded = self.actions[first : first + self.spec.horizon]
        rows[: len(recorded)] = recorded
        return ActionChunk(
            actions=rows,
            observation_stamp=observation.stamp,
            step_duration=self.spec.step_duration,
            frame=self.frame,
            epoch=observation.epoch,
            instruction=observation.instruction,
            model_hash=self.spec.model_hash,
        )

    def save(self, path: Path | str) -> None:
        """Write the recording to `path`, an .npz file, in one step."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(
                    file,
                    actions=self.actions,
                    control_hz=np.float64(self.spec.control_hz),
                    horizon=np.int64(self.spec.horizon),
                    frame=np.array(self.frame),
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> ReplayPolicy:
        """Read what `save` has written. Raises RecordingError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(
                    file["actions"],
                    control_hz=float(file["control_hz"]),
                    horizon=int(file["horizon"]),
                    frame=str(file["frame"]),
                )
        except RecordingError:
            raise
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, BadZipFile) as error:
            raise RecordingError(f"{path} is no recording ({error}); expected an .npz file written by ReplayPolicy.save") from error
