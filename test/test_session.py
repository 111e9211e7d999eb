"""Player, motion and guard joined, on a virtual clock: what the controller node does with ticks, chunks, cancels and losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitvla_ros.control.command import ArmState, Setpoint
from bitvla_ros.control.limits import FaultReason, Limits
from bitvla_ros.control.player import ChunkRefused, PlayerConfig
from bitvla_ros.control.rotation import turn_between, turned
from bitvla_ros.control.session import ControlConfig, Outcome, Session
from bitvla_ros.policy.chunk import ActionChunk

STEP = 50_000_000
SECOND = 1_000_000_000
START = 100 * STEP


def arm(now: int, x: float = 0.0) -> ArmState:
    return ArmState(np.array([x, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]), now)


def chunk(session: Session, stamp: int, value: float = 0.5, **changes: object) -> ActionChunk:
    actions = np.full((8, 7), value, np.float32)
    return replace(ActionChunk(actions, stamp, STEP, epoch=session.epoch), **changes)


def begun(lockstep: bool, limit: int = 100 * STEP, config: ControlConfig | None = None) -> Session:
    session = Session(config or ControlConfig(PlayerConfig(fade_steps=0), Limits()))
    session.begin(START, limit, 0, lockstep=lockstep)
    return session


def tick(session: Session, k: int, success: bool = False):
    return session.tick(START + k * STEP, arm(START + k * STEP, 0.01 * k), success, k)


def test_every_task_has_a_new_epoch():
    session = begun(lockstep=True)
    first = session.epoch
    session.cancel("enough")
    assert session.begin(START, STEP, 0, lockstep=True) == first + 1


def test_one_task_at_a_time():
    with pytest.raises(RuntimeError, match="cancel"):
        begun(lockstep=True).begin(START, STEP, 0, lockstep=True)


def test_success_counts_only_after_a_step():
    session = begun(lockstep=True)
    session.accept(chunk(session, START), START, 0)
    assert tick(session, 0, success=True) is not None
    assert tick(session, 1, success=True) is None
    assert session.result.outcome is Outcome.SUCCESS and session.result.steps == 1 and session.result.chunks == 1


def test_a_lockstep_task_has_exactly_the_steps_of_its_limit():
    session = begun(lockstep=True, limit=11 * STEP)
    session.accept(chunk(session, START), START, 0)
    for k in range(8):
        assert tick(session, k) is not None
    assert tick(session, 8) is None and session.running
    session.accept(chunk(session, START + 8 * STEP), START + 8 * STEP, 0)
    for k in range(8, 11):
        assert tick(session, k) is not None
    assert tick(session, 11) is None
    assert session.result.outcome is Outcome.TIME_LIMIT and session.result.steps == 11


def test_success_at_the_limit_is_success():
    session = begun(lockstep=True, limit=STEP)
    session.accept(chunk(session, START), START, 0)
    tick(session, 0)
    tick(session, 1, success=True)
    assert session.result.outcome is Outcome.SUCCESS


def test_a_lockstep_cancel_answers_the_waiting_tick_with_one_hold():
    session = begun(lockstep=True)
    session.accept(chunk(session, START), START, 0)
    tick(session, 0)
    session.cancel("by the client")
    assert session.result.outcome is Outcome.CANCELLED
    assert tick(session, 1).hold
    assert tick(session, 2) is None, "then time stands still"


def test_a_cancel_can_leave_the_waiting_tick_to_the_next_task():
    session = begun(lockstep=True)
    session.cancel("the simulator was reset", stop=False)
    assert tick(session, 1) is None and not session.stopping


def test_a_realtime_cancel_ramps_down():
    session = begun(lockstep=False)
    session.accept(chunk(session, START), START, 0)
    tick(session, 0)
    session.cancel("by the client")
    commands = [tick(session, k) for k in range(1, 7)]
    assert [None if c is None else float(c.action[0]) for c in commands] == [0.375, 0.25, 0.125, 0.0, None, None]
    assert commands[3].hold


def test_after_a_realtime_success_the_arm_stops():
    session = begun(lockstep=False)
    session.accept(chunk(session, START), START, 0)
    tick(session, 0)
    assert float(tick(session, 1, success=True).action[0]) == 0.375
    assert session.result.outcome is Outcome.SUCCESS


@pytest.mark.parametrize("lockstep", [True, False])
def test_the_loss_of_the_policy_is_a_fault_and_latches(lockstep):
    session = begun(lockstep)
    session.accept(chunk(session, START), START, 0)
    tick(session, 0)
    session.policy_alive(False, 0)
    session.watch(SECOND)
    assert session.result.outcome is Outcome.FAULT and "policy" in session.result.reason
    stop = [tick(session, k) for k in range(1, 6)]
    assert any(c is not None and c.hold for c in stop)
    with pytest.raises(RuntimeError, match="latched"):
        session.begin(START, STEP, 0, lockstep=lockstep)
    session.reset_fault()
    session.begin(START, STEP, 0, lockstep=lockstep)


def test_a_command_outside_the_limits_ends_the_task_with_its_reason():
    session = begun(lockstep=True)
    session.accept(chunk(session, START, actions=np.array([[1.5, 0, 0, 0, 0, 0, 1]], np.float32)), START, 0)
    assert tick(session, 0).hold
    assert session.result.outcome is Outcome.FAULT and "offset" in session.result.reason and session.result.steps == 0
    assert tick(session, 1) is None


def test_a_simulator_clips_offsets_as_its_controller_does():
    session = begun(lockstep=True, config=ControlConfig())
    actions = np.full((8, 7), 1.5, np.float32)
    actions[:, 6] = 1
    session.accept(chunk(session, START, actions=actions), START, 0)
    assert tick(session, 0).action.tolist() == [1.0] * 7


def test_in_lockstep_the_refusal_of_the_awaited_chunk_is_a_fault():
    session = begun(lockstep=True)
    with pytest.raises(ChunkRefused):
        session.accept(chunk(session, START, np.nan), START, 0)
    assert session.result.outcome is Outcome.FAULT and "not finite" in session.result.reason
    assert session.guard.fault.reason is FaultReason.CHUNK


def test_a_stray_chunk_is_no_fault():
    session = begun(lockstep=True)
    for stray in (chunk(session, START + STEP), chunk(session, START, epoch=99)):
        with pytest.raises(ChunkRefused):
            session.accept(stray, START, 0)
    assert session.running


def test_a_simulator_of_another_rate_is_a_fault():
    session = begun(lockstep=True)
    session.accept(chunk(session, START), START, 0)
    tick(session, 0)
    session.tick(START + 2 * STEP // 3, arm(START), False, 0)
    assert session.guard.fault.reason is FaultReason.TICK and "control_hz" in session.result.reason


def test_lockstep_hangs_for_a_minute_at_most():
    session = begun(lockstep=True)
    session.watch(60 * SECOND)
    assert session.running
    session.watch(60 * SECOND + 1)
    assert session.result.outcome is Outcome.FAULT


def test_a_tick_is_progress_but_waiting_at_it_is_not():
    session = begun(lockstep=True)
    session.accept(chunk(session, START), START, 0)
    tick(session, 0)
    for k in range(1, 8):
        session.tick(START + k * STEP, arm(START), False, k * 50 * SECOND)
        session.watch(k * 50 * SECOND + SECOND)
        assert session.running
    waiting_since = 7 * 50 * SECOND + 55 * SECOND
    for _ in range(3):
        assert session.tick(START + 8 * STEP, arm(START), False, waiting_since) is None
        waiting_since += 30 * SECOND
        session.watch(waiting_since)
    assert session.result.outcome is Outcome.FAULT


def test_in_realtime_only_an_accepted_chunk_is_progress():
    session = begun(lockstep=False)
    session.accept(chunk(session, START), START, 5 * SECOND)
    for k in range(10):
        tick(session, k)
    with pytest.raises(ChunkRefused):
        session.accept(chunk(session, START, epoch=77), START, 14 * SECOND)
    session.watch(15 * SECOND)
    assert session.running
    session.watch(15 * SECOND + 1)
    assert session.result.outcome is Outcome.FAULT and "chunk" in session.result.reason


def test_a_realtime_task_ends_at_its_limit_though_no_chunk_came():
    session = begun(lockstep=False, limit=2 * STEP)
    assert tick(session, 0).hold and tick(session, 1).hold
    tick(session, 2)
    assert session.result.outcome is Outcome.TIME_LIMIT


def test_after_a_clamp_the_ramp_starts_from_what_went_out():
    session = begun(lockstep=False, config=ControlConfig(PlayerConfig(fade_steps=0, ramp_steps=2), Limits(clamp=("speed",), speed=0.135)))
    actions = np.zeros((1, 7), np.float32)
    actions[0, 0] = 1
    session.accept(chunk(session, START, actions=actions), START, 0)
    assert [float(tick(session, k).action[0]) for k in range(3)] == [0.5, 0.25, 0.0]


# Setpoints

UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
LIMITS = Limits(clamp=("offset",), speed=0.25, angular_speed=1.5, acceleration=3.0, angular_acceleration=15.0)
TICK = 10_000_000


class Arm:
    """A session that plays into an arm which follows with a lag, at 100 Hz unless said otherwise; every step between setpoints is
    checked against the limits, as whoever takes them would see it."""

    def __init__(self, limits: Limits = LIMITS, lag: float = 0.03, period: int = TICK, motion: str = "spring") -> None:
        self.session = Session(ControlConfig(PlayerConfig(), limits, motion))
        self.limits, self.lag, self.period = limits, lag, period
        self.now = START
        self.position, self.orientation = np.array([0.4, 0.0, 0.3]), UPRIGHT
        self.last: Setpoint | None = None
        self._velocity = np.zeros(3), np.zeros(3)
        self._time = 0

    @property
    def state(self) -> ArmState:
        return ArmState(self.position, self.orientation, self.now)

    def begin(self, limit: int = 1000 * SECOND) -> int:
        return self.session.begin(self.now, limit, self.now, lockstep=False)

    def accept(self, *rows: tuple[float, ...], age: int = 0, repeat: int = 1) -> None:
        """A chunk of these offsets (gripper closed), of an observation `age` ns ago."""
        actions = np.zeros((len(rows) * repeat, 7), np.float32)
        for k in range(len(actions)):
            actions[k, : len(rows[k // repeat])] = rows[k // repeat]
        actions[:, 6] = 1
        self.session.accept(ActionChunk(actions, self.now - age, STEP, epoch=self.session.epoch), self.now, self.now)

    def step(self, success: bool = False, joints: np.ndarray | None = None) -> Setpoint | None:
        setpoint = self.session.setpoint(self.now, self.state, success, self.now, joints)
        if setpoint is not None:
            self._check(setpoint)
        if self.last is not None:
            share = 1 - np.exp(-self.period / 1e9 / self.lag)
            self.position = self.position + share * (self.last.position - self.position)
            self.orientation = turned(self.orientation, share * turn_between(self.orientation, self.last.orientation))
        self.now += self.period
        return setpoint

    def run(self, seconds: float) -> list[Setpoint | None]:
        return [self.step() for _ in range(round(seconds * 1e9 / self.period))]

    def _check(self, setpoint: Setpoint) -> None:
        last, dt = self.last, (self.now - self._time) / 1e9
        self.last, self._time = setpoint, self.now
        if last is None or np.linalg.norm(last.position - self.position) > self.limits.following_position:
            self._velocity = setpoint.linear, setpoint.angular
            return
        moved = (setpoint.position - last.position) / dt, turn_between(last.orientation, setpoint.orientation) / dt
        caps = (self.limits.speed, self.limits.acceleration), (self.limits.angular_speed, self.limits.angular_acceleration)
        for velocity, before, (speed, acceleration) in zip(moved, self._velocity, caps, strict=True):
            assert np.linalg.norm(velocity) <= speed * (1 + 1e-6) + 1e-9
            assert np.linalg.norm(velocity - before) <= acceleration * dt * (1 + 1e-6) + 1e-9
        self._velocity = moved


def test_the_first_setpoint_is_a_hold_where_the_arm_is_and_commands_no_gripper():
    arm_ = Arm()
    arm_.begin()
    first = arm_.step()
    assert first.hold and first.position.tolist() == [0.4, 0.0, 0.3] and first.gripper == 0 and first.epoch == 1
    assert all(s.hold and s.position.tolist() == [0.4, 0.0, 0.3] for s in arm_.run(0.5)), "it stays, and is said again"


def test_an_exhausted_chunk_ends_in_a_hold_that_is_repeated():
    arm_ = Arm()
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=8)
    setpoints = arm_.run(1.5)
    assert not any(s.hold for s in setpoints[:55]) and all(s.hold for s in setpoints[-50:])
    assert setpoints[39].linear[0] == pytest.approx(0.25, abs=0.005) and setpoints[5].gripper == 1 and setpoints[-1].gripper == 1
    assert 0.08 < setpoints[-1].position[0] - 0.4 < 0.13
    assert arm_.session.running and arm_.session.chunks == 1 and arm_.session.steps == 31


@pytest.mark.parametrize("motion", ["spring", "scaled"])
@pytest.mark.parametrize("hz", [50, 100, 250])
def test_with_slow_inference_the_arm_moves_and_stops_and_moves_again(hz, motion):
    """2.7 s an inference, each from an observation of the arm at rest: every chunk is played whole, from its first action."""
    arm_ = Arm(period=SECOND // hz, motion=motion)
    arm_.begin()
    arm_.run(2.7)
    for k in range(3):
        start = arm_.last.position
        arm_.accept((0.0, 0.5), (0.0, 0.5), (0.0, 0.0, 0.5), (0.0, 0.0, 0.5), age=2_700_000_000, repeat=2)
        setpoints = arm_.run(2.7 + 1.0)
        moving = [not s.hold for s in setpoints]
        stopped = moving.index(False, 1)
        assert 0.4 < stopped / hz < 0.9 and not any(moving[stopped:]), "one motion, then rest"
        moved = setpoints[-1].position - start
        assert 0.02 < moved[1] < 0.035 and 0.02 < moved[2] < 0.045, f"chunk {k}"
        early = setpoints[round(0.15 * hz)].position - start
        assert early[1] > 4 * abs(early[2]), "the first action is the first to be played"
    assert arm_.session.chunks == 3 and arm_.session.guard.fault is None


def test_with_a_moving_arm_actions_that_have_elapsed_are_dropped():
    arm_ = Arm()
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=8)
    arm_.run(0.35)
    arm_.accept((0.0, 1.0), (0.0, 0.0, 1.0), age=200_000_000, repeat=4)  # four steps ago: the first four are over
    before = arm_.last.position
    arm_.run(0.15)
    moved = arm_.last.position - before
    assert moved[2] > 0.01 and moved[1] == 0


def test_a_cancel_stops_within_the_limits_and_then_nothing_is_said():
    arm_ = Arm()
    epoch = arm_.begin()
    arm_.step()
    arm_.accept((1.0, 0, 0, 0, 0, 1.0), repeat=8)
    arm_.run(0.3)
    before = arm_.last
    arm_.session.cancel("by the client")
    assert arm_.session.stopping
    stop = arm_.run(0.5)
    said = [s for s in stop if s is not None]
    assert said[-1].hold and not any(s.hold for s in said[:-1]) and not arm_.session.stopping
    assert all(s.epoch == epoch and s.gripper == 1 for s in said)
    assert len(said) == pytest.approx(0.25 / 3.0 / 0.01, abs=2)
    assert np.linalg.norm(said[-1].position - before.position) <= 0.25**2 / (2 * 3.0)
    assert stop[len(said) :] == [None] * (len(stop) - len(said))


def test_a_task_that_takes_over_in_a_stop_goes_on_from_it():
    arm_ = Arm(lag=0.1)
    for k in range(4):
        epoch = arm_.begin()
        arm_.step()
        arm_.accept((1.0 if k % 2 else -1.0, 0.5), repeat=8)
        arm_.run(0.25)
        arm_.session.cancel("another goal took over")
        arm_.run(0.02 * k)
        assert arm_.last.linear.any() and arm_.last.epoch == epoch
    assert arm_.session.guard.fault is None


def test_a_task_after_a_pause_begins_where_somebody_moved_the_arm_to():
    arm_ = Arm()
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=8)
    arm_.run(1.5)
    arm_.session.cancel("enough")
    arm_.run(0.6)
    arm_.position, arm_.last = np.array([0.44, 0.05, 0.3]), None
    arm_.begin()
    first = arm_.step()
    assert first.hold and first.position.tolist() == [0.44, 0.05, 0.3] and first.gripper == 1, "the gripper keeps its command"


def test_the_stop_of_a_task_that_never_moved_says_nothing_of_the_one_before():
    arm_ = Arm()
    arm_.begin()
    arm_.run(0.1)
    arm_.session.cancel("enough")
    arm_.run(1.0)
    arm_.begin()
    arm_.session.cancel("at once")
    assert arm_.step() is None and not arm_.session.stopping


@pytest.mark.parametrize(("position", "age"), [(np.nan, 0), (0.4, SECOND)])
def test_without_a_good_pose_a_task_ends_before_anything_is_said(position, age):
    session = Session(ControlConfig(limits=LIMITS))
    session.begin(START, 10 * SECOND, START, lockstep=False)
    state = ArmState(np.array([position, 0, 0]), UPRIGHT, START - age)
    assert session.setpoint(START, state, False, START) is None
    assert session.result.outcome is Outcome.FAULT and session.guard.fault.reason is FaultReason.STATE
    assert session.setpoint(START + TICK, state, False, START + TICK) is None


def test_a_pose_that_goes_stale_stops_the_arm():
    arm_ = Arm()
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=40)
    stale = arm_.state
    while arm_.session.running:
        moving = arm_.last
        arm_._check(arm_.session.setpoint(arm_.now, stale, False, arm_.now))
        arm_.now += TICK
    assert arm_.session.guard.fault.reason is FaultReason.FOLLOWING or arm_.session.guard.fault.reason is FaultReason.STATE
    assert moving.linear[0] > 0
    said = [s for s in arm_.run(0.5) if s is not None]
    assert said[-1].hold and said[-1].linear[0] == 0


@pytest.mark.parametrize("shadow", [True, False])
@pytest.mark.parametrize("fade", [0.0, 2.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pose_that_is_not_finite_stops_the_arm_and_reaches_no_setpoint(shadow, fade, bad):
    for position, orientation in (((bad, 0, 0), UPRIGHT), ((0.4, 0, 0.3), np.array([0, 0, 0, bad]))):
        arm_ = Arm()
        arm_.session.shadow, arm_.session.fade = shadow, fade
        arm_.begin()
        arm_.step()
        arm_.accept((1.0, 0, 0, 0, 0, 1.0), repeat=8)
        arm_.run(0.2)
        state = ArmState(np.array(position, np.float64), orientation, arm_.now)
        said = [arm_.session.setpoint(arm_.now + k * TICK, state, False, arm_.now + k * TICK) for k in range(30)]
        assert arm_.session.guard.fault.reason is FaultReason.STATE
        said = [s for s in said if s is not None]
        assert said[-1].hold and all(np.isfinite([*s.position, *s.orientation, *s.linear, *s.angular]).all() for s in said)


def test_an_arm_that_does_not_follow_is_a_fault():
    arm_ = Arm(lag=1e9)
    arm_.begin()
    arm_.step()
    arm_.accept((1.0, 0, 0, 0, 0, 0), repeat=40)
    arm_.run(1.5)
    assert arm_.session.result.outcome is Outcome.FAULT and arm_.session.guard.fault.reason is FaultReason.FOLLOWING
    assert arm_.last.hold and arm_.last.position[0] - 0.4 < 0.1 + 0.25**2 / (2 * 3.0)


@pytest.mark.parametrize("motion", ["spring", "scaled"])
def test_an_arm_that_touches_something_is_not_pushed_further_and_further_and_comes_back_at_once(motion):
    """A quarter of full scale for 2 s would be 14 cm. As with the training controller, what a blocked arm is asked for does not add up.
    But an arm that stays behind for seconds is none that touches something for a moment."""
    arm_ = Arm(lag=1e9, motion=motion)
    arm_.begin()
    arm_.step()
    arm_.accept((0.25,), repeat=60)
    arm_.run(2.0)
    pressed = arm_.last.position[0] - 0.4
    assert 0.06 <= pressed < 0.08 and arm_.session.running
    arm_.accept((-1.0,), repeat=8)
    arm_.run(0.4)
    assert arm_.last.position[0] - 0.4 < pressed - 0.05
    arm_.accept((0.25,), repeat=100)
    arm_.run(5.0)
    assert arm_.session.guard.fault.reason is FaultReason.FOLLOWING and "for 2 s" in arm_.session.result.reason


def test_a_joint_at_its_limit_is_a_fault():
    arm_ = Arm(replace(LIMITS, joint_min=(-1.0,), joint_max=(1.0,)))
    arm_.begin()
    for joint in (0.9, 0.94, 0.96):
        arm_.step(joints=np.array([joint]))
        arm_.step(joints=np.array([joint]))
    assert arm_.session.guard.fault.reason is FaultReason.JOINT


def test_offsets_beyond_full_scale_are_a_fault_where_they_are_not_clamped():
    for clamp, passes in ((("offset",), True), ((), False)):
        arm_ = Arm(replace(LIMITS, clamp=clamp))
        arm_.begin()
        arm_.step()
        arm_.accept((1.5,), repeat=8)
        arm_.run(0.1)
        assert arm_.session.running == passes
        assert passes or arm_.session.guard.fault.reason is FaultReason.OFFSET


def test_a_pause_of_our_own_is_no_leap():
    """Whatever moves the arm has heard nothing meanwhile, and may have stopped it."""
    arm_ = Arm()
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=40)
    arm_.run(0.4)
    before = arm_.last
    arm_.now += SECOND
    after = arm_.step()
    assert not after.linear.any() and after.position.tolist() == before.position.tolist()
    assert [s.linear[0] for s in arm_.run(0.05)] == pytest.approx([0.03, 0.06, 0.09, 0.12, 0.15]), "and starts softly"


def test_a_jump_of_the_clock_is_no_leap():
    """ROS time leaps, the steady clock does not: the plan is over, and the arm slows down."""
    arm_ = Arm()
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=20)
    arm_.run(0.3)
    steady, leap = arm_.now, 5 * SECOND
    for k in range(100):
        now = steady + k * TICK
        state = ArmState(arm_.position, UPRIGHT, now + leap)
        setpoint = arm_.session.setpoint(now + leap, state, False, now)
        arm_.now = now
        arm_._check(setpoint)
        arm_.position = setpoint.position
    assert setpoint.hold and arm_.session.running


def test_success_and_the_time_limit_end_a_task_with_a_stop():
    for end in ("success", "limit"):
        arm_ = Arm()
        arm_.begin(limit=SECOND // 5)
        assert arm_.step(success=True).hold, "success counts only after a step"
        arm_.accept((1.0,), repeat=8)
        arm_.run(0.15)
        assert arm_.session.running and arm_.session.steps == 4
        after = [arm_.step(success=end == "success") for _ in range(30)]
        assert arm_.session.result.outcome is (Outcome.SUCCESS if end == "success" else Outcome.TIME_LIMIT)
        assert after[-1] is None and [s for s in after if s is not None][-1].hold


def test_a_lost_policy_stops_the_arm():
    arm_ = Arm()
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=8)
    arm_.run(0.2)
    arm_.session.policy_alive(False, arm_.now)
    arm_.session.watch(arm_.now + SECOND)
    assert arm_.session.result.outcome is Outcome.FAULT
    said = [s for s in arm_.run(0.5) if s is not None]
    assert np.linalg.norm(said[0].linear) < 0.25 and said[-1].hold


def test_in_shadow_setpoints_start_from_wherever_somebody_moves_the_arm():
    """The driver goes one way and the policy would go another, for as long as it takes; nothing is a fault."""
    session = Session(ControlConfig(limits=LIMITS))
    session.shadow = True
    session.begin(START, 100 * SECOND, START, lockstep=False)
    position, now = np.array([0.4, 0.0, 0.3]), START
    for k in range(300):
        if k % 30 == 1:
            actions = np.zeros((8, 7), np.float32)
            actions[:, 0] = 1
            session.accept(ActionChunk(actions, now - 100_000_000 if k > 1 else now, STEP, epoch=session.epoch), now, now)
        setpoint = session.setpoint(now, ArmState(position, UPRIGHT, now), False, now)
        assert np.linalg.norm(setpoint.position - position) <= 0.25 * 0.01 + 1e-12
        position = position + np.array([0.0, -0.003, 0.0])
        now += TICK
    assert session.running and session.guard.fault is None
    assert setpoint.linear[0] > 0.2 and setpoint.linear[1] == 0


def test_a_lockstep_task_has_no_setpoints():
    with pytest.raises(RuntimeError, match="tick"):
        begun(lockstep=True).setpoint(START, arm(START), False, START)


@pytest.mark.timeout(600)
def test_no_setpoint_of_a_hundred_thousand_leaps():
    """Whims and latencies from a seed, tasks, cancels and late timers, arms that lag: no step above v_max dt, none that differs from the
    last by more than a_max dt^2. `bitvla prove` plays a million."""
    from bitvla_ros.evaluation.proofs.seam import prove_seam

    promise = prove_seam(100_000, 1, lambda count: None)
    assert promise.met, promise.examples
