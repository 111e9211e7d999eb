"""Demonstrations on disk come back as they went in, a killed writer goes on where it was, and what is wrong is named."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.policy.normalization import Statistics
from bitvla_ros.training.dataset import Counterfactuals, Dataset, DatasetError, DatasetWriter, Episode
from bitvla_ros.training.statistics import dataset_statistics

pa = pytest.importorskip("pyarrow", reason="the extra train is not installed")
pq = pytest.importorskip("pyarrow.parquet")

CAMERAS = {"scene": (6, 8), "wrist": (5, 5)}


def make_episode(seed: int = 0, length: int = 7, task: str = "pick up the red block") -> Episode:
    rng = np.random.default_rng(seed)
    images = {role: rng.integers(0, 256, (length, *size, 3), np.uint8) for role, size in CAMERAS.items()}
    actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    actions[:, 6] = rng.integers(0, 2, length)
    return Episode(task, images, rng.normal(size=(length, 8)).astype(np.float32), actions, seed)


def with_counterfactuals(episode: Episode, tasks: tuple[str, ...] = ("push it", "pick up the red block"), chunk: int = 4) -> Episode:
    rng = np.random.default_rng(len(episode))
    index = rng.integers(-1, len(tasks), (len(episode), 2))
    actions = rng.uniform(0, 1, (len(episode), 2, chunk, 7)).astype(np.float32)
    return replace(episode, counterfactuals=Counterfactuals(tasks, index, actions))


def writer_at(path: Path, **changes: Any) -> DatasetWriter:
    return DatasetWriter(path, **{"fps": 20, "cameras": CAMERAS, "name": "blocks", "source": {"policy": "test"}, **changes})


def write(path: Path, episodes: list[Episode]) -> Path:
    writer = writer_at(path)
    for episode in episodes:
        writer.add(episode)
    writer.close()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Episode]]:
    episodes = [make_episode(0), replace(make_episode(1, 3, "put it down"), success=True), replace(make_episode(2, 1), success=False)]
    return write(tmp_path_factory.mktemp("written") / "blocks", episodes), episodes


def test_counterfactuals_come_back_with_the_instructions_that_they_had(tmp_path: Path) -> None:
    episodes = [with_counterfactuals(make_episode(0)), with_counterfactuals(make_episode(1, 3, "put it down"), ("put it down", "wave"))]
    dataset = Dataset(write(tmp_path / "blocks", episodes))
    assert dataset.tasks == ("pick up the red block", "push it", "put it down", "wave")
    for number, (episode, start) in enumerate(zip(episodes, (0, 7), strict=True)):
        others = episode.counterfactuals
        assert others is not None
        assert np.array_equal(dataset.others(number), others.index >= 0)
        assert (others.index < 0).any() and (others.index >= 0).any()
        for i, which in np.argwhere(others.index >= 0):
            images, state, actions, task = dataset.frame(start + int(i), 3, int(which))
            assert task == others.tasks[others.index[i, which]] and np.array_equal(actions, others.actions[i, which, :3])
            assert np.array_equal(images["scene"], episode.images["scene"][i]) and np.array_equal(state, episode.state[i])
        back = dataset.episode(number).counterfactuals
        assert back is not None and np.array_equal(back.actions, others.actions)
        assert [back.tasks[i] for i in back.index[back.index >= 0]] == [others.tasks[i] for i in others.index[others.index >= 0]]
    i, which = (int(number) for number in np.argwhere(dataset.others(0))[0])
    with pytest.raises(DatasetError, match="counterfactuals of 4 actions, but chunks of 5"):
        dataset.frame(i, 5, which)


def test_a_writer_goes_on_with_counterfactuals_and_refuses_others_shapes(tmp_path: Path) -> None:
    episodes = [with_counterfactuals(make_episode(i, 3, task)) for i, task in enumerate(("a", "b", "push it"))]
    whole = write(tmp_path / "whole", episodes)
    for part in (episodes[:1], episodes[1:]):
        writer = writer_at(tmp_path / "parts")
        for episode in part:
            writer.add(episode)
    with pytest.raises(DatasetError, match=r"episode 3 has counterfactuals of shape \[0, 0\], those before have \[2, 4\]"):
        writer.add(make_episode())
    writer.close()
    assert contents(whole) == contents(tmp_path / "parts")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"actions": np.full((7, 2, 4, 7), np.nan, np.float32)}, r"frame 0: counterfactuals\[0\] is nan"),
        ({"actions": np.full((7, 2, 4, 7), -1, np.float32)}, r"frame 0: the gripper action is -1"),
        ({"actions": np.zeros((7, 1, 4, 7), np.float32)}, r"expected \[7, n\] and float32 \[7, n, chunk, 7\]"),
        ({"index": np.full((7, 2), 2)}, "other tasks than the 2 that they have"),
    ],
)
def test_counterfactuals_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    episode = with_counterfactuals(make_episode())
    assert episode.counterfactuals is not None
    with pytest.raises(DatasetError, match=says):
        writer_at(tmp_path / "blocks").add(replace(episode, counterfactuals=replace(episode.counterfactuals, **change)))


def edit(path: Path, episode: int, column: str, change: Any) -> None:
    """Rewrite one column of an episode's file. change: list of values -> list of values, or None to leave the column out."""
    file = path / f"data/chunk-000/file-{episode:03d}.parquet"
    table = pq.read_table(file)
    at = table.schema.get_field_index(column)
    if change is None:
        table = table.remove_column(at)
    else:
        values = change(table.column(column).to_pylist())
        kind = table.schema.field(column).type
        kind = pa.list_(pa.float32()) if pa.types.is_fixed_size_list(kind) else kind
        table = table.set_column(at, column, pa.array(values, kind))
    pq.write_table(table, file)


