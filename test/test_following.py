"""How far an arm follows behind its setpoints is measured while it is led."""

from __future__ import annotations

import numpy as np
import pytest

from bitvla_ros.control.command import ArmState, Setpoint
from bitvla_ros.control.following import Following

SECOND = 1_000_000_000
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


def path(seconds: float) -> np.ndarray:
    """m; up to 0.2 m/s"""
    return np.array([0.2 * np.sin(seconds), 0.1 * np.cos(0.7 * seconds), 0.05 * seconds])


def setpoint(now: float) -> Setpoint:
    velocity = (path(now + 1e-6) - path(now - 1e-6)) / 2e-6
    return Setpoint(path(now), UPRIGHT, velocity, np.zeros(3), 0.0, False, 1)


def led(lag: float, age: float, seconds: float = 10.0) -> Following:
    """At 100 Hz. The arm is where its setpoint was `lag` ago, and its pose is `age` old when it is looked at."""
    found = Following()
    for k in range(round(100 * seconds)):
        now = k / 100
        found.observe(setpoint(now), ArmState(path(now - age - lag), UPRIGHT, round((now - age) * SECOND)), round(now * SECOND))
    return found


@pytest.mark.parametrize("lag", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("age", [0.0, 0.004, 0.03])
def test_the_lag_is_found_whatever_the_age_of_the_measured_pose(lag: float, age: float) -> None:
    assert led(lag, age).lag == pytest.approx(lag, abs=0.002)


def test_nothing_is_said_before_setpoints_have_gone_half_a_metre() -> None:
    assert led(0.05, 0.0, seconds=2.0).lag is None and Following().lag is None


def test_an_arm_that_nobody_leads_tells_nothing() -> None:
    found = led(0.05, 0.0)
    before = found.lag
    for k in range(100):
        found.observe(None, ArmState(np.array([9.0, 9.0, 9.0]), UPRIGHT, (20 + k) * SECOND), (20 + k) * SECOND)
    found.observe(setpoint(200.0), ArmState(np.zeros(3), UPRIGHT, 200 * SECOND), 200 * SECOND)
    assert found.lag == pytest.approx(before, rel=0.05)
