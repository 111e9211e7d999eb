"""The player on a virtual clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.control.command import ArmState
from bitvla_ros.control.player import ChunkRefused, Player, PlayerConfig, Refusal
from bitvla_ros.policy.chunk import ActionChunk

STEP = 50_000_000
START = 100 * STEP
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


def arm(stamp: int, x: float = 0.0) -> ArmState:
    return ArmState(np.array([x, 0.0, 0.0]), UPRIGHT, stamp)


def chunk(stamp: int = START, horizon: int = 8, epoch: int = 1, **changes: object) -> ActionChunk:
    """Action i has i + 1 hundredths in x, so that an action says which it is."""
    actions = np.zeros((horizon, 7), np.float32)
    actions[:, 0] = (np.arange(horizon) + 1) / 100
    actions[:, 6] = 1
    return ActionChunk(**{"actions": actions, "observation_stamp": stamp, "step_duration": STEP, "epoch": epoch, **changes})


def lockstep(**config: object) -> Player:
    player = Player(PlayerConfig(**config), frame="world")
    player.begin(1, START, lockstep=True)
    return player


def realtime(moving: bool = True, **config: object) -> Player:
    """A player whose arm has moved since every observation, or never."""
    player = Player(PlayerConfig(**{"fade_steps": 0, **config}), frame="world")
    player.watch(arm(START - STEP))
    if moving:
        player.watch(arm(START + 100 * STEP, 0.1))
    player.begin(1, START, lockstep=False)
    return player


def index(command) -> int:
    return round(float(command.action[0]) * 100) - 1


# Lockstep


def test_lockstep_waits_for_the_chunk_of_the_tick_and_plays_all_of_it():
    player = lockstep()
    for query in range(3):
        start = START + 8 * query * STEP
        assert player.due == start
        assert player.play(start, arm(start)) is None
        player.accept(chunk(start), start)
        for i in range(8):
            command = player.play(start + i * STEP, arm(start))
            assert index(command) == i and not command.hold and command.epoch == 1
            assert player.age(start + i * STEP) == i * STEP


@pytest.mark.parametrize(("replan", "played"), [(0, 8), (3, 3), (8, 8), (20, 8)])
def test_lockstep_asks_for_the_next_chunk_after_replan_steps(replan, played):
    player = lockstep(replan_steps=replan)
    player.accept(chunk(), START)
    for i in range(played):
        assert player.play(START + i * STEP, arm(START)) is not None
    assert player.play(START + played * STEP, arm(START)) is None
    assert player.due == START + played * STEP


def test_lockstep_refuses_a_chunk_of_another_tick():
    player = lockstep()
    for stamp in (START - STEP, START + 1, START + STEP):
        with pytest.raises(ChunkRefused) as refused:
            player.accept(chunk(stamp), START)
        assert refused.value.reason is Refusal.NOT_ASKED
    player.accept(chunk(), START)
    with pytest.raises(ChunkRefused):
        player.accept(chunk(), START)  # twice


def test_lockstep_does_not_blend_and_changes_no_bit():
    player = lockstep(replan_steps=1, fade_steps=5)
    random = np.random.default_rng(0)
    for k in range(10):
        actions = random.uniform(-1, 1, (8, 7)).astype(np.float32)
        now = START + k * STEP
        player.accept(chunk(now, actions=actions), now)
        assert player.play(now, arm(now)).action.tobytes() == actions[0].tobytes()


# Realtime


@pytest.mark.parametrize("age_ms", [0, 10, 49, 50, 120, 349])
def test_a_moving_arm_skips_the_actions_that_have_elapsed(age_ms):
    player = realtime()
    now = START + age_ms * 1_000_000
    player.accept(chunk(), now)
    assert index(player.play(now, arm(now, 0.5))) == age_ms // 50


@pytest.mark.parametrize("age_ms", [0, 120, 349, 2700])
def test_an_arm_that_held_still_starts_at_action_0(age_ms):
    player = realtime(moving=False)
    for k in range(age_ms // 50):
        assert player.play(START + k * STEP, arm(START + k * STEP, 0.001 * (k % 2))).hold
    now = START + age_ms * 1_000_000
    player.accept(chunk(), now)
    assert [index(player.play(now + k * STEP, arm(now, 0.01 * k))) for k in range(8)] == list(range(8))


def test_an_arm_that_was_pushed_did_not_hold_still():
    player = realtime(moving=False)
    player.play(START + STEP, arm(START + STEP, 0.05))
    now = START + 3 * STEP
    player.accept(chunk(), now)
    assert index(player.play(now, arm(now, 0.05))) == 3


def test_an_arm_that_was_turned_did_not_hold_still():
    player = realtime(moving=False)
    player.play(START + STEP, ArmState(np.zeros(3), np.array([np.sin(0.05), 0, 0, np.cos(0.05)]), START + STEP))
    player.accept(chunk(), START + 3 * STEP)
    assert index(player.play(START + 3 * STEP, arm(START + 3 * STEP))) == 3


def test_an_arm_that_is_commanded_is_not_still_though_it_has_not_moved_yet():
    player = realtime(moving=False)
    player.accept(chunk(), START)
    for k in range(4):
        player.play(START + k * STEP, arm(START + k * STEP))
    player.accept(chunk(START + STEP), START + 4 * STEP)
    assert index(player.play(START + 4 * STEP, arm(START + 4 * STEP))) == 3


def test_timer_jitter_neither_repeats_nor_skips_an_action():
    player = realtime()
    random = np.random.default_rng(1)
    player.accept(chunk(), START + STEP)
    times = [START + STEP + k * STEP + (int(random.uniform(-0.4, 0.4) * STEP) if k else 0) for k in range(7)]
    assert [index(player.play(now, arm(now))) for now in times] == list(range(1, 8))


def test_a_late_tick_skips_what_it_missed():
    player = realtime()
    player.accept(chunk(), START)
    assert index(player.play(START, arm(START))) == 0
    assert index(player.play(START + 4 * STEP, arm(START))) == 4


def test_the_end_of_a_chunk_is_a_ramp_to_a_hold():
    player = realtime(ramp_steps=4)
    actions = np.ones((2, 7), np.float32)
    player.accept(chunk(actions=actions), START)
    commands = [player.play(START + k * STEP, arm(START)) for k in range(8)]
    assert [float(c.action[0]) for c in commands] == [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert [c.hold for c in commands] == [False] * 5 + [True] * 3
    assert all(c.action[6] == 1 for c in commands), "the gripper keeps its last command"


def test_without_a_chunk_the_arm_holds():
    player = realtime()
    command = player.play(START, arm(START))
    assert command.hold and not command.action[:6].any()


def test_a_seam_is_faded_linearly():
    player = realtime(fade_steps=3, moving=False)
    player.commanded(player.play(START, arm(START)))
    old, new = np.full((8, 7), 0.4, np.float32), np.full((8, 7), -0.4, np.float32)
    player.accept(chunk(actions=old), START)
    first = [float(player.play(START + k * STEP, arm(START, 0.1 * k)).action[0]) for k in range(5)]
    assert first == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    player.accept(chunk(START + STEP, actions=new), START + 5 * STEP)
    seam = [player.play(START + (5 + k) * STEP, arm(START, 1.0)) for k in range(4)]
    assert [float(c.action[0]) for c in seam] == pytest.approx([0.2, 0.0, -0.2, -0.4])
    assert all(c.action[6] == np.float32(-0.4) for c in seam), "a gripper is not faded"


# At the rate of a sink


def continuous(**config: object) -> Player:
    """A player whose arm has moved since every observation."""
    return realtime(**config)


@pytest.mark.parametrize("hz", [20, 50, 100, 250])
@pytest.mark.parametrize("age_ms", [0, 3, 49, 120, 349])
def test_an_action_is_played_exactly_when_the_model_meant_it(hz, age_ms):
    player, first = continuous(ramp_steps=0), START + age_ms * 1_000_000
    player.accept(chunk(), first)
    for now in range(first, START + 8 * STEP, 1_000_000_000 // hz):
        assert index(player.play(now, arm(now), continuous=True)) == (now - START) // STEP
    assert player.play(START + 8 * STEP, arm(0), continuous=True).hold


def test_an_arm_that_held_still_starts_at_action_0_at_any_rate():
    player = realtime(moving=False)
    first = START + 2_700_000_000
    for now in range(START, first, 10_000_000):
        assert player.play(now, arm(now, 0.001), continuous=True).hold
    player.accept(chunk(), first)
    for now in range(first, first + 8 * STEP, 10_000_000):
        assert index(player.play(now, arm(now, (now - first) / 1e9), continuous=True)) == (now - first) // STEP


def test_a_control_step_begins_once_at_any_rate():
    player, seen = continuous(), []
    player.accept(chunk(horizon=4), START)
    for now in range(START, START + 9 * STEP, 10_000_000):
        player.play(now, arm(now), continuous=True)
        seen.append(player.began)
    assert [k for k, began in enumerate(seen) if began] == list(range(0, 45, 5))


@pytest.mark.parametrize("period_ms", [1, 5, 10, 25])
def test_fades_and_ramps_are_by_time_and_not_by_calls(period_ms):
    player = continuous(fade_steps=2, ramp_steps=4)
    old, new = np.full((8, 7), 0.4, np.float32), np.full((3, 7), -0.4, np.float32)
    player.accept(chunk(actions=old), START)
    switch = START + 3 * STEP
    for now in range(START, switch, period_ms * 1_000_000):
        player.play(now, arm(now), continuous=True)
    player.accept(chunk(switch, actions=new), switch)
    for now in range(switch, switch + 8 * STEP, period_ms * 1_000_000):
        command = player.play(now, arm(now), continuous=True)
        steps = (now - switch) / STEP
        expected = 0.4 - 0.8 * steps / 2 if steps < 2 else -0.4 * min(1.0, max(0.0, 1 - (steps - 3) / 4))
        assert float(command.action[0]) == pytest.approx(expected, abs=1e-6)
        assert command.hold == (steps >= 7) and command.action[6] == np.float32(-0.4)


def test_an_arm_at_rest_begins_with_the_whole_of_its_first_action():
    """There is no old plan to fade from, and the motion model starts softly by itself."""
    player = continuous(fade_steps=2)
    assert player.play(START, arm(START), continuous=True).hold
    player.accept(chunk(actions=np.ones((8, 7), np.float32)), START)
    assert player.play(START + 1, arm(START), continuous=True).action[0] == 1


def test_a_task_that_takes_over_ramps_from_what_was_commanded_last():
    player = continuous(fade_steps=4, ramp_steps=4)
    player.accept(chunk(actions=np.full((8, 7), 0.8, np.float32)), START)
    for k in range(6):
        player.play(START + k * STEP, arm(START))
    player.end()
    player.begin(2, START + 6 * STEP, lockstep=False)
    ramp = [player.play(START + (6 + k) * STEP, arm(START)) for k in range(5)]
    assert [float(c.action[0]) for c in ramp] == pytest.approx([0.6, 0.4, 0.2, 0.0, 0.0])
    assert [c.hold for c in ramp] == [False] * 3 + [True] * 2


# Ensembling


def constant(value: float, stamp: int, gripper: float = 1.0) -> ActionChunk:
    actions = np.full((8, 7), value, np.float32)
    actions[:, 6] = gripper
    return chunk(stamp, actions=actions)


def test_chunks_that_cover_the_moment_are_averaged_with_exponential_weights():
    player = continuous(ensemble=0.5, fade_steps=0)
    values = np.array([0.1, 0.4, 0.8])

    def played(now: int):
        return player.play(now, arm(now), continuous=True)

    for k in range(3):
        now = START + 2 * k * STEP
        player.accept(constant(values[k], now, gripper=(-1.0) ** k), now)
        weights = np.exp(-0.5 * np.arange(k + 1))
        assert float(played(now).action[0]) == pytest.approx(float(weights @ values[: k + 1] / weights.sum()))
        assert played(now + STEP).action[6] == (-1.0) ** k, "the newest says"
    weights = np.exp(-0.5 * np.arange(2))
    assert float(played(START + 9 * STEP).action[0]) == pytest.approx(float(weights @ values[1:] / weights.sum())), "the first is over"
    assert played(START + 12 * STEP - 1).action[0] == np.float32(0.8)


def test_without_ensembling_the_newest_chunk_alone_is_played():
    player = continuous()
    for k, value in enumerate((0.1, 0.4)):
        player.accept(constant(value, START + k * STEP), START + k * STEP)
    assert player.play(START + STEP, arm(START), continuous=True).action[0] == np.float32(0.4)


def test_lockstep_never_averages():
    player = lockstep(replan_steps=1, ensemble=0.01)
    for k, value in enumerate((0.1, 0.4, 0.8)):
        player.accept(constant(value, START + k * STEP), START + k * STEP)
        assert player.play(START + k * STEP, arm(START)).action[0] == np.float32(value)


# Refusals


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (chunk(epoch=0), Refusal.EPOCH),
        (chunk(epoch=2), Refusal.EPOCH),
        (chunk(step_duration=100_000_000), Refusal.RATE),
        (chunk(control_mode="joint_position"), Refusal.CONTROL_MODE),
        (chunk(frame="camera"), Refusal.FRAME),
        (chunk(actions=np.zeros((8, 6), np.float32)), Refusal.DIMENSION),
        (chunk(actions=np.zeros((0, 7), np.float32)), Refusal.DIMENSION),
        (chunk(actions=np.zeros(7, np.float32)), Refusal.DIMENSION),
        (chunk(actions=np.full((8, 7), np.nan, np.float32)), Refusal.NON_FINITE),
        (chunk(actions=np.full((8, 7), np.inf, np.float32)), Refusal.NON_FINITE),
    ],
)
@pytest.mark.parametrize("make", [lockstep, realtime])
def test_a_bad_chunk_is_refused_with_its_reason(make, bad, reason):
    player = make()
    with pytest.raises(ChunkRefused) as refused:
        player.accept(bad, START)
    assert refused.value.reason is reason
    assert player.chunk is None


@pytest.mark.parametrize(
    ("stamp", "age_steps", "reason"),
    [
        (START - 1, 0, Refusal.STALE),  # before the task
        (START, 8, Refusal.STALE),  # all elapsed
        (START, 100, Refusal.STALE),
        (0, 0, Refusal.STALE),
        (START + 60_000_000, 0, Refusal.FUTURE),
    ],
)
def test_a_chunk_of_another_time_is_refused_in_realtime(stamp, age_steps, reason):
    with pytest.raises(ChunkRefused) as refused:
        realtime().accept(chunk(stamp), START + age_steps * STEP)
    assert refused.value.reason is reason


def test_the_age_limits_are_those_of_the_configuration():
    moving = realtime(max_age=0.1)
    with pytest.raises(ChunkRefused):
        moving.accept(chunk(), START + 2 * STEP)
    moving.accept(chunk(), START + 2 * STEP - 1)
    still = realtime(moving=False, max_age_still=3.0)
    with pytest.raises(ChunkRefused):
        still.accept(chunk(), START + 60 * STEP)
    still.accept(chunk(), START + 59 * STEP)


def test_a_chunk_not_newer_than_the_one_being_played_is_refused():
    player = realtime()
    player.accept(chunk(START + STEP), START + STEP)
    for stamp in (START, START + STEP):
        with pytest.raises(ChunkRefused) as refused:
            player.accept(chunk(stamp), START + STEP)
        assert refused.value.reason is Refusal.BACKWARD


def test_a_refused_chunk_does_not_disturb_the_one_being_played():
    player = realtime()
    player.accept(chunk(), START)
    player.play(START, arm(START))
    with pytest.raises(ChunkRefused):
        player.accept(chunk(START + STEP, epoch=7), START + STEP)
    assert index(player.play(START + STEP, arm(START))) == 1


def test_nothing_is_played_between_tasks():
    player = realtime()
    player.accept(chunk(), START)
    player.end()
    with pytest.raises(RuntimeError, match="begin"):
        player.play(START, arm(START))
    with pytest.raises(ChunkRefused) as refused:
        player.accept(chunk(), START)
    assert refused.value.reason is Refusal.NO_TASK


@pytest.mark.parametrize(
    "wrong", [{"control_hz": 0.0}, {"control_hz": float("nan")}, {"replan_steps": -1}, {"max_age": -0.1}, {"ensemble": -1.0}]
)
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PlayerConfig(**wrong)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_chunks_come_the_player_stays_within_them_and_within_its_epoch(data):
    """Random latencies, stamps, epochs and gaps in realtime: every command is a convex sum of accepted actions and rest."""
    player = Player(PlayerConfig(fade_steps=data.draw(st.integers(0, 5)), ramp_steps=data.draw(st.integers(0, 5))))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    epoch, now, largest, accepted = 0, START, 0.0, 0
    for _ in range(data.draw(st.integers(1, 60))):
        event = data.draw(st.sampled_from(["begin", "chunk", "tick", "tick", "tick"]))
        if event == "begin":
            epoch += 1
            player.begin(epoch, now, lockstep=False)
        elif event == "chunk":
            scale = data.draw(st.floats(0, 1))
            latency = data.draw(st.integers(-2 * STEP, 20 * STEP))
            claimed = data.draw(st.integers(max(0, epoch - 1), epoch + 1))
            actions = random.uniform(-scale, scale, (8, 7)).astype(np.float32)
            try:
                player.accept(chunk(now - latency, epoch=claimed, actions=actions), now)
            except ChunkRefused:
                continue
            assert claimed == epoch
            largest, accepted = max(largest, float(np.abs(actions).max())), accepted + 1
        elif epoch:
            now += data.draw(st.integers(1, 3 * STEP))
            command = player.play(now, arm(now, random.choice([0.0, 0.1])))
            assert command.epoch == epoch
            assert np.isfinite(command.action).all() and np.abs(command.action).max() <= largest * (1 + 1e-6)
            assert command.hold or accepted
