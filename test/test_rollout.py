"""Episodes in process, with the smallest environment there is."""

from __future__ import annotations

import numpy as np
import pytest
from point_mass import Fixed, PointMass, Seeker, chunk_for

from bitvla_ros.control.guard import Limits
from bitvla_ros.control.player import PlayerConfig
from bitvla_ros.control.session import ControlConfig, Outcome
from bitvla_ros.evaluation.rollout import rollout


def zeros(horizon: int = 8) -> np.ndarray:
    return np.zeros((horizon, 7), np.float32)


def test_an_episode_ends_with_the_step_that_reaches_the_goal():
    environment, policy = PointMass(), Seeker()
    episode = rollout(environment, policy, task=1, seed=3)
    assert episode.success and episode.outcome is Outcome.SUCCESS
    assert episode.instruction == "go to the right" and (episode.suite, episode.task, episode.seed) == ("point_mass", 1, 3)
    assert episode.actions.dtype == np.float32 and episode.actions.shape == (episode.steps, 7)
    assert 5 < episode.steps < environment.step_limit
    assert episode.actions.tobytes() == np.array(environment.actions).tobytes(), "the environment got what was recorded"
    assert episode.chunks == len(episode.latencies) == len(policy.seen) == -(-episode.steps // 8)
    assert policy.resets == 1


def test_equal_seeds_give_equal_actions_and_others_do_not():
    first, second, other = (rollout(PointMass(), Seeker(), 0, seed) for seed in (1, 1, 2))
    assert first.actions.tobytes() == second.actions.tobytes() != other.actions.tobytes()


def test_chunk_ages_count_from_the_query():
    episode = rollout(PointMass(), Seeker(), 0, 0)
    assert episode.chunk_ages == pytest.approx([(k % 8) * 0.05 for k in range(episode.steps)])


@pytest.mark.parametrize(("replan", "every"), [(0, 8), (1, 1), (3, 3), (50, 8)])
def test_the_policy_is_asked_every_replan_steps(replan, every):
    policy = Seeker()
    rollout(PointMass(), policy, 0, 0, control=ControlConfig(PlayerConfig(replan_steps=replan)))
    stamps = [seen.stamp for seen in policy.seen]
    assert set(np.diff(stamps)) == {every * 50_000_000}


def test_an_episode_without_success_takes_exactly_the_step_limit():
    episode = rollout(PointMass(), Fixed(lambda o: chunk_for(o, zeros())), 0, 0)
    assert episode.outcome is Outcome.TIME_LIMIT and not episode.success
    assert episode.steps == PointMass.step_limit and episode.chunks == 8
    assert rollout(PointMass(), Fixed(lambda o: chunk_for(o, zeros())), 0, 0, step_limit=5).steps == 5


def test_a_policy_sees_only_what_it_asks_for():
    seen = []
    rollout(PointMass(), Fixed(lambda o: seen.append(o) or chunk_for(o, zeros())), 0, 0, step_limit=1)
    assert seen[0].images == {} and seen[0].privileged is None and list(seen[0].stamps) == ["state"]
    truthful = Seeker()
    rollout(PointMass(), truthful, 0, 0, step_limit=1)
    assert set(truthful.seen[0].stamps) == {"scene", "state", "privileged"}
    assert truthful.seen[0].state.shape == (8,) and truthful.seen[0].state[6:].tolist() == [0.02, -0.02]


def test_a_camera_that_nobody_renders_is_named():
    policy = Seeker()
    policy.spec = policy.spec.__class__(**{**policy.spec.__dict__, "cameras": ("scene", "wrist")})
    with pytest.raises(ValueError, match="wrist"):
        rollout(PointMass(), policy, 0, 0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda o: chunk_for(o, np.full((8, 7), np.nan)), "not finite"),
        (lambda o: chunk_for(o, zeros(), step_duration=100_000_000), "control_hz"),
        (lambda o: chunk_for(o, zeros(), observation_stamp=o.stamp + 1), "asked for"),
        (lambda o: chunk_for(o, zeros(), epoch=o.epoch + 1), "epoch"),
        (lambda o: chunk_for(o, np.full((8, 7), 2.0)), "gripper"),
    ],
)
def test_a_bad_chunk_ends_the_episode_with_a_fault(make, reason):
    environment = PointMass()
    episode = rollout(environment, Fixed(make), 0, 0)
    assert episode.outcome is Outcome.FAULT and reason in episode.reason
    assert episode.steps == 0 and not environment.actions


def test_the_limits_hold_in_process_too():
    episode = rollout(PointMass(), Seeker(), 0, 0, control=ControlConfig(limits=Limits(workspace_max=(1.0, 0.1, 1.0))))
    assert episode.outcome is Outcome.FAULT and "workspace along y" in episode.reason and episode.steps > 0


def test_on_tick_sees_each_step_before_it_is_taken():
    ticks = []
    episode = rollout(PointMass(), Seeker(), 0, 0, on_tick=lambda *seen: ticks.append(seen))
    assert len(ticks) == episode.steps
    assert [command.action.tobytes() for _, command, _ in ticks] == [action.tobytes() for action in episode.actions]
    assert not any(snapshot.success for snapshot, _, _ in ticks)
    assert {chunk.horizon for _, _, chunk in ticks} == {8}


def test_a_task_that_the_suite_lacks_is_refused():
    with pytest.raises(ValueError, match="expected 0 to 1"):
        rollout(PointMass(), Seeker(), 2, 0)
