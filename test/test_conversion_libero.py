"""LIBERO's HDF5 demonstrations become what the published policies were trained on (bitvla convert)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from converting import convert

from bitvla_ros.training.dataset import Dataset

h5py = pytest.importorskip("h5py")

LENGTH, SIZE = 12, 8
NOOPS = (0, 1, 6, 11)


def demonstration(seed: int = 0) -> dict[str, np.ndarray]:
    """As OpenVLA's script writes it: observation i is what was seen before action i."""
    random = np.random.default_rng(seed)
    actions = random.uniform(-1, 1, (LENGTH, 7))
    actions[:, 6] = np.where(np.arange(LENGTH) < 5, -1, 1)
    actions[list(NOOPS), :6] = 0
    states = random.normal(size=(LENGTH, 20))
    return {
        "actions": actions,
        "states": states,
        "obs/joint_states": states[:, 1:8],
        "obs/ee_states": random.normal(size=(LENGTH, 6)),
        "obs/gripper_states": random.normal(size=(LENGTH, 2)),
        "obs/agentview_rgb": random.integers(0, 256, (LENGTH, SIZE, SIZE, 3), np.uint8),
        "obs/eye_in_hand_rgb": random.integers(0, 256, (LENGTH, SIZE, SIZE, 3), np.uint8),
    }


