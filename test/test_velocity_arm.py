"""An arm that is given velocities alone: its small errors do not add up, and one that does not follow is still found."""

from __future__ import annotations

import numpy as np
import pytest

from bitvla_ros.control.command import ArmState
from bitvla_ros.control.guard import Limits
from bitvla_ros.control.player import PlayerConfig
from bitvla_ros.control.rotation import turned
from bitvla_ros.control.session import ControlConfig, Session
from bitvla_ros.policy.chunk import ActionChunk

MS = 1_000_000
PERIOD = 20 * MS
LIMITS = Limits(speed=0.25, angular_speed=1.0, acceleration=2.0, angular_acceleration=10.0, clamp=("offset",))


def drive(fade: float, gain: float, seconds: float = 24.0) -> tuple[Session, float]:
    """A policy that swings the arm to and fro. gain: how much of the velocities to one side the arm follows; to the other it follows
    them well, so that the errors add up. Returns the farthest setpoint from the arm, m."""
    session = Session(ControlConfig(PlayerConfig(), LIMITS), "base")
    session.fade = fade
    now, farthest = 10**12, 0.0
    arm = ArmState(np.array([0.4, 0.0, 0.3]), np.array([1.0, 0.0, 0.0, 0.0]), now)
    for _ in range(4):  # the controller sees the arm before its task begins
        session.setpoint(now, arm, False, now)
        now += PERIOD
        arm = ArmState(arm.position, arm.orientation, now)
    session.begin(now, round(seconds * 2e9), now, lockstep=False)
    for k in range(round(seconds * 50)):
        if k % 10 == 0 and session.running:
            row = np.array([0.3, 0.1, 0.0, 0.0, 0.0, 0.1, 1.0], np.float32) * (1 if (k // 150) % 2 == 0 else -1)
            session.accept(ActionChunk(np.tile(row, (8, 1)), now, 50 * MS, frame="base", epoch=session.epoch), now, now)
        setpoint = session.setpoint(now, arm, False, now)
        if setpoint is None:
            break
        farthest = max(farthest, float(np.linalg.norm(setpoint.position - arm.position)))
        now += PERIOD
        by = PERIOD / 1e9 * (gain if setpoint.linear[0] > 0 else 1.0)
        arm = ArmState(arm.position + by * setpoint.linear, turned(arm.orientation, by * setpoint.angular), now)
    return session, farthest


def test_the_errors_of_following_velocities_do_not_add_up() -> None:
    session, farthest = drive(fade=2.0, gain=0.8)
    assert session.guard.fault is None and session.running and farthest < 0.06


def test_without_fading_they_do() -> None:
    session, _ = drive(fade=0.0, gain=0.8)
    assert session.guard.fault is not None and session.guard.fault.reason.value == "following"


@pytest.mark.parametrize("fade", [0.0, 2.0])
def test_an_arm_that_does_not_follow_is_found(fade: float) -> None:
    session, _ = drive(fade, gain=0.0)
    assert session.guard.fault is not None and session.guard.fault.reason.value == "following"


def test_fading_changes_no_velocity() -> None:
    """The arm that follows perfectly gets the same setpoints with it and without."""
    assert drive(2.0, 1.0)[1] == pytest.approx(drive(0.0, 1.0)[1], abs=1e-12)
