"""When what a recording holds was captured: stamps, times of reception, and commands that are sent on change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from converting import converted, refused

pytest.importorskip("rosbags")
from recordings import BEGIN, FINGERS, Messages, Stream, number_of, position, quaternion, standard

SCENE, JOINTS, POSE = "/camera/scene/image_raw", "/joint_states", "/end_effector_pose"


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


def write(path: Path, m: Messages, streams: dict[str, Stream], received: Callable[[float], float]) -> Path:
    """A bag in which what was sent at t s is received at received(t)."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        rows = []
        for topic, stream in streams.items():
            connection = writer.add_connection(topic, stream[0][1].__msgtype__, typestore=m.store)
            rows += [(t, connection, m.store.serialize_cdr(message, message.__msgtype__)) for t, message in stream]
        for t, connection, data in sorted(rows, key=lambda row: row[0]):
            writer.write(connection, BEGIN + round(received(t) * 1e9), data)
    return path


def one_camera(m: Messages, seconds: float = 2.0) -> dict[str, Stream]:
    streams = standard(m, seconds)
    del streams["/camera/wrist/image_raw/compressed"]
    return streams


def unstamped(messages: Stream) -> Stream:
    for _, message in messages:
        message.header.stamp.sec = message.header.stamp.nanosec = 0
    return messages


def test_pictures_are_found_by_their_stamps_under_a_slow_clock(tmp_path, capsys, m):
    """`ros2 bag record --use-sim-time` with a /clock of 10 Hz: three pictures, and more of all else, are received at one time."""
    bag = write(tmp_path / "bag", m, one_camera(m), lambda t: np.floor(t * 10 + 1e-6) / 10)
    episode = converted(capsys, tmp_path / "out", bag)
    assert len(episode) == 40
    for i in range(40):
        assert number_of(episode.images["scene"][i]) == int(i / 20 * 30 + 1e-6)
        np.testing.assert_allclose(episode.state[i, :3], position(i / 20), atol=1e-4)


def test_times_of_reception_are_taken_only_when_asked_for(tmp_path, capsys, m):
    streams = {topic: stream if topic == "/instruction" else unstamped(stream) for topic, stream in one_camera(m, 1.0).items()}
    bag = write(tmp_path / "bag", m, streams, lambda t: t + 0.01)
    error = refused(capsys, tmp_path / "no", bag)
    assert "its stamp is zero" in error and "--stamps received" in error
    episode = converted(capsys, tmp_path / "out", bag, "--stamps", "received")
    for i in range(len(episode)):
        assert number_of(episode.images["scene"][i]) == int(i / 20 * 30 + 1e-6)
        np.testing.assert_allclose(episode.state[i, :3], position(i / 20), atol=1e-4)


@pytest.mark.parametrize(("topic", "shift"), [(SCENE, -0.5), (SCENE, 0.3), (POSE, 0.3), ("/twist", -3600.0)])
def test_streams_of_different_clocks_are_refused(tmp_path, capsys, m, topic, shift):
    """A camera of another machine: by its stamps a frame would have the picture of another moment."""
    streams = one_camera(m, 1.0)
    streams["/twist"] = [(t, m.twist(t, [0.1, 0, 0], [0, 0, 0])) for t, _ in streams[JOINTS]]
    for t, message in streams[topic]:
        message.header.stamp = m.time(t + shift)
    bag = write(tmp_path / "bag", m, streams, lambda t: t + 0.002)
    error = refused(capsys, tmp_path / "no", bag, "--command", "twist")
    assert error.count(topic) >= 1 and f"{abs(shift):.3f} s {'ahead of' if shift > 0 else 'behind'}" in error
    assert "chrony" in error
    converted(capsys, tmp_path / "out", bag, "--command", "twist", "--stamps", "received")


def test_a_simulation_in_its_own_time_is_no_other_clock(tmp_path, capsys, m):
    """Received in wall time, at a third of its speed, stamped in simulated time."""
    streams = one_camera(m, 1.0)
    assert len(converted(capsys, tmp_path / "out", write(tmp_path / "bag", m, streams, lambda t: 5000 + 3 * t))) == 20