def test_episodes_come_back_as_they_went_in(written: tuple[Path, list[Episode]]) -> None:
    path, episodes = written
    dataset = Dataset(path)
    assert (dataset.name, dataset.fps, dataset.cameras, dataset.source) == ("blocks", 20.0, CAMERAS, {"policy": "test"})
    assert (dataset.lengths, len(dataset)) == ((7, 3, 1), 11)
    assert dataset.tasks == ("pick up the red block", "put it down")
    for i, episode in enumerate(episodes):
        found = dataset.episode(i)
        assert (found.task, found.seed, found.success, len(found)) == (episode.task, episode.seed, episode.success, len(episode))
        assert found.state.dtype == found.actions.dtype == np.float32
        np.testing.assert_array_equal(found.state, episode.state)
        np.testing.assert_array_equal(found.actions, episode.actions)
        for role in CAMERAS:
            np.testing.assert_array_equal(found.images[role], episode.images[role])


@given(index=st.integers(0, 10), chunk=st.integers(1, 12))
def test_a_chunk_ends_with_the_episode_and_then_stays(written: tuple[Path, list[Episode]], index: int, chunk: int) -> None:
    path, episodes = written
    dataset = Dataset(path, cameras=["wrist"])
    episode, i = dataset.locate(index)
    images, state, actions, task = dataset.frame(index, chunk)
    truth = episodes[episode]
    assert list(images) == ["wrist"] and task == truth.task
    np.testing.assert_array_equal(images["wrist"], truth.images["wrist"][i])
    np.testing.assert_array_equal(state, truth.state[i])
    left = min(chunk, len(truth) - i)
    np.testing.assert_array_equal(actions[:left], truth.actions[i : i + left])
    assert actions.shape == (chunk, 7) and actions.dtype == np.float32
    assert not actions[left:, :6].any() and (actions[left:, 6] == truth.actions[-1, 6]).all()


