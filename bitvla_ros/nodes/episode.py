"""What was seen of one episode in a graph: its numbers, and its frames for a video."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sensor_msgs.msg import Image

from bitvla_ros.evaluation.proofs.stopping import Target
from bitvla_ros.evaluation.video import Moment
from bitvla_ros.msg import EndEffectorCommand, SimulationState
from bitvla_ros.policy.chunk import ActionChunk

from .conversions import image_from_msg, stamp_to_ns


@dataclass(frozen=True)
class _Given:
    """What the arm was given for a control step. stamp: ns. gripper: its command, None where setpoints do not say."""

    stamp: int
    epoch: int
    gripper: float | None = None


@dataclass
class Episode:
    """states, images: by stamp in ns, images by camera role first. chunks: with the ROS time since when each was there,
    ns; in lockstep, where time waits for a chunk, its observation's. commands: of a simulator; targets: of an arm that is driven by poses.

    outcome: "success", "time_limit", "cancelled" or "fault". steps, accepted: control steps and chunks as the controller counted them.
    seconds: on the steady clock, from the goal's acceptance to its result. step_duration: ns, of a control step.
    """

    instruction: str
    step_limit: int
    outcome: str = ""
    reason: str = ""
    steps: int = 0
    accepted: int = 0
    seconds: float = 0.0
    step_duration: int = 50_000_000
    states: dict[int, SimulationState] = field(default_factory=dict)
    images: dict[str, dict[int, Image]] = field(default_factory=dict)
    chunks: list[tuple[int, ActionChunk]] = field(default_factory=list)
    commands: list[EndEffectorCommand] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    @property
    def complete(self) -> bool:
        """The goal has ended, and everything that it sent has come: its chunks, and each command, or the setpoint at rest after a stop."""
        if len(self.chunks) < self.accepted:
            return False
        if not self.targets:
            return len(self.commands) >= self.steps
        last = self.targets[-2:]
        return len(last) == 2 and all((getattr(last[0], name) == getattr(last[1], name)).all() for name in ("position", "orientation"))

    @property
    def latencies(self) -> list[float]:
        """s, from taking the observation to publishing, of every chunk."""
        return [chunk.latency.total for _, chunk in self.chunks]

    @property
    def chunk_ages(self) -> list[float]:
        """s, of every control step that plays an action: its time less that of the observation behind the action."""
        played = [(given, self.chunk_behind(given.stamp, given.epoch)) for given in self._given(holds=False)]
        return [(given.stamp - chunk.observation_stamp) / 1e9 for given, chunk in played if chunk is not None]

    def chunk_behind(self, stamp: int, epoch: int) -> ActionChunk | None:
        """The newest chunk of the epoch that was there at this time, ns."""
        fitting = [chunk for there, chunk in self.chunks if chunk.epoch == epoch and there <= stamp]
        return fitting[-1] if fitting else None

    def moments(self) -> tuple[list[Moment], int]:
        """A frame for every tick from the first command to the end; and how many of these ticks have none, for want of an image."""
        given = self._given()
        times = [one.stamp for one in given]
        ticks = [stamp for stamp in sorted(self.states) if given and stamp >= times[0]]
        frames: list[Moment] = []
        missing = 0
        for stamp in ticks:
            pictures = {role: images.get(stamp) for role, images in self.images.items()}
            if None in pictures.values():
                missing += 1
                continue
            count = bisect_right(times, stamp)
            answered = stamp == times[count - 1] or not self.states[stamp].lockstep
            frames.append(
                Moment(
                    images={role: image_from_msg(picture) for role, picture in pictures.items()},
                    step=min(count - 1 if answered else count, self.steps),
                    **self._playing(given[count - 1]),
                )
            )
        return frames, missing

    def _given(self, holds: bool = True) -> list[_Given]:
        """What the arm was given, a control step after the other. holds: also the steps in which it is to stay where it is."""
        if not self.targets:
            commands = (command for command in self.commands if holds or not command.hold)
            given = (_Given(stamp_to_ns(command.header.stamp), command.epoch, float(command.gripper)) for command in commands)
            return sorted(given, key=lambda one: one.stamp)
        epoch = max((chunk.epoch for _, chunk in self.chunks), default=0)
        first, last = self.targets[0].stamp, self.targets[-1].stamp
        steps = [_Given(stamp, epoch) for stamp in range(first, last + 1, self.step_duration)]
        if holds:
            return steps
        played = [(there, there + chunk.duration) for there, chunk in self.chunks]
        return [step for step in steps if any(begin <= step.stamp < end for begin, end in played)]

    def _playing(self, given: _Given) -> dict[str, Any]:
        chunk = self.chunk_behind(given.stamp, given.epoch)
        gripper = {} if given.gripper is None else {"gripper": given.gripper}
        if chunk is None:
            return gripper
        age = given.stamp - chunk.observation_stamp
        index = int(np.clip(age // chunk.step_duration, 0, chunk.horizon - 1))
        shown = {"chunk": chunk.actions, "index": index, "chunk_age": age / 1e9, "latency": chunk.latency.total}
        return {"gripper": float(chunk.actions[index, 6]), **shown, **gripper}