def test_two_publishers_of_one_joint_are_refused(tmp_path, capsys, m):
    streams = one_camera(m, 1.0)
    again = [(t + 1e-4, m.joints(t, FINGERS, [0.0, 0.0])) for t, _ in streams[JOINTS]]
    streams[JOINTS] = sorted(streams[JOINTS] + again, key=lambda row: row[0])
    error = refused(capsys, tmp_path / "no", write(tmp_path / "bag", m, streams, lambda t: t))
    assert JOINTS in error and "second publisher" in error and "its value another" in error


@pytest.mark.parametrize("topic", [POSE, SCENE, "/twist", "/grip", "/tf"])
def test_different_values_at_one_stamp_are_refused_in_every_stream(tmp_path, capsys, m, topic):
    streams = one_camera(m, 1.0)
    arguments = ["--command", "twist", "--gripper", "grip", "--gripper-open", 1, "--gripper-closed", 0]
    tf = "tf2_msgs/msg/TFMessage"
    times = [t for t, _ in streams[JOINTS]]
    second = {
        POSE: lambda t: m.pose(t, position(t) + 0.1, quaternion(t)),
        SCENE: lambda t: m.image(t, 999),
        "/twist": lambda t: m.twist(t, [-0.1, 0, 0], [0, 0, 0]),
        "/grip": lambda t: m.joints(t, ["g"], [0.0]),
        "/tf": lambda t: m.make(tf, transforms=[m.transform(t, "base", "tip", position(t) + 0.1, quaternion(t))]),
    }
    streams["/twist"] = [(t, m.twist(t, [0.1, 0, 0], [0, 0, 0])) for t in times]
    streams["/grip"] = [(t, m.joints(t, ["g"], [1.0])) for t in times]
    streams["/tf"] = [(t, m.make(tf, transforms=[m.transform(t, "base", "tip", position(t), quaternion(t))])) for t in times]
    if topic == "/tf":
        arguments += ["--tf", "base", "tip"]
    at, _ = streams[topic][5]
    streams[topic].insert(6, (at + 1e-4, second[topic](at)))
    error = refused(capsys, tmp_path / "no", write(tmp_path / "bag", m, streams, lambda t: t), *arguments)
    assert ("TF" if topic == "/tf" else topic) in error and "its value another" in error


def test_the_same_said_twice_is_no_contradiction(tmp_path, capsys, m):
    streams = {topic: [row for row in stream for _ in range(2)] for topic, stream in one_camera(m, 1.0).items()}
    assert len(converted(capsys, tmp_path / "out", write(tmp_path / "bag", m, streams, lambda t: t))) == 20


@pytest.mark.parametrize("kind", ["Bool", "Float64", "EndEffectorCommand"])
def test_a_command_that_is_sent_on_change_says_nothing_of_what_was_before(tmp_path, capsys, m, kind):
    """The fingers are open from the start, and are told to close at 0.8 s. Once nothing more was sent, nothing more happened."""
    streams = one_camera(m)
    if kind == "EndEffectorCommand":
        streams["/end_effector_command"] = [(t, m.command(t, [0.0] * 6, 1.0)) for t in np.arange(0.8, 2.0, 0.05)]
        arguments = []
    else:
        streams["/grip"] = [(0.8, m.data(kind, kind == "Bool" or 0.0))]  # true, or 0 m, closes
        values = (0, 1) if kind == "Bool" else (0.08, 0.0)
        arguments = ["--gripper", "grip", "--gripper-open", values[0], "--gripper-closed", values[1]]
    episode = converted(capsys, tmp_path / "out", write(tmp_path / "bag", m, streams, lambda t: t), *arguments)
    np.testing.assert_allclose(episode.actions[:16, 6], 1.0)
    np.testing.assert_allclose(episode.actions[16:, 6], 0.0)