def test_the_layout_is_lerobots(written: tuple[Path, list[Episode]]) -> None:
    path, _ = written
    assert set(contents(path)) == {
        *(f"data/chunk-000/file-{i:03d}.parquet" for i in range(3)),
        *(f"meta/{name}" for name in ("info.json", "tasks.parquet", "episodes/chunk-000/file-000.parquet", "stats.json")),
        "dataset_statistics.json",
    }
    info = json.loads((path / "meta/info.json").read_text())
    counts = {"total_episodes": 3, "total_frames": 11, "total_tasks": 2, "chunks_size": 1000}
    assert counts.items() <= info.items()
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 20, {"train": "0:3"})
    assert info["data_path"].format(chunk_index=0, file_index=2) == "data/chunk-000/file-002.parquet"
    assert info["features"]["observation.images.scene"]["shape"] == [6, 8, 3]
    table = pq.read_table(path / "data/chunk-000/file-001.parquet")
    assert set(table.column_names) == set(info["features"])
    assert table["index"].to_pylist() == [7, 8, 9] and table["frame_index"].to_pylist() == [0, 1, 2]
    assert table["task_index"].to_pylist() == [1, 1, 1] and table["episode_index"].to_pylist() == [1, 1, 1]
    np.testing.assert_allclose(table["timestamp"].to_numpy(), [0, 0.05, 0.1], atol=1e-6)
    assert table.schema.field("observation.images.scene").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kinds = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(kinds) == set(info["features"]) and kinds["observation.images.wrist"] == {"_type": "Image"}
    rows = pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    expected = {"episode_index": 1, "tasks": ["put it down"], "length": 3, "seed": 1, "success": True}
    expected |= {"dataset_from_index": 7, "dataset_to_index": 10, "data/chunk_index": 0, "data/file_index": 1}
    assert expected.items() <= rows[1].items()
    assert [row["success"] for row in rows] == [None, True, False]
    tasks = pq.read_table(path / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["pick up the red block", "put it down"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((path / "meta/stats.json").read_text())
    assert set(stats) == {"observation.images.scene", "observation.images.wrist", "observation.state", "action"}
    assert np.shape(stats["observation.images.scene"]["mean"]) == (3, 1, 1)


def test_statistics_are_those_of_all_frames(written: tuple[Path, list[Episode]]) -> None:
    path, episodes = written
    entry = json.loads((path / "dataset_statistics.json").read_text())["blocks"]
    assert entry == Dataset(path).statistics
    assert (entry["num_transitions"], entry["num_trajectories"]) == (10, 2)  # without the failure
    assert entry["action"]["mask"] == [True] * 6 + [False] and "mask" not in entry["proprio"]
    for key, arrays in (("action", [e.actions for e in episodes[:2]]), ("proprio", [e.state for e in episodes[:2]])):
        rows = np.concatenate(arrays).astype(np.float64)
        expected = {"mean": rows.mean(0), "std": rows.std(0), "max": rows.max(0), "min": rows.min(0)}
        expected |= {"q01": np.percentile(rows, 1, axis=0), "q99": np.percentile(rows, 99, axis=0)}
        for name, value in expected.items():
            np.testing.assert_allclose(entry[key][name], value, rtol=1e-12, atol=1e-12)
    read = Statistics.from_dict(entry)  # by whoever runs the checkpoint
    np.testing.assert_array_equal(read.action.q99, entry["action"]["q99"])


def test_picture_statistics_are_of_colours_in_zero_to_one(written: tuple[Path, list[Episode]]) -> None:
    path, episodes = written
    row = pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[0]
    of_all = json.loads((path / "meta/stats.json").read_text())["observation.images.scene"]
    every = np.concatenate([episode.images["scene"] for episode in episodes])
    of_first = {name: row[f"stats/observation.images.scene/{name}"] for name in of_all}
    for stats, pictures in ((of_first, episodes[0].images["scene"]), (of_all, every)):
        colours = np.asarray(pictures) / 255.0
        for name in ("mean", "std", "max", "min"):
            np.testing.assert_allclose(np.ravel(stats[name]), getattr(colours, name)((0, 1, 2)))


def test_statistics_of_other_dimensions_mask_the_last() -> None:
    rows = [np.zeros((2, 14), np.float32)]
    assert dataset_statistics(rows, rows)["action"]["mask"] == [True] * 13 + [False]


def test_a_writer_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    episodes = [make_episode(i, 4, f"task {i % 2}") for i in range(4)]
    whole = write(tmp_path / "whole", episodes)
    parts = tmp_path / "parts"
    for i, episode in enumerate(episodes):
        writer = writer_at(parts)
        assert (len(writer), writer.frames) == (i, 4 * i)
        assert writer.add(episode) == i
        if i == 0:
            with pytest.raises(DatasetError, match="not finished"):
                Dataset(parts)
        (parts / "data/chunk-000/.file-009.parquet.partial").write_bytes(b"half")
        if i == 1:
            writer.close()  # and later extended
    writer = writer_at(parts)
    assert writer.episodes == [(f"task {i % 2}", i) for i in range(4)]
    writer.close()
    assert contents(parts) == contents(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 30}, "begun with fps 20, not 30"),
        ({"cameras": {"scene": (6, 8)}}, "begun with cameras"),
        ({"name": "other"}, "begun with name 'blocks'"),
        ({"source": {}}, "begun with source"),
    ],
)
def test_a_dataset_is_continued_only_as_it_was_begun(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    writer_at(tmp_path / "d").add(make_episode())
    with pytest.raises(DatasetError, match=message):
        writer_at(tmp_path / "d", **changes)


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="something else"):
        writer_at(tmp_path)
    with pytest.raises(DatasetError, match="is a file"):
        writer_at(tmp_path / "notes.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_dataset_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no episode was written"):
        writer_at(tmp_path / "d").close()
    for fps in (0, -20, float("nan"), float("inf")):
        with pytest.raises(DatasetError, match="positive rate"):
            writer_at(tmp_path / "d", fps=fps)
    with pytest.raises(DatasetError, match="no name"):
        writer_at(tmp_path / "d", name="")


