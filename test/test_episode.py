"""What a recorder makes of the messages of an episode. Messages are real, the graph is not needed."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS here: pip install '.[ros]' or source a ROS installation")
pytest.importorskip("bitvla_ros.msg", reason="the messages are not built: pip install '.[ros]' or colcon build")

from bitvla_ros.evaluation.episodes import percentiles
from bitvla_ros.evaluation.proofs.stopping import Target
from bitvla_ros.msg import EndEffectorCommand, SimulationState
from bitvla_ros.nodes.conversions import image_to_msg, ns_to_stamp
from bitvla_ros.nodes.episode import Episode
from bitvla_ros.policy.chunk import ActionChunk, Latency

STEP = 50_000_000
FIRST = 7_000 * STEP


def stamp(tick: int) -> int:
    return FIRST + tick * STEP


def recorded(ticks: int = 5, horizon: int = 3, lockstep: bool = True) -> Episode:
    """Ticks 0 ... ticks, a command for all but the last, a chunk every `horizon` ticks whose rows say which chunk and action they are."""
    episode = Episode("pick", 10, outcome="success", steps=ticks, images={"scene": {}, "wrist": {}})
    for tick in range(ticks + 1):
        state = SimulationState(tick=tick, lockstep=lockstep)
        state.header.stamp = ns_to_stamp(stamp(tick))
        episode.states[stamp(tick)] = state
        for images in episode.images.values():
            images[stamp(tick)] = image_to_msg(np.full((4, 4, 3), tick, np.uint8), stamp(tick), "camera")
    for tick in range(ticks):
        command = EndEffectorCommand(tick=tick, epoch=4, gripper=-1.0 if tick < 2 else 1.0)
        command.header.stamp = ns_to_stamp(stamp(tick))
        episode.commands.append(command)
        if tick % horizon == 0:
            actions = np.full((horizon, 7), tick, np.float32)
            chunk = ActionChunk(actions, stamp(tick), STEP, epoch=4, latency=Latency(total=0.001 * (tick + 1)))
            episode.chunks.append((stamp(tick), chunk))
    return episode


def test_every_tick_becomes_a_frame_with_the_chunk_and_action_it_plays():
    frames, missing = recorded().moments()
    assert missing == 0
    assert [frame.images["scene"][0, 0, 0] for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [(frame.chunk[0, 0], frame.index) for frame in frames[:5]] == [(0, 0), (0, 1), (0, 2), (3, 0), (3, 1)]
    assert [frame.gripper for frame in frames] == [-1, -1, 1, 1, 1, 1]
    assert [frame.chunk_age for frame in frames[:5]] == pytest.approx([0, 0.05, 0.1, 0, 0.05])


def test_tick_without_an_image_is_left_out_and_counted():
    episode = recorded()
    del episode.images["wrist"][stamp(2)]
    frames, missing = episode.moments()
    assert missing == 1
    assert [frame.step for frame in frames] == [0, 1, 3, 4, 5]


def test_ticks_before_the_first_command_are_no_part_of_the_film():
    episode = recorded(lockstep=False)
    del episode.commands[:2]
    frames, _ = episode.moments()
    assert frames[0].images["scene"][0, 0, 0] == 2


def test_chunk_of_another_epoch_is_not_what_a_command_plays():
    episode = recorded()
    late = ActionChunk(np.zeros((3, 7), np.float32), stamp(4), STEP, epoch=3)
    episode.chunks.append((stamp(4), late))
    assert episode.chunk_behind(stamp(4), epoch=4) is episode.chunks[1][1]


def test_ages_count_played_actions_only():
    episode = recorded()
    assert episode.chunk_ages == pytest.approx([0, 0.05, 0.1, 0, 0.05])
    episode.commands[-1].hold = True
    assert episode.chunk_ages == pytest.approx([0, 0.05, 0.1, 0])


def test_percentiles_are_milliseconds():
    assert percentiles(recorded().latencies) == {"p50": 2.5, "p99": 3.97}
    assert percentiles([]) == {"p50": None, "p99": None}


def test_episode_without_a_command_has_no_film():
    assert Episode("pick", 10).moments() == ([], 0)


# ---- an arm that is driven by poses


def driven(ticks: int = 5) -> Episode:
    """The same episode of an arm: setpoints every 10 ms, from the first tick to the last, that go along x and rest at the end."""
    episode = recorded(ticks, lockstep=False)
    episode.commands.clear()
    for k in range(5 * ticks + 1):
        position = np.array([0.001 * min(k, 5 * ticks - 1), 0.0, 0.3])
        episode.targets.append(Target(k, FIRST + k * STEP // 5, position, np.array([1.0, 0.0, 0.0, 0.0])))
    for number, (_, chunk) in enumerate(episode.chunks):
        chunk.actions[:, 6] = 1 if number else -1
    return episode


def test_setpoints_make_a_film_too():
    frames, missing = driven().moments()
    assert missing == 0
    assert [frame.images["scene"][0, 0, 0] for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [(frame.chunk[0, 0], frame.index) for frame in frames] == [(0, 0), (0, 1), (0, 2), (3, 0), (3, 1), (3, 2)]
    assert [frame.gripper for frame in frames] == [-1, -1, -1, 1, 1, 1]


def test_ages_of_setpoints_are_those_of_the_control_steps_that_a_chunk_covers():
    episode = driven(ticks=8)
    del episode.chunks[1]
    assert episode.chunk_ages == pytest.approx([0, 0.05, 0.1, 0, 0.05, 0.1], abs=1e-9)


def test_an_episode_of_setpoints_is_complete_when_the_arm_rests():
    episode = driven()
    assert episode.complete
    del episode.targets[-1]
    assert not episode.complete


def test_an_episode_is_complete_when_all_commands_and_chunks_have_come():
    episode = recorded()
    episode.accepted = 2
    assert episode.complete
    episode.accepted = 3
    assert not episode.complete
    episode.accepted = 2
    del episode.commands[-1]
    assert not episode.complete
