"""What is recorded with `ros2 bag record` while teleoperating becomes demonstrations: pictures, poses and joints, at their times."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from converting import convert, converted, refused

from bitvla_ros.policy.observation import quaternion_to_axis_angle
from bitvla_ros.training.dataset import Dataset

pytest.importorskip("rosbags")
import recordings as r
from recordings import FINGERS, Messages, number_of, position, quaternion, standard, write_bag


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_recorded_motion_is_found_again(tmp_path, capsys, m, storage):
    bag = write_bag(tmp_path / "bag", m, standard(m), storage)
    episode = converted(capsys, tmp_path / "out", bag)
    assert episode.task == "Pick up the red block"
    assert len(episode) == 60  # 3 s at 20 Hz
    for i in range(len(episode)):
        t = i / 20
        # the newest picture of 30 Hz that is not later
        assert number_of(episode.images["scene"][i]) == number_of(episode.images["wrist"][i]) == int(t * 30 + 1e-6)
        np.testing.assert_allclose(episode.state[i, :3], position(t), atol=1e-5)
        np.testing.assert_allclose(episode.state[i, 3:6], quaternion_to_axis_angle(quaternion(t)), atol=1e-5)
        np.testing.assert_allclose(episode.state[i, 6:], [r.opening(t) / 2, -r.opening(t) / 2], atol=1e-6)
        # no command was recorded: the motion of the step, in units
        np.testing.assert_allclose(episode.actions[i, :3], (position(t + 0.05) - position(t)) / 0.0135, atol=1e-4)
        turn = 0.4 * (np.sin(t + 0.05) - np.sin(t))  # about -z: the hand looks down
        np.testing.assert_allclose(np.abs(episode.actions[i, 3:6]), [0, 0, abs(turn) / 0.07], atol=1e-4)


def test_jittered_stamps_are_aligned(tmp_path, capsys, m):
    """Each stream has a phase and a jitter of its own. Every picture is the newest that is not later; poses are found between samples."""
    random = np.random.default_rng(4)
    real: dict[str, np.ndarray] = {}

    def jitter(topic: str, times: np.ndarray) -> np.ndarray:
        period = times[1] - times[0]
        real[topic] = times + period * (random.uniform() + random.uniform(-0.4, 0.4, len(times))) + 0.5
        return real[topic]

    bag = write_bag(tmp_path / "bag", m, standard(m, jitter=jitter))
    episode = converted(capsys, tmp_path / "out", bag)
    begin = max(times[0] for times in real.values())
    assert len(episode) == int((min(times[-1] for times in real.values()) - begin) * 20)
    for i in range(len(episode)):
        t = begin + i / 20
        for role, topic in (("scene", "/camera/scene/image_raw"), ("wrist", "/camera/wrist/image_raw/compressed")):
            assert number_of(episode.images[role][i]) == np.flatnonzero(real[topic] <= t + 1e-9)[-1]
        np.testing.assert_allclose(episode.state[i, :3], position(t), atol=1e-5)
        np.testing.assert_allclose(episode.state[i, 3:6], quaternion_to_axis_angle(quaternion(t)), atol=1e-4)


def test_a_bag_without_definitions_is_read_with_the_known_ones(tmp_path, capsys, m):
    """As Humble's sqlite3 recordings are."""
    streams = standard(m, 1.0)
    streams["/end_effector_command"] = [(0.0, m.command(0.0, [0.5, 0, 0, 0, 0, 0], -1.0))]
    bag = write_bag(tmp_path / "bag", m, streams, "sqlite3")
    with sqlite3.connect(next(bag.glob("*.db3"))) as database:
        assert database.execute("DELETE FROM message_definitions").rowcount > 0
    episode = converted(capsys, tmp_path / "out", bag)
    np.testing.assert_allclose(episode.actions[0], [0.5, 0, 0, 0, 0, 0, 1])