def changed(values: np.ndarray, at: tuple[int, int], value: float) -> np.ndarray:
    values = values.copy()
    values[at] = value
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, task="  "), "episode 1 has no instruction"),
        (lambda e: replace(e, actions=e.actions[:0]), "episode 1 has no frames"),
        (lambda e: replace(e, actions=changed(e.actions, (3, 2), np.nan)), r"episode 1, frame 3: actions\[2\] is nan"),
        (lambda e: replace(e, state=changed(e.state, (5, 0), np.inf)), r"episode 1, frame 5: state\[0\] is inf"),
        (lambda e: replace(e, actions=changed(e.actions, (2, 6), -1.0)), "episode 1, frame 2: the gripper action is -1"),
        (lambda e: replace(e, actions=e.actions[:, 1:]), "episode 1: actions have 6 dimensions, those before have 7"),
        (lambda e: replace(e, state=e.state.astype(np.float64)), "episode 1: state are float64"),
        (lambda e: replace(e, state=e.state[1:]), "episode 1: state are"),
        (lambda e: replace(e, actions=e.actions[:, :0]), "episode 1: actions are"),
        (lambda e: replace(e, images={"scene": e.images["scene"]}), "episode 1: camera wrist is missing; this dataset has scene, wrist"),
        (lambda e: replace(e, images={**e.images, "belly": e.images["wrist"]}), "episode 1: unknown camera role belly"),
        (lambda e: replace(e, images={**e.images, "wrist": e.images["scene"]}), "camera wrist has uint8"),
        (lambda e: replace(e, images={**e.images, "wrist": e.images["wrist"][:4]}), "episode 1, frame 4: camera wrist has 4 of 7"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path, change: Any, message: str) -> None:
    writer = writer_at(tmp_path / "d")
    writer.add(make_episode())
    before = contents(tmp_path / "d")
    with pytest.raises(DatasetError, match=message):
        writer.add(change(make_episode(1)))
    assert contents(tmp_path / "d") == before
    assert writer.add(make_episode(1)) == 1


def at(frame: int, value: Any) -> Any:
    return lambda values: [value if i == frame else old for i, old in enumerate(values)]


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("frame_index", at(2, 3), "episode 0, frame 2: frame_index is 3, expected 2"),
        ("index", at(4, 9), "episode 0, frame 4: index is 9, expected 4"),
        ("episode_index", at(0, 1), "episode 0, frame 0: episode_index is 1"),
        ("timestamp", at(3, 0.2), r"episode 0, frame 3: its timestamp is 0.2 s, expected 0.15 s"),
        ("timestamp", lambda values: [2 * value for value in values], r"frame 1: its timestamp is 0.1 s.*another rate than 20"),
        ("timestamp", at(3, float("nan")), r"episode 0, frame 3: its timestamp is nan"),
        ("action", at(1, [0.0] * 6 + [float("nan")]), r"episode 0, frame 1: action\[6\] is nan"),
        ("action", at(1, [0.0] * 6), "episode 0, frame 1: action has 6 dimensions, frame 0 has 7"),
        ("action", at(1, None), "episode 0, frame 1: action has 0 dimensions"),
        ("action", lambda values: [row[:6] for row in values], "episode 0: state and actions have 8 and 6 dimensions"),
        ("observation.state", None, "episode 0: .* has no column 'observation.state'"),
        ("task_index", lambda values: [5 for _ in values], "episode 0 has the task 5; meta/ has 0"),
    ],
)
def test_a_damaged_dataset_is_refused_when_it_is_opened(tmp_path: Path, column: str, change: Any, message: str) -> None:
    path = write(tmp_path / "d", [make_episode()])
    edit(path, 0, column, change)
    with pytest.raises(DatasetError, match=message):
        Dataset(path)


