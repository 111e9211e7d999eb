"""What is recorded with `ros2 bag record` while teleoperating becomes demonstrations, exactly (bitvla convert)."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from bitvla_ros import cli
from bitvla_ros.policy.observation import quaternion_to_axis_angle
from bitvla_ros.training.dataset import Dataset, Episode

pytest.importorskip("rosbags")
import recordings as r
from recordings import FINGERS, Messages, number_of, position, quaternion, standard, write_bag


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


def convert(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict, str]:
    code = cli.main(["convert", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def converted(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> Episode:
    code, _, err = convert(capsys, *arguments[:1], out, *arguments[1:])
    assert code == 0, err
    return Dataset(out).episode(0)


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    code, result, _ = convert(capsys, *arguments[:1], out, *arguments[1:])
    assert code == 2
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if "partial" in path.name] == []
    return str(result["error"])


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
    """The object holds them 3 cm apart; the command came when they began to move, at 1 s."""
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, standard(m)))
    closed = np.flatnonzero(episode.actions[:, 6] == 0)
    assert closed[0] in (20, 21)
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


def test_topics_of_another_graph_and_one_joint_grippers_are_mapped(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams = {
        "/front/color/image_raw": streams["/camera/scene/image_raw"],
        "/ur/tcp_pose_broadcaster/pose": streams["/end_effector_pose"],
        "/ur/joint_states": [(t, m.joints(t, ["finger_joint"], [0.4])) for t, _ in streams["/joint_states"]],
    }
    arguments = ["--camera", "scene=/front/color/image_raw", "--pose", "tcp_pose_broadcaster/pose", "--instruction", "wipe"]
    arguments += ["--gripper-joints", "finger_joint", "--gripper-scale", "-0.05", "0.05", "--gripper-offset", "0.04", "-0.04"]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams), *arguments)
    assert list(episode.images) == ["scene"] and episode.task == "wipe"
    np.testing.assert_allclose(episode.state[:, 6:], [[0.02, -0.02]] * len(episode), atol=1e-6)


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


# Bad input


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


def test_several_instructions_without_a_split_are_refused(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams["/instruction"].append((0.6, m.data("String", "something else")))
    assert "--split" in refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))


def test_a_bag_of_fingers_that_never_move_keeps_the_gripper(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    streams["/joint_states"] = [(t, m.joints(t, FINGERS, [0.0, 0.0])) for t, _ in streams["/joint_states"]]
    episode = converted(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))
    assert (episode.actions[:, 6] == 0).all()


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
