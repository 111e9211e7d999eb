"""Whatever ends a task, and whenever: an arm that moves is brought to a hold, and the hold is said again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from virtual_arm import LIMITS, REPEATS, SECOND, TICK, UPRIGHT, Arm

from bitvla_ros.control.command import ArmState, Setpoint
from bitvla_ros.control.limits import FaultReason


def moving(lag: float = 0.03, limits=LIMITS) -> Arm:
    """An arm in the middle of a task, at full speed."""
    arm = Arm(limits, lag)
    arm.begin()
    arm.run(0.1)
    arm.accept((1.0,), repeat=40)
    arm.run(0.4)
    assert np.linalg.norm(arm.last.linear) > 0.2
    return arm


def comes_to_rest(arm: Arm) -> list[Setpoint]:
    """Its setpoints from now on: a ramp, and a hold that is repeated."""
    said = [s for s in arm.run(1.0) if s is not None]
    holds = [s.hold for s in said]
    assert holds[-1 - REPEATS :] == [True] * (1 + REPEATS) and not any(holds[: -1 - REPEATS]), holds
    assert not arm.session.stopping
    return said


def stale(arm: Arm) -> None:
    arm.step(replace_stamp(arm.state, arm.now - SECOND))


def replace_stamp(state: ArmState, stamp: int) -> ArmState:
    return replace(state, stamp=stamp)


def lose_policy(arm: Arm) -> None:
    arm.session.policy_alive(False, arm.now - SECOND)
    arm.session.watch(arm.now)


ENDS: dict[str, Callable[[Arm], object]] = {
    "cancel": lambda arm: arm.session.cancel("by the client"),
    "e-stop": lambda arm: arm.session.fault(FaultReason.ESTOP, "pressed"),
    "lost policy": lose_policy,
    "stale pose": stale,
    "reset": lambda arm: (arm.session.fault(FaultReason.ESTOP, "pressed"), arm.session.reset_fault()),
    "cancel without an answer": lambda arm: arm.session.cancel("begins anew", stop=False),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_take_over_that_ends_before_its_first_setpoint_stops_the_arm_all_the_same(end):
    arm = moving()
    arm.session.cancel("another goal took over")
    arm.run(0.02)
    arm.begin()
    end(arm)
    assert not arm.session.running
    comes_to_rest(arm)
    if arm.session.guard.fault is not None:
        arm.session.reset_fault()
    arm.session.policy_alive(True, arm.now)
    arm.begin()
    assert any(s is not None for s in arm.run(0.5)) and arm.session.guard.fault is None, "the next task begins as any"


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_task_that_ends_while_it_moves_stops(end):
    arm = moving()
    end(arm)
    comes_to_rest(arm)


def test_a_stop_goes_on_where_the_arm_is_not_seen_any_more():
    arm = moving()
    arm.session.cancel("by the client")
    said = [arm.session.brake(arm.now + k * TICK) for k in range(100)]
    holds = [s.hold for s in said if s is not None]
    assert holds[-1] and holds.count(True) == 1 + REPEATS


def test_an_arm_that_is_not_seen_for_a_while_goes_on_and_still_stops():
    arm = moving()
    unseen = [arm.session.brake(arm.now + k * TICK) for k in range(60)]
    assert all(s is not None for s in unseen) and unseen[-1].hold and arm.session.running
    arm.now += 60 * TICK
    arm.last, arm._time, arm._velocity = unseen[-1], arm.now - TICK, (np.zeros(3), np.zeros(3))
    arm.accept((1.0,), repeat=40)
    assert arm.run(0.4)[-1].linear[0] > 0.2
    arm.session.cancel("by the client")
    comes_to_rest(arm)


@pytest.mark.parametrize("moved", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("back", [2, 10, 1000])
def test_where_a_simulators_time_goes_back_the_next_task_begins(back, moved):
    arm = moving()
    arm.session.cancel("enough")
    arm.run(1.0)
    arm.now -= back * SECOND
    arm.position, arm.last = arm.position + np.array([0, moved, 0]), None
    arm.begin()
    assert any(s is not None for s in arm.run(1.0)) and arm.session.guard.fault is None


@pytest.mark.parametrize("hz", [20, 100, 500, 1000])
@pytest.mark.parametrize("noise", [0.0003, 0.001, 0.002])
@pytest.mark.parametrize("stamps", [1, 5_000_000, 50_000_000])
def test_a_task_begins_with_noisy_poses_and_coarse_stamps(hz, noise, stamps):
    random = np.random.default_rng(0)
    arm = Arm(period=SECOND // hz)
    arm.session = type(arm.session)(arm.session.config)
    arm.begin()
    for _ in range(hz):
        seen = ArmState(arm.position + random.normal(0, noise, 3), UPRIGHT, arm.now // stamps * stamps)
        if arm.step(seen) is not None:
            return
    pytest.fail(f"no setpoint within a second, fault {arm.session.guard.fault}")


def test_a_ramp_that_was_interrupted_for_a_long_time_ends_in_a_hold():
    arm = moving()
    arm.session.cancel("another goal took over")
    arm.run(0.02)
    arm.now += SECOND
    arm.begin()
    first = arm.step()
    assert first is not None and not first.linear.any()


def test_a_take_over_beside_an_arm_that_is_elsewhere_does_not_leap():
    """A following fault, a reset and a new goal in mid-ramp: the setpoint goes on to its hold; then the task begins where the arm is."""
    arm = moving()
    arm.position = arm.position + np.array([0.27, 0, 0])
    arm.lag = 1e9
    arm.step()
    assert arm.session.guard.fault.reason is FaultReason.FOLLOWING
    arm.session.reset_fault()
    arm.begin()
    said = arm.run(1.0)  # every step is checked by the arm
    places = np.array([s.position for s in said if s is not None])
    times = [k for k, s in enumerate(said) if s is not None]
    for before, after, place, there in zip(times[:-1], times[1:], places[:-1], places[1:], strict=True):
        assert after - before > 45 or np.linalg.norm(there - place) <= 0.25 * 0.011 * (after - before), "a leap without a rest"
    assert np.allclose(places[-1], arm.position), "after it has settled, the task begins where the arm is"


@pytest.mark.parametrize("samples", [1, 2, 10])
def test_a_glitch_of_the_pose_at_the_start_of_a_task_is_not_commanded(samples):
    arm = Arm()
    arm.begin()
    glitch = ArmState(np.zeros(3), UPRIGHT, 0)
    first = [arm.step(replace_stamp(glitch, arm.now)) for _ in range(samples)]
    assert first == [None] * samples
    said = [s for s in arm.run(1.0) if s is not None]
    assert all(np.allclose(s.position, arm.position) for s in said) and said and arm.session.guard.fault is None


def test_the_very_first_pose_is_not_trusted_alone():
    arm = Arm()
    arm.session = type(arm.session)(arm.session.config)  # has seen nothing yet
    arm.begin()
    assert arm.step(ArmState(np.zeros(3), UPRIGHT, arm.now)) is None
    assert all(np.allclose(s.position, arm.position) for s in arm.run(1.0) if s is not None)


def test_poses_that_go_on_contradicting_one_another_end_the_task():
    arm = Arm()
    arm.begin()
    for k in range(250):
        assert arm.step(ArmState(np.array([0.5 - 0.1 * (k % 2), 0, 0.3]), UPRIGHT, arm.now)) is None
    assert arm.session.guard.fault.reason is FaultReason.STATE and "contradict" in arm.session.result.reason


def test_a_task_outside_the_workspace_sends_nothing():
    arm = Arm(replace(LIMITS, workspace_max=(0.3, 1.0, 1.0)))
    arm.begin()
    assert arm.run(0.5) == [None] * 50
    assert arm.session.guard.fault.reason is FaultReason.WORKSPACE


def test_setpoints_of_a_stop_keep_the_frame_that_they_began_in():
    arm = moving()
    session = arm.session
    assert session.frame == ""
    session.cancel("another goal took over")
    arm.run(0.02)
    session.player.frame = "other"
    arm.begin()
    said = []
    while (setpoint := arm.step()) is not None:
        said.append(setpoint)
        assert session.frame == ""
    assert said[-1].hold
    assert any(s is not None for s in arm.run(1.0)) and session.frame == "other"


def test_a_reset_without_a_fault_changes_nothing():
    arm = moving()
    arm.session.reset_fault()
    assert arm.session.running and all(s is not None and s.linear[0] > 0.2 for s in arm.run(0.1))
    lose_policy(arm)
    assert arm.session.guard.fault.reason is FaultReason.POLICY_LOST
    comes_to_rest(arm)
