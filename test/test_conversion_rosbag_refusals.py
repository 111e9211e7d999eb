"""Recordings from which nothing can be learned are refused, by name, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from converting import convert, refused

pytest.importorskip("rosbags")
from recordings import Messages, position, quaternion, standard, write_bag


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


@pytest.mark.parametrize("topic", ["/joint_states", "/end_effector_pose", "/camera/scene/image_raw"])
def test_a_bag_without_a_needed_topic_lists_what_it_has(tmp_path, capsys, m, topic):
    streams = standard(m, 1.0)
    del streams[topic]
    arguments = ["--camera", "scene=camera/scene/image_raw"] if "camera" in topic else []
    error = refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), *arguments)
    assert topic[1:] in error
    for other, kind, count in (
        ("/camera/wrist/image_raw/compressed", "sensor_msgs/CompressedImage", 31),
        ("/instruction", "std_msgs/String", 1),
    ):
        row = next(line for line in error.splitlines() if line.split()[:1] == [other])
        assert kind in row and f"{count} messages" in row


@pytest.mark.parametrize(
    ("topic", "name"), [("/camera/scene/image_raw", "camera scene"), ("/joint_states", "joint state"), ("/end_effector_pose", "pose")]
)
def test_a_gap_names_episode_frame_and_stream(tmp_path, capsys, m, topic, name):
    streams = standard(m)
    streams[topic] = [(t, message) for t, message in streams[topic] if not 1.5 < t < 2.0]
    bag = write_bag(tmp_path / "bag", m, streams)
    error = refused(capsys, tmp_path / "out", bag)
    assert "episode 0" in error and name in error and "--max-gap" in error
    frame = int(error.partition("frame ")[2].split()[0])
    assert 30 <= frame <= 34
    assert convert(capsys, bag, tmp_path / "patient", "--max-gap", 1.0)[0] == 0


def test_a_bad_second_bag_leaves_nothing_behind(tmp_path, capsys, m):
    bad = standard(m, 1.0)
    del bad["/joint_states"]
    bags = [write_bag(tmp_path / "1", m, standard(m, 1.0)), write_bag(tmp_path / "2", m, bad)]
    before = sorted(path.name for path in tmp_path.iterdir())
    assert convert(capsys, *bags, tmp_path / "out")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("fault", ["zero_stamp", "backward", "nan_pose", "no_quaternion", "encoding", "size", "damaged", "nan_command"])
def test_bad_messages_are_refused_by_name(tmp_path, capsys, m, fault):
    streams = standard(m, 1.0)
    expected = "end_effector_pose"
    if fault == "zero_stamp":
        pose = m.pose(0.5, position(0.5), quaternion(0.5))
        pose.header.stamp.sec = pose.header.stamp.nanosec = 0
        streams["/end_effector_pose"][50] = (0.5, pose)
        expected = "message 50: its stamp is zero"
    elif fault == "backward":
        streams["/end_effector_pose"][50] = (0.5, m.pose(0.3, position(0.3), quaternion(0.3)))
        expected = "message 50"
    elif fault == "nan_pose":
        streams["/end_effector_pose"][50] = (0.5, m.pose(0.5, [np.nan, 0, 0], quaternion(0.5)))
        expected = "pose 50"
    elif fault == "no_quaternion":
        streams["/end_effector_pose"][50] = (0.5, m.pose(0.5, position(0.5), [0, 0, 0, 0]))
        expected = "unit quaternion"
    elif fault == "nan_command":
        streams["/end_effector_command"] = [(0.1, m.command(0.1, [np.nan] * 6, 0.0))]
        expected = "not finite"
    else:
        image = m.image(0.5, 15, "32FC1" if fault == "encoding" else "rgb8")
        expected = "32FC1" if fault == "encoding" else "do not go together"
        if fault == "size":
            image.height = 7
        streams["/camera/scene/image_raw"][15] = (0.5, image)
        if fault == "damaged":
            picture = m.compressed(0.5, 15)
            picture.data = picture.data[:40]
            streams["/camera/wrist/image_raw/compressed"][15] = (0.5, picture)
            streams["/camera/scene/image_raw"][15] = (0.5, m.image(0.5, 15))
            expected = "frame 10: /camera/wrist/image_raw/compressed"
    assert expected in refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))


def test_other_refusals_say_what_to_do(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    del streams["/instruction"]
    bag = write_bag(tmp_path / "bag", m, streams)
    assert "--instruction" in refused(capsys, tmp_path / "out", bag)
    assert "never has finger" in refused(capsys, tmp_path / "out", bag, "--instruction", "x", "--gripper-joints", "finger")
    assert "sensor_msgs/JointState, expected" in refused(capsys, tmp_path / "out", bag, "--instruction", "x", "--command", "joint_states")
    assert "is no rosbag2" in refused(capsys, tmp_path / "out", Path(__file__))
    moved = standard(m, 1.0)
    moved["/end_effector_pose"][7] = (0.07, m.pose(0.07, position(0), quaternion(0), "elsewhere"))
    assert "several frames: base, elsewhere" in refused(capsys, tmp_path / "out", write_bag(tmp_path / "moved", m, moved))
    assert "does not exist" in refused(capsys, tmp_path / "out", tmp_path / "nothing")
    (tmp_path / "cut.mcap").write_bytes(b"\x89MCAP0\r\n123")
    assert "reindex" in refused(capsys, tmp_path / "out", tmp_path / "cut.mcap")
    (tmp_path / "there").mkdir()
    assert convert(capsys, bag, tmp_path / "there", "--instruction", "x")[0] == 2
