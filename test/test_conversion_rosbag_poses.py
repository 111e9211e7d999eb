"""Poses out of a recording: quaternions that drivers have rounded, and a TF tree's two branches."""

from __future__ import annotations

import numpy as np
import pytest
from converting import converted, refused

from bitvla_ros.policy.observation import quaternion_to_axis_angle, unit_quaternions
from bitvla_ros.policy.streams import Streams

pytest.importorskip("rosbags")
from recordings import Messages, position, quaternion, standard, write_bag

ROUNDED = np.array([0.10, 0.0, 0.0, 1.00])  # of length 1.005: 0.199 rad
TF = "tf2_msgs/msg/TFMessage"
TURN = np.array([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)])  # 90 degrees about z


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


def test_a_rounded_quaternion_is_one_state_to_policy_and_conversion(tmp_path, capsys, m):
    streams = Streams(())
    streams.add_pose(1, np.zeros(3), ROUNDED)
    streams.add_gripper(1, np.zeros(2))
    state = streams.latest("lift it").state
    np.testing.assert_allclose(state[3:6], [0.19934, 0, 0], atol=1e-5)

    recorded = standard(m, 1.0)
    recorded["/end_effector_pose"] = [(t, m.pose(t, np.zeros(3), ROUNDED)) for t, _ in recorded["/end_effector_pose"]]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, recorded))
    np.testing.assert_allclose(episode.state[0, 3:6], state[3:6], atol=1e-6)


def test_rounded_quaternions_of_tf_and_of_targets_are_normalised_too(tmp_path, capsys, m):
    """In a chain their lengths would multiply, and scale the way to the tip."""
    streams = standard(m, 1.0)
    tf = [(t, [m.transform(t, "base", "flange", position(t), 1.005 * quaternion(t))]) for t, _ in streams.pop("/end_effector_pose")]
    streams["/tf"] = [(t, m.make(TF, transforms=transforms)) for t, transforms in tf]
    streams["/tf_static"] = [(0.0, m.make(TF, transforms=[m.transform(0, "flange", "tcp", [0, 0, 1.0], [0, 0, 0, 1.005])]))]
    streams["/target"] = [(t, m.pose(t, position(t), [0, 0, 0, 0])) for t, _ in tf]
    bag = write_bag(tmp_path / "bag", m, streams)
    episode = converted(capsys, tmp_path / "out", bag, "--tf", "base", "tcp")
    for i in range(len(episode)):
        np.testing.assert_allclose(episode.state[i, :3], position(i / 20) - [0, 0, 1.0], atol=1e-4)
        np.testing.assert_allclose(episode.state[i, 3:6], quaternion_to_axis_angle(quaternion(i / 20)), atol=1e-3)
    error = refused(capsys, tmp_path / "no", bag, "--tf", "base", "tcp", "--command", "target")
    assert "/target: target 0" in error and "unit quaternion" in error


@pytest.mark.parametrize("bad", [np.zeros(4), [0, 0, 0, 1.02], [np.nan, 0, 0, 1], [np.inf, 0, 0, 0]])
def test_what_is_no_quaternion_is_not_made_one(bad):
    with pytest.raises(ValueError, match="unit"):
        unit_quaternions(np.stack([TURN, np.array(bad, float)]))


def test_units_stay_as_they_are_and_keep_their_sign():
    np.testing.assert_array_equal(unit_quaternions([0.0, 0.0, 0.0, -1.0]), [0, 0, 0, -1])
    np.testing.assert_allclose(unit_quaternions(np.stack([TURN, -1.004 * TURN])), [TURN, -TURN])


@pytest.mark.parametrize("base", ["base", "/base", "plate"])
def test_tf_finds_the_common_ancestor(tmp_path, capsys, m, base):
    """base_link -> base, and base_link -> tool0, as in UR's description; plate hangs below base, on a joint that moves."""
    streams = standard(m, 1.0)
    times = [t for t, _ in streams.pop("/end_effector_pose")]
    static = [m.transform(0, "base_link", "base", [0.1, 0.2, 0.3], TURN), m.transform(0, "link", "tool0", [0, 0, 0], [0, 0, 0, 1])]
    streams["/tf_static"] = [(0.0, m.make(TF, transforms=static))]

    def moving(t: float) -> list:
        return [m.transform(t, "base_link", "link", position(t), quaternion(t)), m.transform(t, "base", "plate", [0, 0, t], [0, 0, 0, 1])]

    streams["/tf"] = [(t, m.make(TF, transforms=moving(t))) for t in times]
    bag = write_bag(tmp_path / "bag", m, streams)
    episode = converted(capsys, tmp_path / "out", bag, "--tf", base, "tool0")
    for i in range(len(episode)):
        x, y, z = position(i / 20) - [0.1, 0.2, 0.3]
        lift = i / 20 if base == "plate" else 0.0
        np.testing.assert_allclose(episode.state[i, :3], [y, -x, z - lift], atol=1e-4)
        turned = 0.4 * np.sin(i / 20) - np.pi / 2  # seen from base, which is turned by 90 degrees
        expected = quaternion_to_axis_angle(np.array([np.cos(turned / 2), np.sin(turned / 2), 0, 0]))
        np.testing.assert_allclose(np.abs(episode.state[i, 3:6]), np.abs(expected), atol=1e-3)
    error = refused(capsys, tmp_path / "no", bag, "--tf", base, "elsewhere")
    assert "TF has no way from" in error and "tool0" in error


def test_a_ring_in_tf_is_no_way(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    ring = [m.transform(0, "a", "b", [0, 0, 0], [0, 0, 0, 1]), m.transform(0, "b", "a", [0, 0, 0], [0, 0, 0, 1])]
    streams["/tf_static"] = [(0.0, m.make(TF, transforms=ring))]
    streams["/tf"] = [(0.0, m.make(TF, transforms=[m.transform(0.0, "base", "tip", [0, 0, 0], [0, 0, 0, 1])]))]
    assert "TF has no way from b to tip" in refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), "--tf", "b", "tip")