def write(path: Path, *demos: dict[str, np.ndarray], **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        for i, demo in enumerate(demos):
            group = data.create_group(f"demo_{i}")
            for name, values in demo.items():
                group.create_dataset(name, data=values)
    return path


def test_frames_states_and_actions_are_those_of_the_published_datasets(tmp_path, capsys):
    demo = demonstration()
    file = write(tmp_path / "pick_up_the_milk_and_place_it_in_the_basket_demo.hdf5", demo)
    code, result, err = convert(capsys, file, tmp_path / "out")
    assert code == 0, err
    episode = Dataset(tmp_path / "out").episode(0)
    assert episode.task == "pick up the milk and place it in the basket"
    kept = [i for i in range(LENGTH) if i not in NOOPS]
    np.testing.assert_array_equal(episode.images["scene"], demo["obs/agentview_rgb"][kept][:, ::-1, ::-1])
    np.testing.assert_array_equal(episode.images["wrist"], demo["obs/eye_in_hand_rgb"][kept][:, ::-1, ::-1])
    state = np.concatenate([demo["obs/ee_states"], demo["obs/gripper_states"]], axis=1)
    np.testing.assert_array_equal(episode.state, state[kept].astype(np.float32))
    np.testing.assert_array_equal(episode.actions[:, :6], demo["actions"][kept, :6].astype(np.float32))
    np.testing.assert_array_equal(episode.actions[:, 6], [1.0 if i < 5 else 0.0 for i in kept])
    for said in ("turned by 180 degrees", "converted to 1 = open", f"dropped {len(NOOPS)} of {LENGTH} frames"):
        assert said in err
    assert result["fps"] == 20


@pytest.mark.parametrize(
    ("marks", "success"),
    [({}, None), ({"dones": [0] * LENGTH}, False), ({"dones": [0] * (LENGTH - 1) + [1]}, True), ({"rewards": [0] * LENGTH}, False)],
)
def test_success_is_what_the_file_marks_or_unknown(tmp_path, capsys, marks, success):
    marked = {name: np.array(values, np.uint8) for name, values in marks.items()}
    file = write(tmp_path / "pick_demo.hdf5", {**demonstration(), **marked})
    assert convert(capsys, file, tmp_path / "out")[0] == 0
    assert Dataset(tmp_path / "out").successes == (success,)


def test_a_frame_that_only_moves_the_gripper_stays(tmp_path, capsys):
    demo = demonstration()
    demo["actions"][5, :6] = 0  # the gripper closes here
    convert(capsys, write(tmp_path / "a_demo.hdf5", demo), tmp_path / "out")
    actions = Dataset(tmp_path / "out").episode(0).actions
    assert (np.abs(actions[:, :6]).max(axis=1) == 0).sum() == 1
    assert len(actions) == LENGTH - len(NOOPS)


def test_noops_are_kept_when_asked(tmp_path, capsys):
    convert(capsys, write(tmp_path / "a_demo.hdf5", demonstration()), tmp_path / "out", "--keep-noops")
    assert len(Dataset(tmp_path / "out")) == LENGTH


def test_originals_whose_observations_follow_the_action_are_paired_with_the_next(tmp_path, capsys):
    """LIBERO's own files: state i was before action i, but the observation after it."""
    demo = demonstration()
    demo["obs/joint_states"] = np.concatenate([demo["states"][1:, 1:8], np.zeros((1, 7))])
    info = json.dumps({"language_instruction": "open the drawer"})
    file = write(tmp_path / "KITCHEN_SCENE1_x_demo.hdf5", demo, problem_info=info, macros_image_convention="opengl")
    code, _, err = convert(capsys, file, tmp_path / "out", "--keep-noops")
    assert code == 0 and "paired with the next action" in err
    episode = Dataset(tmp_path / "out").episode(0)
    assert episode.task == "open the drawer"
    np.testing.assert_array_equal(episode.actions[:, :6], demo["actions"][1:, :6].astype(np.float32))
    np.testing.assert_array_equal(episode.images["scene"], demo["obs/agentview_rgb"][:-1, ::-1, ::-1])


def test_files_with_rows_in_order_are_only_mirrored(tmp_path, capsys):
    demo = demonstration()
    convert(capsys, write(tmp_path / "a_demo.hdf5", demo, macros_image_convention="opencv"), tmp_path / "out", "--keep-noops")
    np.testing.assert_array_equal(Dataset(tmp_path / "out").episode(0).images["scene"], demo["obs/agentview_rgb"][:, :, ::-1])


def test_scene_names_are_no_part_of_the_instruction(tmp_path, capsys):
    convert(capsys, write(tmp_path / "LIVING_ROOM_SCENE2_put_both_cups_away_demo.hdf5", demonstration()), tmp_path / "out")
    assert Dataset(tmp_path / "out").tasks == ("put both cups away",)


def test_demonstrations_stay_in_order_over_files(tmp_path, capsys):
    demos = [demonstration(i) for i in range(11)]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a_demo.hdf5", *demos)
    write(tmp_path / "in" / "b_demo.hdf5", demos[3])
    _, result, _ = convert(capsys, tmp_path / "in", tmp_path / "out", "--keep-noops")
    assert result["episodes"] == 12
    dataset = Dataset(tmp_path / "out")
    for i in (2, 10):
        np.testing.assert_array_equal(dataset.episode(i).actions[:, 0], demos[i]["actions"][:, 0].astype(np.float32))
    assert dataset.tasks == ("a", "b")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", ["demo_1", "frame 4", "actions"]),
        ("short", ["demo_1", "frame 7", "lengths differ"]),
        ("dimensions", ["demo_1", "expected [T, 7]"]),
        ("missing", ["demo_1", "eye_in_hand_rgb"]),
        ("scale", ["demo_1", "frame 3", "[-1, 1]"]),
        ("pictures", ["demo_1", "agentview_rgb", "uint8"]),
        ("noops", ["demo_1", "--keep-noops"]),
        ("text", ["demo_1", "expected actions and obs/"]),
        ("scalar", ["demo_1", "expected actions and obs/"]),
        ("flat", ["demo_1", "expected actions and obs/"]),
    ],
)
def test_bad_demonstrations_are_refused_by_name(tmp_path, capsys, fault, words):
    demo = demonstration()
    if fault == "nan":
        demo["actions"][4, 2] = np.nan
    elif fault == "short":
        demo["obs/agentview_rgb"] = demo["obs/agentview_rgb"][:7]
    elif fault == "dimensions":
        demo["actions"] = demo["actions"][:, :6]
    elif fault == "missing":
        del demo["obs/eye_in_hand_rgb"]
    elif fault == "scale":
        demo["actions"][3, 0] = 1.5
    elif fault == "pictures":
        demo["obs/agentview_rgb"] = demo["obs/agentview_rgb"].astype(np.float32)
    elif fault == "text":
        demo["actions"] = np.full(demo["actions"].shape, b"left")
    elif fault == "scalar":
        demo["obs/agentview_rgb"] = np.array(3)
    elif fault == "flat":
        demo["states"] = demo["states"][:, 0]
    else:
        demo["actions"][:] = [0, 0, 0, 0, 0, 0, -1]
    before = {path.name for path in tmp_path.iterdir()} | {"a_demo.hdf5"}
    code, result, _ = convert(capsys, write(tmp_path / "a_demo.hdf5", demonstration(), demo), tmp_path / "out")
    assert code == 2
    assert all(word in result["error"] for word in ["a_demo.hdf5", *words])
    assert {path.name for path in tmp_path.iterdir()} == before


def test_files_that_are_no_demonstrations_are_refused(tmp_path, capsys):
    (tmp_path / "broken.hdf5").write_bytes(b"nothing")
    assert "no readable HDF5" in convert(capsys, tmp_path / "broken.hdf5", tmp_path / "out")[1]["error"]
    assert "data/demo_0" in convert(capsys, write(tmp_path / "empty_demo.hdf5"), tmp_path / "out")[1]["error"]
    file = write(tmp_path / "a_demo.hdf5", demonstration())
    assert "states 20" in convert(capsys, file, tmp_path / "out", "--control-hz", 10)[1]["error"]
