"""The guard on a virtual clock: a simulator's commands, faults, stops and deadlines."""

from __future__ import annotations

import numpy as np
import pytest
from guards import NOW, SECOND, arm, command, guard, lose
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.control.command import ArmState, Command
from bitvla_ros.control.guard import Guard
from bitvla_ros.control.limits import CLAMPS, FaultReason, Limits


def test_a_command_within_the_limits_passes_unchanged_to_the_bit():
    random = np.random.default_rng(0)
    checked = guard()
    for _ in range(200):
        action = random.uniform(-1, 1, 7).astype(np.float32)
        assert checked.check(NOW, Command(action, False, 1), arm()).action.tobytes() == action.tobytes()
    assert checked.fault is None


def test_full_scale_in_all_axes_and_its_reversal_is_what_the_training_controller_takes():
    checked = guard()
    for sign in (1, -1, 1):
        assert checked.check(NOW, command(*[sign] * 6), arm()).action[0] == sign
    assert checked.fault is None


@pytest.mark.parametrize(
    ("limits", "bad", "state", "reason"),
    [
        ({}, command(np.nan), arm(), FaultReason.NON_FINITE),
        ({}, command(0, 0, 0, 0, 0, np.inf), arm(), FaultReason.NON_FINITE),
        ({}, command(gripper=np.nan), arm(), FaultReason.NON_FINITE),
        ({}, Command(np.zeros(6, np.float32), False, 1), arm(), FaultReason.DIMENSION),
        ({}, command(1.001), arm(), FaultReason.OFFSET),
        ({}, command(0, 0, 0, 0, 0, -1.001), arm(), FaultReason.OFFSET),
        ({}, command(0.5, hold=True), arm(), FaultReason.OFFSET),
        ({}, command(gripper=1.1), arm(), FaultReason.GRIPPER),
        ({}, command(gripper=-2, hold=True), arm(), FaultReason.GRIPPER),
        ({"workspace_max": (0.3, 1.0, 1.0)}, command(0.1), arm((0.31, 0, 0)), FaultReason.WORKSPACE),
        ({"workspace_max": (0.3, 1.0, 1.0)}, command(1), arm((0.29, 0, 0)), FaultReason.WORKSPACE),
        ({"workspace_min": (-1.0, -1.0, 0.0)}, command(0, 0, -0.1), arm((0, 0, -0.001)), FaultReason.WORKSPACE),
        ({"speed": 0.1}, command(0.5), arm(), FaultReason.SPEED),
        ({"angular_speed": 0.5}, command(0, 0, 0, 0.5), arm(), FaultReason.ANGULAR_SPEED),
        ({"acceleration": 2.0}, command(0.5), arm(), FaultReason.ACCELERATION),
        ({"angular_acceleration": 10.0}, command(0, 0, 0, 0.5), arm(), FaultReason.ANGULAR_ACCELERATION),
        ({}, command(0.1), arm((np.nan, 0, 0)), FaultReason.STATE),
        ({}, command(0.1), arm(stamp=NOW - SECOND), FaultReason.STATE),
        ({}, command(0.1), arm(stamp=NOW + SECOND), FaultReason.STATE),
        ({}, command(0.1), ArmState(np.zeros(3), np.zeros(4), NOW), FaultReason.STATE),
    ],
)
def test_a_command_outside_a_limit_is_a_fault_that_stops_the_arm(limits, bad, state, reason):
    checked = guard(**limits)
    answer = checked.check(NOW, bad, state)
    assert checked.fault is not None and checked.fault.reason is reason
    assert answer.hold and not answer.action[:6].any() and np.isfinite(answer.action).all()


def test_a_speed_of_full_scale_is_what_was_measured():
    """Sustained full scale moves 13.5 mm and 0.07 rad a step of 50 ms: 0.27 m/s, 1.4 rad/s."""
    for limits, passes in (
        ({"speed": 0.2701}, True),
        ({"speed": 0.2699}, False),
        ({"angular_speed": 1.4001}, True),
        ({"angular_speed": 1.3999}, False),
    ):
        checked = guard(**limits)
        checked.check(NOW, command(1, 0, 0, 1, 0, 0), arm())
        assert (checked.fault is None) == passes, limits


def test_the_way_back_into_the_workspace_is_open():
    checked = guard(workspace_max=(0.3, 1.0, 1.0))
    assert checked.check(NOW, command(-0.5, 0.5), arm((0.4, 0, 0))).action[0] == -0.5
    assert checked.check(NOW, command(0.0, 0.5), arm((0.4, 0, 0))).action[1] == 0.5
    assert checked.check(NOW, command(0.5), arm((-2.1, 0, 0))).action[0] == 0.5
    assert checked.fault is None


