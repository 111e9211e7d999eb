"""The reference model: what an offset means to an arm that is told where to be, and the limits that it keeps whatever comes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitvla_ros.control.command import ArmState, Setpoint
from bitvla_ros.control.motion import MODELS, Motion, MotionConfig, braked
from bitvla_ros.control.rotation import turn_between, turned

STEP = 0.05
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
HAND = turned(UPRIGHT, np.array([np.pi, 0.0, 0.0]))
ROBOT = {"speed": 0.25, "angular_speed": 1.5, "acceleration": 3.0, "angular_acceleration": 15.0}


def arm(position=(0.0, 0.0, 0.0), orientation=UPRIGHT) -> ArmState:
    return ArmState(np.array(position, np.float64), np.array(orientation, np.float64), 0)


def motion(model: str = "spring", **limits: float) -> Motion:
    made = Motion(MotionConfig(model, **limits), 1 / STEP)
    made.reset(arm())
    return made


def action(*offset: float, gripper: float = 1.0) -> np.ndarray:
    row = np.zeros(7, np.float32)
    row[: len(offset)], row[6] = offset, gripper
    return row


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(turn_between(a, b)))


def play(made: Motion, asked, seconds: float, dt: float = 0.01) -> list[Setpoint]:
    return [made.step(asked, dt) for _ in range(round(seconds / dt))]


# The spring


def recorded() -> dict[str, np.ndarray]:
    """Offsets for 16 control steps, by what they are."""
    random = np.random.default_rng(0)
    sequences = {}
    for axis, scale in ((0, 1.0), (0, -1.0), (1, 1.0), (2, 1.0), (2, -1.0), (3, 0.5), (4, -0.5), (5, 0.5)):
        sequences[f"{scale:+g} on axis {axis}, then nothing"] = np.zeros((16, 7), np.float32)
        sequences[f"{scale:+g} on axis {axis}, then nothing"][:8, axis] = scale
    sequences["a turn, then a translation alone"] = np.zeros((16, 7), np.float32)
    sequences["a turn, then a translation alone"][:4, 5], sequences["a turn, then a translation alone"][4:, 0] = 1.0, 0.3
    sequences["a reversal"] = np.zeros((16, 7), np.float32)
    sequences["a reversal"][:12, 0] = np.repeat((1.0, -1.0), 6)
    knots = random.uniform(-0.7, 0.7, (5, 7)) * (1, 1, 1, 0.4, 0.4, 0.4, 0)
    sequences["a smooth path"] = np.stack([np.interp(np.linspace(0, 4, 16), range(5), column) for column in knots.T], 1).astype(np.float32)
    sequences["noise"] = random.uniform(-1, 1, (16, 7)).astype(np.float32) * np.array([1, 1, 1, 0, 0, 0, 1], np.float32)
    return sequences


@pytest.mark.parametrize("name", recorded())
def test_the_spring_moves_as_the_simulated_arm_does(name):
    """Open loop over 0.8 s. Measured: at most 3.1 mm off after 107 mm, 0.010 rad off after 0.29 rad; sums of the offsets would be 400 mm
    and 2 rad. A turning hand also moves the grip site, by up to 1.6 mm, which a model without an arm cannot know."""
    tabletop = pytest.importorskip("bitvla_ros.simulation.tabletop", reason="no MuJoCo: pip install '.[sim]'")
    environment = tabletop.TabletopEnvironment("tabletop_goal", cameras=())
    seen = environment.reset(0, 0)
    made = motion()
    made.reset(arm(seen.position, seen.orientation))
    for row in recorded()[name]:
        seen = environment.step(row)
        setpoint = play(made, row, STEP)[-1]
        assert np.linalg.norm(setpoint.position - seen.position) < 0.004
        assert angle(setpoint.orientation, seen.orientation) < 0.015


def test_the_spring_is_the_experts_model_of_the_controller():
    from bitvla_ros.simulation.expert import respond

    made, position, velocity = motion(), np.zeros(3), np.zeros(3)
    for offset in np.random.default_rng(1).uniform(-1, 1, (20, 3)).astype(np.float32):
        position, velocity = respond(position, velocity, offset.astype(np.float64))
        setpoint = play(made, action(*offset), STEP)[-1]
        np.testing.assert_allclose(setpoint.position, position, atol=1e-12)


@pytest.mark.parametrize("hz", [20, 40, 100, 200, 500])
def test_the_spring_moves_alike_at_every_rate(hz):
    rows = np.random.default_rng(2).uniform(-0.5, 0.5, (10, 7)).astype(np.float32)
    one, other = motion(), motion()
    for row in rows:
        expected, found = play(one, row, STEP)[-1], play(other, row, STEP, 1 / hz)[-1]
        np.testing.assert_allclose(found.position, expected.position, atol=1e-12)
        assert angle(found.orientation, expected.orientation) < 1e-3, "turns about different axes follow each other in steps"


def test_a_rotation_of_exactly_zero_keeps_the_last_goal_of_orientation():
    """The hand goes on to half a radian from where it was when the last rotation was asked for, and stays."""
    made = motion()
    turning = play(made, action(0, 0, 0, 0, 0, 1), 4 * STEP)[-1]
    began = play(motion(), action(0, 0, 0, 0, 0, 1), 3 * STEP)[-1].orientation
    assert turning.angular[2] > 0.5
    rest = play(made, action(0.5), 3.0)[-1]
    assert angle(began, rest.orientation) == pytest.approx(0.5, abs=1e-3)
    assert np.linalg.norm(rest.angular) < 1e-3


@pytest.mark.parametrize("asked", [None, action()], ids=["a hold", "no offset at all"])
def test_what_asks_for_nothing_stops_a_turning_hand(asked):
    made = motion(**ROBOT)
    before = play(made, action(1, 0, 0, 0, 0, 1), 0.5)[-1]
    after = play(made, asked, 2.0)[-1]
    assert angle(before.orientation, after.orientation) < 0.15
    assert not after.angular.any() or np.linalg.norm(after.angular) < 1e-6


def test_an_offset_that_changes_within_a_control_step_counts_from_where_the_step_began():
    """So does a fade: the goal glides, and the model is not started anew at every call."""
    constant, wobbling, anew = motion(), motion(), motion()
    for k in range(50):
        one = constant.step(action(0.9), 0.01, renew=k % 5 == 0)
        other = wobbling.step(action(0.8 + 0.1 * (k % 3)), 0.01, renew=k % 5 == 0)
        wrong = anew.step(action(0.9), 0.01, renew=True)
    assert other.position[0] == pytest.approx(one.position[0], rel=0.02)
    assert wrong.position[0] > 1.1 * one.position[0]


# An arm that lags


class Lagging:
    """Follows setpoints as a first-order lag does."""

    def __init__(self, lag: float) -> None:
        self.lag, self.position, self.orientation = lag, np.zeros(3), UPRIGHT

    def follow(self, before: Setpoint, after: Setpoint, dt: float, parts: int = 50) -> None:
        for k in range(parts):
            share = 1.0 - np.exp(-dt / parts / self.lag)
            target = before.position + (k + 0.5) / parts * (after.position - before.position)
            turn = turned(before.orientation, (k + 0.5) / parts * turn_between(before.orientation, after.orientation))
            self.position = self.position + share * (target - self.position)
            self.orientation = turned(self.orientation, share * turn_between(self.orientation, turn))


def led(model: str, lag: float, rows: np.ndarray, told: float) -> tuple[float, float]:
    """How far, at most, an arm of this lag is from what the model does without one: m and rad. told: the lag that the model knows of."""
    made, plain, follower = motion(model, lag=told), motion(model), Lagging(lag)
    last, far, wide = made.step(None, 0.0), 0.0, 0.0
    for row in rows:
        for _ in range(5):
            setpoint, wanted = made.step(row, STEP / 5), plain.step(row, STEP / 5)
            follower.follow(last, setpoint, STEP / 5)
            last = setpoint
        far = max(far, float(np.linalg.norm(follower.position - wanted.position)))
        wide = max(wide, angle(follower.orientation, wanted.orientation))
    return far, wide


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lag", [0.03, 0.08])
def test_an_arm_that_lags_moves_as_the_model_does_where_the_lag_is_known(model, lag):
    knots = np.random.default_rng(4).uniform(-0.4, 0.4, (6, 7))  # within the limits of the setpoint, which has to be quicker
    rows = np.stack([np.interp(np.linspace(0, 5, 24), range(6), column) for column in knots.T], 1).astype(np.float32)
    known, unknown = led(model, lag, rows, told=lag), led(model, lag, rows, told=0.0)
    assert known[0] < 0.2 * unknown[0] and known[1] < 0.2 * unknown[1], (known, unknown)


@pytest.mark.parametrize("name", ["+1 on axis 0, then nothing", "a reversal", "a smooth path"])
def test_the_simulated_arm_led_by_poses_moves_as_by_its_own_controller(name):
    tabletop = pytest.importorskip("bitvla_ros.simulation.tabletop", reason="no MuJoCo: pip install '.[sim]'")
    stepped, led = (tabletop.TabletopEnvironment("tabletop_goal", cameras=()) for _ in range(2))
    seen = stepped.reset(0, 0)
    far = {}
    for lag in (0.0, 0.05):
        stepped.reset(0, 0), led.reset(0, 0)
        made = motion(lag=lag)
        made.reset(arm(seen.position, seen.orientation))
        distances = []
        for row in recorded()[name]:
            wanted = stepped.step(row)
            for _ in range(5):
                setpoint = made.step(row, 0.01)
                found = led.follow(setpoint.position, setpoint.orientation, 0.0, 0.01)
            distances.append(np.linalg.norm(found.position - wanted.position))
        far[lag] = max(distances)
    assert far[0.05] < 0.008 < far[0.0], far


def test_a_lag_changes_nothing_about_how_fast_setpoints_come_to_rest():
    made = motion(**ROBOT, lag=0.1)
    speed = float(np.linalg.norm(play(made, action(1), 0.5)[-1].linear))
    stop = play(made, None, 0.3)
    np.testing.assert_allclose(-np.diff([speed, *(float(np.linalg.norm(s.linear)) for s in stop)])[:7], 0.03, atol=1e-9)
    assert stop[-1].hold


# Velocities by scale


def test_a_scaled_offset_is_a_distance_a_step_reached_linearly():
    made = motion("scaled", metres_per_unit=0.01, radians_per_unit=0.05)
    first = play(made, action(0.5, 0, 0, 0, 0, -1), STEP)
    np.testing.assert_allclose([s.linear[0] for s in first], 0.1 * np.arange(1, 6) / 5, atol=1e-12)
    np.testing.assert_allclose([s.angular[2] for s in first], -1.0 * np.arange(1, 6) / 5, atol=1e-12)
    second = play(made, action(0.5, 0, 0, 0, 0, -1), STEP)
    assert second[-1].position[0] - first[-1].position[0] == pytest.approx(0.005)
    assert angle(first[-1].orientation, second[-1].orientation) == pytest.approx(0.05)
    third = play(made, action(0), STEP)
    np.testing.assert_allclose([s.linear[0] for s in third], 0.1 * np.arange(4, -1, -1) / 5, atol=1e-12)


# An arm that does not follow


@pytest.mark.parametrize("model", MODELS)
def test_offsets_count_from_near_the_measured_arm(model):
    """Where the arm follows within `lead`, the model does not even look at it; beyond, the setpoint stays that far ahead."""
    asked = action(0.2, 0, 0, 0, 0, 0.2)
    free, followed, blocked = (motion(model, **ROBOT, lead=0.03, lead_angle=0.1) for _ in range(3))
    for _ in range(300):
        expected = free.step(asked, 0.01)
        near = arm(expected.position - np.array([0.029, 0, 0]), turned(expected.orientation, np.array([0, 0, -0.099])))
        found, stuck = followed.step(asked, 0.01, arm=near), blocked.step(asked, 0.01, arm=arm())
    np.testing.assert_allclose(found.position, expected.position, atol=1e-9)
    assert angle(found.orientation, expected.orientation) < 1e-9
    assert expected.position[0] > 0.1 and angle(UPRIGHT, expected.orientation) > 0.5
    assert 0.03 <= stuck.position[0] <= 0.03 + 0.05 * 0.2 + 1e-3
    assert 0.1 <= angle(UPRIGHT, stuck.orientation) <= 0.1 + 0.5 * 0.2 + 1e-3


# Limits


def check_seam(before: Setpoint, after: Setpoint, dt: float, config: MotionConfig) -> None:
    """What holds between any two setpoints in a row: limits of speed and acceleration, and position and velocity that agree."""
    slack, tiny = 1 + 1e-9, 1e-12
    for velocity, last, moved, speed, acceleration in (
        (after.linear, before.linear, after.position - before.position, config.speed, config.acceleration),
        (
            after.angular,
            before.angular,
            turn_between(before.orientation, after.orientation),
            config.angular_speed,
            config.angular_acceleration,
        ),
    ):
        assert np.isfinite(velocity).all() and np.isfinite(moved).all()
        assert np.linalg.norm(velocity) <= speed * slack
        assert np.linalg.norm(velocity - last) <= acceleration * dt * slack + tiny
        assert np.linalg.norm(moved) <= speed * dt * slack + tiny
        np.testing.assert_allclose(moved, velocity * dt, atol=1e-9)
    assert abs(np.linalg.norm(after.orientation) - 1) < 1e-12
    assert after.hold <= (not after.linear.any() and not after.angular.any())


_NUMBERS = st.one_of(st.floats(-1, 1, width=32), st.floats(width=32), st.sampled_from([0.0, 1.0, -1.0]))
_ACTIONS = st.one_of(st.none(), st.lists(_NUMBERS, min_size=7, max_size=7))
_TIMES = st.one_of(st.floats(0.001, 0.02), st.sampled_from([0.0, 0.01, 0.05]), st.floats(0, 1))


@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    lag=st.sampled_from([0.0, 0.05, 0.3]),
    limits=st.sampled_from([{}, ROBOT, {"speed": 0.01, "acceleration": 0.1, "angular_speed": 0.1, "angular_acceleration": 0.5}]),
    steps=st.lists(st.tuples(_ACTIONS, _TIMES, st.sampled_from([None, True, False]), st.integers(1, 10)), min_size=1, max_size=20),
)
def test_whatever_comes_the_setpoints_keep_to_the_limits(model, lag, limits, steps):
    made = motion(model, **limits, lag=lag)
    last = made.step(None, 0.0)
    for asked, dt, renew, times in steps:
        row = None if asked is None else np.array(asked, np.float32)
        for _ in range(times):
            setpoint = made.step(row, dt, renew)
            check_seam(last, setpoint, dt, made.config)
            last = setpoint


def test_a_hold_stops_at_the_limit_and_then_rests():
    made = motion(**ROBOT)
    moving = play(made, action(1, 1, 0, 1, 0, 0), 1.0)[-1]
    speed = float(np.linalg.norm(moving.linear))
    assert speed == pytest.approx(0.25)
    stop = play(made, None, 0.3)
    slower = -np.diff([speed, *(float(np.linalg.norm(s.linear)) for s in stop)])
    stopping = round(speed / 3.0 / 0.01 - 0.5)
    np.testing.assert_allclose(slower[:stopping], 0.03, atol=1e-9)
    assert np.linalg.norm(stop[-1].position - moving.position) <= speed**2 / (2 * 3.0)
    assert stop[-1].hold and not stop[-1].linear.any() and not stop[0].hold
    assert stop[-1].gripper == 1, "the gripper keeps its last command"
    first = next(k for k, s in enumerate(stop) if s.hold)
    assert all((s.position == stop[first].position).all() for s in stop[first:])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_a_stop(bad):
    made = motion(**ROBOT)
    play(made, action(1), 0.5)
    assert play(made, action(0, 0, bad), 0.5)[-1].hold


def test_a_stop_that_the_guard_makes_is_the_models_own():
    made = motion(**ROBOT)
    setpoint = play(made, action(1, 0, 0.5, 0, 0.3, 0), 0.5)[-1]
    for _ in range(30):
        setpoint = braked(setpoint, 0.01, 3.0, 15.0)
        expected = made.step(None, 0.01)
        np.testing.assert_allclose(setpoint.position, expected.position, atol=1e-12)
        assert angle(setpoint.orientation, expected.orientation) < 1e-12 and setpoint.hold == expected.hold
    assert setpoint.hold


# State


def test_a_reset_is_rest_where_the_arm_is():
    made = motion(**ROBOT)
    play(made, action(1, gripper=-1), 0.5)
    made.reset(arm((0.4, 0.1, 0.2), 2 * HAND))
    setpoint = made.step(None, 0.01)
    assert setpoint.hold and setpoint.position.tolist() == [0.4, 0.1, 0.2] and setpoint.gripper == -1
    np.testing.assert_allclose(setpoint.orientation, HAND, atol=1e-12)


def test_no_gripper_is_commanded_before_the_first_action():
    assert motion().step(None, 0.01).gripper == 0


def test_a_motion_is_resumed_where_it_stood():
    one, other = motion(**ROBOT), motion(**ROBOT)
    setpoint = play(one, action(1, 0, 0, 0, 1), 0.5)[-1]
    other.resume(setpoint)
    check_seam(setpoint, other.step(action(-1), 0.01), 0.01, other.config)


def test_a_motion_that_is_resumed_is_ahead_of_an_arm_that_lags_as_it_was():
    """Or it would take the lead anew, all at once."""
    one, other = motion(lag=0.1), motion(lag=0.1)
    setpoint = play(one, action(0.4), 1.0)[-1]
    other.resume(setpoint)
    expected, found = one.step(action(0.4), 0.01), other.step(action(0.4), 0.01)
    assert np.linalg.norm(found.linear - expected.linear) < 0.06, "measured 0.035; 0.137 with a lead that begins at 0"


def test_a_rebased_motion_goes_on_at_its_velocity_from_where_the_arm_is():
    one, other = motion(), motion()
    asked = action(1, 0, 0, 0, 0, 1)
    play(one, asked, 0.08), play(other, asked, 0.08)
    other.rebase(arm((1.0, 2.0, 3.0), HAND))
    expected, found = one.step(asked, 0.01), other.step(asked, 0.01)
    np.testing.assert_allclose(found.linear, expected.linear, atol=1e-12)
    np.testing.assert_allclose(found.position, (1.0, 2.0, 3.0) + found.linear * 0.01, atol=1e-12)
    assert angle(HAND, found.orientation) == pytest.approx(float(np.linalg.norm(expected.angular)) * 0.01, rel=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "sprung"},
        {"speed": 0.0},
        {"acceleration": np.nan},
        {"angular_speed": np.inf},
        {"lead": 0.0},
        {"lag": -0.1},
        {"lag": np.nan},
    ],
)
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match="motion" if "model" in wrong else next(iter(wrong))):
        MotionConfig(**wrong)


@pytest.mark.parametrize("dt", [-0.01, float("nan")])
def test_time_does_not_run_backwards(dt):
    with pytest.raises(ValueError, match="dt"):
        motion().step(None, dt)
