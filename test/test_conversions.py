"""Messages become the core's objects and back without loss, and a wrong message is refused with what was expected."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

import time
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from bitvla_ros.action_convention import OSC, UNKNOWN
from bitvla_ros.msg import SimulationState
from bitvla_ros.nodes.conversions import (
    ChunkError,
    ImageError,
    chunk_from_msg,
    chunk_to_msg,
    duration_to_ns,
    image_from_msg,
    image_to_msg,
    joint_state_to_msg,
    moment,
    ns_to_duration,
    ns_to_stamp,
    pose_from_msg,
    pose_to_msg,
    poses_to_msg,
    privileged_from_msg,
    stamp_to_ns,
)
from bitvla_ros.nodes.missing import MissingPackage, need
from bitvla_ros.policy.chunk import ActionChunk, Latency
from bitvla_ros.training.sources.pictures import picture_of


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@given(st.integers(0, (1 << 31) * 1_000_000_000 - 1))
def test_time_survives_to_the_nanosecond(ns: int) -> None:
    assert stamp_to_ns(ns_to_stamp(ns)) == ns
    assert duration_to_ns(ns_to_duration(ns)) == ns


def test_negative_duration_survives() -> None:
    assert duration_to_ns(ns_to_duration(-1_500_000_000)) == -1_500_000_000


def test_a_moment_is_read_again_where_the_process_had_to_wait_in_between() -> None:
    """A clock that is the steady one too, so that both readings should be the same; after two of them the process has to wait."""
    waits = [0.05, 0.05]

    def now() -> SimpleNamespace:
        read = SimpleNamespace(nanoseconds=time.monotonic_ns())
        if waits:
            time.sleep(waits.pop())
        return read

    ros, steady = moment(SimpleNamespace(now=now))
    assert not waits and 0 <= steady - ros < 40_000_000


def test_image_round_trip_is_exact_and_reads_without_a_copy(image) -> None:
    message = over_the_wire(image_to_msg(image, 1_000_000_007, "scene_camera"))
    read = image_from_msg(message)
    np.testing.assert_array_equal(read, image)
    assert (message.header.frame_id, stamp_to_ns(message.header.stamp)) == ("scene_camera", 1_000_000_007)
    message.data[0] ^= 0xFF
    assert read[0, 0, 0] == image[0, 0, 0] ^ 0xFF


@pytest.mark.parametrize(
    ("encoding", "code"),
    [("bgr8", cv2.COLOR_RGB2BGR), ("rgba8", cv2.COLOR_RGB2RGBA), ("bgra8", cv2.COLOR_RGB2BGRA), ("mono8", cv2.COLOR_RGB2GRAY)],
)
def test_every_8_bit_encoding_becomes_rgb(image, encoding, code) -> None:
    encoded = cv2.cvtColor(image, code)
    message = Image(height=5, width=7, encoding=encoding, step=encoded[0].nbytes, data=array("B", encoded.tobytes()))
    expected = image if encoding != "mono8" else np.repeat(encoded[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(image_from_msg(message), expected)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_padded_rows_are_read(image, encoding) -> None:
    padded = np.zeros((5, 32), np.uint8)
    padded[:, :21] = image.reshape(5, 21)
    message = Image(height=5, width=7, encoding=encoding, step=32, data=array("B", padded.tobytes()))
    np.testing.assert_array_equal(image_from_msg(message), image if encoding == "rgb8" else image[..., ::-1])


def test_compressed_image_becomes_rgb(image) -> None:
    ok, png = cv2.imencode(".png", image[..., ::-1])
    assert ok
    message = CompressedImage(format="rgb8; png compressed bgr8", data=array("B", png.tobytes()))
    np.testing.assert_array_equal(image_from_msg(over_the_wire(message)), image)


@pytest.mark.parametrize("name", [".jpg", ".png"])
def test_the_policy_sees_the_pixels_that_a_conversion_learns_from(image, name) -> None:
    ok, encoded = cv2.imencode(name, np.tile(image, (9, 5, 1)))
    assert ok
    message = CompressedImage(format=name[1:], data=array("B", encoded.tobytes()))
    np.testing.assert_array_equal(image_from_msg(message), picture_of(message, None))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff not a jpeg"])
def test_compressed_image_that_does_not_decode_is_refused(data) -> None:
    with pytest.raises(ImageError, match="expected a JPEG or PNG") as error:
        image_from_msg(CompressedImage(format="jpeg", data=array("B", data)))
    assert error.value.what == "encoding"


def test_what_a_conversion_refuses_the_policy_refuses_too(image) -> None:
    """test_compressed_images.py has all cases; the decoder is one."""
    depth = cv2.imencode(".png", np.arange(900, dtype=np.uint16).reshape(30, 30))[1].tobytes()
    torn = cv2.imencode(".jpg", np.tile(image, (9, 9, 1)))[1].tobytes()
    torn = torn[: len(torn) * 2 // 3] + b"\xff\xd9"
    for form, data in (("16UC1; png compressed ", depth), ("png", depth), ("bayer_rggb8; jpeg compressed mono8", torn), ("jpeg", torn)):
        with pytest.raises(ImageError, match="expected") as error:
            image_from_msg(CompressedImage(format=form, data=array("B", data)))
        assert error.value.what == "encoding"


@pytest.mark.parametrize("encoding", ["", "8UC3", "32FC1", "yuv999", "RGB8"])
def test_unknown_encoding_is_refused_and_names_the_known_ones(encoding) -> None:
    with pytest.raises(ImageError, match="expected rgb8, bgr8") as error:
        image_from_msg(Image(height=1, width=1, encoding=encoding, step=3, data=array("B", bytes(3))))
    assert error.value.what == "encoding"


SIZES = [(5, 7, 21, 104), (5, 7, 20, 100), (0, 7, 21, 0), (5, 0, 0, 0), (5, 7, 21, 106)]


@pytest.mark.parametrize(("height", "width", "step", "size"), SIZES)
def test_image_whose_size_contradicts_its_data_is_refused(height, width, step, size) -> None:
    with pytest.raises(ImageError, match="height \\* step") as error:
        image_from_msg(Image(height=height, width=width, encoding="rgb8", step=step, data=array("B", bytes(size))))
    assert error.value.what == "size"


def test_pose_and_joint_state_keep_every_digit() -> None:
    position, quaternion = [0.1, -1 / 3, 2e-9], [0.5, -0.5, 0.5, -0.5]
    message = over_the_wire(pose_to_msg(position, quaternion, 5, "base"))
    read = pose_from_msg(message)
    assert read[0].tolist() == position and read[1].tolist() == quaternion
    assert pose_from_msg(message.pose)[0].tolist() == position
    joints = over_the_wire(joint_state_to_msg(["a", "b"], np.array([0.02, -1 / 3]), 5))
    assert (joints.name, list(joints.position)) == (["a", "b"], [0.02, -1 / 3])


def test_privileged_state_round_trip() -> None:
    poses = {"bowl": np.array([0.1, 0.2, 0.3, 0, 0, 0, 1.0]), "plate": np.arange(7.0)}
    names, messages = poses_to_msg(poses)
    truth = privileged_from_msg(over_the_wire(SimulationState(object_names=names, object_poses=messages, success=True)))
    assert truth.success and list(truth.object_poses) == names
    for name, pose in poses.items():
        np.testing.assert_array_equal(truth.object_poses[name], pose)
    with pytest.raises(ValueError, match="zip"):
        privileged_from_msg(SimulationState(object_names=["bowl"]))


def chunk() -> ActionChunk:
    return ActionChunk(
        actions=np.random.default_rng(1).normal(size=(8, 7)).astype(np.float32),
        observation_stamp=12_345_678_901,
        step_duration=50_000_000,
        frame="base",
        sequence=3,
        epoch=2,
        instruction="put the bowl on the plate",
        model_hash="abc",
        latency=Latency(0.001, 0.25, 0.252),
        units=OSC.units,
    )


def test_chunk_round_trip_is_exact() -> None:
    before = chunk()
    message = over_the_wire(chunk_to_msg(before, 12_600_000_000))
    assert (message.horizon, message.action_dimension, stamp_to_ns(message.header.stamp)) == (8, 7, 12_600_000_000)
    after = chunk_from_msg(message)
    assert after.actions.tobytes() == before.actions.tobytes() and after.actions.dtype == np.float32
    assert {**vars(after), "actions": None} == {**vars(before), "actions": None}
    message.metres_per_unit = message.radians_per_unit = 0.0
    assert chunk_from_msg(message).units == UNKNOWN
    message.radians_per_unit = -1.0
    with pytest.raises(ChunkError, match=r"radians_per_unit is -1.0: expected a positive number, or null, or 0"):
        chunk_from_msg(message)
    message.actions[0] += 1  # the chunk owns its actions
    assert after.actions[0, 0] == before.actions[0, 0]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("horizon", 9, "56 numbers for 9 actions of 7"),
        ("action_dimension", 0, "expected horizon"),
        ("control_mode", "joints", "expected 'osc_pose'"),
        ("step_duration", ns_to_duration(0), "more than 0"),
    ],
)
def test_chunk_that_contradicts_itself_is_refused(field, value, expected) -> None:
    message = chunk_to_msg(chunk(), 0)
    setattr(message, field, value)
    with pytest.raises(ChunkError, match=expected):
        chunk_from_msg(message)


def test_missing_ros_package_says_what_brings_it(monkeypatch) -> None:
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", None)  # import fails as where it is not installed
    with pytest.raises(MissingPackage, match="sudo apt install ros-jazzy-tf2-ros-py"):
        need("tf2_ros")


def test_a_ros_package_that_lacks_what_it_needs_is_not_called_missing(tmp_path, monkeypatch) -> None:
    package = tmp_path / "some_ros_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "actions.py").write_text("import some_ros_package_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage, match=r"some_ros_package\.actions is installed.* it needs some_ros_package_needs, which is missing"):
        need("some_ros_package.actions")
    for absent in ("some_ros_package.services", "another_ros_package.actions"):
        with pytest.raises(MissingPackage, match=r"not installed.*sudo apt install"):
            need(absent)
