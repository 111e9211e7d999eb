"""The controller node: carries out instructions. It owns the task, plays the policy's chunks and guards the arm.

One goal at a time: a new goal takes over from the one before, which ends as CANCELLED. Everything runs in one thread; what decides
is control.session, which knows no ROS and which rollouts in process run as well. A simulator gets an EndEffectorCommand for each
control step; every other arm gets setpoints at its own rate, through setpoints.Setpoints.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from std_srvs.srv import Trigger

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.action_convention import UNKNOWN
from bitvla_ros.control.limits import RESTRICTABLE, FaultReason
from bitvla_ros.control.player import ChunkRefused
from bitvla_ros.control.session import Outcome, Result, Session
from bitvla_ros.msg import ActionChunk, Task
from bitvla_ros.policy.instruction import problem_of

from . import control_parameters, sinks
from .arm import Arm
from .commands import Commands
from .control_parameters import control_config
from .controllers import Controllers
from .conversions import ChunkError, chunk_from_msg, duration_to_ns, moment
from .diagnostics import ERROR, OK, WARN, Status
from .estop import EStop
from .events import SubscriptionEventCallbacks, UnsupportedEventTypeError
from .goal import Goal
from .lifecycle import ManagedNode, run
from .liveliness import Liveliness
from .loading import PolicyLoading
from .parameters import ParameterError
from .publishing import retire
from .qos import CHUNK, TASK
from .setpoints import Setpoints
from .transports import chosen, udp_alone

PARAMETERS = (*control_parameters.PARAMETERS, *sinks.PARAMETERS)

WATCH_PERIOD = 0.1  # s, of deadlines


class ControllerNode(ManagedNode):
    changeable = frozenset(f"limits.{name}" for name in RESTRICTABLE)

    def __init__(self, **options: Any) -> None:
        super().__init__("controller", PARAMETERS, **options)
        self._goal: Goal | None = None
        self._session: Session | None = None
        self._output: Commands | Setpoints | None = None
        self._entities: list[Callable[[], Any]] = []

    # Lifecycle

    def configure(self, p: SimpleNamespace) -> None:
        if not p.simulator and p.time_limit == 0:
            raise ParameterError("time_limit is 0, but without a simulator nobody else sets a limit: set it, in s")
        self._p = p
        self._session = Session(control_config(p))
        self._refusals: Counter[str] = Counter()
        self._last_refusal = ""
        self._task = self.create_publisher(Task, "task", TASK)
        self._entities = [lambda: retire(self, self._task)]
        self._controllers = Controllers(self)
        self._entities.append(self._controllers.close)
        self._policy = Liveliness(self, self._session, self._on_watch)
        events = SubscriptionEventCallbacks(liveliness=self._policy.on_event)
        try:
            chunks = self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, CHUNK, event_callbacks=events)
        except UnsupportedEventTypeError as error:
            raise OSError("this RMW reports no liveliness, so a dead policy would go unseen: use rmw_fastrtps_cpp") from error
        self._loading = PolicyLoading(self)
        self._entities += [lambda: self.destroy_subscription(chunks), self._policy.close, self._loading.close]
        output = Commands if p.sink_kind == sinks.SIMULATOR else Setpoints
        self._arm = Arm(self, p, on_pose=self._on_pose, on_state=self._on_state, polled=output is Setpoints)
        self._entities.append(self._arm.close)
        self._output = output(self, p, self._session, self._arm, self._report)
        self._entities.append(self._output.close)
        estop = EStop(self, self._on_estop)
        reset = self.create_service(Trigger, "reset_fault", self._on_reset_fault)
        timers = [self.steady_timer(WATCH_PERIOD, self._on_watch), self.steady_timer(1.0 / self._output.rate, self._on_control_step)]
        server = ActionServer(
            self,
            ExecuteInstruction,
            "execute_instruction",
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            cancel_callback=self._on_cancel,
        )
        self._entities += [estop.close, lambda: self.destroy_service(reset), server.destroy]
        self._entities += [lambda timer=timer: self.destroy_timer(timer) for timer in timers]

    def deactivate(self) -> None:
        self._stop("the controller was deactivated")
        if self._output is not None:
            self._output.finish()

    def cleanup(self) -> None:
        while self._entities:
            self._entities.pop()()

    def change(self, p: SimpleNamespace) -> None:
        self._session.restrict(control_config(p).limits)

    def status(self) -> Status:
        session, fault = self._session, self._session.guard.fault
        chunk = session.player.chunk
        values = {
            "epoch": session.epoch,
            "running": session.running,
            "steps": session.steps,
            "chunks": session.chunks,
            "policies_alive": self._policy.alive,
            "liveliness_losses": self._policy.losses,
            **({} if chunk is None else {"units": "unknown" if chunk.units == UNKNOWN else "agreed"}),
            "last_refusal": self._last_refusal,
            **{f"refused_{reason}": count for reason, count in self._refusals.items()},
            **self._output.values(),
        }
        if fault is not None:
            return Status(ERROR, f"stopped: {fault.message}; call reset_fault to go on", values)
        if surplus := self._surplus:
            return Status(WARN, surplus, values)
        if not self._policy.alive:
            return Status(WARN, self._loading.missing or "no policy", values)
        if session.running and session.blind:
            limit = f"{1e3 * session.guard.limits.unseen:.0f} ms"
            why = "half of limits.max_state_age, or what limits.speed takes for half of limits.following_position"
            return Status(WARN, f"the arm's pose is late: from {limit} on ({why}) the arm is not led any further", values)
        return Status(OK, "carrying out an instruction" if session.running else "ready", values)

    # Goals

    def _on_goal(self, request: ExecuteInstruction.Goal) -> GoalResponse:
        problem = None
        if self.state != "active":
            problem = f"the controller is {self.state}, not active"
        elif wrong := problem_of(request.instruction):
            problem = wrong
        elif duration_to_ns(request.time_limit) < 0:
            problem = "time_limit is negative; give 0 for the default"
        if problem is not None:
            self.get_logger().error(f"goal rejected: {problem}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    async def _execute(self, handle: Any) -> ExecuteInstruction.Result:
        self._stop("another goal took over")
        goal = self._goal = Goal(handle, self.executor)
        refusal = self._refusal
        if handle.is_cancel_requested:
            self._stop("cancelled by the client")
        elif refusal is not None:
            self._end(Result(Outcome.FAULT, refusal, 0, 0))
        else:
            self._advance()
            if not goal.started and self._loading.missing is not None:
                self.get_logger().info(f"goal {goal.instruction!r} waits: {self._loading.missing}")
        return await goal.result()

    def _on_cancel(self, handle: Any) -> CancelResponse:
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

    def _on_estop(self, why: str) -> None:
        self._session.fault(FaultReason.ESTOP, f"e-stop: {why}")
        self._output.disable()
        self._begin_stop()
        self.diagnostics.publish()

    @property
    def _refusal(self) -> str | None:
        """Why no goal may start now, and what to do."""
        return self._latched or self._output.refusal or self._surplus

    @property
    def _latched(self) -> str | None:
        fault = self._session.guard.fault
        return None if fault is None else f"a fault is latched ({fault.message}): call reset_fault first"

    @property
    def _surplus(self) -> str | None:
        """Which nodes there are too many of, and what to do."""
        return self._controllers.refusal or self._policy.refusal

    def _missing(self) -> str | None:
        """What a goal still waits for before it can start."""
        if refusal := self._refusal:
            return refusal
        if self._arm.missing is not None:
            return self._arm.missing
        if self._policy.missing is not None:
            return self._loading.missing or self._policy.missing
        if self._arm.lockstep and not self._output.tick_waits:
            return "the simulator's next tick has not come"
        return None

    def _start(self, goal: Goal) -> None:
        arm, session = self._arm, self._session
        start = arm.stamp if arm.lockstep else self._now()
        limit = goal.time_limit or round(self._p.time_limit * 1e9) or arm.state.step_limit * session.config.player.step_duration
        session.player.frame = arm.frame
        self._policy.begin()
        epoch = session.begin(start, limit, time.monotonic_ns(), lockstep=arm.lockstep)
        goal.begin(start, arm.episode)
        self._task.publish(goal.task(session, start, arm.frame, active=True))
        self.get_logger().info(f"epoch {epoch}: {goal.instruction!r}")

    def _stop(self, reason: str, answer: bool = True) -> None:
        """End the running goal, if any, as cancelled, and begin to stop.
        answer: False where the tick that waits belongs to another episode."""
        goal = self._goal
        if goal is None:
            return
        if not goal.started:
            self._end(Result(Outcome.CANCELLED, reason, 0, 0))
            return
        self._session.cancel(reason, stop=answer)
        self._begin_stop()

    def _begin_stop(self) -> None:
        """What waits for an answer gets the first of the stop now, not at the next control step."""
        if self._session.lockstep:
            self._advance()
        else:
            self._on_control_step()

    def _end(self, result: Result) -> None:
        goal, self._goal = self._goal, None
        if goal.started:
            self._task.publish(goal.task(self._session, self._now(), self._arm.frame, active=False))
        summary = f"{result.outcome.name.lower()} after {result.steps} steps and {result.chunks} chunks: {result.reason}"
        if result.outcome is Outcome.FAULT:  # not in one expression: rclpy allows each line of code one severity
            self.get_logger().error(summary)
        else:
            self.get_logger().info(summary)
        goal.done.set_result(result)
        self.diagnostics.publish()

    # Events

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            self._session.accept(chunk_from_msg(message), self._now(), time.monotonic_ns())
        except (ChunkRefused, ChunkError) as refused:
            self._refusals[refused.reason.value if isinstance(refused, ChunkRefused) else "malformed"] += 1
            self._last_refusal = str(refused)
        self._advance()

    def _on_pose(self) -> None:
        arm, began = self._arm, self._session.player.frame
        if self._session.running and arm.frame != began:
            message = f"the pose is measured in {arm.frame!r} now, and in {began!r} when the task began: is there one driver alone?"
            self._session.fault(FaultReason.STATE, message)
            self._begin_stop()
        self._advance()

    def _on_state(self) -> None:
        goal, arm = self._goal, self._arm
        if goal is not None and goal.started and arm.stamp > goal.start:
            if goal.moved and arm.episode != goal.episode:
                self._stop("the simulator was reset", answer=not arm.lockstep)
            elif not goal.moved:
                self._confirm(goal)
        self._advance()

    def _confirm(self, goal: Goal) -> None:
        """The first tick after that of the start. Where it does not follow from our answer, the start was with a tick of the past:
        a reset, or ticks before we came, were slower to arrive here than the goal. Then the task begins anew, with this tick."""
        arm = self._arm
        if arm.episode != goal.episode or (arm.lockstep and self._output.answered < goal.start):
            self._session.cancel("begins with a newer tick", stop=not arm.lockstep)
            goal.started = False
        goal.episode, goal.moved = self._arm.episode, goal.started

    def _advance(self) -> None:
        """Do what has become possible: start the goal, answer a lockstep tick, end the goal."""
        goal = self._goal
        if goal is not None and not goal.started and self._missing() is None:
            self._start(goal)
        self._output.answer()
        self._conclude()

    def _on_control_step(self) -> None:
        """Realtime: one control step, or one setpoint."""
        arm, goal = self._arm, self._goal
        arm.refresh()
        self._output.step(*moment(self.get_clock()), goal is not None and arm.success and arm.stamp > goal.start)
        self._conclude()

    def _on_watch(self) -> None:
        goal = self._goal
        if goal is not None and not goal.started and time.monotonic() - self._loading.waits_since(goal.since) > self._p.start_timeout:
            missing = self._missing() or "not ready"
            self._end(Result(Outcome.FAULT, f"not started within {self._p.start_timeout:g} s: {missing}", 0, 0))
            return
        fault = self._session.guard.fault
        self._session.watch(time.monotonic_ns())
        self._output.watch()
        if self._session.guard.fault is not fault:
            self._begin_stop()
        self._advance()

    def _conclude(self) -> None:
        goal = self._goal
        if goal is not None and goal.started and self._session.result is not None:
            self._end(self._session.result)
        elif goal is not None and not goal.started and (latched := self._latched):
            self._end(Result(Outcome.FAULT, latched, 0, 0))

    def _report(self, stamp: int) -> None:
        if self._goal is not None and self._session.running:
            self._goal.report(self._session, stamp)

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds


def main(args: Sequence[str] | None = None) -> int:
    with chosen(), udp_alone():
        return run(ControllerNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
