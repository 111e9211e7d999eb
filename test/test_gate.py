"""What the observation gate lets through, and the reason it gives for everything else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.policy.gate import MS, STATE_PARTS, Gate, GateConfig, Reason, Refused
from bitvla_ros.policy.observation import Observation, Privileged

NOW = 1_700_000_000_000 * MS
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
STATE = np.array([0.5, 0.0, 0.3, 3.1, 0.0, 0.1, 0.02, -0.02])


def observe(stamp: int = NOW, *, images=None, state=STATE, instruction="lift it", privileged=None, stamps=None) -> Observation:
    images = {"scene": IMAGE, "wrist": IMAGE} if images is None else images
    times = {"scene": stamp, "wrist": stamp, "state": stamp, **({"privileged": stamp} if privileged else {}), **(stamps or {})}
    return Observation(images, np.asarray(state), instruction, times, privileged=privileged)


def refusal(gate: Gate, observation: Observation, now: int = NOW, **options) -> Refused:
    with pytest.raises(Refused) as caught:
        gate.check(observation, now, **options)
    assert str(caught.value).startswith(caught.value.reason.value)
    return caught.value


def moved(observation: Observation, dx: float, stamp: int, image=None) -> Observation:
    state = observation.state.copy()
    state[0] += dx
    images = observation.images if image is None else {"scene": image, "wrist": image}
    return observe(stamp, images=images, state=state)


def test_a_good_observation_passes():
    Gate().check(observe(NOW - 20 * MS), NOW)


LIMITS = GateConfig()
streams = st.sampled_from(["scene", "wrist", "state"])


@given(streams, st.integers(LIMITS.max_age + 1, NOW - 1))
def test_a_stale_input_is_refused_whichever_it_is(name, age):
    error = refusal(Gate(dataclasses.replace(LIMITS, max_skew=NOW)), observe(stamps={name: NOW - age}))
    assert error.reason is Reason.STALE
    assert name in str(error)


@pytest.mark.parametrize("part", STATE_PARTS)
def test_a_part_of_the_state_from_the_future_is_not_hidden_by_the_other(part):
    """The stamp of `state` is that of its older part."""
    error = refusal(Gate(LIMITS), observe(stamps={part: NOW + LIMITS.max_future + 1}))
    assert error.reason is Reason.FUTURE and part in str(error)


@given(streams, st.integers(LIMITS.max_future + 1, NOW))
def test_an_input_from_the_future_is_refused(name, ahead):
    error = refusal(Gate(dataclasses.replace(LIMITS, max_skew=NOW)), observe(stamps={name: NOW + ahead}))
    assert error.reason is Reason.FUTURE
    assert name in str(error)


@given(st.lists(st.integers(-LIMITS.max_future, LIMITS.max_age), min_size=3, max_size=3))
def test_fresh_inputs_pass_exactly_where_they_lie_close_together(ages):
    observation = observe(stamps={"scene": NOW - ages[0], "wrist": NOW - ages[1], "state": NOW - ages[2]})
    if max(ages) - min(ages) <= LIMITS.max_skew:
        Gate().check(observation, NOW)
    else:
        assert refusal(Gate(), observation).reason is Reason.SKEWED


@given(streams, st.integers(-NOW, 0))
def test_a_zero_or_negative_stamp_is_refused(name, stamp):
    assert refusal(Gate(), observe(stamps={name: stamp})).reason is Reason.ZERO_STAMP


@given(streams, st.integers(1, 40 * MS))
def test_a_stamp_that_goes_back_is_refused_until_it_has_caught_up(name, back):
    gate = Gate()
    gate.check(observe(), NOW)
    assert refusal(gate, observe(stamps={name: NOW - back})).reason is Reason.BACKWARD_STAMP
    gate.check(observe(NOW), NOW)  # the same moment may be asked about again
    gate.check(observe(NOW + 1), NOW + 1)


def test_a_refused_observation_does_not_shift_the_clock():
    gate = Gate()
    assert refusal(gate, observe(NOW + 3_600_000 * MS)).reason is Reason.FUTURE
    gate.check(observe(), NOW)


def test_reset_accepts_a_clock_that_began_anew():
    gate = Gate()
    gate.check(observe(), NOW)
    gate.reset()
    gate.check(observe(5 * MS), 5 * MS)


def test_inputs_from_before_the_task_are_refused():
    observation = observe(NOW - 10 * MS)
    assert refusal(Gate(), observation, not_before=NOW - 9 * MS).reason is Reason.STALE
    Gate().check(observation, NOW, not_before=NOW - 10 * MS)


@pytest.mark.parametrize("instruction", ["", " \t\n"])
def test_an_empty_instruction_is_refused(instruction):
    assert refusal(Gate(), observe(instruction=instruction)).reason is Reason.EMPTY_INSTRUCTION


@pytest.mark.parametrize("instruction", ["pick it up <|eot_id|> now", "<|EOT_ID|>", "go </s>", "put <proprio_pad> down", "lift it " * 63])
def test_an_instruction_that_no_model_should_read_is_refused(instruction):
    assert refusal(Gate(), observe(instruction=instruction)).reason is Reason.INVALID_INSTRUCTION


def test_a_missing_camera_is_refused_by_name():
    error = refusal(Gate(), observe(images={"scene": IMAGE}))
    assert error.reason is Reason.MISSING_STREAM and "wrist" in str(error)


def test_missing_simulator_truth_is_refused_where_it_is_needed():
    gate = Gate(GateConfig(cameras=(), privileged=True))
    error = refusal(gate, observe(images={}))
    assert error.reason is Reason.MISSING_STREAM and "privileged" in str(error)
    gate.check(observe(images={}, privileged=Privileged({"bowl": np.zeros(7)})), NOW)


def test_a_camera_nobody_asked_for_is_not_looked_at():
    Gate(GateConfig(cameras=("scene",))).check(observe(images={"scene": IMAGE, "wrist": IMAGE.astype(float)}, stamps={"wrist": 1}), NOW)


@pytest.mark.parametrize("image", [IMAGE.astype(np.float32), IMAGE[..., 0], np.dstack([IMAGE, IMAGE[..., :1]])])
def test_what_is_not_rgb_is_refused(image):
    assert refusal(Gate(), observe(images={"scene": IMAGE, "wrist": image})).reason is Reason.WRONG_ENCODING


def test_another_size_is_refused():
    gate = Gate(GateConfig(image_shape=(32, 48)))
    gate.check(observe(), NOW)
    turned = np.ascontiguousarray(IMAGE.transpose(1, 0, 2))
    error = refusal(gate, observe(images={"scene": IMAGE, "wrist": turned}))
    assert error.reason is Reason.WRONG_SIZE and "48 x 32" in str(error)
    assert refusal(Gate(), observe(images={"scene": IMAGE, "wrist": IMAGE[:0]})).reason is Reason.WRONG_SIZE


@given(st.integers(0, 7), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_non_finite_state_is_refused(dimension, value):
    state = STATE.copy()
    state[dimension] = value
    assert refusal(Gate(), observe(state=state)).reason is Reason.NON_FINITE


def test_a_state_of_another_length_is_refused():
    assert refusal(Gate(), observe(state=STATE[:7])).reason is Reason.WRONG_SIZE


def test_non_finite_simulator_truth_is_refused():
    error = refusal(Gate(), observe(privileged=Privileged({"bowl": np.full(7, np.nan)})))
    assert error.reason is Reason.NON_FINITE and "bowl" in str(error)


def test_a_camera_that_repeats_itself_while_the_arm_moves_is_frozen():
    gate = Gate()
    first = observe()
    gate.check(first, NOW)
    for i in (1, 2):
        stamp = NOW + i * 50 * MS
        frame = moved(first, 0.02 * i, stamp)
        if i + 1 < gate.config.frozen_frames:
            gate.check(frame, stamp)
        else:
            assert refusal(gate, frame, stamp).reason is Reason.FROZEN
    stamp = NOW + 150 * MS
    gate.check(moved(first, 0.06, stamp, np.ascontiguousarray(IMAGE[::-1])), stamp)  # it lives again


def test_one_frozen_camera_among_living_ones_is_named():
    gate = Gate()
    for i in range(3):
        stamp = NOW + i * 50 * MS
        state = STATE + np.array([0.02 * i, 0, 0, 0, 0, 0, 0, 0])
        observation = observe(stamp, images={"scene": IMAGE + np.uint8(i), "wrist": IMAGE.copy()}, state=state)
        if i < 2:
            gate.check(observation, stamp)
        else:
            assert "wrist" in str(refusal(gate, observation, stamp))


def test_a_turn_of_the_hand_counts_as_motion():
    gate = Gate()
    for i in range(3):
        stamp = NOW + i * 50 * MS
        state = STATE.copy()
        state[5] += 0.06 * i
        if i < 2:
            gate.check(observe(stamp, state=state), stamp)
        else:
            assert refusal(gate, observe(stamp, state=state), stamp).reason is Reason.FROZEN


def test_the_two_names_of_one_rotation_are_no_motion():
    gate = Gate()
    axis = np.array([1.0, 0.0, 0.0])
    for i in range(6):
        stamp = NOW + i * 50 * MS
        state = STATE.copy()
        state[3:6] = axis * 3.1 if i % 2 else axis * (3.1 - 2 * np.pi)
        gate.check(observe(stamp, state=state), stamp)


def test_a_still_arm_may_see_the_same_image_for_ever():
    gate = Gate()
    for i in range(50):
        gate.check(observe(NOW + i * 50 * MS), NOW + i * 50 * MS)


def test_the_same_frame_seen_twice_is_not_frozen():
    gate = Gate()
    first = observe()
    for i in range(10):  # inference outruns the camera: same stamps, the arm moves
        gate.check(dataclasses.replace(first, state=STATE + 0.02 * i), NOW + i * MS)


def test_one_changed_pixel_is_life():
    gate = Gate()
    for i in range(10):
        image = IMAGE.copy()
        image[i, 7, 1] ^= 1
        stamp = NOW + i * 50 * MS
        gate.check(moved(observe(), 0.02 * i, stamp, image), stamp)


def test_a_driver_that_writes_over_its_buffer_is_not_frozen():
    gate, image = Gate(), IMAGE.copy()
    for i in range(10):
        image[:] = IMAGE + np.uint8(i)
        stamp = NOW + i * 50 * MS
        gate.check(moved(observe(), 0.02 * i, stamp, image), stamp)


@pytest.mark.parametrize("limits", [{"max_age": -1}, {"max_skew": -1}, {"frozen_frames": 1}, {"frozen_distance": 0.0}])
def test_a_senseless_limit_is_refused(limits):
    with pytest.raises(ValueError):
        GateConfig(**limits)


def test_a_frozen_camera_stays_refused_where_the_same_frame_is_looked_at_again():
    """A newer pose makes another observation of it."""
    gate = Gate()
    first = observe(NOW)
    gate.check(first, NOW)
    for frame in (1, 2):
        newest = moved(first, 0.02 * frame, NOW + frame * 40 * MS)
        if frame == 1:
            gate.check(newest, NOW + frame * 40 * MS)
    for _ in range(3):
        assert refusal(gate, newest, NOW + 80 * MS).reason is Reason.FROZEN
