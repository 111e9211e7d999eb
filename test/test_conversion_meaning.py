"""What a LeRobot dataset's numbers mean: read from its features' names, or declared, never assumed (bitvla convert)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import convert
from numpy.typing import NDArray
from recordings import png

from bitvla_ros.control.rotation import matrix, turned
from bitvla_ros.training.dataset import Dataset

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

FPS, LENGTH = 10, 12
GRIPPER = ["--gripper-open", 1, "--gripper-closed", 0]
UNITS = ["--metres-per-unit", 0.02, "--radians-per-unit", 0.1]
POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
OFFSETS = ["--action-kind", "offsets", "--action-rotation", "axis-angle"]
AXIS_ANGLES = ["--state-rotation", "axis-angle"]


def euler(angles: Any) -> NDArray[np.float64]:
    """Rotation matrix of roll, pitch, yaw about fixed axes, by the textbook."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def axis_angle(vector: Any) -> NDArray[np.float64]:
    return matrix(turned(np.array([0.0, 0.0, 0.0, 1.0]), np.asarray(vector, np.float64)))


def rows(seed: int = 0, scale: float = 0.9) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """State [T, 8] and actions [T, 7] within `scale`; the gripper opens, then closes."""
    random = np.random.default_rng(seed)
    actions = random.uniform(-scale, scale, (LENGTH, 7)).astype(np.float32)
    actions[:, 6] = np.arange(LENGTH) < 5
    state = random.uniform(-0.5, 0.5, (LENGTH, 8)).astype(np.float32)
    return state, actions


def write(root: Path, state: Any, actions: Any, *, names: Any = None, state_names: Any = None, **columns: Any) -> Path:
    """A dataset of one episode in LeRobot's layout v2.1, by hand."""
    (root / "meta").mkdir(parents=True)
    features = {
        "observation.images.scene": {"dtype": "image", "shape": [4, 4, 3], "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [state.shape[1]], "names": state_names},
        "action": {"dtype": "float32", "shape": [actions.shape[1]], "names": names},
    }
    info = {"codebase_version": "v2.1", "fps": FPS, "features": features, "chunks_size": 1000}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "pick"}))
    (root / "meta/episodes.jsonl").write_text(json.dumps({"episode_index": 0, "length": len(state)}))
    image = {"bytes": png(np.zeros((4, 4, 3), np.uint8)), "path": ""}
    table = {"observation.state": list(state), "action": list(actions), "task_index": [0] * len(state)}
    table |= {"frame_index": list(range(len(state))), "observation.images.scene": [image] * len(state), **columns}
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), root / "data/chunk-000/episode_000000.parquet")
    return root


def refused(capsys: pytest.CaptureFixture[str], source: Path, *options: object) -> str:
    code, result, _ = convert(capsys, source, source.parent / "out", *options, *GRIPPER)
    assert code == 2 and not (source.parent / "out").exists()
    return str(result["error"])


def converted(capsys: pytest.CaptureFixture[str], source: Path, *options: object) -> tuple[Dataset, str]:
    code, _, err = convert(capsys, source, source.parent / "out", *options, *GRIPPER)
    assert code == 0, err
    return Dataset(source.parent / "out"), err


