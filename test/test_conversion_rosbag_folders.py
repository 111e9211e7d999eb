"""Which bags there are in a folder, and which topics in a bag: nothing is left out or taken apart in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from converting import convert, converted, refused

pytest.importorskip("rosbags")
from recordings import Messages, Stream, standard, write_bag

from bitvla_ros.training.sources.bag import bags_in


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, m) -> Path:
    return write_bag(tmp_path_factory.mktemp("whole") / "pick", m, one_camera(m))


def one_camera(m: Messages, seconds: float = 1.0) -> dict[str, Stream]:
    streams = standard(m, seconds)
    del streams["/camera/wrist/image_raw/compressed"]
    return streams


def split(folder: Path, m: Messages, cuts: tuple[float, ...] = (1.0, 2.0, 3.0), pause: float = 0.0) -> Path:
    """As `ros2 bag record --max-bag-duration` leaves it where it was killed: parts, and no metadata.yaml."""
    streams, before = one_camera(m, cuts[-1]), 0.0
    folder.mkdir(parents=True)
    for number, cut in enumerate(cuts):
        part = {topic: [(t + number * pause, x) for t, x in stream if before <= t < cut] for topic, stream in streams.items()}
        made = write_bag(folder.parent / f"part{number}", m, {topic: stream for topic, stream in part.items() if stream})
        next(made.glob("*.mcap")).rename(folder / f"{folder.name}_{number}.mcap")
        shutil.rmtree(made)
        before = cut
    return folder


def test_bags_of_which_some_lack_metadata_are_all_found(tmp_path, capsys, whole):
    for name in "abcd":
        shutil.copytree(whole, tmp_path / "bags" / name)
        if name != "b":
            (tmp_path / "bags" / name / "metadata.yaml").unlink()
    (tmp_path / "bags" / "notes").mkdir()
    code, result, err = convert(capsys, tmp_path / "bags", tmp_path / "out")
    assert (code, result.get("episodes")) == (0, 4), err


def test_loose_files_beside_folders_are_found_too(tmp_path, capsys, whole):
    shutil.copytree(whole, tmp_path / "bags" / "a")
    for name in ("demo_01.mcap", "demo_02.mcap", "session-3.mcap"):  # no parts: those of rosbag2 are counted from 0
        shutil.copy(next(whole.glob("*.mcap")), tmp_path / "bags" / name)
    assert len(bags_in(tmp_path / "bags")) == 4
    assert convert(capsys, tmp_path / "bags", tmp_path / "out")[1]["episodes"] == 4


@pytest.mark.parametrize("inside", [False, True])
def test_a_split_bag_without_metadata_is_one_demonstration(tmp_path, capsys, m, inside):
    folder = split(tmp_path / "bags" / "session", m)
    code, result, err = convert(capsys, folder.parent if inside else folder, tmp_path / "out")
    assert (code, result.get("episodes"), result.get("frames")) == (0, 1, 59), err


def test_eleven_parts_are_in_the_order_of_their_numbers(tmp_path, capsys, m):
    assert len(converted(capsys, tmp_path / "out", split(tmp_path / "session", m, tuple(0.1 * i for i in range(1, 12))))) == 21


def test_recordings_that_only_look_like_parts_are_refused(tmp_path, capsys, m):
    error = refused(capsys, tmp_path / "out", split(tmp_path / "session", m, pause=60.0))
    assert "session_1.mcap begins 60.0 s after the part before it ends" in error and "one by one" in error


def test_a_missing_part_is_named(tmp_path, capsys, m):
    folder = split(tmp_path / "session", m)
    (folder / "session_1.mcap").unlink()
    assert "has the parts 0, 2" in refused(capsys, tmp_path / "out", folder)


def test_parts_of_two_recordings_are_refused(tmp_path, capsys, m, whole):
    folder = split(tmp_path / "session", m)
    shutil.copy(next(whole.glob("*.mcap")), folder / "other.mcap")
    assert "parts of session beside others" in refused(capsys, tmp_path / "out", folder)


@pytest.mark.parametrize("kept", [0.2, 0.7, 0.99])
def test_a_torn_mcap_says_what_mends_it(tmp_path, capsys, whole, kept):
    data = next(whole.glob("*.mcap")).read_bytes()
    (tmp_path / "torn.mcap").write_bytes(data[: int(len(data) * kept)])
    assert "`mcap recover`" in refused(capsys, tmp_path / "out", tmp_path / "torn.mcap")


def test_names_without_a_leading_slash_are_found(tmp_path, capsys, m):
    streams = {topic.lstrip("/"): stream for topic, stream in one_camera(m).items()}
    bag = write_bag(tmp_path / "bag", m, streams)
    assert len(converted(capsys, tmp_path / "out", bag)) == 20
    assert len(converted(capsys, tmp_path / "2", bag, "--pose", "/end_effector_pose", "--camera", "scene=/camera/scene/image_raw")) == 20


def unstamped(m: Messages, kind: str) -> object:
    stamped = m.twist(0.1, [0, 0, 0], [0, 0, 0]).twist if kind == "Twist" else m.pose(0.1, [0, 0, 0], [0, 0, 0, 1]).pose
    return stamped


@pytest.mark.parametrize(
    ("kind", "needed"), [("Twist", "TwistStamped"), ("Pose", "PoseStamped"), ("Float64MultiArray", "no time and no names")]
)
@pytest.mark.parametrize("asked", [True, False])
def test_a_command_that_says_too_little_is_told_what_it_needs(tmp_path, capsys, m, kind, needed, asked):
    """Also where it is only there, under the usual name: the measured motion is not taken for it in silence."""
    streams = one_camera(m)
    if kind == "Float64MultiArray":
        layout = m.make("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
        message = m.make("std_msgs/msg/Float64MultiArray", layout=layout, data=np.zeros(6))
    else:
        message = unstamped(m, kind)
    streams["/end_effector_command"] = [(0.1, message)]
    bag = write_bag(tmp_path / "bag", m, streams)
    error = refused(capsys, tmp_path / "out", bag, *(["--command", "end_effector_command"] if asked else []))
    assert kind in error and needed in error and "/joint_states" in error
    assert len(converted(capsys, tmp_path / "out", bag, "--command", "none")) == 20


def test_a_pose_without_a_stamp_is_told_what_it_needs(tmp_path, capsys, m):
    streams = one_camera(m)
    streams["/end_effector_pose"] = [(0.1, unstamped(m, "Pose"))]
    error = refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))
    assert "geometry_msgs/Pose, expected geometry_msgs/PoseStamped" in error and "no time and no frame" in error


PACKET = """std_msgs/Header header
int32 width
int32 height
string encoding
uint64 pts
uint8 flags
bool is_bigendian
uint8[] data
"""


@pytest.mark.parametrize("asked", [True, False])
def test_video_packets_are_named_and_no_camera_is_left_out(tmp_path, capsys, asked):
    """The wrist camera is there as video alone."""
    from rosbags.typesys import get_types_from_msg

    m = Messages()
    kind = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
    m.store.register(get_types_from_msg(PACKET, kind))
    streams = one_camera(m)
    data = np.zeros(9, "uint8")
    packet = m.make(kind, header=m.header(0.1), width=4, height=4, encoding="h264", pts=0, flags=0, is_bigendian=False, data=data)
    streams["/camera/wrist/image_raw/ffmpeg"] = [(0.1, packet)]
    bag = write_bag(tmp_path / "bag", m, streams)
    error = refused(capsys, tmp_path / "out", bag, *(["--camera", "wrist=camera/wrist/image_raw/ffmpeg"] if asked else []))
    assert "camera wrist" in error and "FFMPEGPacket" in error and "republish" in error
    assert len(converted(capsys, tmp_path / "out", bag, "--camera", "scene=camera/scene/image_raw")) == 20


def test_h264_as_a_compressed_image_is_named(tmp_path, capsys, m):
    streams = standard(m, 1.0)
    for _, message in streams["/camera/wrist/image_raw/compressed"]:
        message.format = "h264"
    error = refused(capsys, tmp_path / "out", write_bag(tmp_path / "bag", m, streams))
    assert "/camera/wrist/image_raw/compressed" in error and "'h264'" in error and "no video" in error
