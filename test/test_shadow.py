"""Shadow mode: how far the policy and whoever drives the arm disagree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitvla_ros.control.command import ArmState, Setpoint
from bitvla_ros.control.rotation import turned
from bitvla_ros.control.shadow import Disagreement

UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
TICK = 10_000_000


def setpoint(linear=(0.0, 0.0, 0.0), angular=(0.0, 0.0, 0.0), gripper: float = 1.0) -> Setpoint:
    linear, angular = np.array(linear, np.float64), np.array(angular, np.float64)
    return Setpoint(np.zeros(3), UPRIGHT, linear, angular, gripper, not linear.any(), 1)


def driven(asked: Setpoint | None, linear=(0.0, 0.0, 0.0), angular=(0.0, 0.0, 0.0), seconds: float = 1.0, poses_hz: float = 50.0, **driver):
    """What is found when the policy asks for this all the time and the arm moves so."""
    found = Disagreement()
    period = round(1e9 / poses_hz)
    for now in range(0, round(seconds * 1e9), TICK):
        stamp = now // period * period
        position = np.array(linear, np.float64) * stamp / 1e9
        found.observe(asked, ArmState(position, turned(UPRIGHT, np.array(angular, np.float64) * stamp / 1e9), stamp), **driver)
    return found.values()


def test_a_policy_that_does_what_the_driver_does_agrees():
    values = driven(setpoint((0.1, 0.0, 0.0), (0.0, 0.0, 0.5)), (0.1, 0.0, 0.0), (0.0, 0.0, 0.5))
    assert values["compared"] == 9
    assert values["linear_angle_max"] == pytest.approx(0, abs=1e-6) and values["angular_angle_max"] == pytest.approx(0, abs=1e-6)
    assert values["linear_ratio_mean"] == pytest.approx(1) and values["angular_ratio_mean"] == pytest.approx(1)
    assert values["apart"] == 0


@pytest.mark.parametrize(("linear", "angle", "ratio"), [((0.0, 0.1, 0.0), math.pi / 2, 1), ((-0.2, 0.0, 0.0), math.pi, 0.5)])
def test_angle_and_ratio_are_of_the_velocities(linear, angle, ratio):
    values = driven(setpoint((0.1, 0.0, 0.0)), linear)
    assert values["linear_angle_mean"] == pytest.approx(angle) and values["linear_ratio_max"] == pytest.approx(ratio)
    assert "angular_angle_mean" not in values, "nobody turns"


@pytest.mark.parametrize(("asked", "done"), [((0.1, 0.0, 0.0), (0.0, 0.0, 0.0)), ((0.0, 0.0, 0.0), (0.1, 0.0, 0.0))])
def test_one_that_moves_while_the_other_stands_is_apart_and_has_no_angle(asked, done):
    values = driven(setpoint(asked), done)
    assert values["apart"] == 1 and "linear_angle_mean" not in values


def test_noise_of_an_arm_that_stands_is_no_motion():
    found, random = Disagreement(), np.random.default_rng(0)
    for now in range(0, 10**9, TICK):
        found.observe(setpoint(), ArmState(random.normal(0, 1e-4, 3), UPRIGHT, now))
    assert found.values()["apart"] == 0


def test_the_gripper_is_compared_where_both_are_known():
    assert driven(setpoint(gripper=1.0), gripper=0.9)["gripper_agreement"] == 1
    assert driven(setpoint(gripper=1.0), gripper=-1.0)["gripper_agreement"] == 0
    assert "gripper_agreement" not in driven(setpoint(gripper=0.0), gripper=-1.0), "nothing was commanded yet"
    assert "gripper_agreement" not in driven(setpoint(gripper=1.0))


def test_without_a_task_nothing_is_compared():
    assert driven(None, (0.1, 0.0, 0.0)) == {"compared": 0}


def test_a_gap_in_the_poses_is_not_compared_across():
    found = Disagreement()
    for stamp in (0, 2 * 10**9, 2 * 10**9 + 50_000_000, 10**9):
        found.observe(setpoint((0.1, 0.0, 0.0)), ArmState(np.full(3, stamp / 1e9), UPRIGHT, stamp))
    assert found.values() == {"compared": 0}