def test_pose_from_tf(tmp_path, capsys, m):
    streams = standard(m)
    poses = streams.pop("/end_effector_pose")
    tf = "tf2_msgs/msg/TFMessage"
    half = np.sqrt(0.5)
    static = [m.transform(0, "flange", "tcp", [0, 0, 0.1], [0, 0, 0, 1]), m.transform(0, "world", "link0", [0, 0, 1], [0, 0, half, half])]
    streams["/tf_static"] = [(0.0, m.make(tf, transforms=static))]
    streams["/tf"] = [(t, m.make(tf, transforms=[m.transform(t, "link0", "flange", position(t), quaternion(t))])) for t, _ in poses]
    bag = write_bag(tmp_path / "bag", m, streams)
    episode = converted(capsys, tmp_path / "out", bag, "--tf", "world", "tcp")
    for i in (0, 17, 45):
        x, y, z = position(i / 20)
        np.testing.assert_allclose(episode.state[i, :3], [-y, x, z + 1 - 0.1], atol=1e-4)  # a quarter turn; the tool points down
    error = refused(capsys, tmp_path / "no", bag, "--tf", "world", "hand")
    assert "no way from world to hand" in error and "flange" in error


def test_topics_of_another_graph_and_one_joint_grippers_are_mapped(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams = {
        "/front/color/image_raw": streams["/camera/scene/image_raw"],
        "/ur/tcp_pose_broadcaster/pose": streams["/end_effector_pose"],
        "/ur/joint_states": [(t, m.joints(t, ["finger_joint"], [(0.04 - r.opening(t) / 2) / 0.05])) for t, _ in streams["/joint_states"]],
    }
    arguments = ["--camera", "scene=/front/color/image_raw", "--pose", "tcp_pose_broadcaster/pose", "--instruction", "wipe"]
    arguments += ["--gripper-joints", "finger_joint", "--gripper-scale", "-0.05", "0.05", "--gripper-offset", "0.04", "-0.04"]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), *arguments)
    assert list(episode.images) == ["scene"] and episode.task == "wipe"
    fingers = [[r.opening(i / 20) / 2, -r.opening(i / 20) / 2] for i in range(len(episode))]
    np.testing.assert_allclose(episode.state[:, 6:], fingers, atol=1e-3)


def test_orientations_of_all_episodes_are_on_one_branch(tmp_path, capsys, m):
    """Drivers take either sign of a quaternion."""
    plain, flipped = standard(m, 1.0), standard(m, 1.0)
    flipped["/end_effector_pose"] = [
        (t, m.pose(t, position(t), quaternion(t) * (-1 if i % 7 else 1))) for i, (t, _) in enumerate(plain["/end_effector_pose"])
    ]
    flipped["/end_effector_pose"][0] = (0.0, m.pose(0.0, position(0), -quaternion(0)))
    bags = [write_bag(tmp_path / "1", m, plain), write_bag(tmp_path / "2", m, flipped)]
    code, _, err = convert(capsys, *bags, tmp_path / "out")
    assert code == 0
    first, second = (Dataset(tmp_path / "out").episode(i) for i in (0, 1))
    np.testing.assert_allclose(first.state, second.state, atol=1e-5)
    assert "orientation_branch" in err
    code, _, err = convert(capsys, bags[0], tmp_path / "other", "--orientation-branch", -1, 0, 0, 0)
    other = Dataset(tmp_path / "other").episode(0).state[:, 3:6]
    np.testing.assert_allclose(np.linalg.norm(first.state[:, 3:6] - other, axis=1), 2 * np.pi, atol=1e-4)


def test_pictures_are_shrunk_to_their_shorter_side(tmp_path, capsys, m):
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, standard(m, 1.0)), "--image-size", 6)
    assert episode.images["scene"].shape[1:] == (6, 8, 3)


def test_bgr_pictures_become_rgb(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams["/camera/scene/image_raw"] = [(t, m.image(t, i, "bgr8")) for i, (t, _) in enumerate(streams["/camera/scene/image_raw"])]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))
    assert number_of(episode.images["scene"][10]) == number_of(episode.images["wrist"][10]) == 15