@pytest.mark.parametrize(
    ("name", "limits", "asked", "given_"),
    [
        ("offset", {}, (1.5, 0, 0, -3.0), (1, 0, 0, -1)),
        ("speed", {"speed": 0.135}, (1, 0, 0), (0.5, 0, 0)),
        ("angular_speed", {"angular_speed": 0.7}, (0, 0, 0, 0, 1), (0, 0, 0, 0, 0.5)),
        ("acceleration", {"acceleration": 2.7}, (1, 0, 0), (0.5, 0, 0)),
        ("angular_acceleration", {"angular_acceleration": 14.0}, (0, 0, 0, 1), (0, 0, 0, 0.5)),
    ],
)
def test_a_limit_that_clamps_brings_the_command_back_inside(name, limits, asked, given_):
    checked = guard(clamp=(name,), **limits)
    answer = checked.check(NOW, command(*asked), arm())
    assert checked.fault is None
    np.testing.assert_allclose(answer.action[: len(given_)], given_, rtol=1e-5)
    assert answer.action.dtype == np.float32


def test_a_clamp_does_not_let_nonsense_through():
    checked = guard(clamp=CLAMPS)
    assert checked.check(NOW, command(np.nan), arm()).hold
    assert checked.fault.reason is FaultReason.NON_FINITE


def test_the_first_fault_stays_until_a_reset():
    checked = guard()
    checked.check(NOW, command(np.nan), arm())
    first = checked.fault
    checked.check(NOW, command(9), arm())
    lose(checked)
    checked.trip(FaultReason.TICK, "a consequence")
    assert checked.fault is first
    assert checked.check(NOW, command(0.1), arm()).hold
    checked.begin(2, 0, lockstep=False)
    assert checked.check(NOW, command(0.1, epoch=2), arm()).hold, "a new task does not clear a fault"
    checked.reset()
    assert checked.fault is None
    assert checked.check(NOW, command(0.1, epoch=2), arm()).hold, "the task is not resumed"
    checked.begin(3, 0, lockstep=False)
    assert not checked.check(NOW, command(0.1, epoch=3), arm()).hold


def test_a_stop_is_a_ramp_then_a_hold():
    checked = guard(ramp_steps=4)
    checked.check(NOW, command(0.8, -0.4), arm())
    lose(checked)
    answers = [checked.check(NOW, command(0.8, -0.4), arm()) for _ in range(6)]
    np.testing.assert_allclose([a.action[0] for a in answers], [0.6, 0.4, 0.2, 0, 0, 0], atol=1e-6)
    assert [a.hold for a in answers] == [False] * 3 + [True] * 3
    assert all(a.action[6] == 1 for a in answers), "the gripper keeps its last command"


def test_in_lockstep_a_stop_is_a_hold_at_once():
    checked = guard(lockstep=True)
    checked.check(NOW, command(1), arm())
    checked.end()
    assert checked.check(NOW, command(1), arm()).hold


def test_a_lockstep_task_begins_at_rest():
    """Episodes must not depend on those before: the jump of the first command counts from zero."""
    checked = guard(lockstep=True, acceleration=6.0)
    checked.check(NOW, command(1), arm())
    checked.begin(2, 0, lockstep=True)
    checked.check(NOW, command(-1, epoch=2), arm())
    assert checked.fault is None


def test_a_command_of_a_dropped_epoch_never_passes():
    checked = guard(ramp_steps=2)
    checked.check(NOW, command(1), arm())
    checked.end()
    answers = [checked.check(NOW, command(1), arm()) for _ in range(4)]
    assert [float(a.action[0]) for a in answers] == [0.5, 0, 0, 0]
    checked.begin(2, 0, lockstep=False)
    assert checked.check(NOW, command(1, epoch=1), arm()).hold
    assert checked.fault is None


def test_the_loss_of_the_policy_matters_only_during_a_task():
    idle = Guard(Limits(), 20.0)
    lose(idle)
    assert idle.fault is None
    idle.begin(1, 0, lockstep=False)
    idle.watch(SECOND)
    assert idle.fault.reason is FaultReason.POLICY_LOST, "a task without a policy"
    busy = guard()
    busy.policy_alive(True, 0)
    busy.watch(SECOND)
    assert busy.fault is None
    lose(busy)
    assert busy.fault.reason is FaultReason.POLICY_LOST


