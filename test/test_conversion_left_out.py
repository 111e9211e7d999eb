"""bitvla convert --skip-bad: what cannot be converted is left out, and said; everything else is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import convert, refused
from recordings import Messages, Stream, standard, write_bag
from test_conversion_lerobot import OPTIONS, TASKS
from test_conversion_lerobot import write as write_lerobot
from test_conversion_libero import demonstration
from test_conversion_libero import write as write_libero

from bitvla_ros.training.dataset import Dataset, DatasetError
from bitvla_ros.training.episode import DatasetNotWritten
from bitvla_ros.training.left_out import LeftOut

pytest.importorskip("rosbags")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def m() -> Messages:
    return Messages()


def one_camera(m: Messages) -> dict[str, Stream]:
    streams = standard(m, 1.0)
    del streams["/camera/wrist/image_raw/compressed"]
    return streams


def skipped(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> tuple[Dataset, list[dict[str, str]]]:
    """The dataset, and what was left out, which is in it too."""
    code, result, err = convert(capsys, *arguments, out, "--skip-bad")
    assert code == 0, err
    dataset, left_out = Dataset(out), result["left_out"]
    assert dataset.source.get("left_out", []) == left_out and result["episodes"] == len(dataset.lengths)
    return dataset, left_out


def test_a_bad_bag_of_several_is_left_out(tmp_path, capsys, m):
    bags = [write_bag(tmp_path / name, m, one_camera(m)) for name in ("a", "b", "c")]
    torn = next(bags[1].glob("*.mcap"))
    torn.write_bytes(torn.read_bytes()[:2000])
    assert "b" in refused(capsys, tmp_path / "out", bags[0], bags[1], bags[2])
    dataset, left_out = skipped(capsys, tmp_path / "out", *bags)
    assert len(dataset.lengths) == 2
    assert [Path(found["where"]).parts[-1] for found in left_out] == ["b"] and "no readable rosbag2" in left_out[0]["why"]


@pytest.mark.parametrize("options", [(), ("--video", "h264")], ids=["png", "video"])
@pytest.mark.parametrize("fault", ["damaged picture", "no pose", "gap"])
def test_a_bad_episode_is_left_out_wholly(tmp_path, capsys, m, fault, options):
    """A damaged picture is met when others of its episode have been written already."""
    good, bad = one_camera(m), one_camera(m)
    if fault == "damaged picture":
        good, bad = standard(m, 1.0), standard(m, 1.0)
        time, picture = bad["/camera/wrist/image_raw/compressed"][15]
        torn = m.make(picture.__msgtype__, header=picture.header, format=picture.format, data=picture.data[:60])
        bad["/camera/wrist/image_raw/compressed"][15] = (time, torn)
    elif fault == "no pose":
        del bad["/end_effector_pose"]
    else:
        bad["/joint_states"] = [(t, x) for t, x in bad["/joint_states"] if not 0.3 < t < 0.7]
    bags = [write_bag(tmp_path / "good", m, good), write_bag(tmp_path / "wrong", m, bad)]
    refused(capsys, tmp_path / "out", *bags, *options)
    code, result, err = convert(capsys, *bags, tmp_path / "out", "--skip-bad", *options)
    assert code == 0, err
    left_out = result["left_out"]
    assert result["episodes"] == 1 and len(left_out) == 1 and "wrong" in left_out[0]["where"]
    if fault == "damaged picture":
        assert "frame 10" in left_out[0]["why"] and "wrist" in left_out[0]["why"]
    assert not [file for file in (tmp_path / "out").rglob("*") if "partial" in file.name or "file-001" in file.name]


def test_where_nothing_is_left_it_is_an_error(tmp_path, capsys, m):
    bag = write_bag(tmp_path / "bag", m, one_camera(m))
    error = refused(capsys, tmp_path / "out", bag, "--skip-bad", "--camera", "scene=/nowhere")
    assert "1 were left out, the first" in error and "no messages of a topic /nowhere" in error


def test_bad_episodes_of_a_dataset_are_left_out(tmp_path, capsys):
    source = write_lerobot(tmp_path / "in", "v2.1", video=False)
    file = source / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 7), file)
    dataset, left_out = skipped(capsys, tmp_path / "out", source, *OPTIONS)
    assert [dataset.episode(i).task for i in range(2)] == [TASKS[0], TASKS[2]]
    assert "episode 1" in left_out[0]["where"] and "frame 7" in left_out[0]["why"]


def test_bad_demonstrations_of_libero_are_left_out(tmp_path, capsys):
    pytest.importorskip("h5py")
    broken = demonstration(1)
    broken["actions"][3] = np.nan
    files = [write_libero(tmp_path / "a_demo.hdf5", demonstration(0), broken), tmp_path / "b_demo.hdf5"]
    files[1].write_bytes(b"no file of that kind")
    dataset, left_out = skipped(capsys, tmp_path / "out", *files)
    assert len(dataset.lengths) == 1
    assert ["demo_1" in found["where"] or "b_demo" in found["where"] for found in left_out] == [True, True]


def test_a_full_disk_is_not_left_out() -> None:
    left_out = LeftOut(allowed=True)
    for error, found in ((DatasetError("episode 1: bad"), 1), (DatasetNotWritten("the disk is full"), 1)):
        try:
            left_out.add("a", error)
        except DatasetNotWritten:
            assert isinstance(error, DatasetNotWritten)
        assert len(left_out.found) == found


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_that_was_taken_out_leaves_the_others_as_they_are(tmp_path, capsys, version):
    """By its key, not by its place: the third episode must not become the second one's pictures."""
    source = write_lerobot(tmp_path / "in", version, video=False)
    skipped(capsys, tmp_path / "whole", source, *OPTIONS)
    listed = source / ("meta/episodes.jsonl" if version == "v2.1" else "meta/episodes/chunk-000/file-000.parquet")
    if version == "v2.1":
        lines = [json.loads(line) for line in listed.read_text().splitlines()]
        listed.write_text("\n".join(json.dumps(line) for line in lines if line["episode_index"] != 1))
        tasks = source / "meta/tasks.jsonl"
        tasks.write_text("\n".join(reversed(tasks.read_text().splitlines())))
    else:
        table = pq.read_table(listed)
        pq.write_table(table.take([2, 0]), listed)
    dataset, whole = skipped(capsys, tmp_path / "out", source, *OPTIONS)[0], Dataset(tmp_path / "whole")
    assert len(dataset.lengths) == 2
    for i, before in ((0, 0), (1, 2)):
        found, expected = dataset.episode(i), whole.episode(before)
        assert found.task == expected.task
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.images["scene"], expected.images["scene"])


