"""The guard on a virtual clock: setpoints for an arm."""

from __future__ import annotations

import numpy as np
import pytest
from guards import NOW, SECOND, UPRIGHT, arm, guard, lose
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.control.command import ArmState, Joints, Setpoint
from bitvla_ros.control.guard import Guard
from bitvla_ros.control.limits import FaultReason
from bitvla_ros.control.rotation import turn_between, turned

TICK = 10_000_000
ROBOT = {"speed": 0.25, "angular_speed": 1.5, "acceleration": 3.0, "angular_acceleration": 15.0}
REST = np.zeros(3)


def moving(
    linear=(0.0, 0.0, 0.0), angular=(0.0, 0.0, 0.0), start=(0.0, 0.0, 0.0), elapsed: float = 0.01, gripper: float = 0.0, **changes: object
) -> Setpoint:
    """The setpoint that follows one at `start` after `elapsed` s at these velocities."""
    v, w = np.array(linear, np.float64), np.array(angular, np.float64)
    fields = {
        "position": np.array(start, np.float64) + v * elapsed,
        "orientation": turned(UPRIGHT, w * elapsed) if (np.abs(w) < 1e3).all() else UPRIGHT,
        "linear": v,
        "angular": w,
        "gripper": gripper,
        "hold": False,
        "epoch": 1,
    }
    return Setpoint(**{**fields, **changes})


def placed(position=(0.0, 0.0, 0.0), **limits: object) -> Guard:
    """A guard whose last setpoint was a hold at this position, one tick before NOW. Outside the workspace is where an arm drifted to."""
    made = guard(**{**ROBOT, **limits})
    inside = np.clip(position, made.limits.workspace_min, made.limits.workspace_max)
    assert made.place(NOW - TICK, arm(inside, NOW - TICK), NOW - TICK).hold
    made.setpoints.rebase(arm(position))
    return made


JOINTS = {"joint_min": (-1.0, -2.0), "joint_max": (1.0, 2.0), "joint_margin": 0.1}


@pytest.mark.parametrize(
    ("limits", "bad", "state", "reason"),
    [
        ({}, moving(position=np.array([np.nan, 0, 0])), arm(), FaultReason.NON_FINITE),
        ({}, moving(orientation=np.array([0, 0, 0, np.inf])), arm(), FaultReason.NON_FINITE),
        ({}, moving(linear=(0, np.nan, 0), position=REST), arm(), FaultReason.NON_FINITE),
        ({}, moving(angular=(0, 0, np.inf)), arm(), FaultReason.NON_FINITE),
        ({}, moving(gripper=np.nan), arm(), FaultReason.NON_FINITE),
        ({}, moving(position=np.zeros(2)), arm(), FaultReason.DIMENSION),
        ({}, moving(orientation=REST), arm(), FaultReason.DIMENSION),
        ({}, moving(orientation=np.zeros(4)), arm(), FaultReason.DIMENSION),
        ({}, moving(orientation=2 * UPRIGHT), arm(), FaultReason.DIMENSION),
        ({}, moving(gripper=1.1), arm(), FaultReason.GRIPPER),
        ({}, moving((0.01, 0, 0), hold=True), arm(), FaultReason.OFFSET),
        ({}, moving(angular=(0.01, 0, 0), hold=True), arm(), FaultReason.OFFSET),
        ({"acceleration": 1e3}, moving((0.2, 0.2, 0)), arm(), FaultReason.SPEED),
        ({"angular_acceleration": 1e4}, moving(angular=(0, 1.2, 1.2)), arm(), FaultReason.ANGULAR_SPEED),
        ({}, moving((0.0301, 0, 0)), arm(), FaultReason.ACCELERATION),
        ({}, moving(angular=(0, 0, 0.1501)), arm(), FaultReason.ANGULAR_ACCELERATION),
        ({}, moving(position=np.array([0.0026, 0, 0])), arm(), FaultReason.STEP),
        ({}, moving(orientation=turned(UPRIGHT, np.array([0, 0.016, 0]))), arm(), FaultReason.STEP),
        ({"acceleration": 1e3}, moving((0.25, 0, 0), position=np.array([0.0026, 0, 0])), arm(), FaultReason.STEP),
        ({}, moving(position=np.array([0.0004, 0, 0])), arm(), FaultReason.STEP),  # at rest, it says
        ({}, moving(orientation=turned(UPRIGHT, np.array([0, 0.002, 0]))), arm(), FaultReason.STEP),
        ({}, moving(), arm((0.101, 0, 0)), FaultReason.FOLLOWING),
        ({}, moving(), ArmState(REST, turned(UPRIGHT, np.array([0, 0, 0.51])), NOW), FaultReason.FOLLOWING),
        ({"workspace_max": (1e-5, 1, 1)}, moving((0.03, 0, 0)), arm(), FaultReason.WORKSPACE),
        ({"workspace_min": (-1, -1, -1e-5)}, moving((0, 0, -0.03)), arm(), FaultReason.WORKSPACE),
        ({"workspace_max": (-0.1, 1, 1)}, moving((0.01, 0, 0)), arm(), FaultReason.WORKSPACE),
        ({"workspace_min": (-1, 0.1, -1)}, moving((0, -0.01, 0)), arm(), FaultReason.WORKSPACE),
        ({"gripper_rate": 0.5}, moving(gripper=-1.0), arm(), FaultReason.GRIPPER_RATE),
        ({}, moving((0.01, 0, 0)), arm((0, np.nan, 0)), FaultReason.STATE),
        ({}, moving((0.01, 0, 0)), ArmState(REST, np.zeros(4), NOW), FaultReason.STATE),
        ({}, moving((0.01, 0, 0)), arm(stamp=NOW - SECOND), FaultReason.STATE),
        ({}, moving((0.01, 0, 0)), arm(stamp=NOW + SECOND), FaultReason.STATE),
    ],
)
def test_a_setpoint_outside_a_limit_is_a_fault_that_stops_the_arm(limits, bad, state, reason):
    checked = placed(**limits)
    answer = checked.check_setpoint(NOW, bad, state)
    assert checked.fault is not None and checked.fault.reason is reason
    assert answer.hold and not answer.position.any() and np.isfinite(answer.orientation).all() and answer.gripper == 0


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({}, moving((0.0299, 0, 0), (0, 0, 0.1499), gripper=1.0)),
        ({"acceleration": 1e3}, moving((0.25, 0, 0))),
        ({"angular_acceleration": 1e4}, moving(angular=(0, 0, 1.5))),
        ({"workspace_max": (0.001, 1, 1)}, moving((0.03, 0, 0))),
        ({"workspace_max": (-0.1, 1, 1)}, moving((-0.02, 0.01, 0))),  # outside, and on the way back
        ({"workspace_max": (-0.1, 1, 1)}, moving(hold=True)),
    ],
)
def test_a_setpoint_within_the_limits_passes_as_it_is(limits, good):
    checked = placed(**limits)
    assert checked.check_setpoint(NOW, good, arm((0.099, 0, 0))) is good
    assert checked.fault is None and checked.setpoints.last is good


