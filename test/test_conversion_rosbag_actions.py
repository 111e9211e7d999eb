"""What is recorded while teleoperating becomes actions: of commands in every form, of the gripper, or of the motion alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from converting import convert, converted, refused

from bitvla_ros.training.dataset import Dataset

pytest.importorskip("rosbags")
import recordings as r
from recordings import FINGERS, Messages, Stream, opening, position, quaternion, standard, write_bag


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


def test_rotation_is_about_the_axes_of_the_frame(tmp_path, capsys, m):
    """q(t) = r(t) q(0): the action is what turns the pose from the left."""
    streams = standard(m, 1.0)
    axis = np.array([0.0, 1.0, 0.0])

    def turned(t: float) -> list[float]:  # about y by 0.8 t, from looking down (1, 0, 0, 0)
        half = 0.4 * t
        s, c = np.sin(half), np.cos(half)
        return [c, 0.0, -s, 0.0]  # (s y) * (x)

    streams["/end_effector_pose"] = [(t, m.pose(t, position(t), turned(t))) for t, _ in streams["/end_effector_pose"]]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))
    np.testing.assert_allclose(episode.actions[:, 3:6], np.tile(axis * 0.8 * 0.05 / 0.07, (len(episode), 1)), atol=1e-5)


def test_fingers_that_close_on_an_object_mean_closed(tmp_path, capsys, m):
    """The object holds them 3 cm apart; the command came when they began to move, at 0.8 s."""
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, standard(m)))
    closed = np.flatnonzero(episode.actions[:, 6] == 0)
    assert closed[0] in (16, 17)
    assert (episode.actions[closed[0] :, 6] == 0).all()
    assert (episode.actions[: closed[0], 6] == 1).all()


def test_our_commands_are_taken_as_they_are_and_the_gripper_is_converted(tmp_path, capsys, m):
    offsets = np.random.default_rng(0).uniform(-1, 1, (40, 6)).astype(np.float32)
    streams = standard(m)
    # one command a step, in its beginning, as the controller sends them in lockstep
    streams["/end_effector_command"] = [
        (i / 20, m.command(i / 20, offsets[i], -1.0 if i < 10 else 1.0, hold=i == 5)) for i in range(len(offsets))
    ]
    code, result, err = convert(capsys, write_bag(tmp_path / "bag", m, streams), tmp_path / "out")
    assert code == 0
    episode = Dataset(tmp_path / "out").episode(0)
    offsets[5] = 0  # a hold
    np.testing.assert_allclose(episode.actions[:40, :6], offsets, atol=1e-6)
    assert (episode.actions[45:, :6] == 0).all()  # a controller that has fallen silent
    assert episode.actions[:12, 6].tolist() == [1.0] * 10 + [0.0, 0.0]
    assert "-1 (open) ... +1 (closed) converted to 1 = open, 0 = closed" in err
    assert any("converted to 1 = open" in line for line in Dataset(tmp_path / "out").source["conventions"])
    assert result["episodes"] == 1 and result["frames"] == 60


def test_twists_at_any_rate_and_phase_keep_their_distance(tmp_path, capsys, m):
    streams = standard(m)
    times = np.arange(0.013, 3.0, 1 / 33)
    streams["/servo/delta_twist_cmds"] = [(t, m.twist(t, [0.1 * np.sin(t), 0, -0.05], [0, 0, 0.3])) for t in times.tolist()]
    streams["/gripper"] = [(t, m.data("Float64", 0.08 if t < 1.5 else 0.0)) for t in np.arange(0, 3, 0.1).tolist()]
    arguments = ["--command", "delta_twist_cmds", "--gripper", "gripper", "--gripper-open", 0.08, "--gripper-closed", 0]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), *arguments)
    travelled = episode.actions[1:-1, :3].sum(axis=0) * 0.0135
    np.testing.assert_allclose(travelled, [0.1 * (np.cos(0.05) - np.cos(2.95)), 0, -0.05 * 2.9], atol=2e-3)
    np.testing.assert_allclose(episode.actions[1:-1, 5], 0.3 * 0.05 / 0.07, atol=1e-5)
    assert np.flatnonzero(episode.actions[:, 6] == 0)[0] == 30


def test_a_twist_in_the_tools_axes_is_turned_into_the_poses(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams["/end_effector_pose"] = [(t, m.pose(t, position(0), [1, 0, 0, 0])) for t, _ in streams["/end_effector_pose"]]
    streams["/twist"] = [(t, m.twist(t, [0, 0.1, 0.1], [0, 0, 0.2], "hand")) for t in np.arange(0, 1, 0.02).tolist()]
    bag = write_bag(tmp_path / "bag", m, streams)
    assert "--command-frame" in refused(capsys, tmp_path / "out", bag, "--command", "twist")
    episode = converted(capsys, tmp_path / "out", bag, "--command", "twist", "--command-frame", "tool")
    expected = np.array([0, -0.1 * 0.05 / 0.0135, -0.1 * 0.05 / 0.0135, 0, 0, -0.2 * 0.05 / 0.07])  # half a turn about x
    np.testing.assert_allclose(episode.actions[:-1, :6], np.tile(expected, (len(episode) - 1, 1)), atol=1e-5)


def test_moving_targets_are_the_actions(tmp_path, capsys, m):
    streams = standard(m)
    ahead = 0.3  # s: the arm lags behind
    times = [t for t, _ in streams["/end_effector_pose"]]
    streams["/target_pose"] = [(t, m.pose(t, position(t + ahead), quaternion(t + ahead))) for t in times]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), "--command", "target_pose")
    for i in (0, 20, 40):
        t = i / 20 + ahead
        np.testing.assert_allclose(episode.actions[i, :3], (position(t + 0.05) - position(t)) / 0.0135, atol=1e-4)


def test_a_target_sent_rarely_moves_only_when_it_is_sent(tmp_path, capsys, m):
    streams = standard(m)
    place = position(0)
    rows = [(0.0, place), (0.05, place), (2.0, place + [0.01, 0, 0]), (2.05, place + [0.01, 0, 0])]
    streams["/target_pose"] = [(t, m.pose(t, where, quaternion(0))) for t, where in rows]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), "--command", "target_pose")
    moving = np.flatnonzero(np.abs(episode.actions[:, 0]) > 1e-6)
    assert moving[0] >= 36 and moving[-1] <= 40
    np.testing.assert_allclose(episode.actions[:, 0].sum() * 0.0135, 0.01, atol=1e-6)


def test_units_and_clipping_are_said(tmp_path, capsys, m):
    bag = write_bag(tmp_path / "bag", m, standard(m))
    _, result, err = convert(capsys, bag, tmp_path / "out", "--metres-per-unit", 0.001, "--radians-per-unit", 0.5)
    assert "1 = 0.001 m or 0.5 rad a step" in err
    assert "clipped" in err and "--metres-per-unit" in err
    assert np.abs(Dataset(tmp_path / "out").episode(0).actions[:, :6]).max() == 1.0
    assert any("clipped" in line for line in result["said"])


@pytest.mark.parametrize(
    ("kind", "opened", "values"), [("Bool", 1, (True, False)), ("Bool", 0, (False, True)), ("Float32", -1, (-1.0, 1.0))]
)
def test_gripper_topics_are_converted_as_they_are_said_to_be(tmp_path, capsys, m, kind, opened, values):
    streams = standard(m)
    streams["/gripper"] = [(t, m.data(kind, values[t >= 2.0])) for t in np.arange(0, 3, 0.05).tolist()]
    closed = {1: 0, 0: 1, -1: 1}[opened]
    arguments = ["--gripper", "/gripper", "--gripper-open", opened, "--gripper-closed", closed]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), *arguments)
    assert set(episode.actions[:39, 6]) == {1.0} and set(episode.actions[41:, 6]) == {0.0}


def test_a_gripper_topic_without_a_convention_is_refused(tmp_path, capsys, m):
    streams = standard(m)
    streams["/gripper"] = [(0.0, m.data("Bool", True))]
    assert "--gripper-open" in refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), "--gripper", "gripper")


def test_a_bag_of_fingers_that_never_move_keeps_the_gripper_where_another_bag_tells_what_moves_it(tmp_path, capsys, m):
    still = standard(m, 1.0)
    still["/joint_states"] = [(t, m.joints(t, FINGERS, [0.02, -0.02])) for t, _ in still["/joint_states"]]
    for name, streams in (("1", still), ("2", standard(m, 1.0))):
        write_bag(tmp_path / "bags" / name, m, streams)
    episode = converted(capsys, tmp_path / "out", tmp_path / "bags")
    assert (episode.actions[:, 6] == 1).all()


def test_a_recorded_simulation_replays_to_success(tmp_path, capsys, m):
    """The expert's episode goes into a bag and comes back: its commands exactly; and what is taken from the measured motion alone, in
    the default units, still does the task when it is played blindly."""
    pytest.importorskip("mujoco")
    from bitvla_ros.evaluation.rollout import rollout
    from bitvla_ros.simulation import make
    from bitvla_ros.simulation.expert import make_expert

    environment = make("tabletop_object", cameras=())
    ticks: list[tuple] = []
    rollout(environment, make_expert(environment), 0, 2_500_000, on_tick=lambda snapshot, command, chunk: ticks.append((snapshot, command)))
    ticks = [tick for tick in ticks if tick[1] is not None]
    streams: dict[str, r.Stream] = {name: [] for name in r.MESSAGE if "wrist" not in name}
    streams["/end_effector_command"] = []
    streams["/instruction"] = [(0.0, m.data("String", environment.tasks[0]))]
    for i, (snapshot, command) in enumerate(ticks):
        t = i / 20
        streams["/camera/scene/image_raw"].append((t, m.image(t, i)))
        streams["/joint_states"].append((t, m.joints(t, environment.gripper_joint_names, snapshot.gripper)))
        streams["/end_effector_pose"].append((t, m.pose(t, snapshot.position, snapshot.orientation)))
        streams["/end_effector_command"].append((t, m.command(t, command.action[:6], command.action[6], hold=command.hold)))
    bag = write_bag(tmp_path / "bag", m, streams)
    meant = converted(capsys, tmp_path / "meant", bag)
    moved = converted(capsys, tmp_path / "moved", bag, "--command", "none")
    actions = np.stack([command.action for _, command in ticks[: len(meant)]])
    np.testing.assert_allclose(meant.actions[:, :6], actions[:, :6], atol=1e-6)
    np.testing.assert_array_equal(meant.actions[:, 6], (1 - actions[:, 6]) / 2)
    for episode in (meant, moved):
        environment.reset(0, 2_500_000)
        played = episode.actions * np.array([1, 1, 1, 1, 1, 1, -2]) + np.array([0, 0, 0, 0, 0, 0, 1])
        rest = np.tile([0, 0, 0, 0, 0, 0, -1], (5, 1))  # the last step of a recording has no action
        assert any(environment.step(action).success for action in np.concatenate([played, rest]).astype(np.float32))


# ---- which way the fingers' joints count

FR3 = ("fr3_finger_joint1", "fr3_finger_joint2")
KNUCKLE = ("robotiq_85_left_knuckle_joint",)


def with_fingers(m: Messages, names: Sequence[str], of: Callable[[float], Sequence[float]]) -> dict[str, Stream]:
    """The standard recording; its gripper reports `of` the opening in m."""
    streams = standard(m)
    streams["/joint_states"] = [(t, m.joints(t, names, of(opening(t)))) for t, _ in streams["/joint_states"]]
    return streams


def franka(m: Messages) -> dict[str, Stream]:
    """As libfranka's and crisp's drivers: both fingers half the width, a pose of the fingertips on current_pose."""
    streams = with_fingers(m, FR3, lambda w: (w / 2, w / 2))
    return {**streams, "/current_pose": streams.pop("/end_effector_pose")}


def test_the_profile_that_drives_the_arm_says_how_its_fingers_count(tmp_path, capsys, m):
    bag = write_bag(tmp_path / "bag", m, franka(m))
    episode = converted(capsys, tmp_path / "out", bag, "--profile", "fr3_crisp")
    times = np.arange(len(episode)) / 20
    assert episode.state[:, 6] == pytest.approx([opening(t) / 2 for t in times], abs=1e-3)
    assert episode.state[:, 7] == pytest.approx(-episode.state[:, 6])
    assert set(episode.actions[:15, 6]) == {1.0} and set(episode.actions[-15:, 6]) == {0.0}


def test_one_joint_of_a_knuckle_too(tmp_path, capsys, m):
    bag = write_bag(tmp_path / "bag", m, with_fingers(m, KNUCKLE, lambda w: [0.8 * (1 - w / 0.085)]))
    fingers = ["--gripper-joints", *KNUCKLE, "--gripper-scale", "-0.053125", "0.053125", "--gripper-offset", "0.0425", "-0.0425"]
    episode = converted(capsys, tmp_path / "out", bag, *fingers)
    assert episode.state[0, 6] == pytest.approx(0.04, abs=1e-4) and episode.state[-1, 7] == pytest.approx(-0.015, abs=1e-4)
    assert set(episode.actions[:15, 6]) == {1.0} and set(episode.actions[-15:, 6]) == {0.0}


@pytest.mark.parametrize(
    ("names", "of", "arguments", "said"),
    [
        (FR3, lambda w: (w / 2, w / 2), [], "is always 0 m: where both joints report half the opening, as Franka's do"),
        (KNUCKLE, lambda w: [w], [], "is always 0 m: give the scale and offset that make +w/2 and -w/2 of this joint"),
        (FR3, lambda w: (-w / 2, w / 2), [], "goes down to -0.080 m, expected 0 or more: turn the signs of the scale"),
        (FR3, lambda w: (0.02, -0.02), [], "the opening of the gripper never changes, so its commands cannot be told from the fingers"),
        (FR3, lambda w: (0.0, 0.0), ["--gripper", "joint_states", "--gripper-open", "1", "--gripper-closed", "0"], "is always 0 m"),
    ],
)
def test_an_opening_that_says_nothing_is_refused(tmp_path, capsys, m, names, of, arguments, said):
    bag = write_bag(tmp_path / "bag", m, with_fingers(m, names, of))
    assert said in refused(capsys, tmp_path / "out", bag, "--gripper-joints", *names, *arguments)


def test_what_contradicts_the_profile_is_refused(tmp_path, capsys, m):
    bag = write_bag(tmp_path / "bag", m, franka(m))
    error = refused(capsys, tmp_path / "out", bag, "--profile", "fr3_crisp", "--gripper-scale", "1", "1")
    assert "--gripper-scale is 1, 1, but" in error and "fr3_crisp.yaml states 1, -1: leave --gripper-scale out" in error
    assert "did you mean 'fr3_crisp'" in refused(capsys, tmp_path / "out", bag, "--profile", "fr3_crips")