def test_one_key_is_listed_once(tmp_path, capsys):
    source = write_lerobot(tmp_path / "in", "v2.1", video=False)
    listed = source / "meta/episodes.jsonl"
    listed.write_text(listed.read_text() + "\n" + listed.read_text().splitlines()[1])
    assert "episode_index 1 is listed twice" in refused(capsys, tmp_path / "out", source, *OPTIONS)


def test_our_datasets_in_the_layout_of_before_are_read(tmp_path, capsys):
    old = Path(__file__).parent / "data" / "dataset_v2.1"
    dataset = Dataset(old)
    assert (dataset.name, dataset.fps, dataset.lengths, dataset.successes) == ("blocks", 20.0, (5, 3), (True, True))
    assert dataset.tasks == ("stack the blocks", "wave", "sort the blocks") and dataset.source == {"policy": "expert"}
    converted, _ = skipped(capsys, tmp_path / "new", old, "--name", "blocks")
    assert converted.statistics == dataset.statistics and converted.source["original"] == {"policy": "expert"}
    for i in range(2):
        before, after = dataset.episode(i), converted.episode(i)
        assert (before.task, before.seed, before.success) == (after.task, after.seed, after.success)
        pairs: list[tuple[Any, Any]] = [(before.state, after.state), (before.actions, after.actions)]
        pairs += [(before.images[role], after.images[role]) for role in ("scene", "wrist")]
        assert before.counterfactuals is not None and after.counterfactuals is not None
        pairs += [(before.counterfactuals.actions, after.counterfactuals.actions)]
        for mine, theirs in pairs:
            np.testing.assert_array_equal(mine, theirs)
        assert [after.counterfactuals.tasks[k] for k in after.counterfactuals.index.ravel()] == ["wave"] * len(after)
    copy = Path(shutil.copytree(old, tmp_path / "copy"))
    lines = (copy / "meta/episodes.jsonl").read_text().splitlines()
    (copy / "meta/episodes.jsonl").write_text("\n".join(reversed(lines)))
    assert np.array_equal(Dataset(copy).episode(1).actions, dataset.episode(1).actions)
