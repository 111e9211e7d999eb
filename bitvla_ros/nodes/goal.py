"""One goal of ExecuteInstruction, from its acceptance to its result."""

from __future__ import annotations

import time
from typing import Any

from rclpy.executors import Executor
from rclpy.task import Future

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.control.session import Outcome, Result, Session
from bitvla_ros.msg import Task

from .conversions import duration_to_ns, ns_to_duration, ns_to_stamp


class Goal:
    """started: its task runs. start: stamp that the task began with, ns. episode: of the simulator.
    moved: the simulator has played a command of it."""

    def __init__(self, handle: Any, executor: Executor) -> None:
        self.handle = handle
        self.instruction: str = handle.request.instruction
        self.time_limit = duration_to_ns(handle.request.time_limit)
        self.done = Future(executor=executor)  # becomes a Result
        self.since = time.monotonic()
        self.started = self.moved = False
        self.start = self.episode = 0

    def begin(self, start: int, episode: int) -> None:
        self.started, self.moved, self.start, self.episode = True, False, start, episode

    def task(self, session: Session, stamp: int, frame: str, active: bool) -> Task:
        """The Task that tells the policy."""
        message = Task(epoch=session.epoch, active=active, instruction=self.instruction, lockstep=session.lockstep)
        message.header.stamp = ns_to_stamp(stamp)
        message.header.frame_id = frame
        message.replan_interval = ns_to_duration(session.replan_interval)
        return message

    def report(self, session: Session, stamp: int) -> None:
        """Feedback of the step at `stamp`."""
        player = session.player
        feedback = ExecuteInstruction.Feedback(step=session.steps, chunk_age=ns_to_duration(player.age(stamp)))
        if player.chunk is not None:
            feedback.inference_latency = ns_to_duration(round(player.chunk.latency.inference * 1e9))
        self.handle.publish_feedback(feedback)

    async def result(self) -> ExecuteInstruction.Result:
        """Wait for the end, and put the goal into its terminal state."""
        result: Result = await self.done
        if self.handle.is_cancel_requested:
            self.handle.canceled()
        elif result.outcome is Outcome.SUCCESS:
            self.handle.succeed()
        else:
            self.handle.abort()
        return ExecuteInstruction.Result(outcome=int(result.outcome), reason=result.reason, steps=result.steps, chunks=result.chunks)