def test_acceleration_counts_from_the_last_setpoint_and_on_the_steady_clock():
    checked = placed()
    for k, velocity in enumerate((0.03, 0.06, 0.03, 0.0)):
        last = checked.setpoints.last
        asked = moving((velocity, 0, 0), start=last.position)
        assert checked.check_setpoint(NOW + 7 * k, asked, arm(), steady=NOW + k * TICK) is asked, checked.fault
    checked.check_setpoint(NOW, moving((0.031, 0, 0), start=asked.position), arm(), steady=NOW + 4 * TICK)
    assert checked.fault.reason is FaultReason.ACCELERATION


def test_the_box_is_left_by_no_stop():
    """The fault comes where a stop at the limit still ends inside."""
    checked = placed(workspace_max=(0.05, 1, 1))
    position, speed, tick = np.zeros(3), 0.0, 0
    while checked.fault is None:
        speed = min(0.25, speed + 0.03)
        position = position + np.array([speed, 0, 0]) * 0.01
        asked = moving((speed, 0, 0), position=position)
        answer = checked.check_setpoint(NOW + tick * TICK, asked, arm(position, NOW + tick * TICK))
        tick += 1
    assert checked.fault.reason is FaultReason.WORKSPACE and answer.linear[0] > 0.2
    while not answer.hold:
        answer = checked.stop_setpoint(NOW + tick * TICK)
        tick += 1
    assert 0.045 < answer.position[0] <= 0.05