@pytest.mark.parametrize(
    "names",
    [
        ["shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "x.pos", "gripper.pos"],
        {"motors": [f"joint_{i}" for i in range(7)]},
        {"left": [f"motor_{i}" for i in range(4)], "right": [f"motor_{i}" for i in range(4, 7)]},
        [f"panda_joint{i}" for i in range(1, 8)],
    ],
)
def test_joint_positions_are_refused_by_their_names(tmp_path, capsys, names):
    state, actions = rows()
    error = refused(capsys, write(tmp_path / "in", state, actions, names=names), *OFFSETS, *AXIS_ANGLES)
    assert "action holds joint positions by its names" in error and "forward kinematics" in error
    other = write(tmp_path / "state", state, actions, state_names=[f"joint_{i}" for i in range(8)])
    assert "observation.state holds joint positions" in refused(capsys, other, *OFFSETS, *AXIS_ANGLES)


@pytest.mark.parametrize("names", [None, ["actions"], {"motors": None}])
def test_what_nobody_says_is_asked_for(tmp_path, capsys, names):
    source = write(tmp_path / "in", *rows(), names=names, state_names=["state"])
    assert "nobody says what its actions are. Give --action-kind offsets" in refused(capsys, source)
    assert "give --action-rotation axis-angle" in refused(capsys, source, "--action-kind", "offsets")
    assert "give --state-rotation axis-angle" in refused(capsys, source, *OFFSETS)
    error = refused(capsys, source, "--action-kind", "metres", "--action-rotation", "euler", *AXIS_ANGLES)
    assert "needs --metres-per-unit and --radians-per-unit" in error
    assert "needs --metres-per-unit" in refused(
        capsys, source, "--action-kind", "metres", "--action-rotation", "euler", *AXIS_ANGLES, "--metres-per-unit", 0.02
    )


def test_offsets_stay_as_they_are_and_their_units_are_unknown_or_as_given(tmp_path, capsys):
    state, actions = rows()
    source = write(tmp_path / "in", state, actions)
    dataset, _ = converted(capsys, source, *OFFSETS, *AXIS_ANGLES)
    np.testing.assert_array_equal(dataset.episode(0).actions, actions)
    np.testing.assert_array_equal(dataset.episode(0).state, state)
    assert dataset.convention.metres_per_unit is None and dataset.convention.gripper_open == 1.0
    (tmp_path / "again").mkdir()
    dataset, _ = converted(capsys, source.rename(tmp_path / "again/in"), *OFFSETS, *AXIS_ANGLES, *UNITS)
    assert (dataset.convention.metres_per_unit, dataset.convention.radians_per_unit) == (0.02, 0.1)


def test_offsets_that_look_like_metres_are_said(tmp_path, capsys):
    """Metres a step with a largest translation of 0.015 are 1.5 % of full scale."""
    _, err = converted(capsys, write(tmp_path / "in", *rows(scale=0.015)), *OFFSETS, *AXIS_ANGLES)
    assert "the largest translation is 0.015 of full scale: are they metres a step? Give --action-kind metres" in err


def test_metres_and_euler_angles_a_step_become_units_and_axis_angles(tmp_path, capsys):
    state, actions = rows(scale=0.019)
    actions[:, 3:6] *= 4  # up to 0.076 rad
    source = write(tmp_path / "in", state, actions, names=[*POSE, "gripper"])
    dataset, _ = converted(capsys, source, "--action-kind", "metres", *UNITS, *AXIS_ANGLES)
    made = dataset.episode(0).actions
    np.testing.assert_allclose(made[:, :3], actions[:, :3] / 0.02, atol=1e-6)
    for row, given in zip(made, actions, strict=True):
        np.testing.assert_allclose(axis_angle(row[3:6] * 0.1), euler(given[3:6]), atol=1e-6)
    assert np.abs(made[:, 3:6] * 0.1 - actions[:, 3:6]).max() > 1e-4  # angles alone would have been wrong
    np.testing.assert_array_equal(made[:, 6], actions[:, 6])
    assert dataset.convention.metres_per_unit == 0.02


def test_metres_that_cannot_be_are_refused(tmp_path, capsys):
    options = ["--action-kind", "metres", *UNITS, "--action-rotation", "axis-angle", *AXIS_ANGLES]
    assert "m/s is no motion of an arm" in refused(capsys, write(tmp_path / "in", *rows()), *options)


def test_what_lies_beyond_full_scale_is_clipped_and_said(tmp_path, capsys):
    source = write(tmp_path / "in", *rows(scale=0.04), names=[*POSE, "gripper"])
    dataset, err = converted(capsys, source, "--action-kind", "metres", *UNITS, *AXIS_ANGLES)
    assert "clipped to [-1, 1]" in err and np.abs(dataset.episode(0).actions[:, :3]).max() == 1.0


@pytest.mark.parametrize("names", [[*POSE, "gripper"], None], ids=["euler", "axis-angle"])
def test_absolute_poses_are_differenced_only_when_asked(tmp_path, capsys, names):
    random = np.random.default_rng(3)
    poses = np.cumsum(np.concatenate([[[0.4, 0.1, 0.3, 0.2, -0.1, 0.3]], random.uniform(-0.01, 0.01, (LENGTH, 6))]), axis=0)
    state, actions = rows()
    state[:, :6], actions[:, :6] = poses[:-1], poses[1:]  # the target of a step is where it leads
    source = write(tmp_path / "in", state, actions, names=names, state_names=None if names is None else [*POSE, "pad", "gripper"])
    rotation = [] if names else ["--action-rotation", "axis-angle", *AXIS_ANGLES]
    assert "no motion of an arm" in refused(capsys, source, "--action-kind", "metres", *UNITS, *rotation)
    dataset, _ = converted(capsys, source, "--action-kind", "poses", *UNITS, *rotation)
    made = dataset.episode(0).actions
    np.testing.assert_allclose(made[:, :3], np.diff(poses, axis=0)[:, :3] / 0.02, atol=1e-5)
    as_matrix = euler if names else axis_angle
    for row, before, after in zip(made, poses[:-1], poses[1:], strict=True):
        np.testing.assert_allclose(axis_angle(row[3:6] * 0.1) @ as_matrix(before[3:]), as_matrix(after[3:]), atol=1e-5)


def test_offsets_are_no_poses(tmp_path, capsys):
    options = ["--action-kind", "poses", *UNITS, "--action-rotation", "axis-angle", *AXIS_ANGLES]
    assert "from the measured position, so these are no absolute poses" in refused(capsys, write(tmp_path / "in", *rows()), *options)


def test_a_state_in_euler_angles_becomes_axis_angle_on_one_branch(tmp_path, capsys):
    state, actions = rows()
    state[:, 3:6] = np.array([np.pi, 0.0, 0.0]) + np.random.default_rng(1).uniform(-0.3, 0.3, (LENGTH, 3))
    state[:, 3] = (state[:, 3] + np.pi) % (2 * np.pi) - np.pi  # roll leaps from pi to -pi
    source = write(tmp_path / "in", state, actions, state_names=[*POSE, "finger_1", "finger_2"])
    dataset, _ = converted(capsys, source, *OFFSETS, "--orientation-branch", 1, 0, 0, 0)
    made = dataset.episode(0).state
    for row, given in zip(made, state, strict=True):
        np.testing.assert_allclose(axis_angle(row[3:6]), euler(given[3:6]), atol=1e-5)
    assert (made[:, 3] > 2).all(), "the hand looks down, on the side that was given"
    np.testing.assert_array_equal(made[:, [0, 1, 2, 6, 7]], state[:, [0, 1, 2, 6, 7]])
    assert dataset.convention.orientation_branch == (1.0, 0.0, 0.0, 0.0)


def test_names_are_overruled_only_aloud(tmp_path, capsys):
    """LIBERO's published conversions call axis-angle offsets roll, pitch, yaw."""
    state, actions = rows()
    source = write(tmp_path / "in", state, actions, names={"motors": [*POSE, "gripper"]}, state_names=None)
    dataset, err = converted(capsys, source, *OFFSETS, *AXIS_ANGLES)
    assert "action: its names say euler, but it is taken as axis-angle, as --action-rotation says" in err
    np.testing.assert_array_equal(dataset.episode(0).actions, actions)


@pytest.mark.parametrize(
    ("values", "success"), [([False] * LENGTH, False), ([False] * (LENGTH - 1) + [True], True), ([None] * LENGTH, None), (None, None)]
)
def test_success_is_what_the_dataset_says_or_unknown(tmp_path, capsys, values, success):
    columns = {} if values is None else {"next.success": pa.array(values, pa.bool_())}
    dataset, _ = converted(capsys, write(tmp_path / "in", *rows(), **columns), *OFFSETS, *AXIS_ANGLES)
    assert dataset.successes == (success,) and dataset.episode(0).success is success
    code, result, _ = convert(capsys, tmp_path / "out", tmp_path / "again")  # one of ours says all itself
    assert code == 0 and Dataset(tmp_path / "again").successes == (success,)
    words = {True: "succeeded", False: "failed", None: "unknown"}
    assert result["successes"] == {word: int(key is success) for key, word in words.items()}
