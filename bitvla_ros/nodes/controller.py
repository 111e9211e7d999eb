"""The controller node: carries out instructions. It owns the task, plays the policy's chunks and guards the arm.

One goal at a time: a new goal takes over from the one before, which ends as CANCELLED. Everything runs in one thread; what decides
is control.session, which knows no ROS and which rollouts in process run as well.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.task import Future
from std_srvs.srv import Trigger

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.control.command import ArmState, Command
from bitvla_ros.control.player import ChunkRefused
from bitvla_ros.control.session import Outcome, Result, Session
from bitvla_ros.msg import ActionChunk, EndEffectorCommand, SimulationState, Task

from .control_parameters import PARAMETERS, control_config
from .conversions import ChunkError, chunk_from_msg, duration_to_ns, ns_to_duration, ns_to_stamp, pose_from_msg, stamp_to_ns
from .diagnostics import ERROR, OK, WARN, Status
from .lifecycle import ManagedNode, run
from .qos import CHUNK, COMMAND, LATCHED, state_qos

WATCH_PERIOD = 0.1  # s, of deadlines


class Goal:
    """One goal from its acceptance to its result."""

    def __init__(self, handle, done: Future) -> None:
        self.handle = handle
        self.instruction = handle.request.instruction
        self.done = done  # becomes a Result
        self.since = time.monotonic()
        self.started = False
        self.start = 0  # stamp, ns
        self.episode = 0
        self.moved = False  # a tick after the first has been seen: the simulator took a command


class ControllerNode(ManagedNode):
    def __init__(self) -> None:
        super().__init__("controller", PARAMETERS)
        self._goal: Goal | None = None
        self._session: Session | None = None
        self._entities: list = []

    # Lifecycle

    def configure(self, p: SimpleNamespace) -> None:
        self._p = p
        self._session = Session(control_config(p))
        self._state: SimulationState | None = None
        self._arm: ArmState | None = None
        self._frame = ""
        self._answered = -1  # stamp of the last lockstep tick that was answered
        self._alive = 0  # publishers of chunks
        self._needed = 1  # of them: none may be lost during a task, or the loss of the right one could go unseen
        self._grace = None  # timer
        self._losses = 0
        self._refusals: Counter[str] = Counter()
        self._last_refusal = ""
        self._ticks = 0
        self._task = self.create_publisher(Task, "task", LATCHED)
        self._command = self.create_publisher(EndEffectorCommand, "end_effector_command", COMMAND)
        events = SubscriptionEventCallbacks(liveliness=self._on_liveliness)
        chunks = self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, CHUNK, event_callbacks=events)
        self._pose = self._subscribe_to_pose(synchronised=False)
        self._entities = [
            (self.destroy_publisher, self._task),
            (self.destroy_publisher, self._command),
            (self.destroy_subscription, chunks),
            (lambda _: self._end_grace(), None),
            (self.destroy_subscription, self.create_subscription(SimulationState, "simulation_state", self._on_state, LATCHED)),
            (lambda _: self.destroy_subscription(self._pose), None),
            (self.destroy_service, self.create_service(Trigger, "reset_fault", self._on_reset_fault)),
            (self.destroy_timer, self.steady_timer(WATCH_PERIOD, self._on_watch)),
            (self.destroy_timer, self.steady_timer(1.0 / p.control_hz, self._on_control_step)),
        ]
        server = ActionServer(
            self,
            ExecuteInstruction,
            "execute_instruction",
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            cancel_callback=self._on_cancel,
        )
        self._entities.append((lambda server: server.destroy(), server))

    def deactivate(self) -> None:
        self._stop("the controller was deactivated")
        while self._session is not None and self._arm is not None and not self._session.lockstep and self._session.stopping:
            self._on_control_step()  # the ramp in one go, so that its hold is what stays

    def cleanup(self) -> None:
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)
        self._session = None

    def status(self) -> Status:
        session = self._session
        values = {
            "epoch": session.epoch,
            "running": session.running,
            "policies_alive": self._alive,
            "liveliness_losses": self._losses,
            "steps": session.steps,
            "chunks": session.chunks,
            "control_steps_total": self._ticks,
            "last_refusal": self._last_refusal,
            **{f"refused_{reason}": count for reason, count in self._refusals.items()},
        }
        if session.guard.fault is not None:
            return Status(ERROR, f"stopped: {session.guard.fault.message}; call reset_fault to go on", values)
        if self._alive > 1:
            return Status(WARN, f"{self._alive} nodes publish action_chunk: stop all but one", values)
        if not self._alive:
            return Status(WARN, "no policy", values)
        return Status(OK, "carrying out an instruction" if session.running else "ready", values)

    # Goals

    def _on_goal(self, request: ExecuteInstruction.Goal) -> GoalResponse:
        problem = None
        if self.state != "active":
            problem = f"the controller is {self.state}, not active"
        elif not request.instruction.strip():
            problem = "the instruction is empty"
        elif duration_to_ns(request.time_limit) < 0:
            problem = "time_limit is negative; give 0 for the default"
        if problem is not None:
            self.get_logger().error(f"goal rejected: {problem}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    async def _execute(self, handle) -> ExecuteInstruction.Result:
        self._stop("another goal took over")
        goal = self._goal = Goal(handle, Future(executor=self.executor))
        fault = self._session.guard.fault
        if handle.is_cancel_requested:
            self._stop("cancelled by the client")
        elif fault is not None:
            self._end(Result(Outcome.FAULT, f"a fault is latched ({fault.message}): call reset_fault first", 0, 0))
        else:
            self._advance()
        result: Result = await goal.done
        if handle.is_cancel_requested:
            handle.canceled()
        elif result.outcome is Outcome.SUCCESS:
            handle.succeed()
        else:
            handle.abort()
        return ExecuteInstruction.Result(outcome=int(result.outcome), reason=result.reason, steps=result.steps, chunks=result.chunks)

    def _on_cancel(self, handle) -> CancelResponse:
        """Acknowledged when this returns: the guard has dropped the epoch and the stop has begun."""
        if self._goal is not None and self._goal.handle.goal_id == handle.goal_id:
            self._stop("cancelled by the client")
        return CancelResponse.ACCEPT

    def _on_reset_fault(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        fault = self._session.guard.fault
        self._session.reset_fault()
        response.success = True
        response.message = "no fault was latched" if fault is None else f"cleared: {fault.message}"
        self.diagnostics.publish()
        return response

    def _missing(self) -> str | None:
        """What a goal still waits for before it can start."""
        if self._state is None:
            return "nobody publishes simulation_state: start simulation_node"
        if self._arm is None:
            return "nobody publishes end_effector_pose: start the simulator or the arm's driver"
        if not self._alive:
            return "nobody publishes action_chunk: start policy_node"
        if self._state.lockstep and not self._tick_waits():
            return "the simulator's next tick has not come"
        return None

    def _start(self, goal: Goal) -> None:
        state, step = self._state, self._session.config.player.step_duration
        start = stamp_to_ns(state.header.stamp) if state.lockstep else self._now()
        limit = duration_to_ns(goal.handle.request.time_limit) or round(self._p.time_limit * 1e9) or state.step_limit * step
        self._session.player.frame = self._frame
        self._needed = self._alive
        self._session.policy_alive(True, time.monotonic_ns())
        epoch = self._session.begin(start, limit, time.monotonic_ns(), lockstep=state.lockstep)
        goal.started, goal.start, goal.episode, goal.moved = True, start, state.episode, False
        self._publish_task(active=True)
        self.get_logger().info(f"epoch {epoch}: {goal.instruction!r}")

    def _stop(self, reason: str, answer: bool = True) -> None:
        """End the running goal, if any, as cancelled; what waits for an answer gets the first command of the stop.
        answer: False where the tick that waits belongs to another episode."""
        goal = self._goal
        if goal is None:
            return
        if not goal.started:
            self._end(Result(Outcome.CANCELLED, reason, 0, 0))
            return
        self._session.cancel(reason, stop=answer)
        if self._session.lockstep:
            self._advance()
        else:
            self._on_control_step()

    def _end(self, result: Result) -> None:
        goal, self._goal = self._goal, None
        if goal.started:
            self._publish_task(active=False, instruction=goal.instruction)
        summary = f"{result.outcome.name.lower()} after {result.steps} steps and {result.chunks} chunks: {result.reason}"
        if result.outcome is Outcome.FAULT:  # not in one expression: rclpy allows each line of code one severity
            self.get_logger().error(summary)
        else:
            self.get_logger().info(summary)
        goal.done.set_result(result)
        self.diagnostics.publish()

    # What comes in

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            self._session.accept(chunk_from_msg(message), self._now(), time.monotonic_ns())
        except (ChunkRefused, ChunkError) as refused:
            self._refusals[refused.reason.value if isinstance(refused, ChunkRefused) else "malformed"] += 1
            self._last_refusal = str(refused)
        self._advance()

    def _on_pose(self, message: PoseStamped) -> None:
        self._arm = ArmState(*pose_from_msg(message), stamp_to_ns(message.header.stamp))
        self._frame = message.header.frame_id
        self._advance()

    def _on_state(self, state: SimulationState) -> None:
        if state.lockstep != (self._state is not None and self._state.lockstep):
            self.destroy_subscription(self._pose)
            self._pose = self._subscribe_to_pose(state.lockstep)
        self._state = state
        goal = self._goal
        if goal is not None and goal.started and stamp_to_ns(state.header.stamp) > goal.start:
            self._follow_episode(goal, state)
        self._advance()

    def _follow_episode(self, goal: Goal, state: SimulationState) -> None:
        """A reset ends the goal, unless it was only slower to arrive here than the goal that was sent after it."""
        if state.episode != goal.episode:
            if goal.moved:
                self._stop("the simulator was reset", answer=not state.lockstep)
                return
            if state.lockstep:
                self._session.cancel("the episode begins only now", stop=False)
                goal.started = False
            goal.episode = state.episode
        goal.moved = goal.started

    def _on_liveliness(self, event) -> None:
        self._losses += event.not_alive_count_change > 0
        self._alive = event.alive_count
        self._needed = max(1, self._alive, self._needed if self._session.running else 1)
        alive = self._alive >= self._needed
        self._session.policy_alive(alive, time.monotonic_ns())
        self._end_grace()
        if not alive:
            self._grace = self.steady_timer(self._session.guard.liveliness_grace + 0.001, self._on_watch)
        self._advance()

    def _end_grace(self) -> None:
        if self._grace is not None:
            self.destroy_timer(self._grace)
            self._grace = None

    def _subscribe_to_pose(self, synchronised: bool):
        return self.create_subscription(PoseStamped, "end_effector_pose", self._on_pose, state_qos(synchronised))

    # Time

    def _tick_waits(self) -> bool:
        """A lockstep tick is here whole and not answered yet."""
        stamp = stamp_to_ns(self._state.header.stamp)
        return self._arm is not None and self._arm.stamp == stamp > self._answered

    def _advance(self) -> None:
        """Do what has become possible: start the goal, answer a lockstep tick, end the goal."""
        goal = self._goal
        if goal is not None and not goal.started and self._missing() is None:
            self._start(goal)
        if self._state is not None and self._state.lockstep and self._tick_waits():
            stamp = stamp_to_ns(self._state.header.stamp)
            command = self._session.tick(stamp, self._arm, self._state.success, time.monotonic_ns())
            if command is not None:
                self._answered = stamp
                self._publish(command, stamp, self._state.tick)
        self._conclude()

    def _on_control_step(self) -> None:
        """Realtime: one control step."""
        if self._arm is None or self._state is None or self._state.lockstep:
            return
        now = self._now()
        success = self._goal is not None and self._state.success and stamp_to_ns(self._state.header.stamp) > self._goal.start
        command = self._session.tick(now, self._arm, success, time.monotonic_ns())
        if command is not None:
            self._publish(command, now)
        self._conclude()

    def _on_watch(self) -> None:
        self._end_grace()
        goal = self._goal
        if goal is not None and not goal.started and time.monotonic() - goal.since > self._p.start_timeout:
            missing = self._missing() or "not ready"
            self._end(Result(Outcome.FAULT, f"not started within {self._p.start_timeout:g} s: {missing}", 0, 0))
            return
        self._session.watch(time.monotonic_ns())
        self._advance()

    def _conclude(self) -> None:
        if self._goal is not None and self._goal.started and self._session.result is not None:
            self._end(self._session.result)

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    # What goes out

    def _publish(self, command: Command, stamp: int, tick: int = 0) -> None:
        message = EndEffectorCommand(tick=tick, epoch=command.epoch, hold=command.hold, gripper=float(command.action[6]))
        message.header.stamp = ns_to_stamp(stamp)
        message.header.frame_id = self._frame
        message.offset = command.action[:6]
        self._command.publish(message)
        self._ticks += 1
        goal, player = self._goal, self._session.player
        if goal is not None and goal.started and self._session.running:
            feedback = ExecuteInstruction.Feedback(step=self._session.steps, chunk_age=ns_to_duration(player.age(stamp)))
            if player.chunk is not None:
                feedback.inference_latency = ns_to_duration(round(player.chunk.latency.inference * 1e9))
            goal.handle.publish_feedback(feedback)

    def _publish_task(self, active: bool, instruction: str = "") -> None:
        goal, state = self._goal, self._state
        message = Task(epoch=self._session.epoch, active=active, lockstep=state.lockstep)
        message.header.stamp = ns_to_stamp(goal.start if active else self._now())
        message.header.frame_id = self._frame
        message.instruction = goal.instruction if active else instruction
        message.replan_interval = ns_to_duration(self._session.replan_interval)
        self._task.publish(message)


def main(args: Sequence[str] | None = None) -> int:
    return run(ControllerNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