def test_a_stop_of_setpoints_decelerates_at_the_limits_to_a_hold():
    checked = placed()
    asked = moving((0.03, 0, 0), (0, 0, 0.1), gripper=1.0)
    checked.check_setpoint(NOW, asked, arm())
    checked.end()
    first, second = (checked.check_setpoint(NOW + k * TICK // 2, asked, arm()) for k in (1, 2))
    np.testing.assert_allclose([first.linear[0], second.linear[0]], [0.015, 0.0], atol=1e-12)
    assert not first.hold and second.hold and second.gripper == 1 and first.epoch == 1
    np.testing.assert_allclose(second.position, asked.position + first.linear * 0.005)
    assert checked.stop_setpoint(NOW + SECOND, 1).position.tolist() == second.position.tolist()


def test_a_setpoint_of_a_dropped_epoch_never_passes():
    checked = placed()
    checked.end()
    assert checked.check_setpoint(NOW, moving((0.01, 0, 0)), arm()).hold
    checked.begin(2, 0, lockstep=False)
    assert checked.check_setpoint(NOW + TICK, moving((0.01, 0, 0)), arm()).hold and checked.fault is None
    newer = moving((0.01, 0, 0), epoch=2)
    assert checked.check_setpoint(NOW + 2 * TICK, newer, arm()) is newer


def test_after_a_fault_no_setpoint_passes_until_a_reset():
    checked = placed()
    checked.trip(FaultReason.ESTOP, "somebody pressed it")
    checked.begin(2, 0, lockstep=False)
    assert checked.check_setpoint(NOW, moving((0.01, 0, 0), epoch=2), arm()).hold
    checked.reset()
    checked.begin(3, 0, lockstep=False)
    allowed = moving((0.01, 0, 0), epoch=3)
    assert checked.check_setpoint(NOW + TICK, allowed, arm()) is allowed


def test_where_nothing_went_out_a_bad_pose_lets_nothing_out():
    checked = guard(**ROBOT)
    assert checked.check_setpoint(NOW, moving((0.01, 0, 0)), arm((np.nan, 0, 0))) is None
    assert checked.fault.reason is FaultReason.STATE
    unplaced = guard(**ROBOT)
    assert unplaced.place(NOW, arm(stamp=NOW - SECOND), NOW) is None
    assert unplaced.fault.reason is FaultReason.STATE and unplaced.stop_setpoint(NOW) is None


def test_no_setpoint_passes_before_the_arm_was_placed():
    checked = guard(**ROBOT)
    with pytest.raises(RuntimeError, match="place"):
        checked.check_setpoint(NOW, moving((0.01, 0, 0)), arm())


@pytest.mark.parametrize("outside", [(0.51, 0, 0), (0, -0.51, 0), (0, 0, 0.6)])
def test_a_pose_outside_the_workspace_is_no_first_setpoint(outside):
    checked = guard(**ROBOT, workspace_min=(-0.5, -0.5, -0.5), workspace_max=(0.5, 0.5, 0.5))
    assert checked.place(NOW, arm(outside), NOW) is None and checked.stop_setpoint(NOW) is None
    assert checked.fault.reason is FaultReason.WORKSPACE and "move it inside" in checked.fault.message


def test_an_arm_that_rests_a_little_outside_begins_at_the_edge():
    checked = guard(**ROBOT, workspace_min=(-0.5, -0.5, -0.5), workspace_max=(0.5, 0.5, 0.5))
    assert checked.place(NOW, arm((0.504, 0.1, -0.503)), NOW).position.tolist() == [0.5, 0.1, -0.5] and checked.fault is None


def test_what_the_gripper_did_in_a_time_that_is_over_does_not_count():
    checked = placed(gripper_rate=4.5)
    for k in range(5):
        steady = NOW - k * 10 * SECOND
        checked.looks(NOW, steady)
        for gripper in (1.0, -1.0):
            checked.check_setpoint(NOW, moving(gripper=gripper), arm(), steady=steady)
    assert checked.fault is None


def test_a_reset_without_a_fault_leaves_the_task_guarded():
    checked = placed()
    checked.reset()
    good = moving((0.01, 0, 0))
    assert checked.check_setpoint(NOW, good, arm()) is good and not checked.stopping
    lose(checked)
    assert checked.fault.reason is FaultReason.POLICY_LOST


def test_an_arm_may_be_far_behind_for_a_moment_only():
    checked = placed()
    for position, tick in (((0.06, 0, 0), 0), ((0.06, 0, 0), 199), ((0.04, 0, 0), 200), ((0.06, 0, 0), 201), ((0.06, 0, 0), 401)):
        checked.check_setpoint(NOW, moving(), arm(position), steady=NOW + tick * TICK)
        assert checked.fault is None
    checked.check_setpoint(NOW, moving(), ArmState(REST, turned(UPRIGHT, np.array([0, 0, 0.3])), NOW), steady=NOW + 402 * TICK)
    assert checked.fault.reason is FaultReason.FOLLOWING


def test_the_gripper_may_travel_so_far_in_any_second_and_no_further():
    checked, commanded = placed(gripper_rate=5.5), [1.0, -1.0, 1.0, 1.0]
    for k, gripper in enumerate(commanded):
        assert checked.check_setpoint(NOW, moving(gripper=gripper), arm(), steady=NOW + k * SECOND // 3).gripper == gripper
    after = NOW + SECOND + TICK  # the first of three motions is no longer in the last second
    checked.check_setpoint(NOW, moving(gripper=0.4), arm(), steady=after)
    assert checked.fault is None
    checked.check_setpoint(NOW, moving(gripper=-1.0), arm(), steady=after + TICK)
    assert checked.fault.reason is FaultReason.GRIPPER_RATE


@pytest.mark.parametrize(
    ("joints", "fine"),
    [
        (None, True),
        ((0.0, 0.0), True),
        ((0.89, -1.89), True),
        ((0.91, 0.0), False),
        ((0.0, -1.91), False),
        ((0.0, 5.0), False),
        ((0.0,), False),
        ((0.0, np.nan), False),
    ],
)
def test_a_joint_keeps_its_margin(joints, fine):
    checked = placed(**JOINTS)
    for k, measured in enumerate(((0.0, 0.0), joints)):
        measured = None if measured is None else Joints(np.array(measured), NOW)
        checked.check_setpoint(NOW, moving(), arm(), measured, steady=NOW + k * TICK)
    assert (checked.fault is None) == fine
    assert fine or checked.fault.reason is FaultReason.JOINT


def test_a_joint_that_begins_in_its_margin_may_leave_it_but_go_no_further_in():
    checked = placed(**JOINTS)
    for k, joint in enumerate((0.95, 0.951, 0.8, 0.95)):
        checked.check_setpoint(NOW, moving(), arm(), Joints(np.array([joint, 0.0]), NOW), steady=NOW + k * TICK)
        assert checked.fault is None
    checked.check_setpoint(NOW, moving(), arm(), Joints(np.array([0.953, 0.0]), NOW), steady=NOW + 5 * TICK)
    assert checked.fault.reason is FaultReason.JOINT and "0.953" in checked.fault.message


@pytest.mark.parametrize(("age", "fine"), [(0.4, True), (0.6, False), (-0.6, False)])
def test_joints_whose_time_is_not_now_are_no_joints(age, fine):
    """Else a joint's limit would be kept by the word of a driver that is gone."""
    measured = Joints(np.zeros(2), NOW - round(age * SECOND))
    checked = placed(**JOINTS)
    checked.check_setpoint(NOW, moving(), arm(), measured, steady=NOW + TICK)
    assert (checked.fault is None) == fine
    assert fine or (checked.fault.reason is FaultReason.STATE and "joints" in checked.fault.message)
    without_limits = placed()
    without_limits.check_setpoint(NOW, moving(), arm(), measured, steady=NOW + TICK)
    assert without_limits.fault is None


_SMALL = st.one_of(st.floats(-0.3, 0.3), st.floats(), st.just(0.0))
_VECTORS = st.lists(_SMALL, min_size=3, max_size=3)


@settings(max_examples=200, deadline=None)
@given(asked=st.lists(st.tuples(_VECTORS, _VECTORS, st.booleans(), _SMALL, st.booleans(), st.integers(1, 2)), min_size=1, max_size=15))
def test_whatever_setpoints_come_what_goes_out_is_finite_and_within_every_limit(asked):
    checked = placed(workspace_min=(-0.01,) * 3, workspace_max=(0.01,) * 3)
    limits, last = checked.limits, checked.setpoints.last
    for k, (linear, angular, honest, gripper, hold, epoch) in enumerate(asked):
        asked_for = moving(linear, REST, start=last.position, gripper=gripper, hold=hold, epoch=epoch)
        if not honest:
            asked_for = moving(linear, angular, position=np.array(angular), gripper=gripper, hold=hold, epoch=epoch)
        answer = checked.check_setpoint(NOW, asked_for, arm(last.position), steady=NOW + k * TICK)
        for velocity, before, moved, speed, acceleration in (
            (answer.linear, last.linear, answer.position - last.position, limits.speed, limits.acceleration),
            (
                answer.angular,
                last.angular,
                turn_between(last.orientation, answer.orientation),
                limits.angular_speed,
                limits.angular_acceleration,
            ),
        ):
            assert np.isfinite(moved).all() and np.linalg.norm(velocity) <= speed * 1.001
            assert np.linalg.norm(velocity - before) <= acceleration * 0.01 * 1.001
            assert np.linalg.norm(moved) <= speed * 0.01 * 1.001
        assert np.abs(answer.position).max() <= 0.01 * 1.001 and abs(answer.gripper) <= 1
        assert checked.fault is None or np.linalg.norm(answer.linear) <= np.linalg.norm(last.linear), "a stop only slows down"
        last = answer