def test_another_publisher_of_joint_states_does_not_matter(tmp_path, capsys, m):
    """Arm and gripper often share the topic, each with stamps of its own."""
    streams = standard(m, 1.0)
    bag = write_bag(tmp_path / "1", m, streams)
    arm = [(t + 0.003, m.joints(t - 0.005, ["panda_joint1"], [0.3])) for t, _ in streams["/joint_states"][1:]]
    streams["/joint_states"] = sorted([*streams["/joint_states"], *arm], key=lambda row: row[0])
    both = converted(capsys, tmp_path / "both", write_bag(tmp_path / "2", m, streams))
    np.testing.assert_allclose(both.state, converted(capsys, tmp_path / "one", bag).state, atol=1e-6)


def test_topics_of_other_types_that_nobody_asked_for_do_not_matter(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams["/planner/task"] = streams["/other/end_effector_command"] = [(0.1, m.data("Bool", True))]
    assert len(converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))) == 20


def test_a_folder_of_bags_is_a_bag_an_episode(tmp_path, capsys, m):
    for name in ("a", "b"):
        write_bag(tmp_path / "session" / name, m, standard(m, 1.0))
    assert convert(capsys, tmp_path / "session", tmp_path / "out")[1]["episodes"] == 2


def test_messages_as_ros_itself_serialises_them_are_read(tmp_path, capsys, m):
    """The other tests' bytes come from the library that also reads them; these come from rclpy."""
    serialization = pytest.importorskip("rclpy.serialization")
    pytest.importorskip("bitvla_ros.msg")
    from array import array

    from builtin_interfaces.msg import Time
    from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
    from rosbags.rosbag2 import StoragePlugin, Writer
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import Header, String

    from bitvla_ros.msg import EndEffectorCommand

    def header(t: float) -> Header:
        ns = r.BEGIN + round(t * 1e9)
        return Header(stamp=Time(sec=ns // 10**9, nanosec=ns % 10**9), frame_id="base")

    def pose(t: float) -> PoseStamped:
        x, y, z = map(float, position(t))
        return PoseStamped(header=header(t), pose=Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=1.0, y=0.0, z=0.0, w=0.0)))

    def image(t: float, number: int) -> Image:
        data = array("B", r.picture(number).tobytes())
        return Image(header=header(t), height=r.HEIGHT, width=r.WIDTH, encoding="rgb8", step=3 * r.WIDTH, data=data)

    def command(t: float, i: int) -> EndEffectorCommand:
        return EndEffectorCommand(header=header(t), epoch=3, offset=[0.1 * i, 0.0, 0.0, 0.0, 0.0, -0.5], gripper=1.0)

    def joints(t: float) -> JointState:
        return JointState(header=header(t), name=list(FINGERS), position=[0.03, -0.03])

    kinds = {
        "/instruction": "std_msgs/msg/String",
        "/camera/scene/image_raw": "sensor_msgs/msg/Image",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/end_effector_pose": "geometry_msgs/msg/PoseStamped",
        "/end_effector_command": "bitvla_ros/msg/EndEffectorCommand",
    }
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {topic: writer.add_connection(topic, kind, typestore=m.store) for topic, kind in kinds.items()}
        for i in range(11):
            t = i / 20
            for topic, message in zip(kinds, (String(data="go"), image(t, i), joints(t), pose(t), command(t, i)), strict=True):
                writer.write(connections[topic], r.BEGIN + round(t * 1e9), serialization.serialize_message(message))
    episode = converted(capsys, tmp_path / "out", tmp_path / "bag")
    assert episode.task == "go" and len(episode) == 10
    assert [number_of(image) for image in episode.images["scene"]] == list(range(10))
    np.testing.assert_allclose(episode.state[:, :3], [position(i / 20) for i in range(10)], atol=1e-6)
    np.testing.assert_allclose(episode.actions[:, [0, 5, 6]], [[0.1 * i, -0.5, 0.0] for i in range(10)], atol=1e-6)
