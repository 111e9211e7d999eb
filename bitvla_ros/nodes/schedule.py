"""Which observations a task asks to be answered. Free of ROS; all times in nanoseconds of ROS time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Schedule:
    """A task as the policy node keeps it.

    since: no observation older than this may be used. replan_interval: least time between two observations; 0: each chunk is played to
    its end, and the next observation is taken `lead` before that: the policy sets it to what the last answer took, and a step.
    lockstep: exactly the observations stamped since + n * min(replan_interval, chunk_duration) are answered.
    """

    instruction: str
    epoch: int = 0
    active: bool = True
    since: int = 0
    replan_interval: int = 0
    lockstep: bool = False
    numbered: bool = False  # by a controller
    last: int = -1  # stamp of the last observation answered
    lead: int = 0

    @property
    def key(self) -> tuple[int, str, int]:
        """Tells one task from another, also where a restarted controller counts from the beginning."""
        return self.epoch, self.instruction, self.since

    def wants(self, stamp: int, chunk_duration: int) -> bool:
        """Whether an observation of this stamp is to be answered."""
        if not self.active or stamp < self.since or stamp <= self.last:
            return False
        if not self.lockstep:
            return self.last < 0 or stamp >= self.last + (self.replan_interval or max(chunk_duration - self.lead, 0))
        interval = min(self.replan_interval or chunk_duration, chunk_duration)
        return (stamp - self.since) % interval == 0
