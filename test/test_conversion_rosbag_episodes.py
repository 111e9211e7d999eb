"""Where a recording's episodes begin and end, and what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from converting import convert, refused

from bitvla_ros.training.dataset import Dataset

pytest.importorskip("rosbags")
from recordings import Messages, position, standard, write_bag


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


def test_episodes_split_by_the_controllers_tasks(tmp_path, capsys, m):
    streams = standard(m, 4.0)
    del streams["/instruction"]
    rows = [(0.5, True, "pick the cup"), (1.5, False, ""), (2.0, True, "push the plate"), (3.0, False, "")]
    streams["/task"] = [(t, m.task(t, active=active, instruction=words)) for t, active, words in rows]
    code, _, err = convert(capsys, write_bag(tmp_path / "bag", m, streams), tmp_path / "out", "--split", "task")
    assert code == 0, err
    dataset = Dataset(tmp_path / "out")
    assert dataset.lengths == (20, 20)
    assert [dataset.episode(i).task for i in (0, 1)] == ["pick the cup", "push the plate"]
    np.testing.assert_allclose(dataset.episode(1).state[0, :3], position(2.0), atol=1e-5)


@pytest.mark.parametrize("kind", ["Bool", "String"])
def test_episodes_split_by_a_button_or_by_instructions(tmp_path, capsys, m, kind):
    streams = standard(m, 4.0)
    rows = [(0.5, "a"), (1.5, ""), (2.0, "b"), (3.0, "")]
    streams["/episode"] = [(t, m.data(kind, text if kind == "String" else bool(text))) for t, text in rows]
    bag = write_bag(tmp_path / "bag", m, streams)
    code, _, err = convert(capsys, bag, tmp_path / "out", "--split", "episode")
    assert code == 0, err
    dataset = Dataset(tmp_path / "out")
    # these messages have no stamp but their reception, which the bag's stamped streams carry over
    assert dataset.lengths == (20, 20)
    assert dataset.tasks == (("a", "b") if kind == "String" else ("Pick up the red block",))


def test_a_simulations_bag_received_in_wall_time_is_split_in_simulated_time(tmp_path, capsys, m):
    streams = standard(m, 4.0)
    streams["/episode"] = [(1.0, m.data("Bool", True)), (2.0, m.data("Bool", False))]
    bag = write_bag(tmp_path / "bag", m, streams, late=5000.0, slowness=2.5)
    assert convert(capsys, bag, tmp_path / "out", "--split", "episode")[0] == 0
    episode = Dataset(tmp_path / "out").episode(0)
    assert len(episode) in (19, 20)
    np.testing.assert_allclose(episode.state[0, :3], position(1.0), atol=1e-3)


def test_several_instructions_without_a_split_are_refused(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams["/instruction"].append((0.6, m.data("String", "something else")))
    assert "--split" in refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))


def test_success_is_what_was_recorded_of_each_episode_or_unknown(tmp_path, capsys, m):
    """The last value from an episode's beginning to that of the next counts: it is often given after the end."""
    streams = standard(m, 4.0)
    rows = [(0.3, "a"), (0.9, ""), (1.2, "b"), (1.8, ""), (2.2, "c"), (2.8, ""), (3.2, "d"), (3.7, "")]
    streams["/episode"] = [(t, m.data("String", text)) for t, text in rows]
    told = [(0.1, True), (0.5, True), (1.0, False), (1.3, False), (1.9, True), (3.1, True), (3.3, False)]
    streams["/success"] = [(t, m.data("Bool", value)) for t, value in told]
    bag = write_bag(tmp_path / "bag", m, streams)
    code, result, err = convert(capsys, bag, tmp_path / "out", "--split", "episode")
    assert code == 0, err
    assert Dataset(tmp_path / "out").successes == (False, True, True, False)
    assert result["successes"] == {"succeeded": 2, "failed": 2, "unknown": 0}
    del streams["/success"]
    assert convert(capsys, write_bag(tmp_path / "silent", m, streams), tmp_path / "other", "--split", "episode")[0] == 0
    assert Dataset(tmp_path / "other").successes == (None,) * 4
    for name in ("/gripper/success", "/planner/success"):  # of something else
        streams[name] = [(t, m.data("Bool", value)) for t, value in told]
    assert convert(capsys, write_bag(tmp_path / "foreign", m, streams), tmp_path / "foreign_out", "--split", "episode")[0] == 0
    assert Dataset(tmp_path / "foreign_out").successes == (None,) * 4
