"""What a simulator is sent: an EndEffectorCommand a control step, in lockstep exactly one a tick."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

from rclpy.node import Node

from bitvla_ros.control.command import Command
from bitvla_ros.control.session import Session
from bitvla_ros.msg import EndEffectorCommand

from .arm import Arm
from .conversions import command_to_msg, moment
from .publishing import retire
from .qos import COMMAND


class Commands:
    """Plays a session for a simulator. report(stamp): called after each command. rate: Hz, how often `step` wants to be called."""

    refusal: str | None = None

    def __init__(self, node: Node, p: SimpleNamespace, session: Session, arm: Arm, report: Callable[[int], None]) -> None:
        self.rate: float = p.control_hz
        self.answered = -1  # stamp of the last lockstep tick that was answered
        self._node, self._session, self._arm, self._report = node, session, arm, report
        self._publisher = node.create_publisher(EndEffectorCommand, "end_effector_command", COMMAND)

    @property
    def tick_waits(self) -> bool:
        """A lockstep tick is here whole and not answered yet."""
        return self._arm.tick_is_whole and self._arm.stamp > self.answered

    def answer(self) -> None:
        """Answer the lockstep tick that waits, if the session can."""
        if not self.tick_waits:
            return
        arm = self._arm
        command = self._session.tick(arm.stamp, arm.pose, arm.success, time.monotonic_ns())
        if command is not None:
            self.answered = arm.stamp
            self._publish(command, arm.stamp, arm.state.tick)

    def step(self, now: int, steady: int, success: bool) -> None:
        """Realtime: one control step."""
        if self._arm.missing is not None or self._arm.lockstep:
            return
        command = self._session.tick(now, self._arm.pose, success, steady)
        if command is not None:
            self._publish(command, now)

    def watch(self) -> None:
        """Nothing: who else drives a simulator is no danger."""

    def disable(self) -> None:
        """Nothing: a simulator is always live."""

    def finish(self) -> None:
        """The node is deactivated: the rest of the stop's ramp in one go, so that its hold is what stays."""
        while not self._session.lockstep and self._session.stopping and self._arm.missing is None:
            self.step(*moment(self._node.get_clock()), success=False)

    def values(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        retire(self._node, self._publisher)

    def _publish(self, command: Command, stamp: int, tick: int = 0) -> None:
        self._publisher.publish(command_to_msg(command, stamp, self._session.player.frame, tick))
        self._report(stamp)
