"""The built-in simulator: reproducible, answering actions as LIBERO's arm does, and truthful about success."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bitvla_ros.policy.observation import quaternion_to_axis_angle
from bitvla_ros.simulation import TABLETOP_SUITES, Snapshot, make
from bitvla_ros.simulation.expert import plans_of
from bitvla_ros.simulation.rendering import RenderingError
from bitvla_ros.simulation.tabletop import TabletopEnvironment

HOLD = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


def axis_action(axis: int, value: float = 1.0, gripper: float = -1.0) -> np.ndarray:
    action = np.zeros(7, np.float32)
    action[axis], action[6] = value, gripper
    return action


def digest(snapshots: list[Snapshot]) -> str:
    """Hash of every byte that can be seen."""
    state = hashlib.sha256()
    for snapshot in snapshots:
        for name in sorted(snapshot.images):
            state.update(name.encode() + snapshot.images[name].tobytes())
        for array in (snapshot.position, snapshot.orientation, snapshot.gripper, snapshot.joint_positions):
            state.update(array.tobytes())
        for name, pose in sorted(snapshot.object_poses.items()):
            state.update(name.encode() + pose.tobytes())
        state.update(bytes([snapshot.success]))
    return state.hexdigest()


def play(environment: TabletopEnvironment, task: int, seed: int, steps: int) -> list[Snapshot]:
    """A rough episode: random actions that push things around and open and close the gripper."""
    rng = np.random.default_rng(seed)
    snapshots = [environment.reset(task, seed)]
    for _ in range(steps):
        snapshots.append(environment.step((rng.uniform(-1, 1, 7) + [0, 0, -0.5, 0, 0, 0, 0]).astype(np.float32)))
    return snapshots


@pytest.fixture
def blind() -> Iterator[TabletopEnvironment]:
    environment = TabletopEnvironment("tabletop_object", cameras=())
    yield environment
    environment.close()


@pytest.mark.parametrize("suite", TABLETOP_SUITES)
def test_a_suite_has_language_conditioned_tasks_and_a_step_limit(suite: str) -> None:
    environment = make(suite, cameras=())
    assert len(environment.tasks) >= 4 and len(set(environment.tasks)) == len(environment.tasks)
    assert environment.step_limit == {"tabletop_spatial": 220, "tabletop_object": 280, "tabletop_few": 280, "tabletop_goal": 300}[suite]
    assert environment.control_hz == 20.0 and environment.frame == "world"
    for task in range(len(environment.tasks)):
        snapshot = environment.reset(task, 0)
        assert not snapshot.success and not snapshot.images
        assert snapshot.joint_positions.shape == (len(environment.joint_names),) == (7,)
        assert all(pose.shape == (7,) and np.isfinite(pose).all() for pose in snapshot.object_poses.values())


def test_pictures_have_the_asked_cameras_and_size_and_differ() -> None:
    environment = make("tabletop_goal", image_size=96)
    before = environment.reset(0, 0)
    for _ in range(8):
        after = environment.step(axis_action(0))
    environment.close()
    assert tuple(before.images) == ("scene", "wrist")
    for role, image in before.images.items():
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert image.std() > 10
        assert (image != after.images[role]).any()
    # Red block, green block, blue bowl: the scene camera sees colours where they belong, so channels are RGB and rows run downwards.
    scene = before.images["scene"].astype(int)
    red = np.argwhere((scene[..., 0] > 120) & (scene[..., 1:].max(-1) < 60))
    assert len(red) > 20 and red[:, 0].mean() > 48


def test_what_an_episode_does_not_have_is_neither_seen_nor_told() -> None:
    environment, everything = make("tabletop_few", image_size=96), set(make("tabletop_object", cameras=()).reset(0, 0).object_poses)
    counts = set()
    for task, seed in ((task, seed) for seed in range(12) for task in range(5)):
        snapshot = environment.reset(task, seed)
        there = set(snapshot.object_poses)
        counts.add(len(there) - 1)  # the basket always is
        assert there <= everything and "basket" in there and plans_of("tabletop_few")[environment.tasks[task]].pick in there
        scene = snapshot.images["scene"].astype(int)
        red = ((scene[..., 0] > 120) & (scene[..., 1:].max(-1) < 60)).sum()
        blue = ((scene[..., 2] > 120) & (scene[..., 0] < 60)).sum()
        assert (red > 10, blue > 10) == ("red_block" in there, "blue_block" in there)
        assert red == 0 or "red_block" in there
    assert counts == {1, 2, 3, 4, 5}
    for _ in range(40):
        assert set(environment.step(HOLD).object_poses) == there
    environment.close()


def test_another_thread_and_a_closed_environment_are_refused() -> None:
    environment = make("tabletop_goal", image_size=32)
    environment.reset(0, 0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RenderingError, match="thread"):
        pool.submit(environment.step, HOLD).result()
    environment.step(HOLD)
    environment.close()
    environment.close()
    with pytest.raises(RenderingError, match="closed"):
        environment.reset(0, 0)


def test_without_cameras_no_opengl_context_is_made() -> None:
    code = (
        "import sys; from bitvla_ros.simulation import make; e = make('tabletop_goal', cameras=()); e.reset(0, 0); e.close();"
        "sys.exit(any(name in sys.modules for name in ('OpenGL', 'mujoco.egl', 'mujoco.osmesa')))"
    )
    environment = {**os.environ, "MUJOCO_GL": "", "DISPLAY": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[1]).returncode == 0


def test_equal_task_seed_and_actions_give_equal_bytes_in_this_and_another_process() -> None:
    environment = TabletopEnvironment("tabletop_object", image_size=64)
    first = digest(play(environment, 1, 7, 30))
    play(environment, 2, 3, 10)  # another episode in between leaves no trace
    assert digest(play(environment, 1, 7, 30)) == first
    assert digest(play(environment, 1, 8, 30)) != first
    environment.close()
    code = (
        "import sys; sys.path.insert(0, 'test'); from test_tabletop import *;"
        "e = TabletopEnvironment('tabletop_object', image_size=64); print(digest(play(e, 1, 7, 30))); e.close()"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert other.stdout.strip() == first, other.stderr


def test_pictures_do_not_depend_on_what_was_in_memory() -> None:
    """Several renderers, each in memory that others have used, draw the same bytes."""
    digests = set()
    for _ in range(8):
        other = TabletopEnvironment("tabletop_goal", image_size=48)
        other.reset(0, 0)
        other.close()
        environment = TabletopEnvironment("tabletop_object", image_size=96)
        digests.add(digest([environment.reset(1, 7)]))
        environment.close()
    assert len(digests) == 1


def test_initial_states_differ_by_task_and_seed(blind: TabletopEnvironment) -> None:
    poses = {(task, seed): blind.reset(task, seed).object_poses["red_block"].tobytes() for task in (0, 1) for seed in (0, 1, 2)}
    assert len(set(poses.values())) == len(poses)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_sustained_full_scale_translation_moves_like_osc(blind: TabletopEnvironment, axis: int, sign: float) -> None:
    """Measured on robosuite: 5 rising to 13 mm a step; 50 mm are asked for."""
    last = blind.reset(0, 0).position
    moved = []
    for _ in range(8):
        position = blind.step(axis_action(axis, sign)).position
        moved.append(position - last)
        last = position
    along = np.array(moved)[:, axis] * sign
    assert 0.005 <= along[0] <= 0.008
    assert (np.diff(along[:4]) > 0).all()
    assert np.abs(along[4:] - 0.0134).max() < 0.0008
    across = np.delete(np.array(moved), axis, axis=1)
    assert np.abs(across).max() < 0.001


@pytest.mark.parametrize("axis", range(3))
def test_sustained_full_scale_rotation_turns_like_osc(blind: TabletopEnvironment, axis: int) -> None:
    """Measured on robosuite: 0.03 to 0.07 rad a step; 0.5 rad are asked for."""
    snapshot = blind.reset(0, 0)
    start, last, turned = snapshot.position, snapshot.orientation, []
    for _ in range(6):
        snapshot = blind.step(axis_action(3 + axis, 1.0))
        turned.append(2 * np.arccos(min(1.0, abs(float(last @ snapshot.orientation)))))
        last = snapshot.orientation
    assert 0.03 <= turned[0] <= 0.05
    assert np.all(np.diff(turned[:3]) > 0)
    assert 0.065 <= turned[-1] <= 0.075
    assert np.linalg.norm(snapshot.position - start) < 0.01


def test_a_positive_rotation_about_z_turns_left_in_the_world_frame(blind: TabletopEnvironment) -> None:
    blind.reset(0, 0)
    for _ in range(8):
        x, y, z, w = blind.step(axis_action(5)).orientation
    hand_x = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)])  # first column of the rotation matrix
    assert hand_x[0] > 0.8 and hand_x[1] > 0.15


def test_a_zero_action_holds_the_pose(blind: TabletopEnvironment) -> None:
    start = blind.reset(0, 0)
    for _ in range(100):
        snapshot = blind.step(HOLD)
    assert np.linalg.norm(snapshot.position - start.position) < 5e-4
    assert 1 - abs(float(start.orientation @ snapshot.orientation)) < 1e-6


def test_a_hold_stops_a_turning_hand(blind: TabletopEnvironment) -> None:
    def angle(a: Snapshot, b: Snapshot) -> float:
        return 2 * float(np.arccos(min(1.0, abs(float(a.orientation @ b.orientation)))))

    blind.reset(0, 0)
    for _ in range(8):
        turning = blind.step(np.array([0, 0, 0, 0, 0, 1, -1], np.float32))
    stopped = [blind.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32)) for _ in range(60)]
    assert angle(turning, stopped[9]) < 0.15  # it coasts; on to the goal of the last turn it would be 0.4 rad
    assert angle(stopped[9], stopped[-1]) < 0.01  # and does not creep


def test_axis_angle_does_not_flip_while_the_hand_points_down(blind: TabletopEnvironment) -> None:
    """Turned through pi about x in both directions, the vector goes on from (pi, 0, 0) instead of jumping to (-pi, 0, 0)."""
    vectors = [quaternion_to_axis_angle(blind.reset(0, 0).orientation)]
    assert vectors[0] == pytest.approx([np.pi, 0, 0], abs=1e-3)
    for sign in (1, 1, 1, -1, -1, -1, -1, -1, -1):
        vectors.append(quaternion_to_axis_angle(blind.step(axis_action(3, sign)).orientation))
    angles = np.array(vectors)[:, 0]
    assert angles.max() > np.pi + 0.03 and angles.min() < np.pi - 0.03
    assert np.abs(np.diff(np.array(vectors), axis=0)).max() < 0.1


def test_joint_limits_hold_whatever_is_asked(blind: TabletopEnvironment) -> None:
    limits = np.array([blind._model.joint(name).range for name in blind.joint_names])
    for axis in range(6):
        for sign in (-1.0, 1.0):
            blind.reset(0, 0)
            for _ in range(50):
                snapshot = blind.step(axis_action(axis, sign))
                assert np.isfinite(snapshot.joint_positions).all()
                assert (snapshot.joint_positions > limits[:, 0]).all() and (snapshot.joint_positions < limits[:, 1]).all()


def test_the_gripper_opens_below_zero_closes_above_and_keeps_at_zero(blind: TabletopEnvironment) -> None:
    def settle(command: float) -> np.ndarray:
        for _ in range(12):
            snapshot = blind.step(axis_action(0, 0.0, command))
        return snapshot.gripper

    assert blind.reset(0, 0).gripper == pytest.approx([0.04, -0.04], abs=1e-3)
    closed = settle(1.0)
    assert closed == pytest.approx([0.0, 0.0], abs=2e-3)
    assert settle(0.0) == pytest.approx(closed, abs=1e-3)
    assert settle(-1.0) == pytest.approx([0.04, -0.04], abs=2e-3)


@pytest.mark.parametrize(
    "action",
    [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan), np.array([np.inf, 0, 0, 0, 0, 0, 0])],
    ids=("short", "batch", "nan", "inf"),
)
def test_a_bad_action_is_refused_and_changes_nothing(blind: TabletopEnvironment, action: np.ndarray) -> None:
    blind.reset(0, 0)
    expected = digest([blind.step(axis_action(0))])
    blind.reset(0, 0)
    with pytest.raises(ValueError, match="action"):
        blind.step(action)
    assert digest([blind.step(axis_action(0))]) == expected


def test_offsets_beyond_full_scale_are_clipped(blind: TabletopEnvironment) -> None:
    blind.reset(0, 0)
    expected = blind.step(axis_action(1, 1.0)).position
    blind.reset(0, 0)
    assert (blind.step(axis_action(1, 30.0)).position == expected).all()


def turned(orientation: np.ndarray, axis: int, angle: float) -> np.ndarray:
    """orientation, xyzw, turned about an axis of the world."""
    x, y, z, w = np.append(np.sin(angle / 2) * np.eye(3)[axis], np.cos(angle / 2))
    product = np.array([[w, -z, y, x], [z, w, -x, y], [-y, x, w, z], [-x, -y, -z, w]])
    return product @ orientation


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float(np.arccos(min(1.0, abs(float(a @ b)))))


@pytest.mark.parametrize("axis", range(3))
def test_the_arm_follows_an_absolute_pose_and_stays_there(blind: TabletopEnvironment, axis: int) -> None:
    start = blind.reset(0, 0)
    position = start.position + 0.02 * np.eye(3)[axis]
    orientation = turned(start.orientation, axis, 0.1)
    last = start
    for _ in range(60):
        snapshot = blind.follow(position, orientation, 0.0, 0.01)
        assert np.linalg.norm(snapshot.position - last.position) < 0.005  # 0.5 m/s
        last = snapshot
    assert np.linalg.norm(snapshot.position - position) < 5e-4
    assert angle_between(snapshot.orientation, orientation) < 1e-3


def test_the_arm_trails_a_moving_pose_by_a_twentieth_of_a_second(blind: TabletopEnvironment) -> None:
    start = blind.reset(0, 0)
    for i in range(1, 61):
        goal = start.position + [0, 0.0025 * i, 0]
        snapshot = blind.follow(goal, start.orientation, 0.0, 0.01)
    assert goal[1] - snapshot.position[1] == pytest.approx(0.25 * 0.05, abs=0.004)


def test_following_moves_the_fingers_as_fast_as_steps_do(blind: TabletopEnvironment) -> None:
    start = blind.reset(0, 0)
    for _ in range(4):
        stepped = blind.step(axis_action(0, 0.0, 1.0)).gripper
    blind.reset(0, 0)
    for _ in range(20):
        followed = blind.follow(start.position, start.orientation, 1.0, 0.01).gripper
    assert followed == pytest.approx(stepped, abs=1e-4)
    for _ in range(40):
        kept = blind.follow(start.position, start.orientation, 0.0, 0.01).gripper
    assert kept == pytest.approx([0, 0], abs=2e-3)


def test_a_step_after_following_moves_like_osc_again(blind: TabletopEnvironment) -> None:
    start = blind.reset(0, 0)
    expected = [blind.step(axis_action(1)).position - start.position for _ in range(5)]
    start = blind.reset(0, 0)
    for _ in range(20):
        before = blind.follow(start.position, start.orientation, -1.0, 0.01)
    moved = [blind.step(axis_action(1)).position - before.position for _ in range(5)]
    assert np.array(moved) == pytest.approx(np.array(expected), abs=1e-4)


def test_following_gives_equal_bytes_and_renders_when_asked() -> None:
    environment = TabletopEnvironment("tabletop_object", image_size=64)
    digests = []
    for _ in range(2):
        start = environment.reset(0, 0)
        pose = start.position + [0.0, 0.1, 0.0], start.orientation
        seen = [environment.follow(*pose, -1.0, 0.01, render=i % 5 == 4) for i in range(20)]
        assert [bool(snapshot.images) for snapshot in seen] == [i % 5 == 4 for i in range(20)]
        assert (seen[-1].images["scene"] != start.images["scene"]).any()
        digests.append(digest(seen))
    assert digests[0] == digests[1]
    environment.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": np.zeros(2)}, "3, 4 and 1 finite"),
        ({"position": np.array([np.nan, 0, 0])}, "3, 4 and 1 finite"),
        ({"gripper": np.inf}, "3, 4 and 1 finite"),
        ({"orientation": np.zeros(4)}, "unit quaternion"),
        ({"duration": 0.0}, "multiple of 0.0025 s"),
        ({"duration": 0.004}, "multiple of 0.0025 s"),
    ],
    ids=("short", "nan", "inf", "no_rotation", "no_time", "odd_time"),
)
def test_a_bad_pose_is_refused_and_changes_nothing(blind: TabletopEnvironment, change: dict, words: str) -> None:
    start = blind.reset(0, 0)
    good = {"position": start.position + 0.01, "orientation": start.orientation, "gripper": 1.0, "duration": 0.01}
    expected = digest([blind.follow(**good)])
    blind.reset(0, 0)
    with pytest.raises(ValueError, match=words):
        blind.follow(**{**good, **change})
    assert digest([blind.follow(**good)]) == expected


def test_what_does_not_exist_is_refused_with_what_does(blind: TabletopEnvironment) -> None:
    with pytest.raises(ValueError, match="tabletop_goal"):
        make("tabletop_kitchen")
    with pytest.raises(ValueError, match="scene, wrist"):
        make("tabletop_goal", cameras=("ceiling",))
    with pytest.raises(ValueError, match="tasks 0 to 4"):
        blind.reset(5, 0)
    with pytest.raises(ValueError, match="seed"):
        blind.reset(0, -1)
    with pytest.raises(ValueError, match="reset"):
        TabletopEnvironment("tabletop_goal", cameras=()).step(HOLD)
    with pytest.raises(ValueError, match="reset"):
        TabletopEnvironment("tabletop_goal", cameras=()).follow(np.zeros(3), np.array([1.0, 0, 0, 0]), 0.0, 0.01)


def _teleport(environment: TabletopEnvironment, name: str, position: np.ndarray) -> Snapshot:
    joint = environment._data.joint(name)
    joint.qpos[:3], joint.qvel[:] = position, 0.0
    for _ in range(10):
        snapshot = environment.step(HOLD)
    return snapshot


def test_success_needs_the_right_object_at_the_right_place(blind: TabletopEnvironment) -> None:
    start = blind.reset(0, 0)  # the red block belongs in the basket
    basket = start.object_poses["basket"][:3]
    assert not _teleport(blind, "green_block", basket + [0, 0, 0.03]).success
    assert not _teleport(blind, "red_block", basket + [0, -0.14, 0.022]).success  # beside it
    assert not blind.step(HOLD).success
    joint = blind._data.joint("red_block")
    joint.qpos[:3], joint.qvel[:] = basket + [0, 0.0, 0.3], 0.0
    assert not blind.step(HOLD).success  # above it, falling
    assert _teleport(blind, "red_block", basket + [0.03, 0.03, 0.03]).success


@pytest.mark.parametrize(
    ("task", "goal", "height"),
    [(0, "bowl", 0.05), (1, "plate", 0.04), (2, "basket", 0.04), (3, "plate", 0.04), (4, "green_block", 0.046), (5, "mat", 0.03)],
)
def test_each_goal_is_met_by_its_own_object_alone(task: int, goal: str, height: float) -> None:
    environment = TabletopEnvironment("tabletop_goal", cameras=())
    target = "red_block" if task in (0, 1, 2, 4) else "green_block"
    start = environment.reset(task, 0)
    assert target.split("_")[0] in environment.tasks[task]
    for other in (name for name in ("bowl", "plate", "basket", "mat") if name != goal):
        assert not _teleport(environment, target, start.object_poses[other][:3] + [0, 0, 0.05]).success
    assert _teleport(environment, target, start.object_poses[goal][:3] + [0, 0, height]).success


def test_an_object_still_in_the_fingers_is_no_success() -> None:
    environment = TabletopEnvironment("tabletop_goal", cameras=())
    start = environment.reset(5, 1)
    mat = start.object_poses["mat"][:3]
    # Bring the open hand over the mat, put the block between the fingers, close: at the goal, at rest, and held.
    for _ in range(60):
        snapshot = environment.step(
            np.append(np.clip(15 * (mat + [0, 0, 0.02] - environment._data.site("grip_site").xpos), -1, 1), [0, 0, 0, -1])
        )
    joint = environment._data.joint("green_block")
    joint.qpos[:], joint.qvel[:] = [*snapshot.position[:2], 0.022, 1, 0, 0, 0], 0.0
    assert environment.step(HOLD).success
    for _ in range(10):
        snapshot = environment.step(axis_action(0, 0.0, 1.0))
    assert not snapshot.success
    for _ in range(10):
        snapshot = environment.step(HOLD)
    assert snapshot.success


@pytest.mark.parametrize("task", range(4))
def test_spatial_words_single_out_one_block(task: int) -> None:
    environment = TabletopEnvironment("tabletop_spatial", cameras=())
    for seed in range(12):
        poses = environment.reset(task, seed).object_poses
        (first, second), bowl, box = (poses["red_block_1"], poses["red_block_2"]), poses["bowl"], poses["wooden_box"]
        if task == 0:  # left in the picture: -y
            assert first[1] < second[1] - 0.1
        elif task == 1:
            assert np.hypot(*(first - bowl)[:2]) < 0.13 and first[1] > bowl[1] + 0.09 and abs(second[1] - first[1]) > 0.09
        elif task == 2:
            assert first[2] > 0.05 and second[2] < 0.03 and np.abs((first - box)[:2]).max() < 0.03
        else:
            assert bowl[0] + 0.08 < first[0] < box[0] - 0.06
            assert not bowl[0] + 0.08 < second[0] < box[0] - 0.06 or abs(second[1] - bowl[1]) > 0.09
