"""Newest inputs by stream, and how they become an observation."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.policy.gate import Reason, Refused
from bitvla_ros.policy.observation import Privileged, quaternion_to_axis_angle, state_vector
from bitvla_ros.policy.streams import GRIPPER, IMAGES_KEPT, POSE, Streams, on_branch

IMAGE = np.zeros((4, 4, 3), np.uint8)
POSITION = np.array([0.5, 0.1, 0.3])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])  # xyzw: the hand looks down
FINGERS = np.array([0.02, -0.02])


def fill(streams: Streams, stamp: int) -> Streams:
    for role in streams.cameras:
        streams.add_image(role, stamp, IMAGE)
    streams.add_pose(stamp, POSITION, DOWN)
    streams.add_gripper(stamp, FINGERS)
    return streams


def reason(call, *arguments) -> Reason:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.reason


def test_latest_holds_the_newest_moment_that_every_stream_knows():
    streams = fill(Streams(("scene", "wrist")), 10)
    streams.add_image("wrist", 12, IMAGE + 1)
    streams.add_pose(14, POSITION + 1, DOWN)
    observation = streams.latest("lift it", epoch=3)
    assert set(observation.stamps.values()) == {10}  # the scene camera's newest
    assert observation.images["wrist"][0, 0, 0] == 0
    assert (observation.instruction, observation.epoch, observation.privileged) == ("lift it", 3, None)
    assert list(observation.images) == ["scene", "wrist"]

    streams.add_image("scene", 13, IMAGE + 2)
    streams.add_image("wrist", 15, IMAGE + 3)
    streams.add_gripper(16, FINGERS)
    observation = streams.latest("lift it")
    assert {name: observation.stamps[name] for name in ("scene", "wrist", "state")} == {"scene": 13, "wrist": 15, "state": 14}
    assert (observation.stamps[POSE], observation.stamps[GRIPPER]) == (14, 16)  # of the others what came first at 13 or later
    assert observation.stamp == 13
    np.testing.assert_allclose(observation.state, state_vector(POSITION + 1, DOWN, FINGERS))


def test_a_late_image_meets_the_joint_states_of_its_moment():
    """A camera at 30 Hz, whose images come 60 ms late, and an arm at 500 Hz."""
    streams = Streams(("scene",))
    for ms in range(1, 1001, 2):
        streams.add_pose(ms, POSITION * ms, DOWN)
        streams.add_gripper(ms, FINGERS)
        if ms > 60 and (ms - 60) % 33 < 2:
            streams.add_image("scene", ms - 60, IMAGE)
    observation = streams.latest("x")
    assert 0 <= observation.stamps["state"] - observation.stamps["scene"] <= 2
    np.testing.assert_allclose(observation.state[:3], POSITION * observation.stamps["state"])


def test_the_moment_moves_with_the_stream_that_is_waited_for_and_not_with_every_input():
    streams = Streams(("scene",))
    assert streams.moment() == 0
    fill(streams, 10)
    for stamp in (12, 14, 16):
        streams.add_pose(stamp, POSITION, DOWN)
        streams.add_gripper(stamp, FINGERS)
        assert streams.moment() == 10 == streams.latest("lift it").stamp
    streams.add_image("scene", 15, IMAGE)
    streams.add_gripper(20, FINGERS)
    assert streams.moment() == 15
    streams.add_image("scene", 25, IMAGE)
    assert (streams.moment(), streams.moment(("scene",)), streams.moment(())) == (16, 25, 0)
    streams.clear()
    assert streams.moment() == 0


def test_a_silent_stream_is_the_oldest_of_the_observation():
    streams = fill(Streams(("scene", "wrist")), 10)
    for stamp in range(11, 100):
        streams.add_image("scene", stamp, IMAGE)
        streams.add_pose(stamp, POSITION, DOWN)
        streams.add_gripper(stamp, FINGERS)
    observation = streams.latest("x")
    assert min(observation.stamps, key=observation.stamps.__getitem__) == "wrist"


def test_missing_streams_are_refused_by_name():
    streams = Streams(("scene", "wrist"))
    streams.add_image("scene", 1, IMAGE)
    with pytest.raises(Refused) as caught:
        streams.latest("lift it")
    assert caught.value.reason is Reason.MISSING_STREAM
    missing = str(caught.value).split(";")[0]
    assert "scene" not in missing
    assert all(name in missing for name in ("wrist", "end_effector_pose", "gripper"))


def test_at_answers_only_when_every_input_bears_that_stamp():
    streams = Streams(("scene",), privileged=True)
    assert streams.at(50, "lift it") is None
    fill(streams, 50)
    assert streams.at(50, "lift it") is None  # simulator truth is yet to come
    streams.add_privileged(50, Privileged({"bowl": np.ones(7)}, success=True))
    fill(streams, 100)
    observation = streams.at(50, "lift it", 2)
    assert observation is not None
    assert set(observation.stamps.values()) == {50}
    assert observation.privileged is not None and observation.privileged.success
    assert streams.at(100, "lift it") is None
    assert streams.at(75, "lift it") is None


def test_only_a_few_inputs_are_kept():
    streams = Streams(("scene",))
    for stamp in range(1, IMAGES_KEPT + 2):
        fill(streams, stamp)
    assert streams.at(1, "x") is None
    assert streams.at(2, "x") is not None and streams.at(IMAGES_KEPT + 1, "x") is not None


@given(st.lists(st.integers(-3, 100), min_size=1, max_size=30))
def test_zero_and_backward_stamps_are_refused_and_change_nothing(stamps):
    streams = Streams(("scene",))
    newest = 0
    for value, stamp in enumerate(stamps):
        image = np.full((1, 1, 3), value, np.uint8)
        if stamp <= 0:
            assert reason(streams.add_image, "scene", stamp, image) is Reason.ZERO_STAMP
        elif stamp < newest:
            assert reason(streams.add_image, "scene", stamp, image) is Reason.BACKWARD_STAMP
        else:
            streams.add_image("scene", stamp, image)
            newest, last = stamp, value
    if newest:
        streams.add_pose(newest, POSITION, DOWN)
        streams.add_gripper(newest, FINGERS)
        observation = streams.latest("x")
        assert observation.stamps["scene"] == newest
        assert observation.images["scene"][0, 0, 0] == last


def test_every_kind_of_input_has_its_stamps_checked():
    streams = fill(Streams(("scene",), privileged=True), 10)
    streams.add_privileged(10, Privileged({}))
    for add in (
        lambda stamp: streams.add_pose(stamp, POSITION, DOWN),
        lambda stamp: streams.add_gripper(stamp, FINGERS),
        lambda stamp: streams.add_privileged(stamp, Privileged({})),
    ):
        assert reason(add, 0) is Reason.ZERO_STAMP
        assert reason(add, 9) is Reason.BACKWARD_STAMP
        add(11)


def test_the_same_stamp_replaces():
    streams = fill(Streams(("scene",)), 10)
    for value in (1, 2, 3):
        streams.add_image("scene", 10, IMAGE + value)
    assert streams.latest("x").images["scene"][0, 0, 0] == 3


@pytest.mark.parametrize("stream", ["pose", "gripper"])
def test_two_values_at_one_stamp_are_nobodys_state(stream):
    """Two publishers, stamped by one clock: whichever came last would win. For a while each may be heard alone."""
    streams, ms = Streams(()), 1_000_000
    fill(streams, 10 * ms)
    fill(streams, 10 * ms)  # the same again is none
    assert streams.latest("x").stamp == 10 * ms
    other = (streams.add_pose, POSITION + 0.1, DOWN) if stream == "pose" else (streams.add_gripper, FINGERS * 0.5)
    with pytest.raises(Refused, match=r"two values at the stamp 0\.010000") as caught:
        other[0](10 * ms, *other[1:])
    assert caught.value.reason is Reason.CONTRADICTION
    for later in (10, 20, 1000):
        fill(streams, later * ms)
        assert reason(streams.latest, "x") is Reason.CONTRADICTION
        assert reason(streams.at, later * ms, "x") is Reason.CONTRADICTION
    assert fill(streams, 1011 * ms).latest("x").stamp == 1011 * ms


def test_streams_nobody_asked_for_are_ignored():
    streams = fill(Streams(("scene",)), 10)
    streams.add_image("overhead", 10, IMAGE)
    streams.add_privileged(10, Privileged({}))
    observation = streams.latest("x")
    assert set(observation.images) == {"scene"} and observation.privileged is None


def test_clear_forgets_inputs_and_their_clock():
    streams = fill(Streams(("scene",)), 10)
    streams.clear()
    assert reason(streams.latest, "x") is Reason.MISSING_STREAM
    assert fill(streams, 5).latest("x").stamp == 5


def test_bad_numbers_are_refused_where_they_come_in():
    streams = Streams(("scene",))
    assert reason(streams.add_pose, 1, np.array([np.nan, 0, 0]), DOWN) is Reason.NON_FINITE
    assert reason(streams.add_pose, 1, POSITION, np.full(4, np.inf)) is Reason.NON_FINITE
    assert reason(streams.add_pose, 1, POSITION, np.zeros(4)) is Reason.INVALID_ORIENTATION
    assert reason(streams.add_gripper, 1, np.array([0.1, np.nan])) is Reason.NON_FINITE
    assert reason(streams.add_gripper, 1, np.array([0.1])) is Reason.WRONG_SIZE


def test_arrays_of_the_caller_may_be_reused():
    streams = Streams(("scene",))
    streams.add_image("scene", 1, IMAGE)
    position, fingers = POSITION.copy(), FINGERS.copy()
    streams.add_pose(1, position, DOWN)
    streams.add_gripper(1, fingers)
    position += 1
    fingers += 1
    np.testing.assert_allclose(streams.latest("x").state, state_vector(POSITION, DOWN, FINGERS))


unit = st.lists(st.floats(-1, 1), min_size=4, max_size=4).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.1)
unit = unit.map(lambda q: q / np.linalg.norm(q))


@given(unit, unit)
def test_branch_is_the_same_rotation_on_the_nearer_side(quaternion, reference):
    out = on_branch(quaternion, reference)
    assert float(out @ reference) >= 0
    assert np.array_equal(out, quaternion) or np.array_equal(out, -quaternion)


def test_orientation_stays_continuous_beyond_half_a_turn():
    """A driver that always gives w >= 0 flips the sign at half a turn; the state must not."""
    streams = Streams((), branch=np.array([0.0, 0.0, 0.0, 1.0]))
    angles = np.linspace(0.1, 2 * np.pi - 0.1, 60)
    for i, angle in enumerate(angles):
        quaternion = np.array([0, 0, np.sin(angle / 2), np.cos(angle / 2)])
        streams.add_pose(i + 1, POSITION, quaternion if quaternion[3] >= 0 else -quaternion)
        streams.add_gripper(i + 1, FINGERS)
        np.testing.assert_allclose(streams.latest("x").state[3:6], [0, 0, angle], atol=1e-6)


def test_without_a_branch_orientations_are_left_alone():
    streams = Streams(())
    streams.add_pose(1, POSITION, -DOWN)
    streams.add_gripper(1, FINGERS)
    np.testing.assert_allclose(streams.latest("x").state[3:6], quaternion_to_axis_angle(-DOWN))


def test_one_thread_adds_while_another_reads():
    streams = fill(Streams(("scene", "wrist")), 1)
    errors: list[BaseException] = []

    def add() -> None:
        try:
            for stamp in range(2, 2000):
                fill(streams, stamp)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    last = 0
    while thread.is_alive():
        stamp = streams.latest("x").stamp
        assert stamp >= last
        last = stamp
    thread.join()
    assert not errors
    assert streams.at(1999, "x") is not None
