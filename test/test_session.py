"""Player, motion and guard joined, on a virtual clock: what the controller node does with ticks, chunks, cancels and losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitvla_ros.control.command import ArmState
from bitvla_ros.control.limits import FaultReason, Limits
from bitvla_ros.control.player import ChunkRefused, PlayerConfig
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


@pytest.mark.parametrize(
    ("player", "lockstep", "steps"),
    [({}, False, 0), ({"replan_steps": 3}, False, 3), ({"ensemble": 0.01}, False, 1), ({"ensemble": 0.01}, True, 0)],
)
def test_a_chunk_is_played_to_its_end_unless_chunks_are_averaged(player, lockstep, steps):
    checked = Session(ControlConfig(player=PlayerConfig(**player)))
    checked.begin(0, 10**9, 0, lockstep=lockstep)
    assert checked.replan_interval == steps * checked.config.player.step_duration


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


def test_a_lockstep_task_has_no_setpoints():
    with pytest.raises(RuntimeError, match="tick"):
        begun(lockstep=True).setpoint(START, arm(START), False, START)


@pytest.mark.parametrize("pause", [1.0, 0.0])
def test_a_pose_does_not_age_while_nobody_looks(pause):
    """A tick that waited while the whole machine stood still bears an old pose; one that comes late for another reason does so too."""
    session = begun(lockstep=False, limit=1000 * STEP)
    session.accept(chunk(session, START), START, 0)
    for k in range(3):
        session.tick(START + k * STEP, arm(START + k * STEP), False, k * STEP)
    pose, now = arm(START + 2 * STEP), START + 2 * STEP + SECOND
    session.tick(now, pose, False, 2 * STEP + round(pause * SECOND))
    assert session.running == (pause > 0)
    assert session.running or session.guard.fault.reason is FaultReason.STATE