def test_a_picture_that_does_not_decode_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [make_episode(0, 2), make_episode(1, 3)])
    edit(path, 1, "observation.images.wrist", lambda values: [*values[:2], {"bytes": values[2]["bytes"][:60], "path": ""}])
    dataset = Dataset(path)
    dataset.frame(3)
    with pytest.raises(DatasetError, match="episode 1, frame 2, camera wrist: the picture does not decode"):
        dataset.frame(4)
    with pytest.raises(DatasetError, match="episode 1, frame 2"):
        dataset.episode(1)
    Dataset(path, cameras=["scene"]).episode(1)
    edit(path, 1, "observation.images.wrist", lambda values: [*values[:2], {"bytes": b"GIF89a", "path": ""}])
    with pytest.raises(DatasetError, match=r"^episode 1, frame 2, camera wrist: the picture does not decode"):
        Dataset(path).frame(4)
    edit(path, 1, "observation.images.wrist", lambda values: [{"bytes": None, "path": ""} for _ in values])
    with pytest.raises(DatasetError, match="episode 1, frame 0, camera wrist"):
        Dataset(path).episode(1)
    edit(path, 1, "observation.images.wrist", None)
    with pytest.raises(DatasetError, match=r"^episode 1: camera wrist is missing"):
        Dataset(path).episode(1)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named_by_reader_and_writer(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path / "d", [make_episode(0), make_episode(1)])
    file = path / "data/chunk-000/file-001.parquet"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(DatasetError, match=r"episode 1: .*file-001.parquet is damaged"):
        Dataset(path)
    with pytest.raises(DatasetError, match=r"episode 1: .*file-001.parquet is damaged"):
        writer_at(path)


def test_missing_episodes_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [make_episode(i) for i in range(3)])
    (path / "data/chunk-000/file-001.parquet").unlink()
    with pytest.raises(DatasetError, match="episode 1 is missing"):
        Dataset(path)
    with pytest.raises(DatasetError, match="episode 1 is missing although episode 2 is there"):
        writer_at(path)


def test_what_is_no_dataset_of_this_layout_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [make_episode()])
    with pytest.raises(DatasetError, match=r"has no camera 'belly'; it has scene, wrist"):
        Dataset(path, cameras=["scene", "belly"])
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v3.1"}))
    with pytest.raises(DatasetError, match=r"layout 'v3.1', expected v2.1 or v3.0: use bitvla convert"):
        Dataset(path)
    (path / "meta/info.json").write_text(json.dumps({key: value for key, value in info.items() if key != "fps"}))
    with pytest.raises(DatasetError, match=r"info.json has no fps"):
        Dataset(path)
    (path / "meta/info.json").write_text(json.dumps(info)[:-9])
    with pytest.raises(DatasetError, match=r"info\.json is damaged"):
        Dataset(path)
    (path / "meta/info.json").write_text(json.dumps(info))
    (path / "dataset_statistics.json").unlink()
    with pytest.raises(DatasetError, match="no normalisation statistics"):
        Dataset(path)
    with pytest.raises(DatasetError, match="is no dataset"):
        Dataset(tmp_path)


def test_a_full_disk_leaves_whole_episodes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "d"
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_dataset import *
writer = writer_at(Path({str(path)!r}))
writer.add(make_episode(0))
limit = 2000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    writer.add(make_episode(1))
except DatasetError as error:
    print(error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "episode 1 could not be written" in done.stdout and "make room" in done.stdout
    assert list(contents(path)) == ["data/chunk-000/file-000.parquet"]
    writer = writer_at(path)
    assert writer.add(make_episode(1)) == 1
    writer.close()
    assert contents(path) == contents(write(tmp_path / "whole", [make_episode(0), make_episode(1)]))


def test_the_cache_of_pictures_is_bounded(written: tuple[Path, list[Episode]], monkeypatch: pytest.MonkeyPatch) -> None:
    path, episodes = written
    monkeypatch.setattr("bitvla_ros.training.dataset._CACHE", 1)
    dataset = Dataset(path)
    for i in (0, 1, 2, 0):
        np.testing.assert_array_equal(dataset.episode(i).images["scene"], episodes[i].images["scene"])
        assert len(dataset._encoded) == 1