@pytest.mark.parametrize(("lockstep", "grace_ms"), [(False, 20), (True, 1000)])
def test_a_policy_that_comes_back_within_the_grace_was_not_lost(lockstep, grace_ms):
    checked = guard(lockstep)
    for alive_again in range(0, 5 * SECOND, SECOND):
        checked.policy_alive(False, alive_again)
        checked.watch(alive_again + grace_ms * 1_000_000 - 1)
        checked.policy_alive(True, alive_again)
        checked.watch(alive_again + SECOND)
    assert checked.fault is None
    checked.policy_alive(False, 5 * SECOND)
    checked.policy_alive(False, 5 * SECOND + 1)
    checked.watch(5 * SECOND + grace_ms * 1_000_000)
    assert checked.fault.reason is FaultReason.POLICY_LOST


@pytest.mark.parametrize(("lockstep", "limit"), [(False, 10), (True, 60)])
def test_a_deadline_without_progress_is_a_fault(lockstep, limit):
    checked = guard(lockstep=lockstep)
    checked.watch(limit * SECOND)
    checked.progress(limit * SECOND)
    checked.watch(2 * limit * SECOND)
    assert checked.fault is None
    checked.watch(2 * limit * SECOND + 1)
    assert checked.fault.reason is FaultReason.DEADLINE
    assert f"the limit is {limit} s" in checked.fault.message


def test_no_deadline_runs_between_tasks():
    checked = guard()
    checked.end()
    checked.watch(10**6 * SECOND)
    assert checked.fault is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"speed": 0.0},
        {"acceleration": float("nan")},
        {"metres_per_unit": -1.0},
        {"ramp_steps": -1},
        {"clamp": ("workspace",)},
        {"workspace_min": (0.0, 0.0)},
        {"workspace_max": (3.0, 3.0, -2.0)},
        {"following_position": 0.0},
        {"following_angle": float("nan")},
        {"gripper_rate": -1.0},
        {"joint_margin": -0.1},
        {"joint_min": (-1.0, -1.0), "joint_max": (1.0,)},
        {"joint_min": (-0.1,), "joint_max": (0.1,), "joint_margin": 0.1},
        {"joint_max": (1.0,)},
    ],
)
def test_wrong_limits_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_an_offset_for_a_motion_model_is_bounded_as_a_command_is():
    checked = guard(clamp=("offset",))
    assert checked.check_offset(command(3.0, -0.5)).action[:2].tolist() == [1.0, -0.5]
    asked = command(0.5)
    assert checked.check_offset(asked) is asked and checked.fault is None
    strict = guard()
    assert strict.check_offset(command(3.0)).hold and strict.fault.reason is FaultReason.OFFSET


_NUMBERS = st.one_of(st.floats(width=32), st.floats(-1.5, 1.5, width=32), st.sampled_from([0.0, 1.0, -1.0]))


@settings(max_examples=200, deadline=None)
@given(
    clamp=st.sets(st.sampled_from(CLAMPS)),
    commands=st.lists(st.tuples(st.lists(_NUMBERS, min_size=7, max_size=7), st.booleans(), st.integers(1, 2)), min_size=1, max_size=12),
    positions=st.lists(st.floats(-0.4, 0.4), min_size=12, max_size=12),
    lost=st.integers(0, 20),
)
def test_whatever_is_commanded_what_comes_out_is_finite_and_within_every_limit(clamp, commands, positions, lost):
    limits = Limits(
        workspace_min=(-0.3,) * 3, workspace_max=(0.3,) * 3, speed=0.2, angular_speed=1.0, acceleration=4.0, angular_acceleration=20.0,
        clamp=tuple(clamp),
    )  # fmt: skip
    checked = Guard(limits, 20.0)
    checked.begin(1, 0, lockstep=False)
    last = np.zeros(7)
    stopped = False
    for k, (numbers, hold, epoch) in enumerate(commands):
        if k == lost:
            lose(checked)
        state = arm((positions[k], 0.0, 0.0))
        stopped = stopped or checked.fault is not None
        answer = checked.check(NOW, Command(np.array(numbers, np.float32), hold, epoch), state)
        out = answer.action.astype(np.float64)
        assert np.isfinite(out).all() and np.abs(out).max() <= 1 + 1e-4
        assert np.linalg.norm(out[:3]) * limits.metres_per_unit * 20 <= limits.speed * 1.001
        assert np.linalg.norm(out[3:6]) * limits.radians_per_unit * 20 <= limits.angular_speed * 1.001
        stopping = checked.fault is not None or epoch != 1 or hold
        if not stopping:
            assert np.linalg.norm(out[:3] - last[:3]) * limits.metres_per_unit * 400 <= limits.acceleration * 1.001
            ahead = positions[k] + out[0] * limits.metres_per_unit
            assert abs(ahead) <= 0.3 or out[0] * positions[k] <= 0
        if stopped:
            assert np.linalg.norm(out[:6]) <= np.linalg.norm(last[:6]) + 1e-6, "a stop only slows down"
        last = out
