"""Setpoints at the rate of an arm's own interface: into its sink, or in shadow and dry mode beside it.

shadow: computed from where the arm is, published on shadow/target_pose, compared with what the arm does; no topic of the arm is touched.
dry: the same, in the messages of live mode, under dry/.
live: into the sink, from a call of `enable` until it is called with false, an e-stop, or the end of the node.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from geometry_msgs.msg import PoseStamped
from std_srvs.srv import SetBool

from bitvla_ros.control.command import Setpoint
from bitvla_ros.control.following import Following
from bitvla_ros.control.limits import FaultReason
from bitvla_ros.control.session import Session
from bitvla_ros.control.shadow import Disagreement

from .arm import Arm
from .conversions import moment, pose_to_msg
from .lifecycle import EXPECTED, ManagedNode
from .node_names import owner
from .parameters import ParameterError
from .publishing import retire
from .qos import COMMAND
from .sinks import ACCEPTANCE, Sink, check, make_sink, sink_topics

DRY = "dry/"
FADE = 2.0  # s in which errors of following velocities fade: with the default limits an arm that stands still is found from 0.05 m/s on
PATIENCE = 4_000_000_000  # ns that an arm has to come to rest when the node ends; then it is told to hold at once
STALL = 200_000_000  # ns for which a simulator's time may stand still while its arm moves
LONG = 3600 * 10**9  # ns, in which any stop has ended


class Setpoints:
    """Plays a session into a sink. report(stamp): called after each control step. rate: Hz, how often `step` wants to be called.

    Raises ValueError where the sink's parameters contradict each other, or where live mode is asked for and the arm would go on
    without us.
    """

    answered = -1  # no lockstep
    tick_waits = False

    def __init__(self, node: ManagedNode, p: SimpleNamespace, session: Session, arm: Arm, report: Callable[[int], None]) -> None:
        check(p)
        if p.mode == "live" and not p.sink_silence_timeout and p.sink_accept_no_timeout != ACCEPTANCE:
            raise ParameterError(
                "live mode is refused: sink.silence_timeout is 0, so nothing stops this arm when we fall silent. Give the time-out of its "
                f"own controller, or, where it has none, set sink.accept_no_timeout to '{ACCEPTANCE}'"
            )
        self.rate: float = p.sink_rate
        self._node, self._p, self._session, self._arm, self._report = node, p, session, arm, report
        if p.sink_rate < p.control_hz:
            raise ParameterError(
                f"sink.rate is {p.sink_rate:g} Hz, below control_hz, {p.control_hz:g}: give at least one setpoint an action"
            )
        self._topics = sink_topics(node, p)
        session.shadow = p.mode != "live"
        session.fade = 0.0 if p.sink_kind == "pose" else FADE
        self._closing = False  # the sink closes when the arm has come to rest
        self._last: int | None = None  # the last step, ns of the steady clock
        self._clock = -1, 0  # the newest ROS time, and since when it has been that, ns of the steady clock
        self.steps = self.late = self.blind = 0  # late: came more than half a period after their time
        self._sink: Sink | None = make_sink(node, p, DRY) if p.mode == "dry" else None
        self._shadow = node.create_publisher(PoseStamped, "shadow/target_pose", COMMAND) if p.mode == "shadow" else None
        self._disagreement, self._following = Disagreement(), Following()
        self._service = node.create_service(SetBool, "enable", self._on_enable)

    @property
    def refusal(self) -> str | None:
        """Why no goal may start now, and what to do."""
        if self._p.sink_frame and self._arm.pose is not None and self._arm.frame != self._p.sink_frame:
            return (
                f"the arm takes targets in {self._p.sink_frame!r} (sink.frame), but its pose is measured in {self._arm.frame!r}: "
                "measure it there (state_source, base_frame)"
            )
        if self._arm.lockstep:
            return f"the simulator is in lockstep, but sink.kind {self._p.sink_kind} plays in realtime: start it with mode:=realtime"
        if self._p.mode == "live" and (self._sink is None or self._closing):
            return "live mode is not enabled: call the service enable with data: true"
        return None

    def answer(self) -> None:
        """Nothing: setpoints go out in time."""

    def step(self, now: int, steady: int, success: bool) -> None:
        """One setpoint. Where the arm is not seen at all, or its simulator's time stands still, one that brakes."""
        pose, steps = self._arm.pose, self._session.steps
        self._count(steady)
        moved, stalled = self._moved(now, steady)
        if pose is None or stalled:
            self._send(self._session.brake(moved), now)
            self._close_at_rest()
            return
        setpoint = self._session.setpoint(now, pose, success, moved, self._arm.joints)
        self.blind += self._session.blind
        self._send(setpoint, now)
        if self._shadow is not None:
            self._disagreement.observe(setpoint, pose)
        elif self._p.mode == "live":
            self._following.observe(setpoint, pose, now)
        if self._session.steps > steps:
            self._report(now)
        self._close_at_rest()

    def watch(self) -> None:
        """A few times a second: somebody else who drives the arm is a fault."""
        if self._p.mode == "live" and self._sink is not None and (other := self._other_publisher(ours=1)):
            self._session.fault(FaultReason.SECOND_PUBLISHER, other)

    def disable(self) -> None:
        """Let go of the sink when the arm has come to rest: live mode has to be enabled anew."""
        if self._p.mode == "live":
            self._closing = self._sink is not None
            self._close_at_rest()

    def finish(self) -> None:
        """The node is deactivated: play the stop in its own time, then disable. Nothing is received meanwhile, so /clock stands still."""
        began = time.monotonic_ns()
        now, steady = moment(self._node.get_clock())
        moved, _ = self._moved(now, steady)
        while self._session.stopping:
            time.sleep(1.0 / self.rate)  # nothing else is to be done any more
            elapsed = time.monotonic_ns() - began
            self._send(self._session.brake(moved + (elapsed if elapsed < PATIENCE else LONG)), now + elapsed)
        self.disable()

    def values(self) -> dict[str, object]:
        """For diagnostics."""
        values: dict[str, object] = {
            "mode": self._p.mode,
            "enabled": self._p.mode == "live" and self._sink is not None and not self._closing,
            "setpoints": self.steps,
            "setpoints_late": self.late,
            "setpoints_blind": self.blind,
            "sink": ", ".join(self._topics if self._sink is None else self._sink.topics),
            "stops_on_silence": f"{self._p.sink_silence_timeout:g} s" if self._p.sink_silence_timeout else "no",
        }
        if self._sink is not None:
            values["gripper"] = self._sink.gripper
        if self._shadow is not None:
            values |= {f"disagreement_{name}": f"{value:.3g}" for name, value in self._disagreement.values().items()}
        if self._following.lag is not None:
            values["lag"] = f"{self._following.lag:.3f} s"
        return values

    def close(self) -> None:
        self._node.destroy_service(self._service)
        if self._shadow is not None:
            retire(self._node, self._shadow)
        self._close_sink()

    def _moved(self, now: int, steady: int) -> tuple[int, bool]:
        """The time in which the arm moves, and whether it stands still: a simulated arm moves in its simulator's time, which may go slower
        than ours. A clock that died must not keep an arm from stopping, so that after STALL ours counts."""
        if not self._node.get_clock().ros_time_is_active:
            return steady, False
        if now != self._clock[0]:
            self._clock = now, steady
        still = steady - self._clock[1]
        return now + max(still - STALL, 0), still > STALL

    def _send(self, setpoint: Setpoint | None, now: int) -> None:
        frame = self._session.frame
        if setpoint is None:
            return
        if self._sink is not None:
            self._sink.send(setpoint, now, frame)
        elif self._shadow is not None:
            self._shadow.publish(pose_to_msg(setpoint.position, setpoint.orientation, now, frame))

    def _count(self, steady: int) -> None:
        self.late += self.rate * (steady - (self._last or steady)) > 1.5e9
        self.steps, self._last = self.steps + 1, steady

    def _close_at_rest(self) -> None:
        if self._closing and not self._session.running and not self._session.stopping:
            self._close_sink()

    def _close_sink(self) -> None:
        if self._sink is not None:
            self._sink.close()
        self._sink, self._closing = None, False

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if not request.data:
            if self._p.mode == "live":
                self._session.cancel("live mode was disabled")
                self.disable()
            response.success, response.message = True, "disabled"
            return response
        problem = self._obstacle() or self._open_sink()
        response.success = problem is None
        response.message = problem or f"live: the next goal moves the arm through {', '.join(self._topics)}"
        if problem is not None:
            self._node.get_logger().error(f"live mode is refused: {problem}")
        self._node.diagnostics.publish()
        return response

    def _open_sink(self) -> str | None:
        """Why there is none that live mode may begin with."""
        made = self._sink is None
        try:
            self._sink = self._sink or make_sink(self._node, self._p)
        except EXPECTED as error:
            return str(error)
        problem = self._sink.problem()
        if problem is not None and made:
            self._close_sink()
        return problem

    def _obstacle(self) -> str | None:
        """Why live mode may not begin."""
        if self._p.mode != "live":
            return f"the mode is {self._p.mode}: set the parameter mode to live, and configure the node again"
        if self._node.state != "active":
            return f"the controller is {self._node.state}, not active"
        fault = self._session.guard.fault
        if fault is not None:
            return f"a fault is latched ({fault.message}): call reset_fault first"
        if self._closing:
            return "the arm is still coming to rest"
        if self._arm.missing is not None:
            return self._arm.missing
        if self._node.count_subscribers(self._topics[0]) == 0:
            return f"nobody listens on {self._topics[0]}: start the arm's controller, or correct sink.topic"
        return self._other_publisher(ours=0 if self._sink is None else 1)

    def _other_publisher(self, ours: int) -> str | None:
        """Who else publishes on the sink's topics. ours: how many publishers of a topic are this node's.

        Counted, because a second controller has this one's name.
        """
        for topic in self._topics:
            publishers: list[Any] = self._node.get_publishers_info_by_topic(topic)
            if len(publishers) > ours:
                names = ", ".join(sorted(set(map(owner, publishers))))
                return f"others publish on {topic} too ({names}, {len(publishers)} in all): stop whoever else drives the arm"
        return None
