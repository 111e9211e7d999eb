"""What was seen of one episode in a graph: its numbers, and its frames for a video."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from sensor_msgs.msg import Image

from bitvla_ros.evaluation.video import Moment
from bitvla_ros.msg import EndEffectorCommand, SimulationState
from bitvla_ros.policy.chunk import ActionChunk

from .conversions import image_from_msg, stamp_to_ns


@dataclass
class Episode:
    """states, images: by stamp in ns, images by camera role first. chunks: with the ROS time since when each was there,
    ns; in lockstep, where time waits for a chunk, its observation's.

    outcome: "success", "time_limit", "cancelled" or "fault". steps, accepted: control steps and chunks as the controller counted them.
    seconds: on the steady clock, from the goal's acceptance to its result.
    """

    instruction: str
    step_limit: int
    outcome: str = ""
    reason: str = ""
    steps: int = 0
    accepted: int = 0
    seconds: float = 0.0
    states: dict[int, SimulationState] = field(default_factory=dict)
    images: dict[str, dict[int, Image]] = field(default_factory=dict)
    chunks: list[tuple[int, ActionChunk]] = field(default_factory=list)
    commands: list[EndEffectorCommand] = field(default_factory=list)

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    @property
    def latencies(self) -> list[float]:
        """s, from taking the observation to publishing, of every chunk."""
        return [chunk.latency.total for _, chunk in self.chunks]

    @property
    def chunk_ages(self) -> list[float]:
        """s, of every command that plays an action: its time less that of the observation behind the action."""
        pairs = ((stamp_to_ns(command.header.stamp), self.chunk_behind(command)) for command in self.commands if not command.hold)
        return [(at - chunk.observation_stamp) / 1e9 for at, chunk in pairs if chunk is not None]

    def chunk_behind(self, command: EndEffectorCommand) -> ActionChunk | None:
        """The newest chunk of the command's epoch that was there when it was given."""
        at = stamp_to_ns(command.header.stamp)
        fitting = [chunk for there, chunk in self.chunks if chunk.epoch == command.epoch and there <= at]
        return fitting[-1] if fitting else None

    def moments(self) -> tuple[list[Moment], int]:
        """A frame for every tick from the first command to the end; and how many of these ticks have none, for want of an image."""
        if not self.commands:
            return [], 0
        commands = sorted(self.commands, key=lambda command: stamp_to_ns(command.header.stamp))
        times = [stamp_to_ns(command.header.stamp) for command in commands]
        ticks = [stamp for stamp in sorted(self.states) if stamp >= times[0]]
        frames: list[Moment] = []
        missing = 0
        for stamp in ticks:
            pictures = {role: images.get(stamp) for role, images in self.images.items()}
            if None in pictures.values():
                missing += 1
                continue
            given = bisect_right(times, stamp)
            command = commands[given - 1]
            answered = stamp == times[given - 1] or not self.states[stamp].lockstep
            frames.append(
                Moment(
                    images={role: image_from_msg(picture) for role, picture in pictures.items()},
                    step=min(given - 1 if answered else given, self.steps),
                    gripper=float(command.gripper),
                    **self._playing(command),
                )
            )
        return frames, missing

    def _playing(self, command: EndEffectorCommand) -> dict:
        chunk = self.chunk_behind(command)
        if chunk is None:
            return {}
        age = stamp_to_ns(command.header.stamp) - chunk.observation_stamp
        index = min(max(0, age // chunk.step_duration), chunk.horizon - 1)
        return {"chunk": chunk.actions, "index": index, "chunk_age": age / 1e9, "latency": chunk.latency.total}
