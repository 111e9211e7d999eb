"""The self-test of an arm: whatever an arm makes of its axes is found and named, and a right arm is left in peace."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bitvla_ros.control.rotation import matrix, turn_between, turned
from bitvla_ros.control.wiggle import DURATION, MOTIONS, Motion, Seen, diagnose, judge, judge_gripper

NONE = np.array([0.0, 0.0, 0.0, 1.0])
DOWN = turned(np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.2, 0.3, 0.4]))  # a hand that points down, roughly
AXES = {False: ("x", "y", "z"), True: ("roll", "pitch", "yaw")}

SIGNED_PERMUTATIONS = [
    np.diag(signs) @ np.eye(3)[:, list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
kinds = st.booleans()
signed_permutations = st.sampled_from(SIGNED_PERMUTATIONS)
right_scales = st.floats(0.8, 1.2)
wrong_scales = st.floats(0.1, 0.7) | st.floats(1.3, 10.0)
noise = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def response(translation: np.ndarray, rotation: np.ndarray, rng: np.random.Generator | None = None) -> list[Seen]:
    """What an arm does that makes `translation` [3, 3] and `rotation` [3, 3] of what is asked, measured to 0.2 mm and 0.002 rad."""
    seen = []
    for motion in MOTIONS:
        shift = np.zeros(3) if motion.turn else translation @ motion.vector
        turn = rotation @ motion.vector if motion.turn else np.zeros(3)
        if rng is not None:
            shift, turn = shift + rng.uniform(-1e-4, 1e-4, 3), turn + rng.uniform(-1e-3, 1e-3, 3)
        seen.append(Seen(motion, shift, turn))
    return seen


def matrices(turn: bool, of_kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (np.eye(3), of_kind) if turn else (of_kind, np.eye(3))


def about(turn: bool, sentences: list[str]) -> str:
    """The sentence about the axes of one kind."""
    words = "turns as" if turn else "moves along"
    return next((sentence for sentence in sentences if words in sentence), "")


def test_a_right_arm_is_left_in_peace():
    seen = response(np.eye(3), np.eye(3), np.random.default_rng(0))
    assert [judge(one).problem for one in seen] == [""] * 12
    assert [judge(one).along for one in seen] == [motion.name for motion in MOTIONS]
    assert diagnose(seen, DOWN) == []


@given(kinds, signed_permutations, st.tuples(right_scales, right_scales, right_scales), noise)
def test_every_signed_permutation_is_found_and_named(turn, permutation, scales, rng):
    seen = response(*matrices(turn, permutation @ np.diag(scales)), rng)
    sentences = diagnose(seen, DOWN)
    if (permutation == np.eye(3)).all():
        assert sentences == []
        return
    words, verb = about(turn, sentences), "turns as" if turn else "moves along"
    for axis, name in enumerate(AXES[turn]):
        image = permutation[:, axis]
        other = int(np.argmax(np.abs(image)))
        along = ("+" if image[other] > 0 else "-") + AXES[turn][other]
        assert (f"{name} {verb} {along}" in words) == (along != f"+{name}")
        for one in (one for one in seen if one.motion.turn == turn and one.motion.axis == axis):
            expected = along if one.motion.sign > 0 else along.translate({ord("+"): "-", ord("-"): "+"})
            assert judge(one).along == expected
    assert ("left-handed" in words) == (np.linalg.det(permutation) < 0)
    assert ("turned by" in words) == (np.linalg.det(permutation) > 0)
    assert len(sentences) == 1, "nothing else is wrong"


@given(kinds, signed_permutations, st.tuples(wrong_scales, wrong_scales, wrong_scales), noise)
def test_every_wrong_scale_is_found_and_named(turn, permutation, scales, rng):
    assume(not turn or max(scales) < 9)  # a turn beyond pi cannot be told from one the other way
    seen = response(*matrices(turn, permutation @ np.diag(scales)), rng)
    for one in (one for one in seen if one.motion.turn == turn):
        finding = judge(one)
        assert finding.scale == pytest.approx(scales[one.motion.axis], abs=0.03)
        assert "times as far as asked" in finding.problem
    words = " ".join(diagnose(seen, DOWN))
    assert "times as far as asked" in words
    if max(scales) > 1.1 * min(scales) * 1.05:
        for name, scale in zip(AXES[turn], scales, strict=True):
            number = float(words.split(f"{name} {'turns' if turn else 'moves'} ")[-1].split(" times")[0])
            assert number == pytest.approx(scale, abs=0.03, rel=0.06)


@given(st.sampled_from([0.1, 0.5, 2.0, 5.0]), kinds)
def test_one_scale_for_all_axes_is_said_once(scale, turn):
    seen = response(*matrices(turn, scale * np.eye(3)))
    (sentence,) = diagnose(seen, DOWN)
    assert sentence.startswith(", ".join(AXES[turn])) and f"{scale:g} times" in sentence and "other units" in sentence
    (sentence,) = diagnose([one for one in seen if one.motion.axis == 2], DOWN)
    assert f"{AXES[turn][2]} {'turns' if turn else 'moves'} {scale:g} times as far as asked: other units" in sentence


@given(
    st.tuples(*[st.floats(-1, 1)] * 3).map(np.array).filter(lambda v: np.linalg.norm(v) > 0.1),
    st.floats(np.radians(30), np.radians(175)),
    noise,
)
def test_any_turn_of_the_frames_is_measured(axis, angle, rng):
    rotation = matrix(turned(NONE, axis / np.linalg.norm(axis) * angle))
    assume(np.degrees(np.arccos(np.clip(np.diag(rotation), -1, 1))).max() > 25)
    assume(np.arccos(np.clip((np.trace(rotation @ matrix(DOWN).T) - 1) / 2, -1, 1)) > np.radians(25))
    sentences = diagnose(response(rotation, rotation, rng), DOWN)
    for turn in (False, True):
        degrees = float(about(turn, sentences).split("turned by ")[1].split(" degrees")[0])
        assert degrees == pytest.approx(np.degrees(angle), abs=3)


def test_the_sentence_names_axis_and_cure():
    quarter = matrix(turned(NONE, np.array([0, 0, -np.pi / 2])))
    (sentence,) = diagnose(response(quarter, np.eye(3)), DOWN)
    assert sentence.startswith("x moves along -y, y moves along +x: the frames are turned by 90 degrees about -z")
    assert "publish the pose in the frame" in sentence
    (sentence,) = diagnose(response(np.diag([1.0, -1.0, 1.0]), np.eye(3)), DOWN)
    assert sentence == "y moves along -y: that is left-handed, no turn of a frame does it; y has the wrong sign"


def test_motions_in_the_hands_own_axes_are_recognised():
    hand = matrix(DOWN)
    sentences = diagnose(response(np.eye(3), hand), DOWN)
    assert len(sentences) == 1 and "rotations are taken in the hand's own axes" in sentences[0]
    assert "targets are taken in the hand's own axes" in diagnose(response(hand, hand), DOWN)[0]


def test_an_arm_that_does_not_move_is_told_from_one_axis_that_does_not():
    still = diagnose(response(np.zeros((3, 3)), np.eye(3)), DOWN)
    assert still == ["+x, -x, +y, -y, +z, -z do not move the arm: nothing listens to the target, or its controller is not active"]
    stuck = response(np.eye(3), np.eye(3))
    stuck[0] = Seen(stuck[0].motion, np.zeros(3), np.zeros(3))
    assert diagnose(stuck, DOWN) == ["+x does not move the arm: is the arm at one of its limits?"]


@given(st.tuples(*[st.floats(-0.3, 0.3)] * 3).map(np.array).filter(lambda r: np.abs(r).max() > 0.1))
def test_a_turn_about_another_point_is_found_with_its_distance(lever):
    seen = [
        Seen(one.motion, np.cross(one.turn, lever) if one.motion.turn else one.shift, one.turn) for one in response(np.eye(3), np.eye(3))
    ]
    (sentence,) = diagnose(seen, DOWN)
    assert f"about a point {np.linalg.norm(lever):.2f} m away" in sentence


def test_a_shift_that_turns_the_hand_is_a_problem():
    seen = [Seen(one.motion, one.shift, one.turn if one.motion.turn else np.array([0, 0, 0.05])) for one in response(np.eye(3), np.eye(3))]
    (sentence,) = diagnose(seen, DOWN)
    assert "its orientation is not held" in sentence


@given(st.lists(st.tuples(*[st.floats(-0.3, 0.3)] * 6), min_size=12, max_size=12), st.integers(0, 4095))
def test_something_is_said_exactly_where_a_motion_was_wrong(numbers, chosen):
    """Whatever is measured, in whatever part of the motions."""
    seen = [Seen(motion, np.array(six[:3]), np.array(six[3:])) for motion, six in zip(MOTIONS, numbers, strict=True)]
    seen = [one for i, one in enumerate(seen) if chosen >> i & 1]
    assert bool(diagnose(seen, DOWN)) == any(not judge(one).ok for one in seen)


def test_an_axis_that_goes_the_same_way_whatever_its_sign_is_a_problem():
    seen = response(np.eye(3), np.eye(3))
    seen[1] = Seen(seen[1].motion, seen[0].shift, np.zeros(3))
    assert diagnose(seen, DOWN) == ["-x moves along +x"]


@pytest.mark.parametrize(
    ("opened", "closed", "words"), [(0.08, 0.0, ""), (0.0, 0.08, "inverted"), (0.04, 0.041, "does not move"), (0.0, 0.0, "does not move")]
)
def test_the_gripper_is_judged(opened, closed, words):
    assert words in judge_gripper(opened, closed) and bool(words) == bool(judge_gripper(opened, closed))


@pytest.mark.parametrize("motion", MOTIONS, ids=lambda motion: motion.name)
def test_a_motion_goes_smoothly_from_rest_to_rest(motion: Motion):
    start, step = (np.array([0.4, 0.1, 0.3]), DOWN), DURATION / 400
    path = [motion.at(start, time) for time in np.arange(-1, 402) * step]
    assert (path[0][0] == start[0]).all() and path[-1][0] == pytest.approx(path[-2][0])
    done = turn_between(DOWN, path[-1][1]) if motion.turn else path[-1][0] - start[0]
    assert done == pytest.approx(motion.vector, abs=1e-9)
    if motion.turn:
        assert all((position == start[0]).all() for position, _ in path)
        speeds = np.array([np.linalg.norm(turn_between(a, b)) for (_, a), (_, b) in itertools.pairwise(path)]) / step
    else:
        assert all((orientation == DOWN).all() for _, orientation in path)
        speeds = np.linalg.norm(np.diff([position for position, _ in path], axis=0), axis=1) / step
    assert speeds[0] == pytest.approx(0, abs=1e-6) and speeds[-1] == pytest.approx(0, abs=1e-6)
    assert speeds.max() <= 1.9 * motion.size / DURATION  # 47 mm/s, 0.23 rad/s
    assert np.abs(np.diff(speeds)).max() / step <= 5.8 * motion.size / DURATION**2


def test_words_of_a_turn_follow_from_its_axis():
    """A point ahead of the hand, or to its left, goes where the words say."""
    ahead, left = np.eye(3)[0], np.eye(3)[1]
    by_name = {motion.name: matrix(turned(NONE, motion.vector)) for motion in MOTIONS if motion.turn}
    assert (by_name["+pitch"] @ ahead)[2] < 0 and "front down" in next(m.words for m in MOTIONS if m.name == "+pitch")
    assert (by_name["+roll"] @ left)[2] > 0 and "left side up" in next(m.words for m in MOTIONS if m.name == "+roll")
    assert (by_name["+yaw"] @ ahead)[1] > 0 and "anticlockwise" in next(m.words for m in MOTIONS if m.name == "+yaw")
