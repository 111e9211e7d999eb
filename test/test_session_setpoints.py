"""Setpoints of a session on a virtual clock: an arm that follows with a lag, chunks fast and slow, stops, losses and leaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from virtual_arm import LIMITS, REPEATS, SECOND, START, STEP, TICK, UPRIGHT, Arm

from bitvla_ros.control.command import ArmState, Joints
from bitvla_ros.control.limits import FaultReason
from bitvla_ros.control.session import ControlConfig, Outcome, Session
from bitvla_ros.evaluation.proofs import seam
from bitvla_ros.policy.chunk import ActionChunk


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
    ramp, holds = said[: -1 - REPEATS], said[-1 - REPEATS :]
    assert all(s.hold for s in holds) and not any(s.hold for s in ramp) and not arm_.session.stopping
    assert len({s.position.tobytes() for s in holds}) == 1, "the hold is repeated, not moved"
    assert all(s.epoch == epoch and s.gripper == 1 for s in said)
    assert len(ramp) == pytest.approx(0.25 / 3.0 / 0.01, abs=2)
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
    first = next(s for s in arm_.run(0.4) if s is not None)
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
        arm_.step(stale)
    assert arm_.session.guard.fault.reason is FaultReason.STATE and arm_.now - stale.stamp == SECOND // 2 + 2 * TICK
    assert arm_.last.hold, "it had come to rest before"


@pytest.mark.parametrize(
    ("limits", "ticks"),
    [({"max_state_age": 0.2}, 10), ({"max_state_age": 2.0}, 16), ({"max_state_age": 2.0, "following_position": 0.06}, 12)],
    ids=["by the age", "by the angle", "by the distance"],
)
def test_a_pose_that_is_late_is_waited_for(limits, ticks):
    """Nobody leads an arm that he does not see: else a driver that is held up finds its arm far behind, or runs after a setpoint. How
    long it may be held up is one thing, how far its arm is led meanwhile another."""
    arm_ = Arm(replace(LIMITS, **limits))
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=80)
    arm_.run(0.4)
    late = arm_.state
    speeds = [arm_.step(late).linear[0] for _ in range(round(100 * limits["max_state_age"]))]
    assert arm_.session.blind
    assert speeds[ticks] > 0.24 and speeds[ticks + 1] == pytest.approx(speeds[ticks] - 0.03) and not any(speeds[ticks + 10 :])
    assert arm_.last.position[0] - late.position[0] < 0.08
    assert [s.linear[0] for s in arm_.run(0.05)] == pytest.approx([0.03, 0.06, 0.09, 0.12, 0.15]), "and it starts softly"
    assert arm_.session.running and not arm_.session.blind


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
        for _ in range(2):
            arm_.step(joints=Joints(np.array([joint]), arm_.now))
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


@pytest.mark.parametrize("late", [0, 12, 1000])
def test_after_a_pause_of_our_own_the_arm_is_looked_for_before_it_is_missed(late):
    """Newer poses, and joints, wait behind the timer that was late, or their driver stood still as long, with the whole machine, and takes
    some ticks to speak again."""
    limits = replace(LIMITS, joint_min=(-1.0,), joint_max=(1.0,), max_state_age=0.2)
    arm_ = Arm(limits)
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=80)
    arm_.run(0.3)
    before, joints = arm_.state, Joints(np.zeros(1), arm_.now)
    arm_.now += SECOND
    paused = arm_.now
    while arm_.session.running and arm_.now < paused + late * TICK:
        assert not arm_.step(before, joints=joints).linear.any()
    if late == 1000:
        assert arm_.session.guard.fault.reason is FaultReason.STATE and arm_.now - paused == pytest.approx(SECOND // 5, abs=2 * TICK)
    else:
        arm_.run(0.02)
        assert arm_.last.linear[0] > 0


def test_one_pause_after_another_does_not_keep_an_old_pose_alive():
    arm_ = Arm(period=8 * TICK)
    arm_.begin()
    arm_.step()
    arm_.accept((1.0,), repeat=80)
    old = arm_.state
    while arm_.session.running:
        assert not arm_.step(old).linear.any()
    assert arm_.session.guard.fault.reason is FaultReason.STATE and arm_.now - old.stamp < SECOND // 2 + 3 * arm_.period


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


def test_no_setpoint_of_twenty_thousand_leaps(monkeypatch: pytest.MonkeyPatch):
    """Whims and latencies from a seed, tasks, cancels and late timers, arms that lag: no step above v_max dt, none that differs from the
    last by more than a_max dt^2. `bitvla prove` plays a million."""
    monkeypatch.setattr(seam, "SEGMENT", 800)  # so that they are of 25 configurations
    promise = seam.prove_seam(20_000, 1, lambda count: None)
    assert promise.met, promise.examples
