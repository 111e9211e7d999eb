"""Stricter limits that a running session takes on: at once, without a jump and without a false fault; looser ones are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_session_setpoints import LIMITS, SECOND, STEP, Arm

from bitvla_ros.control.command import ArmState
from bitvla_ros.control.limits import RESTRICTABLE, FaultReason, Limits
from bitvla_ros.control.session import ControlConfig, Session
from bitvla_ros.policy.chunk import ActionChunk

LOOSER = {"workspace_min": (-3.0, -2.0, -1.0), "workspace_max": (2.0, 2.5, 3.0)}


def moving(motion: str = "spring", period: int = 10_000_000, lag: float = 0.03) -> Arm:
    """An arm on its way along x, and turning, at full speed."""
    arm = Arm(motion=motion, period=period, lag=lag)
    arm.begin()
    arm.step()
    arm.accept((1.0, 0.0, 0.0, 0.0, 0.0, 1.0), repeat=60)
    arm.run(0.7)
    assert np.linalg.norm(arm.last.linear) == pytest.approx(0.25, abs=0.01)
    return arm


@pytest.mark.parametrize("motion", ["spring", "scaled"])
@pytest.mark.parametrize("hz", [50, 100, 500])
@pytest.mark.parametrize("speed", [0.2, 0.05, 0.001])
def test_an_arm_that_is_faster_than_a_new_limit_slows_down_to_it(motion: str, hz: int, speed: float) -> None:
    """Every step between its setpoints is within the acceleration, as Arm checks."""
    arm = moving(motion, SECOND // hz)
    before = arm.last
    arm.session.restrict(replace(LIMITS, speed=speed, angular_speed=0.1))
    setpoints = arm.run(0.6)
    assert arm.session.guard.fault is None and arm.session.running
    speeds = [np.linalg.norm(s.linear) for s in (before, *setpoints)]
    turning = [np.linalg.norm(s.angular) for s in setpoints]
    taken = (speeds[0] - speed) / LIMITS.acceleration
    assert (np.array(speeds[2 + round(taken * hz) :]) <= speed * (1 + 1e-9)).all(), "later than the acceleration allows"
    assert turning[-1] <= 0.1 * (1 + 1e-9) and speeds[-1] > 0.5 * speed, "it goes on, more slowly"


def test_a_limit_that_was_lowered_is_no_licence_to_stay_fast() -> None:
    """The guard lets the arm be as fast as one that slows down, whatever the motion model asks for."""
    arm = moving()
    arm.session.guard.restrict(replace(LIMITS, speed=0.05))  # and the motion model knows nothing of it
    arm.run(0.02)
    assert arm.session.guard.fault is not None and arm.session.guard.fault.reason is FaultReason.SPEED


def test_a_stop_in_between_is_as_short_as_ever() -> None:
    arm = moving()
    arm.session.restrict(replace(LIMITS, speed=0.05))
    arm.run(0.02)
    arm.session.cancel("enough")
    setpoints = [s for s in arm.run(0.2) if s is not None]
    assert setpoints[-1].hold and sum(not s.hold for s in setpoints) < 10  # 1.5 rad/s at 15 rad/s2


@pytest.mark.parametrize("name", RESTRICTABLE)
def test_a_looser_limit_is_refused_and_changes_nothing(name: str) -> None:
    arm = moving()
    value = LOOSER[name] if name in LOOSER else getattr(LIMITS, name) * 1.01
    with pytest.raises(ValueError, match=f"{name} would allow more"):
        arm.session.restrict(replace(LIMITS, **{name: value}))
    assert arm.session.config.limits == arm.session.guard.limits == LIMITS


@pytest.mark.parametrize("mixed", [{"speed": 0.1, "gripper_rate": 30.0}, {"workspace_max": (2.1, 1.0, 1.0)}])
def test_one_looser_limit_among_stricter_ones_is_refused(mixed: dict) -> None:
    arm = moving()
    with pytest.raises(ValueError, match="would allow more"):
        arm.session.restrict(replace(LIMITS, **mixed))
    assert arm.session.config.limits == LIMITS


@pytest.mark.parametrize("margin", [0.005, -0.02])
def test_a_box_in_which_the_arm_could_not_stop_any_more_is_refused(margin: float) -> None:
    """0.005 m ahead of the setpoint it would need 0.01 m to stop."""
    arm = moving()
    box = replace(LIMITS, workspace_max=(float(arm.last.position[0]) + margin, 2.0, 3.0))
    with pytest.raises(ValueError, match="outside this box: end the task"):
        arm.session.restrict(box)
    arm.session.restrict(replace(LIMITS, speed=0.2))  # the box is the same, so where the arm is does not matter
    arm.session.cancel("enough")
    arm.run(0.3)
    arm.session.restrict(replace(box, speed=0.2))  # nothing is led any more


def test_an_arm_stops_at_the_wall_of_a_smaller_box() -> None:
    arm = moving()
    wall = float(arm.last.position[0]) + 0.05
    arm.session.restrict(replace(LIMITS, workspace_max=(wall, 2.0, 3.0)))
    setpoints = [s for s in arm.run(1.0) if s is not None]
    assert arm.session.guard.fault.reason is FaultReason.WORKSPACE and setpoints[-1].hold
    assert max(s.position[0] for s in setpoints) <= wall


def test_what_the_gripper_has_travelled_before_is_no_fault() -> None:
    arm = moving()  # its gripper has just closed
    arm.session.restrict(replace(LIMITS, gripper_rate=0.5))
    arm.run(1.0)
    assert arm.session.guard.fault is None
    arm.accept((0.0,), repeat=8)
    arm.session.player.chunk.actions[:, 6] = -1
    arm.run(0.4)
    assert arm.session.guard.fault.reason is FaultReason.GRIPPER_RATE


def test_a_shorter_following_limit_counts_at_once() -> None:
    arm = moving(lag=0.2)
    arm.session.restrict(replace(LIMITS, following_position=0.02))
    assert arm.session.motion.config.lead == pytest.approx(0.012)
    arm.run(0.05)
    assert arm.session.guard.fault.reason is FaultReason.FOLLOWING


def test_shorter_times_count_at_once() -> None:
    arm = moving()
    arm.session.restrict(replace(LIMITS, max_state_age=0.05))
    arm.step(ArmState(arm.position, arm.orientation, arm.now - 60_000_000))
    assert arm.session.guard.fault.reason is FaultReason.STATE
    arm = moving()
    arm.session.restrict(replace(LIMITS, chunk_deadline=0.5))
    arm.session.watch(arm.now)
    assert arm.session.guard.fault.reason is FaultReason.DEADLINE


def test_a_session_that_answers_a_simulator_takes_them_on_too() -> None:
    session = Session(ControlConfig(limits=Limits(clamp=("offset", "speed"))))
    session.restrict(replace(session.config.limits, speed=0.1))
    arm = ArmState(np.array([0.4, 0.0, 0.3]), np.array([0.0, 0.0, 0.0, 1.0]), 100 * STEP)
    session.begin(100 * STEP, 100 * SECOND, 0, lockstep=True)
    actions = np.tile(np.array([1, 0, 0, 0, 0, 0, 1], np.float32), (8, 1))
    session.accept(ActionChunk(actions, 100 * STEP, STEP, epoch=session.epoch), 100 * STEP, 0)
    command = session.tick(100 * STEP, arm, False, 0)
    assert float(command.action[0]) * session.config.limits.metres_per_unit * 20 == pytest.approx(0.1)
