"""Whole tasks through setpoints at 100 Hz: the scripted expert, and the simulated arm driven as a robot's controller drives it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="no MuJoCo: pip install '.[sim]'")

from bitvla_ros.control.command import ArmState
from bitvla_ros.control.limits import Limits
from bitvla_ros.control.player import PlayerConfig
from bitvla_ros.control.rotation import turn_between
from bitvla_ros.control.session import ControlConfig, Outcome, Session
from bitvla_ros.evaluation.rollout import observe
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.simulation.expert import make_expert
from bitvla_ros.simulation.tabletop import TabletopEnvironment

SECOND = 1_000_000_000
TICK = 10_000_000
ROBOT = Limits(clamp=("offset",), speed=0.25, angular_speed=1.5, acceleration=3.0, angular_acceleration=15.0)
SIMULATOR = Limits(clamp=("offset",))


@pytest.mark.parametrize(
    ("limits", "latency", "player", "motion"),
    [
        (SIMULATOR, 0.05, {}, "spring"),
        (ROBOT, 0.1, {}, "spring"),
        (ROBOT, 0.1, {}, "scaled"),
        (ROBOT, 0.1, {"ensemble": 0.01}, "spring"),
        (ROBOT, 2.7, {}, "spring"),  # a slow board: in moves and pauses
    ],
    ids=["as trained", "a robot's limits", "scaled", "ensemble", "a slow board"],
)
def test_the_expert_does_its_task_through_setpoints(limits, latency, player, motion):
    """An inference begins when the last one has ended, on a slow board when the arm rests; none of its chunks is refused."""
    environment = TabletopEnvironment("tabletop_object", cameras=())
    policy, seen = make_expert(environment), environment.reset(0, 1)
    session = Session(ControlConfig(PlayerConfig(**player), limits, motion))
    for now in range(SECOND, SECOND + 10 * TICK, TICK):  # the controller sees the arm before its task begins
        assert session.setpoint(now, ArmState(seen.position, seen.orientation, now), False, now) is None
    start = now
    session.begin(now, 100 * SECOND, now, lockstep=False)
    pending: tuple[int, ActionChunk] | None = None
    query, last, velocity, turning = now, None, np.zeros(3), np.zeros(3)
    while session.running:
        if pending is not None and now >= pending[0]:
            session.accept(pending[1], now, now)
            pending, query = None, now if latency < 1 else now + SECOND
        if pending is None and now >= query:
            observation = observe(seen, now, environment.tasks[0], session.epoch, policy.spec)
            pending = now + round(latency * SECOND), policy.infer(observation)
        setpoint = session.setpoint(now, ArmState(seen.position, seen.orientation, now), seen.success, now)
        assert setpoint is not None and session.guard.fault is None, session.guard.fault
        if last is not None:
            moved = (setpoint.position - last.position) / 0.01, turn_between(last.orientation, setpoint.orientation) / 0.01
            assert np.linalg.norm(moved[0]) <= limits.speed + 1e-6
            assert np.linalg.norm(moved[1]) <= limits.angular_speed + 1e-6
            assert np.linalg.norm(moved[0] - velocity) <= limits.acceleration * 0.01 + 1e-6
            assert np.linalg.norm(moved[1] - turning) <= limits.angular_acceleration * 0.01 + 1e-6
            velocity, turning = moved
        last = setpoint
        seen = environment.follow(setpoint.position, setpoint.orientation, setpoint.gripper, 0.01)
        now += TICK
    assert session.result is not None and session.result.outcome is Outcome.SUCCESS, session.result
    assert now - start < (8 if latency < 1 else 60) * SECOND
